"""Figures: what must be on them, and that what is drawn lies where it should."""

import io

import cv2
import numpy as np
import pytest
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import plots
from helpers import section as sec
from tests.unit.make import disc_section


@pytest.fixture(scope="module")
def disc():
    return disc_section()


def drawn(figure):
    """Return the figure's pixels, float (y, x, 3)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(float)


def tissue_axes(figure):
    return [axis for axis in figure.axes if axis.images]


def test_every_tissue_panel_has_a_scale_bar_equal_aspect_and_its_origin_top_left(disc):
    small, scale = sec.thumbnail(disc, 300)
    mask = small[..., 1] < 200
    made = [
        plots.overlay(disc),
        plots.overlay(disc, values=np.arange(len(sec.xy(disc))), label="counts", title="a gene"),
        plots.outline(small, mask, small, mpp=4.0),
        plots.panels([small, small], ["a", "b"], mpp=4.0, columns=2),
        plots.grid([[small], [small]], ["a", "b"], mpp=4.0),
        plots.cover(disc, small, small, 4.0),
    ]
    for figure in made:
        for axis in tissue_axes(figure):
            assert any(isinstance(artist, ScaleBar) for artist in axis.artists)
            assert axis.get_aspect() in ("equal", 1.0) and axis.yaxis_inverted()


def test_the_scale_bar_uses_the_drawn_pixels(disc):
    figure = plots.overlay(disc, max_px=300)
    whole, crop = (next(a for a in axis.artists if isinstance(a, ScaleBar)) for axis in tissue_axes(figure))
    assert whole.dx == pytest.approx(2 * crop.dx) and crop.dx == sec.mpp(disc)


def test_spots_are_drawn_where_they_lie(disc):
    figure = plots.overlay(disc, max_px=300)
    axis = tissue_axes(figure)[0]
    circles = next(c for c in axis.collections if isinstance(c, PatchCollection))
    centres = np.array([path.vertices.mean(0) for path in circles.get_paths()])
    assert np.allclose(np.sort(centres[:, 0]), np.sort(sec.xy(disc)[:, 0] * 0.5), atol=1.0)
    right = disc.attrs["spot_diameter_um"] / sec.mpp(disc) * 0.5
    assert np.ptp(circles.get_paths()[0].vertices[:, 0]) == pytest.approx(right, rel=0.05)


def test_values_have_a_colour_bar_with_its_unit(disc):
    figure = plots.overlay(disc, values=np.arange(len(sec.xy(disc))), label="counts per 10,000")
    assert any(axis.get_ylabel() == "counts per 10,000" for axis in figure.axes)


def test_the_stain_plane_shows_fit_and_truth():
    rng = np.random.default_rng(0)
    vectors = np.array([[0.77, 0.56, 0.30], [0.36, 0.82, 0.45]])
    density = rng.gamma(2, 0.3, (500, 2)) @ vectors
    figure = plots.stain_plane(density, vectors, true_vectors=vectors)
    assert len(figure.axes[0].lines) == 4 and len(figure.axes[0].get_legend().get_texts()) == 4
    assert any(isinstance(c, PathCollection) for c in figure.axes[0].collections)


def test_before_and_after_are_told_apart():
    figure = plots.before_after(["a", "b", "c"], [5.0, 4.0, 3.0], [1.0, 0.5, 0.4], ylabel="degrees")
    before, after = (c.get_offsets()[:, 1] for c in figure.axes[0].collections if isinstance(c, PathCollection))
    assert list(before) == [5, 4, 3] and list(after) == [1, 0.5, 0.4] and figure.axes[0].get_ylim()[0] == 0


def test_a_figure_is_not_blank_and_text_stays_inside(disc):
    picture = drawn(plots.overlay(disc, title="Spots follow the outline of the tissue"))
    assert picture.std() > 5
    edge = np.concatenate([picture[:2].ravel(), picture[-2:].ravel(), picture[:, :2].ravel(), picture[:, -2:].ravel()])
    assert (edge > 250).mean() > 0.9

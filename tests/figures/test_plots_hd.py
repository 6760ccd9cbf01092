"""Figures of notebook 10: one frame (microns), one colour a name, what is drawn lies where it should, small files."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import plots_hd, plots_hd_scores, settings, visium_hd
from helpers import visium_hd_signatures as signatures
from tests.unit import make

RNG = settings.rng(0, "plots_hd")
VIEW = plots_hd.View(RNG.integers(120, 255, (100, 120, 3)).astype(np.uint8), 2.0, x0=50.0, y0=10.0)
XY = np.stack([RNG.uniform(52, 288, 80), RNG.uniform(12, 208, 80)], axis=1)
NAMES = np.array(["Tumour", "Goblet", "T cell", ""], object)[np.arange(80) % 4]
SQUARES = XY[:, None] + np.array([[-3, -3], [3, -3], [3, 3], [-3, 3]])


def tissue_axes(figure):
    return [axis for axis in figure.axes if axis.images and any(isinstance(one, ScaleBar) for one in axis.artists)]


def test_a_view_of_a_section_is_in_microns():
    section = make.disc_section(size=600, mpp=2.0)
    whole, part = plots_hd.view(section), plots_hd.view(section, crop_um=(300, 500, 200, 100))
    assert whole.extent == pytest.approx((0, 1200, 1200, 0)) and max(whole.rgb.shape) == 420
    assert part.extent == pytest.approx((300, 500, 600, 500)) and part.rgb.shape == (50, 100, 3)
    assert part.holds([[301, 501], [299, 501], [400, 601]]).tolist() == [True, False, False]
    edge = plots_hd.view(section, crop_um=(1100, 1100, 500, 500))
    assert edge.extent == pytest.approx((1100, 1200, 1200, 1100))


def test_the_dark_disc_lies_in_the_middle_of_the_frame():
    drawn = plots_hd.outlines(plots_hd.view(make.disc_section()), {"none": np.empty((0, 4, 2))}).axes[0].images[0]
    left, right, bottom, top = drawn.get_extent()
    dark = np.argwhere(drawn.get_array()[..., 1] < 160).mean(0) / drawn.get_array().shape[:2]
    np.testing.assert_allclose([left + dark[1] * (right - left), top + dark[0] * (bottom - top)], [600, 600], atol=8)


def test_names_have_their_colours_in_every_panel():
    figure = plots_hd.categories(VIEW, XY, {"truth": NAMES, "found": NAMES[::-1]})
    for axis, names in zip(tissue_axes(figure), (NAMES, NAMES[::-1])):
        (dots,) = axis.collections
        offsets = np.asarray(dots.get_offsets())
        np.testing.assert_allclose(offsets, XY)
        expected = [to_hex(plots_hd.TYPES.get(name, plots_hd.NONE)) for name in names]
        assert [to_hex(colour) for colour in dots.get_facecolors()] == expected
    told = [text.get_text() for text in figure.legends[0].texts]
    assert told == ["Tumour", "Goblet", "T cell", "none"]
    filled = plots_hd.categories(VIEW, XY, {"truth": NAMES}, polygons=SQUARES).axes[0].collections[0]
    assert len(filled.get_paths()) == 80 and to_hex(filled.get_facecolors()[1]) == to_hex(plots_hd.TYPES["Goblet"])


def test_colours_are_different_and_kept():
    found = plots_hd.colours(["D10", "D2", "tumour", None, np.nan, ""])
    assert list(found) == ["tumour", "D2", "D10"] and len(set(found.values())) == 3
    assert len(set(plots_hd.SPARE)) == 15 and len(set(plots_hd.TYPES.values())) == 10
    assert len(plots_hd.colours([f"D{i}" for i in range(40)])) == 40


def dichromat(rgb, kind):
    """Return linear RGB as a protanope or deuteranope sees it (Machado et al. 2009, severity 1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "all": np.eye(3),
    }[kind]
    return np.clip(linear @ np.array(matrix).T, 0, 1)


@pytest.mark.parametrize("kind", ["all", "protan", "deutan"])
def test_types_differ_for_every_colour_vision(kind):
    from skimage.color import rgb2lab

    linear = dichromat(np.array([to_rgb(colour) for colour in plots_hd.TYPES.values()]), kind)
    shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    lab = rgb2lab(shown[None])[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(len(lab))
    assert apart.min() > 10, f"{kind}: {apart.min():.1f} between {np.unravel_index(apart.argmin(), apart.shape)}"


def test_outlines_outside_the_view_are_not_drawn():
    import shapely

    far = SQUARES + 500
    figure = plots_hd.outlines(VIEW, {"inside": SQUARES, "all": [*SQUARES, *far]})
    assert [axis.get_title(loc="left") for axis in tissue_axes(figure)] == ["inside: 80", "all: 80"]
    two = shapely.MultiPolygon([shapely.box(60, 20, 70, 30), shapely.box(80, 20, 81, 21)])
    assert plots_hd.rings([two])[0][:, 0].max() == 70


def test_a_domain_keeps_its_colour_when_it_splits():
    left = XY[:, 0] < 170
    two = np.where(left, "D1", "D2")
    three = np.where(left, "E9", np.where(XY[:, 1] < 60, "E1", "E5"))
    figure = plots_hd_scores.domain_range(VIEW, XY, {"2": two, "3": three}, notes={"3": "ARI 0.5"})
    first, second = (axis.collections[0].get_facecolors() for axis in tissue_axes(figure))
    np.testing.assert_array_equal(first[left], second[left])
    assert len({to_hex(one) for one in second}) == 3 and "ARI 0.5" in tissue_axes(figure)[1].get_title(loc="left")
    figure = plots_hd_scores.domain_range(VIEW, XY, {"2": two, "3": three}, chosen="3")
    first, second = (axis.collections[0].get_facecolors() for axis in tissue_axes(figure))
    np.testing.assert_array_equal(first[left], second[left])  # colours follow back as well
    usual = plots_hd.colours(["E1", "E5", "E9"])  # those of every other figure
    assert [to_hex(second[three == name][0]) for name in usual] == [one.lower() for one in usual.values()]


def test_the_elbow_marks_what_was_chosen():
    table = pd.DataFrame({"group": "D1", "name": ["x", "y", "z"], "stat": 1.0, "meanchange": [1.0, 0.9, 0.2],
                          "pval": 0.0, "padj": 0.0})  # fmt: skip
    figure = plots_hd_scores.elbow(table, signatures.assign(table))
    paint = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    assert paint == [to_hex(plots_hd_scores.BLUE)] * 2 + [to_hex(plots_hd_scores.GREY)]
    assert figure.axes[0].get_title(loc="left") == "D1: x/y" and figure.axes[0].lines[0].get_xdata()[0] == 1.5


def test_shares_lie_where_their_bins_are():
    rows, columns = np.divmod(np.arange(12), 4)
    table = pd.DataFrame({"Tumour": np.arange(12) / 11})
    table.iloc[5] = np.nan
    figure = plots_hd_scores.shares({"truth": table, "RCTD": table * 0}, rows + 7, columns, ["Tumour", "Goblet"])
    drawn = np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)
    assert drawn.shape == (3, 4) and np.isnan(drawn[1, 1]) and drawn[2, 3] == 1 and drawn[0, 0] == 0
    assert figure.axes[0].get_title(loc="left") == "Tumour" and figure.axes[1].texts[0].get_text() == "no such type"


@pytest.mark.parametrize(("other", "disputed"), [(NAMES, 0), ("Plasma", 60), ("", 0)])
def test_disputed_cells_are_drawn_apart(other, disputed):
    names = pd.DataFrame({"a": NAMES, "b": other})
    cells, pairs = visium_hd.agreement(names)
    figure = plots_hd_scores.disagreement(VIEW, XY, cells, pairs)
    agreed, split = tissue_axes(figure)[1].collections[:2]
    number = int((cells["share"] < 1).sum())
    assert (len(split.get_offsets()), len(agreed.get_offsets())) == (number, 80 - number)
    assert number == disputed


def test_every_figure_is_drawn_small_and_with_a_scale_bar():
    values = RNG.normal(size=80)
    groups = np.where(XY[:, 0] < 170, "D1", "D2")
    names = pd.DataFrame({"a": NAMES, "b": NAMES[::-1]})
    card = visium_hd.report_card([{"method": "m", "measure": "F1", "value": 0.5, "seconds": 3.0, "memory_mb": 10.0},
                                  {"method": "m", "measure": "r", "value": None}])  # fmt: skip
    dots = pd.DataFrame({"signature": ["A", "A"], "gene": "g", "group": ["D1", "D2"], "mean": [1.0, 2.0],
                         "share": [0.2, 0.9]})  # fmt: skip
    mapped = [
        plots_hd.magnitudes(VIEW, XY, {"raw": values, "smoothed": values * 0}, label="score"),
        plots_hd.magnitudes(VIEW, XY, {"raw": values}, limits=(-1, 1)),
        plots_hd.qc(VIEW, XY, np.exp(values) * 99, abs(values) * 9, np.where(values > 1, "mt", ""), pct_mito=9),
        plots_hd_scores.islands(VIEW, XY, (values > 1).astype(int), values <= 1),
        plots_hd_scores.disagreement(VIEW, XY, *visium_hd.agreement(names)),
        plots_hd.outlines(VIEW, {"ProSeg": {"nuclei": SQUARES, "cells": SQUARES}}),
    ]
    for figure in mapped:
        assert tissue_axes(figure)
    plain = [
        plots_hd_scores.matrix(pd.DataFrame([[1.0, -2.0], [np.nan, 0.1]], index=["D1", "D2"]), label="sd"),
        plots_hd_scores.dot_plot(dots), plots_hd_scores.report_card(card),
        plots_hd_scores.counts_scatter(np.exp(values) * 90, {"ProSeg": np.exp(values) * 80}),
        plots_hd_scores.bars(pd.DataFrame({"raw": [0.9]}, index=["accuracy"]), label="value", baseline=0.3),
    ]  # fmt: skip
    assert set(groups) == {"D1", "D2"}
    for figure in mapped + plain:
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=110, bbox_inches="tight")
        assert len(target.getvalue()) < 150_000
    assert "-" in [text.get_text() for text in plain[2].axes[0].texts]

"""White point, stain vectors and tissue mask against the truth of the virtual tissue, over seeds and styles."""

from types import SimpleNamespace

import numpy as np
import pytest

from helpers import grade, grade_colour, stain, tissue, traps
from helpers import section as sec
from helpers.messages import CourseError
from helpers.virtual import anatomy, cells, rendering
from tests.unit.make import counts_table

CASES = [(0, "dense"), (1, "loose"), (2, "dense"), (3, "loose"), (4, "ffpe")]
LIMITS = {row.name: row for row in grade.thresholds() if row.notebook == "01"}


def slide_of(seed, style, size_um=1500.0):
    """A virtual section on glass, with Visium spots on its tissue, and its truth."""
    ground = anatomy.grow(seed=seed, section="truth", size_um=(size_um, size_um), style=style)
    placed = cells.place(ground, seed=seed, section="truth")
    colours = rendering.draw_stain(seed=seed, batch="truth", style=style)
    slide = rendering.render(ground, placed, colours, mpp=0.69, seed=seed, section="truth")
    known = {
        "white_point": slide.measured_white_point,
        "haematoxylin": slide.measured_haematoxylin,
        "eosin": slide.measured_eosin,
    }
    return slide, SimpleNamespace(stain=known, tissue=slide.tissue_mask), ground


def section_of(slide, ground):
    """The slide as a Section, with the Visium spots that lie on tissue."""
    grid = np.arange(50.0, ground.size_um[0] - 50, 100.0)
    x, y = np.meshgrid(grid, grid)
    x = x + 50.0 * (np.arange(len(grid)) % 2)[:, None]
    points = np.stack([x, y], -1).reshape(-1, 2)
    points = points[(points < np.array(ground.size_um) - 10).all(1)]
    points = points[ground.sample("tissue", *points.T) > 0]
    return sec.build(
        image=slide.image,
        counts=counts_table(len(points)),
        xy_px=points / slide.mpp,
        mpp=slide.mpp,
        mpp_source="stated",
        platform="visium",
        section_id="truth",
        subject_id="truth",
        dataset="truth",
        source="generated",
    )


def colours_of(section):
    small, scale = sec.thumbnail(section, 1200)
    inside = tissue.mask(small, mpp=sec.mpp(section) / scale, white_point=stain.white_point(small))
    white = stain.white_point(small, tissue=inside)
    pixels = stain.sample(
        lambda *box: sec.window(section, *box), sec.shape(section), inside, blur_px=0.7 / sec.mpp(section)
    )
    return stain.fit(pixels, white_point=white), inside


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"seed{case[0]}-{case[1]}")
def case(request):
    slide, truth, ground = slide_of(*request.param)
    return section_of(slide, ground), truth


def test_colours_and_outline_are_those_of_the_truth(case):
    section, truth = case
    errors = grade_colour.colour_errors(*colours_of(section), truth)
    assert {name: LIMITS[name].allows(value) for name, value in errors.items()} == dict.fromkeys(errors, True), errors


def test_the_traps_are_caught(case):
    section, truth = case
    good, bad = sec.alignment_score(section), sec.alignment_score(traps.apply(section, "off_by_one"))
    assert LIMITS["alignment score"].allows(good) and not LIMITS["alignment score"].allows(bad)
    tinted = grade_colour.colour_errors(*colours_of(traps.apply(section, "cast")), truth)
    assert not LIMITS["white point error"].allows(tinted["white point error"])
    fit, _ = colours_of(traps.apply(section, "bgr"))
    assert fit.looks_bgr


def test_a_slide_of_glass_has_no_stain():
    slide, truth, _ = slide_of(0, "dense", 900.0)
    glass = np.broadcast_to(np.rint(truth.stain["white_point"]), slide.image.shape).astype(np.uint8)
    assert not tissue.mask(glass, mpp=slide.mpp).any()
    with pytest.raises(CourseError):
        stain.fit(glass, white_point=truth.stain["white_point"])

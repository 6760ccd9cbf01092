"""DeepSpot2Cell's patches: both rules against counting by hand, neighbours, scales, and what is refused."""

import numpy as np
import pytest
import shapely
from scipy import sparse

from helpers import pseudospots_patches as patches
from helpers.messages import CourseError


def scatter(n=1500, size=800.0, seed=0):
    stream = np.random.default_rng(seed)
    xy = stream.uniform(0, size, (n, 2))
    radius = stream.uniform(3, 9, n)
    return xy, shapely.buffer(shapely.points(xy), radius, quad_segs=6), stream.poisson(2.0, (n, 5))


def by_hand(xy, outlines, made, rule):
    """Cell by cell, patch by patch."""
    patch, inside = np.full(len(xy), -1), np.zeros(len(xy), bool)
    for number, (x, y) in enumerate(made.xy):
        square = shapely.box(x - made.side / 2, y - made.side / 2, x + made.side / 2, y + made.side / 2)
        spot = shapely.buffer(shapely.Point(x, y), 27.5, quad_segs=32)
        for cell in np.flatnonzero((np.abs(xy - [x, y]) < made.side).all(1)):
            mine = (np.abs(xy[cell] - [x, y]) <= made.side / 2).all()
            if rule == "area":
                mine = mine and outlines[cell].intersection(square).area >= 0.6 * outlines[cell].area
                within = outlines[cell].intersection(spot).area >= 0.6 * outlines[cell].area
            else:
                within = np.hypot(*(xy[cell] - [x, y])) <= 17.5
            if mine:
                patch[cell], inside[cell] = number, within
    return patch, inside


@pytest.mark.parametrize("rule", ["nucleus", "area"])
def test_both_rules_are_as_counted_by_hand(rule):
    xy, outlines, counts = scatter()
    made = patches.build(xy, um_per_unit=1.0, outlines=outlines, rule=rule, extent=(800, 800))
    patch, inside = by_hand(xy, outlines, made, rule)
    assert np.array_equal(made.patch, patch) and np.array_equal(made.inside, inside)
    assert 0 < inside.sum() < (patch >= 0).sum() < len(xy)
    sums = np.stack([counts[inside & (patch == number)].sum(0) for number in range(len(made.xy))])
    assert np.array_equal(made.sums(sparse.csr_matrix(counts)).toarray(), sums)
    assert np.array_equal(made.sums(counts), sums)
    assert np.array_equal(made.n_inside, np.bincount(patch[inside], minlength=len(made.xy)))
    index = made.index()
    for number in np.flatnonzero(made.n_inside)[:20]:
        assert set(index[number][index[number] >= 0]) == set(np.flatnonzero(inside & (patch == number)))


def test_the_grid_is_the_papers():
    xy, _, _ = scatter()
    made = patches.build(xy, um_per_unit=1.0, extent=(800, 800))
    assert made.side == pytest.approx(77.0) and len(made.xy) == 10 * 10
    assert np.allclose(made.xy[1] - made.xy[0], [77, 0]) and made.array[1].tolist() == [0, 1]
    corner, middle = made.neighbours[0], made.neighbours[11]
    assert corner.tolist() == [-1, -1, -1, -1, 1, -1, 10, 11]
    assert middle.tolist() == [0, 1, 2, 10, 12, 20, 21, 22]
    half = patches.build(xy / 0.5, um_per_unit=0.5, extent=(1600, 1600))
    assert np.array_equal(half.patch, made.patch) and np.array_equal(half.inside, made.inside)


def test_a_lone_patch_has_no_neighbours():
    made = patches.build([[40.0, 40.0]], um_per_unit=1.0, extent=(80, 80))
    assert (made.neighbours == -1).all() and made.n_inside.tolist() == [1]


def test_a_spot_without_cells_stays_and_holds_nothing():
    made = patches.build([[40.0, 40.0]], um_per_unit=1.0, extent=(160, 80))
    assert made.n_inside.tolist() == [1, 0] and made.sums(np.array([[3, 4]])).tolist() == [[3, 4], [0, 0]]
    assert made.index().tolist() == [[0], [-1]]


def test_sections_are_joined_without_becoming_neighbours():
    xy, outlines, counts = scatter(400, 320)
    one = patches.build(xy, um_per_unit=1.0, extent=(320, 320))
    both = patches.join([one, one])
    assert np.array_equal(both.sums(np.r_[counts, counts]), np.r_[one.sums(counts), one.sums(counts)])
    second = both.neighbours[len(one.xy) :]
    assert ((second == -1) | (second >= len(one.xy))).all()


def test_scales():
    counts = np.array([[1, 3], [0, 4], [5, 5], [0, 0]])
    made = patches.build([[38, 38], [40, 40], [5, 5], [120, 40.0]], um_per_unit=1.0, extent=(160, 80))
    assert made.inside.tolist() == [True, True, False, True]
    total = made.sums(counts).sum(1)
    scaled = np.expm1(patches.on_spot_scale(counts, made, total))
    assert np.allclose(scaled[:3], counts[:3] / 8 * 1e4, rtol=1e-5)  # a cell out of the spot: the same divisor
    assert np.isnan(scaled[3]).all()  # its spot has no counts
    own = np.expm1(patches.log_cp10k(sparse.csr_matrix(counts)))
    assert np.allclose(own[:3].sum(1), 1e4, rtol=1e-4) and (own[3] == 0).all()


@pytest.mark.parametrize(
    "change, word",
    [
        ({"xy": np.full((3, 2), np.nan)}, "without a position"),
        ({"xy": np.zeros((0, 2))}, "no cell"),
        ({"rule": "centre"}, "rule"),
        ({"rule": "area"}, "outlines"),
        ({"um_per_unit": 0}, "um_per_unit"),
        ({"diameter_um": 90.0}, "90 um"),
        ({"extent": (50, 50)}, "no whole patch"),
    ],
)
def test_bad_input_is_refused(change, word):
    given = {"xy": np.full((3, 2), 40.0), "um_per_unit": 1.0, "extent": (200, 200), **change}
    with pytest.raises(CourseError, match=word):
        patches.build(given.pop("xy"), **given)


def test_nothing_grows_with_cells_times_patches():
    import tracemalloc

    xy = np.random.default_rng(0).uniform(0, 7000, (100_000, 2))
    tracemalloc.start()
    made = patches.build(xy, um_per_unit=1.0, extent=(7000, 7000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(made.xy) > 8000 and peak < 60e6  # every cell against every patch would be 800 MB as bools

"""Bags of spots: neighbours on any lattice, masks, sub-spots; nothing is invented for a lone spot."""

import dataclasses

import numpy as np
import pytest

from helpers import deepspot_bags as bags
from helpers import deepspot_sub
from helpers.messages import CourseError

RNG = np.random.default_rng(0)


def hexagonal(rows, columns, pitch=100.0):
    row, column = (part.ravel() for part in np.mgrid[:rows, :columns])
    return np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]) * pitch


def square(rows, columns, pitch=100.0):
    row, column = (part.ravel() for part in np.mgrid[:rows, :columns])
    return np.column_stack([column, row]) * pitch


def brute(xy, reach):
    apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    return (apart < reach) & ~np.eye(len(xy), dtype=bool)


@pytest.mark.parametrize("lattice, inside", [(hexagonal, 6), (square, 8)])
def test_the_ring_is_what_comparing_all_pairs_finds(lattice, inside):
    xy = lattice(12, 11) + RNG.normal(0, 3, (132, 2))
    pitch = bags.spacing(xy)
    assert pitch == pytest.approx(100, rel=0.03)
    index, mask = bags.neighbours(xy, bags.Neighbourhood("ring", 8, pitch=pitch))
    assert index.dtype == np.int32 and mask.dtype == np.float32 and index.shape == (132, 8)
    expected = brute(xy, bags.RING * pitch)
    assert np.array_equal(mask.sum(1), expected.sum(1)) and mask.sum(1).max() == inside
    for i in range(132):
        assert set(index[i][mask[i] > 0]) == set(np.flatnonzero(expected[i]))
        assert (index[i][mask[i] == 0] == i).all()


def test_a_hexagon_finds_the_same_six_on_an_array_and_on_a_finer_grid():
    near = bags.Neighbourhood("hexagon", 6, pitch=100.0)
    index, mask = bags.neighbours(hexagonal(9, 9), near)
    ring, there = bags.neighbours(hexagonal(9, 9), bags.Neighbourhood("ring", 8, pitch=100.0))
    for i in range(81):
        assert set(index[i][mask[i] > 0]) == set(ring[i][there[i] > 0])
    fine = square(13, 13, 50.0)  # what a slide without spots is covered with
    index, mask = bags.neighbours(fine, near)
    middle = 6 * 13 + 6
    apart = np.hypot(*(fine[index[middle]] - fine[middle]).T)
    assert mask[middle].sum() == 6 == len(set(index[middle])) and abs(apart - 100).max() < 15


def test_the_kind_of_array_is_recognised():
    assert bags.lattice(hexagonal(8, 9) + RNG.normal(0, 2, (72, 2))).kind == "hexagon"
    assert bags.lattice(square(8, 9) + RNG.normal(0, 2, (72, 2))).facts()["k"] == 8


def test_nearest_cells_within_reach_and_never_the_cell_itself():
    xy = RNG.uniform(0, 300, (200, 2))
    index, mask = bags.neighbours(xy, bags.Neighbourhood("nearest", 44))
    assert mask.all() and (index != np.arange(200)[:, None]).all()
    apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + np.diag(np.full(200, np.inf))
    assert all(set(index[i]) == set(np.argsort(apart[i])[:44]) for i in range(200))
    _, mask = bags.neighbours(xy, bags.Neighbourhood("nearest", 44, reach=30.0))
    assert np.array_equal(mask.sum(1), np.minimum((apart <= 30).sum(1), 44))


def test_a_lone_spot_has_no_neighbours_and_sections_do_not_touch():
    near = bags.Neighbourhood("ring", 8, pitch=100.0)
    xy = np.vstack([hexagonal(4, 4), [[5000.0, 5000.0]]])
    index, mask = bags.neighbours(xy, near)
    assert mask[-1].sum() == 0 and (index[-1] == 16).all()
    both = np.vstack([hexagonal(4, 4), hexagonal(4, 4)])  # at the same place on two slides
    index, mask = bags.neighbours(both, near, sections=["C_1"] * 16 + ["C_1_2"] * 16)  # ids with underscores
    assert ((index < 16) == (np.arange(32) < 16)[:, None]).all() and mask.sum(1).max() == 6
    index, mask = bags.neighbours(np.zeros((1, 2)), near)
    assert mask.sum() == 0


def test_doubles_at_one_place_are_neighbours_of_each_other_not_of_themselves():
    xy = np.vstack([np.zeros((12, 2)), [[50.0, 0]]])
    index, mask = bags.neighbours(xy, bags.Neighbourhood("nearest", 3))
    assert (index != np.arange(13)[:, None]).all() and mask.all()


def test_the_published_rule_misses_two_of_six():
    row, column = (part.ravel() for part in np.mgrid[:9, :9])
    found = bags.published_neighbours(row, 2 * column + row % 2)  # Visium's columns step by two
    assert np.median(found) == 4
    index, mask = bags.neighbours(hexagonal(9, 9), bags.Neighbourhood("ring", 8, pitch=100.0))
    assert np.median(mask.sum(1)) == 6


@pytest.mark.parametrize("wrong", [
    {"kind": "circle"}, {"kind": "ring"}, {"kind": "hexagon", "k": 8, "pitch": 1.0}, {"kind": "nearest", "k": 0},
    {"kind": "ring", "pitch": -1.0}, {"kind": "nearest", "reach": np.nan},
])  # fmt: skip
def test_impossible_neighbourhoods_are_refused(wrong):
    with pytest.raises(CourseError):
        bags.Neighbourhood(**wrong)


def test_bad_positions_are_refused():
    near = bags.Neighbourhood("nearest", 2)
    for xy in (np.zeros((4, 3)), np.full((4, 2), np.nan)):
        with pytest.raises(CourseError):
            bags.neighbours(xy, near)
    with pytest.raises(CourseError):
        bags.neighbours(np.zeros((4, 2)), near, sections=["a"])
    with pytest.raises(CourseError):
        bags.spacing(np.zeros((9, 2)))


def test_sub_spots_are_the_squares_of_the_tile_row_by_row():
    side = deepspot_sub.sub_px(80)
    assert side == 81
    tiles = RNG.integers(0, 255, (5, side, side, 3), dtype=np.uint8)
    parts = list(deepspot_sub.sub_batches([(np.array([3, 1]), tiles[:2]), (np.array([0, 2, 4]), tiles[2:])]))
    index, cut = (np.concatenate(each) for each in zip(*parts))
    assert cut.shape == (45, 27, 27, 3)
    third = cut[list(index).index(1 * 9 + 5)]  # spot 1 is the second tile; place 5: second row, third column
    assert np.array_equal(third, tiles[1, 27:54, 54:81])
    sub = deepspot_sub.as_sub(index, cut.reshape(45, -1).astype(float))
    assert sub.shape == (5, 9, 27 * 27 * 3) and np.array_equal(sub[1, 5], third.ravel())
    with pytest.raises(CourseError):
        list(deepspot_sub.sub_batches([(np.arange(5), tiles[:, :80, :80])]))
    with pytest.raises(CourseError):  # a spot lost at the border
        deepspot_sub.as_sub(index[:-9], np.zeros((36, 2)))[:-1]
        deepspot_sub.as_sub(np.delete(index, 4), np.zeros((44, 2)))


def test_bags_keep_neighbours_of_the_spots_taken():
    xy, table = hexagonal(5, 5), RNG.normal(size=(25, 4))
    made = bags.bags(table, xy, bags.Neighbourhood("ring", 8, pitch=100.0))
    few = made.take([12, 3])
    assert len(few) == 2 and few.table.shape == (25, 4) and np.array_equal(few.index[0], made.index[12])
    assert bags.bags(table).index.shape == (25, 0)
    with pytest.raises(CourseError):  # an index outside the table
        dataclasses.replace(made, index=made.index + 20)
    with pytest.raises(CourseError):  # one embedding too few
        bags.bags(table[:-1], xy, bags.Neighbourhood("ring", 8, pitch=100.0))
    with pytest.raises(CourseError):
        bags.bags(np.full((3, 2), np.nan))

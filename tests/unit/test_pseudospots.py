"""Cells binned into spots: against counting by hand, and bad input refused."""

import numpy as np
import pytest
from scipy import sparse

from helpers import pseudospots
from helpers.messages import CourseError


def scatter(n=3000, size=1000.0, genes=7, seed=0):
    stream = np.random.default_rng(seed)
    return stream.poisson(1.5, (n, genes)), stream.uniform(0, size, (n, 2))


@pytest.mark.parametrize("hexagonal", [True, False])
def test_counts_are_the_sums_over_the_disc(hexagonal):
    counts, xy = scatter()
    spots = pseudospots.bin_cells(sparse.csr_matrix(counts), xy, hexagonal=hexagonal)
    distance = np.hypot(*(spots.xy[:, None] - xy[None]).transpose(2, 0, 1))  # every spot against every cell
    inside = distance <= 27.5
    assert np.array_equal(spots.members.toarray(), inside)
    assert np.array_equal(spots.counts.toarray(), inside.astype(int) @ counts)
    assert np.array_equal(spots.n_cells, inside.sum(1)) and spots.n_cells.min() >= 1


def test_the_array_is_visiums():
    counts, xy = scatter(20000)
    spots = pseudospots.bin_cells(counts, xy)
    from scipy.spatial import cKDTree

    near = cKDTree(spots.xy).query(spots.xy, k=2)[0][:, 1]
    assert np.allclose(near, 100.0)
    assert (spots.array.sum(1) % 2 == 0).all() and len(set(spots.names)) == len(spots.names)
    assert np.asarray(spots.members.sum(0)).max() == 1  # discs of 55 um, 100 um apart: no cell counted twice
    inner = np.pi * 27.5**2 / (100**2 * np.sqrt(0.75))
    assert spots.n_cells.sum() / len(xy) == pytest.approx(inner, rel=0.15)


def test_pixels_and_microns_give_the_same():
    counts, xy = scatter()
    a = pseudospots.bin_cells(counts, xy)
    b = pseudospots.bin_cells(counts, xy / 0.25, um_per_unit=0.25)
    assert np.array_equal(a.counts.toarray(), b.counts.toarray()) and np.allclose(a.xy, b.xy * 0.25)


def test_given_centres_shares_and_minimum():
    counts = np.eye(4, dtype=int)
    xy = np.array([[0, 0], [1, 0], [100, 0], [300, 300]], float)
    spots = pseudospots.bin_cells(counts, xy, centres=[[0, 0], [100, 0], [900, 900]], diameter_um=10)
    assert spots.n_cells.tolist() == [2, 1] and spots.counts.toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    shares = spots.shares(["a", "b", None, "a"], categories=["b", "a", "c"])
    assert shares.iloc[0].tolist() == [0.5, 0.5, 0.0] and shares.iloc[1].isna().all()
    assert len(pseudospots.bin_cells(counts, xy, centres=[[0, 0], [100, 0]], diameter_um=10, min_cells=2).n_cells) == 1
    rim = pseudospots.bin_cells([[1]], [[27.5, 0.0]], centres=[[0, 0]])
    assert rim.n_cells.tolist() == [1]


def test_one_cell_is_enough():
    spots = pseudospots.bin_cells([[3, 0]], [[5.0, 5.0]])
    assert spots.counts.toarray().tolist() == [[3, 0]]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"xy": np.zeros((3, 2))}, "5 cells"),
        ({"xy": np.full((5, 2), np.nan)}, "without a position"),
        ({"counts": np.zeros((0, 2)), "xy": np.zeros((0, 2))}, "no cell"),
        ({"um_per_unit": 0}, "um_per_unit"),
        ({"diameter_um": -55.0}, "diameter_um"),
        ({"min_cells": 100}, "no spot"),
    ],
)
def test_bad_input_is_refused(change, word):
    given = {"counts": np.ones((5, 2), int), "xy": np.arange(10.0).reshape(5, 2), **change}
    with pytest.raises(CourseError, match=word):
        pseudospots.bin_cells(given.pop("counts"), given.pop("xy"), **given)
    spots = pseudospots.bin_cells([[1]], [[0.0, 0.0]])
    with pytest.raises(CourseError, match="labels"):
        spots.shares(["a", "b"])


def test_no_square_of_the_cells_is_held():
    import tracemalloc

    counts = sparse.random(50_000, 50, density=0.1, format="csr", random_state=0, dtype=np.float32)
    xy = np.random.default_rng(0).uniform(0, 3500, (50_000, 2))
    tracemalloc.start()
    spots = pseudospots.bin_cells(counts, xy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(spots.n_cells) > 1200 and peak < 100e6  # every spot against every cell would be 500 MB

"""The leaky array of notebook 07: the plain tissue where nothing leaks, and neighbours' expression where much does."""

import anndata
import numpy as np
import pytest

from helpers import deepspot_bags, grade_deepspot, runner_data
from helpers import section as sec
from helpers.messages import CourseError


@pytest.fixture(scope="module")
def one():
    data = runner_data.Data({"DATA": "virtual", "SEED": 0})
    section = data.load("P3_a")
    table = sec.counts(section).copy()
    return anndata.AnnData(table.X, obs=table.obs, var=table.var), data.truth("P3_a"), section


def test_without_a_leak_the_counts_are_those_of_the_tissue(one):
    table, known, _ = one
    made, genes = grade_deepspot.spilled(table, {"P3_a": known}, seed=0, spill=0.0, draws=4)
    assert (made.X != table.X).nnz == 0
    assert np.abs(genes["P3_a"]["r_ceil_log"] - known.genes["r_ceil_log"]).median() < 0.01


def test_a_leak_makes_a_spot_resemble_its_neighbours(one):
    table, known, section = one
    xy = sec.xy(section) * sec.mpp(section)
    index, mask = deepspot_bags.neighbours(xy, deepspot_bags.lattice(xy))

    def alike(counts):
        share = np.log1p(1e4 * counts.X.toarray() / np.asarray(counts.X.sum(1)))
        around = (share[index] * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]
        a, b = share - share.mean(0), around - around.mean(0)
        return np.nanmedian((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))

    leaky, genes = grade_deepspot.spilled(table, {"P3_a": known}, seed=0, spill=0.5, draws=1)
    assert alike(leaky) > alike(table) + 0.1
    assert genes["P3_a"]["r_ceil_log"].median() < known.genes["r_ceil_log"].median()
    assert np.allclose(leaky.X.sum() / table.X.sum(), 1, atol=0.05)
    with pytest.raises(CourseError):
        grade_deepspot.spilled(table[:-1], {"P3_a": known}, seed=0)

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from helpers import counts
from helpers.messages import CourseError
from tests.unit.make import counts_table


def test_joined_sections_keep_their_spots_apart_and_all_genes():
    first, second = counts_table(4, 5), counts_table(3, 6, seed=1)
    second = second[:, 2:].copy()
    first.var["gene_id"], second.var["gene_id"] = "id-" + first.var_names, "id-" + second.var_names
    both = counts.join({"A": first, "B": second})
    assert list(both.obs_names) == [*(f"spot{i}_A" for i in range(4)), *(f"spot{i}_B" for i in range(3))]
    assert set(both.var_names) == {f"GENE{i}" for i in range(6)} and both.var["gene_id"]["GENE5"] == "id-GENE5"
    assert both["spot0_A", "GENE5"].X.sum() == 0 and both["spot2_B", "GENE0"].X.sum() == 0
    assert np.array_equal(both["spot1_B", second.var_names].X.toarray(), second["spot1"].X.toarray())
    assert both.X.dtype.kind == "i"


def test_filter_keeps_what_the_rule_says():
    table = counts_table(200, 40)
    dense = table.X.toarray()
    dense[:, 0] = 0
    dense[:2, 0] = 1  # exactly 1 % of the spots
    dense[:, 1] = 0
    dense[0, 1] = 9  # a single spot
    dense[7] = 0  # an empty spot
    table.X = sparse.csr_matrix(dense)
    kept = counts.filter_counts(table)
    assert "GENE0" in kept.var_names and "GENE1" not in kept.var_names
    assert "spot7" not in kept.obs_names and kept.n_obs == 199
    assert kept.uns["filtered"]["genes_before"] == 40 and table.n_vars == 40


def test_filter_agrees_with_scanpy():
    table = counts_table(300, 60, seed=3)
    table.X = sparse.csr_matrix(table.X.toarray() * (np.random.default_rng(0).random((300, 60)) < 0.02))
    reference = table.copy()
    sc.pp.filter_genes(reference, min_cells=3)
    kept = counts.filter_counts(table)
    assert list(kept.var_names) == list(reference.var_names)


def test_nothing_left_is_refused():
    table = counts_table(5, 5)
    table.X = sparse.csr_matrix((5, 5), dtype=np.int32)
    with pytest.raises(CourseError):
        counts.filter_counts(table)


def test_normalise_is_log1p_of_counts_per_ten_thousand():
    table = counts_table(20)
    out = counts.normalise(table)
    raw = table.X.toarray()
    assert np.allclose(out.X.toarray(), np.log1p(raw / raw.sum(1, keepdims=True) * 1e4), atol=1e-5)
    assert np.array_equal(out.layers["counts"].toarray(), raw) and table.X.dtype == np.int32


def test_most_variable_are_the_most_variable():
    table = counts_table(50, 10)
    dense = np.ones((50, 10))
    dense[:, 7] = np.arange(50)
    dense[:, 2] = np.arange(50) / 2
    for matrix in (sparse.csr_matrix(dense), dense):
        table.X = matrix
        assert counts.most_variable(table, 2) == ["GENE7", "GENE2"]
        assert len(counts.most_variable(table, 99)) == 10
    with pytest.raises(CourseError):
        counts.most_variable(table, 0)


def test_pairing_keeps_tile_order_and_common_spots():
    table = counts_table(6)
    index, paired = counts.pair(["spot4", "elsewhere", "spot1"], table)
    assert index.tolist() == [0, 2] and list(paired.obs_names) == ["spot4", "spot1"]
    with pytest.raises(CourseError, match="no tile name"):
        counts.pair(["a"], table)
    with pytest.raises(CourseError, match="repeated"):
        counts.pair(["spot1", "spot1"], table)

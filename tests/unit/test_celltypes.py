"""Names of cells: against profiles with a platform's own gene scales, neighbours, the four classes, and bad input."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from helpers import celltypes, celltypes_profiles, settings
from helpers.messages import CourseError

TYPES = ("t_cell", "fibroblast", "cancer_epithelial", "endothelial")
CLASS = dict(zip(TYPES, celltypes.CLASSES))
N_GENES = 60


def made(seed=0, n=1500, depth=60.0, platform_sd=0.0, shares=(0.3, 0.2, 0.45, 0.05)):
    """Return cells, their types and true profiles (types x genes); each type has 15 genes of its own."""
    rng = settings.rng(seed, "cells")
    profile = np.full((4, N_GENES), 0.3)
    for k in range(4):
        profile[k, 15 * k : 15 * k + 15] = rng.uniform(1.0, 4.0, 15)
    profile /= profile.sum(1, keepdims=True)
    kind = rng.choice(4, n, p=shares)
    scale = np.exp(rng.normal(0, platform_sd, N_GENES))
    rate = profile[kind] * scale
    rate *= depth * rng.lognormal(0, 0.4, (n, 1)) / rate.sum(1, keepdims=True)
    genes = [f"G{i}" for i in range(N_GENES)]
    table = AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.int32)))
    table.var_names, table.obs_names = genes, [f"c{i}" for i in range(n)]
    return table, np.array(TYPES)[kind], pd.DataFrame(profile, index=TYPES, columns=genes)


def classes_of(types):
    return np.array([CLASS[name] for name in types], object)


@pytest.mark.parametrize("method", ["likelihood", "correlation"])
def test_cells_get_the_name_of_their_profile(method):
    table, types, profile = made()
    named = celltypes.annotate(table, profile, method=method)
    assert (named["type"] == types).mean() > 0.97 and list(named.index) == list(table.obs_names)
    assert (named["class"] == classes_of(types)).mean() > 0.97


def test_the_scale_of_each_gene_is_learned():
    table, types, profile = made(platform_sd=1.5, depth=25.0)
    counts = sparse.csr_matrix(table.X).astype(float)
    once = celltypes_profiles.likelihood(counts, profile.to_numpy(), rounds=1).argmax(1)
    fitted = celltypes_profiles.likelihood(counts, profile.to_numpy()).argmax(1)
    right = [(np.array(TYPES)[guess] == types).mean() for guess in (once, fitted)]
    assert right[1] > right[0] + 0.03 and right[1] > 0.85


def test_the_likelihood_by_hand():
    profile = np.array([[0.8, 0.2], [0.3, 0.7]])
    counts = sparse.csr_matrix(np.array([[3.0, 1.0]]))
    seen = np.array([3.0, 1.0])
    mean = (seen + 0.5) / (seen + 0.5).sum()
    share = (1 - celltypes_profiles.STRAY) * profile + celltypes_profiles.STRAY * mean
    expected = (share ** [3, 1]).prod(1)
    chance = celltypes_profiles.likelihood(counts, profile, rounds=1)
    np.testing.assert_allclose(chance[0], expected / expected.sum(), rtol=1e-6)


def test_cells_of_noise_get_no_better_than_the_commonest_name():
    table, types, profile = made()
    shuffled = settings.rng(0, "null").permutation(types)
    named = celltypes.annotate(table, profile)
    scores = celltypes.quality(named["class"], classes_of(shuffled))
    assert scores["accuracy"] < scores["majority"]


def test_markers_do_without_a_reference_whatever_the_case():
    table, types, _ = made(depth=150.0)
    markers = {kind: [f"g{i}" for i in range(15 * k, 15 * k + 15)] for k, kind in enumerate(TYPES)}
    named = celltypes.annotate(table, method="markers", markers=markers)
    assert (named["type"] == types).mean() > 0.95
    text = celltypes.annotate(table, method="markers", markers={k: " ".join(v) for k, v in markers.items()})
    assert (text["type"] == named["type"]).all()


def test_a_cell_without_markers_is_not_named():
    table, types, _ = made(depth=150.0)
    two = {kind: [f"G{i}" for i in range(15 * k, 15 * k + 15)] for k, kind in enumerate(TYPES[:2])}
    named = celltypes.annotate(table, method="markers", markers=two)
    assert (named["type"][~np.isin(types, TYPES[:2])] == "").mean() > 0.9
    assert (named["type"] == types)[np.isin(types, TYPES[:2])].mean() > 0.9


def test_profiles_average_over_cells_not_molecules():
    counts = np.array([[1, 1], [0, 100], [3, 1], [1, 0]])
    table = AnnData(sparse.csr_matrix(counts))
    found = celltypes.profiles(table, ["a", "a", "b", "b"], min_cells=1)
    np.testing.assert_allclose(found.to_numpy(), [[0.25, 0.75], [0.875, 0.125]])
    with pytest.raises(CourseError, match="at least two"):
        celltypes.profiles(table, ["a", "a", "b", "b"], min_cells=3)
    with pytest.raises(CourseError, match="one each"):
        celltypes.profiles(table, ["a"])


def test_cells_with_few_counts_stay_unnamed_and_are_flagged():
    table, _, profile = made(n=300)
    table.X = sparse.csr_matrix(table.X.multiply((np.arange(300) >= 20).astype(np.int32)[:, None]))
    named = celltypes.annotate(table, profile)
    assert not named["labelled"][:20].any() and (named["class"][:20] == "").all()
    assert named["labelled"][20:].mean() > 0.9
    assert (named["total"][:20] == 0).all()


def line(names):
    return pd.DataFrame({"class": np.array(names, object), "total": [100 * (name != "") for name in names]})


def test_neighbours_decide_and_the_nearest_breaks_a_tie():
    around = [[10, 0], [-10, 0], [0, 10], [0, -10]]
    xy = np.array([[0, 0], *around], float)
    filled = celltypes.fill(line(["", "immune", "immune", "stromal", "immune"]), xy)
    assert filled["class"][0] == "immune" and filled["filled"].tolist() == [True] + [False] * 4
    xy[3] = [0, 4]
    tie = celltypes.fill(line(["", "immune", "immune", "stromal", "stromal"]), xy)
    assert tie["class"][0] == "stromal"


def test_far_and_unnamed_neighbours_are_not_asked():
    xy = np.array([[0, 0], [200, 0], [0, 200], [-200, -200]], float)
    filled = celltypes.fill(line(["", "immune", "immune", "stromal"]), xy)
    assert filled["class"][0] == "" and not filled["filled"].any()
    assert celltypes.fill(line(["", "immune", "immune", "stromal"]), xy, max_edge_um=500)["class"][0] == "immune"
    chain = celltypes.fill(line(["", "", "immune"]), np.array([[0, 0], [40, 0], [80, 0]], float))  # no triangle
    assert chain["class"].tolist() == ["", "immune", "immune"]


def test_a_cell_with_counts_that_fits_no_type_is_left_alone():
    given = line(["", "immune", "immune", "immune"])
    given.loc[0, "total"] = 80
    filled = celltypes.fill(given, np.array([[0, 0], [10, 0], [-10, 0], [0, 10]], float))
    assert filled["class"][0] == "" and not filled["filled"].any()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_cells_do_not_crash(n):
    names = ["", "immune"][:n]
    assert len(celltypes.fill(line(names), np.zeros((n, 2)) + np.arange(n)[:, None])) == n


def test_types_of_the_atlas_and_of_the_virtual_tissue_have_classes():
    from helpers.virtual.cells import TYPES as VIRTUAL
    from helpers.virtual.xenium_cells import CLASS_OF

    assert list(celltypes.merge(VIRTUAL)) == [CLASS_OF[name] for name in VIRTUAL]
    wu = "T-cells B-cells Myeloid Plasmablasts CAFs Cancer_Epithelial Normal_Epithelial Endothelial PVL".split()
    expected = ["immune"] * 4 + ["stromal"] + ["cancer_epithelial"] * 2 + ["endothelial"] * 2
    assert list(celltypes.merge(wu)) == list(celltypes.merge([n.replace("_", " ") for n in wu])) == expected
    assert list(celltypes.merge(["", None])) == ["", ""]
    with pytest.raises(CourseError, match="fibroblast"):
        celltypes.merge(["fibroblsat"])


def test_quality_by_hand():
    truth = ["immune"] * 6 + ["stromal"] * 3 + ["endothelial"]
    predicted = ["immune"] * 4 + ["stromal", ""] + ["stromal"] * 2 + ["immune"] + ["endothelial"]
    found = celltypes.quality(predicted, truth)
    assert found["accuracy"] == pytest.approx(0.7) and found["accuracy_named"] == pytest.approx(7 / 9)
    assert found["majority"] == pytest.approx(0.6) and found["named"] == pytest.approx(0.9)
    assert found["balanced"] == pytest.approx((4 / 6 + 2 / 3 + 1) / 3)
    row = found["by_class"].loc["immune"]
    assert row["precision"] == pytest.approx(0.8) and row["recall"] == pytest.approx(4 / 6) and row["cells"] == 6
    assert found["confusion"].loc["immune", "unnamed"] == 1 and found["confusion"].to_numpy().sum() == 10


def test_quality_agrees_with_scikit_learn():
    from sklearn import metrics

    rng = settings.rng(0, "quality")
    truth, predicted = rng.choice(celltypes.CLASSES, (2, 500))
    found = celltypes.quality(predicted, truth)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found["balanced"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_bad_input_is_refused_in_words():
    table, _, profile = made(n=50)
    with pytest.raises(CourseError, match="genes that cells and reference share"):
        celltypes.annotate(table, profile.rename(columns=str.lower))
    with pytest.raises(CourseError, match="reference"):
        celltypes.annotate(table)
    with pytest.raises(CourseError, match="method"):
        celltypes.annotate(table, profile, method="seurat")
    normalised = table.copy()
    normalised.X = sparse.csr_matrix(normalised.X) * 0.5
    with pytest.raises(CourseError, match="raw counts"):
        celltypes.annotate(normalised, profile)
    with pytest.raises(CourseError, match="markers of 0"):
        celltypes.annotate(table, method="markers")
    with pytest.raises(CourseError, match="merge the types first"):
        celltypes.quality(["t_cell"], ["immune"])
    with pytest.raises(CourseError, match="one each"):
        celltypes.fill(line(["", "immune"]), np.zeros((3, 2)))

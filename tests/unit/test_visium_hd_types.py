"""Cell types from a reference: shares of bins, names of cells, the likelihood table, CSV references, and bad input."""

import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import grade_hd_types as grade
from helpers import readers_scrna, settings
from helpers import visium_hd_celltypist as celltypist
from helpers import visium_hd_deconvolution as deconvolution
from helpers import visium_hd_rctd as rctd
from helpers.messages import CourseError

TYPES = ("Tumour", "Fibroblast", "T cell", "Macrophage")
GENES = [f"G{i}" for i in range(80)]
SIDE = 14


def _profiles(rng):
    share = np.tile(rng.gamma(2.0, 1.0, len(GENES)), (len(TYPES), 1))
    for at in range(len(TYPES)):
        share[:, at * 8 : at * 8 + 8] = 0.1
        share[at, at * 8 : at * 8 + 8] = 6.0
    return share / share.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def world():
    """196 bins of two types each, a reference of another platform, and the truth."""
    rng = settings.rng(0, "types")
    known = _profiles(rng)
    mix = rng.dirichlet(np.full(len(TYPES), 0.3), SIDE * SIDE)
    counts = np.stack([rng.multinomial(150, one @ known) for one in mix])
    counts[:3] = 0
    counts[:3, 0] = 4
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    bins = anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.int32)), var=pd.DataFrame(index=GENES),
        obs=pd.DataFrame({"in_tissue": 1}, index=[f"b{i}" for i in range(len(counts))]),
    )  # fmt: skip
    bins.obsm["spatial"] = np.c_[column, row] * 8.0
    platform = rng.lognormal(0, 0.4, len(GENES))
    other = known * platform
    other /= other.sum(1, keepdims=True)
    number = (60, 60, 60, 60, 12)
    cells = np.concatenate([rng.multinomial(800, other[t % 4], n) for t, n in enumerate(number)])
    names = np.repeat([*TYPES, "Rare"], number)
    reference = anndata.AnnData(
        sparse.csr_matrix(cells.astype(np.int32)), var=pd.DataFrame(index=GENES),
        obs=pd.DataFrame({"cell_type": pd.Categorical(names)}, index=[f"r{i}" for i in range(len(names))]),
    )  # fmt: skip
    true = pd.DataFrame(mix, index=bins.obs_names, columns=list(TYPES))
    return bins, reference, true


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def found(world, tables):
    bins, reference, _ = world
    half = np.arange(bins.n_obs) < 100
    return rctd.run(bins, reference, doublet=half, folder=tables), half


# ---------------------------------------------------------------- shares
METHODS = (deconvolution.flashdeconv, deconvolution.least_squares, deconvolution.marker_means)


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.__name__)
def test_shares_are_shares_and_follow_the_truth(world, method):
    bins, reference, true = world
    before = bins.X.copy()
    shares = method(bins, reference)
    assert list(shares.index) == list(bins.obs_names) and sorted(shares.columns) == sorted([*TYPES, "Rare"])
    assert shares.iloc[:3].isna().all(axis=None), "bins with 4 molecules are not asked"
    asked = shares.dropna()
    assert len(asked) > 180 and np.allclose(asked.sum(axis=1), 1) and (asked >= 0).all(axis=None)
    scores = grade.by_type(shares, true)
    assert scores.loc[list(TYPES), "correlation"].drop("Tumour").min() > 0.6, scores
    assert (bins.X != before).nnz == 0 and "flashdeconv" not in bins.obsm


def test_a_reference_with_shuffled_names_finds_nothing(world):
    bins, reference, true = world
    reference = reference[reference.obs["cell_type"] != "Rare"].copy()
    right = grade.summary(deconvolution.flashdeconv(bins, reference), true)
    nothing = grade.summary(deconvolution.flashdeconv(bins, grade.shuffled(reference)), true)
    assert right["correlation"] > 0.85 and abs(nothing["correlation"]) < 0.4
    assert right["dominant"] > right["majority"] + 0.3 and nothing["dominant"] < right["dominant"] - 0.3


def test_profiles_weigh_cells_alike_and_markers_are_the_marked(world):
    _, reference, _ = world
    profiles = deconvolution.profiles(reference, GENES)
    assert np.allclose(profiles.sum(axis=1), 1)
    double = reference.copy()
    double.X[:30] *= 7  # deeper cells of one type
    assert np.allclose(deconvolution.profiles(double, GENES), profiles)
    markers = deconvolution.markers(reference[reference.obs["cell_type"] != "Rare"], GENES, n=6)
    assert set(markers["T cell"]) <= set(GENES[16:24])


def test_what_cannot_be_asked_is_refused(world):
    bins, reference, _ = world
    for wrong, said in (
        ({"cell_type": "kind"}, "no column 'kind'"), ({"min_umi": 10_000}, "no bin of 196"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=said):
            deconvolution.least_squares(bins, reference, **wrong)
    log = bins.copy()
    log.X = log.X.astype(float).log1p()
    mouse = reference.copy()
    mouse.var_names = [f"mm{name}" for name in GENES]
    unnamed = reference.copy()
    unnamed.obs["cell_type"] = unnamed.obs["cell_type"].where(np.arange(unnamed.n_obs) > 4)
    for a, b, said in ((log, reference, "whole numbers"), (bins, mouse, "0 genes"), (bins, unnamed, "5 cells without")):
        with pytest.raises(CourseError, match=said):
            deconvolution.flashdeconv(a, b)
    assert deconvolution.rare(reference) == {"Rare": 12}
    outside = bins.copy()
    outside.obs["in_tissue"] = (np.arange(bins.n_obs) > 50).astype(int)
    assert deconvolution.least_squares(outside, reference).iloc[:51].isna().all(axis=None)


# ---------------------------------------------------------------- RCTD
def test_the_likelihood_table_has_the_packages_own_numbers():
    from rctd._likelihood import _get_q_single

    made = rctd.build(30, [10, 63, 100, 200])
    rates = made["X_vals"]
    for sigma in (10, 200):
        assert made[f"Q_{sigma}"].shape == (33, 439)
        for count in (0, 1, 32):
            right = np.log(np.maximum(_get_q_single(rates, count, sigma / 100), 1e-300))
            assert np.abs(made[f"Q_{sigma}"][count] - right).max() < 5e-5


def test_a_table_is_kept_mended_and_must_reach_the_largest_count(tmp_path, monkeypatch):
    monkeypatch.delenv(rctd.VARIABLE, raising=False)
    few = [84, 100, 116]
    path, k_val = rctd.table(17, folder=tmp_path, sigmas=few)
    assert k_val == 30 and [one.name for one in tmp_path.iterdir()] == [path.name], "no temporary file stays"
    stamp = path.stat().st_mtime_ns
    assert rctd.table(17, folder=tmp_path, sigmas=few)[0].stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:1000])
    rctd.table(17, folder=tmp_path, sigmas=few)
    with np.load(path) as held:
        assert set(held.files) == {"X_vals", "Q_84", "Q_100", "Q_116"}
    with pytest.raises(CourseError, match="a count of 31 in a bin, a likelihood table up to 30"):
        rctd.table(31, k_val=30, folder=tmp_path)
    monkeypatch.setenv(rctd.VARIABLE, str(path))
    assert rctd.table(17) == (path, 30)
    with pytest.raises(CourseError, match="a count of 99"):
        rctd.table(99)
    (tmp_path / "other.npz").write_bytes(b"no")
    monkeypatch.setenv(rctd.VARIABLE, str(tmp_path / "other.npz"))
    with pytest.raises(CourseError, match="no likelihood table"):
        rctd.table(5)


def test_rctd_finds_the_shares_and_says_what_it_dropped(world, found, capsys):
    bins, reference, true = world
    result, half = found
    assert result.dropped == {"Rare": 12} and list(result.shares.columns) == sorted(TYPES)
    assert result.k_val == 30 or result.k_val == 60
    assert result.shares.iloc[:3].isna().all(axis=None) and np.allclose(result.shares.dropna().sum(axis=1), 1)
    scores = grade.summary(result.shares, true)
    base = grade.summary(deconvolution.least_squares(bins, reference), true)
    assert scores["correlation"] > 0.95 and scores["rmse"] < 0.6 * base["rmse"], (scores, base)
    assert result.pairs.iloc[100:].isna().all(axis=None) and (result.bins["kind"][~half] == "").all()
    assert set(result.bins["kind"][3:100]) <= {"reject", "singlet", "doublet_certain", "doublet_uncertain"}
    calls = grade.doublets(result.bins, true)
    assert calls["first"] > 0.9 and calls["purity_singlet"] > calls["purity_doublet"] + 0.1, calls
    assert capsys.readouterr().out == ""


def test_rctd_corrects_for_the_platform_of_each_gene(world, tables):
    bins, reference, true = world
    skewed = reference[reference.obs["cell_type"] != "Rare"].copy()
    factor = np.where(np.arange(len(GENES)) % 2, 6, 1)
    skewed.X = sparse.csr_matrix(skewed.X.multiply(factor)).astype(np.int32)
    ours = grade.summary(rctd.run(bins, skewed, folder=tables, sigma=0.3).shares, true)
    theirs = grade.summary(deconvolution.least_squares(bins, skewed), true)
    assert ours["rmse"] < 0.6 * theirs["rmse"], (ours, theirs)


def test_what_rctd_cannot_do_is_refused_and_nothing_stays_changed(world, tables, monkeypatch):
    import os

    import torch

    bins, reference, _ = world
    monkeypatch.delenv(rctd.VARIABLE, raising=False)
    threads = torch.get_num_threads()
    for wrong, said in (
        ({"doublet": np.ones(5, bool)}, "shape \\(5,\\)"), ({"min_cells": 100}, "0 types with 100 cells"),
        ({"k_val": 5}, "likelihood table up to 5"), ({"total": "n_umi"}, "no column 'n_umi'"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=said):
            rctd.run(bins, reference, folder=tables, sigma=0.3, **wrong)
    assert rctd.VARIABLE not in os.environ and torch.get_num_threads() == threads


def test_totals_over_all_genes_stand_in_for_genes_not_listed(world, tables):
    bins, reference, true = world
    part = GENES[:60]
    few, known = bins[:, part].copy(), reference[:, part].copy()
    few.obs["n_umi"], known.obs["n_umi"] = (np.asarray(one.X.sum(1)).ravel() for one in (bins, reference))
    with_rest = rctd.run(few, known, folder=tables, sigma=0.3, total="n_umi", min_umi=20)
    assert grade.summary(with_rest.shares, true)["correlation"] > 0.9
    assert not [gene for gene in with_rest.genes if "other" in gene]
    few.obs["n_umi"] = 1.0
    with pytest.raises(CourseError, match="sum to more than 'n_umi'"):
        rctd.run(few, known, folder=tables, sigma=0.3, total="n_umi")


# ---------------------------------------------------------------- CellTypist
@pytest.fixture(scope="module")
def cells(world):
    rng = settings.rng(1, "cells")
    known = _profiles(settings.rng(0, "types"))
    kinds = np.repeat(np.arange(4), 40)
    counts = np.stack([rng.multinomial(120, known[t]) for t in kinds])
    counts[0] = 0
    table = anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.int32)), var=pd.DataFrame(index=GENES),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(len(kinds))]),
    )  # fmt: skip
    return table, np.array(TYPES, object)[kinds]


@pytest.fixture(scope="module")
def model(world):
    known = world[1][world[1].obs["cell_type"] != "Rare"]
    return celltypist.train(known, GENES)


def test_cells_are_named_and_a_mixed_domain_is_flattened(cells, model):
    table, kinds = cells
    over = np.array(["mixed", "tumour", None], object)[np.where(kinds == "Tumour", 1, 0)]
    over[-5:] = None
    named = celltypist.annotate(table, model, over=over)
    assert named["type"].iloc[0] == "" and np.isnan(named["confidence"].iloc[0])
    assert (named["type"] == kinds).mean() > 0.93 and named["confidence"].dropna().between(0, 1).all()
    assert (named["majority"].iloc[-5:] == "").all(), "no domain, no vote"
    assert named["majority"].iloc[0] == "Tumour" and named["majority"][over == "mixed"].nunique() == 1
    assert (named["majority"] == kinds).mean() < 0.6, "the vote names three types as one"


def test_importing_celltypist_leaves_logging_and_folders_alone(model):
    import logging
    import os

    assert celltypist.FOLDER not in os.environ and logging.getLogger().level != logging.INFO


def test_a_model_survives_as_plain_arrays(cells, model, tmp_path):
    table, _ = cells
    again = celltypist.load(celltypist.save(model, tmp_path / "model.npz"))
    pd.testing.assert_frame_equal(celltypist.annotate(table, again), celltypist.annotate(table, model))
    assert list(again.extract_top_markers("T cell", 3)) == list(model.extract_top_markers("T cell", 3))
    with pytest.raises(CourseError, match="can run any code"):
        celltypist.load(tmp_path / "model.pkl")


class _Evil:
    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def test_a_pickled_model_is_read_and_a_wicked_one_is_not_run(cells, model, tmp_path, monkeypatch):
    table, _ = cells
    monkeypatch.chdir(tmp_path)
    model.write(str(tmp_path / "Some_Model.pkl"))
    again = celltypist.read_pickled("Some_Model", folder=tmp_path)
    pd.testing.assert_frame_equal(celltypist.annotate(table, again), celltypist.annotate(table, model))
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"Model": _Evil(), "Scaler_": 1}))
    with pytest.raises(CourseError, match="it names (_?io|builtins).open"):
        celltypist.read_pickled("bad", folder=tmp_path)
    assert not (tmp_path / "ran.txt").exists()
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "Some_Model.pkl").read_bytes()[:500])
    with pytest.raises(CourseError, match="no plain CellTypist model"):
        celltypist.read_pickled(tmp_path / "cut.pkl")
    with pytest.raises(CourseError, match="one of: Some_Model, bad, cut"):
        celltypist.read_pickled("Immune_All_Low", folder=tmp_path)


def test_cells_that_cannot_be_named_are_refused(cells, model):
    table, _ = cells
    strange = table.copy()
    strange.var_names = [f"x{i}" for i in range(len(GENES))]
    for one, options, said in (
        (strange, {}, "0 genes that cells and model share"), (table, {"over": ["a"]}, "1 clusters for 160 cells"),
        (table, {"min_counts": 9999}, "no cell with 9999"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=said):
            celltypist.annotate(one, model, **options)
    few = celltypist.annotate(table[:20], model, over=["a"] * 20)
    assert (few["majority"] == "").all(), "CellTypist does not vote among so few"


# ---------------------------------------------------------------- grades
def test_receivers_and_doubt_say_where_a_missing_type_went():
    from types import SimpleNamespace

    true = pd.DataFrame({"A": [0.1, 0.9, 0.5, 0.2], "Muscle": [0.9, 0.1, 0.5, 0.8]}, index=list("wxyz"))
    shares = pd.DataFrame({"A": [0.2, 0.9, 0.5, 0.3], "B": [0.8, 0.1, 0.5, 0.7]}, index=list("wxyz"))
    got = grade.receivers(shares, true, "Muscle", least=0.6)
    assert got.index[0] == "B" and got.attrs["bins"] == 2 and got.loc["B", "extra"] == pytest.approx(0.75)
    scores = grade.by_type(shares, true)
    assert np.isnan(scores.loc["Muscle", "correlation"]) and np.isnan(scores.loc["B", "mean_true"])
    assert grade.summary(shares, true)["dominant"] == 0.5
    truth = SimpleNamespace(cells=pd.DataFrame(
        {"x_um": [0, 10, 20, 30.0], "y_um": 0.0, "type": ["A", "A", "Muscle", "B"]}), bin_shares=true)  # fmt: skip
    matched = grade.match([[0.5, 0], [10, 1], [20, 0], [300, 0], [11, 0]], truth)
    assert list(matched) == [0, 1, 2, -1, -1]
    labels = pd.DataFrame({"type": ["A", "B", "A", "A", "A"], "confidence": [0.9, 0.8, 0.3, 0.9, 0.9]})
    scored = grade.names(labels, matched, truth, lacking=("Muscle",))
    assert scored["accuracy"] == 0.5 and scored["accuracy_all"] == pytest.approx(1 / 3) and scored["doubt"] == 1.0
    bins = anndata.AnnData(np.ones((2, 1)), obs=pd.DataFrame(index=["z", "w"]))
    assert list(grade.true_shares(truth, bins)["A"]) == [0.2, 0.1]
    with pytest.raises(CourseError, match="1 of 1 bins the truth does not know"):
        grade.true_shares(truth, anndata.AnnData(np.ones((1, 1)), obs=pd.DataFrame(index=["v"])))


# ---------------------------------------------------------------- CSV references
def _write(folder, **changes):
    here = folder / "Reference"
    here.mkdir(parents=True, exist_ok=True)
    files = {
        "counts.csv": '"","c1","c2"\n"Acta2",0,3\n"Actb",4,2\n', "cell_types.csv": '"","x"\n"c2","B"\n"c1","A"\n',
        "nUMI.csv": '"","x"\n"c1",10\n"c2",20\n',
    } | changes  # fmt: skip
    for name, text in files.items():
        (here / name).write_text(text)
    return folder


def test_a_csv_reference_is_read_by_name_not_by_order(tmp_path):
    table = readers_scrna.read_reference(_write(tmp_path))
    assert list(table.obs["cell_type"]) == ["A", "B"] and list(table.obs["n_umi"]) == [10, 20]
    assert table.X.dtype == np.int32 and (table.X.toarray() == [[0, 4], [3, 2]]).all()
    (tmp_path / "Reference" / "coords.csv").write_text('"","x","y"\n"c2",5,6\n"c1",3,4\n')
    assert (readers_scrna.read_spots(tmp_path).obsm["spatial"] == [[3, 4], [5, 6]]).all()


@pytest.mark.parametrize(("changes", "said"), [
    ({"cell_types.csv": '"","x"\n"c1","A"\n'}, "1 of 2 cells without a type"),
    ({"counts.csv": '"","c1","c2"\n"Acta2",0,-3\n'}, "negative"),
    ({"counts.csv": '"","c1","c2"\n"Acta2",0,a\n'}, "no whole numbers"),
    ({"nUMI.csv": '"","x"\n"c1",3\n"c2",20\n'}, "1 totals that are missing or below"),
    ({"cell_types.csv": '"","x"\n"c1","A"\n"c1","B"\n'}, "c1 twice"),
])  # fmt: skip
def test_a_csv_reference_that_does_not_fit_is_refused(tmp_path, changes, said):
    with pytest.raises(CourseError, match=said):
        readers_scrna.read_reference(_write(tmp_path, **changes))
    with pytest.raises(CourseError, match="0 folders with coords.csv"):
        readers_scrna.read_spots(tmp_path)

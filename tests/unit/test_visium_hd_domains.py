"""Quality control and domains of Visium HD cells: units, filters, islands, Novae's guards, and simpler methods."""

import random
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from helpers import grade_hd_domains, settings
from helpers import visium_hd_domains as domains
from helpers import visium_hd_qc as qc
from helpers.messages import CourseError

N_GENES = 60


def made(*, seed=0, side=16, step=12.0, depth=60.0, island=False, dealt=False):
    """Return a square of cells, a stripe down its middle, the left rim rich in MT counts, and what is true of each."""
    rng = settings.rng(seed, "cells")
    x, y = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(side) * step, np.arange(side) * step))
    xy = np.stack([x, y], axis=1) + rng.uniform(-2, 2, (side * side, 2))
    if island:
        xy = np.concatenate([xy, xy[:12] / 3 + 600])
    stripe = np.abs(xy[:, 0] - side * step / 2) < side * step / 4
    rate = np.full((len(xy), N_GENES), 1.0)
    rate[stripe, :20], rate[~stripe, 20:40] = 6.0, 6.0
    rim = (xy[:, 0] < step * 1.5) & (xy[:, 0] < 400)
    rate[np.ix_(rim, range(50, 60))] = 20.0
    rate *= depth / rate.sum(1, keepdims=True)
    counts = rng.poisson(rate).astype(np.int32)
    if dealt:
        counts = counts[rng.permutation(len(counts))]
    cells = AnnData(sparse.csr_matrix(counts))
    cells.var_names = [f"G{i}" for i in range(50)] + [f"MT-{i}" for i in range(10)]
    cells.obs_names = [f"c{i}" for i in range(len(xy))]
    cells.obsm["spatial"], cells.uns["spatial_unit"] = xy, "um"
    known = {"type": "t", "domain": np.where(stripe, "stripe", "sides"), "x_um": xy[:, 0], "y_um": xy[:, 1]}
    return cells, pd.DataFrame({**known, "high_mt": rim, "island": xy[:, 0] > 500}, index=cells.obs_names)


class Truth:
    """As much of a section's truth as the examiner asks for."""

    def __init__(self, cells):
        self.cells = cells


# ---------------------------------------------------------------- quality
def test_mitochondrial_share_is_a_percentage_and_the_filter_finds_the_rim():
    cells, known = made()
    measured = qc.measure(cells)
    counts = cells.X.toarray()
    share = 100 * counts[:, 50:].sum(1) / counts.sum(1)
    assert np.allclose(measured.obs["pct_counts_mt"], share, atol=1e-3) and "mt" not in cells.var
    kept, why = qc.keep(measured, pct_mito=30)
    assert (why == "").sum() == kept.n_obs == (share < 30).sum() and set(why) == {"", "mitochondrial"}
    assert set(kept.obs_names) == set(cells.obs_names[~known["high_mt"]])
    everyone, _ = qc.keep(measured, pct_mito=None)
    assert everyone.n_obs == cells.n_obs


def test_cells_and_genes_with_few_counts_go_and_are_told_apart():
    cells, _ = made()
    thin = cells.X.toarray()
    thin[0], thin[1, :], thin[:, 49] = 0, np.eye(N_GENES, dtype=int)[55] * 5, 0
    cells.X = sparse.csr_matrix(thin)
    kept, why = qc.keep(qc.measure(cells), pct_mito=30, min_cell_counts=10, min_gene_counts=3)
    assert why["c0"] == "few counts" and why["c1"] == "both" and why.attrs["rare_genes"] == 1
    assert "G49" not in kept.var_names and not {"c0", "c1"} & set(kept.obs_names)


def test_a_share_instead_of_a_percentage_no_mt_genes_and_normalised_counts_are_refused():
    cells, _ = made()
    with pytest.raises(CourseError, match="per cent"):
        qc.keep(qc.measure(cells), pct_mito=0.3)
    with pytest.raises(CourseError, match="none left"):
        qc.keep(qc.measure(cells), min_cell_counts=10**6)
    with pytest.raises(CourseError, match="no gene MT-"):
        qc.measure(cells[:, :50].copy())
    cells.X = cells.X * 0.5
    with pytest.raises(CourseError, match="whole numbers"):
        qc.measure(cells)


def test_islands_are_pieces_that_nothing_connects():
    cells, known = made(island=True)
    told = qc.islands(cells, radius_um=30, min_cells=20)
    assert (told["island"] == known["island"]).all() and told["piece"].nunique() == 2
    assert set(told["cells"]) == {256, 12} and not qc.islands(cells, radius_um=2000, min_cells=20)["island"].any()
    assert qc.islands(cells, radius_um=30).attrs["min_cells"] == qc.LEAST_ISLAND
    with pytest.raises(CourseError, match="raise radius_um"):
        qc.islands(cells, radius_um=3, min_cells=20)


def test_the_limit_of_an_island_follows_the_number_of_cells():
    cells, _ = made(side=30)
    assert qc.islands(cells, radius_um=30).attrs["min_cells"] == round(0.03 * 900)


@pytest.mark.parametrize("unit", ["px", None])
def test_pixels_are_refused_wherever_a_distance_is_meant(unit):
    cells, known = made()
    if unit is None:
        del cells.uns["spatial_unit"]
    else:
        cells.uns["spatial_unit"] = unit
    for call in (
        lambda: qc.islands(cells, radius_um=30), lambda: domains.prepare(cells, radius_um=30),
        lambda: grade_hd_domains.match(cells, Truth(known)),
    ):  # fmt: skip
        with pytest.raises(CourseError, match="microns"):
            call()


def test_neighbours_are_a_pruned_triangulation():
    rng = settings.rng(0, "points")
    xy = rng.uniform(0, 100, (80, 2))
    graph = qc.neighbours(xy, radius_um=20)
    assert (graph != graph.T).nnz == 0 and graph.diagonal().sum() == 0 and set(graph.data) == {1.0}
    a, b = graph.nonzero()
    assert np.hypot(*(xy[a] - xy[b]).T).max() <= 20
    line = np.stack([np.arange(5.0), np.zeros(5)], axis=1)
    assert qc.neighbours(line, radius_um=1.1).sum() == 8


# ---------------------------------------------------------------- Novae
def test_prepare_keeps_counts_and_normalises_even_small_ones():
    cells, _ = made(depth=15.0)
    assert cells.X.max() < 10  # Novae would take these for logarithms
    ready = domains.prepare(cells, radius_um=30)
    assert (ready.layers["counts"] != cells.X).nnz == 0
    total = np.expm1(ready.X.toarray()).sum(1)
    assert np.allclose(total, np.median(cells.X.toarray().sum(1)), rtol=1e-3)
    assert list(cells.layers) == [] and list(cells.obsp) == []


def test_the_neighbours_are_those_novae_would_find():
    ready = domains.prepare(made()[0], radius_um=30)
    ours = ready.obsp["spatial_connectivities"].toarray()
    domains.link(ready)
    assert np.array_equal(ready.obsp["spatial_connectivities"].toarray(), ours) and ours.any()


def test_prepare_refuses_empty_cells_and_a_radius_that_connects_nobody():
    cells, _ = made()
    with pytest.raises(CourseError, match="without a neighbour"):
        domains.prepare(cells, radius_um=3)
    empty = cells.X.toarray()
    empty[3] = 0
    cells.X = sparse.csr_matrix(empty)
    with pytest.raises(CourseError, match="1 cells without a count"):
        domains.prepare(cells, radius_um=30)


def test_linking_anew_throws_novaes_old_graphs_away():
    ready = domains.prepare(made()[0], radius_um=30)
    ready.obsp["spatial_distances_local"] = ready.obsp["spatial_connectivities"].copy()
    before = ready.obsp["spatial_connectivities"].nnz
    domains.link(ready, radius_um=14)
    assert "spatial_distances_local" not in ready.obsp and ready.obsp["spatial_connectivities"].nnz < before


@pytest.mark.parametrize(("n", "asked", "epochs"), [(5000, None, 2), (200, None, 50), (10**6, None, 1), (5000, 3, 3)])
def test_training_follows_the_cells_and_never_divides_by_zero(n, asked, epochs):
    found = domains.training(n, epochs=asked)
    assert found["max_epochs"] == epochs and found["use_scheduler"] == (epochs > 2)


def test_zero_epochs_are_refused():
    with pytest.raises(CourseError, match="at least 1"):
        domains.training(100, epochs=0)


def test_a_pretrained_model_is_looked_for_on_this_machine_only(tmp_path, monkeypatch):
    import socket

    def online(*_, **__):
        raise AssertionError("asked a hub")

    monkeypatch.setattr(socket.socket, "connect", online)
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    assert domains.pretrained("no-such-model-0") is None
    place = tmp_path / "novae-human-0"
    place.mkdir()
    (place / "config.json").write_text("{}")
    assert domains.pretrained() is None or domains.pretrained() != place  # no weights
    (place / "model.safetensors").write_bytes(b"")
    assert domains.pretrained() == place == domains.pretrained(str(place))
    with pytest.raises(CourseError, match="config.json"):
        domains.pretrained(str(tmp_path / "gone"))


@pytest.fixture(scope="module")
def novae_run():
    """Return two trainings with the same seed on the same 256 cells, and the generators' states around them."""
    cells, known = made(seed=1)
    out = []
    for _ in range(2):
        import torch

        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()
        ready = domains.prepare(cells, radius_um=30)
        model = domains.fitted(ready, seed=0, epochs=2)
        after = random.getstate(), np.random.get_state()[1], torch.get_rng_state(), torch.get_num_threads()
        out.append((ready, model, before, after))
    return out, known


def test_novae_is_the_same_twice_and_leaves_the_generators_alone(novae_run):
    (one, two), _ = novae_run
    assert np.array_equal(one[0].obsm["novae_latent"], two[0].obsm["novae_latent"])
    for before, after in zip(one[2], one[3]):
        assert np.all(np.asarray(before == after))


def test_novae_finds_the_stripe_and_its_levels_are_named_by_size(novae_run):
    (run, _), known = novae_run
    ready, model = run[:2]
    labels = domains.levels(model, ready, ks=(2, 3, 4))
    true = grade_hd_domains.match(ready, Truth(known))
    scored = grade_hd_domains.scores(labels, true)
    assert scored["ari"].max() > 0.5 and (scored["domains"] == scored.index).all()
    for k in labels:
        sizes = labels[k].value_counts()
        assert list(sizes.index) == [f"D{i}" for i in range(1, k + 1)] and sizes.is_monotonic_decreasing
    assert not [name for name in ready.obs if name == "_level"]
    linkage, names = domains.tree(ready.obsm["novae_latent"], labels[4])
    assert linkage.shape == (3, 4) and names == ["D1", "D2", "D3", "D4"]


def test_a_saved_model_is_used_as_it_is(novae_run, tmp_path):
    (run, _), _ = novae_run
    run[1].save_pretrained(str(tmp_path / "own"))
    ready = domains.prepare(made(seed=1)[0], radius_um=30)
    model = domains.fitted(ready, seed=0, folder=domains.pretrained(str(tmp_path / "own")))
    assert np.allclose(ready.obsm["novae_latent"], run[0].obsm["novae_latent"], atol=1e-5)
    assert domains.levels(model, ready, ks=(3,))[3].nunique() == 3


def test_levels_that_repeat_are_left_out_and_said(capsys):
    class Model:
        def assign_domains(self, made, *, level, key_added):
            made.obs[key_added] = np.where(np.arange(made.n_obs) < 100, "D9", "D4")
            return key_added

    labels = domains.levels(Model(), made()[0], ks=(2, 3))
    assert list(labels) == [2] and "level 3" in capsys.readouterr().err and (labels[2] == "D1").sum() == 156


def test_too_few_cells_are_refused():
    with pytest.raises(CourseError, match="a larger crop"):
        domains.fitted(made(side=8)[0], seed=0)


# ---------------------------------------------------------------- simpler methods, and how many
@pytest.fixture(scope="module")
def ready():
    """Return 400 cells, prepared, and what is true of them."""
    cells, known = made(side=20)
    return domains.prepare(cells, radius_um=30), known


def test_every_method_is_compared_and_place_alone_is_the_chance_level(ready, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # importing it would import TensorFlow
    cells, known = ready
    labels = domains.compare(cells, 2, radius_um=30, seed=0)
    true = grade_hd_domains.match(cells, Truth(known))
    ari = grade_hd_domains.scores(labels, true)["ari"]
    assert ari["smoothed PCA, k-means"] > 0.7 and ari["place only"] < 0.1
    assert domains.agreement(labels).loc["place only", "place only"] == 1
    again = domains.compare(cells, 2, radius_um=30, seed=0)
    assert labels.equals(again)


def test_domains_are_named_after_those_they_share_cells_with():
    like = np.repeat(["D1", "D2", "D3"], [6, 3, 1]).astype(object)
    labels = np.repeat(["D3", "D1", "D4", "D2"], [5, 3, 1, 1]).astype(object)
    labels[0] = np.nan
    found = domains.named_alike(labels, like)
    assert found[0] != found[0] and list(found[1:]) == ["D1"] * 4 + ["D2"] * 1 + ["D2"] * 2 + ["D4"] + ["D3"]


def test_leiden_finds_the_number_asked_for(ready):
    labels = domains.leiden(ready[0], 3, spatial=True, seed=0)
    assert len(set(labels)) in (2, 3, 4) and "_leiden" not in ready[0].obs


def test_dealt_cells_have_no_domains():
    cells, known = made(dealt=True, side=30)
    latent = domains.smoothed(domains.prepare(cells, radius_um=20), radius_um=20)
    labels = domains.kmeans(latent, (2, 3, 4), seed=0, index=cells.obs_names)
    true = grade_hd_domains.match(cells, Truth(known))
    assert grade_hd_domains.scores(labels, true)["ari"].abs().max() < 0.15


def test_smoothing_is_a_mean_over_the_neighbourhood(ready):
    cells, _ = ready
    whole = domains.smoothed(cells, radius_um=10_000)
    assert np.allclose(whole, domains.components(cells).mean(0), atol=1e-4)


def test_the_silhouette_picks_the_number():
    rng = settings.rng(0, "blobs")
    latent = np.concatenate([rng.normal(at, 0.3, (60, 2)) for at in ((0, 0), (5, 0), (0, 5))])
    labels = domains.kmeans(latent, (2, 3, 4, 5), seed=0)
    quality = domains.silhouettes(latent, labels, seed=0)
    assert domains.choose(quality) == 3 and quality.max() > 0.8
    labels["none"] = "D1"
    assert domains.silhouettes(latent, labels, seed=0)["none"] == -1


def test_dealing_the_cells_tells_tissue_from_none():
    told = [domains.dealt(domains.prepare(made(side=30, dealt=one)[0], radius_um=20), radius_um=20, seed=0, ks=(2, 3))
            for one in (False, True)]  # fmt: skip
    assert told[0]["tissue"] > 1.5 * told[0]["dealt"] and abs(told[1]["tissue"] - told[1]["dealt"]) < 0.05


def test_a_damaged_rim_becomes_a_domain_unless_it_is_filtered(ready):
    cells, known = ready
    rim = known["high_mt"].to_numpy()
    with_it = domains.kmeans(domains.smoothed(cells, radius_um=20), (3,), seed=0)[3]
    table = domains.flagged(with_it, rim)
    worst = table.loc[(table["share"] * table["holds"]).idxmax()]
    assert worst["share"] > 0.6 and worst["holds"] > 0.8
    assert grade_hd_domains.mito_domain(with_it, rim) == pytest.approx(worst["share"] * worst["holds"])
    kept, _ = qc.keep(qc.measure(made(side=20)[0]), pct_mito=30)
    assert not known.loc[kept.obs_names, "high_mt"].any()


# ---------------------------------------------------------------- the examiner
def test_cells_are_matched_to_the_nearest_true_cell_or_to_none():
    cells, known = made()
    shifted = cells.copy()
    shifted.obsm["spatial"] = shifted.obsm["spatial"] + [0.5, 0]
    shifted.obsm["spatial"][0] = [-50, -50]
    true = grade_hd_domains.match(shifted, Truth(known))
    assert not true["matched"].iloc[0] and true["domain"].iloc[0] == "" and true["matched"].sum() == cells.n_obs - 1
    assert (true["domain"].iloc[1:] == known["domain"].iloc[1:]).all()
    shifted.obsm["spatial"] = shifted.obsm["spatial"] * 4
    with pytest.raises(CourseError, match="at least half"):
        grade_hd_domains.match(shifted, Truth(known))


def test_the_examiners_numbers():
    _, known = made()
    true = known.assign(matched=True)
    labels = pd.DataFrame({"right": known["domain"], "one": "D1"}, index=known.index)
    found = grade_hd_domains.scores(labels, true)
    assert found.loc["right", "ari"] == 1 and found.loc["one", "ari"] == 0 and found.loc["one", "domains"] == 1
    assert np.allclose(grade_hd_domains.confusion(labels["right"], true).to_numpy(), np.eye(2))
    assert grade_hd_domains.found_flags([True, True, False], [True, False, False]) == {"precision": 0.5, "recall": 1.0}
    with pytest.raises(CourseError, match="different cells"):
        grade_hd_domains.scores(labels.iloc[1:], true)

"""Notebook 10, signatures: the YAML and its faults, markers, scores, elbow, report card, measures and exports."""

import json
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import grade_hd_signatures, settings, visium_hd
from helpers import visium_hd_config as config
from helpers import visium_hd_markers as markers
from helpers import visium_hd_signatures as signatures
from helpers.messages import CourseError

OURS = settings.ROOT / "notebooks" / "10_visium_hd.yaml"
TYPES = ("A", "B", "C")
SIGNATURES = {"A": ["a0", "a1", "a2"], "B": ["b0", "b1"], "C": ["c0", "c1", "c2"]}


# ---------------------------------------------------------------- configuration
def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "signatures:\n  A: {genes: [a, b], source: me}\n"


def test_the_file_beside_the_notebook_is_right():
    read = config.read(OURS)
    assert len(read.signatures) == 10 and read.samples == () and all(one.source for one in read.signatures)
    assert read.markers["Goblet"] == ("FCGBP", "MUC2", "CLCA1")
    assert read.parameters == config.Parameters(), "the defaults of the file and of the class are the same"
    with pytest.raises(AttributeError):
        read.parameters.pct_mito = 3


def test_all_faults_come_at_once_with_their_lines(tmp_path):
    text = (
        "params: {radius: 50}\n"  # 1
        "samples:\n"
        "  - {id: a b, reference: nowhere.h5ad, image: x.tif}\n"  # 3
        "parameters:\n"
        "  pct_mito: 0.1\n"  # 5
        "  radius_um: '40'\n"
        "  domains: 99\n"
        "signatures:\n"
        "  A: {genes: [a], source: me}\n"  # 9
        "  B: {genes: [NO, b], source: me}\n"
        "  B: {genes: [c, d], source: ''}\n"  # 11
        "  a: {genes: [c, c]}\n"
    )
    with pytest.raises(CourseError) as caught:
        config.read(written(tmp_path, text))
    told = str(caught.value)
    for expected in (
        "line 1, params: unknown; expected 'parameters'?", "line 3, samples.1.id: 'a b'",
        "line 3, samples.1.reference: no file nowhere.h5ad", "line 3, samples.1.image: no file x.tif",
        "line 5, parameters.pct_mito: 0.1", "per cent, not a share: 10?", "line 6, parameters.radius_um: '40'",
        "line 7, parameters.domains: 99", "line 9, signatures.A.genes: a;",
        "line 11, signatures.B: this name a second time", "line 11, signatures.B.source: ''",
        "line 12, signatures.a: the same name as 'A'", "line 12, signatures.a: no 'source'",
        "line 12, signatures.a.genes: c, c",
    ):  # fmt: skip
        assert expected in told, expected
    assert str(tmp_path) in told and told.index("line 3") < told.index("line 12")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "line 1"), ("\ta: 1", "never tabs"), ("a: &x 1\nb: *x", "an alias"),
        ("a: !!python/object/apply:os.system ['touch hacked']", "no valid YAML"), ("", "nothing"), ("- 1", "[1]"),
        (GOOD + "samples: x", "a list"), (GOOD + "parameters: {domain_range: [8, 3]}", "[least, most]"),
        (GOOD + "parameters: {novae_epochs: -1}", "from 0"), (GOOD + "parameters: {domains: true}", "True"),
        (GOOD + "parameters: {domains: 12}", "within domain_range"), ("signatures: {A: [a, b]}", "names and values"),
        ("signatures:\n  A: {genes: [a, 3], source: me}\n", "the gene 3"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError) as caught:
        config.read(written(tmp_path, text))
    assert told in str(caught.value) and not (tmp_path / "hacked").exists()


def test_samples_are_found_from_the_files_folder(tmp_path):
    (tmp_path / "cells.h5ad").write_bytes(b"x")
    (tmp_path / "he.tif").write_bytes(b"x")
    sample = "samples:\n  - {id: S1, reference: cells.h5ad, image: he.tif, crop_px: [0, 0, 10, 20]}\n"
    read = config.read(written(tmp_path, GOOD + sample))
    (one,) = read.samples
    assert one.reference == (tmp_path / "cells.h5ad").resolve() and one.crop_px == (0.0, 0.0, 10.0, 20.0)
    assert read.sample("S1") is one and one.cell_type == "cell_type" and read.sample("S2") is None
    assert read.options("S1") == {"crop": one.crop_px, "image": one.image} and read.options("H1") == {}
    bare = config.read(written(tmp_path, GOOD + "samples:\n  - {id: S1, cell_type: kind}\n"))
    assert bare.samples[0].cell_type == "kind" and bare.samples[0].reference is None
    assert bare.samples[0].image is None and bare.options("S1") == {}
    twice = GOOD + sample + sample.removeprefix("samples:\n")
    with pytest.raises(CourseError, match="'S1' a second time"):
        config.read(written(tmp_path, twice))
    with pytest.raises(CourseError, match="no such file"):
        config.read(tmp_path / "other.yaml")


# ---------------------------------------------------------------- markers
def reference(n=40, seed=0):
    rng = settings.rng(seed, "reference")
    genes = [*sum(SIGNATURES.values(), []), *(f"h{i}" for i in range(20))]
    rows, names = [], []
    for kind in TYPES:
        mean = np.array([6.0 if gene in SIGNATURES[kind] else 0.05 if gene[0] != "h" else 2.0 for gene in genes])
        rows.append(rng.poisson(mean, (n, len(genes))))
        names += [kind] * n
    table = anndata.AnnData(sparse.csr_matrix(np.vstack(rows).astype(np.int32)))
    table.obs_names, table.var_names = [f"r{i}" for i in range(len(names))], genes
    table.obs["cell_type"] = pd.Categorical(names)
    return table


def test_absent_markers_are_named_and_thin_signatures_left_out(capsys):
    kept, table = markers.present({"A": ["a0", "a1", "nix"], "B": ["b0", "nox"]}, ["a0", "a1", "b0"])
    assert kept == {"A": ["a0", "a1"]} and table.loc["B", "used"] == np.False_
    told = capsys.readouterr().err
    assert "absent nix" in told and "signature B: absent nox; left out" in told
    with pytest.raises(CourseError, match="another species"):
        markers.present({"A": ["a0", "a1"]}, ["A0", "A1"])


def test_both_choosers_find_the_markers_of_each_type(capsys):
    table = reference()
    before = table.X.copy()
    table.obs["cell_type"] = table.obs["cell_type"].cat.add_categories(["rare"])
    table.obs.iloc[0, 0] = "rare"
    found = {"scanpy": markers.ranked(table, n=3), "scmags": markers.specific(table, n=3, candidates=4, cells=15)}
    assert "rare" in capsys.readouterr().err and (table.X != before).nnz == 0
    for chosen in found.values():
        for kind, genes in SIGNATURES.items():
            top = list(chosen[chosen["type"] == kind].sort_values("rank")["gene"])[: len(genes)]
            assert set(top) == set(genes), (kind, top)
    both = markers.overlap({**SIGNATURES, "D": ["a0", "h1"]}, **found)
    assert both.loc["A", "scanpy"] == 3 and both.loc["A", "all"] == "a0, a1, a2" and np.isnan(both.loc["D", "scmags"])
    table.X = np.log1p(table.X)
    with pytest.raises(CourseError, match="raw counts"):
        markers.ranked(table)
    with pytest.raises(CourseError, match="no column"):
        markers.ranked(reference(), label="kind")


# ---------------------------------------------------------------- scores
def tissue(seed=0, n=900, dealt=False):
    """Return cells, their types and domains: left A, right B with C among them."""
    rng = settings.rng(seed, "tissue")
    xy = rng.uniform(0, 300, (n, 2))
    domain = np.where(xy[:, 0] < 150, "left", "right").astype(object)
    mixed = rng.random(n)
    types = np.where(domain == "left", np.where(mixed < 0.8, "A", "C"), np.where(mixed < 0.7, "B", "C")).astype(object)
    shown = rng.permutation(types) if dealt else types
    genes = [*sum(SIGNATURES.values(), []), *(f"h{i}" for i in range(20))]
    mean = np.array([[3.0 if g in SIGNATURES[k] else 0.05 if g[0] != "h" else 2.0 for g in genes] for k in TYPES])
    counts = rng.poisson(mean[[TYPES.index(k) for k in shown]])
    cells = anndata.AnnData(sparse.csr_matrix(counts.astype(np.int32)))
    cells.obs_names, cells.var_names = [f"c{i}" for i in range(n)], genes
    cells.obsm["spatial"], cells.uns["spatial_unit"] = xy, "um"
    return cells, shown, domain


def test_raw_scores_by_hand_and_the_input_stays_as_it_was():
    cells, types, _ = tissue(n=200)
    found = signatures.scores(cells, SIGNATURES, step="raw")
    dense = np.asarray(cells.X.todense(), float)
    log = np.log1p(1e4 * dense / dense.sum(1, keepdims=True))[:, 3:5]
    weight = log.std(0) / log.mean(0)
    np.testing.assert_allclose(found["B"], log @ weight / weight.sum(), rtol=1e-4)
    assert list(cells.obs.columns) == [] and "gene_contributions" not in cells.uns and cells.X.dtype == np.int32
    assert list(found.columns) == list(SIGNATURES) and found.index.equals(cells.obs_names)


def test_smoothing_forgets_the_cell_itself():
    cells, *_ = tissue(n=200)
    before = signatures.scores(cells, SIGNATURES)["A"]
    changed = cells.copy()
    dense = changed.X.toarray()
    dense[7, :3] = 200
    changed.X = sparse.csr_matrix(dense)
    raw = [signatures.scores(one, SIGNATURES, step="raw")["A"].iloc[7] for one in (cells, changed)]
    after = signatures.scores(changed, SIGNATURES)["A"]
    assert raw[1] > raw[0] + 1 and abs(after.iloc[7] - before.iloc[7]) < 0.1


def test_smoothing_and_correction_cost_single_cells_and_domains_survive():
    cells, types, domain = tissue()
    right = {step: grade_hd_signatures.accuracy(signatures.scores(cells, SIGNATURES, step=step), types)
             for step in (*signatures.STEPS, *signatures.BASELINES)}  # fmt: skip
    assert right["raw"]["accuracy"] > 0.95 and right["mean_z"]["accuracy"] > 0.95
    assert right["score_genes"]["accuracy"] > 0.9
    assert right["raw"]["accuracy"] > right["smoothed"]["accuracy"] + 0.1 > right["corrected"]["accuracy"] + 0.2
    for step in ("raw", "smoothed"):
        ranking = signatures.rank(signatures.scores(cells, SIGNATURES, step=step), domain)
        assert list(signatures.assign(ranking)["label"]) == ["A", "B"], step
        assert grade_hd_signatures.first_right(ranking, types, domain)["cells"] == 1


def test_where_there_is_nothing_smoothed_p_values_find_something():
    named = {step: 0 for step in ("raw", "smoothed")}
    for seed in range(6):
        cells, _, domain = tissue(seed, dealt=True)
        for step in named:
            ranking = signatures.rank(signatures.scores(cells, SIGNATURES, step=step), domain)
            named[step] += grade_hd_signatures.invented(signatures.assign(ranking))
            if step == "raw":
                strict = signatures.assign(ranking, least=signatures.LEAST_RISE)
                assert grade_hd_signatures.invented(strict) == 0
    assert named["raw"] <= 2 < 4 <= named["smoothed"]


def test_scores_refuse_what_they_cannot_use():
    cells, *_ = tissue(n=60)
    for bad, told in (({"A": ["a0"]}, "1 gene"), ({"A": ["a0", "nix"]}, "nix absent"), ({}, "0 signatures")):
        with pytest.raises(CourseError, match=told):
            signatures.scores(cells, bad)
    with pytest.raises(CourseError, match="step"):
        signatures.scores(cells, SIGNATURES, step="sharp")
    with pytest.raises(CourseError, match="6 neighbours"):
        signatures.scores(cells[:5], SIGNATURES)
    log = cells.copy()
    log.X = np.log1p(log.X)
    with pytest.raises(CourseError, match="raw counts"):
        signatures.scores(log, SIGNATURES)


def test_sections_are_smoothed_apart():
    cells, *_ = tissue(n=120)
    batch = np.repeat(["one", "two"], 60)
    alone = signatures.scores(cells[:60].copy(), SIGNATURES, step="raw")
    both = signatures.scores(cells, SIGNATURES, batch=batch)
    assert both.shape == (120, 3) and np.isfinite(both.to_numpy()).all() and len(alone) == 60
    for name in ("one", "two"):
        assert abs(both[batch == name].to_numpy().mean()) < 0.2  # Enrichmap standardises within each


# ---------------------------------------------------------------- ranking, elbow, best
def ranking(**groups):
    rows = [
        {"group": group, "name": name, "stat": 1.0, "meanchange": change, "pval": p, "padj": p}
        for group, found in groups.items() for name, change, p in found
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_elbow_by_hand():
    table = ranking(
        D1=[("x", 0.2, 0), ("y", 1.0, 0), ("z", 0.9, 0)],  # not sorted: gap after y and z
        D2=[("x", 0.5, 0)], D3=[("x", 0.5, 0.2), ("y", -1, 0)], D4=[("x", 0.5, 0), ("y", 0.5, 0)],
        D5=[("x", 0.50, 0), ("y", 0.45, 0)], D6=[("x", 0.1, 0), ("y", 0.05, 0)],
    )  # fmt: skip
    table.loc[len(table)] = [np.nan, "x", 1.0, 1.0, 0.0, 0.0]
    table = table.sample(frac=1, random_state=0).astype({"group": "category", "name": "category"})
    found = signatures.assign(table)
    labels = {"D1": "y/z", "D2": "x", "D3": "Unknown", "D4": "x/y", "D5": "x", "D6": "x"}
    assert found["label"].to_dict() == labels
    assert found.loc["D1", "gap"] == pytest.approx(0.7) and found.loc[["D2", "D3", "D4"], "gap"].isna().all()
    assert signatures.assign(table, to_zero=True).loc["D5", "label"] == "x/y"
    assert signatures.assign(table, least=0.3).loc["D6", "label"] == "Unknown"


def test_ranking_drops_cells_without_domain_and_sorts():
    cells, _, domain = tissue(n=300)
    some = domain.copy()
    some[:30], some[30:40], some[40:45] = None, np.nan, ""
    scores = signatures.scores(cells, SIGNATURES, step="raw")
    found = signatures.rank(scores, pd.Categorical(some))
    assert list(dict.fromkeys(found["group"])) == ["left", "right"] and found["group"].dtype == object
    for _, part in found.groupby("group"):
        assert part["meanchange"].is_monotonic_decreasing
    known = signatures.rank(scores[45:], domain[45:])
    pd.testing.assert_frame_equal(found, known)
    with pytest.raises(CourseError, match="1 domain"):
        signatures.rank(scores, ["one"] * 300)
    with pytest.raises(CourseError, match="domains"):
        signatures.rank(scores, domain[1:])
    many = signatures.rank(scores[:60], [f"D{i % 12}" for i in range(60)])["group"]
    assert list(dict.fromkeys(many))[:3] == ["D0", "D1", "D2"]


def test_a_cell_without_markers_gets_no_name():
    table = pd.DataFrame({"A": [0.0, 2.0, np.nan], "B": [0.0, 1.0, np.nan]}, index=["x", "y", "z"])
    assert list(signatures.best(table)) == ["", "A", ""] and table.iloc[:2].idxmax(axis=1)["x"] == "A"


def test_dots_by_hand():
    cells, _, domain = tissue(n=50)
    found = signatures.dots(cells, SIGNATURES, domain).set_index(["group", "gene"])
    inside = cells.X.toarray()[domain == "left"][:, cells.var_names.get_loc("a1")]
    assert found.loc[("left", "a1"), "share"] == pytest.approx((inside > 0).mean())


def test_auroc_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    cells, types, domain = tissue(n=200)
    scores = signatures.scores(cells, SIGNATURES).round(1)
    found = grade_hd_signatures.auroc(scores, types)
    for name in SIGNATURES:
        assert found.loc[name, "auroc"] == pytest.approx(roc_auc_score(types == name, scores[name]))
    perfect = pd.DataFrame({name: (types == name).astype(float) for name in TYPES}, index=cells.obs_names)
    right = grade_hd_signatures.first_right(signatures.rank(perfect, domain), types, domain)
    assert right["domains"] == 1 and right["correlation"] == pytest.approx(1)


# ---------------------------------------------------------------- door
def test_a_step_is_measured(tmp_path):
    costs = {}
    with visium_hd.measured(costs, "big"):
        block = np.ones(12_000_000)
        time.sleep(0.1)
        del block
    with visium_hd.measured() as small:
        pass
    assert 80 < costs["big"].memory_mb < 400 and costs["big"].seconds >= 0.1 and small.memory_mb < 60
    before = costs["big"].seconds
    with pytest.raises(ZeroDivisionError), visium_hd.measured(costs, "big"):
        1 / 0
    assert costs["big"].seconds > before and costs["big"].memory_mb > 80


def test_the_memory_of_another_program_counts():
    import subprocess

    code = "x = bytearray(150_000_000); import time; time.sleep(0.8)"
    with visium_hd.measured() as cost:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert cost.memory_mb > 120


def test_the_report_card():
    costs = {"Novae": visium_hd.Cost(12.0, 300.0)}
    rows = [{"method": "Novae", "needs": "cells", "measure": "ARI", "value": 0.7, "baseline": 0.0},
            {"method": "RCTD", "measure": "r", "value": None, "seconds": 3}]  # fmt: skip
    card = visium_hd.report_card(rows, costs)
    assert tuple(card.columns) == visium_hd.COLUMNS and card.loc[0, "seconds"] == 12 and np.isnan(card.loc[1, "value"])
    for bad in ([], [{"method": "x"}], rows + rows[:1], [{**rows[0], "score": 1}], [{**rows[0], "value": "high"}]):
        with pytest.raises(CourseError):
            visium_hd.report_card(bad)


def test_agreement_by_hand():
    names = pd.DataFrame({"A": ["x", "x", "", None], "B": ["x", "y", "y", ""], "C": ["y", "z", "y", ""]})
    cells, pairs = visium_hd.agreement(names)
    assert list(cells["majority"]) == ["x", "x", "y", ""] and list(cells["named"]) == [3, 3, 2, 0]
    np.testing.assert_allclose(cells["share"], [2 / 3, 1 / 3, 1, np.nan])
    assert pairs.loc["A", "B"] == 0.5 and pairs.loc["B", "C"] == pytest.approx(1 / 3) and pairs.loc["A", "C"] == 0


def test_cells_find_their_bins():
    found = visium_hd.at([[3.9, 4], [12.1, 4], [40, 40]], [[4, 4], [12, 4]], reach_um=5.7)
    assert found.tolist() == [0, 1, -1]


# ---------------------------------------------------------------- exports
def test_cells_are_handed_over(tmp_path):
    import shapely
    from geopandas import GeoDataFrame

    from helpers import export_hd

    cells, types, domain = tissue(n=30)
    names = {"type": types, "domain": np.where(np.arange(30) < 3, "", domain)}
    scores = signatures.scores(cells, SIGNATURES, step="raw")
    table = export_hd.cells_table(cells, mpp=0.5, names=names, scores={"enrichmap": scores}, facts={"seed": 0})
    table.obs["n_counts"] = np.asarray(cells.X.sum(1)).ravel()
    table.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert again.obs["domain"].isna().sum() == 3 and list(again.obs["type"]) == list(types)
    np.testing.assert_allclose(again.obsm["spatial_px"], cells.obsm["spatial"] * 2)
    assert (again.X != cells.X).nnz == 0 and list(again.uns["enrichmap_columns"]) == list(SIGNATURES)

    discs = shapely.buffer(shapely.points(cells.obsm["spatial"]), 4.0)
    frame = GeoDataFrame({"geometry": discs[::-1]}, index=cells.obs_names[::-1])  # another order: joined by name
    write = export_hd.geojson_writer(frame, again, mpp=0.5, colour_by="type", also=["domain"],
                                     measurements=["n_counts"], colours={"A": "#0072B2"})  # fmt: skip
    write(tmp_path / "cells.geojson")
    features = json.loads((tmp_path / "cells.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == 30 and "domain" not in features[0]["properties"]
    for number, one in enumerate(features):
        shape = shapely.geometry.shape(one["geometry"])
        assert shape.is_valid and shape.exterior.is_ring
        np.testing.assert_allclose(shape.centroid.coords[0], cells.obsm["spatial"][number] * 2, atol=0.1)
        assert one["properties"]["classification"]["name"] == types[number]
    assert features[5]["properties"]["domain"] == domain[5] == features[5]["properties"]["name"]
    first = next(one for one in features if one["properties"]["classification"]["name"] == "A")
    assert first["properties"]["classification"]["color"] == [0, 114, 178]
    with pytest.raises(CourseError, match="without an outline"):
        export_hd.geojson_writer(frame[1:], again, mpp=0.5, colour_by="type")
    with pytest.raises(CourseError, match="no column"):
        export_hd.geojson_writer(frame, again, mpp=0.5, colour_by="kind")
    pixels = cells.copy()
    pixels.uns["spatial_unit"] = "px"
    with pytest.raises(CourseError, match="places in px"):
        export_hd.cells_table(pixels, mpp=0.5)


def test_a_section_with_cells_opens_again(tmp_path):
    import shapely
    import spatialdata

    from helpers import export_hd
    from tests.unit import make

    section = make.disc_section()
    cells, types, domain = tissue(n=25)
    table = export_hd.cells_table(cells, mpp=2.0, names={"type": types, "domain": domain})
    discs = shapely.buffer(shapely.points(cells.obsm["spatial"]), 5.0)
    export_hd.section_with_cells(section, discs, table).write(tmp_path / "section.zarr")
    again = spatialdata.read_zarr(tmp_path / "section.zarr")
    assert {"spots", "cells"} <= set(again.shapes) and again.attrs["mpp"] == 2.0
    assert again.tables["cell_counts"].uns["spatialdata_attrs"]["region"] == "cells"
    assert list(again.tables["cell_counts"].obs["type"]) == list(types)
    in_um = spatialdata.transform(again.shapes["cells"], to_coordinate_system="um")
    middles = np.stack([in_um.geometry.centroid.x, in_um.geometry.centroid.y], axis=1)
    np.testing.assert_allclose(middles, cells.obsm["spatial"], atol=1e-6)
    np.testing.assert_allclose(again.tables["cell_counts"].obsm["spatial"], cells.obsm["spatial"] / 2)
    joined, joined_table = spatialdata.join_spatialelement_table(
        sdata=again, spatial_element_names="cells", table_name="cell_counts", how="inner"
    )
    assert joined_table.n_obs == 25 and table.uns["spatial_unit"] == "um" and "cells" not in section.shapes

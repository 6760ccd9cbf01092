"""Visium HD, the joints of notebook 10: windows, maps of bins, crops, recounts, damage as a domain, the card's rows."""

import json
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest

from helpers import export_hd, grade_hd, notebook, readers_visium_hd, settings
from helpers import visium_hd as hd
from helpers.messages import CourseError
from tests.unit import make_hd
from tests.unit.test_visium_hd_segmentation import SIDE_UM, made


@pytest.fixture(scope="module")
def field():
    """Return the made-up section of 120 um and its truth."""
    section, truth = made()[:2]
    return section, truth


def test_a_window_lies_in_the_middle_and_never_beyond_the_picture(field):
    section, _ = field
    assert hd.window(section, 40) == pytest.approx([40, 40, 80, 80])
    assert hd.window(section, 1e9) == pytest.approx([0, 0, SIDE_UM, SIDE_UM])
    with pytest.raises(CourseError, match="length above 0"):
        hd.window(section, 0)


@pytest.mark.parametrize("size", [2, 8, 16])
def test_the_map_of_bins_holds_every_molecule_at_its_place(size):
    section = readers_visium_hd.read(make_hd.whole() / "outs")
    name = "counts" if size == 8 else f"bins_{size}um"
    grid = hd.molecules(section, size, (0, 0, make_hd.SIZE_UM, make_hd.SIZE_UM))
    table = section.tables[name]
    assert grid.shape == (304 // size, 304 // size) and np.nansum(grid) == table.X.sum()
    rows, columns = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    assert np.array_equal(grid[rows, columns], np.asarray(table.X.sum(1)).ravel())  # rows are y, columns x
    corner = hd.molecules(section, size, (48, 96, 144, 160))
    assert np.array_equal(corner, grid[96 // size : 160 // size, 48 // size : 144 // size], equal_nan=True)
    with pytest.raises(CourseError, match="no bins of 5 um"):
        hd.molecules(section, 5, (0, 0, 10, 10))


def test_a_crop_keeps_what_lies_in_it_and_sopa_finds_its_elements(field):
    section, _ = field
    sdata = hd.sopa.for_sopa(section)
    part = hd.sopa.crop(sdata, (20, 40, 60, 100))
    assert part.attrs["cell_segmentation_image"] == sdata.attrs["cell_segmentation_image"]
    assert 0 < part.tables["bins_2um"].n_obs < sdata.tables["bins_2um"].n_obs


def cells(n: int = 400, *, strip: bool = True):
    """Return cells on a square lattice whose left fifth, if asked, has other genes: a strip."""
    rng, side = settings.rng(0, "test", "strip"), int(np.sqrt(n))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 10.0
    left = xy[:, 0] < side * 2
    rate = np.ones((len(xy), 30))
    rate[xy[:, 1] > side * 5, :10] = 6
    if strip:
        rate[left, 20:] = 25
    found = anndata.AnnData(rng.poisson(rate).astype(np.int32), var=pd.DataFrame(index=[f"G{k}" for k in range(30)]))
    found.obs_names = [f"c{k}" for k in range(len(xy))]
    found.obsm["spatial"], found.uns["spatial_unit"] = xy, "um"
    return found, left


@pytest.mark.parametrize("crop", [None, (100, 60, 500, 420)])
def test_outlines_lie_on_the_whole_picture_also_where_a_crop_was_read(tmp_path, crop):
    whole = readers_visium_hd.read(make_hd.whole() / "outs")
    section = readers_visium_hd.read(make_hd.whole() / "outs", **({} if crop is None else {"crop": crop}))
    table = section.tables["counts"]
    squares = [np.asarray(one.exterior.coords) * section.attrs["mpp"] for one in section.shapes["spots"].geometry]  # um
    cells = anndata.AnnData(table.X, obs=pd.DataFrame({"kind": "bin"}, index=table.obs_names))
    write = export_hd.geojson_writer(squares, cells, **export_hd.full_frame(section), colour_by="kind")
    write(tmp_path / "bins.geojson")
    found = json.loads((tmp_path / "bins.geojson").read_text(encoding="utf-8"))["features"]
    middle = {one["properties"]["cell_id"]: np.mean(one["geometry"]["coordinates"][0][:-1], axis=0) for one in found}
    known = pd.DataFrame(whole.tables["counts"].obsm["spatial"], index=whole.tables["counts"].obs_names)
    np.testing.assert_allclose(np.array(list(middle.values())), known.loc[list(middle)], atol=0.02)


def test_a_damaged_strip_becomes_a_domain_and_a_flag_without_a_place_does_not():
    found, left = cells()
    worst = hd.domains.damage(found, left, radius_um=15, seed=0, ks=(3, 4))
    assert worst["share"] > 0.8 and worst["holds"] > 0.6 and worst["cells"] == left.sum()
    anywhere = settings.rng(1, "test").permutation(left)
    lost = hd.domains.damage(found, anywhere, radius_um=15, seed=0, ks=(3, 4))
    assert lost["share"] * lost["holds"] < 0.3
    found.X[3] = 0  # a cell without a molecule is passed over
    assert hd.domains.damage(found, left, radius_um=15, seed=0, ks=(3,))["cells"] <= left.sum()


def test_scores_are_rated_step_by_step():
    truth = SimpleNamespace(cells=pd.DataFrame({"type": ["A", "B", "A", "B"]}))
    right = pd.DataFrame({"A": [2.0, 0, 2, 0, 9], "B": [0, 2.0, 0, 2, 0]})
    wrong = right[["B", "A"]].set_axis(["A", "B"], axis=1)
    table = grade_hd.signatures.by_step({"raw": right, "wrong": wrong}, truth, np.array([0, 1, 2, 3, -1]))
    assert table.loc["raw", ["right name", "lowest AUROC"]].tolist() == [1, 1]
    assert table.loc["wrong", ["right name", "lowest AUROC"]].tolist() == [0, 0]
    assert table.loc["raw", "majority"] == 0.5


def test_the_rows_of_the_report_card_carry_each_method_beside_its_baseline():
    rows = grade_hd.rows(
        nuclei={"f1": 0.8}, recovered=pd.DataFrame({"overlap": {"expanded": 0.7, "nuclei only": 0.4}}),
        ari=pd.DataFrame({"ari": {"Novae": 0.8, "place only": 0.3}}), by_step=pd.DataFrame(
            {"right name": {"raw": 0.9}, "majority": {"raw": 0.2}}),
        shares=pd.DataFrame({"correlation": {"RCTD full": 0.95}}),
        named={"CellTypist": {"accuracy": 0.9, "majority": 0.25}},
    )  # fmt: skip
    card = hd.report_card(rows, {"Novae": hd.Cost(3.0, 100.0)}).set_index("method")
    assert card.loc["Novae", ["value", "baseline", "seconds"]].tolist() == [0.8, 0.3, 3.0]
    assert card.loc["expanded", "baseline"] == 0.4 and "place only" not in card.index
    assert np.isnan(card.loc["StarDist", "baseline"]) and card.loc["CellTypist", "baseline"] == 0.25


def test_real_spots_are_compared_only_where_they_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert grade_hd.types.real_spots("") is None and grade_hd.types.real_spots("scrna_reference") is None
    with pytest.raises(CourseError):
        grade_hd.types.real_spots("no_such_set")


def test_a_notebook_without_its_packages_is_left_out_and_refused_by_number(make_notebook, capsys):
    from helpers import execute

    path = make_notebook("01_heavy", "x = 1", needs={"packages": ["no_such_package_here"]})
    make_notebook("02_light", "x = 1")
    assert notebook.load(path).missing_packages == ["no_such_package_here"]
    assert [job.label for job in execute.plan(where=path.parent, out=path.parent / "out")] == ["02_light"]
    assert "left out: 01_heavy" in capsys.readouterr().err
    with pytest.raises(CourseError, match="LIGHT=0"):
        execute.plan(["01"], where=path.parent, out=path.parent / "out")




# ---------------------------------------------------------------- reference
def published(folder, *, place="X", symbols=True):
    """Write a small reference as publishers do, and return its file and its counts."""
    rng = settings.rng(0, "test", "published")
    counts = rng.poisson(3, (60, 8)).astype(np.float32)
    names = [f"G{k}" for k in range(8)] if symbols else [f"ENSG{k:011d}" for k in range(8)]
    table = anndata.AnnData(np.log1p(counts) if place != "X" else counts.copy(), var=pd.DataFrame(index=names))
    table.obs["kind"] = ["A"] * 40 + ["B"] * 19 + [None]
    if place == "raw":
        table.raw = anndata.AnnData(counts, obs=table.obs, var=table.var)
    if place == "layer":
        table.layers["counts"] = counts
    if not symbols:
        table.var["feature_name"] = [f"G{k}" for k in range(8)]
        if place == "raw":
            table.raw = anndata.AnnData(counts, obs=table.obs, var=table.var)
    file = folder / f"{place}.h5ad"
    table.write_h5ad(file)
    return file, counts


@pytest.mark.parametrize("place", ["X", "raw", "layer"])
@pytest.mark.parametrize("symbols", [True, False])
def test_a_reference_is_read_wherever_its_counts_and_symbols_stand(tmp_path, place, symbols):
    file, counts = published(tmp_path, place=place, symbols=symbols)
    read = hd.reference.read(file, cell_type="kind")
    assert list(read.var_names) == [f"G{k}" for k in range(8)] and read.X.dtype == np.int32
    assert np.array_equal(read.X.toarray(), counts[:59]) and read.obs["cell_type"].value_counts()["A"] == 40
    few = hd.reference.read(file, cell_type="kind", most=30)
    assert few.obs["cell_type"].value_counts().to_dict() == {"A": 20, "B": 10}  # shares stay


def test_a_reference_that_cannot_serve_is_refused(tmp_path):
    file, counts = published(tmp_path)
    assert hd.reference.read(None) is None
    with pytest.raises(CourseError, match="no column 'cell_type'.*kind"):
        hd.reference.read(file)
    logs = anndata.AnnData(np.log1p(counts), obs=pd.DataFrame({"kind": ["A"] * 60}, index=map(str, range(60))))
    logs.write_h5ad(file)
    with pytest.raises(CourseError, match="raw counts"):
        hd.reference.read(file, cell_type="kind")
    (tmp_path / "no.h5ad").write_bytes(b"not hdf5")
    with pytest.raises(CourseError, match="a reference in .h5ad"):
        hd.reference.read(tmp_path / "no.h5ad", cell_type="kind")


def test_a_trap_may_match_what_lies_elsewhere():
    flags = {"type": "A", "domain": "d", "island": False, "high_mt": False}
    truth = SimpleNamespace(cells=pd.DataFrame({"x_um": np.arange(20) * 10.0, "y_um": 0.0}).assign(**flags))
    table = anndata.AnnData(np.ones((20, 2), np.int32))
    table.obsm["spatial"], table.uns["spatial_unit"] = truth.cells[["x_um", "y_um"]].to_numpy() + 500, "um"
    with pytest.raises(CourseError, match="within 6 um of a true one"):
        grade_hd.domains.match(table, truth)
    assert not grade_hd.domains.match(table, truth, strict=False)["matched"].any()

"""Hand-over: every file is read again by a program that did not write it."""

import csv
import json

import anndata as ad
import geopandas
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from helpers import export_handover as out
from helpers import section as sec
from helpers import settings
from helpers.messages import CourseError
from tests.unit import make


@pytest.fixture()
def table():
    """Twelve tiles on a grid, five genes of predicted expression, with awkward columns."""
    rng = settings.rng(0, "table")
    obs = pd.DataFrame(
        {"cluster": list("aabbccaabbcc"), "kept": [True, False] * 6, "missing": ["x", None] * 6,
         "number": np.arange(12, dtype=np.int64), "score": rng.normal(size=12)},
        index=[f"{k // 4}x{k % 4}" for k in range(12)],
    )  # fmt: skip
    var = pd.DataFrame(index=["HLA-A", "KRT8", "3x", "GAPDH", "T"])
    held = ad.AnnData(rng.gamma(2.0, size=(12, 5)), obs=obs, var=var)
    held.obsm["spatial"] = np.column_stack([np.arange(12) % 4, np.arange(12) // 4]) * 200.0 + 100
    return held


@pytest.fixture()
def ready(table):
    """The table as viewers want it, with a picture and counts."""
    counts = settings.rng(0, "counts").poisson(3, (12, 5))
    picture = np.full((60, 80, 3), 200, np.uint8)
    return out.for_viewers(table, library_id="s1", spot_diameter_px=110.0, picture=picture, scale=0.1, mpp=0.5,
                           counts=sparse.csr_matrix(counts)), counts  # fmt: skip


def test_h5ad_keeps_the_viewers_conventions(ready, table, tmp_path):
    """Read with h5py alone, as a viewer's own loader would."""
    held, counts = ready
    out.h5ad_writer(held)(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        x = file["X"]
        assert x.attrs["encoding-type"] == "csc_matrix" and x["data"].dtype == np.float32
        x = sparse.csc_matrix((x["data"][:], x["indices"][:], x["indptr"][:]), shape=(12, 5))
        assert np.allclose(x.toarray(), table.X, rtol=1e-6)
        raw = file["raw/X"]
        assert raw.attrs["encoding-type"] == "csr_matrix" and raw["data"].dtype == np.float32
        assert (raw["data"][:] % 1 == 0).all() and raw["data"][:].sum() == counts.sum()
        assert np.allclose(file["obsm/X_spatial"][:], table.obsm["spatial"] * [1, -1])
        assert file["obsm/spatial"].dtype == np.float32
        entry = file["uns/spatial/s1"]
        assert entry["scalefactors/tissue_hires_scalef"][()] == 0.1 and entry["images/hires"].shape == (60, 80, 3)
        assert entry["scalefactors/spot_diameter_fullres"][()] == 110.0
        assert list(file["uns/spatial"]) == ["s1"], "viewers take every key for a slide"
        for column in ("cluster", "kept", "missing"):
            assert file[f"obs/{column}"].attrs["encoding-type"] == "categorical"
            assert all(isinstance(name, bytes) for name in file[f"obs/{column}/categories"][:])
        assert file["obs/number"].dtype == np.int32 and file["obs/score"].dtype == np.float32
        assert [each.decode() for each in file["var/feature_name/categories"][:]] == sorted(table.var_names)


def test_scanpy_draws_the_spots_on_the_slide(ready, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    out.h5ad_writer(ready[0])(tmp_path / "a.h5ad")
    held = sc.read_h5ad(tmp_path / "a.h5ad")
    library = held.uns["spatial"]["s1"]
    ax = sc.pl.embedding(held, "spatial", color="KRT8", show=False)
    assert len(ax.collections[0].get_offsets()) == 12
    plt.close("all")
    on_picture = held.obsm["spatial"] * library["scalefactors"]["tissue_hires_scalef"]
    assert (on_picture < library["images"]["hires"].shape[1::-1]).all(), "spots lie off the picture"
    assert list(held.obs["missing"].cat.categories) == ["missing", "x"]


def test_what_tissuumaps_asks_of_a_table_is_there(ready, table, tmp_path):
    """Its loader goes over every slide of uns, compares obs.library_id with it and makes columns of X dense."""
    out.h5ad_writer(ready[0])(tmp_path / "a.h5ad")
    held = ad.read_h5ad(tmp_path / "a.h5ad")
    for library, entry in held.uns["spatial"].items():
        mine = (held.obs.library_id == library).to_numpy()
        assert mine.all() and entry["images"]["hires"].dtype == np.uint8
        placed = held.obsm["spatial"][mine] * entry["scalefactors"]["tissue_hires_scalef"]
        np.testing.assert_allclose(placed, table.obsm["spatial"] * 0.1, rtol=1e-6)
    np.testing.assert_allclose(held[:, "3x"].X.toarray()[:, 0], table.X[:, 2], rtol=1e-6)


def test_a_table_alone_is_enough(table):
    table.X = sparse.csr_matrix(table.X)
    held = out.for_viewers(table, library_id="s", spot_diameter_px=5.0)
    assert sparse.issparse(held.X) and held.X.format == "csc" and held.raw is None
    assert "hires" not in held.uns["spatial"]["s"]["images"]


SPOILT = ["positions", "names", "nan", "log counts", "shape", "picture", "text", "nan embedding"]


@pytest.mark.parametrize("spoil", SPOILT)
def test_tables_no_viewer_could_show_are_refused(table, spoil):
    more = {}
    if spoil == "positions":
        del table.obsm["spatial"]
    elif spoil == "names":
        table.var_names = ["a", "a", "b", "c", "d"]
    elif spoil == "nan":
        table.X[0, 0] = np.nan
    elif spoil == "log counts":
        more["counts"] = np.log1p(np.arange(60).reshape(12, 5))
    elif spoil == "shape":
        more["counts"] = np.ones((12, 4), int)
    elif spoil == "picture":
        more.update(picture=np.ones((5, 5, 3)), scale=0.1)
    elif spoil == "text":
        table.X = table.X.astype(str)
    else:
        table.obsm["pca"] = np.full((12, 2), np.inf)
    with pytest.raises(CourseError):
        out.for_viewers(table, library_id="s", spot_diameter_px=5.0, **more)


# ---------------------------------------------------------------- zarr
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata_zarr_in_both_formats(ready, tmp_path, zarr_format):
    out.anndata_zarr_writer(ready[0], zarr_format=zarr_format)(tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "X" / (".zgroup" if zarr_format == 2 else "zarr.json")).exists()
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.metadata.zarr_format == zarr_format and group["X"].attrs["encoding-type"] == "csc_matrix"
    parts = (group["X"][name][:] for name in ("data", "indices", "indptr"))
    np.testing.assert_allclose(sparse.csc_matrix(tuple(parts), shape=(12, 5)).toarray(), ready[0].X.toarray())
    np.testing.assert_allclose(group["obsm/spatial"][:], ready[0].obsm["spatial"])
    with pytest.raises(CourseError, match="2 or 3"):
        out.anndata_zarr_writer(ready[0], zarr_format=4)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_section_zarr_is_read_by_ome_zarr(tmp_path, zarr_format):
    """The picture by ome_zarr, the table by zarr and by anndata: none of them is spatialdata."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    section = make.disc_section()
    out.section_writer(section, zarr_format=zarr_format)(tmp_path / "section.zarr")
    top = tmp_path / "section.zarr"
    assert (top / (".zattrs" if zarr_format == 2 else "zarr.json")).exists()
    (node,) = list(Reader(parse_url(top / "images" / "he"))())
    assert np.array_equal(np.moveaxis(np.asarray(node.data[0]), 0, 2), sec.image(section))
    table = ad.read_zarr(top / "tables" / "counts")
    assert np.array_equal(table.X.toarray(), sec.counts(section).X.toarray())
    shapes = zarr.open_group(top / "shapes" / "spots", mode="r")
    assert shapes.attrs["encoding-type"] == "ngff:shapes"
    parquet = geopandas.read_parquet(top / "shapes" / "spots" / "shapes.parquet")
    assert np.allclose(parquet.geometry.x, sec.xy(section)[:, 0])
    assert section.path is None, "the section in memory now points to the copy"


# ---------------------------------------------------------------- Vitessce
VIEWS = {"spatialBeta", "layerControllerBeta", "featureList", "obsSets", "scatterplot"}


def test_the_vitessce_configuration_names_what_is_there(ready, tmp_path):
    """Structure as in @vitessce/schemas 4.0.8 (zod), which is JavaScript; every path is followed into the store."""
    held = ready[0]
    config = out.vitessce(held, name="S 1", url="a.zarr", image_url="s1.ome.tif", labels=["cluster"],
                          embeddings=["X_spatial"], spot_radius_px=55.0, gene="KRT8")  # fmt: skip
    out.json_writer(config)(tmp_path / "vitessce.json")
    out.anndata_zarr_writer(held)(tmp_path / "a.zarr")
    read = json.loads((tmp_path / "vitessce.json").read_text())
    assert read["version"] == "1.0.17" and read["initStrategy"] == "auto"
    assert set(read) <= {"version", "name", "description", "datasets", "coordinationSpace", "layout", "initStrategy"}
    for view in read["layout"]:
        assert view["component"] in VIEWS and all(isinstance(view[key], int) for key in "xywh")
        assert view["x"] + view["w"] <= 12
        for kind, scope in view["coordinationScopes"].items():
            assert scope in read["coordinationSpace"][kind], "a view listens to nothing"
    boxes = [(v["x"], v["y"], v["x"] + v["w"], v["y"] + v["h"]) for v in read["layout"]]
    for k, (a, b, c, d) in enumerate(boxes):
        assert not any(a < g and e < c and b < h and f < d for e, f, g, h in boxes[k + 1 :]), "views overlap"
    (dataset,) = read["datasets"]
    file, picture = dataset["files"]
    assert "options" not in picture
    stated = out.vitessce(held, name="S", url="a.zarr", image_url="s.ome.tif", image_mpp=0.25, spot_radius_px=55.0)
    (scale,) = stated["datasets"][0]["files"][1]["options"]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [4.0, 4.0, 1, 1, 1]}, "a picture drawn in microns under spots in pixels"
    assert (file["fileType"], picture["fileType"]) == ("anndata.zarr", "image.ome-tiff")
    assert read["coordinationSpace"]["dataset"]["A"] == dataset["uid"]
    group, options = zarr.open_group(tmp_path / "a.zarr", mode="r"), file["options"]
    assert group.metadata.zarr_format == 2
    paths = [options["obsFeatureMatrix"], options["obsSpots"], *options["obsSets"], *options["obsEmbedding"]]
    assert all(each["path"] in group for each in paths)
    names = group["var"][group["var"].attrs["_index"]][:]
    assert read["coordinationSpace"]["featureSelection"]["A"][0] in list(map(str, names))
    for wrong in ({"labels": ["nothing"]}, {"gene": "nothing"}, {"embeddings": ["nothing"]}):
        with pytest.raises(CourseError, match="nothing"):
            out.vitessce(held, name="S", url="a.zarr", spot_radius_px=5.0, **wrong)


# ---------------------------------------------------------------- QuPath, R
def test_tiles_are_read_by_geopandas(table, tmp_path):
    out.tiles_writer(table, side_px=110.0, genes=["KRT8"], label="cluster")(tmp_path / "t.geojson")
    frame = geopandas.read_file(tmp_path / "t.geojson")
    assert len(frame) == 12 and np.allclose(frame.geometry.area, 110.0**2) and frame.geometry.is_valid.all()
    assert np.allclose(np.column_stack([frame.centroid.x, frame.centroid.y]), table.obsm["spatial"])
    features = json.loads((tmp_path / "t.geojson").read_text())["features"]
    first = features[0]["properties"]
    assert first["objectType"] == "detection" and first["classification"]["name"] == "a"
    assert first["measurements"]["KRT8"] == pytest.approx(table.X[0, 1], abs=1e-4) and "score" in first["measurements"]


def test_csv_is_read_by_pandas_and_line_by_line(table, tmp_path, monkeypatch):
    out.csv_writer(table, mpp=0.5)(tmp_path / "r")
    spots = pd.read_csv(tmp_path / "r" / "spots.csv", index_col=0)
    expression = pd.read_csv(tmp_path / "r" / "expression.csv", index_col=0)
    assert list(spots.index) == list(expression.index) == list(table.obs_names)
    assert list(expression.columns) == list(table.var_names)
    np.testing.assert_allclose(expression.to_numpy(), table.X, rtol=1e-8)
    np.testing.assert_allclose(spots[["x_um", "y_um"]], table.obsm["spatial"] * 0.5)
    with open(tmp_path / "r" / "expression.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 13 and {len(row) for row in rows} == {6} and rows[0][1] == "HLA-A"
    big = ad.AnnData(sparse.random(5000, 3, density=0.3, format="csr", rng=settings.rng(0, "big")))
    big.obsm["spatial"] = np.zeros((5000, 2))
    out.csv_writer(big, mpp=0.5)(tmp_path / "big")
    read = pd.read_csv(tmp_path / "big" / "expression.csv", index_col=0)
    np.testing.assert_allclose(read.to_numpy(), big.X.toarray(), rtol=1e-8)

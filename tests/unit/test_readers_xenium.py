"""Xenium folders: versions read alike, against an independent reader; what is missing said, what is wrong refused."""

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile

from helpers import catalogue, readers, readers_xenium, section, section_align, section_cells
from helpers.messages import CourseError
from helpers.readers_xenium_files import physical_size
from helpers.virtual import truth, xenium_truth

from .make_xenium import SECTIONS, copy, small


def home():
    return small()["virtual_xenium"] / "sections"


def read(name="X3_b", **options):
    return readers_xenium.read(home() / name / "outs", **options)


def known(name="X3_b"):
    return xenium_truth.of(truth.read(home().parent, name))


def same(a, b):
    """Say whether two sections hold the same cells, counts and outlines."""
    one, two = a.tables["counts"], b.tables["counts"]
    return (
        list(one.obs_names) == list(two.obs_names) and list(one.var_names) == list(two.var_names)
        and (one.X != two.X).nnz == 0 and np.allclose(one.obsm["spatial_um"], two.obsm["spatial_um"], atol=1e-3)
        and a.shapes["nuclei"].geometry.geom_equals_exact(b.shapes["nuclei"].geometry, 1e-3).all()
        and a.shapes["cells"].geometry.geom_equals_exact(b.shapes["cells"].geometry, 1e-3).all()
    )  # fmt: skip


# ---------------------------------------------------------------- what is read
@pytest.mark.parametrize("name", SECTIONS)
def test_a_folder_of_any_version_gives_the_raw_section(name):
    import shapely
    from spatialdata.transformations import get_transformation

    built = read(name)
    counts = built.tables["counts"]
    assert counts.n_obs > 100 and counts.n_vars > 280
    assert not counts.var_names.str.match("NegControl|Unassigned|BLANK").any()
    assert len(counts.uns["controls"]) == 91 and counts.uns["controls"]["counts"].sum() > 0
    assert "spatial" not in counts.obsm and built.attrs["registered"] is False and built.attrs["absent"] == []
    assert built.attrs["mpp"] == 0.5 and "PhysicalSizeX" in built.attrs["mpp_source"]
    systems = {word: set(get_transformation(built[word], get_all=True)) for word in ("he", "dapi", "cells", "nuclei")}
    assert systems == {"he": {"pixel"}, "dapi": {"um"}, "cells": {"um"}, "nuclei": {"um"}}
    points = built.points["transcripts"].compute()
    assert (points["qv"] >= 20).all() and set(get_transformation(built.points["transcripts"], get_all=True)) == {"um"}
    assert points["feature_name"].astype(str).isin(counts.var_names).mean() > 0.98
    nuclei = built.shapes["nuclei"]
    inside = shapely.contains(
        built.shapes["cells"].geometry.to_numpy()[nuclei["cell"]], shapely.centroid(nuclei.geometry.to_numpy())
    )
    assert inside.mean() > 0.97
    levels = section_cells.dapi_levels(built)
    assert len(levels) >= 2 and levels[1].sizes["x"] == levels[0].sizes["x"] // 2
    coarse, um_px = section_cells.dapi(built, 1.0)
    assert 0.8 < um_px <= 1.0 and coarse.shape == (levels[2].sizes["y"], levels[2].sizes["x"])
    assert abs(float(coarse.mean()) / float(levels[0].data.mean().compute()) - 1) < 0.05


@pytest.mark.parametrize("name", SECTIONS)
def test_an_independent_reader_sees_the_same(name):
    from spatialdata_io import xenium

    ours = read(name)
    theirs = xenium(home() / name / "outs", cells_labels=False, nucleus_labels=False)
    table, counts = theirs.tables["table"], ours.tables["counts"]
    assert (table[counts.obs_names, counts.var_names].X != counts.X).nnz == 0
    assert table.n_obs == counts.n_obs
    assert np.allclose(table[counts.obs_names].obsm["spatial"], counts.obsm["spatial_um"])
    assert np.allclose(theirs.shapes["cell_boundaries"].area, ours.shapes["cells"].area, rtol=1e-4)
    assert np.allclose(theirs.shapes["nucleus_boundaries"].area, ours.shapes["nuclei"].area, rtol=1e-4)
    picture = theirs.images["morphology_focus"]["scale0"]["image"].data[0, 100:200, 50:150].compute()
    assert np.array_equal(picture, section_cells.dapi(ours)[0][100:200, 50:150])
    points = theirs.points["transcripts"].compute()
    kept = points[points["qv"] >= 20]
    mine = ours.points["transcripts"].compute()
    assert len(mine) == len(kept) and np.allclose(np.sort(mine["x"]), np.sort(kept["x"]))


def test_text_tables_and_an_unreadable_version_change_nothing(tmp_path):
    outs = copy(tmp_path)
    before = readers_xenium.read(outs)
    names = [sorted(before.points["transcripts"]["feature_name"].compute().astype(str))]
    for stem in ("cells", "cell_boundaries", "nucleus_boundaries", "transcripts"):
        table = pd.read_parquet(outs / f"{stem}.parquet")
        (outs / f"{stem}.parquet").unlink()
        with gzip.open(outs / f"{stem}.csv.gz", "wt") as stream:
            table.to_csv(stream, index=False)
    facts = json.loads((outs / "experiment.xenium").read_text())
    facts["analysis_sw_version"] = "R&D"
    (outs / "experiment.xenium").write_text(json.dumps(facts))
    after = readers_xenium.read(outs)
    assert same(before, after) and after.attrs["software"] == "R&D"
    assert names[0] == sorted(after.points["transcripts"]["feature_name"].compute().astype(str))


def test_the_matrix_may_be_a_folder(tmp_path):
    import scanpy as sc
    from scipy.io import mmwrite

    outs = copy(tmp_path)
    before = readers_xenium.read(outs)
    table = sc.read_10x_h5(outs / "cell_feature_matrix.h5", gex_only=False)
    (outs / "cell_feature_matrix.h5").unlink()
    folder = outs / "cell_feature_matrix"
    folder.mkdir()
    mmwrite(str(folder / "matrix.mtx"), table.X.T.tocoo())
    features = pd.DataFrame({"id": table.var["gene_ids"], "name": table.var_names, "kind": table.var["feature_types"]})
    features.to_csv(folder / "features.tsv", sep="\t", header=False, index=False)
    (folder / "barcodes.tsv").write_text("\n".join(table.obs_names))
    assert same(before, readers_xenium.read(outs))


# ---------------------------------------------------------------- what is missing
def test_missing_parts_are_said_and_the_rest_is_read(tmp_path, capsys):
    outs = copy(tmp_path)
    before = readers_xenium.read(outs)
    (outs / "transcripts.parquet").unlink()
    (outs / "nucleus_boundaries.parquet").unlink()
    shutil.rmtree(outs / "morphology_focus")
    (outs.parent / "X3_b_he_image.ome.tif").unlink()
    capsys.readouterr()
    built = readers_xenium.read(outs)
    assert built.attrs["absent"] == ["dapi", "he", "transcripts", "nuclei"]
    assert "not in the folder: dapi, he, transcripts, nuclei" in capsys.readouterr().err
    assert not built.images and not built.points and "nuclei" not in built.shapes and built.attrs["mpp"] is None
    assert (built.tables["counts"].X != before.tables["counts"].X).nnz == 0
    with pytest.raises(CourseError, match="no DAPI"):
        section_cells.dapi(built)
    with pytest.raises(CourseError, match="no H&E"):
        section_align.align(built, np.eye(3))
    with pytest.raises(CourseError, match="alignment but no H&E"):
        readers_xenium.read(outs, alignment=np.eye(3))
    (outs / "cell_boundaries.parquet").unlink()
    (outs / "experiment.xenium").unlink()
    bare = readers_xenium.read(outs)  # a table of cells and a matrix are enough
    area = bare.tables["counts"].obs["cell_area"].to_numpy()
    assert np.allclose(bare.shapes["cells"].area, area, rtol=0.05) and "circles" in bare.attrs["outlines"]


@pytest.mark.parametrize(
    "gone, word", [("cell_feature_matrix.h5", "no cell_feature_matrix"), ("cells.parquet", "no table of cells")]
)
def test_without_matrix_or_cells_there_is_no_section(tmp_path, gone, word):
    outs = copy(tmp_path)
    (outs / gone).unlink()
    with pytest.raises(CourseError, match=word):
        readers_xenium.read(outs)
    with pytest.raises(CourseError, match="Xenium folder without"):
        readers.discover(tmp_path, dataset="x", platform="xenium")


def test_a_quality_that_removes_everything_is_refused(tmp_path):
    with pytest.raises(CourseError, match="none of .* transcripts with qv >= 41"):
        read(qv=41)
    outs = copy(tmp_path)
    pd.read_parquet(outs / "transcripts.parquet").to_csv(outs / "transcripts.csv.gz", index=False)
    (outs / "transcripts.parquet").unlink()
    with pytest.raises(CourseError, match="none of"):
        readers_xenium.read(outs, qv=41)
    assert len(read(qv=0).points["transcripts"]) > len(read(qv=20).points["transcripts"])


# ---------------------------------------------------------------- pixel sizes
def rewrite_he(outs, unit="µm", size=0.5, ome=True, **options):
    picture = tifffile.imread(outs.parent / "X3_b_he_image.ome.tif")
    (outs.parent / "X3_b_he_image.ome.tif").unlink()
    file = outs.parent / ("X3_b_he_image.ome.tif" if ome else "X3_b_he_image.tif")
    metadata = {"axes": "YXS"}
    if size:
        metadata.update({f"PhysicalSize{a}": size for a in "XY"}, **{f"PhysicalSize{a}Unit": unit for a in "XY"})
    tifffile.imwrite(file, picture, photometric="rgb", tile=(256, 256), ome=ome, metadata=metadata, **options)
    return file


def test_he_with_and_without_a_pixel_size(tmp_path):
    outs = copy(tmp_path)
    assert physical_size(rewrite_he(outs, unit="nm", size=500.0))[0] == pytest.approx(0.5)
    assert physical_size(rewrite_he(outs, unit="\u03bcm", size=0.25))[0] == pytest.approx(0.25)  # Greek mu
    rewrite_he(outs, size=None)
    built = readers_xenium.read(outs)
    assert built.attrs["mpp"] is None and "states no pixel size" in built.attrs["mpp_source"]
    aligned = section_align.align(built, known().registration["um_to_px"])  # the transform brings one
    assert section.mpp(aligned) == pytest.approx(known().registration["he_um_px"])
    file = rewrite_he(outs, ome=False, size=None, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert physical_size(file) == (pytest.approx(0.5), f"XResolution of {file.name}")
    assert physical_size(outs / "x.jpg")[0] is None


def test_dapi_pixel_sizes_must_agree(tmp_path):
    outs = copy(tmp_path)
    facts = json.loads((outs / "experiment.xenium").read_text())
    facts["pixel_size"] = 0.85
    (outs / "experiment.xenium").write_text(json.dumps(facts))
    with pytest.raises(CourseError, match="0.2125 um per pixel in .* but 0.85"):
        readers_xenium.read(outs)
    facts["pixel_size"] = 2125
    (outs / "experiment.xenium").write_text(json.dumps(facts))
    with pytest.raises(CourseError, match="pixel_size 2125"):
        readers_xenium.read(outs)
    (outs / "experiment.xenium").unlink()
    assert readers_xenium.read(outs).attrs["dapi_um_px"] == 0.2125  # the picture says it
    file = outs / "morphology_focus" / "ch0000_dapi.ome.tif"
    picture = tifffile.imread(file, key=0)
    tifffile.imwrite(file, picture, tile=(256, 256), metadata={"axes": "YX"}, ome=True)
    with pytest.raises(CourseError, match="without a pixel size"):
        readers_xenium.read(outs)
    tifffile.imwrite(file, picture.astype(np.float32), tile=(256, 256))
    with pytest.raises(CourseError, match="float32"):
        readers_xenium.read(outs)


# ---------------------------------------------------------------- outlines and ids
def test_polygons_outside_the_picture(tmp_path):
    outs = copy(tmp_path)
    table = pd.read_parquet(outs / "cells.parquet")
    few = table.assign(x_centroid=table["x_centroid"].where(table.index >= 3, -50.0))
    few.to_parquet(outs / "cells.parquet")
    built = readers_xenium.read(outs)
    assert built.attrs["outside_dapi"] == table["cell_id"][:3].tolist() and len(built.shapes["cells"]) == len(table) - 3
    assert built.shapes["nuclei"]["cell"].max() < len(table) - 3
    table.assign(x_centroid=table["x_centroid"] / 0.2125, y_centroid=table["y_centroid"] / 0.2125).to_parquet(
        outs / "cells.parquet"
    )
    with pytest.raises(CourseError, match="cells outside the DAPI picture"):  # pixels given as microns
        readers_xenium.read(outs)


def test_overlapping_crossing_and_empty_polygons(tmp_path):
    outs = copy(tmp_path)
    file = outs / "nucleus_boundaries.parquet"
    table = pd.read_parquet(file)
    twin = table[table["label_id"] == 5].assign(label_id=table["label_id"].max() + 1)
    crossing = table["label_id"] == 1
    order = np.arange(crossing.sum())
    order[[3, 9]] = order[[9, 3]]
    table.loc[crossing, ["vertex_x", "vertex_y"]] = table.loc[crossing, ["vertex_x", "vertex_y"]].to_numpy()[order]
    short = table[table["label_id"] == 2].iloc[:2]
    pd.concat([table[table["label_id"] != 2], short, twin]).to_parquet(file)
    before, built = read(), readers_xenium.read(outs)
    assert "overlap" in built.attrs["outlines"] and "2 nucleus outlines" in built.attrs["outlines"]
    assert len(built.shapes["nuclei"]) == len(before.shapes["nuclei"])  # one left out, one doubled
    assert built.shapes["nuclei"].geometry.is_valid.all()
    assert built.shapes["nuclei"]["cell"].value_counts().max() == 2


def test_ids_must_match(tmp_path):
    outs = copy(tmp_path)
    table = pd.read_parquet(outs / "cells.parquet")
    table.assign(cell_id=table["cell_id"].str.replace("-1", "-2")).to_parquet(outs / "cells.parquet")
    with pytest.raises(CourseError, match="0 of .* cells of the matrix in the table"):
        readers_xenium.read(outs)
    twice = table.assign(cell_id=table["cell_id"].where(table.index != 1, table["cell_id"][0]))
    twice.to_parquet(outs / "cells.parquet")
    with pytest.raises(CourseError, match="twice"):
        readers_xenium.read(outs)
    table.assign(x_centroid=table["x_centroid"].where(table.index != 1)).to_parquet(outs / "cells.parquet")
    with pytest.raises(CourseError, match="no number in row 2"):
        readers_xenium.read(outs)
    table.drop(columns="y_centroid").to_parquet(outs / "cells.parquet")
    with pytest.raises(CourseError, match="no column y_centroid"):
        readers_xenium.read(outs)


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    "file",
    ["cells.parquet", "cell_feature_matrix.h5", "cell_boundaries.parquet", "transcripts.parquet", "experiment.xenium",
     "morphology_focus/ch0000_dapi.ome.tif", "../X3_b_he_image.ome.tif"],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, file):
    outs = copy(tmp_path)
    cut(outs / file)
    with pytest.raises(CourseError) as caught:
        readers_xenium.read(outs)
    assert caught.value.file.endswith(file.split("/")[-1])


# ---------------------------------------------------------------- alignment
@pytest.mark.parametrize("name", SECTIONS)
def test_with_an_alignment_the_cells_lie_on_the_he(tmp_path, name):
    from spatialdata.transformations import get_transformation

    outs = copy(tmp_path, name)
    facts = known(name).registration
    section_align.write_alignment(
        outs.parent / f"{name}_he_imagealignment.csv", facts["um_to_px"], dapi_um_px=0.2125
    )
    built = readers_xenium.read(outs)
    assert section.check(built) is built and built.attrs["registered"]
    assert section.mpp(built) == pytest.approx(facts["he_um_px"], rel=1e-6)
    cells = known(name).cells
    cells = cells[cells["cell"] != ""].set_index("cell").loc[built.tables["counts"].obs_names]
    owner = built.shapes["nuclei"].set_index("cell").geometry.centroid.loc[built.tables["counts"].obs["instance_id"]]
    off = np.hypot(owner.x - cells["x_px"].to_numpy(), owner.y - cells["y_px"].to_numpy()) * section.mpp(built)
    assert off.median() < 1.2 + 1.3 * facts["affine_floor_um"]
    for word in ("he", "dapi", "cells", "nuclei", "transcripts"):
        assert set(get_transformation(built[word], get_all=True)) == {"pixel", "um"}, word
    back = get_transformation(built.shapes["cells"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    spatial = built.tables["counts"].obsm
    assert np.allclose(section_align.apply(back, spatial["spatial"]), spatial["spatial_um"])
    dapi = get_transformation(built.images["dapi"], "pixel").to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(dapi, np.array(facts["um_to_px"]) @ np.diag([0.2125, 0.2125, 1]))
    raw = readers_xenium.read(outs, alignment=False)
    assert not raw.attrs["registered"] and set(get_transformation(raw.images["he"], get_all=True)) == {"pixel"}
    section_align.align(raw, facts["um_to_px"])
    assert set(get_transformation(raw.images["he"], get_all=True)) == {"pixel"}  # the raw section stays raw
    assert set(get_transformation(raw.points["transcripts"], get_all=True)) == {"um"}


def test_the_alignment_file_is_the_one_spatialdata_io_reads(tmp_path):
    from spatialdata.transformations import get_transformation
    from spatialdata_io import xenium_aligned_image

    outs = copy(tmp_path, "X2_a")
    csv, matrix = outs.parent / "a.csv", np.array(known("X2_a").registration["um_to_px"])
    section_align.write_alignment(csv, matrix, dapi_um_px=0.2125)
    image = xenium_aligned_image(outs.parent / "X2_a_he_image.ome.tif", csv)
    theirs = get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    points = np.array([[10.0, 20.0], [300.0, 5.0]])
    px = section_align.apply(matrix, points)
    assert np.allclose(section_align.apply(theirs, px) * 0.2125, points)
    assert np.allclose(section_align.read_alignment(csv, dapi_um_px=0.2125), matrix)


def test_a_warp_moves_centres_and_outlines():
    raw, matrix = read("X2_a"), np.array(known("X2_a").registration["um_to_px"])
    plain = section_align.align(raw, matrix)
    bent = section_align.align(raw, matrix, warp=lambda xy: section_align.apply(matrix, xy) + [4.0, 0])
    assert np.allclose(section.xy(bent) - section.xy(plain), [4, 0])
    assert np.allclose(bent.shapes["nuclei"].centroid.x - plain.shapes["nuclei"].centroid.x, 4)


def test_bad_alignments_are_refused(tmp_path):
    raw, matrix = read(), np.array(known().registration["um_to_px"])
    aligned = section_align.align(raw, matrix)
    assert np.allclose(section.xy(aligned), section.xy(section_align.align(raw, matrix[:2])))  # 2 x 3 will do
    with pytest.raises(CourseError, match="registered already"):
        section_align.align(aligned, matrix)
    with pytest.raises(CourseError, match="invertible"):
        section_align.align(raw, np.zeros((3, 3)))
    with pytest.raises(CourseError, match="um per pixel"):
        section_align.align(raw, np.linalg.inv(matrix))  # the wrong direction
    with pytest.raises(CourseError, match="none of .* cells on the H&E"):
        section_align.align(raw, matrix + [[0, 0, 1e6], [0, 0, 0], [0, 0, 0]])
    shifted = section_align.align(raw, matrix + [[0, 0, 150], [0, 0, 0], [0, 0, 0]])
    lost = shifted.attrs["outside"]
    assert lost and len(lost) + shifted.tables["counts"].n_obs == raw.tables["counts"].n_obs
    assert set(shifted.shapes["nuclei"]["cell"]) <= set(shifted.tables["counts"].obs["instance_id"])
    file = tmp_path / "x_he_imagealignment.csv"
    file.write_text("1,2,word\n")
    with pytest.raises(CourseError, match="no table of numbers"):
        section_align.read_alignment(file, dapi_um_px=0.2125)
    np.savetxt(file, np.eye(4), delimiter=",")
    with pytest.raises(CourseError, match="affine"):
        section_align.read_alignment(file, dapi_um_px=0.2125)


def test_two_he_pictures_are_refused(tmp_path):
    outs = copy(tmp_path)
    shutil.copy(outs.parent / "X3_b_he_image.ome.tif", outs.parent / "second_HE.tif")
    with pytest.raises(CourseError, match="2 H&E pictures"):
        readers_xenium.read(outs)


# ---------------------------------------------------------------- the room's door
def test_the_runner_finds_and_opens_the_sections(tmp_path):
    refs = readers.discover(home(), dataset="virtual_xenium", platform="xenium")
    assert [ref.section_id for ref in refs] == list(SECTIONS) and [ref.subject_id for ref in refs] == ["X1", "X2", "X3"]
    assert [ref.section_id for ref in readers.discover(home(), dataset="x")] == list(SECTIONS)  # no platform named
    built = readers.read(refs[1])
    assert built.attrs["reference_file"].endswith("reference.h5ad") and built.attrs["dataset"] == "virtual_xenium"
    assert catalogue.resolve(f"xenium:{home()}")[2] == "xenium"
    assert {"virtual_xenium", "virtual_xenium_null"} <= {item.id for item in catalogue.datasets()}
    table = pd.DataFrame({"section_id": ["X3_b"], "patient": ["P9"], "grade": ["3"]})
    outs = copy(tmp_path)
    table.to_csv(tmp_path / "samples.csv", index=False)
    (ref,) = readers.discover(tmp_path, dataset="x", platform="xenium")
    assert (ref.subject_id, ref.labels) == ("P9", {"grade": "3"})
    assert set(readers.read(ref).tables["counts"].obs["grade"]) == {"3"}
    shutil.copytree(outs, tmp_path / "again" / "X3_b")
    with pytest.raises(CourseError, match="two or more folders"):
        readers.discover(tmp_path, dataset="x", platform="xenium")


def test_sections_are_stored_and_opened_by_spatialdata(tmp_path):
    import spatialdata

    raw = read()
    for name, built in {"raw": raw, "aligned": section_align.align(raw, known().registration["um_to_px"])}.items():
        built.write(tmp_path / f"{name}.zarr")
        again = spatialdata.read_zarr(tmp_path / f"{name}.zarr")
        assert set(again.coordinate_systems) == {"pixel", "um"} and (
            again.tables["counts"].X != built.tables["counts"].X
        ).nnz == 0
        assert again.attrs["registered"] == (name == "aligned")


# ---------------------------------------------------------------- crops
def crop(folder, *, mpp=None, swap=False, size=(120, 200)):
    import anndata as ad
    import cv2

    row, column = np.array([10.0, 50.0, 110.0]), np.array([15.0, 190.0, 60.0])
    if swap:
        row, column = column, row
    obs = pd.DataFrame({"x_pixel": row, "y_pixel": column}, index=["a-1", "b-1", "c-1"])
    table = ad.AnnData(np.array([[1, 0], [2, 3], [0, 4]]), obs=obs, var=pd.DataFrame(index=["A1", "B2"]))
    for part in ("h5ad", "image", "meta"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    table.write_h5ad(folder / "h5ad" / "core.h5ad")
    cv2.imwrite(str(folder / "image" / "core.jpg"), np.full((*size, 3), 230, np.uint8))
    (folder / "meta" / "core.json").write_text(json.dumps({"sample": "core"} | ({"mpp": mpp} if mpp else {})))


def test_a_crop_has_its_rows_in_x_pixel(tmp_path, capsys):
    crop(tmp_path)
    (ref,) = readers.discover(tmp_path, dataset="x", platform="xenium")
    built = readers.read(ref)
    assert section.xy(built).tolist() == [[15, 10], [190, 50], [60, 110]] and built.attrs["mpp"] is None
    assert "microns per pixel" in capsys.readouterr().err and built.coordinate_systems == ["pixel"]
    crop(tmp_path, mpp=0.5)
    assert section.mpp(readers.read(ref)) == 0.5
    crop(tmp_path, swap=True)
    with pytest.raises(CourseError, match="outside the picture"):
        readers.read(ref)
    (tmp_path / "image" / "core.jpg").unlink()
    with pytest.raises(CourseError, match="no picture core.jpg"):
        readers.discover(tmp_path, dataset="x", platform="xenium")


def test_who_knows_the_pixel_size_may_give_it(tmp_path):
    crop(tmp_path / "crop")
    (ref,) = readers.discover(tmp_path / "crop", dataset="x", platform="xenium")
    built = readers_xenium.read_ref(ref, mpp=0.4)
    assert section.mpp(built) == 0.4 and section.check(built) is built
    assert readers_xenium.read_ref(ref, mpp=0.0).attrs["mpp"] is None
    outs = copy(tmp_path / "whole")
    stated = read("X3_b").attrs["mpp"]
    assert readers_xenium.read(outs, mpp=stated * 1.01).attrs["mpp"] == stated
    with pytest.raises(CourseError, match="per pixel given"):
        readers_xenium.read(outs, mpp=stated * 1.2)


def test_what_cannot_be_done_is_said_with_the_reason(tmp_path):
    whole = read()
    can = readers_xenium.unmet({"X3_b": whole}, test=["X3_b"])
    assert set(can.values()) == {""} and len(can) == 3
    assert "another patient" in readers_xenium.unmet({"X3_b": whole})["nuclei and types on the H&E"]
    crop(tmp_path)
    (ref,) = readers.discover(tmp_path, dataset="x", platform="xenium")
    assert all("set MPP" in why for why in readers_xenium.unmet({"core": readers.read(ref)}, test=["core"]).values())
    known = readers_xenium.unmet({"core": readers_xenium.read_ref(ref, mpp=0.5)}, test=["core"])
    assert known == {"registration": "no DAPI picture", "cells on the H&E": "",
                     "nuclei and types on the H&E": "no nucleus outlines"}  # fmt: skip


def test_provenance_needs_neither_picture_nor_pixel_size(tmp_path):
    from helpers.runner_data import Data

    crop(tmp_path)
    here = Data({"DATA": f"xenium:{tmp_path}"})
    line = here.provenance(here.load("core"))
    assert "H&E 200 x 120 px at unknown um/px, 3 cells x 2 genes" in line
    built = read()
    del built.images["he"]
    assert "no H&E" in here.provenance(built)


# ---------------------------------------------------------------- extremes
def keep_cells(outs, number):
    """Leave ``number`` cells in every table of a folder."""
    import h5py
    import scanpy as sc

    from helpers.virtual.xenium_files import write_matrix

    table = sc.read_10x_h5(outs / "cell_feature_matrix.h5", gex_only=False)
    chosen = np.argsort(-table.X.sum(1).A1)[:number]
    names = table.obs_names[np.sort(chosen)]
    part = table[names]
    kind = {"Gene Expression": "gene", "Negative Control Probe": "negative_control_probe",
            "Negative Control Codeword": "negative_control_codeword", "Unassigned Codeword": "unassigned_codeword"}
    kinds = part.var["feature_types"].map(kind).tolist()
    write_matrix(
        outs / "cell_feature_matrix.h5", part.X.tocsr().astype(np.int32), part.var_names, part.var["gene_ids"], kinds,
        names, version="xenium-4.0",
    )  # fmt: skip
    assert h5py.File(outs / "cell_feature_matrix.h5")["matrix/shape"][1] == number
    for stem in ("cells", "cell_boundaries", "nucleus_boundaries"):
        rows = pd.read_parquet(outs / f"{stem}.parquet")
        rows[rows["cell_id"].isin(names)].to_parquet(outs / f"{stem}.parquet")
    return names


def test_one_cell_and_no_nucleus(tmp_path):
    outs = copy(tmp_path)
    (name,) = keep_cells(outs, 1)
    built = readers_xenium.read(outs)
    assert list(built.tables["counts"].obs_names) == [name] and len(built.shapes["nuclei"]) == 1
    assert section_align.align(built, known().registration["um_to_px"]).tables["counts"].n_obs == 1
    pd.read_parquet(outs / "nucleus_boundaries.parquet").iloc[:0].to_parquet(outs / "nucleus_boundaries.parquet")
    none = readers_xenium.read(outs)
    assert "nuclei" not in none.shapes and none.attrs["absent"] == ["nuclei"]


def test_further_stains_beside_dapi_are_left_alone(tmp_path):
    outs = copy(tmp_path, "X2_a")
    folder = outs / "morphology_focus"
    first = section_cells.dapi(readers_xenium.read(outs))[0]
    for number in (1, 2, 3):
        tifffile.imwrite(folder / f"morphology_focus_000{number}.ome.tif", np.zeros_like(first), tile=(256, 256))
    assert np.array_equal(section_cells.dapi(readers_xenium.read(outs))[0], first)


def test_cells_beyond_a_byte_and_a_word(tmp_path):
    """Seventy thousand outlines keep their own numbers (ids never overflow), and none is lost."""
    from helpers.readers_xenium_files import _polygons

    n = 70_000
    corner = np.stack(np.unravel_index(np.arange(n), (280, 250)), 1)[:, None] * 10.0
    ring = corner + np.array([[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]])
    table = pd.DataFrame({"cell_id": np.repeat(np.arange(1, n + 1), 5), "vertex_x": ring[..., 0].ravel(),
                          "vertex_y": ring[..., 1].ravel()})
    table.to_parquet(tmp_path / "cell_boundaries.parquet")
    shapes, owner, mended = _polygons(tmp_path / "cell_boundaries.parquet")
    assert len(shapes) == n and mended == 0 and owner[-1] == str(n) and len(set(owner)) == n
    assert shapes[-1].bounds == (2790.0, 2490.0, 2795.0, 2495.0)

"""Visium HD: vendor folders are read as sections of the contract, in part where asked, and refused with the fix."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import readers, readers_visium_hd, readers_visium_hd_files, runner_data, section
from helpers.messages import CourseError
from tests.unit import make_hd

SIZES = ((2, "bins_2um", "squares_2um"), (8, "counts", "spots"), (16, "bins_16um", "squares_16um"))


def _read(outs, **options):
    return readers_visium_hd.read(outs, **options)


def _kept():
    """Return the 2 um bins under tissue as a mask (152, 152), and all counts as (152, 152, genes)."""
    return make_hd.tissue(), make_hd.fine().toarray().reshape(152, 152, -1) * make_hd.tissue()[..., None]


@pytest.fixture(scope="module")
def whole():
    return _read(make_hd.whole())


# ---------------------------------------------------------------- what is read
def test_the_section_holds_three_sizes_of_bins_and_keeps_the_contract(whole):
    under, counts = _kept()
    assert section.check(whole) is whole
    assert whole.attrs["platform"] == "visium_hd" and whole.attrs["mpp"] == 0.5 and whole.attrs["section_id"] == "T1"
    assert whole.attrs["bin_um"] == whole.attrs["spot_diameter_um"] == 8
    for size, name, shapes in SIZES:
        step = size // 2
        table, frame, side = whole.tables[name], whole.shapes[shapes], 152 // step
        expected = counts.reshape(side, step, side, step, -1).sum((1, 3))
        row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
        assert sparse.isspmatrix_csr(table.X) and table.X.dtype == np.int32
        assert (table.X.toarray() == expected[row, column]).all() and table.X.sum() == counts.sum()
        assert list(table.obs_names[:1]) == [f"s_{2 * step:03d}um_{row[0]:05d}_{column[0]:05d}-1"]
        assert np.allclose(table.obsm["spatial"], np.column_stack([column + 0.5, row + 0.5]) * 4 * step)
        assert (frame.area == (4 * step) ** 2).all() and (frame.geometry.count_coordinates() == 5).all()
        centre = np.column_stack([frame.centroid.x, frame.centroid.y])
        assert np.allclose(centre, table.obsm["spatial"]) and set(table.obs["region"]) == {shapes}
        assert (frame.index == table.obs["instance_id"]).all() and (table.obs["in_tissue"] == 1).all()
    assert whole.tables["bins_2um"].n_obs == under.sum()  # empty ones too; of the main bins only those with a count
    assert (np.asarray(whole.tables["counts"].X.sum(1)) > 0).all()
    assert np.abs(section.image(whole).astype(int) - make_hd.image()).mean() < 2  # JPEG


def test_every_element_lies_in_pixels_and_in_microns(whole):
    import spatialdata

    for name in ("spots", "squares_2um", "squares_16um", "he"):
        pixel, um = (spatialdata.get_extent(whole[name], coordinate_system=word) for word in ("pixel", "um"))
        assert np.allclose(np.array(um["x"]) * 2, pixel["x"]) and np.allclose(np.array(um["y"]) * 2, pixel["y"])
    assert spatialdata.get_extent(whole["he"], coordinate_system="um")["x"] == (0, 304)


def test_the_libraries_own_readers_find_the_same(whole):
    sopa = pytest.importorskip("sopa", reason="left out by LIGHT=1")
    import spatialdata_io

    outs, picture = make_hd.whole() / "outs", make_hd.whole() / "T1_tissue_image.tif"
    for function in (sopa.io.visium_hd, spatialdata_io.visium_hd):
        theirs = function(outs, dataset_id="T1", fullres_image_file=picture, load_segmentations_only=False)
        for size, name, shapes in SIZES:
            ours = whole.tables[name]
            table = theirs.tables[f"square_{size:03d}um"][ours.obs_names]
            assert (table.X != ours.X).nnz == 0 and (table.var_names == ours.var_names).all()
            assert np.allclose(table.obsm["spatial"], ours.obsm["spatial"])
            squares = theirs.shapes[f"T1_square_{size:03d}um"].loc[table.obs["location_id"]]
            assert np.allclose(squares.total_bounds, whole.shapes[shapes].total_bounds)
        pixels = theirs.images["T1_full_image"]["scale0"]["image"].to_numpy()
        assert (np.moveaxis(pixels, 0, 2) == section.image(whole)).all()


INSIDE = ["", "outs", "outs/binned_outputs", "outs/binned_outputs/square_008um", "outs/spatial"]


@pytest.mark.parametrize("inside", INSIDE)
def test_a_folder_at_any_level_is_understood(inside):
    refs = readers.discover(make_hd.whole() / inside, dataset="x", platform="visium_hd")
    assert [(ref.section_id, ref.layout) for ref in refs] == [("T1", "visium hd")]


def test_sections_are_found_among_others_with_their_subjects(tmp_path):
    make_hd.copy(tmp_path / "sections")
    (tmp_path / "sections" / "sections.csv").write_text("section_id,subject_id\nT1,patient seven\n")
    [ref] = readers.discover(tmp_path, dataset="mine")  # no vendor named: told by looking
    assert (ref.platform, ref.subject_id) == ("visium_hd", "patient seven")
    assert readers.skipped(tmp_path) == []
    data = runner_data.Data({"DATA": f"visium_hd:{tmp_path}"})
    assert data.load("T1", crop=(100, 100, 400, 400)).attrs["crop"] == [100, 100, 400, 400]
    assert "bins of 8 um" in data.provenance(data.load("T1"))


def test_folders_of_bins_alone_are_understood_too(tmp_path):
    outs = make_hd.copy(tmp_path)
    (outs / "binned_outputs" / "square_008um").rename(outs / "square_008um")
    (outs / "binned_outputs" / "square_002um").rename(outs / "square_002um")
    for left in sorted((outs / "binned_outputs").rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    (outs / "binned_outputs").rmdir()
    read = _read(outs)
    assert read.tables["counts"].n_obs > 500 and "bins_2um" in read.tables
    assert read.tables["bins_16um"].X.sum() == read.tables["bins_2um"].X.sum()  # summed


def test_squares_are_turned_as_the_array_is(tmp_path):
    outs = make_hd.copy(tmp_path)
    turn = np.deg2rad(7)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]])  # turned and mirrored
    for file in (outs / "binned_outputs").rglob("tissue_positions.parquet"):
        table = pd.read_parquet(file)
        columns = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
        table[columns] = (table[columns].to_numpy() - 304) * 0.8 @ matrix + 304
        table.to_parquet(file, index=False)
    for file in (outs / "binned_outputs").rglob("scalefactors_json.json"):
        facts = json.loads(file.read_text())
        file.write_text(json.dumps({**facts, "microns_per_pixel": facts["microns_per_pixel"] / 0.8}))
    read = _read(outs)
    frame = read.shapes["spots"]
    assert np.allclose(frame.area, (16 * 0.8) ** 2)
    pairs = frame.sindex.query(frame.geometry, predicate="overlaps")  # neighbours touch and do not overlap
    shared = frame.geometry.iloc[pairs[0]].intersection(frame.geometry.iloc[pairs[1]], align=False).area
    assert not len(shared) or shared.max() < 1e-6


# ---------------------------------------------------------------- a part of it
def test_a_crop_is_what_a_cut_of_the_whole_would_be(whole, monkeypatch):
    monkeypatch.setattr(readers_visium_hd_files, "_SLAB", 500)
    box = (101, 150, 303, 421)
    part = _read(make_hd.whole(), crop=box)
    assert section.shape(part) == (271, 202) and part.attrs["crop"] == list(box)
    assert (section.image(part) == section.image(whole)[150:421, 101:303]).all()
    for name, half in (("counts", 8), ("bins_2um", 2), ("bins_16um", 16)):
        every, some = whole.tables[name], part.tables[name]
        x, y = every.obsm["spatial"].T
        inside = (x - half >= 101) & (x + half <= 303) & (y - half >= 150) & (y + half <= 421)
        assert list(some.obs_names) == list(every.obs_names[inside]) and len(some) > 30
        assert (some.X != every.X[inside]).nnz == 0
        assert np.allclose(some.obsm["spatial"] + [101, 150], every.obsm["spatial"][inside])
    low = np.array(part.shapes["spots"].total_bounds)
    assert (low >= 0).all() and low[2] <= 202 and low[3] <= 271
    centre = part.shapes["spots"].centroid
    assert np.allclose(np.column_stack([centre.x, centre.y]), section.xy(part))


def test_only_slabs_with_wanted_bins_are_read(monkeypatch):
    taken = []
    slabs = readers_visium_hd_files._slabs
    monkeypatch.setattr(readers_visium_hd_files, "_SLAB", 300)
    monkeypatch.setattr(readers_visium_hd_files, "_slabs", lambda *a: (taken.append(s) or s for s in slabs(*a)))
    file = make_hd.whole() / "outs/binned_outputs/square_002um" / readers_visium_hd_files.MATRIX
    place = readers_visium_hd_files.positions(file.parent)
    table = readers_visium_hd_files.bin_matrix(file, place.index[1000:1010])
    assert table.n_obs == 10 and len(taken) <= 2 and list(table.obs_names) == list(place.index[1000:1010])


def test_a_crop_over_the_edge_is_cut_and_one_outside_refused(capsys):
    part = _read(make_hd.whole(), crop=(-50, 400.5, 300, 5000))
    assert section.shape(part) == (208, 300) and "crop cut to" in capsys.readouterr().err


@pytest.mark.parametrize("crop, word", [
    ((700, 0, 900, 100), "outside the picture"), ((0, 0, 20, 20), "no bin under tissue"),
    ((300, 300, 315, 315), "no whole bin"), ((5, 5, 1, 9), "x0 < x1"), ((1, 2, 3), "x0 < x1"),
])  # fmt: skip
def test_a_crop_without_bins_is_refused(crop, word):
    with pytest.raises(CourseError, match=word):
        _read(make_hd.whole(), crop=crop)


def test_a_table_of_too_many_bins_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(readers_visium_hd, "MAX_BINS", 5000)
    assert "bins_2um" not in _read(make_hd.whole()).tables
    assert "set a crop" in capsys.readouterr().err


def test_missing_and_unusual_sizes_are_summed(tmp_path, whole, capsys):
    import shutil

    outs = make_hd.copy(tmp_path)
    shutil.rmtree(outs / "binned_outputs" / "square_008um")
    read = _read(outs)
    assert "summed from those of 2 um" in capsys.readouterr().err
    ours, vendor = read.tables["counts"], whole.tables["counts"]
    assert sorted(ours.obs_names) == sorted(vendor.obs_names)
    assert (ours[vendor.obs_names].X != vendor.X).nnz == 0
    assert np.allclose(ours[vendor.obs_names].obsm["spatial"], vendor.obsm["spatial"])
    assert (read.shapes["spots"].area == 256).all()
    wide = _read(make_hd.whole(), bin_um=32)
    inside = (vendor.obs[["array_row", "array_col"]] < 36).all(axis=1).to_numpy()  # 9 whole bins of 32 um on 304
    assert wide.tables["counts"].X.sum() == vendor.X[inside].sum() and (wide.shapes["spots"].area == 64**2).all()
    assert {"bins_2um", "bins_16um"} <= set(wide.tables)
    with pytest.raises(CourseError, match="multiple of these"):
        _read(make_hd.whole(), bin_um=7)


# ---------------------------------------------------------------- pictures
def test_without_the_full_picture_the_error_says_where_to_put_it(tmp_path, capsys):
    outs = make_hd.copy(tmp_path)
    picture = outs.parent / "T1_tissue_image.tif"
    aside = tmp_path / "elsewhere.tif"
    picture.rename(aside)
    with pytest.raises(CourseError, match="no full-resolution picture") as error:
        _read(outs)
    assert str(outs.parent) in error.value.fix and "hires=True" in error.value.fix
    assert _read(outs, image=aside).attrs["image"] == "full"
    small = _read(outs, hires=True)
    assert small.attrs["image"] == "hires" and small.attrs["image_scale"] == 0.5 and small.attrs["mpp"] == 1.0
    assert "nuclei cannot be told apart" in capsys.readouterr().err
    assert np.allclose(small.tables["counts"].obsm["spatial"][0] % 8, 4) and section.shape(small) == (304, 304)
    part = _read(outs, hires=True, crop=(101, 101, 401, 401))
    x = (part.tables["counts"].obs["array_col"] + 0.5).to_numpy() * 8
    left = round(101 * 0.5)
    assert np.allclose(part.tables["counts"].obsm["spatial"][:, 0], x - left)
    with pytest.raises(CourseError, match="no such file"):
        _read(outs, image=tmp_path / "none.tif")
    with pytest.raises(CourseError, match="px"):
        _read(outs, image=outs / "spatial" / "tissue_lowres_image.png")


def test_a_picture_that_does_not_fit_is_not_taken(tmp_path):
    import cv2

    outs = make_hd.copy(tmp_path)
    (outs.parent / "T1_tissue_image.tif").unlink()
    cv2.imwrite(str(outs.parent / "other.png"), make_hd.image()[:500])
    with pytest.raises(CourseError, match="other.png does not fit"):
        _read(outs)
    place = outs / "microscope_image"
    place.mkdir()
    cv2.imwrite(str(place / "slide.png"), make_hd.image()[:, :, ::-1])
    assert (section.image(_read(outs)) == make_hd.image()).all()


@pytest.mark.parametrize("options", [
    {"tile": (128, 128), "compression": "jpeg"}, {"rowsperstrip": 16, "compression": "deflate"},
    {"planarconfig": "separate", "rowsperstrip": 64}, {"bigtiff": True},
])  # fmt: skip
def test_a_region_of_any_tiff_is_decoded_alone(tmp_path, options):
    import tifffile

    image, planar = make_hd.image(), options.get("planarconfig") == "separate"
    file = tmp_path / "slide.btf"
    tifffile.imwrite(file, np.moveaxis(image, 2, 0) if planar else image, photometric="rgb", **options)
    part = readers_visium_hd_files.open_region(file, (30, 200, 230, 250))
    assert part.shape == (50, 200, 3)
    assert np.abs(part.astype(int) - image[200:250, 30:230]).max() <= (20 if "tile" in options else 0)


# ---------------------------------------------------------------- what is refused
def _factors(outs, **changes):
    for file in (outs / "binned_outputs").rglob("scalefactors_json.json"):
        facts = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


@pytest.mark.parametrize("changes, word", [
    ({"microns_per_pixel": None}, "no microns_per_pixel"), ({"microns_per_pixel": 0}, "microns_per_pixel = 0"),
    ({"microns_per_pixel": 0.27}, "um apart"), ({"tissue_hires_scalef": "x"}, "cannot be read"),
    ({"bin_size_um": 8}, "bin_size_um"),
])  # fmt: skip
def test_scale_factors_must_be_there_and_agree_with_the_bins(tmp_path, changes, word):
    outs = make_hd.copy(tmp_path)
    _factors(outs, **changes)
    with pytest.raises(CourseError, match=word):
        _read(outs)


@pytest.mark.parametrize("gone, word", [
    ("spatial/scalefactors_json.json", "no scalefactors"), ("spatial/tissue_positions.parquet", "no tissue_positions"),
])  # fmt: skip
def test_a_missing_file_is_named(tmp_path, gone, word):
    outs = make_hd.copy(tmp_path)
    (outs / "binned_outputs" / "square_002um" / gone).unlink()
    with pytest.raises(CourseError, match=word):
        _read(outs)


@pytest.mark.parametrize("name", ["spatial/tissue_positions.parquet", readers_visium_hd_files.MATRIX])
def test_a_damaged_file_is_refused(tmp_path, name):
    outs = make_hd.copy(tmp_path)
    file = outs / "binned_outputs" / "square_008um" / name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CourseError, match="cannot be read"):
        _read(outs)


def test_bins_of_another_run_and_missing_matrices_are_refused(tmp_path):
    outs = make_hd.copy(tmp_path)
    file = outs / "binned_outputs/square_008um/spatial/tissue_positions.parquet"
    table = pd.read_parquet(file)
    table.assign(barcode="x" + table["barcode"]).to_parquet(file, index=False)
    with pytest.raises(CourseError, match="none of the"):
        _read(outs)
    for matrix in (outs / "binned_outputs").rglob(readers_visium_hd_files.MATRIX):
        matrix.unlink()
    with pytest.raises(CourseError, match="without filtered_feature_bc_matrix"):
        _read(outs)


def test_an_option_of_another_platform_is_refused():
    [ref] = readers.discover(make_hd.whole(), dataset="x")
    with pytest.raises(CourseError, match="option 'qv'"):
        readers.read(ref, qv=20)


def test_repeated_symbols_are_made_unique_in_every_table(tmp_path, capsys):
    import h5py

    outs = make_hd.copy(tmp_path)
    for matrix in (outs / "binned_outputs").rglob(readers_visium_hd_files.MATRIX):
        with h5py.File(matrix, "r+") as h5:
            names = h5["matrix/features/name"][:]
            names[3] = names[2]
            h5["matrix/features/name"][...] = names
    read = _read(outs)
    assert "1 repeated gene names made unique (GENE2)" in capsys.readouterr().err
    for name in ("counts", "bins_2um", "bins_16um"):
        assert list(read.tables[name].var_names[2:4]) == ["GENE2", "GENE2-1"]


# ---------------------------------------------------------------- Space Ranger 4's cells
def test_vendor_cells_are_noted_and_read_when_asked_for(tmp_path, capsys, whole):
    outs = make_hd.copy(tmp_path)
    xy = make_hd.add_vendor_cells(outs)
    plain = _read(outs)
    assert "cells=True" in capsys.readouterr().err and "vendor_cells" not in plain.tables
    assert (plain.tables["counts"].X != whole.tables["counts"].X).nnz == 0
    read = _read(outs, cells=True)
    table = read.tables["vendor_cells"]
    assert table.n_obs == 12 and table.obs_names[0] == "cellid_000000001-1"
    assert np.allclose(table.obsm["spatial"], xy) and (read.shapes["vendor_outlines"].area == 144).all()
    part = _read(outs, cells=True, crop=(200, 200, 300, 400)).tables["vendor_cells"]
    inside = xy[:, 0] < 300
    assert 0 < part.n_obs == inside.sum() and np.allclose(part.obsm["spatial"], xy[inside] - 200)
    (outs / "segmented_outputs" / "cell_segmentations.geojson").write_text('{"features": [{}]}')
    with pytest.raises(CourseError, match="cannot be read"):
        _read(outs, cells=True)
    (outs / "segmented_outputs" / "cell_segmentations.geojson").unlink()
    with pytest.raises(CourseError, match="without cell_segmentations"):
        _read(outs, cells=True)
    with pytest.raises(CourseError, match="no segmented_outputs"):
        _read(make_hd.whole(), cells=True)


def test_cells_alone_are_not_taken_for_bins(tmp_path):
    import shutil

    outs = make_hd.copy(tmp_path)
    make_hd.add_vendor_cells(outs)
    shutil.rmtree(outs / "binned_outputs")
    with pytest.raises(CourseError, match="vendor's cells"):
        _read(outs)


# ---------------------------------------------------------------- as any other section
def test_squares_move_with_their_spots(whole):
    new = section.xy(whole)[:, ::-1]
    moved = section.move_spots(whole, new)
    centre = moved.shapes["spots"].centroid
    assert np.allclose(np.column_stack([centre.x, centre.y]), new)
    assert np.allclose(whole.shapes["spots"].centroid.x, section.xy(whole)[:, 0])  # the old one stays
    kept = section.keep_spots(whole, list(section.counts(whole).obs_names[5:9]))
    assert len(kept.shapes["spots"]) == kept.tables["counts"].n_obs == 4

"""Readers: every layout comes back as written, every fault in the input is named and refused."""

import gzip
import json
import os

import cv2
import numpy as np
import pandas as pd
import pytest

from helpers import readers, readers_files, section
from helpers.messages import CourseError
from tests.unit import make_vendor as make


def only(folder, **options):
    refs = readers.discover(folder, dataset="test", **options)
    assert len(refs) == 1
    return refs[0]


def refused(folder, said, **options):
    """The folder's only section is refused, with these words and the name of a file."""
    with pytest.raises(CourseError, match=said) as caught:
        readers.read(only(folder, **options))
    assert caught.value.file and caught.value.fix
    return str(caught.value)


# ---------------------------------------------------------------- legacy ST
def test_spacell_layout(tmp_path):
    array = make.write_spacell(tmp_path)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "names.tsv").write_text("sample_name\tisolate\tage\tbreed\nCN51_C2_2\t794\tp70\tWT\n")
    ref = only(tmp_path, platform="st")
    assert (ref.section_id, ref.subject_id, ref.platform, ref.labels) == (
        "CN51_C2_2", "794", "st", {"age": "p70", "breed": "WT"})  # fmt: skip
    read = readers.read(ref)
    table = section.counts(read)
    np.testing.assert_allclose(section.xy(read), (array - 1) * 20, atol=1e-6)
    assert section.mpp(read) == pytest.approx(10.0) and "200 um" in read.attrs["mpp_source"]
    assert (table.obs["age"] == "p70").all() and (table.obs["subject_id"] == "794").all()
    np.testing.assert_array_equal(table.X.toarray(), make.counts(len(array)))
    assert table.X.dtype.kind == "i" and section.alignment_score(read) > 0.02


def test_samples_that_prefix_each_other(tmp_path):
    make.write_spacell(tmp_path, "L6CN51_E1")
    make.write_spacell(tmp_path, "L6CN51_E1_2")
    make.write_spacell(tmp_path, "CN51_E1_2")
    refs = {ref.section_id: ref.files for ref in readers.discover(tmp_path, dataset="test")}
    assert list(refs) == ["CN51_E1_2", "L6CN51_E1", "L6CN51_E1_2"]
    for name, files in refs.items():
        assert files["counts"].name == f"{name}_stdata_aligned_counts_IDs.txt"
    assert refs["L6CN51_E1_2"]["image"] == refs["L6CN51_E1"]["image"] != refs["CN51_E1_2"]["image"]


def test_missing_partners_are_said(tmp_path):
    make.write_spacell(tmp_path)
    make.save(tmp_path / "image" / "CN94_D2_HE.jpg", make.tissue(34, 32))
    make.write_counts(tmp_path / "cm" / "CN95_D1_stdata_aligned_counts_IDs.txt", ["5x5"], make.counts(1))
    said = readers.skipped(tmp_path)
    assert any("CN94_D2: an image" in line for line in said) and any("CN95_D1: counts" in line for line in said)
    assert [ref.section_id for ref in readers.discover(tmp_path, dataset="test")] == ["CN51_C2_2"]


def test_her2st_layout_and_leftovers(tmp_path, capsys):
    pixels = make.write_her2st(tmp_path, drop=3)
    (tmp_path / "ST-pat").mkdir()
    array = np.rint(pixels / 20 + 1)
    pd.DataFrame({"Row.names": "r", "x": array[:-1, 0] + 0.02, "y": array[:-1, 1] - 0.02, "pixel_x": 1, "pixel_y": 1,
                  "label": "adipose tissue"}).to_csv(
        tmp_path / "ST-pat" / "B2_labeled_coordinates.tsv", sep="\t", index=False)  # fmt: skip
    ref = only(tmp_path)
    read = readers.read(ref)
    table = section.counts(read)
    assert (ref.section_id, ref.subject_id) == ("B2", "B")
    np.testing.assert_allclose(section.xy(read), pixels)
    assert section.mpp(read) == pytest.approx(10.0, rel=1e-3)
    assert table.uns["join"]["without_counts"] == 3 and "3 positions without counts" in capsys.readouterr().err
    assert table.obs["label"].notna().sum() == len(pixels) - 1 and pd.isna(table.obs["label"].iloc[-1])


def test_a_further_section_is_found(tmp_path):
    make.write_her2st(tmp_path, "B2")
    make.write_her2st(tmp_path, "G3")
    assert [ref.section_id for ref in readers.discover(tmp_path, dataset="her2st")] == ["B2", "G3"]


def test_reduced_image_is_noticed(tmp_path, capsys):
    pixels = make.write_her2st(tmp_path)
    path = only(tmp_path).files["image"]
    small = make.tissue(34 * 10, 32 * 10)
    small[:60] = 0  # a cut-out picture on black
    small[:, :30] = 0
    make.save(path.with_suffix(".png"), small)
    path.unlink()
    read = readers.read(only(tmp_path))
    np.testing.assert_allclose(section.xy(read), pixels * 0.5, atol=1e-6)
    assert section.mpp(read) == pytest.approx(20.0, rel=1e-3) and "reduced" in read.attrs["mpp_source"]
    assert (section.image(read)[:50] == 255).all() and "reduced" in capsys.readouterr().err


def test_2k_array_with_ensembl_ids(tmp_path, capsys):
    pixels = make.write_2k(tmp_path)
    ref = only(tmp_path)
    read = readers.read(ref)
    table = section.counts(read)
    assert ref.platform == "st2k" and table.n_obs == len(pixels)
    np.testing.assert_allclose(section.xy(read), pixels)
    assert section.mpp(read) == pytest.approx(141.42 / np.hypot(10, 11), rel=1e-3)
    assert list(table.var_names) == ["Gapdh", "Gapdh-1", "Actb", "Mbp", "Snap25", "ENSMUSG00000000005.3"]
    assert table.var["gene_id"].iloc[1] == "ENSMUSG00000000001.3"
    assert "1 of 6 Ensembl ids" in capsys.readouterr().err


def test_plain_pair_in_any_folder(tmp_path):
    array = make.write_spacell(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    next((tmp_path / "a" / "cm").iterdir()).rename(tmp_path / "mine" / "my table.tsv")
    next((tmp_path / "a" / "image").iterdir()).rename(tmp_path / "mine" / "slide 7.jpg")
    ref = only(tmp_path / "mine", platform="st")
    assert ref.section_id == "my table" and section.counts(readers.read(ref)).n_obs == len(array)


@pytest.mark.parametrize(
    "options",
    [{"transposed": True}, {"ends": "\r\n"}, {"separator": ","}, {"separator": ";"}, {"separator": " "}],
)
def test_dialects_of_a_count_table(tmp_path, options):
    array = make.write_spacell(tmp_path, **options)
    read = readers.read(only(tmp_path))
    np.testing.assert_array_equal(section.counts(read).X.toarray(), make.counts(len(array)))
    assert list(section.counts(read).var_names) == make.GENES


@pytest.mark.parametrize("change", ["gzip", "bom", "comma", "quotes", "no corner"])
def test_more_dialects(tmp_path, change):
    array = make.write_spacell(tmp_path)
    path = only(tmp_path).files["counts"]
    text = path.read_text()
    if change == "gzip":  # told by content: the name stays
        path.write_bytes(gzip.compress(text.encode()))
    elif change == "bom":
        path.write_text("\ufeff" + text.lstrip("\t"))  # no corner: the mark sits on the first gene's name
    elif change == "comma":
        lines = text.replace(".", ",").splitlines()
        path.write_text("\n".join([lines[0]] + [line.replace("\t3", "\t3,0") for line in lines[1:]]) + "\n")
    elif change == "quotes":
        path.write_text("\n".join("\t".join(f'"{f}"' for f in line.split("\t")) for line in text.splitlines()))
    elif change == "no corner":
        path.write_text(text.lstrip("\t"))
    read = readers.read(only(tmp_path))
    np.testing.assert_array_equal(section.counts(read).X.toarray(), make.counts(len(array)))
    np.testing.assert_allclose(section.xy(read), (array - 1) * 20, atol=1e-6)
    assert list(section.counts(read).var_names) == make.GENES


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda v: v - 2, "values such as -"),
        (lambda v: np.log1p(v).round(3), "raw counts|count matrix"),
        (lambda v: v * 0, "matrix of zeros"),
        (lambda v: v[:0], "without rows|no complete section"),
    ],
)
def test_what_is_not_counts_is_refused(tmp_path, edit, said):
    names = [f"{x}x{y}" for x, y in make.st_grid()]
    make.write_spacell(tmp_path)
    path = only(tmp_path).files["counts"]
    make.write_counts(path, names, edit(make.counts(len(names))))
    refused(tmp_path, said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9x9\t1\t2", "2 values in line"),
        ("9x9\t1\t2\t3\t4\t5\tmany", "'many' in line"),
        ("end\t1\t2\t3\t4\t5\t6", "'end'"),
    ],
)
def test_damaged_row_is_named(tmp_path, line, said):
    make.write_spacell(tmp_path)
    path = only(tmp_path).files["counts"]
    path.write_text(path.read_text() + line + "\n")
    refused(tmp_path, said)


def test_repeated_and_empty_genes_and_spots(tmp_path, capsys):
    array = make.st_grid()
    values = make.counts(len(array))
    values[:, 4] = 0
    values[5] = 0
    make.write_her2st(tmp_path, values=values, genes=["A", "B", "A", "C", "EMPTY", "D"])
    table = section.counts(readers.read(only(tmp_path)))
    assert list(table.var_names) == ["A", "B", "A-1", "C", "D"] and table.n_obs == len(array) - 1
    assert list(table.uns["dropped"]["genes"]) == ["EMPTY"] and len(table.uns["dropped"]["spots"]) == 1
    error = capsys.readouterr().err
    assert "1 repeated gene names" in error and "1 genes, 1 spots" in error


def test_one_spot_and_one_gene(tmp_path):
    make.write_spacell(tmp_path)
    path = only(tmp_path).files["counts"]
    make.write_counts(path, ["12x20"], [[1, 2, 3, 4, 5, 6]])
    assert section.counts(readers.read(only(tmp_path))).shape == (1, 6)
    make.write_counts(path, ["12x20", "13x20"], [[1], [2]], ["ERBB2"])
    assert section.counts(readers.read(only(tmp_path))).shape == (2, 1)


def test_ensembl_ids_without_a_map_are_refused(tmp_path):
    make.write_her2st(tmp_path, genes=[f"ENSG0000099999{i}" for i in range(6)])
    assert "ENSG00000999990" in refused(tmp_path, "Ensembl ids")


def test_positions_of_another_array_and_off_the_image(tmp_path):
    make.write_her2st(tmp_path)
    path = only(tmp_path).files["positions"]
    good = pd.read_csv(path, sep="\t")
    for change, said in (
        ({"x": good["x"] + 100}, "no spot in common"),
        ({"pixel_x": good["pixel_y"], "pixel_y": good["pixel_x"]}, "um/px along x"),
        ({"pixel_x": ["?"] * len(good)}, "no number in line 2"),
    ):
        good.assign(**change).to_csv(path, sep="\t", index=False)
        refused(tmp_path, said)


def test_spots_outside_a_picture_that_is_not_cut_to_the_frame(tmp_path):
    make.write_her2st(tmp_path)
    make.save(only(tmp_path).files["image"], make.tissue(34 * 12, 32 * 20))
    refused(tmp_path, "outside the image")


def test_coordinates_beyond_the_frame_need_positions(tmp_path):
    make.write_spacell(tmp_path)
    path = only(tmp_path).files["counts"]
    make.write_counts(path, ["40x20", "41x20"], make.counts(2))
    refused(tmp_path, "no table of positions")


def test_picture_not_cut_to_the_frame(tmp_path):
    make.write_spacell(tmp_path)
    make.save(only(tmp_path).files["image"], make.tissue(500, 640))
    refused(tmp_path, "along x but")


# ---------------------------------------------------------------- Visium
@pytest.mark.parametrize(
    ("positions", "header"),
    [
        ("tissue_positions_list.csv", False),  # Space Ranger 1
        ("tissue_positions.csv", True),  # Space Ranger 2
        ("tissue_positions.csv", False),  # header lost
        ("tissue_positions_list.csv", True),
        ("tissue_positions.parquet", True),
    ],
)
@pytest.mark.parametrize("matrix", ["h5", "mtx.gz", "mtx"])
def test_space_ranger_layouts(tmp_path, positions, header, matrix):
    table = make.write_visium(tmp_path, positions=positions, header=header, matrix=matrix)
    ref = only(tmp_path)
    read = readers.read(ref)
    here = table[table["in_tissue"] == 1]
    assert (ref.section_id, ref.subject_id, ref.platform) == ("P1_a", "P1", "visium")
    assert list(section.counts(read).obs_names) == list(here["barcode"])  # first and last spot kept
    np.testing.assert_allclose(section.xy(read), here[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    assert section.mpp(read) == pytest.approx(2.0, rel=1e-3) and read.attrs["image"] == "full"
    np.testing.assert_array_equal(section.counts(read).X.toarray(), make.counts(len(here)))
    assert section.counts(read).var["gene_id"].iloc[1] == "ENSG00000000001" and section.alignment_score(read) > 0.02


def test_two_positions_files(tmp_path):
    table = make.write_visium(tmp_path)
    spatial = only(tmp_path).files["spatial"]
    table.to_csv(spatial / "tissue_positions_list.csv", index=False, header=False)
    readers.read(only(tmp_path))
    table.assign(pxl_row_in_fullres=table["pxl_row_in_fullres"] + 5).to_csv(
        spatial / "tissue_positions_list.csv", index=False, header=False
    )
    refused(tmp_path, "tissue_positions.csv and tissue_positions_list.csv that differ")


@pytest.mark.parametrize(("there", "scale"), [(("hires", "lowres"), 0.5), (("lowres",), 0.1), (("full",), 1.0)])
def test_images_missing(tmp_path, capsys, there, scale):
    table = make.write_visium(tmp_path, images=there)
    read = readers.read(only(tmp_path))
    here = table[table["in_tissue"] == 1]
    np.testing.assert_allclose(section.xy(read), here[["pxl_col_in_fullres", "pxl_row_in_fullres"]] * scale)
    assert section.mpp(read) == pytest.approx(2.0 / scale, rel=1e-3)
    assert ("warning" in capsys.readouterr().err) == (scale < 1)


def test_no_image_at_all(tmp_path):
    make.write_visium(tmp_path, images=())
    refused(tmp_path, "no usable image")


def test_black_hires_and_foreign_picture_are_not_used(tmp_path, capsys):
    make.write_visium(tmp_path, images=("hires", "lowres"))
    make.save(tmp_path / "P1_a" / "outs" / "spatial" / "tissue_hires_image.png", np.zeros((330, 410, 3), np.uint8))
    make.save(tmp_path / "P1_a" / "another.jpg", make.tissue(700, 300))
    read = readers.read(only(tmp_path))
    assert read.attrs["image"] == "lowres" and "flat colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tissue_hires_scalef": None}, "no tissue_hires_scalef"),
        ({"spot_diameter_fullres": None}, "no spot_diameter_fullres"),
        ({"tissue_lowres_scalef": 0}, "tissue_lowres_scalef = 0"),
        ({"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.5}, "swapped"),
        ({"tissue_hires_scalef": 0.4}, "sizes differ"),
        ({"spot_diameter_fullres": 3250}, "spot diameter"),  # um per pixel 100 times off
        ({"spot_diameter_fullres": "wide"}, "cannot be read"),
    ],
)
def test_scale_factors(tmp_path, change, said):
    make.write_visium(tmp_path)
    path = only(tmp_path).files["spatial"] / "scalefactors_json.json"
    scales = {name: value for name, value in (json.loads(path.read_text()) | change).items() if value is not None}
    path.write_text(json.dumps(scales))
    refused(tmp_path, said)
    path.unlink()
    refused(tmp_path, "no scalefactors_json.json")


def test_barcodes_of_another_run(tmp_path):
    table = make.write_visium(tmp_path)
    path = only(tmp_path).files["spatial"] / "tissue_positions.csv"
    table.assign(barcode=table["barcode"].str.replace("-1", "-2")).to_csv(path, index=False)
    refused(tmp_path, "0 of .* barcodes")
    table.iloc[:-150].to_csv(path, index=False)
    refused(tmp_path, r"\d+ of .* barcodes")


def test_pixels_swapped_or_rescaled(tmp_path):
    table = make.hexagons()
    swapped = table.rename(columns={"pxl_row_in_fullres": "a", "pxl_col_in_fullres": "b"}).assign(
        pxl_row_in_fullres=lambda t: t["b"], pxl_col_in_fullres=lambda t: t["a"]
    )[list(table)]
    make.write_visium(tmp_path / "swap", table=swapped)
    refused(tmp_path / "swap", "x and y exchanged")
    flipped = table.assign(pxl_col_in_fullres=820 - table["pxl_col_in_fullres"])
    make.write_visium(tmp_path / "flip", table=flipped)
    make.save(tmp_path / "flip" / "P1_a" / "P1_a.jpg", make.tissue(660, 820)[:, ::-1])
    assert readers.read(only(tmp_path / "flip")).attrs["mirrored"]
    half = table.assign(pxl_row_in_fullres=table["pxl_row_in_fullres"] / 2)
    make.write_visium(tmp_path / "half", table=half)
    refused(tmp_path / "half", "along array columns")


def test_positions_with_a_lost_column_or_number(tmp_path):
    table = make.write_visium(tmp_path)
    path = only(tmp_path).files["spatial"] / "tissue_positions.csv"
    table.drop(columns="array_row").to_csv(path, index=False)
    refused(tmp_path, "5 columns")
    table.astype({"pxl_col_in_fullres": object}).assign(pxl_col_in_fullres="").to_csv(path, index=False)
    refused(tmp_path, "no number in row")


def test_damaged_matrix(tmp_path):
    make.write_visium(tmp_path)
    path = only(tmp_path).files["matrix"]
    path.write_bytes(path.read_bytes()[:3000])
    refused(tmp_path, "cannot be read")


def test_visium_genes_and_values(tmp_path):
    n = int((make.hexagons()["in_tissue"] == 1).sum())
    make.write_visium(tmp_path / "log", values=np.log1p(make.counts(n)))
    refused(tmp_path / "log", "count matrix")
    make.write_visium(tmp_path / "twice", genes=["A", "A", "B", "C", "D", "E"])
    assert "A-1" in section.counts(readers.read(only(tmp_path / "twice"))).var_names
    make.write_visium(tmp_path / "one", genes=["ERBB2"])
    assert section.counts(readers.read(only(tmp_path / "one"))).n_vars == 1


def test_one_visium_spot(tmp_path, capsys):
    make.write_visium(tmp_path, table=make.hexagons()[make.hexagons()["in_tissue"] == 1].iloc[[40]])
    read = readers.read(only(tmp_path))
    assert section.counts(read).n_obs == 1 and section.mpp(read) == pytest.approx(2.0)
    assert "too few spots" in capsys.readouterr().err


def test_incomplete_visium_folders_are_said(tmp_path):
    make.write_visium(tmp_path, "good")
    make.write_visium(tmp_path, "bad")
    (tmp_path / "bad" / "outs" / "filtered_feature_bc_matrix.h5").unlink()
    (tmp_path / "hd" / "binned_outputs" / "square_008um" / "spatial").mkdir(parents=True)
    (tmp_path / "hd" / "binned_outputs" / "square_008um" / "spatial" / "x.json").write_text("{}")
    assert [ref.section_id for ref in readers.discover(tmp_path, dataset="d")] == ["good"]
    said = " ".join(readers.skipped(tmp_path))
    assert "bad: spatial/ but no filtered" in said and "Visium HD" in said


def test_metadata_names_the_patient_of_a_visium_section(tmp_path):
    make.write_visium(tmp_path, "S7")
    (tmp_path / "sections.csv").write_text("section_id,patient,stage\nS7,Anna,II\n")
    ref = only(tmp_path)
    assert ref.subject_id == "Anna" and ref.labels == {"stage": "II"}


# ---------------------------------------------------------------- names and paths
@pytest.mark.parametrize("name", ["my section", "Schnitt_ä", "切片1", "a.b-c+d"])
def test_names_that_are_fine(tmp_path, name):
    make.write_visium(tmp_path, name)
    assert readers.read(only(tmp_path)).attrs["section_id"] == name


@pytest.mark.parametrize("name", ["<script>", "a..b", "semi;colon", " blank"])
def test_names_that_are_refused(tmp_path, name):
    make.write_visium(tmp_path, name)
    with pytest.raises(CourseError, match="section name"):
        readers.discover(tmp_path, dataset="d")


def test_paths(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, said in (("nowhere", "cannot be opened"), ("loop", "cannot be opened"), ("file", "cannot be opened"),
                       ("empty", "no complete section")):  # fmt: skip
        with pytest.raises(CourseError, match=said):
            readers.discover(tmp_path / path, dataset="d")
    with pytest.raises(CourseError, match="platform"):
        readers.discover(tmp_path / "empty", dataset="d", platform="vsium")


def test_loop_inside_and_read_only_folder(tmp_path):
    make.write_visium(tmp_path)
    (tmp_path / "P1_a" / "again").symlink_to(tmp_path, target_is_directory=True)
    spatial = only(tmp_path).files["spatial"]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    os.chmod(spatial, 0o555)
    try:
        readers.read(only(tmp_path))
    finally:
        os.chmod(spatial, 0o755)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_colours_are_rgb(tmp_path, suffix):
    import tifffile

    red = np.zeros((64, 80, 3), np.uint8)
    red[..., 0] = 250
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, red, photometric="rgb") if suffix == ".tif" else make.save(path, red)
    found = readers_files.read_image(path)
    assert found.shape == (64, 80, 3) and np.abs(found.astype(int) - red).max() <= 4
    assert readers_files.image_size(path) == (64, 80)


def test_tiled_tiff_stays_on_disk(tmp_path):
    import tifffile

    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", tile=(128, 128), compression="zlib")
    lazy = readers_files.read_image(tmp_path / "a.tif")
    assert not isinstance(lazy, np.ndarray)
    np.testing.assert_array_equal(np.asarray(lazy[100:200, 50:150]), picture[100:200, 50:150])


def test_a_section_over_a_tiled_tiff(tmp_path):
    import tifffile

    make.write_visium(tmp_path, images=("hires", "lowres"))
    tifffile.imwrite(tmp_path / "P1_a" / "P1_a_image.tif", make.tissue(660, 820), photometric="rgb", tile=(128, 128))
    read = readers.read(only(tmp_path))
    assert read.attrs["image"] == "full"
    np.testing.assert_array_equal(section.image(read), make.tissue(660, 820))


def test_grey_and_transparent_pictures_are_converted(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((20, 30), 77, np.uint8))
    assert (readers_files.read_image(tmp_path / "grey.png") == 77).all()
    clear = np.zeros((20, 30, 4), np.uint8)
    clear[:, :10] = (10, 20, 200, 255)
    cv2.imwrite(str(tmp_path / "clear.png"), clear)
    found = readers_files.read_image(tmp_path / "clear.png")
    assert tuple(found[0, 0]) == (200, 20, 10) and tuple(found[0, 20]) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["16-bit png", "16-bit tif", "float tif", "cmyk jpg", "cmyk tif", "text"])
def test_pictures_that_are_refused(tmp_path, kind):
    import tifffile
    from PIL import Image

    path = tmp_path / f"a.{kind.split()[-1] if ' ' in kind else 'jpg'}"
    if kind == "16-bit png":
        cv2.imwrite(str(path), np.full((20, 30, 3), 3000, np.uint16))
    elif kind.endswith("tif") and "cmyk" not in kind:
        tifffile.imwrite(path, np.ones((20, 30, 3), np.uint16 if "16" in kind else np.float32), photometric="rgb")
    elif kind == "cmyk tif":
        tifffile.imwrite(path, np.ones((20, 30, 4), np.uint8), photometric="separated")
    elif kind == "cmyk jpg":
        Image.new("CMYK", (30, 20)).save(path)
    else:
        path.write_text("not a picture")
    with pytest.raises(CourseError) as caught:
        readers_files.read_image(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_truncated_pictures_are_refused(tmp_path, suffix):
    import tifffile

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, noise, photometric="rgb", tile=(64, 64)) if suffix == ".tif" else make.save(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CourseError, match="cannot be read"):
        np.asarray(readers_files.read_image(path))


def test_huge_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    monkeypatch.setattr(readers_files, "MAX_WHOLE_PX", 1000)
    make.save(tmp_path / "a.png", make.tissue(40, 40))
    with pytest.raises(CourseError, match="tiled TIFF"):
        readers_files.read_image(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 500)  # Pillow's own protection stays switched on
    with pytest.raises(CourseError, match="at most 1,000 px"):
        readers_files.read_image(tmp_path / "a.png")


def test_a_section_can_be_stored_and_opened_again(tmp_path):
    """What the readers add to the table must survive h5ad."""
    import anndata

    make.write_her2st(tmp_path)
    table = section.counts(readers.read(only(tmp_path)))
    table.write_h5ad(tmp_path / "counts.h5ad")
    again = anndata.read_h5ad(tmp_path / "counts.h5ad")
    assert list(again.uns["join"]["without_position"]) == [] and again.shape == table.shape

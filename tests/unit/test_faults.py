"""Faults that no other test makes: each is a CourseError with file, finding and fix, and nothing is left behind."""

import gzip
import json
import subprocess
import sys
import warnings
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest

from conftest import write_notebook
from helpers import catalogue, download, execute, readers, readers_files, runner, settings, stain, tiles, tissue
from helpers import section as sec
from helpers.messages import CourseError
from tests.unit import make, make_vendor


def refused(function, *, file, said):
    """Return the error: of the right class, with all three parts, naming the file."""
    with pytest.raises(CourseError, match=said) as caught:
        function()
    error = caught.value
    assert error.seen and error.expected and error.fix and error.file and str(file) in error.file
    return error


def visium(folder, **options):
    make_vendor.write_visium(folder, **options)
    (ref,) = readers.discover(folder, dataset="d")
    table = make_vendor.hexagons()
    return ref, table["barcode"][table["in_tissue"] == 1].tolist()


# ---------------------------------------------------------------- faults 12 to 16: matrices of Space Ranger
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (np.log1p, "raw counts"),
        (lambda values: -values, "raw counts"),
        (lambda values: values * 0, "matrix of zeros"),
        (lambda values: values + 0.5, "raw counts"),
    ],
)
def test_what_is_not_counts_in_an_h5(tmp_path, edit, said):  # fault 13
    ref, barcodes = visium(tmp_path)
    make_vendor.write_h5(ref.files["matrix"], edit(make_vendor.counts(len(barcodes))), barcodes)
    refused(lambda: readers.read(ref), file=ref.files["matrix"], said=said)


def test_an_h5_without_spots_or_cut_short(tmp_path):  # fault 14
    ref, barcodes = visium(tmp_path)
    whole = ref.files["matrix"].read_bytes()
    make_vendor.write_h5(ref.files["matrix"], np.zeros((0, 6)), [])
    refused(lambda: readers.read(ref), file=ref.files["matrix"], said="shape")
    for size in (0, len(whole) // 2):
        ref.files["matrix"].write_bytes(whole[:size])
        refused(lambda: readers.read(ref), file=ref.files["matrix"], said="cannot be read")


@pytest.mark.parametrize("prefix", ["ENSG", "ENSMUSG", "ENSRNOG", "ENSDARG"])
def test_ensembl_ids_of_any_species(tmp_path, prefix):  # fault 12
    ref, barcodes = visium(tmp_path)
    ids = [f"{prefix}{number:011d}" for number in range(6)]
    make_vendor.write_h5(ref.files["matrix"], make_vendor.counts(len(barcodes)), barcodes, ids)
    assert ids[0] in refused(lambda: readers.read(ref), file=ref.files["matrix"], said="Ensembl ids").seen


def test_one_visium_gene_and_the_share_of_one_spot(tmp_path):  # faults 15 and 16
    ref, barcodes = visium(tmp_path)
    make_vendor.write_h5(ref.files["matrix"], make_vendor.counts(len(barcodes), 1), barcodes, ["ERBB2"])
    section = readers.read(ref)
    assert sec.counts(section).shape == (len(barcodes), 1)
    on = sec.keep_spots(section, [sec.counts(section).obs_names[len(barcodes) // 2]])
    assert sec.spots_on_tissue(on) == 1.0  # a single spot has no spacing, but it does lie on tissue
    assert sec.alignment_score(on) == 0.0


# ---------------------------------------------------------------- faults 18 and 34: damaged text and pictures
@pytest.mark.parametrize("place", [20, 700])
def test_a_compressed_table_damaged_inside(tmp_path, place):
    make_vendor.write_her2st(tmp_path)
    (ref,) = readers.discover(tmp_path, dataset="d")
    path = ref.files["counts"]
    damaged = bytearray(path.read_bytes())
    damaged[place : place + 20] = bytes(255 - byte for byte in damaged[place : place + 20])
    path.write_bytes(damaged)
    refused(lambda: readers.read(ref), file=path, said="cannot be read|in line|values|column names")
    try:
        readers.discover(tmp_path, dataset="d")
    except CourseError as error:
        assert str(tmp_path) in error.file


def test_a_table_of_positions_without_rows(tmp_path):
    make_vendor.write_her2st(tmp_path)
    (ref,) = readers.discover(tmp_path, dataset="d")
    path = ref.files["positions"]
    path.write_text(path.read_text().split("\n")[0] + "\n")
    refused(lambda: readers.read(ref), file=path, said="without rows")


def test_a_tile_damaged_inside_is_found_when_it_is_read(tmp_path):
    import tifffile

    ref, _ = visium(tmp_path, images=("hires", "lowres"))
    path = tmp_path / "P1_a" / "P1_a.tif"
    grain = np.random.default_rng(0).integers(-9, 9, (660, 820, 3))
    picture = np.clip(make_vendor.tissue(660, 820) + grain, 0, 255).astype(np.uint8)
    tifffile.imwrite(path, picture, photometric="rgb", tile=(256, 256), compression="zlib")
    assert sec.window(readers.read(ref), 0, 0, 820, 660).shape == (660, 820, 3)
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[-1]
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 400] = b"\x00" * 400
    path.write_bytes(damaged)
    section = readers.read(ref)
    refused(lambda: sec.window(section, 700, 600, 100, 50), file=path, said="cannot be decoded")
    refused(lambda: sec.thumbnail(section), file=path, said="cannot be decoded")


# ---------------------------------------------------------------- fault 30: numbers of another meaning
@pytest.mark.parametrize("kind", ["miniswhite", "palette", "cielab", "cmyk"])
def test_a_tiff_whose_numbers_mean_something_else(tmp_path, kind):
    import tifffile
    from PIL import Image

    path, grey = tmp_path / "a.tif", np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    if kind == "miniswhite":
        tifffile.imwrite(path, grey, photometric="miniswhite")
    elif kind == "palette":
        Image.fromarray(grey).convert("P", palette=Image.ADAPTIVE).save(path)
    else:
        Image.new({"cielab": "LAB", "cmyk": "CMYK"}[kind], (30, 20)).save(path)
    refused(lambda: readers_files.read_image(path), file=path, said=kind if kind != "cmyk" else "CMYK")


def test_a_jpeg_inside_a_tiff_keeps_its_colour(tmp_path):
    from PIL import Image

    colour = (200, 90, 160)
    Image.new("RGB", (64, 64), colour).save(tmp_path / "a.tif", compression="jpeg")
    read = np.asarray(readers_files.read_image(tmp_path / "a.tif"))
    assert np.abs(read[32, 32].astype(int) - colour).max() <= 4


# ---------------------------------------------------------------- faults 25 to 29, 32 and 37: nothing to work with
def test_a_section_without_a_usable_tile_is_refused():
    section = make.disc_section()
    refused(lambda: tiles.cut(section, side_um=5000.0), file="made by hand", said="no tile of 5000 um inside")
    table = tiles.assess(section, side_um=5000.0)
    assert set(table["reason"]) == {"border"}
    refused(lambda: tiles.usable(table, file="here"), file="here", said=f"{len(table)} border")
    table.loc[table.index[:2], "reason"] = "ok"
    assert tiles.usable(table).sum() == 2
    assert len(tiles.cut(section, side_um=50.0, which=[])[0]) == 0  # asking for none is no fault


@pytest.mark.parametrize("value", [255, 128, 0])
def test_a_blank_slide_is_named_and_refused(value):
    section = make.disc_section(image=np.full((600, 600, 3), value, np.uint8))

    def prepare():
        small, scale = sec.thumbnail(section)
        white = stain.white_point(small, file="slide.jpg")
        inside = tissue.mask(small, mpp=2 / scale, white_point=white)
        return stain.sample(lambda *box: sec.window(section, *box), sec.shape(section), inside, file="slide.jpg")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        assert 0 <= sec.spots_on_tissue(section) <= 1
        assert sec.alignment_score(section) <= 0
        refused(prepare, file="slide.jpg", said="no brighter|without tissue")


# ---------------------------------------------------------------- fault 33: a picture larger than the memory allowed
_STREAM = """
import json, sys
import cv2, dask, numpy as np, tifffile
from helpers import readers_files, runner_watch, section as sec, stain, tiles, tissue
from tests.unit import make
path, side = sys.argv[1], int(sys.argv[2])
dask.config.set(num_workers=2)
def peak():
    return runner_watch.own_peak_mb()
def run(picture, side):
    points = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 200.0 + side / 2 - 800
    section = sec.build(
        image=picture, counts=make.counts_table(64), xy_px=points, mpp=0.5, mpp_source="stated", platform="visium",
        section_id="A", subject_id="A", dataset="d", source="s",
    )
    small, scale = sec.thumbnail(section, 1200)
    white = stain.white_point(small)
    inside = tissue.mask(small, mpp=0.5 / scale, white_point=white)
    pixels = stain.sample(lambda *box: sec.window(section, *box), sec.shape(section), inside)
    fit = stain.fit(pixels, white_point=white)
    covered = tissue.coverage(inside, scale, sec.xy(section), tiles.side_px(section, 100))
    table = tiles.assess(section, side_um=100, coverage=covered, white_point=white,
                         stains=(fit.vectors, fit.max_concentration))
    return inside.mean(), int((table["reason"] == "ok").sum())
lazy = readers_files.read_image(path)
run(np.asarray(lazy[side // 2 - 1024 : side // 2 + 1024, side // 2 - 1024 : side // 2 + 1024]), 2048)  # loads libraries
before = peak()
share, good = run(lazy, side)
print(json.dumps({"share": share, "good": good, "extra_mb": peak() - before, "peak_mb": peak()}))
"""


def test_a_picture_larger_than_the_memory_it_may_use(tmp_path):
    import tifffile

    side, step, path = 12_288, 512, tmp_path / "large.tif"
    stream = settings.rng(0, "large")
    cells = cv2.resize(stream.normal(0, 1, (16, 16)), (step, step), interpolation=cv2.INTER_CUBIC)[..., None]
    amounts = [0.5 + sign * cells + stream.normal(0, 0.2, cells.shape) for sign in (0.5, -0.3)]
    density = sum(np.clip(a, 0, 2) * v for a, v in zip(amounts, np.array([[0.65, 0.70, 0.29], [0.27, 0.79, 0.5]])))
    tile, glass = (240 * np.exp(-density)).astype(np.uint8), np.full((step, step, 3), 240, np.uint8)
    count = side // step
    within = range(count // 4, 3 * count // 4)
    parts = (tile if i in within and j in within else glass for i in range(count) for j in range(count))
    tifffile.imwrite(path, parts, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", tile=(step, step),
                     compression="zlib")  # fmt: skip
    command = [sys.executable, "-c", _STREAM, str(path), str(side)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=settings.ROOT)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert 0.2 < found["share"] < 0.32 and found["good"] > 50
    assert found["extra_mb"] < 200  # the picture alone has 453 MB
    assert found["peak_mb"] < 1500


# ---------------------------------------------------------------- faults 50 and 51: cache and archives
def test_a_warm_cache_needs_no_network(tmp_path, monkeypatch):
    item = next(item for item in catalogue.datasets() if item.kind == "files")
    small = catalogue.File("a/b.txt", 5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    fake = catalogue.Dataset(**{**vars(item), "files": (small,)})
    monkeypatch.setattr(catalogue, "dataset", lambda name: fake)
    monkeypatch.setattr(catalogue, "download", lambda *_, **__: pytest.fail("the network was asked"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("hello")
    assert catalogue.fetch(item.id, folder=tmp_path) == tmp_path


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "password"])
def test_an_archive_damaged_inside_leaves_nothing(tmp_path, kind):
    import tarfile

    content = tmp_path / "content.bin"
    content.write_bytes(np.random.default_rng(0).integers(0, 20, 60_000).astype(np.uint8).tobytes())
    archive = tmp_path / f"a.{'zip' if kind == 'password' else kind}"
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(content, "content.bin")
    else:
        with tarfile.open(archive, f"w:{kind.split('.')[1]}") as packed:
            packed.add(content, "content.bin")
    damaged = bytearray(archive.read_bytes())
    if kind == "password":
        damaged[6] |= 1  # the flag "encrypted", in the member and in the directory
        damaged[damaged.rindex(b"PK\x01\x02") + 8] |= 1
    else:
        middle = len(damaged) // 2
        damaged[middle : middle + 200] = bytes(255 - byte for byte in damaged[middle : middle + 200])
    archive.write_bytes(damaged)
    refused(lambda: download.unpack(archive, tmp_path / "out"), file=archive, said="cannot be unpacked")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "content.bin"])


# ---------------------------------------------------------------- fault 58: a section that is not there
def test_a_misspelt_template_is_refused(tmp_path):
    make_vendor.write_visium(tmp_path, "P1_a")
    make_vendor.write_visium(tmp_path, "P2_a")
    data = runner.Data({"DATA": f"visium:{tmp_path}", "TEMPLATE": "P3_a", "TEST": "P1_a"})
    refused(lambda: data.pick("TEMPLATE"), file=tmp_path, said="'P3_a' in TEMPLATE; expected one of P1_a, P2_a")
    refused(lambda: data.load("P3_a"), file=tmp_path, said="'P3_a'")
    assert runner.Data({**data.parameters, "TEMPLATE": "P1_a"}).pick("TEMPLATE") == "P1_a"
    assert runner.Data({**data.parameters, "TEMPLATE": ""}).pick("TEMPLATE") == "P2_a"  # training comes first


# ---------------------------------------------------------------- fault 62: records of another version
_RUNS = ["{}", "[]", "null", '{"kind": "complete"}', '{"kind": "complete", "fingerprint": ""}']
_RESULTS = ["{}", "[]", '{"products": [], "verdicts": {}}', '{"products": {}, "verdicts": [{}]}']


@pytest.mark.parametrize("record", _RUNS)
@pytest.mark.parametrize("results", _RESULTS)
def test_records_of_another_version_are_done_again(tmp_path, record, results):
    books, out = tmp_path / "notebooks", tmp_path / "out"
    write_notebook(books, "01_x", "run.finish()")
    folder = out / "01_x"
    folder.mkdir(parents=True)
    made_from = execute.plan(["01"], where=books, out=out)[0].fingerprint
    for name in ("01_x.ipynb", "01_x.html"):
        (folder / name).write_text("{}")
    (folder / "run.json").write_text(record.replace('""', f'"{made_from}"'))
    (folder / "results.json").write_text(results)
    assert execute.plan(["01"], where=books, out=out)[0].state in ("missing", "stale")


# ---------------------------------------------------------------- fault 63: an h5ad that is open elsewhere
def test_an_open_h5ad_is_replaced_whole_and_its_reader_keeps_the_old_one(tmp_path):
    import anndata as ad

    write_notebook(tmp_path / "notebooks", "01_x")
    book = execute.plan(["01"], where=tmp_path / "notebooks", out=tmp_path / "out")[0].notebook
    run = runner.Run(book, {"OUT": str(tmp_path / "out")})
    old, new = (make.counts_table(20, seed=seed) for seed in (0, 1))
    path = run.product("counts", old.write_h5ad, file="counts.h5ad")
    opened = ad.read_h5ad(path, backed="r")
    try:
        run.product("counts", new.write_h5ad, file="counts.h5ad")
        np.testing.assert_array_equal(opened.X[:].toarray(), old.X.toarray())
    finally:
        opened.file.close()
    np.testing.assert_array_equal(ad.read_h5ad(path).X.toarray(), new.X.toarray())
    backed = ad.read_h5ad(path, backed="r")
    try:  # even from itself: the old file is read while the new one is written beside it
        run.product("counts", backed.to_memory().write_h5ad, file="counts.h5ad")
    finally:
        backed.file.close()
    np.testing.assert_array_equal(ad.read_h5ad(path).X.toarray(), new.X.toarray())
    assert [item.name for item in run.out.iterdir()] == ["counts.h5ad"]


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("size", [(2051, 2050), (600, 515)])
def test_a_thumbnail_is_as_bright_as_its_slide(size):
    stream = settings.rng(0, "thumbnail", *size)
    picture = stream.integers(200, 256, (*size, 3)).astype(np.uint8)
    section = make.disc_section(
        image=picture, counts=make.counts_table(1), xy_px=np.array([[100.0, 100.0]]), section_id="S"
    )
    for longest in (100, 500):  # each level of the pyramid used to lose half a grey value
        small, _ = sec.thumbnail(section, longest)
        assert abs(small.mean() - picture.mean()) < 0.1


def test_pandas_and_gzip_agree_with_the_reader(tmp_path):
    make_vendor.write_her2st(tmp_path)
    (ref,) = readers.discover(tmp_path, dataset="d")
    with gzip.open(ref.files["counts"]) as stream:
        known = pd.read_csv(stream, sep="\t", index_col=0)
    table = sec.counts(readers.read(ref))
    np.testing.assert_array_equal(table.to_df().loc[known.index, known.columns], known)


def test_spots_a_pixel_apart_have_tiles_a_pixel_apart():
    points = np.repeat(np.arange(10.5, 20.5)[:, None], 2, axis=1)
    assert (np.diff(tiles.boxes(points, 10), axis=0) == 1).all()  # halves are not rounded to even numbers


# ---------------------------------------------------------------- fault 55: killed while a folder is replaced
def test_killed_while_a_folder_is_removed_leaves_the_new_one_whole(tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks", "01_x")
    book = execute.plan(["01"], where=tmp_path / "notebooks", out=tmp_path / "out")[0].notebook
    run = runner.Run(book, {"OUT": str(tmp_path / "out")})

    def writer(text):
        def write(path):
            path.mkdir()
            for name in "abc":
                (path / name).write_text(text)

        return write

    store = run.product("store", writer("old"), file="store.zarr")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.shutil, "rmtree", killed)
        run.product("store", writer("new"), file="store.zarr")
    assert {path.read_text() for path in store.iterdir()} == {"new"} and len(list(store.iterdir())) == 3
    runner.Run(book, {"OUT": str(tmp_path / "out")})  # a new start clears the rest
    assert [path.name for path in run.out.iterdir()] == ["store.zarr"]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.65])
def test_white_painted_round_a_scan_is_not_glass(share):
    stream, glass = settings.rng(0, "padding"), (230, 220, 235)
    picture = np.clip(np.array(glass) + stream.normal(0, 1, (400, 400, 3)).round(), 0, 255).astype(np.uint8)
    picture[:, : int(share * 400)] = 255
    assert np.abs(stain.white_point(picture) - glass).max() <= 1
    over = np.clip(253 + stream.normal(0, 2, (400, 400, 3)).round(), 0, 255).astype(np.uint8)  # clipped, not painted
    assert (over == 255).all(2).mean() > 0.005 and stain.white_point(over).min() >= 252


# ---------------------------------------------------------------- fault 59: one bad section among several
def test_one_bad_section_leaves_the_others(tmp_path, capsys):
    for name in ("P1_a", "P2_a", "P3_a"):
        make_vendor.write_visium(tmp_path, name)
    (tmp_path / "P2_a" / "outs" / "filtered_feature_bc_matrix.h5").write_bytes(b"")
    data = runner.Data({"DATA": f"visium:{tmp_path}"})
    found = data.each(lambda ref: sec.counts(data.load(ref)).n_obs)
    assert list(found) == ["P1_a", "P3_a"] and list(data.left_out) == ["P2_a"]
    assert "left out: section P2_a: " in capsys.readouterr().err and "cannot be read" in data.left_out["P2_a"]

    def refuse(ref):
        raise CourseError("nothing", "something", "look")

    refused(lambda: data.each(refuse), file=tmp_path, said="nothing in section P1_a")
    with pytest.raises(ZeroDivisionError):  # a mistake in the code is no bad section
        data.each(lambda ref: 1 / 0)


def test_a_gated_data_set_says_where_to_ask():  # fault 52
    with pytest.raises(CourseError) as caught:
        catalogue.fetch("hest1k")
    item = catalogue.dataset("hest1k")
    assert item.address in caught.value.fix and str(item.folder) in caught.value.fix and "gated" in caught.value.fix

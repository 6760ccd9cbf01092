"""Whole slides: every format reads alike, bad files are refused, a killed run goes on to the same bytes."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from helpers import section as sec
from helpers import section_grid, settings, tiles, tissue, wsi, wsi_mpp, wsi_open, wsi_plan, wsi_store, wsi_synthetic
from helpers.messages import CourseError

ENDING = {"tiff": "tif", "svs": "svs", "ome": "ome.tif", "flat": "tif"}


def colour(cut):
    """A stand-in for an encoder: the mean colour of each tile, float32 (n, 3)."""
    return cut.reshape(len(cut), -1, 3).mean(1).astype(np.float32)


def double(embeddings):
    """A stand-in for a model."""
    return {"mean": 2 * embeddings, "sd": embeddings[:, :2]}


OPTIONS = {"encode": colour, "predict": double, "tile_um": 50.0, "out_px": 32, "tissue": tissue.mask, "chunk": 40}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """The same slide in four formats."""
    folder = tmp_path_factory.mktemp("slides")
    write = wsi_synthetic.write
    return {kind: write(folder / f"{kind}.{end}", side_px=3000, kind=kind) for kind, end in ENDING.items()}


@pytest.fixture(scope="module")
def whole(slides, tmp_path_factory):
    """A run that was never stopped."""
    with wsi.open_slide(slides["tiff"]) as slide:
        return wsi.stream(slide, tmp_path_factory.mktemp("whole") / "s.zarr", **OPTIONS)


def digest(folder):
    """Names and contents of all files below a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize("kind", ENDING)
def test_each_format_gives_the_same_picture_and_pixel_size(slides, kind):
    with wsi.open_slide(slides["flat"]) as flat, wsi.open_slide(slides[kind]) as slide:
        assert slide.shape == (3000, 3000) and slide.mpp == pytest.approx(0.5, rel=1e-3) and slide.name == kind
        assert slide.backend == {"tiff": "openslide", "svs": "openslide"}.get(kind, "tifffile")
        one, other = (each.read(900, 1100, 640, 500).astype(float) for each in (flat, slide))
        assert one.shape == (500, 640, 3) and one.std() > 20, "a region without tissue shows nothing"
        assert np.abs(one - other).mean() < 6, "colours differ by more than JPEG's loss"
        assert len(slide.levels) == (1 if kind == "flat" else 2)
        if kind != "flat":
            averaged = one.reshape(125, 4, 160, 4, 3).mean((1, 3))
            here, beside = (slide.read(225 + dx, 275, 160, 125, level=1) for dx in (0, 1))
            here, beside = (np.abs(each - averaged).mean() for each in (here, beside))
            assert here < 0.6 * beside, "a level is misplaced"


def test_what_the_formats_say_themselves(slides):
    with tifffile.TiffFile(slides["svs"]) as tiff:
        assert tiff.is_svs
    with tifffile.TiffFile(slides["ome"]) as tiff:
        assert tiff.is_ome and len(tiff.series[0].levels) == 2
    with wsi.open_slide(slides["svs"]) as svs, wsi.open_slide(slides["ome"]) as ome:
        assert "aperio" in svs.mpp_source and "OME" in ome.mpp_source


def test_a_region_outside_is_refused(slides):
    with wsi.open_slide(slides["tiff"]) as slide:
        for box in ((-1, 0, 5, 5), (2990, 0, 11, 5), (0, 0, 0, 5)):
            with pytest.raises(CourseError, match="region"):
                slide.read(*box)


PICTURE = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)


def tiff(folder, picture=PICTURE, **options):
    """Write a small TIFF of 0.5 um/px."""
    options = {"photometric": "rgb", "tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": 3} | options
    tifffile.imwrite(folder / "x.tif", picture, metadata=None, **options)
    return folder / "x.tif"


@pytest.mark.parametrize(
    ("picture", "options", "said"),
    [
        (np.dstack([PICTURE, PICTURE[..., :1]]), {"photometric": "separated"}, "CMYK"),
        (PICTURE.astype(np.uint16) * 200, {}, "uint16"),
        (PICTURE.astype(np.float32) / 255, {}, "float32"),
        (255 - PICTURE[..., 0], {"photometric": "miniswhite"}, "miniswhite"),
        (np.stack([PICTURE[..., 0]] * 5), {"photometric": "minisblack"}, "axes"),
    ],
)
def test_colours_that_would_change_silently_are_refused(tmp_path, picture, options, said):
    with pytest.raises(CourseError, match=said):
        wsi.open_slide(tiff(tmp_path, picture, **options))


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "openslide"),
        ({"tile": None, "rowsperstrip": 16, "compression": "zlib"}, "tifffile"),
        ({"compression": 33005}, "tifffile"),
        ({"planarconfig": "separate"}, "tifffile"),
        ({"extrasamples": ["unassalpha"]}, "openslide"),
        ({"photometric": "minisblack"}, "openslide"),
    ],
    ids=["tiled", "strips", "JPEG2000", "planes", "alpha", "grey"],
)
def test_kinds_of_tiff_that_can_be_read_exactly(tmp_path, options, backend):
    picture, expected = PICTURE, PICTURE
    if "extrasamples" in options:
        picture = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
        picture[:50, :, 3] = 0
        expected = np.where((picture[..., 3:] == 0), np.uint8(255), PICTURE)
    if "planarconfig" in options:
        picture = np.ascontiguousarray(np.moveaxis(PICTURE, 2, 0))
    if options.get("photometric") == "minisblack":
        picture, expected = PICTURE[..., 0], np.repeat(PICTURE[..., :1], 3, 2)
    if options.get("compression") == 33005:
        options = {**options, "compressionargs": {"level": 0}}
    with wsi.open_slide(tiff(tmp_path, picture, **options)) as slide:
        assert slide.backend == backend and slide.mpp == pytest.approx(0.5)
        assert slide.striped == (options.get("tile", 1) is None)
        assert np.array_equal(slide.read(30, 20, 200, 150), expected[20:170, 30:230])


def test_a_vendor_s_file_that_tifffile_cannot_follow_is_left_to_openslide(tmp_path):
    """NDPI: a TIFF by its first bytes, with longer addresses."""
    import cv2

    picture = np.full((272, 272, 3), 200, np.uint8)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 17])[1].tobytes()
    tags = [(271, 2, 0, "Hamamatsu", True), (65420, 4, 1, 1, True), (65421, 11, 1, 20.0, True), (65424, 9, 1, 0, True)]
    options = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg", "rowsperstrip": 272,
               "resolution": (2e4, 2e4), "resolutionunit": 3, "metadata": None, "extratags": tags}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ndpi", iter([jpeg]), shape=picture.shape, dtype=np.uint8, **options)
    assert len(tifffile.TiffFile(tmp_path / "a.ndpi").pages) == 0
    with wsi.open_slide(tmp_path / "a.ndpi") as slide:
        assert (slide.mpp, slide.mpp_source, slide.shape) == (0.5, "the hamamatsu header", (272, 272))


def test_a_tile_that_is_not_stored_is_glass(tmp_path):
    """Scanners leave out empty tiles; tifffile would paint them black."""
    options = {"photometric": "rgb", "tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": 3}
    for name, backend in (("a.ome.tif", "tifffile"), ("b.tif", "openslide")):
        parts = (None if k % 2 else PICTURE[:128, :128] for k in range(4))
        more = {"metadata": {"axes": "YXS"}, "subifds": 1} if backend == "tifffile" else {"metadata": None}
        with tifffile.TiffWriter(tmp_path / name, ome=backend == "tifffile") as writer:
            writer.write(parts, shape=(256, 256, 3), dtype=np.uint8, compression="zlib", **options, **more)
            if backend == "tifffile":  # a pyramid of OME, of which openslide sees one level
                writer.write(PICTURE[:128, :128], subfiletype=1, **options, metadata=None)
        with wsi.open_slide(tmp_path / name) as slide:
            assert slide.backend == backend
            block = slide.read(0, 0, 256, 256)
        assert (block[:, 128:] == 255).all() and np.array_equal(block[:128, :128], PICTURE[:128, :128])


def test_damaged_files_are_refused(tmp_path, slides):
    for kind, path in slides.items():
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CourseError):
            wsi.open_slide(cut)
    (tmp_path / "text.svs").write_text("not found")
    with pytest.raises(CourseError, match="neither"):
        wsi.open_slide(tmp_path / "text.svs")
    with pytest.raises(CourseError, match="no such file"):
        wsi.open_slide(tmp_path / "none.svs")
    path = tiff(tmp_path, compression="zlib")
    with tifffile.TiffFile(path) as held:
        start, length = held.pages[0].dataoffsets[4], held.pages[0].databytecounts[4]
    spoilt = bytearray(path.read_bytes())
    spoilt[start : start + length] = b"\0" * length
    path.write_bytes(spoilt)
    with wsi.open_slide(path) as slide, pytest.raises(CourseError, match="cannot be decoded"):
        slide.read(0, 0, 400, 300)


def test_bombs_are_refused(tmp_path, monkeypatch):
    from helpers import wsi_tiff

    path = tiff(tmp_path)
    monkeypatch.setattr(wsi_tiff, "LARGEST_BLOCK", 100 * 100)
    with pytest.raises(CourseError, match="tiles of 128"):
        wsi.open_slide(path)
    monkeypatch.setattr(wsi_tiff, "LARGEST_BLOCK", 8 * 400 * 20)
    with pytest.raises(CourseError, match="pieces of"):
        wsi.open_slide(tiff(tmp_path, tile=None, compression="zlib", rowsperstrip=300))
    monkeypatch.setattr(wsi_tiff, "LARGEST_SIDE", 200)
    with pytest.raises(CourseError, match="at most 200"):
        wsi.open_slide(path)


# ---------------------------------------------------------------- pixel size
def test_a_missing_pixel_size_is_refused_with_the_way_to_give_it(tmp_path):
    path = tiff(tmp_path, resolution=None, resolutionunit=None)
    with pytest.raises(CourseError, match="--mpp"):
        wsi.open_slide(path)
    with wsi.open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25 and slide.mpp_source == "given"
    with pytest.raises(CourseError, match="352.8"):  # 72 dots an inch: a screen's
        wsi.open_slide(tiff(tmp_path, resolution=(72, 72), resolutionunit=2))


def test_contradicting_pixel_sizes_are_refused(tmp_path):
    path = tiff(tmp_path, resolution=(2e4, 1e4))
    with pytest.raises(CourseError, match="square"):
        wsi.open_slide(path)
    with wsi.open_slide(path, mpp=0.5) as slide:
        assert "not the 0.5 given" in slide.notes[0]
    ome = {"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}}
    options = {"photometric": "rgb", "tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": 3}
    tifffile.imwrite(tmp_path / "y.ome.tif", PICTURE, **options, **ome)
    with pytest.raises(CourseError, match="0.25 um/px by OME PhysicalSize, 0.5 by the TIFF resolution"):
        wsi.open_slide(tmp_path / "y.ome.tif")


def test_units_and_absurd_sizes():
    assert wsi_mpp._ome('PhysicalSizeX="250" PhysicalSizeXUnit="nm"', "X") == 0.25
    assert wsi_mpp._ome('PhysicalSizeX="1" PhysicalSizeXUnit="furlong"', "X") is None
    assert wsi_mpp._per_unit((1, 1), 25400.0) is None and wsi_mpp._per_unit((0, 1), 25400.0) is None
    assert wsi_mpp._per_unit(3.5, 25400.0) is None and wsi_mpp._per_unit((20000, 1), 10000.0) == 0.5
    with pytest.raises(CourseError, match="2500 mm"):
        wsi_mpp.decide([("a header", 25.0, 25.0)], shape=(100_000, 50_000))
    with pytest.raises(CourseError, match="pixel size"):
        wsi_mpp.decide([], given=float("nan"), shape=(10, 10))


# ---------------------------------------------------------------- tiles
def test_the_tiles_are_those_of_a_section_on_a_grid(slides):
    """Pixel for pixel what notebook 04 cuts, whatever the order in which it is read."""
    with wsi.open_slide(slides["flat"]) as slide:
        picture, scale = wsi.thumbnail(slide)
        chosen = wsi.plan(slide, tile_um=37.0, pitch_um=53.0, tissue=tissue.mask)
        cut, brightness = wsi.cut(slide, chosen, np.arange(len(chosen.xy_px)), out_px=48)
        mask = tissue.mask(picture, mpp=slide.mpp / scale)
        grid = section_grid.on_grid(slide.read(0, 0, 3000, 3000), mpp=slide.mpp, pitch_um=53.0, tile_um=37.0, mask=mask,
                                    white=255)  # fmt: skip
    theirs = tiles.cut(grid, side_um=37.0, out_px=48)[1]
    table = sec.counts(grid).obs
    order = {name: k for k, name in enumerate(f"{row}x{column}" for row, column in chosen.grid)}
    mine = [order[name] for name in table.index]
    assert len(mine) == len(chosen.xy_px) > 50
    assert np.array_equal(chosen.xy_px[mine], sec.xy(grid)) and np.array_equal(cut[mine], theirs)
    np.testing.assert_allclose(brightness[mine], table["brightness"], atol=1e-3)


def test_neighbours_are_read_together_and_strips_row_by_row(slides, monkeypatch):
    monkeypatch.setattr(wsi_plan, "BLOCK_PX", 500)
    for kind in ("tiff", "flat"):
        with wsi.open_slide(slides[kind]) as slide:
            chosen = wsi.plan(slide, tile_um=50.0)
            for group in np.unique(chosen.group):
                spread = np.ptp(chosen.grid[chosen.group == group], axis=0)
                assert (spread < 5).all() if kind == "tiff" else spread[0] == 0
            assert (np.diff(np.flatnonzero(np.diff(chosen.group)), prepend=-1) > 1).all(), "a group is torn apart"


def test_a_lower_level_shows_the_same_tiles(slides):
    with wsi.open_slide(slides["tiff"]) as slide:
        chosen = wsi.plan(slide, tile_um=60.0, tissue=tissue.mask)
        which = np.arange(len(chosen.xy_px))
        full, light = wsi.cut(slide, chosen, which, out_px=30)
        quick, _ = wsi.cut(slide, chosen, which, out_px=30, level=1)
    assert np.abs(full.astype(float) - quick).mean() < 8
    wrong = np.abs(full.astype(float) - np.roll(quick, 1, axis=0)).mean()
    assert wrong > 12, "any two tiles would look alike"
    np.testing.assert_allclose(light, full.mean((1, 2, 3)), atol=1)


def test_a_tile_of_a_lower_level_keeps_its_centre():
    """Sides and corners are rounded to the level's pixels; both together moved the centre by up to 0.75 of them."""

    def regions(x0, y0, width, height, level):
        rows, columns = np.mgrid[y0 : y0 + height, x0 : x0 + width]
        return np.dstack([columns, rows, rows]).astype(np.uint8)

    levels = ((1000, 1000, 1.0), (250, 250, 4.0))
    slide = wsi_open.Slide(Path("x"), (1000, 1000), levels, 0.5, "", (), "array", False, "", regions)
    chosen = wsi.plan(slide, tile_um=51.0, pitch_um=17.3)
    which = np.arange(len(chosen.xy_px))
    centre = wsi.cut(slide, chosen, which, out_px=26, level=1)[0][..., :2].mean((1, 2)) + 0.5
    assert np.abs(centre - chosen.xy_px / 4).max() <= 0.5 + 1e-6


def test_a_thumbnail_that_reaches_beyond_the_slide_is_in_its_place():
    """Eleven pixels of a hundred over a slide of 1,001: the mask is not squeezed into the slide."""
    mask = np.zeros((11, 11), bool)
    mask[:, 9] = True
    slide = wsi.from_array(np.zeros((1001, 1001, 3), np.uint8), mpp=0.5)
    small = np.zeros((11, 11, 3), np.uint8)
    chosen = wsi.plan(slide, tile_um=50.0, picture=(small, 0.01), tissue=lambda *_, **__: mask)
    assert set(chosen.grid[:, 1]) == {9} and (chosen.tissue == 1).all()


@pytest.mark.parametrize("kind", ["tiff", "flat"])
def test_the_thumbnail_is_the_slide_made_small(slides, kind, monkeypatch):
    monkeypatch.setattr(wsi_plan, "BLOCK_PX", 700)
    with wsi.open_slide(slides[kind]) as slide:
        small, scale = wsi.thumbnail(slide, um=8.0, max_px=250)
        whole = slide.read(0, 0, 3000, 3000)
    assert max(small.shape) <= 250 and scale == pytest.approx(small.shape[0] / 3000, rel=0.01)
    step = round(1 / scale)
    rows = 3000 // step * step
    expected = whole[:rows, :rows].reshape(rows // step, step, rows // step, step, 3).mean((1, 3))
    assert np.abs(small[: len(expected), : len(expected)] - expected).mean() < (4 if kind == "tiff" else 0.6)


def test_a_slide_without_tissue_or_with_absurd_tiles_is_refused(slides):
    blank = wsi.from_array(np.full((1600, 1600, 3), 240, np.uint8), mpp=0.5)
    with pytest.raises(CourseError, match="a blank or a grey slide"):
        wsi.plan(blank, tile_um=50.0, tissue=tissue.mask)
    with pytest.raises(CourseError, match="positive"):
        wsi.plan(blank, tile_um=0)
    with pytest.raises(CourseError, match="at least one tile"):
        wsi.plan(blank, tile_um=900.0)
    with pytest.raises(CourseError, match="tiles of 50 um that are 2 px wide"):  # a pixel size 50 times too large
        wsi.plan(wsi.from_array(blank.read(0, 0, 1600, 1600), mpp=25.0), tile_um=50.0)
    huge = wsi_open.Slide(Path("x"), (10**6, 10**6), ((10**6, 10**6, 1.0),), 0.25, "", (), "array", False, "", None)
    with pytest.raises(CourseError, match="at most 5,000,000"):
        wsi.plan(huge, tile_um=10.0)


# ---------------------------------------------------------------- the store
def test_the_store_holds_what_the_functions_said(slides, whole):
    table = wsi.table(whole, white=255)
    group = zarr.open_group(whole, mode="r")
    with wsi.open_slide(slides["tiff"]) as slide:
        chosen = wsi.plan(slide, tile_um=50.0, tissue=tissue.mask)
        cut, _ = wsi.cut(slide, chosen, np.arange(len(chosen.xy_px)), out_px=32)
    assert table.n_obs == len(cut) > 100 and group.attrs["complete"]
    np.testing.assert_allclose(table.obsm["embeddings"], colour(cut), rtol=1e-6)
    np.testing.assert_allclose(table.X, 2 * colour(cut), rtol=1e-6)
    assert np.array_equal(table.obsm["spatial"], chosen.xy_px)
    np.testing.assert_allclose(table.obs["x_um"], chosen.xy_px[:, 0] * slide.mpp)
    assert "sd" in table.obsm and table.uns["slide"]["mpp"] == pytest.approx(0.5, rel=1e-3)
    inside = np.median(table.obs["brightness"])
    assert 0 < wsi.table(whole, white=inside).n_obs < table.n_obs, "glass is not left out"
    with pytest.raises(CourseError, match="no array"):
        wsi.table(whole, name="nothing")
    assert list(wsi.table(whole, genes="abc").var_names) == list("abc")
    with pytest.raises(CourseError, match="2 names for 3 columns"):
        wsi.table(whole, genes="ab")


def test_a_run_that_failed_goes_on_to_the_same_bytes(slides, whole, tmp_path):
    calls = []

    def once(cut):
        calls.append(len(cut))
        if len(calls) == 3:
            raise RuntimeError("the power is gone")
        return colour(cut)

    with wsi.open_slide(slides["tiff"]) as slide:
        with pytest.raises(RuntimeError):
            wsi.stream(slide, tmp_path / "s.zarr", **{**OPTIONS, "encode": once})
        assert not (tmp_path / "s.zarr").exists(), "half a store has the name of a whole one"
        with pytest.raises(CourseError, match="not whole"):
            wsi.table(tmp_path / "s.zarr.part")
        part = wsi_store.part_of(tmp_path / "s.zarr")
        first = wsi_store.Growing(tmp_path / "s.zarr").missing()
        assert first == list(range(2, first[-1] + 1))
        chunk = next(path for path in sorted((part / "mean").rglob("*")) if path.is_file() and path.name != "zarr.json")
        chunk.write_bytes(chunk.read_bytes()[:-7])  # what a power cut may leave
        (part / "mean" / "c.0123.partial").write_bytes(b"half")
        assert wsi_store.Growing(tmp_path / "s.zarr").missing() == [0, *first], "a torn chunk is taken for a result"
        wsi.stream(slide, tmp_path / "s.zarr", **{**OPTIONS, "encode": once})
        assert sum(calls) - calls[2] == wsi.table(whole, white=255).n_obs + 40, "tiles were looked at twice"
        assert digest(tmp_path / "s.zarr") == digest(whole)
        assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))
        before, number = digest(tmp_path / "s.zarr"), len(calls)
        wsi.stream(slide, tmp_path / "s.zarr", **{**OPTIONS, "encode": once})  # whole: nothing is done
        assert (digest(tmp_path / "s.zarr"), len(calls)) == (before, number)


def test_another_slide_model_or_option_is_not_mixed_in(slides, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    with wsi.open_slide(slides["tiff"]) as slide, wsi.open_slide(slides["svs"]) as other:
        for given, said in (({"facts": {"model": "b"}}, "model"), ({"tile_um": 60.0}, "tile_um")):
            with pytest.raises(CourseError, match=said):
                wsi.stream(slide, tmp_path / "s.zarr", **{**OPTIONS, **given})
        with pytest.raises(CourseError, match="print"):
            wsi.stream(other, tmp_path / "s.zarr", **OPTIONS)
        os.rename(tmp_path / "s.zarr", tmp_path / "s.zarr.part")
        with pytest.raises(CourseError, match="print"):
            wsi.stream(other, tmp_path / "s.zarr", **OPTIONS)
        wsi.stream(other, tmp_path / "s.zarr", fresh=True, **OPTIONS)
    assert wsi_store.facts_of(tmp_path / "s.zarr")["facts"]["slide"] == "svs"


def test_two_runs_on_one_store_are_refused(slides, tmp_path):
    with wsi.open_slide(slides["tiff"]) as slide, wsi_store.lock(tmp_path / "s.zarr"):
        with pytest.raises(CourseError, match="another run"):
            wsi.stream(slide, tmp_path / "s.zarr", **OPTIONS)
    with wsi_store.lock(tmp_path / "s.zarr"):
        assert (tmp_path / ".s.zarr.lock").exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="cannot be written"), wsi_store.lock(tmp_path / "file" / "s.zarr"):
        pass


def test_a_full_disk_keeps_what_is_there(slides, tmp_path, monkeypatch):
    real = wsi_store._sum

    def full(arrays, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(arrays)

    monkeypatch.setattr(wsi_store, "_sum", full)
    with wsi.open_slide(slides["tiff"]) as slide:
        with pytest.raises(CourseError, match="No space left"):
            wsi.stream(slide, tmp_path / "s.zarr", **OPTIONS)
        monkeypatch.setattr(wsi_store, "_sum", real)
        assert wsi_store.Growing(tmp_path / "s.zarr").missing()[0] == 2
        wsi.stream(slide, tmp_path / "s.zarr", **OPTIONS)


def test_numbers_that_are_none_are_refused(slides, tmp_path):
    with wsi.open_slide(slides["tiff"]) as slide:
        with pytest.raises(CourseError, match="finite"):
            wsi.stream(slide, tmp_path / "a.zarr", **{**OPTIONS, "encode": lambda cut: colour(cut) * np.nan})
        with pytest.raises(CourseError, match="one row a tile"):
            wsi.stream(slide, tmp_path / "b.zarr", **{**OPTIONS, "encode": lambda cut: colour(cut)[1:]})


def test_format_2_is_read_without_zarr(slides, whole, tmp_path):
    """An independent reader: the store's own JSON and numcodecs."""
    import numcodecs

    with wsi.open_slide(slides["tiff"]) as slide:
        path = wsi.stream(slide, tmp_path / "s.zarr", zarr_format=2, **OPTIONS)
    meta = json.loads((path / "embeddings" / ".zarray").read_text())
    assert meta["zarr_format"] == 2 and meta["dtype"] == "<f4" and meta["chunks"] == [40, 3]
    codec = numcodecs.get_codec(meta["compressor"])
    parts = [np.frombuffer(codec.decode((path / "embeddings" / f"{k}.0").read_bytes()), "<f4").reshape(40, 3)
             for k in range(-(-meta["shape"][0] // 40))]  # fmt: skip
    read = np.concatenate(parts)[: meta["shape"][0]]
    assert np.array_equal(read, zarr.open_group(whole, mode="r")["embeddings"][:])


# ---------------------------------------------------------------- slide and saved model
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model on the colours of tiles, saved as notebook 04 does."""
    from helpers import encoders, stimage

    rng, eye = settings.rng(0, "model"), encoders.get("colour")
    seen = rng.integers(60, 230, (60, eye.input_px, eye.input_px, 3), dtype=np.uint8)
    seen = (seen * rng.uniform(0.6, 1, (60, 1, 1, 3))).astype(np.uint8)
    x, counts = eye.embed(seen), rng.poisson(4, (60, 5))
    head = stimage.fit(x, counts, library=np.full(60, 400), sections=["a"] * 30 + ["b"] * 30, genes=list("ABCDE"),
                       members=1, steps=5, seed=0)  # fmt: skip
    return head.save(tmp_path_factory.mktemp("model") / "model.keras", encoder=eye, tile_um=50.0)


def options(*words):
    """Parse the command as ``python -m helpers slides`` does."""
    import argparse

    from helpers import slides as desk

    parser = argparse.ArgumentParser()
    desk.arguments(parser.add_subparsers(dest="command"))
    return parser.parse_args(["slides", *map(str, words)])


def test_slides_and_a_saved_model_become_predictions(slides, model, tmp_path, capsys):
    import anndata
    import cv2

    from helpers import encoders, stimage
    from helpers import slides as desk

    bad = tmp_path / "bad.svs"
    bad.write_bytes(slides["svs"].read_bytes()[:5000])
    cv2.imwrite(str(tmp_path / "plain.jpg"), PICTURE)
    words = ("--model", model, "--out", tmp_path, "--export", "h5ad")
    code = desk.run(options(slides["tiff"], bad, tmp_path / "plain.jpg", *words))
    said = capsys.readouterr()
    assert code == 1 and "1 of 3 slides complete" in said.out and "bad.svs, plain.jpg" in said.err
    assert "--mpp" in said.err, "a JPEG without a pixel size is refused with the way to give it"
    table = wsi.table(tmp_path / "tiff.zarr")
    eye = encoders.get("colour")
    with wsi.open_slide(slides["tiff"]) as slide:
        chosen = wsi.plan(slide, tile_um=50.0, tissue=tissue.mask)
        cut, light = wsi.cut(slide, chosen, np.arange(len(chosen.xy_px)), out_px=eye.input_px)
    direct = stimage.load(model, encoder=eye, tile_um=50.0).predict(eye.embed(cut), keep=False)
    kept = light <= section_grid.WHITE
    np.testing.assert_allclose(table.X, direct.mean[kept], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table.layers["epistemic_var"], direct.epistemic_var[kept], rtol=1e-4, atol=1e-6)
    assert list(table.var_names) == list("ABCDE")
    shown = anndata.read_h5ad(tmp_path / "tiff.tiles.h5ad")
    assert shown.uns["spatial"]["tiff"]["images"]["hires"].dtype == np.uint8 and shown.n_obs == table.n_obs
    before = digest(tmp_path / "tiff.zarr")
    exact = wsi_store.facts_of(tmp_path / "tiff.zarr")["facts"]["mpp"]  # the same size, now given: still the same run
    assert desk.run(options(slides["tiff"], "--model", model, "--out", tmp_path, "--mpp", exact)) == 0
    assert digest(tmp_path / "tiff.zarr") == before


def test_the_wrong_encoder_and_two_slides_of_one_name_are_refused(slides, model, tmp_path):
    from helpers import slides as desk

    with pytest.raises(CourseError, match="features of tiny"):
        desk.tools(model, encoder="tiny")
    with pytest.raises(CourseError, match="two slides"):
        desk.run(options(slides["tiff"], tmp_path / "tiff.tif", "--model", model))
    assert wsi.name_of("a/TCGA-A.1.svs") == "TCGA-A.1" and wsi.name_of("b.OME.tif") == "b"

"""The command ``slides``: bad slides are named and stop no other, a killed run goes on, other programs agree."""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import textwrap

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from helpers import (
    export_handover,
    settings,
    slideqc,
    slides,
    slides_export,
    slides_quality,
    wsi,
    wsi_store,
    wsi_synthetic,
)
from helpers.messages import CourseError
from tests.unit.test_wsi import digest

GENES = ["HLA-A", "3x", "CD3E"]


def kit(*_, **__):
    """A stand-in for a saved model: three genes from the mean colour of a tile."""

    def predict(embeddings):
        return {"mean": embeddings[:, ::-1] / 100, "epistemic_var": embeddings / 1000}

    def encode(tiles):
        return tiles.reshape(len(tiles), -1, 3).mean(1).astype(np.float32)

    facts = {"genes": GENES, "model": {"name": "m", "sha256": "a"}, "units": "log1p(counts per 10,000)"}
    return {"encode": encode, "predict": predict, "tile_um": 50.0, "out_px": 16, "facts": facts}


def command(*words):
    """Parse the command as ``python -m helpers slides`` does."""
    parser = argparse.ArgumentParser()
    slides.arguments(parser.add_subparsers(dest="command"))
    return parser.parse_args(["slides", *map(str, words), "--model", "m.keras"])


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(slides, "tools", kit)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A small SVS-like file: Aperio's description, JPEG tiles, two levels."""
    return wsi_synthetic.write(tmp_path_factory.mktemp("svs") / "good.svs", side_px=1100, kind="svs")


@pytest.fixture(scope="module")
def picture(slide):
    """The pixels of that slide, uint8 RGB (y, x, 3)."""
    with wsi.open_slide(slide) as opened:
        return opened.read(0, 0, 1100, 1100)


def tiff(path, image, **options):
    """Write a tiled TIFF of 0.5 um/px."""
    options = {"photometric": "rgb", "tile": (256, 256), "resolution": (2e4, 2e4), "resolutionunit": 3} | options
    tifffile.imwrite(path, image, metadata=None, **options)
    return path


def spoilt(path, source, edit):
    """Write a copy of a file with its bytes edited."""
    content = bytearray(source.read_bytes())
    path.write_bytes(edit(content) or content)
    return path


# ---------------------------------------------------------------- faults 25, 26 and 30 to 34 on whole slides
def bad_slides(folder, slide, picture):
    """Return file -> what must be said of it."""
    with tifffile.TiffFile(slide) as opened:
        page = opened.pages[0]
        start, length = max(zip(page.dataoffsets, page.databytecounts), key=lambda each: each[1])  # full of tissue
        offsets = page.tags["TileOffsets"].offset
    whole = len(slide.read_bytes())
    cmyk = np.dstack([picture, picture[..., :1]])

    def torn(content):
        content[start + length // 3 : start + length // 3 + 400] = bytes(400)

    def unlisted(content):  # the list of tiles gets another tag's number
        content[offsets : offsets + 2] = (65000).to_bytes(2, "little")

    found = {
        tiff(folder / "cmyk.tif", cmyk, photometric="separated"): "CMYK",
        tiff(folder / "sixteen.tif", picture.astype(np.uint16) * 257): "uint16",
        tiff(folder / "float.tif", (picture / 255).astype(np.float32)): "float32",
        tiff(folder / "coarse.tif", picture, resolution=(200, 200)): "without a pixel size",  # 50 um/px: 100x wrong
        tiff(folder / "fine.tif", picture, resolution=(2e6, 2e6)): "without a pixel size",  # 0.005 um/px
        tiff(folder / "silent.tif", picture, resolution=None, resolutionunit=None): "without a pixel size",
        tiff(folder / "white.tif", np.full((1100, 1100, 3), 255, np.uint8)): "a blank or a grey slide",
        tiff(folder / "black.tif", np.zeros((1100, 1100, 3), np.uint8)): "a blank or a grey slide",
        tiff(folder / "flat.tif", np.full((1100, 1100, 3), 128, np.uint8)): "a blank or a grey slide",
        tiff(folder / "grey.tif", picture[..., 0], photometric="minisblack"): "a blank or a grey slide",
        spoilt(folder / "halved.svs", slide, lambda content: content[: whole // 2]): "cut short",
        spoilt(folder / "tail.svs", slide, lambda content: content[:5000]): "cut short",
        spoilt(folder / "head.svs", slide, lambda content: content[:100]): "neither",
        spoilt(folder / "torn.svs", slide, torn): "cannot be decoded",
        spoilt(folder / "unlisted.svs", slide, unlisted): "list of its tiles is lost",
        folder / "missing.svs": "no such file",
    }  # fmt: skip
    with tifffile.TiffWriter(folder / "label.tif") as several:
        for each in (picture[:300, :300], picture):
            several.write(each, photometric="rgb", tile=(256, 256), resolution=(2e4, 2e4), resolutionunit=3,
                          metadata=None)  # fmt: skip
    found[folder / "label.tif"] = "smaller than another"
    from PIL import Image

    for name, size in (("whole.jpg", (72, 72)), ("half.jpg", (50_800, 50_800)), ("half2.png", (50_800, 50_800))):
        Image.fromarray(picture).save(folder / name, dpi=size)
        if "half" in name:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
        found[folder / name] = "cut short" if "half" in name else "--mpp"
    return found


def test_each_bad_slide_is_named_with_its_fix_and_stops_no_other(slide, picture, tmp_path, capsys):
    found = bad_slides(tmp_path, slide, picture)
    alpha = np.dstack([picture, np.full((1100, 1100), 255, np.uint8)])
    alpha[:, :300, 3] = 0
    good = [slide, tiff(tmp_path / "rgba.tif", alpha, extrasamples=["unassalpha"]),
            tiff(tmp_path / "big_endian.tif", picture, byteorder=">")]  # fmt: skip
    out = tmp_path / "out"
    assert slides.run(command(*found, *good, "--out", out)) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    for file, what in found.items():
        lines = [line for line in errors if line.startswith(f"error: {file}: found ")]
        assert len(lines) == 1 and what in lines[0] and "Fix: " in lines[0], (file.name, what, lines)
    stores = {path.name for path in out.iterdir() if path.suffix == ".zarr"}
    assert stores == {f"{path.stem}.zarr" for path in good}
    for name in stores:
        assert wsi_store.verify(out / name)
    held = pd.read_csv(out / "slides.csv", index_col="slide")
    assert (held.loc[[path.stem for path in good], "state"] == "complete").all()
    assert (held["state"] == "failed").sum() == len(errors) == len(found)
    assert held.loc["torn", "notes"].count("torn.svs") == 1 and not (out / "torn.zarr").exists()
    with wsi.open_slide(good[1]) as opened:  # what is transparent is glass, not black
        assert (opened.read(0, 0, 300, 100) == 255).all()
        left = wsi.table(out / "rgba.zarr", white=255).obs["x_um"].min()
    assert left > 100, "tiles of a transparent part"
    with pytest.raises(CourseError, match="not whole"):
        wsi.table(out / "torn.zarr.part")


def test_no_tile_leaves_the_slide(slide):  # 32
    for tile, pitch in ((50.0, 50.0), (50.0, 33.3), (171.3, 12.9), (549.0, 700.0)):
        with wsi.open_slide(slide) as opened:
            chosen = wsi.plan(opened, tile_um=tile, pitch_um=pitch)
            assert (chosen.corners >= 0).all() and (chosen.corners + chosen.side <= 1100).all()
            outermost = np.unique(np.concatenate([each(chosen.corners, 0) for each in (np.argmin, np.argmax)]))
            for level in range(len(opened.levels)):
                cut = wsi.cut(opened, chosen, outermost, out_px=8, level=level)[0]
                assert cut.shape == (len(outermost), 8, 8, 3)


LARGE = """
    import sys
    sys.path.insert(0, {root!r})
    from helpers import runner_watch, slides
    from tests.unit.test_slides import command, kit
    slides.tools = kit
    assert slides.run(command({small!r}, "--out", {out!r})) == 0  # loads the libraries
    before = runner_watch.own_peak_mb()
    assert slides.run(command({large!r}, "--out", {out!r})) == 0
    print(before, runner_watch.own_peak_mb())
"""


def test_memory_does_not_grow_with_the_slide(slide, tmp_path):
    """Fault 33: this one has 243 MB of pixels; benchmarks/bench_wsi.py measures one of 30 GB."""
    large = wsi_synthetic.write(tmp_path / "large.tif", side_px=9000)
    code = LARGE.format(root=str(settings.ROOT), small=str(slide), large=str(large), out=str(tmp_path / "out"))
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, cwd=settings.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.splitlines()[-1].split())
    assert after - before < 220 and wsi.table(tmp_path / "out" / "large.zarr").n_obs > 1000


# ---------------------------------------------------------------- killed, torn, full
watched = {"folder": None, "count": 0, "kill": None}
"""Changes of a folder are counted here; before the one of number ``kill`` the process kills itself."""


def _watch(event, details):
    if watched["folder"] and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        if str(details[0]).startswith(watched["folder"]):
            watched["count"] += 1
            if watched["count"] == watched["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_watch)
KILLED = """
    import sys
    sys.path.insert(0, {root!r})
    from helpers import slides
    from tests.unit.test_slides import command, kit, watched
    slides.tools = kit
    watched.update(folder={out!r}, kill=int(sys.argv[1]))
    slides.run(command({slide!r}, "--out", {out!r}, "--chunk", "20"))
"""


def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_bytes(slide, tmp_path):
    """SIGKILL before the k-th change of the folder: making, filling and naming the store; then the same again."""
    watched.update(folder=str(tmp_path / "whole"), count=0)
    assert slides.run(command(slide, "--out", tmp_path / "whole", "--chunk", 20)) == 0
    whole, points = digest(tmp_path / "whole" / "good.zarr"), watched["count"]
    watched.update(folder=None)
    assert points > 60
    stream = settings.rng(0, "kill points")
    for turn, share in enumerate(stream.uniform(size=4)):
        out = tmp_path / f"k{turn}"
        code = textwrap.dedent(KILLED.format(root=str(settings.ROOT), slide=str(slide), out=str(out)))
        words = [sys.executable, "-c", code, str(int(share * points))]
        done = subprocess.run(words, cwd=settings.ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        for name in ("good.zarr", "good.zarr.part"):  # what can be read as complete is complete
            try:
                wsi.table(out / name)
            except CourseError:
                continue
            assert digest(out / name) == whole
        assert slides.run(command(slide, "--out", out, "--chunk", 20)) == 0
        assert digest(out / "good.zarr") == whole
        assert sorted(path.name for path in out.iterdir()) == ["good.zarr", "slides.csv"], "left-overs"


@pytest.fixture(scope="module")
def made(slide, tmp_path_factory):
    """A finished store of that slide."""
    with wsi.open_slide(slide) as opened:
        return slides.predict(opened, tmp_path_factory.mktemp("made") / "good.zarr", kit(), chunk=20)


@pytest.mark.parametrize(("array", "zarr_format"), [("mean", 3), ("xy_px", 2), ("check", 3)])
def test_a_store_copied_in_part_is_not_taken_for_a_whole_one(slide, tmp_path, array, zarr_format):
    """zarr reads a lost chunk as zeros."""
    with wsi.open_slide(slide) as opened:
        path = slides.predict(opened, tmp_path / "good.zarr", kit(), chunk=20, zarr_format=zarr_format)
        before = digest(path)
        lost = next(each for each in sorted((path / array).rglob("*")) if each.is_file() and "z" not in each.name)
        lost.unlink()
        with pytest.raises(CourseError, match="damaged store"):
            wsi.table(path)
        with pytest.raises(CourseError, match="--fresh"):
            slides.predict(opened, path, kit(), chunk=20, zarr_format=zarr_format)
        slides.predict(opened, path, kit(), chunk=20, zarr_format=zarr_format, fresh=True)
    assert digest(path) == before


def test_an_unfinished_store_whose_tiles_are_lost_is_begun_again(slide, made, tmp_path):
    with wsi.open_slide(slide) as opened:
        with pytest.raises(ZeroDivisionError):
            slides.predict(opened, tmp_path / "good.zarr", kit() | {"encode": lambda tiles: 1 / 0}, chunk=20)
        part = wsi_store.part_of(tmp_path / "good.zarr")
        next(each for each in sorted((part / "grid" / "c").rglob("*")) if each.is_file()).unlink()
        slides.predict(opened, tmp_path / "good.zarr", kit(), chunk=20)
    assert digest(tmp_path / "good.zarr") == digest(made)


def test_fresh_replaces_its_own_stores_alone(slide, tmp_path):
    zarr.open_group(tmp_path / "good.zarr", mode="w").attrs["mine"] = "a year of work"
    assert slides.run(command(slide, "--out", tmp_path, "--fresh")) == 1
    assert zarr.open_group(tmp_path / "good.zarr", mode="r").attrs["mine"] == "a year of work"


def test_another_model_or_chunk_or_a_second_command_leaves_the_store(slide, made, monkeypatch, capsys):
    out = made.parent
    before = digest(made)
    other = kit()
    other["facts"] = other["facts"] | {"model": {"name": "m", "sha256": "b"}}
    for given, words, said in ((other, [], "different: model"), (kit(), ["--chunk", 30], "different: chunk"),
                               (kit(), ["--zarr-format", 2], "different: zarr_format")):  # fmt: skip
        monkeypatch.setattr(slides, "tools", lambda *_, found=given, **__: found)
        assert slides.run(command(slide, "--out", out, "--chunk", 20, *words)) == 1  # of two --chunk the last holds
        assert said in capsys.readouterr().err
    with wsi_store.lock(made):
        assert slides.run(command(slide, "--out", out, "--chunk", 20)) == 1
        assert "another run that writes" in capsys.readouterr().err
    assert digest(made) == before


@pytest.mark.parametrize("where", ["_to_disk", "_sum"])
def test_a_full_disk_is_said_and_the_same_command_goes_on(slide, made, tmp_path, monkeypatch, capsys, where):
    """While the store is begun or named, and while a chunk is written."""
    real, calls = getattr(wsi_store, where), []

    def full(*given):
        calls.append(1)
        if len(calls) == turn:
            raise OSError(28, "No space left on device")
        return real(*given)

    monkeypatch.setattr(wsi_store, where, full)
    for turn in (1, 2):
        calls.clear()
        assert slides.run(command(slide, "--out", tmp_path, "--chunk", 20)) == 1
        assert "No space left" in capsys.readouterr().err and not (tmp_path / "good.zarr").exists()
        assert not list(tmp_path.glob(".[do]*"))
    turn = 0
    assert slides.run(command(slide, "--out", tmp_path, "--chunk", 20)) == 0
    assert digest(tmp_path / "good.zarr") == digest(made)


# ---------------------------------------------------------------- quality
def test_blur_ink_and_little_tissue_are_told(picture, tmp_path, capsys):
    marked, crumb = picture.copy(), np.full_like(picture, 243)
    cv2.line(marked, (0, 60), (1099, 60), (40, 60, 160), 60)
    crumb[500:700, 500:700] = picture[500:700, 500:700]
    files = [tiff(tmp_path / "sharp.tif", picture), tiff(tmp_path / "marked.tif", marked),
             tiff(tmp_path / "blurred.tif", cv2.GaussianBlur(picture, (0, 0), 9)),
             tiff(tmp_path / "crumb.tif", crumb)]  # fmt: skip
    assert slides.run(command(*files, "--out", tmp_path / "out")) == 0
    told = {line.split(": ")[1]: line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")}
    assert "under ink" in told["marked"] and "out of focus" in told["blurred"] and "mm2 of tissue" in told["crumb"]
    assert "sharp" not in told, told
    held = pd.read_csv(tmp_path / "out" / "slides.csv", index_col="slide")
    assert held.loc["marked", "pen"] == pytest.approx(60 / 1100, rel=0.5) and held.loc["sharp", "pen"] == 0
    assert held.loc["blurred", "blurry"] > 0.9 > 0.3 > held.loc["sharp", "blurry"]
    table = wsi.table(tmp_path / "out" / "sharp.zarr")
    assert held.loc["sharp", "tiles"] == table.n_obs > 0
    assert held.loc["sharp", "predicted"] == pytest.approx(table.X.mean(), rel=1e-4)


def test_quality_block_by_block_is_that_of_the_whole(picture, monkeypatch):
    monkeypatch.setattr(slides_quality, "BLOCK_PX", 160)
    opened = wsi.from_array(picture, mpp=0.5)
    found = slides_quality.measure(opened, wsi.thumbnail(opened))
    whole = slideqc.measure(picture, 0.5)
    assert found["tissue_mm2"] == pytest.approx(whole["tissue_um2"] / 1e6, rel=0.02)
    assert found["blurry"] == pytest.approx(whole["blurry_removed_percent"], abs=0.02)
    assert slides_quality.measure(wsi.from_array(picture, mpp=5.0), (picture, 1.0)) == {}


def test_a_slide_far_from_the_others_is_told():
    rows = [{"slide": f"s{k}", "tissue_mm2": 10 + k / 10, "darkness": 0.5 + k / 100} for k in range(6)]
    assert slides_quality.outliers(rows) == {} and slides_quality.outliers(rows[:2]) == {}
    rows.append({"slide": "pale", "tissue_mm2": 10.2, "darkness": 0.05})
    rows.append({"slide": "failed"})
    assert list(slides_quality.outliers(rows)) == ["pale"] and "staining" in slides_quality.outliers(rows)["pale"]


# ---------------------------------------------------------------- other programs
def test_all_programs_show_the_same_tile_at_the_same_place(slide, made):
    """Each file is read by a program that did not write it; the slide itself is the judge of the place."""
    out, formats = made.parent, ["h5ad", "qupath", "r", "vitessce"]
    assert slides.run(command(slide, "--out", out, "--chunk", 20, "--export", *formats)) == 0
    table = wsi.table(made)
    names, mpp = list(table.obs_names), table.uns["slide"]["mpp"]
    k = names.index(table.obs["brightness"].idxmin())
    with h5py.File(out / "good.tiles.h5ad") as file:
        assert [each.decode() for each in file["obs/_index"][:]] == names
        assert [each.decode() for each in file["var/_index"][:]] == GENES
        in_h5ad = file["obsm/spatial"][k]
        assert file["uns/slide/units"][()].decode() == "log1p(counts per 10,000)"
        assert file["uns/slide/mpp"][()] == file["uns/spatial/good/metadata/mpp"][()] == mpp
        scale, side = (file[f"uns/spatial/good/scalefactors/{each}"][()] for each in
                       ("tissue_hires_scalef", "spot_diameter_fullres"))  # fmt: skip
        small = file["uns/spatial/good/images/hires"][:]
        categories = file["obs/library_id/categories"][:]
        value = pd.Series(dict(zip(GENES, np.asarray(table.X)[k])))
    assert list(categories) == [b"good"] and side == round(50 / mpp)
    feature = json.loads((out / "good.tiles.geojson").read_text())["features"][k]
    ring = np.array(feature["geometry"]["coordinates"][0])
    with open(out / "good.tiles.csv" / "spots.csv", newline="") as file:
        spot = list(csv.DictReader(file))[k]
    with open(out / "good.tiles.csv" / "expression.csv", newline="") as file:
        row = list(csv.DictReader(file))[k]
    view = json.loads((out / "good.vitessce.json").read_text())
    content = view["datasets"][0]["files"][0]
    group = zarr.open_group(out / content["url"], mode="r")
    assert group.metadata.zarr_format == 2
    in_web = group[content["options"]["obsSpots"]["path"]][k]
    assert view["coordinationSpace"]["spatialSpotRadius"]["A"] == side / 2
    assert spot["spot"] == row["spot"] == names[k]
    places = [in_h5ad, in_web, ring[:4].mean(0), [float(spot["x_px"]), float(spot["y_px"])]]
    places.append(np.array([float(spot["x_um"]), float(spot["y_um"])]) / mpp)
    np.testing.assert_allclose(places, np.tile(table.obsm["spatial"][k], (5, 1)), atol=0.02)
    assert np.ptp(ring, axis=0) == pytest.approx([side, side], abs=0.02)
    for gene in GENES:
        assert float(row[gene]) == pytest.approx(value[gene], rel=1e-6)
        assert feature["properties"]["measurements"][gene] == pytest.approx(value[gene], abs=1e-4)
    (left, top), (right, bottom) = np.rint(ring[:4].min(0)).astype(int), np.rint(ring[:4].max(0)).astype(int)
    with wsi.open_slide(slide) as opened:
        pixels = opened.read(left, top, right - left, bottom - top)
    assert pixels.mean() == pytest.approx(table.obs["brightness"].iloc[k], abs=1.0)
    np.testing.assert_allclose(pixels.mean((0, 1))[::-1] / 100, value, atol=0.01)
    x, y = (in_h5ad * scale).astype(int)
    assert np.abs(small[y, x].astype(int) - pixels.mean((0, 1))).max() < 60
    assert slides.run(command(slide, "--out", out, "--chunk", 20, "--fresh")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["good.zarr", "slides.csv"], "old tables, a new store"


def test_a_table_killed_while_it_is_written_is_not_there(made, slide, monkeypatch):
    def half(_):
        def write(path):
            path.write_bytes(b"\x89HDF")
            raise KeyboardInterrupt

        return write

    monkeypatch.setattr(export_handover, "h5ad_writer", half)
    with wsi.open_slide(slide) as opened, pytest.raises(KeyboardInterrupt):
        slides_export.write(made, opened, ["h5ad"])
    assert not list(made.parent.glob("*.h5ad"))

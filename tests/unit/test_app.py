"""The web page: what it refuses to open, what it computes, and the page itself under Streamlit's test harness."""

import io
import json
import struct
import sys
import tomllib
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from helpers import app, app_explain, app_intake, app_view, explain, nuclei, settings
from helpers.messages import CourseError

PAGE = settings.ROOT / "helpers" / "app_page.py"


def refused(function, *arguments, **named) -> CourseError:
    with pytest.raises(CourseError) as error:
        function(*arguments, **named)
    assert error.value.seen and error.value.expected and error.value.fix
    return error.value


def saved(picture, kind="png", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def archive(members: dict, **options) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def rebuilt(data: bytes, **changed) -> bytes:
    """Return an archive with some members replaced; None leaves one out."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members |= {name.replace("__", "."): content for name, content in changed.items()}
    return archive({name: content for name, content in members.items() if content is not None})


@pytest.fixture(scope="module")
def noise():
    return settings.rng(0, "app", "noise").integers(0, 255, (80, 90, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def models():
    from helpers import app_controls

    return app_controls.bundle()


@pytest.fixture(scope="module")
def demo():
    return app.demo()


@pytest.fixture(scope="module")
def labels(demo):
    return nuclei.segment(demo.tile, mpp=demo.mpp)


@pytest.fixture(scope="module")
def keras_file():
    return (app.FOLDER / "regression.keras").read_bytes()


@pytest.fixture(scope="module")
def npz_file():
    return (app.FOLDER / "classes.npz").read_bytes()


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize("kind, name", [("png", "a.png"), ("tiff", "A.TIF"), ("jpeg", "slide.jpeg")])
def test_a_picture_comes_back_as_rgb(noise, kind, name):
    found = app_intake.picture(name, saved(noise, kind))
    assert found.dtype == np.uint8 and found.shape == noise.shape
    assert kind == "jpeg" or (found == noise).all()


def bomb(rows, columns) -> bytes:
    """Return a PNG of a few bytes whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("rows, columns", [(12_000, 12_000), (60_000, 60_000)])
def test_an_image_bomb_is_refused_by_its_header(rows, columns):
    assert "px" in refused(app_intake.picture, "small.png", bomb(rows, columns)).expected


def test_pictures_that_are_not_what_they_seem_are_refused(noise):
    png = saved(noise)
    for name, data in {
        "a.svg": b"<svg/>", "a.gif": saved(noise, "gif"), "none": png, "a.jpg": png,
        "page.png": b"<html>not found</html>", "cut.png": png[: len(png) // 2],
        "cut.jpg": saved(noise, "jpeg")[:900], "tiny.png": saved(noise[:20]),
        "deep.png": saved(np.zeros((64, 64), np.uint16)), "empty.png": b"",
        "cmyk.jpg": (lambda s: (Image.new("CMYK", (64, 64)).save(s, "jpeg"), s.getvalue())[1])(io.BytesIO()),
    }.items():  # fmt: skip
        assert refused(app_intake.picture, name, data).file == name


def test_a_tiff_of_one_giant_tile_is_refused():
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((64, 64, 3), np.uint8), tile=(64, 64), photometric="rgb")
    data = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
        places = [tiff.pages[0].tags[name].valueoffset for name in ("TileWidth", "TileLength")]
    for place in places:
        data[place : place + 2] = struct.pack("<H", 65_520)
    assert "blocks" in refused(app_intake.picture, "a.tif", bytes(data)).seen


def test_a_file_larger_than_the_limit_is_refused(monkeypatch, noise):
    monkeypatch.setattr(app_intake, "MAX_PICTURE_MB", 0.001)
    assert "MB" in refused(app_intake.picture, "a.png", saved(noise)).expected


# ---------------------------------------------------------------- models
def test_the_bundled_models_pass(keras_file, npz_file):
    assert app_intake.model_kind("m.keras", keras_file) == "keras" and app_intake.model_kind("m.npz", npz_file) == "npz"


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pt", "m.PTH", "m.h5", "m.sav", "m.zip", "m", "m.npy"])
def test_other_kinds_are_refused_with_the_reason(name):
    assert "runs whatever its author wrote" in refused(app_intake.model_kind, name, b"x").fix


def test_a_pickle_is_refused_under_any_name(npz_file):
    pickled = b"\x80\x04\x95" + b"0" * 200
    for name in ("m.keras", "m.npz"):
        assert "archive" in refused(app_intake.model_kind, name, pickled).seen
    stream = io.BytesIO()
    np.savez(stream, genes=np.array([{"a": 1}], dtype=object))
    assert "pickle" in refused(app_intake.model_kind, "m.npz", stream.getvalue()).seen
    assert "no array" in refused(app_intake.model_kind, "m.npz", archive({"a.npy": b"\x80\x04K\x01."})).seen


def test_an_array_that_promises_more_than_it_holds_is_refused():
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)})
    assert "hold" in refused(app_intake.model_kind, "m.npz", archive({"coef.npy": stream.getvalue()})).seen


def test_archives_out_of_bounds_are_refused(monkeypatch, keras_file):
    odd = {"../x.json": "{}", "/etc/x": "{}", "..\\x": "{}", "c:x": "{}"}
    for name, content in odd.items():
        assert "points elsewhere" in refused(app_intake.model_kind, "m.keras", archive({name: content})).seen
    assert "members" in refused(app_intake.model_kind, "m.keras", archive({str(i): "" for i in range(300)})).seen
    refused(app_intake.model_kind, "m.keras", keras_file[: len(keras_file) // 2])
    monkeypatch.setattr(app_intake, "MAX_UNPACKED_MB", 1)
    small = archive({"config.json": b" " * 3 * 2**20})
    assert len(small) < 10_000 and "unpacks" in refused(app_intake.model_kind, "m.keras", small).seen


def test_networks_that_could_run_code_or_fill_the_memory_are_refused(keras_file):
    with zipfile.ZipFile(io.BytesIO(keras_file)) as file:
        config = json.loads(file.read("config.json"))
    layers = config["config"]["layers"]

    def told(change):
        twin = json.loads(json.dumps(config))
        change(twin["config"]["layers"])
        return refused(app_intake.model_kind, "m.keras", rebuilt(keras_file, config__json=json.dumps(twin)))

    assert "Lambda" in told(lambda ls: ls.append({"module": "keras.layers", "class_name": "Lambda", "config": {}})).seen
    assert "TextV" in told(lambda ls: ls.append({"module": "keras.layers", "class_name": "TextVectorization"})).seen
    assert "os" in told(lambda ls: ls[1].update(module="os", class_name="system")).seen
    place = next(i for i, layer in enumerate(layers) if "units" in layer["config"])
    assert "number" in told(lambda ls: ls[place]["config"].update(units=10**8)).seen
    refused(app_intake.model_kind, "m.keras", rebuilt(keras_file, config__json="[" * 100_000))
    assert "gene list" in refused(app_intake.model_kind, "m.keras", rebuilt(keras_file, stimage__json=None)).seen


def weights(fill) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


@pytest.mark.parametrize("fill", [
    lambda f: f.__setitem__("x", h5py.ExternalLink("other.h5", "x")),
    lambda f: f.__setitem__("x", h5py.SoftLink("/y")),
    lambda f: f.create_dataset("x", (10,), "u1", external=[("other.bin", 0, 10)]),
    lambda f: f.create_dataset("x", (10**6, 10**6), "f4", chunks=(100, 100), compression="gzip"),
    lambda f: f.create_dataset("x", data=[b"text"]),
], ids=["external link", "soft link", "external data", "declares terabytes", "text"])  # fmt: skip
def test_weights_that_lie_elsewhere_are_refused(keras_file, fill):
    data = rebuilt(keras_file, model__weights__h5=weights(fill))
    assert refused(app_intake.model_kind, "m.keras", data).file == "m.keras"


def test_uploaded_models_answer_as_the_bundled_ones(models, demo, keras_file, npz_file):
    files = {app.REGRESSION: ("my.keras", keras_file), app.CLASSES: ("my.npz", npz_file)}
    own = app.uploaded(files)
    pairs = [app_explain.predict(each, demo.tile, ["COX6C", "CD3E"]) for each in (models, own)]
    for column in ("mean", "epistemic_sd", "probability"):
        np.testing.assert_allclose(pairs[0][column], pairs[1][column], rtol=1e-5)
    assert pairs[1]["rank"].isna().all() and app_explain.strangeness(own, demo.tile) is None
    one = app.uploaded({app.CLASSES: files[app.CLASSES]})
    assert app_explain.outputs(one, ["CD3E"]) == [("CD3E", app.CLASSES)] and one.ensemble is None


def test_models_the_page_cannot_feed_are_refused(keras_file, npz_file):
    assert "exchange" in refused(app.uploaded, {app.REGRESSION: ("m.npz", npz_file)}).fix
    refused(app.uploaded, {})
    with zipfile.ZipFile(io.BytesIO(keras_file)) as file:
        facts = json.loads(file.read("stimage.json"))

    def told(**changed):
        data = rebuilt(keras_file, stimage__json=json.dumps({**facts, **changed}))
        return refused(app.uploaded, {app.REGRESSION: ("m.keras", data)})

    mark = facts["encoder"][0]["fingerprint"]
    assert "passwd" in told(encoder=[{"name": "../../../etc/passwd", "fingerprint": mark}]).seen
    assert "resnet50" in told(encoder=[{"name": "resnet50", "fingerprint": mark}]).seen
    assert "other weights" in told(encoder=[{"name": "tiny", "fingerprint": "0" * 16}]).seen
    assert "2 encoders" in told(encoder=facts["encoder"] * 2).seen
    assert "one size" in told(tile_um=[60.0, 100.0]).expected
    told(genes=facts["genes"][:-1])


# ---------------------------------------------------------------- what is computed
def test_a_tile_is_cut_in_microns_and_stays_in_the_picture():
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[120, 210] = 255
    tile, corner = app.cut(picture, mpp=0.5, side_um=50, centre_um=(105, 60))
    assert tile.shape == (100, 100, 3) and corner == (160, 70) and tile[50, 50, 0] == 255
    _, corner = app.cut(picture, mpp=0.5, side_um=50, centre_um=(1e4, -5))
    assert corner == (300, 0)
    assert app.reach(picture, mpp=0.5, side_um=50) == ((25, 175), (25, 125))
    refused(app.cut, picture, mpp=0.1, side_um=50, centre_um=(5, 5))
    assert "32 px" in refused(app.cut, picture, mpp=5.0, side_um=100, centre_um=(5, 5)).expected
    for mpp in (0, float("nan"), 100):
        refused(app.side_px, mpp=mpp, side_um=100)


def test_distance_knows_near_from_far():
    rng = settings.rng(0, "app", "plane")
    mixing = rng.normal(size=(60, 60)) * np.linspace(3, 0.1, 60)
    x = rng.normal(size=(900, 60)) @ mixing.T
    known = app_explain.reference(x, np.repeat(["a", "b", "c"], 300), x[:, :2], x[:, :2] ** 2, genes=["G", "H"])
    parts = {name: known[name] for name in app_explain.PLANE}
    fresh = rng.normal(size=(900, 60)) @ mixing.T
    near, far = app_explain.distance(fresh, **parts), app_explain.distance(3 * fresh, **parts)
    assert 0.8 < np.median(near) < 1.2 and abs((near > known["limits"][0]).mean() - 0.05) < 0.04
    assert (far > known["limits"][1]).mean() > 0.99
    np.testing.assert_allclose(known["quantiles"][2], np.median(x[:, :2], axis=0), rtol=1e-5)
    assert [app_explain.grade(v, (1, 2)) for v in (1, 1.5, 2.5)] == ["usual", "unusual", "strange"]


def test_strange_tiles_are_called_strange(models, demo):
    assert app_explain.strangeness(models, demo.tile)["verdict"] == "usual"
    for other in (255 - demo.tile, np.full_like(demo.tile, 128), np.roll(demo.tile, 1, axis=2)):
        assert app_explain.strangeness(models, np.ascontiguousarray(other))["verdict"] == "strange"


def test_the_answers_are_those_of_the_models(models, demo, labels):
    genes = ["CD3E", "COX6C"]
    table = app_explain.predict(models, demo.tile, genes).set_index("gene")
    x = models.encoder.embed(demo.tile[None])
    whole = models.ensemble.predict(x)
    at = [list(models.ensemble.genes).index(gene) for gene in genes]
    np.testing.assert_allclose(table["mean"], whole.mean[0, at], rtol=1e-6)
    parts = table["aleatoric_sd"] ** 2 + table["epistemic_sd"] ** 2
    np.testing.assert_allclose(table["total_sd"] ** 2, parts, rtol=1e-5)
    assert ((table["low"] <= table["median"]) & (table["median"] <= table["high"])).all()
    assert table["rank"].between(0, 1).all() and table["probability"].between(0, 1).all()
    say = app_explain.speaker(models, demo.tile, genes)
    answer = say(demo.tile[None])[0]
    assert app_explain.outputs(models, genes) == [(g, m) for m in (app.REGRESSION, app.CLASSES) for g in genes]
    np.testing.assert_allclose(answer[2:], table["probability"], rtol=1e-5)
    np.testing.assert_allclose(answer[:2], table["mean"], atol=0.3)  # the depth is held, not integrated over
    refused(app_explain.predict, models, demo.tile, ["NOGENE"])


def test_lime_of_both_models_at_once_is_lime_of_each(models, demo, labels):
    options = {"n_samples": 60, "kernel_width": 0.25, "hide": "tissue", "seed": 3}
    both = app_explain.lime(models, demo.tile, labels, ["COX6C", "CD3E"], **options)
    at = list(models.classifier.genes).index("CD3E")
    alone = explain.lime(
        lambda tiles: models.classifier.proba(models.encoder.embed(tiles))[:, at], demo.tile, labels, **options
    )
    np.testing.assert_allclose(both["CD3E", app.CLASSES], alone["score"], atol=1e-6)
    assert len(both) == 4 and set(both["COX6C", app.REGRESSION].index) == set(range(1, labels.max() + 1))
    assert not np.allclose(both["COX6C", app.REGRESSION], both["CD3E", app.REGRESSION])
    nothing = app_explain.lime(models, demo.tile, np.zeros_like(labels), ["CD3E"], **options)
    assert all(len(series) == 0 for series in nothing.values())


def test_saliency_differs_between_genes(models, demo):
    maps = app_explain.saliency(models, demo.tile, ["COX6C", "COL1A1"])
    assert maps["COX6C"].shape == demo.tile.shape[:2] and (maps["COX6C"] >= 0).all() and maps["COX6C"].max() > 0
    assert not np.allclose(maps["COX6C"], maps["COL1A1"], rtol=0.01)


def test_agreement_with_the_truth_is_one_for_the_truth_itself(demo):
    import pandas as pd

    truth = app.truth()
    seen = np.unique(truth.labels[truth.labels > 0])
    rate = truth.rate("CD3E")
    exact = pd.Series({label: rate[label] for label in seen})
    hits = app_explain.agreement(truth.labels, {("CD3E", "m"): exact, ("CD3E", "w"): -exact}, truth, "CD3E")
    assert hits["m"][0] == 1 and hits["w"][0] < hits["w"][1] < 1 and hits["m"][2] == (exact >= 0.5).sum()
    assert app_explain.agreement(truth.labels, {("GNAS", "m"): exact}, truth, "GNAS") == {}  # all types express it


def measured_at(feature):
    return feature["properties"]["measurements"]["x"], feature["properties"]["measurements"]["y"]


def test_geojson_lies_where_the_tile_lay(models, demo, labels):
    import shapely
    from shapely.geometry import shape

    scores = app_explain.lime(models, demo.tile, labels, ["CD3E"], n_samples=60, kernel_width=0.25, hide="mean")
    table = app_explain.table(labels, demo.tile, scores, mpp=demo.mpp, origin=(1000, 500))
    score = "LIME regression CD3E"
    found = json.loads(app_explain.geojson(labels, table, score=score, origin=(1000, 500)))["features"]
    assert len(found) == labels.max() == len(table)
    outlines = [shape(item["geometry"]) for item in found]
    assert outlines[0].buffer(2).contains(shapely.Point(measured_at(found[0])))
    bounds = shapely.total_bounds(outlines)
    side = len(labels)
    assert bounds[0] >= 1000 and bounds[1] >= 500 and bounds[2] <= 1000 + side and bounds[3] <= 500 + side
    measured = found[0]["properties"]["measurements"]
    assert measured[score] == pytest.approx(table[score].iloc[0], abs=1e-4)
    kinds = {item["properties"]["classification"]["name"] for item in found}
    assert kinds <= {"high", "middle", "low"} and len(kinds) > 1
    none = app_explain.geojson(np.zeros_like(labels), table.iloc[:0], score=score)
    assert json.loads(none)["features"] == []
    assert outlines[0].area * demo.mpp**2 == pytest.approx(measured["area_um2"], rel=0.35)


def test_pictures_are_painted_where_the_nuclei_are(demo, labels):
    plain = app_view.scored(demo.tile, labels, {1: 1.0}, mpp=demo.mpp, opacity=0.0, limit=1.0)
    painted = app_view.scored(demo.tile, labels, {1: 1.0}, mpp=demo.mpp, opacity=1.0, limit=1.0)
    changed = (plain != painted).any(2)
    rows, columns = np.nonzero(labels == 1)
    factor = app_view.WIDTH_PX / len(labels)
    top, bottom, left, right = (int(v * factor) for v in (rows.min(), rows.max() + 2, columns.min(), columns.max() + 2))
    assert changed.any() and changed.sum() == changed[top:bottom, left:right].sum()
    png = app_view.figure_png([("a", plain), ("b", painted)], columns=2, title="t", note="n")
    assert Image.open(io.BytesIO(png)).size[0] > 400
    assert "<b>" not in app_view.legend(1.0, "<b>unit</b>")


def test_the_bundle_is_small_and_of_this_encoder(models, demo):
    assert sum(file.stat().st_size for file in app.FOLDER.iterdir()) < 1.5 * 2**20
    assert demo.card["encoder"] == models.encoder.fingerprint, "a new encoder: run python -m helpers.app_bundle"
    assert not set(demo.card["train_sections"]) & {demo.card["section"], *demo.card["test_sections"]}
    assert demo.tile.shape == (145, 145, 3) and list(models.genes) == demo.card["genes"]
    found, _ = app.cut(demo.wide, mpp=demo.mpp, side_um=models.tile_um, centre_um=demo.centre_um)
    assert np.abs(found.astype(int) - demo.tile).mean() < 6  # the same place, but for the JPEG


def test_the_server_is_closed_to_others():
    told = tomllib.loads((settings.ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert told["server"]["address"] == "localhost" and told["server"]["maxUploadSize"] == app_intake.MAX_PICTURE_MB
    assert told["server"]["enableXsrfProtection"] and "localhost" in told["server"]["allowedHosts"]
    assert told["browser"]["gatherUsageStats"] is False and told["client"]["showErrorDetails"] == "none"


# ---------------------------------------------------------------- the page
@pytest.fixture(scope="module")
def page(request):
    from streamlit.testing.v1 import AppTest

    main = sys.modules["__main__"]  # Streamlit puts its page there, and every process of a pool would import it anew
    request.addfinalizer(lambda: sys.modules.update(__main__=main))
    return AppTest.from_file(str(PAGE), default_timeout=180).run()


def state(page):
    assert not page.exception and not page.error, [e.value for e in [*page.exception, *page.error]]
    return page.session_state["result"]


def test_the_first_open_shows_everything(page):
    result = state(page)
    assert not page.warning and not page.info
    assert result["labels"].max() > 20 and list(result["said"]["gene"]) == ["COX6C", "CD3E"]
    shown = ["LIME, regression", "LIME, classification", "Saliency", "Truth"]
    assert [panel[:2] for panel in result["pictures"]] == [(gene, name) for gene in ("COX6C", "CD3E") for name in shown]
    assert len(page.get("download_button")) == 3


def quick(page):
    """Make the page's work small: one gene, few samples."""
    page.slider(key="n_samples").set_value(50)
    page.multiselect[0].set_value(["CD3E"])
    return page


def spread(scores):
    return np.concatenate([series.to_numpy() for series in scores.values()])


@pytest.mark.parametrize("key, value", [
    ("nucleus_um2", 40.0), ("threshold", 1.3), ("contrast", 0.3), ("min_area_um2", 30.0),
])  # fmt: skip
def test_sliders_of_the_nuclei_change_the_nuclei(page, key, value):
    before, old = state(page)["labels"], page.slider(key=key).value
    after = state(quick(page).slider(key=key).set_value(value).run())["labels"]
    page.slider(key=key).set_value(old)
    assert not np.array_equal(before, after)


def test_sliders_of_the_explanation_change_the_scores_alone(page):
    before = state(quick(page).run())
    for widget, value in (
        (page.slider(key="n_samples"), 100), (page.slider(key="kernel_width"), 0.6),
        (page.selectbox(key="hide"), "black (as published)"), (page.number_input(key="seed"), 7),
    ):  # fmt: skip
        after = state(widget.set_value(value).run())
        assert np.array_equal(before["labels"], after["labels"])
        assert np.abs(spread(before["scores"]) - spread(after["scores"])).max() > 1e-5, widget.key
        before = after
    paler = state(page.slider(key="opacity").set_value(0.2).run())
    assert np.array_equal(spread(before["scores"]), spread(paler["scores"]))
    assert (before["pictures"][0][2] != paler["pictures"][0][2]).any()


def test_a_field_is_browsed_and_genes_are_chosen(page):
    quick(page)
    first = state(page.radio(key="picture").set_value("Bundled field").run())
    assert "Truth" not in [name for _, name, _ in first["pictures"]], "only the bundled tile has a truth"
    across = next(slider for slider in page.slider if slider.label.startswith("x "))
    moved = state(across.set_value(across.value + 100).run())
    assert moved["tile"].shape == first["tile"].shape and (moved["tile"] != first["tile"]).any()
    page.multiselect[0].set_value(["COL1A1"])
    assert list(state(page.run())["said"]["gene"]) == ["COL1A1"]
    page.multiselect[0].set_value([])
    assert "gene" in page.run().info[0].value
    page.multiselect[0].set_value(["CD3E"])
    state(page.radio(key="picture").set_value("Bundled tile").run())


def test_an_upload_needs_its_scale_and_strange_ones_are_told(page, demo):
    quick(page)
    page.radio(key="picture").set_value("Your picture").run()
    page.file_uploader(key="file_picture").set_value(("my.png", saved(255 - demo.tile), "image/png"))
    assert "microns per pixel" in page.run().info[0].value and "picture" not in page.info[0].value.split("its")[0]
    result = page.number_input(key="mpp").set_value(demo.mpp).run()
    assert "Out of distribution" in result.error[0].value and not result.exception
    page.number_input(key="mpp").set_value(0.05).run()
    assert "Found" in page.error[0].value and "Expected" in page.error[0].value and "Do" in page.error[0].value
    name = "<script>x</script>.png"
    page.file_uploader(key="file_picture").set_value((name, b"no picture", "image/png"))
    shown = page.run().error[0].value
    assert "content is not png" in shown and "<script>" not in shown
    state(page.radio(key="picture").set_value("Bundled tile").run())


def test_models_are_uploaded_and_pickles_refused(page, npz_file):
    quick(page)
    page.radio(key="models").set_value("Your models").run()
    assert "Pickles are refused" in page.info[0].value
    page.file_uploader(key="file_regression").set_value(("LRmodel.pkl", b"\x80\x04N.", "application/octet-stream"))
    assert "a pickle" in page.run().error[0].value and not page.exception
    page.file_uploader(key="file_regression").set_value(None)
    page.file_uploader(key="file_classes").set_value(("my.npz", npz_file, "application/octet-stream"))
    result = state(page.run())
    assert {model for _, model in result["scores"]} == {app.CLASSES} and result["said"]["mean"].isna().all()
    assert "cannot tell" in page.info[0].value
    state(page.radio(key="models").set_value("Bundled models").run())


def test_what_was_not_foreseen_is_told_without_a_traceback(page, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a path of this machine")

    monkeypatch.setattr(app_explain, "saliency", fail)
    page.multiselect[0].set_value(["FN1"])
    shown = page.run()
    assert "RuntimeError" in shown.error[0].value and "machine" not in shown.error[0].value and not shown.exception

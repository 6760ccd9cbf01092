"""The encoder room: names, preprocessing, refusals, cache, batching. What ``tiny`` learned is tested in truth/."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from helpers import encoders, encoders_cache, encoders_foundation, encoders_keras, settings
from helpers.messages import CourseError


def tiles(n: int = 5, side: int = 32, seed: int = 0):
    return settings.rng(seed, "test_encoders").integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def toy(path: Path, *, side: int = 16, **declared) -> Path:
    """Save a network that returns the mean of each channel after its 1 x 1 convolution (the identity)."""
    import keras

    image = keras.Input((side, side, 3))
    look = keras.layers.Conv2D(3, 1, use_bias=False, name="look")
    model = keras.Model(image, keras.layers.Softmax()(keras.layers.GlobalMaxPooling2D()(look(image))))
    look.set_weights([np.eye(3, dtype=np.float32)[None, None]])
    model.save(path)
    facts = {"input_px": side, "channels": "RGB", "values": "levels", "mean": [0, 0, 0], "scale": [1, 1, 1],
             "layer": "look", "licence": "none"}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(facts | declared))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- .keras files
def test_the_declared_layer_is_read_and_averaged(tmp_path):
    encoder = encoders.get(str(toy(tmp_path / "toy.keras")))
    cut = tiles(side=16)
    assert (encoder.dim, encoder.input_px) == (3, 16)
    assert np.allclose(encoder.embed(cut), cut.mean((1, 2)), rtol=1e-5)


def test_preprocessing_is_done_as_declared(tmp_path):
    cut = tiles(side=16)
    bgr = toy(tmp_path / "bgr.keras", channels="BGR", mean=[104, 117, 123], scale=[1, 2, 4])
    expected = (cut.mean((1, 2))[:, ::-1] - [104, 117, 123]) / [1, 2, 4]
    assert np.allclose(encoders.get(str(bgr)).embed(cut), expected, rtol=1e-4, atol=1e-4)
    dense = toy(tmp_path / "dense.keras", values="optical_density")
    density = -np.log((cut.astype(float) + 1) / 256)
    assert np.allclose(encoders.get(str(dense)).embed(cut), density.mean((1, 2)), rtol=1e-4)


def test_fingerprint_names_weights_and_preprocessing(tmp_path):
    one = encoders.get(str(toy(tmp_path / "one.keras")))
    same = encoders.get(str(toy(tmp_path / "same.keras")))
    other = encoders.get(str(toy(tmp_path / "other.keras", mean=[1, 0, 0])))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_file_changed_on_disk_is_loaded_again(tmp_path):
    import os

    path = toy(tmp_path / "changing.keras")
    first = encoders.get(str(path))
    assert encoders.get(str(path)) is first
    toy(path, mean=[9, 9, 9])
    os.utime(path, ns=(1, 1))
    assert encoders.get(str(path)).fingerprint != first.fingerprint


def test_names_in_the_models_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    toy(tmp_path / "mine_v1.0.keras")
    assert encoders.get("mine_v1.0").dim == encoders.get("mine_v1.0.keras").dim == 3


@pytest.mark.parametrize(
    ("declared", "word"),
    [
        ({"channels": "GBR"}, "channels"),
        ({"values": "z"}, "values"),
        ({"scale": [1, 0, 1]}, "scale"),
        ({"mean": [1, 2]}, "mean"),
        ({"input_px": "wide"}, "garbles"),
        ({"layer": "fire9"}, "fire9"),
        ({"input_px": 24}, "24"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_a_wrong_declaration_is_refused(tmp_path, declared, word):
    with pytest.raises(CourseError, match=word):
        encoders.get(str(toy(tmp_path / "toy.keras", **declared)))


def test_no_declaration_is_refused(tmp_path):
    toy(tmp_path / "toy.keras").with_suffix(".json").unlink()
    with pytest.raises(CourseError, match="declaration"):
        encoders.get(str(tmp_path / "toy.keras"))


@pytest.mark.parametrize("ending", [".h5", ".pkl", ".pt", ".joblib"])
def test_files_that_can_run_code_are_refused(tmp_path, ending):
    (tmp_path / f"model{ending}").write_bytes(b"anything")
    with pytest.raises(CourseError, match="run any code"):
        encoders.get(str(tmp_path / f"model{ending}"))


def test_a_lambda_layer_is_refused_before_loading(tmp_path):
    import keras

    image = keras.Input((16, 16, 3))
    keras.Model(image, keras.layers.Lambda(abs)(image)).save(tmp_path / "sly.keras")
    with pytest.raises(CourseError, match="Lambda"):
        encoders.get(str(tmp_path / "sly.keras"))


def test_a_foreign_layer_is_refused_before_loading(tmp_path):
    source = toy(tmp_path / "toy.keras")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "sly.keras", "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            if name == "config.json":
                foreign = b'"module": "os", "class_name": "Softmax"'
                raw = raw.replace(b'"module": "keras.layers", "class_name": "Softmax"', foreign)
                assert b'"os"' in raw
            new.writestr(name, raw)
    with pytest.raises(CourseError, match="foreign"):
        encoders.get(str(tmp_path / "sly.keras"))


@pytest.mark.parametrize("raw", [b"<html>not found</html>", b""])
def test_a_page_or_nothing_saved_as_a_model_is_refused(tmp_path, raw):
    (tmp_path / "page.keras").write_bytes(raw)
    with pytest.raises(CourseError, match="not a Keras archive"):
        encoders.get(str(tmp_path / "page.keras"))


def test_a_model_cut_short_is_refused(tmp_path):
    path = toy(tmp_path / "short.keras")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CourseError, match="not a Keras archive"):
        encoders.get(str(path))


def test_squeezenet_is_read_before_its_classifier():
    path = settings.models_dir() / "squeezenet_v1.0_imagenet.keras"
    if not path.is_file():
        pytest.skip("squeezenet_v1.0_imagenet.keras is not in COURSE_MODELS")
    import keras

    encoder = encoders.get("squeezenet_v1.0_imagenet.keras")
    assert (encoder.dim, encoder.input_px) == (512, 227)
    cut = tiles(3, 227)
    fed = cut[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])
    whole = keras.saving.load_model(path, compile=False)
    map_ = keras.Model(whole.inputs, whole.get_layer("fire9_concat").output).predict(fed, verbose=0)
    assert np.allclose(encoder.embed(cut), map_.mean((1, 2)), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- names
def test_unknown_names_are_refused_with_the_list():
    with pytest.raises(CourseError, match="tiny.*resnet50.*virchow2"):
        encoders.get("resnet51")
    for wrong in ("", " , ", "tiny,Tiny"):
        with pytest.raises(CourseError):
            encoders.get_many(wrong)


def test_several_encoders_at_once(tmp_path):
    names = f"{toy(tmp_path / 'a.keras')}, {toy(tmp_path / 'b.keras', mean=[1, 1, 1])}"
    assert [encoder.name for encoder in encoders.get_many(names)] == ["a", "b"]


@pytest.mark.parametrize(("name", "dim"), [("mobilenetv2", 1280), ("densenet121", 1024)])
def test_applications_use_their_own_preprocessing(name, dim):
    import keras

    encoder = encoders_keras.application(name, weights="random")
    cut = tiles(2, 224)
    module = getattr(keras.applications, encoders_keras.APPLICATIONS[name][0])
    assert np.allclose(encoder.inputs(cut), module.preprocess_input(cut.astype(np.float32)))
    assert encoder.embed(cut).shape == (2, dim)
    assert np.array_equal(cut, tiles(2, 224)), "preprocessing must not write into the tiles"


def test_every_application_exists_in_keras():
    import keras

    for module, model, side, file in encoders_keras.APPLICATIONS.values():
        assert hasattr(getattr(keras.applications, module), model) and side in (224, 299) and file.endswith(".h5")


def test_unreachable_weights_name_the_file_and_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    with pytest.raises(CourseError) as caught:
        encoders.get("ResNet50")
    said = str(caught.value)
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in said
    assert str(tmp_path) in said and "by hand" in said


def test_a_page_saved_as_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    (tmp_path / Path(encoders_keras.APPLICATIONS["mobilenetv2"][3]).name).write_text("<html></html>")
    with pytest.raises(CourseError, match="not the weights"):
        encoders.get("mobilenet_v2")


# ---------------------------------------------------------------- foundation models
def test_the_table_is_complete():
    table = encoders_foundation.registry()
    asked = ("UNI", "UNI2", "Phikon", "Phikon-v2", "H-optimus-0", "Virchow", "Virchow2", "GigaPath", "CONCH",
             "CTransPath", "Midnight-12k")  # fmt: skip
    assert len(table) == len(asked)
    for name in asked:
        line = encoders.terms(name)
        assert "licence" in line and len(line) < 400
    for name, facts in table.items():
        assert 512 <= facts["dim"] <= 3072 and len(facts["mean"]) == len(facts["std"]) == 3, name
        assert facts["loader"] in ("timm", "transformers", "own") and facts["licence"] and facts["access"], name
        assert ("architecture" in facts) == (facts["loader"] == "timm"), name
        assert ("why_not" in facts) == (facts["loader"] == "own"), name
    with pytest.raises(CourseError):
        encoders.terms("tiny")


@pytest.mark.parametrize("name", ["CONCH", "CTransPath"])
def test_models_that_need_their_authors_code_say_so(name, capsys):
    with pytest.raises(CourseError, match="needs the authors'"):
        encoders.get(name)
    assert "licence" in capsys.readouterr().err, "the terms are shown before anything else"


@pytest.mark.parametrize("name", ["UNI2", "Virchow2", "Midnight-12k"])
def test_without_the_optional_packages_the_hint_names_them(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(CourseError, match="uv pip install torch timm"):
        encoders.get(name)
    assert "licence" in capsys.readouterr().err


def test_local_checkpoints_of_random_weights(tmp_path, monkeypatch):
    """Same architecture, fewer blocks: a state dict is read and the embeddings are the network's own."""
    torch = pytest.importorskip("torch", reason="torch is not installed: optional packages for foundation models")
    pytest.importorskip("timm", reason="timm is not installed: optional packages for foundation models")
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    for name, options in (("uni", {"depth": 1}), ("virchow2", {"depth": 1}), ("gigapath", {"depth": 1})):
        facts = encoders_foundation.registry()[name]
        monkeypatch.setitem(facts, "options", facts["options"] | options)
        model = encoders_foundation.architecture(facts)
        folder = tmp_path / name
        folder.mkdir()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        found = encoders.get(name).embed(tiles(2, 64))
        direct = encoders_foundation.from_torch(name, model).embed(tiles(2, 64))
        assert found.shape == (2, facts["dim"]) and np.allclose(found, direct, atol=1e-5)
        torch.save(model, folder / "pytorch_model.bin")  # a whole object
        with pytest.raises(CourseError, match="more than tensors"):
            encoders_foundation.read_checkpoint(folder / "pytorch_model.bin")


def test_local_folders_of_transformers_with_random_weights(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: optional packages for foundation models")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: optional package")
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    config = transformers.ViTConfig(hidden_size=768, num_hidden_layers=1)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "phikon")
    first = encoders_foundation.load("phikon")
    assert first.embed(tiles(2, 64)).shape == (2, 768)
    assert first.fingerprint == encoders_foundation.load("phikon").fingerprint, "a random pooler must not count"
    config.num_hidden_layers = 2  # a block that the file does not have
    config.save_pretrained(tmp_path / "phikon")
    with pytest.raises(CourseError, match="without"):
        encoders_foundation.load("phikon")


# ---------------------------------------------------------------- several layers
def staged(path: Path) -> Path:
    """Save a network of three resolutions whose second stage is a residual block."""
    import keras

    image = keras.Input((32, 32, 3))
    first = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(image)
    down = keras.layers.Conv2D(5, 3, 2, padding="same", name="down")(first)
    branch = keras.layers.Conv2D(5, 3, padding="same", name="branch")(down)
    block = keras.layers.Add(name="block")([down, branch])
    last = keras.layers.Conv2D(6, 3, padding="same", name="last")(keras.layers.MaxPooling2D()(block))
    keras.utils.set_random_seed(0)
    keras.Model(image, keras.layers.GlobalAveragePooling2D(name="out")(last)).save(path)
    facts = {"input_px": 32, "channels": "RGB", "values": "unit", "mean": [0, 0, 0], "scale": [1, 1, 1], "layer": "out",
             "licence": "none"}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def test_auto_reads_the_ends_of_the_stages_in_one_pass(tmp_path):
    import keras

    path, cut = staged(tmp_path / "staged.keras"), tiles(4, 32)
    encoder, plain = encoders.get(str(path), layers="auto"), encoders.get(str(path))
    assert encoder.layers == ("first", "block", "last"), "a branch is no end of a stage"
    assert encoder.blocks == (4, 5, 6) and encoder.dim == 15 and plain.blocks == (6,) and plain.layers == ()
    found = encoder.embed(cut)
    model = keras.saving.load_model(path, compile=False)
    for part, name in zip(np.split(found, [4, 9], axis=1), encoder.layers):
        map_ = keras.Model(model.inputs, model.get_layer(name).output).predict(encoder.inputs(cut), verbose=0)
        assert np.allclose(part, map_.mean((1, 2)), atol=1e-5)
    assert np.allclose(found[:, 9:], plain.embed(cut), atol=1e-6)
    assert np.allclose(encoder.backbone()(encoder.inputs(cut)).numpy(), found, atol=1e-5)


def test_spreads_over_places_lie_beside_the_means(tmp_path):
    import keras
    import tensorflow as tf

    path, cut = staged(tmp_path / "staged.keras"), tiles(4, 32)
    cut[0] = 255
    encoder = encoders.get(str(path), layers="first, last", pool="mean+sd")
    assert encoder.blocks == (4, 4, 6, 6) and encoder.layers == ("first", "last")
    model = keras.saving.load_model(path, compile=False)
    map_ = keras.Model(model.inputs, model.get_layer("first").output).predict(encoder.inputs(cut), verbose=0)
    assert np.allclose(encoder.embed(cut)[:, 4:8], map_.std((1, 2)), atol=2e-3)
    x = tf.constant(encoder.inputs(cut))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(encoder.backbone()(x))
    assert np.isfinite(tape.gradient(total, x).numpy()).all(), "also on a tile of one colour"
    assert encoders.get(str(path), pool="mean+sd").blocks == (6,), "an output that is no map has no spread"


def test_the_fingerprint_names_layers_and_pooling(tmp_path):
    path = str(staged(tmp_path / "staged.keras"))
    options = [{}, {"layers": "auto"}, {"layers": "first,last"}, {"layers": "last,first"},
               {"layers": "auto", "pool": "mean+sd"}]  # fmt: skip
    found = [encoders.get(path, **each) for each in options]
    assert len({each.fingerprint for each in found}) == len(options)
    assert encoders.get(path, layers=["first", "last"]) is found[2]


def test_declared_layers_are_the_automatic_ones(tmp_path):
    path = staged(tmp_path / "staged.keras")
    facts = json.loads(path.with_suffix(".json").read_text())
    before = encoders.get(str(path)).fingerprint
    path.with_suffix(".json").write_text(json.dumps(facts | {"layers": ["down", "last"]}))
    assert encoders_keras.from_file(path, layers="auto").layers == ("down", "last")
    assert encoders_keras.from_file(path).fingerprint == before, "what is read by default has not changed"
    assert encoders_keras.from_file(path, layers=("first",)).blocks == (4,)


def test_wrong_layers_are_refused(tmp_path):
    path = str(staged(tmp_path / "staged.keras"))
    with pytest.raises(CourseError, match="fire9"):
        encoders.get(path, layers="first,fire9")
    with pytest.raises(CourseError, match="median"):
        encoders.get(path, layers="auto", pool="median")
    for name in ("uni", "colour"):
        with pytest.raises(CourseError, match="one output"):
            encoders.get(name, layers="first")


@pytest.mark.parametrize(
    ("name", "ends"),
    [("mobilenetv2", ("block_6_expand_relu", "block_13_expand_relu", "out_relu")),
     ("densenet121", ("pool3_conv", "pool4_conv", "relu"))],
)  # fmt: skip
def test_stages_of_applications_are_found(name, ends):
    encoder = encoders_keras.application(name, weights="random", layers="auto")
    assert encoder.layers == ends and encoder.embed(tiles(1, 224)).shape == (1, sum(encoder.blocks))


def test_tiny_has_three_stages():
    encoder, cut = encoders.get("tiny", layers="auto"), tiles(3, 96)
    assert encoder.blocks == (48, 96, 192)
    assert np.allclose(encoder.embed(cut)[:, -192:], encoders.get("tiny").embed(cut), atol=1e-6)


# ---------------------------------------------------------------- colour
def test_colour_measures_stain_and_grain_without_a_network():
    from helpers import encoders_colour

    encoder = encoders.get("colour")
    density = np.zeros((3, 160, 160, 3))
    density += 0.5 * encoders_colour._VECTORS[1]
    y, x = np.mgrid[:160, :160]
    density[1] += 0.8 * encoders_colour._VECTORS[0]
    dots = (np.hypot(x % 20 - 10, y % 20 - 10) < 4)[..., None]
    density[2] += np.where(dots, 0.8 / dots.mean(), 0) * encoders_colour._VECTORS[0]
    found = encoder.embed(np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8))
    assert found.shape == (3, encoder.dim) == (3, len(encoders_colour.NAMES))
    column = dict(zip(encoders_colour.NAMES, found.T))
    assert np.allclose(column["h_mean"][:2], [0, 0.8], atol=0.02) and np.allclose(column["e_mean"][:2], 0.5, atol=0.02)
    assert column["h_grain_4px"][2] > 10 * column["h_grain_4px"][1]
    assert column["h_peaks"][2] == pytest.approx(8, abs=1) and column["h_peaks"][1] < 2


# ---------------------------------------------------------------- embedding and cache
def batches(cut, index, size=2):
    for start in range(0, len(index), size):
        yield index[start : start + size], cut[start : start + size]


def test_batches_are_joined_in_the_order_of_the_index(tmp_path):
    encoder, cut = encoders.get(str(toy(tmp_path / "toy.keras"))), tiles(7, 16)
    shuffled = np.array([4, 0, 6, 2, 5, 1, 3])
    index, found = encoders.embed_batches(encoder, batches(cut[shuffled], shuffled))
    assert index.tolist() == list(range(7)) and found.dtype == np.float32
    assert np.allclose(found, encoder.embed(cut), atol=1e-4)
    index, found = encoders.embed_batches(encoder, iter(()))
    assert index.shape == (0,) and found.shape == (0, 3)


def test_the_cache_answers_without_touching_the_tiles(tmp_path):
    encoder, cut = encoders.get(str(toy(tmp_path / "toy.keras"))), tiles(5, 16)
    key = encoders.content_key(cut)
    first = encoders.embed_batches(encoder, batches(cut, np.arange(5)), key=key)

    def explode():
        raise AssertionError("tiles were cut although the cache had the embeddings")
        yield

    again = encoders.embed_batches(encoder, explode(), key=key)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    other = encoders.get(str(toy(tmp_path / "other.keras", mean=[1, 0, 0])))
    with pytest.raises(AssertionError):
        encoders.embed_batches(other, explode(), key=key)
    assert not list(encoders_cache.folder().glob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "flip", "shape", "nothing", "page"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    encoder, cut = encoders.get(str(toy(tmp_path / "toy.keras"))), tiles(40, 16)
    key = encoders.content_key("k")
    right = encoders.embed_batches(encoder, batches(cut, np.arange(40)), key=key)[1]
    [file] = encoders_cache.folder().glob("*.npz")
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 0xFF
    elif damage == "shape":
        np.savez(file, index=np.arange(40), embeddings=np.zeros((39, 3), np.float32))
        raw = file.read_bytes()
    file.write_bytes({"cut": raw[:100], "nothing": b"", "page": b"<html>"}.get(damage, bytes(raw)))
    found = encoders.embed_batches(encoder, batches(cut, np.arange(40)), key=key)[1]
    assert np.array_equal(found, right)
    assert np.array_equal(encoders_cache.read(file.stem, 3)[1], right), "and kept again"


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file"))
    encoder = encoders.get(str(toy(tmp_path / "toy.keras")))
    assert len(encoders.embed_batches(encoder, batches(tiles(2, 16), np.arange(2)), key="k")[0]) == 2
    assert "not kept" in capsys.readouterr().err


def test_keys_tell_types_orders_and_contents_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    a = np.arange(6)
    parts = [(1,), ("1",), (1.0,), (True,), (None,), (b"1",), (a,), (a.reshape(2, 3),), (a.astype(np.int32),), (1, 2),
             ([1, 2],), ("a", "b"), ("ab",), (["a"], "b"), ({"a": 1},), ({"a": 2},), (tmp_path / "a",)]  # fmt: skip
    assert len({encoders.content_key(*each) for each in parts}) == len(parts)
    assert encoders.content_key({"a": 1, "b": 2}) == encoders.content_key({"b": 2, "a": 1})
    with pytest.raises(CourseError):
        encoders.content_key(object())


def test_section_key_sees_pixels_spots_and_settings():
    from helpers import section as sec
    from tests.unit.make import disc_section

    section = disc_section()
    key = encoders.section_key(section, 100.0)
    assert key == encoders.section_key(disc_section(), 100.0) != encoders.section_key(section, 101.0)
    moved = sec.move_spots(section, sec.xy(section) + 1)
    darker = sec.recolour(section, np.invert)
    assert len({key, encoders.section_key(moved, 100.0), encoders.section_key(darker, 100.0)}) == 3


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)]
)
def test_tiles_of_another_kind_are_refused(tmp_path, wrong):
    encoder = encoders.get(str(toy(tmp_path / "toy.keras")))
    with pytest.raises(CourseError, match="uint8 RGB"):
        encoder.embed(wrong)


def test_weights_that_give_nan_are_refused(tmp_path):
    import dataclasses

    encoder = encoders.get(str(toy(tmp_path / "toy.keras")))
    broken = dataclasses.replace(encoder, forward=nan_forward)
    with pytest.raises(CourseError, match="finite"):
        broken.embed(tiles(2, 16))


def nan_forward(batch):
    return np.full((len(batch), 3), np.nan, np.float32)


# ---------------------------------------------------------------- tiny
def test_tiny_keeps_its_budget_and_ignores_how_tiles_are_batched():
    tiny = encoders.get("tiny")
    file = encoders_keras.DECLARATIONS / "tiny.keras"
    assert file.stat().st_size <= 4_000_000 and 128 <= tiny.dim <= 256 and 64 <= tiny.input_px <= 128
    assert tiny.backbone().count_params() <= 1_500_000
    cut = tiles(70, 299)
    together = tiny.embed(cut)
    assert together.shape == (70, tiny.dim)
    assert np.allclose(together[[3, 66]], np.concatenate([tiny.embed(cut[3:4]), tiny.embed(cut[66:67])]), atol=1e-4)


def test_a_backbone_is_a_copy_that_trains_alone():
    tiny, cut = encoders.get("tiny"), tiles(4, 96)
    before = tiny.embed(cut)
    backbone = tiny.backbone()
    assert np.allclose(backbone.predict(tiny.inputs(cut), verbose=0), before, atol=1e-4)
    backbone.set_weights([0 * weight for weight in backbone.get_weights()])
    assert np.array_equal(tiny.embed(cut), before)


def test_training_seeds_are_not_those_of_the_course():
    from helpers import encoder_training

    facts = json.loads((encoders_keras.DECLARATIONS / "tiny.json").read_text())["training"]
    first, last = facts["seeds"]
    assert first >= encoder_training.FIRST_SEED >= 1000 and last < 5000
    with pytest.raises(CourseError):
        encoder_training.train(steps=1, fields=8, seed=0)


# ---------------------------------------------------------------- probes
def test_nearest_and_recall():
    stream = settings.rng(0, "nearest")
    cloud = stream.normal(size=(50, 8)) + 100
    order, cosine = encoders.nearest(cloud, cloud[[7, 3]] + 0.001, k=2)
    assert order[:, 0].tolist() == [7, 3] and (cosine[:, 0] > 0.999).all() and cosine[0, 1] < cosine[0, 0]
    assert encoders.recall(cloud, cloud + 5) == 1.0
    assert encoders.recall(cloud, stream.normal(size=(50, 8))) < 0.2
    with pytest.raises(CourseError):
        encoders.nearest(cloud, cloud, k=51)


def test_probe_finds_a_line_and_nothing_in_noise():
    stream = settings.rng(0, "probe")
    x, noise = stream.normal(size=(200, 6)), stream.normal(size=(200, 6))
    y = x @ [1, 2, 0, 0, 0, 3] + 0.1 * stream.normal(size=200)
    assert encoders.probe(x[:120], y[:120], x[120:], y[120:]) > 0.98
    assert encoders.probe(noise[:120], y[:120], noise[120:], y[120:]) < 0.1


def test_the_room_loads_nothing_heavy():
    code = "import sys, helpers.encoders, helpers.encoder_training; print([n for n in ('tensorflow', 'keras', 'torch', "
    code += "'sklearn', 'spatialdata') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

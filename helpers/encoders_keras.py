"""Methods, encoders: Keras Applications by name, and any ``.keras`` file with a declaration of its preprocessing."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.download import download
from helpers.encoders_core import Encoder, from_keras
from helpers.messages import CourseError

DECLARATIONS = settings.ROOT / "data" / "encoders"
"""Where the course keeps its own encoder, and declarations for files that cannot have one beside them."""
_WEIGHTS = "https://storage.googleapis.com/tensorflow/keras-applications"
APPLICATIONS = {  # module, class, input side (px), file of the weights without classifier
    "resnet50": ("resnet", "ResNet50", 224, "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "xception": ("xception", "Xception", 299, "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "inceptionv3": (
        "inception_v3", "InceptionV3", 299, "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "densenet121": (
        "densenet", "DenseNet121", 224, "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "mobilenetv2": (
        "mobilenet_v2", "MobileNetV2", 224,
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
    "vgg16": ("vgg16", "VGG16", 224, "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "efficientnetb0": ("efficientnet", "EfficientNetB0", 224, "efficientnetb0_notop.h5"),
}  # fmt: skip
_VALUES = ("levels", "unit", "optical_density")
_FORBIDDEN = ("Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer")


# ---------------------------------------------------------------- Keras Applications
def application(name: str, *, weights: str = "imagenet", layers=None, pool: str = "mean") -> Encoder:
    """Return a network of ``keras.applications`` with global average pooling and *its own* ``preprocess_input``.

    Parameters
    ----------
    name
        A key of APPLICATIONS.
    weights
        ``"imagenet"``: the file in ``settings.models_dir()``, downloaded there if missing; ``"random"``: untrained,
        for tests.
    layers, pool
        As for :func:`helpers.encoders_core.from_keras`.
    """
    import keras

    module_name, class_name, side, where = APPLICATIONS[name]
    module = getattr(keras.applications, module_name)
    file = settings.models_dir() / Path(where).name
    if weights == "imagenet" and not file.is_file():
        download(f"{_WEIGHTS}/{where}", file)  # its error names the address and the place to save it by hand
    model = getattr(module, class_name)(include_top=False, weights=None, input_shape=(side, side, 3), pooling="avg")
    if weights == "imagenet":
        try:
            model.load_weights(file)
        except (OSError, ValueError) as error:
            raise CourseError(f"a file that is not the weights of {class_name} ({error})", "the official file",
                              "remove it and run again", file=file) from None  # fmt: skip

    def prepare(tiles):
        return np.asarray(module.preprocess_input(np.array(tiles, np.float32)), np.float32)

    facts = {"preprocess_input": f"keras.applications.{module_name}"}
    licence = "ImageNet weights of Keras Applications; ImageNet's terms: non-commercial research"
    return from_keras(
        name, model, input_px=side, prepare=prepare, facts=facts, licence=licence, layers=layers, pool=pool
    )


# ---------------------------------------------------------------- .keras files
def declaration(path: Path) -> dict:
    """Return what a model's JSON declares; it lies beside the file under the same stem, or in ``data/encoders``.

    Keys: ``input_px``; ``channels`` ("RGB" or "BGR"); ``values`` ("levels" 0-255, "unit" 0-1, or "optical_density",
    natural, against 255); ``mean`` and ``scale``, three numbers each in the order of ``channels`` (the network is fed
    ``(value - mean) / scale``); ``layer``, the name of the layer to read; ``licence``; optionally ``layers``, the names
    that ``layers="auto"`` reads together, and ``sha256``.
    """
    beside, ours = path.with_suffix(".json"), DECLARATIONS / f"{path.stem}.json"
    file = beside if beside.is_file() else ours
    if not file.is_file():
        raise CourseError("no declaration of its preprocessing", f"{beside.name} beside it", "write one: see the "
                          "docstring of helpers.encoders_keras.declaration", file=path)  # fmt: skip
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts = {
            "input_px": int(facts["input_px"]), "channels": facts["channels"], "values": facts["values"],
            "mean": [float(v) for v in facts["mean"]], "scale": [float(v) for v in facts["scale"]],
            "layer": str(facts["layer"]), "licence": str(facts["licence"]), "sha256": facts.get("sha256"),
            "layers": [str(each) for each in facts.get("layers", [])],
        }  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"a declaration that lacks or garbles {error}", "the keys of helpers.encoders_keras."
                          "declaration", "mend the JSON", file=file) from None  # fmt: skip
    good = facts["channels"] in ("RGB", "BGR") and facts["values"] in _VALUES and 8 <= facts["input_px"] <= 2048
    if not (good and len(facts["mean"]) == len(facts["scale"]) == 3 and all(facts["scale"])):
        raise CourseError(f"channels {facts['channels']!r}, values {facts['values']!r}, side {facts['input_px']}, "
                          f"mean {facts['mean']}, scale {facts['scale']}", "RGB or BGR; " + ", ".join(_VALUES) +
                          "; 8 to 2048; three numbers each, scale not 0", "mend the JSON", file=file)  # fmt: skip
    return facts


def preprocessing(facts: dict):
    """Return the function that a declaration describes: uint8 RGB tiles -> float32, by a table of 256 levels."""
    levels = np.arange(256, dtype=np.float64)
    values = {"levels": levels, "unit": levels / 255, "optical_density": -np.log((levels + 1) / 256)}[facts["values"]]
    tables = [((values - m) / s).astype(np.float32) for m, s in zip(facts["mean"], facts["scale"])]
    order = (0, 1, 2) if facts["channels"] == "RGB" else (2, 1, 0)

    def prepare(tiles):
        return np.stack([table[tiles[..., channel]] for table, channel in zip(tables, order)], axis=-1)

    return prepare


def refuse_unsafe(path: Path) -> None:
    """Raise for a model file whose loading could run foreign code, or which is no ``.keras`` file at all."""
    if path.suffix != ".keras":
        raise CourseError(f"a model saved as {path.suffix or 'a file without ending'}", "a .keras file without Lambda "
                          "layers", "such files can run any code when loaded; save the model again with "
                          "model.save('name.keras')", file=path)  # fmt: skip
    if not path.is_file():
        raise CourseError("no such file", "a .keras file", "check ENCODER or COURSE_MODELS", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        raise CourseError("a file that is not a Keras archive (cut short, or a page saved in its place)",
                          "a whole .keras file", "fetch it again", file=path) from None  # fmt: skip
    for part in _dicts(config):
        kind, module = part.get("class_name"), part.get("module")
        foreign = module is not None and module.split(".")[0] not in ("keras", "builtins")
        if kind in _FORBIDDEN or (kind is not None and foreign):
            raise CourseError(
                f"a {kind} layer of {module}",
                "built-in layers only",
                "a Lambda or foreign layer can run any code when loaded; rebuild the model from plain layers",
                file=path,
            )


def _dicts(tree):
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _dicts(part)


def from_file(path, *, name: str | None = None, layers=None, pool: str = "mean") -> Encoder:
    """Return the encoder of a ``.keras`` file and its declaration (safe mode; see :func:`refuse_unsafe`).

    ``layers`` and ``pool`` as for :func:`helpers.encoders_core.from_keras`; ``"auto"`` takes the declared
    layers, if there are any.
    """
    import keras

    path = Path(path)
    refuse_unsafe(path)
    facts = declaration(path)
    wanted, declared = facts.pop("sha256"), facts.pop("layers")
    if wanted and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != wanted:
        raise CourseError(f"SHA-256 {found[:12]}...", f"{wanted[:12]}... as declared", "fetch it again", file=path)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds; all mean that this file is of no use
        raise CourseError(f"a model Keras cannot load ({type(error).__name__}: {str(error)[:200]})",
                          "a model saved by Keras 3", "save it again with this Keras", file=path) from None  # fmt: skip
    names = [layer.name for layer in model.layers]
    if facts["layer"] not in names:
        raise CourseError(f"no layer {facts['layer']!r}", f"one of {', '.join(names[-6:])}, ...",
                          "mend the declaration", file=path)  # fmt: skip
    head = keras.Model(model.inputs, model.get_layer(facts["layer"]).output, name=model.name)
    side = head.input_shape[1]
    if side not in (None, facts["input_px"]):
        raise CourseError(f"input_px {facts['input_px']}", f"{side}, as the model has it", "mend the declaration",
                          file=path)  # fmt: skip
    licence = facts.pop("licence")
    return from_keras(
        name or path.stem, head, input_px=facts["input_px"], prepare=preprocessing(facts), facts=facts,
        licence=licence, layers=declared or layers if layers == "auto" else layers, pool=pool,
    )  # fmt: skip

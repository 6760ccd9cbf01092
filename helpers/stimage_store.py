"""Methods, STimage: one ``.keras`` file holds a model, its genes and what features it needs; loading runs no code.

A ``.keras`` file is a zip archive. Beside Keras' own parts it holds ``stimage.json`` (genes, encoder, tile size,
training sections, options) and ``stimage.npz`` (sizes, the model of the library size), which Keras passes over.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

FORMAT = 1
FACTS, ARRAYS = "stimage.json", "stimage.npz"
LARGEST = 1 << 30
"""Bytes an archive may unpack to."""
_RIDGE = ("marks", "to_coordinates", "centre", "weight", "basis", "mean", "alpha", "kernel", "width2", "path")
"""What is kept of a ``Ridge``: all but its predictions of the training spots."""
_TILES, _BLEND = "model for single tiles", "blended model, for features scaled section by section"
_OURS = ("Projection", "Spread", "MemberDense", "Offset", "NegativeBinomial")
_KERAS = {
    "keras": ("DTypePolicy",), "keras.layers": ("InputLayer",), "keras.src.models.functional": ("Functional",),
    "keras.models": ("Functional",), "builtins": (),
}  # fmt: skip
_REASON = "such files can run any code when loaded; only .keras files written by stimage.save are read"


def save(ensemble, path, *, encoder, tile_um, train_sections=None, ridge=None, share=None, facts=None) -> Path:
    """Write an ensemble into one ``.keras`` file, first under a temporary name.

    Parameters
    ----------
    encoder
        What made the features: an object with ``name`` and ``fingerprint`` (``helpers.encoders``), a dict of the two,
        or a list of either where features of several were put side by side.
    tile_um
        Side of the tiles in microns, or a list where features of several sizes were put side by side.
    train_sections
        Ids; None: those of the fit.
    ridge, share
        Of a blend (:mod:`helpers.stimage_blend`): the ``Ridge`` beside the ensemble, and its share. Such a file is
        read by ``stimage_blend.load`` alone, since its features are scaled section by section.
    facts
        More to remember, as JSON: patients trained on, ...
    """
    path = Path(path)
    if ensemble.columns is not None:
        raise CourseError(f"a model of {len(ensemble.genes)} of its genes", "the whole model", "save it before only()")
    if path.suffix != ".keras":
        raise CourseError(f"a file named {path.name}", "a name ending in .keras", "rename it", file=path)
    tiles = [float(side) for side in np.atleast_1d(np.asarray(tile_um, float))]
    if not tiles or not all(np.isfinite(tiles)) or min(tiles) <= 0:
        raise CourseError(f"tile_um {tile_um}", "microns above 0, one or several", "give the side of the tiles")
    facts = {
        "format": FORMAT, "genes": list(ensemble.genes), "held_out": ensemble.held_out, "encoder": _named(encoder),
        "tile_um": tiles, "facts": {**ensemble.facts, **(facts or {})},
    }  # fmt: skip
    if train_sections is not None:
        facts["facts"]["train_sections"] = [str(name) for name in train_sections]
    arrays = {"r": ensemble.r}
    if ensemble.library_model is not None:
        for entry in fields(ensemble.library_model):
            arrays[f"library_{entry.name}"] = np.asarray(getattr(ensemble.library_model, entry.name))
    if ridge is not None:
        facts["share"] = float(share)
        arrays |= {f"ridge_{name}": np.asarray(getattr(ridge, name)) for name in _RIDGE}
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.keras")
    try:
        ensemble.model.save(part)
        with zipfile.ZipFile(part, "a") as archive:
            archive.writestr(FACTS, json.dumps(facts))
            archive.writestr(ARRAYS, packed.getvalue())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _named(encoder) -> list:
    """Return [{"name", "fingerprint"}, ...] of one encoder or several."""
    if isinstance(encoder, (list, tuple)):
        return [named for each in encoder for named in _named(each)]
    found = encoder if isinstance(encoder, dict) else {
        "name": getattr(encoder, "name", None), "fingerprint": getattr(encoder, "fingerprint", None)
    }  # fmt: skip
    if not (isinstance(found.get("name"), str) and isinstance(found.get("fingerprint"), str)):
        raise CourseError(f"encoder {encoder!r:.80}", "an encoder, with name and fingerprint",
                          "give what encoders.get returned")  # fmt: skip
    return [{"name": found["name"], "fingerprint": found["fingerprint"]}]


def facts_of(path) -> dict:
    """Return what a saved model says of itself: genes, encoder, tile_um, facts. Reads JSON only; refuses other files.

    Raises
    ------
    CourseError
        No ``.keras`` file, a damaged one, one not of this course, or one whose layers are not ours or Keras' own.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise CourseError(f"a model saved as {path.suffix or 'a file without ending'}", "a .keras file",
                          f"{_REASON}", file=path)  # fmt: skip
    if not path.is_file():
        raise CourseError("no such file", "a .keras file", "check the path", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise CourseError("an archive that unpacks to more than 1 GB", "a small model",
                                  "check where it comes from", file=path)  # fmt: skip
            config = json.loads(archive.read("config.json"))
            _refuse_foreign(config, path)
            if FACTS not in archive.namelist() or ARRAYS not in archive.namelist():
                raise CourseError("a Keras model without a gene list", "a model written by stimage.save",
                                  "fit it again and save it with stimage", file=path)  # fmt: skip
            facts = json.loads(archive.read(FACTS))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError):
        raise CourseError("a file that is not a Keras archive (cut short, or a page saved in its place)",
                          "a whole .keras file", "fetch it again", file=path) from None  # fmt: skip
    wanted = ("format", "genes", "held_out", "encoder", "tile_um", "facts")
    if not isinstance(facts, dict) or any(key not in facts for key in wanted) or facts["format"] != FORMAT:
        raise CourseError(f"a description of format {facts.get('format') if isinstance(facts, dict) else '?'}",
                          f"format {FORMAT}", "save it again with this course", file=path)  # fmt: skip
    return facts


def _refuse_foreign(config, path):
    """Raise for any object of the configuration that is neither ours nor a named class of Keras."""
    for part in _dicts(config):
        if "class_name" not in part:
            continue
        kind, module, name = part["class_name"], part.get("module"), part.get("registered_name")
        ours = kind in _OURS and str(name) == f"helpers.stimage>{kind}" and module in ("helpers.stimage_layers", None)
        plain = kind in _KERAS.get(module, ()) and name in (None, kind)
        if kind == "__tensor__" or kind == "__keras_tensor__":
            continue
        if not (ours or plain):
            raise CourseError(f"a {kind} of {module}", "layers of this course and of Keras, no Lambda",
                              _REASON, file=path)  # fmt: skip


def _dicts(tree):
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _dicts(part)


def load(path, *, encoder=None, tile_um=None, genes=None):
    """Read an ensemble that :func:`save` wrote.

    Parameters
    ----------
    encoder, tile_um, genes
        What the features at hand are made with, and the genes wanted in their order; None: not compared.

    Returns
    -------
    helpers.stimage.Ensemble
        Its ``facts`` also hold ``encoder`` and ``tile_um``.

    Raises
    ------
    CourseError
        As :func:`facts_of`; another encoder (its weights or its preprocessing), another tile size in microns (more than
        1 %), other genes or another order.
    """
    path = Path(path)
    facts = facts_of(path)
    if "share" in facts:
        fix = "take model.keras of notebook 04; blend.keras is for its parameter MODEL"
        raise CourseError(f"a {_BLEND}", f"a {_TILES}", fix, file=path)
    _check(facts, path, encoder, tile_um, genes)
    return _read(path, facts)[0]


def load_blend(path, *, encoder=None):
    """Read a blend: the ensemble, the ``Ridge`` (without ``inner``) and its share; see :func:`load`."""
    from helpers.stimage_ridge import Ridge

    path = Path(path)
    facts = facts_of(path)
    if "share" not in facts:
        fix = "take blend.keras of notebook 04; model.keras is for the app and for `slides`"
        raise CourseError(f"a {_TILES}", f"a {_BLEND}", fix, file=path)
    _check(facts, path, encoder, None, None)
    ensemble, arrays = _read(path, facts)
    if not {f"ridge_{name}" for name in _RIDGE} <= set(arrays):
        raise CourseError("a blended model without its ridge regression", "a whole file", "save it again", file=path)
    parts = {name: arrays[f"ridge_{name}"] for name in _RIDGE}
    parts |= {name: parts[name].item() for name in ("alpha", "kernel", "width2")}
    none = np.empty((0, len(ensemble.genes)), np.float32)
    return ensemble, Ridge(**parts, inner=none), facts["share"]


def _read(path, facts):
    """Return the ensemble of a file that was judged, and all its arrays."""
    import keras

    from helpers import (
        stimage_layers,  # noqa: F401  registers the classes
        stimage_library,
    )
    from helpers.stimage import Ensemble

    try:
        with zipfile.ZipFile(path) as archive, np.load(io.BytesIO(archive.read(ARRAYS)), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras and numpy raise many kinds; all mean that this file is of no use
        raise CourseError(f"a model that cannot be loaded ({type(error).__name__}: {str(error)[:160]})",
                          "a file written by stimage.save", "save it again", file=path) from None  # fmt: skip
    library = None
    if "library_kernel" in arrays:
        parts = {entry.name: arrays[f"library_{entry.name}"] for entry in fields(stimage_library.LibraryModel)}
        library = stimage_library.LibraryModel(
            **{name: value if value.ndim else value.item() for name, value in parts.items()}
        )
    told = {**facts["facts"], "encoder": facts["encoder"], "tile_um": facts["tile_um"]}
    return Ensemble(tuple(facts["genes"]), arrays["r"], facts["held_out"], model, library, told), arrays


def _check(facts, path, encoder, tile_um, genes):
    """Raise unless a model is for these features and genes; None is not compared."""
    if encoder is not None and [e["fingerprint"] for e in _named(encoder)] != [
        e["fingerprint"] for e in facts["encoder"]
    ]:
        shown = ["+".join(f"{e['name']} ({e['fingerprint'][:8]})" for e in each)
                 for each in (_named(encoder), facts["encoder"])]  # fmt: skip
        raise CourseError(f"features of {shown[0]}", f"those of {shown[1]}", "set ENCODER to the model's, or fit anew",
                          file=path)  # fmt: skip
    if tile_um is not None:
        given = np.atleast_1d(np.asarray(tile_um, float))
        if given.shape != (len(facts["tile_um"]),) or not np.allclose(given, facts["tile_um"], rtol=0.01):
            raise CourseError(f"tiles of {given.tolist()} um", f"{facts['tile_um']} um, as the model was trained on",
                              "cut tiles of that size in microns", file=path)  # fmt: skip
    if genes is not None and list(genes) != facts["genes"]:
        genes = list(genes)
        same = sorted(genes) == sorted(facts["genes"])
        seen = "the same genes in another order" if same else (
            f"{len(genes)} genes, {len(set(genes) & set(facts['genes']))} of them the model's")  # fmt: skip
        raise CourseError(seen, f"the model's {len(facts['genes'])} genes, {facts['genes'][0]} first",
                          "take Ensemble.genes as the order of the columns", file=path)  # fmt: skip

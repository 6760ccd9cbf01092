"""Methods, DeepSpot: a model as one ``.npz`` file - plain arrays and a text - which no loader can be made to run."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from helpers.deepspot_bags import Neighbourhood
from helpers.messages import CourseError

FORMAT = 1
LARGEST = 1 << 30
"""Bytes a file may unpack to."""
_TEXT = "facts"
_PICKLES = "a pickle can run any code when it is opened; convert published weights with deepspot_weights.convert"


def save(model, path, *, encoder, tile_um: float) -> Path:
    """Write a model with its genes, encoder, tile size and neighbourhood; under a temporary name first.

    Parameters
    ----------
    encoder
        What made the embeddings: an object with ``name`` and ``fingerprint``, or a dict of the two.
    tile_um
        Side of the spot's tile in microns.
    """
    path = Path(path)
    if path.suffix != ".npz" or not (np.isfinite(tile_um) and tile_um > 0):
        raise CourseError(f"a file {path.name}, tiles of {tile_um} um", "a name ending in .npz, a positive size",
                          "rename it", file=path)  # fmt: skip
    facts = {
        "format": FORMAT, "genes": list(model.genes), "options": model.options, "facts": model.facts,
        "near": None if model.near is None else model.near.facts(), "legacy_padding": model.legacy_padding,
        "encoder": named(encoder), "tile_um": float(tile_um), "features": int(model.network.inputs[0].shape[-1]),
    }  # fmt: skip
    arrays = {"scaler_mean": model.scaler.mean, "scaler_scale": model.scaler.scale}
    if model.basis is not None:
        arrays |= {"centre": model.centre, "basis": model.basis}
    for layer in model.network.layers:
        for weight in layer.weights:
            arrays[f"{layer.name}_{weight.name}"] = np.asarray(weight, np.float32)
    arrays[_TEXT] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(packed.getvalue())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def named(encoder) -> dict:
    """Return name and fingerprint of an encoder, or of a dict that holds them."""
    found = encoder if isinstance(encoder, dict) else {n: getattr(encoder, n, None) for n in ("name", "fingerprint")}
    if not all(isinstance(found.get(key), str) for key in ("name", "fingerprint")):
        raise CourseError(f"encoder {encoder!r:.80}", "an encoder, with name and fingerprint", "pass encoders.get(...)")
    return {key: found[key] for key in ("name", "fingerprint")}


def read_arrays(path) -> dict:
    """Return the arrays of an ``.npz`` file; refuse anything else, and anything pickled inside."""
    path = Path(path)
    if path.suffix != ".npz":
        raise CourseError(f"weights saved as {path.suffix or 'a file without ending'}", "an .npz file of this course",
                          _PICKLES, file=path)  # fmt: skip
    if not path.is_file():
        raise CourseError("no such file", "an .npz file", "check the path", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise CourseError("an archive that unpacks to more than 1 GB", "a model", "do not use it", file=path)
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise CourseError(f"a file that is not an archive of plain arrays ({str(error)[:120]})",
                          "a file written by deepspot.save", _PICKLES, file=path) from None  # fmt: skip


def load(path, *, encoder=None, tile_um=None, genes=None, near=None):
    """Read a model that :func:`save` or ``deepspot_weights.convert`` wrote.

    Parameters
    ----------
    encoder, tile_um, genes, near
        What the bags at hand are made with, and the genes wanted in their order; None: not compared.

    Returns
    -------
    deepspot.Model
        Its ``facts`` also hold ``encoder`` and ``tile_um``.

    Raises
    ------
    CourseError
        A pickle or a damaged file; another encoder, tile size (by more than 1 %), list of genes or neighbourhood.
    """
    from helpers.deepspot import Model, Scaler
    from helpers.deepspot_fit import network_of

    path, arrays = Path(path), read_arrays(path)
    try:
        facts = json.loads(bytes(arrays.pop(_TEXT)))
        own = Neighbourhood(**facts["near"]) if facts["near"] else None
        network = network_of(facts["options"], facts["features"], len(facts["genes"]))
        for layer in network.layers:
            if layer.weights:
                layer.set_weights([arrays[f"{layer.name}_{weight.name}"] for weight in layer.weights])
        scaler = Scaler(arrays["scaler_mean"], arrays["scaler_scale"])
        basis = arrays.get("basis")
        centre = arrays["centre"] if basis is not None else None
        told = {**facts["facts"], "encoder": facts["encoder"], "tile_um": facts["tile_um"]}
        model = Model(tuple(facts["genes"]), network, scaler, centre, basis, own, facts["options"], told,
                      bool(facts["legacy_padding"]))  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise CourseError(f"an archive without what a model needs ({type(error).__name__}: {str(error)[:100]})",
                          "a file written by deepspot.save", "save it again", file=path) from None  # fmt: skip
    if len(scaler.mean) != len(model.genes):
        seen = f"{len(scaler.mean)} scales for {len(model.genes)} genes"
        raise CourseError(seen, "one each", "save it again", file=path)
    _compare(model, path, encoder, tile_um, genes, near)
    return model


def _compare(model, path, encoder, tile_um, genes, near):
    facts = model.facts
    key = "name" if facts["encoder"]["fingerprint"] == "unknown" else "fingerprint"  # of converted weights
    if encoder is not None and named(encoder)[key].lower() != facts["encoder"][key].lower():
        both = [f"{each['name']} ({each['fingerprint'][:8]})" for each in (named(encoder), facts["encoder"])]
        raise CourseError(f"embeddings of {both[0]}", f"those of {both[1]}", "set ENCODER to the model's, or fit anew",
                          file=path)  # fmt: skip
    if tile_um is not None and not np.isclose(tile_um, facts["tile_um"], rtol=0.01):
        raise CourseError(f"tiles of {tile_um} um", f"{facts['tile_um']} um, as trained", "cut them so", file=path)
    if near is not None and model.near is not None and near.facts() != model.near.facts():
        told = f"{model.near.facts()}, as trained"
        raise CourseError(f"neighbours {near.facts()}", told, "use Model.near", file=path)
    if genes is not None and list(genes) != list(model.genes):
        common = len(set(genes) & set(model.genes))
        same = "in another order" if sorted(genes) == sorted(model.genes) else f"{common} of them the model's"
        expected = f"the model's {len(model.genes)}, {model.genes[0]} first"
        raise CourseError(f"{len(list(genes))} genes, {same}", expected, "take Model.genes as the columns", file=path)

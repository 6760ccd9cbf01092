"""Methods, DeepSpot2Cell: a fitted network in one ``.npz`` of plain numbers and one JSON text; loading runs no code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

FORMAT = 1
LARGEST = 1 << 29
"""Bytes a file may unpack to."""
_KEYS = ("format", "genes", "config", "facts", "weights")
_CONFIG = ("features", "context", "genes", "kind", "width", "hidden", "dropout", "use_context", "seed")


def save(model, path, *, encoder, tile_um: float) -> Path:
    """Write a model, first under a temporary name.

    Parameters
    ----------
    path
        Ends in ``.npz``.
    encoder
        What embedded the tiles: an object or dict with ``name`` and ``fingerprint`` (``helpers.encoders``).
    tile_um
        Side of the patches' tiles, um.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise CourseError(f"a file named {path.name}", "a name ending in .npz", "rename it", file=path)
    if not (np.isfinite(tile_um) and tile_um > 0):
        raise CourseError(f"tile_um {tile_um}", "microns above 0", "give the side of the patches")
    told = {**model.facts, "encoder": _named(encoder), "tile_um": float(tile_um)}
    weights = model.net.get_weights()
    facts = {"format": FORMAT, "genes": list(model.genes), "config": model.config, "facts": told,
             "weights": [list(each.shape) for each in weights]}  # fmt: skip
    arrays = {f"weight_{i:03d}": each for i, each in enumerate(weights)}
    for name in ("of_cells", "of_context"):
        arrays[f"{name}_centre"], arrays[f"{name}_basis"] = getattr(model, name).centre, getattr(model, name).basis
    packed = io.BytesIO()
    np.savez(packed, facts=np.array(json.dumps(facts)), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    try:
        part.write_bytes(packed.getvalue())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _named(encoder) -> dict:
    found = encoder if isinstance(encoder, dict) else {
        "name": getattr(encoder, "name", None), "fingerprint": getattr(encoder, "fingerprint", None)
    }  # fmt: skip
    if not (isinstance(found.get("name"), str) and isinstance(found.get("fingerprint"), str)):
        raise CourseError(f"encoder {encoder!r:.80}", "an encoder, with name and fingerprint",
                          "give what encoders.get returned")  # fmt: skip
    return {"name": found["name"], "fingerprint": found["fingerprint"]}


def _arrays(path: Path) -> dict:
    if path.suffix != ".npz":
        raise CourseError(
            f"weights saved as {path.suffix or 'a file without ending'}", "an .npz file written by deepspot2cell.save",
            "pickled weights (.pt, .pth, .ckpt, .pkl) can run any code when loaded; fit the model again, or convert "
            "them in a separate process", file=path,
        )  # fmt: skip
    if not path.is_file():
        raise CourseError("no such file", "an .npz file", "check the path", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                seen = f"a file that unpacks to more than {LARGEST >> 20} MB"
                raise CourseError(seen, "a small model", "check where it comes from", file=path)
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError):
        seen = "a file that holds no plain arrays (cut short, pickled, or another kind)"
        raise CourseError(seen, "an .npz written by deepspot2cell.save", "save it again", file=path) from None


def _facts(arrays: dict, path: Path) -> dict:
    try:
        facts = json.loads(str(arrays["facts"]))
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict) or any(key not in facts for key in _KEYS) or facts["format"] != FORMAT:
        raise CourseError("an .npz without a description of this course", f"format {FORMAT}, genes, encoder",
                          "save it with deepspot2cell.save", file=path)  # fmt: skip
    return facts


def read_facts(path) -> dict:
    """Return what a saved model says of itself: ``genes``, ``config``, ``facts`` (with ``encoder``, ``tile_um``)."""
    path = Path(path)
    return _facts(_arrays(path), path)


def load(path, *, encoder=None, tile_um: float | None = None, genes=None):
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    encoder, tile_um, genes
        What the embeddings at hand are made with, and the genes wanted in their order; None: not compared.

    Raises
    ------
    CourseError
        A pickle or another kind of file, a damaged one; another encoder (weights or preprocessing), another side of the
        patches (by more than 1 %), other genes or another order; weights that do not fit the network described.
    """
    from helpers import deepspot2cell, deepspot2cell_layers

    path = Path(path)
    arrays = _arrays(path)
    facts = _facts(arrays, path)
    told = facts["facts"]
    if encoder is not None and _named(encoder)["fingerprint"] != told["encoder"]["fingerprint"]:
        shown = [f"{one['name']} ({one['fingerprint'][:8]})" for one in (_named(encoder), told["encoder"])]
        raise CourseError(f"embeddings of {shown[0]}", f"those of {shown[1]}", "set ENCODER to the model's", file=path)
    if tile_um is not None and not np.isclose(tile_um, told["tile_um"], rtol=0.01):
        seen = f"patches of {tile_um:g} um"
        raise CourseError(seen, f"{told['tile_um']:g} um, as it was taught with", "lay patches of that size", file=path)
    if genes is not None and list(genes) != facts["genes"]:
        same = sorted(genes) == sorted(facts["genes"])
        seen = "the same genes in another order" if same else f"{len(list(genes))} other genes"
        raise CourseError(seen, f"the model's {len(facts['genes'])} genes, {facts['genes'][0]} first",
                          "take Model.genes as the order of the columns", file=path)  # fmt: skip
    try:
        net = deepspot2cell_layers.build(**{key: facts["config"][key] for key in _CONFIG})
        weights = [arrays[f"weight_{i:03d}"] for i in range(len(facts["weights"]))]
        net.set_weights(weights)
        project = [deepspot2cell.Projection(arrays[f"{name}_centre"], arrays[f"{name}_basis"])
                   for name in ("of_cells", "of_context")]  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise CourseError(f"weights that do not fit ({str(error)[:120]})", "those of the network described",
                          "save it again", file=path) from None  # fmt: skip
    return deepspot2cell.Model(tuple(facts["genes"]), net, facts["config"], *project, told)

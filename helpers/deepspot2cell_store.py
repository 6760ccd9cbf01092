"""Methods, DeepSpot2Cell: a fitted network in one ``.npz`` of plain numbers and one JSON text; loading runs no code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import plain_arrays
from helpers.messages import CourseError

FORMAT = 1
_KEYS = ("genes", "config", "facts", "weights")
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
    if not (np.isfinite(tile_um) and tile_um > 0):
        raise CourseError(f"tile_um {tile_um}", "microns above 0", "give the side of the patches")
    told = {**model.facts, "encoder": plain_arrays.named(encoder), "tile_um": float(tile_um)}
    weights = model.net.get_weights()
    facts = {"format": FORMAT, "genes": list(model.genes), "config": model.config, "facts": told,
             "weights": [list(each.shape) for each in weights]}  # fmt: skip
    arrays = {f"weight_{i:03d}": each for i, each in enumerate(weights)}
    for name in ("of_cells", "of_context"):
        arrays[f"{name}_centre"], arrays[f"{name}_basis"] = getattr(model, name).centre, getattr(model, name).basis
    return plain_arrays.write(path, facts, arrays)


def _read(path) -> tuple[dict, dict]:
    return plain_arrays.read(path, format=FORMAT, needs=_KEYS, made_by="deepspot2cell.save")


def read_facts(path) -> dict:
    """Return what a saved model says of itself: ``genes``, ``config``, ``facts`` (with ``encoder``, ``tile_um``)."""
    return _read(path)[0]


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

    facts, arrays = _read(path)
    told = facts["facts"]
    given = None if encoder is None else plain_arrays.named(encoder)
    if given is not None and given["fingerprint"] != told["encoder"]["fingerprint"]:
        shown = [f"{one['name']} ({one['fingerprint'][:8]})" for one in (given, told["encoder"])]
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

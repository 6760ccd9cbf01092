"""Methods, DeepSpot: a model as one ``.npz`` file - plain arrays and a text - which no loader can be made to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import plain_arrays
from helpers.deepspot_bags import Neighbourhood
from helpers.messages import CourseError

FORMAT = 1
_KEYS = ("genes", "options", "facts", "near", "legacy_padding", "encoder", "tile_um", "features")


def save(model, path, *, encoder, tile_um: float) -> Path:
    """Write a model with its genes, encoder, tile size and neighbourhood; under a temporary name first.

    Parameters
    ----------
    encoder
        What made the embeddings: an object with ``name`` and ``fingerprint``, or a dict of the two.
    tile_um
        Side of the spot's tile in microns.
    """
    if not (np.isfinite(tile_um) and tile_um > 0):
        raise CourseError(f"tiles of {tile_um} um", "a positive size", "give the side of the spot's tile")
    facts = {
        "format": FORMAT, "genes": list(model.genes), "options": model.options, "facts": model.facts,
        "near": None if model.near is None else model.near.facts(), "legacy_padding": model.legacy_padding,
        "encoder": plain_arrays.named(encoder), "tile_um": float(tile_um),
        "features": int(model.network.inputs[0].shape[-1]),
    }  # fmt: skip
    arrays = {"scaler_mean": model.scaler.mean, "scaler_scale": model.scaler.scale}
    if model.basis is not None:
        arrays |= {"centre": model.centre, "basis": model.basis}
    for layer in model.network.layers:
        for weight in layer.weights:
            arrays[f"{layer.name}_{weight.name}"] = np.asarray(weight, np.float32)
    return plain_arrays.write(path, facts, arrays)


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

    facts, arrays = plain_arrays.read(path, format=FORMAT, needs=_KEYS, made_by="deepspot.save")
    try:
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
    given = None if encoder is None else plain_arrays.named(encoder)
    if given is not None and given[key].lower() != facts["encoder"][key].lower():
        both = [f"{each['name']} ({each['fingerprint'][:8]})" for each in (given, facts["encoder"])]
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

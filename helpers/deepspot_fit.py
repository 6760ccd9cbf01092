"""Methods, DeepSpot: training - projection, scaled targets, low-rank head, AdamW, early stopping by patient."""

from __future__ import annotations

import functools

import numpy as np

from helpers import settings
from helpers.deepspot_bags import Bags
from helpers.messages import CourseError, note

CONTEXTS = {"spot": (False, False), "subspot": (True, False), "neighbours": (False, True), "both": (True, True)}
"""Whether sub-spots and neighbours are used."""
PRESETS = {
    "course": {},
    "published": {  # full size; it under-trains on few spots (10 steps): for conversion, or very much data
        "width": 512, "phi_members": 10, "rho_members": 10, "rank": 0, "components": 0, "phi_dropout": 0.3, "lr": 1e-4,
        "batch": 1024, "epochs": 10, "weight_decay": 1e-6,
    },
    "deepcell": {  # of cells: no sub-spots, wider
        "context": "neighbours", "width": 1024, "phi_members": 10, "rho_members": 10, "rank": 0, "components": 0,
        "phi_dropout": 0.2, "rho_dropout": 0.2, "lr": 1e-4, "batch": 1024, "epochs": 10, "weight_decay": 1e-6,
    },
}  # fmt: skip
DEFAULTS = {
    "context": "both", "width": 64, "phi_members": 4, "rho_members": 4, "rank": 8, "components": 64, "median": "lower",
    "pool": "max", "sub_pool": "sum", "phi_dropout": 0.0, "rho_dropout": 0.3, "out_dropout": 0.1, "loss": "mse",
    "scaling": "standard", "lr": 1e-3, "weight_decay": 1e-6, "batch": 128, "epochs": 40, "patience": 10,
}  # fmt: skip
"""With the median, phi has no dropout: the lower median of partly zeroed members is biased low, so that without
dropout, at inference, predictions would come out too large; correlations hide it."""


_BUILT = ("sub", "neighbours", "width", "phi_members", "rho_members", "median", "pool", "sub_pool", "phi_dropout",
          "rho_dropout", "out_dropout", "seed")  # fmt: skip


def fit(bags: Bags, target, *, sections, genes, near=None, stop_on=None, refit: bool = True, weights=None,
        balance: bool = False, preset: str = "course", seed: int = 0, facts=None, **options):  # fmt: skip
    """Train a model.

    Parameters
    ----------
    bags
        Of n spots (``deepspot_bags.bags``).
    target
        float (n, g): ``deepspot.expression``.
    sections
        (n,) names, for held-out sections, ``balance`` and the record.
    genes
        g names.
    near
        The neighbourhood the bags were built with; kept with the model.
    stop_on
        Names of sections to stop on, best all of one patient: they are not learnt from, and the epoch at which the mean
        correlation on them is best is taken. None: ``epochs`` epochs.
    refit
        After ``stop_on``, train on everything for the number of epochs found.
    weights
        (n,) positive: how far to trust each spot, e.g. the root of its total. For ``loss="poisson"``, total / 10,000
        makes it the likelihood of the counts.
    balance
        Let each section weigh the same.
    preset
        ``"course"``, ``"published"`` or ``"deepcell"``; ``options`` override it. See ``DEFAULTS``: context, width,
        phi_members, rho_members, rank (0: none), components (0: no projection), median ("lower" or "mean"), pool
        ("max", "mean", "sum"), sub_pool, dropouts, loss (names joined by +), scaling, lr, weight_decay, batch, epochs,
        patience.

    Returns
    -------
    deepspot.Model
        ``facts["history"]``: mean r on the held-out sections after each epoch.

    Raises
    ------
    CourseError
        An unknown option, shapes that do not fit, sections that are not there, a context without its bags.
    """
    from helpers.deepspot import Model, Scaler

    options = _options(preset, options)
    target, sections = np.asarray(target, np.float32), np.asarray(sections).astype(str)
    genes = tuple(str(name) for name in genes)
    _check(bags, target, sections, genes, options, stop_on)
    trust = np.ones(len(target)) if weights is None else np.asarray(weights, float)
    if trust.shape != (len(target),) or not (np.isfinite(trust).all() and (trust > 0).all()):
        raise CourseError(f"weights {trust.shape}, some not positive", f"({len(target)},), positive", "correct them")
    if balance:
        trust = trust * (1 / _totals(sections, trust))
    sub, around = CONTEXTS[options["context"]]
    options["sub"] = bags.sub.shape[1] if sub else 0
    options["neighbours"] = bags.index.shape[1] if around else 0
    options["seed"] = int(settings.rng(seed, "deepspot", options["context"]).integers(2**30))
    held = np.isin(sections, list(stop_on or ()))
    history, epochs = [], options["epochs"]

    def train(rows, epochs, watch):
        scaler = Scaler.fit(target[rows], options["scaling"])
        y = scaler.apply(target)
        centre, basis = _projection(bags, rows, options["components"])
        wide = bags.table.shape[1] if basis is None else basis.shape[1]
        network = network_of(options, wide, len(genes))
        if options["rank"]:
            network.get_layer("genes").set_weights([_directions(y[rows], trust[rows], options["rank"])])
        facts_here = {**(facts or {}), "train_sections": sorted(set(sections[rows].tolist())), "seed": int(seed)}
        model = Model(genes, network, scaler, centre, basis, near if around else None, options, facts_here)
        found = _epochs(model, bags, y, trust, rows, epochs, watch, sections, options)
        return model, found

    if held.any():
        model, history = train(np.flatnonzero(~held), epochs, np.flatnonzero(held))
        epochs = int(np.argmax(history)) + 1
        note(f"deepspot {options['context']}: best after {epochs} of {len(history)} epochs")
    if not held.any() or refit:
        model, _ = train(np.arange(len(target)), epochs, None)
    model.facts.update(history=[float(value) for value in history], epochs=epochs)
    return model


def network_of(options: dict, features: int, genes: int):
    """Return the untrained network that options describe."""
    from helpers import deepspot_layers

    rank = min(options["rank"], genes) if options["rank"] else 0
    return deepspot_layers.build(features=features, genes=genes, rank=rank, **{name: options[name] for name in _BUILT})


def tiles_of(table, sub, rows, index, mask, *, legacy: bool = False):
    """Return the tiles (n, 1 + s + k, d) of spots, [own, sub-spots, neighbours], and their mask (n, k), float32.

    ``legacy``: zeros in place of missing neighbours, and a mask that lets them take part, as in published models.
    """
    parts = [table[rows][:, None]] + ([] if sub is None else [sub])
    mask = np.zeros((len(rows), 0), np.float32) if mask is None else mask
    if index is not None:
        parts.append(table[index])
        if legacy:
            parts[-1], mask = parts[-1] * mask[..., None], np.ones_like(mask)
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False), mask


@functools.lru_cache(maxsize=8)
def _trainer(features: int, genes: int, loss: str, lr: float, weight_decay: float, built: tuple):
    """Return a trainer, traced once for networks of one kind."""
    from helpers import deepspot_layers

    return deepspot_layers.Trainer(network_of(dict(built), features, genes), loss, lr, weight_decay)


def _epochs(model, bags, y, trust, rows, epochs, watch, sections, options) -> list:
    """Train in place; return the mean correlation on ``watch`` after each epoch, and keep the best weights."""
    import tensorflow as tf

    n, around, (table, sub) = len(bags), bool(options["neighbours"]), model.project(bags)
    network, genes = model.network, len(model.genes)
    built = tuple((name, options[name]) for name in sorted((*_BUILT, "rank")) if name != "seed") + (("seed", 0),)
    trainer = _trainer(table.shape[1], genes, options["loss"], options["lr"], options["weight_decay"], built)
    trainer.start(network.get_weights(), options["seed"])
    sub = np.zeros((n, 0, table.shape[1])) if sub is None else sub
    index, mask = (bags.index, bags.mask) if around else (bags.index[:, :0], bags.mask[:, :0])
    share, scaler = trust / trust.mean(), model.scaler
    floats, rows_of = functools.partial(tf.constant, dtype=tf.float32), functools.partial(tf.constant, dtype=tf.int64)
    given = (floats(table), floats(sub), rows_of(bags.rows), rows_of(index), floats(mask), floats(y), floats(share),
             floats(scaler.mean), floats(scaler.scale))  # fmt: skip
    draw, history, best = settings.rng(options["seed"], "deepspot", "batches"), [], None
    size = min(options["batch"], len(rows))
    for _ in range(epochs):
        order = draw.permutation(rows).astype(np.int64)
        for at in range(0, len(order) - size + 1, size):
            value = trainer.step(*given, tf.constant(order[at : at + size]))
        if not np.isfinite(float(value)):
            raise CourseError("a loss that is not finite", "a number", "lower lr, or choose another loss")
        if watch is not None:
            network.set_weights(trainer.network.get_weights())
            history.append(_mean_r(y[watch], model.predict(bags.take(watch), scaled=True), sections[watch]))
            if history[-1] == max(history):
                best = network.get_weights()
            if len(history) - int(np.argmax(history)) > options["patience"]:
                break
    network.set_weights(trainer.network.get_weights() if best is None else best)
    return history


def _mean_r(target, said, sections) -> float:
    """Return Pearson's r, mean over genes and sections; a gene that does not vary counts as 0."""
    found = []
    for name in np.unique(sections):
        a, b = (np.asarray(each[sections == name], np.float64) for each in (target, said))
        a, b = a - a.mean(0), b - b.mean(0)
        norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
        found.append(np.divide((a * b).sum(0), norm, out=np.zeros(a.shape[1]), where=norm > 1e-9).mean())
    return float(np.mean(found))


def _projection(bags, rows, components: int):
    """Return centre and basis of the principal components of the training spots' tiles; scores have sd 1 overall."""
    if not components or components >= bags.table.shape[1]:
        return None, None
    x = bags.table[bags.rows[rows]].astype(np.float64)
    centre = x.mean(0)
    values, vectors = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
    basis = vectors[:, ::-1][:, :components]
    spread = np.sqrt(max(values[::-1][:components].mean(), 1e-12))
    return centre.astype(np.float32), (basis / spread).astype(np.float32)


def _directions(y, trust, rank: int):
    """Return the first principal directions of scaled targets (n, g), float32 (rank, g)."""
    y = np.asarray(y, np.float64) * np.sqrt(trust / trust.mean())[:, None]
    rank = min(rank, y.shape[1])
    return np.linalg.eigh(y.T @ y)[1][:, ::-1][:, :rank].T.astype(np.float32)


def _totals(sections, trust):
    names, place = np.unique(sections, return_inverse=True)
    return np.bincount(place, trust)[place]


def _options(preset: str, given: dict) -> dict:
    unknown = [name for name in given if name not in DEFAULTS]
    if preset not in PRESETS or unknown:
        raise CourseError(f"preset {preset!r}, options {', '.join(unknown) or 'known'}",
                          f"{', '.join(PRESETS)}; options {', '.join(DEFAULTS)}", "correct the name")  # fmt: skip
    options = {**DEFAULTS, **PRESETS[preset]}
    options |= {name: value for name, value in given.items() if value is not None}  # 0 is a value
    losses = set(options["loss"].split("+")) - {"mse", "l1", "huber", "poisson", "pearson", "cosine"}
    words = options["context"] in CONTEXTS and options["median"] in ("lower", "mean") and not losses
    words &= options["pool"] in ("max", "mean", "sum") and options["sub_pool"] in ("sum", "mean")
    if not words or min(options[name] for name in ("width", "phi_members", "rho_members", "batch", "epochs")) < 1:
        raise CourseError(f"options {options}", f"context of {', '.join(CONTEXTS)}; median lower or mean; pools max, "
                          "mean, sum; losses of deepspot_layers.LOSSES; sizes from 1", "correct one")  # fmt: skip
    return options


def _check(bags, target, sections, genes, options, stop_on):
    n, (sub, around) = len(bags), CONTEXTS[options["context"]]
    if target.shape != (n, len(genes)) or sections.shape != (n,) or n < 8 or not np.isfinite(target).all():
        raise CourseError(f"{n} spots, targets {target.shape}, {len(genes)} genes, {sections.shape} sections",
                          "finite (spots, genes), one section name a spot, at least 8 spots", "pair them")  # fmt: skip
    if len(set(genes)) < len(genes):
        raise CourseError("gene names that repeat", "each once", "join the tables with counts.join")
    if (sub and bags.sub is None) or (around and not bags.index.shape[1]):
        lacks = "sub-spots" if sub and bags.sub is None else "neighbours"
        raise CourseError(f"context {options['context']!r} without {lacks}", "bags that hold them",
                          "pass sub=... or near=... to bags()")  # fmt: skip
    unknown = sorted(set(stop_on or ()) - set(sections.tolist()))
    if unknown or (stop_on and set(sections.tolist()) <= set(stop_on)):
        raise CourseError(f"stop_on {sorted(stop_on)}", f"some of {', '.join(sorted(set(sections)))}, not all",
                          "name whole sections of one patient")  # fmt: skip

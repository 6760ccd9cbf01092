"""Methods: DeepSpot2Cell - single cells from spots - in Keras, with a target under which a lone cell is on scale.

A spot is a bag of cells. Of each cell the network sees a tile, of its surroundings the own patch and the eight round it
(masked where the slide ends). It is taught with the spots' counts alone and asked for one cell. The published network
adds up *representations* and decodes the sum, so that a lone cell, whose sum is shorter than any it was taught with, is
decoded off scale. ``kind="rates"`` decodes each cell into expected counts and adds up *those* inside a negative
binomial likelihood: whatever explains the sum of several cells is then a statement about one.

Doors of the room: :func:`bags`, :func:`fit`, :func:`load`; beside them ``deepspot2cell_tiles``, ``_baselines``,
``_scores``.
Nonchev et al. 2025, bioRxiv 10.1101/2025.09.23.678121.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from helpers import settings
from helpers.deepspot2cell_bags import Bags, bags, patches_as_cells
from helpers.deepspot2cell_store import load, read_facts, save
from helpers.messages import CourseError

__all__ = ["KINDS", "Bags", "Model", "bags", "deconvolve", "fit", "load", "patches_as_cells", "read_facts", "save"]

KINDS = ("rates", "sum", "mean", "gru", "mlp")
SIZE = 10.0
"""Size r of the negative binomial: variance = mean + mean^2 / r."""
BATCH = 512


@dataclass(frozen=True)
class Projection:
    """(x - centre) @ basis: principal components of the training rows, each scaled by the first one's spread."""

    centre: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, x, components: int) -> Projection:
        """Learn from float (n, f); at most f components."""
        x = np.asarray(x, np.float64)
        centre = x.mean(0)
        values, vectors = np.linalg.eigh(np.cov(x - centre, rowvar=False).reshape(x.shape[1], -1))
        basis = vectors[:, ::-1][:, : min(components, x.shape[1])]
        spread = np.sqrt(max(values[-1], 1e-12))
        return cls(centre.astype(np.float32), (basis / spread * 3.0).astype(np.float32))

    def __call__(self, x):
        if x.shape[-1] != len(self.centre):
            seen = f"{x.shape[-1]} numbers a row"
            raise CourseError(seen, f"{len(self.centre)}, as the model was taught with", "use the same encoder")
        return (x - self.centre) @ self.basis


@dataclass(frozen=True)
class Model:
    """A fitted network.

    Attributes
    ----------
    genes
        Names, in the order of every column below.
    net
        Keras model; ``deepspot2cell_layers.build(**config)``.
    config
        What it was built with.
    of_cells, of_context
        The projections in front of it.
    facts
        ``kind``, ``encoder``, ``tile_um``, ``train_sections``, ``seed``, ``loss`` (first and last epoch), ...
    """

    genes: tuple
    net: object = field(repr=False)
    config: dict = field(repr=False)
    of_cells: Projection = field(repr=False)
    of_context: Projection = field(repr=False)
    facts: dict

    @property
    def kind(self) -> str:
        """What the network adds up."""
        return self.config["kind"]

    def _seen(self, given: Bags) -> Bags:
        return replace(given, cells=self.of_cells(given.cells), context=self.of_context(given.context))

    def predict(self, given: Bags, rows=None) -> np.ndarray:
        """Return each cell alone, float32 (cells, genes).

        With ``kind="rates"`` expected counts; else what the published network says, log(1 + counts per 10^4 of a spot),
        negatives clipped once.
        """
        rows = np.arange(len(given.cells)) if rows is None else np.asarray(rows)
        return self._run(self._seen(given), rows, "singles")

    def predict_spots(self, given: Bags, rows=None) -> np.ndarray:
        """Return spots as bags of their cells, float32 (spots, genes), in the unit of :meth:`predict`."""
        rows = np.arange(len(given.context)) if rows is None else np.asarray(rows)
        return self._run(self._seen(given), rows, "spots")

    def _run(self, given, rows, what):
        parts = [np.empty((0, len(self.genes)), np.float32)]
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            short = BATCH - len(chosen) if len(rows) > BATCH else 0  # one shape, so that one graph is traced
            made = self.net.predict_on_batch(list(getattr(given, what)(np.r_[chosen, chosen[:1].repeat(short)])))
            parts.append(np.asarray(made, np.float32)[: len(chosen)])
        return np.maximum(np.concatenate(parts), 0.0)

    def composition(self, predicted) -> np.ndarray:
        """Return predictions as log(1 + counts per 10^4 of the cell itself), float32, each row summing to 10^4."""
        linear = predicted if self.kind == "rates" else np.expm1(np.minimum(predicted, 15.0))
        return np.log1p(1e4 * linear / np.maximum(linear.sum(1, keepdims=True), 1e-9)).astype(np.float32)


def fit(
    given: Bags, counts, *, genes, kind: str = "rates", use_context: bool = True, exposure=None, epochs: int = 30,
    batch: int = 32, learning_rate: float = 2e-3, width: int = 64, hidden: int = 128, dropout: float = 0.3,
    components: int = 64, size: float = SIZE, weight_decay: float = 1e-4, seed: int = 0, facts=None,
) -> Model:  # fmt: skip
    """Teach a network with spots.

    Parameters
    ----------
    given
        From :func:`bags`. Spots without cells or without counts do not teach (they stay context).
    counts
        Array or sparse (patches, genes): summed counts of each spot (``Patches.sums``), in ``given``'s order.
    genes
        Names of the columns.
    kind
        ``"rates"``: negative binomial on the spots' counts. ``"sum"`` (published), ``"mean"``, ``"gru"``, ``"mlp"``:
        squared error on log(1 + counts per 10^4). See ``deepspot2cell_layers.build``.
    use_context
        Without it the network sees the cell's tile alone.
    exposure
        float (patches,): how deeply a spot was measured relative to the others (its section's mean count a cell);
        default 1. It multiplies the rates in training only.
    epochs, batch, learning_rate, width, hidden, dropout, components, weight_decay
        The published ones are 512 wide, rate 1e-4, batch 256 and hundreds of epochs on thousands of spots; a few
        hundred spots want a smaller network in front of which embeddings are reduced to principal components.
    size
        r of the negative binomial.
    seed
        Of weights, dropout and batches.
    facts
        Further entries of ``Model.facts``: ``encoder``, ``tile_um``, ``train_sections``.

    Raises
    ------
    CourseError
        Counts that do not fit, no spot with cells and counts, an unknown kind.
    """
    import keras

    from helpers import deepspot2cell_layers as layers

    totals, rows = _teaching(given, counts, genes, kind)
    number = (given.index[rows] >= 0).sum(1)
    exposure = np.ones(len(given.context)) if exposure is None else np.asarray(exposure, float)
    used = np.zeros(len(given.cells), bool)
    used[given.index[rows][given.index[rows] >= 0]] = True
    of_cells = Projection.fit(given.cells[used], components)
    of_context = Projection.fit(given.context, components)
    seen = replace(given, cells=of_cells(given.cells), context=of_context(given.context))
    stream = settings.rng(seed, "deepspot2cell", kind, use_context)
    config = {
        "features": int(of_cells.basis.shape[1]), "context": int(of_context.basis.shape[1]), "genes": len(genes),
        "kind": kind, "width": width, "hidden": hidden, "dropout": dropout, "use_context": bool(use_context),
        "seed": int(stream.integers(2**30)),
    }  # fmt: skip
    net = layers.build(**config)
    if kind == "rates":
        target = (totals / exposure[rows, None]).astype(np.float32)
        mean = np.maximum(target.sum(0) / number.sum(), 1e-3)  # start at the mean count of a cell
        kernel, _ = net.get_layer("rho_2").get_weights()
        net.get_layer("rho_2").set_weights([kernel * 0.5, np.log(np.expm1(mean))])
        loss = layers.negative_binomial(size)
    else:
        target = np.log1p(1e4 * totals / totals.sum(1, keepdims=True)).astype(np.float32)
        kernel, _ = net.get_layer("rho_2").get_weights()
        net.get_layer("rho_2").set_weights([kernel, target.mean(0)])
        loss = "mean_squared_error"
    per_epoch = max(1, len(rows) // min(batch, len(rows)))
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * per_epoch, alpha=0.02)
    net.compile(keras.optimizers.AdamW(rate, weight_decay=weight_decay), loss=loss, jit_compile=False)
    batches = layers.Batches(lambda chosen: seen.spots(rows[chosen]), target, n=len(rows), batch=batch,
                             steps=epochs * per_epoch, rng=stream)  # fmt: skip
    history = _train(net, batches, epochs, per_epoch)
    told = {"kind": kind, "seed": int(seed), "spots": len(rows), "cells": int(used.sum()), "loss": history}
    return Model(tuple(map(str, genes)), net, config, of_cells, of_context, {**told, "size": size, **(facts or {})})


def _teaching(given, counts, genes, kind):
    """Return the counts of the spots that teach, dense float64, and their rows; refuse what cannot teach."""
    if kind not in KINDS:
        raise CourseError(f"kind={kind!r}", f"one of {', '.join(KINDS)}", "choose one")
    dense = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, float)
    if dense.shape != (len(given.context), len(genes)):
        raise CourseError(f"counts {dense.shape} of {len(given.context)} patches and {len(genes)} genes",
                          "one row a patch, one column a gene", "take Patches.sums of the same cells")  # fmt: skip
    if not np.isfinite(dense).all() or (dense < 0).any():
        raise CourseError("counts below 0 or not finite", "raw counts", "pass what was counted, not its logarithm")
    rows = np.flatnonzero(((given.index >= 0).any(1)) & (dense.sum(1) > 0))
    if len(rows) < 2:
        raise CourseError(f"{len(rows)} spots with cells and counts", "at least 2", "check patches and counts")
    return dense[rows], rows


def _train(net, batches, epochs, per_epoch) -> list:
    """Run the batches; return the mean loss of the first and of the last epoch."""
    losses = [float(net.train_on_batch(*batches[number])) for number in range(len(batches))]
    net.reset_metrics()
    return [float(np.mean(losses[:per_epoch])), float(np.mean(losses[-per_epoch:]))]


def deconvolve(rates, spot_counts, *, patch, inside, size: float = SIZE) -> np.ndarray:
    """Return the expected counts of the cells in measured spots, given what the spot was measured to hold.

    If the spot's rates are those of its cells, times one gamma factor a gene and spot (which makes the sum negative
    binomial), the factor's posterior mean is (r + counts) / (r + sum of rates), and every cell is multiplied by it.
    With ``size=0`` the cells share the counts out in proportion to their rates and add up to them exactly.

    Parameters
    ----------
    rates
        float (cells, genes): :meth:`Model.predict` of ``kind="rates"``.
    spot_counts
        Array or sparse (patches, genes).
    patch, inside
        (cells,): each cell's patch, and whether it is in the spot. Cells out of a spot are multiplied too: their
        neighbours in the spot are the best witness there is.

    Returns
    -------
    float32 (cells, genes). Cells without a patch, and those whose spot holds no cell, keep their rates.
    """
    rates, patch, inside = np.asarray(rates, float), np.asarray(patch), np.asarray(inside, bool)
    dense = np.asarray(spot_counts.toarray() if hasattr(spot_counts, "toarray") else spot_counts, float)
    summed = np.zeros(dense.shape)
    np.add.at(summed, patch[inside], rates[inside])
    factor = np.where(summed > 0, (size + dense) / np.maximum(size + summed, 1e-12), 1.0)
    held = (patch >= 0) & (np.bincount(patch[inside], minlength=len(dense))[patch] > 0)
    return (rates * np.where(held[:, None], factor[patch], 1.0)).astype(np.float32)

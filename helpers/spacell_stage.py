"""Methods, SpaCell: the stage of a disease from tiles and counts together - a network with two inputs.

An image stream (embeddings, or a trainable backbone that sees the tiles) and a gene stream meet in dense layers and end
in one probability per stage. Modes: ``combine``, ``gene_only``, ``tile_only``. Training looks at whole animals:
:func:`cross_validate` splits by animal, stops early on animals it did not train on, and chooses and scales genes
on its training animals alone. ``spacell_stage_scores`` judges the outcome. After Tan et al. 2020 (SpaCell), with the
L2 penalty, the wired gene stream and the animal-wise folds that the paper describes and the published code lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError, note
from helpers.spacell_stage_data import Data, plan, spoil
from helpers.spacell_stage_net import MODES, TRAINABLE, Network, Settings, build, trainable

__all__ = [
    "MODES", "TRAINABLE", "Data", "Fitted", "Network", "Scaler", "Settings", "build", "connectivity", "cross_validate",
    "fit", "plan", "spoil", "trainable",
]  # fmt: skip


# ---------------------------------------------------------------- inputs
@dataclass
class Scaler:
    """What the inputs of a network owe to its training rows: chosen genes, means and sds, principal axes.

    The components keep their own sizes (the first has sd 1): small ones, mostly noise and single animals, stay small.
    """

    genes: np.ndarray
    gene_mean: np.ndarray
    gene_sd: np.ndarray
    gene_axes: np.ndarray
    image_mean: np.ndarray | None = None
    image_sd: np.ndarray | None = None
    image_axes: np.ndarray | None = None

    @classmethod
    def learn(cls, data: Data, rows, s: Settings) -> Scaler:
        """Learn from the rows given, and from nothing else: the most variable genes, then their mean and sd."""
        genes = data.genes[rows]
        chosen = np.sort(np.argsort(-genes.var(0), kind="stable")[: s.n_genes])
        mean, sd, axes = _axes(genes[:, chosen], s.components)
        made = cls(chosen, mean, sd, axes)
        if data.images.ndim < 4:
            seen = data.images[rows].reshape(-1, data.images.shape[-1])
            made.image_mean, made.image_sd, made.image_axes = _axes(seen, s.components)
        return made

    def inputs(self, data: Data, rows, mode: str, *, views=None) -> dict[str, np.ndarray]:
        """Return the network's inputs for some rows; ``views`` picks a view for each (default: the tile itself)."""
        out = {}
        if mode != "gene_only":
            seen = data.images[rows]
            if seen.ndim == 3:
                seen = seen[np.arange(len(rows)), 0 if views is None else views]
            out["image"] = seen
            if seen.ndim == 2:
                out["image"] = (((seen - self.image_mean) / self.image_sd) @ self.image_axes).astype(np.float32)
        if mode != "tile_only":
            genes = (data.genes[rows][:, self.genes] - self.gene_mean) / self.gene_sd
            out["genes"] = (genes @ self.gene_axes).astype(np.float32)
        return out


def _axes(values, n: int):
    """Return mean, sd and the first ``n`` principal axes (columns) of the standardised columns of an array."""
    values = values.astype(np.float64)
    mean, sd = values.mean(0), values.std(0)
    sd = np.maximum(sd, 1e-3 * sd.max() + 1e-9)
    scaled = (values - mean) / sd
    size, axes = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    axes = axes[:, ::-1][:, :n] / np.sqrt(max(size[-1], 1e-12))
    return mean, sd, axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)


def _run(model, inputs: dict, batch: int = 1024) -> np.ndarray:
    """Return the probabilities of a network, without dropout or turns."""
    import keras

    n = len(next(iter(inputs.values())))
    parts = [model({k: v[i : i + batch] for k, v in inputs.items()}, training=False) for i in range(0, n, batch)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


def _entropy(probability, label) -> float:
    """Return the mean cross-entropy, without penalty and class weights."""
    return float(-np.log(np.maximum(probability[np.arange(len(label)), label], 1e-7)).mean())


@dataclass
class Fitted:
    """A trained network with its scaler and the learning curves (one row an epoch)."""

    model: object
    scaler: Scaler
    settings: Settings
    stages: tuple[str, ...]
    history: pd.DataFrame
    weights: list

    def predict(self, data: Data, rows=None, *, permute: str = "", rng=None) -> np.ndarray:
        """Return probabilities (n, stages); ``permute`` shuffles ``"image"`` or ``"genes"`` over the rows first."""
        rows = np.arange(len(data.table)) if rows is None else np.asarray(rows)
        inputs = self.scaler.inputs(data, rows, self.settings.mode)
        if permute:
            inputs[permute] = inputs[permute][rng.permutation(len(rows))]
        self.model.set_weights(self.weights)  # one compiled network serves all folds
        return _run(self.model, inputs)

    def save(self, path) -> None:
        """Write the network as ``.keras``; :meth:`save_inputs` writes what its inputs need."""
        self.model.set_weights(self.weights)
        self.model.save(path)

    def save_inputs(self, path) -> None:
        """Write mode, stages and the scaler (chosen genes by position, means, sds, axes) as ``.npz``."""
        facts = {name: value for name, value in vars(self.scaler).items() if value is not None}
        with open(path, "wb") as stream:
            np.savez(stream, stages=np.array(self.stages), mode=np.array(self.settings.mode), **facts)


# ---------------------------------------------------------------- training
def fit(data: Data, train, valid, s: Settings, *, seed: int, name: str = "", network: Network | None = None) -> Fitted:
    """Train one network.

    Parameters
    ----------
    data
        All tiles; only the rows named next are looked at.
    train, valid
        Positions of the tiles to learn from, and of those that say when to stop (other animals; empty: no early
        stopping, half the epochs).
    seed, name
        Name the random streams of this training.
    network
        Reused if given; else built for this data.
    """
    train, valid = np.asarray(train), np.asarray(valid)
    shared = set(data.table["subject_id"].iloc[train]) & set(data.table["subject_id"].iloc[valid])
    if shared:
        note(f"warning: animal {', '.join(sorted(map(str, shared)))} trains and decides when to stop")
    network = network or Network(data, s)
    stream = settings.rng(seed, "stage", name, s.mode)
    network.renew(stream)
    scaler = Scaler.learn(data, train, s)
    label, eye = data.label, np.eye(len(data.stages), dtype=np.float32)
    share = np.bincount(label[train], minlength=len(data.stages)) / len(train)
    if (share > 0).sum() < 2:
        raise CourseError("one stage among the training tiles", "at least two", "split differently")
    weight = (1 / np.maximum(share * (share > 0).sum(), 1e-9))[label[train]].astype(np.float32)  # stages weigh alike
    views = data.images.shape[1] if data.images.ndim == 3 else 1
    watched = scaler.inputs(data, valid, s.mode) if len(valid) else None
    history, best, best_weights, waited = [], np.inf, None, 0
    for epoch in range(s.epochs if len(valid) else max(1, s.epochs // 2)):
        inputs = scaler.inputs(data, train, s.mode, views=stream.integers(0, views, len(train)))
        order = stream.permutation(len(train))
        for start in range(0, len(order), s.batch):
            part = order[start : start + s.batch]
            batch = {name_: values[part] for name_, values in inputs.items()}
            network.model.train_on_batch(batch, eye[label[train[part]]], weight[part])
        row = {"epoch": epoch + 1, "loss": _entropy(_run(network.model, inputs), label[train])}
        if watched is not None:
            seen = _run(network.model, watched)
            row["valid_loss"] = _entropy(seen, label[valid])
            row["valid_accuracy"] = float((seen.argmax(1) == label[valid]).mean())
            waited += 1
            if row["valid_loss"] < best - 1e-4:
                best, best_weights, waited = row["valid_loss"], network.model.get_weights(), 0
        history.append(row)
        if waited > s.patience:
            break
    weights = best_weights or network.model.get_weights()
    return Fitted(network.model, scaler, s, data.stages, pd.DataFrame(history), weights)


def cross_validate(data: Data, s: Settings, folds, *, seed: int, network: Network | None = None):
    """Train on each fold and predict its test tiles.

    Returns
    -------
    probability
        float32 (n, stages); NaN for tiles that no fold tested.
    fold
        int (n,), -1 where none.
    fits
        A :class:`Fitted` per fold.
    """
    network = network or Network(data, s)
    probability = np.full((len(data.table), len(data.stages)), np.nan, np.float32)
    number, fits = np.full(len(data.table), -1), []
    for i, (train, valid, test) in enumerate(folds):
        rows = data.rows(test)
        fits.append(fit(data, data.rows(train), data.rows(valid), s, seed=seed, name=f"fold {i}", network=network))
        probability[rows], number[rows] = fits[-1].predict(data, rows), i
    return probability, number, fits


def connectivity(data: Data, fits, fold, *, seed: int) -> dict[str, float]:
    """Return the tile accuracy lost when one stream is shuffled over the test tiles: ``{"image": .., "genes": ..}``.

    A stream that is not wired to the output loses nothing, however well the network scores: so it was with the gene
    stream of the published combined classifier, which was wired to the image a second time.
    """
    lost, label = {}, data.label
    for stream in ("image", "genes"):
        rng, right, after, n = settings.rng(seed, "connectivity", stream), 0, 0, 0
        for i, fitted in enumerate(fits):
            rows = np.flatnonzero(fold == i)
            right += (fitted.predict(data, rows).argmax(1) == label[rows]).sum()
            after += (fitted.predict(data, rows, permute=stream, rng=rng).argmax(1) == label[rows]).sum()
            n += len(rows)
        lost[stream] = float(right - after) / n
    return lost

"""Methods: DeepSpot and DeepCell (Nonchev 2025) - a spot as three bags of tiles, an ensemble of small networks.

This is the room's front door: :class:`Model` predicts, :func:`expression` prepares the target, :func:`load` opens a
saved model. ``deepspot_bags`` and ``deepspot_sub`` build the bags, ``deepspot_fit`` trains, ``deepspot_compare``
compares contexts, ``deepspot_layers`` holds the network, ``deepspot_store`` the file, ``deepspot_weights`` converts the
published packages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.deepspot_bags import Bags, Neighbourhood, bags, lattice, neighbours, spacing
from helpers.deepspot_fit import CONTEXTS, PRESETS, fit
from helpers.deepspot_store import load, save
from helpers.deepspot_sub import as_sub, free_sub, sub_batches, sub_px
from helpers.messages import CourseError

__all__ = [
    "Bags", "CONTEXTS", "Model", "Neighbourhood", "PRESETS", "Scaler", "as_sub", "bags", "expression", "fit",
    "free_sub", "lattice", "load", "neighbours", "save", "slope", "spacing", "sub_batches", "sub_px",
]  # fmt: skip


def expression(counts, library):
    """Return log(1 + 10^4 y / N), float32 (n, g): counts (n, g), dense or sparse; N (n,) **over all genes measured**.

    Raises
    ------
    CourseError
        Negative counts, a spot without counts, or totals of another length.
    """
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    library = np.asarray(library, np.float64)
    if library.shape != (len(counts),) or not (library > 0).all() or (len(counts) and counts.min() < 0):
        raise CourseError(f"totals {library.shape}, {(library <= 0).sum()} not positive, least count "
                          f"{counts.min() if counts.size else 0}", f"({len(counts)},) positive totals, counts from 0",
                          "sum over all genes; drop spots without counts")  # fmt: skip
    return np.log1p(counts * (1e4 / library)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Scaler:
    """What makes genes comparable: (y - mean) / scale, both float32 (g,). Applied once, undone once.

    The published helper undoes the scaling, and its notebook undoes it again on the result.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, target, how: str = "standard") -> Scaler:
        """Learn from float (n, g): ``"standard"`` mean and sd, ``"robust"`` median and interquartile range, ``"none"``.

        A gene without spread keeps scale 1.
        """
        target = np.asarray(target, np.float64)
        if how == "standard":
            mean, scale = target.mean(0), target.std(0)
        elif how == "robust":
            low, mean, high = np.percentile(target, (25, 50, 75), axis=0)
            scale = high - low
        elif how == "none":
            mean, scale = np.zeros(target.shape[1]), np.ones(target.shape[1])
        else:
            raise CourseError(f"scaling {how!r}", "'standard', 'robust' or 'none'", "choose one")
        scale = np.where(scale > 1e-6, scale, 1.0)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def apply(self, target):
        """Scale float (n, g)."""
        return (np.asarray(target, np.float32) - self.mean) / self.scale

    def undo(self, scaled):
        """Undo it."""
        return np.asarray(scaled, np.float32) * self.scale + self.mean


@dataclass(frozen=True)
class Model:
    """A trained (or converted) model.

    Attributes
    ----------
    genes
        Names of the columns predicted.
    network
        Keras model: tiles (n, 1 + s + k, d), mask (n, k) -> scaled expression (n, g).
    scaler
        Undone once, in :meth:`predict`.
    centre, basis
        float32 (D,), (D, d): the projection of embeddings in front of the network; None: none.
    near
        The neighbourhood trained with; inference must use the same. None where neighbours are not used.
    options
        What the network was built with: context, width, members, ...
    facts
        Encoder, tile size, training sections, history: plain values.
    legacy_padding
        A published model saw zeros in place of missing neighbours, and they took part in the maximum. To repeat its
        numbers, so must they here. New models use the mask.
    """

    genes: tuple[str, ...]
    network: object
    scaler: Scaler
    centre: np.ndarray | None
    basis: np.ndarray | None
    near: Neighbourhood | None
    options: dict
    facts: dict = field(default_factory=dict)
    legacy_padding: bool = False

    @property
    def features(self) -> int:
        """Numbers of an embedding."""
        return int(self.network.inputs[0].shape[-1] if self.basis is None else self.basis.shape[0])

    def project(self, bags: Bags) -> tuple:
        """Return table (m, d) and sub (n, s, d) or None as the network reads them; refuse bags it cannot read."""
        sub, around = CONTEXTS[self.options["context"]]
        wrong = bags.table.shape[1] != self.features
        wrong |= sub and (bags.sub is None or bags.sub.shape[1] != self.options["sub"])
        wrong |= around and bags.index.shape[1] != self.options["neighbours"]
        if wrong:
            has = 0 if bags.sub is None else bags.sub.shape[1]
            raise CourseError(
                f"embeddings of {bags.table.shape[1]}, {has} sub-spots, {bags.index.shape[1]} neighbours",
                f"{self.features}, {self.options['sub']}, {self.options['neighbours']} as trained",
                "use the encoder, the sub-spots and the neighbourhood of training",
            )  # fmt: skip
        if self.basis is None:
            return bags.table, bags.sub if sub else None
        turn = lambda x: (x - self.centre) @ self.basis  # noqa: E731
        return turn(bags.table), turn(bags.sub) if sub else None

    def predict(self, bags: Bags, *, clip: bool = True, scaled: bool = False, batch: int = 512):
        """Return predicted log1p(counts per 10,000), float32 (n, g).

        Parameters
        ----------
        bags
            Built with the encoder, the tile size and the neighbourhood of training.
        clip
            Set negative values to 0, after the scaling is undone: there are no negative counts.
        scaled
            Return what the network says, before the scaling is undone.
        """
        from helpers.deepspot_fit import tiles_of

        table, sub = self.project(bags)
        around = CONTEXTS[self.options["context"]][1]
        parts = [np.zeros((0, len(self.genes)), np.float32)]
        for start in range(0, len(bags), batch):
            here = slice(start, start + batch)
            tiles, mask = tiles_of(
                table, None if sub is None else sub[here], bags.rows[here], bags.index[here] if around else None,
                bags.mask[here] if around else None, legacy=self.legacy_padding,
            )  # fmt: skip
            parts.append(np.asarray(self.network([tiles, mask], training=False), np.float32))
        said = np.concatenate(parts)
        if scaled:
            return said
        said = self.scaler.undo(said)
        return np.maximum(said, 0) if clip else said

    def collapsed(self) -> Model:
        """Return the same model with one head in place of an ensemble: its mean, exactly. Smaller, no slower."""
        from dataclasses import replace

        from helpers.deepspot_fit import network_of

        options = {**self.options, "rho_members": 1}
        small = network_of(options, self.network.inputs[0].shape[-1], len(self.genes))
        for layer in self.network.layers:
            if layer.weights:
                values = layer.get_weights()
                if layer.name == "rho":
                    values = [value.mean(0, keepdims=True) for value in values]
                small.get_layer(layer.name).set_weights(values)
        return replace(self, network=small, options=options)


def slope(target, said):
    """Return, per gene, the slope of the target on the prediction through their means: float (g,); 1 is on scale.

    Below 1 the prediction swings too far, as after a median of members under dropout, or a scaling undone twice.
    """
    a, b = (np.asarray(each, np.float64) for each in (target, said))
    a, b = a - a.mean(0), b - b.mean(0)
    spread = (b**2).sum(0)
    return np.divide((a * b).sum(0), spread, out=np.full(a.shape[1], np.nan), where=spread > 1e-9)

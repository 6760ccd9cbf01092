"""Methods, DeepSpot2Cell: the network in Keras; importing this loads TensorFlow.

Inputs of every network, batch first: ``cells`` (batch, most, features), ``mask`` (batch, most), ``own`` (batch,
context), ``near`` (batch, 8, context), ``near_mask`` (batch, 8). Output: (batch, genes). A lone cell is a bag of one.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

KINDS = ("rates", "sum", "mean", "gru", "mlp")
TINY = 1e-6


class _Seeds:
    """Seeds for the layers of one network, in order."""

    def __init__(self, seed: int):
        self.next = int(seed)

    def __call__(self) -> int:
        self.next += 1
        return self.next


def _dense(units, seed, activation=None, name=None):
    start = keras.initializers.GlorotUniform(seed=seed())
    return keras.layers.Dense(units, activation=activation, name=name, kernel_initializer=start)


def _phi(x, layers):
    for layer in layers:
        x = layer(x)
    return x


def _tower(width: int, dropout: float, seed, name: str) -> list:
    """Two layers, shared by all that is put through them."""
    drop = [keras.layers.Dropout(dropout, seed=seed())] if dropout else []
    return [_dense(width, seed, "relu", name=f"{name}_1"), *drop, _dense(width, seed, "relu", name=f"{name}_2")]


def build(*, features: int, context: int, genes: int, kind: str, width: int, hidden: int, dropout: float,
          use_context: bool, seed: int):  # fmt: skip
    """Return the network, uncompiled.

    Parameters
    ----------
    features, context, genes
        Numbers per cell and per patch; outputs.
    kind
        ``"rates"``: softplus rates of each cell, added up (ours). ``"sum"`` (published): the representations are added
        up, rho follows. ``"mean"``: their mean. ``"gru"``: a recurrent network over the cells in their order.
        ``"mlp"``: the baseline, two layers on the mean of the cells' embeddings, no context.
    width, hidden
        Units of phi and of rho's first layer.
    use_context
        Whether the own patch and its neighbours are looked at.
    """
    seed = _Seeds(seed)
    cells, mask = keras.Input((None, features), name="cells"), keras.Input((None,), name="mask")
    own, near = keras.Input((context,), name="own"), keras.Input((8, context), name="near")
    near_mask = keras.Input((8,), name="near_mask")
    inputs = [cells, mask, own, near, near_mask]
    part, drop = ops.expand_dims(mask, -1), keras.layers.Dropout(dropout, seed=seed())
    if kind == "mlp":
        x = ops.sum(cells * part, axis=1) / ops.maximum(ops.sum(part, axis=1), 1.0)
        x = drop(_dense(hidden, seed, "relu", name="rho_1")(x))
        return keras.Model(inputs, _dense(genes, seed, name="rho_2")(x), name="mlp")
    x = _phi(cells, _tower(width, dropout, seed, "phi_cell"))
    if use_context:
        tower = _tower(width, dropout, seed, "phi_spot")
        here, seen = _phi(own, tower), ops.expand_dims(near_mask, -1)
        round_ = ops.sum(_phi(near, tower) * seen, axis=1) / ops.maximum(ops.sum(seen, axis=1), 1.0)
        about = ops.expand_dims(ops.concatenate([here, round_], axis=-1), 1)
        x = ops.concatenate([x, about * ops.ones_like(x[..., :1])], axis=-1)  # the same context beside every cell
    first, last = _dense(hidden, seed, "relu", name="rho_1"), _dense(genes, seed, name="rho_2")
    if kind == "rates":
        rates = ops.softplus(last(drop(first(x))))
        return keras.Model(inputs, ops.sum(rates * part, axis=1), name="rates")
    if kind == "gru":
        starts = keras.initializers.GlorotUniform(seed=seed()), keras.initializers.Orthogonal(seed=seed())
        gru = keras.layers.GRU(
            int(x.shape[-1]), kernel_initializer=starts[0], recurrent_initializer=starts[1], name="gru"
        )
        pooled = gru(x, mask=ops.cast(mask, "bool"))
    else:
        pooled = ops.sum(x * part, axis=1)
        if kind == "mean":
            pooled = pooled / ops.maximum(ops.sum(part, axis=1), 1.0)
    return keras.Model(inputs, last(drop(first(pooled))), name=kind)


def negative_binomial(size: float):
    """Return the negative log-likelihood of counts given means, up to constants: (r+y) log(r+mu) - y log mu.

    One size r for all genes, fixed: then the log-gamma terms are constants. Mean over genes.
    """

    def loss(counts, mean):
        mean = mean + TINY
        return ops.mean((counts + size) * ops.log(size + mean) - counts * ops.log(mean), axis=-1)

    return loss


class Batches(keras.utils.PyDataset):
    """A given number of batches of bags, in orders drawn from ``rng``."""

    def __init__(self, take, target, *, n: int, batch: int, steps: int, rng):
        super().__init__()
        self.take, self.target = take, target
        batch = min(batch, n)
        order = np.concatenate([rng.permutation(n)[: n - n % batch] for _ in range(-(-steps // (n // batch)))])
        self.chosen = order.reshape(-1, batch)[:steps]

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, number):
        rows = self.chosen[number]
        return self.take(rows), self.target[rows]

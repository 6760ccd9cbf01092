"""Methods, DeepSpot: Keras layers of the batched ensembles, and the losses; importing this loads TensorFlow.

Shapes: n spots, t tiles a spot (its own, its s sub-spots, its k neighbours, in this order), d numbers a tile, u units.
All members of an ensemble are one matrix product. No weights are initialised as Keras would: torch's uniform law
+-1 / sqrt(inputs) of one member is used, so that training starts where the published one does.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

PACKAGE = "helpers.deepspot"
LOSSES = ("mse", "l1", "huber", "poisson", "pearson", "cosine")


def _uniform(inputs: int, seed: int):
    limit = 1 / float(np.sqrt(inputs))
    return keras.initializers.RandomUniform(-limit, limit, seed=seed)


def lower_median(members):
    """Return the element-wise median of tensors (n, t, m, u) over m: of an even number the **lower** middle one.

    That is what torch calls a median. numpy's, the mean of the two middle ones, is another model: on random weights its
    output differs by two standard deviations. Four members need seven comparisons and no sorting.
    """
    m = members.shape[2]
    if m == 4:
        a, b, c, d = (members[:, :, i] for i in range(4))
        low = ops.maximum(ops.minimum(a, b), ops.minimum(c, d))
        return ops.minimum(low, ops.minimum(ops.maximum(a, b), ops.maximum(c, d)))
    return members[:, :, 0] if m == 1 else ops.sort(members, axis=2)[:, :, (m - 1) // 2]


@keras.saving.register_keras_serializable(package=PACKAGE)
class Phi(keras.layers.Layer):
    """The shared network of a tile, an ensemble: (n, t, d) -> (n, t, u), linear, rectified, dropout, median or mean."""

    def __init__(self, units: int, members: int = 4, rate: float = 0.0, median: str = "lower", seed: int = 0, **more):
        super().__init__(**more)
        self.units, self.members, self.rate = int(units), int(members), float(rate)
        self.median, self.seed = median, int(seed)
        self.drop = keras.layers.Dropout(self.rate, seed=self.seed + 1)

    def build(self, shape):
        """Make the kernel (d, members * u) and the bias."""
        wide, start = self.members * self.units, _uniform(shape[-1], self.seed)
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], wide), initializer=start)
        self.bias = self.add_weight(name="bias", shape=(wide,), initializer=_uniform(shape[-1], self.seed + 2))

    def call(self, x, training=None):
        """Apply all members at once."""
        z = self.drop(ops.relu(ops.matmul(x, self.kernel) + self.bias), training=training)
        z = ops.reshape(z, (-1, x.shape[1], self.members, self.units))
        return lower_median(z) if self.median == "lower" else ops.mean(z, axis=2)

    def compute_output_shape(self, shape):
        """(n, t, u)."""
        return (*shape[:2], self.units)

    def get_config(self):
        """Plain values."""
        own = {"units": self.units, "members": self.members, "rate": self.rate, "median": self.median}
        return {**super().get_config(), **own, "seed": self.seed}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Bag(keras.layers.Layer):
    """From tiles to spots: (n, 1 + s + k, u) and a mask (n, k) -> (n, parts * u): [spot, sub-spots, neighbours].

    Sub-spots are summed (or averaged). Of the neighbours the masked maximum is taken; a spot without any gets 0, the
    least a rectified number can be, so the same holds for mean and sum.
    """

    def __init__(self, sub: int, neighbours: int, pool: str = "max", sub_pool: str = "sum", **options):
        super().__init__(**options)
        self.sub, self.neighbours, self.pool, self.sub_pool = int(sub), int(neighbours), pool, sub_pool

    def call(self, inputs):
        """Pool the two bags and put the parts side by side."""
        z, mask = inputs
        parts = [z[:, 0]]
        if self.sub:
            total = ops.sum(z[:, 1 : 1 + self.sub], axis=1)
            parts.append(total / self.sub if self.sub_pool == "mean" else total)
        if self.neighbours:
            around = z[:, 1 + self.sub :] * ops.expand_dims(mask, -1)
            if self.pool == "max":
                parts.append(ops.max(around, axis=1))
            else:
                number = ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1.0) if self.pool == "mean" else 1.0
                parts.append(ops.sum(around, axis=1) / number)
        return ops.concatenate(parts, axis=-1)

    def compute_output_shape(self, shapes):
        """(n, parts * u)."""
        return (shapes[0][0], (1 + (self.sub > 0) + (self.neighbours > 0)) * shapes[0][-1])

    def get_config(self):
        """Plain values."""
        own = {"sub": self.sub, "neighbours": self.neighbours, "pool": self.pool, "sub_pool": self.sub_pool}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Rho(keras.layers.Layer):
    """The head, an ensemble: (n, p) -> (n, g), dropout, linear, dropout, mean over members.

    It has no hidden layer, so the mean of its members is **one** linear map, the mean of their weights: outside
    training only that is computed. Each member still draws its own dropout.
    """

    def __init__(self, units: int, members: int = 4, rate: float = 0.3, out_rate: float = 0.1, seed: int = 0, **more):
        super().__init__(**more)
        self.units, self.members = int(units), int(members)
        self.rate, self.out_rate, self.seed = float(rate), float(out_rate), int(seed)
        self.drop = keras.layers.Dropout(self.rate, seed=self.seed + 1)
        self.out_drop = keras.layers.Dropout(self.out_rate, seed=self.seed + 2)

    def build(self, shape):
        """Make the kernel (members, p, g) and the bias (members, g)."""
        start = _uniform(shape[-1], self.seed)
        self.kernel = self.add_weight(name="kernel", shape=(self.members, shape[-1], self.units), initializer=start)
        shape_of_bias, start = (self.members, self.units), _uniform(shape[-1], self.seed + 3)
        self.bias = self.add_weight(name="bias", shape=shape_of_bias, initializer=start)

    def call(self, z, training=None):
        """Each member in training, their mean otherwise."""
        if not training:
            return ops.matmul(z, ops.mean(self.kernel, axis=0)) + ops.mean(self.bias, axis=0)
        many = self.drop(ops.repeat(ops.expand_dims(z, 0), self.members, axis=0), training=True)
        said = ops.matmul(many, self.kernel) + self.bias[:, None]
        return ops.mean(self.out_drop(said, training=True), axis=0)

    def compute_output_shape(self, shape):
        """(n, g)."""
        return (shape[0], self.units)

    def get_config(self):
        """Plain values."""
        own = {"units": self.units, "members": self.members, "rate": self.rate, "out_rate": self.out_rate}
        return {**super().get_config(), **own, "seed": self.seed}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Decode(keras.layers.Layer):
    """Fixed directions of expression: scores (n, r) -> genes (n, g)."""

    def __init__(self, genes: int, **options):
        super().__init__(**options)
        self.genes = int(genes)

    def build(self, shape):
        """Make room for the directions (r, g)."""
        self.basis = self.add_weight(name="basis", shape=(shape[-1], self.genes), initializer="zeros", trainable=False)

    def call(self, scores):
        """Multiply."""
        return ops.matmul(scores, self.basis)

    def compute_output_shape(self, shape):
        """(n, g)."""
        return (shape[0], self.genes)

    def get_config(self):
        """Plain values."""
        return {**super().get_config(), "genes": self.genes}


def build(*, features, genes, sub, neighbours, width, phi_members, rho_members, rank, median, pool, sub_pool,
          phi_dropout, rho_dropout, out_dropout, seed):  # fmt: skip
    """Return the network: inputs ``tiles`` (n, 1 + sub + neighbours, features) and ``mask`` (n, neighbours).

    ``rank`` 0: the head gives the genes themselves; else that many scores, decoded by fixed directions.
    """
    tiles = keras.Input((1 + sub + neighbours, features), name="tiles")
    mask = keras.Input((neighbours,), name="mask")
    z = Phi(width, phi_members, phi_dropout, median, seed, name="phi")(tiles)
    z = Bag(sub, neighbours, pool, sub_pool, name="bag")([z, mask])
    y = Rho(rank or genes, rho_members, rho_dropout, out_dropout, seed + 10, name="rho")(z)
    return keras.Model([tiles, mask], Decode(genes, name="genes")(y) if rank else y, name="deepspot")


# ---------------------------------------------------------------- losses
def loss(name: str):
    """Return a loss of (target, prediction, weight, mean, scale): a scalar.

    Target and prediction are scaled genes (n, g), weights (n,); mean and scale (g,) undo the scaling (``"poisson"``).

    Parameters
    ----------
    name
        One of ``LOSSES``, or several joined by ``+``, e.g. ``"mse+pearson"``: their sum.

    Notes
    -----
    ``mse``, ``l1``, ``huber`` (delta 1): of scaled expression. ``pearson``: 1 - r of each **gene** over the batch's
    spots. ``cosine``: 1 - cosine of each **spot** over genes. ``poisson``: negative log-likelihood mu - y log mu of
    counts per 10,000, y = exp(target) - 1, with mu made positive by a softplus on the log scale. Each means what its
    name says; in the published code "mse_pearson" is a cosine, and "pearson" is per spot in one model, per gene in the
    other.
    """
    parts = [_PARTS[each] for each in name.split("+")]

    def of(y, said, weight, mean, scale):
        weight = weight / ops.mean(weight)
        return sum(part(y, said, weight, mean, scale) for part in parts)

    return of


def _pointwise(function):
    return lambda y, said, w, mean, scale: ops.mean(ops.mean(function(said - y), axis=1) * w)


def _huber(off):
    size = ops.abs(off)
    return ops.where(size < 1, 0.5 * off**2, size - 0.5)


def _poisson(y, said, w, mean, scale):
    counts = ops.expm1(ops.maximum(y * scale + mean, 0.0))
    log = ops.minimum(ops.softplus(4.0 * (said * scale + mean)) / 4.0, 12.0)
    mu = ops.expm1(log) + 1e-6
    return ops.mean(ops.mean(mu - counts * ops.log(mu), axis=1) * w)


def _pearson(y, said, w, mean, scale):
    w = (w / ops.sum(w))[:, None]
    a, b = (each - ops.sum(each * w, axis=0) for each in (y, said))
    norm = ops.sqrt(ops.sum(a * a * w, axis=0) * ops.sum(b * b * w, axis=0) + 1e-9)
    return ops.mean(1.0 - ops.sum(a * b * w, axis=0) / norm)


def _cosine(y, said, w, mean, scale):
    norm = ops.sqrt(ops.sum(y * y, axis=1) * ops.sum(said * said, axis=1) + 1e-9)
    return ops.mean((1.0 - ops.sum(y * said, axis=1) / norm) * w)


_PARTS = {
    "mse": _pointwise(lambda off: off**2), "l1": _pointwise(ops.abs), "huber": _pointwise(_huber),
    "poisson": _poisson, "pearson": _pearson, "cosine": _cosine,
}  # fmt: skip


class Trainer:
    """A network, its optimiser and one traced training step; traced once, started afresh for every fit.

    Tracing costs more than training a small network on a few thousand spots.
    """

    def __init__(self, network, loss_name: str, lr: float, weight_decay: float):
        import tensorflow as tf

        self.network, of = network, loss(loss_name)
        self.optimiser = keras.optimizers.AdamW(lr, weight_decay=weight_decay)
        self.optimiser.build(network.trainable_variables)
        numbers, rows = tf.float32, tf.int64
        features, genes = network.inputs[0].shape[-1], network.outputs[0].shape[-1]
        sub_and_near = network.inputs[0].shape[1] - 1 - network.inputs[1].shape[1], network.inputs[1].shape[1]
        shapes = ((None, features), (None, sub_and_near[0], features), (None,), (None, sub_and_near[1]),
                  (None, sub_and_near[1]), (None, genes), (None,), (genes,), (genes,), (None,))  # fmt: skip
        kinds = (numbers, numbers, rows, rows, numbers, numbers, numbers, numbers, numbers, rows)

        @tf.function(input_signature=[tf.TensorSpec(shape, kind) for shape, kind in zip(shapes, kinds)])
        def step(table, sub, own, index, mask, target, share, mean, scale, chosen):
            parts = [tf.gather(table, tf.gather(own, chosen))[:, None], tf.gather(sub, chosen)]
            tiles = tf.concat([*parts, tf.gather(table, tf.gather(index, chosen))], axis=1)
            with tf.GradientTape() as tape:
                said = network([tiles, tf.gather(mask, chosen)], training=True)
                value = of(tf.gather(target, chosen), said, tf.gather(share, chosen), mean, scale)
            variables = network.trainable_variables
            self.optimiser.apply(tape.gradient(value, variables), variables)
            return value

        self.step = step

    def start(self, weights: list, seed: int) -> None:
        """Give the network its first weights, forget the optimiser's memory, and restart the dropout."""
        self.network.set_weights(weights)
        for variable in self.optimiser.variables:
            if "learning_rate" not in variable.path:
                variable.assign(ops.zeros_like(variable))
        for layer in self.network.layers:
            for number, drop in enumerate(each for each in vars(layer).values() if hasattr(each, "seed_generator")):
                drop.seed_generator.state.assign(np.array([seed % 2**31, number], np.uint32))

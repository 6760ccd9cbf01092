"""Methods, STimage: Keras layers and the loss of heads trained together; importing this loads TensorFlow.

Batch first throughout: (batch, members, genes). A saved model needs this module imported before it is loaded.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

PACKAGE = "helpers.stimage"
LOG_SIZE = (-3.0, 7.0)
"""Bounds of the log of a size that a network predicts for each spot."""


def _glorot(inputs: int, units: int, seed: int):
    """Glorot and Bengio's limit of *one* member; Keras would take the fans from the whole array."""
    limit = float(np.sqrt(6.0 / (inputs + units)))
    return keras.initializers.RandomUniform(-limit, limit, seed=seed)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Projection(keras.layers.Layer):
    """A fixed linear map, (batch, features) -> (batch, units): (x - centre) @ basis; set from principal components."""

    def __init__(self, units: int, **options):
        super().__init__(**options)
        self.units = int(units)

    def build(self, shape):
        """Make room for centre and basis."""
        self.centre = self.add_weight(name="centre", shape=(shape[-1],), initializer="zeros", trainable=False)
        self.basis = self.add_weight(name="basis", shape=(shape[-1], self.units), initializer="zeros", trainable=False)

    def call(self, x):
        """Project."""
        return ops.matmul(x - self.centre, self.basis)

    def compute_output_shape(self, shape):
        """(batch, units)."""
        return (shape[0], self.units)

    def get_config(self):
        """Scalars only."""
        return {**super().get_config(), "units": self.units}


class _Members(keras.layers.Layer):
    """What the two dense layers of members share."""

    def __init__(self, units: int, members: int, activation: str = "linear", l2: float = 0.0, seed: int = 0, **options):
        super().__init__(**options)
        self.units, self.members, self.l2, self.seed = int(units), int(members), float(l2), int(seed)
        self.activation_name, self.activation = activation, keras.activations.get(activation)

    def _weights(self, shape, inputs):
        penalty = keras.regularizers.L2(self.l2) if self.l2 else None
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=_glorot(inputs, self.units, self.seed), regularizer=penalty
        )
        self.bias = self.add_weight(name="bias", shape=(self.members, self.units), initializer="zeros")

    def compute_output_shape(self, shape):
        """(batch, members, units)."""
        return (shape[0], self.members, self.units)

    def get_config(self):
        """Scalars only, so the model reloads without unsafe code."""
        own = {"units": self.units, "members": self.members, "activation": self.activation_name, "l2": self.l2}
        return {**super().get_config(), **own, "seed": self.seed}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Spread(_Members):
    """A dense layer from shared features to every member: (batch, features) -> (batch, members, units), one GEMM.

    ``l2`` is times the sum of squares of the whole kernel: give that of one member divided by the number of members,
    as the loss averages over them.
    """

    def build(self, shape):
        """Make the kernel (features, members * units) and the bias."""
        self._weights((shape[-1], self.members * self.units), shape[-1])

    def call(self, x):
        """Multiply by all kernels at once."""
        product = ops.reshape(ops.matmul(x, self.kernel), (-1, self.members, self.units))
        return self.activation(product + self.bias)


@keras.saving.register_keras_serializable(package=PACKAGE)
class MemberDense(_Members):
    """A dense layer for each member: (batch, members, features) -> (batch, members, units)."""

    def build(self, shape):
        """Make the kernel (members, features, units) and the bias."""
        self._weights((self.members, shape[-1], self.units), shape[-1])

    def call(self, x):
        """Multiply each member's features by its own kernel."""
        product = ops.transpose(ops.matmul(ops.transpose(x, (1, 0, 2)), self.kernel), (1, 0, 2))
        return self.activation(product + self.bias)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Offset(keras.layers.Layer):
    """Adds what is known to what is learned: log mu = log N + baseline of the section + head.

    The baseline, (sections + 1, genes), is the log of a gene's share of all counts, not trained; row 0 holds the share
    over all training sections, for sections never seen. A second half of the head's outputs (log sizes) passes through.
    """

    def __init__(self, rows: int, genes: int, **options):
        super().__init__(**options)
        self.rows, self.genes = int(rows), int(genes)

    def build(self, shapes):
        """Make room for the baseline."""
        shape = (self.rows, self.genes)
        self.baseline = self.add_weight(name="baseline", shape=shape, initializer="zeros", trainable=False)

    def call(self, inputs):
        """Take head (batch, members, genes), log library (batch, 1) and section number (batch, 1)."""
        head, log_library, section = inputs
        known = ops.take(self.baseline, ops.cast(section[:, 0], "int32"), axis=0) + log_library
        if head.shape[-1] == self.genes:
            return head + known[:, None, :]
        return ops.concatenate([head[..., : self.genes] + known[:, None, :], head[..., self.genes :]], axis=-1)

    def compute_output_shape(self, shapes):
        """As the head."""
        return shapes[0]

    def get_config(self):
        """Scalars only."""
        return {**super().get_config(), "rows": self.rows, "genes": self.genes}


@keras.saving.register_keras_serializable(package=PACKAGE)
class NegativeBinomial(keras.losses.Loss):
    """Negative log-likelihood of counts, averaged over genes: target (batch, 1, genes) -> (batch, members).

    With one fixed size a gene the log-gamma terms are constants and are left out; they would be most of the cost.

    Parameters
    ----------
    log_size
        (genes,) logs of the sizes; None: the second half of the output is the log of a size for each spot and gene.
    """

    def __init__(self, log_size=None, name="negative_binomial", **options):
        super().__init__(name=name, **options)
        self.log_size = None if log_size is None else [float(value) for value in log_size]

    def call(self, y, output):
        """(y + r) softplus(d) - y d with d = log mu - log r, written so that nothing overflows."""
        if self.log_size is not None:
            log_size = np.asarray(self.log_size, np.float32)
            return ops.mean(_fixed(output - log_size, y, np.exp(log_size)), axis=-1)
        import tensorflow as tf

        log_mu, log_size = ops.split(output, 2, axis=-1)
        log_size = ops.clip(log_size, *LOG_SIZE)
        size, logits = ops.exp(log_size), log_mu - log_size
        gammas = tf.math.lgamma(size) + tf.math.lgamma(y + 1) - tf.math.lgamma(y + size)
        return ops.mean(gammas + size * ops.softplus(logits) + y * ops.softplus(-logits), axis=-1)

    def get_config(self):
        """Plain numbers."""
        return {**super().get_config(), "log_size": self.log_size}


def _fixed(logits, y, size):
    return (y + size) * ops.softplus(logits) - y * logits


def build(*, features, genes, members, rank, activation, components, sections, dispersion, l2, seed):
    """Return the network, uncompiled: inputs ``features``, ``log_library``, ``section``; output log mu.

    Parameters
    ----------
    features, genes, members, sections
        Sizes.
    rank
        Units of the bottleneck; 0: none, one dense layer from the features.
    components
        Units of the fixed projection in front; 0: none.
    dispersion
        ``"gene"``, or ``"spot"``: the head also gives the log of a size for each spot and gene (STimage's own).
    l2
        Two numbers, of the bottleneck and of the head: times the sum of squares of a member's kernel.
    """
    x = entry = keras.Input((features,), name="features")
    log_library, section = keras.Input((1,), name="log_library"), keras.Input((1,), name="section")
    if components:
        x = Projection(components, name="projection")(x)
    units, first, second = genes * (2 if dispersion == "spot" else 1), l2[0] / members, l2[1] / members
    if rank:
        x = Spread(rank, members, activation, first, seed, name="bottleneck")(x)
        x = MemberDense(units, members, "linear", second, seed + 1, name="head")(x)
    else:
        x = Spread(units, members, "linear", second, seed, name="head")(x)
    out = Offset(sections + 1, genes, name="log_mu")([x, log_library, section])
    return keras.Model([entry, log_library, section], out, name="stimage")


class Steps:
    """A given number of batches, in orders drawn from ``rng``: features, log library, section; counts; weights."""

    def __init__(self, x, log_library, section, y, weight, *, batch: int, steps: int, rng):
        self.parts, self.y, self.weight = (x, log_library, section), y, weight
        n = len(x)
        if n <= batch:
            self.chosen = [slice(None)] * steps
        else:
            rounds = -(-steps * batch // n)
            order = np.concatenate([rng.permutation(n) for _ in range(rounds)])
            self.chosen = [order[i * batch : (i + 1) * batch] for i in range(steps)]

    def __iter__(self):
        for chosen in self.chosen:
            y = self.y[chosen]
            y = y.toarray() if hasattr(y, "toarray") else y
            yield [part[chosen] for part in self.parts], y[:, None].astype(np.float32), self.weight[chosen]


def descend(model, loss, batches, *, learning_rate: float) -> float:
    """Update a model by Adam, a step a batch, and return the last loss, penalties included.

    What ``Model.fit`` would do, to the rounding; its own preparations cost more seconds than a hundred such steps.
    """
    import tensorflow as tf

    variables, optimizer = model.trainable_variables, keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def step(parts, y, weight):
        with tf.GradientTape() as tape:
            value = loss(y, model(parts, training=True), sample_weight=weight) + sum(model.losses)
        optimizer.apply(tape.gradient(value, variables), variables)
        return value

    for batch in batches:
        value = step(*tf.nest.map_structure(tf.constant, batch))
    return float(value)

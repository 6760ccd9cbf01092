"""Methods: the Keras layer and losses of networks trained together; importing this loads TensorFlow.

A saved model (``.keras``) needs this module imported before it is loaded.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

PACKAGE = "helpers.spacell"


@keras.saving.register_keras_serializable(package=PACKAGE)
class MemberDense(keras.layers.Layer):
    """A dense layer for each member: (batch, members, features) -> (batch, members, units).

    The kernel is (members, features, units), drawn uniformly with Glorot and Bengio's limit of *one* member: Keras
    would take fan-in and fan-out from the whole array, and deep stacks would start dead.
    """

    def __init__(self, units: int, activation: str = "linear", seed: int = 0, **options):
        super().__init__(**options)
        self.units, self.activation_name, self.seed = int(units), activation, int(seed)
        self.activation = keras.activations.get(activation)

    def build(self, shape):
        """Make the kernel and the bias."""
        _, members, features = shape
        limit = float(np.sqrt(6.0 / (features + self.units)))
        draw = keras.initializers.RandomUniform(-limit, limit, seed=self.seed)
        self.kernel = self.add_weight(name="kernel", shape=(members, features, self.units), initializer=draw)
        self.bias = self.add_weight(name="bias", shape=(members, self.units), initializer="zeros")

    def call(self, x):
        """Multiply each member's features by its own kernel."""
        product = ops.transpose(ops.matmul(ops.transpose(x, (1, 0, 2)), self.kernel), (1, 0, 2))
        return self.activation(product + self.bias)

    def compute_output_shape(self, shape):
        """(batch, members, units)."""
        return (*shape[:-1], self.units)

    def get_config(self):
        """Scalars only, so the model reloads without unsafe code."""
        return {**super().get_config(), "units": self.units, "activation": self.activation_name, "seed": self.seed}


class _MemberLoss(keras.losses.Loss):
    """Sum over members of their own loss; members of one loss lie side by side. The mask is 1 where a feature is."""

    def __init__(self, names, mask, **options):
        super().__init__(**options)
        self.names, self.mask = tuple(names), np.asarray(mask, np.float32)

    def call(self, target, logits):
        total = 0.0
        for name in dict.fromkeys(self.names):
            places = [i for i, other in enumerate(self.names) if other == name]
            part = slice(places[0], places[-1] + 1)
            y, z, mask = target[:, part], logits[:, part], self.mask[part]
            if name == "kl":
                share = (y + 1e-6) * mask
                share = share / ops.sum(share, -1, keepdims=True)
                each = -ops.sum(share * ops.log_softmax(z - (1 - mask) * 1e4, axis=-1), -1)
            else:
                error = ops.square(ops.sigmoid(z) - y) if name == "mse" else ops.softplus(z) - y * z
                each = ops.sum(error * mask, -1) / mask.sum(-1)
            total = total + ops.sum(each, -1)
        return total


class Batches(keras.utils.PyDataset):
    """Batches in an order drawn anew every epoch from ``rng`` (``fit`` itself would draw it from a global seed)."""

    def __init__(self, x, y, batch: int, rng):
        super().__init__()
        self.x, self.y, self.batch, self.rng = x, y, batch, rng
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.order) // self.batch)

    def __getitem__(self, number):
        chosen = self.order[number * self.batch : (number + 1) * self.batch]
        return tuple(part[chosen] for part in self.x), tuple(part[chosen] for part in self.y)

    def on_epoch_end(self):
        """Draw the next epoch's order."""
        self.order = self.rng.permutation(len(self.x[0]))


def build(seen, drawn, names, *, hidden, latent, masks, start, learning_rate, seed):
    """Return a compiled model: one input and one output of logits per block, one bottleneck for all.

    Parameters
    ----------
    seen, drawn
        Features of each block as the encoder sees it and as the decoder draws it.
    names
        Loss of each member.
    masks, start
        (members, features) of each block: which features a member has; first biases of the output, so that training
        starts at the mean predictor.
    """
    many, count = len(names), iter(range(seed, seed + 1000))

    def dense(x, units, activation="relu", **options):
        return MemberDense(units, activation, seed=next(count), **options)(x)

    entries = [keras.Input((many, features), name=f"block_{i}") for i, features in enumerate(seen)]
    streams = []
    for x in entries:
        for units in hidden if len(entries) == 1 else hidden[:1]:
            x = dense(x, units)
        streams.append(x)
    x = streams[0] if len(streams) == 1 else keras.layers.Concatenate()(streams)
    x = dense(x, latent, "linear", name="latent")
    for units in tuple(hidden)[::-1] if len(entries) == 1 else hidden[:1]:
        x = dense(x, units)
    exits = [dense(x, features, "linear", name=f"drawn_{i}") for i, features in enumerate(drawn)]
    model = keras.Model(entries, exits)
    for i, bias in enumerate(start):
        model.get_layer(f"drawn_{i}").bias.assign(bias)
    model.compile(keras.optimizers.Adam(learning_rate), loss=[_MemberLoss(names, mask) for mask in masks])
    return model

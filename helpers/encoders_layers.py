"""Methods, encoders: the one layer Keras lacks here; imported where a network is built."""

from __future__ import annotations

import keras

TINY_VARIANCE = 1e-6
"""Added to the variance under the root, whose slope at 0 is infinite."""


@keras.saving.register_keras_serializable(package="course_encoders")
class SpreadPooling2D(keras.layers.Layer):
    """Standard deviation of each channel over the places of a map: (n, h, w, c) -> (n, c)."""

    def call(self, x):
        """Return the standard deviations."""
        return keras.ops.sqrt(keras.ops.var(x, axis=(1, 2)) + TINY_VARIANCE)

    def compute_output_shape(self, shape):
        """Return (n, c)."""
        return (shape[0], shape[-1])

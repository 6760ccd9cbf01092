"""Methods, SpaCell: the stage classifier as a Keras network - an image stream, a gene stream, and what merges them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError

MODES = ("combine", "gene_only", "tile_only")
TRAINABLE = ("frozen", "partly", "full")


@dataclass(frozen=True)
class Settings:
    """How a network is built and trained. SpaCell's own: width 512, dropout .5, Adam 1e-3, batch 32, no L2."""

    mode: str = "combine"
    width: int = 64
    dropout: float = 0.3
    l2: float = 1e-2
    learning_rate: float = 2e-3
    batch: int = 128
    epochs: int = 40
    patience: int = 6
    n_genes: int = 128
    components: int = 8

    def __post_init__(self):
        if self.mode not in MODES:
            raise CourseError(f"mode {self.mode!r}", f"one of {', '.join(MODES)}", "correct MODE")
        if min(self.width, self.batch, self.epochs, self.n_genes) < 1 or not 0 <= self.dropout < 1 or self.l2 < 0:
            raise CourseError(f"settings {self}", "sizes of 1 or more, dropout in [0, 1), l2 >= 0", "correct them")


def build(*, settings_: Settings, n_stages: int, n_genes: int, image_dim: int = 0, backbone=None):
    """Return the network, uncompiled: inputs ``image`` and ``genes`` (as the mode needs), output ``stage``.

    Parameters
    ----------
    image_dim
        Length of an embedding; 0 where a ``backbone`` (a ``keras.Model``, tiles to vectors) reads the tiles itself.
    """
    import keras

    s, inputs, streams = settings_, {}, []
    weight = keras.regularizers.L2(s.l2)

    def dense(x, width, name):
        x = keras.layers.Dense(width, activation="relu", kernel_regularizer=weight, name=name)(x)
        return keras.layers.Dropout(s.dropout, name=f"{name}_dropout")(x)

    if s.mode != "gene_only":
        shape = (image_dim,) if backbone is None else backbone.input_shape[1:]
        inputs["image"] = keras.Input(shape, name="image")
        seen = inputs["image"] if backbone is None else backbone(_turns()(inputs["image"]))
        streams.append(dense(seen, s.width, "image_stream"))
    if s.mode != "tile_only":
        inputs["genes"] = keras.Input((n_genes,), name="genes")
        streams.append(dense(inputs["genes"], s.width, "gene_stream"))
    merged = keras.layers.Concatenate(name="merge")(streams) if len(streams) > 1 else streams[0]
    merged = dense(dense(merged, s.width, "merged_1"), max(8, s.width // 2), "merged_2")
    stage = keras.layers.Dense(n_stages, activation="softmax", name="stage")(merged)
    return keras.Model(inputs, stage, name=f"stage_{s.mode}")


def _turns():
    """Quarter turns and flips while training, nothing afterwards: augmentation that cannot reach a test tile."""
    import keras

    return keras.Sequential(
        [keras.layers.RandomFlip("horizontal_and_vertical"), keras.layers.RandomRotation((0.25, 0.25))], name="turns"
    )


def trainable(encoder, how: str = "frozen"):
    """Return an encoder's backbone for :func:`build`, with all, the last third or none of its layers trainable.

    Parameters
    ----------
    encoder
        From ``encoders.get``: ``backbone()`` gives a ``keras.Model``.
    how
        ``"frozen"``, ``"partly"`` (the last third of the layers with weights) or ``"full"``; batch normalisation
        stays as it is.
    """
    if how not in TRAINABLE:
        raise CourseError(f"trainable {how!r}", f"one of {', '.join(TRAINABLE)}", "correct TRAINABLE")
    import keras

    backbone = encoder.backbone()
    backbone.trainable = how != "frozen"
    if how != "frozen":
        weighted = [layer for layer in backbone.layers if layer.weights]
        fixed = weighted[: len(weighted) * 2 // 3] if how == "partly" else []
        for layer in weighted:
            layer.trainable = layer not in fixed and not isinstance(layer, keras.layers.BatchNormalization)
    return backbone


class Network:
    """One compiled network that every fold trains anew: building and tracing cost more than a fold's training."""

    def __init__(self, data, s: Settings, *, backbone=None):
        import keras

        n_genes = min(s.components, s.n_genes, data.genes.shape[1])
        dim = 0 if data.images.ndim == 4 else min(s.components, data.images.shape[-1])
        if (data.images.ndim == 4) != (backbone is not None) and s.mode != "gene_only":
            raise CourseError("tiles without a backbone, or embeddings with one", "tiles and a backbone, or embeddings",
                              "embed the tiles, or pass backbone=trainable(encoder, ...)")  # fmt: skip
        self.settings, self.backbone = s, backbone
        self.model = build(
            settings_=s, n_stages=len(data.stages), n_genes=n_genes, image_dim=dim, backbone=backbone
        )
        self.model.compile(keras.optimizers.Adam(s.learning_rate), "categorical_crossentropy")
        self.optimizer = self.model.optimizer
        self.optimizer.build(self.model.trainable_variables)
        self._loaded = None if backbone is None else backbone.get_weights()

    def renew(self, rng) -> None:
        """Give the dense layers fresh Glorot weights, the backbone its loaded ones, and empty the optimiser."""
        import keras

        if self.backbone is not None:
            self.backbone.set_weights(self._loaded)
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Dense):
                fan_in, fan_out = layer.kernel.shape
                limit = np.sqrt(6 / (fan_in + fan_out))
                layer.kernel.assign(rng.uniform(-limit, limit, (fan_in, fan_out)).astype(np.float32))
                layer.bias.assign(np.zeros(fan_out, np.float32))
            elif isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                layer.seed_generator.state.assign(rng.integers(0, 2**31, 2).astype(np.uint32))
        for variable in self.optimizer.variables:
            if variable is not self.optimizer.learning_rate and "learning_rate" not in variable.name:
                variable.assign(np.zeros(variable.shape, variable.dtype))

"""Methods, encoders: what an encoder is, and how a Keras network becomes one (``encoders`` is the front door)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from helpers.messages import CourseError

VERSION = 1  # part of every fingerprint: raise it when the code below changes an embedding
BATCH = 64


@dataclass(frozen=True)
class Encoder:
    """A network that turns a tile into ``dim`` numbers.

    Attributes
    ----------
    name
        As asked for.
    dim
        Length of an embedding.
    input_px
        Side to which every tile is resized first.
    fingerprint
        Hash of the weights and of the preprocessing: the same fingerprint gives the same embeddings.
    licence
        Terms of the weights, one line.
    prepare
        uint8 RGB (n, input_px, input_px, 3) -> what the network eats, float32.
    forward
        What ``prepare`` returns -> float32 (n, dim).
    make_backbone
        Builds :meth:`backbone`; None where the network is not a Keras model.
    """

    name: str
    dim: int
    input_px: int
    fingerprint: str
    licence: str
    prepare: Callable
    forward: Callable
    make_backbone: Callable | None = None

    def inputs(self, tiles):
        """Resize and preprocess tiles, uint8 RGB (n, h, w, 3), to the network's input, float32 (n, ...)."""
        tiles = np.asarray(tiles)
        if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
            raise CourseError(
                f"tiles {tiles.shape} of {tiles.dtype}", "uint8 RGB, (n, height, width, 3)", "cut them with tiles.cut"
            )
        side = self.input_px
        if tiles.shape[1:3] != (side, side):
            shrink = min(tiles.shape[1:3]) >= side
            how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
            small = [cv2.resize(tile, (side, side), interpolation=how) for tile in tiles]
            tiles = np.stack(small) if small else np.empty((0, side, side, 3), np.uint8)
        return self.prepare(tiles)

    def embed(self, tiles):
        """Return the embeddings of tiles, uint8 RGB (n, h, w, 3): float32 (n, dim). Runs ``BATCH`` tiles at a time."""
        parts = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(tiles), BATCH):
            found = np.asarray(self.forward(self.inputs(tiles[start : start + BATCH])), np.float32)
            if found.shape[1:] != (self.dim,) or not np.isfinite(found).all():
                raise CourseError(f"embeddings {found.shape} of {self.name}, some perhaps not finite",
                                  f"{self.dim} finite numbers a tile", "check the weights' file")  # fmt: skip
            parts.append(found)
        return np.concatenate(parts)

    def backbone(self):
        """Return a fresh trainable copy as a ``keras.Model`` (what ``inputs`` gives -> (n, dim)), weights loaded."""
        if self.make_backbone is None:
            raise CourseError(
                f"{self.name} as a trainable stream", "a Keras encoder", "use tiny, resnet50, ... or a .keras file"
            )
        return self.make_backbone()


def fingerprint(arrays, facts: dict) -> str:
    """Return 16 hex digits that name weights (arrays, in order) and preprocessing (plain values)."""
    digest = hashlib.sha256(json.dumps([VERSION, facts], sort_keys=True).encode())
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()[:16]


def from_keras(name: str, model, *, input_px: int, prepare, facts: dict, licence: str) -> Encoder:
    """Make an encoder of a Keras model; a map (n, h, w, c) at its end is averaged over its places."""
    import keras
    import tensorflow as tf

    if len(model.output.shape) == 4:
        pooled = keras.layers.GlobalAveragePooling2D()(model.output)
        model = keras.Model(model.inputs, pooled, name=model.name)
    if len(model.output.shape) != 2 or model.output.shape[-1] is None:
        raise CourseError(f"an output {model.output.shape}", "(n, dim) or (n, h, w, dim)", "declare another layer")

    @tf.function(input_signature=[tf.TensorSpec([None, input_px, input_px, 3], tf.float32)])
    def run(batch):
        return model(batch, training=False)

    def forward(batch):
        return run(tf.constant(batch)).numpy()

    def copy():
        twin = keras.models.clone_model(model)
        twin.set_weights(model.get_weights())
        return twin

    return Encoder(
        name=name, dim=int(model.output.shape[-1]), input_px=input_px, licence=licence, prepare=prepare,
        fingerprint=fingerprint(model.get_weights(), {"input_px": input_px, **facts}), forward=forward,
        make_backbone=copy,
    )  # fmt: skip

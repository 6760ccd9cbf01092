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
POOLS = ("mean", "mean+sd")


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
    blocks
        Numbers from each layer read (with ``pool="mean+sd"`` twice: means, then spreads), in their order along the
        embedding; their sum is ``dim``. One layer: ``(dim,)``.
    layers
        Names of the layers read, in order; empty where the network's own output is read.
    """

    name: str
    dim: int
    input_px: int
    fingerprint: str
    licence: str
    prepare: Callable
    forward: Callable
    make_backbone: Callable | None = None
    blocks: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "blocks", tuple(self.blocks) or (self.dim,))
        if sum(self.blocks) != self.dim:
            raise CourseError(f"blocks of {self.blocks} numbers", f"{self.dim} in all", "correct the encoder")

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


def from_keras(name: str, model, *, input_px: int, prepare, facts: dict, licence: str, layers=None,
               pool: str = "mean") -> Encoder:  # fmt: skip
    """Make an encoder of a Keras model; a map (n, h, w, c) at its end is averaged over its places.

    Parameters
    ----------
    layers
        Names of layers whose averages over places are joined, in one pass; ``"auto"``: :func:`stage_ends`. None: the
        model's output alone.
    pool
        ``"mean"``, or ``"mean+sd"``: each map's averages, then its standard deviations over places, two blocks a layer.
        (A tile with ten dark nuclei on pale ground and an evenly grey one have one mean, but not one spread.)
    """
    import keras
    import tensorflow as tf

    from helpers.encoders_layers import SpreadPooling2D

    names = stage_ends(model, input_px) if layers == "auto" else tuple(layers or ())
    known = [layer.name for layer in model.layers]
    for wrong in (each for each in names if each not in known):
        raise CourseError(f"no layer {wrong!r} in {name}", f"one of {', '.join(known[-6:])}, ...", "correct the layers")
    ends = [model.get_layer(each).output for each in names] or [model.output]
    if pool not in POOLS:
        raise CourseError(f"pool={pool!r}", f"one of {', '.join(POOLS)}", "choose one")
    pooled = []
    for end, each in zip(ends, names or ("output",)):
        is_map = len(end.shape) == 4
        mean = keras.layers.GlobalAveragePooling2D(name=f"{each}_mean")
        pooled.append(mean(end) if is_map else end)
        if len(pooled[-1].shape) != 2 or pooled[-1].shape[-1] is None:
            raise CourseError(f"an output {end.shape}", "(n, dim) or (n, h, w, dim)", "declare another layer")
        if is_map and pool == "mean+sd":
            pooled.append(SpreadPooling2D(name=f"{each}_sd")(end))
    blocks = tuple(int(each.shape[-1]) for each in pooled)
    if len(pooled) > 1:
        pooled = [keras.layers.Concatenate(name="joined")(pooled)]
        facts = {**facts, "layers": list(names), "pool": pool}
    if pooled[0] is not model.output:
        model = keras.Model(model.inputs, pooled[0], name=model.name)

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
        make_backbone=copy, blocks=blocks, layers=names,
    )  # fmt: skip


def stage_ends(model, input_px: int, *, n: int = 3) -> tuple[str, ...]:
    """Return the layers that end a network's last ``n`` stages of resolution, first to last.

    Only layers that everything passes through count (the joint after a residual or a branched block, never a branch).
    A stage ends where the side of the map shrinks to three quarters or less; zero padding ends none.
    """
    import keras

    flat = keras.tree.flatten
    made = {id(tensor): place for place, layer in enumerate(model.layers) for tensor in flat(layer.output)}
    needed = {id(model.output): len(model.layers)}
    for place, layer in enumerate(model.layers):
        needed |= {id(tensor): max(place, needed.get(id(tensor), 0)) for tensor in flat(layer.input)}
    open_ends = np.zeros(len(model.layers) + 1, int)  # results still waited for after each layer
    for tensor, last in needed.items():
        open_ends[made[tensor] : last] += 1
    spine = [each for each, n_open in zip(model.layers, open_ends) if n_open == 1 and id(each.output) in needed]
    spine = [layer for layer in spine if len(layer.output.shape) == 4]
    spine = [layer for layer in spine if not isinstance(layer, (keras.layers.InputLayer, keras.layers.ZeroPadding2D))]
    if not spine:
        return ()
    maps = keras.Model(model.inputs, [layer.output for layer in spine])
    shapes = maps.compute_output_shape((1, input_px, input_px, 3))
    sides = [shape[1] for shape in (shapes if len(spine) > 1 else [shapes])]
    ends = [layer.name for layer, here, then in zip(spine, sides, sides[1:]) if then <= 0.75 * here]
    return (*ends, spine[-1].name)[-n:]

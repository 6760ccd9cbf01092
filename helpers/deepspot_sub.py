"""Methods, DeepSpot: the sub-spots of a tile, cut into squares or, for free, pooled from the tile's own feature map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from helpers.messages import CourseError

GRID = 3


def sub_px(out_px: int, grid: int = GRID) -> int:
    """Return the side of the tiles to cut, pixels: ``out_px`` rounded up so that it divides into ``grid`` parts."""
    return -(-max(int(out_px), 2 * grid) // grid) * grid


def sub_batches(batches, *, grid: int = GRID):
    """Turn batches of spot tiles into batches of their sub-spots, for ``encoders.embed_batches``.

    Parameters
    ----------
    batches
        Yields (index (b,), tiles uint8 (b, side, side, 3)); ``side`` divides by ``grid``.

    Yields
    ------
    index : int (b * grid^2,)
        ``spot * grid^2 + place``, places row by row from the top left: :func:`as_sub` undoes it.
    tiles : uint8 (b * grid^2, side / grid, side / grid, 3)
    """
    for index, tiles in batches:
        tiles = np.asarray(tiles)
        n, side = tiles.shape[:2]
        if side % grid or tiles.shape[2] != side:
            raise CourseError(f"tiles {tiles.shape}", f"squares whose side divides by {grid}", "cut at sub_px(...)")
        part = side // grid
        cells = tiles.reshape(n, grid, part, grid, part, 3).transpose(0, 1, 3, 2, 4, 5)
        places = np.asarray(index)[:, None] * grid**2 + np.arange(grid**2)
        yield places.ravel(), np.ascontiguousarray(cells).reshape(n * grid**2, part, part, 3)


def as_sub(index, embeddings, *, grid: int = GRID):
    """Return sub-spots' embeddings (n * grid^2, d), in the order of ``index``, as float32 (n, grid^2, d)."""
    order = np.argsort(index, kind="stable")
    if len(order) % grid**2 or not (np.asarray(index)[order] % grid**2 == np.arange(len(order)) % grid**2).all():
        raise CourseError(f"{len(order)} sub-spots", f"{grid**2} of every spot", "cut tiles with border='edge'")
    return np.asarray(embeddings, np.float32)[order].reshape(-1, grid**2, np.shape(embeddings)[1])


def free_sub(encoder, *, grid: int = GRID):
    """Return an encoder whose numbers are a spot tile's sub-spots **for free**: its own last map, pooled in squares.

    Real sub-tiles cost ``grid^2`` passes; here the one pass of the spot's tile serves. Each sub-spot then also sees a
    little of its surroundings, as far as the network's receptive field goes.

    Parameters
    ----------
    encoder
        ``encoders.Encoder`` of a Keras network that ends in a global average over one map.

    Returns
    -------
    Encoder
        ``dim`` is grid^2 times the map's channels; reshape its numbers to (n, grid^2, channels).

    Raises
    ------
    CourseError
        No such map, or one smaller than ``grid``.
    """
    import keras
    import tensorflow as tf

    network = encoder.backbone()
    pools = [layer for layer in network.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    if len(pools) != 1 or pools[0].input.shape[-1] != encoder.dim:
        raise CourseError(f"{len(pools)} averages at the end of {encoder.name}", "one map, averaged over its places",
                          "take encoders.get(...) with its usual output")  # fmt: skip
    maps = keras.Model(network.inputs, pools[0].input)
    side = maps.compute_output_shape((1, encoder.input_px, encoder.input_px, 3))[1]
    if side < grid:
        raise CourseError(f"a map of {side} x {side}", f"at least {grid} x {grid}", "cut real sub-spots instead")
    share = np.zeros((grid, side), np.float32)  # each place of the map belongs to the squares it overlaps
    edge = np.linspace(0, side, grid + 1)
    for g in range(grid):
        share[g] = np.clip(np.minimum(edge[g + 1], np.arange(side) + 1) - np.maximum(edge[g], np.arange(side)), 0, 1)
    share /= share.sum(1, keepdims=True)

    @tf.function(input_signature=[tf.TensorSpec([None, encoder.input_px, encoder.input_px, 3], tf.float32)])
    def run(batch):
        pooled = tf.einsum("gy,nyxc,hx->nghc", share, maps(batch, training=False), share)
        return tf.reshape(pooled, (-1, grid * grid * encoder.dim))

    return replace(
        encoder, name=f"{encoder.name}_sub{grid}", dim=encoder.dim * grid**2, make_backbone=None, layers=(),
        blocks=(encoder.dim,) * grid**2, fingerprint=f"{encoder.fingerprint}-sub{grid}",
        forward=lambda batch: run(tf.constant(batch)).numpy(),
    )  # fmt: skip

"""Methods: HoVer-Net over an image of any size - tiles without seams, blocks without double nuclei, bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.hovernet_post import (
    FIRST,
    Post,
    blocks,
    contrast,
    doubles,
    entropy,
    faint,
    instances,
    of_core,
    outlines,
    vote,
)
from helpers.hovernet_targets import WORK_MPP, centres, check_rgb8, resample
from helpers.messages import CourseError

MARGIN = 32
"""Pixels thrown away at each side of a tile: nearer to its edge the network sees too little."""
FEATURELESS = 25
"""A tile whose grey values, in squares of 4 px, span less than this holds no nucleus and is not looked at."""


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of an image.

    Attributes
    ----------
    table
        DataFrame, one row a nucleus: ``x_um``, ``y_um`` (centroid), ``area_um2``, ``code`` (1 to C), ``class``,
        ``p_<class>``, ``entropy`` (0 to 1) and ``contrast`` (optical density); with features ``f0``, ``f1``, ...
    outlines
        List of float32 (v, 2): x, y in um, in the order of the table.
    labels
        int32 (y, x) at ``mpp``, ``row + 1`` of the table; None where not asked for.
    mpp
        Microns per pixel of ``labels``.
    """

    table: object
    outlines: list = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    mpp: float

    @property
    def codes(self):
        """Class codes by label, uint8 (n + 1,), 0 first."""
        return np.concatenate([[0], self.table["code"]]).astype(np.uint8)


def maps(model, image, *, tile: int = 512, features: bool = False):
    """Return the maps of an image at the network's pixel size.

    Tiles overlap by twice ``MARGIN``; only their middles are kept, so that no seam remains.

    Parameters
    ----------
    model
        The Keras model.
    image
        uint8 (y, x, 3) RGB.
    tile
        Side in px, a multiple of 8 above 64.
    features
        Also return the last features of the class decoder, float16 (y, x, k), enlarged to the image.

    Returns
    -------
    float32 (y, x, 4 + C)
        See ``hovernet_post``.
    """
    check_rgb8(image)
    inner = tile - 2 * MARGIN
    if tile % 8 or inner <= 0:
        raise CourseError(f"tiles of {tile} px", f"a multiple of 8 above {2 * MARGIN}", "change tile")
    rows, columns = image.shape[:2]
    if features:
        import keras

        model = keras.Model(model.input, [model.output, model.get_layer("nc_features").output])
    made = np.zeros((rows, columns, model.output_shape[0][-1] if features else model.output_shape[-1]), np.float32)
    made[..., FIRST - 1] = 1
    deep = np.zeros((rows, columns, model.output_shape[1][-1]), np.float16) if features else None
    step_y, step_x = (min(inner, -(-side // 8) * 8) for side in (rows, columns))  # what fits one tile is not cut up
    below, beside = -rows % step_y, -columns % step_x
    mode = "reflect" if min(rows, columns) > MARGIN + 8 else "edge"
    padded = np.pad(image, ((MARGIN, MARGIN + below), (MARGIN, MARGIN + beside), (0, 0)), mode)
    for r in range(0, rows, step_y):
        for c in range(0, columns, step_x):
            part = padded[r : r + step_y + 2 * MARGIN, c : c + step_x + 2 * MARGIN]
            if _featureless(part):
                continue
            out = model.predict_on_batch(part[None].astype(np.float32))
            out, extra = out if features else (out, None)
            target = made[r : r + step_y, c : c + step_x]
            target[:] = _chances(out[0, MARGIN:-MARGIN, MARGIN:-MARGIN][: target.shape[0], : target.shape[1]])
            if features:
                stride = part.shape[0] // extra.shape[1]
                extra = extra[0].repeat(stride, 0).repeat(stride, 1)[MARGIN:-MARGIN, MARGIN:-MARGIN]
                deep[r : r + step_y, c : c + step_x] = extra[: target.shape[0], : target.shape[1]]
    return (made, deep) if features else made


def _featureless(part) -> bool:
    import cv2

    grey = cv2.resize(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    return int(grey.max()) - int(grey.min()) < FEATURELESS


def _chances(logits):
    """Logits (y, x, 4 + C) to a map: sigmoid of the nucleus, maps as they are, softmax of the classes."""
    made = logits.astype(np.float32)
    made[..., 0] = 1 / (1 + np.exp(-np.clip(logits[..., 0], -30, 30)))
    share = np.exp(logits[..., 3:] - logits[..., 3:].max(-1, keepdims=True))
    made[..., 3:] = share / share.sum(-1, keepdims=True)
    return made


def predict(
    model, image, *, mpp: float, classes, post: Post, work_mpp: float = WORK_MPP, block: int = 2048, overlap: int = 64,
    tile: int = 512, labels: bool = True, features: bool = False,
) -> Nuclei:  # fmt: skip
    """Find, outline and type the nuclei of an image or a whole section, block by block.

    A nucleus belongs to the block that holds its centroid; every block is looked at with ``overlap`` more around it, so
    that no nucleus is cut and none counted twice. Memory depends on ``block``, not on the section, besides the table,
    the outlines and, if asked for, the label image.

    Parameters
    ----------
    model, classes, post, work_mpp
        Of a ``HoverNet``.
    image
        uint8 (y, x, 3) RGB, or anything with a shape that gives such arrays when sliced (dask, zarr, memory maps).
    mpp
        Microns per pixel of ``image``: it is resampled to the network's.
    block, overlap
        In pixels of the network, multiples of 8.
    tile
        As in :func:`maps`.
    labels
        Whether to make the label image (4 bytes a pixel).
    features
        Whether to add each nucleus' mean features of the class decoder to the table.
    """
    rows, columns = image.shape[:2]
    step = work_mpp / mpp  # pixels of the image per pixel of the network
    shape = max(1, round(rows / step)), max(1, round(columns / step))
    whole = np.zeros(shape, np.int32) if labels else None
    tables, lines, number = [], [], 0
    for core, padded in blocks(shape, block=block, overlap=overlap):
        top, bottom = int(padded[0] * step), min(int(np.ceil(padded[1] * step)), rows)
        left, right = int(padded[2] * step), min(int(np.ceil(padded[3] * step)), columns)
        part, size = resample(np.asarray(image[top:bottom, left:right]), mpp=mpp, to=work_mpp)
        made = maps(model, part, tile=tile, features=features)
        made, deep = made if features else (made, None)
        found = instances(made, post)
        kept = of_core(found, core, padded)
        if not len(kept):
            continue
        origin = np.array([left, top]) * mpp
        added = _table(found, kept, made, deep, size, origin, classes, part, post.gains)
        tables.append(added.assign(block=len(tables)))
        new = np.zeros(int(found.max()) + 1, np.int32)
        new[kept] = np.arange(1, len(kept) + 1)
        found = new[found]
        lines += outlines(found, mpp=size, origin_um=origin)
        if labels:
            target = whole[padded[0] : padded[1], padded[2] : padded[3]]
            high, wide = np.minimum(target.shape, found.shape)
            target, found = target[:high, :wide], found[:high, :wide]
            target[:] = np.where((target == 0) & (found > 0), found + np.int32(number), target)
        number += len(kept)
    return _joined(tables, lines, whole, classes, work_mpp, post.faint)


def _table(found, kept, made, deep, size, origin, classes, image, gains):
    """One row for each of the labels ``kept``."""
    import pandas as pd

    area, xy = centres(found)
    codes, shares = vote(found, made, gains)
    table = pd.DataFrame({
        "x_um": xy[kept, 0] * size[0] + origin[0], "y_um": xy[kept, 1] * size[1] + origin[1],
        "area_um2": area[kept] * size.prod(), "code": codes[kept],
        "class": np.array(classes)[codes[kept].astype(int) - 1],
        **{f"p_{name}": shares[kept, k] for k, name in enumerate(classes)}, "entropy": entropy(shares[kept]),
        "contrast": contrast(found, image)[kept],
    })  # fmt: skip
    if deep is None:
        return table
    y, x = np.nonzero(found)
    which, n = found[y, x], len(area)
    mean = [np.bincount(which, weights=deep[y, x, k], minlength=n)[kept] / area[kept] for k in range(deep.shape[-1])]
    return table.assign(**{f"f{k}": values.astype(np.float32) for k, values in enumerate(mean)})


def _joined(tables, lines, whole, classes, mpp, least) -> Nuclei:
    """Put the blocks' tables together, without faint nuclei and those that two blocks claim."""
    import pandas as pd

    if not tables:
        names = ["x_um", "y_um", "area_um2", *(f"p_{name}" for name in classes), "entropy", "contrast"]
        table = pd.DataFrame({name: np.empty(0) for name in names})
        return Nuclei(table.assign(code=np.empty(0, np.uint8), **{"class": np.empty(0, str)}), [], whole, mpp)
    table = pd.concat(tables, ignore_index=True)
    drop = doubles(table[["x_um", "y_um"]].to_numpy(), table["area_um2"].to_numpy(), table["block"].to_numpy())
    drop |= faint(table["contrast"], least)
    if drop.any():
        lines = [line for line, gone in zip(lines, drop) if not gone]
        if whole is not None:
            whole = np.concatenate([[0], np.where(drop, 0, np.cumsum(~drop))]).astype(np.int32)[whole]
    return Nuclei(table[~drop].drop(columns="block").reset_index(drop=True), lines, whole, mpp)

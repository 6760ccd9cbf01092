"""Methods: square tiles under the spots, and augmentation; ``tiles_quality`` judges them.

A tile's side is given in **microns** and converted through the section's pixel size. Tiles come as uint8 RGB
arrays (n, out_px, out_px, 3).
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from helpers import section as sec
from helpers.messages import CourseError
from helpers.tiles_quality import MIN_TISSUE, REASONS, judge, measure, spoil

__all__ = [
    "MIN_TISSUE", "OUT_PX", "REASONS", "assess", "augment", "boxes", "cut", "inside", "iterate", "judge", "measure",
    "side_px", "spoil", "typical", "usable", "z_transform",
]  # fmt: skip

OUT_PX = 299
"""Tile side after resizing, in pixels: the input of Xception and InceptionV3."""
_BAND_PX = 1024


def side_px(section, side_um: float) -> int:
    """Return a tile's side in full-resolution pixels (at least 2)."""
    if not side_um > 0:
        raise CourseError(f"a tile of {side_um} um", "a positive size in microns", "set TILE_UM, e.g. 100")
    return max(2, round(sec.um_to_px(section, side_um)))


def boxes(xy_px, side: int):
    """Return the top-left corners of square tiles centred on spots, int array (n, 2): x0, y0 in pixels."""
    return np.floor(np.asarray(xy_px, float) - side / 2 + 0.5).astype(int)  # rint would take halves to even numbers


def inside(corners, side: int, shape_px):
    """Return which tiles lie wholly inside an image of ``shape_px`` (height, width); bool (n,)."""
    rows, columns = shape_px
    corners = np.asarray(corners)
    return (corners >= 0).all(1) & (corners[:, 0] + side <= columns) & (corners[:, 1] + side <= rows)


def iterate(section, *, side_um: float, out_px: int = OUT_PX, border: str = "drop", batch: int = 256, which=None):
    """Yield batches of tiles, from top to bottom; the slide is read once, a band of rows at a time.

    Parameters
    ----------
    section
        A checked section.
    side_um
        Side of the square in microns of tissue.
    out_px
        Side after resizing, in pixels (area interpolation when shrinking, cubic when enlarging).
    border
        What to do with a tile that leaves the image: ``"drop"`` yields no tile for it; ``"white"`` fills the
        outside with white, ``"edge"`` with the image's outermost pixels; ``"refuse"`` raises.
    which
        Indices of the spots to cut (default all).

    Yields
    ------
    index : int array (b,)
        Positions of the spots in the section's table.
    tiles : uint8 array (b, out_px, out_px, 3)
    """
    if border not in ("drop", "white", "edge", "refuse"):
        raise CourseError(f"border={border!r}", "'drop', 'white', 'edge' or 'refuse'", "choose one")
    side = side_px(section, side_um)
    corners = boxes(sec.xy(section), side)
    chosen = np.arange(len(corners)) if which is None else np.asarray(which, int)
    within = inside(corners, side, sec.shape(section))
    if border == "refuse" and not within[chosen].all():
        raise CourseError(
            f"{(~within[chosen]).sum()} tiles of {side_um:g} um that leave the image",
            "tiles inside the image",
            "use a smaller tile, or border='drop'",
            file=section.attrs.get("image_file", section.attrs.get("source")),
        )
    if border == "drop":
        chosen = chosen[within[chosen]]
    rows, columns = sec.shape(section)
    interpolation = cv2.INTER_AREA if side >= out_px else cv2.INTER_CUBIC
    chosen = chosen[np.argsort(corners[chosen, 1], kind="stable")]
    for index in _bands(corners[chosen, 1], chosen, batch):
        top = int(np.clip(corners[index, 1].min(), 0, rows - 1))
        bottom = int(np.clip(corners[index, 1].max() + side, top + 1, rows))
        band = sec.window(section, 0, top, columns, bottom - top)
        out = np.empty((len(index), out_px, out_px, 3), np.uint8)
        for k, (x0, y0) in enumerate(corners[index]):
            tile = band[max(y0 - top, 0) : max(y0 + side - top, 0), max(x0, 0) : max(x0 + side, 0)]
            if not within[index[k]] and border == "edge":
                y, x = (np.clip(start + np.arange(side), 0, end - 1) for start, end in ((y0, rows), (x0, columns)))
                tile = band[np.ix_(y - top, x)]
            elif not within[index[k]]:
                above, left = np.clip((-y0, -x0), 0, side)
                below, right = np.clip((y0 + side - rows, x0 + side - columns), 0, side)
                tile = cv2.copyMakeBorder(tile, above, below, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            out[k] = cv2.resize(tile, (out_px, out_px), interpolation=interpolation)
        yield index, out


def _bands(tops, order, batch: int):
    """Split spots sorted by the top of their tiles into groups of at most ``batch`` within ``_BAND_PX`` rows."""
    start = 0
    while start < len(order):
        stop = min(start + batch, int(np.searchsorted(tops, tops[start] + _BAND_PX, side="right")))
        yield order[start:stop]
        start = stop


def cut(section, *, side_um: float, out_px: int = OUT_PX, border: str = "drop", which=None):
    """Return all tiles at once, in the order of ``which`` (default: of the spots). See :func:`iterate`.

    Returns
    -------
    index : int array (n,)
    tiles : uint8 array (n, out_px, out_px, 3)

    Raises
    ------
    CourseError
        Spots were asked for, but every tile leaves the image.
    """
    parts = list(iterate(section, side_um=side_um, out_px=out_px, border=border, which=which))
    if not parts and (which is None or len(which)):
        height, width = (side * sec.mpp(section) for side in sec.shape(section))
        raise CourseError(
            f"no tile of {side_um:g} um inside the image of {width:.0f} x {height:.0f} um",
            "at least one",
            "use a smaller tile",
            file=section.attrs.get("image_file", section.attrs.get("source")),
        )
    if not parts:
        return np.empty(0, int), np.empty((0, out_px, out_px, 3), np.uint8)
    index, tiles = (np.concatenate(part) for part in zip(*parts))
    wanted = np.arange(sec.counts(section).n_obs) if which is None else np.asarray(which, int)
    place = np.full(sec.counts(section).n_obs, -1)
    place[index] = np.arange(len(index))
    order = place[wanted][place[wanted] >= 0]
    return index[order], tiles[order]


def assess(
    section, *, side_um: float, coverage=None, min_tissue: float = MIN_TISSUE, white_point=(255.0,) * 3, stains=None
):
    """Measure and judge the tile of every spot; tiles are cut in batches and not kept.

    Parameters
    ----------
    coverage
        Share of each spot's tile that is tissue, float (n_spots,), e.g. from ``tissue.coverage``.
    white_point, stains
        As for :func:`measure`.

    Returns
    -------
    pandas.DataFrame
        One row a spot, indexed by spot name: the columns of :func:`measure`, ``coverage`` and ``reason``. A spot whose
        tile leaves the image has the reason ``"border"`` and no measurements.
    """
    names = sec.counts(section).obs_names
    parts, indices = [], [np.empty(0, int)]
    for index, batch in iterate(section, side_um=side_um):
        indices.append(index)
        parts.append(
            measure(
                batch, tile_mpp=side_um / OUT_PX, slide_mpp=sec.mpp(section), white_point=white_point, stains=stains
            )
        )
    index = np.concatenate(indices)
    table = pd.concat(parts, ignore_index=True) if parts else measure(np.empty((0, 8, 8, 3)), tile_mpp=1.0)
    covered = np.ones(len(names)) if coverage is None else np.asarray(coverage, float)
    reason = np.full(len(names), "border", object)
    reason[index] = judge(table, coverage=covered[index], min_tissue=min_tissue)
    table = table.set_index(names[index]).reindex(names)
    return table.assign(coverage=covered, reason=pd.Categorical(reason, categories=["ok", *REASONS]))


def usable(table, *, file=None):
    """Return which tiles of :func:`assess` have no reason against them, bool (n,); refuse a section without any.

    Raises
    ------
    CourseError
        No tile is left; the reasons are counted. ``file`` is named.
    """
    kept = (table["reason"] == "ok").to_numpy()
    if not kept.any():
        reasons = table["reason"].value_counts().loc[lambda number: number > 0]
        raise CourseError(
            f"no usable tile ({', '.join(f'{number} {reason}' for reason, number in reasons.items()) or 'no spot'})",
            "at least one",
            "look at the section; lower MIN_TISSUE or TILE_UM, or leave the section out",
            file=file,
        )
    return kept


# ---------------------------------------------------------------- for training
def augment(tiles, *, rng):
    """Return each tile turned by a random quarter turn and flipped or not (eight equally likely views)."""
    tiles = np.asarray(tiles)
    out = np.empty_like(tiles)
    turns, flips = rng.integers(0, 4, len(tiles)), rng.integers(0, 2, len(tiles))
    for k, tile in enumerate(tiles):
        turned = np.rot90(tile, turns[k])
        out[k] = turned[:, ::-1] if flips[k] else turned
    return out


def typical(tiles, n: int = 3):
    """Return the positions of the ``n`` tiles whose brightness is nearest to the median, int array."""
    brightness = np.asarray(tiles).mean((1, 2, 3))
    return np.argsort(np.abs(brightness - np.median(brightness)), kind="stable")[:n]


def z_transform(tiles):
    """Return float32 tiles with mean 0 and standard deviation 1 each, over all pixels and channels (SpaCell, 2019)."""
    tiles = np.asarray(tiles, np.float32)
    mean = tiles.mean((1, 2, 3), keepdims=True)
    sd = tiles.std((1, 2, 3), keepdims=True)
    return (tiles - mean) / np.where(sd > 0, sd, 1)

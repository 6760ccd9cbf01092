"""Methods, whole slides: which tiles to look at, in an order that decodes each part of the file about once.

The places are those of ``section_grid.on_grid``; only the reading differs: blocks of neighbouring tiles instead of
bands as wide as the slide, which would not fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers import section_grid
from helpers.messages import CourseError

BLOCK_PX = 3072
"""Side of the block whose tiles are read together: 28 MB of pixels."""
MOST_TILES = 5_000_000
FEWEST_PX = 8
"""A tile of fewer pixels shows no cell: the slide is too coarse, or its pixel size wrong."""


@dataclass(frozen=True)
class Plan:
    """Tiles in the order they are read.

    Attributes
    ----------
    xy_px
        float64 (n, 2): x, y of the centres in pixels of level 0.
    grid
        int32 (n, 2): row and column of the lattice.
    tissue
        float32 (n,): share of the tile that the mask covers; 1 without a mask.
    group
        int32 (n,): tiles of one number are read in one piece.
    side
        Side of a tile in pixels of level 0.
    """

    xy_px: np.ndarray
    grid: np.ndarray
    tissue: np.ndarray
    group: np.ndarray
    side: int

    @property
    def corners(self):
        """Top-left corners x0, y0, int64 (n, 2), as ``tiles.boxes`` gives them."""
        return np.floor(self.xy_px - self.side / 2 + 0.5).astype(int)


def thumbnail(slide, *, um: float = 6.0, max_px: int = 3000):
    """Return a reduced picture, uint8 RGB (y, x, 3), and its scale; a block of the slide is in memory at a time.

    Parameters
    ----------
    slide
        A :class:`helpers.wsi_open.Slide`.
    um
        Wanted microns per pixel.
    max_px
        Its longer side has at most this many pixels.

    Returns
    -------
    picture : uint8 (y, x, 3)
        Averages of whole squares of pixels of one level; the last row and column may average fewer.
    scale : float
        Pixels of the thumbnail per pixel of level 0.
    """
    import cv2

    wanted = max(um / slide.mpp, max(slide.shape) / max_px, 1.0)
    factor, level = max((each[2], k) for k, each in enumerate(slide.levels) if each[2] <= wanted * 1.001)
    rows, columns, _ = slide.levels[level]
    step = max(1, int(np.ceil(max(rows, columns) / max_px)), int(um / slide.mpp / factor))
    out = np.empty((-(-rows // step), -(-columns // step), 3), np.uint8)
    wide = columns if slide.striped else step * max(1, BLOCK_PX // step)
    high = step * max(1, BLOCK_PX**2 // wide // step)
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            block = slide.read(left, top, min(wide, columns - left), min(high, rows - top), level=level)
            below, beside = -block.shape[0] % step, -block.shape[1] % step
            if below or beside:
                block = cv2.copyMakeBorder(block, 0, below, 0, beside, cv2.BORDER_REPLICATE)
            size = (block.shape[1] // step, block.shape[0] // step)
            small = block if step == 1 else cv2.resize(block, size, interpolation=cv2.INTER_AREA)
            out[top // step : top // step + size[1], left // step : left // step + size[0]] = small
    return out, 1 / (factor * step)


def plan(slide, *, tile_um: float, pitch_um: float | None = None, tissue=None, min_tissue: float = 0.5, picture=None):
    """Choose the tiles of a slide.

    Parameters
    ----------
    tile_um, pitch_um
        Side of a tile and distance of neighbouring centres, microns; without a pitch the tiles touch.
    tissue
        Function (uint8 RGB (y, x, 3), mpp=microns per pixel) -> bool (y, x), e.g. ``tissue.mask``; None: all tiles.
    min_tissue
        Least share of a tile that the mask must cover.
    picture
        (picture, scale) from :func:`thumbnail`, where it is at hand.

    Raises
    ------
    CourseError
        Sizes that are not positive, tiles of under eight pixels, more than five million places, no tile on tissue.
    """
    pitch_um = tile_um if pitch_um is None else pitch_um
    if not (tile_um > 0 and pitch_um > 0):
        raise CourseError(f"tiles of {tile_um} um every {pitch_um} um", "positive sizes", "correct them",
                          file=slide.path)  # fmt: skip
    side, pitch = round(tile_um / slide.mpp), pitch_um / slide.mpp
    if side < FEWEST_PX:
        seen = f"tiles of {tile_um:g} um that are {side} px wide, at {slide.mpp:.4g} um/px ({slide.mpp_source})"
        raise CourseError(seen, f"at least {FEWEST_PX} px", "correct mpp, or take a finer scan", file=slide.path)
    places = slide.shape[0] / pitch * slide.shape[1] / pitch
    if places > MOST_TILES:
        seen = f"{places:,.0f} tiles of {pitch_um:g} um on a slide of {slide.shape[1] * slide.mpp / 1000:.0f} mm"
        raise CourseError(seen, f"at most {MOST_TILES:,}", "use larger tiles, or correct mpp", file=slide.path)
    row, column, x, y = section_grid.lattice(slide.shape, pitch, side, file=slide.path)
    xy = np.column_stack([x, y])
    share = np.ones(len(xy))
    if tissue is not None:
        small, scale = thumbnail(slide) if picture is None else picture
        mask = np.asarray(tissue(small, mpp=slide.mpp / scale), bool)
        if mask.shape != small.shape[:2]:
            raise CourseError(f"a mask of shape {mask.shape}", f"{small.shape[:2]}", "mend the tissue function",
                              file=slide.path)  # fmt: skip
        if not mask.any():
            raise CourseError("a blank or a grey slide: no stained tissue anywhere", "H&E", "look at it; leave it out",
                              file=slide.path)  # fmt: skip
        covered = np.array(mask.shape) / scale  # its last row and column may reach beyond the slide
        share = section_grid.share_of(mask, np.floor(xy - side / 2 + 0.5).astype(int), side, covered)
    kept = np.flatnonzero(share >= min_tissue)
    if not len(kept):
        raise CourseError(
            f"none of {len(xy)} tiles at least {min_tissue:.0%} on tissue", "one",
            "look at the slide; lower min_tissue", file=slide.path,
        )  # fmt: skip
    few = max(1, int(BLOCK_PX // pitch))
    across = len(np.unique(column)) if slide.striped else few
    down = 1 if slide.striped else few
    block = (row // down) * (column.max() // across + 1) + column // across
    kept = kept[np.lexsort((column[kept], row[kept], block[kept]))]
    grid = np.column_stack([row[kept], column[kept]]).astype(np.int32)
    return Plan(xy[kept], grid, share[kept].astype(np.float32), block[kept].astype(np.int32), side)


def cut(slide, chosen: Plan, which, *, out_px: int, level: int = 0):
    """Return the tiles ``which`` of a plan.

    Parameters
    ----------
    which
        int (m,), positions in the plan; neighbours in the plan are read together.
    out_px
        Side after resizing, in pixels (area interpolation when shrinking, cubic when enlarging, as ``tiles.iterate``).
    level
        Level read. Above 0 it is quicker, and the pixels are those the scanner's software has averaged and compressed
        again: train on the same.

    Returns
    -------
    tiles : uint8 (m, out_px, out_px, 3)
    brightness : float32 (m,)
        Mean of the tile before resizing, over pixels and channels, 0 to 255.
    """
    import cv2

    which = np.asarray(which, int)
    rows, columns, factor = slide.levels[level]
    side = max(1, round(chosen.side / factor))
    corners = np.floor(chosen.xy_px[which] / factor - side / 2 + 0.5).astype(int)
    corners = np.clip(corners, 0, [columns - side, rows - side])
    how = cv2.INTER_AREA if side >= out_px else cv2.INTER_CUBIC
    out, brightness = np.empty((len(which), out_px, out_px, 3), np.uint8), np.empty(len(which), np.float32)
    for group in np.unique(chosen.group[which]):
        here = np.flatnonzero(chosen.group[which] == group)
        (left, top), (right, bottom) = corners[here].min(0), corners[here].max(0) + side
        block = slide.read(int(left), int(top), int(right - left), int(bottom - top), level=level)
        for k in here:
            x, y = corners[k] - (left, top)
            tile = block[y : y + side, x : x + side]
            brightness[k] = cv2.mean(tile)[:3] @ np.full(3, 1 / 3)
            out[k] = cv2.resize(tile, (out_px, out_px), interpolation=how)
    return out, brightness

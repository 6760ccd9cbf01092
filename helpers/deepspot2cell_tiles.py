"""Methods, DeepSpot2Cell: tiles of cells - the smallest square round each outline - and of patches, read in bands."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from helpers import section as sec
from helpers.messages import CourseError

BORDERS = ("edge", "white")
_BAND_PX = 1024


def squares(outlines, *, margin: float = 0.0) -> np.ndarray:
    """Return the smallest square round each outline: float64 (n, 3), x and y of its centre and its side.

    Parameters
    ----------
    outlines
        Array of shapely geometries.
    margin
        Added on every side, in the outlines' unit (0 as published).

    Raises
    ------
    CourseError
        An outline that is empty or a point.
    """
    import shapely

    bounds = shapely.bounds(np.asarray(outlines))
    side = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]) + 2 * margin
    if len(side) and not (np.isfinite(side) & (side > 0)).all():
        seen = f"{(~(np.isfinite(side) & (side > 0))).sum()} outlines without extent"
        raise CourseError(seen, "polygons", "drop those cells")
    return np.c_[(bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2, side]


def iterate(section, boxes, *, out_px: int, border: str = "edge", batch: int = 256):
    """Yield tiles of squares of any size, from top to bottom; the picture is read once, a band of rows at a time.

    Parameters
    ----------
    section
        A section whose H&E has full-resolution pixels.
    boxes
        float (n, 3): x, y of each square's centre and its side, pixels of the H&E (:func:`squares`).
    out_px
        Side of the tiles, pixels: area interpolation when shrinking, cubic when enlarging.
    border
        What fills the part of a square beyond the picture: ``"edge"`` its outermost pixels, ``"white"`` glass.

    Yields
    ------
    index : int (b,)
        Rows of ``boxes``.
    tiles : uint8 RGB (b, out_px, out_px, 3)

    Raises
    ------
    CourseError
        A square without size, or one that lies wholly outside the picture.
    """
    boxes = np.asarray(boxes, float).reshape(-1, 3)
    rows, columns = sec.shape(section)
    if border not in BORDERS:
        raise CourseError(f"border={border!r}", " or ".join(map(repr, BORDERS)), "choose one")
    if not np.isfinite(boxes).all() or not (boxes[:, 2] > 0).all():
        raise CourseError("squares without place or size", "x, y and a side above 0", "drop those cells")
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    off = (high <= 0).any(1) | (low[:, 0] >= columns) | (low[:, 1] >= rows)
    if off.any():
        raise CourseError(
            f"{off.sum()} squares wholly outside the image of {columns} x {rows} px",
            "places on the H&E, in its pixels",
            "register the section first (section_align.align)",
            file=section.attrs.get("source"),
        )
    side = np.maximum(2, np.rint(boxes[:, 2])).astype(int)
    corner = np.floor(boxes[:, :2] - side[:, None] / 2 + 0.5).astype(int)
    order = np.argsort(corner[:, 1], kind="stable")
    tops, ends = corner[order, 1], np.maximum.accumulate((corner[:, 1] + side)[order])
    start = 0
    while start < len(order):
        stop = min(start + batch, int(np.searchsorted(tops, tops[start] + _BAND_PX, side="right")))
        top = int(np.clip(tops[start], 0, rows - 1))
        bottom = int(np.clip(ends[start:stop].max(), top + 1, rows))
        band = sec.window(section, 0, top, columns, bottom - top)
        index = order[start:stop]
        yield index, np.stack([_tile(band, top, *corner[i], side[i], out_px, border) for i in index])
        start = stop


def _tile(band, top: int, x0: int, y0: int, side: int, out_px: int, border: str):
    """Return one square of a band of the picture, resized."""
    y0 -= top
    height, width = band.shape[:2]
    tile = band[max(y0, 0) : max(y0 + side, 0), max(x0, 0) : max(x0 + side, 0)]
    if tile.shape[:2] != (side, side):
        above, left = max(-y0, 0), max(-x0, 0)
        below, right = max(y0 + side - height, 0), max(x0 + side - width, 0)
        how = cv2.BORDER_REPLICATE if border == "edge" else cv2.BORDER_CONSTANT
        tile = cv2.copyMakeBorder(tile, above, below, left, right, how, value=(255, 255, 255))
    shrink = side >= out_px
    return cv2.resize(tile, (out_px, out_px), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def geometry(section) -> dict:
    """Return where the cells of a registered section lie, in the order of its table.

    Returns
    -------
    dict
        ``outlines`` (array of shapely polygons), ``xy`` (float (cells, 2), centre of the nucleus, of the cell where it
        has none), both in pixels of the H&E; ``nucleus_um2`` (float (cells,), the cell's own area where it has none).

    Raises
    ------
    CourseError
        A section that is not registered or has no pixel size.
    """
    import shapely

    where = section.attrs.get("source")
    if not section.attrs.get("registered") or section.attrs.get("mpp") is None:
        seen = "a section that is not registered" if section.attrs.get("mpp") else "a section without microns per pixel"
        fix = "register it (registration.register_section, section_align.align), or state mpp"
        raise CourseError(seen, "cells on the H&E and its pixel size", fix, file=where)
    table, cells = sec.counts(section), section.shapes["cells"]
    outlines = cells.geometry.loc[table.obs["instance_id"]].to_numpy()
    xy, area = sec.xy(section).copy(), shapely.area(outlines)
    if "nuclei" in section.shapes:
        nuclei = section.shapes["nuclei"]
        owner = table.obs["instance_id"].to_numpy().searchsorted(nuclei["cell"].to_numpy())
        shapes = nuclei.geometry.to_numpy()
        xy[owner] = shapely.get_coordinates(shapely.centroid(shapes))
        area[owner] = shapely.area(shapes)
    return {"outlines": outlines, "xy": xy, "nucleus_um2": area * sec.mpp(section) ** 2}


@dataclass(frozen=True)
class View:
    """A square crop of a section and the cells in it.

    Attributes
    ----------
    rgb, mpp
        uint8 RGB (y, x, 3), microns per pixel.
    corner
        float (2,): x, y of its corner on the H&E, pixels.
    cells
        int (n,): rows of the cells whose centre it holds.
    outlines
        List of float (vertices, 2), pixels of the crop.
    """

    rgb: np.ndarray
    mpp: float
    corner: np.ndarray
    cells: np.ndarray
    outlines: list


def view(section, outlines, *, side_um: float, centre=None) -> View:
    """Return a crop, by default the one at the median cell, moved so that it lies within the picture."""
    import shapely

    xy = shapely.get_coordinates(shapely.centroid(outlines))
    shape = np.array(sec.shape(section)[::-1])
    side = int(min(sec.um_to_px(section, side_um), *shape))
    middle = np.median(xy, 0) if centre is None else np.asarray(centre, float)
    corner = np.clip(middle - side / 2, 0, shape - side).astype(int)
    cells = np.flatnonzero(((xy >= corner) & (xy < corner + side)).all(1))
    moved = [np.asarray(outlines[i].exterior.coords) - corner for i in cells]
    return View(sec.window(section, *corner, side, side), sec.mpp(section), corner, cells, moved)

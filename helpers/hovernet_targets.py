"""Methods: what HoVer-Net learns from - nucleus outlines become a label image, horizontal and vertical maps.

Everything here is numpy and OpenCV. A label image numbers nuclei by their row: outline ``i`` has label ``i + 1``, also
where others hide it, so that tables of types never lose step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.messages import CourseError

WORK_MPP = 0.5
"""Microns per pixel at which the network works; images are resampled to it."""
UNKNOWN = 255
"""Class code of a nucleus without a label: it teaches where nuclei are, not which."""
_MPP_RANGE = (0.1, 1.2)


@dataclass(frozen=True)
class Field:
    """An image with its targets, at ``mpp`` microns per pixel.

    Attributes
    ----------
    image
        uint8 (y, x, 3) RGB.
    labels
        int32 (y, x): 0 background, ``i + 1`` for nucleus ``i``.
    classes
        uint8 (n + 1,): class code by label, 1 up to the number of classes; 0 stays background, ``UNKNOWN`` unlabelled.
    hv
        float32 (y, x, 2): horizontal and vertical map.
    mpp
        Microns per pixel, x and y alike to within the rounding of the image's size.
    """

    image: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: np.ndarray = field(repr=False)
    hv: np.ndarray = field(repr=False)
    mpp: float


def _ragged(polygons):
    """Return all vertices float64 (v, 2) and the first vertex of each polygon, int64 (n + 1,)."""
    if isinstance(polygons, np.ndarray) and polygons.ndim == 3:
        n, v, _ = polygons.shape
        return np.asarray(polygons, float).reshape(-1, 2), np.arange(n + 1) * v
    parts = [np.asarray(part, float).reshape(-1, 2) for part in polygons]
    first = np.cumsum([0, *(len(part) for part in parts)])
    return (np.concatenate(parts) if parts else np.empty((0, 2))), first


def rasterise(polygons, *, shape, mpp: float, min_px: int = 10, rank=None):
    """Fill nucleus outlines: a pixel belongs to a nucleus when its centre lies inside (even-odd rule).

    All scan lines of all outlines are filled together. Of overlapping outlines the smaller one stays on top, so that
    none vanishes below a larger; parts outside the image are cut off.

    Parameters
    ----------
    polygons
        Array (n, v, 2) or a list of arrays (v_i, 2): x, y in um, origin at the top-left corner of the first pixel.
    shape
        (rows, columns) of the image.
    mpp
        Microns per pixel, or (x, y) of it.
    min_px
        Visible parts of fewer pixels are taken out (the published filter: 10 px).
    rank
        Float (n,): the higher is drawn later, hence on top; default the negative area.

    Returns
    -------
    int32 (rows, columns)
        0 background, ``i + 1`` for outline ``i``.

    Raises
    ------
    CourseError
        Positions that are not finite.
    """
    points, first = _ragged(polygons)
    if not np.isfinite(points).all():
        raise CourseError("outlines with positions that are not numbers", "x and y in um", "drop these nuclei")
    rows, columns = (int(side) for side in shape)
    labels = np.zeros((rows, columns), np.int32)
    n = len(first) - 1
    if not len(points):
        return labels
    points = points / np.asarray(mpp, float)
    owner = np.repeat(np.arange(n), np.diff(first))
    after = np.arange(len(points)) + 1
    filled = np.diff(first) > 0
    after[first[1:][filled] - 1] = first[:-1][filled]  # each outline closes on its own first vertex
    x0, y0, x1, y1 = points[:, 0], points[:, 1], points[after, 0], points[after, 1]
    if rank is None:
        rank = -np.abs(np.bincount(owner, weights=x0 * y1 - x1 * y0, minlength=n))
    place = np.empty(n, np.int64)
    place[np.argsort(rank, kind="stable")] = np.arange(n)  # painter's order
    # rows whose centre (row + .5) an edge crosses, half-open so that a vertex counts once
    top = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, rows).astype(np.int64)
    bottom = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, rows).astype(np.int64)
    edge, row = _runs(top, bottom - top)
    across = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    order = np.lexsort((across, row, place[owner[edge]]))
    row, across, owner = row[order][::2], across[order], owner[edge][order][::2]
    left = np.clip(np.ceil(across[::2] - 0.5), 0, columns).astype(np.int64)
    right = np.clip(np.ceil(across[1::2] - 0.5), 0, columns).astype(np.int64)
    span, column = _runs(left, right - left)
    labels.ravel()[row[span] * columns + column] = owner[span] + 1  # of a repeated place the last assignment stays
    return without_slivers(labels, min_px)


def _runs(start, length):
    """Return, for runs of ``length`` whole numbers from ``start``, which run each belongs to, and the numbers."""
    length = np.maximum(length, 0)
    which = np.repeat(np.arange(len(length)), length)
    before = np.cumsum(length) - length
    return which, np.arange(len(which)) - before[which] + start[which]


def without_slivers(labels, min_px: int):
    """Return labels without those of fewer than ``min_px`` pixels; the others keep their number."""
    count = np.bincount(labels.ravel())
    kept = np.where(count >= min_px, np.arange(len(count), dtype=np.int32), 0)
    kept[0] = 0
    return kept[labels].astype(np.int32)


def boxes(labels):
    """Return first and last row and column of every label, int64 (n + 1, 4); absent labels have (0, -1, 0, -1)."""
    from scipy import ndimage

    n = int(labels.max(initial=0))
    found = np.tile(np.array([0, -1, 0, -1]), (n + 1, 1))
    for i, box in enumerate(ndimage.find_objects(labels, n), 1):
        if box is not None:
            found[i] = box[0].start, box[0].stop - 1, box[1].start, box[1].stop - 1
    return found


def centres(labels):
    """Return area in px (n + 1,) and centroid x, y in px, float64 (n + 1, 2), by label; absent labels have area 0.

    Pixel (0, 0) has its centre at (0.5, 0.5), as everywhere in this room.
    """
    n = int(labels.max(initial=0)) + 1
    y, x = np.nonzero(labels)
    which = labels[y, x]
    area = np.bincount(which, minlength=n)
    xy = np.stack([np.bincount(which, weights=v, minlength=n) for v in (x, y)], 1)
    return area, xy / np.maximum(area, 1)[:, None] + 0.5


def hv_maps(labels):
    """Return how far each nuclear pixel lies from its nucleus' centroid, from -1 (left, top) to 1 (right, bottom).

    Each side of each nucleus is scaled by its own extreme (Graham et al. 2019, section III.A). The extremes are the
    edges of the nucleus' box less its centroid, so that no nucleus is looked at on its own. Compute whole fields
    and crop: a nucleus cut by a tile's edge would be centred anew and teach wrong slopes.

    Returns
    -------
    float32 (y, x, 2)
        Horizontal (x) and vertical (y); 0 on background.
    """
    maps = np.zeros((*labels.shape, 2), np.float32)
    y, x = np.nonzero(labels)
    which = labels[y, x]
    _, middle = centres(labels)
    box = boxes(labels)
    for axis, (at, low, high) in enumerate(((x, 2, 3), (y, 0, 1))):
        centre = middle[:, axis] - 0.5
        reach = np.stack([centre - box[:, low], box[:, high] - centre], 1)
        scale = 1 / np.maximum(reach, 1e-3)
        away = (at - centre[which]).astype(np.float32)
        maps[y, x, axis] = away * scale.astype(np.float32)[which, (away > 0).astype(np.int8)]
    return maps


def check_rgb8(image) -> None:
    """Refuse what is not uint8 (y, x, 3): numbers from 0 to 1 look like ink to the network, and nothing would show."""
    if getattr(image, "dtype", None) != np.uint8 or len(image.shape) != 3 or image.shape[-1] != 3:
        seen = f"an image of {getattr(image, 'dtype', type(image).__name__)} {tuple(np.shape(image))}"
        raise CourseError(seen, "uint8 (y, x, 3), RGB", "convert it, 0 to 255, colour channels last")


def resample(image, *, mpp: float, to: float = WORK_MPP):
    """Return the image at ``to`` microns per pixel, and its true pixel size (x, y), which rounding moves a little.

    Raises
    ------
    CourseError
        Pixel sizes outside 0.1 to 1.2 um: the network sees nuclei of one size only, and fails silently at others. An
        image that is not uint8 (y, x, 3).
    """
    import cv2

    check_rgb8(image)
    if not _MPP_RANGE[0] <= mpp <= _MPP_RANGE[1]:
        raise CourseError(
            f"{mpp:g} um per pixel", f"{_MPP_RANGE[0]} to {_MPP_RANGE[1]}", "give the image's own pixel size in microns"
        )
    rows, columns = image.shape[:2]
    size = max(1, round(columns * mpp / to)), max(1, round(rows * mpp / to))
    if size != (columns, rows):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if to > mpp else cv2.INTER_CUBIC)
    return image, np.array([columns * mpp / size[0], rows * mpp / size[1]])


def prepare(image, polygons, classes, *, mpp: float, min_px: int = 10, rank=None, to: float = WORK_MPP) -> Field:
    """Return an image with the targets of its nuclei, resampled to the network's pixel size.

    Parameters
    ----------
    image
        uint8 (y, x, 3) RGB.
    polygons
        As in :func:`rasterise`: x, y in um from the image's top-left corner.
    classes
        Integers (n,): class codes 1, 2, ...; ``UNKNOWN`` for nuclei without a label.
    mpp
        Microns per pixel of ``image``.
    """
    classes = np.asarray(classes, np.int64).reshape(-1)
    if len(classes) != len(polygons):
        raise CourseError(f"{len(classes)} classes for {len(polygons)} outlines", "one each", "join the tables")
    if len(classes) and not (classes.min() >= 1 and classes.max() <= UNKNOWN):
        raise CourseError(f"class codes {classes.min()} to {classes.max()}", "1 and up; 0 is background", "add 1")
    image, size = resample(image, mpp=mpp, to=to)
    labels = rasterise(polygons, shape=image.shape[:2], mpp=size, min_px=min_px, rank=rank)
    codes = np.concatenate([[0], classes]).astype(np.uint8)
    return Field(image, labels, codes, hv_maps(labels), float(size.mean()))


def crop(field: Field, rows: slice, columns: slice = slice(None)) -> Field:
    """Return a window of a field; maps and labels stay those of the whole nuclei, also where the window cuts them."""
    part = rows, columns
    return Field(field.image[part], field.labels[part], field.classes, field.hv[part], field.mpp)


def stack(fields, *, gap: int = 16) -> Field:
    """Return fields put below each other with ``gap`` rows of glass between them, cut to the narrowest.

    Strips of several sections choose settings better than as much of one.
    """
    fields = list(fields)
    wide = min(f.labels.shape[1] for f in fields)
    images, labels, hv, classes, number = [], [], [], [np.zeros(1, np.uint8)], 0
    for f in fields:
        below = ((0, gap), (0, 0))
        part = f.labels[:, :wide]
        images.append(np.pad(f.image[:, :wide], (*below, (0, 0)), constant_values=245))
        labels.append(np.pad(np.where(part > 0, part + np.int32(number), 0), below))
        hv.append(np.pad(f.hv[:, :wide], (*below, (0, 0))))
        classes.append(f.classes[1:])
        number += len(f.classes) - 1
    joined = (np.concatenate(parts) for parts in (images, labels, classes, hv))
    return Field(*joined, fields[0].mpp)

"""Methods, nuclei: outlines to label images and back, and how well two label images agree."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError


def check_labels(labels):
    """Return a label image as int32 (y, x), 0 = background; refuse anything else."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or (labels.size and labels.min() < 0):
        seen = f"labels {labels.shape} of {labels.dtype}"
        raise CourseError(seen, "whole numbers (y, x), 0 = background", "use what nuclei.segment returns")
    return labels.astype(np.int32, copy=False)


def rasterise(polygons, *, shape, order=None):
    """Fill polygons into a label image: polygon i takes the pixels whose centre it holds, and gets the label i + 1.

    Where two meet the later one lies on top. (OpenCV's ``fillPoly`` also paints the border: a nucleus of 40 px would
    grow by a quarter.)

    Parameters
    ----------
    polygons
        Sequence of float (k, 2), x, y in pixels of the image (the corner of the first pixel is 0, 0).
    shape
        (height, width) of the label image.
    order
        Order of drawing, e.g. deeper nuclei first; default as given. Labels do not depend on it.

    Returns
    -------
    int32 (y, x)
        A polygon that is wholly covered, outside, or of fewer than three points has no pixel.
    """
    from skimage.draw import polygon

    labels = np.zeros(shape, np.int32)
    for place in range(len(polygons)) if order is None else order:
        if len(polygons[place]) > 2:
            x, y = np.asarray(polygons[place], float).T - 0.5
            labels[polygon(y, x, shape)] = int(place) + 1
    return labels


def outlines(labels, *, origin=(0.0, 0.0)) -> dict:
    """Return the outline of each label as a shapely polygon, along pixel edges.

    Parameters
    ----------
    labels
        int (y, x), 0 = background.
    origin
        x, y of the image's corner, added to every point: gives full-resolution pixels for a tile cut from a slide.

    Returns
    -------
    dict
        Label -> polygon (x, y in pixels). Of a label in several pieces the largest is outlined; holes are filled.
    """
    import cv2
    import shapely
    from scipy import ndimage

    labels, found = check_labels(labels), {}
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        part = np.pad((labels[box] == number).astype(np.uint8), 1)
        part = part.repeat(3, 0).repeat(3, 1)  # so that one pixel has an area
        rings, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        ring = max(rings, key=cv2.contourArea)[:, 0] + 0.5
        ring = np.rint(ring / 3) - 1  # thirds of a pixel back to the nearest pixel edge
        place = ring + [box[1].start, box[0].start] + np.asarray(origin, float)
        polygon = shapely.Polygon(place) if len(place) > 2 else shapely.Polygon()
        parts = getattr(polygon.buffer(0), "geoms", [polygon.buffer(0)])  # pieces that touch at a corner come apart
        found[number] = polygon if polygon.is_valid else max(parts, key=lambda part: part.area)
    return found


def overlaps(labels, truth):
    """Return every overlapping pair of two label images.

    Returns
    -------
    mine, theirs : int (pairs,)
        Labels.
    iou : float (pairs,)
        Intersection over union of the two.
    sizes_mine, sizes_theirs : int
        Pixels of each label, indexed by label (0 is the background).
    """
    labels, truth = check_labels(labels), check_labels(truth)
    if labels.shape != truth.shape:
        raise CourseError(f"label images {labels.shape} and {truth.shape}", "one shape", "use the same window")
    width = int(truth.max(initial=0)) + 1
    both, shared = np.unique(labels.ravel().astype(np.int64) * width + truth.ravel(), return_counts=True)
    mine, theirs = both // width, both % width
    sizes_mine, sizes_theirs = np.bincount(labels.ravel()), np.bincount(truth.ravel(), minlength=width)
    kept = (mine > 0) & (theirs > 0)
    mine, theirs, shared = mine[kept], theirs[kept], shared[kept]
    return mine, theirs, shared / (sizes_mine[mine] + sizes_theirs[theirs] - shared), sizes_mine, sizes_theirs


def match(labels, truth, *, iou: float = 0.5, ignore=()) -> dict:
    """Score a segmentation against the true nuclei.

    Parameters
    ----------
    labels, truth
        int (y, x), 0 = background.
    iou
        A pair counts when its intersection over union is *larger*; at 0.5 or more no nucleus can be in two pairs.
    ignore
        True labels that are not asked for: missing one is no error, and finding one is neither (the Pascal VOC rule
        for objects marked difficult). Here: nuclei out of focus below others.

    Returns
    -------
    dict
        ``f1``, ``precision``, ``recall`` (nan where nothing is to be found and nothing was), ``quality`` (mean IoU of
        the pairs), ``aji`` (aggregated Jaccard index, Kumar et al. 2017, over all true nuclei), ``found``, ``true``
        (numbers), and ``pairs`` int (n, 2): matched labels, mine and true.
    """
    if not 0.5 <= iou < 1:
        raise CourseError(f"iou={iou}", "0.5 to below 1", "below one half a nucleus could be counted twice")
    mine, theirs, value, sizes_mine, sizes_theirs = overlaps(labels, truth)
    skip = np.isin(np.arange(len(sizes_theirs)), list(ignore))
    paired = value > iou
    true = int(((sizes_theirs > 0) & ~skip)[1:].sum())
    found = int((sizes_mine > 0)[1:].sum() - (paired & skip[theirs]).sum())
    hit = int((paired & ~skip[theirs]).sum())
    ratio = [hit / n if n else np.nan for n in (found, true)]
    return {
        "f1": 2 * hit / (found + true) if found + true else np.nan, "precision": ratio[0], "recall": ratio[1],
        "quality": float(value[paired].mean()) if paired.any() else np.nan,
        "aji": _aji(mine, theirs, value, sizes_mine, sizes_theirs),
        "found": found, "true": true, "pairs": np.stack([mine[paired], theirs[paired]], axis=1),
    }  # fmt: skip


def _aji(mine, theirs, value, sizes_mine, sizes_theirs) -> float:
    """Aggregated Jaccard index: each true nucleus with its best partner; partners nobody wants count as union."""
    together = sizes_mine[mine] + sizes_theirs[theirs]
    shared = value * together / (1 + value)
    order = np.lexsort((-value, theirs))
    first = order[np.unique(theirs[order], return_index=True)[1]] if len(order) else order
    alone = sizes_theirs.copy()
    alone[0] = 0
    alone[theirs[first]] = 0
    unwanted = sizes_mine.copy()
    unwanted[0] = 0
    unwanted[mine[first]] = 0
    union = (together[first] - shared[first]).sum() + alone.sum() + unwanted.sum()
    return float(shared[first].sum() / union) if union else np.nan

"""Methods, DeepSpot2Cell: what single cells are worth without it - a spot's expression shared out among its cells."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError


def fill(values, patches_xy, known) -> np.ndarray:
    """Return spot values with those not known taken from the nearest known spot, float (patches, genes).

    Parameters
    ----------
    values
        float (patches, genes).
    patches_xy
        float (patches, 2), of ONE section.
    known
        bool (patches,).
    """
    from scipy.spatial import cKDTree

    values, known = np.asarray(values, float), np.asarray(known, bool)
    if not known.any():
        raise CourseError("no spot with counts", "at least one", "check patches and counts")
    xy = np.asarray(patches_xy, float)
    nearest = np.flatnonzero(known)[cKDTree(xy[known]).query(xy)[1]]
    return values[np.where(known, np.arange(len(xy)), nearest)]


def everywhere(counts, predicted, xy, slide) -> np.ndarray:
    """Return counts per 10^4 of every spot: measured, from the nearest measured one, or predicted, float64.

    Parameters
    ----------
    counts
        float (patches, genes): 0 throughout where nothing was measured.
    predicted
        float (patches, genes), log(1 + counts per 10^4): used on slides without a measured spot.
    xy, slide
        Centres, float (patches, 2), and the slide of each patch.
    """
    total = np.asarray(counts, float).sum(1)
    measured = 1e4 * np.asarray(counts, float) / np.maximum(total, 1e-9)[:, None]
    out = np.expm1(np.asarray(predicted, float))
    for name in dict.fromkeys(np.asarray(slide).tolist()):
        rows = np.asarray(slide) == name
        if (total[rows] > 0).any():
            out[rows] = fill(measured[rows], np.asarray(xy)[rows], total[rows] > 0)
    return out


def share(spot_values, *, patch, inside, weights=None) -> np.ndarray:
    """Return each cell's part of its spot's counts, float32 (cells, genes).

    Parameters
    ----------
    spot_values
        float (patches, genes): counts, or counts per 10^4, of each spot; not logarithms.
    patch, inside
        (cells,): patch of each cell (-1: all 0), and whether it is in the spot.
    weights
        float (cells,): how much of a spot a cell takes, such as its nucleus' area; None: all the same. The weights of
        the cells *in* the spot add up to 1; cells out of it are weighed against the same sum. Where no cell is in, the
        mean sum of the other spots stands for it.
    """
    patch, inside = np.asarray(patch), np.asarray(inside, bool)
    weights = np.ones(len(patch)) if weights is None else np.asarray(weights, float)
    if weights.shape != patch.shape or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise CourseError(f"weights {weights.shape}", "one number of at least 0 a cell", "pass areas of the nuclei")
    total = np.bincount(patch[inside], weights=weights[inside], minlength=len(spot_values))
    some = total > 0
    total = np.where(some, total, total[some].mean() if some.any() else 1.0)
    part = np.where(patch >= 0, weights / total[patch], 0.0)
    return (np.asarray(spot_values, np.float32)[patch] * part[:, None]).astype(np.float32)


def superpixels(values, boxes, *, node: float) -> np.ndarray:
    """Return cells read from a map of superpixels: the mean of the nodes that a cell's bounding box meets.

    How the paper scores iStar and scstGCN (appendix D.2), before scaling to 10^4 a spot.

    Parameters
    ----------
    values
        float (rows, columns, genes): row 0 at y = 0; NaN off the tissue (left out of the means).
    boxes
        float (cells, 4): x0, y0, x1, y1.
    node
        Side of a node, in the unit of ``boxes``.

    Returns
    -------
    float32 (cells, genes); NaN for a cell that meets no node on tissue.

    Notes
    -----
    Sums over boxes are differences of a cumulative table: nothing loops over cells. Genes go fifty at a time, to bound
    the table.
    """
    values, boxes = np.asarray(values), np.asarray(boxes, float)
    if values.ndim != 3 or boxes.ndim != 2 or boxes.shape[1] != 4 or not node > 0:
        raise CourseError(f"values {values.shape}, boxes {boxes.shape}, node {node}",
                          "(rows, columns, genes), (cells, 4), a positive side", "see readers_superres")  # fmt: skip
    shape = np.array(values.shape[1::-1])
    first = np.floor(boxes[:, :2] / node).astype(int)
    last = np.maximum(np.ceil(boxes[:, 2:] / node).astype(int), first + 1)
    (x0, y0), (x1, y1) = np.clip(first, 0, shape).T, np.clip(last, 0, shape).T

    def total(part):
        table = np.pad(part.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
        return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]

    out = np.full((len(boxes), values.shape[2]), np.nan, np.float32)
    for start in range(0, values.shape[2], 50):
        part = values[..., start : start + 50].astype(float)
        known = np.isfinite(part)
        number = np.rint(total(known.astype(float)))
        with np.errstate(divide="ignore", invalid="ignore"):
            out[:, start : start + 50] = np.where(number > 0, total(np.where(known, part, 0)) / number, np.nan)
    return out

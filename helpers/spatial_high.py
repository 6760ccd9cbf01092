"""Methods, spatial: high and low. The paper's IoU of smoothed high regions, and the area under the ROC curve."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError
from helpers.spatial_graph import _positions, centred, matrix, spacing

SIGMA = 1.0
"""Standard deviation of the Gaussian, in spacings of the spots (the paper: 1 pixel, with a pixel a spot)."""
REACH = 4.0
"""The Gaussian ends this many standard deviations from the spot along x and along y, as scipy's does."""


def high(values):
    """Return where a section's values are high: z-score above 0, which is above the gene's mean. Bool (n, g).

    Values (n, g) of **one** section, finite. A gene that does not vary is low everywhere.
    """
    return centred(matrix(values)) > 0


def kernel(xy, *, sigma: float = SIGMA, pitch: float | None = None):
    """Return the weights of a Gaussian blur over spots, rows summing to 1.

    On a square array this is ``scipy.ndimage.gaussian_filter`` of the picture with a pixel a spot, divided by the same
    filter of the tissue, so that glass counts neither as high nor as low. The weights depend on the distances alone,
    hence hexagonal arrays, turned arrays and spots off the grid need no rounding to pixels.

    Parameters
    ----------
    xy
        Float (n, 2): x, y of one section's spots, in any unit.
    sigma
        In spacings.
    pitch
        The spacing in the unit of ``xy``; measured if None.

    Returns
    -------
    scipy.sparse.csr_array (n, n)
    """
    from scipy.sparse import csr_array, diags_array
    from scipy.spatial import cKDTree

    if not sigma > 0:
        raise CourseError(f"sigma={sigma}", "a positive number of spacings", "set sigma, e.g. 1")
    xy = _positions(xy) / (spacing(xy) if pitch is None else float(pitch))
    reach = int(REACH * sigma + 0.5) + 0.25  # a quarter of a spacing for jitter
    tree = cKDTree(xy)
    i, j = tree.query_pairs(reach, p=np.inf, output_type="ndarray").T
    weight = np.exp(-0.5 * ((xy[i] - xy[j]) ** 2).sum(1) / sigma**2)
    here = np.arange(len(xy))
    rows, columns = np.concatenate([i, j, here]), np.concatenate([j, i, here])
    weights = csr_array((np.concatenate([weight, weight, np.ones(len(xy))]), (rows, columns)), shape=(len(xy),) * 2)
    return csr_array(diags_array(1 / np.asarray(weights.sum(1)).ravel()) @ weights)


def high_regions(values, xy, *, sigma: float = SIGMA, level="mean", pitch: float | None = None):
    """Return the smoothed high regions of each gene, bool (n, g): z-score > 0, blurred, and cut again at ``level``.

    After the blur a spot holds the weighted share of high spots around it, its own included. Arguments as in ``iou``.
    """
    return _smoothed(high(values), kernel(xy, sigma=sigma, pitch=pitch), level)


def _smoothed(is_high, weights, level):
    share = weights @ is_high.astype(float)
    if level == "mean":
        return share > share.mean(0) + 1e-9
    if not (isinstance(level, (int, float)) and 0 < level < 1):
        raise CourseError(f"level={level!r}", "'mean', or a share between 0 and 1", "set level")
    return share > level + 1e-9


def iou(truth, prediction, xy, *, sigma: float = SIGMA, level="mean", pitch: float | None = None):
    """Return the paper's spatial score of each gene: overlap of the **high** regions of truth and prediction.

    Parameters
    ----------
    truth, prediction
        (n, g) of one section, each in any unit: only above or below the gene's own mean counts.
    xy, sigma, pitch
        As for :func:`kernel`.
    level
        Where the blurred picture is cut into high and low again, which the paper leaves open. ``"mean"``: at its own
        mean, the rule of the first cut once more; regions of all genes are then of similar size, and their scores can
        be compared. A share, e.g. 0.5: where the majority is high; borders stay in place, but a gene seen in
        few spots has little or no region left, and the score tells its abundance rather than how well it is predicted.

    Returns
    -------
    overlap : float (g,)
        Spots high in both over spots high in either; 0 where only one has a high region, NaN where neither has.
    chance : float (g,)
        What two regions of these sizes overlap by if they know nothing of each other: p q / (p + q - p q). The overlap
        is 1/3 for two random halves, so never read it alone.

    Notes
    -----
    The published code renders figures, cuts their colours by Otsu's method and takes the overlap of the *low* class.
    """
    truth, prediction = matrix(truth, "truth"), matrix(prediction, "prediction")
    if truth.shape != prediction.shape or len(truth) != len(xy):
        raise CourseError(
            f"truth {truth.shape}, prediction {prediction.shape}, {len(xy)} positions", "the same spots and genes",
            "match them by name first",
        )  # fmt: skip
    weights = kernel(xy, sigma=sigma, pitch=pitch)
    a, b = (_smoothed(centred(part) > 0, weights, level) for part in (truth, prediction))
    either = (a | b).sum(0)
    p, q = a.mean(0), b.mean(0)
    known = either > 0
    overlap = np.divide((a & b).sum(0), either, out=np.full(len(either), np.nan), where=known)
    return overlap, np.divide(p * q, p + q - p * q, out=np.full(len(either), np.nan), where=known)


def auc(positive, score):
    """Return the area under the ROC curve of each column, ties counted half.

    Parameters
    ----------
    positive
        Bool or 0/1, (n,) or (n, g): the truth. For genes: which are predictable.
    score
        Float of the same shape: larger should mean positive (a probability, a correlation).

    Returns
    -------
    float, or (g,); NaN where one class is missing.

    Notes
    -----
    From ranks: (R - p (p + 1) / 2) / (p q), R the sum of the positives' ranks (Mann and Whitney).

    Raises
    ------
    CourseError
        Shapes that differ, labels other than 0 and 1, scores that are not finite.
    """
    from scipy.stats import rankdata

    labels, score = np.asarray(positive), np.asarray(score, float)
    if labels.shape != score.shape or labels.ndim not in (1, 2) or not labels.size:
        raise CourseError(f"labels {labels.shape}, scores {score.shape}", "the same shape", "the truth comes first")
    if not np.isin(labels, (0, 1)).all() or not np.isfinite(score).all():
        raise CourseError(
            "labels other than 0 and 1, or scores that are not finite", "true classes first, then finite scores",
            "check the order of the arguments, and drop genes without a score",
        )  # fmt: skip
    labels = labels.astype(bool)
    p = labels.sum(0)
    q = len(labels) - p
    ranks = np.where(labels, rankdata(score, axis=0), 0.0).sum(0)
    area = np.divide(ranks - p * (p + 1) / 2, p * q, out=np.full(np.shape(p), np.nan), where=(p * q) > 0)
    return float(area) if labels.ndim == 1 else area

"""Methods: how well nuclei were found, outlined and typed, each score with what chance would reach.

Labels are int32 (y, x), 0 background; numbers may have gaps. Classes are codes by label or by nucleus, from 1.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

PAIR_UM = 3.0
"""Distance within which centroids pair. Twice of it, the published 12 px, pairs random points too in dense tissue."""


# ---------------------------------------------------------------- pairing
def overlaps(truth, found):
    """Return for every touching pair of labels (truth i, found j): i, j, pixels in common, IoU."""
    if truth.shape != found.shape:
        raise CourseError(f"labels of {found.shape} and {truth.shape}", "one shape", "resample to the same pixels")
    wide = int(found.max(initial=0)) + 1
    key, both = np.unique(truth.astype(np.int64).ravel() * wide + found.ravel(), return_counts=True)
    i, j = key // wide, key % wide
    of_truth, of_found = np.bincount(truth.ravel()), np.bincount(found.ravel())
    kept = (i > 0) & (j > 0)
    i, j, both = i[kept], j[kept], both[kept]
    return i, j, both, both / (of_truth[i] + of_found[j] - both)


def pair_iou(truth, found, least: float = 0.5):
    """Return label pairs (p, 2) with IoU > ``least``, and their IoU; above 0.5 no label can be in two pairs."""
    i, j, _, iou = overlaps(truth, found)
    kept = iou > least
    return np.stack([i[kept], j[kept]], 1), iou[kept]


def pair_points(truth, found, radius: float):
    """Pair points one to one within ``radius``: as many pairs as possible, then the least total distance.

    Parameters
    ----------
    truth, found
        Float (n, 2) and (m, 2), in the unit of ``radius``.

    Returns
    -------
    int64 (p, 2)
        Rows of ``truth`` and ``found``.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching
    from scipy.spatial import cKDTree

    n, m = len(truth), len(found)
    if not (n and m):
        return np.empty((0, 2), np.int64)
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius, output_type="ndarray")
    # every point of the truth may stay alone, at a price above any set of distances
    alone = radius * (n + m + 1)
    row = np.concatenate([near["i"], np.arange(n)])
    column = np.concatenate([near["j"], m + np.arange(n)])
    price = np.concatenate([near["v"] + radius * 1e-9, np.full(n, float(alone))])
    rows, columns = min_weight_full_bipartite_matching(coo_matrix((price, (row, column)), shape=(n, m + n)).tocsr())
    kept = columns < m
    return np.stack([rows[kept], columns[kept]], 1)


def f1(pairs: int, truth: int, found: int) -> float:
    """2 pairs / (truth + found); NaN where both are empty."""
    return 2 * pairs / (truth + found) if truth + found else float("nan")


def random_points(n: int, *, width: float, height: float, rng):
    """Return ``n`` uniform points, float (n, 2), x, y: what a finder reaches that looks at nothing."""
    return rng.uniform(0, 1, (n, 2)) * (width, height)


# ---------------------------------------------------------------- outlines
def dice(truth, found) -> float:
    """Dice of nuclear pixels."""
    a, b = truth > 0, found > 0
    return f1(int((a & b).sum()), int(a.sum()), int(b.sum()))


def aji(truth, found) -> float:
    """Return the aggregated Jaccard index (Kumar et al. 2017, algorithm 1).

    Every nucleus of the truth takes the found one of largest IoU (one may be taken twice); pixels of the others count
    in the denominator.
    """
    i, j, both, iou = overlaps(truth, found)
    of_truth, of_found = np.bincount(truth.ravel()).astype(float), np.bincount(found.ravel()).astype(float)
    of_truth[0] = of_found[0] = 0
    order = np.lexsort((j, -iou, i))
    _, first = np.unique(i[order], return_index=True)
    best = order[first]
    common = both[best].sum()
    used = np.zeros(len(of_found), bool)
    used[j[best]] = True
    union = of_truth.sum() + of_found[j[best]].sum() - common + of_found[~used].sum()
    return float(common / union) if union else float("nan")


def panoptic(truth, found) -> dict:
    """Return ``DQ`` (F1 at IoU > 0.5), ``SQ`` (mean IoU of those pairs) and ``PQ``, their product (Kirillov 2019)."""
    pairs, iou = pair_iou(truth, found)
    n, m = ((np.bincount(labels.ravel())[1:] > 0).sum() for labels in (truth, found))
    detection = f1(len(pairs), int(n), int(m))
    quality = float(iou.mean()) if len(iou) else 0.0
    return {"DQ": detection, "SQ": quality, "PQ": detection * quality}


def class_iou(truth, truth_classes, found, found_classes, classes: int):
    """Return the IoU of each class' pixels, float (C,): NaN for a class on neither side; their mean is the mIoU."""
    a, b = np.asarray(truth_classes)[truth], np.asarray(found_classes)[found]
    both = np.bincount(a[a == b], minlength=classes + 1)[1 : classes + 1].astype(float)
    each = [np.bincount(v.ravel(), minlength=classes + 1)[1 : classes + 1] for v in (a, b)]
    union = each[0] + each[1] - both
    return np.divide(both, union, out=np.full(classes, np.nan), where=union > 0)


# ---------------------------------------------------------------- types
def confusion(truth, found, classes: int):
    """Return counts of paired nuclei, int64 (C, C): rows the truth's class, columns the found one's."""
    truth, found = np.asarray(truth, np.int64) - 1, np.asarray(found, np.int64) - 1
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


def type_f1(matrix, of_truth, of_found):
    """Return the F1 of each type among all nuclei, float (C,): 2 right pairs / (nuclei of the truth + found).

    Parameters
    ----------
    matrix
        From :func:`confusion`.
    of_truth, of_found
        Nuclei of each class, paired or not, (C,).
    """
    total = np.asarray(of_truth, float) + np.asarray(of_found, float)
    return np.divide(2.0 * np.diag(matrix), total, out=np.full(len(matrix), np.nan), where=total > 0)


def published_type_f1(matrix, of_truth, of_found, weights=(1, 1, 1, 1)):
    """Return the F1 of each type as HoVer-Net's scripts compute it, which counts right *negatives* as well, float (C,).

    With, among pairs, TP both of the type, TN neither, FP only found so, FN only the truth, and with unpaired found
    (U_f) and true (U_t) nuclei of the type::

        2 (TP + TN) / (2 (TP + TN) + w0 FP + w1 FN + w2 U_f + w3 U_t)

    STimage sets all weights to 1. A rare type that is never found still scores high, through TN.
    """
    matrix, w = np.asarray(matrix, float), weights
    right = np.diag(matrix)
    fp, fn = matrix.sum(0) - right, matrix.sum(1) - right
    agree = 2 * (matrix.sum() - fp - fn)
    lone_found, lone_truth = np.asarray(of_found) - matrix.sum(0), np.asarray(of_truth) - matrix.sum(1)
    total = agree + w[0] * fp + w[1] * fn + w[2] * lone_found + w[3] * lone_truth
    return np.divide(agree, total, out=np.full(len(matrix), np.nan), where=total > 0)


def auroc(score, wrong) -> float:
    """Area under the curve of a score for telling errors from right answers; NaN where there is only one kind."""
    from sklearn.metrics import roc_auc_score

    wrong = np.asarray(wrong, bool)
    return float(roc_auc_score(wrong, score)) if wrong.any() and not wrong.all() else float("nan")


# ---------------------------------------------------------------- one table
def compare(truth, truth_classes, found, found_classes, *, mpp: float, names, rng, radius_um: float = PAIR_UM) -> dict:
    """Return every score of one field's nuclei, with the reference rows.

    Parameters
    ----------
    truth, found
        int32 (y, x) labels.
    truth_classes, found_classes
        Codes by label, (n + 1,) and (m + 1,); codes above the number of names (unlabelled) leave the type scores.
    mpp
        Microns per pixel.
    names
        The C class names.
    rng
        For the random points, as many as nuclei were found.
    radius_um
        Pairing distance; the published one, 12 px, is scored as well.

    Returns
    -------
    dict
        ``nuclei``, ``found``; ``f1_iou``, ``f1`` (centroids), ``f1_random``, ``f1_published``, ``f1_published_random``;
        ``dice``, ``aji``, ``DQ``, ``SQ``, ``PQ``, ``class_iou`` (C,), ``mean_class_iou``; on pairs ``accuracy``,
        ``majority`` (share of the commonest class of the truth) and ``confusion`` (C, C); ``type_f1``,
        ``published_type_f1`` (C,), ``macro_f1``, ``type_aware_f1`` (2 right pairs / all nuclei); ``pairs`` int (p, 2),
        labels of truth and found.
    """
    from helpers.hovernet_targets import centres

    c, (rows, columns) = len(names), truth.shape
    places, labels = [], []
    for image in (truth, found):
        area, xy = centres(image)
        label = np.flatnonzero(area[1:]) + 1
        places.append(xy[label] * mpp)
        labels.append(label)
    n, m = (len(label) for label in labels)
    chance = random_points(m, width=columns * mpp, height=rows * mpp, rng=rng)
    scores = {"nuclei": n, "found": m, **panoptic(truth, found), "dice": dice(truth, found), "aji": aji(truth, found)}
    scores["f1_iou"] = scores["DQ"]
    pairs = pair_points(*places, radius_um)
    scores["f1"] = f1(len(pairs), n, m)
    scores["f1_random"] = f1(len(pair_points(places[0], chance, radius_um)), n, m)
    scores["f1_published"] = f1(len(pair_points(*places, 12 * mpp)), n, m)
    scores["f1_published_random"] = f1(len(pair_points(places[0], chance, 12 * mpp)), n, m)
    scores["pairs"] = np.stack([labels[0][pairs[:, 0]], labels[1][pairs[:, 1]]], 1)
    a, b = np.asarray(truth_classes, np.int64)[labels[0]], np.asarray(found_classes, np.int64)[labels[1]]
    known = (a[pairs[:, 0]] <= c) & (b[pairs[:, 1]] >= 1) & (b[pairs[:, 1]] <= c)
    left, right = a[pairs[known, 0]], b[pairs[known, 1]]
    matrix = confusion(left, right, c)
    free = np.setdiff1d(np.arange(m), pairs[~known, 1])  # found on an unlabelled nucleus: neither right nor wrong
    of_truth, of_found = np.bincount(a[a <= c], minlength=c + 1)[1:], np.bincount(b[free], minlength=c + 1)[1 : c + 1]
    lone = f1(int(np.diag(matrix).sum()), int(of_truth.sum()), int(of_found.sum()))
    each = type_f1(matrix, of_truth, of_found)
    if not of_truth.any():  # no labels: nothing to say about types
        lone, each = float("nan"), np.full(c, np.nan)
    coded = [np.where(np.asarray(v) <= c, v, 0) for v in (truth_classes, found_classes)]
    iou = class_iou(truth, coded[0], found, coded[1], c)
    total = matrix.sum()
    scores.update(
        confusion=matrix, accuracy=float(np.diag(matrix).sum() / total) if total else float("nan"),
        majority=float(matrix.sum(1).max() / total) if total else float("nan"), type_f1=each,
        published_type_f1=published_type_f1(matrix, of_truth, of_found), type_aware_f1=lone,
        macro_f1=_mean(each), class_iou=iou, mean_class_iou=_mean(iou),
    )  # fmt: skip
    return scores


def _mean(values) -> float:
    """Mean over the classes that occur; NaN where none does."""
    values = np.asarray(values, float)[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")

"""Methods, DeepSpot2Cell: how good single-cell predictions are, as the paper describes it, and what it leaves out.

All genes, folds and bootstraps at once. Per gene: Pearson's r over cells, a constant prediction counting 0.
"""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError

TOP = (50, 100, 200)
BOOTSTRAPS = 10_000


def pearson(predicted, observed) -> np.ndarray:
    """Return Pearson's r of each column over rows, float64 (genes,); 0 where either side is constant.

    Raises
    ------
    CourseError
        Shapes that differ, fewer than two rows, values that are not finite.
    """
    a, b = np.asarray(predicted, float), np.asarray(observed, float)
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise CourseError(f"{a.shape} and {b.shape}", "two tables of the same cells and genes", "take the same rows")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CourseError("values that are not finite", "numbers", "leave out cells whose spot has no counts")
    a, b = a - a.mean(0), b - b.mean(0)
    va, vb = (a**2).sum(0), (b**2).sum(0)
    flat = (va <= 1e-10 * len(a)) | (vb <= 1e-10 * len(b))
    return np.where(flat, 0.0, (a * b).sum(0) / np.sqrt(np.where(flat, 1.0, va * vb)))


def slope(predicted, observed) -> np.ndarray:
    """Return the slope of the observed on the predicted, each gene, float64 (genes,); NaN for a constant prediction.

    1: differences between predictions are as large as those they stand for, however noisy the observed. Above 1 the
    predictions are too much alike, below 1 too far apart.
    """
    a, b = np.asarray(predicted, float), np.asarray(observed, float)
    a = a - a.mean(0)
    va = (a**2).sum(0)
    return np.where(va > 1e-10 * len(a), (a * (b - b.mean(0))).sum(0) / np.maximum(va, 1e-300), np.nan)


def top_means(r, *, by=None, top=TOP) -> dict:
    """Return the mean of r over the best genes: {50: ..., 100: ..., 200: ...}; NaN where there are fewer genes.

    Parameters
    ----------
    r
        float (genes,), on the test cells.
    by
        What ranks the genes: None, r itself, so the test chooses (the paper's way; optimistic, even of pure noise); or
        float (genes,), known before the test, such as :func:`dispersion` (honest).
    """
    r = np.asarray(r, float)
    order = np.argsort(-(r if by is None else np.asarray(by, float)), kind="stable")
    return {n: float(r[order[:n]].mean()) if len(r) >= n else np.nan for n in top}


def area(r) -> float:
    """Return the area under r sorted from best to worst, the genes' axis scaled to 0-1 (trapezoids)."""
    ordered = np.sort(np.asarray(r, float))[::-1]
    return float(np.trapezoid(ordered, dx=1 / (len(ordered) - 1))) if len(ordered) > 1 else float(ordered.mean())


def bootstrap_median(folds, *, n: int = BOOTSTRAPS, seed: int = 0) -> tuple:
    """Return the median over test folds, bootstrapped over folds, and its standard error.

    Parameters
    ----------
    folds
        float (folds,) or (folds, scores): all scores at once.

    Returns
    -------
    median, se
        Each float, or float (scores,): mean and sd of the medians of ``n`` resamples. With k folds a resample takes one
        of few values; the error says how much folds differ, not more.
    """
    folds = np.asarray(folds, float)
    if not len(folds):
        raise CourseError("no fold", "at least one", "cross-validate first")
    chosen = settings.rng(seed, "bootstrap median").integers(0, len(folds), (n, len(folds)))
    medians = np.median(folds[chosen], axis=1)
    middle, se = np.median(folds, axis=0), medians.std(0)
    return (float(middle), float(se)) if folds.ndim == 1 else (middle, se)


def patient_folds(sections, *, most: int = 5) -> list:
    """Return (train, test) section ids of min(``most``, patients) folds; all of a patient's sections on one side.

    Parameters
    ----------
    sections
        Data frame with ``section_id`` and ``subject_id``.

    Raises
    ------
    CourseError
        Fewer than two patients.
    """
    people = list(dict.fromkeys(sections["subject_id"]))
    if len(people) < 2:
        raise CourseError(f"{len(people)} patient", "at least two", "take sections of several patients")
    k = min(most, len(people))
    of = {person: number % k for number, person in enumerate(people)}
    fold = sections["subject_id"].map(of).to_numpy()
    ids = sections["section_id"].to_numpy()
    return [(list(ids[fold != number]), list(ids[fold == number])) for number in range(k)]


def summed(values, patch, inside, n_patches: int) -> np.ndarray:
    """Return sums over the cells in each spot, float64 (patches, genes)."""
    out = np.zeros((n_patches, np.shape(values)[1]))
    inside = np.asarray(inside, bool)
    np.add.at(out, np.asarray(patch)[inside], np.asarray(values, float)[inside])
    return out


def spot_scale(values, patches) -> np.ndarray:
    """Return cells on the published scale: log(1 + 10^4 value / sum of the values in the cell's spot), float32.

    NaN for cells without a patch and where no cell is in the spot.
    """
    values = np.asarray(values, np.float32)
    total = summed(values, patches.patch, patches.inside, len(patches.xy)).sum(1)
    total = np.where(patches.patch >= 0, total[patches.patch], 0.0)
    return np.log1p(1e4 * values / np.where(total > 0, total, np.nan)[:, None]).astype(np.float32)


def consistency(parts, wholes) -> float:
    """Return how far cells add up to their spots: median over spots of sum of parts / whole (1: exactly).

    Parameters
    ----------
    parts, wholes
        float (spots, genes): summed predictions of the cells, and what is measured (or said) of the spot, both linear.
        Spots whose whole is 0 are left out.
    """
    total = np.asarray(wholes, float).sum(1)
    kept = total > 0
    if not kept.any():
        raise CourseError("no spot with counts", "at least one", "check the counts")
    return float(np.median(np.asarray(parts, float).sum(1)[kept] / total[kept]))


def linear(predicted, kind: str) -> np.ndarray:
    """Return predictions as counts (``kind="rates"``: as they are) or counts per 10^4 of a spot (others)."""
    return np.asarray(predicted) if kind == "rates" else np.expm1(np.minimum(predicted, 15.0))


def row(r, *, by=None) -> dict:
    """Return what one line of the paper's tables holds: top means both ways, area, median r, genes above 0.2.

    ``by``: float (genes,), what ranks genes without the test (:func:`dispersion`); without it ``honest*`` is NaN.
    """
    picked = top_means(r)
    honest = top_means(r, by=by) if by is not None else dict.fromkeys(picked, np.nan)
    return {
        **{f"top{n}": value for n, value in picked.items()}, **{f"honest{n}": value for n, value in honest.items()},
        "area": area(r), "median": float(np.median(r)), "above_0.2": int((r > 0.2).sum()),
    }  # fmt: skip


def dispersion(spot_counts) -> np.ndarray:
    """Return how much more than counting noise each gene varies over spots: variance / mean, float64 (genes,).

    Counts are first scaled to the mean total. It ranks genes by training spots alone, the same for every model.
    """
    dense = np.asarray(spot_counts.toarray() if hasattr(spot_counts, "toarray") else spot_counts, float)
    total = dense.sum(1)
    some = total > 0
    scaled = dense[some] / total[some, None] * total[some].mean()
    return scaled.var(0) / np.maximum(scaled.mean(0), 1e-9)


def tasks(patches, held, has_counts) -> dict:
    """Return which cells each of the paper's tasks asks for: {"IS_in", "IS_out", "OOS"} -> bool (cells,).

    Parameters
    ----------
    patches
        Has ``patch`` and ``inside`` (``pseudospots_patches.Patches``).
    held
        bool (cells,): of a held-out patient.
    has_counts
        bool (cells,): cells without counts have no composition to compare with.
    """
    used, held, inside = (patches.patch >= 0) & np.asarray(has_counts), np.asarray(held, bool), patches.inside
    found = {"IS_in": used & inside & ~held, "IS_out": used & ~inside & ~held, "OOS": used & held}
    return {name: mask for name, mask in found.items() if mask.sum() > 1}


def compare(said: dict, target, of: dict, *, by):
    """Return the scores of every model on every task, and r by gene.

    Parameters
    ----------
    said
        Model -> float (cells, genes).
    target
        float (cells, genes); cells whose target is not finite (a spot without counts) are left out.
    of
        Task -> bool (cells,), from :func:`tasks`.
    by
        float (genes,): what ranks the genes without looking at the test (:func:`dispersion`).

    Returns
    -------
    table : pandas.DataFrame
        Index (task, model), columns of :func:`row`.
    r : dict
        Task -> {model: float (genes,)}.
    """
    import pandas as pd

    finite = np.isfinite(target).all(1)
    rows, r = {}, {}
    for task, mask in of.items():
        cells = mask & finite
        r[task] = {name: pearson(values[cells], target[cells]) for name, values in said.items()}
        rows |= {(task, name): row(one, by=by) for name, one in r[task].items()}
    return pd.DataFrame(rows).T.rename_axis(["task", "model"]), r


def lone(predicted, true, *, genes, bins: int = 12) -> tuple:
    """Return how well what is said of lone cells is on scale.

    Parameters
    ----------
    predicted, true
        float (cells, genes), linear: counts per 10^4. (A mean of logarithms is not the logarithm of a mean: a model
        that predicts means is judged where means add up.)
    genes
        Columns to use.
    bins
        Groups of equally many cells and genes, by what is predicted.

    Returns
    -------
    said, is_true : float (bins,)
        Mean of each group, as multiples of the gene's mean.
    slope : float
        Median over genes of the slope of true on predicted, in counts per 10^4. 1: on scale.
    """
    a, b = (np.asarray(part, float)[:, genes] for part in (predicted, true))
    middle = float(np.nanmedian(slope(a, b)))
    a, b = ((part / np.maximum(part.mean(0), 1e-9)).ravel() for part in (a, b))
    groups = np.array_split(np.argsort(a, kind="stable"), bins)
    return np.array([a[one].mean() for one in groups]), np.array([b[one].mean() for one in groups]), middle

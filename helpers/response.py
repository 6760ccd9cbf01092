"""Methods: response to treatment from expression, by a support vector machine in nested cross-validation.

The outer folds score, the inner folds choose. Scaling, choice and calibration see the training patients alone, and all
samples of a patient stay on one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError

C = (0.1, 1.0, 10.0, 100.0)
WIDTH = (0.026, 0.26, 2.6)
"""Candidates of gamma times the number of genes: 0.001, 0.01 and 0.1 for 26 genes."""
FIXED = (1.0, 0.26)
"""C and width without tuning, for permutations."""


@dataclass(frozen=True)
class Nested:
    """Out-of-fold results.

    Attributes
    ----------
    auc
        Float (repeats, folds): area under the ROC curve within each test fold.
    rank
        Float (repeats, n), 0 to 1: rank of the decision value within its test fold. Raw decision values of different
        folds have different scales and must not be pooled.
    probability
        Float (repeats, n): probability of a complete response, by Platt's logistic curve fitted to out-of-fold decision
        values of the training patients; NaN if not tuned.
    picks
        (C, width) chosen in each fold.
    """

    auc: np.ndarray
    rank: np.ndarray
    probability: np.ndarray
    picks: tuple

    @property
    def mean(self) -> float:
        """Mean area over folds and repeats."""
        return float(np.nanmean(self.auc))

    def interval(self, level: float = 0.95) -> tuple:
        """Return (low, high) of the mean: sd sqrt(1 / J + n_test / n_train), for overlapping training sets.

        Nadeau and Bengio (2003).
        """
        from scipy.stats import norm

        folds = self.auc.shape[1]
        width = np.nanstd(self.auc, ddof=1) * np.sqrt(1 / self.auc.size + 1 / (folds - 1))
        width = norm.ppf(0.5 + level / 2) * width
        return float(self.mean - width), float(self.mean + width)


@dataclass(frozen=True)
class Rated:
    """A response predicted from one source: see :func:`rate`."""

    nested: Nested
    delong: tuple
    curve: tuple
    calibration: pd.DataFrame
    fixed: float
    null: np.ndarray

    @property
    def p(self) -> float:
        """Permutation p-value of the area found with fixed settings."""
        return permutation_p(self.fixed, self.null)


def rate(x, complete, *, patient=None, repeats: int = 3, times: int = 100, seed: int = 0) -> Rated:
    """Return everything a figure needs: nested areas, the ROC of mean ranks, calibration, permutations.

    Parameters
    ----------
    x, complete, patient
        See :func:`nested`; x as published: integers are taken for counts, anything else for logs (:func:`kind_of`).
    """
    x = prepare(x, kind_of(x))
    found = nested(x, complete, patient=patient, repeats=repeats, seed=seed)
    fixed = nested(x, complete, patient=patient, repeats=5, seed=seed, tune=False).mean
    rank = found.rank.mean(0)
    return Rated(nested=found, delong=delong(rank, complete), curve=roc(rank, complete),
                 calibration=calibration(found.probability.mean(0), complete), fixed=fixed,
                 null=permuted(x, complete, patient=patient, times=times, seed=seed))  # fmt: skip


def kind_of(x) -> str:
    """Return "counts" for whole numbers that reach beyond 100, else "log"; see :func:`prepare`."""
    x = np.asarray(x, float)
    return "counts" if np.isfinite(x).all() and (x >= 0).all() and (x == np.round(x)).all() and x.max() > 100 else "log"


def prepare(x, kind: str) -> np.ndarray:
    """Return expression on the scale to be standardised, each sample by itself (so nothing can leak).

    Parameters
    ----------
    x
        Float (n, genes).
    kind
        ``"counts"``: raw counts, to counts per million (CPM), log(1 + CPM). ``"positive"``: predicted expression,
        log(1 + x). ``"log"``: on a log scale already, unchanged.

    Raises
    ------
    CourseError
        Another kind, values that are not finite, or negative ones where none can be.
    """
    x = np.asarray(x, float)
    if kind not in ("counts", "positive", "log"):
        raise CourseError(f"kind={kind!r}", "'counts', 'positive' or 'log'", "choose one")
    if not np.isfinite(x).all() or (kind != "log" and (x < 0).any()):
        raise CourseError("expression that is not finite or negative", f"numbers, as kind={kind!r}",
                          "leave the genes out, or choose kind='log'")  # fmt: skip
    if kind == "counts":
        x = x / np.maximum(x.sum(1, keepdims=True), 1e-12) * 1e6
    return x if kind == "log" else np.log1p(x)


def auc(score, complete) -> float:
    """Return the chance that a complete response scores higher than an incomplete one; NaN with one kind only."""
    from scipy.stats import rankdata

    complete = np.asarray(complete, bool)
    many = int(complete.sum())
    if not 0 < many < len(complete):
        return float("nan")
    return float((rankdata(score)[complete].sum() - many * (many + 1) / 2) / (many * (len(complete) - many)))


def delong(score, complete, *, level: float = 0.95) -> tuple:
    """Return (AUC, low, high) of one score, by DeLong, DeLong and Clarke-Pearson (1988); for scores of one scale."""
    from scipy.stats import norm

    score, complete = np.asarray(score, float), np.asarray(complete, bool)
    one, other = score[complete], score[~complete]
    wins = (one[:, None] > other) + 0.5 * (one[:, None] == other)
    area = wins.mean()
    variance = wins.mean(1).var(ddof=1) / len(one) + wins.mean(0).var(ddof=1) / len(other)
    width = norm.ppf(0.5 + level / 2) * np.sqrt(variance)
    return float(area), float(max(0, area - width)), float(min(1, area + width))


def deal(complete, patient, *, folds: int, seed: int, names=()) -> np.ndarray:
    """Return the fold of each sample, int (n,): a patient's samples together, both responses spread evenly.

    Raises
    ------
    CourseError
        Fewer patients of one response than folds: a fold would have one kind only.
    """
    complete = np.asarray(complete, bool)
    people, code = np.unique(np.asarray(patient), return_inverse=True)
    responds = np.zeros(len(people), bool)
    np.logical_or.at(responds, code, complete)
    if min(responds.sum(), (~responds).sum()) < folds:
        raise CourseError(f"{responds.sum()} patients with and {(~responds).sum()} without a complete response",
                          f"at least {folds} of each for {folds} folds", "use fewer folds")  # fmt: skip
    rng, of = settings.rng(seed, "response folds", *names), np.empty(len(people), int)
    for kind in (True, False):
        rows = rng.permutation(np.flatnonzero(responds == kind))
        of[rows] = (np.arange(len(rows)) + rng.integers(folds)) % folds
    return of[code]


def nested(
    x, complete, *, patient=None, outer: int = 5, inner: int = 5, repeats: int = 1, seed: int = 0, tune: bool = True
) -> Nested:
    """Train and score an SVM with a radial kernel in nested cross-validation.

    Parameters
    ----------
    x
        Float (n, genes) on a log scale, see :func:`prepare`. Rows may lie sorted by response: they are dealt anew.
    complete
        Bool (n,): complete response.
    patient
        Ids (n,), default a patient a row.
    tune
        Choose C and gamma by inner folds; else :data:`FIXED` is used (twenty times faster).

    Notes
    -----
    K = exp(-gamma |z - z'|^2) on genes standardised by the training rows, anew in every inner fold. The distances are
    computed once a split and shared by all candidates. Classes are balanced by weight.
    """
    x, complete = np.asarray(x, float), np.asarray(complete, bool)
    if x.ndim != 2 or len(x) != len(complete) or not np.isfinite(x).all():
        raise CourseError(f"expression {x.shape} for {len(complete)} responses", "finite (rows, genes)", "align them")
    patient = np.arange(len(x)) if patient is None else np.asarray(patient)
    rank, probability = np.empty((repeats, len(x))), np.full((repeats, len(x)), np.nan)
    area, picks = np.empty((repeats, outer)), []
    for r in range(repeats):
        of = deal(complete, patient, folds=outer, seed=seed, names=("outer", r))
        for k in range(outer):
            train, test = np.flatnonzero(of != k), np.flatnonzero(of == k)
            chosen, value, reference = FIXED, None, None
            if tune:
                chosen, value = _choose(x[train], complete[train], patient[train], inner, seed, (r, k))
                reference = _logistic(value, complete[train])
            decision = _decide(x, complete, train, test, [chosen])[0]
            area[r, k] = auc(decision, complete[test])
            rank[r, test] = (np.argsort(np.argsort(decision, kind="stable")) + 0.5) / len(test)
            if reference is not None:
                probability[r, test] = reference(decision)
            picks.append(chosen)
    return Nested(auc=area, rank=rank, probability=probability, picks=tuple(picks))


def _decide(x, complete, train, test, candidates):
    """Return decision values of the test rows, float (candidates, n_test), trained on the training rows."""
    from sklearn.svm import SVC

    mean, sd = x[train].mean(0), x[train].std(0)
    varies = sd > 1e-12
    z = (x[:, varies] - mean[varies]) / sd[varies] if varies.any() else np.zeros((len(x), 1))
    norm = (z * z).sum(1)
    apart = norm[:, None] + norm[train] - 2 * z @ z[train].T
    out = np.empty((len(candidates), len(test)))
    for width in sorted({width for _, width in candidates}):
        kernel = np.exp(-width / z.shape[1] * np.maximum(apart, 0))
        for i, (cost, other) in enumerate(candidates):
            if other == width:
                machine = SVC(C=cost, kernel="precomputed", class_weight="balanced")
                out[i] = machine.fit(kernel[train], complete[train]).decision_function(kernel[test])
    return out


def _choose(x, complete, patient, inner, seed, names):
    """Return the candidate with the best mean inner area, and its decision values of all rows, each left out once."""
    candidates = [(cost, width) for cost in C for width in WIDTH]
    people = len(np.unique(patient[complete])), len(np.unique(patient[~complete]))
    inner = max(2, min(inner, *people))
    of = deal(complete, patient, folds=inner, seed=seed, names=("inner", *names))
    value, area = np.empty((len(candidates), len(x))), np.empty((inner, len(candidates)))
    for k in range(inner):
        train, test = np.flatnonzero(of != k), np.flatnonzero(of == k)
        value[:, test] = _decide(x, complete, train, test, candidates)
        area[k] = [auc(one, complete[test]) for one in value[:, test]]
    best = int(np.nanargmax(np.nanmean(area, 0)))
    return candidates[best], value[best]


def _logistic(value, complete):
    """Return Platt's curve: a function from decision value to probability."""
    from sklearn.linear_model import LogisticRegression

    scale = max(float(np.std(value)), 1e-9)
    fit = LogisticRegression(C=10.0).fit(np.asarray(value)[:, None] / scale, complete)
    return lambda new: fit.predict_proba(np.asarray(new)[:, None] / scale)[:, 1]


def permuted(x, complete, *, patient=None, times: int = 100, seed: int = 0, **options) -> np.ndarray:
    """Return mean areas with responses dealt anew to patients, float (times,); by default without tuning.

    Compare them with an area found without tuning, too.
    """
    complete = np.asarray(complete, bool)
    patient = np.arange(len(complete)) if patient is None else np.asarray(patient)
    people, first, code = np.unique(patient, return_index=True, return_inverse=True)
    rng, options = settings.rng(seed, "response permutations"), {"tune": False, **options}
    found = []
    for number in range(times):
        dealt = complete[first][rng.permutation(len(people))][code]
        found.append(nested(x, dealt, patient=patient, seed=seed + number + 1, **options).mean)
    return np.array(found)


def permutation_p(value: float, null) -> float:
    """Return the one-sided p-value (1 + permuted ones as large) / (1 + all), never 0."""
    null = np.asarray(null, float)
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def calibration(probability, complete, *, bins: int = 5) -> pd.DataFrame:
    """Return, for groups of equal size by probability, what was said and what came true.

    Returns
    -------
    pandas.DataFrame
        ``said`` (mean probability), ``came`` (share of complete responses), ``low``, ``high`` (Wilson 95 %), ``n``.
    """
    from scipy.stats import norm

    probability, complete = np.asarray(probability, float), np.asarray(complete, bool)
    order, q = np.argsort(probability, kind="stable"), norm.ppf(0.975)
    rows = []
    for part in np.array_split(order, bins):
        n, share = len(part), complete[part].mean()
        middle, half = share + q * q / (2 * n), q * np.sqrt(share * (1 - share) / n + q * q / (4 * n * n))
        low, high = ((middle + sign * half) / (1 + q * q / n) for sign in (-1, 1))
        rows.append({"said": probability[part].mean(), "came": share, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows)


def roc(score, complete) -> tuple:
    """Return (false positive rate, true positive rate) of a score, float (k,), from (0, 0) to (1, 1)."""
    score, complete = np.asarray(score, float), np.asarray(complete, bool)
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # equal scores are passed together
    hits, misses = np.cumsum(complete[order])[last], np.cumsum(~complete[order])[last]
    return np.r_[0, misses / (~complete).sum()], np.r_[0, hits / complete.sum()]

"""Methods, survival: repeated cross-validation with the genes chosen inside each fold, and honest intervals.

A c-index from cross-validation scatters much more from cohort to cohort than from repeat to repeat. Percentiles over
repeats are therefore no confidence interval; Nadeau and Bengio's correction (2003) and permuted outcomes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers import settings, survival
from helpers.messages import CourseError
from helpers.survival_index import concordance
from helpers.survival_multi import multivariate
from helpers.survival_risk import checked

TOP = 5
"""Genes of the multivariate model (STimage)."""
MAX_COMMON = 0.2
"""A gene whose commonest value is shared by more of the training patients is not offered: it separates by accident."""
RIDGE = 1.0
EVENTS_PER_COVARIATE = 10
"""Below this many events a covariate, the fit is ridge-penalised."""


@dataclass(frozen=True)
class CrossValidated:
    """Out-of-fold results.

    Attributes
    ----------
    c
        Float (repeats, folds): concordance within each test fold.
    risk
        Float (repeats, n): out-of-fold risk, standardised by its fold's training risks, so folds can be joined.
    high
        Bool (repeats, n): above the *training* median of its fold.
    chosen
        Int (genes,): how often each gene was chosen, over repeats x folds.
    """

    c: np.ndarray
    risk: np.ndarray
    high: np.ndarray
    chosen: np.ndarray

    @property
    def mean(self) -> float:
        """Mean concordance over folds and repeats."""
        return float(np.nanmean(self.c))

    def interval(self, level: float = 0.95) -> tuple:
        """Return (low, high) of the mean by Nadeau and Bengio (2003); see :func:`corrected_interval`."""
        return corrected_interval(self.c, level=level)

    @property
    def consensus(self) -> np.ndarray:
        """Mean risk over repeats, float (n,)."""
        return self.risk.mean(0)


def corrected_interval(scores, *, level: float = 0.95) -> tuple:
    """Return (low, high) for the mean of repeated k-fold scores, corrected for training sets that overlap.

    Parameters
    ----------
    scores
        Float (repeats, folds).

    Notes
    -----
    mean +- q sd sqrt(1 / J + n_test / n_train), J = number of scores, n_test / n_train = 1 / (folds - 1); normal q.
    """
    from scipy.stats import norm

    scores = np.asarray(scores, float)
    folds = scores.shape[1]
    width = norm.ppf(0.5 + level / 2) * np.nanstd(scores, ddof=1) * np.sqrt(1 / scores.size + 1 / (folds - 1))
    return float(np.nanmean(scores) - width), float(np.nanmean(scores) + width)


def fold_masks(event, *, folds: int = 3, repeats: int = 100, seed: int = 0) -> np.ndarray:
    """Return the fold of each patient, int (repeats, n), with events spread evenly over folds.

    Raises
    ------
    CourseError
        Fewer than two events a fold.
    """
    event = np.asarray(event).astype(bool)
    if event.sum() < 2 * folds:
        raise CourseError(f"{event.sum()} events for {folds} folds", f"at least {2 * folds}",
                          "use fewer folds or more patients")  # fmt: skip
    rng = settings.rng(seed, "survival folds")
    out = np.empty((repeats, len(event)), int)
    for part in out:
        for kind in (True, False):
            rows = rng.permutation(np.flatnonzero(event == kind))
            part[rows] = (np.arange(len(rows)) + rng.integers(folds)) % folds
    return out


def cross_validate(
    x, time, event, *, extra=None, folds: int = 3, repeats: int = 100, top: int = TOP, seed: int = 0,
    label_leak: bool = False,
) -> CrossValidated:  # fmt: skip
    """Choose genes, fit and score, fold by fold.

    Parameters
    ----------
    x
        Expression, float (n, genes), one row a patient; (n, 0) for the extra covariates alone.
    extra
        Clinical covariates always in the model, float (n, k), e.g. age; None: none.
    top
        Genes chosen by the score test on the training patients.
    label_leak
        The trap: choose them once, on *all* patients, as published.

    Notes
    -----
    In each fold expression becomes normal scores by training ranks (:func:`helpers.survival.rank_normal`); genes that
    more than ``MAX_COMMON`` of the training patients share a value of are not offered. A fold to which no gene is
    offered gives everyone the same risk: concordance 0.5.
    """
    x, (time, event) = np.asarray(x, float), checked(time, event)
    extra = np.empty((len(x), 0)) if extra is None else np.asarray(extra, float).reshape(len(x), -1)
    if not x.shape[1] + extra.shape[1]:
        raise CourseError("no gene and no covariate", "at least one", "give expression or extra")
    fold_of = fold_masks(event, folds=folds, repeats=repeats, seed=seed)
    shape = (repeats, folds)
    c, risk, high = np.full(shape, np.nan), np.full((repeats, len(x)), np.nan), np.zeros((repeats, len(x)), bool)
    chosen = np.zeros(x.shape[1], int)
    ranks = _Ranks(x)
    everyone = _offer(ranks, np.ones(len(x), bool), time, event, top) if label_leak else None
    designs, masks, place = [], [], []
    for r in range(repeats):
        for k in range(folds):
            train = fold_of[r] != k
            genes = everyone if label_leak else _offer(ranks, train, time, event, top)
            chosen[genes] += 1
            design = np.empty((len(x), len(genes) + extra.shape[1]))
            design[:, len(genes) :] = extra
            if len(genes):
                inside, outside = survival.rank_normal(x[train][:, genes], x[~train][:, genes])
                design[train, : len(genes)], design[~train, : len(genes)] = inside, outside
            designs.append(design)
            masks.append(train)
            place.append((r, k))
    for width in sorted({design.shape[1] for design in designs}):
        which = [i for i, design in enumerate(designs) if design.shape[1] == width]
        events = min(int(event[masks[i]].sum()) for i in which)
        ridge = RIDGE if events < EVENTS_PER_COVARIATE * width else 0.0
        block, train = np.stack([designs[i] for i in which]), np.stack([masks[i] for i in which])
        scores, failed = np.zeros(block.shape[:2]), ()
        if width:
            fits = multivariate(block, time, event, mask=train, ridge=ridge)
            failed, scores = np.flatnonzero(fits.flag != ""), fits.risk(block)
        if len(failed):
            again = multivariate(block[failed], time, event, mask=train[failed], ridge=RIDGE)
            scores[failed] = again.risk(block[failed])
        for i, score in zip(which, np.nan_to_num(scores)):
            (r, k), inside = place[i], masks[i]
            c[r, k] = concordance(score[~inside], time[~inside], event[~inside])
            spread = score[inside].std()
            risk[r, ~inside] = (score[~inside] - score[inside].mean()) / (spread if spread > 0 else 1)
            high[r, ~inside] = score[~inside] > np.median(score[inside])
    return CrossValidated(c=c, risk=risk, high=high, chosen=chosen)


class _Ranks:
    """Genes sorted once, so that the ranks among any subset of patients follow without sorting again."""

    def __init__(self, x):
        n = len(x)
        self.order = np.argsort(x, axis=0, kind="stable")
        ordered = np.take_along_axis(x, self.order, 0)
        new = np.vstack([np.ones((1, x.shape[1]), bool), ordered[1:] != ordered[:-1]]) if n else np.empty(x.shape, bool)
        rows = np.arange(n)[:, None]
        self.first = np.maximum.accumulate(np.where(new, rows, 0), axis=0)  # where each run of equal values begins
        last = np.vstack([new[1:], np.ones((1, x.shape[1]), bool)]) if n else new
        self.last = np.minimum.accumulate(np.where(last, rows, n)[::-1], axis=0)[::-1]

    def of(self, train):
        """Return (normal scores of the training patients (n_train, genes), share of the commonest value (genes,))."""
        from scipy.special import ndtri

        many = int(train.sum())
        count = np.cumsum(np.vstack([np.zeros((1, self.order.shape[1]), int), train[self.order]]), axis=0)
        before = np.take_along_axis(count, self.first, 0)
        upto = np.take_along_axis(count, self.last + 1, 0)
        table = ndtri(np.arange(2 * many + 2) / 2 / (many + 1))  # mean ranks are multiples of one half
        scores = np.empty(self.order.shape)
        np.put_along_axis(scores, self.order, table[before + upto + 1], 0)
        return scores[train], (upto - before).max(0) / many


def _offer(ranks, train, time, event, top):
    """Return the ``top`` genes by the score test among the training patients, strongest first."""
    if not ranks.order.shape[1]:
        return np.empty(0, int)
    scores, common = ranks.of(train)
    z = np.where(common <= MAX_COMMON, survival.score_test(scores, time[train], event[train]), 0.0)
    best = np.argsort(-np.abs(z), kind="stable")[:top]
    return best[z[best] != 0]


def permuted(x, time, event, *, times: int = 20, repeats: int = 20, seed: int = 0, extra=None, **options) -> np.ndarray:
    """Return mean concordances with outcomes dealt anew to patients, float (times,): what no signal at all looks like.

    Time, event and ``extra`` move together, so that only the genes lose their meaning.
    """
    x, (time, event) = np.asarray(x, float), checked(time, event)
    rng = settings.rng(seed, "survival permutations")
    found = []
    for number in range(times):
        new = rng.permutation(len(time))
        moved = None if extra is None else np.asarray(extra, float)[new]
        made = cross_validate(x, time[new], event[new], extra=moved, repeats=repeats, seed=seed + number + 1, **options)
        found.append(made.mean)
    return np.array(found)


def permutation_p(value: float, null) -> float:
    """Return the one-sided p-value of a score against permuted ones, never 0: (1 + those as large) / (1 + all)."""
    null = np.asarray(null, float)
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def paired_interval(one: CrossValidated, other: CrossValidated, *, level: float = 0.95) -> tuple:
    """Return (difference, low, high) of two models scored on the *same* folds (same seed), corrected as above."""
    if one.c.shape != other.c.shape:
        raise CourseError(f"scores {one.c.shape} and {other.c.shape}", "the same folds", "use one seed")
    difference = one.c - other.c
    return (float(np.nanmean(difference)), *corrected_interval(difference, level=level))

"""Methods, explanations: do they agree with something, with each other, and with more than chance."""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError


def precision_at_k(scores, positive, k: int | None = None) -> tuple[float, float]:
    """Return the share of positives among the ``k`` highest scores, and among all (what chance gives).

    Parameters
    ----------
    scores
        Float (n,).
    positive
        Bool (n,): what should be on top.
    k
        Default: as many as there are positives. At most n. Of equal scores at the border each counts in part, so an
        explanation that says nothing gets exactly chance.
    """
    scores, positive = _pair(scores, positive)
    n = len(scores)
    if not n or not positive.any():
        return np.nan, float(positive.mean()) if n else np.nan
    k = int(positive.sum()) if k is None else min(int(k), n)
    if k < 1:
        raise CourseError(f"k={k}", "1 or more", "ask for at least one nucleus")
    border = np.sort(scores)[n - k]
    above, level = scores > border, scores == border
    hits = positive[above].sum() + positive[level].mean() * (k - above.sum())
    return float(hits / k), float(positive.mean())


def area(scores, positive) -> float:
    """Return the probability that a positive scores above a negative (area under the ROC curve); nan without both."""
    from scipy.stats import rankdata

    scores, positive = _pair(scores, positive)
    up, down = int(positive.sum()), int((~positive).sum())
    if not up or not down:
        return np.nan
    return float((rankdata(scores)[positive].sum() - up * (up + 1) / 2) / (up * down))


def stability(runs, *, method: str = "spearman") -> float:
    """Return the mean rank correlation between explanations of one tile made with different seeds.

    Parameters
    ----------
    runs
        Float (seeds, nuclei).
    method
        ``"spearman"`` or ``"kendall"``.

    Returns
    -------
    float
        1: always the same order; about 0: the order is made by the seed. nan for fewer than three nuclei or two seeds.
    """
    runs = np.asarray(runs, float)
    if method not in ("spearman", "kendall") or runs.ndim != 2:
        seen = f"method={method!r}, runs {runs.shape}"
        raise CourseError(seen, "spearman or kendall; (seeds, nuclei)", "correct it")
    if runs.shape[0] < 2 or runs.shape[1] < 3:
        return np.nan
    return float(np.nanmean([agreement(a, b, method=method) for i, a in enumerate(runs) for b in runs[:i]]))


def agreement(first, second, *, method: str = "spearman") -> float:
    """Return the rank correlation of two explanations of the same nuclei; nan where one says nothing."""
    from scipy import stats

    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float((stats.spearmanr if method == "spearman" else stats.kendalltau)(first, second).statistic)


def agreements(ways, reference):
    """Compare ways of explaining with one of them, where no truth is known.

    Parameters
    ----------
    ways
        Name of the way -> number of the tile -> data frame (nuclei, genes) of scores by label.
    reference
        Number of the tile -> data frame: the way to compare with.

    Returns
    -------
    pandas.DataFrame
        Columns ``way``, ``gene``, ``agreement``: mean over tiles of Spearman's rank correlation.
    """
    import pandas as pd

    rows = [{"way": way, "gene": gene, "agreement": agreement(frame[gene], reference[tile].loc[frame.index, gene])}
            for way, frames in ways.items() for tile, frame in frames.items() for gene in frame]  # fmt: skip
    return pd.DataFrame(rows).groupby(["way", "gene"], sort=False).mean().reset_index()


def shuffled(scores, measure, *, times: int = 200, seed: int = 0):
    """Return ``measure(scores)`` with the scores handed out to the nuclei at random, float (times,).

    The permutation baseline: whatever the numbers are, this is what they score when they do not know the nuclei.
    """
    scores, rng = np.asarray(scores, float), settings.rng(seed, "explain", "shuffled")
    return np.array([measure(rng.permutation(scores)) for _ in range(times)])


def _pair(scores, positive):
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    if scores.ndim != 1 or scores.shape != positive.shape or not np.isfinite(scores).all():
        seen = f"scores {scores.shape}, positives {positive.shape}"
        raise CourseError(seen, "finite (n,) and bool (n,)", "match them")
    return scores, positive


def strangeness(embeddings, reference) -> float:
    """Return how far tiles lie from all tiles a model learned from: 1 is as far as those lie from each other.

    Parameters
    ----------
    embeddings
        Float (n, f), e.g. of perturbed tiles.
    reference
        Float (m, f), of the training tiles.

    Returns
    -------
    float
        Median distance to the nearest reference tile, divided by the median of the same among the reference tiles
        themselves. Features are standardised first.
    """
    from scipy.spatial import cKDTree

    reference = np.asarray(reference, np.float64)
    centre, spread = reference.mean(0), np.maximum(reference.std(0), 1e-9)
    tree = cKDTree((reference - centre) / spread)
    own = np.median(tree.query(tree.data, k=2)[0][:, 1])
    return float(np.median(tree.query((np.asarray(embeddings, np.float64) - centre) / spread)[0]) / max(own, 1e-12))

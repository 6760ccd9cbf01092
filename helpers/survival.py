"""Methods: Cox's proportional hazards for many genes at once, and what follows from it.

This door holds the univariate fits. The other files of the room: ``survival_risk`` (sorting), ``survival_multi``
(several covariates, many folds at once), ``survival_index`` (concordance), ``survival_curves`` (Kaplan-Meier, log-rank)
and ``survival_cv`` (cross-validation with selection inside the fold). Single fits and plots are lifelines' business.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.survival_risk import checked, risk_sets

__all__ = [
    "MAX_BETA", "benjamini_hochberg", "common_value", "panel", "rank_normal", "score_test", "signature", "univariate",
]  # fmt: skip

MAX_BETA = 15.0
"""A standardised coefficient beyond this runs away: the likelihood has no maximum (quasi-separation)."""
MAX_STEPS = 25


def univariate(x, time, event, *, names=None, ties: str = "efron") -> pd.DataFrame:
    """Fit one Cox model per gene, all at once, by Newton's method.

    Parameters
    ----------
    x
        Expression, float (n, genes).
    time, event
        See :func:`helpers.survival_risk.checked`.
    ties
        ``"efron"`` or ``"breslow"``.

    Returns
    -------
    pandas.DataFrame
        One row a gene: ``beta`` (log hazard ratio per unit of x), ``se``, ``z``, ``p`` (Wald), ``loglik``,
        ``loglik_null``, ``p_lr``, ``score_z``, ``flag``. A gene that cannot be fitted has NaN and the reason as flag:
        "not finite", "constant", "few events", "separated", "diverging" or "no convergence"; others have "".

    References
    ----------
    Cox 1972; Efron 1977 (ties). log L = sum over events of x b - log S0, with S_k the sum of w x^k over the risk set,
    minus l/d of the same sum over the tied events.
    """
    if ties not in ("efron", "breslow"):
        raise CourseError(f"ties={ties!r}", "'efron' or 'breslow'", "choose one")
    x = np.asarray(x, float)
    time, event = checked(time, event)
    if x.ndim != 2 or len(x) != len(time):
        raise CourseError(f"expression {x.shape} for {len(time)} patients", "(patients, genes)", "align the tables")
    genes = x.shape[1]
    columns = ("beta", "se", "z", "p", "loglik", "loglik_null", "p_lr", "score_z")
    out = pd.DataFrame(np.nan, index=range(genes) if names is None else list(names), columns=columns)
    flag = np.full(genes, "", object)
    finite = np.isfinite(x).all(0)
    flag[~finite] = "not finite"
    sets = risk_sets(time, event) if event.sum() >= 2 else None
    if sets is None:
        return out.assign(flag="few events")
    z = x[sets.order]
    with np.errstate(invalid="ignore"):
        mean, sd = z.mean(0), z.std(0)
        varies = sd > 1e-9 * (1 + np.abs(mean))
    flag[finite & ~varies] = "constant"
    usable = np.flatnonzero(finite & varies)
    z = (z[:, usable] - mean[usable]) / sd[usable]
    high = np.maximum.accumulate(np.maximum.reduceat(z, sets.starts, 0), 0)[sets.block]
    low = np.minimum.accumulate(np.minimum.reduceat(z, sets.starts, 0), 0)[sets.block]
    at_event = z[sets.events]
    separated = (at_event >= high - 1e-12).all(0) | (at_event <= low + 1e-12).all(0)
    empty = (high - low < 1e-12).all(0)
    flag[usable[separated]], flag[usable[empty]] = "separated", "constant"
    fitted = _newton(z, sets, ties == "efron" and sets.has_ties, np.flatnonzero(~separated & ~empty), at_event.sum(0))
    beta, loglik, information, start, score, problem = fitted
    flag[usable[problem != ""]] = problem[problem != ""]
    good = usable[(flag[usable] == "")]
    from scipy.stats import chi2, norm

    with np.errstate(invalid="ignore", divide="ignore"):
        se = 1 / np.sqrt(information)
        values = {
            "beta": beta / sd[usable], "se": se / sd[usable], "z": beta / se, "p": 2 * norm.sf(np.abs(beta / se)),
            "loglik": loglik, "loglik_null": start, "p_lr": chi2.sf(np.maximum(0, 2 * (loglik - start)), 1),
        }  # fmt: skip
    chosen = np.isin(usable, good)
    for name, value in values.items():
        out.iloc[good, out.columns.get_loc(name)] = value[chosen]
    out.iloc[usable, out.columns.get_loc("score_z")] = score
    return out.assign(flag=flag)


def _newton(z, sets, efron: bool, active, at_event):
    """Maximise the partial likelihoods of the standardised columns ``active``; return arrays over all columns."""
    many = z.shape[1]
    beta, problem = np.zeros(many), np.full(many, "", object)
    loglik, information, start, score = (np.full(many, np.nan) for _ in range(4))

    def at(b, columns):
        part = z[:, columns]
        eta = part * b
        peak = eta.max(0)
        w = np.exp(eta - peak)
        sums = [w, w * part, w * part * part]
        s0, s1, s2 = (
            sets.sums(v) - sets.share[:, None] * sets.tied_sums(v) if efron else sets.sums(v) for v in sums
        )  # fmt: skip
        ratio = s1 / s0
        value = b * at_event[columns] - (np.log(s0) + peak).sum(0)
        return value, at_event[columns] - ratio.sum(0), (s2 / s0 - ratio**2).sum(0)

    if not len(active):
        return beta, loglik, information, start, score, problem
    value, u, i = at(beta[active], active)
    loglik[active], information[active], start[active] = value, i, value
    with np.errstate(invalid="ignore", divide="ignore"):
        score[active] = u / np.sqrt(i)
    for _ in range(MAX_STEPS):
        step = np.clip(u / np.maximum(i, 1e-12), -2, 2)
        new = beta[active] + step
        value, u, i = at(new, active)
        for _ in range(10):
            worse = value < loglik[active] - 1e-10 * (1 + np.abs(loglik[active]))
            if not worse.any():
                break
            step[worse] /= 2
            new[worse] = beta[active][worse] + step[worse]
            value[worse], u[worse], i[worse] = at(new[worse], active[worse])
        beta[active], loglik[active], information[active] = new, value, i
        done = (np.abs(step) < 1e-5) & (u * u / np.maximum(i, 1e-300) < 1e-9)
        away = np.abs(new) > MAX_BETA
        problem[active[away]] = "diverging"
        going = ~(done | away)
        active, u, i = active[going], u[going], i[going]
        if not len(active):
            break
    problem[active] = "no convergence"
    return beta, loglik, information, start, score, problem


def score_test(x, time, event) -> np.ndarray:
    """Return each gene's score statistic at beta = 0, float (genes,): one pass, no iteration.

    It ranks genes inside folds almost as the Wald test does. Ties as Breslow. Constant genes and too few events give 0.
    """
    time, event = checked(time, event)
    sets = risk_sets(time, event) if event.sum() >= 2 else None
    x = np.asarray(x, float)
    if sets is None:
        return np.zeros(x.shape[1])
    z = x[sets.order] - x[sets.order].mean(0)
    ends = np.r_[sets.starts[1:], len(sets.order)][:, None].astype(float)
    tied = sets.tied[:, None]
    mean = np.cumsum(np.add.reduceat(z, sets.starts, 0), 0) / ends
    square = np.cumsum(np.add.reduceat(z * z, sets.starts, 0), 0) / ends
    variance = (tied * (square - mean**2)).sum(0)
    u = z[sets.events].sum(0) - (tied * mean).sum(0)
    scale = 1e-12 * (1 + (z**2).sum(0))
    return np.where(variance > scale, u / np.sqrt(np.maximum(variance, 1e-300)), 0.0)


def benjamini_hochberg(p) -> np.ndarray:
    """Return q-values, float (genes,); a gene without a p-value (NaN) counts as p = 1."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p, float)
    return false_discovery_control(np.where(np.isfinite(p), p, 1.0))


def common_value(x) -> np.ndarray:
    """Return the share of patients with each gene's commonest value, float (genes,); near 1, a gene says little."""
    x = np.sort(np.asarray(x, float), axis=0)
    n = len(x)
    new = np.vstack([np.ones((1, x.shape[1]), bool), x[1:] != x[:-1]])
    began = np.maximum.accumulate(np.where(new, np.arange(n)[:, None], 0), axis=0)
    return (np.arange(n)[:, None] - began + 1).max(0) / n


def panel(table, size: int, *, first=(), most_common: float = 0.2, seed: int = 0) -> list:
    """Return names of genes to test, chosen without a look at any outcome: ``first``, then others by lot.

    Parameters
    ----------
    table
        Data frame (patients, genes).
    size
        Genes wanted; fewer if there are no more.
    most_common
        A gene whose commonest value more patients share (unexpressed, or copied) is left out.
    """
    from helpers import settings

    usable = table.columns[common_value(table) <= most_common]
    wanted = [gene for gene in first if gene in set(usable)][:size]
    rest = usable[~usable.isin(wanted)]
    if not len(usable):
        raise CourseError("no gene that varies", "expression of several genes", "check the gene table")
    more = settings.rng(seed, "survival panel").choice(len(rest), min(len(rest), size - len(wanted)), replace=False)
    return [*wanted, *rest[np.sort(more)]]


def signature(table, genes):
    """Return the mean normal score of a list of genes fixed beforehand, a data frame (patients, 1); None without any.

    Nothing is chosen or fitted, so there is nothing to overfit: a baseline for whatever is.
    """
    here = [gene for gene in genes if gene in table.columns]
    return table[here[:0]].assign(signature=rank_normal(table[here])[0].mean(1)) if here else None


def rank_normal(train, *others):
    """Map expression to normal scores by the ranks of ``train``; returns a list, ``train`` first.

    Parameters
    ----------
    train, others
        Float (n, genes). Values of ``others`` take the score of their place among ``train`` (linear between, clipped at
        its ends), so nothing of them is learned. Outliers lose their leverage.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    train = np.asarray(train, float)
    scores = ndtri(rankdata(train, axis=0) / (len(train) + 1))
    out = [scores]
    order = np.argsort(train, axis=0, kind="stable")
    sorted_x, sorted_z = np.take_along_axis(train, order, 0), np.take_along_axis(scores, order, 0)
    for other in others:
        other = np.asarray(other, float)
        columns = range(other.shape[1])
        out.append(np.column_stack([np.interp(other[:, g], sorted_x[:, g], sorted_z[:, g]) for g in columns]))
    return out

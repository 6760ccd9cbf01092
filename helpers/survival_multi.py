"""Methods, survival: Cox models with several covariates, fitted for many training masks at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError
from helpers.survival_risk import checked, risk_sets

MAX_BETA = 15.0
MAX_STEPS = 25
CHUNK = 10
"""Fits solved as one batch: about ten are fastest, as they stay in the processor's cache."""


@dataclass(frozen=True)
class Fits:
    """Coefficients of B models with p covariates.

    Attributes
    ----------
    beta, se
        Float (B, p): log hazard ratios per unit of the covariate, and their standard errors (NaN where not fitted).
    mean
        Float (B, p): training means; :meth:`risk` is relative to them.
    loglik, loglik_null
        Float (B,): log partial likelihoods (with the ridge term, if any).
    flag
        (B,) of "" or "constant", "few events", "collinear", "diverging", "no convergence".
    """

    beta: np.ndarray
    se: np.ndarray
    mean: np.ndarray
    loglik: np.ndarray
    loglik_null: np.ndarray
    flag: np.ndarray

    def risk(self, x) -> np.ndarray:
        """Return the linear predictors, float (B, n), of x float (B, n, p) or (n, p); high = early event."""
        x = np.asarray(x, float)
        x = np.broadcast_to(x, (len(self.beta), *x.shape)) if x.ndim == 2 else x
        return np.einsum("bnp,bp->bn", x - self.mean[:, None], self.beta)


def multivariate(x, time, event, *, mask=None, ridge: float = 0.0, ties: str = "efron") -> Fits:
    """Fit Cox models of the same patients, each with its own covariates and its own training patients.

    Parameters
    ----------
    x
        Float (B, n, p), or (n, p) for all models.
    time, event
        See :func:`helpers.survival_risk.checked`.
    mask
        Bool (B, n): who trains each model (default everyone).
    ridge
        lambda of the penalty lambda / 2 |beta|^2 on coefficients of *standardised* covariates. 1 keeps small cohorts
        (fewer than ten events a covariate) and collinear genes finite.

    Raises
    ------
    CourseError
        Shapes that do not fit or values that are not finite.
    """
    x = np.asarray(x, float)
    x = x[None] if x.ndim == 2 else x
    time, event = checked(time, event)
    mask = np.ones((len(x), x.shape[1]), bool) if mask is None else np.atleast_2d(np.asarray(mask, bool))
    if x.ndim != 3 or x.shape[1] != len(time) or mask.shape[1] != len(time) or len(x) not in (1, len(mask)):
        raise CourseError(f"covariates {x.shape}, masks {mask.shape}, {len(time)} patients", "(B, n, p) and (B, n)",
                          "align them")  # fmt: skip
    if not np.isfinite(x).all():
        raise CourseError("covariates that are not finite", "numbers", "leave the patients or the genes out")
    x = np.broadcast_to(x, (len(mask), *x.shape[1:]))
    parts = [_fit(x[i : i + CHUNK], time, event, mask[i : i + CHUNK], ridge, ties) for i in range(0, len(x), CHUNK)]
    return Fits(*(np.concatenate(part) for part in zip(*parts)))


def _fit(x, time, event, mask, ridge, ties):
    batch, _, p = x.shape
    flag = np.full(batch, "", object)
    blank = [np.full((batch, p), np.nan) for _ in range(3)] + [np.full(batch, np.nan) for _ in range(2)]
    sets = risk_sets(time, event)
    if sets is None:
        return (*blank, np.full(batch, "few events", object))
    m = mask[:, sets.order].astype(float)
    z = x[:, sets.order]
    weight = np.maximum(m.sum(1), 1)[:, None]
    mean = (z * m[..., None]).sum(1) / weight
    z = z - mean[:, None]
    sd = np.sqrt((z**2 * m[..., None]).sum(1) / weight)
    flag[(sd < 1e-9 * (1 + np.abs(mean))).any(1)] = "constant"
    z = z / np.maximum(sd, 1e-12)[:, None]
    at = m[:, sets.events]
    flag[at.sum(1) < 2] = "few events"
    tied = np.add.reduceat(at, sets.first, 1)[:, sets.block]
    before = np.cumsum(at, 1) - at
    share = np.where(tied > 0, (before - before[:, sets.first][:, sets.block]) / np.maximum(tied, 1), 0.0)
    efron = ties == "efron" and sets.has_ties
    upper = np.triu_indices(p)
    correlation = np.einsum("bnp,bnq,bn->bpq", z, z, m) / weight[:, :, None]
    collinear = np.linalg.eigvalsh(correlation)[:, 0] < 1e-6
    flag[collinear & (flag == "") & (ridge == 0)] = "collinear"
    at_event = np.einsum("be,bep->bp", at, z[:, sets.events])

    def evaluate(b, a):
        part = z[a]
        eta = np.einsum("bnp,bp->bn", part, b)
        peak = np.where(m[a] > 0, eta, -np.inf).max(1)
        w = (np.exp(np.minimum(eta - peak[:, None], 50.0)) * m[a])[..., None]
        sums = np.concatenate([w, w * part, w * part[..., upper[0]] * part[..., upper[1]]], 2)
        total = sets.sums(sums, axis=1)
        if efron:
            total = total - share[a][..., None] * sets.tied_sums(sums, axis=1)
        s0 = np.where(at[a] > 0, total[..., 0], 1.0)
        ratio = total[..., 1 : p + 1] / s0[..., None]
        here = at[a][..., None]
        value = (b * at_event[a]).sum(1) - (at[a] * (np.log(s0) + peak[:, None])).sum(1) - ridge / 2 * (b * b).sum(1)
        slope = at_event[a] - (here * ratio).sum(1) - ridge * b
        bend = (here * (total[..., p + 1 :] / s0[..., None] - ratio[..., upper[0]] * ratio[..., upper[1]])).sum(1)
        hessian = np.zeros((len(a), p, p))
        hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = bend
        return value, slope, hessian + ridge * np.eye(p)

    beta, loglik, start = np.zeros((batch, p)), np.full(batch, np.nan), np.full(batch, np.nan)
    curvature = np.full((batch, p, p), np.nan)
    active = np.flatnonzero(flag == "")
    if len(active):
        value, slope, hessian = evaluate(beta[active], active)
        loglik[active], start[active], curvature[active] = value, value, hessian
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        step = np.linalg.solve(hessian + 1e-10 * np.eye(p), slope[..., None])[..., 0]
        step *= np.minimum(1, 3 / np.maximum(np.abs(step).max(1), 1e-12))[:, None]
        new = beta[active] + step
        value, slope, hessian = evaluate(new, active)
        for _ in range(10):
            worse = np.flatnonzero(value < loglik[active] - 1e-10 * (1 + np.abs(loglik[active])))
            if not len(worse):
                break
            step[worse] /= 2
            new[worse] = beta[active[worse]] + step[worse]
            value[worse], slope[worse], hessian[worse] = evaluate(new[worse], active[worse])
        beta[active], loglik[active], curvature[active] = new, value, hessian
        left = np.einsum("bp,bp->b", slope, np.linalg.solve(hessian + 1e-10 * np.eye(p), slope[..., None])[..., 0])
        done = (np.abs(step).max(1) < 1e-5) & (left < 1e-9)
        away = np.abs(new).max(1) > MAX_BETA
        flag[active[away]] = "diverging"
        going = ~(done | away)
        active, slope, hessian = active[going], slope[going], hessian[going]
    flag[active] = "no convergence"
    se = np.full((batch, p), np.nan)
    known = np.isfinite(curvature).all((1, 2))
    inverse = np.linalg.pinv(curvature[known])
    se[known] = np.sqrt(np.diagonal(inverse, axis1=1, axis2=2).clip(0))
    scale = np.maximum(sd, 1e-12)
    failed = (flag != "")[:, None]
    return (np.where(failed, np.nan, beta / scale), np.where(failed, np.nan, se / scale), mean, loglik, start, flag)

"""Methods, survival: Kaplan-Meier curves with log-log intervals, numbers at risk, and the log-rank test."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.survival_risk import checked


def kaplan_meier(time, event, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return the Kaplan-Meier estimate at the distinct event times.

    Returns
    -------
    pandas.DataFrame
        ``time``, ``survival``, ``low``, ``high`` (log-log interval with Greenwood's variance; NaN where survival is 1
        or 0, where it is undefined), ``at_risk`` just before, ``events``. Begins with time 0, survival 1.
    """
    from scipy.stats import norm

    time, event = checked(time, event)
    moments, deaths = np.unique(time[event], return_counts=True)
    at_risk = len(time) - np.searchsorted(np.sort(time), moments, "left")
    survival = np.cumprod(1 - deaths / at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        theta = norm.ppf(1 - alpha / 2) * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-theta), survival ** np.exp(theta)
    inside = (survival > 0) & (survival < 1)
    table = pd.DataFrame({
        "time": moments, "survival": survival, "low": np.where(inside, low, np.nan),
        "high": np.where(inside, high, np.nan), "at_risk": at_risk, "events": deaths,
    })  # fmt: skip
    if len(moments) and moments[0] == 0:
        return table
    first = pd.DataFrame({"time": [0.0], "survival": [1.0], "low": [np.nan], "high": [np.nan],
                          "at_risk": [len(time)], "events": [0]})  # fmt: skip
    return pd.concat([first, table], ignore_index=True)


def at_risk(time, moments) -> np.ndarray:
    """Return how many patients are still followed just before each moment, int (k,)."""
    return len(time) - np.searchsorted(np.sort(np.asarray(time, float)), np.asarray(moments, float), "left")


def log_rank(time, event, group) -> dict:
    """Return the log-rank test of k groups: ``chi2``, ``p``, ``df``, and ``observed`` and ``expected`` events by group.

    Notes
    -----
    Groups cut from a risk score that saw the same outcomes give a p-value that means nothing; compare with permuted
    outcomes instead.
    """
    from scipy.stats import chi2

    time, event = checked(time, event)
    names, code = np.unique(np.asarray(group), return_inverse=True)
    if len(names) < 2:
        raise CourseError(f"{len(names)} group", "at least two groups with patients", "check the split")
    moments, deaths = np.unique(time[event], return_counts=True)
    n = at_risk(time, moments).astype(float)
    of = np.stack([at_risk(time[code == k], moments) for k in range(len(names))]).astype(float)
    observed = np.array([event[code == k].sum() for k in range(len(names))], float)
    share = of / n if len(moments) else of
    expected = (deaths * share).sum(1)
    factor = deaths * (n - deaths) / np.maximum(n - 1, 1)
    covariance = np.diag((factor * share).sum(1)) - np.einsum("t,it,jt->ij", factor, share, share)
    off = (observed - expected)[:-1]
    inside = covariance[:-1, :-1]
    statistic = float(off @ np.linalg.pinv(inside) @ off) if np.abs(inside).sum() > 1e-12 else float("nan")
    return {
        "chi2": statistic, "df": len(names) - 1, "p": float(chi2.sf(statistic, len(names) - 1)),
        "observed": dict(zip(names.tolist(), observed)), "expected": dict(zip(names.tolist(), expected)),
    }  # fmt: skip

"""Methods, survival: models beside each other on the same folds, risk groups, and what permuted outcomes give.

Whatever is read off cross-validated risks (a c-index, a log-rank test) is compared with the same number from outcomes
dealt anew to patients: the textbook p-value of a split that saw the outcomes is wrong even without a leak.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError
from helpers.survival_curves import log_rank
from helpers.survival_cv import CrossValidated, cross_validate, paired_interval, permutation_p
from helpers.survival_risk import checked


def groups(found: CrossValidated, *, repeats: int | None = None) -> np.ndarray:
    """Return who is at high risk, bool (n,): by the majority over repeats, each cut at its folds' *training* median.

    Parameters
    ----------
    repeats
        Only the first so many; None: all. A draw goes by the mean risk.
    """
    votes, risk = found.high[:repeats].mean(0), found.risk[:repeats].mean(0)
    return (votes > 0.5) | ((votes == 0.5) & (risk > 0))


def separation(time, event, high) -> float:
    """Return the log-rank chi-square of two groups, 0 where one is empty or nothing can be compared."""
    high = np.asarray(high, bool)
    if high.all() or not high.any():
        return 0.0
    found = log_rank(time, event, high)["chi2"]
    return found if np.isfinite(found) else 0.0


def permuted(x, time, event, *, times: int = 40, repeats: int = 5, seed: int = 0, extra=None, **options):
    """Return ``c`` and ``chi2`` of each run with outcomes dealt anew, a data frame of ``times`` rows.

    Time, event and ``extra`` move together, so that only the genes lose their meaning. Other options: see
    :func:`helpers.survival_cv.cross_validate`.
    """
    x, (time, event) = np.asarray(x, float), checked(time, event)
    rng, rows = settings.rng(seed, "survival permutations"), []
    for number in range(times):
        new = rng.permutation(len(time))
        moved = None if extra is None else np.asarray(extra, float)[new]
        made = cross_validate(x, time[new], event[new], extra=moved, repeats=repeats, seed=seed + number + 1, **options)
        rows.append({"c": made.mean, "chi2": separation(time[new], event[new], groups(made))})
    return pd.DataFrame(rows)


def split(found: CrossValidated, time, event, null, *, repeats: int = 5) -> dict:
    """Return the risk groups and how far apart they are.

    Parameters
    ----------
    null
        What :func:`permuted` returned, made with as many ``repeats``.

    Returns
    -------
    dict
        ``high`` bool (n,) over all repeats, ``chi2``, ``p`` (textbook, too small), ``p_permuted`` (of the groups of the
        first ``repeats``, against the null), ``hazard_ratio`` with ``low`` and ``high_limit`` (95 %).
    """
    from scipy.stats import chi2

    from helpers.survival import univariate

    high = groups(found)
    value, few = separation(time, event, high), separation(time, event, groups(found, repeats=repeats))
    out = {"high": high, "chi2": value, "p": float(chi2.sf(value, 1)), "p_permuted": permutation_p(few, null["chi2"])}
    fit = univariate(high[:, None].astype(float), time, event).iloc[0]
    ratio, limits = np.exp(fit["beta"]), np.exp(fit["beta"] + 1.96 * fit["se"] * np.array([-1, 1]))
    return {**out, "hazard_ratio": float(ratio), "low": float(limits[0]), "high_limit": float(limits[1])}


def table(models: dict, *, reference: str | None = None) -> pd.DataFrame:
    """Return c-indices of several models with corrected intervals, and their paired differences to one of them.

    Parameters
    ----------
    models
        Name -> :class:`~helpers.survival_cv.CrossValidated`, all of the same folds (same seed, repeats, patients).
    reference
        Name of the model the others are compared with; None: no differences.

    Returns
    -------
    pandas.DataFrame
        Index model; ``c``, ``low``, ``high``, ``difference``, ``difference_low``, ``difference_high``.
    """
    rows = {}
    for name, found in models.items():
        low, high = found.interval()
        rows[name] = {"c": found.mean, "low": low, "high": high}
        if reference is not None:
            names = ("difference", "difference_low", "difference_high")
            rows[name] |= dict(zip(names, paired_interval(found, models[reference])))
    return pd.DataFrame(rows).T.rename_axis("model")


def study(sources: dict, time, event, *, age=None, rivals=None, blind: int = 5, times: int = 40, seed: int = 0,
          repeats: int = 100, label_leak: bool = False):  # fmt: skip
    """Cross-validate every source of expression on the same folds, beside its baselines.

    Parameters
    ----------
    sources, rivals
        Name -> data frame (patients, genes). Sources also get permuted outcomes and a model with age. A rival that is
        None is left out.
    age
        Float (n, 1), or None where it is unknown.
    blind
        Genes of the first source drawn without looking: a baseline.

    Returns
    -------
    models, nulls
        Name -> ``CrossValidated`` ("bulk, five genes", "age", "age and bulk", ...), and source -> :func:`permuted`.
    """
    options = {"repeats": repeats, "seed": seed, "label_leak": label_leak}
    entries = {**{f"{name}, five genes": x for name, x in sources.items()}, **(rivals or {})}
    models = {name: cross_validate(x, time, event, **options) for name, x in entries.items() if x is not None}
    deal = {"times": times, "seed": seed, "label_leak": label_leak}
    nulls = {name: permuted(x, time, event, **deal) for name, x in sources.items()}
    if age is not None:
        models["age"] = cross_validate(np.empty((len(age), 0)), time, event, extra=age, **options)
        for name, x in sources.items():
            models[f"age and {name}"] = cross_validate(x, time, event, extra=age, **options)
    name, x = next(iter(sources.items()))
    some = settings.rng(seed, "blind").choice(x.shape[1], min(blind, x.shape[1]), replace=False)
    models[f"{name}, {len(some)} blind genes"] = cross_validate(x.to_numpy()[:, some], time, event, **options)
    return models, nulls


def by_group(sources: dict, time, event, group, *, least_events: int = 12, **options) -> pd.DataFrame:
    """Cross-validate within each group of patients that has enough events.

    Parameters
    ----------
    sources
        Name -> (patients, genes).
    group
        Text (n,), e.g. subtypes.
    least_events
        Fewer events in a group say nothing: four a fold is little enough.

    Returns
    -------
    pandas.DataFrame
        Index (group, source); ``patients``, ``deaths``, ``c``, ``low``, ``high``, ``p_textbook`` (log-rank test of the
        out-of-fold groups: too small by its nature, see the head of this file), ``note`` (why there is no number).
    """
    from scipy.stats import chi2

    (time, event), group = checked(time, event), np.asarray(group, str)
    rows = []
    for one in sorted(set(group.tolist()), key=lambda name: -(group == name).sum()):
        mine = group == one
        deaths = int(event[mine].sum())
        for name, x in sources.items():
            row = {"group": one, "source": name, "patients": int(mine.sum()), "deaths": deaths}
            if deaths < least_events:
                rows.append({**row, "note": "too few deaths"})
                continue
            found = cross_validate(np.asarray(x, float)[mine], time[mine], event[mine], **options)
            low, high = found.interval()
            p = float(chi2.sf(separation(time[mine], event[mine], groups(found)), 1))
            rows.append({**row, "c": found.mean, "low": low, "high": high, "p_textbook": p, "note": ""})
    columns = ["group", "source", "patients", "deaths", "c", "low", "high", "p_textbook", "note"]
    return pd.DataFrame(rows, columns=columns).set_index(["group", "source"])


def proportional(x, time, event, *, names) -> pd.DataFrame:
    """Test proportional hazards: does a covariate's effect drift with time (scaled Schoenfeld residuals, ranks)?

    Parameters
    ----------
    x
        Float (n, covariates), a few of them: they are fitted together by lifelines.

    Returns
    -------
    pandas.DataFrame
        One row a covariate: ``beta``, ``chi2``, ``p``, ``early``, ``late`` (mean scaled residual plus beta, i.e. the
        log hazard ratio, in the first and in the last half of the events).

    References
    ----------
    Grambsch and Therneau 1994, https://doi.org/10.1093/biomet/81.3.515
    """
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError
    from lifelines.statistics import proportional_hazard_test

    x, (time, event) = np.asarray(x, float), checked(time, event)
    if x.ndim != 2 or x.shape[1] != len(names) or event.sum() < 2 * len(names):
        raise CourseError(f"covariates {x.shape}, {event.sum()} events", "(patients, names), two events a covariate",
                          "take fewer covariates")  # fmt: skip
    columns = [f"x{i}" for i in range(len(names))]
    data = pd.DataFrame(x, columns=columns).assign(t=time, e=event)
    try:
        fit = CoxPHFitter(penalizer=1e-4).fit(data, "t", "e")
    except ConvergenceError as problem:
        seen, expected = "a Cox model that does not converge", "covariates that differ, and vary"
        raise CourseError(seen, expected, "take fewer covariates") from problem
    test = proportional_hazard_test(fit, data, time_transform="rank").summary
    residual = fit.compute_residuals(data, "scaled_schoenfeld").loc[lambda r: r.index.isin(np.flatnonzero(event))]
    residual = residual.iloc[np.argsort(time[residual.index], kind="stable")]
    half = len(residual) // 2
    out = pd.DataFrame({"beta": fit.params_[columns].to_numpy(), "chi2": test.loc[columns, "test_statistic"].to_numpy(),
                        "p": test.loc[columns, "p"].to_numpy()}, index=list(names))  # fmt: skip
    out["early"] = out["beta"] + residual[columns].iloc[:half].mean().to_numpy()
    out["late"] = out["beta"] + residual[columns].iloc[half:].mean().to_numpy()
    return out.rename_axis("covariate")

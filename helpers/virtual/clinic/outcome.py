"""What becomes of the virtual patients: survival by proportional hazards, and response to treatment.

T = scale (E exp(-lp))^(1/k), E ~ Exp(1), k = 1.2. Entry is staggered: each patient is followed for a time of his own.
The scale is solved on the *expected* share of deaths, never on the deaths drawn, so no cohort is picked.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual.clinic.people import MONTHS_ONLY

SHAPE = 1.2
EVENTS = 0.18  # expected share of deaths
FOLLOW_UP = (2.0, 10.0)  # years, uniform
DROPOUT_YEARS = 60.0  # mean of the exponential loss to follow-up
PROGRAMME, AGE = -1.0, 0.45  # log hazard ratios per standard deviation
RESPONSE = {"programme": 1.2, "nuclei": 0.9, "antiher2": 0.6}  # log odds
COMPLETE = 0.30  # expected share of complete responses
PROGNOSTIC = 0.5  # a gene that follows the programme this closely (|r|) is called prognostic


def standardised(values) -> np.ndarray:
    """Return values with mean 0 and sd 1, outliers drawn in to 2.5 sd."""
    values = np.asarray(values, float)
    return np.clip((values - values.mean()) / values.std(), -2.5, 2.5)


def expected_events(scale: float, lp, follow_up) -> float:
    """Return the expected share of deaths."""
    return float(np.mean(-np.expm1(-((follow_up / scale) ** SHAPE) * np.exp(lp))))


def _solve(function, low: float, high: float) -> float:
    """Bisect a falling function to 0."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def concordance(risk, time, event) -> float:
    """Return Harrell's c, high risk = early death; pairs as R's ``survival`` counts them."""
    time, event, risk = np.asarray(time), np.asarray(event, bool), np.asarray(risk)
    first = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    ahead = (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)
    return float(ahead[first].mean()) if first.any() else float("nan")


def auc(score, label) -> float:
    """Return the area under the ROC curve."""
    score, label = np.asarray(score, float), np.asarray(label, bool)
    ahead = np.sign(score[label][:, None] - score[~label]) / 2 + 0.5
    return float(ahead.mean())


def decide(place, table: pd.DataFrame, seed: int, *, null: bool):
    """Return (patients, genes, facts) from the tissue that was grown.

    Parameters
    ----------
    place
        ``truth/`` with ``tissue.parquet`` and ``bulk.parquet``.
    table
        From ``people.draw``.
    null
        Deal the outcomes out to other patients.
    """
    from helpers.virtual import expression
    from helpers.virtual.clinic import correlation

    grown = pd.read_parquet(place / "tissue.parquet").set_index("patient").loc[table["patient"]]
    n = len(table)
    out = table.rename(columns={"immune": "wanted_immune", "nuclei": "wanted_nuclei", "tumour": "wanted_tumour"}).copy()
    types = [name for name in grown if name.startswith("n_")]
    out["programme"] = standardised(np.log(grown[["n_t_cell", "n_b_cell"]].sum(1) / grown[types].sum(1)))
    out["nuclei"] = standardised(grown["nuclei"])
    lp_programme, lp_age = PROGRAMME * out["programme"].to_numpy(), AGE * standardised(out["age"])
    arm = (out["arm"] == "chemo+antiHER2").to_numpy()
    odds = RESPONSE["programme"] * out["programme"] + RESPONSE["nuclei"] * out["nuclei"] + RESPONSE["antiher2"] * arm
    odds = odds.to_numpy()

    stream = settings.rng(seed, "clinic", "survival")
    follow_up = np.minimum(stream.uniform(*FOLLOW_UP, n), stream.exponential(DROPOUT_YEARS, n))
    unit, coin = stream.exponential(1, n), settings.rng(seed, "clinic", "response").random(n)
    lp = lp_programme + lp_age
    scale = _solve(lambda s: expected_events(s, lp, follow_up) - EVENTS, 0.1, 1e4)
    death = scale * (unit * np.exp(-lp)) ** (1 / SHAPE)
    shift = _solve(lambda s: COMPLETE - float(np.mean(1 / (1 + np.exp(-(odds + s))))), -20, 20)
    p = 1 / (1 + np.exp(-(odds + shift)))
    complete = coin < p
    event, time = death <= follow_up, np.minimum(death, follow_up)
    if null:  # whole outcomes go to other patients; what remains of the risks is their mean
        to, other = (settings.rng(seed, "clinic", name).permutation(n) for name in ("null", "null response"))
        event, time, follow_up, complete = event[to], time[to], follow_up[to], complete[other]
        lp_programme, lp_age, p = np.zeros(n), np.zeros(n), np.full(n, complete.mean())
    days = np.maximum(np.ceil(time * 365.25), 1).astype(int)
    monthly = out["site"].isin(MONTHS_ONLY).to_numpy()
    days = np.where(monthly, np.maximum(np.rint(days / 30.4375), 1) * 30.4375, days).round().astype(int)
    out["lp"], out["lp_programme"], out["lp_age"] = lp_programme + lp_age, lp_programme, lp_age
    out["p_response"], out["response"] = p, np.where(complete, "pCR", "RD")
    out["time_years"], out["event"], out["follow_up_years"], out["days"] = days / 365.25, event, follow_up, days

    bulk = pd.read_parquet(place / "bulk.parquet").set_index("patient").loc[table["patient"]]
    log = np.log(np.maximum(bulk.to_numpy(float), 1e-12))
    panel = expression.panel().table.set_index("symbol").loc[list(bulk)]
    genes = pd.DataFrame({
        "gene": list(bulk), "group": panel["group"].to_numpy(), "r_programme": correlation(log, out["programme"]),
        "r_response": correlation(log, odds),
    })  # fmt: skip
    genes["prognostic"] = (genes["r_programme"].abs() >= PROGNOSTIC) & (not null)
    facts = {
        "c_oracle": concordance(out["lp"], days, event), "c_programme": concordance(-out["programme"], days, event),
        "c_age": concordance(out["age"], days, event), "auc_oracle": auc(odds, complete), "n_events": int(event.sum()),
        "n_complete": int(complete.sum()), "scale_years": float(scale),
    }  # fmt: skip
    return out, genes, facts

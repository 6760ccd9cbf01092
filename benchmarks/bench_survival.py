"""Cox models for many genes and folds at once, against lifelines in a loop."""

from __future__ import annotations

import time

import numpy as np

from helpers import response, settings, survival, survival_index, survival_multi


def _cohort(n=956, genes=300):
    rng = settings.rng(0, "bench survival")
    x = rng.normal(size=(n, genes))
    t = np.ceil(rng.exponential(60 * np.exp(-0.3 * x[:, 0])) * 10) / 10
    limit = np.ceil(rng.uniform(5, 20, n) * 10) / 10
    return x, np.minimum(t, limit), t <= limit


def _seconds(function, times=3):
    found = []
    for _ in range(times):
        start = time.perf_counter()
        value = function()
        found.append(time.perf_counter() - start)
    return min(found), value


def run() -> list[dict]:
    """Time both on the same cohort; lifelines is timed on part of the fits and scaled, as it takes minutes."""
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.utils import concordance_index

    x, t, e = _cohort()
    rows = []
    ours, mine = _seconds(lambda: survival.univariate(x, t, e))
    some = range(0, 300, 15)

    def loop(columns):
        out = []
        for column in columns:
            table = pd.DataFrame({"t": t, "e": e, "x": x[:, column]})
            out.append(CoxPHFitter().fit(table, "t", "e").params_["x"])
        return np.array(out)

    other, theirs = _seconds(lambda: loop(some), times=1)
    assert np.abs(mine["beta"].to_numpy()[list(some)] - theirs).max() < 1e-4
    other *= 300 / len(some)
    note = f"{int(e.sum())} events; lifelines timed on {len(some)} genes"
    rows.append({"name": "survival: 300 univariate Cox fits, 956 patients", "ours": ours, "other": other,
                 "ratio": other / ours, "unit": "s", "note": note})  # fmt: skip

    folds = settings.rng(0, "bench folds").integers(0, 3, (100, len(x)))
    masks = np.concatenate([folds != k for k in range(3)])
    ours, fits = _seconds(lambda: survival_multi.multivariate(x[:, :5], t, e, mask=masks))

    def loop_folds(chosen):
        out = []
        for mask in chosen:
            table = pd.DataFrame(x[mask][:, :5]).assign(t=t[mask], e=e[mask])
            out.append(CoxPHFitter().fit(table, "t", "e").params_.to_numpy())
        return np.array(out)

    other, theirs = _seconds(lambda: loop_folds(masks[::15]), times=1)
    assert np.abs(fits.beta[::15] - theirs).max() < 1e-4
    other *= 15
    rows.append({"name": "survival: 300 cross-validated fits of 5 genes", "ours": ours, "other": other,
                 "ratio": other / ours, "unit": "s", "note": "lifelines timed on 20 fits"})  # fmt: skip

    rng = settings.rng(0, "bench index")
    for n in (20_000, 80_000):
        t, e, risk = rng.exponential(size=n), rng.random(n) < 0.3, rng.normal(size=n)
        ours, mine = _seconds(lambda: survival_index.concordance(risk, t, e))
        other, theirs = _seconds(lambda: concordance_index(t, -risk, e), times=1)
        assert abs(mine - theirs) < 1e-12
        rows.append({"name": f"survival: concordance of {n:,} patients", "ours": ours, "other": other,
                     "ratio": other / ours, "unit": "s", "note": "O(n log n) in both"})  # fmt: skip
    return [*rows, _support_vectors()]


def _support_vectors() -> dict:
    """Time one nested run of the drug response against a grid search over a pipeline, on the same outer folds."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rng = settings.rng(0, "bench response")
    complete = rng.random(133) < 0.26
    x = rng.normal(size=(133, 26)) + complete[:, None] * 0.5
    ours, mine = _seconds(lambda: response.nested(x, complete), times=2)

    def grid():
        of, areas = response.deal(complete, np.arange(133), folds=5, seed=0, names=("outer", 0)), []
        machine = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
        choices = {"svc__C": response.C, "svc__gamma": [width / 26 for width in response.WIDTH]}
        for k in range(5):
            search = GridSearchCV(machine, choices, cv=StratifiedKFold(5), scoring="roc_auc")
            search.fit(x[of != k], complete[of != k])
            areas.append(response.auc(search.decision_function(x[of == k]), complete[of == k]))
        return np.mean(areas)

    other, theirs = _seconds(grid, times=1)
    assert abs(mine.mean - theirs) < 0.05  # inner folds differ
    return {"name": "response: nested 5 x 5 SVM, 12 candidates, 133 patients", "ours": ours, "other": other,
            "ratio": other / ours, "unit": "s", "note": "scikit-learn's grid search"}  # fmt: skip

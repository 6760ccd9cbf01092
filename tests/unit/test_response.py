"""Drug response: folds by patient, choices inside, areas and calibration against other implementations."""

import numpy as np
import pytest

from helpers import response, settings
from helpers.messages import CourseError


def cohort(n=80, genes=20, signal=1.2, seed=0):
    """Return (x, complete) with rows sorted by response, as published tables are."""
    rng = settings.rng(seed, "test response")
    complete = np.arange(n) >= 0.7 * n
    x = rng.normal(size=(n, genes))
    x[complete, :3] += signal
    return x, complete


def test_a_signal_is_found_and_dealt_responses_give_chance():
    x, complete = cohort()
    found = response.nested(x, complete, repeats=2)
    low, high = found.interval()
    assert found.mean > 0.75 and low > 0.5 and low < found.mean < high
    assert found.auc.shape == (2, 5) and found.rank.shape == (2, 80) and len(found.picks) == 10
    plain = response.nested(x, complete, repeats=2, tune=False).mean
    null = response.permuted(x, complete, times=30)
    assert abs(null.mean() - 0.5) < 0.05 and response.permutation_p(plain, null) == pytest.approx(1 / 31)
    assert null.std() > 0.02  # they are different deals


def test_one_fold_equals_a_plain_pipeline():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, complete = cohort()
    train, test = np.flatnonzero(np.arange(80) % 4 != 0), np.flatnonzero(np.arange(80) % 4 == 0)
    mine = response._decide(x, complete, train, test, [(10.0, 0.26), (0.1, 2.6)])
    for (cost, width), one in zip([(10.0, 0.26), (0.1, 2.6)], mine):
        machine = SVC(C=cost, gamma=width / x.shape[1], class_weight="balanced")
        other = make_pipeline(StandardScaler(), machine).fit(x[train], complete[train]).decision_function(x[test])
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_areas_equal_other_implementations():
    from sklearn.metrics import roc_auc_score

    rng = settings.rng(1, "areas")
    score, complete = rng.normal(size=60).round(1), rng.random(60) < 0.3
    assert response.auc(score, complete) == pytest.approx(roc_auc_score(complete, score))
    area, low, high = response.delong(score, complete)
    assert area == pytest.approx(response.auc(score, complete)) and low < area < high
    x, y = response.roc(score, complete)
    assert np.trapezoid(y, x) == pytest.approx(area) and (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.isnan(response.auc(score, np.ones(60, bool)))


def test_delong_has_the_published_width():
    """Perfect separation has no width; and the variance is that of the two sets of placement values."""
    assert response.delong([1, 2, 3, 4], [False, False, True, True]) == (1.0, 1.0, 1.0)
    # placements of the positives (3, 1.5): 1 and 1/3 of three negatives (1, 2, 2.5 -> 3 above all; 1.5 above one)
    area, low, high = response.delong([3, 1.5, 1, 2, 2.5], [True, True, False, False, False])
    variance = np.var([1, 1 / 3], ddof=1) / 2 + np.var([1, 0.5, 0.5], ddof=1) / 3
    assert area == pytest.approx(2 / 3) and area - low == pytest.approx(min(area, 1.959964 * np.sqrt(variance)))
    assert high == 1


def test_a_patients_samples_stay_together_and_every_fold_has_both_kinds():
    rng = settings.rng(2, "deal")
    patient = rng.integers(0, 40, 120)
    complete = np.isin(patient, np.arange(10))
    for seed in range(5):
        of = response.deal(complete, patient, folds=5, seed=seed)
        assert all(len(set(of[patient == one])) == 1 for one in set(patient))
        assert all(0 < complete[of == k].mean() < 1 for k in range(5))
    with pytest.raises(CourseError, match="4 patients with"):
        response.deal(np.isin(patient, np.arange(4)), patient, folds=5, seed=0)


def test_copies_of_a_patient_do_not_leak():
    """Every patient twice, nothing to find: a split by rows would recognise the copies."""
    rng = settings.rng(3, "copies")
    base, complete = rng.normal(size=(40, 30)), np.arange(40) < 16
    x, y, who = np.repeat(base, 2, 0), np.repeat(complete, 2), np.repeat(np.arange(40), 2)
    apart = response.nested(x, y, patient=who, repeats=4, tune=False).mean
    by_rows = response.nested(x, y, repeats=4, tune=False).mean
    assert apart < 0.65 and by_rows > apart + 0.15


def test_scales():
    counts = np.array([[10, 30, 60], [1, 3, 6]])
    np.testing.assert_allclose(*response.prepare(counts, "counts"))  # depth falls out, sample by sample
    np.testing.assert_allclose(response.prepare(counts, "positive"), np.log1p(counts))
    for wrong, kind in ((-counts, "counts"), (counts * np.nan, "log"), (counts, "cpm")):
        with pytest.raises(CourseError):
            response.prepare(wrong, kind)
    x, complete = cohort()
    moved = response.nested(x * 7 + 3, complete, tune=False)  # standardised inside the folds
    np.testing.assert_allclose(moved.auc, response.nested(x, complete, tune=False).auc)
    flat = np.column_stack([x, np.full(80, 4.0)])
    assert np.isfinite(response.nested(flat, complete, tune=False).mean)
    with pytest.raises(CourseError, match="align"):
        response.nested(x[:-1], complete)


def test_probabilities_are_calibrated():
    x, complete = cohort(n=200, signal=0.8)
    found = response.nested(x, complete)
    table = response.calibration(found.probability[0], complete, bins=4)
    assert table["n"].sum() == 200 and (table["low"] <= table["came"]).all() and (table["came"] <= table["high"]).all()
    assert abs(found.probability.mean() - complete.mean()) < 0.05 and table["said"].is_monotonic_increasing
    assert table["came"].iloc[-1] > table["came"].iloc[0] + 0.2
    assert np.isnan(response.nested(x, complete, tune=False).probability).all()

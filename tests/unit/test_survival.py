"""Cox models, concordance and curves against lifelines, against published output of R's survival, and on bad input."""

import numpy as np
import pytest

from helpers import settings, survival, survival_compare, survival_curves, survival_cv, survival_index, survival_multi
from helpers.messages import CourseError


@pytest.fixture(scope="module")
def lung():
    """The lung data of R's survival package (Loprinzi 1994), as shipped with lifelines; status 1 = death."""
    from lifelines.datasets import load_lung

    table = load_lung()
    event = table["status"] == table["status"].max()
    return table.assign(event=event.astype(int))


def cohort(n=300, genes=6, seed=0, step=0.1):
    """Return (x, time, event) in which gene 0 shortens life; ``step`` rounds times, so that they tie."""
    rng = settings.rng(seed, "test survival")
    x = rng.normal(size=(n, genes))
    time = np.ceil(rng.exponential(10 * np.exp(-0.8 * x[:, 0])) / step) * step
    limit = rng.uniform(2, 15, n)
    return x, np.minimum(time, np.ceil(limit)), time <= np.ceil(limit)


# ---------------------------------------------------------------- R's survival
def test_the_lung_data_give_what_r_prints(lung):
    """coxph(Surv(time, status) ~ sex): coef -0.5310, se 0.1672; concordance 0.579 (R survival, vignette and manual)."""
    found = survival.univariate(lung[["sex"]].to_numpy(), lung["time"], lung["event"], names=["sex"]).loc["sex"]
    assert found["beta"] == pytest.approx(-0.5310, abs=5e-5) and found["se"] == pytest.approx(0.1672, abs=5e-5)
    assert found["p"] == pytest.approx(0.00149, abs=5e-6)
    risk = found["beta"] * lung["sex"]
    assert survival_index.concordance(risk, lung["time"], lung["event"]) == pytest.approx(0.579, abs=5e-4)
    test = survival_curves.log_rank(lung["time"], lung["event"], lung["sex"])  # survdiff: 112 and 53 deaths, 10.3
    assert test["chi2"] == pytest.approx(10.3, abs=0.05) and list(test["observed"].values()) == [112, 53]
    assert list(test["expected"].values()) == pytest.approx([91.6, 73.4], abs=0.05)


def test_three_covariates_give_what_r_prints(lung):
    """coxph(Surv(time, status) ~ age + sex + ph.ecog), 227 patients: the summary in R's documentation."""
    whole = lung.dropna(subset=["ph.ecog"])
    fit = survival_multi.multivariate(whole[["age", "sex", "ph.ecog"]].to_numpy(), whole["time"], whole["event"])
    assert fit.beta[0] == pytest.approx([0.011067, -0.552612, 0.463728], abs=2e-6)
    assert fit.se[0] == pytest.approx([0.009267, 0.167739, 0.113577], abs=2e-6)


# ---------------------------------------------------------------- lifelines
@pytest.mark.parametrize("step", [0.01, 2.0])
def test_univariate_fits_equal_lifelines(step):
    import pandas as pd
    from lifelines import CoxPHFitter

    x, time, event = cohort(step=step)
    found = survival.univariate(x, time, event)
    for gene in range(x.shape[1]):
        table = pd.DataFrame({"x": x[:, gene], "t": time, "e": event})
        other = CoxPHFitter().fit(table, "t", "e")
        assert found["beta"][gene] == pytest.approx(other.params_["x"], abs=1e-4)
        assert found["se"][gene] == pytest.approx(other.standard_errors_["x"], abs=1e-4)
        assert found["loglik"][gene] == pytest.approx(other.log_likelihood_, abs=1e-6)
    assert (found["flag"] == "").all() and found["beta"][0] > 0.4


def test_breslow_differs_from_efron_only_with_ties():
    x, time, event = cohort(step=3.0)
    breslow, efron = (survival.univariate(x, time, event, ties=ties)["beta"][0] for ties in ("breslow", "efron"))
    assert 0 < breslow < efron
    time = time + settings.rng(0, "untie").uniform(0, 0.01, len(time))
    both = [survival.univariate(x, time, event, ties=ties)["beta"] for ties in ("efron", "breslow")]
    assert np.allclose(*both)


def test_masked_fits_equal_fits_of_the_patients_alone():
    x, time, event = cohort(step=1.0)
    mask = settings.rng(1, "mask").random((4, len(x))) < 0.6
    together = survival_multi.multivariate(x[:, :3], time, event, mask=mask)
    for beta, se, mine in zip(together.beta, together.se, mask):
        alone = survival_multi.multivariate(x[mine][:, :3], time[mine], event[mine])
        assert np.allclose(beta, alone.beta[0], atol=1e-8) and np.allclose(se, alone.se[0], atol=1e-8)


def test_kaplan_meier_and_log_rank_equal_lifelines():
    from lifelines import KaplanMeierFitter
    from lifelines.statistics import multivariate_logrank_test

    x, time, event = cohort(step=1.0)
    mine, other = survival_curves.kaplan_meier(time, event), KaplanMeierFitter().fit(time, event)
    assert np.allclose(mine["survival"], other.survival_function_at_times(mine["time"]))
    limits = other.confidence_interval_.loc[mine["time"][1:]].to_numpy()
    known = mine["low"][1:].notna()
    assert known.any() and np.allclose(mine[["low", "high"]][1:][known], limits[known])
    group = np.digitize(x[:, 0], [-0.5, 0.5])
    expected = multivariate_logrank_test(time, group, event)
    found = survival_curves.log_rank(time, event, group)
    assert found["chi2"] == pytest.approx(expected.test_statistic) and found["p"] == pytest.approx(expected.p_value)
    assert list(survival_curves.at_risk(time, [0, 5])) == [len(time), (time >= 5).sum()]


# ---------------------------------------------------------------- concordance
def test_concordance_sign_and_ties_by_hand():
    time, event = [1, 2, 2, 3], [1, 1, 0, 0]
    # comparable: 1st with each of three; 2nd (event) with 3rd (censored at the same time) and with the 4th
    assert survival_index.concordance([4, 3, 2, 1], time, event) == 1
    assert survival_index.concordance([1, 2, 3, 4], time, event) == 0
    assert survival_index.concordance([1, 1, 1, 1], time, event) == 0.5
    assert survival_index.concordance([4, 3, 3, 1], time, event) == pytest.approx(4.5 / 5)
    assert np.isnan(survival_index.concordance([1, 2], [5, 5], [1, 1]))  # two events at one time: no comparable pair
    assert np.isnan(survival_index.concordance([1, np.nan, 2, 3], time, event))


@pytest.mark.parametrize("step", [0.01, 2.0])
def test_both_ways_of_concordance_equal_lifelines(step):
    from lifelines.utils import concordance_index

    x, time, event = cohort(step=step)
    risk = np.round(x[:, 0], 1)
    expected = concordance_index(time, -risk, event)
    assert survival_index.concordance(risk, time, event) == pytest.approx(expected, abs=1e-12)
    assert survival_index._wavelet(risk, time, event) == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------- bad input (faults 41, 42, 45)
def test_genes_that_cannot_be_fitted_are_named_and_spoil_no_other():
    x, time, event = cohort()
    x = np.column_stack([x, np.full(len(x), 2.0), -time])  # the last: the earlier, the higher, perfect separation
    x[3, 1] = np.nan
    found = survival.univariate(x, time, event)
    assert list(found["flag"]) == ["", "not finite", "", "", "", "", "constant", "separated"]
    assert found.loc[found["flag"] != "", ["beta", "se", "p"]].isna().all().all()
    clean = survival.univariate(np.delete(x, [1, 6, 7], axis=1), time, event)
    assert np.allclose(found.loc[found["flag"] == "", "beta"], clean["beta"])
    q = survival.benjamini_hochberg(found["p"])
    assert np.isfinite(q).all() and q[1] == 1


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_events_are_said(number):
    x, time, _ = cohort()
    event = np.zeros(len(x), int)
    event[:number] = 1
    assert (survival.univariate(x, time, event)["flag"] == "few events").all()
    assert survival_multi.multivariate(x, time, event).flag[0] == "few events"
    assert not survival.score_test(x, time, event).any()
    with pytest.raises(CourseError, match="events"):
        survival_cv.fold_masks(event)


@pytest.mark.parametrize(
    ("time", "event"), [([1, np.nan], [0, 1]), ([-1, 2], [0, 1]), ([1, 2], [1, 2]), ([1, 2, 3], [0, 1])]
)
def test_times_and_events_that_make_no_sense_are_refused(time, event):
    with pytest.raises(CourseError):
        survival.univariate(np.ones((len(time), 1)), time, event)


def test_collinear_covariates_are_named_and_a_ridge_keeps_them_finite():
    x, time, event = cohort()
    twice = np.column_stack([x[:, 0], x[:, 0]])
    assert survival_multi.multivariate(twice, time, event).flag[0] == "collinear"
    fit = survival_multi.multivariate(twice, time, event, ridge=1.0)
    assert fit.flag[0] == "" and fit.beta[0, 0] == pytest.approx(fit.beta[0, 1])


# ---------------------------------------------------------------- ranks and cross-validation
def test_ranks_among_a_subset_equal_sorting_it():
    rng = settings.rng(0, "ranks")
    x = np.round(rng.normal(size=(60, 4)), 1)
    train = rng.random(60) < 0.7
    scores, common = survival_cv._Ranks(x).of(train)
    assert np.allclose(scores, survival.rank_normal(x[train])[0])
    assert np.allclose(common, survival.common_value(x[train]))
    inside, outside = survival.rank_normal(x[train], x[~train] + 100)
    assert (outside == inside.max(0)).all()  # beyond the training values: clipped, not extrapolated


def test_folds_spread_events_and_never_share_a_patient():
    _, _, event = cohort()
    folds = survival_cv.fold_masks(event, folds=3, repeats=5)
    counts = np.array([[event[part == k].sum() for k in range(3)] for part in folds])
    assert np.ptp(counts, axis=1).max() <= 1 and len({tuple(part) for part in folds}) == 5


def test_the_score_test_ranks_as_the_wald_test():
    x, time, event = cohort(genes=20)
    found = survival.univariate(x, time, event)
    assert np.corrcoef(survival.score_test(x, time, event), found["z"])[0, 1] > 0.98


def test_selection_inside_the_fold_finds_nothing_in_noise_and_the_leak_does():
    rng = settings.rng(4, "noise cohort")
    x, time, event = rng.normal(size=(150, 400)), rng.exponential(5, 150), rng.random(150) < 0.25
    clean = survival_cv.cross_validate(x, time, event, repeats=4)
    leaky = survival_cv.cross_validate(x, time, event, repeats=4, label_leak=True)
    low, high = clean.interval()
    assert low < 0.5 < high and leaky.mean > clean.mean + 0.1 and leaky.mean > 0.6
    assert leaky.chosen.max() == 12 and (clean.risk.shape, clean.high.dtype) == ((4, 150), bool)


def test_a_real_signal_is_found_and_extra_covariates_help():
    x, time, event = cohort(n=240, genes=30)
    found = survival_cv.cross_validate(x, time, event, repeats=3, seed=1)
    assert found.interval()[0] > 0.5 and found.chosen[0] == 9
    without = survival_cv.cross_validate(x[:, 1:], time, event, repeats=3, seed=1)
    helped = survival_cv.cross_validate(x[:, 1:], time, event, extra=x[:, 0], repeats=3, seed=1)
    difference, low, _ = survival_cv.paired_interval(helped, without)
    assert difference > 0.05 and low > 0
    null = survival_cv.permuted(x, time, event, times=5, repeats=2)
    assert survival_cv.permutation_p(found.mean, null) == pytest.approx(1 / 6) and abs(null.mean() - 0.5) < 0.08


def test_the_corrected_interval_is_wider_than_the_naive_one():
    scores = settings.rng(0, "scores").normal(0.6, 0.05, (100, 3))
    low, high = survival_cv.corrected_interval(scores)
    assert (high - low) / 2 == pytest.approx(1.96 * scores.std(ddof=1) * np.sqrt(1 / 300 + 1 / 2), rel=1e-3)


# ---------------------------------------------------------------- models beside each other
def test_a_study_compares_on_the_same_folds_and_the_split_has_an_honest_p():
    import pandas as pd

    x, time, event = cohort(n=240, genes=30)
    sources = {"bulk": pd.DataFrame(x), "predicted": pd.DataFrame(x[:, ::-1] + 1.0)}
    flat = {"one profile": pd.DataFrame(np.ones((240, 5))), "absent": survival.signature(sources["bulk"], ["no gene"])}
    age = x[:, :1] * 10 + 60
    models, nulls = survival_compare.study(sources, time, event, age=age, rivals=flat, repeats=3, times=9)
    table = survival_compare.table(models, reference="age")
    assert list(table.index) == ["bulk, five genes", "predicted, five genes", "one profile", "age",
                                 "age and bulk", "age and predicted", "bulk, 5 blind genes"]  # fmt: skip
    assert table.loc["one profile", "c"] == 0.5 and table.loc["age", "difference"] == 0
    assert table.loc["bulk, five genes", "c"] == pytest.approx(table.loc["predicted, five genes", "c"], abs=1e-9)
    assert models["bulk, five genes"].c.shape == models["age"].c.shape and set(nulls) == set(sources)
    null = nulls["bulk"]
    assert len(null) == 9 and null["c"].std() > 0 and (null["chi2"] >= 0).all()
    found = survival_compare.split(models["bulk, five genes"], time, event, null, repeats=3)
    assert found["p_permuted"] == 0.1 and found["p"] < 0.01  # 1 / (1 + 9): as small as nine deals allow
    assert found["low"] < found["hazard_ratio"] < found["high_limit"] and found["hazard_ratio"] > 1
    expected = survival_curves.log_rank(time, event, found["high"])
    assert found["chi2"] == pytest.approx(expected["chi2"])


def test_no_group_is_scored_on_too_few_deaths_and_empty_groups_are_not_apart():
    import pandas as pd

    x, time, event = cohort(n=240, genes=8)
    group = np.where(np.arange(240) < 200, "large", "small")
    event[200:] = False
    found = survival_compare.by_group({"bulk": pd.DataFrame(x)}, time, event, group, repeats=2)
    assert found.loc[("small", "bulk"), "note"] == "too few deaths" and np.isnan(found.loc[("small", "bulk"), "c"])
    assert found.loc[("large", "bulk"), "c"] > 0.55 and found.loc[("large", "bulk"), "patients"] == 200
    nobody = survival_compare.by_group({"bulk": pd.DataFrame(x)}, time, np.zeros(240, bool), group)
    assert nobody["c"].isna().all()
    assert survival_compare.separation(time, event, np.ones(240)) == 0


def test_a_drifting_hazard_ratio_is_noticed():
    rng = settings.rng(0, "drift")
    x = rng.normal(size=(600, 2))
    early = np.minimum(rng.exponential(np.exp(-1.2 * x[:, 0])), 0.5)
    time = np.where(early < 0.5, early, 0.5 + rng.exponential(np.exp(0.6 * x[:, 0])))  # helps, then harms
    found = survival_compare.proportional(x, time, np.ones(600, int), names=["drifts", "nothing"])
    assert found.loc["drifts", "p"] < 1e-4 and found.loc["drifts", "early"] > 0.5 > 0 > found.loc["drifts", "late"]
    assert found.loc["nothing", "p"] > 0.01
    with pytest.raises(CourseError):
        survival_compare.proportional(x, time, np.arange(600) < 3, names=["drifts", "nothing"])


def test_the_panel_never_sees_an_outcome():
    import pandas as pd

    rng = settings.rng(0, "panel")
    table = pd.DataFrame(rng.normal(size=(50, 40)), columns=[f"G{i}" for i in range(40)])
    table["G3"] = 0.0  # unexpressed
    found = survival.panel(table, 20, first=["G7", "G3", "absent"], seed=1)
    assert len(found) == len(set(found)) == 20 and found[0] == "G7" and "G3" not in found
    assert found != survival.panel(table, 20, first=["G7"], seed=2) and len(survival.panel(table, 100)) == 39
    with pytest.raises(CourseError):
        survival.panel(table[["G3"]], 5)
    score = survival.signature(table, ["G1", "G2", "absent"])["signature"]
    assert score.index.equals(table.index) and score.corr(table["G1"] + table["G2"]) > 0.9

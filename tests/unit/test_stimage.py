"""The negative binomial, heads trained together, their uncertainty and calibration, and the saved file."""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest
from scipy import sparse, stats

from helpers import settings, stimage, stimage_ensemble, stimage_library, stimage_nb
from helpers.messages import CourseError
from helpers.stimage_tune import fine_tune

ENCODER = {"name": "toy", "fingerprint": "0123456789abcdef"}


def planted(*, spots=90, sections="abcd", genes=30, features=16, size=8.0, seed=0, signal=0.5):
    """Spots whose log shares are linear in three features; depth follows the first; sizes are known."""
    rng = settings.rng(seed, "test_stimage")
    n = spots * len(sections)
    x = rng.normal(size=(n, features)).astype(np.float32)
    loadings = rng.normal(0, signal, (3, genes))
    loadings[:, : genes // 3] = 0  # the first third of the genes does not depend on the image
    depth = np.exp(8 + 0.4 * x[:, 0] + 0.2 * rng.normal(size=n))
    mu = np.exp(rng.normal(-6.5, 0.7, genes) + x[:, :3] @ loadings) * depth[:, None]
    y = rng.negative_binomial(size, size / (size + mu))
    library = np.maximum(np.round(depth), y.sum(1) + 1)
    names = [f"g{i}" for i in range(genes)]
    section = np.repeat(list(sections), spots)
    return {"x": x, "counts": y, "library": library, "sections": section, "genes": names, "mu": mu}


def of(data, which):
    """Return what ``fit`` takes, for some spots."""
    kept = {name: data[name][which] for name in ("x", "counts", "library", "sections")}
    return {**kept, "genes": data["genes"]}


@pytest.fixture(scope="module")
def toy():
    return planted()


@pytest.fixture(scope="module")
def fitted(toy):
    return stimage.fit(**of(toy, toy["sections"] != "d"), learning_rate=0.03)


@pytest.fixture(scope="module")
def predicted(toy, fitted):
    return fitted.predict(toy["x"][toy["sections"] == "d"])


def measured(data, which):
    return np.log1p(1e4 * data["counts"][which] / data["library"][which, None])


# ---------------------------------------------------------------- the negative binomial
def test_likelihood_equals_scipy_where_scipy_is_right():
    rng = settings.rng(0, "nb")
    y, logits = rng.integers(0, 3000, 4000), rng.uniform(-10, 10, 4000)
    r = np.exp(rng.uniform(np.log(1e-3), np.log(1e4), 4000))
    expected = stats.nbinom.logpmf(y, r, 1 / (1 + np.exp(logits)))
    found = stimage_nb.log_likelihood(y, logits, r)
    assert np.abs((found - expected) / (1 + np.abs(expected))).max() < 1e-9


def test_likelihood_equals_mpmath_where_scipy_is_not():
    import mpmath

    worst = 0.0
    with mpmath.workdps(50):
        for y in (0, 1, 37, 10**4, 10**6):
            for logits in (-50, -30, -10, 0, 10, 30, 50):
                for r in (1e-3, 0.1, 10, 1e5):
                    size, odds = mpmath.mpf(r), mpmath.exp(logits)
                    exact = mpmath.loggamma(y + size) - mpmath.loggamma(size) - mpmath.loggamma(y + 1)
                    exact -= size * mpmath.log1p(odds) + y * mpmath.log1p(1 / odds)
                    found = float(stimage_nb.log_likelihood(y, logits, r))
                    worst = max(worst, abs(found - float(exact)) / (1 + abs(float(exact))))
    assert worst < 1e-9


def test_moments_of_the_log_equal_sums_over_the_law():
    rng = settings.rng(0, "moments")
    mu, r = np.exp(rng.uniform(-6, 4, (5, 40))), np.exp(rng.uniform(-1, 5, 40))
    library = np.exp(rng.uniform(5, 10, 5))
    mean, variance = stimage_nb.log1p_moments(mu, r, library)
    k = np.arange(6000)
    p = stats.nbinom.pmf(k, r[:, None], (r / (r + mu))[..., None])
    value = np.log1p(1e4 * k / library[:, None])[:, None]
    assert np.abs((p * value).sum(-1) - mean).max() < 1e-6
    assert np.abs((p * value**2).sum(-1) - mean**2 - variance).max() < 1e-5
    each = stimage_nb.log1p_moments(mu, np.tile(r, (5, 1)), library)[0]
    assert np.allclose(each, mean, atol=1e-8)


def test_long_sums_and_the_integral_agree(monkeypatch):
    mu, r = np.array([[40.0, 3.0, 1e-4, 150.0]]), np.array([0.5, 20.0, 2.0, 900.0])
    monkeypatch.setattr(stimage_nb, "LONGEST", 10**6)
    summed = stimage_nb.log1p_moments(mu, r, [2000.0])
    monkeypatch.setattr(stimage_nb, "LONGEST", 0)
    integrated = stimage_nb.log1p_moments(mu, r, [2000.0])
    assert np.allclose(summed, integrated, atol=1e-5)
    assert np.isfinite(stimage_nb.log1p_moments([[1e6]], [0.1], [1e6])).all()


def test_pit_is_uniform_for_the_right_law_and_not_for_a_wrong_one():
    rng = settings.rng(0, "pit")
    mu, r = np.exp(rng.uniform(-3, 5, (300, 40))), np.full(40, 3.0)
    y = rng.negative_binomial(r, r / (r + mu))
    u = rng.random(y.shape)
    pit = stimage_nb.pit(y, mu, r, u)
    expected = stats.nbinom.cdf(y - 1, r, r / (r + mu)) + u * stats.nbinom.pmf(y, r, r / (r + mu))
    assert np.abs(pit - expected).max() < 1e-9
    assert stats.kstest(pit.ravel(), "uniform").statistic < 0.02
    assert stats.kstest(stimage_nb.pit(y, mu, np.full(40, 30.0), u).ravel(), "uniform").statistic > 0.1
    with mock.patch.object(stimage_nb, "MOST_ADDED", -1):
        assert np.abs(stimage_nb.pit(y, mu, r, u) - expected).max() < 1e-9  # by the beta function, none added up
    each = stimage_nb.pit(y, mu, np.tile(r, (300, 1)), u)
    assert np.abs(each - expected).max() < 1e-9
    low, high = stimage_nb.interval(mu, r, 0.8)
    assert ((y >= low) & (y <= high)).mean() > 0.82  # whole counts: more than promised


def test_sizes_by_moments():
    rng = settings.rng(0, "sizes")
    r = np.array([0.5, 3.0, 30.0, 5.0])
    mu = np.exp(rng.normal(2, 0.5, (20000, 4)))
    y = rng.negative_binomial(r, r / (r + mu))
    y[:, 3] = rng.poisson(mu[:, 3])
    found = stimage_nb.size_by_moments(y, mu)
    assert np.allclose(found[:3], r[:3], rtol=0.1) and found[3] > 200
    pulled = stimage_nb.size_by_moments(y, mu, prior=1e6)
    assert np.ptp(pulled) < 1e-3


def test_a_gauss_rule_of_a_sample_keeps_its_moments():
    sample = settings.rng(0, "gauss").gamma(2, size=300)
    x, w = stimage_nb.nodes(sample, 3)
    assert np.allclose([(w * x**k).sum() for k in range(6)], [(sample**k).mean() for k in range(6)])
    assert len(stimage_nb.nodes(np.zeros(9), 3)[0]) == 1


# ---------------------------------------------------------------- layers and loss
def test_the_loss_is_that_of_the_law_and_finite_at_the_edges():
    from helpers.stimage_layers import NegativeBinomial

    rng = settings.rng(0, "loss")
    y, r = rng.integers(0, 50, (6, 1, 5)), np.array([0.5, 2, 10, 100, 7])
    log_mu = rng.normal(1, 1, (6, 3, 5))
    full = stimage_nb.log_likelihood(y, log_mu - np.log(r), r)
    ours = np.asarray(NegativeBinomial(np.log(r)).call(y.astype(np.float32), log_mu.astype(np.float32)))
    constant = stimage_nb.log_likelihood(y, 0.0, r) + (r + y) * np.log(2)
    assert ours.shape == (6, 3) and np.allclose(ours, (constant - full).mean(-1), rtol=1e-5)
    both = np.concatenate([log_mu, np.broadcast_to(np.log(r), log_mu.shape)], -1).astype(np.float32)
    free = np.asarray(NegativeBinomial().call(y.astype(np.float32), both))
    assert np.allclose(free, -full.mean(-1), rtol=1e-4)
    for count in (0, 1, 1e6):
        for logits in (-50, 0, 50):
            target, out = np.full((1, 1, 1), count, np.float32), np.full((1, 1, 1), logits, np.float32)
            assert np.isfinite(NegativeBinomial([0.0]).call(target, out)).all()
            assert np.isfinite(NegativeBinomial().call(target, np.repeat(out, 2, -1))).all()


def test_members_do_not_see_each_other(toy):
    """With weights of 0 a member stays at its start but for L2, and its neighbours learn as if it were not there."""
    data = stimage_ensemble.check(**of(toy, toy["sections"] < "c"))
    options = {
        "members": 2, "rank": 4, "activation": "linear", "steps": 20, "l2": 0.0, "learning_rate": 0.01, "batch": 1024,
        "components": 8, "dispersion": "gene", "size_prior": 0.0,
    }  # fmt: skip
    weight = np.ones((len(data.x), 2), np.float32)
    r, found = np.full(30, 8.0), []
    for second in (0.0, 1.0):
        weight[:, 1] = second
        model = stimage_ensemble.train(data, weight=weight, r=r, options=options, rng=settings.rng(0, "twice"))
        found.append(model.get_layer("head").get_weights()[0])
    assert np.allclose(found[0][0], found[1][0], atol=1e-4) and not np.allclose(found[0][1], found[1][1], atol=1e-2)


def test_training_is_what_keras_fit_does(toy):
    import keras

    from helpers.stimage_layers import NegativeBinomial, Steps, build, descend

    data = stimage_ensemble.check(**of(toy, toy["sections"] < "c"))
    n, found = len(data.x), []
    weight = settings.rng(0, "keras").integers(0, 3, (n, 2)).astype(np.float32)
    for by_hand in (True, False):
        model = build(
            features=data.x.shape[1], genes=30, members=2, rank=4, activation="relu", components=0, sections=2,
            dispersion="gene", l2=(0.01, 0.01), seed=3,
        )  # fmt: skip
        columns = np.log(data.library)[:, None].astype(np.float32), data.section[:, None].astype(np.float32) + 1
        batches = Steps(data.x, *columns, data.counts, weight, batch=n // 2, steps=15, rng=settings.rng(0, "orders"))
        loss = NegativeBinomial(np.zeros(30))
        if by_hand:
            assert np.isfinite(descend(model, loss, batches, learning_rate=0.01))
        else:
            model.compile(keras.optimizers.Adam(0.01), loss=loss)
            for x, y, w in batches:
                model.train_on_batch(x, y, sample_weight=w)
        found.append(model.get_weights())
    for ours, theirs in zip(*found):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_sizes_and_members_share_one_decomposition_of_the_features(toy, monkeypatch):
    seen, real = [], stimage_ensemble.principal
    monkeypatch.setattr(stimage_ensemble, "principal", lambda x, k: seen.append(k) or real(x, k))
    stimage.fit(**of(toy, toy["sections"] < "c"), members=1, steps=1, library_kernel=None)
    assert seen == [96]


def test_inner_folds_hold_out_the_largest_units():
    section, subject = np.repeat([0, 1, 2, 3], 5), np.repeat([0, 1], 10)
    fold, held_out = stimage_ensemble.folds(section, subject, settings.rng(0, "f"))
    assert held_out == "subjects" and len(set(zip(fold, subject))) == 2 and fold.max() == 1
    fold, held_out = stimage_ensemble.folds(section, subject * 0, settings.rng(0, "f"))
    assert held_out == "sections" and len(set(zip(fold, section))) == 4 and fold.max() == 3
    fold, held_out = stimage_ensemble.folds(section * 0, subject * 0, settings.rng(0, "f"))
    assert held_out == "spots" and np.bincount(fold).tolist() == [5] * 4
    assert stimage_ensemble.folds(np.zeros(3, int), np.zeros(3, int), settings.rng(0, "f"))[1] == "nothing"


def test_bootstrap_draws_within_sections_and_components_are_those_of_sklearn(toy):
    from sklearn.decomposition import PCA

    weight = stimage_ensemble.bootstrap(np.repeat([0, 1, 2], [10, 1, 30]), 6, settings.rng(0, "b"))
    assert (weight[:10].sum(0) == 10).all() and (weight[10] == 1).all() and (weight[11:].sum(0) == 30).all()
    for rows in (slice(None), slice(0, 12)):  # more spots than features, and fewer
        x = toy["x"][rows]
        centre, basis = stimage_ensemble.principal(x, 5)
        ours, theirs = (x - centre) @ basis, PCA(5, svd_solver="full").fit_transform(x)
        same = np.abs((ours * theirs).sum(0)) / np.linalg.norm(ours, axis=0) / np.linalg.norm(theirs, axis=0)
        assert same.min() > 0.999 and (ours**2).mean() < 4


# ---------------------------------------------------------------- what an ensemble finds
def test_genes_that_follow_the_image_are_found_and_others_are_not(toy, fitted, predicted):
    test = toy["sections"] == "d"
    truth, known = measured(toy, test), fitted.predict(toy["x"][test], library=toy["library"][test])
    r = np.array([np.corrcoef(known.log_share.mean(0)[:, g], np.log(toy["mu"][test][:, g]))[0, 1] for g in range(30)])
    score = np.array([np.corrcoef(known.mean[:, g], truth[:, g])[0, 1] for g in range(30)])
    assert np.median(r[10:]) > 0.8 and np.median(score[10:]) > 0.45
    centre = measured(toy, ~test).mean(0)
    for found in (known, predicted):
        assert ((truth - found.mean) ** 2).mean() < 0.8 * ((truth - centre) ** 2).mean()
    shuffled = {**of(toy, ~test), "x": settings.rng(0, "shuffle").permutation(toy["x"][~test])}
    null = stimage.fit(**shuffled, members=2, library_kernel=None).predict(toy["x"][test], library=toy["library"][test])
    slope = [np.corrcoef(null.log_share.mean(0)[:, g], truth[:, g])[0, 1] for g in range(30)]
    assert abs(np.mean(slope)) < 0.15


def test_sizes_come_from_held_out_sections_and_intervals_hold(toy, fitted, predicted):
    assert fitted.held_out == "sections" and 2 < np.median(fitted.r) < 10
    test = toy["sections"] == "d"
    known = fitted.predict(toy["x"][test], library=toy["library"][test], scale="counts")
    for prediction in (predicted, known):
        found = stimage.calibration(toy["counts"][test], prediction)
        assert found.error < 0.06 and found.unevenness < 0.08 and found.histogram.sum() == pytest.approx(1)
        assert list(found.table()["level"]) == [0.5, 0.8, 0.95] and found.by_gene.shape == (3, 30)
    narrow = stimage.calibration(toy["counts"][test], replace(known, r=np.full(30, 1000.0)))
    wide = stimage.calibration(toy["counts"][test], replace(known, r=np.full(30, 0.5)))
    assert narrow.coverage[1] < 0.74 and wide.coverage[1] > 0.86  # the check can fail, both ways


def test_variances_add_up_and_match_the_error(toy, predicted):
    test = toy["sections"] == "d"
    assert np.allclose(predicted.mean, predicted.members.mean(0), atol=1e-5)
    assert np.allclose(predicted.epistemic_var, predicted.members.var(0), atol=1e-5)
    assert np.allclose(predicted.total_var, predicted.member_vars.mean(0) + predicted.members.var(0), atol=1e-5)
    error = (measured(toy, test) - predicted.mean) ** 2
    assert 0.8 < error.mean() / predicted.total_var.mean() < 1.25
    assert predicted.mean.dtype == np.float32 and predicted.members.shape == (5, 90, 30)


def test_a_prediction_of_some_spots_is_the_same_there(predicted):
    part = predicted.at(slice(None, None, 3))
    assert np.array_equal(part.mean, predicted.mean[::3]) and np.array_equal(part.members, predicted.members[:, ::3])
    assert part.log_share.shape == (5, 30, 30) and len(part.log_library_sd) == 30 and part.r is predicted.r
    assert np.array_equal(part.only([0, 1]).mean, predicted.only([0, 1]).mean[::3])


def test_not_knowing_the_library_size_costs_variance(toy, fitted, predicted):
    test = toy["sections"] == "d"
    counts = fitted.predict(toy["x"][test], scale="counts")
    at_mean = fitted.predict(toy["x"][test], scale="counts", library=np.exp(counts.log_library_mean))
    assert (counts.aleatoric_var.mean(0) > at_mean.aleatoric_var.mean(0)).all()
    assert fitted.library_model.score > 0.7
    apart = (np.log(toy["library"][test]) - counts.log_library_mean) / counts.log_library_sd
    assert 0.7 < apart.std() < 1.4


def test_log1p_prediction_is_the_mean_of_simulated_counts(toy, fitted):
    """Draw library sizes and counts from what a member says; their log1p has the mean and variance it predicts."""
    x = toy["x"][:3]
    found = fitted.predict(x).only(0)
    rng = settings.rng(0, "simulate")
    z = rng.choice(found.library_shape, size=(60000, 3))
    library = np.exp(found.log_library_mean + found.log_library_sd * z)
    mu = np.exp(found.log_share[0].astype(float)) * library[..., None]
    y = rng.negative_binomial(found.r, found.r / (found.r + mu))
    value = np.log1p(1e4 * y / library[..., None])
    assert np.abs(value.mean(0) - found.mean).max() < 0.05
    assert np.abs(value.var(0) / found.aleatoric_var - 1).max() < 0.05


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_epistemic_variance_rises_away_from_the_training_spots(toy, activation):
    train = toy["sections"] != "d"
    model = stimage.fit(**of(toy, train), learning_rate=0.03, activation=activation, r=np.full(30, 8.0))
    x, library = toy["x"][~train], toy["library"][~train]
    away = settings.rng(0, "away").normal(size=(3, x.shape[1])).astype(np.float32)
    far = [np.mean([model.predict(x + by * shift, library=library).epistemic_var.mean() for shift in away])
           for by in (0, 1, 2)]  # fmt: skip
    assert far[1] > 1.3 * far[0] and far[2] > 2 * far[0]
    assert model.predict(x + 4 * away[0]).log_library_sd.mean() > 1.2 * model.predict(x).log_library_sd.mean()


def test_groups_are_disjoint_and_an_ensemble_is_steadier_than_one(predicted):
    assert [list(g) for g in stimage.groups(7, 3)] == [[0, 1, 2], [3, 4, 5]]
    one = [predicted.only(group).mean for group in stimage.groups(5, 1)]
    two = [predicted.only(group).mean for group in stimage.groups(5, 2)]
    assert np.var(two, axis=0, ddof=1).mean() < np.var(one, axis=0, ddof=1).mean()
    assert predicted.only(2).epistemic_var.max() == 0
    with pytest.raises(CourseError, match="groups of 6"):
        stimage.groups(5, 6)


def test_heads_of_several_encoders_are_averaged(toy, fitted, predicted):
    test = toy["sections"] == "d"
    other = stimage.fit(**{**of(toy, ~test), "x": toy["x"][~test][:, :8]}, members=2, learning_rate=0.03)
    second = other.predict(toy["x"][test][:, :8])
    both = stimage.average([predicted, second])
    means = np.stack([predicted.mean, second.mean])
    assert np.allclose(both.mean, means.mean(0), atol=1e-6)
    within = (predicted.total_var + second.total_var) / 2
    assert np.allclose(both.total_var, within + means.var(0), atol=1e-5)
    found = stimage.calibration(toy["counts"][test], [predicted, second])
    assert found.error < 0.1 and found.pit.shape == (90, 30)
    with pytest.raises(CourseError, match="another order"):
        stimage.average([predicted, replace(second, genes=second.genes[::-1])])


def test_a_size_for_each_spot_as_published(toy):
    train = toy["sections"] != "d"
    model = stimage.fit(**of(toy, train), dispersion="spot", members=2, learning_rate=0.03)
    found = model.predict(toy["x"][~train], library=toy["library"][~train])
    assert found.r.shape == (2, 90, 30) and model.held_out == "spot" and found.only(0).r.shape == (1, 90, 30)
    assert stimage.calibration(toy["counts"][~train], found).error < 0.1


def test_seeds_batches_and_sparse_counts(toy):
    few = of(toy, toy["sections"] < "c")
    options = {"members": 2, "steps": 10, "r": np.full(30, 8.0), "library_kernel": None}
    one, same, other = (stimage.fit(**few, seed=s, **options).log_share(few["x"])[0] for s in (1, 1, 2))
    assert np.allclose(one, same, atol=1e-5) and not np.allclose(one, other, atol=1e-3)
    rows = stimage.fit(**{**few, "counts": sparse.csr_matrix(few["counts"])}, seed=1, **options)
    assert np.allclose(rows.log_share(few["x"])[0], one, atol=1e-4)
    parts = stimage.fit(**few, seed=1, batch=50, rank=0, components=0, **options)
    assert np.isfinite(parts.log_share(few["x"])[0]).all()


@pytest.mark.parametrize("kernel", stimage_library.KERNELS)
def test_library_sizes_from_features(kernel):
    rng = settings.rng(0, "library")
    x = rng.normal(size=(600, 5))
    y = 8 + x[:, 0] + 0.3 * rng.normal(size=600)
    section = np.repeat(np.arange(4), 150)
    train = section < 3
    model = stimage_library.fit(x[train], y[train], section[train], kernel=kernel, rng=rng, landmarks=200)
    mean, sd = model.predict(x[~train])
    assert np.corrcoef(mean, y[~train])[0, 1] > 0.9 and 0.7 < ((y[~train] - mean) / sd).std() < 1.3
    assert model.predict(x[~train] * 12)[1].mean() > 1.2 * sd.mean()


# ---------------------------------------------------------------- bad input
def _spoilt(data, **changes):
    return {**of(data, slice(None)), **changes}


def test_bad_input_is_refused_and_says_why(toy):
    x, y, n = toy["x"].copy(), toy["counts"], len(toy["x"])
    x[7, 2] = np.nan
    empty = toy["library"].copy()
    empty[3] = 0
    cases = [
        ({"x": x}, "1 spots, the first 7"), ({"x": toy["x"][:, 0]}, "features"), ({"x": toy["x"][:-1]}, "counts"),
        ({"counts": np.log1p(y)}, "whole numbers"), ({"counts": -y}, "negative"), ({"counts": y[:, :-1]}, "30 genes"),
        ({"library": empty}, "spot 3"), ({"library": toy["library"][:5]}, "one number a spot"),
        ({"library": np.ones(n)}, "ALL genes"), ({"genes": ["g0"] * 30}, "g0.*more than once"),
        ({"sections": ["a"]}, "section of each spot"), ({"members": 0}, "members=0"),
        ({"subjects": ["p"]}, "subject of each spot"),
        ({"dispersion": "cell"}, "gene or spot"), ({"r": np.zeros(30)}, "one size a gene"), ({"genes": []}, "no genes"),
    ]  # fmt: skip
    for change, message in cases:
        with pytest.raises(CourseError, match=message):
            stimage.fit(**_spoilt(toy, **change))


def test_a_prediction_refuses_other_features(toy, fitted):
    for x, options, message in (
        (toy["x"][:, :5], {}, "as in training"), (toy["x"] * np.nan, {}, "NaN"),
        (toy["x"], {"library": np.zeros(len(toy["x"]))}, "more than 0 counts"), (toy["x"], {"scale": "log"}, "log1p"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=message):
            fitted.predict(x, **options)
    lean = fitted.predict(toy["x"][:4], keep=False)
    with pytest.raises(CourseError, match="without its members"):
        stimage.calibration(toy["counts"][:4], lean)
    with pytest.raises(CourseError, match="without its members"):
        lean.only(0)


def test_empty_genes_one_section_and_one_spot(toy):
    y = toy["counts"].copy()
    y[:, 0], y[:, 1] = 0, 3
    library = np.maximum(toy["library"], y.sum(1))
    one = toy["sections"] == "a"
    options = {"members": 2, "steps": 20, "genes": toy["genes"]}
    for which, held_out in ((one, "spots"), (np.arange(1), "nothing"), (np.arange(3), "nothing")):
        parts = {"library": library[which], "sections": toy["sections"][which]}
        model = stimage.fit(toy["x"][which], y[which], **parts, **options)
        found = model.predict(toy["x"][which])
        assert model.held_out == held_out and np.isfinite(found.mean).all() and np.isfinite(found.total_var).all()
        assert found.mean[:, 0].max() < (0.1 if held_out == "spots" else 1)
    assert (model.r >= 0.1).all() and (model.r <= 1000).all()


# ---------------------------------------------------------------- the file
def test_a_saved_model_predicts_the_same_in_a_new_process(tmp_path, toy, fitted, predicted):
    fitted.save(tmp_path / "her.keras", encoder=ENCODER, tile_um=55, train_sections=["a", "b", "c"])
    assert [path.name for path in tmp_path.iterdir()] == ["her.keras"]
    np.save(tmp_path / "x.npy", toy["x"][toy["sections"] == "d"])
    code = (
        "import sys, numpy as np; from helpers import stimage; f = sys.argv[1];"
        "e = stimage.load(f + '/her.keras'); p = e.predict(np.load(f + '/x.npy'));"
        "np.savez(f + '/p.npz', mean=p.mean, total=p.total_var); print(e.facts['tile_um'], e.facts['train_sections'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[55.0] ['a', 'b', 'c']"
    with np.load(tmp_path / "p.npz") as again:
        assert np.allclose(again["mean"], predicted.mean, atol=1e-5)
        assert np.allclose(again["total"], predicted.total_var, atol=1e-5)


def test_a_model_refuses_other_features_and_genes(tmp_path, toy, fitted):
    file = fitted.save(tmp_path / "m.keras", encoder=ENCODER, tile_um=[55, 110])
    assert stimage.load(file, encoder=ENCODER, tile_um=[55.2, 110], genes=toy["genes"]).genes == fitted.genes
    for options, message in (
        ({"encoder": {**ENCODER, "fingerprint": "f" * 16}}, "toy.*ENCODER"), ({"tile_um": 55}, "microns"),
        ({"encoder": [ENCODER, ENCODER]}, "fit anew"), ({"tile_um": [55, 100]}, "microns"),
        ({"genes": toy["genes"][::-1]}, "another order"), ({"genes": toy["genes"][:5]}, "5 genes"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=message):
            stimage.load(file, **options)
    with pytest.raises(CourseError, match="fingerprint"):
        fitted.save(tmp_path / "n.keras", encoder="toy", tile_um=55)
    with pytest.raises(CourseError, match="microns above 0"):
        fitted.save(tmp_path / "n.keras", encoder=ENCODER, tile_um=0)
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def _changed(source, target, change):
    """Copy an archive with its configuration changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config)
            new.writestr(name, data)
    return target


def test_unsafe_and_foreign_files_are_refused(tmp_path, fitted):
    import keras

    file = fitted.save(tmp_path / "m.keras", encoder=ENCODER, tile_um=55)

    def as_(**entries):
        return lambda config: config["config"]["layers"][-1].update(entries)

    marker = tmp_path / "ran"
    evil = {"module": "os", "class_name": "system", "config": f"touch {marker}", "registered_name": None}
    bad = [
        _changed(file, tmp_path / "lambda.keras", as_(module="keras.layers", class_name="Lambda")),
        _changed(file, tmp_path / "evil.keras", as_(**evil)),
        _changed(file, tmp_path / "alias.keras", as_(module="os", class_name="Offset")),
        _changed(file, tmp_path / "nested.keras", lambda c: c["config"]["layers"][1]["config"].update(activation=evil)),
    ]  # fmt: skip
    for path in bad:
        with pytest.raises(CourseError, match="Lambda"):
            stimage.load(path)
    for suffix in (".h5", ".pkl", ".pt", ".joblib"):
        other = tmp_path / f"model{suffix}"
        other.write_bytes(b"anything")
        with pytest.raises(CourseError, match="can run any code"):
            stimage.load(other)
    plain = keras.Sequential([keras.Input((3,))])
    plain.save(tmp_path / "plain.keras")
    (tmp_path / "page.keras").write_text("<html>")
    (tmp_path / "cut.keras").write_bytes(file.read_bytes()[:2000])
    for name in ("plain", "page", "cut", "absent"):
        with pytest.raises(CourseError):
            stimage.load(tmp_path / f"{name}.keras")
    assert not marker.exists()


# ---------------------------------------------------------------- fine-tuning
@dataclass(frozen=True)
class Small:
    """An encoder of the kind ``encoders`` gives, of 8 numbers."""

    name: str
    fingerprint: str
    forward: object
    make_backbone: object

    def inputs(self, tiles):
        return (255 - tiles.astype(np.float32)) / 255

    def backbone(self):
        return self.make_backbone()


def small_encoder():
    """A network of random weights: colour and texture reach its 8 numbers, if weakly."""
    import keras

    def make():
        draw = [keras.initializers.GlorotUniform(seed=k) for k in (1, 2)]
        x = entry = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(8, 3, 2, activation="relu", kernel_initializer=draw[0])(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Conv2D(8, 3, 2, activation="relu", kernel_initializer=draw[1])(x)
        return keras.Model(entry, keras.layers.GlobalAveragePooling2D()(x))

    first = make()
    return Small("small", "0" * 16, lambda batch: np.asarray(first(batch)), make)


def stripes():
    """Tiles whose share of stripes sets the expression of half of the genes."""
    rng = settings.rng(0, "stripes")
    n, level = 160, settings.rng(0, "level").random(160)
    tiles = rng.integers(150, 200, (n, 16, 16, 3)).astype(np.uint8)
    for i in range(n):
        rows = rng.random(16) < level[i]
        tiles[i, rows, ::2] = 60
    mu = 4 * np.exp(np.outer(level - 0.5, np.r_[np.full(6, 3.0), np.zeros(6)]))
    names = [f"g{i}" for i in range(12)]
    return tiles, rng.poisson(mu), {"library": np.full(n, 1e3), "sections": np.repeat(list("abcd"), 40), "genes": names}


def test_fine_tuning_lowers_the_held_out_loss_and_gives_an_encoder():
    encoder = small_encoder()
    tiles, counts, given = stripes()
    turned = tiles[:, ::-1]
    tuned = fine_tune(
        encoder, tiles, counts, **given, augmented=[turned], held_out="d", epochs=4, learning_rate=1e-3, steps=60
    )
    losses = [row["held_out"] for row in tuned.history]
    assert tuned.epoch == int(np.argmin(losses)) > 0 and losses[tuned.epoch] < losses[0] - 0.01
    assert len(tuned.history) == 5 and tuned.encoder.fingerprint != encoder.fingerprint
    before, after = (e.forward(e.inputs(tiles)) for e in (encoder, tuned.encoder))
    assert after.shape == before.shape and not np.allclose(before, after, atol=1e-3)
    again = tuned.encoder.backbone()
    assert np.allclose(np.asarray(again(encoder.inputs(tiles), training=False)), after, atol=1e-5)


def test_fine_tuning_refuses_bad_tiles():
    tiles, counts, given = stripes()
    for change, message in (
        ({"tiles": tiles / 255}, "uint8"), ({"augmented": [tiles[:3]]}, "uint8 RGB"), ({"epochs": 0}, "epochs=0"),
        ({"counts": counts + 0.5}, "whole numbers"), ({"held_out": "z"}, "held_out='z'"),
    ):  # fmt: skip
        parts = {"tiles": tiles, "counts": counts, **given, **change}
        with pytest.raises(CourseError, match=message):
            fine_tune(small_encoder(), **parts)

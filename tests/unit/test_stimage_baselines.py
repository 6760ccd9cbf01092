"""Kernel ridge, baselines and the blend: against sklearn, plain loops, and data whose answer is known."""

import numpy as np
import pytest

from helpers import settings, stimage_baselines, stimage_blend, stimage_ridge
from helpers.messages import CourseError
from helpers.stimage_predict import Prediction


def tissue(n=120, f=12, g=30, *, noise=0.5, name="tissue", coupled=True):
    """Three sections whose genes follow two hidden directions of the features."""
    rng = settings.rng(0, "test_stimage_baselines", name)
    x = rng.normal(size=(n, f)).astype(np.float32)
    hidden = np.stack([np.sin(x[:, 0]), x[:, 1]], 1) if coupled else rng.normal(size=(n, 2))
    y = hidden @ rng.normal(size=(2, g)) + noise * rng.normal(size=(n, g)) + 3
    return x, y.astype(np.float32), np.repeat(["a", "b", "c"], n // 3)


def test_target_is_log_of_counts_per_ten_thousand():
    from scipy import sparse

    counts = np.array([[3, 0], [5, 5]])
    expected = np.log1p([[3e4 / 100, 0], [5e4 / 50, 5e4 / 50]])
    for form in (counts, sparse.csr_matrix(counts)):
        assert np.allclose(stimage_ridge.log_cp10k(form, [100, 50]), expected)
    for wrong in ([100, 0], [100]):
        with pytest.raises(CourseError):
            stimage_ridge.log_cp10k(counts, wrong)


def test_linear_kernel_of_full_rank_is_weighted_ridge_regression():
    from sklearn.linear_model import Ridge

    x, y, sections = tissue()
    weights = settings.rng(0, "test_stimage_baselines", "w").uniform(0.2, 3, len(x))
    alpha = 0.1
    ours = stimage_ridge.fit(x, y, sections, weights=weights, kernel="linear", rank=30, alphas=(alpha,))
    w = weights / weights.mean()
    centred = (x - w @ x / w.sum()) * np.sqrt(w)[:, None]
    penalty = alpha * np.linalg.eigvalsh(centred @ centred.T).mean()
    theirs = Ridge(alpha=penalty).fit(x, y, sample_weight=w)
    new = tissue(name="new")[0]
    assert np.allclose(ours.predict(new), theirs.predict(new), atol=1e-3)


def test_rbf_kernel_is_kernel_ridge_regression_of_centred_targets():
    from sklearn.kernel_ridge import KernelRidge

    x, y, sections = tissue()
    ours = stimage_ridge.fit(x, y, sections, rank=30, alphas=(0.5,))
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    assert ours.width2 == pytest.approx(np.median(apart[np.triu_indices(len(x), 1)]), rel=1e-5)
    centre = np.eye(len(x)) - 1 / len(x)
    kernel = centre @ np.exp(-apart / 2 / ours.width2) @ centre
    penalty = 0.5 * np.trace(kernel) / len(x)
    theirs = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel, y - y.mean(0)).predict(kernel) + y.mean(0)
    assert np.allclose(ours.predict(x), theirs, atol=1e-4)


def test_penalty_is_the_one_that_predicts_held_out_sections_best():
    x, y, sections = tissue(noise=3)
    alphas = (1e-4, 1e-1, 1e1, 1e3)
    found = stimage_ridge.fit(x, y, sections, alphas=alphas, rank=4)
    by_hand = []
    for alpha in alphas:
        score = 0
        for name in "abc":
            out = sections == name
            single = stimage_ridge.fit(x[~out], y[~out], sections[~out], alphas=(alpha,), rank=4)
            assert single.width2 > 0
            score += out.mean() * stimage_ridge.correlation(y[out], single.predict(x[out])).mean()
        by_hand.append(score)
    assert np.allclose(found.path, by_hand, atol=0.02), "the width of the kernel differs a little"
    assert found.alpha == alphas[int(np.argmax(found.path))]


def test_inner_predictions_have_not_seen_their_section():
    x, y, sections = tissue()
    first = stimage_ridge.fit(x, y, sections, alphas=(0.1,))
    spoilt = y.copy()
    spoilt[sections == "b"] += settings.rng(1, "spoil").normal(size=(40, 30)) * 50
    second = stimage_ridge.fit(x, spoilt, sections, alphas=(0.1,))
    assert np.allclose(first.inner[sections == "b"], second.inner[sections == "b"], atol=1e-4)
    assert not np.allclose(first.inner[sections == "a"], second.inner[sections == "a"], atol=1e-1)


def test_low_rank_steadies_noisy_genes_and_weights_mute_noisy_spots():
    x, y, sections = tissue(300, noise=4)
    new, truth, _ = tissue(300, noise=0, name="tissue")
    full, few = (stimage_ridge.fit(x, y, sections, rank=rank, kernel="linear", alphas=(0.1,)) for rank in (30, 2))
    r = [stimage_ridge.correlation(truth, each.predict(new)).mean() for each in (full, few)]
    assert r[1] > r[0]
    rng = settings.rng(0, "test_stimage_baselines", "noisy")
    noisy = rng.random(300) < 0.5
    y = truth + np.where(noisy[:, None], 20, 0.3) * rng.normal(size=truth.shape)
    weights = np.where(noisy, 0.001, 1)
    plain, muted = (stimage_ridge.fit(x, y, sections, weights=each, alphas=(0.1,)) for each in (None, weights))
    r = [stimage_ridge.correlation(truth, each.predict(new)).mean() for each in (plain, muted)]
    assert r[1] > r[0] + 0.1


def test_one_section_is_enough_and_bad_input_is_refused():
    x, y, sections = tissue()
    one = stimage_ridge.fit(x[:40], y[:40], sections[:40])
    assert np.isfinite(one.predict(x)).all()
    folds = stimage_ridge.inner_folds(["only"] * 10)
    assert np.array_equal(np.sum(folds, axis=0), np.ones(10)) and len(folds) == 4
    folds = stimage_ridge.inner_folds(np.repeat(np.arange(11), 3))
    assert np.array_equal(np.sum(folds, axis=0), np.ones(33)) and len(folds) == stimage_ridge.MOST_FOLDS
    bad = x.copy()
    bad[3, 3] = np.nan
    for wrong in (
        {"x": bad}, {"x": x[:-1]}, {"x": x[:4], "target": y[:4], "sections": sections[:4]}, {"kernel": "poly"},
        {"weights": np.zeros(120)}, {"rank": 0},
    ):  # fmt: skip
        with pytest.raises(CourseError):
            stimage_ridge.fit(**{"x": x, "target": y, "sections": sections, **wrong})
    with pytest.raises(CourseError):
        one.predict(x[:, :5])


def decompositions(monkeypatch):
    """Return a list that grows with every ``eigh`` of numpy."""
    seen, real = [], np.linalg.eigh
    monkeypatch.setattr(stimage_ridge.np.linalg, "eigh", lambda a: seen.append(len(a)) or real(a))
    return seen


def test_the_path_over_penalties_costs_one_decomposition_a_split(monkeypatch):
    x, y, sections = tissue()
    seen = decompositions(monkeypatch)
    stimage_ridge.fit(x, y, sections, alphas=tuple(np.geomspace(1e-3, 1e3, 50)))
    assert len(seen) == 1 + 3 + 4, "the kernel; coordinates of three inner splits; targets of these and of the whole"


def test_penalties_are_scored_by_the_correlation_of_what_they_predict():
    x, y, sections = tissue()
    for rank in (2, 30):
        model = stimage_ridge.fit(x, y, sections, rank=rank, alphas=(0.3,))
        folds = stimage_ridge.inner_folds(sections)
        r = [stimage_ridge.correlation(y[part], model.inner[part]).mean() for part in folds]
        assert model.path[0] == pytest.approx(np.mean(r), abs=1e-6)


def test_a_third_of_the_spots_can_stand_for_all():
    x, y, sections = tissue(360)
    new, truth, _ = tissue(360, noise=0)
    new, truth = new[300:], truth[300:]
    exact, few = (stimage_ridge.fit(x[:300], y[:300], sections[:300], most=most) for most in (300, 100))
    assert few.marks.shape == (100, 12) and exact.marks.shape == (300, 12)
    r = [stimage_ridge.correlation(truth, each.predict(new)).mean() for each in (exact, few)]
    assert r[0] > 0.7 and r[1] > r[0] - 0.1


# ---------------------------------------------------------------- baselines
def test_every_baseline_beats_chance_where_there_is_something_and_none_where_there_is_not():
    new, truth, _ = tissue(600, name="tissue")
    x, y, sections, new, truth = new[:300], truth[:300], np.repeat(["a", "b", "c"], 100), new[300:], truth[300:]
    found = stimage_baselines.every(x, y, sections, new)
    assert tuple(found) == stimage_baselines.NAMES and all(each.shape == truth.shape for each in found.values())
    r = {name: np.median(stimage_ridge.correlation(truth, each)) for name, each in found.items()}
    assert r["mean"] == 0 and abs(r["shuffled"]) < 0.15
    assert min(r["ridge"], r["st-net head"]) > 0.7 and r["neighbours"] > 0.3
    x, y, sections = tissue(300, coupled=False)
    null = stimage_baselines.every(x[:150], y[:150], sections[:150], x[150:])
    for name, each in null.items():
        assert abs(np.median(stimage_ridge.correlation(y[150:], each))) < 0.15, name


def test_linear_baselines_share_their_decompositions(monkeypatch):
    x, y, sections = tissue()
    new = tissue(name="new")[0]
    alone = {
        "ridge": stimage_baselines.ridge(x, y, sections, new),
        "shuffled": stimage_baselines.shuffled(x, y, sections, new),
        "st-net head": stimage_baselines.st_net_head(x, y, sections, new),
    }  # fmt: skip
    seen = decompositions(monkeypatch)
    found = stimage_baselines.every(x, y, sections, new)
    assert len(seen) == 1 + 4, "the kernel; three inner splits and the whole, once for all baselines"
    for name, expected in alone.items():
        assert np.allclose(found[name], expected, atol=1e-5), name


def test_neighbours_are_those_of_sklearn():
    from sklearn.neighbors import KNeighborsRegressor

    x, y, sections = tissue()
    new = tissue(name="new")[0]
    theirs = KNeighborsRegressor(7).fit(x, y).predict(new)
    assert np.allclose(stimage_baselines.neighbours(x, y, sections, new, ks=(7,)), theirs, atol=1e-5)


def test_the_linear_head_is_what_gradient_descent_arrives_at():
    x, y, sections = tissue()
    new = tissue(name="new")[0]
    middle, bias = x.mean(0), y.mean(0)
    weights, rate = np.zeros((12, 30)), 1 / np.linalg.eigvalsh((x - middle).T @ (x - middle))[-1]
    for _ in range(37):
        weights -= rate * (x - middle).T @ ((x - middle) @ weights + bias - y)
    ours = stimage_baselines.st_net_head(x, y, sections, new, steps=(37,))
    assert np.allclose(ours, (new - middle) @ weights + bias, atol=1e-4)


def test_shuffling_stays_within_a_section():
    x, y, sections = tissue(noise=0)
    y = y + np.where(sections == "a", 100, 0)[:, None]
    x[:, 5] = np.where(sections == "a", 5, -5)
    found = stimage_baselines.shuffled(x, y, sections, x, seed=0)
    assert found[sections == "a"].mean() > found[sections != "a"].mean() + 50
    with pytest.raises(CourseError):
        stimage_baselines.every(x, y, sections, x[:, :4])


# ---------------------------------------------------------------- blend
def prediction(n=6, g=4):
    rng = settings.rng(0, "test_stimage_baselines", "prediction")
    a, b, c = rng.uniform(0.1, 1, (3, n, g)).astype(np.float32)
    return Prediction(tuple("abcd"), "log1p", a, b, c)


def test_blending_follows_the_law_of_total_variance():
    one = prediction()
    other = one.mean + 1
    both = stimage_blend.blend(one, other)
    assert np.allclose(both.mean, one.mean + 0.5)
    draws = np.stack([one.mean, other])
    assert np.allclose(both.aleatoric_var, one.aleatoric_var)
    assert np.allclose(both.epistemic_var, 0.5 * one.epistemic_var + draws.var(0), atol=1e-6)
    alone = stimage_blend.blend(one, other, share=0)
    assert np.allclose(alone.mean, one.mean) and np.allclose(alone.epistemic_var, one.epistemic_var)
    for wrong in ({"ridge_mean": other[:2]}, {"ridge_mean": other, "share": 2}):
        with pytest.raises(CourseError):
            stimage_blend.blend(one, **wrong)


def test_both_are_fitted_and_averaged():
    rng = settings.rng(0, "test_stimage_baselines", "counts")
    x, signal, sections = tissue(90, g=5)
    library = rng.integers(300, 3000, 90)
    counts = rng.poisson(library[:, None] * np.exp(0.5 * (signal - 3)) / 400)
    both = stimage_blend.fit(x, counts, library=library + counts.sum(1), sections=sections, genes=list("abcde"),
                             members=2, steps=20)  # fmt: skip
    found = both.predict(x)
    assert np.allclose(found.mean, (both.ensemble.predict(x).mean + both.ridge.predict(x)) / 2, atol=1e-5)
    target = stimage_ridge.log_cp10k(counts, library + counts.sum(1))
    assert stimage_ridge.correlation(target, found.mean).mean() > 0.5
    assert np.abs(found.mean.mean(0) - target.mean(0)).max() < 0.3, "on the scale of the target"

"""High and low classes: per section, against scikit-learn, saved and refused."""

import pickle

import numpy as np
import pytest
from scipy import sparse, stats

from helpers import stimage_classes as classes
from helpers.messages import CourseError

GENES = ["A", "B", "C"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) + 5
    x[:, 7] = 2.0  # a feature that never varies
    signal = x[:, [0]] * 0.5 + np.c_[x[:, 1], -x[:, 2], rng.normal(size=300)]
    sections = np.repeat(["S1", "S2"], 150)
    return x.astype(np.float32), classes.high(signal + rng.normal(0, 1, signal.shape), sections)


@pytest.fixture(scope="module")
def fitted(data):
    return classes.fit_classes(*data, genes=GENES, strength=0.02)


def test_high_is_a_z_score_of_the_section():
    rng = np.random.default_rng(1)
    values = rng.gamma(2, 1, (60, 4)) + np.repeat([[0.0], [100.0]], 30, axis=0)
    values[:, 3] = 0.1
    sections = np.repeat(["a", "b"], 30)
    ours = classes.high(sparse.csr_matrix(values), sections)
    for part in (slice(0, 30), slice(30, 60)):
        assert np.array_equal(ours[part, :3], stats.zscore(values[part, :3]) > 0)
    assert not ours[:, 3].any() and ours[:30, 0].any() and not ours[30:, 0].all()
    mixed = np.argsort(rng.random(60))
    assert np.array_equal(classes.high(values[mixed], sections[mixed]), ours[mixed])
    with pytest.raises(CourseError, match="1 spot in section"):
        classes.high(values, ["x"] + ["y"] * 59)
    with pytest.raises(CourseError, match="a name a spot"):
        classes.high(values, ["x"])


def test_the_fit_is_the_minimum_of_the_stated_loss(data):
    from scipy.special import expit

    x, high = data
    strength, ratio = 0.02, 0.3
    fit = classes.fit_classes(x, high, genes=GENES, strength=strength, l1_ratio=ratio, tol=1e-7, max_iter=20_000)
    z = (x - fit.centre) / fit.scale
    for g in range(3):
        w, error = fit.coef[g], expit(z @ fit.coef[g] + fit.intercept[g]) - high[:, g]
        slope = z.T @ error / len(z) + strength * (1 - ratio) * w  # of the smooth part
        used = w != 0
        assert np.allclose(slope[used], -strength * ratio * np.sign(w[used]), atol=2e-5)
        assert (np.abs(slope[~used]) <= strength * ratio + 2e-5).all() and abs(error.mean()) < 2e-5
        assert 0 < used.sum() < 20 and w[7] == 0
    assert fit.facts["C"] == pytest.approx(1 / (strength * 300)) and fit.table["converged"].all()


def test_stronger_is_sparser_and_C_is_the_inverse(data):
    weak, strong = (classes.fit_classes(*data, genes=GENES, strength=s) for s in (0.001, 0.2))
    assert strong.table["nonzero"].sum() < weak.table["nonzero"].sum()
    assert np.abs(strong.coef).sum() < np.abs(weak.coef).sum()
    same = classes.fit_classes(*data, genes=GENES, C=1 / (0.2 * 300))
    assert np.allclose(same.coef, strong.coef) and same.facts["strength"] == pytest.approx(0.2)


def test_probabilities_tell_the_classes_apart_and_repeat(data, fitted):
    x, high = data
    p = fitted.proba(x)
    assert p.dtype == np.float32 and p.shape == (300, 3) and (p > 0).all() and (p < 1).all()
    table = classes.scores(high, p, genes=GENES)
    assert (table["auc"][["A", "B"]] > 0.8).all() and abs(p.mean(0) - high.mean(0)).max() < 0.02
    again = classes.fit_classes(*data, genes=GENES, strength=0.02)
    assert np.array_equal(again.coef, fitted.coef)
    with pytest.raises(CourseError, match="19 features"):
        fitted.proba(x[:, :19])


def test_what_did_not_converge_says_so(data, recwarn):
    fit = classes.fit_classes(*data, genes=GENES, strength=1e-4, max_iter=3)
    assert not fit.table["converged"].any() and (fit.table["n_iter"] == 3).all() and not recwarn.list


def test_one_class_genes_are_skipped_by_name_or_refused(data):
    x, high = data
    high = np.c_[high[:, 0], np.zeros(300, bool), np.arange(300) < 297]
    fit = classes.fit_classes(x, high, genes=GENES)
    assert fit.genes == ("A",) and fit.skipped == {"B": "high in 0 of 300 spots", "C": "high in 297 of 300 spots"}
    assert fit.proba(x).shape == (300, 1) and list(fit.table.index) == ["A"]
    with pytest.raises(CourseError, match="2 genes of one class .B: high in 0 of 300"):
        classes.fit_classes(x, high[:, 1:], genes=["B", "C"])


@pytest.mark.parametrize("change, why", [
    ({"strength": 0}, "strength 0"), ({"l1_ratio": 1.5}, "l1_ratio 1.5"), ({"genes": ["A", "A", "B"]}, "names unique"),
    ({"high": np.zeros((300, 3))}, "of float64"), ({"x": np.full((300, 4), np.nan)}, "not finite"), ({"C": -1}, "C -1"),
])  # fmt: skip
def test_bad_input_is_refused(data, change, why):
    given = {"x": data[0], "high": data[1], "genes": GENES, **change}
    with pytest.raises(CourseError, match=why):
        classes.fit_classes(given.pop("x"), given.pop("high"), **given)


def test_scores_have_their_arguments_the_right_way_round():
    high = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    proba = np.c_[[0.9, 0.4, 0.3, 0.2, 0.6, 0.1], [0.6, 0.2, 0.2, 0.2, 0.2, 0.2], [0.4, 0.3, 0.2, 0.1, 0.2, 0.0]]
    table = classes.scores(high, proba, genes=GENES)
    a = table.loc["A"]  # called high: one right, one wrong, three missed
    assert (a["precision"], a["recall"]) == (0.5, 0.25) and a["f1"] == pytest.approx(1 / 3)
    assert a["auc"] == pytest.approx(5 / 8)  # pairs in the right order; of hard classes it would be 3/8
    assert np.isnan(table.loc["B", "auc"]) and table.loc["B", "precision"] == 0
    assert table.loc["C", "auc"] == 1 and table.loc["C", "recall"] == 0  # all right in order, all below one half
    assert a["f1_chance"] == pytest.approx(2 * 4 / (6 + 4))
    one = classes.scores(high[:, :1], proba[:, :1], genes=["A"])
    assert one.loc["A"].equals(a)
    for bad in (proba > 0.5, proba * 3, proba[:, :2]):
        with pytest.raises(CourseError):
            classes.scores(proba if bad.dtype == bool else high, bad, genes=GENES)


class FakeEncoder:
    name, fingerprint = "tiny", "0123456789abcdef"


def test_a_saved_classifier_predicts_the_same_and_refuses_what_does_not_fit(data, fitted, tmp_path):
    path = fitted.save(tmp_path / "classes.npz", encoder=FakeEncoder, tile_um=100, train_sections=["S1", "S2"])
    read = classes.load_classes(path, encoder=FakeEncoder, tile_um=100.0, genes=GENES)
    assert np.array_equal(read.proba(data[0]), fitted.proba(data[0]))
    assert read.table.equals(fitted.table) and read.facts["train_sections"] == ["S1", "S2"]
    assert classes.load_classes(path, encoder="tiny").genes == ("A", "B", "C")
    assert [file.name for file in tmp_path.iterdir()] == ["classes.npz"]
    other = type("Other", (), {"name": "tiny", "fingerprint": "f" * 16})
    cases = [
        ({"encoder": other}, "features of tiny"), ({"encoder": "resnet50"}, "resnet50"),
        ({"tile_um": 55}, "tiles of 100 um.*expected 55 um"), ({"genes": ["A", "B"]}, "genes A, B, C"),
        ({"genes": ["B", "A", "C"]}, "in this order"),
    ]  # fmt: skip
    for wrong, why in cases:
        with pytest.raises(CourseError, match=why):
            classes.load_classes(path, **wrong)
    with pytest.raises(CourseError, match=".npz"):
        fitted.save(tmp_path / "classes.pkl", encoder="tiny", tile_um=100)


def test_pickles_and_damaged_files_are_refused_with_the_reason(fitted, tmp_path):
    for name in ("model.pkl", "model.npz"):  # the ending does not hide it
        (tmp_path / name).write_bytes(pickle.dumps({"coef": 1}))
        with pytest.raises(CourseError, match="runs whatever program"):
            classes.load_classes(tmp_path / name)
    path = fitted.save(tmp_path / "good.npz", encoder="tiny", tile_um=100)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04 nothing", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(CourseError, match="damaged"):
            classes.load_classes(path)
    np.savez(path, json=np.array({"a": 1}, dtype=object))
    with pytest.raises(CourseError, match="damaged"):
        classes.load_classes(path)
    with pytest.raises(CourseError, match="no such file"):
        classes.load_classes(tmp_path / "gone.npz")

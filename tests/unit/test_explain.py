"""Explanations: LIME is LIME, planted nuclei come out on top, measures mean what they say, files can be read."""

import json

import numpy as np
import pandas as pd
import pytest

from helpers import explain, export_scores, nuclei
from helpers.messages import CourseError

SIDE, STEP = 60, 12


def tile_of_squares():
    """A noisy tile with 25 dark squares, labels 1 to 25, on pale ground."""
    rng = np.random.default_rng(0)
    tile = rng.integers(200, 220, (SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.zeros((SIDE, SIDE), np.int32)
    for number in range(25):
        y, x = 3 + STEP * (number // 5), 3 + STEP * (number % 5)
        labels[y : y + 6, x : x + 6] = number + 1
    tile[labels > 0] = rng.integers(40, 90, ((labels > 0).sum(), 3))
    return tile, labels


TILE, LABELS = tile_of_squares()
GENES = ["A", "B"]
EFFECT = {"A": {3: 2.0, 8: 1.0}, "B": {12: -1.0, 20: 3.0}}


def predict(tiles):
    """Two genes, each the sum of a few squares' darkness."""
    dark = 1 - tiles.mean(-1) / 255
    parts = [sum(w * dark[:, LABELS == k].mean(1) for k, w in EFFECT[gene].items()) for gene in GENES]
    return np.stack(parts, axis=1)


# ---------------------------------------------------------------- LIME
def test_planted_nuclei_come_out_with_their_sign():
    scores = explain.lime(predict, TILE, LABELS, n_samples=400, genes=GENES)
    assert list(scores.index) == list(range(1, 26)) and min(scores.attrs["r2"]) > 0.98
    assert list(scores["A"].nlargest(2).index) == [3, 8] and scores["B"].idxmax() == 20 and scores["B"].idxmin() == 12
    hidden = explain.fill(TILE, LABELS)
    full = predict(np.stack([TILE, np.where((LABELS == 3)[..., None], hidden, TILE)]))
    assert scores.loc[3, "A"] == pytest.approx(full[0, 0] - full[1, 0], rel=0.05)
    assert np.allclose(scores.attrs["prediction"], full[0])


def test_same_coefficients_as_the_package_lime(monkeypatch):
    """The package's own explainer for images, run on the same perturbations, gene by gene."""
    from lime import lime_image

    monkeypatch.setattr(lime_image, "tqdm", lambda rows: rows)

    def crooked(tiles):
        return np.tanh(predict(tiles)) + 0.1 * tiles.std((1, 2, 3))[:, None] / 50

    explainer, asked = lime_image.LimeImageExplainer(kernel_width=0.3, random_state=3), []
    keep = explainer.data_labels
    explainer.data_labels = lambda *a, **k: asked.append(keep(*a, **k)) or asked[0]
    theirs = explainer.explain_instance(
        TILE, crooked, labels=(0, 1), top_labels=None, hide_color=(120, 60, 90), num_samples=120,
        segmentation_fn=lambda _: LABELS,
    )  # fmt: skip
    samples = asked[0][0].astype(bool)
    ours = explain.lime(
        crooked, TILE, LABELS, hide=(120, 60, 90), kernel_width=0.3, background="feature", samples=samples, genes=GENES
    )
    for column, gene in enumerate(GENES):
        expected = pd.Series(dict(theirs.local_exp[column])).sort_index()
        assert np.abs(ours[gene] - expected).max() < 1e-9
        assert ours.attrs["intercept"][column] == pytest.approx(theirs.intercept[column])
    other = explain.lime(crooked, TILE, LABELS, hide=(120, 60, 90), background="feature", samples=samples, genes=GENES)
    assert np.abs(other["A"] - ours["A"]).max() > 1e-6  # another kernel width is another answer


def test_the_background_is_shown_unless_it_is_a_feature():
    seen = []

    def watch(tiles):
        seen.append(tiles.copy())
        return tiles.mean((1, 2, 3))

    explain.lime(watch, TILE, LABELS, n_samples=40)
    assert (np.concatenate(seen)[:, LABELS == 0] == TILE[LABELS == 0]).all()
    seen.clear()
    with_it = explain.lime(watch, TILE, LABELS, n_samples=40, hide="black", background="feature")
    assert 0 in with_it.index and (np.concatenate(seen)[:, LABELS == 0] == 0).all((1, 2)).sum() > 5


def test_batches_seeds_and_gaps_change_nothing_but_what_they_should():
    one = explain.lime(predict, TILE, LABELS, n_samples=60)
    assert np.allclose(one, explain.lime(predict, TILE, LABELS, n_samples=60, batch=7))
    assert not np.allclose(one, explain.lime(predict, TILE, LABELS, n_samples=60, seed=1))
    gaps = explain.lime(predict, TILE, np.where(LABELS > 0, 10 * LABELS, 0), n_samples=60)
    assert list(gaps.index) == list(range(10, 251, 10)) and np.allclose(gaps, one)


def test_one_number_or_no_nucleus():
    single = explain.lime(lambda t: predict(t)[:, 0], TILE, LABELS, n_samples=60)
    assert list(single.columns) == ["score"] and single["score"].idxmax() == 3
    for labels in (np.zeros_like(LABELS), np.where(LABELS == 3, 1, 0)):
        scores = explain.lime(predict, TILE, labels, n_samples=30, genes=GENES)
        assert len(scores) == labels.max() and np.allclose(scores.attrs["prediction"], predict(TILE[None])[0])
    assert len(explain.occlusion(predict, TILE, np.zeros_like(LABELS))) == 0


def test_a_smaller_tile_is_asked_about_when_wanted():
    sides = []

    def watch(tiles):
        sides.append(tiles.shape[1:3])
        return tiles.mean((1, 2, 3))

    labels = LABELS.copy()
    labels[0, 0] = 26  # too small to be seen at half the size
    scores = explain.lime(watch, TILE, labels, n_samples=30, out_px=30)
    assert set(sides) == {(30, 30)} and len(scores) == 26 and scores.loc[26, "score"] == 0
    explain.lime(watch, TILE, labels, n_samples=30, out_px=500)
    assert sides[-1] == (60, 60)


def test_occlusion_is_what_one_nucleus_adds():
    scores = explain.occlusion(predict, TILE, LABELS, hide="black", genes=GENES)
    black = predict(np.where((LABELS == 20)[..., None], 0, TILE)[None].astype(np.uint8))
    assert scores.loc[20, "B"] == pytest.approx(predict(TILE[None])[0, 1] - black[0, 1])
    assert np.abs(scores["A"].drop([3, 8])).max() < 1e-12


# ---------------------------------------------------------------- hiding
def test_how_nuclei_are_hidden():
    nucleus = LABELS > 0
    for hide in explain.HIDE:
        hidden = explain.fill(TILE, LABELS, hide)
        assert hidden.dtype == np.uint8 and hidden.shape == TILE.shape
        if hide != "surroundings":
            assert (hidden[~nucleus] == TILE[~nucleus]).all()
    assert (explain.fill(TILE, LABELS, "black")[nucleus] == 0).all()
    assert (explain.fill(TILE, LABELS, (1, 2, 3))[nucleus] == (1, 2, 3)).all()
    assert (np.abs(explain.fill(TILE, LABELS, "tissue")[nucleus] - 210.0) < 8).all()
    assert explain.fill(TILE, LABELS, "surroundings")[nucleus].min() > 150
    means = explain.fill(TILE, LABELS, "segment")
    assert np.allclose(means[LABELS == 4], TILE[LABELS == 4].mean(0), atol=0.51)
    half = explain.half_hidden(TILE, LABELS, hide="black", n=30)
    share = (half[:, nucleus] == 0).all(-1).mean()
    assert half.shape == (30, SIDE, SIDE, 3) and 0.4 < share < 0.6


def test_glass_does_not_colour_the_tissue():
    tile, labels = TILE.copy(), LABELS
    tile[:, :9] = 250  # an eighth of the tile is glass, brighter than tissue
    assert (explain.fill(tile, labels, "tissue")[labels == 25] < 225).all()


@pytest.mark.parametrize("wrong", [
    {"hide": "pink"}, {"hide": (0, 0)}, {"hide": (0, 0, 300)}, {"n_samples": 3}, {"kernel_width": 0},
    {"background": "gone"}, {"genes": ["A"]}, {"samples": np.ones((5, 3))}, {"samples": np.zeros((5, 25))},
    {"hide": "surroundings", "background": "feature"},
])  # fmt: skip
def test_wrong_options_are_refused(wrong):
    with pytest.raises(CourseError):
        explain.lime(predict, TILE, LABELS, **wrong)


def test_wrong_answers_and_labels_are_refused():
    for bad in (lambda t: predict(t)[:2], lambda t: predict(t) * np.nan, lambda t: predict(t)[..., None]):
        with pytest.raises(CourseError):
            explain.lime(bad, TILE, LABELS, n_samples=30)
    for labels in (LABELS[:30], LABELS - 1, LABELS / 2):
        with pytest.raises(CourseError):
            explain.lime(predict, TILE, labels)


# ---------------------------------------------------------------- gradients
class Linear:
    """An encoder whose only number is a weighted sum of the picture."""

    def inputs(self, tiles):
        return 1 - np.asarray(tiles, np.float32) / 255

    def backbone(self):
        import keras

        entry = keras.Input((SIDE, SIDE, 3))
        weight = np.zeros((SIDE * SIDE * 3, 2), np.float32)
        weight.reshape(SIDE, SIDE, 3, 2)[LABELS == 7, :, 0] = 1
        weight.reshape(SIDE, SIDE, 3, 2)[LABELS == 9, :, 1] = -1
        dense = keras.layers.Dense(2, use_bias=False)
        model = keras.Model(entry, dense(keras.layers.Flatten()(entry)))
        dense.set_weights([weight])
        return model


def test_saliency_of_a_known_network():
    found = explain.saliency(Linear(), lambda x: x[:, 0], TILE)
    assert found.shape == (SIDE, SIDE) and np.allclose(found[LABELS == 7], np.sqrt(3)) and found[LABELS == 9].max() == 0
    signed = explain.saliency(Linear(), lambda x: x[:, 1], TILE, kind="times_input")
    by_nucleus = explain.per_nucleus(signed, LABELS)
    assert by_nucleus.idxmin() == 9 and by_nucleus[9] == pytest.approx(-(1 - TILE[LABELS == 9] / 255.0).sum(), rel=1e-4)
    noisy = explain.saliency(Linear(), lambda x: x[:, 0], TILE, smooth=3)
    assert np.allclose(noisy, found)  # the gradient of a linear network is the same everywhere
    assert explain.per_nucleus(found, LABELS, how="mean")[7] == pytest.approx(np.sqrt(3))


def test_gradients_are_of_one_prediction():
    import tensorflow as tf

    with pytest.raises(CourseError, match="2 predictions"):
        explain.saliency(Linear(), lambda x: x, TILE)
    with pytest.raises(CourseError, match="without a gradient"):
        explain.saliency(Linear(), lambda x: tf.constant(x.numpy()[:, 0]), TILE)
    with pytest.raises(CourseError):
        explain.saliency(Linear(), lambda x: x[:, 0], TILE, kind="best")


def test_gradient_scores_of_an_ensemble():
    import keras

    inputs = [keras.Input((2,)), keras.Input((1,)), keras.Input((1,))]
    dense = keras.layers.Dense(6, use_bias=False)
    model = keras.Model(inputs, keras.layers.Reshape((2, 3))(dense(inputs[0])))
    dense.set_weights([np.array([[1, 0, 0, 1, 0, 0], [0, 0, 2, 0, 0, 4]], np.float32)])  # gene 0: x0; gene 2: 3 x1

    class Ensemble:
        genes = ("A", "B", "C")

    class Scaler:
        mean, factor = np.zeros(2, np.float32), np.array([2, 1], np.float32)

    Ensemble.model = model
    found = explain.gradient_scores(Linear(), Ensemble, Scaler, TILE, LABELS, genes=["C", "A"])
    assert found["A"].idxmax() == 7 and found["C"].idxmax() == 9
    assert found.loc[7, "A"] == pytest.approx(2 * 36 * np.sqrt(3), rel=1e-5)
    assert found.loc[9, "C"] == pytest.approx(3 * 36 * np.sqrt(3), rel=1e-5)


# ---------------------------------------------------------------- measures
def test_precision_at_k():
    positive = np.array([1, 1, 0, 0, 0], bool)
    assert explain.precision_at_k([5, 4, 3, 2, 1], positive) == (1.0, 0.4)
    assert explain.precision_at_k([1, 2, 3, 4, 5], positive) == (0.0, 0.4)
    assert explain.precision_at_k([1, 1, 1, 1, 1], positive)[0] == pytest.approx(0.4)  # says nothing: chance
    assert explain.precision_at_k([9, 1, 1, 0, 0], positive, k=2)[0] == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(explain.precision_at_k([1, 2], [False, False])[0])
    with pytest.raises(CourseError):
        explain.precision_at_k([1, np.nan], [True, False])


def test_area_is_that_of_sklearn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 60), rng.integers(0, 2, 60).astype(bool)
    assert explain.area(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(explain.area([1, 2], [True, True]))


def test_stability():
    runs = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 4, 3]]
    assert explain.stability(runs) == pytest.approx((1 + 0.8 + 0.8) / 3)
    assert explain.stability(runs, method="kendall") == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert np.isnan(explain.stability([[1, 2]])) and np.isnan(explain.agreement([1, 1, 1], [1, 2, 3]))


def test_shuffled_scores_are_at_chance():
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.3
    scores = positive + rng.normal(0, 0.3, 80)
    null = explain.shuffled(scores, lambda s: explain.area(s, positive))
    assert explain.area(scores, positive) > 0.9 > np.quantile(null, 0.99) and abs(null.mean() - 0.5) < 0.02


def test_agreements_between_ways():
    frame = pd.DataFrame({"A": [1.0, 2, 3, 4], "B": [4.0, 3, 2, 1]}, index=[1, 2, 5, 7])
    table = explain.agreements({"same": {0: frame}, "turned": {0: -frame.iloc[::-1]}}, {0: frame})
    assert table["agreement"].tolist() == pytest.approx([1, 1, -1, -1])


def test_strangeness_grows_with_distance():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(300, 6))
    near, far = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)) + 6
    assert 0.7 < explain.strangeness(near, known) < 1.4 and explain.strangeness(far, known) > 4


# ---------------------------------------------------------------- files
def test_scored_nuclei_for_qupath(tmp_path):
    shapes = nuclei.outlines(LABELS, origin=(1000, 500))
    scores = explain.lime(predict, TILE, LABELS, n_samples=100, genes=GENES)
    table = scores.assign(section="S1", outline=pd.Series(shapes))
    export_scores.scored_writer(table, score="B", share=0.08)(tmp_path / "n.geojson")
    features = json.loads((tmp_path / "n.geojson").read_text())["features"]
    assert len(features) == 25 and {f["properties"]["objectType"] for f in features} == {"detection"}
    by_class = [f["properties"]["classification"]["name"] for f in features]
    assert by_class[19] == "high" and by_class[11] == "low" and by_class.count("high") == 2
    assert features[2]["properties"]["measurements"]["A"] == pytest.approx(scores.loc[3, "A"], abs=1e-3)
    ring = features[0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] and np.min(ring, 0).tolist() == [1003, 503] and np.max(ring, 0).tolist() == [1009, 509]

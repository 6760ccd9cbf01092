"""The stage classifier: splits by animal, both streams wired, nothing learned from test animals, honest scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers import spacell_stage as stage
from helpers import spacell_stage_scores as scores
from helpers.messages import CourseError

STAGES = ("p30", "p70")
QUICK = {"width": 16, "epochs": 40, "patience": 12, "dropout": 0.0, "l2": 1e-4, "components": 3, "batch": 16,
         "learning_rate": 1e-2}  # fmt: skip


def toy(n_animals=24, tiles=20, seed=0, views=1):
    """Two stages that differ in gene minus image only; an animal's own level moves both together."""
    rng = np.random.default_rng(seed)
    images, genes, rows = [], [], []
    for animal in range(n_animals):
        code = animal % 2
        level = rng.uniform(-1.5, 1.5) + rng.normal(0, 0.5, tiles)
        images.append(np.c_[level, rng.normal(0, 0.3, (tiles, 2))] + rng.normal(0, 0.1, (tiles, 3)))
        genes.append(np.c_[level + 1.6 * code, level + 1.6 * code, rng.normal(0, 0.3, (tiles, 6))])
        rows += [{"section_id": f"s{animal}", "subject_id": f"m{animal}", "stage": STAGES[code]}] * tiles
    images = np.concatenate(images).astype(np.float32)
    if views > 1:
        images = np.stack([images] * views, axis=1)
    return stage.Data(images, np.concatenate(genes).astype(np.float32), pd.DataFrame(rows), STAGES)


@pytest.fixture(scope="module")
def outcome():
    data, out = toy(), {}
    folds, unit = stage.plan(data.sections, k=3, seed=0)
    assert unit == "animal"
    for mode in stage.MODES:
        out[mode] = stage.cross_validate(data, stage.Settings(mode=mode, **QUICK), folds, seed=0)
    return data, folds, out


def accuracy(data, probability):
    return float((np.asarray(probability).argmax(1) == data.label).mean())


def test_both_streams_together_see_what_neither_sees_alone(outcome):
    data, _, out = outcome
    got = {mode: accuracy(data, result[0]) for mode, result in out.items()}
    assert got["combine"] > 0.85 and max(got["gene_only"], got["tile_only"]) < 0.75


def test_folds_hold_every_animal_once_and_share_none(outcome):
    data, folds, out = outcome
    animal = dict(data.sections[["section_id", "subject_id"]].to_numpy())
    tested = [name for *_, test in folds for name in test]
    assert sorted(tested) == sorted(data.sections["section_id"])
    for part in folds:
        train, valid, test = ({animal[name] for name in names} for names in part)
        assert train and valid and test and not (train & valid or train & test or valid & test)
    assert np.isfinite(out["combine"][0]).all() and (out["combine"][1] >= 0).all()


def test_permuting_either_stream_costs_accuracy_and_a_dangling_one_is_caught(outcome):
    data, _, out = outcome
    _, fold, fits = out["combine"]
    lost = stage.connectivity(data, fits, fold, seed=0)
    assert min(lost.values()) > 0.15
    kernel = [w for w in fits[0].model.weights if "gene_stream" in w.path and "kernel" in w.path][0]
    place = [w.path for w in fits[0].model.weights].index(kernel.path)
    for fitted in fits:  # SpaCell's fault: the gene stream leads nowhere
        fitted.weights[place] = np.zeros_like(fitted.weights[place])
    broken = stage.connectivity(data, fits, fold, seed=0)
    assert broken["genes"] == 0


def test_the_scaler_never_looks_at_other_rows():
    data, rows = toy(), np.arange(200)
    spoiled = stage.Data(data.images.copy(), data.genes.copy(), data.table, STAGES)
    spoiled.images[200:] *= 50
    spoiled.genes[200:, 7] += np.linspace(0, 1e3, len(spoiled.genes) - 200)
    settings = stage.Settings(n_genes=4, components=3)
    first, second = (stage.Scaler.learn(each, rows, settings) for each in (data, spoiled))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name))
    assert len(first.genes) == 4 and {0, 1} <= set(first.genes)


def test_the_same_seed_gives_the_same_network_and_views_are_for_training_only():
    data = toy(6, 20, views=3)
    settings = stage.Settings(**{**QUICK, "epochs": 3})
    sides = np.arange(80), np.arange(80, 120)
    first, second = (stage.fit(data, *sides, settings, seed=1, name="x") for _ in range(2))
    np.testing.assert_allclose(first.predict(data), second.predict(data), atol=1e-5)
    before = first.predict(data)
    data.images[:, 1:] = 1e6  # the turned copies
    np.testing.assert_array_equal(before, first.predict(data))
    assert list(first.history["epoch"]) == [1, 2, 3]


def test_a_saved_network_gives_the_same_answer(tmp_path):
    import keras

    data = toy(6, 20)
    fitted = stage.fit(data, np.arange(80), np.arange(80, 120), stage.Settings(**{**QUICK, "epochs": 2}), seed=1)
    fitted.save(tmp_path / "net.keras")
    inputs = fitted.scaler.inputs(data, np.arange(120), "combine")
    again = keras.models.load_model(tmp_path / "net.keras", safe_mode=True)
    np.testing.assert_allclose(again.predict(inputs, verbose=0), fitted.predict(data), atol=1e-5)
    fitted.save_inputs(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz", allow_pickle=False) as kept:
        assert tuple(kept["stages"]) == STAGES and kept["gene_axes"].shape == (8, 3)


@pytest.mark.parametrize("how", stage.TRAINABLE)
def test_a_backbone_can_be_frozen_partly_or_fully_trained(how):
    import keras

    class Encoder:
        def backbone(self):
            x = tile = keras.Input((8, 8, 3))
            for number in range(3):
                x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name=f"conv{number}")(x)
            return keras.Model(tile, keras.layers.GlobalAveragePooling2D()(x))

    backbone = stage.trainable(Encoder(), how)
    assert len(backbone.trainable_weights) == {"frozen": 0, "partly": 2, "full": 6}[how]
    data = toy(6, 10)
    tiles = np.random.default_rng(0).random((60, 8, 8, 3), dtype=np.float32)
    data = stage.Data(tiles, data.genes, data.table, STAGES)
    settings = stage.Settings(**{**QUICK, "epochs": 2})
    network = stage.Network(data, settings, backbone=backbone)
    before = [w.numpy().copy() for w in backbone.weights]
    fitted = stage.fit(data, np.arange(40), np.arange(40, 60), settings, seed=0, network=network)
    network.model.set_weights(fitted.weights)
    moved = [not np.array_equal(a, b.numpy()) for a, b in zip(before, backbone.weights)]
    assert any(moved) == (how != "frozen")
    assert fitted.predict(data).shape == (60, 2)
    np.testing.assert_array_equal(fitted.predict(data), fitted.predict(data))  # no augmentation outside training


def sections(text):
    return pd.DataFrame([dict(zip(("section_id", "subject_id", "stage"), row.split())) for row in text.split(",")])


def test_a_stage_with_one_animal_is_named_and_a_hopeless_plan_refused(capsys):
    real = sections("a1 794 p70,a2 794 p70,a3 794 p70,b 652 p100,c 664 p120")
    folds, unit = stage.plan(real)
    said = capsys.readouterr().err
    assert unit == "section" and [test for *_, test in folds] == [["a1"], ["a2"], ["a3"]]
    assert "stage p120 is animal 664 alone" in said and "confounded" in said and "c is the only section of p120" in said
    with pytest.raises(CourseError, match="one section in every stage"):
        stage.plan(sections("a 1 p30,b 2 p70"))
    with pytest.raises(CourseError, match="alone"):
        stage.plan(sections("a 1 p30,b 2 p30"))


def test_bad_input_is_refused():
    data = toy(4, 5)
    with pytest.raises(CourseError, match="same spots"):
        stage.Data(data.images[:-1], data.genes, data.table, STAGES)
    with pytest.raises(CourseError, match="p70"):
        stage.Data(data.images, data.genes, data.table, ("p30",))
    with pytest.raises(CourseError, match="finite"):
        stage.Data(data.images * np.nan, data.genes, data.table, STAGES)
    with pytest.raises(CourseError, match="mode"):
        stage.Settings(mode="genes")
    with pytest.raises(CourseError, match="one stage"):
        stage.fit(data, data.rows(["s0"]), [], stage.Settings(**QUICK), seed=0)


def test_traps_are_what_they_say():
    data = toy(4, 5)
    split = stage.spoil(data, "random_split")
    assert split.table["subject_id"].is_unique and (split.table["stage"] == data.table["stage"]).all()
    leak = stage.spoil(data, "label_leak")
    assert abs(np.corrcoef(leak.genes[:, -1], data.label)[0, 1]) > 0.9
    assert stage.spoil(data, "") is data


def test_scores_agree_with_sklearn():
    from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    p = rng.dirichlet([1, 1, 1], 300) + 0.5 * np.eye(3)[truth]
    p /= p.sum(1, keepdims=True)
    names = ("p30", "p70", "p100")
    table = pd.DataFrame({
        "section_id": [f"s{i // 10}" for i in range(300)], "subject_id": [f"m{i // 20}" for i in range(300)],
        "stage": np.array(names)[truth], "fold": np.arange(300) // 100,
    })
    pooled = scores.pool(pd.DataFrame(p, columns=names), table, "tile")
    assert scores.accuracy(pooled, names) == pytest.approx(accuracy_score(truth, p.argmax(1)))
    for code, name in enumerate(names):
        assert scores.aucs(pooled, names)[name] == pytest.approx(roc_auc_score(truth == code, p[:, code]))
    expected = confusion_matrix(truth, p.argmax(1), normalize="true")
    np.testing.assert_allclose(scores.confusion(pooled, names), expected)
    two = truth < 2
    assert scores.pair_accuracy(pooled, "p30", "p70") == pytest.approx((p[two, :2].argmax(1) == truth[two]).mean())


def test_a_section_is_the_geometric_mean_of_its_tiles_and_untested_tiles_are_left_out():
    p = pd.DataFrame({"p30": [0.9, 0.4, np.nan], "p70": [0.1, 0.6, np.nan]})
    table = pd.DataFrame({"section_id": ["a", "a", "b"], "subject_id": "m", "stage": "p30", "fold": [0, 0, -1]})
    pooled = scores.pool(p, table, "section")
    odds = np.sqrt(0.9 * 0.4) / np.sqrt(0.1 * 0.6)
    assert list(pooled.index) == ["a"] and pooled["n"]["a"] == 2
    assert pooled["p30"]["a"] == pytest.approx(odds / (1 + odds))
    summary = scores.summary(p, table).set_index("level")
    assert summary.loc["tile", "n"] == 2 and summary.loc["tile", "accuracy"] == 0.5
    with pytest.raises(CourseError):
        scores.pool(p, table, "slide")

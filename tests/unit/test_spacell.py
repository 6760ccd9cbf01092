"""Autoencoders trained together, their inputs, k-means and the naming of clusters."""

import numpy as np
import pytest

from helpers import settings, spacell
from helpers.messages import CourseError
from helpers.spacell_batch import LOSSES, losses_of, train_together


@pytest.fixture(scope="module")
def planted():
    """Three groups of spots that genes tell apart, and tiles also."""
    rng = settings.rng(0, "test_spacell")
    group = rng.integers(0, 3, 180)
    genes = np.log1p(rng.poisson(np.exp(rng.normal(0, 1, (3, 60)))[group]))
    tiles = rng.normal(0, 1.5, (3, 24))[group] + rng.normal(size=(180, 24))
    return group, genes[:, np.argsort(-genes.var(0))], tiles


@pytest.fixture(scope="module")
def fits(planted):
    _, genes, tiles = planted
    options = {"scalings": ("minmax",), "losses": LOSSES, "top": 40, "hidden": (32, 16), "epochs": 20, "batch": 32}
    return spacell.fit(genes, tiles, **options)


def test_every_network_learns_more_than_the_mean_predictor(fits):
    assert [(f.kind, f.scaling, f.loss) for f in fits][:2] == [("two", "minmax", "bce"), ("two", "minmax", "mse")]
    assert len(fits) == 4 * 3 and min(fit.learned for fit in fits) > 0.1
    assert {fit.kind: fit.code.shape[1] for fit in fits} == {"two": 40, "joint": 20, "gene": 20, "tile": 20}
    assert all(fit.code.min() == 0 and fit.code.max() == 1 for fit in fits)


def test_planted_groups_are_found_and_shuffled_ones_are_not(fits, planted):
    from sklearn.metrics import adjusted_rand_score

    group = planted[0]
    found = [adjusted_rand_score(group, spacell.cluster(fit.code, 3, n_init=5)) for fit in fits if fit.kind == "two"]
    assert min(found) > 0.9
    shuffled = settings.rng(0, "shuffle").permutation(group)
    assert abs(adjusted_rand_score(shuffled, spacell.cluster(fits[0].code, 3, n_init=5))) < 0.05


def test_a_network_that_cannot_learn_says_so(planted):
    genes = spacell.minmax(settings.rng(0, "noise").random((180, 60)))
    noise = train_together([([genes], "mse")], hidden=(16,), epochs=3, learning_rate=1e-6)
    assert noise[0].learned < 0.02  # starts at the mean predictor and stays there


def test_members_do_not_see_each_other(planted):
    """The same member trained beside others ends where it ends alone, but for its starting weights."""
    _, genes, _ = planted
    scaled = spacell.minmax(genes)
    options = {"hidden": (32, 16), "epochs": 10, "batch": 32}
    alone = train_together([([scaled], "mse")], **options)[0]
    members = [([scaled], "mse"), ([scaled[:, :30]], "kl"), ([scaled[:, ::-1]], "bce")]
    beside = train_together(members, **options)[0]
    assert beside.loss == pytest.approx(alone.loss, rel=0.15) and beside.mean_loss == pytest.approx(alone.mean_loss)


def test_the_same_seed_gives_the_same_codes_and_another_does_not(planted):
    _, genes, _ = planted
    members = [([spacell.minmax(genes)], "bce")]
    one, two, other = (train_together(members, seed=seed, hidden=(16,), epochs=2)[0].code for seed in (1, 1, 2))
    assert np.allclose(one, two, atol=1e-5) and not np.allclose(one, other, atol=1e-3)


def test_losses_agree_with_scipy_and_keras():
    import keras
    from scipy.special import expit, softmax
    from scipy.stats import entropy

    rng = settings.rng(0, "losses")
    y, z = rng.random((30, 12)), rng.normal(0, 2, (30, 12))
    assert losses_of(y, z, "mse") == pytest.approx(((y - expit(z)) ** 2).mean())
    bce = keras.losses.BinaryCrossentropy(from_logits=True)(y, z)
    assert losses_of(y, z, "bce") == pytest.approx(float(bce), rel=1e-5)
    kl = np.mean([entropy(a / a.sum(), softmax(b)) for a, b in zip(y, z)])
    assert losses_of(y, z, "kl") == pytest.approx(kl, rel=1e-3)


def test_glorot_limits_are_those_of_one_member():
    from helpers.spacell_layers import MemberDense

    layer = MemberDense(50)
    layer.build((None, 9, 100))
    kernel = np.asarray(layer.kernel)
    assert kernel.shape == (9, 100, 50) and np.abs(kernel).max() == pytest.approx(np.sqrt(6 / 150), rel=0.01)


def test_a_saved_model_gives_the_same_codes(tmp_path, planted):
    import keras

    kept = []
    scaled = spacell.minmax(planted[1])
    train_together([([scaled], "bce")], hidden=(16,), epochs=1, components=0, model_out=kept)
    kept[0].save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)  # safe mode
    x = (scaled - scaled.mean(0))[:, None].astype(np.float32)
    assert np.allclose(again.predict(x, verbose=0), kept[0].predict(x, verbose=0))


def test_scalings():
    values = np.array([[0, 2, 5], [1, 4, 5], [2, 8, 5]], float)
    assert np.allclose(spacell.minmax(values), [[0, 0, 0], [0.5, 1 / 3, 0], [1, 1, 0]])
    assert np.allclose(spacell.by_one_number(values), values / 8)
    assert spacell.inputs(values, values, "top", top=2)["gene"].shape == (3, 2)
    assert spacell.inputs(values, values, "all", top=2)["gene"].shape == (3, 3)


def test_clusters_are_numbered_by_size_and_named_by_the_rule():
    code = np.r_[np.zeros((5, 2)), np.ones((9, 2)), 5 * np.ones((2, 2))] + settings.rng(0, "c").normal(0, 0.01, (16, 2))
    labels = spacell.cluster(code, 3)
    assert np.bincount(labels)[1:].tolist() == [9, 5, 2]
    meant, means = spacell.named_by(np.r_[np.zeros(5), np.ones(11)], labels)
    assert meant.tolist() == [False] * 5 + [True] * 11 and means == {1: 1.0, 2: 0.0, 3: 1.0}
    assert spacell.named_by([1, 0], np.array(["#f02449", "#00dbeb"], object))[0].tolist() == [True, False]
    score = spacell.nearness(code, labels, meant)
    assert score[meant].min() > score[~meant].max()


def test_bad_input_is_refused(planted):
    _, genes, tiles = planted
    with pytest.raises(CourseError, match="0 to 1"):
        train_together([([genes], "bce")])
    with pytest.raises(CourseError, match="one tile a spot"):
        spacell.fit(genes, tiles[:-1])
    for wrong in ({"kinds": ("both",)}, {"losses": ("mae",)}, {"scalings": ("z",)}):
        with pytest.raises(CourseError):
            spacell.fit(genes, tiles, **wrong)
    with pytest.raises(CourseError, match="1 clusters"):
        spacell.cluster(tiles, 1)
    with pytest.raises(CourseError, match="distinct"):
        spacell.cluster(np.zeros((9, 2)), 2)
    with pytest.raises(CourseError, match="one cluster"):
        spacell.named_by(np.ones(4), np.ones(4, int))


def test_markers_are_found_whatever_their_case():
    import anndata as ad
    import pandas as pd

    table = ad.AnnData(np.array([[0.0, 1], [2, 1], [4, 5]]), var=pd.DataFrame(index=["Epcam", "Penk"]))
    assert np.allclose(spacell.marker_score(table, "EPCAM, KRT8"), [0, 0.5, 1])
    assert np.allclose(spacell.marker_score(table, "A, B | epcam"), [0, 0.5, 1])  # the first group that is there
    with pytest.raises(CourseError, match="none of"):
        spacell.marker_score(table, "KRT8")

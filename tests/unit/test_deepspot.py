"""DeepSpot: bags in, genes out - what must not matter does not, what must does, and everything stays on scale."""

import dataclasses

import numpy as np
import pytest

from helpers import deepspot, deepspot_compare, deepspot_fit
from helpers.messages import CourseError

RNG = np.random.default_rng(0)
N, D, G = 360, 8, 12
EYE = {"name": "eye", "fingerprint": "abc"}


@pytest.fixture(scope="module")
def world():
    """Spots on three square sections, whose genes follow their own tile and, as much, their neighbours."""
    place = np.arange(120)
    xy = np.tile(np.column_stack([place % 12, place // 12]) * 100.0, (3, 1))
    sections = np.repeat(["a_1", "b_1", "b_2"], 120)  # ids with underscores
    near = deepspot.lattice(xy[:120])
    rng = np.random.default_rng(5)
    table = rng.normal(size=(N, D)).astype(np.float32)
    sub = table[:, None] + rng.normal(0, 0.3, (N, 9, D)).astype(np.float32)
    bags = deepspot.bags(table, xy, near, sections=sections, sub=sub)
    around = np.where(bags.mask > 0, table[bags.index, 1], -9).max(1)
    log = 1 + 0.5 * np.outer(table[:, 0], rng.choice([-1, 1], G)) + np.outer(around - 1.4, rng.choice([-1, 1], G))
    y = np.log1p(np.exp(log)).astype(np.float32) + rng.normal(0, 0.05, (N, G)).astype(np.float32)
    genes = [f"G{i}" for i in range(G)]
    return {"bags": bags, "y": np.maximum(y, 0), "sections": sections, "near": near, "genes": genes}


QUICK = {"epochs": 30, "width": 32, "phi_members": 2, "rho_members": 2, "batch": 60, "lr": 3e-3, "rank": 0}


def train(world, rows=slice(None), **options):
    given = {**QUICK, **options}
    return deepspot.fit(world["bags"].take(np.arange(N)[rows]), world["y"][rows], sections=world["sections"][rows],
                        genes=world["genes"], near=world["near"], **given)  # fmt: skip


@pytest.fixture(scope="module")
def model(world):
    return train(world, context="both", rank=4)


# ---------------------------------------------------------------- the network
@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 10])
def test_the_median_is_torchs(members):
    from helpers.deepspot_layers import lower_median

    x = RNG.normal(size=(3, 2, members, 5)).astype(np.float32)
    found = np.asarray(lower_median(x))
    assert np.array_equal(found, np.sort(x, 2)[:, :, (members - 1) // 2])
    assert (members % 2 == 1) == np.allclose(found, np.median(x, 2))  # numpy's is another for even counts


def test_bags_have_no_order_but_the_three_bags_do(model, world):
    bags = world["bags"]
    said = model.predict(bags)
    shuffled = dataclasses.replace(bags, sub=bags.sub[:, RNG.permutation(9)])
    order = RNG.permutation(8)
    shuffled = dataclasses.replace(shuffled, index=bags.index[:, order], mask=bags.mask[:, order])
    assert np.abs(model.predict(shuffled) - said).max() < 1e-5
    mixed = dataclasses.replace(bags, rows=bags.index[:, 4].astype(int))  # a neighbour in place of the spot
    assert np.abs(model.predict(mixed) - said).max() > 0.05


def test_masked_neighbours_count_for_nothing_and_a_lone_spot_is_predicted(model, world):
    bags = world["bags"]
    hidden = bags.mask == 0
    assert hidden.any()
    index = bags.index.copy()
    index[hidden] = 77
    assert np.array_equal(model.predict(dataclasses.replace(bags, index=index)), model.predict(bags))
    lone = dataclasses.replace(bags, mask=np.zeros_like(bags.mask))
    assert np.isfinite(model.predict(lone)).all() and np.abs(model.predict(lone) - model.predict(bags)).max() > 0.01
    padded = dataclasses.replace(model, legacy_padding=True)  # zeros that take part in the maximum
    assert np.abs(padded.predict(bags) - model.predict(bags))[hidden.any(1)].max() > 1e-4
    assert np.allclose(padded.predict(bags)[~hidden.any(1)], model.predict(bags)[~hidden.any(1)], atol=1e-5)


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
def test_pools_are_what_their_names_say(pool):
    from helpers.deepspot_layers import Bag

    z, mask = RNG.uniform(0, 1, (5, 6, 3)).astype(np.float32), np.array([[1, 0, 1]] * 4 + [[0, 0, 0]], np.float32)
    out = np.asarray(Bag(2, 3, pool)([z, mask]))
    kept = z[:4, 3:][:, [0, 2]]
    around = {"max": kept.max(1), "mean": kept.mean(1), "sum": kept.sum(1)}[pool]
    assert np.allclose(out[:4], np.concatenate([z[:4, 0], z[:4, 1:3].sum(1), around], 1), atol=1e-6)
    assert (out[4, 6:] == 0).all()


def test_many_heads_are_one(model, world):
    small = model.collapsed()
    assert np.abs(small.predict(world["bags"]) - model.predict(world["bags"])).max() < 1e-5
    assert small.network.count_params() < model.network.count_params()


def test_dropout_under_the_median_puts_inference_off_scale(world):
    import keras

    def ratio(**options):
        options = {**deepspot_fit.DEFAULTS, "sub": 0, "neighbours": 0, "seed": 1, "width": 64, "phi_members": 10,
                   "context": "spot", "rank": 0, **options}  # fmt: skip
        net = deepspot_fit.network_of(options, D, G)
        phi = keras.Model(net.inputs, net.get_layer("phi").output)
        x = [world["bags"].table[:, None], np.zeros((N, 0), np.float32)]
        drawn = np.mean([np.asarray(phi(x, training=True)) for _ in range(10)], 0)
        return np.asarray(phi(x, training=False)).mean() / drawn.mean()

    assert ratio(phi_dropout=0.3) > 1.3  # as published
    assert ratio(phi_dropout=0.3, median="mean") == pytest.approx(1, abs=0.03)
    assert ratio() == pytest.approx(1, abs=1e-5)  # ours


# ---------------------------------------------------------------- losses
def test_losses_mean_what_their_names_say():
    from helpers.deepspot_layers import LOSSES, loss

    y, said = np.random.default_rng(5).normal(1, 1, (2, 30, 4)).astype(np.float32)  # r is no cosine here
    mean, scale, w = np.full(4, 2.0, np.float32), np.full(4, 0.5, np.float32), np.ones(30, np.float32)
    off = said - y
    r = np.mean([1 - np.corrcoef(y[:, g], said[:, g])[0, 1] for g in range(4)])
    cosine = np.mean(1 - (y * said).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(said, axis=1))
    expected = {"mse": (off**2).mean(), "l1": np.abs(off).mean(), "pearson": r, "cosine": cosine,
                "huber": np.where(np.abs(off) < 1, off**2 / 2, np.abs(off) - 0.5).mean()}  # fmt: skip
    got = {name: float(loss(name)(y, said, w, mean, scale)) for name in LOSSES}
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    both = float(loss("mse+pearson")(y, said, w, mean, scale))
    assert both == pytest.approx(got["mse"] + got["pearson"], abs=1e-5) and abs(got["pearson"] - got["cosine"]) > 0.01
    assert float(loss("pearson")(y, 3 * said + 1, w, mean, scale)) == pytest.approx(r, abs=1e-4)
    half = np.repeat([1, 0], 15).astype(np.float32) + 1e-9
    assert float(loss("mse")(y, said, half, mean, scale)) == pytest.approx((off[:15] ** 2).mean(), rel=1e-3)


def test_poisson_is_least_at_the_truth_and_never_takes_the_logarithm_of_nothing():
    from helpers.deepspot_layers import loss

    counts = np.array([[1.0, 4.0, 20.0]])
    mean, scale = np.float32([1.0, 1.5, 2.0]), np.float32([0.5, 1.0, 0.7])
    y = ((np.log1p(counts) - mean) / scale).astype(np.float32)
    weight = np.ones(1, np.float32)
    of = lambda said: float(loss("poisson")(y, said.astype(np.float32), weight, mean, scale))  # noqa: E731
    assert of(y) == pytest.approx((counts - counts * np.log(counts)).mean(), abs=0.06)
    assert of(y) < min(of(y + 0.3), of(y - 0.3))
    assert np.isfinite([of(y - 50), of(y + 50)]).all()


# ---------------------------------------------------------------- target and scale
def test_expression_uses_the_total_over_all_genes():
    counts = np.array([[1.0, 3.0], [0.0, 10.0]])
    assert np.allclose(deepspot.expression(counts, [100, 20]), np.log1p([[100, 300], [0, 5000]]))
    for wrong in ([100, 0], [100], [100, np.nan]):
        with pytest.raises(CourseError):
            deepspot.expression(counts, wrong)
    with pytest.raises(CourseError):
        deepspot.expression(-counts, [1, 1])


def test_scaling_is_undone_once_and_negatives_are_clipped_after_it(model, world):
    raw, said = model.predict(world["bags"], scaled=True), model.predict(world["bags"], clip=False)
    assert np.allclose(said, raw * model.scaler.scale + model.scaler.mean, atol=1e-5)
    assert abs(said.mean() - world["y"].mean()) < 0.1 < abs(model.scaler.undo(said).mean() - world["y"].mean())
    assert np.array_equal(model.predict(world["bags"]), np.maximum(said, 0))


@pytest.mark.parametrize("how", ["standard", "robust", "none"])
def test_scalers_and_a_gene_that_never_varies(how):
    y = np.column_stack([RNG.normal(3, 2, 101), np.full(101, 5.0)])
    scaler = deepspot.Scaler.fit(y, how)
    low, middle, high = np.percentile(y[:, 0], (25, 50, 75))
    mean, scale = {"standard": (y[:, 0].mean(), y[:, 0].std()), "robust": (middle, high - low), "none": (0, 1)}[how]
    assert scaler.mean[0] == pytest.approx(mean) and scaler.scale.tolist() == pytest.approx([scale, 1.0])
    assert np.allclose(scaler.undo(scaler.apply(y)), y, atol=1e-5)
    with pytest.raises(CourseError):
        deepspot.Scaler.fit(y, "minmax")


def test_the_slope_sees_what_correlation_does_not():
    said = RNG.normal(size=(200, 3))
    assert deepspot.slope(2 * said + 1, said) == pytest.approx([2, 2, 2])
    assert deepspot.slope(said, 2 * said) == pytest.approx([0.5] * 3) and np.isnan(deepspot.slope(said, said * 0)).all()


# ---------------------------------------------------------------- training
def r_of(model, world, rows):
    said = model.predict(world["bags"].take(np.flatnonzero(rows)))
    return np.mean([np.corrcoef(world["y"][rows, g], said[:, g])[0, 1] for g in range(G)])


def test_neighbours_help_where_they_matter(world):
    held = world["sections"] == "a_1"
    spot, around = (r_of(train(world, ~held, context=context), world, held) for context in ("spot", "neighbours"))
    assert spot > 0.2 and around > spot + 0.04


def test_the_same_seed_gives_the_same_model_and_another_seed_another(world):
    one, two, other = (train(world, context="spot", epochs=2, seed=seed).predict(world["bags"]) for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.allclose(one, other)


def test_training_stops_on_sections_it_does_not_learn_from(world):
    alone = train(world, context="spot", stop_on=["a_1"], refit=False, epochs=6, patience=2)
    assert alone.facts["train_sections"] == ["b_1", "b_2"] and 1 <= alone.facts["epochs"] <= 6
    assert alone.facts["epochs"] == int(np.argmax(alone.facts["history"])) + 1
    changed = dict(world, y=np.where((world["sections"] == "a_1")[:, None], world["y"] * 3, world["y"]))
    assert np.array_equal(train(changed, context="spot", stop_on=["a_1"], refit=False, epochs=1).scaler.mean,
                          train(world, context="spot", stop_on=["a_1"], refit=False, epochs=1).scaler.mean)  # fmt: skip
    assert train(world, context="spot", stop_on=["a_1"], epochs=2).facts["train_sections"] == ["a_1", "b_1", "b_2"]


def test_a_zero_is_an_option_and_not_a_missing_one(world):
    options = deepspot_fit._options("published", {"phi_dropout": 0.0, "out_dropout": 0.0})
    assert options["phi_dropout"] == options["out_dropout"] == 0.0 and options["width"] == 512
    assert deepspot_fit._options("deepcell", {})["width"] == 1024


@pytest.mark.parametrize("loss", ["poisson", "mse+cosine", "pearson", "huber"])
def test_every_loss_learns(world, loss):
    model = train(world, context="spot", loss=loss, epochs=12)
    assert r_of(model, world, np.ones(N, bool)) > 0.2


def test_bad_input_is_refused(world):
    bags, y = world["bags"], world["y"]
    given = {"sections": world["sections"], "genes": world["genes"], "near": world["near"]}
    no_sub = dataclasses.replace(bags, sub=None)
    for wrong in (
        lambda: deepspot.fit(bags, y[:, :-1], **given), lambda: deepspot.fit(bags, y * np.nan, **given),
        lambda: deepspot.fit(no_sub, y, **given), lambda: deepspot.fit(bags, y, **given, kontext="spot"),
        lambda: deepspot.fit(bags, y, **given, loss="mse+bce"), lambda: deepspot.fit(bags, y, **given, stop_on=["zz"]),
        lambda: deepspot.fit(bags, y, **given, stop_on=["a_1", "b_1", "b_2"]),
        lambda: deepspot.fit(bags, y, **{**given, "genes": ["G0"] * G}),
        lambda: deepspot.fit(bags, y, **given, weights=np.zeros(N)),
    ):  # fmt: skip
        with pytest.raises(CourseError):
            wrong()


# ---------------------------------------------------------------- files
def test_a_saved_model_predicts_the_same_and_refuses_what_does_not_fit(model, world, tmp_path):
    file = deepspot.save(model, tmp_path / "m.npz", encoder=EYE, tile_um=55.0)
    near = world["near"]
    again = deepspot.load(file, encoder=EYE, tile_um=55.1, genes=world["genes"], near=near)
    assert np.array_equal(again.predict(world["bags"]), model.predict(world["bags"])) and again.near == near
    assert again.facts["encoder"] == EYE and again.facts["train_sections"] == ["a_1", "b_1", "b_2"]
    for wrong in (
        {"encoder": {**EYE, "fingerprint": "xyz"}}, {"tile_um": 100.0}, {"genes": world["genes"][::-1]},
        {"genes": world["genes"][:-1]}, {"genes": [*world["genes"][:-1], "OTHER"]},
        {"near": deepspot.Neighbourhood("nearest", 8)},
    ):  # fmt: skip
        with pytest.raises(CourseError):
            deepspot.load(file, **wrong)
    with pytest.raises(CourseError):
        deepspot.save(model, tmp_path / "m.pkl", encoder=EYE, tile_um=55.0)
    with pytest.raises(CourseError):  # an encoder of other length
        bags = world["bags"]
        again.predict(dataclasses.replace(bags, table=bags.table[:, :-1], sub=bags.sub[..., :-1]))
    few = deepspot.bags(world["bags"].table, np.tile(np.arange(N)[:, None], 2), deepspot.Neighbourhood("nearest", 3),
                        sub=world["bags"].sub)  # fmt: skip
    with pytest.raises(CourseError, match="neighbours"):
        again.predict(few)
    raw = file.read_bytes()
    for name, content in (("cut.npz", raw[: len(raw) // 2]), ("text.npz", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CourseError):
            deepspot.load(tmp_path / name)


# ---------------------------------------------------------------- comparison
def test_the_ablation_has_a_row_a_model_and_fold(world):
    bags, rows = world["bags"], {"a": ["a_1"], "b": ["b_1", "b_2"]}
    score = lambda y, said, out: float(np.corrcoef(y.ravel(), said.ravel())[0, 1])  # noqa: E731
    seen = []

    def mean(rows, out):
        seen.append((rows.sum(), out.sum()))
        return np.tile(world["y"][rows].mean(0), (out.sum(), 1))

    table = deepspot_compare.ablation(bags, world["y"], sections=world["sections"], folds=rows, genes=world["genes"],
                                      near=world["near"], score=score, contexts=("spot", "neighbours"),
                                      others={"mean": mean}, **{**QUICK, "epochs": 3})  # fmt: skip
    assert list(table["row"]) == ["spot", "neighbours", "mean"] * 2 and seen == [(240, 120), (120, 240)]
    summary = deepspot_compare.summary(table)
    assert summary.loc["spot", "gain"] == 0 and summary.loc["neighbours", "worst"] <= summary.loc["neighbours", "gain"]
    with pytest.raises(CourseError):
        given = {"sections": world["sections"], "genes": world["genes"], "score": score}
        deepspot_compare.ablation(bags, world["y"], folds={"x": ["no"]}, **given)


def test_pooled_neighbours_repeat_a_lone_spot(world):
    bags = world["bags"]
    lone = dataclasses.replace(bags, mask=np.where(np.arange(N)[:, None] == 5, 0, bags.mask).astype(np.float32))
    for how in ("mean", "max"):
        found = deepspot_compare.pooled(lone, how=how)
        assert np.array_equal(found[5, :D], found[5, D:])
        there = bags.table[bags.index[40][bags.mask[40] > 0]]
        assert np.allclose(found[40, D:], getattr(np, how)(there, 0), atol=1e-6)


def test_free_sub_spots_are_squares_of_the_map():
    from helpers import encoders

    plain = encoders.get("tiny")
    eye = deepspot.free_sub(plain)
    tile = np.full((1, eye.input_px, eye.input_px, 3), 220, np.uint8)
    changed = tile.copy()
    third = eye.input_px // 3
    changed[:, :third, -third:] = RNG.integers(0, 255, (third, third, 3))  # the top right of nine
    before, after = (eye.embed(each).reshape(9, -1) for each in (tile, changed))
    moved = np.abs(after - before).mean(1)
    assert moved.argmax() == 2 and moved[2] > 3 * moved[[3, 6, 7]].max()
    assert np.allclose(before.mean(0), plain.embed(tile)[0], atol=0.05 * np.abs(before).mean())
    assert eye.dim == 9 * plain.dim and eye.fingerprint != plain.fingerprint
    with pytest.raises(CourseError):
        deepspot.free_sub(encoders.get("tiny", layers="auto"))

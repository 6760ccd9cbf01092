"""DeepSpot2Cell: what its bags mean, why rates are added up, deconvolution, saving, and what is refused."""

import functools
import io
import pickle

import numpy as np
import pytest

from helpers import deepspot2cell as cells2
from helpers import deepspot2cell_scores as scores
from helpers import pseudospots_patches as patches
from helpers.messages import CourseError

GENES = [f"g{i}" for i in range(30)]
SIDE = 1600.0


@functools.lru_cache(maxsize=None)
def tissue(seed=0, n=6000, dim=8):
    """Cells of four types with a state, whose embeddings show both; counts; patches of about five cells."""
    stream = np.random.default_rng(seed)
    xy, kind, state = stream.uniform(0, SIDE, (n, 2)), stream.integers(0, 4, n), stream.normal(size=n)
    looks = stream.normal(size=(4, dim)) * 1.5
    x = looks[kind] + state[:, None] * stream.normal(size=dim) + stream.normal(size=(n, dim)) * 0.2
    rate = np.exp(stream.normal(size=(4, 30))[kind] + 0.4 * state[:, None] * stream.normal(size=30))
    rate = rate / rate.sum(1, keepdims=True) * 80
    made = patches.build(xy, um_per_unit=1.0, extent=(SIDE, SIDE), inside_um=0.5)
    context = np.zeros((len(made.xy), dim))
    np.add.at(context, made.patch[made.patch >= 0], x[made.patch >= 0])
    given = cells2.bags(x, context / 14, patch=made.patch, neighbours=made.neighbours, index=made.index())
    return given, made, rate, stream.poisson(rate)


@functools.lru_cache(maxsize=None)
def taught(kind):
    given, made, _, counts = tissue()
    options = {"epochs": 30, "components": 8, "width": 24, "hidden": 48, "dropout": 0.1}
    return cells2.fit(given, made.sums(counts), genes=GENES, kind=kind, **options)


def outside():
    _, made, _, _ = tissue()
    return (made.patch >= 0) & ~made.inside


def test_a_lone_cell_is_on_scale_with_rates_and_not_with_sums():
    given, _, rate, _ = tissue()
    true, out = patches.log_cp10k(rate), outside()
    slopes, totals = {}, {}
    for kind in ("rates", "sum"):
        model = taught(kind)
        said = model.predict(given)
        log = model.composition(said) if kind == "rates" else said
        slopes[kind] = scores.lone(np.expm1(log[out]), np.expm1(true[out]), genes=slice(None))[2]
        totals[kind] = np.median(np.expm1(log[out]).sum(1)) / 1e4
        assert scores.pearson(model.composition(said)[out], true[out]).mean() > 0.5, "correlation hides it"
    assert abs(slopes["rates"] - 1) < 0.25 < abs(slopes["sum"] - 1)
    assert abs(totals["rates"] - 1) < 0.01 and abs(totals["sum"] - 1) > 0.2


def test_rates_are_counts_and_cells_add_up_to_their_spot():
    given, made, rate, counts = tissue()
    model = taught("rates")
    said = model.predict(given)
    summed = scores.summed(said, made.patch, made.inside, len(made.xy))
    np.testing.assert_allclose(summed, model.predict_spots(given), rtol=1e-3, atol=1e-3)
    assert scores.consistency(summed, made.sums(counts)) == pytest.approx(1, abs=0.1)
    loose = taught("sum")
    parts = scores.summed(np.expm1(loose.predict(given)), made.patch, made.inside, len(made.xy))
    some = made.n_inside > 0
    assert abs(scores.consistency(parts[some], np.expm1(loose.predict_spots(given))[some]) - 1) > 0.2


@pytest.mark.parametrize("kind, invariant", [("rates", True), ("sum", True), ("mean", True), ("gru", False)])
def test_the_order_of_cells_means_nothing_except_to_the_gru(kind, invariant):
    given, *_ = tissue()
    small = cells2.bags(given.cells, given.context, patch=given.patch, neighbours=given.neighbours, index=given.index)
    turned = given.index[:, ::-1]
    order = np.argsort(turned < 0, axis=1, kind="stable")  # members first, in the opposite order
    other = cells2.bags(given.cells, given.context, patch=given.patch, neighbours=given.neighbours,
                        index=np.take_along_axis(turned, order, 1))  # fmt: skip
    made = tissue()[1]
    model = cells2.fit(given, made.sums(tissue()[3]), genes=GENES, kind=kind, epochs=1, width=8, hidden=16)
    rows = np.flatnonzero(made.n_inside > 2)[:50]
    gap = np.abs(model.predict_spots(small, rows) - model.predict_spots(other, rows)).max()
    assert (gap < 1e-3) == invariant, gap


def test_padding_and_missing_neighbours_are_masked():
    given, made, *_ = tissue()
    model, rows = taught("rates"), np.flatnonzero(made.n_inside > 0)[:40]
    wide = np.pad(given.index, ((0, 0), (0, 5)), constant_values=-1)
    padded = cells2.Bags(given.cells, given.context, given.patch, given.neighbours, wide)
    np.testing.assert_allclose(model.predict_spots(padded, rows), model.predict_spots(given, rows), rtol=2e-4)
    lone = cells2.Bags(given.cells, given.context, given.patch, np.full_like(given.neighbours, -1), given.index)
    said = model.predict_spots(lone, rows)
    shuffled = cells2.Bags(given.cells, given.context[::-1].copy(), given.patch, lone.neighbours, given.index)
    shuffled.context[given.patch.clip(0)] = given.context[given.patch.clip(0)]  # the own patch stays
    np.testing.assert_allclose(model.predict_spots(shuffled, rows), said, rtol=1e-4)
    assert np.abs(said - model.predict_spots(given, rows)).max() > 1e-3, "neighbours are looked at where there are some"


def test_without_context_the_patch_is_not_seen():
    given, made, _, counts = tissue()
    model = cells2.fit(given, made.sums(counts), genes=GENES, use_context=False, epochs=1, width=8, hidden=16)
    other = cells2.Bags(given.cells, given.context * 0 + 3, given.patch, given.neighbours, given.index)
    assert np.array_equal(model.predict(given, range(30)), model.predict(other, range(30)))


def test_the_same_seed_gives_the_same_model_and_another_does_not():
    given, made, _, counts = tissue()
    sums = made.sums(counts)
    one, same, other = (cells2.fit(given, sums, genes=GENES, epochs=1, width=8, hidden=16, seed=s) for s in (0, 0, 1))
    said = [model.predict(given, range(20)) for model in (one, same, other)]
    np.testing.assert_allclose(said[0], said[1], rtol=1e-5)
    assert np.abs(said[0] - said[2]).max() > 1e-3


def test_deconvolution_is_the_posterior_mean_and_shares_counts_out():
    rates = np.array([[2.0, 1.0], [6.0, 1.0], [3.0, 3.0], [1.0, 1.0]])
    counts, patch, inside = np.array([[16, 0], [0, 0]]), np.array([0, 0, 0, -1]), np.array([1, 1, 0, 0], bool)
    exact = cells2.deconvolve(rates, counts, patch=patch, inside=inside, size=0)
    assert np.allclose(exact[:2].sum(0), [16, 0]) and np.allclose(exact[0], [4, 0])
    soft = cells2.deconvolve(rates, counts, patch=patch, inside=inside, size=8)
    assert np.allclose(soft[0], rates[0] * [(8 + 16) / (8 + 8), 8 / (8 + 2)])
    assert np.allclose(soft[3], rates[3]), "a cell without a patch keeps its rates"
    given, made, rate, seen = tissue()
    sums = np.stack([made.sums(seen)[:, g] for g in range(30)], 1)
    flat = np.full_like(rate, rate.mean())
    better = cells2.deconvolve(flat, sums, patch=made.patch, inside=made.inside)
    error = [np.square(values - rate)[made.inside].mean() for values in (flat, better)]
    assert error[1] < error[0]


def test_a_model_is_saved_and_a_mismatch_refused(tmp_path):
    given, *_ = tissue()
    model, encoder = taught("rates"), {"name": "tiny", "fingerprint": "abc"}
    path = cells2.save(model, tmp_path / "model.npz", encoder=encoder, tile_um=77)
    again = cells2.load(path, encoder=encoder, tile_um=77.0, genes=GENES)
    np.testing.assert_allclose(again.predict(given, range(50)), model.predict(given, range(50)), rtol=1e-5)
    assert cells2.read_facts(path)["facts"]["encoder"] == encoder and again.facts["tile_um"] == 77
    for change, word in (({"encoder": {"name": "uni", "fingerprint": "x"}}, "embeddings of uni"),
                         ({"tile_um": 55.0}, "patches of 55"), ({"genes": GENES[::-1]}, "another order"),
                         ({"genes": GENES[:3]}, "other genes")):  # fmt: skip
        with pytest.raises(CourseError, match=word):
            cells2.load(path, **change)


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickles_are_never_opened(tmp_path):
    trace = tmp_path / "ran"
    for name in ("weights.pt", "weights.pkl", "weights.ckpt", "weights.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(trace)))
        with pytest.raises(CourseError, match=r"\.npz"):
            cells2.load(tmp_path / name)
    packed = io.BytesIO()
    np.savez(packed, facts=np.array([Payload(trace)], object))
    (tmp_path / "objects.npz").write_bytes(packed.getvalue())
    with pytest.raises(CourseError, match="no plain arrays"):
        cells2.load(tmp_path / "objects.npz")
    assert not trace.exists()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(CourseError, match="without a description"):
        cells2.load(tmp_path / "other.npz")


def test_spots_without_cells_or_counts_do_not_teach_and_bad_input_is_refused():
    given, made, _, counts = tissue()
    sums = made.sums(counts).copy()
    sums[np.flatnonzero(made.n_inside)[:10]] = 0
    model = cells2.fit(given, sums, genes=GENES, epochs=1, width=8, hidden=8)
    assert model.facts["spots"] == (made.n_inside > 0).sum() - 10
    wrong = [{"kind": "max"}, {"counts": sums * 0}, {"counts": sums[:, :5]}, {"counts": -sums}]
    for change, word in zip(wrong, ("kind", "0 spots", "genes", "below 0")):
        options = {"counts": sums, "kind": "rates", **change}
        with pytest.raises(CourseError, match=word):
            cells2.fit(given, options["counts"], genes=GENES, kind=options["kind"])
    parts = {"patch": given.patch, "neighbours": given.neighbours, "index": given.index}
    for change, word in (({"patch": given.patch[:5]}, "patch"), ({"index": given.index + 10**6}, "beyond")):
        with pytest.raises(CourseError, match=word):
            cells2.bags(given.cells, given.context, **{**parts, **change})
    with pytest.raises(CourseError, match="not finite"):
        cells2.bags(np.full_like(given.cells, np.nan), given.context, **parts)
    with pytest.raises(CourseError, match="numbers a row"):
        taught("rates").predict(cells2.bags(given.cells[:, :5], given.context, **parts), [0])


def test_the_papers_baseline_takes_tiles_for_cells():
    given, *_ = tissue()
    flat = cells2.patches_as_cells(given)
    assert flat.cells.shape == given.context.shape and flat.index[:3].tolist() == [[0], [1], [2]]
    assert flat.patch.tolist() == list(range(len(given.context)))

"""STimage: one dense head against one head a gene, members trained together against one after the other, own
steps against ``Model.fit``, and baselines that share their decompositions against each by itself."""

from __future__ import annotations

import time

import numpy as np

FEATURES, TILES, GENES, BATCH = 512, 256, 300, 64
SPOTS, PANEL, MEMBERS = 1000, 1500, 5


def _first_epoch(shared: bool) -> float:
    """Return seconds from nothing to the end of the first epoch: build, compile, one pass; as published, or one head.

    As published: for each gene a Dense(2), a softplus and a sigmoid, and a negative-binomial loss on log-gammas. The
    one head has as many numbers and the same law, written on logits.
    """
    import keras
    import tensorflow as tf
    from keras import ops

    from helpers import settings
    from helpers.stimage_layers import NegativeBinomial, Steps, build, descend

    rng = settings.rng(0, "bench_stimage", "heads")
    x = rng.normal(size=(TILES, FEATURES)).astype(np.float32)
    y = rng.poisson(1, (TILES, GENES)).astype(np.float32)
    began = time.perf_counter()
    if shared:
        model = build(
            features=FEATURES, genes=GENES, members=1, rank=0, activation="linear", components=0, sections=1,
            dispersion="spot", l2=(0.0, 0.0), seed=0,
        )  # fmt: skip
        one, zero = np.ones((TILES, 1), np.float32), np.zeros((TILES, 1), np.float32)
        batches = Steps(x, zero, zero, y, one, batch=BATCH, steps=TILES // BATCH, rng=rng)
        descend(model, NegativeBinomial(), batches, learning_rate=1e-4)
        return time.perf_counter() - began

    def loss(target, out):
        r, p = out[:, :1], out[:, 1:]
        gammas = tf.math.lgamma(target + r) - tf.math.lgamma(r) - tf.math.lgamma(target + 1)
        return -ops.mean(gammas + r * ops.log(1 - p + 1e-7) + target * ops.log(p + 1e-7))

    entry, heads = keras.Input((FEATURES,)), []
    for gene in range(GENES):
        pair = keras.layers.Dense(2)(entry)
        r, p = keras.layers.Activation("softplus")(pair[:, :1]), keras.layers.Activation("sigmoid")(pair[:, 1:])
        heads.append(keras.layers.Concatenate(name=f"gene_{gene}")([r, p]))
    model = keras.Model(entry, heads)
    model.compile(keras.optimizers.Adam(1e-4), loss=[loss] * GENES)
    model.fit(x, [y[:, gene : gene + 1] for gene in range(GENES)], batch_size=BATCH, epochs=1, verbose=0)
    return time.perf_counter() - began


def _steps(by_hand: bool) -> float:
    """Return seconds of a hundred steps of five members on 200 genes, compilation included."""
    import keras

    from helpers import settings
    from helpers.stimage_layers import NegativeBinomial, Steps, build, descend

    rng = settings.rng(0, "bench_stimage", "steps")
    x, y = rng.normal(size=(SPOTS, FEATURES)).astype(np.float32), rng.poisson(1, (SPOTS, 200)).astype(np.float32)
    model = build(
        features=FEATURES, genes=200, members=MEMBERS, rank=8, activation="relu", components=0, sections=1,
        dispersion="gene", l2=(1e-4, 1e-4), seed=0,
    )  # fmt: skip
    zero, one, loss = np.zeros((SPOTS, 1), np.float32), np.ones((SPOTS, MEMBERS), np.float32), NegativeBinomial([0.0])
    batches = Steps(x, zero, zero, y, one, batch=512, steps=100, rng=rng)
    began = time.perf_counter()
    if by_hand:
        descend(model, loss, batches, learning_rate=0.01)
    else:
        model.compile(keras.optimizers.Adam(0.01), loss=loss)
        model.fit(((tuple(given), y, weight) for given, y, weight in batches), steps_per_epoch=100, verbose=0)
    return time.perf_counter() - began


def _baselines():
    """Return seconds of all baselines in one call, and of the three linear ones by themselves besides the others."""
    from helpers import settings, stimage_baselines

    rng = settings.rng(0, "bench_stimage", "baselines")
    x, y = rng.normal(size=(2 * SPOTS, FEATURES)), rng.normal(size=(2 * SPOTS, GENES))
    given = x[:SPOTS], y[:SPOTS], np.repeat(list("abcd"), SPOTS // 4), x[SPOTS:]
    stimage_baselines.every(*given)
    began = time.perf_counter()
    stimage_baselines.every(*given)
    together = time.perf_counter() - began
    began = time.perf_counter()
    for one in ("shuffled", "ridge", "neighbours", "st_net_head"):
        getattr(stimage_baselines, one)(*given)
    return together, time.perf_counter() - began


def _together_and_apart():
    """Return seconds of a whole fit (sizes too), of its members' training alone, and of as many fits of one member."""
    from helpers import settings, stimage

    rng = settings.rng(0, "bench_stimage", "members")
    x = rng.normal(size=(SPOTS, FEATURES)).astype(np.float32)
    counts = rng.poisson(np.exp(rng.normal(-0.5, 1, PANEL) + 0.2 * x[:, :1]))
    given = {
        "library": counts.sum(1) + 1.0, "sections": np.repeat(list("abcd"), SPOTS // 4), "library_kernel": None,
        "genes": [f"g{i}" for i in range(PANEL)],
    }  # fmt: skip
    began = time.perf_counter()
    sizes = stimage.fit(x, counts, members=MEMBERS, **given).r
    whole = time.perf_counter() - began
    began = time.perf_counter()
    stimage.fit(x, counts, members=MEMBERS, r=sizes, **given)
    together = time.perf_counter() - began
    began = time.perf_counter()
    for seed in range(MEMBERS):
        stimage.fit(x, counts, members=1, r=sizes, seed=seed, **given)
    return whole, together, time.perf_counter() - began


def run() -> list[dict]:
    """Time both pairs, and report the whole fit beside its target of 60 s."""
    import keras

    keras.Sequential([keras.layers.Dense(2)]).predict(np.ones((2, 2)), verbose=0)  # TensorFlow starts before the clock
    one, many = _first_epoch(True), _first_epoch(False)
    whole, together, apart = _together_and_apart()
    ours, fitted = _steps(True), _steps(False)
    shared, alone = _baselines()
    size = f"{PANEL} genes, {SPOTS} spots"
    return [
        {"name": f"end of the first epoch, {GENES} genes", "ours": one, "other": many, "ratio": many / one, "unit": "s",
         "note": f"other: one head and one loss a gene; {TILES} spots, {FEATURES} features"},
        {"name": f"{MEMBERS} members, {size}", "ours": together, "other": apart, "ratio": apart / together, "unit": "s",
         "note": f"other: {MEMBERS} fits of one member; sizes given"},
        {"name": f"whole fit, {MEMBERS} members, {size}", "ours": whole, "other": 60.0, "ratio": 60.0 / whole,
         "unit": "s", "note": "other: the target; with sizes from 4 inner folds"},
        {"name": f"100 steps, {MEMBERS} members, 200 genes", "ours": ours, "other": fitted, "ratio": fitted / ours,
         "unit": "s", "note": "other: Model.fit on the same batches"},
        {"name": f"all baselines, {GENES} genes, {SPOTS} spots", "ours": shared, "other": alone,
         "ratio": alone / shared, "unit": "s", "note": "other: each baseline by itself"},
    ]  # fmt: skip

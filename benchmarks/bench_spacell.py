"""SpaCell's 36-model comparison: the networks trained together, against each with its own Keras ``fit``."""

from __future__ import annotations

import time

import numpy as np

SPOTS, GENES, TILE, EPOCHS, HIDDEN, LATENT, BATCH = 600, 800, 192, 15, (128, 64), 20, 64


def _views():
    """Log counts and tile features of four planted groups."""
    from helpers import settings

    rng = settings.rng(0, "bench_spacell")
    group = rng.integers(0, 4, SPOTS)
    genes = np.log1p(rng.poisson(np.exp(rng.normal(-1, 1, (4, GENES)))[group])).astype(np.float32)
    tiles = rng.normal(0, 1, (4, TILE))[group] + rng.normal(size=(SPOTS, TILE))
    return genes[:, np.argsort(-genes.var(0))], tiles.astype(np.float32)


def _plain(blocks, loss):
    """Train one autoencoder as one would by hand; return its code."""
    import keras

    shares = [keras.Input((block.shape[1],)) for block in blocks]
    streams = []
    for x in shares:
        for units in HIDDEN if len(blocks) == 1 else HIDDEN[:1]:
            x = keras.layers.Dense(units, "relu")(x)
        streams.append(x)
    code = keras.layers.Dense(LATENT)(streams[0] if len(streams) == 1 else keras.layers.Concatenate()(streams))
    x = code
    for units in HIDDEN[::-1] if len(blocks) == 1 else HIDDEN[:1]:
        x = keras.layers.Dense(units, "relu")(x)
    model = keras.Model(shares, [keras.layers.Dense(block.shape[1], "sigmoid")(x) for block in blocks])
    kind = {"bce": "binary_crossentropy", "mse": "mse", "kl": "kl_divergence"}[loss]
    model.compile(keras.optimizers.Adam(2e-3), loss=[kind] * len(blocks))
    model.fit(blocks, blocks, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return keras.Model(shares, code).predict(blocks, verbose=0)


def run() -> list[dict]:
    """Time both; the 36 models need 27 networks, because ``two`` takes the codes of ``gene`` and ``tile``."""
    import keras

    from helpers import spacell

    genes, tiles = _views()
    keras.Sequential([keras.layers.Dense(2)]).predict(np.ones((2, 2)), verbose=0)  # TensorFlow starts before the clock
    began = time.perf_counter()
    options = {"epochs": EPOCHS, "hidden": HIDDEN, "batch": BATCH}
    fits = spacell.fit(genes, tiles, scalings=spacell.SCALINGS, losses=spacell.LOSSES, top=400, **options)
    ours = time.perf_counter() - began
    began, trained = time.perf_counter(), 0
    for scaling in spacell.SCALINGS:
        views = spacell.inputs(genes, tiles, scaling, top=400)
        for loss in spacell.LOSSES:
            for blocks in ([views["gene"]], [views["tile"]], [views["gene"], views["tile"]]):
                _plain(blocks, loss)
                trained += 1
    other = time.perf_counter() - began
    return [{
        "name": f"{len(fits)} models of SpaCell's comparison, {SPOTS} spots", "ours": ours, "other": other,
        "ratio": other / ours, "unit": "s", "note": f"other: {trained} networks, one Keras fit after the other",
    }]  # fmt: skip

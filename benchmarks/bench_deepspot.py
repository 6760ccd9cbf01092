"""DeepSpot: ten networks as one product against ten in a loop, and neighbours by a tree against all pairs."""

from __future__ import annotations

import time

import numpy as np

MEMBERS, WIDTH, D, SPOTS, TILES = 10, 128, 192, 256, 16
POINTS, FEW = 100_000, 6_000


def _clock(function, times):
    """Return the median CPU time of some calls, and the last result."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        result = function()
        spent.append(time.process_time() - began)
    return float(np.median(spent)), result


def _ensembles(rng):
    """Return one row: inference of 10 phi x 10 rho, batched (heads collapsed) and looped; outputs must agree."""
    from helpers import deepspot_fit

    options = {**deepspot_fit.DEFAULTS, "width": WIDTH, "phi_members": MEMBERS, "rho_members": MEMBERS, "rank": 0,
               "sub": 9, "neighbours": 6, "seed": 0}  # fmt: skip
    network = deepspot_fit.network_of(options, D, 300)
    tiles, mask = rng.normal(size=(SPOTS, TILES, D)).astype(np.float32), np.ones((SPOTS, 6), np.float32)
    kernel, bias = network.get_layer("phi").get_weights()
    heads = list(zip(*network.get_layer("rho").get_weights()))

    def loop():
        members = []
        for m in range(MEMBERS):
            own = slice(m * WIDTH, (m + 1) * WIDTH)
            members.append(np.maximum(tiles @ kernel[:, own] + bias[own], 0))
        z = np.sort(np.stack(members), axis=0)[(MEMBERS - 1) // 2]
        z = np.concatenate([z[:, 0], z[:, 1:10].sum(1), z[:, 10:].max(1)], axis=1)
        return np.mean([z @ w + b for w, b in heads], axis=0)

    import tensorflow as tf

    batched = tf.function(lambda a, b: network([a, b], training=False))
    inputs = tf.constant(tiles), tf.constant(mask)
    batched(*inputs)  # traced before the clock starts
    ours, found = _clock(lambda: batched(*inputs).numpy(), 5)
    theirs, expected = _clock(loop, 3)
    assert np.abs(found - expected).max() < 1e-4
    return {"name": f"{MEMBERS} phi x {MEMBERS} rho, {SPOTS} spots", "ours": ours, "other": theirs, "unit": "CPU s",
            "ratio": theirs / ours, "note": "other: member by member in numpy; equal to 1e-4, checked"}  # fmt: skip


def _tables(rng):
    """Return rows: the table of neighbours of 100,000 points, and of 6,000 both ways; tables must agree."""
    from helpers import deepspot_bags

    side = int(np.ceil(np.sqrt(POINTS)))
    row, column = (part.ravel()[:POINTS] for part in np.mgrid[:side, :side])
    xy = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]) * 100.0 + rng.normal(0, 2, (POINTS, 2))
    near = deepspot_bags.Neighbourhood("ring", 8, pitch=100.0)
    whole, _ = _clock(lambda: deepspot_bags.neighbours(xy, near), 3)
    cells, _ = _clock(lambda: deepspot_bags.neighbours(xy, deepspot_bags.Neighbourhood("nearest", 44)), 1)
    few = xy[:FEW]

    def quadratic():
        out = []
        for point in few:  # as published: every spot is compared with every other
            apart = np.hypot(*(few - point).T)
            out.append(np.flatnonzero((apart < deepspot_bags.RING * 100.0) & (apart > 0)))
        return out

    ours, (index, mask) = _clock(lambda: deepspot_bags.neighbours(few, near), 3)
    theirs, expected = _clock(quadratic, 1)
    assert all(set(i[m > 0]) == set(e) for i, m, e in zip(index, mask, expected))
    note = f"100,000 points take {whole:.2f} s, their 44 nearest {cells:.1f} s; all pairs would take "
    note += f"{theirs * (POINTS / FEW) ** 2:.0f} s"
    return {"name": f"neighbours of {FEW:,} spots", "ours": ours, "other": theirs, "ratio": theirs / ours,
            "unit": "CPU s", "note": note}  # fmt: skip


def run() -> list[dict]:
    """Time both, in CPU seconds, and check that the results agree."""
    rng = np.random.default_rng(0)
    return [_ensembles(rng), _tables(rng)]

"""Pseudo-spots of 100,000 cells and bootstraps: with an index and at once, against the quadratic way and the loop."""

from __future__ import annotations

import time

import numpy as np

from helpers import deepspot2cell_scores as scores
from helpers import pseudospots_patches as patches

DENSITY = 2300.0 / 1e6
"""Cells per square micron of the virtual Xenium."""


def _best(function, repeats: int = 3) -> float:
    """Return the least CPU seconds of a call."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        taken.append(time.process_time() - begin)
    return min(taken)


def _tissue(n: int, genes: int = 300):
    import shapely
    from scipy import sparse

    stream = np.random.default_rng(0)
    side = float(np.sqrt(n / DENSITY))
    xy = stream.uniform(0, side, (n, 2))
    counts = sparse.random(n, genes, 0.15, format="csr", random_state=0, dtype=np.float32)
    return xy, shapely.buffer(shapely.points(xy), stream.uniform(4, 8, n), quad_segs=5), counts, side


def _build(xy, outlines, counts, side, rule):
    made = patches.build(xy, um_per_unit=1.0, outlines=outlines, rule=rule, extent=(side, side))
    made.index()
    return made.sums(counts)


def _quadratic(xy, counts, side):
    """Every cell against every patch, every patch against every patch."""
    made = patches.build(xy, um_per_unit=1.0, extent=(side, side))
    away = np.hypot(*(made.xy[:, None] - xy[None]).transpose(2, 0, 1))
    member = away <= 17.5
    apart = np.abs(made.xy[:, None] - made.xy[None]).max(-1)
    _ = (apart < 1.5 * made.side) & (apart > 0)
    return member.astype(np.float32) @ counts.toarray()


def _loop(folds, n):
    stream = np.random.default_rng(0)
    return np.std([np.median(folds[stream.integers(0, len(folds), len(folds))], axis=0) for _ in range(n)], axis=0)


def run() -> list[dict]:
    """Return the rows of the table."""
    rows = []
    small, large = _tissue(10_000), _tissue(100_000)
    ours = _best(lambda: _build(*small, "nucleus"))
    other = _best(lambda: _quadratic(small[0], small[2], small[3]), 1)
    rows.append({"name": "pseudo-spots, 10,000 cells", "ours": ours, "other": other, "ratio": other / ours,
                 "unit": "CPU s", "note": "division and sparse sums; against every cell with every patch"})  # fmt: skip
    for rule in patches.RULES:
        seconds = _best(lambda rule=rule: _build(*large, rule))
        note = "300 genes, neighbours and members included; the quadratic way would need gigabytes"
        rows.append({"name": f"pseudo-spots, 100,000 cells, rule {rule}", "ours": seconds, "other": None, "ratio": None,
                     "unit": "CPU s", "note": note})  # fmt: skip
    folds = np.random.default_rng(0).uniform(0, 1, (5, 30))
    ours = _best(lambda: scores.bootstrap_median(folds))
    other = _best(lambda: _loop(folds, scores.BOOTSTRAPS), 1)
    rows.append({"name": "10,000 bootstraps of 30 scores", "ours": ours, "other": other, "ratio": other / ours,
                 "unit": "CPU s", "note": "all at once against a loop"})  # fmt: skip
    return rows

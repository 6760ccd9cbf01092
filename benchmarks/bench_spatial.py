"""Agreement measures of 1,000 genes: all at once, against a loop over genes with scipy and esda."""

from __future__ import annotations

import time

import numpy as np

GENES, SIDE = 1000, 40


def _section():
    """A hexagonal array of 1,600 spots, counts with a spatial pattern and a noisy prediction of it."""
    from helpers import settings

    rng = settings.rng(0, "bench_spatial")
    row, column = (part.ravel() for part in np.mgrid[:SIDE, :SIDE])
    xy = np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]) * 100.0
    wave = np.sin(xy[:, :1] / rng.uniform(200, 900, GENES)) + np.cos(xy[:, 1:] / rng.uniform(200, 900, GENES))
    truth = np.log1p(rng.poisson(np.exp(wave - 0.5)))
    return xy, truth, wave + rng.normal(size=wave.shape)


def _clock(function, times):
    """Return the median CPU time of some calls, and the last result."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        result = function()
        spent.append(time.process_time() - began)
    return float(np.median(spent)), result


def run() -> list[dict]:
    """Time each measure both ways, in CPU seconds (ours: median of 5), and check that they agree to 1e-8."""
    from esda.moran import Moran, Moran_BV
    from libpysal.weights import W
    from scipy import stats

    from helpers import spatial

    xy, truth, prediction = _section()
    graph = spatial.neighbours(xy)
    weights = W({i: graph.indices[graph.indptr[i] : graph.indptr[i + 1]].tolist() for i in range(len(xy))})
    weights.transform = "r"
    few = slice(0, 3)  # caches and lazy imports warm up before the clock starts
    Moran(truth[:, 0], weights, permutations=0), spatial.spearman(truth[:, few], prediction[:, few])
    pairs = {
        "Pearson": (
            lambda: spatial.pearson(truth, prediction),
            lambda: [stats.pearsonr(truth[:, g], prediction[:, g])[0] for g in range(GENES)],
        ),
        "Spearman": (
            lambda: spatial.spearman(truth, prediction),
            lambda: [stats.spearmanr(truth[:, g], prediction[:, g])[0] for g in range(GENES)],
        ),
        "Moran's I": (
            lambda: spatial.moran(truth, graph),
            lambda: [Moran(truth[:, g], weights, permutations=0).I for g in range(GENES)],
        ),
        "bivariate Moran's I": (
            lambda: spatial.moran_bv(prediction, truth, graph),
            lambda: [Moran_BV(prediction[:, g], truth[:, g], weights, permutations=0).I for g in range(GENES)],
        ),
    }
    rows, total = [], np.zeros(2)
    for name, (ours, other) in pairs.items():
        (fast, found), (slow, expected) = _clock(ours, 5), _clock(other, 1)
        if not np.allclose(found, expected, rtol=0, atol=1e-8):
            raise AssertionError(f"{name}: differs by {np.abs(found - expected).max():.2g}")
        total += fast, slow
        rows.append({"name": f"{name}, {GENES} genes, {len(xy)} spots", "ours": fast, "other": slow,
                     "ratio": slow / fast, "unit": "CPU s", "note": "other: scipy or esda, gene by gene"})  # fmt: skip
    rows.append({"name": "all four", "ours": total[0], "other": total[1], "ratio": total[1] / total[0],
                 "unit": "CPU s", "note": "equal to 1e-8, checked"})  # fmt: skip
    return rows

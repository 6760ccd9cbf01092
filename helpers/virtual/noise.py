"""Measurement noise of the virtual tissue: counts drawn from rates, and the ceiling this noise sets on any model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual.expression import Expected

LIBRARY_SD = 0.4


def library_size(n: int, *, seed: int, section: str, platform: str) -> np.ndarray:
    """Return the capture efficiency of each spot, float64 (n,), mean 1, lognormal with sd .4."""
    z = settings.rng(seed, "expression", section, platform, "library").standard_normal(n)
    return np.exp(LIBRARY_SD * z - LIBRARY_SD**2 / 2)


def draw(truth: Expected, library: np.ndarray, *, rng) -> np.ndarray:
    """Return counts, int32 (spots, genes): negative binomial with mean library x rate and size ``theta``."""
    shape = truth.rate.shape
    noise = rng.standard_gamma(np.broadcast_to(truth.theta, shape)) / truth.theta
    counts = rng.poisson(truth.rate * library[:, None] * noise)
    if truth.dropout > 0:
        counts = counts * (rng.random(shape) >= truth.dropout)
    return counts.astype(np.int32)


def correlations(a, b) -> np.ndarray:
    """Return Pearson's r of the columns of two arrays (n, genes); 0 where a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    size = np.sqrt(len(a)) * 1e-9  # rounding leaves a constant column a standard deviation of this order at most
    flat = (np.sqrt((a**2).sum(0)) <= size) | (np.sqrt((b**2).sum(0)) <= size)
    return np.where(flat, 0.0, (a * b).sum(0) / np.where(scale > 0, scale, 1.0))


def normalised(counts) -> np.ndarray:
    """Return counts divided by their spot's total (times the median total), float64 (spots, genes)."""
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    return counts / total * np.median(total)


def ceilings(truth: Expected, library, *, seed: int, section: str, platform: str, draws: int = 0) -> pd.DataFrame:
    """Return, per gene, the correlation with normalised counts that a perfect model and the truth itself reach.

    ``r_ceil_formula = corr(best, x) sqrt(var x / (var x + noise))`` and ``r_oracle_formula`` without the first factor,
    where x is the gene's share of the expected counts and noise = mean(x / total) + mean(x^2) / theta, widened for
    dropout (design page ``virtual_tissue.md``, section 5). The formula puts expectations into a ratio: where a
    few spots carry a gene it is up to .1 too high. ``r_ceil`` and ``r_oracle`` are therefore means over ``draws``
    draws of the counts (the formula's values if ``draws`` is 0), and so is ``r_ceil_log``, for log(1 + 10,000 x share).
    """
    total = truth.rate.sum(1, keepdims=True)
    x, best = truth.rate / total, truth.best / truth.best.sum(1, keepdims=True)
    keep = 1 - truth.dropout
    noise = (x / (total * library[:, None]) + x**2 * (1 + 1 / truth.theta)) / keep - x**2
    signal = x.var(0)
    r_oracle = np.sqrt(signal / np.maximum(signal + noise.mean(0), 1e-30))
    best = best / best.mean(0)  # so that "constant" means the same for rare and common genes
    r_ceil = np.clip(correlations(best, x / x.mean(0)), 0, 1) * r_oracle
    mean_count = keep * (truth.rate * library[:, None]).mean(0)
    table = pd.DataFrame({"gene": truth.genes, "mean_count": mean_count, "r_ceil": r_ceil, "r_oracle": r_oracle})
    table["r_ceil_formula"], table["r_oracle_formula"] = r_ceil, r_oracle
    if draws:
        rng = settings.rng(seed, "expression", section, platform, "ceiling")
        best_log = np.log1p(1e4 * best * x.mean(0))
        sums = np.zeros((3, len(truth.genes)))
        for _ in range(draws):
            share = normalised(draw(truth, library, rng=rng))
            log = np.log1p(1e4 * share / share.sum(1, keepdims=True))
            sums += [correlations(best, share), correlations(x, share), correlations(best_log, log)]
        table["r_ceil"], table["r_oracle"], table["r_ceil_log"] = sums / draws
    return table

"""Methods, STimage: do predicted intervals hold what they promise? Coverage and PIT histograms on raw counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers import settings, stimage_ensemble, stimage_nb
from helpers.messages import CourseError

LEVELS = (0.5, 0.8, 0.95)
NODES = 7


@dataclass(frozen=True)
class Calibration:
    """How predicted distributions stand to what was measured.

    Attributes
    ----------
    levels, coverage
        Levels of central intervals, and the share of counts in them over all spots and genes; equal if the model is
        right.
    by_gene
        Float64 (levels, g), the same for each gene.
    histogram
        Float64 (bins,), shares of the randomised PIT in equal bins; 1 / bins each if the model is right. A hill means
        intervals too wide, a valley too narrow, a slope a bias.
    pit
        Float32 (n, g).
    """

    levels: tuple
    coverage: tuple
    by_gene: np.ndarray = field(repr=False)
    histogram: np.ndarray = field(repr=False)
    pit: np.ndarray = field(repr=False)

    @property
    def error(self) -> float:
        """Largest distance of a coverage from its level, 0-1."""
        return max(abs(found - level) for found, level in zip(self.coverage, self.levels))

    @property
    def unevenness(self) -> float:
        """Share of the PIT that would have to move for a flat histogram, 0-1."""
        return float(np.abs(self.histogram - 1 / len(self.histogram)).sum() / 2)

    def table(self):
        """Return a data frame, one row a level: coverage, and its 5th, 50th and 95th percentile over genes."""
        import pandas as pd

        low, middle, high = np.percentile(self.by_gene, (5, 50, 95), axis=1)
        columns = {"level": self.levels, "coverage": self.coverage, "gene_5": low, "gene_50": middle, "gene_95": high}
        return pd.DataFrame(columns)


def of_pit(pit, *, levels=LEVELS, bins: int = 20) -> Calibration:
    """Return the calibration of PIT values in [0, 1], (n, g)."""
    pit = np.asarray(pit, np.float32)
    if pit.ndim != 2 or not pit.size or not (np.isfinite(pit).all() and pit.min() >= 0 and pit.max() <= 1):
        raise CourseError(f"PIT values {pit.shape}", "(n, g) between 0 and 1", "make them with stimage_nb.pit")
    if not levels or not all(0 < level < 1 for level in levels) or bins < 2:
        raise CourseError(f"levels {levels}, {bins} bins", "levels between 0 and 1, 2 bins or more", "correct them")
    off = np.abs(pit - 0.5)
    by_gene = np.stack([(off <= level / 2).mean(0) for level in levels])
    share = np.histogram(pit, bins=bins, range=(0, 1))[0] / pit.size
    return Calibration(tuple(levels), tuple(float(v) for v in by_gene.mean(1)), by_gene, share, pit)


def calibration(counts, prediction, *, seed: int = 0, levels=LEVELS, bins: int = 20) -> Calibration:
    """Compare measured counts with the distribution that a prediction stands for.

    That is the mixture, with equal weights, of the members' negative binomials, and where the library size was
    predicted, of what it may be (a Gauss rule of ``NODES`` nodes). It is judged on counts, whatever the scale of
    the prediction, and with a randomised PIT: intervals of whole counts cover more than they promise even if the model
    is right, so their coverage must not be judged.

    Parameters
    ----------
    counts
        (n, g) raw counts, dense or CSR, genes as in the prediction.
    prediction
        A ``Prediction`` with its members kept, or a list of them (FSTimage: heads on different encoders, with equal
        weights).

    Raises
    ------
    CourseError
        Counts that are not raw, another shape, or a prediction without members.
    """
    predictions = list(prediction) if isinstance(prediction, (list, tuple)) else [prediction]
    if not predictions or any(each.log_share is None for each in predictions):
        raise CourseError("a prediction without its members", "members kept", "predict(..., keep=True) of each model")
    n, g = predictions[0].mean.shape
    counts = stimage_ensemble.raw(counts, n, g)
    if any(each.genes != predictions[0].genes or each.mean.shape != (n, g) for each in predictions):
        raise CourseError("predictions of other spots or genes", "the same", "predict the same spots with each head")
    u = settings.rng(seed, "stimage", "pit").random((n, g))
    pit = np.mean([_pit(counts, each, u) for each in predictions], axis=0)
    return of_pit(np.clip(pit, 0, 1), levels=levels, bins=bins)


def _pit(counts, prediction, u):
    """Return the PIT under one prediction, float32 (n, g)."""
    many = len(prediction.log_share)
    nodes, weights = np.zeros(1), np.ones(1)
    if prediction.library_shape is not None:
        nodes, weights = stimage_nb.nodes(prediction.library_shape, NODES)
    n, out = len(u), np.empty(u.shape, np.float32)
    for start in range(0, n, 128):
        part = slice(start, start + 128)
        y = counts[part]
        y = np.asarray(y.toarray() if hasattr(y, "toarray") else y, float)
        found = np.zeros(y.shape)
        for node, weight in zip(nodes, weights):
            library = np.exp(prediction.log_library_mean[part] + node * prediction.log_library_sd[part])
            for m in range(many):
                mu = np.exp(prediction.log_share[m, part].astype(float)) * library[:, None]
                r = prediction.r if prediction.r.ndim == 1 else prediction.r[m, part].astype(float)
                found += weight / many * stimage_nb.pit(y, mu, r, u[part])
        out[part] = found
    return out

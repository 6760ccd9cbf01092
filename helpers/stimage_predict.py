"""Methods, STimage: predictions of an ensemble, and the law of total variance over members and over heads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from helpers import stimage_nb
from helpers.messages import CourseError

SCALES = ("log1p", "counts")
NODES = 3
LOWEST = -30.0


@dataclass(frozen=True)
class Prediction:
    """Expression of n spots and g genes as a distribution.

    Attributes
    ----------
    genes, scale
        Names, and ``"log1p"`` (natural log of 1 + counts per 10,000 of the spot) or ``"counts"``.
    mean, aleatoric_var, epistemic_var
        Float32 (n, g). Mean of the members' means, mean of their variances, variance of their means.
    members, member_vars
        Float32 (M, n, g), mean and variance of each member; None where not kept.
    log_share
        Float32 (M, n, g), log of a gene's expected share of the spot's counts; None where not kept.
    r
        Size: (g,), or (M, n, g) where each spot has its own.
    log_library_mean, log_library_sd
        Float64 (n,), natural log of the library size; sd 0 where it was given.
    library_shape
        Quantiles of (log N - mean) / sd, None where N was given.
    """

    genes: tuple
    scale: str
    mean: np.ndarray = field(repr=False)
    aleatoric_var: np.ndarray = field(repr=False)
    epistemic_var: np.ndarray = field(repr=False)
    members: np.ndarray | None = field(repr=False, default=None)
    member_vars: np.ndarray | None = field(repr=False, default=None)
    log_share: np.ndarray | None = field(repr=False, default=None)
    r: np.ndarray | None = field(repr=False, default=None)
    log_library_mean: np.ndarray | None = field(repr=False, default=None)
    log_library_sd: np.ndarray | None = field(repr=False, default=None)
    library_shape: np.ndarray | None = field(repr=False, default=None)

    @property
    def total_var(self):
        """Law of total variance: aleatoric + epistemic."""
        return self.aleatoric_var + self.epistemic_var

    def only(self, chosen) -> Prediction:
        """Return the prediction of some members, e.g. one of :func:`groups`."""
        if self.members is None:
            raise CourseError("a prediction without its members", "members kept", "predict(..., keep=True)")
        chosen = np.atleast_1d(np.asarray(chosen, int))
        means, variances = self.members[chosen], self.member_vars[chosen]
        return replace(
            self, **combine(means, variances), members=means, member_vars=variances,
            log_share=None if self.log_share is None else self.log_share[chosen],
            r=self.r[chosen] if self.r is not None and self.r.ndim == 3 else self.r,
        )  # fmt: skip

    def poisson(self) -> Prediction:
        """Return the same means with next to no scatter beyond Poisson's: every size 10^6."""
        return replace(self, r=np.full(len(self.genes), 1e6))

    def at(self, spots) -> Prediction:
        """Return the prediction of some spots: int or bool (k,), or a slice."""

        def first(array):
            return None if array is None else array[spots]

        def second(array):
            return None if array is None else array[:, spots]

        return replace(
            self, mean=self.mean[spots], aleatoric_var=self.aleatoric_var[spots],
            epistemic_var=self.epistemic_var[spots], members=second(self.members),
            member_vars=second(self.member_vars), log_share=second(self.log_share),
            r=self.r if self.r is None or self.r.ndim == 1 else second(self.r),
            log_library_mean=first(self.log_library_mean), log_library_sd=first(self.log_library_sd),
        )  # fmt: skip


def combine(means, variances) -> dict:
    """Return mean, aleatoric and epistemic variance of members, (M, n, g) each -> (n, g) each, as named parts."""
    return {
        "mean": means.mean(0, dtype=np.float64).astype(np.float32),
        "aleatoric_var": variances.mean(0, dtype=np.float64).astype(np.float32),
        "epistemic_var": means.var(0, dtype=np.float64).astype(np.float32),
    }


def groups(members: int, size: int) -> list:
    """Return disjoint groups of ``size`` members, int arrays; a remainder is left out.

    The published comparison of single members with ensembles took overlapping windows (0-9, 1-10, ...), whose spread
    is far too small.
    """
    if not 1 <= size <= members:
        raise CourseError(f"groups of {size} of {members} members", f"1 to {members}", "change the size")
    return [np.arange(start, start + size) for start in range(0, members - size + 1, size)]


def average(predictions) -> Prediction:
    """Average heads on different encoders (FSTimage), each with the same weight.

    The law of total variance once more: the aleatoric variance is the mean of theirs; the epistemic one is the mean of
    theirs plus the variance of the heads' means.

    Raises
    ------
    CourseError
        Predictions of other genes, spots or scale.
    """
    predictions = list(predictions)
    if not predictions:
        raise CourseError("no prediction", "one a head", "predict with each head first")
    first = predictions[0]
    for other in predictions[1:]:
        if other.genes != first.genes or other.scale != first.scale or other.mean.shape != first.mean.shape:
            raise CourseError(
                f"{other.mean.shape} {other.scale} beside {first.mean.shape} {first.scale}"
                + ("" if other.genes == first.genes else ", with other genes or another order"),
                "the same spots, genes and scale", "predict the same spots with heads of one panel",
            )  # fmt: skip
    means = np.stack([each.mean for each in predictions])
    merged = combine(means, np.stack([each.aleatoric_var for each in predictions]))
    merged["epistemic_var"] += np.mean([each.epistemic_var for each in predictions], axis=0)
    return Prediction(first.genes, first.scale, **merged, members=None)


def moments(log_share, r, log_library, sd, scale: str, shape=None):
    """Return mean and variance of each member, float32 (M, n, g).

    Parameters
    ----------
    log_share
        (M, n, g); at most 0, since no gene has more than all counts.
    r
        (g,) or (M, n, g).
    log_library, sd
        (n,) mean and standard deviation of log N; N divides the count too where the scale is ``log1p``.
    shape
        Quantiles of (log N - mean) / sd, integrated with a Gauss rule of ``NODES`` nodes; None: N is known.
    """
    if scale not in SCALES:
        raise CourseError(f"scale {scale!r}", f"one of {', '.join(SCALES)}", "choose one")
    many, n, g = log_share.shape
    means, variances = np.empty(log_share.shape, np.float32), np.empty(log_share.shape, np.float32)
    at, weights = (np.zeros(1), np.ones(1)) if shape is None else stimage_nb.nodes(shape, NODES)
    block = max(1, 2_000_000 // (many * g))
    for start in range(0, n, block):
        part = slice(start, start + block)
        share = np.exp(log_share[:, part].astype(float))
        size = r if r.ndim == 1 else r[:, part].astype(float)
        first = second = 0.0
        for node, weight in zip(at, weights):
            library = np.exp(log_library[part] + sd[part] * node)
            mu = share * library[:, None]
            if scale == "counts":
                mean, variance = mu, stimage_nb.variance(mu, size)
            else:
                flat = size if size.ndim == 1 else size.reshape(-1, g)
                mean, variance = stimage_nb.log1p_moments(mu.reshape(-1, g), flat, np.tile(library, many))
            first, second = first + weight * mean, second + weight * (variance + mean**2)
        means[:, part] = first.reshape(share.shape)
        variances[:, part] = np.maximum(second - np.square(first), 0).reshape(share.shape)
    return means, variances

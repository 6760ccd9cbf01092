"""Methods, STimage: kernel ridge regression of all genes at once, on a few directions of expression.

A closed form beside the network: one eigendecomposition a split answers for every penalty, and sections held out
within the training set choose it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError
from helpers.settings import rng

ALPHAS = tuple(10.0 ** np.arange(-3.0, 1.76, 0.25))
"""Penalties tried, as multiples of the mean eigenvalue of the kernel."""
KERNELS = ("rbf", "linear")
RANK = 8
LANDMARKS = 800
"""Most training spots the kernel is compared with (Nystroem; exact up to this many)."""
FOLDS_OF_ONE, MOST_FOLDS = 4, 8


# ---------------------------------------------------------------- pieces
def log_cp10k(counts, library):
    """Return log(1 + 10^4 y / N): counts (n, g), dense or sparse, library (n,) over ALL genes; float32 (n, g)."""
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    library = np.asarray(library, np.float64)
    if library.shape != (len(counts),) or not (library > 0).all():
        raise CourseError(f"library sizes {library.shape}, {(library <= 0).sum()} not positive", f"({len(counts)},), "
                          "positive", "sum the counts over all genes; drop spots without counts")  # fmt: skip
    return np.log1p(counts * (1e4 / library)[:, None]).astype(np.float32)


def inner_folds(sections) -> list:
    """Return which rows to hold out in turn, bool (n,) each: the sections, or quarters of the rows if there is one.

    More than ``MOST_FOLDS`` sections are held out in that many groups.
    """
    sections = np.asarray(sections)
    names = list(dict.fromkeys(sections.tolist()))
    if len(names) == 1:
        part = np.arange(len(sections)) * FOLDS_OF_ONE // max(len(sections), 1)
        return [part == number for number in range(FOLDS_OF_ONE)]
    return [np.isin(sections, names[start::MOST_FOLDS]) for start in range(min(len(names), MOST_FOLDS))]


def correlation(truth, prediction):
    """Return Pearson's r of each column of two float arrays (n, g): float64 (g,); 0 where one does not vary."""
    a, b = (np.asarray(each, np.float64) for each in (truth, prediction))
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), norm, out=np.zeros(a.shape[1]), where=norm > 1e-12)


def squared_distances(a, b):
    """Return the squared Euclidean distances of rows, float64 (n, m)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T), 0)


def gram(a, b, *, kernel: str, width2: float):
    """Return the kernel of rows, float64 (n, m): exp(-d^2 / (2 width2)), or the dot product."""
    if kernel == "rbf":
        return np.exp(-0.5 / width2 * squared_distances(a, b))
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64).T


def directions(target, rank: int, weights):
    """Return weighted mean (g,) and the first ``rank`` weighted principal directions (rank, g) of targets (n, g)."""
    target = np.asarray(target, np.float64)
    mean = weights @ target / weights.sum()
    centred = (target - mean) * np.sqrt(weights)[:, None]
    rank = min(rank, len(target) - 1, target.shape[1])
    if rank == target.shape[1]:
        return mean, np.eye(rank)  # every direction is kept, so any basis will do
    if target.shape[1] <= len(target):
        return mean, np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :rank].T
    values, left = np.linalg.eigh(centred @ centred.T)
    values, left = values[::-1][:rank], left[:, ::-1][:, :rank]
    return mean, (left.T @ centred) / np.sqrt(np.maximum(values, 1e-12))[:, None]


def landmarks(x, *, kernel: str, most: int, draw):
    """Return rows of x to compare with (m, f), the map (m, k) from the kernel with them to coordinates, and width2.

    Coordinates' dot products are the kernel (exactly where every row is a landmark): Williams and Seeger 2001.
    """
    marks = x if len(x) <= most else x[np.sort(draw.choice(len(x), most, replace=False))]
    apart = squared_distances(marks, marks)
    width2 = max(float(np.median(apart[np.triu_indices(len(marks), 1)])), 1e-12) if kernel == "rbf" else 1.0
    values, vectors = np.linalg.eigh(gram(marks, marks, kernel=kernel, width2=width2))
    keep = values > values[-1] * 1e-9
    return marks, vectors[:, keep] / np.sqrt(values[keep]), width2


class Split:
    """Ridge regression on some rows of coordinates (n, k) with weights (n,); the intercept goes free."""

    def __init__(self, inside, weights):
        self.root = np.sqrt(weights)[:, None]
        self.centre = weights @ inside / weights.sum()
        self.inside = self.root * (inside - self.centre)
        self.square = self.inside.T @ self.inside
        self.unit = max(float(np.trace(self.square)) / len(inside), 1e-12)

    @functools.cached_property
    def eigen(self):
        """Eigenvalues (k,), none negative, and eigenvectors (k, k) of the sums of squares."""
        values, vectors = np.linalg.eigh(self.square)
        return np.maximum(values, 0), vectors

    def path(self, outside, scores, alphas):
        """Yield what each penalty predicts of centred ``scores`` (n, r) for coordinates (m, k): float64 (m, r)."""
        values, vectors = self.eigen  # once for every penalty
        seen, along = (outside - self.centre) @ vectors, vectors.T @ (self.inside.T @ (self.root * scores))
        yield from (seen @ (along / (values + alpha * self.unit)[:, None]) for alpha in alphas)

    def weight(self, scores, alpha):
        """Return the coefficients (k, r) of centred ``scores`` (n, r)."""
        damped = self.square + alpha * self.unit * np.eye(len(self.square))
        return np.linalg.solve(damped, self.inside.T @ (self.root * scores))


@dataclass(frozen=True)
class Kernel:
    """What regressions on one set of spots share, whatever their targets: see :func:`prepare`.

    Attributes
    ----------
    marks, to_coordinates, width2, kernel
        As in ``Ridge``.
    weights
        float64 (n,), mean 1.
    coordinates
        float64 (n, k).
    folds
        Pairs of rows held out, bool (n,), and the ``Split`` of the others.
    whole
        The ``Split`` of all rows.
    """

    marks: np.ndarray
    to_coordinates: np.ndarray
    width2: float
    kernel: str
    weights: np.ndarray
    coordinates: np.ndarray
    folds: list
    whole: Split

    def of(self, x):
        """Return the coordinates of features (m, f), float64 (m, k)."""
        return gram(x, self.marks, kernel=self.kernel, width2=self.width2) @ self.to_coordinates


def prepare(x, sections, *, weights=None, kernel: str = "rbf", most: int = LANDMARKS, seed: int = 0) -> Kernel:
    """Return what a ridge regression needs besides targets; arguments and errors as for :func:`fit`."""
    x = np.asarray(x, np.float32)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    _check(x, x, np.asarray(sections), weights, kernel, 1)
    weights = weights / weights.mean()
    marks, to_coordinates, width2 = landmarks(x, kernel=kernel, most=most, draw=rng(seed, "stimage", "landmarks"))
    phi = gram(x, marks, kernel=kernel, width2=width2) @ to_coordinates
    folds = [(out, Split(phi[~out], weights[~out])) for out in inner_folds(sections)]
    return Kernel(marks, to_coordinates, width2, kernel, weights, phi, folds, Split(phi, weights))


class Scorer:
    """Pearson's r of each gene over some rows, for one truth (n, g) and many low-rank predictions of it."""

    def __init__(self, truth, basis=None):
        self.truth = truth - truth.mean(0)
        self.square = (self.truth**2).sum(0)
        self.basis = None if basis is None or len(basis) == truth.shape[1] else basis  # None: the genes themselves

    def __call__(self, scores):
        """Return the mean over genes of r with ``scores @ basis``, (n, rank) @ (rank, g); no basis: ``scores``."""
        scores = scores - scores.mean(0)
        if self.basis is None:
            both, square = (scores * self.truth).sum(0), (scores**2).sum(0)
        else:
            both = ((scores.T @ self.truth) * self.basis).sum(0)
            square = ((scores.T @ scores @ self.basis) * self.basis).sum(0)
        norm = np.sqrt(self.square * np.maximum(square, 0))
        return np.divide(both, norm, out=np.zeros(len(norm)), where=norm > 1e-12).mean()


# ---------------------------------------------------------------- model
@dataclass(frozen=True)
class Ridge:
    """A fitted kernel ridge regression.

    Attributes
    ----------
    marks, to_coordinates, centre
        float32 (m, f), float64 (m, k), (k,): training spots the kernel compares with; what makes coordinates of the
        kernel; their weighted mean.
    weight
        float64 (k, rank): of the coordinates, one column a direction of expression.
    basis, mean
        float64 (rank, g), (g,): directions of expression and the weighted mean target.
    alpha, kernel, width2
        What was chosen; the squared width of the RBF kernel, in squared units of the features.
    inner
        float32 (n, g): predictions of the training rows by models that had not seen their section.
    path
        float64 (n_alphas,): mean r over genes on the inner held-out sections, by penalty.
    """

    marks: np.ndarray
    to_coordinates: np.ndarray
    centre: np.ndarray
    weight: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    alpha: float
    kernel: str
    width2: float
    inner: np.ndarray
    path: np.ndarray

    def predict(self, x):
        """Return the predicted targets of features (m, f): float32 (m, g)."""
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.marks.shape[1]:
            raise CourseError(f"features {x.shape}", f"(n, {self.marks.shape[1]})", "build them as for training")
        seen = gram(x, self.marks, kernel=self.kernel, width2=self.width2) @ self.to_coordinates
        return (((seen - self.centre) @ self.weight) @ self.basis + self.mean).astype(np.float32)


def fit(x, target, sections, *, weights=None, kernel: str = "rbf", rank: int = RANK, alphas=ALPHAS,
        most: int = LANDMARKS, seed: int = 0) -> Ridge:  # fmt: skip
    """Fit kernel ridge regression on low-rank targets; the penalty by leaving each section out inside.

    Parameters
    ----------
    x
        float (n, f): scaled features (``stimage_features``).
    target
        float (n, g): e.g. :func:`log_cp10k`; other numbers, such as log library sizes, may be (n,).
    sections
        (n,) section ids of the training spots; each is held out in turn (one section: quarters of its spots).
    weights
        (n,) positive: how much to trust each spot's target. The root of the library size serves well: log CP10k of a
        spot with few counts is mostly noise. Default: all alike.
    kernel
        ``"rbf"``, its width the median distance of the training spots: exp(-d^2 / (2 median d^2)); or ``"linear"``.
    rank
        Principal directions of the targets that are predicted: genes share them, which steadies the noisy ones.
    alphas
        Penalties tried, as multiples of the kernel's mean eigenvalue; the best mean r over genes wins.
    most, seed
        With more spots than ``most``, that many drawn by ``seed`` stand for all in the kernel; all are still fitted.

    Raises
    ------
    CourseError
        Shapes that do not fit, values that are not finite, an unknown kernel, fewer than 8 spots.
    """
    target = np.asarray(target, np.float64)
    target = target[:, None] if target.ndim == 1 else target
    return regress(prepare(x, sections, weights=weights, kernel=kernel, most=most, seed=seed), target, rank, alphas)


def regress(on: Kernel, target, rank: int, alphas) -> Ridge:
    """Fit targets (n, g) on what :func:`prepare` made; arguments and errors as for :func:`fit`."""
    target = np.asarray(target, np.float64)
    _check(on.coordinates, target, on.weights, on.weights, on.kernel, rank)
    scored, kept = np.zeros(len(alphas)), []
    for out, split in on.folds:
        mean, basis = directions(target[~out], rank, on.weights[~out])
        found = list(split.path(on.coordinates[out], (target[~out] - mean) @ basis.T, alphas))
        score = Scorer(target[out], basis)
        scored += [out.mean() * score(each) for each in found]
        kept.append((out, mean, basis, found))
    best = int(np.argmax(scored))
    inner = np.empty(target.shape, np.float32)
    for out, mean, basis, found in kept:
        inner[out] = found[best] @ basis + mean
    mean, basis = directions(target, rank, on.weights)
    weight = on.whole.weight((target - mean) @ basis.T, alphas[best])
    return Ridge(on.marks, on.to_coordinates, on.whole.centre, weight, basis, mean, float(alphas[best]), on.kernel,
                 on.width2, inner, scored)  # fmt: skip


def _check(x, target, sections, weights, kernel, rank):
    if kernel not in KERNELS or rank < 1:
        raise CourseError(f"kernel {kernel!r}, rank {rank}", f"one of {', '.join(KERNELS)}; at least 1", "choose one")
    if x.ndim != 2 or len({len(x), len(target), len(sections), len(weights)}) != 1 or len(x) < 8:
        sizes = f"{x.shape}, {target.shape}, {sections.shape}, {weights.shape}"
        raise CourseError(f"features, targets, sections, weights of {sizes}", "at least 8 rows, as many of each",
                          "keep spots and tiles paired")  # fmt: skip
    if not (np.isfinite(x).all() and np.isfinite(target).all()):
        raise CourseError("features or targets that are not finite", "finite numbers", "look for empty spots or tiles")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise CourseError("weights that are not positive", "positive numbers", "give e.g. the root of the library size")

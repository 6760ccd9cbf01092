"""Methods, STimage: a spot's library size from its image - kernel ridge on log N, with its predictive variance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.messages import CourseError

KERNELS = ("rbf", "linear")
LANDMARKS = 400
ALPHAS = tuple(float(a) for a in np.geomspace(1e-3, 1e3, 13))


@dataclass(frozen=True)
class LibraryModel:
    """log N = intercept + phi(x) @ weight, phi from a kernel between x and landmarks (Nystroem; exact if all are used).

    Attributes
    ----------
    kernel
        As in ``KERNELS``; ``rbf``: exp(-d^2 / (2 width^2)), width the median distance of training spots.
    landmarks, basis
        Training spots (m, f), and what makes phi of the kernel, (m, k). For ``linear`` landmarks hold the centre (1, f)
        and basis the leading components (f, k).
    width, alpha, intercept, noise
        Of the kernel; of the ridge; mean of log N; variance of log N given phi.
    weight, inverse
        (k,) and (k, k), (phi' phi + alpha)^-1.
    shape
        (101,) quantiles of held-out residuals over their standard deviation: few spots far too shallow, no normal law.
    score
        Pearson r of held-out log N (by section, or by spot with one section); nan where nothing could be held out.
    """

    kernel: str
    landmarks: np.ndarray = field(repr=False)
    basis: np.ndarray = field(repr=False)
    weight: np.ndarray = field(repr=False)
    inverse: np.ndarray = field(repr=False)
    shape: np.ndarray = field(repr=False)
    width: float
    alpha: float
    intercept: float
    noise: float
    score: float

    def _phi(self, x):
        x = np.asarray(x, float)
        if self.kernel == "linear":
            return (x - self.landmarks) @ self.basis
        return _rbf(x, self.landmarks, self.width) @ self.basis

    def predict(self, x):
        """Return mean and standard deviation of log N, float64 (n,) each.

        The variance is that of Bayesian ridge (a Gaussian process where ``rbf``): noise (1 + phi' (phi' phi + alpha)^-1
        phi) plus, for ``rbf``, what no landmark explains; so it grows away from the training spots.
        """
        phi = self._phi(x)
        mean = self.intercept + phi @ self.weight
        return mean, np.sqrt(self.noise * (1 + self._leverage(phi)))

    def _leverage(self, phi):
        found = ((phi @ self.inverse) * phi).sum(1)
        if self.kernel == "rbf":
            found = found + np.maximum(1 - (phi**2).sum(1), 0) / self.alpha
        return found


def _squares(a, b):
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def _rbf(x, landmarks, width):
    return np.exp(-_squares(x, landmarks) / (2 * width**2))


def fit(x, log_library, fold, *, kernel="rbf", rng, landmarks=LANDMARKS) -> LibraryModel:
    """Fit log N on features; alpha is the best of ``ALPHAS`` on inner folds.

    Parameters
    ----------
    x
        Float (n, f).
    log_library
        (n,) natural logs.
    fold
        (n,) inner fold of each spot; a single fold: alpha is 1 and the noise that of the training spots.
    """
    if kernel not in KERNELS:
        raise CourseError(f"kernel {kernel!r}", f"one of {', '.join(KERNELS)}", "choose one")
    x, y = np.asarray(x, float), np.asarray(log_library, float)
    n = len(x)
    if kernel == "linear":
        marks = x.mean(0, keepdims=True)
        _, s, right = np.linalg.svd(x - marks, full_matrices=False)
        kept = min(landmarks, max(1, int((s > s[0] * 1e-6).sum()))) if len(s) and s[0] > 0 else 1
        basis, width = right[:kept].T / max(float(np.sqrt((s**2).sum() / n)), 1e-12), 1.0
    else:
        marks = x if n <= landmarks else x[np.sort(rng.choice(n, landmarks, replace=False))]
        apart = _squares(marks, marks)[np.triu_indices(len(marks), 1)]
        width = float(np.sqrt(np.median(apart))) if len(apart) and np.median(apart) > 0 else 1.0
        values, vectors = np.linalg.eigh(_rbf(marks, marks, width))
        kept = values > max(values[-1], 0) * 1e-8
        basis = vectors[:, kept] / np.sqrt(values[kept])
    k = basis.shape[1]
    shell = LibraryModel(kernel, marks, basis, np.zeros(k), np.eye(k), np.zeros(1), width, 1.0, 0, 0, 0)
    phi = shell._phi(x)
    many = int(fold.max()) + 1
    alpha, score, noise = 1.0, float("nan"), None
    if many > 1:
        held, spread = np.zeros((len(ALPHAS), n)), np.zeros((len(ALPHAS), n))
        for number in range(many):
            out = fold == number
            values, vectors = np.linalg.eigh(phi[~out].T @ phi[~out])
            seen, mine, middle = phi[~out] @ vectors, phi[out] @ vectors, y[~out].mean()
            along = seen.T @ (y[~out] - middle)
            factor = 1 / (np.maximum(values, 0) + np.array(ALPHAS)[:, None])
            held[:, out] = middle + (factor * along) @ mine.T
            spread[:, out] = factor @ (mine**2).T
            if kernel == "rbf":
                spread[:, out] += np.maximum(1 - (phi[out] ** 2).sum(1), 0) / np.array(ALPHAS)[:, None]
        best = int(np.argmin(((held - y) ** 2).mean(1)))
        alpha, apart = ALPHAS[best], (y - held[best]) / np.sqrt(1 + spread[best])
        noise = float((apart**2).mean())
        if held[best].std() > 0 and y.std() > 0:
            score = float(np.corrcoef(held[best], y)[0, 1])
    inverse = np.linalg.inv(phi.T @ phi + alpha * np.eye(k))
    weight = inverse @ phi.T @ (y - y.mean())
    if noise is None:
        apart = y - y.mean() - phi @ weight
        noise = float((apart**2).mean())
    shape = np.quantile(apart, np.linspace(0.5 / 101, 1 - 0.5 / 101, 101)) / max(np.sqrt(noise), 1e-12)
    return LibraryModel(kernel, marks, basis, weight, inverse, shape, width, alpha, float(y.mean()), noise, score)

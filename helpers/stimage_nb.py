"""Methods, STimage: the negative binomial of counts - likelihood on logits, moments, residuals; numpy, float64.

Mean ``mu``, size ``r``: variance mu + mu^2 / r. Logits are l = log(mu / r), so success probability is sigmoid(l).
"""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from helpers.messages import CourseError

PER_SPOT = 1e4
"""Counts a spot is scaled to before log1p (CP10k)."""
LONGEST = 64
"""Longest sum over counts before :func:`log1p_moments` integrates instead, which then takes less time."""
MOST_ADDED = 300
"""Largest count of a gene whose probabilities :func:`pit` adds up; beyond, the beta function takes less time."""
_TAIL, _BLOCK = 1e-10, 1 << 15


def log_likelihood(y, logits, r):
    """Return log P(y), float64, in a form that neither overflows nor rounds a probability to 0 or 1.

    ``-log((y + r) B(r, y + 1)) - r softplus(l) - y softplus(-l)``: the beta function in place of three log-gammas,
    whose difference would lose digits where counts are large.

    Parameters
    ----------
    y
        Counts, 0, 1, 2, ...
    logits
        log(mu / r). The mean is never formed, so +-50 is as good as 0.
    r
        Size, > 0. All three broadcast.
    """
    y, logits, r = (np.asarray(part, float) for part in (y, logits, r))
    ways = -np.log(y + r) - special.betaln(r, y + 1)
    return ways - r * np.logaddexp(0, logits) - y * np.logaddexp(0, -logits)


def variance(mu, r):
    """Return mu + mu^2 / r."""
    mu = np.asarray(mu, float)
    return mu + mu**2 / r


def size_by_moments(y, mu, *, lowest=0.1, highest=1000.0, weight=None, prior=0.0):
    """Return one size per gene from counts and their predicted means (method of moments).

    r_g = sum(mu^2) / sum((y - mu)^2 - mu). Sums run over spots that the means were *not* fitted on, else r is too
    large. A gene without more variance than Poisson gets ``highest``.

    Parameters
    ----------
    y, mu
        (n, g) counts and means.
    weight
        (n, 1) or None.
    prior
        Strength of the pull of 1 / r towards that of all genes, as a share of the mean over genes of sum(mu^2): a gene
        with few counts tells little of its own size.

    Returns
    -------
    float64 (g,)
    """
    mu = np.asarray(mu, float)
    weight = 1.0 if weight is None else np.asarray(weight, float)
    power, excess = (weight * mu**2).sum(0), (weight * ((y - mu) ** 2 - mu)).sum(0)
    if prior:
        common = max(float(excess.sum()), 0.0) / max(float(power.sum()), 1e-300)
        extra = prior * float(power.mean())
        power, excess = power + extra, excess + extra * common
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(excess > 0, power / excess, highest)
    return np.clip(np.nan_to_num(r, nan=highest, posinf=highest), lowest, highest)


def cdf(y, mu, r):
    """Return P(Y <= y), float64; 0 for y < 0."""
    y, mu, r = np.broadcast_arrays(np.asarray(y, float), np.asarray(mu, float), np.asarray(r, float))
    below = special.betainc(r, np.maximum(np.floor(y), 0) + 1, r / (r + mu))
    return np.where(y < 0, 0.0, below)


def pit(y, mu, r, u):
    """Return the randomised probability integral transform: P(Y < y) + u P(Y = y).

    Uniform on [0, 1] if the model is right, which no transform of a discrete variable is without ``u`` (Czado,
    Gneiting and Held, 2009).

    Parameters
    ----------
    y, mu, u
        (n, g) counts, means, and uniform numbers.
    r
        (g,) or (n, g) sizes.

    Returns
    -------
    float64 (n, g)
    """
    y, mu, r, u = (np.asarray(part, float) for part in (y, mu, r, u))
    if y.ndim != 2 or not y.shape == mu.shape == u.shape or r.shape not in (y.shape, y.shape[1:]):
        raise CourseError(f"counts {y.shape}, means {mu.shape}, sizes {r.shape}, numbers {u.shape}",
                          "(n, g), (n, g), (g,) or (n, g), (n, g)", "one row a spot, one column a gene")  # fmt: skip
    out = np.empty(y.shape)
    if not y.size:
        return out
    low = y.max(0) <= MOST_ADDED
    out[:, low] = _added(*(np.broadcast_to(part, y.shape)[:, low] for part in (y, mu, r, u)))
    high = ~low
    size = r[high] if r.ndim == 1 else r[:, high]
    logits = np.log(np.maximum(mu[:, high], 1e-300)) - np.log(size)
    at = np.exp(log_likelihood(y[:, high], logits, size))
    out[:, high] = cdf(y[:, high], mu[:, high], size) - (1 - u[:, high]) * at
    return np.clip(out, 0, 1)


def _added(y, mu, r, u):
    """P(Y < y) + u P(Y = y) by adding up the probabilities of 0, 1, ...; spots drop out as their count is reached."""
    order = np.argsort(-y, axis=None, kind="stable")  # the largest counts first
    size, mean = r.ravel()[order], mu.ravel()[order]
    p, ratio, below = np.exp(-size * np.log1p(mean / size)), mean / (mean + size), np.zeros(y.size)
    for k, left in enumerate(y.size - np.cumsum(np.bincount(y.ravel().astype(int)))[:-1], 1):  # counts of k or more
        below[:left] += p[:left]
        p[:left] *= ratio[:left]
        p[:left] *= (k - 1 + size[:left]) / k
    out = np.empty(y.size)
    out[order] = below + u.ravel()[order] * p
    return out.reshape(y.shape)


def interval(mu, r, level=0.8):
    """Return the lowest and highest count of the central interval that holds at least ``level``."""
    if not 0 < level < 1:
        raise CourseError(f"level {level}", "between 0 and 1, e.g. 0.8", "correct it")
    p = r / (r + np.asarray(mu, float))
    return stats.nbinom.ppf((1 - level) / 2, r, p), stats.nbinom.ppf((1 + level) / 2, r, p)


def log1p_moments(mu, r, library):
    """Return mean and variance of log1p(1e4 y / N) where y is negative binomial.

    The log of the mean is not the mean of the log: at these low counts log1p(1e4 mu / N) is far too large, and ranks
    spots differently. Summed over counts up to a remaining probability of 1e-10; where that needs more than ``LONGEST``
    terms, integrated, because with the generating function G of y

        log(1 + c y)   = int exp(-t) / t (1 - exp(-c y t)) dt,
        E log(1 + c y) = int exp(-t) / t (1 - G(exp(-c t))) dt,

    and the same integrand times -2 (log t + Euler's gamma) gives the mean square.

    Parameters
    ----------
    mu
        (n, g) means, counts per spot.
    r
        (g,) or (n, g) sizes.
    library
        (n,) N, counts per spot.

    Returns
    -------
    mean, variance : float64 (n, g)
    """
    mu, r = np.asarray(mu, float), np.asarray(r, float)
    scale = PER_SPOT / np.asarray(library, float)
    if mu.ndim != 2 or scale.shape != (len(mu),) or r.shape not in (mu.shape, mu.shape[1:]):
        raise CourseError(f"mu {mu.shape}, r {r.shape}, library {scale.shape}", "(n, g), (g,) or (n, g), (n,)",
                          "one row a spot, one column a gene")  # fmt: skip
    mean, square = np.zeros(mu.shape), np.zeros(mu.shape)
    if not mu.size:
        return mean, square
    top = mu.max(0)
    lowest = r if r.ndim == 1 else r.min(0)
    with np.errstate(all="ignore"):
        terms = stats.nbinom.isf(_TAIL, lowest, lowest / (lowest + top))
    terms = np.where(np.isfinite(terms), terms, np.inf)
    order = np.argsort(terms, kind="stable")
    many = int((terms <= LONGEST).sum())
    starts = [*range(0, many, 64), *range(many, len(order), 64)]
    for start, stop in zip(starts, [*starts[1:], len(order)]):  # genes of a like number of terms together
        genes = order[start:stop]
        rows = max(1, _BLOCK // len(genes))
        for row in range(0, len(mu), rows):
            part = np.ix_(range(row, min(row + rows, len(mu))), genes)
            given = mu[part], r[genes] if r.ndim == 1 else r[part], scale[row : row + rows]
            mean[part], square[part] = _integrated(*given) if start >= many else _summed(*given, terms[genes].max())
    return mean, np.maximum(square - mean**2, 0)


def _summed(mu, r, scale, last):
    """First two moments by the recursion p(k + 1) = p(k) (k + r) / (k + 1) * mu / (mu + r)."""
    p = np.exp(-r * np.log1p(mu / r))
    ratio = mu / (mu + r)
    left, first, second = 1 - p, np.zeros_like(p), np.zeros_like(p)
    term, last = np.empty_like(p), max(int(last), 1)
    for k in range(1, last + 1):
        p *= ratio
        p *= (k - 1 + r) / k
        left -= p
        value = np.log1p(scale * k)[:, None]
        np.multiply(p, value, out=term)
        first += term
        term *= value
        second += term
    beyond = np.log1p(scale * (last + 1))[:, None]
    left = np.maximum(left, 0)
    return first + left * beyond, second + left * beyond**2


def _integrated(mu, r, scale):
    """First two moments by the trapezoid rule over log t (exponentially exact: the integrand dies out at both ends)."""
    low = -16 - np.log(max(float((mu * scale[:, None]).max()), 1.0))  # what lies below adds about exp(-16)
    first, second, value = np.zeros_like(mu), np.zeros_like(mu), np.empty_like(mu)
    ratio, step = mu / r, 0.6  # error about exp(-2 pi (pi / 2) / step), 7e-8
    for u in np.arange(low, 3.7, step):
        t = np.exp(u)
        np.multiply(ratio, -np.expm1(-scale * t)[:, None], out=value)
        np.log1p(value, out=value)
        value *= -r
        np.expm1(value, out=value)
        value *= -np.exp(-t)
        first += value
        value *= 2 * (u + np.euler_gamma)
        second -= value
    return first * step, second * step


def nodes(sample, points: int = 3):
    """Return nodes and weights of the Gauss rule of a sample: sum(w f(x)) is the sample's mean of f to degree 2k - 1.

    Stieltjes' procedure on the sample gives the recurrence of its orthogonal polynomials, whose matrix has the nodes as
    eigenvalues (Golub and Welsch, 1969).
    """
    sample = np.asarray(sample, float)
    points = min(points, len(np.unique(sample)))
    last, now, diagonal, off = np.zeros_like(sample), np.ones_like(sample), [], []
    norm = len(sample)
    for k in range(points):
        diagonal.append(float((sample * now**2).sum() / norm))
        later = (sample - diagonal[-1]) * now - (off[-1] ** 2 if off else 0.0) * last
        fresh = float((later**2).sum())
        if k + 1 < points:
            off.append(np.sqrt(fresh / norm))
        last, now, norm = now, later, fresh
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return values, vectors[0] ** 2

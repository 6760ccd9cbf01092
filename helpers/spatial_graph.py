"""Methods, spatial: which spots are neighbours, and Moran's I of one pattern or of two, for all genes at once."""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError

FACTOR = 1.57
"""Spots nearer than this many spacings are neighbours. Between the diagonal of a square lattice (1.41), which counts,
and the second ring of a hexagonal one (1.73), which does not: 8 (queen) and 6 neighbours."""
KINDS = ("pitch", "delaunay", "knn")
_FLAT = 1e-6


def matrix(values, name: str = "values"):
    """Return values as float64 (n spots, g genes); a vector becomes one column, a sparse matrix dense.

    Raises
    ------
    CourseError
        Values that are not finite, or an empty matrix.
    """
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or 0 in values.shape:
        raise CourseError(f"{name} of shape {values.shape}", "(spots, genes), at least one of each", "check the arrays")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(0))
        raise CourseError(
            f"{name} that are not finite, in {len(bad)} of {values.shape[1]} genes (first: column {bad[0]})",
            "finite numbers", "a model that diverged predicts NaN: lower its learning rate; drop unknown genes",
        )  # fmt: skip
    return values


def centred(values):
    """Return values (n, g) minus each gene's mean, with genes that do not vary set to exact zeros.

    A gene is flat where its deviations are within rounding of its size: float32 predictions of a constant may differ in
    their last bits.
    """
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    flat = np.maximum(high - mean, mean - low) <= _FLAT * np.maximum(np.maximum(high, -low), 1e-300)
    out = values - mean
    if flat.any():
        out[:, flat] = 0
    return out


def dots(a, b):
    """Return the dot product of each column of ``a`` with that of ``b``, both (n, g)."""
    return np.einsum("ij,ij->j", a, b)


def spacing(xy) -> float:
    """Return the spacing of spots, in the unit of ``xy``: the median distance of pairs in the first ring.

    The median distance to the nearest neighbour finds the ring, but where positions are jittered it is too small (the
    nearest of four is nearer than the average one), so the pairs up to 1.25 times that far are averaged.
    """
    from scipy.spatial import cKDTree

    xy = _positions(xy)
    if len(xy) < 2:
        raise CourseError(f"{len(xy)} spots", "at least 2", "use a section with more spots")
    tree = cKDTree(xy)
    nearest = float(np.median(tree.query(xy, k=2)[0][:, 1]))
    if not nearest > 0:
        raise CourseError("most spots at the position of another", "one position a spot", "check obsm['spatial']")
    i, j = tree.query_pairs(1.25 * nearest, output_type="ndarray").T
    return float(np.median(np.hypot(*(xy[i] - xy[j]).T)))


def _positions(xy):
    xy = np.asarray(xy, float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise CourseError(f"positions of shape {xy.shape}", "finite (spots, 2): x, y", "pass obsm['spatial']")
    return xy


def neighbours(xy, *, kind: str = "pitch", factor: float = FACTOR, k: int = 6, pitch: float | None = None):
    """Return which spots are neighbours.

    Parameters
    ----------
    xy
        Float (n, 2): x, y of one section's spots, in any unit.
    kind
        ``"pitch"``: all pairs nearer than ``factor`` spacings; square arrays get queen's neighbours (8), hexagonal ones
        6, and gaps in the tissue are not bridged. ``"delaunay"``: edges of the triangulation no longer than ``factor``
        times three median edges, for cells, which have no spacing. ``"knn"``: the ``k`` nearest, not symmetric.
    pitch
        The spacing, in the unit of ``xy``; measured by :func:`spacing` if None. Give it for a sparse subset of spots.

    Returns
    -------
    scipy.sparse.csr_array (n, n)
        1 for neighbours, nothing on the diagonal. Rows of isolated spots are empty; parts that do not touch are fine.

    Raises
    ------
    CourseError
        Fewer than 2 spots, positions that are not finite or coincide, an unknown kind.
    """
    from scipy.sparse import csr_array
    from scipy.spatial import Delaunay, QhullError, cKDTree

    xy = _positions(xy)
    n = len(xy)
    if kind not in KINDS:
        raise CourseError(f"neighbours of kind {kind!r}", f"one of {', '.join(KINDS)}", "choose one")
    if kind == "knn":
        if not 0 < k < n:
            raise CourseError(f"{k} nearest neighbours of {n} spots", f"1 to {n - 1}", "set k")
        found = cKDTree(xy).query(xy, k=k + 1)[1]
        others = found != np.arange(n)[:, None]
        others[others.all(1), -1] = False  # a spot hidden by its doubles
        i, j = np.repeat(np.arange(n), k), found[others]
        return csr_array((np.ones(len(i)), (i, j)), shape=(n, n))
    if kind == "pitch":
        pitch = spacing(xy) if pitch is None else float(pitch)
        i, j = cKDTree(xy).query_pairs(factor * pitch, output_type="ndarray").T
    else:
        try:
            corners = Delaunay(xy).simplices
        except (QhullError, ValueError) as error:
            raise CourseError(
                f"{n} spots that cannot be triangulated", "3 or more, not on one line", "use kind='pitch'"
            ) from error
        pairs = np.unique(np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])), axis=0)
        length = np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T)
        i, j = pairs[length <= 3 * factor * np.median(length)].T
    ones = np.ones(2 * len(i))
    return csr_array((ones, (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n))


def _weights(graph):
    """Return (which spots have neighbours, the weights among these with rows that sum to 1)."""
    from scipy.sparse import csr_array, diags_array

    graph = csr_array(graph).astype(float)
    degree = np.asarray(graph.sum(1)).ravel()
    linked = np.flatnonzero(degree > 0)
    if len(linked) < 3:
        raise CourseError(
            f"{len(linked)} of {graph.shape[0]} spots with a neighbour", "at least 3", "raise factor, or give the pitch"
        )
    inner = graph[linked][:, linked]
    return linked, csr_array(diags_array(1 / np.asarray(inner.sum(1)).ravel()) @ inner)


def _ratio(top, bottom):
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _prepare(first, second, graph):
    """Return the weights and both matrices, centred, on the spots that have neighbours."""
    same = second is first
    first = matrix(first, "first pattern")
    second = first if same else matrix(second, "second pattern")
    if first.shape != second.shape or graph.shape != (len(first), len(first)):
        raise CourseError(
            f"patterns {first.shape} and {second.shape}, neighbours {graph.shape}", "the same spots and genes",
            "build the neighbours from the positions of the same spots",
        )  # fmt: skip
    linked, weights = _weights(graph)
    if len(linked) < len(first):
        first, second = first[linked], second[linked]
    x = centred(first)
    return linked, weights, x, x if same else centred(second)


def moran(values, graph, *, p: str | None = None, permutations: int = 199, seed: int = 0):
    """Return Moran's I of each gene: how alike neighbours are, with weights that sum to 1 in each row.

    I = sum_ij w_ij z_i z_j / sum_i z_i^2, with z the deviations from the mean. Expected -1 / (n - 1) without any
    pattern, about 1 at most. NaN for a gene that does not vary. Spots without a neighbour are left out, mean included.

    Parameters
    ----------
    values
        (n, g) of one section, dense or sparse, any unit.
    graph
        From :func:`neighbours`.
    p
        None; ``"analytic"``: normal approximation under randomisation (Cliff and Ord, 1981), two-sided, as esda's
        ``p_rand``; ``"permutation"``: share of ``permutations`` shuffles of the spots that reach I, one-sided
        (clustered), with 1 added above and below.

    Returns
    -------
    float (g,), or a pair of them (I, p) where ``p`` is asked for

    Raises
    ------
    CourseError
        Values that are not finite, shapes that differ, fewer than 3 spots with neighbours.
    """
    _, weights, z, _ = _prepare(values, values, graph)
    square = dots(z, z)
    found = _ratio(dots(z, weights @ z), square)
    if p is None:
        return found
    if p == "analytic":
        return found, _analytic(found, z, weights)
    return found, _permuted(found, z, z, weights, square, p, permutations, settings.rng(seed, "moran"))


def _analytic(found, z, weights):
    from scipy.stats import norm

    n = len(z)
    both = weights + weights.T
    s0, s1 = weights.sum(), (both**2).sum() / 2
    s2 = ((np.asarray(weights.sum(1)).ravel() + np.asarray(weights.sum(0)).ravel()) ** 2).sum()
    k = _ratio((z**4).mean(0), (z**2).mean(0) ** 2)
    top = n * ((n * n - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
    top = top - k * ((n * n - n) * s1 - 2 * n * s2 + 6 * s0**2)
    variance = top / ((n - 1) * (n - 2) * (n - 3) * s0**2) - 1 / (n - 1) ** 2 if n > 3 else np.full(z.shape[1], np.nan)
    return 2 * norm.sf(np.abs(found + 1 / (n - 1)) / np.sqrt(variance))


def _permuted(found, still, moved, weights, scale, p, permutations, rng):
    """Return the share of shuffles that reach ``found``; one shuffle of the spots serves all genes."""
    if p != "permutation" or permutations < 1:
        raise CourseError(f"p={p!r}, {permutations} permutations", "'analytic' or 'permutation', 1 or more", "set p")
    reached = np.zeros(len(found))
    for _ in range(permutations):
        order = rng.permutation(len(moved))
        shuffled = moved[order]
        other = shuffled if still is moved else still
        reached += _ratio(dots(other, weights @ shuffled), scale) >= found - 1e-12
    return np.where(np.isnan(found), np.nan, (reached + 1) / (permutations + 1))


def moran_bv(prediction, truth, graph, *, p: str | None = None, permutations: int = 199, seed: int = 0):
    """Return the bivariate Moran's I of each gene: a spot's prediction against the truth of its neighbours.

    I = sum_i x_i sum_j w_ij y_j / (n - 1), x the z-scored prediction, y the z-scored truth, which is **spatially
    lagged**; rows of w sum to 1. This is esda's ``Moran_BV(prediction, truth)`` and the order of STimage's regression
    notebooks (its classification script has it the other way round). It cannot exceed what the truth's own smoothness
    allows: compare with :func:`moran` of the truth. NaN where either does not vary; isolated spots are left out.

    Parameters and errors as for :func:`moran`; ``p`` is None or ``"permutation"`` (of the truth over the spots,
    one-sided), because no analytic formula is reliable.
    """
    _, weights, x, y = _prepare(prediction, truth, graph)
    scale = np.sqrt(dots(x, x) * dots(y, y))
    found = _ratio(dots(x, weights @ y), scale)
    if p is None:
        return found
    return found, _permuted(found, x, y, weights, scale, p, permutations, settings.rng(seed, "moran_bv"))


def local_moran_bv(prediction, truth, graph):
    """Return each spot's part of the bivariate Moran's I, float (n, g): x_i sum_j w_ij y_j, z-scored (n - 1).

    Positive where a spot and its surroundings agree (both high or both low). NaN for isolated spots and flat genes. The
    sum over spots divided by (number of linked spots - 1) is :func:`moran_bv`.
    """
    linked, weights, x, y = _prepare(prediction, truth, graph)
    n = len(x)
    scale = np.sqrt(dots(x, x) * dots(y, y)) / (n - 1)
    out = np.full((graph.shape[0], x.shape[1]), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        out[linked] = np.where(scale > 0, x * (weights @ y) / scale, np.nan)
    return out

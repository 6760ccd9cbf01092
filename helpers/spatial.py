"""Methods: how well predicted expression agrees with the truth, gene by gene, spot by spot and in space.

Everything is computed for all genes at once, on **one section at a time**: pooled over sections, a gene that is merely
higher in one of them would look predicted. ``spatial_graph`` holds neighbours and Moran's I, ``spatial_high`` the
overlap of high regions and the ROC area.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError
from helpers.spatial_graph import FACTOR, centred, dots, local_moran_bv, matrix, moran, moran_bv, neighbours, spacing
from helpers.spatial_high import SIGMA, auc, high, high_regions, iou, kernel

__all__ = [
    "FACTOR", "SIGMA", "auc", "high", "high_regions", "iou", "kernel", "leiden", "local_moran_bv", "medians",
    "moran", "moran_bv", "neighbours", "partial", "pearson", "per_spot", "scores", "scores_by_section", "spacing",
    "spearman", "summary",
]  # fmt: skip

_BLOCK = 128
"""Genes ranked at a time: their copies stay in the processor's cache."""


def _both(truth, prediction):
    truth, prediction = matrix(truth, "truth"), matrix(prediction, "prediction")
    if truth.shape != prediction.shape:
        raise CourseError(
            f"truth {truth.shape}, prediction {prediction.shape}", "the same spots and genes", "match them by name"
        )
    return truth, prediction


def _cosine(a, b):
    """Return the correlation of centred columns; NaN where one is all zeros."""
    scale = np.sqrt(dots(a, a)) * np.sqrt(dots(b, b))
    return np.divide(dots(a, b), scale, out=np.full(a.shape[1], np.nan), where=scale > 0).clip(-1, 1)


def pearson(truth, prediction):
    """Return Pearson's r of each gene over spots, float (g,); NaN where truth or prediction does not vary.

    Parameters
    ----------
    truth, prediction
        (n spots, g genes) of one section, dense or sparse; a vector is one gene. Same scale advised: r of raw counts
        with predicted log values is lower than it need be.

    Raises
    ------
    CourseError
        Shapes that differ, values that are not finite.
    """
    truth, prediction = _both(truth, prediction)
    return _cosine(centred(truth), centred(prediction))


def _ranks(values):
    """Return each column's ranks, tied values sharing their mean rank: ``scipy.stats.rankdata`` in half its time."""
    rows = np.ascontiguousarray(values.T)
    g, n = rows.shape
    order = rows.argsort(1)
    ordered = np.take_along_axis(rows, order, 1)
    begins = np.ones((g, n), bool)  # a run of equal values begins
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=begins[:, 1:])
    first = np.flatnonzero(begins)
    length = np.diff(first, append=g * n)
    out = np.empty((g, n))
    np.put_along_axis(out, order, np.repeat(first % n + (length + 1) / 2, length).reshape(g, n), 1)
    return out.T


def spearman(truth, prediction):
    """Return Spearman's rank correlation of each gene over spots; ties share their mean rank. As :func:`pearson`."""
    truth, prediction = _both(truth, prediction)
    out = np.full(truth.shape[1], np.nan)
    for start in range(0, len(out), _BLOCK):
        here = slice(start, start + _BLOCK)
        a, b = truth[:, here], prediction[:, here]
        varies = centred(a).any(0) & centred(b).any(0)  # rounding must not be ranked
        out[here][varies] = _cosine(*(centred(_ranks(part[:, varies])) for part in (a, b)))
    return out


def partial(truth, prediction, covariate):
    """Return the correlation of each gene once a covariate is regressed out of both truth and prediction.

    With the log of the **true** library size as covariate: what is left when a spot's depth is known. Sequencing depth
    alone, used as the prediction of every gene, reaches a median r of 0.27 on her2st, because log-normalised values of
    shallow spots are mostly zeros; so r without this beside it flatters.

    Parameters
    ----------
    truth, prediction
        As for :func:`pearson`.
    covariate
        Float (n,) or (n, c), e.g. ``np.log(total counts of the spot)``. An intercept is added.

    Returns
    -------
    float (g,)
        NaN where nothing is left: truth or prediction is flat or a linear function of the covariate.

    Raises
    ------
    CourseError
        A covariate of another length or not finite, besides what :func:`pearson` raises.
    """
    from scipy.linalg import orth

    truth, prediction = _both(truth, prediction)
    covariate = matrix(covariate, "covariate")
    if len(covariate) != len(truth):
        raise CourseError(f"{len(covariate)} values of the covariate", f"{len(truth)}, one a spot", "match by name")
    basis = centred(covariate)
    basis = basis[:, basis.any(0)]
    basis = orth(basis / np.sqrt(dots(basis, basis))) if basis.size else basis
    left = []
    for part in (truth, prediction):
        z = centred(part)
        rest = z - basis @ (basis.T @ z)
        rest[:, dots(rest, rest) <= 1e-12 * dots(z, z)] = 0
        left.append(rest)
    return _cosine(*left)


def per_spot(truth, prediction, *, remove_means: bool = False):
    """Return the correlation of each **spot** over genes, float (n,).

    It is high for any prediction, the mean of the training spots included, because some genes are always abundant and
    others never. Report it apart from the gene-wise scores, and with ``remove_means``, which first takes each gene's
    mean over these spots from both sides: what is left is how the spot differs from the others.
    """
    truth, prediction = _both(truth, prediction)
    if remove_means:
        truth, prediction = centred(truth), centred(prediction)
    return _cosine(centred(truth.T), centred(prediction.T))


def scores(truth, prediction, xy, *, library=None, genes=None, permutations: int = 0, seed: int = 0, pitch=None):
    """Score a prediction of one section, one row a gene.

    Parameters
    ----------
    truth, prediction
        (n, g), e.g. both log1p of counts per 10,000.
    xy
        (n, 2) positions, in any unit.
    library
        Raw total counts of each spot over all genes, (n,), positive; adds the column ``partial``.
    genes
        Names of the rows; else 0, 1, ...
    permutations
        More than 0 adds one-sided p-values of both Moran's I (``p_moran_truth``, ``p_moran_bv``).
    pitch
        Spacing of the spots; measured if None.

    Returns
    -------
    pandas.DataFrame
        ``pearson``, ``spearman``, ``partial``, ``moran_truth``, ``moran_prediction``, ``moran_bv``, ``iou``,
        ``iou_chance``. NaN where the *truth* does not vary, since then nothing can be predicted. A *prediction* that
        does not vary says nothing, and scores 0 in ``pearson``, ``spearman``, ``partial``, ``moran_bv`` and ``iou``:
        else a model could drop its hard genes.

    Raises
    ------
    CourseError
        Fewer than 3 spots, shapes that differ, values that are not finite, a library size of 0.
    """
    import pandas as pd

    truth, prediction = _both(truth, prediction)
    names = pd.RangeIndex(truth.shape[1]) if genes is None else pd.Index(genes)
    if len(truth) < 3 or len(xy) != len(truth) or len(names) != truth.shape[1]:
        raise CourseError(
            f"{len(truth)} spots with {len(xy)} positions, {truth.shape[1]} genes with {len(names)} names",
            "3 or more spots, one position each, one name a gene", "pass one section whole",
        )  # fmt: skip
    graph = neighbours(xy, pitch=pitch)
    table = {"pearson": pearson(truth, prediction), "spearman": spearman(truth, prediction)}
    if library is not None:
        library = np.asarray(library, float)
        if library.shape != (len(truth),) or not (np.isfinite(library) & (library > 0)).all():
            raise CourseError(
                f"library sizes of shape {library.shape}, smallest {library.min() if library.size else 'none'}",
                "a positive total count for each spot", "drop empty spots; pass totals, not their logarithm",
            )  # fmt: skip
        table["partial"] = partial(truth, prediction, np.log(library))
    table["moran_prediction"] = moran(prediction, graph)
    if permutations:
        options = {"p": "permutation", "permutations": permutations, "seed": seed}
        table["moran_truth"], table["p_moran_truth"] = moran(truth, graph, **options)
        table["moran_bv"], table["p_moran_bv"] = moran_bv(prediction, truth, graph, **options)
    else:
        table["moran_truth"], table["moran_bv"] = moran(truth, graph), moran_bv(prediction, truth, graph)
    table["iou"], table["iou_chance"] = iou(truth, prediction, xy, pitch=pitch)
    flat_truth, flat = (~centred(part).any(0) for part in (truth, prediction))
    for name in ("pearson", "spearman", "partial", "moran_bv"):
        if name in table:
            table[name] = np.where(flat, 0.0, table[name])
    if permutations:
        table["p_moran_bv"] = np.where(flat, 1.0, table["p_moran_bv"])
    unknown = {name: flat_truth & (name != "moran_prediction") for name in table}
    table = {name: np.where(unknown[name], np.nan, column) for name, column in table.items()}
    order = ("pearson", "spearman", "partial", "moran_truth", "moran_prediction", "moran_bv", "iou", "iou_chance")
    order = sorted(table, key=lambda name: order.index(name) if name in order else len(order))
    return pd.DataFrame({name: table[name] for name in order}, index=names.rename("gene"))


def scores_by_section(truth, prediction, xy, sections, *, library=None, **options):
    """Return :func:`scores` of each section apart, one row a section and gene (columns ``section``, ``gene``, ...).

    ``sections`` (n,) names the section of each spot; the other arguments are as for :func:`scores`, all sections' spots
    one below the other.
    """
    import pandas as pd

    truth, prediction = _both(truth, prediction)
    sections, xy = np.asarray(sections).astype(str), np.asarray(xy, float)
    if len(sections) != len(truth) or len(xy) != len(truth):
        raise CourseError(f"{len(sections)} section names, {len(xy)} positions", f"{len(truth)} each", "match them")
    parts = {}
    for name in dict.fromkeys(sections):
        here = sections == name
        own = None if library is None else np.asarray(library)[here]
        parts[name] = scores(truth[here], prediction[here], xy[here], library=own, **options)
    return pd.concat(parts, names=["section"]).reset_index()


def medians(truth, prediction, sections, *, library) -> dict:
    """Return the median over sections and genes of :func:`pearson`, and of :func:`partial` given the log library size.

    A quick score where :func:`scores_by_section` would compute more than is needed; arguments as there.
    """
    truth, prediction = _both(truth, prediction)
    sections, depth = np.asarray(sections), np.log(np.asarray(library, float))
    parts = [sections == name for name in dict.fromkeys(sections.tolist())]
    plain = [pearson(truth[part], prediction[part]) for part in parts]
    adjusted = [partial(truth[part], prediction[part], depth[part]) for part in parts]
    return {"pearson": float(np.nanmedian(plain)), "partial": float(np.nanmedian(adjusted))}


def summary(table, *, top: int = 50):
    """Return one row a section and a last row ``mean`` of :func:`scores_by_section`'s columns.

    Median over genes (NaN left out), the number of genes scored, and ``pearson_top``: the mean of the ``top`` best.
    """
    import pandas as pd

    numbers = [name for name in table.columns if name not in ("section", "gene")]
    rows = {}
    for name, part in table.groupby("section", sort=False):
        best = part["pearson"].nlargest(top).mean()
        rows[name] = {"genes": part["pearson"].notna().sum(), **part[numbers].median(), "pearson_top": best}
    out = pd.DataFrame(rows).T
    out.loc["mean"] = out.mean()
    return out


def leiden(values, *, seed: int = 0, resolution: float = 1.0, n_neighbors: int = 15, components: int = 30):
    """Return Leiden clusters of spots by expression, measured or predicted, int (n,), 0 the largest.

    Genes are z-scored, so that abundant ones do not decide alone, reduced to principal components, and joined to their
    nearest neighbours; scanpy and igraph do the work. The same ``seed`` gives the same clusters. Neighbours are exact
    and weighted by a Gaussian: umap's weights take 17 s to start (it compiles, and imports TensorFlow), these 0.1 s.

    Parameters
    ----------
    values
        (n, g), log scale, of one section or of several on one scale.
    resolution
        Larger gives more clusters.

    Raises
    ------
    CourseError
        Fewer than 10 spots, values that are not finite, no gene that varies.
    """
    import anndata as ad
    import scanpy as sc

    from helpers import settings

    z = centred(matrix(values))
    z = z[:, z.any(0)]
    if len(z) < 10 or not z.shape[1]:
        raise CourseError(f"{len(z)} spots, {z.shape[1]} genes that vary", "10 spots and 1 gene or more", "use more")
    number = int(settings.rng(seed, "leiden").integers(2**31))
    table = ad.AnnData((z / z.std(0)).astype(np.float32))
    components = min(components, min(z.shape) - 1)
    if components >= 1:
        sc.pp.pca(table, n_comps=components, random_state=number)
    n_neighbors = min(n_neighbors, len(z) - 1)
    sc.pp.neighbors(
        table, n_neighbors=n_neighbors, use_rep="X_pca" if components >= 1 else "X", random_state=number,
        method="gauss", transformer="sklearn",
    )  # fmt: skip
    sc.tl.leiden(
        table, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=number,
        key_added="leiden",
    )  # fmt: skip
    labels = table.obs["leiden"].astype(int).to_numpy()
    sizes = np.bincount(labels)
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]

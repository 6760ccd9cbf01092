"""Methods: marker signatures scored in cells, ranked by domain, and turned into names.

Enrichmap (version 0.2.3) scores in three steps, and each can be left out. *Raw*: the mean of log1p(1e4) over the
genes, weighted by their coefficient of variation. *Smoothed*: the mean raw score of a cell's six nearest neighbours -
**the cell itself is not among them**. *Corrected*: what a smooth surface over x and y (a GAM) leaves of the smoothed
score; it takes away every pattern as wide as the tissue, domains included.
"""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np

from helpers.messages import CourseError

STEPS = {"raw": (False, False), "smoothed": (True, False), "corrected": (True, True)}
"""Names of Enrichmap's settings: whether it smooths, and whether it corrects for spatial covariates."""
BASELINES = ("mean_z", "score_genes")
UNKNOWN = "Unknown"
LEAST_RISE = 0.5
"""Rise (sd) below which a signature says nothing about a domain, whatever its p-value (``assign(least=...)``).

Where cells were dealt out at random over the tissue, rises reach 0.25; where domains are real, the first is above 1.
"""


def lognorm(cells, genes=None):
    """Return log1p of counts per 10,000 of the cell's total, CSR float32 (cells, genes), from raw counts.

    The total is over **all** genes of ``cells``, also where ``genes`` asks for a few.
    """
    from scipy import sparse

    counts = sparse.csr_matrix(cells.X).astype(np.float32)
    if counts.nnz and (counts.data.min() < 0 or np.any(counts.data != np.rint(counts.data))):
        raise CourseError("counts that are normalised or negative", "raw counts in X", "take layers['counts']")
    total = np.asarray(counts.sum(1)).ravel()
    if genes is not None:
        counts = counts[:, cells.var_names.get_indexer(list(genes))]
    out = sparse.diags(1e4 / np.maximum(total, 1)).dot(counts).tocsr().astype(np.float32)
    out.data = np.log1p(out.data)
    return out


def _checked(cells, signatures):
    known = set(cells.var_names)
    for name, genes in signatures.items():
        missing = [gene for gene in genes if gene not in known]
        if missing or len(set(genes)) < 2:
            seen = f"{', '.join(missing[:3])} absent" if missing else f"{len(set(genes))} gene"
            raise CourseError(
                f"signature {name!r}: {seen}", "two or more genes of the data", "visium_hd_markers.present(...) first"
            )
    if not signatures or not cells.n_obs:
        seen = f"{len(signatures)} signatures, {cells.n_obs} cells"
        raise CourseError(seen, "at least one of each", "check the markers and the filter")
    return list(dict.fromkeys(gene for genes in signatures.values() for gene in genes))


def scores(cells, signatures, *, step: str = "smoothed", neighbours: int = 6, batch=None):
    """Return the score of each signature in each cell; ``cells`` is not changed.

    Parameters
    ----------
    cells
        AnnData of raw counts, ``obsm["spatial"]`` x, y.
    signatures
        Name to genes, all of them in ``cells``, at least two each (``visium_hd_markers.present``).
    step
        ``"raw"``, ``"smoothed"`` or ``"corrected"`` (Enrichmap, see this file's first lines); or a baseline:
        ``"mean_z"``, the mean of the genes' z-scores; ``"score_genes"``, scanpy's mean less that of control genes.
    neighbours
        Neighbours that are averaged.
    batch
        Section of each cell (n,), where there are several: neighbours and surface are found within each.

    Returns
    -------
    pandas.DataFrame
        float64, index ``obs_names``, one column a signature.

    Raises
    ------
    CourseError
        Unknown step, no raw counts, a signature with absent genes or fewer than two, fewer cells than neighbours.
    """
    import anndata
    import pandas as pd

    if step not in (*STEPS, *BASELINES):
        raise CourseError(f"step {step!r}", f"one of {', '.join((*STEPS, *BASELINES))}", "choose one")
    genes = _checked(cells, signatures)
    if step == "score_genes":
        return _score_genes(cells, signatures)
    values = lognorm(cells, genes)
    if step == "mean_z":
        dense = values.toarray().astype(np.float64)
        dense = (dense - dense.mean(0)) / np.maximum(dense.std(0), 1e-12)
        place = {gene: number for number, gene in enumerate(genes)}
        made = {name: dense[:, [place[gene] for gene in own]].mean(1) for name, own in signatures.items()}
        return pd.DataFrame(made, index=cells.obs_names)
    if STEPS[step][0] and cells.n_obs <= neighbours:
        raise CourseError(f"{cells.n_obs} cells", f"more than the {neighbours} neighbours", 'step="raw"')
    slim = anndata.AnnData(values, obs=pd.DataFrame(index=cells.obs_names), var=pd.DataFrame(index=genes))
    slim.obsm["spatial"] = np.asarray(cells.obsm["spatial"], float)
    if batch is not None:
        slim.obs["batch"] = pd.Categorical(np.asarray(batch).astype(str))
    em = _enrichmap()
    smoothing, correct = STEPS[step]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar for a tenth of a second
        warnings.simplefilter("ignore")
        em.tl.score(
            adata=slim, gene_set={name: list(own) for name, own in signatures.items()}, smoothing=smoothing,
            correct_spatial_covariates=correct, n_neighbors=neighbours, batch_key=None if batch is None else "batch",
        )  # fmt: skip
    return slim.obs[[f"{name}_score" for name in signatures]].set_axis(list(signatures), axis=1).astype(float)


def _enrichmap():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import enrichmap
    except ImportError as error:
        raise CourseError(f"enrichmap not installed ({error})", "the packages of notebook 10", "make setup") from error
    return enrichmap


def _score_genes(cells, signatures):
    import anndata
    import pandas as pd
    import scanpy as sc

    table = anndata.AnnData(lognorm(cells), obs=pd.DataFrame(index=cells.obs_names), var=cells.var[[]].copy())
    bins = int(np.clip(table.n_vars // 25, 2, 25))  # scanpy's 25 leave none to compare with in a small panel
    for number, genes in enumerate(signatures.values()):
        try:
            sc.tl.score_genes(table, list(genes), score_name=f"s{number}", n_bins=bins, ctrl_size=20, random_state=0)
        except RuntimeError as error:
            seen = f"{table.n_vars} genes, none as high as those of a signature ({error})"
            raise CourseError(seen, "genes to compare with", 'step="mean_z"') from error
    columns = [f"s{number}" for number in range(len(signatures))]
    return table.obs[columns].set_axis(list(signatures), axis=1).astype(float)


def _labels(groups):
    """Return names as an object array, with "" for what has none (NaN, None, "")."""
    return np.array(["" if one is None or one != one else str(one) for one in np.asarray(groups, object)], object)


def rank(scores, groups, *, standardise: bool = True):
    """Rank the signatures of each domain: decoupler's ``rankby_group``, Wilcoxon, one domain against the rest.

    Cells without a domain are left out. The p-values take cells for independent and domains for given: smoothed scores
    are anything but independent, and domains found from the same counts are not given. Read ``meanchange``, and rank
    *raw* scores where a p-value decides.

    Parameters
    ----------
    scores
        DataFrame of :func:`scores`.
    groups
        Domain of each cell (n,); NaN, None or "" for none.
    standardise
        Divide each signature by its standard deviation first. Without it (the tutorial) abundant genes win.

    Returns
    -------
    pandas.DataFrame
        ``group``, ``name``, ``stat``, ``meanchange``, ``pval``, ``padj``; of each group the largest ``meanchange``
        first; groups in natural order. Names are text, not categories.

    Raises
    ------
    CourseError
        Other lengths, or fewer than two domains.
    """
    import anndata
    import decoupler as dc

    groups = _labels(groups)
    if len(groups) != len(scores):
        raise CourseError(f"{len(scores)} cells, {len(groups)} domains", "one each", "take both from the same table")
    use = (groups != "") & np.isfinite(scores.to_numpy(float)).all(1)
    kinds = sorted(set(groups[use]), key=_natural)
    if len(kinds) < 2:
        raise CourseError(f"{len(kinds)} domain in {use.sum()} cells", "two or more", "raise the number of domains")
    values = scores.to_numpy(float)[use]
    if standardise:
        values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    table = anndata.AnnData(values)
    table.var_names, table.obs_names = list(scores.columns), scores.index[use].astype(str)
    table.obs["group"] = groups[use].astype(str)
    found = dc.tl.rankby_group(table, groupby="group", reference="rest", method="wilcoxon")
    found = found.astype({"group": str, "name": str}).drop(columns="reference")
    found["order"] = found["group"].map({name: number for number, name in enumerate(kinds)})
    found = found.sort_values(["order", "meanchange", "name"], ascending=[True, False, True])
    return found.drop(columns="order").reset_index(drop=True)[["group", "name", "stat", "meanchange", "pval", "padj"]]


def _natural(name):
    import re

    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def assign(ranking, *, alpha: float = 0.05, least: float = 0.0, to_zero: bool = False):
    """Name each domain by the elbow: the signatures before the largest gap of ``meanchange``.

    The rule of the tutorial, with its gaps closed: the table is sorted here; equal values are never parted; where all
    are equal, all are named; a signature that is alone is named; where none is up, the domain is "Unknown".

    Parameters
    ----------
    ranking
        DataFrame of :func:`rank` (or decoupler's own).
    alpha
        Signatures with ``padj`` below it and a ``meanchange`` above 0 count for the elbow.
    least
        ``meanchange`` that one before the gap must reach to be named (:data:`LEAST_RISE` where scores are in sd).
    to_zero
        Let the gap from the last signature to zero compete. Without it (the tutorial) a domain of two signatures
        always gets one name, however close they are.

    Returns
    -------
    pandas.DataFrame
        Index the domains: ``label`` (names joined by "/"), ``names`` (tuple), ``gap`` (NaN where there is none),
        ``candidates`` (number of signatures that count).
    """
    import pandas as pd

    rows = {}
    table = ranking.dropna(subset=["group"]).astype({"group": str, "name": str})
    for group in dict.fromkeys(table["group"]):
        part = table[(table["group"] == group) & (table["meanchange"] > 0) & (table["padj"] < alpha)]
        part = part.sort_values(["meanchange", "name"], ascending=[False, True])
        values, names = part["meanchange"].to_numpy(float), list(part["name"])
        ends = np.append(values, 0.0) if to_zero else values
        gaps = ends[:-1] - ends[1:]
        if not len(names):
            chosen, gap = (), np.nan
        elif not len(gaps) or gaps.max() <= 1e-12:
            chosen, gap = tuple(names), np.nan
        else:
            chosen, gap = tuple(names[: int(gaps.argmax()) + 1]), float(gaps.max())
        chosen = tuple(name for name, value in zip(chosen, values) if value > least)
        rows[group] = {"label": "/".join(chosen) or UNKNOWN, "names": chosen, "gap": gap, "candidates": len(names)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def best(scores, *, standardise: bool = False):
    """Return the signature with the highest score of each cell, Series of text.

    "" where all scores are equal, as in a cell without any marker: the tutorial's ``idxmax`` gives such cells to
    whichever signature comes first.

    Parameters
    ----------
    standardise
        Compare z-scores. Rare types gain, common ones lose.
    """
    import pandas as pd

    values = scores.to_numpy(float)
    if standardise:
        values = (values - np.nanmean(values, axis=0)) / np.maximum(np.nanstd(values, axis=0), 1e-12)
    values = np.where(np.isfinite(values), values, -np.inf)
    names = np.array(list(scores.columns), object)[values.argmax(1)]
    top = values.max(1)
    level = (values >= top[:, None] - 1e-12).all(1) & (values.shape[1] > 1)
    names[level | ~np.isfinite(top)] = ""
    return pd.Series(names, index=scores.index, name="signature")


def dots(cells, signatures, groups):
    """Return, for a dot plot, the mean log1p(1e4) and the share of cells with the gene, of each group and gene.

    Returns
    -------
    pandas.DataFrame
        ``signature``, ``gene``, ``group``, ``mean``, ``share``.
    """
    import pandas as pd

    genes = _checked(cells, signatures)
    groups = _labels(groups)
    values, place = lognorm(cells, genes), {gene: number for number, gene in enumerate(genes)}
    rows = []
    for group in sorted(set(groups) - {""}, key=_natural):
        part = values[groups == group]
        mean, share = np.asarray(part.mean(0)).ravel(), part.getnnz(axis=0) / part.shape[0]
        rows += [
            {"signature": name, "gene": gene, "group": group, "mean": mean[place[gene]], "share": share[place[gene]]}
            for name, own in signatures.items() for gene in own
        ]  # fmt: skip
    return pd.DataFrame(rows)

"""Methods, Visium HD: shares of cell types in each bin - what all deconvolution has in common, FlashDeconv, baselines.

A bin of 8 um holds pieces of one to four cells. Deconvolution asks which mixture of a reference's mean profiles gives
the bin's counts. Every function here and in ``visium_hd_rctd`` returns the same table: bins x types, rows that sum to 1
and are NaN where a bin had too few molecules to be asked.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError, note

MIN_UMI = 20
"""Least molecules of a bin. Below, the answer is the noise of a handful of genes."""
MIN_GENES = 10
MIN_CELLS = 25
"""Reference cells below which RCTD drops a type (Cable 2022); the others average what there is."""
MARKERS = 10


def check(bins, reference, *, cell_type: str = "cell_type") -> list[str]:
    """Return the genes that bins and reference share, in the bins' order.

    Parameters
    ----------
    bins, reference
        AnnData of raw counts; the reference's cells are named in ``obs[cell_type]``.

    Raises
    ------
    CourseError
        No such column, a cell without a name, fewer than two types, counts that are none, fewer than ``MIN_GENES``
        genes in common.
    """
    if cell_type not in reference.obs:
        seen = f"no column {cell_type!r} in the reference (it has {', '.join(reference.obs.columns) or 'none'})"
        raise CourseError(seen, "a column with each cell's type", "name it: cell_type=...")
    missing = int(reference.obs[cell_type].isna().sum())
    if missing or reference.obs[cell_type].nunique() < 2:
        seen = f"{missing} cells without a type, {reference.obs[cell_type].nunique()} types"
        raise CourseError(seen, "every reference cell named, two types or more", "leave out the unnamed cells")
    for what, table in (("bins", bins), ("reference", reference)):
        data = table.X.data if hasattr(table.X, "indptr") else np.asarray(table.X).ravel()
        if len(data) and (data.min() < 0 or np.any(data != np.rint(data))):
            seen = f"{what} with counts that are negative or no whole numbers"
            raise CourseError(seen, "raw counts", "deconvolve before normalising, or pass layers['counts']")
        if not table.var_names.is_unique:
            raise CourseError(f"{what} with a gene twice", "each gene once", "call var_names_make_unique()")
    genes = [gene for gene in bins.var_names if gene in set(reference.var_names)]
    if len(genes) < MIN_GENES:
        raise CourseError(
            f"{len(genes)} genes that bins and reference share (bins have {', '.join(bins.var_names[:3])})",
            f"at least {MIN_GENES}", "use symbols on both sides, of one species",
        )  # fmt: skip
    return genes


def enough(bins, min_umi: float = MIN_UMI, *, genes=None):
    """Return which bins are asked, bool (bins,): at least ``min_umi`` molecules, one among ``genes``, and in tissue.

    Raises
    ------
    CourseError
        None has so many.
    """
    umi = np.asarray(bins.X.sum(1)).ravel()
    kept = umi >= max(min_umi, 1)
    if genes is not None:
        kept &= np.asarray(bins[:, genes].X.sum(1)).ravel() > 0
    if "in_tissue" in bins.obs:
        kept &= bins.obs["in_tissue"].to_numpy().astype(bool)
    if not kept.any():
        seen = f"no bin of {bins.n_obs} with {min_umi:g} molecules (the richest has {umi.max(initial=0):g})"
        raise CourseError(seen, "some that can be asked", "lower min_umi, or take larger bins")
    return kept


def shares(weights, kept, bins, types):
    """Return weights as a table of shares.

    Parameters
    ----------
    weights
        float (kept bins, types), negative ones count as 0.
    kept
        bool (bins,), where they belong.

    Returns
    -------
    pandas.DataFrame
        float64, bins x types. Rows sum to 1; NaN for a bin that was not asked or got no weight at all.
    """
    import pandas as pd

    positive = np.clip(np.asarray(weights, float), 0, None)
    total = positive.sum(1, keepdims=True)
    out = np.full((bins.n_obs, len(types)), np.nan)
    out[np.flatnonzero(kept)] = np.divide(positive, total, out=np.full_like(positive, np.nan), where=total > 0)
    return pd.DataFrame(out, index=bins.obs_names.copy(), columns=pd.Index([str(one) for one in types], name="type"))


def flashdeconv(bins, reference, *, cell_type: str = "cell_type", min_umi: float = MIN_UMI, seed: int = 0, **options):
    """Return shares by FlashDeconv: least squares on a sketch of the genes, neighbours pulled together.

    Parameters
    ----------
    bins
        AnnData of raw counts with ``obsm["spatial"]``; not changed.
    options
        For ``flashdeconv.tl.deconvolve``, e.g. ``lambda_spatial=0.`` (no smoothing; default: found from the data).

    Returns
    -------
    pandas.DataFrame
        As :func:`shares`; ``attrs`` has ``lambda_spatial``, ``genes``, ``converged``.
    """
    import flashdeconv as fd

    genes = check(bins, reference, cell_type=cell_type)
    if "spatial" not in bins.obsm:
        raise CourseError("bins without obsm['spatial']", "the centre of each bin", "take the table of the section")
    kept = enough(bins, min_umi, genes=genes)
    asked, named = bins[kept, genes].copy(), reference[:, genes].copy()
    named.obs["cell_type"] = named.obs[cell_type].astype(str).to_numpy(object)
    asked.obs = asked.obs[[]].copy()
    fd.tl.deconvolve(asked, named, cell_type_key="cell_type", random_state=seed, **options)
    found, facts = asked.obsm["flashdeconv"], asked.uns["flashdeconv_params"]
    out = shares(found.to_numpy(), kept, bins, found.columns)
    out.attrs = {"lambda_spatial": facts["lambda_spatial"], "genes": facts["n_genes_used"],
                 "converged": bool(facts["converged"])}  # fmt: skip
    return out


def profiles(reference, genes, *, cell_type: str = "cell_type"):
    """Return the mean share of each gene in each type, DataFrame (types x genes), rows that sum to 1.

    Each cell counts the same, however many molecules it gave.
    """
    import pandas as pd
    from scipy import sparse

    counts = sparse.csr_matrix(reference[:, genes].X, dtype=float)
    total = np.asarray(counts.sum(1)).ravel()
    kept = total > 0
    even = sparse.diags(1 / total[kept]) @ counts[np.flatnonzero(kept)]
    codes, names = pd.factorize(reference.obs[cell_type].astype(str).to_numpy()[kept], sort=True)
    member = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes)))
    mean = (member @ even).toarray() / np.bincount(codes)[:, None]
    return pd.DataFrame(mean / mean.sum(1, keepdims=True), index=names, columns=list(genes))


def least_squares(bins, reference, *, cell_type: str = "cell_type", min_umi: float = MIN_UMI):
    """Return shares by non-negative least squares on the mean profiles: no noise model, no platform, no neighbours.

    The baseline that a deconvolution has to beat (Lawson and Hanson 1974).
    """
    from scipy.optimize import nnls

    genes = check(bins, reference, cell_type=cell_type)
    kept = enough(bins, min_umi, genes=genes)
    known = profiles(reference, genes, cell_type=cell_type)
    counts = bins[kept, genes].X
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, float)
    counts /= counts.sum(1, keepdims=True)
    design = np.ascontiguousarray(known.to_numpy().T)
    return shares(np.stack([nnls(design, row)[0] for row in counts]), kept, bins, known.index)


def markers(reference, genes, *, cell_type: str = "cell_type", n: int = MARKERS) -> dict[str, list[str]]:
    """Return the ``n`` genes of each type that lead most over the mean of the others (log ratio of shares)."""
    known = profiles(reference, genes, cell_type=cell_type)
    share = known.to_numpy()
    others = (share.sum(0) - share) / (len(share) - 1)
    floor = 0.1 / len(genes)  # a gene nobody has leads over nothing
    lead = np.log(share + floor) - np.log(others + floor)
    return {name: [genes[at] for at in np.argsort(-row)[:n]] for name, row in zip(known.index, lead)}


def marker_means(bins, reference, *, cell_type: str = "cell_type", min_umi: float = MIN_UMI, n: int = MARKERS):
    """Return what a mean of marker genes says: standardised over the bins, negative ones 0, rows divided by their sum.

    These are no shares, though they look like it; they can be ranked and correlated.
    """
    genes = check(bins, reference, cell_type=cell_type)
    kept = enough(bins, min_umi, genes=genes)
    sets = markers(reference, genes, cell_type=cell_type, n=n)
    asked = bins[kept]
    total = np.asarray(asked.X.sum(1)).ravel()
    score = np.stack([
        np.log1p(np.asarray(asked[:, names].X.sum(1)).ravel() / total * 1e4 / len(names)) for names in sets.values()
    ], axis=1)  # fmt: skip
    score = (score - score.mean(0)) / np.maximum(score.std(0), 1e-9)
    return shares(score, kept, bins, sets)


def dominant(found):
    """Return the type with the largest share of each bin, object array (bins,), "" where there is none."""
    table = found.to_numpy(float)
    asked = ~np.isnan(table).any(1)
    out = np.full(len(table), "", object)
    out[asked] = np.asarray(found.columns, object)[table[asked].argmax(1)]
    return out


def rare(reference, *, cell_type: str = "cell_type", min_cells: int = MIN_CELLS) -> dict[str, int]:
    """Return the types with fewer than ``min_cells`` cells and how many they have, and say it on stderr."""
    cells = reference.obs[cell_type].astype(str).value_counts()
    few = {name: int(number) for name, number in cells.items() if number < min_cells}
    if few:
        listed = ", ".join(f"{name} ({number})" for name, number in few.items())
        note(f"note: types with fewer than {min_cells} reference cells: {listed}")
    return few

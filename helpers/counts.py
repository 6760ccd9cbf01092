"""Methods: from raw counts to the genes and spots a model is trained on, and the pairing with tiles."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

MIN_SPOT_SHARE = 0.01
"""A gene is kept if at least this share of spots has ``MIN_COUNT`` of it (SpaCell, 2019)."""
MIN_COUNT = 1
MIN_GENE_SHARE = 0.01
"""A spot is kept if it has at least this share of the kept genes."""
TARGET_SUM = 1e4
"""Library size after normalisation."""


def join(tables):
    """Return one table of several sections: spots named ``<spot>_<section>``, genes the union, missing counts 0.

    Parameters
    ----------
    tables
        Section id to AnnData of raw counts; barcodes may repeat over sections, genes may differ.
    """
    import anndata as ad
    import pandas as pd

    joined = ad.concat(tables, join="outer", fill_value=0, index_unique="_")
    ids = [table.var["gene_id"] for table in tables.values() if "gene_id" in table.var]
    if ids:  # a gene's id is that of the first section that has it
        known = pd.concat(ids)
        joined.var["gene_id"] = known[~known.index.duplicated()].reindex(joined.var_names)
    return joined


def filter_counts(table, *, min_spot_share=MIN_SPOT_SHARE, min_count=MIN_COUNT, min_gene_share=MIN_GENE_SHARE):
    """Drop genes seen in too few spots, then spots with too few genes.

    Parameters
    ----------
    table
        AnnData of raw counts, spots x genes; not changed.

    Returns
    -------
    AnnData
        A filtered copy. ``uns["filtered"]`` says how many genes and spots went.

    Raises
    ------
    CourseError
        Nothing is left.
    """
    detected = table.X >= min_count
    genes = np.asarray(detected.sum(0)).ravel() >= max(1, int(np.ceil(min_spot_share * table.n_obs)))
    per_spot = np.asarray(detected[:, genes].sum(1)).ravel()
    spots = per_spot >= max(1, int(np.ceil(min_gene_share * genes.sum())))
    if not genes.any() or not spots.any():
        raise CourseError(
            f"{genes.sum()} genes and {spots.sum()} spots left after filtering",
            f"genes in >= {min_spot_share:.0%} of spots and spots with >= {min_gene_share:.0%} of genes",
            "check the counts, or lower the thresholds",
        )
    kept = table[spots][:, genes].copy()
    kept.uns["filtered"] = {
        "genes_before": int(table.n_vars),
        "genes_after": int(genes.sum()),
        "spots_before": int(table.n_obs),
        "spots_after": int(spots.sum()),
    }
    return kept


def normalise(table, *, target_sum: float = TARGET_SUM):
    """Return a copy with ``layers["counts"]`` raw and ``X`` = log1p of counts scaled to ``target_sum`` per spot."""
    import scanpy as sc

    out = table.copy()
    out.layers["counts"] = out.X.copy()
    out.X = out.X.astype(np.float32)
    sc.pp.normalize_total(out, target_sum=target_sum)
    sc.pp.log1p(out)
    return out


def most_variable(table, n: int):
    """Return the names of the ``n`` genes with the largest variance of ``X`` over spots, most variable first.

    ``X`` should be log-normalised: on raw counts the variance mostly ranks abundance. Ties go to the earlier gene. (The
    published SpaCell code keeps the *first* n columns instead.)

    Raises
    ------
    CourseError
        ``n`` is not positive. With fewer than ``n`` genes all are returned.
    """
    from sklearn.utils.sparsefuncs import mean_variance_axis

    if n < 1:
        raise CourseError(f"n={n} genes", "a positive number", "set N_GENES, e.g. 2048")
    variance = mean_variance_axis(table.X.tocsr(), axis=0)[1] if hasattr(table.X, "tocsr") else np.var(table.X, axis=0)
    order = np.argsort(-variance, kind="stable")
    return list(table.var_names[order[:n]])


def pair(spot_names, table):
    """Match tiles to spots by name.

    Parameters
    ----------
    spot_names
        Names of the spots the tiles were cut under, in tile order.
    table
        AnnData with those names in ``obs_names``.

    Returns
    -------
    tile_index, paired
        Positions of the tiles kept, int array (m,), and the AnnData rows in the same order.

    Raises
    ------
    CourseError
        No name in common, or a repeated tile name.
    """
    import pandas as pd

    names = pd.Index(spot_names)
    if not names.is_unique:
        raise CourseError("repeated tile names", "one tile a spot", "cut each spot once")
    tile_index = np.flatnonzero(names.isin(table.obs_names))
    if len(tile_index) == 0:
        raise CourseError(
            f"no tile name in the count table (tiles {list(names[:1])}..., spots {list(table.obs_names[:1])}...)",
            "the same spot names",
            "cut the tiles from the same section",
        )
    return tile_index, table[names[tile_index]].copy()

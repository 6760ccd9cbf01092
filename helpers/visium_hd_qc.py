"""Methods, Visium HD: which segmented cells to keep - counts, mitochondrial share, pieces of tissue that hang alone.

Neither filter knows what is biology. A rim of cells rich in mitochondrial counts may be dying tissue, a true change or
a mishap of the preparation; a piece that hangs alone may be a biopsy fragment or dirt. So each filter returns what it
took out and why, and the notebook shows the domains with and without it.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

MITO_PREFIX = "MT-"
"""Symbols of the 13 genes of the mitochondrial genome begin so (human; ``mt-`` in mice: case is ignored)."""
ISLAND_SHARE = 0.03
"""A piece of tissue with less than this share of the cells is an island, unless ``min_cells`` says otherwise. The
tutorial's 2,000 cells fit its own sample; a smaller crop would be all island."""
LEAST_ISLAND = 10
"""... and never fewer cells than this: in a tiny crop a share means nothing."""


def check_um(cells) -> np.ndarray:
    """Return the places of cells in microns, float64 (n, 2) x, y.

    Parameters
    ----------
    cells
        AnnData with ``obsm["spatial"]`` and ``uns["spatial_unit"]``.

    Raises
    ------
    CourseError
        No places, places that are not finite, or a unit other than ``"um"``: a radius in microns would mean something
        else in pixels, and nothing would say so.
    """
    if "spatial" not in cells.obsm:
        raise CourseError(f"obsm {sorted(cells.obsm)}", "the cells' places in obsm['spatial']", "aggregate them first")
    unit = cells.uns.get("spatial_unit")
    if unit != "um":
        raise CourseError(
            f"places in {unit or 'an unknown unit'}", "microns (uns['spatial_unit'] == 'um')",
            "take the cells from visium_hd_sopa.cells, which converts them once",
        )  # fmt: skip
    xy = np.asarray(cells.obsm["spatial"], float)
    if xy.ndim != 2 or xy.shape[1] < 2 or not np.isfinite(xy[:, :2]).all():
        raise CourseError(f"places of shape {xy.shape}, some not finite", "x and y of each cell", "segment again")
    return xy[:, :2]


def check_counts(cells):
    """Return the counts as CSR (n, genes), or refuse what was normalised already."""
    from scipy import sparse

    counts = sparse.csr_matrix(cells.X)
    if counts.nnz and (counts.data.min() < 0 or np.any(counts.data != np.rint(counts.data))):
        raise CourseError("counts that are negative or no whole numbers", "raw counts", "do this before normalising")
    return counts


def measure(cells):
    """Return the cells with scanpy's measures of quality, an AnnData of its own; the input stays as it is.

    Parameters
    ----------
    cells
        AnnData, raw counts cells x genes, symbols as names.

    Returns
    -------
    anndata.AnnData
        ``obs`` has ``total_counts``, ``n_genes_by_counts``, ``total_counts_mt``, ``pct_counts_mt`` (per cent, 0 to 100;
        0 for a cell without counts); ``var`` has ``mt``.

    Raises
    ------
    CourseError
        Counts that are no counts, or no mitochondrial gene: then a filter by their share would keep everything.
    """
    import scanpy as sc

    check_counts(cells)
    made = cells.copy()
    made.var["mt"] = made.var_names.str.upper().str.startswith(MITO_PREFIX)
    if not made.var["mt"].any():
        raise CourseError(
            f"no gene {MITO_PREFIX}... among {made.n_vars}", "mitochondrial genes on the panel",
            "set pct_mito to null: probe panels may lack them, and the filter has nothing to go by",
        )  # fmt: skip
    sc.pp.calculate_qc_metrics(made, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    made.obs["pct_counts_mt"] = made.obs["pct_counts_mt"].fillna(0.0)
    return made


def keep(cells, *, pct_mito: float | None = 25.0, min_cell_counts: int = 10, min_gene_counts: int = 3):
    """Return the cells and genes that pass, and why the others did not.

    Parameters
    ----------
    cells
        Of :func:`measure`.
    pct_mito
        Cells at or above this percentage of mitochondrial counts go; None: nobody goes for that.
    min_cell_counts, min_gene_counts
        Least molecules of a cell, and of a gene over the cells that stay.

    Returns
    -------
    anndata.AnnData
        A copy.
    pandas.Series
        Of all cells that came in: ``""`` (kept), ``"few counts"``, ``"mitochondrial"`` or ``"both"``.
        ``attrs["rare_genes"]``: genes left out.

    Raises
    ------
    CourseError
        A share instead of a percentage, cells that were not measured, nothing left.
    """
    import pandas as pd

    if pct_mito is not None and not 1 <= pct_mito <= 100:
        raise CourseError(f"pct_mito {pct_mito}", "per cent, from 1 to 100, or None", "25 is a quarter; 0.25 is not")
    if pct_mito is not None and "pct_counts_mt" not in cells.obs:
        raise CourseError("cells without pct_counts_mt", "measured cells", "cells = visium_hd_qc.measure(cells)")
    counts = check_counts(cells)
    few = np.asarray(counts.sum(1)).ravel() < min_cell_counts
    mito = np.zeros(cells.n_obs, bool) if pct_mito is None else cells.obs["pct_counts_mt"].to_numpy() >= pct_mito
    good = ~few & ~mito
    rare = np.asarray(counts[good].sum(0)).ravel() < min_gene_counts
    if not good.any() or rare.all():
        raise CourseError(
            f"{few.sum()} of {cells.n_obs} cells with few counts, {mito.sum()} rich in mitochondrial ones: none left",
            "cells that pass", "lower min_cell_counts or raise pct_mito, after a look at the histograms",
        )  # fmt: skip
    why = np.select([few & mito, few, mito], ["both", "few counts", "mitochondrial"], "")
    why = pd.Series(why, cells.obs_names, name="removed")
    why.attrs["rare_genes"] = int(rare.sum())
    return cells[good, ~rare].copy(), why


def neighbours(xy_um, *, radius_um: float):
    """Return who touches whom: a Delaunay triangulation without edges longer than ``radius_um``.

    The same graph as ``novae.spatial_neighbors(radius=, coord_type="generic")``, without importing torch.

    Parameters
    ----------
    xy_um
        float (n, 2).
    radius_um
        Longest edge, microns.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n, n), symmetric, 1.0 where two cells are neighbours, empty diagonal.
    """
    from scipy import sparse
    from scipy.spatial import Delaunay, QhullError, cKDTree

    xy = np.asarray(xy_um, float)
    if not radius_um > 0:
        raise CourseError(f"a radius of {radius_um} um", "a length above 0", "about three cell widths: 40 or 50 um")
    try:
        corners = Delaunay(xy).simplices
        pairs = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    except (QhullError, ValueError):  # fewer than three cells, or all on one line
        pairs = cKDTree(xy).query_pairs(radius_um, output_type="ndarray").reshape(-1, 2)
    pairs = pairs[np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T) <= radius_um]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    graph = sparse.csr_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), (len(xy), len(xy)))
    graph.data[:] = 1.0  # an inner edge belongs to two triangles
    return graph


def islands(cells, *, radius_um: float, min_cells: int | None = None):
    """Tell the pieces of tissue that no neighbour connects, and which of them are islands.

    Parameters
    ----------
    cells
        AnnData with places in microns. Not changed.
    radius_um
        Longest edge between neighbours (:func:`neighbours`). Too short and every gap makes islands; too long and none
        is left.
    min_cells
        A piece with fewer cells is an island. Default: ``ISLAND_SHARE`` of the cells, at least ``LEAST_ISLAND``.

    Returns
    -------
    pandas.DataFrame
        Index as ``cells.obs_names``: ``piece`` (int, 0 is the largest), ``cells`` (in that piece), ``island`` (bool).
        ``attrs["min_cells"]`` is the limit used.

    Raises
    ------
    CourseError
        Places that are not in microns, or a limit that makes all tissue an island.
    """
    import pandas as pd
    from scipy.sparse.csgraph import connected_components

    xy = check_um(cells)
    least = max(LEAST_ISLAND, round(ISLAND_SHARE * len(xy))) if min_cells is None else int(min_cells)
    _, label = connected_components(neighbours(xy, radius_um=radius_um), directed=False)
    sizes = np.bincount(label)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(len(sizes), int)
    rank[order] = np.arange(len(sizes))
    if sizes.max() < least:
        raise CourseError(
            f"no piece of {least} cells; the largest has {sizes.max()}", "tissue that holds together",
            "raise radius_um (is it in microns?) or lower min_cells",
        )  # fmt: skip
    out = pd.DataFrame({"piece": rank[label], "cells": sizes[label], "island": sizes[label] < least}, cells.obs_names)
    out.attrs["min_cells"] = least
    return out

"""Examiner: nuclei of a virtual Visium HD section, and whether the cells got their own molecules, against the truth."""

from __future__ import annotations

import numpy as np

from helpers import nuclei
from helpers.messages import CourseError

LEAST_UMI = 20
"""Cells that truly gave fewer molecules are not asked: one molecule more or less would be an error of 5 %."""


def _rings(outlines):
    """Return the outer rings of polygons as a list of float (k, 2); the largest part of one in several."""
    import shapely

    found = []
    for one in outlines:
        parts = getattr(one, "geoms", [one])
        found.append(shapely.get_coordinates(max(parts, key=lambda part: part.area).exterior)[:-1])
    return found


def nucleus_match(outlines_um, truth, *, box_um, mpp: float = 0.5) -> dict:
    """Score the nuclei found in a window, and pair them with the cells they belong to.

    Parameters
    ----------
    outlines_um
        GeoDataFrame (``visium_hd_sopa.outlines``) in um, indexed by cell id.
    truth
        With ``nuclei`` (cells, k, 2) in um and ``cells``.
    box_um
        x0, y0, x1, y1 of the window that was segmented, um. Nuclei are compared inside it only.
    mpp
        Pixel of the label images both are drawn into.

    Returns
    -------
    dict
        ``f1`` (IoU above one half), ``precision``, ``recall``, ``quality``, ``aji``, ``found``, ``true``; ``pairs``:
        a data frame with ``cell`` (id) and ``true`` (row of ``truth.cells``).
    """
    import pandas as pd

    x0, y0, x1, y1 = box_um
    shape = (int(round((y1 - y0) / mpp)), int(round((x1 - x0) / mpp)))
    if min(shape) < 16:
        raise CourseError(f"a window of {shape} px", "x0, y0, x1, y1 in microns", "pass the window that was cropped")
    mine = nuclei.rasterise([(ring - (x0, y0)) / mpp for ring in _rings(outlines_um.geometry)], shape=shape)
    known = np.asarray(truth.nuclei, float)
    centre = known.mean(1)
    near = np.flatnonzero(((centre > (x0 - 20, y0 - 20)) & (centre < (x1 + 20, y1 + 20))).all(1))
    theirs = nuclei.rasterise(list((known[near] - (x0, y0)) / mpp), shape=shape)
    scores = nuclei.match(mine, theirs)
    pairs = scores.pop("pairs")
    names = np.asarray(outlines_um.index.astype(str))
    table = pd.DataFrame({"cell": names[pairs[:, 0] - 1], "true": near[pairs[:, 1] - 1]})
    return {**scores, "pairs": table}


def inside(pairs, truth, *, box_um, margin_um: float = 15.0):
    """Return the pairs whose true nucleus lies in a window, at least a margin from its border.

    Cells at the border of a crop lost part of their bins; asking them would blame the method for the cut.
    """
    at = truth.cells[["x_um", "y_um"]].to_numpy(float)[pairs["true"].to_numpy()]
    low, high = np.asarray(box_um[:2]) + margin_um, np.asarray(box_um[2:]) - margin_um
    return pairs[((at > low) & (at < high)).all(1)].reset_index(drop=True)


def recovered(cells, truth, pairs, *, seed: int = 0) -> dict:
    """Compare the counts of cells with what those cells truly gave.

    Parameters
    ----------
    cells
        AnnData of ``visium_hd_sopa.cells``; where ``obs`` has ``prior``, cells are looked up by it.
    truth
        With ``cell_counts`` CSR (cells, genes), before diffusion, and ``genes["gene"]``.
    pairs
        Of :func:`nucleus_match`: the *same* for every method that is compared. A cell a method lost counts as empty.

    Returns
    -------
    dict
        Medians over cells: ``total_error`` (abs(counted - true) / true), ``ratio`` (counted / true); ``overlap``
        (2 sum of the smaller / sum of both: 1 if gene by gene the same); ``profile_r`` (Pearson's r of log1p counts
        over genes), ``profile_r_chance`` (with another cell's truth); and ``gene_r``, the mean over genes of Pearson's
        r of log1p counts over cells; ``total_r``, r of log totals; ``cells``, how many were asked.

    Notes
    -----
    Counts alone do not tell which molecule came from where: a lost and a foreign molecule of one gene cancel. Hence
    ``overlap`` is an upper bound of the share that is right.
    """
    from helpers import settings

    genes = [str(gene) for gene in truth.genes["gene"]]
    place = cells.var_names.get_indexer(genes)
    if (place < 0).any():
        seen = f"{(place < 0).sum()} genes of the truth are missing"
        raise CourseError(seen, "the section's genes", "keep all genes")
    ids = cells.obs["prior"].astype(str) if "prior" in cells.obs else cells.obs_names
    row_of = {name: k for k, name in enumerate(ids)}
    rows = np.array([row_of.get(name, -1) for name in pairs["cell"]], int)
    true = truth.cell_counts[pairs["true"].to_numpy()].toarray().astype(float)
    mine = np.zeros_like(true)
    mine[rows >= 0] = cells.X[rows[rows >= 0]][:, place].toarray()
    asked = true.sum(1) >= LEAST_UMI
    if asked.sum() < 10:
        raise CourseError(f"{int(asked.sum())} paired cells of {LEAST_UMI} molecules", "10 or more", "pair more nuclei")
    true, mine = true[asked], mine[asked]
    total, counted = true.sum(1), mine.sum(1)
    other = settings.rng(seed, "grade", "hd cells").permutation(len(true))
    both = np.log1p(mine), np.log1p(true)
    return {
        "total_error": float(np.median(np.abs(counted - total) / total)), "ratio": float(np.median(counted / total)),
        "overlap": float(np.median(2 * np.minimum(mine, true).sum(1) / (counted + total))),
        "profile_r": float(np.median(_rowwise(*both))),
        "profile_r_chance": float(np.median(_rowwise(both[0], both[1][other]))),
        "gene_r": float(np.mean(_rowwise(both[0].T, both[1].T)[(true > 0).mean(0) > 0.05])),
        "total_r": float(_rowwise(np.log1p(counted)[None], np.log1p(total)[None])[0]), "cells": int(asked.sum()),
    }  # fmt: skip


def _rowwise(one, two):
    """Return Pearson's r of the rows of two arrays, float (rows,); 0 where a row is constant."""
    one, two = (part - part.mean(1, keepdims=True) for part in (one, two))
    size = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    return np.divide((one * two).sum(1), size, out=np.zeros(len(one)), where=size > 0)


def compare(methods: dict, truth, pairs, *, seed: int = 0):
    """Return :func:`recovered` of several sets of cells as a data frame, one row a method, best overlap first."""
    import pandas as pd

    table = pd.DataFrame({name: recovered(cells, truth, pairs, seed=seed) for name, cells in methods.items()}).T
    return table.sort_values("overlap", ascending=False).rename_axis("cells by")

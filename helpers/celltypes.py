"""Methods: cells named by their expression, the names merged to STimage's four classes (door of ``celltypes``).

Profiles of a single-cell reference are compared with each cell, gene by gene corrected for how differently two
platforms catch a gene; marker genes are the alternative where there is no reference. Cells with too few counts take the
name most of their neighbours have. The paper transfers labels with Seurat and never checks them; :func:`quality` does.
"""

from __future__ import annotations

import numpy as np

from helpers.celltypes_profiles import correlation, likelihood, marker_scores, profiles
from helpers.messages import CourseError, note

__all__ = [
    "CLASSES", "MARKERS", "MERGE", "METHODS", "annotate", "fill", "merge", "profiles", "quality",
]  # fmt: skip

CLASSES = ("immune", "stromal", "cancer_epithelial", "endothelial")
MERGE = {
    "immune": (
        "b cell", "b cells", "b_cell", "t cell", "t cells", "t_cell", "nk cell", "nk cells", "myeloid", "macrophage",
        "macrophages", "microglia macrophages", "plasmablast", "plasmablasts", "plasma cell", "plasma_cell",
        "dendritic", "mast cell", "immune",
    ),
    "stromal": ("caf", "cafs", "fibroblast", "fibroblasts", "adipocyte", "stromal"),
    "cancer_epithelial": (
        "cancer epithelial", "cancer_epithelial", "normal epithelial", "normal_epithelial", "myoepithelial",
        "epithelial", "tumour", "tumor",
    ),
    "endothelial": ("endothelial", "pvl", "pericyte", "mural", "endothelial stalk", "endothelial tip"),
}  # fmt: skip
"""Types by class, as STimage merges those of Wu 2021: normal epithelium counts as cancer epithelial, perivascular-like
cells (PVL) as endothelial. Names are compared in lower case; ``-``, ``_`` and ``.`` are spaces."""
MARKERS = {
    "immune": "PTPRC CD3D CD3E CD2 TRAC IL7R CD8A MS4A1 CD79A CD19 MZB1 JCHAIN CD68 CD163 CD14 LYZ AIF1 ITGAX FCGR3A",
    "stromal": "COL1A1 COL1A2 COL3A1 LUM DCN POSTN PDGFRA FBLN1 MMP2 SFRP2 SFRP4 ADIPOQ",
    "cancer_epithelial": "EPCAM CDH1 KRT5 KRT7 KRT8 KRT14 KRT15 KRT17 KRT18 KRT19 ELF3 CEACAM6 SFTPC SCGB3A2",
    "endothelial": "PECAM1 VWF CLDN5 CDH5 KDR EGFL7 ERG FLT1 RAMP2 PDGFRB RGS5 NOTCH3 MCAM CSPG4",
}
"""Well-known marker genes of the four classes (textbook knowledge); those a panel lacks are left out."""
METHODS = ("likelihood", "correlation", "markers")
MIN_COUNTS = 10
MIN_SCORE = {"likelihood": 0.5, "correlation": 0.1, "markers": 0.1}
"""Least counts, and least score (probability, correlation, lead of the best marker set in standard deviations), of a
cell that gets a name of its own."""
MIN_MARKED = 0.25
"""... and the best marker set's mean, in standard deviations over the section: a cell without any marker is none of
them."""
MIN_GENES = 10
MAX_EDGE_UM = 50.0
"""Cells farther apart are no neighbours: across a lumen or a tear nobody is asked."""


def _key(name) -> str:
    return " ".join(str(name).lower().replace("-", " ").replace("_", " ").replace(".", " ").split())


def merge(types, table=None):
    """Return the class of each type, object array (n,); "" stays "".

    Parameters
    ----------
    types
        Names (n,).
    table
        Class -> its types; default :data:`MERGE`.

    Raises
    ------
    CourseError
        A type of no class; the nearest known name is suggested.
    """
    import difflib

    known = {_key(name): kind for kind, names in (table or MERGE).items() for name in names}
    names = np.asarray(types, object)
    out = {}
    for name in dict.fromkeys(names):
        if name is None or name != name or name == "":
            out[name] = ""
        elif _key(name) in known:
            out[name] = known[_key(name)]
        else:
            near = difflib.get_close_matches(_key(name), known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "give merge() a table that has it"
            raise CourseError(f"cell type {name!r}", "a type with a class", fix)
    return np.array([out[name] for name in names], object)


def annotate(
    table, reference=None, *, method="likelihood", markers=None, min_counts=MIN_COUNTS, min_score=None, classes=None
):
    """Name cells by their expression.

    Parameters
    ----------
    table
        AnnData of raw counts, cells x genes (controls left out).
    reference
        Profiles, DataFrame types x genes (:func:`profiles`); for the first two methods.
    method
        ``"likelihood"``: multinomial log likelihood of a cell's counts under each profile, with a scale for each gene
        and shares of the types fitted to the section. ``"correlation"``: with the logarithm of the profile, over genes.
        ``"markers"``: mean standardised expression of each marker set.
    markers
        Name -> genes (list, or text with spaces); default :data:`MARKERS`. Letter case is ignored.
    min_counts, min_score
        Cells below stay unnamed (``type`` "", ``labelled`` False).
    classes
        Table for :func:`merge`.

    Returns
    -------
    pandas.DataFrame
        Index as ``table.obs_names``: ``type``, ``class`` ("" unnamed), ``score`` (see :data:`MIN_SCORE`), ``total``
        (counts), ``labelled``.

    Raises
    ------
    CourseError
        Unknown method, negative or fractional counts, fewer than ``MIN_GENES`` genes in common (two marker sets).
    """
    import pandas as pd
    from scipy import sparse

    if method not in METHODS or (method != "markers" and reference is None):
        seen = f"method {method!r}, reference {'missing' if reference is None else 'given'}"
        raise CourseError(seen, f"one of {', '.join(METHODS)}; the first two with a reference", "correct the call")
    counts = sparse.csr_matrix(table.X).astype(np.float64)
    if counts.nnz and (counts.data.min() < 0 or np.any(counts.data != np.rint(counts.data))):
        raise CourseError("counts that are negative or no whole numbers", "raw counts", "name cells before normalising")
    total = np.asarray(counts.sum(1)).ravel()
    if method == "markers":
        names, score = marker_scores(counts, table.var_names, markers or MARKERS)
    else:
        genes = [gene for gene in table.var_names if gene in reference.columns]
        if len(genes) < MIN_GENES:
            raise CourseError(
                f"{len(genes)} genes that cells and reference share", f"at least {MIN_GENES}",
                "use symbols on both sides, of one species",
            )  # fmt: skip
        known = reference[genes].to_numpy(float)
        part = counts[:, table.var_names.get_indexer(genes)]
        names, score = list(reference.index), (likelihood if method == "likelihood" else correlation)(part, known)
    if method == "markers":
        ranked = np.sort(score, axis=1)
        best = ranked[:, -1] - ranked[:, -2]
    else:
        best = score.max(1)
    least = MIN_SCORE[method] if min_score is None else min_score
    named = (total >= min_counts) & (best >= least)
    if method == "markers":
        named &= ranked[:, -1] >= MIN_MARKED
    kinds = np.where(named, np.array(names, object)[score.argmax(1)], "")
    out = {"type": kinds, "class": merge(kinds, classes), "score": best, "total": total, "labelled": named}
    return pd.DataFrame(out, index=table.obs_names)


def fill(labels, xy_um, *, min_counts=MIN_COUNTS, max_edge_um: float = MAX_EDGE_UM):
    """Give cells with too few counts the class most of their neighbours have (STimage: Delaunay neighbours).

    Neighbours are those a Delaunay triangulation joins, at most ``max_edge_um`` apart, that were named themselves. The
    nearest of them decides a tie. The paper draws a random class where there are none; such cells stay unnamed here,
    and so do cells with counts enough that fit no type: they may be of another.

    Parameters
    ----------
    labels
        DataFrame of :func:`annotate` (``class``, ``total``); not changed.
    xy_um
        float (n, 2), cell centres.

    Returns
    -------
    pandas.DataFrame
        A copy with ``class`` filled and a bool column ``filled``.
    """
    out, xy_um = labels.copy(), np.asarray(xy_um, float)
    if len(out) != len(xy_um):
        raise CourseError(f"{len(out)} names, {len(xy_um)} places", "one each", "take both from the same table")
    names = out["class"].to_numpy(object).copy()
    named = names != ""
    missing = ~named & (out["total"].to_numpy() < min_counts)
    out["filled"] = False
    if missing.any() and named.any():
        kinds, codes = np.unique(names[named].astype(str), return_inverse=True)
        code = np.full(len(names), -1)
        code[named] = codes
        a, b = _edges(xy_um)
        long = np.hypot(*(xy_um[a] - xy_um[b]).T)
        use = missing[a] & named[b] & (long <= max_edge_um)
        votes = np.zeros((len(names), len(kinds)))
        # a vote counts 1, and a trifle more the nearer it is, so that the nearest decides a tie
        np.add.at(votes, (a[use], code[b[use]]), 1.0)
        nearest = np.zeros_like(votes)
        np.maximum.at(nearest, (a[use], code[b[use]]), 1 / (1 + long[use]))
        got = missing & (votes.sum(1) > 0)
        names[got] = kinds[(votes + 0.5 * nearest).argmax(1)][got]
        out["class"], out["filled"] = names, got
    return out


def _edges(xy):
    """Both directions of every Delaunay edge, as two int arrays; nearest neighbours where there is no triangulation."""
    from scipy.spatial import Delaunay, QhullError, cKDTree

    try:
        corners = Delaunay(xy).simplices
        pairs = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    except (QhullError, ValueError):  # fewer than three cells, or all on one line
        near = cKDTree(xy).query(xy, k=min(3, len(xy)))[1].reshape(len(xy), -1)
        pairs = np.stack([np.repeat(np.arange(len(xy)), near.shape[1]), near.ravel()], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]]


def quality(predicted, truth, *, classes=CLASSES) -> dict:
    """Compare names with the truth.

    Parameters
    ----------
    predicted, truth
        Names (n,); "" in ``predicted`` is unnamed, and counts as wrong in the accuracy over all cells.

    Returns
    -------
    dict
        ``accuracy`` (of all cells), ``accuracy_named`` (of those that have a name), ``named`` (share), ``majority``
        (share of the commonest true class: what one answer for all would score), ``balanced`` (mean recall),
        ``macro_f1``; ``confusion`` (DataFrame, rows the truth, columns the prediction, and ``unnamed``); ``by_class``
        (DataFrame: precision, recall, f1, cells).
    """
    import pandas as pd

    predicted, truth = (np.asarray(names, object).astype(str) for names in (predicted, truth))
    strange = sorted(set(truth) - set(classes) | set(predicted) - set(classes) - {""})
    if strange or len(predicted) != len(truth) or not len(truth):
        seen = f"{len(predicted)} names" + (f", among them {strange[0]!r}" if strange else "")
        raise CourseError(seen, f"{len(truth)} names, each one of {', '.join(classes)}", "merge the types first")
    columns = [*classes, ""]
    confusion = pd.crosstab(truth, predicted).reindex(index=classes, columns=columns, fill_value=0)
    confusion = confusion.rename(columns={"": "unnamed"}).rename_axis(index="truth", columns="predicted")
    right, named = np.diag(confusion[list(classes)]), confusion[list(classes)].to_numpy()
    cells, claimed = confusion.sum(1).to_numpy(), named.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = {"precision": right / claimed, "recall": right / cells, "f1": 2 * right / (claimed + cells)}
        by_class = pd.DataFrame({**scores, "cells": cells}, index=pd.Index(classes, name="class"))
    present = by_class[by_class["cells"] > 0]
    if (present["recall"] == 0).any():
        note(f"no cell of {', '.join(present.index[present['recall'] == 0])} was named rightly")
    return {
        "accuracy": float(right.sum() / cells.sum()), "accuracy_named": float(right.sum() / max(named.sum(), 1)),
        "named": float(named.sum() / cells.sum()), "majority": float(cells.max() / cells.sum()),
        "balanced": float(present["recall"].mean()), "macro_f1": float(present["f1"].mean()),
        "confusion": confusion, "by_class": by_class,
    }  # fmt: skip

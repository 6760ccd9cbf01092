"""Examiner: do segmented nuclei match the virtual ones, and do explanations point at cells that express the gene?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.messages import CourseError


# ---------------------------------------------------------------- nuclei
def drawn_nuclei(truth, *, mpp: float, box):
    """Return the nuclei of a virtual section as the picture shows them, and what they are.

    Parameters
    ----------
    truth
        The section's truth: ``cells``, ``nuclei`` (polygons in um).
    mpp
        Microns per full-resolution pixel.
    box
        (x0, y0, width, height) in full-resolution pixels.

    Returns
    -------
    labels : int32 (height, width)
        Label i is row i - 1 of ``cells``. Nuclei in focus lie over deeper ones, as they are painted.
    cells : pandas.DataFrame
        Rows of ``truth.cells`` near the box, with ``x_px``, ``y_px`` inside it.

    Notes
    -----
    The renderer paints an outline with its antialiased border, so a nucleus of 40 px looks a third larger than its
    polygon. What is graded is the picture, so the labels are painted alike.
    """
    import cv2

    x0, y0, width, height = (int(value) for value in box)
    polygons, table = truth.nuclei / mpp - [x0, y0], truth.cells
    low, high = polygons.min(1), polygons.max(1)
    near = np.flatnonzero(((high > 0) & (low < [width, height])).all(1))
    deep = table["deep"].to_numpy()[near]
    near = near[np.argsort(~deep, kind="stable")]  # deeper ones first
    labels = np.zeros((height, width), np.int32)
    for label, row in enumerate(near, start=1):
        a, b = np.floor(low[row]).astype(int) - 2, np.ceil(high[row]).astype(int) + 2
        patch = np.zeros((b - a)[::-1], np.uint8)
        points = np.round((polygons[row] - a - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(patch, [points], 255, cv2.LINE_AA, 4)
        c, d = np.maximum(a, 0), np.minimum(b, [width, height])
        inside = patch[c[1] - a[1] : d[1] - a[1], c[0] - a[0] : d[0] - a[0]] > 127
        labels[c[1] : d[1], c[0] : d[0]][inside] = label
    cells = table.iloc[near].reset_index(drop=True)
    return labels, cells.assign(x_px=cells["x_um"] / mpp - x0, y_px=cells["y_um"] / mpp - y0)


def identify(labels, drawn, cells) -> pd.DataFrame:
    """Return which cell each segmented nucleus is: the one it shares most pixels with.

    Parameters
    ----------
    labels
        int (y, x), segmented nuclei.
    drawn, cells
        From :func:`drawn_nuclei` for the same window.

    Returns
    -------
    pandas.DataFrame
        The rows of ``cells``, indexed by ``label``, with ``share``: how much of the segmented nucleus is that cell.
        A nucleus with less than a third of one is left out: nobody can say whose it is.
    """
    labels, drawn = np.asarray(labels), np.asarray(drawn)
    if labels.shape != drawn.shape:
        raise CourseError(f"labels {labels.shape} and {drawn.shape}", "one window", "resize, or cut both alike")
    width = len(cells) + 1
    both, shared = np.unique(labels.ravel().astype(np.int64) * width + drawn.ravel(), return_counts=True)
    table = pd.DataFrame({"label": both // width, "cell": both % width, "shared": shared})
    table = table[(table["label"] > 0) & (table["cell"] > 0)]
    best = table.sort_values("shared", kind="stable").groupby("label").tail(1).set_index("label").sort_index()
    share = best["shared"] / np.bincount(labels.ravel(), minlength=2)[best.index]
    best, share = best[share >= 1 / 3], share[share >= 1 / 3]
    found = cells.iloc[best["cell"].to_numpy() - 1].set_index(best.index)
    return found.assign(share=share)


# ---------------------------------------------------------------- explanations
def expression_by_type(genes) -> pd.DataFrame:
    """Return how much of a gene a cell of each type makes, relative to the highest type, float (genes, types).

    It is the generator's own table: RNA content of the type times its profile, without the patient's shifts and
    without programmes (hypoxia, nuclear size, ...), which change a gene within a type.
    """
    from helpers.virtual import expression

    panel = expression.panel()
    content = np.array([expression.RNA_CONTENT[name] for name in panel.types])
    level = pd.DataFrame((panel.weights * content[:, None]).T, index=panel.genes, columns=list(panel.types))
    missing = [gene for gene in genes if gene not in level.index]
    if missing:
        raise CourseError(f"gene {missing[0]!r}", "a gene of the virtual panel", "choose from data/genes.csv")
    level = level.loc[list(genes)]
    return level.div(level.max(axis=1).where(lambda highest: highest > 0, 1), axis=0)


def expressing(types, genes, *, share: float = 0.5) -> pd.DataFrame:
    """Return whether cells belong to a type that expresses a gene, bool (cells, genes).

    Parameters
    ----------
    types
        Series of cell types, indexed by nucleus.
    share
        A type counts from this share of the highest type on.
    """
    table = expression_by_type(genes).T >= share
    return pd.DataFrame(table.reindex(types.astype(str)).to_numpy(), index=types.index, columns=list(genes))


def grade_scores(scores, types, *, least: int = 4) -> pd.DataFrame:
    """Grade the scores of one tile's nuclei against the true types, one row a gene.

    Parameters
    ----------
    scores
        Data frame (nuclei, genes), indexed by label.
    types
        Series of true cell types by label; nuclei without one are not graded.
    least
        A gene is graded only where at least so many nuclei express it, and so many do not.

    Returns
    -------
    pandas.DataFrame
        ``precision`` of the k highest, k being the number that express the gene; ``chance``, their share in the tile;
        ``lift``, (precision - chance) / (1 - chance): 0 is chance, 1 perfect; ``auc``; ``nuclei``.
    """
    from helpers import explain

    known = scores.index.intersection(types.index)
    truth = expressing(types.loc[known], scores.columns)
    rows = []
    for gene in scores.columns:
        positive, mine = truth[gene].to_numpy(), scores.loc[known, gene].to_numpy()
        if min(positive.sum(), (~positive).sum()) < least:
            continue
        precision, chance = explain.precision_at_k(mine, positive)
        rows.append({
            "gene": gene, "precision": precision, "chance": chance, "lift": (precision - chance) / (1 - chance),
            "auc": explain.area(mine, positive), "nuclei": len(known),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["gene", "precision", "chance", "lift", "auc", "nuclei"])


def grade_ways(ways, kinds, *, least: int = 4) -> pd.DataFrame:
    """Grade several ways of explaining over many tiles.

    Parameters
    ----------
    ways
        Name of the way -> number of the tile -> data frame (nuclei, genes) of scores by label.
    kinds
        Number of the tile -> Series of true types by label.

    Returns
    -------
    pandas.DataFrame
        One row a way and gene: the columns of :func:`grade_scores`, averaged over tiles, and ``tiles``, their number.
    """
    parts = [grade_scores(frame, kinds[tile], least=least).assign(way=way)
             for way, frames in ways.items() for tile, frame in frames.items()]  # fmt: skip
    grouped = pd.concat(parts, ignore_index=True).groupby(["way", "gene"], sort=False)
    return grouped.mean().assign(tiles=grouped.size()).reset_index()

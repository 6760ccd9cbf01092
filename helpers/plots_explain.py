"""Examiner's room: figures of nuclei and of what a model saw in them."""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure, picture

DIVERGING = "RdBu_r"


def _edges(axis, labels, colour, *, lw: float = 0.9):
    """Draw the borders of a bool mask or label image."""
    from skimage.measure import find_contours

    labels = np.pad(np.asarray(labels), 1)
    for number in np.unique(labels[labels > 0]):
        rows, columns = np.nonzero(labels == number)
        top, left = rows.min() - 1, columns.min() - 1
        part = labels[top : rows.max() + 2, left : columns.max() + 2] == number
        for line in find_contours(part.astype(float), 0.5):
            axis.plot(line[:, 1] + left - 1, line[:, 0] + top - 1, color=colour, lw=lw, solid_joinstyle="round")


def nuclei(tiles, labels, titles, *, mpp: float, matched=None, drawn=None):
    """Show tiles bare (above) and with the outlines of their nuclei (below).

    Parameters
    ----------
    tiles, labels
        Lists of uint8 RGB (y, x, 3) and int (y, x).
    titles
        One a tile.
    matched
        Per tile the labels that match a true nucleus; the others are drawn in another colour.
    drawn
        Per tile the true label image; nuclei that were missed are drawn too.
    """
    from matplotlib.lines import Line2D

    figure, axes = new_figure(2, len(tiles), size=(2.9 * len(tiles), 6.2), squeeze=False)
    for column, (tile, label, title) in enumerate(zip(tiles, labels, titles)):
        picture(axes[0, column], tile, mpp=mpp, title=title)
        axis = picture(axes[1, column], tile, mpp=mpp)
        hits = np.unique(label) if matched is None else matched[column][:, 0]
        if drawn is not None:
            missed = ~np.isin(drawn[column], matched[column][:, 1])
            _edges(axis, np.where(missed, drawn[column], 0), OKABE_ITO[6])
        _edges(axis, np.where(np.isin(label, hits), label, 0), OKABE_ITO[2])
        _edges(axis, np.where(np.isin(label, hits), 0, label), OKABE_ITO[1])
    if matched is not None:
        names = {OKABE_ITO[2]: "right", OKABE_ITO[1]: "found, not so in truth", OKABE_ITO[6]: "missed"}
        handles = [Line2D([], [], color=colour, label=name) for colour, name in names.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def scored(tile, labels, rows: dict, *, mpp: float, truth=None, title: str = ""):
    """Show scores of nuclei: one row for each way of scoring, one column for each gene, the H&E at the left.

    Parameters
    ----------
    tile, labels
        uint8 RGB (y, x, 3) and int (y, x).
    rows
        Name of the way -> data frame (nuclei, genes) of scores by label. Each panel has its own symmetric scale round
        0: compare patterns, not colours. Scores without a negative one are shown in viridis.
    truth
        Optional bool data frame (nuclei, genes): nuclei of a type that expresses the gene are outlined.
    """
    first = next(iter(rows.values()))
    genes = list(first.columns)
    size = (2.35 * (len(genes) + 1), 2.45 * len(rows))
    figure, axes = new_figure(len(rows), len(genes) + 1, size=size, squeeze=False)
    for line, (name, frame) in zip(axes, rows.items()):
        picture(line[0], tile, mpp=mpp)
        line[0].set_ylabel(name, fontweight="bold")
        for axis, gene in zip(line[1:], genes):
            picture(axis, np.repeat(tile.mean(2, keepdims=True), 3, axis=2).astype(np.uint8) // 3 + 170, mpp=mpp)
            shown = np.full(int(labels.max(initial=0)) + 1, np.nan)
            shown[frame.index] = frame[gene]
            reach = max(float(np.nanmax(np.abs(frame[gene]))) if len(frame) else 0.0, 1e-12)
            signed = bool((frame[gene] < 0).any())
            image = np.where(labels > 0, shown[labels], np.nan)
            axis.imshow(image, cmap=DIVERGING if signed else "viridis", vmin=-reach if signed else 0, vmax=reach,
                        interpolation="nearest")  # fmt: skip
            if truth is not None:
                wanted = truth.index[truth[gene]]
                _edges(axis, np.where(np.isin(labels, wanted), labels, 0), "black", lw=0.7)
            if name == next(iter(rows)):
                axis.set_title(gene)
    axes[0, 0].set_title("H&E")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return figure


def ways(table, *, value: str, chance: float, label: str, title: str = ""):
    """Show a score of several ways of explaining, a row each, with a point for each gene and a bar at the mean.

    Parameters
    ----------
    table
        Data frame with columns ``way``, ``gene`` and ``value``.
    chance
        Where a way that knows nothing lies.
    """
    names, genes = list(dict.fromkeys(table["way"])), list(dict.fromkeys(table["gene"]))
    figure, axis = new_figure(size=(7.0, 0.36 * len(names) + 1.1))
    axis.axvline(chance, color="0.5", lw=1, ls="--")
    for place, name in enumerate(names):
        mine = table[table["way"] == name]
        mean = mine[value].mean()
        axis.plot([mean, mean], [place - 0.3, place + 0.3], color="black", lw=2)
        for number, gene in enumerate(genes):
            points = mine.loc[mine["gene"] == gene, value]
            axis.plot(points, np.full(len(points), place + 0.08 * (number - (len(genes) - 1) / 2)), "o", ms=4,
                      color=OKABE_ITO[number % 8], alpha=0.8, label=gene if not place else None)  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def latent(points, values: dict, *, title: str = ""):
    """Show spots in the plane of the first two principal components, a panel for each gene's expression.

    Parameters
    ----------
    points
        Float (n, 2).
    values
        Gene -> float (n,), log(1 + counts per 10,000).
    """
    figure, axes = new_figure(1, len(values), size=(2.9 * len(values) + 0.4, 2.9), squeeze=False)
    for axis, (gene, colour) in zip(axes.flat, values.items()):
        drawn = axis.scatter(*np.asarray(points).T, c=colour, s=5, lw=0, cmap="viridis")
        axis.set(title=gene, xlabel="component 1", xticks=[], yticks=[])
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    axes[0, 0].set_ylabel("component 2")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return figure


def against_probability(expression, proba, genes, *, bins: int = 8, title: str = ""):
    """Show the measured expression of held-out spots against the predicted probability of *high*, binned.

    Parameters
    ----------
    expression, proba
        Float (n, genes).
    """
    figure, axes = new_figure(1, len(genes), size=(2.6 * len(genes), 2.8), squeeze=False)
    for axis, gene, truth, said in zip(axes.flat, genes, np.asarray(expression).T, np.asarray(proba).T):
        axis.plot(said, truth, "o", ms=2, color="0.75", mew=0)
        edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)))
        group = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, max(len(edges) - 2, 0))
        middles = [(said[group == b].mean(), truth[group == b].mean()) for b in np.unique(group)]
        axis.plot(*np.array(middles).T, "o-", ms=4, color=OKABE_ITO[0])
        axis.set(xlim=(0, 1), title=gene, xlabel="probability of high")
    axes[0, 0].set_ylabel("measured, log(1 + CP10k)")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return figure


def morphology(tables: dict, columns: dict, *, title: str = ""):
    """Show what nuclei look like that score high for one gene and for another, a panel for each measurement.

    Parameters
    ----------
    tables
        Group -> data frame of ``nuclei.morphology``.
    columns
        Name of the column -> label with its unit.
    """
    figure, axes = new_figure(1, len(columns), size=(2.6 * len(columns), 2.7), squeeze=False)
    for axis, (column, label) in zip(axes.flat, columns.items()):
        groups = [table[column].dropna() for table in tables.values()]
        boxes = axis.boxplot(groups, widths=0.6, showfliers=False, patch_artist=True)
        for box, colour in zip(boxes["boxes"], OKABE_ITO):
            box.set(facecolor=colour, alpha=0.55)
        for median in boxes["medians"]:
            median.set(color="black")
        axis.set_xticks(range(1, len(tables) + 1), list(tables))
        axis.set_ylabel(label)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return figure

"""Examiner's room: figures of bags, contexts and predicted cells (notebook 07)."""

from __future__ import annotations

import numpy as np

from helpers import section as sec
from helpers.plots import OKABE_ITO, new_figure, picture


def bags(section, spot: int, index, mask, *, tile_um: float, grid: int = 3, title: str = ""):
    """Show a spot on the H&E with its tile, its sub-spots and its neighbours' tiles.

    Parameters
    ----------
    section
        A section.
    spot
        Row of the spot shown.
    index, mask
        (n, k): the table of neighbours of this section.
    tile_um
        Side of a spot's tile in microns.
    """
    from matplotlib.patches import Rectangle

    points, side = sec.xy(section), sec.um_to_px(section, tile_um)
    around = np.asarray(index)[spot][np.asarray(mask)[spot] > 0]
    reach = np.abs(points[around] - points[spot]).max(initial=side) + side
    rows, columns = sec.shape(section)
    x0, y0 = (int(max(0, value - reach)) for value in points[spot])
    x1, y1 = int(min(columns, points[spot][0] + reach)), int(min(rows, points[spot][1] + reach))
    figure, axes = new_figure(1, 2, size=(8.0, 3.9), width_ratios=[1.35, 1])
    picture(axes[0], sec.window(section, x0, y0, x1 - x0, y1 - y0), mpp=sec.mpp(section), title=title)
    for one in (*around, spot):
        colour = OKABE_ITO[1] if one == spot else OKABE_ITO[0]
        corner = points[one] - side / 2 - [x0, y0]
        axes[0].add_patch(Rectangle(corner, side, side, fill=False, ec=colour, lw=1.6))
    left, top = (int(max(0, round(value - side / 2))) for value in points[spot])
    width, height = (int(min(side, limit - start)) for start, limit in ((left, columns), (top, rows)))
    picture(axes[1], sec.window(section, left, top, width, height), mpp=sec.mpp(section), title="its sub-spots")
    for line in np.arange(1, grid) * side / grid:
        axes[1].axvline(line, color="white", lw=1.2)
        axes[1].axhline(line, color="white", lw=1.2)
    return figure


def contexts(tables: dict, *, value: str = "pearson", label: str = "", ceilings: dict | None = None):
    """Show the score of each row of a comparison, one panel a data set, one point a fold.

    Parameters
    ----------
    tables
        Title -> data frame with columns ``row``, ``fold`` and ``value``; rows in the order of the last one, their mean
        as a bar. A panel may lack rows.
    ceilings
        Title -> the attainable value, drawn as a line.
    """
    figure, axes = new_figure(1, len(tables), size=(4.3 * len(tables), 3.6), squeeze=False, sharey=True)
    names = list(dict.fromkeys(name for table in reversed(tables.values()) for name in table["row"]))
    for axis, (title, table) in zip(axes[0], tables.items()):
        folds = list(dict.fromkeys(table["fold"]))
        for place, name in enumerate(names):
            mine = table[table["row"] == name].set_index("fold")[value]
            if mine.empty:  # not every row in every panel
                continue
            colour = OKABE_ITO[7] if "ridge" in name else OKABE_ITO[0]
            axis.barh(place, mine.mean(), color=colour, alpha=0.3, height=0.7)
            axis.plot(mine.reindex(folds), np.full(len(folds), place), "o", color=colour, ms=4)
        if ceilings and np.isfinite(ceilings.get(title, np.nan)):
            axis.axvline(ceilings[title], color=OKABE_ITO[2], ls="--", lw=1.2, label="attainable")
            axis.legend(fontsize=7, loc="lower right")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel=label, title=title)
    axes[0, 0].invert_yaxis()
    return figure


def scales(target, rows: dict, *, label: str, title: str = ""):
    """Show predictions of one gene against what was measured, one panel a row, with the line of equality.

    Parameters
    ----------
    target
        Float (n,).
    rows
        Title -> float (n,).
    """
    figure, axes = new_figure(1, len(rows), size=(3.1 * len(rows), 3.2), squeeze=False, sharex=True, sharey=True)
    ends = [float(np.min(target)), float(np.max(np.concatenate([target, *rows.values()])))]
    for axis, (name, values), colour in zip(axes[0], rows.items(), OKABE_ITO):
        axis.plot(target, values, ".", color=colour, ms=3, alpha=0.5)
        axis.plot(ends, ends, ":", color="0.4", lw=1)
        axis.set(xlabel=f"measured, {label}", title=name)
    axes[0, 0].set_ylabel(f"predicted, {label}")
    figure.suptitle(title)
    return figure


def on_slide(section, values: dict, *, tile_um: float, label: str, max_px: int = 700, columns: int = 4):
    """Show predicted genes on a slide, the H&E first: squares of ``tile_um`` at the section's spots.

    Parameters
    ----------
    values
        Gene -> float (n_spots,). Each gene has its own scale.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    small, scale = sec.thumbnail(section, max_px)
    points, side = sec.xy(section) * scale, sec.um_to_px(section, tile_um) * scale
    width = min(columns, len(values) + 1)
    lines = -(-(len(values) + 1) // width)
    figure, axes = new_figure(lines, width, size=(2.9 * width, 2.7 * lines), squeeze=False)
    flat = axes.ravel()
    picture(flat[0], small, mpp=sec.mpp(section) / scale, title="H&E")
    for axis, (name, value) in zip(flat[1:], values.items()):
        picture(axis, np.full_like(small, 255), title=name)
        squares = PatchCollection([Rectangle(p - side / 2, side, side) for p in points], lw=0)
        squares.set(array=np.asarray(value, float), cmap="viridis")
        axis.add_collection(squares)
        figure.colorbar(squares, ax=axis, shrink=0.7, label=label)
    for axis in flat[len(values) + 1 :]:
        axis.set_visible(False)
    return figure


def tcga(table, genes=("SOX10", "CD37", "COL1A1"), **options):
    """Show genes of a predicted TCGA slide as squidpy draws them (README of DeepSpot); the figure.

    Parameters
    ----------
    table
        AnnData of ``readers_deepspot.read_tcga``; a picture in ``uns["spatial"]`` is drawn below, if there is one.
    genes
        Those the table lacks are left out; ``obs`` columns are allowed.
    options
        For ``squidpy.pl.spatial_scatter``.
    """
    import warnings

    import squidpy

    from helpers.messages import CourseError

    names = [name for name in genes if name in table.var_names or name in table.obs]
    if not names:
        expected = f"genes of the table, e.g. {table.var_names[0]}"
        raise CourseError(f"none of {', '.join(genes)}", expected, "choose others")
    drawn = {"size": 20, **options}
    if table.uns.get("spatial"):
        drawn = {"img_alpha": 0.8, **drawn}
    else:  # no picture: plain dots
        drawn |= {"shape": None}
    figure, axes = new_figure(1, len(names), size=(4.0 * len(names), 3.6), squeeze=False)
    where = list(axes[0]) if len(names) > 1 else axes[0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        squidpy.pl.spatial_scatter(table, color=names, ax=where, fig=figure, **drawn)
    return figure

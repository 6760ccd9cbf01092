"""Examiner's room: figures of notebook 10 that compare - pieces, domains, elbows, shares of bins, methods, costs."""

from __future__ import annotations

import numpy as np

from helpers.plots import new_figure
from helpers.plots_hd import FADE, NONE, SPARE, View, colours, dots, frame, legend, log_scale, natural, text, tissue

BLUE, RED, GREY = "#0072B2", "#D55E00", "#B0B0B0"


def domain_range(view: View, xy_um, levels: dict, *, notes=None, chosen=None, columns: int = 3, size: float = 2.9):
    """Show domains at several levels; a domain has the colour of the one at the next level it shares most cells with.

    Parameters
    ----------
    levels
        Title -> domain of each cell (n,), few domains first.
    notes
        Title -> text added to it, e.g. a score.
    chosen
        Title of the level whose colours are those of the other figures; default the first.
    """
    figure, axes = frame(len(levels), columns=columns, size=size, below=0.0)
    titles, named = list(levels), [text(names) for names in levels.values()]
    start = titles.index(chosen) if chosen in titles else 0
    paints = {start: colours(named[start])}
    for at, near in [*((n, n - 1) for n in range(start + 1, len(titles))), *((n, n + 1) for n in range(start)[::-1])]:
        paints[at] = _follow(named[at], named[near], paints[near])
    for number, (axis, title, names) in enumerate(zip(axes, titles, named)):
        paint = paints[number]
        more = f" ({notes[title]})" if notes and title in notes else ""
        tissue(axis, view, title=f"{title}: {len(paint)} domains{more}", fade=FADE)
        dots(axis, view, xy_um, [paint.get(one, NONE) for one in names])
    return figure


def _follow(names, before, paint) -> dict:
    """Return colours of domains: each, largest first, takes that of the earlier domain most of its cells were in."""
    kinds, sizes = np.unique(names[names != ""].astype(str), return_counts=True)
    out = {}
    for name in kinds[np.argsort(-sizes, kind="stable")]:
        was = before[names == name].astype(str)
        earlier, number = np.unique([one for one in was if one], return_counts=True)
        order = [paint[one] for one in earlier[np.argsort(-number)] if one in paint]
        wanted = [one for one in [*order[:1], *SPARE] if one not in out.values()]
        out[name] = wanted[0] if wanted else SPARE[len(out) % len(SPARE)]
    return out


def molecules(view: View, maps: dict):
    """Show a window of the H&E beside the molecules of its bins.

    Parameters
    ----------
    view
        Of the window.
    maps
        Title -> molecules per bin, float (rows, columns), which fill the window.
    """
    figure, axes = frame(1 + len(maps), columns=4, size=2.6)
    tissue(axes[0], view, title="H&E")
    for axis, (title, one) in zip(axes[1:], maps.items()):
        image = axis.imshow(one, extent=view.extent, cmap="magma", vmin=0, interpolation="nearest")
        axis.set(xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=8.5)
        figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def islands(view: View, xy_um, labels, kept):
    """Show connected pieces of tissue: each in a colour with its number of cells; those of islands with a cross."""
    labels, kept = np.asarray(labels), np.asarray(kept, bool)
    sizes = {label: int((labels == label).sum()) for label in np.unique(labels)}
    order = sorted(sizes, key=sizes.get, reverse=True)
    figure, axes = new_figure(1, 1, size=(4.6, 4.0), squeeze=False)
    axis = tissue(axes[0, 0], view, title=f"{len(order)} connected pieces", fade=FADE)
    named = [f"{sizes[one]} cells" for one in order[:6]]
    paint = {one: SPARE[place] if place < 6 else NONE for place, one in enumerate(order)}
    dots(axis, view, xy_um, [paint[one] for one in labels])
    out = ~kept & view.holds(xy_um)
    axis.scatter(*np.asarray(xy_um)[out].T, marker="x", s=12, c="#000000", linewidths=0.7)
    shown = {f"{number + 1}: {name}": SPARE[number] for number, name in enumerate(named)}
    legend(figure, shown | ({f"x: {int((~kept).sum())} in islands": "#000000"} if (~kept).any() else {}), columns=4)
    return figure


def elbow(ranking, assigned, *, columns: int = 4, size=(2.5, 1.9)):
    """Show how each domain got its name: rises of the signatures, sorted, and the gap where the elbow is.

    Parameters
    ----------
    ranking, assigned
        DataFrames of ``visium_hd_signatures.rank`` and ``.assign``.
    """
    across = min(columns, len(assigned))
    down = -(-len(assigned) // across)
    figure, axes = new_figure(down, across, size=(size[0] * across, size[1] * down + 0.3), squeeze=False, sharey=True)
    for axis, (group, row) in zip(axes.flat, assigned.iterrows()):
        part = ranking[(ranking["group"] == group) & (ranking["meanchange"] > 0)]
        part = part.sort_values("meanchange", ascending=False)
        values, names = part["meanchange"].to_numpy(), list(part["name"])
        chosen = len(row["names"])
        place = np.arange(len(values))
        axis.bar(place, values, color=[BLUE if one in row["names"] else GREY for one in names], width=0.75)
        if chosen and chosen < len(values) and np.isfinite(row["gap"]):
            axis.axvline(chosen - 0.5, color=RED, ls="--", lw=1)
            axis.text(chosen - 0.42, values.max(), f"gap {row['gap']:.2f}", color=RED, fontsize=7, va="top")
        axis.set_xticks(place)
        axis.set_xticklabels(names, rotation=55, ha="right", fontsize=6.5, rotation_mode="anchor")
        axis.set_title(f"{group}: {row['label']}", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("rise (sd)", fontsize=8)
    for axis in axes.flat[len(assigned) :]:
        axis.set_axis_off()
    return figure


def matrix(table, *, label: str, title: str = "", limits=None, diverging: bool = True, fmt: str = ".1f"):
    """Show a data frame as a coloured matrix with its numbers (a matrix plot, a confusion, an agreement)."""
    values = table.to_numpy(float)
    most = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    low, high = limits or ((-most, most) if diverging else (0, most))
    rows, columns = values.shape
    figure, axis = new_figure(size=(1.9 + 0.58 * columns, 1.25 + 0.34 * rows))
    drawn = axis.imshow(values, cmap="RdBu_r" if diverging else "viridis", vmin=low, vmax=high, aspect="auto")
    for (row, column), number in np.ndenumerate(values):
        if np.isfinite(number):
            at = (number - low) / max(high - low, 1e-9)
            shade = "w" if (abs(at - 0.5) > 0.36 if diverging else at < 0.6) else "k"
            axis.text(column, row, f"{number:{fmt}}", ha="center", va="center", fontsize=7, color=shade)
    axis.set(xticks=range(columns), yticks=range(rows), title=title)
    axis.set_xticklabels(table.columns, rotation=35, ha="right", rotation_mode="anchor", fontsize=7.5)
    axis.set_yticklabels(table.index, fontsize=7.5)
    figure.colorbar(drawn, ax=axis, label=label, shrink=0.9)
    return figure


def dot_plot(table, *, title: str = ""):
    """Show marker genes by group: size the share of cells with the gene, colour the mean, per gene from 0 to 1.

    Parameters
    ----------
    table
        DataFrame of ``visium_hd_signatures.dots``.
    """
    genes = table.drop_duplicates(["signature", "gene"])[["signature", "gene"]].reset_index(drop=True)
    groups = natural(table["group"].unique())
    place = {tuple(pair): number for number, pair in enumerate(genes.itertuples(index=False))}
    x = [place[pair] for pair in zip(table["signature"], table["gene"])]
    y = [groups.index(one) for one in table["group"]]
    mean = table["mean"] / table.groupby(["signature", "gene"])["mean"].transform("max").clip(lower=1e-9)
    figure, axis = new_figure(size=(max(4.0, 1.8 + 0.24 * len(genes)), max(2.8, 1.7 + 0.28 * len(groups))))
    drawn = axis.scatter(x, y, s=90 * table["share"], c=mean, cmap="viridis_r", vmin=0, vmax=1, linewidths=0)
    axis.set(xticks=range(len(genes)), yticks=range(len(groups)), ylim=(len(groups) - 0.4, -0.6))
    axis.set_xticklabels(genes["gene"], rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticklabels(groups, fontsize=8)
    axis.set_title(title, pad=34)
    for name, part in genes.groupby("signature", sort=False):
        middle, first, last = part.index.to_numpy().mean(), part.index.min(), part.index.max()
        axis.plot([first - 0.35, last + 0.35], [-0.75] * 2, color="k", lw=1, clip_on=False)
        axis.text(middle, -0.9, name, ha="left", va="bottom", fontsize=7, rotation=30)
    figure.colorbar(drawn, ax=axis, label="mean, of the gene's highest", shrink=0.9)
    for share in (0.25, 0.5, 1.0):
        axis.scatter([], [], s=90 * share, c="0.5", linewidths=0, label=f"{share:.0%}")
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.32), ncols=3, fontsize=7, title="cells with it",
                title_fontsize=7).set_in_layout(True)  # fmt: skip
    return figure


def shares(tables: dict, rows, columns, types, *, bin_um: float = 8.0, size: float = 1.7):
    """Show maps of the share of each type in the bins: a row a method (and the truth), a column a type.

    Drawn in the frame of the array (its rows down, its columns to the right), where bins are pixels.

    Parameters
    ----------
    tables
        Name -> DataFrame, bins x types, shares 0-1; NaN where the method gave none. A type it lacks stays empty.
    rows, columns
        int (n,): ``array_row`` and ``array_col`` of the bins.
    """
    from matplotlib_scalebar.scalebar import ScaleBar

    rows, columns = np.asarray(rows) - np.min(rows), np.asarray(columns) - np.min(columns)
    figure, axes = new_figure(
        len(tables), len(types), size=(size * len(types) + 0.8, size * 1.05 * len(tables) + 0.2), squeeze=False
    )
    for number, (line, (name, table)) in enumerate(zip(axes, tables.items())):
        for axis, kind in zip(line, types):
            picture = np.full((rows.max() + 1, columns.max() + 1), np.nan)
            if kind in table:
                picture[rows, columns] = np.rint(table[kind].to_numpy(float) * 10) / 10
            else:
                axis.text(0.5, 0.5, "no such type", ha="center", va="center", transform=axis.transAxes, fontsize=7)
            drawn = axis.imshow(picture, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if number == 0:
                axis.set_title(kind, fontsize=8.5)
        line[0].set_ylabel(name, fontweight="bold", fontsize=8)
    bar = {"box_alpha": 0.75, "length_fraction": 0.3, "font_properties": {"size": 6}}
    axes[-1, 0].add_artist(ScaleBar(bin_um, "um", location="lower right", **bar))
    figure.colorbar(drawn, ax=axes, label="share of the bin", shrink=0.7, pad=0.01)
    return figure


def disagreement(view: View, xy_um, cells, pairs, *, what: str = "cells"):
    """Show where methods disagree, and how often each two agree.

    Parameters
    ----------
    cells, pairs
        DataFrames of ``visium_hd.agreement``.
    """
    figure, axes = new_figure(1, 3, size=(10.6, 3.7), width_ratios=[1, 1, 1.05])
    share = cells["share"].to_numpy(float)
    tissue(axes[0], view, title="what most methods say", fade=FADE)
    names = text(cells["majority"])
    paint = colours(names)
    dots(axes[0], view, xy_um, [paint.get(one, NONE) for one in names])
    disputed = np.mean(share[np.isfinite(share)] < 1) if np.isfinite(share).any() else 0
    tissue(axes[1], view, title=f"{disputed:.0%} of {what} in dispute (grey: agreed)", fade=FADE)
    places, split = np.asarray(xy_um), share < 1  # NaN: nobody named the cell
    dots(axes[1], view, places[~split], ["#D8D8D8"] * int((~split).sum()), size=2.5)
    drawn = dots(axes[1], view, places[split], share[split], cmap="viridis", vmin=0.25, vmax=1, size=4)
    figure.colorbar(drawn, ax=axes[1], shrink=0.7, pad=0.02, label="share of methods that agree")
    values = pairs.to_numpy(float)
    axes[2].imshow(values, cmap="viridis", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(values):
        shade = "w" if number < 0.6 else "k"
        axes[2].text(column, row, f"{number:.2f}", ha="center", va="center", fontsize=7.5, color=shade)
    axes[2].set(xticks=range(len(pairs)), yticks=range(len(pairs)), title="same name, each two")
    axes[2].set_xticklabels(pairs.columns, rotation=35, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes[2].set_yticklabels(pairs.index, fontsize=7.5)
    legend(figure, paint, columns=10)
    return figure


def counts_scatter(true, found: dict, *, unit: str = "molecules of a cell", size: float = 3.0):
    """Show the counts each method gives a cell against those it truly has; the line is what should be.

    Parameters
    ----------
    true
        float (n,).
    found
        Title -> float (n,), NaN where a method lost the cell.
    """
    figure, axes = new_figure(1, len(found), size=(size * len(found), size * 1.02), squeeze=False, sharey=True)
    true = np.asarray(true, float)
    every = np.concatenate([true, *[np.asarray(one, float) for one in found.values()]])
    low, high = np.nanpercentile(every[every > 0], (0.2, 99.9))
    edges = np.geomspace(max(low, 1), high, 48)
    for axis, (title, values) in zip(axes[0], found.items()):
        values = np.asarray(values, float)
        use = np.isfinite(values)
        axis.hist2d(true[use], values[use].clip(edges[0], edges[-1]), bins=(edges, edges), cmap="Greys", norm="log")
        axis.plot(edges[[0, -1]], edges[[0, -1]], color=RED, lw=1)
        axis.set(xlabel=f"true {unit}", title=title, xlim=edges[[0, -1]], ylim=edges[[0, -1]])
        log_scale(axis.xaxis, axis.set_xscale)
        log_scale(axis.yaxis, axis.set_yscale)
        axis.title.set_fontsize(8.5)
    axes[0, 0].set_ylabel("assigned")
    return figure


def bars(table, *, label: str, baseline=None, title: str = ""):
    """Show a data frame as groups of bars (rows: groups; columns: methods), numbers on top; a dotted line by chance."""
    groups, methods = list(table.index), list(table.columns)
    wide = 0.8 / len(methods)
    figure, axis = new_figure(size=(min(10.0, 1.6 + 0.5 * len(groups) * max(len(methods), 2)), 2.8))
    for number, (name, colour) in enumerate(zip(methods, SPARE)):
        x = np.arange(len(groups)) + (number - (len(methods) - 1) / 2) * wide
        drawn = axis.bar(x, table[name].to_numpy(float), wide * 0.92, color=colour, label=name)
        axis.bar_label(drawn, fmt="%.2f", fontsize=6.5, padding=1)
    if baseline is not None:
        axis.axhline(baseline, color="0.4", ls=":", lw=1, label="by chance")
    axis.set(xticks=range(len(groups)), ylabel=label, title=title)
    axis.set_xticklabels(groups, fontsize=8)
    figure.legend(loc="outside right upper", fontsize=7.5)
    return figure


def report_card(table):
    """Show the report card: value (dot) and baseline (line) of each method and measure, seconds, memory.

    Parameters
    ----------
    table
        DataFrame of ``visium_hd.report_card``; values from 0 to 1 are drawn, all are written.
    """
    rows = len(table)
    figure, axes = new_figure(1, 3, size=(10.5, max(2.0, 0.9 + 0.26 * rows)), width_ratios=[2.2, 1, 1], sharey=True)
    place = np.arange(rows)
    value, base = table["value"].to_numpy(float), table["baseline"].to_numpy(float)
    axes[0].hlines(place, 0, 1, color="0.9", lw=0.8, zorder=0)
    axes[0].scatter(base, place, marker="|", s=70, color="0.45", label="looks at nothing")
    axes[0].scatter(value, place, s=28, color=BLUE, label="method")
    for at, number in zip(place, value):
        axes[0].text(1.1, at, "-" if not np.isfinite(number) else f"{number:.3g}", va="center", fontsize=8, ha="center")
    axes[0].set(yticks=place, xlim=(-0.02, 1.18), ylim=(rows - 0.4, -0.6), xticks=[0, 0.5, 1], title="value")
    named = [f"{method}  ·  {measure}" for method, measure in zip(table["method"], table["measure"])]
    axes[0].set_yticklabels(named, fontsize=8)
    axes[0].legend(loc="upper right", bbox_to_anchor=(1.0, 1.0 + 1.1 / max(rows, 3)), ncols=2, fontsize=7)
    first = ~table["method"].duplicated().to_numpy()
    for axis, name, title in ((axes[1], "seconds", "seconds"), (axes[2], "memory_mb", "memory it adds (MB)")):
        numbers = np.where(first, table[name].to_numpy(float), np.nan)
        axis.barh(place, np.nan_to_num(numbers), color="0.75", height=0.6)
        for at, number in zip(place, numbers):
            if np.isfinite(number):
                axis.text(number, at, f" {number:.3g}", va="center", fontsize=8)
        top = np.nanmax(numbers) if np.isfinite(numbers).any() else 1.0
        axis.set(xlim=(0, 1.25 * max(top, 1e-9)), title=title)
        axis.tick_params(axis="y", length=0)
    return figure

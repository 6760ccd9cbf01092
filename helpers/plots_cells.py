"""Examiner's room: figures of single cells - which are in a spot, a marker cell by cell, scales, curves of scores."""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure, picture
from helpers.plots_xenium import CLASS_COLOURS, UNNAMED


def _polygons(axis, outlines, **look):
    """Draw outlines (n, vertices, 2) or a list of (vertices, 2), pixels of the axis."""
    from matplotlib.collections import PolyCollection

    drawn = PolyCollection(list(outlines), **look)
    axis.add_collection(drawn)
    return drawn


def bags(view, inside, patches, *, radius_um: float = 27.5):
    """Show patches, spots, and which cells are in a spot, on a crop of the H&E; and how many cells spots hold.

    Parameters
    ----------
    view
        A crop with ``rgb``, ``mpp``, ``corner``, ``cells``, ``outlines`` (``deepspot2cell_tiles.view``).
    inside
        bool (cells,) of the section: in a spot.
    patches
        Has ``xy`` and ``side`` in pixels of the H&E, and ``n_inside``.
    """
    from matplotlib.collections import EllipseCollection

    figure, axes = new_figure(1, 2, size=(8.4, 4.0), width_ratios=[1.25, 1])
    picture(axes[0], view.rgb, mpp=view.mpp, title="blue: in a spot; orange: out of it")
    chosen = np.asarray(inside, bool)[view.cells]
    for mask, colour in ((chosen, OKABE_ITO[0]), (~chosen, OKABE_ITO[4])):
        shown = [outline for outline, wanted in zip(view.outlines, mask) if wanted]
        _polygons(axes[0], shown, facecolor="none", edgecolor=colour, linewidth=1.1)
    centres = patches.xy - view.corner
    centres = centres[((centres > -patches.side) & (centres < view.rgb.shape[0] + patches.side)).all(1)]
    corners = patches.side / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    _polygons(axes[0], list(centres[:, None] + corners), facecolor="none", edgecolor="0.15", linewidth=0.6, ls=":")
    size = np.full(len(centres), 2 * radius_um / view.mpp)
    axes[0].add_collection(EllipseCollection(size, size, 0, units="xy", offsets=centres, edgecolor="black",
                                             offset_transform=axes[0].transData, facecolor="none"))  # fmt: skip
    axes[0].set(xlim=(0, view.rgb.shape[1]), ylim=(view.rgb.shape[0], 0))
    number = np.asarray(patches.n_inside)
    axes[1].hist(number, bins=np.arange(-0.5, number.max() + 1.5), color=OKABE_ITO[0])
    axes[1].set(xlabel="cells in a spot", ylabel="spots", title=f"{np.mean(number[number > 0]):.1f} cells in a spot")
    return figure


def marker(view, panels: dict, names, *, gene: str, label: str = "log1p CP10k"):
    """Show one gene cell by cell on the H&E, from several sources, and the cells' types (the paper's figure 2).

    Parameters
    ----------
    view
        A crop with ``rgb``, ``mpp``, ``outlines`` (``deepspot2cell_tiles.view``).
    panels
        Title -> float (cells of the crop,); NaN cells stay empty. Each is coloured between its own 2nd and 98th
        percentile: scales are shown in the bars, patterns are compared.
    names
        Class of each cell, "" unnamed.
    """
    rgb, mpp, outlines = view.rgb, view.mpp, view.outlines
    figure, axes = new_figure(1, len(panels) + 2, size=(2.9 * (len(panels) + 2), 3.3), squeeze=False)
    picture(axes[0, 0], rgb, mpp=mpp, title="H&E")
    pale = (rgb.astype(float) * 0.35 + 255 * 0.65).astype(np.uint8)
    for axis, (title, values) in zip(axes[0, 1:], panels.items()):
        picture(axis, pale, mpp=mpp, title=f"{gene}, {title}")
        values = np.asarray(values, float)
        known = np.isfinite(values)
        low, high = np.percentile(values[known], (2, 98)) if known.any() else (0, 1)
        drawn = _polygons(axis, [o for o, k in zip(outlines, known) if k], array=values[known], cmap="viridis",
                          clim=(low, max(high, low + 1e-6)), edgecolor="none")  # fmt: skip
        figure.colorbar(drawn, ax=axis, label=label, shrink=0.7)
    picture(axes[0, -1], pale, mpp=mpp, title="cell types")
    colours = [CLASS_COLOURS.get(str(name), UNNAMED) for name in names]
    _polygons(axes[0, -1], outlines, facecolor=colours, edgecolor="none", alpha=0.9)
    from matplotlib.lines import Line2D

    shown = [name for name in CLASS_COLOURS if name in set(map(str, names))]
    handles = [Line2D([], [], marker="o", ls="", color=CLASS_COLOURS[n], label=n.replace("_", " ")) for n in shown]
    axes[0, -1].legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2, fontsize=7)
    for axis in axes[0]:
        axis.set(xlim=(0, rgb.shape[1]), ylim=(rgb.shape[0], 0))
    return figure


def lone(panels: dict):
    """Show what is said of lone cells against their true expectation, one line a model, with the line of slope 1.

    Parameters
    ----------
    panels
        Model -> (said, is_true, slope) of ``deepspot2cell_scores.lone``: float (bins,), multiples of a gene's mean, and
        a slope.
    """
    figure, axis = new_figure(size=(4.6, 3.8))
    low = max(min(min(np.min(said), np.min(true)) for said, true, _ in panels.values()), 0.05)
    high = max(max(np.max(said), np.max(true)) for said, true, _ in panels.values())
    axis.plot([low, high], [low, high], color="0.5", lw=1, ls=":", label="as said")
    for number, (name, (said, true, slope)) in enumerate(panels.items()):
        axis.plot(said, true, "o-", ms=4, color=OKABE_ITO[number], label=f"{name}: slope {slope:.2g}")
    axis.set(xscale="log", yscale="log", xlabel="said of a lone cell (times the gene's mean)", aspect="equal")
    axis.set(ylabel="true mean of those cells", title="Twice as much, is it twice?")
    axis.legend(fontsize=7)
    return figure


def curves(panels: dict, *, top: int = 100):
    """Show Pearson's r of genes sorted from best to worst, one panel a task, one line a model (the paper's figure 5).

    Parameters
    ----------
    panels
        Task -> {model: float (genes,)}.
    top
        Where a line marks the genes counted.
    """
    figure, axes = new_figure(1, len(panels), size=(3.0 * len(panels), 3.0), squeeze=False, sharey=True)
    for axis, (task, models) in zip(axes[0], panels.items()):
        for number, (name, r) in enumerate(models.items()):
            r = np.sort(np.asarray(r, float))[::-1]
            dotted = ":" if name == "ceiling" else "-"
            axis.plot(np.arange(1, len(r) + 1), r, color=OKABE_ITO[number % 8], ls=dotted, label=name)
        axis.axvline(top, color="0.7", lw=0.8, ls=":")
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set(xlabel="genes, best first", title=task)
    axes[0, 0].set_ylabel("Pearson r over cells")
    axes[0, -1].legend(fontsize=6.5, loc="upper right")
    return figure


def bars(table, *, label: str, title: str = ""):
    """Show a table (models in rows, tasks in columns) as grouped bars."""
    figure, axis = new_figure(size=(8.4, 3.0))
    width = 0.8 / max(len(table), 1)
    for number, (name, row) in enumerate(table.iterrows()):
        place = np.arange(len(row)) + (number - (len(table) - 1) / 2) * width
        axis.bar(place, row.to_numpy(float), width * 0.92, color=OKABE_ITO[number % 8], label=name)
    axis.axhline(0, color="0.5", lw=0.8)
    axis.set_xticks(range(table.shape[1]), table.columns)
    axis.set(ylabel=label, title=title)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure

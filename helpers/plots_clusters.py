"""Examiner's room: figures of clusters, of their comparison, and of an outline put on the slide."""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure, picture


def _spots(axis, points, radius, labels):
    """Draw spots as discs coloured by group (int 0, 1, ... or bool), or as open circles without labels."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(points), 2 * radius)
    groups = np.asarray(labels).astype(int)
    colours = [OKABE_ITO[group % len(OKABE_ITO)] for group in groups]
    axis.add_collection(EllipseCollection(
        size, size, 0, units="xy", offsets=points, offset_transform=axis.transData, facecolors=colours, alpha=0.8, lw=0
    ))  # fmt: skip


def _frame(axis, points, radius, shape):
    (left, top), (right, bottom) = points.min(0) - 3 * radius, points.max(0) + 3 * radius
    axis.set(xlim=(max(left, 0), min(right, shape[1])), ylim=(min(bottom, shape[0]), max(top, 0)))


def maps(thumbnail, points, radius: float, panels: dict, *, mpp: float, columns: int = 3):
    """Show groups of spots on the H&E, one panel for each grouping, the bare H&E first.

    Parameters
    ----------
    thumbnail
        uint8 RGB (y, x, 3).
    points, radius
        Spot centres, float (n, 2) x, y, and radius, in pixels of the thumbnail.
    panels
        Title -> group of each spot, small integers or texts. Colours say nothing across panels, except by text.
    mpp
        Microns per pixel of the thumbnail.
    """
    from matplotlib.patches import Patch

    rows = -(-(len(panels) + 1) // columns)
    figure, axes = new_figure(rows, columns, size=(3.2 * columns, 3.2 * rows), squeeze=False)
    picture(axes.flat[0], thumbnail, mpp=mpp, title="H&E")
    _frame(axes.flat[0], points, radius, thumbnail.shape)
    for axis, (title, groups) in zip(axes.flat[1:], panels.items()):
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        picture(axis, thumbnail, mpp=mpp, title=title)
        _spots(axis, points, radius, codes)
        _frame(axis, points, radius, thumbnail.shape)
        handles = [Patch(color=OKABE_ITO[i % len(OKABE_ITO)], label=str(name)) for i, name in enumerate(names)]
        axis.legend(handles=handles, loc="upper left", fontsize=6, handlelength=0.8, frameon=True, framealpha=0.85)
    for axis in axes.flat[len(panels) + 1 :]:
        axis.set_axis_off()
    return figure


def comparison(table, *, value: str, label: str, title: str = ""):
    """Show the 36 combinations as one heat map: kinds in rows, scalings and losses in columns.

    Parameters
    ----------
    table
        Data frame with columns ``kind``, ``scaling``, ``loss`` and ``value``.
    """
    wide = table.pivot_table(index="kind", columns=["scaling", "loss"], values=value, sort=False)
    figure, axis = new_figure(size=(8.5, 2.6))
    image = axis.imshow(wide, cmap="viridis", aspect="auto")
    axis.set(yticks=range(len(wide)), xticks=range(wide.shape[1]), title=title)
    axis.set_yticklabels(wide.index)
    axis.set_xticklabels([f"{scaling}\n{loss}" for scaling, loss in wide.columns])
    middle = (np.nanmax(wide) + np.nanmin(wide)) / 2
    for (row, column), number in np.ndenumerate(wide.to_numpy()):
        axis.text(column, row, f"{number:.2f}", ha="center", va="center", color="w" if number < middle else "k")
    figure.colorbar(image, ax=axis, label=label)
    return figure


def _draw_area(axis, area, factor=1.0, **style):
    for part in getattr(area, "geoms", [area]):
        for ring in (part.exterior, *part.interiors):
            axis.plot(*np.array(ring.coords).T / factor, **style)


def registration(annotated, found, thumbnail, factor: float, area, points, radius: float, labels, *, mpp: float):
    """Show correlation against scale, the annotated picture, and its outline on the slide with the spots' clusters.

    Parameters
    ----------
    annotated
        uint8 RGB, the picture with the drawn line.
    found
        ``annotation.Registration``.
    thumbnail, factor
        The slide, uint8 RGB, and full-resolution pixels per pixel of it.
    area
        Outline, a shapely geometry in full-resolution pixels.
    points, radius, labels
        Spots in full-resolution pixels; bool labels: the clusters meant, or not.
    mpp
        Microns per full-resolution pixel.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, axes = new_figure(1, 3, size=(10.5, 3.4), width_ratios=[1, 1, 1.3])
    axes[0].plot(found.curve[:, 0], found.curve[:, 1], "o-", color=OKABE_ITO[0], ms=3)
    axes[0].axvline(found.scale, color=OKABE_ITO[1], lw=1)
    axes[0].set(xlabel="slide pixels per picture pixel", ylabel="correlation", xscale="log")
    axes[0].set_title("One scale stands out")
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].xaxis.set_major_formatter(ScalarFormatter())
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    picture(axes[1], annotated, mpp=mpp * found.scale, title="the annotated picture")
    picture(axes[2], thumbnail, mpp=mpp * factor, title="its outline on the slide")
    _spots(axes[2], np.asarray(points) / factor, radius / factor, labels)
    _draw_area(axes[2], area, factor, color="black", lw=1.6)
    high, wide = annotated.shape[:2]
    corners = found.to_slide([[0, 0], [wide, 0], [wide, high], [0, high], [0, 0]]) / factor
    axes[2].plot(*corners.T, "--", color="0.3", lw=1)
    return figure


def roc_curves(curves: dict, *, title: str = ""):
    """Show ROC curves: name -> (false-positive rates, true-positive rates, area)."""
    figure, axis = new_figure(size=(3.6, 3.4))
    for (name, (fpr, tpr, area)), colour in zip(curves.items(), OKABE_ITO):
        axis.plot(fpr, tpr, color=colour, label=f"{name}, AUC {area:.2f}")
    axis.plot([0, 1], [0, 1], ":", color="0.6")
    axis.set(xlabel="false-positive rate", ylabel="true-positive rate", title=title, aspect="equal")
    axis.legend(loc="lower right", fontsize=7)
    return figure

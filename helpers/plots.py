"""Examiner's room: figures. Every function returns the figure; none computes a result.

Classes use the Okabe-Ito colours, magnitudes viridis. Every tissue panel has a scale bar in microns, equal aspect and
its origin top-left.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import section as sec
from helpers import settings

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLE = Path(__file__).with_name("style.mplstyle")


def _pyplot():
    import matplotlib.pyplot as plt

    plt.style.use(str(STYLE))
    return plt


def new_figure(rows: int = 1, columns: int = 1, *, size=(9.0, 3.2), **options):
    """Return (figure, axes) in the course's style; the figure is not kept open by pyplot."""
    plt = _pyplot()
    figure, axes = plt.subplots(rows, columns, figsize=size, **options)
    plt.close(figure)
    return figure, axes


def picture(axis, rgb, *, mpp: float | None = None, title: str = ""):
    """Draw an image on an axis, with a scale bar if ``mpp`` (microns per drawn pixel) is given."""
    axis.imshow(rgb)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title)
    if mpp is not None:
        from matplotlib_scalebar.scalebar import ScaleBar

        axis.add_artist(
            ScaleBar(
                mpp, "um", location="lower right", box_alpha=0.75, length_fraction=0.25, font_properties={"size": 7}
            )
        )
    return axis


def overlay(section, *, values=None, label: str = "", title: str = "", inset_um: float = 600.0, max_px: int = 900):
    """Show the spots on the H&E: the section round them, and a crop at its middle where alignment can be judged by eye.

    Parameters
    ----------
    values
        Optional float array (n_spots,) to colour the spots by; ``label`` names it with its unit.
    inset_um
        Side of the crop in microns.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    small, scale = sec.thumbnail(section, max_px)
    points, rows_columns = sec.xy(section), sec.shape(section)
    radius = sec.um_to_px(section, section.attrs["spot_diameter_um"]) / 2
    side = min(int(sec.um_to_px(section, inset_um)), *rows_columns)
    middle = points[np.argmin(np.hypot(*(points - np.median(points, 0)).T))]
    x0 = int(np.clip(middle[0] - side / 2, 0, rows_columns[1] - side))
    y0 = int(np.clip(middle[1] - side / 2, 0, rows_columns[0] - side))
    figure, axes = new_figure(1, 2, size=(9, 4.2), width_ratios=[1.15, 1])
    picture(axes[0], small, mpp=sec.mpp(section) / scale, title=title)
    picture(axes[1], sec.window(section, x0, y0, side, side), mpp=sec.mpp(section), title="the box, at full resolution")
    for axis, place, size in ((axes[0], points * scale, radius * scale), (axes[1], points - [x0, y0], radius)):
        circles = PatchCollection([Circle(p, size) for p in place], linewidth=0.8)
        if values is None:
            circles.set(facecolor="none", edgecolor=OKABE_ITO[0])
        else:
            circles.set(array=np.asarray(values, float), cmap="viridis", alpha=0.75, edgecolor="none")
        axis.add_collection(circles)
    axes[0].add_patch(Rectangle((x0 * scale, y0 * scale), side * scale, side * scale, fill=False, color="black", lw=1))
    axes[1].set(xlim=(0, side), ylim=(side, 0))
    margin = 0.12 * np.ptp(points, axis=0).max() * scale + 3
    (left, top), (right, bottom) = points.min(0) * scale - margin, points.max(0) * scale + margin
    axes[0].set(xlim=(max(left, 0), min(right, small.shape[1])), ylim=(min(bottom, small.shape[0]), max(top, 0)))
    if values is not None:
        figure.colorbar(axes[0].collections[0], ax=axes[1], shrink=0.8, label=label)
    return figure


def cover(section, before, after, tile_mpp: float):
    """Show a section with its spots, and one tile (uint8 RGB) before and after normalisation."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle

    small, scale = sec.thumbnail(section, 900)
    figure, axes = new_figure(1, 3, size=(10.5, 3.7))
    picture(axes[0], small, mpp=sec.mpp(section) / scale, title="a section and its spots")
    radius = sec.um_to_px(section, section.attrs["spot_diameter_um"]) / 2 * scale
    spots = [Circle(place, radius) for place in sec.xy(section) * scale]
    axes[0].add_collection(PatchCollection(spots, facecolor="none", edgecolor=OKABE_ITO[0], linewidth=0.6))
    picture(axes[1], before, mpp=tile_mpp, title="a tile as scanned")
    picture(axes[2], after, mpp=tile_mpp, title="the same in the template's stain")
    return figure


def panels(images, titles, *, mpp=None, columns: int = 4, size: float = 2.3):
    """Show images side by side (uint8 RGB or bool masks), each with a title and, if ``mpp`` is given, a scale bar.

    ``mpp`` is one number or one per image: microns per drawn pixel.
    """
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, size=(size * columns, (size + 0.35) * rows), squeeze=False)
    scales = mpp if isinstance(mpp, (list, tuple)) else [mpp] * len(images)
    for axis, rgb, title, scale in zip(axes.flat, images, titles, scales):
        picture(axis, rgb, mpp=scale, title=title)
        axis.title.set_fontsize(8.5)
    for axis in axes.flat[len(images) :]:
        axis.set_axis_off()
    return figure


def grid(rows, names, *, mpp: float, size: float = 1.9):
    """Show rows of images (lists or arrays of uint8 RGB), each row named at its left, with scale bars."""
    columns = max(len(row) for row in rows)
    figure, axes = new_figure(len(rows), columns, size=(size * columns + 0.4, size * len(rows)), squeeze=False)
    for line, row, name in zip(axes, rows, names):
        for axis, rgb in zip(line, row):
            picture(axis, rgb, mpp=mpp)
        line[0].set_ylabel(name, fontweight="bold")
        for axis in line[len(row) :]:
            axis.set_axis_off()
    return figure


def outline(rgb, mask, clean, *, mpp: float):
    """Show an image as scanned with the border of a bool mask (same y, x), and the image without its cast."""
    figure, axes = new_figure(1, 2, size=(9, 4.3))
    picture(axes[0], rgb, mpp=mpp, title="as scanned, with the outline of the tissue")
    axes[0].contour(mask.astype(float), [0.5], colors=["black"], linewidths=0.8)
    picture(axes[1], clean, mpp=mpp, title="without the cast, glass is white")
    return figure


def stain_plane(
    density, fit_vectors, *, true_vectors=None, title: str = "Pixels lie between two stains", seed: int = 0
):
    """Show tissue pixels as red against green, and red against blue, optical density, with the stain directions.

    Parameters
    ----------
    density
        Float array (n, 3), optical density of tissue pixels, R, G, B.
    fit_vectors, true_vectors
        (2, 3) unit rows, haematoxylin and eosin.
    """
    chosen = settings.rng(seed, "stain_plane").permutation(len(density))[:4000]
    points = density[chosen]
    colour = np.exp(-np.clip(points, 0, None)).clip(0, 1)
    figure, axes = new_figure(1, 2, size=(8, 3.4))
    reach = np.quantile(np.linalg.norm(points, axis=1), 0.99)
    for axis, (first, second) in zip(axes, ((1, 0), (2, 0))):
        axis.scatter(points[:, first], points[:, second], s=3, c=colour, linewidths=0)
        for vectors, style, name in ((true_vectors, "--", "truth"), (fit_vectors, "-", "fit")):
            if vectors is None:
                continue
            for vector, paint, stain in zip(vectors, (OKABE_ITO[0], OKABE_ITO[1]), ("haematoxylin", "eosin")):
                tip = np.asarray(vector) * reach
                axis.plot([0, tip[first]], [0, tip[second]], style, color=paint, label=f"{stain}, {name}")
        axis.set(xlabel=f"{('red', 'green', 'blue')[first]} optical density", ylabel="red optical density")
        axis.set(xlim=(-0.05, reach), ylim=(-0.05, reach))
    axes[0].legend(loc="upper left")
    axes[0].set_title(title)
    return figure


def before_after(names, before, after, *, ylabel: str, title: str = ""):
    """Show two numbers per section, joined by a line: open circle before, full circle after."""
    figure, axis = new_figure(size=(min(9.0, 0.55 * len(names) + 2.5), 3.0))
    place, before, after = np.arange(len(names)), np.asarray(before, float), np.asarray(after, float)
    axis.vlines(place, after, before, color="0.7", lw=1)
    axis.scatter(place, before, s=30, facecolor="white", edgecolor=OKABE_ITO[1], label="before", zorder=2)
    axis.scatter(place, after, s=30, color=OKABE_ITO[0], label="after", zorder=2)
    axis.set(xticks=place, ylabel=ylabel, title=title, ylim=(0, None))
    axis.set_xticklabels(names, rotation=45 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center")
    axis.legend()
    return figure

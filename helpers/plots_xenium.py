"""Examiner's room: figures of a Xenium section - two pictures put on each other, typed nuclei, errors and doubt."""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure, picture

CLASS_COLOURS = {
    "immune": OKABE_ITO[0], "stromal": OKABE_ITO[2], "cancer_epithelial": OKABE_ITO[1], "endothelial": OKABE_ITO[4],
}  # fmt: skip
UNNAMED = "0.6"


def _level(grey, low=1.0, high=99.7):
    """Return a picture stretched to 0-1 between two percentiles, float (y, x)."""
    bottom, top = np.percentile(grey, (low, high))
    return np.clip((np.asarray(grey, float) - bottom) / max(top - bottom, 1e-9), 0, 1)


def side_by_side(dapi, dapi_um: float, he, he_um: float):
    """Show DAPI (y, x) and H&E (uint8 RGB) as they come, each with its scale bar."""
    figure, axes = new_figure(1, 2, size=(9, 4.4))
    grey = np.repeat(_level(dapi)[..., None], 3, axis=2)
    picture(axes[0], grey, mpp=dapi_um, title="DAPI, as the instrument saw it")
    picture(axes[1], he, mpp=he_um, title="H&E of the same section, stained later")
    return figure


def composite(dapi, density):
    """Return uint8-like RGB (y, x, 3) in 0-1: DAPI magenta, haematoxylin green; where they agree, white."""
    magenta, green = _level(dapi), _level(density)
    return np.stack([magenta, green, magenta], axis=2)


def overlay(dapi_affine, dapi_warped, density, um: float, landmarks_px, residual_um, *, arrow: float = 20.0):
    """Show DAPI (magenta) on haematoxylin (green): by the affine, by affine and warp, and what the warp moves.

    Parameters
    ----------
    dapi_affine, dapi_warped, density
        float (y, x), one window at ``um`` a pixel.
    landmarks_px, residual_um
        float (n, 2): places on the whole H&E in um, and what the affine leaves there, x and y in um.
    arrow
        Times the arrows are longer than the residuals.
    """
    figure, axes = new_figure(1, 3, size=(11, 3.9))
    titles = ("by the affine: side by side", "with the warp: white, they agree")
    for axis, laid, title in zip(axes, (dapi_affine, dapi_warped), titles):
        picture(axis, composite(laid, density), mpp=um, title=title)
    axes[2].quiver(
        *landmarks_px.T, *(residual_um * arrow).T, angles="xy", scale_units="xy", scale=1, width=0.003,
        color=OKABE_ITO[0],
    )  # fmt: skip
    axes[2].set(aspect="equal", xlabel="x on the H&E (um)", ylabel="y (um)")
    axes[2].invert_yaxis()
    axes[2].set_title(f"what the affine leaves, {arrow:g} times enlarged")
    return figure


def _legend(axis, names, **options):
    from matplotlib.lines import Line2D

    shown = {name: name.replace("_", " ") or "unnamed" for name in names}
    handles = [
        Line2D([], [], marker="o", ls="", color=CLASS_COLOURS.get(name, UNNAMED), label=label, ms=5)
        for name, label in shown.items()
    ]
    axis.legend(handles=handles, fontsize=7, frameon=True, framealpha=0.85, **options).set_in_layout(False)


_BELOW = {"loc": "upper left", "bbox_to_anchor": (0, -0.02), "ncols": 4, "columnspacing": 1.0, "handletextpad": 0.1}


def cells(thumbnail, mpp: float, xy, names, *, title: str = ""):
    """Show cells as dots in the colour of their class on the H&E.

    Parameters
    ----------
    thumbnail, mpp
        uint8 RGB and its microns per pixel.
    xy
        float (n, 2), pixels of the thumbnail.
    names
        Class of each, "" unnamed; or a table with the column ``class``.
    """
    names = names["class"] if hasattr(names, "columns") else names
    figure, axes = new_figure(1, 2, size=(9, 4.4))
    picture(axes[0], thumbnail, mpp=mpp, title="H&E")
    picture(axes[1], thumbnail, mpp=mpp, title=title)
    names = np.asarray(names, object)
    for name in (*CLASS_COLOURS, ""):
        if (names == name).any():
            axes[1].scatter(*xy[names == name].T, s=3, color=CLASS_COLOURS.get(name, UNNAMED), linewidths=0)
    _legend(axes[1], [name for name in (*CLASS_COLOURS, "") if (names == name).any()], **_BELOW)
    return figure


def _edges(labels):
    """Return which pixels of a label image lie at the border of their label, bool (y, x)."""
    from skimage.segmentation import find_boundaries

    return find_boundaries(labels, mode="inner")


def nuclei(rgb, mpp: float, panels: dict, classes):
    """Show outlines of nuclei in the colour of their class on a crop of the H&E, one panel for each source.

    Parameters
    ----------
    rgb, mpp
        uint8 RGB (y, x, 3) and microns per pixel.
    panels
        Title -> (labels int32 (y, x), class codes by label; codes beyond ``classes`` are unnamed).
    classes
        Names of codes 1, 2, ...
    """
    from matplotlib.colors import to_rgb

    figure, axes = new_figure(1, len(panels) + 1, size=(3.4 * (len(panels) + 1), 3.7), squeeze=False)
    picture(axes[0, 0], rgb, mpp=mpp, title="H&E")
    for axis, (title, (labels, codes)) in zip(axes[0, 1:], panels.items()):
        drawn, edge = rgb.copy(), _edges(labels)
        paint = np.array([to_rgb(UNNAMED)] + [to_rgb(CLASS_COLOURS[name]) for name in classes])
        code = np.asarray(codes, int)[labels[edge]]
        drawn[edge] = 255 * paint[np.where(code <= len(classes), code, 0)]
        picture(axis, drawn, mpp=mpp, title=title)
    _legend(axes[0, 0], CLASS_COLOURS, **_BELOW)
    return figure


def doubt(rgb, mpp: float, labels, entropy, wrong, groups: dict):
    """Show each nucleus' entropy on the H&E with errors outlined, and how entropy is spread over groups of nuclei.

    Parameters
    ----------
    rgb, mpp, labels
        A crop of the H&E, its pixel size, and its nuclei, int32 (y, x).
    entropy, wrong
        By label, float 0-1 and bool (n + 1,).
    groups
        Name -> entropies, float (n,), of the whole section.
    """
    from matplotlib.colors import to_rgb

    figure, axes = new_figure(1, 2, size=(9, 4.2), width_ratios=[1.1, 1])
    picture(axes[0], rgb, mpp=mpp, title="entropy of the type; errors outlined")
    value = np.ma.masked_where(labels == 0, np.asarray(entropy, float)[labels])
    drawn = axes[0].imshow(value, cmap="viridis", vmin=0, vmax=1)
    mark = np.zeros((*labels.shape, 4))
    mark[_edges(labels) & np.asarray(wrong, bool)[labels]] = (*to_rgb(OKABE_ITO[1]), 1.0)
    axes[0].imshow(mark)
    figure.colorbar(drawn, ax=axes[0], label="entropy (0 sure, 1 any type)", shrink=0.8)
    for (name, values), colour in zip(groups.items(), OKABE_ITO):
        axes[1].hist(values, bins=np.linspace(0, 1, 26), density=True, histtype="step", color=colour, label=name)
    axes[1].set(xlabel="entropy of a nucleus", ylabel="density", xlim=(0, 1))
    axes[1].legend()
    return figure


def map_and_confusion(points, names, matrix, classes, *, title: str = ""):
    """Show a t-SNE map coloured by predicted class, and a confusion matrix (rows the truth) as shares of each row."""
    figure, axes = new_figure(1, 2, size=(9.5, 4.1))
    names = np.asarray(names, object)
    for name, colour in CLASS_COLOURS.items():
        axes[0].scatter(*points[names == name].T, s=5, color=colour, linewidths=0)
    axes[0].set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", title="nuclei, by predicted class")
    _legend(axes[0], CLASS_COLOURS, loc="best")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes[1].imshow(share, cmap="viridis", vmin=0, vmax=1)
    short = [name.replace("_", "\n") for name in classes]
    axes[1].set(xticks=range(len(short)), yticks=range(len(short)), xlabel="predicted", ylabel="truth", title=title)
    axes[1].set_xticklabels(short, fontsize=7)
    axes[1].set_yticklabels(short, fontsize=7)
    for (row, column), number in np.ndenumerate(matrix):
        shade = "w" if share[row, column] < 0.6 else "k"
        axes[1].text(column, row, f"{int(number)}", ha="center", va="center", color=shade, fontsize=7)
    figure.colorbar(image, ax=axes[1], label="share of the true class", shrink=0.8)
    return figure


def spots(left, right, thumbnail, mpp: float, xy, radius: float, *, label: str, titles=("expression", "H&E alone")):
    """Show one share per spot from two sources on the H&E, and against each other.

    Parameters
    ----------
    left, right
        float (n,): shares of each spot, 0-1.
    thumbnail, mpp, xy, radius
        uint8 RGB, its microns per pixel; spot centres and radius in its pixels.
    """
    from matplotlib.collections import EllipseCollection

    figure, axes = new_figure(1, 3, size=(11, 3.7))
    size = np.full(len(xy), 2 * radius)
    for axis, values, title in zip(axes, (left, right), titles):
        picture(axis, thumbnail, mpp=mpp, title=title)
        discs = EllipseCollection(
            size, size, 0, units="xy", offsets=xy, offset_transform=axis.transData, array=np.asarray(values, float),
            cmap="viridis", clim=(0, 1),
        )  # fmt: skip
        axis.add_collection(discs)
    figure.colorbar(discs, ax=axes[1], label=label, shrink=0.8)
    axes[2].plot([0, 1], [0, 1], ":", color="0.6")
    axes[2].scatter(left, right, s=8, color=OKABE_ITO[0])
    axes[2].set(xlabel=f"{label}, {titles[0]}", ylabel=titles[1], aspect="equal", title="one dot a spot")
    return figure

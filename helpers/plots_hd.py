"""Examiner's room: maps of a Visium HD section - cells, domains, types and scores over the H&E, in one frame: microns.

After segmentation everything has places in microns, so the picture is drawn in microns too (:class:`View`). Colours of
types and domains come from one table; colours of other names from one list, in the order of the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from helpers import section as sec
from helpers.plots import new_figure

TYPES = {
    "Tumour": "#D55E00", "Goblet": "#56B4E9", "Enterocyte": "#0072B2", "Fibroblast": "#009E73",
    "Endothelial": "#E69F00", "Smooth muscle": "#7A4A21", "T cell": "#CC79A7", "Plasma": "#6A1B6E",
    "Macrophage": "#F0E442", "Neutrophil": "#000000",
}  # fmt: skip
"""Okabe-Ito, with brown and deep purple: apart in hue or in lightness for every colour vision."""
DOMAINS = {"tumour": "#D55E00", "stroma": "#009E73", "mucosa": "#0072B2", "immune": "#CC79A7", "muscle": "#7A4A21"}
SPARE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7A4A21", "#6A1B6E", "#000000",
    "#8FD175", "#FFB2BE", "#3D5A80", "#BFA3E0", "#A3A300",
)  # fmt: skip
NONE = "#B0B0B0"
"""Cells without a name."""
FADE = 0.75
"""Share of white mixed into the H&E below dots."""


@dataclass(frozen=True)
class View:
    """A piece of the H&E: ``rgb`` uint8 (y, x, 3), ``um`` per pixel of it, and its top left corner in microns."""

    rgb: np.ndarray
    um: float
    x0: float = 0.0
    y0: float = 0.0

    @property
    def extent(self):
        """Left, right, bottom, top in microns, as matplotlib asks for it (y grows downwards)."""
        rows, columns = self.rgb.shape[:2]
        return self.x0, self.x0 + columns * self.um, self.y0 + rows * self.um, self.y0

    def holds(self, xy_um):
        """Return which points lie in it, bool (n,)."""
        left, right, bottom, top = self.extent
        x, y = np.asarray(xy_um, float).reshape(-1, 2).T
        return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def view(section, *, crop_um=None, max_px: int = 420) -> View:
    """Return the H&E of a section, or a crop of it, at most ``max_px`` wide and high.

    Parameters
    ----------
    crop_um
        x, y of the top left corner, width, height; microns. Clipped to the picture.
    """
    import cv2

    mpp = sec.mpp(section)
    if crop_um is None:
        small, scale = sec.thumbnail(section, max_px)
        return View(small, mpp / scale)
    rows, columns = sec.shape(section)
    x, y, width, height = (round(value / mpp) for value in crop_um)
    x, y = int(np.clip(x, 0, columns - 2)), int(np.clip(y, 0, rows - 2))
    rgb = sec.window(section, x, y, min(width, columns - x), min(height, rows - y))
    shrink = min(1.0, max_px / max(rgb.shape[:2]))
    if shrink < 1:
        size = tuple(max(1, round(n * shrink)) for n in rgb.shape[1::-1])
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return View(rgb, mpp / shrink, x * mpp, y * mpp)


def text(names) -> np.ndarray:
    """Return names as an object array of text, "" for None and NaN."""
    return np.array(["" if one is None or one != one else str(one) for one in np.asarray(names, object)], object)


def natural(names) -> list[str]:
    """Return different names in natural order (D2 before D10); "", None and NaN are left out."""

    def parts(name):
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]

    return sorted(set(text(list(names))) - {""}, key=parts)


def colours(names, table=None) -> dict[str, str]:
    """Return a colour for each name, those of the table of types and domains first; names beyond the list repeat it."""
    known = {**TYPES, **DOMAINS, "Unknown": NONE, **(table or {})}
    kinds = natural(names)
    taken = {known[name] for name in kinds if name in known}
    free = [one for one in SPARE if one not in taken] or list(SPARE)
    others = [name for name in kinds if name not in known]
    order = [*[name for name in known if name in kinds], *others]
    return {name: known.get(name) or free[others.index(name) % len(free)] for name in order}


# ---------------------------------------------------------------- pieces
def tissue(axis, view: View, *, title: str = "", fade: float = 0.0):
    """Draw the H&E in microns on an axis, with a scale bar."""
    from matplotlib_scalebar.scalebar import ScaleBar

    step = 32 if fade else 16  # few shades: a picture beside which dots are seen, in a file a third the size
    rgb = view.rgb * (1 - fade) + 255 * fade
    rgb = np.clip(np.floor(rgb / step) * step + step / 2 + 8 * bool(fade), 0, 255).astype(np.uint8)
    axis.imshow(rgb, extent=view.extent, interpolation="nearest")
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=8.5)
    for spine in axis.spines.values():
        spine.set_visible(False)
    bar = {"box_alpha": 0.75, "length_fraction": 0.25, "font_properties": {"size": 6.5}}
    axis.add_artist(ScaleBar(1, "um", location="lower right", **bar))
    left, right, bottom, top = view.extent
    axis.set(xlim=(left, right), ylim=(bottom, top))
    return axis


def rings(polygons) -> list[np.ndarray]:
    """Return outlines as arrays (v, 2) of x, y; of a shapely polygon of several parts the largest."""
    if isinstance(polygons, np.ndarray) and polygons.ndim == 3:
        return list(polygons)
    out = []
    for one in getattr(polygons, "geometry", polygons):  # of a GeoDataFrame its polygons
        if hasattr(one, "geoms"):
            one = max(one.geoms, key=lambda part: part.area)
        out.append(np.asarray(one.exterior.coords if hasattr(one, "exterior") else one, float))
    return out


def _middles(outlines):
    return np.array([one.mean(0) for one in outlines]).reshape(-1, 2)


def lines(axis, view, polygons, colour, *, width: float = 0.8):
    """Draw outlines (um) that lie in the view, in one colour or one a polygon."""
    from matplotlib.collections import LineCollection

    every = rings(polygons)
    kept = np.flatnonzero(view.holds(_middles(every)))
    closed = [np.vstack([every[k], every[k][:1]]) for k in kept]
    paint = colour if isinstance(colour, str) else [colour[k] for k in kept]
    axis.add_collection(LineCollection(closed, colors=paint, linewidths=width, antialiaseds=False))
    return len(kept)


def dots(axis, view, xy_um, paint, *, size: float | None = None, **options):
    """Draw points (um) that lie in the view; ``paint`` is one value or colour a point."""
    kept = view.holds(xy_um)
    size = size or float(np.clip(16000 / max(kept.sum(), 1), 1.2, 20))
    return axis.scatter(
        *np.asarray(xy_um)[kept].T, s=size, c=np.asarray(paint)[kept], linewidths=0, antialiased=False, **options
    )  # fmt: skip


def legend(figure, paint: dict, *, title: str = "", columns: int = 6):
    """Put one legend of colours below all panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", ls="", color=one, label=name, ms=5) for name, one in paint.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), title=title or None,
        fontsize=7.5, columnspacing=1.0, handletextpad=0.1, title_fontsize=8,
    )  # fmt: skip


def frame(panels: int, *, columns: int = 4, size: float = 2.9, below: float = 0.5):
    """Return a figure of ``panels`` square panels and room for a legend below, and the axes as a flat array."""
    across = min(columns, panels)
    down = -(-panels // across)
    figure, axes = new_figure(down, across, size=(size * across, size * 1.07 * down + below), squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, axes.ravel()


def log_scale(axis, setter) -> None:
    """Make an axis logarithmic, with the ticks 1, 3, 10, 30, ... written as plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    setter("log")
    axis.set_major_locator(FixedLocator([one * 10**power for power in range(6) for one in (1, 3)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())


# ---------------------------------------------------------------- figures
def outlines(view: View, panels: dict, *, columns: int = 3, size: float = 2.8):
    """Show outlines over the H&E, one panel a method.

    Parameters
    ----------
    panels
        Title -> polygons (um), or -> dict of legend name -> polygons, drawn in different colours in one panel.
    """
    figure, axes = frame(len(panels), columns=columns, size=size)
    paint = {}
    for axis, (title, found) in zip(axes, panels.items()):
        tissue(axis, view, title=title)
        layers = found if isinstance(found, dict) else {"found": found}
        for (name, polygons), colour in zip(layers.items(), ("#000000", "#E69F00", "#0072B2", "#D55E00")):
            number = lines(axis, view, polygons, colour)
            if len(layers) == 1:
                axis.set_title(f"{title}: {number}", fontsize=8.5)
            else:
                paint[name] = colour
    if paint:
        legend(figure, paint)
    return figure


def categories(view: View, xy_um, panels: dict, *, polygons=None, table=None, title: str = "", columns: int = 3,
               size: float = 3.1, dot: float | None = None):  # fmt: skip
    """Show names of cells over the faded H&E, one panel a source, one legend for all.

    Parameters
    ----------
    xy_um
        float (n, 2), microns.
    panels
        Title -> names (n,), "" or NaN for none (grey).
    polygons
        Outlines (um) of the cells, filled instead of dots; for a crop.
    table
        Name -> colour, before those of :data:`TYPES` and :data:`DOMAINS`.
    """
    from matplotlib.collections import PolyCollection

    every = {name: text(names) for name, names in panels.items()}
    inside = view.holds(xy_um)
    paint = colours(np.concatenate([names[inside] for names in every.values()]), table)
    figure, axes = frame(len(every), columns=columns, size=size, below=0.28 * (1 + len(paint) // 7))
    shapes = None if polygons is None else rings(polygons)
    for axis, (name, names) in zip(axes, every.items()):
        tissue(axis, view, title=name, fade=FADE)
        fill = np.array([paint.get(one, NONE) for one in names], object)
        if shapes is None:
            dots(axis, view, xy_um, fill, size=dot)
        else:
            kept = np.flatnonzero(inside)
            some = PolyCollection([shapes[k] for k in kept], facecolors=list(fill[kept]), edgecolors="white")
            some.set(linewidths=0.4, antialiased=False)
            axis.add_collection(some)
    if any((names[inside] == "").any() for names in every.values()):
        paint = {**paint, "none": NONE}
    legend(figure, paint, title=title, columns=7)
    return figure


def magnitudes(view: View, xy_um, panels: dict, *, label: str = "", limits=None, columns: int = 3, size: float = 3.1):
    """Show numbers of cells over the faded H&E.

    Parameters
    ----------
    panels
        Title -> values (n,).
    limits
        Least and most of one colour bar for all panels; None: each panel has its own (2nd to 98th percentile).
    """
    figure, axes = frame(len(panels), columns=columns, size=size, below=0.15)
    for axis, (title, values) in zip(axes, panels.items()):
        tissue(axis, view, title=title, fade=FADE)
        values = np.asarray(values, float)
        low, high = limits or np.nanpercentile(values, (2, 98))
        high = max(high, low + 1e-9)
        steps = np.rint((np.clip(values, low, high) - low) / (high - low) * 12) / 12 * (high - low) + low
        drawn = dots(axis, view, xy_um, steps, cmap="viridis", vmin=low, vmax=high)
        if limits is None:
            figure.colorbar(drawn, ax=axis, shrink=0.7, pad=0.02, label=label)
    if limits is not None:
        figure.colorbar(drawn, ax=list(axes), shrink=0.7, pad=0.02, label=label)
    return figure


def qc(view: View, xy_um, counts, mito, removed, *, pct_mito=None, min_counts=None):
    """Show counts and mitochondrial share of cells, with the limits, and where the cells lie that fail them.

    Parameters
    ----------
    counts, mito
        float (n,): molecules; mitochondrial ones in per cent.
    removed
        Reason of each cell that is taken out, "" for those that stay.
    """
    figure, axes = new_figure(1, 3, size=(10.2, 3.6), width_ratios=[1, 1, 1.25])
    counts, mito = np.asarray(counts, float), np.asarray(mito, float)
    edges = np.geomspace(max(counts[counts > 0].min(), 1), counts.max() + 1, 40)
    axes[0].hist(counts, bins=edges, color="0.7")
    axes[0].set(xlabel="molecules a cell", ylabel="cells", title="depth")
    log_scale(axes[0].xaxis, axes[0].set_xscale)
    axes[1].hist(mito, bins=np.linspace(0, max(mito.max(), 1), 40), color="0.7")
    axes[1].set(xlabel="mitochondrial molecules (%)", ylabel="cells", title="damage")
    for axis, limit in ((axes[0], min_counts), (axes[1], pct_mito)):
        if limit is not None:
            axis.axvline(limit, color="#D55E00", ls="--", lw=1.2)
            axis.text(limit, axis.get_ylim()[1], f" {limit:g}", color="#D55E00", va="top", fontsize=8)
    names = text(removed)
    reasons = natural(names)
    paint = dict(zip(reasons, ("#D55E00", "#0072B2", "#000000", "#E69F00")))
    tissue(axes[2], view, title=f"{(names != '').sum()} of {len(names)} cells taken out", fade=FADE)
    dots(axes[2], view, xy_um, [paint.get(one, "#C8C8C8") for one in names])
    legend(figure, paint | {"kept": "#C8C8C8"})
    return figure

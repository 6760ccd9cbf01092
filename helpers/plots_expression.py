"""Examiner's room: figures of predicted expression, of its uncertainty and its calibration."""

from __future__ import annotations

import numpy as np

from helpers import section as sec
from helpers.plots import OKABE_ITO, new_figure, picture

KINDS = {"yes": OKABE_ITO[2], "partly": OKABE_ITO[5], "no": OKABE_ITO[1]}
"""Colours of what morphology knows of a gene, in the words of the virtual tissue's truth."""


def spot_maps(section, rows: dict, *, columns: dict, max_px: int = 600):
    """Show values on the spots, one row a gene, the H&E first.

    Parameters
    ----------
    section
        A section; its spots are drawn in the order of the values.
    rows
        Name of the gene -> tuple of float arrays (n_spots,), one a column.
    columns
        Title of the column -> unit, in the order of the tuples. Columns of one unit share a scale within a row.
    """
    from matplotlib.collections import EllipseCollection

    small, scale = sec.thumbnail(section, max_px)
    points = sec.xy(section) * scale
    size = np.full(len(points), sec.um_to_px(section, section.attrs["spot_diameter_um"]) * scale * 1.3)
    (left, top), (right, bottom) = points.min(0) - 2 * size[0], points.max(0) + 2 * size[0]
    tall = (bottom - top) / (right - left)
    width = len(columns) + 1
    figure, axes = new_figure(len(rows), width, size=(2.55 * width, 2.3 * len(rows) * max(tall, 0.6)), squeeze=False)
    for line, (name, values) in zip(axes, rows.items()):
        picture(line[0], small, mpp=sec.mpp(section) / scale, title=name)
        units = list(columns.values())
        for axis, (title, unit), value in zip(line[1:], columns.items(), values):
            alike = np.concatenate([v for v, other in zip(values, units) if other == unit])
            axis.set(title=title, xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(False)
            low, high = np.nanpercentile(alike, [1, 99])
            dots = EllipseCollection(
                size, size, 0, units="xy", offsets=points, offset_transform=axis.transData, array=np.asarray(value),
                cmap="viridis", clim=(low, max(high, low + 1e-9)), lw=0,
            )  # fmt: skip
            axis.add_collection(dots)
            figure.colorbar(dots, ax=axis, shrink=0.75, label=unit)
        for axis in line:
            axis.set(xlim=(left, right), ylim=(bottom, top))
    return figure


def scoreboard(scores, *, value: str = "pearson", by: str = "model", label: str = "", ceiling=None, reached=None,
               kinds=None):  # fmt: skip
    """Show the distribution over genes of each model's score, and each gene's score against the attainable one.

    Parameters
    ----------
    scores
        Data frame with one row a gene and model; boxes hold half of the genes, whiskers nine tenths.
    ceiling, reached, kinds
        Float (genes,): attainable and reached correlation; (genes,) of ``"yes"``, ``"partly"``, ``"no"``: whether
        morphology knows the gene. Without them, as on real tissue, only the boxes are shown.
    """
    names = list(dict.fromkeys(scores[by]))
    width = 1 if ceiling is None else 2
    figure, axes = new_figure(1, width, size=(5.6 * width, 3.9), squeeze=False)
    groups = [scores.loc[scores[by] == name, value].dropna() for name in names]
    axis = axes[0, 0]
    look = {"orientation": "horizontal", "widths": 0.6, "showfliers": False, "patch_artist": True}
    boxes = axis.boxplot(groups, whis=(5, 95), **look)
    for box, median in zip(boxes["boxes"], boxes["medians"]):
        box.set(facecolor=OKABE_ITO[5], alpha=0.6, lw=0.6)
        median.set(color="black", lw=1.6)
    axis.axvline(0, color="0.5", lw=0.8, ls=":")
    axis.set_yticks(range(1, len(names) + 1), names)
    axis.invert_yaxis()
    axis.set(xlabel=label, title="this model beside its baselines")
    if ceiling is not None:
        axis, kinds = axes[0, 1], np.asarray(kinds)
        for kind, colour in KINDS.items():
            mine = kinds == kind
            axis.plot(np.asarray(ceiling)[mine], np.asarray(reached)[mine], ".", color=colour, ms=4, alpha=0.7,
                      label=f"morphology knows: {kind}")  # fmt: skip
        top = float(np.nanmax(np.concatenate([ceiling, reached]))) + 0.05
        axis.plot([0, top], [0, top], color="0.5", lw=0.8, ls=":")
        axis.set(xlabel="attainable correlation", ylabel="correlation reached", xlim=(-0.05, top),
                 title="what is attainable, and what is reached")  # fmt: skip
        axis.legend(loc="upper left", fontsize=7, markerscale=2)
    return figure


def calibration(levels, curves: dict, histograms: dict):
    """Show how often intervals hold the measured count, and histograms of the probability integral transform.

    Parameters
    ----------
    levels
        Nominal coverages, float (k,).
    curves
        Model -> measured coverages, float (k,).
    histograms
        Model -> density in equal bins of (0, 1), float (bins,); 1 everywhere is perfect.
    """
    figure, axes = new_figure(1, 1 + len(histograms), size=(2.9 * (1 + len(histograms)), 2.9), squeeze=False)
    first, *others = axes[0]
    first.plot([0, 1], [0, 1], ":", color="0.5")
    for (name, values), colour in zip(curves.items(), OKABE_ITO):
        first.plot(levels, values, "o-", color=colour, label=name, ms=4)
    first.set(xlabel="interval's nominal coverage", ylabel="counts inside", title="coverage", aspect="equal")
    first.legend(fontsize=7)
    for axis, (name, density), colour in zip(others, histograms.items(), OKABE_ITO):
        edges = np.linspace(0, 1, len(density) + 1)
        axis.bar(edges[:-1], density, width=np.diff(edges), align="edge", color=colour, alpha=0.7, lw=0)
        axis.axhline(1, color="0.4", lw=0.8, ls=":")
        axis.set(xlabel="PIT of the measured count", ylabel="density", title=name, xlim=(0, 1))
    return figure


def single_and_ensemble(single, ensemble, *, labels=None, title: str = ""):
    """Show the scores of single models as boxes, one group each, and of their ensembles as a line (paper, Fig. 2c).

    Parameters
    ----------
    single
        Float (groups, models).
    ensemble
        Float (groups,).
    """
    figure, axis = new_figure(size=(4.6, 3.0))
    place = np.arange(1, len(single) + 1)
    boxes = axis.boxplot(list(single), positions=place, widths=0.5, patch_artist=True, whis=(0, 100))
    for box in boxes["boxes"]:
        box.set(facecolor=OKABE_ITO[5], alpha=0.6)
    axis.plot(place, ensemble, "o-", color=OKABE_ITO[1], label="ensemble of the group")
    axis.set_xticks(place, labels or [f"group {i}" for i in place])
    axis.set(ylabel="median correlation", title=title)
    axis.legend(fontsize=7)
    return figure


def shifted(values: dict, *, label: str, title: str = ""):
    """Show distributions as boxes on a log scale: name -> values (n,); the others are held against the first."""
    figure, axis = new_figure(size=(5.6, 0.5 * len(values) + 1.2))
    look = {"orientation": "horizontal", "widths": 0.6, "showfliers": False, "patch_artist": True}
    boxes = axis.boxplot(list(values.values()), **look)
    for box, colour in zip(boxes["boxes"], [OKABE_ITO[2]] + [OKABE_ITO[1]] * len(values)):
        box.set(facecolor=colour, alpha=0.55)
    axis.axvline(float(np.median(next(iter(values.values())))), color="0.4", lw=0.8, ls=":")
    axis.set_yticks(range(1, len(values) + 1), list(values))
    axis.invert_yaxis()
    axis.set(xlabel=label, xscale="log", title=title)
    return figure


def mean_variance(mean, variance, size: float, *, title: str = ""):
    """Show how far each gene's counts scatter round their prediction, against the mean predicted, with two laws.

    Parameters
    ----------
    mean, variance
        Float (genes,): mean of the predicted counts over spots, and mean squared distance of the counts from them. (The
        variance over spots would not do: it holds the differences between spots that the model explains.)
    size
        Size r of the negative binomial drawn: variance = mean + mean^2 / r. Poisson's is the mean.
    """
    figure, axis = new_figure(size=(4.4, 3.4))
    axis.plot(mean, variance, ".", color=OKABE_ITO[0], ms=3, alpha=0.5)
    line = np.geomspace(max(float(np.min(mean)), 1e-3), float(np.max(mean)), 50)
    axis.plot(line, line, color=OKABE_ITO[1], label="Poisson: the mean")
    axis.plot(line, line + line**2 / size, color=OKABE_ITO[2], label=f"negative binomial, r = {size:.1f}")
    axis.set(xscale="log", yscale="log", title=title)
    axis.set(xlabel="mean count of a gene", ylabel="variance round the prediction")
    axis.legend(fontsize=7)
    return figure

"""Examiner's room: figures of survival and drug response - curves, hazards, models compared, a leak in numbers.

Every function returns the figure and computes no result. Colours are Okabe and Ito's; no message hangs on colour alone.
"""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure

LOW, HIGH, GREY = OKABE_ITO[0], OKABE_ITO[1], "0.55"
STYLES = ("-", "--", "-.", ":")


def kaplan_meier(panels: dict, *, unit: str = "months", moments=None):
    """Show survival curves with 95 % bands, censoring not marked, and the numbers at risk below them.

    Parameters
    ----------
    panels
        Title -> groups; groups: name -> (table of :func:`helpers.survival_curves.kaplan_meier`, times float (n,)).
        The first group is drawn blue and solid, the second vermilion and dashed.
    moments
        Where patients at risk are counted; default every 6, 12, 24, 36, 60 or 120 units, at most six of them.
    """
    from matplotlib.ticker import PercentFormatter

    rows = max(len(groups) for groups in panels.values())
    figure, axes = new_figure(2, len(panels), size=(4.3 * len(panels), 3.5 + 0.22 * rows), squeeze=False,
                              height_ratios=[3, 0.35 + 0.22 * rows], sharex="col")  # fmt: skip
    for place, (title, groups) in enumerate(panels.items()):
        axis, below = axes[:, place]
        longest = max(np.max(times) for _, times in groups.values())
        step = next((one for one in (6, 12, 24, 36, 60, 120) if longest / one <= 6), longest / 5)
        ticks = np.arange(0, 0.97 * longest, step) if moments is None else np.asarray(moments, float)
        for (name, (table, times)), colour, style in zip(groups.items(), (LOW, HIGH, *OKABE_ITO[2:]), STYLES):
            ends = np.r_[table["time"], np.max(times)]
            steps = {k: np.r_[table[k].ffill(), table[k].ffill().iloc[-1]] for k in ("survival", "low", "high")}
            axis.step(ends, steps["survival"], where="post", color=colour, ls=style, label=f"{name} (n = {len(times)})")
            axis.fill_between(ends, steps["low"], steps["high"], step="post", color=colour, alpha=0.15, lw=0)
        axis.set(ylim=(0, 1.02), xlim=(0, longest), title=title, ylabel="alive" if place == 0 else "")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.legend(loc="lower left")
        axis.tick_params(labelbottom=True)
        axis.set_xticks(ticks)
        below.set(ylim=(-0.6, len(groups) - 0.4), xlabel=unit, yticks=range(len(groups)))
        below.set_yticklabels([f"{name} at risk" for name in groups] if place == 0 else [""] * len(groups))
        below.invert_yaxis()
        for row, ((_, times), colour) in enumerate(zip(groups.values(), (LOW, HIGH, *OKABE_ITO[2:]))):
            for moment in ticks:
                many = int((np.asarray(times) >= moment).sum())
                side = "left" if moment == 0 else "center"
                below.text(moment, row, many, ha=side, va="center", fontsize=8, color=colour)
        for spine in below.spines.values():
            spine.set_visible(False)
        below.tick_params(length=0, labelbottom=False)
    return figure


def hazards(table, *, shown: int = 12, known=(), known_label: str = "known to act", title: str = ""):
    """Show all genes' hazard ratios against their p-values, and the strongest ones with 95 % intervals.

    Parameters
    ----------
    table
        Of :func:`helpers.survival.univariate` with a column ``q``; coefficients per standard deviation.
    known
        Genes drawn as triangles: those of the truth, or a published signature.
    """
    fitted = table[table["flag"] == ""]
    ratio, minus = np.exp(fitted["beta"]), -np.log10(np.maximum(fitted["p"], 1e-300))
    figure, (axis, forest) = new_figure(1, 2, size=(9.4, 0.9 + 0.24 * max(shown, 12)), width_ratios=[1.1, 1])
    true, sure = fitted.index.isin(list(known)), (fitted["q"] < 0.05).to_numpy()
    looks = [(~true, "o", 12, "other genes"), (true, "^", 26, known_label)]
    for rows, mark, size, label in looks:
        for some, colour, end in ((rows & ~sure, GREY, ""), (rows & sure, HIGH, ", q < 0.05")):
            if some.any():
                axis.scatter(ratio[some], minus[some], s=size, marker=mark, color=colour, alpha=0.75, lw=0,
                             label=label + end)  # fmt: skip
    axis.axvline(1, color="0.5", lw=0.8, ls=":")
    axis.set(xscale="log", xlabel="hazard ratio per standard deviation", ylabel="−log10 p (Wald)", title=title)
    _plain_log(axis)
    axis.legend(loc="best", fontsize=7)
    best = fitted.sort_values("p").head(shown)
    place = np.arange(len(best))
    middle = np.exp(best["beta"].to_numpy())
    low, high = (np.exp((best["beta"] + sign * 1.96 * best["se"]).to_numpy()) for sign in (-1, 1))
    forest.errorbar(middle, place, xerr=[middle - low, high - middle], fmt="none", color="0.3", lw=1.2)
    for i, gene in enumerate(best.index):
        forest.plot(middle[i], i, "^" if gene in set(known) else "o", ms=5,
                    color=HIGH if best["q"].iloc[i] < 0.05 else GREY)  # fmt: skip
    forest.axvline(1, color="0.5", lw=0.8, ls=":")
    forest.set(yticks=place, yticklabels=best.index, xscale="log", xlabel="hazard ratio, 95 % interval",
               title="the smallest p-values")  # fmt: skip
    _plain_log(forest)
    forest.invert_yaxis()
    return figure


def _plain_log(axis):
    """Write plain numbers on a logarithmic axis, at most eight of them."""
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = axis.get_xlim()
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 5, 7, 10])
    shown = values[(values >= low) & (values <= high)]
    shown = shown if len(shown) <= 8 else shown[np.isin(shown, (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10))]
    axis.set_xticks(shown, [f"{value:g}" for value in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def models(table, *, null=None, best: float | None = None, best_label: str = "attainable", label: str = "c-index",
           title: str = ""):  # fmt: skip
    """Show a score of several models with intervals, beside chance, what permuted outcomes give and what is attainable.

    Parameters
    ----------
    table
        Index: model; ``c``, ``low``, ``high``; top row first.
    null
        Float (k,): scores with permuted outcomes; their 95 % range is shaded.
    best
        What the truth itself reaches; None on real data.
    """
    figure, axis = new_figure(size=(6.4, 1.3 + 0.36 * len(table)))
    if null is not None:
        low, high = np.percentile(np.asarray(null, float), [2.5, 97.5])
        axis.axvspan(low, high, color="0.88", lw=0, label="95 % of permuted outcomes")
    axis.axvline(0.5, color="0.4", lw=0.9, ls=":", label="chance")
    if best is not None:
        axis.axvline(best, color=OKABE_ITO[2], lw=1.6, ls="--", label=best_label)
    place = np.arange(len(table))
    for y, (c, low, high) in zip(place, table[["c", "low", "high"]].to_numpy(float)):
        axis.plot([low, high], [y, y], color=LOW, lw=1.6, solid_capstyle="butt")
        axis.plot(c, y, "o", color=LOW, ms=6)
        axis.text(c, y - 0.18, f"{c:.3f}", ha="center", va="bottom", fontsize=8)
    axis.set(yticks=place, yticklabels=table.index, xlabel=label, title=title, ylim=(len(table) - 0.5, -0.7))
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    return figure


def leak(numbers: dict, *, label: str = "cross-validated c-index", title: str = ""):
    """Show four numbers: the protocol as run and with genes chosen on everyone, outcomes as measured or dealt anew.

    Parameters
    ----------
    numbers
        ``"as run"`` and ``"leaky"`` -> (real float, permuted float (k,)).
    """
    figure, axis = new_figure(size=(6.4, 3.2))
    names = {"as run": "as run here", "leaky": "genes chosen\non everyone"}
    for place, (kind, (real, null)) in enumerate(numbers.items()):
        null = np.asarray(null, float)
        spread = 0.12 * np.sin(np.arange(len(null)) * 2.4)  # a fixed scatter, so that dots do not hide each other
        axis.plot(place + 0.16 + spread, null, "o", color=GREY, ms=3.5, alpha=0.6, mew=0,
                  label=None if place else "outcomes dealt anew")  # fmt: skip
        axis.plot([place, place + 0.32], [null.mean()] * 2, color="black", lw=2)
        axis.text(place + 0.35, null.mean(), f"{null.mean():.3f}", va="center", fontsize=9)
        axis.plot(place - 0.2, real, "D", color=HIGH, ms=8, label=None if place else "outcomes as measured")
        axis.text(place - 0.27, real, f"{real:.3f}", va="center", ha="right", fontsize=9, color=HIGH)
    axis.axhline(0.5, color="0.4", lw=0.9, ls=":")
    axis.set(xticks=range(len(numbers)), xticklabels=[names.get(kind, kind) for kind in numbers], ylabel=label,
             title=title, xlim=(-0.6, len(numbers) - 0.3))  # fmt: skip
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1))
    return figure


def response(rated: dict):
    """Show ROC curves of within-fold ranks, the calibration of probabilities, and areas with responses dealt anew.

    Parameters
    ----------
    rated
        Source -> :class:`helpers.response.Rated`.
    """
    figure, (roc, fair, chance) = new_figure(1, 3, size=(11.7, 3.5))
    looks = list(zip((LOW, HIGH, OKABE_ITO[2]), STYLES, ("o", "s", "^")))
    for (name, one), (colour, style, mark) in zip(rated.items(), looks):
        roc.step(*one.curve, where="post", color=colour, ls=style, label=f"{name}: AUC {one.nested.mean:.2f}")
        table = one.calibration
        gaps = [table["came"] - table["low"], table["high"] - table["came"]]
        fair.errorbar(table["said"], table["came"], yerr=gaps, color=colour, ls=style, marker=mark, ms=4, lw=1.1,
                      elinewidth=0.8, label=name)  # fmt: skip
    for axis in (roc, fair):
        axis.plot([0, 1], [0, 1], ":", color="0.5", lw=0.9)
        axis.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    roc.set(xlabel="share of RD called pCR", ylabel="share of pCR found", title="ROC, left-out patients")
    roc.legend(loc="lower right", fontsize=7)
    fair.set(xlabel="probability said", ylabel="share with pCR", title="calibration")
    fair.legend(loc="upper left", fontsize=7)
    for place, ((name, one), (colour, _, mark)) in enumerate(zip(rated.items(), looks)):
        spread = 0.1 * np.sin(np.arange(len(one.null)) * 2.4)
        chance.plot(place + 0.15 + spread, one.null, "o", color=GREY, ms=3, alpha=0.5, mew=0)
        chance.plot(place - 0.15, one.fixed, mark, color=colour, ms=8)
    chance.axhline(0.5, color="0.4", lw=0.8, ls=":")
    chance.set(ylabel="AUC, settings fixed", title="responses dealt anew (grey)", xlim=(-0.6, len(rated) - 0.4),
               xticks=range(len(rated)), xticklabels=list(rated))  # fmt: skip
    return figure


def agreement(across_genes, across_patients, *, mean_profile=None, known=None, labels=("", "")):
    """Show both ways in which prediction and bulk can agree, with what the mean profile of the cohort reaches.

    Parameters
    ----------
    across_genes
        Float (patients,): correlation over genes, within a patient (the paper's number).
    across_patients
        Float (genes,): correlation over patients, within a gene.
    mean_profile
        Float (patients,): the same as ``across_genes`` for one profile used for everyone.
    known
        (genes,) bool: genes that act on the outcome, by the truth; None on real data.
    labels
        Titles of the two panels.
    """
    figure, (left, right) = new_figure(1, 2, size=(9, 3.1))
    bins = np.linspace(-1, 1, 81)
    if mean_profile is not None:
        left.hist(mean_profile, bins, color=GREY, alpha=0.65, label="the mean profile, for everyone")
    left.hist(across_genes, bins, histtype="step", color=LOW, lw=1.8, label="prediction")
    shown = np.r_[across_genes, [] if mean_profile is None else mean_profile]
    left.set(xlabel="correlation over genes, within a patient", ylabel="patients", title=labels[0],
             xlim=(min(0, np.nanmin(shown) - 0.05), 1))  # fmt: skip
    left.legend(loc="upper left", fontsize=7)
    values = np.asarray(across_patients, float)
    parts = {"all genes": np.isfinite(values)} if known is None else \
        {"prognostic genes": np.asarray(known, bool), "other genes": ~np.asarray(known, bool)}  # fmt: skip
    bins = np.linspace(-0.6, 1, 49)
    for (name, rows), colour, style in zip(parts.items(), (LOW, HIGH), STYLES):
        right.hist(values[rows], bins, histtype="step", color=colour, ls=style, lw=1.6,
                   label=f"{name}: median {np.nanmedian(values[rows]):.2f}")  # fmt: skip
    right.axvline(0, color="0.5", lw=0.8, ls=":")
    right.set(xlabel="correlation over patients, within a gene", ylabel="genes", title=labels[1])
    right.legend(loc="upper left", fontsize=7)
    return figure

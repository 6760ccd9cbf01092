"""Examiner's room: figures of the stage classifier - learning curves, ROC curves, confusion, modes compared."""

from __future__ import annotations

import numpy as np

from helpers.plots import OKABE_ITO, new_figure


def learning_curves(histories, *, title: str = ""):
    """Show training and validation loss, and validation accuracy, over epochs: a thin line a fold.

    Parameters
    ----------
    histories
        Data frames with ``epoch``, ``loss`` and, where there was a validation set, ``valid_loss``, ``valid_accuracy``.
    """
    figure, axes = new_figure(1, 2, size=(9, 3.2))
    for number, history in enumerate(histories):
        named = number == 0
        axes[0].plot(history["epoch"], history["loss"], color=OKABE_ITO[0], lw=1, label="training" if named else None)
        if "valid_loss" in history:
            other = "other animals" if named else None
            axes[0].plot(history["epoch"], history["valid_loss"], color=OKABE_ITO[1], lw=1, label=other)
            axes[1].plot(history["epoch"], history["valid_accuracy"], color=OKABE_ITO[1], lw=1, label=other)
            best = history["valid_loss"].idxmin()
            axes[0].plot(history["epoch"][best], history["valid_loss"][best], "o", color=OKABE_ITO[1], ms=4)
    axes[0].set(xlabel="epoch", ylabel="loss", title=title)
    axes[0].legend()
    axes[1].set(xlabel="epoch", ylabel="accuracy per tile, animals not trained on", ylim=(0, 1))
    if not axes[1].lines:
        _say(axes[1], "no animal could be spared\nto say when to stop")
    return figure


def _say(axis, text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color="0.35")


def roc(curves, *, title: str = ""):
    """Show ROC curves one against the rest.

    Parameters
    ----------
    curves
        Panel title -> stage -> (false positive rate, true positive rate, area).
    """
    figure, axes = new_figure(1, len(curves), size=(3.1 * len(curves), 3.3), squeeze=False)
    for axis, (name, stages) in zip(axes.flat, curves.items()):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1)
        for colour, (stage, (wrong, right, area)) in zip(OKABE_ITO, stages.items()):
            axis.plot(wrong, right, color=colour, label=f"{stage} ({area:.2f})")
        axis.set(xlabel="false positive rate", title=name, aspect="equal")
        if stages:
            axis.legend(loc="lower right", fontsize=7)
        else:
            _say(axis, "no curve: only one stage\nwas ever tested")
    axes[0, 0].set_ylabel("true positive rate")
    figure.suptitle(title)
    return figure


def confusion(matrices, *, title: str = ""):
    """Show row-normalised confusion matrices (data frames, true stages in rows); the diagonal is what is right."""
    figure, axes = new_figure(1, len(matrices), size=(3.1 * len(matrices), 3.3), squeeze=False)
    for axis, (name, table) in zip(axes.flat, matrices.items()):
        shown = axis.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap="viridis")
        for (row, column), value in np.ndenumerate(table.to_numpy(float)):
            if np.isfinite(value):
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                          color="black" if value > 0.6 else "white")  # fmt: skip
        axis.set(xticks=range(len(table)), yticks=range(len(table)), xlabel="called", title=name)
        axis.set_xticklabels(table.columns)
        axis.set_yticklabels(table.index)
    axes[0, 0].set_ylabel("true")
    figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.75, label="share of the true stage")
    figure.suptitle(title)
    return figure


def modes(values, *, chance: float, ylabel: str, title: str = ""):
    """Show a score of each mode with its folds: ``values`` maps mode -> (score over all, scores of the folds)."""
    figure, axis = new_figure(size=(5.5, 3.2))
    axis.axhline(chance, color="0.6", lw=1, ls="--", label="chance")
    for place, (colour, (name, (whole, folds))) in enumerate(zip(OKABE_ITO, values.items())):
        axis.plot(np.full(len(folds), place) + np.linspace(-0.12, 0.12, len(folds)), folds, "o", color=colour, ms=4,
                  alpha=0.55)  # fmt: skip
        axis.plot([place - 0.25, place + 0.25], [whole, whole], color=colour, lw=3)
    axis.set(xticks=range(len(values)), ylim=(0, 1.03), ylabel=ylabel, title=title)
    axis.set_xticklabels(values)
    axis.legend(loc="lower right")
    return figure

"""Methods, SpaCell: how good a stage classifier is - per tile, section and animal, with the spread over folds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.messages import CourseError

LEVELS = {"tile": None, "section": "section_id", "animal": "subject_id"}


def pool(probability, table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return one row per tile, section or animal: probability of each stage, true ``stage``, ``fold``, ``n`` of tiles.

    A section's probability is the geometric mean of its tiles', brought back to sum 1: each tile votes with its
    log-probabilities, and no single tile can carry the section.

    Parameters
    ----------
    probability
        DataFrame (n tiles, stages); rows of NaN (never tested) are left out.
    table
        ``section_id``, ``subject_id``, ``stage``, ``fold``, same rows.
    """
    if level not in LEVELS:
        raise CourseError(f"level {level!r}", f"one of {', '.join(LEVELS)}", "correct it")
    stages, tested = list(probability.columns), probability.notna().all(axis=1).to_numpy()
    key = np.arange(len(table)) if LEVELS[level] is None else table[LEVELS[level]].to_numpy()
    log = np.log(np.maximum(probability.to_numpy(float)[tested], 1e-6))
    group = pd.DataFrame(log, columns=stages).groupby(key[tested], sort=True)
    mean = np.exp(group.mean())
    out = mean.div(mean.sum(axis=1), axis=0)
    facts = table[tested].groupby(key[tested], sort=True)
    return out.assign(stage=facts["stage"].first(), fold=facts["fold"].first(), n=facts.size())


def accuracy(pooled: pd.DataFrame, stages) -> float:
    """Return the share whose most probable stage is the true one."""
    return float((pooled[list(stages)].idxmax(axis=1) == pooled["stage"]).mean())


def pair_accuracy(pooled: pd.DataFrame, first: str, second: str) -> float:
    """Return the accuracy between two stages: rows of the others are left out, and so are their probabilities."""
    two = pooled[pooled["stage"].isin([first, second])]
    return float((two[[first, second]].idxmax(axis=1) == two["stage"]).mean()) if len(two) else float("nan")


def aucs(pooled: pd.DataFrame, stages) -> dict[str, float]:
    """Return the area under the ROC curve of each stage against the rest; NaN where one side is empty."""
    from sklearn.metrics import roc_auc_score

    truth = {stage: pooled["stage"] == stage for stage in stages}
    return {
        stage: float(roc_auc_score(truth[stage], pooled[stage])) if truth[stage].nunique() == 2 else float("nan")
        for stage in stages
    }


def roc(pooled: pd.DataFrame, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates of one stage against the rest."""
    from sklearn.metrics import roc_curve

    return roc_curve(pooled["stage"] == stage, pooled[stage])[:2]


def confusion(pooled: pd.DataFrame, stages) -> pd.DataFrame:
    """Return true stages (rows) by called stages (columns), each row summing to 1; NaN for a stage never tested."""
    called = pooled[list(stages)].idxmax(axis=1)
    counts = pd.crosstab(pooled["stage"], called).reindex(index=list(stages), columns=list(stages), fill_value=0)
    return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def summary(probability, table: pd.DataFrame, *, pair: tuple[str, str] | None = None) -> pd.DataFrame:
    """Return one row a level: accuracy over all, its mean and sd over folds, the mean AUC, and the pair's accuracy."""
    stages, rows = list(probability.columns), []
    for level in LEVELS:
        pooled = pool(probability, table, level)
        by_fold = [accuracy(part, stages) for _, part in pooled.groupby("fold")]
        known = [value for value in aucs(pooled, stages).values() if np.isfinite(value)]
        row = {
            "level": level, "n": len(pooled), "accuracy": accuracy(pooled, stages), "fold_mean": np.mean(by_fold),
            "fold_sd": np.std(by_fold), "auc": np.mean(known) if known else np.nan,
        }  # fmt: skip
        if pair:
            row["pair"] = pair_accuracy(pooled, *pair)
        rows.append(row)
    return pd.DataFrame(rows)

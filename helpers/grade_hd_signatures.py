"""Examiner: what signature scores say about cells and domains, against the true types and domains."""

from __future__ import annotations

import numpy as np

from helpers import visium_hd_signatures as signatures
from helpers.messages import CourseError


def auroc(scores, types):
    """Return how well each signature's score finds the cells of its type: area under the ROC curve.

    Parameters
    ----------
    scores
        DataFrame, cells x signatures.
    types
        True type of each cell (n,), names as those of the signatures.

    Returns
    -------
    pandas.DataFrame
        Index the signatures: ``auroc`` (1 perfect, 0.5 chance; NaN without cells of the type), ``cells``.
    """
    import pandas as pd
    from scipy.stats import rankdata

    types = _same(scores, types)
    rows = {}
    for name in scores:
        own = types == name
        n, m = int(own.sum()), int((~own).sum())
        ranks = rankdata(scores[name].to_numpy(float))
        rows[name] = {"auroc": (ranks[own].sum() - n * (n + 1) / 2) / (n * m) if n and m else np.nan, "cells": n}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("signature")


def _same(scores, types):
    types = np.asarray(types, object)
    if len(types) != len(scores):
        raise CourseError(f"{len(scores)} cells, {len(types)} types", "one each", "match the cells to the truth first")
    return types


def accuracy(scores, types) -> dict[str, float]:
    """Return the share of cells whose highest score is their type's (``accuracy``), and ``majority``, by one answer.

    Only cells count that have a signature for their type.
    """
    types = _same(scores, types)
    known = np.isin(types, list(scores.columns))
    best = signatures.best(scores).to_numpy(object)
    _, numbers = np.unique(types[known].astype(str), return_counts=True)
    return {"accuracy": float((best == types)[known].mean()), "majority": float(numbers.max() / known.sum())}


def rises(types, groups, names):
    """Return the true rises: of each group and type, the share of cells in the group less that of all others, in sd.

    What :func:`visium_hd_signatures.rank` would find as ``meanchange`` if each score were its type.
    """
    import pandas as pd

    types = np.asarray(types, object)
    own = pd.DataFrame({name: (types == name).astype(float) for name in names})
    own = (own - own.mean()) / own.std(ddof=0).replace(0, np.nan)
    groups = pd.Series(np.asarray(groups, object))
    groups = groups.where(groups.notna() & (groups != ""))
    inside = own.groupby(groups).mean()
    size = groups.value_counts()
    total = own[groups.notna().to_numpy()]
    outside = pd.DataFrame({
        group: (total.sum() - inside.loc[group] * size[group]) / max(len(total) - size[group], 1)
        for group in inside.index
    }).T  # fmt: skip
    return inside - outside


def first_right(ranking, types, groups) -> dict[str, float]:
    """Return how often the signature ranked first in a domain is the type that truly rises most there.

    Returns
    -------
    dict
        ``domains`` share of domains, ``cells`` share of cells that lie in such a domain; ``correlation`` of
        ``meanchange`` with the true rises, over all domains and signatures.
    """
    names = list(dict.fromkeys(ranking["name"]))
    true = rises(types, groups, names)
    found = ranking.pivot(index="group", columns="name", values="meanchange").reindex(index=true.index, columns=names)
    right = found.idxmax(axis=1) == true.idxmax(axis=1)
    sizes = np.array([(np.asarray(groups, object) == group).sum() for group in true.index])
    pair = np.stack([found.to_numpy(float).ravel(), true.to_numpy(float).ravel()])
    pair = pair[:, np.isfinite(pair).all(0)]
    return {
        "domains": float(right.mean()), "cells": float((right * sizes).sum() / sizes.sum()),
        "correlation": float(np.corrcoef(pair)[0, 1]),
    }  # fmt: skip


def invented(assigned) -> int:
    """Return how many domains got a name; on the null twin none should."""
    return int((assigned["label"] != signatures.UNKNOWN).sum())


def by_step(steps, truth, true_row):
    """Return how well the scores of each step name cells.

    Parameters
    ----------
    steps
        Step -> scores, DataFrame cells x signatures.
    true_row
        int (cells,): row of ``truth.cells``, -1 for a cell that is none.

    Returns
    -------
    pandas.DataFrame
        Index step: ``right name`` (:func:`accuracy`), ``lowest AUROC`` over signatures, ``majority``.
    """
    import pandas as pd

    known = np.asarray(true_row) >= 0
    kinds = truth.cells["type"].to_numpy(object)[np.asarray(true_row)[known]]
    rows = {}
    for step, scores in steps.items():
        found = accuracy(scores[known], kinds)
        lowest = auroc(scores[known], kinds)["auroc"].min()
        rows[step] = {"right name": found["accuracy"], "lowest AUROC": lowest, "majority": found["majority"]}
    return pd.DataFrame(rows).T

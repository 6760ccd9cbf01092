"""Examiner: domains, filters and islands of virtual Visium HD cells against the truth of their section."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError
from helpers.visium_hd_qc import check_um

WITHIN_UM = 6.0
"""A segmented cell is the true cell whose centre is nearest, if that is nearer than this: about one nuclear radius."""


def match(cells, truth, *, within_um: float = WITHIN_UM, strict: bool = True):
    """Return the true cell of each segmented cell, a data frame of ``truth.cells``' columns in the cells' order.

    Parameters
    ----------
    cells
        AnnData with places in microns.
    truth
        Has ``cells``, a data frame with ``x_um``, ``y_um``, ``type``, ``domain``, ``island``, ``high_mt``.

    strict
        Refuse where hardly a cell is matched; a trap wants to see what follows instead.

    Returns
    -------
    pandas.DataFrame
        Index as ``cells.obs_names``, and ``matched`` (bool). Where it is False, texts are "" and flags False.

    Raises
    ------
    CourseError
        Places that are not in microns, or fewer than half of the cells near a true one: another section, or pixels.
    """
    from scipy.spatial import cKDTree

    xy, known = check_um(cells), truth.cells.reset_index(drop=True)
    away, nearest = cKDTree(known[["x_um", "y_um"]].to_numpy()).query(xy)
    near = away <= within_um
    if strict and near.mean() < 0.5:
        raise CourseError(
            f"{100 * near.mean():.0f} % of the cells within {within_um:g} um of a true one", "at least half",
            "compare with the truth of the same section; are the places in microns?",
        )  # fmt: skip
    out = known.iloc[nearest].set_axis(cells.obs_names, axis=0).assign(matched=near)
    for name in ("type", "domain"):
        out[name] = np.where(near, out[name].astype(str), "")
    for name in ("island", "high_mt"):
        out[name] = out[name].to_numpy(bool) & near
    return out


def scores(labels, true):
    """Return the adjusted Rand index of each column of ``labels`` with the true domains, over matched cells.

    Parameters
    ----------
    labels
        DataFrame (cells, methods or levels); NaN (no domain) counts as a domain of its own.
    true
        Of :func:`match`, with the same index.

    Returns
    -------
    pandas.DataFrame
        Index as the columns of ``labels``: ``ari`` and ``domains`` (found).
    """
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    if not labels.index.equals(true.index):
        raise CourseError("labels and truth of different cells", "the same cells in the same order", "match() again")
    matched = true["matched"].to_numpy(bool)
    right = true["domain"].to_numpy(object)[matched]
    rows = {}
    for name in labels:
        found = labels[name].astype(object).where(labels[name].notna(), "").to_numpy(object)[matched]
        rows[name] = {"ari": adjusted_rand_score(right, found), "domains": len(set(found) - {""})}
    return pd.DataFrame.from_dict(rows, orient="index")


def confusion(labels, true):
    """Return the share of each true domain in each found one, a data frame (found x true) whose rows sum to 1."""
    import pandas as pd

    matched = true["matched"].to_numpy(bool)
    found = np.asarray(labels, object)[matched]
    right = true["domain"].to_numpy(object)[matched]
    table = pd.crosstab(pd.Series(found, name="found"), pd.Series(right, name="true"))
    return table.div(table.sum(1), axis=0)


def found_flags(flag, truth) -> dict[str, float]:
    """Return precision and recall of a filter (bool, by cell) against a true flag: ``precision``, ``recall``."""
    flag, truth = np.asarray(flag, bool), np.asarray(truth, bool)
    both = float((flag & truth).sum())
    return {"precision": both / max(flag.sum(), 1), "recall": both / max(truth.sum(), 1)}


def mito_domain(labels, high_mt) -> float:
    """Return how much one domain is the damaged strip: the largest, over domains, of (share of it) x (share it holds).

    0.04 where the strip's cells lie where they belong (about 5 % of a domain that is most of them); towards 1 where a
    domain is the strip.
    """
    from helpers.visium_hd_domains import flagged

    table = flagged(labels, high_mt)
    return float((table["share"] * table["holds"]).max())

"""Methods: from tiles and slides to patients, and how well predicted expression agrees with bulk RNA.

The patient is the unit. A patient with three slides is one patient, not three, and never sits on both sides of a split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.messages import CourseError

CPM = 1e6
MIN_GENES, MIN_PATIENTS = 10, 5


def _frame(values, what: str) -> pd.DataFrame:
    """Return a numeric table with unique labels on both sides, or refuse."""
    table = values if isinstance(values, pd.DataFrame) else pd.DataFrame(values)
    for labels, name in ((table.index, "patients"), (table.columns, "genes")):
        if not labels.is_unique:
            twice = labels[labels.duplicated()][0]
            raise CourseError(f"{twice!r} twice among the {name} of the {what} table", "each once",
                              "average or drop the copies")  # fmt: skip
    return table.astype(float)


def per_patient(values, patient_of, *, weights=None) -> pd.DataFrame:
    """Return the weighted mean of slides (or tiles) over each patient.

    Parameters
    ----------
    values
        Float (slides, genes), e.g. mean predicted expression of each slide. Averages belong on a linear scale where
        they shall match bulk: a tube of RNA adds molecules, not logarithms.
    patient_of
        Patient of each slide, (slides,).
    weights
        Weight of each slide, (slides,), e.g. its number of tiles: then every tile counts the same. None: 1 each.

    Returns
    -------
    pandas.DataFrame
        (patients, genes), patients sorted; ``attrs["slides"]`` has the number of slides of each.

    Raises
    ------
    CourseError
        Lengths that differ, weights that are negative or not finite, a patient whose weights are all 0, values that
        are not finite.
    """
    names = values.columns if isinstance(values, pd.DataFrame) else None
    values, patient_of = np.asarray(values, float), np.asarray(patient_of)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if values.ndim != 2 or patient_of.shape != (len(values),) or weights.shape != (len(values),):
        raise CourseError(
            f"values {values.shape}, {len(patient_of)} patients, {len(weights)} weights", "one row a slide in each",
            "align the tables",
        )  # fmt: skip
    if not np.isfinite(values).all() or not np.isfinite(weights).all() or (weights < 0).any():
        raise CourseError("missing values, or weights below 0", "finite numbers", "leave such slides out, and say so")
    known, code = np.unique(patient_of, return_inverse=True)
    total = np.bincount(code, weights, len(known))
    if (total <= 0).any():
        raise CourseError(f"no tile for patient {known[np.argmin(total)]!r}", "weights above 0 in each patient",
                          "leave the patient out, and say so")  # fmt: skip
    sums = np.zeros((len(known), values.shape[1]))
    np.add.at(sums, code, values * weights[:, None])
    out = pd.DataFrame(sums / total[:, None], index=pd.Index(known, name="patient"), columns=names)
    out.attrs["slides"] = dict(zip(known.tolist(), np.bincount(code, minlength=len(known)).tolist()))
    return out


def log_cpm(counts) -> pd.DataFrame:
    """Return log2(counts per million + 1) of a table (patients, genes).

    Raises
    ------
    CourseError
        Negative or missing counts, a patient without counts, repeated labels.
    """
    table = _frame(counts, "bulk")
    values = table.to_numpy()
    if not np.isfinite(values).all() or (values < 0).any():
        raise CourseError("missing or negative counts", "counts of 0 or more",
                          "these may be z-scores or logs: use them as they are")  # fmt: skip
    total = values.sum(1, keepdims=True)
    if (total == 0).any():
        raise CourseError(f"no counts for patient {table.index[int(np.argmin(total))]!r}", "counts in each",
                          "are the genes in the rows? transpose the table")  # fmt: skip
    return pd.DataFrame(np.log2(values / total * CPM + 1), index=table.index, columns=table.columns)


def standardise(train, *others) -> list:
    """Return tables with the mean and sd of each gene of ``train`` taken out; constant genes become 0.

    Returns
    -------
    list of float64 (n, genes), ``train`` first. Nothing is learned from the others.
    """
    train = np.asarray(train, float)
    mean, sd = train.mean(0), train.std(0)
    flat = sd <= 1e-9 * (1 + np.abs(mean))
    return [np.where(flat, 0.0, (np.asarray(x, float) - mean) / np.where(flat, 1.0, sd)) for x in (train, *others)]


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with measured expression, both ways.

    Attributes
    ----------
    patients
        One row a patient: ``pearson``, ``spearman`` across genes, and the same for ``null_pearson``, ``null_spearman``:
        the mean predicted profile of the *other* patients in place of the patient's own. What does not exceed it is no
        knowledge of the patient. ``gain`` = pearson - null_pearson.
    genes
        One row a gene: ``pearson``, ``spearman`` across patients; NaN for constant genes. ``p`` of Pearson's r, two
        sided, for independent patients; ``q`` by Benjamini and Hochberg (constant genes count as p = 1).
    """

    patients: pd.DataFrame
    genes: pd.DataFrame


def _pearson(a, b) -> np.ndarray:
    """Return Pearson's r of the rows of two arrays (n, m); NaN where a row is constant."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    size_a, size_b = np.sqrt((a**2).sum(1)), np.sqrt((b**2).sum(1))
    flat = (size_a <= 1e-9) | (size_b <= 1e-9)
    return np.where(flat, np.nan, (a * b).sum(1) / np.where(flat, 1.0, size_a * size_b))


def agreement(predicted: pd.DataFrame, measured: pd.DataFrame) -> Agreement:
    """Compare predicted with bulk expression across genes within a patient, and across patients within a gene.

    Parameters
    ----------
    predicted, measured
        (patients, genes) with names, both on a log scale. Rows and columns are matched **by name**; what only one
        table has is left out.

    Returns
    -------
    Agreement

    Raises
    ------
    CourseError
        Fewer than 10 shared genes or 5 shared patients; repeated names; values missing.

    Notes
    -----
    STimage reports the first kind (mean r .48 over 670 patients). It is high for any model that knows which genes are
    abundant, hence the null. The second kind is what a Cox model can use.
    """
    from scipy.stats import false_discovery_control, rankdata
    from scipy.stats import t as student

    predicted, measured = _frame(predicted, "predicted"), _frame(measured, "bulk")
    patients, genes = predicted.index.intersection(measured.index), predicted.columns.intersection(measured.columns)
    if len(patients) < MIN_PATIENTS or len(genes) < MIN_GENES:
        raise CourseError(
            f"{len(patients)} patients and {len(genes)} genes in common (predicted {predicted.shape}, bulk "
            f"{measured.shape})", f"at least {MIN_PATIENTS} and {MIN_GENES}",
            "patients in rows, genes in columns, the same names in both",
        )  # fmt: skip
    x, y = (table.loc[patients, genes].to_numpy() for table in (predicted, measured))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise CourseError("missing values", "finite numbers", "drop the genes or patients that lack them")
    n = len(patients)
    others = (x.sum(0) - x) / (n - 1)

    def ranks(values):
        return rankdata(values, axis=1)

    within = pd.DataFrame(
        {"pearson": _pearson(x, y), "spearman": _pearson(ranks(x), ranks(y)), "null_pearson": _pearson(others, y),
         "null_spearman": _pearson(ranks(others), ranks(y))}, index=patients,
    )  # fmt: skip
    within["gain"] = within["pearson"] - within["null_pearson"]
    r = _pearson(x.T, y.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * student.sf(np.abs(r) * np.sqrt((n - 2) / np.maximum(1 - r**2, 0)), n - 2)
    across = pd.DataFrame({"pearson": r, "spearman": _pearson(ranks(x.T), ranks(y.T)), "p": p}, index=genes)
    across["q"] = false_discovery_control(np.where(np.isfinite(p), p, 1.0))
    return Agreement(within, across)

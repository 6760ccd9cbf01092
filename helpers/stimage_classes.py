"""Methods, STimage's classifier: is a gene high or low in a spot, from its picture; one elastic net a gene."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.stimage_classes_store import Classifier, features_of, load_classes

__all__ = ["Classifier", "fit_classes", "high", "load_classes", "scores"]

_FLAT = 1e-6


def high(expression, sections):
    """Return where expression is high, bool (n, g): z-score **within the section** above 0, i.e. above its mean.

    Parameters
    ----------
    expression
        (n, g), log-normalised, dense or sparse.
    sections
        Section id of each spot, (n,). Pooled z-scores would call a whole bright section high.

    Raises
    ------
    CourseError
        Values that are not finite, a section of one spot, lengths that differ.
    """
    values = np.asarray(expression.toarray() if hasattr(expression, "toarray") else expression, np.float64)
    sections = np.asarray(sections).astype(str)
    if values.ndim != 2 or len(sections) != len(values) or not np.isfinite(values).all():
        raise CourseError(
            f"expression {values.shape} with {len(sections)} section names", "finite (spots, genes), a name a spot",
            "match the spots; drop NaN",
        )  # fmt: skip
    out = np.zeros(values.shape, bool)
    for name in np.unique(sections):
        here = sections == name
        if here.sum() < 2:
            raise CourseError(f"1 spot in section {name!r}", "2 or more: a z-score needs a spread", "leave it out")
        part = values[here] - values[here].mean(0)
        varies = np.abs(part).max(0) > _FLAT * np.abs(values[here]).max(0)  # rounding is not expression
        out[here] = (part > 0) & varies
    return out


def fit_classes(
    x, high, *, genes, strength: float = 0.1, l1_ratio: float = 0.5, C: float | None = None, class_weight=None,
    tol: float = 1e-3, max_iter: int = 1000, min_spots: int = 5, seed: int = 0,
) -> Classifier:  # fmt: skip
    """Fit a logistic regression with elastic-net penalty for each gene (scikit-learn's SAGA).

    Minimised for a gene: mean log loss + strength * (l1_ratio * sum |w| + (1 - l1_ratio) / 2 * sum w^2), features
    standardised, the intercept free.

    Parameters
    ----------
    x
        Embeddings of the training tiles, (n, f).
    high
        Bool (n, g), from :func:`high`.
    genes
        Names of the g columns.
    strength
        The paper's omega, 0.1: **larger is stronger**. scikit-learn's ``C`` is the inverse, on the *sum* of the log
        loss over n spots: ``C = 1 / (strength * n)``. The published code sets ``C = 0.1``, which the paper calls a
        strength where smaller is weaker; with 2,000 spots it is a strength of 0.005.
    l1_ratio
        The paper's alpha: 1 is the lasso, 0 the ridge.
    C
        scikit-learn's own, instead of ``strength``: 0.1 repeats the published setting.
    class_weight
        None, or ``"balanced"`` to weigh both classes alike; the probabilities are then no longer those of the tissue.
    tol, max_iter
        SAGA stops when no coefficient moves by more than ``tol`` of the largest one in a pass over the data.
    min_spots
        A gene with fewer spots than this in either class is not fitted but named in ``skipped``.

    Returns
    -------
    Classifier
        ``table`` tells for each gene whether SAGA converged; scikit-learn's warning is replaced by that.

    Raises
    ------
    CourseError
        Shapes that differ, features that are not finite, settings out of range, no gene with both classes.

    References
    ----------
    Zou and Hastie 2005; Defazio et al. 2014 (SAGA); Tan et al. 2026, equations 11 to 13.
    """
    import warnings

    import pandas as pd
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, high, genes = features_of(x), np.asarray(high), [str(gene) for gene in genes]
    if high.shape != (len(x), len(genes)) or high.dtype != bool or len(set(genes)) < len(genes):
        raise CourseError(
            f"{len(x)} spots, classes {high.shape} of {high.dtype}, {len(genes)} names",
            "bool (spots, genes), names unique",
            "pass stimage_classes.high(expression, sections)",
        )  # fmt: skip
    C = 1 / (strength * len(x)) if C is None and strength > 0 else C
    if C is None or not C > 0 or not 0 <= l1_ratio <= 1:
        raise CourseError(
            f"strength {strength}, C {C}, l1_ratio {l1_ratio}", "strength > 0, l1_ratio 0 to 1", "correct them"
        )
    positive = high.sum(0)
    skipped = {
        gene: f"high in {count} of {len(x)} spots"
        for gene, count in zip(genes, positive.tolist())
        if min(count, len(x) - count) < max(1, min_spots)
    }
    kept = [i for i, gene in enumerate(genes) if gene not in skipped]
    if not kept:
        raise CourseError(
            f"{len(genes)} genes of one class ({genes[0]}: {skipped[genes[0]]})",
            f"at least {min_spots} high and {min_spots} low spots", "choose genes that vary on the training sections",
        )  # fmt: skip
    centre, scale = x.mean(0), x.std(0)
    scale[scale <= _FLAT * np.maximum(np.abs(centre), 1e-12)] = np.inf  # a feature that does not vary says nothing
    z = np.ascontiguousarray((x - centre) / scale)
    scale[np.isinf(scale)] = 1
    number = int(settings.rng(seed, "stimage_classes").integers(2**31))

    def fit(i):
        return LogisticRegression(
            penalty="elasticnet", solver="saga", C=C, l1_ratio=l1_ratio, tol=tol, max_iter=max_iter,
            class_weight=class_weight, random_state=number,
        ).fit(z, high[:, i])  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the table instead
        with ThreadPoolExecutor(settings.cores()) as pool:  # SAGA runs without Python's lock
            fits = list(pool.map(fit, kept))
    coef = np.stack([one.coef_[0] for one in fits])
    steps = np.array([int(one.n_iter_[0]) for one in fits])
    names = tuple(genes[i] for i in kept)
    table = pd.DataFrame(
        {"share_high": positive[kept] / len(x), "n_iter": steps, "converged": steps < max_iter,
         "nonzero": (coef != 0).sum(1)}, index=pd.Index(names, name="gene"),
    )  # fmt: skip
    facts = {
        "strength": 1 / (C * len(x)), "l1_ratio": float(l1_ratio), "C": float(C), "spots": len(x), "seed": int(seed),
        "class_weight": class_weight,
    }  # fmt: skip
    intercept = np.array([one.intercept_[0] for one in fits])
    return Classifier(names, coef, intercept, centre, scale, table, skipped, facts)


def scores(high, proba, *, genes, threshold: float = 0.5):
    """Score a classifier on held-out spots of one or more sections, one row a gene.

    Parameters
    ----------
    high
        Bool (n, g): the truth, first.
    proba
        Float (n, g): probabilities of *high*. The area under the ROC curve is taken of these, not of hard classes.
    threshold
        A spot is called high at or above it, for ``f1``, ``precision``, ``recall``.

    Returns
    -------
    pandas.DataFrame
        ``share_high``, ``auc``, ``f1``, ``f1_chance`` (of calling everything high), ``precision``, ``recall``. ``auc``
        is NaN for a gene of one class; precision is 0 where nothing is called high. (The published code hands
        scikit-learn prediction and truth in swapped order: precision and recall change places.)
    """
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    high, proba, genes = np.asarray(high), np.asarray(proba, float), list(genes)
    if high.shape != proba.shape or high.ndim != 2 or high.shape[1] != len(genes) or high.dtype != bool:
        raise CourseError(
            f"classes {high.shape} of {high.dtype}, probabilities {proba.shape}, {len(genes)} genes",
            "bool (spots, genes), then probabilities of that shape", "the truth comes first",
        )  # fmt: skip
    if not (np.isfinite(proba) & (proba >= 0) & (proba <= 1)).all():
        raise CourseError("probabilities outside 0 to 1", "Classifier.proba", "do not pass classes or logits")
    both = high.any(0) & ~high.all(0)
    area = np.full(len(genes), np.nan)
    if both.any():
        area[both] = np.atleast_1d(roc_auc_score(high[:, both], proba[:, both], average=None))
    # one more column, so that scikit-learn takes a single gene as multilabel too
    true, called = (np.column_stack([part, np.zeros(len(high), bool)]) for part in (high, proba >= threshold))
    precision, recall, f1, _ = precision_recall_fscore_support(true, called, average=None, zero_division=0)
    share = high.mean(0)
    return pd.DataFrame(
        {"share_high": share, "auc": area, "f1": f1[:-1], "f1_chance": 2 * share / (1 + share),
         "precision": precision[:-1], "recall": recall[:-1]}, index=pd.Index(genes, name="gene"),
    )  # fmt: skip

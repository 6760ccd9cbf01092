"""Methods, encoders: what an embedding knows - nearest tiles, and a linear probe."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError


def _unit(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def nearest(embeddings, query, *, k: int = 5, centre=None):
    """Return the rows of ``embeddings`` nearest each row of ``query`` by cosine after centring.

    Parameters
    ----------
    embeddings : float (n, dim)
    query : float (m, dim)
    centre : float (dim,)
        Subtracted from both; default the mean of ``embeddings`` (what all tiles share would hide what differs).

    Returns
    -------
    order : int (m, k), nearest first
    cosine : float (m, k)
    """
    if not 1 <= k <= len(embeddings):
        raise CourseError(f"k={k} of {len(embeddings)} tiles", "between 1 and their number", "choose a smaller k")
    centre = np.mean(embeddings, axis=0) if centre is None else centre
    cosine = _unit(np.asarray(query) - centre) @ _unit(np.asarray(embeddings) - centre).T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosine, order, axis=1)


def recall(one, other) -> float:
    """Return the share of rows of ``one`` whose nearest row in ``other`` is their own counterpart.

    Each side is centred by its own mean, as two slides would be. Chance is 1 / n.
    """
    one, other = np.asarray(one), np.asarray(other)
    cosine = _unit(one - one.mean(axis=0)) @ _unit(other - other.mean(axis=0)).T
    return float((cosine.argmax(axis=1) == np.arange(len(one))).mean())


def probe(train_x, train_y, test_x, test_y) -> float:
    """Return the R2 of a ridge regression on data it has not seen.

    Columns are standardised by the training rows; the penalty (0.01 to 10,000) is chosen among the training rows by
    leave-one-out. R2 is 1 - residual / total sum of squares about the *test* mean, so below 0 is worse than a constant.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    return float(model.fit(train_x, train_y).score(test_x, test_y))

"""Examiner's room: predicted expression as a file others can read."""

from __future__ import annotations

import numpy as np

UNITS = "log1p(counts per 10,000 of the spot's total over all genes)"


def prediction_table(table, prediction, *, facts: dict):
    """Return measured counts and their prediction side by side, an AnnData (spots x predicted genes).

    Parameters
    ----------
    table
        AnnData of raw counts over **all** genes, one row a predicted spot, in the order of the prediction.
    prediction
        ``stimage.Prediction`` on the scale ``"log1p"``.
    facts
        What ``uns["prediction"]`` records beside units and gene order: model, encoder, seed, training sections, ...

    Returns
    -------
    AnnData
        ``X`` raw counts; ``layers``: ``pred_mean``, ``pred_sd``, ``aleatoric_var``, ``epistemic_var`` (of
        ``uns["prediction"]["units"]``) and ``measured_log1p``, the counts on the same scale;
        ``obs["library_size"]`` the measured total over all genes, ``obs["pred_library_size"]`` the predicted one.
    """
    library = np.asarray(table.X.sum(1), float).ravel()
    out = table[:, list(prediction.genes)].copy()
    counts = np.asarray(out.X.todense() if hasattr(out.X, "todense") else out.X, float)
    out.layers["pred_mean"] = prediction.mean
    out.layers["pred_sd"] = np.sqrt(prediction.total_var)
    out.layers["aleatoric_var"], out.layers["epistemic_var"] = prediction.aleatoric_var, prediction.epistemic_var
    out.layers["measured_log1p"] = np.log1p(counts * (1e4 / library)[:, None]).astype(np.float32)
    out.obs["library_size"] = library
    if prediction.log_library_mean is not None:
        out.obs["pred_library_size"] = np.exp(np.asarray(prediction.log_library_mean, float))
    out.uns["prediction"] = {"units": UNITS, "genes": list(prediction.genes), **facts}
    return out

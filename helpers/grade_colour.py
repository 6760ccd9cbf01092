"""Examiner: how far the estimated colours and outline of a virtual slide are from the truth."""

from __future__ import annotations

import numpy as np


def colour_errors(fit, mask, truth) -> dict[str, float]:
    """Compare one slide's stain fit and tissue mask with its truth.

    Parameters
    ----------
    fit
        Has ``white_point`` (3,) and ``vectors`` (2, 3), haematoxylin first.
    mask
        bool (y, x) covering the whole slide, at any scale.
    truth
        The section's truth: ``stain`` (dict of ``white_point``, ``haematoxylin``, ``eosin``), ``tissue`` bool (gy, gx).

    Returns
    -------
    dict
        ``white point error`` (largest over channels, 0-255), ``stain angle error`` (larger of the two, degrees),
        ``tissue mask overlap`` (intersection over union, 0-1).
    """
    import cv2

    rows, columns = truth.tissue.shape
    mine = cv2.resize(np.asarray(mask).astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
    angles = []
    for vector, name in zip(fit.vectors, ("haematoxylin", "eosin")):
        known = np.asarray(truth.stain[name], float)
        cosine = vector @ known / (np.linalg.norm(vector) * np.linalg.norm(known))
        angles.append(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))
    return {
        "white point error": float(np.abs(fit.white_point - np.asarray(truth.stain["white_point"])).max()),
        "stain angle error": max(angles),
        "tissue mask overlap": float((mine & truth.tissue).sum() / (mine | truth.tissue).sum()),
    }

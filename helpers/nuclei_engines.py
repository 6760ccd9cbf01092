"""Methods, nuclei: trained networks from elsewhere, as thin adapters that return the same label image."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

MODEL_MPP = 0.5
"""Microns per pixel at which StarDist's H&E model was trained (20x)."""


def stardist(rgb, *, mpp: float, model: str = "2D_versatile_he", probability: float | None = None):
    """Segment with StarDist (Schmidt et al., 2018; package ``stardist``, BSD-3).

    Parameters
    ----------
    rgb
        uint8 RGB (y, x, 3).
    mpp
        Microns per pixel; the picture is rescaled to what the model knows, and the labels back.
    model
        Name of a published model; its weights are fetched on first use.
    probability
        Threshold on the object probability; None takes the model's own.

    Returns
    -------
    int32 (y, x)
    """
    try:
        from csbdeep.utils import normalize
        from stardist.models import StarDist2D
    except ImportError:
        raise CourseError("no package stardist", "stardist and csbdeep", "pip install stardist, or "
                          "engine='watershed', which needs nothing") from None  # fmt: skip
    try:
        network = StarDist2D.from_pretrained(model)
        if network is None:
            raise ValueError(f"no published model {model!r}")
    except Exception as error:  # URLError, OSError, ValueError: all mean that there are no weights
        raise CourseError(f"no weights of {model} ({error})", "its weights, fetched on first use", "go online once, or "
                          "engine='watershed', which needs none") from None  # fmt: skip
    picture = normalize(np.asarray(rgb, np.float32), 1, 99.8, axis=(0, 1, 2))
    labels, _ = network.predict_instances(picture, scale=mpp / MODEL_MPP, prob_thresh=probability)
    return np.asarray(labels, np.int32)


def cellpose(rgb, *, mpp: float, diameter_um: float | None = None, model: str = "cpsam"):
    """Segment with Cellpose (Stringer et al., 2021; package ``cellpose``, BSD-3), as STimage's paper does.

    Parameters
    ----------
    rgb, mpp
        As for :func:`stardist`.
    diameter_um
        Expected diameter of a nucleus in microns; None lets Cellpose decide.
    model
        Name or path of a model; weights are fetched on first use.

    Returns
    -------
    int32 (y, x)
    """
    try:
        from cellpose import models
    except ImportError:
        raise CourseError("no package cellpose", "cellpose (and torch)", "pip install cellpose, or "
                          "engine='watershed', which needs nothing") from None  # fmt: skip
    try:
        network = models.CellposeModel(pretrained_model=model)
    except Exception as error:  # URLError, OSError, RuntimeError: all mean that there are no weights
        raise CourseError(f"no weights of {model} ({error})", "its weights, fetched on first use", "go online once, or "
                          "engine='watershed', which needs none") from None  # fmt: skip
    diameter = None if diameter_um is None else diameter_um / mpp
    return np.asarray(network.eval(np.asarray(rgb), diameter=diameter)[0], np.int32)

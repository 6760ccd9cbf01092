"""Methods, nuclei: what each nucleus looks like, one row a nucleus."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.nuclei_match import check_labels
from helpers.nuclei_watershed import haematoxylin

COLUMNS = ("x", "y", "area_um2", "perimeter_um", "eccentricity", "solidity", "axis_ratio", "haematoxylin", "texture")


def morphology(labels, rgb, *, mpp: float, stains=None, white_point=(255.0, 255.0, 255.0)) -> pd.DataFrame:
    """Measure each nucleus.

    Parameters
    ----------
    labels
        int (y, x), 0 = background.
    rgb
        uint8 RGB (y, x, 3), the same pixels.
    mpp
        Microns per pixel.
    stains, white_point
        As for :func:`helpers.nuclei.watershed`.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``label``: ``x``, ``y`` (centroid, pixels, centre of the first pixel at 0.5), ``area_um2``,
        ``perimeter_um``, ``eccentricity`` (0 a circle, 1 a line), ``solidity`` (area / convex hull), ``axis_ratio``
        (minor / major), ``haematoxylin`` (mean optical density, natural log), ``texture`` (its standard deviation
        inside the nucleus). No nucleus gives no row.
    """
    from skimage.measure import regionprops_table

    labels, rgb = check_labels(labels), np.asarray(rgb)
    if rgb.shape[:2] != labels.shape:
        raise CourseError(f"labels {labels.shape} on a picture {rgb.shape}", "the same pixels", "cut both alike")
    if not mpp > 0:
        raise CourseError(f"mpp={mpp}", "microns per pixel", "give the section's")
    if not labels.any():
        return pd.DataFrame({name: np.empty(0) for name in COLUMNS}, index=pd.Index([], name="label", dtype=int))
    density = haematoxylin(rgb, stains=stains, white_point=white_point)
    wanted = ("label", "centroid", "area", "perimeter", "eccentricity", "solidity", "axis_major_length",
              "axis_minor_length", "intensity_mean", "intensity_std")  # fmt: skip
    seen = pd.DataFrame(regionprops_table(labels, density, properties=wanted))
    table = pd.DataFrame({
        "label": seen["label"], "x": seen["centroid-1"] + 0.5, "y": seen["centroid-0"] + 0.5,
        "area_um2": seen["area"] * mpp**2, "perimeter_um": seen["perimeter"] * mpp,
        "eccentricity": seen["eccentricity"], "solidity": seen["solidity"],
        "axis_ratio": seen["axis_minor_length"] / seen["axis_major_length"].clip(lower=1e-9),
        "haematoxylin": seen["intensity_mean"], "texture": seen["intensity_std"],
    })  # fmt: skip
    return table.set_index("label")

"""Methods: is a slide fit for use? Measures after HistoQC, and the rules STimage applied to them.

Everything is measured on the slide at 2 um a pixel, whatever its resolution. Names of measures are HistoQC's, so its
own results table goes through the same rules.

References
----------
Janowczyk et al. 2019, HistoQC; STimage, "Validation using non-spatial data" (thresholds).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError

WORK_MPP = 2.0
TISSUE_OD = 0.12
"""Mean optical density (natural log, relative to the glass) from which a pixel is tissue, smoothed over 4 um."""
PIECE_UM2 = 12_000.0
"""Smaller pieces of tissue are removed: about 110 um across."""
SPECK_UM2 = 60.0
"""Still smaller ones are dust, and not counted."""
PEN_OD, PEN_REACH_UM, PEN_UM2 = 0.85, 7.0, 1_500.0
"""Ink: red light is darkened this much everywhere within a reach no nucleus fills, over an area no vessel fills."""
SHARPNESS, WINDOW_UM = 0.55, 50.0
"""Where the Laplacian is weaker than this, relative to the local contrast, the picture is out of focus."""
BLURRY, MOST_REGIONS, FEWEST_PIXELS = 0.9, 0.975, 0.05
"""STimage's rules: share that is blurry; quantiles over the cohort of small regions and of usable pixels."""
MIN_SLIDES = 20
"""Quantiles over fewer slides say nothing: those two rules then rest."""
MEASURES = ("blurry_removed_percent", "small_tissue_removed_num_regions", "pixels_to_use")


def _reduced(image, mpp: float):
    """Return the picture at about ``WORK_MPP``, float32 (y, x, 3), and its microns per pixel."""
    import cv2

    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise CourseError(f"an image {image.shape} of {image.dtype}", "uint8 RGB (y, x, 3)", "convert it")
    if not (np.isfinite(mpp) and 0.05 <= mpp <= WORK_MPP * 1.25):
        raise CourseError(f"{mpp} um per pixel", f"0.05 to {WORK_MPP * 1.25:g}", "pass mpp of this picture, in microns")
    height, width = (max(8, round(side * mpp / WORK_MPP)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32), image.shape[1] * mpp / width


def masks(image, mpp: float, *, glass=None) -> dict:
    """Return what is tissue, ink, out of focus and in small pieces.

    Parameters
    ----------
    image
        uint8 RGB (y, x, 3): a whole slide, or a thumbnail of at most 2.5 um per pixel.
    mpp
        Its microns per pixel.
    glass
        RGB of the glass (3,), for a part of a slide that may hold none; default: the brightest tenth.

    Returns
    -------
    dict of bool (y, x) at about 2 um a pixel
        ``tissue`` (ink left out), ``pen``, ``blurry`` and ``small`` (both within tissue), ``use`` (tissue without
        them); and ``mpp``, ``pieces`` (number of small pieces), ``sharpness`` (median over the tissue).
    """
    import cv2

    small, scale = _reduced(image, mpp)
    bright = small.mean(2)
    if glass is None:
        glass = small[bright >= np.quantile(bright, 0.9)].mean(0)  # glass, or white inside the tissue
    od = -np.log(np.minimum((small + 1) / (np.maximum(glass, 150) + 1), 1))

    def disc(reach_um):
        reach = max(1, round(reach_um / scale))
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))

    ink = cv2.erode((od[..., 0] > PEN_OD).astype(np.uint8), disc(PEN_REACH_UM))
    ink = _pieces(ink, scale)[1] >= PEN_UM2
    pen = cv2.dilate(ink.astype(np.uint8), disc(PEN_REACH_UM + 6)) > 0
    tissue = cv2.GaussianBlur(od.mean(2), (0, 0), 4 / scale) > TISSUE_OD
    tissue = (cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_CLOSE, disc(5)) > 0) & ~pen

    grey, window = small.mean(2), (2 * round(WINDOW_UM / scale / 2) + 1,) * 2
    laplace = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    inside = tissue.astype(np.float32)
    area = cv2.blur(inside, window) + 1e-6
    mean = cv2.blur(grey * inside, window) / area
    contrast = np.sqrt(np.maximum(cv2.blur(grey * grey * inside, window) / area - mean**2, 1.0))
    sharp = cv2.blur(laplace * inside, window) / area / contrast
    count, areas = _pieces(tissue.astype(np.uint8), scale)
    crumbs = tissue & (areas < PIECE_UM2)
    blurry = tissue & (sharp < SHARPNESS)
    return {
        "tissue": tissue, "pen": pen, "blurry": blurry, "small": crumbs, "use": tissue & ~blurry & ~crumbs,
        "mpp": scale, "pieces": int(((count >= SPECK_UM2) & (count < PIECE_UM2)).sum()),
        "sharpness": float(np.median(sharp[tissue])) if tissue.any() else float("nan"),
    }  # fmt: skip


def _pieces(mask, scale: float):
    """Return the area of each connected piece, um2 (pieces,), and of the piece at each pixel, float32 (y, x)."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float32) * np.float32(scale * scale)
    areas[0] = 0
    return areas[1:], areas[labels]


def measure(image, mpp: float) -> dict:
    """Return the measures of one slide; see :func:`masks` for the arguments.

    Returns
    -------
    dict
        ``blurry_removed_percent`` (share of the tissue, 0 to 1, as HistoQC writes it), ``sharpness``,
        ``small_tissue_removed_num_regions``, ``small_tissue_removed_percent`` (share of the tissue), ``pixels_to_use``
        (pixels of the picture as given), ``tissue_um2``, ``pen_percent`` (share of the picture under ink). A slide
        without tissue is wholly blurry.
    """
    found, shape = masks(image, mpp), np.shape(image)
    tissue = int(found["tissue"].sum())
    full = shape[0] * shape[1] / found["tissue"].size
    return {
        "blurry_removed_percent": float(found["blurry"].sum() / tissue) if tissue else 1.0,
        "sharpness": found["sharpness"],
        "small_tissue_removed_num_regions": found["pieces"],
        "small_tissue_removed_percent": float(found["small"].sum() / tissue) if tissue else 1.0,
        "pixels_to_use": int(round(found["use"].sum() * full)),
        "tissue_um2": float(tissue * found["mpp"] ** 2),
        "pen_percent": float(found["pen"].mean()),
    }


def judge(measures: pd.DataFrame, *, blurry: float = BLURRY, most_regions: float = MOST_REGIONS,
          fewest_pixels: float = FEWEST_PIXELS, most_pen: float | None = None) -> pd.DataFrame:  # fmt: skip
    """Say which slides to keep, by STimage's rules.

    Parameters
    ----------
    measures
        One row a slide, with the columns of :data:`MEASURES`: from :func:`measure` or :func:`read_histoqc`.
    blurry
        A slide with at least this share out of focus goes.
    most_regions, fewest_pixels
        Quantiles over the cohort; slides beyond them go. They take their share of **any** cohort, however good.
    most_pen
        Not among the paper's rules: a slide with more than this share under ink goes; needs ``pen_percent``.

    Returns
    -------
    pandas.DataFrame
        ``keep`` (bool) and ``why`` ("" or reasons, joined by "; "), on the index of ``measures``;
        ``attrs["thresholds"]`` has the limits in the measures' units (NaN where a rule rests: under 20 slides).

    Raises
    ------
    CourseError
        Columns that are missing or not numbers.
    """
    wanted = [*MEASURES, *(["pen_percent"] if most_pen is not None else [])]
    lost = [name for name in wanted if name not in measures]
    values = measures.reindex(columns=wanted).apply(pd.to_numeric, errors="coerce")
    if lost or not np.isfinite(values.to_numpy(float)).all():
        raise CourseError(
            f"no column {lost[0]}" if lost else "measures that are no numbers", ", ".join(wanted),
            "measure all slides, or read HistoQC's results.tsv with read_histoqc", file=measures.attrs.get("file"),
        )  # fmt: skip
    many = len(values) >= MIN_SLIDES
    limits = {
        "blurry_removed_percent": float(blurry),
        "small_tissue_removed_num_regions": float(values[MEASURES[1]].quantile(most_regions)) if many else np.nan,
        "pixels_to_use": float(values[MEASURES[2]].quantile(fewest_pixels)) if many else np.nan,
    }
    rules = {
        "blurry": values[MEASURES[0]] >= limits[MEASURES[0]],
        "many small pieces": values[MEASURES[1]] > limits[MEASURES[1]],  # beside NaN all comparisons are False
        "little tissue": values[MEASURES[2]] < limits[MEASURES[2]],
    }
    if most_pen is not None:
        limits["pen_percent"] = float(most_pen)
        rules["pen"] = values["pen_percent"] > most_pen
    broken = pd.DataFrame(rules, index=measures.index)
    why = ["; ".join(name for name, is_so in zip(broken, row) if is_so) for row in broken.to_numpy()]
    out = pd.DataFrame({"keep": ~broken.any(axis=1), "why": why}, index=measures.index)
    out.attrs["thresholds"] = limits
    return out


def read_histoqc(file) -> pd.DataFrame:
    """Read HistoQC's own ``results.tsv``: lines beginning with ``#``, of which the last names the columns.

    Returns
    -------
    pandas.DataFrame
        One row a slide, indexed by ``filename``, with all columns of the file; those of :data:`MEASURES` as numbers.

    Raises
    ------
    CourseError
        No such table, or a column of :data:`MEASURES` missing.
    """
    file = Path(file)
    try:
        lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise CourseError(f"a file that cannot be read ({error.strerror})", "results.tsv of HistoQC", "check the path",
                          file=file) from None  # fmt: skip
    head = [re.sub(r"^#(dataset:)?", "", line).strip() for line in lines if line.startswith("#")]
    named = [line.split("\t") for line in head if "filename" in line.split("\t")]
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    if not named and rows and "filename" in rows[0]:
        named, rows = [rows[0]], rows[1:]
    lost = [name for name in MEASURES if not named or name not in named[-1]]
    if lost or not rows:
        raise CourseError(
            f"no column {lost[0]}" if lost else "no slides", "results.tsv of HistoQC",
            "run HistoQC with blur and small-tissue steps in its configuration", file=file,
        )  # fmt: skip
    width = len(named[-1])
    table = pd.DataFrame([(row + [""] * width)[:width] for row in rows], columns=named[-1]).set_index("filename")
    table[list(MEASURES)] = table[list(MEASURES)].apply(pd.to_numeric, errors="coerce")
    table.attrs["file"] = str(file)
    return table

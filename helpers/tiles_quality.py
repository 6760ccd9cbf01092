"""Methods: is a tile fit for use, and if not, why not. Tiles are judged as scanned and never repaired."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

MIN_TISSUE = 0.70
"""Smallest share of a tile that must be tissue (STimage's preprocessing)."""
REASONS = ("border", "low_tissue", "white", "black", "pen", "flat", "blurred", "single_stain")
"""Why a tile is dropped, in the order of the tests: the first that applies is given."""
QC_LIMITS = {
    "white": 0.05,  # median optical density (mean over channels) below this is glass
    "black": 60.0,  # share > .5 of pixels whose brightest channel is below this: ink, fold, edge of the scan
    "flat": 2.0,  # standard deviation of grey below this: nothing to see
    "pen": 0.05,  # share of pixels with a colour that no mixture of haematoxylin and eosin has
    "blurred": 0.08,  # detail below 2 um, as a share of all contrast: an in-focus section has 0.1 to 0.4
    "single_stain": 0.03,  # 99th percentile of a stain's concentration, relative to the slide's
}
SHARPEST_MPP = 1.5
"""Sharpness is judged only where a pixel of the slide is narrower than this (microns)."""
_QC_PX = 96


def _pen_share(tiles) -> np.ndarray:
    """Return the share of pixels whose channel differences exceed what haematoxylin and eosin can produce.

    For a stain with optical densities (a, b) per unit concentration in two channels, the largest difference of the
    two over all concentrations c is ``255 (exp(-b c) - exp(-a c))`` at ``c = ln(a/b)/(a-b)``: 85 (B-R) and 30 (G-R) for
    haematoxylin (.77, .56, .30), 75 (R-G) for eosin (.36, .82, .45). The limits stand well above.
    """
    red, green, blue = (tiles[..., c].astype(np.int16) for c in range(3))
    ink = (blue - red > 115) | (green - red > 60) | (red - green > 135)
    return ink.mean((1, 2))


def _sharpness(tile, tile_mpp: float) -> float:
    """Return grey contrast finer than 2 um over all contrast of one tile."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)
    total = grey.std()
    return float((grey - cv2.GaussianBlur(grey, (0, 0), 1.0 / tile_mpp)).std() / total) if total > 0 else 0.0


def measure(tiles, *, tile_mpp: float, slide_mpp: float | None = None, white_point=(255.0, 255.0, 255.0), stains=None):
    """Measure what the quality control judges.

    Parameters
    ----------
    tiles
        uint8 (n, y, x, 3), as cut from the slide, before any normalisation.
    tile_mpp
        Microns per pixel of these tiles (side_um / out_px).
    slide_mpp
        Microns per pixel of the slide they were cut from; default ``tile_mpp``. Above :data:`SHARPEST_MPP` sharpness
        cannot be judged and is NaN.
    white_point
        Glass colour of the slide (R, G, B).
    stains
        Optional (vectors (2, 3) unit rows haematoxylin and eosin, max_concentration (2,)) of the slide.

    Returns
    -------
    pandas.DataFrame
        One row a tile: ``density`` (median mean-channel OD), ``black`` (share), ``pen`` (share), ``grey_sd``,
        ``sharpness`` (see :func:`_sharpness`), ``haematoxylin`` and ``eosin``
        (99th percentile relative to the slide's; NaN without ``stains``).
    """
    tiles = np.asarray(tiles)
    columns = ["density", "black", "pen", "grey_sd", "sharpness", "haematoxylin", "eosin"]
    if len(tiles) == 0:
        return pd.DataFrame(columns=columns, dtype=float)
    small = np.stack([cv2.resize(t, (_QC_PX, _QC_PX), interpolation=cv2.INTER_AREA) for t in tiles])
    white = np.asarray(white_point, np.float32)
    judged = max(tile_mpp, slide_mpp or 0) <= SHARPEST_MPP
    corrected = np.clip(small * (255.0 / white), 0, 255)
    density = -np.log((small + 1.0) / (white + 1.0)).astype(np.float32)
    grey = np.stack([cv2.cvtColor(t, cv2.COLOR_RGB2GRAY) for t in small])
    table = pd.DataFrame(
        {
            "density": np.median(density.mean(3), axis=(1, 2)),
            "black": (corrected.max(3) < QC_LIMITS["black"]).mean((1, 2)),
            "pen": _pen_share(corrected),
            "grey_sd": grey.std((1, 2)),
            "sharpness": [_sharpness(t, tile_mpp) if judged else np.nan for t in tiles],
        }
    )
    amount = np.full((len(tiles), 2), np.nan)
    if stains is not None:
        vectors, strongest = (np.asarray(part, float) for part in stains)
        concentration = density.reshape(len(tiles), -1, 3) @ np.linalg.pinv(vectors)  # (n, pixels, 2)
        amount = np.quantile(concentration, 0.99, axis=1) / strongest
    return table.assign(haematoxylin=amount[:, 0], eosin=amount[:, 1])[columns]


def judge(table, *, coverage=None, min_tissue: float = MIN_TISSUE):
    """Give each tile the first reason in :data:`REASONS` that applies, or ``"ok"``.

    Parameters
    ----------
    table
        From :func:`measure`.
    coverage
        Share of each tile that is tissue, float (n,), or None to skip that test.

    Returns
    -------
    pandas.Categorical of length n
    """
    limit = QC_LIMITS
    tests = {
        "low_tissue": np.zeros(len(table), bool) if coverage is None else np.asarray(coverage) < min_tissue,
        "white": table["density"] < limit["white"],
        "black": table["black"] > 0.5,
        "pen": table["pen"] > limit["pen"],
        "flat": table["grey_sd"] < limit["flat"],
        "blurred": table["sharpness"] < limit["blurred"],
        "single_stain": (table["haematoxylin"] < limit["single_stain"]) | (table["eosin"] < limit["single_stain"]),
    }
    reason = np.full(len(table), "ok", object)
    for name in reversed([r for r in REASONS if r in tests]):
        reason[np.asarray(tests[name], bool)] = name
    return pd.Categorical(reason, categories=["ok", *REASONS])


def spoil(tile, *, white_point, vectors, tile_mpp: float, slide_mpp: float | None = None):
    """Damage a good tile in the ways the quality control must recognise: six, or five where blur cannot be judged.

    Parameters
    ----------
    tile
        uint8 (y, x, 3) with tissue.
    white_point, vectors
        Glass colour (3,) and stain directions (2, 3) of its slide.
    tile_mpp, slide_mpp
        As for :func:`measure`.

    Returns
    -------
    damaged : uint8 array (k, y, x, 3)
    names : list of str
        The reason each must be given.
    """
    white = np.asarray(white_point, np.float32)
    density = np.clip(-np.log((tile + 1.0) / (white + 1.0)), 0, None)
    eosin = (density @ np.linalg.pinv(np.asarray(vectors)))[..., 1:].clip(0, 1.5) + 0.3
    pen = tile.copy()
    pen[: len(tile) // 4] = (25, 60, 190)
    damaged = {
        "white": np.broadcast_to(white, tile.shape),
        "black": tile // 12,
        "flat": np.broadcast_to(np.median(tile, axis=(0, 1)).mean(), tile.shape),
        "pen": pen,
        "blurred": cv2.GaussianBlur(tile, (0, 0), 8.0 / tile_mpp),
        "single_stain": white * np.exp(-eosin * np.asarray(vectors)[1]),
    }
    if max(tile_mpp, slide_mpp or 0) > SHARPEST_MPP:
        del damaged["blurred"]
    return np.stack([np.rint(picture).astype(np.uint8) for picture in damaged.values()]), list(damaged)

"""Methods: where the tissue is on a slide, and how much of each tile it covers."""

from __future__ import annotations

import cv2
import numpy as np

from helpers.messages import CourseError

WORKING_MPP = 6.0
"""Pixel size (um) at which the mask is computed: finer than any structure that matters, coarse enough to be quick."""
GREY_RATIO = 0.18
"""Below this ratio of coloured to mean optical density a pixel is neutral: dust, pen, a frame. H&E has 0.25 or more."""
TEXTURE = 0.015
"""Least texture of a piece: median absolute deviation of the optical density from its 30 um surroundings. On sixteen
real slides tissue has 0.04 or more, blurred frames and stained glass 0.008 or less."""
THRESHOLD_RANGE = (0.06, 0.2)
"""Lowest and highest threshold on the mean optical density. Eosin that bled into the glass reaches about 0.08."""
DETAIL_UM, DETAIL = 30.0, 0.02
"""Dark detail narrower than twice this radius and this much denser than its surroundings is tissue even where the mean
density is low: walls of fat cells, loose fibres. Glass and bled eosin have no such detail."""
CRUMB_UM2 = 600.0
"""Dust: smaller pieces are dropped before gaps are closed, lest they join up."""


def _glass_guess(rgb):
    """Return the median colour (3,) of the bright flat pixels; white when there are none."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    box = np.ones((5, 5), np.uint8)
    flat = (cv2.dilate(grey, box) - cv2.erode(grey, box)) <= 8
    bright = flat & (grey > 0.8 * np.quantile(grey, 0.995)) & (grey > 20)
    if bright.mean() < 0.005:
        return np.full(3, 255.0)
    return np.median(rgb[bright], axis=0)


def _coloured(density):
    """Return where optical densities (y, x, 3) are not neutral; bool (y, x)."""
    mean = density.mean(axis=2)
    return np.sqrt(((density - mean[..., None]) ** 2).sum(axis=2)) > GREY_RATIO * mean


def _disc(radius_px):
    """Return a round structuring element of at least one pixel's radius."""
    radius = max(1, round(radius_px))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _keep_by_area(found, smallest_px, texture=None):
    """Return bool ``found`` without its 8-connected pieces that are small or, by ``texture`` (y, x), smooth."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest_px
    keep[0] = False
    for piece in np.flatnonzero(keep) if texture is not None else ():
        x, y, width, height = stats[piece, :4]
        box = np.s_[y : y + height, x : x + width]
        keep[piece] = np.median(texture[box][labels[box] == piece]) >= TEXTURE
    return keep[labels]


def mask(rgb, *, mpp, white_point=None, hole_um2=100_000.0, speck_um2=5_000.0, gap_um=60.0):
    """Return where the tissue is.

    Tissue absorbs (mean optical density above half of Otsu's threshold, held within fixed bounds) or holds fine dark
    detail (a morphological top-hat). It is coloured and textured: out-of-focus dust, slide frames and black pen, which
    are neutral, and the smooth eosin veil that surrounds many sections are left out. Fat, clefts and lumina narrower
    than the limits below count as tissue: the mask follows the section's outline.

    Parameters
    ----------
    rgb
        uint8 image (y, x, 3), usually a thumbnail.
    mpp
        Microns per pixel of ``rgb``.
    white_point
        RGB of the glass (3,), see ``stain.white_point``; guessed from bright flat pixels when missing.
    hole_um2, speck_um2
        Holes smaller and pieces smaller than this area (um2) are filled and removed.
    gap_um
        Gaps narrower than this (um) are closed; fat cells are about 50 um wide.

    Returns
    -------
    bool array (y, x), True on tissue; all False on a blank image.

    Raises
    ------
    CourseError
        If ``rgb`` is not uint8 (y, x, 3) or ``mpp`` is not positive.

    References
    ----------
    Otsu 1979 for the threshold.
    """
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise CourseError(f"an image {rgb.shape} of {rgb.dtype}", "uint8 RGB (y, x, 3)", "convert it with section.rgb8")
    if not (np.isfinite(mpp) and mpp > 0):
        raise CourseError(f"a pixel size of {mpp} um", "a positive number", "state the microns per pixel of this image")
    shrink = min(1.0, mpp / WORKING_MPP)
    rows, columns = rgb.shape[:2]
    size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
    small = np.ascontiguousarray(rgb if shrink == 1 else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    pixel_um = mpp / shrink
    found = _mask_small(small, pixel_um, white_point, hole_um2, speck_um2, gap_um)
    if shrink == 1:
        return found
    return cv2.resize(found.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST).astype(bool)


def _mask_small(rgb, pixel_um, white_point, hole_um2, speck_um2, gap_um):
    """:func:`mask` at the working resolution; bool (y, x)."""
    glass = _glass_guess(rgb) if white_point is None else np.asarray(white_point, float)
    density = -np.log((rgb.astype(np.float32) + 1) / (glass + 1).astype(np.float32))
    sharp = density.mean(axis=2)
    texture = np.abs(sharp - cv2.GaussianBlur(sharp, (0, 0), max(3.0, 30.0 / pixel_um)))
    density = np.clip(cv2.GaussianBlur(density, (0, 0), max(0.5, 3.0 / pixel_um)), 0, None)
    mean = density.mean(axis=2)
    coloured = _coloured(density) | (mean < THRESHOLD_RANGE[0])  # too pale to tell: the detail will
    bytes8 = np.clip(np.where(coloured, mean, 0) * 200, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(bytes8, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    dense = (mean > np.clip(0.5 * level / 200, *THRESHOLD_RANGE)) & coloured
    detail = cv2.morphologyEx(density, cv2.MORPH_TOPHAT, _disc(DETAIL_UM / pixel_um))
    tint = cv2.GaussianBlur(detail, (0, 0), max(1.0, 15.0 / pixel_um))
    fine = (detail.mean(axis=2) > DETAIL) & coloured & _coloured(tint)
    found = _keep_by_area(dense | fine, CRUMB_UM2 / pixel_um**2).astype(np.uint8)
    rim = round(gap_um / pixel_um) + 1  # tissue cut by the image's edge goes on beyond it
    padded = cv2.copyMakeBorder(found, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(gap_um / pixel_um / 2))[rim:-rim, rim:-rim]
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, _disc(6.0 / pixel_um)).astype(bool)
    pieces = _keep_by_area(closed, speck_um2 / pixel_um**2, texture)
    return ~_keep_by_area(~pieces, hole_um2 / pixel_um**2)


def coverage(mask, mask_scale, xy_px, side_px):
    """Return the share of each square tile that is tissue.

    Exact for the mask's pixels, fractions of a pixel included: four look-ups in an integral image per tile.

    Parameters
    ----------
    mask
        bool (y, x).
    mask_scale
        Pixels of the mask per full-resolution pixel (what ``section.thumbnail`` returns).
    xy_px
        (n, 2): **x, y** of the tile centres in full-resolution pixels.
    side_px
        Side of the tile in full-resolution pixels.

    Returns
    -------
    float32 (n,), 0 to 1; the part of a tile outside the image is not counted, a tile wholly outside gives 0.
    """
    from scipy.ndimage import map_coordinates

    table = cv2.integral(np.asarray(mask).astype(np.uint8)).astype(np.float64)
    rows, columns = np.asarray(mask).shape
    centre = np.asarray(xy_px, float).reshape(-1, 2) * mask_scale
    half = side_px * mask_scale / 2
    x0, x1 = (np.clip(centre[:, 0] + step, 0, columns) for step in (-half, half))
    y0, y1 = (np.clip(centre[:, 1] + step, 0, rows) for step in (-half, half))

    def total(y, x):
        return map_coordinates(table, [y, x], order=1)

    inside = total(y1, x1) - total(y0, x1) - total(y1, x0) + total(y0, x0)
    area = (x1 - x0) * (y1 - y0)
    return np.divide(inside, area, out=np.zeros(len(centre)), where=area > 1e-9).clip(0, 1).astype(np.float32)

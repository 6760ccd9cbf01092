"""Methods, stain: the optics - glass, cast, optical density, concentrations (``stain`` is the room's front door).

Optical density is natural: ``od = -ln((rgb + 1) / (white + 1))``, at least 0. A stain vector is a unit row (R, G, B) of
optical density; haematoxylin (H) is row 0, eosin (E) row 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from helpers.messages import CourseError, note

TISSUE_OD = 0.12
"""Pixels with a smaller mean optical density are glass, whatever the mask says."""
CONCENTRATION_LAMBDA = 0.01
"""Sparsity (L1) of the concentrations, as StainTools has it."""
# RGB -> LMS -> l-alpha-beta of Ruderman, Cronin and Chiao 1998, as Reinhard et al. 2001 use it (their equations 4 to 6)
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])


def white_point(rgb, *, tissue=None, details=False, file=None):
    """Estimate the colour of empty glass.

    Glass is what lies off the tissue, bright and flat. Because eosin bleeds into the glass beside the tissue, only the
    half of it that is farthest from tissue counts; dust is left out, and so is pure white painted round a scan. Without
    enough glass (less than 0.5 % of the image) the brightest 1 % of the pixels stands in, a rough guess; a note then
    goes to stderr.

    Parameters
    ----------
    rgb
        uint8 (y, x, 3), usually a thumbnail.
    tissue
        bool (y, x), True on tissue, if known.
    details
        Also return how the value was found.
    file
        Named in the error.

    Returns
    -------
    float64 (3,), or with ``details`` that and ``{"source": "glass" | "brightest", "glass_fraction": float}``

    Raises
    ------
    CourseError
        Black image (nothing brighter than 60), wrong type or mask shape.
    """
    rgb = rgb8(rgb)
    if rgb.ndim != 3 or (tissue is not None and np.shape(tissue) != rgb.shape[:2]):
        shapes = f"an image {rgb.shape} and a mask {np.shape(tissue)}"
        raise CourseError(shapes, "(y, x, 3) and (y, x)", "make the mask from this thumbnail", file=file)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    top = float(np.quantile(grey, 0.995))
    if top < 60:
        seen = f"an image no brighter than {top:.0f}"
        raise CourseError(seen, "glass or pale tissue", "check the image is H&E, or leave it out", file=file)
    box = np.ones((5, 5), np.uint8)
    glass = (cv2.dilate(grey, box) - cv2.erode(grey, box) <= 8) & (grey > 0.75 * top)
    glass &= ~_padding(rgb, glass)
    if tissue is not None and np.any(tissue):
        off = (~np.asarray(tissue, bool)).astype(np.uint8)
        distance = cv2.distanceTransform(off, cv2.DIST_L2, 5)
        glass &= off.astype(bool)
        if glass.any():
            glass &= distance >= np.median(distance[glass])
    fraction = float(glass.mean())
    if fraction >= 0.005:
        pixels = rgb[glass]
        bright = pixels.mean(axis=1)
        spread = max(1.0, 1.4826 * np.median(np.abs(bright - np.median(bright))))
        found = np.median(pixels[np.abs(bright - np.median(bright)) <= 3 * spread], axis=0)
    else:
        note(f"white point: only {fraction:.2%} of the image is glass; the brightest 1 % of the pixels stands in")
        found = rgb[grey >= np.quantile(grey, 0.99)].mean(axis=0)
    found = np.asarray(found, np.float64)
    if not details:
        return found
    return found, {"source": "glass" if fraction >= 0.005 else "brightest", "glass_fraction": fraction}


def _padding(rgb, glass):
    """Return the pure white (y, x) that was painted round a scan: much of it, and a gap between it and tinted glass."""
    pure = glass & (rgb.min(axis=2) == 255)
    if pure.sum() < 0.2 * glass.sum():
        return np.zeros_like(pure)
    rest = rgb[glass & ~pure].mean(axis=1)  # of overexposed glass, in contrast, some is just below 255
    painted = len(rest) > 0.05 * glass.size and np.median(rest) < 250 and (rest > 251).mean() < 0.02
    painted = painted and 1.4826 * np.median(np.abs(rest - np.median(rest))) <= 4
    return pure if painted else np.zeros_like(pure)


def remove_cast(rgb, white_point):
    """Return ``rgb`` with each channel times 255 / white point (uint8, same shape): glass becomes white."""
    scale = 255.0 / np.asarray(white_point, float)
    table = np.clip(np.rint(np.arange(256)[:, None] * scale), 0, 255).astype(np.uint8)
    rgb = rgb8(rgb)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def angle_deg(a, b) -> float:
    """Return the angle between two vectors in degrees."""
    cosine = np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def rgb8(rgb):
    """Return ``rgb`` as an array if it is uint8 (..., 3); else raise ``CourseError``."""
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,) or rgb.size == 0:
        raise CourseError(f"pixels {rgb.shape} of {rgb.dtype}", "uint8 RGB, (..., 3)", "convert them with section.rgb8")
    return rgb


def optical_density(rgb, white_point):
    """Return the optical density (float32, same shape, >= 0): -ln((rgb + 1) / (white + 1))."""
    white = np.asarray(white_point, float)
    table = np.clip(-np.log((np.arange(256)[:, None] + 1) / (white + 1)), 0, None).astype(np.float32)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def concentrations(od, vectors, *, penalty=CONCENTRATION_LAMBDA):
    """Return the non-negative sparse concentrations of two stains, in closed form.

    Minimises ``|od - c V|^2 / 2 + penalty * sum(c)`` over ``c >= 0``; with two unit vectors the solution is the
    unconstrained one, or one stain alone, or none.

    Parameters
    ----------
    od
        (n, 3) optical densities.
    vectors
        (2, 3) unit rows.

    Returns
    -------
    (n, 2), of ``od``'s type
    """
    vectors = np.asarray(vectors, od.dtype)
    share = vectors[0] @ vectors[1]
    alone = od @ vectors.T - od.dtype.type(penalty)
    both = (alone - share * alone[:, ::-1]) / (1 - share * share)
    return np.where(both[:, ::-1] < 0, np.maximum(alone, 0), np.maximum(both, 0))


def to_lab(rgb):
    """Return the Ruderman l-alpha-beta values (n, 3) of float RGB (n, 3)."""
    return np.log(rgb @ _LMS.T + 1) @ _LAB.T


def from_lab(lab):
    """Return float RGB (n, 3), not clipped: the inverse of :func:`to_lab`."""
    return (np.exp(lab @ np.linalg.inv(_LAB).T) - 1) @ np.linalg.inv(_LMS).T

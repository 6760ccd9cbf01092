"""Methods: the colour of a slide - white point, stain vectors, normalisation fitted once per slide, applied anywhere.

This is the room's front door: it fits; ``stain_optics`` holds glass, cast and density, ``stain_apply`` recolours.
The usual order: ``white_point`` on the thumbnail, ``tissue.mask``, ``white_point`` again with the mask, ``sample`` from
the full-resolution slide, ``fit``; then ``transform(fit, target_fit)`` gives the function to call on every tile.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from helpers.messages import CourseError, note
from helpers.settings import rng
from helpers.stain_apply import Normaliser, sample, stream, transform
from helpers.stain_optics import (
    TISSUE_OD,
    angle_deg,
    concentrations,
    optical_density,
    remove_cast,
    rgb8,
    to_lab,
    white_point,
)

__all__ = [
    "METHODS", "Normaliser", "StainFit", "angle_deg", "concentrations", "fit", "optical_density", "remove_cast",
    "sample", "stream", "transform", "white_point",
]  # fmt: skip

METHODS = ("vahadane", "macenko", "reinhard")
EXPECTED = np.array([[0.75, 0.58, 0.31], [0.38, 0.80, 0.46]])
"""Rough H and E of real slides (from 19 measured ones); a fit further off than ``MAX_FROM_EXPECTED_DEG`` is not H&E."""
MAX_FROM_EXPECTED_DEG = 35.0
MIN_SEPARATION_DEG = 10.0
"""H and E closer than this (by Macenko's angles) cannot be told apart: concentrations would be noise. Real: 16-43."""
MIN_SPREAD, MIN_OVER_NOISE = 0.042, 1.2
"""Least spread across the main direction of optical density, relative to that along it and to the third direction's.
Seventeen real slides have 0.051 and 1.5 or more; one stain with camera noise and JPEG at most 0.04, pure noise 1.05."""
MIN_PIXELS = 500
FIT_OD = 0.2
"""Only pixels of at least this mean optical density show a stain's direction; paler ones are mostly noise."""
EXTREME_PERCENT = 0.5
"""Macenko's directions: this percentile of the angles and its mirror image. The paper: 1; smooth pixels need less."""
SPARSITY = 0.003
"""L1 penalty of Vahadane's dictionary. StainTools has 0.1, which draws the two stains towards each other: eosin comes
out 3-10 degrees off on the virtual tissue. With smoothed pixels this value stays within 2.5."""


@dataclass(frozen=True)
class StainFit:
    """What one slide's stain looks like.

    Attributes
    ----------
    method
        One of ``METHODS``.
    white_point
        RGB of the glass, float64 (3,).
    vectors
        float64 (2, 3): unit rows H and E (for ``"reinhard"`` those of Macenko, for information).
    max_concentration
        float64 (2,): 99th percentile of the concentrations on tissue.
    lab_mean, lab_sd
        float64 (3,): Ruderman l-alpha-beta statistics of the tissue after the cast is removed (Reinhard).
    n_pixels
        Tissue pixels used.
    """

    method: str
    white_point: np.ndarray
    vectors: np.ndarray
    max_concentration: np.ndarray
    lab_mean: np.ndarray
    lab_sd: np.ndarray
    n_pixels: int

    @property
    def separation_deg(self) -> float:
        """Angle between H and E in degrees; where Macenko finds less than about 15, concentrations are shaky."""
        return angle_deg(*self.vectors)

    @property
    def looks_bgr(self) -> bool:
        """Whether the vectors fit H&E far better (by 15 degrees in sum) with red and blue exchanged."""
        as_is, exchanged = (
            sum(map(angle_deg, vectors, EXPECTED)) for vectors in (self.vectors, _order(self.vectors[:, ::-1]))
        )
        return exchanged + 15 < as_is

    def to_json(self) -> str:
        """Return the fit as a JSON string."""
        return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> StainFit:
        """Return the fit that :meth:`to_json` wrote."""
        return cls(**{k: np.asarray(v, float) if isinstance(v, list) else v for k, v in json.loads(text).items()})


def _order(vectors):
    """Return unit rows with H first: the row with the larger share of red (R / (R + G + B))."""
    vectors = np.abs(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[np.argsort(-vectors[:, 0] / vectors.sum(axis=1))]


def _macenko(od):
    """Stain vectors (2, 3) of Macenko et al. 2009: the extreme angles in the plane of the two main directions."""
    _, directions = np.linalg.eigh(od.T @ od)
    plane = directions[:, [2, 1]] * np.where(directions[:, [2, 1]].sum(axis=0) < 0, -1, 1)
    projected = od @ plane
    angles = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), [EXTREME_PERCENT, 100 - EXTREME_PERCENT])
    return _order((plane @ np.array([np.cos(angles), np.sin(angles)])).T.clip(1e-6))


def _vahadane(od, start, sparsity, *, rounds=300, tolerance=1e-5):
    """Stain vectors (2, 3) of Vahadane et al. 2016: sparse non-negative factorisation of the optical densities.

    Alternates exact concentrations with the dictionary update of Mairal et al. 2010 (algorithm 2). Densities are first
    gathered into bins of 0.04 (means and counts), since a slide has few distinct colours: hundreds of times fewer rows.
    """
    code = np.minimum((od * 25).astype(np.int64), 255) @ np.array([1, 256, 65536])
    _, where = np.unique(code, return_inverse=True)
    weight = np.bincount(where).astype(float)
    rows = np.stack([np.bincount(where, od[:, channel]) for channel in range(3)], axis=1) / weight[:, None]
    vectors = start.copy()
    for _ in range(rounds):
        amount = concentrations(rows, vectors, penalty=sparsity)
        gram, cross = (amount * weight[:, None]).T @ amount, (amount * weight[:, None]).T @ rows
        before = vectors.copy()
        for stain in (0, 1):
            if gram[stain, stain] > 0:
                moved = vectors[stain] + (cross[stain] - gram[stain] @ vectors) / gram[stain, stain]
                vectors[stain] = moved.clip(0) / max(np.linalg.norm(moved.clip(0)), 1e-9)
        if np.abs(vectors - before).max() < tolerance:
            break
    return _order(vectors)


def _check_pixels(od, file):
    """Refuse tissue pixels (n, 3) that no two stains could explain; the reason names what they look like."""
    middle = np.median(od, axis=0) if len(od) else np.zeros(3)
    if len(od) < MIN_PIXELS:
        found = f"{len(od)} stained pixels"
    elif middle.mean() > 2.5:
        found = "pixels that are nearly black"
    elif middle.max() < 1.12 * middle.min():
        found = "grey pixels without a colour"
    else:
        spread = np.sqrt(np.clip(np.linalg.eigvalsh(od.T @ od / len(od)), 0, None))[::-1]
        if spread[1] > max(MIN_SPREAD * spread[0], MIN_OVER_NOISE * spread[2]):
            return
        found = "pixels of one stain only (spread {:.2f} along it, {:.3f} and {:.3f} across)".format(*spread)
    fix = "check the tissue mask and the white point, or skip this image"
    raise CourseError(found, f"at least {MIN_PIXELS} pixels of two stains", fix, file=file)


def fit(
    rgb,
    *,
    method="vahadane",
    white_point,
    tissue=None,
    seed=0,
    sparsity=SPARSITY,
    blur_px=1.0,
    max_pixels=100_000,
    file=None,
):
    """Fit the stain of one slide: once, from a sample of its tissue.

    Parameters
    ----------
    rgb
        uint8: an image (y, x, 3), or pixels (n, 3) as :func:`sample` returns. Full resolution separates stains best.
    method
        ``"vahadane"``, ``"macenko"`` or ``"reinhard"``.
    white_point
        RGB of the glass.
    tissue
        bool (y, x) or (n,); pixels paler than ``TISSUE_OD`` are left out in any case.
    seed
        For the choice of pixels where there are more than ``max_pixels``.
    sparsity
        Vahadane's penalty, see ``SPARSITY``.
    blur_px
        Gaussian sigma applied to an image beforehand (about 0.7 um of tissue is good; 0 for none); ignored for pixels,
        which :func:`sample` smooths.
    file
        Named in the error.

    Raises
    ------
    CourseError
        Too few stained pixels; black, grey or single-stain pixels; stains less than ``MIN_SEPARATION_DEG`` apart or far
        from any H&E. Nothing is ever fitted to such input.
    """
    if method not in METHODS:
        raise CourseError(f"stain method {method!r}", f"one of {', '.join(METHODS)}", "correct METHOD")
    rgb = rgb8(rgb)
    if rgb.ndim == 3 and blur_px > 0:
        rgb = cv2.GaussianBlur(rgb, (0, 0), blur_px)
    pixels = rgb[np.asarray(tissue, bool)] if tissue is not None else rgb.reshape(-1, 3)
    if len(pixels) > max_pixels:
        pixels = pixels[rng(seed, "stain", "pixels").integers(0, len(pixels), max_pixels)]
    od = optical_density(pixels, white_point)
    stained = od.mean(axis=1) > TISSUE_OD
    od, pixels = od[stained].astype(np.float64), pixels[stained]
    strong = od.mean(axis=1) > FIT_OD
    _check_pixels(od[strong], file)
    extremes = _macenko(od[strong])
    vectors = _vahadane(od[strong], extremes, sparsity) if method == "vahadane" else extremes
    far = [angle_deg(vector, expected) for vector, expected in zip(vectors, EXPECTED)]
    apart = angle_deg(*extremes)
    if apart < MIN_SEPARATION_DEG or max(far) > MAX_FROM_EXPECTED_DEG:
        raise CourseError(
            f"stain vectors {apart:.0f} degrees apart, H {far[0]:.0f} and E {far[1]:.0f} degrees from those of H&E",
            f"at least {MIN_SEPARATION_DEG:.0f} apart and within {MAX_FROM_EXPECTED_DEG:.0f}",
            "check that the image is RGB H&E, and the white point",
            file=file,
        )
    few = pixels[:: 1 + len(pixels) // 30_000]  # plenty for a mean and a spread
    lab = to_lab(remove_cast(few, white_point).astype(float))
    maximum = np.percentile(concentrations(od, vectors), 99, axis=0)
    found = StainFit(
        method, np.asarray(white_point, float), vectors, maximum, lab.mean(axis=0), lab.std(axis=0), len(od)
    )
    if found.looks_bgr:
        note("warning: the stain vectors look like H&E with red and blue exchanged; is the image BGR?")
    return found

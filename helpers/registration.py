"""Methods: where a Xenium's DAPI picture lies on the H&E of the same section (door of the room ``registration``).

Both pictures are brought to nuclei on black; SIFT keypoints and RANSAC give an affine (STimage's way), of the picture
as it is and of its mirror image; blocks of tissue are then found again at a finer scale, which corrects the affine and
gives a smooth warp where one is needed. Every coordinate is x, y from the top-left corner of the top-left pixel; um of
the DAPI picture are the um in which Xenium reports cells and transcripts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from helpers import registration_images as images
from helpers import registration_local as local
from helpers import registration_points as points
from helpers.messages import CourseError, note
from helpers.registration_alignment import Alignment, load
from helpers.registration_local import Warp
from helpers.section_align import matrix3
from helpers.section_cells import dapi as section_dapi
from helpers.section_cells import dapi_levels
from helpers.section_views import level0

__all__ = ["Alignment", "Warp", "load", "register", "register_section"]

WORK_UM, FINE_UM = 2.0, 1.0
LARGEST_WORK_PX, LARGEST_FINE_PX = 3000, 6000
"""Larger sections are registered at coarser scales, so that memory does not grow with them."""
MIN_INLIERS = 20
MIN_OVER_OTHER = 3.0
"""Inliers needed, and how many times those of the other mirror state. Unrelated pictures reach 11 and 1.4 (design
notes, section B: 13 failing and about 50 good pairs, on which the gate was also chosen)."""
MAX_ANISOTROPY = 1.1
MAX_SCALE_ERROR = 0.10
FEW_INLIERS = 0.5
MIN_AGREEMENT = 0.15
"""Share of blocks that must be found again where the affine puts them."""
COARSE = {"patch_um": 120.0, "search_um": 24.0, "spacing_um": 40.0}
FINE = {"patch_um": 56.0, "search_um": 8.0, "spacing_um": 28.0}
TWICE_BELOW = 0.8
"""Below this agreement the coarse blocks are sought a second time, with the first warp undone."""


def register(
    dapi, he, *, dapi_um: float, he_um: float, start=None, source: str = "given", refine: bool = True, warp: bool = True
) -> Alignment:
    """Find where the DAPI picture lies on the H&E.

    Parameters
    ----------
    dapi
        (y, x), any number type, nuclei bright; an array, or anything whose rows can be sliced (dask, zarr).
    he
        uint8 RGB (y, x, 3), likewise; or (y, x), if nuclei are bright in it already.
    dapi_um, he_um
        Microns per pixel.
    start, source
        A transform to start from instead of keypoints, float (3, 3) or (2, 3), um of DAPI to pixels of the H&E, such as
        ``section_align.read_alignment`` gives for a 10x ``*_imagealignment.csv``; and where it comes from, in words.
    refine
        Find blocks again at a finer scale, to correct the affine and measure the error; without it the affine is
        RANSAC's.
    warp
        Fit a smooth warp where it predicts left-out blocks better than the affine.

    Returns
    -------
    Alignment

    Raises
    ------
    CourseError
        A blank picture; too few keypoints in agreement; an affine that stretches, or whose scale contradicts the pixel
        sizes; blocks that are not found again where it puts them.

    Notes
    -----
    Memory holds both pictures at 1 um a pixel, at most ``LARGEST_FINE_PX`` wide, whatever their full size.
    """
    for name, um in (("dapi_um", dapi_um), ("he_um", he_um)):
        if not (np.isfinite(um) and um > 0):
            raise CourseError(f"{name} = {um}", "microns per pixel", "read it from the picture's metadata")
    sides = [max(p.shape[:2]) * um for p, um in ((dapi, dapi_um), (he, he_um))]
    levels = [max(best, max(sides) / most) for best, most in ((WORK_UM, LARGEST_WORK_PX), (FINE_UM, LARGEST_FINE_PX))]
    pair = [
        images.nuclei_bright(picture, um, levels[refine], name=name)
        for picture, um, name in ((dapi, dapi_um, "a DAPI picture"), (he, he_um, "an H&E picture"))
    ]
    small = [_coarser(grey, um_xy, levels[0]) for grey, um_xy in pair]
    if start is not None:
        matrix = matrix3(start)[:2] * he_um
        found = Alignment(matrix, float(dapi_um), float(he_um), str(source))
        _plausible(found)
    else:
        found = _by_keypoints(small, dapi_um, he_um)
    if refine:
        found = _by_blocks(found, small, COARSE, warp=warp)
        if found.agreement < TWICE_BELOW:
            found = _by_blocks(found, small, COARSE, warp=warp)
        found = _by_blocks(found, pair, FINE, warp=warp)
    for warning in found.warnings:
        note(f"registration: {warning}")
    return found


def register_section(section, **options) -> Alignment:
    """Register the DAPI picture and the H&E of a raw section (``section_cells.build_cells``); see :func:`register`.

    Raises
    ------
    CourseError
        As :func:`register`, and without an H&E, its pixel size, or DAPI.
    """
    where = section.attrs.get("source")
    if "he" not in section.images or not section.attrs.get("mpp"):
        fix = "copy it there, or state its pixel size"
        raise CourseError("no H&E with a pixel size", "one beside outs/", fix, file=where)
    dapi, dapi_um = section_dapi(section, FINE_UM)
    he = level0(section).data.transpose(1, 2, 0)
    found = register(dapi, he, dapi_um=dapi_um, he_um=section.attrs["mpp"], **options)
    # a level of the pyramid has whole pixels only, so they are not quite square: back to the instrument's um
    full = np.array(dapi_levels(section)[0].shape[-2:][::-1]) * section.attrs["dapi_um_px"]
    square = full / (np.array(dapi.shape[::-1]) * dapi_um)
    matrix, landmarks = found.matrix_um.copy(), found.landmarks.copy()
    matrix[:, :2] /= square
    landmarks[:, :2] *= square
    return replace(found, matrix_um=matrix, landmarks=landmarks)


def _coarser(grey, um_xy, target):
    small, _ = images.reduce(grey, 1.0, target / float(um_xy.mean()))
    return small, um_xy * np.array(grey.shape[::-1]) / np.array(small.shape[::-1])


def _own(found):
    return "" if found.source == "sift" else f"check that {found.source} is of this very H&E"


def _plausible(found):
    if found.anisotropy > MAX_ANISOTROPY or abs(found.scale - 1) > MAX_SCALE_ERROR:
        raise CourseError(
            f"a scale of {found.scale:.3g} between the pictures in um, stretched by {found.anisotropy:.3g}",
            f"1 within {MAX_SCALE_ERROR:g}, stretched by at most {MAX_ANISOTROPY:g}",
            "check the pixel sizes" + (_own(found) and f", and {_own(found)}"),
        )


def _by_keypoints(pair, dapi_um, he_um):
    pictures = [images.contrast(grey, float(um_xy.mean())) for grey, um_xy in pair]
    best, other = points.match(*pictures, *(um_xy for _, um_xy in pair))
    if best.inliers < max(MIN_INLIERS, MIN_OVER_OTHER * other.inliers):
        raise CourseError(
            f"{best.inliers} keypoints that agree, of {best.matched} ({other.inliers} in the mirror image)",
            f"at least {MIN_INLIERS}, and {MIN_OVER_OTHER:g} times those of the mirror image",
            "check that both pictures show this section, and their pixel sizes",
        )
    share = best.inliers / best.matched
    few = f"only {share:.0%} of the matches agree: much is lost, or the tissue is distorted; look at the overlay"
    found = Alignment(
        best.matrix, float(dapi_um), float(he_um), "sift", inliers=best.inliers, matched=best.matched,
        other_inliers=other.inliers, landmarks=np.hstack([best.moving, best.fixed]),
        warnings=(few,) if share < FEW_INLIERS else (),
    )  # fmt: skip
    _plausible(found)
    off = np.hypot(*(found.to_he(best.moving) - best.fixed).T)
    numbers = {"residual_um": float(np.median(off)), "residual_p95_um": float(np.percentile(off, 95))}
    return replace(found, **numbers, affine_residual_um=numbers["residual_um"])


def _by_blocks(found, pair, options, *, warp):
    (moving, um_moving), (fixed, um_fixed) = pair
    there, here, _, tried = local.blocks(moving, fixed, um_moving, um_fixed, found.to_dapi, **options)
    share = len(there) / max(tried, 1)
    if len(there) < 8 or share < MIN_AGREEMENT:
        raise CourseError(
            f"{len(there)} of {tried} blocks of tissue found again",
            f"{MIN_AGREEMENT:.0%} or more, and 8",
            _own(found) or "check the two pictures",
        )
    extent = np.array(fixed.shape[::-1]) * um_fixed
    matrix, warped, off, kept = local.fit(there, here, extent, warp=warp)
    there, here, off = there[kept], here[kept], off[kept]
    plain = np.hypot(*(there @ matrix[:, :2].T + matrix[:, 2] - here).T)
    return replace(
        found, matrix_um=matrix, warp=warped, landmarks=np.hstack([there, here]), agreement=share,
        residual_um=float(np.median(off)), residual_p95_um=float(np.percentile(off, 95)),
        affine_residual_um=float(np.median(plain)),
    )  # fmt: skip

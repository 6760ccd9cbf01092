"""Methods, registration: pictures made comparable - reduced band by band, nuclei bright, contrast evened out."""

from __future__ import annotations

import cv2
import numpy as np

from helpers.messages import CourseError

HAEMATOXYLIN, EOSIN = (0.70, 0.63, 0.30), (0.35, 0.82, 0.45)
"""Rough optical densities (R, G, B) of the two stains: good enough to tell nuclei from the rest (``stain`` fits them
slide by slide)."""
BAND_PX = 2048
BLUR_UM = 2.0
"""Smoothing before keypoints, at least a pixel: a nucleus' radius, so that chromatin and camera noise make none."""
STRETCH = (1.0, 99.7)
CLAHE_CLIP, CLAHE_TILES = 3.0, 8


def reduce(picture, um: float, target_um: float):
    """Return a picture of about ``target_um`` microns a pixel; it is read in bands, so it may lie on disk.

    Parameters
    ----------
    picture
        (y, x) or (y, x, 3), anything that gives an array when its rows are sliced (numpy, dask, zarr). A picture that
        is coarser than the target already is not enlarged.
    um, target_um
        Microns per pixel, of the picture and wanted.

    Returns
    -------
    reduced, um_xy
        float32 of the same axes, and its exact microns per pixel, float64 (2,) along x and along y. The corner of the
        top-left pixel stays where it was.
    """
    factor = max(target_um / um, 1.0)
    whole = int(factor)  # means of whole blocks first: exact, and no band ends inside one
    rows, columns = (side // whole * whole for side in picture.shape[:2])
    bands = []
    for top in range(0, rows, BAND_PX // whole * whole or whole):
        bottom = min(top + (BAND_PX // whole * whole or whole), rows)
        band = np.asarray(picture[top:bottom])[:, :columns].astype(np.float32)
        size = (columns // whole, (bottom - top) // whole)
        bands.append(cv2.resize(band, size, interpolation=cv2.INTER_AREA) if whole > 1 else band)
    small = np.concatenate(bands)
    size = tuple(max(1, round(side * whole / factor)) for side in small.shape[1::-1])
    um_xy = um * whole * np.array(small.shape[1::-1], float) / size
    return (cv2.resize(small, size, interpolation=cv2.INTER_AREA) if size != small.shape[1::-1] else small), um_xy


def haematoxylin(rgb):
    """Return the amount of haematoxylin, float32 (y, x), at least 0; nuclei are bright, as in DAPI.

    Optical density against the brightest 1 % of the picture, solved for two fixed stain directions (Ruifrok and
    Johnston 2001).

    Parameters
    ----------
    rgb
        (y, x, 3), values 0 to 255.
    """
    white = np.maximum(np.percentile(rgb[::4, ::4].reshape(-1, 3), 99, axis=0), 1)
    stains = np.array([HAEMATOXYLIN, EOSIN])
    unmix = np.linalg.pinv(stains / np.linalg.norm(stains, axis=1, keepdims=True))[:, 0].astype(np.float32)
    density = np.clip(-np.log((np.asarray(rgb, np.float32) + 1) / (white + 1).astype(np.float32)), 0, None)
    return np.clip(density @ unmix, 0, None)


def nuclei_bright(picture, um: float, target_um: float, *, name: str, file=None):
    """Return :func:`reduce` of a picture, float32 (y, x): DAPI as it is, H&E as its haematoxylin.

    Raises
    ------
    CourseError
        Not (y, x) or (y, x, 3), smaller than 16 pixels after reduction, or of one brightness.
    """
    shape = tuple(picture.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        fix = "give one plane of a stack (its maximum projection), and images as (y, x, 3)"
        raise CourseError(f"{name} of shape {shape}", "(y, x) or (y, x, 3)", fix, file=file)
    small, um_xy = reduce(picture, um, target_um)
    if min(small.shape[:2]) < 16:
        seen = f"{name} of {shape[1]} x {shape[0]} px at {um:g} um"
        raise CourseError(seen, "at least 32 um of tissue", "check the pixel size", file=file)
    if not np.isfinite(small).all() or np.ptp(small) <= 1e-3 * np.abs(small).max():
        raise CourseError(f"{name} that is blank", "nuclei", "check which file was given", file=file)
    return haematoxylin(small) if small.ndim == 3 else small, um_xy


def contrast(grey, um: float):
    """Return uint8 (y, x): smoothed by ``BLUR_UM``, stretched, local contrast equalised (CLAHE, Zuiderveld 1994)."""
    smooth = cv2.GaussianBlur(np.asarray(grey, np.float32), (0, 0), max(BLUR_UM / um, 1.0))
    low, high = np.percentile(smooth, STRETCH)
    level = np.clip((smooth - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return cv2.createCLAHE(CLAHE_CLIP, (CLAHE_TILES, CLAHE_TILES)).apply(level)

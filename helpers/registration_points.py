"""Methods, registration: keypoints that two pictures share, and the affine most of them agree on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

N_KEYPOINTS = 4000
SIFT_CONTRAST = 0.01
RATIO = 0.85
"""A match counts if the second-best candidate is at least 1 / 0.85 times farther (Lowe 2004: 0.8, which loses good
ones between two kinds of microscope)."""
RANSAC_UM, RANSAC_ROUNDS = 12.0, 5000


@dataclass(frozen=True)
class Match:
    """An affine and the matches behind it.

    Attributes
    ----------
    matrix
        float64 (2, 3): x, y in um of the moving picture to x, y in um of the fixed one; None where too few matched.
    moving, fixed
        float64 (inliers, 2): x, y in um.
    matched
        Matches before RANSAC.
    """

    matrix: np.ndarray
    moving: np.ndarray
    fixed: np.ndarray
    matched: int

    @property
    def inliers(self) -> int:
        """Matches within ``RANSAC_UM`` of the affine."""
        return len(self.moving)


def _describe(picture, um_xy):
    """Keypoints in um, float64 (n, 2), and unit descriptors (n, 128): RootSIFT (Arandjelovic and Zisserman 2012)."""
    sift = cv2.SIFT_create(nfeatures=N_KEYPOINTS, contrastThreshold=SIFT_CONTRAST, enable_precise_upscale=True)
    points, described = sift.detectAndCompute(picture, None)
    if described is None:  # a picture without a corner
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    described = np.sqrt(described / np.maximum(described.sum(1, keepdims=True), 1e-6)).astype(np.float32)
    # OpenCV counts from the middle of the corner pixel, we from its corner
    return (np.array([point.pt for point in points], float) + 0.5) * um_xy, described


def _mirrored(described):
    """Return what the descriptors would be in the mirror image: 4 x 4 squares of 8 directions, turned over."""
    return np.ascontiguousarray(described.reshape(-1, 4, 4, 8)[:, ::-1][..., (-np.arange(8)) % 8]).reshape(-1, 128)


def _pairs(a, b):
    """Indices of mutual nearest neighbours that pass the ratio test; a and b are unit rows."""
    if len(a) < 3 or len(b) < 3:
        return np.zeros(0, int), np.zeros(0, int)
    alike = a @ b.T
    best = alike.argmax(1)
    two = np.partition(alike, -2, axis=1)[:, -2:]
    second, first = np.sqrt(np.maximum(2 - 2 * two, 0)).T
    good = np.flatnonzero(first < RATIO * second)
    back = (b[best[good]] @ a.T).argmax(1)
    good = good[back == good]
    return good, best[good]


def match(moving, fixed, um_moving, um_fixed):
    """Find the affine from one picture to another, of the picture as it is and of its mirror image.

    SIFT keypoints (Lowe 2004), mutual nearest neighbours, RANSAC (Fischler and Bolles 1981). SIFT knows every rotation
    but no mirror image, so both are tried.

    Parameters
    ----------
    moving, fixed
        uint8 (y, x), from ``registration_images.contrast``.
    um_moving, um_fixed
        Microns per pixel, (2,) along x and y.

    Returns
    -------
    better, other
        Two :class:`Match`, the one with more inliers first; the mirror is inside the matrix (negative determinant).
    """
    here, descriptors = _describe(fixed, um_fixed)
    there, described = _describe(moving, um_moving)
    found = []
    for one in (described, _mirrored(described)):
        i, j = _pairs(one, descriptors)
        found.append(_ransac(there[i], here[j]))
    return sorted(found, key=lambda one: -one.inliers)


def _ransac(moving, fixed):
    nothing = Match(None, np.zeros((0, 2)), np.zeros((0, 2)), len(moving))
    if len(moving) < 4:
        return nothing
    matrix, kept = cv2.estimateAffine2D(
        moving, fixed, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_UM, maxIters=RANSAC_ROUNDS, confidence=0.999,
        refineIters=10,
    )  # fmt: skip
    if matrix is None or not np.isfinite(matrix).all():
        return nothing
    kept = kept.ravel().astype(bool)
    return Match(matrix, moving[kept], fixed[kept], len(moving))

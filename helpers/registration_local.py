"""Methods, registration: what an affine leaves over - blocks found again nearby, and a smooth warp through them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import cdist

MAX_BLOCKS = 2500
MIN_SCORE = 0.35
"""A block counts as found again if its correlation reaches this; blocks of wrong places seldom do."""
UNIQUE = 0.9
"""... and if no second place, more than ``APART_UM`` away, correlates by more than this share of it."""
APART_UM = 6.0
BANDWIDTHS_UM = (25.0, 40.0, 60.0, 90.0, 140.0, 220.0, 350.0, np.inf)
"""Smoothing tried for the warp; the best by leaving one block out is taken. Infinite: no warp."""
RIDGE = (0.2, 1.0, 1.0)
"""Pull towards no displacement and no gradient, in blocks: where there is no tissue the affine stands."""
GAIN_UM = 0.3
"""A warp must lower the left-out residual by this much, or the simpler model stays."""
OUTLIER_UM = 4.0
NODE_UM = 20.0
"""Of the stored grid; at least a thousandth of the section, so that the grid stays small."""
_CHUNK = 500


@dataclass(frozen=True)
class Warp:
    """A smooth displacement on a grid: ``place + displacement(place)``, all x, y in um of the fixed picture.

    Attributes
    ----------
    origin_um
        float64 (2,): x, y of the first node.
    step_um
        Distance of nodes.
    field
        float32 (ny, nx, 2): displacement along x and y at the nodes; between them it is interpolated, beyond them the
        nearest counts.
    bandwidth_um
        Of the smoothing.
    """

    origin_um: np.ndarray
    step_um: float
    field: np.ndarray
    bandwidth_um: float

    def displacement(self, xy_um):
        """Return the displacement of places, float64 (n, 2)."""
        at = ((np.asarray(xy_um, float) - self.origin_um) / self.step_um)[:, ::-1].T
        return np.stack([map_coordinates(self.field[..., k], at, order=1, mode="nearest") for k in (0, 1)], axis=1)

    def undo(self, xy_um, rounds: int = 15):
        """Return the places that the warp moves to ``xy_um``, by fixed-point iteration."""
        xy_um = np.asarray(xy_um, float)
        place = xy_um.copy()
        for _ in range(rounds):
            place = xy_um - self.displacement(place)
        return place


def blocks(moving, fixed, um_moving, um_fixed, inverse, *, patch_um: float, search_um: float, spacing_um: float):
    """Find blocks of the moving picture again on the fixed one, near where a first transform puts them.

    Parameters
    ----------
    moving, fixed
        float32 (y, x), nuclei bright.
    um_moving, um_fixed
        Microns per pixel, (2,) along x and y.
    inverse
        Maps x, y in um of the fixed picture to um of the moving one, float (n, 2) to (n, 2).

    Returns
    -------
    there, here, score, tried
        Float64 (n, 2) x, y in um of the moving and of the fixed picture, of the n blocks found again; their
        correlation; and the number of blocks that held anything to be found.
    """
    extent = np.array(fixed.shape[::-1]) * um_fixed
    spacing_um = max(spacing_um, float(np.sqrt(np.prod(extent) / MAX_BLOCKS)))
    sides = [np.arange(patch_um / 2, max(side - patch_um / 2, patch_um / 2 + 1e-6), spacing_um) for side in extent]
    centres = np.stack([axis.ravel() for axis in np.meshgrid(*sides)], axis=1)
    step = float(um_fixed.mean())
    reach = max(1, round(search_um / step))
    half = round(patch_um / step / 2)
    # the transform near each centre, linear: three places give it
    middle, right, below = (inverse(centres + shift) for shift in np.array([[0, 0], [step, 0], [0, step]]))
    linear = np.stack([right - middle, below - middle], axis=2) / um_moving[:, None]  # moving px per fixed px
    start = middle / um_moving - 0.5  # in pixels, from the middle of the corner pixel
    anchor = np.rint(centres / um_fixed - 0.5).astype(int)
    offset = anchor + 0.5 - centres / um_fixed  # the patch is centred on a pixel of the fixed picture
    start = start + np.einsum("nij,nj->ni", linear, offset)
    flat_moving, flat_fixed = 0.05 * moving.std(), 0.05 * fixed.std()
    found, tried = [], 0
    for (x, y), matrix, at in zip(anchor, linear, start):
        size = 2 * half + 1
        wide = half + reach
        if x - wide < 0 or y - wide < 0 or x + wide >= fixed.shape[1] or y + wide >= fixed.shape[0]:
            continue
        if not (0 <= at[0] < moving.shape[1] and 0 <= at[1] < moving.shape[0]):
            continue
        into = np.column_stack([matrix, at - matrix @ [half, half]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(moving, into, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        window = fixed[y - wide : y + wide + 1, x - wide : x + wide + 1]
        if patch.std() < flat_moving or window.std() < flat_fixed:
            continue
        tried += 1
        alike = cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED)
        peak = _peak(alike, step)
        if peak is not None:
            shift = (np.array([x, y]) + 0.5 + peak[:2] - reach) * um_fixed
            found.append((*((at + 0.5) * um_moving), *shift, peak[2]))
    found = np.array(found, float).reshape(-1, 5)
    return found[:, :2], found[:, 2:4], found[:, 4], tried


def _peak(alike, um):
    """Place x, y (in pixels, to a fraction) and height of the one peak, or None where it is low, doubtful, or cut."""
    _, best, _, (x, y) = cv2.minMaxLoc(alike)
    if not best >= MIN_SCORE or x in (0, alike.shape[1] - 1) or y in (0, alike.shape[0] - 1):
        return None
    rest = alike.copy()
    cv2.circle(rest, (x, y), max(2, round(APART_UM / um)), -1.0, -1)
    if rest.max() > UNIQUE * best:
        return None
    shift = []
    for low, high in ((alike[y, x - 1], alike[y, x + 1]), (alike[y - 1, x], alike[y + 1, x])):
        bend = low - 2 * best + high
        shift.append(0.5 * (low - high) / bend if bend < 0 else 0.0)
    return np.array([x + shift[0], y + shift[1], best])


def affine(moving, fixed, rounds: int = 5):
    """Return the affine (2, 3) of least squares from points to points, far ones trimmed round by round."""
    keep = np.ones(len(moving), bool)
    ones = np.column_stack([moving, np.ones(len(moving))])
    for _ in range(rounds):
        matrix = np.linalg.lstsq(ones[keep], fixed[keep], rcond=None)[0].T
        off = np.hypot(*(ones @ matrix.T - fixed).T)
        keep = off <= max(3 * np.median(off), 1e-6)
    return matrix


def smooth(places, at, values, bandwidth_um, *, left_out=None):
    """Return values at other places by local linear regression with a Gaussian kernel (Fan and Gijbels 1996).

    Parameters
    ----------
    places
        float (m, 2) where the values are wanted.
    at, values
        float (n, 2) and (n, k).
    left_out
        int (m,): the point that each place may not look at, itself.

    Returns
    -------
    float64 (m, k)
    """
    out = np.zeros((len(places), values.shape[1]))
    if not np.isfinite(bandwidth_um) or not len(at):
        return out
    middle, k = at.mean(0), values.shape[1]
    x = (at - middle) / bandwidth_um
    parts = np.stack([np.ones(len(x)), *x.T, x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)
    sums = np.hstack([parts, *(values * column[:, None] for column in parts.T[:3])])
    for first in range(0, len(places), _CHUNK):
        query = (places[first : first + _CHUNK] - middle) / bandwidth_um
        weight = np.exp(-0.5 * cdist(query, x, "sqeuclidean"))
        if left_out is not None:
            weight[np.arange(len(query)), left_out[first : first + _CHUNK]] = 0
        total = weight @ sums  # moments about the middle; what follows moves them to each place
        n, (qx, qy), (sx, sy, sxx, sxy, syy) = total[:, 0], query.T, total[:, 1:6].T
        ax, ay = sx - qx * n, sy - qy * n
        axx, ayy = sxx - 2 * qx * sx + qx**2 * n, syy - 2 * qy * sy + qy**2 * n
        axy = sxy - qx * sy - qy * sx + qx * qy * n
        left = np.stack([n, ax, ay, ax, axx, axy, ay, axy, ayy], axis=1).reshape(-1, 3, 3) + np.diag(RIDGE)
        v, vx, vy = total[:, 6 : 6 + k], total[:, 6 + k : 6 + 2 * k], total[:, 6 + 2 * k :]
        right = np.stack([v, vx - qx[:, None] * v, vy - qy[:, None] * v], axis=1)
        out[first : first + _CHUNK] = np.linalg.solve(left, right)[:, 0]
    return out


def _bandwidth(place, rest, tried):
    """Return the bandwidth that predicts left-out points best; infinite unless another is clearly better."""
    errors, some = {}, np.arange(0, len(place), max(1, len(place) // _CHUNK))
    for bandwidth in tried:
        guess = smooth(place[some], place, rest, bandwidth, left_out=some)
        errors[bandwidth] = np.median(np.hypot(*(rest[some] - guess).T))
    best = min(errors, key=errors.get)
    return best if errors[best] < errors[np.inf] - GAIN_UM else np.inf


def fit(moving, fixed, extent_um, *, warp: bool = True):
    """Fit an affine and, if it predicts left-out points better, a smooth warp on top of it.

    Parameters
    ----------
    moving, fixed
        float (n, 2): corresponding x, y in um.
    extent_um
        Width and height of the fixed picture.

    Returns
    -------
    matrix, warp, residual_um, kept
        Affine (2, 3); :class:`Warp` or None; distance (n,) of each point from where the fit without it puts it; bool
        (n,), False for outliers.
    """
    keep = np.ones(len(moving), bool)
    for step in range(3):
        matrix = affine(moving[keep], fixed[keep])
        place = moving @ matrix[:, :2].T + matrix[:, 2]
        rest = fixed - place
        if step == 0:
            bandwidth = _bandwidth(place, rest, BANDWIDTHS_UM if warp and len(place) >= 12 else (np.inf,))
        guess = np.zeros_like(rest)
        guess[keep] = smooth(place[keep], place[keep], rest[keep], bandwidth, left_out=np.arange(keep.sum()))
        guess[~keep] = smooth(place[~keep], place[keep], rest[keep], bandwidth)
        off = np.hypot(*(rest - guess).T)
        limit = max(OUTLIER_UM, 4 * np.median(off[keep]))
        if (keep == (off <= limit)).all():
            break
        keep = off <= limit
    if not np.isfinite(bandwidth):
        return matrix, None, off, keep
    step = max(NODE_UM, max(extent_um) / 1000)
    nodes = [np.arange(0, side + step, step) for side in extent_um]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*nodes)], axis=1)
    field = smooth(grid, place[keep], rest[keep], bandwidth).astype(np.float32)
    found = Warp(np.zeros(2), step, field.reshape(len(nodes[1]), len(nodes[0]), 2), float(bandwidth))
    return matrix, found, off, keep

"""Small numerics under the virtual tissue: smooth noise, flow maps, thinning of points, signed distances.

All arrays are float32, axes (y, x). Lengths called ``sigma`` are in grid steps; callers hold them in microns and divide
by the grid step, so that nothing here knows about pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree


def smooth_noise(generator: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Gaussian random field of unit variance.

    Wide fields are made on a reduced grid and enlarged, which costs a tenth of a full-size blur. The variance is 1 over
    the field as drawn, which is larger than the window returned, so one small window may lie anywhere in it.

    Parameters
    ----------
    generator
        A named stream of :func:`helpers.settings.rng`.
    shape
        (ny, nx).
    sigma
        Standard deviation of the Gaussian kernel, in grid steps.

    Returns
    -------
    numpy.ndarray
        float32 (ny, nx).
    """
    step = max(1, int(sigma // 3))
    margin = 8 + int(4 * sigma / step)
    ny, nx = (int(n // step + margin) for n in shape)
    field = generator.standard_normal((ny, nx), dtype=np.float32)
    if sigma > 0.2:
        field = cv2.GaussianBlur(field, (0, 0), sigma / step)
    field = (field - field.mean()) / field.std()
    if step > 1:
        field = cv2.resize(field, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    top = int(generator.integers(0, max(1, field.shape[0] - shape[0])))
    left = int(generator.integers(0, max(1, field.shape[1] - shape[1])))
    return np.ascontiguousarray(field[top : top + shape[0], left : left + shape[1]])


def tile_noise(generator: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Unit-variance noise (size, size) that repeats without a seam."""
    pad = int(4 * sigma) + 2
    field = np.pad(generator.standard_normal((size, size), dtype=np.float32), pad, "wrap")
    if sigma > 0.2:
        field = cv2.GaussianBlur(field, (0, 0), sigma)  # OpenCV 5 refuses BORDER_WRAP here, hence the padding
    field = field[pad:-pad, pad:-pad]
    return field / field.std()


def flow_maps(flow_x: np.ndarray, flow_y: np.ndarray, levels: int, step: float) -> list[list[tuple]]:
    """Displacements along a flow after 1, 2, 4, ... steps, both ways.

    The map for 2n steps is the map for n steps composed with itself, so a streamline of 2**levels steps costs
    ``levels`` look-ups (the doubling used for exponentials of vector fields, Arsigny et al. 2006).

    Parameters
    ----------
    flow_x, flow_y
        Unit vectors, float32 (ny, nx).
    levels
        Number of doublings.
    step
        Length of the first step, in grid steps.

    Returns
    -------
    list
        For each of the two directions, ``levels`` pairs (dx, dy) of float32 (ny, nx), in grid steps.
    """
    ny, nx = flow_x.shape
    grid_y, grid_x = np.mgrid[:ny, :nx].astype(np.float32)
    both = []
    for sign in (1.0, -1.0):
        map_x, map_y = grid_x + np.float32(sign * step) * flow_x, grid_y + np.float32(sign * step) * flow_y
        doublings = []
        for level in range(levels):
            doublings.append((map_x - grid_x, map_y - grid_y))
            if level < levels - 1:
                new_x = cv2.remap(map_x, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                map_y = cv2.remap(map_y, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                map_x = new_x
        both.append(doublings)
    return both


def smear(image: np.ndarray, maps: list[list[tuple]]) -> np.ndarray:
    """Line integral convolution of ``image`` along flow maps, standardised to mean 0 and sd 1.

    Cabral and Leedom 1993, by doubling: averaging an image with its own shift by n steps, for n = 1, 2, 4, ...,
    averages over the whole streamline. ``image`` may lie on a finer grid than the maps.
    """
    ny, nx = image.shape
    same = maps[0][0][0].shape == image.shape
    factor_x, factor_y = nx / maps[0][0][0].shape[1], ny / maps[0][0][0].shape[0]
    grid_x, grid_y = np.arange(nx, dtype=np.float32)[None], np.arange(ny, dtype=np.float32)[:, None]
    total = None
    for doublings in maps:
        part = image
        for dx, dy in doublings:
            if not same:
                dx = cv2.resize(dx, (nx, ny)) * np.float32(factor_x)
                dy = cv2.resize(dy, (nx, ny)) * np.float32(factor_y)
            coarse, fine = cv2.convertMaps(dx + grid_x, dy + grid_y, cv2.CV_16SC2)
            moved = cv2.remap(part, coarse, fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            part = cv2.addWeighted(part, 0.5, moved, 0.5, 0)
        total = part if total is None else cv2.addWeighted(total, 0.5, part, 0.5, 0)
    mean, deviation = cv2.meanStdDev(total)
    return (total - np.float32(mean[0, 0])) / np.float32(max(deviation[0, 0], 1e-9))


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Soft step: 0 below -width/2, 1 above +width/2, linear between."""
    return np.clip(0.5 + distance / np.float32(width), 0, 1)


def logistic(value: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-value)), safe for large values."""
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))


def enlarge(
    field: np.ndarray, shape: tuple[int, int], scale: float, *, first_row: int = 0, cubic: bool = False
) -> np.ndarray:
    """Read a coarse field on a finer grid with the same origin, from its row ``first_row`` on.

    ``scale`` is the fine step over the coarse step (both in um); centres of grid cells lie at (index + 0.5) * step.
    """
    top = max(0, int((first_row + 0.5) * scale) - 3)
    bottom = min(field.shape[0], int((first_row + shape[0]) * scale) + 4)
    part = np.ascontiguousarray(field[top:bottom], np.float32)
    matrix = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, (first_row + 0.5) * scale - 0.5 - top]])
    how = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return cv2.warpAffine(
        part, matrix, (shape[1], shape[0]), flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def in_microns(field: np.ndarray, step_um: float, limit_um: float = 60.0) -> np.ndarray:
    """Turn an implicit field into a signed distance in microns.

    Near the edge the field is divided by its own mean gradient (sub-grid position, no stairs); further away the
    Euclidean distance transform takes over. The sign never changes.
    """
    inside = field > 0
    if inside.all() or not inside.any():
        return np.full(field.shape, limit_um if inside.all() else -limit_um * 20, np.float32)
    slope = float(np.hypot(*np.gradient(field)).mean()) / step_um
    near = np.clip(field / max(slope, 1e-6), -limit_um, limit_um)
    far = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
    far -= cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    far *= step_um
    weight = np.clip(np.abs(far) / (5 * step_um), 0, 1)
    return (near * (1 - weight) + far * weight).astype(np.float32)


def distance_beyond(field: np.ndarray, step_um: float) -> np.ndarray:
    """Keep a signed distance within 8 um of its edge; beyond, replace it by the exact distance transform."""
    inside = (field > 0).astype(np.uint8)
    if not inside.any() or inside.all():
        return np.clip(field, -2000, 2000).astype(np.float32)
    far = (cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)) * step_um
    weight = np.clip(np.abs(far) / 8 - 0.5, 0, 1)
    return (np.clip(field, -12, 12) * (1 - weight) + far * weight).astype(np.float32)


def independent_set(first: np.ndarray, second: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Maximal independent set of a conflict graph by priority (Luby 1986), the same whatever the order of the pairs.

    Parameters
    ----------
    first, second
        int (m,): the two ends of every conflict.
    priority
        float (n,), distinct: of two items in conflict the higher one stays, unless a third one removed it.

    Returns
    -------
    numpy.ndarray
        bool (n,): True for items kept; no two kept items are in conflict.
    """
    undecided, kept, lost = 0, 1, 2
    state = np.zeros(len(priority), np.int8)
    while len(first):
        best = np.full(len(priority), -np.inf)
        np.maximum.at(best, first, priority[second])
        np.maximum.at(best, second, priority[first])
        wins = (state == undecided) & (priority > best)
        state[wins] = kept
        beaten = np.zeros(len(priority), bool)
        beaten[second[wins[first]]] = True
        beaten[first[wins[second]]] = True
        state[beaten & (state == undecided)] = lost
        open_pairs = (state[first] == undecided) & (state[second] == undecided)
        first, second = first[open_pairs], second[open_pairs]
    return state != lost


def keep_apart(points: np.ndarray, radii: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Thin points so that no two kept ones lie closer than the sum of their radii: bool (n,)."""
    if len(points) < 2:
        return np.ones(len(points), bool)
    pairs = cKDTree(points).query_pairs(2 * float(np.quantile(radii, 0.999)), output_type="ndarray")
    first, second = pairs[:, 0], pairs[:, 1]
    distance = np.hypot(*(points[first] - points[second]).T)
    near = distance < radii[first] + radii[second]
    return independent_set(first[near], second[near], priority)

"""Methods: outlines that came from another picture are laid on the nuclei they mean, window by window.

A registered DAPI outline is still a micron or two off, here more, there less. Such targets cost a network a tenth of
its nuclei. Within a window the stain of many nuclei tells the shift far better than any one of them.
"""

from __future__ import annotations

import numpy as np

from helpers.hovernet_targets import WORK_MPP, rasterise, resample


def align(polygons, image, *, mpp: float, window_um: float = 60.0, reach_um: float = 6.0, passes: int = 3):
    """Shift outlines so that they cover the dark nuclei of an image.

    In windows that overlap by half, the outlines' mask is moved over the red light's optical density until the two
    correlate best; a nucleus takes the mean shift of the windows near it.

    Parameters
    ----------
    polygons
        Array (n, v, 2) or list of arrays: x, y in um from the image's top-left corner.
    image
        uint8 (y, x, 3) RGB.
    mpp
        Microns per pixel.
    window_um, reach_um
        Side of a window; the largest shift of a pass.
    passes
        How often; later passes find what the first one mixed within a window.

    Returns
    -------
    polygons
        As given, shifted.
    shift_um : float64 (n, 2)
        x, y by which each was shifted; 0 where too few nuclei, or too faint a match, said nothing.
    """
    image, size = resample(image, mpp=mpp)
    density = _sharp(-np.log(np.maximum(image[..., 0], 3, dtype=np.float32) / 245))
    total = np.zeros((len(polygons), 2))
    if not len(polygons):
        return polygons, total
    middle = np.array([np.mean(outline, 0) for outline in polygons])
    moved = polygons
    for _ in range(passes):
        mask = _sharp((rasterise(moved, shape=density.shape, mpp=size) > 0).astype(np.float32))
        places, shifts, weights = _windows(mask, density, round(window_um / WORK_MPP), round(reach_um / WORK_MPP))
        if not len(places):
            break
        total += _near((middle + total) / size, places, shifts, weights, window_um / WORK_MPP / 2) * size
        moved = _shifted(polygons, total)
    return moved, total


def _sharp(picture):
    """Return a picture without its slow changes (over 6 um), slightly blurred."""
    import cv2

    return cv2.GaussianBlur(picture, (0, 0), 1.0) - cv2.GaussianBlur(picture, (0, 0), 6.0 / WORK_MPP)


def _shifted(polygons, shift):
    if isinstance(polygons, np.ndarray):
        return polygons + shift[:, None]
    return [np.asarray(outline) + by for outline, by in zip(polygons, shift)]


def _windows(mask, density, side: int, reach: int, *, least: float = 0.25, covered: float = 0.03):
    """Return centres x, y and shifts x, y in px, float (w, 2), of windows that match, and how well (w,)."""
    import cv2

    places, shifts, weights = [], [], []
    wide = np.pad(density, reach, mode="reflect")
    for top in range(0, max(1, mask.shape[0] - side // 2), side // 2):
        for left in range(0, max(1, mask.shape[1] - side // 2), side // 2):
            part = mask[top : top + side, left : left + side]
            if (part > 0.3).mean() < covered:
                continue
            around = wide[top : top + part.shape[0] + 2 * reach, left : left + part.shape[1] + 2 * reach]
            score = cv2.matchTemplate(np.ascontiguousarray(around), np.ascontiguousarray(part), cv2.TM_CCOEFF_NORMED)
            row, column = np.unravel_index(score.argmax(), score.shape)
            if score[row, column] < least or not (0 < row < 2 * reach and 0 < column < 2 * reach):
                continue
            fine = [_vertex(score[row, column - 1 : column + 2]), _vertex(score[row - 1 : row + 2, column])]
            shifts.append([column - reach + fine[0], row - reach + fine[1]])
            places.append([left + part.shape[1] / 2, top + part.shape[0] / 2])
            weights.append(score[row, column])
    return np.reshape(places, (-1, 2)), np.reshape(shifts, (-1, 2)), np.array(weights)


def _vertex(three) -> float:
    """Place of the top of the parabola through three neighbours, the middle one being the largest."""
    bend = three[0] - 2 * three[1] + three[2]
    return float((three[0] - three[2]) / (2 * bend)) if bend < 0 else 0.0


def _near(points, places, shifts, weights, sigma: float):
    """Mean shift of the windows round each point, weighted by a Gaussian of their distance and how well they match."""
    from scipy.spatial import cKDTree

    k = min(9, len(places))
    away, which = cKDTree(places).query(points, k=k)
    away, which = away.reshape(len(points), k), which.reshape(len(points), k)
    weight = weights[which] * np.exp(-0.5 * (away / sigma) ** 2)
    mean = (shifts[which] * weight[..., None]).sum(1) / np.maximum(weight.sum(1, keepdims=True), 1e-9)
    return np.where(weight.sum(1, keepdims=True) > 1e-3, mean, 0)

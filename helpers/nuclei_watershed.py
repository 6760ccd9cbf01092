"""Methods, nuclei: a watershed on the haematoxylin channel, which needs no weights."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

RUIFROK = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density (R, G, B) of haematoxylin, eosin and DAB: Ruifrok and Johnston (2001), as ``skimage.rgb2hed`` has."""
NUCLEUS_UM2 = 20.0
"""Area of a typical nucleus in thick frozen sections; about 35 in thin paraffin sections."""
FLOOR = 0.35
"""Haematoxylin (natural optical density) below which nothing is a nucleus, whatever else the picture holds."""


def haematoxylin(rgb, *, stains=None, white_point=(255.0, 255.0, 255.0)):
    """Return how much haematoxylin covers each pixel: natural optical density, float32 (y, x), at least 0.

    Parameters
    ----------
    rgb
        uint8 RGB (y, x, 3).
    stains
        Float (2, 3) or (3, 3): optical density of each stain in R, G, B, haematoxylin first, e.g. a fit of the room
        ``stain``. Two are completed by what is at right angles to both. Default: RUIFROK.
    white_point
        RGB of bare glass, 0-255.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise CourseError(f"a picture {rgb.shape} of {rgb.dtype}", "uint8 RGB (y, x, 3)", "use section.window")
    vectors = np.asarray(RUIFROK if stains is None else stains, float)
    if vectors.shape not in ((2, 3), (3, 3)) or not np.isfinite(vectors).all():
        raise CourseError(f"stains {vectors.shape}", "2 or 3 rows of R, G, B", "haematoxylin first, then eosin")
    if len(vectors) == 2:
        vectors = np.vstack([vectors, np.cross(*vectors)])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if abs(np.linalg.det(vectors)) < 1e-3:
        raise CourseError("stains of one colour", "two different directions", "fit the stains again")
    levels = np.arange(256, dtype=np.float32)[:, None]
    table = np.log((np.asarray(white_point, np.float32) + 1) / (levels + 1))  # optical density of each grey level
    weights = np.linalg.inv(vectors)[:, 0].astype(np.float32)
    amount = sum(table[:, i][rgb[..., i]] * weights[i] for i in range(3))
    return np.maximum(amount, 0)


def level_of(density) -> float:
    """Return the haematoxylin that parts nuclei from the rest: Otsu's threshold, at least FLOOR."""
    from skimage.filters import threshold_otsu

    density = np.asarray(density)
    flat = density.size == 0 or float(density.max()) <= FLOOR or float(np.ptp(density)) < 0.01
    return FLOOR if flat else max(FLOOR, float(threshold_otsu(density)))


def watershed(
    rgb, *, mpp: float, nucleus_um2: float = NUCLEUS_UM2, threshold: float = 0.95, contrast: float = 0.12,
    min_area_um2: float | None = None, smooth_um: float | None = None, window_um: float | None = None,
    peak_um: float | None = None, level: float | None = None, stains=None, white_point=(255.0, 255.0, 255.0),
):  # fmt: skip
    """Segment nuclei without any training.

    A pixel belongs to a nucleus if it holds more haematoxylin than the picture's level *and* than its surroundings.
    Touching nuclei are parted from their middles: peaks of the distance to the edge plus the darkness. All lengths
    follow from ``nucleus_um2`` unless given; with r the radius of such a nucleus the defaults are named below.

    Parameters
    ----------
    rgb
        uint8 RGB (y, x, 3).
    mpp
        Microns per pixel.
    nucleus_um2
        Area of a typical nucleus. The one number to adapt to the tissue.
    threshold
        Factor on ``level``.
    contrast
        How far above the mean of its surroundings a pixel must lie, as a share of ``level``; higher finds fewer of the
        pale nuclei out of focus.
    min_area_um2
        Smallest nucleus kept (0.3 ``nucleus_um2``).
    smooth_um
        Gaussian smoothing before the threshold (0.08 r).
    window_um
        Gaussian size of the surroundings (1.3 r).
    peak_um
        Smallest distance of two middles (0.5 r).
    level
        Haematoxylin between nuclei and the rest; default Otsu's threshold of this picture. Give the section's own
        (:func:`level_of`) when a tile may hold no nucleus.
    stains, white_point
        As for :func:`haematoxylin`.

    Returns
    -------
    int32 (y, x)
        0 = background, nuclei 1, 2, ... from top to bottom. None found: all 0.

    Notes
    -----
    The published STimage code thresholds at 0.7 or 0.9 x Otsu and leaves 64 px as the smallest nucleus at any
    resolution; here lengths are microns, and the picture is resampled to r / 7 per pixel first. The defaults were
    tuned on the virtual patients P1 and P2; the smallest area alone was set with human outlines in view as well (a
    larger one scores better on virtual tissue, and loses the nuclei cut by a picture's edge).
    """
    import cv2
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed as flood

    if not (mpp > 0 and nucleus_um2 > 0 and threshold > 0 and contrast >= 0):
        seen = f"mpp={mpp}, nucleus_um2={nucleus_um2}, threshold={threshold}, contrast={contrast}"
        raise CourseError(seen, "positive numbers", "give the section's mpp, and areas in square microns")
    density = haematoxylin(rgb, stains=stains, white_point=white_point)
    radius = np.sqrt(nucleus_um2 / np.pi)
    rows, columns = density.shape
    step = mpp * 7 / radius  # how many working pixels a pixel is wide
    size = (max(1, round(columns * step)), max(1, round(rows * step)))
    work = cv2.resize(density, size, interpolation=cv2.INTER_CUBIC if step >= 1 else cv2.INTER_AREA)
    unit = radius / 7  # microns per working pixel

    def blur(image, um):
        return cv2.GaussianBlur(image, (0, 0), max(um / unit, 0.3))

    smooth = blur(work, 0.08 * radius if smooth_um is None else smooth_um)
    level = level_of(smooth) if level is None else float(level)
    around = blur(work, 1.3 * radius if window_um is None else window_um)
    mask = (smooth > threshold * level) & (smooth > around + contrast * level)
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    _, gaps, facts, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = facts[:, cv2.CC_STAT_AREA] * unit**2 < 0.3 * nucleus_um2
    small[gaps[mask == 1][:1]] = False  # component 0 is the nuclei themselves
    mask[small[gaps]] = 1
    deep = blur(cv2.distanceTransform(mask, cv2.DIST_L2, 5), 0.14 * radius) / 7
    score = deep + 0.5 * blur(work, 0.67 * radius) / level
    distance = max(1, round((0.5 * radius if peak_um is None else peak_um) / unit))
    peaks = peak_local_max(score, min_distance=distance, labels=mask.astype(np.int32), exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks[np.lexsort(peaks.T[::-1])].T)] = np.arange(1, len(peaks) + 1)
    labels = flood(-score, seeds, mask=mask.astype(bool)).astype(np.int32)
    if labels.shape != (rows, columns):
        across = np.minimum(((np.arange(columns) + 0.5) * size[0] / columns).astype(int), size[0] - 1)
        down = np.minimum(((np.arange(rows) + 0.5) * size[1] / rows).astype(int), size[1] - 1)
        labels = labels[down[:, None], across[None]]
    smallest = (0.3 * nucleus_um2 if min_area_um2 is None else min_area_um2) / mpp**2
    return renumber(labels, np.bincount(labels.ravel(), minlength=1) >= smallest)


def renumber(labels, kept):
    """Return int32 labels (y, x) numbered 1, 2, ... in their order; those where ``kept`` (bool by label) fails go."""
    kept = np.array(kept, bool)
    kept[0] = False
    new = np.zeros(len(kept), np.int32)
    new[kept] = np.arange(1, kept.sum() + 1)
    return new[labels]

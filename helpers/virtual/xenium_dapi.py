"""The DAPI picture of a virtual Xenium section: the same nuclei as on the H&E, seen by another instrument.

DAPI shows DNA, not haematoxylin: brightness is drawn anew for every nucleus (compact lymphocytes brighter), some nuclei
are missing, some lie out of focus, and haze, tissue glow, an uneven lamp and photon noise are added. Nothing is copied
from the H&E.
"""

from __future__ import annotations

import cv2
import numpy as np

from helpers import settings
from helpers.virtual.fields import smooth_noise, tile_noise

PIXEL_UM = 0.2125
"""um per pixel of the instrument's pictures (10x Genomics, Xenium output documentation)."""
BRIGHTNESS = {
    "cancer_epithelial": 0.95, "normal_epithelial": 1.0, "myoepithelial": 0.9, "fibroblast": 0.8, "t_cell": 1.3,
    "b_cell": 1.3, "plasma_cell": 1.15, "myeloid": 0.8, "endothelial": 0.85, "adipocyte": 0.7,
}  # fmt: skip
"""DNA per area relative to the average, by the compactness of chromatin; general histology, set by hand."""
BRIGHTNESS_SD = 0.32  # log sd between nuclei: ploidy, cell cycle, how much of the nucleus lies in the section
LOST, BLURRED = 0.06, 0.15  # shares of nuclei without a DAPI signal, and out of focus (the deeper layer besides)
FOCUS_UM, DEFOCUS_UM = 0.32, 1.5  # blur (sigma) in and out of focus
HAZE_UM, HAZE, GLOW, OFFSET = 28.0, 0.20, 140.0, 90.0  # blurred light, its share; tissue glow and camera offset, counts
LEVEL = 2600.0  # counts of an average nucleus
GAIN, READ = 2.2, 9.0  # counts per photon, and read noise in counts
_UNIT, _STRIP, _TILE = 96.0, 1024, 1024


def visible(cells, *, seed: int, section: str) -> np.ndarray:
    """Return a bool per cell: whether DAPI shows its nucleus."""
    return settings.rng(seed, "xenium", "dapi lost", section).random(len(cells)) >= LOST


def _fill(layer, polygons_px, values, order) -> None:
    fixed = np.round((polygons_px - 0.5) * 16).astype(np.int32)  # OpenCV's pixel centres lie at whole numbers
    value = np.clip(np.rint(values), 1, 255).astype(int).tolist()
    for i in order.tolist():
        cv2.fillPoly(layer, [fixed[i]], value[i], cv2.LINE_AA, 4)


def _glow(anatomy, frame, shape, step: int) -> np.ndarray:
    """Return the tissue's own light, float32 on a grid of ``step`` pixels, 0 on glass to about 1."""
    cell = step * PIXEL_UM
    rows, columns = (int(np.ceil(side / step)) for side in shape)
    x, y = np.meshgrid((np.arange(columns) + 0.5) * cell, (np.arange(rows) + 0.5) * cell)
    straight = (np.stack([x, y], -1) - np.asarray(frame.origin_um)) @ np.linalg.inv(frame.linear).T
    at = (straight / anatomy.grid_um - 0.5).astype(np.float32)
    field = np.clip(anatomy.fields["tissue"], -20, 20) * (1 - 0.9 * (anatomy.fields["gap"] > 0))
    there = cv2.remap(field.astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=-20.0)
    return cv2.GaussianBlur(np.clip(there / 20, 0, 1).astype(np.float32), (0, 0), max(4.0 / cell, 0.5))


def draw(anatomy, cells, polygons_um, frame, size_um, *, shown, seed: int, section: str) -> np.ndarray:
    """Draw the picture.

    Parameters
    ----------
    anatomy, cells
        The section's tissue and its table of cells.
    polygons_um
        float (cells, vertices, 2): nuclei in the instrument's frame, um.
    frame, size_um
        Map from the H&E frame; width and height of the picture, um.
    shown
        Bool (cells,), from :func:`visible`.

    Returns
    -------
    numpy.ndarray
        uint16 (y, x) at ``PIXEL_UM``.
    """
    stream = settings.rng(seed, "xenium", "dapi", section)
    width, height = (int(np.ceil(side / PIXEL_UM)) for side in size_um)
    kinds = cells["type"].astype(str)
    own = np.exp(stream.normal(0, BRIGHTNESS_SD, len(cells)) - BRIGHTNESS_SD**2 / 2)
    value = kinds.map(BRIGHTNESS).to_numpy() * own
    deep = cells["deep"].to_numpy(bool)
    blurred = deep | (stream.random(len(cells)) < BLURRED)
    value = value * np.where(deep, 0.55, 1.0)
    order = stream.permutation(len(cells))
    order = order[shown[order]]
    pixels = np.asarray(polygons_um, np.float32) / PIXEL_UM
    sharp, soft = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    _fill(sharp, pixels, value * _UNIT, order[~blurred[order]])
    _fill(soft, pixels, value * _UNIT, order[blurred[order]])
    clumps = 1 + 0.16 * tile_noise(stream, _TILE, 0.45 / PIXEL_UM) + 0.12 * tile_noise(stream, _TILE, 1.3 / PIXEL_UM)
    step = 16
    small = (-(-width // step), -(-height // step))
    light = cv2.resize(np.maximum(sharp, soft), small, interpolation=cv2.INTER_AREA).astype(np.float32) / _UNIT
    haze = HAZE * LEVEL * cv2.GaussianBlur(light, (0, 0), HAZE_UM / PIXEL_UM / step)
    haze += GLOW * _glow(anatomy, frame, (height, width), step)[: small[1], : small[0]] + OFFSET
    lamp = 1 + 0.04 * smooth_noise(stream, haze.shape, 250 / PIXEL_UM / step)
    image, pad = np.empty((height, width), np.uint16), 40
    columns = np.broadcast_to((np.arange(width, dtype=np.float32) + 0.5) / step - 0.5, (_STRIP, width))
    for start in range(0, height, _STRIP):
        stop = min(start + _STRIP, height)
        first, last = max(0, start - pad), min(height, stop + pad)
        rows = np.arange(first, last) % _TILE
        texture = np.tile(clumps[rows], (1, width // _TILE + 1))[:, :width]
        part = cv2.GaussianBlur(sharp[first:last] * texture.astype(np.float32), (0, 0), FOCUS_UM / PIXEL_UM)
        part += cv2.GaussianBlur(soft[first:last].astype(np.float32), (0, 0), DEFOCUS_UM / PIXEL_UM)
        part = part[start - first : stop - first] * np.float32(LEVEL / _UNIT)
        down = np.repeat(((np.arange(start, stop, dtype=np.float32) + 0.5) / step - 0.5)[:, None], width, 1)
        where = np.ascontiguousarray(columns[: stop - start]), down
        part += cv2.remap(haze, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part *= cv2.remap(lamp, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part += np.sqrt(part * GAIN + READ**2) * stream.standard_normal(part.shape, dtype=np.float32)
        image[start:stop] = np.clip(np.rint(part), 0, 65535)
    return image

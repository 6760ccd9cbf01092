"""What the instrument's own segmentation makes of the DAPI picture: nuclei, cells round them, and their outlines.

Vendors find nuclei on DAPI and grow each until it meets a neighbour or has grown 5 um (15 um before version 2). Done
here on a label image of two DAPI pixels a side, so that outlines, label lookup and the assignment of transcripts agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from helpers import settings
from helpers.virtual.xenium_dapi import PIXEL_UM

STEP_UM = 2 * PIXEL_UM
MISSED = 0.02  # nuclei that DAPI shows and the segmentation misses
RAYS = 24
CLASSES = ("immune", "stromal", "cancer_epithelial", "endothelial")
CLASS_OF = {
    "cancer_epithelial": "cancer_epithelial", "normal_epithelial": "cancer_epithelial",
    "myoepithelial": "cancer_epithelial", "fibroblast": "stromal", "adipocyte": "stromal", "t_cell": "immune",
    "b_cell": "immune", "plasma_cell": "immune", "myeloid": "immune", "endothelial": "endothelial",
}  # fmt: skip
"""The four classes of the course (STimage: epithelium counts as cancer epithelial, normal or not)."""


@dataclass(frozen=True)
class Found:
    """What the segmentation found.

    Attributes
    ----------
    index
        int (n,): row of the true cell behind each found one.
    nuclei, cells
        float32 (n, vertices, 2): outlines, x, y in the instrument's frame, um.
    label
        int32 (y, x) on a grid of ``STEP_UM``: 0, or 1 + row of the found cell.
    nucleus_label
        The same for nuclei.
    """

    index: np.ndarray
    nuclei: np.ndarray
    cells: np.ndarray
    label: np.ndarray
    nucleus_label: np.ndarray


def _draw(shape, polygons_um) -> np.ndarray:
    """Return a label image, int32; a later outline covers an earlier one."""
    label = np.zeros(shape, np.int32)
    fixed = np.round((polygons_um / STEP_UM - 0.5) * 16).astype(np.int32)
    for number, outline in enumerate(fixed, 1):
        cv2.fillPoly(label, [outline], number, cv2.LINE_8, 4)
    return label


def _grow(label, reach_um: float) -> np.ndarray:
    """Return labels grown by ``reach_um`` until they meet (nearest label wins)."""
    empty = (label == 0).astype(np.uint8)
    distance, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inside = label > 0
    owner = np.zeros(int(nearest.max()) + 1, np.int32)
    owner[nearest[inside]] = label[inside]
    return np.where(distance * STEP_UM <= reach_um, owner[nearest], 0).astype(np.int32)


def _rays(label, centres_um, reach_um: float, *, step_um: float = STEP_UM) -> np.ndarray:
    """Return outlines (n, RAYS, 2) in um: from each centre outwards until the label changes."""
    number = np.arange(1, len(centres_um) + 1)
    angle = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    length = np.full((len(centres_um), RAYS), 0.5 * step_um)
    open_ray = np.ones_like(length, bool)
    for distance in np.arange(step_um, reach_um, step_um):
        at = ((centres_um[:, None] + distance * way) / STEP_UM).astype(int)
        on = (at >= 0).all(2) & (at[..., 0] < label.shape[1]) & (at[..., 1] < label.shape[0])
        seen = label[at[..., 1].clip(0, label.shape[0] - 1), at[..., 0].clip(0, label.shape[1] - 1)]
        open_ray &= on & (seen == number[:, None])
        length[open_ray] = distance
    return (centres_um[:, None] + length[..., None] * way).astype(np.float32)


def _areas(polygons) -> np.ndarray:
    """Return the areas of outlines (n, vertices, 2)."""
    following = np.roll(polygons, -1, axis=1)
    return np.abs((polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0]).sum(1)) / 2


def _centres(label, n: int) -> np.ndarray:
    """Return the centre of mass of each label, float64 (n, 2) um."""
    row, column = np.nonzero(label)
    number = label[row, column] - 1
    area = np.maximum(np.bincount(number, minlength=n), 1)
    sums = [np.bincount(number, weights=place + 0.5, minlength=n) for place in (column, row)]
    return np.stack(sums, 1) / area[:, None] * STEP_UM


def segment(polygons_um, shown, size_um, *, reach_um: float, seed: int, section: str) -> Found:
    """Segment a section.

    Parameters
    ----------
    polygons_um
        float (cells, vertices, 2): true nuclei in the instrument's frame, um.
    shown
        Bool (cells,): nuclei that DAPI shows.
    size_um
        Width and height of the picture, um.
    reach_um
        How far cells grow beyond the nucleus.
    """
    stream = settings.rng(seed, "xenium", "segmentation", section)
    shape = tuple(int(np.ceil(side / STEP_UM)) for side in size_um[::-1])
    index = np.flatnonzero(shown & (stream.random(len(shown)) >= MISSED))
    centre = polygons_um[index].mean(1, keepdims=True)
    size = stream.normal(1.04, 0.05, (len(index), 1, 1))
    wobble = stream.normal(0, 0.12, (len(index), polygons_um.shape[1], 2))
    nuclei = (centre + (polygons_um[index] - centre) * size + wobble).astype(np.float32)
    label = _draw(shape, nuclei)
    area = np.bincount(label.ravel(), minlength=len(index) + 1)[1:]
    kept = area * STEP_UM**2 > 4.0  # what lies hidden under others is not found
    index, nuclei = index[kept], nuclei[kept]
    label = _draw(shape, nuclei)
    centres = _centres(label, len(nuclei))
    size_um_max = float(np.sqrt(np.square(nuclei - centres[:, None]).sum(2)).max())
    seen = _rays(label, centres, size_um_max, step_um=STEP_UM / 4)  # what is not covered by another nucleus
    hollow = _areas(seen) < 0.35 * _areas(nuclei)  # bent: its centre lies outside
    order = np.linspace(0, nuclei.shape[1], RAYS, endpoint=False)
    low, part = order.astype(int), (order % 1)[None, :, None]
    ring = nuclei[:, low] * (1 - part) + nuclei[:, (low + 1) % nuclei.shape[1]] * part
    nuclei = np.where(hollow[:, None, None], ring, seen).astype(np.float32)
    nucleus_label = _draw(shape, nuclei)
    grown = _grow(nucleus_label, reach_um)
    cells = _rays(grown, centres, reach_um + size_um_max)
    bad = _areas(cells) < _areas(nuclei)  # bent nuclei: their own outline, a little larger
    cells[bad] = (centres[:, None] + 1.1 * (nuclei - centres[:, None]))[bad]
    width, height = size_um
    cells = np.clip(cells, 0, [width, height]).astype(np.float32)
    return Found(index, nuclei, cells, _draw(shape, cells), nucleus_label)


def lookup(label, xy_um) -> np.ndarray:
    """Return the label at points (n, 2), um; 0 outside the picture."""
    column, row = (np.asarray(xy_um) / STEP_UM).astype(int).T
    on = (column >= 0) & (row >= 0) & (column < label.shape[1]) & (row < label.shape[0])
    return np.where(on, label[row.clip(0, label.shape[0] - 1), column.clip(0, label.shape[1] - 1)], 0)


def areas(polygons_um) -> np.ndarray:
    """Return the areas of outlines (n, vertices, 2), um2."""
    return _areas(np.asarray(polygons_um, float))

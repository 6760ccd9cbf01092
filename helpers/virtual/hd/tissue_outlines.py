"""The whole cells of a virtual colon, drawn round their nuclei.

A cell is what lies nearest to its nucleus within its compartment (epithelium, lumen, the rest) and its reach, on a
label image of 0.5 um; a goblet cell holds its mucin vacuole too. Its outline is what is seen of it from its nucleus.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from .tissue_cells import MORPHOLOGY, TYPES, UNIT
from .tissue_ground import Ground

LABEL_UM = 0.5


def vacuoles(ground: Ground, cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mucin vacuoles of goblet cells, between the nucleus and the lumen: their rows in ``cells``, float (m, 32, 2)."""
    stream, index = ground.stream("mucin"), np.flatnonzero(cells.code == TYPES.index("Goblet"))
    toward = cells.toward.to_numpy()[index, None]
    length, width = stream.uniform(5.8, 7.4, (len(index), 1)), stream.uniform(3.8, 4.9, (len(index), 1))
    along = length * (1 + np.cos(UNIT)) + 2.1
    across = width * np.sin(UNIT) * (1 - 0.16 * np.cos(UNIT))
    x = cells.x_um.to_numpy()[index, None] + along * np.cos(toward) - across * np.sin(toward)
    y = cells.y_um.to_numpy()[index, None] + along * np.sin(toward) + across * np.cos(toward)
    return index, np.stack([x, y], 2)


def _spread(labels: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Let every label grow into the empty pixels nearest to it, as far as ``reach`` (um, by label) allows."""
    empty = (labels == 0).astype(np.uint8)
    distance, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    owner = np.zeros(int(nearest.max()) + 1, np.int32)
    owner[nearest[labels > 0]] = labels[labels > 0]
    grown = owner[nearest]
    return np.where(distance * LABEL_UM <= reach[grown], grown, 0)


def label(ground: Ground, cells: pd.DataFrame, nuclei: np.ndarray) -> np.ndarray:
    """Draw whole cells: int32 (y, x) at :data:`LABEL_UM`, 0 outside cells, else the row of ``cells`` plus 1."""
    side = int(round(ground.size_um / LABEL_UM))
    n, code = len(cells), cells.code.to_numpy()
    points = cells[["x_um", "y_um"]].to_numpy()

    def fine(field: np.ndarray) -> np.ndarray:
        return cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)

    solid, lumen = fine(np.maximum(ground.crypt, ground.gland)), fine(ground.lumen)
    epithelium, hollow = (solid > 0) & (lumen <= 0), (solid > 0) & (lumen > 0)
    rest = (solid <= 0) & (fine(ground.tissue) > 0) & (fine(ground.vessel_lumen) <= 0)
    inside = np.maximum(ground.at("crypt", points), ground.at("gland", points)) > 0
    where = np.where(inside, np.where(ground.at("lumen", points) > 0, 1, 0), 2)
    reach = np.concatenate([[0], MORPHOLOGY.reach_um.to_numpy()[code]])
    drift = ground.stream("bodies")
    plasma, macrophage = code == TYPES.index("Plasma"), code == TYPES.index("Macrophage")
    angle = np.where(plasma | macrophage, drift.uniform(0, 6.3, n), np.nan)  # their nuclei lie to one side
    shift = np.nan_to_num(np.stack([np.cos(angle), np.sin(angle)], 1)) * np.where(plasma, 2.6, 2.2)[:, None]
    result = np.zeros((side, side), np.int32)
    fixed = np.round((nuclei / LABEL_UM - 0.5) * 16).astype(np.int32)
    mucous, mucin = vacuoles(ground, cells)
    mucin = np.round((mucin / LABEL_UM - 0.5) * 16).astype(np.int32)
    bodies = np.round(((nuclei + shift[:, None].astype(np.float32)) / LABEL_UM - 0.5) * 16).astype(np.int32)
    for part, mask in enumerate((epithelium, hollow, rest)):
        seeds, index = np.zeros((side, side), np.int32), np.flatnonzero(where == part)
        for i, polygon in zip(*((mucous, mucin) if part == 0 else ((), ()))):
            cv2.fillPoly(seeds, [polygon], int(i) + 1, cv2.LINE_8, 4)
        for i in index[~np.isnan(angle[index])].tolist():
            cv2.fillPoly(seeds, [bodies[i]], i + 1, cv2.LINE_8, 4)
        for i in index.tolist():
            cv2.fillPoly(seeds, [fixed[i]], i + 1, cv2.LINE_8, 4)
        grown = _spread(seeds, reach)
        result = np.where(mask, grown, result)
    everywhere = np.zeros((side, side), np.int32)
    for i in range(n):
        cv2.fillPoly(everywhere, [fixed[i]], i + 1, cv2.LINE_8, 4)
    return np.where(everywhere > 0, everywhere, result)


def outlines(cells: pd.DataFrame, nuclei: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Outlines of whole cells, float32 (n, VERTICES, 2) in um: as far as the cell can be seen from its nucleus."""
    steps = np.arange(1, 57, dtype=np.float32) * LABEL_UM
    centre = cells[["x_um", "y_um"]].to_numpy(np.float32)
    relative = nuclei - centre[:, None]
    turn = np.arctan2(relative[..., 1], relative[..., 0])
    direction = np.stack([np.cos(turn), np.sin(turn)], 2)
    far = np.hypot(relative[..., 0], relative[..., 1])
    own = np.arange(1, len(cells) + 1, dtype=np.int32)[:, None]
    length, going = far.copy(), np.ones(far.shape, bool)
    for step in steps:
        at = centre[:, None] + direction * np.maximum(step, 0)
        column = np.clip((at[..., 0] / LABEL_UM).astype(int), 0, labels.shape[1] - 1)
        row = np.clip((at[..., 1] / LABEL_UM).astype(int), 0, labels.shape[0] - 1)
        going &= (labels[row, column] == own) | (step <= far)
        length = np.where(going, np.maximum(length, step), length)
    return (centre[:, None] + direction * length[..., None]).astype(np.float32)


__all__ = ["LABEL_UM", "label", "outlines", "vacuoles"]

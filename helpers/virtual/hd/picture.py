"""The H&E of a virtual colon: concentrations of haematoxylin and eosin, drawn in um, then turned into light.

Cells come with the ground and are only painted here: nothing in this file can move one.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from ..fields import enlarge, logistic, ramp, smear, tile_noise
from ..optics import Stain
from .picture_light import expose
from .tissue_cells import TYPES
from .tissue_ground import DOMAINS, Ground
from .tissue_outlines import LABEL_UM, vacuoles

CYTOPLASM = {  # eosin, haematoxylin, share of the matrix that it hides
    "Tumour": (0.50, 0.26, 1.0),
    "Goblet": (0.42, 0.15, 1.0),
    "Enterocyte": (0.58, 0.12, 1.0),
    "Fibroblast": (0.46, 0.09, 0.4),
    "Endothelial": (0.55, 0.10, 0.6),
    "Smooth muscle": (0.80, 0.09, 0.3),
    "T cell": (0.22, 0.17, 0.8),
    "Plasma": (0.48, 0.36, 0.95),
    "Macrophage": (0.42, 0.10, 0.7),
    "Neutrophil": (0.52, 0.05, 0.9),
}
EOSIN = {"tumour": 0.46, "stroma": 0.50, "mucosa": 0.30, "immune": 0.34, "muscle": 0.78}  # of what lies between cells
VESICULAR = {"Tumour": 0.55, "Fibroblast": 0.7, "Macrophage": 0.7, "Enterocyte": 0.35, "Endothelial": 0.35,
             "Smooth muscle": 0.35}  # fmt: skip  # share of nuclei with a pale centre
TILE = 1024


class _Canvas:
    """Two layers of concentration on the pixel grid, and what is needed to draw on them in um."""

    def __init__(self, ground: Ground, mpp: float):
        self.ground, self.mpp = ground, mpp
        side = int(round(ground.size_um / mpp))
        self.shape = (side, side)
        self.eosin, self.haematoxylin = (np.zeros(self.shape, np.float32) for _ in range(2))

    def fine(self, field: np.ndarray) -> np.ndarray:
        """Return a field of the 1 um grid on the pixel grid."""
        return enlarge(field, self.shape, self.mpp)

    def texture(self, name: str, sigma_um: float) -> np.ndarray:
        """Return noise of unit variance on the pixel grid."""
        tile = tile_noise(self.ground.stream(f"texture {name}"), TILE, sigma_um / self.mpp)
        times = -(-self.shape[0] // TILE)
        return np.tile(tile, (times, times))[: self.shape[0], : self.shape[1]]

    def fill(self, layer: np.ndarray, polygons: np.ndarray, values: np.ndarray) -> None:
        """Fill polygons (n, k, 2) in um with byte values, smooth at the rim, one after the other."""
        fixed = np.round((polygons / self.mpp - 0.5) * 16).astype(np.int32)
        for polygon, value in zip(fixed, np.clip(values, 0, 255).astype(int).tolist()):
            cv2.fillPoly(layer, [polygon], value, cv2.LINE_AA, 4)


def _matrix(canvas: _Canvas) -> None:
    """Draw what lies between cells: collagen, muscle bundles, loose lamina propria, lumina with their contents."""
    ground, fine = canvas.ground, canvas.fine
    grain = canvas.texture("fibre", 0.55)
    fibre = smear(grain, [maps[:3] for maps in ground.flow])
    broad = fine(smear(ground.noise("bundle", 2.2), [maps[:4] for maps in ground.flow]))
    clump, cloud = canvas.texture("clump", 1.6), canvas.texture("cloud", 14.0)
    part = {name: (ground.domain == DOMAINS.index(name)).astype(np.float32) for name in DOMAINS}
    part = {name: fine(cv2.GaussianBlur(mask, (0, 0), 3.0)) for name, mask in part.items()}
    muscle, loose = part["muscle"], np.clip(part["mucosa"] + 0.75 * part["immune"], 0, 1)
    strands = 0.55 * fibre + 0.55 * broad + 0.30 * clump
    level = sum(EOSIN[name] * part[name] for name in DOMAINS)
    contrast = 0.34 - 0.16 * muscle
    eosin = level * np.exp(contrast * strands + 0.16 * cloud * (1 - 0.5 * muscle))
    thick = logistic((broad + 0.5 * cloud - 1.0) / 0.25) * part["stroma"]  # broad pink collagen bundles
    eosin = eosin * (1 + 0.45 * thick)
    # slits between fibres, wider in loose tissue; seams between muscle bundles
    open_ = -0.62 * broad - 0.35 * fibre - 0.62 * clump * (1 - muscle) - 0.35 * cloud
    slit = logistic((open_ - 1.55 + 0.42 * loose - thick - 0.25 * muscle) / 0.2)
    slit = np.clip(slit - 0.4 * part["tumour"], 0, 1)
    eosin = eosin * (1 - 0.82 * slit)
    haematoxylin = (0.07 + 0.05 * loose + 0.03 * part["tumour"]) * np.exp(0.35 * clump + 0.2 * cloud) * (1 - 0.8 * slit)
    solid, lumen = fine(np.maximum(ground.crypt, ground.gland)), fine(ground.lumen)
    membrane = np.exp(-(((solid + 0.8) / 0.9) ** 2))
    eosin = eosin + 0.16 * membrane
    inside = ramp(solid, 1.2)
    eosin = eosin * (1 - inside) + inside * 0.46 * np.exp(0.12 * clump)
    haematoxylin = haematoxylin * (1 - inside) + inside * 0.20
    # lumina: empty with threads of mucus in crypts, necrotic debris in tumour glands
    hollow = inside * ramp(lumen, 1.4)
    dirt = fine(ground.noise("dirt", 13)) + 0.55 * canvas.texture("dirt fine", 2.2)
    necrosis = logistic((dirt - 0.15 + 0.04 * np.clip(lumen, 0, 20)) / 0.25) * ramp(fine(ground.gland), 2.0)
    debris = necrosis * (0.42 + 0.22 * canvas.texture("debris", 0.9) + 0.12 * clump)
    dust = np.clip(canvas.texture("dust", 0.75) - 1.75, 0, 1.2) * necrosis
    threads = fine(smear(ground.noise("mucus", 1.2), [maps[:3] for maps in ground.flow]))
    mucus = 0.05 + 0.05 * np.clip(threads, -1, 2)
    eosin = eosin * (1 - hollow) + hollow * (0.35 * mucus + np.clip(debris, 0, 1))
    haematoxylin = haematoxylin * (1 - hollow) + hollow * (mucus * (1 - necrosis) + 0.10 * necrosis + 1.1 * dust)
    # vessels: a thin wall, plasma or red cells inside
    wall, bore = fine(ground.vessel), ramp(fine(ground.vessel_lumen), 1.2)
    eosin = eosin + 0.25 * np.exp(-(((wall - 0.6) / 1.2) ** 2))
    eosin, haematoxylin = eosin * (1 - bore), haematoxylin * (1 - bore)
    eosin = eosin + bore * 0.05
    canvas.eosin += np.maximum(eosin, 0)
    canvas.haematoxylin += np.maximum(haematoxylin, 0)


def _red_cells(canvas: _Canvas) -> None:
    """Red blood cells packed in some of the vessels, and a few that leaked."""
    ground, layer = canvas.ground, np.zeros(canvas.shape, np.uint8)
    stream = ground.stream("red cells")
    full = stream.random(len(ground.vessels)) < 0.45
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    rows, columns = np.nonzero(ground.vessel_lumen > 1.2)
    if not len(rows):
        return
    pick = stream.permutation(len(rows))[: len(rows) // 9]
    centre = np.column_stack([columns[pick], rows[pick]]) + stream.random((len(pick), 2))
    distance = np.hypot(*(centre[:, None] - ground.vessels[None, :, :2]).transpose(2, 0, 1))
    centre = centre[full[distance.argmin(1)]]
    radius = stream.uniform(2.2, 3.0, (len(centre), 1, 1))
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)[None] * radius
    canvas.fill(layer, centre[:, None] + ring, stream.uniform(95, 140, len(centre)))
    inside = ramp(canvas.fine(ground.vessel_lumen), 0.8)
    canvas.eosin += layer.astype(np.float32) / 100 * inside * (1 + 0.15 * canvas.texture("red", 0.8))


def _cytoplasm(canvas: _Canvas, cells: pd.DataFrame, labels: np.ndarray) -> None:
    """Tint whole cells by type, with fine granules and a rim where two epithelial cells meet."""
    ground, n, stream = canvas.ground, len(cells), canvas.ground.stream("cytoplasm")
    values = np.array([CYTOPLASM[kind] for kind in TYPES], np.float32)[cells.code.to_numpy()]
    values[:, :2] *= np.exp(stream.normal(0, 0.13, (n, 2)))
    table = np.concatenate([np.zeros((1, 3), np.float32), values])
    if labels.shape != canvas.shape:
        at = np.minimum(((np.arange(canvas.shape[0]) + 0.5) * canvas.mpp / LABEL_UM).astype(int), labels.shape[0] - 1)
        labels = labels[at][:, at]
    eosin, haematoxylin, hide = (cv2.GaussianBlur(table[labels, k], (0, 0), 0.35 / canvas.mpp) for k in range(3))
    granules = np.exp(0.13 * canvas.texture("granules", 0.8) + 0.10 * canvas.texture("clump", 1.6))
    canvas.eosin *= 1 - hide
    canvas.haematoxylin *= 1 - hide
    epithelial = np.isin(table[labels, 2], [1.0])
    edge = np.zeros(canvas.shape, np.float32)
    edge[:, 1:] += labels[:, 1:] != labels[:, :-1]
    edge[1:] += labels[1:] != labels[:-1]
    edge = cv2.GaussianBlur(np.minimum(edge, 1) * epithelial, (0, 0), 0.35 / canvas.mpp)
    canvas.eosin += (eosin + 0.07 * edge) * np.where(epithelial, granules, hide * granules)
    canvas.haematoxylin += (haematoxylin + 0.04 * edge) * np.where(epithelial, granules, hide * granules)
    # apical border of epithelium: denser in crypts
    border = np.exp(-(((canvas.fine(ground.lumen) + 1.2) / 1.1) ** 2)) * ramp(canvas.fine(ground.crypt), 1)
    canvas.eosin += 0.15 * border


def _mucin(canvas: _Canvas, cells: pd.DataFrame) -> None:
    """Pale vacuoles of goblet cells."""
    index, outline = vacuoles(canvas.ground, cells)
    n = len(index)
    layer, core = np.zeros(canvas.shape, np.uint8), np.zeros(canvas.shape, np.uint8)
    middle = outline.mean(1, keepdims=True)
    canvas.fill(layer, outline, np.repeat(255, n))
    canvas.fill(core, middle + 0.86 * (outline - middle), np.repeat(255, n))
    inside = ramp(canvas.fine(canvas.ground.crypt), 1.0) * (1 - ramp(canvas.fine(canvas.ground.lumen), 1.0))
    rim, core = layer.astype(np.float32) / 255 * inside, core.astype(np.float32) / 255 * inside
    foam = canvas.texture("foam", 0.9)
    canvas.eosin = canvas.eosin * (1 - 0.85 * core) + core * 0.03 + 0.10 * (rim - core)
    canvas.haematoxylin = canvas.haematoxylin * (1 - 0.9 * core) + core * np.clip(0.15 + 0.05 * foam, 0, 1)


def _nuclei(canvas: _Canvas, cells: pd.DataFrame, nuclei: np.ndarray) -> None:
    """Nuclei: rim and chromatin, pale centres and nucleoli in large ones, clumps in plasma cells, lobes."""
    ground, n = canvas.ground, len(cells)
    stream, code = ground.stream("nuclei"), cells.code.to_numpy()
    kind = np.array(TYPES)[code]
    centre = cells[["x_um", "y_um"]].to_numpy(np.float32)[:, None]
    relative = nuclei - centre
    level = cells.haematoxylin.to_numpy() * 100
    vesicular = stream.random(n) < np.array([VESICULAR.get(name, 0.1) for name in kind])
    layer = np.zeros(canvas.shape, np.uint8)
    canvas.fill(layer, nuclei, level * np.where(vesicular, 1.08, 1.0))
    inner = (kind != "Neutrophil") & (kind != "T cell")
    shade = np.where(vesicular, stream.uniform(0.58, 0.80, n), stream.uniform(0.86, 1.02, n))
    canvas.fill(layer, (centre + 0.76 * relative)[inner], (level * shade)[inner])
    angle, far = stream.uniform(0, 6.3, (2, n)), np.sqrt(cells.area_um2.to_numpy() / np.pi)
    spot = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    dot = np.stack([np.cos(spot), np.sin(spot)], 1)[None]
    for k in range(2):  # nucleoli
        has = vesicular & (kind == "Tumour") & (stream.random(n) < (0.75, 0.3)[k])
        shift = (0.35 * far * (0.4 + k))[:, None] * np.stack([np.cos(angle[k]), np.sin(angle[k])], 1)
        size = stream.uniform(0.75, 1.15, (n, 1, 1))
        canvas.fill(layer, (centre + shift[:, None] * 0.6 + dot * size)[has], (level * 1.35)[has])
    plasma = np.flatnonzero(kind == "Plasma")
    for k in range(6):  # a clock face
        t = angle[0][plasma] + k * np.pi / 3
        shift = (0.66 * far[plasma])[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
        canvas.fill(layer, centre[plasma] + shift[:, None] + 0.75 * dot, level[plasma] * 1.25)
    lobed = np.flatnonzero(kind == "Neutrophil")
    canvas.fill(layer, nuclei[lobed], level[lobed] * 0.55)  # bridges, drawn over the whole nucleus
    tip = np.hypot(relative[..., 0], relative[..., 1])[lobed].argmax(1)
    for k in range(3):
        at = relative[lobed, (tip + k * relative.shape[1] // 3) % relative.shape[1]]
        canvas.fill(layer, centre[lobed] + 0.56 * at[:, None] + 1.25 * dot, level[lobed] * 1.05)
    stained = layer.astype(np.float32) / 100
    coarse = 0.75 * canvas.texture("chromatin", 0.45) + 0.65 * canvas.texture("chromatin 2", 1.0)
    cover = np.clip(stained / 0.55, 0, 1)
    canvas.haematoxylin = canvas.haematoxylin * (1 - cover) + stained * np.exp(0.19 * coarse)
    canvas.eosin *= 1 - 0.45 * cover


def draw(
    ground: Ground, cells: pd.DataFrame, nuclei: np.ndarray, labels: np.ndarray, stain: Stain, *, mpp: float
) -> tuple[bytes, np.ndarray]:
    """Draw a section.

    Parameters
    ----------
    ground, cells, nuclei, labels
        From :mod:`.tissue_ground` and :mod:`.tissue_cells`.
    stain
        Stain, light and scanner.
    mpp
        um per pixel.

    Returns
    -------
    jpeg
        The encoded picture.
    image
        uint8 (y, x, 3) RGB, decoded from it.
    """
    canvas = _Canvas(ground, mpp)
    _matrix(canvas)
    _red_cells(canvas)
    _cytoplasm(canvas, cells, labels)
    _mucin(canvas, cells)
    _nuclei(canvas, cells, nuclei)
    tissue = ramp(canvas.fine(ground.tissue), 2.0)
    damaged = canvas.fine(cv2.GaussianBlur(ground.damaged.astype(np.float32), (0, 0), 5))
    cloud = 1 + 0.10 * canvas.fine(ground.noise("thickness", 90))
    canvas.eosin *= tissue * cloud * (1 + 0.10 * damaged)
    canvas.haematoxylin *= tissue * cloud * (1 - 0.48 * damaged)
    return expose(canvas, stain, damaged)

"""What lies between the cells: eosin and haematoxylin of fibres, fat, lumina, vessels and white space.

Works on a grid of two pixels with all lengths in microns, and returns half floats, which keeps a whole section small.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..settings import rng
from . import cord
from .anatomy import Anatomy
from .fields import enlarge, flow_maps, logistic, ramp, smear, smooth_noise


class _Canvas:
    """Grid of the matrix: reads coarse fields, draws named noise of a given size in um."""

    def __init__(self, anatomy: Anatomy, seed: int, section: str, mpp: float):
        self.anatomy, self.names, self.seed = anatomy, ("matrix", section), seed
        self.step = 2 * mpp
        self.shape = tuple(int(np.ceil(round(s / mpp) / 2)) for s in anatomy.size_um[::-1])

    def field(self, name: str) -> np.ndarray:
        return self.up(self.anatomy.fields[name], cubic=True)

    def up(self, coarse: np.ndarray, cubic: bool = False) -> np.ndarray:
        return enlarge(coarse, self.shape, self.step / self.anatomy.grid_um, cubic=cubic)

    def coarse(self, name: str, sigma_um: float) -> np.ndarray:
        stream = rng(self.seed, *self.names, name)
        return smooth_noise(stream, self.anatomy.shape, sigma_um / self.anatomy.grid_um)

    def noise(self, name: str, sigma_um: float) -> np.ndarray:
        """Noise on the fine grid; where it is smooth, drawn on the coarse one."""
        if sigma_um > 2 * self.anatomy.grid_um:
            return self.up(self.coarse(name, sigma_um))
        return smooth_noise(rng(self.seed, *self.names, name), self.shape, sigma_um / self.step)


def _fibrils(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised fibre texture, its fine part, and a band-like texture along the fibres."""
    f, grid = canvas.anatomy.fields, canvas.anatomy.grid_um
    along = flow_maps(f["fibre_x"], f["fibre_y"], 5, 1.4 / grid)
    fine = smear(canvas.noise("fine", 0.97), [way[:2] for way in along])
    turn = 0.8 * canvas.coarse("crossing", 30)
    cosine, sine = np.cos(turn), np.sin(turn)
    cross = (f["fibre_x"] * cosine - f["fibre_y"] * sine, f["fibre_x"] * sine + f["fibre_y"] * cosine)
    crossing = smear(canvas.noise("crossing fine", 1.24), flow_maps(*cross, 3, 1.4 / grid))
    # torn sheets: flat patches with sharp borders, small ones and larger ones
    sheet = smear(canvas.coarse("sheet", 4.2), [way[:3] for way in along]) + 0.35 * canvas.coarse("sheet rough", 3)
    large = smear(canvas.coarse("large sheet", 9), [way[:4] for way in along]) + 0.25 * canvas.coarse("clump", 4)
    sheet, large = canvas.up(sheet, cubic=True), canvas.up(large, cubic=True)
    folded = np.exp(-((sheet / 0.14) ** 2)) + np.exp(-(((large - 0.4) / 0.10) ** 2))  # their borders: thin darker lines
    texture = 0.36 * np.tanh(2.2 * sheet) + 0.36 * np.tanh(2.2 * large) + 0.55 * (folded - 0.15)
    del sheet, large, folded
    texture += 0.26 * fine + 0.24 * crossing + 0.15 * canvas.noise("specks", 1.6)
    bands = canvas.up(smear(canvas.coarse("bands", 13), flow_maps(f["fibre_x"], f["fibre_y"], 5, 1.0)))
    return texture / texture.std(), fine, bands


def _edge(canvas: _Canvas, field: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """Cover 0-1 of the inside of an implicit field, its edge 2.5 um wide whatever the field's slope."""
    slope = np.hypot(*np.gradient(field)) / canvas.anatomy.grid_um
    slope = cv2.GaussianBlur(slope, (0, 0), 1.0)
    return ramp(canvas.up(np.clip(field / (slope + 0.25 * slope.mean() + 1e-6), -12, 12), cubic=True) + rough, 2.5)


def _fat(canvas: _Canvas, eosin: np.ndarray, haematoxylin: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Put fat into the matrix in place; returns the white inside fat cells (0-1)."""
    cover, wall = ramp(canvas.field("fat"), 12), canvas.field("adipocyte")
    rim = ramp(2.0 - wall, 1.6) * (0.26 + 0.30 * np.clip((1 - wall) / 6, 0, 1)) * (1 + 0.15 * fine)
    eosin *= 1 - cover
    eosin += cover * rim
    haematoxylin *= 1 - cover
    haematoxylin += cover * 0.2 * rim
    return ramp(wall - 2.0, 1.6) * cover


def _stroma(canvas: _Canvas, texture: np.ndarray, fine: np.ndarray, bands: np.ndarray) -> tuple:
    """Eosin and haematoxylin of plain stroma, pink bundles and septa (eosin replaces haematoxylin), and oedema."""
    style = canvas.anatomy.style
    contrast = np.exp(style.texture * texture - 0.08)
    wide, grains = canvas.noise("wide", 110), 1 + 0.10 * canvas.noise("grains", 0.83)
    septum = ramp(canvas.field("septum"), 10)
    pink = np.maximum(logistic((bands + 0.6 * wide + 0.12 * texture - style.bundle_level) / 0.22), septum)
    eosin = style.stroma_eosin * contrast * np.exp(0.22 * wide) * grains * (1 - 0.45 * pink)
    haematoxylin = style.stroma_haematoxylin * np.sqrt(contrast) * grains * (1 - 0.7 * pink)
    del contrast, grains, wide
    depth = np.exp(0.25 * canvas.noise("pink 30", 30) + 0.15 * bands - 0.05)
    eosin += style.bundle_eosin * depth * pink * (1 + 0.10 * texture + 0.08 * septum * fine)
    del depth, pink, septum
    haematoxylin *= np.exp(0.28 * canvas.noise("basophil 60", 60) + 0.14 * canvas.noise("basophil 18", 18))
    strands = 0.8 * texture + 0.5 * canvas.noise("net", 4.5) + 0.25 * bands
    thin = 1 - canvas.field("loose") * (1 - 1.15 * np.clip(0.30 + 0.48 * strands, 0.05, 1.1))
    eosin *= thin
    haematoxylin *= thin
    return eosin, haematoxylin


def _epithelium(canvas: _Canvas, eosin: np.ndarray, haematoxylin: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Put what lies between the nuclei of nests and ducts into the matrix in place; returns their cover (0-1)."""
    style, distance = canvas.anatomy.style, canvas.field("duct")
    cover = np.maximum(ramp(canvas.field("nest"), 4), ramp(distance - 3, 4))
    soft = np.exp(0.5 * style.texture * texture)
    smudge = np.exp(0.45 * canvas.noise("smudge", 14) - 0.1) * soft
    eosin += cover * (style.nest_eosin * soft - eosin)
    haematoxylin += cover * (style.nest_haematoxylin * smudge - haematoxylin)
    eosin += 0.30 * np.exp(-(((distance + 2) / 2.2) ** 2))  # basement membrane
    return cover


def _white(canvas: _Canvas, texture: np.ndarray, fine: np.ndarray, epithelium: np.ndarray) -> tuple:
    """White space (0-1) of gaps, lumina, cracks and freezing vacuoles; the lumina; and the glass."""
    f, style = canvas.anatomy.fields, canvas.anatomy.style
    rough = 0.7 * canvas.noise("rough 2", 1.6) + 1.3 * canvas.noise("rough 4", 4.0) + 0.9 * fine
    lumen = _edge(canvas, np.minimum(f["lumen"], f["duct"]), rough)
    white = np.maximum(_edge(canvas, f["gap"], rough) * (1 - 0.97 * ramp(canvas.field("duct") - 3, 4)), lumen)
    plain = (1 - epithelium) * (1 - 0.8 * ramp(canvas.field("septum"), 10)) * np.clip(canvas.field("tissue") / 30, 0, 1)
    smooth = cv2.GaussianBlur(texture, (0, 0), 1.1 / canvas.step)  # else the borders look like coastlines
    plain *= 1 - ramp(canvas.field("fat") + 6, 6)
    crack = -1.12 * smooth - 2.25 + 0.6 * style.slits + 0.75 * canvas.noise("slits", 35) + 0.35 * canvas.field("loose")
    white = np.maximum(white, ramp(crack, 0.6) * plain)
    if style.vacuoles > 0:
        patches = logistic((canvas.noise("vacuole patches", 60) - 0.9) / 0.25) * (1 - 0.7 * epithelium)
        patches *= 1 - 0.9 * ramp(canvas.field("septum"), 10)
        white = np.maximum(white, style.vacuoles * 0.8 * patches * ramp(canvas.noise("vacuoles", 2.6) - 0.75, 0.5))
    glass = 1 - ramp(canvas.field("tissue") + 1.5 * rough, 3)
    return np.maximum(white, glass), lumen, glass


def matrix(anatomy: Anatomy, *, seed: int, section: str, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Eosin and haematoxylin of everything but the cells.

    Returns
    -------
    tuple
        Concentrations of eosin and haematoxylin, float16 (ny, nx) with steps of two pixels.
    """
    canvas = _Canvas(anatomy, seed, section, mpp)
    if anatomy.template == "cord":
        return cord.matrix(canvas)
    texture, fine, bands = _fibrils(canvas)
    eosin, haematoxylin = _stroma(canvas, texture, fine, bands)
    del bands
    epithelium = _epithelium(canvas, eosin, haematoxylin, texture)
    white, lumen, glass = _white(canvas, texture, fine, epithelium)
    del epithelium
    if anatomy.style.fat_share > 0:
        white = np.maximum(white, _fat(canvas, eosin, haematoxylin, fine))
    vessel = canvas.field("vessel")
    eosin += 0.25 * np.exp(-(((vessel - 1.5) / 2.0) ** 2))  # vessel wall
    vessel = ramp(vessel - 3.5, 2)
    white = np.maximum(white, vessel)
    rim = np.clip(4 * white * (1 - white), 0, 1) * 0.05  # a refracting edge, darker than either side
    kept = 1 - white
    eosin = np.maximum(eosin, 0.02) * kept + rim
    haematoxylin = np.maximum(haematoxylin, 0) * kept + rim
    del kept, rim, white
    # what lumina hold: red cells in some vessels, debris in some ducts
    vessel *= ramp(canvas.noise("blood", 40) - 0.2, 0.4)
    eosin += vessel * 0.55 * np.clip(0.6 + 0.5 * canvas.noise("red cells", 1.9), 0, 1.3)
    lumen *= ramp(canvas.noise("debris", 60) - 0.3, 0.6) * (1 - glass)
    eosin += lumen * np.clip(0.16 + 0.12 * texture, 0, 0.5)
    haematoxylin += lumen * np.clip(0.06 * texture, 0, 0.3)
    del vessel, lumen, texture, fine
    thickness = np.exp(0.10 * canvas.noise("thickness", 25)) * (1 + 0.9 * canvas.field("fold"))
    return (eosin * thickness).astype(np.float16), (haematoxylin * thickness).astype(np.float16)

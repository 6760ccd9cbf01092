"""The grid on which a section's anatomy grows, with its named random streams."""

from __future__ import annotations

import numpy as np

from ..settings import rng
from .fields import smooth_noise
from .styles import Style

DOMAINS = ("glass", "stroma", "tumour", "in_situ", "normal_duct", "immune", "fat", "vessel")
GRID_UM = 2.8
FAR = -400.0  # um, "nowhere near"


class Ground:
    """The grid of one section, and its named noise."""

    def __init__(self, seed: int, section: str, size_um: tuple[float, float], style: Style):
        self.seed, self.section, self.style = seed, section, style
        self.width, self.height = float(size_um[0]), float(size_um[1])
        self.step = GRID_UM
        self.shape = (int(np.ceil(self.height / GRID_UM - 1e-6)), int(np.ceil(self.width / GRID_UM - 1e-6)))
        self.y, self.x = (np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32) + 0.5) * np.float32(GRID_UM)
        self.area_mm2 = self.width * self.height * 1e-6

    def stream(self, name: str) -> np.random.Generator:
        return rng(self.seed, "anatomy", self.section, name)

    def noise(self, name: str, sigma_um: float) -> np.ndarray:
        return smooth_noise(self.stream(name), self.shape, sigma_um / self.step)

    def cell(self, x: float, y: float) -> tuple[int, int]:
        return min(int(y / self.step), self.shape[0] - 1), min(int(x / self.step), self.shape[1] - 1)

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        rows = slice(max(0, int((y - reach) / self.step)), max(0, int((y + reach) / self.step) + 1))
        return rows, slice(max(0, int((x - reach) / self.step)), max(0, int((x + reach) / self.step) + 1))

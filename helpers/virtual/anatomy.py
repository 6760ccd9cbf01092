"""Anatomy of a virtual section: where glass, stroma, tumour, ducts, immune foci, fat and vessels lie.

Everything is a field on a coarse grid (2.8 um), in microns, grown from named random sub-streams. The image resolution
plays no part here. Arrays are (y, x); x runs right, y runs down; a grid cell's centre lies at (index + 0.5) * grid_um.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..messages import CourseError
from . import cord
from .breast import breast
from .ground import DOMAINS, GRID_UM, Ground
from .styles import STYLES, Style


@dataclass
class Anatomy:
    """Fields of one section.

    Attributes
    ----------
    template, seed, section
        What it was grown from.
    size_um
        (width, height) of the section's image.
    grid_um
        Step of the grid.
    fields
        float32 (gy, gx) each. Signed distances in um, positive inside: ``tissue`` (outline; holes in it count as
        inside), ``duct`` (in situ and normal alike), ``nest``, ``immune``, ``fat``, ``vessel``, ``lumen`` (of ducts),
        ``gap`` (clefts, holes, tears: white). ``adipocyte`` is the distance from the nearest fat cell wall,
        ``septum`` that from the edge of a broad collagen band. Unit vectors ``fibre_x``, ``fibre_y``. Shares 0-1:
        ``in_situ`` (1 in ducts with carcinoma in situ), ``loose`` (oedematous stroma), ``fold`` (doubled tissue).
    domain
        uint8 (gy, gx), index into ``domains``. Gaps keep the domain round them, lumina that of their duct.
    style
        The parameters used.
    """

    template: str
    seed: int
    section: str
    size_um: tuple[float, float]
    grid_um: float
    fields: dict[str, np.ndarray]
    domain: np.ndarray
    style: Style

    @property
    def shape(self) -> tuple[int, int]:
        """(gy, gx) of the grid."""
        return self.domain.shape

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return cord.DOMAINS if self.template == "cord" else DOMAINS

    def sample(self, name: str, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Values of a field (bilinear) or of ``"domain"`` (nearest) at points in um; the edge's outside it."""
        x = np.atleast_1d(np.asarray(x_um, np.float32)) / np.float32(self.grid_um) - np.float32(0.5)
        y = np.atleast_1d(np.asarray(y_um, np.float32)) / np.float32(self.grid_um) - np.float32(0.5)
        rows, columns = self.shape
        if name == "domain":
            near_y = np.clip(np.rint(y).astype(int), 0, rows - 1)
            return self.domain[near_y, np.clip(np.rint(x).astype(int), 0, columns - 1)]
        field = self.fields[name]
        x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
        left, top = np.minimum(x.astype(int), columns - 2), np.minimum(y.astype(int), rows - 2)
        u, v = x - left, y - top
        upper = field[top, left] * (1 - u) + field[top, left + 1] * u
        lower = field[top + 1, left] * (1 - u) + field[top + 1, left + 1] * u
        return upper * (1 - v) + lower * v


TEMPLATES = {"breast": breast, "cord": cord.cord}
"""Template name -> function(ground, full_tissue, folds, tears) giving the fields and the domains."""


def grow(
    *,
    seed: int,
    section: str,
    size_um: tuple[float, float] = (3000.0, 3000.0),
    style: str | Style = "dense",
    template: str = "breast",
    full_tissue: bool = False,
    folds: int = 0,
    tears: int = 0,
) -> Anatomy:
    """Grow the anatomy of one section.

    Parameters
    ----------
    seed, section
        The course's seed and the section's name; together they decide everything random.
    size_um
        (width, height) of the image field; 200 um at least each way.
    style
        Name in STYLES or a :class:`Style`.
    template
        Organ; a key of TEMPLATES.
    full_tissue
        No glass at all (for small test fields).
    folds, tears
        How many of each run across the section.

    Raises
    ------
    CourseError
        Unknown style or template, or a field too small.
    """
    if template not in TEMPLATES:
        raise CourseError(f"template {template!r}", f"one of {', '.join(TEMPLATES)}", "choose a known template")
    if isinstance(style, str):
        if style not in STYLES:
            raise CourseError(f"style {style!r}", f"one of {', '.join(STYLES)}", "choose a known style")
        style = STYLES[style]
    if min(size_um) < 200:
        raise CourseError(f"a section of {size_um[0]:g} x {size_um[1]:g} um", "200 um or more each way",
                          "enlarge size_um")
    ground = Ground(seed, section, size_um, style)
    fields, domain = TEMPLATES[template](ground, full_tissue, folds, tears)
    size = (float(size_um[0]), float(size_um[1]))
    return Anatomy(template, seed, section, size, ground.step, fields, domain, style)


__all__ = ["Anatomy", "DOMAINS", "GRID_UM", "STYLES", "Style", "TEMPLATES", "grow"]

"""How the H&E of a virtual Xenium section lies against the instrument's frame: turn, mirror, scale and a gentle warp.

Two frames, both in microns with the origin at a picture's upper left corner, x to the right and y downwards: ``he``,
the frame the tissue is grown and stained in (divide by the H&E's um/px for its pixels), and ``xenium``, that of the
instrument's tables and of the DAPI picture. The map goes from the first to the second,

    p_xenium = M (p_he + w(p_he)) + t,    M = scale x turn x (mirror of x),

because the H&E is drawn where the tissue was grown and everything else follows: no picture is ever resampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers import settings

WARP_LENGTH_UM = 160.0
"""Correlation length of the warp: sections stretch over tenths of a millimetre, not from nucleus to nucleus."""
_WAVES = 48


@dataclass(frozen=True)
class Frame:
    """One section's map from the H&E frame to the instrument's.

    Attributes
    ----------
    angle_deg, scale, mirrored
        Turn from x towards y, factor, and whether x is mirrored first.
    warp_um
        Standard deviation of the warp along each axis, um; 0 for none.
    origin_um
        Shift t, um.
    """

    angle_deg: float
    scale: float
    mirrored: bool
    warp_um: float
    origin_um: tuple[float, float] = (0.0, 0.0)
    _waves: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def linear(self) -> np.ndarray:
        """M, float64 (2, 2), acting on columns (x, y)."""
        angle = np.deg2rad(self.angle_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return self.scale * turn @ np.diag([-1.0 if self.mirrored else 1.0, 1.0])

    def warp(self, xy_um) -> np.ndarray:
        """Return w at points of the H&E frame, float64 (n, 2) in um: a function of position alone."""
        xy_um = np.asarray(xy_um, float).reshape(-1, 2)
        if self.warp_um == 0:
            return np.zeros_like(xy_um)
        phase = xy_um @ self._waves["frequency"].T
        fields = np.hstack([np.cos(phase), np.sin(phase)]) @ self._waves["weight"]
        return self.warp_um * fields

    def to_xenium(self, xy_um) -> np.ndarray:
        """Map points (..., 2) of the H&E frame to the instrument's frame, both in um."""
        points = np.asarray(xy_um, float)
        flat = points.reshape(-1, 2)
        moved = (flat + self.warp(flat)) @ self.linear.T + np.asarray(self.origin_um)
        return moved.reshape(points.shape)

    def to_he(self, xy_um, *, rounds: int = 12) -> np.ndarray:
        """Map points (..., 2) of the instrument's frame back to the H&E frame, by fixed-point iteration (1e-6 um)."""
        points = np.asarray(xy_um, float)
        straight = (points.reshape(-1, 2) - np.asarray(self.origin_um)) @ np.linalg.inv(self.linear).T
        found = straight
        for _ in range(rounds if self.warp_um else 0):
            found = straight - self.warp(found)
        return found.reshape(points.shape)


def draw(*, seed: int, section: str, angle_deg: float, mirrored: bool, warp_um: float) -> Frame:
    """Draw the frame of one section: the planned angle +- 12 degrees, a scale of .97 to 1.03, and the warp's waves."""
    stream = settings.rng(seed, "xenium", "frame", section)
    angle, scale = angle_deg + stream.uniform(-12, 12), stream.uniform(0.97, 1.03)
    waves = {
        "frequency": stream.standard_normal((_WAVES, 2)) / WARP_LENGTH_UM,
        "weight": stream.standard_normal((2 * _WAVES, 2)) / np.sqrt(_WAVES),
    }
    return Frame(float(angle), float(scale), bool(mirrored), float(warp_um), (0.0, 0.0), waves)


def anchored(frame: Frame, polygons_um, margin_um: float) -> tuple[Frame, tuple[float, float]]:
    """Shift a frame so that all outlines lie ``margin_um`` inside the instrument's picture; return it and its size.

    Parameters
    ----------
    polygons_um
        float (n, vertices, 2), x, y in the H&E frame.

    Returns
    -------
    Frame, (width, height) in um
    """
    moved = frame.to_xenium(polygons_um).reshape(-1, 2)
    low, high = moved.min(0) - margin_um, moved.max(0) + margin_um
    return Frame(frame.angle_deg, frame.scale, frame.mirrored, frame.warp_um, tuple(-low), frame._waves), tuple(
        high - low
    )


def landmarks(frame: Frame, tissue: np.ndarray, grid_um: float, *, step_um: float = 25.0) -> np.ndarray:
    """Return true pairs on a lattice over the tissue, float64 (n, 4): x, y in the instrument's frame, then the H&E's.

    Parameters
    ----------
    tissue
        Bool (gy, gx) on a grid of ``grid_um`` in the H&E frame.
    """
    height, width = (side * grid_um for side in tissue.shape)
    axes = (np.arange(step_um, side, step_um) for side in (width, height))
    x, y = (grid.ravel() for grid in np.meshgrid(*axes))
    inside = tissue[(y / grid_um).astype(int), (x / grid_um).astype(int)]
    he = np.c_[x, y][inside]
    return np.hstack([frame.to_xenium(he), he])


def best_affine(source, target) -> np.ndarray:
    """Return the least-squares affine, float64 (3, 3) acting on columns (x, y, 1), from points to points (n, 2)."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    solved = np.linalg.lstsq(np.c_[source, np.ones(len(source))], target, rcond=None)[0]
    return np.vstack([solved.T, [0, 0, 1]])

"""Methods, registration: what a registration found, as an object and as a file.

``section_align`` puts it into a section (as SpatialData transformations) and writes and reads 10x's own file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import registration_images as images
from helpers.messages import CourseError
from helpers.registration_local import Warp


@dataclass(frozen=True)
class Alignment:
    """Where DAPI lies on the H&E: ``he = warp(A @ [dapi, 1])``, x, y in um.

    Attributes
    ----------
    matrix_um
        float64 (2, 3): A.
    dapi_um, he_um
        Microns per pixel of the two pictures at full resolution.
    source
        ``"sift"``, or where the transform it started from came from.
    warp
        :class:`Warp`, in um of the H&E; None where the affine is as good.
    inliers, matched, other_inliers
        Keypoints within 12 um of the first affine, matches before RANSAC, and inliers of the other mirror state; 0 with
        a start.
    residual_um, residual_p95_um
        Median and 95th percentile of the distance of blocks found again from where the fit *without them* puts them: an
        estimate of the error where there is tissue, finding error included.
    affine_residual_um
        The same median for the affine alone.
    agreement
        Share of blocks found again, 0 to 1.
    landmarks
        float64 (n, 4): x, y in um of DAPI, x, y in um of the H&E, of those blocks.
    warnings
        What a careful reader should look at.
    """

    matrix_um: np.ndarray
    dapi_um: float
    he_um: float
    source: str
    warp: Warp | None = None
    inliers: int = 0
    matched: int = 0
    other_inliers: int = 0
    residual_um: float = np.nan
    residual_p95_um: float = np.nan
    affine_residual_um: float = np.nan
    agreement: float = np.nan
    landmarks: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)), repr=False)
    warnings: tuple = ()

    @property
    def matrix(self):
        """float64 (3, 3): x, y in *pixels* of DAPI to pixels of the H&E; the affine part only."""
        return self.um_to_px @ np.diag([self.dapi_um, self.dapi_um, 1.0])

    @property
    def um_to_px(self):
        """float64 (3, 3): x, y in um of DAPI to pixels of the H&E; the affine part only. ``section_align`` takes it."""
        full = np.eye(3)
        full[:2] = self.matrix_um / self.he_um
        return full

    @property
    def mirrored(self) -> bool:
        """Whether one picture is the mirror image of the other."""
        return bool(np.linalg.det(self.matrix_um[:, :2]) < 0)

    @property
    def scale(self) -> float:
        """Geometric mean scale; 1 where both pixel sizes are right."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix_um[:, :2]))))

    @property
    def anisotropy(self) -> float:
        """Larger over smaller singular value; 1 without shear and stretch."""
        values = np.linalg.svd(self.matrix_um[:, :2])[1]
        return float(values[0] / max(values[1], 1e-12))

    @property
    def angle_deg(self) -> float:
        """Rotation as seen, clockwise, -180 to 180, of DAPI's x axis (after un-mirroring: x is mirrored first)."""
        (a, _), (c, _) = self.matrix_um[:, :2] * (-1 if self.mirrored else 1)
        return float(np.degrees(np.arctan2(c, a)))

    def to_he(self, xy_um, *, warp: bool = True):
        """Return um of the H&E, float64 (n, 2), of places in um of DAPI (cells, transcripts)."""
        place = np.asarray(xy_um, float) @ self.matrix_um[:, :2].T + self.matrix_um[:, 2]
        return place + self.warp.displacement(place) if warp and self.warp is not None and len(place) else place

    def to_he_px(self, xy_um):
        """Return :meth:`to_he` in pixels of the full-resolution H&E: the ``warp`` of ``section_align.align``."""
        return self.to_he(xy_um) / self.he_um

    def to_dapi(self, xy_um):
        """Return um of DAPI of places in um of the H&E: the inverse of :meth:`to_he`."""
        place = np.asarray(xy_um, float)
        place = self.warp.undo(place) if self.warp is not None and len(place) else place
        return np.linalg.solve(self.matrix_um[:, :2], (place - self.matrix_um[:, 2]).T).T

    def dapi_on_he(self, dapi, shape, um: float, *, warp: bool = True, origin_um=(0.0, 0.0)):
        """Return DAPI resampled onto a window of the H&E, float32 ``shape`` (y, x) at ``um`` a pixel, 0 outside.

        Parameters
        ----------
        dapi
            (y, x); anything sliceable by rows. It is reduced to ``um`` first.
        origin_um
            x, y of the window's corner on the H&E.
        """
        from scipy.ndimage import map_coordinates

        small, um_xy = images.reduce(dapi, self.dapi_um, um)
        x, y = np.meshgrid(*((np.arange(n) + 0.5) * um + start for n, start in zip(shape[::-1], origin_um)))
        places = np.stack([x.ravel(), y.ravel()], axis=1)
        plain = self if warp else Alignment(self.matrix_um, self.dapi_um, self.he_um, self.source)
        at = plain.to_dapi(places) / um_xy - 0.5
        return map_coordinates(small, at[:, ::-1].T, order=1, cval=0.0).reshape(shape).astype(np.float32)

    def save(self, path) -> None:
        """Write everything but the landmarks as JSON."""
        known = {
            "direction": "DAPI to H&E, x, y, um from the top-left corner", "matrix_um": self.matrix_um.tolist(),
            "matrix_px": self.matrix.tolist(), "mirrored": self.mirrored,
            **{name: getattr(self, name) for name in _NUMBERS}, "warnings": list(self.warnings), "warp": None,
        }  # fmt: skip
        known = {name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in known.items()}
        if self.warp is not None:
            known["warp"] = {
                "origin_um": self.warp.origin_um.tolist(), "step_um": self.warp.step_um,
                "bandwidth_um": self.warp.bandwidth_um, "field": np.round(self.warp.field, 3).tolist(),
            }  # fmt: skip
        Path(path).write_text(json.dumps(known), encoding="utf-8")


_NUMBERS = (
    "dapi_um", "he_um", "source", "inliers", "matched", "other_inliers", "residual_um", "residual_p95_um",
    "affine_residual_um", "agreement",
)  # fmt: skip


def load(path) -> Alignment:
    """Read what :meth:`Alignment.save` wrote."""
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = {name: np.nan if known[name] is None else known[name] for name in _NUMBERS}
        warp = known["warp"]
        if warp is not None:
            grid = np.array(warp["field"], np.float32)
            warp = Warp(np.array(warp["origin_um"]), warp["step_um"], grid, warp["bandwidth_um"])
        return Alignment(np.array(known["matrix_um"]), warp=warp, warnings=tuple(known["warnings"]), **numbers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(f"no alignment ({error})", "a file of Alignment.save", "register again", file=path) from None

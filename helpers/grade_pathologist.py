"""Examiner's room: a virtual pathologist, who draws an outline on a screenshot of a slide, made from the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from helpers import section as sec
from helpers.messages import CourseError

EYE_UM = 120.0
"""The pathologist sees tumour as a density, blurred by this much (standard deviation); nests are not outlined."""
PEN_RGB = (200, 40, 45)
PEN_RANGE = (0, 0, 150, 110, 110, 255)
"""The pen's colour range in SpaCell's order: B G R low, B G R high."""


@dataclass(frozen=True)
class Drawing:
    """A screenshot with a drawn line, and what is true of it.

    ``scale``, ``angle_deg``, ``x``, ``y`` are those of ``annotation.Registration``; ``area`` is the outlined area as a
    shapely geometry in full-resolution pixels of the slide.
    """

    picture: np.ndarray = field(repr=False)
    is_open: bool
    scale: float
    angle_deg: float
    x: float
    y: float
    area: object = field(repr=False)


def draw(section, truth, *, is_open=False, angle_deg=0.0, width_px=420, share=0.8, pen_px=4, seed=0, domains=None):
    """Draw an outline round the tumour on a low-resolution screenshot of a part of the slide.

    The pathologist outlines where tumour (with carcinoma in situ) is dense, not every nest: the largest area whose
    blurred share of tumour exceeds two thirds of that in its densest places. A closed outline is the whole border; an
    open one leaves off a stretch of at most a fifth of it.

    Parameters
    ----------
    section, truth
        A virtual section and its truth.
    angle_deg
        The screenshot is turned by this much.
    width_px
        Width of the screenshot; it shows ``share`` of the slide's side.
    domains
        Names of the domains outlined.

    Returns
    -------
    Drawing
    """
    from helpers import settings

    rng = settings.rng(seed, "pathologist", truth.section_id, is_open)
    rows, columns = sec.shape(section)
    contour = _border(truth, domains or ("tumour", "in_situ"), sec.mpp(section))
    scale = columns * share / width_px
    size = (width_px, round(rows * share / scale))
    c, s = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    linear = np.array([[c, -s], [s, c]])
    whole = np.array([columns, rows])
    middle = np.clip((contour.min(0) + contour.max(0)) / 2, whole * 0.45, whole * 0.55)
    corner = middle + rng.uniform(-0.02, 0.02, 2) * columns - linear @ np.array(size) / 2
    picture = _screenshot(section, linear, corner, size)
    drawn = np.linalg.solve(linear, (contour - corner).T).T
    inside = np.clip(drawn, pen_px, np.array(size) - pen_px - 1)  # a pen stays on the paper
    if is_open:
        inside = _leave_off(inside)
    line = np.rint(inside * 16 - 8).astype(np.int32)[:, None]
    cv2.polylines(picture, [line], not is_open, PEN_RGB, pen_px, cv2.LINE_AA, shift=4)
    from shapely import make_valid
    from shapely.geometry import Polygon

    area = make_valid(Polygon(inside @ linear.T + corner))
    return Drawing(picture, is_open, float(scale), float(angle_deg), float(corner[0]), float(corner[1]), area)


def _border(truth, domains, mpp):
    """Return the border of the largest dense region, float (n, 2), x, y in full-resolution pixels."""
    wanted = [truth.domains.index(name) for name in domains]
    mask = np.isin(truth.domain, wanted).astype(np.float32)
    reach = round(EYE_UM / truth.grid_um)
    framed = cv2.copyMakeBorder(mask, *[3 * reach] * 4, cv2.BORDER_CONSTANT, value=0)
    density = cv2.GaussianBlur(framed, (0, 0), reach)
    within = density[framed > 0]
    if not within.size:
        raise CourseError(f"no {' or '.join(domains)} in {truth.section_id}", "a region to outline", "other domains")
    dense = (density > 0.65 * np.quantile(within, 0.9)).astype(np.uint8)
    contours, _ = cv2.findContours(dense, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)[:, 0].astype(float)
    return (largest - 3 * reach + 0.5) * truth.grid_um / mpp


def _screenshot(section, linear, corner, size):
    """Return the slide as seen through the screenshot's pixels, uint8 RGB."""
    small, factor = sec.thumbnail(section, 1600)
    to_small = np.column_stack([linear, corner]) * factor
    to_small[:, 2] += to_small[:, :2] @ [0.5, 0.5] - 0.5  # from corners to pixel centres
    step = float(np.sqrt(np.linalg.det(to_small[:, :2])))
    if step > 1:
        small = cv2.GaussianBlur(small, (0, 0), step / 2)
    glass = np.percentile(small.reshape(-1, 3), 95, axis=0).tolist()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(small, to_small, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=glass)


def _leave_off(points):
    """Return the line without one stretch, between the two neighbouring corners of its convex hull farthest apart.

    So a hull closes the line again by the straight way between its ends, which is what an open outline means here.
    """
    hull = np.sort(cv2.convexHull(points.astype(np.float32), returnPoints=False).ravel())
    stretch = np.diff(np.append(hull, hull[0] + len(points)))
    way = np.linalg.norm(points[np.append(hull[1:], hull[0])] - points[hull], axis=1)
    way = np.where(stretch < 0.2 * len(points), way, -1)
    start = int(way.argmax())
    first, gone = hull[start], stretch[start]
    return np.roll(points, -(first + gone), axis=0)[: len(points) - gone + 1]


def errors(drawing, found, area) -> dict:
    """Return how far a registration and its outline are from what was drawn.

    Parameters
    ----------
    drawing
        From :func:`draw`.
    found
        Its ``annotation.Registration``.
    area
        The outline found, in full-resolution pixels of the slide.

    Returns
    -------
    dict
        ``scale`` in per cent, ``place`` of the picture's middle in pixels of the picture, ``angle`` in degrees,
        ``overlap`` (intersection over union).
    """
    middle = np.array(drawing.picture.shape[1::-1]) / 2
    c, s = np.cos(np.radians(drawing.angle_deg)), np.sin(np.radians(drawing.angle_deg))
    true = drawing.scale * np.array([[c, -s], [s, c]]) @ middle + [drawing.x, drawing.y]
    return {
        "scale": 100 * abs(found.scale / drawing.scale - 1),
        "place": float(np.linalg.norm(found.to_slide([middle])[0] - true)) / drawing.scale,
        "angle": abs(found.angle_deg - drawing.angle_deg),
        "overlap": area.intersection(drawing.area).area / area.union(drawing.area).area,
    }

"""Methods: where a low-resolution picture lies on the slide: sliding window over scales and angles, then refined."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from helpers.messages import CourseError

N_SCALES = 20
SMALLEST = 0.1
"""The smallest scale tried: the picture as wide (or high) as this share of the slide (SpaCell: 10 %)."""
COARSE_PX = 500
MIN_DETAIL = 0.4
"""A place whose ``detail`` is below this is no match. Tissue against glass alone makes two pictures correlate by 0.7;
the detail of wrong places stays below 0.1, that of right ones reaches 0.9."""
DETAIL_PX = 6.0

SURE = 0.7
"""A place whose ``detail`` is above this is the place: no other need be tried."""


@dataclass(frozen=True)
class Registration:
    """Where a picture lies: ``slide_xy = scale * R(angle) @ picture_xy + (x, y)``, slide at full resolution.

    Both sides are x, y in pixels measured from the top-left corner of the top-left pixel. ``angle_deg`` turns the
    picture clockwise as seen. ``correlation`` is the normalised correlation coefficient at that place, at the
    picture's resolution; ``detail`` is the same of what is finer than about ten pixels of the picture. ``curve``
    holds (scale, best correlation) of every scale tried.
    """

    scale: float
    x: float
    y: float
    angle_deg: float
    correlation: float
    detail: float
    curve: np.ndarray = field(repr=False, default=None)

    @property
    def matrix(self):
        """Float (2, 3), the same as a matrix."""
        return _similarity(self.scale, self.angle_deg, self.x, self.y)

    def to_slide(self, xy):
        """Return slide pixels of picture pixels, float (n, 2)."""
        return np.asarray(xy, float) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def polygons(self, geometry):
        """Return a shapely geometry of the picture in slide pixels."""
        from shapely.affinity import affine_transform

        (a, b, x), (c, d, y) = self.matrix
        return affine_transform(geometry, [a, b, c, d, x, y])


def _similarity(scale, angle_deg, x, y):
    c, s = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    return np.array([[c, -s, x], [s, c, y]])


def register(picture, slide, *, slide_factor=1.0, hide=None, n_scales=N_SCALES, smallest=SMALLEST, max_angle_deg=10.0):
    """Find a low-resolution picture of a part of the slide on the slide.

    The picture slides over a reduced slide at ``n_scales`` scales, from ``smallest`` of the slide's side to the largest
    that fits, and at small angles; the best normalised correlation coefficient wins (``cv2.matchTemplate``). Then
    scale, angle and place are refined together at the picture's resolution by maximising the same coefficient
    (Evangelidis and Psarakis, 2008; ``cv2.findTransformECC``).

    Parameters
    ----------
    picture, slide
        uint8 RGB (y, x, 3). The slide may be reduced by ``slide_factor`` (full-resolution pixels per pixel of it).
    hide
        Bool (y, x) of the picture: the drawn line, painted over before matching.
    max_angle_deg
        Angles searched, to either side.

    Returns
    -------
    Registration
        In full-resolution pixels.

    Raises
    ------
    CourseError
        A picture or slide of one colour, or a best place whose detail agrees by less than ``MIN_DETAIL``.
    """
    if hide is not None and np.any(hide):
        wide = cv2.dilate(np.asarray(hide, np.uint8), np.ones((3, 3), np.uint8))
        picture = cv2.inpaint(np.ascontiguousarray(picture), wide, 3, cv2.INPAINT_TELEA)
    small, large = (cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY) for rgb in (picture, slide))
    for name, grey in (("picture", small), ("slide", large)):
        if grey.std() < 1:
            raise CourseError(f"a {name} of one colour", "tissue", "check which file was given")
    fits = min(large.shape[0] / small.shape[0], large.shape[1] / small.shape[1])
    scales = np.geomspace(smallest, 1.0, n_scales) * fits
    step = 4.0
    angles = np.arange(-(max_angle_deg // step), max_angle_deg // step + 1) * step
    tried = np.array([(*_slide_over(small, large, scale, angle), scale, angle) for angle in angles for scale in scales])
    curve = np.column_stack([scales * slide_factor, tried[:, 0].reshape(len(angles), -1).max(0)])
    refined, step_of_scale = [], (1 / smallest) ** (1 / (n_scales - 1))
    for row in tried[np.argsort(-tried[:, 0])][:3]:  # the best three, in case two places look alike when coarse
        near = [
            (*_slide_over(small, large, scale, angle), scale, angle)
            for scale in row[3] * step_of_scale ** np.array([-0.5, -0.25, 0, 0.25, 0.5]) if scale <= fits
            for angle in row[4] + np.array([-step / 3, 0, step / 3])
        ]  # fmt: skip
        _, x, y, scale, angle = max(near)
        matrix = _refine(small, large, _similarity(scale, angle, x, y))
        refined.append((*_agreement(small, large, matrix), matrix))
        if refined[-1][1] > SURE:
            break
    correlation, detail, matrix = max(refined, key=lambda place: place[1])
    if not detail >= MIN_DETAIL:
        raise CourseError(
            f"a correlation of {correlation:.2f}, of fine detail {detail:.2f}",
            f"{MIN_DETAIL:g} or more of fine detail",
            "check that the picture shows this slide, not mirrored, and turned by less than the angle searched",
        )  # fmt: skip
    scale = float(np.sqrt(np.linalg.det(matrix[:, :2])))
    angle = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    x, y = matrix[:, 2] * slide_factor
    return Registration(scale * slide_factor, float(x), float(y), angle, correlation, detail, curve)


def _shrink(grey, factor):
    size = (max(4, round(grey.shape[1] / factor)), max(4, round(grey.shape[0] / factor)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor >= 1 else cv2.INTER_LINEAR)


def _slide_over(small, large, scale, angle):
    """Return the best correlation at one scale and angle, and x, y on ``large`` of the picture's corner."""
    reduce = max(max(large.shape) / COARSE_PX, 1.0)
    field_ = _shrink(large, reduce)
    template = _shrink(small, reduce / scale)
    rows, columns = field_.shape
    middle = ((columns - 1) / 2, (rows - 1) / 2)
    turn = cv2.getRotationMatrix2D(middle, angle, 1.0)  # turns the slide back, so that the picture stays upright
    if angle:
        field_ = cv2.warpAffine(field_, turn, (columns, rows), borderMode=cv2.BORDER_REPLICATE)
    template = template[:rows, :columns]
    match = cv2.matchTemplate(field_, template, cv2.TM_CCOEFF_NORMED)
    match[~np.isfinite(match)] = -1
    _, best, _, (column, row) = cv2.minMaxLoc(match)
    x, y = cv2.invertAffineTransform(turn) @ [column, row, 1]
    return best, (x + 0.5) * large.shape[1] / columns - 0.5 * scale, (y + 0.5) * large.shape[0] / rows - 0.5 * scale


def _agreement(small, large, matrix):
    """Return the correlation of the picture with the slide beneath it, and that of their detail."""
    factor = max(np.sqrt(abs(np.linalg.det(matrix[:, :2]))), 1.0)
    ground = _shrink(large, factor)
    warp = matrix * np.array([[ground.shape[1] / large.shape[1]], [ground.shape[0] / large.shape[0]]])
    warp[:, 2] += warp[:, :2] @ [0.5, 0.5] - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    beneath = cv2.warpAffine(ground, warp, small.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    pair = [grey.astype(np.float32) for grey in (small, beneath)]
    fine = [cv2.GaussianBlur(grey, (0, 0), 1) - cv2.GaussianBlur(grey, (0, 0), DETAIL_PX) for grey in pair]
    return tuple(float(np.nan_to_num(np.corrcoef(*(grey.ravel() for grey in two))[0, 1])) for two in (pair, fine))


def _refine(small, large, matrix):
    """Maximise the correlation over similarities from a first guess, coarse to fine; return the matrix."""
    for reduce in (4.0, 2.0, 1.0):
        if min(small.shape) / reduce < 60:
            continue
        picture = _shrink(small, reduce)
        scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
        factor = max(scale * reduce, 1.0)  # bring the slide to the picture's resolution
        ground = _shrink(large, factor)
        into = np.array([[ground.shape[1] / large.shape[1]], [ground.shape[0] / large.shape[0]]])
        out_of = np.array([small.shape[1] / picture.shape[1], small.shape[0] / picture.shape[0]])
        warp = np.column_stack([matrix[:, :2] * out_of, matrix[:, 2]]) * into
        warp[:, 2] += warp[:, :2] @ [0.5, 0.5] - 0.5  # from corner coordinates to pixel centres
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-5)
        try:
            _, warp = cv2.findTransformECC(
                picture, ground, warp.astype(np.float32), cv2.MOTION_AFFINE, criteria, None, 5
            )
        except cv2.error:  # no convergence: this guess is wrong
            continue
        warp = warp.astype(float)
        warp[:, 2] -= warp[:, :2] @ [0.5, 0.5] - 0.5
        warp = warp / into
        matrix = _nearest_similarity(np.column_stack([warp[:, :2] / out_of, warp[:, 2]]), small.shape)
    return matrix


def _nearest_similarity(matrix, shape):
    """Return the similarity nearest to an affine, that moves the picture's middle to the same place."""
    a, b, c, d = matrix[:, :2].ravel()
    cosine, sine = (a + d) / 2, (c - b) / 2
    linear = np.array([[cosine, -sine], [sine, cosine]])
    middle = np.array([shape[1], shape[0]]) / 2
    return np.column_stack([linear, matrix[:, :2] @ middle + matrix[:, 2] - linear @ middle])

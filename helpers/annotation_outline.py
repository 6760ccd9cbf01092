"""Methods: from a drawn coloured line to polygons, at the resolution of the picture it is drawn on."""

from __future__ import annotations

import cv2
import numpy as np

from helpers.messages import CourseError

MIN_AREA_SHARE = 0.001
"""Areas smaller than this share of the picture are specks."""


def line_mask(picture, colour_range):
    """Return the pixels of the drawn line, bool (y, x).

    Parameters
    ----------
    picture
        uint8 RGB (y, x, 3).
    colour_range
        Six numbers 0-255 in SpaCell's order: **B G R** low, then **B G R** high; both ends belong to it.

    Raises
    ------
    CourseError
        Six numbers in the wrong order, or no pixel in the range.
    """
    limits = np.asarray(colour_range, float).ravel()
    if limits.size != 6 or (limits < 0).any() or (limits > 255).any() or (limits[:3] > limits[3:]).any():
        raise CourseError(
            f"a colour range {list(colour_range)}", "six numbers 0-255: B G R low, B G R high", "correct COLOUR_RANGE"
        )
    low, high = limits[:3][::-1], limits[3:][::-1]  # to R G B, only here
    mask = ((picture >= low) & (picture <= high)).all(-1)
    if not mask.any():
        vivid = picture.reshape(-1, 3)[np.ptp(picture.reshape(-1, 3).astype(int), axis=1).argmax()]
        raise CourseError(
            f"no pixel between B G R {limits[:3].astype(int).tolist()} and {limits[3:].astype(int).tolist()}",
            "the colour of the drawn line",
            f"the most vivid pixel is B G R {vivid[::-1].tolist()}: choose a range round it",
        )  # fmt: skip
    return mask


def outline(mask, *, is_open: bool):
    """Return the area a drawn line encloses, as a shapely geometry in pixels of the picture.

    A closed line is filled. An open one is closed by the convex hull of its longest piece, as SpaCell describes: line
    and hull together bound areas, and the largest of them is meant, so bays between line and hull stay outside.
    The border runs along the middle of the line.

    Parameters
    ----------
    mask
        Bool (y, x) of ``line_mask``.
    is_open
        Whether the line is left open.

    Raises
    ------
    CourseError
        Nothing is enclosed: a closed line was promised but it is open, or the line is a dot or straight.
    """
    from shapely import union_all
    from shapely.geometry import MultiPolygon, Polygon

    line = cv2.morphologyEx(np.asarray(mask, np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    line = cv2.copyMakeBorder(line, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    area = _within_open(line) if is_open else _within_closed(line)
    contours, tree = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    shapes = []
    for i, contour in enumerate(contours):
        if tree[0][i][3] >= 0 or len(contour) < 3 or cv2.contourArea(contour) < MIN_AREA_SHARE * area.size:
            continue
        holes = [contours[j][:, 0] - 1.5 for j in range(len(contours)) if tree[0][j][3] == i and len(contours[j]) > 3]
        shapes.append(Polygon(contour[:, 0] - 1.5, holes).buffer(0.5, join_style="mitre"))  # pixel centres to edges
    if not shapes:
        raise CourseError("a line that encloses nothing", "an outline", "check COLOUR_RANGE and OPEN_OUTLINE")
    merged = union_all(shapes)
    return merged if merged.geom_type == "MultiPolygon" else MultiPolygon([merged])


def _line_width(line) -> float:
    """Return the width of a drawn line in pixels: its area over its length (half its border)."""
    contours, _ = cv2.findContours(line, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return float(line.sum()) / max(sum(cv2.arcLength(c, True) for c in contours) / 2, 1.0) + 1.0


def _disc(radius: int):
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _within_closed(line):
    contours, tree = cv2.findContours(line, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(line)
    for i, contour in enumerate(contours):
        inner = [j for j in range(len(contours)) if tree[0][j][3] == i]
        if tree[0][i][3] < 0 and sum(cv2.contourArea(contours[j]) for j in inner) > MIN_AREA_SHARE * line.size:
            cv2.drawContours(filled, contours, i, 1, cv2.FILLED)
    if not filled.any():
        raise CourseError("a line that is not closed", "a closed outline", "set OPEN_OUTLINE = True")
    return cv2.erode(filled, _disc(round(_line_width(line) / 2)))


def _within_open(line):
    contours, _ = cv2.findContours(line, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    longest = max(contours, key=lambda contour: cv2.arcLength(contour, True))
    hull = np.zeros_like(line)
    cv2.fillPoly(hull, [cv2.convexHull(longest)], 1)
    drawn = np.zeros_like(line)
    cv2.drawContours(drawn, [longest], -1, 1, cv2.FILLED)
    if hull.sum() > 0 and drawn.sum() > 0.9 * hull.sum():
        drawn = line & hull  # closed after all: its filled contour is its own hull
    # the line must separate diagonally too, hence areas connected by edges only
    number, pieces, stats, _ = cv2.connectedComponentsWithStats(hull & ~drawn & 1, connectivity=4)
    if number < 2 or stats[1:, cv2.CC_STAT_AREA].max() < MIN_AREA_SHARE * line.size:
        raise CourseError("an open line that bounds no area", "a line that bends round one", "check COLOUR_RANGE")
    chosen = (pieces == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    return cv2.dilate(chosen, _disc(round(_line_width(line) / 2))) & hull

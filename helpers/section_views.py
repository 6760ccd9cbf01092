"""Customs: what can be read from a section. Points are **x, y**; arrays are **y, x**; images are **RGB**."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError


def level0(section):
    """Return the full-resolution H&E as a lazy DataArray (c, y, x)."""
    element = section.images["he"]
    return element["scale0"]["image"] if hasattr(element, "children") else element


def shape(section) -> tuple[int, int]:
    """Return (height, width) of the full-resolution H&E in pixels."""
    sizes = level0(section).sizes
    return int(sizes["y"]), int(sizes["x"])


def window(section, x0: int, y0: int, width: int, height: int):
    """Return one full-resolution window as uint8 RGB (height, width, 3); it must lie inside the image."""
    rows, columns = shape(section)
    if not (0 <= x0 and 0 <= y0 and x0 + width <= columns and y0 + height <= rows and width > 0 and height > 0):
        raise CourseError(
            f"a window x {x0}..{x0 + width}, y {y0}..{y0 + height}",
            f"inside the image of {columns} x {rows} px",
            "clip it, or drop the tile",
        )
    return _pixels(section, level0(section).data[:, y0 : y0 + height, x0 : x0 + width])


def _picture_file(section):
    return section.attrs.get("image_file", section.attrs.get("source"))


def _pixels(section, lazy):
    """Return lazy pixels (3, y, x) as an array (y, x, 3); a picture on disk may prove damaged only now."""
    try:
        return np.ascontiguousarray(np.moveaxis(lazy.compute(), 0, 2))
    except (OSError, RuntimeError, ValueError) as error:  # what imagecodecs, zarr and the file system raise
        seen = f"a part of the image that cannot be decoded ({error})"
        raise CourseError(seen, "a whole image", "copy it again", file=_picture_file(section)) from None


def image(section):
    """Return the whole full-resolution H&E as uint8 RGB (y, x, 3)."""
    rows, columns = shape(section)
    return window(section, 0, 0, columns, rows)


def thumbnail(section, max_px: int = 1200):
    """Return a reduced H&E (uint8 RGB, y, x, 3) with its longer side at most ``max_px``, and its scale.

    The scale multiplies full-resolution pixels: ``xy_thumbnail = xy_px * scale``.
    """
    import cv2

    full_rows, full_columns = shape(section)
    element = section.images["he"]
    level = level0(section)
    if hasattr(element, "children"):
        for name in element.children:
            candidate = element[name]["image"]
            if max(candidate.sizes["y"], candidate.sizes["x"]) >= max_px:
                level = candidate
    small = _pixels(section, level.data)
    scale = min(1.0, max_px / max(full_rows, full_columns))
    size = (max(1, round(full_columns * scale)), max(1, round(full_rows * scale)))
    if size != (small.shape[1], small.shape[0]):
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    return small, scale


def counts(section):
    """Return the table of raw counts (AnnData, spots x genes)."""
    return section.tables["counts"]


def xy(section):
    """Return the spot centres, float array (n_spots, 2): **x, y** in full-resolution pixels."""
    return np.asarray(counts(section).obsm["spatial"], float)


def mpp(section) -> float:
    """Return microns per pixel of the full-resolution H&E."""
    return float(section.attrs["mpp"])


def um_to_px(section, um: float) -> float:
    """Convert a length from microns to full-resolution pixels."""
    return um / mpp(section)

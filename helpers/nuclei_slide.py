"""Methods, nuclei: a whole section, window by window, without double nuclei and in bounded memory."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import section as sec
from helpers.messages import CourseError
from helpers.nuclei_match import outlines
from helpers.nuclei_morphology import COLUMNS, morphology
from helpers.nuclei_watershed import FLOOR, NUCLEUS_UM2, haematoxylin, level_of, watershed

WINDOW_PX, MARGIN_UM = 1024, 20.0


def section_level(section, *, stains=None, white_point=(255.0, 255.0, 255.0), windows: int = 16) -> float:
    """Return one haematoxylin level for a whole section, Otsu's over a grid of windows round its spots.

    A tile's own level depends on what it happens to hold: one without nuclei would find some. See
    :func:`helpers.nuclei.watershed`, ``level``.
    """
    points, (rows, columns) = sec.xy(section), sec.shape(section)
    side = min(192, rows, columns)
    chosen = points[np.linspace(0, len(points) - 1, min(windows, len(points))).astype(int)]
    corners = np.clip(chosen - side / 2, 0, [columns - side, rows - side]).astype(int)
    seen = [haematoxylin(sec.window(section, x, y, side, side), stains=stains, white_point=white_point)
            for x, y in corners.tolist()]  # fmt: skip
    return level_of(np.stack(seen)) if seen else FLOOR


def segment_section(
    section, *, box=None, engine=watershed, nucleus_um2: float = NUCLEUS_UM2, stains=None,
    white_point=(255.0, 255.0, 255.0), level: float | None = None, window_px: int = WINDOW_PX,
    with_outlines: bool = False, **options,
):  # fmt: skip
    """Segment the nuclei of a section and measure them.

    Windows overlap by 20 um. A nucleus is kept by the window whose core holds its centroid, so none comes twice and
    none is cut; only one window is in memory.

    Parameters
    ----------
    section
        A checked section.
    box
        Optional (x0, y0, width, height) in full-resolution pixels; default the whole picture.
    engine
        Function of (rgb, mpp=...) that returns a label image; the watershed uses the level of the whole section.
    level
        See :func:`section_level`, which is the default.
    window_px
        Side of a window, in pixels.
    with_outlines
        Also return the outlines (more memory: some 300 bytes a nucleus).

    Returns
    -------
    pandas.DataFrame
        One row a nucleus as ``nuclei.morphology``, ``x``, ``y`` in full-resolution pixels; with ``with_outlines`` also
        the column ``outline`` (shapely polygons in full-resolution pixels).
    """
    (rows, columns), mpp = sec.shape(section), sec.mpp(section)
    x0, y0, width, height = (0, 0, columns, rows) if box is None else (int(v) for v in box)
    margin = round(MARGIN_UM / mpp)
    if window_px <= 4 * margin:
        raise CourseError(f"windows of {window_px} px", f"more than {4 * margin}", "use larger windows")
    colours = {"stains": stains, "white_point": white_point}
    if engine is watershed:
        level = section_level(section, **colours) if level is None else level
        options = {**options, **colours, "level": level, "nucleus_um2": nucleus_um2}
    core, parts = window_px - 2 * margin, []
    for top in range(y0, y0 + height, core):
        for left in range(x0, x0 + width, core):
            right, bottom = min(left + core, x0 + width), min(top + core, y0 + height)
            a, b = max(left - margin, 0), max(top - margin, 0)
            rgb = sec.window(section, a, b, min(right + margin, columns) - a, min(bottom + margin, rows) - b)
            labels = engine(rgb, mpp=mpp, **options)
            table = morphology(labels, rgb, mpp=mpp, **colours)
            table["x"] += a
            table["y"] += b
            own = (table["x"] >= left) & (table["x"] < right) & (table["y"] >= top) & (table["y"] < bottom)
            table = table[own]
            if with_outlines:
                shapes = outlines(np.where(np.isin(labels, table.index), labels, 0), origin=(a, b))
                table = table.assign(outline=[shapes[label] for label in table.index])
            parts.append(table)
    names = [*COLUMNS, "outline"] if with_outlines else list(COLUMNS)
    parts = [part for part in parts if len(part)]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names, dtype=float)
    found.index = pd.RangeIndex(1, len(found) + 1, name="label")
    return found

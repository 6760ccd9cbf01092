"""Front office: is a whole slide fit for prediction? Focus, ink and tissue, block by block, and what to say of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

BLOCK_PX, MARGIN_UM = 1024, 60.0
"""Side of what is measured at once, and how far beyond it is looked: the windows of ``slideqc`` are 50 um wide."""
MOST_BLURRY, MOST_PEN, LEAST_MM2 = 0.5, 0.01, 0.05
"""Above these shares of the tissue and of the slide, and below this area, a user is told. Nothing is left out."""
FEWEST, FAR = 5, 5.0
"""So many slides make a cohort; a value this many (scaled) median deviations from its median is far off."""


def measure(slide, thumbnail) -> dict:
    """Return ``tissue_mm2``, ``blurry`` (share of the tissue) and ``pen`` (share of the slide).

    Only blocks that hold something darker than glass are read, one at a time, at the coarsest level ``slideqc`` takes.

    Parameters
    ----------
    slide
        A ``wsi.Slide``.
    thumbnail
        (uint8 RGB (y, x, 3), pixels per pixel of level 0), as ``wsi.thumbnail`` returns it.

    Returns
    -------
    dict
        Empty where the slide has over 2.5 um a pixel: too coarse to judge.
    """
    from helpers import slideqc

    coarsest = slideqc.WORK_MPP * 1.25
    fit = [(factor, level) for level, (_, _, factor) in enumerate(slide.levels) if slide.mpp * factor <= coarsest]
    if not fit:
        return {}
    factor, level = max(fit)
    rows, columns, _ = slide.levels[level]
    mpp, picture, scale = slide.mpp * factor, thumbnail[0].astype(np.float32), thumbnail[1] * factor
    bright = picture.mean(2)
    glass = np.maximum(picture[bright >= np.quantile(bright, 0.9)].mean(0), 150)
    dark = -np.log((bright + 1) / (glass.mean() + 1)) > slideqc.TISSUE_OD
    margin, found = int(MARGIN_UM / mpp), np.zeros(3)
    for top in range(0, rows, BLOCK_PX):
        for left in range(0, columns, BLOCK_PX):
            low, high = np.array([top, left]), np.minimum([top + BLOCK_PX, left + BLOCK_PX], [rows, columns])
            y0, x0 = np.floor(low * scale).astype(int)
            y1, x1 = np.ceil(high * scale).astype(int)
            if not dark[y0:y1, x0:x1].any():
                continue
            begin, end = np.maximum(low - margin, 0), np.minimum(high + margin, [rows, columns])
            block = slide.read(int(begin[1]), int(begin[0]), *map(int, (end - begin)[::-1]), level=level)
            masks = slideqc.masks(block, mpp, glass=glass)
            step = np.array(masks["tissue"].shape) / (end - begin)
            (y0, x0), (y1, x1) = (np.rint((edge - begin) * step).astype(int) for edge in (low, high))
            found += [masks[name][y0:y1, x0:x1].sum() * masks["mpp"] ** 2 for name in ("tissue", "blurry", "pen")]
    tissue, blurry, pen = found
    return {"tissue_mm2": float(tissue / 1e6), "blurry": float(blurry / tissue) if tissue else 1.0,
            "pen": float(pen / (rows * columns * mpp**2))}  # fmt: skip


def warnings(row: dict) -> list[str]:
    """Return what a user should know of one slide, in words; ``row`` holds what :func:`measure` found, and more."""
    said = []
    if row.get("blurry", 0) > MOST_BLURRY:
        said.append(f"{row['blurry']:.0%} of the tissue is out of focus")
    if row.get("pen", 0) > MOST_PEN:
        said.append(f"{row['pen']:.0%} of the slide is under ink")
    if row.get("tissue_mm2", 1) < LEAST_MM2:
        said.append(f"{row['tissue_mm2']:.2f} mm2 of tissue")
    return said


def outliers(rows: list[dict]) -> dict[str, str]:
    """Return the slides far from the others and why: area of tissue, darkness of its tiles, predicted expression.

    Parameters
    ----------
    rows
        One dict a slide; ``slide`` names it. Of fewer than :data:`FEWEST` nothing is said.
    """
    table, said = pd.DataFrame(rows), {}
    for name, word in (("tissue_mm2", "area of tissue"), ("darkness", "staining"), ("predicted", "prediction")):
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        held = np.log(values.where(values > 0)).dropna()
        spread = 1.4826 * (held - held.median()).abs().median()
        if len(held) < FEWEST or not spread > 0:
            continue
        for k in held.index[(held - held.median()).abs() > FAR * spread]:
            text = f"{word} {values[k]:.3g}, median {values[held.index].median():.3g}"
            said[table.loc[k, "slide"]] = "; ".join(filter(None, [said.get(table.loc[k, "slide"]), text]))
    return said

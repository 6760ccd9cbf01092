"""Examiner's room: nuclei with their scores, for QuPath."""

from __future__ import annotations

import numpy as np

from helpers.export_nuclei import nuclei_writer

COLOURS = {"high": (178, 24, 43), "low": (33, 102, 172), "middle": (200, 200, 200)}


def scored_writer(table, *, score: str, share: float = 0.2):
    """Return a function that writes scored nuclei as QuPath detections (GeoJSON, full-resolution pixels).

    Parameters
    ----------
    table
        One row a nucleus: ``outline`` (shapely polygon, x, y in full-resolution pixels; see ``nuclei.outlines``) and
        numbers. Every number becomes a measurement QuPath can filter and colour by.
    score
        The column that decides the class: the highest ``share`` of all nuclei are ``high`` if their score is positive,
        the lowest ``low`` if it is negative, the rest ``middle``.
    """
    values = table[score].to_numpy(float)
    top, bottom = np.quantile(values, [1 - share, share]) if len(values) else (0.0, 0.0)
    high, low = (values >= top) & (values > 0), (values <= bottom) & (values < 0)
    names = np.where(high, "high", np.where(low, "low", "middle"))
    rings = [np.asarray(outline.exterior.coords)[:-1] for outline in table["outline"]]
    numbers = table.drop(columns="outline").select_dtypes("number")
    return nuclei_writer(rings, names, numbers, colours=COLOURS)

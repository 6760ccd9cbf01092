"""Sources: cells that Space Ranger 4 segments itself. ``readers`` and the files named ``readers_*`` are one room."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.readers_files import unreadable
from helpers.readers_visium_hd_files import bin_matrix


def vendor_cells(folder: Path, box=None):
    """Return Space Ranger 4's cells: AnnData (cells x genes) and their outlines, shapely, full-resolution pixels.

    Parameters
    ----------
    folder
        ``segmented_outputs/``, with ``filtered_feature_cell_matrix.h5`` and ``cell_segmentations.geojson``.
    box
        x0, y0, x1, y1: cells with their middle outside are left out.
    """
    import shapely

    matrix, outlines = folder / "filtered_feature_cell_matrix.h5", folder / "cell_segmentations.geojson"
    for path in (matrix, outlines):
        if not path.is_file():
            seen = f"segmented_outputs/ without {path.name}"
            raise CourseError(seen, "matrix and outlines of the cells", "copy the whole folder", file=folder)
    try:
        entries = json.loads(outlines.read_text(encoding="utf-8"))["features"]
        names = [f"cellid_{int(entry['properties']['cell_id']):09d}-1" for entry in entries]
        shapes = np.array([shapely.geometry.shape(entry["geometry"]) for entry in entries], object)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise unreadable(outlines, repr(error)) from None
    known = pd.Series(shapes, index=names)
    known = known[~known.index.duplicated()]
    if box is not None:
        middle = shapely.centroid(known.to_numpy())
        x, y = shapely.get_x(middle), shapely.get_y(middle)
        known = known[(x >= box[0]) & (y >= box[1]) & (x < box[2]) & (y < box[3])]
    table = bin_matrix(matrix, known.index)
    if not table.n_obs:
        raise CourseError(
            f"no cell of the matrix among {len(known)} outlines (such as {names[0] if names else 'none'})",
            "the same cell ids", "take both files from one run, or crop where cells are", file=folder,
        )  # fmt: skip
    return table, known.loc[table.obs_names].to_numpy()

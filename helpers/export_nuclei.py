"""Examiner's room: typed nuclei for QuPath and for napari."""

from __future__ import annotations

import json

import numpy as np

from helpers import section as sec
from helpers.messages import CourseError

COLOURS = {
    "immune": (0, 114, 178), "stromal": (0, 158, 115), "cancer_epithelial": (213, 94, 0), "endothelial": (230, 159, 0),
}  # fmt: skip


def nuclei_writer(outlines_px, names, measurements=None, *, colours=None):
    """Return a function that writes nuclei as QuPath detections (GeoJSON), one a line, so that memory stays flat.

    Parameters
    ----------
    outlines_px
        List of float (v, 2), x, y in pixels of the full-resolution H&E; not closed.
    names
        Class of each; "" for none.
    measurements
        DataFrame, one row a nucleus: numbers QuPath shows beside it, such as the probability of its class.
    colours
        Class -> (R, G, B).

    Raises
    ------
    CourseError
        Numbers of outlines, names and rows that differ.
    """
    names, colours = list(names), {**COLOURS, **(colours or {})}
    rows = [{}] * len(names) if measurements is None else measurements.to_dict("records")
    if not len(outlines_px) == len(names) == len(rows):
        seen = f"{len(outlines_px)} outlines, {len(names)} names, {len(rows)} rows"
        raise CourseError(seen, "one each", "take them from one table")

    def feature(outline, name, row):
        ring = np.round(np.asarray(outline, float), 2).tolist()
        properties = {"objectType": "detection", "measurements": {k: round(float(v), 4) for k, v in row.items()}}
        if name:
            properties["classification"] = {"name": str(name), "color": list(colours.get(name, (128, 128, 128)))}
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    def write(path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for number, one in enumerate(zip(outlines_px, names, rows)):
                file.write((",\n" if number else "\n") + json.dumps(feature(*one), allow_nan=False))
            file.write("\n]}\n")

    return write


def shapes(section, nuclei):
    """Return the nuclei found as SpatialData shapes in H&E pixels, with class, its probabilities and entropy."""
    import shapely
    from spatialdata.transformations import get_transformation

    from helpers import section_cells

    mpp = sec.mpp(section)
    polygons = [shapely.Polygon(outline / mpp) for outline in nuclei.outlines]
    kept = nuclei.table.filter(regex="^(class|entropy|area_um2|p_.*)$")
    extra = {name: kept[name].to_numpy() for name in kept}
    systems = get_transformation(section.shapes["cells"], get_all=True)
    return section_cells.outlines(polygons, np.arange(len(polygons)), extra, systems)

"""Examiner's room: segmented cells with their domains and types as files - a table, QuPath outlines, a section.

Inside the course cells live in microns. QuPath and napari want pixels of the H&E: the one conversion is here, through
``mpp``; a crop's corner comes back where the whole picture is meant (:func:`full_frame`).
"""

from __future__ import annotations

import json

import numpy as np

from helpers import section as sec
from helpers.messages import CourseError


def _text(values):
    return np.array(["" if one is None or one != one else str(one) for one in np.asarray(values, object)], object)


def cells_table(cells, *, mpp: float, names=None, scores=None, facts=None):
    """Return the cells as AnnData that scanpy, CELLxGENE and R read: raw counts, names as categories, places twice.

    Parameters
    ----------
    cells
        AnnData of raw counts, ``obsm["spatial"]`` um; not changed.
    mpp
        um per pixel of the H&E.
    names
        Column -> name of each cell (n,): domains, types. "" and NaN are missing values.
    scores
        Name -> DataFrame (n, k), index as the cells: kept in ``obsm``, its columns in ``uns["<name>_columns"]``.
    facts
        Dict of text and numbers for ``uns["visium_hd"]``.

    Returns
    -------
    AnnData
        ``X`` raw counts (CSR int32); ``obsm["spatial"]`` um (``uns["spatial_unit"]``), ``["spatial_px"]`` pixels
        of the section's own picture (of a crop: its own, as in ``section.zarr``).

    Raises
    ------
    CourseError
        Lengths or indices that differ, cells not in microns, counts that are not whole.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    unit = cells.uns.get("spatial_unit", "um")
    counts = sparse.csr_matrix(cells.X)
    if unit != "um" or (counts.nnz and np.any(counts.data != np.rint(counts.data))):
        seen = f"places in {unit}" if unit != "um" else "counts that are not whole"
        raise CourseError(seen, "raw counts, places in um", "pass the cells as segmented")
    obs = cells.obs.copy()
    for column, values in (names or {}).items():
        values = _text(values)
        if len(values) != cells.n_obs:
            raise CourseError(f"{len(values)} names in {column!r}", f"{cells.n_obs}, one a cell", "match them first")
        obs[column] = pd.Categorical(np.where(values == "", None, values))
    out = anndata.AnnData(counts.astype(np.int32), obs=obs, var=cells.var.copy())
    out.obsm["spatial"] = np.asarray(cells.obsm["spatial"], float)
    out.obsm["spatial_px"] = out.obsm["spatial"] / mpp
    for name, table in (scores or {}).items():
        if not table.index.equals(cells.obs_names):
            raise CourseError(f"scores {name!r} of other cells", "the same cells, same order", "reindex them")
        out.obsm[name] = table.to_numpy(np.float32)
        out.uns[f"{name}_columns"] = [str(one) for one in table.columns]
    out.uns["spatial_unit"], out.uns["mpp"] = "um", float(mpp)
    if facts:
        out.uns["visium_hd"] = dict(facts)
    return out


def _rings(polygons, wanted, what) -> list:
    """Return outlines in um, in the order of ``wanted`` (cell ids) if the polygons have an index; largest part only."""
    if hasattr(polygons, "index") and hasattr(polygons, "geometry"):
        missing = [one for one in wanted if one not in polygons.index]
        if missing:
            raise CourseError(f"{len(missing)} {what} without an outline", "one each", f"look for {missing[0]!r}")
        polygons = polygons.geometry.loc[list(wanted)]
    rings = []
    for one in polygons:
        one = max(one.geoms, key=lambda part: part.area) if hasattr(one, "geoms") else one
        ring = np.asarray(one.exterior.coords if hasattr(one, "exterior") else one, float)[:, :2]
        rings.append(ring[:-1] if len(ring) > 3 and np.array_equal(ring[0], ring[-1]) else ring)
    if len(rings) != len(wanted):
        raise CourseError(f"{len(rings)} outlines, {len(wanted)} {what}", "one each", "take both from one table")
    return rings


def full_frame(section) -> dict:
    """Return ``mpp`` and ``origin_px`` for :func:`geojson_writer`: of the whole full-resolution H&E, also of a crop."""
    facts = section.attrs
    corner = tuple(float(side) for side in facts.get("crop", (0, 0))[:2])
    return {"mpp": sec.mpp(section) * float(facts.get("image_scale", 1.0)), "origin_px": corner}


def geojson_writer(
    polygons, table, *, mpp: float, origin_px=(0.0, 0.0), colour_by: str, also=(), measurements=(), colours=None
):  # fmt: skip
    """Return a function that writes cells as QuPath detections (GeoJSON, pixels of the full H&E), one a line.

    Parameters
    ----------
    polygons
        Outlines in **um**: GeoDataFrame indexed by cell id, or arrays or shapely polygons in the table's order.
    table
        AnnData of :func:`cells_table` (or any with ``obs``).
    mpp, origin_px
        um per pixel of the full H&E, and x, y of the origin of the microns in its pixels (:func:`full_frame`).
    colour_by
        Column of ``obs`` that becomes QuPath's classification.
    also
        Further columns of names, kept in the properties (``"domain": "D3"``) for other readers, and, joined, as the
        object's name, which QuPath shows.
    measurements
        Columns of numbers, QuPath's measurements.
    colours
        Name -> "#RRGGBB"; grey otherwise.
    """
    from matplotlib.colors import to_rgb

    asked = [colour_by, *also, *measurements]
    missing = [one for one in asked if one not in table.obs]
    if missing:
        raise CourseError(f"no column {missing[0]!r} in obs", ", ".join(table.obs), "name another")
    rings = _rings(polygons, list(table.obs_names), "cells")
    kinds = _text(table.obs[colour_by])
    paint = {name: [round(255 * part) for part in to_rgb((colours or {}).get(name, "#808080"))] for name in set(kinds)}
    other = {column: _text(table.obs[column]) for column in also}
    number = {column: table.obs[column].to_numpy(float) for column in measurements}

    def feature(place):
        ring = np.round(rings[place] / mpp + np.asarray(origin_px), 2).tolist()
        values = {column: round(float(one[place]), 4) for column, one in number.items() if np.isfinite(one[place])}
        properties = {"objectType": "detection", "cell_id": str(table.obs_names[place]), "measurements": values}
        more = {column: str(one[place]) for column, one in other.items() if one[place]}
        if more:
            properties |= {"name": " · ".join(more.values()), **more}
        if kinds[place]:
            properties["classification"] = {"name": str(kinds[place]), "color": paint[kinds[place]]}
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    def write(path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for place in range(len(rings)):
                file.write((",\n" if place else "\n") + json.dumps(feature(place), allow_nan=False, ensure_ascii=False))
            file.write("\n]}\n")

    return write


def section_with_cells(section, polygons, table):
    """Return a new section of the H&E, the 8 um bins, and the cells as polygons joined to their table.

    The 2 um and 16 um bins stay out: a quarter of a million squares that the vendor's folder has already.

    Parameters
    ----------
    section
        Visium HD section of the course; not changed.
    polygons
        Outlines in **um**, as in :func:`geojson_writer`.
    table
        AnnData of :func:`cells_table`.

    Returns
    -------
    spatialdata.SpatialData
        ``images["he"]``; ``shapes["spots"]`` with ``tables["counts"]``; ``shapes["cells"]`` (pixels, both coordinate
        systems) with ``tables["cell_counts"]``.
    """
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import get_transformation

    mpp = sec.mpp(section)
    rings = _rings(polygons, list(table.obs_names), "cells")
    frame = GeoDataFrame({"geometry": [shapely.Polygon(ring / mpp) for ring in rings]}, index=np.arange(len(rings)))
    systems = get_transformation(section.shapes["spots"], get_all=True)
    cells = table.copy()
    cells.uns.pop("spatialdata_attrs", None)
    cells.obs["cell_id"], cells.obs["region"] = cells.obs_names.astype(str), "cells"
    cells.obs["region"] = cells.obs["region"].astype("category")
    cells.obs["instance_id"] = np.arange(cells.n_obs)
    cells.obsm["spatial_um"], cells.obsm["spatial"] = cells.obsm["spatial"], cells.obsm["spatial"] / mpp
    cells.obsm.pop("spatial_px", None)
    cells.uns["spatial_unit"] = "px"
    parsed = TableModel.parse(cells, region="cells", region_key="region", instance_key="instance_id")
    return SpatialData(
        images={"he": section.images["he"]},
        shapes={"spots": section.shapes["spots"], "cells": ShapesModel.parse(frame, transformations=systems)},
        tables={"counts": section.tables["counts"], "cell_counts": parsed}, attrs=dict(section.attrs),
    )  # fmt: skip

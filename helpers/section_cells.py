"""Customs: a section of cells with outlines (Xenium), before and after its H&E is registered.

Two coordinate systems, and each element has only those that are known. ``"um"`` is the instrument's frame in microns,
``"pixel"`` the full-resolution H&E. Before registration cells, nuclei, transcripts and DAPI have ``"um"`` alone and the
H&E ``"pixel"`` alone: no transform between them is known, so none is written, and ``obsm["spatial"]`` (H&E pixels) is
absent. ``section_align.align`` takes a transform and returns the section of the contract: cells and nuclei moved to H&E
pixels, ``obsm["spatial"]`` filled, both systems on every element. ``obsm["spatial_um"]`` always holds the instrument's
centres.

A point at (x, y) um lies at (x, y) / um_px pixels, where pixel 0 covers 0 to 1: origins are corners, not centres.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError
from helpers.section import _picture, check
from helpers.section_checks import check_counts, check_mpp, safe_id


def outlines(polygons, index, extra, transformations):
    """Return polygons as SpatialData shapes with further columns ``extra``."""
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(
        GeoDataFrame({**extra, "geometry": polygons}, index=index), transformations=transformations
    )


def build_cells(
    *, counts, xy_um, section_id, subject_id, dataset, source, image=None, mpp=None, mpp_source="", dapi=None,
    dapi_um_px=None, cells=None, nuclei=None, nuclei_owner=None, transcripts=None, extra=None,
):  # fmt: skip
    """Assemble the section of an instrument that measures cells, its H&E not yet registered.

    Parameters
    ----------
    counts
        AnnData, cells x genes, raw counts; ``obs_names`` are the cells' names. Taken over, not copied.
    xy_um
        float (cells, 2): x, y of the centres in the instrument's frame, um.
    image, mpp, mpp_source
        H&E uint8 RGB (y, x, 3), array or lazy; its nominal um per pixel (None where no file says it) and who says so.
    dapi, dapi_um_px
        Levels of the DAPI picture, full resolution first, each (y, x) unsigned integers, array or lazy; um per pixel.
    cells, nuclei, nuclei_owner
        Arrays of shapely polygons in um: one per cell, in the order of ``counts``; nuclei any number, with the row of
        the cell each belongs to. Without ``cells``, circles of 5 um stand for them.
    transcripts
        Data frame (pandas or dask) with ``x``, ``y``, ``feature_name``, ..., um.
    extra
        Further attributes.

    Returns
    -------
    spatialdata.SpatialData
    """
    import dask.array as da
    import shapely
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel, TableModel
    from spatialdata.transformations import Identity, Scale

    safe_id(section_id)
    check_counts(counts.X, file=source)
    in_um = {"um": Identity()}
    xy_um = np.asarray(xy_um, float).reshape(-1, 2)
    images, shapes, points = {}, {}, {}
    if image is not None:
        lazy = da.from_array(image, chunks=(2048, 2048, 3)).transpose(2, 0, 1)
        images["he"] = _picture(lazy, {"pixel": Identity()})
        if mpp is not None:
            check_mpp(mpp, file=source)
    if dapi is not None:
        check_mpp(dapi_um_px, file=source)
        levels = [da.from_array(level, chunks=(2048, 2048))[None] for level in dapi]
        images["dapi"] = one_channel(levels, {"um": Scale([dapi_um_px] * 2, axes=("x", "y"))})
    instances = np.arange(counts.n_obs)
    if cells is None:
        cells = shapely.buffer(shapely.points(xy_um), 5.0, quad_segs=4)
    shapes["cells"] = outlines(cells, instances, {}, in_um)
    if nuclei is not None and len(nuclei):  # SpatialData has no empty shapes
        owner = {"cell": instances if nuclei_owner is None else np.asarray(nuclei_owner)}
        shapes["nuclei"] = outlines(nuclei, np.arange(len(nuclei)), owner, in_um)
    if transcripts is not None:
        points["transcripts"] = PointsModel.parse(
            transcripts, coordinates={"x": "x", "y": "y"}, feature_key="feature_name", transformations=in_um
        )
    counts.X = sparse.csr_matrix(counts.X)
    counts.obs["region"] = "cells"
    counts.obs["region"] = counts.obs["region"].astype("category")
    counts.obs["instance_id"] = instances
    counts.obs["section_id"], counts.obs["subject_id"] = section_id, subject_id
    counts.obsm["spatial_um"] = xy_um
    table = TableModel.parse(counts, region="cells", region_key="region", instance_key="instance_id")
    attrs = {
        "section_id": section_id, "subject_id": subject_id, "platform": "xenium", "dataset": dataset,
        "mpp": None if mpp is None else float(mpp), "mpp_source": mpp_source, "source": str(source),
        "dapi_um_px": None if dapi is None else float(dapi_um_px), "registered": False, **(extra or {}),
    }  # fmt: skip
    return SpatialData(images=images, shapes=shapes, points=points, tables={"counts": table}, attrs=attrs)


def build_registered(
    *, counts, image, mpp, mpp_source, section_id, subject_id, dataset, source, radius_px=8.0, extra=None
):
    """Assemble a section whose cells came with H&E pixels and no outline (discs of ``radius_px`` stand for them).

    Parameters
    ----------
    counts
        AnnData, cells x genes, raw counts, with ``obsm["spatial"]``: x, y in pixels of ``image``.
    mpp
        um per pixel, or None where nobody says: then there is no system ``"um"``.
    """
    import dask.array as da
    import shapely
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import Identity, Scale

    safe_id(section_id)
    systems = {"pixel": Identity()}
    if mpp is not None:
        systems["um"] = Scale([mpp, mpp], axes=("x", "y"))
    lazy = da.from_array(image, chunks=(2048, 2048, 3)).transpose(2, 0, 1)
    instances = np.arange(counts.n_obs)
    counts.X = sparse.csr_matrix(counts.X)
    counts.obs["region"] = "cells"
    counts.obs["region"] = counts.obs["region"].astype("category")
    counts.obs["instance_id"] = instances
    counts.obs["section_id"], counts.obs["subject_id"] = section_id, subject_id
    discs = shapely.buffer(shapely.points(counts.obsm["spatial"]), radius_px, quad_segs=4)
    section = SpatialData(
        images={"he": _picture(lazy, dict(systems))},
        shapes={"cells": outlines(discs, instances, {}, dict(systems))},
        tables={"counts": TableModel.parse(counts, region="cells", region_key="region", instance_key="instance_id")},
        attrs={
            "section_id": section_id, "subject_id": subject_id, "platform": "xenium", "dataset": dataset, "mpp": mpp,
            "mpp_source": mpp_source, "source": str(source), "registered": True, **(extra or {}),
        },
    )  # fmt: skip
    return section if mpp is None else check(section)


def one_channel(levels, transformations):
    """Return a multiscale SpatialData image of a pyramid of lazy arrays (1, y, x), its stored levels kept."""
    from spatialdata.models import Image2DModel

    factors = [2] * (len(levels) - 1) or None
    picture = Image2DModel.parse(
        levels[0], dims=("c", "y", "x"), c_coords=["dapi"], scale_factors=factors, transformations=transformations
    )
    for number, stored in enumerate(levels[1:], 1):
        coarse = picture[f"scale{number}"]["image"]
        if coarse.shape == stored.shape:  # else SpatialData's own means stand
            coarse.data = stored
    return picture


def dapi_levels(section) -> list:
    """Return the levels of the DAPI picture, full resolution first, as lazy DataArrays (c, y, x)."""
    if "dapi" not in section.images:
        raise CourseError(
            "no DAPI", "a section with images['dapi']", "copy morphology_focus* into outs/",
            file=section.attrs.get("source"),
        )  # fmt: skip
    element = section.images["dapi"]
    return [element[name]["image"] for name in element.children] if hasattr(element, "children") else [element]


def dapi(section, um_px: float | None = None):
    """Return the DAPI picture, (y, x) as stored, and its um per pixel: the coarsest level not coarser than ``um_px``.

    ``um_px`` None: full resolution. To come to exactly ``um_px``, resize by the ratio of the two.
    """
    levels = dapi_levels(section)
    full = levels[0].sizes["x"]
    sizes = [section.attrs["dapi_um_px"] * full / level.sizes["x"] for level in levels]
    chosen = 0 if um_px is None else max(i for i, size in enumerate(sizes) if i == 0 or size <= um_px * 1.001)
    try:
        picture = levels[chosen].data[0].compute()
    except (OSError, RuntimeError, ValueError) as error:  # what imagecodecs, zarr and the file system raise
        seen = f"a DAPI picture that cannot be decoded ({error})"
        where = section.attrs.get("dapi_file")
        raise CourseError(seen, "a whole image", "copy it again", file=where) from None
    return picture, float(sizes[chosen])

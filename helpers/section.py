"""Customs: the one Section object of the course, a :class:`spatialdata.SpatialData`.

This is the room's front door: it builds and alters sections, and offers what its other files hold (``section_views``
reads, ``section_checks`` judges, ``section_splits`` splits). Each convention on axes and units is converted in exactly
one function of the room.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError
from helpers.section_checks import (
    MPP_RANGE,
    SPOT_DIAMETER_UM,
    SPOT_PITCH_UM,
    alignment_score,
    check,
    check_counts,
    check_mpp,
    pitch_px,
    rgb8,
    safe_id,
    spots_on_tissue,
)
from helpers.section_splits import folds, split
from helpers.section_views import counts, image, level0, mpp, shape, thumbnail, um_to_px, window, xy

__all__ = [
    "MPP_RANGE", "SPOT_DIAMETER_UM", "SPOT_PITCH_UM", "alignment_score", "build", "check", "check_counts",
    "check_mpp", "counts", "folds", "image", "keep_spots", "level0", "move_spots", "mpp", "pitch_px", "recolour",
    "rgb8", "safe_id", "shape", "split", "spots_on_tissue", "thumbnail", "um_to_px", "window", "xy",
]  # fmt: skip

_CHUNK = 2048
_STEP = 4
"""Each level of the picture is this many times smaller than the one before."""


def _picture(lazy, transformations):
    """Return the multiscale SpatialData image of a lazy uint8 array (3, y, x)."""
    from spatialdata.models import Image2DModel

    shorter = min(lazy.shape[1:])
    factors = [_STEP, _STEP] if shorter >= 2048 else ([_STEP] if shorter >= 512 else None)
    picture = Image2DModel.parse(
        lazy,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=factors,
        chunks=(3, _CHUNK, _CHUNK),
        transformations=transformations,
    )
    for level in range(1, 1 + len(factors or ())):  # spatialdata cuts the means off, half a grey value lost per level
        finer, coarse = (picture[f"scale{number}"]["image"] for number in (level - 1, level))
        chunks = ((3,), *(tuple(side // _STEP for side in sides) for sides in finer.data.chunks[1:]))
        means = finer.data.map_blocks(_shrink, chunks=chunks, meta=np.empty((0, 0, 0), np.uint8))
        coarse.data = means.rechunk(coarse.data.chunksize)
    return picture


def _shrink(block):
    """Return a uint8 block (3, y, x) with each square of ``_STEP`` pixels replaced by its rounded mean."""
    import cv2

    rows, columns = (side // _STEP for side in block.shape[1:])
    if not (rows and columns):
        return np.empty((3, rows, columns), np.uint8)
    whole = np.ascontiguousarray(np.moveaxis(block[:, : rows * _STEP, : columns * _STEP], 0, 2))
    return np.moveaxis(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), 2, 0)


def build(
    *, image, counts, xy_px, mpp, mpp_source, platform, section_id, subject_id, dataset, source, spot_diameter_um=None
):
    """Assemble and check a section.

    Parameters
    ----------
    image
        uint8 RGB array (y, x, 3): the full-resolution H&E.
    counts
        AnnData, spots x genes, raw integer counts; ``obs`` may carry labels. Taken over, not copied.
    xy_px
        Float array (n_spots, 2): x, y of the spot centres in pixels of ``image``, origin top-left.
    mpp
        Microns per pixel of ``image``.
    mpp_source
        Where ``mpp`` comes from, in words (it is never guessed silently).
    platform
        ``"visium"``, ``"st"`` or ``"st2k"`` (later rooms add ``"xenium"`` and ``"visium_hd"``).
    section_id, subject_id, dataset, source
        Names; the subject is the patient or the animal.
    spot_diameter_um
        Defaults to the platform's.

    Returns
    -------
    spatialdata.SpatialData

    Raises
    ------
    CourseError
        From :func:`check`.
    """
    import dask.array as da
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    safe_id(section_id)
    check_mpp(mpp, file=source)
    diameter = SPOT_DIAMETER_UM[platform] if spot_diameter_um is None else float(spot_diameter_um)
    to_systems = {"pixel": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))}
    lazy = da.from_array(image, chunks=(_CHUNK, _CHUNK, 3)).transpose(2, 0, 1)  # (y, x, c) -> (c, y, x), only here
    picture = _picture(lazy, to_systems)
    xy_px = np.asarray(xy_px, float).reshape(-1, 2)
    if len(xy_px) != counts.n_obs:
        raise CourseError(
            f"{len(xy_px)} positions for {counts.n_obs} spots", "one each", "join the tables", file=source
        )
    if not np.isfinite(xy_px).all():
        raise CourseError("spots without a position", "x and y for every spot", "drop or repair them", file=source)
    counts.X = sparse.csr_matrix(counts.X)
    instances = np.arange(counts.n_obs)
    counts.obs["region"] = "spots"
    counts.obs["region"] = counts.obs["region"].astype("category")
    counts.obs["instance_id"] = instances
    counts.obs["section_id"] = section_id
    counts.obs["subject_id"] = subject_id
    counts.obsm["spatial"] = xy_px
    spots = ShapesModel.parse(xy_px, geometry=0, radius=diameter / mpp / 2, index=instances, transformations=to_systems)
    table = TableModel.parse(counts, region="spots", region_key="region", instance_key="instance_id")
    section = SpatialData(
        images={"he": picture},
        shapes={"spots": spots},
        tables={"counts": table},
        attrs={
            "section_id": section_id,
            "subject_id": subject_id,
            "platform": platform,
            "dataset": dataset,
            "mpp": float(mpp),
            "mpp_source": mpp_source,
            "spot_diameter_um": diameter,
            "source": str(source),
        },
    )
    return check(section)


def move_spots(section, new_xy):
    """Return a section with the same image and counts but other spot centres, unchecked (the traps use it).

    Parameters
    ----------
    new_xy
        Float array (n_spots, 2), x, y in full-resolution pixels.
    """
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    table = counts(section).copy()
    table.obsm["spatial"] = np.asarray(new_xy, float)
    old = section.shapes["spots"]
    systems = get_transformation(old, get_all=True)
    if "radius" in old:
        spots = ShapesModel.parse(
            table.obsm["spatial"], geometry=0, radius=float(old["radius"].iloc[0]), index=old.index,
            transformations=systems,
        )  # fmt: skip
    else:  # squares of Visium HD
        import shapely

        by = table.obsm["spatial"] - xy(section)
        corners, owner = shapely.get_coordinates(old.geometry.to_numpy(), return_index=True)
        shapes = shapely.set_coordinates(old.geometry.to_numpy().copy(), corners + by[owner])
        spots = ShapesModel.parse(type(old)({"geometry": shapes}, index=old.index), transformations=systems)
    return SpatialData(
        images={"he": section.images["he"]},
        shapes={"spots": spots},
        tables={"counts": table},
        attrs=dict(section.attrs),
    )


def keep_spots(section, names):
    """Return a section with the same image and only the spots ``names``, in that order."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    table = counts(section)[list(names)].copy()
    table.uns.pop("spatialdata_attrs", None)
    spots = section.shapes["spots"].loc[table.obs["instance_id"]]
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    return SpatialData(
        images={"he": section.images["he"]},
        shapes={"spots": spots},
        tables={"counts": table},
        attrs=dict(section.attrs),
    )


def recolour(section, function):
    """Return a section whose H&E is ``function`` of the old one, pixel by pixel and lazily, unchecked.

    Parameters
    ----------
    function
        Maps a uint8 block (3, y, x) to a uint8 block of the same shape.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import get_transformation

    old = section.images["he"]
    lazy = level0(section).data.map_blocks(function, dtype=np.uint8)
    return SpatialData(
        images={"he": _picture(lazy, get_transformation(old, get_all=True))},
        shapes={"spots": section.shapes["spots"]},
        tables={"counts": counts(section)},
        attrs=dict(section.attrs),
    )

"""Customs: cells placed on the H&E by a transform (Xenium), and the transform written and read as 10x does.

See ``section_cells`` for the two coordinate systems. All matrices act on columns (x, y, 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.messages import CourseError, note
from helpers.section import _picture, check
from helpers.section_cells import dapi_levels, one_channel, outlines
from helpers.section_checks import check_mpp
from helpers.section_views import counts, level0, shape


def _affine(matrix):
    """Return a SpatialData affine of x, y from a 3 x 3 matrix acting on columns (x, y, 1)."""
    from spatialdata.transformations import Affine

    return Affine(np.asarray(matrix, float), input_axes=("x", "y"), output_axes=("x", "y"))


def matrix3(matrix, *, file=None) -> np.ndarray:
    """Return an affine as float64 (3, 3); (2, 3) is completed; refuse what cannot be an affine of the plane."""
    matrix = np.asarray(matrix, float)
    if matrix.shape == (2, 3):
        matrix = np.vstack([matrix, [0, 0, 1]])
    proper = matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.allclose(matrix[2], [0, 0, 1])
    if not proper or abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise CourseError(
            f"a transform {np.array2string(matrix, precision=3, threshold=9)}",
            "an invertible affine, 2 x 3 or 3 x 3 with last row 0 0 1",
            "register the pair again, or export the alignment again",
            file=file,
        )
    return matrix


def apply(matrix, xy) -> np.ndarray:
    """Apply a 3 x 3 affine to points (..., 2), x and y."""
    return np.asarray(xy, float) @ matrix[:2, :2].T + matrix[:2, 2]


def align(section, um_to_px, *, warp=None, source: str = "registration"):
    """Return the section with its cells on the H&E: the section of the contract.

    Parameters
    ----------
    section
        From :func:`build_cells`; it must have an H&E.
    um_to_px
        Affine from the instrument's frame (um) to full-resolution H&E pixels, float (3, 3) or (2, 3), acting on columns
        (x, y, 1).
    warp
        A refinement: function of float (n, 2) points in um giving float (n, 2) H&E pixels. It moves centres and
        outlines; pictures and transcripts, which SpatialData places by a transform, keep the affine.
    source
        Where the transform comes from, in words.

    Returns
    -------
    spatialdata.SpatialData
        ``images["he"]``, ``images["dapi"]``, ``shapes["cells"]``, ``shapes["nuclei"]`` (in H&E pixels),
        ``points["transcripts"]``; every element in the systems ``"pixel"`` and ``"um"``. ``attrs["mpp"]`` is the
        transform's: microns of the instrument per H&E pixel. Cells whose centre lies outside the H&E are left out, said
        on stderr and listed in ``attrs["outside"]``.

    Raises
    ------
    CourseError
        No H&E; a matrix that is no affine; no cell on the H&E; a scale more than twice off the stated pixel size.
    """
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import Identity, Scale, set_transformation

    where, facts = section.attrs.get("source"), dict(section.attrs)
    if "he" not in section.images:
        raise CourseError("no H&E", "a section with images['he']", "place the H&E beside outs/", file=where)
    if facts.get("registered"):
        raise CourseError("a section that is registered already", "a raw one", "read the folder again", file=where)
    matrix = matrix3(um_to_px, file=where)
    um_px = float(1 / np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    check_mpp(um_px, file=where)
    if facts["mpp"] and not 0.5 < um_px / facts["mpp"] < 2:
        raise CourseError(
            f"a transform of {um_px:.3g} um per pixel for an H&E of {facts['mpp']:.3g}",
            "about the same",
            "check the direction (um to H&E pixels) and the pixel sizes",
            file=where,
        )

    def move(xy):
        flat = np.asarray(xy, float).reshape(-1, 2)
        return apply(matrix, flat) if warp is None else np.asarray(warp(flat), float)

    table = counts(section).copy()
    table.uns.pop("spatialdata_attrs", None)
    table.obsm["spatial"] = move(table.obsm["spatial_um"])
    rows, columns = shape(section)
    x, y = table.obsm["spatial"].T
    kept = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
    if not kept.any():
        seen = f"none of {len(kept)} cells on the H&E"
        raise CourseError(seen, "cells that lie on it", "the transform is wrong; register again", file=where)
    facts["outside"] = [str(name) for name in table.obs_names[~kept]]
    if facts["outside"]:
        note(f"note: {facts['section_id']}: {len(facts['outside'])} of {len(kept)} cells outside the H&E left out")
    table = table[kept].copy()
    systems = {"pixel": Identity(), "um": _affine(np.linalg.inv(matrix))}
    old, shapes = section.shapes, {}
    instances = table.obs["instance_id"].to_numpy()
    moved = shapely.transform(old["cells"].geometry.to_numpy()[kept], move)
    shapes["cells"] = outlines(moved, instances, {}, systems)
    if "nuclei" in old:
        chosen = np.isin(old["nuclei"]["cell"], instances)
        if chosen.any():
            moved = shapely.transform(old["nuclei"].geometry.to_numpy()[chosen], move)
            owner = {"cell": old["nuclei"]["cell"].to_numpy()[chosen]}
            shapes["nuclei"] = outlines(moved, old["nuclei"].index[chosen], owner, systems)
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    facts.update(mpp=um_px, mpp_source=f"scale of the transform ({source})", registered=True, um_to_px=matrix.tolist())
    images = {"he": _picture(level0(section).data, systems)}  # made anew: the raw section keeps its own transforms
    if "dapi" in section.images:
        um = facts["dapi_um_px"]
        to_px = _affine(matrix @ np.diag([um, um, 1.0]))
        levels = [level.data for level in dapi_levels(section)]
        images["dapi"] = one_channel(levels, {"um": Scale([um, um], axes=("x", "y")), "pixel": to_px})
    points = {}
    if "transcripts" in section.points:
        points["transcripts"] = section.points["transcripts"].copy()
        both = {"um": Identity(), "pixel": _affine(matrix)}
        set_transformation(points["transcripts"], both, set_all=True)
    return check(SpatialData(images=images, shapes=shapes, points=points, tables={"counts": table}, attrs=facts))


# ---------------------------------------------------------------- 10x's file
def write_alignment(file, um_to_px, *, dapi_um_px: float) -> None:
    """Write ``*_he_imagealignment.csv`` as Xenium Explorer does: H&E pixels to DAPI pixels, 3 x 3, no header.

    Parameters
    ----------
    um_to_px
        Affine from the instrument's um to H&E pixels, (3, 3) or (2, 3).
    dapi_um_px
        um per DAPI pixel (0.2125).
    """
    inverse = np.linalg.inv(matrix3(um_to_px, file=file))
    to_dapi = np.diag([1 / dapi_um_px, 1 / dapi_um_px, 1.0]) @ inverse
    part = Path(f"{file}.part")
    np.savetxt(part, to_dapi, delimiter=",", fmt="%.12g")
    part.replace(file)


def read_alignment(file, *, dapi_um_px: float) -> np.ndarray:
    """Return the affine from the instrument's um to H&E pixels, float64 (3, 3), of a ``*_he_imagealignment.csv``."""
    try:
        to_dapi = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        fix = "export it again from Xenium Explorer"
        raise CourseError(f"a file that is no table of numbers ({error})", "3 x 3 numbers", fix, file=file) from None
    to_um = np.diag([dapi_um_px, dapi_um_px, 1.0]) @ matrix3(to_dapi, file=file)
    return np.linalg.inv(to_um)

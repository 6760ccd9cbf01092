"""Methods, Visium HD: the course's section as sopa wants it, and sopa's cells back in microns.

sopa keeps a cell's place in the frame of the *shapes* it came from: pixels of the (cropped) picture after StarDist,
microns after ProSeg. :func:`cells` is the one place of the course where that is settled. It never guesses: every set
of shapes carries its own transformation to the system ``"um"``, and that transformation is used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import numpy as np

from helpers.messages import CourseError, note

UM_SYSTEMS = ("um", "microns")
"""Names of the system in microns: the course's, and the one sopa's readers give."""


# ---------------------------------------------------------------- to sopa
def for_sopa(section, *, image: str = "he", table: str = "bins_2um"):
    """Return what sopa needs of a section, as a SpatialData of its own. Pixels and counts are shared, not copied.

    Parameters
    ----------
    section
        Of the course (or a crop of one by ``spatialdata.bounding_box_query``): a picture and bins, all with a
        transformation to ``"um"``.
    image, table
        Names of the picture to segment and of the table of the smallest bins.

    Returns
    -------
    spatialdata.SpatialData
        The picture, the squares of the bins (which have the system ``"microns"`` now) and the table; ``attrs`` name
        both to sopa. What sopa writes lands here; the section stays as it was.

    Raises
    ------
    CourseError
        No such picture or table, no transformation to microns, counts that are not whole, fewer than 100 bins.
    """
    import anndata
    from scipy import sparse
    from spatialdata import SpatialData

    for kind, name, found in (("picture", image, section.images), ("table", table, section.tables)):
        if name not in found:
            raise CourseError(
                f"no {kind} {name!r} among {sorted(found)}", "a Visium HD section with its 2 um bins",
                "read the folder that holds binned_outputs/square_002um", file=section.attrs.get("source"),
            )  # fmt: skip
    bins = section.tables[table]
    joint = bins.uns["spatialdata_attrs"]
    regions = joint["region"] if isinstance(joint["region"], (list, tuple)) else [joint["region"]]
    squares = section.shapes[regions[0]]
    if len(regions) != 1 or bins.n_obs < 100:
        raise CourseError(f"{bins.n_obs} bins in {len(regions)} regions", "one region of 100 bins or more",
                          "crop a larger window")  # fmt: skip
    counts = bins.X if isinstance(bins.X, sparse.csr_matrix) else sparse.csr_matrix(bins.X)
    if counts.data.size and (counts.data.min() < 0 or (counts.data[:10_000] % 1).any()):
        raise CourseError(f"counts such as {counts.data.min():g}", "raw whole counts", "do not normalise before sopa")
    shared = anndata.AnnData(X=counts, obs=bins.obs.copy(), var=bins.var, obsm=dict(bins.obsm), uns=dict(bins.uns))
    squares = _with_microns(squares)
    return SpatialData(
        images={image: section.images[image]}, shapes={regions[0]: squares}, tables={table: shared},
        attrs={**section.attrs, "cell_segmentation_image": image, "bins_table": table},
    )  # fmt: skip


def _with_microns(squares):
    """Return the same squares in a new frame that knows the system ``"microns"`` too."""
    from spatialdata.transformations import get_transformation, set_transformation

    systems = get_transformation(squares, get_all=True)
    to_um = next((systems[name] for name in UM_SYSTEMS if name in systems), None)
    if to_um is None:
        raise CourseError(f"systems {sorted(systems)}", "a transformation to microns", "read the section again")
    twin = squares.copy(deep=False)
    twin.attrs = {**squares.attrs, "transform": dict(squares.attrs["transform"])}
    for name in UM_SYSTEMS:
        set_transformation(twin, to_um, name)
    return twin


def crop(sdata, box_um):
    """Return what of a SpatialData (:func:`for_sopa`, segmented or not) lies in a window, x0, y0, x1, y1 in um."""
    from spatialdata import bounding_box_query

    box = np.asarray(box_um, float)
    part = bounding_box_query(sdata, min_coordinate=box[:2], max_coordinate=box[2:], axes=("x", "y"),
                              target_coordinate_system="um", filter_table=True)  # fmt: skip
    part.attrs.update(sdata.attrs)
    return part


def recount(sdata, section, *, shapes_key: str, expand_radius_ratio: float = 1.0):
    """Return the cells of another measurement of the same picture: the outlines of ``sdata``, counts of ``section``.

    Parameters
    ----------
    sdata
        Holds ``shapes[shapes_key]``, found on the picture that both share.

    Returns
    -------
    anndata.AnnData
        As :func:`cells`, by expansion without overlap.
    """
    import sopa

    other = for_sopa(section)
    other.shapes[shapes_key] = sdata.shapes[shapes_key]
    with scratch(other):
        options = {"expand_radius_ratio": expand_radius_ratio, "no_overlap": True}
        sopa.aggregate(other, aggregate_channels=False, shapes_key=shapes_key, **options)
        return cells(other, shapes_key=shapes_key)


@contextlib.contextmanager
def scratch(*sdatas, quiet: bool = True):
    """Give sopa a folder for its scratch files that is gone afterwards, and take its progress bars away.

    sopa writes patches to ``.sopa_cache`` in the home folder and leaves them there when something fails. Inside this
    context they go to a temporary folder.

    Parameters
    ----------
    sdatas
        SpatialData objects worked on; the name sopa gave their cache is taken out again.
    quiet
        Hold back what goes to stderr; it is shown if an error ends the context.
    """
    from sopa.constants import SopaAttrs
    from sopa.utils import utils as place

    before, held = place.HOME_CACHE_DIR, io.StringIO()
    logs = {log: log.level for log in map(logging.getLogger, ("sopa", "tensorflow"))}
    with tempfile.TemporaryDirectory(prefix="sopa_", ignore_cleanup_errors=True) as folder:
        place.HOME_CACHE_DIR = Path(folder)
        try:
            if quiet:
                for log in logs:
                    log.setLevel(logging.ERROR)
            with contextlib.redirect_stderr(held) if quiet else contextlib.nullcontext():
                yield
        except BaseException:
            if held.getvalue().strip():
                note(held.getvalue()[-2000:])
            raise
        finally:
            place.HOME_CACHE_DIR = before
            for log, level in logs.items():
                log.setLevel(level)
            for sdata in sdatas:
                sdata.attrs.pop(SopaAttrs.UID, None)


# ---------------------------------------------------------------- back from sopa, in microns
def outlines(sdata, *, shapes_key: str, system: str = "um"):
    """Return the outlines of the cells of ``shapes_key`` in one system of coordinates.

    Parameters
    ----------
    system
        ``"um"``: microns, origin at the corner of the whole picture. ``"pixel"``: full-resolution pixels of the H&E,
        also where sopa worked on a crop or ProSeg in microns.

    Returns
    -------
    geopandas.GeoDataFrame
        Column ``geometry``, indexed by cell id; ``.to_json()`` gives GeoJSON.
    """
    import geopandas
    from spatialdata import transform
    from spatialdata.transformations import get_transformation

    if shapes_key not in sdata.shapes:
        raise CourseError(f"no cells {shapes_key!r} among {sorted(sdata.shapes)}", "outlines of cells", "segment first")
    shapes = sdata.shapes[shapes_key]
    known = get_transformation(shapes, get_all=True)
    name = next((n for n in (UM_SYSTEMS if system in UM_SYSTEMS else (system,)) if n in known), None)
    if name is None:
        raise CourseError(f"systems {sorted(known)} of {shapes_key}", f"a transformation to {system!r}",
                          "start from visium_hd_sopa.for_sopa")  # fmt: skip
    return geopandas.GeoDataFrame(geometry=transform(shapes, to_coordinate_system=name).geometry)


def cells(sdata, *, shapes_key: str, table_key: str = "table"):
    """Return a table of cells that sopa made, with everything in MICRONS.

    Parameters
    ----------
    sdata
        Holds ``shapes[shapes_key]`` and ``tables[table_key]``, of ``sopa.aggregate`` or of ProSeg.

    Returns
    -------
    anndata.AnnData
        ``X`` CSR int32 raw counts; all genes of the bins in their order; ``obs``: ``area_um2`` (ground the counts
        were taken from: the bins given to the cell, else the outline), ``outline_um2``, ``n_counts``, and for ProSeg
        ``prior`` (id of the nucleus a cell grew from); ``obsm["spatial"]`` float64 (cells, 2) x, y in um;
        ``uns["spatial_unit"]`` ``"um"``.

    Raises
    ------
    CourseError
        The table is not one of these shapes.
    """
    import anndata
    from scipy import sparse

    shapes = outlines(sdata, shapes_key=shapes_key)
    if table_key not in sdata.tables:
        seen = f"no table {table_key!r} among {sorted(sdata.tables)}"
        raise CourseError(seen, "counts of cells", "run sopa.aggregate")
    table = sdata.tables[table_key]
    key = table.uns.get("spatialdata_attrs", {}).get("instance_key", "cell_id")
    names = table.obs[key] if key in table.obs else table.obs_names
    if not set(names) <= set(shapes.index):
        regions = sorted(set(table.obs.get("region", [])))
        raise CourseError(f"a table of {regions}, shapes {shapes_key!r}", "the shapes the table was counted with",
                          "pass the shapes_key that belongs to the table")  # fmt: skip
    here = shapes.loc[list(names)]
    counts, genes = sparse.csr_matrix(table.X), table.var_names
    bins = sdata.tables.get(sdata.attrs.get("bins_table"))
    if bins is not None and list(genes) != list(bins.var_names):
        counts, genes = _all_genes(counts, genes, bins.var_names), bins.var_names
    rounded = np.rint(counts.data)
    if np.abs(rounded - counts.data).max(initial=0) > 1e-3:
        raise CourseError("counts that are not whole", "raw counts of cells", "do not normalise before this step")
    counts.data = rounded.astype(np.int32)
    area = here.area.to_numpy()
    obs = {"area_um2": area, "outline_um2": area, "n_counts": np.asarray(counts.sum(1)).ravel()}
    if "bins_assignments" in table.obsm:
        side = _bin_um(sdata)
        obs["area_um2"] = np.asarray((table.obsm["bins_assignments"] > 0).sum(1)).ravel() * side**2
    if "prior" in table.obs:
        obs["prior"] = table.obs["prior"].astype(str).to_numpy()
    found = anndata.AnnData(X=counts.astype(np.int32))
    found.obs_names, found.var_names = [str(name) for name in names], list(genes)
    for name, values in obs.items():
        found.obs[name] = values
    centre = here.centroid
    found.obsm["spatial"] = np.column_stack([centre.x, centre.y])
    found.uns["spatial_unit"] = "um"
    return found


def _all_genes(counts, genes, wanted):
    """Return counts (cells, wanted): columns in the wanted order, zeros for genes that ProSeg left out."""
    from scipy import sparse

    place = {gene: k for k, gene in enumerate(wanted)}
    strange = [gene for gene in genes if gene not in place]
    if strange:
        raise CourseError(f"genes that the bins lack: {strange[:3]}", "the genes of the bins", "do not rename genes")
    rows, columns = np.arange(len(genes)), [place[gene] for gene in genes]
    move = sparse.csr_matrix((np.ones(len(genes), counts.dtype), (rows, columns)), shape=(len(genes), len(wanted)))
    return sparse.csr_matrix(counts @ move)


def _bin_um(sdata) -> float:
    """Return the side of the bins of the counted table, um, measured on one of its squares."""
    from spatialdata.transformations import get_transformation

    name = sdata.tables[sdata.attrs["bins_table"]].uns["spatialdata_attrs"]["region"]
    squares = sdata.shapes[name if isinstance(name, str) else name[0]]
    known = get_transformation(squares, get_all=True)
    matrix = next(known[n] for n in UM_SYSTEMS if n in known).to_affine_matrix(("x", "y"), ("x", "y"))
    return float(np.sqrt(squares.geometry.iloc[0].area * abs(np.linalg.det(matrix[:2, :2]))))

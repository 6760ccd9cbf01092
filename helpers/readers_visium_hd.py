"""Sources: Visium HD sections as Space Ranger writes them - ``binned_outputs/``, ``spatial/``, and the H&E near by.

A section is the 8 um bins (``tables["counts"]`` with the squares ``shapes["spots"]``), and beside them the 2 and 16 um
bins as ``tables["bins_2um"]`` and ``shapes["squares_2um"]``, and so on. Space Ranger does not copy the full-resolution
picture into ``outs/``: it must lie in it, beside it, or be named. A real slide has millions of bins and a picture of
gigabytes, so a crop is cut out while reading. ``segmented_outputs/`` of Space Ranger 4 are cells, never bins; they are
read when asked for.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from helpers import section as customs
from helpers.messages import CourseError, note
from helpers.readers_files import image_size, tidy_counts
from helpers.readers_tables import name_genes
from helpers.readers_visium_hd_cells import vendor_cells
from helpers.readers_visium_hd_files import (
    MATRIX,
    add_up,
    bin_folders,
    bin_matrix,
    full_image,
    lattice,
    open_region,
    positions,
    scale_factors,
    size_of,
    squares,
)
from helpers.readers_visium_hd_find import find

__all__ = ["BIN_UM", "find", "read", "read_ref"]

BIN_UM, OTHERS_UM = 8, (2, 16)
MAX_BINS = 2_000_000
"""A table of more bins than this is left out beside the main one; a crop brings it back."""


# ---------------------------------------------------------------- reading
def read_ref(ref, *, bin_um: int = BIN_UM, crop=None, image=None, hires: bool = False, cells: bool = False):
    """Read a section found by ``find`` (``readers.read`` comes here).

    Parameters
    ----------
    bin_um
        Side of the bins of ``tables["counts"]``, um. A size that is not there is summed from smaller bins.
    crop
        x0, y0, x1, y1 in full-resolution pixels: only this region is read. What is returned is in pixels of the region,
        whose origin is ``attrs["crop"][:2]``.
    image
        The full-resolution picture, where it lies elsewhere.
    hires
        True: the reduced picture of ``spatial/`` serves where the full-resolution one is missing. Nuclei cannot be
        told apart on it.
    cells
        True: read ``segmented_outputs/`` too, as ``tables["vendor_cells"]`` and
        ``shapes["vendor_outlines"]``.

    Returns
    -------
    spatialdata.SpatialData

    Raises
    ------
    CourseError
        A part that is missing or damaged, scale factors and positions that contradict each other, no picture, a crop
        without bins.
    """
    outs, folders = Path(ref.files["outs"]), bin_folders(Path(ref.files["bins"]))
    crop = None if crop is None else _box(crop)
    smallest = min(folders)
    scales = scale_factors(folders[smallest], smallest)
    mpp = scales["microns_per_pixel"]
    file, shrink, which = _picture(outs, folders, scales, ref.section_id, image, hires)
    rows, columns = (side / shrink for side in image_size(file))
    box = None if crop is None else _inside(crop, columns, rows, ref.section_id, file)
    limits = (0, 0, columns, rows) if box is None else box
    main, said = _bins(folders, bin_um, box, limits)
    table, place, fit = main
    if said:
        note(f"note: {ref.section_id}: {said}")
    table.var["column"] = np.arange(table.n_vars)
    name_genes(table)
    region = None if box is None else [round(side * shrink) for side in box]
    origin = np.array((0, 0) if box is None else region[:2]) / shrink
    _dress(table, place, origin, shrink)
    for label, value in ref.labels.items():
        table.obs[label] = value
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique")  # made unique, and said, by tidy_counts
        table = tidy_counts(table, file=folders[smallest], section_id=ref.section_id)
    kept_genes, gene_names = table.var.pop("column").to_numpy(), table.var_names
    built = customs.build(
        image=open_region(file, region), counts=table, xy_px=table.obsm["spatial"], mpp=mpp / shrink,
        mpp_source="microns_per_pixel" + ("" if shrink == 1 else f"; {which} image, {shrink:.4g} of full size"),
        platform="visium_hd", section_id=ref.section_id, subject_id=ref.subject_id, dataset=ref.dataset, source=outs,
        spot_diameter_um=float(bin_um),
    )  # fmt: skip
    del built.shapes["spots"]  # discs: squares take their place
    built.shapes["spots"] = _shapes(built, place.loc[table.obs_names], fit, origin, shrink)
    for size in OTHERS_UM:
        if size == bin_um or all(size % known for known in folders):
            continue
        (other, place, fit), _ = _bins(folders, size, box, limits, at_most=MAX_BINS)
        if other is None:
            note(f"note: {ref.section_id}: more than {MAX_BINS:,} bins of {size} um are left out; set a crop")
            continue
        other = other[:, kept_genes].copy()
        other.var_names = gene_names
        _dress(other, place, origin, shrink)
        _join(built, other, f"bins_{size}um", f"squares_{size}um", _shapes(built, place, fit, origin, shrink))
    built.attrs.update({
        "layout": ref.layout, "bin_um": int(bin_um), "image_file": str(file), "image": which,
        "image_scale": float(shrink), **({} if box is None else {"crop": [int(side) for side in box]}),
    })  # fmt: skip
    if "reference" in ref.files:
        built.attrs["reference_file"] = str(ref.files["reference"])
    _segmented(built, outs, ref, box, origin, shrink, cells)
    return built


def read(folder, **options):
    """Read the one section of a folder; options as in :func:`read_ref`."""
    from helpers import readers

    refs = readers.discover(folder, dataset=Path(folder).name, platform="visium_hd")
    if len(refs) > 1:
        names = ", ".join(ref.section_id for ref in refs)
        raise CourseError(f"{len(refs)} sections ({names})", "one", "name the folder of one of them", file=folder)
    return readers.read(refs[0], **options)


# ---------------------------------------------------------------- the parts
def _box(crop) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(side) for side in crop)
        good = x0 < x1 and y0 < y1 and np.isfinite([x0, y0, x1, y1]).all()
    except (TypeError, ValueError):
        good = False
    if not good:
        fix = "for instance crop=(51000, 9000, 56000, 14000)"
        raise CourseError(f"crop {crop}", "x0, y0, x1, y1 in full-resolution pixels, x0 < x1, y0 < y1", fix)
    return x0, y0, x1, y1


def _inside(crop, columns, rows, name, file) -> tuple[int, int, int, int]:
    """Return the crop in whole pixels, clipped to the picture."""
    x0, y0 = max(0, int(np.floor(crop[0]))), max(0, int(np.floor(crop[1])))
    x1, y1 = min(int(columns), int(np.ceil(crop[2]))), min(int(rows), int(np.ceil(crop[3])))
    if x0 >= x1 or y0 >= y1:
        seen = f"a crop x {crop[0]:g}..{crop[2]:g}, y {crop[1]:g}..{crop[3]:g} outside the picture"
        raise CourseError(seen, f"a part of {columns:.0f} x {rows:.0f} px", "correct the crop", file=file)
    if (x0, y0, x1, y1) != tuple(crop):
        note(f"note: {name}: crop cut to x {x0}..{x1}, y {y0}..{y1}, whole pixels of the picture")
    return x0, y0, x1, y1


def _bins(folders, bin_um, box, limits, *, at_most=None):
    """Return (counts, positions, lattice) of one size of bins, from its folder or summed, and a word on the latter.

    In a crop (``box``), or summed, a bin counts only where all of it lies inside ``limits``.
    """
    source = max((size for size in folders if bin_um % size == 0), default=None)
    if source is None or bin_um < 1:
        sizes = ", ".join(map(str, folders))
        raise CourseError(
            f"no bins of {bin_um} um", f"bins of {sizes} um, or a multiple of these", "set bin_um",
            file=folders[min(folders)].parent,
        )  # fmt: skip
    folder = folders[source]
    mpp = scale_factors(folder, source)["microns_per_pixel"]
    if at_most is not None and box is None and size_of(folder / MATRIX) > at_most:
        return (None, None, None), ""
    place = positions(folder, box)
    if at_most is not None and len(place) > at_most:
        return (None, None, None), ""
    if not len(place):
        seen = "no bin under tissue" + ("" if box is None else f" in the crop {box}")
        raise CourseError(seen, "at least one", "look at the picture and move the crop", file=folder)
    fit = lattice(place, bin_um=source, mpp=mpp, file=folder)
    table = bin_matrix(folder / MATRIX, place.index)
    if table.n_obs == 0:
        seen = f"a matrix that has none of the {len(place)} bins under tissue (such as {place.index[0]})"
        raise CourseError(seen, "the same barcodes", "take the whole folder from one run", file=folder)
    place = place.loc[table.obs_names]
    word = ""
    if source != bin_um:
        table, place, fit = add_up(table, place, fit, bin_um=bin_um, fine_um=source)
        word = f"no bins of {bin_um} um in the folder; summed from those of {source} um"
    if box is not None or word:
        reach = np.abs(fit[:2]).sum(0) / 2 - 1e-6
        x, y = place["x"].to_numpy(), place["y"].to_numpy()
        whole = (x - reach[0] >= limits[0]) & (x + reach[0] <= limits[2])
        whole &= (y - reach[1] >= limits[1]) & (y + reach[1] <= limits[3])
        if not whole.any():
            fix = "make the crop larger, or bin_um smaller"
            raise CourseError(f"no whole bin in {limits}", "at least one", fix, file=folder)
        table, place = table[whole].copy(), place[whole]
    return (table, place, fit), word


def _dress(table, place, origin, shrink) -> None:
    table.obs["in_tissue"] = 1
    table.obs[["array_row", "array_col"]] = place[["array_row", "array_col"]].to_numpy(int)
    table.obsm["spatial"] = (place[["x", "y"]].to_numpy(float) - origin) * shrink


def _shapes(built, place, fit, origin, shrink):
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    moved = place.assign(x=(place["x"] - origin[0]) * shrink, y=(place["y"] - origin[1]) * shrink)
    frame = GeoDataFrame({"geometry": squares(moved, fit * shrink)}, index=np.arange(len(place)))
    return ShapesModel.parse(frame, transformations=_systems(built))


def _systems(built) -> dict:
    from spatialdata.transformations import Identity, Scale

    return {"pixel": Identity(), "um": Scale([built.attrs["mpp"]] * 2, axes=("x", "y"))}


def _join(built, table, name, region, shapes) -> None:
    """Add a further table and its shapes to a section."""
    from spatialdata.models import TableModel

    table.obs["region"] = region
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["instance_id"] = np.arange(table.n_obs)
    table.obs["section_id"], table.obs["subject_id"] = built.attrs["section_id"], built.attrs["subject_id"]
    built.shapes[region] = shapes
    built.tables[name] = TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def _picture(outs, folders, scales, name, given, hires) -> tuple[Path, float, str]:
    """Return the picture to use, its scale against full resolution, and its name."""
    previews = [place / "spatial" / "tissue_hires_image.png" for place in (outs, *folders.values())]
    preview = next((path for path in previews if path.is_file()), None)
    scale, size = scales["tissue_hires_scalef"], None if preview is None else image_size(preview)
    if given:
        file = Path(given).expanduser()
        if not file.is_file():
            raise CourseError("no such file", "the full-resolution picture", "correct image", file=file)
        if size is not None and (np.abs(np.array(image_size(file)) * scale / size - 1) > 0.02).any():
            raise CourseError(
                f"a picture of {image_size(file)[1]} x {image_size(file)[0]} px",
                f"about {size[1] / scale:.0f} x {size[0] / scale:.0f} px, as the hires picture tells",
                "name the picture that Space Ranger was given (--image)", file=file,
            )  # fmt: skip
        return file, 1.0, "full"
    file, seen = full_image(outs, size, scale)
    if file is not None:
        return file, 1.0, "full"
    if hires and preview is not None:
        note(f"warning: {name}: {preview.name} is used, at {scale:.3g} of full size; nuclei cannot be told apart on it")
        return preview, scale, "hires"
    others = f" ({', '.join(path.name for path in seen)} {'does' if len(seen) == 1 else 'do'} not fit)" if seen else ""
    raise CourseError(
        f"no full-resolution picture{others}",
        "the H&E that Space Ranger was given (--image); it is not copied into outs/",
        f"put it into {outs.parent if outs.name == 'outs' else outs}, or pass image=; hires=True takes the reduced one",
        file=outs,
    )


def _segmented(built, outs, ref, box, origin, shrink, wanted) -> None:
    """Say that the vendor's cells are there, and add them where they are asked for."""
    folder = outs / "segmented_outputs"
    if not folder.is_dir():
        if wanted:
            raise CourseError("no segmented_outputs/", "cells of Space Ranger 4", "leave cells out", file=outs)
        return
    built.attrs["segmented_outputs"] = str(folder)
    if not wanted:
        note(f"note: {ref.section_id}: segmented_outputs/ (Space Ranger's own cells) not read; cells=True does")
        return
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    table, outlines = vendor_cells(folder, box)
    name_genes(table)
    table.var_names_make_unique()
    outlines = shapely.transform(outlines, lambda xy: (xy - origin) * shrink)
    table.obsm["spatial"] = shapely.get_coordinates(shapely.centroid(outlines))
    shapes = ShapesModel.parse(
        GeoDataFrame({"geometry": outlines}, index=np.arange(len(outlines))), transformations=_systems(built)
    )
    _join(built, table, "vendor_cells", "vendor_outlines", shapes)

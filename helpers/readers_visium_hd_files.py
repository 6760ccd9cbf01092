"""Sources: the files of a Visium HD folder - bins, their positions and counts, and pictures.

Nothing is read whole that a crop does not need: positions are filtered on disk, a matrix is read in slabs of bins, and
only the wanted region of the picture is decoded. ``readers`` and the files named ``readers_*`` are one room, split by
vendor and by kind of file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.readers_files import IMAGE_SUFFIXES, image_size, read_image, unreadable

FOLDER = re.compile(r"square_(\d{3})um")
MATRIX = "filtered_feature_bc_matrix.h5"
_X, _Y = "pxl_col_in_fullres", "pxl_row_in_fullres"
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", _Y, _X]
_SLAB = 4_000_000  # entries of a matrix held at a time


def bin_folders(home: Path) -> dict[int, Path]:
    """Return the folders of bins in ``binned_outputs/``, by size in um, smallest first; those with a matrix only."""
    found = {}
    for folder in sorted(home.glob("square_*um")):
        match = FOLDER.fullmatch(folder.name)
        if match and (folder / MATRIX).is_file():
            found[int(match.group(1))] = folder
    return found


# ---------------------------------------------------------------- positions and scale
def scale_factors(folder: Path, bin_um: int) -> dict[str, float]:
    """Return the numbers of a bin folder's ``scalefactors_json.json``, checked."""
    path = folder / "spatial" / "scalefactors_json.json"
    again = "copy the file from Space Ranger again"
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        wanted = ("microns_per_pixel", "bin_size_um", "spot_diameter_fullres", "tissue_hires_scalef")
        scales = {name: float(found[name]) for name in wanted}
    except FileNotFoundError:
        fix = f"copy the whole {folder.name} folder"
        raise CourseError("no scalefactors_json.json", "it lies in spatial/", fix, file=path.parent) from None
    except KeyError as error:
        raise CourseError(f"no {error.args[0]}", ", ".join(wanted), again, file=path) from None
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from None
    for name, value in scales.items():
        if not np.isfinite(value) or value <= 0:
            raise CourseError(f"{name} = {value:g}", "a positive number", again, file=path)
    if scales["bin_size_um"] != bin_um:
        seen = f"bin_size_um = {scales['bin_size_um']:g} in {folder.name}"
        raise CourseError(seen, f"{bin_um}", "the folders were mixed up; copy binned_outputs/ again", file=path)
    return scales


def positions(folder: Path, crop=None) -> pd.DataFrame:
    """Return the bins under tissue, by barcode: ``array_row``, ``array_col``, ``x``, ``y`` (full-resolution pixels).

    Parameters
    ----------
    crop
        x0, y0, x1, y1 in full-resolution pixels; bins with their centre outside are not read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "spatial" / "tissue_positions.parquet"
    if not path.is_file():
        fix = f"copy the whole {folder.name} folder"
        raise CourseError("no tissue_positions.parquet", "it lies in spatial/", fix, file=path.parent)
    try:
        names = pq.read_schema(path).names
        missing = [name for name in _COLUMNS if name not in names]
        if missing:
            seen = f"no column {missing[0]} (there are {', '.join(names[:7])})"
            raise CourseError(seen, ", ".join(_COLUMNS), "copy the file again", file=path)
        kept = [("in_tissue", "==", 1)]
        if crop is not None:
            kept += [(_X, ">=", crop[0]), (_X, "<", crop[2]), (_Y, ">=", crop[1]), (_Y, "<", crop[3])]
        table = pq.read_table(path, columns=_COLUMNS, filters=kept).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None
    table = table.rename(columns={_X: "x", _Y: "y"}).drop(columns="in_tissue")
    if not np.isfinite(table[["x", "y"]].to_numpy(float)).all():
        raise CourseError("bins without a position", "x and y of every bin", "copy the file again", file=path)
    return table.set_index("barcode")


def lattice(table: pd.DataFrame, *, bin_um: int, mpp: float, file) -> np.ndarray:
    """Return the affine float (3, 2) that takes (array_col, array_row, 1) to x, y in full-resolution pixels.

    Raises
    ------
    CourseError
        Neighbouring bins that are not ``bin_um`` apart at ``mpp`` um per pixel (by 3 %), or not at right angles.
    """
    array = np.column_stack([table["array_col"], table["array_row"], np.ones(len(table))]).astype(float)
    if len(table) < 3 or np.ptp(array[:, 0]) == 0 or np.ptp(array[:, 1]) == 0:
        step = bin_um / mpp  # one bin, or one line of bins: nothing to measure
        corner = table[["x", "y"]].to_numpy(float).mean(0) - array[:, :2].mean(0) * step
        return np.vstack([np.eye(2) * step, corner])
    fit = np.linalg.lstsq(array, table[["x", "y"]].to_numpy(float), rcond=None)[0]
    um = np.linalg.norm(fit[:2], axis=1) * mpp
    if (np.abs(um / bin_um - 1) > 0.03).any():
        raise CourseError(
            f"bins {um[0]:.4g} um apart along columns and {um[1]:.4g} along rows at {mpp:.4g} um per pixel",
            f"{bin_um} um", "positions and microns_per_pixel belong to different pictures; take both from one run",
            file=file,
        )  # fmt: skip
    if abs(fit[0] @ fit[1]) > 0.03 * np.linalg.norm(fit[0]) * np.linalg.norm(fit[1]):
        raise CourseError("rows and columns of bins not at right angles", "a square array", "copy it again", file=file)
    return fit


def squares(table: pd.DataFrame, fit) -> np.ndarray:
    """Return the outline of each bin, shapely polygons in the pixels of ``x``, ``y``, turned as the array is."""
    import shapely

    half = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) @ np.asarray(fit)[:2]
    corners = table[["x", "y"]].to_numpy(float)[:, None] + half
    return shapely.polygons(corners.round(6))  # what the fit of the lattice is not exact to


# ---------------------------------------------------------------- counts
def bin_matrix(path: Path, wanted: pd.Index):
    """Return the counts of some bins as AnnData (bins x genes), X int32 CSR, in the order of the file.

    The file is read in slabs of a few million entries, and slabs without a wanted bin are skipped, so that the memory
    needed is that of the result.

    Parameters
    ----------
    wanted
        Barcodes; those the matrix has not are left out of the result.
    """
    import h5py
    from anndata import AnnData
    from scipy import sparse

    try:
        with h5py.File(path, "r") as h5:
            group = h5["matrix"]
            n_genes, n_bins = (int(n) for n in group["shape"][:])
            kept, names = _among(group["barcodes"], wanted)
            indptr = group["indptr"][:].astype(np.int64)
            if len(indptr) != n_bins + 1 or indptr[-1] != len(group["data"]):
                raise unreadable(path, f"{n_bins} bins, but pointers for {len(indptr) - 1}")
            data, indices = [], []
            for first, last in _slabs(indptr, kept):
                part = slice(indptr[first], indptr[last])
                mask = np.repeat(kept[first:last], np.diff(indptr[first : last + 1]))
                data.append(group["data"][part][mask].astype(np.int32))
                indices.append(group["indices"][part][mask].astype(np.int32))
            text = {name: group["features"][name].asstr()[:] for name in ("id", "name", "feature_type")}
    except (OSError, KeyError, ValueError, RuntimeError) as error:  # what h5py raises
        raise unreadable(path, error) from None
    sizes = np.diff(indptr)[kept]
    matrix = sparse.csr_matrix(
        (np.concatenate([np.zeros(0, np.int32), *data]), np.concatenate([np.zeros(0, np.int32), *indices]),
         np.r_[0, np.cumsum(sizes)]), shape=(len(names), n_genes),
    )  # fmt: skip
    gene = np.flatnonzero(text["feature_type"] == "Gene Expression")
    var = pd.DataFrame({"gene_id": text["id"][gene].astype(str)}, index=pd.Index(text["name"][gene].astype(str)))
    return AnnData(matrix if len(gene) == n_genes else matrix[:, gene], obs=pd.DataFrame(index=names), var=var)


def size_of(path: Path) -> int:
    """Return how many bins a matrix has."""
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            return int(h5["matrix/shape"][1])
    except (OSError, KeyError) as error:
        raise unreadable(path, error) from None


def _among(barcodes, wanted: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Return which barcodes of a matrix are wanted, bool (bins,), and the wanted ones in the matrix's order."""
    kept, names = np.zeros(len(barcodes), bool), []
    for first in range(0, len(barcodes), 1_000_000):
        part = barcodes.asstr()[first : first + 1_000_000]
        kept[first : first + len(part)] = wanted.get_indexer(part) >= 0
        names.append(part[kept[first : first + len(part)]])
    return kept, np.concatenate([np.zeros(0, object), *names])


def _slabs(indptr, kept):
    """Yield ranges of bins (first, one past the last) that hold few entries and at least one kept bin."""
    first = 0
    while first < len(kept):
        last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + _SLAB, side="right")) - 1)
        if kept[first:last].any():
            yield first, last
        first = last


def add_up(counts, table: pd.DataFrame, fit, *, bin_um: int, fine_um: int):
    """Return counts, positions and lattice of larger bins, as sums of smaller ones.

    Parameters
    ----------
    counts, table, fit
        Of the smaller bins of ``fine_um``: AnnData, its rows of :func:`positions`, and their :func:`lattice`.
    """
    from anndata import AnnData
    from scipy import sparse

    step = bin_um // fine_um
    place = pd.MultiIndex.from_arrays([table["array_row"] // step, table["array_col"] // step])
    code, places = place.factorize(sort=True)
    ones, shape = np.ones(len(code), np.int32), (len(places), len(code))
    add = sparse.csr_matrix((ones, (code, np.arange(len(code)))), shape=shape)
    row, column = (places.get_level_values(level).to_numpy() for level in (0, 1))
    middle = np.column_stack([column * step + (step - 1) / 2, row * step + (step - 1) / 2, np.ones(len(row))]) @ fit
    names = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column)]
    coarse = pd.DataFrame({"array_row": row, "array_col": column, "x": middle[:, 0], "y": middle[:, 1]}, index=names)
    table = AnnData((add @ counts.X).tocsr(), obs=pd.DataFrame(index=names), var=counts.var.copy())
    return table, coarse, np.vstack([fit[:2] * step, [[(step - 1) / 2, (step - 1) / 2, 1]] @ fit])


# ---------------------------------------------------------------- pictures
def full_image(outs: Path, hires, scale: float) -> tuple[Path | None, list[Path]]:
    """Return the full-resolution picture that goes with ``outs``, or None; and every picture that was looked at.

    Looked for in ``outs``, in the folder above where this one is called ``outs``, and in their ``microscope_image``,
    ``image`` and ``images``. It has the size that the hires picture and its scale factor tell; without a hires picture
    a lone candidate is taken.

    Parameters
    ----------
    hires
        Height and width of the hires picture, or None.
    """
    near = [outs, outs.parent] if outs.name == "outs" else [outs]
    places = near + [place / name for place in near for name in ("microscope_image", "image", "images")]
    found = sorted({path for place in places if place.is_dir() for path in place.iterdir()
                    if path.suffix.lower() in IMAGE_SUFFIXES})  # fmt: skip
    if hires is None:
        return (found[0] if len(found) == 1 else None), found
    slack = 1.5 + 0.002 * max(hires)
    fits = [path for path in found if (np.abs(np.array(image_size(path)) * scale - hires) <= slack).all()]
    named = [path for path in fits if "tissue_image" in path.name]
    return next(iter(named or fits), None), found


def open_region(path: Path, box=None):
    """Return a picture, uint8 RGB (y, x, 3): lazily as a whole, or one region of it decoded.

    Parameters
    ----------
    box
        x0, y0, x1, y1 in pixels, inside the picture. Of a TIFF only the tiles or strips that it touches are decoded.
    """
    if box is None:
        return read_image(path)
    x0, y0, x1, y1 = box
    if path.suffix.lower() not in (".tif", ".tiff", ".btf"):
        return np.ascontiguousarray(read_image(path)[y0:y1, x0:x1])
    import tifffile
    import zarr

    from helpers.section import rgb8

    try:
        with tifffile.TiffFile(path) as tiff:
            level = tiff.series[0].levels[0]
            axes, meaning = level.axes, level.keyframe.photometric.name
        if meaning not in ("RGB", "MINISBLACK", "YCBCR"):
            raise CourseError(f"a TIFF of colours {meaning.lower()}", "8-bit RGB", "export it as RGB", file=path)
        lazy = zarr.open(tifffile.imread(path, aszarr=True, series=0, level=0), mode="r")
        ranges = {"Y": slice(y0, y1), "X": slice(x0, x1)}
        part = np.asarray(lazy[tuple(ranges.get(axis, slice(None)) for axis in axes)])
    except CourseError:
        raise
    except Exception as error:  # tifffile, zarr and imagecodecs raise many kinds for a damaged file
        raise unreadable(path, error) from None
    if part.ndim == 3 and axes[0] in "SC":
        part = np.moveaxis(part, 0, 2)
    return np.ascontiguousarray(rgb8(part, file=path))

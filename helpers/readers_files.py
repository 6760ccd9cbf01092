"""Sources: what every reader needs from a file - listing a folder, opening a picture, putting a count table in order.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from helpers.messages import CourseError, note
from helpers.section import check_counts, rgb8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf")
MAX_WHOLE_PX = 2**30
"""Largest TIFF opened as a whole. For JPEG and PNG Pillow's own limit, 358 Mpx, is kept; tiled TIFFs have none."""
_COLOURS = ("RGB", "MINISBLACK", "YCBCR")
"""What a TIFF's numbers may mean; tifffile turns YCbCr into RGB and hands on all others as they are."""
_MAX_FILES = 20_000


def folder_of(path) -> Path:
    """Return an existing, readable folder; refuse one that is missing, a file, forbidden or a link in a loop."""
    path = Path(path).expanduser()
    try:
        path = path.resolve(strict=True)
        os.listdir(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, before Python 3.13
        reason = getattr(error, "strerror", None) or str(error)
        raise CourseError(
            f"a path that cannot be opened ({reason})", "a readable folder", "correct the path", file=path
        ) from None
    return path


def files_in(folder, *, depth: int = 7) -> list[Path]:
    """Return the files below ``folder``, sorted; hidden ones and links to folders are left out."""
    top = folder_of(folder)
    found = []
    for here, folders, names in os.walk(top, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(here).relative_to(top).parts) >= depth:
            folders[:] = []
        found += [Path(here) / name for name in sorted(names) if not name.startswith(".")]
        if len(found) > _MAX_FILES:
            raise CourseError(f"more than {_MAX_FILES} files", "the folder of one data set", "point closer", file=top)
    return found


def unreadable(path, reason, *, fix="download or copy it again") -> CourseError:
    """Return the error for a file that is cut short, damaged or of another kind than its name says."""
    return CourseError(
        f"a file that cannot be read ({str(reason).strip() or 'no reason given'})",
        "a whole, readable file",
        fix,
        file=path,
    )


# ---------------------------------------------------------------- pictures
def image_size(path) -> tuple[int, int]:
    """Return (height, width) in pixels from the header alone."""
    path = Path(path)
    try:
        if path.suffix.lower() in (".tif", ".tiff", ".btf"):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                series = tiff.series[0].levels[0]
                return int(series.shape[series.axes.index("Y")]), int(series.shape[series.axes.index("X")])
        header = _header(path)
        return header[1], header[0]
    except CourseError:
        raise
    except Exception as error:  # tifffile raises many kinds for a damaged file
        raise unreadable(path, error) from None


def _header(path) -> tuple[int, int, str]:
    """Return width, height and Pillow's mode of a JPEG or PNG, without decoding it."""
    import struct
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, by our own limit
            with Image.open(path) as picture:
                return *picture.size, picture.mode
    except Image.DecompressionBombError:
        raise _too_large(path, "a larger picture", limit=2 * Image.MAX_IMAGE_PIXELS) from None
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error) as error:
        raise unreadable(path, error) from None


def _too_large(path, seen, *, limit=None) -> CourseError:
    return CourseError(
        seen,
        f"at most {limit or MAX_WHOLE_PX:,} px in a format that must be decoded as a whole",
        "save it as a tiled TIFF (for instance with pyvips or QuPath), which is read by tile",
        file=path,
    )


def read_image(path):
    """Return a picture as 8-bit RGB, axes (y, x, 3).

    JPEG and PNG are decoded by OpenCV, whose blue-green-red order is turned once, here. TIFF goes through tifffile; a
    tiled one stays on disk and is returned as a lazy array. Grey and RGBA become RGB; 16-bit, float and CMYK pictures
    and files cut short are refused.

    Returns
    -------
    numpy.ndarray or zarr.Array
        uint8 (y, x, 3).
    """
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff", ".btf"):
        return _read_tiff(path)
    import cv2

    width, height, mode = _header(path)
    if width * height > MAX_WHOLE_PX:
        raise _too_large(path, f"a picture of {width} x {height} px")
    if mode not in ("L", "RGB", "RGBA", "P", "LA", "1"):
        raise CourseError(
            f"an image of mode {mode}",
            "8-bit RGB, RGBA or grey",
            "export it as 8-bit RGB; a silent conversion would change the stain",
            file=path,
        )
    with open(path, "rb") as stream:  # OpenCV fills a cut JPEG with grey and only prints a warning
        stream.seek(max(0, path.stat().st_size - 65536))
        tail = stream.read()
    if (b"\xff\xd9" if path.suffix.lower() in (".jpg", ".jpeg") else b"IEND") not in tail:
        raise unreadable(path, "it is cut short: its end marker is missing")
    if mode in ("P", "1"):
        from PIL import Image

        with Image.open(path) as picture:
            return rgb8(np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB")), file=path)
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise unreadable(path, "the decoder gave up")
    if picture.ndim == 3 and picture.dtype == np.uint8:
        code = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(picture.shape[2])
        if code is not None:
            cv2.cvtColor(picture, code, dst=picture)  # in place: a whole section is a quarter of a gigabyte
    return rgb8(picture, file=path)


def _read_tiff(path):
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0].levels[0]
            page, axes, shape, kind = series.keyframe, series.axes, series.shape, series.dtype
            if page.photometric.name not in _COLOURS:  # inverted grey, palette, CMYK, Lab: numbers of another meaning
                kind_of = {"SEPARATED": "CMYK"}.get(page.photometric.name, page.photometric.name.lower())
                raise CourseError(f"a TIFF of colours {kind_of}", "8-bit RGB or grey", "export it as RGB", file=path)
            rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
            lazy = axes in ("YXS", "YXC") and kind == np.uint8 and shape[2] == 3 and page.is_tiled
            if not lazy and rows * columns > MAX_WHOLE_PX:
                raise _too_large(path, f"a picture of {columns} x {rows} px that is not tiled 8-bit RGB")
            if lazy and max(map(sum, zip(page.dataoffsets, page.databytecounts))) > tiff.filehandle.size:
                raise unreadable(path, "it is cut short: tiles are missing")
            if not lazy:
                picture = series.asarray()
        if lazy:
            import zarr

            store = tifffile.imread(path, aszarr=True, series=0, level=0)
            return zarr.open(store, mode="r")
    except CourseError:
        raise
    except Exception as error:
        raise unreadable(path, error) from None
    if picture.ndim == 3 and axes[0] in "SC":
        picture = np.ascontiguousarray(np.moveaxis(picture, 0, 2))
    return rgb8(picture, file=path)


def paint_blank(picture):
    """Paint what a cut-out picture masks in exact black white, in place, and return the share of pixels painted.

    A picture is taken for a cut-out where at least a fifth of it is exactly black; no scanner writes that on glass.
    """
    black = (picture == 0).all(2)
    share = float(black.mean())
    if share < 0.2:
        return 0.0
    picture[black] = 255
    return share


# ---------------------------------------------------------------- counts
def tidy_counts(table, *, file, section_id):
    """Check raw counts and put them in order: unique gene names, no gene and no spot without a count.

    Parameters
    ----------
    table
        AnnData, spots x genes. What is dropped or renamed is listed in ``uns["dropped"]`` and ``uns["renamed"]``
        and said on stderr.

    Returns
    -------
    anndata.AnnData
        ``X`` int32 CSR.
    """
    from scipy import sparse

    check_counts(table.X, file=file)
    if not table.obs_names.is_unique:
        twice = table.obs_names[table.obs_names.duplicated()][0]
        raise CourseError(
            f"spot {twice} more than once", "one row a spot", "merge or remove the repeated rows", file=file
        )
    table.X = sparse.csr_matrix(table.X).astype(np.int32)
    said = []
    repeated = table.var_names[table.var_names.duplicated()].unique()
    if len(repeated):
        table.var_names_make_unique()
        said.append(f"{len(repeated)} repeated gene names made unique ({', '.join(repeated[:3])})")
    totals = table.X.sum(1).A1, table.X.sum(0).A1
    empty_spots, empty_genes = (
        list(names[total == 0]) for names, total in zip((table.obs_names, table.var_names), totals)
    )
    if empty_spots or empty_genes:
        table = table[totals[0] > 0, totals[1] > 0].copy()
        said.append(f"dropped without a count: {len(empty_genes)} genes, {len(empty_spots)} spots")
    table.uns["dropped"] = {"genes": np.asarray(empty_genes, str), "spots": np.asarray(empty_spots, str)}
    table.uns["renamed"] = np.asarray(repeated, str)
    table.uns["ambiguous_genes"] = int(sum(str(name).startswith("__ambiguous") for name in table.var_names))
    if said:
        note(f"note: {section_id}: {'; '.join(said)}")
    return table

"""Methods, whole slides: a TIFF looked at before it is read, and read by tifffile where openslide cannot.

openslide hands CMYK and 16-bit pictures on as if they were 8-bit RGB, and notices a missing end only when it gets
there.
"""

from __future__ import annotations

import contextlib
import logging

import numpy as np

from helpers.messages import CourseError

LARGEST_BLOCK = 1 << 27
"""Pixels in one tile or strip that are decoded at once; more is a bomb, or a flat picture for another program."""
LARGEST_SIDE = 1 << 21
"""Pixels; the largest scanners write some 2**18."""
_COLOURS = ("RGB", "MINISBLACK", "YCBCR")


def sound(path, plain):
    """Return the file opened by tifffile and found sound, or None if it is no TIFF.

    Parameters
    ----------
    plain
        Look at its colours too. A vendor's file may begin with a label of any kind: there openslide knows better.
    """
    import tifffile

    tiff = None
    try:
        with _heard() as said:
            tiff = tifffile.TiffFile(path, _multifile=False)
            _whole(path, tiff, plain)
        if plain:
            if any("invalid page offset" in each for each in said):  # tifffile goes on with the pages it has
                raise damaged(path, "it is cut short: pictures at its end are lost")
            _colours(path, tiff)
        return tiff
    except tifffile.TiffFileError:
        return None  # openslide may know it
    except BaseException as error:
        if tiff is not None:
            tiff.close()
        if isinstance(error, CourseError) or not isinstance(error, Exception):
            raise
        if plain:  # a damaged directory raises many kinds
            raise damaged(path, error) from None
        return None


@contextlib.contextmanager
def _heard():
    """Collect what tifffile writes to its log, and keep it off the screen: what matters of it is said once, by us."""
    said, log = [], logging.getLogger("tifffile")

    def keep(record):
        said.append(record.getMessage())
        return False

    log.addFilter(keep)
    try:
        yield said
    finally:
        log.removeFilter(keep)


def damaged(path, reason) -> CourseError:
    return CourseError(f"a slide that cannot be read ({str(reason)[:120]})", "a whole slide", "copy it again",
                       file=path)  # fmt: skip


def _colours(path, tiff) -> None:
    """Refuse pictures whose colours would be changed silently."""
    series = tiff.series[0]
    first, axes = series.levels[0].keyframe, series.axes
    kind = first.photometric.name
    if kind not in _COLOURS:
        name = {"SEPARATED": "CMYK"}.get(kind, kind.lower())
        raise CourseError(f"a slide of colours {name}", "8-bit RGB or grey", "export it as RGB", file=path)
    if first.dtype != np.uint8:
        raise CourseError(f"a slide of {first.dtype or 'unknown'} numbers", "8-bit RGB (uint8, 0-255)",
                          "export it as 8-bit RGB; a silent rescale would change the stain", file=path)  # fmt: skip
    channels = {"YX": 1, "YXS": -1, "YXC": -1, "SYX": 0, "CYX": 0}.get(axes)
    if channels is None or (channels != 1 and series.shape[channels] not in (3, 4)):
        raise CourseError(f"a picture of axes {axes} and shape {series.shape}", "one RGB picture (y, x, 3)",
                          "export the H&E as one RGB picture", file=path)  # fmt: skip
    largest = max(tiff.series, key=lambda each: each.keyframe.imagelength * each.keyframe.imagewidth).keyframe
    if largest.imagelength * largest.imagewidth > first.imagelength * first.imagewidth:
        seen = f"a first picture of {first.imagewidth} x {first.imagelength} px, smaller than another"
        seen += f" of {largest.imagewidth} x {largest.imagelength}: an overview or a label"
        raise CourseError(seen, "the slide as the first picture", "export the slide alone", file=path)


def _whole(path, tiff, plain) -> None:
    """Refuse files cut short or without a picture, and bombs: sides no scanner writes, pieces too large to decode."""
    if plain and (not len(tiff.pages) or not tiff.series):  # of a vendor's file tifffile may know less
        raise damaged(path, "it holds no picture")
    end = tiff.filehandle.size
    for level in tiff.series[0].levels:
        page = level.keyframe
        if max(page.imagelength, page.imagewidth) > LARGEST_SIDE:
            raise CourseError(f"a picture of {page.imagewidth} x {page.imagelength} px", f"at most {LARGEST_SIDE:,}",
                              "check where the file comes from", file=path)  # fmt: skip
        if page.is_tiled and page.tilelength * page.tilewidth > LARGEST_BLOCK:
            raise _too_large(path, f"tiles of {page.tilewidth} x {page.tilelength} px")
        for single in level.pages:
            if single is not None:
                lengths = single.databytecounts
                if plain and (not any(lengths) or len(lengths) != len(single.dataoffsets)):
                    raise damaged(path, "the list of its tiles is lost")
                last = int(np.max(np.add(single.dataoffsets, lengths, dtype=np.int64)))
                if last > end:
                    seen = f"a file cut short: {end:,} of at least {last:,} bytes"
                    raise CourseError(seen, "the whole slide", "copy it again", file=path)


def _too_large(path, seen) -> CourseError:
    return CourseError(seen, f"at most {LARGEST_BLOCK:,} px decoded at once",
                       "save it as a tiled TIFF (pyvips, QuPath), which is read by tile", file=path)  # fmt: skip


def beyond_openslide(tiff) -> bool:
    """Tell what openslide would misread: planes, and OME pyramids, of which it sees the largest level alone."""
    series = tiff.series[0]
    return series.axes[0] in "SC" or bool(tiff.ome_metadata and len(series.levels) > 1)


def levels(path, tiff):
    """Return (height, width, downsample) of each level, a function that reads regions, whether rows are stored, notes.

    Raises
    ------
    CourseError
        A picture that is stored in one compressed piece too large to decode.
    """
    import zarr

    series = tiff.series[0]
    arrays, striped, notes = [], False, []
    planes = series.axes[0] in "SC"  # (3, y, x)
    for number, level in enumerate(series.levels):
        page = level.keyframe
        striped |= not page.is_tiled
        block = page.imagewidth * min(page.rowsperstrip or page.imagelength, page.imagelength)
        if page.is_tiled or block <= LARGEST_BLOCK // 8:
            stored = series.aszarr(level=number, maxworkers=1, fillvalue=255)  # a tile not stored is glass, not black
            arrays.append(zarr.open(stored, mode="r"))
        elif page.is_memmappable:
            arrays.append(level.asarray(out="memmap"))
        else:
            raise _too_large(path, f"a picture of {page.imagewidth} x {page.imagelength} px in pieces of {block:,} px")
    shapes = [array.shape[1:] if planes else array.shape[:2] for array in arrays]
    if planes and series.levels[0].keyframe.photometric.name != "RGB":
        notes.append("three grey planes, taken for red, green and blue")

    def regions(x0, y0, width, height, level):
        array, here = arrays[level], (slice(y0, y0 + height), slice(x0, x0 + width))
        return np.moveaxis(np.asarray(array[(slice(None), *here)]), 0, 2) if planes else np.asarray(array[here])

    found = tuple((int(r), int(c), (shapes[0][0] / r + shapes[0][1] / c) / 2) for r, c in shapes)
    return found, regions, striped, notes

"""Methods, whole slides: one object to read regions with, whatever the format.

openslide reads what it knows (SVS, NDPI, MRXS, SCN, BIF, VMS, SVSLIDE, Zeiss, DICOM, generic tiled TIFF); tifffile what
it refuses (strips, planes, OME pyramids). ``wsi_tiff`` looks at a TIFF before either reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import section as sec
from helpers import wsi_mpp, wsi_tiff
from helpers.messages import CourseError

_INSPECTED = (None, "generic-tiff", "aperio")
"""What openslide calls a file (None: unknown to it) whose colours and pixel size are also read from the TIFF."""
_SAMPLES, _SAMPLE = 64, 1 << 16


@dataclass(frozen=True)
class Slide:
    """A slide opened for reading by region.

    Attributes
    ----------
    path, name
        File, and its name without endings.
    shape
        (height, width) of level 0 in pixels.
    levels
        (height, width, downsample) of each level; downsample is 1 for level 0.
    mpp, mpp_source
        Microns per pixel of level 0, and where it stands.
    notes
        What a user should know, e.g. a second pixel size in the header.
    backend
        ``"openslide"``, ``"tifffile"`` or ``"array"``.
    striped
        The file stores rows, not tiles: a region costs as much as the full width.
    print
        Fingerprint of the content: size, and a hash of 64 samples of 64 KiB. A change between them is not seen.
    """

    path: Path
    shape: tuple
    levels: tuple
    mpp: float
    mpp_source: str
    notes: tuple
    backend: str
    striped: bool
    print: str
    _regions: object = field(repr=False)
    _handle: object = field(repr=False, default=None)

    @property
    def name(self) -> str:
        """File name without its endings."""
        return name_of(self.path)

    def read(self, x0: int, y0: int, width: int, height: int, *, level: int = 0):
        """Return a region as uint8 RGB (height, width, 3).

        Parameters
        ----------
        x0, y0, width, height
            In pixels of ``level``; the region must lie inside it.

        Raises
        ------
        CourseError
            A region outside, or a part of the file that cannot be decoded.
        """
        rows, columns, _ = self.levels[level]
        if not (0 <= x0 and 0 <= y0 and 0 < width <= columns - x0 and 0 < height <= rows - y0):
            raise CourseError(
                f"a region x {x0}..{x0 + width}, y {y0}..{y0 + height}", f"inside level {level}, {columns} x {rows} px",
                "clip it", file=self.path,
            )  # fmt: skip
        try:
            return np.ascontiguousarray(sec.rgb8(self._regions(x0, y0, width, height, level), file=self.path))
        except CourseError:
            raise
        except Exception as error:  # openslide, imagecodecs, zarr and the file system raise many kinds
            seen = f"a part that cannot be decoded at x {x0}, y {y0} of level {level} ({str(error)[:120]})"
            raise CourseError(seen, "a whole slide", "copy or scan it again", file=self.path) from None

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def name_of(path) -> str:
    """Return a slide's file name without its ending; ``.ome.tif`` is one ending."""
    stem = Path(path).stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem


def from_array(image, *, mpp, mpp_source="given", path="array") -> Slide:
    """Return a picture in memory, such as a JPEG that was decoded whole, as a slide.

    Parameters
    ----------
    image
        uint8 (y, x), (y, x, 3) or (y, x, 4); numpy or anything sliced like it.
    path
        Where it comes from; the last part names the slide.
    """
    rows, columns = image.shape[:2]
    mpp, _, notes = wsi_mpp.decide([], given=mpp, shape=(rows, columns), file=path)
    digest = hashlib.sha256(f"{image.shape}".encode())
    for top in range(0, rows, 1024):
        digest.update(np.ascontiguousarray(image[top : top + 1024]))

    def regions(x0, y0, width, height, _):
        return np.asarray(image[y0 : y0 + height, x0 : x0 + width])

    return Slide(Path(path), (rows, columns), ((rows, columns, 1.0),), mpp, mpp_source, tuple(notes), "array", False,
                 digest.hexdigest()[:32], regions)  # fmt: skip


def open_slide(path, *, mpp: float | None = None) -> Slide:
    """Open a slide: SVS, NDPI, OME-TIFF, pyramidal or flat TIFF, and whatever else openslide knows.

    Parameters
    ----------
    mpp
        Microns per pixel of the largest picture, where the file states none or a wrong one.

    Raises
    ------
    CourseError
        No such file; a kind neither openslide nor tifffile knows; a file cut short; 16-bit, float, CMYK, palette or
        more than four channels; a tile or strip too large to decode; no pixel size, or contradicting ones.
    """
    import openslide

    path = Path(path).expanduser()
    if not path.is_file():
        raise CourseError("no such file", "a slide", "correct the path", file=path)
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError:  # its own format, damaged
        vendor = None
    plain = vendor in _INSPECTED
    tiff = wsi_tiff.sound(path, plain)
    if tiff is None and vendor is None:
        raise CourseError("a kind of file that neither openslide nor tifffile knows, or a damaged one",
                          "SVS, NDPI, MRXS, OME-TIFF, TIFF, ...", "copy it again, or convert it to a tiled TIFF",
                          file=path)  # fmt: skip
    slide = None
    try:
        if vendor is not None and not (tiff is not None and plain and wsi_tiff.beyond_openslide(tiff)):
            slide = _openslide(path, tiff if plain else None, mpp)
        if slide is None and tiff is not None:
            levels, regions, striped, more = wsi_tiff.levels(path, tiff)
            size, source, notes = wsi_mpp.decide(wsi_mpp.of_tiff(tiff), given=mpp, shape=levels[0][:2], file=path)
            slide = Slide(path, levels[0][:2], levels, size, source, (*notes, *more), "tifffile", striped,
                          _fingerprint(path), regions, tiff)  # fmt: skip
        if slide is None:
            raise wsi_tiff.damaged(path, f"openslide takes it for {vendor}, and cannot open it")
    except CourseError:
        raise
    except Exception as error:  # a damaged directory raises many kinds
        raise wsi_tiff.damaged(path, error) from error
    finally:
        if tiff is not None and (slide is None or slide.backend == "openslide"):
            tiff.close()
    return slide


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for start in sorted({round(k * max(0, size - _SAMPLE) / (_SAMPLES - 1)) for k in range(_SAMPLES)}):
            stream.seek(start)
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------- openslide
def _openslide(path, tiff, mpp):
    """Return the slide, or None where openslide cannot open it."""
    import openslide

    try:
        handle = openslide.OpenSlide(str(path))
    except openslide.OpenSlideError:  # e.g. a compression it lacks
        return None
    try:
        levels = tuple((rows, columns, float(factor)) for (columns, rows), factor in
                       zip(handle.level_dimensions, handle.level_downsamples))  # fmt: skip
        stated = wsi_mpp.of_properties(handle.properties) + ([] if tiff is None else wsi_mpp.of_tiff(tiff))
        size, source, notes = wsi_mpp.decide(stated, given=mpp, shape=levels[0][:2], file=path)
    except BaseException:
        handle.close()
        raise

    def regions(x0, y0, width, height, level):
        factor = levels[level][2]
        corner = (round(x0 * factor), round(y0 * factor))  # openslide wants level 0 here
        block = np.asarray(handle.read_region(corner, level, (width, height)))
        return block[..., :3] if (block[..., 3] == 255).all() else block  # transparent: outside what was scanned

    return Slide(path, levels[0][:2], levels, size, source, tuple(notes), "openslide", False, _fingerprint(path),
                 regions, handle)  # fmt: skip

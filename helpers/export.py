"""Examiner's room: files for other programs."""

from __future__ import annotations

from helpers import section as sec

_TILE = 512


def slide_writer(section, recolour):
    """Return a function that writes the recoloured slide to a path as a tiled, pyramid-free TIFF, a strip at a time.

    Parameters
    ----------
    section
        A checked section.
    recolour
        Maps uint8 RGB (y, x, 3) to uint8 RGB of the same shape, e.g. from ``stain.transform``.

    Notes
    -----
    Memory holds one strip of 512 rows. The resolution is stored in pixels per centimetre, so QuPath knows the scale.
    """
    import numpy as np
    import tifffile

    rows, columns = sec.shape(section)

    def blocks():
        for top in range(0, rows, _TILE):
            strip = recolour(sec.window(section, 0, top, columns, min(_TILE, rows - top)))
            for left in range(0, columns, _TILE):
                block = strip[:, left : left + _TILE]
                missing = (_TILE - block.shape[0], _TILE - block.shape[1])
                yield np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=255)

    def write(path) -> None:
        per_cm = 1e4 / sec.mpp(section)
        with open(path, "wb") as file:
            tifffile.imwrite(
                file,
                blocks(),
                shape=(rows, columns, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(_TILE, _TILE),
                compression="zlib",
                resolution=(per_cm, per_cm),
                resolutionunit="centimeter",
                bigtiff=rows * columns * 3 > 2**32 - 2**25,  # tifffile cannot foresee the size of compressed tiles
            )

    return write

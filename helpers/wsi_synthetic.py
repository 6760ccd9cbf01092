"""Methods, whole slides: a slide of any size, drawn tile by tile, for tests and for measuring.

Lobes of tissue on glass, each of a dense or a loose texture. It is written as it is drawn: 100,000 x 100,000 px need no
more memory than a tile.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import settings
from helpers.messages import CourseError

KINDS = ("tiff", "svs", "ome", "flat")
GLASS = (243, 242, 245)
_PERIOD = 1024
_TILE = 512
_STEP = 4


def write(
    path, *, side_px: int, mpp: float = 0.5, kind: str = "tiff", seed: int = 0, quality: int = 80, state: bool = True
) -> Path:
    """Write a synthetic H&E slide.

    Parameters
    ----------
    side_px
        Height and width of level 0.
    mpp
        Microns per pixel of level 0.
    kind
        ``"tiff"``: pyramid of tiled pages; ``"svs"``: the same with Aperio's descriptions and thumbnail; ``"ome"``:
        OME-TIFF, levels in sub-directories; ``"flat"``: one uncompressed picture without tiles.
    quality
        Of the JPEG tiles.
    state
        Write the pixel size into the file.

    Returns
    -------
    pathlib.Path
        ``path``.
    """
    import tifffile

    if kind not in KINDS or side_px < 256 or not mpp > 0:
        seen = f"a slide of kind {kind!r}, {side_px} px, {mpp} um/px"
        raise CourseError(seen, f"{', '.join(KINDS)}; 256 px or more", "correct it")
    path = Path(path)
    draw = _Drawing(side_px, mpp, seed)
    sides = [side_px]
    while kind != "flat" and sides[-1] // _STEP >= 256:
        sides.append(sides[-1] // _STEP)
    common = {"dtype": np.uint8}
    if state and kind != "svs":
        common["resolutionunit"] = "centimeter"
    if kind == "flat":
        per_cm = {"resolution": (1e4 / mpp, 1e4 / mpp)} if state else {}
        rows = (draw.region(0, top, side_px, min(_TILE, side_px - top), 1) for top in range(0, side_px, _TILE))
        strips = {"photometric": "rgb", "rowsperstrip": _TILE, "metadata": None}
        tifffile.imwrite(path, rows, shape=(side_px, side_px, 3), **common, **per_cm, **strips)
        return path
    jpeg = {"tile": (_TILE, _TILE), "compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}
    with tifffile.TiffWriter(path, bigtiff=side_px > 30_000, ome=kind == "ome") as tiff:
        for number, side in enumerate(sides):
            size = mpp * side_px / side
            extra = {"resolution": (1e4 / size, 1e4 / size)} if state and kind != "svs" else {}
            if kind == "ome":
                stated = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if state else {}  # of microns, OME's usual unit
                extra |= {"subifds": len(sides) - 1, "metadata": {"axes": "YXS", **stated}}
                if number:
                    extra |= {"subifds": None, "metadata": None, "subfiletype": 1}
            elif kind == "svs":
                text = f"Aperio Image Library v12\n{side_px}x{side_px} [0,0 {side_px}x{side_px}] ({_TILE}x{_TILE}) "
                if number:
                    text += f"-> {side}x{side} "
                text += f"JPEG/RGB Q={quality}|AppMag = 20" + (f"|MPP = {mpp:.4f}" if state else "")
                extra |= {"description": text, "metadata": None, "software": False}
            else:
                extra |= {"metadata": None, "subfiletype": int(number > 0)}
            tiff.write(draw.tiles(side, quality), shape=(side, side, 3), **common, **jpeg, **extra)
            if kind == "svs" and not number:  # Aperio's second page is a thumbnail in strips
                small = draw.region(0, 0, 256, 256, side_px / 256)
                tiff.write(small, photometric="rgb", description=text.split("\n")[0], metadata=None, rowsperstrip=64)
    return path


class _Drawing:
    """The slide as a function of position."""

    def __init__(self, side, mpp, seed):
        rng = settings.rng(seed, "synthetic slide")
        self.side = side
        self.lobes = np.column_stack([rng.uniform(0.3, 0.7, 5), rng.uniform(0.3, 0.7, 5), rng.uniform(0.1, 0.24, 5)])
        self.lobes *= side  # x, y, radius
        self.textures = [_texture(rng, mpp, each) for each in (0.25, 0.06)]
        self.scaled, self.encoded = {}, {}

    def texture(self, which, factor):
        """Return a periodic texture shrunk ``factor`` times."""
        import cv2

        if (which, factor) not in self.scaled:
            side = max(4, round(_PERIOD / factor))
            self.scaled[which, factor] = cv2.resize(self.textures[which], (side, side), interpolation=cv2.INTER_AREA)
        return self.scaled[which, factor]

    def uniform(self, x0, y0, width, height, factor):
        """Return what fills a region: the number of a lobe, -1 for glass alone, None for a mixture."""
        middle = (np.array([x0, y0]) + np.array([width, height]) / 2) * factor
        reach = np.hypot(width, height) * factor / 2
        apart = np.hypot(*(self.lobes[:, :2] - middle).T)
        touched = np.flatnonzero(apart - reach <= self.lobes[:, 2])
        if not len(touched):
            return -1
        return int(touched[-1]) if apart[touched[-1]] + reach < self.lobes[touched[-1], 2] else None

    def region(self, x0, y0, width, height, factor):
        """Return uint8 (height, width, 3) at ``factor`` level-0 pixels a pixel; x0 and y0 in those pixels."""
        out = np.empty((height, width, 3), np.uint8)
        out[:] = GLASS
        box = np.array([x0, y0, x0 + width, y0 + height]) * factor
        middle, reach = (box[:2] + box[2:]) / 2, np.hypot(*(box[2:] - box[:2])) / 2
        for number, (x, y, radius) in enumerate(self.lobes):
            apart = np.hypot(*(middle - (x, y)))
            if apart - reach > radius:
                continue
            texture = self.texture(number % 2, factor)
            rows, columns = (np.arange(start, start + length) % len(texture) for start, length in
                             ((y0, height), (x0, width)))  # fmt: skip
            if apart + reach < radius:
                out = texture[rows[:, None], columns]
                continue
            dy = (np.arange(y0, y0 + height) + 0.5) * factor - y
            dx = (np.arange(x0, x0 + width) + 0.5) * factor - x
            inside = dy[:, None] ** 2 + dx**2 < radius**2
            out[inside] = texture[rows[:, None], columns][inside]
        return out

    def tiles(self, side, quality):
        """Yield the tiles of a level of ``side`` pixels, row by row, as JPEG; equal ones are compressed once."""
        import imagecodecs

        factor = self.side / side
        for top in range(0, side, _TILE):
            for left in range(0, side, _TILE):
                filled, key = self.uniform(left, top, _TILE, _TILE, factor), None
                if filled is not None:
                    period = len(self.texture(filled % 2, factor))
                    key = (-1,) if filled < 0 else (filled % 2, factor, left % period, top % period)
                tile = self.encoded.get(key)
                if tile is None:
                    drawn = self.region(left, top, _TILE, _TILE, factor)
                    tile = imagecodecs.jpeg_encode(drawn, level=quality, colorspace="RGB", outcolorspace="YCBCR")
                    if key is not None and len(self.encoded) < 4096:
                        self.encoded[key] = tile
                yield tile


def _texture(rng, mpp, share):
    """Return a periodic uint8 texture (y, x, 3): eosin of uneven strength, nuclei over about ``share`` of it."""
    import cv2

    waves = rng.normal(size=(_PERIOD, _PERIOD)).astype(np.float32)
    waves = cv2.GaussianBlur(np.tile(waves, (3, 3)), (0, 0), 6)[_PERIOD : 2 * _PERIOD, _PERIOD : 2 * _PERIOD]
    eosin = 0.5 + 0.12 * waves / waves.std()
    radius = max(2, round(3.5 / mpp))  # microns
    nuclei = np.zeros((_PERIOD, _PERIOD), np.float32)
    for x, y in rng.integers(0, _PERIOD, (round(share * _PERIOD**2 / (np.pi * radius**2)), 2)):
        for dx in (-_PERIOD, 0, _PERIOD):
            for dy in (-_PERIOD, 0, _PERIOD):
                if -radius <= x + dx < _PERIOD + radius and -radius <= y + dy < _PERIOD + radius:
                    cv2.circle(nuclei, (int(x + dx), int(y + dy)), radius, 1.0, -1)
    nuclei = cv2.GaussianBlur(nuclei, (0, 0), 1)
    density = eosin[..., None] * np.float32([0.1, 0.9, 0.35]) + nuclei[..., None] * np.float32([0.9, 0.8, 0.4])
    return np.clip(np.float32(GLASS) * np.exp(-density), 0, 255).astype(np.uint8)

"""Optics: concentrations of haematoxylin and eosin become light, by Beer and Lambert, and pass a scanner.

In strips of rows and in bytes, with a table of 65536 colours, so that a 3 mm section costs seconds and little memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..settings import rng
from .anatomy import Anatomy
from .fields import enlarge, logistic, smooth_noise, tile_noise

STRIP, OVERLAP, TILE = 512, 24, 1024  # rows, rows, pixels
EOSIN_UNIT, HAEMATOXYLIN_UNIT, NUCLEUS_UNIT = 100, 50, 70  # bytes per unit of concentration in the layers


@dataclass(frozen=True)
class Stain:
    """Stain, light and scanner of one slide.

    ``haematoxylin`` and ``eosin`` are optical density directions (R, G, B; natural logarithm), ``strength_h`` and
    ``strength_e`` their factors, ``white_point`` the light through bare glass (0-255). ``cast`` is eosin bled on to
    the glass at the tissue edge, fading over ``cast_reach_um``; ``illumination`` the relative sd of uneven light;
    ``glare`` the share of light that reaches every pixel. ``blur_um``, ``sharpening`` and ``sharpening_um`` describe
    lens and unsharp mask, ``defocus`` the depth of local blur, ``noise`` the sensor's sd in levels.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white_point: tuple[float, float, float]
    strength_h: float = 1.0
    strength_e: float = 1.0
    cast: float = 0.04
    cast_reach_um: float = 140.0
    illumination: float = 0.005
    stripes: float = 0.0025
    glare: float = 0.04
    blur_um: float = 0.24
    sharpening: float = 0.8
    sharpening_um: float = 0.9
    defocus: float = 0.55
    defocus_um: float = 1.17
    noise: float = 0.5
    grain: float = 0.020
    dust_per_mm2: float = 1.5
    printed_pitch_um: float = 0.0
    printed_origin_um: tuple[float, float] = (100.0, 100.0)
    jpeg_quality: int = 86


def _colour_table(stain: Stain) -> np.ndarray:
    """RGB of every pair of bytes (haematoxylin, eosin): float32 (65536, 3)."""
    h = np.arange(256)[:, None, None] / HAEMATOXYLIN_UNIT * stain.strength_h
    e = np.arange(256)[None, :, None] / EOSIN_UNIT * stain.strength_e
    vector_h, vector_e = (np.array(v) / np.linalg.norm(v) for v in (stain.haematoxylin, stain.eosin))
    light = np.exp(-h * vector_h - e * vector_e) * (1 - stain.glare) + stain.glare
    return (light * np.array(stain.white_point)).reshape(-1, 3).astype(np.float32)


class _Tiles:
    """Repeating textures, read by rows."""

    def __init__(self, stain: Stain, chromatin: float, mpp: float, generator: np.random.Generator):
        def byte(field):
            return np.clip(np.rint(128 * field), 0, 255).astype(np.uint8)

        clumps = 0.13 * tile_noise(generator, TILE, 0.62 / mpp) + 0.14 * tile_noise(generator, TILE, 1.7 / mpp)
        self.chromatin = byte(1 + chromatin * clumps)
        self.cytoplasm = byte(1 + 0.18 * tile_noise(generator, TILE, 1.6 / mpp))
        self.grain = byte(1 + stain.grain * generator.standard_normal((TILE, TILE), dtype=np.float32))
        sensor = tile_noise(generator, TILE, 0.6)[..., None]
        sensor = stain.noise * (sensor + 0.5 * generator.standard_normal((TILE, TILE, 3), dtype=np.float32))
        self.sensor = byte(1 + sensor / 128)
        self.dither = generator.random((TILE, TILE), dtype=np.float32)

    @staticmethod
    def rows(tile: np.ndarray, first: int, last: int, width: int) -> np.ndarray:
        part = np.take(tile, np.arange(first, last) % TILE, axis=0)
        return np.tile(part, (1, width // TILE + 1) + (1,) * (tile.ndim - 2))[:, :width]


def _printed(stain: Stain, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """True inside the 100 um discs that an array prints on the glass."""
    pitch, (x0, y0) = stain.printed_pitch_um, stain.printed_origin_um
    dx = (x_um - x0 + pitch / 2) % pitch - pitch / 2
    dy = (y_um - y0 + pitch / 2) % pitch - pitch / 2
    return dx[None] ** 2 + dy[:, None] ** 2 < 50**2


def _dust(image: np.ndarray, count: int, mpp: float, generator: np.random.Generator) -> None:
    """Dark rings of dust on the cover slip, in place."""
    height, width = image.shape[:2]
    for _ in range(count):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        radius, turn = generator.uniform(1.7, 4.8) / mpp, np.linspace(0, 2 * np.pi, 11)[:-1]
        points = np.stack([x + radius * np.cos(turn) * generator.uniform(0.6, 1.2, 10),
                           y + radius * np.sin(turn) * generator.uniform(0.6, 1.2, 10)], 1)
        reach = int(radius * 2) + 4
        rows, columns = (slice(max(0, int(c) - reach), int(c) + reach) for c in (y, x))
        part = image[rows, columns]
        ring = np.zeros(part.shape[:2], np.uint8)
        fixed = np.int32((points - [columns.start, rows.start]) * 16)
        cv2.polylines(ring, [fixed], True, 255, max(1, round(generator.uniform(0.5, 2) / mpp)), cv2.LINE_AA, 4)
        cover = 0.85 * cv2.GaussianBlur(ring, (0, 0), 0.55 / mpp)[..., None] / 255.0
        part[:] = (part * (1 - cover) + cover * np.array([38, 40, 45])).astype(np.uint8)


def _concentrations(background, layers, tiles, rows, shape, mpp, thick_blur) -> tuple[np.ndarray, np.ndarray]:
    """Eosin and haematoxylin bytes of the rows ``rows`` = (first, last): matrix, cytoplasm, nuclei."""
    first, last = rows
    part = slice(first, last)
    size = (last - first, shape[1])
    dither = tiles.rows(tiles.dither, first, last, shape[1])  # so that the steps of bytes do not show
    eosin, haem = (
        np.clip(enlarge(b, size, 0.5, first_row=first) * unit + dither, 0, 255).astype(np.uint8)
        for b, unit in zip(background, (EOSIN_UNIT, HAEMATOXYLIN_UNIT))
    )
    blur = cv2.GaussianBlur
    cyto_e, cyto_h = (blur(layers[f"cyto_{n}"][part], (0, 0), 0.76 / mpp) for n in ("eosin", "haematoxylin"))
    texture = tiles.rows(tiles.cytoplasm, first, last, shape[1])
    cover = cv2.convertScaleAbs(cyto_e, alpha=5.6)
    eosin = cv2.subtract(eosin, cv2.multiply(eosin, cover, scale=0.75 / 255))
    eosin = cv2.add(eosin, cv2.multiply(cyto_e, texture, scale=1 / 128))
    haem = cv2.subtract(haem, cv2.multiply(haem, cover, scale=0.4 / 255))
    haem = cv2.add(haem, cv2.multiply(cyto_h, texture, scale=0.5 / 128))
    front = blur(layers["front"][part], (0, 0), 0.38 / mpp)
    deep = blur(layers["deep"][part], (0, 0), thick_blur / mpp)
    cover = cv2.add(cv2.convertScaleAbs(front, alpha=2.5), cv2.convertScaleAbs(deep, alpha=1.6))
    eosin = cv2.subtract(eosin, cv2.multiply(eosin, cover, scale=0.92 / 255))  # nuclei displace the pink matrix
    texture = tiles.rows(tiles.chromatin, first, last, shape[1])
    haem = cv2.add(haem, cv2.multiply(front, texture, scale=HAEMATOXYLIN_UNIT / NUCLEUS_UNIT / 128))
    haem = cv2.add(haem, cv2.convertScaleAbs(deep, alpha=0.95 * HAEMATOXYLIN_UNIT / NUCLEUS_UNIT))
    eosin = cv2.add(eosin, cv2.convertScaleAbs(front, alpha=0.08 * EOSIN_UNIT / NUCLEUS_UNIT))
    grain = tiles.rows(tiles.grain, first, last, shape[1])
    return cv2.multiply(eosin, grain, scale=1 / 128), cv2.multiply(haem, grain, scale=1 / 128)


def expose(anatomy: Anatomy, background, layers: dict, stain: Stain, *, mpp: float, seed: int, section: str):
    """Expose a section: RGB image and the stain vectors a perfect instrument finds in it.

    Parameters
    ----------
    background
        Eosin and haematoxylin of the matrix, float16 on a grid of two pixels.
    layers
        ``cyto_eosin``, ``cyto_haematoxylin``, ``front``, ``deep``: uint8 (ny, nx).

    Returns
    -------
    image
        uint8 (ny, nx, 3) RGB, before JPEG.
    vectors
        float (2, 3): unit haematoxylin and eosin. Least squares of the noise-free optical density, relative to the
        true white point and before uneven light, on the true concentrations over one tissue pixel in 49.
    """
    shape = layers["front"].shape
    height, width = shape
    generator = rng(seed, "optics", section)
    tiles = _Tiles(stain, min(anatomy.style.chromatin, 1.2), mpp, generator)
    colours = _colour_table(stain)
    table, light = np.clip(colours + 0.5, 0, 255).astype(np.uint8), -np.log(colours / np.array(stain.white_point))
    grid = anatomy.grid_um
    tissue, coarse = anatomy.fields["tissue"], anatomy.shape
    side = logistic(1.5 * smooth_noise(generator, coarse, 450 / grid))
    cast = stain.cast * np.exp(np.minimum(tissue, 0) / stain.cast_reach_um) * side * stain.strength_e
    focus = stain.defocus * np.clip(0.8 * smooth_noise(generator, coarse, 75 / grid) - 0.45, 0, 1)
    uneven = 1 + stain.illumination * smooth_noise(generator, coarse, 700 / grid)
    x_um, y_um = (np.arange(width) + 0.5) * mpp, (np.arange(height) + 0.5) * mpp
    columns = 1 + stain.stripes * np.sign(np.sin(2 * np.pi * x_um / 580))
    columns = columns + 0.6 * stain.stripes * generator.standard_normal(width // 64 + 1).repeat(64)[:width]
    columns, eosin_vector = columns.astype(np.float32), np.float32(stain.eosin / np.linalg.norm(stain.eosin))
    image, samples = np.empty((height, width, 3), np.uint8), []
    for start in range(0, height, STRIP):
        first, last = max(0, start - OVERLAP), min(height, start + STRIP + OVERLAP)
        scale, size = mpp / grid, (last - first, width)
        eosin, haem = _concentrations(background, layers, tiles, (first, last), shape, mpp, anatomy.style.thick_blur)
        index = (haem.astype(np.uint16) << 8) | eosin
        inside = enlarge(tissue, size, scale, first_row=first)[::7, ::7] > 5
        picked = index[::7, ::7][inside]
        samples.append(np.c_[picked >> 8, picked & 255, light[picked]])
        rgb = cv2.GaussianBlur(table[index], (0, 0), stain.blur_um / mpp)
        unsharp = enlarge(focus, size, scale, first_row=first)
        if unsharp.max() > 0.02:
            rgb = cv2.blendLinear(rgb, cv2.GaussianBlur(rgb, (0, 0), stain.defocus_um / mpp), 1 - unsharp, unsharp)
        soft = cv2.GaussianBlur(rgb, (0, 0), stain.sharpening_um / mpp)
        rgb = cv2.addWeighted(rgb, 1 + stain.sharpening, soft, -stain.sharpening, 0)
        lamp = enlarge(uneven, size, scale, first_row=first) * columns[None]
        bleed = enlarge(cast, size, scale, first_row=first)
        if stain.printed_pitch_um:
            bleed += np.float32(0.012) * _printed(stain, x_um, y_um[first:last])
        lamps = [lamp * (1 - bleed * v + 0.5 * (bleed * v) ** 2) for v in eosin_vector]  # exp(-bleed v), bleed is small
        rgb = cv2.multiply(rgb, cv2.merge(lamps), dtype=cv2.CV_8U)
        rgb = cv2.addWeighted(rgb, 1, tiles.rows(tiles.sensor, first, last, width), 1, -128)
        kept = min(STRIP, height - start)
        image[start : start + kept] = rgb[start - first : start - first + kept]
    area_mm2 = anatomy.size_um[0] * anatomy.size_um[1] * 1e-6
    _dust(image, int(generator.poisson(stain.dust_per_mm2 * area_mm2)), mpp, generator)
    sample = np.concatenate(samples)
    known = sample[:, :2] / [HAEMATOXYLIN_UNIT, EOSIN_UNIT]
    vectors = np.maximum(np.linalg.lstsq(known, sample[:, 2:], rcond=None)[0], 0)
    return image, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

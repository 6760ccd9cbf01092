"""Methods, encoders: ``colour`` - what a tile's colours and grain say without any network.

How much haematoxylin and eosin, how evenly, and at which sizes the haematoxylin is grained: a stand-in for how densely
nuclei lie and how large they are. It is a baseline every network should beat, and a useful addition to a small one.
"""

from __future__ import annotations

import cv2
import numpy as np

from helpers.encoders_core import Encoder, fingerprint

INPUT_PX = 160
_GRAIN_PX = (1.0, 2.0, 4.0, 8.0, 16.0)
_VECTORS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])  # H, E, rest
"""Optical density of haematoxylin, eosin and the residual (Ruifrok and Johnston 2001)."""
_UNMIX = np.linalg.inv(_VECTORS / np.linalg.norm(_VECTORS, axis=1, keepdims=True)).astype(np.float32)
_QUANTILES = (0.1, 0.5, 0.9)
NAMES = (
    *(f"od_{part}_{channel}" for part in ("mean", "sd") for channel in "rgb"),
    *(f"{stain}_{part}" for stain in ("h", "e") for part in ("mean", "sd", *(f"q{q:g}" for q in _QUANTILES))),
    *(f"h_grain_{fine:g}px" for fine in _GRAIN_PX[:-1]),
    "h_peaks",
    "h_e_correlation",
)  # fmt: skip
"""What the numbers are. Optical densities are natural, against 255."""


def measure(tiles):
    """Return the numbers of ``NAMES`` for tiles, uint8 RGB (n, INPUT_PX, INPUT_PX, 3): float32 (n, len(NAMES))."""
    out = np.empty((len(tiles), len(NAMES)), np.float32)
    density = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    for row, tile in zip(out, tiles):
        od = density[tile]
        stains = od.reshape(-1, 3) @ _UNMIX[:, :2]
        spread = stains.std(0)
        h = np.ascontiguousarray(stains[:, 0].reshape(tile.shape[:2]))
        blurred = [cv2.GaussianBlur(h, (0, 0), sigma) for sigma in _GRAIN_PX]
        bumps = blurred[1] - blurred[3]  # about the size of nuclei in a tile of 100 um
        summit = (cv2.dilate(bumps, np.ones((5, 5), np.uint8)) == bumps) & (bumps > 0.5 * bumps.std())
        together = ((stains - stains.mean(0)).prod(1).mean() / max(spread.prod(), 1e-6)) if spread.all() else 0.0
        quantiles = np.quantile(stains, _QUANTILES, axis=0)
        row[:] = [
            *od.mean((0, 1)), *od.std((0, 1)),
            *(value for k in (0, 1) for value in (stains[:, k].mean(), spread[k], *quantiles[:, k])),
            *((fine - coarse).std() for fine, coarse in zip(blurred, blurred[1:])),
            np.sqrt(summit.sum()), together,
        ]  # fmt: skip
    return out


def load() -> Encoder:
    """Return the encoder ``colour``."""
    facts = {"encoder": "colour", "version": 1, "input_px": INPUT_PX, "names": NAMES, "grain": _GRAIN_PX}
    return Encoder(
        name="colour", dim=len(NAMES), input_px=INPUT_PX, licence="the course's own", prepare=lambda tiles: tiles,
        forward=measure, fingerprint=fingerprint([_UNMIX], facts),
    )  # fmt: skip

"""Methods, stain: sampling a slide's tissue, and recolouring tiles, strips and slides (``stain`` is the front door)."""

from __future__ import annotations

import cv2
import numpy as np

from helpers.messages import CourseError
from helpers.settings import rng
from helpers.stain_optics import TISSUE_OD, concentrations, from_lab, optical_density, remove_cast, rgb8, to_lab


def transform(source, target):
    """Return the function that gives pixels of ``source``'s slide the stain of ``target``'s, on white glass."""
    if source.method != target.method:
        raise CourseError(f"fits by {source.method} and {target.method}", "one method", "fit both slides the same way")
    return Normaliser(source, target)


class Normaliser:
    """Maps uint8 RGB to uint8 RGB; call it on tiles, strips or whole images of one slide.

    ``source`` and ``target`` are two ``stain.StainFit``. The result depends on a pixel's colour alone, so each distinct
    colour is computed once and kept in a table of 2^24 entries (64 MB, filled as colours appear): exact, and quicker
    than arithmetic on every pixel.
    """

    def __init__(self, source, target):
        self.source, self.target = source, target
        self._table = None

    def colours(self, rgb):
        """Return the new colours of ``rgb`` (uint8 (n, 3)) as uint8 (n, 3), computed one by one."""
        od = optical_density(rgb, self.source.white_point)
        if self.source.method == "reinhard":
            return self._reinhard(rgb, od)
        gain = (self.target.max_concentration / np.maximum(self.source.max_concentration, 1e-6)).astype(np.float32)
        amount = concentrations(od, self.source.vectors) * gain
        return np.rint(255 * np.exp(-amount @ self.target.vectors.astype(np.float32))).astype(np.uint8)

    def _reinhard(self, rgb, od):
        """Match mean and spread in l-alpha-beta (Reinhard et al. 2001); glass, which has no stain, fades to white."""
        lab = to_lab(remove_cast(rgb, self.source.white_point).astype(float))
        unit = (lab - self.source.lab_mean) / np.maximum(self.source.lab_sd, 1e-6)
        new = from_lab(unit * self.target.lab_sd + self.target.lab_mean)
        stained = np.clip(od.mean(axis=1, keepdims=True) / TISSUE_OD, 0, 1)
        return np.clip(np.rint(stained * new + (1 - stained) * 255), 0, 255).astype(np.uint8)

    def __call__(self, rgb):
        """Return the normalised ``rgb``: uint8, the same shape (..., 3)."""
        rgb = rgb8(rgb)
        if self._table is None:
            self._table = np.zeros(2**24, np.uint32)
        flat = np.ascontiguousarray(rgb).reshape(-1, 1, 3)
        code = cv2.cvtColor(flat, cv2.COLOR_RGB2RGBA).view("<u4").ravel() & 0xFFFFFF
        new = self._table[code]
        if not new.all():  # the top byte of a known colour is 255, so 0 means not yet computed
            self._learn(code[new == 0])
            new = self._table[code]
        return cv2.cvtColor(new.view(np.uint8).reshape(-1, 1, 4), cv2.COLOR_RGBA2RGB).reshape(rgb.shape)

    def _learn(self, code):
        """Add the colours ``code`` (uint32, repeated) to the table."""
        if len(code) > 200_000:  # marking and scanning the table beats sorting
            self._table[code] = 1
            unknown = np.flatnonzero(self._table == 1).astype("<u4")
        else:
            unknown = np.unique(code)
        done = np.full((len(unknown), 4), 255, np.uint8)
        done[:, :3] = self.colours(unknown.view(np.uint8).reshape(-1, 4)[:, :3])
        self._table[unknown] = done.view("<u4").ravel()


# ---------------------------------------------------------------- whole slides, a strip at a time
def sample(read_window, shape, tissue, *, n=100_000, seed=0, blur_px=1.0, strip=1024, file=None):
    """Return ``n`` full-resolution tissue pixels, uint8 (n, 3), reading only the strips and columns that hold tissue.

    Parameters
    ----------
    read_window
        ``read_window(x0, y0, width, height)`` -> uint8 (height, width, 3).
    shape
        (height, width) of the slide in pixels.
    tissue
        bool (y, x) at any scale, covering the whole slide.
    blur_px
        Gaussian sigma that rids the pixels of camera and JPEG noise, which would bend the stain vectors; 0.7 um of
        tissue (1 px at 0.69 um/px) is good, 0 switches it off.
    file
        Named in the error when there is no tissue.
    """
    tissue = np.asarray(tissue, bool)
    rows, columns = np.nonzero(tissue)
    if len(rows) == 0:
        raise CourseError("a slide without tissue", "some tissue", "look at the image, or leave it out", file=file)
    draw = rng(seed, "stain", "sample")
    pick = draw.integers(0, len(rows), n)
    scale = np.divide(shape, tissue.shape)
    place = (np.stack([rows[pick], columns[pick]], axis=1) + draw.random((n, 2))) * scale
    y, x = np.minimum(place.astype(np.int64), np.subtract(shape, 1)).T
    out = np.empty((n, 3), np.uint8)
    for top in range(0, shape[0], strip):
        here = np.flatnonzero((y >= top) & (y < top + strip))
        if len(here):
            y0, x0 = y[here].min(), x[here].min()
            window = read_window(int(x0), int(y0), int(np.ptp(x[here])) + 1, int(np.ptp(y[here])) + 1)
            if blur_px > 0:
                window = cv2.GaussianBlur(window, (0, 0), blur_px)
            out[here] = window[y[here] - y0, x[here] - x0]
    return out


def stream(read_window, shape, normaliser, out, *, strip=512):
    """Normalise a whole slide into ``out``, ``strip`` rows at a time, and return it.

    Parameters
    ----------
    read_window, shape
        As for :func:`sample`.
    out
        Anything that takes ``out[y0:y1] = strip``: an array, a memory map, a zarr array; (y, x, 3) uint8.
    """
    for top in range(0, shape[0], strip):
        height = min(strip, shape[0] - top)
        out[top : top + height] = normaliser(read_window(0, top, shape[1], height))
    return out

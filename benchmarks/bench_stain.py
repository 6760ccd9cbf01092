"""Stain normalisation against StainTools on the same 3 Mpx, and its memory over a whole section.

StainTools is run the two ways its users do: tile by tile (each 299 px tile fitted and transformed), and the whole
picture at once. The pictures are crops of real sections where ``COURSE_DATA`` has them, else H&E made by Beer-Lambert's
law. The memory is measured on a section made of one repeated crop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import cv2
import numpy as np

from helpers import settings, stain

SIDE, TILE, TILES_TIMED = 1732, 299, 8
SECTION = (9900, 9300)
WHITE = np.full(3, 255.0)
_CROPS = {"source": ("her2st/data/ST-imgs/C/C3", 1600, 3600), "target": ("spacell_als/dataset/image/CN52_C2", 900, 900)}


def synthetic(seed: int, side: int = SIDE, vectors=((0.77, 0.56, 0.30), (0.41, 0.79, 0.46)), white=(236, 219, 234)):
    """Return H&E-like uint8 RGB (side, side, 3): blobs of haematoxylin over fibrous eosin, by Beer-Lambert's law."""
    stream = settings.rng(seed, "bench", "synthetic")
    draw = [cv2.GaussianBlur(stream.standard_normal((side, side)).astype(np.float32), (0, 0), s) for s in (3, 7, 40)]
    fine, fibre, region = (field / field.std() for field in draw)
    amount = np.stack([0.15 + 1.4 * (fine + 0.5 * region > 1.1), 0.45 * np.exp(0.5 * fibre)], axis=-1)
    amount = cv2.GaussianBlur(amount, (0, 0), 0.8)
    light = np.exp(-amount @ (np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)))
    noisy = np.array(white) * light + stream.normal(0, 1, light.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _pictures():
    """Return source, target (uint8, SIDE x SIDE) and what they are."""
    out = []
    for where, y, x in _CROPS.values():
        place = settings.data_dir() / where
        files = place.glob("*.jpg") if place.is_dir() else place.parent.glob(place.name + "*.jpg")
        file = next(iter(sorted(files)), None)
        if file is None:
            return synthetic(1), synthetic(2, vectors=((0.71, 0.61, 0.34), (0.47, 0.80, 0.37))), "synthetic"
        full = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        out.append(np.ascontiguousarray(full[y : y + SIDE, x : x + SIDE]))
    return *out, "her2st C3 to spacell_als CN52_C2"


def _seconds(work, repeat: int = 1):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result


def _like(rgb):
    """Fit as StainTools does: white 255, its luminosity mask, its sparsity, no smoothing."""
    dark = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[..., 0] < 0.8 * 255
    return stain.fit(rgb, method="vahadane", white_point=WHITE, tissue=dark, sparsity=0.1, blur_px=0)


def run() -> list[dict]:
    """Return the rows of the table; seconds unless the unit says otherwise."""
    import staintools

    source, target, what = _pictures()
    standard = staintools.LuminosityStandardizer.standardize
    flat_source, flat_target = standard(source.copy()), standard(target.copy())
    reference = staintools.StainNormalizer("vahadane")
    reference.fit(flat_target.copy())
    whole, their_result = _seconds(lambda: reference.transform(standard(source.copy())))
    corners = [(y, x) for y in range(0, SIDE - TILE, TILE) for x in range(0, SIDE - TILE, TILE)][:: 25 // TILES_TIMED]
    tiles = [source[y : y + TILE, x : x + TILE] for y, x in corners[:TILES_TIMED]]
    per_tile, _ = _seconds(lambda: [reference.transform(standard(tile.copy())) for tile in tiles])
    tiled = per_tile / len(tiles) * SIDE**2 / TILE**2

    white, target_white = stain.white_point(source), stain.white_point(target)
    target_fit = stain.fit(target, white_point=target_white)
    ours, our_result = _seconds(
        lambda: stain.transform(stain.fit(source, white_point=stain.white_point(source)), target_fit)(source), repeat=3
    )
    like_source, like_target = _like(flat_source), _like(flat_target)
    like_result = stain.transform(like_source, like_target)(flat_source)
    angle = max(map(stain.angle_deg, like_target.vectors, reference.stain_matrix_target))

    def difference(a):
        return float(np.abs(a.astype(int) - their_result).mean())

    note = f"{what}; white point + fit + transform, white {np.rint(white).astype(int).tolist()}"
    rows = [
        dict(name="Vahadane 3 Mpx, StainTools tile by tile", ours=ours, other=tiled, ratio=tiled / ours, unit="s",
             note=f"{note}; other: {len(tiles)} tiles of {TILE} px timed, scaled to 3 Mpx"),
        dict(name="Vahadane 3 Mpx, StainTools whole at once", ours=ours, other=whole, ratio=whole / ours, unit="s",
             note="its dictionary learning always runs for 1 s of wall clock"),
        dict(name="difference to StainTools, like with like", ours=difference(like_result), other=None, ratio=None,
             unit="of 255", note=f"its luminosity step, mask, white, sparsity; dictionaries {angle:.2f} deg apart"),
        dict(name="difference to StainTools, our settings", ours=difference(our_result), other=None, ratio=None,
             unit="of 255", note="our white point, sparsity and tissue-only 99th percentile"),
    ]  # fmt: skip
    half, full = (_memory(SECTION[0] // part) for part in (2, 1))
    rows.append(
        dict(name="stream of a 9300 x 9900 section", ours=full["mb"], other=half["mb"], ratio=full["mb"] / half["mb"],
             unit="MB", note=f"peak beyond the image, whole and half section (flat = 1); {full['seconds']:.1f} s")
    )  # fmt: skip
    return rows


def _memory(height: int) -> dict:
    """Stream ``height`` rows in a fresh process; return its peak memory beyond the image (MB) and seconds."""
    code = f"from benchmarks.bench_stain import _stream_here; _stream_here({height})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=settings.ROOT)
    return json.loads(done.stdout)


class _Sink:
    """Takes strips and forgets them, as a file would."""

    def __setitem__(self, rows, strip):
        self.last = int(strip[0, 0, 0])


def _stream_here(height: int) -> None:
    """Print, as JSON, the memory (sampled every 2 ms) and the time that streaming ``height`` rows takes."""
    import psutil

    piece = synthetic(3, 1024)
    image = np.empty((height, SECTION[1], 3), np.uint8)
    for top in range(0, height, 1024):
        for left in range(0, SECTION[1], 1024):
            block = image[top : top + 1024, left : left + 1024]
            block[:] = piece[: block.shape[0], : block.shape[1]]
    source = stain.fit(piece, white_point=(236, 219, 234))
    normaliser = stain.transform(source, source)
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, _ = _seconds(
        lambda: stain.stream(lambda x, y, w, h: image[y : y + h, x : x + w], image.shape[:2], normaliser, _Sink())
    )
    done.set()
    watcher.join()
    print(json.dumps({"mb": (peak[0] - before) / 2**20, "seconds": seconds}))

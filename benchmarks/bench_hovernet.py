"""HoVer-Net: targets of a field against a loop over nuclei, memory of a section against four, tiles per second."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

SIDE_PX = 2048
NUCLEI = 8000
LOOPED = 40


def _outlines(n: int, side_um: float):
    """Ellipses float (n, 18, 2) in um."""
    from helpers import settings

    rng = settings.rng(0, "bench_hovernet")
    turn = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    long, wide, lean = rng.uniform(2.5, 5, (n, 1)), rng.uniform(1.5, 3, (n, 1)), rng.uniform(0, np.pi, (n, 1))
    x, y = long * np.cos(turn), wide * np.sin(turn)
    shape = np.stack([x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)], 2)
    return shape + rng.uniform(0, side_um, (n, 1, 2))


def _seconds(function) -> float:
    """CPU seconds of the quicker of two calls."""
    spent = []
    for _ in range(2):
        began = time.process_time()
        function()
        spent.append(time.process_time() - began)
    return min(spent)


def _loop(labels, chosen):
    """Maps of the nuclei ``chosen``, each found in the whole field: the usual loop."""
    maps = np.zeros((*labels.shape, 2), np.float32)
    for i in chosen:
        y, x = np.nonzero(labels == i)
        for k, place in enumerate((x, y)):
            away = place - place.mean()
            maps[y, x, k] = np.where(away > 0, away / max(away.max(), 1e-3), away / max(-away.min(), 1e-3))
    return maps


def _box_loop(labels):
    """The same with each nucleus cut out first."""
    from scipy import ndimage

    maps = np.zeros((*labels.shape, 2), np.float32)
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            maps[box] += _loop(np.where(labels[box] == i, i, 0), [i])
    return maps


def _polygon_loop(outlines, shape, mpp):
    """Outlines filled one by one by scikit-image."""
    from skimage.draw import polygon

    labels = np.zeros(shape, np.int32)
    for i, outline in enumerate(outlines, 1):
        labels[polygon(outline[:, 1] / mpp - 0.5, outline[:, 0] / mpp - 0.5, shape)] = i
    return labels


class _Fake:
    """Answers as fast as an array is made, so that only stitching is measured."""

    output_shape = (None, None, None, 8)

    def predict_on_batch(self, x):
        made = np.zeros((*x.shape[:3], 8), np.float32)
        made[..., 0] = np.where(x[..., 0] < 128, 9, -9)
        made[..., 1:3] = x[..., 1:] / 100 - 1
        made[..., 4] = 3
        return made


def _peak(image) -> float:
    """Peak MB of finding the nuclei of an image block by block."""
    from helpers import hovernet_section
    from helpers.hovernet_post import Post

    tracemalloc.start()
    hovernet_section.predict(
        _Fake(), image, mpp=0.5, classes=("a", "b", "c", "d"), post=Post(), block=512, labels=False
    )
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def run() -> list[dict]:
    """Ratios are theirs over ours, in CPU seconds."""
    from helpers import hovernet_net, hovernet_section, hovernet_targets, settings

    outlines = _outlines(NUCLEI, SIDE_PX / 2)
    shape = (SIDE_PX, SIDE_PX)
    labels = hovernet_targets.rasterise(outlines, shape=shape, mpp=0.5)
    hv = hovernet_targets.hv_maps(labels)
    present = np.unique(labels[labels > 0])
    ours = _seconds(lambda: hovernet_targets.hv_maps(labels))
    full = _seconds(lambda: _loop(labels, present[:LOOPED])) * len(present) / LOOPED
    box = _seconds(lambda: _box_loop(labels))
    name = f"maps of {len(present)} nuclei, {SIDE_PX} px square"
    rows = [
        {"name": name, "ours": ours, "other": full, "ratio": full / ours, "unit": "CPU s",
         "note": f"other: each nucleus sought in the whole field; {LOOPED} timed, the rest reckoned"},
        {"name": name, "ours": ours, "other": box, "ratio": box / ours, "unit": "CPU s",
         "note": "other: each nucleus cut out by its box first"},
    ]  # fmt: skip
    ours = _seconds(lambda: hovernet_targets.rasterise(outlines, shape=shape, mpp=0.5))
    other = _seconds(lambda: _polygon_loop(outlines, shape, 0.5))
    rows.append({"name": f"{NUCLEI} outlines filled", "ours": ours, "other": other, "ratio": other / ours,
                 "unit": "CPU s", "note": "other: skimage.draw.polygon one by one"})  # fmt: skip
    image = np.full((*shape, 3), 200, np.uint8)
    image[..., 0][labels > 0] = 20
    image[..., 1:] = np.rint((hv + 1) * 100)
    one = _peak(image)
    four = _peak(np.broadcast_to(image[None], (4, *image.shape)).reshape(-1, *image.shape[1:]))
    rows.append({"name": "memory of four sections' area over one's", "ours": one, "other": four, "ratio": four / one,
                 "unit": "MB", "note": "blocks of 512 px, no label image; 1 is flat, outlines and table grow"})
    model = hovernet_net.build(hovernet_net.PRESETS["tiny"], classes=4)
    noise = settings.rng(0, "bench_hovernet").integers(0, 255, (960, 960, 3)).astype(np.uint8)
    hovernet_section.maps(model, noise[:448, :448])
    seconds = _seconds(lambda: hovernet_section.maps(model, noise))
    whole = _seconds(lambda: hovernet_section.maps(model, noise, tile=256))
    tiles = noise.shape[0] * noise.shape[1] / 256**2
    rows.append({"name": "tiny network, tiles of 256 x 256 px a CPU second", "ours": tiles / seconds,
                 "other": tiles / whole, "ratio": whole / seconds, "unit": "1/s",
                 "note": "ours: cut into 512 px with 32 px margins; other: into 256 px"})  # fmt: skip
    return rows

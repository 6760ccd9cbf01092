"""Embedding throughput: batches through one compiled graph, against a ``predict`` call a tile as SpaCell makes it."""

from __future__ import annotations

import time

import cv2
import numpy as np

from helpers import encoders, settings

TILES, SIDE = 256, 299


def _throughput(work, count: int) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def run() -> list[dict]:
    """Return tiles per second, both ways on the same tiles of 299 px, for ``tiny`` and for an untrained ResNet50."""
    from helpers import encoders_keras

    stream = settings.rng(0, "bench_encoders")
    tiles = stream.integers(0, 256, (TILES, SIDE, SIDE, 3), dtype=np.uint8)
    rows = []
    resnet = encoders_keras.application("resnet50", weights="random")
    for encoder, count in ((encoders.get("tiny"), TILES), (resnet, 32)):
        model, side, some = encoder.backbone(), encoder.input_px, tiles[:count]

        def one_by_one():
            found = []
            for tile in some:
                small = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
                found.append(model.predict(encoder.prepare(small[None]), batch_size=1, verbose=0))
            return np.concatenate(found)

        encoder.embed(some[:2])  # both graphs are traced before the clock runs
        model.predict(encoder.inputs(some[:1]), verbose=0)
        ours = _throughput(lambda: encoder.embed(some), count)
        other = _throughput(one_by_one, count)
        rows.append({"name": f"embedding with {encoder.name}, {count} tiles of {SIDE} px", "ours": ours, "other": other,
                     "ratio": ours / other, "unit": "tiles/s",
                     "note": "other: predict, one tile at a time; weights play no part in the speed"})  # fmt: skip
    return rows

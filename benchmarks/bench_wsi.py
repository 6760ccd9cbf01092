"""Whole slides: blocks of neighbouring tiles against one read a tile; memory against the size of the slide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDES = (4_000, 16_000)
"""Pixels. ``COURSE_BENCH_WSI=100000`` measures one more: 600 MB of disk, minutes."""

CHILD = """
import json, resource, sys, time
from helpers import tissue, wsi, wsi_synthetic
side, folder = int(sys.argv[1]), sys.argv[2]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path = wsi_synthetic.write(f"{folder}/{side}.tif", side_px=side)
facts = {"before": peak(), "bytes": path.stat().st_size, "write": time.process_time()}
with wsi.open_slide(path) as slide:
    began = time.process_time()
    encode = lambda tiles: tiles.reshape(len(tiles), -1, 3).mean(1)
    wsi.stream(slide, f"{folder}/{side}.zarr", encode=encode, tile_um=100.0, out_px=96, tissue=tissue.mask)
facts.update(cpu=time.process_time() - began, peak=peak(), tiles=wsi.table(f"{folder}/{side}.zarr").n_obs)
print(json.dumps(facts))
"""


def _measured(side, folder):
    """Return what a process of its own needed for a slide of ``side`` pixels."""
    words = [sys.executable, "-c", CHILD, str(side), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _blocks(path):
    """Return one row: CPU seconds for the tiles of a slide, read in blocks and one by one; the tiles must agree."""
    from dataclasses import replace

    from helpers import tissue, wsi

    times, found = [], []
    with wsi.open_slide(path) as slide:
        chosen = wsi.plan(slide, tile_um=100.0, tissue=tissue.mask)
    few = {name: getattr(chosen, name)[:1024] for name in ("xy_px", "grid", "tissue", "group")}
    chosen = replace(chosen, **few)
    single = replace(chosen, group=np.arange(len(chosen.group), dtype=np.int32))
    for each in (chosen, single):
        with wsi.open_slide(path) as slide:  # opened again: openslide keeps 32 MB of decoded tiles
            began = time.process_time()
            found.append(wsi.cut(slide, each, np.arange(len(each.group)), out_px=96)[0])
            times.append(time.process_time() - began)
    assert np.array_equal(*found)
    return {"name": f"{len(few['group']):,} tiles in blocks, {slide.backend}", "ours": times[0], "other": times[1],
            "ratio": times[1] / times[0], "unit": "CPU s",
            "note": "other: one read a tile; equal, checked"}  # fmt: skip


def run() -> list[dict]:
    """Measure both; memory is the resident peak of a process of its own."""
    from helpers import wsi_synthetic

    sides = [*SIDES, *(int(side) for side in os.environ.get("COURSE_BENCH_WSI", "").split(",") if side)]
    with tempfile.TemporaryDirectory() as folder:
        facts = {side: _measured(side, folder) for side in sides}
        pair = Path(folder) / f"{SIDES[-1]}.tif", Path(folder) / "same.ome.tif"
        wsi_synthetic.write(pair[1], side_px=SIDES[-1], kind="ome")
        rows = [_blocks(path) for path in pair]
    small, large = facts[sides[0]], facts[sides[-1]]
    note = "; ".join(
        f"{side:,} px: {each['tiles']:,} tiles, {each['cpu']:.0f} CPU s, {each['bytes'] / 1e6:.0f} MB on disk"
        for side, each in facts.items()
    )
    return [
        *rows,
        {"name": f"peak memory, {sides[-1]:,} px", "ours": large["peak"], "other": sides[-1] ** 2 * 3 / 2**20,
         "ratio": sides[-1] ** 2 * 3 / 2**20 / large["peak"], "unit": "MiB",
         "note": f"other: the pixels; {sides[0]:,} px: {small['peak']:.0f} MiB; {note}"},
    ]  # fmt: skip


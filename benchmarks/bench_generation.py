"""The virtual tissue: seconds and peak memory of one section, and what two processes gain over one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

_ONE = """
import json, resource, sys, time
from helpers.virtual import anatomy, cells, rendering
began = time.process_time()
ground = anatomy.grow(seed=0, section="bench", size_um=(3000.0, 3000.0))
placed = cells.place(ground, seed=0, section="bench")
stain = rendering.draw_stain(seed=0, batch="bench", style="dense")
slide = rendering.render(ground, placed, stain, seed=0, section="bench")
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
print(json.dumps({"seconds": time.process_time() - began, "peak": peak, "cells": len(placed.table)}))
"""
_SET = """
import sys, time
from helpers.virtual import cohorts
if __name__ == "__main__":
    began = time.perf_counter()
    cohorts.ensure("virtual", seed=0, n_sections=4, size_um=2000.0, workers=int(sys.argv[1]))
    print(time.perf_counter() - began)
"""


def _run(code: str, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "bench.py")
        with open(script, "w", encoding="utf-8") as stream:
            stream.write(code)
        env = {**os.environ, "COURSE_VIRTUAL": os.path.join(folder, "virtual")}
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def run() -> list[dict]:
    """Time one full-size section in a fresh process, and four small ones with two processes and with one."""
    one = json.loads(_run(_ONE))
    two, single = float(_run(_SET, "2")), float(_run(_SET, "1"))
    size = "3 x 3 mm section, 4348 px"
    return [
        {"name": size, "ours": one["seconds"], "unit": "CPU s", "note": f"{one['cells']} cells"},
        {"name": size, "ours": one["peak"], "unit": "MB", "note": "highest resident memory of the process"},
        {
            "name": "4 sections of 2 mm, with counts and truth",
            "ours": two,
            "other": single,
            "ratio": single / two,
            "unit": "s",
            "note": "ours: two processes; other: one",
        },
    ]

"""The page of a cohort: made again, when nothing changed, against made for the first time."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

SAMPLES, SIDE_PX, NUMBERS = 300, (1000, 500), 12


def _cohort(folder: Path) -> None:
    """Write a batch folder of many samples, each with numbers and one figure."""
    import numpy as np
    from PIL import Image

    from helpers import batch, settings

    draw = settings.rng(0, "bench", "cohort")
    asked = [{"sample": f"s{n}", "patient": f"p{n // 2}", "given": {}} for n in range(SAMPLES)]
    (folder / batch.FILE).write_text(json.dumps({"notebook": "99_x", "samples": asked}))
    figure = [{"name": "cover", "file": "cover.png", "alt": "noise"}]
    for item in asked:
        place = folder / item["sample"]
        place.mkdir()
        picture = np.kron(draw.integers(0, 256, (50, 100, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        Image.fromarray(picture).resize(SIDE_PX).save(place / "cover.png")
        metrics = {f"number {n}": float(draw.normal()) for n in range(NUMBERS)}
        (place / "run.json").write_text(json.dumps({"kind": "complete", "seconds": 1.0}))
        (place / "results.json").write_text(json.dumps({"metrics": metrics, "figures": figure, "peak_mb": 1}))


def run() -> list[dict]:
    """Measure CPU seconds; the two pages must be equal."""
    from helpers import batch_report

    times, pages = [], []
    with tempfile.TemporaryDirectory() as home:
        _cohort(Path(home))
        for _ in range(2):
            began = time.process_time()
            pages.append(batch_report.build(Path(home)).read_bytes())
            times.append(time.process_time() - began)
    assert pages[0] == pages[1]
    return [
        {"name": f"page of {SAMPLES} samples, again", "ours": times[1], "other": times[0], "ratio": times[0] / times[1],
         "unit": "CPU s", "note": f"other: the first time, pictures made small; {len(pages[0]) / 1e6:.1f} MB, equal"},
    ]  # fmt: skip

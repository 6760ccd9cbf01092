"""Tiling: the section's image read once and sliced, against opening and cropping the file for every spot."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

SPOTS = 60
SIDE_UM = 100.0


def _section(folder: Path):
    """A textured 4,000-px section with its image on disk (JPEG), as a Section."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    from helpers import section as sec
    from helpers import settings

    rng = settings.rng(0, "bench_tiles")
    noise = cv2.resize(rng.integers(60, 240, (500, 500, 3), dtype=np.uint8), (4000, 4000))
    cv2.imwrite(str(folder / "he.jpg"), noise[..., ::-1])
    grid = np.arange(300, 3700, 100 / 0.69)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)[:SPOTS]
    table = ad.AnnData(
        sparse.csr_matrix(np.ones((len(points), 2), np.int32)), pd.DataFrame(index=map(str, range(len(points))))
    )
    return sec.build(
        image=noise, counts=table, xy_px=points, mpp=0.69, mpp_source="stated", platform="visium", section_id="bench",
        subject_id="bench", dataset="bench", source="generated",
    )  # fmt: skip


def run() -> list[dict]:
    """Time both ways on the same spots; the ratio is theirs over ours."""
    from helpers import section as sec
    from helpers import tiles

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        section = _section(folder)
        began = time.perf_counter()
        cv2.imread(str(folder / "he.jpg"))  # the reader opens the file once
        _, ours = tiles.cut(section, side_um=SIDE_UM)
        seconds_ours = time.perf_counter() - began
        side = tiles.side_px(section, SIDE_UM)
        began = time.perf_counter()
        for x0, y0 in tiles.boxes(sec.xy(section), side):
            whole = cv2.imread(str(folder / "he.jpg"))[..., ::-1]
            crop = np.ascontiguousarray(whole[y0 : y0 + side, x0 : x0 + side])
            cv2.resize(crop, (299, 299), interpolation=cv2.INTER_AREA)
        seconds_other = time.perf_counter() - began
    return [
        {
            "name": f"{SPOTS} tiles of {SIDE_UM:g} um from a 16 Mpx JPEG",
            "ours": seconds_ours,
            "other": seconds_other,
            "ratio": seconds_other / seconds_ours,
            "unit": "s",
            "note": "other: the file opened and cropped once a spot, as SpaCell does",
        }
    ]

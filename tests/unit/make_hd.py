"""A tiny Visium HD folder of made-up counts for the tests of the reader, and damaged copies of it."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

SIZE_UM, MPP, GENES = 304.0, 0.5, 30
NAME = "T1"


def tissue():
    """Return where tissue is, bool (152, 152): a disc."""
    y, x = np.mgrid[:152, :152] - 75.5
    return np.hypot(x, y) < 70


def fine():
    """Return the counts of the 2 um bins, CSR (152 * 152, genes); some bins under tissue have none."""
    from scipy import sparse

    return sparse.csr_matrix(np.random.default_rng(1).poisson(0.03, (152 * 152, GENES)).astype(np.int32))


def image():
    """Return the picture, uint8 (608, 608, 3), each pixel telling where it lies."""
    y, x = np.mgrid[:608, :608]
    return np.stack([x // 3, y // 3, (x + y) // 6], axis=2).astype(np.uint8)


@lru_cache(maxsize=1)
def whole() -> Path:
    """Return the folder of the section, made once per session: the picture and ``outs/``."""
    import atexit

    from helpers.virtual.hd import files

    home = Path(tempfile.mkdtemp(prefix="course-hd-")) / NAME
    home.mkdir()
    atexit.register(shutil.rmtree, home.parent, ignore_errors=True)
    names = [f"GENE{number}" for number in range(GENES - 1)] + ["MT-CO1"]
    panel = pd.DataFrame({"gene": names, "gene_id": [f"ENSGV{number:010d}" for number in range(GENES)]})
    files.write_section(
        home, section_id=NAME, image_file=None, image=image(), mpp=MPP, size_um=SIZE_UM, tissue=tissue(), fine=fine(),
        panel=panel,
    )  # fmt: skip
    return home


def copy(target: Path) -> Path:
    """Return ``outs`` of a fresh copy below ``target``, its picture beside it."""
    shutil.copytree(whole(), target / NAME)
    return target / NAME / "outs"


def add_vendor_cells(outs: Path, n: int = 12) -> np.ndarray:
    """Add ``segmented_outputs/`` as Space Ranger 4 has it, and return the centres of its cells (n, 2) in pixels."""
    import json

    from helpers.virtual.platforms import write_10x_h5

    folder, stream = outs / "segmented_outputs", np.random.default_rng(2)
    folder.mkdir()
    xy = stream.uniform(200, 400, (n, 2)).round(1)
    corners = np.array([[-6, -6], [6, -6], [6, 6], [-6, 6], [-6, -6]])
    features = [
        {"type": "Feature", "properties": {"cell_id": number + 1},
         "geometry": {"type": "Polygon", "coordinates": [(place + corners).tolist()]}}
        for number, place in enumerate(xy)
    ]  # fmt: skip
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / "cell_segmentations.geojson").write_text(text, encoding="utf-8")
    write_10x_h5(
        folder / "filtered_feature_cell_matrix.h5", counts=stream.poisson(2, (n, GENES)),
        barcodes=[f"cellid_{number + 1:09d}-1" for number in range(n)], genes=[f"GENE{i}" for i in range(GENES)],
        gene_ids=[f"ENSGV{i:010d}" for i in range(GENES)], library=NAME, software="spaceranger-4.0.1",
    )  # fmt: skip
    return xy

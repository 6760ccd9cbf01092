"""Small sections and tiles made by hand, for unit tests."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from helpers import section as sec


def counts_table(n_spots: int, n_genes: int = 30, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    matrix = sparse.csr_matrix(rng.poisson(1.5, (n_spots, n_genes)).astype(np.int32))
    return ad.AnnData(
        matrix,
        obs=pd.DataFrame(index=[f"spot{i}" for i in range(n_spots)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]),
    )


def disc_section(*, size=600, mpp=2.0, pitch_um=100.0, **changes):
    """A dark disc of tissue on glass; spots on a square grid within it, `pitch_um` apart."""
    y, x = np.mgrid[:size, :size]
    tissue = np.hypot(x - size / 2, y - size / 2) < 0.36 * size
    image = np.full((size, size, 3), (236, 226, 235), np.uint8)
    image[tissue] = (180, 110, 170)
    step = pitch_um / mpp
    grid = np.arange(step / 2, size, step)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    points = points[np.hypot(*(points - size / 2).T) < 0.34 * size]
    options = dict(
        image=image,
        counts=counts_table(len(points)),
        xy_px=points,
        mpp=mpp,
        mpp_source="stated",
        platform="visium",
        section_id="S1",
        subject_id="P1",
        dataset="test",
        source="made by hand",
    )
    return sec.build(**{**options, **changes})

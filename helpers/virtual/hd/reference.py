"""A single-cell reference for the virtual Visium HD sections: other donors, another platform, not quite the same cells.

Profiles differ from the tissue's by donor and, more, by platform: each gene is captured better or worse, the same in
all cells (log-normal, sd .4). Smooth muscle is missing, as it is from many dissociations. Mast cells are in it, and not
in the tissue; they are 20, fewer than the 25 that RCTD asks for, so RCTD drops them and the other methods do not. All
other types have far more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual.hd import counts

DONORS = ("R1", "R2", "R3", "R4")
CELLS = {"Tumour": 300, "Goblet": 160, "Enterocyte": 180, "Fibroblast": 220, "Endothelial": 100, "T cell": 200,
         "Plasma": 130, "Macrophage": 130, "Neutrophil": 60, "Mast": 20}  # fmt: skip
DEPTH, DEPTH_SD = 1800.0, 0.5
PLATFORM_SD, DONOR_SD, AMBIENT = 0.4, 0.25, 0.03


def reference(seed: int):
    """Return the reference as AnnData: cells x genes, raw counts int32 CSR; ``obs``: ``cell_type``, ``donor``."""
    from anndata import AnnData
    from scipy import sparse

    panel, stream = counts.panel(), settings.rng(seed, "hd", "reference")
    mean = counts.base().loc[list(CELLS)].to_numpy() * np.exp(stream.normal(0, PLATFORM_SD, len(panel)))
    kinds, donors, parts = [], [], []
    for place, donor in enumerate(DONORS):
        own = mean * np.exp(stream.normal(0, DONOR_SD, len(panel)) + stream.normal(0, counts.TYPE_SD, mean.shape))
        own /= own.sum(1, keepdims=True)
        number = {kind: (n + place) // len(DONORS) for kind, n in CELLS.items()}
        soup = np.average(own, axis=0, weights=[number[kind] * counts.RNA_CONTENT[kind] for kind in CELLS])
        for code, (kind, n) in enumerate(number.items()):
            share = ((1 - AMBIENT) * own[code] + AMBIENT * soup) * stream.standard_gamma(
                counts.CELL_SIZE, (n, len(panel))
            )
            depth = DEPTH * counts.RNA_CONTENT[kind] * np.exp(stream.normal(0, DEPTH_SD, (n, 1)))
            parts.append(stream.poisson(depth * share / share.sum(1, keepdims=True)).astype(np.int32))
            kinds += [kind] * n
            donors += [donor] * n
    order = stream.permutation(len(kinds))
    names = [f"{donors[i]}_{number:04d}" for number, i in enumerate(order)]
    obs = pd.DataFrame({"cell_type": pd.Categorical(kinds), "donor": pd.Categorical(donors)}).iloc[order]
    obs.index = names
    var = pd.DataFrame({"gene_id": panel["gene_id"].to_numpy(str)}, index=panel["gene"].to_numpy(str))
    return AnnData(sparse.csr_matrix(np.vstack(parts)[order]), obs=obs, var=var)


def write(file: Path, seed: int) -> None:
    """Write the reference as h5ad."""
    reference(seed).write_h5ad(file, compression="gzip")

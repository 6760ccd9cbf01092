"""A single-cell RNA-seq reference for naming cells by their expression: other donors, another platform.

All genes of ``data/genes.csv``, dissociated cells of ten types from four donors. Profiles differ from those of the
Xenium sections by donor and, more, by platform (each gene is captured better or worse), and depths differ tenfold
within a type.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual import expression

DONORS, PER_TYPE = ("D1", "D2", "D3", "D4"), 60
DEPTH, DEPTH_SD = 2500.0, 0.6
PLATFORM_SD, DONOR_SD = 0.5, 0.25
AMBIENT = 0.03  # share of a droplet's molecules that come from the mixture of all cells


def reference(seed: int):
    """Return the reference as AnnData: cells x genes, raw counts CSR; ``obs``: ``cell_type``, ``donor``."""
    from anndata import AnnData
    from scipy import sparse

    known, stream = expression.panel(), settings.rng(seed, "xenium", "reference")
    log_profile = np.log(known.weights + known.flat + 1e-9) + stream.normal(0, PLATFORM_SD, len(known.genes))
    kinds, donors, parts = [], [], []
    for donor in DONORS:
        own = np.exp(log_profile + stream.normal(0, DONOR_SD, log_profile.shape[1]))
        own /= own.sum(1, keepdims=True)
        mix = np.array([expression.REFERENCE_MIX[kind] for kind in known.types]) @ own
        for code, kind in enumerate(known.types):
            depth = DEPTH * expression.RNA_CONTENT[kind] * np.exp(stream.normal(0, DEPTH_SD, (PER_TYPE, 1)))
            share = (1 - AMBIENT) * own[code] + AMBIENT * mix
            noise = stream.standard_gamma(np.broadcast_to(known.theta, (PER_TYPE, len(share)))) / known.theta
            parts.append(sparse.csr_matrix(stream.poisson(depth * share * noise).astype(np.int32)))
            kinds += [kind] * PER_TYPE
            donors += [donor] * PER_TYPE
    names = [f"{donor}_{number:04d}" for number, donor in enumerate(donors)]
    obs = pd.DataFrame({"cell_type": pd.Categorical(kinds), "donor": pd.Categorical(donors)}, index=names)
    var = pd.DataFrame({"gene_id": known.table["gene_id"].to_numpy()}, index=known.genes)
    return AnnData(sparse.vstack(parts).tocsr(), obs=obs, var=var)


def write(file: Path, seed: int) -> None:
    """Write the reference as h5ad."""
    reference(seed).write_h5ad(file, compression="gzip")

"""Transcripts of a virtual Visium HD section: what each cell gives, where it falls, and what a bin makes of it.

A cell's molecules are a negative binomial number by its type, dealt over the genes by the type's profile as its patient
has it, each gene a little more or less in each cell. They lie within the cell's outline, more of them about the
nucleus. On the slide they spread (a Gaussian), and a few come from nowhere in particular. What then lies in a square of
2 um is that bin's count; 8 and 16 um bins are sums of 2 um bins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers import settings

PANEL_FILE = settings.ROOT / "data" / "hd_genes.csv"
TYPES = ("Tumour", "Goblet", "Enterocyte", "Fibroblast", "Endothelial", "Smooth muscle", "T cell", "Plasma",
         "Macrophage", "Neutrophil")  # fmt: skip
EXTRA = "Mast"
"""A type of the reference that the tissue has not."""
RNA_CONTENT = {"Tumour": 1.7, "Goblet": 1.2, "Enterocyte": 1.2, "Fibroblast": 0.75, "Endothelial": 0.7,
               "Smooth muscle": 0.8, "T cell": 0.45, "Plasma": 1.1, "Macrophage": 0.9, "Neutrophil": 0.25,
               "Mast": 0.7}  # fmt: skip
"""Molecules of a type, relative."""
MT_SHARE = {"Tumour": 0.075, "Goblet": 0.06, "Enterocyte": 0.08, "Fibroblast": 0.05, "Endothelial": 0.05,
            "Smooth muscle": 0.065, "T cell": 0.045, "Plasma": 0.045, "Macrophage": 0.06, "Neutrophil": 0.04,
            "Mast": 0.05}  # fmt: skip
"""Mitochondrial share of an intact cell's molecules, by type."""
HIGH_MT = (0.32, 0.50)
"""The same in a damaged cell (``high_mt``): drawn between these."""
MARKER_SHARE = 0.5
"""Share of a cell's molecules, mitochondrial ones apart, that come from genes that not all types have."""
LEAK = 0.004  # of a marker's level, in a type that should not have it
UMI, SIZE = 200.0, 6.0
"""Mean molecules a cell over a mixture of equal parts, and the negative binomial's size."""
SPREAD_UM, AMBIENT, IN_NUCLEUS = 3.0, 0.03, 0.35
PATIENT_SD, TYPE_SD, CELL_SIZE = 0.25, 0.15, 4.0
"""Sd of a gene's log shift in a patient, of the same in one of its types; the gamma shape of a gene from cell to cell.
"""


# ---------------------------------------------------------------- what a type expresses
@functools.cache
def panel() -> pd.DataFrame:
    """Return the genes: ``gene``, ``gene_id``, ``group``, ``marker_of`` ("" or a type), ``types``, ``level``, ``mt``.

    ``types`` says where a gene of ``level`` is expressed, and how much of it; "": the same everywhere.
    """
    table = pd.read_csv(PANEL_FILE, keep_default_na=False)
    return table.assign(mt=table["mt"].astype(bool))


@functools.cache
def base() -> pd.DataFrame:
    """Return the mean profile of each type (and of :data:`EXTRA`) before any patient, rows sum to 1 (types x genes)."""
    table, types = panel(), [*TYPES, EXTRA]
    level, mt = table["level"].to_numpy(float), table["mt"].to_numpy()
    raised = np.array([[dict(_pairs(text)).get(kind, LEAK) for text in table["types"]] for kind in types])
    special = (table["types"] != "").to_numpy()
    profile = np.empty((len(types), len(table)))
    for row, kind in enumerate(types):
        markers, rest = level * raised[row] * special, level * ~special * ~mt
        of_mt = MT_SHARE[kind]
        profile[row] = of_mt * level * mt / level[mt].sum()
        profile[row] += (1 - of_mt) * (MARKER_SHARE * markers / markers.sum() + (1 - MARKER_SHARE) * rest / rest.sum())
    return pd.DataFrame(profile, index=types, columns=table["gene"].to_numpy(str))


def _pairs(text: str) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in (part.split(":") for part in text.split(";") if part)]


def profiles(*, seed: int, patient: str) -> pd.DataFrame:
    """Return the mean profile of each type in a patient, rows sum to 1 (types x genes)."""
    stream, mean = settings.rng(seed, "hd", "patient", patient), base().loc[list(TYPES)]
    shift = stream.normal(0, PATIENT_SD, mean.shape[1]) + stream.normal(0, TYPE_SD, mean.shape)
    own = mean * np.exp(shift)
    return own.div(own.sum(1), axis=0)


# ---------------------------------------------------------------- what a cell gives
def cell_counts(cells: pd.DataFrame, profile: pd.DataFrame, *, seed: int, section: str, umi: float = UMI):
    """Return the captured molecules of each cell, int32 CSR (cells, genes).

    Parameters
    ----------
    cells
        With ``type`` and ``high_mt``.
    profile
        From :func:`profiles`.
    umi
        Mean molecules a cell, over types in equal parts.
    """
    from scipy import sparse

    stream, mt = settings.rng(seed, "hd", "cells", section), panel()["mt"].to_numpy()
    content = np.array([RNA_CONTENT[kind] for kind in TYPES])
    codes = pd.Categorical(cells["type"], categories=TYPES).codes
    mean = umi * content[codes] / content.mean()
    depth = stream.negative_binomial(SIZE, SIZE / (SIZE + mean)).clip(1)
    share = profile.to_numpy()[codes] * stream.standard_gamma(CELL_SIZE, (len(cells), profile.shape[1])) / CELL_SIZE
    share /= share.sum(1, keepdims=True)
    damaged = cells["high_mt"].to_numpy(bool)
    of_mt = np.where(damaged, stream.uniform(*HIGH_MT, len(cells)), share[:, mt].sum(1))
    share[:, mt] *= (of_mt / share[:, mt].sum(1))[:, None]
    share[:, ~mt] *= ((1 - of_mt) / share[:, ~mt].sum(1))[:, None]
    return sparse.csr_matrix(stream.multinomial(depth, share).astype(np.int32))


def dealt(cells: pd.DataFrame, counts, *, seed: int, section: str):
    """Return cells and counts of the null twin: type and expression are those of another cell, places stay.

    The column ``drawn_type`` keeps what the picture shows.
    """
    order = settings.rng(seed, "hd", "null", section).permutation(len(cells))
    moved = [name for name in ("type", "high_mt", "umi") if name in cells]
    others = {name: cells[name].to_numpy()[order] for name in moved}
    return cells.assign(**others, drawn_type=cells["type"].to_numpy()), counts[order]


# ---------------------------------------------------------------- where molecules fall
@dataclass(frozen=True)
class Molecules:
    """One row a molecule: its gene, the cell it came from (-1: none), where it fell, um."""

    gene: np.ndarray
    cell: np.ndarray
    xy_um: np.ndarray


def _in_outlines(outlines, owner, stream) -> np.ndarray:
    """Return a point drawn evenly within the outline of each owner (star-shaped about its mean), um."""
    middle = outlines.mean(1)
    fan = outlines - middle[:, None]
    after = np.roll(fan, -1, axis=1)
    area = np.abs(fan[..., 0] * after[..., 1] - fan[..., 1] * after[..., 0]).cumsum(1)
    wanted = stream.random(len(owner)) * area[owner, -1]
    corner = (area[owner] < wanted[:, None]).sum(1).clip(max=outlines.shape[1] - 1)
    first, second = stream.random((2, len(owner), 1))
    reach = np.sqrt(first)
    return middle[owner] + reach * ((1 - second) * fan[owner, corner] + second * after[owner, corner])


def fall(counts, outlines, nuclei, *, seed: int, section: str, spread_um: float = SPREAD_UM, ambient: float = AMBIENT,
         tissue_um=None) -> Molecules:  # fmt: skip
    """Return every molecule where it fell.

    Parameters
    ----------
    counts
        CSR (cells, genes).
    outlines, nuclei
        float (cells, k, 2): x, y in um.
    spread_um
        Sd of the lateral diffusion along each axis, um.
    ambient
        Molecules from nowhere, as a share of all that cells gave, of the mean profile of the section.
    tissue_um
        float (n, 2): places where these may fall, evenly, um; None: nowhere.
    """
    stream = settings.rng(seed, "hd", "molecules", section)
    entries = counts.tocoo()
    gene, cell = np.repeat(entries.col, entries.data), np.repeat(entries.row, entries.data)
    outlines, nuclei = np.asarray(outlines, float), np.asarray(nuclei, float)
    xy = np.empty((len(gene), 2))
    inside = stream.random(len(gene)) < IN_NUCLEUS
    xy[inside] = _in_outlines(nuclei, cell[inside], stream)
    xy[~inside] = _in_outlines(outlines, cell[~inside], stream)
    xy += stream.normal(0, spread_um, xy.shape)
    if tissue_um is not None and ambient > 0:
        extra = stream.poisson(ambient * len(gene))
        gene = np.r_[gene, stream.choice(gene, extra)]
        cell = np.r_[cell, np.full(extra, -1)]
        xy = np.r_[xy, tissue_um[stream.integers(len(tissue_um), size=extra)] + stream.uniform(-1, 1, (extra, 2))]
    return Molecules(gene.astype(np.int32), cell.astype(np.int32), xy)


# ---------------------------------------------------------------- what bins make of them
def bin_counts(molecules: Molecules, *, bin_um: int, side: int, n_genes: int):
    """Return counts of the bins of a square array, row by row, int32 CSR (side * side, genes)."""
    from scipy import sparse

    place, inside = _places(molecules, bin_um, side)
    matrix = sparse.coo_matrix(
        (np.ones(inside.sum(), np.int32), (place[inside], molecules.gene[inside])), shape=(side * side, n_genes)
    ).tocsr()
    matrix.sum_duplicates()
    return matrix


def bin_shares(molecules: Molecules, cells: pd.DataFrame, *, bin_um: int, side: int) -> pd.DataFrame:
    """Return the share of each type among the molecules that cells left in a bin; a row of 0 where none did."""
    place, inside = _places(molecules, bin_um, side)
    inside &= molecules.cell >= 0
    codes = pd.Categorical(cells["type"], categories=TYPES).codes[molecules.cell[inside]]
    flat = np.bincount(place[inside] * len(TYPES) + codes, minlength=side * side * len(TYPES)).reshape(-1, len(TYPES))
    return pd.DataFrame((flat / flat.sum(1, keepdims=True).clip(1)).astype(np.float32), columns=TYPES)


def _places(molecules: Molecules, bin_um: int, side: int):
    column, row = np.floor(molecules.xy_um / bin_um).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < side) & (row < side)
    return row * side + column, inside

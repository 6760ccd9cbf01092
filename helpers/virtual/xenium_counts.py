"""Transcripts of a virtual Xenium section: a panel of 300 genes, rates per cell, molecules in space, and their quality.

The rate of a gene in a cell follows its type's profile, its patient and what is visible of it, as in ``expression``;
here a cell is the unit. In the null twin every cell takes the expression, and the type, of another cell of its section,
so nothing seen on a picture says anything about them. Controls, doubtful reads and stray molecules are added.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual import expression
from helpers.virtual.xenium_cells import STEP_UM, lookup

PANEL = {
    "epithelial": 12, "cancer_epithelial": 24, "normal_epithelial": 16, "myoepithelial": 16, "fibroblast": 30,
    "t_cell": 28, "b_cell": 16, "plasma_cell": 14, "myeloid": 28, "endothelial": 24, "adipocyte": 12, "leukocyte": 12,
    "hypoxia": 10, "interferon": 10, "proliferation": 14, "er_clone": 8, "hidden": 12, "housekeeping": 6,
    "invasive_front": 6, "secretory": 2,
}  # fmt: skip
"""Genes per group of ``data/genes.csv``, the first of each: mostly markers, as on commercial panels (set by hand)."""
LEVEL_CAP = 8.0  # panels leave out the most abundant genes, whose molecules would crowd the picture
PROBES, CODEWORDS, UNASSIGNED = 20, 41, 30  # negative control probes and codewords, unassigned codewords
CONTROL_SHARE = 0.0012  # molecules of each control kind, as a share of all
DEPTH = 70.0  # molecules of an average cell, quality 20 or more
DEPTH_SD = 0.35
STRAY = 0.06  # molecules that lie anywhere on tissue, as a share of all
IN_NUCLEUS = 0.35
SPREAD, DRIFT_UM = 0.8, 1.8  # of the others, beyond the nucleus: in its radii, and blur; many end in a neighbour
SURE, DOUBTFUL = 0.70, 0.14  # shares of molecules of quality 40, and below 20
PATIENT_SD = 0.15


def panel() -> pd.DataFrame:
    """Return the panel: one row a gene of ``data/genes.csv`` (``symbol``, ``gene_id``, ``group``, ...)."""
    table = expression.panel().table
    chosen = [table[table["group"] == group].head(number) for group, number in PANEL.items()]
    return pd.concat(chosen).sort_values("symbol", ignore_index=True)


def profiles() -> pd.DataFrame:
    """Return the share of a cell's molecules that each panel gene has, by type: float64 (types, genes)."""
    known = expression.panel()
    weights = known.weights + known.flat
    chosen = known.table.set_index("symbol").index.get_indexer(panel()["symbol"])
    weights = weights[:, chosen]
    level = panel()["level"].to_numpy(float)
    weights = weights * np.minimum(1.0, LEVEL_CAP / level)
    mix = np.array([expression.REFERENCE_MIX[kind] for kind in known.types])
    weights = weights / (mix @ weights.sum(1) / mix.sum())
    return pd.DataFrame(weights, index=list(known.types), columns=panel()["symbol"])


def rates(cells: pd.DataFrame, *, seed: int, section: str, patient: str, subtype: str) -> np.ndarray:
    """Return the expected molecules of quality 20 or more of each cell and gene, float64 (cells, genes).

    ``cells`` is the table of ``cells.place``; in the null twin its rows have been dealt out anew before.
    """
    genes, by_type = panel(), profiles()
    log_weight = np.log(by_type.to_numpy() + 1e-12)
    tumour = list(by_type.index).index("cancer_epithelial")
    for name, value in expression.SUBTYPES[subtype].items():
        log_weight[tumour, (genes["symbol"] == name) | (genes["group"] == name)] += value
    shift = settings.rng(seed, "xenium", "patient", patient).normal(0, PATIENT_SD, len(genes))
    rate = np.exp(log_weight + shift)[pd.Categorical(cells["type"], categories=by_type.index).codes]
    effect = genes["effect"].to_numpy(float) * np.sqrt(genes["rho"].to_numpy(float))
    measures = expression.visible(cells)
    for name in measures:
        columns = np.flatnonzero((genes["programme"] == name) & (effect > 0))
        rate[:, columns] *= np.exp(effect[columns] * measures[name].to_numpy()[:, None] - effect[columns] ** 2 / 2)
    stream = settings.rng(seed, "xenium", "rates", section)
    content = np.array([expression.RNA_CONTENT[kind] for kind in cells["type"].astype(str)])
    size = DEPTH * content * np.exp(stream.normal(0, DEPTH_SD, len(cells)) - DEPTH_SD**2 / 2)
    return rate * size[:, None]


def _quality(stream, n: int) -> np.ndarray:
    """Return Phred-like qualities, float32 (n,): most 40, the rest spread, ``DOUBTFUL`` of them below 20."""
    kind = stream.random(n)
    quality = np.where(kind < SURE, 40.0, stream.uniform(20, 40, n))
    return np.where(kind > 1 - DOUBTFUL, stream.uniform(2, 20, n), quality).astype(np.float32)


def _places(polygons, owner, stream) -> np.ndarray:
    """Return a place, float32 (n, 2) um, for a molecule of each cell in ``owner``: in the nucleus or round it."""
    n, vertices = len(owner), polygons.shape[1]
    centre = polygons.mean(1)
    first, part = stream.integers(0, vertices, n), stream.random((n, 1)).astype(np.float32)
    edge = polygons[owner, first] * (1 - part) + polygons[owner, (first + 1) % vertices] * part
    nuclear = stream.random(n) < IN_NUCLEUS
    reach = np.where(nuclear, np.sqrt(stream.random(n)), 1 + np.abs(stream.normal(0, SPREAD, n)))[:, None]
    blur = stream.normal(0, 0.35, (n, 2)) + np.where(nuclear, 0, DRIFT_UM)[:, None] * stream.normal(0, 1, (n, 2))
    return (centre[owner] + reach * (edge - centre[owner]) + blur).astype(np.float32)


def control_names() -> dict[str, list[str]]:
    """Return the names of the controls by codeword category."""
    return {
        "negative_control_probe": [f"NegControlProbe_{i:05d}" for i in range(1, PROBES + 1)],
        "negative_control_codeword": [f"NegControlCodeword_{i:04d}" for i in range(500, 500 + CODEWORDS)],
        "unassigned_codeword": [f"UnassignedCodeword_{i:04d}" for i in range(1, UNASSIGNED + 1)],
    }


def transcripts(rate, polygons, tissue_points, found, *, seed: int, section: str) -> pd.DataFrame:
    """Draw every molecule of a section.

    Parameters
    ----------
    rate
        float (cells, genes): expected molecules of all true cells, found by the segmentation or not.
    polygons
        float32 (cells, vertices, 2): true nuclei in the instrument's frame, um.
    tissue_points
        float (n, 2): places on tissue, for what strays.
    found
        The instrument's segmentation (``xenium_cells.Found``).

    Returns
    -------
    pandas.DataFrame
        ``feature`` (index into genes followed by the controls of :func:`control_names`), ``x``, ``y``, ``z`` (um),
        ``qv``, ``found`` (row of the found cell, -1 where none), ``overlaps_nucleus``; in order of y.
    """
    stream = settings.rng(seed, "xenium", "transcripts", section)
    theta = np.clip(1.5 + panel()["level"].to_numpy(float) / 2, 1.5, 10.0)
    noise = stream.standard_gamma(np.broadcast_to(theta, rate.shape)) / theta
    counts = stream.poisson(rate / (1 - DOUBTFUL) * noise)
    cell, gene = np.nonzero(counts)
    times = counts[cell, gene]
    owner, feature = np.repeat(cell, times), np.repeat(gene, times)
    xy = _places(polygons, owner, stream)
    stray = int(STRAY * len(owner))
    total = rate.sum(0)
    feature = np.r_[feature, stream.choice(len(total), stray, p=total / total.sum())]
    begin = len(total)
    for names in control_names().values():
        number = stream.poisson(CONTROL_SHARE * len(owner))
        feature = np.r_[feature, begin + stream.integers(0, len(names), number)]
        begin, stray = begin + len(names), stray + number
    pick = stream.integers(0, len(tissue_points), stray)
    xy = np.vstack([xy, tissue_points[pick] + stream.uniform(-1.5, 1.5, (stray, 2))])
    quality = _quality(stream, len(feature))
    control = feature >= len(total)
    quality[control] = np.minimum(quality[control], stream.uniform(5, 40, control.sum()))
    table = pd.DataFrame({
        "feature": feature.astype(np.int32), "x": xy[:, 0].astype(np.float32), "y": xy[:, 1].astype(np.float32),
        "z": np.clip(stream.normal(12, 3, len(feature)), 0, 30).astype(np.float32), "qv": quality,
    })  # fmt: skip
    height, width = (side * STEP_UM for side in found.label.shape)
    table = table[(table.x > 0) & (table.y > 0) & (table.x < width) & (table.y < height)]
    table = table.sort_values(["y", "x"], ignore_index=True)
    points = table[["x", "y"]].to_numpy()
    table["found"] = (lookup(found.label, points) - 1).astype(np.int32)
    table["overlaps_nucleus"] = (lookup(found.nucleus_label, points) > 0).astype(np.uint8)
    return table


def matrix(table: pd.DataFrame, n_cells: int, *, least: float = 20.0):
    """Return counts, int32 CSR (found cells, genes and controls): molecules in cells of quality ``least`` or more."""
    from scipy import sparse

    n_features = len(panel()) + sum(map(len, control_names().values()))
    used = table[(table["found"] >= 0) & (table["qv"] >= least)]
    ones = np.ones(len(used), np.int32)
    shape = (n_cells, n_features)
    return sparse.coo_matrix((ones, (used["found"], used["feature"])), shape=shape).tocsr().astype(np.int32)

"""Gene expression of virtual cells, and the dial between morphology and expression.

The rate of gene *g* in a spot *s* is amount x share. The amount is the RNA content of the cells whose nucleus centre
lies in the spot's disc. The share of a gene is

    log share_sg = ref_g + sqrt(k) (log V_sg - ref_g) + sqrt(1 - k) sd w_g(s) + c_g sqrt(1 - rho_g) u_g(s)

V is what the cells give: type profile x exp(c_g sqrt(rho_g) m_g(cell)), with m_g something *visible* (distance to a
vessel, nuclear area, ...). u and w are hidden Gaussian fields that never meet the renderer. k is ``coupling``: the
share of the log-variance that morphology explains. At k = 0 neither the cells nor their number enter: the null twin.
The room ``noise`` draws counts around these rates (design page ``virtual_tissue.md``, section 5).

Genes flat over types form a block of their own whose share no cell can change, so library-size normalisation cannot
smuggle morphology into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from helpers import settings
from helpers.messages import CourseError

PANEL_FILE = settings.ROOT / "data" / "genes.csv"
RNA_CONTENT = {
    "cancer_epithelial": 1.6, "normal_epithelial": 1.2, "myoepithelial": 0.9, "fibroblast": 0.7, "t_cell": 0.5,
    "b_cell": 0.5, "plasma_cell": 1.5, "myeloid": 1.1, "endothelial": 0.7, "adipocyte": 0.8,
}  # fmt: skip
"""RNA of a cell relative to the average: order of magnitude from UMI per cell in breast atlases; set by hand."""
REFERENCE_MIX = {
    "cancer_epithelial": 0.42, "normal_epithelial": 0.04, "myoepithelial": 0.03, "fibroblast": 0.24, "t_cell": 0.10,
    "b_cell": 0.04, "plasma_cell": 0.03, "myeloid": 0.05, "endothelial": 0.03, "adipocyte": 0.02,
}  # fmt: skip
"""The section the levels in ``data/genes.csv`` refer to, and the mean of every null twin."""
LEAK = 0.005  # rate of a marker in the types it does not mark, relative to the type it marks
BROAD = 0.3  # mean weight over types from which a gene counts as broad: its level is the same in every type's profile
AMBIENT = 0.5  # RNA that strays under every spot from around it, in cells: an empty lumen is not a spot of zeros
STRAY_SPOTS, STRAY_MIX = 19, 0.02  # it comes from so many nearest spots, and from the reference mix (cells a spot)
REFERENCE_DENSITY = 8000.0  # cells per mm2 at which a spot reaches the platform's depth
NULL_SD, NULL_AMOUNT_SD = 0.6, 0.35  # log sd of the hidden fields that take the place of morphology
LENGTH_UM = {"own": 160.0, "er_clone": 350.0}  # correlation length of hidden fields; others 220 um
SUBTYPES = {
    "luminal": {},
    "her2": {"ERBB2": 1.5, "GRB7": 1.4, "STARD3": 1.2, "MIEN1": 1.2, "PGAP3": 1.0, "er_clone": -0.7},
    "basal": {"er_clone": -1.8, "ERBB2": -0.6, "KRT5": 0.8, "KRT17": 0.8, "proliferation": 0.5},
}
"""Log shifts of a patient's tumour, by gene or group; part of the cells' profile, so they vanish in the null twin."""


@dataclass(frozen=True)
class Panel:
    """The genes.

    ``table`` has one row a gene; ``weights`` float64 (types, genes), rows summing to the visible block's share;
    ``flat`` float64 (genes,), the share of genes that are flat over types, 0 for the others.
    """

    table: pd.DataFrame
    types: tuple
    weights: np.ndarray
    flat: np.ndarray

    @property
    def genes(self) -> np.ndarray:
        return self.table["symbol"].to_numpy(str)

    @property
    def theta(self) -> np.ndarray:
        """Negative-binomial size per gene: 1.5 for rare genes to 10 for abundant ones (set by hand)."""
        return np.clip(1.5 + self.table["level"].to_numpy(float) / 2, 1.5, 10.0)


@dataclass(frozen=True)
class Expected:
    """Expected counts before library noise: ``rate`` and ``best`` float64 (spots, genes), and what belongs to them.

    ``rate`` is the truth; ``best`` is its mean given everything visible, what a perfect model could say.
    """

    rate: np.ndarray
    best: np.ndarray
    genes: np.ndarray
    theta: np.ndarray
    dropout: float


@lru_cache(maxsize=1)
def panel() -> Panel:
    """Read ``data/genes.csv``."""
    table = pd.read_csv(PANEL_FILE, keep_default_na=False)
    types = tuple(RNA_CONTENT)
    weights = np.ones((len(types), len(table)))
    for column, text in enumerate(table["types"]):
        if not text:
            continue
        weights[:, column] = LEAK
        for part in text.split(";"):
            name, weight = part.split(":")
            if name not in types:
                raise CourseError(f"cell type {name!r}", f"one of {', '.join(types)}", "mend the row", file=PANEL_FILE)
            weights[types.index(name), column] = max(LEAK, float(weight))
    flat = (table["types"] == "").to_numpy() & (table["rho"].to_numpy(float) == 0)
    level = table["level"].to_numpy(float)
    broad = ~flat & (weights.mean(0) >= BROAD)
    weights = weights * level
    mix = np.array([REFERENCE_MIX[t] for t in types])
    block = 1.3 * float(mix / mix.sum() @ weights[:, ~flat].sum(1))  # 1.3: room for the markers of busy tumour cells
    # Every type needs the same total, or broad genes would follow types: scale the markers of each type for all types
    # alike (ratios between types stay), then the small rest row by row.
    special = np.flatnonzero(~flat & ~broad)
    marks = weights[:, special].argmax(0)
    sums = np.stack([weights[:, special[marks == t]].sum(1) for t in range(len(types))], axis=1)
    factor = nnls(sums, block - weights[:, broad].sum(1))[0]
    weights[:, special] *= factor[marks]
    weights[:, special] *= ((block - weights[:, broad].sum(1)) / weights[:, special].sum(1))[:, None]
    weights[:, flat] = 0
    total = block + level[flat].sum()
    return Panel(table, types, weights / total, np.where(flat, level / total, 0.0))


def visible(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the visible quantities of every cell that rates may follow, each about within -2..2.

    Constants are fixed, never fitted to the section, so that the same cell means the same in every section.
    """

    def near(distance, scale):
        return 2 * np.exp(-np.maximum(np.nan_to_num(distance, nan=1e4), 0) / scale) - 1

    vessel, immune, edge = (cells[c].to_numpy(float) for c in ("vessel_um", "immune_um", "nest_edge_um"))

    def log_ratio(column, centre, spread):
        value = np.maximum(np.nan_to_num(cells[column].to_numpy(float), nan=centre), 1e-3 * centre)
        return np.clip(np.log(value / centre) / spread, -2, 2)

    hypoxia = -near(vessel, 120.0)
    return pd.DataFrame(
        {
            "hypoxia": hypoxia,
            "oxphos": -hypoxia,
            "interferon": near(-immune, 100.0),  # signed, positive inside a focus
            "nest_edge": near(np.abs(edge), 25.0),  # both sides of the border
            "nuclear_size": log_ratio("area_um2", 28.0, 0.5),
            "chromatin": np.clip((cells["haematoxylin"].to_numpy(float) - 1.3) / 0.3, -2, 2),
            "crowding": log_ratio("density_per_mm2", REFERENCE_DENSITY, 0.6),
            "fibres": np.clip(5 * (np.nan_to_num(cells["fibre_alignment"].to_numpy(float)) - 0.7), -2, 2),
        }
    )


def smooth_fields(xy_um, n: int, *, length_um: float, rng, waves: int = 256) -> np.ndarray:
    """Return ``n`` independent unit-variance Gaussian fields at the points, float64 (points, n).

    Random Fourier features of a Gaussian covariance exp(-d^2 / 2 L^2) (Rahimi & Recht 2007): a function of position
    alone, so two platforms on one tissue see the same field.
    """
    frequency = rng.standard_normal((waves, 2)) / length_um
    phase = np.asarray(xy_um, float) @ frequency.T
    return np.hstack([np.cos(phase), np.sin(phase)]) @ rng.standard_normal((2 * waves, n)) / np.sqrt(waves)


def spot_members(cells: pd.DataFrame, xy_um, radius_um: float) -> sparse.csr_matrix:
    """Return the 0/1 matrix (spots, cells) of cells, front and deep, whose nucleus centre lies in the disc."""
    found = cKDTree(cells[["x_um", "y_um"]].to_numpy(float)).query_ball_point(xy_um, radius_um, return_sorted=True)
    lengths = np.fromiter((len(f) for f in found), int, len(found))
    columns = np.concatenate([np.asarray(f, int) for f in found]) if lengths.sum() else np.zeros(0, int)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((np.ones(len(columns)), columns, start), shape=(len(found), len(cells)))


def _shift(genes: Panel, names, sds, seed) -> np.ndarray:
    """Sum of per-gene log shifts, one draw per (kind, name), e.g. the patient's and the slide's."""
    total = np.zeros(len(genes.genes))
    for kind, sd in sds.items():
        total += sd * settings.rng(seed, "expression", "batch", kind, names[kind]).standard_normal(len(total))
    return total


def _visible_share(cells, member, xy_um, genes: Panel, shift, subtype):
    """Return RNA amount (spots,) in cells and the visible block's share (spots, genes)."""
    used = np.unique(member.indices)
    cells, member = cells.iloc[used], member[:, used]
    kind = pd.Categorical(cells["type"], categories=genes.types).codes
    if (kind < 0).any():
        raise CourseError(f"cell type {cells['type'].iloc[int(np.argmin(kind))]!r}", "a type of cells.TYPES", "mend it")
    log_weight = np.log(genes.weights + 1e-12) + shift
    tumour = genes.types.index("cancer_epithelial")
    for name, value in SUBTYPES[subtype].items():
        log_weight[tumour, (genes.table["symbol"] == name) | (genes.table["group"] == name)] += value
    rate = np.exp(log_weight[kind])
    effect = genes.table["effect"].to_numpy(float) * np.sqrt(genes.table["rho"].to_numpy(float))
    measures = visible(cells)
    for name in measures:
        columns = np.flatnonzero((genes.table["programme"] == name) & (effect > 0))
        rate[:, columns] *= np.exp(effect[columns] * measures[name].to_numpy()[:, None])
    rate[:, genes.flat > 0] = 0
    block = 1 - genes.flat.sum()
    content = np.array([RNA_CONTENT[t] for t in genes.types])[kind]
    rate *= (content * block / rate.sum(1))[:, None]
    mean = np.exp(_reference(genes) + shift) * (genes.flat == 0)
    in_cells = member @ rate
    around = cKDTree(xy_um).query(xy_um, k=np.arange(1, min(STRAY_SPOTS, len(xy_um)) + 1))[1]
    nearest = sparse.csr_matrix(
        (np.full(around.size, 1 / around.shape[1]), around.ravel(), np.arange(0, around.size + 1, around.shape[1]))
    )
    stray = nearest @ in_cells + STRAY_MIX * block * mean / mean.sum()
    stray *= AMBIENT * block / stray.sum(1, keepdims=True)
    amount = member @ content + AMBIENT
    return amount, (in_cells + stray) / amount[:, None]


def _reference(genes: Panel) -> np.ndarray:
    """Log mean share of every gene in the reference mix of cells."""
    mix = np.array([REFERENCE_MIX[t] * RNA_CONTENT[t] for t in genes.types])
    return np.log(mix / mix.sum() @ genes.weights + genes.flat)


def expected(
    cells: pd.DataFrame,
    xy_um,
    *,
    radius_um: float,
    depth: float,
    seed: int,
    section: str,
    patient: str = "P",
    slide: str = "S",
    subtype: str = "luminal",
    coupling: float = 1.0,
    patient_sd: float = 0.0,
    slide_sd: float = 0.0,
    swap: float = 0.0,
    dropout: float = 0.0,
) -> Expected:
    """Return the expected counts of every spot and gene, and their best prediction from morphology.

    Parameters
    ----------
    cells
        The table of ``cells.place``.
    xy_um
        Spot centres, float (spots, 2): x, y in microns.
    radius_um, depth
        Radius of a spot; expected total count of a spot of reference density.
    coupling
        1: everything; 0: the null twin, whose values do not depend on ``cells`` at all.
    patient_sd, slide_sd
        Standard deviation of per-gene log shifts shared by a patient's or a slide's sections.
    swap
        Share of a spot's RNA that comes from its neighbouring spots.
    dropout
        Probability that a count is lost (set to 0).
    """
    for name, value in {"coupling": coupling, "swap": swap, "dropout": dropout}.items():
        if not 0 <= value <= 1 or (name == "dropout" and value == 1):
            raise CourseError(f"{name} = {value}", "a number from 0 to 1", f"correct {name}")
    genes, xy_um = panel(), np.asarray(xy_um, float).reshape(-1, 2)
    table = genes.table
    shift = _shift(genes, {"patient": patient, "slide": slide}, {"patient": patient_sd, "slide": slide_sd}, seed)
    reference = _reference(genes) + shift
    is_visible = genes.flat == 0
    block = is_visible * np.exp(reference)
    reference = reference + is_visible * np.log((1 - genes.flat.sum()) / block.sum())
    amount_mean = REFERENCE_DENSITY * np.pi * (radius_um / 1000) ** 2

    def stream(name):
        return settings.rng(seed, "expression", section, name)

    log_share = np.repeat(reference[None], len(xy_um), 0)
    log_amount = np.zeros(len(xy_um))
    if coupling > 0:  # at 0 the cells are not even looked at
        amount, share = _visible_share(cells, spot_members(cells, xy_um, radius_um), xy_um, genes, shift, subtype)
        log_amount += np.sqrt(coupling) * np.log(amount / amount_mean)
        seen = np.log(share[:, is_visible])
        log_share[:, is_visible] += np.sqrt(coupling) * (seen - reference[is_visible])
    lost = np.sqrt(1 - coupling)
    null = smooth_fields(xy_um, len(reference) + 1, length_um=LENGTH_UM["own"], rng=stream("null"))
    hidden = lost * NULL_SD * null[:, 1:] * is_visible
    half_variance = np.where(is_visible, (lost * NULL_SD) ** 2 / 2, 0.0)

    size = table["effect"].to_numpy(float) * np.sqrt(1 - table["rho"].to_numpy(float))
    for name in sorted(set(table["programme"][size > 0])):
        columns = np.flatnonzero((table["programme"] == name) & (size > 0))
        n = len(columns) if name == "own" else 1
        field = smooth_fields(xy_um, n, length_um=LENGTH_UM.get(name, 220.0), rng=stream(f"hidden {name}"))
        hidden[:, columns] += size[columns] * field
        half_variance[columns] += size[columns] ** 2 / 2

    def finish(share, amount):
        share[:, is_visible] *= (1 - genes.flat.sum()) / share[:, is_visible].sum(1, keepdims=True)
        rate = depth * amount[:, None] * share
        if swap > 0 and len(xy_um) > 6:
            neighbours = cKDTree(xy_um).query(xy_um, k=7)[1][:, 1:]
            rate = (1 - swap) * rate + swap * rate[neighbours].mean(1)
        return rate

    amount_sd = lost * NULL_AMOUNT_SD
    rate = finish(np.exp(log_share + hidden), np.exp(log_amount + amount_sd * null[:, 0]))
    best = finish(np.exp(log_share + half_variance), np.exp(log_amount + amount_sd**2 / 2))
    return Expected(rate, best, genes.genes, genes.theta, float(dropout))

"""Examiner: true expectations of single cells, and a cohort of another kind whose cells are known as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers import section as sec
from helpers import settings
from helpers.messages import CourseError

GROW_UM = 3.0
"""How far a cell's outline lies round its nucleus, where only nuclei are known."""


def expectations(truth, names, genes) -> np.ndarray:
    """Return the expected counts of the instrument's cells ``names``, float32 (cells, genes)."""
    return truth.expected.loc[list(names), list(genes)].to_numpy(np.float32)


def counted(table, names, genes) -> np.ndarray:
    """Return the counts of cells by name, float32 (cells, genes); zeros for those left out for having no count."""
    rows = table.obs_names.get_indexer(list(names))
    values = table[:, list(genes)].X
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return np.where(rows[:, None] >= 0, values[rows], 0).astype(np.float32)


def ceiling(expected, counts) -> np.ndarray:
    """Return Pearson's r, per gene, of the true composition with the counted one: what a perfect model would reach.

    Parameters
    ----------
    expected, counts
        (cells, genes); cells without counts are left out.
    """
    from helpers import deepspot2cell_scores, pseudospots_patches

    some = np.asarray(counts.sum(1)).ravel() > 0
    true, seen = (pseudospots_patches.log_cp10k(part[some]) for part in (expected, counts))
    return deepspot2cell_scores.pearson(true, seen)


@dataclass(frozen=True)
class Cohort:
    """Cells of another cohort.

    Attributes
    ----------
    section
        Its H&E, with its own pixel size.
    xy, outlines
        float (cells, 2) and array of shapely polygons, pixels of that H&E.
    expected
        Data frame (cells, genes) of expected counts; its panel lacks some genes of the course's and has another order.
    classes
        Class of each cell, object (cells,).
    """

    section: object
    xy: np.ndarray
    outlines: np.ndarray
    expected: object
    classes: np.ndarray


def other_cohort(section, truth, *, side_um: float = 900.0, seed: int = 0, genes_kept: float = 0.8) -> Cohort:
    """Return the front cells of a virtual Visium section as if a Xenium had measured them.

    Another style of tissue (thick frozen sections), another stain, another scanner (0.69 um a pixel), other patients
    and a smaller panel: out of distribution in every respect but the generator.

    Parameters
    ----------
    section, truth
        Of ``Data({"DATA": "virtual", ...})``.
    side_um
        Side of the square in the middle whose cells are taken.
    genes_kept
        Share of the panel's genes this cohort's panel has.
    """
    import pandas as pd
    import shapely

    from helpers.virtual import xenium_counts
    from helpers.virtual.xenium_cells import CLASS_OF

    cells, polygons = truth.cells, truth.nuclei
    if len(cells) != len(polygons):
        raise CourseError(f"{len(cells)} cells, {len(polygons)} nuclei", "one each", "generate the data set anew")
    mpp = sec.mpp(section)
    rows, columns = sec.shape(section)
    centre, middle = polygons.mean(1) / mpp, np.array([columns, rows]) / 2
    near = (np.abs(centre - middle) < min(side_um / 2 / mpp, *(middle - 1))).all(1)
    chosen = np.flatnonzero(near & ~cells["deep"].to_numpy(bool))
    table = cells.iloc[chosen].reset_index(drop=True)
    name = f"cohort {section.attrs['section_id']}"
    rate = xenium_counts.rates(table, seed=seed, section=name, patient=name, subtype="luminal")
    genes = xenium_counts.panel()["symbol"].to_numpy(str)
    kept = settings.rng(seed, "other cohort", "panel").permutation(len(genes))[: round(genes_kept * len(genes))]
    outlines = shapely.buffer(shapely.polygons(polygons[chosen] / mpp), GROW_UM / mpp, quad_segs=3)
    classes = table["type"].astype(str).map(CLASS_OF).to_numpy(object)
    expected = pd.DataFrame(rate[:, kept], columns=genes[kept])
    return Cohort(section, centre[chosen], np.asarray(outlines), expected, classes)

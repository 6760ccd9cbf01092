"""Examiner of notebook 07: a virtual tissue whose surroundings matter, cells with their truth, a zip like torch's."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import deepspot, section_align, settings
from helpers import section as sec
from helpers.messages import CourseError

SPILL = 0.5
"""Share of a spot's RNA that comes from its six neighbours. Real arrays spill too (Ni 2022); this is much."""


def spilled(table, truths, *, seed: int, spill: float = SPILL, score=None, draws: int = 3):
    """Return the counts that an array would give whose RNA spreads to neighbouring spots before it is caught.

    On the plain virtual tissue a spot's counts depend on the cells in its own disc, so its own tile says nearly all.
    Here a stated share comes from the six spots around: the surroundings matter, by construction. Cells, picture,
    hidden fields, spots and library sizes are those of the plain tissue.

    Parameters
    ----------
    table
        AnnData of the joined sections of ``DATA = "virtual"``, all genes; ``obs["section_id"]``.
    truths
        Section id -> ``Data.truth(id)``.
    seed
        The course's.
    spill
        0 (the plain tissue) to 1.
    score
        Ids of the sections whose ceilings are wanted; None: all.
    draws
        Draws of the counts that the ceilings are averaged over.

    Returns
    -------
    table : AnnData
        A copy with other counts.
    genes : dict
        Section id -> data frame by gene: ``r_ceil_log`` (the correlation a perfect model of everything visible reaches
        with log1p CP10k) and ``morphology``.
    """
    from scipy import sparse

    from helpers.virtual import expression, noise, platforms

    platform, out, ceilings = platforms.PLATFORMS["visium"], table.copy(), {}
    made = np.zeros(table.shape, np.int32)
    section_of = table.obs["section_id"].to_numpy(str)
    for name, known in truths.items():
        facts, rows = known.stain, np.flatnonzero(section_of == name)
        spots = known.spots
        if len(rows) != len(spots):
            raise CourseError(f"{len(rows)} spots of {name}", f"{len(spots)}, as generated", "pass whole sections")
        rates = expression.expected(
            known.cells, spots[["x_um", "y_um"]].to_numpy(float), radius_um=platform.radius_um, depth=platform.depth,
            seed=seed, section=facts["tissue"], patient=facts["patient"], slide=facts["slide"],
            subtype=facts["subtype"], patient_sd=0.25, slide_sd=0.1, swap=spill,
        )  # fmt: skip
        library = spots["library"].to_numpy(float)
        rng = settings.rng(seed, "expression", facts["tissue"], "visium", "counts")
        counts = noise.draw(rates, library, rng=rng)
        made[rows] = counts[:, [list(rates.genes).index(g) for g in table.var_names]]
        if score is not None and name not in score:
            continue
        ceilings[name] = noise.ceilings(
            rates, library, seed=seed, section=facts["tissue"], platform="visium", draws=draws
        ).set_index("gene")[["r_ceil_log"]].join(known.genes[["morphology", "programme"]])  # fmt: skip
    out.X = sparse.csr_matrix(made)
    return out, ceilings


def torch_zip(path, pickled: bytes, storages: dict | None = None) -> Path:
    """Write a file laid out as torch's: an archive with ``data.pkl`` and the raw numbers (key -> bytes) beside it."""
    path = Path(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


@dataclass(frozen=True)
class Cells:
    """Cells in the middle of a virtual Xenium section.

    Attributes
    ----------
    section
        With all its cells on the H&E.
    rows
        int (n,): the cells taken.
    xy_um
        float (n, 2): their centres, microns.
    target, truth
        float32 (n, g): log1p(counts per 10,000), and the same of the expected counts.
    genes
        g names.
    """

    section: object
    rows: np.ndarray
    xy_um: np.ndarray
    target: np.ndarray
    truth: np.ndarray
    genes: list


def cells(data, *, side_um: float = 320.0, sections: int = 3, genes: int = 60) -> dict:
    """Return :class:`Cells` of sections of ``virtual_xenium``, each of another patient; the last one is held out.

    The cells are placed by the true affine (notebook 06 finds it); a warp of 3 um is left as it is.

    Parameters
    ----------
    data
        ``runner.Data`` of ``virtual_xenium``.
    side_um
        Side of the square in the middle that is used.
    genes
        How many, those most variable in the expected counts of the first section.
    """
    from helpers.virtual import xenium_truth

    whose = {ref.section_id: ref.subject_id for ref in data.sections}
    one_each = list({whose[name]: name for name in reversed(data.train)}.values())[::-1]  # the first of each patient
    test, names, out = data.test[0], [], {}
    for name in (*one_each[: sections - 1], test):
        known = xenium_truth.of(data.truth(name))
        section = section_align.align(data.load(name), known.registration["um_to_px"])
        xy = sec.xy(section) * sec.mpp(section)
        table = sec.counts(section)
        total = np.asarray(table.X.sum(1), float).ravel()
        near = np.abs(xy - np.median(xy, axis=0)).max(1) < side_um / 2
        rows = np.flatnonzero(near & (total > 0))
        expected = known.expected.loc[table.obs_names[rows]]
        share = expected.to_numpy() / expected.to_numpy().sum(1, keepdims=True)
        truth = np.log1p(1e4 * share).astype(np.float32)
        if not names:
            names = list(expected.columns[np.argsort(-truth.var(0), kind="stable")[:genes]])
        target = deepspot.expression(table[rows, names].X, total[rows])
        truth = truth[:, expected.columns.get_indexer(names)]
        out[name] = Cells(section, rows, xy[rows], target, truth, names)
    return out

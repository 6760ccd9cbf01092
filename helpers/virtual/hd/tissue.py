"""Grow one virtual Visium HD section: colon with a tumour, its cells with whole outlines, and its H&E.

``grow(section="H1", seed=0)`` lays out the tissue (:mod:`.tissue_ground`), sets nuclei (:mod:`.tissue_cells`), draws
cells round them (:mod:`.tissue_outlines`) and stains it all (:mod:`.picture`). The same seed and section give the same
bytes; the picture cannot move a cell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from ...messages import CourseError
from ...settings import rng
from ..optics import Stain
from . import tissue_cells, tissue_ground, tissue_outlines
from .tissue_ground import Patient

TYPES, DOMAINS, GLASS = tissue_cells.TYPES, tissue_ground.DOMAINS, tissue_ground.GLASS
GRID_UM = 1.0
PATIENTS = {
    "H1": Patient(),
    "H2": Patient(goblet_share=0.28, immune=1.2, tumour=1.12, epithelium_um=24.0, crypt_um=33.0, neutrophils=1.5,
                  plasma=0.8),
}  # fmt: skip
"""The two patients; any other section name is a patient drawn at random, stain and all."""
_THIN = Stain(
    haematoxylin=(0.68, 0.66, 0.31), eosin=(0.24, 0.90, 0.36), white_point=(243.0, 240.0, 243.0), glare=0.02,
    blur_um=0.42, sharpening=0.5, sharpening_um=0.9, cast=0.0, defocus=0.55, defocus_um=1.25, noise=1.4, grain=0.03,
    jpeg_quality=84,
)  # fmt: skip
STAINS = {
    "H1": _THIN,
    "H2": replace(_THIN, haematoxylin=(0.74, 0.60, 0.30), eosin=(0.33, 0.85, 0.41), white_point=(236.0, 231.0, 239.0),
                  strength_h=0.88, strength_e=1.12, blur_um=0.50),
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One section.

    Attributes
    ----------
    section, seed, size_um
        What it was grown from; ``size_um`` is the side of the square field.
    cells
        One row a cell, from top to bottom: ``cell_id`` (1...n), ``type``, ``domain`` (both categorical), ``x_um``,
        ``y_um`` (centre of the nucleus), ``island``, ``high_mt`` (damaged strip), ``area_um2`` (nucleus).
    nuclei, outlines
        float32 (n, 32, 2): x, y in um of nuclei and of whole cells, in the order of ``cells``.
    domain
        uint8 (gy, gx) on a grid of ``grid_um``: index into ``domains``, 255 on glass.
    domains
        Names of the domains.
    grid_um
        Step of the grids in um; the centre of grid cell (0, 0) lies at half a step.
    tissue
        bool (gy, gx): tissue, lumina included.
    image
        uint8 (y, x, 3) RGB, after JPEG.
    jpeg
        The encoded file that ``image`` is decoded from.
    mpp
        um per pixel of ``image``.
    stain
        The stain, light and scanner put in (fields of ``optics.Stain``), plain values.
    facts
        ``patient`` (its factors), ``gap_um`` (least distance of the island to the main piece).
    """

    section: str
    seed: int
    size_um: float
    cells: pd.DataFrame
    nuclei: np.ndarray
    outlines: np.ndarray
    domain: np.ndarray
    domains: tuple[str, ...]
    grid_um: float
    tissue: np.ndarray
    image: np.ndarray
    jpeg: bytes
    mpp: float
    stain: dict
    facts: dict


def patient(section: str, seed: int) -> tuple[Patient, Stain]:
    """Return what is particular to the patient of a section, and the stain of its slide."""
    if section in PATIENTS:
        return PATIENTS[section], STAINS[section]
    stream = rng(seed, "hd", section, "patient")
    share, low, high = stream.uniform(0.25, 0.4), np.array([0.62, 0.56, 0.27]), np.array([0.77, 0.70, 0.34])
    who = Patient(goblet_share=float(share), immune=float(stream.uniform(0.85, 1.25)),
                  tumour=float(stream.uniform(0.9, 1.15)), epithelium_um=float(stream.uniform(23, 29)),
                  crypt_um=float(stream.uniform(32, 35)), neutrophils=float(stream.uniform(0.6, 1.6)))  # fmt: skip
    eosin = stream.uniform([0.15, 0.82, 0.33], [0.36, 0.92, 0.45])
    stain = replace(
        _THIN, haematoxylin=tuple(map(float, stream.uniform(low, high))), eosin=tuple(map(float, eosin)),
        white_point=tuple(map(float, stream.uniform([233, 228, 235], [247, 244, 247]))),
        strength_h=float(stream.uniform(0.8, 1.1)), strength_e=float(stream.uniform(0.8, 1.2)),
        blur_um=float(stream.uniform(0.36, 0.56)),
    )  # fmt: skip
    return who, stain


def grow(*, section: str, seed: int, size_um: float = 1000.0, mpp: float = 0.5, stain: Stain | None = None) -> Field:
    """Grow one section.

    Parameters
    ----------
    section
        ``"H1"`` or ``"H2"``: two patients; any other name is a patient drawn at random.
    seed
        Seed of the layout, the cells and the picture.
    size_um
        Side of the field in um, 500 to 3000.
    mpp
        um per pixel of the picture, 0.2 to 2.
    stain
        Another stain than the patient's; cells stay as they are.

    Raises
    ------
    CourseError
        If a size is out of range.
    """
    from . import picture

    if not 500 <= size_um <= 3000:
        raise CourseError(f"size_um = {size_um:g}", "500 to 3000", "pass the side of the field in microns")
    if not 0.2 <= mpp <= 2:
        raise CourseError(f"{mpp:g} um per pixel", "0.2 to 2", "pass mpp in microns per pixel")
    who, own = patient(section, seed)
    ground = tissue_ground.grow(section=section, seed=seed, size_um=float(size_um), patient=who)
    placed, nuclei = tissue_cells.place(ground)
    labels = tissue_outlines.label(ground, placed, nuclei)
    whole = tissue_outlines.outlines(placed, nuclei, labels)
    points = placed[["x_um", "y_um"]].to_numpy()
    code = ground.at("domain", points)
    cells = pd.DataFrame({
        "cell_id": np.arange(1, len(placed) + 1, dtype=np.int32),
        "type": pd.Categorical.from_codes(placed.code, TYPES),
        "domain": pd.Categorical.from_codes(code.astype(int), DOMAINS),
        "x_um": points[:, 0].astype(np.float32), "y_um": points[:, 1].astype(np.float32),
        "island": ground.at("island", points) > 0, "high_mt": ground.at("damaged", points),
        "area_um2": placed.area_um2.to_numpy(np.float32),
    })  # fmt: skip
    used = stain or own
    jpeg, image = picture.draw(ground, placed, nuclei, labels, used, mpp=float(mpp))
    main = (ground.tissue > 0) & (ground.island < -1)
    facts = {"patient": asdict(who), "gap_um": float(-ground.island[main].max())}
    return Field(
        section=section, seed=int(seed), size_um=ground.size_um, cells=cells, nuclei=nuclei, outlines=whole,
        domain=ground.domain, domains=DOMAINS, grid_um=GRID_UM, tissue=ground.tissue > 0, image=image, jpeg=jpeg,
        mpp=float(mpp), stain=asdict(used), facts=facts,
    )  # fmt: skip


__all__ = ["DOMAINS", "Field", "GLASS", "PATIENTS", "Patient", "STAINS", "Stain", "TYPES", "grow", "patient"]

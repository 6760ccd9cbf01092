"""Spinal cord: a second organ for the virtual tissue - a transverse section of a mouse's lumbar cord.

Grey matter is the butterfly: two horns a side, built from ellipses that melt into each other, round a central canal.
White matter, the cut axons, surrounds it. Motor neurons lie in the ventral horns. :class:`CordStyle` has the
knobs of a disease: how many motor neurons are left, how large they are, how many glia there are.

Sizes and densities: transverse sections of ten mouse cords of a spatial transcriptomics study (2.47 x 1.83 mm,
1200-1800 detected nuclei per mm2, gelatinosa pale and rich in cells, white matter pinker than grey; design page
``virtual_tissue.md``); the split of the glia into types is textbook knowledge, set by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..messages import CourseError
from .fields import ramp
from .ground import FAR, Ground
from .styles import Style

DOMAINS = ("glass", "white_matter", "dorsal_horn", "ventral_horn", "central_canal")
TYPES = (
    "motor_neuron", "neuron", "oligodendrocyte", "astrocyte", "microglia", "endothelial", "ependymal", "meningeal",
)  # fmt: skip

MORPHOLOGY = pd.DataFrame(
    [
        # area um2, sd log, axis ratio, sd, irregularity, haematoxylin, sd, spacing, turn from its axis (rad)
        ("motor_neuron", 95, 0.22, 0.80, 0.10, 0.07, 0.90, 0.12, 2.10, 1.57),
        ("neuron", 52, 0.28, 0.80, 0.10, 0.08, 0.85, 0.15, 1.15, 1.57),
        ("oligodendrocyte", 24, 0.22, 0.86, 0.08, 0.07, 1.60, 0.25, 0.90, 1.57),
        ("astrocyte", 34, 0.24, 0.76, 0.10, 0.09, 1.05, 0.20, 0.90, 1.57),
        ("microglia", 20, 0.28, 0.40, 0.10, 0.12, 1.75, 0.25, 0.90, 1.57),
        ("endothelial", 22, 0.30, 0.28, 0.08, 0.08, 1.20, 0.25, 0.90, 1.57),
        ("ependymal", 24, 0.20, 0.60, 0.10, 0.07, 1.50, 0.20, 0.65, 0.25),
        ("meningeal", 18, 0.30, 0.25, 0.08, 0.10, 1.30, 0.25, 0.80, 0.20),
    ],
    columns=["type", "area_um2", "area_sd_log", "axis_ratio", "axis_sd", "irregularity", "haematoxylin",
             "haematoxylin_sd", "spacing", "turn_sd"],
).set_index("type")
"""Nuclear morphology in thick frozen cord; sizes by order (motor neuron > neuron > astrocyte > oligodendrocyte >
microglia, the last one dark and rod-shaped) are textbook knowledge, set by hand against sections of real cord."""

CYTOPLASM = {  # length and width as multiples of the nucleus', eosin, haematoxylin (Nissl substance)
    "motor_neuron": (2.6, 2.3, 0.16, 1.05),
    "neuron": (1.55, 1.45, 0.14, 0.80),
    "oligodendrocyte": (1.15, 1.15, 0.05, 0.30),
    "astrocyte": (1.25, 1.25, 0.05, 0.25),
    "microglia": (1.15, 1.05, 0.04, 0.25),
    "endothelial": (1.80, 0.95, 0.25, 0.25),
    "ependymal": (1.50, 1.20, 0.15, 0.45),
    "meningeal": (1.60, 0.95, 0.25, 0.25),
}

DIRECTIONS = (("canal", "ependymal", 0.0), ("tissue", "meningeal", np.pi / 2))
"""(field, type, turn): nuclei that lie along or across the slope of a field."""


@dataclass(frozen=True)
class CordStyle(Style):
    """The look of one cord. Factors are 1 in a healthy young animal; densities in cells per mm2."""

    name: str = "cord"
    size: float = 0.82  # of a 2.46 x 1.82 mm section
    turn_rad: float = 0.0  # how the section lies on the glass
    motor_neurons: float = 1.0  # number of motor neurons
    motor_size: float = 1.0  # their area
    neurons: float = 1.0
    glia: float = 1.0  # number of astrocytes and microglia, everywhere
    horn_glia: float = 1.0  # the same, in the ventral horn only: gliosis starts where motor neurons die
    oligodendrocytes: float = 1.0
    white_eosin: float = 0.34
    grey_eosin: float = 0.22
    white_haematoxylin: float = 0.23
    grey_haematoxylin: float = 0.36
    vacuoles: float = 1.0  # pale holes in white matter
    deep_share: float = 0.25
    thick_blur: float = 1.0


def _smooth_maximum(fields, k_um: float) -> np.ndarray:
    """Soft maximum of signed distances: shapes melt into each other over about ``k_um``."""
    top = np.maximum.reduce(fields)
    return top + k_um * np.log(sum(np.exp((field - top) / k_um) for field in fields))


def cord(ground: Ground, full_tissue: bool, folds: int, tears: int) -> tuple[dict, np.ndarray]:
    """All fields and the domains of a transverse section of spinal cord, dorsal side up, in the middle of the field."""
    if folds or tears:
        raise CourseError(f"folds={folds}, tears={tears} in a cord", "0: this template has none", "leave them out")
    style, step = ground.style, ground.step
    size = getattr(style, "size", CordStyle.size)
    turn = getattr(style, "turn_rad", 0.0)
    x = ground.x - ground.width / 2 + 26 * ground.noise("warp x", 200)
    y = ground.y - ground.height / 2 + 26 * ground.noise("warp y", 200)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    x, y = x / size, y / size  # template units
    off = np.abs(x)

    def ellipse(cx, cy, rx, ry, angle):
        u = (off - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (off - cx) * np.sin(angle)
        return (1 - np.hypot(u / rx, v / ry)) * min(rx, ry)

    tissue = (1 - np.hypot(x / 1230, y / 910)) * 846
    tissue = np.minimum(tissue, np.maximum(off - 5, 420 - y))  # ventral median fissure
    tissue = (tissue * size + 3 * ground.noise("outline", 12)).astype(np.float32)
    if full_tissue:
        tissue = np.full(ground.shape, -FAR, np.float32)
    dorsal, ventral = ellipse(470, -500, 200, 430, 0.50), ellipse(470, 250, 330, 330, -0.2)
    middle, commissure = ellipse(320, -90, 250, 300, 0.1), ellipse(0, 10, 400, 105, 0.0)
    grey = _smooth_maximum([dorsal, ventral, commissure, middle], 40.0) * size + 5 * ground.noise("grey", 30)
    grey = np.minimum(grey, tissue - 25)
    canal = (46 - np.hypot(x / 0.65, y + 5)) * size
    gelatinosa = np.clip((dorsal - 10) / 60, 0, 1) * np.clip((-y - 430) / 90, 0, 1)
    core = np.minimum(ventral * size, grey)
    gap = np.minimum(14 * (ground.noise("tear", 14) + 0.6 * ground.noise("tears", 80) - 3.1), tissue - 14)
    nowhere = np.full(ground.shape, FAR, np.float32)
    fields = {
        "tissue": tissue, "grey": grey, "gelatinosa": gelatinosa, "ventral_horn": core, "canal": canal, "gap": gap,
        "lateral": off * size, "fibre_x": np.ones(ground.shape), "fibre_y": np.zeros(ground.shape),
        **dict.fromkeys(("duct", "nest", "immune", "fat", "vessel", "lumen", "septum", "adipocyte"), nowhere),
        **dict.fromkeys(("in_situ", "loose", "fold"), np.zeros(ground.shape)),
    }  # fmt: skip
    domain = np.full(ground.shape, DOMAINS.index("white_matter"), np.uint8)
    for name, where in (
        ("dorsal_horn", grey > 0), ("ventral_horn", (grey > 0) & (y > 30)), ("central_canal", canal > -step),
        ("glass", tissue <= 0),
    ):  # fmt: skip
        domain[where] = DOMAINS.index(name)
    return {name: np.ascontiguousarray(field, np.float32) for name, field in fields.items()}, domain


def densities(anatomy, noise) -> dict[str, np.ndarray]:
    """Wanted cells per mm2 of every type on the coarse grid; ``noise(name, sigma_um)`` gives named fields."""
    f, style = anatomy.fields, anatomy.style
    solid = (f["tissue"] > 4) & (f["gap"] < 0) & (f["canal"] < -14)
    grey, white = solid & (f["grey"] > 0), solid & (f["grey"] <= 0)
    horn = np.clip(f["ventral_horn"] / 40, 0, 1)
    cluster = np.exp(0.45 * noise("cluster", 14) - 0.1)
    glia = style.glia * cluster * (1 + (style.horn_glia - 1) * horn)
    pool = (f["ventral_horn"] > 55) & (f["lateral"] > 240)
    return {
        "motor_neuron": style.motor_neurons * 130 * np.exp(0.7 * noise("pools", 60) - 0.25) * (grey & pool),
        "neuron": style.neurons * (430 + 1300 * f["gelatinosa"]) * cluster * grey,
        "oligodendrocyte": style.oligodendrocytes * cluster * (520.0 * white + 240.0 * grey),
        "astrocyte": glia * (330.0 * white + 460.0 * grey),
        "microglia": glia * (200.0 * white + 270.0 * grey),
        "endothelial": 150.0 * solid,
        "ependymal": 11000.0 * ((f["canal"] < -1) & (f["canal"] > -13) & (f["tissue"] > 0)),
        "meningeal": 2400.0 * (np.abs(f["tissue"] - 4) < 4),
    }


def matrix(canvas) -> tuple[np.ndarray, np.ndarray]:
    """Eosin and haematoxylin between the cells: bubbly axons in white matter, felt of processes in grey (float16)."""
    style = canvas.anatomy.style
    grey, pale = ramp(canvas.field("grey"), 26), canvas.field("gelatinosa")
    fine, middle, coarse = (canvas.noise(f"axons {size}", size) for size in (1.4, 2.6, 6.0))
    white_e = style.white_eosin * np.exp(0.17 * fine + 0.10 * middle + 0.05 * coarse)
    grey_e = (style.grey_eosin - 0.06 * pale) * np.exp(0.12 * fine + 0.10 * middle + 0.08 * coarse)
    eosin = (grey_e * grey + white_e * (1 - grey)) * np.exp(0.12 * canvas.noise("wide eosin", 110))
    haematoxylin = (style.grey_haematoxylin - 0.05 * pale) * grey + style.white_haematoxylin * (1 - grey)
    haematoxylin = haematoxylin * np.exp(0.09 * middle + 0.07 * coarse + 0.10 * canvas.noise("wide haematoxylin", 80))
    patches = ramp(canvas.noise("vacuole patches", 70) - 0.2, 1.2)
    holes = 0.55 * style.vacuoles * patches * ramp(0.9 * middle + 0.5 * fine - 1.55, 0.7) * (1 - 0.85 * grey)
    glass = 1 - ramp(canvas.field("tissue") + 1.2 * middle, 3)
    empty = np.maximum.reduce([holes, ramp(canvas.field("gap"), 3), ramp(canvas.field("canal") + 2, 3), glass])
    rim = np.clip(4 * empty * (1 - empty), 0, 1) * 0.04  # a refracting edge
    eosin = np.maximum(eosin, 0.02) * (1 - empty) + rim
    haematoxylin = np.maximum(haematoxylin, 0) * (1 - empty) + rim
    pia = np.exp(-(((canvas.field("tissue") - 4) / 4.0) ** 2)) * (1 - glass)
    thickness = np.exp(0.07 * canvas.noise("thickness", 60))
    return ((eosin + 0.2 * pia) * thickness).astype(np.float16), (
        (haematoxylin + 0.15 * pia) * thickness).astype(np.float16)

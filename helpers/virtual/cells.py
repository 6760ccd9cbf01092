"""Cells of a virtual section: where each nucleus lies, its type, outline and stain, and what can be seen around it.

Cells are drawn from density maps of the anatomy, thinned so that no two nuclei of the front layer touch; a deeper
layer, as in thick frozen sections, may overlap and is flagged. Every type draws from its own named random
stream, and nothing here depends on how the section is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from ..settings import rng
from . import cord
from .anatomy import Anatomy
from .fields import independent_set, keep_apart, logistic, smooth_noise

TYPES = (
    "cancer_epithelial", "normal_epithelial", "myoepithelial", "fibroblast", "t_cell", "b_cell", "plasma_cell",
    "myeloid", "endothelial", "adipocyte",
)
VERTICES = 18
OVERSAMPLING = 2.6  # candidates per wanted cell, before thinning
CELL_SHARE_LOST = 1.05  # density kept when thinning left more than wanted

MORPHOLOGY = pd.DataFrame(
    [
        # area um2, sd log, axis ratio, sd, irregularity, haematoxylin, sd, spacing, turn from its axis (rad)
        ("cancer_epithelial", 23.5, 0.34, 0.72, 0.14, 0.16, 1.45, 0.34, 0.80, 1.20),
        ("normal_epithelial", 26, 0.25, 0.55, 0.12, 0.11, 1.55, 0.30, 0.62, 0.25),
        ("myoepithelial", 20, 0.30, 0.40, 0.10, 0.12, 1.35, 0.40, 0.80, 0.20),
        ("fibroblast", 18, 0.45, 0.34, 0.15, 0.24, 1.50, 0.42, 0.85, 0.35),
        ("t_cell", 16, 0.30, 0.74, 0.14, 0.20, 1.65, 0.38, 0.74, 1.20),
        ("b_cell", 17, 0.26, 0.80, 0.12, 0.16, 1.65, 0.34, 0.74, 1.20),
        ("plasma_cell", 21, 0.28, 0.76, 0.12, 0.12, 1.50, 0.35, 0.80, 1.20),
        ("myeloid", 30, 0.40, 0.60, 0.16, 0.18, 1.05, 0.40, 0.95, 1.20),
        ("endothelial", 17, 0.30, 0.26, 0.08, 0.12, 1.40, 0.40, 0.90, 0.20),
        ("adipocyte", 15, 0.30, 0.28, 0.08, 0.10, 1.40, 0.30, 0.90, 0.20),
    ],
    columns=["type", "area_um2", "area_sd_log", "axis_ratio", "axis_sd", "irregularity", "haematoxylin",
             "haematoxylin_sd", "spacing", "turn_sd"],
).set_index("type")
"""Nuclear morphology in thick frozen sections; ``Style.nucleus_area`` scales the areas (1.75 in thin paraffin).

Sources. Areas of tumour, stroma and immune nuclei and the haematoxylin: fitted so that one nucleus detector gives the
same density and size on virtual and on real her2st sections (design notes, sections 1 and 2). sd of log area and
axis ratio of epithelial nuclei: measured on 644 annotated nuclei (sd log .44, axis ratio
quartiles .45 .56 .69).
Order of the types by size and elongation: general histology (lymphocyte 25-35 um2 and round in paraffin, fibroblast and
endothelium spindle-shaped, carcinoma 50-110 um2), not measured here.
"""


@dataclass
class Cells:
    """Cells of one section.

    Attributes
    ----------
    table
        One row per cell, ordered from top to bottom: ``cell_id`` (1...n), ``x_um``, ``y_um`` (nucleus centre), ``deep``
        (deeper layer), ``type``, ``domain``, ``area_um2``, ``axis_ratio`` (minor/major), ``angle_rad`` (long axis from
        x towards y, 0 to pi), ``haematoxylin`` (concentration in the nucleus); and what surrounds it:
        ``nest_edge_um`` (signed distance to the edge of the nearest nest or duct, positive inside), ``vessel_um``
        (to the nearest vessel, 0 inside), ``immune_um`` (signed, positive inside a focus), ``density_per_mm2``
        (local cell density, Gaussian of sigma 35 um), ``fibre_alignment`` (|cos| of nucleus axis against fibres).
    polygons
        float32 (n, 18, 2): x, y of the nucleus outline in um, in the order of the table.
    """

    table: pd.DataFrame
    polygons: np.ndarray


_DIRECTIONS = (
    ("duct", "myoepithelial", np.pi / 2), ("duct", "normal_epithelial", 0.0), ("vessel", "endothelial", np.pi / 2),
    ("adipocyte", "adipocyte", np.pi / 2),
)


def types_of(anatomy: Anatomy) -> tuple[str, ...]:
    """Cell types of the organ a section is grown from."""
    return cord.TYPES if anatomy.template == "cord" else TYPES


def _densities(anatomy: Anatomy, seed: int, section: str) -> dict[str, np.ndarray]:
    """Wanted cells per mm2 of every type on the coarse grid."""
    f, style = anatomy.fields, anatomy.style

    def noise(name: str, sigma_um: float) -> np.ndarray:
        return smooth_noise(rng(seed, "cells", section, name), anatomy.shape, sigma_um / anatomy.grid_um)

    if anatomy.template == "cord":
        wanted = cord.densities(anatomy, noise)
        return {kind: np.maximum(wanted[kind], 0).astype(np.float32) for kind in cord.TYPES}
    tissue = f["tissue"] > 3
    white = (f["gap"] > 0) | ((f["lumen"] > 0) & (f["duct"] > 0)) | ((f["adipocyte"] > 1.5) & (f["fat"] > 0))
    solid = tissue & ~white & (f["vessel"] < 0)
    in_situ, duct, nest = f["in_situ"] > 0, f["duct"], f["nest"]
    stroma = solid & (duct < -2) & (f["fat"] < 0)
    cluster = np.exp(1.0 * noise("cluster", 8) - 0.5)  # cells gather; without it spacing is too even
    pale = np.clip(0.85 - 0.5 * noise("pale", 110), 0.2, 1)  # cell-poor collagen
    stromal = np.exp(0.6 * noise("stromal", 80) - 0.1) * cluster * pale * np.where(f["septum"] > 0, 0.2, 1)
    stromal *= 1 - 0.35 * f["loose"]
    diffuse = np.exp(0.9 * noise("diffuse 45", 45) - 0.4) * np.exp(0.6 * noise("diffuse 13", 13) - 0.18)
    diffuse *= style.lymphocytes * cluster * np.where(nest > 0, 0.35, 1) * np.where(f["septum"] > 0, 0.15, 1) * pale
    focus = 13000 * logistic(f["immune"] / 6) * np.clip(cluster, 0.6, 1.4) * (f["immune"] > -15)
    core = 0.6 * logistic((f["immune"] - 22) / 8)  # B cells gather in the middle of larger foci
    epithelium = style.cell_density * (1 + 0.25 * np.clip(noise("epithelium", 60), -2, 2))
    density = {
        "cancer_epithelial": 14200 * epithelium * (solid & (nest > 2)) + 16000 * epithelium * (
            solid & in_situ & (duct > 7)),
        "normal_epithelial": 19000 * style.cell_density * (solid & ~in_situ & (duct > 4.5) & (duct < 16)),
        "myoepithelial": 7000 * (tissue & (duct > -1) & (duct < np.where(in_situ, 5, 4))),
        "fibroblast": style.fibroblasts * stromal * (stroma & (nest < 3)),
        "t_cell": (0.8 * diffuse + (1 - core) * focus) * stroma,
        "b_cell": (0.2 * diffuse + core * focus) * stroma,
        "plasma_cell": np.where(f["immune"] > -20, 700, 120) * (stroma & (nest < 0)),
        "myeloid": 250.0 * stroma,
        "endothelial": 9000.0 * (tissue & (f["vessel"] > -1) & (f["vessel"] < 3)),
        "adipocyte": 900.0 * (tissue & (f["fat"] > 0) & (f["adipocyte"] < 1.6)),
    }
    return {kind: np.maximum(density[kind], 0).astype(np.float32) for kind in TYPES}


def _candidates(anatomy: Anatomy, seed: int, section: str) -> pd.DataFrame:
    """More cells than wanted, placed at random by density, with size, shape and priority, thinned by circles."""
    parts, square_mm2 = [], anatomy.grid_um**2 * 1e-6
    morphology = cord.MORPHOLOGY if anatomy.template == "cord" else MORPHOLOGY
    for code, (kind, density) in enumerate(_densities(anatomy, seed, section).items()):
        stream, shape = rng(seed, "cells", section, kind), morphology.loc[kind]
        count = stream.poisson(density * np.float32(square_mm2 * OVERSAMPLING))
        row, column = np.nonzero(count)
        row, column = np.repeat(row, count[row, column]), np.repeat(column, count[row, column])
        n = len(row)
        area = shape.area_um2 * anatomy.style.nucleus_area
        area = area * anatomy.style.motor_size if kind == "motor_neuron" else area
        area = area * np.exp(stream.normal(0, shape.area_sd_log, n) - 0.5 * shape.area_sd_log**2)
        part = pd.DataFrame({
            "x_um": ((column + stream.random(n)) * anatomy.grid_um).astype(np.float32),
            "y_um": ((row + stream.random(n)) * anatomy.grid_um).astype(np.float32),
            "code": np.int8(code),
            "area_um2": area.astype(np.float32),
            "axis_ratio": np.clip(stream.normal(shape.axis_ratio, shape.axis_sd, n), 0.18, 0.98).astype(np.float32),
            "turn": stream.normal(0, shape.turn_sd, n).astype(np.float32),
            "haematoxylin": stream.normal(shape.haematoxylin, shape.haematoxylin_sd, n).astype(np.float32),
            "bend": stream.normal(0, 0.18, n).astype(np.float32),
            "deep": stream.random(n) < anatomy.style.deep_share,
            "priority": stream.random(n),
            "wanted": float(density.sum()) * square_mm2,
        })
        waves = stream.normal(0, shape.irregularity, (n, 4)).astype(np.float32) * np.float32(1.6)
        part[[f"wave{k}" for k in range(2, 6)]] = waves / np.arange(2, 6, dtype=np.float32)
        part[[f"phase{k}" for k in range(2, 6)]] = stream.uniform(0, 2 * np.pi, (n, 4)).astype(np.float32)
        part["radius"] = np.sqrt(part.area_um2 / np.pi) * np.float32(shape.spacing * 0.92)
        parts.append(part[(part.x_um < anatomy.size_um[0]) & (part.y_um < anatomy.size_um[1])])
    cells = pd.concat(parts, ignore_index=True)
    kept = np.zeros(len(cells), bool)
    for layer in (False, True):
        index = np.flatnonzero(cells.deep == layer)
        points = cells[["x_um", "y_um"]].to_numpy()[index]
        kept[index] = keep_apart(points, cells.radius.to_numpy()[index], cells.priority.to_numpy()[index])
    return cells[kept].reset_index(drop=True)


def _direction(anatomy: Anatomy, cells: pd.DataFrame) -> np.ndarray:
    """Long axis of every nucleus (rad): along fibres, round ducts and vessels, or towards a lumen."""
    x, y, code = cells.x_um.to_numpy(), cells.y_um.to_numpy(), cells.code.to_numpy()
    angle = np.arctan2(anatomy.sample("fibre_y", x, y), anatomy.sample("fibre_x", x, y))
    types = types_of(anatomy)
    for field, kind, turn in cord.DIRECTIONS if anatomy.template == "cord" else _DIRECTIONS:
        here = code == types.index(kind)
        down, across = (cv2.GaussianBlur(g, (0, 0), 1.0) for g in np.gradient(anatomy.fields[field]))
        row = np.clip((y[here] / anatomy.grid_um).astype(int), 0, anatomy.shape[0] - 1)
        column = np.clip((x[here] / anatomy.grid_um).astype(int), 0, anatomy.shape[1] - 1)
        angle[here] = np.arctan2(down[row, column], across[row, column]) + turn
    return np.mod(angle + cells.turn.to_numpy(), np.pi).astype(np.float32)


def _outlines(cells: pd.DataFrame) -> np.ndarray:
    """Nucleus outlines, float32 (n, 18, 2) in um: ellipses with four harmonics, spindles slightly bent."""
    turn = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False, dtype=np.float32)[None]
    waves = sum(
        cells[f"wave{k}"].to_numpy()[:, None] * np.cos(k * turn + cells[f"phase{k}"].to_numpy()[:, None])
        for k in range(2, 6)
    )
    ratio = cells.axis_ratio.to_numpy()[:, None]
    major = np.sqrt(cells.area_um2.to_numpy()[:, None] / np.pi / ratio)
    wave = np.exp(waves)
    along, across = major * wave * np.cos(turn), major * ratio * wave * np.sin(turn)
    across = across + (ratio < 0.55) * cells.bend.to_numpy()[:, None] * along**2 / major
    cosine, sine = np.cos(cells.angle_rad.to_numpy())[:, None], np.sin(cells.angle_rad.to_numpy())[:, None]
    x = cells.x_um.to_numpy()[:, None] + along * cosine - across * sine
    y = cells.y_um.to_numpy()[:, None] + along * sine + across * cosine
    return np.stack([x, y], axis=2).astype(np.float32)


def _without_overlap(polygons: np.ndarray, deep: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """bool (n,): False for front nuclei that overlap a front nucleus of higher priority."""
    import shapely

    front = np.flatnonzero(~deep)
    shapes = shapely.polygons(polygons[front].astype(float))
    bad = ~shapely.is_valid(shapes)
    shapes[bad] = shapely.buffer(shapes[bad], 0)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    once = first < second
    kept = np.ones(len(polygons), bool)
    kept[front] = independent_set(first[once], second[once], priority[front])
    return kept


def _surroundings(anatomy: Anatomy, cells: pd.DataFrame) -> pd.DataFrame:
    """The columns that say what lies around each cell."""
    x, y = cells.x_um.to_numpy(), cells.y_um.to_numpy()
    edge = np.maximum(anatomy.sample("nest", x, y), anatomy.sample("duct", x, y))
    count = np.zeros(anatomy.shape, np.float32)
    rows = np.clip((y / anatomy.grid_um).astype(int), 0, anatomy.shape[0] - 1)
    np.add.at(count, (rows, np.clip((x / anatomy.grid_um).astype(int), 0, anatomy.shape[1] - 1)), 1)
    sigma = 35 / anatomy.grid_um
    tissue = cv2.GaussianBlur((anatomy.fields["tissue"] > 0).astype(np.float32), (0, 0), sigma)
    density = cv2.GaussianBlur(count, (0, 0), sigma) / np.maximum(tissue, 0.05) / (anatomy.grid_um**2 * 1e-6)
    fibre = np.arctan2(anatomy.sample("fibre_y", x, y), anatomy.sample("fibre_x", x, y))
    return pd.DataFrame({
        "nest_edge_um": edge,
        "vessel_um": np.maximum(-anatomy.sample("vessel", x, y), 0),
        "immune_um": anatomy.sample("immune", x, y),
        "density_per_mm2": density[rows, np.clip((x / anatomy.grid_um).astype(int), 0, anatomy.shape[1] - 1)],
        "fibre_alignment": np.abs(np.cos(cells.angle_rad.to_numpy() - fibre)),
    }, dtype=np.float32)


def place(anatomy: Anatomy, *, seed: int, section: str) -> Cells:
    """Place the cells of a section.

    Candidates are drawn by density, thinned by a maximal independent set with random priority, first on circles, then
    on the outlines themselves, and last to the wanted number per type.

    Parameters
    ----------
    anatomy
        From :func:`anatomy.grow`.
    seed, section
        Seed and name of the section; the same pair gives the same cells, byte for byte.
    """
    cells = _candidates(anatomy, seed, section)
    cells["angle_rad"] = _direction(anatomy, cells)
    polygons = _outlines(cells)
    kept = _without_overlap(polygons, cells.deep.to_numpy(), cells.priority.to_numpy())
    for code in range(len(types_of(anatomy))):
        index = np.flatnonzero(kept & (cells.code.to_numpy() == code))
        if len(index):
            wanted = int(cells.wanted.iloc[index[0]] * CELL_SHARE_LOST) + 1
            kept[index[np.argsort(cells.priority.to_numpy()[index])[:-wanted]]] = False
    kept = np.flatnonzero(kept)
    kept = kept[np.lexsort((cells.x_um.to_numpy()[kept], cells.y_um.to_numpy()[kept]))]
    cells, polygons = cells.iloc[kept].reset_index(drop=True), polygons[kept]
    field = smooth_noise(rng(seed, "cells", section, "haematoxylin"), anatomy.shape, 40 / anatomy.grid_um)
    x, y = cells.x_um.to_numpy(), cells.y_um.to_numpy()
    rows = np.clip((y / anatomy.grid_um).astype(int), 0, anatomy.shape[0] - 1)
    columns = np.clip((x / anatomy.grid_um).astype(int), 0, anatomy.shape[1] - 1)
    table = pd.DataFrame({
        "cell_id": np.arange(1, len(cells) + 1, dtype=np.int32),
        "x_um": x,
        "y_um": y,
        "deep": cells.deep.to_numpy(bool),
        "type": pd.Categorical.from_codes(cells.code, types_of(anatomy)),
        "domain": pd.Categorical.from_codes(anatomy.sample("domain", x, y), anatomy.domains),
        "area_um2": cells.area_um2,
        "axis_ratio": cells.axis_ratio,
        "angle_rad": cells.angle_rad,
        "haematoxylin": np.clip(cells.haematoxylin + 0.25 * field[rows, columns], 0.6, 3.2).astype(np.float32),
    })
    return Cells(pd.concat([table, _surroundings(anatomy, cells)], axis=1), polygons)

"""The cells of a virtual colon: nuclei set in crypts, glands, vessels and between fibres.

Candidates are drawn by density and thinned by their outlines: a nucleus stays if it lies wholly in its compartment and
overlaps none of higher priority. :mod:`.tissue_outlines` draws the cells round them.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from ..fields import independent_set
from .tissue_ground import DOMAINS, GLASS, Ground, crypt_radius

TYPES = ("Tumour", "Goblet", "Enterocyte", "Fibroblast", "Endothelial", "Smooth muscle", "T cell", "Plasma",
         "Macrophage", "Neutrophil")  # fmt: skip
VERTICES = 32

MORPHOLOGY = pd.DataFrame(
    [
        # area um2, sd log, axis ratio, sd, irregularity, haematoxylin, sd, turn sd (rad), reach um
        ("Tumour", 42, 0.30, 0.60, 0.11, 0.08, 1.22, 0.20, 0.22, 7.0),
        ("Goblet", 19, 0.15, 0.42, 0.07, 0.07, 1.35, 0.15, 0.15, 25.0),
        ("Enterocyte", 30, 0.18, 0.52, 0.07, 0.05, 1.05, 0.15, 0.12, 25.0),
        ("Fibroblast", 23, 0.35, 0.27, 0.08, 0.12, 1.10, 0.25, 0.22, 2.2),
        ("Endothelial", 19, 0.25, 0.28, 0.06, 0.08, 1.20, 0.20, 0.12, 1.8),
        ("Smooth muscle", 30, 0.28, 0.20, 0.05, 0.06, 0.98, 0.18, 0.10, 4.5),
        ("T cell", 25, 0.18, 0.87, 0.07, 0.06, 1.50, 0.16, 1.60, 1.3),
        ("Plasma", 26, 0.15, 0.86, 0.06, 0.05, 1.38, 0.15, 1.60, 1.8),
        ("Macrophage", 36, 0.25, 0.66, 0.10, 0.13, 0.82, 0.14, 1.60, 3.0),
        ("Neutrophil", 18, 0.15, 0.80, 0.08, 0.06, 1.62, 0.15, 1.60, 1.8),
    ],
    columns=[
        "type",
        "area_um2",
        "area_sd_log",
        "axis_ratio",
        "axis_sd",
        "irregularity",
        "haematoxylin",
        "haematoxylin_sd",
        "turn_sd",
        "reach_um",
    ],
).set_index("type")
"""Nuclei in thin paraffin sections: general histology (lymphocytes 25-35 um2 and round, carcinoma larger, crowded and
elongated across the basement membrane, goblet nuclei flat at the base, muscle and fibroblasts as spindles)."""

DENSITY = {  # cells per mm2 of each domain, outside glands, crypts and vessels
    "mucosa": {"Plasma": 3100, "T cell": 1500, "Fibroblast": 1900, "Macrophage": 900, "Neutrophil": 60},
    "tumour": {"Fibroblast": 3600, "T cell": 800, "Macrophage": 650, "Plasma": 200, "Neutrophil": 100},
    "stroma": {"Fibroblast": 3000, "T cell": 420, "Macrophage": 400, "Plasma": 260, "Neutrophil": 20},
    "immune": {"T cell": 7600, "Plasma": 2100, "Macrophage": 1500, "Fibroblast": 1000, "Neutrophil": 120},
    "muscle": {"Smooth muscle": 3400, "Fibroblast": 130, "Macrophage": 40, "T cell": 50},
}  # fmt: skip
OVERSAMPLING, CROWDED = 2.2, 18.0  # candidates per cell wanted; in tumour glands
LUMEN_NEUTROPHILS, GLAND_NEUTROPHILS, GLAND_T = 4500.0, 90.0, 110.0  # per mm2
SWELLING = (1.20, 1.14, 1.09, 1.05, 1.025)  # tried in this order
UNIT = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)


def _part(kind: str, xy: np.ndarray, angle: np.ndarray, priority: float, stream) -> pd.DataFrame:
    """Draw the nuclei of one type at given places: one row each."""
    shape, n = MORPHOLOGY.loc[kind], len(xy)
    area = shape.area_um2 * np.exp(np.clip(stream.normal(0, 1, n), -2.2, 2.2) * shape.area_sd_log)
    table = pd.DataFrame({
        "x_um": xy[:, 0], "y_um": xy[:, 1], "code": TYPES.index(kind), "area_um2": area,
        "axis_ratio": np.clip(stream.normal(shape.axis_ratio, shape.axis_sd, n), 0.14, 0.97),
        "angle_rad": angle + stream.normal(0, shape.turn_sd, n),
        "haematoxylin": np.clip(stream.normal(shape.haematoxylin, shape.haematoxylin_sd, n), 0.4, 2.2),
        "bend": stream.normal(0, 0.12, n), "priority": priority + stream.random(n),
    })  # fmt: skip
    waves = stream.normal(0, shape.irregularity, (n, 4)) * 1.6 / np.arange(2, 6)
    if kind == "Neutrophil":
        waves[:, 1] = stream.uniform(0.12, 0.24, n)  # lobes
    if kind == "Macrophage":
        waves[:, 0] += 0.10
    table[[f"wave{k}" for k in range(2, 6)]] = waves
    table[[f"phase{k}" for k in range(2, 6)]] = stream.uniform(0, 2 * np.pi, (n, 4))
    return table


def _outlines(cells: pd.DataFrame) -> np.ndarray:
    """Nuclear outlines, float64 (n, VERTICES, 2) in um: ellipses with four harmonics, spindles slightly bent."""
    waves = sum(cells[f"wave{k}"].to_numpy()[:, None] * np.cos(k * UNIT + cells[f"phase{k}"].to_numpy()[:, None])
                for k in range(2, 6))  # fmt: skip
    ratio = cells.axis_ratio.to_numpy()[:, None]
    major, wave = np.sqrt(cells.area_um2.to_numpy()[:, None] / np.pi / ratio), np.exp(waves)
    along, across = major * wave * np.cos(UNIT), major * ratio * wave * np.sin(UNIT)
    across = across + (ratio < 0.5) * cells.bend.to_numpy()[:, None] * along**2 / major
    angle = cells.angle_rad.to_numpy()[:, None]
    x = cells.x_um.to_numpy()[:, None] + along * np.cos(angle) - across * np.sin(angle)
    y = cells.y_um.to_numpy()[:, None] + along * np.sin(angle) + across * np.cos(angle)
    return np.stack([x, y], 2)


def _crypt_cells(ground: Ground) -> list[pd.DataFrame]:
    """Rings of enterocytes and goblet cells; a goblet cell takes more room, and its nucleus lies flat at the base."""
    stream, parts = ground.stream("crypt cells"), []
    for row in ground.crypts:
        share = np.clip(stream.normal(ground.patient.goblet_share, 0.07), 0.12, 0.6)
        kinds, room = [], 0.0
        around = 2 * np.pi * row[2] * np.sqrt(row[3]) - 44  # near the nuclei
        while room < around:
            goblet = stream.random() < (share if not kinds or kinds[-1] == "Enterocyte" else 0.35 * share)
            kinds.append("Goblet" if goblet else "Enterocyte")
            room += (8.8 if goblet else 5.9) * stream.uniform(0.92, 1.1)
        widths = np.array([8.8 if kind == "Goblet" else 5.9 for kind in kinds]) * stream.uniform(0.93, 1.07, len(kinds))
        angle = row[7] + (np.cumsum(widths) - widths / 2) * 2 * np.pi / widths.sum()
        ratio = row[3]  # equal steps along the ellipse, nearly
        local = angle - row[4]
        angle = row[4] + np.unwrap(np.arctan2(ratio * np.sin(local), np.cos(local)))
        goblet = np.array(kinds) == "Goblet"
        depth = np.where(goblet, stream.normal(3.6, 0.4, len(kinds)), stream.normal(7.0, 1.1, len(kinds)))
        far = crypt_radius(row, angle) - depth
        xy = row[:2] + far[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        for kind, here, turn in (("Goblet", goblet, np.pi / 2), ("Enterocyte", ~goblet, 0.0)):
            part = _part(kind, xy[here], angle[here] + turn, 40.0, stream)
            part["toward"] = angle[here] + np.pi  # of the lumen
            parts.append(part)
    return parts


def _vessel_cells(ground: Ground) -> pd.DataFrame:
    """Flat nuclei round every vessel."""
    stream, xy, angle = ground.stream("vessel cells"), [], []
    for x, y, major, minor, axis in ground.vessels:
        around = 2 * np.pi * np.sqrt((major**2 + minor**2) / 2)
        n = max(2, int(around / stream.uniform(11, 15)))
        t = stream.uniform(0, 6.3) + np.arange(n) * 2 * np.pi / n + stream.normal(0, 0.2, n)
        u, v = (major - 0.9) * np.cos(t), (minor - 0.9) * np.sin(t)
        xy.append(np.column_stack([x + u * np.cos(axis) - v * np.sin(axis), y + u * np.sin(axis) + v * np.cos(axis)]))
        angle.append(np.arctan2(minor * np.cos(t), -major * np.sin(t)) + axis)
    return _part("Endothelial", np.concatenate(xy), np.concatenate(angle), 30.0, stream)


def _scatter(stream, density: np.ndarray, factor: float) -> np.ndarray:
    """Points by a density in cells per mm2 on the grid, ``factor`` times as many as wanted: float (n, 2)."""
    count = stream.poisson(np.maximum(density, 0) * (1e-6 * factor))
    row, column = np.nonzero(count)
    row, column = np.repeat(row, count[row, column]), np.repeat(column, count[row, column])
    return np.column_stack([column + stream.random(len(row)), row + stream.random(len(row))])


def _inward(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Direction (rad) in which a signed distance grows."""
    down, across = (cv2.GaussianBlur(g, (0, 0), 3.0) for g in np.gradient(field))
    row, column = points[:, 1].astype(int), points[:, 0].astype(int)
    return np.arctan2(down[row, column], across[row, column])


def _free_cells(ground: Ground) -> list[pd.DataFrame]:
    """Tumour cells in their glands, neutrophils in lumina, and all that lies between glands, crypts and bundles."""
    parts, tissue = [], ground.tissue > 4
    gland = tissue & (ground.gland > 3.5) & (ground.lumen < -3.5)
    stream = ground.stream("tumour cells")
    basal = np.where(ground.gland < 17, 1.0, 0.62)
    points = _scatter(stream, 10500.0 * CROWDED * gland * basal, 1.0)
    part = _part("Tumour", points, _inward(ground.gland, points), 20.0, stream)
    part["toward"] = _inward(ground.gland, points)
    parts.append(part)
    lumen = tissue & (ground.gland > 0) & (ground.lumen > 1.5)
    clumps = np.exp(1.2 * ground.noise("neutrophils", 14) - 0.7) * ground.patient.neutrophils
    inner = tissue & (ground.gland > 4) & (ground.lumen < -2)
    for kind, density, priority in (
        ("Neutrophil", LUMEN_NEUTROPHILS * clumps * lumen, 10.0),
        ("Neutrophil", GLAND_NEUTROPHILS * clumps * inner, 22.0),
        ("T cell", GLAND_T * inner + 90.0 * (tissue & (ground.crypt > 3) & (ground.lumen < -3)), 22.0),
    ):
        stream = ground.stream(f"{kind} {priority}")
        points = _scatter(stream, density * np.ones(gland.shape), 1.0)
        parts.append(_part(kind, points, stream.uniform(0, np.pi, len(points)), priority, stream))
    between = tissue & (ground.crypt < -2.5) & (ground.gland < -2.0) & (ground.vessel < -2)
    gather = np.exp(0.7 * ground.noise("gather", 11) - 0.25)
    pale = np.clip(1 - 0.35 * ground.noise("pale", 60), 0.35, 1.7)
    who = ground.patient
    factor = {"T cell": who.immune, "Plasma": who.plasma, "Neutrophil": who.neutrophils}
    for kind in TYPES:
        density = np.zeros(gland.shape, np.float32)
        for name, wanted in DENSITY.items():
            amount = wanted.get(kind, 0) * (factor.get(kind, 1.0) if name in ("mucosa", "stroma") else 1.0)
            density += np.float32(amount) * (ground.domain == DOMAINS.index(name))
        if not density.any():
            continue
        density *= between * (pale if kind in ("Fibroblast", "Smooth muscle") else gather)
        stream = ground.stream(f"free {kind}")
        points = _scatter(stream, density, OVERSAMPLING)
        fibre = np.arctan2(ground.at("fibre_y", points), ground.at("fibre_x", points))
        part = _part(kind, points, fibre, 0.0, stream)
        part["wanted"] = float(density.sum()) * 1e-6
        parts.append(part)
    return parts


def _at_home(ground: Ground, cells: pd.DataFrame, polygons: np.ndarray) -> np.ndarray:
    """bool (n,): nuclei that lie wholly in their compartment."""
    flat, centre, shape = polygons.reshape(-1, 2), cells[["x_um", "y_um"]].to_numpy(), polygons.shape[:2]
    least = {name: ground.at(name, flat).reshape(shape).min(1) for name in ("tissue", "gland", "crypt", "lumen")}
    most = {name: ground.at(name, flat).reshape(shape).max(1) for name in ("vessel", "gland", "crypt", "lumen")}
    epithelial = np.maximum(ground.at("gland", centre), ground.at("crypt", centre)) > 0
    inner = np.where(ground.at("lumen", centre) > 0, least["lumen"] > 0.2, most["lumen"] < -0.2)
    inner &= np.maximum(least["gland"], least["crypt"]) > 0.3
    outer = np.maximum(most["gland"], most["crypt"]) < -0.3
    outer &= (cells.code.to_numpy() == TYPES.index("Endothelial")) | (most["vessel"] < -0.4)
    return (least["tissue"] > 1.5) & np.where(epithelial, inner, outer)


def _pairs(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of polygons that overlap: two int arrays."""
    import shapely

    shapes = shapely.polygons(polygons)
    bad = ~shapely.is_valid(shapes)
    shapes[bad] = shapely.buffer(shapes[bad], 0)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    return first[first < second], second[first < second]


def _fit(ground: Ground, cells: pd.DataFrame, polygons: np.ndarray) -> np.ndarray:
    """bool (n,): nuclei that lie wholly in their compartment and overlap none of higher priority."""
    index = np.flatnonzero(_at_home(ground, cells, polygons))
    kept = np.zeros(len(cells), bool)
    kept[index[independent_set(*_pairs(polygons[index]), cells.priority.to_numpy()[index])]] = True
    return kept


def _crowd(ground: Ground, cells: pd.DataFrame, polygons: np.ndarray) -> np.ndarray:
    """Let the nuclei of tumour cells swell until they touch, in steps: float (n,), the factor of each."""
    centre = cells[["x_um", "y_um"]].to_numpy()[:, None]
    factor, grows = np.ones(len(cells)), (cells.code == TYPES.index("Tumour")).to_numpy()
    for step in SWELLING:
        wanted = np.where(grows, step, factor)
        new = centre + (polygons - centre) * wanted[:, None, None]
        failed = grows & ~_at_home(ground, cells, new)
        new[failed] = (centre + (polygons - centre) * factor[:, None, None])[failed]
        first, second = _pairs(new)
        failed[first] |= grows[first]
        failed[second] |= grows[second]
        done = grows & ~failed
        factor[done] = step
        grows &= failed
    return factor


def place(ground: Ground) -> tuple[pd.DataFrame, np.ndarray]:
    """Place the nuclei of a section.

    Returns
    -------
    cells
        One row a nucleus, from top to bottom: x_um, y_um, code (index into :data:`TYPES`), area_um2, axis_ratio,
        angle_rad, haematoxylin, toward (direction of the lumen in rad, NaN outside epithelium).
    nuclei
        float32 (n, VERTICES, 2): x, y in um.
    """
    cells = pd.concat([*_crypt_cells(ground), _vessel_cells(ground), *_free_cells(ground)], ignore_index=True)
    polygons = _outlines(cells)
    kept = _fit(ground, cells, polygons)
    wanted, code = cells.wanted.to_numpy(), cells.code.to_numpy()
    for kind in range(len(TYPES)):
        index = np.flatnonzero(kept & (code == kind) & ~np.isnan(wanted))
        if len(index):
            extra = len(index) - int(round(wanted[index[0]]))
            if extra > 0:
                kept[index[np.argsort(cells.priority.to_numpy()[index])[:extra]]] = False
    kept = np.flatnonzero(kept)
    kept = kept[np.lexsort((cells.x_um.to_numpy()[kept], cells.y_um.to_numpy()[kept]))]
    cells, polygons = cells.iloc[kept].reset_index(drop=True), polygons[kept]
    factor = _crowd(ground, cells, polygons)
    centre = cells[["x_um", "y_um"]].to_numpy()[:, None]
    cells["area_um2"] *= factor**2
    return cells, (centre + (polygons - centre) * factor[:, None, None]).astype(np.float32)


__all__ = ["DENSITY", "DOMAINS", "GLASS", "MORPHOLOGY", "TYPES", "VERTICES", "place"]

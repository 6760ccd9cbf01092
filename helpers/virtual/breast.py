"""The breast template: a section of invasive carcinoma with ducts, lobules, fat, immune foci and vessels.

Every structure is a field in microns, positive inside, built from named noise; see :class:`.anatomy.Anatomy`.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from .fields import distance_beyond, flow_maps, in_microns, keep_apart, logistic, smear
from .ground import DOMAINS, FAR, Ground


def _outline(ground: Ground, full_tissue: bool) -> np.ndarray:
    """Signed distance to a ragged, rounded four- to six-gon."""
    if full_tissue:
        return np.full(ground.shape, 500, np.float32)
    stream = ground.stream("outline")
    corners = int(stream.integers(4, 7))
    angles = 2 * np.pi * (np.arange(corners) + stream.uniform(0, 0.6, corners)) / corners + stream.uniform(0, 6.28)
    radii = stream.uniform(0.46, 0.62, corners)
    points = np.c_[0.5 + radii * np.cos(angles), 0.5 + radii * np.sin(angles)] * [ground.width, ground.height]
    points = np.clip(points, 0.03 * ground.width, [0.97 * ground.width, 0.97 * ground.height])
    mask = np.zeros(ground.shape, np.uint8)
    cv2.fillPoly(mask, [np.int32(points / ground.step * 16)], 1, shift=4)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    wide = min(ground.width, ground.height)
    distance = cv2.GaussianBlur(distance * ground.step, (0, 0), max(0.010 * wide / ground.step, 0.5))
    ragged = 28 * ground.noise("outline 60", 60) + 12 * ground.noise("outline 18", 18)
    ragged += 6 * ground.noise("outline 6", 6)
    distance += ragged * min(1.0, wide / 1500)
    # a grid cell cut off from the main piece would be a speck no one can grade: keep the largest piece
    count, labels, stats, _ = cv2.connectedComponentsWithStats((distance > 0).astype(np.uint8), connectivity=4)
    if count > 2:
        main = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        distance[(labels != main) & (distance > 0)] = -15.0
    return distance.astype(np.float32)


def _ducts(ground: Ground, tissue: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ducts with carcinoma in situ and normal lobules: distance, lumen, share that is in situ."""
    style, stream = ground.style, ground.stream("ducts")
    duct = np.full(ground.shape, FAR, np.float32)
    owner = np.zeros(ground.shape, np.int16)
    kinds: list[tuple[str, float]] = [("", 0.0)]
    placed: list[tuple[float, float, float]] = []
    wanted = int(round(style.ducts_per_mm2 * ground.area_mm2 + stream.uniform(-0.3, 0.7)))

    def circle(x: float, y: float, radius: float, wobble: float, number: int) -> None:
        window = ground.window(x, y, radius * 1.9 + 120)
        across, down = ground.x[window] - x, ground.y[window] - y
        if not across.size:
            return
        angle, phase = np.arctan2(down, across), stream.uniform(0, 2 * np.pi, 5)
        shape = sum(stream.normal(0, wobble / k) * np.cos(k * angle + p) for k, p in zip((2, 3, 4, 5, 7), phase))
        distance = radius * np.exp(shape) - np.hypot(across, down)
        closer = distance > duct[window]
        owner[window][closer & (distance > -30)] = number
        duct[window] = np.maximum(duct[window], distance)

    for _ in range(300):
        if len(placed) >= wanted:
            break
        x, y = stream.uniform(0.06, 0.94) * ground.width, stream.uniform(0.06, 0.94) * ground.height
        radius = float(stream.uniform(*style.duct_radius))
        if tissue[ground.cell(x, y)] < radius * 1.1:
            continue
        if any(np.hypot(x - a, y - b) < radius + r + 60 for a, b, r in placed):
            continue
        placed.append((x, y, radius))
        if stream.random() < style.in_situ_share:
            kinds.append((str(stream.choice(["solid", "cribriform", "comedo", "cribriform"])), radius))
            circle(x, y, radius, 0.22, len(kinds) - 1)
        else:  # a lobule: acini round a terminal duct
            kinds.append(("normal", radius))
            acini = int(np.clip((radius / 22) ** 2 * 0.9, 5, 30))
            spots = stream.normal(0, 0.5 * radius, (acini * 6, 2))
            apart = keep_apart(spots, np.full(len(spots), 19.0), stream.random(len(spots)))
            for across, down in spots[apart][:acini]:
                circle(x + across, y + down, float(stream.uniform(17, 26)), 0.14, len(kinds) - 1)
    duct = np.maximum(cv2.GaussianBlur(duct, (0, 0), 1.2), FAR)
    rough = 4 * ground.noise("duct 18", 18) + 1.6 * ground.noise("duct 7", 7)
    kind = np.array([k for k, _ in kinds])[owner]
    duct += rough * np.where(kind == "normal", np.float32(0.35), np.float32(1))
    radius = np.array([r for _, r in kinds], np.float32)[owner]
    sieve = (ground.noise("cribriform", 14) - 0.75) * 14
    lumen = np.full(ground.shape, -30, np.float32)
    lumen = np.where(kind == "normal", duct - 13 - 1.5 * ground.noise("acinus", 12), lumen)
    lumen = np.where(kind == "comedo", duct - 0.45 * radius - 6 * sieve / 14, lumen)
    lumen = np.where(kind == "cribriform", np.minimum(sieve, duct - 22), lumen)
    in_situ = (np.isin(kind, ["solid", "cribriform", "comedo"]) & (duct > -30)).astype(np.float32)
    return duct.astype(np.float32), np.maximum(lumen, -30).astype(np.float32), in_situ


def _fibres(ground: Ground, duct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fibres as level lines of one potential: continuous, unambiguous, and wrapping round ducts."""
    angle = ground.stream("fibre angle").uniform(0, np.pi)
    potential = ground.x * np.float32(np.cos(angle)) + ground.y * np.float32(np.sin(angle))
    potential += 150 * ground.noise("fibre 320", 320) + 30 * ground.noise("fibre 80", 80)
    waves = 9 * ground.noise("fibre 28", 28) + 2.2 * ground.noise("fibre 11", 11)
    potential += ground.style.waviness * waves
    potential += 75 * np.exp(np.clip(duct, FAR, 40) / 60) * np.clip(1 + duct / 350, 0, 1)
    potential = cv2.GaussianBlur(potential, (0, 0), 1.5)
    down, across = np.gradient(potential)
    length = np.hypot(across, down) + 1e-6
    return potential, (-down / length).astype(np.float32), (across / length).astype(np.float32)


def _nests(ground: Ground, flow: list, duct: np.ndarray, septum: np.ndarray) -> np.ndarray:
    """Tumour nests: noise smeared along the fibres and cut at a quantile, rich in one part of the section."""
    style = ground.style
    field = smear(ground.noise("nest", style.nest_width), [way[: style.nest_levels] for way in flow])
    field += 0.35 * ground.noise("nest 9", 9) + 0.5 * ground.noise("nest 60", 60)
    field /= field.std()
    region = ground.noise("rich", 330)
    rich = logistic((region - np.quantile(region, 1 - style.tumour_share)) / 0.12)
    field -= np.float32(np.quantile(field, 1 - style.nest_share)) + 3 * (1 - rich)
    nest = in_microns(field, ground.step)
    return np.minimum(np.minimum(nest, -duct - 12), -septum + 4).astype(np.float32)


def _fat(ground: Ground, flow: list, tissue: np.ndarray, nest: np.ndarray, duct: np.ndarray) -> tuple:
    """Fat lobules and, in them, the distance from the nearest fat cell wall (Voronoi cells of thinned points)."""
    style, wall = ground.style, np.full(ground.shape, -9, np.float32)
    if style.fat_share <= 0:
        return np.full(ground.shape, -60, np.float32), wall
    region = ground.noise("fat", 300) - 0.5 * ground.noise("rich", 330)
    fat = (region - np.float32(np.quantile(region, 1 - style.fat_share))) * 250
    fat += 14 * ground.noise("fat edge", 30)
    fat = np.clip(np.minimum.reduce([fat, -nest - 10, -duct - 60, tissue - 45]), -60, 120).astype(np.float32)
    inside = np.argwhere(fat > 0)
    if len(inside) < 50:
        return fat, wall
    stream = ground.stream("adipocytes")
    count = max(3, int(len(inside) * ground.step**2 / (52**2 * 0.85) * 3))
    centres = (inside[stream.integers(len(inside), size=count)] + stream.random((count, 2))) * ground.step
    radii = stream.lognormal(np.log(26), 0.25, count)
    centres = centres[keep_apart(centres, radii * 0.95, stream.random(count))]
    around = np.argwhere(fat > -25)
    distance, _ = cKDTree(centres).query((around + 0.5) * ground.step, 2)
    wobble = 0.9 * ground.noise("adipocyte wall", 12)[tuple(around.T)]
    wall[tuple(around.T)] = (distance[:, 1] - distance[:, 0]) / 2 + wobble
    wall = cv2.GaussianBlur(wall, (0, 0), 1.1)  # rounds the corners of the Voronoi cells
    wall[fat < -25] = -9
    strands = smear(ground.noise("fat septa", 16), flow)
    return fat, (wall - np.clip((strands - 0.75) * 14, 0, 24) - np.clip(7 - fat / 2, 0, 30)).astype(np.float32)


def _vessels(ground: Ground, fibre: tuple, blocked: np.ndarray) -> np.ndarray:
    """Capillaries and small vessels, flattened along the fibres: signed distance, wall included."""
    stream = ground.stream("vessels")
    vessel = np.full(ground.shape, FAR, np.float32)
    for _ in range(int(stream.poisson(ground.style.vessels_per_mm2 * ground.area_mm2))):
        x, y = stream.uniform(0, ground.width), stream.uniform(0, ground.height)
        radius = float(np.clip(stream.lognormal(np.log(6.5), 0.5), 4, 40))
        flat, bend = stream.uniform(0.3, 0.9), stream.normal(0, 0.15)
        cell = ground.cell(x, y)
        if blocked[cell] > 0:
            continue
        angle = np.arctan2(fibre[1][cell], fibre[0][cell]) + bend
        window = ground.window(x, y, radius / flat + 30)
        across, down = ground.x[window] - x, ground.y[window] - y
        along = (across * np.cos(angle) + down * np.sin(angle)) * flat
        side = -across * np.sin(angle) + down * np.cos(angle)
        vessel[window] = np.maximum(vessel[window], radius - np.hypot(along, side))
    return vessel


def _gaps(ground: Ground, flow: list, parts: dict[str, np.ndarray]) -> np.ndarray:
    """White space: clefts along the fibres, holes among nests, retraction round nests."""
    style, nest, fat = ground.style, parts["nest"], parts["fat"]
    no_fat = np.clip(fat / 12 + 1, 0, 2)
    strands = smear(ground.noise("ragged", 3), [way[:3] for way in flow])
    ragged = 0.6 * ground.noise("ragged 5", 5) + 0.8 * strands
    cleft = smear(ground.noise("cleft", 5.5), flow) + 0.8 * ground.noise("cleft 60", 60) + 0.55 * ragged
    cleft += 0.25 * ground.noise("cleft 12", 12) - style.cleft_level - np.clip(nest / 15 + 0.5, 0, 1.5) - no_fat
    cleft += 0.55 * parts["loose"]
    hole = smear(ground.noise("hole", 11), [way[:2] for way in flow])
    hole += 0.45 * ground.noise("hole 50", 50) + 0.5 * ground.noise("hole 5", 5.5)
    hole /= hole.std()
    hole -= np.float32(np.quantile(hole, 1 - style.hole_share))
    hole += 0.22 * ragged - 0.6 * (1 - np.clip(0.5 + (nest + 12) / 24, 0, 1)) - no_fat
    retraction = ground.noise("retraction", 35) + 0.3 * ragged - style.retraction_level - np.abs(nest + 5) / 5 - no_fat
    # in um, so that the edges are equally sharp; minimum and maximum, because np.where would leave jumps
    gap = np.maximum.reduce([cleft * 8, hole * 16, retraction * 7])
    return np.minimum.reduce([gap, -parts["duct"] - 4, parts["tissue"] - 14, -parts["septum"] + 6]).astype(np.float32)


def _lines(ground: Ground, name: str, count: int) -> np.ndarray:
    """Distance (um) to the nearest of ``count`` long wavy lines across the section; infinite where there is none."""
    nearest = np.full(ground.shape, np.inf, np.float32)
    stream = ground.stream(name)
    for number in range(count):
        angle = stream.uniform(0, np.pi)
        shift = stream.uniform(0.3, 0.7) * (ground.width * np.cos(angle) + ground.height * np.sin(angle))
        line = ground.x * np.cos(angle) + ground.y * np.sin(angle) - shift
        line += 45 * ground.noise(f"{name} {number}", 160) + 4 * ground.noise(f"{name} rough {number}", 12)
        nearest = np.minimum(nearest, np.abs(line))
    return nearest


def breast(ground: Ground, full_tissue: bool, folds: int, tears: int) -> tuple[dict, np.ndarray]:
    """All fields and the domains of a breast carcinoma section."""
    style = ground.style
    tissue = _outline(ground, full_tissue)
    duct, lumen, in_situ = _ducts(ground, tissue)
    potential, fibre_x, fibre_y = _fibres(ground, duct)
    flow = flow_maps(fibre_x, fibre_y, max(5, style.nest_levels), 1.0)
    septum = np.full(ground.shape, -200, np.float32)
    if style.septum_half_width > 0:
        phase = potential / style.septum_period + 0.35 * ground.noise("septum phase", 260)
        off = np.abs(phase - np.rint(phase)) * style.septum_period
        width = style.septum_half_width * (0.35 + 0.9 * ground.noise("septum width", 200))
        septum = np.minimum(width - off, -duct - 30).astype(np.float32)
    nest = _nests(ground, [way for way in flow], duct, septum)
    fat, adipocyte = _fat(ground, [way[:5] for way in flow], tissue, nest, duct)
    oedema = ground.noise("loose", 140) + 0.4 * ground.noise("loose 40", 40)
    loose = logistic((oedema - np.quantile(oedema, 1 - style.loose_share)) / 0.15) * np.clip(-septum / 20, 0, 1)
    loose *= np.clip(tissue / 60, 0, 1)  # a firm rim: white space open to the glass would leave the outline to taste
    foci = ground.noise("immune 60", 60) + 0.5 * ground.noise("immune 22", 22)
    foci += 0.6 * np.exp(-np.abs(nest + 20) / 60) + 0.4 * np.exp(-np.abs(duct + 60) / 50)
    foci = np.minimum((foci - np.float32(np.quantile(foci, 1 - style.immune_share))) * 60, tissue - 20)
    immune = np.minimum(np.minimum(in_microns(foci, ground.step), -duct - 6), -nest - 2).astype(np.float32)
    blocked = np.maximum.reduce([duct + 40, nest + 6, 40 - tissue, lumen, fat - 20])
    vessel = _vessels(ground, (fibre_x, fibre_y), blocked)
    parts = {"tissue": tissue, "duct": duct, "nest": nest, "fat": fat, "loose": loose, "septum": septum}
    gap = _gaps(ground, [way[:5] for way in flow], parts)
    gap = np.minimum(gap, -vessel - 5)
    if tears:
        tear = 14 + 10 * ground.noise("tear width", 70) - _lines(ground, "tear", tears)
        gap = np.maximum(gap, np.minimum(tear, tissue - 14))
    fold = np.exp(-((_lines(ground, "fold", folds) / 14) ** 2)) if folds else np.zeros(ground.shape)
    # the fields above are only near-field distances where something is rare: make the far field true as well
    vessel, immune = distance_beyond(vessel, ground.step), distance_beyond(immune, ground.step)
    fields = {**parts, "in_situ": in_situ, "immune": immune, "vessel": vessel, "lumen": lumen, "gap": gap,
              "adipocyte": adipocyte, "fold": fold, "fibre_x": fibre_x, "fibre_y": fibre_y}
    domain = np.full(ground.shape, DOMAINS.index("stroma"), np.uint8)
    for name, where in (
        ("fat", fat > 0), ("immune", immune > 0), ("tumour", nest > 0), ("vessel", vessel > 0),
        ("normal_duct", (duct > 0) & (in_situ == 0)), ("in_situ", (duct > 0) & (in_situ > 0)), ("glass", tissue <= 0),
    ):
        domain[where] = DOMAINS.index(name)
    return {name: np.ascontiguousarray(field, np.float32) for name, field in fields.items()}, domain

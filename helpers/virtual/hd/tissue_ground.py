"""Where everything lies in a virtual colon: outline, domains, crypts, tumour glands, vessels, the run of the fibres.

Everything is a signed distance in um (positive inside) on a grid of 1 um, axes (y, x). A canonical layout (mucosa upper
left, tumour upper right, muscle below, an island in the lower right corner) is turned and mirrored by the seed and
bent by smooth noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ...settings import rng
from ..fields import flow_maps, keep_apart, logistic, smooth_noise

DOMAINS = ("tumour", "stroma", "mucosa", "immune", "muscle")
GLASS = 255  # in the domain grid
MARGIN_UM, ISLAND_RADIUS_UM, ISLAND_GAP_UM = 34.0, 50.0, 80.0
LEAST_GAP_UM = 66.0
DAMAGED_UM = 46.0  # width of the strip of damaged cells
CRYPT_PITCH_UM, CRYPT_HEIGHT_UM = 78.0, 22.0


@dataclass(frozen=True)
class Patient:
    """What a patient's tissue has of its own, as factors on the usual: see ``tissue.PATIENTS``."""

    goblet_share: float = 0.36
    immune: float = 1.0
    tumour: float = 1.0
    epithelium_um: float = 27.0
    crypt_um: float = 34.0
    neutrophils: float = 1.0
    plasma: float = 1.0


@dataclass
class Ground:
    """The layout of one section.

    Attributes
    ----------
    size_um
        Side of the square field.
    tissue, island, tumour, muscle, crypt, gland, lumen, vessel, vessel_lumen
        Signed distances in um, float32 (size_um, size_um): the outline with the island; the island; domains;
        crypts and tumour glands up to their basement membranes; lumina of both; vessels and their lumina.
    domain
        uint8, index into :data:`DOMAINS`, :data:`GLASS` outside.
    damaged
        bool: the strip along one edge.
    fibre_x, fibre_y
        Unit vectors along fibres.
    crypts
        float (m, 8): x, y, radius (um), axis ratio, angle (rad), share of the radius moved, lumen (um), turn (rad).
    vessels
        float (v, 5): x, y, half axes (um), angle (rad).
    flow
        Displacements along the fibres for ``fields.smear``.
    """

    seed: int
    section: str
    size_um: float
    patient: Patient
    tissue: np.ndarray
    island: np.ndarray
    domain: np.ndarray
    damaged: np.ndarray
    tumour: np.ndarray
    muscle: np.ndarray
    crypt: np.ndarray
    gland: np.ndarray
    lumen: np.ndarray
    vessel: np.ndarray
    vessel_lumen: np.ndarray
    fibre_x: np.ndarray
    fibre_y: np.ndarray
    crypts: np.ndarray
    vessels: np.ndarray
    flow: list

    def stream(self, name: str) -> np.random.Generator:
        """Return the random stream of one step."""
        return rng(self.seed, "hd", self.section, name)

    def noise(self, name: str, sigma_um: float) -> np.ndarray:
        """Return smooth noise of unit variance on the grid."""
        return smooth_noise(self.stream(name), self.tissue.shape, sigma_um)

    def at(self, name: str, points: np.ndarray) -> np.ndarray:
        """Read a field at points (n, 2), x and y in um."""
        field = getattr(self, name)
        row = np.clip(points[:, 1].astype(int), 0, field.shape[0] - 1)
        return field[row, np.clip(points[:, 0].astype(int), 0, field.shape[1] - 1)]


def signed(mask: np.ndarray) -> np.ndarray:
    """Return the signed distance to the edge of a mask, float32 in grid steps, positive inside."""
    inside = mask.astype(np.uint8)
    if not inside.any() or inside.all():
        return np.full(mask.shape, 1e3 if inside.any() else -1e3, np.float32)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)


def grow(*, section: str, seed: int, size_um: float, patient: Patient) -> Ground:
    """Lay out one section."""

    def stream(name: str) -> np.random.Generator:
        return rng(seed, "hd", section, name)

    shape = (int(round(size_um)),) * 2

    def noise(name: str, sigma: float) -> np.ndarray:
        return smooth_noise(stream(name), shape, sigma)

    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + np.float32(0.5)
    side, scale = float(shape[0]), size_um / 1000
    turn = stream("turn")
    flip_x, flip_y, swap = turn.random(3) < 0.5
    across, down = (side - x if flip_x else x), (side - y if flip_y else y)
    if swap:
        across, down = down, across
    bent_x = across + scale * (16 * noise("bend x", 90 * scale) + 5 * noise("bend x fine", 26))
    bent_y = down + scale * (16 * noise("bend y", 90 * scale) + 5 * noise("bend y fine", 26))

    # outline, island and the glass between them
    edge = np.minimum(np.minimum(across, side - across), np.minimum(down, side - down)) - MARGIN_UM
    edge = edge + 7 * np.clip(noise("edge", 60), -2, 2) + 2.5 * np.clip(noise("edge fine", 9), -2, 2)
    corner = side - MARGIN_UM - ISLAND_RADIUS_UM - 6
    away = np.hypot(across - corner, down - corner)
    island = signed(ISLAND_RADIUS_UM + 3.5 * np.clip(noise("island", 18), -2, 2) - away > 0)
    main = np.minimum(edge, away - ISLAND_RADIUS_UM - ISLAND_GAP_UM + 5 * noise("moat", 25)) > 0
    main &= island < -LEAST_GAP_UM
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(main.astype(np.uint8), connectivity=4)
    main = pieces == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    tissue = signed(main | (island > 0))

    # domains
    muscle = bent_y - side * 0.80
    radius = side * 0.265 * np.sqrt(patient.tumour)
    tumour = radius - np.hypot(bent_x - side * 0.685, 0.95 * (bent_y - side * 0.31))
    lobe = turn.uniform(0.52, 0.68)
    tumour = np.maximum(tumour, 0.42 * radius - np.hypot(bent_x - side * lobe, bent_y - side * 0.56))
    tumour = signed(tumour + 9 * noise("front", 22) > 0)
    mucosa = np.minimum(side * 0.40 - bent_x, side * 0.735 - bent_y)
    front = -tumour - (60 + 24 * noise("infiltrate", 45)) * np.sqrt(patient.immune)
    deep = logistic((bent_y - side * 0.40) / (40 * scale))  # more at the invasive front than at the surface
    immune = -front - 60 * (1 - deep)
    follicle = (
        np.hypot(bent_x - side * 0.86, bent_y - side * 0.70)
        if turn.random() < 0.5
        else np.hypot(bent_x - side * 0.47, bent_y - side * 0.66)
    )
    immune = np.maximum(immune, 58 * np.sqrt(patient.immune) - follicle + 6 * noise("follicle", 15))
    domain = np.full(shape, DOMAINS.index("stroma"), np.uint8)
    domain[immune > 0] = DOMAINS.index("immune")
    domain[(mucosa > 0) & (tumour < -4)] = DOMAINS.index("mucosa")
    domain[muscle > 0] = DOMAINS.index("muscle")
    domain[(tumour > 0) | (island > 0)] = DOMAINS.index("tumour")
    domain[tissue <= 0] = GLASS
    within = signed(domain == DOMAINS.index("mucosa"))
    tumour_in = signed(domain == DOMAINS.index("tumour"))
    muscle = signed(domain == DOMAINS.index("muscle"))
    crypts, crypt, crypt_lumen = _crypts(stream("crypts"), within, np.maximum(tumour_in, muscle), patient, noise)
    domain[(crypt > -3) & (tissue > 0)] = DOMAINS.index("mucosa")
    gland, gland_lumen = _glands(stream("glands"), tumour_in, island, patient, noise)
    lumen = np.maximum(crypt_lumen, gland_lumen)
    solid = np.maximum(crypt, gland)
    vessels, vessel, vessel_lumen = _vessels(stream("vessels"), domain, tissue, solid)

    # fibres run along the level lines of a potential that wraps round tumour, crypts and vessels
    angle = turn.uniform(0, np.pi)
    potential = x * np.cos(angle) + y * np.sin(angle) + scale * (90 * noise("fibre", 160 * scale))
    potential = potential + 16 * noise("fibre 2", 55) + 5 * noise("fibre 3", 20)
    potential = potential + 60 * np.exp(np.minimum(np.maximum(solid, tumour_in), 0) / 40)
    potential = potential + 30 * np.exp(np.minimum(vessel, 0) / 14)
    along = bent_y + 7 * noise("bundle", 60) + 1.6 * noise("bundle 2", 18)  # muscle runs along its band
    weight = np.clip(0.5 + muscle / 30, 0, 1)
    grad = [
        cv2.GaussianBlur((1 - weight) * g + weight * h, (0, 0), 1.5)
        for g, h in zip(np.gradient(potential), np.gradient(along))
    ]
    length = np.maximum(np.hypot(*grad), 1e-6)
    fibre_x, fibre_y = (-grad[0] / length).astype(np.float32), (grad[1] / length).astype(np.float32)

    rim = {0: across, 1: side - across, 2: down}[int(turn.integers(3))]  # the side of the island is left alone
    damaged = (signed(main) > 0) & (rim - MARGIN_UM < DAMAGED_UM + 6 * noise("damage", 30))
    return Ground(
        seed=seed, section=section, size_um=float(shape[0]), patient=patient, tissue=tissue, island=island,
        domain=domain, damaged=damaged, tumour=tumour_in, muscle=muscle, crypt=crypt, gland=gland,
        lumen=lumen, vessel=vessel, vessel_lumen=vessel_lumen, fibre_x=fibre_x, fibre_y=fibre_y, crypts=crypts,
        vessels=vessels, flow=flow_maps(fibre_x, fibre_y, 5, 1.0),
    )  # fmt: skip


def crypt_radius(row: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Distance in um from a crypt's centre to its basement membrane, in the directions ``angle`` (rad)."""
    _, _, radius, ratio, axis, wave, _, phase = row
    local = angle - axis
    ellipse = ratio / np.sqrt((ratio * np.cos(local)) ** 2 + np.sin(local) ** 2)
    return radius * ellipse * (1 + wave * np.cos(3 * local + phase))


def _crypts(stream, within, others, patient: Patient, noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crypts cut across, on a bent hexagonal lattice in the mucosa, clear of tumour and muscle."""
    side, pitch = within.shape[0], CRYPT_PITCH_UM
    turn, reach = stream.uniform(0, np.pi), int(side / pitch) + 2
    i, j = (v.ravel().astype(float) for v in np.meshgrid(np.arange(-reach, reach), np.arange(-reach, reach)))
    u, v = (i + 0.5 * (j % 2)) * pitch, j * pitch * np.sqrt(3) / 2
    points = np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], 1) + side / 2
    points = points + stream.normal(0, 3.5, points.shape)
    n = len(points)
    rows = np.column_stack([
        points, patient.crypt_um * np.exp(np.clip(stream.normal(0, 0.07, n), -0.15, 0.13)),
        np.clip(stream.normal(0.86, 0.08, n), 0.68, 1.0), stream.uniform(0, np.pi, n), stream.normal(0, 0.03, n),
        stream.uniform(3.5, 9.0, n), stream.uniform(0, 6.3, n),
    ])  # fmt: skip
    inside = (points > 0).all(1) & (points < side).all(1)
    rows = rows[inside]
    row, column = rows[:, 1].astype(int), rows[:, 0].astype(int)
    rows = rows[(within[row, column] > rows[:, 2] * 0.6) & (others[row, column] < -1.1 * rows[:, 2] - 8)]
    rows = rows[keep_apart(rows[:, :2], rows[:, 2] * np.sqrt(rows[:, 3]) + 1.5, np.arange(len(rows), dtype=float))]
    crypt, lumen = (np.full(within.shape, -1e3, np.float32) for _ in range(2))
    ragged = 1.3 * noise("crypt lumen", 2.5)
    for row in rows:
        reach = int(row[2] * 1.5) + 4
        top, left = max(0, int(row[1]) - reach), max(0, int(row[0]) - reach)
        window = np.s_[top : int(row[1]) + reach, left : int(row[0]) + reach]
        yy, xx = np.mgrid[window[0].start : min(window[0].stop, side), window[1].start : min(window[1].stop, side)]
        dx, dy = xx + 0.5 - row[0], yy + 0.5 - row[1]
        wall, far = crypt_radius(row, np.arctan2(dy, dx)), np.hypot(dx, dy)
        crypt[window] = np.maximum(crypt[window], wall - far)
        hole = np.maximum(wall * 0.5 + row[6] * 0.5 - CRYPT_HEIGHT_UM * 0.5 - 0.5, 3) - far + ragged[window]
        lumen[window] = np.maximum(lumen[window], hole)
    return rows, crypt, lumen


def _glands(stream, tumour: np.ndarray, island: np.ndarray, patient: Patient, noise) -> tuple[np.ndarray, np.ndarray]:
    """Back-to-back glands: a bent Voronoi partition of the tumour, shrunk, rounded, with ragged lumina."""
    from scipy.spatial import cKDTree

    side = tumour.shape[0]
    points = stream.uniform(0, side, (int(side * side / 700), 2))
    radii = stream.uniform(38, 62, len(points))
    points = points[keep_apart(points, radii, stream.random(len(points)))]
    y, x = np.nonzero(tumour > 0)
    bend = [13 * noise(f"gland {k}", 22) + 4 * noise(f"gland fine {k}", 9) for k in "xy"]
    where = np.column_stack([x + bend[0][y, x], y + bend[1][y, x]])
    near = cKDTree(points).query(where, k=2)[0]
    inside = np.full(tumour.shape, -10, np.float32)
    gap = np.clip(5.0 + 2.5 * noise("septum", 35), 2.5, 14)
    inside[y, x] = np.minimum((near[:, 1] - near[:, 0]) / 2 - gap[y, x], tumour[y, x] - 5)
    inside = np.where(island > 0, island - 7, inside)
    gland = signed(cv2.GaussianBlur((inside > 0).astype(np.float32), (0, 0), 5) > 0.5)
    depth = patient.epithelium_um + 4.5 * noise("depth", 28) + 3.0 * noise("depth fine", 7)
    lumen = cv2.GaussianBlur(gland - np.maximum(depth, 15), (0, 0), 3.0)
    holes = 4.5 - 7 * (1.75 - noise("cribriform", 8))  # small extra lumina of cribriform glands
    lumen = np.maximum(lumen, np.minimum(holes, gland - 15))
    return gland, np.where(gland > 12, lumen, np.minimum(lumen, -1)).astype(np.float32)


def _vessels(stream, domain, tissue, solid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Capillaries and small veins between glands, crypts and muscle bundles."""
    size = {"stroma": (260, 7.0, 0.45), "immune": (170, 6.0, 0.25), "mucosa": (330, 5.0, 0.15),
            "tumour": (90, 4.6, 0.12), "muscle": (110, 5.5, 0.3)}  # fmt: skip
    rows = []
    for name, (per_mm2, radius, spread) in size.items():
        yy, xx = np.nonzero((domain == DOMAINS.index(name)) & (tissue > 14) & (solid < -3))
        if not len(yy):
            continue
        n = int(per_mm2 * (domain == DOMAINS.index(name)).sum() * 1e-6) * 3
        pick = stream.integers(0, len(yy), n)
        major = radius * np.exp(np.clip(stream.normal(0, spread, n), -0.5, 1.3))
        rows.append(np.column_stack([xx[pick] + 0.5, yy[pick] + 0.5, major, major * stream.uniform(0.5, 0.95, n),
                                     stream.uniform(0, np.pi, n), np.repeat(3.0, n)]))  # fmt: skip
    rows = np.concatenate(rows)
    room = -solid[rows[:, 1].astype(int), rows[:, 0].astype(int)]
    rows = rows[room > rows[:, 3] + 1.5]
    rows = rows[keep_apart(rows[:, :2], rows[:, 2] + 6, stream.random(len(rows)))]
    rows = rows[stream.random(len(rows)) < 0.55]
    vessel, side = np.full(domain.shape, -1e3, np.float32), domain.shape[0]
    for row in rows:
        reach = int(row[2]) + 50
        window = np.s_[max(0, int(row[1]) - reach) : min(side, int(row[1]) + reach),
                       max(0, int(row[0]) - reach) : min(side, int(row[0]) + reach)]  # fmt: skip
        yy, xx = np.mgrid[window]
        dx, dy = xx + 0.5 - row[0], yy + 0.5 - row[1]
        cosine, sine = np.cos(row[4]), np.sin(row[4])
        far = np.hypot((dx * cosine + dy * sine) / row[2], (dy * cosine - dx * sine) / row[3])
        vessel[window] = np.maximum(vessel[window], (1 - far) * np.sqrt(row[2] * row[3]))
    vessel = np.minimum(vessel, -solid - 0.5).astype(np.float32)
    return rows[:, :5], vessel, (vessel - 1.8).astype(np.float32)


__all__ = ["DOMAINS", "GLASS", "Ground", "Patient", "crypt_radius", "grow", "signed"]

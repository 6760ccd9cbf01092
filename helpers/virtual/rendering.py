"""Rendering: anatomy and cells become an H&E image, and the truth a perfect instrument would find in it.

Haematoxylin and eosin concentrations are drawn in microns, then turned into light by :mod:`.optics` (Beer and Lambert).
Only this room, :mod:`.matrix` and :mod:`.optics` know about pixels. Nothing here can move a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..messages import CourseError
from ..settings import rng
from . import cord
from .anatomy import Anatomy
from .cells import VERTICES, Cells
from .matrix import matrix
from .optics import EOSIN_UNIT, NUCLEUS_UNIT, Stain, expose
from .styles import STYLES, Style

CYTOPLASM = {  # length and width as multiples of the nucleus', eosin, haematoxylin
    "cancer_epithelial": (1.45, 1.45, 0.30, 0.42),
    "normal_epithelial": (1.40, 1.35, 0.36, 0.50),
    "myoepithelial": (1.40, 1.10, 0.35, 0.30),
    "fibroblast": (1.90, 0.95, 0.05, 0.40),
    "t_cell": (1.20, 1.15, 0.10, 0.34),
    "b_cell": (1.20, 1.15, 0.10, 0.34),
    "plasma_cell": (1.60, 1.50, 0.28, 0.40),
    "myeloid": (1.60, 1.40, 0.18, 0.30),
    "endothelial": (1.80, 0.95, 0.30, 0.30),
    "adipocyte": (1.30, 1.00, 0.05, 0.10),
}  # those of the cord: cord.CYTOPLASM

_FROZEN = Stain(
    haematoxylin=(0.750, 0.590, 0.292), eosin=(0.42, 0.800, 0.430), white_point=(236.0, 219.0, 234.0),
    glare=0.042, blur_um=0.24, sharpening=0.65, printed_pitch_um=200.0,
)
_BASE = {
    "dense": _FROZEN,
    "loose": replace(_FROZEN, haematoxylin=(0.757, 0.582, 0.290), eosin=(0.30, 0.83, 0.47),
                     white_point=(224.0, 211.0, 226.0), strength_h=0.88, sharpening=0.5),
    "ffpe": Stain(
        haematoxylin=(0.67, 0.67, 0.30), eosin=(0.27, 0.88, 0.37), white_point=(242.0, 238.0, 244.0), glare=0.02,
        blur_um=0.18, sharpening=0.9, sharpening_um=0.7, cast=0.0, defocus=0.2, printed_pitch_um=0.0, strength_h=0.95,
    ),
    "cord": replace(_FROZEN, haematoxylin=(0.74, 0.60, 0.31), eosin=(0.41, 0.82, 0.40),
                    white_point=(240.0, 231.0, 242.0), sharpening=0.6, cast=0.03),
}


@dataclass
class Slide:
    """One rendered section.

    Attributes
    ----------
    image
        uint8 (y, x, 3) RGB, the decoding of ``jpeg``.
    jpeg
        The encoded file.
    stain
        What was put in.
    measured_haematoxylin, measured_eosin
        Unit vectors (R, G, B) of optical density that a perfect instrument recovers: least squares of the noise-free
        density on the true concentrations over tissue pixels. They differ from the input, because glare and
        the optics bend them; grade estimates against these.
    measured_white_point
        Median R, G, B of glass at least 250 um from tissue, after illumination and JPEG (where there is less than
        1 % such glass, of the tenth of the glass furthest from tissue; with no glass at all, the input).
    tissue_mask
        bool (gy, gx) on the anatomy's grid: the outline. Lumina, clefts and fat count as inside.
    tissue_mask_without_holes
        The same without lumina and gaps of more than 2000 um2.
    mpp
        Microns per pixel.
    """

    image: np.ndarray
    jpeg: bytes
    stain: Stain
    measured_haematoxylin: np.ndarray
    measured_eosin: np.ndarray
    measured_white_point: np.ndarray
    tissue_mask: np.ndarray
    tissue_mask_without_holes: np.ndarray
    mpp: float


def base_stain(style: str | Style) -> Stain:
    """The stain of a style before any draw."""
    name = style if isinstance(style, str) else style.name
    if name not in _BASE:
        raise CourseError(f"style {name!r}", f"one of {', '.join(_BASE)}", "choose one of STYLES")
    return _BASE[name]


def draw_stain(*, seed: int, batch: str, style: str | Style) -> Stain:
    """Draw the stain of one batch (a patient, a slide, a day) round the style's own.

    Spreads measured on six frozen breast and ten spinal cord sections: eosin .043 .023 .019 per channel within one
    study, haematoxylin .003 within and .02 between studies (.010 here), white point 4-9 of 255, strengths about 10 %.
    """
    base, stream = base_stain(style), rng(seed, "stain", batch)
    haematoxylin = np.array(base.haematoxylin) + np.clip(stream.normal(0, 1, 3), -2, 2) * 0.010
    eosin = np.array(base.eosin) + np.clip(stream.normal(0, 1, 3), -1.5, 1.5) * [0.043, 0.023, 0.019]
    white = np.array(base.white_point) + np.clip(stream.normal(0, 1, 3), -2, 2) * [4, 6, 4]
    return replace(
        base,
        haematoxylin=tuple(float(v) for v in haematoxylin / np.linalg.norm(haematoxylin)),
        eosin=tuple(float(v) for v in eosin / np.linalg.norm(eosin)),
        white_point=tuple(float(v) for v in np.clip(white, 190, 247)),
        strength_h=float(base.strength_h * np.exp(0.07 * np.clip(stream.normal(), -2, 2))),
        strength_e=float(base.strength_e * np.exp(0.10 * np.clip(stream.normal(), -2, 2))),
    )


def _fill(layer: np.ndarray, points: np.ndarray, values: np.ndarray, order: np.ndarray) -> None:
    """Fill polygons (n, v, 2) in pixels, one after the other: batching them would make overlaps into holes."""
    fixed = np.round((points - 0.5) * 16).astype(np.int32)  # OpenCV's pixel centres lie at whole numbers
    value = np.clip(values, 0, 255).astype(int).tolist()
    for i in order.tolist():
        cv2.fillPoly(layer, [fixed[i]], value[i], cv2.LINE_AA, 4)


def _layers(cells: Cells, style: Style, shape: tuple[int, int], mpp: float, stream: np.random.Generator) -> dict:
    """Rasterise cytoplasm (eosin, haematoxylin) and the nuclei of both layers, each uint8 (ny, nx)."""
    table, n = cells.table, len(cells.table)
    layers = {name: np.zeros(shape, np.uint8) for name in ("cyto_eosin", "cyto_haematoxylin", "front", "deep")}
    order = stream.permutation(n)
    centre = table[["x_um", "y_um"]].to_numpy()[:, None]
    relative = cells.polygons - centre
    radius = np.sqrt(table.area_um2.to_numpy() / np.pi)[:, None, None]
    known = cord.CYTOPLASM if style.name == "cord" else CYTOPLASM
    shape_of = np.array([known[t] for t in table.type.cat.categories], np.float32)[table.type.cat.codes]
    long, wide, (eosin, haematoxylin) = shape_of[:, 0, None], shape_of[:, 1, None], shape_of[:, 2:].T
    # stretch the nucleus along and across its axis, and make it lumpy
    axis = np.stack([np.cos(table.angle_rad), np.sin(table.angle_rad)], 1)[:, None]
    along = (relative * axis).sum(axis=2) * long
    across = (relative[..., 1] * axis[..., 0] - relative[..., 0] * axis[..., 1]) * wide
    turn = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)[None]
    lump = 1 + 0.16 * np.cos(3 * turn + stream.uniform(0, 6.3, (n, 1))) * stream.normal(0, 1, (n, 1))
    body = np.stack([along * axis[..., 0] - across * axis[..., 1], along * axis[..., 1] + across * axis[..., 0]], 2)
    body = (centre + stream.normal(0, 0.22, (n, 1, 2)) * radius + body * lump[..., None]) / mpp
    drawn = order[eosin[order] > 0]
    _fill(layers["cyto_eosin"], body, eosin * style.cytoplasm * np.exp(stream.normal(0, 0.2, n)) * EOSIN_UNIT, drawn)
    _fill(layers["cyto_haematoxylin"], body, haematoxylin * np.exp(stream.normal(0, 0.3, n)) * 100, drawn)
    deep, stain = table.deep.to_numpy(), table.haematoxylin.to_numpy() * NUCLEUS_UNIT
    outline = cells.polygons / mpp
    _fill(layers["deep"], outline, stain, order[deep[order]])
    _fill(layers["front"], outline, stain, order[~deep[order]])
    # larger nuclei are lighter or darker inside than at their membrane; vesicular ones show a nucleolus
    large = (table.area_um2.to_numpy() > 30 * style.nucleus_area) & ~deep & (
        stream.random(n) < (0.6 if style.chromatin > 1 else 0.12))
    inner = (centre + 0.66 * relative + stream.normal(0, 0.22, (n, 1, 2))) / mpp
    shade = stream.uniform(0.86 - 0.2 * style.chromatin * (style.chromatin > 1), 1.08, n)
    _fill(layers["front"], inner, stain * shade, order[large[order]])
    if style.chromatin > 1:
        nucleolus = (centre + 0.2 * relative + stream.normal(0, 0.5, (n, 1, 2))) / mpp
        _fill(layers["front"], nucleolus, stain * 1.35, order[(large & (stream.random(n) < 0.5))[order]])
    return layers


def _white_point(image: np.ndarray, anatomy: Anatomy, mpp: float, stain: Stain) -> np.ndarray:
    """Median colour of the glass far from tissue, read at the anatomy's grid points."""
    distance = anatomy.fields["tissue"]
    far = distance < -250
    if far.mean() < 0.01:
        glass = distance[distance < -5]
        if glass.size < 50:
            return np.array(stain.white_point)
        far = distance <= np.quantile(glass, 0.1)
    rows, columns = np.nonzero(far)
    y = np.clip(((rows + 0.5) * anatomy.grid_um / mpp).astype(int), 0, image.shape[0] - 1)
    x = np.clip(((columns + 0.5) * anatomy.grid_um / mpp).astype(int), 0, image.shape[1] - 1)
    return np.median(image[y, x], axis=0).astype(float)


def _without_holes(anatomy: Anatomy, least_um2: float = 2000.0) -> np.ndarray:
    f = anatomy.fields
    white = (np.maximum(f["gap"], np.minimum(f["lumen"], f["duct"])) > 0).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(white, connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] * anatomy.grid_um**2 > least_um2
    large[0] = False
    return (f["tissue"] > 0) & ~large[labels]


def render(anatomy: Anatomy, cells: Cells, stain: Stain, *, mpp: float = 0.69, seed: int, section: str) -> Slide:
    """Render a section.

    Parameters
    ----------
    anatomy, cells, stain
        From :func:`anatomy.grow`, :func:`cells.place`, :func:`draw_stain`.
    mpp
        Microns per pixel, 0.2 to 2.
    seed, section
        For the texture, the dust and the noise; cells and anatomy stay as they are.

    Returns
    -------
    Slide
    """
    if not 0.2 <= mpp <= 2:
        raise CourseError(f"{mpp:g} um per pixel", "0.2 to 2", "pass mpp in microns per pixel")
    width, height = (int(round(s / mpp)) for s in anatomy.size_um)
    background = matrix(anatomy, seed=seed, section=section, mpp=mpp)
    layers = _layers(cells, anatomy.style, (height, width), mpp, rng(seed, "raster", section))
    image, vectors = expose(anatomy, background, layers, stain, mpp=mpp, seed=seed, section=section)
    del layers, background
    jpeg = cv2.cvtColor(image, cv2.COLOR_RGB2BGR, dst=image)  # in place: a copy costs 100 MB
    jpeg = cv2.imencode(".jpg", jpeg, [cv2.IMWRITE_JPEG_QUALITY, int(stain.jpeg_quality)])[1].tobytes()
    del image
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return Slide(
        image=image, jpeg=jpeg, stain=stain, measured_haematoxylin=vectors[0], measured_eosin=vectors[1],
        measured_white_point=_white_point(image, anatomy, mpp, stain), tissue_mask=anatomy.fields["tissue"] > 0,
        tissue_mask_without_holes=_without_holes(anatomy), mpp=float(mpp),
    )


__all__ = ["CYTOPLASM", "STYLES", "Slide", "Stain", "base_stain", "draw_stain", "render"]

"""Tissue and RNA of one virtual patient: the slides, the rest of the tumour that no slide shows, and defects.

A patient's wanted composition sets the style of the tissue; each piece of the tumour departs from it a little.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from helpers import settings
from helpers.virtual import anatomy, cells, expression, optics, rendering
from helpers.virtual.clinic.people import MPP, SITES, SIZE_UM
from helpers.virtual.fields import smooth_noise
from helpers.virtual.styles import STYLES, Style

REST_UM = 640.0
REST_WEIGHT = 4.0  # RNA of the unseen piece counts so many times: the tube holds more than the slides show
PIECE_SD = 0.22  # a piece's departure from its patient, in sd of the composition
NUCLEI_SPREAD = 0.15  # log area of tumour nuclei per sd
PATIENT_SD = 0.20  # log shift of each gene between patients, which no slide shows
QUALITY = 86
ARCHITECTURE = {
    "luminal": {"nest_width": 11.0, "nest_levels": 5},
    "her2": {"nest_width": 9.5, "nest_levels": 7, "waviness": 0.7, "in_situ_share": 0.9},
    "basal": {"nest_width": 18.0, "nest_levels": 4, "in_situ_share": 0.4},
}
INKS = ((38, 62, 150), (30, 105, 75), (45, 42, 48))


def style_of(patient: dict, stream) -> Style:
    """Return the style of one piece of a patient's tumour."""
    immune, nuclei, tumour = (patient[name] + stream.normal(0, PIECE_SD) for name in ("immune", "nuclei", "tumour"))
    density = float(np.clip(np.exp(-0.09 * nuclei), 0.75, 1.25))  # larger cells, fewer of them
    return replace(
        STYLES["dense"], **ARCHITECTURE[patient["subtype"]],
        immune_share=float(np.clip(0.040 * np.exp(1.0 * immune), 0.002, 0.25)),
        lymphocytes=float(np.clip(1300 * np.exp(0.85 * immune), 120, 7500)),
        cell_density=density,
        nest_share=float(np.clip(0.38 + 0.05 * tumour, 0.25, 0.52)),
        tumour_share=float(np.clip(0.78 + 0.08 * tumour, 0.55, 0.95)),
        fibroblasts=float(3200 * np.exp(stream.normal(0, 0.15))),
        ducts_per_mm2=0.8, duct_radius=(50.0, 90.0), septum_half_width=20.0, septum_period=520.0,
        fat_share=0.10 if stream.random() < 0.3 else 0.0,
    )  # fmt: skip


def _grow(patient: dict, name: str, seed: int, size_um: float):
    """Return anatomy and cells of one piece."""
    style = style_of(patient, settings.rng(seed, "clinic", "style", name))
    options = {"seed": seed, "section": f"clinic {name}", "size_um": (size_um, size_um)}
    ground = anatomy.grow(style=style, **options)
    if not np.isfinite(ground.fields["adipocyte"]).all():  # a lobule with room for one fat cell has no walls
        ground = anatomy.grow(style=replace(style, fat_share=0.0), **options)
    placed = cells.place(ground, seed=seed, section=f"clinic {name}")
    tumour = (placed.table["type"] == "cancer_epithelial").to_numpy()
    grown = float(np.clip(np.exp(NUCLEI_SPREAD * patient["nuclei"]), 0.7, 1.5))  # the tumour's nuclei alone
    placed.table.loc[tumour, "area_um2"] *= np.float32(grown)
    centre = placed.table[["x_um", "y_um"]].to_numpy(np.float32)[tumour, None]
    placed.polygons[tumour] = centre + np.float32(np.sqrt(grown)) * (placed.polygons[tumour] - centre)
    return ground, placed


def _rna(patient: dict, table, seed: int) -> np.ndarray:
    """Return the RNA of all cells of a piece by gene, in cells' worth, float64 (genes,)."""
    middle = [[float(table["x_um"].mean()), float(table["y_um"].mean())]]
    told = expression.expected(
        table, middle, radius_um=4 * REST_UM, depth=1.0, seed=seed, section=f"clinic {patient['patient']}",
        patient=f"clinic {patient['patient']}", subtype=patient["subtype"], patient_sd=PATIENT_SD,
    )  # fmt: skip
    return told.rate[0]


def stain_of(patient: dict, style: Style, seed: int):
    """Return the stain of a patient's slides: the site's, and a little of the day's own."""
    day = rendering.draw_stain(seed=seed, batch=f"clinic {patient['patient']}", style=style)
    base, changes = rendering.base_stain(style), SITES[patient["site"]]
    moved = {"printed_pitch_um": 0.0}
    for name, value in changes.items():
        if isinstance(value, tuple):  # half of the day's departure: batches within a laboratory are alike
            away = 0.5 * (np.array(getattr(day, name)) - np.array(getattr(base, name)))
            value = tuple(float(v) for v in np.clip(np.array(value) + away, 0, 247))
        elif name.startswith("strength"):
            value = float(value * getattr(day, name) / getattr(base, name))
        moved[name] = value
    return replace(day, **moved)


# ---------------------------------------------------------------- defects
def _blob(shape, tissue, share: float, stream) -> np.ndarray:
    """Return a ragged region, bool (y, x), that holds about ``share`` of the tissue."""
    rows, columns = np.nonzero(tissue)
    pick = stream.integers(len(rows))
    y, x = (0.5 * (values[pick] + values.mean()) for values in (rows, columns))
    grid_y, grid_x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    far = np.hypot(grid_y - y, grid_x - x) * (1 + 0.16 * smooth_noise(stream, shape, 30 / MPP))
    far = far + (5 / MPP) * smooth_noise(stream, shape, 5 / MPP)
    return far < np.quantile(far[tissue], share)


def _only(image, keep, glass, stream) -> np.ndarray:
    """Return the picture with everything outside ``keep`` turned to glass."""
    cover = cv2.GaussianBlur(keep.astype(np.float32), (0, 0), 1.0 / MPP)[..., None]
    bare = np.asarray(glass, np.float32) + stream.normal(0, 0.7, image.shape).astype(np.float32)
    return np.clip(image * cover + bare * (1 - cover) + 0.5, 0, 255).astype(np.uint8)


def spoil(image, tissue, defect: str, glass, stream):
    """Return the picture with a defect, the tissue left, and what was done.

    Parameters
    ----------
    image
        uint8 (y, x, 3).
    tissue
        bool (y, x) at the picture's scale.
    defect
        ``""``, ``"blur"``, ``"pen"``, ``"little"`` or ``"fragments"``.
    glass
        Colour of the glass, R, G, B.
    """
    done = {"blur_um": 0.0, "pen_share": 0.0, "tissue_share": 1.0}
    shape = image.shape[:2]
    if defect == "blur":
        done["blur_um"] = float(stream.uniform(3.0, 6.0))
        image = cv2.GaussianBlur(image, (0, 0), done["blur_um"] / MPP)
        image = np.clip(image + stream.normal(0, 0.7, image.shape), 0, 255).astype(np.uint8)
    elif defect == "pen":
        ink, width = np.array(INKS[stream.integers(len(INKS))], np.float32), stream.uniform(28, 50) / MPP
        turn, at = stream.uniform(0, np.pi), stream.uniform(0.35, 0.65, 2) * shape
        along = np.linspace(-1, 1, 40) * max(shape)
        bend = stream.uniform(0.05, 0.15) * max(shape) * np.sin(np.linspace(0, stream.uniform(2, 6), 40))
        y = at[0] + along * np.sin(turn) + bend * np.cos(turn)
        x = at[1] + along * np.cos(turn) - bend * np.sin(turn)
        stroke = np.zeros(shape, np.uint8)
        cv2.polylines(stroke, [np.int32(np.c_[x, y] * 16)], False, 255, int(width), cv2.LINE_AA, 4)
        done["pen_share"] = float((stroke > 127).mean())
        cover = cv2.GaussianBlur(stroke, (0, 0), 2.0 / MPP).astype(np.float32)[..., None] / 255
        cover = cover * (0.86 + 0.05 * smooth_noise(stream, shape, 12 / MPP)[..., None])
        inked = ink * (0.55 + 0.45 * image / 255.0)
        image = np.clip(image * (1 - cover) + inked * cover, 0, 255).astype(np.uint8)
    elif defect:
        share = stream.uniform(0.10, 0.20) if defect == "little" else stream.uniform(0.4, 0.5)
        keep = _blob(shape, tissue, share, stream)
        if defect == "fragments":  # the rest fell to pieces
            keep |= smooth_noise(stream, shape, 7 / MPP) > 1.05
        done["tissue_share"] = float((keep & tissue).sum() / tissue.sum())
        image, tissue = _only(image, keep, glass, stream), tissue & keep
    return image, tissue, done


def with_density(jpeg: bytes, mpp: float) -> bytes:
    """Return a JFIF file with its density set to pixels per centimetre for ``mpp`` microns per pixel."""
    import struct

    head = jpeg.index(b"JFIF\x00") + 7
    return jpeg[:head] + struct.pack(">BHH", 2, *(round(1e4 / mpp),) * 2) + jpeg[head + 5 :]


@contextmanager
def _small_textures():
    """Draw with textures that repeat every 512 pixels instead of 1024: a quarter of the time of so small a picture."""
    usual, optics.TILE = optics.TILE, 512
    try:
        yield
    finally:
        optics.TILE = usual


# ---------------------------------------------------------------- one patient
def make(part: Path, patient: dict, seed: int) -> None:
    """Grow, draw and write the slides of a patient, and keep the RNA and the cells of slides and rest."""
    import pandas as pd

    kinds = np.array(cells.TYPES)
    rna, counts, nuclei, weights, rows = [], [], [], [], []
    for slide in [*patient["slides"], None]:
        name = f"{patient['patient']} rest" if slide is None else slide["slide_id"]
        ground, placed = _grow(patient, name, seed, REST_UM if slide is None else SIZE_UM)
        table = placed.table
        code = table["type"].cat.codes.to_numpy()
        rna.append(_rna(patient, table, seed))
        counts.append(np.bincount(code, minlength=len(kinds)))
        nuclei.append(float(np.log(table["area_um2"].to_numpy(float)[code == 0]).sum()) if (code == 0).any() else 0.0)
        weights.append(REST_WEIGHT if slide is None else 1.0)
        if slide is None:
            continue
        stain = stain_of(patient, ground.style, seed)
        with _small_textures():
            drawn = rendering.render(ground, placed, stain, mpp=MPP, seed=seed, section=f"clinic {name}")
        shape = drawn.image.shape[:2]
        tissue = cv2.resize(drawn.tissue_mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        stream = settings.rng(seed, "clinic", "defect", name)
        glass = drawn.measured_white_point
        image, left, done = spoil(drawn.image, tissue, slide["defect"], glass, stream)
        jpeg = drawn.jpeg
        if slide["defect"]:
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        (part / "sections" / "slides" / f"{name}.jpg").write_bytes(with_density(jpeg, MPP))
        at = (table[["y_um", "x_um"]].to_numpy(float) / MPP).astype(int).clip(0, np.array(shape) - 1)
        seen = np.bincount(code[left[at[:, 0], at[:, 1]]], minlength=len(kinds))
        rows.append({**slide, **done, "n_cells": int(seen.sum()), **dict(zip(np.char.add("n_", kinds), seen.tolist()))})
    weights, counts = np.array(weights), np.array(counts)
    by_type = weights @ counts
    size = float(weights @ np.array(nuclei) / max(by_type[0], 1e-9))
    np.savez(part / "work" / f"{patient['patient']}.npz", rna=weights @ np.array(rna), by_type=by_type, nuclei=size)
    pd.DataFrame(rows).to_parquet(part / "work" / f"{patient['patient']}.parquet", index=False)

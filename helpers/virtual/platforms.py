"""Capture arrays and the vendor's files: where spots lie, and the folders Space Ranger and the ST pipeline write.

A platform is three functions: where its spots lie on a picture, which of them are kept, and how they are written.
Xenium and Visium HD join here with their own layouts; nothing else of the virtual tissue knows a file format.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import sparse

from helpers import settings

VISIUM_ROWS, VISIUM_COLUMNS = 78, 128  # hexagon of 4,992 spots: even rows hold even columns, odd rows odd ones
VISIUM_FIRST = (20, 34)  # array row and column at the picture's corner: the picture shows a part of the capture area
SPOT_65_UM, FIDUCIAL_UM = 65.0, 105.0
"""Space Ranger's ``spot_diameter_fullres`` and ``fiducial_diameter_fullres`` in um: their ratio to the 100 um pitch in
real output is .65 and 1.05 (measured on a public section), although the printed spot is 55 um wide."""
HIRES_PX, LOWRES_PX = 2000, 600
IN_TISSUE = 0.5  # share of a spot's disc on tissue from which it counts as under tissue


@dataclass(frozen=True)
class Platform:
    """Radius of a spot (um) and the total count a spot of reference density is expected to give (set by hand)."""

    name: str
    radius_um: float
    depth: float


PLATFORMS = {"visium": Platform("visium", 27.5, 8000.0), "st": Platform("st", 50.0, 8000.0)}


# ---------------------------------------------------------------- arrays
def visium_spots(size_um, *, mpp: float) -> pd.DataFrame:
    """Return the part of the Visium hexagon whose discs lie on a picture of ``size_um`` (width, height).

    Columns ``spot`` (barcode), ``array_row``, ``array_col``, ``x_px``, ``y_px`` (whole pixels, as Space Ranger writes
    them), ``x_um``, ``y_um``; sorted by barcode.
    """
    width, height = size_um
    pitch, margin = 100.0, 40.0
    rows = int((height - 2 * margin) // (pitch * np.sqrt(0.75))) + 1
    columns = int((width - 2 * margin) // (pitch / 2)) + 1
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    keep = (row + column) % 2 == 0
    table = pd.DataFrame({"array_row": row[keep] + VISIUM_FIRST[0], "array_col": column[keep] + VISIUM_FIRST[1]})
    table = table[(table["array_row"] < VISIUM_ROWS) & (table["array_col"] < VISIUM_COLUMNS)].copy()
    table["x_px"] = np.rint((margin + (table["array_col"] - VISIUM_FIRST[1]) * pitch / 2) / mpp).astype(int)
    table["y_px"] = np.rint((margin + (table["array_row"] - VISIUM_FIRST[0]) * pitch * np.sqrt(0.75)) / mpp).astype(int)
    table["x_um"], table["y_um"] = table["x_px"] * mpp, table["y_px"] * mpp
    table.insert(0, "spot", visium_barcodes()[table["array_row"] * VISIUM_COLUMNS // 2 + table["array_col"] // 2])
    return table.sort_values("spot", ignore_index=True)


@lru_cache(maxsize=1)
def visium_barcodes() -> np.ndarray:
    """Return a 16-letter barcode, ending in -1, per place of the array; the same for every slide, as on real slides."""
    letters = settings.rng(0, "visium barcodes").integers(0, 4, (2 * VISIUM_ROWS * VISIUM_COLUMNS, 16))
    names = pd.unique(np.array(["".join("ACGT"[i] for i in word) + "-1" for word in letters]))
    return np.asarray(names[: VISIUM_ROWS * VISIUM_COLUMNS // 2], object)


def st_spots(size_um, *, mpp: float, seed: int, section: str) -> pd.DataFrame:
    """Return the ST array on a picture: 100 um spots 200 um apart, array coordinate 1 at the picture's corner.

    Columns ``spot`` (``XxY``), ``x``, ``y``, ``new_x``, ``new_y`` (the place the printer hit, within a few um, as the
    spot detector reports it), ``pixel_x``, ``pixel_y``, ``x_um``, ``y_um``.
    """
    width, height = size_um
    x, y = (np.arange(2, int((extent - 60) // 200) + 2) for extent in (width, height))
    x, y = (grid.ravel() for grid in np.meshgrid(x, y, indexing="ij"))
    jitter = settings.rng(seed, "platforms", "st", section).normal(0, 0.02, (2, len(x)))
    table = pd.DataFrame({"spot": [f"{i}x{j}" for i, j in zip(x, y)], "x": x, "y": y})
    for axis, whole, noise in zip("xy", (x, y), jitter):
        table[f"new_{axis}"] = np.round(whole + noise.clip(-0.05, 0.05), 3)
        table[f"pixel_{axis}"] = np.round((table[f"new_{axis}"] - 1) * 200 / mpp, 2)
        table[f"{axis}_um"] = table[f"pixel_{axis}"] * mpp
    return table


# ---------------------------------------------------------------- writers
def write_visium(
    folder: Path, *, section_id, jpeg, image, mpp, spots, in_tissue, counts, genes, gene_ids, space_ranger=2
) -> None:
    """Write ``<folder>/<section_id>/outs`` as Space Ranger does, and ``<section_id>.jpg`` beside it.

    Parameters
    ----------
    jpeg
        Path of the full-resolution JPEG (hard-linked).
    image
        The same picture, uint8 RGB (y, x, 3), for the two previews.
    spots, in_tissue
        Table of :func:`visium_spots` and a bool per row.
    counts
        Integer (spots in tissue, genes), in the order of ``spots[in_tissue]``.
    space_ranger
        1: ``tissue_positions_list.csv`` without header; 2: ``tissue_positions.csv`` with one.
    """
    from helpers.virtual.truth import share

    outs = folder / section_id / "outs"
    spatial = outs / "spatial"
    spatial.mkdir(parents=True)
    share(jpeg, folder / section_id / f"{section_id}.jpg")
    longest = max(image.shape[:2])
    scales = {}
    for name, size in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        scale = min(1.0, size / longest)
        scales[f"tissue_{name}_scalef"] = scale
        shape = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        cv2.imwrite(
            str(spatial / f"tissue_{name}_image.png"), cv2.cvtColor(small, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_PNG_COMPRESSION, 3],
        )  # fmt: skip
    factors = {
        "spot_diameter_fullres": SPOT_65_UM / mpp,
        "tissue_hires_scalef": scales["tissue_hires_scalef"],
        "fiducial_diameter_fullres": FIDUCIAL_UM / mpp,
        "tissue_lowres_scalef": scales["tissue_lowres_scalef"],
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors), encoding="utf-8")
    positions = pd.DataFrame(
        {
            "barcode": spots["spot"],
            "in_tissue": np.asarray(in_tissue).astype(int),
            "array_row": spots["array_row"],
            "array_col": spots["array_col"],
            "pxl_row_in_fullres": spots["y_px"],
            "pxl_col_in_fullres": spots["x_px"],
        }
    )
    name = "tissue_positions_list.csv" if space_ranger == 1 else "tissue_positions.csv"
    positions.to_csv(spatial / name, index=False, header=space_ranger != 1, lineterminator="\n")
    write_10x_h5(
        outs / "filtered_feature_bc_matrix.h5", counts=counts, barcodes=spots["spot"][np.asarray(in_tissue)],
        genes=genes, gene_ids=gene_ids, library=section_id, software=f"spaceranger-{space_ranger}.0.0",
    )  # fmt: skip


def write_10x_h5(file: Path, *, counts, barcodes, genes, gene_ids, library: str, software: str) -> None:
    """Write counts (spots, genes) in 10x's HDF5 format v3: CSC of features x barcodes, one group ``matrix``."""
    import h5py

    matrix = sparse.csr_matrix(counts)
    matrix.sort_indices()

    def text(values):
        return np.array([str(value).encode("ascii") for value in values])

    with h5py.File(file, "w") as h5:
        h5.attrs["chemistry_description"] = "Spatial 3' v1"
        h5.attrs["filetype"] = "matrix"
        h5.attrs["library_ids"] = text([library])
        h5.attrs["original_gem_groups"] = np.array([1])
        h5.attrs["software_version"] = software
        h5.attrs["version"] = 2
        group = h5.create_group("matrix")
        for name, values in {
            "barcodes": text(barcodes),
            "data": matrix.data.astype(np.int32),
            "indices": matrix.indices.astype(np.int64),
            "indptr": matrix.indptr.astype(np.int64),
            "shape": np.array(matrix.shape[::-1], np.int32),
        }.items():
            packed = {"compression": "gzip", "compression_opts": 4} if values.size > 100 else {}
            group.create_dataset(name, data=values, track_times=False, **packed)
        features = group.create_group("features")
        for name, values in {
            "_all_tag_keys": ["genome"],
            "feature_type": ["Gene Expression"] * len(genes),
            "genome": ["virtual"] * len(genes),
            "id": gene_ids,
            "name": genes,
        }.items():
            features.create_dataset(name, data=text(values), track_times=False)


def write_st(folder: Path, *, section_id, jpeg, spots, kept, counts, genes) -> None:
    """Add one section to a legacy ST folder: ``ST-cnts``, ``ST-imgs``, ``ST-spotfiles``.

    Parameters
    ----------
    spots, kept
        Table of :func:`st_spots` and a bool per row; only kept spots are written, as in real selections.
    counts
        Integer (kept spots, genes).
    """
    from helpers.virtual.truth import share

    patient = section_id[0]
    pictures = folder / "ST-imgs" / patient / section_id
    for place in (folder / "ST-cnts", folder / "ST-spotfiles", pictures):
        place.mkdir(parents=True, exist_ok=True)
    share(jpeg, pictures / f"HE_BT_{section_id}.jpg")
    chosen = spots[np.asarray(kept)]
    text = pd.DataFrame(counts, index=chosen["spot"].to_numpy(), columns=genes).to_csv(sep="\t", lineterminator="\n")
    with open(folder / "ST-cnts" / f"{section_id}.tsv.gz", "wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=6) as packed:  # no clock inside
            packed.write(text.encode("ascii"))
    selection = chosen[["x", "y", "new_x", "new_y", "pixel_x", "pixel_y"]].assign(selected=1)
    file = folder / "ST-spotfiles" / f"{section_id}_selection.tsv"
    selection.to_csv(file, sep="\t", index=False, lineterminator="\n")

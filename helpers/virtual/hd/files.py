"""Visium HD's files as Space Ranger 3 writes them, and the H&E beside them (which it does not copy).

::

    <id>_tissue_image.tif                                       full resolution: tiled, JPEG, a pyramid in SubIFDs
    outs/<id>_feature_slice.h5                                  its metadata alone
    outs/metrics_summary.csv                                    a few of its numbers
    outs/spatial/tissue_{hires,lowres}_image.png
    outs/binned_outputs/square_{002,008,016}um/filtered_feature_bc_matrix.h5
    outs/binned_outputs/square_{002,008,016}um/spatial/{tissue_positions.parquet, scalefactors_json.json, previews}

Not written: raw matrices (nothing here reads them), ``analysis/``, the CytAssist picture, cloupe and web files. Bins
are numbered from 0 at the top left, squares of the picture: a real array lies slightly turned and is much larger.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.virtual.platforms import write_10x_h5
from helpers.virtual.truth import share
from helpers.virtual.xenium_files import write_ome

BINS_UM = (2, 8, 16)
SOFTWARE = "spaceranger-3.1.2"
JPEG = 92
HIRES_PX, LOWRES_PX = 1000, 300
FIDUCIAL_UM = 330.0


def barcodes(bin_um: int, row, column) -> np.ndarray:
    """Return the vendor's names of bins, such as ``s_008um_00012_00034-1``."""
    return np.array([f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column)])


def side_of(size_um: float, bin_um: int) -> int:
    """Return how many whole bins a field has along a side."""
    return int(np.floor(size_um / bin_um + 1e-6))


def under_tissue(tissue, *, size_um: float, bin_um: int) -> np.ndarray:
    """Return which bins of the array are under tissue, bool (side * side,): those of 2 um by their middle, larger ones
    that have any such bin.

    Parameters
    ----------
    tissue
        Bool (gy, gx) over the whole field, on any grid.
    """
    side = side_of(size_um, 2)
    rows, columns = (((np.arange(side) + 0.5) * 2 / size_um * n).astype(int) for n in tissue.shape)
    fine = np.asarray(tissue, bool)[rows][:, columns]
    if bin_um == 2:
        return fine.ravel()
    step, wide = bin_um // 2, side_of(size_um, bin_um)
    return fine[: wide * step, : wide * step].reshape(wide, step, wide, step).any((1, 3)).ravel()


def summed(fine, *, size_um: float, bin_um: int):
    """Return the counts of larger bins as sums of the counts of 2 um bins (CSR, row by row)."""
    from scipy import sparse

    side, step, wide = side_of(size_um, 2), bin_um // 2, side_of(size_um, bin_um)
    row, column = (index // step for index in np.divmod(np.arange(side * side), side))
    whole = np.flatnonzero((row < wide) & (column < wide))
    target = (row * wide + column)[whole]
    add = sparse.csr_matrix((np.ones(len(whole), np.int32), (target, whole)), shape=(wide * wide, side * side))
    return (add @ fine).tocsr()


def write_section(
    home: Path, *, section_id: str, image_file: Path | None, image, mpp: float, size_um: float, tissue, fine, panel
) -> dict[int, np.ndarray]:
    """Write the picture and ``outs/`` of one section into ``home`` (it exists).

    Parameters
    ----------
    image_file
        A picture written before (hard-linked); None: ``image`` is written.
    image
        uint8 RGB (y, x, 3), full resolution.
    tissue
        Bool (gy, gx) over the field.
    fine
        Counts of all 2 um bins of the array, row by row, CSR (side * side, genes). What lies off the tissue is not
        written, as in Space Ranger's filtered matrices.
    panel
        Table with ``gene`` and ``gene_id``.

    Returns
    -------
    dict
        Bin size to the written bins, as indices into the array row by row.
    """
    from scipy import sparse

    picture = home / f"{section_id}_tissue_image.tif"
    if image_file is None:
        write_ome(picture, image, um_px=mpp, name=section_id, jpeg=JPEG)
    else:
        share(image_file, picture)
    outs = home / "outs"
    (outs / "spatial").mkdir(parents=True)
    scales = _write_previews(outs / "spatial", image)
    _write_slice(outs / f"{section_id}_feature_slice.h5", mpp=mpp, size_um=size_um)
    under = under_tissue(tissue, size_um=size_um, bin_um=2)
    fine = (sparse.diags(under.astype(np.int32), dtype=np.int32) @ fine).tocsr()
    fine.eliminate_zeros()
    written, numbers = {}, {"Sample ID": section_id, "Genes Detected": int((np.asarray(fine.sum(0)) > 0).sum())}
    for bin_um in BINS_UM:
        kept = np.flatnonzero(under_tissue(tissue, size_um=size_um, bin_um=bin_um))
        counts = (fine if bin_um == 2 else summed(fine, size_um=size_um, bin_um=bin_um))[kept]
        _write_bins(outs, section_id, bin_um, kept, counts, panel, mpp=mpp, size_um=size_um, scales=scales)
        numbers[f"Number of Bins Under Tissue {bin_um} um"] = len(kept)
        numbers[f"Mean UMIs Under Tissue per {bin_um} um Bin"] = round(float(counts.sum() / len(kept)), 4)
        written[bin_um] = kept
    with open(outs / "metrics_summary.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([numbers.keys(), numbers.values()])
    return written


def _write_previews(spatial: Path, image) -> dict[str, float]:
    import cv2

    scales, longest = {}, max(image.shape[:2])
    for name, size in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        scale = min(0.5 if name == "hires" else 0.15, size / longest)
        shape = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(spatial / f"tissue_{name}_image.png"), cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        scales[f"tissue_{name}_scalef"] = scale
    return scales


def _write_bins(outs, section_id, bin_um, kept, counts, panel, *, mpp, size_um, scales) -> None:
    folder, side = outs / "binned_outputs" / f"square_{bin_um:03d}um", side_of(size_um, bin_um)
    (folder / "spatial").mkdir(parents=True)
    row, column = np.divmod(np.arange(side * side), side)
    names = barcodes(bin_um, row, column)
    inside = np.zeros(side * side, np.int64)
    inside[kept] = 1
    pd.DataFrame({
        "barcode": names, "in_tissue": inside, "array_row": row, "array_col": column,
        "pxl_row_in_fullres": (row + 0.5) * bin_um / mpp, "pxl_col_in_fullres": (column + 0.5) * bin_um / mpp,
    }).to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)  # fmt: skip
    factors = {
        "spot_diameter_fullres": bin_um / mpp, "bin_size_um": float(bin_um), "microns_per_pixel": mpp,
        "regist_target_img_scalef": scales["tissue_hires_scalef"], **scales,
        "fiducial_diameter_fullres": FIDUCIAL_UM / mpp,
    }  # fmt: skip
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors), encoding="utf-8")
    for preview in (outs / "spatial").glob("*.png"):
        share(preview, folder / "spatial" / preview.name)
    matrix = folder / "filtered_feature_bc_matrix.h5"
    write_10x_h5(
        matrix, counts=counts, barcodes=names[kept], genes=panel["gene"], gene_ids=panel["gene_id"],
        library=section_id, software=SOFTWARE,
    )  # fmt: skip
    import h5py

    with h5py.File(matrix, "r+") as h5:
        h5.attrs["chemistry_description"] = "Visium HD v1"


def _write_slice(file: Path, *, mpp: float, size_um: float) -> None:
    """Write what readers need of the feature slice file: the size of the array and how it lies on the pictures."""
    import h5py

    side, pitch, shrink = side_of(size_um, 2), 2.0 / mpp, 0.1
    to_picture = np.array([[pitch, 0, pitch / 2], [0, pitch, pitch / 2], [0, 0, 1]])
    to_cytassist = np.diag([shrink, shrink, 1]) @ to_picture
    matrices = {
        "spot_colrow_to_microscope_colrow": to_picture, "microscope_colrow_to_spot_colrow": np.linalg.inv(to_picture),
        "spot_colrow_to_cytassist_colrow": to_cytassist,
        "cytassist_colrow_to_spot_colrow": np.linalg.inv(to_cytassist),
    }  # fmt: skip
    facts = {
        "slide_name": "virtual_hd", "nrows": side, "ncols": side, "spot_pitch": 2.0,
        "hd_layout_json": json.dumps({"transform": np.eye(3).tolist(), "file_format": "1.0"}),
        "transform_matrices": {name: matrix.tolist() for name, matrix in matrices.items()},
    }  # fmt: skip
    with h5py.File(file, "w") as h5:
        h5.attrs["metadata_json"] = json.dumps(facts)
        h5.attrs["filetype"] = "feature_slice"
        h5.attrs["version"] = "0.1.0"

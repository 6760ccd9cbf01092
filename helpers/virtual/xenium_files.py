"""Xenium's files as the instrument writes them, for several versions of its onboard analysis.

What changed between versions, as far as it is written here (public documentation and the readers of spatialdata-io):

=================  ==============  =================  ==================  ====================
\\                  1.0             1.9                2.0 and 3.1         4.0
=================  ==============  =================  ==================  ====================
cell ids           1, 2, ...       aaaabbcd-1         aaaabbcd-1          aaaabbcd-1
no cell            -1              UNASSIGNED         UNASSIGNED          UNASSIGNED
text               bytes           text               text                text
DAPI               morphology_focus.ome.tif (and a    morphology_focus/   morphology_focus/
                   copy morphology_mip.ome.tif)       ..._0000.ome.tif    ch0000_dapi.ome.tif
cells.csv.gz       yes             yes                yes, no from 3      no
label_id           no              no                 yes                 yes
cells grow by      15 um           15 um              5 um                5 um
=================  ==============  =================  ==================  ====================

Not written: the z-stack, ``transcripts.zarr.zip``, ``analysis/`` and label masks within ``cells.zarr.zip``.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.virtual.xenium_cells import areas
from helpers.virtual.xenium_dapi import PIXEL_UM

TILE = 1024
JPEG2000_DB = 80  # signal-to-noise of the compression: an error of 6 counts, less than the camera's noise
FEATURE_TYPES = {
    "gene": "Gene Expression", "negative_control_probe": "Negative Control Probe",
    "negative_control_codeword": "Negative Control Codeword", "unassigned_codeword": "Unassigned Codeword",
}  # fmt: skip


def major(version: str) -> float:
    """Return the first two numbers of a version such as ``"xenium-3.1.0.0"`` as one float (3.1)."""
    return float(".".join(version.removeprefix("xenium-").split(".")[:2]))


def cell_names(n: int, version: str, stream) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the ids of ``n`` cells as written, and their prefixes uint32 (n,) from version 1.3 on.

    A newer id is the prefix in hexadecimal, written with the letters a to p, and the number of the data set.
    """
    if major(version) < 1.3:
        return np.arange(1, n + 1), None
    prefix = np.sort(stream.choice(2**28, n, replace=False)).astype(np.uint32)
    letters = np.array(list("abcdefghijklmnop"))
    shifts = np.arange(28, -1, -4, dtype=np.uint32)
    words = letters[(prefix[:, None] >> shifts) & 15]
    return np.array(["".join(word) + "-1" for word in words]), prefix


# ---------------------------------------------------------------- pictures
def write_ome(file: Path, image, *, um_px: float, name: str, channel: str | None = None, jpeg: int = 0) -> None:
    """Write a pyramidal OME-TIFF: tiles, each level half the one before, in SubIFDs, with the pixel size.

    Parameters
    ----------
    image
        uint16 (y, x), JPEG 2000 as the instrument does; or uint8 RGB (y, x, 3), JPEG of quality ``jpeg``.
    um_px
        um per pixel, written as ``PhysicalSizeX`` and ``PhysicalSizeY``.
    """
    import cv2
    import tifffile

    colour = image.ndim == 3
    levels = [image]
    while min(levels[-1].shape[:2]) > 512:
        shape = tuple(max(1, side // 2) for side in levels[-1].shape[:2])
        levels.append(cv2.resize(levels[-1], shape[::-1], interpolation=cv2.INTER_AREA))
    facts = {
        "axes": "YXS" if colour else "YX", "Name": name, "PhysicalSizeX": um_px, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um_px, "PhysicalSizeYUnit": "µm",
    }  # fmt: skip
    if channel is not None:
        facts["Channel"] = {"Name": [channel]}
    options = {"tile": (512, 512) if colour else (TILE, TILE), "photometric": "rgb" if colour else "minisblack"}
    if colour:
        options.update(compression="jpeg", compressionargs={"level": jpeg})
    else:
        options.update(compression="jpeg2000", compressionargs={"level": JPEG2000_DB})
    with tifffile.TiffWriter(file, bigtiff=True, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=facts, maxworkers=1, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, maxworkers=1, **options)


def write_morphology(outs: Path, image, *, version: str, name: str) -> None:
    """Write the DAPI picture where this version has it."""
    from helpers.virtual.truth import share

    number = major(version)
    if number < 2:
        file = outs / "morphology_focus.ome.tif"
        write_ome(file, image, um_px=PIXEL_UM, name=name, channel="DAPI")
        share(file, outs / "morphology_mip.ome.tif")
        return
    (outs / "morphology_focus").mkdir()
    file = "ch0000_dapi.ome.tif" if number >= 4 else "morphology_focus_0000.ome.tif"
    write_ome(outs / "morphology_focus" / file, image, um_px=PIXEL_UM, name=name, channel="DAPI")


# ---------------------------------------------------------------- tables
def _gz_csv(table: pd.DataFrame, file: Path) -> None:
    with open(file, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        packed.write(table.to_csv(index=False, lineterminator="\n").encode("ascii"))


def write_cells(outs: Path, found, names, counts, kinds, *, version: str) -> pd.DataFrame:
    """Write ``cells.parquet`` (and ``cells.csv.gz``) and return the table.

    Parameters
    ----------
    counts
        CSR (cells, features); ``kinds`` the codeword category of each feature.
    """
    totals = {kind: np.asarray(counts[:, kinds == kind].sum(1)).ravel() for kind in FEATURE_TYPES}
    centre = found.cells.astype(float).mean(1)
    table = pd.DataFrame({
        "cell_id": names, "x_centroid": centre[:, 0], "y_centroid": centre[:, 1], "transcript_counts": totals["gene"],
        "control_probe_counts": totals["negative_control_probe"],
        "control_codeword_counts": totals["negative_control_codeword"],
        "unassigned_codeword_counts": totals["unassigned_codeword"],
        "total_counts": np.asarray(counts.sum(1)).ravel(),
        "cell_area": areas(found.cells), "nucleus_area": areas(found.nuclei),
    })  # fmt: skip
    if major(version) >= 2:
        table["nucleus_count"] = 1
        table["segmentation_method"] = "Segmented by nucleus expansion of 5.0µm"
    else:
        table = table.drop(columns="unassigned_codeword_counts")
    table.to_parquet(outs / "cells.parquet", index=False)
    if major(version) < 3:
        plain = table.copy()
        if "segmentation_method" in plain:
            plain["segmentation_method"] = "Segmented by nucleus expansion of 5.0um"
        _gz_csv(plain, outs / "cells.csv.gz")
    return table


def write_boundaries(file: Path, polygons, names, *, version: str) -> None:
    """Write outlines (cells, vertices, 2), um, one row a vertex, the first repeated at the end."""
    closed = np.concatenate([polygons, polygons[:, :1]], axis=1).astype(np.float32)
    n, vertices = closed.shape[:2]
    table = pd.DataFrame({"cell_id": np.repeat(names, vertices)})
    table[["vertex_x", "vertex_y"]] = closed.reshape(-1, 2)
    if major(version) >= 2:
        table["label_id"] = np.repeat(np.arange(1, n + 1, dtype=np.uint32), vertices)
    table.to_parquet(file, index=False)


def write_transcripts(file: Path, table: pd.DataFrame, features, kinds, names, *, version: str) -> None:
    """Write ``transcripts.parquet`` from the table of ``xenium_counts.transcripts``."""
    number, chosen = major(version), table["found"].to_numpy()
    labels = np.append(names, -1 if number < 1.3 else "UNASSIGNED")
    feature = np.asarray(features, object)
    if number < 1.3:
        feature = np.array([name.encode() for name in features], object)
    columns = {
        "transcript_id": np.arange(len(table), dtype=np.uint64) + 281474976710656,
        "cell_id": pd.Categorical.from_codes(np.where(chosen < 0, len(names), chosen), labels).astype(labels.dtype),
        "overlaps_nucleus": table["overlaps_nucleus"], "feature_name": feature[table["feature"]],
        "x_location": table["x"], "y_location": table["y"], "z_location": table["z"], "qv": table["qv"],
    }  # fmt: skip
    if number >= 1.3:
        columns["fov_name"] = "A1"
    if number >= 3:
        kind = np.asarray(["predesigned_gene" if kind == "gene" else kind for kind in kinds], object)
        columns["codeword_category"] = kind[table["feature"]]
        columns["is_gene"] = np.asarray(kinds)[table["feature"]] == "gene"
    pd.DataFrame(columns).to_parquet(file, index=False, compression="zstd")


def write_matrix(file: Path, counts, features, gene_ids, kinds, names, *, version: str) -> None:
    """Write ``cell_feature_matrix.h5`` in 10x's format: features x cells, controls among the features."""
    import h5py

    def text(values):
        return np.array([str(value).encode("ascii") for value in values])

    with h5py.File(file, "w") as h5:
        h5.attrs["chemistry_description"] = "Xenium In Situ"
        h5.attrs["filetype"] = "matrix"
        h5.attrs["software_version"] = version
        h5.attrs["version"] = 2
        group = h5.create_group("matrix")
        arrays = {"barcodes": text(names), "data": counts.data, "indices": counts.indices.astype(np.int64),
                  "indptr": counts.indptr.astype(np.int64), "shape": np.array(counts.shape[::-1], np.int32)}
        for name, values in arrays.items():
            packed = {"compression": "gzip", "compression_opts": 4} if values.size > 100 else {}
            group.create_dataset(name, data=values, track_times=False, **packed)
        table = group.create_group("features")
        for name, values in {
            "_all_tag_keys": ["genome"], "feature_type": [FEATURE_TYPES[kind] for kind in kinds],
            "genome": ["virtual"] * len(features), "id": gene_ids, "name": features,
        }.items():  # fmt: skip
            table.create_dataset(name, data=text(values), track_times=False)


def write_cells_zarr(file: Path, table: pd.DataFrame, prefix, *, version: str) -> None:
    """Write ``cells.zarr.zip`` (Zarr 2): ids, summary and, from version 2, which cell an outline belongs to."""
    import zarr

    store = zarr.storage.ZipStore(file, mode="w")
    group = zarr.create_group(store, zarr_format=2)

    def put(name, values, **attributes):
        group.create_array(name, data=values, attributes=attributes or None)

    ids = table["cell_id"].to_numpy(np.uint32) if prefix is None else np.c_[prefix, np.ones_like(prefix)]
    put("cell_id", np.ascontiguousarray(ids))
    names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y",
             "nucleus_area", "z_level"]
    source = ["x_centroid", "y_centroid", "cell_area", "x_centroid", "y_centroid", "nucleus_area"]
    summary = np.c_[table[source].to_numpy(float), np.zeros(len(table))]
    rows = np.arange(len(table), dtype=np.uint32)
    if major(version) >= 2:
        summary, names = np.c_[summary, np.ones(len(table))], [*names, "nucleus_count"]
        for number in (0, 1):
            put(f"polygon_sets/{number}/cell_index", rows)
    elif prefix is not None:
        put("seg_mask_value", rows + 1)
    put("cell_summary", summary, column_names=names)
    store.close()


def write_experiment(outs: Path, *, version: str, section_id: str, table, n_transcripts: int, panel) -> None:
    """Write ``experiment.xenium`` and ``gene_panel.json`` (``table`` is that of ``cells.parquet``)."""
    number = major(version)
    images = {"morphology_filepath": "morphology.ome.tif"}
    if number < 2:
        images.update({f"morphology_{w}_filepath": f"morphology_{w}.ome.tif" for w in ("mip", "focus")})
    else:
        images["morphology_focus_filepath"] = (
            f"morphology_focus/{'ch0000_dapi' if number >= 4 else 'morphology_focus_0000'}.ome.tif"
        )
    facts = {
        "major_version": int(number) + 3, "minor_version": 0, "patch_version": 0, "run_name": "virtual tissue",
        "region_name": section_id, "preservation_method": "ffpe", "num_cells": len(table),
        "transcripts_per_cell": int(table["transcript_counts"].median()),
        "panel_name": "virtual breast panel", "panel_organism": "Human", "panel_num_targets_predesigned": len(panel),
        "panel_num_targets_custom": 0, "pixel_size": PIXEL_UM, "z_step_size": 3.0, "analysis_sw_version": version,
        "num_transcripts": n_transcripts, "images": images,
        "xenium_explorer_files": {"cells_zarr_filepath": "cells.zarr.zip"},
    }  # fmt: skip
    (outs / "experiment.xenium").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    targets = [
        {"type": {"descriptor": "gene", "data": {"id": row.gene_id, "name": row.symbol}}, "codewords": [number]}
        for number, row in enumerate(panel.itertuples())
    ]
    card = {"metadata": {"schema_version": "1.0"}, "payload": {"panel": {"identity": {"name": "virtual breast panel"}},
            "targets": targets}}
    (outs / "gene_panel.json").write_text(json.dumps(card, indent=1), encoding="utf-8")

"""Sources: the files of a Xenium folder in the forms that onboard analysis 1 to 4 gave them, told apart by content.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError, note
from helpers.readers_files import IMAGE_SUFFIXES, read_image, unreadable
from helpers.readers_matrix import read_matrix

CELL_NAMES = ("cells.parquet", "cells.csv.gz", "cells.csv")
DAPI_NAMES = (
    "morphology_focus/ch0000_dapi.ome.tif", "morphology_focus/morphology_focus_0000.ome.tif",
    "morphology_focus.ome.tif", "morphology_mip.ome.tif", "morphology.ome.tif",
)  # fmt: skip
"""Where DAPI lies, best first: analysis 4; 2 and 3; 1 (in focus, the projection); the stack, of which the middle."""
_CONTROL = re.compile(r"(NegControl|BLANK|antisense|Unassigned|Deprecated|Intergenic)", re.IGNORECASE)
_HE = re.compile(r"(^|[_\-. ])(he|hne|h&e)([_\-. ]|image|$)", re.IGNORECASE)
_TO_UM = {"\u00b5m": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def experiment(outs: Path) -> dict:
    """Return ``experiment.xenium``; empty where there is none."""
    file = outs / "experiment.xenium"
    if not file.exists():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8-sig"))
        size = facts.get("pixel_size")
        if size is not None and not 0.05 < float(size) < 25:
            raise CourseError(f"pixel_size {size}", "um per pixel (0.2125)", "copy it again", file=file)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise unreadable(file, error) from None
    return facts


# ---------------------------------------------------------------- tables
def _table(path: Path, columns=None) -> pd.DataFrame:
    """Read a parquet or CSV file; bytes become text."""
    try:
        table = pd.read_parquet(path, columns=columns) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, EOFError) as error:  # pyarrow's and pandas' errors are ValueErrors
        raise unreadable(path, error) from None
    return _text(table)


def _text(table: pd.DataFrame) -> pd.DataFrame:
    for column in table.select_dtypes("object"):
        if len(table) and isinstance(table[column].iloc[0], bytes):
            table[column] = table[column].str.decode("utf-8")
    return table


def _first(outs: Path, stem: str) -> Path | None:
    paths = (outs / f"{stem}{end}" for end in (".parquet", ".csv.gz", ".csv"))
    return next((path for path in paths if path.exists()), None)


def _need(table, wanted, path) -> None:
    missing = [column for column in wanted if column not in table]
    if missing:
        seen = f"no column {missing[0]} (there are {', '.join(map(str, table.columns[:6]))})"
        raise CourseError(seen, ", ".join(wanted), "copy the file from the instrument again", file=path)


def cell_table(outs: Path) -> tuple[pd.DataFrame, Path]:
    """Return the table of cells, ids as text, and its file."""
    path = _first(outs, "cells")
    if path is None:
        raise CourseError("no table of cells", " or ".join(CELL_NAMES), "copy the whole folder", file=outs)
    table = _table(path)
    wanted = ("cell_id", "x_centroid", "y_centroid")
    _need(table, wanted, path)
    numbers = table[["x_centroid", "y_centroid"]].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any().any():
        row = int(np.flatnonzero(numbers.isna().any(axis=1))[0]) + 1
        raise CourseError(f"no number in row {row}", "x_centroid and y_centroid in um", "copy it again", file=path)
    return table.assign(cell_id=table["cell_id"].astype(str), **numbers), path


def gene_counts(outs: Path):
    """Return genes as AnnData (cells x genes), and what was taken out: a table of controls with their counts."""
    path = next((outs / n for n in ("cell_feature_matrix.h5", "cell_feature_matrix") if (outs / n).exists()), None)
    if path is None:
        seen = "no cell_feature_matrix"
        raise CourseError(seen, "cell_feature_matrix.h5 or its folder", "copy the whole folder", file=outs)
    table = _all_features(path) if path.suffix == ".h5" else read_matrix(path)
    kinds = table.var.get("feature_types", pd.Series("Gene Expression", index=table.var_names)).astype(str)
    gene = ((kinds == "Gene Expression") & ~table.var_names.str.match(_CONTROL)).to_numpy()
    if not gene.any():
        raise CourseError("no gene among the features", "Gene Expression features", "copy the matrix again", file=path)
    totals = np.asarray(table[:, ~gene].X.sum(0)).ravel()
    controls = pd.DataFrame({"name": table.var_names[~gene].astype(str), "kind": kinds[~gene].to_numpy(),
                             "counts": totals.astype(int)})  # fmt: skip
    return table[:, gene].copy(), controls


def _all_features(path: Path):
    import warnings

    import scanpy as sc

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")  # said by tidy_counts
            table = sc.read_10x_h5(path, gex_only=False)
    except Exception as error:  # h5py and scanpy each have their own kinds
        raise unreadable(path, error) from None
    table.var = table.var.rename(columns={"gene_ids": "gene_id"})
    return table


# ---------------------------------------------------------------- outlines
def _polygons(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Return outlines as shapely polygons, the cell id of each, and how many were mended or left out."""
    import shapely

    table = _table(path)
    _need(table, ("cell_id", "vertex_x", "vertex_y"), path)
    key = table["label_id"].to_numpy() if "label_id" in table else table["cell_id"].astype(str).to_numpy()
    if not len(table):
        return np.zeros(0, object), np.zeros(0, str), 0
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    sizes = np.diff(np.r_[starts, len(key)])
    good = sizes >= 4  # a ring: three corners and the first again
    ring = np.repeat(np.cumsum(good) - 1, sizes)[np.repeat(good, sizes)]
    xy = table[["vertex_x", "vertex_y"]].to_numpy(float)[np.repeat(good, sizes)]
    if not np.isfinite(xy).all():
        raise CourseError("outlines with missing corners", "numbers in um", "copy the file again", file=path)
    shapes = shapely.polygons(shapely.linearrings(xy, indices=ring)) if len(ring) else np.zeros(0, object)
    bad = ~shapely.is_valid(shapes)
    mended = shapely.buffer(shapes[bad], 0)
    shapes[bad] = [max(shapely.get_parts(shape), key=shapely.area, default=shape) for shape in mended]
    kept = ~shapely.is_empty(shapes)
    owner = table["cell_id"].astype(str).to_numpy()[starts][good]
    return shapes[kept], owner[kept], int(bad.sum() + (~good).sum())


def _overlaps(shapes) -> int:
    """Return how many pairs of polygons share a tenth or more of the smaller one."""
    import shapely

    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    first, second = first[first < second], second[first < second]
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    area = shapely.area(shapes)
    return int((shared >= 0.1 * np.minimum(area[first], area[second])).sum())


def outlines(outs: Path, counts, *, section_id: str) -> tuple[dict, str]:
    """Return ``cells`` (a polygon per row of ``counts``), ``nuclei``, ``nuclei_owner``, in um, and a word on them."""
    import shapely

    said, found, rows = [], {}, pd.Series(np.arange(counts.n_obs), index=counts.obs_names.astype(str))
    for role in ("cell", "nucleus"):
        path = _first(outs, f"{role}_boundaries")
        if path is None:
            continue
        shapes, owner, mended = _polygons(path)
        known = np.isin(owner, rows.index)
        if len(owner) and not known.any():
            seen = f"outlines of cells such as {owner[0]}, the matrix has {rows.index[0]}"
            raise CourseError(seen, "the same ids", "take all files from one run", file=path)
        found[role] = shapes[known], rows[owner[known]].to_numpy()
        if mended:
            said.append(f"{mended} {role} outlines crossed themselves or had no area (mended or left out)")
        if role == "nucleus" and known.any():
            pairs = _overlaps(found[role][0])
            if pairs:
                said.append(f"{pairs} pairs of nuclei overlap by a tenth or more of the smaller one")
    area = counts.obs["cell_area"].to_numpy(float) if "cell_area" in counts.obs else np.full(counts.n_obs, 80.0)
    area = np.where(np.isfinite(area) & (area > 0), area, 80.0)
    cells = shapely.buffer(shapely.points(counts.obsm["spatial_um"]), np.sqrt(area / np.pi), quad_segs=4)
    outlined = np.zeros(counts.n_obs, bool)
    if "cell" in found:
        shapes, row = found["cell"]
        cells[row], outlined[row] = shapes, True
    if not outlined.all():
        said.append(f"{(~outlined).sum()} cells without an outline: circles of their area")
    result = {"cells": cells}
    if "nucleus" in found and len(found["nucleus"][0]):
        result["nuclei"], result["nuclei_owner"] = found["nucleus"]
    if said:
        note(f"note: {section_id}: {'; '.join(said)}")
    return result, "; ".join(said) or "as written by the instrument"


# ---------------------------------------------------------------- transcripts
def transcripts(outs: Path, *, qv: float):
    """Return the transcripts of quality ``qv`` or more, lazy where the file is parquet; None where there is no file."""
    path = _first(outs, "transcripts")
    if path is None:
        return None
    wanted = ["x_location", "y_location", "z_location", "feature_name", "qv", "cell_id"]
    names = {"x_location": "x", "y_location": "y", "z_location": "z_um"}
    if path.suffix != ".parquet":
        table = _table(path)
        _need(table, wanted, path)
        kept, total = table[table["qv"] >= qv], len(table)
        _refuse_none(len(kept), total, qv, path)
        kept = kept[wanted].rename(columns=names).reset_index(drop=True)
        return kept.astype({"cell_id": str, "feature_name": "category"})
    import dask.dataframe as dd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    try:
        source = ds.dataset(path)
        _need(pd.DataFrame(columns=source.schema.names), wanted, path)
        total, left = source.count_rows(), source.count_rows(filter=ds.field("qv") >= qv)
        sample, features = source.head(1, columns=wanted).to_pandas(), set()
        for batch in source.to_batches(columns=["feature_name"]):
            features.update(pc.unique(batch.column(0)).to_pylist())
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(path, error) from None
    _refuse_none(left, total, qv, path)
    table = dd.read_parquet(path, columns=wanted, filters=[("qv", ">=", float(qv))])
    for column in ("feature_name", "cell_id"):
        if isinstance(sample[column].iloc[0], bytes):
            table[column] = table[column].map_partitions(_decode, meta=(column, str))
    known = sorted(name.decode() if isinstance(name, bytes) else name for name in features)
    table["feature_name"] = table["feature_name"].astype(pd.CategoricalDtype(known))
    table["cell_id"] = table["cell_id"].astype(str)
    return table.rename(columns=names)


def _decode(values):
    return values.str.decode("utf-8")


def _refuse_none(left: int, total: int, qv: float, path: Path) -> None:
    if not left:
        seen = f"none of {total} transcripts with qv >= {qv:g}"
        raise CourseError(seen, "transcripts that pass (Xenium's own limit is 20)", "lower qv", file=path)


# ---------------------------------------------------------------- pictures
def physical_size(path: Path) -> tuple[float | None, str]:
    """Return um per pixel of a TIFF, from its OME header or its resolution tags, and where it stands; (None, why)."""
    if path.suffix.lower() not in (".tif", ".tiff", ".btf"):
        return None, f"{path.name} states no pixel size"
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            text, page = tiff.ome_metadata or "", tiff.pages[0]
            tags = {name: page.tags[name].value for name in ("XResolution", "ResolutionUnit") if name in page.tags}
    except Exception as error:  # tifffile raises many kinds for a damaged file
        raise unreadable(path, error) from None
    size = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', text)
    if size:
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', text)
        factor = _TO_UM.get(unit.group(1).replace("\u03bc", "\u00b5") if unit else "um")  # Greek mu, micro sign
        if factor is not None and float(size.group(1)) > 0:
            return float(size.group(1)) * factor, f"PhysicalSizeX of {path.name}"
    unit = {2: 25400.0, 3: 10000.0}.get(int(tags.get("ResolutionUnit", 1)))
    if unit and "XResolution" in tags and tags["XResolution"][0] > tags["XResolution"][1]:
        per_unit = tags["XResolution"][0] / tags["XResolution"][1]
        if 0.05 < unit / per_unit < 25:
            return unit / per_unit, f"XResolution of {path.name}"
    return None, f"{path.name} states no pixel size"


def open_dapi(outs: Path):
    """Return the levels of the DAPI picture, lazy (y, x), and its file; (None, None) where there is none."""
    path = next((outs / name for name in DAPI_NAMES if (outs / name).exists()), None)
    if path is None:
        path = next(iter(sorted((outs / "morphology_focus").glob("*dapi*.ome.tif"))), None)
    if path is None:
        return None, None
    import tifffile
    import zarr

    try:
        with tifffile.TiffFile(path) as tiff:  # pages, not series: an OME series would join the channels' files
            number = len(tiff.pages) // 2 if path.name == "morphology.ome.tif" else 0
            page = tiff.pages[number]
            pages = [page, *(page.pages or [])]
            if page.ndim != 2 or page.dtype.kind != "u":
                seen = f"a DAPI picture of {page.dtype} and shape {page.shape}"
                raise CourseError(seen, "one channel of unsigned integers", "copy it again", file=path)
            if max(map(sum, zip(page.dataoffsets, page.databytecounts))) > tiff.filehandle.size:
                raise unreadable(path, "it is cut short: tiles are missing")
            levels = [zarr.open(level.aszarr(), mode="r") for level in pages]
    except CourseError:
        raise
    except Exception as error:
        raise unreadable(path, error) from None
    return levels, path


def read_he(outs: Path):
    """Return the H&E (y, x, 3), its file, and its alignment file; None for what is not there."""
    places = [outs, outs.parent] if outs.name == "outs" else [outs]
    found = sorted(
        {path for place in places for path in place.iterdir()
         if path.suffix.lower() in IMAGE_SUFFIXES and _HE.search(path.name.split(".")[0])}
    )  # fmt: skip
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CourseError(f"{len(found)} H&E pictures ({names})", "one", "move the others away", file=outs)
    if not found:
        return None, None, None
    stem = found[0].name.split(".")[0]
    csv = next((place / f"{stem}alignment.csv" for place in places if (place / f"{stem}alignment.csv").exists()), None)
    if csv is None:
        others = sorted({path for place in places for path in place.glob("*he_imagealignment.csv")})
        csv = others[0] if len(others) == 1 else None
    return read_image(found[0]), found[0], csv

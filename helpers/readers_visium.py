"""Sources: Visium sections as Space Ranger writes them - ``outs/`` with a matrix, ``spatial/`` and a picture near by.

Old and new names, with and without header, h5 or mtx, are told apart by content. ``readers`` and the files named
``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError, note
from helpers.readers_files import IMAGE_SUFFIXES, files_in, image_size, read_image, tidy_counts, unreadable
from helpers.readers_matrix import read_matrix
from helpers.readers_tables import TABLE_SUFFIXES, kind, metadata_of, name_genes, subject_of
from helpers.section import SPOT_PITCH_UM

COLUMN_STEP_UM = SPOT_PITCH_UM["visium"] / 2
ROW_STEP_UM = SPOT_PITCH_UM["visium"] * np.sqrt(3) / 2
"""On the hexagonal array ``array_col`` counts half pitches along a row, ``array_row`` the rows (10x array layout)."""
DIAMETERS_UM = (55.0, 65.0)
"""``spot_diameter_fullres`` stands for the 55 um spot or, in most Space Ranger versions, for 65 um: a check only."""
POSITION_NAMES = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row", "pxl_col"]
_DULL_FOLDERS = {"outs", "spatial", "data", "_data", "tests", ""}


# ---------------------------------------------------------------- discovery
def find(folder, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the Visium sections a folder holds (arguments for ``readers.Ref``) and, in words, what is incomplete."""
    everything = files_in(folder)
    top = Path(folder).expanduser().resolve()
    outs = sorted({path.parent.parent for path in everything if path.parent.name == "spatial"})
    tables = [
        path for path in everything if path.name.lower().endswith(TABLE_SUFFIXES) and path.parent.name != "spatial"
    ]
    genes = {"genes": path for path in tables if kind(path) == "genes"}
    metadata = metadata_of(path for path in tables if kind(path) == "metadata")
    refs, skipped = [], []
    for here in outs:
        spatial, name = here / "spatial", _name(here, top)
        if "binned_outputs" in here.parts or "segmented_outputs" in here.parts:
            continue  # Visium HD: readers_visium_hd
        if (here / "binned_outputs").is_dir() or (here / "segmented_outputs").is_dir():
            continue
        matrix = _matrix(here)
        if matrix is None:
            skipped.append(f"{name}: spatial/ but no filtered_feature_bc_matrix (.h5 file or folder)")
            continue
        if not any((spatial / wanted).exists() for wanted in POSITION_NAMES):
            skipped.append(f"{name}: no {POSITION_NAMES[0]} (or {POSITION_NAMES[1]}) in spatial/")
            continue
        prefix = matrix.name.split("filtered_feature_bc_matrix")[0].rstrip("_")
        name = prefix or name
        subject, labels = metadata.get(name, (subject_of(name), {}))
        files = {"matrix": matrix, "spatial": spatial, **genes}
        refs.append(
            {
                "section_id": name,
                "subject_id": subject,
                "dataset": dataset,
                "labels": labels,
                "files": files,
                "layout": "space ranger",
                "platform": "visium",
            }
        )
    for ref in refs:
        twins = [other for other in refs if other["section_id"] == ref["section_id"]]
        if len(twins) > 1:
            place = "two or more folders"
            raise CourseError(f"section {ref['section_id']} in {place}", "one folder a section", "rename one", file=top)
    return refs, skipped


def _name(outs: Path, top: Path) -> str:
    for here in (outs, *outs.parents):
        if here.name not in _DULL_FOLDERS or here == top:
            return here.name if here.name not in _DULL_FOLDERS else (here.parent.name or here.name)
    return outs.name


def _matrix(outs: Path) -> Path | None:
    files = sorted(outs.glob("*filtered_feature_bc_matrix.h5"))
    folders = [path for path in sorted(outs.glob("*filtered_feature_bc_matrix")) if path.is_dir()]
    return next(iter(files + folders), None)


# ---------------------------------------------------------------- loading
def load(ref) -> dict:
    """Return the arguments of ``section.build`` for one Visium section, with ``extra`` attributes to store."""
    spatial, outs = ref.files["spatial"], ref.files["spatial"].parent
    scales = _scale_factors(spatial)
    positions, path = _positions(spatial)
    counts = read_matrix(ref.files["matrix"])
    counts, table = _join(counts, positions, path, ref)
    name_genes(counts, ref.files.get("genes"))
    mpp, how, mirrored = _mpp(positions, scales, path)
    image, scale, which = _choose_image(outs, spatial, scales, ref.section_id)
    picture = read_image(image)
    counts.obs[["array_row", "array_col"]] = table[["array_row", "array_col"]].to_numpy(int)
    counts.obsm["spatial"] = table[["pxl_col", "pxl_row"]].to_numpy(float) * scale  # x is the column, y the row
    counts = tidy_counts(counts, file=ref.files["matrix"], section_id=ref.section_id)
    return {
        "image": picture,
        "counts": counts,
        "xy_px": counts.obsm["spatial"],
        "mpp": mpp / scale,
        "mpp_source": how if scale == 1 else f"{how}; {which} image, {scale:.4g} of full size",
        "extra": {"image_file": str(image), "image": which, "image_scale": float(scale), "mirrored": mirrored},
    }


def _scale_factors(spatial: Path) -> dict[str, float]:
    path = spatial / "scalefactors_json.json"
    wanted = ("tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        scales = {name: float(found[name]) for name in wanted}
    except FileNotFoundError:
        raise CourseError(
            "no scalefactors_json.json", "it lies in spatial/", "copy the whole spatial folder", file=spatial
        ) from None
    except KeyError as error:
        raise CourseError(
            f"no {error.args[0]}", ", ".join(wanted), "copy the file from Space Ranger again", file=path
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from None
    bad = {name: value for name, value in scales.items() if not np.isfinite(value) or value <= 0}
    if bad:
        name, value = next(iter(bad.items()))
        raise CourseError(
            f"{name} = {value:g}", "a positive number", "copy the file from Space Ranger again", file=path
        )
    hires, lowres = scales["tissue_hires_scalef"], scales["tissue_lowres_scalef"]
    if hires <= lowres or hires > 1:
        raise CourseError(
            f"tissue_hires_scalef {hires:g} and tissue_lowres_scalef {lowres:g}",
            "lowres < hires <= 1",
            "they look swapped or edited; copy the file from Space Ranger again",
            file=path,
        )
    return scales


def _read_positions(path: Path) -> pd.DataFrame:
    """Return positions by barcode, whatever the file's name and whether or not it has a header."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, header=None, dtype=str, encoding="utf-8-sig", skip_blank_lines=True)
    except (OSError, ValueError) as error:  # pandas and pyarrow parsing errors are ValueErrors
        raise unreadable(path, error) from None
    if table.shape[1] != len(_COLUMNS):
        raise CourseError(
            f"{table.shape[1]} columns", f"{len(_COLUMNS)} ({', '.join(_COLUMNS)})", "copy it again", file=path
        )
    if path.suffix != ".parquet" and not str(table.iloc[0, 2]).strip().lstrip("-").isdigit():
        table = table.iloc[1:]  # a header, told by its words and not by the file's name
    table.columns = _COLUMNS
    numbers = table[_COLUMNS[1:]].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any().any():
        line = int(np.flatnonzero(numbers.isna().any(axis=1))[0]) + 1
        raise CourseError(f"no number in row {line}", "numbers in columns 2 to 6", "copy it again", file=path)
    table = numbers.set_index(table["barcode"].astype(str).str.strip())
    if not table.index.is_unique:
        raise CourseError(
            f"barcode {table.index[table.index.duplicated()][0]} twice", "one row a spot", "remove one", file=path
        )
    return table


def _positions(spatial: Path) -> tuple[pd.DataFrame, Path]:
    paths = [spatial / name for name in POSITION_NAMES if (spatial / name).exists()]
    tables = [_read_positions(path) for path in paths]
    for table, path in zip(tables[1:], paths[1:]):
        if not table.sort_index().astype(float).equals(tables[0].sort_index().astype(float)):
            raise CourseError(
                f"{paths[0].name} and {path.name} that differ",
                "one table of positions",
                "keep the one that belongs to this matrix (Space Ranger 2 and later: tissue_positions.csv)",
                file=spatial,
            )
    return tables[0], paths[0]


def _join(counts, positions, path, ref):
    known = counts.obs_names.isin(positions.index)
    if not known.all():
        missing = counts.obs_names[~known]
        raise CourseError(
            f"{known.sum()} of {counts.n_obs} barcodes of the matrix among the {len(positions)} positions "
            f"(missing: {missing[0]}; positions have {positions.index[0]})",
            "every barcode in both files",
            "take matrix and spatial/ from the same run (and check the -1 suffix)",
            file=path,
        )
    table = positions.loc[counts.obs_names]
    off = (table["in_tissue"] == 0).to_numpy()
    if off.any() and not off.all():
        note(f"note: {ref.section_id}: {off.sum()} spots off the tissue dropped")
        counts, table = counts[~off].copy(), table[~off]
    return counts, table


def _mpp(positions, scales, path) -> tuple[float, str, bool]:
    """Return um per full-resolution pixel, where it comes from, and whether the array lies mirrored on the picture.

    Pixel positions are fitted as an affine function of (array_col, array_row); one column is 50 um, one row 86.6 um.
    The spot diameter only checks the result.
    """
    array = positions[["array_col", "array_row"]].to_numpy(float)
    pixels = positions[["pxl_col", "pxl_row"]].to_numpy(float)
    diameter = scales["spot_diameter_fullres"]
    centred = array - array.mean(0)
    if len(array) < 3 or np.linalg.matrix_rank(centred) < 2:
        note("warning: too few spots to measure the array; um/px taken from spot_diameter_fullres = 65 um")
        return (
            DIAMETERS_UM[1] / diameter,
            "spot_diameter_fullres taken as 65 um (too few spots to measure the pitch)",
            False,
        )
    linear = np.linalg.lstsq(centred, pixels - pixels.mean(0), rcond=None)[0]
    steps = np.linalg.norm(linear, axis=1)
    if (steps == 0).any():
        raise CourseError(
            "positions that do not change along the array",
            "pixels that follow rows and columns",
            "copy the positions file again",
            file=path,
        )
    by_column, by_row = COLUMN_STEP_UM / steps[0], ROW_STEP_UM / steps[1]
    if abs(by_column / by_row - 1) > 0.03:
        raise CourseError(
            f"{by_column:.4g} um/px along array columns but {by_row:.4g} along rows",
            "the same within 3 %",
            "check that pxl_row and pxl_col are not swapped or rescaled",
            file=path,
        )
    mpp = float((by_column + by_row) / 2)
    if not DIAMETERS_UM[0] * 0.9 < diameter * mpp < DIAMETERS_UM[1] * 1.1:
        raise CourseError(
            f"a spot diameter of {diameter * mpp:.3g} um (spot_diameter_fullres {diameter:g})",
            "55 to 65 um",
            "positions and scale factors belong to different images; take both from one run",
            file=path,
        )
    return mpp, "100 um array pitch fitted to the positions", bool(np.linalg.det(linear) < 0)


# ---------------------------------------------------------------- which picture
def _choose_image(outs: Path, spatial: Path, scales, section_id) -> tuple[Path, float, str]:
    """Return the best picture, its scale against full resolution and its name: full, else hires, else lowres."""
    previews = []
    for size in ("hires", "lowres"):
        for path in sorted(spatial.glob(f"tissue_{size}_image.*")):
            if _is_blank(path):
                note(f"warning: {section_id}: {path.name} is one flat colour and is not used")
            else:
                previews.append((path, scales[f"tissue_{size}_scalef"], size, image_size(path)))
    if len(previews) == 2:
        _previews_agree(previews, spatial)
    near = outs.parent if outs.name == "outs" else outs
    folders = {outs, near, near / "image", near / "images", outs / "image"}
    for folder in sorted(folders):
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if path.suffix.lower() in IMAGE_SUFFIXES and previews and _same_slide(image_size(path), previews[0]):
                return path, 1.0, "full"
    if not previews:
        full = [
            path
            for folder in sorted(folders)
            if folder.is_dir()
            for path in sorted(folder.glob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if len(full) == 1:
            return full[0], 1.0, "full"
        raise CourseError(
            "no usable image",
            "the full-resolution image beside outs/, or tissue_hires_image.png",
            "copy the image",
            file=spatial,
        )
    path, scale, size, _ = previews[0]
    missing = "the full-resolution image is" if size == "hires" else "the full-resolution and hires images are"
    note(f"warning: {section_id}: {missing} missing or do not fit; {path.name} is used, at {scale:.3g} of full size")
    return path, scale, size


def _is_blank(path: Path) -> bool:
    picture = np.asarray(read_image(path))
    return bool((picture == picture[0, 0]).all())


def _same_slide(size, preview, slack: float = 1.5) -> bool:
    """Say whether a picture of ``size`` (height, width), scaled by the preview's factor, has the preview's size."""
    _, scale, _, small = preview
    return bool((np.abs(np.array(size) * scale - small) <= slack).all())


def _previews_agree(previews, spatial) -> None:
    (_, big, _, size), (_, small, _, size_small) = previews
    ratio = np.array(size) / np.array(size_small)
    if (np.abs(ratio / (big / small) - 1) > 0.02).any():
        raise CourseError(
            f"hires and lowres images whose sizes differ {ratio.max():.3g} times but scale factors "
            f"{big / small:.3g} times",
            "the same ratio",
            "take images and scale factors from one run",
            file=spatial,
        )

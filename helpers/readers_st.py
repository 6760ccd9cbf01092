"""Sources: legacy Spatial Transcriptomics (ST) sections - a text table of counts, a picture, perhaps positions.

Files are told apart by what they hold, never by a list of names: a table whose rows (or columns) are called ``XxY``
holds counts, one with ``x, y, pixel_x, pixel_y`` holds positions. That covers the SpaCell folders (no positions: the
picture is cut to the array's frame), her2st (``*_selection.tsv``), STUtility (``alignment_table_*.tsv``) and a plain
pair of files.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError, note
from helpers.readers_files import IMAGE_SUFFIXES, files_in, paint_blank, read_image, tidy_counts
from helpers.readers_tables import (
    TABLE_SUFFIXES,
    array_xy,
    kind,
    metadata_of,
    name_genes,
    numbers,
    read_counts,
    read_table,
    stem,
    subject_of,
)
from helpers.section import SPOT_PITCH_UM, safe_id

FRAME_UNITS = (32, 34)
"""Array units between the frame's edges, x and y: a picture cut to it is W = 32, H = 34 pitches (contract, 4)."""
AXES_TOLERANCE = 0.02


# ---------------------------------------------------------------- discovery
def find(folder, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the ST sections a folder holds (arguments for ``readers.Ref``) and, in words, what lacks a partner."""
    everything = files_in(folder)
    tables: dict[str, list[Path]] = {}
    for path in everything:
        if path.name.lower().endswith(TABLE_SUFFIXES):
            tables.setdefault(kind(path) or "other", []).append(path)
    images = [
        path for path in everything if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("tissue_")
    ]
    counts, skipped = {}, []
    for path in tables.get("counts", []):
        name = re.sub(r"(_stdata(_aligned_counts_IDs)?|_counts?|_stdata_counts)$", "", stem(path))
        if name in counts:
            skipped.append(f"{name}: two count tables ({counts[name].name} in two places or forms)")
            continue
        try:
            counts[safe_id(name)] = path
        except CourseError as error:
            skipped.append(str(error))
    pictures = _pair_images(list(counts), images)
    positions = {name: _partner(name, tables.get("positions", []), len(counts)) for name in counts}
    metadata = metadata_of(tables.get("metadata", []))
    refs = []
    for name, path in counts.items():
        if name not in pictures:
            skipped.append(f"{name}: counts ({path.name}) but no image")
            continue
        files = {"counts": path, "image": pictures[name]}
        if positions[name]:
            files["positions"] = positions[name]
        if labels := _partner(name, tables.get("labels", []), len(counts)):
            files["labels"] = labels
        if genes := tables.get("genes"):
            files["genes"] = genes[0]
        subject, labels = metadata.get(name, (subject_of(name), {}))
        refs.append(
            {
                "section_id": name,
                "subject_id": subject,
                "dataset": dataset,
                "files": files,
                "labels": labels,
                "layout": "st positions" if positions[name] else "st frame",
                "platform": "st2k" if positions[name] and _staggered(positions[name]) else "st",
            }
        )
    used = set(pictures.values())
    if counts:
        skipped += [
            f"{re.sub('_HE$', '', stem(path))}: an image ({path.name}) but no counts"
            for path in images
            if path not in used
        ]
    return refs, skipped


def _pair_images(names, images) -> dict[str, Path]:
    """Pair section names with pictures: by folder, equal name, the SpaCell rule, and last by an unambiguous prefix."""
    paired: dict[str, Path] = {}
    for name in names:
        shared = "_".join(name.split("_")[:2])  # SpaCell: one picture may show the sections _1 and _2 of one array
        for fits in (
            lambda p: p.parent.name == name,
            lambda p: stem(p) == name,
            lambda p: stem(p) == f"{name}_HE",
            lambda p: stem(p) == f"{shared}_HE",
        ):
            candidates = [path for path in images if fits(path)]
            if len(candidates) == 1:
                paired[name] = candidates[0]
                break
    taken = set(paired.values())
    for name in set(names) - set(paired):
        longer = [other + "_" for other in names if other != name and other.startswith(name + "_")]
        candidates = [
            path
            for path in images
            if path not in taken
            and stem(path).startswith(name + "_")
            and not any(stem(path).startswith(other) for other in longer)
        ]
        if len(candidates) == 1:
            paired[name] = candidates[0]
    if len(names) == 1 and len(images) == 1:
        paired.setdefault(names[0], images[0])
    return paired


def _partner(name, paths, n_sections) -> Path | None:
    for path in paths:
        bare = re.sub(r"^alignment_table_|_(selection|positions?|spots|labeled_coordinates|labels)$", "", stem(path))
        if bare == name:
            return path
    return paths[0] if len(paths) == 1 and n_sections == 1 else None


def _staggered(path) -> bool:
    """Say whether positions belong to the 2k array, whose x and y are both odd or both even, up to 66 x 63."""
    array = numbers(read_table(path), ("x", "y"), path).round()
    return bool(len(array) > 1 and (array.sum(1) % 2 == 0).all() and array.max() > FRAME_UNITS[1] + 1)


# ---------------------------------------------------------------- loading
def load(ref) -> dict:
    """Return the arguments of ``section.build`` for one ST section, with ``extra`` attributes to store."""
    counts = read_counts(ref.files["counts"])
    name_genes(counts, ref.files.get("genes"))
    picture = read_image(ref.files["image"])
    extra = {"image_file": str(ref.files["image"])}
    if ref.layout == "st frame":
        counts.obs[["array_x", "array_y"]] = array_xy(counts.obs_names)
        xy, mpp, source = _from_frame(counts, picture.shape, ref.files["image"])
    else:
        counts, table = _join(counts, ref)
        xy, mpp, source, scale = _from_positions(table, picture.shape, ref)
        if scale != 1:
            picture, extra["masked"] = _without_inset(picture, ref.files["image"])
            extra["image_scale"] = scale
    counts.obsm["spatial"] = xy  # carried along when spots are dropped
    if "labels" in ref.files:
        _add_labels(counts, ref.files["labels"])
    counts = tidy_counts(counts, file=ref.files["counts"], section_id=ref.section_id)
    return {
        "image": picture,
        "counts": counts,
        "xy_px": counts.obsm["spatial"],
        "mpp": mpp,
        "mpp_source": source,
        "extra": extra,
    }


def _from_frame(counts, shape, path):
    """Place spots on a picture cut to the array's frame: x_px = (x - 1) W / 32, y_px = (y - 1) H / 34 (contract, 4)."""
    height, width = shape[:2]
    array = counts.obs[["array_x", "array_y"]].to_numpy()
    limit = np.array(FRAME_UNITS) + 1.0
    if (array < 1).any() or (array > limit).any():
        worst = array[((array < 1) | (array > limit)).any(1)][0]
        raise CourseError(
            f"a spot at array x {worst[0]:g}, y {worst[1]:g} and no table of positions",
            "x 1 to 33, y 1 to 35",
            "put <section>_selection.tsv (x, y, pixel_x, pixel_y) beside it",
            file=path,
        )
    per_unit = np.array([width, height]) / FRAME_UNITS
    mpp = SPOT_PITCH_UM["st"] / per_unit
    _axes_agree(mpp, path, "cut the image to the array's frame, or give a table of positions")
    return (array - 1) * per_unit, float(mpp[0]), "200 um array pitch = image width / 32"


def _axes_agree(mpp, path, fix) -> None:
    if not abs(mpp[1] / mpp[0] - 1) <= AXES_TOLERANCE:  # also refuses NaN
        raise CourseError(f"{mpp[0]:.4g} um/px along x but {mpp[1]:.4g} along y", "the same within 2 %", fix, file=path)


def _join(counts, ref):
    """Join counts and positions on the rounded array coordinates (inner join), keep selected spots, report the rest."""
    path = ref.files["positions"]
    table = read_table(path)
    columns = ["x", "y", "pixel_x", "pixel_y"] + [name for name in ("new_x", "new_y", "selected") if name in table]
    table = pd.DataFrame(numbers(table, columns, path), columns=columns)
    if table.empty:
        raise CourseError("a table without rows", "x, y, pixel_x and pixel_y a spot", "copy it again", file=path)
    table.index = pd.MultiIndex.from_arrays(table[["x", "y"]].round().to_numpy(int).T)
    keys = pd.MultiIndex.from_arrays(array_xy(counts.obs_names).round().astype(int).T)
    for what, index in (("position", table.index), ("spot", keys)):
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            raise CourseError(f"{what} {twice[0]}x{twice[1]} twice", "one row a spot", "remove one", file=path)
    both = keys.isin(table.index)
    if not both.any():
        raise CourseError(
            f"no spot in common (counts: {keys[0]}, positions: {table.index[0]})",
            "the same array coordinates",
            "check that both files belong to one section",
            file=path,
        )
    only_counts, only_table = list(counts.obs_names[~both]), int((~table.index.isin(keys)).sum())
    whole = table
    counts, table = counts[both].copy(), table.loc[keys[both]]
    off = np.zeros(len(table), bool)
    if "selected" in table and (table["selected"] > 0).any():
        off = (table["selected"] <= 0).to_numpy()
        counts, table = counts[~off].copy(), table[~off]
    counts.obs[["array_x", "array_y"]] = table[["x", "y"]].to_numpy()
    counts.uns["join"] = {
        "without_position": np.asarray(only_counts, str),
        "without_counts": only_table,
        "off_tissue": int(off.sum()),
    }
    if only_counts or only_table or off.any():
        note(
            f"note: {ref.section_id}: {len(table)} spots kept; {len(only_counts)} without a position, "
            f"{only_table} positions without counts, {int(off.sum())} not selected as tissue"
        )
    table.attrs["all"] = whole
    return counts, table


def _from_positions(table, shape, ref):
    """Return x, y in pixels of the picture, its um/px, where that comes from, and its reduction (1 = none)."""
    whole, path = table.attrs["all"], ref.files["positions"]
    xy = table[["pixel_x", "pixel_y"]].to_numpy(float)
    axes = ("new_x", "new_y") if {"new_x", "new_y"} <= set(whole) else ("x", "y")
    if min(whole[axis].nunique() for axis in axes) < 2:
        raise CourseError(
            "positions in a single row or column",
            "at least two rows and two columns",
            "give the whole table of positions",
            file=path,
        )
    per_unit = np.abs([np.polyfit(whole[axis], whole[f"pixel_{axis[-1]}"], 1)[0] for axis in axes])
    if ref.platform == "st2k":
        mpp = SPOT_PITCH_UM["st2k"] / float(np.hypot(*per_unit))  # a neighbour lies one step off on each axis
        how = (
            f"assumed 141.42 um between neighbours of the 2k array; its steps measure {per_unit[0]:.4g} px along x "
            f"and {per_unit[1]:.4g} along y, so the scale is uncertain by about 5 %"
        )
    else:
        both = SPOT_PITCH_UM["st"] / per_unit
        _axes_agree(both, path, "check pixel_x and pixel_y (swapped?) against the image")
        mpp, how = float(both.mean()), "200 um array pitch, fitted to pixel_x and pixel_y"
    height, width = shape[:2]
    fits = np.array([width, height]) / (per_unit * FRAME_UNITS)
    outside = (xy > [width, height]).any()
    if not (outside and ref.platform == "st" and fits.max() < 1 and abs(fits[1] / fits[0] - 1) < AXES_TOLERANCE):
        return xy, float(mpp), how, 1
    scale = width / round(per_unit[0] * FRAME_UNITS[0])  # the positions refer to a larger picture cut to the frame
    note(f"warning: {ref.section_id}: the image is reduced to {scale:.3g} of the one the positions refer to")
    return xy * scale, float(mpp / scale), f"{how}; image reduced to {scale:.4g} of its full size", float(scale)


def _without_inset(picture, path):
    """Paint a cut-out display picture white around the tissue, and the inset her2st puts in its top right corner."""
    picture = np.asarray(picture)  # a lazy one is loaded: reduced pictures are small
    share = paint_blank(picture)
    if not share:
        return picture, "nothing"
    if Path(path).name.endswith("_HE_image_dark.png"):  # her2st's web pictures, 2000 px wide (contract, 4)
        picture[:540, -530:] = 255
    return picture, f"black surroundings ({share:.0%}) and a 530 x 540 px inset painted white"


def _add_labels(counts, path) -> None:
    """Join a pathologist's labels on the rounded array coordinates; spots without one get a missing value."""
    table = read_table(path)
    keys = [tuple(pair) for pair in numbers(table, ("x", "y"), path).round().astype(int)]
    known = dict(zip(keys, table["label"]))
    here = [tuple(pair) for pair in counts.obs[["array_x", "array_y"]].round().to_numpy(int)]
    counts.obs["label"] = pd.Categorical([known.get(pair) for pair in here])

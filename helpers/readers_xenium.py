"""Sources: Xenium sections - an ``outs/`` folder of the instrument, and the H&E taken of the slide afterwards.

What a folder holds is told by its files and their content, not by a version: onboard analysis 1 to 4 and "R&D" builds
have other names, ids and columns (``readers_xenium_files``). The H&E lies in a frame of its own until it is registered:

* without an alignment the section is *raw*: cells, nuclei, transcripts and DAPI in the system ``"um"`` (the
  instrument's), ``images["he"]`` in ``"pixel"`` alone, ``obsm["spatial_um"]`` but no ``obsm["spatial"]``,
  ``attrs["registered"]`` False;
* with one (a ``*_he_imagealignment.csv`` beside the H&E, or ``alignment=``) it is the section of the contract: cells on
  the H&E in pixels. ``helpers.section_align.align`` does the same to a raw section once a transform has been found.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import section_align, section_cells
from helpers.messages import CourseError, note
from helpers.readers_files import files_in, folder_of, tidy_counts
from helpers.readers_tables import TABLE_SUFFIXES, kind, metadata_of, name_genes, subject_of
from helpers.readers_xenium_crop import find_crops, load_crop
from helpers.readers_xenium_files import (
    CELL_NAMES,
    cell_table,
    experiment,
    gene_counts,
    open_dapi,
    outlines,
    physical_size,
    read_he,
    transcripts,
)

QV = 20.0
"""Transcripts below this quality are left out, as the instrument does for its own matrix."""
_DULL_FOLDERS = {"outs", "data", "_data", ""}


# ---------------------------------------------------------------- discovery
def find(folder, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the Xenium sections a folder holds (arguments for ``readers.Ref``) and, in words, what is incomplete."""
    everything = files_in(folder)
    top = Path(folder).expanduser().resolve()
    tables = [path for path in everything if path.name.lower().endswith(TABLE_SUFFIXES) and "outs" not in path.parts]
    metadata = metadata_of(path for path in tables if path.name not in CELL_NAMES and kind(path) == "metadata")
    reference = next((path for path in everything if path.name == "reference.h5ad"), None)
    refs, skipped = [], []
    for here in sorted({path.parent for path in everything if path.name in (*CELL_NAMES, "experiment.xenium")}):
        name, present = _name(here, top), {path.name for path in here.iterdir()}
        matrix = next((here / n for n in ("cell_feature_matrix.h5", "cell_feature_matrix") if n in present), None)
        cells = next((here / n for n in CELL_NAMES if n in present), None)
        if matrix is None or cells is None:
            missing = "cell_feature_matrix (.h5 file or folder)" if matrix is None else f"{CELL_NAMES[0]} (or .csv.gz)"
            skipped.append(f"{name}: a Xenium folder without {missing}")
            continue
        files = {"matrix": matrix, "cells": cells, "outs": here}
        if reference is not None:
            files["reference"] = reference
        subject, labels = metadata.get(name, (subject_of(name), {}))
        refs.append({
            "section_id": name, "subject_id": subject, "dataset": dataset, "labels": labels, "files": files,
            "layout": "xenium outs", "platform": "xenium",
        })  # fmt: skip
    crops, unfinished = find_crops(everything, dataset=dataset)
    for ref in refs + crops:
        twins = [other for other in refs + crops if other["section_id"] == ref["section_id"]]
        if len(twins) > 1:
            place = "two or more folders"
            raise CourseError(f"section {ref['section_id']} in {place}", "one folder a section", "rename one", file=top)
    return refs + crops, skipped + unfinished


def _name(outs: Path, top: Path) -> str:
    for here in (outs, *outs.parents):
        if here.name not in _DULL_FOLDERS or here == top:
            return here.name if here.name not in _DULL_FOLDERS else (here.parent.name or here.name)
    return outs.name


# ---------------------------------------------------------------- reading
def read_ref(ref, *, alignment=None, qv: float = QV, mpp: float | None = None):
    """Read a section found by :func:`find` (``readers.read`` comes here); options as in :func:`read`.

    ``mpp`` is also what a published crop needs (:func:`load_crop`). 0 is None, as a notebook's parameter says it.
    """
    mpp = mpp or None
    if ref.layout == "xenium crop":
        return load_crop(ref, mpp=mpp)
    built = read(
        ref.files["outs"], alignment=alignment, qv=qv, dataset=ref.dataset, section_id=ref.section_id,
        subject_id=ref.subject_id, labels=ref.labels, mpp=mpp,
    )  # fmt: skip
    if "reference" in ref.files:
        built.attrs["reference_file"] = str(ref.files["reference"])
    return built


def read(
    folder, *, alignment=None, qv: float = QV, dataset="xenium", section_id=None, subject_id=None, labels=None, mpp=None
):
    """Read one Xenium folder.

    Parameters
    ----------
    folder
        The instrument's ``outs/``. The H&E is looked for there and in the folder above.
    alignment
        None: a ``*_he_imagealignment.csv`` is used if there is one, else the section stays raw. False: stays raw. A
        path to such a file, or an affine float (3, 3) or (2, 3) from the instrument's um to H&E pixels: used.
    qv
        Least quality of a transcript. The matrix is the instrument's own and stays as it is.
    dataset, section_id, subject_id, labels
        Names to store; by default after the folder. ``labels`` become columns of ``obs``.
    mpp
        Microns per pixel of the H&E where no file says it; a file that says otherwise (by 2 %) is believed, and the
        call refused.

    Returns
    -------
    spatialdata.SpatialData
        Raw or aligned, as this file's first page says. ``images["he"]`` and ``images["dapi"]`` (pyramid, as stored),
        ``shapes["cells"]``, ``shapes["nuclei"]`` (column ``cell``: index of its cell), ``points["transcripts"]``
        (``x``, ``y``, ``z_um``, ``feature_name``, ``qv``, ``cell_id``; lazy), ``tables["counts"]`` (genes only; ``obs``
        has the instrument's areas and control counts; ``uns["controls"]`` lists what was taken out with its counts).
        What is absent is said on stderr and in ``attrs["absent"]``.

    Raises
    ------
    CourseError
        No matrix or cell table, ids that do not match, a damaged file, pixel sizes that contradict each other, cells
        that lie outside the DAPI picture, a quality that leaves no transcript, an alignment that is none.
    """
    outs = folder_of(folder)
    facts = experiment(outs)
    name = section_id or _name(outs, outs)
    table, cells_file = cell_table(outs)
    counts, controls = gene_counts(outs)
    counts, table = _join(counts, table, cells_file, name)
    name_genes(counts)
    counts.uns["controls"] = controls
    counts.obsm["spatial_um"] = table[["x_centroid", "y_centroid"]].to_numpy(float)
    drop = {"cell_id", "x_centroid", "y_centroid"}
    for column in (column for column in table if column not in drop):
        counts.obs[column] = table[column].to_numpy()
    for column, value in (labels or {}).items():
        counts.obs[column] = value
    counts = tidy_counts(counts, file=outs, section_id=name)

    dapi, dapi_file, dapi_um = _dapi(outs, facts, name)
    counts, outside = _on_dapi(counts, dapi, dapi_um, dapi_file, name)
    shapes, how = outlines(outs, counts, section_id=name)
    points = transcripts(outs, qv=qv)
    he, he_file, csv = read_he(outs)
    mpp, mpp_source = (None, "no H&E") if he_file is None else _he_size(he_file, mpp)
    absent = [word for word, part in (("dapi", dapi), ("he", he), ("transcripts", points),
                                      ("nuclei", shapes.get("nuclei"))) if part is None]  # fmt: skip
    if absent:
        note(f"note: {name}: not in the folder: {', '.join(absent)}")
    raw = section_cells.build_cells(
        counts=counts, xy_um=counts.obsm["spatial_um"], section_id=name, subject_id=subject_id or subject_of(name),
        dataset=dataset, source=outs, image=he, mpp=mpp, mpp_source=mpp_source, dapi=dapi, dapi_um_px=dapi_um,
        transcripts=points, **shapes,
        extra={
            "layout": "xenium outs", "software": facts.get("analysis_sw_version", "not stated"), "absent": absent,
            "outside_dapi": outside, "outlines": how, "qv": float(qv), "dapi_file": str(dapi_file or ""),
            **({} if he_file is None else {"image_file": str(he_file)}),
        },
    )  # fmt: skip
    return _align(raw, alignment, csv, dapi_um or facts.get("pixel_size"))


def _align(raw, alignment, csv, dapi_um):
    """Return the section aligned, if there is a transform and it is wanted."""
    if alignment is False or (alignment is None and csv is None):
        return raw
    if "he" not in raw.images:
        if alignment is None:
            return raw
        raise CourseError("an alignment but no H&E", "the H&E beside outs/", "copy it there", file=raw.attrs["source"])
    if alignment is None or isinstance(alignment, (str, Path)):
        file = csv if alignment is None else Path(alignment)
        if dapi_um is None:
            fix = "copy experiment.xenium"
            raise CourseError("an alignment in DAPI pixels of unknown size", "pixel_size", fix, file=file)
        matrix, source = section_align.read_alignment(file, dapi_um_px=dapi_um), Path(file).name
    else:
        matrix, source = alignment, "given by the caller"
    return section_align.align(raw, matrix, source=source)


def _join(counts, table, file, name):
    """Return matrix and cell table in the same order, or refuse ids that do not match."""
    ids = table["cell_id"].astype(str)
    if ids.duplicated().any():
        raise CourseError(f"cell {ids[ids.duplicated()].iloc[0]} twice", "one row a cell", "copy it again", file=file)
    table = table.set_index(ids.to_numpy())
    known = counts.obs_names.isin(table.index)
    if not known.all():
        raise CourseError(
            f"{known.sum()} of {counts.n_obs} cells of the matrix in the table of {len(table)} cells (the matrix has "
            f"{counts.obs_names[~known][0]}, the table {table.index[0]})",
            "every cell in both files",
            "take matrix and cells from the same run",
            file=file,
        )
    if len(table) > counts.n_obs:
        note(f"note: {name}: {len(table) - counts.n_obs} cells of the table have no row in the matrix and are left out")
    return counts, table.loc[counts.obs_names]


def _dapi(outs, facts, name):
    """Return levels, file and um per pixel of the DAPI picture; two sources of the pixel size must agree within 2 %."""
    levels, file = open_dapi(outs)
    if levels is None:
        return None, None, None
    stated, written = facts.get("pixel_size"), physical_size(file)[0]
    if stated and written and abs(written / stated - 1) > 0.02:
        raise CourseError(
            f"{written:.4g} um per pixel in {file.name} but {stated:.4g} in experiment.xenium",
            "the same pixel size",
            "take picture and experiment.xenium from the same run, or use the full-resolution picture",
            file=file,
        )
    if not (stated or written):
        raise CourseError(
            "a DAPI picture without a pixel size",
            "pixel_size in experiment.xenium, or PhysicalSizeX in the OME-TIFF",
            "copy experiment.xenium into the folder",
            file=file,
        )
    if not stated:
        note(f"note: {name}: no pixel_size in experiment.xenium; {written:.4g} um per pixel from the OME-TIFF")
    return levels, file, float(stated or written)


def _he_size(file, given):
    """Return um per pixel of the H&E and who says so: its file, else the caller; both must agree within 2 %."""
    stated, source = physical_size(file)
    if given and stated and abs(given / stated - 1) > 0.02:
        seen = f"{given:.4g} um per pixel given, {stated:.4g} in {file.name}"
        raise CourseError(seen, "the file's own, or none given", "leave mpp (MPP) at 0", file=file)
    return (stated, source) if stated or not given else (float(given), "given by the caller")


def unmet(sections: dict, *, test=()) -> dict[str, str]:
    """Return, for each thing that can be done with a Xenium section, why it cannot be done with these; "" if it can.

    Parameters
    ----------
    sections
        Section id to section, raw or aligned.
    test
        Ids of the sections held out.

    Returns
    -------
    dict
        ``registration``, ``cells on the H&E``, ``nuclei and types on the H&E``.
    """
    every = list(sections.values())
    shown = "" if all("he" in one.images for one in every) else "no H&E"
    if not shown and not all(one.attrs["mpp"] for one in every):
        shown = "no file states the microns per pixel of the H&E; set MPP if you know them"
    dapi = shown or ("" if all("dapi" in one.images for one in every) else "no DAPI picture")
    if not dapi and all(one.attrs["registered"] for one in every):
        dapi = "registered already, by the file beside the H&E"
    outlines = shown or ("" if all({"cells", "nuclei"} <= set(one.shapes) for one in every) else "no nucleus outlines")
    alone = outlines or ("" if len(test) else "no section of another patient to test on")
    return {"registration": dapi, "cells on the H&E": shown, "nuclei and types on the H&E": alone}


def _on_dapi(counts, dapi, um_px, file, name):
    """Return the cells whose centre lies on the DAPI picture, and the names of the others; refuse if they are many."""
    if dapi is None:
        return counts, []
    rows, columns = dapi[0].shape
    at = counts.obsm["spatial_um"] / um_px
    inside = (at >= 0).all(1) & (at[:, 0] < columns) & (at[:, 1] < rows)
    outside = [str(cell) for cell in counts.obs_names[~inside]]
    if len(outside) > 0.1 * counts.n_obs:
        raise CourseError(
            f"{len(outside)} of {counts.n_obs} cells outside the DAPI picture, {columns} x {rows} px at {um_px:.4g} um",
            "cells that lie on it",
            "x and y are microns, x the column; check the pixel size and that cells and picture are of one run",
            file=file,
        )
    if outside:
        note(f"note: {name}: {len(outside)} cells outside the DAPI picture left out")
        counts = counts[np.flatnonzero(inside)].copy()
    return counts, outside

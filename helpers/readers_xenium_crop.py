"""Sources: crops of registered Xenium sections as published with DeepSpot - an h5ad and a picture of the same name.

``obs`` holds ``x_pixel`` and ``y_pixel``, and in these files ``x_pixel`` is the image **row**, ``y_pixel`` the
**column** (seen on the published lung crop: only so do the cells lie on tissue). No file states the microns per pixel.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from helpers import section_cells
from helpers.messages import CourseError, note
from helpers.readers_files import IMAGE_SUFFIXES, read_image, tidy_counts, unreadable
from helpers.readers_tables import subject_of
from helpers.section_checks import check_mpp

_COLUMNS = ("x_pixel", "y_pixel")


def find_crops(everything, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the crops among the files of a folder (arguments for ``readers.Ref``), and what is incomplete."""
    pictures = {path.stem: path for path in everything if path.suffix.lower() in IMAGE_SUFFIXES}
    cards = {path.stem: path for path in everything if path.suffix == ".json"}
    refs, skipped = [], []
    for path in everything:
        if path.suffix != ".h5ad" or not _has_pixels(path):
            continue
        if path.stem not in pictures:
            skipped.append(f"{path.stem}: an h5ad with x_pixel and y_pixel but no picture {path.stem}.jpg")
            continue
        files = {"counts": path, "image": pictures[path.stem]}
        if path.stem in cards:
            files["card"] = cards[path.stem]
        refs.append({
            "section_id": path.stem, "subject_id": subject_of(path.stem), "dataset": dataset, "labels": {},
            "files": files, "layout": "xenium crop", "platform": "xenium",
        })  # fmt: skip
    return refs, skipped


def _has_pixels(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            return "obs" in h5 and all(column in h5["obs"] for column in _COLUMNS)
    except OSError:
        return False


def load_crop(ref, *, mpp: float | None = None):
    """Read a crop: cells on the H&E, in pixels.

    Parameters
    ----------
    ref
        From :func:`find_crops` through ``readers.discover``.
    mpp
        Microns per pixel of the picture, where you know it; None: a key ``mpp`` of the crop's json, if someone wrote it
        there, else unknown. It is not guessed.

    Returns
    -------
    spatialdata.SpatialData
        The section of the contract if ``mpp`` is known. Otherwise ``attrs["mpp"]`` is None and there is only the system
        ``"pixel"``: enough for counts, labels and pictures of cells, not for anything that measures in microns.

    Raises
    ------
    CourseError
        A damaged file, cells without a position, or cells that do not lie on the picture either way round.
    """
    import anndata as ad

    path = ref.files["counts"]
    try:
        counts = ad.read_h5ad(path)
    except Exception as error:  # h5py and anndata each have their own kinds
        raise unreadable(path, error) from None
    column, row = (counts.obs[name].to_numpy(float) for name in _COLUMNS[::-1])
    if not (np.isfinite(column).all() and np.isfinite(row).all()):
        raise CourseError("cells without a position", "x_pixel and y_pixel for every cell", "drop them", file=path)
    picture = read_image(ref.files["image"])
    rows, columns = picture.shape[:2]
    outside = (column < 0) | (row < 0) | (column >= columns) | (row >= rows)
    if outside.any():
        raise CourseError(
            f"{outside.sum()} of {len(row)} cells outside the picture of {columns} x {rows} px",
            "x_pixel the row and y_pixel the column, both of this picture",
            "take h5ad and picture from one place",
            file=path,
        )
    if mpp is None and "card" in ref.files:
        try:
            mpp = json.loads(ref.files["card"].read_text(encoding="utf-8-sig")).get("mpp")
        except (OSError, ValueError, AttributeError) as error:
            raise unreadable(ref.files["card"], error) from None
    counts.obs = counts.obs.drop(columns=list(_COLUMNS))
    counts.obsm["spatial"] = np.c_[column, row]
    counts = tidy_counts(counts, file=path, section_id=ref.section_id)
    if mpp is None:
        note(f"note: {ref.section_id}: no file states microns per pixel; lengths in microns are not available")
    else:
        check_mpp(mpp, file=ref.files.get("card", path))
    return section_cells.build_registered(
        counts=counts, image=picture, mpp=mpp, mpp_source="not stated" if mpp is None else "stated for the crop",
        section_id=ref.section_id, subject_id=ref.subject_id, dataset=ref.dataset, source=path,
        extra={"layout": ref.layout, "image_file": str(ref.files["image"])},
    )  # fmt: skip

"""Front office: a finished store of one slide, in the formats of other programs, beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

ENDINGS = {"h5ad": (".tiles.h5ad",), "qupath": (".tiles.geojson",), "r": (".tiles.csv",),
           "vitessce": (".tiles.zarr", ".vitessce.json")}  # fmt: skip
"""h5ad: CELLxGENE, TissUUmaps, scanpy; qupath: squares with measurements; r: a folder of CSV files. None of these names
is one that another program would give to a file of its own beside the slide."""
SHOWN = 20
"""Most variable genes that a square carries into QuPath: all of them would make it unusable."""


def write(store: Path, slide, formats) -> list[Path]:
    """Write what is asked for; each file appears whole, and replaces one that was there.

    Parameters
    ----------
    store
        From ``wsi.stream``: ``NAME.zarr``. The files get the same name.
    slide
        The slide, open.
    formats
        Of :data:`ENDINGS`.

    Raises
    ------
    CourseError
        A store that is damaged; one whose tiles are all glass; no room.
    """
    import zarr

    from helpers import export_handover, wsi

    table = wsi.table(store)
    if not table.n_obs:
        raise CourseError("no tile darker than glass: nothing to hand over", "tissue", "look at the slide", file=store)
    facts = table.uns["slide"]
    group = zarr.open_group(store, mode="r")
    picture, scale = group["thumbnail"][:], group.attrs["thumbnail_scale"]
    side = float(facts["side_px"])
    ready = export_handover.for_viewers(table, library_id=slide.name, picture=picture, scale=scale, mpp=slide.mpp,
                                        spot_diameter_px=side)  # fmt: skip
    spread = np.asarray(table.X).var(0)
    chosen = [str(table.var_names[k]) for k in np.sort(np.argsort(-spread, kind="stable")[:SHOWN])]
    of_ome = slide.path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    files = paths(store, formats)
    view = {} if "vitessce" not in formats else export_handover.vitessce(
        ready, name=slide.name, url=files[f"{slide.name}.tiles.zarr"].name, spot_radius_px=side / 2,
        image_url=slide.path.name if of_ome else None, description=facts.get("units", ""),
        image_mpp=slide.mpp if slide.mpp_source.startswith("OME") else None,
    )  # fmt: skip
    writers = {
        ".tiles.h5ad": export_handover.h5ad_writer(ready),
        ".tiles.csv": export_handover.csv_writer(table, mpp=slide.mpp),
        ".tiles.geojson": export_handover.tiles_writer(table, side_px=side, genes=chosen),
        ".tiles.zarr": export_handover.anndata_zarr_writer(ready),
        ".vitessce.json": export_handover.json_writer(view),
    }  # fmt: skip
    for name, path in files.items():
        _placed(path, writers[name[len(slide.name) :]])
    return list(files.values())


def paths(store: Path, formats) -> dict[str, Path]:
    """Return name -> path of the files that belong to a store."""
    stem = store.name[: -len(".zarr")]
    return {stem + ending: store.with_name(stem + ending) for each in formats for ending in ENDINGS[each]}


def remove(store: Path) -> None:
    """Remove all that was handed over from an older store of this name."""
    for path in paths(store, ENDINGS).values():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _placed(path, write) -> None:
    """Write under another name, and move it into place."""
    draft, old = (path.with_name(f".{word}-{path.name}") for word in ("draft", "old"))
    for rest in (draft, old):
        _gone(rest)
    try:
        write(draft)
        if path.is_dir():
            os.replace(path, old)
        os.replace(draft, path)
    except OSError as problem:
        seen, fix = problem.strerror or str(problem), "free some disk, then run again"
        raise CourseError(seen, "room and rights to write", fix, file=path) from problem
    finally:
        for rest in (draft, old):
            _gone(rest)


def _gone(path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

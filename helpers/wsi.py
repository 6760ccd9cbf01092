"""Methods: whole-slide images without spots, read by region: tissue, tiles by microns, embeddings and predictions.

The room's door. ``wsi_open`` reads slides, ``wsi_mpp`` judges their pixel size, ``wsi_plan`` chooses and cuts tiles,
``wsi_store`` keeps what is found, ``wsi_synthetic`` draws slides of any size. Encoder, model and tissue mask are passed
in as functions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import wsi_store
from helpers.messages import CourseError
from helpers.section_grid import WHITE
from helpers.wsi_open import Slide, from_array, name_of, open_slide
from helpers.wsi_plan import Plan, cut, plan, thumbnail

__all__ = ["Plan", "Slide", "cut", "from_array", "name_of", "open_slide", "plan", "stream", "summary", "table",
           "thumbnail"]  # fmt: skip

CHUNK = 256


def stream(
    slide, path, *, encode, tile_um: float, out_px: int, predict=None, pitch_um: float | None = None, tissue=None,
    min_tissue: float = 0.5, level: int = 0, chunk: int = CHUNK, zarr_format: int = 3, facts: dict | None = None,
    fresh: bool = False, told=None, quality=None,
) -> Path:  # fmt: skip
    """Look at every tile of a slide's tissue and write what is found to a zarr store; go on where a run was stopped.

    Memory holds one chunk of tiles and one block of the slide. A store that is whole and of the same slide, options and
    ``facts`` is left alone. A run that goes on gives the same bytes as one that was never stopped, if the functions do.

    Parameters
    ----------
    slide
        From :func:`open_slide` or :func:`from_array`.
    path
        The store, a folder; ``path.part`` until it is whole.
    encode
        uint8 (m, out_px, out_px, 3) -> float (m, d).
    predict
        float32 (m, d) -> {name: float (m, g)}, kept beside the embeddings; None: embeddings alone.
    tile_um, pitch_um, tissue, min_tissue
        As for :func:`plan`.
    out_px, level
        As for :func:`cut`.
    chunk
        Tiles that are read, encoded and written together; what a killed run loses at most.
    zarr_format
        3, or 2 for older readers.
    facts
        What else decides the result, as JSON can hold it: encoder, model, genes, mask. Another value: another run.
    fresh
        Start again, whatever is there.
    told
        Called with (tiles done, tiles in all) after every chunk.
    quality
        Function (slide, (thumbnail, its scale)) -> {name: number}, kept in the attributes; decides nothing.

    Returns
    -------
    pathlib.Path
        ``path``. Arrays, one row a tile: ``embeddings`` (n, d), those of ``predict``, ``brightness`` (n,), ``tissue``
        (n,), float32; ``xy_px`` and ``xy_um`` (n, 2) float64, x and y of the centres; ``grid`` (n, 2), row and column;
        ``thumbnail`` (y, x, 3) uint8; ``check``. Attributes: ``facts``, ``tiles``, ``side_px``, ``thumbnail_scale``,
        ``quality``, ``complete``.

    Raises
    ------
    CourseError
        As :func:`plan`; a store of another run, or damaged; another run at work; a slide that cannot be decoded
        somewhere; no room.
    """
    path = Path(path)
    if zarr_format not in (2, 3) or chunk < 1 or out_px < 1 or not 0 <= level < len(slide.levels):
        seen = f"zarr_format={zarr_format}, chunk={chunk}, out_px={out_px}, level={level}"
        raise CourseError(seen, f"2 or 3; 1 or more; level 0 to {len(slide.levels) - 1}", "correct it",
                          file=slide.path)  # fmt: skip
    if not np.isfinite([tile_um, pitch_um or tile_um, min_tissue]).all():
        seen = f"tile_um={tile_um}, pitch_um={pitch_um}, min_tissue={min_tissue}"
        raise CourseError(seen, "finite numbers", "correct it", file=slide.path)
    decides = wsi_store.wanted({
        "slide": slide.name, "print": slide.print, "shape": list(slide.shape), "mpp": slide.mpp,
        "mpp_source": slide.mpp_source, "tile_um": float(tile_um), "pitch_um": float(pitch_um or tile_um),
        "min_tissue": float(min_tissue), "out_px": int(out_px), "level": int(level), "chunk": int(chunk),
        "zarr_format": int(zarr_format), "masked": tissue is not None, **(facts or {}),
    })  # fmt: skip
    with wsi_store.lock(path):
        if path.exists() and not fresh:
            other = wsi_store.differing(path, decides)
            if other:
                raise _foreign(path, other)
            wsi_store.verify(path)
            return path
        if path.exists():
            wsi_store.facts_of(path)  # something else of that name is not ours to replace
        part = wsi_store.part_of(path)
        goes_on = part.exists() and not fresh
        if goes_on:
            other = wsi_store.differing(part, decides)
            if other:
                raise _foreign(part, other)
            goes_on = wsi_store.sound(path)
        if not goes_on:
            picture = thumbnail(slide)
            chosen = plan(slide, tile_um=tile_um, pitch_um=pitch_um, tissue=tissue, min_tissue=min_tissue,
                          picture=picture)  # fmt: skip
            try:
                wsi_store.create(path, decides, chosen, picture, mpp=slide.mpp, chunk=chunk, zarr_format=zarr_format,
                                 quality=None if quality is None else quality(slide, picture))  # fmt: skip
            except OSError as problem:
                raise CourseError(problem.strerror or str(problem), "room and rights to write", "choose another folder",
                                  file=path) from problem  # fmt: skip
        store = wsi_store.Growing(path)
        chosen, missing = store.plan(), store.missing()
        done = store.tiles - sum(len(range(store.tiles)[store.rows(number)]) for number in missing)
        for number in missing:
            which = np.arange(store.tiles)[store.rows(number)]
            tiles, brightness = cut(slide, chosen, which, out_px=out_px, level=level)
            embeddings = np.asarray(encode(tiles), np.float32)
            found = {} if predict is None else {k: np.asarray(v, np.float32) for k, v in predict(embeddings).items()}
            store.put(number, {"brightness": brightness, "embeddings": embeddings, **found})
            done += len(which)
            if told is not None:
                told(done, store.tiles)
        return store.finish()


def _foreign(path, names) -> CourseError:
    seen = f"a store of another run (different: {', '.join(names)})"
    fix = "choose another folder, or start again with fresh=True (--fresh)"
    return CourseError(seen, "the same slide, model and options", fix, file=path)


def summary(path, *, white: float = WHITE) -> dict:
    """Return a finished store in a few numbers; a chunk of it is in memory at a time.

    Parameters
    ----------
    white
        As for :func:`table`.

    Returns
    -------
    dict
        ``tiles`` that are no glass; where there are any, ``darkness`` (their mean optical density, natural log, against
        255) and ``predicted`` (mean of ``mean``, if there is one); and what :func:`stream`'s ``quality`` found.
    """
    import zarr

    attributes, group = wsi_store.facts_of(path), zarr.open_group(Path(path), mode="r")
    brightness = group["brightness"][:]
    kept, step = brightness <= white, int(attributes["chunk"])
    found = {"tiles": int(kept.sum())}
    if kept.any():
        found["darkness"] = float(-np.log((brightness[kept].mean() + 1) / 256))
    if kept.any() and "mean" in group:
        parts = (slice(start, start + step) for start in range(0, len(kept), step))
        total = sum(float(group["mean"][part][kept[part]].sum(dtype=float)) for part in parts)
        found["predicted"] = total / (kept.sum() * group["mean"].shape[1])
    return found | dict(attributes["quality"])


def table(path, *, name: str | None = None, genes=None, white: float = WHITE):
    """Return a finished store as an AnnData, one row a tile.

    Parameters
    ----------
    name
        Array that becomes ``X``; None: ``"mean"`` if there is one, else the embeddings.
    genes
        Names of its columns; default: ``facts["genes"]`` where their number fits, else numbers.
    white
        Tiles brighter than this are glass: left out, as ``section_grid.on_grid`` does. 255 keeps all.

    Returns
    -------
    AnnData
        ``layers`` the other arrays of the same width, ``obsm["embeddings"]``, ``obsm["spatial"]`` x, y in pixels of
        level 0; ``obs``: ``x_um``, ``y_um``, ``grid_row``, ``grid_column``, ``tissue``, ``brightness``;
        ``uns["slide"]`` facts, and ``side_px``, the tile's side in pixels of level 0.

    Raises
    ------
    CourseError
        A store that is missing, not whole, damaged, or without that array; another number of names.
    """
    import anndata as ad
    import pandas as pd
    import zarr

    path = Path(path)
    attributes = wsi_store.verify(path)
    facts = attributes["facts"] | {"side_px": attributes["side_px"]}
    group = zarr.open_group(path, mode="r")
    wide = [key for key in sorted(group.array_keys()) if key != "brightness" and key not in wsi_store.GIVEN]
    name = name or ("mean" if "mean" in wide else "embeddings")
    if name not in wide:
        raise CourseError(f"no array {name!r}", f"one of {', '.join(wide)}", "choose one", file=path)
    brightness = group["brightness"][:]
    kept = np.flatnonzero(brightness <= white)
    values = group[name][:][kept]
    names = facts.get("genes") if genes is None else list(genes)
    if genes is not None and len(names) != values.shape[1]:
        raise CourseError(f"{len(names)} names for {values.shape[1]} columns of {name!r}", "one each",
                          "pass the genes of the model", file=path)  # fmt: skip
    if names is None or len(names) != values.shape[1]:
        names = [f"{name}_{k}" for k in range(values.shape[1])]
    grid, xy_um = group["grid"][:][kept], group["xy_um"][:][kept]
    obs = pd.DataFrame(
        {"x_um": xy_um[:, 0], "y_um": xy_um[:, 1], "grid_row": grid[:, 0], "grid_column": grid[:, 1],
         "tissue": group["tissue"][:][kept], "brightness": brightness[kept]},
        index=[f"{row}x{column}" for row, column in grid],
    )  # fmt: skip
    out = ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[str(each) for each in names]))
    for other in wide:
        if other != name:
            place = out.layers if group[other].shape[1] == values.shape[1] and other != "embeddings" else out.obsm
            place[other] = group[other][:][kept]
    out.obsm["spatial"] = group["xy_px"][:][kept]
    out.uns["slide"] = {key: value for key, value in facts.items() if isinstance(value, (str, int, float))}
    return out

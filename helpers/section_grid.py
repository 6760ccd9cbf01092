"""Customs: a slide without spots. Its tissue is covered by a regular grid, so that what runs on spots runs on it."""

from __future__ import annotations

import numpy as np

from helpers import section as sec
from helpers.messages import CourseError

PLATFORM = "grid"
WHITE = 200.0
"""A tile whose mean over pixels and channels is above this is glass: dropped (STimage on slides without spots)."""
MIN_TISSUE = 0.5
"""Least share of a tile that the tissue mask, if one is given, must cover."""


def on_grid(
    slide, *, pitch_um: float, tile_um: float | None = None, mask=None, min_tissue: float = MIN_TISSUE,
    white: float = WHITE, mpp: float | None = None, section_id: str | None = None, subject_id: str | None = None,
    source: str = "given as an array",
):  # fmt: skip
    """Return a section of the same slide whose spots are the tiles of a regular square grid over the tissue.

    Nothing was measured there, so ``tables["counts"]`` has the spots (``obs``, ``obsm["spatial"]``) and **no genes**:
    an invented count would be taken for data. ``tiles.iterate``, ``encoders`` and all that reads only the picture work
    on it; :func:`section.check` refuses it, and :func:`check` is its counterpart. :func:`predicted` makes the table.

    Parameters
    ----------
    slide
        A section, whose picture is shared and whose spots are ignored; or uint8 RGB (y, x, 3), numpy or dask.
    pitch_um
        Distance of neighbouring spots in microns; the grid is centred on the slide.
    tile_um
        Side of the tiles that will be cut, microns (default ``pitch_um``: they touch). Tiles that would leave the slide
        are left out, and whiteness is measured on exactly these tiles, at full resolution.
    mask
        Bool (y, x) over the whole slide, at any scale, e.g. ``tissue.mask`` of a thumbnail; None: whiteness decides.
    min_tissue, white
        See :data:`MIN_TISSUE`, :data:`WHITE`. On a slide with grey glass pass a mask: its glass may be darker than 200.
    mpp, section_id, subject_id, source
        For an array: microns per pixel, and names. For a section they are its own.

    Returns
    -------
    spatialdata.SpatialData
        Spots named ``<row>x<column>`` of the grid. ``obs["brightness"]`` is the tile's mean, 0 to 255.
        ``attrs["platform"]`` is ``"grid"``; ``attrs["dropped"]`` counts the places left out as white and off the mask.

    Raises
    ------
    CourseError
        Sizes that are not positive, a pixel size missing or absurd, a slide smaller than one tile, a mask of another
        shape, no tile left.
    """
    import anndata as ad
    import pandas as pd
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    if hasattr(slide, "images"):
        picture, attrs = slide.images["he"], dict(slide.attrs)
    else:
        picture, attrs = _from_array(slide, mpp, section_id, subject_id, source)
    bare = SpatialData(images={"he": picture}, attrs=attrs)
    scale = attrs["mpp"]
    tile_um = pitch_um if tile_um is None else tile_um
    if not (pitch_um > 0 and tile_um > 0):
        raise CourseError(f"a grid of {pitch_um} um, tiles of {tile_um} um", "positive sizes", "set TILE_UM, e.g. 100")
    side = max(2, round(tile_um / scale))
    rows, columns, x, y = lattice(sec.shape(bare), pitch_um / scale, side, file=attrs.get("source"))
    xy = np.column_stack([x, y])
    corners = np.floor(xy - side / 2 + 0.5).astype(int)  # as tiles.boxes
    brightness = _brightness(bare, corners, side)
    tissue = np.ones(len(xy)) if mask is None else share_of(mask, corners, side, sec.shape(bare))
    off, glass = tissue < min_tissue, brightness > white
    kept = np.flatnonzero(~off & ~glass)
    if not len(kept):
        raise CourseError(
            f"{off.sum()} of {len(xy)} tiles off the mask and {glass.sum()} brighter than {white:g}",
            "a tile with tissue", "look at the slide and its mask; raise white", file=attrs.get("source"),
        )  # fmt: skip
    names = [f"{row}x{column}" for row, column in zip(rows[kept], columns[kept])]
    obs = pd.DataFrame(
        {"section_id": attrs["section_id"], "subject_id": attrs["subject_id"], "grid_row": rows[kept],
         "grid_column": columns[kept], "brightness": brightness[kept].astype(np.float32),
         "region": pd.Categorical(["spots"] * len(kept)), "instance_id": np.arange(len(kept))}, index=names,
    )  # fmt: skip
    table = ad.AnnData(sparse.csr_matrix((len(kept), 0), dtype=np.int32), obs=obs)
    table.obsm["spatial"] = xy[kept]
    systems = {"pixel": Identity(), "um": Scale([scale, scale], axes=("x", "y"))}
    spots = ShapesModel.parse(
        xy[kept], geometry=0, radius=side / 2, index=np.arange(len(kept)), transformations=systems
    )  # fmt: skip
    attrs.update(
        platform=PLATFORM, spot_diameter_um=float(tile_um), pitch_um=float(pitch_um),
        dropped={"white": int((glass & ~off).sum()), "off_mask": int(off.sum())},
    )  # fmt: skip
    return check(SpatialData(
        images={"he": picture}, shapes={"spots": spots}, attrs=attrs,
        tables={"counts": TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")},
    ))  # fmt: skip


def _from_array(image, mpp, section_id, subject_id, source):
    """Return the multiscale picture of an array (y, x, 3) and the section's facts."""
    import dask.array as da
    from spatialdata.transformations import Identity, Scale

    sec.check_mpp(mpp, file=source)
    name = sec.safe_id("slide" if section_id is None else section_id)
    if isinstance(image, da.Array):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise CourseError(f"an image {image.shape} of {image.dtype}", "uint8 (y, x, 3)", "convert it", file=source)
        lazy = image.transpose(2, 0, 1)
    else:
        lazy = da.from_array(sec.rgb8(image, file=source), chunks=(2048, 2048, 3)).transpose(2, 0, 1)
    systems = {"pixel": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))}
    facts = {
        "section_id": name, "subject_id": name if subject_id is None else subject_id, "dataset": "slide",
        "mpp": float(mpp), "mpp_source": "stated", "source": str(source),
    }  # fmt: skip
    return sec._picture(lazy.rechunk((3, 2048, 2048)), systems), facts


def lattice(shape_px, pitch, side, *, file=None):
    """Return row, column, x and y (pixels) of the grid's places whose tile lies inside the slide, row by row."""
    places = []
    for length in shape_px:
        number = int(np.floor((length - side) / pitch + 1e-9)) + 1
        if length < side:
            raise CourseError(
                f"a slide of {shape_px[1]} x {shape_px[0]} px", f"at least one tile of {side} px", "use a smaller tile",
                file=file,
            )  # fmt: skip
        half = np.floor((length - (number - 1) * pitch - side) / 2) + side / 2  # a tile begins on a whole pixel
        places.append(half + np.arange(number) * pitch)
    rows, columns = (grid.ravel() for grid in np.meshgrid(*map(np.arange, map(len, places)), indexing="ij"))
    return rows, columns, places[1][columns], places[0][rows]


def _brightness(slide, corners, side):
    """Return the mean of each tile over pixels and channels, float (n,); the slide is read a row of tiles at a time."""
    import cv2

    out = np.empty(len(corners))
    width = sec.shape(slide)[1]
    for top in np.unique(corners[:, 1]):
        here = np.flatnonzero(corners[:, 1] == top)
        band = sec.window(slide, 0, int(top), width, side)
        sums = cv2.integral(band.sum(2, dtype=np.uint16).astype(np.float32), sdepth=cv2.CV_64F)[side]
        left = corners[here, 0]
        out[here] = (sums[left + side] - sums[left]) / (3 * side * side)
    return out


def share_of(mask, corners, side, shape_px):
    """Return the share of each tile that a mask (y, x) of the whole slide covers, to the nearest pixel of the mask."""
    import cv2

    mask = np.asarray(mask)
    factor = np.array(mask.shape[:2]) / shape_px
    if mask.ndim != 2 or not np.isclose(factor[0], factor[1], rtol=0.05):
        raise CourseError(
            f"a mask of shape {mask.shape}", f"(y, x) of the whole slide, {shape_px} or a thumbnail of it",
            "pass tissue.mask(sec.thumbnail(slide)[0], ...)",
        )  # fmt: skip
    table = cv2.integral((mask > 0).astype(np.uint8))
    bounds = []
    for axis, length in ((1, mask.shape[0]), (0, mask.shape[1])):  # corners are x, y
        low = np.clip(np.rint(corners[:, axis] * factor[1 - axis]).astype(int), 0, length - 1)
        high = np.clip(np.rint((corners[:, axis] + side) * factor[1 - axis]).astype(int), low + 1, length)
        bounds += [low, high]
    y0, y1, x0, x1 = bounds
    return (table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]) / ((y1 - y0) * (x1 - x0))


def check(section):
    """Check a section of :func:`on_grid` against the contract, counts apart, and return it.

    Raises
    ------
    CourseError
        Wrong image type, absurd pixel size, repeated spot names, spots outside the image, no spots, or genes in the
        table (then it is measured: ``section.check``).
    """
    source = section.attrs.get("source")
    picture, table = sec.level0(section), sec.counts(section)
    if picture.dtype != np.uint8 or tuple(picture.dims) != ("c", "y", "x") or picture.sizes["c"] != 3:
        raise CourseError(f"an image {picture.dtype} {picture.dims}", "uint8 RGB, c y x", "use on_grid", file=source)
    sec.check_mpp(section.attrs.get("mpp"), file=source)
    if section.attrs.get("platform") != PLATFORM or table.n_vars or not table.n_obs or not table.obs_names.is_unique:
        raise CourseError(
            f"{table.n_obs} spots x {table.n_vars} genes on platform {section.attrs.get('platform')!r}",
            f"named spots without genes on platform {PLATFORM!r}",
            "use on_grid; section.check is for measured sections", file=source,
        )  # fmt: skip
    points, (rows, columns) = sec.xy(section), sec.shape(section)
    if not ((points >= 0).all() and (points[:, 0] < columns).all() and (points[:, 1] < rows).all()):
        raise CourseError("spots outside the image", "every centre inside", "use on_grid", file=source)
    return section


def predicted(section, mean, genes, *, index=None, layers=None, facts=None):
    """Return predicted expression placed on its slide, an AnnData (spots x genes).

    Parameters
    ----------
    section
        The section predicted for, from :func:`on_grid` or measured.
    mean
        Predicted mean, (n, g).
    genes
        Names of the g columns, unique.
    index
        Positions of the n predicted spots in the section's table, as ``tiles.iterate`` gives them; default all.
    layers
        Further (n, g) arrays, e.g. ``{"epistemic_var": ...}``.
    facts
        What ``uns["prediction"]`` records: model, encoder, units, training sections, seed, ...

    Returns
    -------
    AnnData
        ``X`` and ``layers["pred_mean"]`` the mean, float32; ``obs`` and names of the section's spots;
        ``obsm["spatial"]`` x, y in full-resolution pixels.

    Raises
    ------
    CourseError
        Shapes that differ, values that are not finite, repeated genes.
    """
    import anndata as ad
    import pandas as pd

    table = sec.counts(section)
    index = np.arange(table.n_obs) if index is None else np.asarray(index, int)
    mean, names = np.asarray(mean, np.float32), pd.Index(list(map(str, genes)))
    if mean.shape != (len(index), len(names)) or not np.isfinite(mean).all() or not names.is_unique:
        raise CourseError(
            f"a prediction {mean.shape} for {len(index)} spots and {names.nunique()} genes",
            "finite (spots, genes), names unique", "pass index, as tiles.iterate gave it, and the model's gene list",
        )  # fmt: skip
    out = ad.AnnData(mean, obs=table.obs.iloc[index].copy(), var=pd.DataFrame(index=names))
    out.obsm["spatial"] = sec.xy(section)[index]
    for name, values in {"pred_mean": mean, **(layers or {})}.items():
        if np.shape(values) != mean.shape:
            raise CourseError(f"layer {name!r} of shape {np.shape(values)}", f"{mean.shape}", "predict for all genes")
        out.layers[name] = np.asarray(values, np.float32)
    out.uns["prediction"] = {"genes": list(names), "mpp": sec.mpp(section), **(facts or {})}
    return out

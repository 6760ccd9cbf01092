"""Examiner's room: what was found, as other programs expect it - viewers, QuPath, R.

Each function returns a function that writes to the path it is given, as ``Run.product`` wants it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from helpers.export_nuclei import nuclei_writer
from helpers.messages import CourseError

VITESSCE = "1.0.17"
R_HINT = """Read into R:

  spots <- read.csv("spots.csv", row.names = 1, check.names = FALSE)
  expression <- as.matrix(read.csv("expression.csv", row.names = 1, check.names = FALSE))
  stopifnot(identical(rownames(spots), rownames(expression)))

check.names = FALSE keeps names such as HLA-A. x_um, y_um: microns; x_px, y_px: pixels of the full slide; y points down.
"""


def for_viewers(
    table, *, library_id: str, spot_diameter_px: float, picture=None, scale: float | None = None, counts=None,
    mpp: float | None = None,
):  # fmt: skip
    """Return a copy of a table that CELLxGENE Explorer, TissUUmaps, scanpy and squidpy show on its slide.

    Parameters
    ----------
    table
        AnnData, spots x genes; ``obsm["spatial"]`` x, y in pixels of the full slide. ``X`` is what will be
        coloured: log or predicted expression.
    library_id
        Name of the slide in ``uns["spatial"]``.
    spot_diameter_px
        Diameter of a spot, or side of a tile, in pixels of the full slide.
    picture, scale
        uint8 RGB (y, x, 3) and its pixels per pixel of the full slide, as ``section.thumbnail`` returns them.
    counts
        Raw counts, (spots, genes), dense or sparse: kept in ``raw``. Predictions have none, and get none.
    mpp
        Microns per pixel, recorded beside the scale factors.

    Returns
    -------
    AnnData
        ``X`` float32 CSC (TissUUmaps takes nothing dense); ``raw.X`` float32 whole numbers; ``obsm["spatial"]`` and
        ``["X_spatial"]`` float32, the latter with y pointing up, as scatter plots have it; ``uns["spatial"]`` with the
        one key ``library_id``: ``images["hires"]`` and ``scalefactors``; text in ``obs`` as categories, one of them
        ``library_id``; ``var["feature_name"]``; ``uns["default_embedding"]``.

    Raises
    ------
    CourseError
        No positions, values that are not finite, repeated names, counts that are not raw, a picture not uint8 RGB.

    Notes
    -----
    These are the viewers' conventions. A submission to the CELLxGENE *portal* also needs donors, tissues and diseases
    as ontology terms and Ensembl ids, which are not ours to invent.
    """
    import pandas as pd
    from scipy import sparse

    from helpers import section as sec

    out = table.copy()
    out.uns.pop("spatial", None)
    if "spatial" not in out.obsm or not (spot_diameter_px > 0):
        raise CourseError(f"a table with obsm {list(out.obsm)}, spots of {spot_diameter_px} px", "obsm['spatial']",
                          "give the positions in pixels")  # fmt: skip
    for kind, names in (("spot", out.obs_names), ("gene", out.var_names)):
        if not names.is_unique:
            raise CourseError(f"repeated {kind} names", "unique names", f"make the {kind} names unique")
    out.X = sparse.csc_matrix(_float32(out.X, "X"))
    xy = np.asarray(out.obsm["spatial"], np.float32)
    out.obsm["spatial"], out.obsm["X_spatial"] = xy, xy * np.float32([1, -1])
    for name in list(out.obsm):  # an embedding must be finite floats
        out.obsm[name] = _float32(np.asarray(out.obsm[name]), f"obsm[{name!r}]")
    for column in out.obs:
        values = out.obs[column]
        if values.dtype == bool or not pd.api.types.is_numeric_dtype(values):
            out.obs[column] = pd.Categorical(values.astype(object).where(values.notna(), "missing").astype(str))
        elif pd.api.types.is_integer_dtype(values):
            out.obs[column] = values.astype(np.int32 if values.abs().max() < 2**31 else np.float64)
        else:
            out.obs[column] = values.astype(np.float32)
    out.obs.index, out.var.index = out.obs.index.astype(str), out.var.index.astype(str)
    out.obs.index.name = out.var.index.name = None
    out.var["feature_name"] = pd.Categorical(out.var_names)
    scales = {"spot_diameter_fullres": float(spot_diameter_px), "tissue_hires_scalef": 1.0}
    entry = {"scalefactors": scales, "images": {}, "metadata": {"mpp": float(mpp)} if mpp else {}}
    if picture is not None:
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not (scale and scale > 0):
            raise CourseError(f"a picture {picture.shape} of {picture.dtype}, scale {scale}", "uint8 RGB and its scale",
                              "take what section.thumbnail returns")  # fmt: skip
        entry["images"]["hires"] = picture
        entry["scalefactors"]["tissue_hires_scalef"] = float(scale)
    out.uns["spatial"] = {str(library_id): entry}
    out.obs["library_id"] = pd.Categorical([str(library_id)] * out.n_obs)
    out.uns["default_embedding"] = "spatial"
    out.raw = None
    if counts is not None:
        if counts.shape != out.shape:
            raise CourseError(f"counts {counts.shape}", f"{out.shape}", "give those of the same spots and genes")
        sec.check_counts(counts)
        raw = out.copy()
        raw.X = sparse.csr_matrix(counts).astype(np.float32)
        out.raw = raw
    return out


def _float32(values, what):
    from scipy import sparse

    numbers = values.data if sparse.issparse(values) else np.asarray(values)
    if numbers.dtype.kind not in "fiub" or not np.isfinite(numbers).all():
        raise CourseError(f"{what} with values that are not finite numbers", "finite numbers", "fill or drop them")
    return values.astype(np.float32)


def h5ad_writer(table):
    """Return a function that writes a table as compressed h5ad."""

    def write(path) -> None:
        table.write_h5ad(path, compression="gzip")

    return write


def anndata_zarr_writer(table, *, zarr_format: int = 2):
    """Return a function that writes a table as an AnnData zarr store; most web viewers want format 2."""
    _known_format(zarr_format)

    def write(path) -> None:
        import anndata as ad

        with ad.settings.override(zarr_write_format=zarr_format):
            table.write_zarr(path)

    return write


def section_writer(section, *, zarr_format: int = 3):
    """Return a function that writes a section as SpatialData, for napari-spatialdata and others.

    Parameters
    ----------
    zarr_format
        3, SpatialData's present container; 2, that of its releases before 0.5, which older programs read.
    """
    _known_format(zarr_format)

    def write(path) -> None:
        from spatialdata._io import format as formats

        kinds = ("SpatialDataContainerFormatV01", "RasterFormatV02", "ShapesFormatV02", "TablesFormatV01")
        old = [getattr(formats, kind)() for kind in kinds]
        section.write(path, sdata_formats=old if zarr_format == 2 else None, update_sdata_path=False)

    return write


def _known_format(zarr_format):
    if zarr_format not in (2, 3):
        raise CourseError(f"zarr_format={zarr_format}", "2 or 3", "choose one")


def tiles_writer(table, *, side_px: float, genes=(), label: str | None = None, colours=None):
    """Return a function that writes tiles as square QuPath detections (GeoJSON, pixels of the full slide).

    Parameters
    ----------
    table
        AnnData; ``obsm["spatial"]`` holds the centres.
    side_px
        Side of a tile in pixels.
    genes
        Columns QuPath shows as measurements, beside the numbers in ``obs``.
    label
        Column of ``obs`` that becomes the class.
    """
    import pandas as pd

    half = side_px / 2
    square = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    outlines = np.asarray(table.obsm["spatial"], float)[:, None] + square
    numbers = table.obs.select_dtypes("number")
    chosen = pd.DataFrame(_dense(table[:, list(genes)].X), index=table.obs_names, columns=list(genes))
    names = [""] * table.n_obs if label is None else table.obs[label].astype(str)
    return nuclei_writer(outlines, names, pd.concat([numbers, chosen], axis=1), colours=colours)


def csv_writer(table, *, mpp: float):
    """Return a function that writes a folder of CSV files for R: ``spots.csv``, ``expression.csv``, ``README.txt``.

    Parameters
    ----------
    mpp
        Microns per pixel, for ``x_um`` and ``y_um``.
    """
    import pandas as pd

    def write(path) -> None:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        xy = np.asarray(table.obsm["spatial"], float)
        places = {"x_px": xy[:, 0], "y_px": xy[:, 1], "x_um": xy[:, 0] * mpp, "y_um": xy[:, 1] * mpp}
        spots = table.obs.drop(columns=[name for name in places if name in table.obs])
        pd.concat([pd.DataFrame(places, index=table.obs_names), spots], axis=1).to_csv(
            path / "spots.csv", index_label="spot", float_format="%.9g"
        )
        for start in range(0, table.n_obs, 4096):  # dense rows, a few at a time
            part = table[start : start + 4096]
            frame = pd.DataFrame(_dense(part.X), index=part.obs_names, columns=part.var_names)
            with open(path / "expression.csv", "a" if start else "w", encoding="utf-8", newline="") as stream:
                frame.to_csv(stream, index_label="spot", header=not start, float_format="%.9g")
        (path / "README.txt").write_text(R_HINT, encoding="utf-8")

    return write


def _dense(values):
    return np.asarray(values.todense() if hasattr(values, "todense") else values)


def vitessce(
    table, *, name: str, url: str, image_url: str | None = None, image_mpp: float | None = None, labels=(),
    embeddings=(), spot_radius_px: float, gene: str | None = None, description: str = "",
) -> dict:  # fmt: skip
    """Return a Vitessce view configuration of a table written by :func:`anndata_zarr_writer`.

    Parameters
    ----------
    table
        The AnnData behind ``url``: what the configuration names must be in it.
    url, image_url
        Where the zarr store and the slide, an OME-TIFF, will be served; relative to the configuration or absolute.
    image_mpp
        Microns per pixel that the OME-TIFF itself states, None if it states none. Vitessce draws a picture that states
        them in microns; it is brought back to pixels, in which the spots are.
    labels, embeddings
        Columns of ``obs`` that are sets of spots; keys of ``obsm`` that are scatter plots.
    spot_radius_px
        Radius of a spot in pixels of the full slide.
    gene
        Coloured first; default the first column.

    Raises
    ------
    CourseError
        Columns or keys that the table does not have.

    Notes
    -----
    Schema version 1.0.17. A browser fetches the parts over HTTP: serve the folder (``python -m http.server``) and open
    vitessce.io with ``?url=`` the configuration's address.
    """
    missing = [each for each in labels if each not in table.obs]
    missing += [each for each in ("spatial", *embeddings) if each not in table.obsm]
    missing += [gene] if gene is not None and gene not in table.var_names else []
    if missing:
        raise CourseError(f"no {', '.join(map(str, missing))} in the table", "names it has", "correct the names")
    options = {"obsFeatureMatrix": {"path": "X"}, "obsSpots": {"path": "obsm/spatial"}}
    if labels:
        options["obsSets"] = [{"name": str(label), "path": f"obs/{label}"} for label in labels]
    if embeddings:
        options["obsEmbedding"] = [{"path": f"obsm/{e}", "dims": [0, 1], "embeddingType": str(e)} for e in embeddings]
    kinds = {"obsType": "spot", "featureType": "gene", "featureValueType": "expression"}
    files = [{"fileType": "anndata.zarr", "url": url, "options": options, "coordinationValues": kinds}]
    if image_url is not None:
        files.append({"fileType": "image.ome-tiff", "url": image_url})
        if image_mpp is not None:  # one number an axis; a TIFF's order of axes begins with x, y
            back = {"type": "scale", "scale": [1 / image_mpp, 1 / image_mpp, 1, 1, 1]}
            files[-1]["options"] = {"coordinateTransformations": [back]}
    gene = str(table.var_names[0] if gene is None else gene)
    space = {"dataset": {"A": "A"}, **{key: {"A": value} for key, value in kinds.items()},
             "featureSelection": {"A": [gene]}, "obsColorEncoding": {"A": "geneSelection"},
             "spatialSpotRadius": {"A": float(spot_radius_px)}}  # fmt: skip
    scopes = {key: "A" for key in space}
    layout = [{"component": "spatialBeta", "x": 0, "y": 0, "w": 7, "h": 12},
              {"component": "layerControllerBeta", "x": 7, "y": 0, "w": 3, "h": 6},
              {"component": "featureList", "x": 10, "y": 0, "w": 2, "h": 6}]  # fmt: skip
    if labels:
        layout.append({"component": "obsSets", "x": 10, "y": 6, "w": 2, "h": 6})
    for k, each in enumerate(embeddings):
        space.setdefault("embeddingType", {})[f"E{k}"] = str(each)
        layout.append({"component": "scatterplot", "x": 7, "y": 6 + 6 * k, "w": 3, "h": 6,
                       "coordinationScopes": {**scopes, "embeddingType": f"E{k}"}})  # fmt: skip
    for view in layout:
        view.setdefault("coordinationScopes", dict(scopes))
    return {"version": VITESSCE, "name": name, "description": description, "coordinationSpace": space, "layout": layout,
            "datasets": [{"uid": "A", "name": name, "files": files}], "initStrategy": "auto"}  # fmt: skip


def json_writer(content: dict):
    """Return a function that writes a configuration as JSON."""

    def write(path) -> None:
        Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    return write

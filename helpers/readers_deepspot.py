"""Sources: files of DeepSpot's users - their project folders, and the published TCGA digital spatial transcriptomics.

A project holds ``data/h5ad/<sample>.h5ad`` (raw counts; ``obs`` with ``x_pixel``, ``y_pixel``),
``data/image/<sample>.jpg`` and ``data/meta/<sample>.json``. There **x_pixel is the row and y_pixel the column**; they
become x = column, y = row in :func:`read_project` and nowhere else. TCGA: one gzipped ``.h5ad`` a slide, predicted
expression, no counts.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from helpers import download
from helpers import section as sec
from helpers.messages import CourseError
from helpers.readers_files import read_image

PARTS = {"h5ad": "data/h5ad/{}.h5ad", "image": "data/image/{}.jpg", "meta": "data/meta/{}.json"}
MPP_KEYS = ("mpp", "pixel_size_um_estimated", "pixel_size_um_embedded", "pixel_size_um")
"""Names under which the metadata give microns per pixel, the first found counts. It is not derived from the spots'
diameter: where both are stated they have been seen to disagree by a factor of two."""
TCGA_COLUMNS = ("dataset", "slide_type", "sample_id", "n_spots", "file_path")
TCGA_URL = "https://huggingface.co/datasets/nonchev/TCGA_digital_spatial_transcriptomics/resolve/main"
_MAX_H5AD = 64 << 30


# ---------------------------------------------------------------- project folders
def samples(folder) -> list[str]:
    """Return the samples of a project that have all three files, in order of name."""
    top = Path(folder)
    found = [file.stem for file in sorted((top / "data" / "h5ad").glob("*.h5ad"))]
    return [name for name in found if all((top / part.format(name)).is_file() for part in PARTS.values())]


def read_project(folder, sample: str, *, mpp: float | None = None, spot_um: float | None = None, subject_id=None):
    """Return one sample of a project as a section.

    Parameters
    ----------
    mpp
        Microns per pixel; None: what the JSON says, see ``MPP_KEYS``.
    spot_um
        Diameter of a spot in microns; None: 55, Visium's.

    Raises
    ------
    CourseError
        A file missing, columns missing, no pixel size, or spots that lie off the picture as if x and y were exchanged.
    """
    import anndata as ad

    top = Path(folder)
    files = {key: top / part.format(sample) for key, part in PARTS.items()}
    for key, file in files.items():
        if not file.is_file():
            known = ", ".join(samples(top)) or "no complete sample"
            raise CourseError(f"no {key} of {sample!r}", f"three files each; here: {known}", "copy it there", file=file)
    try:
        meta, table = json.loads(files["meta"].read_text(encoding="utf-8")), ad.read_h5ad(files["h5ad"])
    except (OSError, ValueError, KeyError) as error:
        raise CourseError(f"a file that cannot be read ({str(error)[:120]})", "an .h5ad and a .json", "copy it again",
                          file=files["h5ad"]) from None  # fmt: skip
    lacking = [name for name in ("x_pixel", "y_pixel") if name not in table.obs]
    if lacking:
        raise CourseError(f"no column {', '.join(lacking)}", "x_pixel (row) and y_pixel (column) in obs", "add them",
                          file=files["h5ad"])  # fmt: skip
    source = next((key for key in MPP_KEYS if isinstance(meta.get(key), (int, float))), None)
    if mpp is None and source is None:
        raise CourseError(f"no pixel size in {sorted(meta)}", f"one of {', '.join(MPP_KEYS)}", "pass mpp=...",
                          file=files["meta"])  # fmt: skip
    image = read_image(files["image"])
    xy = table.obs[["y_pixel", "x_pixel"]].to_numpy(float)  # columns, then rows: x, y
    height, width = image.shape[:2]
    inside = ((xy >= 0) & (xy < [width, height])).all(1).mean()
    if inside < 1 and ((xy[:, ::-1] >= 0) & (xy[:, ::-1] < [width, height])).all():
        seen = f"{1 - inside:.0%} of spots off the picture of {width} x {height} px"
        raise CourseError(seen, "x_pixel the row, y_pixel the column", "exchange the two", file=files["h5ad"])
    table.obs_names_make_unique()
    return sec.build(
        image=image, counts=table, xy_px=xy, mpp=float(mpp or meta[source]), platform="visium", section_id=sample,
        mpp_source="stated" if mpp else f"{source} of {files['meta'].name}", dataset=top.name, source=files["h5ad"],
        subject_id=str(subject_id or meta.get("patient") or sample), spot_diameter_um=spot_um,
    )  # fmt: skip


def write_project(section, folder, *, sample: str | None = None) -> dict:
    """Write a section into a project folder; return its files.

    Underscores are not allowed there, as ``<barcode>_<sample>`` is split at them: they become ``-``. The section's own
    name is kept in the JSON.

    Raises
    ------
    CourseError
        Names that would coincide.
    """
    import cv2

    top, table = Path(folder), sec.counts(section).copy()
    own = str(sample or section.attrs["section_id"])
    name, barcodes = own.replace("_", "-"), table.obs_names.str.replace("_", "-", regex=False)
    if not re.fullmatch(r"[A-Za-z0-9.-]+", name) or not barcodes.is_unique:
        raise CourseError(f"sample {own!r}, {barcodes.nunique()} different spot names of {len(barcodes)}",
                          "names that stay different without underscores", "rename them")  # fmt: skip
    xy = sec.xy(section)
    table.obs["x_pixel"], table.obs["y_pixel"] = xy[:, 1], xy[:, 0]  # rows, then columns
    table.obs["barcode"], table.obs["sampleID"], table.obs_names = barcodes, name, barcodes
    for ours, theirs in (("array_row", "x_array"), ("array_col", "y_array")):
        if ours in table.obs:
            table.obs[theirs] = table.obs[ours]
    table.uns.pop("spatialdata_attrs", None)
    table.X = np.asarray(table.X.toarray() if hasattr(table.X, "toarray") else table.X, np.float32)
    files = {key: top / part.format(name) for key, part in PARTS.items()}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    diameter = sec.um_to_px(section, section.attrs["spot_diameter_um"])
    meta = {"mpp": sec.mpp(section), "spot_diameter_fullres": diameter, "sample": name,
            "patient": str(section.attrs["subject_id"]), "original_name": own}  # fmt: skip
    files["meta"].write_text(json.dumps(meta, indent=1), encoding="utf-8")
    if not cv2.imwrite(str(files["image"]), sec.image(section)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise CourseError("a picture that cannot be written", "room on the disk", "free some", file=files["image"])
    table.write_h5ad(files["h5ad"])
    return files


# ---------------------------------------------------------------- TCGA
def tcga_metadata(path):
    """Return the table of all slides: ``dataset``, ``slide_type``, ``sample_id``, ``n_spots``, ``file_path``.

    ``barcode`` and ``patient`` (its first three parts) are added; several slides of one patient must not be split.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CourseError(f"a table that cannot be read ({error})", "metadata_<date>.csv of the data set",
                          "download it again", file=path) from None  # fmt: skip
    table = table.drop(columns=[name for name in table.columns if name.startswith("Unnamed")])
    lacking = [name for name in TCGA_COLUMNS if name not in table.columns]
    if lacking:
        raise CourseError(f"no column {', '.join(lacking)}", ", ".join(TCGA_COLUMNS), "take the data set's own table",
                          file=path)  # fmt: skip
    table["barcode"] = table["sample_id"].astype(str).str.split(".").str[0]
    table["patient"] = table["barcode"].str.extract(r"^(TCGA-\w{2}-\w{4})")[0]
    return table


def fetch_tcga(sample: str, metadata, folder, *, base_url: str = TCGA_URL) -> Path:
    """Download one named slide, resumed where it broke off, and return its file.

    Parameters
    ----------
    sample
        Its ``sample_id``, or the start of it, if that is unique.
    metadata
        Of :func:`tcga_metadata`.
    base_url
        A mirror. The publisher asks for a login; where the server refuses, the error says how to get the file by hand.
    """
    from urllib.parse import quote

    names = metadata["sample_id"].astype(str)
    hits = metadata[names == sample] if (names == sample).any() else metadata[names.str.startswith(sample)]
    if len(hits) != 1 or not sample:
        some = ", ".join(hits["sample_id"].head(3)) or names.iloc[0] if len(names) else "none"
        raise CourseError(f"{len(hits)} slides named {sample!r}", "one", f"give the whole sample_id, e.g. {some}")
    where = PurePosixPath(str(hits["file_path"].iloc[0]))
    if where.is_absolute() or ".." in where.parts or not where.name.endswith((".h5ad.gz", ".h5ad")):
        raise CourseError(f"a file path {str(where)!r}", "a path inside the data set", "do not use this table")
    return download.download(f"{base_url.rstrip('/')}/{quote(str(where))}", Path(folder) / where)


def read_tcga(path, *, genes=None):
    """Return a predicted slide: AnnData (spots x genes), ``obsm["spatial"]`` x, y in pixels.

    ``X`` is what the publisher's model says of log1p(counts per 10,000): a prediction, and ``uns["kind"]`` says so.

    Parameters
    ----------
    path
        ``.h5ad.gz`` or ``.h5ad``. The former is unpacked beside it once, under a temporary name first.
    genes
        Keep these only; None: all (thousands, hundreds of MB).
    """
    import anndata as ad

    path = Path(path)
    if not path.is_file():
        raise CourseError("no such file", "a slide's .h5ad.gz", "fetch_tcga gets one", file=path)
    plain = _unpacked(path) if path.suffix == ".gz" else path
    try:
        table = ad.read_h5ad(plain, backed="r" if genes is not None else None)
        if genes is not None:
            unknown = [name for name in genes if name not in table.var_names]
            if unknown:
                raise CourseError(f"no gene {', '.join(unknown[:5])}", f"genes of the slide, e.g. {table.var_names[0]}",
                                  "leave them out", file=path)  # fmt: skip
            table = table[:, list(genes)].to_memory()
    except (OSError, KeyError, ValueError) as error:
        raise CourseError(f"a file that is no AnnData ({str(error)[:120]})", "a slide's .h5ad.gz", "download it again",
                          file=path) from None  # fmt: skip
    if "spatial" not in table.obsm:
        pairs = [pair for pair in (("y_pixel", "x_pixel"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))
                 if set(pair) <= set(table.obs)]  # fmt: skip
        if not pairs:
            expected = "obsm['spatial'], or x_pixel and y_pixel in obs"
            raise CourseError("no positions", expected, "take the publisher's file", file=path)
        table.obsm["spatial"] = table.obs[list(pairs[0])].to_numpy(float)
    table.uns["kind"] = "predicted log1p(counts per 10,000)"
    return table


def _unpacked(path: Path) -> Path:
    """Return the unpacked file beside a gzipped one."""
    plain = path.with_suffix("")
    if plain.is_file() and plain.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return plain
    part = plain.with_name(plain.name + ".part")
    try:
        with gzip.open(path) as source, open(part, "wb") as target:
            while block := source.read(1 << 20):  # counted while it grows: a small file may unpack to a full disk
                if target.tell() + len(block) > _MAX_H5AD:
                    raise CourseError("a slide of more than 64 GB", "about 2 GB", "do not use it", file=path)
                target.write(block)
        part.replace(plain)
    except (OSError, EOFError, zlib.error) as error:
        raise CourseError(f"a file cut short or not gzipped ({error})", "a whole .h5ad.gz", "download it again",
                          file=path) from None  # fmt: skip
    finally:
        part.unlink(missing_ok=True)
    return plain

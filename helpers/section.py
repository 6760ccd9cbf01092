"""Customs: the one Section object, its checks, its axes and units, and the only lawful ways to split.

A section is a :class:`spatialdata.SpatialData`. Points are **x, y**; arrays are **y, x**; images are **RGB**.
Each convention is converted in exactly one function of this file.
"""

from __future__ import annotations

import re

import numpy as np

from helpers.messages import CourseError, note

SPOT_PITCH_UM = {"visium": 100.0, "st": 200.0, "st2k": 141.42}
"""Centre-to-centre distance of neighbouring spots, in microns: Visium hexagons, the 1k ST array, the staggered 2k array."""
SPOT_DIAMETER_UM = {"visium": 55.0, "st": 100.0, "st2k": 100.0}
"""Diameter of a capture spot in microns. The 2k value is not stated in the files; 100 is assumed and said so in ``attrs``."""
MPP_RANGE = (0.05, 25.0)
PITCH_TOLERANCE = 0.15
_SAFE_ID = re.compile(r"[\w.+-]+( [\w.+-]+)*", re.UNICODE)
_CHUNK = 2048


# ---------------------------------------------------------------- building
def safe_id(name: str) -> str:
    """Return ``name`` if it can serve as a section id and a file name; else raise ``CourseError``."""
    if not _SAFE_ID.fullmatch(name) or ".." in name:
        raise CourseError(
            f"section name {name!r}",
            "letters, digits, '_', '-', '+', '.' and single spaces",
            "rename the file or folder",
        )
    return name


def rgb8(image, *, file=None):
    """Return an image as uint8 RGB, axes (y, x, 3), or refuse it.

    Grey and RGBA pictures are converted (alpha over white); 16-bit, float and CMYK pictures are refused, because
    scaling them would silently change stain concentrations.

    Parameters
    ----------
    image
        Array (y, x), (y, x, 3) or (y, x, 4), channels in RGB(A) order.
    file
        Named in the error.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise CourseError(
            f"an image of type {image.dtype}",
            "8-bit RGB (uint8, 0-255)",
            "export the slide as 8-bit RGB; a silent rescale would change the stain",
            file=file,
        )
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint16)
        return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    raise CourseError(f"an image of shape {image.shape}", "(y, x, 3)", "export it as RGB", file=file)


def build(
    *, image, counts, xy_px, mpp, mpp_source, platform, section_id, subject_id, dataset, source, spot_diameter_um=None
):
    """Assemble and check a section.

    Parameters
    ----------
    image
        uint8 RGB array (y, x, 3): the full-resolution H&E.
    counts
        AnnData, spots x genes, raw integer counts; ``obs`` may carry labels. Taken over, not copied.
    xy_px
        Float array (n_spots, 2): x, y of the spot centres in pixels of ``image``, origin top-left.
    mpp
        Microns per pixel of ``image``.
    mpp_source
        Where ``mpp`` comes from, in words (it is never guessed silently).
    platform
        ``"visium"``, ``"st"`` or ``"st2k"`` (later rooms add ``"xenium"`` and ``"visium_hd"``).
    section_id, subject_id, dataset, source
        Names; the subject is the patient or the animal.
    spot_diameter_um
        Defaults to the platform's.

    Returns
    -------
    spatialdata.SpatialData

    Raises
    ------
    CourseError
        From :func:`check`.
    """
    import dask.array as da
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    safe_id(section_id)
    check_mpp(mpp, file=source)
    diameter = SPOT_DIAMETER_UM[platform] if spot_diameter_um is None else float(spot_diameter_um)
    to_systems = {"pixel": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))}
    lazy = da.from_array(image, chunks=(_CHUNK, _CHUNK, 3)).transpose(2, 0, 1)  # (y, x, c) -> (c, y, x), only here
    factors = [4, 4] if min(image.shape[:2]) >= 2048 else ([4] if min(image.shape[:2]) >= 512 else None)
    picture = Image2DModel.parse(
        lazy,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=factors,
        chunks=(3, _CHUNK, _CHUNK),
        transformations=to_systems,
    )
    xy_px = np.asarray(xy_px, float).reshape(-1, 2)
    if len(xy_px) != counts.n_obs:
        raise CourseError(f"{len(xy_px)} positions for {counts.n_obs} spots", "one each", "join the tables", file=source)
    if not np.isfinite(xy_px).all():
        raise CourseError("spots without a position", "x and y for every spot", "drop or repair them", file=source)
    counts.X = sparse.csr_matrix(counts.X)
    instances = np.arange(counts.n_obs)
    counts.obs["region"] = "spots"
    counts.obs["region"] = counts.obs["region"].astype("category")
    counts.obs["instance_id"] = instances
    counts.obs["section_id"] = section_id
    counts.obs["subject_id"] = subject_id
    counts.obsm["spatial"] = xy_px
    spots = ShapesModel.parse(
        xy_px, geometry=0, radius=diameter / mpp / 2, index=instances, transformations=to_systems
    )
    table = TableModel.parse(counts, region="spots", region_key="region", instance_key="instance_id")
    section = SpatialData(
        images={"he": picture},
        shapes={"spots": spots},
        tables={"counts": table},
        attrs={
            "section_id": section_id,
            "subject_id": subject_id,
            "platform": platform,
            "dataset": dataset,
            "mpp": float(mpp),
            "mpp_source": mpp_source,
            "spot_diameter_um": diameter,
            "source": str(source),
        },
    )
    return check(section)


# ---------------------------------------------------------------- reading a section
def _level0(section):
    element = section.images["he"]
    return element["scale0"]["image"] if hasattr(element, "children") else element


def shape(section) -> tuple[int, int]:
    """Return (height, width) of the full-resolution H&E in pixels."""
    sizes = _level0(section).sizes
    return int(sizes["y"]), int(sizes["x"])


def window(section, x0: int, y0: int, width: int, height: int):
    """Return one full-resolution window as uint8 RGB (height, width, 3); it must lie inside the image."""
    rows, columns = shape(section)
    if not (0 <= x0 and 0 <= y0 and x0 + width <= columns and y0 + height <= rows and width > 0 and height > 0):
        raise CourseError(
            f"a window x {x0}..{x0 + width}, y {y0}..{y0 + height}",
            f"inside the image of {columns} x {rows} px",
            "clip it, or drop the tile",
        )
    lazy = _level0(section).data[:, y0 : y0 + height, x0 : x0 + width]
    return np.ascontiguousarray(np.moveaxis(lazy.compute(), 0, 2))


def image(section):
    """Return the whole full-resolution H&E as uint8 RGB (y, x, 3)."""
    rows, columns = shape(section)
    return window(section, 0, 0, columns, rows)


def thumbnail(section, max_px: int = 1200):
    """Return a reduced H&E (uint8 RGB, y, x, 3) with its longer side at most ``max_px``, and its scale.

    The scale multiplies full-resolution pixels: ``xy_thumbnail = xy_px * scale``.
    """
    import cv2

    full_rows, full_columns = shape(section)
    element = section.images["he"]
    level = _level0(section)
    if hasattr(element, "children"):
        for name in element.children:
            candidate = element[name]["image"]
            if max(candidate.sizes["y"], candidate.sizes["x"]) >= max_px:
                level = candidate
    small = np.ascontiguousarray(np.moveaxis(level.data.compute(), 0, 2))
    scale = min(1.0, max_px / max(full_rows, full_columns))
    size = (max(1, round(full_columns * scale)), max(1, round(full_rows * scale)))
    if size != (small.shape[1], small.shape[0]):
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    return small, scale


def counts(section):
    """Return the table of raw counts (AnnData, spots x genes)."""
    return section.tables["counts"]


def xy(section):
    """Return the spot centres, float array (n_spots, 2): **x, y** in full-resolution pixels."""
    return np.asarray(counts(section).obsm["spatial"], float)


def mpp(section) -> float:
    """Return microns per pixel of the full-resolution H&E."""
    return float(section.attrs["mpp"])


def um_to_px(section, um: float) -> float:
    """Convert a length from microns to full-resolution pixels."""
    return um / mpp(section)


def move_spots(section, new_xy):
    """Return a section with the same image and counts but other spot centres, unchecked (the traps use it).

    Parameters
    ----------
    new_xy
        Float array (n_spots, 2), x, y in full-resolution pixels.
    """
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    table = counts(section).copy()
    table.obsm["spatial"] = np.asarray(new_xy, float)
    old = section.shapes["spots"]
    spots = ShapesModel.parse(
        table.obsm["spatial"],
        geometry=0,
        radius=float(old["radius"].iloc[0]),
        index=old.index,
        transformations=get_transformation(old, get_all=True),
    )
    return SpatialData(
        images={"he": section.images["he"]},
        shapes={"spots": spots},
        tables={"counts": table},
        attrs=dict(section.attrs),
    )


# ---------------------------------------------------------------- checks
def check_mpp(value, *, file=None) -> None:
    """Refuse a pixel size that is missing or absurd (microns per pixel)."""
    low, high = MPP_RANGE
    if value is None or not np.isfinite(value) or not low <= value <= high:
        raise CourseError(
            f"a pixel size of {value} um/px",
            f"between {low} and {high} um/px",
            "state the microns per pixel of the full-resolution image",
            file=file,
        )


def pitch_px(points) -> float:
    """Return the median distance of each point to its nearest neighbour (the unit of ``points``)."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return float("nan")
    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def check_counts(matrix, *, file=None) -> None:
    """Refuse a matrix that is empty or does not hold raw counts (negative, fractional, NaN or log values)."""
    if 0 in matrix.shape:
        raise CourseError(f"a count matrix of shape {matrix.shape}", "spots x genes", "check the file", file=file)
    values = matrix.data if hasattr(matrix, "tocsr") else np.asarray(matrix).ravel()
    if values.size == 0:
        raise CourseError("a count matrix of zeros", "at least one count", "check the file", file=file)
    if not np.isfinite(values).all() or values.min() < 0 or (values != np.rint(values)).any():
        bad = values[~np.isfinite(values) | (values < 0) | (values != np.rint(values))][:3]
        raise CourseError(
            f"values such as {', '.join(f'{v:g}' for v in bad)} in the count matrix",
            "raw counts (0, 1, 2, ...)",
            "load the raw matrix, not the normalised, log or scaled one",
            file=file,
        )


def check(section):
    """Check a section against the contract and return it.

    Raises
    ------
    CourseError
        Wrong image type, no or absurd pixel size, spots outside the image, spot spacing that contradicts the
        platform's (a pixel size 100 times off, x and y swapped), non-integer counts, duplicate names, Ensembl ids where symbols are
        needed, missing ``section_id`` or ``subject_id``.
    """
    source = section.attrs.get("source")
    level0 = _level0(section)
    if level0.dtype != np.uint8 or tuple(level0.dims) != ("c", "y", "x") or level0.sizes["c"] != 3:
        raise CourseError(f"images['he'] {level0.dtype} {level0.dims}", "uint8 RGB, axes c, y, x", "use section.build", file=source)
    check_mpp(section.attrs.get("mpp"), file=source)
    table = counts(section)
    check_counts(table.X, file=source)
    for kind, names in (("gene", table.var_names), ("spot", table.obs_names)):
        if not names.is_unique:
            raise CourseError(f"repeated {kind} names", "unique names", f"make the {kind} names unique", file=source)
    ensembl = np.mean([str(name).startswith(("ENSG0", "ENSMUSG0")) for name in table.var_names[:200]])
    if ensembl > 0.5:
        raise CourseError(
            f"Ensembl ids as gene names ({', '.join(table.var_names[:3])})",
            "gene symbols (ids belong in var['gene_id'])",
            "place a table gene_id, gene_name beside the data",
            file=source,
        )
    for column in ("section_id", "subject_id"):
        if column not in table.obs:
            raise CourseError(f"obs without {column}", "section_id and subject_id", "use section.build", file=source)
    points = xy(section)
    rows, columns = shape(section)
    outside = (points < 0).any(1) | (points[:, 0] >= columns) | (points[:, 1] >= rows)
    if outside.any():
        raise CourseError(
            f"{outside.sum()} of {len(points)} spots outside the image of {columns} x {rows} px",
            "every spot centre inside it",
            "check the scale factor, and that x (column) and y (row) are not swapped",
            file=source,
        )
    expected = SPOT_PITCH_UM.get(section.attrs["platform"])
    pitch = pitch_px(points) * mpp(section)
    if expected and len(points) >= 20 and abs(pitch / expected - 1) > PITCH_TOLERANCE:
        raise CourseError(
            f"spots {pitch:.3g} um apart at {mpp(section):.4g} um/px",
            f"about {expected:g} um for {section.attrs['platform']}",
            "check the pixel size (microns per pixel) and the scale factors",
            file=source,
        )
    return section


def alignment_score(section, *, max_px: int = 1500) -> float:
    """Return how much better tissue lies under the spots than one spacing beside them, from -1 to 1.

    The score is the share of spots on tissue minus the best share reached when the whole spot pattern is shifted by
    one spacing in any of eight directions. On a section cut to its tissue no shift can be worse, and the score is 0.

    Notes
    -----
    Tissue is what differs from the glass by Otsu's threshold on the thumbnail's optical-density norm.
    """
    import cv2

    small, scale = thumbnail(section, max_px)
    density = -np.log((cv2.GaussianBlur(small, (0, 0), 2).astype(np.float32) + 1) / 256).sum(2)
    grey = np.clip(density / np.quantile(density, 0.999) * 255, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    tissue = cv2.blur((grey > level * 0.7).astype(np.float32), (5, 5))
    points = xy(section) * scale
    step = pitch_px(points)

    def share(shift) -> float:
        moved = points + np.asarray(shift) * step
        column, row = np.rint(moved).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < grey.shape[1]) & (row < grey.shape[0])
        return float(tissue[row[inside], column[inside]].sum() / len(points))

    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return share((0, 0)) - max(share(s) for s in around)


# ---------------------------------------------------------------- splits
def split(sections, *, test, allow_shared_subject: bool = False):
    """Split section ids into training and test by subject.

    Parameters
    ----------
    sections
        DataFrame with columns ``section_id`` and ``subject_id``, one row a section.
    test
        Section ids to hold out.
    allow_shared_subject
        Permit a subject on both sides (only where one subject has all sections); a named warning goes to stderr.

    Returns
    -------
    train, test : list of str

    Raises
    ------
    CourseError
        Unknown section, empty side, or a subject on both sides.
    """
    known = list(sections["section_id"])
    unknown = [name for name in test if name not in known]
    if unknown:
        raise CourseError(f"section {unknown[0]!r}", f"one of {', '.join(known)}", "correct TEST")
    held = [name for name in known if name in set(test)]
    train = [name for name in known if name not in set(test)]
    if not held or not train:
        raise CourseError(f"{len(train)} training and {len(held)} test sections", "at least one of each", "correct TEST")
    subject = dict(zip(sections["section_id"], sections["subject_id"]))
    shared = sorted({subject[name] for name in train} & {subject[name] for name in held})
    if shared and not allow_shared_subject:
        raise CourseError(
            f"subject {', '.join(map(str, shared))} in training and test",
            "patients or animals on one side only",
            "hold out all sections of a subject, or say allow_shared_subject=True and report it",
        )
    if shared:
        note(f"warning: subject {', '.join(map(str, shared))} is in training and test; the score says nothing about new subjects")
    return train, held


def folds(sections, *, k: int, seed: int, label: str | None = None):
    """Return ``k`` folds of section ids that never share a subject, stratified by ``label`` if given.

    Parameters
    ----------
    sections
        DataFrame with ``section_id``, ``subject_id`` and, if named, the ``label`` column.

    Returns
    -------
    list of (train, test)
        Lists of section ids.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n_subjects = sections["subject_id"].nunique()
    if n_subjects < k:
        raise CourseError(f"{n_subjects} subjects for {k} folds", "at least one subject a fold", f"use k <= {n_subjects}")
    state = int(np.random.SeedSequence([seed, k]).generate_state(1)[0] % (2**31))
    if label is None:
        parts = GroupKFold(k, shuffle=True, random_state=state).split(sections, groups=sections["subject_id"])
    else:
        parts = StratifiedGroupKFold(k, shuffle=True, random_state=state).split(
            sections, sections[label], sections["subject_id"]
        )
    ids = np.asarray(sections["section_id"])
    return [(list(ids[a]), list(ids[b])) for a, b in parts]

"""Customs: what a section must satisfy, and how well its spots lie on the tissue."""

from __future__ import annotations

import re

import numpy as np

from helpers.messages import CourseError
from helpers.section_views import counts, level0, mpp, shape, thumbnail, xy

SPOT_PITCH_UM = {"visium": 100.0, "st": 200.0, "st2k": 141.42}
"""Distance of neighbouring spot centres in microns: Visium hexagons, the 1k ST array, the staggered 2k array."""
SPOT_DIAMETER_UM = {"visium": 55.0, "st": 100.0, "st2k": 100.0}
"""Diameter of a capture spot in microns. The 2k files do not state theirs; 100 is assumed."""
MPP_RANGE = (0.05, 25.0)
PITCH_TOLERANCE = 0.15
_ENSEMBL = re.compile(r"ENS[A-Z]{0,4}G\d{8}")
_SAFE_ID = re.compile(r"[\w.+-]+( [\w.+-]+)*", re.UNICODE)


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


def pitch_px(points, *, quantile: float = 0.5) -> float:
    """Return the median, or another quantile, of the distances to the nearest neighbour (unit of ``points``)."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return float("nan")
    return float(np.quantile(cKDTree(points).query(points, k=2)[0][:, 1], quantile))


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
        platform's (a pixel size 100 times off), non-integer counts, duplicate names, Ensembl ids where symbols are
        needed, missing ``section_id`` or ``subject_id``.
    """
    source = section.attrs.get("source")
    picture = level0(section)
    if picture.dtype != np.uint8 or tuple(picture.dims) != ("c", "y", "x") or picture.sizes["c"] != 3:
        raise CourseError(
            f"images['he'] {picture.dtype} {picture.dims}", "uint8 RGB, axes c, y, x", "use section.build", file=source
        )
    check_mpp(section.attrs.get("mpp"), file=source)
    table = counts(section)
    check_counts(table.X, file=source)
    for kind, names in (("gene", table.var_names), ("spot", table.obs_names)):
        if not names.is_unique:
            raise CourseError(f"repeated {kind} names", "unique names", f"make the {kind} names unique", file=source)
    ensembl = np.mean([bool(_ENSEMBL.match(str(name))) for name in table.var_names])  # of any species
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
    closest = pitch_px(points, quantile=0.05) * mpp(section)  # a file may hold a subset of the spots
    if expected and len(points) >= 20 and min(abs(d / expected - 1) for d in (pitch, closest)) > PITCH_TOLERANCE:
        raise CourseError(
            f"spots {pitch:.3g} um apart at {mpp(section):.4g} um/px",
            f"about {expected:g} um for {section.attrs['platform']}",
            "check the pixel size (microns per pixel) and the scale factors",
            file=source,
        )
    return section


def _tissue_share(section, max_px: int):
    """Return a function that maps a shift (in spot spacings, x and y) to the share of spots lying on tissue."""
    import cv2

    small, scale = thumbnail(section, max_px)
    density = -np.log((cv2.GaussianBlur(small, (0, 0), 2).astype(np.float32) + 1) / 256).sum(2)
    density -= np.quantile(density, 0.05)  # glass may be grey
    grey = np.clip(density / max(np.quantile(density, 0.999), 1e-3) * 255, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    points = xy(section) * scale
    step = np.nan_to_num(pitch_px(points))  # a single spot has no spacing and cannot be shifted
    radius = int(np.clip(step / 2, 1, 40))  # gaps narrower than a spacing are tissue all the same
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    tissue = cv2.morphologyEx((grey > level * 0.7).astype(np.uint8), cv2.MORPH_CLOSE, disc).astype(np.float32)

    def share(shift) -> float:
        moved = points + np.asarray(shift) * step
        column, row = np.rint(moved).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < grey.shape[1]) & (row < grey.shape[0])
        return float(tissue[row[inside], column[inside]].sum() / len(points))

    return share


def spots_on_tissue(section, *, max_px: int = 1500) -> float:
    """Return the share of spot centres that lie on tissue, 0 to 1 (tissue as in :func:`alignment_score`)."""
    return _tissue_share(section, max_px)((0.0, 0.0))


def alignment_score(section, *, max_px: int = 1500) -> float:
    """Return how much better tissue lies under the spots than one spacing beside them, from -1 to 1.

    The score is the share of spots on tissue minus the best share reached when the whole spot pattern is shifted by
    one spacing in any of eight directions. On a section cut to its tissue no shift can be worse, and the score is 0.

    Notes
    -----
    Tissue is what differs from the glass by Otsu's threshold on the thumbnail's summed optical density.
    """
    share = _tissue_share(section, max_px)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return share((0, 0)) - max(share(s) for s in around)

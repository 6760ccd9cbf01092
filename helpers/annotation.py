"""Methods: a pathologist's outline, put on the slide and compared with clusters (validation as in SpaCell, 2019).

This is the room's front door. ``annotation_register`` finds where a low-resolution picture lies on the slide,
``annotation_outline`` turns the drawn line into polygons, ``annotation_geojson`` reads and writes QuPath's files. Here
spots are placed, labelled and compared. Outlines stay polygons: no mask as large as the slide is ever made.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from helpers.annotation_geojson import read_geojson, spots_to_geojson, write_geojson
from helpers.annotation_outline import line_mask, outline
from helpers.annotation_register import Registration, register
from helpers.messages import CourseError

__all__ = [
    "Registration", "adjusted_rand", "compare", "label_spots", "line_mask", "neighbour_share", "outline", "place",
    "read_affine", "read_example", "read_geojson", "register", "roc", "spots_to_geojson", "write_geojson",
]  # fmt: skip


def read_affine(source):
    """Read the matrix from array coordinates to full-resolution pixels that the ST spot detector writes.

    Parameters
    ----------
    source
        A text file of nine numbers, the 3 x 3 matrix **column by column**, or the nine numbers.

    Returns
    -------
    float array (3, 3)
        ``[x_px, y_px, 1] = matrix @ [x_array, y_array, 1]``. Shear is kept (SpaCell's code drops it).

    Raises
    ------
    CourseError
        Not nine numbers, a last row other than 0 0 1 (the matrix was written row by row), or a matrix that maps the
        plane onto a line.
    """
    file = source if isinstance(source, (str, Path)) else None
    try:
        numbers = np.array(Path(source).read_text().replace(",", " ").split() if file else source, float).ravel()
    except (OSError, ValueError) as problem:
        raise CourseError(str(problem), "a file of nine numbers", "check the matrix file", file=file) from problem
    if numbers.size != 9 or not np.isfinite(numbers).all():
        raise CourseError(f"{numbers.size} numbers", "nine finite numbers", "check the matrix file", file=file)
    matrix = numbers.reshape(3, 3, order="F")
    if not np.allclose(matrix[2], [0, 0, 1]):
        raise CourseError(
            f"a last row {matrix[2].tolist()}", "0 0 1", "write the matrix column by column, not row by row", file=file
        )
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-9 * np.abs(matrix[:2, :2]).max() ** 2:
        raise CourseError("a singular matrix", "one that keeps area", "check the spot alignment", file=file)
    return matrix


def read_example(folder, *, slide_factor: float = 10.0, pitch_um: float = 200.0):
    """Read a validation case laid out as SpaCell's example: an annotated picture, a reduced slide, clusters, a matrix.

    Parameters
    ----------
    folder
        Holds ``annotation.png``, ``wsi_10x_downscale.jpeg``, ``cluster_predictions.tsv`` (separated by commas, despite
        its name: spot_x, spot_y, label) and ``transformation_matrix.txt``.
    slide_factor
        By how much the slide was reduced.
    pitch_um
        Microns between two neighbours of the array; it gives the pixel size.

    Returns
    -------
    SimpleNamespace
        ``picture``, ``slide`` uint8 RGB; ``factor``; ``spots``: data frame; ``xy`` float (n, 2); ``shape_px`` (height,
        width); ``mpp``. The last three are of the slide at full resolution.
    """
    import cv2
    import pandas as pd

    folder, pictures = Path(folder), []
    for name in ("annotation.png", "wsi_10x_downscale.jpeg"):
        read = cv2.imread(str(folder / name))
        if read is None:
            raise CourseError("no picture that can be read", "a PNG or JPEG", "check the folder", file=folder / name)
        pictures.append(np.ascontiguousarray(read[..., ::-1]))
    spots = pd.read_csv(folder / "cluster_predictions.tsv")
    if list(spots.columns) != ["spot_x", "spot_y", "label"]:
        raise CourseError(
            f"columns {list(spots.columns)}", "spot_x,spot_y,label, separated by commas", "mend the header",
            file=folder / "cluster_predictions.tsv",
        )  # fmt: skip
    matrix = read_affine(folder / "transformation_matrix.txt")
    rows, columns = (round(slide_factor * n) for n in pictures[1].shape[:2])
    return SimpleNamespace(
        picture=pictures[0], slide=pictures[1], factor=slide_factor, spots=spots, shape_px=(rows, columns),
        xy=place(spots[["spot_x", "spot_y"]], matrix), mpp=pitch_um / float(np.hypot(*matrix[:2, 0])),
    )  # fmt: skip


def place(array_xy, matrix):
    """Return the pixels of array coordinates, float (n, 2): x, y at full resolution."""
    array_xy = np.asarray(array_xy, float)
    return array_xy @ matrix[:2, :2].T + matrix[:2, 2]


def label_spots(geometry, xy_px, *, shape_px=None):
    """Return which spots' centres lie inside an outline, bool (n,).

    Parameters
    ----------
    geometry
        A shapely polygon or multipolygon in full-resolution pixels; holes are outside.
    xy_px
        Float (n, 2): x, y.
    shape_px
        (height, width) of the slide, to refuse an outline that lies off it.

    Raises
    ------
    CourseError
        The outline is empty, or lies wholly outside the slide.
    """
    import shapely

    if geometry.is_empty:
        raise CourseError("an empty outline", "an area", "check the colour range and OPEN_OUTLINE")
    if shape_px is not None and not geometry.intersects(shapely.box(0, 0, shape_px[1], shape_px[0])):
        bounds = ", ".join(f"{value:.0f}" for value in geometry.bounds)
        raise CourseError(
            f"an outline at x0, y0, x1, y1 = {bounds}", f"inside the slide of {shape_px[1]} x {shape_px[0]} px",
            "check the unit (pixels or microns), and that slide and outline belong together",
        )  # fmt: skip
    shapely.prepare(geometry)
    points = np.asarray(xy_px, float)
    return shapely.contains_xy(geometry, points[:, 0], points[:, 1])


def compare(truth, predicted, scores=None) -> dict:
    """Compare two yes-or-no labels of spots, as given: nothing is exchanged to improve the result.

    Parameters
    ----------
    truth, predicted
        Bool (n,).
    scores
        Float (n,), larger where the label is likelier; the AUC is of these. Without them the AUC is that of the hard
        labels, (recall + specificity) / 2.

    Returns
    -------
    dict
        ``accuracy``, ``precision``, ``recall``, ``f1``, ``auc``, ``ari`` and the counts ``tp``, ``tn``, ``fp``,
        ``fn``. A ratio whose denominator is 0 is 0; ``auc`` is nan where the truth knows one class only.

    Raises
    ------
    CourseError
        Different lengths, or no spot.
    """
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    if truth.shape != predicted.shape or not truth.size:
        raise CourseError(f"{truth.size} and {predicted.size} labels", "one each a spot", "match the spots first")
    tp, tn = int((truth & predicted).sum()), int((~truth & ~predicted).sum())
    fp, fn = int((~truth & predicted).sum()), int((truth & ~predicted).sum())
    precision, recall = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
    score = predicted if scores is None else np.asarray(scores, float)
    return {
        "accuracy": (tp + tn) / truth.size, "precision": precision, "recall": recall,
        "f1": 2 * tp / max(2 * tp + fp + fn, 1), "auc": roc(truth, score)[2], "ari": adjusted_rand(truth, predicted),
        "tp": tp, "tn": tn, "fp": fp, "fn": fn,
    }  # fmt: skip


def roc(truth, scores):
    """Return false-positive rates, true-positive rates and the area under them (nan with one class only)."""
    from sklearn.metrics import auc, roc_curve

    truth = np.asarray(truth, bool)
    if truth.all() or not truth.any():
        return np.array([0.0, 1.0]), np.array([0.0, 1.0]), float("nan")
    fpr, tpr, _ = roc_curve(truth, np.asarray(scores, float))
    return fpr, tpr, float(auc(fpr, tpr))


def adjusted_rand(first, second) -> float:
    """Return the adjusted Rand index of two groupings: 1 if the same, 0 as by chance, whatever the groups are called.

    Two groupings into one group each agree only because they say nothing: 0, where scikit-learn gives 1.
    """
    from sklearn.metrics import adjusted_rand_score

    if len(set(np.asarray(first).tolist())) < 2 or len(set(np.asarray(second).tolist())) < 2:
        return 0.0
    return float(adjusted_rand_score(first, second))


def neighbour_share(predicted, xy, n: int = 7):
    """Return a score from hard labels: the share of ``predicted`` among each spot and its nearest, float (n_spots,)."""
    from scipy.spatial import cKDTree

    points = np.asarray(xy, float)
    nearest = cKDTree(points).query(points, k=min(n, len(points)))[1]
    return np.asarray(predicted, float)[nearest.reshape(len(points), -1)].mean(1)

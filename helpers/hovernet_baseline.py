"""Methods: the second opinion - a watershed of the haematoxylin and a random forest on what each nucleus looks like.

Nothing here is learned from outlines but four settings; the types come from size, shape, stain and neighbours. A
network that does not beat this table has learned nothing worth its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from helpers.hovernet_post import consecutive
from helpers.hovernet_scores import pair_iou, pair_points
from helpers.hovernet_targets import UNKNOWN, centres, without_slivers
from helpers.hovernet_tiles import jitter_stain
from helpers.messages import CourseError

SHAPES = ("area", "perimeter", "eccentricity", "axis_major_length", "axis_minor_length", "extent")
RING_PX = 6
NEIGHBOURS = 8


@dataclass(frozen=True)
class Watershed:
    """Settings, in px of 0.5 um: threshold over Otsu's, blur, least distance of two centres, least area."""

    factor: float = 1.0
    blur: float = 1.0
    apart: int = 4
    min_px: int = 30


def stains(image):
    """Return haematoxylin and eosin of an image, float32 (y, x, 2), by colour deconvolution (Ruifrok, Johnston 2001).

    The image is divided by its own glass (99.5th percentile of each channel) first; both stains are then divided by
    their 99th percentile, so that a stronger stain gives the same numbers.
    """
    from skimage.color import hed_from_rgb, separate_stains

    light = np.asarray(image, np.float32)
    glass = np.percentile(light[::4, ::4].reshape(-1, 3), 99.5, axis=0)
    amounts = separate_stains(np.clip(light / np.maximum(glass, 1), 0.01, 1), hed_from_rgb)[..., :2]
    top = np.percentile(amounts[::4, ::4].reshape(-1, 2), 99, axis=0)
    return (amounts / np.maximum(top, 1e-6)).astype(np.float32)


def segment(image, settings: Watershed | None = None, *, amounts=None):
    """Return nuclei of an image at 0.5 um per pixel, int32 (y, x), 1 to n: Otsu's threshold, then a watershed.

    The landscape is the distance from the edge, raised where the stain is darker.
    """
    import cv2
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.filters import threshold_otsu
    from skimage.segmentation import watershed

    s = settings or Watershed()
    stain = (stains(image) if amounts is None else amounts)[..., 0]
    smooth = cv2.GaussianBlur(stain, (0, 0), s.blur)
    if float(np.ptp(smooth)) < 1e-6:
        return np.zeros(smooth.shape, np.int32)
    inside = ndimage.binary_fill_holes(smooth > s.factor * threshold_otsu(smooth))
    parts = without_slivers(ndimage.label(inside)[0], s.min_px)
    if not parts.any():
        return parts
    depth = ndimage.distance_transform_edt(parts > 0).astype(np.float32)
    height = cv2.GaussianBlur(depth, (0, 0), 1.0) * (0.5 + smooth)
    peaks = peak_local_max(height, min_distance=s.apart, labels=parts, exclude_border=False)
    marker = np.zeros(parts.shape, np.int32)
    marker[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return consecutive(without_slivers(watershed(-height, marker, mask=parts > 0).astype(np.int32), s.min_px))


def tune(fields, *, side: int = 512) -> Watershed:
    """Return the settings with the best mean F1 at IoU > 0.5, of 15, on the middle of each field.

    One field is not enough: the factor that suits one stain loses a quarter of the nuclei of another.
    """
    looks = []
    for f in fields:
        top, left = (max(0, (s - side) // 2) for s in f.labels.shape)
        part = np.s_[top : top + side, left : left + side]
        looks.append((stains(f.image)[part], f.labels[part]))
    best = (-1.0, Watershed())
    for factor in (0.8, 0.95, 1.1, 1.25, 1.4):
        for apart in (4, 6, 8):
            option, score = replace(Watershed(), factor=factor, apart=apart), 0.0
            for amounts, truth in looks:
                found = segment(None, option, amounts=amounts)
                total = (np.bincount(truth.ravel())[1:] > 0).sum() + found.max(initial=0)
                score += 2 * len(pair_iou(truth, found)[0]) / max(total, 1)
            best = max(best, (score, option), key=lambda item: item[0])
    return best[1]


def morphology(image, labels, *, amounts=None):
    """Return what each nucleus looks like, float32 (n, features), in the order of labels 1 to n.

    Shape (px of 0.5 um), both stains inside (mean, sd) and in a ring of 3 um round it, distance and mean of the
    ``NEIGHBOURS`` nearest.
    """
    import cv2
    from scipy import ndimage
    from scipy.spatial import cKDTree
    from skimage.measure import regionprops_table

    n = int(labels.max(initial=0))
    if n == 0:
        return np.empty((0, 2 * (len(SHAPES) + 7) + 1), np.float32)
    amounts = stains(image) if amounts is None else amounts
    shape = np.stack(list(regionprops_table(labels, properties=SHAPES).values()), 1)
    number = np.arange(1, n + 1)
    inside = [f(amounts[..., k], labels, number) for k in (0, 1) for f in (ndimage.mean, ndimage.standard_deviation)]
    away, (near_y, near_x) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    ring = np.where((away > 0) & (away <= RING_PX), labels[near_y, near_x], 0)
    with np.errstate(invalid="ignore"):  # a nucleus walled in by others has no ring
        around = [np.nan_to_num(ndimage.mean(amounts[..., k], ring, number)) for k in (0, 1)]
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    own = np.column_stack([shape, *inside, *around, ndimage.standard_deviation(light, labels, number)])
    _, xy = centres(labels)
    k = min(NEIGHBOURS + 1, n)
    distance, which = cKDTree(xy[1:]).query(xy[1:], k=k)
    distance, which = distance.reshape(n, k), which.reshape(n, k)
    others = own[which[:, 1:]].mean(1) if k > 1 else np.zeros_like(own)
    gap = distance[:, 1:].mean(1) if k > 1 else np.full(n, 100.0)
    return np.column_stack([own, others, gap]).astype(np.float32)


@dataclass
class Baseline:
    """Watershed settings and a forest; ``predict`` answers like the network's."""

    settings: Watershed
    forest: object = field(repr=False)
    classes: tuple

    def predict(self, image):
        """Return labels int32 (y, x), class codes by label uint8 (n + 1,), class shares float32 (n + 1, C).

        ``image`` is uint8 (y, x, 3) RGB at 0.5 um per pixel.
        """
        amounts = stains(image)
        labels = segment(image, self.settings, amounts=amounts)
        shares = np.zeros((int(labels.max(initial=0)) + 1, len(self.classes)), np.float32)
        if len(shares) > 1:
            shares[1:, self.forest.classes_ - 1] = self.forest.predict_proba(morphology(image, labels, amounts=amounts))
        codes = (shares.argmax(1) + 1).astype(np.uint8)
        codes[0] = 0
        return labels, codes, shares


def fit(fields, *, classes, seed: int = 0, trees: int = 100, jitters: int = 1, radius_um: float = 3.0) -> Baseline:
    """Choose the watershed's settings, then teach a forest the types of the nuclei it finds.

    Parameters
    ----------
    fields
        List of ``hovernet_targets.Field``.
    jitters
        Restained copies of each field, so that the forest has the network's chance on other stains.
    radius_um
        A found nucleus takes the type of the true one it pairs with.

    Raises
    ------
    CourseError
        No found nucleus pairs with a labelled one.
    """
    from sklearn.ensemble import RandomForestClassifier

    from helpers import settings as house

    chosen = tune(fields)
    rng = house.rng(seed, "hovernet", "baseline")
    features, types = [], []
    for f in fields:
        area, places = centres(f.labels)
        label = np.flatnonzero(area[1:]) + 1
        for copy in range(1 + jitters):
            image = f.image if copy == 0 else jitter_stain(f.image, rng).astype(np.uint8)
            amounts = stains(image)
            found = segment(image, chosen, amounts=amounts)
            pairs = pair_points(places[label] * f.mpp, centres(found)[1][1:] * f.mpp, radius_um)
            features.append(morphology(image, found, amounts=amounts)[pairs[:, 1]])
            types.append(f.classes[label[pairs[:, 0]]])
    features, types = np.concatenate(features), np.concatenate(types)
    known = types != UNKNOWN
    if not known.any():
        raise CourseError("no found nucleus with a type", "labelled nuclei that a watershed finds", "check the labels")
    forest = RandomForestClassifier(
        trees, min_samples_leaf=2, class_weight="balanced_subsample", n_jobs=1, random_state=int(rng.integers(2**31))
    )
    return Baseline(chosen, forest.fit(features[known], types[known]), tuple(classes))

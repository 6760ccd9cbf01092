"""Methods: from HoVer-Net's maps to nuclei - markers from slopes, watershed, majority vote, blocks put together.

A *map* here is float32 (y, x, 4 + C): probability of nucleus, horizontal, vertical, and the probabilities of background
and of the C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helpers.hovernet_targets import centres, without_slivers

FIRST = 4
"""Channel of the first class in a map."""


@dataclass(frozen=True)
class Post:
    """Settings of the watershed; choose them with :func:`tune` on *predictions* for a field not trained on.

    Attributes
    ----------
    threshold
        Least probability of a nuclear pixel.
    marker
        Least slope of a marker's pixel, where 1 is a step from -1 to 1 (published: scaled between the extremes of the
        tile, so that what else lies in it decides).
    sobel
        Kernel in px, 3 to 7 at 0.5 um/px (the published 21 is for four times the pixels, and for whole nuclei).
    min_px
        Least pixels of a nucleus.
    min_marker_px
        Least pixels of a marker.
    faint
        Least contrast of a nucleus over the median of its image, see :func:`contrast`; 0 keeps all. Real tissue holds
        pale smudges of a nucleus' size that virtual tissue has not, and a network used to jittered stain takes them.
    gains
        Factor on each class' probability before the vote, see :func:`level`; () is 1 for all.
    """

    threshold: float = 0.5
    marker: float = 0.02
    sobel: int = 7
    min_px: int = 20
    min_marker_px: int = 8
    faint: float = 0.0
    gains: tuple = ()


def slopes(hv, size: int):
    """Return the lesser slope of the two maps, float32 (y, x): positive inside nuclei, far below 0 between touching.

    Each map is differentiated along its own direction by Sobel's operator, divided by its answer to a step of -1 to 1.
    """
    import cv2

    step = np.ones((4 * size, 4 * size), np.float32)
    step[:, : 2 * size] = -1
    largest = float(cv2.Sobel(step, cv2.CV_32F, 1, 0, ksize=size).max())
    h, v = (cv2.GaussianBlur(np.clip(hv[..., i], -1, 1), (0, 0), 0.7) for i in (0, 1))
    return np.minimum(cv2.Sobel(h, cv2.CV_32F, 1, 0, ksize=size), cv2.Sobel(v, cv2.CV_32F, 0, 1, ksize=size)) / largest


def contrast(labels, image):
    """Return how much darker in red light each nucleus is than the ground within a few microns, float64 (n + 1,).

    Haematoxylin stops red light and eosin lets it pass. The unit is optical density (natural logarithm); row 0 is 0.

    Parameters
    ----------
    labels
        int32 (y, x).
    image
        uint8 (y, x, 3) RGB.
    """
    import cv2

    density = -np.log(np.maximum(image[..., 0], 3, dtype=np.float32) / 245)
    free = (labels == 0).astype(np.float32)
    ground = cv2.GaussianBlur(density * free, (0, 0), 5.0) / np.maximum(cv2.GaussianBlur(free, (0, 0), 5.0), 1e-3)
    y, x = np.nonzero(labels)
    which = labels[y, x]
    area = np.bincount(which, minlength=int(labels.max(initial=0)) + 1)
    return np.bincount(which, weights=(density - ground)[y, x], minlength=len(area)) / np.maximum(area, 1)


def faint(contrasts, least: float):
    """Return bool (n,): nuclei whose contrast is less than ``least`` of their median."""
    contrasts = np.asarray(contrasts, float)
    return contrasts < least * np.median(contrasts) if least > 0 and len(contrasts) else np.zeros(len(contrasts), bool)


def instances(maps, post: Post | None = None, image=None):
    """Return the label image of a map: int32 (y, x), 1 to n without gaps.

    Markers are where the lesser slope exceeds ``post.marker``; the watershed floods its negative, blurred by a pixel,
    within the nuclear pixels. No nuclear pixel: all 0. Given the image (uint8 (y, x, 3) RGB), faint nuclei are dropped.
    """
    import cv2
    from scipy import ndimage
    from skimage.segmentation import watershed

    post = post or Post()
    inside = maps[..., 0] > post.threshold
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    inside = without_slivers(ndimage.label(inside)[0], post.min_px) > 0
    slope = slopes(np.ascontiguousarray(maps[..., 1:3]), post.sobel)
    marker = without_slivers(ndimage.label(inside & (slope > post.marker))[0], post.min_marker_px)
    labels = watershed(-cv2.GaussianBlur(slope, (0, 0), 1.0), marker, mask=inside)
    labels = consecutive(without_slivers(labels.astype(np.int32), post.min_px))
    if image is None or not post.faint:
        return labels
    gone = np.concatenate([[False], faint(contrast(labels, image)[1:], post.faint)])
    return consecutive(np.where(gone[labels], 0, labels))


def consecutive(labels):
    """Return labels numbered 1 to n without gaps, in the same order."""
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    number = np.where(present, np.cumsum(present), 0).astype(np.int32)
    return number[labels]


def vote(labels, maps, gains=()):
    """Return class and class probabilities of every label; ``gains`` as in :class:`Post`.

    The class is the majority of its pixels' likeliest classes, background left out (a nucleus has a class); the
    higher mean probability breaks ties.

    Returns
    -------
    classes : uint8 (n + 1,)
        Codes from 1; 0 for background.
    shares : float32 (n + 1, C)
        Mean probabilities over the pixels, background left out, sum 1 (row 0: 0).
    """
    y, x = np.nonzero(labels)
    which, each = labels[y, x], maps[y, x, FIRST:].astype(float)
    each *= gains or 1.0
    n, c = int(labels.max(initial=0)) + 1, maps.shape[-1] - FIRST
    shares = np.stack([np.bincount(which, weights=each[:, k], minlength=n) for k in range(c)], 1).astype(float)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
    votes = np.bincount(which * c + each.argmax(1), minlength=n * c).reshape(n, c)
    classes = (votes + 0.5 * shares).argmax(1) + 1
    classes[votes.sum(1) == 0] = 0
    return classes.astype(np.uint8), shares.astype(np.float32)


def entropy(shares):
    """Return Shannon's entropy of each row over that of equal shares: 0 certain, 1 undecided; float32 (n,)."""
    shares = np.asarray(shares, np.float64)
    share = np.maximum(shares, 1e-12)
    return (-(share * np.log(share)).sum(-1) / np.log(shares.shape[-1])).astype(np.float32)


def tune(maps, truth, image=None, *, share: float = 0.02) -> Post:
    """Return the settings with the best F1 at IoU > 0.5 on a field's predictions.

    Parameters
    ----------
    maps
        Predictions for the field; on the true maps other settings win, and they merge half of the nuclei of a network.
    truth
        int32 (y, x) labels of the field.
    image
        uint8 (y, x, 3) RGB: ``faint`` becomes the contrast that all but ``share`` of the nuclei exceed that the best
        settings find.
    """
    from helpers.hovernet_scores import pair_iou

    best = (-1.0, Post(), None)
    total = (np.bincount(truth.ravel())[1:] > 0).sum()
    for threshold in (0.4, 0.5, 0.6, 0.7):
        for sobel in (5, 7):
            for marker in (0.0, 0.02, 0.04, 0.06):
                post = Post(threshold=threshold, sobel=sobel, marker=marker)
                found = instances(maps, post)
                pairs, _ = pair_iou(truth, found)
                score = 2 * len(pairs) / max(total + found.max(initial=0), 1)
                best = max(best, (score, post, pairs[:, 0]), key=lambda item: item[0])
    _, post, right = best
    if image is None or not len(right):
        return post
    known = contrast(truth, image)[right]
    return replace(post, faint=max(0.0, float(np.quantile(known, share) / np.median(known))))


def level(maps, found, field, *, least: float = 0.5, step: float = 1.19, most: float = 8.0) -> tuple:
    """Return gains that bring a class which is hardly ever named up to ``least`` of its share among the labels.

    A briefly trained network may rank the nuclei of a rare class well and yet name none of them, as the commoner class
    is likelier on every one. Such a class' probability is raised step by step (Menon 2021 adjusts logits by priors);
    classes that are named often enough are left alone.

    Parameters
    ----------
    maps, found
        Predictions for a field not trained on and the nuclei in them, int32 (y, x).
    field
        ``hovernet_targets.Field``: the labels.
    least
        Share of a class' labels that must be named, of all nuclei paired by outline.
    step, most
        Factor of a step, and the largest gain.

    Returns
    -------
    tuple of C floats, or () where all are 1
    """
    from helpers.hovernet_scores import pair_iou

    classes = maps.shape[-1] - FIRST
    pairs, _ = pair_iou(field.labels, found)
    true = field.classes[pairs[:, 0]]
    pairs, true = pairs[true <= classes], true[true <= classes]
    there, gains = np.bincount(true, minlength=classes + 1)[1:], np.ones(classes)
    while len(true):
        named = np.bincount(vote(found, maps, tuple(gains))[0][pairs[:, 1]], minlength=classes + 1)[1:]
        low = (named < least * there) & (gains * step <= most)
        if not low.any():
            break
        gains[low] *= step
    return tuple(float(round(gain, 3)) for gain in gains) if (gains > 1).any() else ()


def outlines(labels, *, mpp, origin_um=(0.0, 0.0)) -> list:
    """Return the outline of labels 1 to n, each float32 (v, 2): x, y in um; the largest part of a label in pieces.

    The line runs a quarter of a pixel outside the outermost pixel centres, so that rasterising it at the same pixels
    gives the nucleus back.
    """
    import cv2

    from helpers.hovernet_targets import boxes

    found = []
    for label, (top, bottom, left, right) in enumerate(boxes(labels)[1:], 1):
        mask = (labels[top : bottom + 1, left : right + 1] == label).astype(np.uint8)
        if not mask.size:
            found.append(np.empty((0, 2), np.float32))
            continue
        parts, _ = cv2.findContours(mask.repeat(2, 0).repeat(2, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        line = max(parts, key=lambda part: (cv2.contourArea(part), len(part)))[:, 0]
        line = (line + 0.5) / 2 + (left, top)
        found.append((line * np.asarray(mpp) + origin_um).astype(np.float32))
    return found


def blocks(shape, *, block: int, overlap: int):
    """Yield (core, padded) windows (top, bottom, left, right) that tile a field; cores meet, padded ones overlap."""
    rows, columns = shape
    for top in range(0, rows, block):
        for left in range(0, columns, block):
            core = top, min(top + block, rows), left, min(left + block, columns)
            yield core, (max(core[0] - overlap, 0), min(core[1] + overlap, rows),
                         max(core[2] - overlap, 0), min(core[3] + overlap, columns))  # fmt: skip


def of_core(labels, core, padded):
    """Return the labels whose centroid lies in the core: each nucleus belongs to one block, whatever it overlaps.

    The window next to it sees the same nucleus whole, as long as the overlap exceeds a nucleus and the network's reach.
    """
    area, xy = centres(labels)
    y, x = xy[:, 1] + padded[0], xy[:, 0] + padded[2]
    inside = (area > 0) & (y >= core[0]) & (y < core[1]) & (x >= core[2]) & (x < core[3])
    inside[0] = False
    return np.flatnonzero(inside)


def doubles(xy_um, area_um2, block_of, *, share: float = 0.5):
    """Return bool (n,): nuclei of a later block that lie on one of an earlier block.

    Two nuclei of different blocks are one when their centres are nearer than ``share`` of the smaller one's radius.
    """
    from scipy.spatial import cKDTree

    drop = np.zeros(len(xy_um), bool)
    if len(xy_um) < 2:
        return drop
    radius = np.sqrt(np.asarray(area_um2) / np.pi)
    pairs = cKDTree(xy_um).query_pairs(share * float(radius.max()), output_type="ndarray")
    first, second = pairs.T
    near = np.linalg.norm(xy_um[first] - xy_um[second], axis=1) < share * np.minimum(radius[first], radius[second])
    near &= block_of[first] != block_of[second]
    first, second = first[near], second[near]
    drop[np.where(block_of[first] < block_of[second], second, first)] = True
    return drop

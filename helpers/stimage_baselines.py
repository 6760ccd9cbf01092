"""Methods, STimage: what any model has to beat, on the same split and the same features.

Five ways to predict expression, from nothing at all to a linear head as ST-Net has it, in one call. Every choice
inside (penalty, number of neighbours, number of steps) is made on sections held out within the training set.
"""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.stimage_ridge import (
    ALPHAS,
    LANDMARKS,
    correlation,
    fit,
    gram,
    inner_folds,
    landmarks,
    squared_distances,
)

NAMES = ("mean", "shuffled", "ridge", "neighbours", "st-net head")
NEIGHBOURS = (5, 10, 20, 40, 80)
STEPS = tuple(int(2**k) for k in range(15))
"""Numbers of gradient steps tried: 1 to 16,384."""


def mean(target, n: int):
    """Return each gene's training mean for ``n`` spots, float32 (n, g)."""
    return np.tile(np.asarray(target, np.float32).mean(0), (n, 1))


def shuffled(x, target, sections, x_new, *, seed: int = 0):
    """Return what ridge predicts after the spots' expression was shuffled within each section: chance."""
    rng, sections = settings.rng(seed, "stimage", "shuffled"), np.asarray(sections)
    order = np.arange(len(sections))
    for name in dict.fromkeys(sections.tolist()):
        here = np.flatnonzero(sections == name)
        order[here] = rng.permutation(here)
    return ridge(x, np.asarray(target)[order], sections, x_new)


def ridge(x, target, sections, x_new):
    """Return ridge regression of each gene by itself: linear kernel, all directions."""
    return fit(x, target, sections, kernel="linear", rank=min(np.shape(target)), alphas=ALPHAS[::3]).predict(x_new)


def neighbours(x, target, sections, x_new, *, ks=NEIGHBOURS):
    """Return the mean expression of the k training spots whose features are nearest; k by the inner sections."""
    x, target, x_new = np.asarray(x, np.float32), np.asarray(target, np.float32), np.asarray(x_new, np.float32)
    apart, scored = squared_distances(x, x), np.zeros(len(ks))
    for out in inner_folds(sections):
        order = np.argsort(apart[np.ix_(out, ~out)], axis=1, kind="stable")
        scored += [out.mean() * correlation(target[out], _nearest(order, target[~out], k)).mean() for k in ks]
    order = np.argsort(squared_distances(x_new, x), axis=1, kind="stable")
    return _nearest(order, target, ks[int(np.argmax(scored))])


def _nearest(order, target, k):
    found = np.zeros((len(order), target.shape[1]), np.float32)
    for column in order[:, :k].T:
        found += target[column]
    return found / min(k, order.shape[1])


def st_net_head(x, target, sections, x_new, *, steps=STEPS):
    """Return what a linear layer on frozen features predicts, its bias starting at the mean expression (ST-Net).

    He et al. 2020 (Nat Biomed Eng 4:827) train such a layer on the mean squared error by gradient descent, weights near
    zero at first, bias at each gene's mean: the picture explains deviations from the mean. With weights at zero, full
    batches and a rate of 1 / (largest eigenvalue), the layer after t steps is known in closed form, component by
    component: the share 1 - (1 - value / largest)^t of the least-squares solution. So nothing depends on patience; the
    number of steps is chosen on the inner held-out sections.

    Parameters
    ----------
    x, target, sections, x_new
        Features (n, f), expression (n, g) on a log scale, section ids (n,), features (m, f).
    steps
        Numbers of steps tried.

    Returns
    -------
    float32 (m, g)
    """
    x, target, x_new = np.asarray(x, np.float32), np.asarray(target, np.float64), np.asarray(x_new, np.float32)
    draw = settings.rng(0, "stimage", "landmarks")
    marks, to_coordinates, _ = landmarks(x, kernel="linear", most=LANDMARKS, draw=draw)
    x, x_new = (gram(each, marks, kernel="linear", width2=1) @ to_coordinates for each in (x, x_new))
    scored = np.zeros(len(steps))
    for out in inner_folds(sections):
        path = _descent(x[~out], target[~out], x[out], steps)
        scored += [out.mean() * correlation(target[out], each).mean() for each in path]
    best = steps[int(np.argmax(scored))]
    return next(_descent(x, target, x_new, (best,))).astype(np.float32)


def _descent(x, target, x_new, steps):
    """Yield predictions for new rows after each number of steps, float64 (m, g)."""
    bias, middle = target.mean(0), x.mean(0)
    values, vectors = np.linalg.eigh((x - middle).T @ (x - middle))
    keep = values > values[-1] * 1e-10
    values, vectors = values[keep], vectors[:, keep]
    turned, seen = vectors.T @ ((x - middle).T @ (target - bias)), (x_new - middle) @ vectors
    for number in steps:
        share = -np.expm1(number * np.log1p(-np.minimum(values / values[-1], 1 - 1e-12)))
        yield (seen * (share / values)) @ turned + bias


def every(x, target, sections, x_new, *, seed: int = 0) -> dict:
    """Return the predictions of all baselines for new spots: name -> float32 (m, g), in the order of ``NAMES``.

    Parameters
    ----------
    x, x_new
        float (n, f), (m, f): scaled features of the training and of the new spots.
    target
        float (n, g): log expression of the training spots.
    sections
        (n,) section ids of the training spots.

    Raises
    ------
    CourseError
        Features of another width.
    """
    if np.shape(x)[1:] != np.shape(x_new)[1:]:
        raise CourseError(f"features {np.shape(x)} and {np.shape(x_new)}", "the same columns", "build both alike")
    made = (
        mean(target, len(x_new)), shuffled(x, target, sections, x_new, seed=seed), ridge(x, target, sections, x_new),
        neighbours(x, target, sections, x_new), st_net_head(x, target, sections, x_new),
    )  # fmt: skip
    return dict(zip(NAMES, made))

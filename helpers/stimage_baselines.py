"""Methods, STimage: what any model has to beat, on the same split and the same features.

Five ways to predict expression, from nothing at all to a linear head as ST-Net has it, in one call. Every choice
inside (penalty, number of neighbours, number of steps) is made on sections held out within the training set.
"""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.stimage_ridge import ALPHAS, Scorer, Split, correlation, inner_folds, prepare, regress, squared_distances

NAMES = ("mean", "shuffled", "ridge", "neighbours", "st-net head")
NEIGHBOURS = (5, 10, 20, 40, 80)
STEPS = tuple(int(2**k) for k in range(15))
"""Numbers of gradient steps tried: 1 to 16,384."""


def mean(target, n: int):
    """Return each gene's training mean for ``n`` spots, float32 (n, g)."""
    return np.tile(np.asarray(target, np.float32).mean(0), (n, 1))


def shuffled(x, target, sections, x_new, *, seed: int = 0, on=None):
    """Return what :func:`ridge` predicts after the spots' expression was shuffled within each section: chance."""
    rng, sections = settings.rng(seed, "stimage", "shuffled"), np.asarray(sections)
    order = np.arange(len(sections))
    for name in dict.fromkeys(sections.tolist()):
        here = np.flatnonzero(sections == name)
        order[here] = rng.permutation(here)
    return ridge(x, np.asarray(target)[order], sections, x_new, on=on)


def ridge(x, target, sections, x_new, *, on=None):
    """Return ridge regression of each gene by itself: linear kernel, all directions.

    ``on`` is ``stimage_ridge.prepare(x, sections, kernel="linear")``, where several baselines share it.
    """
    on = prepare(x, sections, kernel="linear") if on is None else on
    return regress(on, target, min(np.shape(target)), ALPHAS[::3]).predict(x_new)


def neighbours(x, target, sections, x_new, *, ks=NEIGHBOURS):
    """Return the mean expression of the k training spots whose features are nearest; k by the inner sections."""
    x, target, x_new = np.asarray(x, np.float32), np.asarray(target, np.float32), np.asarray(x_new, np.float32)
    apart, scored = squared_distances(x, x), np.zeros(len(ks))
    for out in inner_folds(sections):
        order = _order(apart[np.ix_(out, ~out)], max(ks))
        scored += [out.mean() * correlation(target[out], _nearest(order, target[~out], k)).mean() for k in ks]
    order = _order(squared_distances(x_new, x), max(ks))
    return _nearest(order, target, ks[int(np.argmax(scored))])


def _order(apart, most: int):
    """Return the columns of the ``most`` smallest numbers of each row (n, m), smallest first."""
    some = np.argpartition(apart, min(most, apart.shape[1]) - 1, axis=1)[:, :most]
    return np.take_along_axis(some, np.argsort(np.take_along_axis(apart, some, 1), axis=1, kind="stable"), 1)


def _nearest(order, target, k):
    found = np.zeros((len(order), target.shape[1]), np.float32)
    for column in order[:, :k].T:
        found += target[column]
    return found / min(k, order.shape[1])


def st_net_head(x, target, sections, x_new, *, steps=STEPS, on=None):
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
    on
        As for :func:`ridge`.

    Returns
    -------
    float32 (m, g)
    """
    target, on = np.asarray(target, np.float64), prepare(x, sections, kernel="linear") if on is None else on
    scored = np.zeros(len(steps))
    for out, split in on.folds:
        path, score = _descent(split, target[~out], on.coordinates[out], steps), Scorer(target[out])
        scored += [out.mean() * score(each) for each in path]
    best = steps[int(np.argmax(scored))]
    return next(_descent(on.whole, target, on.of(x_new), (best,))).astype(np.float32)


def _descent(split: Split, target, x_new, steps):
    """Yield predictions for new rows after each number of steps, float64 (m, g)."""
    bias, (values, vectors) = target.mean(0), split.eigen
    keep = values > values[-1] * 1e-10
    values, vectors = values[keep], vectors[:, keep]
    turned, seen = vectors.T @ (split.inside.T @ (target - bias)), (x_new - split.centre) @ vectors
    for number in steps:
        share = -np.expm1(number * np.log1p(-np.minimum(values / values[-1], 1 - 1e-12)))
        yield seen @ (turned * (share / values)[:, None]) + bias


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
    on = prepare(x, sections, kernel="linear")  # three of them are linear in the same coordinates
    made = (
        mean(target, len(x_new)), shuffled(x, target, sections, x_new, seed=seed, on=on),
        ridge(x, target, sections, x_new, on=on), neighbours(x, target, sections, x_new),
        st_net_head(x, target, sections, x_new, on=on),
    )  # fmt: skip
    return dict(zip(NAMES, made))

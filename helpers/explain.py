"""Methods: which nuclei of a tile a model looked at - LIME, occlusion and gradients, all on one label image.

``predict`` is any function uint8 RGB (n, h, w, 3) -> (n, genes) or (n,). It is asked in large batches and for all genes
at once: passing perturbed tiles through the encoder costs most, the linear fits almost nothing. The fit is the package
``lime``'s own (Ribeiro, Singh and Guestrin 2016). ``explain_gradient`` holds gradients, ``explain_measures`` what says
whether an explanation is any good.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.explain_gradient import gradient_scores, per_nucleus, saliency
from helpers.explain_measures import (
    agreement,
    agreements,
    area,
    precision_at_k,
    shuffled,
    stability,
    strangeness,
)
from helpers.messages import CourseError

__all__ = [
    "HIDE", "agreement", "agreements", "area", "fill", "gradient_scores", "half_hidden", "lime", "occlusion",
    "per_nucleus", "perturb", "precision_at_k", "saliency", "shuffled", "stability", "strangeness",
]  # fmt: skip

HIDE = ("tissue", "surroundings", "mean", "segment", "black", "white")
"""How a nucleus can be hidden, see :func:`fill`."""
BATCH = 256


def fill(tile, labels, hide="tissue", *, everywhere: bool = False):
    """Return what the tile looks like with every nucleus hidden, uint8 (y, x, 3).

    Parameters
    ----------
    tile
        uint8 RGB (y, x, 3).
    labels
        int (y, x), 0 = background.
    hide
        ``"tissue"``: the median colour between the nuclei, the emptiest quarter (glass, lumina) left out.
        ``"surroundings"``: each nucleus is painted over from its rim inwards (Telea 2004). ``"mean"``: the tile's mean
        colour. ``"segment"``: each nucleus' own mean colour, the default of the package ``lime``; it takes away texture
        only. ``"black"``: as STimage does; no tissue is black, so the model is asked about pictures unlike any it
        has seen. ``"white"``; or three numbers R, G, B.
    everywhere
        Paint the background too, as one more segment.
    """
    import cv2

    tile, labels = _checked(tile, labels)
    if isinstance(hide, str) and hide not in HIDE:
        raise CourseError(f"hide={hide!r}", "one of " + ", ".join(HIDE) + ", or R, G, B", "choose one")
    nuclei = labels > 0
    if not isinstance(hide, str):
        colour = np.asarray(hide, float)
        if colour.shape != (3,) or not ((colour >= 0) & (colour <= 255)).all():
            raise CourseError(f"hide={hide!r}", "three numbers, 0 to 255", "R, G, B")
    elif hide == "surroundings":
        if everywhere:
            raise CourseError("a background hidden by its surroundings", "another hide", "hide='tissue'")
        wide = cv2.dilate(nuclei.astype(np.uint8), np.ones((3, 3), np.uint8))  # the blurred rim is dark as well
        return cv2.inpaint(tile, wide, 3, cv2.INPAINT_TELEA)
    elif hide == "segment":
        size = np.maximum(np.bincount(labels.ravel()), 1)
        means = [np.bincount(labels.ravel(), weights=tile[..., i].ravel()) / size for i in range(3)]
        own = np.rint(np.stack(means, 1)).astype(np.uint8)[labels]
        return np.where((nuclei | everywhere)[..., None], own, tile)
    elif hide == "tissue":
        between = tile[~nuclei] if not nuclei.all() else tile.reshape(-1, 3)
        light = between.sum(1, dtype=int)
        colour = np.median(between[light <= np.quantile(light, 0.75)], axis=0)
    else:
        colour = {"mean": tile.mean((0, 1)), "black": np.zeros(3), "white": np.full(3, 255.0)}[hide]
    return np.where((nuclei | everywhere)[..., None], np.rint(colour).astype(np.uint8), tile)


def perturb(tile, labels, kept, hidden):
    """Return one tile for each row of ``kept``: uint8 (n, y, x, 3).

    Parameters
    ----------
    tile, hidden
        uint8 (y, x, 3): the tile, and :func:`fill` of it.
    labels
        int (y, x).
    kept
        bool (n, largest label + 1): whether each label is shown; column 0 is the background.
    """
    shown = np.asarray(kept, bool)[:, labels]
    return np.where(shown[..., None], tile, hidden)


def half_hidden(tile, labels, *, hide="tissue", n: int = 100, seed: int = 0):
    """Return ``n`` tiles with each nucleus hidden with probability one half, as :func:`lime` asks about: uint8."""
    tile, labels = _checked(tile, labels)
    kept = settings.rng(seed, "explain", "half").integers(0, 2, (n, int(labels.max(initial=0)) + 1)).astype(bool)
    kept[:, 0] = True
    return perturb(tile, labels, kept, fill(tile, labels, hide))


def lime(
    predict, tile, labels, *, n_samples: int = 500, hide="tissue", kernel_width: float = 0.25, background: str = "kept",
    alpha: float = 1.0, seed: int = 0, genes=None, samples=None, out_px: int | None = None, batch: int = BATCH,
) -> pd.DataFrame:  # fmt: skip
    """Score each nucleus by a local linear model of the prediction (LIME): how much showing it adds.

    Parameters
    ----------
    predict
        uint8 RGB (n, h, w, 3) -> (n, genes) or (n,).
    tile
        uint8 RGB (y, x, 3).
    labels
        int (y, x), 0 = background.
    n_samples
        Perturbed tiles, the whole tile among them; in each, every nucleus is hidden with probability one half.
    hide
        See :func:`fill`.
    kernel_width
        sigma of the weight exp(-d^2 / 2 sigma^2), with d the cosine distance between the nuclei shown and all nuclei.
    background
        ``"kept"``: the space between nuclei is always shown. ``"feature"``: it is one more segment, label 0, hidden
        half of the time in the same colour, as ``lime`` does with any segment: nuclei are then also judged on pictures
        that hold nothing else.
    alpha
        Ridge penalty.
    genes
        Names of the outputs.
    samples
        Optional bool (n, segments): which segments each perturbed tile shows, in the order of their labels (instead of
        random ones); the first row is all True.
    out_px
        Shrink tile and labels to this side first. With ``encoder.input_px`` the model sees almost the same pictures,
        and shrinking every perturbed tile, half of the time, is saved. A tile that is smaller stays as it is.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``label``, a column for each gene (``score`` if ``predict`` gives one number), in units of the
        prediction. ``attrs``: lists ``prediction``, ``intercept`` and ``r2`` (of the weighted fit), one number a gene;
        with ``r2`` near 0 the scores describe nothing. No nucleus gives no row.

    Notes
    -----
    The package's explainer for images wants labels without gaps, loops over segments for each perturbed tile and fits
    each output after passes of its own; given the same perturbations the coefficients are the same.
    """
    from sklearn.linear_model import Ridge

    tile, labels = _checked(tile, labels)
    if background not in ("kept", "feature"):
        raise CourseError(f"background={background!r}", "'kept' or 'feature'", "choose one")
    if n_samples < 10 or not kernel_width > 0 or not alpha >= 0:
        seen = f"n_samples={n_samples}, kernel_width={kernel_width}, alpha={alpha}"
        raise CourseError(seen, "10 samples or more, a positive width, alpha not negative", "correct it")
    every = np.unique(labels)[int(background == "kept" and (labels == 0).any()) :]
    tile, labels = _shrunk(tile, labels, out_px)
    segments = np.unique(labels)
    segments = segments[segments > 0] if background == "kept" else segments
    if not (segments > 0).any():
        return _frame(segments[:0], _ask(predict, tile[None], batch), np.empty((0, 0)), genes)
    from lime.lime_base import LimeBase

    rng = settings.rng(seed, "explain", "lime")
    if samples is None:
        samples = rng.integers(0, 2, (n_samples, len(segments))).astype(bool)
        samples[0] = True
    samples = np.asarray(samples, bool)
    if samples.ndim != 2 or samples.shape[1] != len(segments) or not samples[0].all():
        raise CourseError(f"samples {samples.shape}", f"(n, {len(segments)}), the first row all True", "see lime")
    outputs = _outputs(predict, tile, labels, segments, samples, hide, batch)
    distance = 1 - np.sqrt(samples.mean(1))  # cosine distance of a 0/1 vector from all ones
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / kernel_width**2)), random_state=0)
    table = outputs.reshape(len(outputs), -1).astype(float)
    fits = [
        base.explain_instance_with_data(
            samples.astype(float), table, distance, gene, len(segments), feature_selection="none",
            model_regressor=Ridge(alpha=alpha, fit_intercept=True),
        )
        for gene in range(table.shape[1])
    ]  # fmt: skip
    scores = np.zeros((len(segments), len(fits)))
    for column, fit in enumerate(fits):
        for place, weight in fit[1]:
            scores[place, column] = weight
    frame = _frame(segments, outputs, scores, genes)
    if len(every) > len(segments):  # too small to be seen at out_px
        frame = frame.reindex(pd.Index(every, name="label"), fill_value=0.0)
    frame.attrs |= {"intercept": [float(fit[0]) for fit in fits], "r2": [float(fit[2]) for fit in fits]}
    return frame


def _shrunk(tile, labels, side):
    if side is None or min(tile.shape[:2]) <= side:
        return tile, labels
    import cv2

    small = cv2.resize(labels.astype(np.float64), (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), small.astype(np.int32)


def occlusion(
    predict, tile, labels, *, hide="tissue", genes=None, out_px: int | None = None, batch: int = BATCH
) -> pd.DataFrame:
    """Score each nucleus by what the prediction loses when it alone is hidden; as :func:`lime` without sampling.

    As many passes as there are nuclei, and no seed; but nuclei that stand in for each other all score nothing.
    """
    tile, labels = _shrunk(*_checked(tile, labels), out_px)
    segments = np.unique(labels[labels > 0])
    samples = np.vstack([np.ones((1, len(segments)), bool), ~np.eye(len(segments), dtype=bool)])
    outputs = _outputs(predict, tile, labels, segments, samples, hide, batch)
    table = outputs.reshape(len(outputs), -1).astype(float)
    return _frame(segments, outputs, table[:1] - table[1:], genes)


def _outputs(predict, tile, labels, segments, samples, hide, batch):
    """Ask about every perturbed tile, a batch at a time: float (n, genes) or (n,)."""
    hidden = fill(tile, labels, hide, everywhere=bool(len(segments)) and segments[0] == 0)
    place = np.zeros(int(labels.max(initial=0)) + 1, int)
    place[segments] = np.arange(1, len(segments) + 1)
    shown = np.column_stack([np.ones(len(samples), bool), samples])
    compact = place[labels]
    parts = []
    for start in range(0, len(samples), batch):
        parts.append(_ask(predict, perturb(tile, compact, shown[start : start + batch], hidden), batch))
    return np.concatenate(parts)


def _ask(predict, tiles, batch: int):
    said = np.asarray(predict(tiles))
    if said.ndim not in (1, 2) or len(said) != len(tiles) or not np.isfinite(said).all():
        raise CourseError(f"{said.shape} said of {len(tiles)} tiles", "finite numbers (tiles,) or (tiles, genes)",
                          "mend predict")  # fmt: skip
    return said


def _frame(segments, outputs, scores, genes):
    single = outputs.ndim == 1
    width = 1 if single else outputs.shape[1]
    names = (["score"] if single else list(range(width))) if genes is None else [str(gene) for gene in genes]
    if len(names) != width:
        raise CourseError(f"{len(names)} names for {width} outputs", "one each", "genes=[...]")
    index = pd.Index(np.asarray(segments, int), name="label")
    frame = pd.DataFrame(np.asarray(scores, float).reshape(len(index), width), index=index, columns=names)
    frame.attrs = {"prediction": np.atleast_1d(outputs[0]).astype(float).tolist()}  # lists: pandas compares attrs
    return frame


def _checked(tile, labels):
    tile, labels = np.asarray(tile), np.asarray(labels)
    if tile.ndim != 3 or tile.shape[2] != 3 or tile.dtype != np.uint8:
        raise CourseError(f"a tile {tile.shape} of {tile.dtype}", "uint8 RGB (y, x, 3)", "cut it with tiles.cut")
    if labels.shape != tile.shape[:2] or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        seen = f"labels {labels.shape} of {labels.dtype} on a tile {tile.shape[:2]}"
        raise CourseError(seen, "whole numbers, one for each pixel", "segment this tile with nuclei.segment")
    return tile, labels

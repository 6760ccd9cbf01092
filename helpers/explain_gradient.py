"""Methods, explanations: gradients of a prediction with respect to the picture; the encoder is a Keras network."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError

KINDS = ("gradient", "times_input")


def saliency(encoder, head, tile, *, kind: str = "gradient", smooth: int = 0, noise: float = 0.1, seed: int = 0,
             backbone=None):  # fmt: skip
    """Return how strongly each pixel moves a prediction, float32 (y, x).

    Parameters
    ----------
    encoder
        From ``encoders.get``: gives ``inputs`` and ``backbone``.
    head
        What turns embeddings into the prediction: a function of a TensorFlow tensor (n, dim) -> (n,), or (n, 1);
        choose the gene inside it. Differentiable: TensorFlow operations or a Keras model.
    tile
        uint8 RGB (y, x, 3), any size.
    kind
        ``"gradient"``: root of the sum of squared derivatives over the channels, at least 0 (Simonyan et al. 2014).
        ``"times_input"``: derivative x input, summed over channels, with its sign. What "input" means is the encoder's:
        for optical density 0 is glass, so this says what the pixel adds compared with glass; for an ImageNet network 0
        is a mean grey, and the sign says little.
    smooth
        Average over so many noisy copies (SmoothGrad, Smilkov et al. 2017); 0: the tile as it is.
    noise
        Standard deviation of that noise, as a share of the input's range.
    backbone
        ``encoder.backbone()``, if you have called it already; making one takes longer than the gradient.

    Returns
    -------
    float32 (y, x)
        Per pixel of the tile, in units of the prediction per unit of the network's input.
    """
    import cv2
    import tensorflow as tf

    if kind not in KINDS:
        raise CourseError(f"kind={kind!r}", "one of " + ", ".join(KINDS), "choose one")
    tile = np.asarray(tile)
    picture = encoder.inputs(tile[None])
    copies = np.repeat(picture, max(1, smooth), axis=0)
    if smooth:
        rng = settings.rng(seed, "explain", "saliency")
        copies = copies + rng.normal(0, noise * np.ptp(picture), copies.shape).astype(np.float32)
    backbone = encoder.backbone() if backbone is None else backbone
    batch = tf.constant(copies, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(batch)
        said = tf.reshape(head(backbone(batch, training=False)), (len(copies), -1))
        total = tf.reduce_sum(said)
    if said.shape[1] != 1:
        raise CourseError(f"{said.shape[1]} predictions", "one", "let head choose the gene")
    slope = tape.gradient(total, batch)
    if slope is None:
        raise CourseError("a head without a gradient", "TensorFlow operations all the way", "do not call numpy in it")
    slope = slope.numpy()
    found = np.sqrt((slope**2).sum(-1)) if kind == "gradient" else (slope * copies).sum(-1)
    found = found.mean(0)
    height, width = tile.shape[:2]
    scale = found.shape[0] * found.shape[1] / (height * width)  # so that a sum over pixels stays what it was
    shrink = height < found.shape[0]
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR) * scale


def per_nucleus(values, labels, *, how: str = "sum") -> pd.Series:
    """Return the sum, or the mean, of a map (y, x) inside each nucleus, indexed by ``label``."""
    values, labels = np.asarray(values, float), np.asarray(labels)
    if values.shape != labels.shape or how not in ("sum", "mean"):
        raise CourseError(f"a map {values.shape} on labels {labels.shape}, how={how!r}", "one shape; 'sum' or 'mean'",
                          "make the map of the same tile")  # fmt: skip
    size = np.bincount(labels.ravel())
    total = np.bincount(labels.ravel(), weights=values.ravel())
    present = np.flatnonzero(size)
    present = present[present > 0]
    score = total[present] if how == "sum" else total[present] / size[present]
    return pd.Series(score, index=pd.Index(present, name="label"), name="score")


def gradient_scores(encoder, ensemble, scaler, tile, labels, *, genes, kind: str = "gradient", backbone=None):
    """Score nuclei by the gradient of an ensemble's mean log share of each gene, summed inside the nucleus.

    Parameters
    ----------
    encoder, tile, kind, backbone
        As for :func:`saliency`.
    ensemble
        As ``stimage.fit`` returns it: has ``genes`` and ``model``, a Keras model of [features, zeros, zeros] -> (n,
        members, genes).
    scaler
        Has ``mean`` and ``factor``: features are ``(embedding - mean) * factor``.
    labels
        int (y, x), 0 = background.
    genes
        Which of ``ensemble.genes``.

    Returns
    -------
    pandas.DataFrame
        (nuclei, genes), indexed by ``label``.
    """
    import tensorflow as tf

    names, backbone = list(ensemble.genes), encoder.backbone() if backbone is None else backbone
    scores = {}
    for gene in genes:
        place = names.index(gene)

        def head(x, place=place):
            zero = tf.zeros((len(x), 1))
            said = ensemble.model([(x - scaler.mean) * scaler.factor, zero, zero], training=False)
            return tf.reduce_mean(said[:, :, place], axis=1)

        scores[gene] = per_nucleus(saliency(encoder, head, tile, kind=kind, backbone=backbone), labels)
    return pd.DataFrame(scores)

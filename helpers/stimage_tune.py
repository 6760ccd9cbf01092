"""Methods, STimage: FINE_TUNE - the encoder's own weights trained on tiles, with the head and loss of the ensemble."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from helpers import settings, stimage_ensemble, stimage_nb
from helpers.messages import CourseError


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder.

    Attributes
    ----------
    encoder
        Like the one given, with the new weights and another fingerprint: embed tiles with it and fit an ensemble.
    history
        One dict an epoch, epoch 0 before any step: ``epoch``, ``loss`` and ``held_out``, negative log-likelihood of a
        count (constants left out) in the training spots and in the section held out (nan with one section).
    epoch
        Whose weights were kept: the lowest held-out loss; 0 if nothing was better than the encoder as it came.
    """

    encoder: object
    history: list = field(repr=False)
    epoch: int


def fine_tune(
    encoder, tiles, counts, *, library, sections, genes, augmented=(), held_out=None, epochs=5, batch=32,
    learning_rate=1e-5, weight_decay=1e-4, rank=8, steps=100, l2=3e-4, seed=0,
) -> Tuned:  # fmt: skip
    """Train an encoder end to end on tiles and raw counts.

    The head is first fitted on the embeddings as they are, so that its first gradients do not spoil the encoder; then
    all weights move together, by AdamW with a small rate. Batch normalisation stays as it came: small batches spoil it.
    A training section is held out to choose the epoch, since a backbone can learn its training tiles by heart.

    Parameters
    ----------
    encoder
        From ``encoders.get``; a Keras one.
    tiles
        uint8 RGB (n, height, width, 3).
    counts, library, sections, genes
        As in :func:`helpers.stimage.fit`.
    augmented
        Further versions of the same tiles, each an array like ``tiles`` (turned, recoloured): in every epoch a tile is
        shown in one of its versions, drawn at random.
    held_out
        Section that chooses the epoch; None: one drawn at random. With one section the last epoch is kept.
    batch, learning_rate, weight_decay, epochs
        Of AdamW; epochs count passes over the training tiles.
    rank, steps, l2
        Of the head.

    Returns
    -------
    Tuned
        Sizes and intervals of heads fitted on its embeddings of these same tiles are too sure: the encoder has seen
        them. Calibrate on sections it has not seen.
    """
    import keras

    data, versions = _checked(encoder, tiles, augmented, counts, library, sections, genes, epochs, batch)
    rng = settings.rng(seed, "stimage", "tune")
    validation = _held_out(data, held_out, rng)
    train = np.flatnonzero(~validation)
    backbone = encoder.backbone()
    for part in _layers(backbone):  # only so does Keras keep the stored means: training=False in a graph is overruled
        if isinstance(part, keras.layers.BatchNormalization):
            part.trainable = False
    start = _embed(backbone, encoder, versions[0], batch)
    options = {
        "members": 1, "rank": rank, "activation": "relu", "steps": steps, "l2": l2, "learning_rate": 0.01,
        "batch": stimage_ensemble.BATCH, "components": 96, "dispersion": "gene", "size_prior": 0.05,
    }  # fmt: skip
    first = replace(data, x=start)
    r, _ = stimage_ensemble.sizes(first, options=options, seed=seed)
    weight = (~validation)[:, None].astype(np.float32)
    head = stimage_ensemble.train(first, weight=weight, r=r, options=options, rng=rng)
    for part in head.trainable_weights:  # from here on the decay of AdamW holds the weights
        part.regularizer = None
    log_r, known = np.log(r), np.log(data.library)[:, None].astype(np.float32)
    section = np.where(validation, 0, data.section + 1)[:, None].astype(np.float32)
    from helpers.stimage_layers import NegativeBinomial

    seen = keras.Input(backbone.input_shape[1:], name="tile")
    others = [keras.Input((1,), name=name) for name in ("log_library", "section")]
    model = keras.Model([seen, *others], head([backbone(seen), *others]))
    model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay), loss=NegativeBinomial(log_r))

    def loss_of(which):
        """Mean over spots and genes, in blocks; nan without spots."""
        total = 0.0
        for at in range(0, len(which), batch):
            some = which[at : at + batch]
            given = [encoder.inputs(versions[0][some]), known[some], section[some]]
            log_mu = np.asarray(model(given, training=False))[:, 0].astype(float)
            y = _dense(data.counts[some])
            found = stimage_nb.log_likelihood(y, log_mu - log_r, r) + np.log(y + r) + _betaln(y, r)
            total -= float(found.sum())
        return total / (len(which) * len(r)) if len(which) else float("nan")

    out = np.flatnonzero(validation)
    history = [{"epoch": 0, "loss": loss_of(train), "held_out": loss_of(out)}]
    best, kept = 0, backbone.get_weights()
    for epoch in range(1, epochs + 1):
        order, version = rng.permutation(train), rng.integers(len(versions), size=len(versions[0]))
        for at in range(0, len(order), batch):
            some = order[at : at + batch]
            shown = np.stack([versions[version[i]][i] for i in some])
            y = _dense(data.counts[some]).astype(np.float32)[:, None]
            model.train_on_batch([encoder.inputs(shown), known[some], section[some]], y)
        history.append({"epoch": epoch, "loss": loss_of(train), "held_out": loss_of(out)})
        if not np.isfinite(history[-1]["loss"]):
            raise CourseError(f"a loss of {history[-1]['loss']} in epoch {epoch}", "a finite loss",
                              "lower learning_rate")  # fmt: skip
        if not len(out) or history[-1]["held_out"] < history[best]["held_out"]:
            best, kept = epoch, backbone.get_weights()
    backbone.set_weights(kept)
    return Tuned(_encoder(encoder, backbone), history, best)


def _checked(encoder, tiles, augmented, counts, library, sections, genes, epochs, batch):
    versions = [np.asarray(tiles), *(np.asarray(more) for more in augmented)]
    for more in versions:
        if more.dtype != np.uint8 or more.ndim != 4 or more.shape[-1] != 3 or len(more) != len(versions[0]):
            wanted = f"uint8 RGB ({len(versions[0])}, height, width, 3)"
            raise CourseError(f"tiles {more.shape} of {more.dtype}", wanted, "cut them with tiles.cut")
    if epochs < 1 or batch < 1:
        raise CourseError(f"epochs={epochs}, batch={batch}", "1 or more", "correct them")
    blank = np.zeros((len(versions[0]), 1), np.float32)
    return stimage_ensemble.check(blank, counts, library=library, sections=sections, genes=genes), versions


def _held_out(data, wanted, rng):
    """Return which spots choose the epoch, bool (n,)."""
    if wanted is None and len(data.names) == 1:
        return np.zeros(len(data.x), bool)
    name = data.names[int(rng.integers(len(data.names)))] if wanted is None else str(wanted)
    if name not in data.names or len(data.names) == 1:
        raise CourseError(f"held_out={name!r}", f"one of several sections, here {', '.join(data.names)}", "choose one")
    return data.section == data.names.index(name)


def _dense(counts):
    return np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, float)


def _betaln(y, r):
    from scipy.special import betaln

    return betaln(r, y + 1)


def _layers(model):
    for part in model.layers:
        yield part
        if hasattr(part, "layers"):
            yield from _layers(part)


def _embed(backbone, encoder, tiles, batch):
    parts = [np.asarray(backbone(encoder.inputs(tiles[at : at + batch]), training=False))
             for at in range(0, len(tiles), batch)]  # fmt: skip
    return np.concatenate(parts).astype(np.float32)


def _encoder(encoder, backbone):
    """Return an encoder like the one given, whose weights are the backbone's."""
    import keras

    digest = hashlib.sha256(encoder.fingerprint.encode())
    for array in backbone.get_weights():
        digest.update(np.ascontiguousarray(array))

    def copy():
        twin = keras.models.clone_model(backbone)
        twin.set_weights(backbone.get_weights())
        return twin

    return replace(
        encoder, name=f"{encoder.name}-tuned", fingerprint=digest.hexdigest()[:16], make_backbone=copy,
        forward=lambda batch: np.asarray(backbone(batch, training=False)),
    )  # fmt: skip

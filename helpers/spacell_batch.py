"""Methods: autoencoders of one structure trained together, as one network whose layers hold a kernel per member.

Training 36 small networks one by one spends most of its time on starting each. Here members share the steps; none sees
another's weights, and Adam's step does not depend on a loss's size, so each member trains as if alone.
Importing TensorFlow takes seconds, hence the layers live in ``spacell_layers``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.messages import CourseError

LOSSES = ("bce", "mse", "kl")
LATENT = 20
_FAR = -1e4
EPS = 1e-6


@dataclass(frozen=True)
class Trained:
    """The result of one member.

    Attributes
    ----------
    code
        Float32 (n, latent).
    loss, mean_loss, floor
        Loss after training, that of predicting every feature's mean, and that of a perfect copy.
    """

    code: np.ndarray = field(repr=False)
    loss: float
    mean_loss: float
    floor: float

    @property
    def learned(self) -> float:
        """Share of the reducible loss of the mean predictor that training took away."""
        return 1 - (self.loss - self.floor) / max(self.mean_loss - self.floor, 1e-12)


def losses_of(target, logits, loss: str):
    """Return the loss of a prediction, in numpy, float64, averaged over spots.

    ``mse`` and ``bce``: mean over features, of sigmoid(logits). ``kl``: target and softmax(logits), each a distribution
    over the features of a spot (equation 3 of the paper; Keras' own KL of a sigmoid output does not normalise, and is
    smallest when everything is 1).
    """
    from scipy.special import log_softmax

    target, logits = np.asarray(target, float), np.asarray(logits, float)
    if loss == "mse":
        return float(((target - 1 / (1 + np.exp(-logits))) ** 2).mean())
    if loss == "bce":
        return float((np.logaddexp(0, logits) - target * logits).mean())
    share = _shares(target)
    return float((share * (np.log(np.maximum(share, EPS)) - log_softmax(logits, axis=-1))).sum(-1).mean())


def _shares(target):
    return (target + EPS) / (target + EPS).sum(-1, keepdims=True)


def _mean_logits(target, loss):
    """Logits of the best constant prediction."""
    if loss == "kl":
        return np.log(_shares(target).mean(0))
    mean = np.clip(target.mean(0), 1e-4, 1 - 1e-4)
    return np.log(mean / (1 - mean))


def _perfect_logits(target, loss):
    if loss == "kl":
        return np.log(_shares(target))
    inside = np.clip(np.asarray(target, float), 1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside))


def train_together(
    members, *, seed=0, name="", epochs=15, batch=64, hidden=(128, 64), latent=LATENT, components=16,
    learning_rate=2e-3, model_out=None,
) -> list[Trained]:  # fmt: skip
    """Train autoencoders of one structure at once.

    Parameters
    ----------
    members
        List of (blocks, loss): ``blocks`` is a list of arrays (n, features) in [0, 1], as many in each member; losses
        as in ``LOSSES``. Members may differ in the number of features: the missing ones are masked.
    epochs, batch, learning_rate
        Of Adam.
    hidden
        Widths of the encoder's layers, ReLU; the decoder mirrors them.
    latent
        Width of the linear bottleneck.
    components
        The encoder sees the leading principal components of a block (a fixed first layer, which saves half of the
        time); 0 gives it all features. The decoder always draws all features.
    model_out
        A list to which the trained Keras model is appended, to be saved.

    Raises
    ------
    CourseError
        Values outside [0, 1] or not finite, blocks of different lengths, or an unknown loss.
    """
    import keras

    from helpers import settings
    from helpers.spacell_layers import Batches, build

    number = {len(blocks) for blocks, _ in members}
    spots = {len(block) for blocks, _ in members for block in blocks}
    if len(number) != 1 or len(spots) != 1 or not set(loss for _, loss in members) <= set(LOSSES):
        raise CourseError(
            f"{sorted(number)} blocks of {sorted(spots)} spots, losses {sorted({loss for _, loss in members})}",
            f"members of one structure, losses among {', '.join(LOSSES)}", "train others apart",
        )  # fmt: skip
    for blocks, _ in members:
        for block in blocks:
            if not (np.isfinite(block).all() and block.min() >= 0 and block.max() <= 1):
                raise CourseError(
                    f"values {np.nanmin(block):.3g} to {np.nanmax(block):.3g}", "0 to 1", "scale with minmax first"
                )
    rng = settings.rng(seed, "spacell", name)
    width = [max(blocks[i].shape[1] for blocks, _ in members) for i in range(number.pop())]
    n, many = spots.pop(), len(members)
    order = sorted(range(many), key=lambda m: LOSSES.index(members[m][1]))  # members of one loss lie side by side
    names = [members[m][1] for m in order]
    x, y, mask, start = [], [], [], []
    for i, features in enumerate(width):
        seen, drawn = [], np.zeros((n, many, features), np.float32)
        present, bias = np.zeros((many, features), np.float32), np.full((many, features), _FAR, np.float32)
        for place, m in enumerate(order):
            block = np.asarray(members[m][0][i], np.float32)
            drawn[:, place, : block.shape[1]], present[place, : block.shape[1]] = block, 1
            bias[place, : block.shape[1]] = _mean_logits(block, names[place])
            seen.append(_projected(block, components, features))
        x.append(np.stack(seen, 1).astype(np.float32))
        y.append(drawn)
        mask.append(present)
        start.append(bias)
    model = build(
        [part.shape[2] for part in x], width, names, hidden=hidden, latent=latent, masks=mask, start=start,
        learning_rate=learning_rate, seed=int(rng.integers(2**31)),
    )  # fmt: skip
    model.fit(Batches(x, y, batch, rng), epochs=epochs, verbose=0, shuffle=False)
    if model_out is not None:
        model_out.append(model)
    coder = keras.Model(model.input, model.get_layer("latent").output)
    code, drawn = coder.predict(x, verbose=0, batch_size=512), model.predict(x, verbose=0, batch_size=512)
    drawn = drawn if isinstance(drawn, list) else [drawn]
    results = [None] * many
    for place, m in enumerate(order):
        total = np.zeros(3)
        for i, block in enumerate(members[m][0]):
            logits = drawn[i][:, place, : block.shape[1]]
            means = np.broadcast_to(_mean_logits(block, names[place]), block.shape)
            versions = (logits, means, _perfect_logits(block, names[place]))
            total += [losses_of(block, version, names[place]) for version in versions]
        results[m] = Trained(np.ascontiguousarray(code[:, place]), *total)
    return results


def _projected(block, components: int, features: int):
    """Return what the encoder sees: leading principal components with mean square 1 over all, or the centred block."""
    centred = block - block.mean(0)
    if components and components < min(block.shape):
        from scipy.sparse.linalg import svds

        u, s, _ = svds(centred.astype(np.float64), k=components, v0=np.ones(min(block.shape)))
        centred = (u * s)[:, ::-1]
    elif block.shape[1] < features:
        centred = np.pad(centred, ((0, 0), (0, features - block.shape[1])))
    return centred / max(float(np.sqrt((centred**2).mean())), 1e-12)

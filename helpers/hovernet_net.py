"""Methods: HoVer-Net's network and losses in Keras; importing this loads TensorFlow.

One encoder of pre-activation residual units, three decoders with dense units (Graham et al. 2019, section III.A;
PathML's version with padding, as STimage trains it). All three end in one tensor of logits: nucleus (1), horizontal and
vertical map (2), class (background and C), so that one loss function sees everything. One nucleus logit under a
sigmoid is the same function as two under a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

PACKAGE = "helpers.hovernet"


@dataclass(frozen=True)
class Preset:
    """The measures of a network.

    ``stem`` and ``stem_stride`` are kernel and stride of the first convolution, ``widths`` and ``units`` the inner
    channels and number of residual units of each level (each level halves the side but the first), ``expansion`` the
    outer channels over the inner ones, ``decoder`` the channels of each decoder level from deep to shallow,
    ``dense`` and ``growth`` the dense units of each but the last, and the channels each adds, ``kernel`` the decoder's.
    """

    stem: int
    stem_stride: int
    widths: tuple
    units: tuple
    expansion: int
    bottom: int
    decoder: tuple
    dense: tuple
    growth: int
    kernel: int
    groups: int
    momentum: float
    tile: int
    batch: int
    learning_rate: float


PRESETS = {
    "full": Preset(
        stem=7, stem_stride=1, widths=(64, 128, 256, 512), units=(3, 4, 6, 3), expansion=4, bottom=1024,
        decoder=(256, 128, 64), dense=(8, 4), growth=32, kernel=5, groups=4, momentum=0.99, tile=256, batch=8,
        learning_rate=3e-4,
    ),
    "tiny": Preset(
        stem=4, stem_stride=2, widths=(16, 32, 64), units=(1, 1, 1), expansion=1, bottom=0,
        decoder=(32, 16), dense=(1,), growth=16, kernel=3, groups=1, momentum=0.9, tile=128, batch=8,
        learning_rate=4e-3,
    ),
}  # fmt: skip
"""``full``: the published widths and tiles, 58 million weights; one tile takes 12 s a step on a core and 7 GB, so it is
for a GPU. ``tiny``: half resolution inside, for two cores and a minute."""


class _Builder:
    """Layers with names and seeds that count up, so that one seed gives one network."""

    def __init__(self, preset: Preset, seed: int):
        self.preset, self.seed = preset, int(seed)

    def conv(self, x, channels, kernel=1, *, stride=1, groups=1, bias=False, name=None):
        if groups > 1:  # Keras' own groups fall back to XLA, on a CPU a hundred times slower than these small ones
            parts = [self.conv(part, channels // groups, kernel, stride=stride) for part in ops.split(x, groups, -1)]
            return layers.Concatenate(name=name)(parts)
        self.seed += 1
        start = keras.initializers.HeNormal(seed=self.seed)
        return layers.Conv2D(
            channels, kernel, stride, padding="same", use_bias=bias, kernel_initializer=start, name=name
        )(x)

    def active(self, x, name=None):
        x = layers.BatchNormalization(momentum=self.preset.momentum, epsilon=1e-5)(x)
        return layers.ReLU(name=name)(x)

    def level(self, x, inner, units, stride):
        """Residual units of He et al. 2016: norm and ReLU come before each convolution."""
        outer = inner * self.preset.expansion
        for i in range(units):
            step = stride if i == 0 else 1
            pre = self.active(x)
            if self.preset.expansion > 1:
                y = self.conv(pre, inner)
                y = self.conv(self.active(y), inner, 3, stride=step)
                y = self.conv(self.active(y), outer)
            else:
                y = self.conv(pre, inner, 3, stride=step)
                y = self.conv(self.active(y), outer, 3)
            if i == 0 and (step > 1 or x.shape[-1] != outer):
                x = self.conv(pre, outer, 1, stride=step)
            x = layers.Add()([x, y])
        return self.active(x)

    def dense(self, x, units):
        """Dense units: each sees all before it and adds ``growth`` channels (Huang et al. 2017)."""
        p = self.preset
        for _ in range(units):
            y = self.conv(self.active(x), p.growth * 4 if p.expansion > 1 else p.growth)
            y = self.conv(self.active(y), p.growth, p.kernel, groups=p.groups)
            x = layers.Concatenate()([x, y])
        return self.active(x)

    def decoder(self, skips, out, name):
        """One decoder: enlarge, add the encoder's level, convolve, dense units; logits at the image's size."""
        p, x = self.preset, skips[-1]
        for i, (channels, skip) in enumerate(zip(p.decoder, skips[-2::-1])):
            x = layers.UpSampling2D(interpolation="nearest")(self.conv(x, skip.shape[-1]))
            x = self.conv(layers.Add()([x, skip]), channels, p.kernel)
            if i < len(p.dense):
                x = self.dense(x, p.dense[i])
        x = self.active(x, name=f"{name}_features")
        self.seed += 1
        if p.stem_stride == 1:
            return self.conv(x, out, bias=True)
        return layers.Conv2DTranspose(
            out, 2 * p.stem_stride, p.stem_stride, padding="same",
            kernel_initializer=keras.initializers.GlorotUniform(seed=self.seed),
        )(x)  # fmt: skip


def build(preset: Preset, *, classes: int, seed: int = 0):
    """Return the network: float32 (n, y, x, 3), 0 to 255, to logits (n, y, x, 1 + 2 + 1 + classes).

    Sides must be multiples of 8. The input is scaled inside, so that nobody can forget it.
    """
    b = _Builder(preset, seed * 1000)
    image = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 51, -3.5, name="scale")(image)  # 0..255 to -3.5..1.5: about mean 0, sd 1 on tissue
    x = b.active(b.conv(x, preset.widths[0], preset.stem, stride=preset.stem_stride))
    skips = []
    for i, (inner, units) in enumerate(zip(preset.widths, preset.units)):
        x = b.level(x, inner, units, 1 if i == 0 else 2)
        skips.append(x)
    if preset.bottom:
        skips[-1] = b.conv(x, preset.bottom)
    outs = [b.decoder(skips, out, name) for out, name in ((1, "np"), (2, "hv"), (1 + classes, "nc"))]
    return keras.Model(image, layers.Concatenate(name="logits")(outs), name="hovernet")


def stepper(model, loss, optimizer):
    """Return one step of training as a compiled function of images and targets; it returns the loss.

    The numbers are those of ``train_on_batch``, whose first call takes twice as long: it builds the graph twice.
    """
    import tensorflow as tf

    weights = model.trainable_variables
    optimizer.build(weights)

    @tf.function(jit_compile=False)
    def step(images, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, model(images, training=True))
        optimizer.apply(tape.gradient(value, weights), weights)
        return value

    return step


def gradient_kernel(size: int = 5):
    """Return the published kernel of the horizontal slope, x / (x^2 + y^2), float32 (size, size)."""
    reach = np.arange(size) - size // 2
    x, y = np.meshgrid(reach, reach)
    return (x / np.maximum(x**2 + y**2, 1)).astype(np.float32)


@keras.saving.register_keras_serializable(package=PACKAGE)
class HoverLoss(keras.losses.Loss):
    """The published sum: NP cross-entropy and Dice, HV squared error and twice that of its slopes, NC as NP.

    Parameters
    ----------
    class_weights
        Float (1 + C,): weight of a pixel of each class in the cross-entropy of NC.
    slope
        Weight of the squared error of the maps' slopes, averaged over nuclear pixels.

    Notes
    -----
    Targets are (n, y, x, 4): nucleus, horizontal, vertical, class code. Pixels of class ``unknown`` count in all but
    NC. The kernel of the slopes is normalised to answer 1 to a step of 1 (the published one answers 4.2, which makes
    the term 17 times as heavy).
    """

    def __init__(self, class_weights, slope: float = 2.0, unknown: int = 255, **options):
        super().__init__(**options)
        self.class_weights, self.slope, self.unknown = [float(w) for w in class_weights], float(slope), int(unknown)
        kernel = gradient_kernel()
        kernel = kernel / kernel[kernel > 0].sum()
        self.across, self.down = kernel[:, :, None, None], kernel.T[:, :, None, None].copy()

    def get_config(self):
        """Numbers only."""
        config = super().get_config()
        return {**config, **{name: getattr(self, name) for name in ("class_weights", "slope", "unknown")}}

    def parts(self, target, logits) -> dict:
        """Return the six terms, unweighted."""
        inside, code = target[..., :1], ops.cast(target[..., 3], "int32")
        known = ops.cast(ops.not_equal(code, self.unknown), "float32")[..., None]
        chance = ops.sigmoid(logits[..., :1])
        error = logits[..., 1:3] - target[..., 1:3]
        slopes = [ops.conv(error[..., i : i + 1], k, padding="same") for i, k in enumerate((self.across, self.down))]
        truth = ops.one_hot(code, len(self.class_weights)) * known
        log_share = ops.log_softmax(logits[..., 3:], -1)
        weighted = ops.sum(truth * log_share * np.float32(self.class_weights), -1)
        return {
            "np": ops.mean(ops.softplus(logits[..., :1]) - inside * logits[..., :1]),
            "np_dice": _dice(inside, chance),
            "hv": ops.mean(ops.square(error)),
            "slope": sum(ops.sum(ops.square(s) * inside) for s in slopes) / (ops.sum(inside) + 1),
            "nc": -ops.sum(weighted) / (ops.sum(known) + 1),
            "nc_dice": _dice(truth, ops.exp(log_share) * known),
        }

    def call(self, target, logits):
        """Return the sum of the terms, the slopes ``slope`` times."""
        parts = self.parts(target, logits)
        return sum(value * (self.slope if name == "slope" else 1.0) for name, value in parts.items())


def _dice(truth, share):
    """1 less the Dice of each channel over the batch, averaged over channels."""
    both = ops.sum(truth * share, (0, 1, 2))
    each = ops.sum(truth, (0, 1, 2)) + ops.sum(share, (0, 1, 2))
    return ops.mean(1 - (2 * both + 1) / (each + 1))

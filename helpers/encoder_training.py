"""Making the bundled encoder ``tiny``: a small network taught by contrast on virtual tiles, without any label.

Two views of one place of tissue are to lie closer than views of other places (SimCLR: Chen et al. 2020,
arXiv 2002.05709, equation 1). The views differ by turn, flip, crop, scale, stain, light, blur and noise, so none of
these helps. The negatives come mostly from the same slide, so that the slide's own colour cannot help either.

The simulator only supplies pictures here; its truth (cells, domains, expression) is never read. Training seeds are 1000
and above; the course grades on ``SEED`` (default 0) and tests on seeds below 1000 and from 5000 on.

Run ``python -m helpers.encoder_training`` (or ``make encoder``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from helpers import settings
from helpers.messages import CourseError, note, say

FOLDER = settings.ROOT / "data" / "encoders"
STYLES = ("dense", "loose", "ffpe")
FIRST_SEED = 1000
FIELD_UM, FIELD_MPP = 900.0, 0.69
VIEW_PX, INPUT_PX = 64, 96
UM_PER_PX = (0.75, 1.6)
"""Scale of a view, in microns of tissue per pixel; a 100 um tile at ``INPUT_PX`` has 1.04."""
TEMPERATURE, PROJECTION = 0.2, 128
FIELDS_IN_BATCH, FROM_EACH = 8, 16
WIDTHS = (24, 48, 96, 192)
STEPS, FIELDS = 900, 60
# Optical density of haematoxylin, eosin and the residual (Ruifrok and Johnston 2001), unit rows
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)


# ---------------------------------------------------------------- pictures
def field(seed: int, *, size_um: float = FIELD_UM, stain_batch: str = "encoder"):
    """Return one virtual picture without glass round it: uint8 (y, x, 3) at ``FIELD_MPP``, and its cells.

    The style goes by ``seed`` modulo 3; ``stain_batch`` draws the stain. The cells are for probes, never for training.
    """
    from helpers.virtual import anatomy, cells, rendering

    style = STYLES[seed % len(STYLES)]
    ground = anatomy.grow(seed=seed, section="encoder", size_um=(size_um, size_um), style=style, full_tissue=True)
    placed = cells.place(ground, seed=seed, section="encoder")
    stain = rendering.draw_stain(seed=seed, batch=stain_batch, style=style)
    slide = rendering.render(ground, placed, stain, mpp=FIELD_MPP, seed=seed, section="encoder")
    return slide.image, placed.table


def grid_tiles(seed: int, *, side_um: float = 100.0, out_px: int = 299, stain_batch: str = "encoder"):
    """Cut a field into tiles side by side, and count the nuclei in each (for probes).

    Returns
    -------
    tiles : uint8 (n, out_px, out_px, 3)
    density : float64 (n,), nuclei per mm2, both layers
    """
    image, table = field(seed, stain_batch=stain_batch)
    side = round(side_um / FIELD_MPP)
    across = image.shape[1] // side
    tiles = [
        cv2.resize(image[y : y + side, x : x + side], (out_px, out_px), interpolation=cv2.INTER_CUBIC)
        for y in np.arange(image.shape[0] // side) * side
        for x in np.arange(across) * side
    ]
    cell = (table[["y_um", "x_um"]].to_numpy() / FIELD_MPP // side).astype(int)
    inside = (cell < [image.shape[0] // side, across]).all(1)
    count = np.bincount(cell[inside] @ [across, 1], minlength=len(tiles))
    return np.stack(tiles), count / (side * FIELD_MPP / 1000) ** 2


# ---------------------------------------------------------------- views
def _look(view, stream):
    """Change stain, light, focus and noise of one view; uint8 in, optical density (float32, same shape) out."""
    if stream.random() < 0.5:
        view = cv2.GaussianBlur(view, (0, 0), stream.uniform(0.3, 1.2))
    density = _density()[view]
    amounts = density.reshape(-1, 3) @ _UNMIX
    amounts *= np.exp(stream.normal(0, [0.25, 0.30, 0.25])).astype(np.float32)
    turned = _STAINS + stream.normal(0, 0.06, (3, 3)).astype(np.float32)
    density = (amounts @ turned).reshape(view.shape)
    density += stream.normal(0, 0.06, 3).astype(np.float32) + np.float32(stream.normal(0, 0.06))  # lamp and glass
    density += np.float32(stream.uniform(0, 0.04)) * stream.standard_normal(view.shape, dtype=np.float32)
    return np.clip(density, 0, 5.6)


def _density():
    """Natural optical density of the levels 0 to 255 against a white of 255, float32 (256,)."""
    return -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def _crop(image, centre, um_per_px, stream):
    """Cut, scale, turn and flip one view round ``centre`` (x, y): uint8 (VIEW_PX, VIEW_PX, 3)."""
    ratio = um_per_px / FIELD_MPP
    half = (VIEW_PX - 1) / 2
    turn = stream.uniform(0, 2 * np.pi)
    a, b = ratio * np.cos(turn), ratio * np.sin(turn)
    flip = stream.choice([-1.0, 1.0])
    matrix = np.array([[a * flip, -b, 0], [b * flip, a, 0]])
    matrix[:, 2] = centre - matrix[:, :2] @ [half, half]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (VIEW_PX, VIEW_PX), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def pairs(images, stream):
    """Return two views each of FIELDS_IN_BATCH x FROM_EACH places: float32 (2 n, VIEW_PX, VIEW_PX, 3), halves paired.

    Empty places (less than a third of the pixels coloured) are drawn again.
    """
    one, two = [], []
    for number in stream.choice(len(images), FIELDS_IN_BATCH, replace=False):
        image = images[number]
        size = np.array(image.shape[1::-1])
        found = 0
        while found < FROM_EACH:
            centre = stream.uniform(0.06, 0.94, 2) * size
            x, y = centre.astype(int)
            around = image[max(y - 40, 0) : y + 40 : 4, max(x - 40, 0) : x + 40 : 4]
            if (around.min(axis=2) < 190).mean() < 0.33:
                continue
            found += 1
            scale = np.exp(stream.uniform(*np.log(UM_PER_PX)))
            for views in (one, two):
                shift = stream.uniform(-8, 8, 2) * scale / FIELD_MPP
                view = _crop(image, centre + shift, scale * np.exp(stream.uniform(-0.2, 0.2)), stream)
                views.append(_look(view, stream))
    return np.stack(one + two)


# ---------------------------------------------------------------- network
def network(seed: int):
    """Return an untrained ``tiny``: optical density (side, side, 3) -> 192 numbers (the layer ``embedding``)."""
    import keras
    from keras import layers

    seeds = iter(settings.rng(seed, "encoder", "weights").integers(0, 2**31 - 1, 100).tolist())

    def convolve(x, width, kernel, stride=1):
        start = keras.initializers.HeNormal(seed=next(seeds))
        x = layers.Conv2D(width, kernel, stride, "same", use_bias=False, kernel_initializer=start)(x)
        return layers.BatchNormalization(momentum=0.95)(x)

    x = image = keras.Input((None, None, 3), name="optical_density")
    x = layers.ReLU()(convolve(x, WIDTHS[0], 5, 2))
    for width in WIDTHS[1:]:
        x = layers.ReLU()(convolve(x, width, 3, 2))
        x = layers.ReLU()(layers.Add()([x, convolve(x, width, 3)]))
    return keras.Model(image, layers.GlobalAveragePooling2D(name="embedding")(x), name="tiny")


def _projector(dim: int, seed: int):
    """Return the head that only training needs: 192 -> 256 -> PROJECTION."""
    import keras
    from keras import layers

    first, second = settings.rng(seed, "encoder", "projector").integers(0, 2**31 - 1, 2).tolist()
    x = given = keras.Input((dim,))
    x = layers.Dense(256, use_bias=False, kernel_initializer=keras.initializers.HeNormal(seed=first))(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(x))
    start = keras.initializers.GlorotNormal(seed=second)
    return keras.Model(given, layers.Dense(PROJECTION, kernel_initializer=start)(x))


def contrast(projected):
    """Return SimCLR's loss and the share of views whose partner is nearest, from (2 n, d) with paired halves."""
    import tensorflow as tf

    unit = tf.math.l2_normalize(projected, axis=1)
    count = tf.shape(unit)[0]
    like = tf.matmul(unit, unit, transpose_b=True) / TEMPERATURE - 1e9 * tf.eye(count)
    partner = tf.roll(tf.range(count), count // 2, 0)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(partner, like)
    right = tf.cast(tf.argmax(like, 1, output_type=tf.int32) == partner, tf.float32)
    return tf.reduce_mean(loss), tf.reduce_mean(right)


def calibrate(model, images, stream, batches: int = 20):
    """Set the batch normalisation's averages of ``model`` from data, in place (for the untrained twin)."""
    for _ in range(batches):
        model(pairs(images, stream), training=True)


def train(*, steps: int, fields: int, seed: int = FIRST_SEED, size_um: float = FIELD_UM):
    """Train; return the encoder, a table of (step, loss, share of partners found) every 20 steps, and the pictures."""
    import keras
    import tensorflow as tf

    if fields < FIELDS_IN_BATCH or seed < FIRST_SEED:
        raise CourseError(f"{fields} fields from seed {seed}", f"{FIELDS_IN_BATCH} or more, from {FIRST_SEED} on",
                          "raise --fields or --seed")  # fmt: skip
    began = time.perf_counter()
    images = [field(seed + k, size_um=size_um)[0] for k in range(fields)]
    note(f"{fields} fields drawn in {time.perf_counter() - began:.0f} s")
    model = network(seed)
    head = _projector(model.output_shape[-1], seed)
    rate = keras.optimizers.schedules.CosineDecay(1e-4, steps, warmup_target=2e-3, warmup_steps=max(1, steps // 20))
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4)
    variables = model.trainable_variables + head.trainable_variables
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def step(views):
        with tf.GradientTape() as tape:
            loss, right = contrast(head(model(views, training=True), training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss, right

    stream, history, recent = settings.rng(seed, "encoder", "views"), [], []
    began = time.perf_counter()
    for number in range(1, steps + 1):
        recent.append([float(value) for value in step(tf.constant(pairs(images, stream)))])
        if number % 20 == 0 or number == steps:
            loss, right = np.mean(recent, axis=0)
            history.append((number, float(loss), float(right)))
            recent = []
            spent = time.perf_counter() - began
            note(f"step {number:5d}  loss {loss:.3f}  partners found {right:.2f}  {spent:.0f} s")
    return model, history, images


# ---------------------------------------------------------------- checks and files
def check(model, history, images, stream) -> dict:
    """Return what training did; raise where the loss hardly fell or the embeddings collapsed.

    Returns ``loss`` (first and last), ``partners_found`` (share of views whose partner is the nearest of a batch;
    chance is 1 / (batch - 1)) and ``directions``, the embeddings' effective number of directions (participation ratio
    of the covariance's eigenvalues; 1 = collapsed to a line; the untrained network has 1.7).
    """
    embedded = model(pairs(images, stream), training=False).numpy()
    spread = np.linalg.eigvalsh(np.cov(embedded.T))
    directions = float(spread.sum() ** 2 / (spread**2).sum()) if spread.sum() > 0 else 0.0
    found = {"loss": [round(history[0][1], 3), round(history[-1][1], 3)],
             "partners_found": round(history[-1][2], 3), "directions": round(directions, 1)}  # fmt: skip
    if not (history[-1][1] < 0.8 * history[0][1] and directions > 2.5 and history[-1][2] > 0.2):
        raise CourseError(
            f"a training that failed: {found}",
            "a loss down by a fifth, more than 2.5 directions, partners found in more than a fifth",
            "train longer, or look at the views",
        )
    return found


def save(model, folder: Path, facts: dict) -> Path:
    """Write ``tiny.keras`` and its declaration ``tiny.json`` into ``folder``, each first under a temporary name."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "tiny.part.keras"
    model.save(part)
    declared = {
        "input_px": INPUT_PX, "channels": "RGB", "values": "optical_density", "mean": [0.0] * 3, "scale": [1.0] * 3,
        "layer": "embedding", "licence": "the course's own (made by helpers/encoder_training.py)",
        "sha256": hashlib.sha256(part.read_bytes()).hexdigest(), "training": facts,
    }  # fmt: skip
    text = folder / "tiny.part.json"
    text.write_text(json.dumps(declared, indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / "tiny.keras")
    os.replace(text, folder / "tiny.json")
    return folder / "tiny.keras"


def main(arguments=None) -> int:
    """Train, check and save; print the loss."""
    parser = argparse.ArgumentParser(prog="python -m helpers.encoder_training", description="Make the encoder 'tiny'.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fields", type=int, default=FIELDS)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    model, history, images = train(steps=given.steps, fields=given.fields, seed=given.seed)
    for number, loss, right in history[:: max(1, len(history) // 10)] + history[-1:]:
        say(f"step {number:5d}  loss {loss:.3f}  partners found {right:.2f}")
    found = check(model, history, images, settings.rng(given.seed, "encoder", "check"))
    seeds, views = [given.seed, given.seed + given.fields - 1], 2 * FIELDS_IN_BATCH * FROM_EACH
    facts = {"steps": given.steps, "fields": given.fields, "seeds": seeds, "views_in_batch": views, **found}
    path = save(model, given.out, facts)
    note(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB in {time.perf_counter() - began:.0f} s")
    say(", ".join(f"{name} {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

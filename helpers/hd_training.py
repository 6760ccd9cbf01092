"""Making the bundled StarDist: a small network taught on virtual H&E whose nuclei are known.

It stands in for the pretrained ``2D_versatile_he`` where that cannot be reached. Fields of patients that are no data
set (seeds 3000 and above), colon as in the Visium HD sections and breast as in the paraffin ones, each at three scales
and in other stains, flipped, turned, blurred and noisy. Only the pictures and outlines of the simulator are read.

Run ``python -m helpers.hd_training`` (or ``make stardist``). The same machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from helpers import nuclei, settings
from helpers.messages import CourseError, note, say

FOLDER = settings.ROOT / "data" / "stardist" / "he_virtual"
FIRST_SEED, CHECK_SEED = 3000, 3500
MPP = 0.5
SCALES = (0.75, 1.0, 1.35)
COLON, BREAST = 4, 3
PATCH, BATCH, EPOCHS, STEPS = 160, 4, 60, 40
NETWORK = {"n_rays": 32, "grid": (2, 2), "n_channel_in": 3, "unet_n_depth": 2, "unet_n_filter_base": 20,
           "net_conv_after_unet": 40}  # fmt: skip


# ---------------------------------------------------------------- pictures
def colon(seed: int, *, size_um: float = 500.0):
    """Return one colon field: picture uint8 (y, x, 3) at MPP, outlines float (n, k, 2) x, y in um, drawing order."""
    from helpers.virtual.hd import tissue

    field = tissue.grow(section=f"stardist {seed}", seed=seed, size_um=size_um, mpp=MPP)
    return field.image, field.nuclei, None


def breast(seed: int, *, size_um: float = 400.0):
    """Return one breast field like :func:`colon`; deeper nuclei are drawn first."""
    from helpers.virtual import anatomy, cells, rendering

    name = {"seed": seed, "section": "stardist"}
    ground = anatomy.grow(**name, size_um=(size_um, size_um), style="ffpe", full_tissue=True)
    placed = cells.place(ground, **name)
    stain = rendering.draw_stain(seed=seed, batch="stardist", style="ffpe")
    slide = rendering.render(ground, placed, stain, mpp=MPP, **name)
    return slide.image, placed.polygons, np.argsort(~placed.table["deep"].to_numpy(), kind="stable")


def scaled(picture, outlines, order, scale: float):
    """Return a picture enlarged by ``scale`` and its label image int32 (y, x), drawn anew from the outlines."""
    import cv2

    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = picture if scale == 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=kind)
    return image, nuclei.rasterise(list(outlines / MPP * scale), shape=image.shape[:2], order=order)


def restained(picture, stream):
    """Return the picture with other amounts and colours of its stains and another lamp, uint8 (y, x, 3)."""
    from skimage.color import rgb_from_hed

    vectors = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
    levels = -np.log((np.arange(256) + 1) / 256)
    amounts = levels[picture].reshape(-1, 3) @ np.linalg.inv(vectors)
    amounts *= np.exp(stream.normal(0, [0.25, 0.35, 0.25]))
    density = amounts @ (vectors + stream.normal(0, 0.07, (3, 3))) + stream.normal(0.03, 0.03, 3)
    return np.rint(255 * np.exp(-np.clip(density, 0, 5))).astype(np.uint8).reshape(picture.shape)


def examples(seed: int, stream, *, colons: int, breasts: int, recolour: bool = True):
    """Return normalised pictures float32 (y, x, 3) and label images, as sopa will hand them to the network."""
    from csbdeep.utils import normalize

    fields = [colon(seed + k) for k in range(colons)] + [breast(seed + 100 + k) for k in range(breasts)]
    pictures, labels = [], []
    for k, field in enumerate(fields):
        for scale in SCALES if recolour else (1.0,):
            image, label = scaled(*field, scale)
            new = recolour and not (scale == 1 and k % 2)
            pictures.append(normalize(restained(image, stream) if new else image, clip=True).astype(np.float32))
            labels.append(label)
    return pictures, labels


def augmenter(stream):
    """Return what StarDist does to every patch: turn, flip, light, blur, noise."""
    import cv2

    def change(x, y):
        turns, flip = int(stream.integers(4)), bool(stream.integers(2))
        x, y = np.rot90(x, turns), np.rot90(y, turns)
        x, y = (x[:, ::-1], y[:, ::-1]) if flip else (x, y)
        x = np.ascontiguousarray(x)
        if stream.random() < 0.5:
            x = cv2.GaussianBlur(x, (0, 0), float(stream.uniform(0.3, 1.4)))
        x = x * np.float32(stream.uniform(0.75, 1.25)) + stream.uniform(-0.15, 0.15, 3).astype(np.float32)
        x = x + np.float32(stream.uniform(0, 0.05)) * stream.standard_normal(x.shape, dtype=np.float32)
        return np.clip(x, 0, 1).astype(np.float32), np.ascontiguousarray(y)

    return change


# ---------------------------------------------------------------- training
def train(folder: Path, *, seed: int = FIRST_SEED, epochs: int = EPOCHS, steps: int = STEPS, colons: int = COLON,
          breasts: int = BREAST):  # fmt: skip
    """Train a StarDist in ``folder`` (its name is the model's); return the model and the history of losses."""
    import keras
    import tensorflow as tf
    from stardist.models import Config2D, StarDist2D

    if seed < FIRST_SEED or seed >= CHECK_SEED:
        expected = f"{FIRST_SEED} to {CHECK_SEED - 1}"
        raise CourseError(f"seed {seed}", expected, "other seeds belong to data sets or checks")
    stream = settings.rng(seed, "stardist", "train")
    began = time.process_time()
    x, y = examples(seed, stream, colons=colons, breasts=breasts)
    xv, yv = examples(seed + 200, stream, colons=2, breasts=1, recolour=False)
    note(f"{len(x)} pictures drawn in {time.process_time() - began:.0f} CPU s")
    keras.utils.set_random_seed(int(stream.integers(2**31 - 1)))
    tf.config.experimental.enable_op_determinism()
    config = Config2D(**NETWORK, train_patch_size=(PATCH, PATCH), train_batch_size=BATCH, train_epochs=epochs,
                      train_steps_per_epoch=steps, train_learning_rate=1e-3, train_tensorboard=False,
                      train_reduce_lr={"factor": 0.5, "patience": 8, "min_delta": 0})  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    model = StarDist2D(config, name=folder.name, basedir=str(folder.parent))
    history = model.train(x, y, validation_data=(xv, yv), augmenter=augmenter(stream))
    model.optimize_thresholds(xv, yv, nms_threshs=[0.3, 0.4, 0.5], iou_threshs=[0.5, 0.6])
    note(f"trained in {time.process_time() - began:.0f} CPU s")
    return model, history.history


def score(model, picture, truth, *, mpp: float = MPP) -> dict:
    """Return F1 at IoU above 0.5 of the model and of the course's watershed on one picture, and both numbers."""
    from csbdeep.utils import normalize

    scale = None if mpp == MPP else mpp / MPP
    found = model.predict_instances(normalize(picture, clip=True), scale=scale)[0]
    water = nuclei.segment(picture, mpp=mpp, nucleus_um2=35.0)
    mine, other = nuclei.match(found, truth), nuclei.match(water, truth)
    return {"true": mine["true"], "stardist_n": mine["found"], "stardist_f1": round(mine["f1"], 3),
            "watershed_n": other["found"], "watershed_f1": round(other["f1"], 3)}  # fmt: skip


def real_tiles():
    """Return the real tiles that lie on this machine: name -> picture, label image, mpp (assumed: none is stated)."""
    import xml.etree.ElementTree as ElementTree

    import tifffile

    found = {}
    for file in sorted((settings.data_dir() / "nuclei_gbm" / "raw_image").glob("*.tif")):
        marks = file.parent.parent / "contour_annotation_xml" / f"{file.stem}_data.xml"
        shapes = ElementTree.parse(marks).iter("Shape")
        drawn = [np.array([(float(p.get("X")), float(p.get("Y"))) for p in one.iter("Point")]) for one in shapes]
        picture = np.ascontiguousarray(tifffile.imread(file)[..., :3])
        found[f"glioblastoma {file.stem}"] = (picture, nuclei.rasterise(drawn, shape=picture.shape[:2]), 0.25)
    return found


def check(model) -> dict:
    """Return scores on fields of patients never trained on, and on real tiles where they lie here."""
    tests = {"colon, new patient": scaled(*colon(CHECK_SEED), 1.0) + (MPP,),
             "breast, new patient": scaled(*breast(CHECK_SEED + 100), 1.0) + (MPP,)}  # fmt: skip
    picture, label, _ = tests["colon, new patient"]
    other = restained(picture, settings.rng(CHECK_SEED, "stardist", "check"))
    tests["colon, new patient, other stain"] = (other, label, MPP)
    return {name: score(model, *test[:2], mpp=test[2]) for name, test in (tests | real_tiles()).items()}


# ---------------------------------------------------------------- files
def card(facts: dict) -> str:
    """Return the model card in Markdown."""
    rows = [f"| {name} | {s['true']} | {s['stardist_n']} | {s['stardist_f1']:.3f} | {s['watershed_n']} | "
            f"{s['watershed_f1']:.3f} |" for name, s in facts["scores"].items()]  # fmt: skip
    return "\n".join([
        "# A small StarDist for virtual H&E", "",
        "A stand-in for `2D_versatile_he` where that cannot be reached. Made by `python -m helpers.hd_training`;",
        "licence: the course's own. Not for diagnosis or real studies: on real slides use the pretrained model.",
        "", "## Data", "",
        f"{facts['colons']} virtual colon and {facts['breasts']} virtual breast fields (seeds from {facts['seed']}; no",
        f"section of the course), each at {len(SCALES)} scales round {MPP} um/px and in other stains. No real pixel.",
        "", "## Training", "",
        f"StarDist2D, {NETWORK['n_rays']} rays, grid 2, U-net of depth {NETWORK['unet_n_depth']} from "
        f"{NETWORK['unet_n_filter_base']} filters; {facts['epochs']} epochs of",
        f"{facts['steps']} batches of {BATCH} patches of {PATCH} px; turned, flipped, blurred, other light, noise.",
        f"Thresholds of other virtual fields: probability {facts['prob']:.3f}, overlap {facts['nms']:.2f}.",
        "", "## How good it is", "",
        "F1 at IoU above 0.5. The watershed is the course's (`helpers/nuclei.py`, nuclei of 35 um2), never trained.",
        "", "| picture | nuclei | StarDist found | F1 | watershed found | F1 |", "|---|---|---|---|---|---|", *rows, "",
        "The glioblastoma tiles state no scale; 0.25 um/px is assumed. They were outlined by people.", "",
    ])  # fmt: skip


def save(model, facts: dict, folder: Path) -> int:
    """Move the model into ``folder`` with its card; return its size in bytes."""
    made = Path(model.basedir) / model.name
    made.joinpath("weights_last.h5").unlink(missing_ok=True)
    made.joinpath("weights_now.h5").unlink(missing_ok=True)
    made.joinpath("scale.json").write_text(json.dumps({"mpp": MPP}) + "\n", encoding="utf-8")
    made.joinpath("MODEL_CARD.md").write_text(card(facts), encoding="utf-8")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def main(arguments=None) -> int:
    """Train, check and save; print the scores."""
    parser = argparse.ArgumentParser(prog="python -m helpers.hd_training", description="Make the bundled StarDist.")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args(arguments)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    with tempfile.TemporaryDirectory(prefix="stardist_") as scratch:
        model, history = train(Path(scratch) / given.out.name, seed=given.seed, epochs=given.epochs)
        facts = {"colons": COLON, "breasts": BREAST, "seed": given.seed, "epochs": given.epochs, "steps": STEPS,
                 "prob": float(model.thresholds.prob), "nms": float(model.thresholds.nms)}  # fmt: skip
        facts["scores"] = check(model)
        if facts["scores"]["colon, new patient"]["stardist_f1"] < 0.6:
            raise CourseError(f"a training that failed: {facts['scores']}", "F1 of 0.6 or more", "train longer")
        size = save(model, facts, given.out)
    for name, found in facts["scores"].items():
        say(f"{name}: {found}")
    say(f"loss {history['loss'][0]:.3f} to {history['loss'][-1]:.3f}; {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

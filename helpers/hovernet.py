"""Methods: HoVer-Net - every nucleus of an H&E image found, outlined and typed, with how sure the network is.

Graham et al. 2019, as STimage trains it on Xenium cells. The parts: ``hovernet_targets`` (what is learned),
``hovernet_align`` (outlines of another picture laid on the nuclei), ``hovernet_tiles`` (what is shown),
``hovernet_net`` (network and losses), ``hovernet_section`` (tiles and blocks of an image), ``hovernet_post`` (maps to
nuclei), ``hovernet_scores`` and ``hovernet_baseline`` (a watershed with a random forest).
"""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from helpers import hovernet_section, settings
from helpers.hovernet_align import align
from helpers.hovernet_post import Post, entropy, instances, level, tune, vote
from helpers.hovernet_scores import compare
from helpers.hovernet_section import Nuclei
from helpers.hovernet_targets import UNKNOWN, WORK_MPP, Field, crop, prepare, stack
from helpers.hovernet_tiles import batches
from helpers.messages import CourseError

__all__ = [
    "CLASSES", "UNKNOWN", "WORK_MPP", "Field", "HoverNet", "Nuclei", "Post", "align", "class_weights", "compare",
    "crop", "entropy", "fit", "instances", "leave_one_out", "level", "load", "prepare", "stack", "to_classes", "tune",
    "vote",
]  # fmt: skip

CLASSES = ("immune", "stromal", "cancer_epithelial", "endothelial")
"""The four classes, in the order of their codes 1 to 4."""
_CARD = "hovernet.json"


def to_classes(types, mapping: dict, *, classes=CLASSES):
    """Return class codes of cell types, uint8 (n,).

    Parameters
    ----------
    types
        Names (n,); None, NaN and the empty name are unlabelled.
    mapping
        Type name to class name (or to None: unlabelled). STimage counts normal epithelium as ``cancer_epithelial`` and
        mural cells (pericytes) as ``endothelial``.

    Raises
    ------
    CourseError
        A type without a class, or a class that is not known.
    """
    wrong = sorted({str(name) for name in mapping.values() if name is not None} - set(classes))
    if wrong:
        raise CourseError(f"class {wrong[0]!r}", f"one of {', '.join(classes)}", "correct the mapping")
    names, which = np.unique(np.array(["" if t is None or t != t else str(t) for t in types], object).astype(str),
                             return_inverse=True)  # fmt: skip
    missing = [name for name in names if name and name not in mapping]
    if missing:
        raise CourseError(f"cell type {missing[0]!r}", "a class for each type", "add it to the mapping, or None")
    codes = [UNKNOWN if not name or mapping[name] is None else classes.index(mapping[name]) + 1 for name in names]
    return np.array(codes, np.uint8)[which.ravel()]


def class_weights(fields, classes: int, power: float = 0.5):
    """Return the weight of background and of each class, float32 (1 + C,): share of pixels to ``-power``, mean 1.

    A class that never occurs gets the largest of the others' weights.
    """
    count = sum(np.bincount(f.classes[f.labels].ravel(), minlength=256)[: classes + 1] for f in fields).astype(float)
    weight = (count.sum() / np.where(count > 0, count, np.inf)) ** power
    weight[count == 0] = weight.max()
    return (weight / weight.mean()).astype(np.float32)


@dataclass
class HoverNet:
    """A trained network.

    Attributes
    ----------
    model
        The Keras model: RGB 0 to 255 in, logits out.
    classes
        Class names in the order of codes 1 to C.
    post
        Settings of the watershed.
    mpp
        Microns per pixel the network was trained at.
    card
        How it was trained: preset, steps, seed, seconds, nuclei by class, ``loss`` (mean of the last 20 steps), why it
        stopped; and whatever the caller adds, e.g. the training sections.
    """

    model: object = field(repr=False)
    classes: tuple
    post: Post = Post()
    mpp: float = WORK_MPP
    card: dict = field(default_factory=dict)

    def maps(self, image, *, tile: int = 512):
        """Return the maps of an image at the network's pixel size: :func:`hovernet_section.maps`."""
        return hovernet_section.maps(self.model, image, tile=tile)

    def predict(self, image, *, mpp: float, **options) -> Nuclei:
        """Find, outline and type the nuclei of an image or a whole section: :func:`hovernet_section.predict`."""
        return hovernet_section.predict(
            self.model, image, mpp=mpp, classes=self.classes, post=self.post, work_mpp=self.mpp, **options
        )

    def calibrate(self, validation: Field) -> HoverNet:
        """Choose the settings of the watershed, and gains of classes, on a field not trained on; return self."""
        made = self.maps(validation.image)
        post = tune(made, validation.labels, validation.image)
        self.post = replace(post, gains=level(made, instances(made, post), validation))
        return self

    def save(self, path) -> Path:
        """Write one ``.keras`` file that holds weights, classes, settings and card; no code, no pickle."""
        import keras

        path = Path(path)
        if path.suffix != ".keras":
            raise CourseError(f"the name {path.name}", "one that ends in .keras", "rename it")
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.Model(self.model.input, self.model.output, name="hovernet").save(path)  # without the optimiser's state
        card = {"classes": self.classes, "post": asdict(self.post), "mpp": self.mpp, "card": self.card}
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(_CARD, json.dumps(card, indent=1))
        return path


def load(path) -> HoverNet:
    """Open a file written by :meth:`HoverNet.save`, in Keras' safe mode.

    Raises
    ------
    CourseError
        No such file, or not one of these.
    """
    import keras

    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            card = json.loads(file.read(_CARD))
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        post = Post(**{**card["post"], "gains": tuple(card["post"].get("gains", ()))})
        return HoverNet(model, tuple(card["classes"]), post, float(card["mpp"]), card["card"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CourseError(str(error)[:200], "a file written by HoverNet.save", "train again or correct the path",
                          file=path) from error  # fmt: skip


def fit(
    fields, *, preset: str = "tiny", classes=CLASSES, steps: int = 500, seed: int = 0, start: HoverNet | None = None,
    validation: Field | None = None, max_seconds: float | None = None, jitter: bool = True, zoom: float = 0.0,
    balance: float = 0.7, batch: int | None = None, learning_rate: float | None = None,
    weight_decay: float = 1e-4, slope: float = 2.0, power: float = 0.5, progress: bool = True,
) -> HoverNet:  # fmt: skip
    """Train HoVer-Net on fields of labelled nuclei.

    Parameters
    ----------
    fields
        List of :class:`Field` from :func:`prepare`.
    preset
        ``"tiny"`` (133,000 weights) or ``"full"`` (published widths, 256 x 256 tiles; for a GPU, or batch=1).
    steps
        Batches. The learning rate warms up over 5 % of them and falls to 0 along a cosine.
    seed
        Of weights, tiles and augmentation; same seed and steps, same network (to rounding, on one machine).
    start
        A network to go on from (its weights are copied) instead of drawn weights.
    validation
        A field not trained on, on which the watershed's settings and the gains of rare classes are chosen
        (:func:`stack` joins several); None keeps the defaults.
    max_seconds
        Safety: the schedule is hurried so that training ends by then. The result then depends on the machine.
    jitter, zoom, balance
        Stain jitter, sd of the log scale of tiles, share of tiles drawn by class: see ``hovernet_tiles.batches``.
    batch, learning_rate, weight_decay
        Of AdamW; None: the preset's.
    slope, power
        Weight of the slopes' squared error (published: 2); how steeply rare classes weigh more: see ``class_weights``.

    Raises
    ------
    CourseError
        No nucleus at all, class codes beyond ``classes``, fields of unlike pixel size, or a loss that is not finite.
    """
    import keras
    from tqdm.auto import tqdm

    from helpers.hovernet_net import PRESETS, HoverLoss, build, stepper

    if preset not in PRESETS:
        raise CourseError(f"preset {preset!r}", f"one of {', '.join(PRESETS)}", "choose one")
    fields, sizes, measures = list(fields), sorted({round(f.mpp, 2) for f in fields}), PRESETS[preset]
    count = np.zeros(256, int)
    for f in fields:
        present = np.unique(f.labels)
        count += np.bincount(f.classes[present[present > 0]], minlength=256)
    if not count[1:].sum() or count[len(classes) + 1 : UNKNOWN].any() or len(sizes) != 1:
        raise CourseError(
            f"{count[1:].sum()} nuclei, largest class code {np.flatnonzero(count[:UNKNOWN]).max(initial=0)}, "
            f"pixels of {sizes} um",
            f"nuclei of {len(classes)} classes at one pixel size", "see prepare and to_classes",
        )  # fmt: skip
    rng = settings.rng(seed, "hovernet", preset)
    model = build(measures, classes=len(classes), seed=int(rng.integers(2**20)))
    if start is not None:
        model.set_weights(start.model.get_weights())
    weights = class_weights(fields, len(classes), power)
    rate = learning_rate or measures.learning_rate
    optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    teach = stepper(model, HoverLoss(weights, slope=slope, unknown=UNKNOWN), optimizer)
    stream = batches(
        fields, rng=rng, side=measures.tile, batch=batch or measures.batch, jitter=jitter, zoom=zoom, balance=balance
    )
    losses, began, done = [], time.perf_counter(), 0.0
    for step in tqdm(range(steps), desc="HoVer-Net", unit="step", disable=not progress, leave=False):
        done = max(done, step / steps)
        if max_seconds and step:  # step 0 builds the graph
            began = time.perf_counter() if step == 1 else began
            done = max(done, (time.perf_counter() - began) / max_seconds)
        if done >= 1:
            break
        optimizer.learning_rate.assign(rate * min(1, (done + 0.01) / 0.05) * (0.5 + 0.5 * np.cos(np.pi * done)))
        losses.append(float(teach(*next(stream))))
        if not np.isfinite(losses[-1]):
            raise CourseError(f"a loss of {losses[-1]} at step {step}", "a number", "lower learning_rate")
    card = {
        "preset": preset, "steps": len(losses), "seed": int(seed),
        "stopped": "steps" if len(losses) == steps else "clock",
        "seconds": round(time.perf_counter() - began, 1), "loss": float(np.mean(losses[-20:])),
        "first_loss": float(np.mean(losses[:5])), "weights": int(model.count_params()),
        "nuclei": {name: int(count[k]) for k, name in enumerate(classes, 1)}, "unlabelled": int(count[UNKNOWN]),
        "jitter": bool(jitter), "zoom": float(zoom), "balance": float(balance),
        "started_from": None if start is None else start.card,
    }  # fmt: skip
    trained = HoverNet(model, tuple(classes), Post(), sizes[0], card)
    return trained if validation is None else trained.calibrate(validation)


def leave_one_out(fields: dict, subjects: dict, *, hold_back: int = 1, **options):
    """Train once per subject on the sections of the others, and predict that subject's sections.

    Parameters
    ----------
    fields
        Section id to :class:`Field`.
    subjects
        Section id to patient. Two sections of one patient are never on both sides.
    hold_back
        Training sections kept for choosing the watershed's settings (the last ones); 0: defaults.
    options
        Of :func:`fit`.

    Yields
    ------
    (section id, HoverNet, labels int32 (y, x), class codes by label uint8, class shares float32)
    """
    patients = list(dict.fromkeys(subjects[name] for name in fields))
    if len(patients) < 2:
        raise CourseError(f"{len(patients)} patient", "at least 2", "add sections of other patients")
    for patient in patients:
        others = [name for name in fields if subjects[name] != patient]
        kept = others[:-hold_back] if 0 < hold_back < len(others) else others
        aside = fields[others[-1]] if len(kept) < len(others) else None
        net = fit([fields[name] for name in kept], validation=aside, **options)
        for name in fields:
            if subjects[name] == patient:
                maps = net.maps(fields[name].image)
                labels = instances(maps, net.post, fields[name].image)
                yield name, net, labels, *vote(labels, maps, net.post.gains)

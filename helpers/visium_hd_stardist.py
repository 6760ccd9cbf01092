"""Methods, Visium HD: which StarDist there is, its thresholds, and guards against a segmenter that does not work.

StarDist (Schmidt et al. 2018, MICCAI) predicts for every pixel how likely it lies in a nucleus and how far the border
is in 32 directions; the best of overlapping star-shaped outlines are kept. sopa runs it. Here is only what sopa leaves
open: the model (on disk, or the small one of the course: no network is asked), the thresholds that belong to it (sopa's
defaults would override them), and two checks. An untrained network calls everything a nucleus: 355,000 of them and
8 GB of memory on a picture that holds 800.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.messages import CourseError

PRETRAINED = "2D_versatile_he"
BUNDLED = settings.ROOT / "data" / "stardist" / "he_virtual"
MAX_PER_MM2 = 25_000.0
"""Nuclei per mm2 that no tissue has in a thin section; packed lymphocytes reach about 15,000."""
MAX_SHARE = 0.6
"""Share of pixels above the threshold that no picture reaches: only the middle of a nucleus lies above it."""
MIN_AREA_UM2 = 8.0


def model_dir(*, pretrained: str = PRETRAINED) -> Path:
    """Return the folder of the StarDist to use, without asking any network.

    The pretrained model where it lies on disk (``COURSE_MODELS/stardist/<name>``, ``COURSE_MODELS/<name>``, or where
    ``StarDist2D.from_pretrained`` once left it), else the small one of the course (see its MODEL_CARD.md).
    """
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / "StarDist2D" / pretrained
    roots = [settings.models_dir() / "stardist" / pretrained, settings.models_dir() / pretrained, home]
    for root in roots:
        for config in sorted(root.glob("config.json")) + sorted(root.glob("*/config.json")):
            if config.parent.joinpath("thresholds.json").is_file() and any(config.parent.glob("weights*.h5")):
                return config.parent
    return BUNDLED


def options(folder=None, *, mpp: float, min_area_um2: float = MIN_AREA_UM2) -> dict:
    """Return the arguments of ``sopa.segmentation.stardist`` that belong to a model.

    Parameters
    ----------
    folder
        Of the model; default :func:`model_dir`.
    mpp
        Microns per pixel of the picture to be segmented. Where ``scale.json`` of the model names another one, StarDist
        is told to rescale by the ratio.
    min_area_um2
        Smaller outlines are dropped.

    Returns
    -------
    dict
        ``local_model``, ``prob_thresh``, ``nms_thresh`` (of the model's thresholds.json), ``min_area`` (px), and
        ``scale`` where one is needed.
    """
    folder = Path(model_dir() if folder is None else folder)
    found = _read(folder, "thresholds.json", "prob and nms")
    chosen = {"local_model": str(folder), "prob_thresh": float(found["prob"]), "nms_thresh": float(found["nms"]),
              "min_area": float(min_area_um2 / mpp**2)}  # fmt: skip
    if (folder / "scale.json").is_file():
        ratio = mpp / float(_read(folder, "scale.json", "mpp")["mpp"])
        if abs(np.log(ratio)) > 0.1:
            chosen["scale"] = ratio
    return chosen


def _read(folder: Path, name: str, what: str) -> dict:
    """Return a JSON file of a model folder."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CourseError(f"no readable {name} ({type(err).__name__})", f"{what} of a StarDist model",
                          "make stardist, or pass the folder of a whole model", file=folder) from err  # fmt: skip


# ---------------------------------------------------------------- guards
def check_model(picture, chosen: dict, *, side: int = 256, tiles: int = 3) -> float:
    """Refuse a model that calls everything, or nothing, a nucleus, before it is run on the whole picture.

    Parameters
    ----------
    picture
        uint8 RGB (y, x, 3), any size.
    chosen
        Of :func:`options`.
    side, tiles
        The ``tiles`` darkest squares of ``side`` px are looked at.

    Returns
    -------
    float
        Largest share of a square's pixels above ``prob_thresh``: some 0.05 to 0.3 in tissue.

    Raises
    ------
    CourseError
        More than MAX_SHARE, or no pixel at all.
    """
    from csbdeep.utils import normalize
    from sopa.segmentation.methods._stardist import load_stardist_model

    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise CourseError(f"a picture {picture.shape} of {picture.dtype}", "uint8 RGB (y, x, 3)", "use section.window")
    model = load_stardist_model(local_model=chosen["local_model"])
    squares = _darkest(picture, side, tiles)
    shares = [float((model.predict(normalize(one, clip=True))[0] > chosen["prob_thresh"]).mean()) for one in squares]
    if max(shares) > MAX_SHARE or max(shares) == 0:
        raise CourseError(
            f"{max(shares):.0%} of the pixels of a square of tissue as nucleus",
            f"more than 0 % and below {MAX_SHARE:.0%}",
            "the model is untrained, or the picture is not H&E at the model's scale: use another model or threshold",
            file=chosen["local_model"],
        )  # fmt: skip
    return max(shares)


def _darkest(picture, side: int, tiles: int) -> list:
    """Return the darkest squares of a picture (the whole where it is smaller), uint8 (y, x, 3) each."""
    side = min(side, *(s - s % 16 for s in picture.shape[:2]))
    places = [(y, x) for y in range(0, picture.shape[0] - side + 1, side)
              for x in range(0, picture.shape[1] - side + 1, side)]  # fmt: skip
    light = [picture[y : y + side : 4, x : x + side : 4].mean() for y, x in places]
    return [picture[y : y + side, x : x + side] for y, x in (places[k] for k in np.argsort(light)[:tiles])]


def check_count(n: int, area_um2: float) -> float:
    """Refuse an absurd number of nuclei before anything is counted in them; return nuclei per mm2.

    Parameters
    ----------
    n
        Nuclei found.
    area_um2
        Area searched, um2.

    Raises
    ------
    CourseError
        None, or more than MAX_PER_MM2.
    """
    if not area_um2 > 0:
        raise CourseError(f"an area of {area_um2} um2", "more than 0", "pass width times height in microns")
    density = n / area_um2 * 1e6
    if n == 0 or density > MAX_PER_MM2:
        raise CourseError(
            f"{n:,} nuclei, {density:,.0f} per mm2", f"at least one and at most {MAX_PER_MM2:,.0f} per mm2",
            "an untrained model, a wrong threshold or a wrong scale (mpp); look at the outlines before counting",
        )  # fmt: skip
    return density

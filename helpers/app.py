"""Caretaker: the web page's work (`make app`), without the page - field, models, prediction, explanation.

``app_page`` is the page itself, ``app_intake`` judges uploads, ``app_view`` draws, ``app_bundle`` makes what the page
opens with. Everything here is a plain function of its arguments, so the tests need no browser.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import app_intake, settings
from helpers.messages import CourseError

FOLDER = settings.ROOT / "data" / "app"
TILE_UM = 100.0
"""Side of the tile where no model says otherwise."""
SMALLEST_PX = 32
"""A tile of fewer pixels a side shows no nuclei."""
REGRESSION, CLASSES = "regression", "classification"


# ---------------------------------------------------------------- the picture
def side_px(*, mpp: float, side_um: float) -> int:
    """Return the side of a tile in pixels, or refuse a resolution at which it would show nothing."""
    from helpers import section

    section.check_mpp(mpp)
    side = round(side_um / mpp)
    if side < SMALLEST_PX:
        raise CourseError(f"a tile of {side} px ({side_um:g} um at {mpp:g} um/px)", f"at least {SMALLEST_PX} px",
                          "correct the microns per pixel, or upload a finer scan")  # fmt: skip
    return side


def reach(picture, *, mpp: float, side_um: float):
    """Return ((x lowest, x highest), (y lowest, y highest)): centres, in microns, that keep the tile in the picture."""
    side = side_px(mpp=mpp, side_um=side_um)
    rows, columns = picture.shape[:2]
    if min(rows, columns) < side - 1:
        raise CourseError(
            f"a picture of {columns * mpp:.0f} x {rows * mpp:.0f} um",
            f"at least {side_um:g} um each way, the tile the model was trained on",
            "upload a larger field, or correct the microns per pixel",
        )
    half = side / 2 * mpp
    return tuple((half, max(half, length * mpp - half)) for length in (columns, rows))


def cut(picture, *, mpp: float, side_um: float, centre_um):
    """Cut a square tile at full resolution.

    Parameters
    ----------
    picture
        uint8 RGB (y, x, 3).
    mpp
        Its microns per pixel.
    centre_um
        x, y of the tile's centre in microns from the picture's top left corner; moved so that the tile fits.

    Returns
    -------
    tile : uint8 (side, side, 3)
    corner : tuple of int
        x, y of its top left pixel in the picture.
    """
    reach(picture, mpp=mpp, side_um=side_um)
    side = min(side_px(mpp=mpp, side_um=side_um), *picture.shape[:2])
    corner = tuple(
        int(np.clip(np.floor(c / mpp - side / 2 + 0.5 + 1e-6), 0, length - side))
        for c, length in zip(centre_um, (picture.shape[1], picture.shape[0]))
    )
    x, y = corner
    return np.ascontiguousarray(picture[y : y + side, x : x + side]), corner


# ---------------------------------------------------------------- models
@dataclass(frozen=True)
class Models:
    """A regression and a classification, of which one may be missing, fed by the same encoder.

    Attributes
    ----------
    encoder
        ``encoders.Encoder``.
    tile_um
        Side of the tiles they were trained on.
    ensemble, classifier
        ``stimage.Ensemble`` and ``stimage_classes.Classifier``, or None.
    reference
        What is known of the training spots (:func:`helpers.app_explain.reference`), or {}.
    """

    encoder: object = field(repr=False)
    tile_um: float
    ensemble: object = field(repr=False, default=None)
    classifier: object = field(repr=False, default=None)
    reference: dict = field(repr=False, default_factory=dict)

    @property
    def genes(self) -> list:
        """Genes that both can speak of; those of one where there is only one."""
        lists = [list(model.genes) for model in (self.ensemble, self.classifier) if model is not None]
        both = [gene for gene in lists[0] if all(gene in other for other in lists)]
        return both or lists[0]


def bundled(folder: Path = FOLDER) -> Models:
    """Return the models the page opens with."""
    from helpers import encoders, stimage, stimage_classes

    encoder = encoders.get("tiny")
    ensemble = stimage.load(folder / "regression.keras", encoder=encoder, tile_um=TILE_UM)
    classifier = stimage_classes.load_classes(folder / "classes.npz")
    with np.load(folder / "reference.npz", allow_pickle=False) as held:
        known = {name: held[name] for name in held.files}
    return Models(encoder, TILE_UM, ensemble, classifier, known)


def uploaded(files: dict) -> Models:
    """Return the models a visitor uploaded: ``{"regression": (name, bytes), "classification": (name, bytes)}``.

    Raises
    ------
    CourseError
        A file that :mod:`helpers.app_intake` refuses, one of the wrong kind for its place, or one whose encoder, tile
        size or features the page cannot give it.
    """
    if not files:
        raise CourseError("no model", "a .keras file, an .npz file, or both", "upload one, or take the bundled models")
    made, told = {}, {}
    for purpose, (name, data) in files.items():
        wanted = {REGRESSION: "keras", CLASSES: "npz"}[purpose]
        kind = app_intake.model_kind(name, data)
        if kind != wanted:
            raise CourseError(f"a .{kind} file for the {purpose}", f"a .{wanted} file", "exchange the two", file=name)
        with app_intake.on_disk(data, kind) as path:
            try:
                made[purpose], told[purpose] = _open(path, purpose)
            except CourseError as error:
                raise CourseError(error.seen, error.expected, error.fix, file=name) from None
            except Exception as error:  # arrays that do not belong together fail in many ways; all mean the same
                seen = f"a model that does not work ({type(error).__name__})"
                raise CourseError(seen, "a model of notebook 04 or 05", "save it again", file=name) from None
    (encoder, side), *others = told.values()
    if any(other[0].fingerprint != encoder.fingerprint or other[1] != side for other in others):
        raise CourseError("two models on different encoders or tile sizes", "the same for both", "fit them together")
    return Models(encoder, side, made.get(REGRESSION), made.get(CLASSES))


def _open(path, purpose):
    """Load one model and try it on a blank tile; return it with (encoder, side of its tiles in um)."""
    from helpers import stimage, stimage_classes, stimage_store

    if purpose == REGRESSION:
        facts, model = stimage_store.facts_of(path), None  # judged before the network is made
        named = facts["encoder"]
    else:
        model = stimage_classes.load_classes(path)
        facts = model.facts
        named = [{"name": facts["encoder"], "fingerprint": facts["fingerprint"]}]
    sides = np.atleast_1d(np.asarray(facts["tile_um"], float))
    if len(sides) != 1:
        raise CourseError(f"a model on tiles of {sides.tolist()} um", "one size", "use notebook 04: the page cuts one")
    encoder = _encoder_of(named)
    model = stimage.load(path) if model is None else model
    width = model.model.inputs[0].shape[-1] if purpose == REGRESSION else len(model.centre)
    if width != encoder.dim:
        raise CourseError(f"a model of {width} features", f"{encoder.dim}, which {encoder.name} makes of one tile",
                          "fit it without the surroundings of the spot: the page has one tile")  # fmt: skip
    blank = encoder.embed(np.full((1, 64, 64, 3), 230, np.uint8))
    answer = model.predict(blank).mean if purpose == REGRESSION else model.proba(blank)
    if np.shape(answer) != (1, len(model.genes)) or not np.isfinite(answer).all():
        raise CourseError("answers that are not finite, or not one a gene", "one number a gene", "fit it again")
    return model, (encoder, float(sides[0]))


def _encoder_of(named):
    """Return the encoder a model asks for, if its weights are at hand; uploads never name a path."""
    from helpers import encoders

    if len(named) != 1:
        raise CourseError(f"a model on {len(named)} encoders", "one", "use notebook 04: the page runs one")
    asked, mark = str(named[0]["name"]), named[0]["fingerprint"]
    here = asked == "tiny" or (settings.models_dir() / f"{asked}.keras").is_file()
    if Path(asked).name != asked or not here:
        raise CourseError(
            f"a model on the encoder {asked[:60]!r}",
            "tiny, or one whose .keras file is in COURSE_MODELS",
            "start the page with COURSE_MODELS set, or fit a model on tiny",
        )
    encoder = encoders.get(asked)
    if mark is not None and encoder.fingerprint != mark:
        raise CourseError(f"a model on {asked} with other weights ({str(mark)[:8]})", f"{encoder.fingerprint[:8]}",
                          "fit it again on the encoder at hand")  # fmt: skip
    return encoder


# ---------------------------------------------------------------- what the page opens with
@dataclass(frozen=True)
class Demo:
    """The bundled tile and the field round it.

    Attributes
    ----------
    tile, wide
        uint8 RGB (y, x, 3): the tile, and the field round it.
    mpp
        Microns per pixel of both.
    centre_um
        x, y of the tile's centre in the field.
    card
        ``bundle.json``: where it comes from, and what is true of it.
    """

    tile: np.ndarray = field(repr=False)
    wide: np.ndarray = field(repr=False)
    mpp: float
    centre_um: tuple
    card: dict = field(repr=False)


def demo(folder: Path = FOLDER) -> Demo:
    """Read the bundled tile and field."""
    from helpers import readers_files

    card = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    tile, wide = (np.ascontiguousarray(readers_files.read_image(folder / n)[:]) for n in ("tile.png", "field.jpg"))
    return Demo(tile, wide, float(card["mpp"]), tuple(card["centre_um"]), card)


@dataclass(frozen=True)
class Truth:
    """What is true of the bundled tile: it is virtual.

    Attributes
    ----------
    labels
        int32 (y, x), the nuclei as painted.
    kind
        Cell type of each, by label - 1.
    rates
        Data frame, cell types x genes: expression of a type relative to the type that expresses the gene most.
    """

    labels: np.ndarray = field(repr=False)
    kind: np.ndarray = field(repr=False)
    rates: object = field(repr=False)

    def rate(self, gene: str) -> dict:
        """Return label to relative expression of the nucleus' cell type, 0 to 1."""
        return {label: float(self.rates.at[kind, gene]) for label, kind in enumerate(self.kind, start=1)}


def truth(folder: Path = FOLDER) -> Truth:
    """Read what is true of the bundled tile."""
    import pandas as pd

    with np.load(folder / "truth.npz", allow_pickle=False) as held:
        rates = pd.DataFrame(held["rates"], index=held["types"], columns=held["genes"])
        return Truth(held["labels"], held["kind"], rates)

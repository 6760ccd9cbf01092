"""Caretaker, web page: the sidebar, what is kept between reruns, and how a refusal is shown (Streamlit).

Models and pictures of the bundle are shared between visitors; what a visitor uploads is kept under its SHA-256 in that
visitor's session alone, and goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from pathlib import Path

import numpy as np
import streamlit as st

from helpers import app, app_explain, app_intake, app_view, settings
from helpers.messages import CourseError

TILE, FIELD, OWN = "Bundled tile", "Bundled field", "Your picture"
BUNDLED, UPLOADED = "Bundled models", "Your models"
HIDE = {
    "tissue between nuclei": "tissue", "painted over from the rim": "surroundings", "mean colour of the tile": "mean",
    "mean colour of the nucleus": "segment", "black (as published)": "black", "white": "white",
    "a colour of yours": None,
}  # fmt: skip


def tidy_path() -> None:
    """Take this folder off the path: Streamlit puts it first, and our rooms would hide libraries of the same name."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != here]


# ---------------------------------------------------------------- kept between reruns
@st.cache_resource(show_spinner="Loading the encoder and the bundled models ...")
def bundle():
    """Return the bundled models: shared by all sessions, never changed."""
    settings.cap_threads()
    return app.bundled()


@st.cache_resource(show_spinner=False)
def demo():
    """Return the bundled pictures: shared by all sessions, never changed."""
    return app.demo()


@st.cache_resource(show_spinner=False)
def demo_truth():
    """Return what is true of the bundled tile."""
    return app.truth()


@st.cache_resource(scope="session", max_entries=2, show_spinner="Reading the picture ...")
def own_picture(digest, _name, _data):
    """Return an uploaded picture, by the hash of its bytes."""
    return app_intake.picture(_name, _data)


@st.cache_resource(scope="session", max_entries=4, show_spinner="Reading the models ...")
def own_models(digests, _files):
    """Return uploaded models, by the hashes of their bytes."""
    return app.uploaded(_files)


@st.cache_data(scope="session", max_entries=16, show_spinner="Looking for nuclei ...")
def nuclei_of(tile_key, mpp, options, _tile):
    """Return the label image of a tile."""
    from helpers import nuclei

    return nuclei.segment(_tile, mpp=mpp, **dict(options))


@st.cache_data(scope="session", max_entries=16, show_spinner="Asking the models ...")
def said_of(tile_key, models_key, genes, _models, _tile):
    """Return predictions and strangeness of a tile."""
    return app_explain.predict(_models, _tile, genes), app_explain.strangeness(_models, _tile)


@st.cache_data(scope="session", max_entries=16, show_spinner="Hiding nuclei, several hundred times ...")
def scores_of(tile_key, models_key, labels_key, genes, options, _models, _tile, _labels):
    """Return the LIME scores of a tile's nuclei."""
    return app_explain.lime(_models, _tile, _labels, genes, **dict(options))


@st.cache_data(scope="session", max_entries=16, show_spinner="Following the gradient ...")
def slopes_of(tile_key, models_key, genes, _models, _tile):
    """Return the saliency maps of a tile."""
    return app_explain.saliency(_models, _tile, genes)


def key_of(array) -> str:
    """Return the hash of an array's bytes and shape."""
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


# ---------------------------------------------------------------- errors
@contextlib.contextmanager
def told():
    """Show what was refused in three lines, and any other failure in one; the traceback goes to the terminal."""
    try:
        yield
    except CourseError as error:
        where = f"**{plain(error.file)}** - " if error.file else ""
        st.error(
            f"{where}Found: {plain(error.seen)}\n\nExpected: {plain(error.expected)}\n\nDo: {plain(error.fix)}",
            icon=":material/block:",
        )
        st.stop()
    except Exception as error:  # the page must not show a visitor the machine's paths
        logging.getLogger(__name__).exception("the page failed")
        st.error(f"Something failed that the page did not foresee ({type(error).__name__}). The terminal says more.")
        st.stop()


def plain(text) -> str:
    """Return text without the characters that Markdown would read as markup; names come from visitors."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+!|$~:" else c for c in str(text)).replace("\n", " ")


# ---------------------------------------------------------------- sidebar
def choose_models():
    """Return the models and the name they are kept under."""
    st.sidebar.header("2 · Models")
    source = st.sidebar.radio("Models", (BUNDLED, UPLOADED), key="models", label_visibility="collapsed")
    if source == BUNDLED:
        return bundle(), "bundle"
    most = {"max_upload_size": app_intake.MAX_MODEL_MB}
    files = {
        app.REGRESSION: st.sidebar.file_uploader(
            "Regression (.keras)", key="file_regression", help="Written by Ensemble.save, notebook 04.", **most),
        app.CLASSES: st.sidebar.file_uploader(
            "High or low (.npz)", key="file_classes", help="Written by Classifier.save, notebook 05.", **most),
    }  # fmt: skip
    files = {purpose: (file.name, file.getvalue()) for purpose, file in files.items() if file is not None}
    if not files:
        st.info("Upload a regression (.keras), a classification (.npz), or both. Pickles are refused: opening one runs "
                "whatever its author wrote.")  # fmt: skip
        st.stop()
    digests = tuple((purpose, app_intake.digest(data)) for purpose, (_, data) in files.items())
    return own_models(digests, files), str(digests)


def choose_picture():
    """Return (picture, microns per pixel, whether it is the bundled tile)."""
    st.sidebar.header("1 · Picture")
    source = st.sidebar.radio("Picture", (TILE, FIELD, OWN), key="picture", label_visibility="collapsed")
    if source != OWN:
        known = demo()
        st.sidebar.caption(f"Virtual breast tissue, {known.mpp:.2f} um per pixel; no model has seen this patient.")
        return (known.tile if source == TILE else known.wide), known.mpp, source == TILE
    file = st.sidebar.file_uploader(
        "Tile or section", type=list(app_intake.PICTURES), key="file_picture", help="8-bit RGB, at most 89 Mpx.",
        max_upload_size=app_intake.MAX_PICTURE_MB,
    )  # fmt: skip
    mpp = st.sidebar.number_input(
        "Microns per pixel", min_value=0.05, max_value=25.0, value=None, step=0.01, format="%.4f", key="mpp",
        placeholder="of this picture, e.g. 0.5", help="A model knows nuclei of one size. A wrong scale gives wrong "
        "answers without any error, so the page never guesses it: see the scanner's metadata.",
    )  # fmt: skip
    if file is None or mpp is None:
        lacking = [name for name, value in (("a picture", file), ("its microns per pixel", mpp)) if value is None]
        st.info(f"Give {' and '.join(lacking)} on the left.")
        st.stop()
    data = file.getvalue()
    return own_picture(app_intake.digest(data), file.name, data), float(mpp), False


def choose_field(picture, mpp, side_um):
    """Return the tile and its corner, after sliders for its place where the picture is larger than a tile."""
    (x_low, x_high), (y_low, y_high) = app.reach(picture, mpp=mpp, side_um=side_um)
    centre = [(x_low + x_high) / 2, (y_low + y_high) / 2]
    if max(x_high - x_low, y_high - y_low) < 2 * mpp:
        return app.cut(picture, mpp=mpp, side_um=side_um, centre_um=centre)
    name = key_of(np.asarray(picture.shape))[:8]
    for at, (axis, low, high) in enumerate((("x", x_low, x_high), ("y", y_low, y_high))):
        if high - low >= 2 * mpp:
            centre[at] = st.slider(
                f"{axis} of the tile's middle (um)", low, high, centre[at], step=float(max(1.0, (high - low) / 200)),
                format="%.0f", key=f"{axis}_{name}",
            )  # fmt: skip
    tile, corner = app.cut(picture, mpp=mpp, side_um=side_um, centre_um=centre)
    shown = app_view.boxed(picture, mpp=mpp, corner_px=corner, side_px=len(tile))
    st.image(shown, caption="the picture, and the tile", width="stretch")
    return tile, corner


def choose_nuclei():
    """Return the options of the segmentation as pairs."""
    side = st.sidebar
    side.header("3 · Nuclei")
    area = side.slider("Typical nucleus (um2)", 8.0, 80.0, 20.0, 1.0, "%.0f", key="nucleus_um2",
                       help="About 20 in thick frozen sections, 35 in thin paraffin sections.")  # fmt: skip
    threshold = side.slider("Threshold (x Otsu)", 0.4, 1.6, 0.95, 0.05, key="threshold",
                            help="How much haematoxylin makes a nucleus. Higher: fewer, darker ones.")  # fmt: skip
    contrast = side.slider("Contrast with the surroundings", 0.0, 0.5, 0.12, 0.02, key="contrast",
                           help="Higher: pale nuclei out of focus are left out.")  # fmt: skip
    smallest = side.slider("Smallest nucleus kept (um2)", 0.0, 60.0, 11.0, 1.0, "%.0f", key="min_area_um2")
    return (("nucleus_um2", area), ("threshold", threshold), ("contrast", contrast), ("min_area_um2", smallest))


def choose_explanation():
    """Return the options of LIME as pairs, and the opacity."""
    side = st.sidebar
    side.header("4 · Explanation")
    samples = side.slider("Samples", 50, 1000, 300, 50, key="n_samples",
                          help="Tiles with a random half of the nuclei hidden.")  # fmt: skip
    width = side.slider("Kernel width", 0.05, 1.0, 0.25, 0.05, key="kernel_width",
                        help="How fast a sample loses weight the more nuclei it hides.")  # fmt: skip
    hide = HIDE[side.selectbox("Hide a nucleus with", list(HIDE), key="hide")]
    if hide is None:
        colour = side.color_picker("Colour", "#B48CB4", key="hide_colour")
        hide = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    opacity = side.slider("Opacity", 0.0, 1.0, 0.65, 0.05, key="opacity")
    seed = side.number_input("Seed", 0, 10_000, 0, 1, key="seed", help="Scores that change with it mean little.")
    return (("n_samples", samples), ("kernel_width", width), ("hide", hide), ("seed", seed)), opacity

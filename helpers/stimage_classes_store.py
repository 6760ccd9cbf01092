"""Methods, STimage's classifier: the fitted object, and its file (npz + JSON; pickles are refused)."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

FORMAT = "course-classifier-1"
_PICKLES = (".pkl", ".pickle", ".joblib", ".sav", ".p")
_ARRAYS = ("coef", "intercept", "centre", "scale")


@dataclass(frozen=True)
class Classifier:
    """Elastic-net classifiers of several genes on the same features.

    Attributes
    ----------
    genes
        Names, in the order of the columns of :meth:`proba`.
    coef, intercept
        Float64 (g, f) and (g,), for standardised features.
    centre, scale
        Mean and standard deviation of the training features, (f,).
    table
        One row a gene: ``share_high``, ``n_iter``, ``converged``, ``nonzero`` (features used).
    skipped
        Gene to the reason why it has no classifier.
    facts
        ``strength``, ``l1_ratio``, ``C``, ``spots``, ``seed`` and what :meth:`save` was given.
    """

    genes: tuple[str, ...]
    coef: np.ndarray = field(repr=False)
    intercept: np.ndarray = field(repr=False)
    centre: np.ndarray = field(repr=False)
    scale: np.ndarray = field(repr=False)
    table: object = field(repr=False)
    skipped: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)

    def proba(self, x):
        """Return the probability of *high*, float32 (n, g), for raw (not standardised) features ``x`` (n, f)."""
        from scipy.special import expit

        x = features_of(x)
        if x.shape[1] != len(self.centre):
            raise CourseError(
                f"{x.shape[1]} features", f"{len(self.centre)}, as in training", "use the encoder it was trained with"
            )
        return expit((x - self.centre) / self.scale @ self.coef.T + self.intercept).astype(np.float32)

    def save(self, path, *, encoder, tile_um: float, train_sections=()):
        """Write one ``.npz``: four arrays and a JSON text. Written beside, then renamed.

        Parameters
        ----------
        path
            Ends in ``.npz``.
        encoder
            The :class:`encoders.Encoder` the features come from, or its name: kept to refuse others.
        tile_um
            Side of the tiles, microns.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise CourseError(f"a file {path.suffix or 'without ending'}", ".npz", "name it classes.npz", file=path)
        facts = {
            **self.facts, "format": FORMAT, "genes": list(self.genes), "skipped": self.skipped, **_encoder(encoder),
            "tile_um": float(tile_um), "train_sections": list(map(str, train_sections)),
            "table": self.table.reset_index().to_dict("list"),
        }  # fmt: skip
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, json=np.array(json.dumps(facts)), **{name: getattr(self, name) for name in _ARRAYS})
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        return path


def _encoder(encoder) -> dict:
    return {"encoder": str(getattr(encoder, "name", encoder)), "fingerprint": getattr(encoder, "fingerprint", None)}


def features_of(x):
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise CourseError(f"features of shape {x.shape}, or not finite", "finite (spots, features)", "embed the tiles")
    return x


def load_classes(path, *, encoder=None, tile_um: float | None = None, genes=None) -> Classifier:
    """Read a classifier written by :meth:`Classifier.save`, and refuse one that does not fit.

    Parameters
    ----------
    encoder, tile_um, genes
        What it will be used with, each checked if given: an Encoder (by fingerprint) or a name, the side of the tiles
        in microns, the gene names in their order.

    Raises
    ------
    CourseError
        A pickle or joblib file; no such file, or not one of ours; damaged; another encoder, tile size or gene list.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise CourseError("no such file", "a classifier (.npz)", "correct the path", file=path)
    with open(path, "rb") as stream:
        start = stream.read(2)
    if path.suffix.lower() in _PICKLES or start[:1] == b"\x80" or start in (b"x\x9c", b"\x1f\x8b"):
        raise CourseError(
            "a pickle or joblib file", "npz + JSON, as Classifier.save writes",
            "ask for the coefficients: loading a pickle runs whatever program its maker put in", file=path,
        )  # fmt: skip
    try:
        with np.load(path, allow_pickle=False) as kept:
            facts = json.loads(str(kept["json"]))
            arrays = {name: np.asarray(kept[name], np.float64) for name in _ARRAYS}
        names = tuple(facts.pop("genes"))
        table = pd.DataFrame(facts.pop("table")).set_index("gene")
        width = arrays["centre"].shape
        shapes = {"coef": (len(names), *width), "intercept": (len(names),), "centre": width, "scale": width}
        fits = facts.pop("format") == FORMAT and len(width) == 1 and list(table.index) == list(names)
        if not fits or any(arrays[k].shape != v or not np.isfinite(arrays[k]).all() for k, v in shapes.items()):
            raise ValueError("another layout")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CourseError(
            f"not a classifier of this course, or damaged ({error})", "npz + JSON, as Classifier.save writes",
            "save it again", file=path,
        ) from None  # fmt: skip
    if encoder is not None:
        asked, stored = _encoder(encoder), {key: facts.get(key) for key in ("encoder", "fingerprint")}
        key = "fingerprint" if asked["fingerprint"] and stored["fingerprint"] else "encoder"
        if asked[key] != stored[key]:
            raise CourseError(
                f"a classifier for features of {stored['encoder']} ({stored['fingerprint']})",
                f"{asked['encoder']} ({asked['fingerprint']})", "use that encoder, or train anew", file=path,
            )  # fmt: skip
    if tile_um is not None and not np.isclose(tile_um, facts["tile_um"], rtol=1e-6):
        raise CourseError(
            f"tiles of {facts['tile_um']:g} um in the classifier", f"{tile_um:g} um", "set TILE_UM, or train anew",
            file=path,
        )  # fmt: skip
    wanted = names if genes is None else tuple(map(str, genes))
    if wanted != names:
        raise CourseError(
            f"the genes {', '.join(names[:3])}, ... ({len(names)})",
            f"{', '.join(wanted[:3])}, ... ({len(wanted)}), in this order", "take its own list", file=path,
        )  # fmt: skip
    return Classifier(names, **arrays, table=table, skipped=facts.pop("skipped"), facts=facts)

"""Caretaker, web page: what the page opens with - a tile, a field round it, two models and what they were trained on.

``python -m helpers.app_bundle`` makes ``data/app/`` from the virtual breast tissue (``SEED`` 0): models from patients
P1 and P2, the tile from P3, which no model has seen. What is true of the tile goes into ``truth.npz`` and
``bundle.json``; only the page's panels marked as truth read it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from helpers.app import FOLDER, TILE_UM
from helpers.messages import CourseError, say

FIELD_UM = 700.0
SECTION, SPOT = "P3_a", "TGGTGACTAATACTCA-1"
GENES = (
    "COX6C", "CD24", "ERBB2", "FASN", "EPCAM", "KRT8", "KRT18", "MKI67",  # tumour
    "CD3D", "CD3E", "CD52", "PTPRC", "CD74", "HLA-DRA", "MS4A1", "IGKC", "CD68",  # immune
    "COL1A1", "COL1A2", "SPARC", "FN1", "VIM", "ACTA2", "PECAM1",  # stroma
    "KRT5", "VEGFA", "ATP1A1", "B2M",
    "GNAS", "PABPC1",  # nothing visible decides these two
)  # fmt: skip
LARGEST_MB = 1.5
"""Most that the bundle may weigh."""


class _Data:
    """The sections of the data set ``virtual``, and what is true of them."""

    def __init__(self, *, seed: int):
        from helpers import catalogue, readers
        from helpers.virtual import cohorts

        item = next(item for item in catalogue.datasets() if item.id == "virtual")
        self.home = Path(cohorts.ensure(item.id, seed=seed))
        self.refs = {ref.section_id: ref for ref in readers.discover(self.home / "sections", dataset=item.id)}
        self.test = [name for name in self.refs if name in item.default_test]
        self.train = [name for name in self.refs if name not in item.default_test]

    def load(self, name):
        """Return a section."""
        from helpers import readers

        return readers.read(self.refs[name])

    def truth(self, name):
        """Return what is true of it."""
        from helpers.virtual import truth

        return truth.read(self.home, name)


def _spots(encoder, data, names):
    """Return embeddings, counts (n, g), library sizes and section ids of the spots of some sections."""
    from helpers import section as sec
    from helpers import tiles

    parts = []
    for name in names:
        section = data.load(name)
        table = sec.counts(section)
        index, cut = tiles.cut(section, side_um=TILE_UM, out_px=encoder.input_px)
        library = np.asarray(table.X.sum(1), float).ravel()[index]
        parts.append((encoder.embed(cut), table[index, list(GENES)].X.toarray(), library, np.full(len(index), name)))
    return [np.concatenate(part) for part in zip(*parts)]


def _held_out(x, counts, library, sections, *, seed):
    """Return the epistemic variance of every training spot, (n, g), under a model that has not seen its section."""
    from helpers import stimage

    out = np.empty(counts.shape, np.float32)
    for name in np.unique(sections):
        here = sections == name
        model = stimage.fit(x[~here], counts[~here], library=library[~here], sections=sections[~here], genes=GENES,
                            seed=seed, library_kernel="linear")  # fmt: skip
        out[here] = model.predict(x[here], keep=False).epistemic_var
    return out


def _window(section, centre_px, side_um):
    """Return a square of the slide, uint8 RGB, and its top left corner x, y in pixels."""
    from helpers import section as sec
    from helpers import tiles

    side = tiles.side_px(section, side_um)
    x, y = (int(value) for value in tiles.boxes([centre_px], side)[0])
    return sec.window(section, x, y, side, side), np.array([x, y])


def make(folder: Path = FOLDER, *, seed: int = 0) -> dict:
    """Make every file of the bundle in ``folder``; return the card that goes into ``bundle.json``."""
    from PIL import Image

    from helpers import app_explain, encoders, grade_explain, stimage, stimage_classes
    from helpers import section as sec
    from helpers.virtual import expression

    folder.mkdir(parents=True, exist_ok=True)
    data = _Data(seed=0)
    encoder = encoders.get("tiny")
    x, counts, library, sections = _spots(encoder, data, data.train)
    ensemble = stimage.fit(x, counts, library=library, sections=sections, genes=GENES, seed=seed,
                           library_kernel="linear")  # fmt: skip
    ensemble.save(folder / "regression.keras", encoder=encoder, tile_um=TILE_UM)
    measured = np.log1p(1e4 * counts / library[:, None])
    high = stimage_classes.high(measured, sections)
    classifier = stimage_classes.fit_classes(x, high, genes=GENES, seed=seed)
    classifier.save(folder / "classes.npz", encoder=encoder, tile_um=TILE_UM, train_sections=data.train)
    known = app_explain.reference(
        x, sections, measured, _held_out(x, counts, library, sections, seed=seed), genes=GENES
    )
    np.savez_compressed(folder / "reference.npz", **known)

    section, truth = data.load(SECTION), data.truth(SECTION)
    table, mpp = sec.counts(section), sec.mpp(section)
    centre = sec.xy(section)[table.obs_names.get_loc(SPOT)]
    tile, corner = _window(section, centre, TILE_UM)
    field, field_corner = _window(section, centre, FIELD_UM)
    Image.fromarray(tile).save(folder / "tile.png", optimize=True)
    Image.fromarray(field).save(folder / "field.jpg", quality=90)
    labels, cells = grade_explain.drawn_nuclei(truth, mpp=mpp, box=(*corner, *tile.shape[1::-1]))
    panel = expression.panel()
    rates = panel.weights[:, [list(panel.genes).index(gene) for gene in GENES]]  # (types, g), share of a cell's RNA
    rates = np.where(rates.max(0) > 0, rates / np.maximum(rates.max(0), 1e-30), 1)  # flat genes: all types alike
    np.savez_compressed(
        folder / "truth.npz", labels=labels.astype(np.int32), kind=np.asarray(cells["type"], str),
        types=np.asarray(panel.types, str), rates=rates.astype(np.float32), genes=np.asarray(GENES),
    )  # fmt: skip

    xt, ct, lt, _ = _spots(encoder, data, data.test)
    yt = np.log1p(1e4 * ct / lt[:, None])
    mean = ensemble.predict(xt, keep=False).mean
    row = table[SPOT]
    here = np.asarray(row[:, list(GENES)].X.todense(), float).ravel()
    card = {
        "section": SECTION, "spot": SPOT, "mpp": float(mpp), "tile_um": TILE_UM, "field_um": FIELD_UM,
        "centre_um": [float(c) for c in (centre - field_corner) * mpp], "train_sections": list(data.train),
        "test_sections": list(data.test), "genes": list(GENES), "library": float(row.X.sum()),
        "measured": {g: round(float(np.log1p(1e4 * c / row.X.sum())), 3) for g, c in zip(GENES, here)},
        "r_test": {g: round(float(np.corrcoef(mean[:, k], yt[:, k])[0, 1]), 3) for k, g in enumerate(GENES)},
        "strange_test": round(float((app_explain.distance(xt, **{k: known[k] for k in app_explain.PLANE})
                                     > known["limits"][1]).mean()), 4),
        "encoder": encoder.fingerprint, "seed": int(seed),
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    weight = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    if weight > LARGEST_MB:
        raise CourseError(f"a bundle of {weight:.2f} MB", f"at most {LARGEST_MB} MB", "lower FIELD_UM", file=folder)
    return card


def main(arguments=None) -> int:
    """Make the bundle; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.app_bundle", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    card = make(chosen.folder, seed=chosen.seed)
    say(f"bundle of {len(card['genes'])} genes from {', '.join(card['train_sections'])}, tile from {card['section']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

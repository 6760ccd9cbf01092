"""The virtual ALS cohort: spinal cords of 48 mice at four ages, 64 sections, as legacy ST with its truth.

What the disease does (mutant SOD1 mice: motor neurons die, astrocytes and microglia multiply and swell):

=====================================  =====  =====  =====  =====
of a healthy cord's                      p30    p70   p100   p120
=====================================  =====  =====  =====  =====
motor neurons, number                   1.00   0.95   0.55   0.25
motor neurons, area                     1.00   1.00   0.90   0.80
astrocytes and microglia, number        1.00   1.00   1.30   1.70
the same in the ventral horn, further   1.00   1.05   1.35   1.80
their RNA, per cell                     1.00   1.90   2.80   3.80
=====================================  =====  =====  =====  =====

The trick of the cohort lies between p30 and p70. Animals differ in their number of glia far more (a factor of 4
between the extremes) than the ages p30 and p70 do in RNA per cell. The picture shows the *number* of glia, which at
p70 is still normal. The counts show number x activity, and cannot tell many quiet glia from few active ones.
Only both together give the activity. All numbers are set by hand to make this so; the directions are the disease's.

Slides carry one animal of each age, so stain and age are not confounded. In the null twin the ages are
dealt out to the animals anew, evenly over the true ages; pictures and counts stay the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache, truth

VERSION = 1
NAMES = ("virtual_als", "virtual_als_null")
STAGES = ("p30", "p70", "p100", "p120")
COURSE = pd.DataFrame(
    {
        "motor_neurons": (1.0, 0.95, 0.55, 0.25), "motor_size": (1.0, 1.0, 0.9, 0.8), "glia": (1.0, 1.0, 1.3, 1.7),
        "horn_glia": (1.0, 1.05, 1.35, 1.8), "activity": (1.0, 1.9, 2.8, 3.8),
    },
    index=STAGES,
)  # fmt: skip
"""What each age does: factors of number, area and expression."""
PER_STAGE, TWICE = 12, 4  # animals, and how many of them give two sections
HELD_OUT = 2  # of them, the last ones of each age: the default test set
GLIA_SPREAD = 0.72  # log range, either way, of the number of glia between animals
MOTOR_SPREAD = 0.20  # the same of the number of motor neurons
SIZE_UM, MPP = (2300.0, 1900.0), 1.4
PLACES = ("C1", "D1", "C2", "D2")
GENES = settings.ROOT / "data" / "als_genes.csv"
RNA = {
    "motor_neuron": 9.0, "neuron": 2.0, "oligodendrocyte": 1.3, "astrocyte": 1.5, "microglia": 1.4,
    "endothelial": 0.7, "ependymal": 0.8, "meningeal": 0.7,
}  # fmt: skip
NEUROPIL = {"grey": {"neuron": 26.0, "oligodendrocyte": 7.0}, "white": {"oligodendrocyte": 26.0, "neuron": 6.0}}
"""RNA that lies in processes, not in bodies, under a whole spot of grey or white matter, in cells. It is most of the
RNA, so a few glia more or fewer hardly dilute the rest."""
SHARE = 0.45  # of a cell's RNA that is markers; the rest is housekeeping, the same in every cell
LEAK = 0.01  # rate of a marker in other types
ANIMAL_SD, SLIDE_SD, DEPTH = 0.08, 0.06, 4000.0
SPOT_RADIUS_UM = 50.0
_SOURCES = ("anatomy cells cord fields ground matrix noise optics rendering styles als expression".split())


# ---------------------------------------------------------------- the animals
def animals(seed: int) -> pd.DataFrame:
    """Return one row an animal: ``animal``, ``stage``, ``sex``, ``fake_stage`` (of the null twin), ``glia``, ``motor``.

    ``glia`` and ``motor`` are the animal's own factors of the numbers of glia and motor neurons, spread
    evenly over the animals of each age.
    """
    pattern = (0, 0, 0, 1, 1, 1, 2, 2, 3, 3)  # with the two held-out animals, three animals of an age get each age
    rows = []
    for code, stage in enumerate(STAGES):
        def levels(name, code=stage):
            stream, even = settings.rng(seed, "als", code, name), np.linspace(-1, 1, PER_STAGE)
            return stream.permutation(even + stream.uniform(-1, 1, PER_STAGE) / PER_STAGE)

        stream = settings.rng(seed, "als", stage, "null")
        fake = [*stream.permutation(pattern), *stream.permutation((2, 3))]
        for number, (glia, motor) in enumerate(zip(levels("glia"), levels("motor"))):
            rows.append({
                "animal": f"{101 + 4 * number + code}", "stage": stage, "sex": ("female", "male")[number % 2],
                "fake_stage": STAGES[(fake[number] + code) % 4], "number": number,
                "glia": float(np.exp(GLIA_SPREAD * glia)), "motor": float(np.exp(MOTOR_SPREAD * motor)),
            })
    return pd.DataFrame(rows)


def members(seed: int) -> pd.DataFrame:
    """Return one row a section: ``section_id``, ``slide`` and the columns of :func:`animals`."""
    rows = []
    for animal in animals(seed).to_dict("records"):
        code = STAGES.index(animal["stage"])
        for copy in range(2 if animal["number"] < TWICE else 1):
            slide = f"V{1 + (animal['number'] + copy * PER_STAGE + 3 * code) % (PER_STAGE + TWICE):02d}"
            rows.append({"section_id": f"{slide}_{PLACES[code]}", "slide": slide, **animal})
    return pd.DataFrame(rows).sort_values("section_id", ignore_index=True)


def default_test() -> list[str]:
    """Return the sections of the animals held out by default, the same for every seed."""
    table = members(0)
    return list(table["section_id"][table["number"] >= PER_STAGE - HELD_OUT])


# ---------------------------------------------------------------- expression
def panel() -> tuple[pd.DataFrame, np.ndarray]:
    """Return the gene table and the profiles, float64 (types, genes), each row summing to 1."""
    from helpers.virtual.cord import TYPES

    table = pd.read_csv(GENES, keep_default_na=False)
    level, plain = table["level"].to_numpy(float), (table["types"] == "").to_numpy()
    weights = np.full((len(TYPES), len(table)), LEAK)
    for column, text in enumerate(table["types"]):
        for part in filter(None, text.split(";")):
            name, weight = part.split(":")
            if name not in TYPES:
                raise CourseError(f"cell type {name!r}", f"one of {', '.join(TYPES)}", "mend the row", file=GENES)
            weights[TYPES.index(name), column] = float(weight)
    weights = weights * level * ~plain
    weights *= SHARE / weights.sum(1, keepdims=True)
    return table, weights + (1 - SHARE) * level * plain / level[plain].sum()


def rates(by_type, grey, *, activity: float, shift) -> np.ndarray:
    """Return expected counts before library noise, float64 (spots, genes).

    Parameters
    ----------
    by_type
        Cells of each type in every spot, (spots, types).
    grey
        Share of each spot that is grey matter, (spots,).
    activity
        Factor on the RNA of an astrocyte or microglial cell, markers and the rest alike: were it the markers alone, the
        ratio of markers to the rest would give it away without any picture.
    shift
        Log factors of the genes (animal and slide), (genes,).
    """
    from helpers.virtual.cord import TYPES

    _, profile = panel()
    swollen = {"astrocyte": activity, "microglia": activity}
    amount = by_type * np.array([RNA[kind] * swollen.get(kind, 1.0) for kind in TYPES])
    for matter, share in (("grey", grey), ("white", 1 - grey)):
        for kind, cells in NEUROPIL[matter].items():
            amount[:, TYPES.index(kind)] += cells * share
    rate = amount @ profile * np.exp(shift)
    return DEPTH * rate / rate.sum(1, keepdims=True) * (amount.sum(1) / amount.sum(1).mean())[:, None]


# ---------------------------------------------------------------- one section
def _make(part: str, member: dict, seed: int) -> None:
    """Grow, render, measure and write one section into the folder ``part``."""
    from helpers.virtual import anatomy, cells, cord, expression, noise, platforms, rendering

    name, course = member["section_id"], COURSE.loc[member["stage"]]
    stream = settings.rng(seed, "als", "section", name)
    style = cord.CordStyle(
        size=float(stream.uniform(0.79, 0.85)), turn_rad=float(stream.uniform(-0.35, 0.35)),
        motor_neurons=course.motor_neurons * member["motor"] * float(np.exp(stream.normal(0, 0.15))),
        motor_size=course.motor_size, glia=course.glia * member["glia"] * float(np.exp(stream.normal(0, 0.05))),
        horn_glia=course.horn_glia, oligodendrocytes=float(np.exp(stream.normal(0, 0.10))),
        neurons=float(np.exp(stream.normal(0, 0.08))),
    )  # fmt: skip
    ground = anatomy.grow(seed=seed, section=f"als {name}", size_um=SIZE_UM, style=style, template="cord")
    placed = cells.place(ground, seed=seed, section=f"als {name}")
    stain = replace(
        rendering.draw_stain(seed=seed, batch=f"als {member['slide']}", style=style), printed_origin_um=(100.0, 100.0)
    )
    slide = rendering.render(ground, placed, stain, mpp=MPP, seed=seed, section=f"als {name}")

    spots = platforms.st_spots(SIZE_UM, mpp=MPP, seed=seed, section=f"als {name}")
    tissue = (ground.fields["tissue"] > 0).astype(np.uint8)
    everywhere = spots[["x_um", "y_um"]].to_numpy(float)
    on = truth.domain_shares(tissue, ground.grid_um, everywhere, SPOT_RADIUS_UM, 2)[:, 1] >= 0.7
    spots, xy = spots[on].reset_index(drop=True), everywhere[on]
    inside = expression.spot_members(placed.table, xy, SPOT_RADIUS_UM)
    kinds = placed.table["type"].cat.codes.to_numpy()[:, None] == np.arange(len(cord.TYPES))
    by_type = np.asarray(inside @ kinds.astype(float))
    shares = truth.domain_shares(ground.domain, ground.grid_um, xy, SPOT_RADIUS_UM, len(cord.DOMAINS))
    table, _ = panel()
    shift = ANIMAL_SD * settings.rng(seed, "als", "animal", member["animal"]).standard_normal(len(table))
    shift = shift + SLIDE_SD * settings.rng(seed, "als", "slide", member["slide"]).standard_normal(len(table))
    rate = rates(by_type, shares[:, 2:4].sum(1), activity=course.activity, shift=shift)
    library = noise.library_size(len(xy), seed=seed, section=f"als {name}", platform="st")
    theta = np.clip(1.5 + table["level"].to_numpy(float) / 2, 1.5, 10.0)
    drawn = settings.rng(seed, "als", "counts", name)
    counts = drawn.poisson(rate * library[:, None] * drawn.standard_gamma(np.broadcast_to(theta, rate.shape)) / theta)
    counts = pd.DataFrame(counts, index=spots["spot"].to_numpy(), columns=table["symbol"])
    _write(Path(part), name, slide, spots, counts)

    place = Path(part) / "truth" / name
    place.mkdir(parents=True, exist_ok=True)
    described = pd.DataFrame(by_type.astype(int), columns=[f"n_{kind}" for kind in cord.TYPES])
    described[[f"share_{kind}" for kind in cord.DOMAINS]] = shares
    described = pd.concat([spots[["spot", "x_um", "y_um"]], described.assign(library=library)], axis=1)
    described.to_parquet(place / "spots.parquet", index=False)
    placed.table.to_parquet(place / "cells.parquet", index=False)
    np.savez(place / "expected.npz", rate=rate.astype(np.float32), best=rate.astype(np.float32))
    pd.DataFrame({"gene": table["symbol"], "group": table["group"]}).to_parquet(place / "genes.parquet", index=False)
    facts = {**member, **course.to_dict(), "seed": seed, "mpp": MPP, "shape": list(slide.image.shape),
             "haematoxylin": slide.measured_haematoxylin.tolist(), "eosin": slide.measured_eosin.tolist()}
    (place / "stain.json").write_text(json.dumps(facts, indent=1, default=float), encoding="utf-8")


def _write(part: Path, name: str, slide, spots: pd.DataFrame, counts: pd.DataFrame) -> None:
    """Write a section as SpaCell's folders hold it, with a table of positions beside the counts."""
    top = part / "sections"
    for folder in ("cm", "image", "spots"):
        (top / folder).mkdir(parents=True, exist_ok=True)
    (top / "image" / f"{name}_HE.jpg").write_bytes(slide.jpeg)
    counts.to_csv(top / "cm" / f"{name}_stdata_aligned_counts_IDs.txt", sep="\t", lineterminator="\n")
    columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y"]
    positions = spots[columns].assign(selected=1)
    positions.to_csv(top / "spots" / f"{name}_selection.tsv", sep="\t", index=False, lineterminator="\n")


def _metadata(part: Path, table: pd.DataFrame, stage: str) -> None:
    """Write the sample sheet; ``stage`` names the column that holds the ages."""
    folder = part / "sections" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    sheet = pd.DataFrame({
        "sample_name": table["section_id"], "organism": "Mus musculus (virtual)", "isolate": table["animal"],
        "breed": "B6SJLSOD1-G93A", "age": table[stage], "sex": table["sex"], "slide": table["slide"],
        "tissue": "spinal cord",
    })
    sheet.to_csv(folder / "sample_names.tsv", sep="\t", index=False, lineterminator="\n")


# ---------------------------------------------------------------- data set
def ensure(name: str = "virtual_als", *, seed: int = 0, workers: int | None = None) -> Path:
    """Return the folder of the cohort or of its null twin, generating it if it is not there.

    Returns
    -------
    Path
        With ``sections/`` (``cm``, ``image``, ``spots``, ``metadata``), ``truth/`` and ``dataset.json``.
    """
    if name not in NAMES:
        raise CourseError(f"data set {name!r}", f"one of {', '.join(NAMES)}", "correct DATA")
    table, home = members(seed), settings.virtual_dir()
    files = [Path(__file__).with_name(f"{source}.py") for source in _SOURCES] + [GENES]
    key = cache.digest({"version": VERSION, "seed": int(seed)}, files)
    final = home / f"{name}-v{VERSION}-{key}"
    if (final / "dataset.json").is_file():
        return final
    null = name.endswith("_null")
    source = ensure(NAMES[0], seed=seed, workers=workers) if null else None
    with cache.lock(home / f".{final.name}.lock"):
        if (final / "dataset.json").is_file():  # another process was quicker
            return final
        part = cache.fresh(final)
        if null:
            for file in (file for file in source.rglob("*") if file.is_file() and file.name != "dataset.json"):
                target = part / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                truth.share(file, target)
            (part / "sections" / "metadata" / "sample_names.tsv").unlink()  # else the source's would be overwritten
        else:
            cache.run(_make, [(str(part), row, int(seed)) for row in table.to_dict("records")], name, workers)
        stage = "fake_stage" if null else "stage"
        _metadata(part, table, stage)
        rows = [
            {"section_id": row["section_id"], "subject_id": row["animal"], "slide": row["slide"], "stage": row[stage]}
            for row in table.to_dict("records")
        ]
        card = {"name": name, "platform": "st", "mpp": MPP, "sections": rows, "parameters": {"seed": int(seed)}}
        (part / "dataset.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        os.replace(part, final)
    return final

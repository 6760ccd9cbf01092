"""The virtual data sets: patients, their sections, the slides they were stained on; generated once and kept.

Two stages, each cached under ``settings.virtual_dir()`` by a hash of everything that went in, code included:
tissue (anatomy, cells, picture; the slow one) and data set (expression and vendor files). The null twin and the legacy
ST data set stand on the tissues of the default one: pictures are hard-linked, not drawn again. A folder appears under
its final name only when it is complete, so a killed run leaves nothing that could be taken for a result.

Layout of a data set: ``sections/`` (the vendor's folders, all that a reader is shown), ``truth/<section_id>/``,
``dataset.json``. Tissues: ``tissue-<key>/<tissue id>/`` with ``image.jpg`` and the truth that expression cannot change.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from multiprocessing import current_process
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache, truth

VERSION = 1  # raise it when _grow changes: this file is not part of a tissue's hash
MPP = 0.69
NAMES = {"virtual": "visium", "virtual_null": "visium", "virtual_st": "st", "virtual_st_null": "st"}
"""Data sets and the platform they are written for; those ending in ``_null`` have coupling 0."""


@dataclass(frozen=True)
class Member:
    """One tissue of the cohort: patients differ in style, subtype and stain; a patient's two sections in the slide."""

    tissue: str
    patient: str
    slide: str
    style: str
    subtype: str
    space_ranger: int
    st_id: str


PATIENTS = (("P1", "dense", "luminal"), ("P2", "loose", "her2"), ("P3", "dense", "basal"))
STYLE_CHANGES = {"P3": {"nest_width": 18.0, "nest_share": 0.42, "immune_share": 0.06}}
"""What a patient's tissue has of its own: P3 broad pushing nests among many lymphocytes, as basal-like tumours do."""
MEMBERS = tuple(
    Member(f"{patient}_{part}", patient, f"slide{1 + number}", style, subtype,
           1 if (patient, part) == ("P1", "b") else 2, f"{'ABC'[i]}{number + 1}")
    for i, (patient, style, subtype) in enumerate(PATIENTS)
    for number, part in enumerate("ab")
)  # fmt: skip


def _sources(*, expression: bool) -> list[Path]:
    """Files whose change makes the cache stale: expression cannot change a picture, and realism only looks at it."""
    late = {"expression.py", "noise.py", "platforms.py", "cohorts.py", "cache.py"}
    skipped = {"realism.py", "cord.py", "als.py"} | (set() if expression else late)  # the last two: another organ
    here = [f for f in Path(__file__).parent.glob("*.py") if not f.name.startswith("xenium")]  # another platform
    files = [f for f in here if f.name not in skipped]
    from helpers.virtual.expression import PANEL_FILE

    return files + ([PANEL_FILE] if expression else [])


# ---------------------------------------------------------------- tissue
def _grow(folder: Path, member: Member, seed: int, size_um: float) -> None:
    """Grow, render and write one tissue into ``folder`` (atomically)."""
    from helpers.virtual import anatomy, cells, rendering
    from helpers.virtual.styles import STYLES

    final = folder / member.tissue
    if final.is_dir():
        return
    part = cache.fresh(final)
    style = replace(STYLES[member.style], **STYLE_CHANGES.get(member.patient, {}))
    ground = anatomy.grow(seed=seed, section=member.tissue, size_um=(size_um, size_um), style=style)
    placed = cells.place(ground, seed=seed, section=member.tissue)
    stain = rendering.draw_stain(seed=seed, batch=f"{member.patient}/{member.slide}", style=style)
    slide = rendering.render(ground, placed, stain, mpp=MPP, seed=seed, section=member.tissue)
    (part / "image.jpg").write_bytes(slide.jpeg)
    facts = {
        **asdict(member), "seed": seed, "mpp": MPP, "shape": list(slide.image.shape), "n_cells": len(placed.table),
        "haematoxylin": _plain(slide.measured_haematoxylin), "eosin": _plain(slide.measured_eosin),
        "white_point": _plain(slide.measured_white_point), "put_in": _plain(stain),
        "cast": {"eosin": stain.cast, "reach_um": stain.cast_reach_um},
    }  # fmt: skip
    truth.write_tissue(part, anatomy=ground, cells=placed, slide=slide, stain=facts)
    os.replace(part, final)


def _plain(value):
    """Return a value as something JSON can hold."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


# ---------------------------------------------------------------- data set
def _measure(job: dict) -> None:
    """Draw the counts of one section and write its vendor files and truth into ``job["part"]``."""
    import cv2

    from helpers.virtual import expression, noise, platforms

    member, tissue, part = job["member"], Path(job["tissue"]) / job["member"].tissue, Path(job["part"])
    seed, options, section_id = job["seed"], job["options"], job["section_id"]
    place = part / "truth" / section_id
    for left in (place, part / "sections" / section_id):  # of a worker that died
        shutil.rmtree(left, ignore_errors=True)
    known = truth.Truth(tissue, section_id)
    table, shape = known.cells, known.stain["shape"]
    size_um, name = (shape[1] * MPP, shape[0] * MPP), job["platform"]
    platform = platforms.PLATFORMS[name]
    if name == "st":
        spots = platforms.st_spots(size_um, mpp=MPP, seed=seed, section=member.tissue)
    else:
        spots = platforms.visium_spots(size_um, mpp=MPP)
    xy = spots[["x_um", "y_um"]].to_numpy(float)
    mask = known.tissue.astype(np.uint8)
    kept = truth.domain_shares(mask, known.grid_um, xy, platform.radius_um, 2)[:, 1] >= platforms.IN_TISSUE
    if kept.sum() < 4:
        raise CourseError(f"{kept.sum()} spots on tissue in {section_id}", "at least 4", "generate a larger section")
    xy = xy[kept]
    rates = expression.expected(
        table, xy, radius_um=platform.radius_um, depth=options["depth"] or platform.depth, seed=seed,
        section=member.tissue, patient=member.patient, slide=member.slide, subtype=member.subtype,
        coupling=options["coupling"], patient_sd=options["patient_sd"], slide_sd=options["slide_sd"],
        swap=options["swap"], dropout=options["dropout"],
    )  # fmt: skip
    library = noise.library_size(len(xy), seed=seed, section=member.tissue, platform=name)
    counts = noise.draw(rates, library, rng=settings.rng(seed, "expression", member.tissue, name, "counts"))
    panel = expression.panel()
    picture = tissue / "image.jpg"
    common = {"section_id": section_id, "jpeg": picture, "spots": spots, "counts": counts, "genes": panel.genes}
    if name == "st":
        platforms.write_st(part / "sections", kept=kept, **common)
    else:
        image = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
        platforms.write_visium(
            part / "sections", image=image, mpp=MPP, in_tissue=kept, gene_ids=panel.table["gene_id"],
            space_ranger=member.space_ranger, **common,
        )  # fmt: skip

    place.mkdir(parents=True)
    for file in ("cells.parquet", "nuclei.npz", "tissue.npz", "stain.json"):
        truth.share(tissue / file, place / file)
    genes = noise.ceilings(rates, library, seed=seed, section=member.tissue, platform=name, draws=20)
    genes["predictable"] = genes["r_ceil"] >= truth.PREDICTABLE
    genes = genes.join(panel.table[["group", "programme", "rho", "morphology"]])
    members = expression.spot_members(table, xy, platform.radius_um)
    described = truth.describe_spots(known, table, members, spots["spot"][kept].to_numpy(), xy, platform.radius_um)
    described["library"] = library
    truth.write_expression(place, spots=described, genes=genes, rate=rates.rate, best=rates.best)


def ensure(
    name: str = "virtual",
    *,
    seed: int = 0,
    coupling: float | None = None,
    size_um: float = 3000.0,
    n_sections: int = len(MEMBERS),
    patient_sd: float | None = None,
    slide_sd: float | None = None,
    swap: float = 0.0,
    dropout: float = 0.0,
    depth: float | None = None,
    workers: int | None = None,
) -> Path:
    """Return the folder of a virtual data set, generating it if it is not there.

    Parameters
    ----------
    name
        ``"virtual"`` (six Visium sections), ``"virtual_st"`` (the same tissues as legacy ST), or either with ``_null``.
    seed, size_um, n_sections
        What the tissue depends on: seed, side of the square field in um, the first so many of the six sections.
    coupling
        Share of the log-variance of expression that morphology explains; default 1, and 0 for a null twin.
    patient_sd, slide_sd
        Sd of per-gene log shifts between patients and slides; defaults .25 and .1. In a null twin both default to 0:
        stain differs between patients too, and a shift would tie expression to colour across patients.
    swap, dropout, depth
        See ``expression.expected``; ``depth`` None takes the platform's.
    workers
        Processes; default two at most. 1 stays in this process.

    Returns
    -------
    Path
        With ``sections/``, ``truth/`` and ``dataset.json``.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker importing the caller's script would wait for itself
        raise CourseError("a script without a main guard", 'if __name__ == "__main__":', "put the call under it")
    if name.startswith("virtual_als"):
        from helpers.virtual import als

        return als.ensure(name, seed=seed, workers=workers)
    if name.startswith("virtual_xenium"):
        from helpers.virtual import xenium

        return xenium.ensure(name, seed=seed, workers=workers)
    if name not in NAMES:
        raise CourseError(f"data set {name!r}", f"one of {', '.join(NAMES)}", "correct DATA")
    if not 1 <= n_sections <= len(MEMBERS):
        raise CourseError(f"n_sections = {n_sections}", f"1 to {len(MEMBERS)}", "correct it")
    null = name.endswith("_null")
    coupling = (0.0 if null else 1.0) if coupling is None else coupling
    if null and coupling != 0:
        raise CourseError(f"coupling {coupling} for {name}", "0: a null twin has none", "leave coupling out")
    options = {
        "coupling": float(coupling),
        "patient_sd": (0.0 if coupling == 0 else 0.25) if patient_sd is None else float(patient_sd),
        "slide_sd": (0.0 if coupling == 0 else 0.1) if slide_sd is None else float(slide_sd),
        "swap": float(swap),
        "dropout": float(dropout),
        "depth": depth,
    }
    members, home, platform = MEMBERS[:n_sections], settings.virtual_dir(), NAMES[name]
    ground = {"version": VERSION, "seed": int(seed), "size_um": float(size_um), "mpp": MPP}
    looks = {**ground, "patients": [PATIENTS, STYLE_CHANGES]}
    tissue = home / f"tissue-{cache.digest(looks, _sources(expression=False))}"
    # the whole of ``members`` is in the key, the name too: two data sets never share a folder
    parameters = {**ground, **options, "name": name, "members": [asdict(m) for m in members]}
    final = home / f"{name}-v{VERSION}-{cache.digest(parameters, _sources(expression=True))}"
    if (final / "dataset.json").is_file():
        return final

    with cache.lock(home / f".{tissue.name}.lock"):
        missing = [m for m in members if not (tissue / m.tissue).is_dir()]
        if missing:
            tissue.mkdir(parents=True, exist_ok=True)
            cache.run(_grow, [(tissue, m, int(seed), float(size_um)) for m in missing], "virtual tissue", workers)
    with cache.lock(home / f".{final.name}.lock"):
        if (final / "dataset.json").is_file():  # another process was quicker
            return final
        part = cache.fresh(final)
        ids = [m.st_id if platform == "st" else m.tissue for m in members]
        jobs = [
            {"member": m, "section_id": i, "tissue": str(tissue), "part": str(part), "seed": int(seed),
             "platform": platform, "options": options}
            for m, i in zip(members, ids)
        ]  # fmt: skip
        cache.run(_measure, [(job,) for job in jobs], name, 1 if size_um < 1500 else workers)
        rows = [
            {"section_id": i, "subject_id": i[0] if platform == "st" else m.patient, "slide": m.slide, "style": m.style}
            for m, i in zip(members, ids)
        ]
        card = {"name": name, "platform": platform, "mpp": MPP, "sections": rows, "parameters": parameters}
        (part / "dataset.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        os.replace(part, final)
    return final


def card(folder) -> dict:
    """Return ``dataset.json`` of a generated data set: name, platform, sections with subject and slide, parameters."""
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        raise CourseError("no dataset.json", "a folder made by cohorts.ensure", "call ensure first", file=file)
    return json.loads(file.read_text(encoding="utf-8"))

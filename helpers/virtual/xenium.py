"""The virtual Xenium sections: five of three patients, each with DAPI, transcripts and an H&E to be registered.

A section's tissue is grown, and its H&E drawn, in the H&E's own frame. A turn, a mirror, a scale and a gentle warp take
the nuclei to the instrument's frame, where DAPI is drawn, cells are segmented and molecules counted. No alignment file
is written: finding it is the task. The null twin has the same pictures, and every cell the type and expression of
another cell of its section. Made once and kept like the other data sets (see ``cohorts``)::

    sections/<id>/outs/                     the instrument's folder
    sections/<id>/<id>_he_image.ome.tif     the H&E, taken later on another scanner
    sections/reference.h5ad                 single cells of other donors, for naming cells
    truth/<id>/                             see ``xenium_truth``
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache, truth

VERSION = 1
NAMES = ("virtual_xenium", "virtual_xenium_null")
SIZE_UM, HE_MPP, MARGIN_UM = 1150.0, 0.5, 30.0
HE_LOST = 0.03  # nuclei of the DAPI section that the H&E does not show
HE_JPEG = 92


@dataclass(frozen=True)
class Member:
    """One section: who, how its H&E lies (planned turn; see ``xenium_frame.draw``), and which software wrote it."""

    section_id: str
    patient: str
    subtype: str
    angle_deg: float
    mirrored: bool
    warp_um: float
    version: str


MEMBERS = (
    Member("X1_a", "X1", "luminal", 0.0, False, 3.0, "xenium-1.0.1"),
    Member("X1_b", "X1", "luminal", 90.0, True, 3.0, "xenium-1.9.0.0"),
    Member("X2_a", "X2", "her2", 180.0, False, 0.0, "xenium-2.0.0.10"),
    Member("X3_a", "X3", "basal", -40.0, False, 3.0, "xenium-3.1.0.0"),
    Member("X3_b", "X3", "basal", 90.0, True, 3.0, "xenium-4.0.1.0"),
)
_COMMON = {
    "vessels_per_mm2": 170.0, "ducts_per_mm2": 1.6, "duct_radius": (60.0, 130.0), "lymphocytes": 900.0,
    "immune_share": 0.06, "fat_share": 0.15, "cell_density": 0.8, "nucleus_area": 1.6, "fibroblasts": 1900.0,
    "tumour_share": 0.65,
}  # fmt: skip
TISSUES = {
    "X1": _COMMON,
    "X2": {**_COMMON, "nest_width": 10.0, "nest_levels": 7, "fat_share": 0.30, "tumour_share": 0.55,
           "fibroblasts": 2200.0},
    "X3": {**_COMMON, "nest_width": 18.0, "immune_share": 0.09, "in_situ_share": 0.4, "fibroblasts": 1600.0},
}  # fmt: skip
"""Changes to the ``ffpe`` style: more vessels and ducts than a real millimetre has, so that no class is absent."""
STAINS = {
    "X1": {},
    "X2": {"haematoxylin": (0.60, 0.74, 0.30), "eosin": (0.17, 0.92, 0.36), "strength_h": 0.90, "strength_e": 1.25,
           "white_point": (246.0, 240.0, 238.0)},
    "X3": {"haematoxylin": (0.75, 0.60, 0.28), "eosin": (0.36, 0.83, 0.42), "strength_h": 1.05, "strength_e": 0.80,
           "white_point": (234.0, 229.0, 241.0)},
}  # fmt: skip
"""Changes to the stain: X2's is redder and pinker, X3's (the test patient) bluer and paler on a lilac glass."""


def _sources() -> list[Path]:
    """Files whose change makes the data stale."""
    from helpers.virtual.expression import PANEL_FILE

    used = "anatomy breast cells cord fields ground matrix optics rendering styles expression".split()
    here = Path(__file__).parent
    return [here / f"{name}.py" for name in used] + sorted(here.glob("xenium*.py")) + [PANEL_FILE]


# ---------------------------------------------------------------- one section
def _grow(member: Member, seed: int, size_um: float):
    """Return anatomy, cells, which nuclei the H&E shows, and the slide."""
    from helpers.virtual import anatomy, cells, rendering
    from helpers.virtual.styles import STYLES

    name = f"xenium {member.section_id}"
    style = replace(STYLES["ffpe"], **TISSUES[member.patient])
    ground = anatomy.grow(seed=seed, section=name, size_um=(size_um, size_um), style=style)
    ground.fields["adipocyte"] = np.nan_to_num(ground.fields["adipocyte"], posinf=60.0)  # a lone fat cell has no wall
    placed = cells.place(ground, seed=seed, section=name)
    in_he = settings.rng(seed, "xenium", "he lost", name).random(len(placed.table)) >= HE_LOST
    stain = replace(
        rendering.draw_stain(seed=seed, batch=f"xenium {member.patient}", style=style), **STAINS[member.patient]
    )
    shown = cells.Cells(placed.table[in_he].reset_index(drop=True), placed.polygons[in_he])
    slide = rendering.render(ground, shown, stain, mpp=HE_MPP, seed=seed, section=name)
    return ground, placed, in_he, slide


def _dealt(table: pd.DataFrame, seed: int, name: str) -> pd.DataFrame:
    """Return the table with its rows, and so types and all that expression follows, dealt out to other cells."""
    order = settings.rng(seed, "xenium", "null", name).permutation(len(table))
    return table.iloc[order].reset_index(drop=True)


def _make(part: str, part_null: str, member: Member, seed: int, field_um: float) -> None:
    """Make one section of the data set and of its null twin in the folders given."""
    from helpers.virtual import xenium_cells, xenium_dapi, xenium_files, xenium_frame

    name = member.section_id
    ground, placed, in_he, slide = _grow(member, seed, field_um)
    table = placed.table
    frame = xenium_frame.draw(
        seed=seed, section=name, angle_deg=member.angle_deg, mirrored=member.mirrored, warp_um=member.warp_um
    )
    frame, size_um = xenium_frame.anchored(frame, placed.polygons, MARGIN_UM)
    polygons = frame.to_xenium(placed.polygons).astype(np.float32)
    shown = xenium_dapi.visible(table, seed=seed, section=name)
    picture = xenium_dapi.draw(ground, table, polygons, frame, size_um, shown=shown, seed=seed, section=name)
    reach = 5.0 if xenium_files.major(member.version) >= 2 else 15.0
    found = xenium_cells.segment(polygons, shown, size_um, reach_um=reach, seed=seed, section=name)
    names, prefix = xenium_files.cell_names(len(found.index), member.version, settings.rng(seed, "xenium", "ids", name))

    homes = [Path(part), Path(part_null)]
    for home in homes:
        (home / "sections" / name / "outs").mkdir(parents=True)
        (home / "truth" / name).mkdir(parents=True)
    outs, he = homes[0] / "sections" / name / "outs", homes[0] / "sections" / name / f"{name}_he_image.ome.tif"
    xenium_files.write_ome(he, slide.image, um_px=HE_MPP, name=name, jpeg=HE_JPEG)
    xenium_files.write_morphology(outs, picture, version=member.version, name=name)
    for file, outlines in (("cell_boundaries", found.cells), ("nucleus_boundaries", found.nuclei)):
        xenium_files.write_boundaries(outs / f"{file}.parquet", outlines, names, version=member.version)

    cells = table.assign(
        x_px=table["x_um"] / HE_MPP, y_px=table["y_um"] / HE_MPP, in_he=in_he, in_dapi=shown, cell=""
    )  # fmt: skip
    cells[["xenium_x_um", "xenium_y_um"]] = polygons.mean(1)
    cells.loc[found.index, "cell"] = np.asarray(names).astype(str)
    place = homes[0] / "truth" / name
    facts = {**asdict(member), "seed": seed, "mpp": HE_MPP, "shape": list(slide.image.shape),
             "haematoxylin": slide.measured_haematoxylin.tolist(), "eosin": slide.measured_eosin.tolist(),
             "white_point": slide.measured_white_point.tolist(), "put_in": asdict(slide.stain)}
    truth.write_tissue(place, anatomy=ground, cells=placed, slide=slide, stain=facts)
    np.savez_compressed(place / "xenium_nuclei.npz", polygons=polygons)
    _write_registration(place, frame, ground, slide, picture.shape)

    written = [file for file in homes[0].rglob("*") if file.is_file() and name in file.parts]
    for file in (file for file in written if file.name != "cells.parquet"):
        target = homes[1] / file.relative_to(homes[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        truth.share(file, target)
    tissue = xenium_frame.landmarks(frame, ground.fields["tissue"] > 0, ground.grid_um, step_um=3.0)[:, :2]
    for home, word, used in zip(homes, NAMES, (table, _dealt(table, seed, name))):
        known = cells.assign(drawn_type=table["type"], type=used["type"])
        _measure(home, word, member, seed, known, used, polygons, tissue, found, names, prefix)


def _write_registration(place: Path, frame, ground, slide, dapi_shape) -> None:
    """Write the pairs of points and what the best affine makes of them."""
    from helpers.virtual import xenium_frame

    pairs = xenium_frame.landmarks(frame, ground.fields["tissue"] > 0, ground.grid_um)
    xenium_um, he_px = pairs[:, :2], pairs[:, 2:] / HE_MPP
    matrix = xenium_frame.best_affine(xenium_um, he_px)
    um_px = 1 / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    left = np.hypot(*(xenium_um @ matrix[:2, :2].T + matrix[:2, 2] - he_px).T) * um_px
    np.savez(place / "landmarks.npz", xenium_um=xenium_um, he_px=he_px)
    facts = {
        "um_to_px": matrix.tolist(), "affine_floor_um": float(np.median(left)), "mirrored": frame.mirrored,
        "angle_deg": frame.angle_deg, "scale": frame.scale, "warp_um": frame.warp_um, "he_mpp": HE_MPP,
        "he_um_px": float(um_px), "he_shape": list(slide.image.shape[:2]), "dapi_shape": list(dapi_shape),
    }  # fmt: skip
    (place / "registration.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _measure(home: Path, word: str, member: Member, seed: int, known, used, polygons, tissue, found, names, prefix):
    """Count molecules and write tables, matrix and truth of one section.

    ``known`` is the truth of each cell, ``used`` the rows that expression follows (others in the null twin).
    """
    from helpers.virtual import xenium_cells, xenium_counts, xenium_files

    name, version = member.section_id, member.version
    outs, place = home / "sections" / name / "outs", home / "truth" / name
    rate = xenium_counts.rates(used, seed=seed, section=name, patient=member.patient, subtype=member.subtype)
    drawn = xenium_counts.transcripts(rate, polygons, tissue, found, seed=seed, section=f"{name} {word}")
    panel, controls = xenium_counts.panel(), xenium_counts.control_names()
    features = np.r_[panel["symbol"].to_numpy(str), *controls.values()]
    gene_ids = np.r_[panel["gene_id"].to_numpy(str), *controls.values()]
    kinds = np.array(["gene"] * len(panel) + [kind for kind, members in controls.items() for _ in members])
    counts = xenium_counts.matrix(drawn, len(names))
    table = xenium_files.write_cells(outs, found, names, counts, kinds, version=version)
    xenium_files.write_matrix(
        outs / "cell_feature_matrix.h5", counts, features, gene_ids, kinds, names, version=version
    )
    xenium_files.write_transcripts(outs / "transcripts.parquet", drawn, features, kinds, names, version=version)
    xenium_files.write_cells_zarr(outs / "cells.zarr.zip", table, prefix, version=version)
    xenium_files.write_experiment(
        outs, version=version, section_id=name, table=table, n_transcripts=len(drawn), panel=panel
    )

    known["class"] = known["type"].astype(str).map(xenium_cells.CLASS_OF)
    known.to_parquet(place / "cells.parquet", index=False)
    spots = known.iloc[found.index].reset_index(drop=True)
    spots = spots[["type", "drawn_type", "class", "domain", "x_px", "y_px", "cell_id", "in_he"]]
    spots.insert(0, "spot", np.asarray(names).astype(str))
    spots.to_parquet(place / "spots.parquet", index=False)
    genes = panel.rename(columns={"symbol": "gene"})[["gene", "group", "programme", "rho", "morphology"]]
    genes.to_parquet(place / "genes.parquet", index=False)
    np.savez(place / "expected.npz", rate=rate[found.index].astype(np.float32))


# ---------------------------------------------------------------- data set
def ensure(
    name: str = "virtual_xenium",
    *,
    seed: int = 0,
    size_um: float = SIZE_UM,
    sections: tuple[str, ...] = tuple(m.section_id for m in MEMBERS),
    workers: int | None = None,
) -> Path:
    """Return the folder of the data set or of its null twin; both are made at once if they are not there.

    Parameters
    ----------
    seed, size_um, sections
        What the tissue depends on: seed, side of the square H&E field in um, and which of the five sections to make.
    workers
        Processes; default two at most. 1 stays in this process.

    Returns
    -------
    Path
        With ``sections/``, ``truth/`` and ``dataset.json``.
    """
    from helpers.virtual import xenium_reference

    if name not in NAMES:
        raise CourseError(f"data set {name!r}", f"one of {', '.join(NAMES)}", "correct DATA")
    home, members = settings.virtual_dir(), [m for m in MEMBERS if m.section_id in sections]
    parameters = {"version": VERSION, "seed": int(seed), "size_um": float(size_um)}
    parameters["members"] = [asdict(m) for m in members]
    key = cache.digest(parameters, _sources())
    finals = {wanted: home / f"{wanted}-v{VERSION}-{key}" for wanted in NAMES}
    if (finals[name] / "dataset.json").is_file():
        return finals[name]
    with cache.lock(home / f".{finals[NAMES[0]].name}.lock"):
        if (finals[name] / "dataset.json").is_file():  # another process was quicker
            return finals[name]
        parts = {wanted: cache.fresh(final) for wanted, final in finals.items()}
        jobs = [(str(parts[NAMES[0]]), str(parts[NAMES[1]]), m, int(seed), float(size_um)) for m in members]
        cache.run(_make, jobs, NAMES[0], workers)
        for wanted, part in parts.items():
            xenium_reference.write(part / "sections" / "reference.h5ad", int(seed))
            rows = [
                {"section_id": m.section_id, "subject_id": m.patient, "slide": m.section_id, "style": m.patient}
                for m in members
            ]
            card = {"name": wanted, "platform": "xenium", "mpp": HE_MPP, "sections": rows,
                    "parameters": parameters}
            (part / "dataset.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            if not finals[wanted].exists():  # one of the two may have been deleted by hand
                os.replace(part, finals[wanted])
            else:
                import shutil

                shutil.rmtree(part)
    return finals[name]

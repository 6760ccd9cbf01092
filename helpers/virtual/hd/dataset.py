"""The virtual Visium HD data set: two patients' sections, and a null twin; made once and kept (see ``cache``).

In the null twin each cell has the type and the molecules of another cell of its section: the pictures are the same
files, and no place is richer in anything than chance makes it::

    sections/sections.csv                       whose section is whose
    sections/<id>/<id>_tissue_image.tif         the full-resolution H&E
    sections/<id>/outs/                         Space Ranger's folder (``files``)
    sections/reference.h5ad                     single cells of other donors (``reference``)
    truth/<id>/                                 see ``truth_hd``
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache
from helpers.virtual.truth import share

VERSION = 1
NAMES = ("virtual_hd", "virtual_hd_null")
SIZE_UM, MPP = 1000.0, 0.5
SECTIONS = ("H1", "H2")
"""Each of a patient of its own, who has the section's name; stain and profiles differ."""


def _sources() -> list[Path]:
    """Files whose change makes the data stale."""
    from helpers.virtual.hd import counts

    here = Path(__file__).parent
    used = "fields optics noise platforms xenium_files".split()
    return sorted(here.glob("*.py")) + [here.parent / f"{name}.py" for name in used] + [counts.PANEL_FILE]


def _plain(value):
    """Return a value as something JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _make(part: str, part_null: str, name: str, seed: int, size_um: float) -> None:
    """Make one section of the data set and of its null twin in the folders given."""
    from helpers.virtual.hd import counts, files, tissue, truth_hd

    field = tissue.grow(section=name, seed=seed, size_um=size_um, mpp=MPP)
    cells = field.cells.assign(x_px=field.cells["x_um"] / field.mpp, y_px=field.cells["y_um"] / field.mpp)
    panel, profiles = counts.panel(), counts.profiles(seed=seed, patient=name)
    given = counts.cell_counts(cells, profiles, seed=seed, section=name)
    cells["umi"] = np.asarray(given.sum(1)).ravel().astype(np.int32)
    twins = ((cells.assign(drawn_type=cells["type"]), given), counts.dealt(cells, given, seed=seed, section=name))
    side = files.side_of(size_um, 2)
    fine_um = np.column_stack([index * 2.0 + 1 for index in np.divmod(np.arange(side * side), side)[::-1]])
    tissue_um = fine_um[files.under_tissue(field.tissue, size_um=size_um, bin_um=2)]
    dials = {"spread_um": counts.SPREAD_UM, "ambient": counts.AMBIENT, "umi": counts.UMI, "seed": seed, "mpp": MPP}
    image_file = None
    for home, word, (known, of_cell) in zip((part, part_null), NAMES, twins):
        folder, place = Path(home) / "sections" / name, Path(home) / "truth" / name
        for left in (folder, place):  # of a worker that died
            shutil.rmtree(left, ignore_errors=True)
            left.mkdir(parents=True)
        drops = counts.fall(
            of_cell, field.outlines, field.nuclei, seed=seed, section=f"{name} {word}", tissue_um=tissue_um
        )
        fine = counts.bin_counts(drops, bin_um=2, side=side, n_genes=len(panel))
        written = files.write_section(
            folder, section_id=name, image_file=image_file, image=field.image, mpp=MPP, size_um=size_um,
            tissue=field.tissue, fine=fine, panel=panel,
        )  # fmt: skip
        image_file = folder / f"{name}_tissue_image.tif"
        if word == NAMES[0]:
            truth_hd.write_tissue(
                place, nuclei=field.nuclei, outlines=field.outlines, tissue=field.tissue, domain=field.domain,
                domains=field.domains, grid_um=field.grid_um, size_um=size_um,
                stain={**_plain(field.stain), "facts": _plain(field.facts), "dials": dials},
            )  # fmt: skip
        else:
            for file in (Path(part) / "truth" / name).glob("*"):
                if file.name in ("outlines.npz", "tissue.npz", "stain.json"):
                    share(file, place / file.name)
        truth_hd.write_expression(
            place, cells=known, counts=of_cell, panel=panel, profiles=profiles,
            bin_shares=_shares(drops, known, fine, written, size_um),
        )  # fmt: skip


def _shares(drops, cells, fine, written, size_um) -> pd.DataFrame:
    """Return the true shares of the 8 um bins that a reader keeps: under tissue, with a molecule."""
    from helpers.virtual.hd import counts, files

    side, fine_side = files.side_of(size_um, 8), files.side_of(size_um, 2)
    under = np.zeros(fine_side**2, np.int32)
    under[written[2]] = 1
    total = np.asarray(fine.sum(1)).ravel() * under
    row, column = (index // 4 for index in np.divmod(np.arange(fine_side**2), fine_side))
    whole = (row < side) & (column < side)
    total = np.bincount((row * side + column)[whole], total[whole], minlength=side * side)
    kept = written[8][total[written[8]] > 0]
    shares = counts.bin_shares(drops, cells, bin_um=8, side=side).iloc[kept]
    return shares.set_axis(files.barcodes(8, *np.divmod(kept, side)), axis=0)


def ensure(
    name: str = "virtual_hd", *, seed: int = 0, size_um: float = SIZE_UM, sections: tuple[str, ...] = SECTIONS,
    workers: int | None = None,
) -> Path:  # fmt: skip
    """Return the folder of the data set or of its null twin; both are made at once if they are not there.

    Parameters
    ----------
    seed, size_um, sections
        What the tissue depends on: seed, side of the square field in um, and which of the two sections to make.
    workers
        Processes; default two at most. 1 stays in this process.

    Returns
    -------
    Path
        With ``sections/``, ``truth/`` and ``dataset.json``.
    """
    from helpers.virtual.hd import reference

    if name not in NAMES:
        raise CourseError(f"data set {name!r}", f"one of {', '.join(NAMES)}", "correct DATA")
    home, made = settings.virtual_dir(), [one for one in SECTIONS if one in sections]
    parameters = {"version": VERSION, "seed": int(seed), "size_um": float(size_um), "sections": made}
    key = cache.digest(parameters, _sources())
    finals = {wanted: home / f"{wanted}-v{VERSION}-{key}" for wanted in NAMES}
    if (finals[name] / "dataset.json").is_file():
        return finals[name]
    with cache.lock(home / f".{finals[NAMES[0]].name}.lock"):
        if (finals[name] / "dataset.json").is_file():  # another process was quicker
            return finals[name]
        parts = {wanted: cache.fresh(final) for wanted, final in finals.items()}
        jobs = [(str(parts[NAMES[0]]), str(parts[NAMES[1]]), one, int(seed), float(size_um)) for one in made]
        cache.run(_make, jobs, NAMES[0], workers)
        rows = [{"section_id": one, "subject_id": one} for one in made]
        for wanted, part in parts.items():
            reference.write(part / "sections" / "reference.h5ad", int(seed))
            pd.DataFrame(rows).to_csv(part / "sections" / "sections.csv", index=False, lineterminator="\n")
            card = {"name": wanted, "platform": "visium_hd", "mpp": MPP, "sections": rows, "parameters": parameters}
            (part / "dataset.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            if not finals[wanted].exists():  # one of the two may have been deleted by hand
                os.replace(part, finals[wanted])
            else:
                shutil.rmtree(part)
    return finals[name]

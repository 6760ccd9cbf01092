"""Many samples on one offline page, and the same table as CSV and Parquet."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from helpers import batch, batch_report_page, batch_report_table
from helpers.report import thumbnail
from helpers.report_page import write

SIDE_PX = 160
"""Longer side of a picture, as wide as the page shows it: a thousand of them are 8 MB."""
PICTURES = ("cover", "prediction", "slide", "maps", "cells", "clusters")
"""Names of the figure that stands for a sample, best first; else the first one its notebook drew."""
KEPT = ".thumbnails.json"
"""Pictures of the last page: decoding a thousand large figures takes longer than all else."""


def build(folder: Path) -> Path:
    """Write ``index.html``, ``cohort.csv`` and ``cohort.parquet`` into the folder of a batch; return the page.

    Raises
    ------
    CourseError
        The folder is not that of a batch.
    """
    folder = Path(folder)
    cohort, asked = batch_report_table.table(folder), batch.read(folder)
    plain = batch_report_table.harmless(cohort)
    for name, save in (("cohort.csv", plain.to_csv), ("cohort.parquet", cohort.to_parquet)):
        _put(folder / name, lambda draft, save=save: save(draft, index=False))
    pictures = _pictures(folder, cohort["sample"])
    page = batch_report_page.page(folder, cohort, notebook=asked["notebook"], pictures=pictures)
    write(page, folder / "index.html")
    return folder / "index.html"


def _put(path: Path, save) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


# ---------------------------------------------------------------- pictures
def choose(figures) -> dict:
    """Return the figure that stands for a sample (see :data:`PICTURES`), nothing if there is none."""
    drawn = {one["name"]: one for one in batch_report_table.items(figures) if {"name", "file"} <= one.keys()}
    return next((drawn[name] for name in (*PICTURES, *drawn) if name in drawn), {})


def _pictures(folder: Path, samples) -> dict:
    """Return ``file``, ``alt`` and ``source`` (a data URI) of each sample that has a picture, by its name."""
    before, found = batch.record(folder / KEPT), {}
    for sample in samples:
        figure = choose(batch.record(folder / sample / "results.json").get("figures"))
        file = folder / sample / str(figure.get("file"))
        with contextlib.suppress(OSError):
            stamp = [str(figure.get("file")), file.stat().st_mtime_ns, file.stat().st_size, SIDE_PX]
            kept = before.get(sample)
            source = kept[1] if isinstance(kept, list) and kept[:1] == [stamp] else _small(file)
            found[sample] = {"kept": [stamp, source], "file": stamp[0], "alt": str(figure.get("alt", ""))}
    if before != {sample: one["kept"] for sample, one in found.items()}:
        text = json.dumps({sample: one["kept"] for sample, one in found.items()})
        _put(folder / KEPT, lambda draft: draft.write_text(text, encoding="utf-8"))
    return {sample: {"file": one["file"], "alt": one["alt"], "source": one["kept"][1]}
            for sample, one in found.items() if one["kept"][1]}  # fmt: skip


def _small(file: Path) -> str:
    try:
        return thumbnail(file, SIDE_PX)
    except Exception:  # whatever a broken file does to the decoder costs its picture, not the page of a thousand
        return ""

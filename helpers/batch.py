"""Many samples through one notebook: ``python -m helpers batch samples.csv --notebook 04``.

The same caretaker as for one notebook (:mod:`helpers.execute`): a child process each, an attempt folder that takes the
place of the old outputs when it has ended, and success judged by ``results.json``. So a second call runs only what is
missing, failed or stale, and a run that was killed leaves nothing that could be taken for a result.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from helpers import batch_table, execute, settings
from helpers import notebook as notebooks
from helpers.execute_state import fingerprint
from helpers.messages import CourseError

ENGINES = ("pool",)
"""Where the samples run: child processes of this machine."""
RETRY = ("kernel died",)
"""Ends worth another try, alone on the machine: want of memory. What a notebook says itself, it would say again."""
FILE = "batch.json"


@dataclass(frozen=True)
class Batch:
    """A checked table: ``jobs`` (one per sample, in the order of the table) of one notebook below one folder."""

    notebook: notebooks.Notebook
    folder: Path
    rows: tuple
    jobs: tuple


def plan(table: Path, number: str, *, common: dict | None = None, out: Path | None = None, where=None) -> Batch:
    """Check a whole table before anything runs.

    Parameters
    ----------
    table
        CSV (see :func:`helpers.batch_table.read`).
    number
        Number of the notebook.
    common
        Parameters of all samples, as words.
    out
        Folder of the outputs; default ``runs/batch/<table>-<number>``.
    where
        Folder of the notebooks.

    Raises
    ------
    CourseError
        Anything wrong with the table, a parameter, or data and sections that are not there: all rows in one message.
    """
    declared = notebooks.load(notebooks.find(number, where))
    rows = batch_table.read(table, declared, common=common)
    out = Path(out or settings.runs_dir() / "batch" / f"{Path(table).stem}-{declared.number}").resolve()
    jobs, problems, known, asked = [], [], {}, {}
    for row in rows:
        try:
            values = notebooks.check_parameters(declared, row.given, text=True)
            _check_data(values, asked)
            execute.refuse_foreign(out / row.sample)
            given = {name: values[name] for name in row.given}
            print_ = fingerprint(declared, values, known)
            jobs.append(execute.Job(declared, given, values, out / row.sample, print_))
        except CourseError as problem:
            problems.append((row.line, problem))
    batch_table.refuse(problems, table)
    return Batch(declared, out, tuple(rows), tuple(jobs))


def _check_data(values: dict, asked: dict) -> None:
    """Refuse data or sections that are not there; files are listed once for each choice of data."""
    from helpers import catalogue, runner_data

    key = tuple(values.get(name, "") for name in ("DATA", "TRAIN", "TEST"))
    if "DATA" not in values or key in asked:
        return
    made = {item.id for item in catalogue.datasets() if item.kind == "generated"}
    if values["DATA"] not in made:
        runner_data.Data(values).sections  # noqa: B018  reading the names checks them
    asked[key] = True


def run(batch: Batch, *, workers: int = 1, retries: int = 1, fresh: bool = False, timeout=None, told=None) -> list:
    """Run what is missing, failed or stale; return the outcomes in the order of the table.

    Parameters
    ----------
    workers
        Samples at a time.
    retries
        How often a sample whose kernel died is tried again, alone, after the others.
    told
        Called with job and outcome when a sample has ended.
    """
    with execute.lock(batch.folder):  # a batch that runs here keeps its table
        _write(batch)
    options = {"timeout": timeout, "unit": "sample", "told": told}
    outcomes = execute.run(list(batch.jobs), fresh=fresh, workers=workers, **options)
    for _ in range(retries):
        again = [place for place, outcome in enumerate(outcomes) if outcome.kind in RETRY]
        if not again:
            break
        retried = execute.run([batch.jobs[place] for place in again], fresh=True, **options)
        for place, outcome in zip(again, retried):
            outcomes[place] = outcome
    return outcomes


def _write(batch: Batch) -> None:
    samples = [{"sample": row.sample, "patient": row.patient, "given": job.given}
               for row, job in zip(batch.rows, batch.jobs)]  # fmt: skip
    draft = batch.folder / f".{FILE}.{os.getpid()}"
    draft.write_text(json.dumps({"notebook": batch.notebook.name, "samples": samples}, indent=1), encoding="utf-8")
    os.replace(draft, batch.folder / FILE)


# ---------------------------------------------------------------- what has become of it
def read(folder: Path) -> dict:
    """Return what was asked of a batch: ``notebook`` and ``samples``.

    Raises
    ------
    CourseError
        The folder is not that of a batch.
    """
    place = Path(folder) / FILE
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        return {"notebook": str(content["notebook"]), "samples": list(content["samples"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CourseError("no batch", f"a folder with {FILE}", "give the folder of a batch", file=folder) from None


def status(folder: Path) -> dict:
    """Return what has become of each sample, and what the rest will need.

    Returns
    -------
    dict
        ``samples`` (name to ``complete``, ``running``, ``waiting`` or how it failed), ``seconds`` and ``peak_mb``
        (median and largest of the complete ones; None where none is), ``left`` (samples not complete).
    """
    folder = Path(folder)
    asked = read(folder)
    running = {path.name.removeprefix(".attempt-").rpartition("-")[0] for path in folder.glob(".attempt-*")
               if _alive(path.name.rpartition("-")[2])}  # fmt: skip
    states, seconds, peaks = {}, [], []
    for item in asked["samples"]:
        ended = record(folder / item["sample"] / "run.json")
        states[item["sample"]] = "running" if item["sample"] in running else ended.get("kind", "waiting")
        if ended.get("kind") == "complete":
            results = record(folder / item["sample"] / "results.json")
            seconds.append(float(ended.get("seconds", 0)))
            peaks.append(float(results.get("peak_mb", 0)))
    return {
        "notebook": asked["notebook"],
        "samples": states,
        "seconds": (statistics.median(seconds), max(seconds)) if seconds else None,
        "peak_mb": (statistics.median(peaks), max(peaks)) if peaks else None,
        "left": sum(state != "complete" for state in states.values()),
    }


def record(path: Path) -> dict:
    """Return what a JSON file holds, or nothing if there is none or it is of another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(pid: str) -> bool:
    import psutil

    return pid.isdigit() and psutil.pid_exists(int(pid))

"""Many samples through one notebook: ``python -m helpers batch samples.csv --notebook 04``.

The same caretaker as for one notebook (:mod:`helpers.execute`): a child process each, an attempt folder that takes the
place of the old outputs when it has ended, and success judged by ``results.json``. So a second call runs only what is
missing, failed or stale, and a run that was killed leaves nothing that could be taken for a result.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import batch_engine, batch_table, execute, settings
from helpers import notebook as notebooks
from helpers.batch_engine import RETRY, Request
from helpers.execute_state import fingerprint
from helpers.messages import CourseError

ENGINES = ("pool", "slurm", "kubernetes")
"""Where the samples run: child processes of this machine, jobs of a SLURM cluster, or (a dry run only) Kubernetes."""
CLUSTER_JOBS = 50
"""Jobs at a time on a cluster, if not told."""
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


def run(
    batch: Batch, *, workers: int | None = None, retries: int = 1, fresh: bool = False, timeout=None, told=None,
    engine: str = "pool", request: Request | None = None,
) -> list:
    """Run what is missing, failed or stale; return the outcomes in the order of the table.

    Parameters
    ----------
    workers
        Samples at a time (``pool``, default 1) or jobs at a time (``slurm``, default 50).
    retries
        How often a sample whose kernel died is tried again: by ``pool`` alone, after the others; by ``slurm`` with
        more memory and time, at once.
    told
        Called with job and outcome when a sample has ended.
    engine
        ``pool`` or ``slurm``.
    request
        What to ask SLURM for.
    """
    with execute.lock(batch.folder):  # a batch that runs here keeps its table
        write(batch)
        if engine == "pool" and (batch.folder / batch_engine.HOME).is_dir() and shutil.which("squeue"):
            from helpers import batch_engine_slurm

            batch_engine_slurm.clear(batch.folder / batch_engine.HOME)  # jobs that would write into the same folder
    options = {"timeout": timeout, "told": told}
    if engine == "slurm":
        from helpers import batch_engine_slurm

        request, jobs = replace(request or Request(), retries=retries), list(batch.jobs)
        asked = ask(batch, request=request, fresh=fresh, workers=workers or CLUSTER_JOBS)
        return batch_engine_slurm.run(jobs, request=request, budget=asked, fresh=fresh,
                                      workers=workers or CLUSTER_JOBS, **options)  # fmt: skip
    outcomes = execute.run(list(batch.jobs), fresh=fresh, workers=workers or 1, unit="sample", **options)
    for _ in range(retries):
        again = [place for place, outcome in enumerate(outcomes) if outcome.kind in RETRY]
        if not again:
            break
        retried = execute.run([batch.jobs[place] for place in again], fresh=True, unit="sample", **options)
        for place, outcome in zip(again, retried):
            outcomes[place] = outcome
    return outcomes


def ask(batch: Batch, *, request: Request | None = None, fresh: bool = False, workers: int = CLUSTER_JOBS) -> dict:
    """Return what a job of this batch asks a cluster for: ``chunk``, ``memory_mb``, ``minutes``."""
    left = sum(fresh or job.state != "up to date" for job in batch.jobs)
    needed = _needed(batch.folder, [row.sample for row in batch.rows])
    return batch_engine.budget(batch.notebook, max(left, 1), request=request, jobs=workers, **needed)


def write(batch: Batch) -> None:
    """Write what was asked of a batch into its folder, in one step."""
    samples = [{"sample": row.sample, "patient": row.patient, "given": job.given}
               for row, job in zip(batch.rows, batch.jobs)]  # fmt: skip
    content = {"notebook": batch.notebook.name, "folder": str(batch.notebook.path.parent), "samples": samples}
    draft = batch.folder / f".{FILE}.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(draft, batch.folder / FILE)


# ---------------------------------------------------------------- what has become of it
def read(folder: Path) -> dict:
    """Return what was asked of a batch: ``notebook``, the ``folder`` it lies in, and ``samples``.

    Raises
    ------
    CourseError
        The folder is not that of a batch.
    """
    place = Path(folder) / FILE
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        where = str(content.get("folder") or notebooks.folder())
        return {"notebook": str(content["notebook"]), "folder": where, "samples": list(content["samples"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CourseError("no batch", f"a folder with {FILE}", "give the folder of a batch", file=folder) from None


def status(folder: Path) -> dict:
    """Return what has become of each sample, and what the rest will need.

    Returns
    -------
    dict
        ``samples`` (name to ``complete``, ``running``, ``waiting`` or how it failed), ``seconds`` and ``peak_mb``
        (median and largest of the complete ones; None where none is), ``left`` (samples not complete), ``request``
        (what a job for them would ask a cluster for; None if the notebook is not there).
    """
    folder = Path(folder)
    asked = read(folder)
    names = [item["sample"] for item in asked["samples"]]
    running = {path.name.removeprefix(".attempt-").rpartition("-")[0] for path in folder.glob(".attempt-*")
               if _alive(path.name.rpartition("-")[2])} | _on_cluster(folder)  # fmt: skip
    kinds = {name: record(folder / name / "run.json").get("kind", "waiting") for name in names}
    states = {name: "running" if name in running else kinds[name] for name in names}
    found = {"notebook": asked["notebook"], "samples": states, **_needed(folder, names)}
    found["left"] = sum(state != "complete" for state in states.values())
    try:
        declared = notebooks.load(notebooks.find(asked["notebook"][:2], asked["folder"]))
        found["request"] = batch_engine.budget(declared, max(found["left"], 1), seconds=found["seconds"],
                                               peak_mb=found["peak_mb"], jobs=CLUSTER_JOBS)  # fmt: skip
    except CourseError:
        found["request"] = None
    return found


def _needed(folder: Path, names) -> dict:
    """Return ``seconds`` and ``peak_mb`` of the complete samples: (median, largest), or None where none is."""
    seconds, peaks = [], []
    for name in names:
        ended = record(folder / name / "run.json")
        if ended.get("kind") == "complete":
            seconds.append(float(ended.get("seconds", 0)))
            peaks.append(float(record(folder / name / "results.json").get("peak_mb", 0)))
    return {name: (statistics.median(values), max(values)) if values else None
            for name, values in (("seconds", seconds), ("peak_mb", peaks))}  # fmt: skip


def _on_cluster(folder: Path) -> set:
    home = folder / batch_engine.HOME
    token = record(home / "engine.json").get("token")
    if not token:
        return set()
    from helpers import batch_engine_slurm

    jobs = batch_engine_slurm.queue(str(token))
    return batch_engine.running(home, None if jobs is None else set(jobs))


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

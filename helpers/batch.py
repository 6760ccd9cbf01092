"""Many samples through one notebook: ``python -m helpers batch samples.csv --notebook 04``.

The same caretaker as for one notebook (:mod:`helpers.execute`): a child process each, an attempt folder that takes the
place of the old outputs when it has ended, and success judged by ``results.json``. So a second call runs only what is
missing, failed or stale, and a run that was killed leaves nothing that could be taken for a result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import batch_engine, batch_table, execute, settings
from helpers import notebook as notebooks
from helpers.batch_engine import RETRY, Request
from helpers.execute_state import GOOD, fingerprint
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
        Anything wrong with the table, a parameter, or data and sections that are not there: all rows in one message;
        a folder that holds the batch of another notebook, whose results would be replaced one by one.
    """
    declared = notebooks.load(notebooks.find(number, where))
    rows = batch_table.read(table, declared, common=common)
    out = Path(out or settings.runs_dir() / "batch" / f"{Path(table).stem}-{declared.number}").resolve()
    before = record(out / FILE).get("notebook", declared.name)
    if before != declared.name:
        raise CourseError(f"a batch of {before}", f"one of {declared.name}", "choose another --out", file=out)
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
    batch: Batch,
    *,
    workers: int | None = None,
    retries: int = 1,
    fresh: bool = False,
    timeout=None,
    told=None,
    engine: str = "pool",
    request: Request | None = None,
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
    with batch_engine.writing(batch.folder):
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
        samples = [{"sample": str(item["sample"]), "patient": str(item["patient"]), "given": dict(item["given"])}
                   for item in content["samples"]]  # fmt: skip
        return {"notebook": str(content["notebook"]), "folder": where, "samples": samples}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CourseError("no batch", f"a folder with {FILE}", "give the folder of a batch", file=folder) from None


def status(folder: Path) -> dict:
    """Return what has become of each sample, and what the rest will need.

    Returns
    -------
    dict
        ``samples`` (name to ``complete``, ``stale``, ``waiting``, how it failed, ``running``, or what a cluster says of
        it), ``seconds`` and ``peak_mb`` (median and largest of those that ended well; None where none did), ``left``
        (samples that the next call would run), ``minutes`` (for those, as many at a time as run now; None if not
        known), ``request`` (what a job for them would ask a cluster for; None if the notebook is not there).
    """
    folder = Path(folder)
    asked = read(folder)
    names = [item["sample"] for item in asked["samples"]]
    now = {**_on_cluster(folder), **dict.fromkeys(_running(folder), "running")}
    states = {name: str(record(folder / name / "run.json").get("kind", "waiting")) for name in names}
    try:
        declared = notebooks.load(notebooks.find(asked["notebook"], asked["folder"]))
    except CourseError:  # results on a machine without the notebook
        declared = None
    states |= _due(declared, asked["samples"], folder, states) if declared else {}
    states |= {name: state for name, state in now.items() if name in states}
    left = sum(state != GOOD for state in states.values())
    many = sum(state == "running" for state in states.values())
    found = {"notebook": asked["notebook"], "samples": states, **_needed(folder, names), "left": left}
    found["minutes"] = left * found["seconds"][0] / 60 / max(many, 1) if found["seconds"] else None
    found["request"] = declared and batch_engine.budget(declared, max(left, 1), seconds=found["seconds"],
                                                        peak_mb=found["peak_mb"], jobs=CLUSTER_JOBS)  # fmt: skip
    return found


def lines(found: dict) -> list[str]:
    """Return a :func:`status` in words: a line for each sample that is not complete, the counts, and the rest."""
    states, total = found["samples"], len(found["samples"])
    counts = {state: list(states.values()).count(state) for state in sorted(set(states.values()))}
    said = [f"{name:<28} {state}" for name, state in states.items() if state != GOOD]
    said += [", ".join(f"{count} {state}" for state, count in counts.items())]
    said += [f"{counts.get(GOOD, 0)} of {total} samples complete ({found['notebook']})"]
    if found["seconds"]:
        (middle, most), (memory, highest) = found["seconds"], found["peak_mb"]
        said += [f"a sample takes {middle:.0f} s (at most {most:.0f}) and {memory:.0f} MB (at most {highest:.0f})"]
    if found["left"] and found["minutes"] is not None:
        many = counts.get("running", 1)
        how = f"{many} at a time, as now," if many > 1 else "one after the other"
        said += [f"{how} the rest takes {found['minutes']:.0f} min"]
    if found["left"] and found["request"]:
        job = found["request"]
        said += [f"on a cluster: {job['chunk']} a job, with {job['memory_mb']} MB and {job['minutes']} min"]
    return said


def _due(declared, samples, folder: Path, states: dict) -> dict:
    """Return the samples that ended well and would yet run again: ``stale``, or ``waiting`` if an output is gone."""
    due, known = {}, {}
    for item in (item for item in samples if states[item["sample"]] == GOOD):
        with contextlib.suppress(CourseError, OSError):  # data or model are not here: nobody can tell
            values = notebooks.check_parameters(declared, item["given"])
            print_ = fingerprint(declared, values, known)
            state = execute.Job(declared, item["given"], values, folder / item["sample"], print_).state
            due |= {item["sample"]: "stale" if state == "stale" else "waiting"} if state != "up to date" else {}
    return due


def _running(folder: Path) -> set:
    """Return the samples at work on this machine: those whose attempts the holder of the folder has begun."""
    holder = _holder(folder)
    begun = [path.name.removeprefix(execute.ATTEMPT).rpartition("-") for path in folder.glob(f"{execute.ATTEMPT}*")]
    return {name for name, _, process in begun if holder and process == holder}


def _holder(folder: Path) -> str:
    """Return the process that holds the lock of a folder; none does after a kill, whoever has its number now."""
    with contextlib.suppress(OSError), open(folder / ".lock", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for the moment until it closes
        except BlockingIOError:
            return stream.read().strip()
    return ""


def _needed(folder: Path, names) -> dict:
    """Return ``seconds`` and ``peak_mb`` of the complete samples: (median, largest), or None where none is."""
    seconds, peaks = [], []
    for name in names:
        ended = record(folder / name / "run.json")
        if ended.get("kind") == GOOD:
            seconds.append(number(ended.get("seconds")) or 0.0)
            peaks.append(number(record(folder / name / "results.json").get("peak_mb")) or 0.0)
    return {name: (statistics.median(values), max(values)) if values else None
            for name, values in (("seconds", seconds), ("peak_mb", peaks))}  # fmt: skip


def _on_cluster(folder: Path) -> dict:
    """Return what the cluster says of samples it has (see :func:`helpers.batch_engine.states`)."""
    home = folder / batch_engine.HOME
    if not home.is_dir():
        return {}
    from helpers import batch_engine_slurm

    with contextlib.suppress(CourseError):  # the plan of its jobs is gone
        return batch_engine_slurm.states(home)
    return {}


def record(path: Path) -> dict:
    """Return what a JSON file holds, or nothing if there is none or it is of another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def number(value) -> float | None:
    """Return a finite number of a JSON file, else None: words, lists and truth values are none."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, (bool, str)) and math.isfinite(value):
            return float(value)
    return None

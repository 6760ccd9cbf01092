"""What a cluster needs for a batch: chunks of samples, what to ask for them, a plan on disk, and the errand of one job.

A job runs the samples of one chunk one after the other, by the same caretaker as the pool (:mod:`helpers.execute`):
an attempt folder each, which takes the place of the old outputs when it has ended. Called again, the errand runs only
those samples that have not ended yet, so a job may be killed, moved or started twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from helpers import execute, settings
from helpers import notebook as notebooks
from helpers.execute_state import Outcome
from helpers.messages import CourseError, say

RETRY = ("kernel died",)
"""Ends worth another try: want of memory. What a notebook says itself, it would say again."""
HOME = "cluster"
"""Folder of the engine inside that of the batch."""
PLAN, DONE, NOW = "plan.json", "done", "now"
GOAL_MINUTES = 5.0
"""Shortest job worth its start, about 20 seconds of Snakemake; short samples share one."""
ROOM_MB, ROOM_MINUTES = 700, 3
"""What a job needs beside the notebook: papermill, two Snakemakes, and their start."""
MARGIN_MB, MARGIN_SECONDS = 1.25, 2.0
_BAD = set("\"'\\$`{}\n")


@dataclass(frozen=True)
class Request:
    """What to ask a cluster for. None: as the finished samples of the batch needed, else as the notebook declares.

    ``chunk`` samples a job, ``memory_mb`` (MiB, as SLURM counts) and ``minutes`` a job, ``cpus`` a job, ``retries``
    with more memory and time each; ``partition`` and ``account`` as the site calls them. ``poll`` (s) is the first
    wait for news of a job; after ``patience`` (minutes) without any, the engine is stopped.
    """

    chunk: int | None = None
    memory_mb: int | None = None
    minutes: int | None = None
    cpus: int = 1
    retries: int = 1
    partition: str = ""
    account: str = ""
    poll: float = 40.0
    patience: float = 15.0

    def __post_init__(self):
        numbers = {"chunk": self.chunk, "memory-mb": self.memory_mb, "minutes": self.minutes, "cpus": self.cpus}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise CourseError(f"--{name} {value}", "1 or more", f"choose another --{name}, or leave it out")
        for name, word in (("partition", self.partition), ("account", self.account)):
            if _BAD & set(word):
                raise CourseError(f"--{name} {word!r}", "a name as the cluster shows it", "see sinfo and sacctmgr")


def budget(notebook, left: int, *, seconds=None, peak_mb=None, request=None, jobs: int = 50) -> dict:
    """Return ``chunk``, ``memory_mb`` and ``minutes`` of a job for the samples that are left.

    Parameters
    ----------
    left
        Samples that will run.
    seconds, peak_mb
        (median, largest) of the finished ones; None where none is: then four times the declared time.
    request
        What the user set goes before.
    jobs
        Jobs at a time: chunks are never so long that jobs stand idle.
    """
    request = request or Request()
    usual = seconds[0] if seconds else notebook.budget_seconds
    worst = seconds[1] * MARGIN_SECONDS if seconds else notebook.budget_seconds * 4
    most = peak_mb[1] if peak_mb and peak_mb[1] else notebook.budget_mb
    chunk = request.chunk or max(1, min(round(GOAL_MINUTES * 60 / max(usual, 1)), math.ceil(left / max(jobs, 1)), 50))
    chunk = max(1, min(chunk, left))
    memory = request.memory_mb or math.ceil((most * MARGIN_MB * 1e6 / 2**20 + ROOM_MB) / 100) * 100
    return {
        "chunk": chunk,
        "memory_mb": memory,
        "minutes": request.minutes or ROOM_MINUTES + math.ceil(chunk * worst / 60),
    }


def refuse_folder(folder: Path) -> None:
    """Refuse a folder whose name the shells between here and the node could read as code."""
    if _BAD & set(str(folder)):
        raise CourseError("quotes, braces, $ or \\ in its path", "plain letters and spaces", "choose another --out",
                          file=folder)  # fmt: skip


# ---------------------------------------------------------------- the plan of a run
@contextlib.contextmanager
def writing(folder: Path):
    """Turn a full disk or a folder that may not be written into a CourseError."""
    try:
        yield
    except OSError as problem:
        fix = "free some disk, or choose another --out"
        raise CourseError(problem.strerror or str(problem), "room and rights to write", fix, file=folder) from problem


def write_plan(jobs, home: Path, *, chunk: int, fresh: bool = False, timeout=None) -> dict:
    """Write what each job of the cluster has to do, in one step; return it.

    ``before`` holds when each sample ended before this run (see :func:`ended`).
    """
    if not jobs:
        raise CourseError("no samples", "samples to run", "nothing is left to do")
    labels = [job.label for job in jobs]
    plan = {
        "notebook": str(jobs[0].notebook.path),
        "folder": str(jobs[0].folder.parent),
        "fresh": fresh,
        "timeout": timeout,
        "chunks": [labels[place : place + chunk] for place in range(0, len(labels), chunk)],
        "jobs": {job.label: {"given": job.given, "parameters": job.parameters, "fingerprint": job.fingerprint}
                 for job in jobs},
        "before": {job.label: _when(job.folder) for job in jobs},
    }  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    draft = home / f".{PLAN}.{os.getpid()}"
    draft.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    os.replace(draft, home / PLAN)
    return plan


def _when(folder: Path) -> int | None:
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return None


def ended(folder: Path, before: int | None) -> tuple[int, Outcome] | None:
    """Return when (ns) and how a sample ended, or None if its record is still that of ``before`` (None: it had none).

    Times are compared for being the same only: the clocks of nodes and of this machine may differ by any amount.
    """
    try:
        when = _when(folder)
        if when == before:
            return None
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        fields = ("notebook", "kind", "reason", "cell", "seconds", "fingerprint")
        return when, Outcome(**{name: record[name] for name in fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put_record(job: execute.Job, outcome: Outcome) -> None:
    """Put a folder with nothing but the record of a sample whose job was killed in the place of its old outputs."""
    attempt = execute.attempt_of(job)
    made = attempt / "made"
    try:
        made.mkdir(parents=True, exist_ok=True)
        execute.write_record(made, outcome, title=job.notebook.title)
        execute.put(made, job.folder, attempt)
    finally:
        execute.clear(attempt)


# ---------------------------------------------------------------- the errand of one job
def run_chunk(plan_file: Path, number: int) -> int:
    """Run the samples of one chunk that have not ended yet; the errand of one job, on a node.

    Returns
    -------
    int
        0: each has ended in a way another try would not change (the marker ``done/<number>`` is written); 1: a kernel
        died or a disk was full, try again with more memory; 143: the cluster asked to stop.
    """
    home = Path(plan_file).parent
    plan = _read_plan(Path(plan_file))
    _fit_threads()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    declared = notebooks.load(Path(plan["notebook"]))
    again = 0
    for label in plan["chunks"][number]:
        job = execute.Job(declared, folder=Path(plan["folder"]) / label, **plan["jobs"][label])
        found = ended(job.folder, plan["before"][label])
        if found and found[1].kind not in RETRY:
            continue
        if not plan["fresh"] and job.state == "up to date":
            continue
        with _noted(home / NOW / f"{number}.json", label):
            outcome = execute.execute(job, timeout=plan["timeout"], stop=stop)
        if stop.is_set():
            return 143
        again += outcome.kind in (*RETRY, "not written")
        say(f"{label}: {outcome.kind} {outcome.reason}".rstrip())
    if again:
        say(f"{again} to try again")
        return 1
    (home / DONE).mkdir(exist_ok=True)
    draft = home / DONE / f".{number}.{os.getpid()}"
    draft.write_text("ended\n", encoding="utf-8")
    os.replace(draft, home / DONE / str(number))
    return 0


def _read_plan(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CourseError(f"no plan ({problem})", PLAN, "start it by `helpers batch`", file=path) from None


@contextlib.contextmanager
def _noted(path: Path, label: str):
    """Leave a note which sample runs, for `status` and for whoever asks what a killed job was at."""
    note = {"sample": label, "job": os.environ.get("SLURM_JOB_ID", ""), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(note), encoding="utf-8")
        os.replace(draft, path)
    yield
    path.unlink(missing_ok=True)


def _fit_threads(environ=os.environ) -> None:
    """Use the cores this job was given: the environment still tells those of the machine it was sent from."""
    here = settings.cores()
    with contextlib.suppress(ValueError):
        here = min(here, int(environ.get("SLURM_CPUS_PER_TASK") or here))
    for name in [name for name in environ if name.endswith(("_NUM_THREADS", "_INTRAOP_THREADS"))]:
        with contextlib.suppress(ValueError):
            environ[name] = str(min(int(environ[name]), here))


def states(home: Path, jobs: dict | None) -> dict:
    """Return what the cluster is at: sample to ``queued``, ``running``, ``suspended``, or ``unknown`` with the reason.

    Parameters
    ----------
    jobs
        Jobs of the batch that SLURM has, id to (state, reason, nodes, comment); None if it does not answer. Samples
        that have ended, or of which no job knows, are left out.
    """
    plan, found = _read_plan(home / PLAN), {}

    def left(labels):
        return [label for label in labels if not ended(home.parent / label, plan["before"].get(label))]

    for number, (state, _, _, comment) in (jobs or {}).items():
        chunk = chunk_of(comment)
        if chunk is None or chunk >= len(plan["chunks"]) or state == "COMPLETING":
            continue
        found |= dict.fromkeys(left(plan["chunks"][chunk]), "queued")
        if state in ("RUNNING", "SUSPENDED"):
            found |= {label: state.lower() for label, job in _notes(home) if job == number}
    if jobs is None:
        found = dict.fromkeys(left(label for label, _ in _notes(home)), "unknown (SLURM does not answer)")
    return found


def chunk_of(comment: str) -> int | None:
    """Return the chunk that a job was sent for, by the comment that Snakemake gave it."""
    found = re.search(r"_(\d+)$", comment)
    return int(found[1]) if found else None


def _notes(home: Path) -> list:
    found = []
    for path in (home / NOW).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(path.read_text(encoding="utf-8"))
            found.append((note["sample"], note["job"]))
    return found

"""Caretaker: runs notebooks headless, only those that are missing, failed or stale, and says how each one ended.

Success is judged by ``results.json`` alone: papermill marks every cell of a killed notebook as completed. Each notebook
runs in a child process (:mod:`helpers.execute_child`) into a hidden attempt folder, which takes the place of
the old outputs when it has ended. ``run.json`` beside the outputs records how it ended and from what it was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import execute_process, settings
from helpers import notebook as notebooks
from helpers.execute_state import GOOD, Outcome, fingerprint, judge
from helpers.messages import CourseError, note

GRACE = 10
"""Time limit of a ``tiny`` run, in units of its budget; larger profiles run without a limit."""
ATTEMPT = ".attempt-"
"""How the hidden folder of a run begins: then come the job's label and the process."""


@dataclass
class Job:
    """One notebook with its checked parameters, and where its outputs go."""

    notebook: notebooks.Notebook
    given: dict
    parameters: dict
    folder: Path
    fingerprint: str

    @property
    def label(self) -> str:
        """What tells it from the other jobs of a run: the name of its folder."""
        return self.folder.name

    @property
    def state(self) -> str:
        """``up to date``, ``missing``, ``failed`` or ``stale``."""
        try:
            record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            kind, made_from = record["kind"], record["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, half written, or of another version's form
            return "missing"
        if kind != GOOD:
            return "failed"
        if made_from != self.fingerprint:
            return "stale"
        outputs = (f"{self.notebook.name}.ipynb", f"{self.notebook.name}.html")
        whole = all((self.folder / name).is_file() for name in outputs) and judge(self.folder, self.notebook).good
        return "up to date" if whole else "missing"


def plan(numbers=(), *, given=None, out: Path | None = None, where: Path | None = None) -> list[Job]:
    """Check everything before anything runs.

    Parameters
    ----------
    numbers
        Numbers of notebooks; none means all.
    given
        Parameter name to word, as typed on the command line.
    out
        Folder of the runs, one folder per notebook in it; default ``runs/latest``.
    where
        Folder of the notebooks.

    Raises
    ------
    CourseError
        Unknown notebook, wrong parameter, data that are not there, a notebook asked for by number whose packages are
        not installed. Where all are meant, such a notebook is left out and named on stderr.
    """
    given = dict(given or {})
    if "OUT" in given:
        raise CourseError("-p OUT", "--out DIR", "use --out DIR; each notebook gets its own folder in it")
    out = Path(out or settings.runs_dir() / "latest").resolve()
    paths = [notebooks.find(number, where) for number in dict.fromkeys(numbers)] or notebooks.numbered(where)
    if not paths:
        raise CourseError("no notebooks", "NN_name.ipynb", "restore them from git", file=where or notebooks.folder())
    jobs = []
    for path in paths:
        declared = notebooks.load(path)
        if declared.missing_packages and not numbers:
            note(f"left out: {declared.name}: {_bring(declared)}")
            continue
        if declared.missing_packages:
            raise CourseError(f"notebook {declared.number} without {', '.join(declared.missing_packages)}",
                              "an environment with them", _bring(declared), file=path)  # fmt: skip
        values = notebooks.check_parameters(declared, given, text=True)
        asked = {name: values[name] for name in given}
        refuse_foreign(out / declared.name)
        jobs.append(Job(declared, asked, values, out / declared.name, fingerprint(declared, values)))
    return jobs


def _bring(declared) -> str:
    return f"it needs {', '.join(declared.missing_packages)}, which `make setup LIGHT=0` installs"


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder outside ``runs/`` that no run has made: it would be deleted."""
    marks = ("run.json", "results.json")
    ours = folder.is_relative_to(settings.runs_dir().resolve()) or any((folder / mark).exists() for mark in marks)
    if not ours and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        seen = "a folder that is not the output of a run"
        raise CourseError(seen, "an empty place", "choose another --out", file=folder)


# ---------------------------------------------------------------- running
@contextlib.contextmanager
def lock(folder: Path):
    """Hold a folder of runs; the system frees it when its holder dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / ".lock", "a+")
    except OSError as problem:
        seen = f"a folder that cannot be written ({problem.strerror})"
        raise CourseError(seen, "one that can", "choose another with --out", file=folder) from problem
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise CourseError(
                f"another run in this folder (process {stream.read().strip() or '?'})",
                "one run at a time",
                "wait for it to end, or choose another folder with --out",
                file=folder,
            ) from None
        stream.truncate(0)
        with contextlib.suppress(OSError):  # a full disk: the number is only for whoever is refused
            os.write(stream.fileno(), str(os.getpid()).encode())
        yield


def run(
    jobs: list[Job],
    *,
    fresh: bool = False,
    workers: int = 1,
    timeout: float | None = None,
    unit: str = "notebook",
    told=None,
) -> list[Outcome]:
    """Run what is not up to date; one failure does not stop the others.

    Parameters
    ----------
    jobs
        Their folders lie in one folder and have different names.
    fresh
        Run also what is up to date.
    workers
        Notebooks at a time.
    timeout
        Seconds a notebook may take; None means ten budgets in the profile ``tiny``, else no limit.
    unit
        What the progress bar counts.
    told
        Called with job and outcome when one has ended, from the thread that ran it.

    Returns
    -------
    list of Outcome
        In the order of ``jobs``; ``skipped`` marks those that were up to date.
    """
    from tqdm import tqdm

    if not jobs:
        return []
    home = jobs[0].folder.parent
    stop = threading.Event()
    with contextlib.ExitStack() as held:
        held.enter_context(lock(home))
        for leftover in home.glob(f"{ATTEMPT}*"):
            clear(leftover)
        todo = [job for job in jobs if fresh or job.state != "up to date"]
        start = held.enter_context(execute_process.starter(len(todo)))
        pool = held.enter_context(ThreadPoolExecutor(workers))
        bar = tqdm(total=len(todo), desc=f"{unit}s", unit=unit, file=sys.stderr, disable=not todo)
        count, turn = {"running": 0, "failed": 0}, threading.Lock()

        def one(job):
            with turn:
                count["running"] += 1
                bar.set_postfix(count)
            outcome = execute(job, workers=workers, timeout=timeout, stop=stop, start=start)
            with turn:  # one at a time: counts add up, and lines do not mix
                count["running"] -= 1
                count["failed"] += not outcome.good
                if told is not None and not stop.is_set():
                    told(job, outcome)
                bar.set_postfix(count, refresh=False)
                bar.update()
            return outcome

        ended = {job.label: pool.submit(one, job) for job in todo}
        try:
            results = {label: future.result() for label, future in ended.items()}
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bar.close()
    return [results.get(job.label) or Outcome(job.notebook.name, GOOD, skipped=True) for job in jobs]


def execute(
    job: Job, *, workers: int = 1, timeout: float | None = None, stop=None, start=execute_process.start
) -> Outcome:
    """Run one notebook into an attempt folder, judge it, and put it in the place of the old outputs.

    When the event ``stop`` is set, the attempt is given up and the old outputs stay. For ``start`` see :func:`spawn`.
    """
    name = job.notebook.name
    if timeout is None and job.parameters.get("PROFILE", "tiny") == "tiny":
        timeout = max(300.0, GRACE * job.notebook.budget_seconds)
    attempt = attempt_of(job)
    began = time.monotonic()
    try:
        clear(attempt)
        made = attempt / "latest" / name
        made.mkdir(parents=True)
        options = {"workers": workers, "timeout": timeout, "stop": stop, "start": start}
        ended = spawn(job.notebook, made, given=job.given, runs=attempt, **options)
        if ended == "interrupted":
            return Outcome(name, ended)
        outcome = judge(made, job.notebook) if ended == "ended" else Outcome(name, ended, f"after {timeout:g} s")
        if stop is not None and stop.is_set() and not outcome.good:  # a cluster asks the child to stop, too
            return Outcome(name, "interrupted")
        outcome.seconds, outcome.fingerprint = round(time.monotonic() - began, 1), job.fingerprint
        write_record(made, outcome, title=job.notebook.title)
        put(made, job.folder, attempt)
    except OSError as problem:
        outcome = Outcome(name, "not written", f"{problem.strerror or problem} ({job.folder})")
    finally:
        clear(attempt)
    return outcome


def attempt_of(job: Job) -> Path:
    """Return the hidden folder beside a job's outputs in which this process makes new ones."""
    return job.folder.parent / f"{ATTEMPT}{job.label}-{os.getpid()}"


def put(made: Path, place: Path, attempt: Path) -> None:
    """Move new outputs to their place; the old ones go into the attempt folder first."""
    if place.exists():  # moved, not deleted here: whoever is killed now never leaves half a folder
        os.replace(place, attempt / "replaced")
    os.replace(made, place)


def clear(attempt: Path) -> None:
    """Remove an attempt folder; old outputs whose place was not taken, after a kill between two moves, go back."""
    place = attempt.parent / attempt.name.removeprefix(ATTEMPT).rpartition("-")[0]
    if (attempt / "replaced").is_dir() and not place.exists():
        os.replace(attempt / "replaced", place)
    shutil.rmtree(attempt, ignore_errors=True)


def write_record(folder: Path, outcome: Outcome, *, title: str = "") -> None:
    """Write ``run.json`` in one step."""
    draft = folder / ".run.json"
    draft.write_text(json.dumps({"title": title, **asdict(outcome)}, indent=1), encoding="utf-8")
    os.replace(draft, folder / "run.json")


def spawn(
    notebook,
    made: Path,
    *,
    given: dict,
    runs: Path,
    workers: int = 1,
    timeout: float | None = None,
    stop=None,
    start=execute_process.start,
) -> str:
    """Execute a notebook in a process of its own; return ``ended``, ``timed out`` or ``interrupted``.

    ``start`` is how such a process comes to be, see :func:`helpers.execute_process.starter`.
    """
    task = {"notebook": str(notebook.path), "executed": str(made / f"{notebook.name}.ipynb"), "given": given}
    env = {**os.environ, "COURSE_RUNS": str(runs), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    env.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm without widgets
    if workers > 1:
        threads = str(max(1, settings.cores() // workers))
        env.update({name: threads for name in env if name.endswith(("_NUM_THREADS", "_INTRAOP_THREADS"))})
    with open(made / "run.log", "wb") as log:
        child = start(task, log=log, env=env, cwd=notebook.path.parent)
    deadline = time.monotonic() + (timeout or float("inf"))
    try:
        while not child.ended(0.2):
            if stop is not None and stop.is_set():
                return "interrupted"
            if time.monotonic() > deadline:
                return "timed out"
        return "ended"
    finally:
        child.let_go()

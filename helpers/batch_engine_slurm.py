"""A batch on SLURM: one Snakemake that sends chunks as jobs, watched, and cleared away however it ends.

What the watching is for was seen on a real SLURM: a Snakemake whose questions about its jobs fail waits for ever, ends
neither by TERM nor by itself, and, killed, leaves its jobs in the queue, where the next run would send them again.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

from helpers import batch_engine, batch_engine_files, execute
from helpers.batch_engine import HOME, Request
from helpers.batch_engine_queue import cancel, hopeless, min_job_age, queue
from helpers.execute_state import GOOD, Outcome
from helpers.messages import CourseError, note

PINS = {"snakemake-executor-plugin-slurm": "2.5.0", "snakemake-executor-plugin-slurm-jobstep": "0.4.0"}
"""The plugin's releases that were tried. Before 2.4 its question to squeue is broken (an unquoted ``|``), and it waits
for ever; from 2.6 on it needs a jobstep that strips ``SLURM_CONF``."""
LOOK_S = 2.0
"""Seconds between looks at the folder of the batch; the queue is asked every 30, or as often as Snakemake asks."""
STATE = "engine.json"


def check() -> None:
    """Refuse a machine without SLURM's programs, or without Snakemake and the plugin in the releases that were tried.

    Raises
    ------
    CourseError
        With the line that installs what is missing.
    """
    fix = "pip install 'helpers[cluster]' (in the checkout: make setup)"
    for name, wanted in {"snakemake": None, **PINS}.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise CourseError(f"no {name}", "it beside the course", fix) from None
        if wanted and found != wanted:
            raise CourseError(f"{name} {found}", f"{wanted}, the release that was tried", fix)
    missing = [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]
    if missing:
        seen, expected = f"no {', '.join(missing)} on this machine", "the login node of a SLURM cluster"
        raise CourseError(seen, expected, "log on there, or use --engine pool")


# ---------------------------------------------------------------- what an earlier driver left
def clear(home: Path) -> str:
    """End all that an earlier run of this batch may have left, and return its token, the beginning of its jobs' names.

    Snakemake's own records are thrown away: what is done is judged by ``run.json`` alone.
    """
    from helpers.batch import record

    home.mkdir(parents=True, exist_ok=True)
    state = record(home / STATE)
    token = token_of(home)
    if not token:
        state, token = {}, f"course-{os.urandom(6).hex()}"
    for process in _snakemakes(home):
        note(f"an earlier Snakemake (process {process.pid}) is ended")
        _end(process)
    jobs = queue(token) if state else {}
    if jobs and state.get("host") != socket.gethostname():
        note(f"jobs of an earlier run, started on {state.get('host')}, are cancelled")
    many = cancel(token) if state else 0
    if many:
        note(f"{many} jobs of an earlier run were cancelled; what they had finished is kept")
    for leftover in home.parent.glob(f"{execute.ATTEMPT}*"):
        execute.clear(leftover)
    for leftover in (".snakemake", batch_engine.DONE, batch_engine.NOW):
        shutil.rmtree(home / leftover, ignore_errors=True)
    return token


def token_of(home: Path) -> str:
    """Return the beginning of the names of this batch's jobs; an empty word if it has none.

    A copy of a batch's folder has none: the jobs are those of the folder it was copied from.
    """
    from helpers.batch import record

    state = record(home / STATE)
    token, other = str(state.get("token", "")), Path(state.get("home", home))
    copied = record(other / STATE).get("token") == token and not other.samefile(home)
    return token if re.fullmatch(r"course-[0-9a-f]{12}", token) and not copied else ""


def states(home: Path) -> dict:
    """Return what the cluster is at (see :func:`helpers.batch_engine.states`); nothing if none was ever asked."""
    token = token_of(home)
    return batch_engine.states(home, queue(token)) if token else {}


def _snakemakes(home: Path) -> list:
    """Return the Snakemakes of a batch; one whose folder was moved is known by the folder it works in."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "snakemake" in words and "--profile" in words:
            with contextlib.suppress(psutil.Error):
                if str(home / "profile") in words or process.cwd() == str(home):
                    found.append(process)
    return found


def _end(process, *, wait: float = 30) -> None:
    """Ask by INT, which lets Snakemake cancel its jobs, then kill."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(wait)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            process.kill()
            with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                process.wait(5)


# ---------------------------------------------------------------- a run
def run(jobs: list, *, request: Request, budget: dict, fresh=False, timeout=None, workers=50, told=None) -> list:
    """Run what is missing, failed or stale as jobs of SLURM; return the outcomes in the order of ``jobs``.

    Parameters
    ----------
    budget
        See :func:`helpers.batch_engine.budget`.
    workers
        Jobs at a time.
    told
        Called with job and outcome when a sample has ended.

    Raises
    ------
    CourseError
        No SLURM, no Snakemake, another run in the folder, jobs of an earlier run that do not end.
    """
    folder = jobs[0].folder.parent
    home = folder / HOME
    check()
    batch_engine.refuse_folder(folder)
    with execute.lock(folder), _term_is_interrupt():
        token = clear(home)
        todo = [job for job in jobs if fresh or job.state != "up to date"]
        if not todo:
            return [Outcome(job.notebook.name, GOOD, skipped=True) for job in jobs]
        with batch_engine.writing(folder):
            plan = batch_engine.write_plan(todo, home, chunk=budget["chunk"], fresh=fresh, timeout=timeout)
            _write_files(home, plan, request, budget, workers, token)
        past = queue(token, past=True) or {}
        told_end = _drive(todo, plan, home, token, request, told)
        why = _explain(plan, home, queue(token, past=True) or {}, past, told_end)
        return [_outcome(job, plan, why, told) for job in jobs]


def _outcome(job, plan: dict, why: dict, told) -> Outcome:
    """Return how a sample ended; one that has no news gets a record, but never in the place of whole results."""
    from helpers.batch import record

    if job.label not in plan["jobs"]:
        return Outcome(job.notebook.name, GOOD, skipped=True)
    found = batch_engine.ended(job.folder, plan["before"][job.label])
    if found:
        return found[1]
    outcome = Outcome(job.notebook.name, "not finished", why[job.label])
    if record(job.folder / "run.json").get("kind") != GOOD:
        with contextlib.suppress(OSError):
            batch_engine.put_record(job, outcome)
    if told:
        told(job, outcome)
    return outcome


def _write_files(home: Path, plan: dict, request: Request, budget: dict, workers: int, token: str) -> None:
    (home / "profile").mkdir(exist_ok=True)
    poll = min(request.poll, max(1, min_job_age() / 3))  # else the plugin goes back to sacct without a word
    text = batch_engine_files.snakefile(home, chunks=len(plan["chunks"]), budget=budget, request=request)
    (home / "Snakefile").write_text(text, encoding="utf-8")
    text = batch_engine_files.slurm_profile(home, jobs=workers, poll=poll, token=token)
    (home / "profile" / "config.yaml").write_text(text, encoding="utf-8")
    draft = home / f".{STATE}"
    draft.write_text(json.dumps({"token": token, "home": str(home), "host": socket.gethostname()}), encoding="utf-8")
    os.replace(draft, home / STATE)


def _drive(todo, plan, home, token, request, told) -> str:
    """Start Snakemake and follow it to its end; return why the watchdog ended it, or an empty word."""
    profile = ["--profile", str(home / "profile"), "--snakefile", str(home / "Snakefile"), "--directory", str(home)]
    env = {**os.environ, "USER": getpass.getuser(), "LOGNAME": getpass.getuser()}
    with open(home / "snakemake.log", "wb") as log:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        child = subprocess.Popen([sys.executable, "-m", "snakemake", *profile], env=env, cwd=home, **pipes)
    try:
        return _follow(child, todo, plan, home, token, request, told)
    finally:
        if child.poll() is None:
            _end(child)
        try:
            cancel(token)
        except CourseError as problem:  # a job on a lost node can take long; the next run asks again
            note(str(problem))


def _follow(child, todo, plan, home, token, request, told) -> str:
    from tqdm import tqdm

    seen, jobs, turn = {}, None, 0
    sign = answered = time.monotonic()
    every = max(1, round(min(request.poll, 30) / LOOK_S))
    count, shown = {"done": 0, "failed": 0, "running": 0, "waiting": 0}, None
    with tqdm(total=len(todo), desc="samples", unit="sample", file=sys.stderr) as bar:
        while True:
            over = child.poll() is not None
            done = _all_done(plan, home)
            for job in todo:
                before = seen.get(job.label)
                if before and before[1].kind not in batch_engine.RETRY:
                    continue  # it stays as it is: nobody tries it again
                found = batch_engine.ended(job.folder, plan["before"][job.label])
                if found and (before is None or before[0] != found[0]):
                    seen[job.label], sign = found, time.monotonic()
                    if told:
                        told(job, found[1])
            jobs = queue(token) if turn % every == 0 or over or done else jobs
            now = time.monotonic()
            if jobs is not None:
                answered = now
                states = [state for state, *_ in jobs.values()]
                count["running"] = sum(state in ("RUNNING", "COMPLETING") for state in states)
                count["waiting"] = len(states) - count["running"]  # queued, suspended, starting
            good = sum(outcome.good for _, outcome in seen.values())
            count["done"], count["failed"] = good, len(seen) - good
            if sys.stderr.isatty() or (len(seen), count) != shown:  # a file of the output gets a line for each change
                bar.n, shown = len(seen), (len(seen), dict(count))
                bar.set_postfix(count)
            if over or (jobs == {} and done):
                return ""  # Snakemake may take three minutes to notice that its last job has ended
            if (jobs and not hopeless(jobs)) or (jobs is None and now - answered < 4 * 60 * request.patience):
                sign = now
            why = hopeless(jobs)
            if now - sign > 60 * request.patience / (5 if why else 1):
                why = why or ("SLURM does not answer" if jobs is None else "no job in the queue")
                note(f"watchdog: no sample ends any more, {why}; Snakemake is ended")
                return why
            turn += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_S)


def _all_done(plan: dict, home: Path) -> bool:
    done = {path.name for path in (home / batch_engine.DONE).glob("*")}
    return all(str(number) in done for number in range(len(plan["chunks"])))


def _explain(plan: dict, home: Path, jobs: dict, past: dict, watchdog: str) -> dict:
    """Return for each sample why it may have no record: what its job said, its last state, or Snakemake's complaint.

    ``past`` are jobs of earlier runs of this batch.
    """
    own = sorted(set(jobs) - set(past), key=lambda word: int(re.sub(r"\D.*", "", word) or 0))
    last = {batch_engine.chunk_of(jobs[number][3]): number for number in own}
    log = (home / "snakemake.log").read_text(errors="replace")
    told = re.findall(r"^(?:sbatch: error: .*|.*(?:sbatch failed|WorkflowError|Error:).*(?:\n +.*)?)", log, re.M)
    word = watchdog or (" ".join(told[0].split()) if told else "no job was sent; see cluster/snakemake.log")
    why = {}
    for place, chunk in enumerate(plan["chunks"]):
        number = last.get(place)
        lines = ""
        for path in home.glob(f"logs/*/*/{number}.log") if number else ():
            lines = path.read_text(errors="replace")
        for sample in chunk:
            said = re.findall(rf"^{re.escape(sample)}: (.*)$", lines, re.M)
            why[sample] = said[-1] if said else _state(number, jobs) if number else word
    return why


def _state(number: str, jobs: dict) -> str:
    state, reason, nodes, _ = jobs[number]
    return f"its job {number} ended: {state} ({reason})" + (f" on {nodes}" if nodes else "")


@contextlib.contextmanager
def _term_is_interrupt():
    """Let TERM end this process as Ctrl-C does, jobs cancelled; KILL cannot be helped, the next run finds the jobs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

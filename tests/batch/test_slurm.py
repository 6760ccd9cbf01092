"""A batch on a real SLURM, started here for the test: faults, what is left behind, and that nothing runs twice."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from conftest import write_notebook
from helpers import batch, batch_engine_queue, batch_engine_slurm
from helpers.messages import CourseError
from tests.batch.slurm_here import Slurm, can_limit_memory, why_not

LONG = 500
"""Seconds after which something is taken not to happen: many, for a machine whose cores are shared."""
PARAMETERS = 'SEED = 0\nWHO = ""\nMODE = "good"\nOUT = ""\nTRAP = ""'
WORK = """import os, pathlib, signal, time
flag = pathlib.Path(os.environ["COURSE_FLAGS"]) / WHO
tried = flag.exists()
flag.write_text(str(os.getpid()))
assert MODE != "bad", "this sample is bad"
if MODE == "memory":
    hunger = b"x" * 800_000_000
if MODE == "slow" and not tried:
    time.sleep(300)
time.sleep(0.1)"""
END = 'run.product("n", lambda path: path.write_text(MODE), file="n.txt")\nrun.finish()'
DRIVER = """import sys, pathlib
from helpers import batch, execute_state
from helpers.batch_engine import Request
execute_state.code_print = lambda root=None: [1]
table, out, books, request, workers, engine = sys.argv[1:]
planned = batch.plan(pathlib.Path(table), "01", out=pathlib.Path(out), where=pathlib.Path(books))
outcomes = batch.run(planned, engine=engine, request=Request(**eval(request)), workers=int(workers),
                     retries=eval(request).get("retries", 0))
sys.exit(any(not outcome.good for outcome in outcomes))"""


def _no_engine() -> str:
    why = why_not()
    if not why:
        try:
            batch_engine_slurm.check()
        except CourseError as problem:
            why = str(problem)
    return why


pytestmark = pytest.mark.skipif(bool(_no_engine()), reason=_no_engine() or "a SLURM can be started here")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """A SLURM of two nodes, with memory limits where this host can set them."""
    daemons = Slurm(tmp_path_factory.mktemp("slurm"), memory=can_limit_memory())
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.stop()


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A folder with one notebook, and a way to start a driver for a table of sample: mode."""
    books = tmp_path / "the notebooks"
    write_notebook(books, "01_good", WORK, END, parameters=PARAMETERS, promises=["n"], budget_mb=300)
    flags, out = tmp_path / "flags", tmp_path / "the out"
    flags.mkdir()
    started = []

    def start(samples: dict, *, workers=2, engine="slurm", path="", **request):
        rows = "sample,WHO,MODE\n" + "".join(f"{name},{name},{mode}\n" for name, mode in samples.items())
        (tmp_path / "samples.csv").write_text(rows)
        words = {"memory_mb": 900, "minutes": 5, "poll": 2.0, **request}
        told = [tmp_path / "samples.csv", out, books, repr(words), workers, engine]
        with open(tmp_path / f"driver-{len(started)}.log", "wb") as log:
            env = {**os.environ, "COURSE_FLAGS": str(flags), "PATH": f"{path}{os.environ['PATH']}"}
            pipes = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            started.append(subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, told)], env=env, **pipes))
        return started[-1]

    def said(number=-1):
        return (tmp_path / f"driver-{number % len(started)}.log").read_text()

    yield types.SimpleNamespace(start=start, out=out, flags=flags, said=said, home=out / "cluster", scratch=tmp_path)
    for driver in started:
        if driver.poll() is None:
            driver.kill()
    for process in batch_engine_slurm._snakemakes(out / "cluster"):
        process.kill()
    token = batch.record(out / "cluster" / "engine.json").get("token")
    if token:
        batch_engine_queue.cancel(token)


def kinds(out: Path) -> dict:
    """Return how each sample ended."""
    return {path.parent.name: json.loads(path.read_text())["kind"] for path in out.glob("*/run.json")}


def snapshot(out: Path) -> dict:
    """Return time and content of each file of the samples."""
    files = [path for path in out.glob("[a-z]*/**/*") if path.is_file() and "cluster" not in path.parts]
    return {path.relative_to(out): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def wait(ready, seconds=LONG):
    """Poll until something is there."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def gone(number: int) -> bool:
    """Whether a process has ended; nobody may have collected it yet."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def job_of(cohort) -> dict:
    """Return the jobs of the batch in the queue."""
    token = batch.record(cohort.home / "engine.json").get("token")
    return (batch_engine_queue.queue(token) if token else {}) or {}


def pid(cohort, sample: str) -> int:
    """Wait until a sample runs and return its kernel's process id."""
    wait(lambda: (cohort.flags / sample).exists() and (cohort.flags / sample).read_text())
    return int((cohort.flags / sample).read_text())


def wrapper(sample_kernel: int) -> psutil.Process:
    """Return the process of the course's own command above a kernel."""
    return next(process for process in psutil.Process(sample_kernel).parents() if "batch-chunk" in process.cmdline())


def test_twelve_samples_one_bad_and_a_second_call_does_nothing_good_again(cohort):
    samples = {f"s{number:02}": "good" for number in range(12)} | {"s05": "bad"}
    assert cohort.start(samples, chunk=6, retries=1).wait(LONG) == 1, cohort.said()
    ended = kinds(cohort.out)
    assert len(ended) == 12 and {name for name, kind in ended.items() if kind != "complete"} == {"s05"}
    assert ended["s05"] == "cell failed" and not (cohort.out / "s05" / "results.json").exists()
    assert len(list(cohort.out.glob("*/results.json"))) == 11
    log = (cohort.home / "snakemake.log").read_text()
    assert log.count("has been submitted") == 2, "a deterministic failure is not tried again"
    assert not job_of(cohort) and not list(cohort.out.glob(".attempt-*"))
    before = {path: path.stat().st_mtime_ns for path in cohort.out.glob("*/results.json")}
    del samples["s05"]
    assert cohort.start(samples).wait(LONG) == 0, cohort.said()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (cohort.home / "snakemake.log").read_text() == log  # Snakemake was not even started


def test_after_a_run_on_this_machine_only_what_changed_is_sent_though_squeue_fails_now_and_then(cohort):
    samples = dict.fromkeys(("same", "changed", "older", "opened"), "good")
    assert cohort.start(samples, engine="pool").wait(LONG) == 0, cohort.said()
    before = snapshot(cohort.out)
    samples |= {"changed": "new", "opened": "new"}  # faults 61 and 63: its reader has the old file open
    (cohort.out / "older" / "run.json").write_text('{"kind": "complete"}')  # fault 62: of another version
    odd = cohort.scratch / "odd"
    odd.mkdir()
    real, count = shutil.which("squeue"), cohort.scratch / "count"
    fails = f'#!/bin/sh\necho >> "{count}"\n[ $(($(wc -l < "{count}") % 2)) = 0 ] && exit 1\nexec {real} "$@"\n'
    (odd / "squeue").write_text(fails)
    (odd / "squeue").chmod(0o755)
    with open(cohort.out / "opened" / "n.txt") as opened:
        driver = cohort.start(samples, path=f"{odd}:", chunk=3)
        wait(lambda: batch.record(cohort.home / "engine.json") or driver.poll() is not None)
        others = [cohort.start(samples, engine=engine) for engine in ("pool", "slurm")]  # fault 57
        for number, other in zip((-2, -1), others):
            assert other.wait(LONG) == 1 and "another run in this folder" in cohort.said(number)
        assert driver.wait(LONG) == 0, cohort.said(1)
        assert opened.read() == "good"
    ended = snapshot(cohort.out)
    assert set(kinds(cohort.out).values()) == {"complete"} and len(kinds(cohort.out)) == 4
    assert {path.parts[0] for path in before if ended[path] != before[path]} == {"changed", "older", "opened"}
    assert [(cohort.out / name / "n.txt").read_text() for name in samples] == ["good", "new", "good", "new"]
    assert count.read_text().count("\n") > 4 and not job_of(cohort)
    assert (cohort.home / "snakemake.log").read_text().count("has been submitted") == 1


def test_a_cancelled_job_a_killed_kernel_and_a_killed_wrapper_are_named_and_redone(cohort):
    samples = {"cancelled": "slow", "kernel": "slow", "wrapper": "slow"}
    driver = cohort.start(samples, workers=2, chunk=1)
    done = set()
    for _ in samples:  # two nodes: whichever two are on them, then the third
        wait(lambda: {path.name for path in cohort.flags.glob("*")} - done or driver.poll() is not None)
        name = sorted({path.name for path in cohort.flags.glob("*")} - done)[0]
        number = pid(cohort, name)
        if name == "kernel":
            os.kill(number, signal.SIGKILL)
        elif name == "wrapper":
            wrapper(number).kill()
        else:
            job = json.loads(next(p for p in (cohort.home / "now").glob("*.json") if name in p.read_text()).read_text())
            subprocess.run(["scancel", job["job"]], check=True)
        done.add(name)
    assert driver.wait(LONG) == 1, cohort.said()
    assert kinds(cohort.out) == {"cancelled": "not finished", "kernel": "kernel died", "wrapper": "not finished"}
    assert "CANCELLED" in json.loads((cohort.out / "cancelled" / "run.json").read_text())["reason"]
    assert not list(cohort.out.glob("*/results.json"))
    for name in samples:
        wait(lambda: gone(int((cohort.flags / name).read_text())))
    assert cohort.start(samples, chunk=3).wait(LONG) == 0, cohort.said()
    assert set(kinds(cohort.out).values()) == {"complete"}


def at_work(cohort) -> list:
    """Return the jobs' own commands, and the kernels below them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "batch-chunk" in words and str(cohort.home / "plan.json") in words:
            with contextlib.suppress(psutil.NoSuchProcess):
                kernels = [
                    child for child in process.children(recursive=True) if "ipykernel_launcher" in child.cmdline()
                ]
                found += [process, *kernels]
    return found


def assert_whole(out: Path, samples: dict) -> None:
    """Check that what is called complete has all its files, each of them whole."""
    for place in [path.parent for path in out.glob("*/run.json") if batch.record(path).get("kind") == "complete"]:
        results = json.loads((place / "results.json").read_text())
        assert [(place / file).read_text() for file in results["products"].values()] == [samples[place.name]]
        assert json.loads((place / "01_good.ipynb").read_text())["cells"]
        assert (place / "01_good.html").read_text().rstrip().endswith("</html>")


def test_a_killed_driver_leaves_nothing_the_next_run_does_not_find(cohort):
    samples = {"a": "slow", "b": "good", "c": "good"}
    driver = cohort.start(samples, workers=3, chunk=1)
    number = pid(cohort, "a")
    driver.kill()
    driver.wait()
    assert job_of(cohort) and batch_engine_slurm._snakemakes(cohort.home)  # orphans: Snakemake and its jobs
    assert batch.status(cohort.out)["samples"]["a"] == "running"
    again, draw = cohort.start(samples, workers=2, chunk=2, retries=2), random.Random(0)
    for _ in range(2):  # fault 55: something is killed at a moment that nobody chose
        wait(lambda: at_work(cohort) or again.poll() is not None)
        time.sleep(draw.uniform(0, 4))
        for process in draw.sample(at_work(cohort), min(1, len(at_work(cohort)))):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert_whole(cohort.out, samples)
    assert again.wait(LONG) == 0, cohort.said()
    assert_whole(cohort.out, samples)
    said = cohort.said()
    assert "an earlier Snakemake" in said
    assert set(kinds(cohort.out).values()) == {"complete"} and len(kinds(cohort.out)) == 3
    assert not job_of(cohort) and gone(number) and not batch_engine_slurm._snakemakes(cohort.home)


def test_an_interrupted_driver_cancels_its_jobs(cohort):
    driver = cohort.start({"a": "slow"}, chunk=1)
    number = pid(cohort, "a")
    driver.send_signal(signal.SIGTERM)  # as Ctrl-C
    assert driver.wait(LONG) != 0
    assert not job_of(cohort) and not batch_engine_slurm._snakemakes(cohort.home)
    wait(lambda: gone(number))
    assert not list(cohort.out.glob("a/run.json"))


def test_jobs_that_can_never_start_are_given_up_and_said(cohort):
    driver = cohort.start({"a": "good"}, minutes=600, patience=1.5)  # the partition allows one hour
    assert driver.wait(LONG) == 1
    assert "PartitionTimeLimit" in json.loads((cohort.out / "a" / "run.json").read_text())["reason"]
    assert not job_of(cohort)


def test_what_slurm_refuses_is_said(cohort):
    assert cohort.start({"a": "good"}, partition="nowhere").wait(LONG) == 1
    assert "invalid partition" in json.loads((cohort.out / "a" / "run.json").read_text())["reason"].lower()


def test_a_sample_that_needs_more_memory_gets_it(cohort):
    if not can_limit_memory():
        pytest.skip("memory control groups (version 1) cannot be written here")
    assert cohort.start({"hungry": "memory"}, memory_mb=800, retries=1).wait(LONG) == 0, cohort.said()
    log = (cohort.home / "snakemake.log").read_text()
    assert log.count("has been submitted") == 2 and "mem_mb=1600" in log and "mem_mb=800" in log

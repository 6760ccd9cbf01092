"""A batch on a cluster, without one: what counts as ended, whose jobs they are, what they are at, and full disks."""

import errno
import json
import os
import pathlib
import shutil
import signal
import time
import types

import numpy as np
import psutil
import pytest

from conftest import write_notebook
from helpers import (
    batch,
    batch_engine,
    batch_engine_queue,
    batch_engine_slurm,
    execute,
    execute_process,
    execute_state,
    notebook,
)
from helpers.__main__ import main
from helpers.batch_engine import Request
from helpers.messages import CourseError

TOKEN = "course-0123456789ab"
BEFORE = {"kind": "complete", "reason": "", "notebook": "01_good", "cell": None, "seconds": 1.0, "fingerprint": "old"}


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Keep the helpers' part of the fingerprint fixed, so that somebody editing a helper meanwhile does not matter."""
    monkeypatch.setattr(execute_state, "code_print", lambda root=None: [1])


@pytest.fixture
def sent(tmp_path):
    """Four samples in two chunks; ``a`` has whole, stale results of before, of a node whose clock was an hour ahead."""
    books, out = tmp_path / "books", tmp_path / "out"
    write_notebook(books, "01_good", "run.finish()", parameters='WHO = ""\nOUT = ""')
    (tmp_path / "samples.csv").write_text("sample,WHO\na,1\nb,2\nc,3\nd,4\n")
    (out / "a").mkdir(parents=True)
    (out / "a" / "run.json").write_text(json.dumps(BEFORE))
    (out / "a" / "results.json").write_text("{}")
    os.utime(out / "a" / "run.json", (time.time() + 3600,) * 2)
    planned = batch.plan(tmp_path / "samples.csv", "01", out=out, where=books)
    home = out / batch_engine.HOME
    plan = batch_engine.write_plan(planned.jobs, home, chunk=2)
    return types.SimpleNamespace(planned=planned, plan=plan, home=home, out=out, books=books, folder=tmp_path)


def end(sent, label, kind="complete"):
    """Let a sample end."""
    (sent.out / label).mkdir(exist_ok=True)
    (sent.out / label / "run.json").write_text(json.dumps(BEFORE | {"kind": kind}))


@pytest.mark.parametrize("hours", [-5, 5])
def test_clocks_that_differ_between_nodes_do_not_matter(sent, hours):
    assert batch_engine.ended(sent.out / "a", sent.plan["before"]["a"]) is None  # what ended before is no news
    end(sent, "a", "kernel died")
    end(sent, "b")
    for label in "ab":
        when = (sent.home / batch_engine.PLAN).stat().st_mtime_ns + hours * 3600 * 10**9
        os.utime(sent.out / label / "run.json", ns=(when, when))
    kinds = [batch_engine.ended(sent.out / label, sent.plan["before"][label])[1].kind for label in "ab"]
    assert kinds == ["kernel died", "complete"]
    assert batch_engine.ended(sent.out / "c", sent.plan["before"]["c"]) is None


def test_whole_results_stay_where_no_job_was_sent(sent):
    why = dict.fromkeys("abcd", "sbatch: error: invalid partition")
    told = []
    outcomes = [batch_engine_slurm._outcome(job, sent.plan, why, lambda job, _: told.append(job.label))
                for job in sent.planned.jobs]  # fmt: skip
    assert {outcome.kind for outcome in outcomes} == {"not finished"} and told == list("abcd")
    assert (sent.out / "a" / "results.json").exists() and sent.planned.jobs[0].state == "stale"
    assert "invalid partition" in json.loads((sent.out / "b" / "run.json").read_text())["reason"]


def test_what_jobs_are_at(sent):
    end(sent, "c")
    (sent.home / "now").mkdir()
    (sent.home / "now" / "0.json").write_text('{"sample": "a", "job": "7"}')
    jobs = {
        "7": ("RUNNING", "None", "n1", "rule_chunk_wildcards_0"),
        "8": ("PENDING", "x", "", "rule_chunk_wildcards_1"),
    }
    assert batch_engine.states(sent.home, jobs) == {"a": "running", "b": "queued", "d": "queued"}
    (sent.home / "now" / "1.json").write_text('{"sample": "d", "job": "8"}')  # requeued: its note is of before
    assert batch_engine.states(sent.home, jobs)["d"] == "queued"
    jobs["7"] = ("SUSPENDED", "None", "n1", "rule_chunk_wildcards_0")
    assert batch_engine.states(sent.home, jobs)["a"] == "suspended"
    assert batch_engine.states(sent.home, {}) == {}  # killed: the notes alone say nothing
    assert set(batch_engine.states(sent.home, None).values()) == {"unknown (SLURM does not answer)"}


def test_a_copied_folder_leaves_the_jobs_of_its_original_and_a_moved_one_finds_its_own(sent, monkeypatch):
    asked = []
    monkeypatch.setattr(batch_engine_slurm, "queue", lambda token, **_: asked.append(token) or {})
    monkeypatch.setattr(batch_engine_slurm, "cancel", lambda token: asked.append(token) or 0)
    state = {"token": TOKEN, "home": str(sent.home), "host": "x"}
    (sent.home / batch_engine_slurm.STATE).write_text(json.dumps(state))
    shutil.copytree(sent.out, sent.folder / "copy")
    assert batch_engine_slurm.clear(sent.folder / "copy" / "cluster") != TOKEN and not asked
    (sent.folder / "link").symlink_to(sent.out)
    assert batch_engine_slurm.token_of(sent.folder / "link" / "cluster") == TOKEN  # the same folder, another path
    sent.out.rename(sent.folder / "moved")
    assert batch_engine_slurm.clear(sent.folder / "moved" / "cluster") == TOKEN and set(asked) == {TOKEN}


def test_jobs_of_an_earlier_run_explain_nothing(sent):
    (sent.home / "snakemake.log").write_text("sbatch: error: invalid partition specified: nowhere\n")
    past = {"3": ("COMPLETED", "None", "n1", "rule_chunk_wildcards_0")}
    now = past | {"9": ("TIMEOUT", "TimeLimit", "n2", "rule_chunk_wildcards_1")}
    why = batch_engine_slurm._explain(sent.plan, sent.home, now, past, "")
    assert "invalid partition" in why["a"] and why["d"] == "its job 9 ended: TIMEOUT (TimeLimit) on n2"


def test_another_users_and_another_batchs_jobs_are_not_ours(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    lines = [f"1|{TOKEN}_x|RUNNING|None|n1|c_0", f"2|{TOKEN}0_x|RUNNING|None|n1|c_0", "3|mine|RUNNING|None|n1|"]
    told = "".join(f"echo '{line}'\n" for line in lines)
    squeue.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\n{told}')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert list(batch_engine_queue.queue(TOKEN)) == ["1"]
    assert f"-u {batch_engine_queue.getpass.getuser()}" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("reason", ["AssocMaxWallDurationPerJobLimit", "InvalidQOS", "QOSMaxCpuPerJobLimit"])
def test_reasons_that_no_time_mends(reason):
    assert reason in batch_engine_queue.hopeless({"1": ("PENDING", reason, "", "")})


# ---------------------------------------------------------------- faults 56, 57 and 58
def test_a_full_disk_on_a_node_keeps_the_old_results_and_is_tried_again(sent, monkeypatch):  # fault 56
    real, full = execute.write_record, {"on": True}

    def write(*words, **named):
        if full["on"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*words, **named)

    monkeypatch.setattr(execute, "write_record", write)
    monkeypatch.setattr(execute, "spawn", lambda *_, **__: "ended")
    monkeypatch.setattr(batch_engine.signal, "signal", lambda *_: None)
    before = {path: path.read_bytes() for path in sent.out.glob("a/*")}
    assert batch_engine.run_chunk(sent.home / batch_engine.PLAN, 0) == 1
    assert before == {path: path.read_bytes() for path in sent.out.glob("a/*")}
    assert not (sent.out / "b").exists() and not list(sent.out.glob(".attempt-*"))
    assert not (sent.home / batch_engine.DONE / "0").exists()
    full["on"] = False
    assert batch_engine.run_chunk(sent.home / batch_engine.PLAN, 0) == 0 and (sent.out / "b" / "run.json").exists()


def test_a_disk_that_is_full_before_anything_is_sent_is_said(sent, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch_engine_slurm, "check", lambda: None)
    monkeypatch.setattr(pathlib.Path, "write_text", full)
    asked = {"chunk": 1, "memory_mb": 1, "minutes": 1}
    with pytest.raises(CourseError, match="No space left on device.*free some disk"):
        batch_engine_slurm.run(list(sent.planned.jobs), request=Request(), budget=asked)


def test_a_job_that_is_asked_to_stop_keeps_the_old_results_and_its_sample_is_sent_again(sent, monkeypatch):
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)  # a cluster asks all processes of a job, and the child is the first to end
        return "ended"

    monkeypatch.setattr(execute, "spawn", stopped)
    before = {path: path.read_bytes() for path in sent.out.glob("a/*")}
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert batch_engine.run_chunk(sent.home / batch_engine.PLAN, 0) == 143
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert before == {path: path.read_bytes() for path in sent.out.glob("a/*")}
    assert not (sent.out / "b").exists() and not list(sent.out.glob(".attempt-*"))


@pytest.mark.parametrize("engine", ["pool", "slurm"])
def test_a_second_batch_in_the_folder_is_refused(sent, engine):  # fault 57; the first may be of either engine
    with execute.lock(sent.out), pytest.raises(CourseError, match=f"another run in this folder .process {os.getpid()}"):
        batch.run(sent.planned, engine=engine, request=Request())
    assert not (sent.out / batch.FILE).exists()


@pytest.mark.parametrize("engine", ["pool", "slurm", "kubernetes"])  # fault 58
@pytest.mark.parametrize(
    ("words", "said"),
    [(["-p", "WO", "7"], "WHO"), (["--chunk", "-1"], "--chunk -1"), (["-p", "TRAP", "7"], "TRAP")],
)
def test_a_wrong_parameter_is_refused_before_anything_is_sent(
    sent, monkeypatch, capsys, engine, words, said
):  # fault 58
    for name in ("sbatch", "squeue", "scancel"):
        (sent.folder / name).write_text(f"#!/bin/sh\ntouch {sent.folder}/asked\n")
        (sent.folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(sent.folder), prepend=":")
    monkeypatch.setattr(notebook, "folder", lambda: sent.books)
    out = sent.folder / "new"
    command = ["batch", str(sent.folder / "samples.csv"), "--notebook", "01", "--out", str(out), "--engine", engine]
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err and not out.exists() and not (sent.folder / "asked").exists()


# ---------------------------------------------------------------- fault 64
CHILD = """#!/bin/sh
[ $# = 0 ] || exit  # it cannot be forked
read -r task
cd "$(dirname "$(printf %s "$task" | sed 's/.*"executed": "\\([^"]*\\)".*/\\1/')")"
echo '{"products": {}, "verdicts": []}' > results.json
touch 01_good.ipynb 01_good.html
"""


@pytest.mark.parametrize("engine", ["pool", "slurm"])
def test_a_hundred_samples_leave_no_process_no_open_file_and_no_memory(tmp_path, monkeypatch, engine):
    write_notebook(tmp_path / "books", "01_good", "run.finish()", parameters='WHO = ""\nOUT = ""')
    (tmp_path / "samples.csv").write_text("sample,WHO\n" + "".join(f"s{n},{n}\n" for n in range(100)))
    (tmp_path / "child").write_text(CHILD)
    (tmp_path / "child").chmod(0o755)
    planned = batch.plan(tmp_path / "samples.csv", "01", out=tmp_path / "out", where=tmp_path / "books")
    plan = batch_engine.write_plan(planned.jobs, planned.folder / batch_engine.HOME, chunk=100)
    own, seen, write = psutil.Process(), [], execute.write_record

    def look(*words, **named):
        seen.append((own.memory_info().rss / 2**20, own.num_fds(), own.num_threads()))
        write(*words, **named)

    monkeypatch.setattr(execute, "write_record", look)
    monkeypatch.setattr(execute_process, "COMMAND", (str(tmp_path / "child"),))  # real, without the cost of a kernel
    monkeypatch.setattr(batch_engine.signal, "signal", lambda *_: None)
    before = {child.pid for child in own.children(recursive=True)}
    if engine == "pool":
        assert all(outcome.good for outcome in batch.run(planned, workers=2))
    else:
        assert batch_engine.run_chunk(planned.folder / batch_engine.HOME / batch_engine.PLAN, 0) == 0
    assert len(seen) == 100 and all(batch_engine.ended(job.folder, plan["before"][job.label]) for job in planned.jobs)
    memory, files, threads = (np.array(column) for column in zip(*seen))
    assert memory[-10:].mean() - memory[20:30].mean() < 5  # MB
    for column in (
        files,
        threads,
    ):  # two samples at a time overlap now and then; one left open by each would be 70 more
        assert column[-10:].max() < column[20:30].max() + 10
    assert {child.pid for child in own.children(recursive=True)} <= before

"""Running notebooks: each way of failing is told apart, the rest still runs, nothing is redone or left half-done."""

import base64
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest

from conftest import write_notebook
from helpers import execute, execute_process, execute_refresh, execute_state, notebook, report
from helpers.__main__ import main
from helpers.messages import CourseError

FIGURE = """import sys, matplotlib.pyplot as plt
fig, ax = plt.subplots(); ax.plot([1, 3, 2])
print("progress", file=sys.stderr)
print("three points")
run.figure(fig, "line", alt="a line")"""
KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
LINES = "def raise_it():\n    raise ValueError('no <b>such</b> thing')\nraise_it()"


BUSY = """import time
kernel = get_ipython().kernel
publish = kernel._publish_status
def late(status, *rest, **named):  # as on a busy machine, the news that a cell has ended comes after its answer
    if status == "idle":
        del kernel._publish_status
        time.sleep(5)
    publish(status, *rest, **named)
kernel._publish_status = late"""
CLOSED = """import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except ConnectionRefusedError as problem:
    assert "tests may not" in str(problem)
else:
    raise AssertionError("the network is open")"""


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Keep the helpers' part of the fingerprint fixed, so that somebody editing a helper meanwhile does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        real = execute_state.code_print
        patch.setattr(execute_state, "code_print", lambda root=None: real(root) if root else [])
        yield


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Run five notebooks once, four of which fail in their own way (faults 53 and 59)."""
    home = tmp_path_factory.mktemp("five")
    books, out = home / "notebooks", home / "out"
    this_python = f"import sys\nassert sys.executable == {sys.executable!r}\n{CLOSED}"
    keep = "run.product('n', lambda path: path.write_text('3'), file='n.txt')\nrun.finish()"
    write_notebook(books, "01_good", this_python, BUSY, FIGURE, keep, promises=["n"])
    write_notebook(books, "02_cell", LINES, "run.finish()")
    write_notebook(books, "03_killed", "x = 1", KILL, "run.finish()")
    write_notebook(books, "04_promise", "run.finish()", promises=["counts"])
    write_notebook(books, "05_open_end", "import os, psutil\nprint(psutil.Process(os.getppid()).cmdline()[-1])")
    jobs = execute.plan(where=books, out=out)
    return types.SimpleNamespace(books=books, out=out, jobs=jobs, outcomes=execute.run(jobs, workers=2))


def test_each_way_of_failing_is_told_apart_and_the_rest_runs(five):
    kinds = [outcome.kind for outcome in five.outcomes]
    assert kinds == ["complete", "cell failed", "kernel died", "missing product", "not finished"]
    _, cell, killed, promise, _ = five.outcomes
    assert cell.cell == 3 and cell.reason == "line 3, raise_it(): ValueError: no <b>such</b> thing"
    assert killed.cell == 4 and "counts" in promise.reason
    assert [job.state for job in five.jobs] == ["up to date", "failed", "failed", "failed", "failed"]
    assert not (five.out / "03_killed" / "results.json").exists()
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "ipykernel" in line or "execute_child" in line]  # fault 64
    saved = nbformat.read(five.out / "03_killed" / "03_killed.ipynb", 4)  # why the notebook itself is not believed
    assert {cell.metadata.papermill.status for cell in saved.cells} == {"completed"}
    saved = nbformat.read(five.out / "05_open_end" / "05_open_end.ipynb", 4)
    assert sys.platform != "linux" or saved.cells[-1].outputs[0].text == "warm\n"  # its process was forked


def _snapshot(folder: Path) -> dict:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_second_run_does_nothing_and_keeps_every_byte(five):  # fault 60
    report.build(five.out)
    before, began = _snapshot(five.out), time.monotonic()
    jobs = execute.plan(["01"], where=five.books, out=five.out)
    (outcome,) = execute.run(jobs)
    report.build(five.out)
    assert outcome.skipped and outcome.good and time.monotonic() - began < 2
    assert _snapshot(five.out) == before


def test_what_a_result_depends_on_makes_it_stale(five, tmp_path, monkeypatch):  # faults 61 and 62
    state = lambda **options: execute.plan(["01"], where=five.books, out=five.out, **options)[0].state  # noqa: E731
    assert state() == "up to date"
    assert state(given={"SEED": "1"}) == "stale"
    path = five.books / "01_good.ipynb"
    old = path.read_text()
    path.write_text(old.replace("three points", "four points"))
    assert state() == "stale"
    content = json.loads(old)
    content["cells"][4]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "stored"}]
    content["cells"][4]["execution_count"] = 7
    path.write_text(json.dumps(content))
    assert state() == "up to date"  # stored outputs are no source
    path.write_text(old)
    root = tmp_path / "root"
    shutil.copytree(execute_state.settings.ROOT / "helpers", root / "helpers")
    (root / "data").mkdir()
    (root / "requirements.lock").write_text("numpy==2.0")
    prints = [execute_state.code_print(root)]
    changes = {"helpers/stain.py": "x = 1", "requirements.lock": "numpy==2.1", "data/thresholds.csv": "a"}
    for file, text in changes.items():
        (root / file).write_text(text)
        prints.append(execute_state.code_print(root))
    assert len({str(one) for one in prints}) == 4


def test_changed_data_make_a_result_stale(tmp_path, monkeypatch):
    folder = tmp_path / "her2st"
    folder.mkdir()
    (folder / "a.tsv").write_text("1")
    data = [types.SimpleNamespace(id="virtual", kind="generated")]
    stand_in = types.SimpleNamespace(datasets=lambda: data, resolve=lambda value: (value, folder, None))
    import helpers

    monkeypatch.setitem(sys.modules, "helpers.catalogue", stand_in)
    monkeypatch.setattr(helpers, "catalogue", stand_in, raising=False)
    first = execute_state.data_print("her2st")
    assert execute_state.data_print("her2st") == first
    assert execute_state.data_print("virtual") == ["generated", "virtual"]
    os.utime(folder / "a.tsv", (1, 1))
    second = execute_state.data_print("her2st")
    (folder / "b.tsv").write_text("2")
    assert len({str(first), str(second), str(execute_state.data_print("her2st"))}) == 3


def test_a_result_whose_product_was_deleted_is_missing(five):
    (five.out / "01_good" / "n.txt").rename(five.out / "kept")
    try:
        assert five.jobs[0].state == "missing"
    finally:
        (five.out / "kept").rename(five.out / "01_good" / "n.txt")


def test_executed_notebooks_become_pages_that_need_no_network(five):
    page = (five.out / "01_good" / "01_good.html").read_text()
    assert "data:image/png" in page and 'alt="a line"' in page and "three points" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "no &lt;b&gt;such" in (five.out / "02_cell" / "02_cell.html").read_text()


# ---------------------------------------------------------------- refusals
def test_wrong_parameters_are_refused_before_anything_runs(five, tmp_path):  # fault 58
    for given, hint in (({"SEDE": "1"}, "did you mean SEED"), ({"SEED": "one"}, "type int"), ({"OUT": "x"}, "--out")):
        with pytest.raises(CourseError, match=hint):
            execute.plan(["01"], given=given, where=five.books, out=tmp_path / "new")
    with pytest.raises(CourseError, match="01_good"):
        execute.plan(["99"], where=five.books)
    (tmp_path / "mine" / "01_good").mkdir(parents=True)
    (tmp_path / "mine" / "01_good" / "thesis.txt").write_text("years of work")
    with pytest.raises(CourseError, match="not the output of a run"):
        execute.plan(["01"], where=five.books, out=tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="cannot be written"), execute.lock(tmp_path / "file" / "out"):
        pass
    assert not (tmp_path / "new").exists()


def test_two_runners_on_one_folder_are_refused(five, tmp_path):  # fault 57
    code = "from helpers import execute\nfrom pathlib import Path\nimport time\n"
    code += f"with execute.lock(Path({str(tmp_path)!r})):\n"
    code += "    print('held', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    jobs = execute.plan(["01"], where=five.books, out=tmp_path)
    with pytest.raises(CourseError, match=f"process {holder.pid}"):
        execute.run(jobs)
    holder.kill()
    holder.wait()
    with execute.lock(tmp_path):  # the lock of a dead process is free
        pass


# ---------------------------------------------------------------- trouble from outside
@pytest.mark.parametrize("names", [["01_slow"], ["01_slow", "02_slow"]], ids=["alone", "forked"])
def test_a_runner_that_is_killed_takes_its_kernels_along(five, tmp_path, names):  # fault 54
    slow = "open(f'started {run.notebook.number}', 'w').close()\nimport time\ntime.sleep(120)"
    for name in names:
        write_notebook(tmp_path / "books", name, slow, "run.finish()")
    out = tmp_path / "out"
    for name in (*names, "01_good"):
        shutil.copytree(five.out / "01_good", out / name)
    before = _snapshot(out)
    code = "from helpers import execute\nfrom pathlib import Path\n"
    code += f"execute.run(execute.plan(where=Path({str(tmp_path / 'books')!r}), out=Path({str(out)!r})), workers=2)"
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "books").glob("started*"))) < len(names) and time.monotonic() < deadline:
        time.sleep(0.1)
    family = psutil.Process(runner.pid).children(recursive=True)
    assert len(family) >= 2 * len(names)  # each child and its kernel
    runner.kill()
    runner.wait()
    gone, alive = psutil.wait_procs(family, timeout=90)
    assert not alive
    assert {path: _snapshot(out)[path] for path in before} == before  # the old result is untouched
    assert list(out.glob(".attempt-*"))
    execute.run(execute.plan(["01"], where=five.books, out=out))
    assert not list(out.glob(".attempt-*"))


@pytest.mark.parametrize("names", [["01_slow"], ["01_slow", "02_slow"]], ids=["alone", "forked"])
def test_a_notebook_that_takes_too_long_is_stopped(tmp_path, names):
    for name in names:
        write_notebook(tmp_path / "books", name, "import time\ntime.sleep(300)")
    outcomes = execute.run(execute.plan(where=tmp_path / "books", out=tmp_path / "out"), timeout=5, workers=2)
    assert {outcome.kind for outcome in outcomes} == {"timed out"} and max(each.seconds for each in outcomes) < 100
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "ipykernel" in line or "execute_child" in line]


def _task(tmp_path, *sources) -> dict:
    path = write_notebook(tmp_path / "books", "01_x", *sources)
    return {"notebook": str(path), "executed": str(tmp_path / "01_x.ipynb"), "given": {}}


def test_without_the_process_that_is_forked_notebooks_run_all_the_same(tmp_path):
    task = _task(tmp_path, "run.finish()")
    env = {**os.environ, "COURSE_RUNS": str(tmp_path)}
    with execute_process.starter(2) as start, open(tmp_path / "log", "wb") as log:
        (warm,) = [child for child in psutil.Process().children() if child.cmdline()[-1] == "warm"]
        warm.kill()
        child = start(task, log=log, env=env, cwd=tmp_path / "books")
        assert child.ended(60)
        child.let_go()
    assert (tmp_path / "latest" / "01_x" / "results.json").exists() and (tmp_path / "01_x.html").exists()


def test_a_process_that_is_let_go_of_ends_also_where_it_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(execute_process, "PATIENCE_S", 0.5)
    with execute_process.starter(2) as start, open(tmp_path / "log", "wb") as log:
        child = start(_task(tmp_path), log=log, env=dict(os.environ), cwd=tmp_path / "books")
        os.kill(child.pid, signal.SIGSTOP)
        assert not child.ended(0.1)
        child.let_go()
    assert not psutil.pid_exists(child.pid)  # killed, and nothing of it is left


def test_an_interrupted_run_keeps_the_old_result(five, tmp_path):
    code = "from conftest import write_notebook\nfrom helpers import notebook, __main__\nfrom pathlib import Path\n"
    code += f"notebook.folder = lambda: Path({str(tmp_path / 'books')!r})\n"
    code += f"raise SystemExit(__main__.main(['run', '--out', {str(tmp_path / 'out')!r}]))"
    write_notebook(tmp_path / "books", "01_good", "open('started', 'w').close()\nimport time\ntime.sleep(300)")
    shutil.copytree(five.out / "01_good", tmp_path / "out" / "01_good")
    before = _snapshot(tmp_path / "out")
    root = execute_state.settings.ROOT
    # a shell's background job, and so all it starts, ignores Ctrl-C; the program must see it here
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True, **heed)
    deadline = time.monotonic() + 120
    while not (tmp_path / "books" / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    _, err = runner.communicate(timeout=120)
    assert runner.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert _snapshot(tmp_path / "out") == before and not list((tmp_path / "out").glob(".attempt-*"))


def test_a_full_disk_fails_one_notebook_and_keeps_the_old_result(five, tmp_path, monkeypatch):  # fault 56
    out = tmp_path / "out"
    shutil.copytree(five.out / "01_good", out / "01_good")
    before = _snapshot(out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute, "write_record", full)
    monkeypatch.setattr(execute, "spawn", lambda *_, **__: "ended")
    (outcome,) = execute.run(execute.plan(["01"], where=five.books, out=out), fresh=True)
    assert outcome.kind == "not written" and "No space left" in outcome.reason
    assert _snapshot(out) == before and not list(out.glob(".attempt-*"))


# ---------------------------------------------------------------- refresh
def test_refresh_stores_outputs_and_counts_and_nothing_that_varies(tmp_path):
    path = write_notebook(tmp_path / "books", "01_good", FIGURE, "run.finish()")
    before = nbformat.read(path, 4)
    assert execute_refresh.refresh(path)
    stored = nbformat.read(path, 4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert [cell.source for cell in stored.cells] == [cell.source for cell in before.cells]
    assert [cell.id for cell in stored.cells] == [cell.id for cell in before.cells]
    outputs = [output for cell in code for output in cell.outputs]
    assert [output.get("name") for output in outputs if output.output_type == "stream"] == ["stdout", "stdout"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1  # not shown twice
    assert "papermill" not in path.read_text() and str(tmp_path) not in path.read_text()
    assert stored.metadata.course == before.metadata.course and path.stat().st_size < 100_000
    assert path.read_text().endswith("}\n")


def test_refresh_leaves_a_failing_notebook_as_it_was(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "books", "02_cell", LINES)
    before = path.read_bytes()

    def fake(book, made, **_):
        cell = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
        content = {"cells": [{"cell_type": "code", "outputs": [cell], "metadata": {}, "source": ""}]}
        (made / "02_cell.ipynb").write_text(json.dumps(content))
        return "ended"

    monkeypatch.setattr(execute_refresh, "spawn", fake)
    with pytest.raises(CourseError, match="cell failed in code cell 1"):
        execute_refresh.refresh(path)
    assert path.read_bytes() == before


def test_large_pictures_shrink_until_the_notebook_is_small():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(stream.getvalue()).decode()})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert len(nbformat.writes(book)) > 2e6
    execute_refresh._slim(book)
    assert len(nbformat.writes(book)) < execute_refresh.STORED_MB * 1e6


def test_nbval_compares_stdout_of_tagged_cells_and_not_stderr(tmp_path):
    root = execute_state.settings.ROOT
    for name in ("conftest.py", "pytest.ini", "tests/notebooks/sanitise.cfg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    noisy = "import sys\nprint('steady')\nprint('{}', file=sys.stderr)"
    path = write_notebook(tmp_path / "notebooks", "01_noisy", noisy.format("new"), "print('{}')", "run.finish()")
    content = json.loads(path.read_text())
    for count, cell in enumerate(content["cells"][1:], start=1):
        cell["execution_count"] = count
    for cell, out, err in zip(content["cells"][3:5], ("steady", "old"), ("old", "")):
        cell["metadata"]["tags"] = ["nbval-check-output"]
        for name, text in (("stdout", out), ("stderr", err)):
            cell["outputs"] += [{"output_type": "stream", "name": name, "text": text + "\n"}] if text else []
    path.write_text(json.dumps(content))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "notebooks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 4 passed" in done.stdout and "::Cell 3" in done.stdout, done.stdout


# ---------------------------------------------------------------- command line
def test_the_command_line_names_what_failed(five, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "folder", lambda: five.books)
    monkeypatch.setattr(execute, "spawn", lambda *_, **__: "ended")  # nothing is run: no results, so it failed
    assert main(["run", "01", "02", "--out", str(five.out.parent / "cli")]) == 1
    out, err = capsys.readouterr()
    assert "01_good" in out and "not finished" in out and "index.html" in out
    assert "2 of 2 notebooks failed: 01_good, 02_cell" in err
    assert main(["run", "01", "--out", str(five.out)]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, hint",
    [
        (["run", "01", "-p", "SEDE", "1"], "did you mean SEED"),
        (["run", "77"], "no notebook '77'"),
        (["run", "-p", "SEED", "1", "-p", "SEED", "2"], "twice"),
        (["run", "--jobs", "0"], "--jobs 0"),
        (["report", "nowhere"], "no runs"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(five, monkeypatch, capsys, words, hint):
    monkeypatch.setattr(notebook, "folder", lambda: five.books)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert hint in err and "Traceback" not in err and "Fix:" in err


def test_relative_paths_mean_those_seen_from_the_working_directory(tmp_path):
    from helpers.notebook import from_here

    (tmp_path / "models").mkdir()
    (tmp_path / "here").mkdir()
    model, sets = tmp_path / "models" / "x.keras", tmp_path / "models" / "sets.gmt"
    model.touch(), sets.touch()
    here = tmp_path / "here"
    assert from_here("../models/x.keras", here) == str(model)
    assert from_here("tiny, ../models/x.keras", here) == f"tiny, {model}"
    assert from_here("st:../models", here) == f"st:{tmp_path / 'models'}"
    assert from_here("../models/sets.gmt:A SET", here) == f"{sets}:A SET"
    for same in ("tiny", "C2,C3", "../models/none.keras", str(model), "0 0 150", "", "https://a.b/c"):
        assert from_here(same, here) == same


def test_a_thin_coloured_line_keeps_its_colour_in_a_stored_picture():
    from PIL import Image

    draw = np.random.default_rng(0)
    pixels = draw.integers(100, 220, (300, 300, 3)).astype(np.uint8)
    pixels[150, 50:250] = (0xF0, 0xE4, 0x42)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    stored = execute_refresh._palette(base64.b64encode(stream.getvalue()).decode(), 1.0)
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB"))
    assert (kept[150, 50:250] == (0xF0, 0xE4, 0x42)).all()
    assert np.abs(kept.astype(int) - pixels).mean() < 12


def test_old_outputs_go_back_where_a_kill_or_a_full_disk_came_between_two_moves(tmp_path, monkeypatch):  # faults 55, 56
    place, attempt = tmp_path / "01-good", tmp_path / f"{execute.ATTEMPT}01-good-123"
    for folder, text in ((place, "old"), (attempt / "made", "new")):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text)
    move, moves = os.replace, []

    def second_fails(source, target):
        moves.append(source)
        if len(moves) == 2:
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(execute.os, "replace", second_fails)
    with pytest.raises(OSError, match="No space"):
        execute.put(attempt / "made", place, attempt)
    assert not place.exists()
    monkeypatch.setattr(execute.os, "replace", move)
    execute.clear(attempt)  # at once after an error, by the next run after a kill
    assert (place / "run.json").read_text() == "old" and not attempt.exists()
    (attempt / "made").mkdir(parents=True)
    (attempt / "made" / "run.json").write_text("new")
    execute.put(attempt / "made", place, attempt)
    execute.clear(attempt)
    assert (place / "run.json").read_text() == "new" and not attempt.exists()

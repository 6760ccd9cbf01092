"""The runner: parameters are checked first, files are whole or absent, results.json comes last."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from helpers import grade, notebook, runner, runner_watch, settings
from helpers.messages import CourseError

PARAMETERS = 'DATA = "virtual"  # which\nSEED = 0\nTILE_UM = 100.0\nTRAP = ""\nOUT = ""\nTRAIN = ""\nTEST = ""'


@pytest.fixture
def begin(make_notebook, tmp_path, monkeypatch):
    """Return a function that starts a run of a tiny notebook, as its second cell would."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))

    def go(promises=(), parameters=PARAMETERS, graded_checks=None, **namespace):
        path = make_notebook(
            "01_tiny", parameters=parameters, promises=list(promises), ranges={"TILE_UM": [20, 400]},
            graded_checks=graded_checks,
        )  # fmt: skip
        monkeypatch.chdir(path.parent)
        cell = {}
        exec(parameters, cell)
        return runner.start("01", {**cell, **namespace})

    return go


# ---------------------------------------------------------------- fault 58: parameters
@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"SEDE": 3}, "did you mean SEED"),
        ({"SEED": "3"}, "type int"),
        ({"SEED": True}, "type int"),
        ({"SEED": -1}, "0 to"),
        ({"TILE_UM": 5.0}, "20 to 400"),
        ({"TRAP": "xyswap"}, "did you mean 'xy_swap'"),
        ({"DATA": 3}, "type str"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_written(begin, tmp_path, wrong, hint):
    with pytest.raises(CourseError, match=hint):
        begin(**wrong)
    assert not (tmp_path / "runs").exists()


def test_words_of_a_command_line_take_the_type_of_the_default(make_notebook):
    path = make_notebook("01_tiny", parameters="SEED = 0\nX = 1.5\nON = False\nS = 'a'\nL = [1]\nT: int = 3")
    book = notebook.load(path)
    given = {"SEED": "7", "X": "2", "ON": "yes", "S": "b", "L": "[2, 3]"}
    values = notebook.check_parameters(book, given, text=True)
    assert values == {"SEED": 7, "X": 2.0, "ON": True, "S": "b", "L": [2, 3], "T": 3}
    for name, word in (("SEED", "1.5"), ("ON", "maybe"), ("X", "wide"), ("L", "2")):
        with pytest.raises(CourseError, match=name):
            notebook.check_parameters(book, {name: word}, text=True)


def test_a_parameters_cell_holds_only_literals(make_notebook):
    with pytest.raises(CourseError, match="parameters cell"):
        notebook.load(make_notebook("01_tiny", parameters="SEED = int('3')"))


def test_whole_numbers_serve_where_the_default_is_a_float(begin):
    assert begin(TILE_UM=100).parameters["TILE_UM"] == 100.0


# ---------------------------------------------------------------- outputs
def test_finish_writes_the_contract_s_results_and_last(begin, capsys):
    import matplotlib.figure
    import pandas as pd

    run = begin(promises=["spots"])
    assert not (run.out / "results.json").exists()
    figure = matplotlib.figure.Figure(figsize=(2, 2))
    assert run.figure(figure, "line", alt="a line") is figure
    run.table(pd.DataFrame({"n": [1, 2]}), "spots")
    run.metric("speed", __import__("numpy").float64(2.5))
    run.metric("nothing", float("nan"))
    run.finish()
    results = json.loads((run.out / "results.json").read_text())
    assert results["notebook"] == "01" and results["status"] == "complete"
    assert results["products"] == {"spots": "spots.csv"} and results["metrics"] == {"speed": 2.5, "nothing": None}
    assert results["figures"] == [{"name": "line", "file": "figures/line.png", "alt": "a line"}]
    assert results["parameters"]["SEED"] == 0 and results["versions"]["python"] and results["peak_mb"] > 1
    data, meta = figure._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR") and meta["image/png"]["alt"] == "a line"
    out, err = capsys.readouterr()
    assert out == "notebook 01 complete: 0 of 0 verdicts pass\n" and " s, " in err


def test_a_missing_promise_leaves_no_marker(begin):
    run = begin(promises=["counts"])
    with pytest.raises(CourseError, match="promised product missing: counts"):
        run.finish()
    assert not (run.out / "results.json").exists()


def test_a_product_that_vanished_is_missing_too(begin):
    run = begin()
    run.product("n", lambda path: path.write_text("1"), file="n.txt").unlink()
    with pytest.raises(CourseError, match="missing: n"):
        run.finish()


def test_a_new_start_takes_the_old_marker_away(begin):
    begin().finish()
    assert not (begin().out / "results.json").exists()


def test_an_empty_product_is_refused(begin):
    run = begin()
    with pytest.raises(CourseError, match="nothing written"):
        run.product("empty", lambda path: path.touch(), file="empty.txt")
    assert list(run.out.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../b.txt", "/tmp/x.txt", ".hidden", "a<b>.txt"])
def test_a_product_stays_inside_the_output_folder(begin, name):
    with pytest.raises(CourseError, match="file name"):
        begin().product("evil", lambda path: path.write_text("x"), file=name)


def test_a_folder_product_replaces_the_old_one(begin):
    run = begin()
    for text in ("old", "new"):
        run.product("store", lambda path: (path.mkdir(), (path / "a.txt").write_text(text)), file="section.zarr")
    assert (run.out / "section.zarr" / "a.txt").read_text() == "new"
    assert [path.name for path in run.out.iterdir()] == ["section.zarr"]


def test_a_full_disk_keeps_the_old_file(begin):  # fault 56
    run = begin()
    run.product("n", lambda path: path.write_text("old"), file="n.txt")

    def full(path):
        path.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CourseError, match="No space left"):
        run.product("n", full, file="n.txt")
    assert (run.out / "n.txt").read_text() == "old" and [path.name for path in run.out.iterdir()] == ["n.txt"]


def test_killed_while_writing_leaves_old_or_new_never_half(begin, tmp_path):  # fault 55
    run = begin()
    script = tmp_path / "writer.py"
    script.write_text(
        "import sys, itertools\nfrom helpers import notebook, runner\nfrom pathlib import Path\n"
        f"run = runner.Run(notebook.load({str(run.notebook.path)!r}), {{'OUT': {str(run.out)!r}}})\n"
        "print('ready', flush=True)\n"
        "for i in itertools.count():\n"
        "    run.product('n', lambda path: path.write_text(f'{i % 10}' * 3_000_000), file='n.txt')\n"
    )
    pick = settings.rng(0, "kill")
    lengths = set()
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(float(pick.uniform(0.02, 0.08)))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if (run.out / "n.txt").exists():
            text = (run.out / "n.txt").read_text()
            lengths.add(len(text))
            assert len(set(text)) == 1
    assert lengths == {3_000_000}
    runner.Run(run.notebook, {"OUT": str(run.out)})  # a new start clears what the killed ones left
    assert [path.name for path in run.out.iterdir()] == ["n.txt"]


# ---------------------------------------------------------------- grading
@pytest.fixture
def thresholds(tmp_path, monkeypatch):
    table = tmp_path / "thresholds.csv"
    table.write_text(
        "notebook,name,target,tolerance,op,unit,seeds,note\n01,stain angle error,0,3,within,deg,1;1.2;0.8;1;1.1,why\n"
    )
    monkeypatch.setattr(grade, "TABLE", table)


def test_a_verdict_is_one_line_without_the_number(begin, thresholds, capsys):
    run = begin()
    assert run.grade("stain angle error", 1.234) and not run.grade("stain angle error", 7)
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"stain angle error: {word} (expected 0 deg within 3)" for word in ("PASS", "FAIL")]
    assert "1.234" in err
    run.finish()
    verdict = json.loads((run.out / "results.json").read_text())["verdicts"]
    assert verdict == [
        {"name": "stain angle error", "target": 0.0, "tolerance": 3.0, "op": "within", "unit": "deg",
         "expected": "0 deg within 3", "seeds": [1.0, 1.2, 0.8, 1.0, 1.1], "value": 7.0, "pass": False}
    ]  # fmt: skip
    with pytest.raises(CourseError, match="did you mean 'stain angle error'"):
        run.grade("stain angel error", 1)


def test_a_forgotten_grade_cell_is_noticed(begin, thresholds):
    run = begin(graded_checks=2)
    run.grade("stain angle error", 1)
    with pytest.raises(CourseError, match="1 verdicts"):
        run.finish()


# ---------------------------------------------------------------- data
@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Put small stand-ins in the place of catalogue, readers, traps and cohorts."""
    import helpers.virtual  # noqa: F401  (its attributes are replaced)

    Ref = types.SimpleNamespace
    refs = [Ref(section_id=name) for name in ("A1", "A2", "B1")]
    made = {}

    def put(name, **content):
        module = types.SimpleNamespace(**content)
        parent, _, leaf = f"helpers.{name}".rpartition(".")
        monkeypatch.setitem(sys.modules, f"helpers.{name}", module)
        monkeypatch.setattr(sys.modules[parent], leaf, module, raising=False)

    data = [
        types.SimpleNamespace(id="virtual", kind="generated", platform="visium", default_test=("B1",)),
        types.SimpleNamespace(id="real", kind="files", platform="visium", default_test=()),
    ]
    put("catalogue", datasets=lambda: data, resolve=lambda value: (value, tmp_path, None))
    put(
        "readers",
        discover=lambda folder, *, dataset, platform=None: refs,
        skipped=lambda folder, *, platform=None: ["odd.tsv"],
        read=lambda ref: f"section {ref.section_id}",
    )
    put("traps", apply=lambda section, trap: f"{section} with {trap}")
    put("virtual.cohorts", ensure=lambda name, *, seed: made.update(seed=seed) or tmp_path)
    put("virtual.truth", read=lambda folder, section: f"truth of {section}")
    return made


def test_sections_follow_the_default_split_and_the_trap(begin, stand_ins):
    run = begin(SEED=5, TRAP="bgr")
    assert (run.train, run.test) == (["A1", "A2"], ["B1"]) and stand_ins == {"seed": 5}
    assert [run.load(ref) for ref in run.sections] == [f"section {name} with bgr" for name in ("A1", "A2", "B1")]
    assert run.is_virtual and run.truth("A1") == "truth of A1"


def test_train_and_test_choose_sections(begin, stand_ins, capsys):
    run = begin(DATA="real", TRAIN="B1, A1", TEST="A2")
    assert (run.train, run.test) == (["B1", "A1"], ["A2"])
    assert not run.is_virtual and run.truth("A1") is None and run.load("A2") == "section A2"
    assert "left out: odd.tsv" in capsys.readouterr().err


@pytest.mark.parametrize("wrong, hint", [({"TEST": "B9"}, "A1, A2, B1"), ({"TRAIN": "A1", "TEST": "A1"}, "one side")])
def test_wrong_sections_are_refused_before_anything_is_written(begin, stand_ins, tmp_path, wrong, hint):
    with pytest.raises(CourseError, match=hint):
        begin(**wrong)
    assert not (tmp_path / "runs").exists()


def test_show_escapes_and_folds(monkeypatch):
    shown = []
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    runner.show(settings.rng)
    assert shown[0]["text/html"].startswith("<details><summary>source of <code>helpers.settings.rng</code>")
    assert "default_rng" in shown[0]["text/html"] and "<script" not in shown[0]["text/html"]


def test_peak_memory_counts_workers_and_ends_with_the_run():
    watch = runner_watch.Watch()
    code = "import time; held = b'x' * 300_000_000; time.sleep(1.5)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert watch.peak_mb > 300 + 20
    thread = [thread for thread in threading.enumerate() if thread._target is runner_watch._sample][-1]
    del watch
    thread.join(3)
    assert not thread.is_alive()


@pytest.mark.parametrize("where", ["blocked/out", "data/her2st/out"])
def test_an_unusable_output_folder_is_refused(begin, tmp_path, monkeypatch, where):
    (tmp_path / "blocked").write_text("a file, not a folder")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    with pytest.raises(CourseError, match="choose another OUT"):
        begin(OUT=str(tmp_path / where))


def test_a_table_keeps_a_meaningful_index(begin):
    import pandas as pd

    run = begin()
    run.table(pd.DataFrame({"n": [1]}, index=["3x4"]), "named")
    run.table(pd.DataFrame({"n": [1]}), "plain")
    assert (run.out / "named.csv").read_text() == ",n\n3x4,1\n" and (run.out / "plain.csv").read_text() == "n\n1\n"

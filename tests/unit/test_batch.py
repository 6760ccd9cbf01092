"""A batch: the table is checked whole; one failing sample stops no other; a second call redoes only what is due."""

import dataclasses
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import write_notebook
from helpers import (
    batch,
    batch_engine,
    batch_engine_files,
    batch_engine_queue,
    batch_engine_slurm,
    batch_report,
    batch_report_page,
    batch_report_table,
    batch_table,
    execute,
    execute_state,
    notebook,
)
from helpers.__main__ import main
from helpers.messages import CourseError

PARAMETERS = 'SEED = 0\nSIZE = 1.5\nMODE = "good"\nOUT = ""\nTRAP = ""'
WORK = """import os, signal
assert MODE != "bad", "this sample is bad"
if MODE == "wrapper":
    import time
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if MODE == "memory" and not os.path.exists(os.environ["COURSE_TRIED"]):
    open(os.environ["COURSE_TRIED"], "w").close()
    os.kill(os.getpid(), signal.SIGKILL)"""
FIGURE = """import matplotlib.pyplot as plt
fig, ax = plt.subplots(); ax.plot([1, 3, SIZE])
run.figure(fig, "line", alt="a line")
run.product("n", lambda path: path.write_text(str(SIZE)), file="n.txt")
run.metric("size", SIZE)
run.finish()"""


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Keep the helpers' part of the fingerprint fixed, so that somebody editing a helper meanwhile does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute_state, "code_print", lambda root=None: [1])
        yield


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """One notebook whose end the parameter MODE decides."""
    home = tmp_path_factory.mktemp("batch") / "notebooks"
    write_notebook(home, "01_good", WORK, FIGURE, parameters=PARAMETERS, promises=["n"], ranges={"SIZE": [0, 9]})
    return home


def table(folder: Path, text: str) -> Path:
    """Write a table of samples."""
    path = folder / "samples.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cohort(books, tmp_path_factory):
    """Four samples of three patients: one raises, one is killed the first time it is tried."""
    home = tmp_path_factory.mktemp("cohort")
    rows = "sample,patient,SIZE,MODE\na_1,a,1,\na_2,a,2,good\nb,b,3,bad\nc,c,4,memory\n"
    planned = batch.plan(table(home, rows), "01", out=home / "out", where=books)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_TRIED", str(home / "tried"))
        outcomes = batch.run(planned, workers=2, told=lambda job, outcome: told.append((job.label, outcome.kind)))
    return types.SimpleNamespace(home=home, planned=planned, outcomes=outcomes, told=told, out=home / "out")


def test_one_bad_sample_stops_no_other_and_is_named_with_its_cell(cohort):
    assert [outcome.kind for outcome in cohort.outcomes] == ["complete", "complete", "cell failed", "complete"]
    assert "this sample is bad" in cohort.outcomes[2].reason and cohort.outcomes[2].cell == 3
    assert [(cohort.out / name / "n.txt").read_text() for name in ("a_1", "a_2", "c")] == ["1.0", "2.0", "4.0"]
    assert not (cohort.out / "b" / "results.json").exists()


def test_only_a_killed_kernel_is_tried_again(cohort):
    kinds = {}
    for label, kind in cohort.told:
        kinds.setdefault(label, []).append(kind)
    assert kinds == {
        "a_1": ["complete"], "a_2": ["complete"], "b": ["cell failed"], "c": ["kernel died", "complete"],
    }  # fmt: skip


def test_a_second_call_runs_only_what_failed_or_changed(cohort, books):
    text = "sample,patient,SIZE,MODE\na_1,a,1,\na_2,a,2.5,good\nb,b,3,bad\nc,c,4,memory\nd,d,5,good\n"
    planned = batch.plan(table(cohort.home, text), "01", out=cohort.out, where=books)
    assert [job.state for job in planned.jobs] == ["up to date", "stale", "failed", "up to date", "missing"]
    table(cohort.home, text.replace("2.5", "2"))  # as it was, for the other tests


def test_status_says_what_is_done_and_what_the_rest_needs(cohort):
    found = batch.status(cohort.out)
    assert found["samples"] == {"a_1": "complete", "a_2": "complete", "b": "cell failed", "c": "complete"}
    assert found["left"] == 1 and found["seconds"][1] >= found["seconds"][0] > 0 and found["peak_mb"][0] > 10
    with pytest.raises(CourseError, match="no batch"):
        batch.status(cohort.home)


def test_what_would_run_again_is_not_called_complete(cohort, books, tmp_path, monkeypatch):
    out = shutil.copytree(cohort.out, tmp_path / "out")
    (out / "a_2" / "n.txt").unlink()
    assert list(batch.status(out)["samples"].values()) == ["complete", "waiting", "cell failed", "complete"]
    monkeypatch.setattr(execute_state, "code_print", lambda root=None: [2])
    found = batch.status(out)
    assert list(found["samples"].values()) == ["stale", "stale", "cell failed", "stale"] and found["left"] == 4
    page = batch_report.build(out).read_text()
    assert "0 of 4 samples complete" in page and "3 stale" in page and batch_report_table.CHANGED in page
    batch.write(dataclasses.replace(cohort.planned, folder=out, notebook=dataclasses.replace(
        cohort.planned.notebook, path=tmp_path / "gone" / "01_good.ipynb")))  # fmt: skip
    found = batch.status(out)  # results looked at where the notebook is not
    assert list(found["samples"].values())[0] == "complete" and found["request"] is None


def test_only_a_process_that_holds_the_folder_runs_anything(cohort, tmp_path):
    out = shutil.copytree(cohort.out, tmp_path / "out")
    (out / f".attempt-b-{os.getpid()}").mkdir()  # left by a driver that was killed; its number is another's now
    (out / ".attempt-a_1-1").mkdir()
    assert "running" not in batch.status(out)["samples"].values()
    with execute.lock(out):
        found = batch.status(out)
        assert found["samples"] == {**batch.status(cohort.out)["samples"], "b": "running"} and found["left"] == 1
        with pytest.raises(CourseError, match="another run"), execute.lock(out):
            pass  # asking did not free it
    with execute.lock(out):
        pass


def test_what_a_cluster_is_at_is_told(cohort, tmp_path, monkeypatch):
    out = shutil.copytree(cohort.out, tmp_path / "out")
    (out / "cluster").mkdir()
    assert batch.status(out)["samples"] == batch.status(cohort.out)["samples"]  # no job was ever sent
    now = {"b": "queued", "c": "unknown (SLURM does not answer)", "gone": "running"}
    monkeypatch.setattr(batch_engine_slurm, "states", lambda home: now)
    assert list(batch.status(out)["samples"].values()) == ["complete", "complete", *list(now.values())[:2]]
    page = batch_report.build(out).read_text()
    assert '<li class="pill ">1 queued</li>' in page and "What failed" not in page
    (out / "cluster" / "engine.json").write_text('{"token": "course-0123456789ab"}')
    monkeypatch.undo()
    monkeypatch.setattr(batch_engine_slurm, "queue", lambda token: {})
    assert batch.status(out)["samples"]["b"] == "cell failed"  # jobs were sent, their plan is gone


def test_status_in_words():
    states = {"a": "complete", "b": "running", "c": "running", "d": "waiting"}
    found = {"notebook": "01_x", "samples": states, "seconds": (60.0, 90.0), "peak_mb": (100.0, 120.0), "left": 3,
             "minutes": 1.5, "request": {"chunk": 2, "memory_mb": 900, "minutes": 4}}  # fmt: skip
    said = "\n".join(batch.lines(found))
    assert "1 complete, 2 running, 1 waiting" in said and "1 of 4 samples complete (01_x)" in said
    assert "2 at a time, as now, the rest takes 2 min" in said and "60 s (at most 90) and 100 MB (at most 120)" in said
    assert said.startswith(f"{'b':<28} running\n{'c':<28} running\n{'d':<28} waiting\n1 complete")  # no line for a
    assert "one after the other" in "\n".join(batch.lines({**found, "samples": {"d": "waiting"}}))
    nothing = {**found, "seconds": None, "peak_mb": None, "minutes": None, "request": None}
    assert len(batch.lines(nothing)) == 3 + 2


def test_a_folder_of_another_notebook_is_refused(cohort, tmp_path):
    home = tmp_path / "notebooks"
    write_notebook(home, "02_other", "run.finish()")
    before = (cohort.out / batch.FILE).read_bytes()
    with pytest.raises(CourseError, match="a batch of 01_good"):
        batch.plan(table(tmp_path, "sample\na_1\n"), "02", out=cohort.out, where=home)
    assert (cohort.out / batch.FILE).read_bytes() == before


def test_the_page_counts_patients_and_names_failures(cohort):
    page = batch_report.build(cohort.out).read_text(encoding="utf-8")
    assert "3 of 4 samples complete" in page and "3 patients" in page
    assert "code cell 3" in page and "this sample is bad" in page and "a_1/01_good.html" in page
    assert page.count("data:image/jpeg") == 3 and "://" not in page and "2 of them with a complete" in page
    saved = pd.read_parquet(cohort.out / "cohort.parquet")
    plain = pd.read_csv(cohort.out / "cohort.csv").fillna({"reason": "", "MODE": "", "odd": ""})
    pd.testing.assert_frame_equal(saved.fillna({"MODE": ""}), plain, check_dtype=False)
    assert saved.set_index("sample").loc["a_2", ["SIZE", "metric: size"]].tolist() == [2.0, 2.0]
    assert batch_report.build(cohort.out).read_text(encoding="utf-8") == page


# ---------------------------------------------------------------- what the page of a cohort says
def put(folder: Path, samples: dict, *, patients: dict | None = None) -> Path:
    """Write a batch folder by hand: sample to (run.json, results.json), either may be None."""
    asked = [{"sample": name, "patient": (patients or {}).get(name, name), "given": {}} for name in samples]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / batch.FILE).write_text(json.dumps({"notebook": "99_x", "samples": asked}))
    for name, files in samples.items():
        (folder / name).mkdir(exist_ok=True)
        for file, content in zip(("run.json", "results.json"), files):
            if content is not None:
                (folder / name / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def measured(**metrics):
    """A sample that is complete, with some metrics."""
    return {"kind": "complete", "seconds": 1.0}, {"verdicts": [], "metrics": metrics, "figures": [], "peak_mb": 9}


def draw(folder: Path, file: str, colour: str) -> None:
    """Write a picture of one colour."""
    from PIL import Image

    (folder / file).parent.mkdir(exist_ok=True)
    Image.new("RGB", (300, 100), colour).save(folder / file)


def test_a_name_or_message_cannot_put_code_into_the_page(tmp_path):
    put(tmp_path, {"s": ({"kind": "cell failed", "reason": "<script>x</script>"}, measured(**{"<b>": 1})[1])},
        patients={"s": "<img src=x>"})  # fmt: skip
    page = batch_report.build(tmp_path).read_text()
    assert "<img src=x>" not in page and "<script>x" not in page and "<b>" not in page and page.count("<script>") == 1
    assert "script-src 'sha256-" in page and "unsafe-inline'; script-src" in page


def test_a_spreadsheet_is_given_no_formula(tmp_path):
    words = "=HYPERLINK(0)"
    put(tmp_path, {"s": ({"kind": "cell failed", "reason": "@SUM(1)"}, None), "t": measured(depth=-3.5)},
        patients={"s": words, "t": "+1"})  # fmt: skip
    batch_report.build(tmp_path)
    plain = pd.read_csv(tmp_path / "cohort.csv")
    assert plain["patient"].tolist() == [f"'{words}", "'+1"] and plain["reason"][0] == "'@SUM(1)"
    assert plain["metric: depth"][1] == -3.5  # a number is no formula
    assert pd.read_parquet(tmp_path / "cohort.parquet")["patient"].tolist() == [words, "+1"]


@pytest.mark.parametrize(
    "results",
    [
        "[]", "{", "null", '{"verdicts": null, "metrics": [1], "figures": 3, "peak_mb": "much"}',
        '{"verdicts": [1, {"value": 2}, {"name": "v", "value": "high", "pass": 1}], "metrics": {"x": "a", "y": true}}',
        '{"metrics": {"x": NaN, "y": Infinity, "z": 1' + "0" * 400 + '}, "figures": [{"name": "a"}, {"file": "b"}]}',
    ],
)  # fmt: skip
def test_an_odd_file_of_one_sample_costs_no_other(tmp_path, results):
    ended = {"kind": "cell failed", "cell": "three", "seconds": "long", "reason": "\ud800"}
    put(tmp_path, {"odd": (ended, results), "good": measured(x=1.5), "bare": ({"kind": "complete"}, results)})
    assert "2 of 3 samples complete" in batch_report.build(tmp_path).read_text()
    assert pd.read_csv(tmp_path / "cohort.csv").set_index("sample").loc["good", "metric: x"] == 1.5


def test_the_page_of_a_batch_that_has_only_begun(tmp_path):
    put(tmp_path, {"a": (None, None), "b": (None, None)})
    page = batch_report.build(tmp_path).read_text()
    assert "0 of 2 samples complete" in page and "2 waiting" in page and "<details" not in page
    (tmp_path / batch.FILE).write_text('{"notebook": "99_x", "samples": [{"sample": "a"}]}')
    with pytest.raises(CourseError, match="no batch"):
        batch_report.build(tmp_path)


def test_a_patient_with_many_samples_counts_once(tmp_path):
    samples = {"a1": 10.0, "a2": 30.0, "a3": 20.0, "b": 1.0, "c": 2.0}
    who = dict.fromkeys(("a1", "a2", "a3"), "A")
    put(tmp_path, {name: measured(depth=value) for name, value in samples.items()}, patients=who)
    found = batch_report_table.spread(batch_report_table.table(tmp_path))["metric: depth"]
    assert (found["samples"], found["patients"]) == (5, 3) and sorted(found["means"]) == [1.0, 2.0, 20.0]
    assert found["quantiles"].tolist() == [1.0, 1.5, 2.0, 11.0, 20.0]
    page = batch_report.build(tmp_path).read_text()
    assert "5 of 5 samples complete &middot; 3 patients, 3 of them" in page and "1.5 to 11" in page


def test_a_thousand_rows_are_laid_out_in_parts_and_failures_are_put_together(tmp_path):
    why = {"kind": "cell failed", "cell": 2, "reason": "no tissue"}
    samples = {f"s{n:03d}": measured(depth=100 + n % 7, area=5.0 + n % 3) for n in range(batch_report_page.FIRST + 20)}
    samples |= {"s001": (why, None), "s002": ({**why, "cell": 5}, None), "s003": measured(depth=2.0, area=6.0)}
    page = batch_report.build(put(tmp_path, samples, patients={"s001": "P", "s002": "P"})).read_text()
    assert page.count('class="hide"') == 20 and page.count('<tr id="s-') == batch_report_page.FIRST + 20
    assert "What failed: 2 samples, for 1 reason<" in page and "code cell 2, 5: no tissue" in page
    assert '<a href="#s-s001">s001</a>, <a href="#s-s002">s002</a>' in page
    assert "What is odd: 1 sample, in 1 number<" in page and "&#9670; depth low" in page and "1 low" in page
    assert '<option value="scell failed">cell failed (2)</option>' in page and ">odd: depth (1)</option>" in page
    assert batch_report_table.table(tmp_path).set_index("sample")["odd"]["s003"] == "depth low"


def test_a_verdict_that_fails_is_marked_and_can_be_asked_for(tmp_path):
    verdicts = [{"name": "a", "value": 1, "pass": True}, {"name": "b", "value": 0.25, "pass": False}]
    results = {"verdicts": verdicts, "metrics": {}, "figures": []}
    page = batch_report.build(put(tmp_path, {"s": ({"kind": "verdict failed", "reason": "b"}, results)})).read_text()
    assert '<td class="num fail" data-n="b">0.25</td>' in page and '<td class="num">1</td>' in page
    assert '<option value="f1">fails: b (1)</option>' in page and 'data-k="f1|fail|plain|sverdict failed"' in page
    assert "0 of 1" in page and "1 of 1" in page  # samples that pass b, and a
    assert pd.read_parquet(tmp_path / "cohort.parquet")[["passed: a", "passed: b"]].values.tolist() == [[True, False]]


def test_the_picture_is_the_cover_then_a_map_then_the_first():
    drawn = [{"name": name, "file": f"{name}.png"} for name in ("overlay", "maps", "slide", "cover")]
    picked = [batch_report.choose(drawn[:count]).get("name") for count in range(5)]
    assert picked == [None, "overlay", "maps", "slide", "cover"]


def test_pictures_are_made_small_once_and_a_broken_one_costs_only_itself(tmp_path, monkeypatch):
    figures = {"verdicts": [], "metrics": {}, "figures": [{"name": "cover", "file": "figures/c.png", "alt": "A map"}]}
    put(tmp_path, dict.fromkeys("abc", ({"kind": "complete"}, figures)))
    for name, colour in (("a", "red"), ("b", "blue")):
        draw(tmp_path / name, "figures/c.png", colour)
    draw(tmp_path / "b", "figures/c.png", "blue")
    whole = (tmp_path / "b" / "figures" / "c.png").read_bytes()
    (tmp_path / "b" / "figures" / "c.png").write_bytes(whole[:60] + b"x" * 20 + whole[80:])
    huge = whole[:16] + struct.pack(">II", 60_000, 60_000) + whole[24:29]  # what Pillow refuses as a bomb
    draw(tmp_path / "c", "figures/c.png", "black")
    (tmp_path / "c" / "figures" / "c.png").write_bytes(huge + struct.pack(">I", zlib.crc32(huge[12:])) + whole[33:])
    first = batch_report.build(tmp_path).read_text()
    assert first.count("data:image/jpeg") == 1 and 'href="a/figures/c.png"><img' in first and 'alt="A map"' in first
    made = []
    small = batch_report.thumbnail
    monkeypatch.setattr(batch_report, "thumbnail", lambda file, side: made.append(file.parts[-3]) or small(file, side))
    assert batch_report.build(tmp_path).read_text() == first and made == []
    draw(tmp_path / "b", "figures/c.png", "green")
    assert batch_report.build(tmp_path).read_text().count("data:image/jpeg") == 2 and made == ["b"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("SIZE\n1\n", "one called sample"),
        ("sample;SIZE\na;1\n", "separate the columns by commas"),
        ("sample,SIZ\na,1\n", "did you mean SIZE"),
        ("sample,SIZE,SIZE\na,1,1\n", "'SIZE' twice"),
        ("sample,OUT\na,x\n", "--out DIR"),
        ("sample,SIZE\n", "no rows"),
        ("", "empty table"),
        ('sample,MODE\na,"x\n', "breaks off"),
        ("sample,SIZE\n../a,1\n", "sample named '../a'"),
        ("sample,SIZE\n<script>,1\n", "sample named"),
        ("sample,SIZE\nindex.html,1\n", "sample named"),
        ("sample,SIZE\na,1\nA,2\n", "each name once"),
        ("sample,SIZE\na,big\n", "type float"),
        ("sample,SIZE\na,99\n", "0 to 9"),
        ("sample,SIZE\na,1,2\n", "3 cells"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_runs(books, tmp_path, rows, words):
    with pytest.raises(CourseError) as caught:
        batch.plan(table(tmp_path, rows), "01", out=tmp_path / "out", where=books)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_wrong_rows_are_named_at_once(books, tmp_path):
    rows = "sample,SIZE\n" + "".join(f"s{n},{'x' if n % 2 else 1}\n" for n in range(40))
    with pytest.raises(CourseError, match="20 rows that cannot run") as caught:
        batch.plan(table(tmp_path, rows), "01", out=tmp_path / "out", where=books)
    assert "line 3:" in str(caught.value) and "and 8 more" in str(caught.value)


def test_data_and_sections_are_checked_for_every_row(tmp_path):
    home = tmp_path / "notebooks"
    write_notebook(home, "01_data", "run.finish()", parameters='DATA = "virtual"\nTRAIN = ""\nTEST = ""\nOUT = ""')
    rows = "sample,DATA\na,virtual\nb,st:./nowhere\nc,virtul\n"
    with pytest.raises(CourseError, match="2 rows that cannot run") as caught:
        batch.plan(table(tmp_path, rows), "01", out=tmp_path / "out", where=home)
    assert "line 3" in str(caught.value) and "line 4" in str(caught.value)


def test_paths_are_seen_from_the_table(tmp_path):
    home = tmp_path / "notebooks"
    write_notebook(home, "01_file", "run.finish()", parameters='FILE = ""\nOUT = ""')
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.txt").write_text("x")
    rows = batch_table.read(table(tmp_path, "sample,FILE\na,./slides/a.txt\n"), notebook.load(home / "01_file.ipynb"))
    assert rows[0].given["FILE"] == str(tmp_path / "slides" / "a.txt")


def test_a_value_far_from_the_others_is_an_outlier():
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 5.0, np.nan])
    assert batch_report_table.outliers(values).tolist() == [False] * 5 + [True, False]
    assert not batch_report_table.outliers([1, 1, 1, 1, 1, 2]).any()  # most agree exactly: no scale to judge by
    assert not batch_report_table.outliers([1, 2, 100]).any()  # too few


def test_killed_at_any_moment_nothing_half_written_is_taken_for_a_result(books, tmp_path):
    rows = "sample,SIZE\n" + "".join(f"s{n},{n}\n" for n in range(4))
    code = "from pathlib import Path; from helpers import batch; "
    code += f"batch.run(batch.plan(Path({str(table(tmp_path, rows))!r}), '01', "
    code += f"out=Path({str(tmp_path / 'out')!r}), where=Path({str(books)!r})), workers=2)"
    draw = random.Random(0)
    for _ in range(4):
        driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(draw.uniform(1.5, 7))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        for place in (tmp_path / "out").glob("s*"):
            ended = json.loads((place / "run.json").read_text())
            assert ended["kind"] == "complete" and (place / "n.txt").read_text() == f"{float(place.name[1:])}"
    planned = batch.plan(tmp_path / "samples.csv", "01", out=tmp_path / "out", where=books)
    for _ in range(50):  # the children notice within a moment that their parent is gone
        try:
            outcomes = batch.run(planned, workers=2)
            break
        except CourseError:
            time.sleep(0.2)
    assert all(outcome.good for outcome in outcomes) and not list((tmp_path / "out").glob(".attempt-*"))


def test_a_second_driver_is_refused_and_leaves_the_first_ones_table(cohort, books):
    before = (cohort.out / batch.FILE).read_bytes()
    planned = batch.plan(table(cohort.home, "sample,SIZE\nother,1\n"), "01", out=cohort.out, where=books)
    with execute.lock(cohort.out), pytest.raises(CourseError, match="another run in this folder"):
        batch.run(planned)
    assert (cohort.out / batch.FILE).read_bytes() == before


def test_the_command_line_ends_with_1_and_names_the_sample(books, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "folder", lambda: books)
    path = table(tmp_path, "sample,MODE\ngood,good\nodd,bad\n")
    words = ["batch", str(path), "--notebook", "01", "--out", str(tmp_path / "out"), "-p", "SIZE", "7"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "1 of 2 samples complete" in said.out and "failed: odd" in said.err
    assert (tmp_path / "out" / "good" / "n.txt").read_text() == "7.0"
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "odd" in capsys.readouterr().out
    assert main([*words, "--engine", "cloud"]) == 2 and "one of pool" in capsys.readouterr().err
    assert main([*words, "--chunk", "0"]) == 2 and "--chunk 0" in capsys.readouterr().err


def test_a_killed_caretaker_costs_its_sample_and_no_other(books, tmp_path):
    planned = batch.plan(table(tmp_path, "sample,MODE\na,wrapper\nb,good\n"), "01", out=tmp_path / "out", where=books)
    first = batch.run(planned, workers=2)
    assert [outcome.kind for outcome in first] == ["not finished", "complete"]
    assert not (tmp_path / "out" / "a" / "results.json").exists() and not list((tmp_path / "out").glob(".attempt-*"))


# ---------------------------------------------------------------- what a cluster is told
@pytest.fixture
def sent(books, tmp_path):
    """A plan of three samples in two chunks, as a job of a cluster reads it: one raises, one is killed once."""
    rows = "sample,SIZE,MODE\na,1,good\nb,2,bad\nc,3,memory\n"
    planned = batch.plan(table(tmp_path, rows), "01", out=tmp_path / "the out", where=books)
    home = planned.folder / "cluster"
    plan = batch_engine.write_plan(planned.jobs, home, chunk=2)
    env = {**os.environ, "COURSE_TRIED": str(tmp_path / "tried"), "OMP_NUM_THREADS": "64", "SLURM_CPUS_PER_TASK": "1"}

    def errand(number):
        words = [sys.executable, "-m", "helpers", "batch-chunk", str(home / "plan.json"), str(number)]
        return subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)

    return types.SimpleNamespace(planned=planned, home=home, plan=plan, errand=errand, out=planned.folder)


def test_a_job_is_tried_again_only_where_memory_was_short_and_redoes_nothing(sent):
    assert sent.plan["chunks"] == [["a", "b"], ["c"]]
    first = sent.errand(0)
    assert first.returncode == 0 and "b: cell failed" in first.stdout and (sent.home / "done" / "0").exists()
    assert sent.errand(1).returncode == 1 and not (sent.home / "done" / "1").exists()
    before = {path: path.stat().st_mtime_ns for path in sent.out.glob("[ab]/run.json")}
    assert sent.errand(1).returncode == 0 and (sent.out / "c" / "n.txt").read_text() == "3.0"
    assert sent.errand(0).stdout == "" and before == {path: path.stat().st_mtime_ns for path in before}
    known = sent.plan["before"]
    kinds = [batch_engine.ended(job.folder, known[job.label])[1].kind for job in sent.planned.jobs]
    assert kinds == ["complete", "cell failed", "complete"]
    when = (sent.out / "a" / "run.json").stat().st_mtime_ns
    assert batch_engine.ended(sent.out / "a", when) is None  # what ended before a run is no news of it
    assert not list(sent.home.glob("now/*")) and not list(sent.out.glob(".attempt-*"))


def test_a_job_uses_the_cores_it_was_given():
    environ = {"OMP_NUM_THREADS": "64", "NUMBA_NUM_THREADS": "x", "SLURM_CPUS_PER_TASK": "1"}
    batch_engine._fit_threads(environ)
    assert environ == {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "x", "SLURM_CPUS_PER_TASK": "1"}


def test_a_job_asks_for_what_the_finished_samples_needed():
    book = types.SimpleNamespace(budget_seconds=60.0, budget_mb=3000.0)
    unknown = batch_engine.budget(book, 100, jobs=10)
    assert unknown == {"chunk": 5, "memory_mb": 4300, "minutes": 3 + 20}
    known = batch_engine.budget(book, 100, seconds=(10, 30), peak_mb=(400, 1000), jobs=10)
    assert known == {"chunk": 10, "memory_mb": 1900, "minutes": 3 + 10}
    assert batch_engine.budget(book, 4, seconds=(10, 30), jobs=10)["chunk"] == 1  # jobs do not stand idle
    assert batch_engine.budget(book, 4, seconds=(3600, 4000), jobs=1)["chunk"] == 1
    asked = batch_engine.Request(chunk=3, memory_mb=100, minutes=7)
    assert batch_engine.budget(book, 100, seconds=(10, 30), request=asked) == {
        "chunk": 3, "memory_mb": 100, "minutes": 7,
    }  # fmt: skip
    with pytest.raises(CourseError, match="--minutes 0"):
        batch_engine.Request(minutes=0)
    with pytest.raises(CourseError, match="--partition"):
        batch_engine.Request(partition='a"; import os')


def test_status_says_what_to_ask_for(cohort, capsys):
    asked = batch.status(cohort.out)["request"]
    assert asked["chunk"] == 1 and asked["minutes"] >= 4 and asked["memory_mb"] >= batch_engine.ROOM_MB
    assert main(["status", str(cohort.out)]) == 0
    assert f"on a cluster: 1 a job, with {asked['memory_mb']} MB" in capsys.readouterr().out


def test_the_snakefile_has_one_shell_line_and_one_output(sent):
    request = batch_engine.Request(partition="long", account="lab", retries=2, cpus=4)
    told = {"chunk": 2, "memory_mb": 900, "minutes": 8}
    text = batch_engine_files.snakefile(sent.home, chunks=2, budget=told, request=request)
    assert text.count("shell:") == 1 and text.count("output:") == 1 and "helpers batch-chunk" in text
    assert 'slurm_partition="long"' in text and 'slurm_account="lab"' in text and '"--no-requeue"' in text
    assert "MEMORY_MB = 900" in text and "MEMORY_MB * attempt" in text and "retries: 2" in text and "threads: 4" in text
    profile = batch_engine_files.slurm_profile(sent.home, jobs=7, poll=40, token="course-0")
    assert 'slurm-status-command: "squeue"' in profile and "jobs: 7" in profile and "keep-going: true" in profile


def test_the_examples_in_the_docs_are_what_is_written(monkeypatch):
    docs = Path(batch.__file__).parents[1] / "docs" / "examples"
    home = Path("runs/batch/samples-04/cluster")
    monkeypatch.setattr(batch_engine_files.sys, "executable", ".venv/bin/python")
    request = batch_engine.Request(partition="short", account="lab_x")
    told = {"chunk": 5, "memory_mb": 2100, "minutes": 12}
    wanted = {
        "slurm/Snakefile": batch_engine_files.snakefile(home, chunks=20, budget=told, request=request),
        "slurm/config.yaml": batch_engine_files.slurm_profile(home, jobs=50, poll=40, token="course-0123456789ab"),
        "kubernetes/config.yaml": batch_engine_files.kubernetes_profile(
            jobs=50, image="IMAGE", claim="CLAIM", mount="/course"
        ),
    }
    assert {name: (docs / name).read_text() for name in wanted} == wanted


def test_the_tried_releases_are_those_the_project_declares():
    text = (Path(batch.__file__).parents[1] / "pyproject.toml").read_text()
    for name, release in batch_engine_slurm.PINS.items():
        assert f'"{name}=={release}"' in text


def test_the_queue_is_read_and_hopeless_jobs_are_known(tmp_path, monkeypatch):
    lines = "1|course-x_1|PENDING|PartitionTimeLimit||rule_chunk_wildcards_0\n2|other|RUNNING|None|n1|\n"
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\nprintf '%s' '{lines}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    jobs = batch_engine_queue.queue("course-x")
    assert list(jobs) == ["1"] and "PartitionTimeLimit" in batch_engine_queue.hopeless(jobs)
    assert not batch_engine_queue.hopeless({}) and not batch_engine_queue.hopeless(None)
    assert not batch_engine_queue.hopeless({**jobs, "3": ("RUNNING", "None", "n1", "")})
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert batch_engine_queue.queue("course-x") is None  # no answer is not an empty queue


def test_without_slurm_or_snakemake_the_fix_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(batch_engine_slurm.metadata, "version", lambda name: batch_engine_slurm.PINS.get(name, "9"))
    with pytest.raises(CourseError, match="no sbatch, squeue, scancel.*--engine pool"):
        batch_engine_slurm.check()
    monkeypatch.setattr(batch_engine_slurm.metadata, "version", lambda name: "2.2.0")
    with pytest.raises(CourseError, match=r"2\.2\.0.*helpers\[cluster\]"):
        batch_engine_slurm.check()

    def absent(name):
        raise batch_engine_slurm.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(batch_engine_slurm.metadata, "version", absent)
    with pytest.raises(CourseError, match="no snakemake"):
        batch_engine_slurm.check()
    with pytest.raises(CourseError, match="quotes"):
        batch_engine.refuse_folder(tmp_path / "a$b")


def test_kubernetes_is_a_dry_run_and_says_so(books, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "folder", lambda: books)
    path = table(tmp_path, "sample,MODE\n" + "".join(f"s{n},good\n" for n in range(5)))
    words = ["batch", str(path), "--notebook", "01", "--out", str(tmp_path / "out"), "--engine", "kubernetes"]
    assert main([*words, "--chunk", "2"]) == 0
    said = capsys.readouterr()
    assert "5 samples in 3 jobs" in said.out and "never run on Kubernetes" in said.err
    assert not list((tmp_path / "out").glob("s*")) and (tmp_path / "out" / "cluster" / "kubernetes").is_dir()

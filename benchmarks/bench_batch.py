"""Batch: short notebooks by the pool, against papermill alone; seconds of processor, those of all processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COUNT = {"pool": 50, "bare": 12, "each": 4}
"""Notebooks of each way."""
WORK_S = (0.1,)
"""Seconds of processor that a notebook works itself. ``COURSE_BENCH_BATCH=2,10`` measures these too: minutes."""
GOAL = 0.15
"""Share by which the pool may exceed the bare kernel time."""
CELLS = (
    'SEED = 0\nOUT = ""\nTRAP = ""',
    'from helpers import runner\nrun = runner.start("01", globals())',
    "import time\nbegan = time.process_time()\nwhile time.process_time() - began < {work}:\n    pass",
    "run.finish()",
)
BARE = """
import json, resource, sys
import papermill
def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
book, out, first, count = json.loads(sys.argv[1])
began = used()
for n in range(first, first + count):
    papermill.execute_notebook(book, f"{out}/{n}.ipynb", parameters={"SEED": n, "OUT": f"{out}/{n}"},
                               kernel_name="python3", progress_bar=False)
print(used() - began)
"""
POOL = """
import sys
from pathlib import Path
from helpers import batch
table, out, where = map(Path, sys.argv[1:])
outcomes = batch.run(batch.plan(table, "01", out=out, where=where), workers=2)
assert all(outcome.good for outcome in outcomes)
"""


def _children() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _python(code: str, home: Path, *words) -> str:
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _notebook(home: Path, work: float) -> Path:
    """Write a notebook that works so many seconds of processor."""
    import nbformat

    form = nbformat.v4
    cells = [form.new_code_cell(source.format(work=work)) for source in CELLS]
    cells[0].metadata.tags = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = form.new_notebook(cells=cells, metadata={"kernelspec": kernel, "course": {"number": "01", "title": "Short"}})
    home.mkdir()
    nbformat.write(book, home / "01_short.ipynb")
    return home / "01_short.ipynb"


def _costs(work: float) -> dict:
    """Return seconds of processor a notebook by each way."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        book = _notebook(home / "notebooks", work)
        rows = "".join(f"s{n},{n}\n" for n in range(COUNT["pool"]))
        (home / "samples.csv").write_text(f"sample,SEED\n{rows}")

        def bare(first, count):
            return float(_python(BARE, book.parent, json.dumps([str(book), folder, first, count])))

        half = COUNT["bare"] // 2
        costs = {"bare": bare(0, half)}  # half before and half after, should the machine change its pace
        began = _children()
        _python(POOL, book.parent, home / "samples.csv", home / "out", book.parent)
        costs["pool"] = (_children() - began) / COUNT["pool"]
        costs["bare"] = (costs["bare"] + bare(half, half)) / (2 * half)
        began = _children()
        with ThreadPoolExecutor(2) as two:
            list(two.map(lambda n: bare(100 + n, 1), range(COUNT["each"])))
        costs["each"] = (_children() - began) / COUNT["each"]
    return costs


def run() -> list[dict]:
    """Measure; *bare kernel time* is what papermill and the kernel use, in one process that has loaded papermill."""
    table = []
    for work in [*WORK_S, *(float(word) for word in os.environ.get("COURSE_BENCH_BATCH", "").split(",") if word)]:
        cost = _costs(work)
        beside = cost["pool"] - cost["bare"]
        least = max(0.0, beside / GOAL - (cost["bare"] - work))
        for other, words in (("bare", f"the bare kernel time; {beside:+.3f} s a notebook, so within {GOAL:.0%} from "
                                      f"{least:.1f} s of own work on"),
                             ("each", "papermill in a process for each notebook, two at a time")):  # fmt: skip
            table.append({"name": f"{COUNT['pool']} notebooks of {work:g} s by the pool, a notebook",
                          "ours": cost["pool"], "other": cost[other], "ratio": cost[other] / cost["pool"],
                          "unit": "CPU s", "note": f"other: {words}"})  # fmt: skip
    return table

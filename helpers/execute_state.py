"""Caretaker: what a result was made from (its fingerprint), and how a notebook ended (its outcome)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from helpers import notebook as notebooks
from helpers import settings

GOOD = "complete"
MISSING = "promised product missing"
"""How :meth:`helpers.runner.Run.finish` begins its complaint."""
_ARROW = re.compile(r"^-+> (\d+) (.*)$", re.M)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    """How one notebook ended.

    ``kind`` is one of ``complete``, ``verdict failed``, ``cell failed``, ``kernel died``, ``timed out``,
    ``missing product``, ``not finished`` (``run.finish()`` was not reached) and ``not written`` (disk full).
    """

    notebook: str
    kind: str
    reason: str = ""
    cell: int | None = None
    seconds: float = 0.0
    fingerprint: str = ""
    skipped: bool = False

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.kind == GOOD


# ---------------------------------------------------------------- what a result depends on
def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _contents(paths) -> list:
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(paths) if path.is_file()]


def data_print(value: str) -> list:
    """Return what identifies the data behind ``DATA``: names, sizes and times of files, or the generator's name."""
    from helpers import catalogue

    known = {item.id: item for item in catalogue.datasets()}
    if value in known and known[value].kind == "generated":
        return ["generated", value]  # the generator's code is part of the helpers
    _, where, _ = catalogue.resolve(value)
    files = sorted(path for path in Path(where).rglob("*") if path.is_file())
    return [(str(path.relative_to(where)), *_stamp(path)) for path in files]


def files_print(value) -> list:
    """Return names, sizes and times of the files and folders that a parameter's value names by a path.

    Each part of a comma-separated list counts, also behind a platform (``st:/slides``) and before a set's name
    (``/lists/sets.gmt:A SET``).
    """
    found = []
    for part in (part.strip() for part in str(value).split(",") if "/" in part):
        named = (os.path.expanduser(path) for path in (part, part.partition(":")[2], part.rpartition(":")[0]))
        for path in (Path(path) for path in named if "/" in path and os.path.exists(path)):
            inside = [path] if path.is_file() else sorted(path.rglob("*"))
            found += [(str(file), *_stamp(file)) for file in inside if file.is_file()]
            break
    return found


def _stamp(path: Path) -> tuple:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def code_print(root: Path | None = None) -> list:
    """Return what identifies the course's own part in a result: helpers, small tables and the lock."""
    root = root or settings.ROOT
    code = [*(root / "helpers").rglob("*.py"), *(root / "helpers").glob("*.mplstyle"), root / "requirements.lock"]
    return [_contents(code), _contents((root / "data").glob("*"))]


def fingerprint(notebook: notebooks.Notebook, parameters: dict, known: dict | None = None) -> str:
    """Return a hash of all that a result depends on: cells, parameters and files they name, helpers, lock, data.

    Files are read once for many results if they share a dictionary ``known``.
    """
    known = {} if known is None else known
    own = {name: value for name, value in parameters.items() if name != "OUT"}
    code = known["code"] = known.get("code") or code_print()
    data = []
    if "DATA" in parameters:
        key = ("data", parameters["DATA"])
        data = known[key] = known[key] if key in known else data_print(parameters["DATA"])
    declared = (notebook.promises, notebook.promises_unless, notebook.graded_checks)
    files = []
    for name, value in own.items():
        if name != "DATA" and isinstance(value, str) and "/" in value:
            key = ("files", value)
            known[key] = known[key] if key in known else files_print(value)
            files.append((name, known[key]))
    return _digest(notebook.cells, declared, own, files, code, data)


# ---------------------------------------------------------------- judging
def judge(folder: Path, notebook: notebooks.Notebook) -> Outcome:
    """Tell from what lies in a folder how a notebook ended."""
    name = notebook.name
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        products = dict(results["products"].items())
        failed = [item["name"] for item in results["verdicts"] if not item["pass"]]
        promised = notebook.promised(results.get("parameters") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or of another version's form
        return _failure(folder, name)
    gone = [item for item in promised if item not in products]
    gone += [item for item, file in products.items() if not (folder / file).exists()]
    if gone:
        return Outcome(name, "missing product", ", ".join(gone))
    if failed:
        return Outcome(name, "verdict failed", ", ".join(failed))
    return Outcome(name, GOOD)


def _failure(folder: Path, name: str) -> Outcome:
    log = folder / "run.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    try:
        cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return Outcome(name, "not finished", f"the notebook did not start: {lines[-1] if lines else 'no message'}")
    started = number = 0
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        number += "injected-parameters" not in cell["metadata"].get("tags", [])  # as the notebook was given
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                return _error(name, number, output)
        # papermill calls all cells of a killed notebook completed, but only those that began have a start time
        started = number if cell["metadata"].get("papermill", {}).get("start_time") else started
    if any("DeadKernelError" in line or "Kernel died before" in line for line in lines):
        return Outcome(name, "kernel died", "killed from outside, most often for want of memory", started)
    return Outcome(name, "not finished", "run.finish() was not reached")


def _error(name: str, number: int, output: dict) -> Outcome:
    value = _ANSI.sub("", output["evalue"]).strip()
    text = value if output["ename"] == "CourseError" else f"{output['ename']}: {value}"
    arrow = _ARROW.search(_ANSI.sub("", "\n".join(output["traceback"])))
    if arrow:
        text = f"line {arrow[1]}, {arrow[2].strip()}: {text}"
    return Outcome(name, "missing product" if MISSING in value else "cell failed", text, number)

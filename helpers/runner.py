"""Caretaker: what a notebook calls. It opens the run, hands out sections, keeps what is made, grades and closes.

``results.json`` is the marker of completion: it is removed when a run starts and written last, by :meth:`Run.finish`.
"""

from __future__ import annotations

import base64
import html
import inspect
import json
import math
import os
import platform
import re
import shutil
import time
from importlib import metadata
from pathlib import Path

from helpers import grade as examiner
from helpers import notebook as notebooks
from helpers import settings
from helpers.messages import CourseError, note, say
from helpers.runner_data import Data
from helpers.runner_watch import Watch

DPI = 110
PACKAGES = (
    "anndata keras matplotlib numpy opencv-python pandas scanpy scikit-learn scipy spatialdata squidpy tensorflow"
).split()
_SAFE = re.compile(r"[A-Za-z0-9][\w.-]*")


def start(number: str, namespace: dict) -> Run:
    """Open a run: check the parameters, open the output folder, start the clock.

    Parameters
    ----------
    number
        The notebook's number, ``"01"``.
    namespace
        The notebook's ``globals()``; its upper-case names are the parameters.

    Raises
    ------
    CourseError
        An unknown parameter, a wrong type or a value out of range; nothing has been written then.
    """
    here = Path.cwd()
    where = here if any(path.name.startswith(number) for path in notebooks.numbered(here)) else None
    declared = notebooks.load(notebooks.find(number, where))
    literals = (bool, int, float, str, list, tuple, dict, type(None))
    given = {
        name: value
        for name, value in namespace.items()
        if name.isupper() and not name.startswith("_") and isinstance(value, literals)
    }
    parameters = notebooks.check_parameters(declared, given)
    if parameters.get("TRAIN") or parameters.get("TEST"):
        _ = Data(parameters).sections  # a wrong section is refused now, not in the middle of the notebook
    return Run(declared, parameters)


class Run(Data):
    """One execution of one notebook; made by :func:`start`."""

    def __init__(self, declared: notebooks.Notebook, parameters: dict):
        super().__init__(parameters)
        self._began, self._memory = time.perf_counter(), Watch()
        self.notebook = declared
        out = parameters.get("OUT", "")
        self.out = Path(out).expanduser().resolve() if out else settings.runs_dir() / "latest" / declared.name
        if self.out.is_relative_to(settings.data_dir()):
            raise CourseError("OUT inside the data", "a folder of its own", "choose another OUT", file=self.out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "results.json").unlink(missing_ok=True)
        except OSError as problem:
            seen = f"an output folder that cannot be written ({problem.strerror})"
            raise CourseError(seen, "one that can", "choose another OUT", file=self.out) from problem
        for draft in self.out.rglob(".draft-*"):  # left by a process that was killed while it wrote
            shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
        self._verdicts, self._metrics, self._products, self._figures = {}, {}, {}, {}

    # ------------------------------------------------------------ what is made
    def figure(self, fig, name: str, *, alt: str):
        """Save a figure as ``figures/<name>.png`` with its alternative text, and return it for display."""
        import matplotlib.pyplot as plt

        if not alt.strip():
            raise CourseError("a figure without alt text", "one sentence saying what it shows", "give alt='...'")
        path = self._write(
            f"figures/{name}.png", lambda draft: fig.savefig(draft, format="png", dpi=DPI, bbox_inches="tight")
        )
        self._figures[name] = {"file": f"figures/{name}.png", "alt": alt}
        plt.close(fig)  # else Jupyter would show it twice
        shown = {"image/png": base64.b64encode(path.read_bytes()).decode(), "text/plain": alt}
        fig._repr_mimebundle_ = lambda **_: (shown, {"image/png": {"alt": alt}})  # the saved picture, with its alt text
        return fig

    def table(self, frame, name: str):
        """Save a data frame as the product ``<name>.csv``, and return it for display."""
        named = type(frame.index).__name__ != "RangeIndex"
        self.product(name, lambda path: frame.to_csv(path, index=named), file=f"{name}.csv")
        return frame

    def product(self, name: str, source, *, file: str | None = None) -> Path:
        """Keep a product: ``source`` is a function that writes to the path it is given, or a path inside ``out``.

        A function writes to a temporary name, which replaces the old file only when it is whole.

        Parameters
        ----------
        file
            File (or folder) name of the product, e.g. ``counts.h5ad``; needed with a function.
        """
        if callable(source):
            if not file:
                raise CourseError(f"no file name for {name!r}", "e.g. file='counts.h5ad'", "give file=...")
            path = self._write(file, source)
        else:
            path = Path(source).resolve()
            if not path.is_relative_to(self.out) or not _has_content(path):
                raise CourseError(
                    f"no such product {name!r}", f"a non-empty file inside {self.out}", "write it first", file=path
                )
        self._products[name] = path.relative_to(self.out).as_posix()
        return path

    def _write(self, file: str, writer) -> Path:
        if not all(_SAFE.fullmatch(part) for part in file.split("/")):
            raise CourseError(f"a file name {file!r}", "letters, digits, dot, minus, underscore", "rename it")
        final = self.out / file
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.with_name(f".draft-{os.getpid()}-{final.name}")
        try:
            writer(draft)
            if not _has_content(draft):
                raise CourseError(f"nothing written for {file!r}", "content", "mend the function that writes it")
            if final.is_dir():  # a store such as section.zarr: moved away first, so that half of it never stands here
                os.replace(final, draft.with_name(draft.name + "-old"))
            os.replace(draft, final)
        except OSError as problem:
            raise CourseError(
                f"{problem.strerror or problem}", "room and rights to write", "free some disk, or choose another OUT",
                file=final,
            ) from problem
        finally:
            shutil.rmtree(draft.with_name(draft.name + "-old"), ignore_errors=True)
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        return final

    def metric(self, name: str, value) -> None:
        """Keep a number that is not graded."""
        value = _plain(value)
        self._metrics[name] = None if isinstance(value, float) and not math.isfinite(value) else value

    def grade(self, name: str, value) -> bool:
        """Grade a number against ``data/thresholds.csv``: one line to stdout, the number to stderr."""
        verdict = examiner.verdict(self.notebook.number, name, _plain(value))
        self._verdicts[name] = verdict.record()
        say(verdict.line)
        note(f"  measured {verdict.value:.6g} {verdict.threshold.unit}".rstrip())
        return verdict.passed

    # ------------------------------------------------------------ closing
    def finish(self) -> None:
        """Check that every promised product exists, then write ``results.json``, last and in one step."""
        promised = self.notebook.promised(self.parameters)
        missing = [name for name in promised if name not in self._products]
        missing += [name for name, file in self._products.items() if not _has_content(self.out / file)]
        if missing:
            raise CourseError(
                f"promised product missing: {', '.join(missing)}",
                f"{', '.join(promised)} in {self.out.name}",
                "run every cell, in order",
                file=self.notebook.path.name,
            )
        declared = self.notebook.graded_checks
        as_declared = {**self.parameters, "OUT": ""} == self.notebook.parameters
        if as_declared and declared is not None and len(self._verdicts) != declared:
            raise CourseError(
                f"{len(self._verdicts)} verdicts", f"the {declared} the notebook declares", "run the grade cell"
            )
        seconds, peak = time.perf_counter() - self._began, self._memory.peak_mb
        passed = sum(item["pass"] for item in self._verdicts.values())
        results = {
            "notebook": self.notebook.number,
            "slug": self.notebook.slug,
            "title": self.notebook.title,
            "status": "complete",
            "data": self.parameters.get("DATA", ""),
            "trap": self.trap,
            "parameters": self.parameters,
            "seconds": round(seconds, 1),
            "budget_seconds": self.notebook.budget_seconds,
            "peak_mb": round(peak),
            "budget_mb": self.notebook.budget_mb,
            "versions": versions(),
            "verdicts": list(self._verdicts.values()),
            "metrics": self._metrics,
            "products": self._products,
            "figures": [{"name": name, **item} for name, item in self._figures.items()],
        }
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False, default=str)
        self._write("results.json", lambda path: path.write_text(text, encoding="utf-8"))
        say(f"notebook {self.notebook.number} complete: {passed} of {len(self._verdicts)} verdicts pass")
        note(f"{seconds:.1f} of {self.notebook.budget_seconds:g} s, {peak:.0f} of {self.notebook.budget_mb:g} MB")


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(item.is_file() and item.stat().st_size for item in path.rglob("*"))
    return path.is_file() and path.stat().st_size > 0


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    return value


def versions() -> dict:
    """Return the versions of Python and of the packages results depend on, without importing them."""
    found = {"python": platform.python_version(), "helpers": metadata.version("helpers")}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def show(function) -> None:
    """Show the source of a helper in a folded cell: thin, never hidden."""
    from IPython.display import display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    where = f"{function.__module__}.{function.__qualname__}"
    code = highlight(inspect.getsource(function), PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))
    page = f"<details><summary>source of <code>{html.escape(where)}</code></summary>{code}</details>"
    display({"text/html": page, "text/plain": f"source of {where}"}, raw=True)

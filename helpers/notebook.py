"""Customs: what a notebook file declares (number, promises, budget, parameters), and refusing wrong parameters.

Only the standard library is used, so that deciding that nothing has to be done stays quick.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

from helpers import settings
from helpers.messages import CourseError

CHOICES = {"PROFILE": list(settings.PROFILES), "TRAP": ["", *settings.TRAPS]}
"""Values allowed in every notebook; a notebook adds its own under ``course.ranges`` in its metadata."""
SEED_MAX = 2**31 - 1
_FILE = re.compile(r"(\d\d)_(\w+)\.ipynb")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Notebook:
    """What one notebook declares about itself.

    Attributes
    ----------
    promises
        Products that every run makes.
    promises_unless
        Parameter name to those of the promises that do not hold where the parameter is set.
    ranges
        Parameter name to ``[low, high]`` (two numbers) or to the list of allowed values.
    files
        Parameters that, where set, name a file.
    parameters
        Name to default, in the order of the cell tagged ``parameters``.
    """

    path: Path
    number: str
    slug: str
    title: str
    promises: tuple = ()
    promises_unless: dict = field(default_factory=dict)
    budget_seconds: float = 60.0
    budget_mb: float = 3000.0
    graded_checks: int | None = None
    needs: dict = field(default_factory=dict)
    ranges: dict = field(default_factory=dict)
    files: tuple = ()
    parameters: dict = field(default_factory=dict)
    cells: tuple = ()

    @property
    def name(self) -> str:
        """Folder name of its outputs, e.g. ``01_data_integration``."""
        return f"{self.number}_{self.slug}"

    def promised(self, parameters: dict) -> list[str]:
        """Products that a run with these parameters has to make."""
        spared = {item for name, items in self.promises_unless.items() if parameters.get(name) for item in items}
        return [item for item in self.promises if item not in spared]

    @property
    def missing_packages(self) -> list[str]:
        """Packages of ``course.needs`` that are not installed: those of the light set-up lack the heavy ones."""
        return [name for name in self.needs.get("packages", ()) if not util.find_spec(name)]


def folder() -> Path:
    """Return the folder of the course's notebooks."""
    return settings.ROOT / "notebooks"


def numbered(where: Path | None = None) -> list[Path]:
    """Return the notebooks ``NN_name.ipynb`` of a folder in the order of their numbers."""
    where = Path(where or folder())
    return sorted(path for path in where.glob("*.ipynb") if _FILE.fullmatch(path.name))


def find(number: str, where: Path | None = None) -> Path:
    """Return the notebook with a number (``"1"``, ``"01"`` or ``"01_slug"``)."""
    paths = numbered(where)
    wanted = str(number).removesuffix(".ipynb")
    wanted = wanted.zfill(2) if wanted.isdigit() else wanted
    for path in paths:
        if wanted in (path.name[:2], path.stem):
            return path
    names = ", ".join(path.stem for path in paths) or "none at all"
    raise CourseError(f"no notebook {number!r}", f"one of {names}", "correct the number", file=where or folder())


def load(path: Path) -> Notebook:
    """Read what a notebook declares, without running or importing anything.

    Raises
    ------
    CourseError
        Broken JSON, a file name that is not ``NN_name.ipynb``, or a parameters cell that holds more than
        ``NAME = literal`` lines.
    """
    path = Path(path)
    match = _FILE.fullmatch(path.name)
    if not match:
        raise CourseError(f"a notebook named {path.name}", "NN_name.ipynb, e.g. 01_data.ipynb", "rename it", file=path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells, metadata = content["cells"], content.get("metadata", {})
    except (ValueError, KeyError) as problem:
        raise CourseError(f"{problem}", "a notebook of format 4", "restore it from git", file=path) from None
    course = metadata.get("course", {})
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    return Notebook(
        path=path,
        number=match[1],
        slug=match[2],
        title=course.get("title", match[2].replace("_", " ")),
        promises=tuple(course.get("promises", ())),
        promises_unless=course.get("promises_unless", {}),
        budget_seconds=float(course.get("budget_seconds", 60)),
        budget_mb=float(course.get("budget_mb", 3000)),
        graded_checks=course.get("graded_checks"),
        needs=course.get("needs", {}),
        ranges=course.get("ranges", {}),
        files=tuple(course.get("files", ())),
        parameters=_defaults("".join(tagged[0]["source"]), path) if tagged else {},
        cells=tuple((cell["cell_type"], "".join(cell["source"]), _tags(cell)) for cell in cells),
    )


def _tags(cell) -> tuple:
    return tuple(cell.get("metadata", {}).get("tags", ()))


def _defaults(source: str, path: Path) -> dict:
    values = {}
    try:
        for line in ast.parse(source).body:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                continue  # a docstring
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            values[target.id] = ast.literal_eval(line.value)
    except (SyntaxError, ValueError, AttributeError) as problem:
        raise CourseError(
            f"a parameters cell that cannot be read ({problem})",
            "lines such as SEED = 0  # comment",
            "move everything else to the next cell",
            file=path,
        ) from None
    return values


# ---------------------------------------------------------------- checking what was asked for
def check_parameters(notebook: Notebook, given: dict, *, text: bool = False) -> dict:
    """Return all parameters of a run: the defaults overlaid with ``given``, each checked.

    Parameters
    ----------
    given
        Name to value.
    text
        The values are words of a command line and are converted to the type of the default.

    Raises
    ------
    CourseError
        Unknown name (with the nearest known one), wrong type, a value out of range, or a file that is not there.
    """
    values = dict(notebook.parameters)
    for name, value in given.items():
        if name not in values:
            near = difflib.get_close_matches(name.upper(), values, n=1, cutoff=0.5)
            raise CourseError(
                f"a parameter {name!r}",
                f"one of {', '.join(values)}",
                f"did you mean {near[0]}?" if near else "correct the name",
                file=notebook.path.name,
            )
        default = values[name]
        values[name] = _from_text(name, value, default, notebook) if text else _typed(name, value, default, notebook)
    for name, value in values.items():
        _in_range(name, value, notebook)
    for name in notebook.files:
        if values.get(name) and not Path(values[name]).expanduser().is_file():
            raise CourseError(f"{name} = {values[name]!r}, no such file", "a file", "correct the path",
                              file=notebook.path.name)  # fmt: skip
    return values


def _wrong_type(name, value, default, notebook):
    kind = type(default).__name__
    return CourseError(
        f"{name} = {value!r} ({type(value).__name__})",
        f"{name} of type {kind}, e.g. {default!r}",
        f"give a value of type {kind}",
        file=notebook.path.name,
    )


def _typed(name, value, default, notebook):
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        raise _wrong_type(name, value, default, notebook)
    return value


def _from_text(name, word, default, notebook):
    try:
        if isinstance(default, bool):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[word.lower()]
        if isinstance(default, (int, float)):
            return type(default)(word)
        if default is None or isinstance(default, (list, tuple, dict)):
            return _typed(name, ast.literal_eval(word), default, notebook)
    except (KeyError, ValueError, SyntaxError):
        raise _wrong_type(name, word, default, notebook) from None
    return word


def _in_range(name, value, notebook) -> None:
    allowed = notebook.ranges.get(name, CHOICES.get(name))
    if name == "SEED":
        allowed = allowed or [0, SEED_MAX]
    if not allowed:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and len(allowed) == 2:
        low, high = allowed
        if not low <= value <= high:
            raise CourseError(
                f"{name} = {value!r}", f"{low} to {high}", f"choose {name} in that range", file=notebook.path.name
            )
    elif value not in allowed:
        near = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1, cutoff=0.5)
        raise CourseError(
            f"{name} = {value!r}",
            f"one of {', '.join(repr(item) for item in allowed)}",
            f"did you mean {near[0]!r}?" if near and near[0] else f"choose one of them for {name}",
            file=notebook.path.name,
        )


def from_here(value: str, here: Path | None = None) -> str:
    """Return a parameter's value with relative paths made absolute, because a notebook runs in its own folder.

    Only what exists as seen from ``here`` (the working directory) changes: each part of a comma-separated list, behind
    a platform (``st:../slides``), and before a set's name (``lists/sets.gmt:A SET``). Names without a slash stay.
    """
    here, parts = here or Path.cwd(), []
    for part in value.split(","):
        platform = re.match(r"\s*(?:[a-z_]+:(?!//))?", part).group()
        rest, end = part[len(platform) :], ""
        if "/" in rest and not (here / rest).exists() and ":" in rest:
            rest, colon, name = rest.rpartition(":")
            end = colon + name
        known = "/" in rest and not rest.startswith(("/", "~")) and (here / rest).exists()
        parts.append(platform + (str((here / rest).resolve()) if known else rest) + end)
    return ",".join(parts)

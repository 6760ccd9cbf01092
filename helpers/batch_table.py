"""The table of a batch: one row a sample, one column a parameter, all of it checked before anything runs."""

from __future__ import annotations

import csv
import difflib
import io
import re
from dataclasses import dataclass
from pathlib import Path

from helpers import notebook as notebooks
from helpers.messages import CourseError

ID, PATIENT = "sample", "patient"
"""The column that names a row, and the one that says whose it is; all others are parameters of the notebook."""
SHOWN = 12
"""Problems listed in one complaint."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = {"index.html", "cohort.csv", "cohort.parquet", "batch.json", "cluster"}


@dataclass(frozen=True)
class Row:
    """One sample: its name, the patient it is of (the sample's own name if not told), and what its row sets."""

    sample: str
    patient: str
    given: dict
    line: int


def read(path: Path, notebook: notebooks.Notebook, *, common: dict | None = None) -> list[Row]:
    """Read a table of samples; every row is checked before the first complaint.

    Parameters
    ----------
    path
        CSV in UTF-8: a column ``sample``, if known ``patient``, and any parameters of the notebook. An empty cell
        leaves the default.
    notebook
        Whose parameters they are.
    common
        Parameters of all rows, as words; a cell of the table goes before them.

    Raises
    ------
    CourseError
        Not a table, an unknown column, and then all wrong rows in one message: a name that cannot be a folder or
        stands twice, a value of the wrong type or out of range.
    """
    path = Path(path)
    header, lines = _table(path)
    _check_header(header, notebook, path)
    here = path.resolve().parent
    problems, rows, seen = [], [], {}
    for line, cells in lines:
        try:
            if len(cells) != len(header):
                raise CourseError(f"{len(cells)} cells", f"{len(header)}, as in the header", "mend the commas")
            cells = {name: cell.strip() for name, cell in zip(header, cells)}
            sample = _name(cells[ID])
            if sample.lower() in seen:
                raise CourseError(f"sample {sample!r} again", "each name once", f"see line {seen[sample.lower()]}")
            seen[sample.lower()] = line
            own = {name: notebooks.from_here(cell, here) for name, cell in cells.items()
                   if cell and name not in (ID, PATIENT)}  # fmt: skip
            given = {**(common or {}), **own}
            notebooks.check_parameters(notebook, given, text=True)
            rows.append(Row(sample, cells.get(PATIENT) or sample, given, line))
        except CourseError as problem:
            problems.append((line, problem))
    refuse(problems, path)
    if not rows:
        raise CourseError("a header and no rows", "one row a sample", "add samples", file=path)
    return rows


def refuse(problems, path) -> None:
    """Raise one complaint about all wrong rows, if there are any: ``(line, CourseError)`` each."""
    if not problems:
        return
    told = [f"line {line}: {problem.seen}; expected {problem.expected}" for line, problem in problems[:SHOWN]]
    more = len(problems) - len(told)
    seen = f"{len(problems)} rows that cannot run\n  " + "\n  ".join(told) + (f"\n  and {more} more" if more else "")
    raise CourseError(seen, "rows that can all run", "mend these rows; nothing was started", file=path)


def _table(path: Path) -> tuple[list, list]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        seen = problem.strerror or str(problem)
        raise CourseError(seen, "a table of samples", "correct the path", file=path) from None
    except UnicodeDecodeError:
        raise CourseError("a file that is not UTF-8", "CSV in UTF-8", "save it as CSV UTF-8", file=path) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as problem:
        raise CourseError(f"a table that breaks off ({problem})", "CSV", "mend the quotes", file=path) from None
    if not lines:
        raise CourseError("an empty table", f"a header with {ID} and rows", "write one", file=path)
    return [name.strip() for name in lines[0][1]], lines[1:]


def _check_header(header, notebook, path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CourseError(f"column {twice[0]!r} twice", "each column once", "delete one", file=path)
    if ID not in header:
        fix = "separate the columns by commas" if len(header) == 1 else f"name the column of names {ID}"
        raise CourseError(f"columns {', '.join(header)}", f"one called {ID}", fix, file=path)
    for name in header:
        if name in (ID, PATIENT):
            continue
        if name == "OUT":
            raise CourseError("a column OUT", "--out DIR", "each sample gets its own folder there", file=path)
        if name not in notebook.parameters:
            near = difflib.get_close_matches(name.upper(), notebook.parameters, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else "correct or delete the column"
            raise CourseError(f"a column {name!r}", f"one of {', '.join(notebook.parameters)}", fix, file=path)


def _name(word: str) -> str:
    if not _NAME.fullmatch(word) or ".." in word or word.lower() in _RESERVED or word.endswith("."):
        expected = "letters, digits, - _ and . (at most 64, none of the report's files)"
        raise CourseError(f"a sample named {word!r}", expected, "rename it")
    return word

"""Examiner: compares one measured number with the reviewed table of thresholds ``data/thresholds.csv``.

Columns of the table: ``notebook`` (two digits), ``name`` (of the verdict), ``target``, ``tolerance``, ``op``, ``unit``,
``seeds`` (the values measured with five seeds, separated by ``;``) and ``note`` (why this threshold).
``op`` is one of

``within``
    ``|value - target| <= tolerance``
``at least`` / ``at most``
    ``value >= target`` / ``value <= target`` (the tolerance stays empty)
``equal``
    ``value == target``

A null twin (tissue whose morphology carries no information) is a row of its own.
"""

from __future__ import annotations

import csv
import difflib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import settings
from helpers.messages import CourseError

TABLE = settings.ROOT / "data" / "thresholds.csv"
OPS = ("within", "at least", "at most", "equal")
COLUMNS = ("notebook", "name", "target", "tolerance", "op", "unit", "seeds", "note")


@dataclass(frozen=True)
class Threshold:
    """One row of the table."""

    notebook: str
    name: str
    target: float
    tolerance: float
    op: str
    unit: str
    seeds: tuple = ()
    note: str = ""

    def allows(self, value: float) -> bool:
        """Return whether a value passes; not-a-number never does."""
        if not math.isfinite(value):
            return False
        if self.op == "within":
            return abs(value - self.target) <= self.tolerance
        if self.op == "at least":
            return value >= self.target
        if self.op == "at most":
            return value <= self.target
        return value == self.target

    @property
    def expectation(self) -> str:
        """The expected value in words, e.g. ``0 deg within 3``; it never contains the measured number."""
        amount = f"{self.target:g} {self.unit}".strip()
        if self.op == "within":
            return f"{amount} within {self.tolerance:g}"
        return amount if self.op == "equal" else f"{self.op} {amount}"


@dataclass(frozen=True)
class Verdict:
    """A measured number beside its threshold."""

    threshold: Threshold
    value: float

    @property
    def passed(self) -> bool:
        """Whether the number passes."""
        return self.threshold.allows(self.value)

    @property
    def line(self) -> str:
        """The one line for stdout, without the measured number, so that nbval can compare it."""
        word = "PASS" if self.passed else "FAIL"
        return f"{self.threshold.name}: {word} (expected {self.threshold.expectation})"

    def record(self) -> dict:
        """Return the verdict as it is stored in ``results.json``."""
        row = asdict(self.threshold)
        kept = {key: row[key] for key in ("name", "target", "tolerance", "op", "unit")}
        value = self.value if math.isfinite(self.value) else None
        expected = self.threshold.expectation
        return {**kept, "expected": expected, "seeds": list(row["seeds"]), "value": value, "pass": self.passed}


def thresholds(table: Path | None = None) -> list[Threshold]:
    """Read and check the table of thresholds."""
    table = Path(table or TABLE)
    with open(table, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise CourseError(f"columns {reader.fieldnames}", ", ".join(COLUMNS), "mend the header", file=table)
        rows = []
        for number, row in enumerate(reader, start=2):
            try:
                rows.append(_row(row))
            except (ValueError, TypeError) as problem:
                raise CourseError(
                    f"line {number}: {problem}", "numbers, and a known op", "mend the line", file=table
                ) from None
    names = [(row.notebook, row.name) for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CourseError(f"{twice[0]} twice", "one line for each verdict", "delete one", file=table)
    return rows


def _row(row: dict) -> Threshold:
    if row["op"] not in OPS:
        raise ValueError(f"op {row['op']!r} is none of {', '.join(OPS)}")
    tolerance = float(row["tolerance"] or 0)
    if not row["name"] or tolerance < 0 or (row["op"] == "within") != bool(row["tolerance"]):
        raise ValueError("a name, and a tolerance (not negative) for 'within' only")
    return Threshold(
        notebook=row["notebook"].zfill(2),
        name=row["name"],
        target=float(row["target"]),
        tolerance=tolerance,
        op=row["op"],
        unit=row["unit"],
        seeds=tuple(float(value) for value in row["seeds"].split(";") if value.strip()),
        note=row["note"],
    )


def verdict(notebook: str, name: str, value: float, *, table: Path | None = None) -> Verdict:
    """Grade one number.

    Parameters
    ----------
    notebook
        Its number, ``"01"``.
    name
        The verdict's name in the table.
    value
        The measured number, in the table's unit.

    Raises
    ------
    CourseError
        The table has no such verdict.
    """
    rows = [row for row in thresholds(table) if row.notebook == notebook]
    for row in rows:
        if row.name == name:
            return Verdict(row, float(value))
    near = difflib.get_close_matches(name, [row.name for row in rows], n=1)
    raise CourseError(
        f"a verdict {name!r} in notebook {notebook}",
        f"one of {', '.join(row.name for row in rows) or 'no verdicts yet'}",
        f"did you mean {near[0]!r}?" if near else "add a line with its threshold",
        file=table or TABLE,
    )


def refuses(function, *arguments, **options) -> bool:
    """Return whether a call is refused with a ``CourseError``, as a null twin must be; other errors pass through."""
    try:
        function(*arguments, **options)
    except CourseError:
        return True
    return False

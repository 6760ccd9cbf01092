"""The grader: what passes, what the line says, and a table of thresholds that cannot rot unnoticed."""

import math

import pytest

from helpers import grade
from helpers.messages import CourseError

HEADER = ",".join(grade.COLUMNS)


def table(tmp_path, *lines):
    file = tmp_path / "thresholds.csv"
    file.write_text("\n".join([HEADER, *lines]) + "\n")
    return file


@pytest.mark.parametrize(
    "line, good, bad, words",
    [
        ("01,x,0,3,within,deg,,", (-3, 0, 3), (-3.01, 3.01), "0 deg within 3"),
        ("01,x,0.95,,at least,,,", (0.95, 1), (0.9499,), "at least 0.95"),
        ("01,x,3,,at most,of 255,,", (0, 3), (3.001,), "at most 3 of 255"),
        ("01,x,6,,equal,sections,,", (6,), (5, 7, 6.5), "6 sections"),
    ],
)
def test_each_operation_at_its_edges(tmp_path, line, good, bad, words):
    file = table(tmp_path, line)
    for value in good:
        verdict = grade.verdict("01", "x", value, table=file)
        assert verdict.passed and verdict.line == f"x: PASS (expected {words})"
    for value in (*bad, math.nan, math.inf, -math.inf):
        verdict = grade.verdict("01", "x", value, table=file)
        assert not verdict.passed and verdict.line == f"x: FAIL (expected {words})"


def test_infinity_passes_no_at_least(tmp_path):
    record = grade.verdict("01", "x", math.inf, table=table(tmp_path, "01,x,1,,at least,,,")).record()
    assert record["value"] is None and record["pass"] is False


def test_seeds_are_kept(tmp_path):
    file = table(tmp_path, "1,x,0,3,within,deg,1;1.5; 2,why")
    (row,) = grade.thresholds(file)
    assert row.notebook == "01" and row.seeds == (1.0, 1.5, 2.0)
    assert grade.verdict("01", "x", 1, table=file).record()["seeds"] == [1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    "line",
    ["01,x,0,3,about,deg,,", "01,x,much,3,within,deg,,", "01,x,0,,within,deg,,", "01,x,0,-1,within,deg,,",
     "01,x,0,2,at least,,,", "01,,0,2,within,,,", "01,x,0,3,within,deg,1;two,"],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    with pytest.raises(CourseError, match="line 2"):
        grade.thresholds(table(tmp_path, line))


def test_repeated_verdicts_and_wrong_headers_are_refused(tmp_path):
    with pytest.raises(CourseError, match="twice"):
        grade.thresholds(table(tmp_path, "01,x,1,,equal,,,", "1,x,2,,equal,,,"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CourseError, match="header"):
        grade.thresholds(tmp_path / "other.csv")


def test_an_unknown_verdict_is_refused_with_the_nearest_name(tmp_path):
    file = table(tmp_path, "01,white point error,0,3,within,of 255,,", "02,other,1,,equal,,,")
    with pytest.raises(CourseError, match="did you mean 'white point error'"):
        grade.verdict("01", "white point eror", 1, table=file)
    with pytest.raises(CourseError):
        grade.verdict("01", "other", 1, table=file)


def test_the_course_s_own_table_holds_and_lies_within_its_seeds():
    for row in grade.thresholds():
        assert not row.seeds or (len(row.seeds) >= 5 and all(row.allows(value) for value in row.seeds)), row.name

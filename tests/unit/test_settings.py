import subprocess
import sys

import numpy as np

from helpers import settings
from helpers.messages import CourseError


def test_streams_are_named_and_independent():
    first = settings.rng(0, "anatomy", "P1").random(4)
    assert np.array_equal(first, settings.rng(0, "anatomy", "P1").random(4))
    for other in (settings.rng(1, "anatomy", "P1"), settings.rng(0, "cells", "P1"), settings.rng(0, "anatomyP1")):
        assert not np.array_equal(first, other.random(4))


def test_a_stream_is_the_same_in_another_process():
    code = "from helpers import settings; print(settings.rng(3, 'x').integers(1 << 40))"
    seen = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert seen == {f"{settings.rng(3, 'x').integers(1 << 40)}\n"}


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "a b"))
    assert settings.data_dir() == (tmp_path / "a b").resolve()
    monkeypatch.setenv("COURSE_DATA", " ")
    assert settings.data_dir() == settings.ROOT / "data" / "downloads"


def test_course_error_says_three_things():
    error = CourseError("7 spots", "8", "count again", file="x.tsv")
    assert str(error) == "x.tsv: found 7 spots; expected 8. Fix: count again"

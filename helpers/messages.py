"""Ground floor: the one exception class of the course, and what goes to stdout and to stderr."""

from __future__ import annotations

import sys


class CourseError(Exception):
    """Bad input, said in three parts a learner can act on.

    Parameters
    ----------
    seen
        What was found, with the number or name that is wrong.
    expected
        What would have been right.
    fix
        The line or step that mends it.
    file
        The file or folder concerned, if there is one.
    """

    def __init__(self, seen: str, expected: str, fix: str, *, file: object = None):
        self.seen, self.expected, self.fix = str(seen), str(expected), str(fix)
        self.file = None if file is None else str(file)
        super().__init__(self.seen, self.expected, self.fix, self.file)

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"{where}found {self.seen}; expected {self.expected}. Fix: {self.fix}"


def say(text: str) -> None:
    """Print a result line to stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print progress, a timing or a warning to stderr, where nbval does not look."""
    print(text, file=sys.stderr, flush=True)

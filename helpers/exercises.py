"""Examiner's room: what an exercise answers to the learner."""

from __future__ import annotations

from helpers.messages import say


def self_check(name: str, answer, expected, *, tolerance: float = 0.0) -> None:
    """Print one line: not answered yet, right, or not yet.

    Parameters
    ----------
    answer
        The learner's answer; ``None`` means not tried.
    expected
        A number (compared within ``tolerance``) or a text.
    """
    if answer is None:
        verdict = "not answered yet"
    elif isinstance(expected, str):
        verdict = "right" if str(answer).strip().lower() == expected.lower() else "not yet: try again"
    else:
        try:
            verdict = "right" if abs(float(answer) - expected) <= tolerance else "not yet: try again"
        except (TypeError, ValueError):
            verdict = "a number, please"
    say(f"exercise {name}: {verdict}")

"""Methods, survival: checks of times and events, and the risk sets of Cox's model as prefix sums.

Rows are sorted by time, latest first, events before censored rows of the same time. A sum over everyone still at risk
is then a cumulative sum, and thousands of genes or folds share one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError


def checked(time, event):
    """Return (time float64 (n,), event bool (n,)) or refuse.

    Parameters
    ----------
    time
        Follow-up, in any one unit, finite and not negative.
    event
        Whether the event (death) was seen; False or 0: censored.

    Raises
    ------
    CourseError
        Lengths that differ, times missing or negative, events other than 0 and 1.
    """
    time, event = np.asarray(time, float), np.asarray(event)
    if time.ndim != 1 or time.shape != event.shape:
        raise CourseError(f"times {time.shape} and events {event.shape}", "one of each per patient", "align the tables")
    if not np.isfinite(time).all() or (time < 0).any():
        wrong = np.flatnonzero(~np.isfinite(time) | (time < 0))
        raise CourseError(
            f"{len(wrong)} times missing or negative (row {wrong[0]}: {time[wrong[0]]})", "finite times >= 0",
            "leave these patients out, and say so",
        )  # fmt: skip
    if not np.isin(event, (0, 1)).all():
        raise CourseError("events other than 0 and 1", "1 = event seen, 0 = censored",
                          "recode (PORPOISE: event = 1 - censorship)")  # fmt: skip
    return time, event.astype(bool)


@dataclass(frozen=True)
class RiskSets:
    """The sorted rows that are ever at risk, and where risk sets and ties begin.

    Attributes
    ----------
    order
        Rows of the input, int (m,); people censored before the first event are in no risk set and left out.
    events
        Positions of events among them, int (k,).
    starts
        First row of each block between distinct event times, int (b,), for ``np.add.reduceat``.
    block
        Block of each event, int (k,).
    first
        Position, among the events, of the first of each block, int (b,).
    tied
        Number of events of each block, int (b,).
    share
        Efron's l / d of each event, float (k,): 0 for the first of a tie.
    """

    order: np.ndarray
    events: np.ndarray
    starts: np.ndarray
    block: np.ndarray
    first: np.ndarray
    tied: np.ndarray
    share: np.ndarray

    @property
    def has_ties(self) -> bool:
        """Whether two events share a time."""
        return bool((self.tied > 1).any())

    def sums(self, values, *, axis: int = 0):
        """Return the sum of ``values`` (rows along ``axis``) over the risk set of each event."""
        return np.take(np.cumsum(np.add.reduceat(values, self.starts, axis), axis), self.block, axis)

    def tied_sums(self, values, *, axis: int = 0):
        """Return the sum of ``values`` over the events that share each event's time."""
        return np.take(np.add.reduceat(np.take(values, self.events, axis), self.first, axis), self.block, axis)


def risk_sets(time, event) -> RiskSets | None:
    """Return the risk sets of checked times and events, or None without an event."""
    if not event.any():
        return None
    kept = np.flatnonzero(time >= time[event].min())
    order = kept[np.lexsort((~event[kept], -time[kept]))]
    t, e = time[order], event[order]
    moments, first, tied = np.unique(-t[e], return_index=True, return_counts=True)
    ends = np.searchsorted(-t, moments, side="right")
    place = np.arange(e.sum()) - np.repeat(first, tied)
    return RiskSets(
        order=order[: ends[-1]], events=np.flatnonzero(e), starts=np.r_[0, ends[:-1]],
        block=np.repeat(np.arange(len(tied)), tied), first=first, tied=tied, share=place / np.repeat(tied, tied),
    )  # fmt: skip

"""Methods, survival: Harrell's concordance, with sign and ties fixed, in O(n log n)."""

from __future__ import annotations

import numpy as np

from helpers.survival_risk import checked

BROADCAST = 2000
"""Up to this many patients comparing all pairs at once is faster."""


def concordance(risk, time, event) -> float:
    """Return Harrell's c: the share of comparable pairs in which the higher **risk** has the earlier event.

    Parameters
    ----------
    risk
        Float (n,). High = early event, as a Cox model's linear predictor. lifelines' ``concordance_index`` takes the
        opposite sign (a predicted *time*), scikit-survival this one.
    time, event
        See :func:`helpers.survival_risk.checked`.

    Returns
    -------
    float
        0.5 is chance. A pair is comparable if the earlier time is an event, or if both times are equal and one is an
        event and the other censored; two events at one time are not. Equal risks count one half. NaN without a
        comparable pair or with a risk that is not finite.
    """
    time, event = checked(time, event)
    risk = np.asarray(risk, float)
    if not np.isfinite(risk).all():
        return float("nan")
    return _broadcast(risk, time, event) if len(time) <= BROADCAST else _wavelet(risk, time, event)


def _broadcast(risk, time, event):
    t, r = time[event][:, None], risk[event][:, None]
    comparable = (time > t) | ((time == t) & ~event)
    total = comparable.sum()
    agree = (comparable & (risk < r)).sum() + 0.5 * (comparable & (risk == r)).sum()
    return float(agree / total) if total else float("nan")


def _wavelet(risk, time, event):
    """Count, for each event, later patients of lower risk by a wavelet matrix over the ranks of risk."""
    order = np.lexsort((~event, time))
    t, e = time[order], event[order]
    rank = np.unique(risk[order], return_inverse=True)[1].ravel().astype(np.int64)
    events, seen = np.flatnonzero(e), np.cumsum(np.r_[0, e])
    low, high = np.searchsorted(t, t, "left"), np.searchsorted(t, t, "right")
    start = (low + seen[high] - seen[low])[events]  # events of the same time are skipped
    total = (len(t) - start).sum()
    if not total:
        return float("nan")
    less = _count_below(rank, start, rank[events]).sum()
    equal = _count_below(rank, start, rank[events] + 1).sum() - less
    return float((less + 0.5 * equal) / total)


def _count_below(values, start, bound):
    """Return, for each query, how many of ``values[start:]`` are below ``bound`` (non-negative integers)."""
    bits = max(1, int(max(values.max(), bound.max())).bit_length())
    left, right = start.copy(), np.full_like(start, len(values))
    found = np.zeros(len(start), np.int64)
    for k in range(bits - 1, -1, -1):
        bit = (values >> k) & 1
        zeros = np.r_[0, np.cumsum(1 - bit)]
        zero_left, zero_right = zeros[left], zeros[right]
        up = ((bound >> k) & 1).astype(bool)
        found += np.where(up, zero_right - zero_left, 0)
        left = np.where(up, zeros[-1] + left - zero_left, zero_left)
        right = np.where(up, zeros[-1] + right - zero_right, zero_right)
        values = np.concatenate([values[bit == 0], values[bit == 1]])
    return found

"""Methods: Visium HD, from 2 um bins to cells, domains and cell types (door of ``visium_hd``).

The way through, one file a step, each an attribute here (``visium_hd.qc``). They take and return arrays, AnnData or
data frames and never see the truth:

* ``visium_hd_config`` the YAML of samples, parameters and marker signatures (``visium_hd_lines`` finds the lines);
* ``visium_hd_sopa``, ``_stardist``, ``_proseg`` nuclei on the H&E, cells round them, molecules to cells. After them
  everything is in **microns**;
* ``visium_hd_qc``, ``_domains`` filters, islands, Novae and its rivals;
* ``visium_hd_deconvolution``, ``_rctd``, ``_celltypist`` types from a single-cell reference, of bins and of cells;
* ``visium_hd_markers``, ``_signatures`` types from marker genes.

Here: windows and maps of bins, what a step costs, where methods disagree, and the report card of them all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

import numpy as np

from helpers import visium_hd_celltypist as celltypist
from helpers import visium_hd_config as config
from helpers import visium_hd_deconvolution as deconvolution
from helpers import visium_hd_domains as domains
from helpers import visium_hd_markers as markers
from helpers import visium_hd_proseg as proseg
from helpers import visium_hd_qc as qc
from helpers import visium_hd_rctd as rctd
from helpers import visium_hd_reference as reference
from helpers import visium_hd_signatures as signatures
from helpers import visium_hd_sopa as sopa
from helpers import visium_hd_stardist as stardist
from helpers.messages import CourseError

__all__ = [
    "COLUMNS", "Cost", "agreement", "at", "celltypist", "config", "deconvolution", "domains", "markers", "measured",
    "molecules", "proseg", "qc", "rctd", "reference", "report_card", "signatures", "sopa", "stardist", "window",
]  # fmt: skip

COLUMNS = ("method", "needs", "measure", "value", "baseline", "seconds", "memory_mb")
INTERVAL_S, EVERY = 0.02, 10
"""Memory is looked at this often, that of child processes every tenth time."""


@dataclass
class Cost:
    """What a step took: wall-clock ``seconds``, and ``memory_mb`` (10^6 bytes), its peak above where it began."""

    seconds: float = float("nan")
    memory_mb: float = float("nan")


@contextlib.contextmanager
def measured(costs=None, name: str = ""):
    """Measure the block: ``with measured() as cost``, or ``with measured(costs, "Novae")`` to keep it in a dict.

    Resident memory of this process and its children (ProSeg is one) is sampled (:data:`INTERVAL_S`); shorter peaks,
    or those inside a call that lets no other thread run, can be missed. Libraries imported inside count: what
    runs first pays for them. Memory that an earlier step left free is used again and not counted twice.

    Parameters
    ----------
    costs
        Dict, name to :class:`Cost`; a step measured again under the same name adds its seconds.
    """
    import psutil

    me, cost, began, done = psutil.Process(), Cost(), time.perf_counter(), threading.Event()
    start = highest = _own_mb(me) + _children_mb(me)

    def sample():
        nonlocal highest
        others, turn = 0.0, 0
        while not done.wait(INTERVAL_S):
            if turn % EVERY == 0:
                others = _children_mb(me)
            turn += 1
            highest = max(highest, _own_mb(me) + others)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield cost
    finally:
        done.set()
        thread.join()
        highest = max(highest, _own_mb(me))
        cost.seconds, cost.memory_mb = time.perf_counter() - began, highest - start
        if costs is not None:
            before = costs.get(name)
            if before is not None:
                cost.seconds += before.seconds
                cost.memory_mb = max(cost.memory_mb, before.memory_mb)
            costs[name] = cost


def _own_mb(me) -> float:
    return me.memory_info().rss / 1e6


def _children_mb(me) -> float:
    """Return the resident memory of a process' children now, MB; finding them costs milliseconds."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        for process in me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total / 1e6


def report_card(rows, costs=None):
    """Return one table of all methods.

    Parameters
    ----------
    rows
        Dicts with ``method``, ``needs`` (what it cannot do without), ``measure`` (of what, in which unit) and
        ``value``; ``baseline`` (what a method that looks at nothing scores) where there is one. ``seconds`` and
        ``memory_mb`` unless ``costs`` has them. A value that could not be measured is NaN or None.
    costs
        Dict, method to :class:`Cost` (:func:`measured`).

    Returns
    -------
    pandas.DataFrame
        Columns :data:`COLUMNS`, in the order given.

    Raises
    ------
    CourseError
        No row, a row without method or measure, an unknown field, the same measure of a method twice, a value that is
        no number.
    """
    import pandas as pd

    made, seen = [], set()
    for row in rows:
        row, unknown = dict(row), sorted(set(row) - set(COLUMNS))
        key = (row.get("method"), row.get("measure"))
        value = np.nan if row.get("value") is None else row["value"]
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if unknown or not all(key) or key in seen or not number:
            what = f"the field {unknown[0]!r}" if unknown else f"{key[0]!r}, {key[1]!r}"
            what += " a second time" if key in seen and not unknown else "" if number else f" with the value {value!r}"
            raise CourseError(what, f"fields {', '.join(COLUMNS)}; each method and measure once", "mend the row")
        seen.add(key)
        cost = (costs or {}).get(key[0], Cost())
        filled = {"needs": "", "baseline": np.nan, "seconds": cost.seconds, "memory_mb": cost.memory_mb}
        made.append({**filled, **row, "value": float(value)})
    if not made:
        raise CourseError("no row", "at least one method", "measure one")
    table = pd.DataFrame(made)[list(COLUMNS)]
    return table.astype({name: float for name in ("value", "baseline", "seconds", "memory_mb")})


def agreement(names):
    """Return where methods that name the same cells agree.

    Parameters
    ----------
    names
        DataFrame, one row a cell, one column a method: names; "" or NaN where a method gives none.

    Returns
    -------
    pandas.DataFrame
        Per cell: ``majority`` (the commonest name, the first column's vote on a tie; "" if nobody named it), ``share``
        (of the methods that named it, NaN if none did), ``named`` (number of methods that did).
    pandas.DataFrame
        Methods x methods: share of the cells named by both that have the same name.
    """
    import pandas as pd

    values = names.astype(object).where(names.notna(), "").astype(str).to_numpy()
    kinds = [one for one in dict.fromkeys(values.ravel()) if one]
    code = pd.Categorical(values.ravel(), categories=kinds).codes.reshape(values.shape)
    votes = np.zeros((len(values), max(len(kinds), 1)))
    for column in range(code.shape[1]):
        use = np.flatnonzero(code[:, column] >= 0)
        votes[use, code[use, column]] += 1 + (code.shape[1] - column) * 1e-6
    named, top = (code >= 0).sum(1), votes.argmax(1)
    majority = np.array([*kinds, ""], object)[np.where(named > 0, top, len(kinds))]
    with np.errstate(invalid="ignore"):
        share = np.where(named > 0, np.rint(votes.max(1) - 1e-3) / np.maximum(named, 1), np.nan)
    cells = pd.DataFrame({"majority": majority, "share": share, "named": named}, index=names.index)
    both = (code[:, :, None] >= 0) & (code[:, None, :] >= 0)
    same = ((code[:, :, None] == code[:, None, :]) & both).sum(0)
    with np.errstate(invalid="ignore"):
        pairs = same / both.sum(0)
    return cells, pd.DataFrame(pairs, index=names.columns, columns=names.columns)


def at(xy_um, places_um, *, reach_um: float):
    """Return which place each cell lies at, such as its bin: int (n,), the nearest within ``reach_um``, else -1.

    Parameters
    ----------
    xy_um, places_um
        float (n, 2) and (m, 2), microns.
    reach_um
        For bins half the diagonal: 5.7 for 8 um.
    """
    from scipy.spatial import cKDTree

    far, found = cKDTree(np.asarray(places_um, float)).query(np.asarray(xy_um, float), distance_upper_bound=reach_um)
    return np.where(np.isfinite(far), found, -1)


def window(section, side_um: float) -> np.ndarray:
    """Return a square in the middle of a section, x0, y0, x1, y1 in um; the whole picture if ``side_um`` is larger."""
    from helpers import section as sec

    size = np.array(sec.shape(section)[::-1]) * sec.mpp(section)
    if not side_um > 0:
        raise CourseError(f"a window of {side_um} um", "a length above 0", "about 400 um: a thousand cells")
    half = np.minimum(size, side_um) / 2
    return np.r_[size / 2 - half, size / 2 + half]


def molecules(section, size_um: int, box_um) -> np.ndarray:
    """Return the molecules of each bin in a window, float (rows, columns), NaN where there is no bin.

    Parameters
    ----------
    size_um
        2, 8 or 16.
    box_um
        x0, y0, x1, y1. The grid is that of the picture's axes: on an array that lies turned it is nearest bins.
    """
    from helpers import section as sec

    name = "counts" if size_um == section.attrs.get("bin_um", 8) else f"bins_{size_um}um"
    if name not in section.tables:
        seen = f"no bins of {size_um} um among {sorted(section.tables)}"
        raise CourseError(seen, "2, 8 or 16", "choose another size")
    table = section.tables[name]
    xy = table.obsm["spatial"] * sec.mpp(section)
    x0, y0, x1, y1 = box_um
    kept = (xy[:, 0] >= x0) & (xy[:, 0] < x1) & (xy[:, 1] >= y0) & (xy[:, 1] < y1)
    columns, rows = (max(1, round((high - low) / size_um)) for low, high in ((x0, x1), (y0, y1)))
    place = np.floor((xy[kept] - (x0, y0)) / size_um).astype(int).clip(0, (columns - 1, rows - 1))
    out = np.full((rows, columns), np.nan)
    out[place[:, 1], place[:, 0]] = np.asarray(table[np.flatnonzero(kept)].X.sum(1)).ravel()
    return out

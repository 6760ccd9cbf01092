"""The numbers of a cohort: one row a sample, which values are odd, and how each is spread over patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import batch

FAR = 3.5
"""A value is called an outlier beyond this many scaled median absolute deviations (Iglewicz and Hoaglin 1993)."""
ENOUGH = 5
"""Fewer values than this have no outliers."""
VERDICT, METRIC, PASSED = "verdict: ", "metric: ", "passed: "
"""How the names of measured columns begin."""
CHANGED = "its notebook, parameters, code or data have changed since"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(folder: Path):
    """Return a data frame, one row a sample: what was asked, how it ended, and every single number it measured.

    Columns: ``sample``, ``patient``, the parameters set in the table, ``state``, ``reason``, ``cell``, ``odd`` (which
    numbers lie far from those of the other samples), ``seconds``, ``peak_mb``, ``verdicts_passed``, ``verdicts``, then
    floats named ``verdict: NAME`` and ``metric: NAME``, and truth values named ``passed: NAME``.

    Raises
    ------
    CourseError
        The folder is not that of a batch.
    """
    import pandas as pd

    folder = Path(folder)
    asked, states = batch.read(folder), batch.status(folder)["samples"]
    rows = []
    for item in asked["samples"]:
        place = folder / item["sample"]
        ended, results = batch.record(place / "run.json"), batch.record(place / "results.json")
        verdicts = {_words(v["name"]): v for v in items(results.get("verdicts")) if "name" in v}
        metrics = results.get("metrics") if isinstance(results.get("metrics"), dict) else {}
        rows.append({
            "sample": item["sample"],
            "patient": _words(item["patient"]),
            **{name: value if isinstance(value, (int, float)) else _words(value)
               for name, value in item["given"].items()},
            "state": _words(states[item["sample"]]),
            "reason": CHANGED if states[item["sample"]] == "stale" else _words(ended.get("reason") or ""),
            "cell": batch.number(ended.get("cell")),
            "odd": "",
            "seconds": batch.number(ended.get("seconds")),
            "peak_mb": batch.number(results.get("peak_mb")),
            "verdicts_passed": sum(bool(v.get("pass")) for v in verdicts.values()),
            "verdicts": len(verdicts),
            **{VERDICT + name: batch.number(v.get("value")) for name, v in verdicts.items()},
            **{METRIC + _words(name): batch.number(value) for name, value in metrics.items()
               if batch.number(value) is not None},
            **{PASSED + name: bool(v.get("pass")) for name, v in verdicts.items()},
        })  # fmt: skip
    cohort = pd.DataFrame(rows)
    passed = [name for name in cohort if name.startswith(PASSED)]
    cohort = cohort.astype({**dict.fromkeys(["cell", *numbers(cohort)], float), **dict.fromkeys(passed, "boolean")})
    cohort = cohort[[*(name for name in cohort if name not in passed), *passed]]
    odd = [[] for _ in rows]
    for name in numbers(cohort):
        for place in np.flatnonzero(outliers(cohort[name])):
            odd[place].append(f"{shown(name)} {'low' if cohort[name][place] < cohort[name].median() else 'high'}")
    return cohort.assign(odd=[", ".join(names) for names in odd])


def _words(value) -> str:
    return str(value).encode("utf-8", "replace").decode()


def items(value) -> list:
    """Return the dictionaries of a list, whatever else an old or foreign ``results.json`` may hold there."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def numbers(cohort) -> list[str]:
    """Return the columns of a :func:`table` that were measured."""
    return ["seconds", "peak_mb", *(name for name in cohort if name.startswith((VERDICT, METRIC)))]


def shown(name: str) -> str:
    """Return the name of a measured column as the page shows it."""
    return {"peak_mb": "memory, MB"}.get(name) or name.removeprefix(VERDICT).removeprefix(METRIC)


def outliers(values) -> np.ndarray:
    """Return which of some numbers lie far from the others: bool (n,); where half of them agree exactly, none.

    The modified z-score .6745 (x - median) / MAD beyond 3.5 (Iglewicz and Hoaglin 1993).
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    if known.sum() < ENOUGH:
        return np.zeros(len(values), bool)
    off = np.abs(values - np.median(values[known]))
    spread = np.median(off[known])
    return known & (0.6745 * off > FAR * spread) if spread > 0 else np.zeros(len(values), bool)


def spread(cohort):
    """Return how each number is spread over patients, a patient with several samples counted once, by their mean.

    Returns
    -------
    dict
        Column of :func:`numbers` to ``samples`` and ``patients`` (how many have it), ``passed`` (samples that pass;
        None where it is no verdict), ``quantiles`` (float (5,): lowest, quarter, median, three quarters, highest) and
        ``means`` (float (patients,)).
    """
    found = {}
    for name in numbers(cohort):
        values = cohort[name].dropna()
        if values.empty:
            continue
        means = values.groupby(cohort.loc[values.index, "patient"]).mean().to_numpy()
        passed = PASSED + name.removeprefix(VERDICT)
        found[name] = {
            "samples": len(values),
            "patients": len(means),
            "passed": int(cohort[passed].sum()) if name.startswith(VERDICT) else None,
            "quantiles": np.percentile(means, [0, 25, 50, 75, 100]),
            "means": means,
        }
    return found


def harmless(cohort):
    """Return the table with an apostrophe before words that a spreadsheet would carry out as a formula."""
    words = {name: [f"'{word}" if isinstance(word, str) and word.startswith(_FORMULA) else word for word in column]
             for name, column in cohort.select_dtypes(object).items()}  # fmt: skip
    return cohort.assign(**words)

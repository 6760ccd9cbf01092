"""One offline page over all samples of a batch, and the same table as CSV and Parquet."""

from __future__ import annotations

import math
import os
import urllib.parse
from pathlib import Path

import numpy as np

from helpers import batch
from helpers.report import thumbnail
from helpers.report_page import esc, frame, write

SIDE_PX = 220
FAR = 3.5
"""A value is called an outlier beyond this many scaled median absolute deviations (Iglewicz and Hoaglin 1993)."""
ENOUGH = 5
"""Fewer values than this have no outliers."""
STYLE = """
.lead{color:var(--soft);margin:0 0 1.2rem;font-size:1.02rem}
.tools{display:flex;flex-wrap:wrap;gap:.6rem;margin:0 0 1rem}.tools input,.tools select{font:inherit;
padding:.35rem .6rem;border:1px solid var(--line);border-radius:8px;background:var(--card);color:var(--ink);
min-width:0;max-width:100%}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--card)}
.cohort{width:100%;font-size:.88rem;border-collapse:collapse}
.cohort th{font-weight:600;color:var(--soft);text-align:left;vertical-align:bottom;padding:.5rem .7rem;
white-space:normal}
.cohort th button{all:unset;cursor:pointer}.cohort th button:focus-visible{outline:2px solid var(--link)}
.cohort th[aria-sort=ascending] button::after{content:" \\2191"}
.cohort th[aria-sort=descending] button::after{content:" \\2193"}
.cohort td{padding:.4rem .7rem;border-top:1px solid var(--line);font-variant-numeric:tabular-nums;vertical-align:middle}
.cohort .num{text-align:right}.cohort img{width:96px;max-width:none;height:64px;object-fit:cover;
border-radius:6px;display:block;background:#fff}.cohort .far{background:var(--badbg);color:var(--bad);font-weight:600}
.cohort .why{display:block;color:var(--soft);overflow-wrap:anywhere;min-width:14rem}
.pill{border-radius:99px;padding:.08rem .65rem;font-size:.8rem;white-space:nowrap;font-weight:600}
.pill.good{background:var(--goodbg);color:var(--good)}.pill.bad{background:var(--badbg);color:var(--bad)}
.spread td,.spread th{padding:.3rem .8rem;text-align:right;font-variant-numeric:tabular-nums}
.spread td:first-child,.spread th:first-child{text-align:left}.hide{display:none}
"""
SCRIPT = """
const body=document.querySelector('.cohort tbody'),rows=[...body.rows];
const [find,state,count]=['#find','#state','#count'].map(w=>document.querySelector(w));
function filter(){const w=find.value.toLowerCase();let n=0;for(const r of rows){
const ok=r.dataset.words.includes(w)&&(!state.value||r.dataset.state===state.value);
r.classList.toggle('hide',!ok);n+=ok}count.textContent=n+' of '+rows.length+' shown'}
find.addEventListener('input',filter);state.addEventListener('change',filter);
document.querySelectorAll('.cohort th button').forEach(b=>b.addEventListener('click',()=>{
const th=b.parentElement,i=th.cellIndex,down=th.getAttribute('aria-sort')==='ascending';
document.querySelectorAll('.cohort th').forEach(o=>o.removeAttribute('aria-sort'));
th.setAttribute('aria-sort',down?'descending':'ascending');
const key=r=>{const c=r.cells[i];return 'v' in c.dataset?(c.dataset.v===''?NaN:+c.dataset.v):c.textContent};
rows.sort((p,q)=>{const a=key(p),b=key(q);
if(typeof a==='string')return (down?-1:1)*a.localeCompare(b);
if(isNaN(a)||isNaN(b))return isNaN(a)-isNaN(b);return (down?-1:1)*(a-b)});
body.append(...rows)}));filter();
"""


def table(folder: Path):
    """Return a data frame, one row a sample: what was asked, how it ended, and every single number it measured.

    Columns: ``sample``, ``patient``, the parameters set in the table, ``state``, ``reason``, ``cell``, ``seconds``,
    ``peak_mb``, ``verdicts_passed``, ``verdicts``, then numbers named ``verdict: NAME`` and ``metric: NAME``.
    """
    import pandas as pd

    folder = Path(folder)
    asked, states = batch.read(folder), batch.status(folder)["samples"]
    rows = []
    for item in asked["samples"]:
        place = folder / item["sample"]
        record, results = batch.record(place / "run.json"), batch.record(place / "results.json")
        verdicts = [v for v in results.get("verdicts", []) if isinstance(v, dict) and "name" in v]
        rows.append({
            "sample": item["sample"],
            "patient": item["patient"],
            **{name: value if isinstance(value, (int, float)) else str(value) for name, value in item["given"].items()},
            "state": states[item["sample"]],
            "reason": record.get("reason", ""),
            "cell": record.get("cell"),
            "seconds": record.get("seconds"),
            "peak_mb": results.get("peak_mb"),
            "verdicts_passed": sum(bool(v.get("pass")) for v in verdicts),
            "verdicts": len(verdicts),
            **{f"verdict: {v['name']}": v.get("value") for v in verdicts},
            **{f"metric: {name}": value for name, value in results.get("metrics", {}).items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)},
        })  # fmt: skip
    return pd.DataFrame(rows)


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


def build(folder: Path) -> Path:
    """Write ``index.html``, ``cohort.csv`` and ``cohort.parquet`` into the folder of a batch; return the page.

    Raises
    ------
    CourseError
        The folder is not that of a batch.
    """
    folder = Path(folder)
    cohort = table(folder)
    for name, save in (("cohort.csv", cohort.to_csv), ("cohort.parquet", cohort.to_parquet)):
        draft = folder / f".{name}.{os.getpid()}"
        save(draft, index=False)
        os.replace(draft, folder / name)
    asked = batch.read(folder)
    done = int((cohort["state"] == "complete").sum())
    failed = int((~cohort["state"].isin(["complete", "running", "waiting"])).sum())
    lead = f"{done} of {len(cohort)} samples complete &middot; {failed} failed"
    lead += f" &middot; {cohort['patient'].nunique()} patients"
    states = "".join(f'<option value="{esc(state)}">{esc(state)}</option>' for state in sorted(set(cohort["state"])))
    body = [
        f'<h1>{esc(asked["notebook"])}</h1><p class="lead">{lead}</p>',
        '<div class="tools"><input id="find" type="search" placeholder="find a sample or patient" aria-label="find">'
        f'<select id="state" aria-label="state"><option value="">every state</option>{states}</select>'
        '<span id="count" class="soft"></span></div>',
        f'<div class="wide">{_rows(folder, cohort, asked["notebook"])}</div>',
        _spread(cohort),
        "<footer>Orange: far from the other samples (modified z-score above 3.5). "
        "The table is also in <code>cohort.csv</code> and <code>cohort.parquet</code>. "
        "This page needs no network.</footer>",
    ]
    write(frame("Cohort report", "\n".join(body), style=STYLE, script=SCRIPT), folder / "index.html")
    return folder / "index.html"


def _numbers(cohort) -> list[str]:
    measured = [name for name in cohort if name.startswith(("verdict: ", "metric: "))]
    return ["seconds", "peak_mb", *measured]


def _rows(folder: Path, cohort, notebook: str) -> str:
    numbers = _numbers(cohort)
    far = {name: outliers(cohort[name].astype(float)) for name in numbers}
    heads = ["", "sample", "patient", "state", "verdicts", *(name.partition(": ")[2] or name for name in numbers)]
    lines = [f"<th>{'<button>' + esc(name) + '</button>' if name else ''}</th>" for name in heads]
    rows = []
    for place, row in enumerate(cohort.to_dict("records")):
        mood = "good" if row["state"] in ("complete", "running", "waiting") else "bad"
        name = esc(row["sample"])
        page = folder / row["sample"] / f"{notebook}.html"
        if page.is_file():
            name = f'<a href="{esc(urllib.parse.quote(row["sample"] + "/" + page.name))}">{name}</a>'
        cell = "" if row["cell"] is None or math.isnan(row["cell"]) else f"code cell {row['cell']:.0f}: "
        why = f'<span class="why">{esc(cell + str(row["reason"]))}</span>' if row["reason"] else ""
        cells = [
            f"<td>{_picture(folder / row['sample'])}</td><td>{name}</td><td>{esc(row['patient'])}</td>",
            f'<td><span class="pill {mood}">{esc(row["state"])}</span>{why}</td>',
            f'<td class="num" data-v="{row["verdicts_passed"]}">{row["verdicts_passed"]} of {row["verdicts"]}</td>',
        ]
        for column in numbers:
            value = row[column]
            known = value is not None and math.isfinite(value)
            mark = " far" if far[column][place] else ""
            shown = f"{value:.4g}" if known else ""
            cells.append(f'<td class="num{mark}" data-v="{value if known else ""}">{shown}</td>')
        words = esc(f"{row['sample']} {row['patient']} {row['reason']}".lower())
        rows.append(f'<tr data-words="{words}" data-state="{esc(row["state"])}">{"".join(cells)}</tr>')
    return f'<table class="cohort"><thead><tr>{"".join(lines)}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _picture(place: Path) -> str:
    for figure in batch.record(place / "results.json").get("figures", ()):
        source = thumbnail(place / figure["file"], SIDE_PX)
        if source:
            return f'<img loading="lazy" alt="{esc(figure["alt"])}" src="{source}">'
    return ""


def _spread(cohort) -> str:
    """Return the spread of each number over samples and, where they differ, over patients (mean of a patient's)."""
    rows = []
    for name in _numbers(cohort):
        values = cohort[name].astype(float).dropna()
        if values.empty:
            continue
        patients = values.groupby(cohort.loc[values.index, "patient"]).mean()
        low, middle, high = np.percentile(values, [25, 50, 75])
        rows.append(
            f"<tr><td>{esc(name.partition(': ')[2] or name)}</td><td>{len(values)}</td><td>{middle:.4g}</td>"
            f"<td>{low:.4g} to {high:.4g}</td><td>{len(patients)}</td><td>{patients.median():.4g}</td></tr>"
        )
    head = "<th></th><th>samples</th><th>median</th><th>middle half</th><th>patients</th><th>median of patients</th>"
    return f'<h2>Spread</h2><div class="wide"><table class="spread"><tr>{head}</tr>{"".join(rows)}</table></div>'

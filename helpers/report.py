"""Examiner's room: one offline page over a folder of runs, from ``run.json`` and ``results.json`` of each notebook."""

from __future__ import annotations

import base64
import io
import json
import urllib.parse
from pathlib import Path

from helpers.messages import CourseError
from helpers.report_page import esc, frame, write

THUMBNAIL_PX = 640
STYLE = """
.lead{color:var(--soft);margin:0 0 1.8rem;font-size:1.02rem}
.cards{display:grid;gap:1.15rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;overflow:hidden;box-shadow:var(--shade);
display:flex;flex-direction:column;min-width:0}
.card.bad{border-color:var(--bad)}.shot{aspect-ratio:16/9;background:var(--code);border-bottom:1px solid var(--line);
display:flex;align-items:center;justify-content:center;color:var(--soft);font-size:2.4rem;font-weight:300;overflow:hidden}
.shot img{width:100%;height:100%;object-fit:contain;display:block;background:#fff}
.text{padding:1rem 1.1rem 1.1rem;display:flex;flex-direction:column;gap:.7rem;flex:1}
.head{display:flex;gap:.6rem;justify-content:space-between;align-items:baseline}
.head h3{overflow-wrap:anywhere;min-width:0}
.shot.empty{aspect-ratio:16/5;font-size:1.7rem}.facts{font-size:.88rem;color:var(--soft)}
.no{color:var(--soft);font-weight:400;margin-right:.35rem;font-variant-numeric:tabular-nums}
.pill{border-radius:99px;padding:.08rem .65rem;font-size:.8rem;white-space:nowrap;font-weight:600}
.pill.good{background:var(--goodbg);color:var(--good)}.pill.bad{background:var(--badbg);color:var(--bad)}
.why{background:var(--badbg);border-radius:8px;padding:.55rem .75rem;font-size:.88rem;overflow-wrap:anywhere;margin:0}
.meters{display:grid;grid-template-columns:1fr 1fr;gap:.9rem;font-size:.82rem;color:var(--soft)}
.bar{height:5px;border-radius:3px;background:var(--line);overflow:hidden;margin-top:.28rem}
.bar i{display:block;height:100%;background:var(--link)}.bar i.over{background:var(--bad)}
.marks{display:flex;flex-wrap:wrap;gap:.25rem .8rem;list-style:none;margin:0;padding:0;font-size:.84rem}
.marks li::before{content:"\\2713\\00a0";color:var(--good);font-weight:700}
.marks li.bad::before{content:"\\2715\\00a0";color:var(--bad)}
.go{margin-top:auto;font-size:.92rem}.wide{overflow-x:auto}
.verdicts{width:100%;background:var(--card);border:1px solid var(--line);border-radius:12px;border-collapse:separate;
border-spacing:0;font-size:.92rem}
.verdicts th{font-weight:600;color:var(--soft);font-size:.8rem;text-align:left;padding:.6rem .9rem}
.verdicts td{padding:.5rem .9rem;border-top:1px solid var(--line);font-variant-numeric:tabular-nums}
.verdicts .num{text-align:right}.strip{display:block;width:170px;height:20px}
.legend{font-size:.82rem;color:var(--soft);margin:.6rem 0 0}
.versions{columns:3 220px;font-size:.86rem;padding:0;list-style:none;margin:.7rem 0 0}
.versions li{display:flex;justify-content:space-between;gap:1rem;border-bottom:1px solid var(--line);padding:.2rem 0;
break-inside:avoid}
@media (max-width:640px){main{padding:1.4rem .9rem 2rem}h1{font-size:1.5rem}.verdicts thead{display:none}
.verdicts tr{display:grid;grid-template-columns:1fr auto;padding:.6rem .9rem;border-top:1px solid var(--line)}
.verdicts tbody tr:first-child{border-top:0}.verdicts td{border:0;padding:.1rem 0}.verdicts .num{text-align:left}
.verdicts td.name{order:-2;overflow-wrap:anywhere;font-weight:600}
.verdicts td.num::before{content:"measured "}
.verdicts td.wish::before{content:"expected "}
.verdicts td.mark{order:-1}.verdicts td.picture{grid-column:1/-1}
.verdicts td.book{display:none}.verdicts td.num,.verdicts td.wish{grid-column:1/-1;color:var(--soft)}}
"""


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


_RESULT = {"data", "seconds", "budget_seconds", "peak_mb", "budget_mb", "verdicts"}
_VERDICT = {"name", "pass", "value", "unit", "expected", "op", "target", "tolerance"}


def _readable(results: dict) -> dict:
    """Return ``results`` if this version of the course can show them, else nothing."""
    known = results.keys() >= _RESULT and isinstance(results["verdicts"], list)
    return results if known and all(isinstance(v, dict) and v.keys() >= _VERDICT for v in results["verdicts"]) else {}


def collect(folder: Path) -> list[dict]:
    """Return one record per notebook of a folder of runs: ``name``, ``place``, ``run``, ``results`` (may be empty)."""
    records = []
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith(".")):
        run, results = _read(place / "run.json"), _readable(_read(place / "results.json"))
        if run or results:
            records.append({"name": place.name, "place": place, "run": run, "results": results})
    return records


def build(folder: Path) -> Path:
    """Write ``index.html`` over a folder of runs; the same results give the same bytes.

    Raises
    ------
    CourseError
        There is no run in the folder.
    """
    folder = Path(folder)
    records = collect(folder) if folder.is_dir() else []
    if not records:
        raise CourseError("no runs", "folders with run.json or results.json", "python -m helpers run", file=folder)
    verdicts = [(record, verdict) for record in records for verdict in record["results"].get("verdicts", ())]
    passed = sum(verdict["pass"] for _, verdict in verdicts)
    good = sum(_status(record)[0] for record in records)
    seconds = sum(record["results"].get("seconds", 0) for record in records)
    lead = f"{good} of {len(records)} notebooks complete &middot; {passed} of {len(verdicts)} verdicts pass"
    body = [
        f'<h1>Morphology meets transcriptomics</h1><p class="lead">{lead} &middot; {seconds:.0f} s in all</p>',
        f'<div class="cards">{"".join(_card(record) for record in records)}</div>',
        _matrix(verdicts),
        _versions(records),
        "<footer>Made by <code>python -m helpers report</code>. This page needs no network.</footer>",
    ]
    write(frame("Course report", "\n".join(body), style=STYLE), folder / "index.html")
    return folder / "index.html"


def _status(record: dict) -> tuple[bool, str]:
    results = record["results"]
    kind = record["run"].get("kind")
    if kind is None:  # run by hand in Jupyter: only the notebook's own record exists
        failed = any(not verdict["pass"] for verdict in results["verdicts"])
        kind = "verdict failed" if failed else "complete"
    return kind == "complete", kind


def _card(record: dict) -> str:
    results, run = record["results"], record["run"]
    good, kind = _status(record)
    number, _, slug = record["name"].partition("_")
    title = results.get("title") or run.get("title") or slug.replace("_", " ").capitalize()
    mood = "good" if good else "bad"
    parts = [
        f'<div class="head"><h3><span class="no">{esc(number)}</span>{esc(title)}</h3>'
        f'<span class="pill {mood}">{"&#10003;" if good else "&#10005;"} {esc(kind)}</span></div>'
    ]
    if not good:
        cell = f"code cell {run['cell']}: " if run.get("cell") else ""
        parts.append(f'<p class="why">{esc(cell)}{esc(run.get("reason", ""))}</p>')
    if results:
        trap = f' <span class="pill bad">TRAP {esc(results["trap"])}</span>' if results.get("trap") else ""
        if results["data"] or trap:
            parts.append(f'<div class="facts">{esc(results["data"])}{trap}</div>')
        parts.append(
            f'<div class="meters">{_meter(results["seconds"], results["budget_seconds"], "s")}'
            f"{_meter(results['peak_mb'], results['budget_mb'], 'MB')}</div>"
        )
        marks = (f'<li{"" if v["pass"] else " class=bad"}>{esc(v["name"])}</li>' for v in results["verdicts"])
        parts.append(f'<ul class="marks">{"".join(marks)}</ul>')
    page = record["place"] / f"{record['name']}.html"
    if page.is_file():
        address = urllib.parse.quote(f"{record['name']}/{page.name}")
        parts.append(f'<a class="go" href="{esc(address)}">Open the executed notebook &rarr;</a>')
    return f'<article class="card {mood}">{_shot(record, number)}<div class="text">{"".join(parts)}</div></article>'


def _meter(used: float, budget: float, unit: str) -> str:
    share = min(1.0, used / budget) if budget else 1.0
    over = ' class="over"' if used > budget else ""
    return (
        f"<div>{used:,.0f} of {budget:,.0f} {unit}"
        f'<div class="bar"><i{over} style="width:{share:.0%}"></i></div></div>'
    )


def _shot(record: dict, number: str) -> str:
    for figure in record["results"].get("figures", ()):
        source = thumbnail(record["place"] / figure["file"], THUMBNAIL_PX)
        if source:
            return f'<div class="shot"><img alt="{esc(figure["alt"])}" src="{source}"></div>'
    return f'<div class="shot empty" aria-hidden="true">{esc(number)}</div>'


def thumbnail(file: Path, side: int) -> str:
    """Return a picture no larger than ``side`` pixels as a data URI, or nothing if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            small = picture.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _matrix(verdicts: list) -> str:
    if not verdicts:
        return ""
    rows = []
    for record, verdict in verdicts:
        value = "not a number" if verdict["value"] is None else f"{verdict['value']:.4g} {verdict['unit']}"
        pill = '<span class="pill good">PASS</span>' if verdict["pass"] else '<span class="pill bad">FAIL</span>'
        rows.append(
            f'<tr><td class="book soft">{esc(record["name"][:2])}</td><td class="name">{esc(verdict["name"])}</td>'
            f'<td class="num">{esc(value)}</td><td class="wish">{esc(verdict["expected"])}</td>'
            f'<td class="picture">{_strip(verdict)}</td><td class="mark">{pill}</td></tr>'
        )
    return (
        '<h2>Verdicts</h2><div class="wide"><table class="verdicts"><thead><tr><th></th><th>verdict</th>'
        '<th class="num">measured</th><th>expected</th><th>where it lies</th><th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="legend">Shaded: what passes. Ticks: five seeds when the threshold was set. Dot: this run.</p>'
    )


def _strip(verdict: dict) -> str:
    """Return a small picture of where a value lies: pass zone, five seeds, this run."""
    target, tolerance, value = verdict["target"], verdict["tolerance"], verdict["value"]
    points = [*verdict.get("seeds", ()), *([] if value is None else [value])]
    edges = {"within": (target - tolerance, target + tolerance)}.get(verdict["op"], (target, target))
    low, high = min([*points, edges[0]]), max([*points, edges[1]])
    pad = 0.12 * (high - low) or abs(target) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def x(number: float) -> float:
        return round(160 * (number - low) / (high - low) + 5, 1)

    left = 5 if verdict["op"] == "at most" else x(edges[0])
    right = 165 if verdict["op"] == "at least" else x(edges[1])
    colour = "var(--good)" if verdict["pass"] else "var(--bad)"
    ticks = "".join(f'<path d="M{x(seed)} 6v8" stroke="var(--soft)"/>' for seed in verdict.get("seeds", ()))
    dot = "" if value is None else f'<circle cx="{x(value)}" cy="10" r="4.5" fill="{colour}"/>'
    return (
        '<svg class="strip" viewBox="0 0 170 20" aria-hidden="true"><path d="M5 10h160" stroke="var(--line)"/>'
        f'<rect x="{left}" y="4" width="{max(2.0, right - left):.1f}" height="12" rx="3" fill="var(--good)" '
        f'opacity=".22"/>{ticks}{dot}</svg>'
    )


def _versions(records: list[dict]) -> str:
    found: dict[str, set] = {}
    for record in records:
        for name, version in record["results"].get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    if not found:
        return ""
    rows = (
        f'<li><span>{esc(name)}</span><span class="soft">{esc(", ".join(sorted(which)))}</span></li>'
        for name, which in found.items()
    )
    return f'<h2>Versions</h2><ul class="versions">{"".join(rows)}</ul>'

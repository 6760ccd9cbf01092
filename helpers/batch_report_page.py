"""The page of a cohort: counts, what failed, what is odd, the spread over patients, and a row for each sample.

It is one file that needs no network. Of the rows only the first hundred that match are laid out, until more are asked
for: a browser needs a second to lay out a thousand.
"""

from __future__ import annotations

import math
import textwrap
import urllib.parse
from pathlib import Path

import numpy as np

from helpers import batch_report_table as numbers_of
from helpers.report_page import esc, frame

FIRST = 100
"""Rows laid out at first."""
GROUPS, NAMED, OPEN = 20, 8, 8
"""Reasons listed, samples named in each, and lines up to which a summary is open."""
REASON_CHARS = 220
PENDING = ("running", "waiting", "stale", "queued", "suspended", "unknown")
"""States of which nobody can say yet whether they are good."""
BINS, BAR = 24, 16
STYLE = """
main{max-width:1500px}.lead{color:var(--soft);margin:0 0 .8rem;font-size:1.02rem}
.counts{display:flex;flex-wrap:wrap;gap:.4rem;list-style:none;margin:0;padding:0}
.pill{border-radius:99px;padding:.08rem .65rem;font-size:.8rem;white-space:nowrap;font-weight:600;
background:var(--code);color:var(--soft)}
.pill.good{background:var(--goodbg);color:var(--good)}.pill.bad{background:var(--badbg);color:var(--bad)}
.tools{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center;margin:0 0 .8rem}
.tools input,.tools select,.tools button{font:inherit;font-size:.92rem;padding:.35rem .6rem;border-radius:8px;
border:1px solid var(--line);background:var(--card);color:var(--ink);min-width:0;max-width:17rem}
details{margin:1rem 0 0}summary{font-size:1.1rem;font-weight:600;cursor:pointer;margin:0 0 .6rem}
.tools .narrow{display:none}
.wide{overflow:auto;border:1px solid var(--line);border-radius:12px;background:var(--card)}.rows{max-height:88vh}
table{border-collapse:separate;border-spacing:0;font-size:.88rem}
th{font-weight:600;color:var(--soft);text-align:left;vertical-align:bottom;padding:.5rem .7rem}
td{padding:.4rem .7rem;border-top:1px solid var(--line);font-variant-numeric:tabular-nums}
.num{text-align:right}.hide{display:none}
.cohort{width:100%}.cohort td{vertical-align:middle;scroll-margin:6rem}
.cohort th{position:sticky;top:0;background:var(--card);border-bottom:1px solid var(--line);z-index:2;min-width:4.5rem}
.cohort th:nth-child(2),.cohort td:nth-child(2){position:sticky;left:0;background:var(--card);z-index:1}
.cohort th:nth-child(2){z-index:3}.cohort tbody tr:first-child td{border-top:0}
.cohort button{all:unset;cursor:pointer}.cohort button:focus-visible{outline:2px solid var(--link)}
.cohort th[aria-sort=ascending] button::after{content:" \\2191"}
.cohort th[aria-sort=descending] button::after{content:" \\2193"}
.cohort img{width:160px;max-width:none;height:80px;object-fit:contain;display:block}
.cohort td:first-child{padding:.25rem .7rem}.cohort tr:target td{background:var(--code)}
.fail{color:var(--bad);font-weight:600}.fail::before{content:"\\2715\\00a0"}
.odd{background:var(--badbg)}.odd::after{content:"\\00a0\\25C6";color:var(--bad);font-size:.7em}
.why{display:block;color:var(--soft);overflow-wrap:anywhere;min-width:13rem;margin-top:.2rem}
.short td{vertical-align:top}.short .text{overflow-wrap:anywhere;min-width:14rem}.bars{display:block;fill:var(--link)}
@media (max-width:700px){main{padding:1.2rem .8rem 2rem}h1{font-size:1.4rem;overflow-wrap:anywhere}
.short tr{display:flex;flex-wrap:wrap;gap:.1rem .9rem;padding:.5rem .7rem;border-top:1px solid var(--line)}
.short thead,.short td:empty{display:none}.short td{border:0;padding:0}.short .text{min-width:0;flex-basis:100%}
.short td[data-n]::before{content:attr(data-n) " ";color:var(--soft)}
.tools .narrow{display:block}.tools>*{flex:1 1 45%;max-width:none!important}.tools>span{flex-basis:100%}
.rows{max-height:none;overflow:visible;border:0;background:none}.cohort thead{display:none}
.cohort,.cohort tbody{display:block}.cohort tr:not(.hide){display:grid;grid-template-columns:auto 1fr;
gap:0 .7rem;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.6rem .7rem;margin:0 0 .6rem}
.cohort td{display:none;border:0;padding:0;text-align:left}.cohort td:nth-child(-n+5),.cohort td.odd,.cohort td.fail,
.cohort td.by{display:block;grid-column:2}.cohort td:nth-child(2){font-weight:600;position:static}
.cohort td:first-child{grid-column:1;grid-row:1/span 20;padding:0}.cohort td:first-child:empty{display:none}
.cohort img{width:112px;height:74px}.cohort td[data-n]::before{content:attr(data-n) ": "}
.cohort td.fail[data-n]::before{content:"\\2715\\00a0" attr(data-n) ": "}.why{min-width:0}}
"""
SCRIPT = """
const all=w=>[...document.querySelectorAll(w)],one=w=>document.querySelector(w);
const body=one('.cohort tbody'),heads=all('.cohort th'),find=one('#find'),sort=one('#sort'),more=one('#more');
const rows=[...body.rows].map((r,i)=>({r,i,key:{},at:'|'+r.dataset.k+'|',who:r.dataset.p,
words:[...r.cells].slice(1,4).map(c=>c.textContent).join(' ').toLowerCase()}));
const order=new Intl.Collator('en',{numeric:true}),FIRST=+body.parentNode.dataset.first;let most=FIRST,by=-1,sign=1;
function show(){const w=find.value.trim().toLowerCase(),marks=all('.mark').map(s=>s.value).filter(Boolean);
let n=0;const who=new Set();for(const o of rows){
const ok=(!w||o.words.includes(w))&&marks.every(m=>o.at.includes('|'+m+'|'));
if(ok){n++;who.add(o.who)}o.r.classList.toggle('hide',!ok||n>most)}
const people=who.size+(who.size===1?' patient':' patients');
one('#count').textContent=n+' of '+rows.length+' samples, '+people+(n>most?'; first '+most+' shown':'');
more.hidden=n<=most}
function again(){most=FIRST;show()}
function key(o){if(!(by in o.key)){const t=o.r.cells[by].textContent;
o.key[by]=heads[by].classList.contains('num')?parseFloat(t):t}return o.key[by]}
function arrange(i,s){if(by>=0){heads[by].removeAttribute('aria-sort');
for(const o of rows)o.r.cells[by].classList.remove('by')}by=i;sign=s;
heads[i].setAttribute('aria-sort',s>0?'ascending':'descending');sort.value=i+(s>0?'u':'d');
const num=heads[i].classList.contains('num');
rows.sort((p,q)=>{const a=key(p),b=key(q);let c=num?(isNaN(a)||isNaN(b)?(isNaN(a)-isNaN(b))*s||0:a-b):
a===''||b===''?((a==='')-(b===''))*s:order.compare(a,b);return s*c||p.i-q.i});
for(const {r} of rows){const c=r.cells[i];c.classList.add('by');if(num)c.dataset.n=heads[i].textContent}
most=FIRST;show();body.append(...rows.map(o=>o.r))}
heads.forEach((h,i)=>{const b=h.querySelector('button');if(!b)return;
b.addEventListener('click',()=>arrange(i,by===i?-sign:1));
for(const [s,a] of [['u',' \\u2191'],['d',' \\u2193']])sort.add(new Option(b.textContent+a,i+s))});
sort.addEventListener('change',()=>{if(sort.value)arrange(parseInt(sort.value),sort.value.endsWith('u')?1:-1)});
let wait;find.addEventListener('input',()=>{clearTimeout(wait);wait=setTimeout(again,80)});
all('.mark').forEach(s=>s.addEventListener('change',again));
more.addEventListener('click',()=>{most=rows.length;show()});
function jump(){const id=decodeURIComponent(location.hash.slice(1)),o=rows.find(o=>o.r.id===id);
if(!o)return;find.value='';all('.mark').forEach(s=>s.value='');again();o.r.classList.remove('hide');
o.r.scrollIntoView({block:'center'})}
addEventListener('hashchange',jump);show();jump();
"""


def page(folder: Path, cohort, *, notebook: str, pictures: dict) -> str:
    """Return the page over a cohort.

    Parameters
    ----------
    folder
        Of the batch; links go to the folders of samples in it.
    cohort
        From :func:`helpers.batch_report_table.table`.
    notebook
        Its name.
    pictures
        Sample to ``file``, ``alt`` and ``source``.
    """
    counts = cohort["state"].value_counts()
    done = int(counts.get("complete", 0))
    seen = cohort.loc[cohort["state"] == "complete", "patient"].nunique()
    pills = "".join(f'<li class="pill {_mood(state)}">{count} {esc(state)}</li>' for state, count in counts.items())
    lead = f"{done} of {len(cohort)} samples complete &middot; {_many(cohort['patient'].nunique(), 'patient')}"
    body = [
        f'<h1>{esc(notebook)}</h1><p class="lead">{lead}, {seen} of them with a complete sample</p>',
        f'<ul class="counts">{pills}</ul>',
        _failures(cohort),
        _outliers(cohort),
        _spread(cohort),
        f"<h2>Samples</h2>{_tools(cohort, counts)}",
        f'<div class="wide rows">{_rows(folder, cohort, notebook, pictures)}</div>',
        "<noscript><style>.cohort tr.hide{display:table-row}.tools{display:none}</style></noscript>",
        "<footer>&#10005; a verdict that fails. &#9670; far from the other samples (modified z-score above 3.5). "
        "The table is also in <code>cohort.csv</code> and <code>cohort.parquet</code>. "
        "This page needs no network.</footer>",
    ]
    return frame(f"Cohort: {notebook}", "\n".join(part for part in body if part), style=STYLE, script=SCRIPT)


def _mood(state: str) -> str:
    return "good" if state == "complete" else "" if state.startswith(PENDING) else "bad"


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _said(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def _why(row) -> str:
    words = (f"code cell {row['cell']:.0f}: " if math.isfinite(row["cell"]) else "") + row["reason"]
    return textwrap.shorten(words, REASON_CHARS, placeholder=" ...")


def _links(samples) -> str:
    samples = list(samples)
    named = ", ".join(f'<a href="#s-{esc(name)}">{esc(name)}</a>' for name in samples[:NAMED])
    return named + (f" and {len(samples) - NAMED} more" if len(samples) > NAMED else "")


def _short(title: str, heads, rows) -> str:
    """Return a summary that can be folded; ``heads`` are (words, kind) of the columns, ``rows`` hold HTML."""
    if not rows:
        return ""
    head = "".join(f'<th class="{kind}">{words}</th>' for words, kind in heads)
    label = [f' data-n="{words}"' if words else "" for words, _ in heads]
    lines = ["".join(f'<td class="{kind}"{note}>{cell}</td>' for cell, (_, kind), note in zip(row, heads, label))
             for row in rows]  # fmt: skip
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f'<table class="short"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    opened = " open" if len(rows) <= OPEN else ""
    return f'<details{opened}><summary>{title}</summary><div class="wide">{table}</div></details>'


def _failures(cohort) -> str:
    """Return one line a reason, the most frequent first."""
    bad = cohort[[_mood(state) == "bad" for state in cohort["state"]]]
    groups = sorted(bad.groupby(["state", "reason"], sort=True), key=lambda group: -len(group[1]))
    rows = []
    for (state, reason), group in groups[:GROUPS]:
        cells = ", ".join(f"{cell:.0f}" for cell in sorted(group["cell"].dropna().unique()))
        where = f"code cell {cells}: " if cells else ""
        why = textwrap.shorten(where + reason, 4 * REASON_CHARS, placeholder=" ...")
        rows.append((len(group), group["patient"].nunique(), f'<span class="pill bad">{esc(state)}</span>', esc(why),
                     _links(group["sample"])))  # fmt: skip
    left = sum(len(group) for _, group in groups[GROUPS:])
    rows += [(left, "", "", f"{len(groups) - GROUPS} other reasons", "")] if left else []
    heads = [("samples", "num"), ("patients", "num"), ("", ""), ("why", "text"), ("which", "text")]
    return _short(f"What failed: {_many(len(bad), 'sample')}, for {_many(len(groups), 'reason')}", heads, rows)


def _outliers(cohort) -> str:
    """Return one line a number: what is usual, and which samples lie far from it, the farthest first."""
    rows = []
    for name in numbers_of.numbers(cohort):
        far = cohort[numbers_of.outliers(cohort[name])]
        if far.empty:
            continue
        middle = cohort[name].median()
        far = far.loc[(far[name] - middle).abs().sort_values(ascending=False, kind="stable").index]
        named = [f'<a href="#s-{esc(row["sample"])}">{esc(row["sample"])}</a> {_said(row[name])}'
                 for row in far[:NAMED].to_dict("records")]  # fmt: skip
        more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
        low = int((far[name] < middle).sum())
        sides = ", ".join(f"{count} {side}" for count, side in ((low, "low"), (len(far) - low, "high")) if count)
        rows.append((esc(numbers_of.shown(name)), _said(middle), sides,
                     far["patient"].nunique(), ", ".join(named) + more))  # fmt: skip
    heads = [("", ""), ("median", "num"), ("samples", ""), ("patients", "num"), ("which", "text")]
    odd = (cohort["odd"] != "").sum()
    return _short(f"What is odd: {_many(odd, 'sample')}, in {_many(len(rows), 'number')}", heads, rows)


def _spread(cohort) -> str:
    rows = []
    for name, found in numbers_of.spread(cohort).items():
        low, quarter, middle, three, high = map(_said, found["quantiles"])
        passed = "" if found["passed"] is None else f"{found['passed']} of {found['samples']}"
        rows.append((esc(numbers_of.shown(name)), found["patients"], found["samples"], middle,
                     f"{quarter} to {three}", f"{low} to {high}", _bars(found["means"]), passed))  # fmt: skip
    heads = [("", ""), ("patients", "num"), ("samples", "num"), ("median", "num"), ("middle half", ""),
             ("lowest to highest", ""), ("", ""), ("samples that pass", "num")]  # fmt: skip
    return _short(f"Spread of {_many(len(rows), 'number')} over patients", heads, rows)


def _bars(values) -> str:
    """Return a histogram as a small picture."""
    heights, _ = np.histogram(values, bins=BINS)
    tops = [f"M{5 * place} {BAR}v-{max(1.0, BAR * height / heights.max()):.1f}h4v{BAR}z"
            for place, height in enumerate(heights) if height]  # fmt: skip
    size = f'width="{5 * BINS}" height="{BAR}" viewBox="0 0 {5 * BINS} {BAR}"'
    return f'<svg class="bars" {size} aria-hidden="true"><path d="{"".join(tops)}"/></svg>'


# ---------------------------------------------------------------- the long table
def _verdicts(cohort) -> list[str]:
    return [name.removeprefix(numbers_of.PASSED) for name in cohort if name.startswith(numbers_of.PASSED)]


def _tools(cohort, counts) -> str:
    """Return the ways to filter; the values of the options are the marks that :func:`_rows` gives to rows."""
    states = "".join(f'<option value="s{esc(name)}">{esc(name)} ({count})</option>' for name, count in counts.items())
    fails = [(~cohort[numbers_of.PASSED + name].fillna(True)).sum() for name in _verdicts(cohort)]
    some = "".join(f'<option value="f{place}">fails: {esc(name)} ({count})</option>'
                   for place, (name, count) in enumerate(zip(_verdicts(cohort), fails)) if count)  # fmt: skip
    names = numbers_of.numbers(cohort)
    far = [int(numbers_of.outliers(cohort[name]).sum()) for name in names]
    odd = "".join(f'<option value="o{place}">odd: {esc(numbers_of.shown(name))} ({count})</option>'
                  for place, (name, count) in enumerate(zip(names, far)) if count)  # fmt: skip
    return (
        '<div class="tools"><input id="find" type="search" placeholder="sample, patient, reason" aria-label="find">'
        f'<select class="mark" aria-label="state"><option value="">every state</option>{states}</select>'
        '<select class="mark" aria-label="verdict"><option value="">every verdict</option>'
        f'<option value="pass">all pass</option><option value="fail">some fail</option>{some}</select>'
        '<select class="mark" aria-label="outlier"><option value="">odd or not</option>'
        f'<option value="odd">something odd</option><option value="plain">nothing odd</option>{odd}</select>'
        '<select id="sort" class="narrow" aria-label="sort"><option value="">order of the table</option></select>'
        '<span id="count" class="soft" aria-live="polite"></span>'
        '<button id="more" type="button" hidden>show all</button></div>'
    )


def _rows(folder: Path, cohort, notebook: str, pictures: dict) -> str:
    names, verdicts = numbers_of.numbers(cohort), _verdicts(cohort)
    far = {name: numbers_of.outliers(cohort[name]) for name in names}
    heads = [("", ""), ("sample", ""), ("patient", ""), ("state", ""), ("verdicts", "num")]
    heads += [(numbers_of.shown(name), "num") for name in names]
    head = "".join(f'<th class="{kind}">{f"<button>{esc(name)}</button>" if name else ""}</th>' for name, kind in heads)
    rows = []
    for place, row in enumerate(cohort.to_dict("records")):
        failing = {name for name in verdicts if row[numbers_of.PASSED + name] is False}
        odd = {name for name in names if far[name][place]}
        marks = [f"s{row['state']}", *(f"f{verdicts.index(name)}" for name in failing)]
        marks += ["fail"] if failing else ["pass"] if row["verdicts"] else []
        marks += [*(f"o{names.index(name)}" for name in odd), "odd" if odd else "plain"]
        sample, patient = esc(row["sample"]), esc(row["patient"])
        why = f'<span class="why">{esc(_why(row))}</span>' if row["reason"] else ""
        why += f'<span class="why">&#9670; {esc(row["odd"])}</span>' if odd else ""
        cells = [
            f"<td>{_picture(row['sample'], pictures)}</td><td>{_link(folder, row['sample'], notebook)}</td>",
            f'<td>{patient}</td><td><span class="pill {_mood(row["state"])}">{esc(row["state"])}</span>{why}</td>',
            f'<td class="num" data-n="verdicts">{row["verdicts_passed"]} of {row["verdicts"]}</td>',
        ]
        for name in names:
            bad = name.startswith(numbers_of.VERDICT) and name.removeprefix(numbers_of.VERDICT) in failing
            kinds = "num" + " fail" * bad + " odd" * (name in odd)
            label = f' data-n="{esc(numbers_of.shown(name))}"' if bad or name in odd else ""
            cells.append(f'<td class="{kinds}"{label}>{_said(row[name])}</td>')
        late = ' class="hide"' if place >= FIRST else ""
        rows.append(f'<tr id="s-{sample}"{late} data-p="{patient}" data-k="{esc("|".join(sorted(marks)))}">'
                    f"{''.join(cells)}</tr>")  # fmt: skip
    head = f'<table class="cohort" data-first="{FIRST}"><thead><tr>{head}</tr></thead>'
    return f"{head}<tbody>\n{chr(10).join(rows)}</tbody></table>"


def _address(*parts: str) -> str:
    return esc(urllib.parse.quote("/".join(parts)))


def _link(folder: Path, sample: str, notebook: str) -> str:
    """Return the name of a sample, as a link to its notebook, or to what it said before it could start."""
    for file in (f"{notebook}.html", "run.log"):
        if (folder / sample / file).is_file():
            return f'<a href="{_address(sample, file)}">{esc(sample)}</a>'
    return esc(sample)


def _picture(sample: str, pictures: dict) -> str:
    found = pictures.get(sample)
    if not found:
        return ""
    image = f'<img loading="lazy" width="160" height="80" alt="{esc(found["alt"])}" src="{found["source"]}">'
    return f'<a href="{_address(sample, found["file"])}">{image}</a>'

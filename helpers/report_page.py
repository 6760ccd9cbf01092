"""The look of the HTML pages: one style sheet, one frame, and executed notebooks as self-contained pages.

Pages need no network and run no script but, on the page of a cohort, the one that sorts its table: a content-security
policy in each forbids all else, whatever a cell or a sample name may contain.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import os
import re
from pathlib import Path

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root{--paper:#faf9f6;--card:#fff;--ink:#22252a;--soft:#666b73;--line:#e4e1da;--good:#00795a;--goodbg:#e3f3ed;
--bad:#b34700;--badbg:#fdeee3;--link:#00629b;--code:#f4f2ed;--shade:0 1px 2px #0000000d,0 6px 20px #0000000a}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--card:#1f2226;--ink:#e8e6e1;--soft:#a2a6ad;--line:#34383e;
--good:#4cc79f;--goodbg:#17362d;--bad:#f0995a;--badbg:#40291a;--link:#6cb8ea;--code:#272a2f;--shade:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1180px;margin:0 auto;padding:2.2rem 1.25rem 3rem}
h1,h2,h3{line-height:1.22;letter-spacing:-.01em}
h1{font-size:1.85rem;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.6rem 0 .9rem}h3{font-size:1.08rem;margin:0}
a{color:var(--link);text-underline-offset:.18em}img{max-width:100%}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
table{border-collapse:collapse}.soft{color:var(--soft)}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
"""
NOTEBOOK_STYLE = """
main{max-width:920px}.cell{margin:0 0 1rem;min-width:0}.prompt{display:none}.anchor-link{display:none}
.input_area pre{background:var(--code);border-radius:8px;padding:.7rem .9rem;margin:.2rem 0;line-height:1.45;
white-space:pre-wrap;overflow-wrap:anywhere}
.output_area{overflow-x:auto;margin:.35rem 0}.output_area pre{margin:0;padding:.15rem .9rem;white-space:pre-wrap;
overflow-wrap:anywhere}.output_stderr pre{color:var(--soft);font-size:.78em}
.output_error pre{background:var(--badbg);border-left:3px solid var(--bad);border-radius:6px;padding:.7rem .9rem}
.output_png img{border-radius:6px;height:auto;background:#fff}
table{font-size:.86em;margin:.6rem 0}th,td{padding:.28rem .7rem;text-align:right;border:0;
border-bottom:1px solid var(--line)}table.dataframe{border:0}
.text_cell th,.text_cell td{text-align:left}.rendered_html{overflow-x:auto}
details{border:1px solid var(--line);border-radius:8px;padding:.4rem .8rem;margin:.5rem 0}summary{cursor:pointer}
blockquote{margin:1rem 0;padding:.1rem 1rem;border-left:3px solid var(--line);color:var(--soft)}
.highlight .k,.highlight .kn,.highlight .ow,.highlight .kc{color:#8250df}.highlight .s1,.highlight .s2,.highlight .sd,
.highlight .sa{color:var(--good)}.highlight .c1{color:var(--soft);font-style:italic}
.highlight .mi,.highlight .mf{color:var(--bad)}.highlight .nf,.highlight .nc{color:var(--link)}
.back{font-size:.9rem;margin:0 0 1.4rem}
"""


def esc(value: object) -> str:
    """Return text safe inside HTML, also inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def frame(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Return a whole page around a body; of scripts only this very one may run, by its hash in the policy."""
    policy = POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body += f"\n<script>{script}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{esc(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def write(page: str, target: Path) -> bool:
    """Write a page in one step, and only if it differs; return whether it did."""
    target = Path(target)
    if target.is_file() and target.read_text(encoding="utf-8") == page:
        return False
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return True


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", embed_images=True)


def convert(notebook: Path, target: Path) -> None:
    """Turn an executed notebook into one self-contained page."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?!\n|$)", "", output.text)  # a progress bar's last state is enough
    fragment, _ = _exporter().from_notebook_node(content)
    fragment = re.sub(r"<script\b.*?</script>", "", fragment, flags=re.S | re.I)
    title = content.metadata.get("course", {}).get("title", notebook.stem)
    back = '<p class="back"><a href="../index.html">&larr; report</a></p>'
    write(frame(title, back + fragment, style=NOTEBOOK_STYLE), target)

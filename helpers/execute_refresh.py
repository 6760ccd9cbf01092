"""Caretaker: executes a notebook and stores outputs and counts in it; the only way outputs get into git.

The notebook stays the one source: its cells, their order and ids are kept, and only what differs between runs
(time stamps, stderr, papermill's notes) is left out, so that the difference to the last version stays small.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from pathlib import Path

from helpers import notebook as notebooks
from helpers.execute import spawn
from helpers.execute_state import judge
from helpers.messages import CourseError

STORED_MB = 0.9
"""Stored notebooks stay below this; pictures get fewer colours, then fewer pixels, until they do."""
COLOURS = 128
_CELL_METADATA = ("tags", "jupyter", "editable", "deletable")
_NOTEBOOK_METADATA = ("course", "authors", "title")


def refresh(path: Path, *, timeout: float | None = None) -> bool:
    """Execute a notebook with its default parameters and store outputs and counts in it.

    Returns
    -------
    bool
        Whether the file changed.

    Raises
    ------
    CourseError
        The notebook did not complete, or a verdict failed; the file is left as it was.
    """
    import nbformat

    declared = notebooks.load(path)
    with tempfile.TemporaryDirectory() as home:
        made = Path(home) / "latest" / declared.name
        made.mkdir(parents=True)
        ended = spawn(declared, made, given={}, runs=Path(home), timeout=timeout)
        outcome = judge(made, declared)
        if ended != "ended" or not outcome.good:
            where = f" in code cell {outcome.cell}" if outcome.cell else ""
            seen = f"{outcome.kind}{where}: {outcome.reason}" if ended == "ended" else f"no end after {timeout:g} s"
            raise CourseError(seen, "a run that completes and passes", "mend the notebook", file=path)
        executed = nbformat.read(made / f"{declared.name}.ipynb", as_version=4)
        source = nbformat.read(path, as_version=4)
        for name in source.metadata.get("course", {}).get("readme", ()):  # the pictures README.md shows
            shown = base64.b64encode((made / "figures" / f"{name}.png").read_bytes()).decode()
            (path.parent.parent / "figures" / f"{name}.png").write_bytes(base64.b64decode(_palette(shown, 1.0)))
    text = nbformat.writes(normalise(source, executed)) + "\n"
    if text == path.read_text(encoding="utf-8"):
        return False
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return True


def normalise(source, executed):
    """Return the source notebook with the outputs of an executed one, in the form that is stored."""
    outputs = [cell for cell in executed.cells if cell.cell_type == "code"]
    count = 0
    for index, cell in enumerate(source.cells):
        cell.metadata = {key: cell.metadata[key] for key in _CELL_METADATA if key in cell.metadata}
        cell.setdefault("id", hashlib.sha256(f"{index}{cell.source}".encode()).hexdigest()[:8])
        if cell.cell_type == "code":
            made = outputs[count]
            count += 1
            cell.execution_count = count
            cell.outputs = _kept(made.outputs, count)
    source.metadata = {
        **{key: source.metadata[key] for key in _NOTEBOOK_METADATA if key in source.metadata},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    source.nbformat, source.nbformat_minor = 4, 5
    _slim(source)
    return source


def _kept(outputs, count: int) -> list:
    kept, stdout = [], None
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if stdout is not None:
                stdout.text += output.text
                continue
            stdout = output
        if output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    return kept


def _slim(notebook) -> None:
    import nbformat

    pictures = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    originals = [data["image/png"] for data in pictures]
    for shrink in (1.0, 0.85, 0.7, 0.55, 0.4):
        for data, original in zip(pictures, originals):
            data["image/png"] = _palette(original, shrink)
        if len(nbformat.writes(notebook).encode()) < STORED_MB * 1e6:
            return


def _palette(encoded: str, shrink: float) -> str:
    from PIL import Image, ImageColor

    from helpers.plots import OKABE_ITO

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
    if shrink < 1:
        flat = flat.resize((round(flat.width * shrink), round(flat.height * shrink)), Image.Resampling.LANCZOS)
    named = [value for colour in OKABE_ITO for value in ImageColor.getrgb(colour)]  # thin lines would lose theirs
    common = flat.quantize(COLOURS - len(OKABE_ITO)).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette(common + named)
    stream = io.BytesIO()
    flat.quantize(palette=palette, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()

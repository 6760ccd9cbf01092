"""Strongroom: named arrays and one description in an ``.npz`` file; reading one runs no code, whoever made it.

Rooms that keep small models build on it. A pickle, or anything else that could act when it is opened, is refused.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

LARGEST = 1 << 30
"""Bytes a file may unpack to."""
_FACTS = "facts"
_PICKLES = "a pickle (.pt, .pth, .ckpt, .pkl) can run any code when opened; fit anew, or convert it (notebook 07)"


def write(path, facts: dict, arrays: dict) -> Path:
    """Write arrays and a description that JSON can hold, first under a temporary name.

    Raises
    ------
    CourseError
        A name that does not end in ``.npz``.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise CourseError(f"a file named {path.name}", "a name ending in .npz", "rename it", file=path)
    packed = io.BytesIO()
    np.savez(packed, **arrays, **{_FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(packed.getvalue())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read(path, *, format: int, needs=(), made_by: str) -> tuple[dict, dict]:
    """Return the description and the arrays of a file that :func:`write` wrote.

    Parameters
    ----------
    format, needs
        What the description says under ``format``, and the keys it must have.
    made_by
        The call that writes such files, for the complaint.

    Raises
    ------
    CourseError
        A pickle, a damaged file, one that unpacks to more than 1 GB, or one without such a description.
    """
    path = Path(path)
    if path.suffix != ".npz":
        seen = f"weights saved as {path.suffix or 'a file without ending'}"
        raise CourseError(seen, f"an .npz file written by {made_by}", _PICKLES, file=path)
    if not path.is_file():
        raise CourseError("no such file", "an .npz file", "check the path", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise CourseError("an archive that unpacks to more than 1 GB", "a model", "do not use it", file=path)
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError):
        seen = "a file that holds no plain arrays (cut short, pickled, or another kind)"
        raise CourseError(seen, f"an .npz written by {made_by}", _PICKLES, file=path) from None
    try:
        facts = json.loads(bytes(arrays.pop(_FACTS)))
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict) or facts.get("format") != format or any(key not in facts for key in needs):
        expected = f"format {format}, written by {made_by}"
        raise CourseError("an .npz without a description of this course", expected, "save it again", file=path)
    return facts, arrays


def named(encoder) -> dict:
    """Return name and fingerprint of an encoder (``helpers.encoders``), or of a dict that holds them."""
    found = encoder if isinstance(encoder, dict) else {n: getattr(encoder, n, None) for n in ("name", "fingerprint")}
    if not all(isinstance(found.get(key), str) for key in ("name", "fingerprint")):
        raise CourseError(f"encoder {encoder!r:.80}", "an encoder, with name and fingerprint", "pass encoders.get(...)")
    return {key: found[key] for key in ("name", "fingerprint")}

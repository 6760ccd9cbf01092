"""Sources: where a clinical data set lies, the quality table of its slides, and whether its files are whole.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from helpers import readers_clinical_tables as tables
from helpers import settings
from helpers.messages import CourseError

MAX_HASHED = 2**28
"""Files of a manifest are hashed up to this many bytes together; beyond, only their sizes are compared."""


def locate(data) -> Path:
    """Return the folder or file that an id of a data set, ``word:/path`` or a path names.

    Raises
    ------
    CourseError
        Nothing lies there.
    """
    _, colon, rest = str(data).partition(":")
    place = Path(rest if colon and "/" in rest else data).expanduser()
    if not (place.is_absolute() or place.exists()):
        place = settings.data_dir() / data
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        fix = f"python -m helpers data lists them (COURSE_DATA: {settings.data_dir()})"
        raise CourseError(f"no data {data!r}", "a data set that is here, or clinical:/folder", fix, file=place)
    return place


def is_here(data) -> bool:
    """Return whether :func:`locate` would find something."""
    try:
        return bool(data) and bool(locate(data))
    except (CourseError, OSError):
        return False


def check_manifest(path, *, max_hashed: int = MAX_HASHED) -> pd.DataFrame:
    """Compare the files of a GDC manifest with what lies beside it (``<id>/<filename>`` or ``<filename>``).

    Returns
    -------
    pandas.DataFrame
        ``filename``, ``state``: "right" (MD5 agrees), "right size" (not hashed, too much data), "missing".

    Raises
    ------
    CourseError
        A file of the wrong size or MD5.
    """
    path = Path(path)
    table = tables.read(path)
    table.columns = [tables.plain(name) for name in table.columns]
    rows, budget = [], max_hashed
    for row in table.to_dict("records"):
        places = (path.parent / str(row.get("id", "")) / row["filename"], path.parent / row["filename"])
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            rows.append((row["filename"], "missing"))
            continue
        size = file.stat().st_size
        hashed = size <= budget
        budget -= size if hashed else 0
        wrong = "size" in row and size != int(row["size"])
        if not wrong and hashed:
            with open(file, "rb") as stream:
                wrong = hashlib.file_digest(stream, "md5").hexdigest() != str(row["md5"]).lower()
        if wrong:
            wanted = f"{row.get('size', '?')} bytes, md5 {row['md5']}"
            raise CourseError(f"{size} bytes that differ from the manifest", wanted, "download it again", file=file)
        rows.append((row["filename"], "right" if hashed else "right size"))
    return pd.DataFrame(rows, columns=["filename", "state"])

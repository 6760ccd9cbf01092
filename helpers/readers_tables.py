"""Sources: text tables - counts with spots called ``XxY``, positions, labels, metadata, gene names.

Line ends, a byte-order mark, compression, separators and decimal commas are understood. ``readers`` and the files named
``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError, note
from helpers.readers_files import IMAGE_SUFFIXES, unreadable

TABLE_SUFFIXES = (".tsv", ".txt", ".csv", ".tsv.gz", ".txt.gz", ".csv.gz")
_BROKEN = (OSError, EOFError, UnicodeDecodeError, zlib.error)
_NOT_LABELS = {"sample_name", "section_id", "replicate", "bioproject_accession"}
_SUBJECTS = ("subject_id", "patient_id", "patient", "animal", "isolate")
_XY = re.compile(r"(-?\d+(?:[.,]\d+)?)x(-?\d+(?:[.,]\d+)?)")


def _open_text(path):
    """Open a text table, compressed or not (told by content), with any line ends and an optional byte-order mark."""
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig")


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip().strip('"') for field in line.rstrip("\n").split(separator)]


def _separator(line: str) -> str:
    return next((mark for mark in "\t;, " if mark in line), "\t")


def stem(path: Path) -> str:
    name = path.name
    return next(
        (
            name[: -len(end)]
            for end in sorted((*TABLE_SUFFIXES, *IMAGE_SUFFIXES), key=len, reverse=True)
            if name.lower().endswith(end)
        ),
        name,
    )


def kind(path: Path) -> str | None:
    """Say what a text table holds: ``counts``, ``positions``, ``labels``, ``genes``, ``metadata`` or None."""
    try:
        with _open_text(path) as stream:
            first, second = stream.readline(), stream.readline()
    except _BROKEN:
        return None
    separator = _separator(first)
    header, row = _fields(first, separator), _fields(second, separator)
    names = {name.lower() for name in header}
    if {"x", "y", "pixel_x", "pixel_y"} <= names:
        return "labels" if "label" in names else "positions"
    if {"gene_id", "gene_name"} <= names:
        return "genes"
    if {"sample_name", "section_id"} & set(header):
        return "metadata"
    spots = sum(bool(_XY.fullmatch(name)) for name in header[1:])
    if (len(row) > 1 and _XY.fullmatch(row[0])) or (spots and spots >= 0.5 * len(header[1:])):
        return "counts"
    return None


def read_table(path) -> pd.DataFrame:
    """Return a small text table (positions, labels, metadata, genes); decimal commas are understood."""
    try:
        with _open_text(path) as stream:
            separator = _separator(stream.readline())
        table = pd.read_csv(path, sep=separator, encoding="utf-8-sig", dtype=str, compression="infer")
    except (*_BROKEN, ValueError) as error:
        raise unreadable(path, error) from None
    table.columns = [str(name).strip() for name in table.columns]
    return table


def numbers(table, columns, path) -> np.ndarray:
    values = table[list(columns)].apply(lambda column: pd.to_numeric(column.str.replace(",", "."), errors="coerce"))
    if values.isna().any().any():
        line = int(np.flatnonzero(values.isna().any(axis=1))[0]) + 2
        raise CourseError(f"no number in line {line}, columns {', '.join(columns)}", "a number", "repair it", file=path)
    return values.to_numpy(float)


def read_counts(path):
    """Return a text table of counts as AnnData, spots x genes; a transposed table is turned and that is said.

    Rows are parsed one by one into a sparse matrix, so a table of 350 spots and 16,000 genes takes about a second.
    """
    from anndata import AnnData
    from scipy import sparse

    names, rows = [], []
    try:
        with _open_text(path) as stream:
            first = stream.readline()
            separator = _separator(first)
            header = _fields(first, separator)
            for number, line in enumerate(stream, start=2):
                if not line.strip():
                    continue
                name, _, rest = line.partition(separator)
                values = _parse_row(rest, separator, number, path)
                if rows and values.size != rows[0].shape[1]:
                    raise CourseError(
                        f"{values.size} values in line {number}",
                        f"{rows[0].shape[1]} as in the first row",
                        "the file is cut short or damaged; copy it again",
                        file=path,
                    )
                names.append(name.strip().strip('"'))
                rows.append(sparse.csr_matrix(values[None]))
    except _BROKEN as error:
        raise unreadable(path, error) from None
    if not rows or not rows[0].shape[1]:
        raise CourseError(
            "a table without rows or without columns", "spots in rows, genes in columns", "check the file", file=path
        )
    width = rows[0].shape[1]
    columns = header[1:] if len(header) == width + 1 else header  # R's write.table leaves the corner out
    if len(columns) != width:
        raise CourseError(
            f"{len(columns)} column names for {width} columns", "one each", "repair the header", file=path
        )
    matrix = sparse.vstack(rows, format="csr")
    if not all(_XY.fullmatch(name) for name in names[:20]) and all(_XY.fullmatch(name) for name in columns[:20]):
        note(f"note: {Path(path).name}: genes in rows and spots in columns; the table was turned")
        names, columns, matrix = columns, names, matrix.T.tocsr()
    wrong = next((name for name in names if not _XY.fullmatch(name)), None)
    if wrong is not None:
        raise CourseError(f"a row called {wrong!r}", "array coordinates such as 12x7", "name the rows XxY", file=path)
    return AnnData(matrix, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=columns))


def _parse_row(rest: str, separator: str, number: int, path) -> np.ndarray:
    text = rest.replace(",", ".") if separator != "," else rest
    if '"' in text:
        text = text.replace('"', "")
    fields = text.count(separator) + 1
    try:
        values = np.array(text.split(separator), dtype=float)
    except ValueError:
        values = None
    if values is None or values.size != fields:
        bad = next((field for field in text.split(separator) if not _is_number(field)), "an empty field")
        raise CourseError(f"{bad.strip()!r} in line {number}", "a count", "repair the table", file=path)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def array_xy(names) -> np.ndarray:
    """Return the array coordinates written in spot names such as ``12x7`` or ``3.942x25.915``: float (n, 2), x, y."""
    pairs = [_XY.fullmatch(name).groups() for name in names]
    return np.array([[float(value.replace(",", ".")) for value in pair] for pair in pairs]).reshape(-1, 2)


def name_genes(counts, path=None) -> None:
    """Replace Ensembl ids by symbols, in place; the ids go to ``var["gene_id"]`` and unknown ones keep their id.

    Parameters
    ----------
    counts
        AnnData. Nothing happens unless most gene names are Ensembl ids.
    path
        Table with columns ``gene_id`` and ``gene_name``; default: the small one in ``data/gene_names.tsv``.
    """
    ids = counts.var_names.astype(str)
    if not np.mean([name.startswith("ENS") for name in ids[:200]]) > 0.5:
        return
    path = Path(path or settings.ROOT / "data" / "gene_names.tsv")
    table = read_table(path)
    exact = dict(zip(table["gene_id"], table["gene_name"]))
    bare = {name.split(".")[0]: symbol for name, symbol in exact.items()}
    symbols = [exact.get(name) or bare.get(name.split(".")[0]) for name in ids]
    unknown = sum(symbol is None for symbol in symbols)
    counts.var["gene_id"] = ids.to_numpy()
    counts.var_names = [symbol or name for symbol, name in zip(symbols, ids)]
    counts.uns["unmapped_genes"] = unknown
    if unknown:
        note(f"note: {unknown} of {len(ids)} Ensembl ids have no symbol in {path.name} and keep their id")


def subject_of(name: str) -> str:
    """Return the patient or animal a name tells: A1 is of A, MOB3 of MOB, P1_b of P1; else the name itself."""
    match = re.fullmatch(r"([A-Za-z]+)\d+|([A-Za-z]+\d+)_[A-Za-z]", name)
    return (match.group(1) or match.group(2)) if match else name


def metadata_of(paths) -> dict[str, tuple[str, dict[str, str]]]:
    """Return subject and labels by section from tables with a column ``section_id`` or ``sample_name``."""
    known = {}
    for path in paths:
        table = read_table(path).fillna("")
        key = next(column for column in ("section_id", "sample_name") if column in table)
        subject = next((column for column in _SUBJECTS if column in table), None)
        for row in table.to_dict("records"):
            hidden = _NOT_LABELS.union(_SUBJECTS)
            labels = {name: value for name, value in row.items() if name not in hidden and value}
            known[row[key]] = ((row[subject] if subject else "") or subject_of(row[key]), labels)
    return known

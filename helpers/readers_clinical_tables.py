"""Sources: columns of clinical and gene tables, whatever their publisher calls them.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.readers_files import unreadable

SUFFIXES = (".csv", ".tsv", ".txt", ".csv.zip", ".tsv.zip", ".txt.zip", ".csv.gz", ".tsv.gz", ".txt.gz")
DAYS_PER_MONTH = 365.25 / 12
PATIENT = ("case_id", "patient_id", "case_submitter_id", "cases_submitter_id", "submitter_id", "bcr_patient_barcode",
           "patient", "patientid", "case", "sample_id", "sample")  # fmt: skip
SLIDE = ("slide_id", "slide", "image_id", "filename")
MONTHS = ("survival_months", "os_months", "overall_survival_months", "overall_survival__months")
DAYS = ("os_time", "survival_days", "os_days", "overall_survival_days", "overall_survival__days")
DEATH, FOLLOWED = ("days_to_death",), ("days_to_last_follow_up", "days_to_last_followup", "days_to_last_known_alive")
EVENT = ("censorship", "os_status", "vital_status", "overall_survival_status", "os", "event", "dead", "death")
AGE = ("age", "age_at_index", "age_at_diagnosis", "age_at_initial_pathologic_diagnosis", "diagnosis_age")
SUBTYPE = ("subtype", "molecular_subtype", "pam50", "pam50_subtype", "brca_subtype")
RECEPTORS = ("er_status_by_ihc", "pr_status_by_ihc", "her2_status_by_ihc")
RESPONSE = ("response", "pcr", "pathologic_response")
KINDS_OF_CANCER = ("oncotree_code", "histological_type", "primary_diagnosis")
GENE_END = re.compile(r"_(rnaseq|rna|mrna|expression)$", re.I)
OTHER_END = re.compile(r"_(cnv|cna|mut|mutation|methylation|protein|rppa)$", re.I)
NOT_GENES = ("is_female", "train", "site")
GENE_HEAD = ("hugo_symbol", "gene", "gene_symbol", "gene_name", "symbol")
MISSING = ["'--", "--", "[Not Available]", "[Not Applicable]", "[Unknown]", "[Not Evaluated]", "Not Reported",
           "not reported", "Unknown", "unknown", "[Completed]", "[Discrepancy]"]  # fmt: skip
_TCGA = re.compile(r"TCGA-\w\w-\w{4}", re.I)
_DEAD, _ALIVE = ("dead", "deceased", "died", "yes", "true", "1", "1.0"), ("alive", "living", "no", "false", "0", "0.0")


def plain(name) -> str:
    """Return a column's name in lower case, other signs as underscores; GDC's ``demographic.`` and the like taken off.

    ``cases.submitter_id`` keeps its first word, as other tables of a GDC export have a ``submitter_id`` too.
    """
    name = str(name).strip().lower()
    name = name if name.startswith("cases.") else name.rsplit(".", 1)[-1] if re.match(r"[a-z_]+\.[a-z]", name) else name
    return re.sub(r"[^a-z0-9]", "_", name).strip("_")


def column(table, names) -> str | None:
    """Return the first column of ``table`` whose plain name is one of ``names``, in the order of ``names``."""
    known = {}
    for own in table.columns:
        known.setdefault(plain(own), own)
    return next((known[name] for name in names if name in known), None)


def is_table(path: Path) -> bool:
    """Return whether a file's name is that of a text table."""
    return path.name.lower().endswith(SUFFIXES)


def read(path, *, rows: int | None = None) -> pd.DataFrame:
    """Return a text table (comma, tab or semicolon; plain, gzip or zip), lines of comment before its header left out.

    Raises
    ------
    CourseError
        A damaged, empty or one-column file.
    """
    path = Path(path)
    try:
        with _opened(path) as stream:
            lines = stream.read(2**20).decode("utf-8-sig", errors="replace").splitlines()
        skip = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
        mark = max("\t,;", key=lines[skip].count) if lines else ","
        hidden = re.sub(r"^#\s*(dataset:)?\s*", "", lines[skip - 1]) if skip else ""  # HistoQC hides its header so
        names = [name.strip() for name in hidden.split(mark)] if hidden.startswith("filename") else None
        with _opened(path) as stream:
            table = pd.read_csv(stream, sep=mark, skiprows=skip, nrows=rows, na_values=MISSING, low_memory=False,
                                encoding="utf-8-sig", header=None if names else "infer", names=names)  # fmt: skip
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from None
    table.columns = [str(name).strip() for name in table.columns]
    if table.shape[1] < 2:
        raise CourseError("a table of one column", "columns separated by comma, tab or semicolon",
                          "check the separator", file=path)  # fmt: skip
    return table


@contextlib.contextmanager
def _opened(path: Path):
    """Open a file for reading bytes; told by content whether it is packed. A zip holds one file, ``__MACOSX`` apart."""
    with open(path, "rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as stream:
                yield stream
        elif magic == b"PK\x03\x04":
            with zipfile.ZipFile(raw) as packed:
                inside = [name for name in packed.namelist() if not name.startswith("__MACOSX") and name[-1] != "/"]
                if len(inside) != 1:
                    raise ValueError(f"{len(inside)} files in the zip, one expected")
                with packed.open(inside[0]) as stream:
                    yield stream
        else:
            yield raw


def kind(table) -> str | None:
    """Say what a table holds: ``clinical``, ``samples``, ``genes``, ``histoqc``, ``manifest`` or None.

    ``clinical``: patients with an outcome, perhaps with genes. ``samples``: which sample is whose.
    """
    names = {plain(name) for name in table.columns}
    if {"filename", "md5"} <= names:
        return "manifest"
    if "pixels_to_use" in names:
        return "histoqc"
    timed = names & {*MONTHS, *DAYS, *FOLLOWED}
    if column(table, PATIENT) and timed and names & set(EVENT):
        return "clinical"
    if {"patient_id", "sample_id"} <= names:
        return "samples"
    many = table.select_dtypes("number").shape[1]
    if many >= 3 and (column(table, GENE_HEAD) == table.columns[0] or _genes_down(table)):
        return "genes"
    return "genes" if column(table, PATIENT) and many >= 3 else None


def _genes_down(table) -> bool:
    """Return whether the columns are samples (TCGA barcodes), so that genes run down the rows."""
    return np.mean([bool(_TCGA.match(str(name))) for name in table.columns[1:]]) > 0.5


def patient_of(names) -> pd.Series:
    """Return patient ids: TCGA barcodes of samples and slides are cut to their patient, others stay as they are."""
    text = pd.Series(names, dtype=object).astype(str).str.strip()
    return text.where(~text.str.match(_TCGA), text.str.upper().str[:12])


def is_tumour(names) -> np.ndarray:
    """Return which samples are tumour, bool (n,): TCGA codes 01 to 09 of the barcode; others are taken to be."""
    code = pd.Series(names, dtype=object).astype(str).str.extract(r"^TCGA-\w\w-\w{4}-(\d\d)", flags=re.I)[0]
    return (code.isna() | code.fillna("01").astype(int).between(1, 9)).to_numpy()


# ---------------------------------------------------------------- outcomes
def outcomes(table, path=None) -> tuple[pd.DataFrame, str]:
    """Return ``time`` (months, float) and ``event`` (1, 0 or NaN) of each row, and which columns they came from.

    Raises
    ------
    CourseError
        No columns for them, or words and numbers that cannot be events.
    """
    flag = column(table, EVENT)
    event = _events(table[flag], plain(flag), path)
    months, days, death = column(table, MONTHS), column(table, DAYS), column(table, DEATH)
    if months or days:
        name = months or days
        time = _numbers(table[name]) / (1 if months else DAYS_PER_MONTH)
        source = name
    else:
        alive = column(table, FOLLOWED)
        dead = _numbers(table[death]) if death else pd.Series(np.nan, table.index)
        followed = _numbers(table[alive]) if alive else pd.Series(np.nan, table.index)
        time = dead.where((event == 1) & dead.notna(), followed) / DAYS_PER_MONTH
        source = f"{death or 'nothing'}, else {alive}"
    return pd.DataFrame({"time": time, "event": event}), f"time from {source}, event from {flag}"


def _numbers(values) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").astype(float)


def _events(values, name, path):
    words = values.astype(str).str.strip().str.lower().str.replace(r"^([01])\s*:.*", r"\1", regex=True)
    found = pd.Series(np.nan, values.index)
    found[words.isin(_DEAD)], found[words.isin(_ALIVE)] = 1.0, 0.0
    strange = found.isna() & values.notna()
    if strange.any():
        raise CourseError(f"{values[strange].iloc[0]!r} in column {name}", "0 and 1, alive and dead",
                          "recode the column", file=path)  # fmt: skip
    return 1 - found if name == "censorship" else found  # PORPOISE: 1 = censored, that is alive


def clinical_facts(table) -> pd.DataFrame:
    """Return ``age`` (years, NaN where unknown), ``subtype``, ``histology``, ``response`` ("" where unknown)."""
    out = pd.DataFrame(index=table.index)
    name = column(table, AGE)
    age = _numbers(table[name]) if name else pd.Series(np.nan, table.index)
    days = age.notna().any() and age.median() > 150  # as the GDC gives them
    out["age"] = (age / 365.25 if days else age).where(lambda v: v > 0)
    for fact, names in (("subtype", SUBTYPE), ("histology", KINDS_OF_CANCER), ("response", RESPONSE)):
        name = column(table, names)
        out[fact] = table[name].fillna("").astype(str) if name else ""
    tested = [column(table, (name,)) for name in RECEPTORS]
    if all(tested) and not column(table, SUBTYPE):
        out["subtype"] = subtype_by_receptors(*(table[name] for name in tested))
    return out


def subtype_by_receptors(er, pr, her2) -> pd.Series:
    """Return "HER2+", "TNBC", "Luminal" or "Other" by immunohistochemistry (STimage, Methods).

    HER2 positive: HER2+. All three negative: TNBC. ER positive otherwise: Luminal. The rest: Other.
    """
    er, pr, her2 = (pd.Series(one).astype(str).str.strip().str.lower() for one in (er, pr, her2))
    none = (er == "negative") & (pr == "negative") & (her2 == "negative")
    return pd.Series(np.select([her2 == "positive", none, er == "positive"], ["HER2+", "TNBC", "Luminal"], "Other"),
                     er.index)  # fmt: skip


# ---------------------------------------------------------------- genes
def genes_of(table) -> pd.DataFrame:
    """Return the gene columns of a table of patients: those that end in ``_rnaseq`` or the like, without that ending.

    Where no column has such an ending: every numeric column that is neither a known clinical fact, nor a mutation or a
    copy number. Words where numbers belong become NaN. A gene that is there twice keeps its first column.
    """
    ends = [name for name in table.columns if GENE_END.search(name)]
    if not ends:
        known = {*PATIENT, *SLIDE, *MONTHS, *DAYS, *DEATH, *FOLLOWED, *EVENT, *AGE, *SUBTYPE, *NOT_GENES}
        numeric = [n for n in table.select_dtypes("number").columns if not n.startswith("Unnamed")]
        ends = [n for n in numeric if plain(n) not in known and not OTHER_END.search(n)]
    made = table[ends].apply(pd.to_numeric, errors="coerce").astype(float)
    made.columns = [GENE_END.sub("", name) for name in ends]
    return made.loc[:, ~made.columns.duplicated()]


def expression(table) -> pd.DataFrame:
    """Return a gene table as patients x genes, float, whichever way it lay; tumour samples only, means of a patient's.

    Sources: cBioPortal (``Hugo_Symbol``, a column a sample), tables with a column of patients and a column a gene.
    """
    head = column(table, GENE_HEAD)
    if head == table.columns[0] or _genes_down(table):
        names = table.columns[0]
        samples = table.drop(columns=names).select_dtypes("number")
        samples = samples.loc[:, [not plain(name).startswith("entrez") for name in samples.columns]]
        made = samples.set_axis(table[names].astype(str), axis=0).T
        made = made.loc[:, (made.columns != "nan") & ~made.columns.duplicated()].astype(float)
        rows = pd.Index(samples.columns)
    else:
        name = column(table, PATIENT)
        made, rows = genes_of(table.drop(columns=name)), pd.Index(table[name])
    tumour = is_tumour(rows)
    made = made.loc[tumour].set_axis(patient_of(rows[tumour]).to_numpy(), axis=0)
    made = made.groupby(level=0).mean() if made.index.has_duplicates else made
    return made.rename_axis(index="patient_id", columns=None)

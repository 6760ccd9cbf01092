"""Sources: cohorts of patients - outcomes, clinical facts, gene tables, slides, response to treatment.

Layouts read: PORPOISE (one row a slide, genes as ``*_rnaseq``), GDC (``clinical.tsv``), cBioPortal
(``data_clinical_patient.txt`` with a gene table beside it). ``readers`` and the files named ``readers_*`` are one room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import readers_clinical_tables as tables
from helpers.messages import CourseError
from helpers.readers_clinical_files import check_manifest, is_here, locate
from helpers.readers_files import files_in

MAX_GAPS = 0.05
"""A gene that more than this share of the patients lack is left out; smaller gaps take the gene's median."""
MIN_SHARED = 0.5
"""A gene table is joined if at least this share of the patients is in it."""
POSITIVE, NEGATIVE = ("pcr", "1", "yes", "true", "responder", "complete"), ("rd", "0", "no", "not", "false", "npcr")
UNKNOWN = ("", "na", "n/a", "nan", "none", "unknown", "not available", "not evaluable", "not evaluated",
           "indeterminate")  # fmt: skip
"""Words of a response column that say nothing: such a row is left out, not taken for an incomplete response."""


@dataclass(frozen=True)
class Cohort:
    """Patients with an outcome, in one order.

    Attributes
    ----------
    name
        Of the data set or folder.
    patients
        Index: patient id. ``time`` (months, float), ``event`` (bool, death seen), ``age`` (years, float, NaN where
        unknown), ``subtype``, ``histology``, ``response`` (text, "" where unknown).
    expression
        Float (patients, genes), as published: z-scores, logs or counts, so use ranks.
    slides
        ``slide_id`` (without a suffix such as .svs), ``patient_id``; empty where the tables name no slides.
    parts
        Gene tables that lay in files of their own, by file name, float (patients, genes).
    joined
        Genes that came with ``also``.
    said
        What was found and what was left out, in words.
    """

    name: str
    patients: pd.DataFrame
    expression: pd.DataFrame
    slides: pd.DataFrame
    parts: dict = field(default_factory=dict)
    joined: tuple = ()
    said: tuple = ()

    @property
    def provenance(self) -> str:
        """One line: patients, deaths, genes, slides."""
        facts, time = self.patients, self.patients["time"]
        return (f"{self.name}: {len(facts)} patients, {int(facts['event'].sum())} deaths, follow-up median "
                f"{time.median():.1f} months, {self.expression.shape[1]} genes, {len(self.slides)} slides")  # fmt: skip


@dataclass(frozen=True)
class Response:
    """Patients with a response to treatment: ``x`` (rows, genes) float, ``complete`` bool (rows,), ``patient`` ids."""

    name: str
    x: pd.DataFrame
    complete: np.ndarray
    patient: np.ndarray
    said: tuple = ()


def cohort(data, *, also: str = "", name: str = "") -> Cohort:
    """Read a cohort: an outcome for each patient, and whatever genes and slides lie beside it.

    Parameters
    ----------
    data
        See :func:`helpers.readers_clinical_files.locate`. All text tables below the folder are looked at. Of several
        tables of outcomes the one with genes counts, else the one with most patients; the others are compared.
    also
        A further data set with genes of the same patients (``""``: none), joined if it shares enough of them.
    name
        What to call it; default the name of the folder. Of a path its last part is taken.

    Raises
    ------
    CourseError
        No table of outcomes, no patient with an outcome, no gene.
    """
    place = locate(data)
    found, said = _sorted(place), []
    if not found["clinical"]:
        raise CourseError("no table of outcomes", "a table with a patient, a time and an event",
                          "survival_months and censorship (PORPOISE), OS_MONTHS and OS_STATUS (cBioPortal), "
                          "days_to_death and vital_status (GDC)", file=place)  # fmt: skip
    rated = [(path, tables.read(path)) for path in found["clinical"]]
    rated.sort(key=lambda item: (not _has_genes(item[1]), -len(item[1])))
    path, table = rated[0]
    who = tables.patient_of(table[tables.column(table, tables.PATIENT)])
    slides = _slides(table, who, said)
    patients = _outcomes(path, table, said)
    for other, more in rated[1:]:
        patients = _compare(patients, _outcomes(other, more, said), other, said)
    parts = {each.name: tables.expression(tables.read(each)) for each in found["genes"]}
    joined = _further(also, said)
    whole = {**joined, **({path.name: _own_genes(table, who)} if _has_genes(table) else {}), **parts}
    for file in list(whole):
        share = patients.index.isin(whole[file].index).mean()
        said.append(f"{file}: genes of {share:.0%} of the patients" + ("" if share >= MIN_SHARED else ", not joined"))
        if share < MIN_SHARED:
            del whole[file]
    patients, expression = _join(patients, list(whole.values()), said, path)
    for manifest in found["manifest"]:
        said.append(f"{manifest.name}: {check_manifest(manifest)['state'].value_counts().to_dict()}")
    extra = [gene for file in joined if file in whole for gene in joined[file].columns if gene in expression]
    keep = slides["patient_id"].isin(patients.index)
    return Cohort(
        name=name.rpartition("/")[2] or place.name, patients=patients, expression=expression,
        slides=slides[keep].reset_index(drop=True), joined=tuple(extra), said=tuple(said),
        parts={file: parts[file].reindex(patients.index) for file in parts if file in whole},
    )  # fmt: skip


def _sorted(place: Path) -> dict:
    """Return the tables below a folder by kind."""
    paths = [place] if place.is_file() else [path for path in files_in(place) if tables.is_table(path)]
    found = {"clinical": [], "genes": [], "histoqc": [], "manifest": [], "samples": []}
    problem = None
    for path in paths:
        try:
            what = tables.kind(tables.read(path, rows=50))
        except CourseError as error:  # perhaps a readme with a table's suffix
            problem, what = error, None
        if what:
            found[what].append(path)
    if problem and not (found["clinical"] or found["genes"]):
        raise problem
    return found


def _has_genes(table) -> bool:
    return any(map(tables.GENE_END.search, table.columns))


def _own_genes(table, who) -> pd.DataFrame:
    return tables.genes_of(table).set_axis(who.to_numpy(), axis=0).groupby(level=0, sort=False).mean()


def _slides(table, who, said) -> pd.DataFrame:
    name = tables.column(table, tables.SLIDE)
    if not name:
        return pd.DataFrame({"slide_id": [], "patient_id": []}, dtype=object)
    plain = table[name].astype(str).str.replace(r"\.(svs|tiff?|jpe?g|png)$", "", case=False, regex=True)
    slides = pd.DataFrame({"slide_id": plain, "patient_id": who.to_numpy()}).drop_duplicates()
    twice = slides["slide_id"].duplicated(keep=False)
    if twice.any():
        said.append(f"WARNING: slide {slides.loc[twice, 'slide_id'].iloc[0]} is listed under two patients "
                    f"({twice.sum()} such rows): one tissue could train and test")  # fmt: skip
    return slides


def _outcomes(path, table, said) -> pd.DataFrame:
    """Return one row a patient; of rows that disagree the longest follow-up is kept, and that is said."""
    who = tables.patient_of(table[tables.column(table, tables.PATIENT)]).to_numpy()
    outcome, source = tables.outcomes(table, path)
    rows = outcome.join(tables.clinical_facts(table)).assign(patient_id=who)
    said.append(f"{path.name}: {len(rows)} rows of {len(set(who))} patients; {source}")
    known = rows["time"].notna() & rows["event"].notna() & (rows["time"] >= 0)
    lost = set(who) - set(rows.loc[known, "patient_id"])
    if lost:
        negative = rows.loc[rows["time"] < 0, "patient_id"].nunique()
        said.append(f"left out: {len(lost)} patients without an outcome ({negative} with a negative time), "
                    f"e.g. {sorted(lost)[0]}")  # fmt: skip
    rows = rows[known]
    if rows.empty:
        raise CourseError("no patient with a time and an event", "some", "check the columns", file=path)
    differ = (rows.groupby("patient_id")[["time", "event"]].nunique() > 1).any(axis=1)
    if differ.any():
        said.append(f"{differ.sum()} patients with rows that disagree: the longest follow-up is kept, "
                    f"e.g. {differ.idxmax()}")  # fmt: skip
    best = rows.sort_values("time", ascending=False, kind="stable").drop_duplicates("patient_id").index
    made = rows.loc[rows.index.isin(best)].set_index("patient_id")
    return made.assign(event=made["event"].astype(bool))


def _compare(patients, other, path, said) -> pd.DataFrame:
    """Return the first table with what it lacks from another; say for how many patients the outcomes agree."""
    both = patients.index.intersection(other.index)
    near = (patients.loc[both, "time"] - other.loc[both, "time"]).abs() < 0.5  # half a month: rounding
    same = near & (patients.loc[both, "event"] == other.loc[both, "event"])
    said.append(f"{path.name}: the same outcome for {int(same.sum())} of {len(both)} patients in both")
    for name in ("age", "subtype", "histology", "response"):
        mine, theirs = patients[name], other[name].reindex(patients.index)
        empty = mine.isna() if name == "age" else mine.eq("")
        patients = patients.assign(**{name: mine.where(~empty, theirs if name == "age" else theirs.fillna(""))})
    return patients


def _further(also, said) -> dict:
    if not also:
        return {}
    if not is_here(also):
        said.append(f"{also}: not here, so not joined")
        return {}
    return {path.name: tables.expression(tables.read(path)) for path in _sorted(locate(also))["genes"]}


def _join(patients, parts, said, path):
    """Return patients and genes of those who are in every table; the earlier table wins where a gene is in two."""
    if not parts:
        raise CourseError("no gene", "columns such as KRT5_rnaseq, or a gene table of the same patients beside it",
                          "put one into the folder, or compare the patients' ids", file=path)  # fmt: skip
    before = len(patients)
    for part in parts:
        patients = patients[patients.index.isin(part.index)]
    if patients.empty:
        raise CourseError("no patient that is in every table", "the same patient ids", "compare the ids", file=path)
    if len(patients) < before:
        said.append(f"left out: {before - len(patients)} patients without genes")
    made = pd.concat([part.reindex(patients.index) for part in parts], axis=1)
    made = made.loc[:, ~made.columns.duplicated()].astype(float).replace([np.inf, -np.inf], np.nan)
    gaps = made.isna().mean()
    if (gaps > MAX_GAPS).any():
        said.append(f"left out: {(gaps > MAX_GAPS).sum()} genes with more than {MAX_GAPS:.0%} gaps, "
                    f"e.g. {gaps.idxmax()}")  # fmt: skip
    made = made.loc[:, gaps <= MAX_GAPS]
    if made.isna().any().any():
        said.append(f"{int(made.isna().sum().sum())} gaps filled with the gene's median")
        made = made.fillna(made.median())
    if not made.shape[1]:
        raise CourseError("no gene without gaps", "some", "check the gene table", file=path)
    return patients, made


def ages(patients) -> np.ndarray | None:
    """Return ages in years, float (n, 1), gaps filled with the median; None where no age is known or all are alike."""
    age = patients["age"].astype(float)
    return None if age.nunique() < 2 else age.fillna(age.median()).to_numpy()[:, None]


def answered(patients, expression: dict, *, least: int = 10) -> dict:
    """Return the drug response of a cohort's own patients, source -> :class:`Response`; {} where too few are known.

    Parameters
    ----------
    patients
        As in :class:`Cohort`, with ``response`` "pCR" or "RD".
    expression
        Source -> data frame (patients, genes) on a log scale.
    least
        Patients with either response that there must be.
    """
    words = patients["response"].str.strip().str.lower()
    known = words.isin(["pcr", "rd"]).to_numpy()
    complete = (words == "pcr").to_numpy()[known]
    if min(complete.sum(), (~complete).sum()) < least:
        return {}
    who = patients.index[known]
    return {name: Response(name, table.loc[who], complete, who.to_numpy()) for name, table in expression.items()}


def response(data, *, label: str = "") -> Response:
    """Read a table of genes and of complete (pCR) or incomplete response (RD), one row a sample.

    Parameters
    ----------
    label
        Name of the column with the response; "": the first whose words are pCR and RD, or the like.

    Raises
    ------
    CourseError
        No such column, or one kind of patient only.
    """
    place = locate(data)
    paths = [place] if place.is_file() else [path for path in files_in(place) if tables.is_table(path)]
    for path in paths:
        table = tables.read(path)
        fitting = (n for n in table if (n == label if label else _is_response(table[n])))
        name = next(fitting, "")
        if name:
            break
    else:
        raise CourseError("no column of responses", f"{label or 'one of pCR and RD'}", "give response(data, label=...)",
                          file=place)  # fmt: skip
    words = table[name].astype(str).str.strip().str.lower()
    known = (table[name].notna() & ~words.isin(UNKNOWN)).to_numpy()
    complete = words.isin(POSITIVE).to_numpy()[known]
    if complete.all() or not complete.any():
        raise CourseError(f"one kind of response in column {name}", "complete and incomplete", "check the column",
                          file=path)  # fmt: skip
    who = tables.column(table, tables.PATIENT)
    genes = tables.genes_of(table.drop(columns=[name, *([who] if who else [])]))[known]
    full = genes.columns[genes.notna().all() & (genes.nunique() > 1)]
    said = [f"{path.name}: {len(complete)} rows, {int(complete.sum())} of them complete responses"]
    if not known.all():
        said.append(f"left out: {int((~known).sum())} rows without a response")
    if len(full) < genes.shape[1]:
        said.append(f"left out: {genes.shape[1] - len(full)} genes with gaps or a single value")
    patient = (tables.patient_of(table[who]) if who else pd.Series(table.index.astype(str))).to_numpy()[known]
    return Response(place.name if place.is_dir() else place.stem, genes[full].reset_index(drop=True), complete, patient,
                    tuple(said))  # fmt: skip


def _is_response(values) -> bool:
    """Return whether a column speaks of response in words; bare 0 and 1 could be anything and must be named."""
    words = set(values.dropna().astype(str).str.strip().str.lower()) - set(UNKNOWN)
    named = words <= {*POSITIVE, *NEGATIVE} or "pcr" in words
    return len(words) >= 2 and bool(words & set(POSITIVE)) and named and not words <= {"0", "1"}

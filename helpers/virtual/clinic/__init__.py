"""The virtual clinical cohort: 200 breast cancer patients, their H&E slides without spots, bulk RNA and what became of
them.

What decides an outcome can be seen on the slides. The share of lymphocytes among a tumour's cells is the *programme*:
it protects (log hazard -1 per standard deviation), and about a hundred genes read it. Age adds a hazard of its own.
Large tumour nuclei and lymphocytes make a complete response to treatment likelier. Nothing else matters: not the
subtype by itself, not the site, not the hidden genes. In the null twin slides, bulk and ages are the same, and the
outcomes are dealt out to other patients.

Made once and kept like the other data sets (see ``cohorts``)::

    sections/slides/<slide_id>.jpg          H&E fields, pixel size in the JFIF header
    sections/clinical/                      PORPOISE, GDC and cBioPortal layouts
    sections/bulk/counts.tsv                genes x patients
    sections/MANIFEST.txt                   GDC manifest with MD5 sums
    truth/                                  see :class:`Truth`
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache, truth

VERSION = 1
NAMES = ("virtual_tcga", "virtual_tcga_null")
CHUNK = 10  # patients a job
_USED = "anatomy breast cells cord fields ground matrix optics rendering styles expression".split()


def _sources() -> list[Path]:
    """Files whose change makes the data stale."""
    from helpers.virtual.expression import PANEL_FILE

    here = Path(__file__).parent
    return [here.parent / f"{name}.py" for name in _USED] + sorted(here.glob("*.py")) + [PANEL_FILE]


@dataclass(frozen=True)
class Truth:
    """What is known about the cohort; each table is read when it is first asked for.

    Attributes
    ----------
    folder
        ``truth/`` of the data set.
    """

    folder: Path

    def _table(self, name: str, index: str) -> pd.DataFrame:
        file = self.folder / f"{name}.parquet"
        if not file.is_file():
            raise CourseError("no such file", f"{file.name} of the truth", "delete the data set's folder", file=file)
        return pd.read_parquet(file).set_index(index)

    @cached_property
    def patients(self) -> pd.DataFrame:
        """One row a patient: ``lp``, ``lp_programme``, ``lp_age`` (log hazards), ``programme`` (sd 1, high protects),
        ``nuclei`` (sd 1, size of tumour nuclei), ``p_response``, ``subtype``, ``site``, ``arm``, ``impurity``
        (RNA from outside the tumour), ``time_years``, ``event``, ``follow_up_years``, ``n_slides``."""
        return self._table("patients", "patient")

    @cached_property
    def slides(self) -> pd.DataFrame:
        """One row a slide: ``patient``, ``defect`` ("", "blur", "pen", "little", "fragments"), ``blur_um`` (sd),
        ``pen_share`` (of the picture), ``tissue_share`` (of the tissue left), ``n_cells``, ``n_<type>`` (of what is
        left)."""
        return self._table("slides", "slide_id")

    @cached_property
    def genes(self) -> pd.DataFrame:
        """One row a gene: ``group``, ``r_programme`` and ``r_response`` (Pearson's r over patients of the log share
        without measurement noise with the programme and with the log odds of response), ``prognostic``."""
        return self._table("genes", "gene")

    @cached_property
    def bulk(self) -> pd.DataFrame:
        """Expected share of each gene in a patient's bulk RNA, float32 (patients, genes)."""
        return self._table("bulk", "patient")

    @cached_property
    def facts(self) -> dict:
        """``c_oracle``, ``c_programme``, ``c_age`` (concordance of the truth itself with what happened),
        ``auc_oracle``, ``n_events``, ``scale_years`` (Weibull), ``seed``."""
        return json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))


def read(folder) -> Truth:
    """Return the truth of a generated cohort (``folder`` as returned by :func:`ensure`)."""
    place = Path(folder) / "truth"
    if not (place / "facts.json").is_file():
        raise CourseError("no truth", "a folder made by clinic.ensure", "use DATA='virtual_tcga'", file=place)
    return Truth(place)


def _make(part: str, rows: list[dict], seed: int) -> None:
    """Make the slides and the RNA of some patients, in a worker."""
    from helpers.virtual.clinic import tissue

    for row in rows:
        tissue.make(Path(part), row, seed)


def ensure(name: str = "virtual_tcga", *, seed: int = 0, workers: int | None = None, n: int | None = None) -> Path:
    """Return the folder of the cohort or of its null twin, generating it if it is not there.

    Parameters
    ----------
    n
        The first so many patients only (for tests); None: all of them.
    workers
        Processes; default two at most. 1 stays in this process.

    Returns
    -------
    Path
        With ``sections/``, ``truth/`` and ``dataset.json``.
    """
    from helpers.virtual.clinic import files, outcome, people

    if name not in NAMES:
        raise CourseError(f"data set {name!r}", f"one of {', '.join(NAMES)}", "correct DATA")
    n = people.PATIENTS if n is None else int(n)
    if not 10 <= n <= people.PATIENTS:
        raise CourseError(f"{n} patients", f"10 to {people.PATIENTS}", "correct n")
    home, null = settings.virtual_dir(), name.endswith("_null")
    parameters = {"version": VERSION, "seed": int(seed), "n": n}
    final = home / f"{name}-v{VERSION}-{cache.digest(parameters, _sources())}"
    if (final / "dataset.json").is_file():
        return final
    source = ensure(NAMES[0], seed=seed, workers=workers, n=n) if null else None
    with cache.lock(home / f".{final.name}.lock"):
        if (final / "dataset.json").is_file():  # another process was quicker
            return final
        part = cache.fresh(final)
        table = people.draw(int(seed)).head(n)
        slides = people.slides(table, int(seed))
        for folder in ("sections/slides", "sections/clinical", "sections/bulk", "truth", "work"):
            (part / folder).mkdir(parents=True)
        if null:
            for file in sorted((source / "sections" / "slides").glob("*.jpg")):
                truth.share(file, part / "sections" / "slides" / file.name)
            tables = [f"truth/{table}.parquet" for table in ("slides", "bulk", "tissue")]
            for file in (*tables, "sections/bulk/counts.tsv"):
                truth.share(source / file, part / file)
        else:
            rows = [{**row, "slides": slides[slides["patient"] == row["patient"]].to_dict("records")}
                    for row in table.to_dict("records")]
            jobs = [(str(part), rows[at : at + CHUNK], int(seed)) for at in range(0, n, CHUNK)]
            cache.run(_make, jobs, name, workers)
            files.gather(part, table, slides, int(seed))
        people_table, genes, facts = outcome.decide(part / "truth", table, int(seed), null=null)
        people_table.to_parquet(part / "truth" / "patients.parquet", index=False)
        genes.to_parquet(part / "truth" / "genes.parquet", index=False)
        facts = {**facts, "seed": int(seed), "null": null}
        (part / "truth" / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        files.clinical(part / "sections", people_table, slides)
        files.manifest(part / "sections", None if source is None else source / "sections")
        import shutil

        shutil.rmtree(part / "work")
        cards = [{"section_id": row.slide_id, "subject_id": row.patient} for row in slides.itertuples()]
        card = {"name": name, "platform": "slides", "mpp": people.MPP, "sections": cards, "parameters": parameters}
        (part / "dataset.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        os.replace(part, final)
    return final


def correlation(values, target) -> np.ndarray:
    """Return Pearson's r of each column of (n, genes) with a vector (n,); 0 for constant columns."""
    values, target = np.asarray(values, float), np.asarray(target, float)
    values, target = values - values.mean(0), target - target.mean()
    size = np.sqrt((values**2).sum(0) * (target**2).sum())
    return np.where(size > 0, values.T @ target / np.where(size > 0, size, 1), 0.0)

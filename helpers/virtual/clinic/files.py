"""Files of the virtual cohort, as their publishers lay them out: PORPOISE, GDC and cBioPortal tables, bulk counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import settings
from helpers.virtual import expression

DEPTH, DEPTH_SD = 2.0e6, 0.35  # counts of a sample: median, and sd of its logarithm
SCATTER = 0.18  # coefficient of variation of the measurement beyond Poisson
OUTSIDE = {"fibroblast": 0.40, "adipocyte": 0.35, "endothelial": 0.10, "normal_epithelial": 0.15}
"""Cells whose RNA came along from outside the tumour."""
MISSING = "'--"  # as the GDC writes it
PROJECT = "VIRTUAL-BRCA"


def gather(part: Path, table: pd.DataFrame, slides: pd.DataFrame, seed: int) -> None:
    """Join what the workers left: tables of slides and tissue, and the bulk, expected and measured."""
    from helpers.virtual.cells import TYPES

    panel = expression.panel()
    content = np.array([OUTSIDE.get(kind, 0.0) for kind in panel.types])
    outside = content @ panel.weights + panel.flat
    outside /= outside.sum()
    share, grown, seen = [], [], []
    for row in table.itertuples():
        with np.load(part / "work" / f"{row.patient}.npz", allow_pickle=False) as piece:
            inside = piece["rna"] / piece["rna"].sum()
            share.append((1 - row.impurity) * inside + row.impurity * outside)
            by_type = dict(zip((f"n_{kind}" for kind in TYPES), piece["by_type"]))
            grown.append({"patient": row.patient, **by_type, "nuclei": float(piece["nuclei"])})
        seen.append(pd.read_parquet(part / "work" / f"{row.patient}.parquet"))
    share = np.array(share)
    pd.concat(seen).set_index("slide_id").loc[slides["slide_id"]].reset_index().to_parquet(
        part / "truth" / "slides.parquet", index=False
    )
    pd.DataFrame(grown).to_parquet(part / "truth" / "tissue.parquet", index=False)
    bulk = pd.DataFrame(share.astype(np.float32), columns=panel.genes)
    bulk.insert(0, "patient", table["patient"].to_numpy())
    bulk.to_parquet(part / "truth" / "bulk.parquet", index=False)

    stream = settings.rng(seed, "clinic", "bulk")
    depth = DEPTH * np.exp(stream.normal(0, DEPTH_SD, (len(share), 1)))
    scatter = stream.gamma(1 / SCATTER**2, SCATTER**2, share.shape)
    counts = pd.DataFrame(stream.poisson(depth * share * scatter).T, index=panel.genes, columns=table["patient"])
    order = settings.rng(seed, "clinic", "columns").permutation(len(table))  # the order of tables is nobody's promise
    counts.iloc[:, order].rename_axis("gene_name").to_csv(
        part / "sections" / "bulk" / "counts.tsv", sep="\t", lineterminator="\n"
    )


def _z_scores(counts: pd.DataFrame) -> pd.DataFrame:
    """Return z-scores of log2(counts per million + 1) over patients (patients, genes)."""
    log = np.log2(counts / counts.sum() * 1e6 + 1).T
    return ((log - log.mean()) / log.std(ddof=0).replace(0, 1)).round(4)


def clinical(top: Path, people: pd.DataFrame, slides: pd.DataFrame) -> None:
    """Write the three clinical tables."""
    place, by_name = top / "clinical", people.set_index("patient")
    z = _z_scores(pd.read_csv(top / "bulk" / "counts.tsv", sep="\t", index_col=0))
    of = by_name.loc[slides["patient"]]
    porpoise = pd.DataFrame({
        "case_id": slides["patient"], "slide_id": slides["slide_id"] + ".jpg", "age": of["age"].to_numpy(float),
        "site": of["site"].to_numpy(), "survival_months": (of["days"].to_numpy() / 30.4375).round(2),
        "censorship": 1.0 - of["event"].to_numpy(float), "is_female": (of["sex"] == "female").to_numpy(float),
        "oncotree_code": "IDC", "train": 1.0,
    })  # fmt: skip
    genes = z.loc[slides["patient"]].add_suffix("_rnaseq").reset_index(drop=True)
    pd.concat([porpoise, genes], axis=1).to_csv(place / "tcga_brca_all_clean.csv", lineterminator="\n")

    dead, days = people["event"].to_numpy(bool), people["days"].astype(str)
    pd.DataFrame({
        "case_submitter_id": people["patient"], "project_id": PROJECT, "age_at_index": people["age"],
        "gender": people["sex"], "vital_status": np.where(dead, "Dead", "Alive"),
        "days_to_death": np.where(dead, days, MISSING), "days_to_last_follow_up": np.where(dead, MISSING, days),
        "er_status_by_ihc": people["er"], "pr_status_by_ihc": people["pr"], "her2_status_by_ihc": people["her2"],
    }).to_csv(place / "clinical.tsv", sep="\t", index=False, lineterminator="\n")  # fmt: skip

    patients = pd.DataFrame({
        "PATIENT_ID": people["patient"], "AGE": people["age"], "SEX": people["sex"].str.title(),
        "OS_STATUS": np.where(dead, "1:DECEASED", "0:LIVING"), "OS_MONTHS": (people["days"] / 30.4375).round(2),
        "ER_STATUS_BY_IHC": people["er"], "PR_STATUS_BY_IHC": people["pr"], "HER2_STATUS_BY_IHC": people["her2"],
        "TREATMENT": people["arm"], "RESPONSE": people["response"], "SITE": people["site"],
    })  # fmt: skip
    names = list(patients)
    kinds = ["NUMBER" if name in ("AGE", "OS_MONTHS") else "STRING" for name in names]
    words = [name.replace("_", " ").capitalize() for name in names]
    head = "".join("#" + "\t".join(line) + "\n" for line in (words, words, kinds, ["1"] * len(names)))
    text = patients.to_csv(sep="\t", index=False, lineterminator="\n")
    (place / "data_clinical_patient.txt").write_text(head + text, encoding="utf-8")


def manifest(top: Path, source: Path | None) -> None:
    """Write a GDC manifest: id, filename (from the manifest's folder), md5, size, state.

    The sums of hard-linked slides are taken from the manifest of ``source``.
    """
    known = {}
    if source is not None:
        old = pd.read_csv(source / "MANIFEST.txt", sep="\t")
        known = {row.filename: row.md5 for row in old.itertuples() if row.filename.startswith("slides/")}
    rows = []
    for file in sorted(path for path in top.rglob("*") if path.is_file() and path.name != "MANIFEST.txt"):
        name = file.relative_to(top).as_posix()
        md5 = known.get(name) or hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        rows.append({"id": hashlib.sha256(name.encode()).hexdigest()[:32], "filename": name, "md5": md5,
                     "size": file.stat().st_size, "state": "released"})
    pd.DataFrame(rows).to_csv(top / "MANIFEST.txt", sep="\t", index=False, lineterminator="\n")


__all__ = ["clinical", "gather", "manifest"]

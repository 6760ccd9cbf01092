"""Clinical tables in their publishers' layouts, and what is wrong with them in practice."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from helpers import readers_clinical, settings
from helpers import readers_clinical_files as files
from helpers import readers_clinical_tables as tables
from helpers.messages import CourseError

N, GENES = 30, ["G1", "HLA-A", "NKX2-1", "C1orf1"]


@pytest.fixture(scope="module")
def truth():
    """Thirty patients of a project that is not breast cancer."""
    rng = settings.rng(0, "test clinical")
    ids = [f"TCGA-{chr(65 + i % 5)}{i % 7}-{1000 + i}" for i in range(N)]
    days = rng.integers(20, 3000, N)
    facts = pd.DataFrame({"days": days, "dead": rng.random(N) < 0.4, "age": rng.integers(30, 90, N)}, index=ids)
    return facts, pd.DataFrame(rng.normal(size=(N, len(GENES))).round(4), ids, GENES)


def porpoise(folder, facts, genes, **columns):
    """Write a table as PORPOISE has it: one row a slide, two slides of every third patient; return its path."""
    rows = [(name, k) for i, name in enumerate(facts.index) for k in range(1 + (i % 3 == 0))]
    who = [name for name, _ in rows]
    table = pd.DataFrame({
        "case_id": who, "slide_id": [f"{name}-01Z-00-DX{k + 1}.abc.svs" for name, k in rows],
        "age": facts.loc[who, "age"].to_numpy(float), "survival_months": (facts.loc[who, "days"] / 30.4375).to_numpy(),
        "censorship": 1 - facts.loc[who, "dead"].to_numpy(int), "oncotree_code": "LUAD", "EGFR_mut": 0, "G1_cnv": 1,
    })  # fmt: skip
    for gene in genes:
        table[f"{gene}_rnaseq"] = genes.loc[who, gene].to_numpy()
    table = table.assign(**columns)
    path = folder / "datasets_csv" / "tcga_luad_all_clean.csv.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, compression="zip")
    return path, table


def test_porpoise_one_row_a_slide_becomes_one_a_patient(tmp_path, truth):
    facts, genes = truth
    porpoise(tmp_path, facts, genes, extra_column="x", colour_rnaseq=None)
    found = readers_clinical.cohort(tmp_path)
    assert list(found.patients.index) == list(facts.index) and len(found.slides) == 40
    assert (found.patients["event"] == facts["dead"]).all()  # censorship 1 is alive
    np.testing.assert_allclose(found.patients["time"], facts["days"] / 30.4375)
    assert list(found.expression.columns) == GENES  # no mutation, no copy number, no empty gene, no age
    pd.testing.assert_frame_equal(found.expression, genes, check_names=False)
    assert (found.patients["histology"] == "LUAD").all() and not found.slides["slide_id"].str.endswith(".svs").any()
    assert any("colour" in line for line in found.said)


def test_missing_ages_and_missing_columns_are_no_obstacle(tmp_path, truth):
    facts, genes = truth
    path, table = porpoise(tmp_path, facts, genes)
    table.drop(columns=["age", "slide_id", "oncotree_code"]).to_csv(path, compression="zip")
    found = readers_clinical.cohort(tmp_path)
    assert found.patients["age"].isna().all() and len(found.slides) == 0 and len(found.patients) == N


def test_missing_and_negative_times_are_left_out_and_said(tmp_path, truth):
    facts, genes = truth
    path, table = porpoise(tmp_path, facts, genes)
    one, other = facts.index[1], facts.index[2]
    table.loc[table["case_id"] == one, "survival_months"] = np.nan
    table.loc[table["case_id"] == other, "survival_months"] = -3
    table.to_csv(path, compression="zip")
    found = readers_clinical.cohort(tmp_path)
    assert len(found.patients) == N - 2 and not {one, other} & set(found.patients.index)
    assert any("2 patients without an outcome (1 with a negative time)" in line for line in found.said)


def test_rows_of_a_patient_that_disagree_and_a_slide_of_two_patients_are_said(tmp_path, truth):
    facts, genes = truth
    path, table = porpoise(tmp_path, facts, genes)
    table.loc[0, "survival_months"] += 10  # the first of two slides of the first patient
    table.loc[4, "slide_id"] = table.loc[0, "slide_id"]
    table.to_csv(path, compression="zip")
    found = readers_clinical.cohort(tmp_path)
    assert found.patients["time"].iloc[0] == pytest.approx(facts["days"].iloc[0] / 30.4375 + 10)
    assert any("disagree" in line for line in found.said) and any("two patients" in line for line in found.said)


def write_gdc(folder, facts):
    rows = []
    for name, row in facts.iterrows():
        dead = row["dead"]
        rows += [{"cases.submitter_id": name, "demographic.vital_status": "Dead" if dead else "Alive",
                  "demographic.days_to_death": row["days"] if dead else "'--",
                  "diagnoses.days_to_last_follow_up": "'--" if dead else row["days"],
                  "diagnoses.age_at_diagnosis": row["age"] * 365.25}] * 2  # a row a treatment # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "clinical.tsv", sep="\t", index=False)


def write_cbioportal(folder, facts, genes):
    table = pd.DataFrame({"PATIENT_ID": facts.index, "OS_STATUS": np.where(facts["dead"], "1:DECEASED", "0:LIVING"),
                          "OS_MONTHS": (facts["days"] / 30.4375).round(2), "AGE": facts["age"]})  # fmt: skip
    head = "".join(f"#{word}\tb\tc\td\n" for word in ("Patient", "Id", "STRING", "1"))
    (folder / "data_clinical_patient.txt").write_text(head + table.to_csv(sep="\t", index=False))
    wide = genes.T.rename(columns=lambda name: f"{name}-01")
    wide[f"{genes.index[0]}-11"] = 99.0  # a normal sample: not tumour
    wide.insert(0, "Entrez_Gene_Id", range(len(wide)))
    wide.rename_axis("Hugo_Symbol").to_csv(folder / "data_mrna_seq_v2_rsem.txt", sep="\t")


def test_gdc_and_cbioportal_say_the_same_as_porpoise(tmp_path, truth):
    facts, genes = truth
    write_gdc(tmp_path, facts)
    write_cbioportal(tmp_path, facts, genes)
    alone = readers_clinical.cohort(tmp_path)
    np.testing.assert_allclose(alone.patients["time"], facts["days"] / 30.4375, atol=0.01)
    assert (alone.patients["event"] == facts["dead"]).all()
    np.testing.assert_allclose(alone.patients["age"], facts["age"], atol=0.01)
    np.testing.assert_allclose(alone.expression[GENES], genes)  # turned, and the normal sample left out
    porpoise(tmp_path, facts, genes)
    every = readers_clinical.cohort(tmp_path)
    same = [line for line in every.said if f"the same outcome for {N} of {N}" in line]
    assert len(same) == 2 and "data_mrna_seq_v2_rsem.txt" in every.parts


def test_further_genes_are_joined_only_to_the_same_patients(tmp_path, truth):
    facts, genes = truth
    porpoise(tmp_path / "one", facts, genes)
    other = pd.DataFrame({"PATIENT_ID": facts.index, "KRT5": 1.0 * np.arange(N), "ESR1": 2.0, "MIA": 0.5, "G1": 0.0})
    (tmp_path / "more").mkdir()
    other.to_csv(tmp_path / "more" / "pam50.csv", index=False)
    joined = readers_clinical.cohort(tmp_path / "one", also=str(tmp_path / "more"))
    assert list(joined.joined) == ["KRT5", "ESR1", "MIA", "G1"] and joined.expression.shape == (N, 7)
    other.assign(PATIENT_ID=[f"X{i}" for i in range(N)]).to_csv(tmp_path / "more" / "pam50.csv", index=False)
    strangers = readers_clinical.cohort(tmp_path / "one", also=str(tmp_path / "more"))
    assert strangers.joined == () and any("not joined" in line for line in strangers.said)
    assert any("not here" in line for line in readers_clinical.cohort(tmp_path / "one", also="nowhere").said)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"censorship": 7}, "column censorship"), ({"censorship": "perhaps"}, "column censorship"),
        ({"survival_months": np.nan}, "no patient with a time"), ({"drop": "censorship"}, "no table of outcomes"),
        ({"drop": "genes"}, "no gene"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_are_refused(tmp_path, truth, change, match):
    facts, genes = truth
    path, table = porpoise(tmp_path, facts, genes)
    gone = change.pop("drop", "")
    table = table.drop(columns=[n for n in table if n == gone or (gone == "genes" and n.endswith("_rnaseq"))])
    table.assign(**change).to_csv(path, compression="zip")
    with pytest.raises(CourseError, match=match):
        readers_clinical.cohort(tmp_path)


def test_damaged_files_and_missing_folders_are_refused(tmp_path, truth):
    path, _ = porpoise(tmp_path, *truth)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CourseError, match="cannot be read"):
        readers_clinical.cohort(tmp_path)
    with pytest.raises(CourseError, match="no data"):
        readers_clinical.cohort(tmp_path / "nowhere")
    assert not files.is_here("nowhere at all") and files.locate(f"clinical:{tmp_path}") == tmp_path


def test_subtypes_by_receptors():
    found = tables.subtype_by_receptors(["Positive", "Negative", "Negative", "Positive", "Indeterminate"],
                                        ["Negative", "Negative", "Negative", "Positive", "Negative"],
                                        ["Positive", "Positive", "Negative", "Negative", "Negative"])  # fmt: skip
    assert list(found) == ["HER2+", "HER2+", "TNBC", "Luminal", "Other"]


# ---------------------------------------------------------------- response, slides
def test_response_tables(tmp_path):
    table = pd.DataFrame({"patient": [1, 1, 2, 3, 4], "status": ["pCR", "pCR", "RD", "not", "RD"], "A": range(5),
                          "B": [1.0, 2, 3, 4, np.nan]})  # fmt: skip
    table.to_csv(tmp_path / "drug.csv", index=False)
    found = readers_clinical.response(tmp_path / "drug.csv")
    assert list(found.complete) == [True, True, False, False, False]
    assert list(found.patient) == ["1", "1", "2", "3", "4"]
    assert list(found.x.columns) == ["A"] and any("1 genes with gaps" in line for line in found.said)
    table.assign(status=["pCR", "RD", "Unknown", "n/a", "RD"]).to_csv(tmp_path / "drug.csv", index=False)
    found = readers_clinical.response(tmp_path / "drug.csv")  # what is not known is no incomplete response
    assert list(found.complete) == [True, False, False] and list(found.patient) == ["1", "1", "4"]
    assert any("2 rows without a response" in line for line in found.said)
    table.to_csv(tmp_path / "drug.csv", index=False)
    with pytest.raises(CourseError, match="no column of responses"):
        readers_clinical.response(tmp_path / "drug.csv", label="outcome")
    table.assign(status=["pCR"] * 4 + [None]).to_csv(tmp_path / "drug.csv", index=False)
    with pytest.raises(CourseError, match="one kind"):
        readers_clinical.response(tmp_path / "drug.csv", label="status")


def test_a_manifest_finds_missing_and_wrong_files(tmp_path):
    (tmp_path / "id1").mkdir()
    (tmp_path / "id1" / "a.svs").write_bytes(b"slide")
    rows = [("id1", "a.svs", hashlib.md5(b"slide").hexdigest(), 5), ("id2", "b.svs", "0" * 32, 9)]
    table = pd.DataFrame(rows, columns=["id", "filename", "md5", "size"]).assign(state="released")
    table.to_csv(tmp_path / "MANIFEST.txt", sep="\t", index=False)
    assert list(files.check_manifest(tmp_path / "MANIFEST.txt")["state"]) == ["right", "missing"]
    assert files.check_manifest(tmp_path / "MANIFEST.txt", max_hashed=0)["state"][0] == "right size"
    (tmp_path / "id1" / "a.svs").write_bytes(b"slide"[::-1])
    with pytest.raises(CourseError, match="differ from the manifest"):
        files.check_manifest(tmp_path / "MANIFEST.txt")

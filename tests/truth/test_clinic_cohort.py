"""The virtual clinical cohort: its design holds, files agree with each other and with the truth, its twin is null."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest

from helpers import readers_slides, runner_data, section, settings, slideqc
from helpers.messages import CourseError
from helpers.virtual import clinic, expression
from helpers.virtual.clinic import outcome, people, tissue

N = 12


# ---------------------------------------------------------------- design
def test_patients_are_drawn_as_planned_and_sites_know_nothing():
    table = people.draw(3)
    slides = people.slides(table, 3)
    assert len(table) == people.PATIENTS and table["patient"].is_unique and slides["slide_id"].is_unique
    assert (slides["patient"].map(slides["patient"].value_counts()) <= 3).all() and 240 <= len(slides) <= 280
    shares = table["subtype"].value_counts(normalize=True)
    assert all(abs(shares[name] - share) < 0.01 for name, share in people.SUBTYPES.items())
    for name, share in people.DEFECTS.items():
        assert abs((slides["defect"] == name).mean() - share) < 0.005
    means = table.groupby("subtype")[["immune", "nuclei"]].mean()
    assert (means.loc["basal"] > means.loc["luminal"]).all()
    assert set(table["arm"][table["subtype"] != "her2"]) == {"chemo"}
    assert table.groupby("site")["immune"].mean().abs().max() < 0.6  # 40 patients a site
    assert table.equals(people.draw(3)) and not table.equals(people.draw(4))


def fates(folder, seed: int, *, null: bool = False):
    """Outcomes of all patients on made-up tissue: lymphocytes and nuclei as wanted, genes that follow them."""
    table, panel = people.draw(seed), expression.panel()
    stream, n = settings.rng(seed, "test clinic"), people.PATIENTS
    immune = np.exp(0.8 * table["immune"])
    grown = pd.DataFrame({"patient": table["patient"], "n_t_cell": 80 * immune, "n_b_cell": 20 * immune,
                          "n_cancer_epithelial": 900.0, "n_fibroblast": 300.0, "nuclei": 3 + 0.1 * table["nuclei"]})
    share = np.exp(np.log(panel.table["level"].to_numpy(float)) + stream.normal(0, 0.3, (n, len(panel.genes))))
    share[:, (panel.table["group"] == "t_cell").to_numpy()] *= immune.to_numpy()[:, None]
    bulk = pd.DataFrame(share / share.sum(1, keepdims=True), columns=panel.genes)
    bulk.insert(0, "patient", table["patient"])
    grown.to_parquet(folder / "tissue.parquet")
    bulk.to_parquet(folder / "bulk.parquet")
    return outcome.decide(folder, table, seed, null=null)


def test_risk_is_what_the_tissue_says_and_the_expected_deaths_are_as_set(tmp_path):
    patients, genes, facts = fates(tmp_path, 0)
    assert np.isclose(patients["lp_programme"].std(), 1, atol=0.1) and 1.0 < patients["lp"].std() < 1.25
    assert np.corrcoef(patients["lp_programme"], patients["wanted_immune"])[0, 1] < -0.95
    expected = outcome.expected_events(facts["scale_years"], patients["lp"], patients["follow_up_years"])
    assert np.isclose(expected, outcome.EVENTS, atol=1e-6)
    assert (patients["days"] >= 1).all() and patients["days"].duplicated().sum() > 5  # ties
    assert (patients["time_years"] <= patients["follow_up_years"] + 0.1).all()
    follows = genes.set_index("gene").groupby("group")["prognostic"].mean()
    assert follows["t_cell"] == 1 and follows["hidden"] == 0 and follows["housekeeping"] == 0


def test_the_oracle_is_attainable_and_the_twin_has_none(tmp_path):
    real = pd.DataFrame([fates(tmp_path, seed)[2] for seed in range(6)])
    null = pd.DataFrame([fates(tmp_path, seed, null=True)[2] for seed in range(6)])
    assert 0.72 < real["c_oracle"].mean() < 0.84 and (real["c_oracle"] > 0.65).all()
    assert real["c_age"].mean() > 0.53 and 0.72 < real["auc_oracle"].mean() < 0.9
    assert np.allclose(null["c_oracle"], 0.5)  # all risks are alike
    assert abs(null[["c_programme", "c_age", "auc_oracle"]].mean() - 0.5).max() < 0.06
    assert (null["n_events"] == real["n_events"]).all() and (null["n_complete"] == real["n_complete"]).all()


def test_concordance_and_auc_count_pairs_as_they_should():
    assert outcome.concordance([3, 2, 1], [1, 2, 3], [1, 1, 0]) == 1
    assert outcome.concordance([1, 2, 3], [1, 2, 3], [1, 1, 0]) == 0
    assert outcome.concordance([1, 1], [1, 2], [1, 1]) == 0.5
    assert np.isnan(outcome.concordance([1, 2], [1, 1], [1, 1]))
    assert outcome.auc([1, 2, 3, 3], [False, False, True, True]) == 1 and outcome.auc([1, 1], [True, False]) == 0.5


# ---------------------------------------------------------------- defects
@pytest.fixture(scope="module")
def piece():
    """A good slide with its tissue, and its patient."""
    patient = people.draw(0).iloc[5].to_dict()
    from helpers.virtual import rendering

    ground, placed = tissue._grow(patient, "test piece", 0, people.SIZE_UM)
    drawn = rendering.render(ground, placed, tissue.stain_of(patient, ground.style, 0), mpp=people.MPP, seed=0,
                             section="clinic test piece")  # fmt: skip
    shape = drawn.image.shape[:2]
    inside = cv2.resize(drawn.tissue_mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return drawn, inside


def test_every_defect_is_seen_by_its_own_measure(piece):
    drawn, inside = piece
    found = {}
    for defect in ("", *people.DEFECTS):
        image, left, done = tissue.spoil(
            drawn.image, inside, defect, drawn.measured_white_point, settings.rng(0, "test spoil", defect)
        )
        found[defect] = {**slideqc.measure(image, people.MPP), **done}
        assert np.isclose(left.sum() / inside.sum(), done["tissue_share"], atol=1e-6)
    good = found[""]
    assert good["blurry_removed_percent"] < 0.05 and good["pen_percent"] == 0
    assert good["small_tissue_removed_num_regions"] <= 3
    assert abs(good["tissue_um2"] / (inside.sum() * people.MPP**2) - 1) < 0.2
    assert found["blur"]["blurry_removed_percent"] > 0.9
    assert 0.5 < found["pen"]["pen_percent"] / found["pen"]["pen_share"] < 2
    assert found["little"]["pixels_to_use"] < 0.4 * good["pixels_to_use"]
    assert found["fragments"]["small_tissue_removed_num_regions"] >= 10
    for defect in ("pen", "little", "fragments"):
        assert found[defect]["blurry_removed_percent"] < 0.1


def test_larger_tumour_nuclei_leave_all_other_cells_alone():
    patient = people.draw(0).iloc[5].to_dict()
    small, large = ({**patient, "nuclei": value} for value in (0.0, 1.5))
    a, b = (tissue._grow(row, "test nuclei", 0, 300.0)[1] for row in (small, large))
    assert b.table["area_um2"][b.table["type"] == "cancer_epithelial"].mean() > 1.15 * (
        a.table["area_um2"][a.table["type"] == "cancer_epithelial"].mean()
    )
    others = [t.table["area_um2"][t.table["type"] == "fibroblast"].mean() for t in (a, b)]
    assert np.isclose(*others, rtol=0.1)
    for placed in (a, b):  # outlines were scaled with their area
        x, y = placed.polygons[..., 0].astype(float), placed.polygons[..., 1].astype(float)
        area = 0.5 * np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1))
        assert 0.85 < np.median(area / placed.table["area_um2"]) < 1.15


# ---------------------------------------------------------------- a small cohort
@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    home = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_VIRTUAL", str(home))
        yield {name: clinic.ensure(name, n=N, workers=1) for name in clinic.NAMES}
        assert not [path for path in home.iterdir() if ".part" in path.name]


def tables(home):
    place = home / "sections" / "clinical"
    porpoise = pd.read_csv(place / "tcga_brca_all_clean.csv", index_col=0)
    gdc = pd.read_csv(place / "clinical.tsv", sep="\t", index_col=0)
    bio = pd.read_csv(place / "data_clinical_patient.txt", sep="\t", comment="#", index_col=0)
    return porpoise, gdc, bio


def test_three_tables_tell_one_story_and_it_is_the_truth(homes):
    porpoise, gdc, bio = tables(homes["virtual_tcga"])
    truth = clinic.read(homes["virtual_tcga"])
    assert len(porpoise) == len(truth.slides) and porpoise["case_id"].nunique() == N
    assert set(porpoise["slide_id"].str.removesuffix(".jpg")) == set(truth.slides.index)
    event = truth.patients["event"]
    assert ((gdc["vital_status"] == "Dead") == event[gdc.index]).all()
    assert ((bio["OS_STATUS"] == "1:DECEASED") == event[bio.index]).all()
    first = porpoise.groupby("case_id").first()
    assert (first["censorship"] == 1 - event[first.index]).all()
    assert np.allclose(first["survival_months"], bio.loc[first.index, "OS_MONTHS"])
    days = gdc["days_to_death"].where(gdc["vital_status"] == "Dead", gdc["days_to_last_follow_up"]).astype(int)
    assert (days == truth.patients.loc[gdc.index, "days"]).all()
    other = gdc["days_to_death"].where(gdc["vital_status"] == "Alive", gdc["days_to_last_follow_up"])
    assert (other == "'--").all()
    assert set(bio["RESPONSE"]) <= {"pCR", "RD"} and (bio["AGE"] == gdc["age_at_index"]).all()


def test_bulk_is_measured_from_the_truth_and_named_by_patient(homes):
    home = homes["virtual_tcga"]
    counts = pd.read_csv(home / "sections" / "bulk" / "counts.tsv", sep="\t", index_col=0)
    truth = clinic.read(home)
    assert set(counts) == set(truth.patients.index) and list(counts) != list(truth.patients.index)
    share, known = counts / counts.sum(), truth.bulk.T.loc[counts.index, list(counts)]
    r = [np.corrcoef(np.log1p(1e6 * share[name]), np.log1p(1e6 * known[name]))[0, 1] for name in counts]
    wrong = np.corrcoef(np.log1p(1e6 * share.iloc[:, 0]), np.log1p(1e6 * known.iloc[:, 1]))[0, 1]
    assert min(r) > 0.985 and max(r) > wrong
    z = tables(home)[0].groupby("case_id").first().filter(like="_rnaseq")
    assert z.shape == (N, len(counts)) and np.allclose(z.mean(), 0, atol=1e-3)


def test_the_manifest_holds(homes):
    for home in homes.values():
        listed = pd.read_csv(home / "sections" / "MANIFEST.txt", sep="\t")
        files = {p.relative_to(home / "sections").as_posix() for p in (home / "sections").rglob("*") if p.is_file()}
        assert set(listed["filename"]) == files - {"MANIFEST.txt"} and listed["id"].is_unique
        for row in listed.itertuples():
            data = (home / "sections" / row.filename).read_bytes()
            assert hashlib.md5(data).hexdigest() == row.md5 and len(data) == row.size


def test_the_twin_shares_pictures_bulk_and_patients_and_not_their_fates(homes):
    a, b = (homes[name] for name in clinic.NAMES)
    for file in (a / "sections" / "slides").iterdir():
        assert file.samefile(b / "sections" / "slides" / file.name)
    assert (a / "sections/bulk/counts.tsv").read_bytes() == (b / "sections/bulk/counts.tsv").read_bytes()
    x, y = (clinic.read(home).patients for home in (a, b))
    assert (x["age"] == y["age"]).all() and np.allclose(x["programme"], y["programme"])
    assert not (x["follow_up_years"] == y["follow_up_years"]).all() and (y["lp"] == 0).all()
    assert sorted(x["follow_up_years"]) == sorted(y["follow_up_years"]) and x["event"].sum() == y["event"].sum()
    assert not clinic.read(b).genes["prognostic"].any()


def test_slides_open_as_sections_and_the_light_way_sees_the_same(homes, monkeypatch):
    data = runner_data.Data({"DATA": f"slides:{homes['virtual_tcga'] / 'sections' / 'slides'}"})
    assert data.cohort_truth() is None and not data.is_virtual
    truth = clinic.read(homes["virtual_tcga"])
    assert [ref.section_id for ref in data.sections] == sorted(truth.slides.index)
    assert {ref.section_id: ref.subject_id for ref in data.sections} == truth.slides["patient"].to_dict()
    good = truth.slides.index[truth.slides["defect"] == ""][0]
    opened = data.load(good)
    image, mpp = readers_slides.read(data.folder / f"{good}.jpg")
    assert np.isclose(mpp, people.MPP) and section.shape(opened) == image.shape[:2]
    assert np.isclose(section.mpp(opened), mpp) and opened.attrs["subject_id"] == truth.slides.loc[good, "patient"]
    tiles, xy = readers_slides.tiles(image, mpp, side_um=100.0, out_px=64)
    assert tiles.shape == (len(xy), 64, 64, 3) and len(xy) == section.counts(opened).n_obs
    assert np.allclose(xy / mpp, section.xy(opened), atol=1.01)


def test_nonsense_is_refused(homes, tmp_path):
    with pytest.raises(CourseError, match="virtual_tcga_more"):
        clinic.ensure("virtual_tcga_more")
    with pytest.raises(CourseError):
        clinic.ensure(n=3)
    with pytest.raises(CourseError):
        clinic.read(tmp_path)

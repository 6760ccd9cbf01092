"""The virtual Xenium sections: frames, DAPI, segmentation, molecules, files, truth, the null twin."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from helpers import section_align, section_cells, settings
from helpers.messages import CourseError
from helpers.virtual import cohorts, truth, xenium, xenium_counts, xenium_files, xenium_frame, xenium_truth

from .make_xenium import SECTIONS, small


@pytest.fixture(scope="module")
def home():
    return small()["virtual_xenium"]


def known(home, name):
    return xenium_truth.of(truth.read(home, name))


def written(home, name, file):
    return pd.read_parquet(home / "sections" / name / "outs" / f"{file}.parquet")


# ---------------------------------------------------------------- frames
def test_a_frame_goes_there_and_back_and_warps_by_what_it_says():
    points = settings.rng(0, "test").uniform(0, 2000, (4000, 2))
    frame = xenium_frame.draw(seed=1, section="t", angle_deg=70, mirrored=True, warp_um=3.0)
    assert np.abs(frame.to_he(frame.to_xenium(points)) - points).max() < 1e-5
    assert frame.warp(points).std(0) == pytest.approx([3, 3], rel=0.35)
    near = np.abs(frame.warp(points) - frame.warp(points + [5.0, 0])).max()
    assert near < 1.0  # gentle: nuclei keep their shape
    assert np.linalg.det(frame.linear) < 0 and 0.97 <= np.sqrt(-np.linalg.det(frame.linear)) <= 1.03
    assert 58 <= frame.angle_deg <= 82
    straight = xenium_frame.draw(seed=1, section="t", angle_deg=70, mirrored=False, warp_um=0.0)
    left = xenium_frame.best_affine(points, straight.to_xenium(points))
    assert np.allclose(points @ left[:2, :2].T + left[:2, 2], straight.to_xenium(points))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_truth_of_the_registration_holds_for_every_nucleus(home, name):
    found, member = known(home, name), next(m for m in xenium.MEMBERS if m.section_id == name)
    facts, (um, px) = found.registration, found.landmarks
    matrix = np.array(facts["um_to_px"])
    assert (np.linalg.det(matrix[:2, :2]) < 0) == member.mirrored == facts["mirrored"]
    left = np.hypot(*(section_align.apply(matrix, um) - px).T) * facts["he_um_px"]
    assert np.median(left) == pytest.approx(facts["affine_floor_um"])
    if member.warp_um == 0:
        assert left.max() < 1e-6
    else:
        assert 0.3 < np.median(left) < 4.5  # a small field is bent less than a large one
    moved = section_align.apply(matrix, found.xenium_nuclei)
    apart = np.hypot(*(moved - found.nuclei_px).reshape(-1, 2).T) * facts["he_um_px"]
    assert np.median(apart) == pytest.approx(np.median(left), abs=0.8) and apart.max() < 15
    assert len(um) > 20 and facts["scale"] == pytest.approx(facts["he_um_px"] / facts["he_mpp"], rel=0.03)


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize("name", SECTIONS)
def test_dapi_shows_the_nuclei_it_should_and_is_no_copy_of_haematoxylin(home, name):
    from helpers import readers_xenium

    section = readers_xenium.read(home / "sections" / name / "outs")
    picture, um_px = section_cells.dapi(section)
    assert picture.dtype == np.uint16 and um_px == 0.2125 and list(picture.shape) == known(home, name).registration[
        "dapi_shape"]
    found = known(home, name)
    cells, centre = found.cells, found.xenium_nuclei.mean(1) / um_px
    there = picture[tuple(np.clip(centre[:, ::-1].astype(int), 0, np.array(picture.shape) - 1).T)].astype(float)
    front = ~cells["deep"].to_numpy()
    shown = cells["in_dapi"].to_numpy()
    dark, bright = np.median(there[front & ~shown]), np.median(there[front & shown])
    assert 0.01 < (~shown).mean() < 0.15 and bright > 4 * dark
    assert np.percentile(picture, 5) < 400 and 2000 < bright < 5000
    tone = np.corrcoef(np.log(there[front & shown]), cells["haematoxylin"][front & shown])[0, 1]
    assert abs(tone) < 0.35
    assert np.log(there[front & shown]).std() > 0.2  # nuclei differ in brightness
    assert 0 < (~cells["in_he"]).mean() < 0.1 and not (cells["in_he"] == cells["in_dapi"]).all()


def test_the_he_shows_the_true_outlines(home):
    from helpers import readers_xenium, section

    for name in SECTIONS:
        picture = section.image(readers_xenium.read(home / "sections" / name / "outs"))
        labels, classes = known(home, name).labels()
        assert labels.shape == picture.shape[:2] and classes[0] == 0 and set(classes[1:]) <= {1, 2, 3, 4}
        dark = 255 - picture[..., 0].astype(float)  # haematoxylin absorbs red
        assert dark[labels > 0].mean() > 1.6 * dark[labels == 0].mean()
        turned = labels[::-1, ::-1] > 0
        assert dark[labels > 0].mean() > 1.3 * dark[turned].mean()


def test_patients_are_stained_differently(home):
    stains = [known(home, name).stain for name in SECTIONS]
    for one in range(3):
        for other in range(one):
            angles = [
                np.degrees(np.arccos(np.clip(np.dot(stains[one][dye], stains[other][dye]), -1, 1)))
                for dye in ("haematoxylin", "eosin")
            ]
            assert max(angles) > 3.5, (SECTIONS[one], SECTIONS[other])


# ---------------------------------------------------------------- tables
@pytest.mark.parametrize("name", SECTIONS)
def test_matrix_cells_and_transcripts_agree(home, name):
    outs = home / "sections" / name / "outs"
    table, drawn = written(home, name, "cells"), written(home, name, "transcripts")
    import scanpy as sc

    counts = sc.read_10x_h5(outs / "cell_feature_matrix.h5", gex_only=False)
    names = drawn["feature_name"].map(lambda word: word.decode() if isinstance(word, bytes) else word)
    ids = drawn["cell_id"].astype(str)
    inside = ~ids.isin(["-1", "UNASSIGNED"])
    again = pd.crosstab(ids[inside & (drawn["qv"] >= 20)], names[inside & (drawn["qv"] >= 20)])
    again = again.reindex(index=counts.obs_names, columns=counts.var_names, fill_value=0)
    assert np.array_equal(again.to_numpy(), counts.X.toarray())
    gene = (counts.var["feature_types"] == "Gene Expression").to_numpy()
    assert gene.sum() == 300 and np.array_equal(counts.X[:, gene].sum(1).A1, table["transcript_counts"])
    assert np.array_equal(table["cell_id"].astype(str), counts.obs_names)
    assert 0.01 < (~inside).mean() < 0.3 and 0.8 < (drawn["qv"] >= 20).mean() < 0.92
    control = names.str.match("NegControl|Unassigned")
    assert 0 < control.mean() < 0.01 and (drawn["qv"][control] < 20).mean() > (drawn["qv"][~control] < 20).mean()


def test_versions_differ_as_the_vendors_do(home):
    ids = {name: written(home, name, "cells")["cell_id"] for name in SECTIONS}
    assert ids["X1_a"].tolist() == list(range(1, len(ids["X1_a"]) + 1))
    assert ids["X2_a"].str.fullmatch(r"[a-p]{8}-1").all() and ids["X2_a"].is_unique
    assert "label_id" not in written(home, "X1_a", "cell_boundaries")
    assert "label_id" in written(home, "X2_a", "cell_boundaries")
    assert "codeword_category" in written(home, "X3_b", "transcripts")
    outs = {name: home / "sections" / name / "outs" for name in SECTIONS}
    assert (outs["X1_a"] / "morphology_focus.ome.tif").is_file() and (outs["X1_a"] / "cells.csv.gz").is_file()
    assert (outs["X2_a"] / "morphology_focus" / "morphology_focus_0000.ome.tif").is_file()
    assert (outs["X3_b"] / "morphology_focus" / "ch0000_dapi.ome.tif").is_file()
    large, small_ = (written(home, name, "cells")["cell_area"].median() for name in ("X1_a", "X3_b"))
    assert large > small_  # 15 um of growth against 5
    assert not list(home.rglob("*alignment*"))  # finding it is the task


def test_the_panel_marks_every_type():
    panel, profiles = xenium_counts.panel(), xenium_counts.profiles()
    assert len(panel) == 300 and panel["symbol"].is_unique and list(profiles.columns) == list(panel["symbol"])
    share = profiles.div(profiles.sum(1), axis=0)
    for kind in profiles.index:
        others = share.drop(kind).max()
        assert (share.loc[kind] > 3 * others).sum() >= 2, kind


def nearest(home, name):
    """Return the type of the most similar reference profile for each cell found."""
    from helpers import readers_xenium

    counts = readers_xenium.read(home / "sections" / name / "outs").tables["counts"]
    reference = ad.read_h5ad(home / "sections" / "reference.h5ad")
    reference = reference[:, counts.var_names]
    kinds = reference.obs["cell_type"].cat.categories
    share = reference.X.toarray() / np.maximum(reference.X.toarray().sum(1, keepdims=True), 1)
    profile = np.log([1e3 * share[(reference.obs["cell_type"] == kind).to_numpy()].mean(0) + 0.1 for kind in kinds])
    value = np.log1p(1e3 * counts.X.toarray() / counts.X.toarray().sum(1, keepdims=True))
    score = np.corrcoef(value, profile)[: len(value), len(value) :]
    return counts.obs_names, np.asarray(kinds)[score.argmax(1)]


@pytest.mark.parametrize("word", xenium.NAMES)
def test_expression_tells_the_type_and_in_the_null_twin_the_picture_does_not(word):
    home = small()[word]
    hits, drawn_hits, majority = [], [], []
    for name in SECTIONS:
        cells = known(home, name).cells
        cells = cells[cells["cell"] != ""].set_index("cell")
        names, guess = nearest(home, name)
        cells = cells.loc[names]
        hits.append(guess == cells["type"].astype(str))
        drawn_hits.append(guess == cells["drawn_type"].astype(str))
        majority.append(cells["type"].value_counts(normalize=True).max())
    assert 0.8 < np.concatenate(hits).mean() < 0.995  # some are mistaken: molecules of neighbours
    if word.endswith("_null"):
        assert np.concatenate(drawn_hits).mean() < np.mean(majority)


def test_the_null_twin_shares_the_pictures_and_deals_the_types_out_anew(home):
    null = small()["virtual_xenium_null"]
    for name in SECTIONS:
        pictures = [file.relative_to(home) for file in (home / "sections" / name).rglob("*.tif")]
        assert len(pictures) >= 2 and all((home / file).samefile(null / file) for file in pictures)
        ours, theirs = known(home, name).cells, known(null, name).cells
        assert ours["drawn_type"].equals(ours["type"]) and theirs["drawn_type"].equals(ours["type"])
        assert sorted(theirs["type"].astype(str)) == sorted(ours["type"].astype(str))
        share = ours["type"].value_counts(normalize=True)
        same = (theirs["type"].astype(str) == ours["type"].astype(str)).mean()
        assert same == pytest.approx((share**2).sum(), abs=0.06)  # what chance gives
        for column in ("x_px", "y_px", "area_um2", "in_he", "cell"):
            assert theirs[column].equals(ours[column])
        assert np.array_equal(known(null, name).xenium_nuclei, known(home, name).xenium_nuclei)


def test_the_truth_is_whole(home):
    for name in SECTIONS:
        found = known(home, name)
        assert len(found.spots) == len(written(home, name, "cells")) == len(found.expected)
        assert found.expected.shape[1] == 300 == len(found.genes)
        counts = written(home, name, "cells")["transcript_counts"].to_numpy()
        assert np.corrcoef(counts, found.expected.sum(1))[0, 1] > 0.5
        assert set(found.cells["class"]) <= set(xenium_truth.CLASSES)
        assert (found.spots.loc[found.spots.index, "type"].astype(str) != "").all()
    with pytest.raises(CourseError, match="registration.json|no such file"):
        xenium_truth.XeniumTruth(home / "sections", "x").registration  # noqa: B018


def test_the_same_seed_gives_the_same_bytes(home, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_VIRTUAL", str(tmp_path))
    again = xenium.ensure(size_um=380.0, sections=("X2_a",), workers=1)
    assert again.name.split("-v")[0] == home.name.split("-v")[0] and again.name != home.name
    for file in ("cells.parquet", "transcripts.parquet", "nucleus_boundaries.parquet", "experiment.xenium"):
        place = f"sections/X2_a/outs/{file}"
        assert (again / place).read_bytes() == (home / place).read_bytes(), file
    picture = "sections/X2_a/outs/morphology_focus/morphology_focus_0000.ome.tif"
    import tifffile

    assert np.array_equal(tifffile.imread(again / picture, key=0), tifffile.imread(home / picture, key=0))


def test_the_data_set_is_known_and_does_not_touch_the_others(home):
    card = json.loads((home / "dataset.json").read_text())
    assert [row["subject_id"] for row in card["sections"]] == ["X1", "X2", "X3"] and card["platform"] == "xenium"
    for expression in (False, True):
        assert not [f for f in cohorts._sources(expression=expression) if f.name.startswith("xenium")]
    assert {m.patient for m in xenium.MEMBERS} == {"X1", "X2", "X3"} and len(xenium.MEMBERS) == 5
    assert xenium_files.major("xenium-3.1.0.0") == 3.1
    with pytest.raises(CourseError, match="virtual_xenium"):
        cohorts.ensure("virtual_xenium_more")

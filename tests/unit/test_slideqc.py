"""Quality of slides: each defect is found by its own measure, the rules are the paper's, HistoQC's table is read."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from helpers import settings, slideqc
from helpers.messages import CourseError

MPP = 0.8


def slide(seed=0, *, side=700, radius=0.42):
    """A round piece of pink tissue with dark nuclei on glass."""
    stream = settings.rng(seed, "test slideqc")
    image = np.full((side, side, 3), (238, 232, 240), np.float32)
    y, x = np.mgrid[:side, :side]
    tissue = np.hypot(y - side / 2, x - side / 2) < radius * side
    texture = cv2.GaussianBlur(stream.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 4)
    image[tissue] = (205, 150, 195)
    image += tissue[..., None] * 30 * (texture / texture.std())[..., None] * np.array([0.4, 0.6, 0.4])
    for cx, cy in stream.uniform(0.5 - radius, 0.5 + radius, (4000, 2)) * side:
        if tissue[int(cy), int(cx)]:
            cv2.circle(image, (int(cx), int(cy)), int(stream.integers(3, 6)), (60, 55, 120), -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 0.6) + stream.normal(0, 1, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_a_good_slide_passes_and_its_size_is_right():
    found = slideqc.measure(slide(), MPP)
    assert found["blurry_removed_percent"] < 0.1 and found["pen_percent"] == 0
    assert found["small_tissue_removed_num_regions"] <= 1
    assert np.isclose(found["tissue_um2"], np.pi * (0.42 * 700 * MPP) ** 2, rtol=0.05)
    assert np.isclose(found["pixels_to_use"], np.pi * (0.42 * 700) ** 2, rtol=0.1)


def test_measures_do_not_depend_on_the_scanner_s_resolution():
    fine = slide()
    coarse = cv2.resize(fine, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    a, b = slideqc.measure(fine, MPP), slideqc.measure(coarse, 2 * MPP)
    assert np.isclose(a["tissue_um2"], b["tissue_um2"], rtol=0.03)
    assert np.isclose(a["sharpness"], b["sharpness"], rtol=0.2)
    assert b["blurry_removed_percent"] < 0.1 and np.isclose(a["pixels_to_use"], 4 * b["pixels_to_use"], rtol=0.1)


def test_blur_is_found_and_where():
    image = slide()
    blurred = cv2.GaussianBlur(image, (0, 0), 4 / MPP)
    assert slideqc.measure(blurred, MPP)["blurry_removed_percent"] > 0.9
    assert slideqc.measure(blurred, MPP)["pixels_to_use"] < 1000
    half = image.copy()
    half[:, 350:] = blurred[:, 350:]
    found = slideqc.masks(half, MPP)
    middle = found["blurry"].shape[1] // 2
    assert found["blurry"][:, middle + 12 :].sum() > 0.9 * found["tissue"][:, middle + 12 :].sum()
    assert found["blurry"][:, : middle - 12].sum() < 0.1 * found["tissue"][:, : middle - 12].sum()


@pytest.mark.parametrize("ink", [(38, 62, 150), (30, 105, 75), (40, 38, 42)])
def test_ink_is_found_on_tissue_and_on_glass_and_is_not_tissue(ink):
    image = slide()
    cv2.line(image, (0, 350), (699, 380), ink, 45, cv2.LINE_AA)
    found = slideqc.measure(image, MPP)
    assert np.isclose(found["pen_percent"], 45 / 700, rtol=0.5)
    assert found["pixels_to_use"] < 0.95 * slideqc.measure(slide(), MPP)["pixels_to_use"]


def test_a_dense_patch_of_nuclei_is_not_ink():
    image, stream = slide(), settings.rng(0, "test slideqc dense")
    for cx, cy in stream.uniform(250, 450, (1200, 2)):
        cv2.circle(image, (int(cx), int(cy)), 4, (70, 65, 130), -1, cv2.LINE_AA)
    image = cv2.addWeighted(image, 0.7, np.full_like(image, (190, 150, 190)), 0.3, 0)  # cytoplasm shows between them
    assert slideqc.measure(image, MPP)["pen_percent"] == 0


def test_small_pieces_are_counted_and_dust_is_not():
    image = slide(radius=0.25)
    for k in range(12):
        cv2.circle(image, (40 + 55 * k, 45), 14, (190, 120, 180), -1)
        cv2.circle(image, (40 + 55 * k, 660), 2, (60, 60, 60), -1)
    found = slideqc.measure(image, MPP)
    assert found["small_tissue_removed_num_regions"] == 12
    assert 0.02 < found["small_tissue_removed_percent"] < 0.2


def test_an_empty_slide_is_of_no_use():
    found = slideqc.measure(np.full((400, 400, 3), 240, np.uint8), MPP)
    assert found["pixels_to_use"] == 0 and found["blurry_removed_percent"] == 1


@pytest.mark.parametrize("image, mpp", [
    (np.zeros((50, 50), np.uint8), 0.5), (np.zeros((50, 50, 3), np.float32), 0.5),
    (np.zeros((50, 50, 3), np.uint8), 8.0), (np.zeros((50, 50, 3), np.uint8), float("nan")),
])  # fmt: skip
def test_bad_pictures_are_refused(image, mpp):
    with pytest.raises(CourseError):
        slideqc.measure(image, mpp)


def measures(n=200):
    return pd.DataFrame(
        {"blurry_removed_percent": 0.0, "small_tissue_removed_num_regions": np.arange(n) % 7,
         "pixels_to_use": 1000 + np.arange(n), "pen_percent": 0.0}, index=[f"s{i}" for i in range(n)],
    )  # fmt: skip


def test_the_rules_are_the_paper_s():
    table = measures()
    table.loc["s100", "blurry_removed_percent"] = 0.9
    table.loc["s101", "blurry_removed_percent"] = 0.899
    table.loc["s102", "small_tissue_removed_num_regions"] = 50
    table.loc["s103", "pen_percent"] = 0.2
    found = slideqc.judge(table)
    assert found.loc["s100", "why"] == "blurry" and found.loc["s101", "keep"] and found.loc["s103", "keep"]
    assert found.loc["s102", "why"] == "many small pieces"
    assert list(found.index[found["why"] == "little tissue"]) == [f"s{i}" for i in range(10)]  # the lowest 5 %
    assert not slideqc.judge(table, most_pen=0.1).loc["s103", "keep"]
    assert found.attrs["thresholds"]["pixels_to_use"] == np.quantile(1000 + np.arange(200), 0.05)


def test_quantiles_rest_in_a_handful_of_slides():
    found = slideqc.judge(measures(10))
    assert found["keep"].all() and np.isnan(found.attrs["thresholds"]["pixels_to_use"])


def test_judging_refuses_tables_without_the_measures():
    with pytest.raises(CourseError, match="pixels_to_use"):
        slideqc.judge(measures().drop(columns="pixels_to_use"))
    with pytest.raises(CourseError):
        slideqc.judge(measures().astype(object).assign(pixels_to_use="many"))


def test_histoqc_s_own_table_is_read_and_judged(tmp_path):
    rows = "".join(f"slide{i}.svs\t\t0.{i % 5}1\t{i % 3}\t{1000 + i}\n" for i in range(40))
    text = (
        "#start_time:\t2024-01-01\n#pipeline:\tBasicModule.getBasicStats\n"
        "#dataset:filename\tcomments\tblurry_removed_percent\tsmall_tissue_removed_num_regions\tpixels_to_use\n"
    )
    (tmp_path / "results.tsv").write_text(text + rows + "slide40.svs\tfailed\n")
    table = slideqc.read_histoqc(tmp_path / "results.tsv")
    assert len(table) == 41 and table.loc["slide7.svs", "pixels_to_use"] == 1007
    assert table.loc["slide3.svs", "blurry_removed_percent"] == 0.31
    with pytest.raises(CourseError):  # a slide that HistoQC could not finish is not passed over silently
        slideqc.judge(table)
    assert slideqc.judge(table.dropna(subset=list(slideqc.MEASURES)))["keep"].sum() == 38
    (tmp_path / "other.tsv").write_text("#dataset:filename\tcomments\nx.svs\t\n")
    for wrong in ("other.tsv", "none.tsv"):
        with pytest.raises(CourseError):
            slideqc.read_histoqc(tmp_path / wrong)

"""Realism of the virtual tissue against stored numbers of real sections, and truth that an estimator can reach.

Thresholds come from the spread between the four real sections of ``data/realism.csv`` (one patient). The appearance
was tuned on those same sections (other seeds than here): there is no held-out patient.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from helpers.virtual import anatomy, cells, realism, rendering


def _section(style: str, seed: int, size_um: float, stain=None, mpp: float = 0.69):
    grown = anatomy.grow(seed=seed, section="T", size_um=(size_um, size_um), style=style)
    placed = cells.place(grown, seed=seed, section="T")
    stain = stain or rendering.base_stain(style)
    return grown, rendering.render(grown, placed, stain, mpp=mpp, seed=seed, section="T")


@pytest.fixture(scope="module")
def measured():
    """The frozen, dense style at full size, measured like the real sections."""
    slide = _section("dense", 21, 2600.0)[1]
    return realism.measure(slide.image, white_point=slide.measured_white_point)


@pytest.fixture(scope="module")
def real():
    return realism.real_numbers()[["C2", "C3", "C4", "C5"]]


def test_colours_are_as_near_as_two_real_sections(measured, real):
    """(a) Earth mover's distance of L, a, b. Two real sections differ by up to 3.0, 2.8, 1.6."""
    away = realism.distances(measured, real.mean(axis=1))
    assert away.emd_L < 4.5 and away.emd_a < 3.5 and away.emd_b < 3.5


def test_contrast_by_scale(measured, real):
    """(b) sd in octaves. Two real sections differ by up to 12 % below 32 px and by 31 % above."""
    away = realism.distances(measured, real.mean(axis=1)).filter(like="band_")
    assert away.drop("band_>64").between(0.8, 1.25).all(), away
    assert 0.6 < away["band_>64"] < 1.5


def test_spectrum(measured, real):
    """(c) Amplitude from .012 to .38 cycles per pixel. Two real sections differ by up to 16 %."""
    away = realism.distances(measured, real.mean(axis=1)).filter(like="amplitude_")
    assert away.between(0.75, 1.25).all(), away


def test_stain_vectors_of_the_image(measured, real):
    """(d) Macenko on the image gives the vectors that it gives on real sections."""
    for name, limit in (("stain_h", 0.03), ("stain_e", 0.06)):
        rows = [f"{name}_{c}" for c in "rgb"]
        assert np.abs(measured[rows] - real.loc[rows].mean(axis=1)).max() < limit, name


def test_nuclei_found_by_one_detector(measured, real):
    """(e) Median density within real p10-p90, and median area within 25 %, of cellular stroma and mixed tissue."""
    for name in ("stroma", "mixed"):
        low, high = real.loc[f"nuclei_{name}_p10"].min(), real.loc[f"nuclei_{name}_p90"].max()
        assert low < measured[f"nuclei_{name}_p50"] < high, name
        assert measured[f"area_{name}"] / real.loc[f"area_{name}"].mean() == pytest.approx(1, abs=0.25), name


def test_nuclei_are_spaced_as_in_tissue(measured, real):
    """(f) Clustering from 6 um on; at 4 um, where real nuclei touch, virtual ones are still too tidy (a known gap)."""
    ratio = measured.neighbour_ratio / real.loc["neighbour_ratio"].mean()
    assert ratio == pytest.approx(1, abs=0.12)
    away = realism.distances(measured, real.mean(axis=1)).filter(like="pairs_").drop("pairs_04")
    assert away.between(0.75, 1.25).all(), away


def test_separability_knows_same_from_different():
    """(g) Reported, not gated; here only that the measure itself works."""
    stream = np.random.default_rng(0)
    one, other = stream.integers(90, 200, (2, 12, 224, 224, 3), dtype=np.uint8)
    assert realism.separability(one, other) < 0.8
    assert realism.separability(one, (other * 0.7).astype(np.uint8)) > 0.95


def _angle(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(np.dot(found, truth), -1, 1))))


@pytest.mark.parametrize(("style", "mpp"), [("dense", 0.69), ("loose", 0.69), ("ffpe", 0.5)])
@pytest.mark.parametrize("seed", [31, 32])
def test_an_honest_estimator_reaches_the_truth(style, mpp, seed):
    """White point within 3, stain vectors within 3 degrees, tissue mask at IoU 0.95, by plain methods."""
    stain = rendering.draw_stain(seed=seed, batch="p", style=style)
    grown, slide = _section(style, seed, 1200.0, stain, mpp)
    small = cv2.resize(slide.image, grown.shape[::-1], interpolation=cv2.INTER_AREA)
    density = cv2.GaussianBlur(realism.density(small, slide.measured_white_point).max(axis=2), (0, 0), 2)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    mask = binary_fill_holes(cv2.morphologyEx((density > 0.1).astype(np.uint8), cv2.MORPH_CLOSE, kernel))
    assert (mask & slide.tissue_mask).sum() / (mask | slide.tissue_mask).sum() > 0.95
    white = np.median(small[~mask], axis=0)
    assert np.abs(white - slide.measured_white_point).max() <= 3
    pixels = realism.density(slide.image[::4, ::4].reshape(-1, 3), white)
    found = realism.macenko(pixels)
    assert _angle(found[0], slide.measured_haematoxylin) < 3
    assert _angle(found[1], slide.measured_eosin) < 3


@pytest.mark.real
def test_stored_numbers_are_those_of_the_real_section(real):
    from helpers.settings import data_dir

    found = sorted((data_dir() / "her2st" / "data" / "ST-imgs").glob("*/C5/*.jpg"))
    if not found:
        pytest.skip("her2st section C5 is not in COURSE_DATA")
    image = cv2.cvtColor(cv2.imread(str(found[0])), cv2.COLOR_BGR2RGB)
    again = realism.measure(image, white_point=np.array([233, 216, 230]), count=20)
    assert np.allclose(again, real["C5"], rtol=0.02, atol=0.02, equal_nan=True)

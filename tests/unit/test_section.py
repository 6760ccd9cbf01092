import numpy as np
import pandas as pd
import pytest

from helpers import section as sec
from helpers import traps
from helpers.messages import CourseError
from tests.unit.make import counts_table, disc_section


@pytest.fixture(scope="module")
def disc():
    return disc_section()


def test_axes_and_units(disc):
    assert sec.shape(disc) == (600, 600)
    crop = sec.window(disc, 280, 10, 40, 20)
    assert crop.shape == (20, 40, 3) and tuple(crop[0, 0]) == (236, 226, 235)
    assert sec.um_to_px(disc, 100) == 50
    assert set(disc.coordinate_systems) == {"pixel", "um"}
    assert np.array_equal(sec.image(disc)[300, 300], [180, 110, 170])


def test_um_coordinate_system_is_pixels_times_mpp(disc):
    from spatialdata import get_extent

    pixels, microns = (get_extent(disc["he"], coordinate_system=name) for name in ("pixel", "um"))
    assert np.allclose(np.array(microns["x"]), 2.0 * np.array(pixels["x"]))


def test_thumbnail_scale_maps_spots(disc):
    small, scale = sec.thumbnail(disc, 150)
    assert small.shape == (150, 150, 3) and scale == 0.25
    column, row = np.rint(sec.xy(disc) * scale).astype(int).T
    assert (small[row, column, 1] < 140).mean() > 0.9


def test_a_thumbnail_is_never_enlarged(disc):
    small, scale = sec.thumbnail(disc, 5000)
    assert small.shape[0] == 600 and scale == 1.0


@pytest.mark.parametrize("mpp", [None, 0, float("nan"), 200.0, 0.02])
def test_absurd_pixel_size_is_refused(mpp):
    with pytest.raises(CourseError, match="pixel size"):
        sec.check_mpp(mpp)


def test_pixel_size_that_contradicts_the_spot_pitch_is_refused():
    with pytest.raises(CourseError, match="um apart"):
        disc_section(pitch_um=50.0)


def test_spots_outside_the_image_are_refused(disc):
    points = sec.xy(disc).copy()
    points[3, 1] = 601
    with pytest.raises(CourseError, match="1 of .* spots outside"):
        disc_section(xy_px=points)


def test_nan_position_is_refused(disc):
    points = sec.xy(disc).copy()
    points[0] = np.nan
    with pytest.raises(CourseError, match="without a position"):
        disc_section(xy_px=points)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan])
def test_values_that_are_no_counts_are_refused(disc, bad):
    table = counts_table(len(sec.xy(disc)))
    table.X = table.X.astype(np.float32)
    table.X.data[0] = bad
    with pytest.raises(CourseError, match="raw counts"):
        disc_section(counts=table)


def test_ensembl_ids_are_refused(disc):
    table = counts_table(len(sec.xy(disc)))
    table.var_names = [f"ENSG{i:011d}" for i in range(table.n_vars)]
    with pytest.raises(CourseError, match="gene symbols"):
        disc_section(counts=table)


@pytest.mark.parametrize("name", ["../x", "<script>", "", "a/b", " x"])
def test_unsafe_names_are_refused(name):
    with pytest.raises(CourseError):
        sec.safe_id(name)


def test_image_types():
    grey = np.full((4, 5), 7, np.uint8)
    assert sec.rgb8(grey).shape == (4, 5, 3)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (sec.rgb8(clear) == 255).all()
    for wrong in (np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4, 3), float), np.zeros((4, 4, 5), np.uint8)):
        with pytest.raises(CourseError):
            sec.rgb8(wrong)


def test_alignment_falls_when_the_spots_move(disc):
    good = sec.alignment_score(disc)
    assert good > 0.01 and sec.spots_on_tissue(disc) > 0.95
    assert sec.alignment_score(traps.apply(disc, "off_by_one")) < 0
    assert sec.spots_on_tissue(traps.apply(disc, "hires_scale")) > 0.9  # a 600-px slide has no smaller picture


def test_traps_change_what_they_say(disc):
    points = sec.xy(disc)
    assert np.array_equal(sec.xy(traps.apply(disc, "xy_swap")), points[:, ::-1])
    assert np.array_equal(sec.image(traps.apply(disc, "bgr")), sec.image(disc)[..., ::-1])
    assert sec.image(traps.apply(disc, "cast"))[0, 0].tolist() == [236, 203, 223]
    assert traps.apply(disc, "") is disc
    with pytest.raises(CourseError):
        traps.apply(disc, "xyswap")
    assert set(traps.WHAT_IT_DOES) == set(traps.TRAPS)


SECTIONS = pd.DataFrame({"section_id": list("abcdef"), "subject_id": [1, 1, 2, 2, 3, 3], "stage": [0, 0, 1, 1, 0, 0]})


def test_split_refuses_a_shared_subject(capsys):
    assert sec.split(SECTIONS, test=["e", "f"]) == (list("abcd"), ["e", "f"])
    with pytest.raises(CourseError, match="subject 1"):
        sec.split(SECTIONS, test=["a"])
    sec.split(SECTIONS, test=["a"], allow_shared_subject=True)
    assert "subject 1 is in training and test" in capsys.readouterr().err
    with pytest.raises(CourseError, match="'z'"):
        sec.split(SECTIONS, test=["z"])


def test_folds_never_share_a_subject():
    for label in (None, "stage"):
        parts = sec.folds(SECTIONS, k=3, seed=1, label=label)
        assert sorted(sum((test for _, test in parts), [])) == list("abcdef")
        subject = dict(zip(SECTIONS.section_id, SECTIONS.subject_id))
        for train, test in parts:
            assert not {subject[s] for s in train} & {subject[s] for s in test}
    with pytest.raises(CourseError, match="3 subjects"):
        sec.folds(SECTIONS, k=4, seed=0)

"""Slides without spots: found, named by patient, refused where they state no pixel size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from helpers import readers, readers_slides
from helpers.messages import CourseError


def picture(side=256):
    image = np.full((side, side, 3), 240, np.uint8)
    image[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = (180, 110, 170)
    return image


def test_patients_are_read_from_tcga_names_and_others_stand_for_themselves():
    assert readers_slides.patient_of("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF") == "TCGA-3C-AALI"
    assert readers_slides.patient_of("VC-A2-0017-01Z-00-DX2") == "VC-A2-0017"
    assert readers_slides.patient_of("slide7") == "slide7"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_pixel_size_is_read_from_the_file(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(1200)).save(file, dpi=(25400 / 0.5, 25400 / 0.5))
    assert np.isclose(readers_slides.mpp_of(file), 0.5, rtol=0.01)
    ref = readers.discover(tmp_path, dataset="d", platform="slides")[0]
    opened = readers.read(ref)
    assert opened.attrs["platform"] == "grid" and opened.attrs["section_id"] == "a"


def test_a_slide_without_a_pixel_size_is_refused_unless_it_is_given(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(picture()).save(file)
    with pytest.raises(CourseError, match="pixel size"):
        readers_slides.read(file)
    assert readers_slides.read(file, mpp=0.7)[1] == 0.7
    Image.fromarray(picture()).save(tmp_path / "screen.jpg", dpi=(72, 72))  # a screen's 353 um
    with pytest.raises(CourseError, match="pixel size"):
        readers_slides.mpp_of(tmp_path / "screen.jpg")


def test_pictures_are_slides_only_when_asked_for_and_names_are_unique(tmp_path):
    (tmp_path / "more").mkdir()
    for file in (tmp_path / "a.png", tmp_path / "more" / "a.png", tmp_path / "b.png"):
        Image.fromarray(picture()).save(file)
    assert [ref.section_id for ref in readers.discover(tmp_path, dataset="d", platform="slides")] == ["a", "b"]
    assert len(readers.skipped(tmp_path, platform="slides")) == 1
    with pytest.raises(CourseError):
        readers.discover(tmp_path, dataset="d")


def test_tiles_touch_leave_out_glass_and_say_where_they_lie():
    image = picture(260)
    tiles, xy = readers_slides.tiles(image, 1.0, side_um=20.0, out_px=10)
    assert len(tiles) == len(xy) and 25 <= len(tiles) <= 49
    assert ((xy > 260 // 4 - 20) & (xy < 3 * 260 // 4 + 20)).all()
    apart = np.unique(np.diff(np.unique(xy[:, 0])))
    assert np.allclose(apart, 20)
    blank, none = readers_slides.tiles(np.full((100, 100, 3), 240, np.uint8), 1.0, side_um=20.0, out_px=10)
    assert blank.shape == (0, 10, 10, 3) and none.shape == (0, 2)
    with pytest.raises(CourseError):
        readers_slides.tiles(image, 1.0, side_um=400.0, out_px=10)

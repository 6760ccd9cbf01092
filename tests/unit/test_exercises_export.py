import numpy as np
import tifffile

from helpers import exercises, export
from helpers import section as sec
from tests.unit.make import disc_section


def test_self_check(capsys):
    for answer in (None, 80, 81.5, "x"):
        exercises.self_check("1", answer, 80.2, tolerance=1)
    exercises.self_check("2", " BGR ", "bgr")
    exercises.self_check("2", "cast", "bgr")
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    again = "not yet: try again"
    assert said == ["not answered yet", "right", again, "a number, please", "right", again]


def test_a_written_slide_reads_back_with_its_scale(tmp_path):
    disc = disc_section()
    export.slide_writer(disc, lambda rgb: 255 - rgb)(tmp_path / "slide")
    with tifffile.TiffFile(tmp_path / "slide") as file:
        page = file.pages[0]
        assert np.array_equal(page.asarray(), 255 - sec.image(disc))
        pixels, centimetres = page.tags["XResolution"].value
        assert abs(pixels / centimetres - 1e4 / 2.0) < 1 and page.is_tiled

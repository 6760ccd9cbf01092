"""Figures of notebook 06, and nuclei written for QuPath: what is drawn or written lies where it should."""

import json

import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import celltypes, export_nuclei, plots_xenium
from helpers.messages import CourseError

RGB = np.full((60, 80, 3), 200, np.uint8)
LABELS = np.zeros((60, 80), np.int32)
LABELS[10:20, 10:20], LABELS[30:45, 40:60] = 1, 2
NAMES = list(celltypes.CLASSES)


def scale_bars(figure):
    return [sum(isinstance(one, ScaleBar) for one in axis.artists) for axis in figure.axes if axis.images]


def test_tissue_panels_have_scale_bars():
    xy = np.array([[10.0, 10], [50, 40]])
    made = [
        plots_xenium.side_by_side(RGB[..., 0], 1.0, RGB, 0.5),
        plots_xenium.cells(RGB, 1.0, xy, ["immune", ""]),
        plots_xenium.nuclei(RGB, 0.5, {"truth": (LABELS, [0, 1, 255])}, NAMES),
    ]
    for figure in made:
        assert scale_bars(figure) and all(scale_bars(figure))
    doubt = plots_xenium.doubt(RGB, 0.5, LABELS, [0, 0.2, 0.9], [False, False, True], {"right": np.array([0.2])})
    spots = plots_xenium.spots([0.1, 0.9], [0.2, 0.8], RGB, 1.0, xy, 4.0, label="share")
    assert scale_bars(doubt)[0] and all(scale_bars(spots)[:2])


def test_outlines_have_the_colour_of_their_class():
    figure = plots_xenium.nuclei(RGB, 0.5, {"truth": (LABELS, [0, 1, 3])}, NAMES)
    drawn = figure.axes[1].images[0].get_array()
    from matplotlib.colors import to_rgb

    for place, name in (((10, 15), "immune"), ((30, 50), "cancer_epithelial")):
        np.testing.assert_allclose(drawn[place], 255 * np.array(to_rgb(plots_xenium.CLASS_COLOURS[name])), atol=1)
    assert (drawn[15, 15] == 200).all() and (RGB == 200).all()  # inside and the picture given stay as they are


def test_agreement_is_white_and_disagreement_is_not():
    one, other = np.zeros((20, 20)), np.zeros((20, 20))
    one[2:6, 2:6], other[2:6, 2:6], other[10:14, 10:14] = 9, 5, 5
    made = plots_xenium.composite(one, other)
    assert (made[4, 4] == 1).all() and made[12, 12].tolist() == [0, 1, 0]


def test_the_confusion_matrix_is_written_as_counts():
    matrix = np.array([[5, 1, 0, 0], [0, 3, 0, 0], [2, 0, 7, 0], [0, 0, 0, 0]])
    figure = plots_xenium.map_and_confusion(np.zeros((2, 2)), ["immune", "stromal"], matrix, NAMES)
    assert [text.get_text() for text in figure.axes[1].texts] == [str(n) for n in matrix.ravel()]


def test_nuclei_are_written_as_qupath_detections(tmp_path):
    outlines = [np.array([[0, 0], [10, 0], [10, 8]], float), np.array([[20, 20], [30, 20], [30, 30], [20, 30]], float)]
    numbers = pd.DataFrame({"p_immune": [0.75, 0.1], "entropy": [0.2, 0.9]})
    export_nuclei.nuclei_writer(outlines, ["immune", ""], numbers)(tmp_path / "n.geojson")
    found = json.loads((tmp_path / "n.geojson").read_text())["features"]
    assert [shapely.geometry.shape(one["geometry"]).area for one in found] == [40, 100]
    first, second = (one["properties"] for one in found)
    assert first["objectType"] == "detection" and first["classification"]["name"] == "immune"
    assert first["measurements"] == {"p_immune": 0.75, "entropy": 0.2} and "classification" not in second
    export_nuclei.nuclei_writer([], [])(tmp_path / "none.geojson")
    assert json.loads((tmp_path / "none.geojson").read_text())["features"] == []
    with pytest.raises(CourseError, match="one each"):
        export_nuclei.nuclei_writer(outlines, ["immune"])

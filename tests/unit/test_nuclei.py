"""Nuclei: painted discs are found, scores mean what they say, nothing is found on glass, a section has no doubles."""

import numpy as np
import pytest

from helpers import nuclei
from helpers.messages import CourseError
from tests.unit import make

MPP = 0.5
INK = np.array([70, 50, 130], np.uint8)  # a nucleus
GROUND = np.array([225, 190, 220], np.uint8)  # pale tissue


def discs(centres, radius_px, shape=(160, 200)):
    """Return a picture of dark discs on pale ground, and their labels."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    labels = np.zeros(shape, np.int32)
    for number, (cx, cy) in enumerate(centres, start=1):
        labels[(x - cx) ** 2 + (y - cy) ** 2 <= radius_px**2] = number
    picture = np.where((labels > 0)[..., None], INK, GROUND)
    noise = np.random.default_rng(0).integers(-3, 4, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), labels


APART = [(30, 30), (80, 40), (130, 100), (60, 120), (170, 30)]


# ---------------------------------------------------------------- segmentation
def test_discs_are_found_whatever_the_pixel_size():
    for factor in (1, 2):
        picture, truth = discs([(x * factor, y * factor) for x, y in APART], 6 * factor, (160 * factor, 200 * factor))
        labels = nuclei.segment(picture, mpp=MPP / factor, nucleus_um2=28)
        score = nuclei.match(labels, truth)
        assert score["f1"] == 1 and score["quality"] > 0.8, (factor, score)


def test_touching_discs_are_parted():
    picture, truth = discs([(60, 60), (71.5, 60)], 6.2)
    assert nuclei.match(nuclei.segment(picture, mpp=MPP, nucleus_um2=28), truth)["f1"] == 1


def test_the_size_of_a_nucleus_matters():
    picture, truth = discs(APART, 6)
    assert nuclei.match(nuclei.segment(picture, mpp=MPP, nucleus_um2=400), truth)["f1"] < 0.7
    assert not nuclei.watershed(picture, mpp=MPP, nucleus_um2=28, min_area_um2=60).any()


def test_empty_pictures_hold_no_nucleus():
    noise = np.random.default_rng(1).integers(235, 245, (90, 90, 3)).astype(np.uint8)
    for picture in (np.full((90, 90, 3), 240, np.uint8), noise, np.full((50, 40, 3), 0, np.uint8)):
        labels = nuclei.segment(picture, mpp=MPP)
        assert labels.shape == picture.shape[:2] and labels.dtype == np.int32 and not labels.any()
        assert len(nuclei.morphology(labels, picture, mpp=MPP)) == 0 and not nuclei.outlines(labels)


def test_one_nucleus_is_enough():
    picture, truth = discs([(100, 80)], 6)
    labels = nuclei.segment(picture, mpp=MPP, nucleus_um2=28)
    assert labels.max() == 1 and len(nuclei.morphology(labels, picture, mpp=MPP)) == 1


def test_a_fitted_stain_is_used():
    red = np.array([[0.1, 0.9, 0.4], [0.7, 0.3, 0.6]])  # "haematoxylin" is red here, the other stain blue
    amount = np.zeros((60, 60, 2))
    amount[20:32, 20:32, 0] = 1.5
    amount[40:52, 40:52, 1] = 1.5
    vectors = red / np.linalg.norm(red, axis=1, keepdims=True)
    picture = np.rint(256 * np.exp(-amount @ vectors) - 1).clip(0, 255).astype(np.uint8)
    labels = nuclei.watershed(picture, mpp=MPP, nucleus_um2=36, stains=vectors)
    assert labels[25, 25] and not labels[45, 45]
    swapped = nuclei.watershed(picture, mpp=MPP, nucleus_um2=36, stains=vectors[::-1])
    assert swapped[45, 45] and not swapped[25, 25]
    density = nuclei.haematoxylin(picture, stains=vectors)
    assert density[25, 25] == pytest.approx(1.5, abs=0.03) and density[45, 45] < 0.03


def test_absent_engines_say_what_to_do(monkeypatch):
    import sys

    picture, _ = discs(APART, 6)
    for engine, package in (("stardist", "stardist"), ("cellpose", "cellpose")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, "csbdeep.utils", None)
        with pytest.raises(CourseError, match=f"pip install {package}.*watershed"):
            nuclei.segment(picture, mpp=MPP, engine=engine)


def test_engines_return_the_same_kind_of_labels(monkeypatch):
    """What an engine says is passed on as int32 without gaps; the model's pixel size and diameter reach it."""
    import sys
    import types

    asked = {}

    class Model:
        def __init__(self, pretrained_model):
            asked["model"] = pretrained_model

        def eval(self, picture, diameter):
            asked["diameter"] = diameter
            labels = np.zeros(picture.shape[:2], np.uint16)
            labels[5:9, 5:9], labels[20:25, 20:25] = 7, 3
            return labels, None, None

    package = types.SimpleNamespace(models=types.SimpleNamespace(CellposeModel=Model))
    monkeypatch.setitem(sys.modules, "cellpose", package)
    labels = nuclei.segment(discs(APART, 6)[0], mpp=0.25, engine="cellpose", diameter_um=6)
    assert asked == {"model": "cpsam", "diameter": 24} and labels.dtype == np.int32
    assert sorted(np.unique(labels)) == [0, 1, 2] and labels[6, 6] == 2


@pytest.mark.parametrize("wrong", [
    {"mpp": 0}, {"mpp": MPP, "engine": "magic"}, {"mpp": MPP, "nucleus_um2": -1},
    {"mpp": MPP, "stains": np.ones((2, 3))},
])  # fmt: skip
def test_wrong_options_are_refused(wrong):
    with pytest.raises(CourseError):
        nuclei.segment(discs(APART, 6)[0], **wrong)


def test_wrong_pictures_are_refused():
    for picture in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(CourseError):
            nuclei.segment(picture, mpp=MPP)


# ---------------------------------------------------------------- agreement
def test_match_by_hand():
    truth, mine = np.zeros((20, 30), int), np.zeros((20, 30), int)
    truth[0:4, 0:4], truth[10:14, 10:14], truth[0:2, 20:24] = 1, 2, 5
    mine[0:4, 1:5], mine[10:14, 10:12], mine[17:19, 0:3] = 4, 2, 9  # IoU 12/20, 8/16 (not above one half), alone
    score = nuclei.match(mine, truth)
    assert (score["found"], score["true"]) == (3, 3) and score["pairs"].tolist() == [[4, 1]]
    assert score["f1"] == pytest.approx(1 / 3) and score["quality"] == pytest.approx(0.6)
    shared, union = 12 + 8, 20 + 16 + 8 + 6  # with the missed nucleus and the one nobody wants
    assert score["aji"] == pytest.approx(shared / union)
    assert nuclei.match(truth, truth)["f1"] == nuclei.match(truth, truth)["aji"] == 1


def test_ignored_nuclei_neither_help_nor_harm():
    truth, mine = np.zeros((20, 30), int), np.zeros((20, 30), int)
    truth[0:4, 0:4], truth[10:14, 10:14], truth[0:4, 20:24] = 1, 2, 3
    mine[0:4, 0:4], mine[10:14, 10:14] = 1, 2
    assert nuclei.match(mine, truth)["f1"] == pytest.approx(0.8)
    for ignore, f1 in (([3], 1.0), ([2], 2 / 3), ([2, 3], 1.0)):
        assert nuclei.match(mine, truth, ignore=ignore)["f1"] == pytest.approx(f1)


def test_nothing_against_nothing():
    empty = np.zeros((5, 5), int)
    assert np.isnan(nuclei.match(empty, empty)["f1"])
    assert nuclei.match(empty, empty + 1)["f1"] == 0
    with pytest.raises(CourseError):
        nuclei.match(empty, np.zeros((5, 6), int))
    with pytest.raises(CourseError):
        nuclei.match(empty, empty, iou=0.3)


def test_match_against_a_plain_loop():
    rng = np.random.default_rng(3)
    truth, mine = (rng.integers(0, 4, (6, 6)).repeat(5, 0).repeat(5, 1) for _ in range(2))
    hits = 0
    for a in range(1, 4):
        for b in range(1, 4):
            both, either = ((mine == a) & (truth == b)).sum(), ((mine == a) | (truth == b)).sum()
            hits += both / either > 0.5
    assert nuclei.match(mine, truth)["f1"] == pytest.approx(2 * hits / 6)
    assert nuclei.match(truth, truth)["f1"] == 1


# ---------------------------------------------------------------- outlines
def test_outlines_and_back():
    _, labels = discs(APART, 6)
    shapes = nuclei.outlines(labels)
    size = np.bincount(labels.ravel())
    assert all(shapes[k].area == size[k] for k in shapes) and len(shapes) == len(APART)
    rings = [np.array(shapes[k].exterior.coords)[:-1] for k in sorted(shapes)]
    assert (nuclei.rasterise(rings, shape=labels.shape) == labels).all()
    moved = nuclei.outlines(labels, origin=(1000, 2000))[1].bounds
    assert np.allclose(np.subtract(moved, shapes[1].bounds), [1000, 2000, 1000, 2000])


def test_one_pixel_and_corners_have_outlines():
    labels = np.zeros((6, 6), int)
    labels[2, 3] = 1
    labels[0, 0] = labels[1, 1] = 2
    shapes = nuclei.outlines(labels)
    assert shapes[1].bounds == (3, 2, 4, 3) and shapes[2].area >= 1 and shapes[2].geom_type == "Polygon"


def test_rasterise_takes_pixels_by_their_centre():
    square = np.array([[1.0, 2.0], [4.0, 2.0], [4.0, 5.0], [1.0, 5.0]])
    labels = nuclei.rasterise([square, square + 1, np.zeros((0, 2))], shape=(8, 8))
    assert (labels == 1).sum() == 9 - 4 and (labels == 2).sum() == 9 and labels[2, 1] == 1
    below = nuclei.rasterise([square, square + 1], shape=(8, 8), order=[1, 0])
    assert (below == 1).sum() == 9


# ---------------------------------------------------------------- morphology
def test_morphology_of_a_known_shape():
    labels = np.zeros((60, 60), int)
    labels[10:20, 10:30] = 1
    labels[40:46, 40:46] = 4
    picture = np.full((60, 60, 3), 255, np.uint8)
    picture[labels > 0] = INK
    picture[40:43, 40:46] = 255
    table = nuclei.morphology(labels, picture, mpp=0.5)
    assert list(table.index) == [1, 4]
    assert table.loc[1, ["x", "y", "area_um2"]].tolist() == [20, 15, 50] and table.loc[1, "solidity"] == 1
    assert table.loc[1, "axis_ratio"] == pytest.approx(0.5, abs=0.01) and table.loc[4, "axis_ratio"] == 1
    assert table.loc[1, "eccentricity"] > 0.8 > 0.1 > table.loc[4, "eccentricity"]
    assert table.loc[1, "texture"] == pytest.approx(0, abs=1e-5) and table.loc[4, "texture"] > 0.3
    assert table.loc[1, "haematoxylin"] > table.loc[4, "haematoxylin"] > 0
    with pytest.raises(CourseError):
        nuclei.morphology(labels, picture[:50], mpp=0.5)


# ---------------------------------------------------------------- a whole section
def test_a_section_has_no_double_and_no_cut_nuclei():
    grid = [(x + 0.5, y + 0.5) for x in range(15, 785, 28) for y in range(15, 585, 28)]
    picture, truth = discs(grid, 6, (600, 800))
    places = np.array([[x, y] for x in (150, 350, 550) for y in (150, 350)], float)
    section = make.disc_section(image=picture, mpp=MPP, counts=make.counts_table(len(places)), xy_px=places)
    whole = nuclei.segment_section(section, nucleus_um2=28, window_px=4096)
    parts = nuclei.segment_section(section, nucleus_um2=28, window_px=230, with_outlines=True)
    assert len(whole) == len(parts) == len(grid)
    from scipy.spatial import cKDTree

    distance, partner = cKDTree(parts[["x", "y"]]).query(whole[["x", "y"]])
    assert distance.max() < 1.5 and len(set(partner)) == len(grid)
    ratio = whole["area_um2"].to_numpy() / parts["area_um2"].to_numpy()[partner]
    assert np.abs(ratio - 1).max() < 0.25
    from shapely import points

    assert all(shape.contains(point) for shape, point in zip(parts["outline"], points(parts[["x", "y"]].to_numpy())))
    box = nuclei.segment_section(section, box=(100, 100, 200, 150), nucleus_um2=28)
    inside = sum(100 <= x < 300 and 100 <= y < 250 for x, y in grid)
    assert len(box) == inside

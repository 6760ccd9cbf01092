"""Outlines, matrices, scores and QuPath files, against independent references and bad input."""

import json

import cv2
import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon

from helpers import annotation, settings
from helpers.messages import CourseError

PEN = (0, 0, 150, 110, 110, 255)


def tissue(rows=700, columns=800, seed=0):
    """A textured picture with structure of several sizes on bright glass."""
    rng = settings.rng(seed, "test_annotation")
    out = np.zeros((rows, columns))
    for cell in (4, 10, 30, 90):
        noise = rng.normal(size=(rows // cell + 2, columns // cell + 2))
        out += cell**0.3 * cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    grey = np.clip(160 + 30 * out / out.std(), 0, 255)
    y, x = np.mgrid[:rows, :columns]
    outside = np.hypot((x - columns / 2) / columns, (y - rows / 2) / rows) > 0.45
    rgb = np.stack([grey, 0.7 * grey, grey * 0.9], -1)
    rgb[outside] = 240
    return rgb.astype(np.uint8)


def screenshot(slide, scale, angle, corner, size):
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    matrix = np.array([[c, -s, corner[0]], [s, c, corner[1]]])
    centres = matrix.copy()
    centres[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    blurred = cv2.GaussianBlur(slide, (0, 0), scale / 2)
    return cv2.warpAffine(blurred, centres, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=(240,) * 3)


@pytest.mark.parametrize(("scale", "angle"), [(2.3, 0), (1.7, -7), (2.9, 10)])
def test_registration_finds_scale_angle_and_place(scale, angle):
    slide = tissue()
    picture = screenshot(slide, scale, angle, (150, 60), (190, 170))
    found = annotation.register(picture, slide, slide_factor=5)
    assert found.scale == pytest.approx(5 * scale, rel=0.005) and found.angle_deg == pytest.approx(angle, abs=0.3)
    assert np.allclose([found.x, found.y], [750, 300], atol=5 * scale)  # within a pixel of the picture
    assert found.correlation > 0.9 and found.detail > 0.8 and found.curve.shape == (annotation_scales(), 2)


def annotation_scales():
    from helpers import annotation_register

    return annotation_register.N_SCALES


def test_registration_agrees_with_a_brute_force_grid_of_scales():
    slide, scale = tissue(), 2.0
    picture = screenshot(slide, scale, 0, (200, 100), (180, 160))
    grey, small = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (slide, picture))
    best = (-1,)
    for tried in np.arange(1.6, 2.4, 0.02):
        template = cv2.resize(small, None, fx=tried, fy=tried)
        _, value, _, place = cv2.minMaxLoc(cv2.matchTemplate(grey, template, cv2.TM_CCOEFF_NORMED))
        best = max(best, (value, tried, *place))
    found = annotation.register(picture, slide)
    assert found.scale == pytest.approx(best[1], abs=0.02)
    assert np.allclose([found.x, found.y], best[2:], atol=3)


def test_unrelated_mirrored_and_blank_pictures_are_refused():
    slide = tissue()
    picture = screenshot(slide, 2, 0, (200, 100), (180, 160))
    for wrong in (picture[:, ::-1], screenshot(tissue(seed=5), 2, 0, (200, 100), (180, 160))):
        with pytest.raises(CourseError, match="correlation"):
            annotation.register(wrong, slide)
    with pytest.raises(CourseError, match="one colour"):
        annotation.register(np.full((50, 50, 3), 200, np.uint8), slide)


def drawn(points, closed, size=(300, 260), pen=5):
    picture = np.full((size[1], size[0], 3), 225, np.uint8)
    cv2.polylines(picture, [np.rint(points).astype(np.int32)], closed, (200, 40, 45), pen, cv2.LINE_AA)
    return picture


def test_a_closed_outline_is_filled():
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.c_[150 + 90 * np.cos(t) * (1 + 0.2 * np.cos(3 * t)), 130 + 80 * np.sin(t)]
    area = annotation.outline(annotation.line_mask(drawn(points, True), PEN), is_open=False)
    true = Polygon(points)
    assert area.intersection(true).area / area.union(true).area > 0.97


def test_an_open_outline_is_closed_by_its_hull_and_its_bays_stay_outside():
    points = np.array([[3, 40], [120, 40], [150, 120], [190, 40], [280, 60], [260, 220], [3, 230]], float)  # a deep bay
    area = annotation.outline(annotation.line_mask(drawn(points, False), PEN), is_open=True)
    true = Polygon(points)
    assert area.intersection(true).area / area.union(true).area > 0.96
    assert not area.contains(shapely.Point(150, 70))  # in the hull, but in the bay


def test_bad_outlines_are_refused():
    points = np.array([[30, 30], [250, 40], [240, 200], [60, 220]], float)
    half = annotation.line_mask(drawn(points, False), PEN)
    with pytest.raises(CourseError, match="not closed"):
        annotation.outline(half, is_open=False)
    with pytest.raises(CourseError, match="encloses|bounds"):
        annotation.outline(annotation.line_mask(drawn(points[:2], False), PEN), is_open=True)
    with pytest.raises(CourseError, match="no pixel between B G R") as caught:
        annotation.line_mask(drawn(points, True), (150, 0, 0, 255, 60, 60))
    assert "[45, 40, 200]" in caught.value.fix  # the colour that is there, B G R
    for wrong in ((0, 0, 150, 110, 110), (110, 110, 255, 0, 0, 150), (0, 0, 150, 110, 110, 300)):
        with pytest.raises(CourseError, match="colour range"):
            annotation.line_mask(drawn(points, True), wrong)


def test_labels_agree_with_a_mask_and_an_outline_off_the_slide_is_refused():
    ring = Polygon([(10, 10), (90, 15), (80, 90), (15, 80)], [[(30, 30), (50, 30), (50, 50), (30, 50)]])
    xy = settings.rng(0, "points").uniform(0, 100, (400, 2))
    mask = np.zeros((1000, 1000), np.uint8)
    cv2.fillPoly(mask, [(np.array(r.coords) * 10).astype(np.int32) for r in (ring.exterior, *ring.interiors)], 1)
    by_mask = mask[(xy[:, 1] * 10).astype(int), (xy[:, 0] * 10).astype(int)] > 0
    assert (annotation.label_spots(ring, xy, shape_px=(100, 100)) == by_mask).mean() > 0.99
    with pytest.raises(CourseError, match="outline at"):
        annotation.label_spots(shapely.affinity.translate(ring, 500), xy, shape_px=(100, 100))
    with pytest.raises(CourseError, match="empty"):
        annotation.label_spots(Polygon(), xy)


def test_the_affine_is_read_column_by_column_and_shear_is_kept(tmp_path):
    file = tmp_path / "matrix.txt"
    file.write_text("722 10 0 -5 728 0 5148 1678 0.0001e-4".replace("0.0001e-4", "1"))
    matrix = annotation.read_affine(file)
    assert np.allclose(annotation.place([[2, 3]], matrix), [[722 * 2 - 5 * 3 + 5148, 10 * 2 + 728 * 3 + 1678]])
    for text in ("722 0 5148 0 728 1678 0 0 1", "1 2 3", "a b c", "1 1 0 1 1 0 5 5 1"):
        file.write_text(text)
        with pytest.raises(CourseError):
            annotation.read_affine(file)


def test_scores_agree_with_sklearn_and_labels_are_never_exchanged():
    from sklearn import metrics

    rng = settings.rng(0, "scores")
    truth, predicted, score = rng.random(200) < 0.4, rng.random(200) < 0.6, rng.random(200)
    found = annotation.compare(truth, predicted, score)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found["precision"] == pytest.approx(metrics.precision_score(truth, predicted))
    assert found["recall"] == pytest.approx(metrics.recall_score(truth, predicted))
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, predicted))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, score))
    assert found["tp"] + found["tn"] + found["fp"] + found["fn"] == 200
    worst = annotation.compare(truth, ~truth)
    assert worst["accuracy"] == 0 and worst["auc"] == 0 and worst["ari"] == pytest.approx(1)
    hard = annotation.compare(truth, predicted)
    assert hard["auc"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert np.isnan(annotation.compare(np.ones(5, bool), np.ones(5, bool))["auc"])
    assert annotation.adjusted_rand([1] * 9, [1] * 9) == 0
    with pytest.raises(CourseError):
        annotation.compare(truth, predicted[:-1])


def test_neighbour_share_is_a_mean_over_neighbours():
    xy = np.c_[np.arange(6.0), np.zeros(6)]
    assert np.allclose(annotation.neighbour_share([1, 1, 1, 0, 0, 0], xy, 3), [1, 1, 2 / 3, 1 / 3, 0, 0])


def test_geojson_keeps_holes_classes_and_units(tmp_path):
    ring = Polygon([(0, 0), (100, 0), (100, 100), (0, 100)], [[(40, 40), (60, 40), (60, 60), (40, 60)]])
    file = tmp_path / "a.geojson"
    annotation.write_geojson(file, [ring, ring], ["Tumor", "Tumor"], colours={"Tumor": (200, 0, 0)})
    found = annotation.read_geojson(file, units="px", classes=["Tumor", "Stroma"])
    assert list(found) == ["Tumor"] and found["Tumor"].area == pytest.approx(9600)
    assert annotation.read_geojson(file, units="um", mpp=0.5)["Tumor"].area == pytest.approx(9600 * 4)
    with pytest.raises(CourseError, match="class 'Tumor'"):
        annotation.read_geojson(file, units="px", classes=["Stroma"])
    for units, mpp in (("", None), ("um", None), ("mm", 1)):
        with pytest.raises(CourseError, match="units"):
            annotation.read_geojson(file, units=units, mpp=mpp)


def test_geojson_from_elsewhere(tmp_path, capsys):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    point = {"type": "Point", "coordinates": [1, 1]}
    file = tmp_path / "b.geojson"
    file.write_text(json.dumps([{"type": "Feature", "geometry": g, "properties": {}} for g in (bow, point)]))
    found = annotation.read_geojson(file, units="px")
    assert found["Unclassified"].area == pytest.approx(50) and "crosses itself" in capsys.readouterr().err
    for text in ("no json", "{}", "[]", json.dumps([{"geometry": None}]), json.dumps([{"geometry": point}])):
        file.write_text(text)
        with pytest.raises(CourseError):
            annotation.read_geojson(file, units="px")


def test_spots_become_round_detections(tmp_path):
    file = tmp_path / "spots.geojson"
    annotation.spots_to_geojson(file, [[10.0, 20.0], [50.0, 20.0]], 5.0, [1, 2], colours={1: (0, 114, 178)})
    features = json.loads(file.read_text())["features"]
    assert [f["properties"]["objectType"] for f in features] == ["detection"] * 2
    assert features[0]["properties"]["classification"] == {"name": "1", "color": [0, 114, 178]}
    assert annotation.read_geojson(file, units="px")["2"].centroid.x == pytest.approx(50)

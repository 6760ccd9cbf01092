"""SpaCell's own validation example, end to end: the pathologist's outline on the prostate section P3.3."""

import cv2
import numpy as np
import pandas as pd
import pytest

from helpers import annotation, settings

pytestmark = pytest.mark.real
FOLDER = settings.data_dir() / "spacell_validation" / "dataset" / "validation"
RED = (0, 0, 150, 120, 100, 255)


def test_the_outline_lies_on_the_slide_and_the_clusters_are_scored():
    if not FOLDER.is_dir():
        pytest.skip("spacell_validation is not in COURSE_DATA")
    picture, slide = (cv2.imread(str(FOLDER / n))[..., ::-1] for n in ("annotation.png", "wsi_10x_downscale.jpeg"))
    line = annotation.line_mask(picture, RED)
    found = annotation.register(picture, slide, slide_factor=10, hide=line)
    assert found.detail > 0.8 and abs(found.angle_deg) < 0.5
    assert found.scale == pytest.approx(36.89, rel=0.005)
    assert np.allclose([found.x, found.y], [5553, 2181], atol=40)
    area = found.polygons(annotation.outline(line, is_open=True))
    clusters = pd.read_csv(FOLDER / "cluster_predictions.tsv")
    xy = annotation.place(clusters[["spot_x", "spot_y"]], annotation.read_affine(FOLDER / "transformation_matrix.txt"))
    inside = annotation.label_spots(area, xy, shape_px=tuple(10 * n for n in slide.shape[:2]))
    scores = annotation.compare(inside, clusters["label"] == "#f02449")
    assert scores["tp"] + scores["tn"] + scores["fp"] + scores["fn"] == 501
    # the cluster lies inside the outline but covers half of it: glands, not the stroma between them
    assert scores["precision"] > 0.85 and 0.45 < scores["recall"] < 0.57 and 0.66 < scores["accuracy"] < 0.72

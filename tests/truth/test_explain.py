"""On virtual tissue: nuclei are found and identified, and the examiner of explanations can tell right from wrong."""

import numpy as np
import pandas as pd
import pytest

from helpers import explain, grade_explain, nuclei, runner_data
from helpers import section as sec

SIDE = 300


@pytest.fixture(scope="module")
def window():
    """A window of a held-out section: picture, um/px, segmented labels, true labels and cells."""
    data = runner_data.Data({"DATA": "virtual", "SEED": 0})
    name = data.test[0]
    section, truth = data.load(name), data.truth(name)
    rows, columns = sec.shape(section)
    box = (columns // 2 - SIDE, rows // 2 - SIDE // 2, SIDE, SIDE)
    picture, mpp = sec.window(section, *box), sec.mpp(section)
    drawn, cells = grade_explain.drawn_nuclei(truth, mpp=mpp, box=box)
    return picture, mpp, nuclei.segment(picture, mpp=mpp, level=nuclei.section_level(section)), drawn, cells


def test_nuclei_in_focus_are_found(window):
    picture, mpp, labels, drawn, cells = window
    deep = 1 + np.flatnonzero(cells["deep"])
    score = nuclei.match(labels, drawn, ignore=deep)
    assert score["true"] > 100 and score["f1"] > 0.68, score["f1"]
    assert nuclei.match(labels, drawn)["f1"] > 0.55
    moved = np.roll(labels, 25, axis=1)
    assert nuclei.match(moved, drawn, ignore=deep)["f1"] < 0.2  # the measure sees it


def test_drawn_nuclei_lie_on_dark_pixels(window):
    picture, _, _, drawn, cells = window
    front = np.isin(drawn, 1 + np.flatnonzero(~cells["deep"]))
    density = nuclei.haematoxylin(picture)
    assert density[front].mean() > density[drawn == 0].mean() + 0.8
    assert density[front].mean() > density[np.roll(front, 6, axis=0) & ~front].mean() + 0.3


def test_nuclei_are_identified_and_their_shape_is_right(window):
    picture, mpp, labels, drawn, cells = window
    known = grade_explain.identify(labels, drawn, cells)
    assert len(known) > 0.9 * labels.max() and known.index.is_unique
    table = nuclei.morphology(labels, picture, mpp=mpp).loc[known.index]
    sure = (known["share"] > 0.8) & ~known["deep"]
    assert np.corrcoef(table["x"][sure], known["x_px"][sure])[0, 1] > 0.999
    assert np.corrcoef(table["area_um2"][sure], known["area_um2"][sure])[0, 1] > 0.4
    assert np.corrcoef(table["axis_ratio"][sure], known["axis_ratio"][sure])[0, 1] > 0.5


def test_expression_by_type_is_the_generators():
    table = grade_explain.expression_by_type(["KRT19", "COL1A1", "CD3D"])
    assert table.idxmax(axis=1).tolist() == ["cancer_epithelial", "fibroblast", "t_cell"]
    assert (table.max(axis=1) == 1).all()
    types = pd.Series(["t_cell", "fibroblast", "cancer_epithelial"], index=[4, 7, 9])
    assert grade_explain.expressing(types, ["CD3D", "KRT19"]).to_numpy().tolist() == [
        [True, False], [False, False], [False, True]]  # fmt: skip


def test_a_model_that_knows_types_is_graded_right(window):
    """A stand-in model that sums a planted colour: the grader gives it full marks, and none when turned round."""
    picture, mpp, labels, drawn, cells = window
    cut = np.s_[:150, :150]
    types = grade_explain.identify(labels, drawn, cells)["type"]
    tile, mine = picture[cut].copy(), np.unique(labels[cut], return_inverse=True)[1].reshape(150, 150).astype(np.int32)
    kinds = pd.Series({int(mine[labels[cut] == k][0]): types[k] for k in np.unique(labels[cut]) if k in types.index})
    tumour = np.isin(mine, kinds.index[kinds == "cancer_epithelial"])
    tile[tumour, 0] = 200  # red: no other nucleus is

    def red(tiles):
        return ((tiles[..., 0] > 190) & (tiles[..., 1] < 150) & (tiles[..., 2] < 190)).sum((1, 2)).astype(float)

    scores = explain.lime(red, tile, mine, n_samples=600, genes=["KRT19"])
    graded = grade_explain.grade_scores(scores, kinds).iloc[0]
    assert graded["auc"] > 0.95 and graded["lift"] > 0.7
    turned = grade_explain.grade_scores(-scores, kinds).iloc[0]
    assert turned["auc"] == pytest.approx(1 - graded["auc"]) and turned["lift"] < 0


def test_black_is_a_strange_question(window):
    """The tiny encoder has seen pale tissue between nuclei, never holes of black."""
    from helpers import encoders

    picture, mpp, labels, *_ = window
    encoder = encoders.get("tiny")
    corners = [(y, x) for y in range(0, 200, 20) for x in range(0, 200, 20)]
    known = encoder.embed(np.stack([picture[y : y + 96, x : x + 96] for y, x in corners]))
    tile, mine = picture[100:196, 100:196], labels[100:196, 100:196]
    odd = {
        hide: explain.strangeness(encoder.embed(explain.half_hidden(tile, mine, hide=hide, n=40)), known)
        for hide in ("tissue", "black")
    }
    assert odd["black"] > 1.3 * odd["tissue"], odd

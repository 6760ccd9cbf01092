"""The virtual tissue's anatomy, cells and rendering, on small fields."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely

from helpers.messages import CourseError
from helpers.settings import rng
from helpers.virtual import anatomy, cells, fields, rendering

SMALL = (600.0, 600.0)


@pytest.fixture(scope="module")
def small():
    grown = anatomy.grow(seed=3, section="A", size_um=SMALL)
    placed = cells.place(grown, seed=3, section="A")
    stain = rendering.draw_stain(seed=3, batch="p1", style="dense")
    return grown, placed, rendering.render(grown, placed, stain, seed=3, section="A")


def test_noise_has_unit_variance_and_its_own_scale():
    for sigma in (0.8, 4.0, 20.0):
        field = fields.smooth_noise(rng(0, "test"), (600, 700), sigma)
        assert field.shape == (600, 700) and field.dtype == np.float32
        assert 0.75 < field.std() < 1.25
        lag = int(round(sigma))
        correlation = np.corrcoef(field[:, :-lag].ravel(), field[:, lag:].ravel())[0, 1]
        assert correlation == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.12)


def test_smear_lengthens_noise_along_the_flow_only():
    noise = rng(0, "smear").standard_normal((200, 200)).astype(np.float32)
    flat, none = np.ones((200, 200), np.float32), np.zeros((200, 200), np.float32)
    smeared = fields.smear(noise, fields.flow_maps(flat, none, 4, 1.0))
    along = np.corrcoef(smeared[:, :-5].ravel(), smeared[:, 5:].ravel())[0, 1]
    across = np.corrcoef(smeared[:-5].ravel(), smeared[5:].ravel())[0, 1]
    assert along > 0.6 and abs(across) < 0.1


def test_enlarge_keeps_coordinates():
    x = (np.arange(40, dtype=np.float32) + 0.5) * 2.8
    coarse = np.tile(x, (30, 1))
    fine = fields.enlarge(coarse, (50, 160), 0.69 / 2.8, first_row=20)
    centres = (np.arange(160) + 0.5) * 0.69
    assert np.abs(fine - centres[None])[:, 4:150].max() < 0.1


def test_independent_set_is_independent_maximal_and_order_free():
    stream = rng(0, "conflicts")
    first, second = stream.integers(0, 300, (2, 900))
    first, second = first[first != second], second[first != second]
    priority = stream.random(300)
    kept = fields.independent_set(first, second, priority)
    assert not (kept[first] & kept[second]).any()
    neighbour = np.zeros(300, bool)
    neighbour[first[kept[second]]] = True
    neighbour[second[kept[first]]] = True
    assert (kept | neighbour).all()
    shuffled = stream.permutation(len(first))
    assert (fields.independent_set(second[shuffled], first[shuffled], priority) == kept).all()


@pytest.mark.parametrize("style", list(anatomy.STYLES))
def test_anatomy_is_consistent(style):
    grown = anatomy.grow(seed=1, section="S", size_um=(900.0, 700.0), style=style)
    assert grown.shape == (250, 322)
    assert set(np.unique(grown.domain)) <= set(range(len(anatomy.DOMAINS)))
    assert ((grown.domain == anatomy.DOMAINS.index("glass")) == (grown.fields["tissue"] <= 0)).all()
    assert np.allclose(np.hypot(grown.fields["fibre_x"], grown.fields["fibre_y"]), 1, atol=1e-3)
    assert all(f.dtype == np.float32 and f.shape == grown.shape for f in grown.fields.values())
    assert all(np.isfinite(f).all() for f in grown.fields.values())
    y, x = (np.array([100, 31, 200]) + 0.5) * grown.grid_um, (np.array([50, 300, 7]) + 0.5) * grown.grid_um
    assert np.allclose(grown.sample("tissue", x, y), grown.fields["tissue"][[100, 31, 200], [50, 300, 7]], atol=1e-2)
    assert (grown.sample("domain", x, y) == grown.domain[[100, 31, 200], [50, 300, 7]]).all()


def test_distances_are_in_microns():
    y, x = (np.mgrid[:200, :200] + 0.5) * 2.8
    disc = (100 - np.hypot(x - 280, y - 280)).astype(np.float32)
    known = fields.distance_beyond(np.clip(disc, -30, 30), 2.8)
    assert np.abs(known - disc).max() < 6


def test_folds_and_tears_leave_everything_else_alone():
    plain = anatomy.grow(seed=1, section="S", size_um=SMALL, full_tissue=True)
    marked = anatomy.grow(seed=1, section="S", size_um=SMALL, full_tissue=True, folds=1, tears=1)
    assert not plain.fields["fold"].any() and marked.fields["fold"].max() > 0.5
    assert (marked.fields["gap"] > 0).sum() > (plain.fields["gap"] > 0).sum()
    assert (plain.fields["nest"] == marked.fields["nest"]).all()
    assert (plain.domain != anatomy.DOMAINS.index("glass")).all()


def test_bad_requests_are_refused():
    for wrong in ({"style": "blue"}, {"template": "liver"}, {"size_um": (50.0, 600.0)}):
        with pytest.raises(CourseError):
            anatomy.grow(seed=0, section="S", **wrong)
    with pytest.raises(CourseError):
        rendering.draw_stain(seed=0, batch="b", style="blue")


def test_cells_have_the_promised_columns(small):
    grown, placed, _ = small
    table = placed.table
    assert list(table.cell_id) == list(range(1, len(table) + 1))
    assert tuple(table.type.cat.categories) == cells.TYPES
    assert tuple(table.domain.cat.categories) == anatomy.DOMAINS
    for name in ("area_um2", "axis_ratio", "angle_rad", "haematoxylin", "nest_edge_um", "vessel_um", "immune_um",
                 "density_per_mm2", "fibre_alignment"):
        assert np.isfinite(table[name]).all(), name
    assert placed.polygons.shape == (len(table), 18, 2) and placed.polygons.dtype == np.float32
    assert table.deep.dtype == bool and 0.1 < table.deep.mean() < 0.6
    assert (table.vessel_um >= 0).all() and table.fibre_alignment.between(0, 1.001).all()
    assert (table.domain != "glass").all()


def test_cells_lie_where_their_type_belongs(small):
    grown, placed, _ = small
    cancer = placed.table[placed.table.type == "cancer_epithelial"]
    assert len(cancer) > 200
    assert (cancer.nest_edge_um > -1).all()
    stroma = placed.table[placed.table.type == "fibroblast"]
    assert (stroma.nest_edge_um < 4).mean() > 0.98
    assert stroma.fibre_alignment.mean() > cancer.fibre_alignment.mean() + 0.1


def test_front_nuclei_do_not_overlap(small):
    _, placed, _ = small
    shapes = shapely.polygons(placed.polygons[~placed.table.deep.to_numpy()].astype(float))
    shapes = shapely.buffer(shapes, 0)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    assert (first == second).all()


def test_outlines_have_the_area_and_axis_of_the_table(small):
    _, placed, _ = small
    area = shapely.area(shapely.polygons(placed.polygons.astype(float)))
    assert np.median(area / placed.table.area_um2) == pytest.approx(1, abs=0.1)
    long = placed.table.axis_ratio.to_numpy() < 0.4
    centred = placed.polygons[long] - placed.polygons[long].mean(axis=1, keepdims=True)
    axis = np.linalg.svd(centred)[2][:, 0]
    angle = placed.table.angle_rad.to_numpy()[long]
    assert np.median(np.abs(axis[:, 0] * np.cos(angle) + axis[:, 1] * np.sin(angle))) > 0.95


def _digest() -> str:
    grown = anatomy.grow(seed=5, section="S", size_um=(400.0, 400.0))
    placed = cells.place(grown, seed=5, section="S")
    data = pd.util.hash_pandas_object(placed.table, index=False).to_numpy().tobytes() + placed.polygons.tobytes()
    return hashlib.sha256(data).hexdigest()


def test_same_seed_same_cells_in_other_processes():
    line = "import sys; sys.path.insert(0, 'tests/unit'); import test_virtual_tissue as t; print(t._digest())"
    root = anatomy.__file__.rsplit("helpers", 1)[0]
    runs = [subprocess.run([sys.executable, "-c", line], cwd=root, capture_output=True, text=True, check=True)
            for _ in range(2)]
    assert {r.stdout.strip() for r in runs} == {_digest()}
    assert cells.place(anatomy.grow(seed=6, section="S", size_um=(400.0, 400.0)), seed=6, section="S").polygons.size


def test_stains_differ_by_batch_and_stay_in_range():
    one, again = (rendering.draw_stain(seed=0, batch="p1", style="dense") for _ in range(2))
    assert one == again
    drawn = [rendering.draw_stain(seed=0, batch=f"p{i}", style="dense") for i in range(40)]
    assert len({d.eosin for d in drawn}) == 40
    angles = [np.degrees(np.arccos(np.dot(d.haematoxylin, d.eosin))) for d in drawn]
    assert min(angles) > 15 and max(angles) < 45
    white = np.array([d.white_point for d in drawn])
    assert white.max() <= 247 and white.std(axis=0).min() > 2


def test_the_slide_is_its_jpeg_and_its_truth_is_sound(small):
    grown, _, slide = small
    assert slide.image.shape == (870, 870, 3) and slide.image.dtype == np.uint8
    decoded = cv2.imdecode(np.frombuffer(slide.jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (decoded == slide.image).all()
    assert np.linalg.norm(slide.measured_haematoxylin) == pytest.approx(1)
    for given, found in ((slide.stain.haematoxylin, slide.measured_haematoxylin),
                         (slide.stain.eosin, slide.measured_eosin)):
        assert np.degrees(np.arccos(np.dot(given, found))) < 6
    assert np.abs(slide.measured_white_point - slide.stain.white_point).max() < 5
    assert (slide.tissue_mask == (grown.fields["tissue"] > 0)).all()
    assert (slide.tissue_mask_without_holes <= slide.tissue_mask).all()


def test_a_section_without_glass_still_has_a_white_point():
    grown = anatomy.grow(seed=3, section="A", size_um=(300.0, 300.0), full_tissue=True)
    stain = rendering.draw_stain(seed=3, batch="p1", style="dense")
    slide = rendering.render(grown, cells.place(grown, seed=3, section="A"), stain, seed=3, section="A")
    assert slide.measured_white_point == pytest.approx(stain.white_point)
    assert slide.tissue_mask.all()


@pytest.mark.parametrize("mpp", [0.69, 0.5])
def test_nuclei_are_drawn_where_the_table_says(mpp):
    grown = anatomy.grow(seed=4, section="B", size_um=(400.0, 400.0), style="ffpe", full_tissue=True)
    placed = cells.place(grown, seed=4, section="B")
    before = placed.polygons.copy()
    stain = rendering.draw_stain(seed=4, batch="p", style="ffpe")
    red = rendering.render(grown, placed, stain, mpp=mpp, seed=4, section="B").image[..., 0].astype(float)
    assert (placed.polygons == before).all()
    assert red.shape == (round(400 / mpp),) * 2
    inside = placed.table.x_um.between(20, 380) & placed.table.y_um.between(20, 380)
    alone = placed.table[~placed.table.deep & inside]

    def mean_at(dx: float, dy: float) -> float:
        return red[((alone.y_um + dy) / mpp).astype(int), ((alone.x_um + dx) / mpp).astype(int)].mean()

    around = [mean_at(dx, dy) for dx, dy in ((5, 0), (-5, 0), (0, 5), (0, -5))]
    assert mean_at(0, 0) < min(around) - 25
    assert max(around) - min(around) < 15  # no shift one way


def test_texture_sizes_follow_microns_not_pixels(small):
    grown, placed, slide = small
    finer = rendering.render(grown, placed, slide.stain, mpp=0.5, seed=3, section="A").image
    coarse = cv2.resize(finer, slide.image.shape[1::-1], interpolation=cv2.INTER_AREA).astype(float)
    blurred = [cv2.GaussianBlur(i, (0, 0), 6) for i in (coarse, slide.image.astype(float))]
    assert np.abs(blurred[0] - blurred[1]).mean() < 6

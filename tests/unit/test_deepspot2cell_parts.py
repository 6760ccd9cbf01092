"""DeepSpot2Cell's tiles, baselines and scores, and superpixel results of other programs."""

import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely

from helpers import deepspot2cell_baselines as baselines
from helpers import deepspot2cell_scores as scores
from helpers import deepspot2cell_tiles as cell_tiles
from helpers import pseudospots_patches, readers_superres, section_cells
from helpers.messages import CourseError


def section(side=120, registered=True, mpp=0.5):
    """A picture whose red is x, green y; three cells in um with nuclei."""
    grid = np.arange(side, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(grid[None], grid[:, None], np.uint8(7)), -1)
    xy = np.array([[10, 10], [30, 20], [59, 30.0]])
    cells = shapely.box(xy[:, 0] - [4, 6, 4], xy[:, 1] - 3, xy[:, 0] + [4, 6, 4], xy[:, 1] + 3)
    table = ad.AnnData(np.ones((3, 2), np.int32), obs=pd.DataFrame(index=["a_1", "a_2", "b_1"]),
                       var=pd.DataFrame(index=["KRT8", "CD3E"]))  # fmt: skip
    raw = section_cells.build_cells(
        counts=table, xy_um=xy, section_id="S", subject_id="P", dataset="d", source="made", image=image, mpp=mpp,
        cells=cells, nuclei=shapely.buffer(shapely.points(xy + [1, 0]), 2.0), nuclei_owner=[0, 1, 2],
    )  # fmt: skip
    if not registered:
        return raw
    from helpers import section_align

    return section_align.align(raw, np.diag([2.0, 2.0, 1.0]))


def test_geometry_is_in_pixels_and_asks_for_registration():
    at = cell_tiles.geometry(section())
    assert np.allclose(at["xy"][0], [22, 20], atol=0.1)  # the nucleus, at 11, 10 um
    assert np.allclose(shapely.bounds(at["outlines"][0]), [12, 14, 28, 26])
    assert at["nucleus_um2"] == pytest.approx([4 * np.pi] * 3, rel=0.05)
    with pytest.raises(CourseError, match="not registered"):
        cell_tiles.geometry(section(registered=False))


def test_a_tile_is_the_smallest_square_round_the_outline():
    made = section()
    boxes = cell_tiles.squares(cell_tiles.geometry(made)["outlines"])
    assert np.allclose(boxes, [[20, 20, 16], [60, 40, 24], [118, 60, 16]])
    (index, tiles), = cell_tiles.iterate(made, boxes, out_px=16)  # fmt: skip
    first = tiles[list(index).index(0)]
    assert first[0, :, 0].tolist() == list(range(12, 28)) and first[:, 0, 1].tolist() == list(range(12, 28))
    rim = tiles[list(index).index(2)]
    assert rim[0, :, 0].tolist() == [*range(110, 120), *[119] * 6]  # beyond the picture its last pixels go on
    white = dict(zip(*next(cell_tiles.iterate(made, boxes, out_px=16, border="white"))))
    assert (white[2][:, 10:] == 255).all() and (white[0] == first).all()


def test_batches_and_bands_change_nothing():
    made = section()
    stream = np.random.default_rng(0)
    boxes = np.c_[stream.uniform(0, 120, (50, 2)), stream.uniform(4, 60, 50)]
    whole = dict(zip(*next(cell_tiles.iterate(made, boxes, out_px=12))))
    parts = dict(pair for batch in cell_tiles.iterate(made, boxes, out_px=12, batch=7) for pair in zip(*batch))
    assert len(parts) == 50 and all(np.array_equal(parts[i], whole[i]) for i in range(50))
    for wrong, word in (([[300, 10, 5]], "wholly outside"), ([[10, 10, 0]], "place or size")):
        with pytest.raises(CourseError, match=word):
            next(cell_tiles.iterate(made, wrong, out_px=8))
    with pytest.raises(CourseError, match="without extent"):
        cell_tiles.squares(shapely.points([[1, 1]]))


def test_a_view_shows_the_cells_it_holds():
    made = section()
    view = cell_tiles.view(made, cell_tiles.geometry(made)["outlines"], side_um=30, centre=(40, 30))
    assert view.rgb.shape == (60, 60, 3) and view.cells.tolist() == [0, 1] and view.corner.tolist() == [10, 0]
    assert np.allclose(view.outlines[0].min(0), [2, 14])


# ---------------------------------------------------------------- baselines
def test_a_spot_is_shared_out_whole():
    patch, inside = np.array([0, 0, 0, 1, -1]), np.array([1, 1, 0, 0, 0], bool)
    spots = np.array([[10.0, 0], [4, 4]])
    even = baselines.share(spots, patch=patch, inside=inside)
    assert even.tolist() == [[5, 0], [5, 0], [5, 0], [2, 2], [0, 0]]
    area = baselines.share(spots, patch=patch, inside=inside, weights=[1, 3, 2, 4, 1])
    assert area[:3, 0].tolist() == [2.5, 7.5, 5.0] and area[:2].sum(0).tolist() == [10, 0]
    with pytest.raises(CourseError, match="weights"):
        baselines.share(spots, patch=patch, inside=inside, weights=[1, 2])


def test_spots_never_measured_come_from_the_nearest_or_from_the_prediction():
    counts = np.array([[1.0, 1], [0, 0], [0, 0]])
    made = baselines.everywhere(counts, np.log1p([[0, 0], [0, 0], [7, 3.0]]), [[0, 0], [9, 0], [0, 0]], ["a", "a", "b"])
    assert np.allclose(made, [[5000, 5000], [5000, 5000], [7, 3]])


def test_superpixels_are_averaged_over_the_nodes_a_box_meets():
    values = np.arange(4 * 5 * 60, dtype=float).reshape(4, 5, 60)
    values[0, 0] = np.nan
    boxes = np.array([[17, 17, 31, 31], [0, 0, 33, 20], [70, 50, 79, 63], [0, 0, 5, 5]], float)
    made = baselines.superpixels(values, boxes, node=16)
    assert np.allclose(made[0], values[1, 1]) and np.allclose(made[2], values[3, 4])
    assert np.allclose(made[1], np.nanmean(values[:2, :3].reshape(6, -1), 0)) and np.isnan(made[3]).all()


def test_results_of_other_programs_are_read_and_pickles_refused(tmp_path):
    home = tmp_path / "cnts-super"
    home.mkdir()
    with pytest.raises(CourseError, match="no results"):
        readers_superres.read_superpixels(tmp_path)
    (home / "KRT8.pickle").write_bytes(pickle.dumps(np.zeros((3, 4))))
    with pytest.raises(CourseError, match="pickled"):
        readers_superres.read_superpixels(tmp_path)
    for number, gene in enumerate(("CD3E", "KRT8")):
        np.save(home / f"{gene}.npy", np.full((3, 4), number))
    (tmp_path / "pixel-size.txt").write_text("0.5\n")
    made = readers_superres.read_superpixels(home, genes=["KRT8", "CD3E"])
    assert made.genes == ("KRT8", "CD3E") and made.values[0, 0].tolist() == [1, 0] and made.node_um == 8
    with pytest.raises(CourseError, match="no prediction of VIM"):
        readers_superres.read_superpixels(home, genes=["VIM"])
    np.save(home / "VIM.npy", np.zeros((2, 2)))
    with pytest.raises(CourseError, match="shapes"):
        readers_superres.read_superpixels(home)
    cube = tmp_path / "gcn"
    cube.mkdir()
    np.save(cube / "genes_3D.npy", np.zeros((2, 3, 2)))
    with pytest.raises(CourseError, match="no gene names"):
        readers_superres.read_superpixels(cube)
    (cube / "gene_names.txt").write_text("A\nB\n")
    assert readers_superres.read_superpixels(cube, genes=["B"]).values.shape == (2, 3, 1)


# ---------------------------------------------------------------- scores
def test_pearson_is_numpys_and_constants_count_nothing():
    stream = np.random.default_rng(0)
    a, b = stream.normal(size=(2, 40, 6))
    a[:, 5] = 3.0
    expected = [np.corrcoef(a[:, g], b[:, g])[0, 1] for g in range(5)]
    found = scores.pearson(a, b)
    assert np.allclose(found[:5], expected) and found[5] == 0
    slopes = scores.slope(a, b)
    assert np.allclose(slopes[:5], [np.polyfit(a[:, g], b[:, g], 1)[0] for g in range(5)]) and np.isnan(slopes[5])
    with pytest.raises(CourseError, match="not finite"):
        scores.pearson(a * np.nan, b)


def test_a_lone_cells_scale():
    stream = np.random.default_rng(0)
    true = stream.gamma(2, 10, (500, 4))
    said, is_true, slope = scores.lone(true / 5 + 3, true, genes=[0, 2])
    assert slope == pytest.approx(5) and (np.diff(said) > 0).all() and np.ptp(said) < np.ptp(is_true)
    noisy = scores.lone(true, stream.poisson(true), genes=slice(None))
    assert noisy[2] == pytest.approx(1, abs=0.1) and np.allclose(noisy[0], noisy[1], rtol=0.15)


def test_choosing_genes_on_the_test_flatters():
    noise = np.random.default_rng(0).normal(0, 0.1, 300)
    assert scores.top_means(noise)[50] > 0.12 and abs(scores.top_means(noise, by=-np.arange(300))[50]) < 0.04
    assert np.isnan(scores.top_means(noise[:100])[200])
    ordered = np.linspace(1, 0, 11)
    assert scores.area(ordered) == pytest.approx(0.5) and scores.area(np.full(5, 0.3)) == pytest.approx(0.3)


def test_the_bootstrap_is_that_of_a_loop():
    folds = np.array([[0.3, 0.1], [0.5, 0.2], [0.4, 0.9]])
    middle, se = scores.bootstrap_median(folds, n=4000)
    stream = np.random.default_rng(1)
    slow = np.array([np.median(folds[stream.integers(0, 3, 3)], axis=0) for _ in range(4000)])
    assert np.allclose(middle, [0.4, 0.2]) and np.allclose(se, slow.std(0), rtol=0.06)
    assert scores.bootstrap_median(folds[:, 0], n=4000)[1] == pytest.approx(se[0])


def test_folds_are_by_patient():
    table = pd.DataFrame({"section_id": list("abcdefgh"), "subject_id": list("1122345 6".replace(" ", ""))})
    made = scores.patient_folds(table)
    assert len(made) == 5 and sorted(sum((test for _, test in made), [])) == list("abcdefgh")
    who = dict(zip(table["section_id"], table["subject_id"]))
    assert all(not {who[s] for s in train} & {who[s] for s in test} for train, test in made)
    assert len(scores.patient_folds(table[:4])) == 2
    with pytest.raises(CourseError, match="1 patient"):
        scores.patient_folds(table[:2])


def test_tasks_scales_and_comparison():
    made = pseudospots_patches.build(
        [[38, 38], [40, 40], [5, 5], [120, 40.0], [38.0, 40]], um_per_unit=1.0, extent=(160, 80)
    )
    tasks = scores.tasks(made, [0, 0, 0, 1, 1], [True, True, True, True, True])
    assert tasks["IS_in"].tolist() == [1, 1, 0, 0, 0] and tasks["OOS"].tolist() == [0, 0, 0, 1, 1]
    assert "IS_out" not in tasks, "one cell is no task"
    values = np.array([[1.0, 3], [0, 4], [5, 5], [1, 1], [2, 2]])
    scaled = np.expm1(scores.spot_scale(values, made))
    assert np.allclose(scaled[[0, 1, 4]].sum(), 1e4, rtol=1e-4) and np.allclose(scaled[2], 5e4 / 12, rtol=1e-4)
    target = np.random.default_rng(0).normal(size=(5, 2))
    target[3] = np.nan
    everyone = {"all": np.ones(5, bool)}
    table, r = scores.compare({"same": target, "other": -target}, target, everyone, by=np.arange(2))
    assert table.loc[("all", "same"), "median"] == 1 and np.allclose(r["all"]["other"], -1)


def test_genes_are_ranked_by_what_varies_beyond_counting():
    stream = np.random.default_rng(0)
    depth = stream.uniform(0.5, 2, 400)[:, None]
    counts = stream.poisson(depth * np.c_[np.full(400, 50.0), stream.gamma(2, 25, 400), np.full(400, 900.0)])
    counts[7] = 0  # an empty spot
    assert scores.dispersion(counts).argmax() == 1


def test_counts_of_cells_by_name_with_zeros_for_those_left_out():
    import anndata
    import pandas as pd

    from helpers import grade_cells

    table = anndata.AnnData(np.array([[1.0, 2, 3], [4, 5, 6]], np.float32), obs=pd.DataFrame(index=["b", "a"]))
    table.var_names = ["x", "y", "z"]
    found = grade_cells.counted(table, ["a", "gone", "b"], ["z", "x"])
    assert found.tolist() == [[6, 4], [0, 0], [3, 1]]

"""A slide without spots: where its tiles lie, which are dropped, what is predicted on it."""

import numpy as np
import pytest

from helpers import encoders, section_grid, tiles, tissue
from helpers import section as sec
from helpers.messages import CourseError
from tests.unit.make import disc_section


@pytest.fixture(scope="module")
def disc():
    return disc_section()


@pytest.fixture(scope="module")
def grid(disc):
    return section_grid.on_grid(disc, pitch_um=60, tile_um=50)


def test_the_grid_is_regular_and_on_the_tissue(disc, grid):
    table, xy = sec.counts(grid), sec.xy(grid)
    assert table.shape == (len(xy), 0) and table.obs_names.is_unique and (table.obs["section_id"] == "S1").all()
    assert np.allclose(np.diff(np.unique(xy[:, 0])), 30) and np.allclose(np.diff(np.unique(xy[:, 1])), 30)
    assert (np.hypot(*(xy - 300).T) < 0.36 * 600 + 18).all()
    area = np.pi * (0.36 * 600) ** 2 / 30**2
    assert abs(len(xy) / area - 1) < 0.12
    assert np.allclose(table.obs["grid_column"], (xy[:, 0] - xy[:, 0].min()) / 30 + table.obs["grid_column"].min())
    assert grid.attrs["platform"] == "grid" and grid.attrs["mpp"] == 2.0 and disc.attrs["platform"] == "visium"
    assert set(grid.coordinate_systems) == {"pixel", "um"} and np.array_equal(sec.image(grid), sec.image(disc))


def test_brightness_is_that_of_the_tile_that_is_cut_and_decides():
    rng = np.random.default_rng(0)
    image = rng.integers(120, 256, (410, 333, 3), dtype=np.uint8)
    image[:, :130] = 250
    options = {"mpp": 1.3, "pitch_um": 47.3, "tile_um": 40}
    everything = section_grid.on_grid(image, white=255, **options)
    index, cut = tiles.cut(everything, side_um=40, out_px=tiles.side_px(everything, 40), border="refuse")
    mean = cut.mean((1, 2, 3))
    assert np.array_equal(index, np.arange(len(mean)))
    assert np.allclose(sec.counts(everything).obs["brightness"], mean, atol=1e-3)
    for white in (200.0, np.sort(mean)[8:10].mean()):  # the second lies between two tiles
        kept = section_grid.on_grid(image, white=white, **options)
        expected = sec.counts(everything).obs_names[mean <= white]
        assert list(sec.counts(kept).obs_names) == list(expected) and 0 < len(expected) < len(mean)
        assert kept.attrs["dropped"] == {"white": int((mean > white).sum()), "off_mask": 0}


def test_a_mask_at_any_scale_keeps_what_tissue_coverage_says(disc):
    scale = 0.5
    mask = np.hypot(*np.mgrid[-150:150, -110:190]) < 90  # off the middle, lest x and y could be swapped
    grid = section_grid.on_grid(disc, pitch_um=60, mask=mask, white=255)
    everywhere = section_grid.on_grid(disc, pitch_um=60, white=255)
    share = tissue.coverage(mask, scale, sec.xy(everywhere), 30)
    sure = np.abs(share - 0.5) > 0.05  # ours counts whole pixels of the mask
    assert 0.2 < (share >= 0.5).mean() < 0.5 and sure.mean() > 0.9
    names = sec.counts(everywhere).obs_names
    assert np.array_equal(names.isin(sec.counts(grid).obs_names)[sure], (share >= 0.5)[sure])
    with pytest.raises(CourseError, match="whole slide"):
        section_grid.on_grid(disc, pitch_um=60, mask=np.ones((300, 150), bool))


def test_grey_glass_needs_a_mask():
    image = sec.image(disc_section()).copy()
    image[image[..., 1] > 200] = (190, 180, 188)
    wrong = section_grid.on_grid(image, mpp=2, pitch_um=60)
    mask = np.hypot(*np.mgrid[-300:300, -300:300]) < 216
    right = section_grid.on_grid(image, mpp=2, pitch_um=60, mask=mask)
    assert sec.counts(wrong).n_obs == 400 and sec.counts(right).n_obs < 180


def test_an_array_lazy_or_not_gives_the_same_section():
    import dask.array as da

    image = sec.image(disc_section())
    one = section_grid.on_grid(image, mpp=2, pitch_um=100, section_id="slide 7")
    two = section_grid.on_grid(da.from_array(image, chunks=(100, 256, 3)), mpp=2, pitch_um=100)
    assert np.array_equal(sec.xy(one), sec.xy(two)) and np.array_equal(sec.image(two), image)
    assert one.attrs["section_id"] == one.attrs["subject_id"] == "slide 7" and two.attrs["section_id"] == "slide"


def test_what_reads_the_picture_runs_on_it_and_prediction_lands_on_the_slide(grid):
    encoder = encoders.Encoder("mean", 3, 8, "0" * 16, "none", lambda t: t.astype(np.float32), lambda t: t.mean((1, 2)))
    index, seen = encoders.embed_batches(encoder, tiles.iterate(grid, side_um=50, out_px=8))
    assert np.array_equal(index, np.arange(sec.counts(grid).n_obs)) and len(encoders.section_key(grid)) == 64
    table = section_grid.predicted(
        grid, seen[3:], ["R", "G", "B"], index=index[3:], layers={"epistemic_var": seen[3:] ** 2}, facts={"seed": 0}
    )
    assert np.array_equal(table.obsm["spatial"], sec.xy(grid)[3:]) and list(table.var_names) == ["R", "G", "B"]
    assert np.array_equal(table.layers["pred_mean"], table.X) and np.array_equal(table.X, seen[3:])
    assert list(table.obs_names) == list(sec.counts(grid).obs_names[3:])
    assert table.uns["prediction"] == {"genes": ["R", "G", "B"], "mpp": 2.0, "seed": 0}
    assert sec.counts(sec.keep_spots(grid, table.obs_names[:5])).n_obs == 5


def test_a_prediction_survives_its_file(grid, tmp_path):
    import anndata as ad

    table = section_grid.predicted(grid, np.ones((sec.counts(grid).n_obs, 2)), ["A", "B"])
    table.write_h5ad(tmp_path / "p.h5ad")
    again = ad.read_h5ad(tmp_path / "p.h5ad")
    assert np.array_equal(again.obsm["spatial"], sec.xy(grid)) and list(again.uns["prediction"]["genes"]) == ["A", "B"]


@pytest.mark.parametrize("mean, genes", [
    (np.ones((3, 2)), ["A", "B"]), (np.full((4, 2), np.nan), ["A", "B"]), (np.ones((4, 2)), ["A", "A"]),
])  # fmt: skip
def test_a_prediction_that_does_not_fit_is_refused(grid, mean, genes):
    with pytest.raises(CourseError, match="for 4 spots"):
        section_grid.predicted(grid, mean, genes, index=range(4))


def test_measured_and_empty_sections_have_each_their_check(disc, grid):
    with pytest.raises(CourseError, match="count matrix of shape"):
        sec.check(grid)
    with pytest.raises(CourseError, match="section.check is for measured"):
        section_grid.check(disc)


@pytest.mark.parametrize("change, why", [
    ({"pitch_um": 0}, "positive sizes"), ({"mpp": None}, "pixel size"), ({"tile_um": 5000}, "at least one tile"),
    ({"slide": np.full((90, 90, 3), 255, np.uint8)}, "brighter than 200"), ({"section_id": "../x"}, "section name"),
    ({"slide": np.ones((90, 90, 3))}, "float64"),
])  # fmt: skip
def test_bad_slides_are_refused(change, why):
    given = {"slide": np.full((90, 90, 3), 99, np.uint8), "pitch_um": 20, "mpp": 1.0, **change}
    with pytest.raises(CourseError, match=why):
        section_grid.on_grid(given.pop("slide"), **given)

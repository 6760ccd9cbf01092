import cv2
import numpy as np
import pytest

from helpers import section as sec
from helpers import tiles
from helpers.messages import CourseError
from tests.unit.make import disc_section


@pytest.fixture(scope="module")
def disc():
    return disc_section()


def speckled(rng, n=1, size=120, colour=(170, 110, 180)):
    """Tiles with a fine texture that runs from a pale pink to a dark blue: in-focus tissue."""
    amount = cv2.GaussianBlur(rng.random((size, size)).astype(np.float32), (0, 0), 1.2)
    amount = np.clip((amount - amount.mean()) / amount.std() * 0.5 + 0.9, 0, 3)
    pink = np.roll(amount, size // 3, 0) * 0.5
    density = amount[..., None] * [0.77, 0.56, 0.30] + pink[..., None] * [0.36, 0.82, 0.45]
    tile = (255 * np.exp(-density)).astype(np.uint8)
    return np.repeat(tile[None], n, 0)


def test_a_tile_is_the_square_round_its_spot(disc):
    index, cut = tiles.cut(disc, side_um=40, out_px=20)
    picture, (x, y) = sec.image(disc), np.rint(sec.xy(disc)[index[5]]).astype(int)
    assert tiles.side_px(disc, 40) == 20
    assert np.array_equal(cut[5], picture[y - 10 : y + 10, x - 10 : x + 10])


def test_size_is_in_microns(disc):
    assert tiles.side_px(disc, 100) == 50
    with pytest.raises(CourseError):
        tiles.side_px(disc, 0)


def test_border_policies():
    section = disc_section()
    points = sec.xy(section).copy()
    points[0] = (3, 300)
    section = sec.move_spots(section, points)
    index, dropped = tiles.cut(section, side_um=100, out_px=50)
    assert 0 not in index and len(index) == len(points) - 1
    index, padded = tiles.cut(section, side_um=100, out_px=50, border="white")
    assert len(index) == len(points) and (padded[0][:, :20] == 255).all() and not (padded[0] == 255).all()
    _, repeated = tiles.cut(section, side_um=100, out_px=50, border="edge")
    assert np.array_equal(repeated[0][:, 22:], padded[0][:, 22:]) and np.array_equal(repeated[1:], padded[1:])
    assert (repeated[0][:, :22] == repeated[0][:, 22:23]).all()
    with pytest.raises(CourseError, match="1 tiles"):
        tiles.cut(section, side_um=100, border="refuse")
    with pytest.raises(CourseError):
        tiles.cut(section, side_um=100, border="wrap")


def test_a_tile_outside_the_image_repeats_the_nearest_edge():
    picture = np.full((600, 600, 3), (236, 226, 235), np.uint8)
    picture[200:400, 200:400], picture[-1], picture[:, -1] = (180, 110, 170), (10, 20, 30), (40, 50, 60)
    section = disc_section(image=picture)
    points = sec.xy(section).copy()
    points[:3] = [(300, 640), (640, 300), (300, -40)]
    _, cut = tiles.cut(sec.move_spots(section, points), side_um=100, out_px=50, border="edge")
    for tile, colour in zip(cut, [(10, 20, 30), (40, 50, 60), (236, 226, 235)]):
        assert (tile == colour).all()


def test_batches_give_the_same_tiles(disc):
    _, whole = tiles.cut(disc, side_um=100, out_px=32)
    parts = np.concatenate([t for _, t in tiles.iterate(disc, side_um=100, out_px=32, batch=7)])
    assert np.array_equal(whole, parts)


VECTORS = np.array([[0.77, 0.56, 0.30], [0.36, 0.82, 0.45]]) / [[0.9986], [1.0026]]


def test_a_reason_for_every_kind_of_bad_tile():
    good = speckled(np.random.default_rng(0))[0]
    stains = (VECTORS, np.array([2.0, 1.0]))
    damaged, names = tiles.spoil(good, white_point=(240,) * 3, vectors=VECTORS, tile_mpp=0.5)
    assert set(names) == set(tiles.REASONS) - {"border", "low_tissue"}
    batch = np.concatenate([good[None], damaged])
    table = tiles.measure(batch, tile_mpp=0.5, white_point=(240,) * 3, stains=stains)
    assert list(tiles.judge(table)) == ["ok", *names]
    assert list(tiles.judge(table, coverage=np.full(7, 0.5))) == ["low_tissue"] * 7
    assert tiles.judge(table, coverage=np.full(7, 0.8))[0] == "ok"


def test_sharpness_is_not_judged_on_a_coarse_slide():
    good = speckled(np.random.default_rng(0))[0]
    damaged, names = tiles.spoil(good, white_point=(240,) * 3, vectors=VECTORS, tile_mpp=0.5, slide_mpp=4.4)
    assert "blurred" not in names and len(damaged) == 5
    blurred = cv2.GaussianBlur(good, (0, 0), 8)[None]
    for slide_mpp, reason in ((4.4, "ok"), (0.7, "blurred")):
        table = tiles.measure(blurred, tile_mpp=0.5, slide_mpp=slide_mpp, white_point=(240,) * 3)
        assert tiles.judge(table)[0] == reason


def test_assess_gives_every_spot_a_reason(disc):
    points = sec.xy(disc).copy()
    points[0] = (3, 300)
    coverage = np.ones(len(points))
    coverage[1] = 0.5
    table = tiles.assess(sec.move_spots(disc, points), side_um=100, coverage=coverage)
    assert list(table.index) == list(sec.counts(disc).obs_names)
    assert list(table["reason"][:2]) == ["border", "low_tissue"] and np.isnan(table["density"].iloc[0])
    assert (table["reason"][2:] == "flat").sum() > 0.6 * len(table)  # the disc is one plain colour


def test_the_quality_control_takes_no_tile_and_one_tile(rng=np.random.default_rng(0)):
    assert len(tiles.judge(tiles.measure(np.empty((0, 8, 8, 3), np.uint8), tile_mpp=0.5))) == 0
    assert len(tiles.judge(tiles.measure(speckled(rng), tile_mpp=0.5))) == 1


def test_augmentation_makes_all_eight_views_and_changes_no_pixel(rng=np.random.default_rng(1)):
    tile = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    views = tiles.augment(np.repeat(tile[None], 200, 0), rng=np.random.default_rng(0))
    assert len(np.unique(views.reshape(200, -1), axis=0)) == 8
    assert all(np.array_equal(np.sort(v.ravel()), np.sort(tile.ravel())) for v in views)


def test_z_transform(rng=np.random.default_rng(2)):
    z = tiles.z_transform(rng.integers(0, 255, (3, 9, 9, 3)).astype(np.uint8))
    assert np.allclose(z.mean((1, 2, 3)), 0, atol=1e-5) and np.allclose(z.std((1, 2, 3)), 1, atol=1e-5)
    assert np.array_equal(tiles.z_transform(np.full((1, 4, 4, 3), 9, np.uint8)), np.zeros((1, 4, 4, 3)))

"""The tissue mask on slides whose outline is known, with all that is not tissue; coverage against brute force."""

import cv2
import numpy as np
import pytest

from helpers import settings, tissue
from helpers.messages import CourseError

MPP = 6.0
SIDE = 360
Y, X = np.mgrid[:SIDE, :SIDE]
OUTLINE = ((X - 170) / 110) ** 2 + ((Y - 180) / 90) ** 2 < 1
HE = np.array([0.6, 0.68, 0.4])


def _texture(seed=0):
    noise = np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.exp(0.5 * smooth / smooth.std())


def picture(density, white=(236, 219, 234)):
    """Optical density (y, x, 3) to uint8 RGB with a little noise."""
    noise = np.random.default_rng(3).normal(0, 0.7, density.shape)
    return np.clip(np.rint(np.array(white) * np.exp(-density) + noise), 0, 255).astype(np.uint8)


def section(strength=0.45):
    return (OUTLINE * strength * _texture())[..., None] * HE


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("white", [(255, 255, 255), (236, 219, 234), (218, 208, 224), (130, 131, 127)])
@pytest.mark.parametrize("told", [True, False])
def test_outline_on_tinted_glass(white, told):
    found = tissue.mask(picture(section(), white), mpp=MPP, white_point=white if told else None)
    assert found.shape == OUTLINE.shape and found.dtype == bool
    assert iou(found, OUTLINE) > 0.95


def test_pale_tissue_is_tissue():
    assert iou(tissue.mask(picture(section(0.2)), mpp=MPP), OUTLINE) > 0.95


def test_finer_pixels_give_the_same_outline():
    fine = cv2.resize(picture(section()), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    found = tissue.mask(fine, mpp=MPP / 4)
    assert found.shape == fine.shape[:2]
    assert iou(found[::4, ::4], OUTLINE) > 0.95


def test_what_is_not_tissue():
    density = section()
    veil = 0.12 * np.exp(-np.hypot(X - 300, Y - 180) / 60.0)
    density += veil[..., None] * np.array([0.4, 0.8, 0.45])  # bled eosin: pale, pink, smooth
    ring = np.abs(np.hypot(X - 40, Y - 40) - 14) < 4
    density[ring] = 0.6  # dust out of focus: neutral
    density[330:, 40:200] += cv2.GaussianBlur(np.full((30, 160), 0.3, np.float32), (0, 0), 5)[..., None]  # frame
    density[20:24, 300:304] = HE  # a speck of 24 x 24 um
    assert iou(tissue.mask(picture(density), mpp=MPP), OUTLINE) > 0.93


def test_small_holes_are_filled_and_large_ones_kept():
    density = section(1.0)
    density[170:180, 120:130] = 0  # 60 x 60 um
    density[150:220, 180:250] = 0  # 420 x 420 um
    found = tissue.mask(picture(density), mpp=MPP)
    assert found[175, 125] and not found[185, 215]
    assert tissue.mask(picture(density), mpp=MPP, hole_um2=1e6)[185, 215]


def test_fat_counts_as_tissue():
    """Round empty cells of 50 um with thin pale walls, as in breast; the outline goes round them."""
    density = section()
    for y in range(150, 210, 9):
        for x in range(70, 150, 9):
            cv2.circle(density, (x, y), 4, (0.0, 0.0, 0.0), -1)
    assert iou(tissue.mask(picture(density), mpp=MPP), OUTLINE) > 0.95


@pytest.mark.parametrize("value", [0, 128, 236, 255])
def test_blank_pictures_have_no_tissue(value):
    assert not tissue.mask(np.full((100, 120, 3), value, np.uint8), mpp=MPP).any()


def test_bad_input_is_refused():
    with pytest.raises(CourseError, match="uint8"):
        tissue.mask(np.zeros((9, 9, 3)), mpp=MPP)
    for mpp in (0, -1, float("nan")):
        with pytest.raises(CourseError, match="pixel size"):
            tissue.mask(np.zeros((9, 9, 3), np.uint8), mpp=mpp)


def test_coverage_against_brute_force():
    stream = np.random.default_rng(0)
    mask = stream.random((30, 50)) < 0.4
    scale, side = 0.1, 37.0
    xy = stream.uniform([-30, -30], [530, 330], (200, 2))
    fine = np.kron(mask, np.ones((10, 10), bool))  # full-resolution pixels
    expected = []
    for x, y in xy:
        # tenths of a pixel: exact to about 1 %
        xs, ys = (np.arange(c - side / 2 + 0.05, c + side / 2, 0.1) for c in (x, y))
        xs, ys = xs[(xs >= 0) & (xs < 500)].astype(int), ys[(ys >= 0) & (ys < 300)].astype(int)
        expected.append(fine[np.ix_(ys, xs)].mean() if len(xs) and len(ys) else 0)
    found = tissue.coverage(mask, scale, xy, side)
    assert found.dtype == np.float32 and found.shape == (200,)
    assert np.abs(found - expected).max() < 0.02


def test_coverage_at_the_borders():
    whole = np.ones((20, 20), bool)
    assert tissue.coverage(whole, 0.5, [(0, 0), (40, 40), (20, 20)], 10).tolist() == [1, 1, 1]
    assert tissue.coverage(whole, 0.5, [(-50, 20)], 10).tolist() == [0]
    left = whole.copy()
    left[:, 10:] = False  # x is the column
    assert tissue.coverage(left, 1.0, [(5, 15), (15, 5), (10, 10)], 4).tolist() == [1, 0, 0.5]


@pytest.mark.real
@pytest.mark.parametrize(
    ("where", "share"),
    [
        ("her2st/data/ST-imgs/C/C3", 0.172),
        ("spacell_als/dataset/image/CN64_C1", 0.078),
        ("mob/inst/extdata/counts/MOB1", 0.11),
    ],
)
def test_real_sections_have_their_measured_share_of_tissue(where, share):
    place = settings.data_dir() / where
    files = sorted(place.glob("*.jpg")) if place.is_dir() else sorted(place.parent.glob(place.name + "*.jpg"))
    if not files:
        pytest.skip(f"{place} is absent")
    rgb = np.ascontiguousarray(cv2.imread(str(files[0]))[..., ::-1])
    mpp = 4.2 if "mob" in where else 0.69
    assert tissue.mask(rgb, mpp=mpp).mean() == pytest.approx(share, rel=0.08)

"""DAPI on H&E: turned, mirrored, warped pictures are found again; everything else is refused."""

import cv2
import numpy as np
import pytest

from helpers import registration, registration_images, registration_local, section_align, settings
from helpers.messages import CourseError

SIDE_UM, DAPI_UM, HE_UM = 520.0, 0.8, 0.9
MIDDLE = SIDE_UM / 2


def nuclei(seed, n=900):
    """Return outlines, float (n, 12, 2) in um of the H&E."""
    rng = settings.rng(seed, "nuclei")
    centre = rng.uniform(-80, SIDE_UM + 80, (n, 2))
    angle, turn = np.linspace(0, 2 * np.pi, 12, endpoint=False), rng.uniform(0, np.pi, n)
    long, short = rng.uniform(3.5, 6.5, n), rng.uniform(2, 4, n)
    x, y = long[:, None] * np.cos(angle), short[:, None] * np.sin(angle)
    c, s = np.cos(turn)[:, None], np.sin(turn)[:, None]
    return np.stack([c * x - s * y, s * x + c * y], axis=2) + centre[:, None]


def draw(outlines_um, um, levels, side_um=SIDE_UM):
    size = round(side_um / um)
    picture = np.zeros((size, size), np.float32)
    for outline, level in zip(outlines_um, levels):
        corners = np.round((outline / um - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(picture, [corners], float(level), cv2.LINE_8, 4)
    return cv2.GaussianBlur(picture, (0, 0), 0.8 / um)


class Pair:
    """Two pictures of the same nuclei; ``he(xy)`` is the truth, um of DAPI to um of the H&E."""

    def __init__(self, *, seed=0, angle=0.0, mirrored=False, scale=1.0, shift=(15.0, -9.0), warp_um=0.0, lost=0.1):
        rng = settings.rng(seed, "pair")
        c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
        self.linear = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
        self.shift, self.warp_um = np.array(shift), warp_um
        self.waves = rng.uniform(0, 2 * np.pi, (2, 2))
        outlines = nuclei(seed)
        level = rng.lognormal(0, 0.3, len(outlines))
        density = draw(outlines, HE_UM, 0.9 * level)
        stains = np.exp(-density[..., None] * [0.75, 0.58, 0.31] - 0.15 * np.array([0.38, 0.80, 0.46]))
        self.he = np.clip(235 * stains + rng.normal(0, 1, stains.shape), 0, 255).astype(np.uint8)
        kept = rng.random(len(outlines)) >= lost
        inside = self.dapi_um(outlines[kept].reshape(-1, 2)).reshape(-1, 12, 2)
        light = draw(inside, DAPI_UM, rng.lognormal(0, 0.3, kept.sum()))
        self.dapi = rng.poisson(400 * light + 40).astype(np.uint16)
        self.places = inside.mean(1)[((inside.mean(1) > 0) & (inside.mean(1) < SIDE_UM)).all(1)]
        on_he = self.he_um(self.places)
        self.places = self.places[((on_he > 0) & (on_he < SIDE_UM)).all(1)]

    def _warp(self, xy):
        wave = 2 * np.pi * xy[:, ::-1] / 300.0
        return self.warp_um * np.sqrt(2) * np.sin(wave + self.waves[0]) * np.cos(wave[:, ::-1] / 2 + self.waves[1])

    def he_um(self, xy):
        place = (xy - MIDDLE) @ self.linear.T + MIDDLE + self.shift
        return place + self._warp(place)

    def dapi_um(self, xy):
        place = xy.copy()
        for _ in range(30):
            place = xy - self._warp(place)
        return (place - MIDDLE - self.shift) @ np.linalg.inv(self.linear).T + MIDDLE

    def register(self, **options):
        return registration.register(self.dapi, self.he, dapi_um=DAPI_UM, he_um=HE_UM, **options)

    def error(self, found, **options):
        return float(np.median(np.hypot(*(found.to_he(self.places, **options) - self.he_um(self.places)).T)))


@pytest.fixture(scope="module")
def plain():
    return Pair(angle=25.0, scale=1.02)


@pytest.fixture(scope="module")
def found(plain):
    return plain.register()


@pytest.mark.parametrize("angle, mirrored", [(0.0, False), (90.0, True), (180.0, False), (-40.0, True)])
def test_any_turn_and_the_mirror_are_found(angle, mirrored):
    pair = Pair(angle=angle, mirrored=mirrored, seed=1)
    found = pair.register()
    assert found.mirrored == mirrored and found.source == "sift" and found.warp is None
    assert pair.error(found) < 0.3
    assert abs((found.angle_deg - angle + 180) % 360 - 180) < 0.5 and abs(found.scale - 1) < 0.003
    assert found.inliers > registration.MIN_OVER_OTHER * found.other_inliers and found.agreement > 0.8


def test_a_warp_is_undone_and_the_residual_says_how_well():
    pair = Pair(angle=10.0, warp_um=3.0, seed=2)
    found = pair.register()
    affine, error = pair.error(found, warp=False), pair.error(found)
    assert affine > 2.0 and error < 1.2
    assert 0.5 * error < found.residual_um < 2 * error + 0.3 and abs(found.affine_residual_um - affine) < 1
    assert pair.error(pair.register(warp=False)) > 2.0
    back = found.to_dapi(found.to_he(pair.places))
    assert np.abs(back - pair.places).max() < 1e-3


def test_blocks_improve_on_the_keypoints(plain, found):
    rough = plain.register(refine=False)
    assert plain.error(found) < plain.error(rough) < 4.0
    assert np.isnan(rough.agreement)


def test_a_change_of_pixel_size_shifts_nothing():
    pair = Pair(angle=0.0, shift=(0.0, 0.0), lost=0.0, seed=3)
    off = pair.register().to_he(pair.places) - pair.places
    assert np.abs(off.mean(0)).max() < 0.1  # half a pixel would be 0.4 um


@pytest.mark.parametrize("kind", ["blank dapi", "blank he", "noise", "unrelated", "few nuclei", "tiny", "stack"])
def test_what_cannot_be_registered_is_refused(plain, kind):
    dapi, he = plain.dapi, plain.he
    if kind == "blank dapi":
        dapi = np.full_like(dapi, 7)
    elif kind == "blank he":
        he = np.full_like(he, 240)
    elif kind == "noise":
        dapi = settings.rng(0, "noise").poisson(50, dapi.shape).astype(np.uint16)
    elif kind == "unrelated":
        dapi = Pair(seed=77).dapi
    elif kind == "few nuclei":
        dapi = draw(nuclei(5, 4), DAPI_UM, [300.0] * 4)
    elif kind == "tiny":
        dapi = dapi[:12, :12]
    else:
        dapi = np.stack([dapi] * 4)
    words = {"blank dapi": "blank", "blank he": "blank", "tiny": "at least 32 um", "stack": "one plane"}
    with pytest.raises(CourseError, match=words.get(kind, "keypoints that agree")):
        registration.register(dapi, he, dapi_um=DAPI_UM, he_um=HE_UM)


def test_pixel_sizes_that_contradict_the_pictures_are_refused(plain):
    with pytest.raises(CourseError, match="pixel sizes"):
        registration.register(plain.dapi, plain.he, dapi_um=2.2 * DAPI_UM, he_um=HE_UM)
    with pytest.raises(CourseError, match="dapi_um"):
        registration.register(plain.dapi, plain.he, dapi_um=0, he_um=HE_UM)
    wide = cv2.resize(plain.dapi, None, fx=1.25, fy=1.0, interpolation=cv2.INTER_AREA)
    with pytest.raises(CourseError, match="stretched"):
        registration.register(wide, plain.he, dapi_um=DAPI_UM, he_um=HE_UM)


def test_a_transform_of_10x_is_used_and_checked_on_the_pictures(tmp_path, plain, found):
    path = tmp_path / "sample_he_imagealignment.csv"
    rough = found.um_to_px.copy()
    rough[:2, 2] += 4  # as one made by hand is
    section_align.write_alignment(path, rough, dapi_um_px=DAPI_UM)
    start = section_align.read_alignment(path, dapi_um_px=DAPI_UM)
    used = plain.register(start=start, source=path.name)
    assert used.source == path.name and used.inliers == 0 and plain.error(used) < 0.3
    for wrong in (np.linalg.inv(start), start @ np.diag([1, 1, 1]) + np.array([[0, 0, 150], [0, 0, 0], [0, 0, 0]])):
        with pytest.raises(CourseError, match="sample_he_imagealignment.csv is of this very H&E"):
            plain.register(start=wrong, source=path.name)
    with pytest.raises(CourseError, match="affine"):
        plain.register(start=np.zeros((3, 3)))


def test_the_matrix_is_in_pixels_and_x_y(plain, found):
    pixels = plain.places / DAPI_UM
    by_hand = np.column_stack([pixels, np.ones(len(pixels))]) @ found.matrix.T
    np.testing.assert_allclose(by_hand[:, :2] * HE_UM, found.to_he(plain.places, warp=False), atol=1e-9)
    by_um = section_align.apply(found.um_to_px, plain.places)
    np.testing.assert_allclose(by_um, found.to_he_px(plain.places), atol=1e-9)


def test_saved_and_read_back(tmp_path):
    pair = Pair(angle=10.0, warp_um=3.0, seed=2)
    found = pair.register()
    found.save(tmp_path / "a.json")
    again = registration.load(tmp_path / "a.json")
    np.testing.assert_allclose(again.to_he(pair.places), found.to_he(pair.places), atol=2e-3)
    assert again.residual_um == found.residual_um and again.source == found.source
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(CourseError, match="b.json"):
        registration.load(tmp_path / "b.json")


def test_dapi_on_the_h_and_e_overlaps_its_nuclei(plain, found):
    shape = (round(SIDE_UM), round(SIDE_UM))
    laid = found.dapi_on_he(plain.dapi, shape, 1.0)
    density = registration_images.haematoxylin(cv2.resize(plain.he, shape[::-1], interpolation=cv2.INTER_AREA))
    inside = laid > 0
    assert np.corrcoef(laid[inside], density[inside])[0, 1] > 0.6
    part = found.dapi_on_he(plain.dapi, (50, 60), 1.0, origin_um=(100.0, 150.0))
    np.testing.assert_allclose(part, laid[150:200, 100:160], atol=1e-2)


def test_pictures_are_read_in_bands():
    class Disk:
        """Counts the rows it hands out at a time."""

        shape, most = (5000, 300), 0

        def __getitem__(self, rows):
            values = np.arange(5000, dtype=np.float32)[rows]
            self.most = max(self.most, len(values))
            return np.repeat(values[:, None], 300, axis=1)

    disk = Disk()
    small, um_xy = registration_images.reduce(disk, 0.3, 2.0)
    assert disk.most <= registration_images.BAND_PX
    middles = (np.arange(len(small)) + 0.5) * um_xy[1] / 0.3 - 0.5  # each row holds its own number
    assert np.abs(small[:, 0] - middles)[:-1].max() < 0.51 and abs(um_xy[1] - 2) < 0.01


def test_the_smoother_reproduces_a_plane_and_gives_up_far_from_data():
    rng = settings.rng(0, "smoother")
    at = rng.uniform(0, 300, (400, 2))
    values = np.stack([0.02 * at[:, 0] - 1, 0.01 * at[:, 1]], axis=1)
    inner = at[((at > 60) & (at < 240)).all(1)]
    guess = registration_local.smooth(inner, at, values, 30.0)
    assert np.abs(guess - np.stack([0.02 * inner[:, 0] - 1, 0.01 * inner[:, 1]], axis=1)).max() < 0.1
    assert np.abs(registration_local.smooth(np.array([[2000.0, 2000.0]]), at, values, 30.0)).max() < 1e-6
    alone = registration_local.smooth(at[:1], at[:1], values[:1], 30.0, left_out=np.array([0]))
    assert np.abs(alone).max() == 0  # a point left out says nothing about itself


def test_a_mirrored_descriptor_is_that_of_the_mirror_image(plain):
    from scipy.spatial import cKDTree

    from helpers import registration_points as points

    picture = registration_images.contrast(plain.dapi.astype(np.float32), DAPI_UM)
    places, described = points._describe(picture, 1.0)
    mirrored, true = points._describe(np.ascontiguousarray(picture[:, ::-1]), 1.0)
    mirrored[:, 0] = picture.shape[1] - mirrored[:, 0]
    distance, which = cKDTree(mirrored).query(places)
    close = distance < 0.5
    alike = [(one[close] * true[which[close]]).sum(1) for one in (described, points._mirrored(described))]
    assert close.sum() > 100 and np.median(alike[1]) > 0.97 > np.median(alike[0]) + 0.1


def test_outliers_do_not_bend_the_fit():
    rng = settings.rng(0, "outliers")
    moving = rng.uniform(0, 300, (200, 2))
    fixed = moving @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + [5.0, 310.0] + rng.normal(0, 0.1, (200, 2))
    fixed[:30] += rng.uniform(5, 20, (30, 2))
    matrix, warp, _, kept = registration_local.fit(moving, fixed, (320, 320))
    assert warp is None and not kept[:30].any() and kept[30:].all()
    np.testing.assert_allclose(matrix[:, :2], [[0, -1], [1, 0]], atol=1e-3)

"""The stain room against known truth, StainTools, squidpy, scipy, and input that no one should recolour."""

import cv2
import numpy as np
import pytest

from helpers import settings, stain
from helpers.messages import CourseError

WHITE = np.array([236.0, 219.0, 234.0])
VECTORS = np.array([[0.77, 0.56, 0.30], [0.41, 0.79, 0.46]])
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
# H and E of real slides as measured for the virtual tissue (rows: her2st B4, C2, C5, mouse cord, OS-1, glioblastoma)
MEASURED = [
    ((0.78, 0.56, 0.30), (0.31, 0.82, 0.48)),
    ((0.77, 0.56, 0.30), (0.39, 0.80, 0.45)),
    ((0.77, 0.57, 0.30), (0.42, 0.79, 0.45)),
    ((0.75, 0.57, 0.33), (0.45, 0.78, 0.43)),
    ((0.73, 0.62, 0.31), (0.37, 0.81, 0.45)),
    ((0.61, 0.74, 0.28), (0.26, 0.92, 0.30)),
]


def field(sigma, seed, side=400):
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return smooth / smooth.std()


def render(haematoxylin, eosin, *, vectors=VECTORS, white=WHITE, jpeg=90):
    """H&E by Beer-Lambert's law, with camera noise and JPEG: uint8 (y, x, 3)."""
    light = np.exp(-haematoxylin[..., None] * vectors[0] - eosin[..., None] * vectors[1])
    noise = np.random.default_rng(9).normal(0, 1, light.shape)
    rgb = np.clip(np.rint(white * light + noise), 0, 255).astype(np.uint8)
    ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
    assert ok
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def he(seed=0, **options):
    """A picture full of tissue: pink fibres with blue nuclei."""
    nuclei = np.where(field(4, seed) > 1.0, 1.5, 0.0) * np.exp(0.2 * field(2, seed + 1))
    nuclei = cv2.GaussianBlur(nuclei.astype(np.float32), (0, 0), 1.0)
    return render(nuclei, np.where(nuclei > 0.3, 0.1, 0.6) * np.exp(0.5 * field(6, seed + 2)), **options)


def slide(white=WHITE, bleed=0.0):
    """A thumbnail: a disc of tissue on glass; eosin may bleed into the glass on its right."""
    y, x = np.mgrid[:400, :400]
    inside = (x - 150) ** 2 + (y - 200) ** 2 < 90**2
    veil = bleed * np.exp(-np.clip(x - 240, 0, None) / 40.0) * (x > 150)
    texture = np.exp(0.5 * field(3, 5))
    return render(inside * 0.5 * texture, inside * 0.5 * texture + veil, white=np.asarray(white)), inside


# ---------------------------------------------------------------- white point
@pytest.mark.parametrize("white", [(236, 219, 234), (250, 248, 252), (218, 208, 224), (244, 254, 252), (130, 131, 127)])
@pytest.mark.parametrize("known_tissue", [True, False])
def test_white_point_of_tinted_glass(white, known_tissue):
    rgb, inside = slide(white)
    found, details = stain.white_point(rgb, tissue=inside if known_tissue else None, details=True)
    assert details["source"] == "glass"
    assert np.abs(found - white).max() <= 1


def test_white_point_ignores_bled_eosin():
    rgb, inside = slide(bleed=0.12)
    found = stain.white_point(rgb, tissue=inside)
    assert np.abs(found - WHITE).max() <= 2


def test_white_point_without_glass_is_flagged(capsys):
    fine = np.exp(0.5 * field(1.5, 1))  # as tissue looks on a thumbnail
    found, details = stain.white_point(render(0.4 * fine, 0.4 * fine), details=True)
    assert details["source"] == "brightest" and "brightest" in capsys.readouterr().err
    assert (found <= WHITE + 3).all() and (found > WHITE - 60).all()


def test_white_point_refuses_a_black_image():
    with pytest.raises(CourseError, match="no brighter"):
        stain.white_point(np.full((50, 50, 3), 12, np.uint8))


def test_remove_cast_makes_glass_white():
    out = stain.remove_cast(np.array([[236, 219, 234], [118, 0, 58]], np.uint8), WHITE)
    assert out.tolist() == [[255, 255, 255], [128, 0, 63]]


# ---------------------------------------------------------------- optics
def test_concentrations_equal_non_negative_least_squares():
    from scipy.optimize import nnls

    od = np.random.default_rng(0).normal(0.3, 0.5, (300, 3))
    ours = stain.concentrations(od, VECTORS, penalty=0.0)
    assert np.allclose(ours, [nnls(VECTORS.T, row)[0] for row in od], atol=1e-9)
    assert (ours == 0).any() and (ours > 0).all(axis=1).any()


def test_concentrations_equal_the_lasso_of_spams():
    spams = pytest.importorskip("spams")
    od = np.random.default_rng(1).uniform(0, 1.5, (500, 3))
    theirs = spams.lasso(np.asfortranarray(od.T), D=np.asfortranarray(VECTORS.T), mode=2, lambda1=0.1, pos=True)
    assert np.allclose(stain.concentrations(od, VECTORS, penalty=0.1), theirs.toarray().T, atol=1e-6)


@pytest.mark.parametrize("pair", MEASURED)
def test_haematoxylin_is_the_redder_absorber(pair):
    pair = np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True)
    assert np.allclose(stain._order(pair), pair) and np.allclose(stain._order(pair[::-1]), pair)


# ---------------------------------------------------------------- the fit
@pytest.mark.parametrize("method", ["vahadane", "macenko"])
@pytest.mark.parametrize("pair", MEASURED)
def test_stain_vectors_within_three_degrees(method, pair):
    pair = np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True)
    found = stain.fit(he(vectors=pair), method=method, white_point=WHITE)
    assert max(map(stain.angle_deg, found.vectors, pair)) < 3
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_a_wrong_white_point_bends_the_vectors():
    white = np.array([244.0, 190.0, 230.0])
    rgb = he(white=white)
    right, wrong = (
        max(map(stain.angle_deg, stain.fit(rgb, white_point=point).vectors, VECTORS)) for point in (white, (255,) * 3)
    )
    assert right < 3 < wrong


@pytest.mark.parametrize("pair", MEASURED)
def test_exchanged_channels_are_noticed(pair, capsys):
    pair = np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True)
    rgb = he(vectors=pair)
    assert not stain.fit(rgb, white_point=WHITE).looks_bgr and "BGR" not in capsys.readouterr().err
    assert stain.fit(rgb[..., ::-1].copy(), white_point=WHITE[::-1]).looks_bgr and "BGR" in capsys.readouterr().err


def test_same_seed_same_fit_and_json_round_trip():
    rgb = he()
    first, second = (stain.fit(rgb, white_point=WHITE, seed=4, max_pixels=5000) for _ in range(2))
    again = stain.StainFit.from_json(first.to_json())
    assert first.to_json() == second.to_json() == again.to_json()
    assert first.to_json() != stain.fit(rgb, white_point=WHITE, seed=5, max_pixels=5000).to_json()


def _bad():
    stream = np.random.default_rng(0)
    flat = np.full((400, 400), 0.0)
    grey = np.clip(128 + 40 * field(3, 3), 0, 255).astype(np.uint8)
    return {
        "white": np.full((400, 400, 3), 255, np.uint8),
        "glass": np.full((400, 400, 3), WHITE, np.uint8),
        "black": np.zeros((400, 400, 3), np.uint8),
        "flat grey": np.full((400, 400, 3), 120, np.uint8),
        "grey": np.repeat(grey[..., None], 3, axis=2),
        "noise": stream.integers(0, 255, (400, 400, 3)).astype(np.uint8),
        "one colour": np.full((400, 400, 3), (180, 120, 170), np.uint8),
        "eosin only": render(flat, np.exp(0.5 * field(6, 1) - 0.3)),
        "haematoxylin only": render(np.exp(0.5 * field(4, 2) - 0.3), flat),
        "blue pen": np.clip(np.array([30, 60, 200]) + 8 * field(3, 1)[..., None], 0, 255).astype(np.uint8),
        "few pixels": he()[:10, :10],
    }


@pytest.mark.parametrize("method", stain.METHODS)
@pytest.mark.parametrize("name", list(_bad()))
def test_fit_refuses(name, method):
    with pytest.raises(CourseError):
        stain.fit(_bad()[name], method=method, white_point=WHITE)


def test_fit_refuses_wrong_types_and_methods():
    with pytest.raises(CourseError, match="uint8"):
        stain.fit(he() / 255.0, white_point=WHITE)
    with pytest.raises(CourseError, match="method"):
        stain.fit(he(), method="magic", white_point=WHITE)


# ---------------------------------------------------------------- against other people's code
def _as_staintools(rgb):
    dark = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[..., 0] < 0.8 * 255
    return stain.fit(rgb, white_point=(255, 255, 255), tissue=dark, sparsity=0.1, blur_px=0)


def test_vahadane_agrees_with_staintools():
    staintools = pytest.importorskip("staintools")
    source, target = he(0), he(10, vectors=np.array(MEASURED[3]) / np.linalg.norm(MEASURED[3], axis=1, keepdims=True))
    source, target = (staintools.LuminosityStandardizer.standardize(rgb) for rgb in (source, target))
    reference = staintools.StainNormalizer("vahadane")
    reference.fit(target.copy())
    theirs = reference.transform(source.copy())
    ours_source, ours_target = _as_staintools(source), _as_staintools(target)
    assert max(map(stain.angle_deg, ours_target.vectors, reference.stain_matrix_target)) < 1.5
    ours = stain.transform(ours_source, ours_target)(source)
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_macenko_and_reinhard_agree_with_squidpy():
    xr = pytest.importorskip("xarray")
    im = pytest.importorskip("squidpy.experimental.im._stain")
    rgb, white = he(), (255.0, 255.0, 255.0)
    cast_free = stain.remove_cast(rgb, WHITE)
    picture = xr.DataArray(np.moveaxis(cast_free, 2, 0), dims=("c", "y", "x"))
    dense = stain.optical_density(cast_free, white).mean(axis=2) > stain.FIT_OD
    theirs = im.fit_decomposition(
        picture, "macenko", im.MacenkoParams(alpha=stain.EXTREME_PERCENT), np.array(white), tissue_mask=dense
    )
    ours = stain.fit(cast_free, method="macenko", white_point=white, tissue=dense, blur_px=0, max_pixels=10**6)
    assert max(map(stain.angle_deg, ours.vectors, theirs.stain_matrix.T[:2])) < 0.5
    lab = im.fit_reinhard(picture, im.ReinhardParams(), tissue_mask=dense)
    assert np.allclose(ours.lab_mean, lab.mu, atol=0.02) and np.allclose(ours.lab_sd, lab.sigma, rtol=0.02)


# ---------------------------------------------------------------- recolouring
@pytest.fixture(scope="module")
def fits():
    other = np.array(MEASURED[5]) / np.linalg.norm(MEASURED[5], axis=1, keepdims=True)
    pictures = ((he(), WHITE), (he(20, vectors=other, white=np.full(3, 250.0)), np.full(3, 250.0)))
    return {
        method: [stain.fit(rgb, method=method, white_point=white) for rgb, white in pictures]
        for method in stain.METHODS
    }


@pytest.mark.parametrize("method", stain.METHODS)
def test_normalised_tissue_has_the_targets_stain(fits, method):
    source, target = fits[method]
    out = stain.transform(source, target)(he())
    found = stain.fit(out, method=method, white_point=(255, 255, 255))
    if method == "reinhard":
        assert np.allclose(found.lab_mean, target.lab_mean, atol=0.15)
        assert np.allclose(found.lab_sd, target.lab_sd, rtol=0.25)
    else:
        assert max(map(stain.angle_deg, found.vectors, target.vectors)) < 3
        assert np.allclose(found.max_concentration, target.max_concentration, rtol=0.1)


@pytest.mark.parametrize("method", stain.METHODS)
def test_glass_becomes_white_and_stays_glass(fits, method):
    out = stain.transform(*fits[method])(np.full((8, 8, 3), WHITE, np.uint8))
    assert out.min() >= 253


def test_normalising_to_oneself_only_removes_the_cast(fits):
    source, _ = fits["vahadane"]
    rgb = he()
    out = stain.transform(source, source)(rgb)
    assert np.abs(out.astype(int) - stain.remove_cast(rgb, WHITE)).mean() < 2.5


@pytest.mark.parametrize("method", stain.METHODS)
def test_table_equals_direct_computation_whatever_the_order(fits, method):
    rgb = he()
    normaliser = stain.transform(*fits[method])
    tile = normaliser(rgb[100:200, 50:150])  # small: sorted; then large: marked in the table
    large = np.random.default_rng(0).integers(0, 256, (600, 500, 3)).astype(np.uint8)
    assert np.array_equal(normaliser(large).reshape(-1, 3), normaliser.colours(large.reshape(-1, 3)))
    whole = normaliser(rgb)
    assert np.array_equal(whole[100:200, 50:150], tile)
    assert np.array_equal(whole.reshape(-1, 3), normaliser.colours(rgb.reshape(-1, 3)))
    assert np.array_equal(normaliser(rgb[None, 0, 0]), whole[None, 0, 0])


def test_transform_refuses_two_methods(fits):
    with pytest.raises(CourseError, match="one method"):
        stain.transform(fits["vahadane"][0], fits["macenko"][1])


def test_stream_equals_the_whole_and_sample_reads_only_tissue(fits):
    rgb = he()
    calls = []

    def read(x, y, width, height):
        calls.append((x, y, width, height))
        return rgb[y : y + height, x : x + width]

    normaliser = stain.transform(*fits["vahadane"])
    out = stain.stream(read, rgb.shape[:2], normaliser, np.zeros_like(rgb), strip=64)
    assert np.array_equal(out, normaliser(rgb)) and len(calls) == 7
    calls.clear()
    tissue = np.zeros((40, 40), bool)
    tissue[10:20, 5:15] = True  # full-resolution rows 100-200, columns 50-150
    pixels = stain.sample(read, rgb.shape[:2], tissue, n=3000, seed=1, blur_px=0, strip=64)
    assert all(x >= 50 and y >= 100 and x + w <= 150 and y + h <= 200 for x, y, w, h in calls)
    assert {tuple(p) for p in pixels} <= {tuple(p) for p in rgb[100:200, 50:150].reshape(-1, 3)}
    with pytest.raises(CourseError, match="without tissue"):
        stain.sample(read, rgb.shape[:2], tissue & False)


# ---------------------------------------------------------------- real sections
REAL = {
    "her2st C3": ("her2st/data/ST-imgs/C/C3", (236, 219, 234)),
    "her2st C2": ("her2st/data/ST-imgs/C/C2", (242, 239, 238)),
    "cord CN51": ("spacell_als/dataset/image/CN51_C2", (218, 208, 224)),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_sections_fit_and_turn_white(name):
    from helpers import tissue

    where, white = REAL[name]
    place = settings.data_dir() / where
    files = sorted(place.glob("*.jpg")) if place.is_dir() else sorted(place.parent.glob(place.name + "*.jpg"))
    if not files:
        pytest.skip(f"{place} is absent")
    rgb = np.ascontiguousarray(cv2.imread(str(files[0]))[..., ::-1])
    small = cv2.resize(rgb, None, fx=0.115, fy=0.115, interpolation=cv2.INTER_AREA)
    mask = tissue.mask(small, mpp=6.0)
    found = stain.white_point(small, tissue=mask)
    assert np.abs(found - white).max() <= 3
    pixels = stain.sample(lambda x, y, w, h: rgb[y : y + h, x : x + w], rgb.shape[:2], mask, n=50_000)
    fits = {method: stain.fit(pixels, method=method, white_point=found) for method in ("vahadane", "macenko")}
    for one in fits.values():
        assert max(map(stain.angle_deg, one.vectors, stain.EXPECTED)) < 12 and one.separation_deg > 15
    glass = stain.transform(fits["vahadane"], fits["vahadane"])(small)[~mask]
    assert (np.median(glass, axis=0) >= 252).all()

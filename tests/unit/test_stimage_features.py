"""Features of a spot: rings, blocks and scaling, checked against plain loops."""

import numpy as np
import pytest

from helpers import settings
from helpers import stimage_features as features
from helpers.messages import CourseError

GRID = np.stack(np.meshgrid(np.arange(9), np.arange(7)), -1).reshape(-1, 2) * 200.0


def numbers(n, f, name="test"):
    return settings.rng(0, "test_stimage_features", name).normal(size=(n, f)).astype(np.float32)


def test_rings_are_means_of_the_spots_at_that_distance():
    x = numbers(len(GRID), 3)
    rings = features.ring_means(x, GRID, pitch=200.0)
    away = np.hypot(*(GRID[:, None] - GRID[None]).transpose(2, 0, 1)) / 200
    assert len(rings) == 2
    for spot in range(len(GRID)):
        near = (away[spot] > 0) & (away[spot] <= 1.6)
        far = (away[spot] > 1.6) & (away[spot] <= 3.1)
        assert np.allclose(rings[0][spot], x[near].mean(0), atol=1e-5)
        assert np.allclose(rings[1][spot], x[far].mean(0), atol=1e-5)
    middle = 3 * 9 + 4
    assert ((away[middle] > 0) & (away[middle] <= 1.6)).sum() == 8
    assert ((away[middle] > 1.6) & (away[middle] <= 3.1)).sum() == 20, "as the docstring of RINGS says"


def test_rings_do_not_depend_on_the_unit():
    x = numbers(len(GRID), 2)
    for a, b in zip(features.ring_means(x, GRID, pitch=200.0), features.ring_means(x, GRID / 0.69, pitch=200.0 / 0.69)):
        assert np.allclose(a, b, atol=1e-6)


def test_a_lonely_spot_is_its_own_surroundings():
    xy = np.array([[0, 0], [100, 0], [5000, 5000]], float)
    x = numbers(3, 2)
    near, far = features.ring_means(x, xy, pitch=100.0)
    assert np.array_equal(near[2], x[2]) and np.array_equal(far[2], x[2])
    assert np.allclose(near[0], x[1]) and np.allclose(far[0], near[0])
    with pytest.raises(CourseError):
        features.ring_means(x, xy[:2], pitch=100.0)
    with pytest.raises(CourseError):
        features.ring_means(x, xy, pitch=0)


def test_views_and_rings_lie_side_by_side_in_blocks():
    views = [numbers(len(GRID), 5, k) for k in range(3)]
    x, blocks = features.assemble(views, blocks=(2, 3), xy=GRID, pitch=200.0, ring_views=(1,))
    assert blocks == (2, 3) * 5 and x.shape == (len(GRID), 25) and x.dtype == np.float32
    assert np.array_equal(x[:, :15], np.concatenate(views, 1))
    assert np.array_equal(x[:, 15:20], features.ring_means(views[1], GRID, pitch=200.0)[0])
    alone, blocks = features.assemble(views, blocks=(2, 3))
    assert np.array_equal(alone, x[:, :15]) and blocks == (2, 3) * 3
    for wrong in ([views[0], views[1][:-1]], [views[0], numbers(len(GRID), 4)]):
        with pytest.raises(CourseError):
            features.assemble(wrong, blocks=(2, 3))


def test_every_block_weighs_the_same_in_a_distance():
    x = numbers(4000, 42) * np.float32(np.r_[np.full(2, 100), np.full(40, 0.01)]) + 7
    scaled = features.Scaler.fit(x, (2, 40)).apply(x)
    assert np.allclose(scaled.mean(0), 0, atol=1e-4)
    first, second = ((scaled[:2000, block] - scaled[2000:, block]) ** 2 for block in (slice(0, 2), slice(2, 42)))
    assert first.sum(1).mean() == pytest.approx(2, rel=0.1) and second.sum(1).mean() == pytest.approx(2, rel=0.1)


def test_a_feature_that_does_not_vary_becomes_zero():
    x = numbers(20, 3)
    x[:, 1] = 0.3
    assert (features.Scaler.fit(x, (3,)).apply(x)[:, 1] == 0).all()
    with pytest.raises(CourseError):
        features.Scaler.fit(x, (4,))
    with pytest.raises(CourseError):
        features.Scaler.fit(x, (3,)).apply(x[:, :2])


def test_scaling_by_section_takes_out_what_a_scanner_adds():
    x = numbers(60, 4)
    sections = np.repeat(["a", "b"], 30)
    order = settings.rng(0, "test_stimage_features", "order").permutation(60)
    other = x.copy()
    other[sections == "b"] = other[sections == "b"] * np.float32([3, 0.5, 2, 9]) + np.float32([1, -4, 0, 30])
    plain = features.scale_sections(x, sections, (4,))
    assert np.allclose(plain, features.scale_sections(other, sections, (4,)), atol=1e-4)
    pooled = [features.Scaler.fit(each, (4,)).apply(each) for each in (x, other)]
    assert not np.allclose(*pooled, atol=0.1)
    assert np.allclose(plain[order], features.scale_sections(x[order], sections[order], (4,)), atol=1e-5)

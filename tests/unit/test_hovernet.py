"""HoVer-Net: outlines to targets and back, scores against others' code and by hand, blocks, losses, files, faults."""

from dataclasses import replace

import numpy as np
import pytest

from helpers import hovernet, settings
from helpers import hovernet_baseline as baseline
from helpers import hovernet_post as post
from helpers import hovernet_scores as scores
from helpers import hovernet_section as section
from helpers import hovernet_targets as targets
from helpers import hovernet_tiles as tiles
from helpers.messages import CourseError


def ellipses(n=60, *, side_um=120.0, seed=0):
    """Outlines float (n, 24, 2) in um, some overlapping, some beyond the edge."""
    rng = settings.rng(seed, "test_hovernet")
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    long, wide, lean = rng.uniform(3, 6, (n, 1)), rng.uniform(2, 4, (n, 1)), rng.uniform(0, np.pi, (n, 1))
    x, y = long * np.cos(turn), wide * np.sin(turn)
    shape = np.stack([x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)], 2)
    return shape + rng.uniform(-2, side_um + 2, (n, 1, 2))


def picture(labels, *, seed=0, colours=((100, 60, 140), (60, 100, 150))):
    """An image whose nuclei of even labels have one colour and those of odd labels another."""
    rng = settings.rng(seed, "test_hovernet picture")
    image = np.full((*labels.shape, 3), (225, 190, 215), float)
    for odd, colour in enumerate(colours):
        image[(labels > 0) & (labels % 2 == odd)] = colour
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels():
    return targets.rasterise(ellipses(), shape=(240, 240), mpp=0.5)


def discs(places, radius, shape):
    """Labels of discs: every place of ``places`` (row, column)."""
    made = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for i, (row, column) in enumerate(places, 1):
        made[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = i
    return made


# ---------------------------------------------------------------- targets
def test_outlines_are_filled_as_scikit_image_fills_them():
    from skimage.draw import polygon

    outlines = ellipses(200)
    ours = targets.rasterise(outlines, shape=(240, 240), mpp=0.5, min_px=0)
    x, y = outlines[..., 0], outlines[..., 1]
    area = np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1))
    theirs = np.zeros((240, 240), np.int32)
    for i in np.argsort(-area):
        theirs[polygon(y[i] / 0.5 - 0.5, x[i] / 0.5 - 0.5, (240, 240))] = i + 1
    assert (ours != theirs).sum() <= 2 and len(np.unique(ours)) > 150
    ragged = [outline[: 24 - i % 3] for i, outline in enumerate(outlines)]
    assert (targets.rasterise(ragged[:1], shape=(240, 240), mpp=0.5) == 1).any() == (ours == 1).any()


def test_the_smaller_of_two_stays_on_top_and_what_lies_outside_is_cut():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    outlines = [square * 4 + 3, square * 10, square * 6 - (20, 0), square * 8 + (36, 36)]
    made = targets.rasterise(outlines, shape=(40, 40), mpp=1.0)
    count = np.bincount(made.ravel(), minlength=5)
    assert count[1] == 16 and count[2] == 100 - 16 and count[3] == 0 and count[4] == 16
    under = targets.rasterise(outlines, shape=(40, 40), mpp=1.0, rank=[0, 1, 2, 3])
    assert (under == 1).sum() == 0 and (under == 2).sum() == 100
    few = targets.rasterise([square * 3], shape=(40, 40), mpp=1.0)
    assert few.max() == 0 and targets.rasterise([square * 3], shape=(40, 40), mpp=1.0, min_px=9).max() == 1


def test_no_nucleus_and_one_nucleus():
    for none in ([], np.empty((0, 18, 2))):
        empty = targets.rasterise(none, shape=(50, 60), mpp=0.5)
        assert empty.shape == (50, 60) and not empty.any() and not targets.hv_maps(empty).any()
    one = targets.rasterise(ellipses(1, side_um=20) * 0 + ellipses(1)[0] - ellipses(1)[0].mean(0) + 12,
                            shape=(50, 50), mpp=0.5)  # fmt: skip
    hv = targets.hv_maps(one)
    assert one.max() == 1 and hv.min() == -1 and hv.max() == 1 and abs(hv[one > 0].mean()) < 0.05
    with pytest.raises(CourseError, match="not numbers"):
        targets.rasterise(np.full((1, 5, 2), np.nan), shape=(9, 9), mpp=1)


def test_maps_are_those_of_a_loop_over_nuclei(labels):
    loop = np.zeros((*labels.shape, 2))
    for i in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == i)
        for k, place in enumerate((x, y)):
            away = place - place.mean()
            loop[y, x, k] = np.where(away > 0, away / max(away.max(), 1e-3), away / max(-away.min(), 1e-3))
    assert np.abs(targets.hv_maps(labels) - loop).max() < 1e-5


@pytest.mark.parametrize("turn", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)])
def test_turning_a_tile_turns_the_meaning_of_its_maps(labels, turn):
    hv = targets.hv_maps(labels)
    names = dict(zip(("mirror_x", "mirror_y", "swap"), turn))
    image = np.stack([labels] * 3, 2)
    turned_image, turned, maps = tiles.dihedral(image, labels, hv, **names)
    assert np.abs(targets.hv_maps(np.ascontiguousarray(turned)) - maps).max() < 1e-5
    assert (turned_image[..., 0] == turned).all()
    forgotten = hv[:, ::-1]
    assert np.abs(targets.hv_maps(np.ascontiguousarray(labels[:, ::-1])) - forgotten).max() > 1


def test_prepare_resamples_and_keeps_the_types_in_step():
    outlines = ellipses(30)
    coarse = targets.rasterise(outlines, shape=(400, 400), mpp=0.3)
    made = hovernet.prepare(picture(coarse), outlines, np.arange(30) % 4 + 1, mpp=0.3)
    assert made.image.shape == (240, 240, 3) and made.mpp == pytest.approx(0.5)
    assert made.classes[5] == 1 and len(made.classes) == 31
    area, xy = targets.centres(made.labels)
    wanted = targets.centres(coarse)[1] * 0.3
    whole = (area > 60) & (xy.min(1) > 12) & (xy.max(1) < 228)
    assert np.abs(xy[whole] * 0.5 - wanted[whole]).max() < 0.3
    for wrong, words in (([0] * 30, "class codes"), ([1] * 29, "29 classes")):
        with pytest.raises(CourseError, match=words):
            hovernet.prepare(picture(coarse), outlines, wrong, mpp=0.3)
    with pytest.raises(CourseError, match="um per pixel"):
        hovernet.prepare(picture(coarse), outlines, [1] * 30, mpp=30)


def test_tiles_that_cannot_teach_are_passed_over(labels):
    image = picture(labels)
    assert tiles.usable(image, labels) and not tiles.usable(np.full_like(image, 230), labels)
    assert not tiles.usable(image, (labels == labels.max()).astype(np.int32))


def test_batches_hold_targets_that_fit_their_tiles(labels):
    field = targets.Field(picture(labels), labels, np.minimum(np.arange(61), 1), targets.hv_maps(labels), 0.5)
    for zoom in (0.0, 0.2):
        x, y = next(tiles.batches([field], rng=settings.rng(0, "b"), side=128, batch=6, jitter=False, zoom=zoom))
        assert x.shape == (6, 128, 128, 3) and y.shape == (6, 128, 128, 4)
        inside, green = y[..., 0] > 0, x[..., 1]
        assert green[inside].mean() < 110 < 170 < green[~inside].mean()
        assert ((y[..., 3] == 1) == inside).all() and not y[..., 1:3][~inside].any()
    again = next(tiles.batches([field], rng=settings.rng(0, "b"), side=128, batch=6, jitter=False, zoom=0.2))
    assert (again[0] == x).all()
    with pytest.raises(CourseError, match="240 x 240"):
        next(tiles.batches([field], rng=settings.rng(0), side=256, batch=1))


def test_stain_jitter_changes_colour_not_order(labels):
    image = picture(labels)
    other = tiles.jitter_stain(image, settings.rng(3, "j"))
    shift = np.abs(other.mean((0, 1)) - image.mean((0, 1)))
    assert shift.max() > 3 and np.corrcoef(other[..., 1].ravel(), image[..., 1].ravel())[0, 1] > 0.9
    still = tiles.jitter_stain(image, settings.rng(3), mix=0, gain=0, strength=0)
    assert np.abs(still - image).max() < 0.1 or image.max() > 245


def test_outlines_of_another_picture_are_laid_on_the_nuclei():
    outlines = ellipses(400, side_um=240, seed=5)
    image = picture(targets.rasterise(outlines, shape=(480, 480), mpp=0.5))
    middle = outlines.mean(1)
    off = np.stack([2 + 1.5 * np.sin(middle[:, 1] / 80), -1.5 * np.cos(middle[:, 0] / 70)], 1)
    moved, shift = hovernet.align(outlines + off[:, None], image, mpp=0.5)
    left = np.linalg.norm(moved.mean(1) - middle, axis=1)
    assert np.linalg.norm(off, axis=1).mean() > 2 and np.median(left) < 0.25 and np.quantile(left, 0.95) < 0.7
    assert np.abs(moved - outlines - (off + shift)[:, None]).max() < 1e-9
    still, shift = hovernet.align(list(outlines), image, mpp=0.5)
    assert np.median(np.abs(shift)) < 0.1 and len(still) == 400 and still[3].shape == (24, 2)
    # another tissue's nuclei, bare glass and no nucleus give no reason to move
    alien = ellipses(400, side_um=240, seed=6)
    _, shift = hovernet.align(alien, image, mpp=0.5)
    _, glass = hovernet.align(outlines, np.full_like(image, 230), mpp=0.5)
    assert (shift == 0).all(1).mean() > 0.5 and not glass.any()
    assert hovernet.align(np.empty((0, 24, 2)), image, mpp=0.5)[1].shape == (0, 2)


def test_classes_of_types():
    mapping = {"T cell": "immune", "CAF": "stromal", "PVL": "endothelial", "debris": None}
    codes = hovernet.to_classes(["CAF", "T cell", None, "PVL", "debris", ""], mapping)
    assert codes.tolist() == [2, 1, 255, 4, 255, 255]
    for types, book, words in ((["B cell"], mapping, "B cell"), (["CAF"], {"CAF": "fibre"}, "fibre")):
        with pytest.raises(CourseError, match=words):
            hovernet.to_classes(types, book)


# ---------------------------------------------------------------- maps to nuclei
def true_maps(labels, classes=2):
    """Perfect maps: even labels class 1, odd class 2."""
    maps = np.zeros((*labels.shape, 4 + classes), np.float32)
    maps[..., 0], maps[..., 1:3] = labels > 0, targets.hv_maps(labels)
    maps[..., 3] = labels == 0
    for odd in (0, 1):
        maps[..., 4 + odd] = (labels > 0) & (labels % 2 == odd)
    return maps


def test_touching_nuclei_come_apart():
    truth = discs([(30, 30), (30, 43), (42, 36), (80, 80)], 7, (110, 110))
    found = post.instances(true_maps(truth))
    assert found.max() == 4 and len(scores.pair_iou(truth, found)[0]) == 4
    one = post.instances(true_maps((truth > 0).astype(np.int32)))
    assert one.max() < 4, "maps of the merged blob must not fall apart into the three"
    assert found.dtype == np.int32


def test_no_nuclear_pixel_gives_no_nucleus():
    nothing = np.zeros((40, 40, 6), np.float32)
    labels = post.instances(nothing)
    codes, shares = post.vote(labels, nothing)
    assert not labels.any() and codes.tolist() == [0] and shares.shape == (1, 2) and post.outlines(labels, mpp=1) == []


def test_the_vote_is_of_pixels_without_background(labels):
    maps = true_maps(labels)
    y, x = np.nonzero(labels == 2)
    maps[y[: len(y) // 3], x[: len(x) // 3], 4:] = (0, 1)  # a third says class 2
    maps[y, x, 3] = 5  # background says more than all
    codes, shares = post.vote(labels, maps)
    present = np.unique(labels[labels > 0])
    assert (codes[present] == 1 + present % 2).all() and codes[0] == 0
    assert shares[2, 0] == pytest.approx(2 / 3, abs=0.05) and np.allclose(shares[present].sum(1), 1)
    sure, torn = post.entropy(np.array([[1, 0, 0, 0], [0.25] * 4]))
    assert sure < 1e-6 and torn == pytest.approx(1)


def test_a_class_never_named_is_raised_until_it_is_named_half_as_often_as_its_label(labels):
    n = int(labels.max())
    classes = np.r_[0, np.where(np.arange(n) % 5 == 0, 2, 1)].astype(np.uint8)
    field = targets.Field(np.zeros((*labels.shape, 3), np.uint8), labels, classes, targets.hv_maps(labels), 0.5)
    maps = np.zeros((*labels.shape, 6), np.float32)
    maps[..., 0] = labels > 0
    sure = settings.rng(0, "level").uniform(0.3, 0.45, n + 1)  # the rare class ranks right and never wins
    rare = np.where(classes == 2, sure, 0.1)[labels]
    maps[..., 5], maps[..., 4] = rare, 1 - rare
    assert not (post.vote(labels, maps)[0] == 2).any()
    gains = post.level(maps, labels, field)
    codes, shares = post.vote(labels, maps, gains)
    named, there = (codes == 2).sum(), (classes == 2).sum()
    assert gains[0] == 1 and 1 < gains[1] < 8 and there / 2 <= named <= there and (classes[codes == 2] == 2).all()
    assert np.allclose(shares[1:].sum(1), 1, atol=1e-5)
    maps[..., 5], maps[..., 4] = (classes == 2)[labels], (classes == 1)[labels]
    assert post.level(maps, labels, field) == (), "what is named often enough is left alone"
    none = targets.Field(field.image, labels * 0, classes, field.hv, 0.5)
    assert post.level(maps, labels * 0, none) == ()


def test_strips_are_put_below_each_other(labels):
    one = targets.Field(np.full((*labels.shape, 3), 90, np.uint8), labels, np.r_[0, np.ones(labels.max(), int)].astype(
        np.uint8), targets.hv_maps(labels), 0.5)  # fmt: skip
    two = replace(one, classes=(one.classes * 2).astype(np.uint8))
    both = hovernet.stack([targets.crop(one, slice(0, 60)), targets.crop(two, slice(10, 90), slice(0, 100))], gap=8)
    assert both.image.shape == (60 + 8 + 80 + 8, 100, 3) and both.labels.shape == both.hv.shape[:2] == (156, 100)
    kinds = both.classes[both.labels]
    assert set(np.unique(kinds[:60])) == {0, 1} and not kinds[60:68].any() and set(np.unique(kinds[68:])) == {0, 2}
    assert (both.hv[68:148] == two.hv[10:90, :100]).all() and (both.labels[:60] == labels[:60, :100]).all()


def test_outlines_rasterised_give_the_nuclei_back(labels):
    dense = post.consecutive(labels)
    lines = post.outlines(dense, mpp=0.5, origin_um=(7, 3))
    back = targets.rasterise([line - (7, 3) for line in lines], shape=dense.shape, mpp=0.5, min_px=0)
    assert len(lines) == dense.max() and (back != dense).mean() < 2e-3


def test_tuning_is_by_the_field_given(labels):
    maps = true_maps(labels)
    from scipy.ndimage import distance_transform_edt

    maps[..., 0] = np.where(labels > 0, 0.65, np.where(distance_transform_edt(labels == 0) < 7, 0.55, 0))  # a halo
    assert post.tune(maps, labels).threshold == 0.6


def test_faint_nuclei_are_told_from_clear_ones():
    truth = discs([(r, c) for r in (20, 50, 80) for c in (20, 50, 80)], 7, (100, 100))
    image = np.full((100, 100, 3), 220, np.uint8)
    image[truth > 0] = (90, 60, 140)
    image[truth == 5] = (190, 60, 140)  # as pink as the others, but red light passes
    seen = post.contrast(truth, image)
    assert seen[0] == 0 and seen[1] == pytest.approx(np.log(220 / 90), rel=0.02)
    assert seen[5] == pytest.approx(np.log(220 / 190), rel=0.05)
    kept = post.instances(true_maps(truth), post.Post(faint=0.4), image)
    assert kept.max() == 8 and kept[50, 50] == 0 and post.instances(true_maps(truth), post.Post(faint=0.4)).max() == 9
    assert post.faint([], 0.5).tolist() == [] and post.faint([1.0], 0.5).tolist() == [False]
    learned = post.tune(true_maps(truth), truth, image, share=0.2)
    assert 0.2 < learned.faint < 1 and post.tune(true_maps(truth), truth).faint == 0


def test_faint_nuclei_leave_table_labels_and_outlines(field):
    truth, image = field
    options = {"mpp": 0.5, "classes": ("a", "b"), "block": 256, "tile": 256}
    every = section.predict(Painter(), image, post=post.Post(), **options)
    least = float(np.quantile(every.table["contrast"], 0.2) / every.table["contrast"].median())
    clear = section.predict(Painter(), image, post=post.Post(faint=least), **options)
    assert 0.7 * len(every.table) < len(clear.table) < 0.9 * len(every.table)
    assert clear.labels.max() == len(clear.table) == len(clear.outlines) == len(np.unique(clear.labels)) - 1


# ---------------------------------------------------------------- any size
class Painter:
    """A stand-in for the network whose answer for a pixel depends on that pixel only."""

    output_shape = (None, None, None, 6)

    def __init__(self):
        self.largest, self.calls = 0, 0

    def predict_on_batch(self, x):
        self.calls, self.largest = self.calls + 1, max(self.largest, x[0].size)
        made = np.zeros((*x.shape[:3], 6), np.float32)
        made[..., 0] = np.where(x[..., 0] < 128, 9, -9)
        made[..., 1:3] = x[..., 1:] / 100 - 1
        made[..., 4] = 3
        return made


def painted(truth):
    """An image from which :class:`Painter` reads the true maps."""
    image = np.full((*truth.shape, 3), 200, np.uint8)
    image[..., 0][truth > 0] = 20
    image[..., 1:] = np.rint((targets.hv_maps(truth) + 1) * 100)
    return image


@pytest.fixture(scope="module")
def field():
    truth = targets.rasterise(ellipses(700, side_um=330), shape=(640, 660), mpp=0.5)
    return truth, painted(truth)


def test_blocks_find_what_one_block_finds(field):
    truth, image = field
    options = {"mpp": 0.5, "classes": ("a", "b"), "post": post.Post(marker=0.02)}
    whole = section.predict(Painter(), image, block=1024, **options)
    parts = section.predict(Painter(), image, block=128, tile=256, **options)
    assert len(whole.table) > 300 and abs(len(parts.table) - len(whole.table)) <= 1
    agree = scores.panoptic(whole.labels, parts.labels)
    assert agree["DQ"] > 0.995 and agree["SQ"] > 0.995
    assert parts.labels.max() == len(parts.table) == len(parts.outlines) and parts.labels.dtype == np.int32
    area, xy = targets.centres(parts.labels)
    assert np.abs(xy[1:] * 0.5 - parts.table[["x_um", "y_um"]].to_numpy()).max() < 0.6
    narrow = section.predict(Painter(), image, block=128, overlap=0, tile=256, **options)
    assert len(narrow.table) > len(whole.table) + 20, "without overlap, nuclei at the seams are cut in two"


def test_memory_is_that_of_a_block(field):
    import tracemalloc

    _, image = field
    peaks = []
    for times in (1, 4):
        long = np.broadcast_to(image[None], (times, *image.shape)).reshape(-1, *image.shape[1:])
        painter = Painter()
        tracemalloc.start()
        found = section.predict(painter, long, mpp=0.5, classes=("a", "b"), post=post.Post(), block=256, labels=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert painter.largest <= 3 * (256 + 2 * 64 + 2 * 32) ** 2 and found.labels is None
    assert peaks[1] < 1.3 * peaks[0]


def test_an_image_at_another_pixel_size_gives_places_in_microns():
    import cv2

    truth = discs([(40, 60), (100, 150)], 8, (160, 200))
    fine = cv2.resize(painted(truth), (400, 320), interpolation=cv2.INTER_NEAREST)
    found = section.predict(Painter(), fine, mpp=0.25, classes=("a", "b"), post=post.Post())
    places = np.array([[30.25, 20.25], [75.25, 50.25]])
    assert found.table[["x_um", "y_um"]].to_numpy() == pytest.approx(places, abs=0.2)
    assert found.table["area_um2"].to_numpy() == pytest.approx([np.pi * 16, np.pi * 16], rel=0.1)
    middle = np.array([line.mean(0) for line in found.outlines])
    assert np.abs(middle - found.table[["x_um", "y_um"]].to_numpy()).max() < 0.5


def test_empty_glass_is_not_looked_at_and_gives_an_empty_table():
    painter, glass = Painter(), np.full((300, 300, 3), 230, np.uint8)
    found = section.predict(painter, glass, mpp=0.5, classes=("a", "b"), post=post.Post())
    assert painter.calls == 0 and len(found.table) == 0 and found.outlines == [] and not found.labels.any()
    assert {"x_um", "code", "class", "p_a", "entropy"} <= set(found.table) and found.codes.tolist() == [0]


@pytest.mark.parametrize("wrong", [np.ones((64, 64, 3)), np.ones((64, 64), np.uint8), np.ones((3, 64, 64), np.uint8)])
def test_what_is_not_an_rgb_picture_is_refused(wrong):
    with pytest.raises(CourseError, match="uint8"):
        section.predict(Painter(), wrong, mpp=0.5, classes=("a", "b"), post=post.Post())
    with pytest.raises(CourseError, match="uint8"):
        section.maps(Painter(), wrong)
    with pytest.raises(CourseError, match="uint8"):
        hovernet.prepare(wrong, [], [], mpp=0.5)


def test_ids_do_not_overflow():
    truth = discs([(r, c) for r in range(6, 400, 12) for c in range(6, 400, 12)], 4, (400, 400))
    found = section.predict(Painter(), painted(truth), mpp=0.5, classes=("a", "b"), post=post.Post(), block=128)
    assert len(found.table) == truth.max() == found.labels.max() > 1000


def test_a_nucleus_claimed_twice_is_kept_once():
    xy, area, block = np.array([[10, 10], [10.8, 10], [20, 10], [22.5, 10]]), np.full(4, 30.0), np.array([0, 1, 1, 2])
    assert post.doubles(xy, area, block).tolist() == [False, True, False, False]
    assert not post.doubles(xy, area, np.zeros(4, int)).any()


# ---------------------------------------------------------------- scores
def test_pairs_are_as_many_as_can_be_and_nearest():
    from scipy.optimize import linear_sum_assignment

    rng = settings.rng(1, "pairs")
    for radius in (3.0, 8.0):
        a, b = rng.uniform(0, 60, (50, 2)), rng.uniform(0, 60, (60, 2))
        distance = np.linalg.norm(a[:, None] - b[None], axis=2)
        rows, columns = linear_sum_assignment(np.where(distance <= radius, distance, 1e6))
        kept = distance[rows, columns] <= radius
        pairs = scores.pair_points(a, b, radius)
        assert len(pairs) == kept.sum() and len(set(pairs[:, 1])) == len(pairs)
        ours = distance[pairs[:, 0], pairs[:, 1]]
        assert ours.max() <= radius and ours.sum() == pytest.approx(distance[rows, columns][kept].sum())
    for a, b in ((np.empty((0, 2)), np.ones((3, 2))), (np.ones((3, 2)), np.empty((0, 2)))):
        assert scores.pair_points(a, b, 1).shape == (0, 2)
    far = scores.pair_points(np.zeros((2, 2)), np.full((2, 2), 50.0), 1)
    assert far.shape == (0, 2)


def shifted():
    """Truth of three 4 x 4 squares; found: one right, one moved by one, one missed, one where nothing is."""
    truth, found = np.zeros((20, 20), np.int32), np.zeros((20, 20), np.int32)
    truth[0:4, 0:4], truth[0:4, 8:12], truth[8:12, 0:4] = 1, 2, 5
    found[0:4, 0:4], found[0:4, 9:13], found[12:16, 12:16] = 3, 1, 2
    return truth, found


def test_outline_scores_by_hand():
    truth, found = shifted()
    pairs, iou = scores.pair_iou(truth, found)
    assert sorted(map(tuple, pairs.tolist())) == [(1, 3), (2, 1)] and sorted(iou) == [pytest.approx(12 / 20), 1]
    assert scores.panoptic(truth, found) == pytest.approx({"DQ": 4 / 6, "SQ": 0.8, "PQ": 4 / 6 * 0.8})
    assert scores.dice(truth, found) == pytest.approx(2 * 28 / 96)
    # common 16 + 12; union 16 + 20 + the missed 16 + the invented 16
    assert scores.aji(truth, found) == pytest.approx(28 / 68)
    empty = np.zeros_like(truth)
    assert scores.aji(truth, empty) == 0 and np.isnan(scores.aji(empty, empty))
    assert scores.panoptic(truth, empty)["PQ"] == 0 and np.isnan(scores.panoptic(empty, empty)["DQ"])
    with pytest.raises(CourseError, match="shape"):
        scores.dice(truth, found) if truth.shape != found.shape else scores.overlaps(truth, found[:5])


def slow_aji(truth, found):
    """Algorithm 1 of Kumar et al., word by word."""
    common = union = 0
    used = set()
    for i in np.unique(truth[truth > 0]):
        a, best, iou = truth == i, None, 0.0
        for j in np.unique(found[a & (found > 0)]):
            b = found == j
            share = (a & b).sum() / (a | b).sum()
            if share > iou:
                best, iou = j, share
        if best is None:
            union += a.sum()
            continue
        common, union = common + (a & (found == best)).sum(), union + (a | (found == best)).sum()
        used.add(best)
    return common / (union + sum((found == j).sum() for j in np.unique(found[found > 0]) if j not in used))


def test_scores_of_many_nuclei_are_those_of_other_code(labels):
    from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

    found = targets.rasterise(ellipses() + settings.rng(2).normal(0, 1, (60, 1, 2)), shape=(240, 240), mpp=0.5)
    assert scores.aji(labels, found) == pytest.approx(slow_aji(labels, found))
    assert scores.dice(labels, found) == pytest.approx(f1_score((labels > 0).ravel(), (found > 0).ravel()))
    pairs = {(i, j) for i in np.unique(labels[labels > 0]) for j in np.unique(found[labels == i])
             if j and ((labels == i) & (found == j)).sum() > 0.5 * ((labels == i) | (found == j)).sum()}  # fmt: skip
    assert set(map(tuple, scores.pair_iou(labels, found)[0].tolist())) == pairs and len(pairs) > 5
    classes = settings.rng(4).integers(1, 4, 61)
    classes[0] = 0
    ours = scores.class_iou(labels, classes, found, classes, 3)
    theirs = jaccard_score(classes[labels].ravel(), classes[found].ravel(), labels=[1, 2, 3], average=None)
    assert ours == pytest.approx(theirs)
    a, b = settings.rng(5).integers(1, 5, (2, 100))
    assert (scores.confusion(a, b, 4) == confusion_matrix(a, b, labels=[1, 2, 3, 4])).all()
    everything = scores.type_f1(scores.confusion(a, b, 4), np.bincount(a)[1:], np.bincount(b)[1:])
    assert everything == pytest.approx(f1_score(a, b, average=None))  # all paired: the F1 of any classifier


def test_type_scores_by_hand():
    # 10 pairs: 6 of type 1 right, 2 of type 1 called 2, 2 of type 2 called 1; 3 true ones missed, 1 invented
    matrix = np.array([[6, 2], [2, 0]])
    of_truth, of_found = [9, 4], [9, 2]
    assert scores.type_f1(matrix, of_truth, of_found) == pytest.approx([12 / 18, 0])
    # published: type 2 has TP 0, TN 6, FP 2, FN 2, found alone 0, missed 2
    published = scores.published_type_f1(matrix, of_truth, of_found)
    assert published[1] == pytest.approx(12 / (12 + 2 + 2 + 0 + 2)) and published[1] > 0.6
    assert published[0] == pytest.approx(12 / (12 + 2 + 2 + 1 + 1))
    doubled = scores.published_type_f1(matrix, of_truth, of_found, weights=(2, 2, 1, 1))
    assert doubled[0] == pytest.approx(12 / (12 + 4 + 4 + 1 + 1))


def test_the_table_of_scores_by_hand():
    truth, found = shifted()
    result = hovernet.compare(truth, np.array([0, 1, 2, 0, 0, 2]), found, np.array([0, 1, 1, 1]), mpp=0.5,
                              names=("a", "b"), rng=settings.rng(0))  # fmt: skip
    assert result["nuclei"] == result["found"] == 3 and result["f1_iou"] == pytest.approx(4 / 6)
    assert result["f1"] == pytest.approx(4 / 6) and sorted(map(tuple, result["pairs"].tolist())) == [(1, 3), (2, 1)]
    assert result["confusion"].tolist() == [[1, 0], [1, 0]] and result["accuracy"] == 0.5 == result["majority"]
    assert result["type_f1"] == pytest.approx([2 / 4, 0]) and result["type_aware_f1"] == pytest.approx(2 / 6)
    assert result["class_iou"] == pytest.approx([16 / 48, 0])
    same = hovernet.compare(truth, np.array([0, 1, 2, 0, 0, 2]), truth, np.array([0, 1, 2, 0, 0, 2]), mpp=0.5,
                            names=("a", "b"), rng=settings.rng(0))  # fmt: skip
    assert [same[k] for k in ("f1_iou", "f1", "aji", "PQ", "accuracy", "macro_f1", "mean_class_iou")] == [1] * 7


def test_unlabelled_nuclei_count_in_finding_and_not_in_typing():
    truth, found = shifted()
    unknown = np.array([0, 1, hovernet.UNKNOWN, 0, 0, hovernet.UNKNOWN])
    result = hovernet.compare(truth, unknown, found, np.array([0, 2, 2, 1]), mpp=0.5, names=("a", "b"),
                              rng=settings.rng(0))  # fmt: skip
    assert result["f1"] == pytest.approx(4 / 6) and result["confusion"].tolist() == [[1, 0], [0, 0]]
    nothing = np.full(6, hovernet.UNKNOWN)
    nothing[0] = 0
    result = hovernet.compare(truth, nothing, found, np.array([0, 2, 2, 1]), mpp=0.5, names=("a", "b"),
                              rng=settings.rng(0))  # fmt: skip
    assert np.isnan([result["accuracy"], result["macro_f1"], result["type_aware_f1"]]).all()


def test_random_points_pair_within_the_published_distance(labels):
    classes = np.ones(61, np.uint8)
    result = hovernet.compare(labels, classes, labels, classes, mpp=0.5, names=("a",), rng=settings.rng(0))
    assert result["f1"] == 1 and result["f1_published_random"] > max(0.25, 1.5 * result["f1_random"])


def test_auroc():
    assert scores.auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1 and scores.auroc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert np.isnan(scores.auroc([0.1, 0.2], [0, 0]))


# ---------------------------------------------------------------- the network
@pytest.fixture(scope="module")
def net():
    from helpers import hovernet_net

    return hovernet_net


def test_losses_are_those_of_numpy(net):
    rng = settings.rng(0, "loss")
    truth = np.zeros((2, 16, 16, 4), np.float32)
    truth[:, 4:12, 4:12, 0], truth[:, 4:12, 4:12, 3] = 1, 2
    truth[1, 4:8, 4:12, 3] = 255
    truth[..., 1:3] = rng.normal(size=(2, 16, 16, 2)) * truth[..., :1]
    logits = rng.normal(size=(2, 16, 16, 7)).astype(np.float32)
    loss = net.HoverLoss([0.5, 1.0, 1.5, 1.0])
    parts = {name: float(value) for name, value in loss.parts(truth, logits).items()}
    inside, p = truth[..., 0], 1 / (1 + np.exp(-logits[..., 0].astype(float)))
    share = np.exp(logits[..., 3:].astype(float))
    share /= share.sum(-1, keepdims=True)
    code, known = truth[..., 3].astype(int), truth[..., 3] != 255
    assert parts["np"] == pytest.approx(-np.mean(inside * np.log(p) + (1 - inside) * np.log(1 - p)), rel=1e-4)
    assert parts["np_dice"] == pytest.approx(1 - (2 * (p * inside).sum() + 1) / (p.sum() + inside.sum() + 1), rel=1e-4)
    assert parts["hv"] == pytest.approx(np.mean((logits[..., 1:3] - truth[..., 1:3]) ** 2), rel=1e-4)
    weight = np.array([0.5, 1.0, 1.5, 1.0])
    each = [-weight[c] * np.log(s[c]) for c, s in zip(code[known], share[known])]
    assert parts["nc"] == pytest.approx(np.sum(each) / (known.sum() + 1), rel=1e-4)
    onehot = np.eye(4)[np.where(known, code, 0)] * known[..., None]
    both, all_ = (onehot * share).sum((0, 1, 2)), onehot.sum((0, 1, 2)) + (share * known[..., None]).sum((0, 1, 2))
    assert parts["nc_dice"] == pytest.approx(np.mean(1 - (2 * both + 1) / (all_ + 1)), rel=1e-4)
    total = parts["np"] + parts["np_dice"] + parts["hv"] + 2 * parts["slope"] + parts["nc"] + parts["nc_dice"]
    assert float(loss(truth, logits)) == pytest.approx(total, rel=1e-5)


def test_the_slope_term_sees_nuclei_only_and_each_map_along_its_own_axis(net):
    from scipy.ndimage import correlate

    truth, logits = np.zeros((1, 20, 20, 4), np.float32), np.zeros((1, 20, 20, 5), np.float32)
    truth[0, 5:15, 5:15, 0] = 1
    logits[0, :, :, 1] = settings.rng(0).normal(size=(20, 20))
    kernel = net.gradient_kernel()
    assert kernel[2].tolist() == [-0.5, -1, 0, 1, 0.5] and (kernel == -kernel[:, ::-1]).all()
    response = correlate(logits[0, :, :, 1], kernel / kernel[kernel > 0].sum(), mode="constant") ** 2
    expected = response[5:15, 5:15].sum() / 101
    assert float(net.HoverLoss([1, 1]).parts(truth, logits)["slope"]) == pytest.approx(expected, rel=1e-4)
    turned = logits.swapaxes(1, 2)[..., [0, 2, 1, 3, 4]]
    assert float(net.HoverLoss([1, 1]).parts(truth, turned)["slope"]) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def trained():
    """Two colours of discs: a network learns them in a few steps."""
    truth = targets.rasterise(ellipses(500, side_um=256, seed=3), shape=(512, 512), mpp=0.5)
    classes = np.concatenate([[0], 1 + np.arange(1, truth.max() + 1) % 2])
    field = targets.Field(picture(truth), truth, classes.astype(np.uint8), targets.hv_maps(truth), 0.5)
    return field, hovernet.fit([field], classes=("even", "odd"), steps=60, batch=4, jitter=False, progress=False)


def test_a_network_learns_in_a_few_steps(trained):
    field, model = trained
    assert model.card["loss"] < 0.6 * model.card["first_loss"] and model.card["stopped"] == "steps"
    assert model.card["weights"] < 200_000 and model.card["nuclei"]["even"] > 100
    maps = model.maps(field.image)
    assert np.corrcoef(maps[..., 0].ravel(), field.labels.ravel() > 0)[0, 1] > 0.9
    inside = field.labels > 0
    kind = maps[..., 4:].argmax(-1)[inside] + 1
    assert (kind == field.classes[field.labels[inside]]).mean() > 0.9


def test_tiles_leave_no_seam(trained):
    field, model = trained
    whole, cut = model.maps(field.image), model.maps(field.image, tile=192)
    assert np.abs(whole[..., 0] - cut[..., 0]).max() < 0.1 and np.abs(whole[..., 0] - cut[..., 0]).mean() < 1e-3
    with pytest.raises(CourseError, match="multiple of 8"):
        model.maps(field.image, tile=100)


def test_a_network_is_what_it_was_after_saving(trained, tmp_path):
    import zipfile

    field, model = trained
    path = model.save(tmp_path / "net.keras")
    again = hovernet.load(path)
    image = field.image[:128, :128]
    assert np.abs(again.maps(image) - model.maps(image)).max() < 1e-5
    assert (again.classes, again.post, again.card) == (model.classes, model.post, model.card)
    with zipfile.ZipFile(path) as file:
        assert not [name for name in file.namelist() if name.endswith((".pkl", ".py"))]
        assert "Lambda" not in file.read("config.json").decode()
    assert path.stat().st_size < 1e6
    with pytest.raises(CourseError, match="keras"):
        model.save(tmp_path / "net.h5")
    (tmp_path / "other.keras").write_bytes(b"not a zip")
    for missing in ("other.keras", "none.keras"):
        with pytest.raises(CourseError):
            hovernet.load(tmp_path / missing)


def test_the_step_is_that_of_keras(net):
    import keras

    rng = settings.rng(0, "step")
    x = rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    y = np.zeros((2, 32, 32, 4), np.float32)
    y[:, 8:20, 8:20, 0], y[:, 8:20, 8:20, 3] = 1, 1
    small = replace(net.PRESETS["tiny"], widths=(4, 4, 4), decoder=(4, 4), growth=4)
    losses, weights = [], []
    for ours in (True, False):
        model, loss = net.build(small, classes=1, seed=3), net.HoverLoss([1.0, 1.0])
        optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)  # Adam would blow up the last digit of tiny gradients
        model.compile(optimizer, loss, jit_compile=False)
        step = net.stepper(model, loss, optimizer) if ours else None
        losses.append([float(step(x, y) if ours else model.train_on_batch(x, y)) for _ in range(3)])
        weights.append(model.get_weights())  # the moving means of the norms among them
    assert losses[0][2] < losses[0][0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*weights))


def test_grouped_convolutions_are_those_of_keras_but_not_compiled_by_xla(net, tmp_path):
    import keras

    full = replace(net.PRESETS["full"], widths=(2, 4), units=(1, 1), bottom=8, decoder=(4,), dense=(1,), growth=4)
    model = net.build(full, classes=2)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.groups for layer in convolutions} == {1}, "Keras sends groups through XLA: minutes a step on a CPU"
    x = settings.rng(0, "groups").normal(size=(1, 8, 8, 16)).astype(np.float32)
    image = keras.Input((None, None, 16))
    ours = keras.Model(image, net._Builder(full, 0).conv(image, 8, 5, groups=4))
    theirs = keras.layers.Conv2D(8, 5, padding="same", groups=4, use_bias=False)
    theirs.build(x.shape)
    theirs.set_weights([np.concatenate(ours.get_weights(), -1)])
    assert len(ours.get_weights()) == 4 and np.allclose(ours(x), theirs(x), atol=1e-4)
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras", compile=False, safe_mode=True)
    tile = np.full((1, 16, 24, 3), 200, np.float32)
    assert np.allclose(again(tile), model(tile), atol=1e-5)


def test_training_goes_on_from_a_network(trained, monkeypatch):
    from helpers import hovernet_net

    look = lambda model, loss, _: lambda x, y: float(loss(y, model(x, training=False)))  # noqa: E731 - no step is taken
    monkeypatch.setattr(hovernet_net, "stepper", look)
    field, model = trained
    options = {"classes": ("even", "odd"), "batch": 4, "jitter": False, "progress": False}
    on = hovernet.fit([field], start=model, steps=3, **options)
    assert on.card["first_loss"] < 0.6 * model.card["first_loss"] and on.card["started_from"]["steps"] == 60


def test_one_seed_gives_one_network_and_one_order_of_tiles(net, trained):
    field, _ = trained
    a, b, other = (net.build(net.PRESETS["tiny"], classes=2, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all((x == y).all() for x, y in zip(a, b)) and any((x != y).any() for x, y in zip(a, other))
    assert len({w.tobytes() for w in a if w.ndim == 4}) == sum(w.ndim == 4 for w in a), "layers must not start alike"
    first, second = (tiles.batches([field], rng=settings.rng(5), side=64, batch=2) for _ in range(2))
    assert all((x == y).all() for _ in range(3) for x, y in zip(next(first), next(second)))


def test_features_come_with_the_table(trained):
    field, model = trained
    found = model.predict(field.image, mpp=0.5, features=True)
    columns = [name for name in found.table if name.startswith("f") and name[1:].isdigit()]
    assert len(columns) >= 16 and found.table[columns].to_numpy().std() > 0
    assert set(found.table["class"]) == {"even", "odd"} and found.table["entropy"].between(0, 1).all()


def test_what_cannot_be_trained_on_is_refused(trained):
    field, _ = trained
    empty = targets.Field(field.image, np.zeros_like(field.labels), np.zeros(1, np.uint8), field.hv * 0, 0.5)
    other = targets.Field(field.image, field.labels, field.classes, field.hv, 0.25)
    for fields, options, words in (
        ([empty], {}, "0 nuclei"), ([field, other], {}, "0.25"), ([field], {"classes": ("one",)}, "class code 2"),
        ([field], {"preset": "huge"}, "huge"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=words):
            hovernet.fit(fields, progress=False, **{"classes": ("even", "odd"), **options})
    with pytest.raises(CourseError, match="1 patient"):
        next(hovernet.leave_one_out({"a": field, "b": field}, {"a": "P", "b": "P"}))


def test_leave_one_out_never_trains_on_the_patient(trained, monkeypatch):
    field, model = trained
    seen = []
    monkeypatch.setattr(hovernet, "fit", lambda fields, validation, **_: seen.append((fields, validation)) or model)
    fields = {name: hovernet.crop(field, slice(0, 128 + 8 * i)) for i, name in enumerate("abcd")}
    done = [name for name, *_ in hovernet.leave_one_out(fields, {"a": "P", "b": "Q", "c": "P", "d": "R"})]
    assert done == ["a", "c", "b", "d"]
    heights = [([f.image.shape[0] for f in used], aside.image.shape[0]) for used, aside in seen]
    assert heights == [([136], 152), ([128, 144], 152), ([128, 136], 144)]


def test_weights_of_classes(labels):
    field = targets.Field(picture(labels), labels, np.r_[0, np.full(60, 2)].astype(np.uint8), None, 0.5)
    weight = hovernet.class_weights([field], 2)
    inside = (labels > 0).mean()
    assert weight[2] / weight[0] == pytest.approx(((1 - inside) / inside) ** 0.5, rel=1e-3)
    assert weight[1] == weight[2] and weight.mean() == pytest.approx(1)


# ---------------------------------------------------------------- the baseline
def test_the_watershed_finds_discs_and_the_forest_their_colours():
    truth = discs([(r + (c // 24) % 2 * 5, c) for r in range(12, 240, 22) for c in range(12, 240, 24)], 6, (250, 250))
    classes = np.concatenate([[0], 1 + np.arange(1, truth.max() + 1) % 2]).astype(np.uint8)
    image = picture(truth, colours=((60, 40, 120), (110, 85, 165)))
    field = targets.Field(image, truth, classes, targets.hv_maps(truth), 0.5)
    model = baseline.fit([field], classes=("even", "odd"), trees=40)
    labels, codes, shares = model.predict(image)
    result = hovernet.compare(truth, classes, labels, codes, mpp=0.5, names=("even", "odd"), rng=settings.rng(0))
    assert result["f1_iou"] > 0.95 and result["accuracy"] > 0.95 and shares.shape == (labels.max() + 1, 2)
    dealt = targets.Field(image, truth, np.r_[0, settings.rng(1).permutation(classes[1:])].astype(np.uint8), None, 0.5)
    null = baseline.fit([dealt], classes=("even", "odd"), trees=40)
    other = picture(truth, seed=9, colours=((60, 40, 120), (110, 85, 165)))
    _, codes, _ = null.predict(other)
    assert (codes[1:] == 1).mean() > 0.05 < (codes[1:] == 2).mean()


def test_the_baseline_on_glass_and_on_one_nucleus():
    for places in ([], [(20, 20)]):
        truth = discs(places, 7, (60, 60))
        found = baseline.segment(picture(truth) if places else np.full((60, 60, 3), 240, np.uint8))
        assert found.max() == len(places)
        features = baseline.morphology(picture(truth), found)
        assert features.shape[0] == len(places) and np.isfinite(features).all()
    assert features.shape[1] == baseline.morphology(picture(truth), truth * 0).shape[1]

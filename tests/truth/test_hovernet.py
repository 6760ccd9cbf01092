"""HoVer-Net against the true nuclei of virtual Xenium: a patient and a stain it never saw, and the null twin."""

import functools

import numpy as np
import pytest

from helpers import hovernet, settings
from helpers import hovernet_baseline as baseline
from helpers import hovernet_scores as scores
from helpers import section as sec
from helpers.runner_data import Data

TRAIN, TEST = ("X1_a", "X1_b", "X2_a"), "X3_a"
STEPS = 450


@functools.lru_cache(maxsize=None)
def field(data, name):
    """The middle square millimetre or so of a section, with its true nuclei."""
    run = Data({"DATA": data, "SEED": 0})
    section, truth = run.load(name), run.truth(name)
    seen = truth.cells["in_he"].to_numpy(bool)
    types = {kind: kind for kind in hovernet.CLASSES}
    codes = hovernet.to_classes(truth.cells["class"][seen], types)
    front = ~truth.cells["deep"].to_numpy(bool)[seen]
    image, mpp = sec.image(section), sec.mpp(section)
    whole = hovernet.prepare(image, truth.nuclei[seen], codes, mpp=mpp, rank=front.astype(float))
    return hovernet.crop(whole, slice(400, 1900), slice(400, 1900))


def small(data, name, side=900):
    return hovernet.crop(field(data, name), slice(0, side), slice(0, side))


def judged(truth, labels, codes):
    rng = settings.rng(0, "test_hovernet")
    return hovernet.compare(truth.labels, truth.classes, labels, codes, mpp=truth.mpp, names=hovernet.CLASSES, rng=rng)


@functools.lru_cache(maxsize=None)
def network():
    fields = [field("virtual_xenium", name) for name in TRAIN]
    held = hovernet.crop(fields[2], slice(1000, 1500))
    kept = [*fields[:2], hovernet.crop(fields[2], slice(0, 1000))]
    return hovernet.fit(kept, steps=STEPS, validation=held, progress=False)


@functools.lru_cache(maxsize=None)
def results():
    """Scores of network and baseline on the section held out, and the network's class shares."""
    test, net = small("virtual_xenium", TEST), network()
    maps = net.maps(test.image)
    labels = hovernet.instances(maps, net.post, test.image)
    codes, shares = hovernet.vote(labels, maps, net.post.gains)
    model = baseline.fit([small("virtual_xenium", name) for name in TRAIN], classes=hovernet.CLASSES, jitters=0)
    return judged(test, labels, codes), judged(test, *model.predict(test.image)[:2]), codes, shares


def test_nuclei_of_a_new_patient_and_stain_are_found_better_than_by_a_watershed():
    net, other, *_ = results()
    assert net["f1_iou"] > 0.75 and net["f1_iou"] > other["f1_iou"] + 0.05
    assert net["f1"] > 0.8 > 4 * net["f1_random"] and net["aji"] > other["aji"] and net["PQ"] > other["PQ"]
    assert net["f1_published_random"] > 0.25, "the published pairing distance also pairs random points"


def test_types_are_better_than_the_majority_and_the_forest():
    net, other, *_ = results()
    assert net["accuracy"] > net["majority"] + 0.15 and net["accuracy"] > other["accuracy"]
    assert net["type_aware_f1"] > other["type_aware_f1"] + 0.05
    assert net["macro_f1"] > other["macro_f1"] and (net["type_f1"] > 0).all(), "no class is given up"


def test_the_network_doubts_more_where_it_errs():
    net, _, codes, shares = results()
    truth = small("virtual_xenium", TEST)
    pairs = net["pairs"]
    wrong = truth.classes[pairs[:, 0]] != codes[pairs[:, 1]]
    assert scores.auroc(hovernet.entropy(shares[pairs[:, 1]]), wrong) > 0.6


def test_outlines_of_the_dapi_picture_are_laid_on_the_nuclei():
    """The best affine leaves 3 um where the tissue warped; shifting windows of nuclei takes nearly all of it away."""
    import json

    run = Data({"DATA": "virtual_xenium", "SEED": 0})
    section, truth = run.load(TEST), run.truth(TEST)
    matrix = np.array(json.loads((truth.folder / "registration.json").read_text(encoding="utf-8"))["um_to_px"])
    nuclei = section.shapes["nuclei"]
    outlines = [np.asarray(shape.exterior.coords)[:-1] @ matrix[:2, :2].T + matrix[:2, 2] for shape in nuclei.geometry]
    mpp = sec.mpp(section)
    outlines = [outline * mpp for outline in outlines]
    moved, _ = hovernet.align(outlines, sec.image(section), mpp=mpp)
    place = truth.cells[truth.cells["cell"] != ""].set_index("cell").loc[sec.counts(section).obs_names]
    true = place[["x_um", "y_um"]].to_numpy()
    left = [np.linalg.norm(np.array([o.mean(0) for o in some]) - true, axis=1) for some in (outlines, moved)]
    assert np.median(left[0]) > 2 and np.median(left[1]) < 0.5 and np.quantile(left[1], 0.95) < 2


def test_types_that_morphology_does_not_show_are_not_learned():
    """Null twin: nuclei are found as before, their types are no better than the majority."""
    fields = [small("virtual_xenium_null", name) for name in TRAIN]
    test = small("virtual_xenium_null", TEST)
    net = hovernet.fit(fields, steps=100, balance=0.0, progress=False)
    maps = net.maps(test.image)
    labels = hovernet.instances(maps, net.post, test.image)
    result = judged(test, labels, hovernet.vote(labels, maps)[0])
    assert result["f1"] > 0.5 and abs(result["accuracy"] - result["majority"]) < 0.04
    model = baseline.fit(fields, classes=hovernet.CLASSES, jitters=0)
    result = judged(test, *model.predict(test.image)[:2])
    assert result["accuracy"] < result["majority"] + 0.04


def test_a_section_in_blocks_is_the_section_in_one_piece():
    net, image = network(), small("virtual_xenium", TEST).image
    whole, parts = (net.predict(image, mpp=0.5, block=block, tile=256) for block in (2048, 256))
    agree = scores.panoptic(whole.labels, parts.labels)
    assert agree["DQ"] > 0.995 and agree["SQ"] > 0.99 and abs(len(whole.table) - len(parts.table)) <= 2


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_a_wrong_pixel_size_is_not_forgiven(scale):
    """The network knows one size of nucleus: that is why it insists on microns per pixel."""
    import cv2

    test, net = small("virtual_xenium", TEST), network()
    other = cv2.resize(test.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    right = net.predict(other, mpp=0.5 / scale)
    wrong = net.predict(other, mpp=0.5)
    size = cv2.resize(test.labels, other.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    fits = scores.panoptic(test.labels, cv2.resize(right.labels, test.labels.shape[::-1], interpolation=0))["DQ"]
    assert fits > 0.6 and scores.panoptic(size, wrong.labels)["DQ"] < fits - 0.1

"""What ``tiny`` learned, on seeds it never saw: density of nuclei, and the same tissue under another stain.

Every number stands beside two twins: the mean colour of the tile, and the same network with random weights whose batch
normalisation was fitted to the same pictures. Measured values are in data/encoders/MODEL_CARD.md.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import encoder_training as training
from helpers import encoders, settings
from helpers.encoders_core import from_keras

TRAIN, TEST, RESTAINED = range(500, 509), range(509, 512), range(600, 603)


def colour(tiles):
    """Mean RGB of each tile, float (n, 3): the simplest thing an encoder could report."""
    return tiles.reshape(len(tiles), -1, 3).mean(axis=1)


@pytest.fixture(scope="module")
def tissue():
    """Tiles, densities and styles of the seeds, every seed with a stain of its own."""
    found = {}
    for name, seeds in (("train", TRAIN), ("test", TEST)):
        parts = [training.grid_tiles(seed, stain_batch=f"b{seed}") for seed in seeds]
        found[name] = SimpleNamespace(
            tiles=np.concatenate([tiles for tiles, _ in parts]),
            density=np.concatenate([density for _, density in parts]),
            style=np.repeat([seed % 3 for seed in seeds], len(parts[0][0])),
        )
    return found


@pytest.fixture(scope="module")
def random_twin():
    model = training.network(7)
    pictures = [training.field(training.FIRST_SEED + k, size_um=500.0)[0] for k in range(8)]
    training.calibrate(model, pictures, settings.rng(0, "test twin"), batches=10)
    tiny = encoders.get("tiny")
    return from_keras("random", model, input_px=tiny.input_px, prepare=tiny.prepare, facts={}, licence="")


@pytest.fixture(scope="module")
def embedded(tissue, random_twin):
    ways = {"tiny": encoders.get("tiny").embed, "random": random_twin.embed, "colour": colour}
    return {name: {part: way(tissue[part].tiles) for part in tissue} for name, way in ways.items()}


def within(tissue, embedded, name):
    """R2 of the probe fitted and tested inside each style, mean of three: between styles colour alone would do."""
    scores = []
    for style in range(3):
        train, test = (tissue[part].style == style for part in ("train", "test"))
        scores.append(
            encoders.probe(
                embedded[name]["train"][train], tissue["train"].density[train],
                embedded[name]["test"][test], tissue["test"].density[test],
            )
        )  # fmt: skip
    return float(np.mean(scores))


def test_density_of_nuclei_can_be_read_off(tissue, embedded):
    score = {name: within(tissue, embedded, name) for name in embedded}
    print(score)
    assert score["tiny"] > 0.85, score
    assert score["tiny"] > score["colour"] + 0.05, score
    assert score["tiny"] > score["random"] + 0.03, score


def test_shuffled_densities_cannot_be_read_off(tissue, embedded):
    """The null twin: a probe of numbers that have nothing to do with the tiles."""
    stream = settings.rng(0, "shuffle")
    shuffled = [stream.permutation(tissue[part].density) for part in ("train", "test")]
    assert encoders.probe(embedded["tiny"]["train"], shuffled[0], embedded["tiny"]["test"], shuffled[1]) < 0.1


def found_again(way, views):
    """Share of tiles whose nearest neighbour among *all* tiles of all stains is the same place in another stain."""
    all_ = np.concatenate([way(tiles) for tiles in views])
    order, _ = encoders.nearest(all_, all_, k=2)
    count = len(views[0])
    others = np.where(order[:, 0] == np.arange(len(all_)), order[:, 1], order[:, 0])
    return float((others % count == np.arange(len(all_)) % count).mean())


def test_the_same_tissue_is_found_again_under_another_stain():
    ways = {"tiny": encoders.get("tiny").embed, "colour": colour}
    score = {name: [] for name in ways}
    for seed in RESTAINED:
        views = [training.grid_tiles(seed, stain_batch=batch)[0] for batch in ("one", "two", "three")]
        assert max(np.abs(colour(views[0]) - colour(other)).mean() for other in views[1:]) > 4, "the stains must differ"
        for name, way in ways.items():
            score[name].append(found_again(way, views))
    print(score)
    assert min(score["tiny"]) > 0.95, score
    assert np.mean(score["tiny"]) > np.mean(score["colour"]) + 0.3, score


def test_brightness_does_not_dominate(tissue):
    """A darker lamp moves a tile less than the next tile is away; for the mean colour it is the other way round."""
    tiles = tissue["test"].tiles[::3]
    dark = (tiles * 0.85).astype(np.uint8)

    def moved(way):
        plain, changed = way(tiles), way(dark)
        spread = np.linalg.norm(plain - np.roll(plain, 1, axis=0), axis=1)
        return float(np.median(np.linalg.norm(changed - plain, axis=1)) / np.median(spread))

    tiny = moved(encoders.get("tiny").embed)
    print(tiny, moved(colour))
    assert tiny < 0.3 < moved(colour)


def test_nearest_tiles_are_alike(tissue, embedded):
    """Nearest tiles of other sections share the density better than random ones do."""
    train, test = embedded["tiny"]["train"], embedded["tiny"]["test"]
    order, _ = encoders.nearest(train, test, k=5)
    near = tissue["train"].density[order].mean(axis=1)
    assert np.corrcoef(near, tissue["test"].density)[0, 1] > 0.85


def test_the_loss_fell_and_nothing_collapsed(tissue, embedded):
    facts = json.loads((training.FOLDER / "tiny.json").read_text())["training"]
    assert facts["loss"][1] < 0.8 * facts["loss"][0] and facts["partners_found"] > 0.2

    def directions(name):
        spread = np.linalg.eigvalsh(np.cov(embedded[name]["test"].T))
        return spread.sum() ** 2 / (spread**2).sum()

    assert directions("tiny") > 2.5 > directions("random")


def test_a_collapsed_network_is_refused(random_twin):
    model = random_twin.backbone()
    model.set_weights([0 * weight for weight in model.get_weights()])
    pictures = [training.field(training.FIRST_SEED + k, size_um=300.0)[0] for k in range(8)]
    with pytest.raises(training.CourseError, match="failed"):
        training.check(model, [(20, 5.0, 0.0), (40, 1.0, 0.9)], pictures, settings.rng(0, "collapsed"))
    with pytest.raises(training.CourseError, match="failed"):
        training.check(random_twin.backbone(), [(20, 5.0, 0.0), (40, 5.0, 0.0)], pictures, settings.rng(0, "flat"))


def test_training_repeats_itself():
    """Two short trainings from one seed agree; the weights of another seed start elsewhere."""
    one, again = (training.train(steps=1, fields=8, seed=1000, size_um=300.0)[1][-1][1] for _ in range(2))
    assert one == pytest.approx(again, abs=1e-4)
    first, same, other = (training.network(seed).get_weights()[0] for seed in (1000, 1000, 1001))
    assert np.array_equal(first, same) and not np.allclose(first, other)

"""The virtual spinal cord: its anatomy, cells and picture, and that breast tissue did not change beside it."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.messages import CourseError
from helpers.virtual import anatomy, cells, cord, rendering

SIZE = (2300.0, 1900.0)


def grow(**changes):
    style = cord.CordStyle(**changes)
    grown = anatomy.grow(seed=5, section="c", size_um=SIZE, style=style, template="cord")
    return grown, cells.place(grown, seed=5, section="c")


@pytest.fixture(scope="module")
def healthy():
    return grow()


def test_a_cord_has_a_cord_s_size_and_its_parts(healthy):
    ground, placed = healthy
    mm2 = (ground.fields["tissue"] > 0).sum() * ground.grid_um**2 * 1e-6
    assert 1.8 < mm2 < 3.0
    grey = (ground.fields["grey"] > 0).sum() / (ground.fields["tissue"] > 0).sum()
    assert 0.2 < grey < 0.5
    assert ground.domains == cord.DOMAINS and set(np.unique(ground.domain)) == set(range(len(cord.DOMAINS)))
    assert list(placed.table["type"].cat.categories) == list(cord.TYPES)
    assert (placed.table["type"].value_counts() > 0).all()
    density = len(placed.table) / mm2
    assert 1200 < density < 2600  # a detector finds 1200-1800 in real cords


def test_cells_lie_where_they_belong(healthy):
    _, placed = healthy
    where = placed.table.groupby("type", observed=True)["domain"].value_counts(normalize=True).unstack(fill_value=0)
    assert where.loc["motor_neuron", "ventral_horn"] > 0.95
    assert where.loc["neuron", ["dorsal_horn", "ventral_horn"]].sum() > 0.95
    assert where.loc["oligodendrocyte", "white_matter"] > 0.6
    area = placed.table.groupby("type", observed=True)["area_um2"].median()
    assert area["motor_neuron"] > area["neuron"] > area["astrocyte"] > area["oligodendrocyte"] > area["microglia"]


def test_the_disease_s_knobs_do_what_they_say(healthy):
    before = healthy[1].table["type"].value_counts()
    after = grow(motor_neurons=0.3, glia=1.8)[1].table["type"].value_counts()
    assert after["motor_neuron"] < 0.5 * before["motor_neuron"]
    for kind in ("astrocyte", "microglia"):
        assert 1.5 < after[kind] / before[kind] < 2.1
    assert abs(after["oligodendrocyte"] / before["oligodendrocyte"] - 1) < 0.1


def test_the_same_seed_gives_the_same_cord_and_another_does_not(healthy):
    again = grow()[1].table
    assert again.equals(healthy[1].table)
    other = anatomy.grow(seed=6, section="c", size_um=SIZE, style=cord.CordStyle(), template="cord")
    assert not np.array_equal(other.domain, healthy[0].domain)


def test_the_picture_has_a_pink_white_matter_and_a_blue_grey_matter(healthy):
    ground, placed = healthy
    slide = rendering.render(
        ground, placed, rendering.base_stain("cord"), mpp=1.4, seed=5, section="c"
    )
    assert slide.image.shape == (1357, 1643, 3)
    step = ground.grid_um / 1.4
    rows, columns = (np.clip(((np.arange(n) + 0.5) * step).astype(int), 0, m - 1)
                     for n, m in zip(ground.shape, slide.image.shape))  # fmt: skip
    small = slide.image[np.ix_(rows, columns)].astype(float)
    domain = ground.domain
    colour = {name: np.median(small[domain == code], axis=0) for code, name in enumerate(cord.DOMAINS)}
    assert colour["glass"].min() > 215
    redness = {name: value[0] - value[2] for name, value in colour.items()}
    assert redness["white_matter"] > redness["ventral_horn"] + 5
    assert colour["white_matter"].mean() < 200


def test_a_cord_has_no_folds():
    with pytest.raises(CourseError, match="folds"):
        anatomy.grow(seed=0, section="c", size_um=SIZE, style=cord.CordStyle(), template="cord", folds=1)

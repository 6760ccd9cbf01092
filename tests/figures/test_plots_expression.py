"""Figures of notebooks 04 and 05: what is drawn is what was given."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import plots_explain, plots_expression
from tests.unit.make import disc_section

RNG = np.random.default_rng(0)


def test_spot_maps_draw_every_value_and_share_a_scale_within_a_unit():
    section = disc_section()
    n = section.tables["counts"].n_obs
    low, high, sd = np.linspace(0, 1, n), np.linspace(2, 3, n), np.linspace(5, 6, n)
    columns = {"measured": "log", "predicted": "log", "sd": "sd"}
    figure = plots_expression.spot_maps(section, {"A": (low, high, sd)}, columns=columns)
    picture, *panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert any(isinstance(one, ScaleBar) for one in picture.artists)
    drawn = [axis.collections[0] for axis in panels]
    assert [len(dots.get_array()) for dots in drawn] == [n] * 3
    assert np.allclose(drawn[1].get_array(), high)
    assert drawn[0].get_clim() == drawn[1].get_clim() != drawn[2].get_clim()
    assert all(axis.get_ylim()[0] > axis.get_ylim()[1] for axis in panels)  # the origin is at the top


def test_the_scoreboard_has_a_box_a_model_and_a_dot_a_gene():
    table = pd.DataFrame({"model": ["ours"] * 20 + ["ridge"] * 20, "pearson": RNG.normal(size=40)})
    assert [len(plots_expression.scoreboard(table).axes)] == [1]
    kinds = ["yes"] * 8 + ["no"] * 4
    figure = plots_expression.scoreboard(table, ceiling=np.ones(12), reached=np.linspace(0, 1, 12), kinds=kinds)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "ridge"]
    assert [len(line.get_xdata()) for line in second.lines[:3]] == [8, 0, 4]


def test_calibration_ensembles_and_shifts_show_their_numbers():
    figure = plots_expression.calibration((0.5, 0.9), {"a": (0.4, 0.8)}, {"a": np.ones(10)})
    assert np.allclose(figure.axes[0].lines[1].get_ydata(), (0.4, 0.8)) and len(figure.axes[1].patches) == 10
    figure = plots_expression.single_and_ensemble(RNG.normal(size=(3, 4)), np.array([1.0, 2, 3]))
    line = next(line for line in figure.axes[0].lines if line.get_label() == "ensemble of the group")
    assert np.allclose(line.get_ydata(), [1, 2, 3])
    figure = plots_expression.shifted({"here": np.arange(1.0, 9), "there": np.arange(11.0, 19)}, label="variance")
    assert figure.axes[0].get_xscale() == "log"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["here", "there"]


def test_the_laws_are_drawn_as_they_are_stated():
    figure = plots_expression.mean_variance(np.array([0.1, 1, 10]), np.array([0.2, 2, 60]), 2.0)
    poisson, binomial = figure.axes[0].lines[1:3]
    assert np.allclose(poisson.get_xdata(), poisson.get_ydata())
    assert np.allclose(binomial.get_ydata(), binomial.get_xdata() + binomial.get_xdata() ** 2 / 2)


def test_right_wrong_and_missed_nuclei_differ_in_colour():
    label, true = np.zeros((40, 40), np.int32), np.zeros((40, 40), np.int32)
    label[5:12, 5:12] = true[5:12, 5:12] = 1
    label[25:32, 5:12], true[25:32, 25:32] = 2, 2
    tile = np.full((40, 40, 3), 200, np.uint8)
    figure = plots_explain.nuclei([tile], [label], ["x"], mpp=0.5, drawn=[true], matched=[np.array([[1, 1]])])
    handles = figure.legends[0].legend_handles
    colours = np.array([[int(to_hex(handle.get_color())[i : i + 2], 16) for i in (1, 3, 5)] for handle in handles])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(3)
    assert len(colours) == 3 and apart.min() > 100

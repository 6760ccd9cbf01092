"""Figures of notebook 07: what is drawn is what was given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import deepspot_bags, plots_deepspot
from helpers import section as sec
from helpers.messages import CourseError
from tests.unit.make import counts_table, disc_section

matplotlib.use("Agg")
RNG = np.random.default_rng(0)


def test_a_spot_is_drawn_with_the_neighbours_it_has():
    section = disc_section()
    xy = sec.xy(section) * sec.mpp(section)
    index, mask = deepspot_bags.neighbours(xy, deepspot_bags.lattice(xy))
    for spot in (int(mask.sum(1).argmax()), int(mask.sum(1).argmin())):
        figure = plots_deepspot.bags(section, spot, index, mask, tile_um=55.0)
        wide, near = figure.axes
        assert len(wide.patches) == mask[spot].sum() + 1 and any(isinstance(a, ScaleBar) for a in wide.artists)
        assert len(near.lines) == 4  # three by three
    lone = plots_deepspot.bags(section, 0, index, np.zeros_like(mask), tile_um=55.0)
    assert len(lone.axes[0].patches) == 1


def test_contexts_show_a_bar_a_row_and_a_dot_a_fold():
    table = pd.DataFrame({"row": ["spot", "both", "ridge"] * 2, "fold": ["a"] * 3 + ["b"] * 3, "score": np.arange(6.0)})
    figure = plots_deepspot.contexts({"one": table, "two": table}, value="score", ceilings={"one": 4.0})
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["spot", "both", "ridge"]
    assert [patch.get_width() for patch in first.patches] == [1.5, 2.5, 3.5]
    assert [len(line.get_xdata()) for line in second.lines] == [2, 2, 2] and len(first.lines) == 4
    few = plots_deepspot.contexts({"few": table[table["row"] != "both"], "all": table}, value="score").axes[0]
    assert [patch.get_y() + 0.35 for patch in few.patches] == [0, 2]  # each row keeps its place


def test_scales_share_their_axes():
    target = np.linspace(0, 2, 9)
    figure = plots_deepspot.scales(target, {"once": target, "twice": 3 * target}, label="log1p CP10k")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["once", "twice"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert np.array_equal(figure.axes[1].lines[0].get_ydata(), 3 * target)


def test_a_slide_shows_a_square_a_place():
    section = disc_section()
    n = len(sec.xy(section))
    figure = plots_deepspot.on_slide(section, {"A": np.arange(n), "B": np.ones(n)}, tile_um=100.0, label="log1p")
    panels = [axis for axis in figure.axes if axis.collections and axis.images]
    assert [axis.get_title(loc="left") for axis in panels] == ["A", "B"]
    assert len(panels[0].collections[0].get_paths()) == n and panels[0].collections[0].get_clim() == (0, n - 1)


def test_squidpy_draws_the_genes_a_tcga_slide_has():
    table = counts_table(25)
    table.var_names = ["SOX10", "CD37", "COL1A1", *table.var_names[3:]]
    table.X = table.X.toarray().astype(np.float32)
    table.obsm["spatial"] = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2) * 100
    figure = plots_deepspot.tcga(table)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left") in ("SOX10", "CD37", "COL1A1")]
    assert len(panels) == 3
    drawn = panels[0].collections[0]
    assert np.array_equal(np.sort(drawn.get_array()), np.sort(table[:, "SOX10"].X.ravel()))
    assert len([axis for axis in plots_deepspot.tcga(table[:, 2:]).axes if axis.get_title(loc="left") == "COL1A1"]) == 1
    with pytest.raises(CourseError):
        plots_deepspot.tcga(table[:, 3:])

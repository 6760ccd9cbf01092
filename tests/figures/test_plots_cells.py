"""Figures of notebook 08: what is drawn lies where it should and has the scale it says."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from matplotlib.collections import PolyCollection
from matplotlib_scalebar.scalebar import ScaleBar

from helpers import plots_cells, plots_xenium, pseudospots_patches

VIEW = SimpleNamespace(
    rgb=np.full((100, 100, 3), 220, np.uint8), mpp=0.5, corner=np.array([10, 20]), cells=np.array([1, 2]),
    outlines=[np.array([[5, 5], [15, 5], [15, 15], [5, 15.0]]), np.array([[50, 50], [60, 50], [60, 70.0]])],
)  # fmt: skip


def polygons(axis):
    return [one for one in axis.collections if isinstance(one, PolyCollection)]


def test_cells_in_and_out_of_spots_have_their_colours_and_places():
    made = pseudospots_patches.build([[80, 80], [90, 90.0]], um_per_unit=0.5, extent=(320, 320))
    figure = plots_cells.bags(VIEW, [False, True, False], made)
    axis = figure.axes[0]
    inside, outside = polygons(axis)[:2]
    assert np.allclose(inside.get_paths()[0].vertices[:4], VIEW.outlines[0])
    assert inside.get_edgecolor()[0].tolist() != outside.get_edgecolor()[0].tolist()
    assert any(isinstance(one, ScaleBar) for one in axis.artists)
    assert axis.get_ylim() == (100, 0), "the origin is at the top left"


def test_a_marker_is_drawn_from_each_source_and_empty_cells_stay_empty():
    panels = {"truth": np.array([1.0, 2.0]), "this model": np.array([3.0, np.nan])}
    figure = plots_cells.marker(VIEW, panels, ["immune", ""], gene="KRT8")
    drawn = [polygons(axis)[0] for axis in figure.axes[1:3]]
    assert [len(one.get_paths()) for one in drawn] == [2, 1]
    assert drawn[0].get_array().tolist() == [1, 2] and "KRT8" in figure.axes[1].get_title(loc="left")
    from matplotlib.colors import to_rgb

    types = polygons(figure.axes[3])[0]
    assert np.allclose(types.get_facecolor()[0][:3], to_rgb(plots_xenium.CLASS_COLOURS["immune"]))


def test_slopes_curves_and_bars_say_what_they_were_given():
    x = np.linspace(0.2, 3, 12)
    figure = plots_cells.lone({"sum": (0.9 + 0.1 * x, x, 10.0), "rates": (x, x, 1.0)})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["as said", "sum: slope 10", "rates: slope 1"]
    assert np.allclose(figure.axes[0].lines[2].get_xydata(), np.c_[x, x])
    figure = plots_cells.curves({"OOS": {"a": np.array([0.1, 0.5, 0.3]), "b": np.zeros(3)}})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.3, 0.1]
    figure = plots_cells.bars(pd.DataFrame({"IS": [0.1, 0.2]}, index=["a", "b"]), label="r")
    assert sorted(patch.get_height() for patch in figure.axes[0].patches) == [0.1, 0.2]

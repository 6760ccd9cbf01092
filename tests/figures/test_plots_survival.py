"""Figures of notebook 09: what is written on them is what was measured."""

import numpy as np
import pandas as pd
import pytest

from helpers import plots_survival, response, settings, survival, survival_curves


@pytest.fixture(scope="module")
def outcomes():
    rng = settings.rng(0, "plots survival")
    time = rng.uniform(1, 100, 60).round(1)
    return time, rng.random(60) < 0.5, np.arange(60) < 30


def test_curves_have_their_numbers_at_risk(outcomes):
    time, event, high = outcomes
    sides = {"low": (survival_curves.kaplan_meier(time[~high], event[~high]), time[~high]),
             "high": (survival_curves.kaplan_meier(time[high], event[high]), time[high])}  # fmt: skip
    figure = plots_survival.kaplan_meier({"bulk": sides, "predicted": sides}, moments=[0, 50])
    written = [[text.get_text() for text in axis.texts] for axis in figure.axes[2:]]
    later = [str((time[rows] >= 50).sum()) for rows in (~high, high)]
    assert written == [["30", later[0], "30", later[1]]] * 2
    assert len(figure.axes[0].collections) == 2  # the bands
    line = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line[:-1], sides["low"][0]["survival"])
    assert len({one.get_linestyle() for one in figure.axes[0].lines}) == 2  # not by colour alone


def test_hazards_leave_out_what_could_not_be_fitted(outcomes):
    time, event, _ = outcomes
    x = settings.rng(1, "genes").normal(size=(60, 20))
    x[:, 3] = 1.0
    table = survival.univariate(x, time, event, names=[f"G{i}" for i in range(20)])
    table["q"] = survival.benjamini_hochberg(table["p"])
    figure = plots_survival.hazards(table, shown=5, known=["G1"], title="t")
    drawn = sum(len(one.get_offsets()) for one in figure.axes[0].collections)
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert drawn == 19 and names == list(table["p"].nsmallest(5).index)


def test_models_are_written_with_their_scores():
    table = pd.DataFrame({"c": [0.6, 0.55], "low": [0.5, 0.45], "high": [0.7, 0.65]}, index=["ours", "age"])
    figure = plots_survival.models(table, null=np.linspace(0.45, 0.55, 11), best=0.8)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.600", "0.550"]
    assert {"chance", "attainable"} <= {text.get_text() for text in figure.axes[0].get_legend().get_texts()}


def test_the_leak_has_four_numbers():
    figure = plots_survival.leak({"as run": (0.55, [0.49, 0.51]), "leaky": (0.61, [0.58, 0.60])})
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.550", "0.500", "0.610", "0.590"}


def test_response_and_agreement_are_drawn():
    rng = settings.rng(0, "agreement")
    complete = np.arange(40) < 12
    rated = response.rate(rng.normal(size=(40, 4)) + complete[:, None], complete, repeats=1, times=7)
    figure = plots_survival.response({"bulk": rated})
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == f"bulk: AUC {rated.nested.mean:.2f}"
    assert len(figure.axes[2].lines[0].get_xdata()) == 7
    seen = np.arange(30) < 9
    both = plots_survival.agreement(rng.random(20), rng.random(30), mean_profile=rng.random(20), known=seen)
    words = [text.get_text() for text in both.axes[1].get_legend().get_texts()]
    assert len(words) == 2 and all("median" in word for word in words)

"""The virtual ALS cohort: its design holds, the readers read it, and no single view gives p30 against p70 away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers import readers
from helpers.messages import CourseError
from helpers.settings import rng
from helpers.virtual import als, cord


def test_the_cohort_is_balanced_over_ages_slides_and_the_null_twin():
    table = als.members(3)
    mice = table.drop_duplicates("animal")
    assert len(mice) >= 24 and len(table) == len(set(table["section_id"]))
    assert set(mice["stage"]) == set(als.STAGES) and mice["stage"].value_counts().nunique() == 1
    assert (table.groupby("slide")["stage"].nunique() == 4).all()  # stain and age are not confounded
    assert (pd.crosstab(mice["stage"], mice["fake_stage"]) == als.PER_STAGE // 4).all(axis=None)
    held = mice[mice["number"] >= als.PER_STAGE - als.HELD_OUT]
    assert (held["stage"].value_counts() == als.HELD_OUT).all()
    assert set(als.default_test()) == set(table["section_id"][table["animal"].isin(held["animal"])])
    again = als.members(3)
    assert table.equals(again) and not table.equals(als.members(4))


def simulate(seed: int, n: int = 120):
    """Mean log gene shares and log glia numbers of many animals of p30 and p70, from the cohort's own rates."""
    stream, (table, _) = rng(seed, "test als"), als.panel()
    area, genes, glia, label = np.pi * 0.05**2, [], [], []
    for code, stage in enumerate(("p30", "p70")):
        for _ in range(n):
            grey = stream.beta(0.4, 0.5, 57)
            own = np.exp(als.GLIA_SPREAD * stream.uniform(-1, 1))
            motor = als.COURSE.motor_neurons[stage] * np.exp(als.MOTOR_SPREAD * stream.uniform(-1, 1))
            density = {
                "motor_neuron": 60 * motor * grey, "neuron": 430 * grey, "oligodendrocyte": 520 - 280 * grey,
                "astrocyte": own * (330 + 130 * grey), "microglia": own * (200 + 70 * grey),
                "endothelial": 150 + 0 * grey, "ependymal": 1 + 0 * grey, "meningeal": 20 + 0 * grey,
            }  # fmt: skip
            cells = stream.poisson(np.stack([density[kind] for kind in cord.TYPES], 1) * area).astype(float)
            shift = als.ANIMAL_SD * stream.standard_normal(len(table))
            rate = als.rates(cells, grey, activity=als.COURSE.activity[stage], shift=shift)
            genes.append(np.log(rate.sum(0) / rate.sum()))
            glia.append([np.log(cells[:, 3:5].sum(1).mean())])
            label.append(code)
    return np.array(genes), np.array(glia), np.array(label)


def test_neither_view_alone_tells_p30_from_p70_and_both_together_do():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    genes, glia, label = simulate(0)
    groups = als.panel()[0]["group"].to_numpy()
    genes = np.stack([genes[:, groups == name].mean(1) for name in np.unique(groups)], 1)

    def score(x):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return cross_val_score(model, x, label, cv=10).mean()

    assert score(glia) < 0.62
    assert score(genes) < 0.80
    assert score(np.c_[genes, glia]) > 0.93


def test_rates_keep_the_depth_and_follow_the_cells():
    table, profile = als.panel()
    assert np.allclose(profile.sum(1), 1) and (profile > 0).all() and table["symbol"].is_unique
    cells = np.full((4, len(cord.TYPES)), 2.0)
    cells[1, cord.TYPES.index("motor_neuron")] = 4
    cells[2, cord.TYPES.index("astrocyte")] = 8
    rate = als.rates(cells, np.full(4, 0.5), activity=1.0, shift=np.zeros(len(table)))
    assert rate.sum(1).mean() == pytest.approx(als.DEPTH, rel=1e-6)
    share = pd.DataFrame(rate / rate.sum(1, keepdims=True), columns=table["symbol"])
    assert share["Chat"][1] > 1.4 * share["Chat"][0] and share["Gfap"][2] > 2 * share["Gfap"][0]
    busy = als.rates(cells, np.full(4, 0.5), activity=2.0, shift=np.zeros(len(table)))
    busy = pd.DataFrame(busy / busy.sum(1, keepdims=True), columns=table["symbol"])
    assert busy["Gfap"][0] > 1.6 * share["Gfap"][0]


def test_a_section_is_written_and_read_back(tmp_path):
    member = als.members(0).iloc[0].to_dict()
    als._make(str(tmp_path), member, 0)
    als._metadata(tmp_path, als.members(0).iloc[:1], "stage")
    (ref,) = readers.discover(tmp_path / "sections", dataset="virtual_als")
    assert ref.subject_id == member["animal"] and ref.labels["age"] == member["stage"] and ref.platform == "st"
    section = readers.read(ref)
    counts = section.tables["counts"]
    assert section.attrs["mpp"] == pytest.approx(als.MPP, rel=0.01)
    assert 35 <= counts.n_obs <= 80 and 1500 < np.median(np.asarray(counts.X.sum(1))) < 8000
    truth = pd.read_parquet(tmp_path / "truth" / ref.section_id / "spots.parquet")
    assert list(truth["spot"]) == list(counts.obs_names)
    glia = truth["n_astrocyte"] + truth["n_microglia"]
    names = als.panel()[0].query("group in ['astrocyte', 'microglia']")["symbol"]
    seen = np.asarray(counts[:, counts.var_names.isin(names)].X.sum(1)).ravel() / np.asarray(counts.X.sum(1)).ravel()
    assert np.corrcoef(seen, glia)[0, 1] > 0.6


def test_unknown_data_set_is_refused():
    with pytest.raises(CourseError, match="virtual_al"):
        als.ensure("virtual_alz")

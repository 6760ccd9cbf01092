"""Patients as the unit, and agreement with bulk both ways."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers import bulk, settings
from helpers.messages import CourseError


def cohort(n=40, genes=60, *, own=0.5, seed=0):
    """Predicted and measured log expression: genes differ a lot, patients a little; ``own`` is what is predicted."""
    stream = settings.rng(seed, "test bulk")
    abundance, patient = stream.normal(5, 2, genes), stream.normal(0, 0.4, (n, genes))
    noise = stream.normal(0, 0.4, (n, genes))
    names, symbols = [f"P{i:02d}" for i in range(n)], [f"G{i}" for i in range(genes)]
    predicted = abundance + own * patient + np.sqrt(1 - own**2) * noise
    return tuple(pd.DataFrame(x, names, symbols) for x in (predicted, abundance + patient))


def test_tiles_weigh_the_same_whatever_slide_they_lie_on():
    stream = settings.rng(1, "test bulk")
    tiles = stream.normal(size=(30, 4))
    slide = np.repeat(["a", "b", "c"], [5, 20, 5])
    of = {"a": "P2", "b": "P2", "c": "P1"}
    means = pd.DataFrame(tiles).groupby(slide).mean()
    out = bulk.per_patient(means, [of[s] for s in means.index], weights=[5, 20, 5])
    assert list(out.index) == ["P1", "P2"] and out.attrs["slides"] == {"P1": 1, "P2": 2}
    assert np.allclose(out.loc["P2"], tiles[:25].mean(0)) and np.allclose(out.loc["P1"], tiles[25:].mean(0))
    plain = bulk.per_patient(means, [of[s] for s in means.index])
    assert np.allclose(plain.loc["P2"], means.loc[["a", "b"]].mean()) and not np.allclose(plain, out)


@pytest.mark.parametrize("bad", [
    {"weights": [1, 1]}, {"weights": [1, 1, -1]}, {"weights": [0, 1, 1]}, {"weights": [1, 1, np.nan]},
    {"values": np.full((3, 2), np.nan)}, {"patient_of": ["a", "b"]},
])  # fmt: skip
def test_aggregation_refuses(bad):
    options = {"values": np.ones((3, 2)), "patient_of": ["a", "b", "b"], "weights": [1, 1, 1], **bad}
    with pytest.raises(CourseError):
        bulk.per_patient(options["values"], options["patient_of"], weights=options["weights"])


def test_counts_per_million_do_not_know_depth():
    counts = pd.DataFrame([[1, 3, 6], [100, 300, 600]], ["A", "B"], ["x", "y", "z"])
    out = bulk.log_cpm(counts)
    assert np.allclose(out.loc["A"], out.loc["B"]) and np.isclose(out.loc["A", "x"], np.log2(1e5 + 1))
    for wrong in (counts - 5, counts * 0, counts * np.nan, pd.concat([counts, counts])):
        with pytest.raises(CourseError):
            bulk.log_cpm(wrong)


def test_standardising_learns_from_the_training_patients_alone():
    train, other = np.array([[0.0, 7.0], [2.0, 7.0]]), np.array([[100.0, 9.0]])
    inside, outside = bulk.standardise(train, other)
    assert np.allclose(inside, [[-1, 0], [1, 0]]) and np.allclose(outside, [[99, 0]])


def test_a_model_of_the_mean_profile_agrees_across_genes_and_not_across_patients():
    predicted, measured = cohort(own=0.0)
    found = bulk.agreement(predicted, measured)
    assert found.patients["pearson"].mean() > 0.9 and found.patients["null_pearson"].mean() > 0.9
    assert found.patients["gain"].mean() < 0.005
    assert abs(found.genes["pearson"].median()) < 0.1 and (found.genes["q"] < 0.05).mean() < 0.05


def test_a_model_that_knows_patients_shows_it_within_genes():
    predicted, measured = cohort(own=0.6, n=120)
    found = bulk.agreement(predicted, measured)
    assert 0.5 < found.genes["pearson"].median() < 0.7 and (found.genes["q"] < 0.05).mean() > 0.9
    from scipy.stats import pearsonr, spearmanr

    r = pearsonr(predicted["G3"], measured["G3"])
    assert np.isclose(found.genes.loc["G3", "pearson"], r[0]) and np.isclose(found.genes.loc["G3", "p"], r[1])
    assert np.isclose(found.genes.loc["G3", "spearman"], spearmanr(predicted["G3"], measured["G3"])[0])
    one = pearsonr(predicted.loc["P07"], measured.loc["P07"])[0]
    assert np.isclose(found.patients.loc["P07", "pearson"], one)
    rest = predicted.drop(index="P07").mean()
    assert np.isclose(found.patients.loc["P07", "null_pearson"], pearsonr(rest, measured.loc["P07"])[0])


def test_tables_are_matched_by_name_never_by_position():
    predicted, measured = cohort(own=0.6)
    shuffled = measured.sample(frac=1, random_state=0).sample(frac=1, random_state=1, axis=1)
    a, b = bulk.agreement(predicted, measured), bulk.agreement(predicted, shuffled.drop(index="P00"))
    c = bulk.agreement(predicted.drop(index="P00"), measured)
    assert "P00" not in b.patients.index and np.allclose(b.genes.loc[c.genes.index], c.genes)
    assert len(a.patients) == len(b.patients) + 1


def test_constant_genes_and_strangers():
    predicted, measured = cohort()
    predicted["G0"] = 3.0
    found = bulk.agreement(predicted, measured)
    assert np.isnan(found.genes.loc["G0", "pearson"]) and found.genes.loc["G0", "q"] == 1
    for wrong in (measured.T, measured.rename(index=lambda name: f"x{name}"), measured * np.nan,
                  pd.concat([measured, measured])):  # fmt: skip
        with pytest.raises(CourseError):
            bulk.agreement(predicted, wrong)

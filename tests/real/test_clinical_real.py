"""The clinical tables of TCGA and of Hess et al., and what is known of them."""

import numpy as np
import pytest

from helpers import readers_clinical, response, settings, survival, survival_cv
from helpers.readers_clinical_files import is_here

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def brca():
    if not is_here("tcga_brca"):
        pytest.skip("tcga_brca is not in COURSE_DATA")
    return readers_clinical.cohort("tcga_brca", also="tcga_pam50")


def test_tcga_breast_has_its_patients_deaths_and_genes(brca):
    facts = brca.patients
    assert len(facts) == 956 and facts["event"].sum() == 130 and len(brca.slides) == 1022
    assert np.unique(facts["time"][facts["event"]]).size == 127 and facts["age"].notna().all()
    if is_here("tcga_pam50"):
        assert len(brca.joined) == 50 and brca.expression.shape == (956, 1601)
    assert (survival.common_value(brca.expression) <= survival_cv.MAX_COMMON).sum() == 1387


def test_age_and_t_cells_go_with_survival(brca):
    facts = brca.patients
    time, event, age = facts["time"], facts["event"], readers_clinical.ages(facts)
    found = survival_cv.cross_validate(np.empty((956, 0)), time, event, extra=age, repeats=20)
    assert found.mean == pytest.approx(0.637, abs=0.006)
    cells = ["KLRB1", "CCR7", "CD5", "LTB", "CD3E"]
    fit = survival.univariate(survival.rank_normal(brca.expression[cells])[0], time, event, names=cells)
    assert (fit["beta"] < -0.2).all() and (fit["p"] < 0.02).all()
    assert fit.loc["KLRB1", "beta"] == pytest.approx(-0.38, abs=0.02)


def test_five_genes_chosen_inside_the_fold_say_little_and_the_leak_says_more(brca):
    facts = brca.patients
    x = brca.expression[survival.panel(brca.expression, 300, first=brca.joined, seed=0)]
    clean, leaky = (survival_cv.cross_validate(x, facts["time"], facts["event"], repeats=20, label_leak=leak)
                    for leak in (False, True))  # fmt: skip
    low, high = clean.interval()
    assert 0.50 < clean.mean < 0.60 and low < 0.5 < high and leaky.mean > clean.mean + 0.02


def test_hess_responses_are_predicted_as_published():
    if not is_here("hess_pcr"):
        pytest.skip("hess_pcr is not in COURSE_DATA")
    table = readers_clinical.response("hess_pcr")
    assert table.x.shape == (133, 26) and table.complete.sum() == 34 and response.kind_of(table.x) == "log"
    found = response.nested(table.x.to_numpy(), table.complete, patient=table.patient, repeats=2)
    assert found.mean == pytest.approx(0.89, abs=0.03)
    dealt = settings.rng(0, "dealt").permutation(table.complete)
    assert abs(response.nested(table.x.to_numpy(), dealt, repeats=5, tune=False).mean - 0.5) < 0.2

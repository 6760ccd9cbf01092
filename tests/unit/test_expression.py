"""Virtual expression: the gene panel, rates, hidden fields, counts. Cells are a stand-in, no anatomy is grown."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from helpers.messages import CourseError
from helpers.virtual import expression, noise

NAMED = (
    "COX6C ERBB2 ESR1 GATA3 KRT5 CD24 CD52 CD63 CD74 VEGFA ATP1A1 B2M FASN SPARC TFF3 KRT8 KRT18 EPCAM ACTA2 COL1A1 "
    "PECAM1 VWF CD3D CD3E MS4A1 CD79A MZB1 CD68 LYZ ADIPOQ PLIN1"
).split()


def stand_in(seed=0, n=6000, size=800.0):
    """Cells without anatomy: types and surroundings drawn independently."""
    rng = np.random.default_rng(seed)
    kinds = list(expression.RNA_CONTENT)
    return pd.DataFrame(
        {
            "x_um": rng.random(n) * size,
            "y_um": rng.random(n) * size,
            "type": rng.choice(kinds, n),
            "area_um2": 28 * np.exp(0.3 * rng.standard_normal(n)),
            "haematoxylin": 1.3 + 0.3 * rng.standard_normal(n),
            "nest_edge_um": 60 * rng.standard_normal(n),
            "vessel_um": 300 * rng.random(n),
            "immune_um": -300 * rng.random(n),
            "density_per_mm2": 8000 * np.exp(0.4 * rng.standard_normal(n)),
            "fibre_alignment": rng.random(n),
        }
    )


GRID = np.stack(np.meshgrid(np.arange(60, 760, 100.0), np.arange(60, 760, 100.0)), -1).reshape(-1, 2)


def rates(cells=None, xy=GRID, seed=1, section="s", **options):
    cells = stand_in() if cells is None else cells
    return expression.expected(cells, xy, radius_um=27.5, depth=4000, seed=seed, section=section, **options)


# ---------------------------------------------------------------- panel
def test_panel_holds_the_genes_the_course_needs():
    table = expression.panel().table
    assert len(table) >= 600 and table["symbol"].is_unique and table["gene_id"].is_unique
    assert not set(NAMED) - set(table["symbol"])
    assert table["symbol"].str.startswith("MT-").sum() == 13
    assert (table["group"] == "housekeeping").sum() >= 20 and table["symbol"].str.match("RP[LS]").sum() >= 20
    assert (table["group"] == "hidden").sum() >= 50
    assert set(table["morphology"]) == {"yes", "partly", "no"} and (table["why"].str.len() > 20).all()


def test_gene_ids_follow_from_the_symbol_alone():
    table = expression.panel().table
    number = [int(hashlib.sha256(s.encode()).hexdigest()[:12], 16) % 10**10 for s in table["symbol"]]
    assert list(table["gene_id"]) == [f"ENSGV{n:010d}" for n in number]


def test_every_type_gives_the_same_total_and_flat_genes_none():
    genes = expression.panel()
    np.testing.assert_allclose(genes.weights.sum(1), 1 - genes.flat.sum(), rtol=1e-9)
    assert (genes.weights[:, genes.flat > 0] == 0).all() and (genes.weights >= 0).all()
    assert set(genes.table["group"][genes.flat > 0]) == {"housekeeping", "mitochondrial", "hidden"}


MARKS = {
    "EPCAM": "cancer_epithelial", "COL1A1": "fibroblast", "CD3D": "t_cell", "MS4A1": "b_cell", "MZB1": "plasma_cell",
    "VWF": "endothelial", "ADIPOQ": "adipocyte", "KRT5": "myoepithelial", "LYZ": "myeloid", "LTF": "normal_epithelial",
}  # fmt: skip


@pytest.mark.parametrize("gene, kind", MARKS.items())
def test_a_marker_is_highest_in_its_type(gene, kind):
    genes = expression.panel()
    assert genes.types[genes.weights[:, list(genes.genes).index(gene)].argmax()] == kind


# ---------------------------------------------------------------- rates
def test_rates_are_finite_positive_and_repeatable():
    first, second = rates(), rates()
    assert first.rate.shape == first.best.shape == (len(GRID), len(first.genes))
    assert np.isfinite(first.rate).all() and (first.rate > 0).all() and (first.best > 0).all()
    assert first.rate.tobytes() == second.rate.tobytes()
    assert rates(section="t").rate.tobytes() != first.rate.tobytes()
    assert rates(seed=2).rate.tobytes() != first.rate.tobytes()


def test_the_null_twin_does_not_look_at_the_cells():
    one, other = rates(stand_in(1), coupling=0), rates(stand_in(2, n=200), coupling=0)
    assert one.rate.tobytes() == other.rate.tobytes()
    assert rates(stand_in(1)).rate.tobytes() != rates(stand_in(2)).rate.tobytes()
    assert np.ptp(one.best / one.best.sum(1, keepdims=True), axis=0).max() < 1e-12


def test_no_cell_can_move_the_share_of_a_flat_gene():
    flat = expression.panel().flat > 0
    few = stand_in(2, n=300)
    few["type"] = "adipocyte"
    shares = [r.rate / r.rate.sum(1, keepdims=True) for r in (rates(), rates(few), rates(few, coupling=0.4))]
    np.testing.assert_allclose(shares[0][:, flat], shares[1][:, flat], rtol=1e-9)
    np.testing.assert_allclose(shares[0][:, flat], shares[2][:, flat], rtol=1e-9)
    assert np.abs(shares[0][:, ~flat] / shares[1][:, ~flat] - 1).max() > 0.5


def test_a_spot_without_cells_is_not_empty():
    far = rates(xy=np.array([[5000.0, 5000.0], [400.0, 400.0]]))
    assert (far.rate > 0).all() and far.rate[0].sum() < 0.4 * far.rate[1].sum()


def test_more_cells_more_counts_unless_null():
    many, few = stand_in(n=12000), stand_in(n=3000)
    assert rates(many).rate.sum() > 2 * rates(few).rate.sum()
    assert rates(many, coupling=0.25).rate.sum() > 1.3 * rates(few, coupling=0.25).rate.sum()


def test_patients_and_slides_shift_genes_not_spots():
    plain = rates(coupling=0).rate
    a = rates(coupling=0, patient_sd=0.5, patient="P1").rate
    b = rates(coupling=0, patient_sd=0.5, patient="P2").rate
    flat = expression.panel().flat > 0
    shift = np.log(a / plain)[:, flat]
    assert np.ptp(shift, axis=0).max() < 1e-9 and 0.35 < shift.std() < 0.65
    assert np.corrcoef(shift[0], np.log(b / plain)[0, flat])[0, 1] < 0.5
    assert np.abs(np.log(rates(slide_sd=0.1).rate / rates().rate)).mean() < 0.3


def test_subtypes_change_the_tumour():
    column = list(expression.panel().genes).index("ERBB2")
    assert rates(subtype="her2").rate[:, column].sum() > 2 * rates().rate[:, column].sum()
    np.testing.assert_array_equal(rates(subtype="her2", coupling=0).rate, rates(coupling=0).rate)


def test_swapping_draws_neighbours_together():
    def roughness(truth):
        return np.abs(np.diff(np.log(truth.rate.sum(1).reshape(7, 7)), axis=0)).mean()

    assert roughness(rates(swap=0.6)) < 0.8 * roughness(rates())


@pytest.mark.parametrize("bad", [{"coupling": 1.2}, {"coupling": -0.1}, {"swap": 2}, {"dropout": 1}])
def test_dials_out_of_range_are_refused(bad):
    with pytest.raises(CourseError, match="from 0 to 1"):
        rates(**bad)


def test_an_unknown_cell_type_is_refused():
    cells = stand_in()
    cells.loc[:, "type"] = "neuron"
    with pytest.raises(CourseError, match="neuron"):
        rates(cells)


def test_spot_members_against_brute_force():
    cells = stand_in(n=500)
    found = expression.spot_members(cells, GRID, 50.0).toarray()
    gap = np.hypot(*(GRID[:, None] - cells[["x_um", "y_um"]].to_numpy()[None]).transpose(2, 0, 1))
    np.testing.assert_array_equal(found, gap <= 50)


def test_hidden_fields_have_unit_variance_and_their_length():
    rng = np.random.default_rng(0)
    points = np.array([[0.0, 0.0], [100.0, 0.0], [400.0, 0.0]])
    field = np.concatenate([expression.smooth_fields(points, 50, length_um=100, rng=rng) for _ in range(200)], axis=1)
    assert abs(field.var() - 1) < 0.05
    assert abs(np.corrcoef(field)[0, 1] - np.exp(-0.5)) < 0.05 and abs(np.corrcoef(field)[0, 2]) < 0.05


# ---------------------------------------------------------------- counts
def test_counts_have_the_negative_binomial_mean_and_variance():
    rate, theta = np.full((4000, 2), 6.0), np.array([2.0, 8.0])
    truth = expression.Expected(rate, rate, np.array(["a", "b"]), theta, 0.0)
    counts = noise.draw(truth, np.ones(4000), rng=np.random.default_rng(0))
    assert counts.dtype == np.int32
    np.testing.assert_allclose(counts.mean(0), 6, rtol=0.05)
    np.testing.assert_allclose(counts.var(0), [6 + 36 / 2, 6 + 36 / 8], rtol=0.12)
    lossy = expression.Expected(truth.rate, truth.best, truth.genes, truth.theta, 0.5)
    np.testing.assert_allclose(noise.draw(lossy, np.ones(4000), rng=np.random.default_rng(0)).mean(0), 3, rtol=0.06)


def test_library_sizes_are_lognormal_around_one():
    library = noise.library_size(20000, seed=0, section="s", platform="st")
    assert abs(library.mean() - 1) < 0.02 and abs(np.log(library).std() - 0.4) < 0.01
    assert (library != noise.library_size(20000, seed=0, section="s", platform="visium")).all()


def test_correlations_against_numpy_and_constants():
    rng = np.random.default_rng(0)
    a, b = rng.random((30, 4)), rng.random((30, 4))
    a[:, 3] = 0.1
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)] + [0.0]
    np.testing.assert_allclose(noise.correlations(a, b), expected, atol=1e-12)

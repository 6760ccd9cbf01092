"""Virtual Visium HD: what cells give, where it falls, what bins hold, the twin without structure, the reference."""

import numpy as np
import pandas as pd
import pytest

from helpers import readers, runner_data, section
from helpers.messages import CourseError
from helpers.virtual.hd import counts, dataset, files, reference, truth_hd

SIZE_UM = 500.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_VIRTUAL", str(tmp_path_factory.mktemp("hd")))
        homes = {name: dataset.ensure(name, size_um=SIZE_UM, sections=("H1",), workers=1) for name in dataset.NAMES}
    return {name: (home, truth_hd.read(home, "H1")) for name, home in homes.items()}


@pytest.fixture(scope="module")
def sections(made):
    refs = {name: readers.discover(home / "sections", dataset=name)[0] for name, (home, _) in made.items()}
    return {name: readers.read(ref) for name, ref in refs.items()}


def _cells(n=4000, kind="Tumour", high_mt=False):
    return pd.DataFrame({"type": [kind] * n, "high_mt": [high_mt] * n})


# ---------------------------------------------------------------- cells
def test_the_panel_has_the_genes_of_the_source_and_no_gene_twice():
    table = counts.panel()
    assert 450 <= len(table) <= 560 and table["gene"].is_unique and table["gene_id"].is_unique
    assert table["mt"].sum() == 13 and (table.loc[table["mt"], "gene"].str.startswith("MT-")).all()
    assert set(table["marker_of"]) == {"", *counts.TYPES, counts.EXTRA}
    of = table.set_index("gene")["marker_of"]
    source = {"Tumour": "REG1A REG1B CEACAM6 TGFBI", "Fibroblast": "COL1A1 MMP2", "Macrophage": "LYZ SPP1",
              "Neutrophil": "SAT1 CSF3R FCGR3B S100A8", "Goblet": "FCGBP MUC2 CLCA1"}  # fmt: skip
    base = counts.base()
    for kind, names in source.items():
        for name in names.split():
            assert of[name] == kind and base[name].idxmax() == kind
    assert np.allclose(base.sum(axis=1), 1) and (base > 0).all().all()


def test_molecules_a_cell_are_negative_binomial_by_type_and_follow_the_profile():
    profile = counts.profiles(seed=0, patient="H1")
    assert np.allclose(profile.sum(axis=1), 1)
    for kind in ("Tumour", "Neutrophil"):
        given = counts.cell_counts(_cells(kind=kind), profile, seed=0, section="t")
        total = np.asarray(given.sum(axis=1)).ravel()
        mean = counts.UMI * counts.RNA_CONTENT[kind] / np.mean([counts.RNA_CONTENT[t] for t in counts.TYPES])
        assert total.mean() == pytest.approx(mean, rel=0.04)
        assert total.var() == pytest.approx(mean + mean**2 / counts.SIZE, rel=0.15)
        share = np.asarray(given.sum(axis=0)).ravel() / given.sum()
        assert np.corrcoef(share, profile.loc[kind])[0, 1] > 0.995
    other = counts.profiles(seed=0, patient="H2")
    assert 0.15 < np.log(other / profile).to_numpy().std() < 0.6  # patients differ


def test_damaged_cells_are_rich_in_mitochondrial_genes():
    profile, mt = counts.profiles(seed=0, patient="H1"), counts.panel()["mt"].to_numpy()
    for kind in counts.TYPES:
        for damaged in (True, False):
            given = counts.cell_counts(_cells(800, kind, damaged), profile, seed=0, section="t", umi=2000)
            share = np.asarray(given[:, mt].sum(axis=1)).ravel() / np.asarray(given.sum(axis=1)).ravel()
            assert (np.quantile(share, 0.02) > 0.25) if damaged else (np.quantile(share, 0.98) < 0.25)
            assert damaged or 0.025 < np.median(share) < 0.12


# ---------------------------------------------------------------- molecules
def _square(side, at=(50.0, 50.0)):
    return np.array([[[-1, -1], [1, -1], [1, 1], [-1, 1]]]) * side / 2 + np.array(at)


def test_molecules_lie_in_their_cell_more_of_them_in_the_nucleus_and_spread():
    from scipy import sparse

    given = sparse.csr_matrix(np.full((1, 2), 20_000, np.int32))
    cell, nucleus = _square(10.0), _square(4.0)
    still = counts.fall(given, cell, nucleus, seed=0, section="t", spread_um=0.0)
    away = np.abs(still.xy_um - 50).max(axis=1)
    assert away.max() <= 5 and len(away) == 40_000
    within = (away < 2).mean()
    assert within == pytest.approx(counts.IN_NUCLEUS + (1 - counts.IN_NUCLEUS) * 0.16, abs=0.01)
    outside = still.xy_um[away > 2]  # evenly: as many on each side, and no ring is empty
    assert np.allclose(outside.mean(axis=0), 50, atol=0.1)
    assert (np.abs(outside - 50).max(axis=1) > 4).mean() == pytest.approx(36 / 84, abs=0.01)
    spread = counts.fall(given, cell, nucleus, seed=0, section="t", spread_um=3.0)
    assert np.allclose((spread.xy_um - still.xy_um).std(axis=0), 3, rtol=0.02)
    assert (spread.gene == still.gene).all() and (spread.cell == still.cell).all()
    places = np.array([[10.0, 10.0]])
    more = counts.fall(given, cell, nucleus, seed=0, section="t", spread_um=0.0, ambient=0.1, tissue_um=places)
    stray = more.cell < 0
    assert stray.sum() == pytest.approx(4000, rel=0.1) and (np.abs(more.xy_um[stray] - 10) <= 1).all()


def test_bins_count_what_falls_in_them():
    drops = counts.Molecules(
        np.array([0, 0, 1, 1, 0]), np.array([0, 1, 1, -1, 0]),
        np.array([[0.5, 0.5], [3.5, 0.1], [3.9, 1.9], [2.1, 3.0], [-0.1, 1.0]]),
    )  # fmt: skip
    table = counts.bin_counts(drops, bin_um=2, side=2, n_genes=2).toarray()
    assert table.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    cells = pd.DataFrame({"type": ["Goblet", "Plasma"]})
    share = counts.bin_shares(drops, cells, bin_um=4, side=1)
    assert share.loc[0, "Goblet"] == pytest.approx(1 / 3) and share.loc[0, "Plasma"] == pytest.approx(2 / 3)


def test_larger_bins_are_sums_and_tissue_counts_by_its_2_um_bins():
    from scipy import sparse

    fine = sparse.csr_matrix(np.arange(19 * 19)[:, None])  # 38 um: four whole bins of 8 um and a half
    wide = files.summed(fine, size_um=38, bin_um=8).toarray().reshape(4, 4)
    every = np.arange(361).reshape(19, 19)
    assert wide[1, 2] == every[4:8, 8:12].sum() and wide.sum() == every[:16, :16].sum()
    tissue = np.zeros((38, 38), bool)
    tissue[8:10, 16:18] = True  # one 2 um bin
    under = files.under_tissue(tissue, size_um=38, bin_um=8)
    assert np.flatnonzero(under).tolist() == [1 * 4 + 2]
    assert np.flatnonzero(files.under_tissue(tissue, size_um=38, bin_um=2)).tolist() == [4 * 19 + 8]


# ---------------------------------------------------------------- the data set
def test_truth_and_section_tell_the_same(made, sections):
    known, table = made["virtual_hd"][1], sections["virtual_hd"].tables["counts"]
    cells, given = known.cells, known.cell_counts
    assert list(known.genes["gene"]) == list(known.profiles.columns)
    assert set(table.var_names) <= set(known.genes["gene"])
    assert given.shape == (len(cells), len(known.genes)) and given.dtype == np.int32
    assert (np.asarray(given.sum(axis=1)).ravel() == cells["umi"]).all()
    assert len(known.nuclei) == len(known.outlines) == len(cells)
    assert np.allclose(cells["x_px"], cells["x_um"] / 0.5) and (cells["type"] == cells["drawn_type"]).all()
    assert {"island", "high_mt", "domain", "cell_id", "y_px"} <= set(cells) and set(cells["type"]) <= set(counts.TYPES)
    at = (cells[["y_um", "x_um"]].to_numpy() / known.grid_um).astype(int)
    assert (np.array(known.domains)[known.domain[at[:, 0], at[:, 1]]] == cells["domain"]).mean() > 0.99
    assert known.tissue[at[:, 0], at[:, 1]].mean() > 0.99 and known.stain["dials"]["spread_um"] == 3
    assert np.linalg.norm(known.stain["haematoxylin"]) == pytest.approx(1, abs=0.05)
    assert 150 < cells["umi"].mean() < 260 and list(known.bin_shares.index) == list(table.obs_names)
    fine = sections["virtual_hd"].tables["bins_2um"].X.sum()
    assert 0.95 < fine / (given.sum() * (1 + counts.AMBIENT)) < 1  # a few spread over the edge
    sums = known.bin_shares.sum(axis=1)
    assert (np.isclose(sums, 1, atol=1e-5) | (sums == 0)).all() and (sums == 0).mean() < 0.05


def test_bins_express_the_types_whose_molecules_they_hold(made, sections):
    known, table = made["virtual_hd"][1], sections["virtual_hd"].tables["counts"]
    deep = np.asarray(table.X.sum(axis=1)).ravel() >= 30
    for kind in ("Tumour", "Fibroblast", "T cell", "Plasma", "Enterocyte"):
        markers = [g for g in known.genes.query("marker_of == @kind")["gene"] if g in table.var_names]
        score = np.asarray(table[:, markers].X.sum(axis=1)).ravel() / np.asarray(table.X.sum(axis=1)).ravel()
        assert np.corrcoef(score[deep], known.bin_shares[kind][deep])[0, 1] > 0.75


def test_the_null_twin_has_the_picture_and_nothing_to_find(made, sections):
    (home, known), (home_null, null) = made["virtual_hd"], made["virtual_hd_null"]
    pictures = [h / "sections" / "H1" / "H1_tissue_image.tif" for h in (home, home_null)]
    assert pictures[0].samefile(pictures[1])
    assert (section.image(sections["virtual_hd"]) == section.image(sections["virtual_hd_null"])).all()
    assert (null.cells["drawn_type"] == known.cells["type"]).all()
    assert (null.cells[["x_um", "y_um", "domain"]] == known.cells[["x_um", "y_um", "domain"]]).all().all()
    assert sorted(null.cells["type"]) == sorted(known.cells["type"])
    assert null.cell_counts.sum() == known.cell_counts.sum()
    share = known.cells["type"].value_counts(normalize=True)
    chance, n = (share**2).sum(), len(known.cells)
    agree = (null.cells["type"] == null.cells["drawn_type"]).mean()
    assert abs(agree - chance) < 4 * np.sqrt(chance / n)

    def between(one):  # how much of the variance of tumour cells' places their domain tells
        tumour = (one.cells["type"] == "Tumour").to_numpy(float)
        return pd.Series(tumour).groupby(one.cells["domain"].to_numpy()).transform("mean").var() / tumour.var()

    assert between(known) > 0.5 and between(null) < 0.02
    dealt = null.cell_counts[:, (known.genes["gene"] == "MUC2").to_numpy()].toarray().ravel()
    mucous = null.cells["type"].isin(["Goblet"]).to_numpy()
    assert dealt[mucous].mean() > 10 * dealt[~mucous].mean()  # type and molecules went together


def test_the_reference_is_not_quite_the_tissue(made):
    import anndata

    table = anndata.read_h5ad(made["virtual_hd"][0] / "sections" / "reference.h5ad")
    number = table.obs["cell_type"].value_counts()
    assert 1300 < table.n_obs < 1700 and table.obs["donor"].nunique() == 4
    assert "Smooth muscle" not in number and number["Mast"] < 25 and number.drop("Mast").min() >= 50
    assert set(number.index) - {"Mast"} == set(counts.TYPES) - {"Smooth muscle"}
    assert (table.X.data == np.rint(table.X.data)).all() and table.X.min() >= 0
    profile = made["virtual_hd"][1].profiles
    shift = []
    for kind in ("Tumour", "Fibroblast"):
        own = np.asarray(table[table.obs["cell_type"] == kind].X.sum(axis=0)).ravel()
        expressed = (profile.loc[kind] > 1e-3).to_numpy()
        shift.append(np.log(own / own.sum() / profile.loc[kind])[expressed])
    assert 0.35 < shift[0].std() < 0.8
    common = shift[0].index.intersection(shift[1].index)
    assert np.corrcoef(shift[0][common], shift[1][common])[0, 1] > 0.6  # a platform's factor is a gene's, not a type's
    again = reference.reference(0)
    assert (again.X != table.X).nnz == 0 and (reference.reference(1).X[:5] != table.X[:5]).nnz > 0


def test_the_same_again_and_found_by_its_name(made, monkeypatch):
    home = made["virtual_hd"][0]
    monkeypatch.setenv("COURSE_VIRTUAL", str(home.parent))
    assert dataset.ensure(size_um=SIZE_UM, sections=("H1",)) == home
    known = made["virtual_hd"][1]
    redrawn = counts.cell_counts(known.cells, known.profiles, seed=0, section="H1")
    assert (redrawn != known.cell_counts).nnz == 0
    with pytest.raises(CourseError, match="virtual_hx"):
        dataset.ensure("virtual_hx")
    with pytest.raises(CourseError, match="no truth for section 'H9'"):
        truth_hd.read(home, "H9")
    monkeypatch.setattr(dataset, "ensure", lambda name, seed: home)
    data = runner_data.Data({"DATA": "virtual_hd", "SEED": 0})
    assert data.is_virtual and data.test == ["H1"] and isinstance(data.truth("H1"), truth_hd.HDTruth)
    assert data.load("H1", bin_um=16).attrs["bin_um"] == 16

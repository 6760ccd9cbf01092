"""Gene lists from names and files, and over-representation without a network."""

import csv

import numpy as np
import pytest
from scipy.stats import fisher_exact

from helpers import settings, signatures
from helpers.messages import CourseError

AVAILABLE = ["COX6C", "CD74", "KRT5", "VEGFA", "ACTB"]


def test_the_markers_of_the_paper():
    found = signatures.panel("markers14", AVAILABLE)
    assert found.genes == ("CD74", "COX6C", "VEGFA") and len(found.missing) == 11
    assert len(set(signatures.MARKERS14)) == 14


def test_most_variable_by_a_ranking_given():
    assert signatures.panel("hvg2", AVAILABLE, ranked=["KRT5", "ACTB", "CD74"]).genes == ("KRT5", "ACTB")
    with pytest.raises(CourseError, match="without a ranking"):
        signatures.panel("hvg2", AVAILABLE)
    with pytest.raises(CourseError, match="0 genes"):
        signatures.panel("HVG0", AVAILABLE, ranked=["KRT5"])


def gmt(tmp_path, text, name="sets.gmt", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_gmt_with_windows_ends_mark_weights_and_an_empty_set(tmp_path):
    text = "\ufeffONE\thttp://x\tCOX6C\tKRT5,1.0\tCOX6C\t\r\n\r\nEMPTY\tnothing\r\nTWO (b)\t\tNOPE\tACTB\r\n"
    path = gmt(tmp_path, text)
    assert signatures.read_gmt(path) == {"ONE": ["COX6C", "KRT5"], "TWO (b)": ["NOPE", "ACTB"]}
    assert signatures.panel(f"{path}:ONE", AVAILABLE).genes == ("COX6C", "KRT5")
    whole = signatures.panel(str(path), AVAILABLE)
    assert whole.genes == ("COX6C", "KRT5", "ACTB") and whole.missing == ("NOPE",)
    with pytest.raises(CourseError, match="gene set 'EMPTY'.*ONE, TWO"):
        signatures.panel(f"{path}:EMPTY", AVAILABLE)


@pytest.mark.parametrize("text, why", [
    ("ONE\tx\r\nTWO\ty\t\t", "none with a gene"), ("", "none with a gene"),
    ("ONE\tx\tA\nONE\tx\tB", "second time in line 2"),
    ("COX6C KRT5", "no name and genes between tabs in line 1"),
])  # fmt: skip
def test_bad_gmt_files_are_refused_by_name(tmp_path, text, why):
    with pytest.raises(CourseError, match=f"sets.gmt.*{why}"):
        signatures.read_gmt(gmt(tmp_path, text))


def test_files_that_are_missing_or_not_text(tmp_path):
    with pytest.raises(CourseError, match="no such file"):
        signatures.panel(str(tmp_path / "gone.gmt"), AVAILABLE)
    with pytest.raises(CourseError, match="no such file"):
        signatures.panel(str(tmp_path / "gone.txt"), AVAILABLE)
    with pytest.raises(CourseError, match="not a readable text"):
        signatures.read_gmt(gmt(tmp_path, "ONE\tx\tÄ", encoding="latin-1"))
    with pytest.raises(CourseError, match="gene panel 'tumour'"):
        signatures.panel("tumour", AVAILABLE)


def test_no_overlap_names_the_genes_and_hints_at_the_species(tmp_path):
    with pytest.raises(CourseError, match="none of the 14 genes.*another species"):
        signatures.panel("markers14", ["Cox6c", "Krt5"])
    with pytest.raises(CourseError, match="none of the 1 genes.*check the species"):
        signatures.panel(str(gmt(tmp_path, "S\tx\tXYZ")), AVAILABLE)


def test_text_file_and_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"# mine\r\nKRT5\tnote\r\n\"CD74\"\r\nKRT5\r\n\r\nNOPE # gone\r\n")
    found = signatures.panel(str(path), AVAILABLE)
    assert found.genes == ("KRT5", "CD74") and found.missing == ("NOPE",)
    assert signatures.panel("KRT5, ACTB", AVAILABLE).genes == ("KRT5", "ACTB")
    path.write_text("# nothing\n")
    with pytest.raises(CourseError, match="no gene name"):
        signatures.panel(str(path), AVAILABLE)


def test_the_programmes_of_the_virtual_tissue_are_those_of_its_gene_table(tmp_path):
    groups = {}
    with open(settings.ROOT / "data" / "genes.csv", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            groups.setdefault(row["group"], []).append(row["symbol"])
    kept = settings.ROOT / "data" / "virtual_programmes.gmt"
    assert signatures.read_gmt(kept) == groups
    signatures.write_gmt(groups, tmp_path / "again.gmt", remark="virtual tissue: column group of data/genes.csv")
    assert (tmp_path / "again.gmt").read_bytes() == kept.read_bytes()


def test_enrichment_equals_fisher_and_counts_every_set():
    rng = np.random.default_rng(0)
    tested = [f"G{i}" for i in range(300)]
    best = tested[:40]
    sets = {f"S{k}": list(rng.choice(tested, 20, replace=False)) for k in range(12)}
    sets["HIT"] = tested[:15] + tested[100:105] + ["NOT_TESTED"] * 3
    sets["MISS"] = tested[200:220]
    sets["TINY"], sets["FOREIGN"] = tested[:3], ["X1", "X2", "X3", "X4", "X5"]
    table = signatures.enrich(best, tested, sets).set_index("set")
    assert table.index[0] == "HIT" and set(table.index) == {*(f"S{k}" for k in range(12)), "HIT", "MISS"}
    for name, row in table.iterrows():
        size, hit = len(set(sets[name]) & set(tested)), len(set(sets[name]) & set(best))
        assert (row["overlap"], row["size"]) == (hit, size) and row["expected"] == pytest.approx(size * 40 / 300)
        square = [[hit, size - hit], [40 - hit, 300 - 40 - size + hit]]
        assert row["p"] == pytest.approx(fisher_exact(square, alternative="greater")[1], rel=1e-9)
    assert table.loc["MISS", "p"] == 1 and table.loc["HIT", "q"] == pytest.approx(table.loc["HIT", "p"] * 14)
    assert set(table.loc["HIT", "genes"].split(", ")) == set(tested[:15])


def test_nothing_is_enriched_in_a_random_choice_and_the_background_matters():
    rng = np.random.default_rng(1)
    tested = [f"G{i}" for i in range(300)]
    sets = {f"S{k}": list(rng.choice(tested, 25, replace=False)) for k in range(60)}
    drawn = signatures.enrich(list(rng.choice(tested, 50, replace=False)), tested, sets)
    assert drawn["q"].min() > 0.05 and len(drawn) == 60
    genome = tested + [f"OTHER{i}" for i in range(20_000)]
    assert signatures.enrich(tested[:50], genome, sets)["q"].min() < 0.01  # what a genome-wide background invents


def test_enrichment_refuses_what_it_cannot_test(tmp_path, capsys):
    tested = [f"G{i}" for i in range(50)]
    with pytest.raises(CourseError, match="1 of them not tested"):
        signatures.enrich(["G1", "XYZ"], tested, {"S": tested[:9]})
    with pytest.raises(CourseError, match="50 best of 50"):
        signatures.enrich(tested, tested, {"S": tested[:9]})
    with pytest.raises(CourseError, match="sets.gmt.*largest has 0"):
        signatures.enrich(tested[:5], tested, gmt(tmp_path, "S\tx\tTP53\tACTB"))
    none = signatures.enrich(tested[:5], tested, {"S": ["TP53", "ACTB"]}, needed=False)  # another species
    assert list(none.columns) == list(signatures.COLUMNS) and none.empty
    assert "no enrichment" in capsys.readouterr().err
    alone = signatures.enrich(tested[:5], tested, {"S": tested[10:20]})
    assert list(alone.columns) == list(signatures.COLUMNS)
    assert alone["p"].tolist() == [1.0] and alone["overlap"].tolist() == [0]


@pytest.mark.real
def test_real_collections_are_read_whole():
    folder = settings.data_dir() / "gene_sets"
    hallmark = signatures.read_gmt(folder / "h.all.v7.0.symbols.gmt")
    assert len(hallmark) == 50 and all(10 < len(genes) <= 200 for genes in hallmark.values())
    assert len(signatures.read_gmt(folder / "enrichr.GO_Biological_Process_2021.gmt")) == 6036
    everything = sorted({gene for genes in hallmark.values() for gene in genes})
    table = signatures.enrich(hallmark["HALLMARK_HYPOXIA"][:40], everything, hallmark)
    assert table["set"][0] == "HALLMARK_HYPOXIA" and table["q"][0] < 1e-10
    found = signatures.panel(f"{folder / 'h.all.v7.0.symbols.gmt'}:HALLMARK_HYPOXIA", ["VEGFA", "COX6C"])
    assert found.genes == ("VEGFA",)


def test_a_long_list_of_genes_is_no_path():
    genes = [f"GENE{number}" for number in range(1000)]
    assert signatures.panel(",".join(genes), genes[:900]).genes == tuple(genes[:900])

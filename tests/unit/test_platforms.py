"""Vendor folders of the virtual tissue, read back with other people's readers; the cached cohorts."""

import gzip
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual import cache, cohorts, platforms, truth

GENES = np.array(["EPCAM", "CD3E", "MT-CO1"])
IDS = np.array(["ENSGV0000000001", "ENSGV0000000002", "ENSGV0000000003"])
MPP = 0.69


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A grey picture of 1.5 x 1.4 mm (2174 x 2029 px) as an array and a JPEG."""
    image = np.full((2029, 2174, 3), (200, 150, 190), np.uint8)
    file = tmp_path_factory.mktemp("picture") / "image.jpg"
    cv2.imwrite(str(file), image[..., ::-1])
    return image, file


def visium(folder, picture, space_ranger):
    image, file = picture
    spots = platforms.visium_spots((1500, 1400), mpp=MPP)
    inside = np.arange(len(spots)) % 3 > 0
    counts = np.random.default_rng(0).poisson(2.0, (inside.sum(), 3)).astype(np.int32)
    platforms.write_visium(
        folder, section_id="P1_a", jpeg=file, image=image, mpp=MPP, spots=spots, in_tissue=inside, counts=counts,
        genes=GENES, gene_ids=IDS, space_ranger=space_ranger,
    )  # fmt: skip
    return spots, inside, counts, folder / "P1_a" / "outs"


# ---------------------------------------------------------------- Visium
def test_visium_spots_form_the_hexagon():
    spots = platforms.visium_spots((3000, 3000), mpp=MPP)
    xy = spots[["x_um", "y_um"]].to_numpy()
    gaps = cKDTree(xy).query(xy, k=7)[0][:, 1:]
    inner = ((xy > 200) & (xy < 2800)).all(1)
    np.testing.assert_allclose(gaps[inner], 100, atol=1.5 * MPP)  # positions are whole pixels
    assert ((spots["array_row"] + spots["array_col"]) % 2 == 0).all()
    assert spots["array_row"].between(0, 77).all() and spots["array_col"].between(0, 127).all()
    assert xy.min() > 27.5 and xy.max() < 3000 - 27.5 and len(spots) > 900


def test_visium_barcodes_are_unique_fixed_and_look_real():
    codes = platforms.visium_barcodes()
    assert len(set(codes)) == 4992 and all(len(c) == 18 and c.endswith("-1") for c in codes)
    assert pd.Series(codes).str.fullmatch("[ACGT]{16}-1").all()
    big, small = (platforms.visium_spots((s, s), mpp=MPP).set_index("spot") for s in (3000, 1000))
    together = small.join(big, rsuffix="_big", how="inner")
    assert len(together) == len(small) and (together["array_row"] == together["array_row_big"]).all()
    assert list(big.index) == sorted(big.index)


@pytest.mark.parametrize("space_ranger", [1, 2])
def test_visium_folder_is_read_by_scanpy(tmp_path, picture, space_ranger):
    import scanpy

    spots, inside, counts, outs = visium(tmp_path, picture, space_ranger)
    table = scanpy.read_10x_h5(outs / "filtered_feature_bc_matrix.h5")
    np.testing.assert_array_equal(table.X.toarray(), counts)
    assert list(table.var_names) == list(GENES) and list(table.var["gene_ids"]) == list(IDS)
    assert list(table.obs_names) == list(spots["spot"][inside])
    files = {p.name for p in (outs / "spatial").iterdir()}
    name, header = {1: ("tissue_positions_list.csv", None), 2: ("tissue_positions.csv", 0)}[space_ranger]
    assert {"scalefactors_json.json", "tissue_hires_image.png", "tissue_lowres_image.png", name} == files
    positions = pd.read_csv(outs / "spatial" / name, header=header)
    assert list(positions.iloc[:, 0][positions.iloc[:, 1] == 1]) == list(table.obs_names)
    assert (positions.iloc[:, 1] == 0).any() and positions.shape[1] == 6
    np.testing.assert_array_equal(positions.iloc[:, 4:], spots[["y_px", "x_px"]])  # row first, column second
    if header == 0:
        assert list(positions.columns[-2:]) == ["pxl_row_in_fullres", "pxl_col_in_fullres"]


def test_visium_scale_factors_fit_the_pictures(tmp_path, picture):
    *_, outs = visium(tmp_path, picture, 2)
    factors = json.loads((outs / "spatial" / "scalefactors_json.json").read_text())
    full = cv2.imread(str(outs.parent / "P1_a.jpg"))
    for name, size in (("hires", 2000), ("lowres", 600)):
        small = cv2.imread(str(outs / "spatial" / f"tissue_{name}_image.png"))
        assert max(small.shape) == size
        ratio = np.array(small.shape[:2]) / full.shape[:2]
        np.testing.assert_allclose(ratio, factors[f"tissue_{name}_scalef"], atol=5e-4)
        assert np.abs(small.astype(int).mean((0, 1)) - full.mean((0, 1))).max() < 2  # not BGR for RGB
    assert factors["spot_diameter_fullres"] * MPP == pytest.approx(65)


# ---------------------------------------------------------------- legacy ST
def test_st_folder_has_the_real_layout(tmp_path, picture):
    spots = platforms.st_spots((1500, 1400), mpp=MPP, seed=0, section="P1_a")
    kept = np.arange(len(spots)) % 4 > 0
    counts = np.random.default_rng(0).poisson(2.0, (kept.sum(), 3))
    platforms.write_st(
        tmp_path, section_id="B2", jpeg=picture[1], spots=spots, kept=kept, counts=counts, genes=GENES
    )
    packed = (tmp_path / "ST-cnts" / "B2.tsv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    assert lines[0] == "\tEPCAM\tCD3E\tMT-CO1" and lines[1].split("\t")[0] == spots["spot"][kept].iloc[0]
    assert packed[4:8] == b"\0\0\0\0"  # no clock in the file
    selection = pd.read_csv(tmp_path / "ST-spotfiles" / "B2_selection.tsv", sep="\t")
    assert list(selection) == ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    assert [f"{x}x{y}" for x, y in zip(selection["x"], selection["y"])] == [line.split("\t")[0] for line in lines[1:]]
    assert [p.suffix for p in (tmp_path / "ST-imgs" / "B" / "B2").iterdir()] == [".jpg"]


def test_st_spots_follow_the_array_formula_and_stay_inside():
    spots = platforms.st_spots((3000, 2600), mpp=MPP, seed=0, section="P1_a")
    for axis, extent in (("x", 3000), ("y", 2600)):
        np.testing.assert_allclose(spots[f"pixel_{axis}"], (spots[f"new_{axis}"] - 1) * 200 / MPP, atol=0.01)
        assert spots[f"{axis}_um"].between(50, extent - 50).all()
        assert (spots[f"new_{axis}"] - spots[axis]).abs().max() <= 0.0501
    gaps = cKDTree(spots[["x_um", "y_um"]]).query(spots[["x_um", "y_um"]], k=2)[0][:, 1]
    assert abs(np.median(gaps) / 200 - 1) < 0.05


# ---------------------------------------------------------------- truth
def test_domain_shares_of_a_split_map():
    domain = np.zeros((100, 100), np.uint8)
    domain[:, 50:] = 2
    shares = truth.domain_shares(domain, 2.0, np.array([[100.0, 100.0], [40.0, 100.0], [160.0, 50.0]]), 20.0, 3)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[:, 2], [0.5, 0, 1], atol=0.05)


def test_truth_of_an_unknown_section_is_refused(tmp_path):
    (tmp_path / "truth" / "P1_a").mkdir(parents=True)
    with pytest.raises(CourseError, match="one of P1_a"):
        truth.read(tmp_path, "P9")
    with pytest.raises(CourseError, match="cells.parquet"):
        truth.read(tmp_path, "P1_a").cells


# ---------------------------------------------------------------- cohorts
TINY = {"seed": 3, "size_um": 600.0, "n_sections": 2, "workers": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The default data set, its ST and null twins at 0.6 mm, two sections."""
    home = tmp_path_factory.mktemp("virtual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_VIRTUAL", str(home))
        yield home, {name: cohorts.ensure(name, **TINY) for name in ("virtual", "virtual_st", "virtual_null")}


def test_a_data_set_holds_vendor_folders_and_truth_apart(tiny):
    home, folders = tiny
    visium, st = folders["virtual"], folders["virtual_st"]
    assert {p.name for p in visium.iterdir()} == {"sections", "truth", "dataset.json"}
    assert (visium / "sections/P1_a/outs/spatial/tissue_positions.csv").is_file()
    assert (visium / "sections/P1_b/outs/spatial/tissue_positions_list.csv").is_file()
    assert (visium / "sections/P1_a/P1_a.jpg").is_file()
    assert {p.name for p in (st / "sections").iterdir()} == {"ST-cnts", "ST-imgs", "ST-spotfiles"}
    assert [row["subject_id"] for row in cohorts.card(st)["sections"]] == ["A", "A"]
    assert [row["section_id"] for row in cohorts.card(visium)["sections"]] == ["P1_a", "P1_b"]
    assert not list(home.glob("**/.*part*"))


def test_the_truth_fits_the_counts(tiny):
    import scanpy

    folder = tiny[1]["virtual"]
    known = truth.read(folder, "P1_a")
    table = scanpy.read_10x_h5(folder / "sections/P1_a/outs/filtered_feature_bc_matrix.h5")
    assert list(table.obs_names) == list(known.spots.index) and list(table.var_names) == list(known.genes.index)
    assert known.expected.shape == table.shape == known.best.shape
    ratio = table.X.sum() / (known.expected.to_numpy() * known.spots["library"].to_numpy()[:, None]).sum()
    assert abs(ratio - 1) < 0.1
    assert known.spots.filter(like="share_").sum(axis=1).round(3).eq(1).all()
    assert (known.spots.filter(like="n_").drop(columns="n_cells").sum(axis=1) == known.spots["n_cells"]).all()
    assert known.nuclei.shape == (len(known.cells), 18, 2) and known.tissue.shape == known.domain.shape
    assert {"haematoxylin", "eosin", "white_point", "put_in", "cast", "mpp"} <= set(known.stain)
    assert set(known.genes) >= {"r_ceil", "r_oracle", "predictable", "rho", "group", "morphology"}


def test_coupling_changes_counts_and_nothing_seen(tiny):
    one, null = tiny[1]["virtual"], tiny[1]["virtual_null"]
    for file in ("sections/P1_a/P1_a.jpg", "truth/P1_a/cells.parquet", "truth/P1_a/nuclei.npz",
                 "sections/P1_a/outs/spatial/tissue_positions.csv"):  # fmt: skip
        assert (one / file).read_bytes() == (null / file).read_bytes()
    matrix = "sections/P1_a/outs/filtered_feature_bc_matrix.h5"
    assert (one / matrix).read_bytes() != (null / matrix).read_bytes()
    assert truth.read(one, "P1_a").genes["predictable"].any()
    assert not truth.read(null, "P1_a").genes["predictable"].any()


def test_a_second_call_generates_nothing(tiny, monkeypatch):
    home, folders = tiny
    monkeypatch.setenv("COURSE_VIRTUAL", str(home))
    monkeypatch.setattr(cache, "run", lambda *a: pytest.fail("generated again"))
    assert cohorts.ensure("virtual", **TINY) == folders["virtual"]


def test_a_killed_run_leaves_no_result_and_is_swept(tiny, monkeypatch):
    home, folders = tiny
    monkeypatch.setenv("COURSE_VIRTUAL", str(home))
    options = {**TINY, "coupling": 0.5}

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cohorts, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        cohorts.ensure("virtual", **options)
    monkeypatch.undo()
    monkeypatch.setenv("COURSE_VIRTUAL", str(home))
    left = list(home.glob(".virtual-*.part*"))
    assert len(left) == 1
    done = cohorts.ensure("virtual", **options)
    assert done != folders["virtual"] and (done / "dataset.json").is_file() and not left[0].exists()


def test_jobs_of_a_dead_worker_run_in_this_process(tmp_path, capsys):
    marks = [(tmp_path / str(number), os.getpid()) for number in range(3)]
    cache.run(die_in_a_worker, marks, "marks", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
    assert "a process died" in capsys.readouterr().err


def die_in_a_worker(file, parent):
    if os.getpid() != parent:
        os._exit(9)
    file.write_text("done")


def test_another_process_writes_the_same_bytes(tiny, tmp_path):
    code = f"from helpers.virtual import cohorts; print(cohorts.ensure('virtual', **{TINY!r}))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=settings.ROOT, check=True,
        env={**os.environ, "COURSE_VIRTUAL": str(tmp_path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    first, second = tiny[1]["virtual"], tmp_path / tiny[1]["virtual"].name
    assert run.stdout.strip() == str(second)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) > 20 and files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    # npz members carry the clock of the zip format; their arrays are compared instead. The truth's tables hold sums of
    # products, whose last digits depend on the threads the matrix library may use; here they differ, on purpose.
    for file in files:
        if file.suffix == ".npz":
            with np.load(first / file) as a, np.load(second / file) as b:
                assert all(a[name].tobytes() == b[name].tobytes() for name in a.files), file
        elif file.suffix == ".parquet":
            one, two = (pd.read_parquet(folder / file) for folder in (first, second))
            pd.testing.assert_frame_equal(one, two, rtol=1e-9, atol=1e-12, obj=str(file))
        else:
            assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize("bad, said", [({"name": "mouse"}, "virtual_st"), ({"n_sections": 9}, "1 to 6"),
                                       ({"name": "virtual_null", "coupling": 1.0}, "null twin")])  # fmt: skip
def test_wrong_requests_are_refused(bad, said):
    with pytest.raises(CourseError, match=said):
        cohorts.ensure(**bad)


def test_a_script_without_a_guard_is_told_so_and_does_not_wait_for_ever(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "unguarded.py"
    script.write_text(
        "from pathlib import Path\nimport sys\nfrom helpers.virtual import cache\n"
        "with cache.lock(Path(sys.argv[1])):\n    cache.run(print, [('one',), ('two',)], 'work', 2)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and "a script that starts itself again" in done.stderr
    assert sorted(done.stdout.split()) == ["one", "two"]  # the first process did the work itself

"""Visium HD: from bins and pictures to cells in microns; StarDist's and ProSeg's guards; the examiner of counts."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import grade_hd_cells, settings, visium_hd_proseg, visium_hd_sopa, visium_hd_stardist
from helpers.messages import CourseError

MPP, SIDE_UM, STEP = 0.5, 120.0, 12.0
GENES = [f"G{k}" for k in range(24)]
JOINED = {"region": "squares_2um", "region_key": "region", "instance_key": "instance_id"}


def made(*, spread_um: float = 1.5, seed: int = 0):
    """Return a section of 120 um with a disc of 3 um as nucleus every 12 um and 150 molecules a cell, and its truth."""
    import geopandas
    import shapely
    from anndata import AnnData
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    rng = settings.rng(seed, "test", "visium hd")
    place = np.arange(STEP / 2, SIDE_UM, STEP)
    centre = np.stack(np.meshgrid(place, place), -1).reshape(-1, 2) + rng.uniform(-1, 1, (len(place) ** 2, 2))
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    nuclei = (centre[:, None] + 3 * np.stack([np.cos(turn), np.sin(turn)], -1)).astype(np.float32)
    counts = np.zeros((len(centre), len(GENES)), np.int32)
    for cell in range(len(centre)):  # four types with six genes of their own
        rate = np.full(len(GENES), 0.5)
        rate[6 * (cell % 4) : 6 * (cell % 4) + 6] = 8
        counts[cell] = rng.multinomial(150, rate / rate.sum())
    owner = np.repeat(np.arange(len(centre)), counts.sum(1))
    gene = np.concatenate([np.repeat(np.arange(len(GENES)), row) for row in counts])
    r, a = 5 * np.sqrt(rng.random(len(owner))), rng.uniform(0, 2 * np.pi, len(owner))
    at = centre[owner] + np.stack([r * np.cos(a), r * np.sin(a)], -1) + rng.normal(0, spread_um, (len(owner), 2))
    n = int(SIDE_UM / 2)
    inside = ((at > 0) & (at < SIDE_UM)).all(1)
    column, row = (at[inside] // 2).astype(int).T
    bins = sparse.csr_matrix((np.ones(inside.sum(), np.int32), (row * n + column, gene[inside])), (n * n, len(GENES)))
    y, x = np.divmod(np.arange(n * n), n)
    systems = {"pixel": Identity(), "um": Scale([MPP, MPP], axes=("x", "y"))}
    side = 2 / MPP
    squares = geopandas.GeoDataFrame(geometry=shapely.box(x * side, y * side, (x + 1) * side, (y + 1) * side))
    table = AnnData(bins, var=pd.DataFrame(index=GENES))
    table.obs_names = [f"s_002um_{a:05d}_{b:05d}-1" for a, b in zip(y, x)]
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["squares_2um"] * n * n), np.arange(n * n)
    picture = np.full((3, int(SIDE_UM / MPP), int(SIDE_UM / MPP)), 230, np.uint8)
    section = SpatialData(
        images={"he": Image2DModel.parse(picture, dims=("c", "y", "x"), transformations=systems)},
        shapes={"squares_2um": ShapesModel.parse(squares, transformations=systems)},
        tables={"bins_2um": TableModel.parse(table, **JOINED)},
        attrs={"section_id": "T", "mpp": MPP},
    )  # fmt: skip
    truth = SimpleNamespace(nuclei=nuclei, cell_counts=sparse.csr_matrix(counts), genes=pd.DataFrame({"gene": GENES}),
                            cells=pd.DataFrame({"x_um": centre[:, 0], "y_um": centre[:, 1]}))  # fmt: skip
    return section, truth


def with_nuclei(section, truth, *, origin_um=(0.0, 0.0)):
    """Return sopa's view of a section with the true nuclei as if StarDist had found them in the (cropped) picture."""
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    sdata = visium_hd_sopa.for_sopa(section)
    rings = [shapely.Polygon((ring - origin_um) / MPP) for ring in truth.nuclei]
    systems = get_transformation(sdata.images["he"], get_all=True)
    shapes = ShapesModel.parse(geopandas.GeoDataFrame(geometry=rings), transformations=systems)
    sdata.shapes["stardist_boundaries"] = shapes
    return sdata


def counted(sdata, ratio=1.0, **options):
    """Return the cells that sopa counts in the nuclei, expanded by a share of their radius."""
    import sopa

    with visium_hd_sopa.scratch(sdata):
        sopa.aggregate(sdata, aggregate_channels=False, shapes_key="stardist_boundaries", expand_radius_ratio=ratio,
                       **options)  # fmt: skip
    return visium_hd_sopa.cells(sdata, shapes_key="stardist_boundaries")


@pytest.fixture(scope="module")
def field():
    section, truth = made()
    sdata = with_nuclei(section, truth)
    return section, truth, sdata, counted(sdata)


# ---------------------------------------------------------------- sopa and microns
def test_sopa_shares_the_section_and_does_not_change_it(field):
    section, _, sdata, _ = field
    before, after = section.tables["bins_2um"], sdata.tables["bins_2um"]
    assert np.shares_memory(before.X.data, after.X.data) and sdata.images["he"] is section.images["he"]
    assert "microns" in sdata.shapes["squares_2um"].attrs["transform"]
    assert "microns" not in section.shapes["squares_2um"].attrs["transform"]
    assert "table" not in section.tables and "cell_segmentation_image" not in section.attrs
    assert sdata.attrs["bins_table"] == "bins_2um" and "sopa_uid" not in sdata.attrs


def test_cells_are_in_microns_with_raw_counts(field):
    _, truth, _, cells = field
    assert cells.uns["spatial_unit"] == "um" and cells.X.dtype == np.int32 and list(cells.var_names) == GENES
    assert np.abs(cells.obsm["spatial"] - truth.cells[["x_um", "y_um"]]).max().max() < 0.2
    assert np.allclose(cells.obs["outline_um2"], np.pi * 9, rtol=0.05)
    assert cells.obs["area_um2"].mean() == pytest.approx(np.pi * 36, rel=0.1)  # radius 3 um, doubled
    assert (cells.obs["n_counts"].to_numpy() == np.asarray(cells.X.sum(1)).ravel()).all()


def test_a_crop_moves_nothing():
    """After a crop sopa counts pixels from the corner of the crop: the table's own places are wrong twice over."""
    import spatialdata

    section, truth = made()
    box = {"min_coordinate": [24, 36], "max_coordinate": [96, 108], "axes": ("x", "y")}
    crop = spatialdata.bounding_box_query(section, **box, target_coordinate_system="um", filter_table=True)
    near = ((truth.nuclei.min(1) > [25, 37]) & (truth.nuclei.max(1) < [95, 107])).all(1)
    part = SimpleNamespace(nuclei=truth.nuclei[near])
    sdata = with_nuclei(crop, part, origin_um=(24.0, 36.0))
    cells = counted(sdata, 0.0)
    centre = truth.cells.loc[near, ["x_um", "y_um"]].to_numpy()
    assert len(cells) == near.sum() > 20 and np.abs(cells.obsm["spatial"] - centre).max() < 0.2
    assert np.abs(sdata.tables["table"].obsm["spatial"] - centre).max() > 20  # what it would be without the conversion
    pixels = visium_hd_sopa.outlines(sdata, shapes_key="stardist_boundaries", system="pixel")
    assert np.abs(pixels.centroid.x - centre[:, 0] / MPP).max() < 0.5
    geojson = json.loads(pixels.to_json())
    assert len(geojson["features"]) == near.sum() and geojson["features"][0]["id"] == cells.obs_names[0]


def test_overlapping_cells_count_molecules_twice():
    section, truth = made()
    sdata = with_nuclei(section, truth)
    twice, once = counted(sdata, 2.0), counted(sdata, 2.0, no_overlap=True)
    total = section.tables["bins_2um"].X.sum()
    assert twice.X.sum() > 1.3 * total and once.X.sum() <= total
    assert once.obs["area_um2"].sum() <= SIDE_UM**2 < twice.obs["area_um2"].sum()


def test_the_scratch_folder_is_gone_even_after_an_error(tmp_path, capsys):
    from sopa.utils import utils as place

    before, seen = place.HOME_CACHE_DIR, []
    with pytest.raises(ValueError, match="stop"), visium_hd_sopa.scratch():
        seen.append(place.HOME_CACHE_DIR)
        (place.HOME_CACHE_DIR / "left").mkdir()
        raise ValueError("stop")
    assert not seen[0].exists() and seen[0] != before and place.HOME_CACHE_DIR == before


def test_bad_sections_and_tables_are_refused(field):
    section, _, sdata, _ = field
    with pytest.raises(CourseError, match="no table 'bins_4um'"):
        visium_hd_sopa.for_sopa(section, table="bins_4um")
    with pytest.raises(CourseError, match="no picture"):
        visium_hd_sopa.for_sopa(section, image="dapi")
    with pytest.raises(CourseError, match="segment first"):
        visium_hd_sopa.outlines(sdata, shapes_key="proseg_boundaries")
    with pytest.raises(CourseError, match="shapes the table was counted with"):
        visium_hd_sopa.cells(sdata, shapes_key="squares_2um")
    other, _ = made()
    other.tables["bins_2um"].X = other.tables["bins_2um"].X * 0.5
    with pytest.raises(CourseError, match="raw whole counts"):
        visium_hd_sopa.for_sopa(other)


# ---------------------------------------------------------------- StarDist
def test_the_bundled_model_is_small_and_has_a_card():
    folder = visium_hd_stardist.BUNDLED
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1_000_000
    assert {"config.json", "thresholds.json", "weights_best.h5", "scale.json", "MODEL_CARD.md"} == {
        file.name for file in folder.iterdir()
    }
    assert "watershed" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_pretrained_model_on_disk_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    assert visium_hd_stardist.model_dir() == visium_hd_stardist.BUNDLED
    name = "2D_versatile_he"
    for place in (f"keras/models/StarDist2D/{name}/{name}_extracted", f"models/stardist/{name}"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "weights_best.h5").write_bytes(b"")
        assert visium_hd_stardist.model_dir() != folder  # half a download
        (folder / "thresholds.json").write_text('{"prob": 0.69, "nms": 0.4}')
        assert visium_hd_stardist.model_dir() == folder
    chosen = visium_hd_stardist.options(mpp=0.25)
    assert chosen["prob_thresh"] == 0.69 and chosen["nms_thresh"] == 0.4 and "scale" not in chosen
    assert chosen["min_area"] == pytest.approx(visium_hd_stardist.MIN_AREA_UM2 * 16)
    (folder / "thresholds.json").write_text("{")
    with pytest.raises(CourseError, match="thresholds.json"):
        visium_hd_stardist.options(folder, mpp=0.25)


def test_another_scale_is_told_to_the_bundled_model():
    folder = visium_hd_stardist.BUNDLED
    assert "scale" not in visium_hd_stardist.options(folder, mpp=0.5)
    assert visium_hd_stardist.options(folder, mpp=0.25)["scale"] == pytest.approx(0.5)


def test_absurd_numbers_of_nuclei_are_refused():
    assert visium_hd_stardist.check_count(830, 600 * 600) == pytest.approx(2305.6, rel=1e-3)
    for n in (355_216, 0):
        with pytest.raises(CourseError, match="untrained model"):
            visium_hd_stardist.check_count(n, 600 * 600)
    with pytest.raises(CourseError, match="area"):
        visium_hd_stardist.check_count(10, 0)


def test_an_untrained_model_is_refused_and_the_bundled_one_finds_nuclei(tmp_path):
    """Through sopa, on a colon field the network never saw; the probability map alone gives the untrained one away."""
    import sopa
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale
    from stardist.models import Config2D, StarDist2D

    from helpers.virtual.hd import tissue

    grown = tissue.grow(section="stardist 3900", seed=3900, size_um=500.0)
    picture = np.ascontiguousarray(grown.image[400:800, 400:800])
    chosen = visium_hd_stardist.options(visium_hd_stardist.BUNDLED, mpp=grown.mpp)
    assert 0.01 < visium_hd_stardist.check_model(picture, chosen) < 0.4
    config = Config2D(n_rays=16, grid=(2, 2), n_channel_in=3, unet_n_depth=1, unet_n_filter_base=8)
    model = StarDist2D(config, name="untrained", basedir=str(tmp_path))
    model.keras_model.save_weights(str(tmp_path / "untrained" / "weights_best.h5"))
    with pytest.raises(CourseError, match="untrained"):
        visium_hd_stardist.check_model(picture, {"local_model": str(tmp_path / "untrained"), "prob_thresh": 0.2})

    systems = {"pixel": Identity(), "um": Scale([grown.mpp, grown.mpp], axes=("x", "y"))}
    image = Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=systems)
    sdata = SpatialData(images={"he": image})
    with visium_hd_sopa.scratch(sdata):
        sopa.make_image_patches(sdata, patch_width=400, patch_overlap=40)
        sopa.segmentation.stardist(sdata, **chosen)
    found = visium_hd_sopa.outlines(sdata, shapes_key="stardist_boundaries")
    visium_hd_stardist.check_count(len(found), 200.0**2)
    moved = SimpleNamespace(nuclei=grown.nuclei - np.float32(200))
    scores = grade_hd_cells.nucleus_match(found, moved, box_um=(0, 0, 200, 200))
    assert scores["f1"] > 0.7
    swapped = SimpleNamespace(nuclei=moved.nuclei[..., ::-1])
    assert grade_hd_cells.nucleus_match(found, swapped, box_um=(0, 0, 200, 200))["f1"] < 0.3


# ---------------------------------------------------------------- ProSeg
def fake(folder, text, *, said="proseg 3.2.0"):
    """Write a program that answers --version, and does ``text`` otherwise."""
    program = folder / "proseg"
    program.write_text(f'#!/bin/sh\nif [ "$1" = "--version" ]; then echo "{said}"; exit 0; fi\n{text}\n')
    program.chmod(0o755)
    return program


def test_without_proseg_nothing_is_changed(field, monkeypatch, tmp_path):
    _, _, sdata, _ = field
    monkeypatch.setattr(visium_hd_proseg, "available", lambda: None)
    before = set(sdata.shapes), set(sdata.tables), list(sdata.tables["bins_2um"].obs)
    with pytest.raises(CourseError, match="make proseg"):
        visium_hd_proseg.refine(sdata)
    with pytest.raises(CourseError, match="3.0.11 or newer"):
        visium_hd_proseg.refine(sdata, program=fake(tmp_path, "exit 0", said="proseg 2.0.4"))
    with pytest.raises(CourseError, match="says 'hello'"):
        visium_hd_proseg.refine(sdata, program=fake(tmp_path, "exit 0", said="hello"))
    with pytest.raises(CourseError, match="segment first"):
        visium_hd_proseg.refine(sdata, prior_key="cellpose_boundaries", program=fake(tmp_path, "exit 0"))
    with pytest.raises(CourseError, match="status 3.*out of luck"):
        visium_hd_proseg.refine(sdata, program=fake(tmp_path, "echo out of luck >&2; exit 3"))
    with pytest.raises(CourseError, match="proseg-output.zarr"):
        visium_hd_proseg.refine(sdata, program=fake(tmp_path, "exit 0"))
    assert (set(sdata.shapes), set(sdata.tables), list(sdata.tables["bins_2um"].obs)) == before
    assert "spatial_microns" not in sdata.tables["bins_2um"].obsm


def test_proseg_is_found_beside_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(visium_hd_proseg.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(visium_hd_proseg.sys, "prefix", str(tmp_path))
    assert visium_hd_proseg.available() is None
    (tmp_path / ".cargo" / "bin").mkdir(parents=True)
    cargo = fake(tmp_path / ".cargo" / "bin", "exit 0")
    assert visium_hd_proseg.available() == cargo and visium_hd_proseg.version(cargo) == (3, 2, 0)
    (tmp_path / "bin").mkdir()
    assert visium_hd_proseg.available() == cargo != (beside := fake(tmp_path / "bin", "exit 0"))
    assert visium_hd_proseg.available() == beside


def test_the_real_proseg_gives_cells_their_molecules(field):
    if visium_hd_proseg.available() is None:
        pytest.skip("the program proseg is not installed: make proseg")
    section, truth, _, _ = field
    sdata = with_nuclei(section, truth)
    nuclei_only = counted(sdata, 0.0)
    columns = list(sdata.tables["bins_2um"].obs)
    done = visium_hd_proseg.refine(sdata, threads=1)
    assert list(sdata.tables["bins_2um"].obs) == columns and done["cells"] + done["lost"] == len(truth.nuclei)
    cells = visium_hd_sopa.cells(sdata, shapes_key="proseg_boundaries", table_key="proseg_table")
    where = truth.cells.set_axis(nuclei_only.obs_names)[["x_um", "y_um"]]
    off = np.hypot(*(cells.obsm["spatial"] - where.loc[cells.obs["prior"]].to_numpy()).T)
    assert cells.uns["spatial_unit"] == "um" and np.median(off) < 2 and list(cells.var_names) == GENES
    pairs = pd.DataFrame({"cell": nuclei_only.obs_names, "true": np.arange(len(truth.nuclei))})
    table = grade_hd_cells.compare({"nuclei": nuclei_only, "ProSeg": cells}, truth, pairs)
    assert table.loc["ProSeg", "overlap"] > table.loc["nuclei", "overlap"] + 0.05
    assert table.loc["ProSeg", "total_error"] < table.loc["nuclei", "total_error"]


# ---------------------------------------------------------------- the examiner
def test_the_examiner_knows_right_from_wrong(field):
    _, truth, sdata, cells = field
    outlines = visium_hd_sopa.outlines(sdata, shapes_key="stardist_boundaries")
    match = grade_hd_cells.nucleus_match(outlines, truth, box_um=(0, 0, SIDE_UM, SIDE_UM))
    pairs = match["pairs"]
    assert match["f1"] == 1 and len(pairs) == len(cells) and list(pairs["cell"]) == list(cells.obs_names)
    assert grade_hd_cells.nucleus_match(outlines.translate(4, 4).to_frame("geometry"), truth,
                                        box_um=(0, 0, SIDE_UM, SIDE_UM))["f1"] < 0.2  # fmt: skip
    perfect = cells.copy()
    perfect.X = truth.cell_counts.astype(np.int32)
    half, dealt = perfect.copy(), perfect[np.roll(np.arange(len(cells)), 1)].copy()
    half.X = sparse.csr_matrix(perfect.X.toarray() // 2)
    dealt.obs_names = cells.obs_names
    table = grade_hd_cells.compare({"perfect": perfect, "half": half, "dealt": dealt, "counted": cells}, truth, pairs)
    assert list(table.loc["perfect", ["overlap", "profile_r", "gene_r", "ratio"]]) == pytest.approx([1] * 4)
    assert table.loc["perfect", "total_error"] == 0 and 0.4 < table.loc["half", "ratio"] < 0.5
    assert table.loc["dealt", "overlap"] < 0.5 < table.loc["counted", "overlap"] < 1
    assert table["profile_r_chance"].max() < 0.3
    inner = grade_hd_cells.inside(pairs, truth, box_um=(0, 0, SIDE_UM, SIDE_UM), margin_um=12.5)
    assert len(inner) == 64 and set(inner["cell"]) < set(pairs["cell"])
    lost = cells[10:].copy()
    assert grade_hd_cells.recovered(lost, truth, pairs)["total_r"] < table.loc["counted", "total_r"]
    with pytest.raises(CourseError, match="keep all genes"):
        grade_hd_cells.recovered(cells[:, 1:].copy(), truth, pairs)
    with pytest.raises(CourseError, match="10 or more"):
        grade_hd_cells.recovered(cells, truth, pairs[:5])

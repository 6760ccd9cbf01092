"""The virtual colon: cells where histology puts them, outlines that hold, an island apart, nuclei that are blue."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from helpers import settings
from helpers.messages import CourseError
from helpers.virtual.hd import tissue, tissue_cells, tissue_ground

BELONGS = {
    "Tumour": {"tumour"},
    "Goblet": {"mucosa"},
    "Enterocyte": {"mucosa"},
    "Smooth muscle": {"muscle"},
}
HASH = """
import hashlib
from helpers.virtual.hd import tissue
f = tissue.grow(section="H1", seed=0, size_um=500.0)
parts = (f.cells.to_csv(), f.nuclei.tobytes(), f.outlines.tobytes(), f.domain.tobytes(), f.jpeg)
print(hashlib.sha256(b"".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest())
"""


@pytest.fixture(scope="module")
def fields():
    """The two patients, with two seeds; the second on half a square millimetre."""
    return [tissue.grow(section="H1", seed=0), tissue.grow(section="H2", seed=1, size_um=700.0)]


def shapes(outline):
    """Return valid shapely polygons."""
    import shapely

    return shapely.make_valid(shapely.polygons(outline.astype(float)))


def painted(polygons, field):
    """Return a label image of polygons on the pixels of the picture, int32; 0 outside."""
    labels = np.zeros(field.image.shape[:2], np.int32)
    for i, polygon in enumerate(np.round((polygons / field.mpp - 0.5) * 16).astype(np.int32), 1):
        cv2.fillPoly(labels, [polygon], i, cv2.LINE_8, 4)
    return labels


def density(field):
    """Return optical density, float (y, x, 3)."""
    return -np.log((field.image.astype(float) + 1) / (np.array(field.stain["white_point"]) + 1))


@pytest.fixture(scope="module")
def small():
    """A quarter of a square millimetre."""
    return tissue.grow(section="H1", seed=0, size_um=500.0)


def test_same_bytes_in_two_processes(small):
    ran = subprocess.run([sys.executable, "-c", HASH], cwd=settings.ROOT, capture_output=True, text=True, check=True)
    other = ran.stdout.strip()
    parts = (small.cells.to_csv().encode(), small.nuclei.tobytes(), small.outlines.tobytes(), small.domain.tobytes())
    assert hashlib.sha256(b"".join((*parts, small.jpeg))).hexdigest() == other


def test_the_picture_moves_no_cell(small):
    pale = replace(tissue.STAINS["H2"], strength_h=0.5)
    other = tissue.grow(section="H1", seed=0, size_um=500.0, mpp=1.0, stain=pale)
    assert other.image.shape == (500, 500, 3) and small.image.shape == (1000, 1000, 3)
    np.testing.assert_array_equal(other.nuclei, small.nuclei)
    np.testing.assert_array_equal(other.outlines, small.outlines)
    assert other.stain["strength_h"] == 0.5 != small.stain["strength_h"]
    big = cv2.resize(small.image, (500, 500), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(big.mean(2).ravel(), other.image.mean(2).ravel())[0, 1] > 0.8  # and both show the same


def test_as_many_cells_as_a_square_millimetre_holds(fields):
    for f in fields:
        area, n = (f.size_um / 1000) ** 2, len(f.cells)
        assert 4500 <= n / area <= 6000
        assert f.nuclei.shape == f.outlines.shape == (n, 32, 2) and f.nuclei.dtype == np.float32
        assert f.image.shape == (2 * f.size_um, 2 * f.size_um, 3) and f.image.dtype == np.uint8
        assert (f.cells["type"].value_counts() >= 60 * area).all()  # every type is there
        assert (f.cells["domain"].value_counts() >= 200 * area).all()
        assert list(f.cells["cell_id"]) == list(range(1, n + 1))
        assert 0.1 < (~f.tissue).mean() < 0.35  # glass at the margins


def test_types_lie_in_their_domains(fields):
    for f in fields:
        for kind, domains in BELONGS.items():
            assert set(f.cells["domain"][f.cells["type"] == kind]) == domains
        share = f.cells.groupby("domain", observed=False)["type"].value_counts(normalize=True).unstack()
        assert share.loc["immune", "T cell"] > 0.4 > 0.2 > share.loc["mucosa", "T cell"]
        assert share.loc["mucosa", "Plasma"] > 2 * share.loc["stroma", "Plasma"]
        assert share["Fibroblast"].idxmax() == "stroma" and share["Neutrophil"].idxmax() == "tumour"
        at = f.domain[f.cells["y_um"].astype(int), f.cells["x_um"].astype(int)]
        assert (at == f.cells["domain"].cat.codes).all()  # and the grid says the same


@pytest.mark.parametrize(("section", "seed"), [("H1", 1), ("H2", 2)])
def test_another_seed_is_another_tissue(fields, section, seed):
    """Layout and cells of more seeds, without their pictures."""
    ground = tissue_ground.grow(section=section, seed=seed, size_um=1000.0, patient=tissue.PATIENTS[section])
    cells, _ = tissue_cells.place(ground)
    assert 4500 <= len(cells) <= 6000
    assert (np.bincount(cells["code"], minlength=len(tissue.TYPES)) >= 60).all()
    assert (ground.domain != fields[0].domain).mean() > 0.2
    assert 30 <= (ground.at("island", cells[["x_um", "y_um"]].to_numpy()) > 0).sum() <= 80


def test_patients_differ(fields):
    h1, h2 = fields
    assert h1.stain["haematoxylin"] != h2.stain["haematoxylin"] and h1.facts["patient"] != h2.facts["patient"]
    colour = [np.median(f.image[cv2.resize(f.tissue.astype(np.uint8), f.image.shape[:2]) > 0], 0) for f in fields]
    assert np.abs(colour[0] - colour[1]).max() > 8
    share = [(f.cells["type"] == "Neutrophil").mean() for f in fields]
    assert share[1] > 1.4 * share[0]
    other = [tissue.patient("T1", seed) for seed in (0, 0, 1)]
    assert other[0] == other[1] != other[2]


def test_crypts_surround_lumina(fields):
    """Cells of a crypt are columns whose other end is a pale hole: apex towards a lumen, nuclei far from it."""
    for f in fields:
        ground = tissue_ground.grow(
            section=f.section, seed=f.seed, size_um=f.size_um, patient=tissue.patient(f.section, f.seed)[0]
        )
        assert len(ground.crypts) >= 30 * (f.size_um / 1000) ** 2
        epithelium = f.cells["type"].isin(["Goblet", "Enterocyte"]).to_numpy()
        xy = f.cells[["x_um", "y_um"]].to_numpy(float)[epithelium]
        outline, seen = f.outlines[epithelium], 0
        brightness = f.image.mean(2)
        hole = (ground.crypt > 0) & (ground.lumen > 1)
        wall = (ground.crypt > 0) & (ground.lumen < -8)
        big = cv2.resize(brightness, ground.crypt.shape, interpolation=cv2.INTER_AREA)
        calm = ~ground.damaged
        assert np.median(big[hole & calm]) > np.median(big[wall & calm]) + 40
        for row in ground.crypts:
            own = np.hypot(*(xy - row[:2]).T) < row[2] * 1.25
            own &= ground.at("crypt", xy) > 0
            if own.sum() < 10:
                continue  # cut by the edge of the tissue
            angle = np.sort(np.arctan2(*(xy[own] - row[:2]).T[::-1]))
            gaps = np.diff(np.r_[angle, angle[0] + 2 * np.pi])
            assert np.median(gaps) < 0.5
            seen += gaps.max() < 1.5  # all the way round
            nearest = np.hypot(*(outline[own] - row[:2]).transpose(2, 0, 1)).min(1)
            assert np.median(nearest) < 0.6 * row[2]  # cells reach in
            assert np.hypot(*(xy[own] - row[:2]).T).min() > 6  # and no nucleus lies in the lumen
        assert seen >= 0.8 * len(ground.crypts) - 4


def test_island_is_alone(fields):
    for f in fields:
        inside = f.cells["island"].to_numpy()
        assert 30 <= inside.sum() <= 80
        points = f.outlines[inside].reshape(-1, 2)
        from scipy.spatial import cKDTree

        gap = cKDTree(f.outlines[~inside].reshape(-1, 2)).query(points)[0].min()
        assert gap >= 60 and f.facts["gap_um"] >= 60
        count, _ = cv2.connectedComponents(f.tissue.astype(np.uint8))
        assert count == 3  # glass, main piece, island


def test_damaged_strip(fields):
    for f in fields:
        high = f.cells["high_mt"]
        assert 0.02 < high.mean() < 0.1 and not (high & f.cells["island"]).any()
        spread = f.cells.loc[high, ["x_um", "y_um"]].std()
        assert spread.max() > 10 * spread.min()  # a strip along one edge
        labels, d = painted(f.nuclei, f), density(f).mean(2)
        kind = f.cells["type"].isin(["Fibroblast", "T cell", "Plasma"]).to_numpy()
        row = [np.isin(labels, 1 + np.flatnonzero(kind & (high == k).to_numpy())) for k in (True, False)]
        assert d[row[0]].mean() < 0.85 * d[row[1]].mean()  # paler nuclei


def test_outlines_hold_their_nuclei_and_not_each_other(fields):
    import shapely

    for f in fields:
        nuclei, cells = shapes(f.nuclei), shapes(f.outlines)
        inside = shapely.area(shapely.intersection(nuclei, cells)) / shapely.area(nuclei)
        assert inside.min() > 0.995
        for polygons, most in ((nuclei, 1e-6), (cells, 1e-3)):
            first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
            first, second = first[first < second], second[first < second]
            common = shapely.area(shapely.intersection(polygons[first], polygons[second]))
            assert common.sum() < most * shapely.area(polygons).sum()
        size = shapely.area(cells)
        assert 30 < np.quantile(size, 0.05) and np.quantile(size, 0.95) < 260
        assert np.median(size / shapely.area(nuclei)) > 1.8


def test_nuclei_are_blue_and_not_all_alike(fields):
    for f in fields:
        labels, d = painted(f.nuclei, f), density(f)
        calm = ~f.cells["high_mt"].to_numpy()
        value = [np.bincount(labels.ravel(), d[..., k].ravel()) / np.bincount(labels.ravel()) for k in (0, 1)]
        whole = painted(f.outlines, f)
        body = (whole > 0) & (cv2.dilate((labels > 0).astype(np.uint8), np.ones((5, 5))) == 0)
        red = value[0][1:][calm]
        assert np.median(red) > 2.0 * np.median(d[..., 0][body])  # haematoxylin absorbs red, eosin hardly does
        assert (red > np.quantile(d[..., 0][body], 0.9)).mean() > 0.9
        kind = f.cells["type"].to_numpy()[calm]
        assert np.median(red[kind == "T cell"]) > 1.15 * np.median(red[kind == "Macrophage"])
        area = f.cells["area_um2"].to_numpy()[calm]
        assert np.median(area[kind == "Tumour"]) > 1.25 * np.median(area[kind == "T cell"])


def test_bad_sizes_are_refused():
    with pytest.raises(CourseError, match="500 to 3000"):
        tissue.grow(section="H1", seed=0, size_um=100)
    with pytest.raises(CourseError, match="microns per pixel"):
        tissue.grow(section="H1", seed=0, mpp=5)

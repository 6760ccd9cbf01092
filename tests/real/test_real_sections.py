"""The real sections: found by looking, opened within time and memory, spots on the tissue."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from helpers import catalogue, readers, section, settings

pytestmark = pytest.mark.real
SECONDS, PEAK_MB = 10, 1500
EXPECTED = {
    "spacell_als": ("CN62_E2", dict(spots=91, platform="st", mpp=0.680, subject="652", shape=(9954, 9411))),
    "her2st": ("C5", dict(spots=181, platform="st", mpp=0.6885, subject="C", shape=(9901, 9272))),
    "mob": ("MOB2", dict(spots=407, platform="st2k", mpp=4.373, subject="MOB", shape=(1905, 1905))),
    "visium_crop": (
        "visium_crop",
        dict(spots=100, platform="visium", mpp=16.11, subject="visium_crop", shape=(600, 600)),
    ),
}
_MEASURE = """
import json, os, sys, time
import spatialdata  # the library's own import is not the section's cost
from helpers import readers, section
folder, *pairs = sys.argv[1:]
for pair in pairs:
    dataset, name = pair.split("/")
    if child := os.fork():  # a process for each section, so that none pays for another's memory
        assert os.waitpid(child, 0)[1] == 0, pair
        continue
    wall, cpu = time.perf_counter(), time.process_time()
    refs = readers.discover(os.path.join(folder, dataset), dataset=dataset)
    ref = next(ref for ref in refs if ref.section_id == name)
    table = section.counts(readers.read(ref))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with open("/proc/self/status") as status:  # getrusage would also count what the parent held before exec
        peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"dataset": dataset, "wall": wall, "cpu": cpu, "peak_mb": peak, "spots": table.n_obs}), flush=True)
    os._exit(0)
"""


def refs(name):
    folder = settings.data_dir() / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found_id, found_folder, platform = catalogue.resolve(name)
    return readers.discover(found_folder, dataset=found_id, platform=platform)


@pytest.mark.parametrize("dataset", EXPECTED)
def test_one_section_of_each(dataset):
    name, expected = EXPECTED[dataset]
    ref = next(ref for ref in refs(dataset) if ref.section_id == name)
    read = readers.read(ref)
    table = section.counts(read)
    assert table.n_obs == expected["spots"] and ref.platform == expected["platform"]
    assert ref.subject_id == expected["subject"] and section.shape(read) == expected["shape"]
    assert section.mpp(read) == pytest.approx(expected["mpp"], rel=2e-3) and read.attrs["mpp_source"]
    assert table.X.dtype.kind == "i" and table.X.min() >= 0 and (table.X.sum(1) > 0).all()
    assert (table.obs["section_id"] == name).all() and table.obs_names.is_unique


@pytest.fixture(scope="module")
def measured():
    """What reading one section of each data set that is there costs, by data set."""
    there = [name for name in EXPECTED if (settings.data_dir() / name).is_dir()]
    pairs = [f"{name}/{EXPECTED[name][0]}" for name in there]
    command = [sys.executable, "-c", _MEASURE, str(settings.data_dir()), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=settings.ROOT, check=True)
    return {found["dataset"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dataset", EXPECTED)
def test_time_and_memory(dataset, measured):
    refs(dataset)
    found = measured[dataset]
    print(found)
    assert found["spots"] == EXPECTED[dataset][1]["spots"]
    assert found["cpu"] < SECONDS and found["peak_mb"] < PEAK_MB  # CPU seconds: a busy machine must not fail this


@pytest.mark.parametrize("dataset", ["spacell_als", "her2st", "mob"])
def test_every_section_lies_on_its_tissue(dataset):
    """Shifting the spots by one spacing in any direction must leave fewer of them on tissue."""
    for ref in refs(dataset):
        read = readers.read(ref)
        score = section.alignment_score(read)
        print(ref.section_id, round(score, 3))
        assert score > 0.01, ref.section_id


def test_visium_crop_lies_on_its_tissue():
    """100 of some 2,000 spots, all well inside the tissue: a shift by one spacing cannot tell, exchanged axes can."""
    read = readers.read(refs("visium_crop")[0])
    swapped = section.move_spots(read, section.xy(read)[:, ::-1])
    assert section.spots_on_tissue(read) > section.spots_on_tissue(swapped)
    assert section.spots_on_tissue(read) > 0.9 and read.attrs["image"] == "lowres"


def test_sections_and_what_lacks_a_partner():
    names = {ref.section_id: ref for ref in refs("spacell_als")}
    assert {"CN51_C2_2", "L6CN51_E1_2"} <= set(names) and names["CN51_C2_2"].subject_id == "794"
    assert names["CN62_E2"].labels["age"] == "p100"
    if not any(path.name.startswith("CN94_D2") for path in names.values() for path in path.files.values()):
        assert any("CN94_D2" in line for line in readers.skipped(settings.data_dir() / "spacell_als"))


def test_pathologist_labels_of_her2st_a1():
    ref = next((ref for ref in refs("her2st") if ref.section_id == "A1"), None)
    if ref is None or ref.files["image"].suffix != ".png":
        pytest.skip("her2st A1 is not here as the reduced picture")
    read = readers.read(ref)
    labels = section.counts(read).obs["label"]
    assert labels.notna().all() and labels.value_counts()["invasive cancer"] > 250
    picture = section.image(read)
    assert section.mpp(read) == pytest.approx(3.19, rel=1e-2) and (picture[:540, -530:] == 255).all()
    assert section.spots_on_tissue(read) > 0.9


def test_pixels_agree_with_the_array():
    """her2st states pixels; the frame rule x = (x - 1) W / 32 must reproduce them from the array coordinates."""
    ref = next(ref for ref in refs("her2st") if ref.section_id == "C5")
    table = pd.read_csv(ref.files["positions"], sep="\t")
    height, width = 9901, 9272
    np.testing.assert_allclose(table["pixel_x"], (table["new_x"] - 1) * width / 32, atol=3)
    np.testing.assert_allclose(table["pixel_y"], (table["new_y"] - 1) * height / 34, atol=3)

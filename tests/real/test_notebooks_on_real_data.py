"""The notebooks on one real section of each data set, headless, as a batch user runs them."""

import json
import subprocess
import sys

import pytest

from helpers import settings

pytestmark = pytest.mark.real
SECTIONS = [("spacell_als", "CN62_E2"), ("her2st", "C2"), ("mob", "MOB1"), ("visium_crop", "")]


@pytest.mark.parametrize(("data", "section"), SECTIONS, ids=[data for data, _ in SECTIONS])
def test_preprocessing(data, section, tmp_path):
    if not (settings.data_dir() / data).is_dir():
        pytest.skip(f"{data} is not in COURSE_DATA")
    out = tmp_path / "a folder with spaces"
    parameters = ["-p", "DATA", data, "-p", "TRAIN", section]
    command = [sys.executable, "-m", "helpers", "run", "01", *parameters, "--out", str(out)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = out / "01_preprocessing"
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "complete" and results["data"] == data
    assert results["peak_mb"] < results["budget_mb"]
    assert all((folder / product).exists() for product in results["products"].values())
    assert (folder / "figures" / "overlay.png").stat().st_size > 10_000
    names = {verdict["name"] for verdict in results["verdicts"]}
    assert "spots on tissue" in names and "white point error" not in names  # no truth on real data

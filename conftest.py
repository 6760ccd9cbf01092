"""What holds for all tests: no network, outputs in a temporary folder, stderr not compared, real data only if there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from helpers import notebook, settings

HERE = Path(__file__).resolve().parent
LONGEST = (
    "tests/batch/test_slurm.py",
    "notebooks/10_visium_hd.ipynb",
    "notebooks/06_xenium_cell_types.ipynb",
    "tests/truth/test_hovernet.py",
    "notebooks/04_stimage_regression.ipynb",
    "notebooks/02_spacell_clustering.ipynb",
    "tests/unit/test_batch.py",
    "notebooks/07_deepspot.ipynb",
    "tests/unit/test_execute.py",
    "notebooks/03_als_stages.ipynb",
    "tests/real/test_notebooks_on_real_data.py",
    "notebooks/05_classes_and_explanations.ipynb",
    "notebooks/01_preprocessing.ipynb",
    "notebooks/08_deepspot2cell.ipynb",
    "notebooks/09_survival.ipynb",
    "tests/unit/test_wsi.py",
    "tests/unit/test_faults.py",
    "tests/truth/test_tiny_encoder.py",
    "tests/unit/test_stimage.py",
)
"""The files that take longest, longest first: `make test` starts them first, so that its processes end together."""
_SCRATCH = []
_BLOCK = '''
def _block_network():
    """Refuse every connection that leaves this machine (kernels talk over the loopback)."""
    import socket

    if getattr(socket, "_course_blocked", False):
        return
    near = ("127.", "::1", "localhost", "0.0.0.0")
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host):
        if isinstance(host, (bytes, bytearray)):
            host = host.decode()
        if host and not str(host).startswith(near):
            raise ConnectionRefusedError(f"tests may not reach the network: {host}")

    def guarded(function):
        def call(self, address):
            if isinstance(address, tuple):
                check(address[0])
            return function(self, address)

        return call

    def guarded_look_up(host, *rest, **named):
        check(host)
        return look_up(host, *rest, **named)

    socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)
    socket.getaddrinfo, socket._course_blocked = guarded_look_up, True


_block_network()
'''


def pytest_configure(config):
    """Close the network here and in every kernel, send outputs to a temporary folder, keep the files' order."""
    exec(_BLOCK, {})
    scratch = Path(tempfile.mkdtemp(prefix="course-tests-"))
    _SCRATCH.append(scratch)
    startup = scratch / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-block-network.py").write_text(_BLOCK)
    os.environ["IPYTHONDIR"] = str(scratch / "ipython")
    os.environ["COURSE_RUNS"] = str(scratch / "runs")
    os.environ.setdefault("COURSE_CACHE", str(scratch / "cache"))
    os.environ.setdefault("MPLBACKEND", "agg")
    config.option.loadscopereorder = False  # xdist would begin with the files that have most tests
    sanitise = getattr(config.option, "nbval_sanitize_with", None)
    if sanitise and not Path(sanitise).is_absolute():
        config.option.nbval_sanitize_with = str(HERE / sanitise)


def pytest_unconfigure(config):
    """Remove the temporary folder."""
    while _SCRATCH:
        shutil.rmtree(_SCRATCH.pop(), ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Start the longest files first; skip real-data tests where there is none; tell nbval not to compare stderr."""
    first = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))
    folder = settings.data_dir()
    absent = pytest.mark.skip(reason=f"no real data in {folder} (COURSE_DATA)")
    here = folder.is_dir() and any(folder.iterdir())
    light = {}
    for item in items:
        if item.path.suffix == ".ipynb" and item.path not in light:
            light[item.path] = notebook.load(item.path).missing_packages
        if light.get(item.path):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(light[item.path])} (make setup LIGHT=0)"))
        if item.get_closest_marker("real") and not here:
            item.add_marker(absent)
        skipped = getattr(item.parent, "skip_compare", None)
        if skipped is not None and "stderr" not in skipped:
            item.parent.skip_compare = (*skipped, "stderr")


def write_notebook(
    folder: Path, name: str, *sources: str, parameters: str = 'SEED = 0\nOUT = ""\nTRAP = ""', **course
) -> Path:
    """Write a tiny notebook: title, parameters, start, then one code cell per source; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    course = {"number": name[:2], "title": f"Test {name}", "promises": [], "budget_seconds": 60, **course}
    codes = [parameters, f'from helpers import runner\nrun = runner.start("{name[:2]}", globals())', *sources]
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {name}"}]
    for index, source in enumerate(codes):
        tags = {"tags": ["parameters"]} if index == 0 else {}
        cell = {"cell_type": "code", "id": f"c{index}", "metadata": tags, "source": source}
        cells.append({**cell, "outputs": [], "execution_count": None})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"course": course, "kernelspec": kernel}
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}))
    return path


@pytest.fixture
def make_notebook(tmp_path):
    """Return :func:`write_notebook` for the folder ``notebooks`` of this test."""

    def make(name: str, *sources: str, **options) -> Path:
        return write_notebook(tmp_path / "notebooks", name, *sources, **options)

    return make

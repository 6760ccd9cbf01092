"""Methods, Visium HD: ProSeg, where it is installed.

ProSeg (Jones et al. 2025, Nature Methods) moves the borders of cells until molecules that occur together lie together,
and lets each molecule have diffused. It is a program of its own (Rust), run by sopa. Here: is it there and new enough,
what to ask of it so that it ends in seconds, and an error that says what it said. Nothing is changed unless it worked.

ProSeg has no seed. Scores of two runs differ by about one percent; no verdict may hang on such a difference.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.visium_hd_sopa import scratch

LEAST = (3, 0, 11)
"""First release with ``--anndata``, which sopa's Visium HD branch passes."""
SHORT = {"morphology-steps-per-iter": 16000, "burnin-samples": 20, "samples": 20, "hillclimb": 5,
         "recorded-samples": 10, "nhidden": 20}  # fmt: skip
"""A schedule for a field of a few hundred microns and some hundred genes: few rounds, with many moves of the borders in
each, which cost little. ``{}``: ProSeg's own (4000 moves; 200, 200, 50 and 100 rounds): slower, a bit better."""
HOW = "run `make proseg` (needs cargo), or conda install -c bioconda rust-proseg; without it use the expansion"


def available() -> Path | None:
    """Return the program, or None: on the path, beside this Python, or where cargo puts it."""
    found = shutil.which("proseg")
    places = [Path(found)] if found else []
    places += [Path(sys.executable).parent / "proseg", Path(sys.prefix) / "bin" / "proseg"]
    places += [Path.home() / ".cargo" / "bin" / "proseg"]
    return next((path.absolute() for path in places if path.is_file() and os.access(path, os.X_OK)), None)


def version(program) -> tuple[int, ...]:
    """Return the program's version, e.g. (3, 2, 0).

    Raises
    ------
    CourseError
        It does not answer within 20 s, or not with a version.
    """
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=20)
        said = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as err:
        said = f"{type(err).__name__}: {err}"
    found = re.search(r"proseg (\d+)\.(\d+)\.(\d+)", said)
    if not found:
        raise CourseError(f"a program that says {said.strip()[-200:]!r}", "proseg and its version", HOW, file=program)
    return tuple(int(part) for part in found.groups())


def ready(program=None) -> Path:
    """Return the program where it is there and new enough, else raise."""
    program = available() if program is None else Path(program)
    if program is None or not Path(program).is_file():
        raise CourseError("no program `proseg`", "ProSeg on the path, in the environment or in ~/.cargo/bin", HOW)
    if version(program) < LEAST:
        seen = "proseg " + ".".join(map(str, version(program)))
        raise CourseError(seen, "proseg " + ".".join(map(str, LEAST)) + " or newer", HOW, file=program)
    return program


def refine(
    sdata, *, prior_key: str = "stardist_boundaries", key_added: str = "proseg_boundaries",
    table_key: str = "proseg_table", schedule: dict | None = None, threads: int | None = None, program=None,
) -> dict:  # fmt: skip
    """Let ProSeg redraw the cells of ``prior_key``, through ``sopa.segmentation.proseg``.

    Parameters
    ----------
    sdata
        Of ``visium_hd_sopa.for_sopa``, with the nuclei in ``shapes[prior_key]``. Gains ``shapes[key_added]`` (microns)
        and ``tables[table_key]``, and nothing else; nothing at all if ProSeg fails.
    schedule
        Options of the program, name to value (None for one without a value); default SHORT.
    threads
        Default: the cores at hand.
    program
        Default: :func:`available`.

    Returns
    -------
    dict
        ``version``, ``seconds``, ``cells``, ``lost`` (nuclei that got no cell), ``command``.

    Raises
    ------
    CourseError
        No program, too old, no nuclei, or it failed (with the end of what it said).
    """
    program = ready(program)
    if prior_key not in sdata.shapes or len(sdata.shapes[prior_key]) == 0:
        seen = f"no nuclei {prior_key!r} among {sorted(sdata.shapes)}"
        raise CourseError(seen, "nuclei to start from", "segment first")
    import sopa

    asked = {"nthreads": settings.cores() if threads is None else int(threads)}
    asked |= SHORT if schedule is None else schedule
    words = ([f"--{name}"] if value is None else [f"--{name}", str(value)] for name, value in asked.items())
    suffix = shlex.join(word for pair in words for word in pair)
    work = _aside(sdata, prior_key)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="proseg_") as folder, _front(program, Path(folder)) as said:
        try:
            with scratch(work):
                keys = {"prior_shapes_key": prior_key, "key_added": key_added}
                sopa.segmentation.proseg(work, command_line_suffix=suffix, **keys)
        except subprocess.CalledProcessError as err:
            tail = said.read_text(errors="replace").strip()[-600:] if said.is_file() else ""
            raise CourseError(f"exit status {err.returncode} of ProSeg, which said: {tail or 'nothing'}", "status 0",
                              "read what it said; without it use the expansion", file=program) from err  # fmt: skip
        except (FileNotFoundError, KeyError) as err:  # status 0 and nothing written
            seen = f"no cells from ProSeg ({err})"
            raise CourseError(seen, "proseg-output.zarr with cells", HOW, file=program) from err
    table = work.tables["table"]
    names = np.asarray(sdata.shapes[prior_key].index.astype(str))
    table.obs["prior"] = names[table.obs["original_cell_id"].astype(int).to_numpy() - 1]  # sopa numbers them from 1
    sdata.shapes[key_added], sdata.tables[table_key] = work.shapes[key_added], table
    return {"version": ".".join(map(str, version(program))), "seconds": time.perf_counter() - began,
            "cells": table.n_obs, "lost": len(names) - table.n_obs, "command": f"proseg {suffix}"}  # fmt: skip


def _aside(sdata, prior_key: str):
    """Return a SpatialData with a bins table of its own: sopa writes columns into it before ProSeg even starts."""
    import anndata
    from spatialdata import SpatialData

    name = sdata.attrs["bins_table"]
    bins = sdata.tables[name]
    region = bins.uns["spatialdata_attrs"]["region"]
    region = region if isinstance(region, str) else region[0]
    twin = anndata.AnnData(X=bins.X, obs=bins.obs.copy(), var=bins.var[[]], uns=dict(bins.uns))
    shapes = {key: sdata.shapes[key] for key in (region, prior_key)}
    return SpatialData(shapes=shapes, tables={name: twin}, attrs={"bins_table": name})


class _front:
    """A command ``proseg`` first on the path, which calls the program and keeps what it says in a file."""

    def __init__(self, program: Path, folder: Path):
        self.program, self.folder, self.said = program, folder, folder / "said.txt"

    def __enter__(self) -> Path:
        front, said = self.folder / "proseg", shlex.quote(str(self.said))
        front.write_text(f'#!/bin/sh\nexec {shlex.quote(str(self.program))} "$@" >{said} 2>&1\n', encoding="utf-8")
        front.chmod(0o755)
        self.before = os.environ.get("PATH", "")
        os.environ["PATH"] = f"{self.folder}{os.pathsep}{self.before}"
        return self.said

    def __exit__(self, *_):
        os.environ["PATH"] = self.before

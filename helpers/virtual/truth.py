"""What is known about a virtual section, written beside the vendor folder and read back by the examiner only.

One folder a section::

    stain.json      stain vectors, white point, cast, seeds and parameters of the section
    cells.parquet   one row a cell (``cells.place``)
    nuclei.npz      ``polygons`` float32 (cells, 18, 2): x, y in um
    tissue.npz      ``tissue``, ``solid`` bool and ``domain`` uint8 (gy, gx), grid step ``grid_um``; ``domains``: names
    spots.parquet   one row a spot, in the order of the count matrix: position, cells by type, domain shares
    genes.parquet   one row a gene: group, rho, mean count, ceilings, predictable
    expected.npz    ``rate`` and ``best`` float32 (spots, genes): expected counts, and their best prediction
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError

PREDICTABLE = 0.2
"""A gene counts as predictable when a perfect model of morphology would reach at least this correlation."""


@dataclass(frozen=True)
class Truth:
    """The truth of one section; each table is read when it is first asked for."""

    folder: Path
    section_id: str

    def _file(self, name: str) -> Path:
        file = self.folder / name
        if not file.is_file():
            raise CourseError("no such file", f"{name} of the truth", "delete the data set's folder", file=file)
        return file

    @cached_property
    def stain(self) -> dict:
        """Stain vectors (rows R, G, B), white point, cast and parameters."""
        return json.loads(self._file("stain.json").read_text(encoding="utf-8"))

    @cached_property
    def cells(self) -> pd.DataFrame:
        return pd.read_parquet(self._file("cells.parquet"))

    @cached_property
    def spots(self) -> pd.DataFrame:
        return pd.read_parquet(self._file("spots.parquet")).set_index("spot")

    @cached_property
    def genes(self) -> pd.DataFrame:
        return pd.read_parquet(self._file("genes.parquet")).set_index("gene")

    def _array(self, file: str, name: str) -> np.ndarray:
        with np.load(self._file(file), allow_pickle=False) as arrays:
            return arrays[name]

    @cached_property
    def nuclei(self) -> np.ndarray:
        """Float32 (cells, 18, 2): x, y in um."""
        return self._array("nuclei.npz", "polygons")

    @cached_property
    def tissue(self) -> np.ndarray:
        """Bool (gy, gx): the outline; lumina, clefts and fat count as tissue."""
        return self._array("tissue.npz", "tissue")

    @cached_property
    def solid(self) -> np.ndarray:
        """Bool (gy, gx): the same without lumina and large gaps."""
        return self._array("tissue.npz", "solid")

    @cached_property
    def domain(self) -> np.ndarray:
        """Uint8 (gy, gx), an index into ``domains``."""
        return self._array("tissue.npz", "domain")

    @cached_property
    def domains(self) -> tuple:
        return tuple(str(name) for name in self._array("tissue.npz", "domains"))

    @cached_property
    def grid_um(self) -> float:
        return float(self._array("tissue.npz", "grid_um"))

    @cached_property
    def expected(self) -> pd.DataFrame:
        """Expected counts before library noise, float32 (spots, genes)."""
        return self._frame("rate")

    @cached_property
    def best(self) -> pd.DataFrame:
        """The best prediction of ``expected`` from everything visible, float32 (spots, genes)."""
        return self._frame("best")

    def _frame(self, name):
        return pd.DataFrame(self._array("expected.npz", name), index=self.spots.index, columns=self.genes.index)


def read(folder, section_id: str) -> Truth:
    """Return the truth of one section of a generated data set (``folder`` as returned by ``cohorts.ensure``)."""
    place = Path(folder) / "truth" / section_id
    if not place.is_dir():
        known = ", ".join(sorted(p.name for p in (Path(folder) / "truth").glob("*"))) or "none"
        raise CourseError(f"no truth for section {section_id!r}", f"one of {known}", "correct the id", file=folder)
    return Truth(place, section_id)


def describe_spots(anatomy, cells: pd.DataFrame, member, names, xy_um, radius_um: float) -> pd.DataFrame:
    """Return one row a spot: position, number of cells, ``n_<type>``, ``share_<domain>`` and the majority ``domain``.

    Parameters
    ----------
    anatomy
        Gives ``domain`` uint8 (gy, gx) on a grid of ``grid_um``.
    member
        Sparse 0/1 matrix (spots, cells) of ``expression.spot_members``.
    names, xy_um
        Spot names and centres, float (spots, 2) x, y in um.
    """
    from helpers.virtual.anatomy import DOMAINS
    from helpers.virtual.cells import TYPES

    shares = domain_shares(anatomy.domain, anatomy.grid_um, xy_um, radius_um, len(DOMAINS))
    onehot = pd.Categorical(cells["type"], categories=TYPES).codes[:, None] == np.arange(len(TYPES))
    by_type = np.asarray(member @ onehot.astype(np.int32)).astype(np.int32)
    table = pd.DataFrame({"spot": names, "x_um": xy_um[:, 0], "y_um": xy_um[:, 1], "n_cells": by_type.sum(1)})
    for i, name in enumerate(TYPES):
        table[f"n_{name}"] = by_type[:, i]
    for i, name in enumerate(DOMAINS):
        table[f"share_{name}"] = shares[:, i].astype(np.float32)
    table["domain"] = np.asarray(DOMAINS)[shares.argmax(1)]
    return table


def domain_shares(domain, grid_um: float, xy_um, radius_um: float, n: int) -> np.ndarray:
    """Return the share of each domain in every spot's disc, float64 (spots, n); outside the map counts as 0 (glass)."""
    reach = np.arange(-radius_um, radius_um + grid_um, grid_um)
    dx, dy = np.meshgrid(reach, reach)
    inside = dx**2 + dy**2 <= radius_um**2
    column = np.rint((xy_um[:, :1] + dx[inside]) / grid_um - 0.5).astype(int)
    row = np.rint((xy_um[:, 1:] + dy[inside]) / grid_um - 0.5).astype(int)
    on_map = (column >= 0) & (row >= 0) & (column < domain.shape[1]) & (row < domain.shape[0])
    seen = np.where(on_map, domain[row.clip(0, domain.shape[0] - 1), column.clip(0, domain.shape[1] - 1)], 0)
    flat = seen + n * np.arange(len(seen))[:, None]
    return np.bincount(flat.ravel(), minlength=n * len(seen)).reshape(-1, n) / seen.shape[1]


def write_tissue(folder: Path, *, anatomy, cells, slide, stain: dict) -> None:
    """Write the part of the truth that does not depend on expression (``folder`` exists)."""
    from helpers.virtual.anatomy import DOMAINS

    cells.table.to_parquet(folder / "cells.parquet", index=False)
    np.savez_compressed(folder / "nuclei.npz", polygons=np.asarray(cells.polygons, np.float32))
    np.savez_compressed(
        folder / "tissue.npz",
        tissue=slide.tissue_mask,
        solid=slide.tissue_mask_without_holes,
        domain=anatomy.domain,
        domains=np.array(DOMAINS),
        grid_um=np.float64(anatomy.grid_um),
    )
    (folder / "stain.json").write_text(json.dumps(stain, indent=1), encoding="utf-8")


def write_expression(folder: Path, *, spots: pd.DataFrame, genes: pd.DataFrame, rate, best) -> None:
    """Write spots, genes and the expected counts of one section (``folder`` exists)."""
    spots.to_parquet(folder / "spots.parquet", index=False)
    genes.to_parquet(folder / "genes.parquet", index=False)
    np.savez(folder / "expected.npz", rate=rate.astype(np.float32), best=best.astype(np.float32))


def share(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system refuses; an older target is replaced."""
    import shutil

    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

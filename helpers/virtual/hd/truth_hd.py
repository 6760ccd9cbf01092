"""What is known about a virtual Visium HD section, written beside its vendor folder and read by the examiner only.

One folder a section::

    stain.json          stain, seeds, dials
    cells.parquet       one row a cell
    outlines.npz        ``nuclei`` and ``outlines`` float32 (cells, k, 2): x, y in um
    cell_counts.npz     what each cell gave, CSR (cells, genes)
    genes.parquet       ``gene``, ``gene_id``, ``group``, ``marker_of``, ``mt``
    profiles.parquet    types x genes
    bin_shares.parquet  8 um bins x types
    tissue.npz          ``tissue`` bool and ``domain`` uint8 (gy, gx), ``domains``, ``grid_um``, ``size_um``
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.messages import CourseError
from helpers.virtual import truth


class HDTruth(truth.Truth):
    """The truth of one section; each table is read when it is first asked for. There are no spots, but bins."""

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a cell: ``cell_id``, ``type``, ``domain``, ``x_um``, ``y_um``, ``x_px``, ``y_px``, ``island``,
        ``high_mt`` (bool), ``umi`` (molecules captured from it), ``drawn_type`` (what the picture shows; in the null
        twin not ``type``), and what else the tissue says of it."""
        return pd.read_parquet(self._file("cells.parquet"))

    @cached_property
    def nuclei(self) -> np.ndarray:
        """Outlines of nuclei, float32 (cells, k, 2): x, y in um."""
        return self._array("outlines.npz", "nuclei")

    @cached_property
    def outlines(self) -> np.ndarray:
        """Outlines of whole cells, float32 (cells, k, 2): x, y in um."""
        return self._array("outlines.npz", "outlines")

    @cached_property
    def size_um(self) -> float:
        """Side of the square field, um."""
        return float(self._array("tissue.npz", "size_um"))

    @cached_property
    def stain(self) -> dict:
        """What the picture was drawn with (``haematoxylin``, ``eosin``: RGB directions, ``white_point``, ...),
        ``dials`` of the transcripts, ``facts`` of the tissue."""
        return json.loads(self._file("stain.json").read_text(encoding="utf-8"))

    @cached_property
    def cell_counts(self):
        """Captured molecules of each cell, before they spread: int32 CSR, rows as ``cells``, columns as ``genes``."""
        from scipy import sparse

        return sparse.load_npz(self._file("cell_counts.npz")).tocsr()

    @cached_property
    def genes(self) -> pd.DataFrame:
        """One row a gene: ``gene``, ``gene_id``, ``group``, ``marker_of`` ("" or a type), ``mt`` (bool)."""
        return pd.read_parquet(self._file("genes.parquet"))

    @cached_property
    def profiles(self) -> pd.DataFrame:
        """Mean share of each gene in each type's molecules in this patient, rows sum to 1 (types x genes)."""
        return pd.read_parquet(self._file("profiles.parquet"))

    @cached_property
    def bin_shares(self) -> pd.DataFrame:
        """Share of each type among the molecules that cells left in an 8 um bin, float32 (bins x types).

        Bins by vendor barcode, in the order of ``tables["counts"]``. A row is 0 where only stray molecules fell.
        """
        return pd.read_parquet(self._file("bin_shares.parquet"))


def read(folder, section_id: str) -> HDTruth:
    """Return the truth of one section (``folder`` as returned by ``dataset.ensure``)."""
    place = Path(folder) / "truth" / section_id
    if not place.is_dir():
        known = ", ".join(sorted(p.name for p in (Path(folder) / "truth").glob("*"))) or "none"
        raise CourseError(f"no truth for section {section_id!r}", f"one of {known}", "correct the id", file=folder)
    return HDTruth(place, section_id)


def write_tissue(place: Path, *, nuclei, outlines, tissue, domain, domains, grid_um, size_um, stain: dict) -> None:
    """Write the part of the truth that both twins share (``place`` exists)."""
    np.savez_compressed(
        place / "outlines.npz", nuclei=np.asarray(nuclei, np.float32), outlines=np.asarray(outlines, np.float32)
    )
    np.savez_compressed(
        place / "tissue.npz", tissue=np.asarray(tissue, bool), domain=np.asarray(domain, np.uint8),
        domains=np.array(domains), grid_um=np.float64(grid_um), size_um=np.float64(size_um),
    )  # fmt: skip
    (place / "stain.json").write_text(json.dumps(stain, indent=1), encoding="utf-8")


def write_expression(place: Path, *, cells, counts, panel, profiles, bin_shares) -> None:
    """Write the rest of the truth of one twin (``place`` exists)."""
    from scipy import sparse

    cells.to_parquet(place / "cells.parquet", index=False)
    sparse.save_npz(place / "cell_counts.npz", counts)
    panel[["gene", "gene_id", "group", "marker_of", "mt"]].to_parquet(place / "genes.parquet", index=False)
    profiles.to_parquet(place / "profiles.parquet")
    bin_shares.to_parquet(place / "bin_shares.parquet")

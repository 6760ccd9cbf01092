"""Sources: count matrices as 10x writes them - one h5 file, or a folder of matrix, features and barcodes.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd

from helpers.messages import CourseError
from helpers.readers_files import unreadable


def read_matrix(path: Path):
    """Return a filtered feature-barcode matrix, h5 or folder, as AnnData: spots x genes, gene symbols as names."""
    import warnings

    import scanpy as sc

    try:
        if path.is_dir():
            return _read_mtx(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")  # said by tidy_counts
            table = sc.read_10x_h5(path)
    except CourseError:
        raise
    except Exception as error:  # h5py, scipy and pandas each have their own kinds
        raise unreadable(path, error) from None
    table.var = table.var.rename(columns={"gene_ids": "gene_id"})
    return table


def _read_mtx(folder: Path):
    """Read a matrix folder, compressed or not, of Space Ranger or the older Cell Ranger (``genes.tsv``)."""
    from anndata import AnnData
    from scipy.io import mmread

    def part(*names):
        for name in names:
            for path in (folder / f"{name}.gz", folder / name):
                if path.exists():
                    return path
        raise CourseError(
            f"no {names[0]}", "matrix.mtx, features.tsv and barcodes.tsv", "copy the whole folder", file=folder
        )

    matrix, features, barcodes = part("matrix.mtx"), part("features.tsv", "genes.tsv"), part("barcodes.tsv")
    with (gzip.open if matrix.suffix == ".gz" else open)(matrix, "rb") as stream:
        values = mmread(stream).T.tocsr()
    genes = pd.read_csv(features, sep="\t", header=None, dtype=str)
    spots = pd.read_csv(barcodes, sep="\t", header=None, dtype=str)[0]
    if values.shape != (len(spots), len(genes)):
        raise CourseError(
            f"a matrix of {values.shape[1]} genes x {values.shape[0]} spots for {len(genes)} genes and "
            f"{len(spots)} barcodes",
            "the same numbers",
            "copy the whole folder again",
            file=folder,
        )
    table = AnnData(
        values,
        obs=pd.DataFrame(index=spots.to_numpy()),
        var=pd.DataFrame({"gene_id": genes[0].to_numpy()}, index=genes[min(1, genes.shape[1] - 1)].to_numpy()),
    )
    if genes.shape[1] > 2:
        table = table[:, (genes[2] == "Gene Expression").to_numpy()].copy()
    return table

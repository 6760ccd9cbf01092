"""Sources: single-cell references and their spots as plain CSV tables, as the spacexr (RCTD) vignette publishes them.

``counts.csv`` is genes x cells (or spots), ``nUMI.csv`` the molecules of each over all genes - the tables hold only
some of them -, ``cell_types.csv`` the names of the cells, ``coords.csv`` the places of the spots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.messages import CourseError, note
from helpers.readers_files import files_in

_REFERENCE, _SPOTS = "cell_types.csv", "coords.csv"
TOTAL = "n_umi"
"""Column of ``obs`` with the molecules over all genes."""


def read_reference(folder):
    """Return the reference under ``folder``.

    Returns
    -------
    anndata.AnnData
        X CSR int32 (cells, genes); ``obs``: ``cell_type`` (categorical), ``n_umi`` where the folder says it.

    Raises
    ------
    CourseError
        No or several such folders, a table that cannot be read, cells that do not match, negative or broken counts.
    """
    here = _folder(folder, _REFERENCE)
    table = _counts(here)
    kinds = _column(here / _REFERENCE).reindex(table.obs_names)
    if kinds.isna().any():
        seen = f"{int(kinds.isna().sum())} of {table.n_obs} cells without a type"
        raise CourseError(seen, "every cell of counts.csv", "take both files from one release", file=here / _REFERENCE)
    table.obs["cell_type"] = kinds.astype(str).astype("category").to_numpy()
    return table


def read_spots(folder):
    """Return the spots under ``folder``.

    Returns
    -------
    anndata.AnnData
        X CSR int32 (spots, genes); ``obs``: ``n_umi`` where the folder says it; ``obsm["spatial"]`` float64 (n, 2),
        x, y as published: full-resolution pixels of a picture that is not part of the set, so no microns are known.

    Raises
    ------
    CourseError
        As :func:`read_reference`.
    """
    here = _folder(folder, _SPOTS)
    table = _counts(here)
    places = _frame(here / _SPOTS)
    if not {"x", "y"} <= set(places.columns):
        seen = f"columns {', '.join(map(str, places.columns))}"
        raise CourseError(seen, "x and y", "take the file as published", file=here / _SPOTS)
    places = places[["x", "y"]].reindex(table.obs_names)
    if places.isna().any(axis=None):
        seen = f"{int(places.isna().any(axis=1).sum())} of {table.n_obs} spots without a place"
        raise CourseError(seen, "every spot of counts.csv", "take both files from one release", file=here / _SPOTS)
    table.obsm["spatial"] = places.to_numpy(float)
    return table


def _folder(folder, name):
    found = sorted({path.parent for path in files_in(folder) if path.name == name})
    found = [here for here in found if (here / "counts.csv").is_file()]
    if len(found) != 1:
        seen = f"{len(found)} folders with {name} and counts.csv"
        raise CourseError(seen, "one", "name the folder itself", file=Path(folder))
    return found[0]


def _frame(path):
    """Return a CSV table, the first column its index."""
    import pandas as pd

    try:
        table = pd.read_csv(path, index_col=0)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        seen = f"a table that cannot be read ({str(error).splitlines()[0][:100]})"
        raise CourseError(seen, "comma-separated text", "copy it again", file=path) from None
    table.index = table.index.astype(str)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise CourseError(f"{twice} twice", "one row each", "copy the file again", file=path)
    return table


def _column(path):
    table = _frame(path)
    if table.shape[1] != 1:
        raise CourseError(f"{table.shape[1]} columns", "a name and one value", "take the file as published", file=path)
    return table.iloc[:, 0]


def _counts(here):
    """Return counts.csv as AnnData, cells in rows, and nUMI.csv beside it."""
    import anndata
    import pandas as pd
    from scipy import sparse

    path = here / "counts.csv"
    wide = _frame(path)
    numbers = wide.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if not np.isfinite(numbers).all() or (numbers < 0).any() or (numbers != np.rint(numbers)).any():
        seen = "entries that are negative, empty or no whole numbers"
        raise CourseError(seen, "raw counts, genes x cells", "take the file as published", file=path)
    if wide.columns.has_duplicates or not wide.size:
        raise CourseError(f"a table of {wide.shape}, or a name twice", "each cell once", "copy it again", file=path)
    table = anndata.AnnData(
        sparse.csr_matrix(numbers.T.astype(np.int32)), obs=pd.DataFrame(index=wide.columns.astype(str)),
        var=pd.DataFrame(index=wide.index),
    )  # fmt: skip
    if (here / "nUMI.csv").is_file():
        total = _column(here / "nUMI.csv").reindex(table.obs_names).to_numpy(float)
        held = np.asarray(table.X.sum(1)).ravel()
        if np.isnan(total).any() or (total < held).any():
            seen = f"{int((~(total >= held)).sum())} totals that are missing or below the counts listed"
            raise CourseError(seen, "molecules over all genes", "take both from one release", file=here / "nUMI.csv")
        table.obs[TOTAL] = total
    else:
        note(f"note: no nUMI.csv in {here.name}: totals are those of the genes listed")
    return table

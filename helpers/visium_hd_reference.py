"""Methods, Visium HD: a single-cell reference as its publisher hands it out, made fit for use."""

from __future__ import annotations

import numpy as np

from helpers import settings
from helpers.messages import CourseError, note

MOST_CELLS = 60_000
"""More add little and cost memory: the walk-through's own limit."""


def read(file, *, cell_type: str = "cell_type", most: int = MOST_CELLS, seed: int = 0):
    """Return a reference with raw counts, symbols as names and its cells named in ``obs["cell_type"]``.

    Parameters
    ----------
    file
        ``.h5ad``, e.g. of CELLxGENE: counts in ``raw``, in ``layers["counts"]`` or in ``X``; symbols as names or in
        ``var["feature_name"]``. None: there is no reference.
    cell_type
        Column of ``obs``; cells without a name are left out.
    most
        Cells kept, drawn by lot within each type so that shares stay.

    Returns
    -------
    anndata.AnnData or None
        ``X`` CSR int32.

    Raises
    ------
    CourseError
        No such file or column, nothing that looks like counts.
    """
    import anndata
    from scipy import sparse

    if file is None:
        return None
    try:
        table = anndata.read_h5ad(file)
    except (OSError, KeyError, ValueError) as error:
        seen = f"{type(error).__name__}: {error}"
        raise CourseError(seen, "a reference in .h5ad", "check the file", file=file) from None
    if cell_type not in table.obs:
        seen = f"no column {cell_type!r} (there are {', '.join(map(str, table.obs.columns)) or 'none'})"
        raise CourseError(seen, "the names of the cells", "set cell_type in the YAML", file=file)
    raw = table.raw.to_adata() if table.raw is not None else None
    for place, var, counts in (
        ("raw", None if raw is None else raw.var, None if raw is None else raw.X),
        ("layers['counts']", table.var, table.layers.get("counts")), ("X", table.var, table.X),
    ):  # fmt: skip
        if counts is not None and _whole(counts):
            break
    else:
        seen = "no whole numbers in raw, layers['counts'] or X"
        raise CourseError(seen, "raw counts", "take the unscaled file", file=file)
    if place != "X":
        note(f"reference: counts are taken from {place}")
    named = table.obs[cell_type].notna().to_numpy()
    rows = np.flatnonzero(named)
    kinds = table.obs[cell_type].astype(str).to_numpy()
    if len(rows) > most:
        draw, share = settings.rng(seed, "reference cells"), most / len(rows)
        parts = [rows[kinds[rows] == kind] for kind in np.unique(kinds[rows])]
        rows = np.sort(np.concatenate([draw.permutation(part)[: max(1, round(share * len(part)))] for part in parts]))
        note(f"reference: {len(rows)} of {int(named.sum())} cells are used")
    names = var["feature_name"].astype(str) if "feature_name" in var else var.index.astype(str)
    made = anndata.AnnData(sparse.csr_matrix(counts)[rows].astype(np.int32))
    made.obs_names, made.var_names = table.obs_names[rows].astype(str), list(names)
    made.obs["cell_type"] = kinds[rows]
    made.var_names_make_unique()
    return made


def _whole(counts) -> bool:
    values = counts.data if hasattr(counts, "indptr") else np.asarray(counts).ravel()
    return not len(values) or (values.min() >= 0 and not np.any(values[:200_000] % 1))

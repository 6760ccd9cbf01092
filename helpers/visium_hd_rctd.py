"""Methods, Visium HD: RCTD (rctd-py) - counts of a bin as a noisy mixture of reference profiles.

RCTD fits the factor by which two platforms catch each gene, then, bin by bin, weights of the types under a Poisson
whose rate has log-normal noise with a heavy tail (Cable 2022). *Full* mode lets every type in; *doublet* mode asks
which one or two types explain the bin.

The likelihood is interpolated in a table that the package fetches (404 MB). It holds nothing but the formula's values,
so :func:`table` computes the part that is needed in seconds, and keeps it.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.messages import CourseError, note
from helpers.visium_hd_deconvolution import MIN_CELLS, MIN_UMI, check, enough, shares

LADDER = (30, 60, 100, 200, 400, 1000)
"""Largest counts that tables are built for; above the last, counts are cut, as in the original."""
VARIABLE = "RCTD_Q_MATRICES"
OTHER_A, OTHER_B = "(other genes of the bins)", "(other genes of the reference)"
_SPAN, _STEP, _FORMAT = 20.0, 0.01, 1
_BATCH = 2000
"""Bins fitted at once; the package's 10,000 take half a gigabyte more and no less time."""


@dataclass(frozen=True)
class Result:
    """What RCTD found.

    ``shares``: full mode, DataFrame bins x types (``visium_hd_deconvolution.shares``). ``pairs``: doublet mode, the
    same layout, or None. ``bins``: DataFrame of the doublet calls, or None: ``kind`` (reject, singlet, doublet_certain,
    doublet_uncertain; "" not asked), ``first``, ``second``. ``dropped``: type to its reference cells. ``sigma``: of the
    log-normal noise. ``genes``: that took part. ``k_val``: largest count of the table.
    """

    shares: object
    pairs: object
    bins: object
    dropped: dict
    sigma: float
    genes: tuple
    k_val: int


# ---------------------------------------------------------------- the likelihood table
def build(k_val: int, sigmas=None) -> dict:
    r"""Return the log likelihood of counts 0 to ``k_val + 2`` for each rate and each sigma.

    .. math:: P(k \mid x) = \int \mathrm{Pois}(k;\, x e^{y})\, p_\sigma(y)\, dy

    With :math:`u = y + \log x` the Poisson term no longer depends on the rate and the density no longer on the count:
    one matrix product for each sigma instead of an integral for each entry.

    Returns
    -------
    dict
        ``X_vals`` float64 (439,) rates of the package's grid; ``Q_<100 sigma>`` float64 (k_val + 3, 439), as the
        package's own file. The heavy-tailed density is the package's.
    """
    from rctd._likelihood import _ht_pdf_norm, build_x_vals
    from scipy.special import gammaln

    rates = build_x_vals()
    if sigmas is None:  # the package's grid; every second of it in the large tables, which take long to read
        sigmas = np.r_[10:71, 72:201:2] if k_val < 400 else np.r_[10:71:2, 72:201:4]
    sigmas = np.asarray(sigmas, int)
    counts = np.arange(k_val + 3)[:, None]
    top = np.log(k_val + 3) + max(3.0, 1 + 12 / np.sqrt(k_val + 3))  # above, even the largest count has no chance
    u = np.arange(np.log(rates[0]) - _SPAN, min(top, np.log(rates[-1]) + _SPAN), _STEP)
    poisson = np.exp(counts * u - gammaln(counts + 1) - np.exp(u)) * _STEP
    y = u[:, None] - np.log(rates)
    ends = np.clip((_SPAN + 0.002 - np.abs(y)) / _STEP + 0.5, 0, 1)  # the package sums |y| <= 20 in steps of 0.004
    out = {"X_vals": rates}
    for sigma in sigmas:
        density = _ht_pdf_norm(y / (sigma / 100)) / (sigma / 100) * ends
        out[f"Q_{sigma}"] = np.log(np.maximum(poisson @ density, 1e-300))
    return out


def table(largest: int, *, k_val: int | None = None, folder=None, sigmas=None) -> tuple[Path, int]:
    """Return the file of a likelihood table for counts up to ``largest``, and the largest count it has.

    ``RCTD_Q_MATRICES`` wins if it is set; else a table of the smallest fitting size of ``LADDER`` is built once and
    kept under ``folder`` (default ``rctd/`` in the course's cache). It is written under a temporary name first, so two
    runs at once cannot spoil it.

    Raises
    ------
    CourseError
        The table wanted, or the file named, ends below ``largest``; a file that holds no such table.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        path = Path(given).expanduser()
        path = path / "q_matrices.npz" if path.is_dir() else path
        rows = _rows(path)
        if rows is None:
            raise CourseError("no likelihood table", "the q_matrices.npz of rctd-py", f"unset {VARIABLE}", file=path)
        return path, _fits(largest, rows - 3, path)
    if k_val is None:
        k_val = next((step for step in LADDER if step >= largest), LADDER[-1])
        if largest > k_val:
            note(f"note: counts above {k_val} are taken as {k_val} (largest: {largest}), as RCTD does")
    else:
        _fits(largest, k_val, None)
    name = f"likelihood_{_FORMAT}_{k_val}{'' if sigmas is None else f'_{len(sigmas)}'}.npz"
    path = (settings.cache_dir() / "rctd" if folder is None else Path(folder)) / name
    if _rows(path) != k_val + 3:
        kind = np.float64 if k_val <= 100 else np.float32  # half the size
        made = {key: one if key == "X_vals" else one.astype(kind) for key, one in build(k_val, sigmas).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **made)
            os.replace(part, path)
        finally:
            Path(part).unlink(missing_ok=True)
    return path, k_val


def _fits(largest, k_val, file):
    if largest > k_val:
        seen = f"a count of {largest} in a bin, a likelihood table up to {k_val}"
        raise CourseError(seen, "a table that reaches the largest count", "leave k_val out", file=file)
    return k_val


def _rows(path):
    """Return the rows of the table of sigma 1 (where the search begins), or None for a file that is none."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("Q_100.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(stream)[0][0]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


@contextlib.contextmanager
def _quietly(path, threads):
    """Point the package at the table, keep its messages off stdout, and give back threads and environment."""
    import warnings

    import torch

    before, at_work = os.environ.get(VARIABLE), torch.get_num_threads()
    os.environ[VARIABLE] = str(path)
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(at_work)
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


# ---------------------------------------------------------------- deconvolution
def run(
    bins, reference, *, doublet=None, cell_type: str = "cell_type", min_umi: float = MIN_UMI, min_umi_sigma=None,
    min_cells: int = MIN_CELLS, min_umi_cells: float = 100, total: str | None = None, k_val: int | None = None,
    sigma: float | None = None, sample: int = 300, threads: int = 1, dtype: str = "float32", folder=None,
    sigmas=None,
) -> Result:  # fmt: skip
    """Return RCTD's shares of cell types, in full mode everywhere and in doublet mode where asked.

    Parameters
    ----------
    bins, reference
        AnnData of raw counts, as for ``visium_hd_deconvolution.check``; not changed.
    doublet
        bool (bins,): bins that doublet mode is run on as well (it costs several times as much); None: none.
    min_umi, min_umi_sigma
        Least molecules of a bin, and of one that the noise is estimated from (default: the median of those asked).
    min_cells, min_umi_cells
        A reference cell with fewer than ``min_umi_cells`` molecules is left out, then a type with fewer than
        ``min_cells`` cells is dropped: said on stderr and returned. Its molecules go to its likes.
    total
        Column of both ``obs`` with the molecules over *all* genes, where the tables hold only some of them.
    k_val
        Size of the likelihood table; default by the largest count (:func:`table`).
    sigma
        Noise, if it is known (skips the estimate); as in :class:`Result`.
    sample
        Bins the noise is estimated from (the original: 1000), drawn by the package with a seed of its own.
    dtype
        ``"float64"`` is the original's; half as many digits are a third faster and move no share by more than 0.01.
    threads
        Of torch. One: its steps are short, and two threads on busy cores wait for each other longer than they work.

    Raises
    ------
    CourseError
        As ``check``; no bin or fewer than two types left; a table that ends below the largest count.
    """
    from rctd import RCTD, RCTDConfig, Reference, run_doublet_mode, run_full_mode

    genes = check(bins, reference, cell_type=cell_type)
    kept = enough(bins, min_umi, genes=genes)
    cells = reference.copy()
    cells.obs["cell_type"] = cells.obs[cell_type].astype(str).to_numpy(object)
    asked = bins[kept].copy()
    if total is not None:
        asked, cells = _with_others(asked, total, OTHER_A), _with_others(cells, total, OTHER_B)
    path, k_val = table(int(asked[:, genes].X.max()), k_val=k_val, folder=folder, sigmas=sigmas)
    umi = np.asarray(asked.X.sum(1)).ravel()
    least = float(np.median(umi)) if min_umi_sigma is None else float(min_umi_sigma)
    config = RCTDConfig(
        UMI_min=1, counts_MIN=1, UMI_min_sigma=min(least, umi.max() - 1), N_fit=sample, K_val=k_val, device="cpu",
        compile=False, dtype=dtype,
    )  # fmt: skip
    cells, dropped = _known(cells, min_cells, min_umi_cells)
    with _quietly(path, threads):
        known = Reference(cells, cell_type_col="cell_type", cell_min=min_cells, min_UMI=min_umi_cells)
        model = RCTD(asked, known, config)
        model.fit_platform_effects(sigma_override=None if sigma is None else round(100 * sigma))
        fitted = kept.copy()
        fitted[np.flatnonzero(kept)] = model._pixel_mask
        fixed = {"norm_profiles": model.norm_profiles, "cell_type_names": known.cell_type_names, "q_mat": model.q_mat,
                 "sq_mat": model.sq_mat, "x_vals": model.x_vals, "device": "cpu", "batch_size": _BATCH}  # fmt: skip
        full = run_full_mode(spatial_counts=model.counts, spatial_numi=model.nUMI, **fixed)
        pairs = calls = None
        if doublet is not None and (where := _mask(doublet, bins) & fitted).any():
            part = where[fitted]
            two = run_doublet_mode(
                spatial_counts=model.counts[part], spatial_numi=model.nUMI[part], config=config, **fixed
            )
            pairs, calls = _doublets(two, where, bins)
    return Result(shares(full.weights, fitted, bins, known.cell_type_names), pairs, calls, dropped,
                  model.sigma / 100, tuple(model._gene_list_reg), k_val)  # fmt: skip


def _known(cells, min_cells, min_umi_cells):
    """Return the reference cells of types that RCTD will keep, and the types it will not."""
    kind = cells.obs["cell_type"]
    rich = np.asarray(cells.X.sum(1)).ravel() >= min_umi_cells
    number = kind[rich].value_counts().reindex(sorted(kind.unique()), fill_value=0)
    dropped = {name: int(n) for name, n in number.items() if n < min_cells}
    if len(number) - len(dropped) < 2:
        seen = f"{len(number) - len(dropped)} types with {min_cells} cells of {min_umi_cells:g} molecules or more"
        raise CourseError(seen, "at least two", "lower min_cells or min_umi_cells, or give total=")
    if dropped:
        listed = ", ".join(f"{name} ({n})" for name, n in dropped.items())
        note(f"note: RCTD drops types with fewer than {min_cells} reference cells: {listed}")
    return cells[~kind.isin(list(dropped)).to_numpy()].copy(), dropped


def _mask(doublet, bins):
    mask = np.asarray(doublet)
    if mask.dtype != bool or mask.shape != (bins.n_obs,):
        seen = f"doublet of {mask.dtype}, shape {mask.shape}"
        raise CourseError(seen, f"bool, one for each of the {bins.n_obs} bins", "pass a mask")
    return mask


def _with_others(table, column, name):
    """Return the table with one more column: the molecules of the genes it does not hold."""
    import anndata
    import pandas as pd
    from scipy import sparse

    if column not in table.obs:
        seen = f"no column {column!r} in obs"
        raise CourseError(seen, "molecules over all genes", "leave total out, or name the column")
    held = sparse.csr_matrix(table.X)
    others = table.obs[column].to_numpy(float) - np.asarray(held.sum(1)).ravel()
    if (others < 0).any():
        seen = f"{(others < 0).sum()} rows whose genes sum to more than {column!r}"
        raise CourseError(seen, "a total over all genes", "leave total out")
    X = sparse.hstack([held, sparse.csr_matrix(others[:, None])], format="csr")
    return anndata.AnnData(X, obs=table.obs.copy(), var=pd.DataFrame(index=[*table.var_names, name]))


def _doublets(two, where, bins):
    """Return the shares of a doublet run, and its calls, for all bins."""
    import pandas as pd
    from rctd import SPOT_CLASS_NAMES

    names, rows = np.array(two.cell_type_names, object), np.arange(len(two.first_type))
    kind = np.array(SPOT_CLASS_NAMES, object)[two.spot_class]
    weights = np.zeros((len(rows), len(names)))
    weights[rows, two.second_type] = two.weights_doublet[:, 1]
    weights[rows, two.first_type] = two.weights_doublet[:, 0]
    alone = kind == "singlet"
    weights[alone] = 0
    weights[alone, two.first_type[alone]] = 1
    weights[kind == "reject"] = 0  # no pair stands out: no answer
    calls = pd.DataFrame("", index=bins.obs_names.copy(), columns=["kind", "first", "second"], dtype=object)
    calls.loc[where, "kind"], calls.loc[where, "first"] = kind, names[two.first_type]
    calls.loc[where, "second"] = np.where(alone, "", names[two.second_type])
    return shares(weights, where, bins, names), calls

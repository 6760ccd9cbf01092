"""Examiner: shares of cell types in bins, and names of cells, of a virtual Visium HD section against its truth.

The null twin has no meaning here: a bin's types *are* its molecules, and dealing both together leaves every answer
right. The tests instead: a reference whose names are shuffled (:func:`shuffled`) must find nothing; and what a method
does with a type that its reference lacks, and with one that the tissue lacks.
"""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError


def true_shares(truth, bins):
    """Return the true share of each type among the molecules of each bin, DataFrame in the order of ``bins``.

    NaN where no cell left a molecule.
    """
    shares = truth.bin_shares
    if not bins.obs_names.isin(shares.index).all():
        strange = int((~bins.obs_names.isin(shares.index)).sum())
        seen = f"{strange} of {bins.n_obs} bins the truth does not know"
        raise CourseError(seen, "the bins of the same section", "load both with one id")
    shares = shares.loc[bins.obs_names].astype(float)
    return shares.where(shares.sum(axis=1) > 0)


def shuffled(reference, *, seed: int = 0, cell_type: str = "cell_type"):
    """Return a copy of a reference whose cells have swapped their names: it knows nothing of types."""
    from helpers import settings

    out = reference.copy()
    order = settings.rng(seed, "shuffled reference").permutation(out.n_obs)
    out.obs[cell_type] = reference.obs[cell_type].to_numpy()[order]
    return out


def by_type(found, true, *, where=None):
    """Compare shares, type by type.

    Parameters
    ----------
    found, true
        DataFrames, bins x types. Bins without an answer (NaN) are left out.
    where
        bool (bins,): bins to compare.

    Returns
    -------
    pandas.DataFrame
        Index: every type of either. ``correlation`` (Pearson over bins; NaN where a type is on one side only, 0 where
        it was never found), ``rmse``, ``mean_found``, ``mean_true`` (NaN: the type is unknown there).
    """
    import pandas as pd

    kept = found.notna().all(axis=1).to_numpy() & true.notna().all(axis=1).to_numpy()
    kept &= True if where is None else np.asarray(where)
    if kept.sum() < 3:
        raise CourseError(f"{kept.sum()} bins with an answer", "at least 3", "ask more bins")
    rows = {}
    for name in [*true.columns, *(one for one in found.columns if one not in true.columns)]:
        a = found[name].to_numpy()[kept] if name in found else None
        b = true[name].to_numpy()[kept] if name in true else None
        row = {"mean_found": np.nan if a is None else a.mean(), "mean_true": np.nan if b is None else b.mean()}
        row |= {"correlation": np.nan, "rmse": np.nan}
        if a is not None and b is not None:
            row["rmse"] = float(np.sqrt(np.mean((a - b) ** 2)))
            row["correlation"] = _correlation(a, b)
        rows[name] = row
    return pd.DataFrame(rows).T[["correlation", "rmse", "mean_found", "mean_true"]].rename_axis("type")


def _correlation(a, b):
    if b.std() < 1e-12:
        return np.nan
    return 0.0 if a.std() < 1e-12 else float(np.corrcoef(a, b)[0, 1])


def summary(found, true, *, where=None) -> dict[str, float]:
    """Return one line of :func:`by_type`.

    Returns
    -------
    dict
        ``correlation`` (median over types on both sides), ``lowest`` (the worst of them), ``rmse`` (over all entries of
        those types), ``dominant`` (bins whose largest share is named rightly, of all that were asked: a type missing
        from the reference counts as wrong), ``majority`` (what the commonest type for all would score), ``asked``
        (share of bins with an answer).
    """
    table = by_type(found, true, where=where)
    both = table.dropna(subset=["correlation"])
    kept = found.notna().all(axis=1).to_numpy() & true.notna().all(axis=1).to_numpy()
    considered = np.ones(len(kept), bool) if where is None else np.asarray(where)
    kept &= considered
    top = np.asarray(true.columns, object)[true.to_numpy()[kept].argmax(1)]
    said = np.asarray(found.columns, object)[found.to_numpy()[kept].argmax(1)]
    return {
        "correlation": float(both["correlation"].median()), "lowest": float(both["correlation"].min()),
        "rmse": float(np.sqrt((both["rmse"] ** 2).mean())), "dominant": float((said == top).mean()),
        "majority": float(np.unique(top.astype(str), return_counts=True)[1].max() / len(top)),
        "asked": float(kept.sum() / considered.sum()),
    }  # fmt: skip


def table(methods, true, *, where=None):
    """Return :func:`summary` of each method (name -> shares), over the bins that **all** of them answered."""
    import pandas as pd

    kept = np.ones(len(true), bool) if where is None else np.asarray(where).copy()
    for found in methods.values():
        kept &= found.notna().all(axis=1).to_numpy()
    rows = {name: summary(found, true, where=kept) for name, found in methods.items()}
    return pd.DataFrame(rows).T.drop(columns="asked").rename_axis("method")


def receivers(found, true, missing: str, *, least: float = 0.5):
    """Return who gets the molecules of a type that the reference lacks.

    Parameters
    ----------
    missing
        Its name, a column of ``true``.
    least
        Bins where it has at least this share count as its own.

    Returns
    -------
    pandas.DataFrame
        By type, largest first: mean share ``found`` in these bins, ``true`` there, and ``extra``, their difference.
    """
    import pandas as pd

    own = (true[missing].to_numpy() >= least) & found.notna().all(axis=1).to_numpy()
    if not own.any():
        raise CourseError(f"no bin with {least:.0%} of {missing}", "some", "lower least, or take another type")
    there = found[own].mean()
    right = true[own].mean().reindex(there.index)
    out = pd.DataFrame({"found": there, "true": right, "extra": there - right.fillna(0)})
    out.attrs["bins"] = int(own.sum())
    return out.sort_values("extra", ascending=False)


def doublets(calls, true) -> dict[str, float]:
    """Return how RCTD's calls of pairs fare.

    Parameters
    ----------
    calls
        ``bins`` of ``visium_hd_rctd.Result``.

    Returns
    -------
    dict
        Shares of the kinds among bins asked; ``first``: singlets whose type is the bin's largest; ``purity_singlet``,
        ``purity_doublet``: mean true share of the largest type (a useful call has more in singlets); ``pair``: certain
        doublets whose two types are the two largest, in any order.
    """
    rows = (calls["kind"] != "").to_numpy() & true.notna().all(axis=1).to_numpy()
    kind, first, second = (calls.loc[rows, name].to_numpy(object) for name in ("kind", "first", "second"))
    share = true.to_numpy()[rows]
    ranked = np.asarray(true.columns, object)[np.argsort(-share, axis=1)[:, :2]]
    alone, two = kind == "singlet", kind == "doublet_certain"
    pair = [{a, b} == set(c) for a, b, c in zip(first[two], second[two], ranked[two])]
    out = {name: float((kind == name).mean()) for name in ("singlet", "doublet_certain", "doublet_uncertain", "reject")}
    best = share.max(1)
    return out | {
        "first": float((first[alone] == ranked[alone, 0]).mean()) if alone.any() else np.nan,
        "purity_singlet": float(best[alone].mean()) if alone.any() else np.nan,
        "purity_doublet": float(best[two].mean()) if two.any() else np.nan,
        "pair": float(np.mean(pair)) if pair else np.nan,
    }  # fmt: skip


# ---------------------------------------------------------------- cells
def match(xy_um, truth, *, radius_um: float = 4.0):
    """Return the row of the true cell each segmented cell is, int (n,), -1 for none: nearest centres, each the other's.

    Parameters
    ----------
    xy_um
        float (n, 2), centres in microns.
    """
    from scipy.spatial import cKDTree

    here, there = np.asarray(xy_um, float), truth.cells[["x_um", "y_um"]].to_numpy(float)
    far, near = cKDTree(there).query(here)
    back = cKDTree(here).query(there)[1]
    return np.where((far <= radius_um) & (back[near] == np.arange(len(here))), near, -1)


def names(labels, matched, truth, *, column: str = "type", lacking=()) -> dict:
    """Return how names of cells fare against the type of the true cell each was matched with.

    Parameters
    ----------
    labels
        DataFrame of ``visium_hd_celltypist.annotate``; "" in ``column`` is unnamed and counts as wrong.
    matched
        Of :func:`match`.
    lacking
        Types the reference had not.

    Returns
    -------
    dict
        ``accuracy`` (of matched cells whose type the reference has), ``accuracy_all`` (of all matched), ``majority``
        (the commonest type for all), ``balanced`` (mean recall of types the reference has), ``doubt`` (chance that a
        cell of a lacking type has less confidence than another; 0.5: it cannot be told), ``recall`` (Series),
        ``lacking`` (Series: what those cells are called).
    """
    import pandas as pd

    kept = np.asarray(matched) >= 0
    true = truth.cells["type"].to_numpy(object)[np.asarray(matched)[kept]]
    said, sure = labels[column].to_numpy(object)[kept], labels["confidence"].to_numpy(float)[kept]
    known = ~np.isin(true.astype(str), list(lacking))
    right = pd.Series(said == true)
    recall = right.groupby(true).mean()
    strange = pd.Series(said[~known]).value_counts(normalize=True)
    return {
        "accuracy": float(right[known].mean()), "accuracy_all": float(right.mean()),
        "majority": float(pd.Series(true).value_counts(normalize=True).max()),
        "balanced": float(recall.drop(list(lacking), errors="ignore").mean()),
        "doubt": _auc(-sure, ~known), "recall": recall, "lacking": strange, "matched": float(kept.mean()),
    }  # fmt: skip


def _auc(score, positive):
    """Return the chance that a positive has the higher score (ties half); NaN with one kind only."""
    from scipy.stats import rankdata

    told = ~np.isnan(score)
    score, positive = score[told], positive[told]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else np.nan


# ---------------------------------------------------------------- where no truth is known
def agreement(a, b):
    """Compare two methods' shares where no truth is known: agreement is no accuracy, disagreement is a warning.

    Returns
    -------
    pandas.DataFrame
        By type: ``correlation`` over bins both answered (NaN if one never finds it), ``mean_a``, ``mean_b``;
        ``attrs["dominant"]``: share of bins with the same largest type.
    """
    import pandas as pd

    kept = a.notna().all(axis=1).to_numpy() & b.notna().all(axis=1).to_numpy()
    types = [name for name in a.columns if name in b.columns]
    x, y = a.loc[kept, types].to_numpy(), b.loc[kept, types].to_numpy()
    flat = (x.std(0) < 1e-12) | (y.std(0) < 1e-12)
    r = [np.nan if dull else np.corrcoef(x[:, i], y[:, i])[0, 1] for i, dull in enumerate(flat)]
    out = pd.DataFrame({"correlation": r, "mean_a": x.mean(0), "mean_b": y.mean(0)}, index=pd.Index(types, name="type"))
    out.attrs["dominant"] = float((a[kept].idxmax(axis=1) == b[kept].idxmax(axis=1)).mean())
    return out


def real_spots(name: str, *, seed: int = 0):
    """Return how each method agrees with RCTD on real Visium spots, or None where the data do not lie here.

    Parameters
    ----------
    name
        A data set of the catalogue laid out as ``scrna_reference``; "" for none.

    Returns
    -------
    pandas.DataFrame
        Types x methods: correlation over the spots with RCTD's shares. The row ``same main type`` has the share of
        spots in which both name the same.
    """
    import pandas as pd

    from helpers import catalogue, readers_scrna
    from helpers import visium_hd_deconvolution as deconvolution
    from helpers import visium_hd_rctd as rctd

    if not name or not (folder := catalogue.dataset(name).folder).is_dir():
        return None
    spots, reference = readers_scrna.read_spots(folder), readers_scrna.read_reference(folder)
    options = {"min_umi": 1}
    by_rctd = rctd.run(spots, reference, total=readers_scrna.TOTAL, **options).shares
    others = {
        "FlashDeconv": deconvolution.flashdeconv(spots, reference, seed=seed, **options),
        "FlashDeconv, Pearson": deconvolution.flashdeconv(spots, reference, preprocess="pearson", seed=seed, **options),
        "least squares": deconvolution.least_squares(spots, reference, **options),
    }
    against = {each: agreement(one, by_rctd) for each, one in others.items()}
    table = pd.DataFrame({each: one["correlation"] for each, one in against.items()})
    table.loc["same main type"] = [one.attrs["dominant"] for one in against.values()]
    return table

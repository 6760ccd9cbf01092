"""Methods, Visium HD: spatial domains - Novae, how many of them, and what simpler methods make of the same cells.

Novae itself is called in the notebook; its guards are in ``visium_hd_domains_novae``. The measure of the number of
domains never sees the truth, nor does anything here. All places are in microns (``visium_hd_qc.check_um``).
"""

from __future__ import annotations

import math

import numpy as np

from helpers import settings
from helpers.messages import CourseError
from helpers.visium_hd_domains_novae import (
    KS,
    PRETRAINED,
    SMALL,
    fitted,
    levels,
    link,
    load,
    prepare,
    pretrained,
    ranked,
    seeded,
    training,
)  # fmt: skip

__all__ = [
    "KS", "PRETRAINED", "SMALL", "agreement", "choose", "compare", "components", "damage", "dealt", "directions",
    "fitted", "flagged", "kmeans", "leiden", "levels", "link", "load", "named_alike", "places", "prepare", "pretrained",
    "ranked", "seeded", "silhouettes", "smoothed", "training", "tree",
]  # fmt: skip


# ---------------------------------------------------------------- how many
def directions(latent):
    """Return rows scaled to length one (Novae compares directions), float (n, d); rows of zeros stay."""
    latent = np.asarray(latent, float)
    return latent / np.maximum(np.linalg.norm(latent, axis=1, keepdims=True), 1e-9)


def silhouettes(latent, labels, *, seed: int, most: int = 2000):
    """Return how well each number of domains separates the space, without the truth: silhouette (Rousseeuw 1987).

    Parameters
    ----------
    latent
        float (n, d).
    labels
        DataFrame (n, levels), as :func:`levels` returns.
    most
        Cells drawn for the measure: it costs n squared.

    Returns
    -------
    pandas.Series
        Number of domains -> silhouette, -1 to 1. The best is the number to use (:func:`choose`).
    """
    import pandas as pd
    from sklearn.metrics import silhouette_score

    known = np.flatnonzero(labels.notna().all(axis=1))
    chosen = np.sort(settings.rng(seed, "silhouette").permutation(known)[:most])
    part = np.asarray(latent, float)[chosen]
    out = {}
    for k in labels:
        one = labels[k].to_numpy(object)[chosen]
        out[k] = silhouette_score(part, one) if 1 < len(set(one)) < len(one) else -1.0
    return pd.Series(out, name="silhouette").rename_axis("domains")


def choose(quality) -> int:
    """Return the number of domains with the best silhouette. Whether there are any is asked by :func:`dealt`."""
    return int(quality.idxmax())


def dealt(made, *, radius_um: float, seed: int, ks=KS) -> dict[str, float]:
    """Ask whether there are domains at all: the same cells with their expression dealt anew among the places.

    Parameters
    ----------
    made
        Of :func:`prepare`.

    Returns
    -------
    dict
        Best silhouette over ``ks`` of smoothed components and k-means: ``tissue`` (as it is), ``dealt`` (cells moved at
        random). Any clustering finds ``k`` clusters; only the difference of the two says that place matters.
    """
    points, order = components(made), settings.rng(seed, "dealt").permutation(made.n_obs)
    out = {}
    for name, values in {"tissue": points, "dealt": points[order]}.items():
        latent = _mean_nearby(made.obsm["spatial"], values, radius_um)
        out[name] = float(silhouettes(latent, kmeans(latent, ks, seed=seed), seed=seed).max())
    return out


# ---------------------------------------------------------------- simpler methods
def components(made, *, n: int = 20):
    """Return the first principal components of the log counts, float (cells, n)."""
    import scanpy as sc

    return sc.pp.pca(made.X, n_comps=min(n, min(made.shape) - 1), random_state=0, return_info=False)


def smoothed(made, *, radius_um: float, n: int = 20):
    """Return the components averaged over all cells within ``radius_um``: a neighbourhood without a network."""
    return _mean_nearby(made.obsm["spatial"], components(made, n=n), radius_um)


def _mean_nearby(xy_um, values, radius_um):
    """Return the mean of ``values`` (n, d) over the cells within ``radius_um`` of each, itself among them."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    tree = cKDTree(xy_um)
    near = tree.sparse_distance_matrix(tree, radius_um, output_type="coo_matrix").tocsr()
    near = (near + sparse.identity(len(values))).tocsr()
    near.data[:] = 1.0
    return sparse.diags(1 / np.asarray(near.sum(1)).ravel()) @ near @ values


def kmeans(latent, ks=KS, *, seed: int, index=None):
    """Return k-means clusters for each number, a data frame (``index``, ks) of names as :func:`levels`."""
    import pandas as pd
    from sklearn.cluster import KMeans

    state = int(settings.rng(seed, "kmeans").integers(2**31))
    found = {k: ranked(KMeans(k, n_init=5, random_state=state).fit_predict(latent)) for k in ks}
    return pd.DataFrame(found, index=index).rename_axis(columns="domains")


def leiden(made, k: int, *, spatial: bool, seed: int, layer_ratio: float = 2.0):
    """Return about ``k`` Leiden clusters of expression, or of expression and place (SpatialLeiden).

    Parameters
    ----------
    made
        Of :func:`prepare`.
    k
        Number wanted; the resolution is searched, and where none gives ``k`` the nearest number is taken.
    spatial
        False: plain Leiden on 15 nearest neighbours in expression. True: SpatialLeiden, that graph and the one of the
        tissue as two layers.
    layer_ratio
        Weight of the tissue's layer (SpatialLeiden). Above 2 it cuts the tissue into patches of equal size, whatever
        the cells express.

    Returns
    -------
    numpy.ndarray
        object (cells,), names as :func:`levels`.
    """
    import scanpy as sc
    import spatialleiden

    if "connectivities" not in made.obsp:
        made.obsm["X_pca"] = components(made)
        # method "umap" would import umap, and with it TensorFlow: 14 CPU s. The Gaussian kernel does as well here.
        near = min(15, made.n_obs - 1)
        sc.pp.neighbors(made, n_neighbors=near, use_rep="X_pca", method="gauss", transformer="sklearn")
    state = int(settings.rng(seed, "leiden").integers(2**31))

    def at(resolution):
        shared = {"resolution": resolution, "directed": False, "n_iterations": 2, "random_state": state}
        if spatial:
            spatialleiden.spatialleiden(made, layer_ratio=layer_ratio, key_added="_leiden", **shared)
        else:
            spatialleiden.leiden(made, key_added="_leiden", **shared)
        return made.obs.pop("_leiden").astype(str).to_numpy(object)

    low, high, best = 0.1, 3.0, None
    for _ in range(7):
        middle = math.sqrt(low * high)
        labels = at(middle)
        found = len(set(labels))
        if best is None or abs(found - k) < abs(len(set(best)) - k):
            best = labels
        if found == k:
            break
        low, high = (middle, high) if found < k else (low, middle)
    return ranked(best)


def places(made, k: int, *, seed: int):
    """Return ``k`` patches of tissue by place alone (k-means of x and y): what blobs score without any gene."""
    return kmeans(made.obsm["spatial"], [k], seed=seed)[k].to_numpy(object)


def compare(made, k: int, *, radius_um: float, seed: int, novae=None):
    """Return the labels of every method at ``k`` domains, a data frame with one column a method.

    ``novae`` is a column of :func:`levels`; with ``made.obsm["novae_latent"]`` k-means of Novae's space is shown beside
    Novae's own tree. The last column looks at no gene: an agreement below it is none. Domains have the name of the
    domain of the first column that they share most cells with (:func:`named_alike`).
    """
    import pandas as pd

    rows = {} if novae is None else {"Novae": np.asarray(novae, object)}
    if novae is not None and "novae_latent" in made.obsm:
        latent = directions(made.obsm["novae_latent"])
        rows["Novae's space, k-means"] = kmeans(latent, [k], seed=seed)[k].to_numpy(object)
    rows["smoothed PCA, k-means"] = kmeans(smoothed(made, radius_um=radius_um), [k], seed=seed)[k].to_numpy(object)
    rows["SpatialLeiden"] = leiden(made, k, spatial=True, seed=seed)
    rows["Leiden, expression only"] = leiden(made, k, spatial=False, seed=seed)
    rows["place only"] = places(made, k, seed=seed)
    first = next(iter(rows.values()))
    return pd.DataFrame({name: named_alike(one, first) for name, one in rows.items()}, index=made.obs_names)


def damage(cells, flag, *, radius_um: float, seed: int, ks=KS) -> dict[str, float]:
    """Return the domain, of a quick clustering at any number of domains, that is most the damaged cells.

    Parameters
    ----------
    cells
        AnnData with places in microns; :func:`smoothed` components and k-means stand for any method.
    flag
        bool (cells,), e.g. many mitochondrial counts.

    Returns
    -------
    dict
        ``cells`` flagged, ``domains`` (their number there), ``share`` of the domain that is flagged, ``holds`` (of the
        flagged, how many lie in it). Both near 1: that domain *is* the damage.
    """
    counted = np.asarray(cells.X.sum(1)).ravel() > 0
    made, flag = prepare(cells[counted], radius_um=radius_um), np.asarray(flag, bool)[counted]
    best = {"cells": int(flag.sum()), "domains": 0, "share": 0.0, "holds": 0.0}
    for k, labels in kmeans(smoothed(made, radius_um=radius_um), ks, seed=seed, index=made.obs_names).items():
        table = flagged(labels, flag)
        worst = table.loc[(table["share"] * table["holds"]).idxmax()]
        if worst["share"] * worst["holds"] > best["share"] * best["holds"]:
            best |= {"domains": int(k), "share": float(worst["share"]), "holds": float(worst["holds"])}
    return best


def named_alike(labels, like):
    """Return labels with the names of ``like`` where they share most cells (one to one), object array (n,).

    A partition has no names of its own; without this, one domain would have another colour in every picture. Domains
    left over, when ``labels`` has more, get the names that follow.
    """
    import pandas as pd
    from scipy.optimize import linear_sum_assignment

    labels, like = np.asarray(labels, object), np.asarray(like, object)
    shared = pd.crosstab(labels, like)
    own, theirs = linear_sum_assignment(-shared.to_numpy())
    names = {shared.index[a]: shared.columns[b] for a, b in zip(own, theirs)}
    spare = (f"D{i}" for i in range(1, 10_000) if f"D{i}" not in set(shared.columns))
    names |= {old: next(spare) for old in shared.index if old not in names}
    return pd.Series(labels).map(names).to_numpy(object)


def agreement(labels):
    """Return the adjusted Rand index of each pair of columns, a symmetric data frame."""
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    columns = {name: labels[name].fillna("").astype(str).to_numpy() for name in labels}
    rows = {a: {b: adjusted_rand_score(columns[a], columns[b]) for b in columns} for a in columns}
    return pd.DataFrame(rows)


def flagged(labels, flag):
    """Return, for each domain, how much of it is flagged and how much of the flagged it holds.

    Parameters
    ----------
    labels
        (n,) domains.
    flag
        bool (n,): cells rich in mitochondrial counts, cells of an island, ...

    Returns
    -------
    pandas.DataFrame
        Index domain: ``cells``, ``share`` (of the domain that is flagged), ``holds`` (share of the flagged in it). A
        domain with both near 1 is the flag itself under another name.
    """
    import pandas as pd

    labels, flag = pd.Series(np.asarray(labels, object)), np.asarray(flag, bool)
    if len(labels) != len(flag):
        raise CourseError(f"{len(labels)} domains, {len(flag)} flags", "one each", "take both from the same cells")
    both = pd.DataFrame({"domain": labels, "flag": flag}).groupby("domain")["flag"].agg(["size", "sum"])
    return pd.DataFrame({"cells": both["size"], "share": both["sum"] / both["size"],
                         "holds": both["sum"] / max(int(flag.sum()), 1)})  # fmt: skip


def tree(latent, labels):
    """Return how the domains join (average linkage of their mean directions, cosine) and their names, for scipy's
    ``dendrogram(linkage, labels=names)``. Novae's own tree of prototypes is ``model.plot_domains_hierarchy()``."""
    from scipy.cluster.hierarchy import linkage

    labels = np.asarray(labels, object)
    names = sorted({name for name in labels if isinstance(name, str)}, key=lambda name: int(name[1:]))
    means = directions([np.asarray(latent, float)[labels == name].mean(0) for name in names])
    return linkage(means, method="average", metric="cosine"), names

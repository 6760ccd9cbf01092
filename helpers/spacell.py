"""Methods: SpaCell's clustering. Autoencoders on tile embeddings and genes, then k-means (Tan et al., 2020).

Four kinds of input: ``gene``, ``tile``, ``joint`` (one bottleneck, two outputs) and ``two`` (the codes of the first two
side by side; the paper's best). The networks of a comparison are trained together (``spacell_batch``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers.messages import CourseError
from helpers.spacell_batch import LOSSES, train_together

KINDS = ("two", "joint", "gene", "tile")
SCALINGS = ("minmax", "top", "all")
"""``minmax``: each feature to [0, 1], most variable genes; ``top``: those genes over one number; ``all``: every gene
over one number. (SpaCell's last two leave the values as they are, and then a sigmoid cannot reach them.)"""


@dataclass(frozen=True)
class Fit:
    """One trained combination.

    Attributes
    ----------
    kind, scaling, loss
        As in ``KINDS``, ``SCALINGS`` and ``LOSSES``.
    code
        Float32 (n, 20), or (n, 40) for ``two``: the bottleneck, each column in [0, 1].
    learned
        Share of the loss of the mean predictor that the network took away, 0-1; of two networks, the worse. Near 0
        the network has learned nothing, and its clusters mean nothing.
    """

    kind: str
    scaling: str
    loss: str
    code: np.ndarray = field(repr=False)
    learned: float


def minmax(values):
    """Scale each column of (n, features) to [0, 1], float32; a constant column becomes 0."""
    values = np.asarray(values, np.float32)
    low, span = values.min(0), np.ptp(values, axis=0)
    return ((values - low) / np.where(span > 0, span, 1)).astype(np.float32)


def by_one_number(values):
    """Scale all of (n, features) by one shift and one factor to [0, 1], float32: features keep their relative size."""
    values = np.asarray(values, np.float32)
    low, span = min(float(values.min()), 0.0), float(np.ptp(np.append(values, 0)))
    return ((values - low) / (span or 1)).astype(np.float32)


def inputs(genes, tiles, scaling: str, *, top: int) -> dict:
    """Return the inputs of one scaling.

    Parameters
    ----------
    genes
        Float (n, g), log-normalised, columns ordered by falling variance.
    tiles
        Float (n, d), embeddings.
    top
        Number of genes kept by ``minmax`` and ``top``.
    """
    if scaling not in SCALINGS:
        raise CourseError(f"scaling {scaling!r}", f"one of {', '.join(SCALINGS)}", "choose one")
    if len(genes) != len(tiles):
        raise CourseError(f"{len(genes)} spots and {len(tiles)} tiles", "one tile a spot", "pair them first")
    if scaling == "minmax":
        return {"gene": minmax(genes[:, :top]), "tile": minmax(tiles)}
    return {"gene": by_one_number(genes if scaling == "all" else genes[:, :top]), "tile": by_one_number(tiles)}


def fit(genes, tiles, *, kinds=KINDS, scalings=("minmax",), losses=("bce",), top=2048, seed=0, **options) -> list[Fit]:
    """Train every combination of kind, scaling and loss, together.

    Networks of one structure share a batch, so all 36 combinations of the paper are three runs: ``two`` needs no
    network of its own, it takes the codes of ``gene`` and ``tile``.

    Parameters
    ----------
    genes, tiles
        As for :func:`inputs`; ``top`` too.
    options
        ``epochs``, ``hidden``, ``batch``, ``components``, ``learning_rate`` of ``spacell_batch.train_together``.

    Returns
    -------
    list of Fit
        In the order kinds, scalings, losses.
    """
    for given, known in ((kinds, KINDS), (losses, LOSSES)):
        if set(given) - set(known):
            raise CourseError(f"{sorted(set(given) - set(known))[0]!r}", f"one of {', '.join(known)}", "choose one")
    prepared = {scaling: inputs(genes, tiles, scaling, top=top) for scaling in scalings}
    needed = {name for kind in kinds for name in (("gene", "tile") if kind == "two" else (kind,))}
    trained = {}
    for name in sorted(needed):
        blocks = ("gene", "tile") if name == "joint" else (name,)
        keys = [(scaling, loss) for loss in losses for scaling in scalings]
        members = [([prepared[scaling][block] for block in blocks], loss) for scaling, loss in keys]
        for key, result in zip(keys, train_together(members, seed=seed, name=name, **options)):
            trained[name, *key] = result
    fits = []
    for kind in kinds:
        for scaling in scalings:
            for loss in losses:
                parts = [trained[name, scaling, loss] for name in (("gene", "tile") if kind == "two" else (kind,))]
                code = np.hstack([minmax(part.code) for part in parts])
                fits.append(Fit(kind, scaling, loss, code, min(part.learned for part in parts)))
    return fits


def cluster(code, k: int, *, seed: int = 0, n_init: int = 20):
    """Group spots by k-means on their codes (k-means++, 20 starts); the largest cluster is number 1.

    Returns
    -------
    int array (n,)
        1 ... k. The numbers mean nothing else.

    Raises
    ------
    CourseError
        ``k`` below 2, or more clusters than distinct codes.
    """
    from sklearn.cluster import KMeans

    from helpers import settings

    code = np.asarray(code, np.float32)
    distinct = len(np.unique(code, axis=0))
    if not 2 <= k <= distinct:
        raise CourseError(f"{k} clusters of {distinct} distinct codes", "2 or more, and no more than that", "change K")
    state = int(settings.rng(seed, "spacell", "kmeans").integers(2**31))
    labels = KMeans(k, n_init=n_init, max_iter=1000, random_state=state).fit_predict(code)
    order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return (np.argsort(order) + 1)[labels]


def marker_score(table, markers: str):
    """Return the mean of a group of genes, each scaled to [0, 1], float (n,).

    Parameters
    ----------
    table
        AnnData, spots x genes.
    markers
        Genes separated by commas, upper or lower case; groups separated by ``|``. The first group of which the table
        has at least half is used, so that one default serves tissues of several organs.

    Raises
    ------
    CourseError
        The table has half of no group.
    """
    for group in markers.split("|"):
        wanted = {gene.strip().upper() for gene in group.split(",") if gene.strip()}
        found = [gene for gene in table.var_names if gene.upper() in wanted]
        if wanted and 2 * len(found) >= len(wanted):
            values = table[:, found].X
            return minmax(values.toarray() if hasattr(values, "toarray") else values).mean(1)
    raise CourseError(f"none of {markers}", "genes of the table", "name others in MARKERS")


def named_by(values, labels):
    """Say which clusters are meant, by a rule fixed before any annotation is seen.

    A cluster is meant if the mean of ``values`` in it lies above the middle between the highest and the lowest mean of
    a cluster. (SpaCell's code instead exchanges the two labels whenever the accuracy falls below one half.)

    Parameters
    ----------
    values
        Float (n,), e.g. the mean expression of epithelial genes.
    labels
        Cluster of each spot.

    Returns
    -------
    meant : bool array (n,)
    means : dict
        Mean of ``values`` by cluster.
    """
    labels, values = np.asarray(labels), np.asarray(values, float)
    means = {label: float(values[labels == label].mean()) for label in np.unique(labels).tolist()}
    if len(means) < 2:
        raise CourseError("one cluster", "two or more", "raise K")
    middle = (max(means.values()) + min(means.values())) / 2
    return np.isin(labels, [label for label, mean in means.items() if mean > middle]), means


def nearness(code, labels, meant):
    """Return a score for the ROC: how much nearer a spot's code is to the meant clusters' centres than to the others.

    Float (n,): distance to the nearest centre not meant, minus that to the nearest meant one.
    """
    code, labels, meant = np.asarray(code, float), np.asarray(labels), np.asarray(meant, bool)

    def to_nearest(side):
        centres = [code[labels == label].mean(0) for label in np.unique(labels[meant == side])]
        return np.min([np.linalg.norm(code - centre, axis=1) for centre in centres], axis=0)

    return to_nearest(False) - to_nearest(True)

"""Examiner: registration, labels and nuclei of a virtual Xenium section against its truth."""

from __future__ import annotations

import numpy as np

from helpers import celltypes, hovernet
from helpers import section as sec


def known(truth):
    """Return the truth of a Xenium section (``Data.truth``) with what only such a section has."""
    from helpers.virtual import xenium_truth

    return xenium_truth.of(truth)


def landmark_errors(found, truth) -> dict[str, float]:
    """Return how far the true landmarks fall from their places, in um of the H&E.

    Parameters
    ----------
    found
        ``registration.Alignment``.
    truth
        Of :func:`known`.

    Returns
    -------
    dict
        ``median``, ``p95``; ``affine`` (median without the warp) and ``floor`` (of the best affine there is);
        ``mirror`` 1.0 where the mirror state is right.
    """
    there, here = truth.landmarks
    off = [np.hypot(*(found.to_he(there, warp=warp) - here * found.he_um).T) for warp in (True, False)]
    return {
        "median": float(np.median(off[0])), "p95": float(np.percentile(off[0], 95)), "affine": float(np.median(off[1])),
        "floor": float(truth.registration["affine_floor_um"]),
        "mirror": float(found.mirrored == truth.registration["mirrored"]),
    }  # fmt: skip


def true_classes(names, truth):
    """Return the true class of the instrument's cells ``names``, object array (n,)."""
    cells = truth.cells[truth.cells["cell"] != ""].set_index("cell")
    return cells.loc[list(names), "class"].to_numpy(object)


def label_quality(labels, truth) -> dict:
    """Return ``celltypes.quality`` of labels (index: cells), and ``filled``: the accuracy of those filled in."""
    right = true_classes(labels.index, truth)
    scores = celltypes.quality(labels["class"], right)
    filled = labels["filled"].to_numpy()
    scores["filled"] = float((labels["class"].to_numpy()[filled] == right[filled]).mean()) if filled.any() else np.nan
    return scores


def true_field(section, truth):
    """Return the true nuclei of the H&E as ``hovernet.Field``: those it shows, deep ones below, with their class.

    Parameters
    ----------
    section
        The aligned section; its image and pixel size are those the network is given.
    """
    cells = truth.cells
    shown = cells["in_he"].to_numpy()
    mpp = sec.mpp(section)
    codes = hovernet.to_classes(cells["class"][shown], {name: name for name in celltypes.CLASSES})
    rank = -cells["deep"][shown].to_numpy(float)
    return hovernet.prepare(sec.image(section), truth.nuclei_px[shown] * mpp, codes, mpp=mpp, rank=rank)


def reference_rows(scores) -> dict[str, dict]:
    """Return the two rows that look at nothing: random points, as many as found, and the commonest class for all."""
    nothing = dict.fromkeys(("f1_iou", "f1", "f1_published", "accuracy"), np.nan)
    return {
        "random points": {**nothing, "f1": scores["f1_random"], "f1_published": scores["f1_published_random"]},
        "majority class": {**nothing, "accuracy": scores["majority"]},
    }


COLUMNS = (
    "found", "f1_iou", "f1", "f1_published", "dice", "aji", "DQ", "SQ", "PQ", "mean_class_iou", "accuracy",
    "type_aware_f1", "macro_f1",
)  # fmt: skip


def table(rows):
    """Return the scores of all rows (keys: section, row) as one data frame, NaN where a row has none."""
    import pandas as pd

    made = pd.DataFrame({key: {name: one.get(name, np.nan) for name in COLUMNS} for key, one in rows.items()}).T
    return made.rename_axis(["section", "row"])


def type_table(rows):
    """Return the F1 of each type of the rows that have one, and, ``published``, with true negatives counted."""
    import pandas as pd

    parts = {}
    for how, name in (("ours", "type_f1"), ("published", "published_type_f1")):
        parts |= {(*key, how): one[name] for key, one in rows.items() if name in one}
    return pd.DataFrame(parts, index=list(hovernet.CLASSES)).T.rename_axis(["section", "row", "F1"])


def rows_of(rows, which):
    """Return the scores of one row of the comparison (keys: section, row) as a data frame, one line a section."""
    import pandas as pd

    return pd.DataFrame({section: scores for (section, row), scores in rows.items() if row == which}).T


def doubts(field, nuclei, pairs):
    """Return, of the paired nuclei whose true class is known: label found, entropy of its type, whether it is wrong.

    Parameters
    ----------
    field
        ``hovernet.Field`` of the truth.
    nuclei
        ``hovernet.Nuclei`` found.
    pairs
        int (p, 2): labels of truth and found (``pairs`` of ``hovernet.compare``).
    """
    true = field.classes[pairs[:, 0]]
    kept = true <= len(hovernet.CLASSES)
    label = pairs[kept, 1]
    entropy = nuclei.table["entropy"].to_numpy()[label - 1]
    return label, entropy, true[kept] != nuclei.codes[label]


def tsne(table, *, most: int = 1000, seed: int = 0):
    """Return a t-SNE map of the nuclei's features, float (n, 2), and the rows of ``table`` it holds, int (n,).

    van der Maaten and Hinton 2008, on standardised features; at most ``most`` nuclei, drawn at random.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    from helpers import settings

    features = table.filter(regex=r"^f\d+$").to_numpy(float)
    rng = settings.rng(seed, "tsne")
    chosen = np.sort(rng.permutation(len(features))[:most])
    features = features[chosen]
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=int(rng.integers(2**31)), max_iter=500)
    with threadpool_limits(1):  # on busy cores its threads wait for each other longer than they work
        return made.fit_transform(features), chosen


def spot_shares(spots, nuclei, mpp: float):
    """Return the share of each predicted class among the nuclei found in each spot, a data frame in the spots' order.

    Parameters
    ----------
    spots
        ``pseudospots.Spots`` in H&E pixels, ``mpp`` microns each.
    nuclei
        ``hovernet.Nuclei``.
    """
    from helpers import pseudospots

    xy = nuclei.table[["x_um", "y_um"]].to_numpy() / mpp
    binned = pseudospots.bin_cells(np.ones((len(xy), 1)), xy, um_per_unit=mpp, centres=spots.xy)
    shares = binned.shares(nuclei.table["class"], categories=hovernet.CLASSES)
    return shares.set_axis(spots.names[binned.array[:, 1]]).reindex(spots.names)

"""Methods, DeepSpot: the ablation - every context on every fold, with other models on the same inputs beside them."""

from __future__ import annotations

import numpy as np

from helpers.deepspot_bags import Bags
from helpers.deepspot_fit import CONTEXTS, fit
from helpers.messages import CourseError


def pooled(bags: Bags, *, how: str = "mean"):
    """Return own tile and pooled neighbours side by side, float32 (n, 2 d), for models that take one vector.

    ``how``: ``"mean"`` or ``"max"`` over the neighbours there are; a spot without any repeats its own tile.
    """
    own, around, mask = bags.table[bags.rows], bags.table[bags.index], bags.mask[..., None]
    if how == "mean":
        pool = (around * mask).sum(1) / np.maximum(mask.sum(1), 1)
    elif how == "max":
        pool = np.where(mask > 0, around, -np.inf).max(1, initial=-np.inf)
    else:
        raise CourseError(f"how={how!r}", "'mean' or 'max'", "choose one")
    return np.concatenate([own, np.where(mask.any(1), pool, own)], axis=1).astype(np.float32)


def ablation(bags: Bags, target, *, sections, folds, genes, score, near=None, contexts=tuple(CONTEXTS), others=None,
             seed: int = 0, **options):  # fmt: skip
    """Return one row a model and fold: trained on a fold's training sections, scored on its test sections.

    Parameters
    ----------
    bags, target, sections, genes, near, options
        As for ``deepspot_fit.fit``.
    folds
        Name of the fold -> sections held out. By patient, wherever there are several.
    score
        Function of (target, prediction, rows): its number is the score; ``rows`` bool (n,) are those held out.
    others
        Name -> function of (training rows, test rows), both bool (n,), returning a prediction of the test rows.

    Returns
    -------
    pandas.DataFrame
        ``row``, ``fold``, ``score``.
    """
    import pandas as pd

    sections, target = np.asarray(sections).astype(str), np.asarray(target, np.float32)
    found = []
    for fold, out in folds.items():
        test = np.isin(sections, list(out))
        if not test.any() or test.all():
            raise CourseError(f"fold {fold!r} holds out {test.sum()} of {len(test)} spots", "some, not all",
                              "name whole sections")  # fmt: skip
        train = ~test
        for context in contexts:
            model = fit(bags.take(train), target[train], sections=sections[train], genes=genes, near=near, seed=seed,
                        context=context, **options)  # fmt: skip
            said = model.predict(bags.take(test))
            found.append({"row": context, "fold": fold, "score": score(target[test], said, test)})
        for name, other in (others or {}).items():
            found.append({"row": name, "fold": fold, "score": score(target[test], other(train, test), test)})
    return pd.DataFrame(found)


def summary(table):
    """Return mean, spread (sd over folds) and the gain over ``"spot"`` of an :func:`ablation`, one line a row.

    ``gain`` is the mean over folds of the difference on the same fold, ``worst`` the smallest of them.
    """
    wide = table.pivot(index="fold", columns="row", values="score")[list(dict.fromkeys(table["row"]))]
    out = wide.agg(["mean", "std"]).T.rename(columns={"std": "sd over folds"})
    if "spot" in wide:
        gain = wide.sub(wide["spot"], axis=0)
        out["gain"], out["worst"] = gain.mean(), gain.min()
    return out

"""Methods, STimage: the negative binomial and kernel ridge together - fit both, predict their average.

They err differently. The network obeys the law of counts, so it knows how sure it is; ridge looks at the log scale on
which the prediction is read, and hardly varies with the draw of the training spots. Their plain average beats both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helpers import stimage, stimage_ridge, stimage_store
from helpers.messages import CourseError

SHARE = 0.5
"""Weight of ridge in the average. Both predict log1p(1e4 y / N), so neither has to be rescaled."""


def blend(prediction, ridge_mean, *, share: float = SHARE):
    """Return a prediction whose mean is (1 - share) times the network's plus ``share`` times ridge's.

    The variances are those of a mixture of two models, of which ridge borrows the network's aleatoric variance: the
    epistemic variance becomes (1 - share) times the members' plus share (1 - share) (difference of the means)^2.

    Parameters
    ----------
    prediction
        ``stimage.Prediction`` on the scale ``"log1p"``.
    ridge_mean
        float (n, g), of the same spots and genes: what ``stimage_ridge.Ridge.predict`` says of ``log_cp10k``.

    Returns
    -------
    stimage.Prediction
        Without members: they belong to the network alone.

    Raises
    ------
    CourseError
        Another scale or shape, a share outside 0 to 1.
    """
    ridge_mean = np.asarray(ridge_mean, np.float32)
    if prediction.scale != "log1p" or ridge_mean.shape != prediction.mean.shape or not 0 <= share <= 1:
        raise CourseError(f"{prediction.scale} {prediction.mean.shape}, ridge {ridge_mean.shape}, share {share}",
                          "means of log1p(1e4 y / N) for the same spots and genes, a share of 0 to 1",
                          "predict both for the same features, with scale='log1p'")  # fmt: skip
    apart = prediction.mean - ridge_mean
    return replace(
        prediction, mean=prediction.mean - share * apart, members=None, member_vars=None, log_share=None,
        epistemic_var=(1 - share) * prediction.epistemic_var + share * (1 - share) * apart**2,
    )  # fmt: skip


@dataclass(frozen=True)
class Both:
    """A fitted ensemble, a fitted ridge regression of the same genes, and ridge's share."""

    ensemble: stimage.Ensemble
    ridge: stimage_ridge.Ridge
    share: float = SHARE

    def predict(self, x):
        """Return the blended prediction of log1p(1e4 y / N); library sizes are predicted from the features."""
        return blend(self.ensemble.predict(x), self.ridge.predict(x), share=self.share)

    def only(self, genes) -> Both:
        """Return the model of some of its genes, in the order given; raises as ``Ensemble.only``."""
        ensemble, place = self.ensemble.only(genes), {gene: at for at, gene in enumerate(self.ensemble.genes)}
        at, ridge = [place[gene] for gene in ensemble.genes], self.ridge
        return replace(self, ensemble=ensemble, ridge=replace(
            ridge, basis=ridge.basis[:, at], mean=ridge.mean[at], inner=ridge.inner[:, at]))  # fmt: skip

    def save(self, path, *, encoder, tile_um, **facts):
        """Write one ``.keras`` file for :func:`load`; ``facts`` as JSON, the rest as ``stimage_store.save``.

        ``train_subjects`` belongs in the facts: ``section.split`` refuses to predict for these.
        """
        return stimage_store.save(self.ensemble, path, encoder=encoder, tile_um=tile_um, ridge=self.ridge,
                                  share=self.share, facts=facts)  # fmt: skip


def about(path, *, train: str = "") -> dict:
    """Return what a saved model says of itself: genes, ``tile_um``, training sections and subjects; {} without a path.

    Raises
    ------
    CourseError
        As ``stimage_store.facts_of``; a model saved without its training subjects; sections to ``train`` on beside it.
    """
    if not path:
        return {}
    if train:
        fix = "leave MODEL or TRAIN empty; TEST names the sections to predict"
        raise CourseError(f"TRAIN = {train!r} beside a saved model", "one of the two", fix)
    told = stimage_store.facts_of(path)
    if "train_subjects" not in told["facts"]:
        raise CourseError("a model that does not say which patients it was trained on", "one that does",
                          "take blend.keras of notebook 04, not model.keras", file=path)  # fmt: skip
    return {**told["facts"], "genes": told["genes"], "tile_um": told["tile_um"]}


def load(path, *, encoder=None, genes=None) -> Both:
    """Read what :meth:`Both.save` wrote, for all its genes or for some, in the order given.

    Parameters
    ----------
    encoder
        What the features at hand are made with; None: not compared.

    Raises
    ------
    CourseError
        As ``stimage_store.load``; a model for single tiles; a gene the model does not know.
    """
    both = Both(*stimage_store.load_blend(path, encoder=encoder))
    return both if genes is None else both.only(genes)


def fit(x, counts, *, library, sections, genes, seed: int = 0, share: float = SHARE, rank: int = stimage_ridge.RANK,
        bootstrap: bool = False, **options) -> Both:  # fmt: skip
    """Fit both models on the same spots.

    Parameters
    ----------
    x
        float32 (n, f): features scaled by ``stimage_features``.
    counts
        (n, g) raw counts of the genes to predict, dense or CSR.
    library
        (n,) counts of each spot over ALL genes. Ridge trusts a spot by the root of it.
    sections
        (n,) section ids.
    genes
        g names.
    rank
        Of ridge and of the network's bottleneck.
    bootstrap
        Whether members see resampled spots. Without it they differ by their seed alone and the mean is better.
    options
        For ``stimage.fit``: members, steps, l2, ...

    Raises
    ------
    CourseError
        From ``stimage.fit`` and ``stimage_ridge.fit``.
    """
    ensemble = stimage.fit(x, counts, library=library, sections=sections, genes=genes, seed=seed, rank=rank,
                           bootstrap=bootstrap, **options)  # fmt: skip
    target, trust = stimage_ridge.log_cp10k(counts, library), np.sqrt(np.asarray(library, float))
    return Both(ensemble, stimage_ridge.fit(x, target, sections, weights=trust, rank=rank), share)

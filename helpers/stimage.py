"""Methods: gene expression from image features as a negative binomial, with its uncertainty (STimage, 2026).

One dense layer for all genes behind a narrow bottleneck, on raw counts with the library size as an offset; members
trained together. ``fit``, ``predict``, ``save``, ``load``; the other files of the room hold the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from helpers import settings, stimage_ensemble, stimage_library
from helpers.messages import CourseError
from helpers.stimage_calibration import Calibration, calibration
from helpers.stimage_predict import LOWEST, Prediction, average, combine, groups, moments

__all__ = ["Calibration", "Ensemble", "Prediction", "average", "calibration", "fit", "groups", "load"]

DISPERSIONS = ("gene", "spot")


@dataclass(frozen=True)
class Ensemble:
    """Members trained together.

    Attributes
    ----------
    genes, r
        Names, and the size of each gene's negative binomial, float64 (g,).
    held_out
        What the sizes were estimated on: ``"subjects"`` or ``"sections"`` held out, ``"spots"`` held out of the only
        section, ``"nothing"`` (training spots and mean shares: fewer than 4 spots), ``"given"``, or ``"spot"`` where
        the network gives a size for each spot.
    library_model
        From features to log N; None where not wanted.
    facts
        Options of the fit, training sections, numbers of spots; of a loaded model also encoder and tile size.
    columns
        Which of the network's genes these are, int (g,); None: all.
    """

    genes: tuple
    r: np.ndarray = field(repr=False)
    held_out: str
    model: object = field(repr=False)
    library_model: stimage_library.LibraryModel | None = field(repr=False)
    facts: dict = field(repr=False)
    columns: np.ndarray | None = field(repr=False, default=None)

    @property
    def members(self) -> int:
        """Number of members."""
        return int(self.facts["members"])

    def log_share(self, x):
        """Return log of each gene's expected share of a spot's counts, float32 (M, n, g), and the sizes.

        Sizes are (g,), or (M, n, g) with ``dispersion="spot"``.
        """
        from helpers.stimage_layers import LOG_SIZE

        x = stimage_ensemble.features(x, width=self.model.inputs[0].shape[-1])
        parts = []
        for start in range(0, len(x), 256):
            mine = x[start : start + 256]
            zero = np.zeros((len(mine), 1), np.float32)
            parts.append(np.asarray(self.model([mine, zero, zero], training=False)).transpose(1, 0, 2))
        out = np.concatenate(parts, axis=1)
        by_spot = self.held_out == "spot"
        g = out.shape[-1] // 2 if by_spot else out.shape[-1]
        columns = slice(None) if self.columns is None else self.columns
        share = np.clip(out[..., :g][..., columns], LOWEST, 0)
        return share, np.exp(np.clip(out[..., g:][..., columns], *LOG_SIZE)) if by_spot else self.r

    def only(self, genes) -> Ensemble:
        """Return the model of some of its genes, in the order given; shares still count all genes of a spot.

        Raises
        ------
        CourseError
            No gene, or one that the model does not know.
        """
        genes, place = tuple(genes), {gene: number for number, gene in enumerate(self.genes)}
        unknown = [gene for gene in genes if gene not in place]
        if unknown or not genes:
            raise CourseError(f"gene {unknown[0]!r}" if unknown else "no genes",
                              f"some of the model's {len(place)} genes", "choose among Ensemble.genes")  # fmt: skip
        at = np.array([place[gene] for gene in genes])
        return replace(self, genes=genes, r=self.r[at], columns=at if self.columns is None else self.columns[at])

    def predict(self, x, *, library=None, scale="log1p", keep=True) -> Prediction:
        """Predict.

        Parameters
        ----------
        x
            Float (n, f), features made and scaled as in training.
        library
            (n,) counts of each spot over all genes; None: predicted from the features, and its uncertainty goes into
            the aleatoric variance.
        scale
            ``"log1p"``: log1p(1e4 y / N); ``"counts"``: y.
        keep
            Keep what each member says (three float32 arrays (M, n, g)); needed for groups and calibration.

        Raises
        ------
        CourseError
            Features of another width or not finite; library sizes of another length or not above 0.
        """
        share, r = self.log_share(x)
        n = share.shape[1]
        if library is not None:
            middle, sd, shape = np.log(stimage_ensemble.libraries(library, n)), np.zeros(n), None
        elif self.library_model is None:
            raise CourseError("no library sizes, and a model fitted without a model of them",
                              "library=..., or a fit with library_kernel", "give the spots' totals")  # fmt: skip
        else:
            (middle, sd), shape = self.library_model.predict(x), self.library_model.shape
        means, variances = moments(share, r, middle, sd, scale, shape)
        kept = {"members": means, "member_vars": variances, "log_share": share} if keep else {}
        return Prediction(
            self.genes, scale, **combine(means, variances), **kept, r=r if keep or r.ndim == 1 else None,
            log_library_mean=middle, log_library_sd=sd, library_shape=shape,
        )  # fmt: skip

    def save(self, path, *, encoder, tile_um, train_sections=None):
        """Write one ``.keras`` file; see :func:`helpers.stimage_store.save`."""
        from helpers import stimage_store

        return stimage_store.save(self, path, encoder=encoder, tile_um=tile_um, train_sections=train_sections)


def load(path, *, encoder=None, tile_um=None, genes=None) -> Ensemble:
    """Read a saved ensemble; see :func:`helpers.stimage_store.load`."""
    from helpers import stimage_store

    return stimage_store.load(path, encoder=encoder, tile_um=tile_um, genes=genes)


def fit(
    x, counts, *, library, sections, genes, subjects=None, seed=0, members=5, rank=8, activation="relu",
    bootstrap=True, steps=100, l2=3e-4, learning_rate=0.01, batch=stimage_ensemble.BATCH, components=96,
    dispersion="gene", r=None, size_prior=0.05, library_kernel="rbf",
) -> Ensemble:  # fmt: skip
    """Fit an ensemble of negative-binomial heads on features.

    log mu = log N + baseline of the gene in the section + head(x). Sizes first: heads with sections held out give means
    for spots they have not seen, and moments give one size a gene; then all members train at once on those sizes.

    Parameters
    ----------
    x
        Float32 (n, f), features already scaled.
    counts
        (n, g) raw counts of the genes to predict, dense or CSR.
    library
        (n,) counts of each spot over *all* genes.
    sections
        (n,) section ids: baselines, inner folds, and the bootstrap, which draws spots within sections.
    genes
        (g,) names.
    subjects
        (n,) patients or animals: the inner folds hold out subjects rather than sections, so that sizes, hence
        intervals, and the model of the library size are made for subjects never seen.
    members, bootstrap
        Number of heads; without bootstrap they differ by their first weights alone.
    rank, activation
        Units of the bottleneck (0: none) and ``"relu"`` or ``"linear"``.
    steps, batch, learning_rate
        Updates of Adam; spots in each (all, if they are fewer).
    l2
        Times the sum of squares of a member's kernels, against a loss averaged over spots and 1000 genes.
    components
        Principal components of the features that the head sees; 0: the features.
    dispersion
        ``"gene"``, or ``"spot"``: as published, a size for each spot and gene from the features (slower).
    r
        (g,) sizes, if known; None: by moments.
    size_prior
        Pull of sizes towards that of all genes, see :func:`helpers.stimage_nb.size_by_moments`.
    library_kernel
        ``"rbf"``, ``"linear"``, or None for no model of the library size.

    Raises
    ------
    CourseError
        Features not finite; counts negative or fractional (log data); spots without counts; a gene named twice;
        shapes that do not match; options out of range.
    """
    if members < 1 or steps < 1 or rank < 0 or batch < 1 or components < 0 or l2 < 0 or learning_rate <= 0:
        raise CourseError(f"members={members}, steps={steps}, rank={rank}, batch={batch}, components={components}, "
                          f"l2={l2}, learning_rate={learning_rate}", "positive numbers", "correct them")  # fmt: skip
    if dispersion not in DISPERSIONS or activation not in ("relu", "linear"):
        raise CourseError(f"dispersion {dispersion!r}, activation {activation!r}", "gene or spot; relu or linear",
                          "choose one")  # fmt: skip
    data = stimage_ensemble.check(x, counts, library=library, sections=sections, genes=genes, subjects=subjects)
    options = {
        "members": int(members), "rank": int(rank), "activation": activation, "bootstrap": bool(bootstrap),
        "steps": int(steps), "l2": float(l2), "learning_rate": float(learning_rate), "batch": int(batch),
        "components": int(components), "dispersion": dispersion, "size_prior": float(size_prior),
    }  # fmt: skip
    if r is not None:
        r, held_out = np.asarray(r, float), "given"
        if r.shape != (len(data.genes),) or not (np.isfinite(r) & (r > 0)).all():
            raise CourseError(f"r {r.shape}", f"({len(data.genes)},), above 0", "one size a gene")
    else:
        r, held_out = stimage_ensemble.sizes(data, options=options, seed=seed)
    weight = np.ones((len(data.x), members), np.float32)
    if bootstrap:
        weight = stimage_ensemble.bootstrap(data.section, members, settings.rng(seed, "stimage", "bootstrap"))
    model = stimage_ensemble.train(
        data, weight=weight, r=r, options=options, rng=settings.rng(seed, "stimage", "members")
    )
    found = None
    if library_kernel is not None:
        fold, _ = stimage_ensemble.folds(data.section, data.subject, settings.rng(seed, "stimage", "folds"))
        rng = settings.rng(seed, "stimage", "library")
        found = stimage_library.fit(data.x, np.log(data.library), fold, kernel=library_kernel, rng=rng)
    facts = {**options, "seed": int(seed), "train_sections": list(data.names), "spots": len(data.x)}
    return Ensemble(data.genes, r, "spot" if dispersion == "spot" else held_out, model, found, facts)

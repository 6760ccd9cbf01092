"""Methods, STimage: checks of the input, the sizes of the genes, and the training of all members at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from helpers import settings, stimage_nb
from helpers.messages import CourseError

FOLDS = 4
"""Most inner folds: with more sections, several are held out together."""
BATCH = 1024
L2_GENES = 1000
"""The head's ``l2`` is stated for a loss averaged over this many genes: a gene of a small panel is held as tightly."""


FIRST_SIZE = 10.0
"""Size of every gene while the sizes are still to be found. (Sizes of the plain shares would be small, hence the
likelihood flat, and the heads would not learn the means that the sizes need.)"""


@dataclass(frozen=True)
class Training:
    """Checked input of a fit: what ``fit`` takes, as arrays; ``section`` numbers the names."""

    x: np.ndarray
    counts: object = field(repr=False)
    library: np.ndarray = field(repr=False)
    section: np.ndarray = field(repr=False)
    subject: np.ndarray = field(repr=False)
    names: tuple
    genes: tuple
    bases: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def baseline(self):
        """Log share of each gene, float32 (sections + 1, g): row 0 over all, then each section pulled to it."""
        g, total = len(self.genes), float(self.library.sum())
        share = (np.asarray(self.counts.sum(0), float).ravel() + 0.5) / (total + g)
        rows = [share]
        for number in range(len(self.names)):
            of = self.section == number
            seen = np.asarray(self.counts[of].sum(0), float).ravel()
            rows.append((seen + 1) / (self.library[of].sum() + 1 / share))
        return np.log(rows).astype(np.float32)

    def principal(self, components: int):
        """Return :func:`principal` of the features, computed once for the sizes and the members."""
        if components not in self.bases:
            self.bases[components] = principal(self.x, components)
        return self.bases[components]

    def dense(self):
        """Counts as float64 (n, g)."""
        return np.asarray(self.counts.toarray() if hasattr(self.counts, "toarray") else self.counts, float)


def features(x, *, width=None):
    """Return features as float32 (n, f), or raise."""
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or not len(x) or (width is not None and x.shape[1] != width):
        wanted = "(n, f), numbers" if width is None else f"(n, {width}), as in training"
        raise CourseError(f"features {x.shape} of {x.dtype}", wanted, "one row a spot; the same encoder and scales")
    if not np.isfinite(x).all():
        rows = np.flatnonzero(~np.isfinite(x).all(1))
        raise CourseError(f"features that are NaN or infinite in {len(rows)} spots, the first {rows[0]}",
                          "finite numbers", "look at these tiles, or drop these spots")  # fmt: skip
    return x.astype(np.float32)


def libraries(library, n: int):
    """Return library sizes as float64 (n,), or raise."""
    library = np.asarray(library, float)
    if library.shape != (n,):
        raise CourseError(f"library {library.shape}", f"({n},), one number a spot", "give the totals over all genes")
    bad = np.flatnonzero(~(np.isfinite(library) & (library > 0)))
    if len(bad):
        raise CourseError(f"library size {library[bad[0]]} in spot {bad[0]} ({len(bad)} such spots)",
                          "more than 0 counts a spot", "drop spots without counts first")  # fmt: skip
    return library


def raw(counts, n: int | None = None, g: int | None = None):
    """Return raw counts, dense or CSR, or raise; log data have fractions."""
    sparse = hasattr(counts, "tocsr")
    counts = counts.tocsr() if sparse else np.asarray(counts)
    if counts.ndim != 2 or (n is not None and counts.shape[0] != n) or (g is not None and counts.shape[1] != g):
        wanted = f"({n or 'n'} spots, {g or 'g'} genes)"
        raise CourseError(f"counts {counts.shape}", wanted, "one row a spot of features")
    values = counts.data if sparse else counts
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all() or (values < 0).any():
        seen = f"counts of {values.dtype} that are negative or not finite"
        raise CourseError(seen, "0, 1, 2, ...", "give raw counts")
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        example = float(values[values != np.floor(values)].flat[0])
        raise CourseError(f"a count of {example:.4g}", "whole numbers: the negative binomial is a law of counts",
                          "give raw counts (layers['counts']), not normalised or log values")  # fmt: skip
    return counts


def check(x, counts, *, library, sections, genes, subjects=None) -> Training:
    """Return the input of a fit, checked and turned into arrays."""
    import pandas as pd

    x = features(x)
    genes = tuple(str(gene) for gene in genes)
    repeated = pd.Index(genes)[pd.Index(genes).duplicated()]
    if len(repeated) or not genes:
        raise CourseError(f"genes {list(repeated[:3])} more than once" if genes else "no genes", "each gene once",
                          "make the names unique")  # fmt: skip
    counts = raw(counts, len(x), len(genes))
    library = libraries(library, len(x))
    sums = np.asarray(counts.sum(1), float).ravel()
    if (sums > library * (1 + 1e-6) + 1e-6).any():
        spot = int(np.argmax(sums - library))
        raise CourseError(f"library {library[spot]:g} below the {sums[spot]:g} counts of its genes in spot {spot}",
                          "the total over ALL genes of the spot", "sum before choosing genes")  # fmt: skip
    sections = np.asarray(sections)
    if sections.shape != (len(x),):
        raise CourseError(f"sections {sections.shape}", f"({len(x)},), one id a spot", "give the section of each spot")
    names, section = np.unique(sections.astype(str), return_inverse=True)
    subjects = np.zeros(len(x)) if subjects is None else np.asarray(subjects)
    if subjects.shape != (len(x),):
        raise CourseError(f"subjects {subjects.shape}", f"({len(x)},), one id a spot", "give the subject of each spot")
    subject = np.unique(subjects.astype(str), return_inverse=True)[1]
    return Training(x, counts, library, section, subject, tuple(str(name) for name in names), genes)


def folds(section, subject, rng):
    """Return inner folds and what they hold out: subjects if there are several, else sections, else spots.

    Returns
    -------
    fold : int array (n,)
        Number of the fold a spot is held out in; all 0 if nothing can be held out.
    held_out : str
        ``"subjects"``; ``"sections"``; ``"spots"`` of the only section, in which case neighbours of a held-out spot are
        trained on and sizes come out a little too large; or ``"nothing"`` (fewer than 4 spots).
    """
    for part, name in ((subject, "subjects"), (section, "sections")):
        many = int(part.max()) + 1
        if many > 1:
            return rng.permutation(many)[part] % min(many, FOLDS), name
    if len(section) >= 4:
        return rng.permutation(len(section)) % min(FOLDS, len(section) // 2), "spots"
    return np.zeros(len(section), int), "nothing"


def bootstrap(section, members: int, rng):
    """Return how often each spot is drawn by each member, float32 (n, members): with replacement within its section."""
    weight = np.zeros((len(section), members), np.float32)
    for number in np.unique(section):
        of = np.flatnonzero(section == number)
        weight[of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), size=members).T
    return weight


def principal(x, components: int):
    """Return centre (f,) and basis (f, k) of the leading principal components, scaled to mean square 1 over all."""
    centre = x.mean(0, dtype=np.float64)
    centred = x - centre
    k = min(components, len(x) - 1, x.shape[1])
    if k < 1:
        return centre, np.zeros((x.shape[1], 1))
    from scipy.linalg import eigh

    if len(x) < x.shape[1]:
        values, left = eigh(centred @ centred.T)
        values, left = values[::-1][:k], left[:, ::-1][:, :k]
        basis = centred.T @ left / np.sqrt(np.maximum(values, values[0] * 1e-12 + 1e-300))
    else:
        values, basis = eigh(centred.T @ centred)
        values, basis = values[::-1][:k], basis[:, ::-1][:, :k]
    spread = np.sqrt(max(float(np.maximum(values, 0).sum()) / (len(x) * k), 1e-24))
    return centre, basis / spread


def train(data: Training, *, weight, r, options, rng):
    """Train as many members as ``weight`` (n, members) has columns; sizes ``r`` (g,) stay fixed. Return the model."""
    from helpers.stimage_layers import NegativeBinomial, Steps, build, descend

    g, members = len(data.genes), weight.shape[1]
    basis = data.principal(options["components"]) if options["components"] else None
    model = build(
        features=data.x.shape[1], genes=g, members=members, rank=options["rank"], activation=options["activation"],
        components=basis[1].shape[1] if basis else 0, sections=len(data.names), dispersion=options["dispersion"],
        l2=(options["l2"], options["l2"] * L2_GENES / g), seed=int(rng.integers(2**31 - 2)),
    )  # fmt: skip
    if basis:
        model.get_layer("projection").set_weights(list(basis))
    model.get_layer("log_mu").set_weights([data.baseline])
    if options["dispersion"] == "spot":
        head = model.get_layer("head")
        head.bias.assign(np.tile(np.r_[np.zeros(g), np.log(r)].astype(np.float32), (members, 1)))
    log_size = None if options["dispersion"] == "spot" else np.log(r)
    batches = Steps(
        data.x, np.log(data.library)[:, None].astype(np.float32), data.section[:, None].astype(np.float32) + 1,
        data.counts, weight, batch=options["batch"], steps=options["steps"], rng=rng,
    )  # fmt: skip
    loss = descend(model, NegativeBinomial(log_size), batches, learning_rate=options["learning_rate"])
    if not np.isfinite(loss):
        raise CourseError(f"a loss of {loss}", "a finite loss", "lower learning_rate, or scale the features")
    return model


def sizes(data: Training, *, options, seed):
    """Return the size of each gene, float64 (g,), and what its counts were held out from (see :func:`folds`)."""
    y, baseline = data.dense(), data.baseline
    fold, held_out = folds(data.section, data.subject, settings.rng(seed, "stimage", "folds"))
    if held_out == "nothing":
        plain = data.library[:, None] * np.exp(baseline[1:].astype(float))[data.section]
        return stimage_nb.size_by_moments(y, plain, prior=options["size_prior"]), held_out
    held = fold[:, None] == np.arange(fold.max() + 1)
    model = train(
        data, weight=(~held).astype(np.float32), r=np.full(len(data.genes), FIRST_SIZE),
        options={**options, "dispersion": "gene"}, rng=settings.rng(seed, "stimage", "sizes"),
    )  # fmt: skip
    mu, zero = np.empty_like(y), np.zeros((len(y), 1), np.float32)
    seen = (~held).T.astype(float)  # the baseline without the sections held out, as for a section never seen
    others = np.log((seen @ y + 0.5) / (seen @ data.library + len(data.genes))[:, None]) - baseline[0]
    for start in range(0, len(y), 512):
        part = slice(start, start + 512)
        log_share = np.asarray(model([data.x[part], zero[part], zero[part]], training=False))
        mine = np.take_along_axis(log_share, fold[part, None, None], 1)[:, 0] + others[fold[part]]
        mu[part] = data.library[part, None] * np.exp(np.minimum(mine, 0))
    return stimage_nb.size_by_moments(y, mu, prior=options["size_prior"]), held_out

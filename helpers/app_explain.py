"""Caretaker, web page: what the models say of one tile, how sure they are, how strange it is, which nuclei count."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.app import CLASSES, REGRESSION
from helpers.messages import CourseError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRANGE = (0.95, 0.99)
"""Quantiles of held-out training tiles beyond which a tile is unusual, and strange."""
KEPT = 20
"""Principal components of the embeddings kept to judge how far a tile lies from the training tiles."""
PLANE = ("centre", "basis", "spread", "rest")


# ---------------------------------------------------------------- the training distribution
def reference(x, sections, expression, epistemic_var, *, genes) -> dict:
    """Describe the training spots, so that a new tile can be compared with them.

    Parameters
    ----------
    x
        float (n, f) embeddings of the training tiles.
    sections
        (n,) section ids. Distances for the limits are measured on each section in turn, against the others.
    expression
        float (n, g) log1p of counts per 10,000, measured.
    epistemic_var
        float (n, g) variance of the members' means, of tiles like those to come (best: of held-out sections).
    genes
        (g,) names.

    Returns
    -------
    dict of arrays
        ``genes``; ``quantiles`` (5, g) of the expression at QUANTILES; ``epistemic_sd`` (2, g) and ``limits`` (2,) at
        STRANGE; and what :func:`distance` takes.
    """
    sections = np.asarray(sections)
    apart = [distance(x[sections == name], **plane(x[sections != name])) for name in np.unique(sections)]
    return {
        "genes": np.asarray(genes, str), "quantiles": np.quantile(expression, QUANTILES, axis=0).astype(np.float32),
        "epistemic_sd": np.quantile(np.sqrt(epistemic_var), STRANGE, axis=0).astype(np.float32),
        "limits": np.quantile(np.concatenate(apart), STRANGE).astype(np.float32), **plane(x),
    }  # fmt: skip


def plane(x) -> dict:
    """Return ``centre`` (f,), ``basis`` (f, k), ``spread`` (k,) variances along it, ``rest`` () mean of the others."""
    x = np.asarray(x, np.float64)
    centre = x.mean(0)
    _, singular, directions = np.linalg.svd(x - centre, full_matrices=False)
    variance = singular**2 / max(len(x) - 1, 1)
    kept = max(1, min(KEPT, len(variance) - 1))
    rest = variance[kept:].sum() / max(x.shape[1] - kept, 1)
    parts = {"centre": centre, "basis": directions[:kept].T, "spread": variance[:kept], "rest": max(rest, 1e-12)}
    return {name: np.asarray(value, np.float32) for name, value in parts.items()}


def distance(x, *, centre, basis, spread, rest):
    """Return how far tiles lie from the training tiles, float (n,): about 1 for a typical one.

    Mahalanobis distance over the root of the dimension, with the covariance of probabilistic principal components
    (Tipping and Bishop 1999): full along the leading directions, one variance for all others.
    """
    gap = np.asarray(x, np.float64) - centre
    along = gap @ np.asarray(basis, np.float64)
    off = np.maximum((gap**2).sum(1) - (along**2).sum(1), 0)
    return np.sqrt(((along**2 / spread).sum(1) + off / rest) / gap.shape[1])


def strangeness(models, tile):
    """Compare a tile with the training tiles.

    Returns
    -------
    dict or None
        ``distance``, ``limits`` (2,) and ``verdict``: ``"usual"``, ``"unusual"`` (beyond 95 % of held-out training
        tiles) or ``"strange"`` (beyond 99 %). None where the models came without a reference.
    """
    known = models.reference
    if not known:
        return None
    parts = {name: known[name] for name in PLANE}
    far = float(distance(models.encoder.embed(tile[None]), **parts)[0])
    return {"distance": far, "limits": known["limits"].tolist(), "verdict": grade(far, known["limits"])}


def grade(value, limits) -> str:
    """Return ``"usual"``, ``"unusual"`` or ``"strange"`` by two limits."""
    return "strange" if value > limits[1] else "unusual" if value > limits[0] else "usual"


# ---------------------------------------------------------------- what the models say
def predict(models, tile, genes) -> pd.DataFrame:
    """Return what the models say of one tile, one row a gene.

    Parameters
    ----------
    tile
        uint8 RGB (y, x, 3).
    genes
        Names out of ``models.genes``.

    Returns
    -------
    pandas.DataFrame
        ``gene``; of the regression, in log1p of counts per 10,000: ``mean``, ``aleatoric_sd``, ``epistemic_sd``,
        ``total_sd``, ``doubt`` (the epistemic sd judged by :func:`grade`); of the training spots ``low``, ``median``,
        ``high`` (5, 50, 95 %) and ``rank`` (share of the training spots below the mean, from five quantiles); of the
        classification ``probability`` of high. What is not known is NaN.
    """
    x = models.encoder.embed(tile[None])
    table = pd.DataFrame({"gene": list(genes)})
    columns = ("mean", "aleatoric_sd", "epistemic_sd", "total_sd", "low", "median", "high", "rank", "probability")
    table[list(columns)] = np.nan
    table["doubt"] = ""
    if models.ensemble is not None:
        found, at = models.ensemble.predict(x, keep=False), _places(models.ensemble.genes, genes)
        table["mean"] = found.mean[0, at]
        for name in ("aleatoric", "epistemic", "total"):
            table[f"{name}_sd"] = np.sqrt(getattr(found, f"{name}_var")[0, at])
    if models.classifier is not None:
        table["probability"] = models.classifier.proba(x)[0, _places(models.classifier.genes, genes)]
    if models.reference:
        at = _places(models.reference["genes"], genes)
        levels = models.reference["quantiles"][:, at]
        table["low"], table["median"], table["high"] = levels[0], levels[2], levels[4]
        if models.ensemble is not None:
            pairs = zip(table["mean"], levels.T)
            table["rank"] = [float(np.interp(mean, level, QUANTILES)) for mean, level in pairs]
            limits = models.reference["epistemic_sd"][:, at].T
            table["doubt"] = [grade(sd, limit) for sd, limit in zip(table["epistemic_sd"], limits)]
    return table


def _places(known, genes):
    known = [str(name) for name in known]
    missing = [gene for gene in genes if gene not in known]
    if missing:
        raise CourseError(f"gene {missing[0]!r}", f"one of {', '.join(known[:8])}, ...", "choose genes of the models")
    return [known.index(gene) for gene in genes]


def outputs(models, genes) -> list:
    """Return the (gene, model) pairs that :func:`speaker`'s columns stand for."""
    made = [(REGRESSION, models.ensemble), (CLASSES, models.classifier)]
    return [(gene, name) for name, model in made if model is not None for gene in genes]


def speaker(models, tile, genes):
    """Return a function from tiles, uint8 (n, h, w, 3), to float (n, columns) as :func:`outputs` lists them.

    Every tile goes through the encoder once, for all genes and both models. The regression speaks in log1p of counts
    per 10,000 at the library size predicted for ``tile``: hiding a nucleus is to change a gene's share, not the depth.
    """
    library = None
    if models.ensemble is not None:
        whole = models.ensemble.predict(models.encoder.embed(tile[None]), keep=False)
        library = float(np.exp(whole.log_library_mean[0]))

    def say(tiles):
        x = models.encoder.embed(tiles)
        parts = []
        if models.ensemble is not None:
            found = models.ensemble.predict(x, library=np.full(len(x), library), keep=False)
            parts.append(found.mean[:, _places(models.ensemble.genes, genes)])
        if models.classifier is not None:
            parts.append(models.classifier.proba(x)[:, _places(models.classifier.genes, genes)])
        return np.concatenate(parts, axis=1)

    return say


# ---------------------------------------------------------------- which nuclei count
def lime(models, tile, labels, genes, *, n_samples, kernel_width, hide, seed=0):
    """Score each nucleus for every gene under both models, from one set of perturbed tiles.

    Parameters
    ----------
    labels
        int (y, x), 0 = background.
    n_samples, kernel_width, hide, seed
        As in :func:`helpers.explain.lime`.

    Returns
    -------
    dict
        (gene, ``"regression"`` or ``"classification"``) to a Series of scores by label, in log1p of counts per 10,000
        or in probability; its ``attrs["r2"]`` is that of the local linear fit.
    """
    from helpers import explain

    pairs = outputs(models, genes)
    frame = explain.lime(
        speaker(models, tile, genes), tile, labels, n_samples=int(n_samples), kernel_width=float(kernel_width),
        hide=hide, seed=int(seed), genes=[f"{model} {gene}" for gene, model in pairs],
    )  # fmt: skip
    quality = frame.attrs.get("r2", np.full(len(pairs), np.nan))
    found = {}
    for (gene, model), r2 in zip(pairs, quality):
        series = frame[f"{model} {gene}"].copy()
        series.attrs = {"r2": float(r2)}
        found[gene, model] = series
    return found


def saliency(models, tile, genes) -> dict:
    """Return, for each gene, how strongly each pixel moves the prediction: float32 (y, x), at least 0.

    The gradient of the log of the gene's share (mean over members), or of the class's log odds where there is no
    regression; {} where the encoder is no Keras network.
    """
    from types import SimpleNamespace

    import tensorflow as tf

    from helpers import explain

    if models.encoder.make_backbone is None:
        return {}
    network = _backbone(models.encoder)
    once = SimpleNamespace(inputs=models.encoder.inputs, backbone=lambda: network)

    def head_of(gene):
        if models.ensemble is not None:
            at = _places(models.ensemble.genes, [gene])[0]
            zero = tf.zeros((1, 1))
            return lambda x: tf.reduce_mean(models.ensemble.model([x, zero, zero])[:, :, at], axis=1)
        model, at = models.classifier, _places(models.classifier.genes, [gene])[0]
        slope = (model.coef[at] / model.scale).astype(np.float32)
        return lambda x: tf.linalg.matvec(x, tf.constant(slope))

    return {gene: explain.saliency(once, head_of(gene), tile) for gene in genes}


@functools.lru_cache(maxsize=2)
def _backbone(encoder):
    """Return the encoder's network, copied once: copying costs more than the gradient."""
    return encoder.backbone()


def table(labels, tile, scores, *, mpp: float, origin=(0, 0)) -> pd.DataFrame:
    """Return one row a nucleus: where it lies, what it looks like, and its score for each gene and model.

    ``origin`` is x, y of the tile's corner in the picture: ``x`` and ``y`` are in pixels of the whole picture.
    """
    from helpers import nuclei

    found = nuclei.morphology(labels, tile, mpp=mpp)
    found["x"], found["y"] = found["x"] + origin[0], found["y"] + origin[1]
    for (gene, model), series in scores.items():
        found[f"LIME {model} {gene}"] = series.reindex(found.index)
    return found


def agreement(labels, scores, truth, gene) -> dict:
    """Return, for each model, how often its highest-scored nuclei belong to cell types that express the gene.

    Parameters
    ----------
    truth
        ``app.Truth``. A nucleus found is what it overlaps most; one that overlaps nothing true expresses nothing. A
        type expresses the gene if its rate is at least half of that of the highest type.

    Returns
    -------
    dict
        Model to (precision at k, chance, k), k the number of nuclei that express the gene; {} where all or none do.
    """
    from helpers import explain, nuclei

    mine, theirs, iou, *_ = nuclei.overlaps(labels, truth.labels)
    order = np.argsort(iou, kind="stable")
    owner = dict(zip(mine[order].tolist(), theirs[order].tolist()))  # the largest overlap comes last
    rate = truth.rate(gene)
    found = {}
    for (name, model), series in scores.items():
        positive = np.array([rate.get(owner.get(label), 0.0) >= 0.5 for label in series.index])
        if name == gene and positive.any() and not positive.all():
            precision, chance = explain.precision_at_k(series.to_numpy(), positive)
            found[model] = (precision, chance, int(positive.sum()))
    return found


def geojson(labels, table, *, score: str, origin=(0, 0)) -> str:
    """Return the nuclei as QuPath detections with their measurements, in pixels of the whole picture.

    Parameters
    ----------
    table
        As :func:`table` returns.
    score
        The column by which nuclei are classed high, middle and low.
    origin
        x, y of the tile's corner in the picture.
    """
    from helpers import export_scores, nuclei

    outlines = {n: o for n, o in nuclei.outlines(labels, origin=origin).items() if not o.is_empty and n in table.index}
    rows = table.loc[list(outlines)].replace([np.inf, -np.inf], np.nan).dropna(axis=1)
    rows["outline"] = list(outlines.values())
    write = export_scores.scored_writer(rows.assign(label=rows.index), score=score)
    with tempfile.TemporaryDirectory(prefix="course-app-") as folder:
        path = Path(folder) / "nuclei.geojson"
        write(path)
        return path.read_text(encoding="utf-8")

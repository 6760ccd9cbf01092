"""Methods, Visium HD: CellTypist - segmented cells named by a logistic regression taught on the reference.

One regression for each type against the rest, on log1p counts of 10,000 a cell (Dominguez Conde 2022). Its *majority
vote* gives every cell of a cluster the commonest name in it.

CellTypist keeps models as pickles, and opening a pickle runs whatever it says. So a model taught here lives in memory
or as plain arrays (:func:`save`), and a downloaded ``.pkl`` is read by :func:`read_pickled`, which calls nothing it
names.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np

from helpers import plain_arrays, settings
from helpers.messages import CourseError, note
from helpers.visium_hd_deconvolution import check

FOLDER = "CELLTYPIST_FOLDER"
MIN_COUNTS = 10
NOBODY = "Unassigned"
"""What CellTypist is told of cells outside every cluster; they get no vote and no name by vote."""
_FORMAT, _FEWEST = 1, 51
_LINEAR = ("coef_", "intercept_", "classes_", "features")
_SCALE = ("mean_", "scale_")


@contextlib.contextmanager
def _library():
    """Give CellTypist, silent: its folder in the course's cache, not in the home folder; the root logger untouched."""
    import logging
    import warnings

    root, before = logging.getLogger(), os.environ.get(FOLDER)
    level, handlers = root.level, list(root.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault(FOLDER, str(settings.cache_dir() / "celltypist"))
        try:
            import celltypist
        finally:
            root.setLevel(level)
            root.handlers[:] = handlers
            if before is None:
                os.environ.pop(FOLDER, None)
        talk = celltypist.logger.logger.level
        celltypist.logger.set_level("ERROR")
        try:
            yield celltypist
        finally:
            celltypist.logger.set_level(talk)


def normalised(table, genes):
    """Return AnnData of log1p counts, each row scaled to 10,000 over ``genes``, float32 CSR; an empty row stays 0."""
    import anndata
    import pandas as pd
    from scipy import sparse

    counts = sparse.csr_matrix(table[:, genes].X, dtype=np.float64)
    total = np.asarray(counts.sum(1)).ravel()
    scaled = sparse.diags(1e4 / np.maximum(total, 1)) @ counts
    return anndata.AnnData(scaled.log1p().tocsr(), obs=table.obs[[]].copy(), var=pd.DataFrame(index=list(genes)))


def train(reference, genes, *, cell_type: str = "cell_type", C: float = 1.0):
    """Teach a CellTypist model on the genes the cells will have.

    Parameters
    ----------
    reference
        AnnData of raw counts, named in ``obs[cell_type]``.
    genes
        Of the cells to be named; those the reference lacks are left out.
    C
        Inverse strength of the penalty on the coefficients.

    Returns
    -------
    celltypist.models.Model
        ``cell_types``, ``features``, ``extract_top_markers(type, n)``.

    Raises
    ------
    CourseError
        As ``visium_hd_deconvolution.check``.
    """
    import anndata
    import pandas as pd

    asked = anndata.AnnData(np.zeros((0, len(genes)), np.float32), var=pd.DataFrame(index=list(genes)))
    shared = check(asked, reference, cell_type=cell_type)
    rich = np.asarray(reference[:, shared].X.sum(1)).ravel() > 0
    known = normalised(reference[rich], shared)
    labels = reference.obs[cell_type].astype(str).to_numpy(object)[rich]
    with _library() as celltypist:
        return celltypist.train(known, labels=labels, n_jobs=1, C=C, date="-", details="taught on the reference")


def annotate(cells, model, *, over=None, min_counts: int = MIN_COUNTS):
    """Name cells one by one and, if clusters are given, by majority vote in each.

    Parameters
    ----------
    cells
        AnnData of raw counts; not changed.
    model
        Of :func:`train`, :func:`load` or :func:`read_pickled`.
    over
        Cluster (domain) of each cell (n,), missing values allowed. CellTypist's own clustering is not offered: it takes
        a quarter of a minute and a gigabyte.
    min_counts
        Cells with fewer molecules of the model's genes stay unnamed and do not vote.

    Returns
    -------
    pandas.DataFrame
        Index as ``cells.obs_names``: ``type`` ("" unnamed), ``confidence`` (probability of that type against the rest,
        0 to 1; not calibrated, does not sum to 1 over types), ``majority`` ("" without cluster; column only with
        ``over``).

    Raises
    ------
    CourseError
        The model shares no gene with the cells, ``over`` has another length, no cell with enough molecules.
    """
    import pandas as pd

    if over is not None and len(over) != cells.n_obs:
        raise CourseError(f"{len(over)} clusters for {cells.n_obs} cells", "one each", "take both from one table")
    features = set(np.asarray(model.features, str))
    genes = [gene for gene in cells.var_names if gene in features]
    if len(genes) < 2:
        seen = f"{len(genes)} genes that cells and model share (cells have {', '.join(cells.var_names[:3])})"
        raise CourseError(seen, "the model's genes", "use symbols of the model's species")
    if len(genes) < 0.5 * len(features):
        note(f"note: the cells have {len(genes)} of the model's {len(features)} genes; names are less certain")
    kept = np.asarray(cells[:, genes].X.sum(1)).ravel() >= max(min_counts, 1)
    if not kept.any():
        raise CourseError(f"no cell with {min_counts} molecules", "cells with counts", "lower min_counts")
    out = pd.DataFrame({"type": "", "confidence": np.nan}, index=cells.obs_names.copy()).astype({"type": object})
    clusters = None
    if over is not None:
        clusters = pd.Series(np.asarray(over, object)).where(pd.notna(np.asarray(over, object)), NOBODY).astype(str)
        clusters = clusters.replace("", NOBODY).to_numpy(object)
    vote = clusters is not None and kept.sum() >= _FEWEST
    with _library() as celltypist:
        found = celltypist.annotate(
            normalised(cells[kept], genes), model=model, majority_voting=vote,
            over_clustering=clusters[kept].astype(str) if vote else None,
        )  # fmt: skip
    out.loc[kept, "type"] = found.predicted_labels["predicted_labels"].astype(str).to_numpy(object)
    out.loc[kept, "confidence"] = found.probability_matrix.max(axis=1).to_numpy()
    if clusters is not None:
        out["majority"] = ""
        if vote:
            named = found.predicted_labels["majority_voting"].astype(str).to_numpy(object)
            by_cluster = dict(zip(clusters[kept], named)) | {NOBODY: ""}
            out["majority"] = [by_cluster.get(one, "") for one in clusters]
        else:
            note(f"note: {kept.sum()} cells are too few for a vote (CellTypist asks for {_FEWEST})")
    return out


# ---------------------------------------------------------------- models on disk
def save(model, path) -> Path:
    """Write a model as plain arrays (``.npz``); nothing runs when it is read."""
    arrays = {name: np.asarray(getattr(model.classifier, name)) for name in _LINEAR}
    arrays |= {name: np.asarray(getattr(model.scaler, name)) for name in _SCALE}
    arrays = {name: one.astype(str) if one.dtype == object else one for name, one in arrays.items()}
    return plain_arrays.write(path, {"format": _FORMAT, "what": "celltypist", "with_mean": True}, arrays)


def load(path):
    """Return the model that :func:`save` wrote."""
    facts, arrays = plain_arrays.read(path, format=_FORMAT, needs=("what",), made_by="visium_hd_celltypist.save")
    if facts["what"] != "celltypist" or not set((*_LINEAR, *_SCALE)) <= set(arrays):
        raise CourseError("an .npz that is no CellTypist model", "one of save()", "save it again", file=path)
    return _model(arrays, path)


def _model(arrays, file):
    """Return a CellTypist model of its arrays, checked to fit each other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    coef, names = np.atleast_2d(arrays["coef_"]).astype(float), arrays["classes_"].astype(str).astype(object)
    genes = arrays["features"].astype(str).astype(object)
    rows = 1 if len(names) == 2 else len(names)
    sizes = {len(genes), coef.shape[1], *(len(np.atleast_1d(arrays[name])) for name in _SCALE)}
    if len(sizes) != 1 or coef.shape[0] != rows or len(np.atleast_1d(arrays["intercept_"])) != rows:
        seen = f"{len(genes)} genes, {len(names)} types, coefficients of shape {coef.shape}"
        raise CourseError(seen, "one coefficient for each gene and type", "do not use the file", file=file)
    line, scale = LogisticRegression(), StandardScaler()
    line.coef_, line.intercept_, line.classes_ = coef, np.atleast_1d(arrays["intercept_"]).astype(float), names
    line.features, line.n_features_in_ = genes, len(genes)
    scale.mean_, scale.scale_ = (np.asarray(arrays[name], float) for name in _SCALE)
    scale.var_, scale.n_features_in_ = scale.scale_**2, len(genes)
    with _library() as celltypist:
        blank = dict.fromkeys(("date", "details", "url", "source", "version", "number_celltypes"), "")
        return celltypist.models.Model(line, scale, blank)


class _Stub:
    """Stands for an object of a library; keeps its state and calls nothing."""

    def __init__(self, *args, **options):
        self.state = {}

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Reads a pickle by a list of exact names; scikit-learn's become stubs, any other name ends the reading."""

    arrays = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    arrays |= {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")}

    def find_class(self, module, name):
        """Answer a name, or refuse."""
        if (module, name) in self.arrays:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if module.split(".")[0] == "sklearn":
            return type(name, (_Stub,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_pickled(name, *, folder=None):
    """Return a CellTypist model from its ``.pkl`` on this machine, without running what the pickle says.

    Only the arrays of the regression and of its scaling are taken; every name that is neither numpy's array nor a stub
    for scikit-learn is refused. Nothing is downloaded.

    Parameters
    ----------
    name
        A path, or a name such as ``"Human_Colorectal_Cancer"`` looked for in ``folder`` (default: where CellTypist
        keeps its downloads, ``CELLTYPIST_FOLDER`` or ``~/.celltypist``).

    Raises
    ------
    CourseError
        No such file (with the models that are there), a pickle that names anything else, a model without its arrays.
    """
    home = Path(os.environ.get(FOLDER) or Path.home() / ".celltypist") / "data" / "models"
    folder = home if folder is None else Path(folder)
    path = next((one for one in (Path(name), folder / name, folder / f"{name}.pkl") if one.is_file()), None)
    if path is None:
        there = ", ".join(sorted(one.stem for one in folder.glob("*.pkl"))) if folder.is_dir() else ""
        fix = "download it where there is a network, or train() one on the reference"
        raise CourseError(f"no model {str(name)!r}", f"one of: {there or 'none is there'}", fix, file=folder)
    try:
        with path.open("rb") as stream:
            held = _Reader(stream).load()
        line, scale = held["Model"].state, held["Scaler_"].state
        arrays = {name: np.asarray(line[name]) for name in _LINEAR} | {name: np.asarray(scale[name]) for name in _SCALE}
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, ValueError, ImportError) as error:
        seen = f"a file that is no plain CellTypist model ({str(error)[:100]})"
        raise CourseError(seen, "a regression and its scaling, nothing else", "do not use it", file=path) from None
    return _model(arrays, path)

"""Methods, Visium HD: the guards around Novae on a small tissue (a part of ``visium_hd_domains``, its door).

Novae's defaults are for millions of cells. On a few thousand they take minutes and end in one large domain; ``SMALL``
and :func:`training` are what fits. The trained prototypes are poor on so little data, so the domains come from k-means
prototypes of the learned space (Novae's own ``zero_shot=True``).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from unittest import mock

import numpy as np

from helpers import settings
from helpers.messages import CourseError, note
from helpers.visium_hd_qc import check_counts, check_um, neighbours

SMALL = {
    "batch_size": 64, "embedding_size": 50, "num_layers": 4, "num_prototypes": 128, "hidden_size": 64,
    "output_size": 32, "heads": 4, "panel_subset_size": 0.9, "background_noise_lambda": 20.0,
}  # fmt: skip
"""Arguments of ``novae.Novae`` for 500 to 20,000 cells: a tenth of the published network. With fewer prototypes (32)
the tree of domains changes more from one training to the next (adjusted Rand index 0.80 to 0.84; here 0.85 to 0.87)."""
SEEN = 10_000
"""Neighbourhoods a training looks at: two epochs of 5,000 cells. More did not help, and each 5,000 cost 8 CPU s."""
PRETRAINED = "novae-human-0"
REPOSITORIES = ("prism-oncology", "MICS-Lab")
"""Who published the pretrained model (the second name is the older)."""
KS = tuple(range(3, 9))
_STALE = ("spatial_distances_local", "spatial_distances_view")


# ---------------------------------------------------------------- guards around Novae
def load():
    """Import Novae quietly and return the module (8 to 12 CPU s the first time).

    Raises
    ------
    CourseError
        Novae is not installed (the light set of packages).
    """
    for name in ("torch.utils.flop_counter", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of its own future, at import
            import novae
    except ImportError as error:
        raise CourseError(f"no {error.name}", "the full set of packages", "make setup (without LIGHT=1)") from None
    logging.getLogger("novae").setLevel(logging.ERROR)
    return novae


@contextlib.contextmanager
def seeded(seed: int, *names):
    """Run a block seeded, on one thread and without progress bars, and put all of it back after.

    Novae draws from torch's, numpy's and Python's global generators; ``lightning.seed_everything`` would seed them for
    the rest of the notebook too. Its graphs are tiny: a second thread mostly waits (on busy cores ten times the CPU
    time was measured), and one thread gives the same result every time.
    """
    import random

    import torch

    novae = load()
    words = settings.rng(seed, "novae", *names).integers(2**31, size=3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    random.setstate(random.Random(int(words[0])).getstate())
    np.random.set_state(np.random.RandomState(int(words[1])).get_state())
    torch.set_rng_state(torch.Generator().manual_seed(int(words[2])).get_state())
    torch.set_num_threads(1)
    try:
        with mock.patch.object(novae.utils, "tqdm", lambda steps, **_: steps), warnings.catch_warnings():
            for module in (r"lightning\.", r"torch\."):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.set_num_threads(before[3])


def prepare(cells, *, radius_um: float):
    """Return a fresh AnnData for Novae and for the comparisons; the cells stay as they are.

    Closes four traps of Novae 1.1: counts below 10 are taken for logarithms and left as they are; without a layer
    ``counts`` the raw ones are lost; the graphs of two hops are kept when the neighbours are computed anew; and nothing
    asks for the unit of the places.

    Parameters
    ----------
    cells
        AnnData, raw counts, places in microns.
    radius_um
        Longest edge between neighbours.

    Returns
    -------
    anndata.AnnData
        ``X`` float32 CSR, log1p of counts scaled to the median total; ``layers["counts"]``; ``obsm["spatial"]``;
        ``obsp["spatial_connectivities"]`` (``visium_hd_qc.neighbours``: the graph Novae makes too);
        ``uns["radius_um"]``. Novae is not imported yet.

    Raises
    ------
    CourseError
        No counts, no microns, cells without any count, a radius that leaves most cells alone.
    """
    import anndata
    import scanpy as sc

    xy, counts = check_um(cells), check_counts(cells)
    empty = int((np.asarray(counts.sum(1)).ravel() == 0).sum())
    if empty:
        raise CourseError(f"{empty} cells without a count", "cells with counts", "filter first: visium_hd_qc.keep")
    made = anndata.AnnData(counts.astype(np.float32), obs=cells.obs.copy(), var=cells.var[[]].copy())
    made.layers["counts"] = counts.astype(np.int32)
    made.obsm["spatial"], made.uns["spatial_unit"] = xy.copy(), "um"
    sc.pp.normalize_total(made)
    sc.pp.log1p(made)
    graph = neighbours(xy, radius_um=radius_um)
    alone = float((np.asarray(graph.sum(1)).ravel() == 0).mean())
    if alone > 0.3:
        raise CourseError(
            f"{100 * alone:.0f} % of the cells without a neighbour within {radius_um:g} um", "at most 30 %",
            "raise radius_um: the median distance between cells is a good start",
        )  # fmt: skip
    made.obsp["spatial_connectivities"], made.uns["radius_um"] = graph, float(radius_um)
    return made


def link(made, *, radius_um: float | None = None) -> None:
    """Compute Novae's neighbours (by default with the radius of :func:`prepare`), without what it keeps of older ones.

    In place. The tool's own call is ``novae.spatial_neighbors(made, radius=..., coord_type="generic")``.
    """
    for key in _STALE:
        made.obsp.pop(key, None)
    made.uns["radius_um"] = float(made.uns["radius_um"] if radius_um is None else radius_um)
    load().spatial_neighbors(made, radius=made.uns["radius_um"], coord_type="generic", verbose=False)


def training(n_cells: int, *, epochs: int | None = None) -> dict:
    """Return arguments of ``Novae.fit`` (and ``fine_tune``) for ``n_cells`` cells.

    The number of epochs follows ``SEEN``. With one or two the scheduler is off: its cosine would divide by zero.
    """
    epochs = max(1, round(SEEN / max(n_cells, 1))) if epochs is None else int(epochs)
    if epochs < 1:
        raise CourseError(f"{epochs} epochs", "at least 1", "or leave novae_epochs out: it follows the cells")
    return {
        "max_epochs": epochs, "lr": 1e-3, "min_delta": 0.0, "patience": epochs + 1, "use_scheduler": epochs > 2,
        "accelerator": "cpu", "num_workers": 0, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip


def pretrained(name: str = PRETRAINED) -> Path | None:
    """Return the folder of a pretrained model that lies on this machine, or None. Never asks a hub, so never waits.

    Looked for in ``COURSE_MODELS`` (``<name>/config.json`` and weights) and in the Hugging Face cache. ``name`` may be
    a folder too; then it must hold a model.
    """
    from huggingface_hub import try_to_load_from_cache

    for folder in (Path(name).expanduser(), settings.models_dir() / Path(name).name):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    if Path(name).is_absolute():
        raise CourseError("no config.json with weights", "a folder of Novae.save_pretrained", "correct novae_model",
                          file=name)  # fmt: skip
    for owner in REPOSITORIES:
        repository = f"{owner}/{Path(name).name}"
        files = [try_to_load_from_cache(repository, file) for file in ("config.json", "model.safetensors")]
        if all(isinstance(file, str) for file in files):
            return Path(files[0]).parent
    return None


def fitted(made, *, seed: int, epochs: int | None = None, folder: Path | None = None):
    """Return a Novae model with the representations of ``made`` in ``obsm["novae_latent"]``: the notebook's cell.

    Parameters
    ----------
    made
        Of :func:`prepare`; Novae writes into it.
    seed, epochs
        ``epochs`` 0 leaves the network as it was drawn: the twin that shows what training adds.
    folder
        Of :func:`pretrained`: used as it is, without training.
    """
    novae = load()
    least = SMALL["num_prototypes"] + SMALL["batch_size"]
    if made.n_obs < least:
        raise CourseError(f"{made.n_obs} cells", f"at least {least}", "take a larger crop")
    if "spatial_distances" not in made.obsp:
        link(made)
    with seeded(seed):
        if folder is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # the hub's client says that it loads
                model = novae.Novae.from_pretrained(str(folder))
        else:
            model = novae.Novae(made, **SMALL)
            if epochs == 0:
                model.mode.trained, model._datamodule = True, model._init_datamodule()
            else:
                model.fit(made, **training(made.n_obs, epochs=epochs))
        model.compute_representations(made, zero_shot=True)
    return model


def levels(model, made, ks=KS):
    """Return the domains at each level of Novae's tree, a data frame (cells, levels) of names ``D1`` (largest), ...

    A level may hold fewer domains than its number, where a prototype has no cell; a level that repeats the one before
    is left out, and both are said on stderr. A cell without neighbours has no domain (NaN).
    """
    import pandas as pd

    out = {}
    for k in ks:
        labels = made.obs[model.assign_domains(made, level=int(k), key_added="_level")]
        del made.obs["_level"]
        found = labels.nunique()
        if found in out:
            note(f"note: level {k} of Novae's tree has {found} domains, as one before: left out")
            continue
        if found != k:
            note(f"note: level {k} of Novae's tree has {found} domains")
        out[int(found)] = ranked(labels)
    return pd.DataFrame(out, index=made.obs_names).rename_axis(columns="domains")


def ranked(labels):
    """Return labels renamed ``D1``, ``D2``, ... by falling size, object array; what is missing stays NaN."""
    import pandas as pd

    labels = pd.Series(np.asarray(labels, object))
    names = {old: f"D{i}" for i, old in enumerate(labels.value_counts(sort=True).index, 1)}
    return labels.map(names).to_numpy(object)

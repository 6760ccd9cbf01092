"""Methods: from tiles to embeddings - the course's own small network, ImageNet networks, foundation models.

``get`` finds an encoder by the name given in ``ENCODER``; ``embed_batches`` runs it over tiles and keeps the result on
disk. The other files of this room hold the parts: ``encoders_core`` (what an encoder is), ``encoders_keras``,
``encoders_colour``, ``encoders_foundation``, ``encoders_cache`` and ``encoders_probe`` (what an embedding knows).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from helpers import encoders_cache, encoders_colour, encoders_foundation, encoders_keras, settings
from helpers.encoders_cache import content_key, section_key
from helpers.encoders_core import Encoder
from helpers.encoders_probe import nearest, probe, recall
from helpers.messages import CourseError

__all__ = [
    "Encoder", "content_key", "embed_batches", "get", "get_many", "names", "nearest", "probe", "recall", "section_key",
    "terms",
]  # fmt: skip


def names() -> list[str]:
    """Return every name that ``get`` knows, besides paths to ``.keras`` files."""
    return ["tiny", "colour", *encoders_keras.APPLICATIONS, *encoders_foundation.registry()]


def _plain(name: str) -> str:
    """Return a name in lower case without ``-``, ``_`` and blanks: ResNet50, H-optimus-0 and phikon_v2 are found."""
    plain = "".join(c for c in str(name).lower() if c.isalnum())
    return {"uni2h": "uni2", "midnight": "midnight12k", "provgigapath": "gigapath"}.get(plain, plain)


def terms(name: str) -> str:
    """Return licence and access of a foundation model in one line, without loading it."""
    if _plain(name) not in encoders_foundation.registry():
        raise CourseError(f"encoder {name!r}", "one of " + ", ".join(encoders_foundation.registry()), "choose one")
    return encoders_foundation.terms(_plain(name))


def get(name: str, *, layers=None, pool: str = "mean") -> Encoder:
    """Return an encoder.

    Parameters
    ----------
    name
        ``"tiny"``; ``"colour"``, colours and grain without a network; a network of Keras Applications (``resnet50``,
        ``xception``, ...); a foundation model (``uni``, ``virchow2``, ...; optional packages and weights needed); a
        path to a ``.keras`` file, or such a file's name in ``settings.models_dir()``, with a declaration (see
        :func:`helpers.encoders_keras.declaration`). Loaded once.
    layers
        None: the network's usual output. ``"auto"``: several depths of the network, averaged over places and joined,
        in one pass: those its declaration names, else the ends of its last three stages of resolution; a foundation
        model keeps its one output. Or names of layers of a Keras network. ``Encoder.blocks`` tells them apart.
    pool
        ``"mean"`` over the places of a map, or ``"mean+sd"``: the standard deviations beside it (Keras networks).

    Raises
    ------
    CourseError
        Unknown name or layer; weights that are absent, damaged or unsafe to load.
    """
    name, models = str(name).strip(), settings.models_dir()
    path = encoders_keras.DECLARATIONS / "tiny.keras" if _plain(name) == "tiny" else _file(name, models)
    stamp = path.stat().st_mtime_ns if path is not None and path.is_file() else 0
    if isinstance(layers, str) and layers != "auto":
        layers = [each.strip() for each in layers.split(",")]
    return _load(name, path, str(models), stamp, layers if layers in (None, "auto") else tuple(layers), pool)


def _file(name: str, models: Path) -> Path | None:
    """Return the file a name may mean: a path as it is, else in the models' folder, with or without ``.keras``."""
    path = Path(name).expanduser()
    if _plain(name) in names():
        return None
    if not path.is_file() and (models / f"{name}.keras").is_file():
        return models / f"{name}.keras"
    return path if path.is_file() or path.is_absolute() else models / path


@functools.lru_cache(maxsize=6)
def _load(name: str, path: Path | None, models: str, stamp: int, layers, pool: str) -> Encoder:
    """Load once; ``models`` and ``stamp`` (the file's time) only tell whether what is kept still holds."""
    plain = _plain(name)
    if plain in encoders_foundation.registry() or plain == "colour":
        if layers not in (None, "auto"):
            raise CourseError(f"layers of {name}", "its one output", "leave layers out, or take a Keras network")
        return encoders_colour.load() if plain == "colour" else encoders_foundation.load(plain)
    if plain in encoders_keras.APPLICATIONS:
        return encoders_keras.application(plain, layers=layers, pool=pool)
    if plain == "tiny" or path.suffix or len(Path(name).parts) > 1:
        return encoders_keras.from_file(path, name="tiny" if plain == "tiny" else path.stem, layers=layers, pool=pool)
    raise CourseError(f"encoder {name!r}", "one of " + ", ".join(names()) + ", or a .keras file", "set ENCODER")


def get_many(names: str, *, layers=None, pool: str = "mean") -> list[Encoder]:
    """Return the encoders of a comma-separated list, e.g. ``"tiny,resnet50"``; a name given twice is refused.

    ``layers`` (None or ``"auto"``) and ``pool``: see :func:`get`.
    """
    wanted = [name.strip() for name in str(names).split(",") if name.strip()]
    if not wanted or len({_plain(name) for name in wanted}) < len(wanted):
        raise CourseError(f"ENCODER={names!r}", "one or more different names, separated by commas", "set ENCODER")
    return [get(name, layers=layers, pool=pool) for name in wanted]


def embed_batches(encoder: Encoder, batches, *, key: str | None = None, total: int | None = None):
    """Embed tiles that come in batches, with a progress bar on stderr.

    Parameters
    ----------
    encoder
        From :func:`get`.
    batches
        Yields (index (b,), tiles uint8 (b, h, w, 3)) as ``tiles.iterate`` does. Not touched where the cache answers.
    key
        What decides the tiles, hashed: ``section_key(section, side_um, ...)`` or ``content_key(...)``. The encoder's
        fingerprint is added here. None: nothing is kept on disk.
    total
        Number of tiles, for the bar.

    Returns
    -------
    index : int64 (n,)
        Ascending.
    embeddings : float32 (n, dim)
    """
    from tqdm.auto import tqdm

    full = None if key is None else content_key(key, encoder.fingerprint)
    kept = None if full is None else encoders_cache.read(full, encoder.dim)
    if kept is not None:
        return kept
    indices, parts = [np.empty(0, np.int64)], [np.empty((0, encoder.dim), np.float32)]
    with tqdm(total=total, desc=f"tiles through {encoder.name}", unit="tile", leave=False) as bar:
        for index, tiles in batches:
            indices.append(np.asarray(index, np.int64))
            parts.append(encoder.embed(tiles))
            bar.update(len(indices[-1]))
    index, embeddings = np.concatenate(indices), np.concatenate(parts)
    order = np.argsort(index, kind="stable")
    index, embeddings = index[order], embeddings[order]
    if full is not None:
        encoders_cache.write(full, index, embeddings)
    return index, embeddings

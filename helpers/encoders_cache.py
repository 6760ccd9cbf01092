"""Methods, encoders: embeddings kept on disk under the hash of everything they were made from."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from helpers import section as sec
from helpers import settings
from helpers.messages import CourseError, note

_BAND = 1024


def folder() -> Path:
    """Return where embeddings are kept."""
    return settings.cache_dir() / "embeddings"


def content_key(*parts) -> str:
    """Return the SHA-256 of parts: arrays, bytes, texts, numbers, None, and lists or dicts of them; a Path's content.

    Type, shape and order count: ``content_key(1, "2")`` differs from ``content_key("1", 2)``.
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest, part) -> None:
    if isinstance(part, Path):
        digest.update(b"\x00file")
        with open(part, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    elif isinstance(part, np.ndarray) and part.dtype != object:
        digest.update(f"\x00array{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part))
    elif isinstance(part, dict):
        digest.update(b"\x00dict")
        for key in sorted(part, key=str):
            _feed(digest, key)
            _feed(digest, part[key])
        digest.update(b"\x00end")
    elif isinstance(part, (list, tuple)):
        digest.update(b"\x00list")
        for each in part:
            _feed(digest, each)
        digest.update(b"\x00end")
    elif isinstance(part, (bytes, str, bool, int, float, np.generic)) or part is None:
        raw = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"\x00{type(part).__name__}{len(raw)}:".encode() + raw)
    else:
        raise CourseError(f"a {type(part).__name__} in a key", "arrays, texts, numbers, paths, lists, dicts",
                          "pass what decides the result, e.g. section_key(section)")  # fmt: skip


def section_key(section, *parts) -> str:
    """Return the key of a section's pixels, spots and scale, with ``parts`` (tile size, stain settings, ...) added.

    The picture is read in bands, so a large slide costs time (about a second for 100 megapixels) but not memory.
    """
    rows, columns = sec.shape(section)
    digest = hashlib.sha256(content_key(rows, columns, sec.xy(section), float(sec.mpp(section)), list(parts)).encode())
    for top in range(0, rows, _BAND):
        digest.update(np.ascontiguousarray(sec.window(section, 0, top, columns, min(_BAND, rows - top))))
    return digest.hexdigest()


def read(key: str, dim: int):
    """Return (index, embeddings) kept under ``key``, or None; a file that cannot be read or does not fit is removed."""
    path = folder() / f"{key}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            index, embeddings = kept["index"], kept["embeddings"]
        if index.dtype.kind == "i" and embeddings.dtype == np.float32 and embeddings.shape == (len(index), dim):
            return index, embeddings
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    note(f"{path.name}: a damaged file in the cache of embeddings; made again")
    path.unlink(missing_ok=True)
    return None


def write(key: str, index, embeddings) -> None:
    """Keep embeddings under ``key``: written beside, then renamed. A cache that cannot be written only costs time."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder(), suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, index=np.asarray(index, np.int64), embeddings=np.asarray(embeddings, np.float32))
        os.replace(part, folder() / f"{key}.npz")
    except OSError as error:
        note(f"embeddings not kept on disk ({error.strerror or error})")

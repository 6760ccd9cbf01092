"""Ground floor: where things lie, how randomness is derived, how many threads may run, the profiles."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository root: the folder that holds ``notebooks/`` and ``helpers/``."""

PROFILES = ("tiny", "small", "full")
TRAPS = ("xy_swap", "bgr", "hires_scale", "off_by_one", "random_split", "label_leak", "cast", "pixels")
"""Documented mistakes a learner may switch on with the parameter ``TRAP``."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def cap_threads() -> None:
    """Cap the thread pools of numpy, numba and TensorFlow to the cores at hand, unless the user set them."""
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(cores()))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def rng(seed: int, *names: object):
    """Return a numpy Generator for one named step.

    Every step has its own stream, so changing one step never reshuffles another.

    Parameters
    ----------
    seed
        The course's ``SEED`` (non-negative).
    names
        What the stream is for, e.g. ``rng(SEED, "anatomy", section_id)``.
    """
    import numpy as np

    digest = hashlib.sha256("\x1f".join(str(name) for name in names).encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.default_rng(np.random.SeedSequence([int(seed), *words]))


def _folder(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().resolve() if value else default


def data_dir() -> Path:
    """Downloaded data: ``COURSE_DATA``, else ``data/downloads`` (layout ``<id>/<path in its repository>``)."""
    return _folder("COURSE_DATA", ROOT / "data" / "downloads")


def models_dir() -> Path:
    """Encoder weights: ``COURSE_MODELS``, else ``data/downloads/models``."""
    return _folder("COURSE_MODELS", ROOT / "data" / "downloads" / "models")


def virtual_dir() -> Path:
    """Cache of generated sections: ``COURSE_VIRTUAL``, else ``data/virtual``."""
    return _folder("COURSE_VIRTUAL", ROOT / "data" / "virtual")


def cache_dir() -> Path:
    """Results that can be computed again, such as embeddings: ``COURSE_CACHE``, else ``data/cache``."""
    return _folder("COURSE_CACHE", ROOT / "data" / "cache")


def runs_dir() -> Path:
    """Outputs of runs: ``COURSE_RUNS``, else ``runs``."""
    return _folder("COURSE_RUNS", ROOT / "runs")

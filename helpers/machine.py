"""Caretaker: what this machine can run, what it cannot and why, and a short code a learner can read out.

The code, e.g. ``OK-2C23G-py311-0c7-K``, holds: ``OK`` or ``NO`` (can every notebook run in its default setting),
processor cores, memory in GiB, the Python version, three hexadecimal digits for the facts of :data:`FACTS` (lowest bit
first), and a letter that reveals a misheard character.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import threading
from importlib import metadata
from pathlib import Path

from helpers import notebook as notebooks
from helpers import settings
from helpers.messages import CourseError

FACTS = (
    ("network", "the network can be reached"),
    ("gpu", "a GPU is seen"),
    ("virtual", "the virtual tissue has been generated"),
    ("real", "at least one real data set is present"),
    ("weights", "encoder weights are present"),
    ("lock", "the packages are those of the lock"),
    ("disk", "at least 5 GB of disk are free"),
    ("memory", "at least 4 GB of memory are free"),
    ("writable", "the folder of runs can be written"),
    ("browser", "a web browser is installed"),
)
PROBE = ("github.com", 443)
"""Where the data sets of the course are published; only asked whether it answers."""
BINARIES = ("git", "make", "uv", "chromium", "java", "cargo", "proseg")
DISK_GB, MEMORY_GB = 5, 4
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and O: they sound and look like digits
_CODE = re.compile(r"(OK|NO)-(\d+)C(\d+)G-PY(\d)(\d+)-([0-9A-F]{3})-([A-Z])")


def network(seconds: float = 2.0) -> bool:
    """Return whether :data:`PROBE` accepts a connection; gives up after ``seconds``, even if a name server hangs."""
    answer = []

    def ask():
        try:
            with socket.create_connection(PROBE, timeout=seconds):
                answer.append(True)
        except OSError:
            answer.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer and answer[0])


def gpu() -> str:
    """Return the name of a GPU seen by the driver (no library is loaded), or an empty string."""
    try:
        first = sorted(os.listdir("/proc/driver/nvidia/gpus"))[0]
        with open(f"/proc/driver/nvidia/gpus/{first}/information", encoding="utf-8") as stream:
            return next((line.split(":", 1)[1].strip() for line in stream if line.startswith("Model")), "NVIDIA")
    except (OSError, IndexError):
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return "Apple" if apple else ""


def lock_file() -> Path:
    """Return the list this environment was made from: ``make setup LIGHT=1`` leaves a mark in it."""
    light = (Path(sys.prefix) / ".light").exists()
    return settings.ROOT / ("requirements-light.lock" if light else "requirements.lock")


def packages() -> dict:
    """Compare the installed packages with the lock (:func:`lock_file`).

    Returns
    -------
    dict
        Name to (installed version or None, locked version), for each package that differs.
    """
    from packaging.requirements import Requirement

    differs = {}
    for line in lock_file().read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        locked = str(wanted.specifier).removeprefix("==")
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = None
        if found != locked:
            differs[wanted.name] = (found, locked)
    return differs


def _holds(folder) -> bool:
    return folder.is_dir() and any(True for _ in folder.iterdir())


def present(item) -> bool:
    """Return whether a data set of the catalogue has been downloaded (whole or in part)."""
    return item.kind != "generated" and _holds(item.folder)


def _data() -> list[dict]:
    from helpers import catalogue

    return [{"id": item.id, "kind": item.kind, "present": present(item)} for item in catalogue.datasets()]


def _can_run(declared: notebooks.Notebook, facts: dict, data: list[dict]) -> dict:
    """Say whether a notebook can run; its metadata ``course.needs`` may list ``packages``, ``data`` and ``network``."""
    there = {item["id"] for item in data if item["present"] or item["kind"] == "generated"}
    why = [f"package {name} is missing" for name in declared.missing_packages]
    why += [f"data set {name} is not here" for name in declared.needs.get("data", ()) if name not in there]
    if declared.needs.get("network") and not facts["network"]:
        why.append("no network")
    if facts["memory_gb"] * 1000 < declared.budget_mb:
        why.append(f"{declared.budget_mb:.0f} MB of memory needed, {facts['memory_gb'] * 1000:.0f} MB free")
    return {"notebook": declared.name, "runs": not why, "why": why}


def check(*, probe: float = 2.0) -> dict:
    """Return what this machine can run: facts, packages, data, binaries, notebooks, and the code."""
    import psutil

    runs = settings.runs_dir()
    nearest = next(path for path in (runs, *runs.parents) if path.exists())
    data, differs, memory = _data(), packages(), psutil.virtual_memory()
    disk = shutil.disk_usage(nearest).free / 1e9
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": settings.cores(),
        "memory_gb": round(memory.available / 1e9, 1),
        "memory_total_gib": round(memory.total / 2**30),
        "disk_gb": round(disk, 1),
        "network": network(probe),
        "gpu": gpu(),
        "virtual": _holds(settings.virtual_dir()),
        "real": any(item["present"] for item in data if item["kind"] != "generated"),
        "weights": _holds(settings.models_dir()),
        "lock": not differs,
        "disk": disk >= DISK_GB,
        "memory": memory.available >= MEMORY_GB * 1e9,
        "writable": os.access(nearest, os.W_OK),
        "browser": any(shutil.which(name) for name in ("chromium", "google-chrome", "firefox", "safari", "open")),
    }
    books = [_can_run(notebooks.load(path), facts, data) for path in notebooks.numbered()]
    able = facts["writable"] and all(book["runs"] for book in books)
    return {
        "facts": facts,
        "packages": differs,
        "data": data,
        "binaries": {name: bool(shutil.which(name, path=_path())) for name in BINARIES},
        "notebooks": books,
        "code": encode(facts, able=able),
    }


def _path() -> str:
    """Return where programs are looked for: this environment first, as ``make proseg`` builds into it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


# ---------------------------------------------------------------- the code
def _letter(text: str) -> str:
    weights = (position * ord(letter) for position, letter in enumerate(text.upper(), start=1))
    return _LETTERS[sum(weights) % 23]


def encode(facts: dict, *, able: bool) -> str:
    """Return the short code for a set of facts."""
    bits = sum(bool(facts[name]) << place for place, (name, _) in enumerate(FACTS))
    version = "".join(facts["python"].split(".")[:2])
    text = f"{'OK' if able else 'NO'}-{facts['cores']}C{facts['memory_total_gib']}G-py{version}-{bits:03x}"
    return f"{text}-{_letter(text)}"


def decode(code: str) -> dict:
    """Return what a code says.

    Raises
    ------
    CourseError
        It is no such code, or a character was misheard.
    """
    text = code.strip().upper().replace(" ", "")
    match = _CODE.fullmatch(text)
    if not match or _letter(text[:-2]) != text[-1]:
        raise CourseError(f"the code {code!r}", "e.g. OK-2C23G-py311-0c7-K", "ask the learner to read it again")
    bits = int(match[6], 16)
    facts = {says: bool(bits >> place & 1) for place, (_, says) in enumerate(FACTS)}
    return {
        "every notebook can run": match[1] == "OK",
        "cores": int(match[2]),
        "memory GiB": int(match[3]),
        "python": f"{match[4]}.{match[5]}",
        **facts,
    }

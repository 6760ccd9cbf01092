"""Sources: every data set of the course - what it is, where it comes from, whether it is here, how to get it.

The facts lie in ``data/catalogue.json``. Data lie in ``settings.data_dir()/<id>/<path in its repository>``.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from helpers import settings
from helpers.download import digest, download
from helpers.messages import CourseError, note

PLATFORMS = ("st", "visium", "visium_hd", "xenium", "slides", "clinical")
"""Words allowed before the colon of ``DATA="platform:/path"``."""
_RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class File:
    """One file: its path below the data set's folder, and what it must be (None: its publisher does not say)."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes
    ----------
    kind
        ``"generated"`` (made by ``helpers.virtual``), ``"files"`` (``fetch`` gets it, every file has a SHA-256) or
        ``"manual"`` (downloaded by hand from ``address``).
    default_test
        Section ids held out where neither TRAIN nor TEST is given.
    shared_subject
        All sections are of one subject, so a default split cannot be by subject and says so.
    bytes
        Size of the whole; None: unknown.
    """

    id: str
    kind: str
    what: str
    platform: str | None
    licence: str
    citation: str
    repository: str | None = None
    commit: str | None = None
    address: str | None = None
    bytes: int | None = None
    files: tuple[File, ...] = ()
    default_test: tuple[str, ...] = ()
    shared_subject: bool = False
    notebooks: tuple[str, ...] = ()
    note: str = field(default="", compare=False)

    @property
    def folder(self) -> Path:
        """Where the data set lies, or would lie."""
        return settings.data_dir() / self.id

    @property
    def size(self) -> str:
        """The size in words."""
        if self.kind == "generated":
            return "generated"
        if self.bytes is None:
            return "unknown"
        power = next(p for p in (4, 3, 2, 1, 0) if self.bytes >= 1000**p or p == 0)
        return f"{self.bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"

    @property
    def source(self) -> str:
        """The address a person can open."""
        return self.address or (f"https://github.com/{self.repository}/tree/{self.commit}" if self.repository else "")

    def url(self, file: File, base_url: str | None = None) -> str:
        """Return a file's address: its own, or repository, commit and path; ``base_url`` replaces all of these."""
        from urllib.parse import quote

        if base_url:
            return f"{base_url.rstrip('/')}/{quote(file.path)}"
        return file.url or f"{_RAW}/{self.repository}/{self.commit}/{quote(file.path)}"

    def missing(self, folder: Path | None = None) -> list[File]:
        """Return the files that are not here, or not of their stated size (cheap: no hash is computed)."""
        top = folder or self.folder
        return [file for file in self.files if not _right_size(top / file.path, file.bytes)]


def _right_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


@functools.cache
def _read(path: Path) -> tuple[Dataset, ...]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    known = []
    for name, facts in entries.items():
        facts = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        facts["files"] = tuple(File(**file) for file in facts["files"])
        known.append(Dataset(id=name, **facts))
    return tuple(known)


def datasets() -> list[Dataset]:
    """Return every data set of the catalogue, in its order."""
    return list(_read(settings.ROOT / "data" / "catalogue.json"))


def dataset(name: str) -> Dataset:
    """Return one data set by id, or raise ``CourseError`` with the nearest ids."""
    known = {item.id: item for item in datasets()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise CourseError(
        f"data set {name!r}",
        f"one of {', '.join(known)}, or platform:/path ({', '.join(PLATFORMS)})",
        f"did you mean {' or '.join(near)}?" if near else "python -m helpers data lists them",
    )


def resolve(data: str) -> tuple[str, Path, str | None]:
    """Say where the parameter ``DATA`` points.

    Parameters
    ----------
    data
        A catalogue id, the name of one's own folder beside theirs (``COURSE_DATA``), or
        ``platform:/path/to/a/vendor/folder``.

    Returns
    -------
    id, folder, platform
        For a generated data set the folder is where it is cached, whether or not it is there yet: the runner makes it
        (``dataset(id).kind`` tells). Platform None: to be found by looking.

    Raises
    ------
    CourseError
        Unknown id or platform; a folder that is not there, with how to get the data.
    """
    word, colon, rest = data.partition(":")
    if colon and word in PLATFORMS:
        folder = Path(rest).expanduser()
        try:
            there = rest and folder.is_dir()
        except OSError:  # a link in a loop, a name too long
            there = False
        if not there:
            raise CourseError(f"no folder {rest!r}", "a folder of vendor files", f"correct DATA={data!r}", file=folder)
        return folder.resolve().name, folder.resolve(), word
    own = settings.data_dir() / data
    if data and not colon and "/" not in data and all(data != item.id for item in datasets()) and own.is_dir():
        return data, own, None  # a folder of one's own beside the catalogue's
    item = dataset(data) if not (colon and "/" in rest) else _unknown_platform(word)
    if item.kind == "generated":
        return item.id, settings.virtual_dir() / item.id, item.platform
    if not item.folder.is_dir() or not any(item.folder.iterdir()):
        raise CourseError(
            f"no data set {item.id} here", f"its files in {item.folder}", how_to_get(item), file=item.folder
        )
    platform = item.platform if item.platform in PLATFORMS else None
    return item.id, item.folder, platform


def _unknown_platform(word: str):
    near = difflib.get_close_matches(word, PLATFORMS, n=1)
    raise CourseError(
        f"platform {word!r}", ", ".join(PLATFORMS), f"did you mean {near[0]}:?" if near else "correct DATA"
    )


def how_to_get(item: Dataset) -> str:
    """Return, in words, how to get a data set: the command, and what to download by hand where to put it."""
    if item.kind == "generated":
        return "it is generated when first used"
    if item.kind == "files":
        return (
            f"python -m helpers fetch {item.id} ({item.size}); or by hand: {item.source}, "
            f"each file to {item.folder}/<its path in the repository>"
        )
    files = "".join(f"\n    {file.url or file.path}" for file in item.files)
    return (
        f"download it by hand from {item.source} ({item.size}; {item.licence}) into {item.folder}"
        + (f"; {item.note}" if item.note else "")
        + files
    )


def fetch(name: str, *, folder=None, base_url: str | None = None) -> Path:
    """Download a data set: resumed, checked by SHA-256, each file whole or absent.

    Parameters
    ----------
    name
        Catalogue id.
    folder
        Where to; default ``settings.data_dir()/<id>``. Files that are there and right are kept.
    base_url
        Replaces the addresses of the catalogue (a mirror).

    Returns
    -------
    Path
        The data set's folder.

    Raises
    ------
    CourseError
        Generated or manual data set (with what to do), or a download that failed (with the way by hand).
    """
    item = dataset(name)
    if item.kind == "generated":
        raise CourseError(f"{name}, which is generated", "a data set to download", f"just use DATA={name!r}")
    if item.kind == "manual":
        raise CourseError(f"{name}, which its publisher hands out by hand", "a data set with hashes", how_to_get(item))
    top = Path(folder) if folder else item.folder
    note(f"{name}: {item.size}, licence: {item.licence}")
    for file in item.files:
        target = top / file.path
        if _right_size(target, file.bytes) and digest(target) == file.sha256:
            continue
        try:
            download(item.url(file, base_url), target, sha256=file.sha256, size=file.bytes)
        except CourseError as error:
            by_hand = "".join(f"\n    {item.url(f, base_url)} -> {top / f.path}" for f in item.missing(top))
            fix = f"run the command again (it resumes), or download by hand:{by_hand}"
            raise CourseError(error.seen, error.expected, fix, file=target) from None
    return top

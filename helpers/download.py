"""Sources: fetch one file and unpack one archive, so that nothing half-written or unchecked is ever taken for data.

pooch offers hashes but no resuming, hence the small loop here. ``catalogue`` and this file are one room.
"""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from helpers.messages import CourseError, note

ATTEMPTS = 3
TIMEOUT_S = 30
MAX_UNPACKED_BYTES = 200 * 2**30
MAX_MEMBERS = 100_000
MAX_RATIO = 200
"""An archive that unpacks to more than this many times its size is taken for a bomb (past the first 100 MB)."""
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
_BLOCK = 1 << 16  # what a broken connection loses at most


def digest(path) -> str:
    """Return the SHA-256 of a file."""
    from pooch import file_hash

    return file_hash(str(path), alg="sha256")


def download(url: str, path, *, sha256: str | None = None, size: int | None = None) -> Path:
    """Fetch ``url`` to ``path``: resumed where a run broke off, checked, and given its name only when whole.

    Parameters
    ----------
    url
        http(s) address.
    sha256, size
        What the file must be; None where the publisher states none (then an HTML page is still refused).

    Raises
    ------
    CourseError
        No network, an error page, a file cut short or a wrong hash, after ``ATTEMPTS`` tries. Nothing is left behind
        but the ``.part`` of an interrupted transfer, which the next call continues.
    """
    import requests

    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"a folder that cannot be made ({error.strerror})",
            "a writable folder",
            "choose another COURSE_DATA",
            file=path.parent,
        ) from None
    problem = ""
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part, size=size, name=path.name)
            problem = _fault(part, sha256=sha256, size=size)
        except requests.RequestException as error:
            problem = _in_words(error, url)
        except OSError as error:
            raise CourseError(
                f"a file that cannot be written ({error.strerror})",
                "room and permission in the folder",
                "free some space or choose another COURSE_DATA",
                file=path,
            ) from None
        else:
            if not problem:
                os.replace(part, path)
                return path
            part.unlink(missing_ok=True)  # whole but wrong: resuming would not mend it
        if attempt + 1 < ATTEMPTS:
            note(f"warning: {path.name}: {problem}; trying again ({attempt + 2} of {ATTEMPTS})")
    raise CourseError(
        f"{problem} after {ATTEMPTS} attempts",
        "the file its publisher describes",
        f"download {url} by hand and save it as {path}",
        file=path,
    )


def _transfer(url, part: Path, *, size, name) -> None:
    """Stream ``url`` into ``part``, from where an earlier transfer stopped if the server allows it."""
    import requests
    from tqdm.auto import tqdm

    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        part.unlink()
        have = 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:  # nothing beyond what is here: start afresh
            part.unlink(missing_ok=True)
            raise requests.HTTPError("416: the server has no such range")
        answer.raise_for_status()
        resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = size or (have + int(length) if length else None)
        with (
            open(part, "ab" if resumed else "wb") as stream,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, leave=False) as bar,
        ):
            for block in answer.iter_content(_BLOCK):
                stream.write(block)
                bar.update(len(block))
            stream.flush()
            os.fsync(stream.fileno())
        if total is not None and part.stat().st_size < total:
            raise requests.ConnectionError(f"only {part.stat().st_size:,} of {total:,} bytes came")


def _in_words(error, url) -> str:
    import requests
    from urllib3.util import parse_url

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server's answer {error.response.status_code} {error.response.reason}"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)):
        return "a connection that broke off"
    if isinstance(error, requests.Timeout):
        return f"no answer from {parse_url(url).host} within {TIMEOUT_S} s"
    if isinstance(error, requests.ConnectionError) and "bytes came" not in str(error):
        return f"no connection to {parse_url(url).host} (offline?)"
    return str(error)


def _fault(part: Path, *, sha256, size) -> str:
    """Return what is wrong with a transferred file, or an empty text."""
    with open(part, "rb") as stream:
        start = stream.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page instead of the file"
    if size is not None and part.stat().st_size != size:
        return f"{part.stat().st_size:,} bytes instead of {size:,}"
    if sha256 is not None and (found := digest(part)) != sha256:
        return f"SHA-256 {found[:12]}... instead of {sha256[:12]}..."
    return ""


# ---------------------------------------------------------------- archives
def unpack(archive, folder) -> Path:
    """Unpack a tar or zip archive beside ``folder`` and rename it into place when all of it is there.

    Refused before anything is written: absolute names, ``../``, links, devices, too many or too large members.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise CourseError("a folder of that name", "a new folder", "remove it or choose another", file=folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
                linked = [m.filename for m in members if (m.external_attr >> 16) & 0o170000 == 0o120000]
                _vet(archive, [(m.filename, m.file_size) for m in members], linked)
                opened.extractall(part)
        else:
            with tarfile.open(archive) as opened:
                members = opened.getmembers()
                linked = [m.name for m in members if not (m.isfile() or m.isdir())]
                _vet(archive, [(m.name, m.size) for m in members], linked)
                opened.extractall(part, filter="data")
                while opened.fileobj.read(_BLOCK):  # the checksum of a compressed tar stands at its end
                    pass
        os.replace(part, folder)
    except (*_BROKEN, RuntimeError) as error:  # RuntimeError: a password, or an unknown compression
        raise CourseError(
            f"an archive that cannot be unpacked ({error})",
            "a whole tar or zip file",
            "download it again",
            file=archive,
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _vet(archive: Path, members, linked) -> None:
    fix = "do not use this archive; tell its publisher"
    if linked:
        raise CourseError(f"a link or device {linked[0]!r}", "plain files and folders", fix, file=archive)
    for name, _ in members:
        plain = PurePosixPath(name.replace("\\", "/"))
        if plain.is_absolute() or ".." in plain.parts or ":" in plain.parts[:1]:
            raise CourseError(f"a member called {name!r}", "names inside the archive's folder", fix, file=archive)
    total = sum(size for _, size in members)
    limit = min(MAX_UNPACKED_BYTES, max(100 * 2**20, MAX_RATIO * archive.stat().st_size))
    if len(members) > MAX_MEMBERS or total > limit:
        raise CourseError(
            f"{len(members):,} members, {total:,} bytes unpacked",
            f"at most {MAX_MEMBERS:,} and {limit:,}",
            fix,
            file=archive,
        )

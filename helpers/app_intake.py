"""Caretaker, web page: what a visitor uploads, judged before anything opens it - pictures and model files.

Nothing here trusts a file's name. Pixels, the members of an archive and the bytes they unpack to are bounded before
anything is unpacked, and a model is never a pickle: loading one runs whatever its author wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from helpers import stimage_store
from helpers.messages import CourseError

MAX_PICTURE_MB = 200
"""Largest picture file; Streamlit's own limit on the page is the same."""
MAX_MODEL_MB = 64
"""Largest model file."""
MAX_UNPACKED_MB = 256
"""Most that the members of a model archive may unpack to, and most that its arrays may declare."""
MAX_MEMBERS = 256
"""Most members of a model archive."""
MIN_SIDE_PX = 32
MAX_JSON_MB = 4
"""Largest JSON member of an archive."""
MAX_NUMBER = 100_000
"""Largest number a network's configuration may hold: a layer of that many units is no layer of ours."""
PICTURES = ("png", "jpg", "jpeg", "tif", "tiff")
_MAGIC = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpg": (b"\xff\xd8\xff",),
    "tif": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
}
_LIKE = {"jpeg": "jpg", "tiff": "tif"}
_FREE = ("seed", "shared_object_id")
"""Keys whose numbers may be of any size."""
_DANGEROUS = {
    "pkl": "a pickle", "pickle": "a pickle", "joblib": "a joblib pickle", "sav": "a pickle", "dill": "a pickle",
    "pt": "a torch file, which is a pickle", "pth": "a torch file, which is a pickle", "bin": "a torch file",
    "ckpt": "a checkpoint, which may be a pickle", "h5": "an old Keras file, whose Lambda layers run on loading",
    "hdf5": "an old Keras file, whose Lambda layers run on loading", "npy": "a bare array without its gene list",
    "zip": "an archive of unknown content", "pb": "a TensorFlow graph, which can read and write files",
}  # fmt: skip


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes: what the page calls an upload by, never its name."""
    return hashlib.sha256(data).hexdigest()


def ending(name: str) -> str:
    """Return a file name's last ending in lower case without the dot; empty where it has none."""
    return Path(str(name)).suffix.lower().lstrip(".")


def _small(name, data, most_mb):
    if not 0 < len(data) <= most_mb * 2**20:
        raise CourseError(f"a file of {len(data) / 2**20:.0f} MB", f"1 byte to {most_mb} MB",
                          "cut out the region of interest, or export with compression", file=name)  # fmt: skip


@contextlib.contextmanager
def on_disk(data: bytes, suffix: str):
    """Give a path to the bytes, under a name of ours in a folder of this user alone; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="course-app-") as folder:
        path = Path(folder) / f"upload.{suffix}"
        path.write_bytes(data)
        os.chmod(path, 0o600)
        yield path


# ---------------------------------------------------------------- pictures
def picture(name: str, data: bytes):
    """Return an uploaded picture as uint8 RGB (y, x, 3).

    Parameters
    ----------
    name
        The visitor's name for it; only its ending is used, and the bytes must agree with it.
    data
        The file.

    Raises
    ------
    CourseError
        Another format, too large a file, more pixels than Pillow lets pass without a warning, fewer than 32 a side, a
        file cut short, or a picture that is not 8-bit RGB, RGBA or grey.
    """
    from PIL import Image

    from helpers import readers_files

    kind = _LIKE.get(ending(name), ending(name))
    if kind not in _MAGIC:
        raise CourseError(f"a picture saved as .{kind or '(no ending)'}", "png, jpg or tif",
                          "export it as one of these", file=name)  # fmt: skip
    _small(name, data, MAX_PICTURE_MB)
    if not data.startswith(_MAGIC[kind]):
        raise CourseError(f"a file whose content is not {kind}", "content that agrees with the name",
                          "export it again; renaming a file does not convert it", file=name)  # fmt: skip
    with on_disk(data, kind) as path:
        try:
            rows, columns = readers_files.image_size(path)
            if rows * columns > Image.MAX_IMAGE_PIXELS:
                raise CourseError(
                    f"{columns} x {rows} px",
                    f"at most {Image.MAX_IMAGE_PIXELS:,} px (Pillow's limit)",
                    "cut out a region in QuPath or Fiji; the notebooks read larger slides by tile",
                )
            if min(rows, columns) < MIN_SIDE_PX:
                raise CourseError(f"{columns} x {rows} px", f"at least {MIN_SIDE_PX} px a side", "choose a larger one")
            if kind == "tif":
                _tiff_blocks(path, Image.MAX_IMAGE_PIXELS)
            return np.ascontiguousarray(readers_files.read_image(path)[:])
        except CourseError as error:
            raise CourseError(error.seen, error.expected, error.fix, file=name) from None


def _tiff_blocks(path, most_px):
    """Refuse a TIFF whose first picture is stored in blocks larger than any picture may be, or in too many pages."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.series[0].levels[0].keyframe
            block = (page.tilewidth or page.imagewidth) * (page.tilelength or page.imagelength)
            layers = page.tiledepth or 1
            samples = page.samplesperpixel
    except Exception as error:  # tifffile raises many kinds for a damaged file
        raise CourseError(f"a TIFF that cannot be read ({error})", "a whole file", "export it again") from None
    if block * layers > most_px or samples > 4:
        raise CourseError(f"blocks of {block:,} px and {samples} channels", f"at most {most_px:,} px and 4 channels",
                          "export it as RGB with tiles of 512 px")  # fmt: skip


# ---------------------------------------------------------------- models
def model_kind(name: str, data: bytes) -> str:
    """Return ``"keras"`` or ``"npz"`` for a model file that may be opened; refuse every other, with the reason.

    Checked here: ending, size, that it is an archive within bounds, that a network's numbers are of sane size and its
    weights arrays in the file itself, that an ``npz`` holds no object arrays. That a network has none but the course's
    and Keras' own layers is checked by :func:`helpers.stimage_store.facts_of`.
    """
    kind = ending(name)
    if kind not in ("keras", "npz"):
        why = _DANGEROUS.get(kind, f"a .{kind} file" if kind else "a file without an ending")
        raise CourseError(why, "a .keras or an .npz file of this course",
                          "save the model again with Ensemble.save (notebook 04) or Classifier.save (notebook 05): a "
                          "pickle runs whatever its author wrote as soon as it is opened", file=name)  # fmt: skip
    _small(name, data, MAX_MODEL_MB)
    with _archive(name, data) as archive:
        if kind == "npz":
            _check_arrays(name, archive)
            return kind
        _check_config(name, archive)
        for member in archive.namelist():
            if member.endswith((".h5", ".hdf5")):
                _check_weights(name, archive.read(member))
            elif member.endswith(".npz"):
                with _archive(name, archive.read(member)) as inner:
                    _check_arrays(name, inner)
    with on_disk(data, kind) as path:
        try:
            stimage_store.facts_of(path)
        except CourseError as error:
            raise CourseError(error.seen, error.expected, error.fix, file=name) from None
    return kind


def _archive(name, data):
    """Return the open ``ZipFile`` of a model, or refuse one that is broken, too large or has strange members."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise CourseError(
            f"a file that is no archive inside ({error})",
            "what its ending says, whole",
            "save the model again; renaming a pickle does not make it safe",
            file=name,
        ) from None
    unpacked = sum(member.file_size for member in members)
    names = [member.filename for member in members]
    if not 0 < len(members) <= MAX_MEMBERS or unpacked > MAX_UNPACKED_MB * 2**20:
        raise CourseError(f"an archive of {len(members)} members that unpacks to {unpacked / 2**20:.0f} MB",
                          f"at most {MAX_MEMBERS} members and {MAX_UNPACKED_MB} MB", "this is no model of the course",
                          file=name)  # fmt: skip
    odd = [n for n in names if n.startswith(("/", "\\")) or ".." in Path(n).parts or ":" in n or "\\" in n]
    odd += [member.filename for member in members if member.flag_bits & 1 or (member.external_attr >> 28) == 0xA]
    if odd or len(set(names)) < len(names):
        raise CourseError(f"a member {(odd or names)[0][:60]!r} that points elsewhere, is encrypted or comes twice",
                          "plain members", "save the model again", file=name)  # fmt: skip
    return archive


def _parts(tree):
    stack = [tree]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, dict):
            stack += [value for key, value in part.items() if key not in _FREE]
        stack += part if isinstance(part, list) else []


def _check_config(name, archive):
    """Refuse JSON that is broken, bottomless or large, and a configuration whose numbers would fill the memory."""
    found = {}
    for member in archive.infolist():
        if not member.filename.endswith(".json"):
            continue
        if member.file_size > MAX_JSON_MB * 2**20:
            seen = f"{member.filename[:40]} of {member.file_size / 2**20:.0f} MB"
            raise CourseError(seen, f"at most {MAX_JSON_MB} MB", "this is no model of the course", file=name)
        try:
            found[member.filename] = json.loads(archive.read(member))
        except (ValueError, RecursionError, zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
            raise CourseError(f"a {member.filename[:40]} that cannot be read ({type(error).__name__})", "whole JSON",
                              "save the model again", file=name) from None  # fmt: skip
    for part in _parts(found.get("config.json", {})):
        if isinstance(part, (int, float)) and not abs(part) <= MAX_NUMBER:
            raise CourseError(f"the number {part:g} in its configuration", f"at most {MAX_NUMBER:,}",
                              "this is no model of the course", file=name)  # fmt: skip


def _check_weights(name, data):
    """Refuse HDF5 weights that link to other files, hold anything but numbers, or declare more than they may."""
    import h5py

    links, declared, wrong = 0, 0, ""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            found = []
            file.visititems_links(lambda path, link: found.append((path, link)))
            links = len(found)
            for path, link in found[:10_000]:
                if not isinstance(link, h5py.HardLink):
                    wrong = f"a link to another place ({path[:40]})"
                    break
                item = file[path]
                if isinstance(item, h5py.Dataset):
                    declared += item.size * item.dtype.itemsize
                    if item.external or item.is_virtual or item.dtype.kind not in "fiub":
                        wrong = f"weights kept elsewhere or not numbers ({path[:40]})"
                        break
    except Exception as error:  # h5py raises many kinds for a damaged file
        raise CourseError(f"weights that cannot be read ({type(error).__name__})", "whole HDF5 weights",
                          "save the model again", file=name) from None  # fmt: skip
    if links > 10_000 or declared > MAX_UNPACKED_MB * 2**20:
        wrong = f"{links} entries that declare {declared / 2**20:.0f} MB of weights"
    if wrong:
        raise CourseError(wrong, f"arrays of numbers inside the file, at most {MAX_UNPACKED_MB} MB",
                          "this is no model of the course", file=name)  # fmt: skip


def _check_arrays(name, archive):
    """Refuse an npz whose members are not arrays of numbers or text, or declare more than they hold."""
    for member in archive.infolist():
        try:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](stream)
        except (ValueError, KeyError, SyntaxError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise CourseError(
                f"a member {member.filename[:40]!r} that is no array ({type(error).__name__})",
                "arrays only",
                "save the model again with Classifier.save",
                file=name,
            ) from None
        if dtype.hasobject:
            raise CourseError(f"a pickle inside ({member.filename[:40]})", "arrays of numbers or text",
                              "a pickle runs whatever its author wrote when opened; save numbers and names only",
                              file=name)  # fmt: skip
        if int(np.prod(shape, dtype=object)) * dtype.itemsize > member.file_size:
            raise CourseError(f"an array {shape} that its member cannot hold", "whole arrays", "save the model again",
                              file=name)  # fmt: skip

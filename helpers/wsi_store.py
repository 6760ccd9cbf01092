"""Methods, whole slides: what is known of each tile, in a zarr store that is written as it is found and survives kills.

``NAME.part`` grows; it becomes ``NAME`` when it is whole and on the disk. ``check`` holds a CRC-32 of each chunk of
tiles: 0 until the chunk is written. It is compared when a run goes on and when a store is used, as is that of what was
known from the start: zarr reads a chunk that is lost as zeros, and nobody would see it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

FORMAT = 2
GIVEN = ("xy_px", "xy_um", "grid", "tissue", "group", "thumbnail", "check")
"""Arrays that are whole from the start; all others grow."""
_TOLD = ("slide", "mpp_source")
"""Facts that are kept but decide nothing: the content and the pixel size do."""


def part_of(path: Path) -> Path:
    """Return where the unfinished store lies."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def lock(path: Path):
    """Hold the name of a store; the system frees it when its holder dies, however it dies."""
    file = path.with_name(f".{path.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(file, "a+")
        except OSError as problem:
            seen = f"a folder that cannot be written ({problem.strerror})"
            raise CourseError(seen, "one that can", "choose another (--out)", file=path.parent) from problem
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                seen = "another run that writes this store"
                raise CourseError(seen, "one at a time", "wait for it to end", file=path) from None
            if not file.exists() or not os.path.samestat(os.fstat(stream.fileno()), os.stat(file)):
                continue  # its last holder removed it a moment ago
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def wanted(facts: dict) -> dict:
    """Return facts as JSON gives them back, so that they can be compared with a store's."""
    return json.loads(json.dumps({"format": FORMAT, **facts}, sort_keys=True, allow_nan=False))


def differing(path: Path, facts: dict) -> list[str]:
    """Return the names of the facts in which a store differs from those given; [] if it is of the same run."""
    held = facts_of(path)["facts"]
    return sorted(name for name in {*held, *facts} - set(_TOLD) if held.get(name) != facts.get(name))


def facts_of(path) -> dict:
    """Return the attributes of a store.

    Raises
    ------
    CourseError
        No such store, or not one of this course.
    """
    import zarr

    path = Path(path)
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
    except Exception as error:  # zarr raises many kinds
        raise CourseError(f"no store that can be opened ({type(error).__name__})", "predictions of a slide, .zarr",
                          "check the path; remove it if it is damaged", file=path) from None  # fmt: skip
    if attributes.get("facts", {}).get("format") != FORMAT:
        raise CourseError("a zarr store of another kind", f"one of wsi.stream, format {FORMAT}",
                          "check the path; remove it if it is of no use", file=path)  # fmt: skip
    return attributes


def verify(path) -> dict:
    """Return the attributes of a store that is whole, all of it read and found as it was written.

    Raises
    ------
    CourseError
        As :func:`facts_of`; a store that is unfinished or damaged.
    """
    import zarr

    attributes = facts_of(path)
    if not attributes.get("complete"):
        raise CourseError("a store that is not whole", "a finished one", "run it to its end", file=path)
    try:
        group = zarr.open_group(path, mode="r")
        lost = _given(group) != attributes["given"] or _unlike(group, attributes)
    except Exception:  # a damaged file: zarr and its codecs raise many kinds
        lost = True
    if lost:
        raise CourseError("a damaged store: parts of it are lost or altered", "the store as it was written",
                          "start again with fresh=True (--fresh), or copy it again", file=path)  # fmt: skip
    return attributes


def _given(group) -> int:
    """Return a CRC-32 of the arrays that are whole from the start."""
    total = 0
    for name in GIVEN[:-1]:
        total = zlib.crc32(np.ascontiguousarray(group[name][:]), total)
    return total


def _unlike(group, attributes) -> list[int]:
    """Return the chunks of tiles that are not there, or not as they were written."""
    names, step = sorted(set(group.array_keys()) - set(GIVEN)), int(attributes["chunk"])
    bad = []
    for number, check in enumerate(group["check"][:]):
        found, rows = 0, slice(number * step, min((number + 1) * step, int(attributes["tiles"])))
        if check:
            try:
                found = _sum({name: group[name][rows] for name in names})
            except Exception:  # a damaged chunk file: zarr and its codecs raise many kinds
                found = 0
        if not check or found != check:
            bad.append(number)
    return bad


def sound(path: Path) -> bool:
    """Tell whether the tiles of an unfinished store are those it was created with."""
    import zarr

    try:
        group = zarr.open_group(part_of(path), mode="r")
        return _given(group) == group.attrs["given"]
    except Exception:  # a damaged file: zarr and its codecs raise many kinds
        return False


def create(path: Path, facts: dict, plan, picture, *, mpp: float, chunk: int, zarr_format: int, quality=None) -> None:
    """Write the unfinished store with its tiles, but nothing known of them yet; it appears whole.

    Parameters
    ----------
    plan
        :class:`helpers.wsi_plan.Plan`.
    picture
        (uint8 (y, x, 3), scale), the thumbnail.
    quality
        Numbers to be kept in the attributes, as JSON can hold them.
    """
    import zarr

    part = part_of(path)
    draft = _draft(path)
    sweep(path)
    try:
        group = zarr.open_group(draft, mode="w", zarr_format=zarr_format)
        group.attrs.update({"facts": facts, "tiles": len(plan.xy_px), "chunk": chunk, "side_px": plan.side,
                            "thumbnail_scale": picture[1], "quality": quality or {}, "complete": False})  # fmt: skip
        arrays = {"xy_px": plan.xy_px, "xy_um": plan.xy_px * mpp, "grid": plan.grid, "tissue": plan.tissue,
                  "group": plan.group, "thumbnail": picture[0]}  # fmt: skip
        for name, values in arrays.items():
            group.create_array(name, data=values)
        group.attrs["given"] = _given(group)
        number = -(-len(plan.xy_px) // chunk)
        group.create_array("check", shape=(number,), chunks=(1,), dtype="uint32", fill_value=0)
        _to_disk(draft)
        if part.exists():
            os.replace(part, _old(path))
        os.replace(draft, part)
    finally:
        sweep(path)


def _draft(path):
    return path.with_name(f".draft-{path.name}")


def _old(path):
    return path.with_name(f".old-{path.name}")


def sweep(path: Path) -> None:
    """Remove what a killed run left of its drafts; its holder of the lock alone may."""
    for rest in (_draft(path), _old(path)):
        shutil.rmtree(rest, ignore_errors=True)


class Growing:
    """An unfinished store, open for writing."""

    def __init__(self, path: Path):
        import zarr

        self.final, self.part = path, part_of(path)
        for torn in self.part.rglob("*.partial"):  # zarr's, of a killed run
            torn.unlink()
        self.group = zarr.open_group(self.part, mode="r+")
        self.tiles, self.chunk = int(self.group.attrs["tiles"]), int(self.group.attrs["chunk"])
        self.check = self.group["check"][:]

    def plan(self):
        """Return the plan the store was created with."""
        from helpers.wsi_plan import Plan

        held = {name: self.group[name][:] for name in ("xy_px", "grid", "tissue", "group")}
        return Plan(**held, side=int(self.group.attrs["side_px"]))

    def rows(self, number: int) -> slice:
        """Return the tiles of a chunk."""
        return slice(number * self.chunk, min((number + 1) * self.chunk, self.tiles))

    def missing(self) -> list[int]:
        """Return the chunks that are not there, or not as they were written."""
        return _unlike(self.group, self.group.attrs)

    def put(self, number: int, arrays: dict) -> None:
        """Write what is known of one chunk of tiles; its checksum last.

        Parameters
        ----------
        arrays
            Name -> float32 (m,) or (m, k), m tiles; the same names and widths each time.

        Raises
        ------
        CourseError
            Another shape, values that are not finite, no room or right to write.
        """
        rows = self.rows(number)
        try:
            for name, values in arrays.items():
                if len(values) != rows.stop - rows.start or not np.isfinite(values).all():
                    seen = f"{name} of shape {values.shape} for {rows.stop - rows.start} tiles, or values not finite"
                    raise CourseError(seen, "finite numbers, one row a tile", "mend the function that makes them")
                if name not in self.group:
                    shape = (self.tiles, *values.shape[1:])
                    chunks = (self.chunk, *values.shape[1:])
                    self.group.create_array(name, shape=shape, chunks=chunks, dtype="float32", fill_value=0)
                held = self.group[name]
                if held.shape[1:] != values.shape[1:]:
                    raise CourseError(f"{name} of width {values.shape[1:]}", f"{held.shape[1:]}, as before",
                                      "use the same functions for a whole slide", file=self.part)  # fmt: skip
                held[rows] = values
            self.check[number] = _sum(arrays)
            self.group["check"][number] = self.check[number]
        except OSError as problem:
            seen = f"{problem.strerror or problem} while chunk {number} was written"
            fix = "free some disk, then run again: what is there is kept"
            raise CourseError(seen, "room and rights to write", fix, file=self.part) from problem

    def finish(self) -> Path:
        """Give the store its name, once all of it is on the disk.

        Raises
        ------
        CourseError
            No room or right to write.
        """
        try:
            self.group.attrs["complete"] = True
            _to_disk(self.part)
            if self.final.exists():
                os.replace(self.final, _old(self.final))
            os.replace(self.part, self.final)
            _flush(self.final.parent)
        except OSError as problem:
            fix = "free some disk, then run again: what is there is kept"
            seen = f"{problem.strerror or problem} while the store was closed"
            raise CourseError(seen, "room and rights to write", fix, file=self.part) from problem
        sweep(self.final)
        return self.final


def _flush(path) -> None:
    """Ask the system to bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_disk(folder) -> None:
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush(os.path.join(here, name))
        _flush(here)


def _sum(arrays: dict) -> int:
    """Return a CRC-32 of arrays in the order of their names, never 0."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name], "float32"), total)
    return total or 1

"""Methods, whole slides: what is known of each tile, in a zarr store that is written as it is found and survives kills.

``NAME.part`` grows; it becomes ``NAME`` when it is whole. ``check`` holds a CRC-32 of each chunk of tiles: 0 until the
chunk is written, compared when a run goes on, so that nothing torn by a power cut is taken for a result.
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

FORMAT = 1
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
                          "check the path", file=path) from None  # fmt: skip
    if attributes.get("facts", {}).get("format") != FORMAT:
        raise CourseError("a zarr store of another kind", f"one of wsi.stream, format {FORMAT}", "check the path",
                          file=path)  # fmt: skip
    return attributes


def create(path: Path, facts: dict, plan, picture, *, mpp: float, chunk: int, zarr_format: int) -> None:
    """Write the unfinished store with its tiles, but nothing known of them yet; it appears whole.

    Parameters
    ----------
    plan
        :class:`helpers.wsi_plan.Plan`.
    picture
        (uint8 (y, x, 3), scale), the thumbnail.
    """
    import zarr

    part = part_of(path)
    draft = part.with_name(f".draft-{os.getpid()}-{path.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        group = zarr.open_group(draft, mode="w", zarr_format=zarr_format)
        group.attrs.update({"facts": facts, "tiles": len(plan.xy_px), "chunk": chunk, "side_px": plan.side,
                            "thumbnail_scale": picture[1], "complete": False})  # fmt: skip
        arrays = {"xy_px": plan.xy_px, "xy_um": plan.xy_px * mpp, "grid": plan.grid, "tissue": plan.tissue,
                  "group": plan.group, "thumbnail": picture[0]}  # fmt: skip
        for name, values in arrays.items():
            group.create_array(name, data=values)
        number = -(-len(plan.xy_px) // chunk)
        group.create_array("check", shape=(number,), chunks=(1,), dtype="uint32", fill_value=0)
        shutil.rmtree(part, ignore_errors=True)
        os.replace(draft, part)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
        names = sorted(set(self.group.array_keys()) - set(GIVEN))
        bad = []
        for number, check in enumerate(self.check):
            if check:
                try:
                    found = _sum({name: self.group[name][self.rows(number)] for name in names})
                except Exception:  # a damaged chunk file: zarr and its codecs raise many kinds
                    found = 0
            if not check or found != check:
                bad.append(number)
        return bad

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
        """Give the store its name."""
        self.group.attrs["complete"] = True
        retired = self.final.with_name(f".draft-{os.getpid()}-old-{self.final.name}")
        if self.final.exists():
            os.replace(self.final, retired)
        os.replace(self.part, self.final)
        shutil.rmtree(retired, ignore_errors=True)
        return self.final


def _sum(arrays: dict) -> int:
    """Return a CRC-32 of arrays in the order of their names, never 0."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name], "float32"), total)
    return total or 1

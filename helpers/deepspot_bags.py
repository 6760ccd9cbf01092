"""Methods, DeepSpot: the bags of a spot - its own tile, its sub-spots, its neighbours - as tables of numbers.

Neighbours are an index table (n, k) with a mask, found by a k-d tree, section by section; nothing is padded with zeros
that a network could take for tissue. The same :class:`Neighbourhood` is used for training and for inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helpers.messages import CourseError

KINDS = ("ring", "hexagon", "nearest")
RING = 1.57
"""Spots nearer than this many pitches: 6 on a hexagonal array, 8 on a square one."""
SLACK = 0.3
"""How far, in pitches, a spot may lie from a corner of the hexagon to stand for it."""


@dataclass(frozen=True)
class Neighbourhood:
    """Which spots (or cells) count as neighbours.

    Attributes
    ----------
    kind
        ``"ring"``: all within 1.57 pitches (6 on a hexagonal array, 8 on a square one, as published for a square one).
        ``"hexagon"``: the spot nearest to each of six places round the centre, one pitch away; so a finer grid on a
        slide without spots gives the same six as a Visium array. ``"nearest"``: the ``k`` nearest, for cells.
    k
        Columns of the table.
    pitch
        Distance between neighbouring spots in the unit of the positions, microns everywhere in this course. Unused by
        ``"nearest"``.
    reach
        ``"nearest"`` only: neighbours farther than this are left out; None: no limit.
    turn
        ``"hexagon"`` only: angle of the first of the six places, degrees from +x towards +y. Visium: 0.
    """

    kind: str = "ring"
    k: int = 8
    pitch: float | None = None
    reach: float | None = None
    turn: float = 0.0

    def __post_init__(self):
        good = self.kind in KINDS and self.k >= 1 and (self.kind != "hexagon" or self.k == 6)
        numbers = [value for value in (self.pitch, self.reach) if value is not None]
        if not good or not all(np.isfinite(value) and value > 0 for value in numbers):
            raise CourseError(
                f"a neighbourhood {self.kind!r} of {self.k}, pitch {self.pitch}, reach {self.reach}",
                f"one of {', '.join(KINDS)}, at least one neighbour (hexagon: 6), positive lengths", "correct it",
            )  # fmt: skip
        if self.kind != "nearest" and self.pitch is None:
            raise CourseError(f"a {self.kind} without pitch", "microns between spots", "give pitch=..., see spacing")

    def facts(self) -> dict:
        """Return plain values, for a saved model."""
        return {"kind": self.kind, "k": int(self.k), "pitch": self.pitch, "reach": self.reach, "turn": self.turn}


def spacing(xy) -> float:
    """Return the pitch of an array of spots, in the unit of ``xy`` (n, 2): the median distance in the first ring."""
    from scipy.spatial import cKDTree

    xy = _points(xy)
    tree = cKDTree(xy)
    if len(xy) < 2 or not (nearest := float(np.median(tree.query(xy, k=2)[0][:, 1]))) > 0:
        raise CourseError(f"{len(xy)} spots, most at one place", "at least 2 apart", "check the positions")
    i, j = tree.query_pairs(1.25 * nearest, output_type="ndarray").T
    return float(np.median(np.hypot(*(xy[i] - xy[j]).T)))


def lattice(xy) -> Neighbourhood:
    """Return the neighbourhood of an array of spots: ``"hexagon"`` where most have six neighbours, else ``"ring"``."""
    pitch = spacing(xy)
    mask = neighbours(xy, Neighbourhood("ring", 8, pitch=pitch))[1]
    inside = mask.sum(1)[mask.sum(1) > 0]
    return Neighbourhood("hexagon", 6, pitch=pitch) if inside.max() < 7 else Neighbourhood("ring", 8, pitch=pitch)


def neighbours(xy, near: Neighbourhood, *, sections=None):
    """Return the neighbours of every point as a table.

    Parameters
    ----------
    xy
        float (n, 2): x, y, in microns (the unit of ``near``).
    near
        What counts as a neighbour.
    sections
        (n,) names; points of two sections are never neighbours. None: all of one.

    Returns
    -------
    index : int32 (n, k)
        Rows of ``xy``; where the mask is 0 the point's own row, a safe place to read.
    mask : float32 (n, k)
        1 for a neighbour. A lone spot has a row of zeros: it has no neighbours, and nothing is invented for it.

    Raises
    ------
    CourseError
        Positions that are not finite, or sections of another length.
    """
    xy = _points(xy)
    names = np.zeros(len(xy), int) if sections is None else np.asarray(sections)
    if names.shape != (len(xy),):
        raise CourseError(f"{names.shape} sections for {len(xy)} points", "one each", "pass the table's column")
    index = np.repeat(np.arange(len(xy), dtype=np.int32)[:, None], near.k, axis=1)
    mask = np.zeros((len(xy), near.k), np.float32)
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        found, there = _table(xy[rows], near)
        index[rows] = np.where(there, rows[found], rows[:, None])
        mask[rows] = there
    return index, mask


def _table(xy, near):
    """Return int (n, k) and bool (n, k) of one section."""
    from scipy.spatial import cKDTree

    n, own = len(xy), np.arange(len(xy))[:, None]
    tree = cKDTree(xy)
    if near.kind == "hexagon":
        angle = np.deg2rad(near.turn) + np.arange(6) * np.pi / 3
        places = xy[:, None] + near.pitch * np.column_stack([np.cos(angle), np.sin(angle)])
        found = tree.query(places.reshape(-1, 2), distance_upper_bound=SLACK * near.pitch)[1].reshape(n, 6)
    else:
        reach = RING * near.pitch if near.kind == "ring" else near.reach or np.inf
        found = tree.query(xy, k=np.arange(1, near.k + 2), distance_upper_bound=reach)[1]
        order = np.argsort(found == own, axis=1, kind="stable")  # the point itself goes last, and is cut off
        order = np.where((found == own).any(1)[:, None], order, np.arange(near.k + 1))
        found = np.take_along_axis(found, order, 1)[:, : near.k]
    there = (found < n) & (found != own)
    return np.where(there, found, own), there


def published_neighbours(row, column, *, radius: int = 1):
    """Return how many neighbours the published rule finds: array coordinates at most ``radius`` apart on both axes.

    Visium's columns step by two, so on it the rule finds 4 of 6. Kept to show the error: int (n,).
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(np.column_stack([row, column]).astype(float))
    return tree.query_ball_point(tree.data, radius + 1e-6, p=np.inf, return_length=True) - 1


def _points(xy):
    xy = np.asarray(xy, float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise CourseError(f"positions of shape {xy.shape}", "finite (n, 2): x, y", "drop points without a place")
    return xy


# ---------------------------------------------------------------- bags
@dataclass(frozen=True)
class Bags:
    """The bags of n spots.

    Attributes
    ----------
    table
        float32 (m, d): embeddings of all tiles at hand, spots and neighbours alike.
    rows
        int (n,): the row of each spot's own tile.
    index, mask
        int32 (n, k), float32 (n, k): rows of ``table`` that are its neighbours. k may be 0.
    sub
        float32 (n, s, d), or None: embeddings of its sub-spots.
    """

    table: np.ndarray
    rows: np.ndarray
    index: np.ndarray
    mask: np.ndarray
    sub: np.ndarray | None = None

    def __post_init__(self):
        n, d = len(self.rows), self.table.shape[1]
        right = self.index.shape == self.mask.shape and len(self.index) == n
        right &= self.sub is None or (self.sub.ndim == 3 and self.sub.shape[::2] == (n, d))
        used = np.concatenate([np.ravel(self.rows), np.ravel(self.index)])
        if not right or (len(used) and not (0 <= used.min() and used.max() < len(self.table))):
            seen = f"{n} spots, table {self.table.shape}, index {self.index.shape}, mask {self.mask.shape}"
            raise CourseError(seen + (f", sub {self.sub.shape}" if self.sub is not None else ""),
                              "rows and index inside the table, one line a spot", "build them with bags()")  # fmt: skip
        for name, values in {"table": self.table, "sub": self.sub}.items():
            if values is not None and not np.isfinite(values).all():
                raise CourseError(f"{name} with numbers that are not finite", "embeddings", "look for empty tiles")

    def __len__(self):
        return len(self.rows)

    def take(self, which) -> Bags:
        """Return the bags of some spots; their neighbours stay, whoever they are."""
        sub = None if self.sub is None else self.sub[which]
        return replace(self, rows=self.rows[which], index=self.index[which], mask=self.mask[which], sub=sub)


def bags(table, xy_um=None, near: Neighbourhood | None = None, *, sections=None, sub=None) -> Bags:
    """Return the bags of all spots of a table.

    Parameters
    ----------
    table
        float (n, d): embedding of each spot's tile.
    xy_um, near, sections
        As for :func:`neighbours`; without ``near`` there are no neighbours.
    sub
        float (n, s, d): embeddings of the sub-spots.
    """
    table = np.asarray(table, np.float32)
    index, mask = np.zeros((len(table), 0), np.int32), np.zeros((len(table), 0), np.float32)
    if near is not None:
        if len(table) != len(np.asarray(xy_um)):
            raise CourseError(f"{len(table)} embeddings for {len(np.asarray(xy_um))} positions", "one each",
                              "embed with border='edge', so that no spot is lost")  # fmt: skip
        index, mask = neighbours(xy_um, near, sections=sections)
    sub = None if sub is None else np.asarray(sub, np.float32)
    return Bags(table, np.arange(len(table)), index, mask, sub)

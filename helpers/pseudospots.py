"""Methods: cells binned into spots, so that what was trained on Visium can be tested on single-cell truth.

A spot's counts are the sums over the cells whose centre lies in its disc (STimage's out-of-distribution test on
Xenium). On the hexagon of Visium about 27 % of the area, and so of the cells, is under a spot; the others are left out,
as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError

DIAMETER_UM, PITCH_UM = 55.0, 100.0
"""A Visium spot and the distance of neighbouring spots (10x Genomics)."""


@dataclass(frozen=True)
class Spots:
    """Cells binned into spots.

    Attributes
    ----------
    xy
        float64 (spots, 2): x, y of the centres, in the unit of the cells' positions.
    counts
        int CSR (spots, genes): sums over the spot's cells.
    members
        bool CSR (spots, cells): whether a cell lies in a spot; at most one spot a cell where discs do not overlap.
    n_cells
        int (spots,).
    names
        str (spots,): ``row x column`` of the lattice, such as ``3x14``.
    array
        int (spots, 2): row and column of the lattice; on the hexagon columns count half pitches, as Visium's do.
    """

    xy: np.ndarray
    counts: object
    members: object
    n_cells: np.ndarray
    names: np.ndarray
    array: np.ndarray

    def shares(self, labels, *, categories=None):
        """Return the share of each label among a spot's cells: data frame (spots, labels), rows summing to 1.

        Parameters
        ----------
        labels
            One word per cell; missing ones (None, NaN) are left out of the sums.
        categories
            Columns wanted, in order; default those that occur, sorted.
        """
        import pandas as pd
        from scipy import sparse

        coded = pd.Categorical(labels, categories=categories)
        if len(coded) != self.members.shape[1]:
            raise CourseError(f"{len(coded)} labels for {self.members.shape[1]} cells", "one each", "match the tables")
        known = np.flatnonzero(coded.codes >= 0)
        ones = np.ones(len(known))
        shape = (len(coded), len(coded.categories))
        onehot = sparse.csr_matrix((ones, (known, coded.codes[known])), shape=shape)
        total = (self.members.astype(float) @ onehot).toarray()
        with np.errstate(invalid="ignore"):
            total = total / total.sum(1, keepdims=True)  # a spot whose cells have no label: NaN
        return pd.DataFrame(total, index=self.names, columns=coded.categories)


def lattice(low, high, *, pitch: float, hexagonal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return centres of a lattice that covers a box, float64 (n, 2), and row and column of each, int (n, 2).

    Parameters
    ----------
    low, high
        (x, y) of the box's corners.
    pitch
        Distance of neighbouring centres, same unit.
    hexagonal
        As Visium (rows ``pitch`` x sqrt(3)/2 apart, every other row shifted by half a pitch); else a square lattice.
    """
    (left, top), (right, bottom) = np.asarray(low, float), np.asarray(high, float)
    step_y = pitch * (np.sqrt(0.75) if hexagonal else 1.0)
    step_x = pitch / 2 if hexagonal else pitch
    rows = np.arange(int(np.floor((bottom - top) / step_y + 1e-9)) + 1)
    columns = np.arange(int(np.floor((right - left) / step_x + 1e-9)) + 1)
    row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    if hexagonal:
        kept = (row + column) % 2 == 0
        row, column = row[kept], column[kept]
    return np.c_[left + column * step_x, top + row * step_y], np.c_[row, column]


def bin_cells(
    counts, xy, *, um_per_unit: float = 1.0, diameter_um: float = DIAMETER_UM, pitch_um: float = PITCH_UM,
    hexagonal: bool = True, min_cells: int = 1, origin=None, centres=None,
) -> Spots:  # fmt: skip
    """Bin cells into spots.

    Parameters
    ----------
    counts
        Array or sparse (cells, genes), raw counts.
    xy
        float (cells, 2): x, y of the cells' centres.
    um_per_unit
        Microns per unit of ``xy``: 1 for positions in um, ``mpp`` for pixels.
    diameter_um, pitch_um, hexagonal
        The array: a spot's diameter, the distance of neighbours, Visium's hexagon or squares.
    min_cells
        Spots with fewer cells are left out.
    origin
        (x, y) of the first centre, unit of ``xy``; default half a pitch in from the cells' lower corner.
    centres
        float (spots, 2): given centres instead of a lattice (another platform's spots on the same tissue).

    Returns
    -------
    Spots

    Raises
    ------
    CourseError
        Numbers of cells that differ, positions missing, sizes that are not positive, no spot with enough cells.

    Notes
    -----
    A cKDTree of the cells answers all discs at once: memory and time grow with the number of cells, not its square. A
    cell on the rim (distance = radius) belongs to the spot.
    """
    from scipy import sparse
    from scipy.spatial import cKDTree

    matrix = sparse.csr_matrix(counts)
    xy = np.asarray(xy, float)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) != matrix.shape[0]:
        seen = f"{matrix.shape[0]} cells and positions of shape {xy.shape}"
        raise CourseError(seen, "one x, y per cell", "take both from one table")
    if not len(xy) or not np.isfinite(xy).all():
        seen = "no cell" if not len(xy) else f"{(~np.isfinite(xy).all(1)).sum()} cells without a position"
        raise CourseError(seen, "a finite x, y for every cell", "drop cells without one")
    for name, value in {"um_per_unit": um_per_unit, "diameter_um": diameter_um, "pitch_um": pitch_um}.items():
        if not (np.isfinite(value) and value > 0):
            raise CourseError(f"{name} = {value}", "a positive number", f"correct {name}")
    radius, pitch = diameter_um / 2 / um_per_unit, pitch_um / um_per_unit
    if centres is None:
        low, high = xy.min(0), xy.max(0)
        first = np.minimum(low + pitch / 2, (low + high) / 2) if origin is None else np.asarray(origin, float)
        centres, array = lattice(first, np.maximum(high, first), pitch=pitch, hexagonal=hexagonal)
        names = np.array([f"{row}x{column}" for row, column in array])
    else:
        centres = np.asarray(centres, float).reshape(-1, 2)
        array = np.c_[np.zeros(len(centres), int), np.arange(len(centres))]
        names = np.array([f"0x{column}" for column in array[:, 1]])
    found = cKDTree(xy).query_ball_point(centres, radius * (1 + 1e-12), return_sorted=True)
    sizes = np.fromiter((len(cells) for cells in found), int, len(found))
    kept = sizes >= max(1, int(min_cells))
    if not kept.any():
        seen = f"no spot with {max(1, min_cells)} cells among {len(centres)}"
        raise CourseError(seen, "cells denser than the array", "check um_per_unit, or lower min_cells")
    columns = np.concatenate([np.asarray(cells, int) for cells, good in zip(found, kept) if good])
    start = np.r_[0, np.cumsum(sizes[kept])]
    members = sparse.csr_matrix((np.ones(len(columns), bool), columns, start), shape=(kept.sum(), len(xy)))
    summed = sparse.csr_matrix(members.astype(matrix.dtype) @ matrix)
    return Spots(centres[kept], summed, members, sizes[kept], names[kept], array[kept])

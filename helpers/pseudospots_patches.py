"""Methods, pseudospots: DeepSpot2Cell's grid - square patches with a spot in the middle, cells in or out of it.

The H&E is divided into squares that touch; the middle of each holds a spot of 55 um (224 and 160 px in the paper, so
the squares are 77 um wide). A cell belongs to one patch. It is *in* the spot or *out* of it, and only cells that are in
are summed to the spot's counts. Two published rules say which: the paper's (nucleus at least 10 um inside the spot's
boundary) and the code's (at least 60 % of the cell's area inside).

Nonchev et al. 2025, bioRxiv 10.1101/2025.09.23.678121, appendix F.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helpers.messages import CourseError

DIAMETER_UM = 55.0
PITCH_UM = 55.0 * 224 / 160
RULES = ("nucleus", "area")
INSIDE_UM = 10.0
SHARE = 0.6
TARGET_SUM = 1e4


@dataclass(frozen=True)
class Patches:
    """Square patches, each with a spot, and the cells that belong to them.

    Attributes
    ----------
    xy
        float64 (patches, 2): x, y of the centres, in the unit of the cells' positions.
    array
        int (patches, 2): row and column of the grid.
    patch
        int (cells,): the patch a cell belongs to, -1 none.
    inside
        bool (cells,): whether the cell is in its patch's spot.
    neighbours
        int (patches, 8): the patches round each, -1 where there is none. Columns: the offsets (row, column) from
        (-1, -1) to (1, 1) in reading order, the patch itself left out.
    side
        Side of a patch, in the unit of ``xy``.
    """

    xy: np.ndarray
    array: np.ndarray
    patch: np.ndarray
    inside: np.ndarray
    neighbours: np.ndarray
    side: float

    @property
    def names(self) -> np.ndarray:
        """Str (patches,): ``row x column``, such as ``3x14``."""
        return np.array([f"{row}x{column}" for row, column in self.array])

    @property
    def n_inside(self) -> np.ndarray:
        """Int (patches,): cells in each spot."""
        return np.bincount(self.patch[self.inside], minlength=len(self.xy))

    def members(self):
        """Return which cells are in which spot: bool CSR (patches, cells)."""
        from scipy import sparse

        cells = np.flatnonzero(self.inside)
        ones = np.ones(len(cells), bool)
        return sparse.csr_matrix((ones, (self.patch[cells], cells)), shape=(len(self.xy), len(self.patch)))

    def index(self, patches=None) -> np.ndarray:
        """Return the cells in each spot as a table, int32 (patches, most), -1 where there are no more.

        Parameters
        ----------
        patches
            Rows wanted; default all.
        """
        member = self.members()[slice(None) if patches is None else patches]
        number = np.diff(member.indptr)
        out = np.full((member.shape[0], max(1, number.max(initial=0))), -1, np.int32)
        row = np.repeat(np.arange(len(number)), number)
        out[row, np.arange(len(row)) - np.repeat(member.indptr[:-1], number)] = member.indices
        return out

    def sums(self, values):
        """Return the sums over the cells in each spot: CSR or array (patches, ...) as ``values`` (cells, ...) is."""
        if values.shape[0] != len(self.patch):
            seen = f"{values.shape[0]} rows for {len(self.patch)} cells"
            raise CourseError(seen, "one each", "take counts and positions from one table")
        return self.members().astype(values.dtype) @ values


def build(
    xy, *, um_per_unit: float, outlines=None, rule: str = "nucleus", diameter_um: float = DIAMETER_UM,
    pitch_um: float = PITCH_UM, inside_um: float = INSIDE_UM, share: float = SHARE, origin=(0.0, 0.0), extent=None,
) -> Patches:  # fmt: skip
    """Lay patches over a section and give each cell its patch.

    Parameters
    ----------
    xy
        float (cells, 2): x, y of the nuclei's centres (cells' centres where there are no nuclei).
    um_per_unit
        Microns per unit of ``xy``: ``mpp`` for pixels.
    outlines
        Cell outlines, an array of shapely polygons in the unit of ``xy``; needed with ``rule="area"``.
    rule
        ``"nucleus"``: in the spot if the nucleus' centre lies at least ``inside_um`` within the spot's boundary; a
        patch's cells are those whose centre it holds. ``"area"``: in the spot if at least ``share`` of the cell's area
        is; the same share of the area must lie in the patch, else the cell has none.
    diameter_um, pitch_um
        Of a spot; and side of a patch, 77 um.
    origin, extent
        (x, y) of the first patch's corner; (width, height) that patches must lie in (the picture's). Without an extent
        patches cover all cells.

    Returns
    -------
    Patches
        Every whole patch in the extent, also those without cells (they are context).

    Raises
    ------
    CourseError
        Positions missing, an unknown rule, sizes that do not fit, no whole patch.

    Notes
    -----
    Centre and patch follow from a division; only outlines that cross a boundary are intersected with it. Nothing grows
    with patches x cells.
    """
    xy = np.asarray(xy, float).reshape(-1, 2)
    _check(xy, um_per_unit, rule, outlines, diameter_um, pitch_um, inside_um)
    side, radius = pitch_um / um_per_unit, diameter_um / 2 / um_per_unit
    origin = np.asarray(origin, float)
    if extent is None:
        number = np.floor((xy.max(0) - origin) / side).astype(int) + 1
    else:
        number = np.floor((np.asarray(extent, float) - origin) / side + 1e-9).astype(int)
    columns, rows = (int(n) for n in number)
    if rows < 1 or columns < 1:
        seen = f"no whole patch of {pitch_um:g} um in an extent of {np.asarray(extent) * um_per_unit} um"
        raise CourseError(seen, "at least one", "check um_per_unit, or take a larger picture")
    array = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    centres = origin + (array[:, ::-1] + 0.5) * side
    at = np.floor((xy - origin) / side).astype(int)
    on = (at >= 0).all(1) & (at[:, 0] < columns) & (at[:, 1] < rows)
    patch = np.where(on, at[:, 1] * columns + at[:, 0], -1)
    away = np.hypot(*(xy - centres[patch]).T)
    inside = on & (away <= radius - inside_um / um_per_unit + 1e-9)
    if rule == "area":
        patch, inside = _by_area(np.asarray(outlines), centres, patch, side, radius, share)
    return Patches(centres, array, patch, inside, _neighbours(rows, columns), side)


def _check(xy, um_per_unit, rule, outlines, diameter_um, pitch_um, inside_um):
    if not len(xy) or not np.isfinite(xy).all():
        seen = "no cell" if not len(xy) else f"{(~np.isfinite(xy).all(1)).sum()} cells without a position"
        raise CourseError(seen, "a finite x, y for every cell", "drop cells without one")
    for name, value in {"um_per_unit": um_per_unit, "diameter_um": diameter_um, "pitch_um": pitch_um}.items():
        if value is None or not (np.isfinite(value) and value > 0):
            raise CourseError(f"{name} = {value}", "a positive number", f"correct {name}")
    if rule not in RULES:
        raise CourseError(f"rule={rule!r}", f"one of {', '.join(RULES)}", "choose one")
    if diameter_um > pitch_um or (rule == "nucleus" and inside_um >= diameter_um / 2):
        seen = f"spots of {diameter_um:g} um, {pitch_um:g} um apart, {inside_um:g} um of them a rim"
        raise CourseError(seen, "a rim within a spot within a patch", "correct the sizes")
    if rule == "area" and (outlines is None or len(outlines) != len(xy)):
        seen = f"{0 if outlines is None else len(outlines)} outlines for {len(xy)} cells"
        raise CourseError(seen, "one each", "pass the cells' outlines, or rule='nucleus'")


def _by_area(outlines, centres, patch, side, radius, share):
    """Return patch and inside of each cell by the shares of its area."""
    import shapely

    on = np.flatnonzero(patch >= 0)
    shapes, middle = outlines[on], centres[patch[on]]
    area, half = shapely.area(shapes), side / 2
    if not (area > 0).all():
        raise CourseError(f"{(area <= 0).sum()} outlines without area", "polygons", "drop them, or rule='nucleus'")
    bounds = shapely.bounds(shapes) - np.tile(middle, 2)  # x0, y0, x1, y1 from the patch's centre
    part = np.ones(len(on))  # of each cell in its patch
    across = np.flatnonzero((np.abs(bounds) > half).any(1))
    boxes = shapely.box(*(middle[across] - half).T, *(middle[across] + half).T)
    part[across] = shapely.area(shapely.intersection(shapely.make_valid(shapes[across]), boxes)) / area[across]
    corner = np.stack([np.hypot(bounds[:, i], bounds[:, j]) for i in (0, 2) for j in (1, 3)], 1).max(1)
    nearest = np.hypot(*(np.maximum(0, np.maximum(bounds[:, k], -bounds[:, k + 2])) for k in (0, 1)))
    round_ = np.where(corner <= radius, 1.0, 0.0)
    rim = np.flatnonzero((corner > radius) & (nearest < radius))
    discs = shapely.buffer(shapely.points(middle[rim]), radius, quad_segs=32)
    round_[rim] = shapely.area(shapely.intersection(shapely.make_valid(shapes[rim]), discs)) / area[rim]
    held = part >= share
    new, inside = np.full(len(outlines), -1), np.zeros(len(outlines), bool)
    new[on[held]] = patch[on[held]]
    inside[on] = held & (round_ >= share)
    return new, inside


def _neighbours(rows: int, columns: int) -> np.ndarray:
    """Return the eight patches round each of a grid in reading order, -1 beyond its border; int (patches, 8)."""
    number = np.pad(np.arange(rows * columns).reshape(rows, columns), 1, constant_values=-1)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    return np.stack([number[1 + y : 1 + y + rows, 1 + x : 1 + x + columns].ravel() for y, x in shifts], 1)


def join(parts) -> Patches:
    """Return the patches of several sections as one: numbers run on, neighbours stay within their section."""
    parts = list(parts)
    if not parts:
        raise CourseError("no section", "at least one", "pass what build returned")
    start = np.cumsum([0, *(len(part.xy) for part in parts)])
    moved = [
        replace(part, patch=np.where(part.patch >= 0, part.patch + begin, -1),
                neighbours=np.where(part.neighbours >= 0, part.neighbours + begin, -1))
        for part, begin in zip(parts, start)
    ]  # fmt: skip
    names = ("xy", "array", "patch", "inside", "neighbours")
    return Patches(*(np.concatenate([getattr(part, name) for part in moved]) for name in names), side=parts[0].side)


def log_cp10k(counts) -> np.ndarray:
    """Return log(1 + counts per 10,000 of the row), float32 (rows, genes); a row without counts is 0 throughout."""
    dense = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    dense = dense.astype(np.float32)
    return np.log1p(TARGET_SUM * dense / np.maximum(dense.sum(1, keepdims=True), 1e-9))


def on_spot_scale(values, patches: Patches, totals) -> np.ndarray:
    """Return cells on the published scale, float32 (cells, genes): log(1 + 10^4 counts / counts of the cell's spot).

    A cell out of the spot is divided by the same total, that of the cells in it. Rows of cells without a patch, or
    whose spot has no counts, are NaN.

    Parameters
    ----------
    values
        Counts or expectations of the cells, (cells, genes).
    totals
        float (patches,): summed counts of each spot.
    """
    dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    total = np.where(patches.patch >= 0, np.asarray(totals, float).ravel()[patches.patch], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = TARGET_SUM * dense.astype(np.float32) / np.where(total > 0, total, np.nan)[:, None]
    return np.log1p(scaled).astype(np.float32)

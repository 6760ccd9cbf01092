"""Methods, DeepSpot2Cell: bags - cells, patches, which belongs to which - and how they become a network's inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helpers.messages import CourseError


@dataclass(frozen=True)
class Bags:
    """Cells, patches, and which belongs to which.

    Attributes
    ----------
    cells
        float32 (cells, features): a cell's tile, embedded.
    context
        float32 (patches, numbers): a patch's tile, embedded.
    patch
        int (cells,): the cell's patch, -1 none (its context is then 0 and masked).
    neighbours
        int (patches, 8): the patches round each, -1 none.
    index
        int32 (patches, most): the cells in each patch's spot, -1 where there are no more.
    """

    cells: np.ndarray
    context: np.ndarray
    patch: np.ndarray
    neighbours: np.ndarray
    index: np.ndarray

    def _around(self, patch):
        near = self.neighbours[patch]
        seen = (near >= 0) & (patch >= 0)[:, None]
        return self.context[patch] * (patch >= 0)[:, None], self.context[near] * seen[..., None], seen.astype("float32")

    def spots(self, rows):
        """Return the network's inputs for spots (rows of patches): a bag of cells each."""
        index, rows = self.index[rows], np.asarray(rows)
        mask = index >= 0
        return self.cells[index] * mask[..., None], mask.astype(np.float32), *self._around(rows)

    def singles(self, rows):
        """Return the network's inputs for cells, each a bag of one."""
        patch = self.patch[rows]
        return self.cells[rows][:, None], np.ones((len(patch), 1), np.float32), *self._around(patch)


def bags(cells, context, *, patch, neighbours, index) -> Bags:
    """Check and put together what the network eats (see :class:`Bags`; ``pseudospots.patches`` gives the last three).

    Raises
    ------
    CourseError
        Numbers of rows that differ, numbers that are not finite, an index beyond the table.
    """
    cells, context = np.asarray(cells, np.float32), np.asarray(context, np.float32)
    patch, neighbours, index = np.asarray(patch), np.asarray(neighbours), np.asarray(index)
    shapes = f"cells {cells.shape}, context {context.shape}, patch {patch.shape}, neighbours {neighbours.shape}, " \
             f"index {index.shape}"  # fmt: skip
    two = cells.ndim == context.ndim == index.ndim == 2
    if not two or patch.shape != (len(cells),) or neighbours.shape != (len(context), 8) or len(index) != len(context):
        raise CourseError(shapes, "(cells, f), (patches, c), (cells,), (patches, 8), (patches, most)",
                          "take all from one call of pseudospots.patches")  # fmt: skip
    ends = (patch.max(initial=-1) >= len(context), neighbours.max(initial=-1) >= len(context),
            index.max(initial=-1) >= len(cells))  # fmt: skip
    if any(ends):
        raise CourseError(f"an index beyond the table ({shapes})", "rows that exist", "build patches anew")
    if not np.isfinite(cells).all() or not np.isfinite(context).all():
        raise CourseError("embeddings that are not finite", "finite numbers", "drop those cells, or check the encoder")
    return Bags(cells, context, patch, neighbours, index)


def patches_as_cells(given: Bags) -> Bags:
    """Return bags in which each patch's tile is the only "cell" of its spot, for the paper's MLP baseline.

    Columns that cells have and patches lack (the side of the square) are 0.
    """
    missing = given.cells.shape[1] - given.context.shape[1]
    if missing < 0:
        seen = f"{given.cells.shape[1]} numbers a cell and {given.context.shape[1]} a patch"
        raise CourseError(seen, "one encoder for both", "embed cells and patches alike")
    number = np.arange(len(given.context))
    return replace(given, cells=np.pad(given.context, ((0, 0), (0, missing))), patch=number, index=number[:, None])

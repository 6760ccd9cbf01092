"""Methods, STimage: the numbers a spot is described by - several tile sizes, and the tissue round it, from the picture.

Arrays in, arrays out: embeddings come from ``encoders.embed_batches``, one matrix a tile size. Nothing here sees a
count, so everything may be computed on the test section too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.messages import CourseError

RINGS = (1.6, 3.1)
"""Outer radii, in spot pitches, of the rings whose mean describes a spot's surroundings: 8 and 20 more on a square."""
MIN_SD = 1e-6
"""A feature that varies less than this says nothing and becomes 0."""


def ring_means(x, xy, *, pitch: float, radii=RINGS):
    """Return the mean of the spots in each ring round each spot of ONE section, the spot itself left out.

    Parameters
    ----------
    x
        float (n, f): any numbers per spot.
    xy
        float (n, 2): x, y of the spots, in the unit of ``pitch``.
    pitch
        Distance between neighbouring spots.
    radii
        Ascending outer radii in pitches; the first ring begins at the spot, each other where the last one ends.

    Returns
    -------
    list of float32 (n, f), one a ring. A ring without spots repeats the ring inside it, the first one the spot itself.
    """
    from scipy.sparse import coo_matrix
    from scipy.spatial import cKDTree

    x, xy = np.asarray(x, np.float32), np.asarray(xy, float)
    if len(x) != len(xy) or not pitch > 0:
        raise CourseError(f"{len(x)} rows for {len(xy)} spots, pitch {pitch}", "one row a spot, a positive pitch",
                          "pass one section, and its pitch in the unit of xy")  # fmt: skip
    pairs = cKDTree(xy).query_pairs(max(radii, default=0) * pitch, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    away = np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T) / pitch
    found, before, start = [], x, 0.0
    for radius in radii:
        here = pairs[(away > start) & (away <= radius)] if start else pairs[away <= radius]
        to_mean = coo_matrix((np.ones(len(here), np.float32), tuple(here.T)), (len(x), len(x))).tocsr()
        number = np.diff(to_mean.indptr)[:, None]
        before = np.where(number > 0, (to_mean @ x) / np.maximum(number, 1), before).astype(np.float32)
        found.append(before)
        start = radius
    return found


def assemble(views, *, blocks, xy=None, pitch: float | None = None, radii=RINGS, ring_views=(0,)):
    """Put the numbers of ONE section side by side: each tile size, then the ring means of some of them.

    Parameters
    ----------
    views
        One float (n, dim) a tile size, smallest first, rows in the order of the spots.
    blocks
        ``Encoder.blocks``: how each view divides into layers, e.g. (256, 384, 512); they sum to ``dim``.
    xy, pitch, radii
        As for :func:`ring_means`; without ``xy`` or radii there are no rings (single tiles have none).
    ring_views
        Which of the views get ring means.

    Returns
    -------
    x : float32 (n, f)
    blocks : tuple of int
        Widths of the blocks of ``x``, in order; they sum to f.
    """
    views = [np.asarray(view, np.float32) for view in views]
    shapes = [view.shape for view in views]
    if len({shape[0] for shape in shapes}) != 1 or any(shape[1] != sum(blocks) for shape in shapes):
        raise CourseError(f"views {shapes} of blocks {tuple(blocks)}", "the same spots in each, as wide as the blocks",
                          "embed every tile size with border='edge', so that no spot is lost")  # fmt: skip
    parts = list(views)
    if xy is not None and len(radii):
        for number in ring_views:
            parts += ring_means(views[number], xy, pitch=pitch, radii=radii)
    return np.concatenate(parts, axis=1), tuple(blocks) * len(parts)


@dataclass(frozen=True)
class Scaler:
    """Subtracts a mean, divides by a standard deviation and by the root of the block's width.

    The last step makes every block, narrow or wide, weigh the same in a distance: the expected squared distance
    between two spots is 2 a block.

    Attributes
    ----------
    mean, factor
        float32 (f,): features become ``(x - mean) * factor``.
    blocks
        Widths of the blocks.
    """

    mean: np.ndarray
    factor: np.ndarray
    blocks: tuple[int, ...]

    @classmethod
    def fit(cls, x, blocks) -> Scaler:
        """Learn from float (n, f)."""
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != sum(blocks) or not len(x):
            raise CourseError(f"features {x.shape} of blocks {tuple(blocks)}", "(n, f), the blocks summing up to f",
                              "take both from assemble")  # fmt: skip
        sd, width = x.std(0), np.repeat(blocks, blocks)
        factor = np.where(sd > MIN_SD, 1 / np.maximum(sd, MIN_SD), 0) / np.sqrt(width)
        return cls(x.mean(0).astype(np.float32), factor.astype(np.float32), tuple(int(b) for b in blocks))

    def apply(self, x):
        """Return scaled features, float32 (n, f)."""
        x = np.asarray(x, np.float32)
        if x.shape[1:] != self.mean.shape:
            raise CourseError(f"features {x.shape}", f"{len(self.mean)} columns", "use the same tile sizes and encoder")
        return (x - self.mean) * self.factor


def scale_sections(x, sections, blocks):
    """Scale each section by its own mean and spread, so that a slide's stain, scanner and light fall out.

    It uses all tiles of a section, the test section's too, but no counts (transductive). What it costs: a section
    that truly holds more of something loses that information.

    Parameters
    ----------
    x
        float (n, f) of all sections together.
    sections
        (n,) section ids.

    Returns
    -------
    float32 (n, f)
    """
    x, sections = np.asarray(x, np.float32), np.asarray(sections)
    out = np.empty_like(x)
    for name in dict.fromkeys(sections.tolist()):
        here = sections == name
        out[here] = Scaler.fit(x[here], blocks).apply(x[here])
    return out

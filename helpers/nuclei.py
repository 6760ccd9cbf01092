"""Methods: nuclei on H&E as a label image - segmentation, agreement with known outlines, morphology.

A label image is int32 (y, x): 0 is the background, nuclei are 1, 2, ... ``segment`` chooses the engine: a watershed
that needs nothing (``nuclei_watershed``), or StarDist and Cellpose where they are installed (``nuclei_engines``).
``nuclei_match`` turns outlines into labels and back and scores them, ``nuclei_morphology`` measures each nucleus,
``nuclei_slide`` goes over a whole section.
"""

from __future__ import annotations

import numpy as np

from helpers import nuclei_engines
from helpers.messages import CourseError
from helpers.nuclei_match import match, outlines, overlaps, rasterise
from helpers.nuclei_morphology import morphology
from helpers.nuclei_slide import section_level, segment_section
from helpers.nuclei_watershed import NUCLEUS_UM2, haematoxylin, level_of, watershed

__all__ = [
    "ENGINES", "NUCLEUS_UM2", "haematoxylin", "level_of", "match", "morphology", "outlines", "overlaps", "rasterise",
    "section_level", "segment", "segment_section", "watershed",
]  # fmt: skip

ENGINES = {
    "watershed": watershed,
    "stardist": nuclei_engines.stardist,
    "cellpose": nuclei_engines.cellpose,
}


def segment(tile, *, mpp: float, engine: str = "watershed", **options):
    """Segment the nuclei of a picture.

    Parameters
    ----------
    tile
        uint8 RGB (y, x, 3).
    mpp
        Microns per pixel of this picture (of the tile after resizing, not of the slide).
    engine
        ``"watershed"``, ``"stardist"`` or ``"cellpose"``.
    options
        Of that engine.

    Returns
    -------
    int32 (y, x)
        0 = background; 1, 2, ... without gaps.

    Raises
    ------
    CourseError
        Unknown engine; a package or weights that are not there, with what to install.
    """
    if engine not in ENGINES:
        raise CourseError(f"engine={engine!r}", "one of " + ", ".join(ENGINES), "choose one")
    tile = np.asarray(tile)
    if tile.ndim != 3 or tile.shape[2] != 3 or tile.dtype != np.uint8 or not tile.size:
        raise CourseError(f"a picture {tile.shape} of {tile.dtype}", "uint8 RGB (y, x, 3)", "cut it with tiles.cut")
    if not mpp > 0:
        raise CourseError(f"mpp={mpp}", "microns per pixel", "tile size in microns / tile side in pixels")
    labels = ENGINES[engine](tile, mpp=mpp, **options)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32) if labels.any() else labels

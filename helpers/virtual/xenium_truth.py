"""What is known about a virtual Xenium section: both frames, true pairs of points, nuclei, types, expression.

Beside the files of ``truth`` (``stain.json``, ``cells.parquet``, ``nuclei.npz``, ``tissue.npz``, ``spots.parquet``,
``genes.parquet``, ``expected.npz``; a spot is a cell that the instrument found)::

    registration.json   exact linear part, best affine and its floor, warp, sizes of both pictures
    landmarks.npz       ``xenium_um`` and ``he_px`` float64 (n, 2): true pairs on a lattice over the tissue
    xenium_nuclei.npz   ``polygons`` float32 (cells, 18, 2): the nuclei of ``nuclei.npz`` in the instrument's frame, um
"""

from __future__ import annotations

import json
from functools import cached_property

import numpy as np

from helpers.virtual import truth
from helpers.virtual.xenium_cells import CLASS_OF, CLASSES


class XeniumTruth(truth.Truth):
    """The truth of one Xenium section; ``cells`` has, beside the columns of ``cells.place``:

    ``type`` (the cell's; in the null twin not the one drawn), ``drawn_type`` (what the picture shows), ``class`` (one
    of four), ``x_px``, ``y_px`` (pixels of the H&E), ``xenium_x_um``, ``xenium_y_um``, ``in_he``, ``in_dapi`` (whether
    each picture shows the nucleus), ``cell`` (name of the cell the instrument found, "" where none).
    """

    @cached_property
    def registration(self) -> dict:
        """``um_to_px`` (3 x 3, best affine from the instrument's um to H&E pixels), ``affine_floor_um`` (its median
        residual), ``mirrored``, ``angle_deg``, ``scale``, ``warp_um``, ``he_mpp`` (nominal um/px), ``he_um_px``
        (true um of the instrument per H&E pixel), ``he_shape``, ``dapi_shape``."""
        return json.loads(self._file("registration.json").read_text(encoding="utf-8"))

    @cached_property
    def landmarks(self) -> tuple[np.ndarray, np.ndarray]:
        """True pairs: x, y in um of the instrument, and x, y in pixels of the H&E, float64 (n, 2) each."""
        return self._array("landmarks.npz", "xenium_um"), self._array("landmarks.npz", "he_px")

    @cached_property
    def xenium_nuclei(self) -> np.ndarray:
        """Float32 (cells, 18, 2): x, y in the instrument's frame, um."""
        return self._array("xenium_nuclei.npz", "polygons")

    @cached_property
    def nuclei_px(self) -> np.ndarray:
        """Float32 (cells, 18, 2): x, y in pixels of the H&E; of all cells, see ``cells["in_he"]``."""
        return (self.nuclei / self.registration["he_mpp"]).astype(np.float32)

    def labels(self, *, visible_only: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return nuclei as a label image of the H&E, int32 (y, x), and the class of each label.

        Deeper nuclei are drawn first, so a front nucleus covers what lies under it.

        Parameters
        ----------
        visible_only
            Leave out nuclei that the H&E does not show.

        Returns
        -------
        labels, classes
            0 or 1 + row of ``cells``; uint8 (cells + 1,): 0 for background, then 1 + index into ``CLASSES``.
        """
        import cv2

        cells = self.cells
        image = np.zeros(self.registration["he_shape"], np.int32)
        outlines = np.round((self.nuclei_px - 0.5) * 16).astype(np.int32)
        shown = cells["in_he"].to_numpy() if visible_only else np.ones(len(cells), bool)
        for row in sorted(np.flatnonzero(shown), key=lambda row: not cells["deep"].iat[row]):
            cv2.fillPoly(image, [outlines[row]], int(row) + 1, cv2.LINE_8, 4)
        codes = cells["class"].map({name: 1 + code for code, name in enumerate(CLASSES)}).to_numpy(np.uint8)
        return image, np.r_[np.uint8(0), codes]


def of(known: truth.Truth) -> XeniumTruth:
    """Return the truth of a Xenium section as such (``known`` is what ``Data.truth`` returns)."""
    return XeniumTruth(known.folder, known.section_id)


__all__ = ["CLASSES", "CLASS_OF", "XeniumTruth", "of"]

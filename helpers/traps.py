"""Examiner's room: documented mistakes, applied to a freshly read section so that a learner sees what they do.

``random_split`` and ``label_leak`` concern the training of a model, ``pixels`` the cells of notebook 10: they are
applied there.
"""

from __future__ import annotations

import numpy as np

from helpers import section as sec
from helpers.messages import CourseError
from helpers.settings import TRAPS

CAST = (1.0, 0.90, 0.95)
"""The tint of the trap ``cast``: what each channel (R, G, B) is multiplied by."""
WHAT_IT_DOES = {
    "xy_swap": "x and y of every spot are exchanged",
    "bgr": "the red and blue channels are exchanged, as when OpenCV's BGR is taken for RGB",
    "hires_scale": "spot positions are scaled as if they referred to the 2000-pixel 'hires' picture",
    "off_by_one": "array coordinates are taken to start at 0, so spots move one spacing right (SpaCell's missing -1)",
    "cast": "the slide is tinted after reading, as when a scanner's white balance is off",
    "random_split": "spots, not patients, are split into training and test",
    "label_leak": "the label finds its way into the input",
    "pixels": "positions of cells stay in pixels, and are called microns (notebook 10)",
}


def apply(section, trap: str):
    """Return the section with the mistake ``trap`` made on purpose; ``""`` returns it unchanged."""
    if trap == "":
        return section
    if trap not in TRAPS:
        raise CourseError(f"TRAP={trap!r}", f"one of {', '.join(TRAPS)}, or empty", "correct TRAP")
    points = sec.xy(section)
    if trap == "xy_swap":
        return sec.move_spots(section, points[:, ::-1])
    if trap == "hires_scale":
        return sec.move_spots(section, points * min(1.0, 2000 / max(sec.shape(section))) * 0.999)
    if trap == "off_by_one":
        return sec.move_spots(section, points + np.array([sec.pitch_px(points), 0.0]))
    if trap == "bgr":
        return sec.recolour(section, lambda block: block[::-1])
    if trap == "cast":
        tint = np.asarray(CAST, np.float32)[:, None, None]
        return sec.recolour(section, lambda block: (block * tint + 0.5).astype(np.uint8))
    return section

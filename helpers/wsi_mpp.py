"""Methods, whole slides: the pixel size a slide states, in how many places, and whether they agree."""

from __future__ import annotations

import re

import numpy as np

from helpers import section as sec
from helpers.messages import CourseError

AGREE = 0.02
"""Two statements of one pixel size may differ by this share: headers round."""
LONGEST_MM = 250.0
"""No glass slide is longer; a pixel size a hundred times too large makes it so."""
_FIX = "pass mpp=... (on the command line --mpp), the microns per pixel of the largest picture in the file"
_TO_UM = {"nm": 1e-3, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UNITS = {2: 25400.0, 3: 10000.0}  # TIFF: inch, centimetre, in microns


def of_tiff(tiff) -> list[tuple[str, float, float]]:
    """Return what an open TIFF states: (where, x, y), microns per pixel of its largest picture, surest first.

    Parameters
    ----------
    tiff
        ``tifffile.TiffFile``. Read are Aperio's description, the OME header and the TIFF resolution.
    """
    page, found = tiff.pages[0], []
    text = page.description or ""
    aperio = re.search(r"\bMPP\s*=\s*(\d+\.?\d*)(?![\d.])", text) if text.startswith("Aperio") else None
    if aperio:
        found.append(("Aperio's MPP", float(aperio.group(1)), float(aperio.group(1))))
    sizes = [_ome(tiff.ome_metadata or "", axis) for axis in "XY"]
    if sizes[0] is not None:
        found.append(("OME PhysicalSize", sizes[0], sizes[0] if sizes[1] is None else sizes[1]))
    unit = _UNITS.get(int(_tag(page, "ResolutionUnit", 2)))  # 2, the inch, where the file is silent (TIFF 6.0)
    sizes = [_per_unit(_tag(page, name, None), unit) for name in ("XResolution", "YResolution")]
    if sizes[0] is not None:
        found.append(("the TIFF resolution", sizes[0], sizes[0] if sizes[1] is None else sizes[1]))
    return found


def _tag(page, name, default):
    return page.tags[name].value if name in page.tags else default


def _ome(text, axis):
    """Return PhysicalSizeX or -Y of the first picture in microns, or None."""
    size = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', text)
    if size is None:
        return None
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
    factor = _TO_UM.get(unit.group(1) if unit else "um")
    try:
        return None if factor is None else float(size.group(1)) * factor
    except ValueError:
        return None


def _per_unit(ratio, unit):
    """Return microns per pixel of a TIFF resolution, a fraction of pixels per unit; None where it says nothing."""
    if unit is None or not isinstance(ratio, tuple) or not all(ratio) or ratio[0] == ratio[1]:  # 1/1: a place-holder
        return None
    return unit * ratio[1] / ratio[0]


def of_properties(properties) -> list[tuple[str, float, float]]:
    """Return what openslide found in a vendor's header; a generic TIFF is left to :func:`of_tiff`."""
    if properties.get("openslide.vendor") == "generic-tiff":
        return []
    try:
        x, y = (float(properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return []
    return [(f"the {properties.get('openslide.vendor')} header", x, y)]


def decide(stated, *, given=None, shape, file=None) -> tuple[float, str, list[str]]:
    """Return the pixel size, where it comes from, and what to say about it.

    Parameters
    ----------
    stated
        (where, x, y) as from :func:`of_tiff`.
    given
        Microns per pixel by the user: taken; what the file says otherwise is noted.
    shape
        (height, width) of the largest picture in pixels.

    Raises
    ------
    CourseError
        Nothing stated or only the resolution of a screen or a printer; statements that contradict each other, or x and
        y; a slide longer than :data:`LONGEST_MM`.
    """
    low, high = sec.MPP_RANGE
    usable, notes = [], []
    for where, x, y in stated:
        if low <= x <= high and low <= y <= high:
            usable.append((where, x, y))
        else:
            notes.append(f"{where} says {x:.4g} um/px, a screen's or a mistake: not used")
    if given is not None:
        sec.check_mpp(given, file=file)
        notes += [f"{where} says {x:.4g} x {y:.4g} um/px, not the {given:.4g} given" for where, x, y in usable
                  if _apart(given, x) or _apart(given, y)]  # fmt: skip
        return _plausible(float(given), shape, file), "given", notes
    if not usable:
        seen = "a slide without a pixel size" + (f" ({notes[0]})" if notes else "")
        raise CourseError(seen, "microns per pixel in its header", _FIX, file=file)
    for where, x, y in usable:
        if _apart(x, y):
            raise CourseError(f"pixels of {x:.4g} x {y:.4g} um ({where})", "square pixels", _FIX, file=file)
    where, x, _ = usable[0]
    for other, size, _ in usable[1:]:
        if _apart(x, size):
            raise CourseError(f"{x:.4g} um/px by {where}, {size:.4g} by {other}", "one pixel size", _FIX, file=file)
    return _plausible(float(np.mean(usable[0][1:])), shape, file), where, notes


def _apart(one, other) -> bool:
    return abs(one / other - 1) > AGREE


def _plausible(mpp, shape, file):
    longest = max(shape) * mpp / 1000
    if longest > LONGEST_MM:
        seen = f"a slide of {longest:.0f} mm at {mpp:.4g} um/px"
        raise CourseError(seen, f"at most {LONGEST_MM:.0f} mm", _FIX, file=file)
    return mpp

"""Sources: slides without spots, such as a clinical cohort's. The pixel size is read from the file, never guessed.

A folder of JPEG, PNG or TIFF pictures is a set of slides; a slide named as the TCGA names them belongs to the patient
of its first three parts.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from helpers import section_grid
from helpers.messages import CourseError
from helpers.readers_files import IMAGE_SUFFIXES, files_in, read_image, unreadable
from helpers.readers_xenium_files import physical_size

PITCH_UM = 100.0
"""Grid of a slide opened as a section: side and distance of its tiles, microns."""
_PATIENT = re.compile(r"^([A-Za-z0-9]+-[A-Za-z0-9]+-[A-Za-z0-9]+)-\d\d[A-Z]?-")


def find(folder, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the slides of a folder as the fields of a ``readers.Ref``, and what was left out and why."""
    found, skipped, seen = [], [], set()
    for file in files_in(folder):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = file.name[: -len(file.suffix)]
        if name in seen:
            skipped.append(f"{file.name}: a slide of the same name was found before")
            continue
        seen.add(name)
        found.append({"section_id": name, "subject_id": patient_of(name), "platform": "slides", "dataset": dataset,
                      "layout": "slides", "files": {"image": file}})  # fmt: skip
    return found, skipped


def patient_of(slide: str) -> str:
    """Return the patient of a slide: TCGA-3C-AALI of ``TCGA-3C-AALI-01Z-00-DX1.F6E9``; other names are their own."""
    match = _PATIENT.match(slide)
    return match.group(1) if match else slide.split(".")[0]


def mpp_of(file) -> float:
    """Return the microns per pixel a picture states: OME or TIFF resolution, JFIF density, PNG's pHYs.

    Raises
    ------
    CourseError
        It states none, or that of a screen or a printer (coarser than 25 um a pixel).
    """
    file = Path(file)
    if file.suffix.lower() in (".tif", ".tiff", ".btf"):
        size = physical_size(file)[0]
    else:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as picture:
                facts = picture.info
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise unreadable(file, error) from None
        size = None
        if facts.get("jfif_unit") == 2 and facts["jfif_density"][0] > 0:
            size = 1e4 / facts["jfif_density"][0]  # Pillow's own "dpi" is rounded
        elif facts.get("dpi", (0, 0))[0] > 0:
            size = 25400.0 / float(facts["dpi"][0])
    if size is None or size > 25:
        raise CourseError(
            "a slide without a pixel size", "microns per pixel in its header",
            "export it with its resolution (QuPath, pyvips), or pass mpp", file=file,
        )  # fmt: skip
    return float(size)


def read(file, *, mpp: float | None = None):
    """Return (uint8 (y, x, 3) RGB, microns per pixel); a tiled TIFF is read as a whole."""
    return np.asarray(read_image(file)), mpp_of(file) if mpp is None else float(mpp)


def tiles(image, mpp: float, *, side_um: float = PITCH_UM, out_px: int, white: float = section_grid.WHITE):
    """Cut a slide into touching square tiles and leave out glass: the light way to see many small slides.

    Parameters
    ----------
    image
        uint8 (y, x, 3).
    side_um
        Side of a tile in microns; the grid is centred on the slide, as ``section_grid.on_grid`` does.
    out_px
        Side after resizing, in pixels (area interpolation when shrinking, cubic when enlarging).
    white
        A tile whose mean is above this is glass.

    Returns
    -------
    tiles : uint8 (n, out_px, out_px, 3)
    xy_um : float64 (n, 2)
        Centres x, y in microns. n is 0 where everything is glass.
    """
    import cv2

    image = np.asarray(image)
    side = max(2, round(side_um / mpp))
    rows, columns = image.shape[0] // side, image.shape[1] // side
    if rows == 0 or columns == 0:
        raise CourseError(
            f"a slide of {image.shape[1]} x {image.shape[0]} px", f"at least one tile of {side} px",
            "use a smaller tile",
        )  # fmt: skip
    top, left = (image.shape[0] - rows * side) // 2, (image.shape[1] - columns * side) // 2
    inner = image[top : top + rows * side, left : left + columns * side]
    cut = inner.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    kept = np.flatnonzero(cut.mean((1, 2, 3)) <= white)
    how = cv2.INTER_AREA if side >= out_px else cv2.INTER_CUBIC
    out = np.empty((len(kept), out_px, out_px, 3), np.uint8)
    for place, tile in zip(out, cut[kept]):
        place[:] = cv2.resize(tile, (out_px, out_px), interpolation=how)
    centre = np.column_stack([left + (kept % columns + 0.5) * side, top + (kept // columns + 0.5) * side])
    return out, centre * mpp


def read_ref(ref, *, mpp: float | None = None, pitch_um: float = PITCH_UM):
    """Return a slide as a section without spots on a grid of ``pitch_um`` (``section_grid``)."""
    file = ref.files["image"]
    image, mpp = read(file, mpp=mpp)
    section = section_grid.on_grid(
        image, pitch_um=pitch_um, mpp=mpp, section_id=ref.section_id, subject_id=ref.subject_id, source=str(file)
    )
    section.attrs.update(dataset=ref.dataset, layout=ref.layout)
    return section

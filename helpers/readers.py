"""Sources: find the sections a folder holds and read each as the one Section object of the course.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file. Nothing here lists
sections: what a folder holds is found by looking.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from helpers import readers_slides, readers_st, readers_visium, readers_visium_hd, readers_xenium, section
from helpers.messages import CourseError, note
from helpers.readers_files import folder_of

_VENDORS = {"st": readers_st, "st2k": readers_st, "visium": readers_visium, "xenium": readers_xenium,
            "slides": readers_slides, "visium_hd": readers_visium_hd}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """One section, found but not yet read.

    Attributes
    ----------
    section_id, subject_id
        The section, and the patient or animal it comes from.
    platform
        ``"visium"``, ``"visium_hd"``, ``"st"``, ``"st2k"``, ``"xenium"`` or ``"slides"`` (pictures without spots).
    dataset
        Catalogue id, or the name the caller gave.
    layout
        ``"space ranger"``, ``"visium hd"``, ``"st positions"``, ``"st frame"``, ``"xenium outs"``, ``"xenium crop"`` or
        ``"slides"``.
    files
        Path of each part by role.
    labels
        What the metadata says of the section (age, breed, ...).
    """

    section_id: str
    subject_id: str
    platform: str
    dataset: str
    layout: str
    files: dict[str, Path] = field(compare=False)
    labels: dict[str, str] = field(default_factory=dict, compare=False)


def _look(folder, *, dataset: str, platform: str | None) -> tuple[list[Ref], list[str]]:
    if platform is not None and platform not in _VENDORS:
        raise CourseError(f"platform {platform!r}", " or ".join(sorted(_VENDORS)), "correct the word before the colon")
    top = folder_of(folder)
    every = (readers_visium, readers_visium_hd, readers_xenium, readers_st)
    vendors = every if platform is None else (_VENDORS[platform],)
    refs, skipped = [], []
    for vendor in vendors:
        found, incomplete = vendor.find(top, dataset=dataset)
        for entry in found:
            try:
                section.safe_id(entry["section_id"])
                refs.append(Ref(**entry))
            except CourseError as error:
                incomplete.append(str(error))
        skipped += incomplete
    return sorted(refs, key=lambda ref: ref.section_id), sorted(skipped)


def discover(folder, *, dataset: str, platform: str | None = None) -> list[Ref]:
    """Return the sections a folder holds, sorted by id.

    Parameters
    ----------
    folder
        Any folder of vendor files.
    dataset
        Name to store with each section.
    platform
        ``"visium"``, ``"visium_hd"``, ``"xenium"``, ``"st"`` (or ``"st2k"``) to look for one vendor only; None looks
        for all. ``"slides"`` takes every picture for a slide, so it must be asked for.

    Raises
    ------
    CourseError
        The folder cannot be opened, or holds no complete section; the message says what was found.
    """
    refs, skipped = _look(folder, dataset=dataset, platform=platform)
    if not refs:
        raise CourseError(
            "no complete section" + (f" ({'; '.join(skipped[:3])})" if skipped else ""),
            "a counts table and an image (ST), or outs/ with a matrix and spatial/ (Visium), cells (Xenium) "
            "or binned_outputs/ (Visium HD)",
            "check the folder, or add the missing partner file",
            file=folder,
        )
    return refs


def skipped(folder, *, platform: str | None = None) -> list[str]:
    """Return, in words, what looks like a section but lacks a partner file or has an unusable name."""
    return _look(folder, dataset="", platform=platform)[1]


def read(ref: Ref, **options):
    """Read one section and check it against the contract.

    Parameters
    ----------
    options
        What the platform's reader takes: ``read_ref`` of ``readers_visium_hd`` (``crop``, ``bin_um``, ...), of
        ``readers_xenium`` and of ``readers_slides``.

    Returns
    -------
    spatialdata.SpatialData
        Section labels and pathologists' labels are columns of ``obs``; ``attrs`` also tell the layout and, where the
        picture at hand is a reduced one, its scale. A Xenium section whose H&E is not registered yet is a raw one: see
        ``readers_xenium``.

    Raises
    ------
    CourseError
        Any part is missing, damaged or contradicts another; nothing is guessed silently.
    """
    vendor = _VENDORS[ref.platform]
    known = inspect.signature(vendor.read_ref).parameters if hasattr(vendor, "read_ref") else {}
    wrong = [name for name in options if name not in known]
    if wrong:
        allowed = ", ".join(list(known)[1:]) or "no option"
        raise CourseError(f"option {wrong[0]!r}", f"{allowed} for {ref.platform}", "leave it out")
    if known:
        return vendor.read_ref(ref, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique")  # made unique, and said, by tidy_counts
        parts = vendor.load(ref)
    counts, extra = parts.pop("counts"), parts.pop("extra")
    for name, value in ref.labels.items():
        if name not in counts.obs:
            counts.obs[name] = value
    built = section.build(
        counts=counts,
        platform=ref.platform,
        section_id=ref.section_id,
        subject_id=ref.subject_id,
        dataset=ref.dataset,
        source=ref.files.get("counts", ref.files.get("matrix")),
        **parts,
    )
    built.attrs.update({"layout": ref.layout, **extra})
    if extra.get("mirrored"):
        _refuse_swapped_axes(built)
    return built


def _refuse_swapped_axes(built) -> None:
    """Refuse a mirrored array whose spots lie better on the tissue once x and y are exchanged."""
    as_given = section.spots_on_tissue(built)
    exchanged = section.spots_on_tissue(section.move_spots(built, section.xy(built)[:, ::-1]))
    if exchanged > as_given + 0.02:
        raise CourseError(
            f"{as_given:.0%} of the spots on tissue, but {exchanged:.0%} with x and y exchanged",
            "x is the image column (pxl_col), y the row (pxl_row)",
            "the two position columns are swapped; exchange them",
            file=built.attrs["source"],
        )
    note(f"note: {built.attrs['section_id']}: the array is mirrored against the image (a flipped scan)")

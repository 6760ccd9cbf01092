"""Sources: which Visium HD sections a folder holds. ``readers`` and the files named ``readers_*`` are one room."""

from __future__ import annotations

from pathlib import Path

from helpers.messages import CourseError
from helpers.readers_files import files_in, folder_of
from helpers.readers_tables import TABLE_SUFFIXES, kind, metadata_of, subject_of
from helpers.readers_visium_hd_files import FOLDER, MATRIX, bin_folders

_DULL_FOLDERS = {"outs", "binned_outputs", "data", "_data", ""}
_INSIDE = ("binned_outputs", "segmented_outputs", "spatial")


def find(folder, *, dataset: str) -> tuple[list[dict], list[str]]:
    """Return the Visium HD sections a folder holds (arguments for ``readers.Ref``) and, in words, what is incomplete.

    The folder may be any above ``outs/``, ``outs/`` itself, or one of those inside it.
    """
    top = _outwards(folder_of(folder))
    everything = files_in(top)
    homes, skipped = set(), []
    for here in sorted({path.parent for path in everything} | {path.parent.parent for path in everything}):
        if not FOLDER.fullmatch(here.name):
            continue
        if (here / MATRIX).is_file():
            homes.add(here.parent)
        else:
            skipped.append(f"{here.name} in {here.parent.parent.name}: a Visium HD folder without {MATRIX}")
    outer = [path for path in everything if not ({"binned_outputs", "segmented_outputs"} & set(path.parts))]
    tables = [path for path in outer if path.name.lower().endswith(TABLE_SUFFIXES) and path.parent.name != "spatial"]
    metadata = metadata_of(path for path in tables if kind(path) == "metadata")
    reference = next((path for path in outer if path.name == "reference.h5ad"), None)
    refs = []
    for home in sorted(homes):
        outs = home.parent if home.name == "binned_outputs" else home
        name = _name(outs, top)
        subject, labels = metadata.get(name, (subject_of(name), {}))
        files = {"matrix": bin_folders(home)[min(bin_folders(home))] / MATRIX, "bins": home, "outs": outs}
        if reference is not None:
            files["reference"] = reference
        refs.append({
            "section_id": name, "subject_id": subject, "dataset": dataset, "labels": labels, "files": files,
            "layout": "visium hd", "platform": "visium_hd",
        })  # fmt: skip
    for ref in refs:
        if sum(other["section_id"] == ref["section_id"] for other in refs) > 1:
            seen = f"section {ref['section_id']} in two or more folders"
            raise CourseError(seen, "one folder a section", "rename one", file=top)
    if not refs and (top.name == "segmented_outputs" or any("segmented_outputs" in path.parts for path in everything)):
        skipped.append("segmented_outputs/ holds the vendor's cells; binned_outputs/ is missing beside it")
    return refs, skipped


def _outwards(folder: Path) -> Path:
    """Return the folder of a section where one inside it was given."""
    for here in (folder, *folder.parents[:3]):
        within = folder.relative_to(here).parts
        if (here / "binned_outputs").is_dir() and (not within or within[0] in _INSIDE):
            return here
        if FOLDER.fullmatch(here.name):  # square_*um folders that lie in no binned_outputs/
            return here.parent.parent if here.parent.name == "binned_outputs" else here.parent
    return folder.parent if folder.name in _INSIDE else folder


def _name(outs: Path, top: Path) -> str:
    sliced = sorted(path.name for path in outs.glob("*_feature_slice.h5"))
    if len(sliced) == 1:
        return sliced[0].removesuffix("_feature_slice.h5")
    for here in (outs, *outs.parents):
        if here.name not in _DULL_FOLDERS:
            return here.name
    return outs.name

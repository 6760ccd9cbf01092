"""Methods: the YAML file beside notebook 10 - samples, parameters and marker signatures, checked before anything runs.

Every fault of a file is reported at once, each with its line. Only plain data are read: no tags, no aliases.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from pathlib import Path

from helpers.messages import CourseError
from helpers.visium_hd_lines import Faults, parse

LEAST_GENES = 2
"""A signature of one gene is that gene: Enrichmap refuses it, and one dropout would rename a cell."""
_TUTORIAL = {
    "params": "parameters", "marker_genes": "signatures", "paths": "samples", "filter_genes_counts": "min_gene_counts",
    "filter_cells_counts": "min_cell_counts", "radius": "radius_um", "novae_max_epochs": "novae_epochs",
    "clustering_col": "domains",
}  # fmt: skip
"""Names of the tutorial's own file, and what they are called here."""


@dataclass(frozen=True)
class Sample:
    """What Space Ranger's folder of one's own sample does not tell; the folder itself is named by ``DATA``.

    Attributes
    ----------
    id
        The section's id, as the notebook prints it.
    image
        Full-resolution H&E; None: it is looked for beside ``outs/``.
    reference, cell_type
        Single cells with raw counts (``.h5ad``), and the column of ``obs`` that names them; None: no reference, so the
        parts that need one are left out.
    crop_px
        x0, y0, x1, y1 in pixels of it; None: all.
    """

    id: str
    image: Path | None = None
    reference: Path | None = None
    cell_type: str = "cell_type"
    crop_px: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Parameters:
    """Settings of the walk-through; the table ``LIMITS`` has what each may be.

    Attributes
    ----------
    min_gene_counts, min_cell_counts
        Molecules a gene, and a cell, must have.
    pct_mito
        Most mitochondrial counts of a cell, per cent (not a share); None: no filter.
    min_island_cells
        Connected pieces of tissue with fewer cells are islands; 0: the course's share of all cells.
    radius_um
        Longest edge between neighbouring cells, microns.
    expand_ratio
        How far nuclei are grown to cells, in radii of the nucleus.
    novae_model, novae_epochs
        Name of a trained model that lies on this machine, "" for the usual one; without it one is trained, for so many
        epochs (0: as many as the number of cells asks for).
    domain_range, domains
        Numbers of domains that are compared, and the one that is used (0: the one with the best silhouette).
    min_bin_counts
        Molecules an 8 um bin must have to be deconvolved.
    """

    min_gene_counts: int = 3
    min_cell_counts: int = 10
    pct_mito: float | None = 25.0
    min_island_cells: int = 0
    radius_um: float = 40.0
    expand_ratio: float = 1.0
    novae_model: str = ""
    novae_epochs: int = 0
    domain_range: tuple[int, int] = (3, 8)
    domains: int = 0
    min_bin_counts: int = 20


LIMITS = {
    "min_gene_counts": (int, 0, 10_000), "min_cell_counts": (int, 0, 100_000), "pct_mito": (float, 1, 100),
    "min_island_cells": (int, 0, 10**7), "radius_um": (float, 5, 500), "expand_ratio": (float, 0, 10),
    "novae_model": (str, None, None), "novae_epochs": (int, 0, 1000), "domain_range": (tuple, 2, 50),
    "domains": (int, 0, 50), "min_bin_counts": (int, 1, 100_000),
}  # fmt: skip
"""Type, least and most of each parameter."""


@dataclass(frozen=True)
class Signature:
    """Marker genes of one cell type, and who says so."""

    name: str
    genes: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Config:
    """What :func:`read` returns."""

    samples: tuple[Sample, ...]
    parameters: Parameters
    signatures: tuple[Signature, ...]
    file: Path

    def sample(self, name: str) -> Sample | None:
        """Return what the file says of a section, or None."""
        return next((one for one in self.samples if one.id == name), None)

    def options(self, name: str) -> dict:
        """Return what the reader is told of a section, ``crop`` and ``image``; {} if it is none of the samples."""
        one = self.sample(name)
        wanted = {} if one is None else {"crop": one.crop_px, "image": one.image}
        return {key: value for key, value in wanted.items() if value is not None}

    @property
    def markers(self) -> dict[str, tuple[str, ...]]:
        """Signature to genes, in the order of the file."""
        return {one.name: one.genes for one in self.signatures}


def read(path, *, must_exist: bool = True) -> Config:
    """Read and check a configuration.

    Parameters
    ----------
    path
        YAML file with ``samples`` (a list, may be empty), ``parameters`` and ``signatures`` (name: genes, source).
        Relative paths in it start at its own folder.
    must_exist
        Whether the samples' files must be there.

    Raises
    ------
    CourseError
        One for all faults, each with its line: no YAML, unknown or repeated keys, wrong types, values out of range,
        paths that are not there, signatures with fewer than two genes or without a source, names used twice.
    """
    path = Path(path).expanduser()
    data, lines, repeated = parse(path)
    faults = Faults(lines)
    for where in repeated:
        faults.add(where, "this name a second time", "each name once (YAML would keep the last and say nothing)")
    top = _mapping(data, (), {"samples", "parameters", "signatures"}, faults)
    samples = _samples(top.get("samples"), path.parent, must_exist, faults)
    parameters = _parameters(top.get("parameters"), faults)
    signatures = _signatures(top.get("signatures"), faults)
    if faults:
        told = [message for _, message in sorted(faults)]
        raise CourseError(
            f"{len(told)} fault{'s' * (len(told) > 1)}:\n  " + "\n  ".join(told) + "\n", "a file without",
            "mend each line named; notebooks/10_visium_hd.yaml is one that works", file=path,
        )  # fmt: skip
    return Config(samples, parameters, signatures, path)


def _mapping(value, where, known, faults, *, needed=()) -> dict:
    """Return ``value`` if it is a mapping, without unknown keys; {} otherwise."""
    if value is None and where != ():
        value = {}
    if not isinstance(value, dict):
        faults.add(where, _show(value), f"names and values ({', '.join(sorted(known))})")
        return {}
    for key in value:
        if key not in known:
            near = [_TUTORIAL[key]] if _TUTORIAL.get(key) in known else []
            near = near or difflib.get_close_matches(str(key), known, n=1)
            meant = f"{near[0]!r}?" if near else f"one of {', '.join(sorted(known))}"
            faults.add((*where, str(key)), "unknown", meant)
    for key in needed:
        if key not in value:
            faults.add(where, f"no {key!r}", f"a line '{key}: ...'")
    return {key: one for key, one in value.items() if key in known}


def _show(value) -> str:
    return "nothing" if value is None else f"{value!r}"[:60]


def _is(value, kind) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _parameters(value, faults) -> Parameters:
    out = {}
    for name, one in _mapping(value, ("parameters",), LIMITS, faults).items():
        kind, low, high = LIMITS[name]
        where = ("parameters", name)
        if kind is tuple:
            good = isinstance(one, list) and len(one) == 2 and all(_is(n, int) and low <= n <= high for n in one)
            if not good or one[0] > one[1]:
                faults.add(where, _show(one), f"[least, most], whole numbers from {low} to {high}")
            else:
                out[name] = tuple(one)
        elif kind is str:
            if _is(one, str):
                out[name] = one
            else:
                faults.add(where, _show(one), 'a name in quotes, or ""')
        elif name == "pct_mito" and one is None:
            out[name] = None
        elif not _is(one, kind) or not low <= one <= high:
            what = "a whole number" if kind is int else "a number"
            share = name == "pct_mito" and _is(one, float) and 0 < one < 1
            more = f" (per cent, not a share: {100 * one:g}?), or null for no filter" if share else ""
            faults.add(where, _show(one), f"{what} from {low} to {high}{more}")
        else:
            out[name] = kind(one)
    made = Parameters(**out)
    low, high = made.domain_range
    if made.domains and not low <= made.domains <= high and not any("domain" in message for _, message in faults):
        faults.add(("parameters", "domains"), made.domains, f"a number within domain_range, {low} to {high}")
    return made


def _samples(value, folder, must_exist, faults) -> tuple[Sample, ...]:
    made, seen = [], set()
    if not isinstance(value, (list, type(None))):
        faults.add(("samples",), _show(value), "a list (each sample begins with '- '), or []")
        return ()
    known = {one.name for one in fields(Sample)}
    for number, one in enumerate(value or [], 1):
        where, before = ("samples", number), len(faults)
        one = _mapping(one, where, known, faults, needed=("id",))
        name = one.get("id")
        if "id" in one and not (_is(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name)):
            faults.add((*where, "id"), _show(name), "letters, digits, - and _, in quotes if digits only")
        elif name in seen:
            faults.add((*where, "id"), f"{name!r} a second time", "another id")
        seen.add(name)
        places = {key: _place(one[key], folder, (*where, key), must_exist, faults)
                  for key in ("image", "reference") if one.get(key) is not None}  # fmt: skip
        crop = one.get("crop_px")
        if crop is not None:
            good = isinstance(crop, list) and len(crop) == 4 and all(_is(n, float) and n >= 0 for n in crop)
            if not good or crop[0] >= crop[2] or crop[1] >= crop[3]:
                faults.add((*where, "crop_px"), _show(crop), "[x0, y0, x1, y1] in full-resolution pixels, x0 < x1")
        column = one.get("cell_type", "cell_type")
        if not _is(column, str) or not column:
            faults.add((*where, "cell_type"), _show(column), "the name of a column of the reference's obs")
        if len(faults) == before:
            box = tuple(map(float, crop)) if crop else None
            made.append(Sample(name, places.get("image"), places.get("reference"), column, box))
    return tuple(made)


def _place(value, folder, where, must_exist, faults):
    if not _is(value, str) or not value:
        faults.add(where, _show(value), "a path in quotes")
        return None
    place = (folder / Path(value).expanduser()).resolve()
    if must_exist and not place.is_file():
        wanted = {"image": "the full-resolution H&E (.tif, .btf), not tissue_hires_image.png",
                  "reference": "single cells with raw counts, .h5ad"}  # fmt: skip
        faults.add(where, f"no file {place.name}", wanted[where[-1]])
    return place


def _signatures(value, faults) -> tuple[Signature, ...]:
    made, seen = [], {}
    if not isinstance(value, dict) or not value:
        faults.add(("signatures",), _show(value), "at least one 'Name: {genes: [...], source: ...}'")
        return ()
    for name, one in value.items():
        where = ("signatures", str(name))
        key = str(name).strip().lower()
        if not _is(name, str) or not key or "/" in name:
            faults.add(where, f"the name {_show(name)}", "a name without '/', in quotes if YAML reads it as a number")
        elif key in seen:
            faults.add(where, f"the same name as {seen[key]!r} but for upper and lower case", "another name")
        seen[key] = name
        one = _mapping(one, where, {"genes", "source"}, faults, needed=("genes", "source"))
        genes, source = one.get("genes", []), one.get("source", "-")
        odd = [gene for gene in genes if not _is(gene, str)] if isinstance(genes, list) else []
        if not isinstance(genes, list) or odd:
            what = f"the gene {_show(odd[0])}" if odd else _show(genes)
            faults.add((*where, "genes"), what, "a list of symbols, in quotes what YAML takes for a number or a yes/no")
        elif "genes" in one and len(set(genes)) < max(LEAST_GENES, len(genes)):
            few = ", ".join(genes) or "no gene"
            faults.add((*where, "genes"), few, f"at least {LEAST_GENES} different genes, each once")
        if not _is(source, str) or not source.strip():
            faults.add((*where, "source"), _show(source), "who says these are markers, one line")
        made.append((name, genes, source))
    return () if faults else tuple(Signature(name, tuple(genes), source.strip()) for name, genes, source in made)

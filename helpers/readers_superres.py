"""Sources: superpixel expression predicted by iStar or scstGCN, read from the files those programs leave.

Both divide the H&E, rescaled to ``pixel-size.txt`` um a pixel (0.5), into nodes of 16 x 16 pixels:

* iStar: ``<prefix>cnts-super/<gene>.pickle``, one float array (rows y, columns x) a gene; ``<prefix>gene-names.txt``;
* scstGCN: one array (rows y, columns x, genes), ``genes_3D.pkl``, and ``gene_names.txt`` (its post-processing script;
  its predictor as published names the folder ``cnts-super`` but does not write it).

Pickles can run any code when loaded, so they are not read here. Save each array anew, once, where you trust the files
(in the environment of the program that made them): ``np.save("KRT8.npy", np.load("KRT8.pickle", allow_pickle=True))``.

``readers`` and the files named ``readers_*`` are one room, split by vendor and by kind of file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.messages import CourseError

NODE_PX = 16
_FOLDER, _CUBE = "cnts-super", "genes_3D"
_FIX = "in the program's own environment: np.save(name + '.npy', np.load(file, allow_pickle=True)), then read again"


@dataclass(frozen=True)
class SuperPixels:
    """Expression predicted for a grid of nodes over a slide.

    Attributes
    ----------
    values
        float32 (rows, columns, genes): rows y, columns x from the top-left corner; NaN off the tissue.
    genes
        Names.
    node_um
        Side of a node in um; None where no file states the pixel size.
    source
        The folder.
    """

    values: np.ndarray
    genes: tuple
    node_um: float | None
    source: str


def read_superpixels(folder, *, genes=None) -> SuperPixels:
    """Read the results of iStar or scstGCN.

    Parameters
    ----------
    folder
        The ``prefix`` the program was called with (a folder), or ``cnts-super`` itself.
    genes
        Names wanted, in order; None: all there are.

    Raises
    ------
    CourseError
        No results, pickles alone, a gene that is absent, arrays of different shapes or not of numbers.
    """
    home = Path(folder)
    home = home.parent if home.name == _FOLDER else home
    if not home.is_dir():
        raise CourseError("no such folder", "the results of iStar or scstGCN", "check the path", file=home)
    cube = home / f"{_CUBE}.npy"
    values, names = _cube(home, cube) if cube.is_file() else _by_gene(home, genes)
    if genes is not None:
        missing = [gene for gene in genes if gene not in names]
        if missing:
            raise CourseError(f"no prediction of {missing[0]} ({len(missing)} absent)", f"{len(list(genes))} genes",
                              f"leave it out, or choose among {', '.join(names[:5])}, ...", file=home)  # fmt: skip
        values, names = values[..., [names.index(gene) for gene in genes]], list(genes)
    size = _number(home / "pixel-size.txt")
    return SuperPixels(values, tuple(names), None if size is None else NODE_PX * size, str(home))


def _array(file: Path) -> np.ndarray:
    try:
        held = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise CourseError("a file that holds no plain array", "numbers saved by np.save", _FIX, file=file) from None
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "fiu":
        raise CourseError(f"{getattr(held, 'dtype', type(held).__name__)}", "an array of numbers", _FIX, file=file)
    return held.astype(np.float32)


def _cube(home, file):
    values, names = _array(file), None
    for name in ("gene_names.txt", "gene-names.txt"):
        if (home / name).is_file():
            names = [line.strip() for line in (home / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    if names is None or values.ndim != 3 or values.shape[2] != len(names):
        seen = f"an array {values.shape} and {'no' if names is None else len(names)} gene names"
        raise CourseError(seen, "(rows, columns, genes) and gene_names.txt", "copy both files", file=file)
    return values, names


def _by_gene(home, genes):
    files = {file.stem: file for file in sorted((home / _FOLDER).glob("*.npy"))}
    if not files:
        pickled = [*(home / _FOLDER).glob("*.pickle"), *home.glob(f"{_CUBE}.pkl")]
        if pickled:
            seen = f"pickled arrays ({pickled[0].name}), which can run any code when loaded"
            raise CourseError(seen, ".npy files of the same names", _FIX, file=home)
        raise CourseError("no results", f"{_FOLDER}/<gene>.npy or {_CUBE}.npy", "give the prefix folder", file=home)
    names = [gene for gene in (genes if genes is not None else files) if gene in files]
    parts = [_array(files[gene]) for gene in names]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise CourseError(f"arrays of shapes {sorted(shapes)[:3]}", "(rows, columns), all alike",
                          "take the files of one run", file=home / _FOLDER)  # fmt: skip
    return (np.stack(parts, -1) if parts else np.zeros((0, 0, 0), np.float32)), names


def _number(file: Path) -> float | None:
    try:
        value = float(file.read_text(encoding="utf-8").strip())
    except OSError:
        return None
    except ValueError:
        raise CourseError("a pixel size that is no number", "um per pixel", "correct it", file=file) from None
    if not (np.isfinite(value) and value > 0):
        raise CourseError(f"{value} um per pixel", "a positive number", "correct it", file=file)
    return value

"""Methods: lists of genes (panels, GMT files), and which gene sets the best-predicted genes belong to. Never online."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.messages import CourseError, note

MARKERS14 = (
    "CD74", "CD63", "CD81",
    "COX6C", "TP53", "PABPC1", "GNAS", "B2M", "SPARC", "HSP90AB1", "TFF3", "ATP1A1", "FASN", "VEGFA",
)  # fmt: skip
"""The 14 markers of STimage (Tan et al. 2026, Methods, "STimage regression model"): three immune, eleven of cancer."""
_HVG = re.compile(r"hvg(\d+)", re.IGNORECASE)
_GMT = re.compile(r"(?P<path>.+?\.gmt)(?::(?P<name>.+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Panel:
    """Genes to work on.

    Attributes
    ----------
    name
        As asked for.
    genes
        Those that the data have, in the panel's order.
    missing
        Those that the data lack.
    source
        Where the list comes from, one line.
    """

    name: str
    genes: tuple[str, ...]
    missing: tuple[str, ...]
    source: str


def panel(name: str, available, *, ranked=None) -> Panel:
    """Return a panel of genes, restricted to those at hand.

    Parameters
    ----------
    name
        ``"markers14"``; ``"hvg<n>"``, the n most variable; ``"<path>.gmt"``, every gene of the file, or
        ``"<path>.gmt:<set>"``, one set of it; the path of a text file, a gene a line (``#`` starts a remark); or the
        genes themselves, separated by commas.
    available
        Gene names of the data.
    ranked
        For ``hvg<n>`` only: genes, most variable first, chosen **on the training sections** (``counts.most_variable``).

    Raises
    ------
    CourseError
        An unknown name, a file that is missing or not a list of genes, an unknown or empty set, no gene of it in the
        data (with a hint where only upper and lower case differ), ``hvg<n>`` without ``ranked``.
    """
    name, available = str(name).strip(), list(map(str, available))
    wanted, source = _wanted(name, ranked)
    wanted = list(dict.fromkeys(wanted))
    known = set(available)
    found = tuple(gene for gene in wanted if gene in known)
    if not found:
        same = {gene.upper() for gene in wanted} & {gene.upper() for gene in known}
        hint = "names differ in upper and lower case only: is one of another species?" if same else "check the species"
        raise CourseError(
            f"none of the {len(wanted)} genes of {name!r} ({', '.join(wanted[:3])}, ...) in the data "
            f"({', '.join(available[:3])}, ...)", "at least one gene in common, as symbols", hint,
        )  # fmt: skip
    return Panel(name, found, tuple(gene for gene in wanted if gene not in known), source)


def _wanted(name, ranked):
    """Return the genes a name stands for, and their source."""
    if name.lower() == "markers14":
        return list(MARKERS14), "Tan et al., Nature Communications 2026 (STimage), Methods"
    if hvg := _HVG.fullmatch(name):
        number = int(hvg[1])
        if ranked is None or number < 1:
            raise CourseError(
                f"{name!r} " + ("of 0 genes" if number < 1 else "without a ranking"), "genes, most variable first",
                "pass ranked=counts.most_variable(training_table, n)",
            )  # fmt: skip
        return list(map(str, ranked))[:number], f"the {number} most variable of the training sections"
    gmt = _GMT.fullmatch(name)
    if gmt:
        path, one = Path(gmt["path"]).expanduser(), gmt["name"]
        sets = read_gmt(path)
        if one is None:
            return [gene for genes in sets.values() for gene in genes], f"all {len(sets)} sets of {path.name}"
        if one not in sets:
            near = [each for each in sets if one.lower() in each.lower()][:3] or list(sets)[:3]
            raise CourseError(f"gene set {one!r}", f"a filled set, such as {', '.join(near)}", "correct it", file=path)
        return sets[one], f"{one} of {path.name}"
    path = Path(name).expanduser()
    if os.path.isfile(path):  # False, not an error, for a list of genes that is too long to be a path
        words = [re.split(r"[\s,;]", line.split("#")[0].strip())[0] for line in _lines(path)]
        genes = [word.strip('"') for word in words if word]
        if not genes:
            raise CourseError("no gene name", "one a line", "fill the file", file=path)
        return genes, path.name
    if "," in name:
        return [gene.strip() for gene in name.split(",") if gene.strip()], "given by name"
    if re.search(r"[\\/]|\.\w{2,4}$", name):
        raise CourseError("no such file", "a .gmt or text file of genes", "correct the path", file=path)
    known = "markers14, hvg<n>, <path>.gmt, <path>.gmt:<set>, a text file, or GENE1,GENE2"
    raise CourseError(f"gene panel {name!r}", known, "choose one")


def _lines(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CourseError("no such file", "a text file", "correct the path", file=path) from None
    except (UnicodeDecodeError, OSError) as error:
        raise CourseError(f"not a readable text ({error})", "UTF-8 text", "save it as UTF-8", file=path) from None


def read_gmt(path) -> dict[str, list[str]]:
    """Return the gene sets of a GMT file: per line a name, a remark, then the genes, between tabs.

    Windows line ends, a byte-order mark, blank lines and weights (``GENE,1.0``) are taken as they come; repeated genes
    of a set count once. A set without genes is left out.

    Raises
    ------
    CourseError
        No such file, no text, a line without a tab, a set named twice, no set with a gene.
    """
    sets = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        name = name.strip()
        if not rest or not name or name in sets:
            what = f"set {name!r} a second time" if name in sets else "no name and genes between tabs"
            raise CourseError(f"{what} in line {number}", "name, remark, genes, between tabs", "mend it", file=path)
        sets[name] = list(dict.fromkeys(gene for word in rest[1:] if (gene := word.split(",")[0].strip())))
    filled = {name: genes for name, genes in sets.items() if genes}
    if not filled:
        raise CourseError(f"{len(sets)} sets, none with a gene", "at least one filled set", "check the file", file=path)
    return filled


def write_gmt(sets, path, *, remark: str = "") -> None:
    """Write gene sets (name to genes) as a GMT file, ``remark`` in the second column."""
    lines = ["\t".join([name, remark, *genes]) for name, genes in sets.items()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


COLUMNS = ("set", "overlap", "size", "expected", "odds_ratio", "p", "q", "genes")


def enrich(best, tested, sets, *, min_size: int = 5, max_size: int = 500, needed: bool = True):
    """Return in which gene sets the best-predicted genes are over-represented: hypergeometric test by gseapy, offline.

    Parameters
    ----------
    best
        The genes that stand out, e.g. the 50 best-predicted ones.
    tested
        The background: **all genes that were scored**. With the whole genome instead, any choice from a panel of
        expressed genes looks enriched.
    sets
        Path of a GMT file, or a dict (set name to genes).
    min_size, max_size
        Sets with fewer or more genes among ``tested`` are left out.
    needed
        Whether it is an error that no set is left; if not, it is said on stderr, and the table is empty.

    Returns
    -------
    pandas.DataFrame
        One row a set, smallest p first: ``set``, ``overlap``, ``size`` (both within ``tested``), ``expected`` overlap,
        ``odds_ratio``, ``p``, ``q`` and ``genes``. ``q`` is Benjamini and Hochberg's over **all** sets tested; gseapy's
        own leaves out those without an overlap, which makes it too small.

    Raises
    ------
    CourseError
        Genes of ``best`` that were not tested, nothing in ``best`` or all of ``tested``, no set of the sizes asked for.
    """
    import logging

    import gseapy
    import pandas as pd
    from scipy.stats import false_discovery_control

    best, tested = list(dict.fromkeys(map(str, best))), list(dict.fromkeys(map(str, tested)))
    unknown = [gene for gene in best if gene not in set(tested)]
    if unknown or not 0 < len(best) < len(tested):
        raise CourseError(
            f"{len(best)} best of {len(tested)} tested genes, {len(unknown)} of them not tested",
            "a part of the tested genes", "pass all scored genes as tested",
        )  # fmt: skip
    file = None if isinstance(sets, dict) else sets
    background = set(tested)
    inside = {name: [gene for gene in dict.fromkeys(genes) if gene in background]
              for name, genes in (sets if file is None else read_gmt(sets)).items()}  # fmt: skip
    used = {name: genes for name, genes in inside.items() if min_size <= len(genes) <= max_size}
    if not used:
        largest = max((len(genes) for genes in inside.values()), default=0)
        problem = CourseError(
            f"no set with {min_size} to {max_size} of the {len(tested)} tested genes (the largest has {largest})",
            "sets that overlap the genes tested", "check species and symbols, or lower min_size", file=file,
        )  # fmt: skip
        if needed:
            raise problem
        note(f"no enrichment: {problem}")
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.DataFrame({"set": list(used), "overlap": 0, "size": [len(genes) for genes in used.values()]})
    table = table.set_index("set").assign(odds_ratio=np.nan, p=1.0, genes="")
    hit = [name for name, genes in used.items() if set(genes) & set(best)]
    if hit:  # gseapy refuses to report nothing
        logging.getLogger("gseapy").setLevel(logging.ERROR)
        found = gseapy.enrich(gene_list=best, gene_sets={name: used[name] for name in hit}, background=tested,
                              outdir=None, cutoff=1.0, no_plot=True).results.set_index("Term")  # fmt: skip
        table.loc[found.index, "odds_ratio"] = found["Odds Ratio"].astype(float)
        table.loc[found.index, "p"] = found["P-value"].astype(float)
        table.loc[found.index, "overlap"] = found["Overlap"].str.split("/").str[0].astype(int)
        table.loc[found.index, "genes"] = found["Genes"].str.replace(";", ", ")
    table["expected"] = table["size"] * len(best) / len(tested)
    table["q"] = false_discovery_control(table["p"].to_numpy())
    table = table.reset_index().sort_values(["p", "set"], ignore_index=True)
    return table[list(COLUMNS)]

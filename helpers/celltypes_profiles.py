"""Methods, celltypes: how well a cell's counts agree with each type's profile, or with each set of marker genes."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError

STRAY = 0.03
"""Share of a cell's molecules that belong to its surroundings: diffusion and an outline that is never exact. It also
keeps a gene that a profile lacks from ruling a type out."""
ROUNDS = 10
SCALE_PRIOR = 20.0
"""Pseudo-counts that hold the scale of a gene at 1: a gene hardly seen says little about the platform."""
SCALE_RANGE = (0.05, 20.0)
_CHUNK = 20000


def profiles(table, types, *, min_cells: int = 5):
    """Return the mean profile of each type.

    Parameters
    ----------
    table
        AnnData of raw counts, reference cells x genes.
    types
        Names (cells,), or the name of a column of ``table.obs``.
    min_cells
        Types with fewer cells are left out.

    Returns
    -------
    pandas.DataFrame
        Types x genes, float64: share of a cell's counts, averaged over cells, so that a deep cell says no more than a
        shallow one. Rows sum to 1.
    """
    import pandas as pd
    from scipy import sparse

    names = np.asarray(table.obs[types] if isinstance(types, str) else types).astype(str)
    counts = sparse.csr_matrix(table.X).astype(np.float64)
    if len(names) != counts.shape[0]:
        raise CourseError(f"{len(names)} types for {counts.shape[0]} cells", "one each", "take both from one table")
    total = np.asarray(counts.sum(1)).ravel()
    kinds = [k for k in np.unique(names) if ((names == k) & (total > 0)).sum() >= min_cells]
    if len(kinds) < 2:
        seen = f"{len(kinds)} types with {min_cells} cells or more"
        raise CourseError(seen, "at least two", "check the reference's types")
    share = sparse.diags(1 / np.maximum(total, 1)) @ counts
    member = sparse.csr_matrix(((names == np.array(kinds)[:, None]) & (total > 0)).astype(float))
    mean = (member @ share).toarray() / np.asarray(member.sum(1))
    return pd.DataFrame(mean / mean.sum(1, keepdims=True), index=kinds, columns=table.var_names)


def likelihood(counts, known, *, rounds: int = ROUNDS):
    """Return the probability of each type for each cell, float64 (cells, types).

    The counts of a cell are multinomial, given their total (Poisson counts with a free size for each cell are): gene g
    of a cell of type t has the share s_g p_tg / sum_g s_g p_tg, and a part ``STRAY`` of the section's mean. The
    platform's scale s_g and the types' shares are fitted to the section by EM (RCTD, Cable 2022, has such a scale too).

    Parameters
    ----------
    counts
        CSR (cells, genes).
    known
        float (types, genes): profiles.
    """
    known = np.maximum(known, 0) + 1e-9
    known = known / known.sum(1, keepdims=True)
    total = np.asarray(counts.sum(1)).ravel()
    seen = np.asarray(counts.sum(0)).ravel()
    scale, prior = np.ones(known.shape[1]), np.full(len(known), 1 / len(known))
    for step in range(rounds):
        share = _shares(known, scale, seen)
        chance = _posterior(counts, np.log(share), np.log(prior))
        if step == rounds - 1:
            break
        prior = (chance.sum(0) + 1) / (len(chance) + len(prior))
        # molecules of each type, were the platform the reference's: what each gene should have brought
        size = (chance * total[:, None]).sum(0) / (known * scale).sum(1)
        should = size @ known
        level = seen.sum() / max(should.sum(), 1e-12)
        before, scale = scale, np.clip((seen + SCALE_PRIOR) / (should * level + SCALE_PRIOR), *SCALE_RANGE)
        if np.abs(np.log(scale / before)).max() < 1e-3:
            break
    return chance


def _shares(known, scale, seen):
    share = known * scale
    return (1 - STRAY) * share / share.sum(1, keepdims=True) + STRAY * (seen + 0.5) / (seen + 0.5).sum()


def _posterior(counts, log_share, log_prior):
    out = np.empty((counts.shape[0], len(log_prior)))
    for first in range(0, len(out), _CHUNK):
        part = counts[first : first + _CHUNK] @ log_share.T + log_prior
        part = np.exp(part - part.max(1, keepdims=True))
        out[first : first + _CHUNK] = part / part.sum(1, keepdims=True)
    return out


def correlation(counts, known):
    """Return Pearson's correlation of each cell's log expression with each log profile, float64 (cells, types).

    Both are log1p of counts scaled to 1000 over the shared genes; 0 for cells without counts.
    """
    profile = np.log1p(1e3 * known / np.maximum(known.sum(1, keepdims=True), 1e-12))
    profile -= profile.mean(1, keepdims=True)
    profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
    out = np.empty((counts.shape[0], len(known)))
    for first in range(0, len(out), _CHUNK):
        part = counts[first : first + _CHUNK].toarray()
        part = np.log1p(1e3 * part / np.maximum(part.sum(1, keepdims=True), 1))
        part -= part.mean(1, keepdims=True)
        out[first : first + _CHUNK] = part @ profile.T / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return out


def marker_scores(counts, genes, markers: dict):
    """Return the names of the marker sets, and each cell's mean standardised log expression of each, (cells, sets).

    Sets without a gene on the panel are left out.

    Raises
    ------
    CourseError
        Fewer than two sets have a gene on the panel.
    """
    place = {str(gene).upper(): i for i, gene in enumerate(genes)}
    sets = {}
    for name, wanted in markers.items():
        wanted = wanted.split() if isinstance(wanted, str) else wanted
        found = [place[gene.upper()] for gene in wanted if gene.upper() in place]
        if found:
            sets[name] = found
    if len(sets) < 2:
        raise CourseError(f"markers of {len(sets)} types on the panel", "of two or more", "give markers= of its genes")
    used = sorted({i for found in sets.values() for i in found})
    part = counts[:, used].toarray()
    total = np.asarray(counts.sum(1)).ravel()
    part = np.log1p(part * (np.median(total[total > 0]) if (total > 0).any() else 1) / np.maximum(total, 1)[:, None])
    part = (part - part.mean(0)) / np.maximum(part.std(0), 1e-9)
    columns = {gene: i for i, gene in enumerate(used)}
    return list(sets), np.stack([part[:, [columns[i] for i in found]].mean(1) for found in sets.values()], axis=1)

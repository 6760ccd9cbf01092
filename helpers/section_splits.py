"""Customs: the only lawful ways to split sections into training and test, always by subject."""

from __future__ import annotations

import numpy as np

from helpers.messages import CourseError, note


def split(sections, *, test, trained_on=None, allow_shared_subject: bool = False):
    """Split section ids into training and test by subject.

    Parameters
    ----------
    sections
        DataFrame with columns ``section_id`` and ``subject_id``, one row a section.
    test
        Section ids to hold out.
    trained_on
        Subject ids that a saved model was trained on. Nothing is trained then: the training side is empty, and no
        section named means all.
    allow_shared_subject
        Permit a subject on both sides (only where one subject has all sections); a named warning goes to stderr.

    Returns
    -------
    train, test : list of str

    Raises
    ------
    CourseError
        Unknown section, empty side, or a subject on both sides.
    """
    known = list(sections["section_id"])
    unknown = [name for name in test if name not in known]
    if unknown:
        raise CourseError(f"section {unknown[0]!r}", f"one of {', '.join(known)}", "correct TEST")
    if trained_on is not None:
        held = list(test) or known
        of_held = sections.loc[sections["section_id"].isin(held), "subject_id"].astype(str)
        _refuse_shared(set(of_held) & set(map(str, trained_on)), allow_shared_subject, "take another MODEL")
        return [], held
    held = [name for name in known if name in set(test)]
    train = [name for name in known if name not in set(test)]
    if not held or not train:
        raise CourseError(
            f"{len(train)} training and {len(held)} test sections", "at least one of each", "correct TEST"
        )
    subject = dict(zip(sections["section_id"], sections["subject_id"]))
    fix = "hold out all sections of a subject, or say allow_shared_subject=True and report it"
    _refuse_shared({subject[name] for name in train} & {subject[name] for name in held}, allow_shared_subject, fix)
    return train, held


def _refuse_shared(shared, allowed, fix):
    names = ", ".join(sorted(map(str, shared)))
    if shared and not allowed:
        raise CourseError(f"subject {names} in training and test", "patients or animals on one side only", fix)
    if shared:
        note(f"warning: subject {names} is in training and test; the score says nothing about new subjects")


def folds(sections, *, k: int, seed: int, label: str | None = None):
    """Return ``k`` folds of section ids that never share a subject, stratified by ``label`` if given.

    Parameters
    ----------
    sections
        DataFrame with ``section_id``, ``subject_id`` and, if named, the ``label`` column.

    Returns
    -------
    list of (train, test)
        Lists of section ids.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n_subjects = sections["subject_id"].nunique()
    if n_subjects < k:
        raise CourseError(
            f"{n_subjects} subjects for {k} folds", "at least one subject a fold", f"use k <= {n_subjects}"
        )
    state = int(np.random.SeedSequence([seed, k]).generate_state(1)[0] % (2**31))
    if label is None:
        parts = GroupKFold(k, shuffle=True, random_state=state).split(sections, groups=sections["subject_id"])
    else:
        parts = StratifiedGroupKFold(k, shuffle=True, random_state=state).split(
            sections, sections[label], sections["subject_id"]
        )
    ids = np.asarray(sections["section_id"])
    return [(list(ids[a]), list(ids[b])) for a, b in parts]

"""Methods, SpaCell: the tiles and counts of a cohort, and the only honest ways to split them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from helpers import section as sec
from helpers import settings
from helpers.messages import CourseError, note


@dataclass(frozen=True)
class Data:
    """Tiles and counts of one cohort, row by row the same spots.

    Attributes
    ----------
    images
        float32 (n, d) embeddings, or (n, views, d): view 0 is the tile itself, the others are turned or flipped copies
        that training draws from; or, for a trainable backbone, what ``Encoder.inputs`` gives, float32 (n, h, w, c).
    genes
        float32 (n, g), log-normalised expression.
    table
        One row a tile: ``section_id``, ``subject_id`` (the animal) and ``stage``.
    stages
        Names of the stages in their order.
    """

    images: np.ndarray
    genes: np.ndarray
    table: pd.DataFrame
    stages: tuple[str, ...]

    def __post_init__(self):
        if not len(self.images) == len(self.genes) == len(self.table) > 0:
            raise CourseError(
                f"{len(self.images)} tiles, {len(self.genes)} spots, {len(self.table)} rows",
                "the same spots in all three", "pair them by name first",
            )  # fmt: skip
        strange = sorted(set(self.table["stage"]) - set(self.stages))
        if strange:
            raise CourseError(f"stage {strange[0]!r}", f"one of {', '.join(self.stages)}", "correct the sample sheet")
        if not (np.isfinite(self.images).all() and np.isfinite(self.genes).all()):
            raise CourseError("values that are not finite", "numbers", "look for empty spots or a broken encoder")

    @property
    def label(self) -> np.ndarray:
        """Index into ``stages``, int (n,)."""
        return pd.Categorical(self.table["stage"], categories=self.stages).codes.astype(int)

    @property
    def sections(self) -> pd.DataFrame:
        """One row a section: ``section_id``, ``subject_id``, ``stage``."""
        return self.table[["section_id", "subject_id", "stage"]].drop_duplicates("section_id").reset_index(drop=True)

    def rows(self, sections) -> np.ndarray:
        """Positions of the tiles of some sections, int (m,)."""
        return np.flatnonzero(self.table["section_id"].isin(list(sections)))

    def take(self, rows) -> Data:
        """The same with some rows only."""
        return Data(self.images[rows], self.genes[rows], self.table.iloc[rows].reset_index(drop=True), self.stages)


def plan(sections: pd.DataFrame, *, k: int = 5, seed: int = 0) -> tuple[list, str]:
    """Return the folds (train, valid, test section ids) and their unit, ``"animal"`` or ``"section"``.

    Stratified by stage, never the same animal on two sides. Where a stage has a single animal no such split can test
    that stage: then single sections are held out, of the stages that have others left, and a warning names the animals.

    Parameters
    ----------
    sections
        ``section_id``, ``subject_id``, ``stage``; one row a section.

    Raises
    ------
    CourseError
        Fewer than two stages, or one section a stage: then nothing can be held out.
    """
    animals = sections.drop_duplicates("subject_id").groupby("stage")["subject_id"].agg(list)
    if len(animals) < 2:
        raise CourseError(f"the stage {', '.join(animals.index)} alone", "two stages or more", "add sections")
    fewest = int(animals.map(len).min())
    if fewest >= 3:
        if fewest < k:
            note(f"note: {fewest} animals in the smallest stage, so {fewest} folds instead of {k}")
        parts = []
        for train, test in sec.folds(sections, k=min(k, fewest), seed=seed, label="stage"):
            inside = sections[sections["section_id"].isin(train)]
            inner = sec.folds(inside, k=max(2, min(k, fewest - 1)), seed=seed + 1, label="stage")[0]
            parts.append((*inner, test))
        return parts, "animal"
    for stage, names in animals.items():
        if len(names) < 3:
            who = ", ".join(map(str, names))
            note(f"warning: stage {stage} is animal {who} alone: stage and animal are confounded; "
                 "no score below says anything about new animals")  # fmt: skip
    many = sections.groupby("stage")["section_id"].transform("size") > 1
    if not many.any():
        raise CourseError("one section in every stage", "a stage with two sections or more", "nothing can be held out")
    for name, stage in sections.loc[~many, ["section_id", "stage"]].itertuples(index=False):
        note(f"warning: {name} is the only section of {stage}: held out, its stage would be unknown; it only trains")
    held = list(sections["section_id"][many])
    return [([n for n in sections["section_id"] if n != test], [], [test]) for test in held], "section"


def spoil(data: Data, trap: str, *, seed: int = 0) -> Data:
    """Return the data with a mistake made on purpose: ``random_split`` (a tile is its own animal), ``label_leak``."""
    if trap == "random_split":
        own = [f"{name}.{i}" for i, name in enumerate(data.table["section_id"])]
        return replace(data, table=data.table.assign(section_id=own, subject_id=own))
    if trap == "label_leak":  # as when the sample sheet's columns were joined to the counts
        noise = settings.rng(seed, "label leak").normal(0, 0.2, len(data.label))
        return replace(data, genes=np.c_[data.genes, (2 * data.label + noise).astype(np.float32)])
    return data

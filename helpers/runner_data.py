"""Caretaker: which sections a run uses, from ``DATA``, ``TRAIN`` and ``TEST``, and opening them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from helpers.messages import CourseError, note


def generate(parameters: dict) -> Path | None:
    """Make the virtual data set that ``DATA`` names, unless it is there; return its folder, or None for real data."""
    from helpers import catalogue

    known = {item.id: item for item in catalogue.datasets()}.get(parameters.get("DATA"))
    if known is None or known.kind != "generated":
        return None
    if known.platform == "slides":
        from helpers.virtual import clinic as maker
    elif known.platform == "visium_hd":
        from helpers.virtual.hd import dataset as maker
    else:
        from helpers.virtual import cohorts as maker

    return Path(maker.ensure(known.id, seed=int(parameters.get("SEED", 0))))


class Data:
    """The sections of a run. Nothing is read, generated or imported before it is asked for."""

    def __init__(self, parameters: dict):
        self.parameters = parameters
        self.seed, self.trap = int(parameters.get("SEED", 0)), parameters.get("TRAP", "")
        self.left_out: dict[str, str] = {}

    @functools.cached_property
    def _source(self) -> dict:
        """Data set id, folder of the sections, folder of the truth or None, platform or None, default test set."""
        from helpers import catalogue

        name, where, kind_of_array = catalogue.resolve(self.parameters["DATA"])
        known = {item.id: item for item in catalogue.datasets()}.get(self.parameters["DATA"])
        source = {"dataset": name, "folder": where, "platform": kind_of_array, "truth": None, "test": ()}
        if known is not None:
            source["test"] = known.default_test
            if known.kind == "generated":
                home = generate(self.parameters)
                source.update(folder=home / "sections", truth=home)
        return source

    @property
    def is_virtual(self) -> bool:
        """Whether the data are generated, so that the truth is known."""
        return "DATA" in self.parameters and self._source["truth"] is not None

    @property
    def folder(self) -> Path:
        """The data set's files as their publisher laid them out; a generated set is made first."""
        return Path(self._source["folder"])

    @functools.cached_property
    def _discovered(self) -> dict:
        from helpers import readers

        source = self._source
        refs = readers.discover(source["folder"], dataset=source["dataset"], platform=source["platform"])
        for why in readers.skipped(source["folder"], platform=source["platform"]):
            note(f"left out: {why}")
        return {ref.section_id: ref for ref in refs}

    @functools.cached_property
    def _chosen(self) -> tuple[list, list]:
        everything = list(self._discovered)
        asked = {}
        for name in ("TRAIN", "TEST"):
            words = [word.strip() for word in self.parameters.get(name, "").split(",") if word.strip()]
            wrong = [word for word in words if word not in everything]
            if wrong:
                raise CourseError(
                    f"section {wrong[0]!r} in {name}",
                    f"one of {', '.join(everything)}",
                    f"correct {name}",
                    file=self._source["folder"],
                )
            asked[name] = list(dict.fromkeys(words))
        both = set(asked["TRAIN"]) & set(asked["TEST"])
        if both:
            raise CourseError(
                f"{', '.join(sorted(both))} in TRAIN and TEST", "each section on one side", "correct TRAIN or TEST"
            )
        test = asked["TEST"]
        if not test and not asked["TRAIN"]:
            test = [name for name in everything if name in self._source["test"]]
        return asked["TRAIN"] or [name for name in everything if name not in test], test

    @property
    def train(self) -> list[str]:
        """Section ids to learn from."""
        return self._chosen[0]

    @property
    def test(self) -> list[str]:
        """Section ids held out; empty where the data set documents no split."""
        return self._chosen[1]

    @property
    def sections(self) -> list:
        """The chosen sections, training first (``readers.Ref``); ``load`` opens one."""
        return [self._discovered[name] for name in (*self.train, *self.test)]

    def pick(self, parameter: str) -> str:
        """Return the section id that a parameter such as ``TEMPLATE`` names; the first section where it is empty.

        Raises
        ------
        CourseError
            The data hold no such section.
        """
        name = self.parameters.get(parameter, "").strip()
        return self._ref(name, parameter).section_id if name else self.sections[0].section_id

    def _ref(self, name: str, parameter: str = "the call"):
        known = self._discovered
        if name in known:
            return known[name]
        raise CourseError(
            f"section {name!r} in {parameter}", f"one of {', '.join(known)}", f"correct {parameter}",
            file=self._source["folder"],
        )  # fmt: skip

    def load(self, ref, **options):
        """Open a section, given its reference or its id, with the mistake ``TRAP`` names made on purpose.

        Parameters
        ----------
        options
            What the platform's reader takes, such as ``crop`` of a Visium HD section (see ``readers.read``).

        Returns
        -------
        spatialdata.SpatialData
        """
        from helpers import readers, traps

        section = readers.read(self._ref(ref) if isinstance(ref, str) else ref, **options)
        return traps.apply(section, self.trap) if self.trap else section

    def each(self, function) -> dict:
        """Return ``function(ref)`` by section id; a section that is refused is left out, so that the others finish.

        What was refused is said on stderr and kept in ``left_out`` (section id to the error in words).

        Raises
        ------
        CourseError
            Every section was refused: the first error, naming its section.
        """
        from tqdm import tqdm

        made, self.left_out, errors = {}, {}, []
        for ref in tqdm(self.sections, "sections"):
            try:
                made[ref.section_id] = function(ref)
            except CourseError as error:
                errors.append(error)
                self.left_out[ref.section_id] = str(error)
                note(f"left out: section {ref.section_id}: {error}")
        if errors and not made:
            seen = f"{errors[0].seen} in section {next(iter(self.left_out))}"
            where = errors[0].file or self._source["folder"]
            raise CourseError(seen, errors[0].expected, errors[0].fix, file=where) from errors[0]
        return made

    def provenance(self, section) -> str:
        """Return one line on where a section comes from: source, size, pixel size, table, hash of the counts."""
        from helpers import section as customs

        table, facts, picture = customs.counts(section), section.attrs, "no H&E"
        if "he" in section.images:  # published Xenium tables may lack it, or say nothing of its scale
            rows, columns = customs.shape(section)
            scale = f"{facts['mpp']:.4g} um/px" if facts["mpp"] else "unknown um/px"
            picture = f"H&E {columns} x {rows} px at {scale}"
        digest = hashlib.sha256()
        for part in (table.X.data, table.X.indices, table.X.indptr):
            digest.update(part.astype("<i8").tobytes())
        what = {"xenium": "cells", "visium_hd": f"bins of {facts.get('bin_um')} um"}.get(facts["platform"], "spots")
        return (
            f"{facts['section_id']} ({facts['dataset']}, {facts['platform']}): {picture}, "
            f"{table.n_obs} {what} x {table.n_vars} genes, counts {digest.hexdigest()[:8]}"
        )

    def truth(self, section_id: str):
        """Return the truth of a generated section, or None on real data."""
        if not self.is_virtual:
            return None
        if self._source["platform"] == "visium_hd":
            from helpers.virtual.hd import truth_hd as truth
        else:
            from helpers.virtual import truth

        return truth.read(self._source["truth"], section_id)

    def cohort_truth(self):
        """Return the truth of a generated clinical cohort (``helpers.virtual.clinic.Truth``), or None."""
        if not self.is_virtual or self._source["platform"] != "slides":
            return None
        from helpers.virtual import clinic

        return clinic.read(self._source["truth"])

"""Examiner: what notebook 10 found of a virtual Visium HD section (door of ``grade_hd_*``), and its report card."""

from __future__ import annotations

from helpers import grade_hd_cells as cells
from helpers import grade_hd_domains as domains
from helpers import grade_hd_signatures as signatures
from helpers import grade_hd_types as types

__all__ = ["cells", "domains", "rows", "signatures", "types"]


def rows(*, nuclei, recovered, ari, shares, named, by_step, blind="place only") -> list[dict]:
    """Return the rows of the report card (``visium_hd.report_card``), one a method and measure.

    Parameters
    ----------
    nuclei
        Of ``grade_hd_cells.nucleus_match``.
    recovered
        Of ``grade_hd_cells.compare``: ways of drawing cells.
    ari
        Of ``grade_hd_domains.scores``: methods that find domains; ``blind`` is the one that looks at no gene.
    shares
        Of ``grade_hd_types.table``: methods that deconvolve.
    named
        Name of a method -> of ``grade_hd_types.names``.
    by_step
        Of ``grade_hd_signatures.by_step``.
    """
    made = [("StarDist", "H&E", "nuclei, F1", nuclei["f1"], None)]
    nothing = recovered["overlap"].get("nuclei only")
    needs = {"proseg": "nuclei, 2 µm bins, Rust"}
    made += [(way, needs.get(way, "nuclei, 2 µm bins"), "molecules in common", value, nothing)
             for way, value in recovered["overlap"].items()]  # fmt: skip
    found, chance = ari["ari"].drop(blind), ari["ari"][blind]
    made += [(way, "cells", "domains, ARI", value, chance) for way, value in found.items()]
    made += [(way, "8 µm bins, reference", "shares, r", value, 0.0) for way, value in shares["correlation"].items()]
    made += [(way, "cells, reference", "cells named", one["accuracy"], one["majority"]) for way, one in named.items()]
    made += [(f"signatures, {step}", "cells, marker lists", "cells named", row["right name"], row["majority"])
             for step, row in by_step.iterrows()]  # fmt: skip
    fields = ("method", "needs", "measure", "value", "baseline")
    return [{name: value for name, value in zip(fields, row) if value is not None} for row in made]

"""Who the patients of the virtual cohort are: subtype, composition of the tumour, age, site, slides and their defects.

The composition here is what is *wanted* of the tissue; what was grown is counted, and only that decides the outcome.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers import settings

PATIENTS = 200
SUBTYPES = {"luminal": 0.62, "her2": 0.19, "basal": 0.19}
SLIDES = {1: 0.75, 2: 0.20, 3: 0.05}  # share of the patients with so many
DEFECTS = {"blur": 0.024, "pen": 0.027, "little": 0.035, "fragments": 0.024}  # share of the slides
SIZE_UM, MPP = 600.0, 0.8
SITES = {
    "A2": {},
    "BH": {"haematoxylin": (0.70, 0.64, 0.31), "strength_h": 1.05, "white_point": (240.0, 236.0, 240.0)},
    "D8": {"eosin": (0.33, 0.83, 0.45), "strength_e": 1.18, "white_point": (243.0, 232.0, 234.0)},
    "E2": {"strength_h": 0.86, "strength_e": 0.85, "white_point": (228.0, 222.0, 236.0), "sharpening": 0.5},
    "AR": {"haematoxylin": (0.78, 0.56, 0.28), "eosin": (0.46, 0.77, 0.44), "white_point": (245.0, 241.0, 239.0)},
}
"""Where a patient was treated, and how the laboratory's stain and its scanner change the base stain."""
MONTHS_ONLY = ("E2", "AR")
"""Sites that note survival in whole months: the ties of the cohort."""
MEANS = pd.DataFrame(
    {"immune": (-0.25, 0.2, 0.6), "nuclei": (-0.45, 0.35, 0.8), "tumour": (-0.1, 0.2, 0.2)},
    index=("luminal", "her2", "basal"),
)
"""Means of the wanted compositions by subtype, in standard deviations within a subtype. Directions: basal-like and HER2
tumours have more lymphocytes and larger nuclei (textbook); sizes set by hand."""


def _dealt(stream, shares: dict, n: int) -> np.ndarray:
    """Return n labels in fixed shares, shuffled."""
    edges = np.rint(np.cumsum(list(shares.values())) / sum(shares.values()) * n).astype(int)
    return stream.permutation(np.repeat(list(shares), np.diff(np.r_[0, edges])))


def draw(seed: int) -> pd.DataFrame:
    """Return one row a patient.

    Columns: ``patient``, ``subtype``, ``site``, ``age`` (whole years), ``sex``, ``arm``, ``er``, ``pr``, ``her2``
    (immunohistochemistry), ``n_slides``, ``impurity`` (share of bulk RNA from outside the tumour) and the wanted
    ``immune``, ``nuclei``, ``tumour``, about normal.
    """
    def stream(name):
        return settings.rng(seed, "clinic", name)

    n = PATIENTS
    table = pd.DataFrame({"subtype": _dealt(stream("subtype"), SUBTYPES, n)})
    table["site"] = _dealt(stream("site"), dict.fromkeys(SITES, 1.0), n)
    table.insert(0, "patient", [f"VC-{site}-{number:04d}" for number, site in enumerate(table["site"], 1)])
    table["age"] = np.clip(np.rint(stream("age").normal(58, 13, n)), 27, 90).astype(int)
    table["sex"] = np.where(stream("sex").random(n) < 0.01, "male", "female")
    table["n_slides"] = _dealt(stream("slides"), SLIDES, n).astype(int)
    table["impurity"] = stream("impurity").beta(2, 8, n)
    for name in MEANS:
        table[name] = MEANS.loc[table["subtype"], name].to_numpy() + stream(name).normal(0, 1, n)
    her2 = table["subtype"] == "her2"
    er = np.where(table["subtype"] == "basal", 0.0, np.where(her2, 0.5, 1.0)) > stream("er").random(n)
    pr = er & (stream("pr").random(n) < 0.75)
    for name, positive in (("er", er), ("pr", pr), ("her2", her2)):
        said = np.where(positive, "Positive", "Negative").astype(object)
        lost = stream(f"{name} lost").random(n)
        said[lost < 0.02] = "Indeterminate"
        said[lost > 0.98] = "'--"
        table[name] = said
    table["arm"] = np.where(her2 & (stream("arm").random(n) < 0.85), "chemo+antiHER2", "chemo")
    return table


def slides(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row a slide: ``slide_id``, ``patient``, ``defect``."""
    rows = [
        {"slide_id": f"{row.patient}-01Z-00-DX{number}", "patient": row.patient}
        for row in table.itertuples() for number in range(1, row.n_slides + 1)
    ]  # fmt: skip
    out = pd.DataFrame(rows)
    good = {"": 1 - sum(DEFECTS.values())}
    out["defect"] = _dealt(settings.rng(seed, "clinic", "defects"), {**DEFECTS, **good}, len(out))
    return out

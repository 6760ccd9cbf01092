"""Named parameters of a virtual section's tissue, in microns, shares and cells per mm2.

``dense`` and ``loose`` are fitted by eye and by statistics to thick frozen breast sections of a spatial
transcriptomics study (her2st, patients C and B: Andersson et al. 2021); ``ffpe`` is a thin paraffin section, its stain
between two scanned FFPE fields measured for this course (see ``virtual_tissue.md`` of the design notes).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """One look of breast carcinoma. Shares are of the tissue area, lengths in um, densities per mm2."""

    name: str
    # architecture
    tumour_share: float = 0.85  # part of the section in which nests may grow
    nest_share: float = 0.36  # part of that region which is nest
    nest_width: float = 12.0  # sigma of the noise the nests are cut from
    nest_levels: int = 4  # doublings of the smear: 4 gives irregular nests, 7 long cords
    waviness: float = 1.0  # short waves of the fibres; 1 fibrous, 0.45 parallel
    ducts_per_mm2: float = 0.25
    duct_radius: tuple[float, float] = (70.0, 190.0)
    in_situ_share: float = 0.6  # of the ducts; the others are normal lobules
    fat_share: float = 0.0
    immune_share: float = 0.03
    septum_half_width: float = 34.0  # broad pink septa; 0 = none
    septum_period: float = 900.0
    loose_share: float = 0.25  # oedematous stroma: pale strands in white space
    hole_share: float = 0.09  # white holes among the nests
    cleft_level: float = 2.1  # higher = fewer clefts along the fibres
    retraction_level: float = 1.0  # higher = fewer clefts round nests
    vessels_per_mm2: float = 30.0
    # cells
    fibroblasts: float = 3700.0
    lymphocytes: float = 3100.0  # diffuse, outside foci
    cell_density: float = 1.0  # factor on the epithelial densities
    nucleus_area: float = 1.0  # factor on every nuclear area
    deep_share: float = 0.34  # cells of the deeper layer: thick frozen sections have many
    # matrix: stain concentrations of plain stroma, and texture
    stroma_eosin: float = 0.38
    stroma_haematoxylin: float = 0.31
    nest_eosin: float = 0.17
    nest_haematoxylin: float = 0.42  # of the cytoplasm between the nuclei of nests
    bundle_eosin: float = 0.60  # pink bundles
    bundle_level: float = 1.10  # higher = fewer
    texture: float = 0.36
    vacuoles: float = 1.0  # freezing vacuoles, 0 in paraffin
    slits: float = 1.0
    thick_blur: float = 1.2  # um, blur of the deeper layer
    chromatin: float = 1.0  # coarseness of the chromatin
    cytoplasm: float = 1.0  # factor on the eosin of epithelial cytoplasm


STYLES = {
    "dense": Style("dense"),
    "loose": Style(
        "loose", tumour_share=0.30, nest_share=0.55, nest_width=9.0, nest_levels=7, waviness=0.45, ducts_per_mm2=0.35,
        fat_share=0.18, immune_share=0.05, septum_half_width=42.0, septum_period=750.0, loose_share=0.45,
        hole_share=0.05, fibroblasts=1150.0, lymphocytes=480.0, stroma_eosin=0.19, stroma_haematoxylin=0.10,
        nest_haematoxylin=0.24, bundle_eosin=0.46, texture=0.28,
    ),
    "ffpe": Style(
        "ffpe", tumour_share=0.55, nest_share=0.48, nest_width=14.0, nest_levels=5, waviness=0.9, ducts_per_mm2=0.5,
        fat_share=0.12, immune_share=0.04, septum_half_width=0.0, loose_share=0.12, hole_share=0.02, cleft_level=2.3,
        retraction_level=1.2, fibroblasts=1300.0, lymphocytes=500.0, cell_density=0.5, nucleus_area=1.9,
        deep_share=0.10, stroma_eosin=0.52, stroma_haematoxylin=0.10, nest_eosin=0.18, nest_haematoxylin=0.17,
        bundle_eosin=0.52, bundle_level=0.9, texture=0.30, vacuoles=0.0, slits=0.8, thick_blur=0.7, chromatin=1.4,
        cytoplasm=1.5,
    ),
}

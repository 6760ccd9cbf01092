"""The single-cell reference and the Visium spots of the spacexr vignette: what is known of them, and two methods."""

import numpy as np
import pytest

from helpers import grade_hd_types, readers_scrna, settings, visium_hd_deconvolution, visium_hd_rctd

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def vignette():
    folder = settings.data_dir() / "scrna_reference"
    if not folder.is_dir():
        pytest.skip("scrna_reference is not in COURSE_DATA")
    return readers_scrna.read_spots(folder), readers_scrna.read_reference(folder)


def test_the_vignette_is_read_as_published(vignette):
    spots, reference = vignette
    assert spots.shape == (313, 276) and reference.shape == (510, 307)
    assert (reference.obs["cell_type"].value_counts() == 30).all() and reference.obs["cell_type"].nunique() == 17
    assert len(visium_hd_deconvolution.check(spots, reference)) == 124
    assert spots.obs["n_umi"].median() == 18739 and spots.obsm["spatial"][0].tolist() == [4125, 5477]


def test_rctd_and_flashdeconv_agree_where_genes_are_strong_and_not_on_the_main_type(vignette, tmp_path):
    spots, reference = vignette
    few = spots.copy()  # three molecules in a hundred: a small likelihood table will do
    few.X.data = settings.rng(0, "thin").binomial(few.X.data, 0.03).astype(np.int32)
    few.obs["n_umi"] = np.round(0.03 * few.obs["n_umi"]) + np.asarray(few.X.sum(1)).ravel()
    mixed = visium_hd_rctd.run(few, reference, min_umi=1, total=readers_scrna.TOTAL, folder=tmp_path)
    assert mixed.dropped == {} and mixed.k_val <= 60
    flash = visium_hd_deconvolution.flashdeconv(spots, reference, min_umi=1)
    both = grade_hd_types.agreement(flash, mixed.shares)
    assert both.loc["Oligodendrocyte", "correlation"] > 0.8, both
    assert both.attrs["dominant"] < 0.5, "without a correction for the platform the main types differ"

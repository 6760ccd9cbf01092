"""Against what is known of the virtual Xenium sections: pictures are put on each other, cells get their class."""

import functools

import numpy as np
import pytest

from helpers import celltypes, registration, section_align
from helpers.messages import CourseError
from helpers.runner_data import Data

SECTIONS = ("X1_a", "X1_b", "X2_a", "X3_a", "X3_b")


@functools.lru_cache(maxsize=None)
def opened(name, data="virtual_xenium"):
    from helpers.virtual import xenium_truth

    run = Data({"DATA": data, "SEED": 0})
    return run.load(name), xenium_truth.of(run.truth(name))


@functools.lru_cache(maxsize=None)
def registered(name):
    return registration.register_section(opened(name)[0])


def errors_um(found, truth, **options):
    there, here = truth.landmarks
    return np.hypot(*(found.to_he(there, **options) - here * truth.registration["he_mpp"]).T)


@pytest.mark.parametrize("name", SECTIONS)
def test_landmarks_fall_on_their_places(name):
    truth, found = opened(name)[1], registered(name)
    known, error = truth.registration, errors_um(found, truth)
    assert found.mirrored == known["mirrored"] and found.source == "sift"
    if known["warp_um"]:
        assert np.median(error) < 0.6 and np.percentile(error, 95) < 2.0
        affine = np.median(errors_um(found, truth, warp=False))
        assert affine > 2.0 and affine < known["affine_floor_um"] + 0.3  # an affine cannot do better than its floor
    else:
        assert found.warp is None and np.median(error) < 0.15  # half a DAPI pixel would be seen
    assert abs(found.residual_um - np.median(error)) < 0.3  # what it says of itself is true


def test_keypoints_alone_come_close_to_the_affine_floor():
    section, truth = opened("X1_a")
    rough = registration.register_section(section, refine=False)
    assert np.median(errors_um(rough, truth)) < truth.registration["affine_floor_um"] + 1.5


def test_another_sections_h_and_e_is_refused():
    first, second = opened("X1_a")[0], opened("X2_a")[0]
    from helpers import section_cells
    from helpers.section_views import image

    dapi, um = section_cells.dapi(first, 1.0)
    with pytest.raises(CourseError, match="keypoints that agree"):
        registration.register(dapi, image(second), dapi_um=um, he_um=second.attrs["mpp"])
    with pytest.raises(CourseError, match="keypoints that agree"):  # the null twin: the same brightness, no nuclei
        registration.register(
            np.random.default_rng(0).permutation(dapi.ravel()).reshape(dapi.shape), image(first), dapi_um=um,
            he_um=first.attrs["mpp"],
        )  # fmt: skip


def test_a_registered_section_holds_cells_on_their_nuclei():
    section, truth = opened("X1_b")
    found = registered("X1_b")
    aligned = section_align.align(section, found.um_to_px, warp=found.to_he_px, source="test")
    cells = truth.cells[truth.cells["cell"] != ""].set_index("cell")
    table = aligned.tables["counts"]
    known = cells.loc[table.obs_names, ["x_px", "y_px"]].to_numpy()
    off = np.hypot(*(table.obsm["spatial"] - known).T) * truth.registration["he_mpp"]
    assert np.median(off) < 1.5  # the cell's centre is not quite its nucleus'


@functools.lru_cache(maxsize=None)
def profiles():
    import anndata

    reference = anndata.read_h5ad(opened("X1_a")[0].attrs["reference_file"])
    return celltypes.profiles(reference, "cell_type")


@pytest.mark.parametrize("name", SECTIONS)
def test_cells_get_their_class(name):
    section, truth = opened(name)
    table = section.tables["counts"]
    known = truth.cells[truth.cells["cell"] != ""].set_index("cell").loc[table.obs_names, "class"]
    named = celltypes.fill(celltypes.annotate(table, profiles()), table.obsm["spatial_um"])
    scores = celltypes.quality(named["class"], known)
    print(name, {key: round(scores[key], 3) for key in ("accuracy", "named", "majority", "balanced", "macro_f1")})
    assert scores["accuracy"] > 0.9 > scores["majority"] and scores["by_class"]["f1"].min() > 0.7
    by_markers = celltypes.quality(celltypes.annotate(table, method="markers")["class"], known)
    print(by_markers["accuracy"], by_markers["accuracy_named"])
    assert by_markers["accuracy_named"] > 0.8

"""Real Xenium tables through the reader: a mouse brain without pictures, and a lung crop on its H&E."""

import numpy as np
import pytest

from helpers import catalogue, pseudospots, readers, section
from helpers.messages import CourseError

pytestmark = pytest.mark.real


def only(name):
    _, folder, platform = catalogue.resolve(name)
    assert platform == "xenium"
    (ref,) = readers.discover(folder, dataset=name, platform=platform)
    return ref, readers.read(ref)


def test_the_mouse_brain_is_read_without_pictures(capsys):
    ref, built = only("xenium_mouse_brain")
    counts = built.tables["counts"]
    dropped = counts.uns["dropped"]["spots"]
    assert counts.n_obs + len(dropped) == 36602 and counts.n_vars == 248 and ref.layout == "xenium outs"
    assert built.attrs["absent"] == ["dapi", "he", "transcripts", "nuclei"]
    assert "not in the folder" in capsys.readouterr().err
    genes = np.asarray(counts.X.sum(1)).ravel()
    assert np.array_equal(genes, counts.obs["transcript_counts"])  # the vendor's own sums: order and genes are right
    controls = counts.uns["controls"]
    assert controls["name"].str.match("NegControl|BLANK|antisense|Unassigned").all() and len(controls) > 50
    assert np.allclose(built.shapes["cells"].area, counts.obs["cell_area"], rtol=0.05)
    assert built.attrs["registered"] is False and "spatial" not in counts.obsm


def test_the_mouse_brain_is_binned_into_spots():
    _, built = only("xenium_mouse_brain")
    counts = built.tables["counts"]
    spots = pseudospots.bin_cells(counts.X, counts.obsm["spatial_um"])
    assert 500 < len(spots.n_cells) < 5000 and 2 < np.median(spots.n_cells) < 15
    assert spots.counts.sum() == counts.X[np.unique(spots.members.indices)].sum()


def test_the_lung_crop_lies_on_its_tissue():
    ref, built = only("xenium_lung")
    assert ref.section_id == "NCBI858" and ref.layout == "xenium crop"
    counts = built.tables["counts"]
    assert counts.n_obs == 200 and counts.n_vars > 300 and built.attrs["mpp"] is None
    picture = section.image(built)

    def tissue(xy):  # share of cells whose surroundings are darker than glass
        whole = np.rint(xy).astype(int)
        around = [picture[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5].min() for x, y in whole]
        return (np.array(around) < 170).mean()

    xy = section.xy(built)
    swapped = np.clip(xy[:, ::-1], 0, np.array(picture.shape[1::-1]) - 1)
    assert tissue(xy) > 0.8 and tissue(xy) > tissue(swapped) + 0.1
    with pytest.raises(CourseError, match="pixel size"):
        section.check(built)  # nothing may be measured in microns: no file states the pixel size

"""DeepCell on a real Xenium crop: 200 cells on their H&E, of which half teach and the other half are predicted."""

import numpy as np
import pytest

from helpers import (
    catalogue,
    deepspot,
    encoders,
    readers,
    readers_xenium_crop,
    section,
    spatial,
    stimage_features,
    tiles,
)

pytestmark = pytest.mark.real
UM_PER_PX = 55 / 160  # no file states it; the publisher's tiles of 160 pixels are said to be one spot


def test_cells_of_the_lung_crop_are_learned_and_predicted():
    _, folder, platform = catalogue.resolve("xenium_lung")
    (ref,) = readers.discover(folder, dataset="xenium_lung", platform=platform)
    built = readers_xenium_crop.load_crop(ref, mpp=UM_PER_PX)
    encoder = encoders.get("tiny")
    cut = tiles.cut(built, side_um=24.0, out_px=encoder.input_px, border="edge")[1]
    seen = encoder.embed(cut)
    seen = stimage_features.Scaler.fit(seen, encoder.blocks).apply(seen)
    xy, table = section.xy(built) * UM_PER_PX, section.counts(built)
    left = xy[:, 0] < np.median(xy[:, 0])
    often = np.asarray((table.X > 0).sum(0)).ravel() >= 20
    genes = list(table.var_names[often])
    target = deepspot.expression(table[:, often].X, np.maximum(np.asarray(table.X.sum(1)).ravel(), 1))
    near = deepspot.Neighbourhood("nearest", 6, reach=100.0)
    bags = deepspot.bags(seen, xy, near, sections=np.where(left, "left", "right"))
    options = {"near": near, "genes": genes, "context": "neighbours", "phi_members": 1, "rho_members": 1, "epochs": 15}
    model = deepspot.fit(bags.take(left), target[left], sections=np.full(left.sum(), "left"), seed=0, **options)
    said = model.predict(bags.take(~left))
    assert len(cut) == 200 and len(genes) > 20 and said.shape == ((~left).sum(), len(genes))
    assert np.isfinite(said).all() and (said >= 0).all() and said.std(0).max() > 0
    assert np.nanmedian(spatial.pearson(target[left], model.predict(bags.take(left)))) > 0.1  # it did learn its half
    print(np.nanmedian(spatial.pearson(target[~left], said)))

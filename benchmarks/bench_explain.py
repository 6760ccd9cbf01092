"""LIME of one tile for three genes: one set of batched perturbations, against the package ``lime`` called naively."""

from __future__ import annotations

import time

import numpy as np

SAMPLES, GENES, PX = 500, 3, 145


def _tile():
    """A tile of 145 px with 50 round nuclei, and their labels."""
    from helpers import settings

    rng = settings.rng(0, "bench_explain")
    tile = rng.integers(190, 230, (PX, PX, 3)).astype(np.uint8)
    labels, (y, x) = np.zeros((PX, PX), np.int32), np.mgrid[:PX, :PX]
    for number, (cy, cx) in enumerate(rng.integers(5, PX - 5, (50, 2)), start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 20] = number
    tile[labels > 0] = rng.integers(50, 110, ((labels > 0).sum(), 3))
    return tile, np.unique(labels, return_inverse=True)[1].reshape(PX, PX).astype(np.int32)


def run() -> list[dict]:
    """Time both on the tiny encoder with linear heads; also against ``lime`` in large batches, all genes at once."""
    from lime import lime_image

    from helpers import encoders, explain, settings

    lime_image.tqdm = lambda rows: rows
    tile, labels = _tile()
    encoder = encoders.get("tiny")
    heads = settings.rng(0, "bench_explain", "heads").normal(size=(encoder.dim, GENES))

    def predict(tiles):
        return encoder.embed(tiles) @ heads

    def of_gene(gene):
        return lambda tiles: np.concatenate([predict(one[None])[:, [gene]] for one in tiles])

    explain.lime(predict, tile, labels, n_samples=64)  # TensorFlow starts before the clock

    def seconds(function, times=3):
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            function()
            spent.append(time.perf_counter() - began)
        return min(spent)

    ours = seconds(lambda: explain.lime(predict, tile, labels, n_samples=SAMPLES, out_px=encoder.input_px))
    options = {"top_labels": None, "hide_color": 0, "num_samples": SAMPLES, "segmentation_fn": lambda _: labels}
    explainer = lime_image.LimeImageExplainer(random_state=0)

    def naively():
        for gene in range(GENES):
            explainer.explain_instance(tile, of_gene(gene), labels=(0,), **options)

    naive = seconds(naively, times=1)
    batched = seconds(lambda: explainer.explain_instance(
        tile, predict, labels=range(GENES), batch_size=256, **options))  # fmt: skip
    name = f"LIME of a tile, {labels.max()} nuclei, {GENES} genes, {SAMPLES} samples"
    return [
        {"name": name, "ours": ours, "other": naive, "ratio": naive / ours, "unit": "s",
         "note": "other: package lime, gene by gene, a picture at a time"},
        {"name": name, "ours": ours, "other": batched, "ratio": batched / ours, "unit": "s",
         "note": "other: package lime, all genes at once, batches of 256"},
    ]  # fmt: skip

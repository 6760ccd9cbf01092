"""Front office: whole slides and a saved model become predictions, ``python -m helpers slides``.

The slide is read by :mod:`helpers.wsi`, the model is the ``model.keras`` of notebook 04; encoder, tile size and genes
are those it was saved with. ``slides_quality`` says what slides are unfit, ``slides_export`` writes for other programs.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from helpers.messages import CourseError, note, say

WHOLE = (".jpg", ".jpeg", ".png")
"""Formats that can only be decoded as a whole."""


def open_any(path, *, mpp: float | None = None):
    """Return a slide of any kind the course reads; JPEG and PNG are decoded whole.

    Raises
    ------
    CourseError
        As ``wsi.open_slide``; a JPEG or PNG without a pixel size.
    """
    from helpers import readers_files, readers_slides, wsi

    path = Path(path).expanduser()
    if path.suffix.lower() not in WHOLE:
        return wsi.open_slide(path, mpp=mpp)
    if not path.is_file():
        raise CourseError("no such file", "a slide", "correct the path", file=path)
    try:
        size, source = (mpp, "given") if mpp is not None else (readers_slides.mpp_of(path), f"header of {path.name}")
    except CourseError as problem:
        fix = "pass mpp=... (on the command line --mpp), the microns per pixel"
        raise CourseError(problem.seen, problem.expected, fix, file=path) from None
    return wsi.from_array(readers_files.read_image(path), mpp=size, mpp_source=source, path=path)


def tools(model, *, encoder: str | None = None):
    """Return what :func:`predict` needs of a saved model, loaded once for many slides.

    Parameters
    ----------
    model
        ``model.keras`` written by ``stimage.save``.
    encoder
        Name or file; default the name the model was saved with. Its fingerprint must be the model's.

    Returns
    -------
    dict
        ``encode``, ``predict``, ``tile_um``, ``out_px`` and ``facts``, arguments of ``wsi.stream``.

    Raises
    ------
    CourseError
        As ``stimage.load``; a model that reads several tile sizes or encoders.
    """
    from helpers import encoders, stimage, stimage_store

    model = Path(model).expanduser()
    saved = stimage_store.facts_of(model)
    if len(saved["tile_um"]) != 1 or len(saved["encoder"]) != 1:
        seen = f"a model of {len(saved['encoder'])} encoders and tiles of {saved['tile_um']} um"
        raise CourseError(seen, "one of each", "take model.keras of notebook 04, section 7", file=model)
    eye = encoders.get(encoder or saved["encoder"][0]["name"])
    ensemble = stimage.load(model, encoder=eye, tile_um=saved["tile_um"][0])
    facts = {
        "encoder": {"name": eye.name, "fingerprint": eye.fingerprint}, "genes": list(ensemble.genes),
        "model": {"name": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()[:32]},
        "units": "log1p(counts per 10,000 of the tile's total over all genes)", "tissue": "tissue.mask",
    }  # fmt: skip

    def predict(embeddings):
        found = ensemble.predict(embeddings, keep=False)
        return {name: getattr(found, name) for name in ("mean", "aleatoric_var", "epistemic_var")}

    return {"encode": eye.embed, "predict": predict, "tile_um": saved["tile_um"][0], "out_px": eye.input_px,
            "facts": facts}  # fmt: skip


def predict(slide, path, kit: dict, **options) -> Path:
    """Predict expression on the tissue of a slide and measure its quality; ``options`` are those of ``wsi.stream``.

    Parameters
    ----------
    slide
        From :func:`open_any`.
    path
        The zarr store.
    kit
        From :func:`tools`.
    """
    from helpers import slides_quality, tissue, wsi

    return wsi.stream(slide, path, **{"tissue": tissue.mask, "quality": slides_quality.measure, **kit, **options})


# ---------------------------------------------------------------- command line
def arguments(commands) -> None:
    """Add the command to the parsers of ``python -m helpers``."""
    parser = commands.add_parser("slides", help="predict whole slides with a saved model")
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="SVS, NDPI, OME-TIFF, TIFF, JPEG, ...")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="model.keras of notebook 04")
    parser.add_argument("--out", type=Path, default=Path("runs/slides"), metavar="DIR", help="default runs/slides")
    parser.add_argument("--mpp", type=float, metavar="UM", help="microns per pixel, where the files state none")
    parser.add_argument("--encoder", metavar="NAME", help="name or file (default: the model's)")
    parser.add_argument("--pitch", type=float, metavar="UM", help="distance of tiles, microns (default: they touch)")
    parser.add_argument("--level", type=int, default=0, metavar="L", help="pyramid level to read (default 0, exact)")
    parser.add_argument("--chunk", type=int, default=256, metavar="N", help="tiles written at a time (default 256)")
    parser.add_argument("--zarr-format", type=int, default=3, choices=(2, 3), help="default 3")
    others = ("h5ad", "qupath", "r", "vitessce")
    words = "write for other programs too: h5ad (CELLxGENE, TissUUmaps, scanpy), qupath, r, vitessce"
    parser.add_argument("--export", nargs="+", default=[], choices=others, metavar="FOR", help=words)
    parser.add_argument("--fresh", action="store_true", help="start again")


def run(options) -> int:
    """Run the command: all slides, one after the other; a bad one does not stop the others. Returns the exit code."""
    from helpers import slides_quality, wsi

    stems = [wsi.name_of(path) for path in options.slides]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise CourseError(f"two slides named {twice[0]}", "one of each name", "rename one, or use two folders")
    kit, failed, rows = tools(options.model, encoder=options.encoder), [], []
    for file, name in zip(options.slides, stems):
        row = {"slide": name, "state": "complete"}
        try:
            row |= _one(file, kit, options)
            say(f"{name:<28} {options.out / name}.zarr")
            row["notes"] = "; ".join(filter(None, [row["notes"], *slides_quality.warnings(row)]))
            if row["notes"]:
                note(f"note: {name}: {row['notes']}")
        except (CourseError, OSError) as problem:  # OSError: e.g. a file that may not be read
            failed.append(file.name)
            where = "" if str(file) in str(problem) else f"{file}: "
            row |= {"state": "failed", "notes": f"{where}{problem}"}
            note(f"error: {where}{problem}")
        rows.append(row)
    for name, why in slides_quality.outliers(rows).items():
        note(f"note: {name}: far from the other slides: {why}")
        row = rows[stems.index(name)]
        row["notes"] = "; ".join(filter(None, [row["notes"], f"far from the others: {why}"]))
    _list(options.out / "slides.csv", rows)
    say(f"{len(options.slides) - len(failed)} of {len(options.slides)} slides complete")
    if failed:
        note(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _one(file, kit, options) -> dict:
    """Predict one slide, and return what the list of slides says of it."""
    from tqdm import tqdm

    from helpers import slides_export, wsi

    with open_any(file, mpp=options.mpp) as slide:
        path = options.out / f"{slide.name}.zarr"
        if options.fresh or not path.exists():
            slides_export.remove(path)
        with tqdm(desc=slide.name, unit="tile", leave=False) as bar:

            def told(done, total):
                bar.total = total
                bar.update(done - bar.n)

            predict(slide, path, kit, told=told, fresh=options.fresh, zarr_format=options.zarr_format,
                    pitch_um=options.pitch, level=options.level, chunk=options.chunk)  # fmt: skip
        if options.export:
            slides_export.write(path, slide, options.export)
        found = wsi.summary(path)
        notes = "; ".join([*slide.notes, *([] if found["tiles"] else ["no tile is darker than glass"])])
        height, width = (length * slide.mpp / 1000 for length in slide.shape)
        return {"mpp": slide.mpp, "mpp_source": slide.mpp_source, "width_mm": width, "height_mm": height, **found,
                "notes": notes}  # fmt: skip


def _list(path, rows) -> None:
    """Write the list of slides, in one step."""
    import pandas as pd

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(draft, index=False, float_format="%.6g")
        os.replace(draft, path)
    except OSError as problem:
        note(f"note: {path}: not written: {problem.strerror or problem}")
    finally:
        draft.unlink(missing_ok=True)

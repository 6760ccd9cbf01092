"""Methods, DeepSpot: published weights, a pickled Lightning module, turned into a model of this course.

The pickle is opened by ``deepspot_unpickle`` in a child process. From then on there are only arrays: the geometry is
inferred from their shapes and compared with the gene table; what the pickle says of itself is a hint at most.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.deepspot_bags import Neighbourhood
from helpers.messages import CourseError

FILES = {"weights": "final_model.pkl", "settings": "top_param_overall.yaml", "genes": "info_highly_variable_genes.csv"}
"""What a cohort's folder of ``DeepSpot_pretrained_model_weights.zip`` holds."""
SPOT_UM, PITCH_UM = 55.0, 100.0
"""The published models were trained on spots of 55 um, 100 um apart."""
_PARTS = {1: ("spot",), 2: ("subspot", "neighbours"), 3: ("both",)}
_NAMES = {"spot": "spot", "spot_subspot": "subspot", "spot_neighbors": "neighbours", "spot_subspot_neighbors": "both"}
_TIMEOUT = 600


def arrays_of(pickled) -> dict:
    """Return the arrays of a pickled torch module: ``tensor/<name>``, ``scaler/<name>``, ``hparams`` (JSON, uint8).

    Raises
    ------
    CourseError
        The pickle names something outside the list, is damaged, or needs too much time or memory. Nothing of it is run.
    """
    pickled = Path(pickled)
    if not pickled.is_file():
        raise CourseError("no such file", f"{FILES['weights']} of a cohort", "unpack the package", file=pickled)
    if not zipfile.is_zipfile(pickled):
        raise CourseError("a pickle that is not a torch zip file", "what torch.save writes since version 1.6",
                          "do not open it by other means; ask its publisher", file=pickled)  # fmt: skip
    script = Path(__file__).with_name("deepspot_unpickle.py")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "arrays.npz"
        alone = {"PATH": os.environ.get("PATH", ""), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-I", str(script), str(pickled.resolve()), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=alone, cwd=folder)
        except subprocess.TimeoutExpired:
            seen = f"a file that took more than {_TIMEOUT} s"
            raise CourseError(seen, "a model", "do not use it", file=pickled) from None
        if done.returncode:
            words = done.stdout.strip().splitlines()[-1:] or [f"the child ended with {done.returncode}"]
            fix = "do not open it by other means: a pickle can run any code; ask its publisher"
            expected = "a pickled DeepSpot: tensors, a scaler, names of its frameworks"
            raise CourseError(words[0], expected, fix, file=pickled)
        with np.load(target, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}


def geometry(arrays: dict) -> dict:
    """Return the weights by member: ``phi_kernel`` (M, d, h), ``rho_kernel`` (R, parts * h, g), and their biases.

    torch's weights are (outputs, inputs); here they are turned to (inputs, outputs).

    Raises
    ------
    CourseError
        Members missing or of unlike shape, or a head that fits no context.
    """
    found = {}
    for kind in ("phi", "rho"):
        members = {}
        for name, value in arrays.items():
            hit = re.fullmatch(rf"tensor/{kind}\w*\.(\d+)\.(?:\w+\.)*(weight|bias)", name)
            if hit:
                members.setdefault(int(hit[1]), {}).setdefault(hit[2], []).append(value)
        good = sorted(members) == list(range(len(members))) and members
        good = good and all(len(one.get("weight", ())) == len(one.get("bias", ())) == 1 for one in members.values())
        shapes = {(m["weight"][0].shape, m["bias"][0].shape) for m in members.values()} if good else set()
        if len(shapes) != 1 or [len(part) for part in next(iter(shapes))] != [2, 1]:
            raise CourseError(f"{len(members)} members of {kind}, {len(shapes)} shapes", "one linear layer a member",
                              "this is no DeepSpot, or a version not known here")  # fmt: skip
        found[f"{kind}_kernel"] = np.stack([members[i]["weight"][0].T for i in sorted(members)]).astype(np.float32)
        found[f"{kind}_bias"] = np.stack([members[i]["bias"][0] for i in sorted(members)]).astype(np.float32)
    width, inputs = found["phi_kernel"].shape[2], found["rho_kernel"].shape[1]
    if inputs % width or inputs // width not in _PARTS or not all(np.isfinite(v).all() for v in found.values()):
        seen = f"a head of {inputs} inputs for tiles of {width} units"
        raise CourseError(seen, "1, 2 or 3 times as many, all finite", "this is no DeepSpot")
    return found


def model_of(arrays: dict, genes, *, near: Neighbourhood | None = None, context: str | None = None, sub: int = 9):
    """Return a :class:`deepspot.Model` with published weights.

    Parameters
    ----------
    arrays
        Of :func:`arrays_of`.
    genes
        Names of the outputs, in order.
    near
        Default: the ring of a Visium array. How many neighbours there are is no part of the weights.
    context
        Needed where two bags may be sub-spots or neighbours; else inferred.

    Notes
    -----
    ``legacy_padding`` is on: the published model was trained with zeros in place of missing neighbours, which pass
    through its biases. Its members were trained with dropout under a median, so its predictions may be too large:
    check ``deepspot.slope`` on spots that were measured.
    """
    from helpers.deepspot import Model, Scaler
    from helpers.deepspot_fit import CONTEXTS, DEFAULTS, network_of

    parts, genes = geometry(arrays), tuple(map(str, genes))
    phi, rho = parts["phi_kernel"], parts["rho_kernel"]
    hint = json.loads(bytes(arrays["hparams"])) if "hparams" in arrays else {}
    hints = [_NAMES[value] for value in hint.values() if isinstance(value, str) and value in _NAMES]
    possible = _PARTS[rho.shape[1] // phi.shape[2]]
    context = context or next((word for word in hints if word in possible), possible[0] if len(possible) == 1 else None)
    if context not in possible or len(genes) != rho.shape[2] or len(set(genes)) < len(genes):
        raise CourseError(f"context {context!r}, {len(genes)} genes", f"one of {', '.join(possible)}, {rho.shape[2]} "
                          "different genes", "say context=..., take the package's own gene table")  # fmt: skip
    has_sub, around = CONTEXTS[context]
    near = (near or Neighbourhood("ring", 8, pitch=PITCH_UM)) if around else None
    options = {
        **DEFAULTS, "context": context, "width": phi.shape[2], "phi_members": len(phi), "rho_members": len(rho),
        "rank": 0, "components": 0, "phi_dropout": 0.3, "seed": 0, "sub": sub if has_sub else 0,
        "neighbours": near.k if around else 0,
    }  # fmt: skip
    network = network_of(options, phi.shape[1], len(genes))
    flat = phi.transpose(1, 0, 2).reshape(phi.shape[1], -1)
    network.get_layer("phi").set_weights([flat, parts["phi_bias"].ravel()])
    network.get_layer("rho").set_weights([rho, parts["rho_bias"]])
    mean = arrays.get("scaler/mean_", arrays.get("scaler/center_", np.zeros(len(genes))))
    scale = arrays.get("scaler/scale_", np.ones(len(genes)))
    if mean.shape != (len(genes),) or scale.shape != (len(genes),) or not (scale > 0).all():
        raise CourseError(f"a scaler of {mean.shape}, {scale.shape}", f"({len(genes)},), positive", "ask its publisher")
    scaler = Scaler(mean.astype(np.float32), scale.astype(np.float32))
    return Model(genes, network, scaler, None, None, near, options, {"published": True}, legacy_padding=True)


def convert(
    package, path, *, cohort: str = "", encoder=None, near=None, context: str | None = None, collapse: bool = True
):  # fmt: skip
    """Convert a published package into an ``.npz`` of this course.

    Parameters
    ----------
    package
        A cohort's folder, or the whole ``.zip`` with ``cohort``, e.g. ``"Colon_HEST1K"``.
    path
        The ``.npz`` to write.
    encoder
        Of the embeddings it will be given; None: the name in the package's settings, and no fingerprint to compare.
    collapse
        Store the heads' mean, which predicts the same, in place of the heads: a tenth of the size.

    Returns
    -------
    deepspot.Model
    """
    import pandas as pd

    from helpers.deepspot_store import save

    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(package), cohort, Path(folder))
        table = pd.read_csv(files["genes"])
        lacking = {"gene_name", "isPredicted"} - set(table.columns)
        if lacking:
            raise CourseError(f"a gene table without {', '.join(sorted(lacking))}", "gene_name, isPredicted",
                              "take the package's own", file=FILES["genes"])  # fmt: skip
        genes = table["gene_name"][table["isPredicted"].astype(str).str.lower().isin(("true", "1"))].astype(str)
        model = model_of(arrays_of(files["weights"]), genes, near=near, context=context)
        told = re.search(r"^image_feature_model\s*:\s*['\"]?([\w.-]+)", files["settings"].read_text("utf-8"), re.M)
    named = encoder or {"name": told[1] if told else "unknown", "fingerprint": "unknown"}
    model = model.collapsed() if collapse else model
    save(model, path, encoder=named, tile_um=SPOT_UM)
    return model


def _files(package: Path, cohort: str, folder: Path) -> dict:
    """Return the three files of a cohort, taken out of the archive where it is one."""
    if package.is_dir():
        top = package / cohort if cohort else package
        found = {key: top / name for key, name in FILES.items()}
    elif zipfile.is_zipfile(package):
        found = {}
        with zipfile.ZipFile(package) as archive:
            for key, name in FILES.items():
                inside = [e for e in archive.infolist() if PurePosixPath(e.filename).name == name
                          and (not cohort or PurePosixPath(e.filename).parent.name == cohort)]  # fmt: skip
                if len(inside) != 1 or inside[0].file_size > 4 << 30:
                    cohorts = sorted({PurePosixPath(e).parent.name for e in archive.namelist() if e.endswith(name)})
                    seen, expected = f"{len(inside)} files {name} for cohort {cohort!r}", "one of " + ", ".join(cohorts)
                    raise CourseError(seen, expected, "set cohort", file=package)
                found[key] = folder / name
                with archive.open(inside[0]) as source, open(found[key], "wb") as target:
                    while block := source.read(1 << 20):
                        target.write(block)
    else:
        raise CourseError("neither a folder nor a zip", "the published package", "download it again", file=package)
    for file in found.values():
        if not file.is_file():
            raise CourseError("no such file", ", ".join(FILES.values()), "unpack the whole package", file=file)
    return found

"""Methods, encoders: pathology foundation models by name, through timm or transformers, optional packages.

The table is ``data/encoders/foundation.json`` (facts of 2025, from the models' cards and TRIDENT's loaders; read the
card before use). Weights come from ``settings.models_dir()`` or, logged in, from the Hugging Face Hub. Checkpoints are
read as safetensors or with torch's ``weights_only=True``: a whole pickled object is refused.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path

import numpy as np

from helpers import settings
from helpers.encoders_core import Encoder, fingerprint
from helpers.messages import CourseError, note

TABLE = settings.ROOT / "data" / "encoders" / "foundation.json"
_FILES = ("model.safetensors", "pytorch_model.bin")
_NEEDS = {"timm": ("torch", "timm"), "transformers": ("torch", "transformers")}


@functools.cache
def registry() -> dict:
    """Return name -> facts: title, loader, repo, licence, access, dim, input_px, mean, std, read, paper, ..."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def terms(name: str) -> str:
    """Return licence and access of a model in one line, shown before its use."""
    facts = registry()[name]
    return f"{facts['title']} ({facts['repo']}): licence {facts['licence']}; {facts['access']}. {facts['paper']}."


def load(name: str) -> Encoder:
    """Return a foundation model's encoder; its terms go to stderr first."""
    facts = registry()[name]
    note(terms(name))
    if facts["loader"] == "own":
        raise CourseError(
            f"{facts['title']}, which {facts['why_not']}",
            "a model that timm or transformers builds",
            "embed the tiles with the authors' software, or choose uni, virchow2, midnight12k, ...",
        )
    for package in _NEEDS[facts["loader"]]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise CourseError(
                f"{package} is not installed",
                "the optional packages for foundation models",
                "uv pip install torch timm transformers safetensors huggingface_hub",
            ) from None
    source = _local(name, facts) or _hub(name, facts)
    model = _timm(source, facts) if facts["loader"] == "timm" else _transformers(source)
    return from_torch(name, model)


def from_torch(name: str, model) -> Encoder:
    """Make the encoder ``name`` of its torch network (tests pass one with random weights)."""
    import torch

    facts, model = registry()[name], model.eval()
    mean, std = (np.array(facts[key], np.float32) for key in ("mean", "std"))
    side, skip = facts["input_px"], 1 + facts.get("register_tokens", 0)
    wide = facts.get("resize_px", side)  # GigaPath: resized to 256, then its middle 224
    margin = (wide - side) // 2

    def prepare(tiles):
        tiles = tiles[:, margin : margin + side, margin : margin + side]
        return ((tiles.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)

    def forward(batch):
        with torch.inference_mode():
            found = model(torch.from_numpy(np.ascontiguousarray(batch)))
        found = getattr(found, "last_hidden_state", found)
        if facts["read"] == "class":
            found = found[:, 0]
        elif facts["read"] == "class+mean":
            found = torch.cat([found[:, 0], found[:, skip:].mean(1)], dim=-1)
        return found.float().numpy()

    # a pooler, where the release has none, starts at random and is not read
    weights = [value.float().numpy() for key, value in model.state_dict().items() if not key.startswith("pooler.")]
    return Encoder(name=name, dim=facts["dim"], input_px=wide, licence=terms(name), prepare=prepare, forward=forward,
                   fingerprint=fingerprint(weights, {"model": facts}))  # fmt: skip


# ---------------------------------------------------------------- weights
def _local(name: str, facts: dict):
    """Return the user's copy under ``models_dir()/<name>/`` (a folder for transformers, else a file), or None."""
    folder = settings.models_dir() / name
    if not folder.is_dir():
        return None
    found = next((folder / file for file in _FILES if (folder / file).is_file()), None)
    if found is None:
        raise CourseError("no weights in it", " or ".join(_FILES), f"take them from {facts['repo']}", file=folder)
    return folder if facts["loader"] == "transformers" else found


def _hub(name: str, facts: dict):
    """Fetch the weights from the Hugging Face Hub with the user's own login."""
    route = (f"accept the terms at huggingface.co/{facts['repo']} and log in (hf auth login), or put its "
             f"{' or '.join(_FILES)} (with config.json) into {settings.models_dir() / name}")  # fmt: skip
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise CourseError(f"no weights of {facts['title']} and no huggingface_hub", "weights on disk or that package",
                          f"uv pip install huggingface_hub, then {route}") from None  # fmt: skip
    problem = "no file"
    if facts["loader"] == "transformers":
        try:
            return Path(snapshot_download(facts["repo"], allow_patterns=["config.json", _FILES[0]]))
        except Exception as error:  # the hub raises many kinds: gated, offline, no such file
            problem = f"{type(error).__name__}: {str(error)[:200]}"
    for file in _FILES if facts["loader"] == "timm" else ():
        try:
            return Path(hf_hub_download(facts["repo"], file))
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
    raise CourseError(f"no weights of {facts['title']} ({problem})", "access to the model", route)


def read_checkpoint(path: Path) -> dict:
    """Return the tensors of a ``.safetensors`` file or of a torch file that holds nothing but tensors."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle errors of many kinds
        raise CourseError(
            f"a torch file with more than tensors, or a damaged one ({type(error).__name__})",
            "tensors only (safetensors, or a state dict)",
            "such files can run any code when loaded; ask for the state dict",
            file=path,
        ) from None
    if not isinstance(tensors, dict):
        raise CourseError(f"a {type(tensors).__name__}", "a state dict", "save model.state_dict()", file=path)
    return tensors


def architecture(facts: dict):
    """Build a timm model of the table with random weights."""
    import timm
    import torch

    options = dict(facts["options"])
    if "mlp_layer" in options:
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.create_model(facts["architecture"], pretrained=False, **options)


def _timm(path: Path, facts: dict):
    model = architecture(facts)
    try:
        model.load_state_dict(read_checkpoint(path), strict=True)
    except RuntimeError as error:
        raise CourseError(f"weights that do not fit {facts['title']} ({str(error)[:200]})", "its own weights",
                          f"take them from {facts['repo']}", file=path) from None  # fmt: skip
    return model


def _transformers(folder: Path):
    from transformers import AutoModel

    options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, report = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
        missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
        if missing:
            raise ValueError(f"weights without {', '.join(sorted(missing)[:3])}, ...")
        return model
    except (OSError, ValueError) as error:
        raise CourseError(f"a folder transformers cannot load ({str(error)[:200]})",
                          "config.json and model.safetensors", "fetch both again", file=folder) from None  # fmt: skip

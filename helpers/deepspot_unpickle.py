"""Methods, DeepSpot: the child process that takes the numbers out of a pickled torch module without running it.

Run as a script with bounded memory and time; it needs neither torch nor the module's own code. A pickle is a program:
it names functions and calls them. Here every name is looked up in a list of **exact** names. The few that make tensors
and arrays are answered by functions of this file; names of the frameworks become inert stubs, which keep what they are
given and do nothing; any other name (``os.system``, ``builtins.eval``, ...) ends the reading.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import sys
import zipfile

import numpy as np

KINDS = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
STUBBED = {"deepspot", "torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "sklearn"}
"""Packages whose names become stubs."""
STUBBED_NAMES = {("builtins", "getattr"), ("builtins", "set"), ("functools", "partial"), ("copyreg", "_reconstructor"),
                 ("builtins", "object"), ("collections", "defaultdict"), ("pathlib", "PosixPath")}  # fmt: skip
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Protocol 2, which torch writes, has Python 2's names of these."""
LARGEST, MEMORY, SECONDS = 4 << 30, 12 << 30, 300


class Refused(Exception):
    """The pickle names something that is not on the list."""


class Stub(dict):
    """Keeps arguments, items and state; calls nothing."""

    def __new__(cls, *args, **options):
        """Make an empty one, whatever it is given."""
        return dict.__new__(cls)

    def __init__(self, *args, **options):
        self.args = args

    __hash__ = object.__hash__

    def __setstate__(self, state):
        self.state = state

    def append(self, item):
        """Keep an item."""
        self.__dict__.setdefault("items_", []).append(item)

    def extend(self, items):
        """Keep items."""
        self.__dict__.setdefault("items_", []).extend(items)

    add = append


def tensor(storage, offset, size, stride, *_):
    """Return the tensor that torch would rebuild, as an array of its own; refuse one that leaves its storage."""
    size, stride, offset = tuple(map(int, size)), tuple(map(int, stride)), int(offset)
    if len(size) != len(stride) or min((*size, *stride, offset), default=0) < 0:
        raise Refused("a tensor of impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else offset - 1
    if last >= storage.size or int(np.prod(size, dtype=object)) > max(storage.size, 1):
        raise Refused("a tensor that leaves its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


class Dtype:
    """A numpy type as the pickle describes it."""

    def __init__(self, code="f8", *_):
        self.code, self.order = str(code), "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in "<>" else "<"

    def real(self):
        """Return numpy's, numbers only."""
        if self.code.lstrip("<>=|") not in {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "b1"}:
            return None
        return np.dtype(self.code.lstrip("<>=|")).newbyteorder(self.order)


class Array:
    """An array of numpy being rebuilt; ``value`` stays None for anything but numbers."""

    value = None

    def __setstate__(self, state):
        _, shape, kind, fortran, raw = state
        if isinstance(kind, Dtype) and (real := kind.real()) is not None:
            raw = raw if isinstance(raw, bytes) else str(raw).encode("latin1")
            self.value = np.frombuffer(raw, real).reshape(shape, order="F" if fortran else "C").copy()


def number(kind, raw=None):
    """Return a numpy scalar as an array of no dimension."""
    real = kind.real() if isinstance(kind, Dtype) else None
    raw = raw if isinstance(raw, bytes) else str(raw).encode("latin1")
    return None if real is None else np.frombuffer(raw, real)[0]


def encode(text, how="latin1"):
    """Return text as bytes; protocol 2 wraps bytes so."""
    return str(text).encode("latin1") if how in ("latin1", "latin-1") else b""


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict, ("_codecs", "encode"): encode,
    ("torch._utils", "_rebuild_tensor_v2"): tensor, ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data, ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): type("ndarray", (), {}),
}  # fmt: skip
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ALLOWED[(_module, "_reconstruct")] = lambda *_: Array()
    ALLOWED[(_module, "scalar")] = number


class Reader(pickle.Unpickler):
    """Unpickles by the list alone."""

    def __init__(self, stream, storage):
        super().__init__(stream, encoding="latin1")
        self.storage, self.stubs = storage, {}

    def find_class(self, module, name):
        """Answer a name: ours, a stub, or a refusal."""
        module = OLD_NAMES.get(module, module)
        key = (module, name)
        if key in ALLOWED:
            return ALLOWED[key]
        if module in ("torch", "torch.storage") and name in KINDS:
            return name
        if module.split(".")[0] in STUBBED or key in STUBBED_NAMES:
            return self.stubs.setdefault(key, type("Stub", (Stub,), {"path": ".".join(key)}))
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid):
        """Answer a storage."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], str):
            raise Refused("a persistent object that is no storage")
        return self.storage(pid[1], str(pid[2]), int(pid[4]))


def read(path):
    """Return the object of a torch zip file, its tensors as arrays."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        inside = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(inside) != 1 or sum(entry.file_size for entry in entries.values()) > LARGEST:
            raise Refused("an archive without one data.pkl, or of more than 4 GB")
        top, kept = inside[0].removesuffix("data.pkl"), {}
        if top + "byteorder" in entries and archive.read(top + "byteorder") != b"little":
            raise Refused("big-endian numbers")

        def storage(kind, key, n):
            if key not in kept:
                raw, code = archive.read(f"{top}data/{key}"), KINDS[kind]
                if code == "bf16":
                    kept[key] = (np.frombuffer(raw, "<u2", n).astype(np.uint32) << 16).view(np.float32)
                else:
                    kept[key] = np.frombuffer(raw, code, n)
            return kept[key]

        return Reader(io.BytesIO(archive.read(inside[0])), storage).load()


def inner(thing) -> dict:
    """Return an object's attributes as they were pickled."""
    state = getattr(thing, "state", None)
    return state if isinstance(state, dict) else thing if isinstance(thing, dict) else {}


def tensors(module, prefix: str = "") -> dict:
    """Return the parameters and buffers of a module and all inside it, by name."""
    state, found = inner(module), {}
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, np.ndarray):
                found[prefix + str(name)] = value
    for name, child in (state.get("_modules") or {}).items():
        found |= tensors(child, f"{prefix}{name}.")
    return found


def main(source: str, target: str) -> None:
    """Read ``source``, write arrays and plain hyper-parameters to ``target`` (.npz)."""
    import resource

    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        resource.setrlimit(limit, (value, value))
    whole = read(source)
    arrays = {f"tensor/{name}": value for name, value in tensors(whole).items()}
    scaler = inner(inner(whole).get("scaler"))
    for name, value in scaler.items():
        if isinstance(getattr(value, "value", None), np.ndarray):
            arrays[f"scaler/{name}"] = value.value
    plain = {str(key): value for key, value in inner(inner(whole).get("_hparams")).items()
             if isinstance(value, (bool, int, float, str, type(None)))}  # fmt: skip
    arrays["hparams"] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    with open(target, "wb") as stream:
        np.savez(stream, **arrays)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except Refused as error:
        print(f"refused: {error}")
        sys.exit(3)
    except Exception as error:  # a damaged file raises many kinds; all mean that there is nothing to convert
        print(f"damaged: {type(error).__name__}: {str(error)[:200]}")
        sys.exit(4)

"""Published weights: a package made here, by hand, opcode by opcode; read without torch and without running it."""

import dataclasses
import io
import json
import pickle
import struct
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from helpers import deepspot_bags, deepspot_store, deepspot_weights, grade_deepspot
from helpers.messages import CourseError

RNG = np.random.default_rng(0)
D, H, G, M = 12, 8, 7, 4  # numbers a tile, width, genes, members


class Recorder:
    """Pickles as torch writes a module: classes by name only, tensors as persistent storages. Nothing is imported."""

    def __init__(self, tensors):
        self.out, self.raw = io.BytesIO(), {}
        self.tensors = tensors

    def put(self, *parts):
        for part in parts:
            self.out.write(part)

    def name(self, module, name):
        self.put(b"c", f"{module}\n{name}\n".encode())

    def text(self, value):
        raw = value.encode()
        self.put(b"X", struct.pack("<I", len(raw)), raw)

    def number(self, value):
        self.put(b"J", struct.pack("<i", value))

    def tuple(self, values):
        self.put(b"(")
        for value in values:
            self.number(value)
        self.put(b"t")

    def tensor(self, array):
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())."""
        key = str(len(self.raw))
        self.raw[key] = np.asarray(array, "<f4").tobytes(order="K")
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.put(b"((")
        self.text("storage")
        self.name("torch", "FloatStorage")
        self.text(key), self.text("cpu"), self.number(array.size)
        self.put(b"tQ")
        self.number(0), self.tuple(array.shape), self.tuple(np.array(array.strides) // array.itemsize)
        self.put(b"\x89")
        self.name("collections", "OrderedDict")
        self.put(b")R", b"tR")

    def empty_set(self):
        self.name("__builtin__", "set")
        self.put(b"(]tR")

    def dict(self, items):
        self.put(b"}(")
        for key, write in items.items():
            self.text(key)
            write()
        self.put(b"u")

    def object(self, module, name, items):
        self.name(module, name)
        self.put(b")\x81")
        self.dict(items)
        self.put(b"b")

    def module(self, module, name, tensors=None, children=None, more=None):
        self.object(module, name, {
            "training": lambda: self.put(b"\x89"), "_non_persistent_buffers_set": self.empty_set,
            "_parameters": lambda: self.dict({k: (lambda v=v: self.tensor(v)) for k, v in (tensors or {}).items()}),
            "_modules": lambda: self.dict(children or {}), **(more or {}),
        })  # fmt: skip

    def array(self, values):
        """A numpy array as numpy pickles it in protocol 2."""
        values = np.asarray(values, "<f8")
        self.name("numpy.core.multiarray", "_reconstruct")
        self.put(b"(")
        self.name("numpy", "ndarray")
        self.tuple((0,)), self.text("b"), self.put(b"tR(")
        self.number(1), self.tuple(values.shape)
        self.name("numpy", "dtype")
        self.put(b"(")
        self.text("f8"), self.number(0), self.number(1), self.put(b"tR(")
        self.number(3), self.text("<")
        self.put(b"NNN")
        self.number(-1), self.number(-1), self.number(0), self.put(b"tb", b"\x89")
        self.name("_codecs", "encode")
        self.put(b"(")
        self.text(values.tobytes().decode("latin1")), self.text("latin1")
        self.put(b"tR", b"tb")


def module_file(path, tensors, scaler, *, hparams=None, extra=None):
    """Write a pickled Lightning module of DeepSpot's structure."""
    rec = Recorder(tensors)
    linear = lambda w, b: lambda: rec.module("torch.nn.modules.linear", "Linear", {"weight": w, "bias": b})  # noqa: E731
    dull = lambda kind: lambda: rec.module(f"torch.nn.modules.{kind.lower()}", kind)  # noqa: E731

    def members(kind):
        def one(number):
            w, b = tensors[f"{kind}_w"][number], tensors[f"{kind}_b"][number]
            parts = {"phi": (linear(w, b), dull("Dropout"), dull("ReLU")),
                     "rho": (dull("Dropout"), dull("ReLU"), linear(w, b), dull("Dropout"))}[kind]  # fmt: skip
            inside = {str(i): part for i, part in enumerate(parts)}
            sequential = {"model": lambda: rec.module("torch.nn.modules.container", "Sequential", {}, inside)}
            return lambda: rec.module("deepspot.spot.model", kind.title(), {}, sequential)

        children = {str(i): one(i) for i in range(len(tensors[f"{kind}_w"]))}
        return lambda: rec.module("torch.nn.modules.container", "ModuleList", {}, children)

    def bound_method():  # what self._forward_fn = self.forward leaves; torch writes Python 2's names
        rec.name("__builtin__", "getattr")
        rec.put(b"(")
        rec.name("torch.nn.modules.module", "Module")
        rec.text("forward")
        rec.put(b"tR")

    more = {
        "_forward_fn": bound_method,
        "scaler": lambda: rec.object("sklearn.preprocessing._data", "StandardScaler", {
            "mean_": lambda: rec.array(scaler[0]), "scale_": lambda: rec.array(scaler[1])}),
        "_hparams": lambda: rec.object("lightning.fabric.utilities.data", "AttributeDict", {
            key: (lambda value=value: rec.text(value)) for key, value in (hparams or {}).items()}),
        **({"odd": lambda: extra(rec)} if extra else {}),
    }  # fmt: skip
    rec.put(b"\x80\x02")
    rec.module("deepspot.spot.model", "DeepSpot", {}, {"phi_spot": members("phi"), "rho": members("rho")}, more)
    rec.put(b".")
    return grade_deepspot.torch_zip(path, rec.out.getvalue(), rec.raw)


def weights(parts=3):
    draw = lambda *shape: RNG.normal(0, 0.4, shape).astype(np.float32)  # noqa: E731
    return {"phi_w": draw(M, H, D), "phi_b": draw(M, H), "rho_w": draw(M, G, parts * H), "rho_b": draw(M, G)}


def published(w, spot, sub, near, scaler):
    """The published network in plain numpy: torch's weights (out, in), lower median, sum, maximum, mean."""
    def phi(x):
        z = np.maximum(np.einsum("...d,mhd->...mh", x, w["phi_w"]) + w["phi_b"], 0)
        return np.sort(z, axis=-2)[..., (M - 1) // 2, :]

    z = np.concatenate([phi(spot)] + ([phi(sub).sum(1)] if sub is not None else [])
                       + ([phi(near).max(1)] if near is not None else []), axis=1)  # fmt: skip
    said = (np.einsum("np,mgp->nmg", np.maximum(z, 0), w["rho_w"]) + w["rho_b"]).mean(1)
    return said * scaler[1] + scaler[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "Colon_HEST1K"
    folder.mkdir()
    w, scaler = weights(), (RNG.normal(size=G), RNG.uniform(0.5, 2, G))
    module_file(folder / "final_model.pkl", w, scaler, hparams={"model": "spot_subspot_neighbors"})
    genes = [f"GENE{i}" for i in range(G + 2)]
    table = pd.DataFrame({"gene_name": genes, "isPredicted": [True] * 3 + [False] + [True] * 4 + [False],
                          "highly_variable_rank": range(G + 2)})  # fmt: skip
    table.to_csv(folder / "info_highly_variable_genes.csv", index=False)
    (folder / "top_param_overall.yaml").write_text("lr: 0.0001\nimage_feature_model: uni\n")
    return folder, w, scaler, [gene for gene, used in zip(genes, table["isPredicted"]) if used]


def some_bags(n=20, missing=True):
    xy = np.column_stack([np.arange(n) % 5, np.arange(n) // 5]) * 100.0
    near = deepspot_bags.Neighbourhood("ring", 8, pitch=100.0)
    table, sub = RNG.normal(size=(n, D)), RNG.normal(size=(n, 9, D))
    return deepspot_bags.bags(table, xy, near, sub=sub), near


def test_a_package_converts_to_the_published_numbers(package, tmp_path):
    loaded = "torch" in sys.modules
    folder, w, scaler, genes = package
    whole = tmp_path / "weights.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"DeepSpot/Colon_HEST1K/{file.name}")
    bags, near = some_bags()
    around = bags.table[bags.index] * bags.mask[..., None]  # zeros in place of neighbours, as published
    expected = published(w, bags.table, bags.sub, around, scaler)
    model = deepspot_weights.convert(whole, tmp_path / "colon.npz", cohort="Colon_HEST1K")
    assert list(model.genes) == genes and model.legacy_padding and model.options["context"] == "both"
    assert model.network.get_layer("rho").members == 1  # ten heads are one
    again = deepspot_store.load(tmp_path / "colon.npz", encoder={"name": "UNI", "fingerprint": "x"}, genes=genes)
    for one in (model, again):
        assert np.abs(one.predict(bags, clip=False) - expected).max() < 1e-5
        assert (one.predict(bags) >= 0).all()
    # without the zeros it is another model
    assert np.abs(dataclasses.replace(model, legacy_padding=False).predict(bags, clip=False) - expected).max() > 1e-4
    with pytest.raises(CourseError, match="uni"):
        deepspot_store.load(tmp_path / "colon.npz", encoder={"name": "tiny", "fingerprint": "x"})
    assert loaded == ("torch" in sys.modules)  # other tests of this process may have it already


@pytest.mark.parametrize("parts, context", [(1, "spot"), (2, "subspot"), (2, "neighbours")])
def test_the_context_follows_from_the_shapes(tmp_path, parts, context):
    w, scaler = weights(parts), (np.zeros(G), np.ones(G))
    arrays = deepspot_weights.arrays_of(module_file(tmp_path / "m.pkl", w, scaler))
    bags, _ = some_bags()
    if parts == 2:
        with pytest.raises(CourseError, match="say context"):
            deepspot_weights.model_of(arrays, range(G))
    model = deepspot_weights.model_of(arrays, range(G), context=context if parts == 2 else None)
    sub, around = bags.sub if context == "subspot" else None, None
    if context == "neighbours":
        around = bags.table[bags.index] * bags.mask[..., None]
    expected = published(w, bags.table, sub, around, scaler)
    assert np.abs(model.predict(bags, clip=False) - expected).max() < 1e-5


class Payload:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("which", ["os.system", "eval", "subprocess"])
def test_what_a_pickle_would_run_is_not_run(tmp_path, which):
    import os
    import subprocess

    marker = tmp_path / "ran"
    payload = {"os.system": Payload(os.system, f"touch {marker}"), "eval": Payload(eval, f"open({str(marker)!r}, 'w')"),
               "subprocess": Payload(subprocess.check_call, ["touch", str(marker)])}[which]  # fmt: skip
    raw = pickle.dumps(payload, protocol=2)
    bad = grade_deepspot.torch_zip(tmp_path / "final_model.pkl", raw)
    with pytest.raises(CourseError, match="refused"):
        deepspot_weights.arrays_of(bad)
    assert not marker.exists()
    pickle.loads(raw)  # and it would have
    assert marker.exists()


def test_a_payload_hidden_in_a_real_module_is_refused(tmp_path):
    def hidden(rec):
        rec.name("posix", "system")
        rec.put(b"(")
        rec.text(f"touch {tmp_path / 'ran'}")
        rec.put(b"tR")

    bad = module_file(tmp_path / "m.pkl", weights(), (np.zeros(G), np.ones(G)), extra=hidden)
    with pytest.raises(CourseError, match="posix.system"):
        deepspot_weights.arrays_of(bad)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_leave_their_storage_are_refused(tmp_path):
    rec = Recorder({})
    rec.put(b"\x80\x02")
    rec.module("deepspot.x", "Y", {"w": np.zeros((2, 3), np.float32)})
    rec.put(b".")
    raw = rec.out.getvalue().replace(struct.pack("<i", 3) + b"t", struct.pack("<i", 300) + b"t", 1)
    bad = grade_deepspot.torch_zip(tmp_path / "m.pkl", raw, rec.raw)
    with pytest.raises(CourseError, match="leaves its storage"):
        deepspot_weights.arrays_of(bad)


def test_files_that_are_no_weights_are_refused(tmp_path, package):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "no.txt").write_text("x")
    with zipfile.ZipFile(tmp_path / "cut.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}")
    for name in ("plain.pkl", "cut.pkl", "absent.pkl"):
        with pytest.raises(CourseError):
            deepspot_weights.arrays_of(tmp_path / name)
    with pytest.raises(CourseError):
        deepspot_weights.convert(tmp_path / "no.txt", tmp_path / "x.npz")
    with pytest.raises(CourseError, match="pickle"):  # offered as a model of this course
        deepspot_store.load(tmp_path / "plain.pkl")
    np.savez(tmp_path / "object.npz", a=np.array([{}], object))
    with pytest.raises(CourseError, match="pickle|without"):
        deepspot_store.load(tmp_path / "object.npz")
    w = weights()
    w["phi_w"] = w["phi_w"][:3]  # a member missing
    arrays = deepspot_weights.arrays_of(module_file(tmp_path / "m.pkl", w, (np.zeros(G), np.ones(G))))
    w["rho_w"] = RNG.normal(size=(M, G, 2 * H + 1)).astype(np.float32)  # a head that fits no context
    odd = deepspot_weights.arrays_of(module_file(tmp_path / "m.pkl", w, (np.zeros(G), np.ones(G))))
    assert deepspot_weights.geometry(arrays)["phi_kernel"].shape == (3, D, H)
    with pytest.raises(CourseError, match="head"):
        deepspot_weights.geometry(odd)
    with pytest.raises(CourseError, match="genes"):
        deepspot_weights.model_of(arrays, range(G + 1))
    assert json.loads(bytes(arrays["hparams"])) == {}

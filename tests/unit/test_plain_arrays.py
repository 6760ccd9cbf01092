"""The strongroom: what is written comes back, and nothing that could act when opened is opened."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from helpers import plain_arrays
from helpers.messages import CourseError


def read(path, **more):
    return plain_arrays.read(path, **{"format": 1, "made_by": "the test", **more})


def test_what_is_written_comes_back(tmp_path):
    told = {"format": 1, "genes": ["a", "µ"]}
    path = plain_arrays.write(tmp_path / "new" / "m.npz", told, {"w": np.arange(3.0)})
    facts, arrays = read(path, needs=("genes",))
    assert facts == told and list(arrays) == ["w"] and arrays["w"].tolist() == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["m.npz"]


def test_what_could_act_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CourseError, match="can run any code"):
        read(tmp_path / "m.pkl")
    np.savez(tmp_path / "inside.npz", facts=np.array([Evil()], object))
    with pytest.raises(CourseError, match="no plain arrays"):
        read(tmp_path / "inside.npz")
    assert not (tmp_path / "ran").exists()


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(CourseError, match="no such file"):
        read(tmp_path / "gone.npz")
    with pytest.raises(CourseError, match="ending in .npz"):
        plain_arrays.write(tmp_path / "m.bin", {}, {})
    whole = plain_arrays.write(tmp_path / "m.npz", {"format": 1}, {"w": np.zeros(9)})
    for options in ({"format": 2}, {"needs": ("genes",)}):
        with pytest.raises(CourseError, match="without a description"):
            read(whole, **options)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:80])
    with pytest.raises(CourseError, match="no plain arrays"):
        read(tmp_path / "cut.npz")
    np.savez(tmp_path / "bare.npz", facts=np.frombuffer(json.dumps([1]).encode(), np.uint8))
    with pytest.raises(CourseError, match="without a description"):
        read(tmp_path / "bare.npz")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_arrays, "LARGEST", 1000)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(5000))
    with pytest.raises(CourseError, match="unpacks to more"):
        read(path)


def test_an_encoder_is_named():
    assert plain_arrays.named({"name": "tiny", "fingerprint": "ab", "more": 1}) == {"name": "tiny", "fingerprint": "ab"}
    with pytest.raises(CourseError, match="name and fingerprint"):
        plain_arrays.named("tiny")

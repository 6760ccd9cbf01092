"""The catalogue: facts complete, ids resolved, absent data answered with the way to get them."""

import re

import pytest

from helpers import catalogue, settings
from helpers.messages import CourseError


def test_facts_are_complete():
    known = catalogue.datasets()
    assert len({item.id for item in known}) == len(known) >= 20
    for item in known:
        assert item.kind in ("generated", "files", "manual") and item.what and item.licence and item.citation
        if item.kind == "files":
            assert item.files and re.fullmatch("[0-9a-f]{40}", item.commit)
            assert item.bytes == sum(file.bytes for file in item.files)
            for file in item.files:
                assert re.fullmatch("[0-9a-f]{64}", file.sha256) and ".." not in file.path and file.path[0] != "/"
                assert item.url(file).startswith("https://raw.githubusercontent.com/")
        if item.kind == "manual":
            assert item.address.startswith("https://")


@pytest.mark.parametrize("name", ["virtual", "spacell_als", "her2st", "mob", "visium_crop", "visium_breast_a1",
                                  "visium_breast_a2", "visium_breast_ffpe", "visium_breast_cytassist", "xenium_breast",
                                  "visium_hd_colon", "hest1k", "tcga_digital_st"])  # fmt: skip
def test_the_papers_data_sets_are_listed(name):
    assert catalogue.dataset(name).id == name


def test_address_of_a_file_in_a_repository():
    item = catalogue.dataset("mob")
    file = next(file for file in item.files if file.path.endswith("MOB1.jpg"))
    assert item.url(file) == (
        "https://raw.githubusercontent.com/jbergenstrahle/STUtility/"
        "9a8f421499e58b13340ee386db07b0eba923c88c/inst/extdata/counts/MOB1.jpg"
    )
    assert item.url(file, "http://mirror/") == "http://mirror/inst/extdata/counts/MOB1.jpg"


def test_resolve(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setenv("COURSE_VIRTUAL", str(tmp_path / "cache"))
    (tmp_path / "her2st").mkdir()
    (tmp_path / "her2st" / "file").write_text("x")
    assert catalogue.resolve("her2st") == ("her2st", tmp_path / "her2st", "st")
    assert catalogue.resolve(f"st:{tmp_path}/her2st") == ("her2st", tmp_path / "her2st", "st")
    assert catalogue.resolve("virtual") == ("virtual", tmp_path / "cache" / "virtual", "visium")
    assert catalogue.dataset("virtual").kind == "generated"


def test_a_folder_of_ones_own_beside_the_catalogues_is_found_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "data_dir", lambda: tmp_path)
    (tmp_path / "tcga_luad").mkdir()
    assert catalogue.resolve("tcga_luad") == ("tcga_luad", tmp_path / "tcga_luad", None)
    for wrong in ("tcga_lusc", "../x", "her2st"):  # not there, not beside the others, known but empty
        with pytest.raises(CourseError):
            catalogue.resolve(wrong)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("her2stt", "did you mean her2st"),
        ("vsium:/somewhere", "did you mean visium"),
        ("st:/no/such/folder", "no folder"),
        ("st:", "no folder"),
        ("mob", "python -m helpers fetch mob"),
        ("xenium_breast", "https://cf.10xgenomics.com"),
        ("hest1k", "gated"),
    ],
)
def test_resolve_says_what_to_do(monkeypatch, tmp_path, data, said):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    with pytest.raises(CourseError, match=re.escape(said)) as caught:
        catalogue.resolve(data)
    if data in ("mob", "xenium_breast"):
        assert str(tmp_path / data) in str(caught.value)


def test_present_and_missing(tmp_path):
    item = catalogue.dataset("he_tile")
    assert len(item.missing(tmp_path)) == 1
    path = tmp_path / item.files[0].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"short")
    assert len(item.missing(tmp_path)) == 1
    path.write_bytes(bytes(item.files[0].bytes))
    assert item.missing(tmp_path) == []


@pytest.mark.real
def test_hashes_of_what_is_here():
    here = [item for item in catalogue.datasets() if item.files and item.folder.is_dir() and item.kind == "files"]
    small = [(item, file) for item in here for file in item.files if file.bytes < 100_000]
    if not small:
        pytest.skip(f"no catalogue data set in {settings.data_dir()}")
    for item, file in small:
        if (item.folder / file.path).exists():
            assert catalogue.digest(item.folder / file.path) == file.sha256, (item.id, file.path)

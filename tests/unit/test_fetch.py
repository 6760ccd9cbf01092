"""Downloads against a server on this machine that behaves, breaks off, lies, or sends a web page."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import catalogue, download
from helpers.messages import CourseError

BODY = bytes(range(256)) * 4000  # about 1 MB
SHA = hashlib.sha256(BODY).hexdigest()


@contextmanager
def serve(behaviour="good", *, body=BODY, broken=10**9):
    """Serve ``body``; ``cut``: break off half-way, ``broken`` times; ``page``: an error page with status 200."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            seen.append((self.path, wanted))
            if behaviour == "missing":
                return self.send_error(404)
            data, start = body, 0
            if behaviour == "page":
                data = b"<!DOCTYPE html><html><body>Sorry</body></html>"
            elif wanted and behaviour != "no_range":
                start = int(wanted.split("=")[1].rstrip("-"))
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            stop = len(data)
            if behaviour in ("cut", "no_range") and len(seen) <= broken:
                stop = start + (len(data) - start) // 2
            self.wfile.write(data[start:stop])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_whole_file(tmp_path):
    with serve() as (url, _):
        path = download.download(f"{url}/a.bin", tmp_path / "deep" / "a.bin", sha256=SHA, size=len(BODY))
    assert path.read_bytes() == BODY and files_in(tmp_path) == ["a.bin"]


def test_broken_connection_is_resumed(tmp_path):
    with serve("cut", broken=1) as (url, seen):
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA, size=len(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY and files_in(tmp_path) == ["a.bin"]
    assert seen[0][1] is None and len(seen) == 2
    resumed_at = int(seen[1][1].removeprefix("bytes=").rstrip("-"))
    assert len(BODY) // 3 < resumed_at <= len(BODY) // 2


def test_part_of_an_earlier_run_is_continued(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    with serve() as (url, seen):
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA, size=len(BODY))
    assert seen[0][1] == "bytes=1000-" and (tmp_path / "a.bin").read_bytes() == BODY


def test_wrong_part_of_an_earlier_run_does_no_harm(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    with serve() as (url, _):
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA, size=len(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_server_without_ranges_starts_again(tmp_path):
    with serve("no_range", broken=1) as (url, _):
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA, size=len(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_half_file_never_gets_the_name(tmp_path):
    with serve("cut", body=BODY) as (url, seen), pytest.raises(CourseError, match="broke off|bytes came"):
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA, size=len(BODY))
    assert len(seen) == download.ATTEMPTS and files_in(tmp_path) == ["a.bin.part"]


@pytest.mark.parametrize(
    ("behaviour", "said"), [("page", "HTML page"), ("missing", "404"), ("good", "SHA-256|bytes instead")]
)
@pytest.mark.parametrize("hashed", [True, False])
def test_wrong_content_is_refused_and_removed(tmp_path, behaviour, said, hashed):
    if behaviour == "good" and not hashed:
        pytest.skip("without a hash nothing can be said of the content")
    with serve(behaviour) as (url, seen), pytest.raises(CourseError, match=said) as caught:
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256="0" * 64 if hashed else None)
    assert files_in(tmp_path) == [] and len(seen) == download.ATTEMPTS
    assert "by hand" in caught.value.fix


def test_no_network(tmp_path):
    with serve() as (url, _):
        pass  # the port is free again: nobody answers
    with pytest.raises(CourseError, match="no connection to 127.0.0.1") as caught:
        download.download(f"{url}/a.bin", tmp_path / "a.bin", sha256=SHA)
    assert str(tmp_path / "a.bin") in caught.value.fix and files_in(tmp_path) == []


@pytest.fixture
def tiny_catalogue(monkeypatch, tmp_path):
    facts = {
        "tiny": {
            "kind": "files", "what": "w", "platform": "st", "licence": "l", "citation": "c", "repository": "a/b",
            "commit": "0" * 40, "bytes": 2 * len(BODY), "notebooks": [],
            "files": [{"path": f"d/{name}.bin", "bytes": len(BODY), "sha256": SHA} for name in "xy"],
        }
    }  # fmt: skip
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "catalogue.json").write_text(json.dumps(facts))
    monkeypatch.setattr("helpers.settings.ROOT", tmp_path / "root")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "tiny"


def test_fetch_a_data_set_and_keep_what_is_right(tiny_catalogue, capsys):
    with serve() as (url, seen):
        assert catalogue.fetch("tiny", base_url=url) == tiny_catalogue
        assert files_in(tiny_catalogue) == ["x.bin", "y.bin"] and len(seen) == 2
        (tiny_catalogue / "d" / "y.bin").write_bytes(BODY[::-1])  # right size, wrong bytes
        catalogue.fetch("tiny", base_url=url)
    assert [path for path, _ in seen] == ["/d/x.bin", "/d/y.bin", "/d/y.bin"]
    assert capsys.readouterr().out == ""  # progress belongs on stderr


def test_fetch_offline_names_every_missing_file(tiny_catalogue):
    with pytest.raises(CourseError) as caught:  # the tests' own network block answers
        catalogue.fetch("tiny")
    for name in "xy":
        assert f"https://raw.githubusercontent.com/a/b/{'0' * 40}/d/{name}.bin" in caught.value.fix
        assert str(tiny_catalogue / "d" / f"{name}.bin") in caught.value.fix


@pytest.mark.parametrize("name", ["virtual", "hest1k"])
def test_fetch_of_what_cannot_be_fetched(name):
    with pytest.raises(CourseError):
        catalogue.fetch(name)


# ---------------------------------------------------------------- archives
def tar_of(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, change in members:
            info = tarfile.TarInfo(name)
            data = b"hello"
            info.size = len(data)
            for key, value in change.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data if info.isfile() else b""))
    return path


def test_unpack_tar_and_zip(tmp_path):
    download.unpack(tar_of(tmp_path / "a.tar.gz", ("in/x.txt", {})), tmp_path / "out")
    assert (tmp_path / "out" / "in" / "x.txt").read_bytes() == b"hello"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.txt", b"hello")
    download.unpack(tmp_path / "a.zip", tmp_path / "out2")
    assert (tmp_path / "out2" / "in" / "x.txt").read_bytes() == b"hello"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", {}),
        ("/evil", {}),
        ("in/link", {"type": tarfile.SYMTYPE, "linkname": "../../evil", "size": 0}),
        ("in/hard", {"type": tarfile.LNKTYPE, "linkname": "in/x", "size": 0}),
        ("in/device", {"type": tarfile.CHRTYPE, "size": 0}),
    ],
)
def test_unpack_refuses_tricks(tmp_path, member):
    archive = tar_of(tmp_path / "a.tar.gz", ("in/x", {}), member)
    with pytest.raises(CourseError, match="member called|link or device"):
        download.unpack(archive, tmp_path / "out")
    assert files_in(tmp_path) == ["a.tar.gz"] and not (tmp_path.parent / "evil").exists()


def test_unpack_refuses_a_zip_that_climbs_and_a_bomb(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../evil", b"x")
    with pytest.raises(CourseError, match="member called"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(2_000_000))
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(CourseError, match="unpacked"):
        download.unpack(tmp_path / "b.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_refuses_half_an_archive(tmp_path):
    whole = tar_of(tmp_path / "a.tar.gz", ("x", {})).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CourseError, match="cannot be unpacked"):
        download.unpack(tmp_path / "half.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Files of DeepSpot's users: the project layout with its exchanged axes, and the published TCGA slides."""

import gzip
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from helpers import readers_deepspot, runner
from helpers import section as sec
from helpers.messages import CourseError
from tests.unit.make import counts_table, disc_section

assert runner  # the package's own order of imports


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    section = disc_section(section_id="A_1_b", mpp_source="stated")
    readers_deepspot.write_project(section, folder)
    return section, folder


def test_a_section_comes_back_from_a_project_folder(project):
    section, folder = project
    assert readers_deepspot.samples(folder) == ["A-1-b"]  # no underscores there
    again = readers_deepspot.read_project(folder, "A-1-b")
    assert np.allclose(sec.xy(again), sec.xy(section)) and sec.mpp(again) == sec.mpp(section)
    assert again.attrs["subject_id"] == "P1" and "mpp of A-1-b.json" in again.attrs["mpp_source"]
    assert (sec.counts(again).X != sec.counts(section).X).nnz == 0
    assert np.abs(sec.image(again).astype(int) - sec.image(section)).mean() < 3  # JPEG


def test_x_pixel_is_the_row(project):
    section, folder = project
    table = ad.read_h5ad(folder / "data/h5ad/A-1-b.h5ad")
    assert np.allclose(table.obs["x_pixel"], sec.xy(section)[:, 1])
    assert np.allclose(table.obs["y_pixel"], sec.xy(section)[:, 0])
    assert isinstance(table.X, np.ndarray) and not table.obs_names.str.contains("_").any()


def test_exchanged_axes_a_missing_scale_and_missing_files_are_refused(project, tmp_path):
    wide = disc_section(image=np.full((600, 900, 3), 180, np.uint8), xy_px=np.column_stack(
        [np.linspace(620, 880, 12), np.linspace(20, 580, 12)]), counts=counts_table(12))  # fmt: skip
    readers_deepspot.write_project(wide, tmp_path)
    file, meta = tmp_path / "data/h5ad/S1.h5ad", tmp_path / "data/meta/S1.json"
    table = ad.read_h5ad(file)
    swapped = table.copy()
    swapped.obs[["x_pixel", "y_pixel"]] = table.obs[["y_pixel", "x_pixel"]].to_numpy()
    swapped.write_h5ad(file)
    with pytest.raises(CourseError, match="exchange the two"):
        readers_deepspot.read_project(tmp_path, "S1")
    table.write_h5ad(file)
    assert sec.mpp(readers_deepspot.read_project(tmp_path, "S1", mpp=1.0)) == 1.0
    meta.write_text(json.dumps({"spot_diameter_fullres": 59.8}))  # the scale is not guessed from it
    with pytest.raises(CourseError, match="pixel size"):
        readers_deepspot.read_project(tmp_path, "S1")
    del table.obs["x_pixel"]
    table.write_h5ad(file)
    with pytest.raises(CourseError, match="x_pixel"):
        readers_deepspot.read_project(tmp_path, "S1", mpp=1.0)
    meta.unlink()
    with pytest.raises(CourseError, match="no meta"):
        readers_deepspot.read_project(tmp_path, "S1")


def test_names_that_would_coincide_are_refused(tmp_path):
    section = disc_section()
    names = sec.counts(section).obs_names.to_list()
    sec.counts(section).obs_names = ["a_1", "a-1", *names[2:]]
    with pytest.raises(CourseError, match="without underscores"):
        readers_deepspot.write_project(section, tmp_path)


# ---------------------------------------------------------------- TCGA
SAMPLE = "TCGA-D9-A3Z3-06Z-00-DX1.C4820632-C64D-4661-94DD-9F27F75519C3"


def slide():
    table = counts_table(25)
    table.var_names = ["SOX10", "CD37", "COL1A1", *table.var_names[3:]]
    table.X = np.log1p(table.X.toarray().astype(np.float32))
    table.obs["predicted_label"] = pd.Categorical(["tumour"] * 20 + ["stroma"] * 5)
    table.obsm["spatial"] = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2) * 100
    return table


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A slide as published, and a server that has it."""
    folder = tmp_path_factory.mktemp("tcga")
    slide().write_h5ad(folder / "one.h5ad")
    body = gzip.compress((folder / "one.h5ad").read_bytes())
    rows = [("TCGA_SKCM", "FFPE", SAMPLE, 25, f"TCGA_SKCM/FFPE/{SAMPLE}.h5ad.gz"),
            ("TCGA_SKCM", "FFPE", SAMPLE.replace("DX1", "DX2"), 9, "TCGA_SKCM/FFPE/other.h5ad.gz")]  # fmt: skip
    pd.DataFrame(rows, columns=readers_deepspot.TCGA_COLUMNS).to_csv(folder / "metadata.csv")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if SAMPLE not in self.path:
                return self.send_error(401)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_one_named_slide_is_fetched_and_read(published, tmp_path):
    folder, address, asked = published
    metadata = readers_deepspot.tcga_metadata(folder / "metadata.csv")
    assert list(metadata["patient"].unique()) == ["TCGA-D9-A3Z3"] and "Unnamed: 0" not in metadata
    file = readers_deepspot.fetch_tcga(SAMPLE, metadata, tmp_path, base_url=address)
    where = f"TCGA_SKCM/FFPE/{SAMPLE}.h5ad.gz"
    assert file == tmp_path / where and asked == [f"/{where}"]
    whole, few = readers_deepspot.read_tcga(file), readers_deepspot.read_tcga(file, genes=["SOX10", "COL1A1"])
    assert whole.shape == (25, 30) and list(few.var_names) == ["SOX10", "COL1A1"]
    assert np.array_equal(few.X, whole[:, ["SOX10", "COL1A1"]].X) and "predicted" in few.uns["kind"]
    assert np.array_equal(whole.X, slide().X) and whole.obsm["spatial"].shape == (25, 2)


def test_wrong_slides_are_refused(published, tmp_path):
    folder, address, _ = published
    metadata = readers_deepspot.tcga_metadata(folder / "metadata.csv")
    for name in ("TCGA-D9-A3Z3", "TCGA-XX", ""):  # two slides, none, all
        with pytest.raises(CourseError, match="whole sample_id"):
            readers_deepspot.fetch_tcga(name, metadata, tmp_path, base_url=address)
    for bad in ("../../secret.h5ad.gz", "/etc/passwd.h5ad", "TCGA/run.sh"):
        with pytest.raises(CourseError, match="do not use"):
            readers_deepspot.fetch_tcga(SAMPLE, metadata.assign(file_path=bad), tmp_path, base_url=address)
    (tmp_path / "cut.h5ad.gz").write_bytes(gzip.compress(b"x" * 5000)[:-20])
    (tmp_path / "page.h5ad.gz").write_bytes(b"<html>")
    (tmp_path / "other.h5ad").write_bytes(b"no hdf5")
    for file in ("cut.h5ad.gz", "page.h5ad.gz", "other.h5ad", "absent.h5ad"):
        with pytest.raises(CourseError):
            readers_deepspot.read_tcga(tmp_path / file)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(CourseError, match="gene NOPE"):
        readers_deepspot.read_tcga(folder / "one.h5ad", genes=["SOX10", "NOPE"])
    with pytest.raises(CourseError, match="no column"):
        readers_deepspot.tcga_metadata(io.StringIO("a,b\n1,2\n"))


def test_a_slide_that_unpacks_to_too_much_is_stopped_while_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(readers_deepspot, "_MAX_H5AD", 3 << 20)
    with gzip.open(tmp_path / "bomb.h5ad.gz", "wb") as file:
        file.write(bytes(8 << 20))
    with pytest.raises(CourseError, match="64 GB"):
        readers_deepspot.read_tcga(tmp_path / "bomb.h5ad.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["bomb.h5ad.gz"]

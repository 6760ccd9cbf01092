"""The report: complete, offline, escaped, and the same bytes for the same results."""

import html.parser
import json

import pytest

from helpers import report, report_page
from helpers.messages import CourseError

EVIL = '<script>alert("x")</script>&\'"'


def verdict(name="stain angle error", value=1.5, passed=True, **more):
    base = {"name": name, "target": 0.0, "tolerance": 3.0, "op": "within", "unit": "deg", "expected": "0 deg within 3"}
    return {**base, "seeds": [1.0, 1.2, 0.9, 1.1, 1.3], "value": value, "pass": passed, **more}


def results(**more):
    base = {
        "notebook": "01", "slug": "x", "title": "Integration", "status": "complete", "data": "virtual", "trap": "",
        "parameters": {}, "seconds": 41.2, "budget_seconds": 60, "peak_mb": 1290, "budget_mb": 3000,
        "versions": {"numpy": "2.4.6"}, "verdicts": [verdict()], "metrics": {}, "products": {}, "figures": [],
    }  # fmt: skip
    return {**base, **more}


def put(folder, name, run=None, result=None):
    place = folder / name
    place.mkdir(parents=True)
    if run:
        (place / "run.json").write_text(json.dumps({"notebook": name, "cell": None, "reason": "", **run}))
    if result:
        (place / "results.json").write_text(json.dumps(result))
    return place


class Tags(html.parser.HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "rect", "circle"):
            assert self.open.pop() == tag


def test_success_and_each_failure_are_shown(tmp_path):
    put(tmp_path, "01_x", {"kind": "complete"}, results())
    put(tmp_path, "02_y", {"kind": "kernel died", "cell": 7, "reason": "killed from outside", "title": "Spots"})
    put(tmp_path, "03_z", {"kind": "verdict failed"}, results(verdicts=[verdict(value=None, passed=False)]))
    put(tmp_path, "04_by_hand", None, results(title="By hand"))
    page = report.build(tmp_path).read_text()
    assert "2 of 4 notebooks complete" in page and "2 of 3 verdicts pass" in page
    for text in ("Integration", "Spots", "code cell 7", "killed from outside", "By hand", "41 of 60 s",
                 "1,290 of 3,000 MB", "0 deg within 3", "not a number", "numpy"):  # fmt: skip
        assert text in page, text
    assert not Tags(page).open


def test_the_same_results_give_the_same_bytes_and_no_second_write(tmp_path):
    put(tmp_path, "01_x", {"kind": "complete"}, results())
    first = report.build(tmp_path).stat().st_mtime_ns
    assert report.build(tmp_path).stat().st_mtime_ns == first
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.html"]


def test_every_name_is_escaped_and_no_script_can_run(tmp_path):  # fault 23
    from PIL import Image

    place = put(
        tmp_path, "01_<b>", {"kind": "cell failed", "cell": 1, "reason": EVIL, "title": EVIL},
        results(title=EVIL, data=EVIL, trap=EVIL, versions={EVIL: EVIL}, verdicts=[verdict(name=EVIL, expected=EVIL)],
                figures=[{"name": "a", "file": "a.png", "alt": EVIL}]),
    )  # fmt: skip
    Image.new("RGB", (20, 20)).save(place / "a.png")
    (place / "01_<b>.html").write_text("x")
    page = report.build(tmp_path).read_text()
    tags = Tags(page)
    assert "script" not in tags.seen and "b" not in tags.seen and not tags.open
    assert ("alt", EVIL) in tags.attributes and ("href", "01_%3Cb%3E/01_%3Cb%3E.html") in tags.attributes
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    addresses = [value for name, value in tags.attributes if name in ("src", "href")]
    assert addresses and not [value for value in addresses if value.startswith(("http", "//"))]


def test_the_thumbnail_is_inside_the_page_and_a_broken_one_is_passed_over(tmp_path):
    from PIL import Image

    figures = [{"name": n, "file": f"{n}.png", "alt": f"alt {n}"} for n in ("gone", "broken", "good")]
    place = put(tmp_path, "01_x", {"kind": "complete"}, results(figures=figures))
    (place / "broken.png").write_text("no picture")
    Image.new("RGBA", (3000, 2000), "red").save(place / "good.png")
    page = report.build(tmp_path).read_text()
    assert 'alt="alt good"' in page and "data:image/jpeg;base64," in page and len(page) < 60_000


@pytest.mark.parametrize("op, target", [("within", 0), ("at least", 0.9), ("at most", 3), ("equal", 6)])
@pytest.mark.parametrize("value", [None, 0.0, 6, -1e9, 1e9])
def test_the_small_picture_stays_inside_its_frame(op, target, value):
    import re

    drawn = report._strip(verdict(op=op, target=target, value=value, seeds=[]))
    assert all(0 <= float(x) <= 170 for x in re.findall(r'(?:cx|x)="([-\d.e]+)"', drawn))


def test_a_folder_without_runs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CourseError, match="python -m helpers run"):
            report.build(folder)
    assert not list(tmp_path.iterdir())


def test_a_half_written_record_does_not_break_the_report(tmp_path):
    put(tmp_path, "01_x", {"kind": "complete"}, results())
    (put(tmp_path, "02_y", {"kind": "cell failed"}) / "results.json").write_text('{"verd')
    assert "1 of 2 notebooks complete" in report.build(tmp_path).read_text()


def test_a_page_is_replaced_in_one_step(tmp_path, monkeypatch):
    target = tmp_path / "a.html"
    assert report_page.write("old", target) and not report_page.write("old", target)
    monkeypatch.setattr(report_page.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        report_page.write("new", target)
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.html"]

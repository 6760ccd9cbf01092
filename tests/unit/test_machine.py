"""The machine check: facts, reasons, a code that can be read out, and no waiting for a dead network."""

import socket
import sys
import time
import types

import pytest

from helpers import machine, notebook
from helpers.__main__ import main
from helpers.messages import CourseError

FACTS = {"python": "3.11.7", "cores": 2, "memory_total_gib": 23, **{name: False for name, _ in machine.FACTS}}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch, tmp_path):
    """A stand-in for the catalogue."""
    import helpers

    absent = tmp_path / "absent"
    data = [
        types.SimpleNamespace(id="virtual", kind="generated", folder=absent),
        types.SimpleNamespace(id="her2st", kind="files", folder=absent),
    ]
    stand_in = types.SimpleNamespace(datasets=lambda: data)
    monkeypatch.setitem(sys.modules, "helpers.catalogue", stand_in)
    monkeypatch.setattr(helpers, "catalogue", stand_in, raising=False)


@pytest.mark.parametrize("bits", range(0, 2 ** len(machine.FACTS), 37))
def test_a_code_tells_what_was_put_in(bits):
    facts = {**FACTS, **{name: bool(bits >> place & 1) for place, (name, _) in enumerate(machine.FACTS)}}
    code = machine.encode(facts, able=bool(bits % 2))
    told = machine.decode(code.lower())
    assert told["cores"] == 2 and told["memory GiB"] == 23 and told["python"] == "3.11"
    assert told["every notebook can run"] == bool(bits % 2)
    assert {says: facts[name] for name, says in machine.FACTS}.items() <= told.items()


def test_a_misheard_character_is_noticed():
    code = machine.encode({**FACTS, "gpu": True}, able=True)
    assert code.startswith("OK-2C23G-py311-002-")
    wrong = [code.replace("2C", "3C"), code.replace("23G", "32G"), code.replace("002", "003"), code.replace("OK", "NO")]
    for heard in (*wrong, code[:-1], "hello", ""):
        with pytest.raises(CourseError, match="read it again"):
            machine.decode(heard)


def test_a_hanging_name_server_does_not_hold_us_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    began = time.monotonic()
    assert machine.network(0.3) is False and time.monotonic() - began < 2


def test_no_network_is_seen_as_such():
    assert machine.network(1.0) is False  # tests are offline


def test_notebooks_say_why_they_cannot_run(make_notebook, monkeypatch):
    make_notebook("01_fine")
    needs = {"packages": ["no_such_package"], "data": ["her2st", "virtual"], "network": True}
    path = make_notebook("02_needy", needs=needs, budget_mb=10**9)
    monkeypatch.setattr(notebook, "folder", lambda: path.parent)
    found = machine.check(probe=0.2)
    fine, needy = found["notebooks"]
    assert fine == {"notebook": "01_fine", "runs": True, "why": []}
    assert not needy["runs"] and len(needy["why"]) == 4 and "no_such_package" in needy["why"][0]
    assert found["code"].startswith("NO-") and machine.decode(found["code"])["cores"] == found["facts"]["cores"]
    assert found["facts"]["memory_gb"] > 0 and isinstance(found["binaries"]["git"], bool)


def test_packages_are_compared_with_the_lock(monkeypatch, tmp_path):
    (tmp_path / "requirements.lock").write_text(
        'pytest==0.0.1\nno-such-package==1.0\nappnope==1.0 ; sys_platform == "nowhere"\n# note\n'
    )
    monkeypatch.setattr(machine.settings, "ROOT", tmp_path)
    differs = machine.packages()
    assert set(differs) == {"pytest", "no-such-package"} and differs["no-such-package"] == (None, "1.0")


def test_the_command_line_ends_in_the_code_and_reads_one(monkeypatch, capsys):
    monkeypatch.setattr(machine, "network", lambda probe: False)
    assert main(["check"]) == 0
    code = capsys.readouterr().out.splitlines()[-1]
    assert main(["check", "--decode", code]) == 0
    assert "the network can be reached" in capsys.readouterr().out
    assert main(["check", "--decode", "OK-9"]) == 2

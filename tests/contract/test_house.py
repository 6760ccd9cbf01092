"""The house keeps standing: imports point down, the package stays light, notebooks keep to their budgets."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "helpers"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Floor of each room. A room is a file, the files that begin with its name and an underscore, or the folder virtual/.
FLOORS = {
    "settings": 0,
    "messages": 0,
    "section": 1,
    "notebook": 1,
    "download": 1,
    "plain_arrays": 1,
    "virtual": 2,
    "readers": 2,
    "catalogue": 2,
    "stain": 3,
    "tissue": 3,
    "tiles": 3,
    "counts": 3,
    "annotation": 3,
    "encoders": 3,
    "spacell": 3,
    "spatial": 3,
    "signatures": 3,
    "stimage": 3,
    "nuclei": 3,
    "explain": 3,
    "registration": 3,
    "celltypes": 3,
    "pseudospots": 3,
    "hovernet": 3,
    "survival": 3,
    "deepspot2cell": 3,
    "deepspot": 3,
    "visium_hd": 3,
    "wsi": 3,
    "slideqc": 3,
    "bulk": 3,
    "response": 3,
    "grade": 4,
    "plots": 4,
    "traps": 4,
    "export": 4,
    "exercises": 4,
    "report": 4,
    "encoder_training": 5,
    "hd_training": 5,
    "runner": 5,
    "execute": 5,
    "machine": 5,
    "app": 5,
    "batch": 6,
    "slides": 6,
    "__main__": 7,
}
HEAVY = ("tensorflow", "torch", "squidpy", "spatialdata", "keras", "scanpy", "sklearn", "matplotlib")
MAX_LINES = 320
LONG = {"04": (32, 17), "10": (32, 19)}
"""Cells and code cells of a notebook that may have more than 30 and 16: ten tools in one walk-through."""


def room(path: Path) -> str:
    """Return the room a file of helpers/ belongs to."""
    parts = path.relative_to(HELPERS).with_suffix("").parts
    if len(parts) > 1:
        return parts[0]
    return next((name for name in FLOORS if parts[0] == name or parts[0].startswith(f"{name}_")), parts[0])


FILES = [path for path in sorted(HELPERS.rglob("*.py")) if path != HELPERS / "__init__.py"]


def imported(tree: ast.AST, path: Path = HELPERS / "x.py") -> set[str]:
    """Return the rooms the syntax tree of a file imports, wherever in the file."""
    package = ("helpers", *path.relative_to(HELPERS).parent.parts)
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            names = [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "helpers" and len(parts) > 1:
                found.add(room((HELPERS / parts[1]).with_suffix(".py")))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HELPERS)))
def test_imports_point_down(path):
    here = room(path)
    assert here in FLOORS, f"{path.name}: give its room a floor in this test and in the house's plan"
    for other in imported(ast.parse(path.read_text(encoding="utf-8")), path) - {here}:
        assert other in FLOORS, f"{path.name} imports helpers.{other}, which has no floor"
        assert FLOORS[other] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"
        peeks = FLOORS[here] == 3 and FLOORS[other] not in (0, 1)
        assert not peeks, f"{here} is a method and may not know {other}: it could peek at the answer"


def test_the_import_check_can_fail():
    tree = ast.parse("from helpers.virtual import x\ndef f():\n    import helpers.grade\n    from . import runner_data")
    assert imported(tree) == {"virtual", "grade", "runner"}
    tree = ast.parse("from ..stain import x\nfrom .noise import y")
    assert imported(tree, HELPERS / "virtual" / "x.py") == {"stain", "virtual"}


@pytest.mark.parametrize("module", ["helpers", *(f"helpers.{n}" for n in ("runner", "execute", "report", "__main__"))])
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HELPERS)))
def test_a_room_is_one_job(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, "two jobs in one file, or a library written again"
    assert ast.get_docstring(ast.parse(text)), "a room says at its door what it is for"
    assert not re.search(r"NotImplementedError|TODO|FIXME", text)
    assert not re.search(r"/work/|/home/\w|/Users/\w|/root/", text), "a path of one machine"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HELPERS)))
def test_no_pickles_and_no_global_seeds(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"np.random.seed", "random.seed", "pickle.load", "joblib.load", "pickle.loads"}


# ---------------------------------------------------------------- notebooks
def cells(path: Path, kind: str | None = None) -> list:
    """Return the cells of a notebook, of one kind if given."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def tags(cell) -> list:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks_and_their_numbers_differ():
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_\w+\.ipynb", path.name) for path in NOTEBOOKS)
    assert len({path.name[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)


@each_notebook
def test_a_notebook_keeps_its_budget(path):
    code = cells(path, "code")
    most, most_code = LONG.get(path.name[:2], (30, 16))
    assert len(cells(path)) <= most and len(code) <= most_code and path.stat().st_size <= 1_000_000
    for cell in code:
        assert len("".join(cell["source"]).splitlines()) <= 15, "".join(cell["source"])[:80]


@each_notebook
def test_counts_are_stored_in_order_and_stderr_is_not(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "python -m helpers refresh"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output["output_type"] == "error"]
    shown = ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert not [text for text in shown if "Path('/" in text], "a place on the machine where it was stored"


@each_notebook
def test_something_is_compared_and_it_is_text(path):
    compared = [cell for cell in cells(path, "code") if "nbval-check-output" in tags(cell)]
    assert compared, "tag a cell nbval-check-output"
    for cell in compared:
        assert any(output.get("name") == "stdout" for output in cell["outputs"]), "a compared cell prints something"


@each_notebook
def test_the_notebook_declares_itself(path):
    from helpers import notebook

    declared = notebook.load(path)
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["course"]["number"] == declared.number and metadata["course"]["title"]
    assert sum("parameters" in tags(cell) for cell in cells(path)) == 1
    assert {"SEED", "OUT", "PROFILE"} <= set(declared.parameters) or declared.number == "00"
    assert all(name.isupper() for name in declared.parameters)
    assert notebook.check_parameters(declared, {}) == declared.parameters
    known = (*declared.parameters, "PROFILE", "TRAP")
    assert set(declared.ranges) <= set(known)


@each_notebook
def test_the_notebook_is_clean(path):
    code = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    assert not re.search(r"^\s*[!%](?!matplotlib|load_ext)", code, re.M), "no shell and no magic"
    assert "import *" not in code and not re.search(r"['\"]/(?!/)\w+/", code), "no star import, no absolute path"
    heads = [line for cell in cells(path, "markdown") for line in "".join(cell["source"]).splitlines()]
    inside, titles = False, []
    for line in heads:
        inside ^= line.startswith("```")
        titles += [line] if line.startswith("# ") and not inside else []
    assert len(titles) == 1, "only the title is a heading of the first level"
    assert not re.search(r"/work/|/home/\w|/Users/\w|/root/", path.read_text(encoding="utf-8")), "a path of one machine"


@each_notebook
def test_graded_checks_are_all_in_the_table(path):
    from helpers import grade

    table = {row.name for row in grade.thresholds() if row.notebook == path.name[:2]}
    code = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    asked = set(re.findall(r"run\.grade\(\s*\"([^\"]+)\"", code))
    assert asked <= table, f"not in data/thresholds.csv: {asked - table}"


# ---------------------------------------------------------------- environment and README
@pytest.mark.parametrize("name", ["requirements.lock", "requirements-light.lock"])
def test_the_lock_pins_everything_and_names_no_host_and_no_path(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert len(pins) > 50
    for line in pins:
        assert re.match(r"^[A-Za-z0-9_.\[\]-]+==[\w.+!]+(\s*;.*)?$", line), line
        assert not re.search(r"://|@|--|\.\./|/", line), line


def test_the_lock_has_what_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + sum(project.get("optional-dependencies", {}).values(), [])
    locked = {re.split(r"[=\[ ;]", line)[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for line in declared:
        assert re.split(r"[<>=!\[ ;]", line)[0].lower() in locked, line


def test_the_light_lock_is_the_lock_without_the_heavy_libraries():
    whole = set((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    light = set((ROOT / "requirements-light.lock").read_text(encoding="utf-8").splitlines())
    pin = {line.partition(" ;")[0] for line in whole}
    assert {line.partition(" ;")[0] for line in light} < pin, "another resolution: run make lock"
    heavy = {re.split("==", line)[0] for line in whole - light}
    assert {"torch", "sopa", "novae", "stardist", "rctd-py"} <= heavy
    assert not any(line.startswith("triton") and "never" not in line for line in whole), "triton ends TensorFlow"


def test_commands_named_in_the_readme_exist():
    from helpers.__main__ import _parser

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipes = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z]+)", readme, re.M))
    assert {"run", "test"} <= named and named <= recipes, named - recipes
    commands = next(action.choices for action in _parser()._actions if action.choices)
    asked = set(re.findall(r"python -m helpers ([a-z]+)", readme))
    assert asked <= set(commands), asked - set(commands)


def test_real_data_and_outputs_stay_out_of_git():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"runs/", "data/downloads/", "data/virtual/"} <= set(ignored)


def test_the_files_that_take_longest_start_first(request):
    from conftest import LONGEST

    assert all((ROOT / name).is_file() for name in LONGEST) and len(set(LONGEST)) == len(LONGEST)
    order = list(dict.fromkeys(str(item.path.relative_to(ROOT)) for item in request.session.items))
    first = [name for name in LONGEST if name in order]
    assert order[: len(first)] == first

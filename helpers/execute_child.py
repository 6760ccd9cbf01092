"""Caretaker's errand: one notebook through papermill with this Python as its kernel, then to HTML.

Run as ``python -m helpers.execute_child '{"notebook": ..., "executed": ..., "given": {...}}'``. Standard input is a
pipe from the parent: when it closes, the parent is gone or has lost patience, and kernel and child end at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path


def _end_with_parent() -> None:
    os.read(0, 1)  # blocks until the pipe closes
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(3)


@contextlib.contextmanager
def this_python_as_kernel():
    """Offer a kernel ``python3`` that is this very Python, whatever kernels the user has installed."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    with tempfile.TemporaryDirectory() as home:
        place = Path(home) / "kernels" / "python3"
        place.mkdir(parents=True)
        (place / "kernel.json").write_text(json.dumps(spec))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [home, os.environ.get("JUPYTER_PATH")]))
        yield


def main(task: dict) -> int:
    """Execute and convert; how it ended is judged from the files, not from this return value."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import papermill

    from helpers import report_page

    executed = Path(task["executed"])
    code = 0
    with this_python_as_kernel():
        try:
            papermill.execute_notebook(
                task["notebook"],
                str(executed),
                parameters=task["given"] or None,
                kernel_name="python3",
                language="python",
                progress_bar=False,
            )
        except Exception as problem:  # a failing cell, a dead kernel: the saved notebook shows which
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
            code = 1
    if executed.exists():
        report_page.convert(executed, executed.with_suffix(".html"))
    return code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

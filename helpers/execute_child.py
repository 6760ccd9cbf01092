"""Caretaker's errand: one notebook through papermill with this Python as its kernel, then to HTML.

Run as ``python -m helpers.execute_child``, by :mod:`helpers.execute_process`. Standard input is a socket: its first
line is the task, and when it closes, the parent is gone or has lost patience, and kernel and child end at once. With
the word ``warm`` it loads all it needs, then forks such an errand for each pair of files (socket, log) it is sent.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from pathlib import Path

SLOW_S = 300
"""Time a living kernel may take to start, and to send what a cell has printed; by default 60 and, too little on a busy
machine, 4."""
LONGEST_PATH = 90
"""Most letters of a folder for such files: a system allows 104 or 108 for the whole path of one."""


def leave_out() -> None:
    """Keep papermill from loading what no errand uses: files on a Hadoop cluster, international web addresses."""
    for name in ("pyarrow", "rfc3987_syntax"):  # the one starts threads, the other takes 0.8 s
        sys.modules[name] = None  # type: ignore[assignment]  an import of it fails, which is foreseen


def _end_with_parent() -> None:
    os.read(0, 1)  # blocks until the socket closes
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
        yield home


def _by_files(home: str):
    """Have client and kernel talk through files (Unix sockets) in a folder, where a system has them.

    Ports are looked for, let go of and taken a moment later: kernels that start together take each other's.
    """
    from traitlets.config import Config

    if not hasattr(socket, "AF_UNIX") or len(home) > LONGEST_PATH:
        return None
    return Config({"KernelManager": {"transport": "ipc", "ip": f"{home}/k"}})


def read_task() -> dict:
    """Return the line of JSON on standard input; without one, the parent is gone."""
    words = b""
    while not words.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            os._exit(3)
        words += more
    return json.loads(words)


def main(task: dict) -> int:
    """Execute and convert; how it ended is judged from the files, not from this return value.

    Parameters
    ----------
    task
        ``notebook`` and ``executed`` (paths), ``given`` (parameter name to value).
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import papermill

    from helpers import report_page

    executed = Path(task["executed"])
    code = 0
    with this_python_as_kernel() as home:
        try:
            papermill.execute_notebook(
                task["notebook"],
                str(executed),
                parameters=task["given"] or None,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=SLOW_S,
                iopub_timeout=SLOW_S,
                config=_by_files(home),
            )
        except Exception as problem:  # a failing cell, a dead kernel: the saved notebook shows which
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
            code = 1
    if executed.exists():
        report_page.convert(executed, executed.with_suffix(".html"))
    return code


# ---------------------------------------------------------------- forked
def serve() -> None:
    """Load all an errand needs, then fork one for each pair of files sent, until the parent closes the socket."""
    _rehearse()
    if len(os.listdir("/proc/self/task")) > 1:
        return  # a thread's locks would stay locked in what is forked: the parent starts its processes anew
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    line = socket.socket(fileno=0)
    while (sent := socket.recv_fds(line, 1, 2))[0]:
        pid = os.fork()
        if not pid:
            _become_errand(*sent[1])
        for file in sent[1]:
            os.close(file)
        line.sendall(pid.to_bytes(4, "little"))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _rehearse() -> None:
    """Do once what each errand does around its kernel, so that it is loaded and compiled."""
    import nbformat
    import papermill
    from jupyter_client import kernelspec, localinterfaces, provisioning

    from helpers import report_page

    kernelspec.KernelSpecManager().get_kernel_spec("python3")  # these three are looked up once a process
    provisioning.KernelProvisionerFactory.instance()
    localinterfaces.localhost()

    form = nbformat.v4
    cells = [form.new_markdown_cell("# a"), form.new_code_cell("A = 1", metadata={"tags": ["parameters"]})]
    cells[1].outputs = [form.new_output("stream", text="a"), form.new_output("display_data", {"image/png": ""})]
    with tempfile.TemporaryDirectory() as home:
        given, made = f"{home}/given.ipynb", f"{home}/made.ipynb"
        nbformat.write(form.new_notebook(cells=cells), given)
        papermill.execute_notebook(given, made, parameters={"A": 2}, prepare_only=True, kernel_name="python3",
                                   language="python", progress_bar=False)  # fmt: skip
        report_page.convert(Path(made), Path(home) / "made.html")


def _reap(*_) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_errand(own_end: int, log: int) -> None:
    code = 1
    try:
        os.setsid()
        for source, target in ((own_end, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(own_end), os.close(log)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        task = read_task()
        os.environ.clear()
        os.environ.update(task["env"])
        os.chdir(task["cwd"])
        code = main(task)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    leave_out()
    sys.exit(serve() if sys.argv[1:] == ["warm"] else main(read_task()))

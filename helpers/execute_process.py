"""Caretaker: the process of one notebook, started anew or forked from one that has loaded papermill already.

Loading papermill and nbconvert costs more than a short notebook. So where several notebooks run, one process loads
them, does nothing else, and is forked for each; what is forked can be killed alone, like any process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

COMMAND = (sys.executable, "-m", "helpers.execute_child")
START_S = 60
"""Time the process that is forked may take to load what it needs."""
PATIENCE_S = 10
"""Time to end for a process that was let go of, before it is killed."""


class Child:
    """The process of a notebook, at the other end of a pair of sockets.

    It ends, and its kernel with it, when our end closes, even if this process is killed. When it has ended, however
    it came to that, nothing more can be read here.
    """

    def __init__(self, line: socket.socket, pid: int, started: subprocess.Popen | None = None):
        self.pid = pid
        self._line, self._started = line, started

    def tell(self, task: dict) -> None:
        """Send what there is to do, as one line of JSON."""
        with contextlib.suppress(OSError):  # it has died at once: ``ended`` will tell
            self._line.settimeout(PATIENCE_S)
            self._line.sendall(json.dumps(task).encode() + b"\n")

    def ended(self, seconds: float) -> bool:
        """Wait until it has ended, so many seconds at most; return whether it has."""
        self._line.settimeout(seconds)
        try:
            return not self._line.recv(1)
        except TimeoutError:
            return False
        except OSError:  # it died before it had read its task
            return True

    def let_go(self) -> None:
        """Have it end at once, if it has not ended yet."""
        with self._line:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)
            if not self.ended(PATIENCE_S):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        if self._started:
            self._started.wait()


def start(task: dict, *, log, env: dict, cwd) -> Child:
    """Start a process for a task (see :func:`helpers.execute_child.main`); what it prints goes to the file ``log``."""
    ours, theirs = socket.socketpair()
    apart = {"stderr": subprocess.STDOUT, "start_new_session": True}  # Ctrl-C is ours alone
    with theirs:
        started = subprocess.Popen(COMMAND, stdin=theirs, stdout=log, env=env, cwd=cwd, **apart)
    child = Child(ours, started.pid, started)
    child.tell(task)
    return child


@contextlib.contextmanager
def starter(notebooks: int):
    """Give a function like :func:`start` for so many notebooks: for more than one it forks, where a system can."""
    if notebooks < 2 or sys.platform != "linux":  # on macOS, system libraries do not survive a fork
        yield start
        return
    line, theirs = socket.socketpair()
    turn = threading.Lock()
    apart = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    line.settimeout(START_S)
    with theirs:
        warm = subprocess.Popen([*COMMAND, "warm"], stdin=theirs, **apart)

    def fork(task, *, log, env, cwd):
        ours, theirs = socket.socketpair()
        with turn, theirs:
            try:
                socket.send_fds(line, [b"+"], [theirs.fileno(), log.fileno()])
                pid = int.from_bytes(line.recv(4), "little")
            except OSError:
                pid = 0
        if not pid:  # it could not load, was killed, or hangs: from now on without it
            line.close()
            ours.close()
            return start(task, log=log, env=env, cwd=cwd)
        child = Child(ours, pid)
        child.tell({**task, "env": env, "cwd": str(cwd)})
        return child

    try:
        yield fork
    finally:
        line.close()
        try:
            warm.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            warm.kill()
            warm.wait()

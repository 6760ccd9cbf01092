"""Making expensive folders once: a key from everything that goes in, a lock, a temporary name, worker processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from helpers import settings
from helpers.messages import CourseError, note


def digest(parameters: dict, files) -> str:
    """Hash of parameters and of the source files they are handed to."""
    total = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for file in sorted(files):
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]


@contextmanager
def lock(file: Path):
    """Hold an exclusive lock; the system frees it when the process dies, however it dies.

    Raises
    ------
    CourseError
        The process that waits for this one holds the lock: a worker that reads an unguarded script anew as it starts.
        Both would wait for ever.
    """
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            if handle.read() == str(os.getppid()):  # multiprocessing knows its parent only later
                fix = "put what the script does under that line: worker processes read the script as they start"
                raise CourseError("a script that starts itself again", 'if __name__ == "__main__":', fix) from None
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def fresh(final: Path) -> Path:
    """Return an empty temporary folder beside ``final``, and sweep those that killed runs left (the lock is held)."""
    for left in final.parent.glob(f".{final.name}.part*"):
        shutil.rmtree(left, ignore_errors=True)
    part = final.parent / f".{final.name}.part{os.getpid()}"
    part.mkdir(parents=True)
    return part


def _start_worker() -> None:
    """A worker is one of several: it opens no thread pool over all cores, and it ends when its parent is killed."""
    import cv2

    cv2.setNumThreads(1)
    parent = parent_process()

    def follow():
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run(function, jobs: list, label: str, workers: int | None) -> None:
    """Call ``function(*job)`` for every job in up to ``workers`` fresh processes, with a bar on stderr.

    Where processes cannot be started, or one dies (out of memory), the jobs that are left run in this one.
    """
    from tqdm import tqdm

    workers = min(workers or min(2, settings.cores()), len(jobs))
    left = list(range(len(jobs)))
    with tqdm(total=len(jobs), desc=label, unit="section") as bar:
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
            try:
                running = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
                for done in as_completed(running):
                    done.result()
                    left.remove(running[done])
                    bar.update()
            except BrokenProcessPool:
                note(f"warning: a process died while making {label}; going on in one process")
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for number in left:
            function(*jobs[number])
            bar.update()

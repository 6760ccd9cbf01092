"""SLURM's queue: which jobs a batch has there, why they wait, and how to be rid of them."""

from __future__ import annotations

import contextlib
import getpass
import re
import subprocess
import time

from helpers.messages import CourseError, note

HOPELESS = {
    "AccountNotAllowed", "AssocMaxCpuPerJobLimit", "AssocMaxMemPerJob", "AssocMaxNodePerJobLimit",
    "AssocMaxWallDurationPerJobLimit", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionConfig",
    "PartitionNodeLimit", "PartitionTimeLimit", "QOSMaxCpuPerJobLimit", "QOSMaxMemoryPerJob", "QOSMaxNodePerJobLimit",
    "QOSMaxWallDurationPerJobLimit", "QOSNotAllowed",
}  # fmt: skip
"""Reasons to wait that no time mends."""


def queue(token: str, *, past: bool = False) -> dict | None:
    """Return the jobs of a batch, id to (state, reason, nodes, comment), or None if SLURM does not answer.

    ``past`` adds those that have ended, as long as SLURM remembers them.
    """
    command = ["squeue", "-h", "-u", getpass.getuser(), "-o", "%i|%j|%T|%r|%N|%k", *(["-t", "all"] if past else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = [line.split("|", 5) for line in done.stdout.splitlines() if line.count("|") >= 5]
    return {row[0]: tuple(row[2:]) for row in rows if row[1].startswith(f"{token}_")}


def cancel(token: str, *, wait: float = 90) -> int:
    """Cancel all jobs of a batch and wait until they are gone; return how many there were.

    Raises
    ------
    CourseError
        SLURM does not answer, or jobs do not end.
    """
    many, end = 0, time.monotonic() + wait
    while True:
        jobs = queue(token)
        if jobs == {}:
            return many
        if jobs:
            many = max(many, len(jobs))
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["scancel", *jobs], capture_output=True, timeout=60)
        if time.monotonic() > end:
            seen = "SLURM that does not answer" if jobs is None else f"jobs that do not end: {' '.join(jobs)}"
            raise CourseError(seen, "an empty queue", "wait, look at squeue, then give the same command again")
        time.sleep(0.5)


def min_job_age() -> float:
    """Return how many seconds SLURM remembers a job that has ended; its default if it does not say."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30).stdout
        found = re.search(r"^MinJobAge\s*=\s*(\d+)", shown, re.M)
        if found:
            if int(found[1]) < 200:
                note(f"SLURM forgets ended jobs after {found[1]} s (MinJobAge): expect waits, the watchdog ends them")
            return float(found[1])
    return 300.0


def hopeless(jobs: dict | None) -> str:
    """Return why none of the jobs will ever start, or an empty word."""
    if not jobs or not all(state == "PENDING" and reason in HOPELESS for state, reason, *_ in jobs.values()):
        return ""
    reasons = {reason for _, reason, *_ in jobs.values()}
    return f"jobs that can never start ({', '.join(sorted(reasons))}): ask for less, or name another --partition"

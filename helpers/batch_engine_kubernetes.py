"""A batch on Kubernetes, as far as it goes without one: the files for Snakemake, and a dry run. Nothing is sent.

The course was never run on Kubernetes. What is written is a draft for somebody who has a cluster: a volume that all
pods mount at the same place holds the course, the data and the runs; an image holds Python with the locked packages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import util

from helpers import batch, batch_engine, batch_engine_files, execute, settings
from helpers.batch_engine import HOME, Request
from helpers.messages import CourseError, note, say

UNTRIED = """Nothing was sent, and the course was never run on Kubernetes. Tried: the Snakefile passes a dry run. Not
tried: pods, an image, a volume claim, memory limits and retries in pods, cancelling; there is no watchdog for this
engine. Replace IMAGE and CLAIM in the profile before you send it yourself."""


def dry_run(planned: batch.Batch, *, request: Request | None = None, workers: int | None = None, fresh=False) -> int:
    """Write Snakefile and profile below ``<batch>/cluster`` and let Snakemake say what it would send; return 0.

    Raises
    ------
    CourseError
        No Snakemake, or it does not accept the files.
    """
    if not util.find_spec("snakemake"):
        raise CourseError("no snakemake", "it beside the course", "pip install 'helpers[cluster]'")
    batch_engine.refuse_folder(planned.folder)
    request, jobs = request or Request(), workers or batch.CLUSTER_JOBS
    todo = [job for job in planned.jobs if fresh or job.state != "up to date"]
    if not todo:
        say("every sample is complete: nothing to send")
        return 0
    asked = batch.ask(planned, request=request, fresh=fresh, workers=jobs)
    home = planned.folder / HOME
    with execute.lock(planned.folder):
        batch.write(planned)
        plan = batch_engine.write_plan(todo, home, chunk=asked["chunk"], fresh=fresh)
        files = {"Snakefile": batch_engine_files.snakefile(
            home, chunks=len(plan["chunks"]), budget=asked, request=request, slurm=False)}  # fmt: skip
        files["kubernetes/config.yaml"] = batch_engine_files.kubernetes_profile(
            jobs=jobs, image="IMAGE", claim="CLAIM", mount=str(settings.ROOT.parent))  # fmt: skip
        for name, text in files.items():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text(text, encoding="utf-8")
        sent = _count(home)
    say(f"dry run: {len(todo)} samples in {sent} jobs, each with {asked['memory_mb']} MB and {asked['minutes']} min")
    say(f"files: {home / 'Snakefile'} and {home / 'kubernetes'}")
    note(UNTRIED)
    return 0


def _count(home) -> int:
    """Return how many jobs Snakemake would send."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--scheduler", "greedy", "--nolock"]
    command += ["--snakefile", str(home / "Snakefile"), "--directory", str(home), "--forceall"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^chunk\s+(\d+)\s*$", done.stdout + done.stderr, re.M)
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CourseError(f"Snakemake refuses its files: {last}", "a dry run", "report it", file=home / "Snakefile")
    return int(found[1])

"""The files that tell Snakemake what to do: one Snakefile and one profile in the folder of the batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from helpers.batch_engine import DONE, PLAN, Request

_SNAKEFILE = '''# Written by `python -m helpers batch`, and written anew by each call: changes here are lost.
# One job runs one chunk of samples; how each sample ended stands in its own run.json and results.json.
MEMORY_MB = {memory_mb}
MINUTES = {minutes}


rule all:
    input:
        expand("{done}/{{chunk}}", chunk=range({chunks})),


rule chunk:
    output:
        "{done}/{{chunk}}",
    params:
        python={python},
        plan={plan},
    threads: {cpus}
    retries: {retries}
    resources:
        mem_mb=lambda wildcards, attempt: MEMORY_MB * attempt,
        runtime=lambda wildcards, attempt: MINUTES * attempt,
{more}    shell:
        "{{params.python:q}} -m helpers batch-chunk {{params.plan:q}} {{wildcards.chunk}}"
'''


def snakefile(home: Path, *, chunks: int, budget: dict, request: Request, slurm: bool = True) -> str:
    """Return the Snakefile: one rule, the course's own command as its only shell line, a marker as its only output.

    Memory and time grow with each attempt. SLURM's own requeue is off: it would restart what Snakemake already counts
    as failed.
    """
    resources = {}
    if slurm:
        resources["slurm_extra"] = "--no-requeue"
        resources |= {"slurm_partition": request.partition} if request.partition else {}
        resources |= {"slurm_account": request.account} if request.account else {}
    return _SNAKEFILE.format(
        memory_mb=budget["memory_mb"],
        minutes=budget["minutes"],
        done=DONE,
        chunks=chunks,
        python=json.dumps(sys.executable),
        plan=json.dumps(str(home / PLAN)),
        cpus=request.cpus,
        retries=request.retries,
        more="".join(f"        {name}={json.dumps(word)},\n" for name, word in resources.items()),
    )


def slurm_profile(home: Path, *, jobs: int, poll: float, token: str) -> str:
    """Return the profile for SLURM.

    ``squeue`` is asked for the state of the jobs and named outright: by default the plugin takes ``sacct`` where that
    program exists, and without accounting it then waits for ever.
    """
    settings = {
        "executor": "slurm",
        "jobs": jobs,
        "keep-going": True,
        "rerun-incomplete": True,
        "latency-wait": 60,
        "scheduler": "greedy",
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": max(1, round(poll)),
        "slurm-jobname-prefix": token,
        "slurm-logdir": str(home / "logs"),
        "slurm-keep-successful-logs": False,
    }
    return _yaml("How Snakemake talks to SLURM", settings)


def kubernetes_profile(*, jobs: int, image: str, claim: str, mount: str, namespace: str = "default") -> str:
    """Return the profile for Kubernetes: a volume claim, mounted by all pods, holds course, data and runs."""
    settings = {
        "executor": "kubernetes",
        "jobs": jobs,
        "keep-going": True,
        "rerun-incomplete": True,
        "latency-wait": 60,
        "scheduler": "greedy",
        "container-image": image,
        "kubernetes-namespace": namespace,
        "kubernetes-persistent-volumes": f"{claim}:{mount}",
        "default-storage-provider": "fs",
        "shared-fs-usage": "none",
    }
    return _yaml("A draft: the course was never run on Kubernetes", settings)


def _yaml(title: str, settings: dict) -> str:
    lines = [f"# {title}. Written by `python -m helpers batch`; changes here are lost."]
    lines += [f"{name}: {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"

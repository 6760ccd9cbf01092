"""The front door: ``python -m helpers run | batch | status | slides | refresh | report | data | fetch | check``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from helpers import slides
from helpers.messages import CourseError, note, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers", description="Run and look after the course.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser("run", help="run what is missing, failed or stale; grade; report")
    run.add_argument("numbers", nargs="*", metavar="NN", help="notebook numbers; none means all")
    words = {"metavar": ("NAME", "VALUE"), "help": "set a parameter, e.g. -p DATA her2st"}
    run.add_argument("-p", nargs=2, action="append", default=[], **words)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the outputs (default runs/latest)")
    run.add_argument("--fresh", action="store_true", help="run also what is up to date")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time (default 1)")
    run.add_argument("--timeout", type=float, metavar="S", help="seconds a notebook may take")

    slides.arguments(commands)
    batch = commands.add_parser("batch", help="one notebook over a table of samples")
    batch.add_argument("table", type=Path, metavar="SAMPLES.csv", help="a column sample, and parameters")
    batch.add_argument("--notebook", required=True, metavar="NN")
    batch.add_argument("-p", nargs=2, action="append", default=[], **words)
    batch.add_argument("--out", type=Path, metavar="DIR", help="folder of the outputs (default runs/batch/TABLE-NN)")
    engines = "where the samples run: pool (this machine), slurm, kubernetes (dry run)"
    batch.add_argument("--engine", default="pool", metavar="ENGINE", help=engines)
    at_a_time = "samples at a time (pool: 1) or jobs at a time (slurm: 50)"
    batch.add_argument("--jobs", type=int, metavar="N", help=at_a_time)
    batch.add_argument("--retries", type=int, default=1, metavar="R", help="more tries where a kernel died (default 1)")
    chunks = "samples in one job (default: enough for five minutes)"
    cluster = batch.add_argument_group("slurm and kubernetes (default: what the finished samples needed)")
    cluster.add_argument("--chunk", type=int, metavar="K", help=chunks)
    cluster.add_argument("--memory-mb", type=int, metavar="M", help="memory of a job; each retry gets as much again")
    cluster.add_argument("--minutes", type=int, metavar="T", help="time limit of a job; each retry gets as much again")
    cluster.add_argument("--cpus", type=int, default=1, metavar="C", help="cores of a job (default 1)")
    cluster.add_argument("--partition", default="", metavar="P")
    cluster.add_argument("--account", default="", metavar="A")
    batch.add_argument("--timeout", type=float, metavar="S", help="seconds a sample may take")
    batch.add_argument("--fresh", action="store_true", help="run also what is up to date")
    errand = commands.add_parser("batch-chunk")  # what a job of a cluster runs
    errand.add_argument("plan", type=Path)
    errand.add_argument("chunk", type=int)
    status = commands.add_parser("status", help="what has become of a batch")
    status.add_argument("folder", type=Path, metavar="DIR")

    refresh = commands.add_parser("refresh", help="run notebooks and store outputs and counts in notebooks/")
    refresh.add_argument("numbers", nargs="*", metavar="NN")

    report = commands.add_parser("report", help="write DIR/index.html again")
    report.add_argument("folder", type=Path, metavar="DIR")

    commands.add_parser("data", help="list the data sets")
    fetch = commands.add_parser("fetch", help="download a data set")
    fetch.add_argument("id", metavar="ID")
    check = commands.add_parser("check", help="say what this machine can run")
    check.add_argument("--decode", metavar="CODE", help="explain a code that a learner read out")
    return parser


def _given(options) -> dict:
    """Return what ``-p`` sets, paths as seen from here; check what run and batch have in common."""
    from helpers.notebook import from_here

    names = [name for name, _ in options.p]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CourseError(f"-p {twice[0]} twice", "each parameter once", "delete one")
    if options.jobs is not None and options.jobs < 1:
        raise CourseError(f"--jobs {options.jobs}", "1 or more", "choose --jobs 1")
    return {name: value if name == "OUT" else from_here(value) for name, value in options.p}


def _generate(jobs, fresh: bool) -> None:
    """Make the virtual tissue before the notebooks start, so that no notebook's time is spent on it."""
    from helpers import runner_data

    for job in jobs:
        if job.notebook.needs.get("sections", True) and (fresh or job.state != "up to date"):
            made = runner_data.generate(job.parameters)
            for other in job.notebook.needs.get("also", []) if made else ():
                runner_data.generate({**job.parameters, "DATA": other})


def _batch(options) -> int:
    from tqdm import tqdm

    from helpers import batch, batch_engine, batch_report

    given = _given(options)
    if options.engine not in batch.ENGINES:
        raise CourseError(f"--engine {options.engine}", f"one of {', '.join(batch.ENGINES)}", "choose one of them")
    if options.retries < 0:
        raise CourseError(f"--retries {options.retries}", "0 or more", "choose --retries 0")
    if "OUT" in given:
        raise CourseError("-p OUT", "--out DIR", "use --out DIR; each sample gets its own folder in it")
    planned = batch.plan(options.table, options.notebook, common=given, out=options.out)

    def told(job, outcome):
        cell = f"code cell {outcome.cell}: " if outcome.cell else ""
        why = f"  {cell}{outcome.reason}" if outcome.reason else ""
        with tqdm.external_write_mode(file=sys.stdout):
            say(f"{job.label:<28} {outcome.kind}  {outcome.seconds:.0f} s{why}")

    request = batch_engine.Request(chunk=options.chunk, memory_mb=options.memory_mb, minutes=options.minutes,
                                   cpus=options.cpus, retries=options.retries, partition=options.partition,
                                   account=options.account)  # fmt: skip
    if options.engine == "kubernetes":
        from helpers import batch_engine_kubernetes

        return batch_engine_kubernetes.dry_run(planned, request=request, workers=options.jobs, fresh=options.fresh)
    _generate(planned.jobs, options.fresh)
    options_of_run = {"workers": options.jobs, "retries": options.retries, "fresh": options.fresh}
    options_of_run |= {"engine": options.engine, "request": request}
    try:
        outcomes = batch.run(planned, timeout=options.timeout, told=told, **options_of_run)
    finally:
        if (planned.folder / batch.FILE).exists():
            say(f"report: {batch_report.build(planned.folder)}")
    bad = [job.label for job, outcome in zip(planned.jobs, outcomes) if not outcome.good]
    say(f"{len(outcomes) - len(bad)} of {len(outcomes)} samples complete")
    if bad:
        note(f"failed: {', '.join(bad)}")
    return 1 if bad else 0


def _status(options) -> int:
    from helpers import batch

    for line in batch.lines(batch.status(options.folder)):
        say(line)
    return 0


def _errand(options) -> int:
    from helpers import batch_engine

    return batch_engine.run_chunk(options.plan, options.chunk)


def _run(options) -> int:
    from helpers import execute, report

    jobs = execute.plan(options.numbers, given=_given(options), out=options.out)
    _generate(jobs, options.fresh)
    outcomes = execute.run(jobs, fresh=options.fresh, workers=options.jobs, timeout=options.timeout)
    for outcome in outcomes:
        word = "up to date" if outcome.skipped else outcome.kind
        where = f"code cell {outcome.cell}: " if outcome.cell else ""
        time = "" if outcome.skipped else f"  {outcome.seconds:.0f} s"
        say(f"{outcome.notebook:<28} {word}{time}" + (f"  {where}{outcome.reason}" if outcome.reason else ""))
    say(f"report: {report.build(jobs[0].folder.parent)}")
    bad = [outcome.notebook for outcome in outcomes if not outcome.good]
    if bad:
        note(f"{len(bad)} of {len(outcomes)} notebooks failed: {', '.join(bad)}")
    return 1 if bad else 0


def _refresh(options) -> int:
    from helpers import notebook as notebooks
    from helpers.execute_refresh import refresh

    failed = 0
    for path in [notebooks.find(number) for number in options.numbers] or notebooks.numbered():
        try:
            say(f"{path.stem}: {'stored' if refresh(path) else 'unchanged'}")
        except CourseError as problem:
            note(str(problem))
            failed += 1
    return 1 if failed else 0


def _report(options) -> int:
    from helpers import batch, batch_report, report

    room = batch_report if (options.folder / batch.FILE).is_file() else report
    say(f"report: {room.build(options.folder)}")
    return 0


def _data(_) -> int:
    from helpers import catalogue, machine, settings

    rows = [("id", "here", "size", "notebooks", "licence", "what it is")]
    for item in catalogue.datasets():
        here = "made here" if item.kind == "generated" else "yes" if machine.present(item) else "no"
        rows.append((item.id, here, item.size, " ".join(item.notebooks) or "-", item.licence, item.what))
    widths = [min(28, max(len(row[column]) for row in rows)) for column in range(5)]
    for row in rows:
        short = [textwrap.shorten(word, 28, placeholder=" ...") for word in row[:5]]
        say("  ".join([*(f"{word:<{width}}" for word, width in zip(short, widths)), row[5]]))
    note(f"data lie in {settings.data_dir()} (COURSE_DATA)")
    return 0


def _fetch(options) -> int:
    from helpers import catalogue

    say(f"{options.id}: {catalogue.fetch(options.id)}")
    return 0


def _check(options) -> int:
    from helpers import machine

    if options.decode:
        for fact, value in machine.decode(options.decode).items():
            say(f"{fact:<44} {_word(value)}")
        return 0
    found = machine.check()
    words = {"memory_gb": "memory free, GB", "memory_total_gib": "memory, GiB", "disk_gb": "disk free, GB"}
    for name, value in found["facts"].items():
        says = words.get(name) or dict(machine.FACTS).get(name, name)
        say(f"{says:<48} {_word(value)}")
    for name, (installed, locked) in found["packages"].items():
        say(f"package {name}: {installed or 'missing'} instead of {locked}")
    present = [item["id"] for item in found["data"] if item["present"]]
    say(f"{'data present':<48} {', '.join(present) or 'none (the virtual tissue needs none)'}")
    say(f"{'programs':<48} {', '.join(name for name, there in found['binaries'].items() if there)}")
    for book in found["notebooks"]:
        say(f"{book['notebook']:<28} {'can run' if book['runs'] else 'cannot run: ' + '; '.join(book['why'])}")
    say(found["code"])
    return 0


def _word(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 good, 1 a notebook failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    commands = {"run": _run, "batch": _batch, "status": _status, "refresh": _refresh, "report": _report, "data": _data}
    commands |= {"fetch": _fetch, "check": _check, "batch-chunk": _errand, "slides": slides.run}
    try:
        return commands[options.command](options)
    except CourseError as problem:
        note(f"error: {problem}")
        return 2
    except KeyboardInterrupt:
        note("interrupted; what was complete is kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())

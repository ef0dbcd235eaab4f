"""Measure the cases, print the tables, and write tables and plots to a directory.

A contestant that fails or cannot be installed is reported with the reason, and the others are
measured.  The measurements are saved after each case: see ``--resume``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, report, targets
from benchmarks.cases import CORE, TABLES, Case, cases
from benchmarks.lineup import Contestant, contestants
from benchmarks.results import Results
from benchmarks.rounds import Run
from distributed.tests.environments import ROOT, EnvironmentUnavailable, environment, run_in

#: Libraries that both this project and the original require, and that affect their speed.
SHARED_REQUIREMENTS = ("tornado", "msgpack")

OUTPUT = ROOT / "build" / "bench"
RECORD = ROOT / "docs" / "explanation" / "performance"

#: The names of the plots; a directory given by the user may contain other images.
PLOTTED = ("sequential", "transports", "concurrent", "payloads", "workloads")

#: Files that the repository keeps, since docs/explanation/performance.rst shows them.
RECORDED = (
    "targets.csv",
    "anatomy.csv",
    "machine.csv",
    "workloads.csv",
    "sequential.svg",
    "payloads.svg",
    "workloads.svg",
)

#: The measurements so far of a run that has not ended, in the directory of its results.
PROGRESS = "progress.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, in shorter slices")
    parser.add_argument(
        "--table", choices=TABLES, default="main", help="the cases of a table made on request"
    )
    parser.add_argument("--only", default="", help="beginnings of case names, separated by commas")
    parser.add_argument(
        "--contestants", default="", help="names of contestants or libraries, separated by commas"
    )
    parser.add_argument("--rounds", type=int, help="number of rounds (7; 3 with --quick)")
    parser.add_argument(
        "--pace", type=float, help="divide the duration of each slice by this (1; 4 with --quick)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory for all results")
    parser.add_argument(
        "--record",
        action="store_true",
        help="also replace the files that docs/explanation/performance.rst shows",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run with the same arguments and code, if there is one",
    )
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="show an earlier run instead of measuring; cases of further runs are added to it",
    )
    parser.add_argument(
        "--after",
        type=Path,
        nargs="+",
        default=[],
        metavar="RESULTS",
        help="earlier runs, whose ratios are shown beside those of this run",
    )
    parser.add_argument("--list", action="store_true", help="list the cases without measuring")
    options = parser.parse_args()
    if options.record and options.table != "main":
        parser.error("--record needs the default table")
    options.output = options.output.resolve()
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    beginnings = tuple(options.only.split(","))
    every = cases(quick=options.quick, table=options.table)
    return [case for case in every if case.name.startswith(beginnings)]


def chosen_contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    available = contestants()
    if not options.contestants:
        return available
    wanted = set(options.contestants.split(","))
    known = {name for each in available.values() for name in (each.name, each.library)}
    if unknown := wanted - known:
        sys.exit(f"unknown contestants {sorted(unknown)}; known are {sorted(known)}")
    return {name: each for name, each in available.items() if wanted & {each.name, each.library}}


def say(text: str) -> None:
    print(text, flush=True)


def draw(directory: Path) -> None:
    """Draw the plots with a Python that has matplotlib, if such an environment can be made."""
    for name in PLOTTED:
        (directory / f"{name}.svg").unlink(missing_ok=True)
    try:
        python = environment("bench-plots", ["matplotlib"], project=True)
    except EnvironmentUnavailable as error:
        say(f"no plots were drawn, since matplotlib could not be installed: {error}")
        return
    argv = ["-m", "benchmarks.plots", str(directory / "results.json"), str(directory)]
    try:
        run_in(python, argv, timeout=300)
    except AssertionError as error:
        say(f"no plots were drawn: {error}")


def record(output: Path, directory: Path) -> None:
    """Copy the files that the repository keeps from *output* to *directory*."""
    missing = [name for name in RECORDED if not (output / name).exists()]
    if missing:
        sys.exit(
            f"nothing was recorded: this run did not write {', '.join(missing)}; "
            f"--show {output / 'results.json'} --record tries again without measuring"
        )
    for name in RECORDED:
        shutil.copy(output / name, directory / name)


def identity(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Return what must be equal in a run and in the interrupted run that it continues."""
    digest = hashlib.sha256()
    for package in ("distributed", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "tests" not in path.parts:
                digest.update(path.read_bytes())
    return {
        "code": digest.hexdigest(),
        "cases": [case.name for case in run.cases],
        "contestants": sorted(run.contestants),
        "rounds": run.rounds,
        "pace": run.pace,
    }


def resumable(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the progress in the file; None if there is no file."""
    if not path.exists():
        return None
    progress: dict[str, Any] = json.loads(path.read_text())
    if different := [key for key in wanted if wanted[key] != progress["identity"].get(key)]:
        sys.exit(
            f"the run in {path} cannot be continued, since it has other {', '.join(different)}; "
            "run without --resume to start from the beginning"
        )
    return progress


def measured(options: argparse.Namespace, selected: list[Case]) -> Results:
    """Measure these cases."""
    competing = chosen_contestants(options)
    rounds = options.rounds or (3 if options.quick else 7)
    pace = options.pace or (4 if options.quick else 1)
    path = options.output / PROGRESS
    run = Run(selected, competing, rounds, pace, say)
    same = identity(options, run)
    seconds = 0.0  # of the interrupted runs
    load = os.getloadavg()[0]
    begin = time.monotonic()

    def save(progress: dict[str, Any]) -> None:
        options.output.mkdir(parents=True, exist_ok=True)
        taken = seconds + time.monotonic() - begin
        text = json.dumps({"identity": same, "load": load, "seconds": taken, **progress})
        # A process that is killed while it writes leaves the previous file.
        whole = path.with_suffix(".new")
        whole.write_text(text)
        whole.replace(path)

    progress = resumable(path, same) if options.resume else None
    if progress is not None:
        seconds, load = progress["seconds"], progress["load"]
        say(f"continuing after {len(progress['finished'])} measured cases")
    run = Run(selected, competing, rounds, pace, say, save, progress)
    say("making the environments that are missing")
    run.make_environments()
    say(f"measuring takes about {run.expected_seconds() / 60:.0f} minutes on an idle machine")
    begin = time.monotonic()
    measurements = run.measure()
    about = machine.describe() | {
        "load before": f"{load:.1f}",
        "rounds": str(rounds),
        "duration": f"{(seconds + time.monotonic() - begin) / 60:.1f} minutes",
    }
    taking_part = {name for entries in measurements.values() for name in entries}
    for each in competing.values():
        if each.requirements and each.name == each.library and each.name in taking_part:
            shared = SHARED_REQUIREMENTS if each.name in CORE else ()
            try:
                about[each.title] = machine.versions(each.python(), [*each.requirements, *shared])
            except EnvironmentUnavailable:
                about[each.title] = "could not be installed"
            except (AssertionError, KeyError):
                about[each.title] = "versions unknown"
    titles = {each.name: each.title for each in contestants().values()}
    record = {"about": about, "contestants": titles, "cases": measurements}
    return Results({**record, "table": options.table})


def main() -> int:
    options = arguments()
    selected = chosen_cases(options)
    if options.list or not selected:
        print("\n".join(case.name for case in selected) or f"no case begins with {options.only}")
        return not selected
    results = Results.read(*options.show) if options.show else measured(options, selected)
    if options.after:
        before = [targets.ratios(Results.read(path)) for path in options.after]
        results = Results({**results.record, "before": before})
    results.write(options.output / "results.json")
    if not options.show:
        (options.output / PROGRESS).unlink(missing_ok=True)
    report.write_tables(results, options.output)
    draw(options.output)
    print(f"\n{report.text(results)}\n")
    print(f"It took {results.record['about']['duration']}; all results are in {options.output}.")
    if options.record:
        record(options.output, RECORD)
    return 0


if __name__ == "__main__":
    sys.exit(main())

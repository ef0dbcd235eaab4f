"""Measure the cases, print the tables, and write tables and plots to a directory."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from benchmarks import machine, report, targets
from benchmarks.cases import CORE, Case, cases
from benchmarks.lineup import Contestant, contestants
from benchmarks.results import Results
from benchmarks.rounds import Run
from distributed.tests.environments import ROOT, EnvironmentUnavailable, environment, run_in

#: Libraries that both this project and the original require, and that affect their speed.
SHARED_REQUIREMENTS = ("tornado", "msgpack")

OUTPUT = ROOT / "build" / "bench"
RECORD = ROOT / "docs" / "explanation" / "performance"

#: Files that the repository keeps, since docs/explanation/performance.rst shows them.
#: The names of the plots; a directory given by the user may contain other images.
PLOTTED = ("sequential", "transports", "concurrent", "payloads")

RECORDED = ("targets.csv", "anatomy.csv", "machine.csv", "sequential.svg", "payloads.svg")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less, for a few minutes only")
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
        "--show", type=Path, metavar="RESULTS", help="show an earlier run instead of measuring"
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
    options.output = options.output.resolve()
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    beginnings = tuple(options.only.split(","))
    return [case for case in cases(quick=options.quick) if case.name.startswith(beginnings)]


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
    run_in(python, argv, timeout=120)


def record(output: Path, directory: Path) -> None:
    """Copy the files that the repository keeps from *output* to *directory*."""
    missing = [name for name in RECORDED if not (output / name).exists()]
    if missing:
        sys.exit(f"nothing was recorded: this run did not write {', '.join(missing)}")
    for name in RECORDED:
        shutil.copy(output / name, directory / name)


def measured(options: argparse.Namespace, selected: list[Case]) -> Results:
    """Measure these cases."""
    competing = chosen_contestants(options)
    rounds = options.rounds or (3 if options.quick else 7)
    pace = options.pace or (4 if options.quick else 1)
    run = Run(selected, competing, rounds, pace, say)
    say("making the environments that are missing")
    run.make_environments()
    load = os.getloadavg()[0]
    begin = time.monotonic()
    measurements = run.measure()
    about = machine.describe() | {
        "load before": f"{load:.1f}",
        "rounds": str(rounds),
        "duration": f"{(time.monotonic() - begin) / 60:.1f} minutes",
    }
    for each in competing.values():
        if each.requirements and each.name == each.library:
            shared = SHARED_REQUIREMENTS if each.name in CORE else ()
            try:
                about[each.title] = machine.versions(each.python(), [*each.requirements, *shared])
            except EnvironmentUnavailable:
                about[each.title] = "could not be installed"
    titles = {each.name: each.title for each in contestants().values()}
    return Results({"about": about, "contestants": titles, "cases": measurements})


def main() -> int:
    options = arguments()
    selected = chosen_cases(options)
    if options.list or not selected:
        print("\n".join(case.name for case in selected) or f"no case begins with {options.only}")
        return not selected
    results = Results.read(options.show) if options.show else measured(options, selected)
    if options.after:
        before = [targets.ratios(Results.read(path)) for path in options.after]
        results = Results({**results.record, "before": before})
    results.write(options.output / "results.json")
    report.write_tables(results, options.output)
    draw(options.output)
    print(f"\n{report.text(results)}\n")
    print(f"It took {results.record['about']['duration']}; all results are in {options.output}.")
    if options.record:
        record(options.output, RECORD)
    return 0


if __name__ == "__main__":
    sys.exit(main())

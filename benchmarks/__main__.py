"""``python -m benchmarks``: measure, and show, keep and record what was measured."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import about, report, targets
from benchmarks.cases import CORE, Case, cases
from benchmarks.lineup import Contestant, contestants
from benchmarks.results import Results
from benchmarks.rounds import Run
from distributed.tests.environments import ROOT, EnvironmentUnavailable, environment, run_in

#: What this project and the original both require, and what of it may matter.
BENEATH = ("tornado", "msgpack")

OUTPUT = ROOT / "build" / "bench"
RECORD = ROOT / "docs" / "performance"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, with less certainty")
    parser.add_argument("--only", default="", help="cases whose names begin so, by commas")
    parser.add_argument("--contestants", default="", help="contestants or libraries, by commas")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--pace", type=float, help="how much shorter than usual slices of time are")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory of what is written")
    parser.add_argument(
        "--record", action="store_true", help="replace what docs/performance.rst shows, too"
    )
    parser.add_argument(
        "--show", type=Path, metavar="RESULTS", help="measure nothing, but show an earlier run"
    )
    parser.add_argument(
        "--after",
        type=Path,
        nargs="+",
        default=[],
        metavar="RESULTS",
        help="runs that came before, whose ratios are to be shown beside those of this one",
    )
    parser.add_argument("--list", action="store_true", help="show the cases, and measure nothing")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    beginnings = tuple(options.only.split(","))
    return [case for case in cases(quick=options.quick) if case.name.startswith(beginnings)]


def chosen_contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    everybody = contestants()
    if not options.contestants:
        return everybody
    wanted = options.contestants.split(",")
    known = {each.name for each in everybody.values()} | {
        each.library for each in everybody.values()
    }
    if unknown := set(wanted) - known:
        sys.exit(f"Nobody is called {', '.join(sorted(unknown))}; there are {sorted(known)}.")
    return {
        name: each
        for name, each in everybody.items()
        if each.name in wanted or each.library in wanted
    }


def say(text: str) -> None:
    print(text, flush=True)


def draw(directory: Path) -> None:
    """Have the plots drawn by a Python that has matplotlib, if there can be one."""
    try:
        python = environment("bench-plots", ["matplotlib"], project=True)
    except EnvironmentUnavailable as error:
        say(f"There are no plots, for want of matplotlib: {error}")
        return
    argv = ["-m", "benchmarks.plots", str(directory / "results.json"), str(directory)]
    run_in(python, argv, timeout=120)


def measured(options: argparse.Namespace, selected: list[Case]) -> Results:
    """Measure these cases."""
    competing = chosen_contestants(options)
    rounds = options.rounds or (3 if options.quick else 7)
    pace = options.pace or (4 if options.quick else 1)
    run = Run(selected, competing, rounds, pace, say)
    say("making environments where they are missing")
    run.make_environments()
    load = os.getloadavg()[0]
    begin = time.monotonic()
    measurements = run.measure()
    known = about.machine() | {
        "load before": f"{load:.1f}",
        "rounds": str(rounds),
        "duration": f"{(time.monotonic() - begin) / 60:.1f} minutes",
    }
    for each in competing.values():
        if each.requirements and each.name == each.library:
            try:
                names = [*each.requirements, *(BENEATH if each.name in CORE else ())]
                known[each.title] = about.versions(each.python(), names)
            except EnvironmentUnavailable:
                known[each.title] = "could not be installed"
    titles = {each.name: each.title for each in contestants().values()}
    return Results({"about": known, "contestants": titles, "cases": measurements})


def main() -> int:
    options = arguments()
    selected = chosen_cases(options)
    if options.list or not selected:
        print("\n".join(case.name for case in selected) or f"No case begins with {options.only}.")
        return not selected
    results = Results.read(options.show) if options.show else measured(options, selected)
    if options.after:
        before = [targets.ratios(Results.read(path)) for path in options.after]
        results = Results({**results.record, "before": before})
    for directory in [options.output] + ([RECORD] if options.record else []):
        results.write(directory / "results.json")
        report.write_tables(results, directory)
        draw(directory)
    print(f"\n{report.text(results)}\n")
    print(f"It took {results.record['about']['duration']}; all results are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

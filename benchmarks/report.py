"""The tables: for the terminal, and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import targets
from benchmarks.cases import WORKERS
from benchmarks.results import Results, Series, Spread

HEADER = ["case", "contestant", "measure", "median", "middle half of rounds", "to the original"]

#: measure → its title, its unit, and the factor to that unit
MEASURES = {
    "rate": ("rate", "/s", 1.0),
    "one connection": ("rate over one connection", "/s", 1.0),
    "handlers": ("rate with many handlers", "/s", 1.0),
    "called": ("rate after many calls", "/s", 1.0),
    "idle": ("rate beside idle connections", "/s", 1.0),
    "large": ("large values beside small calls", "/s", 1.0),
    "p50": ("time, p50", "µs", 1e6),
    "p99": ("time, p99", "µs", 1e6),
    "client cpu": ("CPU time of the client, each", "µs", 1e6),
    "server cpu": ("CPU time of the server, each", "µs", 1e6),
    "client receiving": ("time of the client in recv", "µs", 1e6),
    "client work": ("time of the client before send", "µs", 1e6),
    "client sending": ("time of the client in send", "µs", 1e6),
    "server receiving": ("time of the server in recv", "µs", 1e6),
    "server work": ("time of the server before send", "µs", 1e6),
    "server sending": ("time of the server in send", "µs", 1e6),
    "seconds": ("time", "ms", 1e3),
    "added": ("memory that it adds", "MB", 1e-6),
    "total": ("memory in total", "MB", 1e-6),
    "both": ("memory of both sides, each", "kB", 1e-3),
    "server": ("memory of the server, each", "kB", 1e-3),
    "client": ("memory of the client, each", "kB", 1e-3),
}

#: contestant → the contestant that it is compared with, unless that is the original
_COMPARED_WITH = {"ours uvloop": "original uvloop", **dict.fromkeys(WORKERS, WORKERS[0])}

#: Measures that the terminal shows; the files show all.
BRIEF = {"rate", "one connection", "handlers", "called", "idle", "seconds"}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def case_rows(results: Results, *, details: bool) -> Iterator[list[str]]:
    """Yield a row for each measurement; without *details*, only rates where there are any."""
    for case, entries in results.cases.items():
        for contestant, entry in entries.items():
            title = results.title(contestant)
            measures = [name for name in MEASURES if entry["rounds"] and name in entry["rounds"][0]]
            if not details and "rate" in measures:
                measures = [name for name in measures if name in BRIEF]
            for measure in measures:
                series = Series(case, contestant, measure)
                spread = results.spread(series)
                assert spread is not None
                like = _COMPARED_WITH.get(contestant, "original")
                what, unit, factor = MEASURES[measure]
                yield [
                    case,
                    title,
                    f"{what}, {unit}",
                    _number(spread.median * factor),
                    f"{_number(spread.low * factor)} to {_number(spread.high * factor)}",
                    _ratio(results.ratio(series, Series(case, like, measure))),
                ]
            if failure := results.failure(Series(case, contestant)):
                yield [case, title, failure, "", "", ""]


ANATOMY_HEADER = [
    "",
    "contestant",
    "total",
    *(f"{side}: {what}" for side in ("client", "server") for what in ("work", "recv", "send")),
]


def anatomy_rows(results: Results) -> Iterator[list[str]]:
    """Yield rows for `ANATOMY_HEADER`: the parts of the time of a call, in µs."""
    parts = ("work", "receiving", "sending")
    measures = ["p50", *(f"{side} {part}" for side in ("client", "server") for part in parts)]
    for case, entries in results.cases.items():
        what, _, name = case.partition("/")
        for contestant in entries if what == "anatomy" else ():
            spreads = [results.spread(Series(case, contestant, measure)) for measure in measures]
            times = [_number(1e6 * spread.median) if spread else "" for spread in spreads]
            yield [name.rpartition("/")[0], results.title(contestant), *times]


WORKLOADS_HEADER = ["workload", "contestant", "speed", "middle half of rounds"]


def workload_rows(results: Results) -> Iterator[list[str]]:
    """Yield rows for `WORKLOADS_HEADER`: speeds, where dask as released has 1."""
    for case, entries in results.cases.items():
        kind, _, name = case.partition("/")
        for contestant in entries if kind == "workloads" else ():
            title = results.title(contestant)
            ratio = results.ratio(Series(case, contestant), Series(case, WORKERS[0]))
            if ratio:
                spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
                yield [name, title, f"{ratio.median:.2f}", spread]
            else:
                why = results.failure(Series(case, contestant))
                yield [name, title, why or f"{results.title(WORKERS[0])} was not measured", ""]


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}" if ratio else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as columns of text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def text(results: Results) -> str:
    """Return the tables for the terminal."""
    cases = table(HEADER, list(case_rows(results, details=False)))
    workloads = list(workload_rows(results))
    if workloads:
        cases += f"\n\nWorkloads\n\n{table(WORKLOADS_HEADER, workloads)}"
    return f"{cases}\n\nTargets\n\n{table(targets.HEADER, targets.rows(results))}"


def write_tables(results: Results, directory: Path) -> None:
    """Write the tables as CSV files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, header, rows in (
        ("targets", targets.HEADER, targets.rows(results)),
        ("anatomy", ANATOMY_HEADER, list(anatomy_rows(results))),
        ("workloads", WORKLOADS_HEADER, list(workload_rows(results))),
        ("cases", HEADER, list(case_rows(results, details=True))),
        ("machine", ["what", "value"], [list(item) for item in results.record["about"].items()]),
    ):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])

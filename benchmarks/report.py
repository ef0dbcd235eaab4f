"""The tables: for the terminal, and as files for the documentation."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import targets
from benchmarks.results import Of, Results, Spread

HEADER = ["case", "contestant", "measure", "median", "middle half of rounds", "to the original"]

#: measure → what it is called, how it is counted, the factor to that unit
MEASURES = {
    "rate": ("rate", "/s", 1.0),
    "handlers": ("rate with handlers", "/s", 1.0),
    "called": ("rate after calls", "/s", 1.0),
    "idle": ("rate beside idle connections", "/s", 1.0),
    "p50": ("time, p50", "µs", 1e6),
    "p99": ("time, p99", "µs", 1e6),
    "client cpu": ("CPU of the client, each", "µs", 1e6),
    "server cpu": ("CPU of the server, each", "µs", 1e6),
    "client receiving": ("time of the client in recv", "µs", 1e6),
    "client work": ("time of the client before send", "µs", 1e6),
    "client sending": ("time of the client in send", "µs", 1e6),
    "server receiving": ("time of the server in recv", "µs", 1e6),
    "server work": ("time of the server before send", "µs", 1e6),
    "server sending": ("time of the server in send", "µs", 1e6),
    "seconds": ("time", "ms", 1e3),
    "added": ("memory that it adds", "MB", 1e-6),
    "total": ("memory in all", "MB", 1e-6),
    "both": ("memory of both, each", "kB", 1e-3),
    "server": ("memory of the server, each", "kB", 1e-3),
    "client": ("memory of the client, each", "kB", 1e-3),
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def case_rows(results: Results, *, details: bool) -> Iterator[list[str]]:
    """All that was measured; without *details* only the rate where there is one."""
    for case, entries in results.cases.items():
        for contestant, entry in entries.items():
            title = results.title(contestant)
            measures = [name for name in MEASURES if entry["rounds"] and name in entry["rounds"][0]]
            for measure in measures if details or "rate" not in measures else ["rate"]:
                of = Of(case, contestant, measure)
                spread = results.spread(of)
                assert spread is not None
                like = "original uvloop" if contestant == "ours uvloop" else "original"
                what, unit, factor = MEASURES[measure]
                yield [
                    case,
                    title,
                    f"{what}, {unit}",
                    _number(spread.median * factor),
                    f"{_number(spread.low * factor)} to {_number(spread.high * factor)}",
                    _ratio(results.ratio(of, Of(case, like, measure))),
                ]
            if failure := results.failure(Of(case, contestant)):
                yield [case, title, failure, "", "", ""]


ANATOMY_HEADER = [
    "",
    "of",
    "in all",
    *(f"{side}: {what}" for side in ("client", "server") for what in ("work", "recv", "send")),
]


def anatomy_rows(results: Results) -> Iterator[list[str]]:
    """Where the time of a call goes, in µs; lines below `ANATOMY_HEADER`."""
    parts = ("work", "receiving", "sending")
    measures = ["p50", *(f"{side} {part}" for side in ("client", "server") for part in parts)]
    for case, entries in results.cases.items():
        what, _, name = case.partition("/")
        for contestant in entries if what == "anatomy" else ():
            spreads = [results.spread(Of(case, contestant, measure)) for measure in measures]
            times = [_number(1e6 * spread.median) if spread else "" for spread in spreads]
            yield [name.rpartition("/")[0], results.title(contestant), *times]


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}" if ratio else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def text(results: Results) -> str:
    """Everything that a person at a terminal wants to see."""
    return "\n\n".join(
        [
            table(HEADER, list(case_rows(results, details=False))),
            "Calls that cost the same, whatever there is besides",
            table(targets.FLAT_HEADER, targets.flat_rows(results)),
            "Targets",
            table(targets.HEADER, targets.target_rows(results)),
        ]
    )


def write_tables(results: Results, directory: Path) -> None:
    """Write what the documentation includes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, header, rows in (
        ("targets", targets.HEADER, targets.target_rows(results)),
        ("flat", targets.FLAT_HEADER, targets.flat_rows(results)),
        ("anatomy", ANATOMY_HEADER, list(anatomy_rows(results))),
        ("cases", HEADER, list(case_rows(results, details=True))),
        ("machine", ["what", "which"], [list(item) for item in results.record["about"].items()]),
    ):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])

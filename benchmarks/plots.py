"""The plots: ``python -m benchmarks.plots RESULTS DIRECTORY``, where matplotlib is installed.

Series that a run did not measure are left out, and so are plots without any series.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from benchmarks.cases import CORE, SIZES, TRANSPORTS, WORKERS
from benchmarks.results import Results, Series, Spread

COLORS = {
    "ours": "#1b6ca8",
    "ours uvloop": "#1b6ca8",
    "original": "#e08a1e",
    "original uvloop": "#e08a1e",
    "sockets": "#555555",
    "iostream": "#555555",
    "memory": "#555555",
}
PEER = "#7d9a4f"

#: contestant of a workload → its color and its marker
MARKS = {
    "dask": ("#e08a1e", "o"),
    "dask on core": ("#1b6ca8", "o"),
    "dask on core unix": ("#1b6ca8", "s"),
    "dask on core shared": ("#1b6ca8", "D"),
    "ray": (PEER, "o"),
    "frisky": (PEER, "s"),
}

#: A fixed salt keeps the ids in the files equal from run to run; one font keeps the files small.
SETTINGS = {
    "svg.hashsalt": "benchmarks",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
}

Dot = tuple[str, Spread, str]


def _dots(figure: Figure, dots: Sequence[Dot], label: str) -> Any:
    """Draw a row for each dot, with its spread, on a logarithmic scale."""
    figure.set_size_inches(7.5, 0.8 + 0.24 * len(dots))
    axes = figure.subplots()
    for place, (_, spread, color) in enumerate(dots):
        _dot(axes, place, spread, color)
    axes.set_yticks(range(len(dots)), [name for name, _, _ in dots])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    return axes


def _dot(axes: Any, place: int, spread: Spread, color: str, fill: str = "full") -> None:
    error = [[spread.median - spread.low], [spread.high - spread.median]]
    axes.errorbar(spread.median, place, xerr=error, color=color, fmt="o", fillstyle=fill, capsize=2)


def sequential(results: Results, figure: Figure) -> bool:
    """Draw the sequential calls of each contestant."""
    two, one = "sequential/tcp", "sequential on one core/tcp"
    found = [
        (name, spread)
        for name in results.cases.get(two, {})
        if (spread := results.spread(Series(two, name)))
    ]
    found.sort(key=lambda item: -item[1].median)
    dots = [(results.title(name), spread, COLORS.get(name, PEER)) for name, spread in found]
    if dots:
        label = "sequential small calls per second (tcp); hollow: both sides on one core"
        axes = _dots(figure, dots, label)
        for place, (name, _) in enumerate(found):
            if spread := results.spread(Series(one, name)):
                _dot(axes, place, spread, COLORS.get(name, PEER), "none")
    return bool(dots)


def transports(results: Results, figure: Figure) -> bool:
    """Draw the sequential calls over each transport."""
    dots = [
        (f"{transport}, {results.title(name)}", spread, COLORS[name])
        for transport in TRANSPORTS
        for name in CORE
        if (spread := results.spread(Series(f"sequential/{transport}", name)))
    ]
    if dots:
        _dots(figure, dots, "sequential small calls per second")
    return bool(dots)


def _lines(
    results: Results,
    axes: Any,
    case: str,
    places: Mapping[Any, float],
    contestants: Sequence[str],
    linestyle: str,
    scale: Callable[[float], float] = lambda x: 1.0,
    suffix: str = "",
) -> bool:
    """Draw a line through the medians of each contestant, in a band as wide as the spread.

    *case* is formatted with each key of *places*, whose value is the x coordinate; the y coordinate
    is the measured rate times ``scale(x)``.
    """
    drawn = False
    for name in contestants:
        points = [
            (x, *(scale(x) * y for y in (spread.low, spread.median, spread.high)))
            for key, x in places.items()
            if (spread := results.spread(Series(case.format(key), name)))
        ]
        if not points:
            continue
        drawn = True
        xs, lows, medians, highs = zip(*points, strict=True)
        style = {"color": COLORS[name], "marker": "o", "markersize": 3, "linestyle": linestyle}
        axes.plot(xs, medians, label=results.title(name) + suffix, **style)
        axes.fill_between(xs, lows, highs, color=COLORS[name], alpha=0.2)
    return drawn


def concurrent(results: Results, figure: Figure) -> bool:
    """Draw the calls per second by the number of concurrent callers."""
    figure.set_size_inches(7.5, 3.5)
    axes = figure.subplots()
    places = {callers: float(callers) for callers in (1, 8, 64, 512)}
    drawn = [
        _lines(
            results,
            axes,
            f"concurrent/{{}} {how}/tcp",
            places,
            CORE,
            linestyle,
            suffix=f", {how}",
        )
        for how, linestyle in (("pooled", "-"), ("one connection", ":"))
    ]
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places.values()), list(map(str, places)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concurrent callers")
    axes.set_ylabel("small calls per second (tcp)")
    axes.grid(alpha=0.3)
    if any(drawn):
        axes.legend()
    return any(drawn)


def payloads(results: Results, figure: Figure) -> bool:
    """Draw the bytes per second by the size of the payload."""
    figure.set_size_inches(7.5, 3.8)
    drawn = []
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("bytes", "array"), strict=True):
        drawn += [
            _lines(
                results,
                axes,
                f"payload/{kind} {{}}/tcp",
                SIZES,
                contestants,
                linestyle,
                scale=lambda x: 2 * x / 1e6,
            )
            for contestants, linestyle in ((CORE, "-"), (("sockets",), "--"), (("memory",), ":"))
        ]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_title(f"as {kind}", fontsize=9)
        axes.set_xlabel("bytes each way (tcp)")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("MB per second, both ways together")
    if any(drawn):
        figure.axes[1].legend()
    return any(drawn)


def workloads(results: Results, figure: Figure) -> bool:
    """Draw the speed of each contestant in each workload, relative to dask as released."""
    names = [case for case in results.cases if case.startswith("workloads/")]
    labels = [case.partition("/")[2].replace(", ", ",\n") for case in names]
    figure.set_size_inches(7.5, 1.2 + 0.8 * len(names))
    axes = figure.subplots()
    drawn = False
    for order, contestant in enumerate(WORKERS):
        points = [
            (spread, place + (order - len(WORKERS) / 2) * 0.12)
            for place, case in enumerate(names)
            if (spread := results.ratio(Series(case, contestant), Series(case, WORKERS[0])))
        ]
        if not points:
            continue
        drawn = True
        color, marker = MARKS[contestant]
        spreads, places = zip(*points, strict=True)
        medians = [spread.median for spread in spreads]
        lows = [spread.median - spread.low for spread in spreads]
        highs = [spread.high - spread.median for spread in spreads]
        axes.errorbar(
            medians,
            places,
            xerr=[lows, highs],
            color=color,
            fmt=marker,
            fillstyle="none" if contestant == "dask on core unix" else "full",
            markersize=5,
            capsize=2,
            label=results.title(contestant),
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.set_xlabel("speed (dask as released = 1)")
    axes.grid(alpha=0.3)
    if drawn:
        figure.legend(loc="outside upper center", ncols=3)
    return drawn


PLOTS = {plot.__name__: plot for plot in (sequential, transports, concurrent, payloads, workloads)}


def draw(results: Results, directory: Path) -> None:
    """Write the plots as SVG files."""
    for name, plot in PLOTS.items():
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(layout="constrained")
            if plot(results, figure):
                figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Results.read(Path(sys.argv[1])), Path(sys.argv[2]))

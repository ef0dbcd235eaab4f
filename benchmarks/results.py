"""The measurements of a run, and their medians, spreads and ratios.

A ratio is computed for each round, in which both sides were measured one after the other; the
result is the median over the rounds.  The spread is the range of the middle half of the rounds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Series:
    """A key to the results of one contestant in one case, by one measure."""

    case: str
    contestant: str
    measure: str = "rate"


class Results:
    """The record of a run, as it is written to a file and read back.

    Parameters
    ----------
    record : Mapping
        ``"cases"`` holds the `benchmarks.rounds.Measurements`, ``"contestants"`` their titles,
        ``"about"`` the machine and the versions, and ``"before"``, if present, the ratios of
        earlier runs.
    """

    def __init__(self, record: Mapping[str, Any]):
        self.record = _rounded(record)
        self.cases: Mapping[str, Mapping[str, Mapping[str, Any]]] = self.record["cases"]
        self.before: Sequence[Mapping[str, float]] = self.record.get("before", [])

    @classmethod
    def read(cls, path: Path, *others: Path) -> Results:
        """Return the results of a run, with the cases of other runs in addition or instead."""
        record, *more = (json.loads(each.read_text()) for each in (path, *others))
        for other in more:
            record["cases"] |= other["cases"]
            record["contestants"] |= other["contestants"]
        return cls(record)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record, indent=1) + "\n")

    def title(self, contestant: str) -> str:
        title: str = self.record["contestants"][contestant]
        return title

    def failure(self, series: Series) -> str:
        """Return why a series is missing or incomplete; an empty string if it is complete."""
        entry = self.cases.get(series.case, {}).get(series.contestant)
        if entry is None:
            return "not measured"
        return f"failed: {entry['failed']}" if "failed" in entry else ""

    def by_round(self, series: Series) -> dict[int, float]:
        """Return the value of each round that has one."""
        entry = self.cases.get(series.case, {}).get(series.contestant, {"rounds": []})
        measure = series.measure
        return {each["round"]: each[measure] for each in entry["rounds"] if measure in each}

    def spread(self, series: Series) -> Spread | None:
        values = list(self.by_round(series).values())
        return Spread.of(values) if values else None

    def ratio(self, one: Series, other: Series) -> Spread | None:
        """Return *one* divided by *other*, over the rounds in which both were measured."""
        numerators, denominators = self.by_round(one), self.by_round(other)
        ratios = [
            value / denominators[number]
            for number, value in numerators.items()
            if denominators.get(number)
        ]
        return Spread.of(ratios) if ratios else None


def _rounded(value: Any) -> Any:
    """Return *value* with five significant digits in each float."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value

"""What the rounds gave, and what follows: medians, their spread, and ratios.

A ratio is taken within each round, where both sides were measured one after the other, and the
median over rounds comes last. The spread is where the middle half of the rounds lies.
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
class Of:
    """Whose result is meant: in this case, of this contestant, by this measure."""

    case: str
    contestant: str
    measure: str = "rate"


class Results:
    """The record of a run: what is written to a file, and read from it.

    Parameters
    ----------
    record : Mapping
        ``"cases"`` are the `benchmarks.rounds.Measurements`, ``"before"``, if it is there, the
        ratios of runs that came before; the rest tells of the run.
    """

    def __init__(self, record: Mapping[str, Any]):
        self.record = _shortened(record)
        self.cases: Mapping[str, Mapping[str, Mapping[str, Any]]] = self.record["cases"]
        self.before: Sequence[Mapping[str, float]] = self.record.get("before", [])

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record, indent=1) + "\n")

    def title(self, contestant: str) -> str:
        title: str = self.record["contestants"][contestant]
        return title

    def failure(self, of: Of) -> str:
        """Why there is no result of all rounds, or nothing if there is."""
        entry = self.cases.get(of.case, {}).get(of.contestant)
        if entry is None:
            return "not measured"
        return f"failed: {entry['failed']}" if "failed" in entry else ""

    def by_round(self, of: Of) -> dict[int, float]:
        """The values of each round that has one."""
        entry = self.cases.get(of.case, {}).get(of.contestant, {"rounds": []})
        return {each["round"]: each[of.measure] for each in entry["rounds"] if of.measure in each}

    def spread(self, of: Of) -> Spread | None:
        values = list(self.by_round(of).values())
        return Spread.of(values) if values else None

    def ratio(self, one: Of, other: Of) -> Spread | None:
        """How many times the other the one is, over the rounds in which both were measured."""
        mine, others = self.by_round(one), self.by_round(other)
        ratios = [mine[number] / others[number] for number in mine if others.get(number)]
        return Spread.of(ratios) if ratios else None


def _shortened(value: Any) -> Any:
    """Without digits that mean nothing, for a file that people keep."""
    if isinstance(value, Mapping):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value

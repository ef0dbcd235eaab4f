"""What this project is to reach, as ratios within one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import CORE, PEERS
from benchmarks.results import Of, Results, Spread

#: How much of its speed a call keeps where it is to cost the same.
FLAT = 0.9


@dataclass(frozen=True)
class Target:
    title: str
    one: Of
    other: Of
    bound: float
    at_most: bool = False  #: whether less is better

    def met(self, ratio: Spread) -> bool:
        """Whether this is enough."""
        return ratio.median <= self.bound if self.at_most else ratio.median >= self.bound

    def against(self, results: Results) -> str:
        """What it is compared with."""
        transport = "" if self.other.case == self.one.case else self.other.case.rpartition("/")[2]
        return ", ".join(filter(None, [results.title(self.other.contestant), transport]))

    def row(self, results: Results) -> list[str]:
        """One line of a table that begins with `HEADER`."""
        against = self.against(results)
        wanted = f"{'≤' if self.at_most else '≥'} {self.bound:g}"
        ratio = results.ratio(self.one, self.other)
        if ratio is None:
            why = results.failure(self.one) or results.failure(self.other)
            return [self.title, against, wanted, why, "", "—"]
        return [
            self.title,
            against,
            wanted,
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f} to {ratio.high:.2f}",
            "yes" if self.met(ratio) else "no",
        ]


HEADER = ["target", "compared with", "wanted", "measured", "middle half of rounds", "met"]


def _to_original(title: str, case: str, bound: float, measure: str = "rate") -> Target:
    at_most = measure != "rate"
    return Target(title, Of(case, "ours", measure), Of(case, "original", measure), bound, at_most)


def _all() -> Iterator[Target]:
    yield _to_original("sequential small calls/s", "sequential/tcp", 2.3)
    yield _to_original("the same, both sides on one core", "sequential on one core/tcp", 2.3)
    yield _to_original("64 concurrent callers, calls/s", "concurrent/64 pooled/tcp", 2.5)
    for kind in ("bytes", "array"):
        yield _to_original(f"10 kB of {kind} each way, calls/s", f"payload/{kind} 10kB/tcp", 2.0)
    yield _to_original("100 kB array each way, calls/s", "payload/array 100kB/tcp", 2.5)
    yield _to_original("1 MB array each way", "payload/array 1MB/tcp", 1.8)
    large = Of("payload/array 100MB/tcp", "ours")
    yield Target("100 MB array each way", large, Of(large.case, "sockets"), 0.95)
    yield Target(
        "100 MB array each way, unix",
        Of("payload/array 100MB/unix", "ours"),
        Of(large.case, "original"),
        1.5,
    )
    yield _to_original("BatchedSend messages/s", "batched/tcp", 1.5)
    yield _to_original("new connections/s", "connections/1 at once/tcp", 2.0)
    yield _to_original(
        "memory per idle connection, both sides", "memory/per idle connection/tcp", 1.0, "both"
    )
    yield _to_original("import distributed.core, time", "import/distributed.core", 0.35, "seconds")
    yield _to_original("import distributed.core, memory", "import/distributed.core", 0.6, "added")
    mine = Of("sequential/tcp", "ours")
    for peer in PEERS:
        yield Target("sequential small calls/s", mine, Of(mine.case, peer), 1.0)


TARGETS = list(_all())


def target_rows(results: Results) -> list[list[str]]:
    return [target.row(results) for target in TARGETS]


def flat_rows(results: Results) -> list[list[str]]:
    """Whether calls cost the same whatever there is besides; for the original too."""
    rows = []
    for library in CORE:
        usual = Of("flat/tcp", library)
        for measure, what in (
            ("handlers", "with many handlers"),
            ("called", "after many calls, too"),
            ("idle", "beside many idle connections, too"),
        ):
            title = f"{results.title(library)}, {what}"
            target = Target(title, Of(usual.case, library, measure), usual, FLAT)
            title, _, *rest = target.row(results)
            rows.append([title, "at first", *rest])
    return rows

"""What this project is to reach, as ratios within one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.cases import CORE, PEERS, TRANSPORTS
from benchmarks.results import Of, Results

#: How much of its speed a call keeps where it is to cost the same.
FLAT = 0.9


@dataclass(frozen=True)
class Target:
    title: str
    one: Of
    other: Of
    bound: float
    at_most: bool = False  #: whether less is better

    @property
    def key(self) -> str:
        """What it is called in the record of a run that comes after."""
        return f"{self.title}, {self.other.contestant}"

    def met(self, ratio: float) -> bool:
        """Whether this is enough."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound

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
            return [self.title, against, wanted, why, "", "", "—"]
        before = [run[self.key] for run in results.before if self.key in run]
        met = [self.met(each) for each in (ratio.median, *before)]
        return [
            self.title,
            against,
            wanted,
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f} to {ratio.high:.2f}",
            "; ".join(f"{each:.2f}" for each in before),
            "yes" if all(met) else f"{sum(met)} of {len(met)}" if any(met) else "no",
        ]


FLAT_HEADER = ["target", "compared with", "wanted", "measured", "middle half of rounds", "met"]
HEADER = [*FLAT_HEADER[:-1], "runs before", "met"]


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


def ratios(results: Results) -> dict[str, float]:
    """The ratio of each target that was measured."""
    found = ((target.key, results.ratio(target.one, target.other)) for target in TARGETS)
    return {key: ratio.median for key, ratio in found if ratio}


def target_rows(results: Results) -> list[list[str]]:
    return [target.row(results) for target in TARGETS]


def flat_rows(results: Results) -> list[list[str]]:
    """Whether calls cost the same whatever there is besides; lines below `FLAT_HEADER`."""
    rows = []
    for usual in (
        *(Of("flat/tcp", library) for library in CORE),
        *(Of(f"flat/{transport}", "ours") for transport in TRANSPORTS[1:]),
    ):
        if usual.case not in results.cases:
            continue
        where = usual.case.rpartition("/")[2]
        for measure, what in (
            ("handlers", "with many handlers"),
            ("called", "after many calls, too"),
            ("idle", "beside many idle connections, too"),
        ):
            title = f"{results.title(usual.contestant)}, {where}, {what}"
            target = Target(title, replace(usual, measure=measure), usual, FLAT)
            title, _, *rest, met = target.row(results)
            rows.append([title, "at first", *rest[:-1], met])
    return rows

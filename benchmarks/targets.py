"""The targets of this project: ratios that are measured within one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.cases import LIBRARIES, PEERS, WORKERS
from benchmarks.results import Results, Series

#: Minimum share of its speed that a call keeps under `benchmarks.rounds.LOADS` or after a burst.
FLAT = 0.9

#: How a list of floats is sent: the names in the cases.
FLOATS = ("wrapped", "plain")

HEADER = ["target", "compared with", "wanted", "measured", "middle half of rounds"]
HEADER += ["earlier runs", "met"]


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two series."""

    title: str
    one: Series
    other: Series
    bound: float
    at_most: bool = False  #: whether the bound is a maximum

    @property
    def key(self) -> str:
        """The name of this target among the ratios of an earlier run."""
        return f"{self.title}, {self.other.contestant}"

    @property
    def wanted(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def against(self, results: Results) -> str:
        """Return the title of the series that the target compares with."""
        title = results.title(self.other.contestant)
        if self.other.case != self.one.case:
            return f"{title}, {self.other.case.rpartition('/')[2]}"
        return title

    def row(self, results: Results) -> list[str]:
        """Return a row of the table with the columns `HEADER`."""
        described = [self.title, self.against(results), self.wanted]
        ratio = results.ratio(self.one, self.other)
        if ratio is None:
            why = results.failure(self.one) or results.failure(self.other)
            return [*described, why, "", "", "—"]
        before = [run[self.key] for run in results.before if self.key in run]
        met = [self.met(each) for each in (ratio.median, *before)]
        return [
            *described,
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f} to {ratio.high:.2f}",
            "; ".join(f"{each:.2f}" for each in before),
            "yes" if all(met) else f"{sum(met)} of {len(met)}" if any(met) else "no",
        ]


def _to_original(title: str, case: str, bound: float, measure: str = "rate") -> Target:
    ours, original = (Series(case, name, measure) for name in ("ours", "original"))
    return Target(title, ours, original, bound, at_most=measure != "rate")


def _all() -> Iterator[Target]:
    small = "sequential small calls/s"
    yield _to_original(small, "sequential/tcp", 2.3)
    yield _to_original(f"{small}, both sides on one core", "sequential on one core/tcp", 2.3)
    yield _to_original("64 concurrent callers, calls/s", "concurrent/64 pooled/tcp", 2.5)
    for kind in ("bytes", "array"):
        yield _to_original(f"10 kB of {kind} each way, calls/s", f"payload/{kind} 10kB/tcp", 2.0)
    yield _to_original("100 kB array each way, calls/s", "payload/array 100kB/tcp", 2.5)
    yield _to_original("1 MB array each way", "payload/array 1MB/tcp", 1.8)
    large = Series("payload/array 100MB/tcp", "ours")
    yield Target("100 MB array each way", large, Series(large.case, "sockets"), 0.95)
    over_unix, original = Series("payload/array 100MB/unix", "ours"), Series(large.case, "original")
    yield Target("100 MB array each way, unix", over_unix, original, 1.5)
    by_descriptor = Series("shared memory/array 100MB/unix", "ours")
    title = "100 MB array in shared memory each way"
    yield Target(title, by_descriptor, Series("shared memory/array 1MB/unix", "ours"), 0.9)
    yield Target(title, by_descriptor, original, 50.0)
    wrapped, plain = (Series(f"messages/100k floats, {how}/tcp", "ours") for how in FLOATS)
    yield Target("100,000 floats in to_serialize", wrapped, plain, 0.33)
    after = Series("after a burst/array 1MB/tcp", "ours")
    title = "1 MB array each way, after a burst"
    yield Target(title, after, replace(after, measure="one connection"), FLAT)
    yield _to_original(title, after.case, 1.8)
    yield _to_original("100 MB array each way, after a burst", "after a burst/array 100MB/tcp", 1.1)
    for size in ("1MB", "100MB"):
        yield _to_original(
            f"first {size[:-2]} MB array on a connection", f"cold/array {size}/tcp", 1.0
        )
    yield _to_original("BatchedSend messages/s", "batched/tcp", 1.5)
    for count in (1, 10, 100, 1_000):
        streams = f"{count:,} stream{'s' * (count > 1)}"
        title = f"messages/s over {streams} at once, 5 of each per iteration"
        yield _to_original(title, f"batched/{count} at once/tcp", 1.0)
    yield _to_original(
        "1,000 calls/s beside 100 MB of lz4, p99", "small calls beside 100MB of lz4/tcp", 0.5, "p99"
    )
    streamed, called = Series("streamed/tcp", "ours"), Series("sequential/tcp", "ours")
    yield Target("small items of a stream/s", streamed, called, 5.0)
    yield _to_original("new connections/s", "connections/1 at once/tcp", 2.0)
    for transport in ("tcp", "ws", "inproc"):
        title = "memory per idle connection, both sides"
        if transport != "tcp":
            title += f", {transport}"
        yield _to_original(title, f"memory/per idle connection/{transport}", 1.0, "both")
    yield _to_original("import distributed.core, time", "import/distributed.core", 0.35, "seconds")
    yield _to_original("import distributed.core, memory", "import/distributed.core", 0.6, "added")
    yield from _of_dask()
    mine = Series("sequential/tcp", "ours")
    for peer in PEERS:
        yield Target(small, mine, Series(mine.case, peer), 1.0)
    unloaded = Series("flat/tcp", "ours")
    for measure, load in (
        ("handlers", "with many handlers"),
        ("called", "after many calls"),
        ("idle", "beside many idle connections"),
    ):
        loaded = Series(unloaded.case, unloaded.contestant, measure)
        yield Target(f"{small}, {load}", loaded, unloaded, FLAT)


def _of_dask() -> Iterator[Target]:
    for title, case, bound in (
        ("dask, 5,000 tiny tasks, threads", "dask/5,000 tiny tasks, threads/inproc", 1.4),
        ("dask, 1 GB between workers", "dask/1 GB between workers/tcp", 2.0),
    ):
        yield Target(title, Series(case, "dask on core"), Series(case, "dask"), bound)
    released, grafted, *others = [name for name in WORKERS if name.startswith("dask")]
    for title, case, bound in (
        ("dask, 5,000 tiny tasks, processes", "5,000 tiny tasks", 2.2),
        ("dask, transpose and add", "transpose and add, 1 GB", 1.0),
        ("dask, dataframe shuffle", "dataframe shuffle, 200 MB", 1.0),
    ):
        for name in (grafted, *others):
            how = name.removeprefix(grafted)
            series = Series(f"workloads/{case}", name)
            full_title = f"{title},{how}" if how else title
            yield Target(full_title, series, Series(series.case, released), bound)

    held = "memory/256 MB array on 4 workers"
    shared = Series(held, "dask on core shared", "added")
    for other, bound in ((released, 0.4), ("ray", 1.1)):
        title = "256 MB array on 4 workers, memory that it adds"
        yield Target(title, shared, replace(shared, contestant=other), bound, at_most=True)
    total = replace(shared, measure="total")
    title = "256 MB array on 4 workers, memory in total"
    yield Target(title, total, replace(total, contestant="ray"), 1.0, at_most=True)


def _of_libraries() -> Iterator[Target]:
    for case in ("libraries/sequential/tcp", "libraries/sequential on one core/tcp"):
        title = "sequential small calls/s"
        if "one core" in case:
            title += ", both sides on one core"
        for library in LIBRARIES:
            yield Target(title, Series(case, "ours"), Series(case, library), 1.0)


TARGETS = list(_all())

#: The targets of the table that is made on request.
LIBRARY_TARGETS = list(_of_libraries())


def chosen(results: Results) -> list[Target]:
    """Return the targets of the table that a run measured."""
    return LIBRARY_TARGETS if results.record.get("table") == "libraries" else TARGETS


def ratios(results: Results) -> dict[str, float]:
    """Return the ratio of each target that was measured, by its key."""
    found = ((target.key, results.ratio(target.one, target.other)) for target in chosen(results))
    return {key: ratio.median for key, ratio in found if ratio}


def rows(results: Results) -> list[list[str]]:
    return [target.row(results) for target in chosen(results)]

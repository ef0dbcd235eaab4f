"""A run: each round measures all cases once, so that other load on the machine affects all alike.

In each round the contestants are measured one after the other, in a slice of time each; every
second round has the reverse order.  A contestant's processes are stopped by SIGSTOP while others
are measured, and restarted for each round, since the speed of a process depends a little on
chance (the addresses of its memory, for example).  A contestant that fails in a case skips that
case in the later rounds, and still takes part in the others.

After each case of each round the measurements can be saved, so that a run that was interrupted
continues with the next case.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.lineup import Contestant
from benchmarks.processes import ContestantFailed, Pair
from distributed.graft import GraftError
from distributed.tests.environments import ROOT, EnvironmentUnavailable, run_in

#: Number of idle connections whose memory is measured, and number of those opened before them.
#: The first connections load modules and caches, which are not measured.
MEASURED_CONNECTIONS, FIRST_CONNECTIONS = 1_000, 20

#: Loads that must not make a call slower: measure → the command that adds the load, its count.
LOADS = {
    "handlers": ("add_handlers", 1_000),
    "called": ("call_many", 100_000),
    "idle": ("open_idle", 5_000),
}

#: Seconds before a command times out, on top of its expected duration.
TIMEOUT_MARGIN = 60.0

#: Seconds before a program on a cluster times out, together with the start of the cluster.
CLUSTER_TIMEOUT = 300.0

#: Seconds that a measurement takes besides its slices on an idle machine, by `Case.how`, and for a
#: contestant whose processes are restarted for each slice.  Only for `Run.expected_seconds`.
OVERHEAD = {"slice": 0.3, "cluster": 12.0, "memory": 3.0, "import": 2.0, "flat": 25.0}
RESTART = 8.0

#: Number of fresh interpreters per round in which the import is measured.
IMPORTS = 5

IMPORT = """
    import json, re, time
    def peak():
        with open("/proc/self/status") as file:
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
    bare = peak()
    begin = time.perf_counter()
    import distributed.core
    seconds = time.perf_counter() - begin
    total = peak()
    print(json.dumps({"seconds": seconds, "added": total - bare, "total": total}))
"""

#: case → contestant → {"rounds": [{"round": number, …}, …], "failed": reason (only if it failed)}
Measurements = dict[str, dict[str, dict[str, Any]]]


class Run:
    """One run of some cases by some contestants.

    Parameters
    ----------
    cases : sequence of Case
    contestants : dict
        The contestants that take part, by name.
    rounds : int
        Number of rounds.
    pace : float
        Divisor of the duration of each slice.
    say : callable
        Called with a line of text for each step.
    save : callable, optional
        Called with `progress` after each case of each round.
    progress : dict, optional
        The progress of an interrupted run with the same arguments, which this run continues.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        contestants: dict[str, Contestant],
        rounds: int,
        pace: float,
        say: Callable[[str], None],
        save: Callable[[dict[str, Any]], None] = lambda progress: None,
        progress: dict[str, Any] | None = None,
    ):
        self.cases = cases
        self.contestants = contestants
        self.rounds = rounds
        self.pace = pace
        self.say = say
        self.measurements: Measurements = {
            case.name: {name: {"rounds": []} for name in case.contestants if name in contestants}
            for case in cases
        }
        self.save = save
        # the pairs of round and case that are measured
        self._finished: set[tuple[int, str]] = set()
        if progress is not None:
            self.measurements = progress["measurements"]
            self._finished = {(number, case) for number, case in progress["finished"]}
        # contestant → its processes
        self._pairs: dict[str, Pair] = {}
        # contestant → why its environment or its processes could not be made
        self._unavailable: dict[str, str] = {}
        # working directory of the processes, during `measure`
        self._directory = Path()

    @property
    def progress(self) -> dict[str, Any]:
        """What is measured so far, as JSON can represent it."""
        return {"measurements": self.measurements, "finished": sorted(self._finished)}

    def expected_seconds(self) -> float:
        """Return about how long the missing measurements take on an idle machine."""
        total = 0.0
        for case in self.cases:
            missing = sum(
                (number, case.name) not in self._finished
                for number in range(min(self.rounds, case.rounds))
            )
            for name in self.measurements[case.name]:
                restart = RESTART if self.contestants[name].restarted else 0.0
                total += missing * (1.1 * case.seconds / self.pace + OVERHEAD[case.how] + restart)
        return total

    def make_environments(self) -> None:
        """Make the missing environments, all at the same time."""
        needed = {name for entries in self.measurements.values() for name in entries}
        by_library = {self.contestants[name].library: name for name in sorted(needed)}

        def make(name: str) -> str:
            try:
                self.contestants[name].python()
            except (EnvironmentUnavailable, GraftError, OSError) as error:
                return f"could not be installed: {str(error).strip().splitlines()[-1]}"
            return ""

        with ThreadPoolExecutor() as pool:
            problems = dict(zip(by_library, pool.map(make, by_library.values()), strict=True))
        self._unavailable = {
            name: problem
            for name in needed
            if (problem := problems[self.contestants[name].library])
        }

    def measure(self) -> Measurements:
        """Measure all cases in all rounds."""
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            self._directory = Path(directory)
            (self._directory / "benchmarks").symlink_to(ROOT / "benchmarks")
            try:
                for number in range(self.rounds):
                    self._round(number)
                    self._end_processes()
            finally:
                self._end_processes()
        return self.measurements

    def _end_processes(self) -> None:
        while self._pairs:
            self._pairs.popitem()[1].end()

    def _round(self, number: int) -> None:
        for case in self.cases:
            entries = self.measurements[case.name]
            if number >= case.rounds or not entries or (number, case.name) in self._finished:
                continue
            self.say(f"round {number + 1} of {self.rounds}: {case.name}")
            for name in reversed(entries) if number % 2 else list(entries):
                if "failed" in entries[name]:
                    continue
                try:
                    result = self._measure(case, self.contestants[name])
                except ContestantFailed as error:
                    entries[name]["failed"] = str(error)
                    self.say(f"  {name} failed: {error}")
                except Exception as error:  # noqa: BLE001 - it does not end the other measurements
                    traceback.print_exception(error)
                    entries[name]["failed"] = traceback.format_exception_only(error)[-1].strip()
                else:
                    entries[name]["rounds"].append({"round": number, **result})
            self._finished.add((number, case.name))
            self.save(self.progress)

    def _measure(self, case: Case, contestant: Contestant) -> dict[str, Any]:
        if problem := self._unavailable.get(contestant.name):
            raise ContestantFailed(problem)
        if case.how == "import":
            return _imports(contestant.python())
        if case.how != "slice":
            # Every one of these gets new processes.
            pair = Pair(contestant, self._directory)
            try:
                if case.how == "cluster":
                    return _cluster(pair, case, self.pace)
                if case.how == "memory":
                    return _memory(pair, case)
                return _flat(pair, case, self.pace)
            finally:
                pair.end()
        pair = self._running_pair(contestant)
        try:
            result = _slice(pair, case, case.seconds / self.pace)
            pair.stop()
        except BaseException:
            pair.end()
            del self._pairs[contestant.name]
            raise
        if contestant.restarted:
            pair.end()
            del self._pairs[contestant.name]
        return result

    def _running_pair(self, contestant: Contestant) -> Pair:
        """Return the contestant's processes, started or resumed."""
        name = contestant.name
        if name in self._pairs:
            self._pairs[name].resume()
        else:
            try:
                self._pairs[name] = Pair(contestant, self._directory)
            except ContestantFailed as error:
                self._unavailable[name] = str(error)
                raise
        return self._pairs[name]


def _slice(pair: Pair, case: Case, seconds: float) -> dict[str, Any]:
    """Measure a contestant for a slice of time."""
    timeout = TIMEOUT_MARGIN + 10 * seconds
    pair.pin(case.cores)
    # opens connections, and warms up
    pair.ask({**case.command, "seconds": seconds / 10}, case.transport, timeout)
    before = pair.used("cpu")
    result = pair.ask({**case.command, "seconds": seconds}, case.transport, timeout)
    after = pair.used("cpu")
    pair.close_all()
    used = [(new - old) / result["count"] for old, new in zip(before, after, strict=True)]
    result["client cpu"] = used[-1]
    if len(used) == 2 and case.transport != "inproc":
        result["server cpu"] = used[0]
    return result


def _cluster(pair: Pair, case: Case, pace: float) -> dict[str, Any]:
    """Run a program on a cluster.  *pace* makes the program smaller, not the runs fewer."""
    command = {**case.command, "seconds": case.seconds / pace}
    command["size"] = round(command["size"] / pace)
    return pair.ask(command, case.transport, CLUSTER_TIMEOUT)


def _memory(pair: Pair, case: Case) -> dict[str, Any]:
    """Return the bytes of resident memory per idle connection."""
    pair.ask({"command": "open_idle", "count": FIRST_CONNECTIONS}, case.transport, 60)
    before = pair.used("memory")
    more = {"command": "open_idle", "count": FIRST_CONNECTIONS + MEASURED_CONNECTIONS}
    pair.ask(more, case.transport, 120)
    after = pair.used("memory")
    server, client = (
        (new - old) / MEASURED_CONNECTIONS for old, new in zip(before, after, strict=True)
    )
    return {"server": server, "client": client, "both": server + client}


def _flat(pair: Pair, case: Case, pace: float) -> dict[str, Any]:
    """Return the rate of calls before and after each of `LOADS`, in the same processes."""
    pair.pin(case.cores)
    calls = {"command": "sequential", "seconds": case.seconds / pace}
    pair.ask({**calls, "seconds": 0.1}, case.transport, TIMEOUT_MARGIN)
    rates = {"rate": pair.ask(calls, case.transport, TIMEOUT_MARGIN)["rate"]}
    for measure, (command, count) in LOADS.items():
        load = {"command": command, "count": round(count / pace)}
        pair.ask(load, case.transport, 5 * TIMEOUT_MARGIN)
        rates[measure] = pair.ask(calls, case.transport, TIMEOUT_MARGIN)["rate"]
    return rates


def _imports(python: Path) -> dict[str, Any]:
    """Return the time and memory of an import in a fresh interpreter: medians of `IMPORTS`."""
    results = []
    for _ in range(IMPORTS):
        try:
            results.append(json.loads(run_in(python, IMPORT).stdout))
        except AssertionError as error:
            raise ContestantFailed(str(error).strip().splitlines()[-1]) from None
    return {key: sorted(each[key] for each in results)[IMPORTS // 2] for key in results[0]}

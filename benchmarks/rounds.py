"""A run: everything once, round after round, so that what else the machine does hits all alike.

In each round contestants are measured one after the other, in an order that alternates, in a slice
of time each. Their processes are stopped (by the signal) when it is not their turn, and last for a
round: how fast a process is depends a little on chance, such as where its memory lies. Whoever
fails is left out of that case in later rounds, and of no other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.lineup import Contestant
from benchmarks.processes import ContestantFailed, Pair
from distributed.tests.environments import ROOT, EnvironmentUnavailable, run_in

#: Idle connections whose memory is measured, and those that are opened before, so that what the
#: first ones load does not count.
MEASURED_CONNECTIONS, FIRST_CONNECTIONS = 1_000, 20

#: What must not make a call slower, and how much of it: measure → command, count.
BESIDES = {
    "handlers": ("handlers", 1_000),
    "called": ("many", 100_000),
    "idle": ("hold", 5_000),
}

#: Seconds that what a contestant is told to do may take beyond what it should.
PATIENCE = 60.0

#: Fresh interpreters per round that import something.
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

#: case → contestant → {"rounds": [{"round": number, …}, …], "failed": why, if so}
Measurements = dict[str, dict[str, dict[str, Any]]]


class Run:
    """One run of some cases by some contestants.

    Parameters
    ----------
    cases : sequence of Case
    contestants : dict
        Those who take part, by name; others that a case names do not.
    rounds : int
    pace : float
        How much shorter a slice is than the case says.
    say : callable
        Is told what goes on.
    """

    # State: `measurements` as above; `_pairs`, the processes that there are, by contestant;
    # `_unavailable`, why an environment or its processes cannot be had, by contestant;
    # `_directory`, where the processes run, while they do.

    def __init__(
        self,
        cases: Sequence[Case],
        contestants: dict[str, Contestant],
        rounds: int,
        pace: float,
        say: Callable[[str], None],
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
        self._pairs: dict[str, Pair] = {}
        self._unavailable: dict[str, str] = {}
        self._directory = Path()

    def make_environments(self) -> None:
        """Make all that is missing, at the same time."""
        needed = {name for entries in self.measurements.values() for name in entries}
        by_library = {self.contestants[name].library: name for name in sorted(needed)}

        def make(name: str) -> str:
            try:
                self.contestants[name].python()
            except EnvironmentUnavailable as error:
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
        """Measure everything in all rounds."""
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            self._directory = Path(directory)
            (self._directory / "benchmarks").symlink_to(ROOT / "benchmarks")
            try:
                for number in range(self.rounds):
                    self._round(number)
                    self._end()
            finally:
                self._end()
        return self.measurements

    def _end(self) -> None:
        while self._pairs:
            self._pairs.popitem()[1].end()

    def _round(self, number: int) -> None:
        for case in self.cases:
            entries = self.measurements[case.name]
            if number >= case.rounds or not entries:
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
                else:
                    entries[name]["rounds"].append({"round": number, **result})

    def _measure(self, case: Case, contestant: Contestant) -> dict[str, Any]:
        if problem := self._unavailable.get(contestant.name):
            raise ContestantFailed(problem)
        if case.how == "import":
            return _imports(contestant.python())
        if case.how != "slice":
            pair = Pair(contestant, self._directory)
            try:
                if case.how == "memory":
                    return _memory(pair, case)
                return _flat(pair, case, self.pace)
            finally:
                pair.end()
        pair = self._awake(contestant)
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

    def _awake(self, contestant: Contestant) -> Pair:
        """The contestant's processes, running."""
        name = contestant.name
        if name in self._pairs:
            self._pairs[name].go_on()
        else:
            try:
                self._pairs[name] = Pair(contestant, self._directory)
            except ContestantFailed as error:
                self._unavailable[name] = str(error)
                raise
        return self._pairs[name]


def _slice(pair: Pair, case: Case, seconds: float) -> dict[str, Any]:
    """Have a contestant do something for a while."""
    timeout = PATIENCE + 10 * seconds
    pair.run_on(case.cores)
    # opens what it needs, and warms up
    pair.ask({**case.command, "seconds": seconds / 10}, case.transport, timeout)
    before = pair.used("cpu")
    result = pair.ask({**case.command, "seconds": seconds}, case.transport, timeout)
    after = pair.used("cpu")
    pair.rest()
    used = [(new - old) / result["count"] for old, new in zip(before, after, strict=True)]
    result["client cpu"] = used[-1]
    if len(used) == 2 and case.transport != "inproc":
        result["server cpu"] = used[0]
    return result


def _memory(pair: Pair, case: Case) -> dict[str, Any]:
    """How much memory idle connections take."""
    pair.ask({"command": "hold", "count": FIRST_CONNECTIONS}, case.transport, 60)
    before = pair.used("memory")
    more = {"command": "hold", "count": FIRST_CONNECTIONS + MEASURED_CONNECTIONS}
    pair.ask(more, case.transport, 120)
    after = pair.used("memory")
    server, client = (
        (new - old) / MEASURED_CONNECTIONS for old, new in zip(before, after, strict=True)
    )
    return {"server": server, "client": client, "both": server + client}


def _flat(pair: Pair, case: Case, pace: float) -> dict[str, Any]:
    """How fast calls are, at first and with more and more besides; all in the same processes."""
    pair.run_on(case.cores)
    calls = {"command": "sequential", "seconds": case.seconds / pace}
    pair.ask({**calls, "seconds": 0.1}, case.transport, PATIENCE)
    rates = {"rate": pair.ask(calls, case.transport, PATIENCE)["rate"]}
    for measure, (command, count) in BESIDES.items():
        more = {"command": command, "count": round(count / pace)}
        pair.ask(more, case.transport, 5 * PATIENCE)
        rates[measure] = pair.ask(calls, case.transport, PATIENCE)["rate"]
    return rates


def _imports(python: Path) -> dict[str, Any]:
    """How long an import takes in a fresh interpreter, and how much memory."""
    results = []
    for _ in range(IMPORTS):
        try:
            results.append(json.loads(run_in(python, IMPORT).stdout))
        except AssertionError as error:
            raise ContestantFailed(str(error).strip().splitlines()[-1]) from None
    return {key: sorted(each[key] for each in results)[IMPORTS // 2] for key in results[0]}

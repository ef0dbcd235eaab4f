"""The harness of ``make bench``; how fast anything is does not matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from distributed.tests import environments
from distributed.tests.environments import ROOT, _or_skip

RECORD = ROOT / "docs" / "performance"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import benchmarks.report
    import benchmarks.rounds
    import benchmarks.targets

    return benchmarks


@pytest.fixture
def ours(benchmarks):
    contestant = benchmarks.lineup.contestants()["ours"]
    _or_skip("bench-ours", contestant.requirements, project=contestant.project)
    return contestant


@pytest.fixture
def measure(benchmarks, ours):
    """Have this project, or another contestant in its place, do some things for a moment."""

    def measure(*commands, rounds=1, **changes):
        contestant = replace(ours, **changes)
        cases = [
            benchmarks.cases.Case(f"case {i}", ("ours",), command)
            for i, command in enumerate(commands)
        ]
        run = benchmarks.rounds.Run(cases, {"ours": contestant}, rounds, 100.0, lambda text: None)
        run.make_environments()
        return [entries["ours"] for entries in run.measure().values()]

    return measure


def test_a_run_leaves_tables_and_all_results(ours, tmp_path):
    what = ["--only", "sequential/tcp,payload/array 10kB/tcp", "--contestants", "ours"]
    how = ["--rounds", "2", "--pace", "20", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *what, *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert set(record["cases"]) == {"sequential/tcp", "payload/array 10kB/tcp"}
    for entries in record["cases"].values():
        assert "original" not in entries
        assert [each["round"] for each in entries["ours"]["rounds"]] == [0, 1]
        for each in entries["ours"]["rounds"]:
            assert 0 < each["p50"] <= each["p99"] < 10
            assert each["count"] > 0
            assert each["rate"] > 0
            assert each["client cpu"] > 0
            assert each["server cpu"] > 0
    assert "sequential/tcp" in done.stdout
    assert (tmp_path / "targets.csv").read_text().startswith("target,")


def test_both_sides_note_where_the_time_of_a_call_goes(measure):
    for entry in measure(*({"command": "anatomy", "size": size} for size in (0, 1_000_000))):
        (each,) = entry["rounds"]
        for side in ("client", "server"):
            parts = [each[f"{side} {what}"] for what in ("work", "receiving", "sending")]
            assert min(parts) > 0


def test_who_fails_is_left_out_of_that_case_and_of_no_other(measure):
    good = {"command": "sequential"}
    bad, after = measure({"command": "nested", "count": "many"}, good, rounds=2)
    assert bad["rounds"] == []
    assert bad["failed"].startswith("TypeError: 'str' object")
    assert len(after["rounds"]) == 2
    assert "failed" not in after


def test_who_does_not_answer_in_time_has_failed(benchmarks, measure, monkeypatch):
    monkeypatch.setattr(benchmarks.rounds, "PATIENCE", 0.5)
    (slow,) = measure({"command": "pooled", "callers": 100_000})
    assert "did not answer within" in slow["failed"]


def test_who_cannot_start_has_failed_with_his_last_words(measure):
    (entry,) = measure({"command": "sequential"}, options=("--loop", "sideways"))
    assert "this project (serve) ended with 2: " in entry["failed"]
    assert "sideways" in entry["failed"]


def test_who_cannot_be_installed_has_failed_with_the_reason(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    (entry,) = measure(
        {"command": "sequential"}, requirements=("./no-such-file.whl",), library="broken"
    )
    assert entry["failed"].startswith("could not be installed: ")


def test_a_ratio_is_taken_within_rounds(benchmarks):
    def entry(*rates):
        return {"rounds": [{"round": i, "rate": rate} for i, rate in enumerate(rates)]}

    results = benchmarks.results.Results(
        {"cases": {"case": {"a": entry(10, 200, 3_000), "b": entry(5, 50, 1_000)}}}
    )
    of = benchmarks.results.Of
    ratio = results.ratio(of("case", "a"), of("case", "b"))
    assert (ratio.low, ratio.median, ratio.high) == (2.5, 3, 3.5)
    assert results.ratio(of("case", "a"), of("case", "c")) is None


@pytest.mark.parametrize(
    ("before", "met"), [([], "yes"), ([2.5, 2.4], "yes"), ([2.2, 2.4], "2 of 3"), ([None], "yes")]
)
def test_a_target_is_met_if_it_is_in_all_runs(benchmarks, before, met):
    of = benchmarks.results.Of
    target = benchmarks.targets.Target("speed", of("case", "a"), of("case", "b"), 2.3)
    runs = [{} if ratio is None else {target.key: ratio} for ratio in before]
    entries = {name: {"rounds": [{"round": 0, "rate": r}]} for name, r in (("a", 5), ("b", 2))}
    results = benchmarks.results.Results(
        {"cases": {"case": entries}, "contestants": {"b": "B"}, "before": runs}
    )
    *_, shown, verdict = target.row(results)
    assert shown == "; ".join(f"{ratio:.2f}" for ratio in before if ratio is not None)
    assert verdict == met


def test_the_page_shows_what_the_record_says(benchmarks, tmp_path):
    recorded = benchmarks.results.Results.read(RECORD / "results.json")
    benchmarks.report.write_tables(recorded, tmp_path)
    for table in tmp_path.iterdir():
        assert (RECORD / table.name).read_text() == table.read_text()

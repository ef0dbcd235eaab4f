"""The harness of ``make bench``, and the recorded results; speed does not matter here."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from distributed.tests import environments
from distributed.tests.environments import ROOT, _or_skip

RECORD = ROOT / "docs" / "explanation" / "performance"
PAGE = ROOT / "docs" / "explanation" / "performance.rst"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import benchmarks.__main__
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
    """Return a function that measures commands of this project, changed as the keywords say."""

    def measure(*commands, rounds=1, transport="tcp", **changes):
        contestant = replace(ours, **changes)
        cases = [
            benchmarks.cases.Case(f"case {i}", ("ours",), command, transport)
            for i, command in enumerate(commands)
        ]
        run = benchmarks.rounds.Run(cases, {"ours": contestant}, rounds, 100.0, lambda text: None)
        run.make_environments()
        return [entries["ours"] for entries in run.measure().values()]

    return measure


def test_a_run_writes_tables_and_all_results(ours, tmp_path):
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


def test_small_calls_are_measured_beside_large_values_and_messages_over_many_streams(measure):
    compressed = {"command": "compressed", "size": 1_000_000, "codec": "lz4"}
    beside, streams = measure(compressed, {"command": "streams", "count": 3})
    assert beside["rounds"][0]["large"] > 0
    assert 0 < beside["rounds"][0]["p50"] <= beside["rounds"][0]["p99"]
    assert streams["rounds"][0]["count"] % 15 == 0
    assert streams["rounds"][0]["rate"] > 0


def test_both_sides_measure_the_parts_of_a_call(measure):
    for entry in measure(*({"command": "anatomy", "size": size} for size in (0, 1_000_000))):
        (each,) = entry["rounds"]
        for side in ("client", "server"):
            parts = [each[f"{side} {what}"] for what in ("work", "receiving", "sending")]
            assert min(parts) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory")
def test_an_array_in_shared_memory_comes_back_as_the_same_memory(measure):
    command = {"command": "shared_memory", "size": 100_000}
    (entry,) = measure(command, transport="unix")
    assert "failed" not in entry
    (elsewhere,) = measure(command, transport="tcp")
    assert elsewhere["failed"].startswith("AssertionError")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_list_of_floats_is_echoed(measure, wrapped):
    (entry,) = measure({"command": "floats", "count": 100, "wrapped": wrapped})
    assert "failed" not in entry
    assert entry["rounds"][0]["rate"] > 0


def test_each_contestant_has_a_program_and_each_case_has_contestants(benchmarks):
    lineup = benchmarks.lineup.contestants()
    for each in lineup.values():
        assert (ROOT / "benchmarks" / "contestants" / f"{each.module}.py").exists()
    every = [
        case
        for table in benchmarks.cases.TABLES
        for case in benchmarks.cases.cases(quick=False, table=table)
    ]
    assert {name for case in every for name in case.contestants} == set(lineup)


def test_some_libraries_are_measured_on_request_only(benchmarks):
    def measured(table):
        found = benchmarks.cases.cases(quick=False, table=table)
        return {name for case in found for name in case.contestants}

    assert not measured("main") & set(benchmarks.cases.LIBRARIES)
    assert measured("main") >= {"grpc", "ray", "xoscar", "frisky"}
    assert measured("libraries") == {"ours", "original", "pyzmq", "rpyc", "pyro5"}


def test_calls_after_a_burst_are_compared_with_those_over_one_connection(measure):
    (entry,) = measure({"command": "after_burst", "size": 1000})
    (each,) = entry["rounds"]
    assert min(each["rate"], each["one connection"], each["count"]) > 0


def test_each_call_on_a_cold_connection_is_its_first(measure):
    (entry,) = measure({"command": "cold", "size": 1000})
    (each,) = entry["rounds"]
    assert min(each["rate"], each["count"]) > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "which"), [("dask on core", ""), ("dask on core shared", "workloads/transpose")]
)
def test_each_dask_program_runs_on_this_core(benchmarks, grafted_python, name, which):
    cases = [
        case
        for case in benchmarks.cases.cases(quick=False)
        if name in case.contestants
        and case.command["command"] == "run"
        and case.name.startswith(which)
    ]
    assert cases
    contestant = replace(benchmarks.lineup.contestants()[name], make=lambda: grafted_python)
    run = benchmarks.rounds.Run(cases, {name: contestant}, 1, 1000.0, lambda text: None)
    for entries in run.measure().values():
        assert "failed" not in entries[name]
        (each,) = entries[name]["rounds"]
        assert each["count"] > 0
        assert 0 < each["seconds"] < 60


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs shared memory")
def test_an_array_in_shared_memory_is_held_once_by_four_workers(benchmarks, grafted_python):
    name = "dask on core shared"
    (case,) = (
        case
        for case in benchmarks.cases.cases(quick=False)
        if name in case.contestants and case.command["command"] == "hold"
    )
    contestant = replace(benchmarks.lineup.contestants()[name], make=lambda: grafted_python)
    pace = 4.0
    run = benchmarks.rounds.Run([case], {name: contestant}, 1, pace, lambda text: None)
    (each,) = run.measure()[case.name][name]["rounds"]
    size = case.command["size"] / pace
    # Without sharing, there are five copies.
    assert size * 0.9 < each["added"] < size * 2
    assert each["total"] > each["added"]


def test_a_contestant_that_fails_skips_that_case_only(measure):
    good = {"command": "sequential"}
    bad, after = measure({"command": "nested", "count": "many"}, good, rounds=2)
    assert bad["rounds"] == []
    assert bad["failed"].startswith("TypeError: 'str' object")
    assert len(after["rounds"]) == 2
    assert "failed" not in after


def test_an_error_in_the_measurement_itself_skips_that_case_only(benchmarks, measure, monkeypatch):
    measure_slice = benchmarks.rounds._slice

    def fail_once(pair, case, seconds):
        if case.name == "case 0":
            raise KeyError("count")
        return measure_slice(pair, case, seconds)

    monkeypatch.setattr(benchmarks.rounds, "_slice", fail_once)
    good = {"command": "sequential"}
    bad, after = measure(good, good)
    assert bad == {"rounds": [], "failed": "KeyError: 'count'"}
    assert len(after["rounds"]) == 1


def test_an_interrupted_run_continues_with_the_next_case(benchmarks, ours):
    sequential = {"command": "sequential"}
    cases = [benchmarks.cases.Case(f"case {i}", ("ours",), sequential) for i in range(2)]
    saved = []

    def save(progress):
        saved.append(json.dumps(progress))
        if len(saved) == 1:
            raise KeyboardInterrupt

    def run(**more):
        return benchmarks.rounds.Run(cases, {"ours": ours}, 2, 100.0, lambda text: None, **more)

    with pytest.raises(KeyboardInterrupt):
        run(save=save).measure()
    progress = json.loads(saved[0])
    assert progress["finished"] == [[0, "case 0"]]
    (first,) = progress["measurements"]["case 0"]["ours"]["rounds"]
    said = []
    again = benchmarks.rounds.Run(
        cases, {"ours": ours}, 2, 100.0, said.append, progress=json.loads(saved[0])
    )
    assert 0 < again.expected_seconds() < run().expected_seconds()
    measurements = again.measure()
    assert said[0] == "round 1 of 2: case 1"
    for name in ("case 0", "case 1"):
        assert [each["round"] for each in measurements[name]["ours"]["rounds"]] == [0, 1]
    assert measurements["case 0"]["ours"]["rounds"][0] == first


def test_a_run_is_not_continued_with_other_cases_or_code(benchmarks, tmp_path):
    resumable, path = benchmarks.__main__.resumable, tmp_path / "progress.json"
    assert resumable(path, {"code": "a", "rounds": 3}) is None
    progress = {"identity": {"code": "a", "rounds": 3}, "finished": []}
    path.write_text(json.dumps(progress))
    assert resumable(path, {"code": "a", "rounds": 3}) == progress
    with pytest.raises(SystemExit, match="cannot be continued, since it has other rounds"):
        resumable(path, {"code": "a", "rounds": 4})


def test_the_table_of_workloads_has_ratios_and_reasons(benchmarks):
    entries = {
        "dask": {"rounds": [{"round": 0, "rate": 2.0}, {"round": 1, "rate": 4.0}]},
        "dask on core": {"rounds": [{"round": 0, "rate": 3.0}, {"round": 1, "rate": 6.0}]},
        "ray": {"rounds": [], "failed": "could not be installed"},
    }
    titles = {name: name.upper() for name in entries}
    results = benchmarks.results.Results(
        {"cases": {"workloads/shuffle": entries}, "contestants": titles}
    )
    assert list(benchmarks.report.workload_rows(results)) == [
        ["shuffle", "DASK", "1.00", "1.00 to 1.00"],
        ["shuffle", "DASK ON CORE", "1.50", "1.50 to 1.50"],
        ["shuffle", "RAY", "failed: could not be installed", ""],
    ]


def test_a_contestant_that_times_out_has_failed(benchmarks, measure, monkeypatch):
    monkeypatch.setattr(benchmarks.rounds, "TIMEOUT_MARGIN", 0.5)
    (slow,) = measure({"command": "pooled", "callers": 100_000})
    assert "did not answer within" in slow["failed"]


def test_a_contestant_that_cannot_start_fails_with_its_last_line_of_output(measure):
    (entry,) = measure({"command": "sequential"}, options=("--loop", "sideways"))
    assert "this project (serve) ended with 2: " in entry["failed"]
    assert "sideways" in entry["failed"]


def test_a_contestant_that_cannot_be_installed_fails_with_the_reason(
    measure, tmp_path, monkeypatch
):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    (entry,) = measure(
        {"command": "sequential"}, requirements=("./no-such-file.whl",), library="broken"
    )
    assert entry["failed"].startswith("could not be installed: ")


def test_cases_of_further_runs_are_added_to_a_run(benchmarks, tmp_path):
    def written(name, **rates):
        cases = {
            case: {"ours": {"rounds": [{"round": 0, "rate": rate}]}} for case, rate in rates.items()
        }
        record = {"about": {"run": name}, "contestants": {"ours": "this project"}, "cases": cases}
        benchmarks.results.Results(record).write(tmp_path / name)
        return tmp_path / name

    paths = written("one", a=1.0, b=2.0), written("two", b=3.0, c=4.0)
    results = benchmarks.results.Results.read(*paths)
    assert results.record["about"] == {"run": "one"}
    rates = {case: each["ours"]["rounds"][0]["rate"] for case, each in results.cases.items()}
    assert rates == {"a": 1.0, "b": 3.0, "c": 4.0}


def test_a_ratio_is_computed_within_rounds(benchmarks):
    def entry(*rates):
        return {"rounds": [{"round": i, "rate": rate} for i, rate in enumerate(rates)]}

    results = benchmarks.results.Results(
        {"cases": {"case": {"a": entry(10, 200, 3_000), "b": entry(5, 50, 1_000)}}}
    )
    series = benchmarks.results.Series
    ratio = results.ratio(series("case", "a"), series("case", "b"))
    assert (ratio.low, ratio.median, ratio.high) == (2.5, 3, 3.5)
    assert results.ratio(series("case", "a"), series("case", "c")) is None


@pytest.mark.parametrize(
    ("before", "met"), [([], "yes"), ([2.5, 2.4], "yes"), ([2.2, 2.4], "2 of 3"), ([None], "yes")]
)
def test_a_target_is_met_if_all_runs_meet_it(benchmarks, before, met):
    series = benchmarks.results.Series
    target = benchmarks.targets.Target("speed", series("case", "a"), series("case", "b"), 2.3)
    runs = [{} if ratio is None else {target.key: ratio} for ratio in before]
    entries = {name: {"rounds": [{"round": 0, "rate": r}]} for name, r in (("a", 5), ("b", 2))}
    results = benchmarks.results.Results(
        {"cases": {"case": entries}, "contestants": {"b": "B"}, "before": runs}
    )
    *_, shown, verdict = target.row(results)
    assert shown == "; ".join(f"{ratio:.2f}" for ratio in before if ratio is not None)
    assert verdict == met


def test_the_recorded_targets_are_those_of_the_code(benchmarks):
    titles = {name: each.title for name, each in benchmarks.lineup.contestants().items()}
    results = benchmarks.results.Results({"cases": {}, "contestants": titles})
    header, *rows = csv.reader((RECORD / "targets.csv").read_text().splitlines())
    assert header == benchmarks.targets.HEADER
    assert [row[:3] for row in rows] == [row[:3] for row in benchmarks.targets.rows(results)]


def test_the_page_shows_each_recorded_file_and_no_other(benchmarks):
    recorded = sorted(benchmarks.__main__.RECORDED)
    assert sorted(re.findall(r" performance/(\S+)$", PAGE.read_text(), re.MULTILINE)) == recorded
    assert sorted(path.name for path in RECORD.iterdir()) == recorded


def test_recording_replaces_the_files_that_the_repository_keeps(benchmarks, tmp_path):
    recorded = benchmarks.__main__.RECORDED
    output, record = tmp_path / "output", tmp_path / "record"
    output.mkdir()
    record.mkdir()
    with pytest.raises(SystemExit, match="nothing was recorded: this run did not write targets"):
        benchmarks.__main__.record(output, record)
    for name in (*recorded, "results.json", "cases.csv"):
        (output / name).write_text(name)
    benchmarks.__main__.record(output, record)
    assert {path.name: path.read_text() for path in record.iterdir()} == {
        name: name for name in recorded
    }

"""dask works with this package installed, although its import name is ``distributed``."""

from __future__ import annotations

import json

import pytest

from distributed.tests.environments import _or_skip, run_in

#: Code that runs before dask is used.
BEFORE = {
    "alone": "",
    "after_this_package": "import distributed.core, distributed.protocol, distributed.utils_test\n",
}
SCHEDULERS = ["sync", "threads", "processes"]

#: name → (expression to compute, in which `S` is the scheduler; its value)
WORK = {
    "array": ("int(da.arange(100, chunks=10).reshape(10, 10).T.sum().compute(scheduler=S))", 4950),
    "bag": ("db.range(20, npartitions=4).map(str).map(len).sum().compute(scheduler=S)", 30),
    "delayed": ("dask.compute(dask.delayed(sum)([dask.delayed(abs)(-1), 2]), scheduler=S)[0]", 3),
    "dataframe": (
        "frame().groupby('b').a.sum().compute(scheduler=S).to_dict()",
        {"x": 20, "y": 25},
    ),
    "shuffle": ("len(frame().merge(frame(), on='b').compute(scheduler=S))", 50),
}

NAMES = """
import json, sys
import dask, dask.array as da, dask.bag as db, dask.dataframe as dd
import pandas as pd

def frame():
    return dd.from_pandas(pd.DataFrame({"a": range(10), "b": list("xyxyxyxyxy")}), npartitions=3)
"""


@pytest.fixture(scope="module")
def dask_collections_python():
    """A Python with this checkout, dask, and the requirements of its collections."""
    return _or_skip("dask-collections", ["dask[array,dataframe]"], project=True)


@pytest.fixture(scope="module", params=BEFORE)
def computed(request, dask_collections_python):
    code = BEFORE[request.param] + NAMES
    code += "if __name__ == '__main__':\n    results = {}\n"
    for scheduler in SCHEDULERS:
        for name, (expression, _) in WORK.items():
            code += f"    S = {scheduler!r}; results[{name + '-' + scheduler!r}] = {expression}\n"
    code += "    print(json.dumps(results))\n"
    return json.loads(run_in(dask_collections_python, code, timeout=100).stdout)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", WORK)
def test_a_local_scheduler_computes(computed, name, scheduler):
    assert computed[f"{name}-{scheduler}"] == WORK[name][1]


def run_beside_dask(python, code):
    return json.loads(run_in(python, "import json\n" + code).stdout)


def test_dask_computes_without_loading_modules_of_this_package(dask_collections_python):
    code = "import sys, dask.array as da\nda.ones(4, chunks=2).sum().compute()\n"
    code += "print(json.dumps([name for name in sys.modules if name.startswith('distributed')]))"
    loaded = run_beside_dask(dask_collections_python, code)
    # The import sets the levels of loggers, as that of the original does.
    logging = {"log_setup", "config_sources", "config_store"}
    of_base = {f"distributed.base.{name}" for name in ("version", "installation", *logging)}
    assert set(loaded) <= {"distributed", "distributed.base", *of_base}


@pytest.mark.parametrize("before", BEFORE)
def test_dask_uses_its_default_scheduler_if_none_is_set(dask_collections_python, before):
    code = BEFORE[before] + "import dask\ndask.compute(dask.delayed(len)('abc'))\n"
    code += "print(json.dumps([dask.base.get_scheduler(), dask.delayed(len)('abc').compute()]))"
    assert run_beside_dask(dask_collections_python, code) == [None, 3]


@pytest.mark.parametrize("before", BEFORE)
def test_the_distributed_scheduler_without_a_client_is_an_error(dask_collections_python, before):
    code = """
import dask
try:
    dask.delayed(len)('abc').compute(scheduler="distributed")
except RuntimeError as exc:
    print(json.dumps(str(exc)))
"""
    error = run_beside_dask(dask_collections_python, BEFORE[before] + code)
    assert error == "Requested distributed scheduler but no Client active."


def test_only_the_defaults_of_this_package_are_added_to_the_configuration_of_dask(
    dask_collections_python,
):
    code = """
import copy, dask
before = copy.deepcopy(dask.config.config)
import distributed.core, distributed.comm, distributed.config
distributed.config.get("distributed.comm.timeouts.connect")
after = copy.deepcopy(dask.config.config)
after.pop("distributed"), before.pop("distributed", None)
print(json.dumps([before == after, sorted(set(after) - set(before))]))
"""
    assert run_beside_dask(dask_collections_python, code) == [True, []]


def test_dask_and_this_package_share_their_configuration(dask_collections_python):
    code = """
import dask.config, distributed.config
key = "distributed.comm.timeouts.connect"
with dask.config.set({key: "7s"}):
    seen = distributed.config.get_timedelta(key)
with distributed.config.set({key: "8s", "array.chunk-size": "1MiB"}):
    there = [dask.config.get(key), dask.config.get("array.chunk-size")]
print(json.dumps([seen, there, dask.config.get("array.chunk-size")]))
"""
    assert run_beside_dask(dask_collections_python, code) == [7.0, ["8s", "1MiB"], "128MiB"]


def test_the_command_line_of_dask_works(dask_collections_python):
    versions = run_in(dask_collections_python, ["-m", "dask", "info", "versions"]).stdout
    from distributed import __version__

    assert json.loads(versions)["distributed"] == __version__
    assert "Commands:" in run_in(dask_collections_python, ["-m", "dask", "--help"]).stdout


def test_dask_distributed_is_this_package(dask_collections_python):
    code = "from dask.distributed import Server\nimport distributed\n"
    code += "print(json.dumps(Server is distributed.Server))"
    assert run_beside_dask(dask_collections_python, code)


@pytest.mark.parametrize("name", ["Client", "LocalCluster", "get_client"])
def test_the_error_for_a_role_of_the_original_tells_where_it_is(dask_collections_python, name):
    code = f"""
import distributed
try:
    distributed.{name}
except AttributeError as exc:
    error = str(exc)
print(json.dumps(error))
"""
    error = run_beside_dask(dask_collections_python, code)
    assert error.startswith(f"module 'distributed' has no attribute '{name}'")
    assert f"{name} is in dask.distributed" in error


def test_code_can_detect_that_a_role_is_missing(dask_collections_python):
    code = """
import distributed
try:
    from distributed import get_client
except ImportError as exc:
    error = type(exc).__name__
print(json.dumps([error, hasattr(distributed, "Client")]))
"""
    assert run_beside_dask(dask_collections_python, code) == ["ImportError", False]


def test_a_handler_computes_with_dask_and_returns_a_collection_in_a_dict(dask_collections_python):
    code = """
import asyncio
import dask.array as da
from distributed import Server, rpc

def work(n):
    array = da.arange(n, chunks=3)
    return {"sum": int(array.sum().compute()), "lazy": array + 1}

async def main():
    async with Server({"work": work}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            answer = await remote.work(n=10)
    print(json.dumps([answer["sum"], int(answer["lazy"].sum().compute())]))

asyncio.run(main())
"""
    assert run_beside_dask(dask_collections_python, code) == [45, 55]


def test_a_collection_as_the_whole_answer_is_refused_because_it_is_awaitable(
    dask_collections_python,
):
    code = """
import asyncio, logging
import dask.array as da
from distributed import Server, rpc
logging.disable(logging.CRITICAL)

async def main():
    async with Server({"work": lambda: da.ones(4, chunks=2)}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            try:
                await remote.work()
            except RuntimeError as exc:
                print(json.dumps(str(exc)))

asyncio.run(main())
"""
    error = run_beside_dask(dask_collections_python, code)
    assert error.startswith("Comm handler returned unknown awaitable")

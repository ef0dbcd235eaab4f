"""Programs that run with ``python -W error`` can send objects of data libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distributed.tests.environments import ROOT, clean_environ

PROGRAM = """
import asyncio, importlib, sys, warnings

with warnings.catch_warnings():
    # These libraries may warn when they are imported; the serializers must not.
    warnings.simplefilter("ignore")
    for library in {libraries}:
        importlib.import_module(library)
    import scipy.sparse
from distributed.core import Server, rpc
from distributed.protocol import to_serialize
from distributed.protocol.dispatch import MODULES

for library in {libraries}:
    importlib.import_module(MODULES[library])


def values():
    import numpy, pyarrow, scipy.sparse, sparse
{values}


async def main():
    async with Server({{"echo": lambda data: to_serialize(data)}}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            for x in values():
                assert type(await remote.echo(data=to_serialize(x))) is type(x)
                await remote.echo(data=(x,))


asyncio.run(main())
"""

VALUES = """
    yield numpy.arange(3)
    yield numpy.zeros((3, 4))[::2, ::3]
    yield numpy.array(["text"])
    yield numpy.array(["2020-01-01"], "M8[s]")
    yield numpy.array([object()])
    yield numpy.zeros(2, [("a", "i4"), ("b", "f8")])
    yield numpy.zeros(2, [("a", "i4")]).view(numpy.recarray)
    yield numpy.zeros((2, 2)).view(numpy.matrix)
    yield numpy.ma.MaskedArray([1, 2], mask=[True, False])
    yield numpy.broadcast_to(numpy.zeros(1), (2**18,))
    yield numpy.float64(1)
    yield pyarrow.table({"a": [1]})
    yield pyarrow.record_batch({"a": ["x"]})
    yield pyarrow.array(range(10_000))[:5]
    yield scipy.sparse.csr_matrix(numpy.eye(3))
    yield scipy.sparse.coo_matrix(numpy.eye(3)).todok()
    yield sparse.COO(numpy.array([[0, 1]]), numpy.ones(2), (9,))
"""

LIBRARIES = ["numpy", "pyarrow", "scipy", "sparse", "h5py", "netCDF4"]


def test_objects_are_sent_where_warnings_are_errors():
    for library in LIBRARIES:
        pytest.importorskip(library)
    program = PROGRAM.format(libraries=LIBRARIES, values=VALUES)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        cwd=ROOT,
        env=clean_environ(),
        timeout=60,
    )

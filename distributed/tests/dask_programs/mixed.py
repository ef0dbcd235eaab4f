"""Clusters of which some processes run on this core and others on dask.distributed as released.

``distributed/tests/test_dask_mixed.py`` runs this on this core, with the interpreter of the other
environment in the variable OTHER_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import scheduler, started

from conftest import ON_THIS_CORE
from distributed.security import Security

OTHER = os.environ["OTHER_PYTHON"]
CORES = {sys.executable: "this core" if ON_THIS_CORE else "the released one"}
CORES[OTHER] = "the released one" if ON_THIS_CORE else "this core"

#: Run by each client; functions of a script travel by value, so workers need not import them.
CLIENT = """
import sys

import dask
import dask.array as da
import numpy as np

from distributed import Client, Event, Queue, get_worker
from distributed.security import Security

assert __name__ == "__main__"
address, action, *files = sys.argv[1:]
tls = dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), files))


class Counter:
    n = 0

    def increment(self):
        self.n += 1
        return self.n


def fail(text):
    raise ValueError(text)


with Client(address, security=Security(**tls) if tls else None) as client:
    client.wait_for_workers(2, timeout=60)
    left, right = list(client.scheduler_info()["workers"])
    cores = client.run(lambda: hasattr(sys.modules["distributed.core"], "__core_version__"))
    assert sorted(cores.values()) == [False, True]

    assert client.gather(client.map(lambda x: x + 1, range(200))) == list(range(1, 201))

    for here, there in ((left, right), (right, left)):
        frame = {"array": np.arange(3_000_000.0), "text": "text", "bytes": b"b" * 100_000}
        made = client.submit(lambda x: x, frame, workers=[here], pure=False)
        copied = client.submit(lambda x: x | {"more": 1}, made, workers=[there], pure=False)
        result = copied.result(timeout=60)
        assert (result.pop("array") == frame.pop("array")).all()
        assert result == frame | {"more": 1}

        error = client.submit(fail, "an error", workers=[here], pure=False)
        passed_on = client.submit(lambda x: x, error, workers=[there], pure=False)
        try:
            passed_on.result(timeout=60)
        except ValueError as exc:
            assert str(exc) == "an error"
        else:
            raise AssertionError("no error was raised")

        counter = client.submit(Counter, actor=True, workers=[here], pure=False).result(timeout=60)
        assert [counter.increment().result() for _ in range(3)] == [1, 2, 3]
        use = client.submit(lambda c: c.increment().result(), counter, workers=[there], pure=False)
        assert use.result(timeout=60) == 4

    scattered = client.scatter(np.arange(100_000), broadcast=True)
    assert len(client.who_has([scattered])[scattered.key]) == 2

    puts = client.map(lambda x: Queue("q").put(x), range(5), pure=False)
    assert sorted(Queue("q").get(timeout=30) for _ in range(5)) == list(range(5))
    waiting = client.submit(lambda: Event("e").wait(timeout=30), pure=False)
    Event("e").set()
    assert waiting.result(timeout=60)

    x = da.arange(250_000, chunks=50_000).reshape(500, 500)
    for method in ("tasks", "p2p"):
        with dask.config.set({"array.rechunk.method": method}):
            y = x.rechunk((500, 50))
        assert (y.compute() == np.arange(250_000).reshape(500, 500)).all()

    if action == "retire":
        client.retire_workers([left])
        assert (scattered.result(timeout=60) == np.arange(100_000)).all()
        assert client.submit(sum, [1, 2], pure=False).result(timeout=60) == 3
"""


@pytest.mark.parametrize("protocol", ["tcp", "tls", "ws"])
@pytest.mark.parametrize("scheduler_python", CORES, ids=CORES.get)
def test_workers_and_clients_of_both_kinds(tmp_path, protocol, scheduler_python):
    files, options = [], []
    if protocol == "tls":
        security = Security.temporary()
        certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
        certificate.write_text(security.tls_ca_file)
        key.write_text(security.tls_client_key)
        files = list(map(str, [certificate, certificate, key]))
        options = ["--tls-ca-file", files[0], "--tls-cert", files[1], "--tls-key", files[2]]
    start = ("--protocol", protocol, *options)
    with scheduler(tmp_path, *start, python=scheduler_python) as (address, _):
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", *options)
        with (
            started(tmp_path, "own", *worker, python=sys.executable) as own,
            started(tmp_path, "other", *worker, python=OTHER) as other,
        ):
            for client_python, action in ((OTHER, "stay"), (sys.executable, "retire")):
                program = tmp_path / "client.py"
                program.write_text(CLIENT)
                done = subprocess.run(
                    [client_python, program, address, action, *files],
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                logs = "\n".join(log[-2000:] for log in (done.stderr, own.output, other.output))
                assert done.returncode == 0, f"the client on {CORES[client_python]}: {logs}"

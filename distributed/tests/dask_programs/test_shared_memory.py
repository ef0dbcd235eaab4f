"""Workers on one host share an array that a client scatters."""

from __future__ import annotations

import os
import sys

import pytest

from distributed import Client, LocalCluster

np = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.only_this_core,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
]

MB = 2**20


def pss(pid):
    """Return the memory of a process in bytes, with its share of what processes share."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell the memory of a process")


def read_all(x):
    # Each page of the array, so that it is resident.
    return float(x[::512].sum()), x.flags.writeable


def double(x):
    return x[:1000] * 2


def test_four_workers_hold_a_scattered_array_once():
    from distributed import shared

    size = 64 * MB
    x = shared.empty(size // 8)
    x[:] = 1
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        LocalCluster(n_workers=4, protocol="unix", **options) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(4, timeout=60)
        workers = list(client.run(os.getpid).items())
        # Modules that the workers import at first use do not count.
        other = client.scatter(np.ones(1000), broadcast=True)
        for worker, _ in workers:
            client.submit(read_all, other, workers=[worker], pure=False).result()
        pids = [os.getpid(), *(pid for _, pid in workers)]
        before = sum(map(pss, pids))
        future = client.scatter(x, broadcast=True)
        for worker, _ in workers:
            answer = client.submit(read_all, future, workers=[worker], pure=False).result()
            assert answer == (size / 8 / 512, False)
        # Five copies before this would be 320 MB.
        assert sum(map(pss, pids)) - before < size / 2
        assert client.submit(double, future).result().sum() == 2000
        # A worker sends the array back without a copy.
        assert np.shares_memory(client.gather(future, direct=True), x)

"""Clusters over each transport, with and without encryption and token; clients in a user's loop."""

from __future__ import annotations

import asyncio

import dask
import pytest

from distributed import Client, LocalCluster, Scheduler, Worker
from distributed.security import Security

UNIX = pytest.param("unix", marks=pytest.mark.only_this_core)


def _work(client):
    assert client.gather(client.map(lambda x: x + 1, range(50), pure=False)) == list(range(1, 51))
    data = client.scatter(b"x" * 3_000_000)
    assert client.submit(len, data).result(timeout=60) == 3_000_000


@pytest.mark.parametrize("protocol", ["tcp", "ws", UNIX])
def test_processes_over(protocol):
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, protocol=protocol, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith(f"{protocol}://")
        _work(client)


@pytest.mark.parametrize("protocol", ["tls", "wss"])
def test_processes_over_encrypted(protocol):
    security = Security.temporary()
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            protocol=protocol,
            security=security,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        assert cluster.scheduler_address.startswith(f"{protocol}://")
        _work(client)


@pytest.mark.parametrize("protocol", ["inproc", "tcp", UNIX])
def test_threads_over(protocol):
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol=protocol,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        _work(client)


@pytest.mark.only_this_core
@pytest.mark.parametrize("protocol", ["tcp", "tls", "ws", "wss", "inproc", "unix"])
def test_a_token_is_required_from_all(protocol):
    security = Security.temporary() if protocol in ("tls", "wss") else None
    with (
        dask.config.set({"distributed.comm.auth.token": "a-token-of-the-cluster"}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=protocol != "inproc",
            protocol=protocol,
            security=security,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        _work(client)
        with (
            dask.config.set({"distributed.comm.auth.token": None}),
            pytest.raises(OSError, match="token"),
        ):
            Client(cluster.scheduler_address, security=security, timeout="5s")


def test_a_client_in_a_users_event_loop():
    asyncio.run(_use_a_client_in_this_loop())


async def _use_a_client_in_this_loop():
    async with (
        Scheduler(dashboard_address=":0", port=0) as scheduler,
        Worker(scheduler.address),
        Worker(scheduler.address),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        futures = client.map(lambda x: x * 2, range(100))
        assert await client.gather(futures) == [x * 2 for x in range(100)]
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        assert await client.submit(sum, range(1000)) == sum(range(1000))
        ticking.cancel()
        assert ticks

"""``dask scheduler`` and ``dask worker``, started by hand as processes of their own."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from processes import scheduler, started

from distributed import Client
from distributed.security import Security

TOKEN = "DASK_DISTRIBUTED__COMM__AUTH__TOKEN"


def check(address, **connection):
    """Compute on a cluster, with data that travel between its workers."""
    with Client(address, **connection) as client:
        client.wait_for_workers(2, timeout=60)
        left, right = list(client.scheduler_info()["workers"])
        assert client.gather(client.map(lambda x: x + 1, range(100))) == list(range(1, 101))
        array = client.submit(np.ones, 1_000_000, workers=[left])
        assert client.submit(np.sum, array, workers=[right]).result(timeout=60) == 1_000_000
        with pytest.raises(ZeroDivisionError):
            client.submit(lambda: 1 / 0).result(timeout=60)
        client.get_versions(check=True)


@pytest.fixture
def certificates(tmp_path):
    """Return options of the command line, and the Security of a client, with one certificate."""
    security = Security.temporary()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_text(security.tls_ca_file)
    key.write_text(security.tls_client_key)
    options = ["--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key]
    return list(map(str, options)), security


def test_processes_over_tcp(tmp_path):
    with (
        scheduler(tmp_path) as (address, _),
        started(tmp_path, "one", "worker", address, "--nthreads", "1"),
        started(tmp_path, "two", "worker", "--scheduler-file", "scheduler.json", "--no-nanny"),
    ):
        assert address.startswith("tcp://")
        check(address)


def test_one_command_starts_several_workers(tmp_path):
    workers = ("worker", "--nworkers", "2", "--nthreads", "1")
    with scheduler(tmp_path) as (address, _), started(tmp_path, "two", *workers, address):
        check(address)


def test_processes_over_tls(tmp_path, certificates):
    options, security = certificates
    with (
        scheduler(tmp_path, "--protocol", "tls", *options) as (address, _),
        started(tmp_path, "one", "worker", address, "--nthreads", "1", *options),
        started(tmp_path, "two", "worker", address, "--no-nanny", *options),
    ):
        assert address.startswith("tls://")
        check(address, security=security)
        with pytest.raises(OSError, match="certificate"):
            Client(address, security=Security.temporary(), timeout="2s")


@pytest.mark.only_this_core
@pytest.mark.parametrize("encrypted", [False, True], ids=["tcp", "tls"])
def test_processes_with_a_token(tmp_path, certificates, encrypted):
    options, security = certificates if encrypted else ([], None)
    protocol = "tls" if encrypted else "tcp"
    env = {TOKEN: "a-token-of-the-cluster"}
    with (
        scheduler(tmp_path, "--protocol", protocol, *options, env=env) as (address, _),
        started(tmp_path, "one", "worker", address, "--nthreads", "1", *options, env=env),
        started(tmp_path, "two", "worker", address, "--no-nanny", *options, env=env),
    ):
        assert address.startswith(f"{protocol}://")
        with dask.config.set({"distributed.comm.auth.token": env[TOKEN]}):
            check(address, security=security)
        with pytest.raises(OSError, match="requires a token"):
            Client(address, security=security, timeout="5s")


@pytest.mark.only_this_core
@pytest.mark.parametrize("token", [None, "another-token"])
def test_a_worker_without_the_token_is_refused_and_told_why(tmp_path, token):
    with scheduler(tmp_path, env={TOKEN: "a-token-of-the-cluster"}) as (address, process):
        env = {} if token is None else {TOKEN: token}
        with started(tmp_path, "worker", "worker", address, env=env) as worker:
            assert worker.wait() == 1
            assert "token" in worker.output
        assert "is not trusted by" in process.output
        assert "token" in process.output

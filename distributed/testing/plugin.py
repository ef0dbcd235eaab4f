"""A pytest plugin: fixtures for servers and their callers, and a check for leaks.

pytest loads this module by an entry point. It then only declares its fixtures, ini options and a
marker: it imports nothing heavy, and changes nothing in the process, before a test uses a fixture.
``-p no:distributed.testing.plugin`` does not load it at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from distributed.security import Security
    from distributed.testing.servers import BlockingCalls, RunningServer, ServerThread

_ALLOWED = "distributed_leaks_allowed"
_WATCHING = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "distributed_leak_check", "check each test for leaks (true or false)", "bool", default=False
    )
    parser.addini(
        "distributed_leak_deadline", "seconds before a remaining resource is a leak", default="3"
    )
    parser.addini(
        "distributed_lasting_threads",
        "prefixes of the names of threads that are not leaks, one per line",
        "linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{_ALLOWED}: do not check this test for leaks")
    if config.getini("distributed_leak_check"):
        config.pluginmanager.register(_EachTest(), "distributed_leak_check_of_each_test")


class _EachTest:
    """A plugin that applies the leak check to each test."""

    @pytest.fixture(autouse=True)
    def _distributed_leak_check_of_each_test(self, distributed_leak_check: None) -> None:
        pass


@pytest.fixture
def distributed_leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if it leaves a resource behind or causes an error that nothing handled.

    The failure has one line for each task, comm, rpc, connection pool, event loop, thread, process,
    socket or pipe. See `distributed.testing.leaks`.
    """
    if request.node.get_closest_marker(_ALLOWED) is not None:
        yield
        return
    from distributed.testing import leaks

    config = request.config
    if not config.stash.get(_WATCHING, False):
        config.stash[_WATCHING] = True
        config.add_cleanup(leaks.watch(pytest.MonkeyPatch()))
    deadline = float(config.getini("distributed_leak_deadline"))
    lasting = config.getini("distributed_lasting_threads")
    before = leaks.resources()
    with leaks.UnhandledErrors() as errors:
        yield
        found = leaks.find_leaks(before, deadline, lasting)
    if found or errors.messages:
        pytest.fail("\n".join(["The test left behind:", *found, *errors.messages]), pytrace=False)


@pytest.fixture
def distributed_server_thread(request: pytest.FixtureRequest) -> Iterator[ServerThread]:
    """A `distributed.testing.ServerThread`; closed after the test, with its servers and callers."""
    if "distributed_leak_check" in request.fixturenames:
        # Set up first, the check runs after the servers are closed.
        request.getfixturevalue("distributed_leak_check")
    from distributed.testing.servers import ServerThread

    with ServerThread() as thread:
        yield thread


@pytest.fixture
def distributed_server(
    distributed_server_thread: ServerThread,
) -> Callable[..., RunningServer]:
    """A function that runs a server in another thread until the end of the test.

    See `distributed.testing.ServerThread.serve` for its parameters. Tests of any kind can use it:
    plain functions and coroutine functions, with any plugin for these.
    """
    return distributed_server_thread.serve


@pytest.fixture
def distributed_rpc(distributed_server_thread: ServerThread) -> Callable[..., BlockingCalls]:
    """A function that returns the operations of a server as blocking functions.

    See `distributed.testing.ServerThread.rpc` for its parameters. Its connections are closed after
    the test.
    """
    return distributed_server_thread.rpc


@pytest.fixture(scope="session")
def distributed_security() -> Security:
    """A `Security` with a temporary certificate for all roles (needs the extra ``security``)."""
    from distributed.utils_test import tls_security

    security: Any = tls_security()
    return security

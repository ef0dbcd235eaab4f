"""A pytest plugin that fails each test which leaves something behind.

What a test must not leave: an event loop, a task that is still pending, an open comm, rpc or
connection pool, a listener, a socket, pipe or epoll descriptor, a thread, a child process; and
nothing may have gone wrong unseen, which is what asyncio and Tornado log as errors ("Task was
destroyed but it is pending", "Exception in callback …"). A coroutine that was "never awaited" is a
`RuntimeWarning`, which ``filterwarnings = error`` in ``setup.cfg`` makes a failure.

A leak is what is there after the test and was not there before it, so what a module- or
session-scoped fixture holds is no leak of the tests that use it. Some things end a moment after
the test did (a thread on its way out, a child that exits): what is found is looked at again until
it is gone or the ini option ``leak_deadline`` (seconds) has passed. Only then does the test fail,
with one line for each leak that says where it comes from.

The plugin knows nothing of the package that is tested except the names of the registries of its
open things (`_registries`); it reads them only where a test has imported them. It is loaded by the
``conftest.py`` at the root, and serves any other test suite as ``pytest -p
distributed.tests.leaks``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import pytest

#: Threads that a process makes once and keeps.
_LASTING_THREADS = ("Dask-Offload",)

#: Descriptors that matter: files are left to `ResourceWarning`, which is an error already.
_DESCRIPTOR_KINDS = ("socket:", "pipe:", "anon_inode:")

#: Who logs what nobody else has seen.
_LOGGERS_OF_UNSEEN_ERRORS = ("asyncio", "tornado.application")

#: Every stdlib event loop made since this plugin was loaded. Invariant: only the `__init__` that
#: `pytest_configure` sets adds to it.
_loops: weakref.WeakSet[asyncio.BaseEventLoop] = weakref.WeakSet()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("leak_deadline", "seconds until what a test left behind is a leak", default="3")


def pytest_configure(config: pytest.Config) -> None:
    # asyncio has no list of the loops that exist, and a task can be found only through its loop.
    original = asyncio.BaseEventLoop.__init__

    def remembering(self: asyncio.BaseEventLoop, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _loops.add(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(asyncio.BaseEventLoop, "__init__", remembering)
    config.add_cleanup(patch.undo)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test when it leaves anything behind."""
    before = {look: frozenset(key for key, _ in look()) for look in LOOKS}
    with _UnseenErrors() as unseen:
        yield
        leaks = find_leaks(before, float(request.config.getini("leak_deadline")))
    if leaks or unseen.messages:
        pytest.fail("\n".join(["The test left behind:", *leaks, *unseen.messages]), pytrace=False)


def find_leaks(
    before: dict[Callable[[], Iterator[Trace]], frozenset[Hashable]], deadline: float
) -> list[str]:
    """What is there now, was not there before, and does not go away within ``deadline`` seconds."""

    def found() -> list[str]:
        return [
            f"  {describe()}"
            for look in LOOKS
            for key, describe in look()
            if key not in before[look]
        ]

    leaks = found()
    if leaks:
        gc.collect()  # an unreachable cycle is no leak; too slow to do after every test
        end = time.monotonic() + deadline
        while (leaks := found()) and time.monotonic() < end:
            time.sleep(0.01)
    return leaks


#: One thing that a test may leave: a key that equals the key of no other thing that lives at the
#: same time and keeps nothing of the package alive, and a function that says in one line what it
#: is.
Trace = tuple[Hashable, Callable[[], str]]


def _tasks() -> Iterator[Trace]:
    for loop in list(_loops):
        for task in asyncio.all_tasks(loop):
            yield weakref.ref(task), partial(_describe_task, task)


def _open_loops() -> Iterator[Trace]:
    for loop in list(_loops):
        if not loop.is_closed():
            yield weakref.ref(loop), partial("event loop, not closed: {!r}".format, loop)


def _registries() -> Iterator[tuple[str, Any, Callable[[Any], bool]]]:
    """For each kind of open thing whose module is loaded: its name, all there are, which count."""
    comm = sys.modules.get("distributed.comm.core")
    if comm is not None and hasattr(comm, "Comm"):
        yield "open comm", comm.Comm._instances, lambda c: not c.closed()
    core = sys.modules.get("distributed.core")
    if core is not None and hasattr(core, "rpc"):
        yield "open rpc", core.rpc.active, lambda r: True
    if core is not None and hasattr(core, "ConnectionPool"):
        yield (
            "connection pool with open comms",
            core.ConnectionPool._instances,
            lambda p: p.open > 0,
        )
    inproc = sys.modules.get("distributed.comm.inproc")
    if inproc is not None and hasattr(inproc, "global_manager"):
        yield "inproc listener", inproc.global_manager.listeners.values(), lambda listener: True


def _package_objects() -> Iterator[Trace]:
    for what, instances, is_open in _registries():
        for instance in list(instances):
            if is_open(instance):
                yield weakref.ref(instance), partial("{}: {!r}".format, what, instance)


def _threads() -> Iterator[Trace]:
    for thread in threading.enumerate():
        if not thread.name.startswith(_LASTING_THREADS):
            yield thread, partial(_describe_thread, thread)


def _descriptors() -> Iterator[Trace]:
    tracker_fd = getattr(_resource_tracker(), "_fd", None)
    for name in _listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself, or another thread has closed it
            continue
        if target.startswith(_DESCRIPTOR_KINDS) and int(name) != tracker_fd:
            yield (name, target), partial(_describe_descriptor, int(name), target)


def _children() -> Iterator[Trace]:
    tracker_pid = getattr(_resource_tracker(), "_pid", None)
    multiprocessing.active_children()  # reaps those that have ended, which are no leak
    for thread_id in _listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread_id}/children") as file:
                pids = [int(pid) for pid in file.read().split()]
        except OSError:  # the thread has ended since it was listed
            continue
        for pid in pids:
            if pid != tracker_pid:
                yield pid, partial(_describe_child, pid)


#: Each looks at one kind of thing. The order is that of the report: causes before what they drag
#: along.
LOOKS: tuple[Callable[[], Iterator[Trace]], ...] = (
    _package_objects,
    _tasks,
    _children,
    _threads,
    _open_loops,
    _descriptors,
)


class _UnseenErrors(logging.Handler):
    """Collects what asyncio and Tornado log as errors.

    A test that provokes such an error on purpose takes it with
    `distributed.utils_test.captured_logger`, which diverts the records of a logger, and is then
    the one to judge them.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter().format(record).replace("\n", "\n    ")
        self.messages.append(f"  an error that {record.name} logged: {text}")

    def __enter__(self) -> _UnseenErrors:
        for name in _LOGGERS_OF_UNSEEN_ERRORS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in _LOGGERS_OF_UNSEEN_ERRORS:
            logging.getLogger(name).removeHandler(self)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:  # no /proc on this system: nothing to look at
        return []


def _resource_tracker() -> object:
    # multiprocessing starts one process of its own at the first "spawn" and keeps it, and a pipe
    # to it.
    module = sys.modules.get("multiprocessing.resource_tracker")
    return getattr(module, "_resource_tracker", None)


def _describe_task(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    where = f" at {frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else ""
    return f"pending task: {task.get_name()} {task.get_coro()!r}{where}"


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    where = f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
    return f"thread: {thread!r}{where}"


def _describe_child(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except FileNotFoundError:
        command = "(gone by now)"
    return f"child process {pid}: {command or '(ended, but nobody has waited for it)'}"


def _describe_descriptor(fd: int, target: str) -> str:
    what = _describe_socket(fd) if target.startswith("socket:") else target
    return f"descriptor {fd}: {what}"


def _describe_socket(fd: int) -> str:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            local = sock.getsockname()
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return f"socket that listens on {local}"
            try:
                return f"socket {local} connected to {sock.getpeername()}"
            except OSError:
                return f"socket {local}, not connected"
    except OSError as error:
        return f"socket ({error})"

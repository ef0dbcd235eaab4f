"""Find what a test left behind: tasks, comms, sockets, threads, processes, and logged errors.

A test must not leave an event loop, a pending task, an open comm, rpc or connection pool, a
listener, a socket, pipe or epoll descriptor, a thread, or a child process. It must not leave an
orphan either: a process whose parent was started by the test and has ended (on Linux). asyncio and
Tornado must not log an error ("Task was destroyed but it is pending", "Exception in callback …").

A leak is a resource that exists after the test but not before it, so the resources of a module- or
session-scoped fixture are not leaks of its tests. Some resources end shortly after the test (a
thread, an exiting child), so `find_leaks` checks repeatedly until the leaks are gone or a deadline
has passed.

`watch` changes this process: it replaces functions that create event loops and processes. The
plugin, `distributed.testing.plugin`, calls it for the first test that asks for the check. This
module depends on the rest of the package only in `_registries`, and reads a registry only if a test
has imported its module. Descriptors and processes are found on systems with ``/proc`` only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

__all__ = ["UnhandledErrors", "find_leaks", "resources", "watch"]

#: Prefixes of the names of threads that a process starts once and keeps.
_LASTING_THREADS = ("Dask-Offload",)

#: Kinds of descriptors to check. An open file is a `ResourceWarning`, which is an error already.
_DESCRIPTOR_KINDS = ("socket:", "pipe:", "anon_inode:")

#: Loggers of errors that do not reach the code that caused them.
_LOGGERS_OF_UNHANDLED_ERRORS = ("asyncio", "tornado.application")

#: Every stdlib event loop created since this plugin was loaded, added by its patched `__init__`.
_loops: weakref.WeakSet[asyncio.BaseEventLoop] = weakref.WeakSet()

#: The option of prctl(2) by which the kernel makes this process the parent of orphans.
_PR_SET_CHILD_SUBREAPER = 36

#: The ids of the processes that this process started itself. Its other children are orphans.
_started: set[int] = set()


def watch(patch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Start to record event loops and processes; return a function that stops it.

    Parameters
    ----------
    patch
        Replaces functions; undone by the returned function.
    """
    # asyncio has no list of all loops, and tasks can be found only through their loop.
    _loops.update(o for o in gc.get_objects() if issubclass(type(o), asyncio.BaseEventLoop))
    original = asyncio.BaseEventLoop.__init__

    def remembering(self: asyncio.BaseEventLoop, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _loops.add(self)

    patch.setattr(asyncio.BaseEventLoop, "__init__", remembering)
    if sys.platform != "linux":
        return patch.undo
    _adopt_orphans(patch)

    def stop() -> None:
        patch.undo()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    return stop


def _starters() -> Iterator[tuple[Any, str]]:
    """Yield the functions that start processes; subprocess has its own reference to the last."""
    import _posixsubprocess

    yield from ((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp"))
    yield _posixsubprocess, "fork_exec"
    yield subprocess, "_fork_exec"


def _adopt_orphans(patch: pytest.MonkeyPatch) -> None:
    """Make this process the parent of orphans, and note which children it starts itself."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    _started.update(_child_ids())

    def noting(start: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(start)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = start(*args, **kwargs)
            # forkpty() returns a descriptor as well; the child gets 0.
            _started.add(result[0] if isinstance(result, tuple) else result)
            return result

        return wrapper

    for module, name in _starters():
        patch.setattr(module, name, noting(getattr(module, name)))


def resources() -> Snapshot:
    """Return the keys of the existing resources of each kind, for `find_leaks`."""
    return {search: frozenset(key for key, _ in search()) for search in SEARCHES}


def find_leaks(before: Snapshot, deadline: float, lasting_threads: Sequence[str] = ()) -> list[str]:
    """Describe resources that exist now but not before, and still do after ``deadline`` seconds.

    Parameters
    ----------
    before
        The result of `resources` before the test.
    deadline
        Seconds before a remaining resource is a leak.
    lasting_threads
        Prefixes of the names of threads that are not leaks.
    """
    lasting = (*_LASTING_THREADS, *lasting_threads)

    def found() -> list[str]:
        return [
            f"  {describe()}"
            for search in SEARCHES
            for key, describe in search()
            if key not in before[search]
            and not (isinstance(key, threading.Thread) and key.name.startswith(lasting))
        ]

    leaks = found()
    if leaks:
        gc.collect()  # an unreachable cycle is not a leak; too slow to run after every test
        end = time.monotonic() + deadline
        while (leaks := found()) and time.monotonic() < end:
            time.sleep(0.01)
    return leaks


#: A resource: a key, unique among existing resources, that does not keep the resource alive, and a
#: function that describes the resource in one line.
Resource = tuple[Hashable, Callable[[], str]]

#: A function that finds the resources of one kind → the keys of those that it found.
Snapshot = dict[Callable[[], Iterator[Resource]], frozenset[Hashable]]


def _tasks() -> Iterator[Resource]:
    for loop in list(_loops):
        for task in asyncio.all_tasks(loop):
            yield weakref.ref(task), partial(_describe_task, task)


def _open_loops() -> Iterator[Resource]:
    for loop in list(_loops):
        if not loop.is_closed():
            yield weakref.ref(loop), partial("event loop, not closed: {!r}".format, loop)


def _registries() -> Iterator[tuple[str, Any, Callable[[Any], bool]]]:
    """Yield the name, the instances and a test for openness of each kind with a loaded module."""
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


def _package_objects() -> Iterator[Resource]:
    for what, instances, is_open in _registries():
        for instance in list(instances):
            if is_open(instance):
                yield weakref.ref(instance), partial("{}: {!r}".format, what, instance)


def _threads() -> Iterator[Resource]:
    for thread in threading.enumerate():
        yield thread, partial(_describe_thread, thread)


def _descriptors() -> Iterator[Resource]:
    tracker_fd = getattr(_resource_tracker(), "_fd", None)
    for name in _listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself, or closed by another thread
            continue
        if target.startswith(_DESCRIPTOR_KINDS) and int(name) != tracker_fd:
            yield (name, target), partial(_describe_descriptor, int(name), target)


def _children() -> Iterator[Resource]:
    tracker_pid = getattr(_resource_tracker(), "_pid", None)
    multiprocessing.active_children()  # reaps children that have ended, which are not leaks
    for pid in _child_ids():
        if pid in _started:
            if pid != tracker_pid:
                yield pid, partial(_describe_child, "child process", pid)
        elif not _reap(pid):
            yield pid, partial(_describe_child, "orphan process", pid)


def _reap(pid: int) -> bool:
    """Return whether an orphan has ended, and free its entry in the table of processes."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:  # another thread was faster
        return True


def _child_ids() -> Iterator[int]:
    for thread_id in _listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread_id}/children") as file:
                pids = [int(pid) for pid in file.read().split()]
        except OSError:  # the thread has ended since the listing
            continue
        yield from pids


#: One function per kind of resource, in the order of the report: causes before their consequences.
SEARCHES: tuple[Callable[[], Iterator[Resource]], ...] = (
    _package_objects,
    _tasks,
    _children,
    _threads,
    _open_loops,
    _descriptors,
)


class UnhandledErrors(logging.Handler):
    """The errors that asyncio and Tornado log.

    A test that causes such an error on purpose captures it with
    `distributed.utils_test.captured_logger`.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter().format(record).replace("\n", "\n    ")
        self.messages.append(f"  an error that {record.name} logged: {text}")

    def __enter__(self) -> UnhandledErrors:
        for name in _LOGGERS_OF_UNHANDLED_ERRORS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in _LOGGERS_OF_UNHANDLED_ERRORS:
            logging.getLogger(name).removeHandler(self)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:  # this system does not have /proc
        return []


def _resource_tracker() -> object:
    # multiprocessing starts a tracker process at the first "spawn", and keeps it and a pipe to it.
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


def _describe_child(what: str, pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except FileNotFoundError:
        command = "(gone by now)"
    return f"{what} {pid}: {command or '(ended, but not waited for)'}"


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

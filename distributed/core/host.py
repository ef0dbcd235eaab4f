"""Objects that this core shares with the roles above it and with code that uses both.

The original's Scheduler, Worker, Nanny and Client can run on this core.  Their own modules then
stand behind the doors (``distributed.metrics`` and others).  An object that must be the same for
them and for this core is looked up here, by its faithful name, and nowhere else.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from tornado.ioloop import IOLoop

from distributed._async_taskgroup import AsyncTaskGroupClosedError
from distributed.base import config, metering
from distributed.base.event_loop import asyncio_loop_of
from distributed.comm import Comm
from distributed.metrics import context_meter
from distributed.system_monitor import SystemMonitor
from distributed.telemetry import monitor

__all__ = [
    "AsyncTaskGroupClosedError",
    "SystemMonitor",
    "connect",
    "context_meter",
    "is_role",
    "own_monitor",
    "replaceable",
    "start_profile",
    "stop_profile",
]

# Event loop → the open servers on it that want its profile; the thread that takes the profile runs
# until its set is empty. A set that became empty is not filled again, since its thread has ended.
_profiled: WeakKeyDictionary[IOLoop, WeakSet[Any]] = WeakKeyDictionary()

# A private attribute, so another version of the meter may lack it; then everything is measured.
_callbacks = getattr(context_meter, "_callbacks", None)
metering.connect(context_meter.meter, (lambda: True) if _callbacks is None else _callbacks.get)


#: What creates the system monitor of each server.  None: the servers of a process share one, as
#: they measure the same process.  The roles of the original replace methods of their monitor, so
#: each has its own.
own_monitor = None if SystemMonitor is monitor.SystemMonitor else SystemMonitor


def replaceable(name: str, default: Any) -> Any:
    """Return the attribute *name* of ``distributed.core``, or *default* if it has none.

    Code written for the original replaces ``distributed.core.connect`` and
    ``distributed.core.tick_maximum_delay``, so both are looked up at each use.
    """
    return vars(sys.modules["distributed.core"]).get(name, default)


async def connect(addr: str, *args: Any, **kwargs: Any) -> Comm:
    """Connect to *addr* by ``distributed.core.connect``, looked up now."""
    comm: Comm = await vars(sys.modules["distributed.core"])["connect"](addr, *args, **kwargs)
    return comm


def is_role(server: Any) -> bool:
    """Return whether *server* is a Scheduler, Worker or Nanny of the original."""
    node = sys.modules.get("distributed.node")
    return node is not None and isinstance(server, node.ServerNode)


def start_profile(server: Any) -> None:
    """Profile the current event loop, in a thread, until no server on it wants its profile.

    The thread is that of ``distributed.profile``, which belongs to the roles: without them, this
    function does nothing. They read the profile from the attribute ``profile`` of the event loop.

    Parameters
    ----------
    server
        A server on the event loop of the current thread; see `stop_profile`.
    """
    profile = sys.modules.get("distributed.profile")
    if profile is None:
        return
    loop = server.io_loop
    if servers := _profiled.get(loop):
        servers.add(server)
        return
    # As in the original, the loop is not profiled on CPython 3.11, where reading the frames of a
    # running thread can crash the process.
    if not config.get("distributed.worker.profile.enabled") or sys.version_info.minor == 11:
        loop.profile = getattr(loop, "profile", deque())
        return
    servers = _profiled[loop] = WeakSet([server])
    loop_ref = ref(loop)

    def is_over() -> bool:
        loop = loop_ref()
        return not servers or loop is None or asyncio_loop_of(loop).is_closed()

    loop.profile = profile.watch(
        omit=("profile.py", "selectors.py"),
        interval=config.get("distributed.worker.profile.interval"),
        cycle=config.get("distributed.worker.profile.cycle"),
        stop=is_over,
    )


def stop_profile(server: Any) -> None:
    """End the profile of the event loop of *server* if no other server wants it."""
    servers = _profiled.get(server.io_loop)
    if servers is not None:
        servers.discard(server)

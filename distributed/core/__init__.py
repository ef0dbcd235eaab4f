"""Servers that answer operations, and objects that call them: the original's names.

``connect`` and ``tick_maximum_delay`` may be replaced in this module, because this package looks
them up here at each use (:mod:`distributed.core.host`).
"""

from __future__ import annotations

from typing import Any

from distributed.base import config
from distributed.base.version import __version__ as __core_version__
from distributed.comm import Comm, CommClosedError, connect, get_address_host_port, listen
from distributed.core.answers import run_to_completion
from distributed.core.calls import (
    RequestRefused,
    RPCClosed,
    addr_from_args,
    coerce_to_address,
    send_recv,
)
from distributed.core.child import ChildProcess
from distributed.core.deadlines import remaining_time, timeout
from distributed.core.description import typed
from distributed.core.errors.messages import (
    ErrorMessage,
    OKMessage,
    clean_exception,
    error_message,
    exception_from,
    raise_later,
)
from distributed.core.metering import context_meter_to_server_digest
from distributed.core.pool import ConnectionPool, PooledRPCCall
from distributed.core.remote import rpc
from distributed.core.requests import _expects_comm, pingpong
from distributed.core.running import announce, run, serve
from distributed.core.server import Server
from distributed.core.signals import end_with_parent, exit_without_threads
from distributed.core.status import Status
from distributed.core.tasks import (
    AsyncTaskGroup,
    AsyncTaskGroupClosedError,
    NoOpAwaitable,
    wait_from_thread,
)

__all__ = [
    "AsyncTaskGroup",
    "AsyncTaskGroupClosedError",
    "ChildProcess",
    "Comm",
    "CommClosedError",
    "ConnectionPool",
    "ErrorMessage",
    "NoOpAwaitable",
    "OKMessage",
    "PooledRPCCall",
    "RPCClosed",
    "RequestRefused",
    "Server",
    "Status",
    "__core_version__",
    "_expects_comm",
    "addr_from_args",
    "announce",
    "clean_exception",
    "coerce_to_address",
    "connect",
    "context_meter_to_server_digest",
    "end_with_parent",
    "error_message",
    "exception_from",
    "exit_without_threads",
    "get_address_host_port",
    "listen",
    "pingpong",
    "raise_later",
    "remaining_time",
    "rpc",
    "run",
    "run_to_completion",
    "send_recv",
    "serve",
    "timeout",
    "typed",
    "wait_from_thread",
]


def __getattr__(name: str) -> Any:
    if name == "tick_maximum_delay":
        return config.get_timedelta("distributed.admin.tick.limit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

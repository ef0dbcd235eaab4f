"""The system monitor that the servers of one process share.

A `SystemMonitor` describes the process and its host, and not a server. All servers of a process
therefore use the same one, and one sample per interval is enough for all of them. It exists from
its first use by a server until the last of these servers is closed.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet, ref

from distributed.telemetry.meter import monotonic
from distributed.telemetry.monitor import SystemMonitor

__all__ = ["ProcessMonitor", "process_monitor"]


class ProcessMonitor:
    """A `SystemMonitor` with many users, in any thread."""

    # Invariant: `_monitor` is open while `_users` is not empty. Users keep the monitor alive, so
    # that it goes with a user that was never closed.
    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._users: WeakSet[Any] = WeakSet()
        self._monitor: ref[SystemMonitor] | None = None

    def join(self, user: Any) -> SystemMonitor:
        """Return the monitor, which *user* must keep, and create it if *user* is the first."""
        with self._lock:
            monitor = None if self._monitor is None else self._monitor()
            if monitor is None:
                monitor = SystemMonitor()
                self._monitor = ref(monitor)
            self._users.add(user)
            return monitor

    def leave(self, user: Any) -> None:
        """End the use by *user*, and close the monitor if *user* is the last."""
        with self._lock:
            if user not in self._users:
                return
            self._users.discard(user)
            if not self._users and self._monitor is not None:
                monitor = self._monitor()
                self._monitor = None
                if monitor is not None:
                    monitor.close()

    def sample(self, monitor: SystemMonitor, max_age: float) -> None:
        """Take a sample, unless another user took one in the last *max_age* seconds."""
        with self._lock:
            if monotonic() - monitor.last_time >= max_age:
                monitor.update()


#: The monitor of this process.
process_monitor = ProcessMonitor()

# The parent's monitor measures the parent, and another thread may have held the lock.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=process_monitor._reset)

"""Figures of this process: CPU time, memory, file descriptors, threads, garbage collections.

Reading them takes some tens of microseconds, also with thousands of file descriptors, since Linux
tells their number without listing them (since version 6.2).
"""

from __future__ import annotations

import functools
import gc
import os
import threading
from time import process_time
from typing import Any

__all__ = ["process_figures"]


def process_figures() -> dict[str, Any]:
    """Return the figures of this process; a value that the system does not give is None.

    Returns
    -------
    dict
        ``cpu_seconds``, ``memory`` (resident) and ``virtual_memory`` in bytes, ``open_fds``,
        ``max_fds``, ``threads`` (of Python), ``start_time`` in seconds since the epoch, and
        ``gc_collections``, a list by generation.

    Examples
    --------
    >>> process_figures()["threads"] >= 1
    True
    """
    virtual, resident = _memory()
    return {
        "cpu_seconds": process_time(),
        "memory": resident,
        "virtual_memory": virtual,
        "open_fds": _open_fds(),
        "max_fds": _max_fds(),
        "threads": threading.active_count(),
        "start_time": _start_time(os.getpid()),
        "gc_collections": [generation["collections"] for generation in gc.get_stats()],
    }


def _memory() -> tuple[int | None, int | None]:
    """Return the virtual and the resident memory in bytes: see proc(5)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except OSError:
        return None, None
    page = os.sysconf("SC_PAGE_SIZE")
    return int(virtual) * page, int(resident) * page


def _open_fds() -> int | None:
    directory = "/proc/self/fd"
    try:
        # Other systems, and older versions of Linux, give 0.
        return os.stat(directory).st_size or len(os.listdir(directory)) - 1
    except OSError:
        return None


def _max_fds() -> int | None:
    try:
        import resource
    except ImportError:
        # Windows.
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


@functools.lru_cache(maxsize=1)
def _start_time(pid: int) -> float | None:
    """Return the time at which this process, *pid*, started."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # The second field, the name of the program, may contain anything but ends with ")".
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/stat", "rb") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
    except (OSError, StopIteration):
        return None
    return float(boot + ticks / os.sysconf("SC_CLK_TCK"))

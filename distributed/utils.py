"""Door to the utility functions of :mod:`distributed.base`, by the original's name."""

from asyncio import TimeoutError

from distributed.base.buffers import ensure_memoryview, nbytes
from distributed.base.callables import has_keyword, import_term, iscoroutinefunction
from distributed.base.event_loop import OFFLOAD_THREAD_NAME, offload, shutdown_offload, wait_for
from distributed.base.host_addresses import ensure_ip, get_ip, get_ip_interface, get_ipv6
from distributed.base.quantities import parse_bytes, parse_timedelta

__all__ = [
    "OFFLOAD_THREAD_NAME",
    "TimeoutError",
    "ensure_ip",
    "ensure_memoryview",
    "get_ip",
    "get_ip_interface",
    "get_ipv6",
    "has_keyword",
    "import_term",
    "iscoroutinefunction",
    "nbytes",
    "offload",
    "parse_bytes",
    "parse_timedelta",
    "shutdown_offload",
    "wait_for",
]

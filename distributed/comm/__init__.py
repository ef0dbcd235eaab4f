"""Comms: connections that carry messages, over any transport."""

from __future__ import annotations

from distributed.comm.addressing import (
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    get_tcp_server_address,
    get_tcp_server_addresses,
    normalize_address,
    parse_address,
    parse_host_port,
    resolve_address,
    unparse_address,
    unparse_host_port,
)
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.comm.registry import backends

__all__ = [
    "Comm",
    "CommClosedError",
    "backends",
    "connect",
    "get_address_host",
    "get_address_host_port",
    "get_local_address_for",
    "get_tcp_server_address",
    "get_tcp_server_addresses",
    "listen",
    "normalize_address",
    "parse_address",
    "parse_host_port",
    "resolve_address",
    "unparse_address",
    "unparse_host_port",
]

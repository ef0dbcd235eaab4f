"""The figures of a server: one snapshot of what it counts and measures.

`figures` is the one source of every view into a running server: ``/metrics``, ``/json`` and the
live page.  The counting itself is done where things happen: requests in
:mod:`distributed.core.requests`, bytes in :mod:`distributed.comm`.  A snapshot reads the counters,
makes no system call that can wait, and lists a limited number of peers, so that it takes about a
millisecond also on a server with thousands of connections.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter
from time import monotonic, time
from typing import Any

import msgpack
import tornado

from distributed.base.budget import budget_of
from distributed.base.event_loop import asyncio_loop_of
from distributed.base.text import shown
from distributed.base.traffic import Traffic
from distributed.base.version import __version__
from distributed.comm.core import BaseListener, Listener
from distributed.core.server import Server
from distributed.telemetry.loop_delay import delay_of
from distributed.telemetry.process_figures import process_figures
from distributed.telemetry.request_counts import (
    KEPT_ERRORS,
    LATENCY_BOUNDS,
    OUTCOMES,
    described,
    with_sums,
)

__all__ = ["aggregate", "figures"]

#: Maximum number of peers that a snapshot lists.
MAX_PEERS = 200

#: Maximum number of characters of a name that a peer may have chosen.
_NAME_LENGTH = 200

_VERSIONS = {
    "distributed": __version__,
    "python": platform.python_version(),
    "tornado": tornado.version,
    "msgpack": ".".join(map(str, msgpack.version)),
}


def figures(server: Server, *, max_peers: int = MAX_PEERS) -> dict[str, Any]:
    """Return what a server counts and measures, as plain values that JSON can carry.

    Call it in the thread of the server's event loop.  All counts begin with the server.  A time is
    in seconds; a point in time is in seconds since the epoch; a value that is not measured is None.

    Parameters
    ----------
    server
        The server.
    max_peers
        Maximum number of peers in ``"peers"``.

    Returns
    -------
    dict
        ``time`` (s since the epoch)
            When the snapshot was taken.
        ``server``
            ``type`` (name of the class), ``id``, ``status`` (such as ``"running"``), ``address``
            (or None), ``addresses`` (list: all that it listens at), ``pid``, ``started`` (s since
            the epoch, or None), ``uptime`` (s), ``versions`` (name of a library → version).
        ``connections``
            Incoming connections.  ``open`` and ``active`` (with a request in progress), now.
            ``handshaking``: now.  ``accepted``: all that completed the handshake.
            ``refused``: reason → number; the reasons are ``max-connections``,
            ``max-connections-per-host`` and ``closing``.  ``failed``: handshakes that failed;
            reason → number; the reasons are ``timeout``, ``authentication`` and ``other``.
        ``peers``
            A list of dicts; first those with a request in progress, then the oldest connections:
            ``address``, ``transport`` (scheme of the address), ``seconds`` (age of the
            connection), ``op`` (in progress, or None).
        ``peers_omitted``
            The number of peers that are left out.
        ``requests``
            ``in_progress``: now.  ``outcomes``: outcome → number, summed over the operations; see
            there.  ``rejected``: reason → number of requests for which no handler was started; the
            reasons are ``unknown-op``, ``blocked``, ``closing`` and ``malformed``.
        ``latency_bounds`` (s)
            A list: the upper bounds of the buckets of all latencies.
        ``operations``
            Operation → dict.  Only operations that have a handler and were called are there.
            ``outcomes``: outcome → number of requests that have ended; the outcomes are ``ok``,
            ``error`` (of the handler), ``timeout`` (the caller's deadline), ``cancelled`` and
            ``disconnected``.  ``count`` and ``errors``: the sum of the outcomes, and of those
            other than ``ok``.  ``in_progress``: now.  ``seconds``: the sum of the latencies.
            ``buckets``: a list of numbers of requests, one per bound and one for longer ones; not
            cumulative.  ``quantiles``: ``"0.5"``, ``"0.9"`` and ``"0.99"`` → estimated latency
            (s), or None before the first request.
        ``streams``
            One-way streams of peers (``connection_stream``): ``open`` and ``handlers`` (coroutine
            handlers that run), now; ``opened``, ``failed`` (by a handler) and ``messages``.
            Streaming calls: ``answers`` (in progress), now; ``items`` (sent).
            ``conversations`` (in progress), now.
        ``traffic``
            Transport (scheme) → dict of ``messages_received``, ``bytes_received``,
            ``messages_sent``, ``bytes_sent``; and of back-pressure: ``writes_waiting`` (for the
            peer to read), now, ``waits`` (all writes that had to wait), ``seconds_waited`` (of
            those that have ended).  Of incoming connections and those of the server's pool.
        ``pool``
            Connections to other servers: ``limit``, ``open``, ``active``, ``connecting``,
            ``waiting`` (calls that wait for a connection), now; ``waits`` and ``seconds_waited``.
        ``batched``
            All ``BatchedSend`` of the event loop: ``open``, ``messages`` and ``bytes`` (that wait
            to be written), ``unacknowledged`` (messages), now; ``batches_written`` and
            ``messages_written``.
        ``event_loop``
            ``delay`` (s by which the last timer was late), ``delay_max`` (the longest so far),
            ``delay_sum`` (s), ``delay_count``, and ``delay_buckets`` (as the ``buckets`` above).
            Measured inside of :func:`distributed.telemetry.loop_delay.measuring`; before that,
            ``delay`` and ``delay_max`` are None.
        ``ticks``
            ``count``, and ``max`` (s; the longest time between two): those of the server's
            periodic callbacks, if these are started.
        ``process``
            ``cpu_seconds``, ``memory`` (resident, bytes), ``virtual_memory`` (bytes),
            ``open_fds``, ``max_fds``, ``threads``, ``start_time`` (s since the epoch),
            ``gc_collections`` (list, by generation).
        ``errors``
            The newest failures of handlers, the newest first: a list of dicts with ``time`` (s
            since the epoch), ``op``, ``peer``, ``type``, ``message``.  The texts are printable
            lines of limited length; a peer may have chosen them.  ``errors_total`` counts all.

    Examples
    --------
    >>> import asyncio
    >>> async def main():
    ...     async with Server({}) as server:
    ...         return figures(server)["server"]["type"]
    >>> asyncio.run(main())
    'Server'
    """
    now = time()
    clock = monotonic()
    # Copies, since a subclass may be called while this runs.
    comms = dict(server._comms)
    busy = [(comm, op) for comm, op in comms.items() if op is not None]
    idle = ((comm, op) for comm, op in comms.items() if op is None)
    in_progress = Counter(op for _, op in busy)
    active = len(busy)
    requests = server._server_requests
    counts = requests.counts
    operations = described(counts.operations, in_progress)
    streams = server._server_streams
    return {
        "time": now,
        "server": _describe(server, now, clock),
        "connections": {
            "open": len(comms),
            "active": active,
            **_handshakes(server.listeners, requests._admission.refused),
        },
        "peers": [
            {
                "address": shown(comm.peer_address, _NAME_LENGTH),
                "transport": comm.peer_address.partition("://")[0],
                "seconds": None if comm.owned_since is None else clock - comm.owned_since,
                "op": op,
            }
            for comm, op in islice(chain(busy, idle), max_peers)
        ],
        "peers_omitted": max(0, len(comms) - max_peers),
        "requests": {
            "in_progress": active,
            "outcomes": _sum(operation["outcomes"] for operation in operations.values())
            or dict.fromkeys(OUTCOMES, 0),
            "rejected": dict(counts.rejected),
        },
        "latency_bounds": list(LATENCY_BOUNDS),
        "operations": operations,
        "streams": {
            "open": len(streams._streams),
            "handlers": len(streams._tasks),
            "opened": streams.opened,
            "failed": streams.failed,
            "messages": streams.messages,
            "answers": counts.answers,
            "items": counts.items,
            "conversations": counts.conversations,
        },
        "traffic": _sum_by_name([_as_dicts(requests.traffic), _as_dicts(server.rpc.traffic)]),
        "pool": {
            "limit": server.rpc.limit if math.isfinite(server.rpc.limit) else None,
            "open": server.rpc.open,
            "active": server.rpc.active,
            "connecting": server.rpc._connecting_count,
            "waiting": server.rpc._pending_count,
            "waits": server.rpc.waits,
            "seconds_waited": server.rpc.seconds_waited,
        },
        **_of_loop(asyncio_loop_of(server.io_loop)),
        "ticks": {
            "count": server._tick_counter,
            "max": server.digests_max.get("tick-duration"),
        },
        "process": process_figures(),
        "errors": list(reversed(counts.errors)),
        "errors_total": counts.errors_total,
    }


def aggregate(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of several servers on one event loop together.

    Parameters
    ----------
    snapshots
        Results of :func:`figures`, taken at about the same time; at least one.

    Returns
    -------
    dict
        As of :func:`figures`: counts are summed, the lists of peers and errors are joined, and
        what belongs to the process or to the event loop is that of the first.  ``server`` is that
        of the first, too, and ``servers`` is the list of all.

    Examples
    --------
    >>> async def main():
    ...     async with Server({}) as first, Server({}) as second:
    ...         return aggregate([figures(first), figures(second)])
    >>> len(asyncio.run(main())["servers"])
    2
    """
    first = snapshots[0]
    operations = _sum_by_name([each["operations"] for each in snapshots])
    longest = [each["ticks"]["max"] for each in snapshots if each["ticks"]["max"] is not None]
    errors = [error for each in snapshots for error in each["errors"]]
    limits = [each["pool"]["limit"] for each in snapshots]
    return {
        **first,
        "servers": [each["server"] for each in snapshots],
        **{
            name: _sum(each[name] for each in snapshots)
            for name in ("connections", "requests", "streams", "pool")
        },
        "pool": {
            **_sum({**each["pool"], "limit": 0} for each in snapshots),
            "limit": None if None in limits else sum(limits),
        },
        "peers": [peer for each in snapshots for peer in each["peers"]],
        "peers_omitted": sum(each["peers_omitted"] for each in snapshots),
        "operations": {op: with_sums(one) for op, one in operations.items()},
        "traffic": _sum_by_name([each["traffic"] for each in snapshots]),
        "ticks": {
            "count": sum(each["ticks"]["count"] for each in snapshots),
            "max": max(longest, default=None),
        },
        "errors": sorted(errors, key=itemgetter("time"), reverse=True)[:KEPT_ERRORS],
        "errors_total": sum(each["errors_total"] for each in snapshots),
    }


def _describe(server: Server, now: float, clock: float) -> dict[str, Any]:
    address = server.address_safe
    uptime = None if server._started_at is None else clock - server._started_at
    return {
        "type": type(server).__name__,
        "id": server.id,
        "status": server.status.name,
        "address": None if address == "not-running" else address,
        "addresses": [listener.contact_address for listener in server.listeners],
        "pid": os.getpid(),
        "started": None if uptime is None else now - uptime,
        "uptime": uptime,
        "versions": dict(_VERSIONS),
    }


def _handshakes(listeners: Iterable[Listener], refused: Mapping[str, int]) -> dict[str, Any]:
    """Return the figures of connections that are not served yet, or never."""
    own = [listener for listener in listeners if isinstance(listener, BaseListener)]
    return {
        "handshaking": sum(listener.unfinished_handshakes for listener in own),
        "accepted": sum(listener.handshakes.accepted for listener in own),
        "refused": dict(refused),
        "failed": {
            reason: sum(getattr(listener.handshakes, reason) for listener in own)
            for reason in ("timeout", "authentication", "other")
        },
    }


def _of_loop(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Return the figures of an event loop, which its servers share."""
    delay, budget = delay_of(loop), budget_of(loop)
    streams = [stream for stream in budget.streams if not stream.closed()]
    return {
        "batched": {
            "open": len(streams),
            "messages": sum(len(stream.buffer) for stream in streams),
            "bytes": sum(stream.buffered_bytes for stream in streams),
            "unacknowledged": sum(stream.unacknowledged for stream in streams),
            "batches_written": budget.batches,
            "messages_written": budget.messages,
        },
        "event_loop": {
            "delay": delay.last,
            "delay_max": delay.longest,
            "delay_sum": delay.total,
            "delay_count": delay.count,
            "delay_buckets": list(delay.buckets),
        },
    }


def _as_dicts(traffic: Mapping[str, Traffic]) -> dict[str, dict[str, float]]:
    return {transport: each.as_dict() for transport, each in traffic.items()}


def _sum_by_name(mappings: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return name → the sum of what the mappings have for this name."""
    found: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for mapping in mappings:
        for name, values in mapping.items():
            found[name].append(values)
    return {name: _sum(values) for name, values in found.items()}


def _sum(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add mappings whose values are numbers, lists of numbers of one length, or such mappings."""
    every = list(mappings)
    names = dict.fromkeys(name for mapping in every for name in mapping)
    result: dict[str, Any] = {}
    for name in names:
        values = [mapping[name] for mapping in every if name in mapping]
        if isinstance(values[0], Mapping):
            result[name] = _sum(values)
        elif isinstance(values[0], list):
            result[name] = [sum(numbers) for numbers in zip(*values, strict=True)]
        else:
            result[name] = sum(values)
    return result

"""The figures of a server: one snapshot of what it counts and measures.

`figures` is the one source of every view into a running server: ``/metrics``, ``/json`` and the
live page.  The counting itself is done where things happen: requests in
:mod:`distributed.core.requests`, bytes in :mod:`distributed.comm`.  A snapshot reads the counters,
makes no system call that can wait, and lists a limited number of peers, so that it takes about a
millisecond also on a server with thousands of connections.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from itertools import islice
from time import process_time, time
from typing import Any

import msgpack
import tornado

from distributed.base.text import shown
from distributed.base.version import __version__
from distributed.core.server import Server

__all__ = ["figures"]

#: Maximum number of peers that a snapshot lists.
MAX_PEERS = 200

#: Maximum number of characters of a name that a peer may have chosen.
_NAME_LENGTH = 200

#: Upper bounds of the buckets of latencies, in seconds; a last bucket has no bound.
LATENCY_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

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
            A list of dicts, the oldest connection first: ``address``, ``transport`` (scheme of the
            address), ``seconds`` (age of the connection), ``op`` (in progress, or None).
            ``peers_omitted`` is the number of peers that are left out.
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
            ``delay_sum``, ``delay_count``, and ``delay_buckets`` (as the ``buckets`` above).
            ``ticks`` and ``tick_max`` (s): those of the server's periodic callbacks, if started.
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
    comms = server._comms
    in_progress = Counter(comms.values())
    idle = in_progress.pop(None, 0)
    active = len(comms) - idle
    operations = {
        op: {
            "outcomes": dict.fromkeys(("ok", "error", "timeout", "cancelled", "disconnected"), 0),
            "count": 0,
            "errors": 0,
            "in_progress": number,
            "seconds": 0.0,
            "buckets": [0] * (len(LATENCY_BOUNDS) + 1),
            "quantiles": {"0.5": None, "0.9": None, "0.99": None},
        }
        for op, number in in_progress.items()
    }
    return {
        "time": now,
        "server": {
            "type": type(server).__name__,
            "id": server.id,
            "status": server.status.name,
            "address": server.address if server.listeners else None,
            "addresses": [listener.contact_address for listener in server.listeners],
            "pid": os.getpid(),
            "started": None,
            "uptime": 0.0,
            "versions": dict(_VERSIONS),
        },
        "connections": {
            "open": len(comms),
            "active": active,
            "handshaking": 0,
            "accepted": 0,
            "refused": {"max-connections": 0, "max-connections-per-host": 0, "closing": 0},
            "failed": {"timeout": 0, "authentication": 0, "other": 0},
        },
        "peers": [
            {
                "address": shown(comm.peer_address, _NAME_LENGTH),
                "transport": comm.peer_address.partition("://")[0],
                "seconds": 0.0,
                "op": op,
            }
            for comm, op in islice(comms.items(), max_peers)
        ],
        "peers_omitted": max(0, len(comms) - max_peers),
        "requests": {
            "in_progress": active,
            "outcomes": {"ok": 0, "error": 0, "timeout": 0, "cancelled": 0, "disconnected": 0},
            "rejected": {"unknown-op": 0, "blocked": 0, "closing": 0, "malformed": 0},
        },
        "latency_bounds": list(LATENCY_BOUNDS),
        "operations": operations,
        "streams": {
            "open": len(server._server_streams._streams),
            "handlers": len(server._server_streams._tasks),
            "opened": 0,
            "failed": 0,
            "messages": 0,
            "answers": 0,
            "items": 0,
            "conversations": 0,
        },
        "traffic": {},
        "pool": {
            "limit": server.rpc.limit,
            "open": server.rpc.open,
            "active": server.rpc.active,
            "connecting": server.rpc._connecting_count,
            "waiting": server.rpc._pending_count,
            "waits": 0,
            "seconds_waited": 0.0,
        },
        "batched": {
            "open": 0,
            "messages": 0,
            "bytes": 0,
            "unacknowledged": 0,
            "batches_written": 0,
            "messages_written": 0,
        },
        "event_loop": {
            "delay": None,
            "delay_max": None,
            "delay_sum": 0.0,
            "delay_count": 0,
            "delay_buckets": [0] * (len(LATENCY_BOUNDS) + 1),
            "ticks": server._tick_counter,
            "tick_max": server.digests_max.get("tick-duration"),
        },
        "process": {
            "cpu_seconds": process_time(),
            "memory": None,
            "virtual_memory": None,
            "open_fds": None,
            "max_fds": None,
            "threads": None,
            "start_time": None,
            "gc_collections": [],
        },
        "errors": [],
        "errors_total": 0,
    }

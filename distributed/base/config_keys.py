"""Every configuration key that this package reads: its default, what it may be, and its meaning.

:mod:`distributed.base.config` reads values by this table, and refuses what it does not allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from distributed.base.config_kinds import (
    Choice,
    Compression,
    Duration,
    Flag,
    Kind,
    Names,
    Path,
    Secret,
    SecretPath,
    Size,
    Text,
    Whole,
)

__all__ = ["DEFAULTS", "KEYS", "Key"]


class Key(NamedTuple):
    """A configuration key."""

    default: Any
    #: What the value may be.
    kind: Kind


#: Minimum of timeouts and intervals for which 0 has no meaning, in seconds.  With shorter ones, a
#: server would close each connection, or do nothing but tick.
_SHORTEST = 0.001

#: Maximum of ``timeouts.tcp``, in seconds: four days.  The kernel has 15 bits for the interval of
#: keep-alive probes.
_MAX_TCP_TIMEOUT = 4 * 86400

#: The keys by name.  "null" means that the value may be null.
KEYS: Mapping[str, Key] = {
    # Parent directory of scratch directories; null: the system's temporary directory.
    "temporary-directory": Key(None, Path(null=True)),
    # Top-level packages whose modules are imported at a peer's request.
    "distributed.scheduler.allowed-imports": Key(["dask", "distributed"], Names()),
    # Operations that a Server with this class name (in lower case) refuses.
    "distributed.scheduler.blocked-handlers": Key([], Names(null=True)),
    "distributed.worker.blocked-handlers": Key([], Names(null=True)),
    "distributed.nanny.blocked-handlers": Key([], Names(null=True)),
    # Repeated calls of dask's roles.
    "distributed.comm.retry.count": Key(0, Whole()),
    "distributed.comm.retry.delay.min": Key("1s", Duration()),
    "distributed.comm.retry.delay.max": Key("20s", Duration()),
    # false, "auto", or the name of a compression that is installed.
    "distributed.comm.compression": Key(False, Compression(null=True)),
    # Maximum size of a frame; a larger one is split.
    "distributed.comm.shard": Key("64MiB", Size(minimum=1)),
    # Larger messages are (de)serialized in the offload thread; false or null: none is.
    "distributed.comm.offload": Key("10MiB", Size(null=True, false=True)),
    "distributed.comm.default-scheme": Key("tcp", Text()),
    "distributed.comm.socket-backlog": Key(2048, Whole(minimum=1, maximum=2**31 - 1)),
    # Whether to unpickle data from peers, which can run any code.
    "distributed.comm.allow-pickle": Key(True, Flag()),
    # Maximum size and number of frames of a received message; null: unlimited.
    "distributed.comm.max-message-size": Key(None, Size(null=True, minimum=1000)),
    "distributed.comm.max-frames": Key(2**20, Whole(null=True, minimum=1)),
    # Maximum nesting of collections whose elements are serialized one by one; null: unlimited.
    "distributed.comm.max-depth": Key(512, Whole(null=True, minimum=1)),
    # Maximum total size of a message's compressed frames after decompression; null: unlimited;
    # "auto": 1 GiB, or 32 times the bytes received if that is more.
    "distributed.comm.max-inflated-size": Key("auto", Size(null=True, auto=True)),
    # A handshake takes about 200 bytes; null: unlimited.
    "distributed.comm.max-handshake-size": Key("64kiB", Size(null=True, minimum=1000)),
    # Whether arrays in shared memory travel as such over unix://.
    "distributed.comm.shared.enabled": Key(True, Flag()),
    # Minimum size of ordinary memory that is copied into shared memory; false or null: none is.
    "distributed.comm.shared.threshold": Key(None, Size(null=True, false=True, minimum=65536)),
    # Maximum number of regions of shared memory in a message, and their total size; "auto": the
    # size of this host's memory.  Senders keep the limits of the receiver.
    "distributed.comm.shared.max-descriptors": Key(253, Whole(maximum=253)),
    "distributed.comm.shared.max-bytes": Key("auto", Size(auto=True)),
    # Maximum number of connections to a server, in total and per host; null: unlimited.
    "distributed.comm.max-connections": Key(100_000, Whole(null=True, minimum=1)),
    "distributed.comm.max-connections-per-host": Key(50_000, Whole(null=True, minimum=1)),
    # Maximum number of refused connections that wait to be told the reason.
    "distributed.comm.max-refusals": Key(500, Whole(null=True, minimum=1)),
    # Maximum number of running coroutine handlers of one stream (0 means 1); null: unlimited.
    "distributed.comm.max-stream-handlers": Key(1000, Whole(null=True)),
    # The secret that both sides of a connection share, as text or in a file; null: none.
    "distributed.comm.auth.token": Key(None, Secret(null=True)),
    "distributed.comm.auth.token-file": Key(None, Path(null=True)),
    # Whether a server that requires the token answers "health" to peers without it.
    "distributed.comm.auth.allow-health": Key(False, Flag()),
    # Negative levels are faster than level 1; a negative number of threads means all CPUs.
    "distributed.comm.zstd.level": Key(3, Whole(minimum=-131_072, maximum=22)),
    "distributed.comm.zstd.threads": Key(0, Whole(minimum=-1, maximum=200)),
    "distributed.comm.timeouts.connect": Key("30s", Duration(minimum=_SHORTEST)),
    # Time to receive the peer's handshake; null: the value of connect.
    "distributed.comm.timeouts.handshake": Key(None, Duration(null=True, minimum=_SHORTEST)),
    # Time without a request before a server closes a connection; null: unlimited.
    "distributed.comm.timeouts.idle": Key(None, Duration(null=True, minimum=_SHORTEST)),
    # Time to receive the request that the refusal of a connection answers.
    "distributed.comm.timeouts.refusal": Key("10s", Duration()),
    # Time that sent data may stay unacknowledged before the connection is closed; null: unlimited.
    "distributed.comm.timeouts.tcp": Key("30s", Duration(null=True, maximum=_MAX_TCP_TIMEOUT)),
    # Time between the probes that a peer gets while a call or a write waits for it; null: none.
    "distributed.comm.keepalive.interval": Key("15s", Duration(null=True, minimum=_SHORTEST)),
    # Time without a sign of life of that peer before the connection is closed.  It must be longer
    # than handlers block an event loop; less than two intervals count as two.
    "distributed.comm.keepalive.timeout": Key("5 minutes", Duration(minimum=_SHORTEST)),
    # true or false; null: true if TLS is configured.
    "distributed.comm.require-encryption": Key(None, Flag(null=True)),
    # Ciphers up to TLS 1.2, in OpenSSL's syntax; null: those of Python.
    "distributed.comm.tls.ciphers": Key(None, Text(null=True)),
    "distributed.comm.tls.min-version": Key(1.2, Choice(null=True, values=(1.2, 1.3))),
    "distributed.comm.tls.max-version": Key(None, Choice(null=True, values=(1.2, 1.3))),
    # Paths of PEM files, or PEM text; null: none.
    "distributed.comm.tls.ca-file": Key(None, Path(null=True)),
    "distributed.comm.tls.scheduler.cert": Key(None, Path(null=True)),
    "distributed.comm.tls.scheduler.key": Key(None, SecretPath(null=True)),
    "distributed.comm.tls.worker.cert": Key(None, Path(null=True)),
    "distributed.comm.tls.worker.key": Key(None, SecretPath(null=True)),
    "distributed.comm.tls.client.cert": Key(None, Path(null=True)),
    "distributed.comm.tls.client.key": Key(None, SecretPath(null=True)),
    "distributed.comm.websockets.shard": Key("8MiB", Size(minimum=1)),
    # Maximum size of the messages that wait in a BatchedSend; 0 or null: unlimited.
    "distributed.comm.batched.max-buffer-size": Key("1GiB", Size(null=True)),
    # Whether the receiver of a BatchedSend acknowledges its messages.
    "distributed.comm.batched.acknowledge": Key(True, Flag()),
    # Number of acknowledged streams without a connection that a server remembers, and for how long;
    # null: unlimited.
    "distributed.comm.batched.max-sessions": Key(10_000, Whole(null=True, minimum=1)),
    "distributed.comm.batched.session-timeout": Key("1h", Duration(null=True)),
    # Time between ticks of the event loop, time without a tick that is logged as unresponsive, and
    # time between averages; null: none.
    "distributed.admin.tick.interval": Key("20ms", Duration(null=True, minimum=_SHORTEST)),
    "distributed.admin.tick.limit": Key("3s", Duration(null=True)),
    "distributed.admin.tick.cycle": Key("1s", Duration(null=True, minimum=_SHORTEST)),
    # Maximum number of characters of a remote error's text, and of its traceback; null: unlimited.
    "distributed.admin.max-error-length": Key(10_000, Size(null=True)),
    # Maximum number of characters of a peer's value that an error or a log line shows.
    "distributed.admin.max-shown-length": Key(1000, Whole(minimum=1)),
    # Maximum number of characters that one statement logs within 10 s; more lines are only
    # counted; null: unlimited.
    "distributed.admin.log-limit": Key("100kB", Size(null=True)),
    # Maximum number of entries in logs of recent messages; null: unlimited.
    "distributed.admin.low-level-log-length": Key(1000, Whole(null=True)),
    # Time after which a server logs a request as slow; null: never.
    "distributed.admin.slow-call": Key(None, Duration(null=True)),
    # Time between samples, and their maximum number; null: none, and unlimited.
    "distributed.admin.system-monitor.interval": Key(
        "500ms", Duration(null=True, minimum=_SHORTEST)
    ),
    "distributed.admin.system-monitor.log-length": Key(7200, Whole(null=True, minimum=1)),
    "distributed.admin.system-monitor.disk": Key(True, Flag()),
    "distributed.admin.system-monitor.host-cpu": Key(False, Flag()),
    "distributed.admin.system-monitor.gil.enabled": Key(True, Flag()),
    "distributed.admin.system-monitor.gil.interval": Key("1ms", Duration(minimum=1e-6)),
}


def _nested(keys: Mapping[str, Key]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, (default, _) in keys.items():
        *parents, last = key.split(".")
        section = result
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = default
    return result


#: The defaults, nested by section.
DEFAULTS: Mapping[str, Any] = _nested(KEYS)

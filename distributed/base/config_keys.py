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
    #: What it does, in a sentence or two; "null: ..." says what null means.
    meaning: str


#: Minimum of timeouts and intervals for which 0 has no meaning, in seconds.  With shorter ones, a
#: server would close each connection, or do nothing but tick.
_SHORTEST = 0.001

#: Maximum of ``timeouts.tcp``, in seconds: four days.  The kernel has 15 bits for the interval of
#: keep-alive probes.
_MAX_TCP_TIMEOUT = 4 * 86400

#: The keys by name.
KEYS: Mapping[str, Key] = {
    "temporary-directory": Key(
        None,
        Path(null=True),
        "Parent directory of scratch directories; null: the system's temporary directory.",
    ),
    "distributed.scheduler.allowed-imports": Key(
        ["dask", "distributed"],
        Names(),
        "Top-level packages whose modules are imported at a peer's request.",
    ),
    "distributed.scheduler.blocked-handlers": Key(
        [],
        Names(null=True),
        "Operations that a Server of the class Scheduler refuses.",
    ),
    "distributed.worker.blocked-handlers": Key(
        [],
        Names(null=True),
        "Operations that a Server of the class Worker refuses.",
    ),
    "distributed.nanny.blocked-handlers": Key(
        [],
        Names(null=True),
        "Operations that a Server of the class Nanny refuses.",
    ),
    "distributed.server.shutdown-timeout": Key(
        "30s",
        Duration(),
        "Time for the requests in progress when a server is shut down; then they are cancelled.",
    ),
    "distributed.comm.retry.count": Key(
        0,
        Whole(),
        "Number of times that dask's roles repeat a failed call.",
    ),
    "distributed.comm.retry.delay.min": Key(
        "1s",
        Duration(),
        "Time before the first repetition of a failed call; it doubles with each further one.",
    ),
    "distributed.comm.retry.delay.max": Key(
        "20s",
        Duration(),
        "Maximum time before a repetition of a failed call.",
    ),
    "distributed.comm.compression": Key(
        False,
        Compression(null=True),
        'Compression of messages between hosts: "auto" or the name of an installed one; false: '
        "none.",
    ),
    "distributed.comm.shard": Key(
        "64MiB",
        Size(minimum=1),
        "Maximum size of a frame; a larger one is split.",
    ),
    "distributed.comm.offload": Key(
        "10MiB",
        Size(null=True, false=True),
        "Size from which messages are (de)serialized in the offload thread; false or null: none"
        " is.",
    ),
    "distributed.comm.default-scheme": Key(
        "tcp",
        Text(),
        "Scheme of addresses that have none.",
    ),
    "distributed.comm.socket-backlog": Key(
        2048,
        Whole(minimum=1, maximum=2**31 - 1),
        "Maximum number of connections that the kernel keeps until a server accepts them.",
    ),
    "distributed.comm.allow-pickle": Key(
        True,
        Flag(),
        "Whether to unpickle data from peers, which can run any code.",
    ),
    "distributed.comm.max-message-size": Key(
        None,
        Size(null=True, minimum=1000),
        "Maximum size of a received message; null: unlimited.",
    ),
    "distributed.comm.max-frames": Key(
        2**20,
        Whole(null=True, minimum=1),
        "Maximum number of frames of a received message; null: unlimited.",
    ),
    "distributed.comm.max-depth": Key(
        512,
        Whole(null=True, minimum=1),
        "Maximum nesting of collections whose elements are serialized one by one; null: unlimited.",
    ),
    "distributed.comm.max-inflated-size": Key(
        "auto",
        Size(null=True, auto=True),
        "Maximum total size of the compressed frames of a message after decompression; null: "
        'unlimited; "auto": 1 GiB, or 32 times the bytes received if that is more.',
    ),
    "distributed.comm.max-handshake-size": Key(
        "64kiB",
        Size(null=True, minimum=1000),
        "Maximum size of a peer's handshake, which takes about 200 bytes; null: unlimited.",
    ),
    "distributed.comm.max-connections": Key(
        100_000,
        Whole(null=True, minimum=1),
        "Maximum number of connections to a server; null: unlimited.",
    ),
    "distributed.comm.max-connections-per-host": Key(
        50_000,
        Whole(null=True, minimum=1),
        "Maximum number of connections to a server from one host; null: unlimited.",
    ),
    "distributed.comm.max-refusals": Key(
        500,
        Whole(null=True, minimum=1),
        "Maximum number of refused connections that wait to be told the reason; null: unlimited.",
    ),
    "distributed.comm.max-stream-handlers": Key(
        1000,
        Whole(null=True),
        "Maximum number of running coroutine handlers of one stream (0 means 1); null: unlimited.",
    ),
    "distributed.comm.auth.token": Key(
        None,
        Secret(null=True),
        "Secret that both sides of a connection share; null: none.",
    ),
    "distributed.comm.auth.token-file": Key(
        None,
        Path(null=True),
        "Path of a file with that secret; null: none.",
    ),
    "distributed.comm.auth.allow-health": Key(
        False,
        Flag(),
        'Whether a server that requires the token answers "health" to peers without it.',
    ),
    "distributed.comm.zstd.level": Key(
        3,
        Whole(minimum=-131_072, maximum=22),
        "Level of zstd; negative levels are faster than level 1.",
    ),
    "distributed.comm.zstd.threads": Key(
        0,
        Whole(minimum=-1, maximum=200),
        "Number of threads of zstd for one frame; -1: one per CPU.",
    ),
    "distributed.comm.timeouts.connect": Key(
        "30s",
        Duration(minimum=_SHORTEST),
        "Maximum time to connect, with all attempts.",
    ),
    "distributed.comm.timeouts.handshake": Key(
        None,
        Duration(null=True, minimum=_SHORTEST),
        "Maximum time to receive the peer's handshake; null: the value of timeouts.connect.",
    ),
    "distributed.comm.timeouts.idle": Key(
        None,
        Duration(null=True, minimum=_SHORTEST),
        "Time without a request before a server closes a connection; null: unlimited.",
    ),
    "distributed.comm.timeouts.pool-idle": Key(
        None,
        Duration(null=True, minimum=_SHORTEST),
        "Time without a call before a pool or an rpc object closes a connection; null: unlimited.",
    ),
    "distributed.comm.timeouts.refusal": Key(
        "10s",
        Duration(),
        "Maximum time to receive the request that the refusal of a connection answers.",
    ),
    "distributed.comm.timeouts.tcp": Key(
        "30s",
        Duration(null=True, maximum=_MAX_TCP_TIMEOUT),
        "Time that sent data may stay unacknowledged before the connection is closed; null: "
        "unlimited.",
    ),
    "distributed.comm.keepalive.interval": Key(
        "15s",
        Duration(null=True, minimum=_SHORTEST),
        "Time between the probes that a peer gets while a call or a write waits for it; null: "
        "none.",
    ),
    "distributed.comm.keepalive.timeout": Key(
        "5 minutes",
        Duration(minimum=_SHORTEST),
        "Time without a sign of life of that peer before the connection is closed. It must be "
        "longer than handlers block an event loop; less than two intervals count as two.",
    ),
    "distributed.comm.require-encryption": Key(
        None,
        Flag(null=True),
        "Whether to refuse connections without TLS; null: true if TLS is configured.",
    ),
    "distributed.comm.tls.ciphers": Key(
        None,
        Text(null=True),
        "Ciphers up to TLS 1.2, in OpenSSL's syntax; null: those of Python.",
    ),
    "distributed.comm.tls.min-version": Key(
        1.2,
        Choice(null=True, values=(1.2, 1.3)),
        "Minimum version of TLS; null: 1.2.",
    ),
    "distributed.comm.tls.max-version": Key(
        None,
        Choice(null=True, values=(1.2, 1.3)),
        "Maximum version of TLS; null: the newest.",
    ),
    "distributed.comm.tls.ca-file": Key(
        None,
        Path(null=True),
        "Certificates of the authorities that sign those of peers: a PEM file, or PEM text; "
        "null: none.",
    ),
    "distributed.comm.tls.scheduler.cert": Key(
        None,
        Path(null=True),
        "Certificate of a scheduler, and of a server of no role: a PEM file, or PEM text; null:"
        " none.",
    ),
    "distributed.comm.tls.scheduler.key": Key(
        None,
        SecretPath(null=True),
        "Private key of that certificate; null: it is in the file of the certificate.",
    ),
    "distributed.comm.tls.worker.cert": Key(
        None,
        Path(null=True),
        "Certificate of a worker or nanny: a PEM file, or PEM text; null: none.",
    ),
    "distributed.comm.tls.worker.key": Key(
        None,
        SecretPath(null=True),
        "Private key of that certificate; null: it is in the file of the certificate.",
    ),
    "distributed.comm.tls.client.cert": Key(
        None,
        Path(null=True),
        "Certificate of a client: a PEM file, or PEM text; null: none.",
    ),
    "distributed.comm.tls.client.key": Key(
        None,
        SecretPath(null=True),
        "Private key of that certificate; null: it is in the file of the certificate.",
    ),
    "distributed.comm.shared.enabled": Key(
        True,
        Flag(),
        "Whether arrays in shared memory travel as such over unix://.",
    ),
    "distributed.comm.shared.threshold": Key(
        None,
        Size(null=True, false=True, minimum=65536),
        "Size from which ordinary memory is copied into shared memory; false or null: none is.",
    ),
    "distributed.comm.shared.max-descriptors": Key(
        253,
        Whole(maximum=253),
        "Maximum number of regions of shared memory in a message. Senders keep this limit of the"
        " receiver.",
    ),
    "distributed.comm.shared.max-bytes": Key(
        "auto",
        Size(auto=True),
        'Maximum total size of these regions; "auto": the size of this host\'s memory.',
    ),
    "distributed.comm.websockets.shard": Key(
        "8MiB",
        Size(minimum=1),
        "Maximum size of a websocket message; a larger frame is split.",
    ),
    "distributed.comm.batched.max-buffer-size": Key(
        "1GiB",
        Size(null=True),
        "Maximum size of the messages that wait in a BatchedSend; 0 or null: unlimited.",
    ),
    "distributed.comm.batched.acknowledge": Key(
        True,
        Flag(),
        "Whether the receiver of a BatchedSend acknowledges its messages.",
    ),
    "distributed.comm.batched.max-sessions": Key(
        10_000,
        Whole(null=True, minimum=1),
        "Maximum number of acknowledged streams without a connection that a server remembers; "
        "null: unlimited.",
    ),
    "distributed.comm.batched.session-timeout": Key(
        "1h",
        Duration(null=True),
        "Time for which a server remembers such a stream; null: unlimited.",
    ),
    "distributed.admin.tick.interval": Key(
        "20ms",
        Duration(null=True, minimum=_SHORTEST),
        "Time between ticks of the event loop; null: no ticks.",
    ),
    "distributed.admin.tick.limit": Key(
        "3s",
        Duration(null=True),
        "Time without a tick after which the event loop is logged as unresponsive; null: never.",
    ),
    "distributed.admin.tick.cycle": Key(
        "1s",
        Duration(null=True, minimum=_SHORTEST),
        "Time between averages of the ticks; null: none.",
    ),
    "distributed.admin.max-error-length": Key(
        10_000,
        Size(null=True),
        "Maximum number of characters of a remote error's text, and of its traceback; null: "
        "unlimited.",
    ),
    "distributed.admin.max-shown-length": Key(
        1000,
        Whole(minimum=1),
        "Maximum number of characters of a peer's value that an error or a log line shows.",
    ),
    "distributed.admin.log-limit": Key(
        "100kB",
        Size(null=True),
        "Maximum number of characters that one statement logs within 10 s; more lines are only "
        "counted; null: unlimited.",
    ),
    "distributed.admin.log-format": Key(
        "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
        Text(),
        'Format of log lines, of logging.Formatter; "json": one JSON object per line.',
    ),
    "distributed.admin.low-level-log-length": Key(
        1000,
        Whole(null=True),
        "Maximum number of entries in logs of recent messages; null: unlimited.",
    ),
    "distributed.admin.slow-call": Key(
        None,
        Duration(null=True),
        "Time after which a server logs a request as slow; null: never.",
    ),
    "distributed.admin.system-monitor.interval": Key(
        "500ms",
        Duration(null=True, minimum=_SHORTEST),
        "Time between samples of the system monitor; null: none.",
    ),
    "distributed.admin.system-monitor.log-length": Key(
        7200,
        Whole(null=True, minimum=1),
        "Maximum number of samples that the system monitor keeps; null: unlimited.",
    ),
    "distributed.admin.system-monitor.disk": Key(
        True,
        Flag(),
        "Whether the system monitor samples disk traffic.",
    ),
    "distributed.admin.system-monitor.host-cpu": Key(
        False,
        Flag(),
        "Whether the system monitor samples the CPU time of the host by kind.",
    ),
    "distributed.admin.system-monitor.gil.enabled": Key(
        True,
        Flag(),
        "Whether the system monitor samples contention for the GIL, if gilknocker is installed.",
    ),
    "distributed.admin.system-monitor.gil.interval": Key(
        "1ms",
        Duration(minimum=1e-6),
        "Time between checks for that contention.",
    ),
    "distributed.pages.interval": Key(
        "1s",
        Duration(minimum=0.05),
        "Time between two snapshots of a server for the browsers that watch its live page.",
    ),
    "distributed.pages.max-watchers": Key(
        50,
        Whole(null=True),
        "Maximum number of browsers that watch the live page; null: unlimited.",
    ),
    "distributed.pages.max-connections": Key(
        500,
        Whole(null=True, minimum=1),
        "Maximum number of HTTP connections to the pages; null: unlimited.",
    ),
    "distributed.pages.max-header-size": Key(
        "16kiB",
        Size(minimum=1000),
        "Maximum size of the headers of a request for a page.",
    ),
    "distributed.pages.timeout": Key(
        "10s",
        Duration(minimum=_SHORTEST),
        "Time for an HTTP client to send its request, and to receive the answer.",
    ),
    "distributed.pages.allowed-hosts": Key(
        [],
        Names(),
        "Further names by which browsers reach the pages of a server without token and TLS; "
        '"*": any.',
    ),
    "distributed.pages.public": Key(
        False,
        Flag(),
        "Whether other hosts get the pages without a token or a certificate.",
    ),
}


def _nested(keys: Mapping[str, Key]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, (default, *_) in keys.items():
        *parents, last = key.split(".")
        section = result
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = default
    return result


#: The defaults, nested by section.
DEFAULTS: Mapping[str, Any] = _nested(KEYS)

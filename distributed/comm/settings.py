"""The configuration of connections, cached until the configuration changes.

Connectors, listeners and comms call `settings` when a connection begins, and keep the values.
Looking up and parsing a dozen keys for each connection would take as long as connecting.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Final

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.base.shared_memory import memory_of_host
from distributed.comm.registry import backends, get_backend
from distributed.protocol.compression import get_compression_settings
from distributed.protocol.framing import Limits
from distributed.protocol.limits import LoadPolicy
from distributed.protocol.shared_frames import ShareLimits

__all__ = ["CommSettings", "check_configuration", "settings"]

logger = get_logger(__name__)

_COMPRESSION: Final = "distributed.comm.compression"
_SCHEME: Final = "distributed.comm.default-scheme"


class CommSettings:
    """The settings below ``distributed.comm``, each of them parsed at its first use.

    If this object is kept, a setting that was not used before has the value of that later time.
    """

    @cached_property
    def connect_timeout(self) -> float:
        """Maximum seconds for connecting (``timeouts.connect``)."""
        timeout: float = config.read("distributed.comm.timeouts.connect")
        return timeout

    @cached_property
    def handshake_timeout(self) -> float:
        """Maximum seconds for a handshake (``timeouts.handshake``; default `connect_timeout`)."""
        timeout = config.get_timedelta("distributed.comm.timeouts.handshake")
        return self.connect_timeout if timeout is None else timeout

    @cached_property
    def tcp_timeout(self) -> float | None:
        """Seconds before a silent peer counts as dead (``timeouts.tcp``)."""
        return config.get_timedelta("distributed.comm.timeouts.tcp")

    @cached_property
    def pool_idle_timeout(self) -> float | None:
        """Seconds before a pool closes an idle connection (``timeouts.pool-idle``)."""
        return config.get_timedelta("distributed.comm.timeouts.pool-idle")

    @cached_property
    def busy_poll(self) -> float | None:
        """Seconds of polling before an event loop sleeps (``busy-poll``)."""
        return config.get_timedelta("distributed.comm.busy-poll")

    @cached_property
    def keepalive(self) -> tuple[float, float] | None:
        """Seconds between probes of a peer (``keepalive.interval``), or None for no keep-alive.

        Also the seconds after which the kernel drops data that a peer does not read
        (``timeouts.tcp``).
        """
        interval = config.get_timedelta("distributed.comm.keepalive.interval")
        if interval is None:
            return None
        return interval, self.tcp_timeout or self.keepalive_timeout / 2

    @cached_property
    def keepalive_timeout(self) -> float:
        """Seconds before a silent peer counts as stopped (``keepalive.timeout``)."""
        timeout: float = config.read("distributed.comm.keepalive.timeout")
        return timeout

    @cached_property
    def acknowledge(self) -> bool:
        """Whether streams of messages are acknowledged (``batched.acknowledge``)."""
        return config.get_bool("distributed.comm.batched.acknowledge") is not False

    @cached_property
    def shard(self) -> int | None:
        """Size in bytes at which frames are split (``shard``)."""
        return config.get_bytes("distributed.comm.shard")

    @cached_property
    def websocket_shard(self) -> int | None:
        """Size in bytes at which frames are split over websockets (``websockets.shard``)."""
        return config.get_bytes("distributed.comm.websockets.shard")

    @cached_property
    def message_limits(self) -> Limits:
        """Limits of a message (``max-message-size``, ``max-frames``)."""
        return Limits(
            max_message_size=config.get_bytes("distributed.comm.max-message-size"),
            max_frames=config.get_int("distributed.comm.max-frames"),
        )

    @cached_property
    def handshake_limits(self) -> Limits:
        """Limits of a message of the handshake (``max-handshake-size``)."""
        key = "distributed.comm.max-handshake-size"
        return Limits(config.get_bytes(key), max_frames=1, size_key=key, frames_key=None)

    @cached_property
    def load_policy(self) -> LoadPolicy:
        """Limits of parsing a message (``allow-pickle``, ``max-depth``, ``max-inflated-size``)."""
        return LoadPolicy.from_config()

    @cached_property
    def share_limits(self) -> ShareLimits | None:
        """Limits of shared memory in a message (``shared``); None if it is not shared."""
        if not config.get_bool("distributed.comm.shared.enabled"):
            return None
        descriptors: int = config.read("distributed.comm.shared.max-descriptors")
        size = config.read("distributed.comm.shared.max-bytes")
        return ShareLimits(descriptors, memory_of_host() if size == "auto" else size)

    @cached_property
    def share_threshold(self) -> int | None:
        """Minimum size of a buffer that is copied into shared memory (``shared.threshold``)."""
        return config.get_bytes("distributed.comm.shared.threshold")

    @cached_property
    def compression(self) -> str | None:
        """The name of the compression for peers on other hosts (``compression``)."""
        return get_compression_settings(_COMPRESSION)

    @cached_property
    def socket_backlog(self) -> int:
        """Maximum number of connections that wait to be accepted (``socket-backlog``)."""
        backlog: int = config.read("distributed.comm.socket-backlog")
        return backlog

    @cached_property
    def token(self) -> str | None:
        """The configured value of ``auth.token``."""
        token: str | None = config.read("distributed.comm.auth.token")
        return token

    @cached_property
    def token_file(self) -> str | None:
        """The configured value of ``auth.token-file``."""
        path: str | None = config.read("distributed.comm.auth.token-file")
        return path


def _make() -> CommSettings:
    config.check()
    # What the transports and compressions of this process decide.
    get_compression_settings(_COMPRESSION)
    scheme = config.read(_SCHEME)
    if scheme not in backends:
        try:
            get_backend(scheme)
        except (ValueError, ImportError) as exc:
            raise config.invalid(_SCHEME, scheme, "a known scheme", "tcp", str(exc)) from exc
    return CommSettings()


class _Settings(config.Section[CommSettings]):
    """The settings below ``distributed.comm``."""

    def __call__(self) -> CommSettings:
        """Return the current settings, or the last valid ones if they have become invalid.

        A server that listens must not refuse its peers because a value was set later.
        `check_configuration` raises the error where a caller can see it.
        """
        try:
            return super().__call__()
        except ValueError as exc:
            if self._made is None:
                raise
            logger.error("Keeping the settings of connections as they were: %s", exc)
            self._made = copy.deepcopy(config.config["distributed"]["comm"]), self._made[1]
            return self._made[1]


#: Return the current settings.
settings = _Settings("distributed.comm", _make)

#: Return the current settings, or raise a ValueError if any value of the configuration is invalid.
#: Servers, ``listen`` and ``connect`` call it first.
check_configuration = config.Section("distributed", _make)

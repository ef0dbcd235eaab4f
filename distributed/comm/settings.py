"""The configuration of connections, cached until the configuration changes.

Connectors, listeners and comms call `settings` when a connection begins, and keep the values.
Looking up and parsing a dozen keys for each connection would take as long as connecting.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from distributed.base import config
from distributed.protocol.framing import Limits
from distributed.protocol.limits import LoadPolicy

__all__ = ["CommSettings", "settings"]


class CommSettings:
    """The settings below ``distributed.comm``, each of them parsed at its first use.

    An invalid setting raises a `ValueError` that names its key.  Do not keep this object: a setting
    that is first used later would have a later value.
    """

    @cached_property
    def connect_timeout(self) -> float:
        """Maximum seconds for connecting (``timeouts.connect``)."""
        timeout = config.get_timedelta("distributed.comm.timeouts.connect")
        assert timeout is not None
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
            max_frames=config.get("distributed.comm.max-frames"),
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
    def token(self) -> object:
        """The configured value of ``auth.token``."""
        return config.get("distributed.comm.auth.token")

    @cached_property
    def token_file(self) -> Any:
        """The configured value of ``auth.token-file``."""
        return config.get("distributed.comm.auth.token-file")


#: Return the current settings.
settings = config.Section("distributed.comm", CommSettings)

"""What the configuration says of connections, read once and kept for as long as it says so.

Connectors, listeners and comms ask `settings` whenever a connection begins, and keep what they
were told; looking up and interpreting a dozen keys would take as long as connecting does.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from distributed.base import config
from distributed.protocol.framing import Limits
from distributed.protocol.limits import LoadPolicy

__all__ = ["CommSettings", "settings"]


class CommSettings:
    """The settings below ``distributed.comm``, each of them interpreted when it is first needed.

    Whoever asks for one that cannot be interpreted gets a `ValueError` that names its key.  Such an
    object is not to be held: what is first needed later is as the configuration is then.
    """

    @cached_property
    def connect_timeout(self) -> float:
        """Seconds that connecting may take (``timeouts.connect``)."""
        timeout = config.get_timedelta("distributed.comm.timeouts.connect")
        assert timeout is not None
        return timeout

    @cached_property
    def handshake_timeout(self) -> float:
        """Seconds that a handshake may take (``timeouts.handshake``, or that of connecting)."""
        timeout = config.get_timedelta("distributed.comm.timeouts.handshake")
        return self.connect_timeout if timeout is None else timeout

    @cached_property
    def tcp_timeout(self) -> float | None:
        """Seconds after which a peer that is silent is gone (``timeouts.tcp``)."""
        return config.get_timedelta("distributed.comm.timeouts.tcp")

    @cached_property
    def shard(self) -> int | None:
        """Bytes above which frames are split (``shard``)."""
        return config.get_bytes("distributed.comm.shard")

    @cached_property
    def websocket_shard(self) -> int | None:
        """The same, over websockets (``websockets.shard``)."""
        return config.get_bytes("distributed.comm.websockets.shard")

    @cached_property
    def message_limits(self) -> Limits:
        """What a message may ask for (``max-message-size``, ``max-frames``)."""
        return Limits(
            max_message_size=config.get_bytes("distributed.comm.max-message-size"),
            max_frames=config.get("distributed.comm.max-frames"),
        )

    @cached_property
    def handshake_limits(self) -> Limits:
        """What a message of the handshake may ask for (``max-handshake-size``)."""
        key = "distributed.comm.max-handshake-size"
        return Limits(config.get_bytes(key), max_frames=1, size_key=key, frames_key=None)

    @cached_property
    def load_policy(self) -> LoadPolicy:
        """What a message may lead to (``allow-pickle``, ``max-depth``, ``max-inflated-size``)."""
        return LoadPolicy.from_config()

    @cached_property
    def token(self) -> object:
        """``auth.token``, as it was configured."""
        return config.get("distributed.comm.auth.token")

    @cached_property
    def token_file(self) -> Any:
        """``auth.token-file``, as it was configured."""
        return config.get("distributed.comm.auth.token-file")


#: Returns the settings as they are now.
settings = config.Section("distributed.comm", CommSettings)

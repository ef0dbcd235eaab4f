"""Counts of messages, bytes and waiting, kept while connections carry them.

An owner of connections, such as a server, has one `Traffic` per transport and lets each connection
count in it.  The counts therefore outlive the connections, and reading them costs the same however
many connections there are.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import perf_counter

__all__ = ["UNCOUNTED", "Traffic"]


class Traffic:
    """What connections have sent and received, and how long their writes have waited.

    Attributes
    ----------
    messages_received, bytes_received, messages_sent, bytes_sent
        Counts.  A message counts as sent when its write begins.
    writes_waiting
        Number of writes that wait now, because the socket accepts no more bytes.
    waits, seconds_waited
        Number of writes that had to wait, and the time that those of them took which have ended.

    Examples
    --------
    >>> traffic = Traffic()
    >>> traffic.bytes_sent += 10
    >>> traffic.as_dict()["bytes_sent"]
    10
    """

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "messages_received",
        "messages_sent",
        "seconds_waited",
        "waits",
        "writes_waiting",
    )

    def __init__(self) -> None:
        self.messages_received = self.bytes_received = 0
        self.messages_sent = self.bytes_sent = 0
        self.writes_waiting = self.waits = 0
        self.seconds_waited = 0.0

    async def wait(self, written: Awaitable[None]) -> None:
        """Wait until a write has ended, and count its time as back-pressure."""
        begin = perf_counter()
        self.writes_waiting += 1
        self.waits += 1
        try:
            await written
        finally:
            self.writes_waiting -= 1
            self.seconds_waited += perf_counter() - begin

    def as_dict(self) -> dict[str, float]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


#: Counts for connections without an owner.  Its values mean nothing, since threads share it.
UNCOUNTED = Traffic()

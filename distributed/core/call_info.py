"""What a call carries besides its operation and arguments, and what a streaming answer consists of.

This is the feature ``"calls"`` of the handshake: a request has the key `KEY` if its caller uses an
``rpc`` or a pool and the peer has agreed to the feature.  Its value is ``True`` for a plain call,
else a map with these keys:

``"timeout"``
    Seconds until the caller's deadline.
``"stream"``
    The answer is to be a stream; the value is the number of messages with items that the caller
    accepts before it has consumed them.
``"open"``
    The caller keeps the comm for a conversation with the handler.
``"metadata"``
    A map of names to texts, for interceptors.

The server's messages that are not plain answers are maps whose key `KEY` names their kind:

``"written"``
    The handler of a plain call has written this to its comm; the answer follows.
``"items"``
    Items of a stream.  The caller sends the message ``1`` when it has consumed them.
``"end"``
    The stream, or the handler of a plain call that has written its answer, has ended.
``"answer"``
    An answer that could be mistaken for one of these maps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

from distributed.base.text import shown_repr
from distributed.comm.handshake import register_feature
from distributed.core.mistakes import BadRequest

__all__ = ["END", "FEATURE", "KEY", "CallInfo", "items", "kind_of", "unambiguous", "written"]

#: Name of the feature in the handshake.
FEATURE = "calls"

#: The reserved key of requests and of messages of the server.  It is not an identifier, so no
#: parameter of a handler has this name.
KEY = "call-info"

#: Maximum number of messages with items that a server sends before the caller has consumed them.
MAX_WINDOW = 16

#: The message at the end of a stream.
END = {KEY: "end"}


def _agree(ours: Any, theirs: Any) -> int:
    if type(theirs) is not int or theirs < 1:
        raise ValueError(f"expected a version from 1, got {theirs!r}")
    return min(ours, theirs)


register_feature(FEATURE, offer=lambda comm: 1, agree=_agree)


class CallInfo(NamedTuple):
    """The value of `KEY` in a request, checked."""

    timeout: float | None = None
    stream: int = 0
    open: bool = False
    metadata: dict[str, str] = {}  # noqa: RUF012  (never changed)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Check the value of a peer.

        Raises
        ------
        BadRequest
            If no honest peer sends it.
        """
        if value is True:
            return cls()
        if not isinstance(value, dict):
            raise BadRequest(
                f"{KEY!r} of a request must be true or a map, got {shown_repr(value, 100)}"
            )
        timeout = value.get("timeout")
        if timeout is not None and (
            type(timeout) not in (int, float) or not math.isfinite(timeout)
        ):
            raise BadRequest(
                f"the timeout of a request must be in seconds, got {shown_repr(timeout, 100)}"
            )
        stream = value.get("stream", 0)
        if type(stream) is not int or stream < 0:
            raise BadRequest(
                f"the window of a stream must be a number, got {shown_repr(stream, 100)}"
            )
        metadata = value.get("metadata", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for item in metadata.items() for text in item
        ):
            raise BadRequest(
                f"metadata must be a map of names to texts, got {shown_repr(metadata, 100)}"
            )
        return cls(timeout, min(stream, MAX_WINDOW), value.get("open") is True, metadata)

    def pack(self) -> bool | dict[str, Any]:
        """Return the value for a request."""
        value: dict[str, Any] = {}
        if self.timeout is not None:
            value["timeout"] = self.timeout
        if self.stream:
            value["stream"] = self.stream
        if self.open:
            value["open"] = True
        if self.metadata:
            value["metadata"] = self.metadata
        return value or True


def written(value: Any) -> dict[str, Any]:
    """Return the message for something that a handler has written to its comm."""
    return {KEY: "written", "value": value}


def items(values: list[Any]) -> dict[str, Any]:
    """Return the message for items of a stream."""
    return {KEY: "items", "value": values}


def unambiguous(answer: Any) -> Any:
    """Return *answer*, or a message that contains it if a caller could mistake it for another."""
    return {KEY: "answer", "value": answer} if kind_of(answer) is not None else answer


def kind_of(message: Any) -> str | None:
    """Return the kind of a message of the server; None for a plain answer or an error."""
    # Not isinstance(): answers may be of subclasses whose methods differ.
    return message.get(KEY) if type(message) is dict else None

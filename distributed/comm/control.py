"""Control messages: short messages between two comms, which `Comm.read` does not return.

Two peers exchange them only if they agreed upon a feature that needs them (see
:mod:`distributed.comm.handshake`).  A peer of the original never gets one.

A control message has a *kind* and arguments.  An *ordered* one takes effect between the messages
before and after it, when a reader of the comm comes to it.  Any other takes effect at once if all
messages before it were read.  No task has to read for that, once `Controls.watch` was called, or
if the keep-alive (:mod:`distributed.comm.keepalive`) is used.

On a byte stream a control message is a message of two frames, of which the first is empty; no
other message has an empty first frame.  On a websocket it is a message of text.  The content is
msgpack: the kind, whether it is ordered, and the arguments.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import msgpack

from distributed.base.logs import get_logger
from distributed.protocol.exceptions import ProtocolError

__all__ = [
    "CONTROLS_AT_ONCE",
    "MAX_CONTROL_SIZE",
    "MAX_UNREAD_CONTROLS",
    "ControlError",
    "Controls",
    "common_handlers",
    "pack_control",
]

logger = get_logger(__name__)

#: Maximum size of a control message in bytes.
MAX_CONTROL_SIZE = 1024
#: Maximum number of control messages that are received before a large message while no task reads.
MAX_UNREAD_CONTROLS = 1000


#: Maximum number of control messages that take effect in one callback of the event loop.
CONTROLS_AT_ONCE = 64

#: kind → function that takes a comm and the arguments of a control message as one tuple.  These
#: control messages concern any comm, and may overtake messages.
common_handlers: dict[str, Callable[[ControlledComm, tuple[Any, ...]], None]] = {}


class ControlError(ProtocolError):
    """The peer sent a control message that no honest peer sends."""


def pack_control(kind: str, ordered: bool, args: tuple[Any, ...]) -> bytes:
    """Return the content of a control message."""
    content: bytes = msgpack.packb([kind, ordered, *args])
    return content


def control_text(content: bytes) -> str:
    """Return the text of a websocket message for the content of a control message."""
    return content.decode("latin-1")


def control_content(text: str) -> bytes:
    """Return the content of a control message from the text of a websocket message."""
    return text.encode("latin-1", "replace")


def parse_control(content: Any) -> tuple[str, bool, tuple[Any, ...]]:
    """Return the kind of a control message, whether it is ordered, and its arguments.

    Raises
    ------
    ControlError
        If the content is too long or is not a control message.

    Examples
    --------
    >>> parse_control(pack_control("ack", False, (5,)))
    ('ack', False, (5,))
    """
    if len(content) > MAX_CONTROL_SIZE:
        raise ControlError(
            f"it has {len(content):,} bytes, and at most {MAX_CONTROL_SIZE:,} are allowed"
        )
    try:
        kind, ordered, *args = msgpack.unpackb(content, use_list=False)
    except Exception as exc:
        raise ControlError(f"it is not a list in msgpack: {exc}") from exc
    if not isinstance(kind, str) or not isinstance(ordered, bool):
        raise ControlError("it does not begin with its kind")
    return kind, ordered, tuple(args)


class ControlledComm:
    """The part of a :class:`~distributed.comm.core.Comm` that control messages use."""

    #: Whether this transport carries control messages.
    carries_controls: ClassVar[bool] = False
    #: Whether this transport passes file descriptors.
    passes_descriptors: ClassVar[bool] = False
    #: The control messages that this comm receives; None if no feature was agreed upon.
    controls: Controls | None = None

    def post_control(self, kind: str, *args: Any, ordered: bool = False) -> bool:
        """Send a control message (:mod:`distributed.comm.control`) without waiting.

        Parameters
        ----------
        kind
            The kind, which the peer has a handler for.
        *args
            Plain values for msgpack.
        ordered
            Whether it takes effect between the messages before and after it.

        Returns
        -------
        bool
            False if it was not sent: the comm is closed; or *ordered* is false, and earlier data
            still waits to be sent or the peer has left.  A peer that does not read can therefore
            not fill the memory of this process with the answers to its control messages.
        """
        raise NotImplementedError(f"{type(self).__name__} does not carry control messages")

    def receive_controls(self) -> None:
        """Receive the control messages that are available, although no task reads."""
        raise NotImplementedError(f"{type(self).__name__} does not carry control messages")

    def abort(self) -> None:
        """See `Comm.abort`."""
        raise NotImplementedError

    def watch_peer(self) -> None:
        """See `distributed.comm.keepalive.WatchfulComm.watch_peer`."""


class Controls:
    """The control messages that one comm receives.

    A control message without a handler is ignored.  If it is ordered, the peer is told by a control
    message "unhandled" with its kind and arguments.  If a handler raises a `ControlError`, the
    error is logged and the comm is aborted.

    Attributes
    ----------
    handlers
        kind → function that takes the arguments of a control message as one tuple.
    unread_count
        Number of calls of `note_unread`.
    watching
        Whether control messages are received while no task reads.
    """

    __slots__ = ("_always", "_comm", "_on_end", "handlers", "unread_count", "watching")

    def __init__(self, comm: ControlledComm, always: bool = False) -> None:
        # The comm refers to this object.
        self._comm = weakref.ref(comm)
        self.handlers: dict[str, Callable[[tuple[Any, ...]], None]] = {}
        # Whether `watching` stays true.
        self._always = self.watching = always
        self.unread_count = 0
        # Called once when the connection has ended.
        self._on_end: Callable[[], None] | None = None

    def watch(self, on_end: Callable[[], None]) -> None:
        """Receive control messages also while no task reads.

        Parameters
        ----------
        on_end
            Called once when the connection has ended, also if this side closes it.
        """
        self._on_end = on_end
        self.watching = True
        comm = self._comm()
        if comm is not None:
            comm.receive_controls()

    def watch_always(self) -> None:
        """Receive control messages also while no task reads, as long as the comm is open."""
        self._always = self.watching = True

    def unwatch(self) -> None:
        """Report no end, and stop receiving while no task reads, unless a feature needs it."""
        self._on_end = None
        self.watching = self._always

    def note_unread(self) -> None:
        """Note that a message is unread, which may hide the control messages behind it."""
        self.unread_count += 1
        comm = self._comm()
        if comm is not None:
            comm.watch_peer()

    def receive(self, content: Any, in_order: bool) -> bool:
        """Let a control message take effect; return whether it has.

        Parameters
        ----------
        content
            What `pack_control` returned.
        in_order
            Whether a reader has come to this message.  If not, an ordered control message has to
            wait for the reader.
        """
        comm = self._comm()
        try:
            kind, ordered, args = parse_control(content)
            if ordered and not in_order:
                return False
            handler = self.handlers.get(kind)
            if handler is not None:
                handler(args)
            elif kind in common_handlers:
                if comm is not None:
                    common_handlers[kind](comm, args)
            elif ordered and comm is not None:
                comm.post_control("unhandled", kind, *args)
        except ControlError as exc:
            logger.warning("Closing %r because of an invalid control message: %s", comm, exc)
            if comm is not None:
                comm.abort()
        return True

    def receive_early(self, text: str) -> bool:
        """Let a control message that may overtake messages take effect; return whether it has."""
        try:
            content = control_content(text)
            kind = parse_control(content)[0]
        except ControlError:
            # The error is handled once a reader has come to this message.
            return False
        return kind in common_handlers and self.receive(content, in_order=True)

    def end(self) -> None:
        """Report the end of the connection."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

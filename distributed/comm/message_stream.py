"""A Tornado ``IOStream`` that receives and sends whole messages.

:class:`MessageStream` is the stream below a stream comm.  It saves time for each message:

* Bytes go straight from the socket into the memory that :mod:`distributed.protocol.framing`
  provides.  The reader resumes only when a whole message was received, and within the callback for
  its last byte, instead of one turn of the event loop later
  (:class:`~distributed.comm.inline_future.InlineFuture`).
* It receives only after the event loop has reported data, or if the last call filled most of the
  memory.  Over TLS it always tries, since the event loop does not see decrypted data.
* One system call writes all buffers of a message, without joining them; not over TLS.

The stream also receives control messages (:mod:`distributed.comm.control`) while no task reads, if
the comm watches for them, and holds the first message of another kind.  An ordered control message
is held too, with all that follow it, until a task reads.

While a write waits for the socket and no task reads, the stream receives the peer's next message
and holds it for the next read.  Otherwise two peers that each write a large message before they
read would wait for each other.  After one message the stream stops, so that back-pressure holds.

Tornado handles everything that is rare: data that the socket does not accept at once, data that
comes while no task reads, and closing.  The private names of Tornado that this takes are listed,
with reasons, in ``tests/test_tornado_names.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from distributed.base.event_loop import asyncio_loop_of
from distributed.base.short_queue import ShortQueue, grown
from distributed.comm.control import (
    CONTROLS_AT_ONCE,
    MAX_CONTROL_SIZE,
    MAX_UNREAD_CONTROLS,
    Controls,
)
from distributed.comm.inline_future import InlineFuture
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, Frames, MessageDecoder

_READ = IOLoop.READ

#: Maximum number of buffers per ``sendmsg()`` call (IOV_MAX).
MAX_BUFFERS = 1024

#: Maximum number of times that the memory for a message is filled without a turn of the event loop.
_MAX_ROUNDS = 32


class MessageStream(IOStream):
    """A stream of messages over a socket.

    Attributes
    ----------
    decoder
        The parser of the received bytes.
    controls
        The control messages of the comm; None if the peer sends none.
    """

    controls: Controls | None

    # With Tornado's attributes, these would be more than instances of a class can have without a
    # dict of their own, which takes 1.5 kB.
    __slots__ = (
        "_continues",
        "_held",
        "_holds_message",
        "_may_hold",
        "_waiter",
        "controls",
        "decoder",
        "on_end",
    )

    #: Whether the socket belongs to the system: the event loop reports all data that it can
    #: receive, and it can send several buffers at once.
    _is_plain = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Tornado makes deques, and most streams queue nothing.
        self._set_queues(ShortQueue(), ShortQueue())
        self.controls = None
        self.decoder = MessageDecoder()
        # The next message; the reader waits for it if it is not complete.
        self._waiter = InlineFuture(asyncio_loop_of(self.io_loop))
        # What was received while no task read: control messages that have to wait for a reader, and
        # then at most one other message, or an error.  A list, since a deque takes 0.7 kB.
        self._held: list[Frames | FramingError] = []
        # Whether `_held` ends with that message or error.  Then the decoder gets no more bytes.
        self._holds_message = False
        # Whether a call of `send` has waited: Tornado's websockets read from the stream themselves.
        self._may_hold = False
        # Whether `_continue` will be called.
        self._continues = False
        #: Called when the stream is closed; None for no callback.
        self.on_end: Callable[[], object] | None = None

    def notice_end(self) -> None:
        """Close the stream when the peer does, even if no task reads or writes."""
        self._add_io_state(_READ)

    def read_message(self) -> Frames | InlineFuture:
        """Return the next message if it is complete, else the future to await for it.

        Only one task may wait at a time.

        Raises
        ------
        FramingError
            If the peer sent an invalid prelude; now or when the future is awaited.
        StreamClosedError
            If the stream has ended.
        """
        if self._held:
            return self._take_held()
        frames = self.decoder.next_message()
        if frames is None and (self._read_buffer_size or self._closed or not self._is_plain):
            # Tornado's buffer has the data that came while no task was reading.
            frames = self._fill_decoder()
        if frames is not None:
            return frames
        if not (self._state or 0) & _READ:
            self._add_io_state(_READ)
        return self._waiter

    def send(self, buffers: Sequence[Buffer], nbytes: int) -> asyncio.Future[None] | None:
        """Write *buffers*, which have *nbytes* bytes in total.

        Returns
        -------
        None or Future
            None if the socket has accepted everything, else a future that is done when it has.

        Raises
        ------
        StreamClosedError
            If the stream is closed, or breaks now.
        """
        if self._closed:
            raise StreamClosedError(real_error=self.error)
        sent = 0
        if self._total_write_done_index == self._total_write_index:
            # No earlier data waits to be written.
            try:
                if not self._is_plain:
                    sent = self.write_to_fd(memoryview(buffers[0]))
                elif len(buffers) == 1:
                    sent = self.socket.send(buffers[0])
                else:
                    sent = self.socket.sendmsg(buffers[:MAX_BUFFERS])
            except BlockingIOError:
                pass
            except OSError as exc:
                raise self._ended(exc) from exc
            if sent == nbytes:
                return None
        written: Any = None
        for buffer in buffers:
            size = len(buffer)
            if sent >= size:
                sent -= size
                continue
            written = self.write(memoryview(buffer)[sent:] if sent else buffer)  # type: ignore[arg-type]
            sent = 0
        self._may_hold = True
        if self._receives_ahead():
            self._receive_ahead()
        return written

    def _receives_ahead(self) -> bool:
        """Return whether a message is to be received although no task reads.

        A message that began while a write waited is received to its end, because the peer's write
        waits for that.
        """
        return (
            not self._holds_message
            and self._waiter.wake is None
            and not self._closed
            and (
                (self._may_hold and (self.writing() or self.decoder.in_message))
                or (self.controls is not None and self.controls.watching)
            )
        )

    def receive_controls(self) -> None:
        """Receive the control messages that are available, unless a task reads."""
        if self._receives_ahead():
            self._hold_message()
            if not self._holds_message and not self._closed:
                self._add_io_state(_READ)

    def take_controls(self) -> None:
        """Let control messages take effect that were received after the last message.

        If another message was received too, it is held for the reader.
        """
        if not (self._holds_message or self._closed) and self._waiter.wake is None:
            self._hold_message()

    def _receive_ahead(self) -> None:
        """Receive the next message as far as it is available, and the rest when it comes."""
        if self._read_buffer_size or not self._is_plain:
            self._hold_message()
        if not self._holds_message and not self._closed:
            self._add_io_state(_READ)

    def _hold_message(self) -> None:
        """Receive available bytes; hold the message, or the error, that they complete.

        Control messages before it take effect, or are held too if they have to wait for a reader.
        """
        try:
            for _ in range(CONTROLS_AT_ONCE):
                frames = self.decoder.next_message() or self._fill_decoder()
                if frames is None:
                    return
                if not self._is_control(frames):
                    self._hold(frames)
                    self._holds_message = True
                    return
                if self._closed:
                    return
            # The peer may send them faster than they are received.
            self._continue_later()
        except FramingError as exc:
            # The traceback would refer to this stream.
            self._held.append(exc.with_traceback(None))
            self._holds_message = True
        except StreamClosedError:
            # The write that waits gets the error.
            return

    def _continue_later(self) -> None:
        """Receive more after other connections have had a turn."""
        # The event loop does not report bytes that were received already.
        if not self._continues:
            self._continues = True
            self.io_loop.add_callback(self._continue)

    def _continue(self) -> None:
        self._continues = False
        if self._receives_ahead():
            self._hold_message()

    def _is_control(self, frames: Frames) -> bool:
        """Let *frames* take effect, or hold them, if they are a control message; return whether.

        If there are too many of them, they count as another message.
        """
        controls, held = self.controls, self._held
        if controls is None or len(frames) != 2 or frames[0]:
            return False
        # Control messages stay in order.
        if not held and controls.receive(frames[1], in_order=False):
            return True
        if len(held) >= MAX_UNREAD_CONTROLS or len(frames[1]) > MAX_CONTROL_SIZE:
            return False
        self._hold(frames)
        return True

    def _hold(self, frames: Frames) -> None:
        self._held.append(frames)
        if self.controls is not None:
            self.controls.note_unread()

    def _take_held(self) -> Frames:
        """Return the oldest message that is held, or raise the held error."""
        held = self._held.pop(0)
        if not self._held:
            self._holds_message = False
        if isinstance(held, FramingError):
            raise held
        if self._receives_ahead():
            self._receive_ahead()
        return held

    def _fill_decoder(self) -> Frames | None:
        """Receive available bytes up to the end of a message; return the message if complete."""
        decoder = self.decoder
        is_plain = self._is_plain
        rounds = 0
        while True:
            memory = decoder.get_buffer()
            wanted = len(memory)
            nbytes: int | None
            if self._read_buffer_size or self._closed:
                nbytes = self._take_buffered(memory)
            else:
                try:
                    if not is_plain:
                        nbytes = self.read_from_fd(memory)
                    else:
                        nbytes = self.socket.recv_into(memory)
                except BlockingIOError:
                    nbytes = None
                except OSError as exc:
                    raise self._ended(exc) from exc
                if nbytes == 0:
                    raise self._ended()
            # If no bytes were received this returns the scratch buffer.
            frames = decoder.buffer_updated(nbytes or 0)
            if frames is not None or nbytes is None:
                return frames
            # More bytes are likely to be available only if these filled most of the memory.  The
            # event loop reports them again, after other connections have had a turn.
            rounds += 1
            if (
                (nbytes < wanted - nbytes or rounds >= _MAX_ROUNDS)
                and is_plain
                and not self._closed
                and not self._read_buffer_size
            ):
                return None

    @property
    def unsent_bytes(self) -> int:
        """Number of bytes that wait for the socket."""
        waiting: int = self._total_write_index - self._total_write_done_index
        return waiting

    def failed(self, exc: OSError) -> StreamClosedError:
        """Close the stream because the socket raised *exc*; return the error to raise."""
        return self._ended(exc)

    def _ended(self, exc: OSError | None = None) -> StreamClosedError:
        """Close the stream and return the error to raise, without waking the reader."""
        waiter = self._waiter
        wake, waiter.wake = waiter.wake, None
        # The stream keeps the error, whose traceback would refer to the stream.
        self.close(exc_info=exc.with_traceback(None) if exc is not None else False)
        waiter.wake = wake
        return StreamClosedError(real_error=self.error)

    def _take_buffered(self, memory: bytearray | memoryview) -> int:
        """Move bytes from Tornado's buffer to *memory*; return their number."""
        if not self._read_buffer_size:
            raise StreamClosedError(real_error=self.error)
        nbytes: int = self.read_into(memory, partial=True).result()  # type: ignore[arg-type, attr-defined]
        if not self._read_buffer_size:
            # Tornado did not watch for the end while it had buffered data.
            self.notice_end()
        return nbytes

    def _set_queues(self, futures: Any, buffers: Any) -> None:
        """Set the queues of unfinished writes: their futures, and their buffers."""
        self._write_futures = futures
        self._write_buffer._buffers = buffers

    # Methods of Tornado that are extended here

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        written = super().write(data)
        if not self._closed:
            self._set_queues(grown(self._write_futures), grown(self._write_buffer._buffers))
        return written

    def reading(self) -> bool:
        return self._waiter.wake is not None or self._receives_ahead() or super().reading()

    def _handle_events(self, fd: Any, events: int) -> None:
        if events == _READ and self._waiter.wake is not None:
            # The usual case, which changes none of the state that Tornado updates here.
            self._handle_read()
        else:
            super()._handle_events(fd, events)

    def _handle_read(self) -> None:
        waiter = self._waiter
        if waiter.wake is None:
            if self._receives_ahead():
                self._hold_message()
                return
            # Tornado notices the end of a stream that no task reads from.  It buffers the data that
            # comes before, up to a limit.
            super()._handle_read()
            return
        frames = None
        try:
            frames = self._fill_decoder()
        except (StreamClosedError, FramingError) as exc:
            waiter.error = exc
        except BaseException as exc:
            self.close(exc_info=exc)
            raise
        if frames is not None or waiter.error is not None:
            waiter.resolve(frames)

    def _signal_closed(self) -> None:
        super()._signal_closed()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()
        if self._waiter.wake is not None:
            self._waiter.resolve_soon(StreamClosedError(real_error=self.error))
        if self.controls is not None:
            self.controls.end()


class TLSMessageStream(SSLIOStream, MessageStream):
    """A stream of messages over a TLS socket."""

    _is_plain = False

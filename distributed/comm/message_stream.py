"""A Tornado ``IOStream`` that hands over whole messages, with as little ado as it can.

:class:`MessageStream` is what a stream comm reads from and writes to.  It differs from Tornado's
stream in what costs time for each message:

* Bytes go straight from the socket to where :mod:`distributed.protocol.framing` wants them.  The
  reader is not bothered before a whole message is there, and goes on within the event that brought
  its last byte, not one turn of the event loop later (:class:`Arrival`).
* Nothing is received before the loop says that there is something, which it cannot over TLS.
* The buffers of a message are written by one system call, without being joined; not over TLS.

What is rare is left to Tornado: what the socket does not take at once, what arrives while nobody
reads, and closing.  This module knows neither what is in a message nor what an error means to a
comm.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, MessageDecoder

#: The frames of one message.
Frames: TypeAlias = list[memoryview]

#: So many buffers one system call takes on every platform (IOV_MAX).
_BUFFERS_AT_ONCE = 1024


class Arrival:
    """Awaits like a future, but who awaits goes on within :meth:`resolve`.

    A future wakes who awaits it by way of the event loop's queue, which costs every message one
    more turn of the loop and a call of the selector.  `resolve` is for callbacks of the event loop
    alone, since no other task may be running; from anywhere else, and for what is no hurry, there
    is `resolve_soon`.

    One task at a time may await it; when that has the result, it can be awaited again.
    """

    # What asyncio's tasks ask of a future: `_asyncio_future_blocking` (by which they know one, see
    # `asyncio.isfuture`), `get_loop`, `add_done_callback`, `cancel` and `result`.

    # State.  `_wake`, in `_context`, lets the task that waits go on, and is None while none does.
    # Result and error are set from when that is called, or about to be, until the task has them.
    __slots__ = ("_asyncio_future_blocking", "_context", "_error", "_loop", "_result", "_wake")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._asyncio_future_blocking = False
        self._loop = loop
        self._wake: Callable[[Any], object] | None = None
        self._context: contextvars.Context | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def awaited(self) -> bool:
        """Whether a task waits."""
        return self._wake is not None

    def resolve(self, result: Any = None, error: BaseException | None = None) -> None:
        """Let the task that waits go on, now, with *result* or *error*."""
        wake, self._wake = self._wake, None
        context, self._context = self._context, None
        assert wake is not None
        self._result = result
        self._error = error
        if context is None:
            wake(self)
        else:
            context.run(wake, self)

    def resolve_soon(self, error: BaseException) -> None:
        """Let the task that waits go on with *error* at the loop's next turn."""
        wake, self._wake = self._wake, None
        context, self._context = self._context, None
        assert wake is not None
        self._error = error
        self._loop.call_soon(wake, self, context=context)

    def __await__(self) -> Generator[Any, None, Any]:
        self._asyncio_future_blocking = True
        yield self
        result, self._result = self._result, None
        return result

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, fn: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        assert self._wake is None
        self._wake = fn
        self._context = context

    def result(self) -> None:
        """Raise the error with which the task goes on, if it does with one."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the wait; return false if it is over."""
        if self._wake is None:
            return False
        self.resolve_soon(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True


class MessageStream(IOStream):
    """A stream of messages over a socket.

    Attributes
    ----------
    decoder
        Takes apart what arrives.
    """

    # State, besides Tornado's.  `decoder` holds what has arrived and was not taken.  One reader
    # waits for `_arrival`, or none does.

    #: Whether the event loop tells of all that can be received.
    _loop_tells = True
    #: Whether several buffers can be written at once.
    _gathers = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decoder = MessageDecoder()
        self._arrival = Arrival(self.io_loop.asyncio_loop)  # type: ignore[attr-defined]

    def notice_end(self) -> None:
        """Let the stream close when the peer does, also while nobody reads or writes."""
        self._add_io_state(self.io_loop.READ)

    def take_message(self) -> Frames | None:
        """Return the next message if all of it is here.

        Raises
        ------
        FramingError
            If what is here is no message.
        StreamClosedError
            If no more will arrive.
        """
        frames = self.decoder.next_message()
        # Tornado has in its buffer what came while nobody was reading.
        if frames is None and (self._read_buffer_size or not self._loop_tells or self._closed):
            frames = self._receive()
        return frames

    def message(self) -> Arrival:
        """Return what to await for the message of which `take_message` said that it is not here.

        It raises what `take_message` raises.  Only one task may wait at a time.
        """
        self._add_io_state(self.io_loop.READ)
        return self._arrival

    def send(self, buffers: Sequence[Buffer], nbytes: int) -> asyncio.Future[None] | None:
        """Write *buffers*, of *nbytes* in all, one after the other.

        Returns
        -------
        None or Future
            None if all of it has left, else what is done when it has.

        Raises
        ------
        StreamClosedError
            If the stream is closed, or breaks now.
        """
        if self._closed:
            raise StreamClosedError(real_error=self.error)
        sent = 0
        if not self._write_buffer:
            try:
                if len(buffers) == 1 or not self._gathers:
                    sent = self.write_to_fd(memoryview(buffers[0]))
                else:
                    sent = self.socket.sendmsg(buffers[:_BUFFERS_AT_ONCE])
            except BlockingIOError:
                pass
            except OSError as exc:
                self.close(exc_info=exc)
                raise StreamClosedError(real_error=exc) from exc
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
        return written

    def _receive(self) -> Frames | None:
        """Receive what is there, up to the end of a message; return that if it is complete."""
        decoder = self.decoder
        while True:
            memory = decoder.wanted()
            nbytes: int | None
            if self._read_buffer_size or self._closed:
                nbytes = self._take_buffered(memory)
            else:
                try:
                    nbytes = self.read_from_fd(memory)
                except OSError as exc:
                    self.close(exc_info=exc)
                    raise StreamClosedError(real_error=exc) from exc
                if nbytes == 0:
                    self.close()
                    raise StreamClosedError(real_error=self.error)
            if nbytes is not None:
                decoder.received(nbytes)
            # Where nothing was received this only gives back what would have been filled.
            frames = decoder.next_message()
            if frames is not None or nbytes is None:
                return frames
            if nbytes < len(memory) and self._loop_tells and not self._closed:
                return None

    def _take_buffered(self, memory: memoryview) -> int:
        """Fill a part of *memory* with what came while nobody was reading; return its size."""
        if not self._read_buffer_size:
            raise StreamClosedError(real_error=self.error)
        nbytes: int = self.read_into(memory, partial=True).result()  # type: ignore[arg-type, attr-defined]
        if not self._read_buffer_size:
            # Tornado did not while it had something that nobody had read.
            self.notice_end()
        return nbytes

    # What follows are hooks of Tornado's.

    def reading(self) -> bool:
        return self._arrival.awaited or super().reading()

    def _handle_read(self) -> None:
        arrival = self._arrival
        if not arrival.awaited:
            # Tornado notices the end of a stream from which nobody reads, and keeps what arrives
            # on it, but only so much of that.
            super()._handle_read()
            return
        try:
            frames = self._receive()
        except StreamClosedError:
            # Closing has told the reader.
            return
        except FramingError as exc:
            arrival.resolve(error=exc)
            return
        if frames is not None:
            arrival.resolve(frames)

    def _signal_closed(self) -> None:
        super()._signal_closed()
        if self._arrival.awaited:
            self._arrival.resolve_soon(StreamClosedError(real_error=self.error))


class TLSMessageStream(SSLIOStream, MessageStream):
    """A stream of messages over a TLS socket."""

    # It does not tell of what has been decrypted already.
    _loop_tells = False
    _gathers = False

"""A Tornado ``IOStream`` that hands over whole messages, with as little ado as it can.

:class:`MessageStream` is what a stream comm reads from and writes to.  It differs from Tornado's
stream in what costs time for each message:

* Bytes go straight from the socket to where :mod:`distributed.protocol.framing` wants them.  The
  reader is not bothered before a whole message is there, and goes on within the event that brought
  its last byte, not one turn of the event loop later.
* Nothing is received before the loop says that there is something, which it cannot over TLS, or
  most of what is wanted has just come.
* The buffers of a message are written by one system call, without being joined; not over TLS.

What is rare is left to Tornado: what the socket does not take at once, what arrives while nobody
reads, and closing.  This module knows neither what is in a message nor what an error means to a
comm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from distributed.base.event_loop import asyncio_loop_of
from distributed.comm.inline_future import InlineFuture
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, Frames, MessageDecoder

_READ = IOLoop.READ

#: So many buffers one system call takes on every platform (IOV_MAX).
_BUFFERS_AT_ONCE = 1024


class MessageStream(IOStream):
    """A stream of messages over a socket.

    Attributes
    ----------
    decoder
        Takes apart what arrives.
    """

    # State, besides Tornado's.  `decoder` holds what has arrived and was not taken.  One reader
    # waits for `_waiter`, or none does.

    #: Whether the socket is the system's, which tells the event loop of all that can be received,
    #: and sends several buffers at once.
    _is_plain = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decoder = MessageDecoder()
        self._waiter = InlineFuture(asyncio_loop_of(self.io_loop))

    def notice_end(self) -> None:
        """Let the stream close when the peer does, also while nobody reads or writes."""
        self._add_io_state(_READ)

    def read_message(self) -> Frames | InlineFuture:
        """Return the next message if all of it is here, else what to await for it.

        Only one task may wait at a time.

        Raises
        ------
        FramingError
            If what arrives is no message; now or when it is awaited.
        StreamClosedError
            If no more will arrive.
        """
        frames = self.decoder.next_message()
        if frames is None and (self._read_buffer_size or self._closed or not self._is_plain):
            # Tornado has in its buffer what came while nobody was reading.
            frames = self._fill_decoder()
        if frames is not None:
            return frames
        if not (self._state or 0) & _READ:
            self._add_io_state(_READ)
        return self._waiter

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
        if self._total_write_done_index == self._total_write_index:
            # Nothing waits to be written.
            try:
                if not self._is_plain:
                    sent = self.write_to_fd(memoryview(buffers[0]))
                elif len(buffers) == 1:
                    sent = self.socket.send(buffers[0])
                else:
                    sent = self.socket.sendmsg(buffers[:_BUFFERS_AT_ONCE])
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
        return written

    def _fill_decoder(self) -> Frames | None:
        """Receive what is there, up to the end of a message; return that if it is complete."""
        decoder = self.decoder
        is_plain = self._is_plain
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
            # Where nothing was received this only gives back what would have been filled.
            frames = decoder.buffer_updated(nbytes or 0)
            if frames is not None or nbytes is None:
                return frames
            # While much was received the rest may have come.
            if nbytes < wanted - nbytes and is_plain and not self._closed:
                return None

    def _ended(self, exc: OSError | None = None) -> StreamClosedError:
        """Close, and return what is to be raised; who waits has yet to be told."""
        if exc is not None:
            # The stream keeps it, and its traceback the stream.
            exc.__traceback__ = None
        waiter = self._waiter
        wake, waiter.wake = waiter.wake, None
        self.close(exc_info=exc or False)
        waiter.wake = wake
        return StreamClosedError(real_error=self.error)

    def _take_buffered(self, memory: bytearray | memoryview) -> int:
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
        return self._waiter.wake is not None or super().reading()

    def _handle_events(self, fd: Any, events: int) -> None:
        if events == _READ and self._waiter.wake is not None:
            # As nearly always.  Nothing of what Tornado looks after changes by it.
            self._handle_read()
        else:
            super()._handle_events(fd, events)

    def _handle_read(self) -> None:
        waiter = self._waiter
        if waiter.wake is None:
            # Tornado notices the end of a stream from which nobody reads, and keeps what arrives
            # on it, but only so much of that.
            super()._handle_read()
            return
        try:
            frames = self._fill_decoder()
        except (StreamClosedError, FramingError) as exc:
            waiter.resolve(error=exc)
            return
        except BaseException as exc:
            self.close(exc_info=exc)
            raise
        if frames is not None:
            waiter.resolve(frames)

    def _signal_closed(self) -> None:
        super()._signal_closed()
        if self._waiter.wake is not None:
            self._waiter.resolve_soon(StreamClosedError(real_error=self.error))


class TLSMessageStream(SSLIOStream, MessageStream):
    """A stream of messages over a TLS socket."""

    _is_plain = False

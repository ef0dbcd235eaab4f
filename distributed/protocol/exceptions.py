"""The errors of the protocol: what a message may be refused for.

::

    ValueError
    └── ProtocolError              bytes or frames that are no message
        ├── FramingError           the length prelude lies, or breaks a limit
        ├── MessageError           frame 0 is not the msgpack that it should be
        ├── HeaderError            a header and the frames behind it do not belong together
        ├── CompressionError       a frame that cannot be inflated
        └── DeserializationError   a value's own deserializer failed on what it was given

Two further errors leave :func:`distributed.protocol.loads`, and neither is about malformed bytes:
``TypeError`` where a serializer family is not among those allowed, and whatever an unpickled
object itself raises while it is rebuilt (its ``__cause__``-less self, so that a reader sees the
library that failed, not this one).

This module knows nothing of messages; it stands at no point of a message's way, but may end it
at any.
"""

from __future__ import annotations


class ProtocolError(ValueError):
    """Bytes or frames that are no message of this protocol."""


class FramingError(ProtocolError):
    """A length prelude that lies about what follows, or that breaks a limit."""


class MessageError(ProtocolError):
    """Frame 0 of a message is not msgpack, or not of the shape that it should have."""


class HeaderError(ProtocolError):
    """A value's header does not fit the frames that came with it."""


class CompressionError(ProtocolError):
    """A frame names a compression that is unknown here, or does not inflate with it."""


class DeserializationError(ProtocolError):
    """A value's deserializer failed on the header and the frames that it was given."""

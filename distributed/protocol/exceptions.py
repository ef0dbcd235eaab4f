"""The errors of the protocol: why a message is refused.

::

    ValueError
    └── ProtocolError                  bytes or frames that are not a valid message
        ├── FramingError               the length prelude is wrong, or exceeds a limit
        ├── MessageError               frame 0 is not the expected msgpack
        │   └── ImportNotAllowedError  it names a module that must not be imported
        ├── HeaderError                the header of a value does not match its frames
        ├── CompressionError           a frame cannot be inflated
        └── DeserializationError       the deserializer of a value failed, or a pickle is malformed

    TypeError
    ├── SerializationError             no allowed serializer family accepts a value
    └── FamilyNotAllowedError          a value is of a family that this side does not allow
        └── PickleNotAllowedError      a value is pickled, and this side unpickles nothing

:func:`distributed.protocol.loads` raises no other error, whatever the bytes are, except those that
an object raises while it is unpickled: they are raised as they are, with a note.  The `TypeError`
ones do not mean malformed bytes: a well-behaved peer can cause them.
"""

from __future__ import annotations


class ProtocolError(ValueError):
    """Bytes or frames that are not a valid message."""


class FramingError(ProtocolError):
    """The length prelude does not match the bytes after it, or exceeds a limit."""


class MessageError(ProtocolError):
    """Frame 0 of a message is not msgpack, or has an unexpected structure."""


class ImportNotAllowedError(MessageError, RuntimeError):
    """A message names a module outside ``distributed.scheduler.allowed-imports``.

    Also a `RuntimeError`, which is what the original raises.
    """


class HeaderError(ProtocolError):
    """The header of a value does not match its frames."""


class CompressionError(ProtocolError):
    """A frame is compressed with an unknown codec, does not inflate, or exceeds a limit."""


class DeserializationError(ProtocolError):
    """The deserializer of a value failed, or a pickle is malformed; see the ``__cause__``."""


class SerializationError(TypeError):
    """None of the allowed serializer families accepts a value.

    Raised at the sender with ``on_error="raise"``; otherwise at the receiver, with the sender's
    explanation.
    """


class FamilyNotAllowedError(TypeError):
    """A received value is of a serializer family that this side does not allow."""


class PickleNotAllowedError(FamilyNotAllowedError):
    """A received value is pickled, and ``distributed.comm.allow-pickle`` is false."""

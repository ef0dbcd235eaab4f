"""The errors of the protocol: what a message may be refused for.

::

    ValueError
    └── ProtocolError                  bytes or frames that are no message
        ├── FramingError               the length prelude lies, or breaks a limit
        ├── MessageError               frame 0 is not the msgpack that it should be
        │   └── ImportNotAllowedError  it names a module that may not be imported here
        ├── HeaderError                a value's header and its frames do not belong together
        ├── CompressionError           a frame that cannot be inflated
        └── DeserializationError       a value's own deserializer failed on what it was given

    TypeError
    ├── SerializationError             a value that no allowed serializer family can take
    └── FamilyNotAllowedError          a value of a family that this side does not take
        └── PickleNotAllowedError      it is pickled, and nothing is unpickled here

These are all that :func:`distributed.protocol.loads` raises, whatever the bytes.  The
``TypeError`` leaves are not about malformed bytes: a well-behaved peer may cause either.

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


class ImportNotAllowedError(MessageError, RuntimeError):
    """A message names a module outside of ``distributed.scheduler.allowed-imports``.

    It is a `RuntimeError` too, which is what the original raises.
    """


class HeaderError(ProtocolError):
    """A value's header does not fit the frames that came with it."""


class CompressionError(ProtocolError):
    """A frame names a compression that is unknown here, or does not inflate with it."""


class DeserializationError(ProtocolError):
    """A value's deserializer failed on the header and the frames that it was given.

    What it raised is the ``__cause__``.
    """


class SerializationError(TypeError):
    """A value that none of the serializer families which may be used can take.

    Raised where it is sent with ``on_error="raise"``, and otherwise where it arrives, with the
    sender's explanation.
    """


class FamilyNotAllowedError(TypeError):
    """A value came in a serializer family that is not among those to be read here."""


class PickleNotAllowedError(FamilyNotAllowedError):
    """Something came pickled, where nothing is ever unpickled.

    See ``distributed.comm.allow-pickle``.
    """

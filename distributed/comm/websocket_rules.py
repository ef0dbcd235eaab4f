"""The rules of RFC 6455 for received websocket frames and close codes, without input or output.

:class:`distributed.comm.websocket.Protocol` applies them to the frames that it receives.  A frame
that breaks a rule raises :class:`Violation`, which has the close code to send.
"""

from __future__ import annotations

__all__ = [
    "FINAL_CLOSE_CODES",
    "INVALID_DATA",
    "PROTOCOL_ERROR",
    "REFUSED",
    "TOO_BIG",
    "UNSUPPORTED_DATA",
    "Violation",
    "check_close",
    "check_header",
    "check_text",
    "close_reason",
]

# Close codes (RFC 6455, section 7.4.1).
PROTOCOL_ERROR = 1002
UNSUPPORTED_DATA = 1003
INVALID_DATA = 1007
REFUSED = 1008
TOO_BIG = 1009

#: Close codes after which another handshake would be refused as well.  3000 and 3003 are the
#: registered codes for "unauthorized" and "forbidden".
FINAL_CLOSE_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 1010, 3000, 3003})

#: Close codes below 3000 that a close frame may carry; 1012 to 1014 are in IANA's registry.
_VALID_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015)})

#: Maximum size of the payload of a control frame, in bytes.
_MAX_CONTROL_SIZE = 125
#: Maximum size of the reason in a close frame, in bytes: two bytes are the code.
_MAX_REASON_SIZE = _MAX_CONTROL_SIZE - 2

_FIN = 0x80
_RESERVED_BITS = 0x70
_OPCODE = 0x0F
_MASK = 0x80
_LENGTH = 0x7F
_CONTROL = 0x8


class Violation(Exception):
    """A received frame breaks a rule of the websocket protocol.

    Attributes
    ----------
    code
        The close code for the peer.
    reason
        The broken rule, as text.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def check_header(first: int, second: int, mask_bit: int, in_message: bool) -> None:
    """Check the first two bytes of a frame.

    Parameters
    ----------
    first, second
        The bytes.
    mask_bit
        0x80 if the peer has to mask its frames, because it is the client; else 0.
    in_message
        Whether the peer has begun a fragmented message and not ended it.

    Raises
    ------
    Violation
        If no valid frame begins with these bytes.
    """
    opcode = first & _OPCODE
    if first & _RESERVED_BITS:
        reason = "a reserved bit is set, but no extension was agreed upon"
    elif opcode not in (0, 1, 2, 8, 9, 10):
        reason = f"opcode {opcode} is reserved"
    elif second & _MASK != mask_bit:
        reason = (
            "a frame of a client is not masked" if mask_bit else "a frame of a server is masked"
        )
    elif opcode & _CONTROL and not first & _FIN:
        reason = "a control frame is fragmented"
    elif opcode & _CONTROL and second & _LENGTH > _MAX_CONTROL_SIZE:
        reason = f"a control frame has more than {_MAX_CONTROL_SIZE} bytes"
    elif opcode == 0 and not in_message:
        reason = "a continuation frame continues no message"
    elif opcode in (1, 2) and in_message:
        reason = "a message begins in the middle of a fragmented message"
    else:
        return
    raise Violation(PROTOCOL_ERROR, reason)


def check_text(data: bytes | bytearray) -> None:
    """Raise `Violation` if *data*, a message of text, is not valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise Violation(INVALID_DATA, "a message of text is not valid UTF-8") from None


def check_close(payload: bytes) -> None:
    """Raise `Violation` if *payload*, that of a close frame, is invalid."""
    if not payload:
        return
    if len(payload) == 1:
        raise Violation(PROTOCOL_ERROR, "a close frame has one byte, but a close code has two")
    code = int.from_bytes(payload[:2], "big")
    if code not in _VALID_CLOSE_CODES and not 3000 <= code < 5000:
        raise Violation(PROTOCOL_ERROR, f"a close frame has the invalid close code {code}")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(INVALID_DATA, "the reason in a close frame is not valid UTF-8") from None


def close_reason(text: str) -> str:
    """Return *text*, shortened to fit into a close frame.

    Examples
    --------
    >>> close_reason("no space")
    'no space'
    >>> len(close_reason("ü" * 100).encode())
    122
    """
    return text.encode(errors="replace")[:_MAX_REASON_SIZE].decode(errors="ignore")

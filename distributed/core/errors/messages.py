"""An exception's way from the handler that raised it to the caller that must see it.

The side where it was raised makes a message of it (`error_message`); the side that called makes an
exception of the message again (`exception_from`, or `clean_exception` for the parts).  Between the
two is the wire, which knows nothing of exceptions: the exception and the traceback are pickles in
`Serialize` values, beside them the texts of both for readers that do not unpickle.

The caller gets the type, the message, the attributes, the causes and contexts, the notes and the
traceback.  How the traceback travels depends on what is installed:

* With tblib on both sides it is a traceback, frames and all.
* Otherwise it is text, in a note (PEP 678) on the exception, which is printed with it.  Where tblib
  is missing at the sender, the sender adds these notes, one to each exception of the chain, so
  that any receiver shows them; where it is missing at the receiver, the receiver adds one from the
  message's ``traceback_text``.  Each hop adds its own, so that an error that came over several
  servers tells of them all.

Making the message never fails, whatever the exception does.  One that cannot be pickled, or not
be unpickled again, travels as an `Exception` that carries its ``repr``; `exception_pickle` has the
details.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn, TypedDict

from distributed.core.errors.pickles import pickle_exception, pickle_traceback
from distributed.core.errors.text import (
    DEFAULT_MAX_ERROR_LENGTH,
    bounded,
    format_traceback,
    max_error_length,
    notes_of,
    safe_repr,
    safe_str,
    traceback_note,
    type_name,
)
from distributed.protocol import Serialize, Serialized, deserialize, to_serialize
from distributed.protocol import pickle as wire_pickle
from distributed.protocol.tblib_pickles import loads_exception

logger = logging.getLogger(__name__)


def raise_later(exc: BaseException) -> Callable[..., NoReturn]:
    """Return a function that accepts any arguments and raises *exc*."""

    def raise_now(*args: Any, **kwargs: Any) -> NoReturn:
        raise exc

    return raise_now


class ErrorMessage(TypedDict):
    """What a caller is answered when its request failed."""

    status: str
    exception: Serialize
    traceback: Serialize | None
    exception_text: str
    traceback_text: str


class OKMessage(TypedDict):
    """What a caller is answered by handlers that have nothing to say."""

    status: Literal["OK"]


def error_message(e: BaseException, status: str = "error") -> ErrorMessage:
    """Make a message of an exception.  Never raises.

    Parameters
    ----------
    e : BaseException
        What went wrong; its message, and the text of its traceback, are bounded by
        ``distributed.admin.max-error-length`` characters each.
    status : str
        ``"error"`` where failing is an expected answer, ``"uncaught-error"`` where the caller is
        to raise the exception.

    Returns
    -------
    ErrorMessage
        To be written to a comm.  ``exception`` and ``traceback`` are pickles, the latter None
        unless tblib is installed.

    Examples
    --------
    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError as e:
    ...     message = error_message(e)
    >>> message["exception_text"]
    "ZeroDivisionError('division by zero')"
    """
    limit = max_error_length()
    e = truncate_exception(e, limit)
    text = format_traceback(e.__traceback__, limit)
    frames = pickle_traceback(e)
    pickled = pickle_exception(e, text if frames is None else None, limit)
    return {
        "status": status,
        "exception": to_serialize(pickled),
        "traceback": None if frames is None else to_serialize(frames),
        "exception_text": bounded(safe_repr(e), limit),
        "traceback_text": text,
    }


def truncate_exception(e: BaseException, n: int = DEFAULT_MAX_ERROR_LENGTH) -> BaseException:
    """Return an exception whose message has at most about ``n`` characters.

    Parameters
    ----------
    e : BaseException
    n : int
        Characters of the message to keep.

    Returns
    -------
    BaseException
        ``e`` itself if its message is short enough; else one of its type that carries
        ``"Long error message"`` and the beginning of the message, or a plain `Exception` that
        names the type too where the type cannot be made from that.  It has the traceback, cause,
        context and notes of ``e``.

    Examples
    --------
    >>> truncate_exception(ValueError("x" * 1000), 10)
    ValueError('Long error message', 'xxxxxxxxxx')
    """
    text = safe_str(e)
    if len(text) <= n:
        return e
    short: BaseException
    try:
        if isinstance(e, BaseExceptionGroup):
            short = type(e)(f"Long error message: {text[:n]}", e.exceptions)
        else:
            short = type(e)("Long error message", text[:n])
        if len(safe_str(short)) > n + 100:
            raise ValueError("the type makes a long message of a short one")
    except Exception:  # noqa: BLE001  (any constructor, any reason not to take these)
        short = Exception("Long error message", type(e), text[:n])
    for note in notes_of(e):
        short.add_note(bounded(note, n))
    short.__cause__ = e.__cause__
    short.__context__ = e.__context__
    short.__suppress_context__ = e.__suppress_context__
    return short.with_traceback(e.__traceback__)


def clean_exception(
    exception: Any, traceback: Any = None, **kwargs: Any
) -> tuple[type[BaseException | None], BaseException | None, TracebackType | None]:
    """Make exception and traceback of what is left of them in a message.

    Parameters
    ----------
    exception : bytes, str, BaseException, Serialize, Serialized or None
        A pickle, a text, or the object.
    traceback : bytes, str, TracebackType, Serialize, Serialized or None
        Likewise.  A text becomes a note on the exception.
    **kwargs
        The other keys of the message; ``exception_text`` and ``traceback_text`` stand in for what
        cannot be unpickled.

    Returns
    -------
    type, exception, traceback
        As `sys.exc_info` gives them.  ``exception`` is what was raised remotely, `SystemExit` and
        its like included; use `exception_from` for what is to be raised again.

    Examples
    --------
    >>> clean_exception("out of coffee")
    (<class 'Exception'>, Exception('out of coffee'), None)
    """
    exc = _revive_exception(exception, str(kwargs.get("exception_text") or ""))
    tb = _revive_traceback(traceback)
    text = traceback if isinstance(traceback, str) else kwargs.get("traceback_text")
    if exc is not None and tb is None and text:
        _show_remote_traceback(exc, str(text), str(kwargs.get("peer") or ""))
    return type(exc), exc, tb


def exception_from(msg: Mapping[str, Any], peer: str = "", unpickle: bool = True) -> Exception:
    """Return what a caller is to raise for an error message that it has got.

    Parameters
    ----------
    msg : mapping
        An `ErrorMessage` as it was read from a comm; keys may be missing.
    peer : str
        Address of who sent it, named with a traceback that comes as text.
    unpickle : bool
        False if nothing that this peer sends may be unpickled: the texts must do.

    Returns
    -------
    Exception
        The remote exception, with the remote traceback.  What would end the caller's task or loop
        instead of being handled as an error (anything that is no `Exception`, such as
        `SystemExit`, `KeyboardInterrupt`, `asyncio.CancelledError` or `GeneratorExit`, and
        `StopIteration`, which coroutines cannot raise) comes as the cause of a `RuntimeError` that
        names it.

    Examples
    --------
    >>> raise exception_from({"exception": "out of coffee"})
    Traceback (most recent call last):
        ...
    Exception: out of coffee
    """
    exc_text = str(msg.get("exception_text") or "")
    _, exc, tb = clean_exception(
        msg.get("exception") if unpickle else exc_text,
        msg.get("traceback") if unpickle else None,
        exception_text=exc_text,
        traceback_text=msg.get("traceback_text"),
        peer=peer,
    )
    if exc is None:
        exc = Exception(exc_text or f"{peer or 'The peer'} reported an error, but not which")
    if tb is not None:
        exc = exc.with_traceback(tb)
    if isinstance(exc, Exception) and not isinstance(exc, (StopIteration, StopAsyncIteration)):
        return exc
    error = RuntimeError(
        f"The remote handler ended with {safe_repr(exc)}, which is not raised here as such "
        "because it would end the caller's own task"
    )
    error.__cause__ = exc
    return error


def _unwrap(value: Any) -> Any:
    """Return what stands in a message, whether it has been over a wire or not."""
    if isinstance(value, Serialized):
        return deserialize(value.header, value.frames)
    return value.data if isinstance(value, Serialize) else value


def _revive_exception(value: Any, text: str) -> BaseException | None:
    value = _unwrap(value)
    if value is None or isinstance(value, BaseException):
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        return Exception(value)
    try:
        revived = loads_exception(value)
    except Exception as e:  # noqa: BLE001  (whatever it is, it is told to the caller)
        exc = Exception(text or value)
        exc.add_note(f"(It could not be unpickled by the receiver: {safe_repr(e)})")
        return exc
    if isinstance(revived, BaseException):
        return revived
    return Exception(text or f"An error message with a {type_name(revived)} for its exception")


def _revive_traceback(value: Any) -> TracebackType | None:
    value = _unwrap(value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = wire_pickle.loads(value)
        except Exception:
            logger.debug("Showing a remote traceback as text", exc_info=True)
            return None
    return value if isinstance(value, TracebackType) else None


def _show_remote_traceback(exc: BaseException, text: str, peer: str) -> None:
    """Add the note with the remote traceback, unless it is to be seen already."""
    if exc.__traceback__ is None and not any(text.rstrip() in note for note in notes_of(exc)):
        note = traceback_note(text, peer)
        try:
            exc.add_note(note)
        except Exception:
            logger.warning("%s takes no notes; its %s", type_name(exc), note, exc_info=True)

"""Messages made of exceptions, and exceptions made of messages.  The package has the theory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn, TypedDict

from distributed.base.logs import get_logger
from distributed.base.stack import call_detached
from distributed.base.text import shown, shown_lines, shown_repr, type_name
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
)
from distributed.protocol import Serialize, Serialized, deserialize, to_serialize
from distributed.protocol import pickle as wire_pickle
from distributed.protocol.tblib_pickles import loads_exception

logger = get_logger("distributed.core")

_BYTES = (bytes, bytearray, memoryview)


def raise_later(exc: BaseException) -> Callable[..., NoReturn]:
    """Return a function that accepts any arguments and raises *exc*."""

    def raise_now(*args: Any, **kwargs: Any) -> NoReturn:
        raise exc

    return raise_now


class ErrorMessage(TypedDict):
    """The answer to a request that failed."""

    status: str
    exception: Serialize
    traceback: Serialize | None
    exception_text: str
    traceback_text: str


class OKMessage(TypedDict):
    """The answer of handlers that return no other value."""

    status: Literal["OK"]


def error_message(e: BaseException, status: str = "error") -> ErrorMessage:
    """Return a message that carries an exception, without ever raising.

    Parameters
    ----------
    e : BaseException
        The exception.  Its message and the text of its traceback are each limited to
        ``distributed.admin.max-error-length`` characters.
    status : str
        ``"error"`` if the caller treats the failure as an answer, ``"uncaught-error"`` if the
        caller must raise the exception.

    Returns
    -------
    ErrorMessage
        A message for a comm.  ``exception`` and ``traceback`` are pickles; ``traceback`` is None
        without tblib.

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
    frames = pickle_traceback(e, limit)
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
        Number of characters of the message to keep.

    Returns
    -------
    BaseException
        ``e`` itself if its message is short enough.  Otherwise one of the same type with the
        arguments ``"Long error message"`` and the beginning of the message; or, if the type does
        not accept these arguments, a plain `Exception` that also names the type.  It has the
        traceback, cause, context and notes of ``e``.

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
            raise ValueError("the type makes its message long")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  (a constructor may raise any error)
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
    """Return the exception and traceback that a message carries, in any of their forms.

    Parameters
    ----------
    exception : bytes, str, BaseException, Serialize, Serialized or None
        A pickle, a text, or the object.
    traceback : bytes, str, TracebackType, Serialize, Serialized or None
        A pickle, a text, or the object.  A text becomes a note of the exception.
    **kwargs
        The other keys of the message.  ``exception_text`` and ``traceback_text`` are used in place
        of pickles that cannot be unpickled.

    Returns
    -------
    type, exception, traceback
        As `sys.exc_info` returns them.  ``exception`` may be a `SystemExit` or `KeyboardInterrupt`;
        use `exception_from` for an exception that is safe to raise.

    Examples
    --------
    >>> clean_exception("out of coffee")
    (<class 'Exception'>, Exception('out of coffee'), None)
    """
    exc = _exception_of(exception, _text(kwargs.get("exception_text")))
    tb = _traceback_of(traceback)
    text = _text(traceback if isinstance(traceback, str) else kwargs.get("traceback_text"))
    if exc is not None and tb is None and text:
        _show_remote_traceback(exc, text, str(kwargs.get("peer") or ""))
    return type(exc), exc, tb


def exception_from(msg: Mapping[str, Any], peer: str = "", unpickle: bool = True) -> Exception:
    """Return the exception that a caller should raise for an error message.

    Parameters
    ----------
    msg : dict
        An `ErrorMessage` as it was read from a comm; keys may be missing.
    peer : str
        Address of the sender, named in notes that show a traceback.
    unpickle : bool
        False if data from this peer must not be unpickled; the texts are used instead.

    Returns
    -------
    Exception
        The remote exception, with the remote traceback.  An exception that would end the caller's
        task or loop is the cause of a `RuntimeError` that names it: those that are not subclasses
        of `Exception` (`SystemExit`, `KeyboardInterrupt`, `asyncio.CancelledError`,
        `GeneratorExit`), and `StopIteration`, which coroutines cannot raise.

    Examples
    --------
    >>> raise exception_from({"exception": "out of coffee"})
    Traceback (most recent call last):
        ...
    Exception: out of coffee
    """
    exc_text = _text(msg.get("exception_text"))
    _, exc, tb = clean_exception(
        msg.get("exception") if unpickle else exc_text,
        msg.get("traceback") if unpickle else None,
        exception_text=exc_text,
        traceback_text=msg.get("traceback_text"),
        peer=peer,
    )
    if exc is None:
        exc = Exception(exc_text or f"{peer or 'The peer'} reported an error without details")
    if tb is not None:
        exc = exc.with_traceback(tb)
    if isinstance(exc, Exception) and not isinstance(exc, (StopIteration, StopAsyncIteration)):
        return exc
    error = RuntimeError(
        f"The remote handler raised {safe_repr(exc)}, which is not raised here because it would "
        "end the caller's own task"
    )
    error.__cause__ = exc
    return error


def _text(value: Any) -> str:
    """Return a text of a message as it may be shown; an empty text for None."""
    if not isinstance(value, str):
        return "" if value is None else shown(value)
    return shown_lines(value, max_error_length())


def _unwrap(value: Any) -> Any:
    """Return a value of a message, without its `Serialize` or `Serialized` wrapper."""
    if isinstance(value, Serialized):
        return deserialize(value.header, value.frames)
    return value.data if isinstance(value, Serialize) else value


def _exception_of(value: Any, text: str) -> BaseException | None:
    value = _unwrap(value)
    if value is None or isinstance(value, BaseException):
        return value
    if not isinstance(value, _BYTES):
        return Exception(_text(value) if isinstance(value, str) else value)
    try:
        exc = call_detached(loads_exception, value)
    except Exception as e:  # noqa: BLE001  (the caller is shown it)
        exc = Exception(text or (value if len(value) <= max_error_length() else shown_repr(value)))
        exc.add_note(f"(The receiver could not unpickle it: {safe_repr(e)})")
    if isinstance(exc, BaseException):
        return exc
    return Exception(text or f"Error message with a {type_name(exc)} in place of an exception")


def _traceback_of(value: Any) -> TracebackType | None:
    value = _unwrap(value)
    if isinstance(value, _BYTES):
        try:
            value = call_detached(wire_pickle.loads, value)
        except Exception:
            logger.debug("Showing a remote traceback as text", exc_info=True)
    return value if isinstance(value, TracebackType) else None


def _show_remote_traceback(exc: BaseException, text: str, peer: str) -> None:
    """Add a note with the remote traceback, unless the exception shows it already."""
    if exc.__traceback__ is None and not any(text.rstrip() in note for note in notes_of(exc)):
        note = traceback_note(text, peer)
        try:
            exc.add_note(note)
        except Exception:
            logger.warning("%s does not accept this note: %s", type_name(exc), note, exc_info=True)

"""The failures of requests: what a server logs, counts and answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.comm import Comm, CommClosedError
from distributed.core.answers import DeadlineExceeded
from distributed.core.draining import TOO_LATE
from distributed.core.errors.messages import ErrorMessage, error_message
from distributed.core.errors.text import safe_str
from distributed.core.interceptors import Interceptor
from distributed.core.mistakes import Mistake, do_not_fit, plain
from distributed.telemetry.request_counts import RequestCounts

__all__ = ["Failures", "Refused", "outcome", "protocol_error"]

logger = get_logger("distributed.core")


class Refused(RuntimeError):
    """The server does not start the handler of a request."""


class _Server(Protocol):
    interceptors: tuple[Interceptor, ...]

    @property
    def _name_in_messages(self) -> str: ...


class _Handler(Protocol):
    @property
    def handler(self) -> Callable[..., Any]: ...

    @property
    def with_comm(self) -> bool: ...


class Failures:
    """The failures of the requests that one server receives.

    Parameters
    ----------
    server
        The server, for its name and its interceptors.
    counts
        Where errors are noted.
    given_up
        The comms whose handlers the server itself has cancelled.
    """

    def __init__(self, server: _Server, counts: RequestCounts, given_up: Collection[Comm]) -> None:
        self._server = server
        self._counts = counts
        self._given_up = given_up

    def answer(
        self,
        comm: Comm,
        op: Any,
        exc: BaseException,
        call: _Handler | None,
        kwargs: Mapping[str, Any],
    ) -> ErrorMessage | None:
        """Log the failure of a request and return its answer, or None if the peer disconnected.

        Parameters
        ----------
        comm, op
            The connection and the operation.
        exc
            What was raised.
        call, kwargs
            The handler, if it was found, and its arguments.
        """
        name, peer, level = self._server._name_in_messages, comm.peer_address, logging.ERROR
        fields = {"peer": peer, "op": op}
        if isinstance(exc, CommClosedError):
            if comm.closed():
                text = "%s disconnected from %s during op %r: %s"
                logger.debug(text, peer, name, op, exc, extra=fields)
                return None
            # About another connection, most likely one of the handler.
            level = logging.INFO
        elif isinstance(exc, asyncio.CancelledError):
            # A CancelledError at the caller would look as if the caller had been cancelled.
            text = f"the handler of {shown_repr(op)} in {name} was cancelled"
            level = logging.WARNING
            if comm in self._given_up:
                # A line about it was logged already.
                text, level = f"{text}: {TOO_LATE}", logging.DEBUG
            error = RuntimeError(text)
            error.__cause__ = exc
            exc = error
        elif isinstance(exc, DeadlineExceeded | Refused):
            late = isinstance(exc, DeadlineExceeded)
            exc = (TimeoutError if late else RuntimeError)(*exc.args)
            text = f"{'Did not finish' if late else 'Refused'} op %s in %s for %s: %s"
            logger.info(text, op, name, peer, exc, extra=fields)
            self._counts.note_error(op, peer, exc)
            return error_message(exc, "uncaught-error")
        elif isinstance(exc, Mistake) or (
            call is not None
            and not self._server.interceptors
            and do_not_fit(exc, call.handler, (comm,) if call.with_comm else (), kwargs)
        ):
            exc = plain(exc)
            text = "Bad request for op %s in %s from %s: %s: %s"
            logger.info(text, op, name, peer, type(exc).__name__, exc, extra=fields)
            self._counts.note_error(op, peer, exc)
            return error_message(exc, "uncaught-error")
        message = "Exception while handling op %s in %s for %s"
        logger.log(level, message, op, name, peer, exc_info=exc, extra=fields)
        self._counts.note_error(op, peer, exc)
        return error_message(exc, "uncaught-error")


def outcome(exc: BaseException) -> str:
    """Return the outcome of a request whose handler has raised *exc*; see `OUTCOMES`."""
    if isinstance(exc, asyncio.CancelledError):
        return "cancelled"
    return "timeout" if isinstance(exc, DeadlineExceeded) else "error"


def protocol_error(exc: BaseException) -> ErrorMessage:
    """Return the answer for an error of the protocol, in an exception class that any peer has."""
    kind = TypeError if isinstance(exc, TypeError) else ValueError
    return error_message(kind(safe_str(exc)).with_traceback(exc.__traceback__), "uncaught-error")

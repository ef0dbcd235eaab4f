"""From a message that arrived to the handler that it is for, and back.

:class:`Dispatcher` is the part of a server that answers: it reads requests from
a comm one after the other, calls the handler that each names, and writes what
that returns or raises.  It also feeds one-way streams of messages to stream
handlers.  It knows neither how connections come to be nor how to make any.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import GeneratorType
from typing import Any, NamedTuple

from distributed.base import config
from distributed.base.callables import has_keyword
from distributed.comm.core import Comm, CommClosedError
from distributed.core.admission import Admission
from distributed.core.errors.messages import ErrorMessage, error_message
from distributed.core.lifecycle import LifeCycle
from distributed.core.status import Status
from distributed.core.tasks import AsyncTaskGroup, NoOpAwaitable
from distributed.telemetry.statistics import Statistics

logger = logging.getLogger(__name__)

#: Time in seconds that a peer has to send a request to be told that it is refused.
_REFUSAL_TIME = 10.0

#: Characters of what a peer sent that an error or a log shows.
_SHOWN = 500


#: Stands for whatever serializers there are.
_ANY: Any = object()


def _expects_comm(func: Callable[..., Any]) -> bool:
    """Return whether the first parameter of *func* is named ``comm``.

    Examples
    --------
    >>> _expects_comm(lambda comm, x: x), _expects_comm(lambda x: x)
    (True, False)
    """
    try:
        parameters = inspect.signature(func).parameters
    except ValueError:
        # Some functions written in C do not tell.
        return False
    return next(iter(parameters), None) == "comm"


def pingpong(comm: Comm) -> bytes:
    """Answer a ping; a handler."""
    return b"pong"


class _Call(NamedTuple):
    """How a handler is called."""

    handler: Callable[..., Any]
    with_comm: bool
    with_serializers: bool


class Dispatcher(LifeCycle):
    """The answering part of a server.

    Parameters
    ----------
    handlers
        Operations: name → function or coroutine function.
    blocked_handlers
        Names of operations that are refused.
    stream_handlers
        What messages of a one-way stream may name.
    """

    # State.  `_comms` are the comms that requests are read from, each with the
    # operation in progress or None; `_serving_tasks` the tasks that do so, each with
    # its comm.  `_idle_streams` are comms on which handle_stream waits for a
    # message.  `_handler_calls` remembers how the handlers in `handlers` are called.
    _server_statistics: Statistics

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        blocked_handlers: Iterable[str] | None = None,
        stream_handlers: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        for kind, given in (("handler", handlers), ("stream handler", stream_handlers or {})):
            for op, handler in given.items():
                if not callable(handler):
                    raise TypeError(f"the {kind} of {op!r} is not callable: {handler!r}")
        self.handlers: dict[str, Callable[..., Any]] = {
            "identity": self.identity,
            "echo": self.echo,
            "connection_stream": self.handle_stream,
            "dump_state": self._to_dict,
            **handlers,
        }
        if blocked_handlers is None:
            key = f"distributed.{type(self).__name__.lower()}.blocked-handlers"
            blocked_handlers = config.get(key, default=None) or ()
        else:
            key = "blocked_handlers"
        if isinstance(blocked_handlers, str):
            # A list of its letters would block nothing, without a word.
            raise TypeError(
                f"{key} has to be a list of names such as ['run'], got {blocked_handlers!r}"
            )
        self.blocked_handlers = list(blocked_handlers)
        self.stream_handlers: dict[str, Callable[..., Any]] = dict(stream_handlers or {})
        self._comms: dict[Comm, str | None] = {}
        self._serving_tasks: dict[asyncio.Task[Any], Comm] = {}
        self._idle_streams: set[Comm] = set()
        self._comm_admission = Admission.configured()
        self._handler_calls: dict[str, _Call] = {}
        self._ongoing_background_tasks = AsyncTaskGroup()

    # Built-in operations

    def identity(self) -> dict[str, str]:
        """Tell who this server is."""
        return {"type": type(self).__name__, "id": self.id}

    def echo(self, data: Any = None) -> Any:
        """Return *data*."""
        return data

    def _to_dict(self, *, exclude: Any = ()) -> dict[str, Any]:
        """Return the state of this server for a dump.

        Parameters
        ----------
        exclude
            Keys to leave out.
        """
        state = {**self.identity(), "status": self.status.name, "thread_id": self.thread_id}
        return {key: value for key, value in state.items() if key not in exclude}

    # Requests

    #: Whether the interpreter is about to end.
    _is_finalizing = staticmethod(sys.is_finalizing)

    @property
    def _accepts_requests(self) -> bool:
        return not self._close_begun and self._status not in (Status.closed, Status.failed)

    def handle_comm(self, comm: Comm) -> NoOpAwaitable:
        """Answer the requests that arrive on *comm* until it is closed.

        Returns at once.  A server that was not started starts itself.
        """
        if not self._accepts_requests:
            comm.abort()
            return NoOpAwaitable()
        refusal = self._comm_admission.enter(comm)
        serve = self._serve_comm(comm) if refusal is None else self._refuse_comm(comm, refusal)
        task = asyncio.create_task(serve, name=f"serve {comm.peer_address}")
        self._serving_tasks[task] = comm
        task.add_done_callback(self._comm_served)
        return NoOpAwaitable()

    def _comm_served(self, task: asyncio.Task[Any]) -> None:
        self._comm_admission.leave(self._serving_tasks.pop(task))
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("%s stopped serving a comm", self.id, exc_info=exc)

    async def _serve_comm(self, comm: Comm) -> None:
        self._comms[comm] = None
        idle = self._comm_admission.idle
        read = comm.read if idle is None else partial(self._read_in_time, comm, idle)
        try:
            await self.start()
            while True:
                try:
                    msg = await read()
                except CommClosedError as exc:
                    logger.debug("%s left %s: %s", comm.peer_address, self.id, exc)
                    break
                except Exception as exc:
                    if comm.closed():
                        raise
                    logger.warning("Received an unreadable request in %r", comm, exc_info=True)
                    await self._write_answer(comm, None, _unreadable(exc))
                    continue
                in_time = not self._close_begun
                keep = await self._handle_request(comm, msg)
                # What it holds is not to stay until the next request has arrived.
                msg = None
                if not keep or (in_time and self._close_begun):
                    await comm.close()
                    break
                self._comms[comm] = None
        finally:
            del self._comms[comm]
            comm.abort()

    async def _read_in_time(self, comm: Comm, idle: float) -> Any:
        try:
            async with asyncio.timeout(idle):
                return await comm.read()
        except TimeoutError:
            raise CommClosedError(
                f"no request for {idle:g} s ('distributed.comm.timeouts.idle')"
            ) from None

    async def _refuse_comm(self, comm: Comm, reason: str) -> None:
        """Answer the first request on a comm that is one too many, and close it."""
        message = f"{self._name_in_messages} refuses a connection: {reason}"
        logger.warning("%s (it came from %s)", message, comm.peer_address)
        try:
            async with asyncio.timeout(_REFUSAL_TIME):
                await comm.read()
                await self._write_answer(
                    comm, None, error_message(OSError(message), "uncaught-error")
                )
                await comm.close()
        except (TimeoutError, CommClosedError) as exc:
            logger.debug("%s did not wait to be refused: %r", comm.peer_address, exc)
        finally:
            comm.abort()

    async def _handle_request(self, comm: Comm, msg: Any) -> bool:
        """Answer one request and return whether the comm is to be kept."""
        close = False
        reply = True
        serializers = None
        op: Any = None
        try:
            if not isinstance(msg, dict):
                raise TypeError(
                    f"Bad message type.  Expected dict, got\n  {_shorten(msg)} "
                    f"(sent to {self._name_in_messages} by {comm.peer_address})"
                )
            # Not ours to change: over inproc it is the very object that the peer wrote.
            msg = dict(msg)
            close = msg.pop("close", False)
            reply = msg.pop("reply", True)
            serializers = msg.pop("serializers", None)
            if "op" not in msg:
                raise ValueError(
                    f"Received unexpected message without 'op' key: {_shorten(msg)} "
                    f"(sent to {self._name_in_messages} by {comm.peer_address})"
                )
            op = msg.pop("op")
            if op == "close":
                if reply:
                    await self._write_answer(comm, op, "OK")
                return False
            if self._close_begun:
                raise RuntimeError(
                    f"{self._name_in_messages} is closing and takes no more requests"
                )
            call = self._find_handler(op)
            self._server_statistics.counters["op"].add(op)
            self._comms[comm] = op
            if call.with_serializers and serializers is not None:
                msg["serializers"] = serializers
            result = call.handler(comm, **msg) if call.with_comm else call.handler(**msg)
            kind = type(result)
            if hasattr(kind, "__await__") or kind is GeneratorType:
                if not asyncio.iscoroutine(result) and kind is not GeneratorType:
                    raise RuntimeError(
                        f"Comm handler returned unknown awaitable. Expected coroutine, "
                        f"instead got {kind}"
                    )
                result = await result
        except CommClosedError as exc:
            if comm.closed():
                logger.debug(
                    "%s left during %r on %s: %s",
                    comm.peer_address,
                    op,
                    self._name_in_messages,
                    exc,
                )
                return False
            logger.info("Exception while handling op %s", op, exc_info=True)
            result = error_message(exc, "uncaught-error")
        except asyncio.CancelledError as exc:
            if self._is_cancelled():
                raise
            # Something that the handler awaited was cancelled.  At the caller
            # it must not look as if he had been cancelled himself.
            logger.warning("Handler of op %s was cancelled", op, exc_info=True)
            error = RuntimeError(f"the handler of {op!r} in {self._name_in_messages} was cancelled")
            error.__cause__ = exc
            result = error_message(error, "uncaught-error")
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            # Meant for the process, or for this coroutine, rather than the caller.
            raise
        except BaseException as exc:
            logger.error("Exception while handling op %s", op, exc_info=True)
            result = error_message(exc, "uncaught-error")

        if (
            reply
            and result is not Status.dont_reply
            and not await self._write_answer(comm, op, result, serializers)
        ):
            return False
        return not close

    def _is_cancelled(self) -> bool:
        """Whether the current task is to end, rather than something that it awaited."""
        task = asyncio.current_task()
        return self._close_begun or (task is not None and task.cancelling() > 0)

    async def _write_answer(
        self, comm: Comm, op: Any, result: Any, serializers: Sequence[str] | None = None
    ) -> bool:
        """Write the *result* of a request; return whether the comm still works."""
        try:
            families = None if serializers is _ANY else serializers
            await comm.write(result, serializers=families, on_error="raise")
        except CommClosedError as exc:
            logger.debug("%s left before %r was answered: %s", comm.peer_address, op, exc)
            return False
        except Exception as exc:
            if comm.closed() or serializers is _ANY:
                raise
            logger.error("Cannot serialize the result of op %s", op, exc_info=True)
            is_error = isinstance(result, dict) and result.get("status") == "uncaught-error"
            error = _unreadable(exc)
            # In the caller's families if he can read an error in these, else in any.
            return await self._write_answer(comm, op, error, _ANY if is_error else serializers)
        return True

    def _find_handler(self, op: Any) -> _Call:
        """Return how to call the handler of *op*.

        Raises
        ------
        ValueError
            If there is none, or it is blocked.
        """
        if op in self.blocked_handlers:
            raise ValueError(
                f"The {op!r} handler has been explicitly disallowed in {type(self).__name__}, "
                "possibly due to security concerns."
            )
        handler = self.handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            raise ValueError(f"No handler for op {_shorten(op)} in {self._name_in_messages}")
        call = self._handler_calls.get(op)
        if call is None or call.handler is not handler:
            call = _Call(handler, _expects_comm(handler), has_keyword(handler, "serializers"))
            self._handler_calls[op] = call
        return call

    @property
    def _name_in_messages(self) -> str:
        """This server as messages to others name it."""
        return f"{type(self).__name__} {self.address_safe}"

    @property
    def address_safe(self) -> str:
        """The address of this server, or ``"not-running"``."""
        return "not-running"

    # One-way streams

    async def handle_stream(self, comm: Comm, extra: Mapping[str, Any] | None = None) -> None:
        """Feed the messages that arrive on *comm* to the stream handlers.

        Each message, or list of messages, is handled before the next one is
        read, whether its handler is a function or a coroutine function.  One
        whose handler fails is logged and the next one handled.  The stream ends
        with ``{"op": "close-stream"}`` or when the peer closes it.

        Parameters
        ----------
        comm
            Where messages arrive.
        extra
            Further keyword arguments for every handler.
        """
        extra = dict(extra or {})
        comm.name = comm.name or "stream"
        logger.debug("Starting stream from %s to %s", comm.peer_address, self._name_in_messages)
        try:
            # Not while it is open: what arrived before its end is still to be read.
            while True:
                self._idle_streams.add(comm)
                try:
                    msgs = await comm.read()
                finally:
                    self._idle_streams.discard(comm)
                for msg in msgs if isinstance(msgs, tuple | list) else (msgs,):
                    op = msg.pop("op", None) if isinstance(msg, dict) else None
                    handler = self.stream_handlers.get(op) if isinstance(op, str) else None
                    if handler is None or op == "close-stream":
                        if self._ends_stream(comm, op, msg):
                            return
                        continue
                    try:
                        result = handler(**{**extra, **msg}) if extra else handler(**msg)
                        if result is None or not asyncio.iscoroutine(result):
                            continue
                        await result
                    except (Exception, asyncio.CancelledError) as exc:
                        if isinstance(exc, asyncio.CancelledError) and self._is_cancelled():
                            raise
                        logger.exception(
                            "Stream handler of op %s in %s failed on a message from %s",
                            op,
                            self._name_in_messages,
                            comm.peer_address,
                        )
                    if self._event_finished.is_set():
                        # That message's handler has closed this server.
                        return
                # What they hold is not to stay until the next message has arrived.
                msgs = msg = result = None
        except CommClosedError as exc:
            logger.debug(
                "Stream from %s to %s ended: %s", comm.peer_address, self._name_in_messages, exc
            )
        finally:
            await comm.close()

    def _ends_stream(self, comm: Comm, op: Any, msg: Any) -> bool:
        """Whether a message for which there is no handler ends a stream."""
        if op == "close-stream":
            logger.debug(
                "Stream from %s to %s was closed", comm.peer_address, self._name_in_messages
            )
            return True
        # "OK" is the answer to a request that made this comm a stream.
        if not (isinstance(msg, str) and msg == "OK"):
            logger.error(
                "%s has no stream handler for op %s in the stream from %s, and ignores: %s",
                self._name_in_messages,
                _shorten(op),
                comm.peer_address,
                _shorten(msg),
            )
        return False

    # End

    async def _finish_handlers(self, grace: float) -> None:
        """Let running handlers finish within *grace* seconds, then cancel them.

        Requests that arrive meanwhile are answered by an error.
        """
        me = asyncio.current_task()
        for comm in list(self._idle_streams):
            comm.abort()
        running = [
            task
            for task, comm in self._serving_tasks.items()
            if task is not me and self._comms.get(comm) is not None
        ]
        try:
            if running:
                await asyncio.wait(running, timeout=grace)
        finally:
            for task, comm in self._serving_tasks.items():
                if task is not me:
                    if self._comms.get(comm) is None:
                        comm.abort()
                    task.cancel()
        left = {task for task in self._serving_tasks if task is not me}
        if left:
            _, left = await asyncio.wait(left, timeout=max(grace, 1))
        for task in left:
            logger.error("A handler does not end although it was cancelled: %s", task)


def _unreadable(exc: Exception) -> ErrorMessage:
    """Return what to answer where the protocol failed, in a class that any peer has."""
    kind = TypeError if isinstance(exc, TypeError) else ValueError
    return error_message(kind(str(exc)).with_traceback(exc.__traceback__), "uncaught-error")


def _shorten(value: Any) -> str:
    """Return the repr of what a peer sent, fit for a log."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

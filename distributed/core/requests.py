"""Requests: read one from a comm, call its handler, write the answer, and read the next one.

:class:`Requests` is the part of a server that does this, for each comm in a task of its own.  Its
comms are connected already.
"""

from __future__ import annotations

import asyncio
import inspect
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import msgpack

from distributed.base.callables import has_keyword
from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.base.traffic import Traffic
from distributed.comm.core import Comm, CommClosedError
from distributed.core.admission import Admission, Refusals
from distributed.core.answers import (
    GENERATORS,
    Answer,
    MarkingComm,
    check_result,
    is_coroutine,
    is_run_to_completion,
    result_of,
)
from distributed.core.call_info import KEY, CallInfo, unambiguous
from distributed.core.deadlines import current
from distributed.core.draining import Draining
from distributed.core.errors.messages import error_message
from distributed.core.failures import Failures, Refused, outcome, protocol_error
from distributed.core.interceptors import Call, Interceptor, intercept
from distributed.core.mistakes import BadCall, BadRequest, do_not_fit
from distributed.core.status import Status
from distributed.telemetry.counter import Counter
from distributed.telemetry.request_counts import (
    LATENCY_BOUNDS,
    SHORT,
    OperationCounts,
    RequestCounts,
)

logger = get_logger("distributed.core")

#: Maximum number of seconds for the answer to a peer without the required token.
_HEALTH_TIME = 10.0

#: Stands for "all serialization families".
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
        # Some functions written in C have no signature.
        return False
    return next(iter(parameters), None) == "comm"


def pingpong(comm: Comm) -> bytes:
    """Answer a ping; a handler."""
    return b"pong"


class _Call(NamedTuple):
    """The way to call a handler."""

    handler: Callable[..., Any]
    with_comm: bool
    with_serializers: bool
    # Whether the handler is cancelled when its caller leaves.
    cancellable: bool
    counts: OperationCounts


class RequestServer(Protocol):
    """The attributes of a server that :class:`Requests` uses, each looked up when it is used."""

    id: str
    handlers: dict[str, Callable[..., Any]]
    blocked_handlers: list[str]
    counters: defaultdict[str, Counter]
    _comms: dict[Comm, str | None]
    interceptors: tuple[Interceptor, ...]
    _close_begun: bool
    _refuses_requests: bool

    @property
    def _is_open(self) -> bool: ...

    @property
    def _name_in_messages(self) -> str: ...

    async def start(self) -> Any: ...

    def _cancels_current_task(self) -> bool: ...


class Requests:
    """The requests that one server receives."""

    # A comm is in `server._comms` while a task serves it; a comm that is refused is in `_tasks`
    # only.
    def __init__(self, server: RequestServer):
        self._server = server
        self._admission = Admission.configured()
        self._refusals = Refusals.configured()
        # Each task that serves or refuses a comm → that comm.
        self._tasks: dict[asyncio.Task[Any], Comm] = {}
        # op → the way to call its handler, if `server.handlers` still has that handler.
        self._calls: dict[str, _Call] = {}
        # The comms whose handler is cancelled if the caller leaves.
        self._cancellable: set[Comm] = set()
        self.counts = RequestCounts()
        #: Transport → the traffic of all comms that used it.
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        #: How handlers end when the server is drained.
        self.draining = Draining(server._comms, self._tasks, self._write)
        self._failures = Failures(server, self.counts, self.draining.given_up)

    def serve(self, comm: Comm) -> None:
        """Start a task that answers the requests on *comm*, or abort *comm* if it is too late."""
        comm.count_in(self.traffic[comm.local_address.partition("://")[0]])
        if not self._server._is_open:
            self._admission.refused["closing"] += 1
            comm.abort()
            return
        refusal = self._admission.enter(comm)
        serve = self._serve(comm) if refusal is None else self._refuse(comm, refusal)
        task = asyncio.create_task(serve, name=f"serve {comm.peer_address}")
        self._tasks[task] = comm
        task.add_done_callback(self._served)
        comm.notify_end(partial(self._caller_left, comm, task))

    def _served(self, task: asyncio.Task[Any]) -> None:
        comm = self._tasks.pop(task)
        self._admission.leave(comm)
        self.draining.forget(comm)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("%s stopped serving %s", self._server.id, comm.peer_address, exc_info=exc)

    async def _serve(self, comm: Comm) -> None:
        server = self._server
        server._comms[comm] = None
        # This task may have inherited the deadline of the task that connected, or that listens.
        if current.get() is not None:
            current.set(None)
        idle = self._admission.idle
        read = comm.read if idle is None else partial(self._read_in_time, comm, idle)
        try:
            await server.start()
            while True:
                try:
                    msg = await read()
                except CommClosedError as exc:
                    peer = comm.peer_address
                    fields = {"peer": peer}
                    logger.debug("%s disconnected from %s: %s", peer, server.id, exc, extra=fields)
                    break
                except BaseException as exc:
                    if comm.closed() or self._ends_task(comm, exc):
                        raise
                    logger.warning(
                        "%s received an unreadable request in %r",
                        server.id,
                        comm,
                        exc_info=True,
                        extra={"peer": comm.peer_address},
                    )
                    await self._write(comm, None, protocol_error(exc))
                    continue
                in_time = not server._refuses_requests
                keep = await self._answer(comm, msg)
                # Release the memory of this request before the next one arrives.
                msg = None
                if not keep or (in_time and server._refuses_requests):
                    await comm.close()
                    break
                server._comms[comm] = None
        finally:
            del server._comms[comm]
            comm.abort()

    def _caller_left(self, comm: Comm, task: asyncio.Task[Any]) -> None:
        """Cancel the handler that *task* runs for the caller at the other end of *comm*."""
        # A handler that reads from the comm gets the messages that were sent before, then an error.
        if comm in self._cancellable and not (comm.is_reading or comm.has_unread):
            self._cancellable.discard(comm)
            logger.debug("%s left during op %s", comm.peer_address, self._server._comms.get(comm))
            task.cancel("the caller has left")

    async def _read_in_time(self, comm: Comm, idle: float) -> Any:
        try:
            async with asyncio.timeout(idle):
                return await comm.read()
        except TimeoutError:
            raise CommClosedError(
                f"no request for {idle:g} s ('distributed.comm.timeouts.idle')"
            ) from None

    async def _refuse(self, comm: Comm, reason: str) -> None:
        """Answer the first request on *comm* by an error that tells *reason*, and close *comm*."""
        message = f"{self._server._name_in_messages} refuses a connection: {reason}"
        refusals = self._refusals
        refusals.log(message, comm.peer_address)
        refusals.enter(comm)
        # Nothing in the request is needed, so nothing is deserialized.
        comm.deserialize = comm.allow_pickle = False
        try:
            async with asyncio.timeout(refusals.timeout):
                try:
                    await comm.read()
                except CommClosedError:
                    raise
                except Exception as exc:  # noqa: BLE001  (the peer gets the refusal instead)
                    logger.debug("The request of %s was not read: %r", comm.peer_address, exc)
                await self._write(comm, None, error_message(OSError(message), "uncaught-error"))
                await comm.close()
        except (TimeoutError, CommClosedError) as exc:
            logger.debug("%s did not wait for the refusal: %r", comm.peer_address, exc)
        finally:
            refusals.leave(comm)
            comm.abort()

    async def answer_stranger(self, msg: Any) -> dict[str, Any]:
        """Answer a peer without the required token: only "health", without its arguments.

        Returns
        -------
        dict
            The health of the server, or an error, of plain values.
        """
        server = self._server
        op = msg.get("op") if type(msg) is dict else None
        if op != "health" or "health" in server.blocked_handlers:
            return {
                "status": "uncaught-error",
                "exception_text": (
                    f"{server._name_in_messages} requires a token ('distributed.comm.auth.token'): "
                    "without one, only the operation 'health' is answered"
                ),
                "denied": True,
            }
        try:
            async with asyncio.timeout(_HEALTH_TIME):
                health = await result_of(server.handlers["health"](), "health")
            msgpack.packb(health)
        except Exception as exc:
            logger.exception("Exception while handling op health in %s", server._name_in_messages)
            return {"status": "uncaught-error", "exception_text": f"{type(exc).__name__} in health"}
        return health

    async def _answer(self, comm: Comm, msg: Any) -> bool:
        """Answer one request, and return whether to keep *comm* open."""
        # A copy: over inproc, *msg* is the object that the peer wrote.
        kwargs = dict(msg) if isinstance(msg, dict) else {}
        op = kwargs.pop("op", None)
        close = kwargs.pop("close", False)
        reply = kwargs.pop("reply", True)
        serializers = kwargs.pop("serializers", None)
        info = kwargs.pop(KEY, None)
        if type(info) is dict and info.get("open") is True:
            # The caller reads messages, so it can read an error.
            reply = True
        result: Any = "OK"
        answer = marking = call = counts = failure = None
        begin = perf_counter()
        try:
            if op is None:
                self._check(comm, msg)
            if serializers is not None:
                # If they are not valid, the answer that says so is in any family.
                wanted, serializers = serializers, None
                serializers = _families(wanted)
            # Comparing an array that a peer has sent would make one of booleans.
            if isinstance(op, str) and op == "close":
                close = True
            else:
                server = self._server
                call = self._calls.get(op) if type(op) is str else None
                if (
                    call is None
                    or call.handler is not server.handlers.get(op)
                    or server.blocked_handlers
                    or server._refuses_requests
                ):
                    call = self._find(op)
                server.counters["op"].add(op)
                server._comms[comm] = op
                counts = call.counts
                if call.with_serializers and serializers is not None:
                    kwargs["serializers"] = serializers
                handler = call.handler
                if interceptors := server.interceptors:
                    handler = partial(self._intercepted, interceptors, handler, comm, op, info)
                if info is None or info is True:
                    if not call.with_comm:
                        result = handler(**kwargs)
                    elif info is None:
                        result = handler(comm, **kwargs)
                    else:
                        marking = MarkingComm(comm)
                        result = handler(marking, **kwargs)
                    kind = type(result)
                    is_awaitable = hasattr(kind, "__await__") or kind in GENERATORS
                    if is_awaitable:
                        check_result(result, op)
                else:
                    answer = Answer(comm, op, CallInfo.parse(info), serializers, self.counts)
                    if answer.info.stream:
                        self.draining.streaming.add(comm)
                    result = answer.run(partial(handler, **kwargs), call.with_comm)
                    is_awaitable = True
                if is_awaitable:
                    if info is not None and call.cancellable:
                        if comm.closed():
                            result.close()
                            counts.add(perf_counter() - begin, "disconnected")
                            return False
                        self._cancellable.add(comm)
                    result = await result
                    if type(result) in GENERATORS:
                        check_result(result, op)
                if info is True:
                    if marking is not None:
                        result = marking.last_message(result, op)
                    elif type(result) is dict:
                        result = unambiguous(result)
        except BaseException as exc:
            # Raised here and not in a function called with the error: the frame of that would refer
            # to the error, and the error to the frame.
            if self._ends_task(comm, exc) and not self.draining.ends(comm, exc):
                if counts is not None:
                    counts.add(perf_counter() - begin, "cancelled")
                raise
            if not isinstance(op, str):
                op = shown_repr(op)
            failure = outcome(exc)
            result = self._failures.answer(comm, op, exc, call, kwargs)
            if result is None:
                if counts is not None:
                    counts.add(perf_counter() - begin, "disconnected")
                return False
            if info is not None and isinstance(exc, Refused):
                result["refused"] = True
        finally:
            if info is not None:
                self._cancellable.discard(comm)
        try:
            if reply and result is not Status.dont_reply:
                written = await self._write(comm, op, result, serializers)
                if written is not None:
                    failure = written
                    if written == "disconnected":
                        return False
            if answer is not None:
                await answer.finish()
                self.draining.streaming.discard(comm)
        except BaseException:
            failure = "cancelled"
            raise
        finally:
            if counts is not None:
                seconds = perf_counter() - begin
                if failure is None:
                    # As `OperationCounts.add`, but without calls in the usual case.
                    counts.seconds += seconds
                    if seconds < SHORT:
                        counts.buckets[0] += 1
                    else:
                        counts.buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
                else:
                    counts.add(seconds, failure)
        return not close

    def _check(self, comm: Comm, msg: Any) -> None:
        """Raise an error for the caller unless *msg* is a dict with the key ``"op"``."""
        route = f"(sent to {self._server._name_in_messages} by {comm.peer_address})"
        if not (isinstance(msg, dict) and "op" in msg):
            self.counts.rejected["malformed"] += 1
        if not isinstance(msg, dict):
            raise BadCall(f"Bad message type.  Expected dict, got\n  {shown_repr(msg)} {route}")
        if "op" not in msg:
            raise BadRequest(
                f"Received unexpected message without 'op' key: {shown_repr(msg)} {route}"
            )

    def _find(self, op: Any) -> _Call:
        """Return the way to call the handler of *op*.

        Raises
        ------
        Refused
            If the server is closing.
        BadRequest
            If *op* has no handler, or is blocked.
        """
        server = self._server
        # An op of another type may be slow to compare.
        known = isinstance(op, str)
        rejected = self.counts.rejected
        if server._refuses_requests and not (known and op == "health"):
            rejected["closing"] += 1
            raise Refused(f"{server._name_in_messages} is closing and refuses new requests")
        if known and op in server.blocked_handlers:
            rejected["blocked"] += 1
            raise BadRequest(
                f"The {op!r} handler has been explicitly disallowed in {type(server).__name__}, "
                "possibly due to security concerns."
            )
        handler = server.handlers.get(op) if known else None
        if handler is None:
            rejected["unknown-op"] += 1
            raise BadRequest(f"No handler for op {shown_repr(op)} in {server._name_in_messages}")
        call = self._calls.get(op)
        if call is None or call.handler is not handler:
            call = self._calls[op] = _Call(
                handler,
                _expects_comm(handler),
                has_keyword(handler, "serializers"),
                not is_run_to_completion(handler),
                self.counts.of(op),
            )
        return call

    async def _intercepted(
        self,
        interceptors: Sequence[Interceptor],
        handler: Callable[..., Any],
        comm: Comm,
        op: str,
        info: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call a handler through the interceptors of the server."""
        parsed = CallInfo() if info is None else CallInfo.parse(info)
        kind: Any = "stream" if parsed.stream else "conversation" if parsed.open else "value"

        names = set(kwargs)

        async def make(call: Call) -> Any:
            try:
                result = handler(*args, **call.arguments)
                if is_coroutine(result) or not parsed.stream:
                    return await result_of(result, op)
            except TypeError as exc:
                # Arguments that an interceptor has changed are not the caller's.
                if names == set(call.arguments) and do_not_fit(exc, handler, args, call.arguments):
                    raise BadCall(*exc.args) from None
                raise
            return result

        call = Call(op, kwargs, comm.peer_address, "server", kind, dict(parsed.metadata))
        return await intercept(interceptors, call, make)

    def _ends_task(self, comm: Comm, exc: BaseException) -> bool:
        """Return whether *exc* is meant for the task that serves *comm*, or for the process.

        Otherwise a handler or a serializer has raised it.
        """
        if isinstance(exc, asyncio.CancelledError):
            return self._server._cancels_current_task()
        if isinstance(exc, GeneratorExit):
            # Python raises it in a coroutine that is closed, and that never happens inside of its
            # own task.
            return self._tasks.get(_current_task()) is not comm  # type: ignore[arg-type]
        return isinstance(exc, (KeyboardInterrupt, SystemExit))

    async def _write(
        self, comm: Comm, op: Any, result: Any, serializers: Sequence[str] | None = None
    ) -> str | None:
        """Write the answer to a request, and return None.

        Return ``"error"`` if an error was written in its place, because it cannot be serialized,
        and ``"disconnected"`` if *comm* is closed.

        A wrapped value that cannot be serialized is replaced by an error, which the reader raises
        when it deserializes the value: also if the value passes through servers that do not.
        """
        is_error = type(result) is dict and result.get("status") == "uncaught-error"
        try:
            families = None if serializers is _ANY else serializers
            on_error = "raise" if is_error else "message"
            await comm.write(result, serializers=families, on_error=on_error)
        except CommClosedError as exc:
            logger.debug(
                "%s disconnected before op %r was answered: %s",
                comm.peer_address,
                op,
                exc,
                extra={"peer": comm.peer_address, "op": op},
            )
            return "disconnected"
        except BaseException as exc:
            if comm.closed() or serializers is _ANY or self._ends_task(comm, exc):
                raise
            message = "Cannot serialize the result of op %s for %s"
            fields = {"peer": comm.peer_address, "op": op}
            logger.error(message, op, comm.peer_address, exc_info=True, extra=fields)
            # Write the error in the caller's families; if *result* was an error, in any family.
            error = protocol_error(exc)
            self.counts.note_error(op, comm.peer_address, exc)
            return await self._write(comm, op, error, _ANY if is_error else serializers) or "error"
        return None

    async def finish(self, grace: float) -> None:
        """Let running handlers finish within *grace* seconds, then cancel them.

        Requests that arrive meanwhile are answered by an error.
        """
        me = asyncio.current_task()
        comms = self._server._comms
        running = [
            task
            for task, comm in self._tasks.items()
            if task is not me and comms.get(comm) is not None
        ]
        try:
            if running:
                await asyncio.wait(running, timeout=grace)
        finally:
            for task, comm in self._tasks.items():
                if task is not me:
                    if comms.get(comm) is None:
                        comm.abort()
                    task.cancel()
        left = {task for task in self._tasks if task is not me}
        if left:
            _, left = await asyncio.wait(left, timeout=max(grace, 1))
        for task in left:
            logger.error("A handler does not end although it was cancelled: %s", task)

    def runs_here(self) -> bool:
        """Return whether the current task serves a comm, so that a handler runs in it."""
        return asyncio.current_task() in self._tasks

    def abort_comms(self) -> None:
        """Close all comms, except that whose handler called close(): it still gets an answer."""
        called_by_handler = self.runs_here()
        for comm, op in list(self._server._comms.items()):
            if op is None or not called_by_handler:
                comm.abort()


def _current_task() -> asyncio.Task[Any] | None:
    """Return the task that runs, or None if none does."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        # No event loop runs: the garbage collector closes a coroutine.
        return None


def _families(serializers: Any) -> tuple[Any, ...]:
    """Return the serialization families that a request names, each once.

    A peer may name one a million times; each would be tried for each object.
    """
    try:
        return tuple(dict.fromkeys(serializers))
    except TypeError as exc:
        raise BadCall(f"the 'serializers' of a request must be a list of names: {exc}") from None

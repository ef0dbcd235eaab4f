"""Run a server as a service: until it closes itself, or a signal asks the process to end.

:func:`serve` is a coroutine for a running event loop.  :func:`run` is for a program that has
nothing else to do.  Both return the exit code.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any, Final

from distributed.base import config
from distributed.base.arguments import check_duration
from distributed.base.event_loop import asyncio_loop_of
from distributed.base.logs import get_logger
from distributed.comm.arguments import SecuritySettings
from distributed.comm.settings import check_configuration
from distributed.comm.socket_activation import PREFIX, has_inherited, inherited_addresses
from distributed.core.server import Server
from distributed.core.service_manager import notify, watched
from distributed.core.signals import StopRequest, end_process

__all__ = [
    "CLOSED",
    "FAILED",
    "INVALID",
    "UNFINISHED",
    "run",
    "serve",
]

logger = get_logger("distributed.core")

#: Exit code of a server that was closed, after all requests in progress had finished.
CLOSED: Final = 0
#: Exit code if the server could not start, or if it or a service failed.
FAILED: Final = 1
#: Exit code if requests were cancelled, since they did not finish in time.
UNFINISHED: Final = 3
#: Exit code for an invalid configuration or address, which a restart does not change (EX_CONFIG).
INVALID: Final = 78

#: Seconds for closing a server and its services after the requests have ended; and seconds after
#: which :func:`run` ends a process that does not end by itself.
CLOSE_LIMIT, EXIT_LIMIT = 10.0, 15.0

#: A server, or a function that returns one.
AnyServer = Server | Callable[[], Server | Awaitable[Server]]
#: A function that returns a context manager, which is entered while the server is ready.
Service = Callable[[Server], AbstractAsyncContextManager[Any]]
Address = int | str | tuple[str, int]


class _StartError(Exception):
    """The server could not start.  The cause is the error; `code` is the exit code."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


async def serve(
    server: AnyServer,
    addresses: str | Iterable[Address] = (),
    *,
    services: Sequence[Service] = (),
    shutdown_timeout: float | str | None = None,
    security: SecuritySettings | None = None,
) -> int:
    """Start a server, let it listen, and close it when a signal arrives or when it closes itself.

    In the main thread, SIGINT and SIGTERM close the server gracefully: new requests are refused
    with an error, requests in progress finish, and then everything is closed.  A second signal ends
    the process at once.  Cancelling this coroutine closes the server as ``Server.close`` does.

    Errors are logged, as one line each; this function raises none of them.

    Parameters
    ----------
    server
        A server, or a function, plain or async, that returns one.  The function is called here.
    addresses
        Where to listen, as in ``Server.listen``; an address or several.  Without any, a server that
        does not listen already listens at the sockets that a service manager has passed
        (:mod:`distributed.comm.socket_activation`), or else at its default address.
    services
        Functions that take the server and return an async context manager each.  They are entered
        when the server listens, and left when the last request has finished.
    shutdown_timeout
        Maximum time for requests in progress to finish, in seconds or as a string such as
        ``"500ms"``; by default ``distributed.server.shutdown-timeout``.  Those that still run are
        cancelled.
    security
        For listening at *addresses*, if the server has no ``security`` of its own.

    Returns
    -------
    int
        The exit code: 0 if all requests finished, 1 if the server failed, 3 if requests were
        cancelled, 78 if the configuration or an address is invalid.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.
    """
    timeout = check_duration("shutdown_timeout", shutdown_timeout)
    serving = _Serving(server, _listed(addresses), services, timeout, security)
    with serving.stop.handling_signals():
        return await serving.serve()


def _listed(addresses: str | Iterable[Address]) -> list[Address]:
    return [addresses] if isinstance(addresses, str | int) else list(addresses)


class _Serving:
    """One call of :func:`serve`."""

    def __init__(
        self,
        server: AnyServer,
        addresses: Sequence[Address],
        services: Sequence[Service],
        timeout: float | None,
        security: SecuritySettings | None = None,
        closing: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        if not isinstance(server, Server) and not callable(server):
            raise TypeError(f"expected a Server, or a function that returns one, got {server!r}")
        self._given = server
        self._addresses = addresses
        self._services = services
        self._timeout = timeout
        self._security = security
        # Called when closing begins, with the maximum number of seconds that it takes.
        self._closing = closing
        # None until the server is made.
        self._server: Server | None = server if isinstance(server, Server) else None
        #: Whether a signal has arrived.
        self.stop = StopRequest(self._begin_to_close, self._abandon)
        #: The exit code so far.
        self.code = CLOSED

    async def serve(self) -> int:
        """Start, serve and close, and return the exit code."""
        self.stop.bind()
        try:
            # The services are entered and left in this task, as those with task groups need it.
            async with AsyncExitStack() as stack:
                try:
                    await self._start_or_stop(stack)
                    if self.stop.signum is None:
                        await self._serve_until_stopped()
                except _StartError as exc:
                    self._log_failure(exc)
                    self.code = exc.code
                finally:
                    await self._drain()
        except Exception:
            logger.exception("A service of %s failed", self._name)
            self.code = FAILED
        finally:
            await self._close()
        return self.code

    @property
    def _name(self) -> str:
        return "the server" if self._server is None else self._server._name_in_messages

    def _abandon(self) -> None:
        if self._server is not None:
            self._server.stop()

    # Starting

    async def _start_or_stop(self, stack: AsyncExitStack) -> None:
        """Start, until a signal arrives."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                with self.stop.calling(lambda: limit.reschedule(0)):
                    await self._start(stack)
        except TimeoutError:
            # Tornado's and asyncio's time limits of the server are errors like others.
            if not limit.expired():
                raise
            logger.info("Received %s while %s was starting", self.stop.name, self._name)

    async def _start(self, stack: AsyncExitStack) -> None:
        try:
            check_configuration()
            if self._timeout is None:
                self._timeout = config.get_timedelta("distributed.server.shutdown-timeout") or 0
        except ValueError as exc:
            raise _StartError("the configuration is invalid", INVALID) from exc
        try:
            server = await self._make()
        except Exception as exc:
            raise _StartError("the server could not be made", FAILED) from exc
        name = type(server).__name__
        try:
            await server.start()
        except Exception as exc:
            raise _StartError(f"{name} failed to start", FAILED) from exc
        listen_args: dict[str, Any] = {}
        if self._security is not None and server._server_security is not None:
            logger.warning(
                "%s has security settings of its own, which are used and not those given to run()",
                name,
            )
        elif self._security is not None:
            listen_args["security"] = self._security
        try:
            for listening in list(server._server_listeners.requested):
                # It was not awaited, perhaps because no event loop was running.
                await listening
            for address in self._expanded(server):
                await server.listen(address, **listen_args)
        except (TypeError, ValueError) as exc:
            raise _StartError(f"{name} cannot listen", INVALID) from exc
        except Exception as exc:
            raise _StartError(f"{name} failed to start", FAILED) from exc
        for service in self._services:
            try:
                await stack.enter_async_context(service(server))
            except Exception as exc:
                code = INVALID if _is_about_settings(exc) else FAILED
                raise _StartError(f"a service of {name} failed to start", code) from exc

    def _expanded(self, server: Server) -> list[Address]:
        """Return the addresses to listen at, one for each socket."""
        if not self._addresses and not server.listeners:
            return list(inherited_addresses(PREFIX)) if has_inherited() else [server.default_port]
        result: list[Address] = []
        for address in self._addresses:
            if isinstance(address, str) and address.startswith(PREFIX):
                result += inherited_addresses(address)
            else:
                result.append(address)
        return result

    async def _make(self) -> Server:
        if self._server is None:
            made: Any = self._given() if callable(self._given) else self._given
            if inspect.isawaitable(made) and not isinstance(made, Server):
                made = await made
            if not isinstance(made, Server):
                raise TypeError(f"{self._given!r} returned {made!r}, which is not a Server")
            self._server = made
        return self._server

    def _log_failure(self, exc: _StartError) -> None:
        """Log the error of starting, as one line."""
        cause = exc.__cause__
        assert cause is not None
        if isinstance(cause, RuntimeError) and cause.__cause__ is not None:
            # "Server failed to start." repeats the first words of the line.
            cause = cause.__cause__
        if isinstance(cause, OSError):
            # Without its number.
            logger.error("%s: %s", exc, cause.strerror or cause)
        elif exc.code == INVALID:
            logger.error("%s: %s", exc, cause)
        else:
            frames = traceback.extract_tb(cause.__traceback__)
            where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
            logger.error("%s: %s: %s%s", exc, type(cause).__name__, cause, where)
        logger.debug("The error of the last line", exc_info=cause)

    # Serving and closing

    async def _serve_until_stopped(self) -> None:
        """Wait until a signal arrives or the server is closed."""
        server = self._server
        assert server is not None
        listening = ", ".join(listener.contact_address for listener in server.listeners)
        logger.info("%s is ready at %s", type(server).__name__, listening)
        notify("READY=1", f"STATUS=Ready at {listening}")
        waiting = [asyncio.create_task(server.finished()), asyncio.create_task(self.stop.wait())]
        try:
            with watched():
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)

    def _begin_to_close(self) -> None:
        self._closing((self._timeout or 0) + EXIT_LIMIT)

    async def _drain(self) -> None:
        """Let requests in progress finish, if a signal has arrived."""
        server, stop, timeout = self._server, self.stop, self._timeout or 0
        if server is None:
            return
        self._begin_to_close()
        microseconds = int((timeout + EXIT_LIMIT) * 1e6)
        reason = "" if stop.signum is None else f" after {stop.name}"
        notify("STOPPING=1", f"STATUS=Closing{reason}", f"EXTEND_TIMEOUT_USEC={microseconds}")
        if stop.signum is None or not server._is_open:
            return
        logger.info(
            "Received %s: %s closes within %s s; a second signal ends the process at once",
            *(stop.name, self._name, timeout),
        )
        try:
            await server.drain(timeout)
        except Exception:
            logger.exception("%s failed when it was to finish its requests", self._name)
            self.code = FAILED

    async def _close(self) -> None:
        server = self._server
        if server is None:
            return
        limit = CLOSE_LIMIT
        if server._drain_deadline is not None:
            limit += max(server._drain_deadline - monotonic(), 0)
        try:
            async with asyncio.timeout(limit):
                await server.close()
        except Exception:
            logger.exception("%s failed to close", self._name)
            self.code = FAILED
        else:
            logger.info("Closed %s", server.id)
        if self.code == CLOSED and server._cut_short:
            self.code = UNFINISHED


def _is_about_settings(exc: BaseException) -> bool:
    """Return whether this package has refused an argument, an address or the configuration.

    A ValueError of other code may be about data, which differ at the next start.
    """
    if not isinstance(exc, ValueError):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("distributed.")


def run(
    server: AnyServer,
    addresses: str | Iterable[Address] = (),
    *,
    services: Sequence[Service] = (),
    shutdown_timeout: float | str | None = None,
    security: SecuritySettings | None = None,
) -> int:
    """Run :func:`serve` in a new event loop, and return the exit code for ``sys.exit``.

    If the process does not end by itself within ``shutdown_timeout`` and 15 more seconds, for
    example because a handler blocks the event loop or a thread, this function ends it.

    Parameters
    ----------
    server, addresses, services, shutdown_timeout, security
        As for :func:`serve`.

    Returns
    -------
    int
        As for :func:`serve`.  After a second signal the process ends with 130 (SIGINT) or 143
        (SIGTERM), and this function does not return.

    Raises
    ------
    RuntimeError
        If an event loop runs in this thread: await :func:`serve` there.
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> from distributed.core import Server, run
    >>> def main():
    ...     return run(Server({"add": lambda x, y: x + y}), "tcp://127.0.0.1:8786")
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("run() blocks, and an event loop runs here: use `await serve(...)`")
    timeout = check_duration("shutdown_timeout", shutdown_timeout)
    exit_timer = _ExitTimer()
    serving = _Serving(server, _listed(addresses), services, timeout, security, exit_timer.start)
    exit_timer.code = lambda: serving.code or UNFINISHED
    made_on = server._io_loop if isinstance(server, Server) else None
    factory = None if made_on is None else lambda: asyncio_loop_of(made_on)
    with serving.stop.handling_signals():
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                return runner.run(serving.serve())
        finally:
            exit_timer.stop()


@asynccontextmanager
async def announce(server: Server) -> AsyncIterator[None]:
    """Print the address of a server when it is ready: one of the *services* of :func:`run`.

    For a parent process, which reads this line from the standard output of its child.

    Examples
    --------
    >>> from distributed.core import Server, announce, run
    >>> def main():
    ...     return run(Server({}), "tcp://127.0.0.1:0", services=[announce])
    """
    print(server.address, flush=True)  # noqa: T201  (this is what it is for)
    yield


class _ExitTimer:
    """Ends the process, from a thread, if it takes too long to end."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self.code: Callable[[], int] = lambda: UNFINISHED

    def start(self, seconds: float) -> None:
        """End the process after *seconds*, if that has not been called yet."""
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def _end(self) -> None:
        threads = [it.name for it in threading.enumerate() if it is not threading.current_thread()]
        text = "The process does not end by itself, and is ended now; its threads were: %s"
        end_process(self.code(), lambda: logger.error(text, ", ".join(threads)))

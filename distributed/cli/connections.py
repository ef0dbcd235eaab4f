"""The connection of a command to a server: its errors, and notices while it is being made."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from traceback import walk_tb
from typing import Any

import click

from distributed.cli.exit_codes import TIMED_OUT, UNREACHABLE, USAGE
from distributed.cli.failures import CommandError, OutputClosed, one_line
from distributed.cli.options import has_tls
from distributed.comm import Comm, connect
from distributed.comm.attempts import Attempts, on_failure
from distributed.comm.settings import check_configuration
from distributed.core import coerce_to_address, rpc
from distributed.core.call_info import FEATURE
from distributed.security import Security

__all__ = ["Connection", "connected", "run_command"]

#: Seconds without any result of an attempt after which a notice says so.
_SILENCE = 2.0


class Connection:
    """A connected server.

    Parameters
    ----------
    remote
        The calls of the server.
    comm
        The first connection to it.
    deadline
        The time of the event loop at which the command gives up; None for no limit.
    """

    def __init__(self, remote: rpc, comm: Comm, deadline: float | None) -> None:
        self.remote = remote
        self.comm = comm
        self.deadline = deadline

    @property
    def address(self) -> str:
        """The server's address."""
        return self.remote.address

    @property
    def runs_this_package(self) -> bool:
        """Whether the server has agreed to the features of this package."""
        return FEATURE in self.comm.features

    def time_left(self) -> float | None:
        """Return the seconds until the deadline, or None."""
        if self.deadline is None:
            return None
        return max(self.deadline - asyncio.get_running_loop().time(), 0.001)

    def _is_late(self) -> bool:
        # The clocks of timers are not exact.
        now = asyncio.get_running_loop().time()
        return self.deadline is not None and now >= self.deadline - 0.01

    @contextlib.contextmanager
    def errors_of(self, what: str) -> Iterator[None]:
        """Raise the errors of a call in this block as `CommandError`.

        Parameters
        ----------
        what
            The operation, for the errors.
        """
        try:
            yield
        except (CommandError, OutputClosed):
            raise
        except Exception as exc:
            raise self._error(what, exc) from exc

    def _error(self, what: str, exc: Exception) -> CommandError:
        # A handler's error does not close the connection.
        lost = self.comm.closed()
        if isinstance(exc, TimeoutError) and self._is_late():
            return CommandError(f"{what} at {self.address}: no answer in time", TIMED_OUT)
        if isinstance(exc, OSError) and lost:
            return CommandError(
                f"{what} at {self.address}: the connection was lost: {_innermost(exc)}", UNREACHABLE
            )
        text = str(exc)
        if _is_unreadable(exc):
            return CommandError(
                f"{what} at {self.address}: the answer cannot be unpickled here: "
                f"{type(exc).__name__}: {text}; PYTHONPATH must contain its modules"
            )
        if "answers by a stream: call it by" in text:
            return CommandError(
                f"{what} at {self.address} answers by a stream: add --stream", USAGE
            )
        return CommandError(f"{what} at {self.address} failed: {type(exc).__name__}: {text}")


def _is_unreadable(exc: BaseException) -> bool:
    """Return whether the protocol of this process raised *exc*, and not the handler."""
    # The frames of a remote traceback do not have the globals of a module of this process.
    return any(
        name.startswith("distributed.protocol.")
        and frame.f_globals is vars(sys.modules.get(name, object))
        for frame, _ in walk_tb(exc.__traceback__)
        if (name := frame.f_globals.get("__name__", ""))
    )


def _innermost(exc: BaseException) -> str:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return one_line(exc) or type(exc).__name__


@contextlib.asynccontextmanager
async def connected(
    address: str, security: Security, timeout: float | None = None, **connection_args: Any
) -> AsyncIterator[Connection]:
    """Connect to a server, and disconnect at the end of the block.

    Parameters
    ----------
    address
        The server's address.
    security
        See :class:`distributed.cli.options.Access`.
    timeout
        Time for the whole command, in seconds; connecting alone takes at most
        ``distributed.comm.timeouts.connect``.
    connection_args
        More arguments of `connect`.

    Raises
    ------
    CommandError
        If there is no connection.
    """
    now = asyncio.get_running_loop().time
    deadline = None if timeout is None else now() + timeout
    try:
        limit = check_configuration().connect_timeout if timeout is None else timeout
        address = coerce_to_address(address)
        if address.startswith(("tls:", "wss:")) and not has_tls(security):
            raise CommandError(
                f"{address} needs TLS: give --tls-ca-file and --tls-cert, or configure "
                "'distributed.comm.tls'",
                USAGE,
            )
        with _notices(address, limit):
            comm = await connect(address, limit, security=security, **connection_args)
    except OSError as exc:
        raise CommandError(str(exc), UNREACHABLE) from exc
    except (ValueError, TypeError, RuntimeError) as exc:
        raise CommandError(f"cannot connect to {address}: {exc}", USAGE) from exc
    async with rpc(
        address, comm, connection_args=connection_args, security=security, timeout=limit
    ) as remote:
        yield Connection(remote, comm, deadline)


@contextlib.contextmanager
def _notices(address: str, limit: float) -> Iterator[None]:
    """Tell on standard error why there is no connection so far, as soon as that is known."""
    told: set[str] = set()

    def tell(reason: str, left: float) -> None:
        if reason not in told and left >= 0.5:
            told.add(reason)
            shown = f"{left:.0f}" if left >= 10 else f"{left:.2g}"
            click.echo(f"{address}: {reason} so far, retrying for another {shown} s", err=True)

    def watch(attempts: Attempts) -> None:
        assert attempts.failure is not None
        tell(_reason(attempts.failure), attempts.deadline - attempts.now())

    loop = asyncio.get_running_loop()
    silence = loop.call_later(
        _SILENCE, lambda: None if told else tell("no answer", limit - _SILENCE)
    )
    before = on_failure.set(watch)
    try:
        yield
    finally:
        silence.cancel()
        on_failure.reset(before)


def _reason(exc: BaseException) -> str:
    """Return why an attempt failed, as words that fit before "so far"."""
    root = exc
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, ConnectionRefusedError):
        return "refused"
    if isinstance(root, FileNotFoundError):
        return "not there"
    return f"no connection ({one_line(exc)})"


def run_command(command: Coroutine[Any, Any, int | None]) -> int:
    """Run the coroutine of a command, and return its exit code."""
    result = asyncio.run(command)
    return 0 if result is None else result

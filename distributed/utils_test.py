"""Helpers for tests of what is built on this package, under any test runner.

Tests of coroutines (`gen_test`), of what is logged (`captured_logger`), of who can reach a
listener (`assert_can_connect` and its kin), of processes (`popen`), and of what comes true in time
(`poll_for`, `async_poll_for`). Nothing here imports a test framework, and nothing in the package
imports this module.

There is no helper that finds a free port: listen on port 0 and read the address that you got.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

from distributed.base import config as dask_config
from distributed.base.host_addresses import get_ip, get_ipv6
from distributed.comm import connect
from distributed.security.settings import Security

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a test's leftovers get to end by themselves, and then to obey their cancellation.
_GRACE = 1.0


def gen_test(
    timeout: float = 30, config: Mapping[str, Any] | None = None
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, T]]:
    """Make a test function of a coroutine function, run on an event loop of its own.

    Parameters
    ----------
    timeout
        Seconds after which the test is cancelled and fails, saying where each task was waiting.
    config
        Configuration that holds for the duration of the test, as `distributed.config.set` takes it.

    Returns
    -------
    decorator
        What it returns is a plain function with the same parameters, so that fixtures and
        parametrization work, and `hypothesis.given` around it too.

    Raises
    ------
    TypeError
        When what is decorated is no coroutine function.
    TimeoutError
        From the test, when it takes longer than ``timeout``.
    AssertionError
        From the test, when it ended well but left tasks that do not end by themselves within a
        second. (They are cancelled in any case; after a failure they are named in a note on it.)

    Examples
    --------
    >>> @gen_test(timeout=5)
    ... async def test_echo():
    ...     await asyncio.sleep(0)
    ...     return "tests return nothing, but this one shows that it ran"
    >>> test_echo()
    'tests return nothing, but this one shows that it ran'
    """

    def decorate(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        if not inspect.iscoroutinefunction(test):
            raise TypeError(f"gen_test is for coroutine functions; {test!r} is none")

        @functools.wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with dask_config.set(dict(config or {})), asyncio.Runner() as runner:
                return runner.run(_watched(test(*args, **kwargs), test.__qualname__, timeout))

        return run

    return decorate


async def _watched(test: Coroutine[Any, Any, T], name: str, timeout: float) -> T:
    task = asyncio.create_task(test, name=name)
    try:
        await asyncio.wait([task], timeout=timeout)
        in_time = task.done()
        waiting = _whereabouts(_others())
    finally:
        task.cancel()
        left = await _end(_others())
    if not in_time:
        cause = task.exception() if task.done() and not task.cancelled() else None
        raise TimeoutError(
            f"{name} did not finish within {timeout} s; its tasks were waiting at\n{waiting}"
        ) from cause
    try:
        result = task.result()
    except BaseException as error:
        if left:
            error.add_note(f"Left behind were also tasks that did not end by themselves:\n{left}")
        raise
    if left:
        raise AssertionError(f"{name} left tasks behind that did not end by themselves:\n{left}")
    return result


def _others() -> set[asyncio.Task[Any]]:
    tasks = asyncio.all_tasks()
    tasks.remove(asyncio.current_task())  # type: ignore[arg-type]
    return tasks


async def _end(tasks: set[asyncio.Task[Any]]) -> str:
    """Let tasks end, cancel those that do not, and say where these were waiting."""
    if not tasks:
        return ""
    _, stuck = await asyncio.wait(tasks, timeout=_GRACE)
    left = _whereabouts(stuck)
    for task in stuck:
        task.cancel()
    if stuck:
        await asyncio.wait(stuck, timeout=_GRACE)
    return left


def _whereabouts(tasks: set[asyncio.Task[Any]]) -> str:
    return "\n".join(sorted(f"  {task.get_name()}:\n{_await_chain(task)}" for task in tasks))


def _await_chain(task: asyncio.Task[Any]) -> str:
    # Task.get_stack() knows only the outermost frame of a coroutine that is suspended.
    lines = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        kind = next((k for k in ("cr", "gi", "ag") if hasattr(awaited, f"{k}_frame")), None)
        if kind is None:  # a future: what waits for it has been named
            break
        frame = getattr(awaited, f"{kind}_frame")
        if frame is not None:
            code = frame.f_code
            lines.append(f"    {code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return "\n".join(lines)


@contextlib.contextmanager
def captured_logger(
    logger: logging.Logger | str, level: int = logging.INFO, propagate: bool | None = None
) -> Iterator[io.StringIO]:
    """Divert what a logger gets into a buffer.

    Parameters
    ----------
    logger
        The logger or its name. Its own handlers see nothing meanwhile.
    level
        What is below this level is not logged.
    propagate
        Whether loggers above get the records too; None leaves it as it is.

    Yields
    ------
    io.StringIO
        The messages, one a line, without time or level.

    Examples
    --------
    >>> with captured_logger("distributed.example", propagate=False) as log:
    ...     logging.getLogger("distributed.example").warning("disk is %d %% full", 97)
    >>> log.getvalue()
    'disk is 97 % full\\n'
    """
    if isinstance(logger, str):
        logger = logging.getLogger(logger)
    before = logger.level, logger.handlers[:], logger.propagate
    buffer = io.StringIO()
    logger.setLevel(level)
    logger.handlers[:] = [logging.StreamHandler(buffer)]
    if propagate is not None:
        logger.propagate = propagate
    try:
        yield buffer
    finally:
        logger.setLevel(before[0])
        logger.handlers[:] = before[1]
        logger.propagate = before[2]


def inc(x: Any) -> Any:
    """``x + 1``: a handler to call."""
    return x + 1


def throws(x: Any) -> NoReturn:
    """Raise ``RuntimeError("hello!")``, whatever is given: a handler that fails."""
    raise RuntimeError("hello!")


def tls_security(**kwargs: Any) -> Security:
    """A `Security` with which any role talks ``tls://`` to any other.

    Its certificate is its own authority, comes with this module, and is valid for ``localhost``.
    The private key comes with it: never use it for anything but tests.

    Parameters
    ----------
    **kwargs
        Further fields, or others.

    Examples
    --------
    >>> security = tls_security()
    >>> security.require_encryption, security.get_listen_args("scheduler")["ssl_context"] is None
    (True, False)
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "utils_test.pem")
    roles = ("client", "scheduler", "worker")
    return Security(
        **{
            "tls_ca_file": path,
            **{f"tls_{role}_{part}": path for role in roles for part in ("cert", "key")},
            **kwargs,
        }
    )


@functools.cache
def has_ipv6() -> bool:
    """Whether a socket can listen on ``::1`` here and be reached there, tried once per process."""
    if not socket.has_ipv6:
        return False
    try:
        with (
            socket.create_server(("::1", 0), family=socket.AF_INET6) as listening,
            socket.create_connection(listening.getsockname()[:2], timeout=1),
        ):
            return True
    except OSError:
        return False


async def assert_can_connect(addr: str, timeout: float = 0.5, **kwargs: Any) -> None:
    """Fail unless a listener at ``addr`` can be connected to within ``timeout`` seconds.

    Further keywords go to `distributed.comm.connect`, whose `OSError` is what is raised.
    """
    comm = await connect(addr, timeout=timeout, **kwargs)
    comm.abort()


async def assert_cannot_connect(
    addr: str,
    timeout: float = 0.5,
    exception_class: type[BaseException] | tuple[type[BaseException], ...] = OSError,
    **kwargs: Any,
) -> None:
    """Fail if ``addr`` can be connected to, or cannot for a reason other than ``exception_class``.

    Further keywords go to `distributed.comm.connect`.
    """
    try:
        comm = await connect(addr, timeout=timeout, **kwargs)
    except exception_class:
        return
    comm.abort()
    raise AssertionError(f"{addr} can be connected to, and should not be")


async def assert_can_connect_from_everywhere_4_6(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is reached at the loopback and outward addresses of IPv4 and IPv6."""
    reached = [*_addresses_4(protocol, port)]
    if has_ipv6():
        reached += _addresses_6(protocol, port)
    await _assert_reached(reached, [], kwargs)


async def assert_can_connect_from_everywhere_4(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is reached at loopback and outward IPv4 addresses and at no IPv6 one."""
    refused = _addresses_6(protocol, port) if has_ipv6() else []
    await _assert_reached(_addresses_4(protocol, port), refused, kwargs)


async def assert_can_connect_from_everywhere_6(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is reached at loopback and outward IPv6 addresses and at no IPv4 one."""
    if not has_ipv6():
        raise AssertionError("there is no IPv6 here to connect over")
    await _assert_reached(_addresses_6(protocol, port), _addresses_4(protocol, port), kwargs)


async def assert_can_connect_locally_4(port: int, protocol: str = "tcp", **kwargs: Any) -> None:
    """Fail unless ``port`` is reached at ``127.0.0.1`` and nowhere else."""
    loopback, *others = _addresses_4(protocol, port)
    if has_ipv6():
        others += _addresses_6(protocol, port)
    await _assert_reached([loopback], others, kwargs)


async def assert_can_connect_locally_6(port: int, protocol: str = "tcp", **kwargs: Any) -> None:
    """Fail unless ``port`` is reached at ``::1`` and nowhere else."""
    if not has_ipv6():
        raise AssertionError("there is no IPv6 here to connect over")
    loopback, *others = _addresses_6(protocol, port)
    others += _addresses_4(protocol, port)
    await _assert_reached([loopback], others, kwargs)


def _addresses_4(protocol: str, port: int) -> list[str]:
    return [f"{protocol}://{host}:{port}" for host in _hosts("127.0.0.1", get_ip)]


def _addresses_6(protocol: str, port: int) -> list[str]:
    return [f"{protocol}://[{host}]:{port}" for host in _hosts("::1", get_ipv6)]


def _hosts(loopback: str, outward: Callable[[], str]) -> list[str]:
    with warnings.catch_warnings():
        # a host without a route outwards has its loopback address only, and that is no mistake
        warnings.simplefilter("ignore", RuntimeWarning)
        return list(dict.fromkeys([loopback, outward()]))


async def _assert_reached(reached: list[str], refused: list[str], kwargs: dict[str, Any]) -> None:
    await asyncio.gather(
        *(assert_can_connect(addr, **kwargs) for addr in reached),
        *(assert_cannot_connect(addr, **kwargs) for addr in refused),
    )


@contextlib.contextmanager
def popen(
    args: list[str],
    capture_output: bool = False,
    terminate_timeout: float = 10,
    kill_timeout: float = 5,
    **kwargs: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the duration of a block, and end it whatever happens.

    Parameters
    ----------
    args
        The command. A name without a slash is looked for beside this interpreter first, then on
        ``PATH``; ``"python"`` is this interpreter itself.
    capture_output
        Whether the caller wants to read ``process.stdout``, into which standard error goes too.
        What was not read is printed when the block raises or the process failed by itself.
    terminate_timeout
        Seconds to end after SIGINT at the end of the block. After that the process is killed, and
        `subprocess.TimeoutExpired` raised.
    kill_timeout
        Seconds to be gone after SIGKILL.
    **kwargs
        For `subprocess.Popen`.

    Examples
    --------
    >>> with popen(["python", "-c", "print('up'); input()"], capture_output=True,
    ...            stdin=subprocess.PIPE) as process:
    ...     process.stdout.readline()
    b'up\\n'
    """
    with contextlib.ExitStack() as stack:
        kept = None if capture_output else stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            _command(args),
            stdout=subprocess.PIPE if kept is None else kept,
            stderr=subprocess.STDOUT,
            **kwargs,
        )
        stack.callback(_close_pipes, process)
        failed, unread = True, b""
        try:
            yield process
            failed = process.poll() not in (None, 0)
        finally:
            try:
                unread = _end_process(process, terminate_timeout, kill_timeout)
            except subprocess.TimeoutExpired:
                failed = True
                raise
            finally:
                if kept is not None:
                    kept.seek(0)
                    unread = kept.read()
                if failed:
                    text = unread.decode(errors="replace")
                    sys.stdout.write(f"--- {process.args!r} ({process.returncode}) wrote:\n{text}")


def _command(args: list[str]) -> list[str]:
    name, *rest = args
    if name == "python":
        name = sys.executable
    elif "/" not in name:
        beside = shutil.which(name, path=os.path.dirname(sys.executable))
        name = beside or name
    return [name, *rest]


def _end_process(
    process: subprocess.Popen[bytes], terminate_timeout: float, kill_timeout: float
) -> bytes:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    if process.stdin is not None and process.stdin.closed:
        # communicate() would flush it
        process.stdin = None
    try:
        # not wait(): a child that writes into a full pipe would never end
        return process.communicate(timeout=terminate_timeout)[0] or b""
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=kill_timeout)
        raise


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def poll_for(
    predicate: Callable[[], Any],
    timeout: float = 15,
    fail_func: Callable[[], Any] | None = None,
    period: float = 0.05,
) -> None:
    """Block until ``predicate()`` is true, asking every ``period`` seconds.

    Raises
    ------
    AssertionError
        After ``timeout`` seconds, unless ``fail_func``, which is called then, raises another error.
    """
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            _never_came_true(predicate, timeout, fail_func)
        time.sleep(period)


async def async_poll_for(
    predicate: Callable[[], Any | Awaitable[Any]],
    timeout: float = 15,
    fail_func: Callable[[], Any] | None = None,
    period: float = 0.05,
) -> None:
    """As `poll_for`, without blocking the loop; ``predicate`` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            _never_came_true(predicate, timeout, fail_func)
        await asyncio.sleep(period)


def _never_came_true(
    predicate: Callable[[], Any], timeout: float, fail_func: Callable[[], Any] | None
) -> NoReturn:
    if fail_func is not None:
        fail_func()
    raise AssertionError(f"{predicate!r} did not come true within {timeout} s")

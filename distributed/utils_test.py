"""Helpers for tests of code that is built on this package, for any test framework.

`gen_test` runs coroutines as tests, `captured_logger` captures log messages, `assert_can_connect`
and its variants check which addresses a listener accepts, `popen` runs a process, `poll_for` and
`async_poll_for` wait for a condition. This module does not import a test framework, and no other
module of the package imports it.

There is no helper that finds a free port: listen on port 0 and read the address of the listener.
"""

from __future__ import annotations

import asyncio
import atexit
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
from distributed.base import logs
from distributed.base.host_addresses import get_ip, get_ipv6
from distributed.comm import connect
from distributed.security.certificates import make_certificate
from distributed.security.settings import Security

P = ParamSpec("P")
T = TypeVar("T")

#: The environment variable that names the file of the certificate of `tls_security`.
_CERTIFICATE = "DISTRIBUTED_TEST_CERTIFICATE"

#: Seconds before remaining tasks of a test are cancelled, and again before they are abandoned.
_GRACE = 1.0


def gen_test(
    timeout: float = 30, config: Mapping[str, Any] | None = None
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, T]]:
    """Decorate a coroutine function as a test that runs on its own event loop.

    The result is a plain function with the same parameters, so that fixtures, parametrization and
    `hypothesis.given` work.

    Parameters
    ----------
    timeout
        Seconds before the test is cancelled. The error shows where each task was waiting.
    config
        Configuration for the duration of the test, as for `distributed.config.set`.

    Raises
    ------
    TypeError
        If the decorated function is not a coroutine function.
    TimeoutError
        From the test, if it takes longer than ``timeout``.
    AssertionError
        From the test, if it succeeds but leaves tasks that do not end within a second. They are
        cancelled; if the test fails, a note on its error lists them.

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
            raise TypeError(f"gen_test is for coroutine functions; {test!r} is not one")

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
        waiting = whereabouts(other_tasks())
    finally:
        task.cancel()
        left = await end_tasks(other_tasks())
    if not in_time:
        cause = task.exception() if task.done() and not task.cancelled() else None
        raise TimeoutError(
            f"{name} did not finish within {timeout} s; its tasks were waiting at\n{waiting}"
        ) from cause
    try:
        result = task.result()
    except BaseException as error:
        if left:
            error.add_note(f"The test also left tasks behind that did not end:\n{left}")
        raise
    if left:
        raise AssertionError(f"{name} left tasks behind that did not end:\n{left}")
    return result


def other_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the running event loop, without the current one."""
    tasks = asyncio.all_tasks()
    tasks.remove(asyncio.current_task())  # type: ignore[arg-type]
    return tasks


async def end_tasks(tasks: set[asyncio.Task[Any]]) -> str:
    """Wait for tasks to end, cancel the others, and return where these were waiting."""
    if not tasks:
        return ""
    _, stuck = await asyncio.wait(tasks, timeout=_GRACE)
    left = whereabouts(stuck)
    for task in stuck:
        task.cancel()
    if stuck:
        await asyncio.wait(stuck, timeout=_GRACE)
    return left


def whereabouts(tasks: set[asyncio.Task[Any]]) -> str:
    """Return the name of each task and the lines at which it waits, as text."""
    return "\n".join(sorted(f"  {task.get_name()}:\n{_await_chain(task)}" for task in tasks))


def _await_chain(task: asyncio.Task[Any]) -> str:
    # Task.get_stack() returns only the outermost frame of a suspended coroutine.
    lines = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        kind = next((k for k in ("cr", "gi", "ag") if hasattr(awaited, f"{k}_frame")), None)
        if kind is None:  # a future; the frame that awaits it is already in the list
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
    """Capture the messages of a logger.

    Repeated messages are counted from the start to the end of the block.

    Parameters
    ----------
    logger
        The logger or its name. Its handlers are replaced for the duration of the block.
    level
        The minimum level of captured messages.
    propagate
        Whether parent loggers also receive the messages; None keeps the logger's setting.

    Yields
    ------
    io.StringIO
        The messages, one per line, without time or level.

    Examples
    --------
    >>> with captured_logger("distributed.example", propagate=False) as log:
    ...     logging.getLogger("distributed.example").warning("disk is %d %% full", 97)
    >>> log.getvalue()
    'disk is 97 % full\\n'
    """
    if isinstance(logger, str):
        logger = logging.getLogger(logger)
    logs.flush()
    before = logger.level, logger.handlers[:], logger.propagate
    buffer = io.StringIO()
    logger.setLevel(level)
    logger.handlers[:] = [logging.StreamHandler(buffer)]
    if propagate is not None:
        logger.propagate = propagate
    try:
        yield buffer
        logs.flush()
    finally:
        logger.setLevel(before[0])
        logger.handlers[:] = before[1]
        logger.propagate = before[2]


def inc(x: Any) -> Any:
    """Return ``x + 1``: an example of a handler."""
    return x + 1


def throws(x: Any) -> NoReturn:
    """Raise ``RuntimeError("hello!")``: an example of a handler that fails."""
    raise RuntimeError("hello!")


def tls_security(**kwargs: Any) -> Security:
    """Return a `Security` for ``tls://`` connections between all roles.

    The first call of a process makes a self-signed certificate for ``localhost``, ``127.0.0.1`` and
    ``::1``. Later calls return the same one, also in processes that this process starts afterwards:
    they find its file by an environment variable. The file is removed when this process ends.

    Parameters
    ----------
    **kwargs
        Fields to add or replace.

    Raises
    ------
    ImportError
        If the package ``cryptography`` (extra ``security``) is not installed.

    Examples
    --------
    >>> security = tls_security()
    >>> security.require_encryption, security.get_listen_args("scheduler")["ssl_context"] is None
    (True, False)
    """
    path = _certificate_file()
    roles = ("client", "scheduler", "worker")
    return Security(
        **{
            "tls_ca_file": path,
            **{f"tls_{role}_{part}": path for role in roles for part in ("cert", "key")},
            **kwargs,
        }
    )


def _certificate_file() -> str:
    """Return the path of the certificate with its key; the first call of a process makes it."""
    inherited = os.environ.get(_CERTIFICATE)
    if inherited is not None and os.path.exists(inherited):
        return inherited
    cert, key = make_certificate("localhost", "127.0.0.1", "::1", purpose="`tls_security`")
    # Other users cannot read this directory. A forked child must not remove it.
    directory = tempfile.mkdtemp(prefix="distributed-test-")
    atexit.register(_remove_once, directory, os.getpid())
    path = os.environ[_CERTIFICATE] = os.path.join(directory, "certificate.pem")
    with open(path, "w", encoding="ascii") as file:
        file.write(cert + key)
    return path


def _remove_once(directory: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(directory)


@functools.cache
def has_ipv6() -> bool:
    """Return whether a socket can listen on ``::1`` and be reached; tried once per process."""
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
    """Fail unless a connection to ``addr`` can be established within ``timeout`` seconds.

    Other keywords are passed to `distributed.comm.connect`, whose `OSError` is raised.
    """
    comm = await connect(addr, timeout=timeout, **kwargs)
    comm.abort()


async def assert_cannot_connect(
    addr: str,
    timeout: float = 0.5,
    exception_class: type[BaseException] | tuple[type[BaseException], ...] = OSError,
    **kwargs: Any,
) -> None:
    """Fail unless connecting to ``addr`` raises ``exception_class``.

    Other keywords are passed to `distributed.comm.connect`.
    """
    try:
        comm = await connect(addr, timeout=timeout, **kwargs)
    except exception_class:
        return
    comm.abort()
    raise AssertionError(f"a connection to {addr} was established, but should fail")


async def assert_can_connect_from_everywhere_4_6(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is open at the loopback and outward addresses of IPv4 and IPv6."""
    await _assert_open(_addresses_4(protocol, port) + _addresses_6(protocol, port), [], kwargs)


async def assert_can_connect_from_everywhere_4(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is open at loopback and outward IPv4 addresses but not over IPv6."""
    await _assert_open(_addresses_4(protocol, port), _addresses_6(protocol, port), kwargs)


async def assert_can_connect_from_everywhere_6(
    port: int, protocol: str = "tcp", **kwargs: Any
) -> None:
    """Fail unless ``port`` is open at loopback and outward IPv6 addresses but not over IPv4."""
    _require_ipv6()
    await _assert_open(_addresses_6(protocol, port), _addresses_4(protocol, port), kwargs)


async def assert_can_connect_locally_4(port: int, protocol: str = "tcp", **kwargs: Any) -> None:
    """Fail unless ``port`` is open at ``127.0.0.1`` only."""
    loopback, *others = _addresses_4(protocol, port)
    await _assert_open([loopback], others + _addresses_6(protocol, port), kwargs)


async def assert_can_connect_locally_6(port: int, protocol: str = "tcp", **kwargs: Any) -> None:
    """Fail unless ``port`` is open at ``::1`` only."""
    _require_ipv6()
    loopback, *others = _addresses_6(protocol, port)
    await _assert_open([loopback], others + _addresses_4(protocol, port), kwargs)


def _require_ipv6() -> None:
    if not has_ipv6():
        raise AssertionError("this host does not support IPv6")


def _addresses_4(protocol: str, port: int) -> list[str]:
    return [f"{protocol}://{host}:{port}" for host in _hosts("127.0.0.1", get_ip)]


def _addresses_6(protocol: str, port: int) -> list[str]:
    if not has_ipv6():
        return []
    return [f"{protocol}://[{host}]:{port}" for host in _hosts("::1", get_ipv6)]


def _hosts(loopback: str, outward: Callable[[], str]) -> list[str]:
    with warnings.catch_warnings():
        # A host without a route to others only has its loopback address, which is not an error.
        warnings.simplefilter("ignore", RuntimeWarning)
        return list(dict.fromkeys([loopback, outward()]))


async def _assert_open(opened: list[str], closed: list[str], kwargs: dict[str, Any]) -> None:
    await asyncio.gather(
        *(assert_can_connect(addr, **kwargs) for addr in opened),
        *(assert_cannot_connect(addr, **kwargs) for addr in closed),
    )


@contextlib.contextmanager
def popen(
    args: list[str],
    capture_output: bool = False,
    terminate_timeout: float = 10,
    kill_timeout: float = 5,
    **kwargs: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the duration of a block, and always end it.

    Parameters
    ----------
    args
        The command. A name without a slash is searched in the directory of this interpreter, then
        on ``PATH``; ``"python"`` is this interpreter.
    capture_output
        Whether the caller reads ``process.stdout``, which includes standard error. Output that was
        not read is printed if the block raises or the process fails.
    terminate_timeout
        Seconds before the process is killed, after SIGINT at the end of the block. Then
        `subprocess.TimeoutExpired` is raised.
    kill_timeout
        Seconds to wait for the end of the process after SIGKILL.
    **kwargs
        Passed to `subprocess.Popen`.

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
        # communicate() would try to flush it.
        process.stdin = None
    try:
        # Not wait(), which would block if the child writes to a full pipe.
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
    """Block until ``predicate()`` is true, calling it every ``period`` seconds.

    Raises
    ------
    AssertionError
        After ``timeout`` seconds. If ``fail_func`` is given, it is called first, and can raise
        another error.
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
    """Wait as `poll_for`, without blocking the loop; ``predicate`` can be a coroutine function."""
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

"""Small pure functions that more than one floor needs.

Durations and sizes as people write them, questions about callables, views of buffers, and the one
thread in which work goes that would otherwise block the event loop.  It knows nothing of
configuration, messages or sockets.  A message meets
this module at its edges: its buffers are viewed and counted, and large ones are (de)serialized in
the offload thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import math
import numbers
import os
import re
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pickle import PickleBuffer
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

from tornado import gen

__all__ = [
    "OFFLOAD_THREAD_NAME",
    "ensure_memoryview",
    "has_keyword",
    "import_term",
    "iscoroutinefunction",
    "nbytes",
    "offload",
    "parse_bytes",
    "parse_timedelta",
    "shutdown_offload",
    "wait_for",
]

P = ParamSpec("P")
T = TypeVar("T")


# Durations and sizes

_SECONDS = {
    unit: seconds
    for units, seconds in [
        (("ns", "nanosecond", "nanoseconds"), 1e-9),
        (("us", "microsecond", "microseconds"), 1e-6),
        (("ms", "millisecond", "milliseconds"), 1e-3),
        (("s", "second", "seconds"), 1),
        (("m", "minute", "minutes"), 60),
        (("h", "hour", "hours"), 3600),
        (("d", "day", "days"), 86400),
        (("w", "week", "weeks"), 604800),
    ]
    for unit in units
}

_BYTES = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for prefix, base, suffixes in [(letter, 1000, ("", "b")), (letter + "i", 1024, ("", "b"))]
    for suffix in suffixes
}

_QUANTITY = re.compile(r"(?P<number>.*?)\s*(?P<unit>[^\W\d_]*)", re.DOTALL)


def _split_quantity(text: str, kind: str, example: str) -> tuple[float, str]:
    """Number and unit (either may be left out, not both) of *text*."""
    match = _QUANTITY.fullmatch(text.replace(" ", "").strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"Could not interpret {text!r} as a {kind}: expected e.g. {example}")
    number, unit = match.group("number", "unit")
    try:
        value = float(number) if number else 1.0
    except ValueError:
        raise ValueError(
            f"Could not interpret {text!r} as a {kind}: {number!r} is not a number; "
            f"expected e.g. {example}"
        ) from None
    return value, unit


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@overload
def parse_timedelta(s: None, default: str | Literal[False] = "seconds") -> None: ...
@overload
def parse_timedelta(
    s: float | str | timedelta, default: str | Literal[False] = "seconds"
) -> float: ...
@overload
def parse_timedelta(
    s: float | str | timedelta | None, default: str | Literal[False] = "seconds"
) -> float | None: ...
def parse_timedelta(
    s: float | str | timedelta | None, default: str | Literal[False] = "seconds"
) -> float | None:
    """Seconds of a duration as people write it.

    Parameters
    ----------
    s : float, str, timedelta or None
        A number with an optional unit: ns, us, ms, s, m, h, d, w or their long names, in any case.
        A unit alone means one of it.  None stays None.
    default : str or False
        The unit of a number that has none; False if there must be one.

    Returns
    -------
    float
        Seconds, as an `int` if it is a whole number.

    Raises
    ------
    ValueError
        If it is no duration, is negative or not finite.
    TypeError
        If *s* is of another type, or *default* is neither a string nor False.

    Examples
    --------
    >>> parse_timedelta("500ms")
    0.5
    >>> parse_timedelta("2 minutes")
    120
    >>> parse_timedelta(1.5)
    1.5
    >>> parse_timedelta("10", default="ms")
    0.01
    """
    if s is None:
        return None
    example = "'500ms', '30s', '2 minutes' or 1.5"
    if isinstance(s, timedelta):
        value, unit = s.total_seconds(), "s"
    elif isinstance(s, str):
        value, unit = _split_quantity(s, "duration", example)
    elif _is_number(s):
        value, unit = float(s), ""
    else:
        raise TypeError(
            f"Could not interpret {s!r} of type {type(s).__name__} as a duration: "
            f"expected e.g. {example}"
        )
    if not unit:
        if default is False:
            raise ValueError(f"Missing time unit: {s!r}; expected e.g. '500ms' or '2 minutes'")
        if not isinstance(default, str):
            raise TypeError(f"default must be str or False, got {default!r}")
        unit = default
    try:
        seconds = value * _SECONDS[unit.lower()]
    except KeyError:
        raise ValueError(
            f"Invalid time unit {unit!r} in {s!r}: valid units are {', '.join(_SECONDS)}"
        ) from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"A duration must be finite and not negative, got {s!r}")
    return int(seconds) if seconds == int(seconds) else seconds


def parse_bytes(s: float | str) -> int:
    """Number of bytes of a size as people write it.

    Parameters
    ----------
    s : float or str
        A number with an optional unit: B, kB, MB, GB, TB, PB (powers of 1000), KiB, MiB, GiB, TiB,
        PiB (powers of 1024), in any case, the final B may be left out.  A unit alone means one
        of it.  Fractions of a byte are cut off.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        If it is no size or not finite.
    TypeError
        If *s* is neither a number nor a string.

    Examples
    --------
    >>> parse_bytes("64MiB")
    67108864
    >>> parse_bytes("10 kB")
    10000
    >>> parse_bytes(4096)
    4096
    """
    example = "'64MiB', '10 kB' or 4096"
    if isinstance(s, str):
        value, unit = _split_quantity(s, "number of bytes", example)
    elif isinstance(s, int) and not isinstance(s, bool):
        return s
    elif _is_number(s):
        value, unit = float(s), ""
    else:
        raise TypeError(
            f"Could not interpret {s!r} of type {type(s).__name__} as a number of bytes: "
            f"expected e.g. {example}"
        )
    try:
        size = value * _BYTES[unit.lower()]
    except KeyError:
        raise ValueError(
            f"Could not interpret {unit!r} in {s!r} as a byte unit: "
            "valid units are B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"
        ) from None
    if not math.isfinite(size):
        raise ValueError(f"A number of bytes must be finite, got {s!r}")
    return int(size)


# Callables


def has_keyword(func: Callable[..., Any], keyword: str) -> bool:
    """Whether *func* has a parameter named *keyword* that can be passed by that name.

    ``**kwargs`` does not count: it takes every name and asks for none.  False where Python cannot
    tell (builtins without a signature).

    Examples
    --------
    >>> def handler(comm, x=1, **kwargs): ...
    >>> has_keyword(handler, "comm"), has_keyword(handler, "y")
    (True, False)
    """
    try:
        parameter = inspect.signature(func).parameters.get(keyword)
    except (ValueError, TypeError):
        return False
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def iscoroutinefunction(f: Callable[..., Any]) -> bool:
    """Whether calling *f* makes a coroutine (``async def``, or one of Tornado's decorated ones).

    Looks through `functools.partial`.
    """
    while isinstance(f, functools.partial):
        f = f.func
    return inspect.iscoroutinefunction(f) or gen.is_coroutine_function(f)


def import_term(name: str) -> Any:
    """Import the object of a fully qualified *name*: ``"package.module.attribute"`` or a module.

    Raises
    ------
    ImportError
        If the module does not exist.
    AttributeError
        If it does not have that attribute.

    Examples
    --------
    >>> import_term("math.sqrt")(9)
    3.0
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        return importlib.import_module(attribute)
    return getattr(importlib.import_module(module_name), attribute)


# Buffers


def ensure_memoryview(obj: Any) -> memoryview:
    """One-dimensional contiguous view of unsigned bytes of any object with the buffer protocol.

    The memory is copied only where it is not contiguous.  Fortran-contiguous memory is viewed in
    the order in which it lies.

    Raises
    ------
    TypeError
        If *obj* has no buffer.

    Examples
    --------
    >>> import array
    >>> ensure_memoryview(array.array("H", [1, 2])).nbytes
    4
    """
    view = obj if type(obj) is memoryview else memoryview(obj)
    if not view.nbytes:
        # Views with a zero in their shape cannot be cast.
        return memoryview(b"")
    if not view.contiguous:
        return memoryview(bytearray(view))
    if view.ndim == 1 and view.format == "B":
        return view
    return PickleBuffer(view).raw()


def nbytes(frame: Any) -> int:
    """Number of bytes of a frame: bytes-like, or anything with ``nbytes`` (device arrays)."""
    if isinstance(frame, (bytes, bytearray)):
        return len(frame)
    try:
        return int(frame.nbytes)
    except AttributeError:
        return memoryview(frame).nbytes


# Waiting


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:
    """Result of *awaitable*, which is cancelled after *timeout* seconds (None: never).

    Unlike :func:`asyncio.wait_for` before Python 3.12, a cancellation of the caller is never lost
    to a result that arrives at the same time, and no extra task is made.

    Raises
    ------
    TimeoutError
        If the time is over.
    """
    async with asyncio.timeout(timeout):
        return await awaitable


OFFLOAD_THREAD_NAME = "Dask-Offload"

# The state of this module: the executor of the process, made by the first `offload` and replaced
# by None on shutdown and in a forked child (where its thread does not run).  Guarded by the lock.
_offload_executor: ThreadPoolExecutor | None = None
_offload_lock = threading.Lock()


def _get_offload_executor() -> ThreadPoolExecutor:
    global _offload_executor
    with _offload_lock:
        if _offload_executor is None:
            _offload_executor = ThreadPoolExecutor(
                max_workers=1, thread_name_prefix=OFFLOAD_THREAD_NAME
            )
        return _offload_executor


async def offload(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of ``func(*args, **kwargs)``, run in this process' one offload thread.

    It sees the caller's context variables.  There is one thread so that offloaded work neither
    reorders nor competes for the GIL with itself.  A caller that is cancelled stops waiting; a
    function that already runs is not interrupted.
    """
    call = functools.partial(contextvars.copy_context().run, func, *args, **kwargs)
    return cast(T, await asyncio.get_running_loop().run_in_executor(_get_offload_executor(), call))


def shutdown_offload() -> None:
    """End the offload thread after the work that it has; the next `offload` starts a new one."""
    global _offload_executor
    with _offload_lock:
        executor, _offload_executor = _offload_executor, None
    if executor is not None:
        executor.shutdown(wait=True)


def _forget_offload_after_fork() -> None:
    global _offload_executor, _offload_lock
    _offload_lock = threading.Lock()
    _offload_executor = None


os.register_at_fork(after_in_child=_forget_offload_after_fork)

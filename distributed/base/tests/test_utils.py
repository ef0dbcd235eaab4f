"""Durations, sizes, callables, buffers, the offload thread, and the addresses of this host."""

from __future__ import annotations

import array
import asyncio
import contextvars
import functools
import json
import math
import os
import pickle
import socket
import sys
import threading
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tornado import gen

from distributed.base import host_addresses as network
from distributed.base.buffers import ensure_memoryview, nbytes
from distributed.base.callables import has_keyword, import_term, iscoroutinefunction
from distributed.base.event_loop import OFFLOAD_THREAD_NAME, offload, shutdown_offload, wait_for
from distributed.base.host_addresses import ensure_ip, get_ip, get_ip_interface, get_ipv6
from distributed.base.quantities import parse_bytes, parse_timedelta
from distributed.tests.environments import ROOT, run_in

# Durations

DURATIONS: list[tuple[Any, float]] = [
    (0, 0),
    (5, 5),
    (1.5, 1.5),
    ("500ms", 0.5),
    ("2 minutes", 120),
    ("2 minute", 120),
    ("1.5", 1.5),
    (" 3 h ", 10800),
    ("1e3", 1000),
    ("1e3 s", 1000),
    ("1e-3s", 0.001),
    ("5e3ms", 5),
    ("1E3 S", 1000),
    ("5", 5),
    ("0s", 0),
    ("s", 1),
    ("ms", 0.001),
    ("minutes", 60),
    ("5 m", 300),
    ("5 M", 300),
    ("5us", 5 * 1e-6),
    ("5ns", 5 * 1e-9),
    ("5 milliseconds", 0.005),
    ("5 microsecond", 5 * 1e-6),
    ("5 nanoseconds", 5 * 1e-9),
    ("1d", 86400),
    ("2 days", 172800),
    ("1 week", 604800),
    ("3 w", 1814400),
    ("5 Hours", 18000),
    ("1_000 s", 1000),
    ("1 000 s", 1000),
    ("5.s", 5),
    ("5\ts", 5),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_duration_is_read_as_seconds(text, seconds):
    assert parse_timedelta(text) == seconds


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_whole_seconds_are_an_int(text, seconds):
    assert isinstance(parse_timedelta(text), int) is float(seconds).is_integer()


def test_no_duration_stays_none():
    assert parse_timedelta(None) is None


def test_a_timedelta_is_a_duration():
    assert parse_timedelta(timedelta(minutes=2, milliseconds=500)) == 120.5


def test_any_real_number_is_a_duration():
    number: Any = Fraction(3, 2)
    assert parse_timedelta(number) == 1.5


def test_a_fraction_may_begin_with_its_point():
    assert parse_timedelta(".5s") == 0.5


@pytest.mark.parametrize(
    ("text", "default", "seconds"),
    [(5, "ms", 0.005), ("5", "minutes", 300), (0.5, "minutes", 30), ("5s", "ms", 5)],
)
def test_a_number_without_unit_has_the_default_unit(text, default, seconds):
    assert parse_timedelta(text, default=default) == seconds


@pytest.mark.parametrize("text", [5, "5", 0.5])
def test_a_unit_can_be_asked_for(text):
    with pytest.raises(ValueError, match=r"Missing time unit: '?(5|0\.5)"):
        parse_timedelta(text, default=False)


def test_a_default_unit_must_be_text():
    with pytest.raises(TypeError, match="default must be str or False, got None"):
        parse_timedelta(5, default=None)


@pytest.mark.parametrize("text", ["5 foo", "abc", "1 year", "5min", "5 µs", "inf", "nan", "1e"])
def test_a_wrong_unit_of_time_is_named_with_the_right_ones(text):
    with pytest.raises(ValueError, match=r"Invalid time unit '\w+' in .*valid units are .*ms"):
        parse_timedelta(text)


@pytest.mark.parametrize("text", ["1,5s", "1-5", "- - 5s", "1.2.3", "5s5"])
def test_a_wrong_number_in_a_duration_is_named(text):
    with pytest.raises(ValueError, match=r"as a duration: .* is not a number; expected e\.g\."):
        parse_timedelta(text)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text_is_no_duration(text):
    with pytest.raises(ValueError, match="Could not interpret"):
        parse_timedelta(text)


@pytest.mark.parametrize(
    "value", [-5, "-5s", "- 5 s", math.inf, math.nan, "1e309", timedelta(seconds=-1)]
)
def test_a_duration_is_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="A duration must be finite and not negative, got"):
        parse_timedelta(value)


@pytest.mark.parametrize("value", [True, b"5s", [], {}])
def test_other_types_are_no_duration(value):
    with pytest.raises(TypeError, match=r"as a duration: expected e\.g\. '500ms'"):
        parse_timedelta(value)


# Sizes

SIZES: list[tuple[Any, int]] = [
    (0, 0),
    (5, 5),
    (1.5, 1),
    (5.9, 5),
    ("64MiB", 67108864),
    ("64 mib", 67108864),
    ("10 kB", 10000),
    ("5", 5),
    ("B", 1),
    ("kB", 1000),
    ("MB", 10**6),
    ("-5kB", -5000),
    ("-1", -1),
    ("+5kB", 5000),
    ("1e6", 10**6),
    ("1e6 kB", 10**9),
    ("1e3 MiB", 1048576000),
    (".5GB", 500000000),
    ("1.7 B", 1),
    ("123B", 123),
    ("10 k", 10000),
    ("10 Ki", 10240),
    ("10 KiB", 10240),
    ("10M", 10**7),
    ("10G", 10**10),
    ("10T", 10**13),
    ("10P", 10**16),
    ("10PiB", 10 * 2**50),
    (" 5 kB ", 5000),
    ("5\tkB", 5000),
    ("1_000", 1000),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_read_as_bytes(text, size):
    assert parse_bytes(text) == size
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize("text", ["5 foo", "1 bytes", "10E", "inf", "nan", "1e", "0s"])
def test_a_wrong_unit_of_size_is_named_with_the_right_ones(text):
    with pytest.raises(ValueError, match=r"as a byte unit: valid units are .*MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["1,000", "1e3e3", "1-5"])
def test_a_wrong_number_in_a_size_is_named(text):
    with pytest.raises(ValueError, match=r"as a number of bytes: .* is not a number"):
        parse_bytes(text)


def test_empty_text_is_no_size():
    with pytest.raises(ValueError, match="Could not interpret ''"):
        parse_bytes("")


@pytest.mark.parametrize("value", [math.inf, math.nan, "1e309"])
def test_a_size_is_finite(value):
    with pytest.raises(ValueError, match="must be finite"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [None, True, b"5", []])
def test_other_types_are_no_size(value):
    with pytest.raises(TypeError, match=r"as a number of bytes: expected e\.g\. '64MiB'"):
        parse_bytes(value)


def test_the_original_reads_the_same_durations_and_sizes(original_python):
    durations = [text for text, _ in DURATIONS]
    sizes = [text for text, _ in SIZES]
    code = f"""
        import json
        from dask.utils import parse_bytes, parse_timedelta
        print(json.dumps([[parse_timedelta(t) for t in {durations}],
                          [parse_bytes(t) for t in {sizes}]]))
    """
    theirs = json.loads(run_in(original_python, code).stdout)
    assert theirs == [[parse_timedelta(t) for t in durations], [parse_bytes(t) for t in sizes]]


# Callables


def positional_only(a, /, b): ...
def with_kwargs(a, *args, b=1, **kw): ...


@pytest.mark.parametrize(
    ("func", "keyword", "expected"),
    [
        (with_kwargs, "a", True),
        (with_kwargs, "b", True),
        (with_kwargs, "x", False),
        (with_kwargs, "kw", False),
        (with_kwargs, "args", False),
        (positional_only, "a", False),
        (positional_only, "b", True),
        (functools.partial(with_kwargs, b=2), "b", True),
        (functools.partial(with_kwargs, 1), "a", False),
        (dict, "a", False),
    ],
)
def test_has_keyword_says_what_can_be_passed_by_name(func, keyword, expected):
    assert has_keyword(func, keyword) is expected


async def native(): ...
@gen.coroutine
def decorated():
    yield


class Methods:
    async def method(self): ...
    @classmethod
    async def class_method(cls): ...
    @staticmethod
    async def static_method(): ...


@pytest.mark.parametrize(
    "func",
    [
        native,
        decorated,
        functools.partial(functools.partial(native)),
        functools.partial(decorated),
        Methods().method,
        Methods.class_method,
        Methods.static_method,
        asyncio.sleep,
    ],
)
def test_coroutine_functions_are_recognized(func):
    assert iscoroutinefunction(func)


@pytest.mark.parametrize("func", [len, lambda: None, Methods, functools.partial(print)])
def test_other_callables_are_no_coroutine_functions(func):
    assert not iscoroutinefunction(func)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("math", math),
        ("math.sqrt", math.sqrt),
        ("os.path", os.path),
        ("os.path.join", os.path.join),
    ],
)
def test_a_term_is_imported_by_its_full_name(name, term):
    assert import_term(name) is term


def test_a_term_of_no_module_is_an_import_error():
    with pytest.raises(ImportError, match="no_such_module"):
        import_term("no_such_module.term")


def test_a_term_that_the_module_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_term"):
        import_term("math.no_such_term")


# Buffers


@pytest.mark.parametrize(
    "buffer",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        array.array("I", [1, 2]),
        memoryview(bytes(12)).cast("B", (3, 4)),
        pickle.PickleBuffer(b"abcd"),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_contiguous_memory_is_viewed_as_plain_bytes(buffer):
    view = ensure_memoryview(buffer)
    assert (view.format, view.ndim, view.contiguous) == ("B", 1, True)
    assert bytes(view) == bytes(memoryview(buffer))


def test_contiguous_memory_is_not_copied():
    numbers = array.array("H", [1, 2])
    view = ensure_memoryview(numbers)
    numbers[0] = 7
    assert array.array("H", bytes(view))[0] == 7


def test_a_plain_view_is_returned_as_it_is():
    view = memoryview(b"abc")
    assert ensure_memoryview(view) is view


def test_a_view_stays_writable():
    buffer = bytearray(b"abc")
    ensure_memoryview(buffer)[0] = ord("z")
    assert buffer == b"zbc"


def test_scattered_memory_is_gathered():
    assert bytes(ensure_memoryview(memoryview(b"abcdef")[::2])) == b"ace"


def test_memory_with_a_zero_in_its_shape_is_empty():
    assert ensure_memoryview(memoryview(array.array("I"))).nbytes == 0


def test_text_is_no_buffer():
    with pytest.raises(TypeError, match="bytes-like object is required"):
        ensure_memoryview("abc")


class OnADevice:
    nbytes = 12


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (b"abc", 3),
        (bytearray(3), 3),
        (memoryview(array.array("I", [1, 2])), 8),
        (array.array("I", [1, 2]), 8),
        (OnADevice(), 12),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nbytes_counts_bytes_not_items(frame, size):
    assert nbytes(frame) == size


# Waiting


def test_wait_for_gives_the_result():
    async def main():
        return await wait_for(asyncio.sleep(0, "result"), 10)

    assert asyncio.run(main()) == "result"


def test_wait_for_cancels_what_takes_too_long():
    async def main():
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await wait_for(never, 0.01)
        return never.cancelled()

    assert asyncio.run(main())


def test_wait_for_without_timeout_waits():
    async def main():
        return await wait_for(asyncio.sleep(0.01, "result"), None)

    assert asyncio.run(main()) == "result"


def test_wait_for_does_not_lose_a_cancellation_to_a_result():
    async def main():
        result = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(wait_for(result, 10))
        await asyncio.sleep(0)
        result.set_result("in time")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_timeout_error_is_the_builtin_one():
    from distributed.utils import TimeoutError as faithful

    assert faithful is TimeoutError


# The offload thread


def test_offloaded_work_runs_in_the_one_offload_thread():
    async def main():
        return {await offload(threading.current_thread) for _ in range(3)}

    (thread,) = asyncio.run(main())
    assert thread.name.startswith(OFFLOAD_THREAD_NAME)


def test_offload_passes_arguments_and_results():
    assert asyncio.run(offload(sorted, [2, 1], reverse=True)) == [2, 1]


def test_offload_raises_what_the_function_raises():
    async def main():
        with pytest.raises(ZeroDivisionError):
            await offload(lambda: 1 / 0)

    asyncio.run(main())


def test_offloaded_work_sees_the_callers_context():
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        variable.set("set by the caller")
        return await offload(variable.get)

    assert asyncio.run(main()) == "set by the caller"


def test_the_event_loop_runs_while_work_is_offloaded():
    async def main():
        release = threading.Event()
        work = asyncio.create_task(offload(release.wait, 10))
        await asyncio.sleep(0)
        release.set()
        return await work

    assert asyncio.run(main())


def test_the_offload_thread_can_be_ended_and_begins_anew():
    async def main():
        before = await offload(threading.current_thread)
        shutdown_offload()
        assert not before.is_alive()
        return before is not await offload(threading.current_thread)

    assert asyncio.run(main())


def test_ending_an_offload_thread_that_was_never_started_does_nothing():
    shutdown_offload()
    shutdown_offload()


def test_a_forked_child_has_an_offload_thread_of_its_own():
    code = """
        import asyncio, os
        from distributed.utils import offload
        asyncio.run(offload(int))
        child = os.fork()
        if not child:
            os._exit(asyncio.run(offload(lambda: 7)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_in(Path(sys.executable), code, env={"PYTHONPATH": str(ROOT)}, timeout=20)
    assert done.stdout == "7\n"


# The addresses of this host


@pytest.fixture
def forget_addresses():
    network._outgoing_ip.cache_clear()
    yield
    network._outgoing_ip.cache_clear()


def test_get_ip_is_the_address_from_which_a_host_is_reached():
    assert get_ip("127.0.0.1") == "127.0.0.1"


@pytest.mark.usefixtures("forget_addresses")
def test_get_ip_falls_back_with_a_warning():
    with pytest.warns(RuntimeWarning, match=r"reaching '203\.0\.113\.999'.* using '[\d.]+'"):
        address = get_ip("203.0.113.999")
    socket.inet_pton(socket.AF_INET, address)


@pytest.mark.skipif(not socket.has_ipv6, reason="Python is built without IPv6")
def test_get_ipv6_is_the_address_from_which_a_host_is_reached():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    assert get_ipv6("::1") == "::1"


def loopback():
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def test_get_ip_interface_is_the_address_of_the_interface():
    assert get_ip_interface(loopback()) == "127.0.0.1"


def test_an_unknown_interface_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=rf"'nope0' is not a valid .* are: \[.*'{loopback()}'"):
        get_ip_interface("nope0")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_an_interface_without_address_is_an_error():
    for _, name in socket.if_nameindex():
        if network._interface_ip_from_kernel(name) is None:
            break
    else:
        pytest.skip("each interface of this host has an address")
    with pytest.raises(ValueError, match=f"'{name}' doesn't have an IPv4 address"):
        get_ip_interface(name)


def test_psutil_finds_the_same_address_of_an_interface(original_python):
    # The original brings psutil along; this module of ours needs nothing else.
    code = f"""
        import runpy
        module = runpy.run_path({network.__file__!r})
        print(module["_interface_ip_from_psutil"]({loopback()!r}))
    """
    assert run_in(original_python, code).stdout == "127.0.0.1\n"


def test_where_psutil_is_needed_and_missing_the_error_names_the_extra(bare_python):
    code = f"""
        from distributed.base.host_addresses import _interface_ip_from_psutil
        _interface_ip_from_psutil({loopback()!r})
    """
    done = run_in(bare_python, code, check=False)
    assert "RuntimeError: Finding the address of interface" in done.stderr
    assert "distributed-core[statistics]" in done.stderr


@pytest.mark.parametrize("address", ["1.2.3.4", "::1", "fe80::1"])
def test_an_ip_address_is_kept(address):
    assert ensure_ip(address) == address


@pytest.mark.parametrize("name", ["localhost", ""])
def test_a_host_name_is_resolved(name):
    assert ensure_ip(name) in ("127.0.0.1", "::1")


def test_a_name_that_does_not_resolve_is_named():
    with pytest.raises(OSError, match=r"Could not resolve host name 'nohost\.invalid'"):
        ensure_ip("nohost.invalid")

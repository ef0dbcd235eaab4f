from __future__ import annotations

import socket
from typing import Any

import pytest
from tornado.netutil import bind_unix_socket
from tornado.tcpserver import TCPServer

from distributed.base import config
from distributed.base.host_addresses import get_ip, get_ipv6
from distributed.comm import addressing
from distributed.comm.addressing import (
    address_from_user_args,
    addresses_from_user_args,
    ensure_concrete_host,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    get_tcp_server_address,
    get_tcp_server_addresses,
    normalize_address,
    parse_address,
    parse_host_port,
    resolve_address,
    unparse_address,
    unparse_host_port,
    uri_from_host_port,
)
from distributed.comm.inproc import new_address
from distributed.tests import ids
from distributed.utils_test import gen_test, has_ipv6

NO_ADDRESS = [None, 3, 3.5, b"tcp://h:1", ["h", 1]]


class Security:
    def __init__(self, require_encryption: bool | None):
        self.require_encryption = require_encryption


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        ("tcp://127.0.0.1:80", ("tcp", "127.0.0.1:80")),
        ("tls://[::1]:5", ("tls", "[::1]:5")),
        ("inproc://1.2.3.4/5/1", ("inproc", "1.2.3.4/5/1")),
        ("unix:///run/x.sock", ("unix", "/run/x.sock")),
        ("TCP://h:1", ("TCP", "h:1")),
        ("tcp://", ("tcp", "")),
        ("://x", ("", "x")),
        ("a://b://c", ("a://b", "c")),
    ],
)
def test_parse_address_with_a_scheme(addr: str, expected: tuple[str, str]) -> None:
    assert parse_address(addr) == expected
    assert parse_address(addr, strict=True) == expected
    assert unparse_address(*expected) == addr
    assert normalize_address(addr) == addr


@pytest.mark.parametrize("addr", ["127.0.0.1:80", "127.0.0.1", "[::1]:80", ":80", "", "tcp:x"])
def test_parse_address_uses_the_default_for_a_missing_scheme(addr: str) -> None:
    assert parse_address(addr) == ("tcp", addr)
    assert normalize_address(addr) == f"tcp://{addr}"


def test_the_default_scheme_is_configured() -> None:
    with config.set({"distributed.comm.default-scheme": "inproc"}):
        assert parse_address("h:1") == ("inproc", "h:1")
        assert normalize_address("h:1") == "inproc://h:1"
        assert address_from_user_args() == ""
    assert parse_address("h:1") == ("tcp", "h:1")


@pytest.mark.parametrize("addr", ["127.0.0.1:80", "[::1]:80", ""])
def test_a_missing_scheme_is_an_error_if_strict(addr: str) -> None:
    with pytest.raises(ValueError, match=r"Invalid url scheme\. Must include protocol"):
        parse_address(addr, strict=True)
    with pytest.raises(ValueError, match=r"Invalid url scheme\. Must include protocol"):
        get_address_host_port(addr, strict=True)


@pytest.mark.parametrize(
    "function",
    [
        parse_address,
        parse_host_port,
        normalize_address,
        get_address_host,
        get_address_host_port,
        resolve_address,
        get_local_address_for,
    ],
)
@pytest.mark.parametrize("addr", NO_ADDRESS, ids=repr)
def test_an_address_of_another_type_is_a_type_error(function: Any, addr: Any) -> None:
    with pytest.raises(TypeError, match=f"expected .*, got '{type(addr).__name__}'"):
        function(addr)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("tcp://127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        (":8786", ("", 8786)),
        ("tcp://:8786", ("", 8786)),
        ("[::1]:80", ("::1", 80)),
        ("tls://[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("[1.2.3.4]:80", ("1.2.3.4", 80)),
        (("localhost", 80), ("localhost", 80)),
        (("::1", 80), ("::1", 80)),
        # The original returns these unchanged:
        (("::1", 80, 0, 0), ("::1", 80)),
        (("localhost", "80"), ("localhost", 80)),
    ],
)
@pytest.mark.parametrize("default_port", [None, 123, "123"])
def test_parse_host_port(address: Any, expected: tuple[str, int], default_port: Any) -> None:
    assert parse_host_port(address, default_port) == expected


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("tcp://h", "h"),
        ("[::1]", "::1"),
        ("", ""),
        ("tcp://", ""),
        (("h", None), "h"),
    ],
)
@pytest.mark.parametrize("default_port", [123, "123", 0])
def test_parse_host_port_without_a_port(address: Any, host: str, default_port: Any) -> None:
    assert parse_host_port(address, default_port) == (host, int(default_port))
    with pytest.raises(ValueError, match="missing port number in address"):
        parse_host_port(address)


@pytest.mark.parametrize(
    "address",
    ["::1", "fe80::1%lo", "a:b:80", "h:1:2", "::1:80", "[::1", "[::1]x", "::1]:80", "[]:80"],
)
@pytest.mark.parametrize("default_port", [None, 123])
def test_parse_host_port_hints_at_brackets(address: str, default_port: int | None) -> None:
    with pytest.raises(ValueError, match=r"invalid address .*ipv6 needs brackets"):
        parse_host_port(address, default_port)


@pytest.mark.parametrize(
    "address",
    # The original accepts those in the second list.
    ["h:x", "tcp://h:x", "h:80/path", "h:1/"]
    + [
        "h:99999",
        "h:-1",
        "h:+1",
        "h:1_0",
        "h: 1",
        "h:1 ",
        "h:\u0661",
        ("h", 1.5),
        ("h",),
        (1, "h"),
    ],
)
@pytest.mark.parametrize("default_port", [None, 123])
def test_parse_host_port_refuses_invalid_ports(address: Any, default_port: int | None) -> None:
    with pytest.raises(ValueError, match="invalid") as info:
        parse_host_port(address, default_port)
    assert str(address).rpartition("://")[2] in str(info.value)


@pytest.mark.parametrize("address", ["h:", "[::1]:"])
@pytest.mark.parametrize("default_port", [None, 123])
def test_parse_host_port_requires_a_port_after_a_colon(address: str, default_port: Any) -> None:
    with pytest.raises(ValueError, match="missing port number in address"):
        parse_host_port(address, default_port)


def test_parse_host_port_refuses_an_invalid_default_port() -> None:
    with pytest.raises(ValueError, match="invalid port 'x'"):
        parse_host_port("h", "x")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("h",), "h"),
        (("h", 1), "h:1"),
        (("h", 0), "h:0"),
        (("h", None), "h"),
        (("h", "5"), "h:5"),
        (("::1",), "[::1]"),
        (("::1", 5), "[::1]:5"),
        (("[::1]", 5), "[::1]:5"),
        (("fe80::1%eth0", 5), "[fe80::1%eth0]:5"),
        (("", 5), ":5"),
        (("*", 5), "*:5"),
    ],
)
def test_unparse_host_port(args: tuple[Any, ...], expected: str) -> None:
    assert unparse_host_port(*args) == expected


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        ("tcp://127.0.0.1:80", ("127.0.0.1", 80)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("tcp://[::1]:80", ("::1", 80)),
        (":80", ("", 80)),
    ],
)
def test_host_and_port_of_an_address(addr: str, expected: tuple[str, int]) -> None:
    assert get_address_host(addr) == expected[0]
    assert get_address_host_port(addr) == expected


def test_host_of_an_address_without_port() -> None:
    assert get_address_host(new_address()) == get_ip()
    with pytest.raises(
        ValueError, match="don't know how to extract host and port for address 'inp"
    ):
        get_address_host_port(new_address())


@pytest.mark.parametrize(
    "function", [get_address_host, get_address_host_port, resolve_address, get_local_address_for]
)
@pytest.mark.parametrize("addr", ["foo://h:1", "://h:1", "TCP://h:1"])
def test_unknown_scheme(function: Any, addr: str) -> None:
    with pytest.raises(ValueError, match="unknown address scheme"):
        function(addr)


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
        ("tcp://localhost:80", "tcp://127.0.0.1:80"),
        ("localhost:80", "tcp://127.0.0.1:80"),
        ("tcp://0.0.0.0:80", "tcp://0.0.0.0:80"),
        ("tcp://[::1]:80", "tcp://[::1]:80"),
        ("tcp://8.8.8.8:80", "tcp://8.8.8.8:80"),
        ("inproc://1.2.3.4/5/1", "inproc://1.2.3.4/5/1"),
    ],
)
def test_resolve_address(addr: str, expected: str) -> None:
    assert resolve_address(addr) == expected


@pytest.mark.parametrize("function", [resolve_address, get_local_address_for])
def test_unresolvable_names_are_errors(function: Any) -> None:
    with pytest.raises(socket.gaierror):
        function("tcp://nonexistent.invalid:80")


@pytest.mark.parametrize("function", [resolve_address, get_local_address_for, get_address_host])
@pytest.mark.parametrize("addr", ["tcp://127.0.0.1", "localhost", "tcp://"])
def test_a_missing_port_is_an_error(function: Any, addr: str) -> None:
    with pytest.raises(ValueError, match="missing port number"):
        function(addr)


@pytest.mark.parametrize("addr", ["tcp://127.0.0.1:80", "tcp://localhost:80", "localhost:80"])
def test_local_address_for_this_host(addr: str) -> None:
    assert get_local_address_for(addr) == "tcp://127.0.0.1"


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
def test_local_address_for_this_host_over_ipv6() -> None:
    assert get_local_address_for("tcp://[::1]:80") == "tcp://[::1]"


def test_local_address_for_an_inproc_address_is_new() -> None:
    addr = new_address()
    local = get_local_address_for(addr)
    assert local != addr
    assert get_address_host(local) == get_address_host(addr)


@gen_test()
async def test_address_of_a_tcp_server() -> None:
    server = TCPServer()
    with pytest.raises(RuntimeError, match="not started yet"):
        get_tcp_server_address(server)
    server.listen(0, "127.0.0.1")
    first = get_tcp_server_address(server)
    assert first[0] == "127.0.0.1"
    assert first[1] > 0
    server.listen(0, "127.0.0.1")
    addresses = get_tcp_server_addresses(server)
    assert len(addresses) == 2
    assert addresses[0] == first == get_tcp_server_address(server)
    server.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        get_tcp_server_addresses(server)


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@gen_test()
async def test_address_of_a_tcp_server_over_ipv6() -> None:
    server = TCPServer()
    server.listen(0, "::1")
    assert get_tcp_server_address(server)[0] == "::1"
    server.stop()


@gen_test()
async def test_a_server_without_an_internet_socket_has_no_address(tmp_path) -> None:
    server = TCPServer()
    server.add_socket(bind_unix_socket(str(tmp_path / "socket")))
    with pytest.raises(RuntimeError, match="no Internet socket"):
        get_tcp_server_address(server)
    server.stop()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("h", None, 8786), "tcp://h:8786"),
        ((None, None, 8786), "tcp://:8786"),
        (("", None, 8786), "tcp://:8786"),
        (("h", 5, 8786), "tcp://h:5"),
        (("h", "5", 8786), "tcp://h:5"),
        (("h", 0, 8786), "tcp://h:0"),
        (("h", None, 0), "tcp://h:0"),
        (("h:6", None, 8786), "tcp://h:6"),
        (("h:6", 6, 8786), "tcp://h:6"),
        (("h:6", 0, 8786), "tcp://h:6"),
        (("h:0", 5, 8786), "tcp://h:0"),
        ((":6", None, 8786), "tcp://:6"),
        (("tls://h", 5, 8786), "tls://h:5"),
        (("tcp://h:6", None, 8786), "tcp://h:6"),
        (("tcp://", None, 8786), "tcp://:8786"),
        (("[::1]", 5, 8786), "tcp://[::1]:5"),
        # The original adds a port to these, which makes them meaningless:
        (("inproc://", None, 8786), "inproc://"),
        (("inproc://1.2.3.4/5/1", 0, 8786), "inproc://1.2.3.4/5/1"),
        (("unix:///run/x.sock", None, 8786), "unix:///run/x.sock"),
        (("unix://h:/run/x.sock", 0, 8786), "unix://h:/run/x.sock"),
        (("unix:///run/x.sock", 8786, 0), "unix:///run/x.sock"),
        (("unix://@x", None, 8786), "unix://@x"),
        (("unix://@x", 8786, 0), "unix://@x"),
        (("unix://h", None, 8786), "unix://h"),
        (("unix://h", 5, 8786), "unix://h:5"),
    ],
)
def test_uri_from_host_port(args: tuple[Any, ...], expected: str) -> None:
    assert uri_from_host_port(*args) == expected


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        (("h:6", 5, 1), ValueError, "port number given twice in options: host h:6 and port 5"),
        (("tcp://[::1]:6", "5", 1), ValueError, "port number given twice"),
        (("::1", 5, 1), ValueError, "brackets"),
        (("h", None, None), ValueError, "missing port number in address 'h'"),
        (("h", "x", 1), ValueError, "invalid port 'x' in address 'h:x'"),
        ((("h", 5), None, 1), TypeError, "expected str, got 'tuple'"),
        ((5, None, 1), TypeError, "expected str, got 'int'"),
    ],
)
def test_uri_from_host_port_errors(args: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        uri_from_host_port(*args)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, ""),
        ({"host": ""}, ""),
        ({"port": 0}, ""),
        ({"default_port": 8786}, ""),
        ({"peer": "tcp://h:1"}, ""),
        ({"host": "h"}, "tcp://h:0"),
        ({"port": 5}, "tcp://:5"),
        ({"host": "h", "port": "5"}, "tcp://h:5"),
        ({"host": "h:6"}, "tcp://h:6"),
        ({"host": "h", "default_port": 8786}, "tcp://h:8786"),
        ({"host": "h", "port": 0, "default_port": 8786}, "tcp://h:0"),
        ({"host": "tls://h:6"}, "tls://h:6"),
        ({"host": "[::1]", "port": 5}, "tcp://[::1]:5"),
        ({"protocol": "tls"}, "tls://"),
        ({"protocol": "tls://"}, "tls://"),
        ({"protocol": "tls", "host": "h"}, "tls://h:0"),
        ({"protocol": "tls", "host": "tcp://h:4"}, "tls://h:4"),
        ({"protocol": "tcp", "host": "tls://h"}, "tcp://h:0"),
        ({"protocol": "tls", "host": "tcp://", "default_port": 8786}, "tls://:8786"),
        ({"protocol": "ws", "host": "h", "port": 3}, "ws://h:3"),
        ({"protocol": "inproc"}, "inproc://"),
        ({"protocol": "inproc", "port": 0, "default_port": 8786}, "inproc://"),
        ({"protocol": "unix", "host": "/run/x.sock"}, "unix:///run/x.sock"),
        ({"protocol": "unix"}, "unix://"),
        ({"protocol": "unix", "host": "h", "port": 5}, "unix://h:5"),
        ({"protocol": "unix", "port": 5}, "unix://:5"),
        ({"security": False}, ""),
        ({"security": False, "host": "h", "port": 5}, "tcp://h:5"),
        ({"security": Security(False)}, ""),
        ({"security": Security(None), "port": 5}, "tcp://:5"),
        ({"security": Security(True)}, "tls://"),
        ({"security": Security(True), "port": 5}, "tls://:5"),
        ({"security": Security(True), "host": "h"}, "tls://h:0"),
        ({"security": Security(True), "host": "tcp://h"}, "tls://h:0"),
        ({"security": Security(True), "host": "tls://h"}, "tls://h:0"),
        ({"security": Security(True), "protocol": "tcp", "host": "h"}, "tcp://h:0"),
        ({"security": Security(True), "protocol": "wss"}, "wss://"),
        # The original replaces these by tls, though they are secure:
        ({"security": Security(True), "host": "wss://h"}, "wss://h:0"),
        ({"security": Security(True), "host": "inproc://"}, "inproc://"),
    ],
    ids=ids.shown,
)
def test_address_from_user_args(kwargs: dict[str, Any], expected: str) -> None:
    assert address_from_user_args(**kwargs) == expected
    assert addresses_from_user_args(**kwargs) == [expected]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"host": "h:6", "port": 5}, "port number given twice"),
        ({"host": "::1", "port": 5}, "brackets"),
        ({"port": "x"}, "invalid port 'x'"),
        ({"port": 70000}, "invalid port 70000"),
        ({"interface": "nope"}, "'nope' is not a valid network interface"),
        ({"interface": "lo", "host": "h"}, "both interface and host: 'lo', 'h'"),
        ({"protocol": "tls://h"}, "protocol must be a scheme .*'tls://h'"),
    ],
    ids=ids.shown,
)
def test_address_from_user_args_errors(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        address_from_user_args(**kwargs)


@pytest.fixture
def loopback() -> str:
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            return name
    pytest.skip("there is no loopback interface here")


def test_address_from_an_interface(loopback: str) -> None:
    assert address_from_user_args(interface=loopback, port=5) == "tcp://127.0.0.1:5"
    assert address_from_user_args(interface=loopback, protocol="tls") == "tls://127.0.0.1:0"
    assert address_from_user_args(interface=loopback, default_port=7) == "tcp://127.0.0.1:7"
    assert addresses_from_user_args(interface=[loopback]) == ["tcp://127.0.0.1:0"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"host": ["a", "b"]}, ["tcp://a:0", "tcp://b:0"]),
        ({"host": ("a", "b"), "port": [1, 2]}, ["tcp://a:1", "tcp://b:2"]),
        ({"host": "a", "port": [1, 2]}, ["tcp://a:1", "tcp://a:2"]),
        ({"host": ["a", "b"], "port": 5}, ["tcp://a:5", "tcp://b:5"]),
        ({"port": [1, 2], "protocol": ["tcp", "ws"]}, ["tcp://:1", "ws://:2"]),
        ({"protocol": ["tcp", "tls"]}, ["tcp://", "tls://"]),
        ({"port": [1, 2], "security": Security(True)}, ["tls://:1", "tls://:2"]),
        ({"port": [None, 2], "default_port": 9}, ["", "tcp://:2"]),
        ({"host": [], "port": []}, []),
    ],
    ids=ids.shown,
)
def test_addresses_from_user_args(kwargs: dict[str, Any], expected: list[str]) -> None:
    assert addresses_from_user_args(**kwargs) == expected


def test_lists_of_options_must_have_the_same_length() -> None:
    # The original ignores elements without a counterpart.
    with pytest.raises(ValueError, match=r"2 hosts in \['a', 'b'\], 1 ports in \[5\]"):
        addresses_from_user_args(host=["a", "b"], port=[5])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, host) for host in ("127.0.0.1", "::1", "h", "*")),
        *((host, "default") for host in ("", "0.0.0.0", "::", "::0", "0:0:0:0:0:0:0:0")),
    ],
)
def test_a_host_that_means_all_interfaces_is_replaced_by_the_default(host, expected) -> None:
    assert ensure_concrete_host(host, default_host="default") == expected


def test_the_default_for_all_interfaces_is_the_address_of_this_host() -> None:
    assert ensure_concrete_host("h") == "h"
    assert ensure_concrete_host("") == ensure_concrete_host("0.0.0.0") == get_ip()
    if has_ipv6():
        assert ensure_concrete_host("::") == get_ipv6()


def test_all_public_names_exist() -> None:
    assert all(hasattr(addressing, name) for name in addressing.__all__)

"""The IP addresses of this host."""

from __future__ import annotations

import socket
import sys

import pytest

from distributed.base import host_addresses
from distributed.base.host_addresses import ensure_ip, get_ip, get_ip_interface, get_ipv6
from distributed.tests.environments import run_in


@pytest.fixture
def forget_addresses():
    host_addresses._outgoing_ip.cache_clear()
    host_addresses._warn.cache_clear()
    yield
    host_addresses._outgoing_ip.cache_clear()
    host_addresses._warn.cache_clear()


def test_get_ip_returns_the_local_address_on_the_route_to_a_host():
    assert get_ip("127.0.0.1") == "127.0.0.1"


@pytest.mark.usefixtures("forget_addresses")
def test_get_ip_warns_and_falls_back_without_a_route():
    with pytest.warns(RuntimeWarning, match=r"reaching '203\.0\.113\.999'.* using '[\d.]+'"):
        address = get_ip("203.0.113.999")
    socket.inet_pton(socket.AF_INET, address)


@pytest.mark.skipif(not socket.has_ipv6, reason="Python is built without IPv6")
def test_get_ipv6_returns_the_local_address_on_the_route_to_a_host():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    assert get_ipv6("::1") == "::1"


def loopback():
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def test_get_ip_interface_returns_the_address_of_the_interface():
    assert get_ip_interface(loopback()) == "127.0.0.1"


def test_an_unknown_interface_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=rf"'nope0' is not a valid .* are: \[.*'{loopback()}'"):
        get_ip_interface("nope0")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_an_interface_without_an_address_is_an_error():
    for _, name in socket.if_nameindex():
        if host_addresses._interface_ip_from_kernel(name) is None:
            break
    else:
        pytest.skip("all interfaces of this host have an address")
    with pytest.raises(ValueError, match=f"'{name}' doesn't have an IPv4 address"):
        get_ip_interface(name)


def test_psutil_finds_the_same_address_of_an_interface(original_python):
    # psutil is a requirement of the original, and all that this module needs.
    code = f"""
        import runpy
        module = runpy.run_path({host_addresses.__file__!r})
        print(module["_interface_ip_from_psutil"]({loopback()!r}))
    """
    assert run_in(original_python, code).stdout == "127.0.0.1\n"


def test_the_error_for_a_missing_psutil_names_the_extra_to_install(bare_python):
    code = f"""
        from distributed.base.host_addresses import _interface_ip_from_psutil
        _interface_ip_from_psutil({loopback()!r})
    """
    done = run_in(bare_python, code, check=False)
    assert "RuntimeError: Finding the address of interface" in done.stderr
    assert "distributed-core[statistics]" in done.stderr


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("127.0.0.1", 80), "127.0.0.1"),
        (("::1", 80, 0, 0), "::1"),
        (("fe80::1", 80, 0, 1), f"fe80::1%{socket.if_indextoname(1)}"),
        (("fe80::1%eth7", 80, 0, 1), "fe80::1%eth7"),
        (("fe80::1", 80, 0, 987654), "fe80::1%987654"),
    ],
)
def test_the_host_of_a_link_local_socket_has_a_scope(address, host):
    assert host_addresses.host_of(address) == host


def test_an_address_that_is_not_link_local_is_preferred():
    assert host_addresses._preferred(["fe80::1", "fd00::1"]) == "fd00::1"
    assert host_addresses._preferred(["fe80::1"]) == "fe80::1"
    assert host_addresses._preferred([]) is None


@pytest.mark.parametrize("address", ["1.2.3.4", "::1", "fe80::1", "fe80::1%eth7"])
def test_ensure_ip_returns_an_ip_address_unchanged(address):
    assert ensure_ip(address) == address


@pytest.mark.parametrize("name", ["localhost", ""])
def test_ensure_ip_resolves_a_host_name(name):
    assert ensure_ip(name) in ("127.0.0.1", "::1")


def test_a_host_name_that_does_not_resolve_is_an_error_that_names_it():
    with pytest.raises(OSError, match=r"Could not resolve host name 'nohost\.invalid'"):
        ensure_ip("nohost.invalid")

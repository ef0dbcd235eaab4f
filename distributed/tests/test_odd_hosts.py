"""Hosts without a network, with IPv6 only, and with link-local addresses only.

Each is a network namespace of Linux.  The programs run there, with warnings as errors.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

from distributed.tests.environments import ROOT, clean_environ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs network namespaces")

WITHOUT_NETWORK = "true"
LOOPBACK = "ip link set lo up"
INTERFACE = f"{LOOPBACK}; ip tuntap add net0 mode tap && ip link set net0 up"
LINK_LOCAL = f"{INTERFACE}; ip addr flush dev net0; ip addr add fe80::5/64 dev net0 nodad"
ONLY_IPV6 = f"{LINK_LOCAL}; ip addr add fd01::5/64 dev net0 nodad"


def run_on(host, code):
    """Run code in a new network namespace, and return the JSON that it prints."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs the commands 'unshare' and 'ip'")
    new = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
    made = subprocess.run([*new, f"{host} && true"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine does not permit network namespaces: {made.stderr}")
    done = subprocess.run(
        [*new, f'{host}; exec "$0" "$@"', sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SERVE = """
    import asyncio, json
    from distributed.comm import get_address_host, get_local_address_for
    from distributed.core import Server, connect, send_recv
    from distributed.utils_test import tls_security

    async def serve(address):
        security = tls_security() if address.startswith(("tls", "wss")) else None
        async with Server({}) as server:
            args = security.get_listen_args("scheduler") if security else {}
            await server.listen(address, **args)
            args = security.get_connection_args("client") if security else {}
            comm = await connect(server.address, timeout=5, **args)
            assert await send_recv(comm, op="echo", data=1) == 1
            await comm.close()
            local = get_local_address_for(server.address)
            found = [server.address, server.listen_address, comm.local_address, comm.peer_address]
            return [*found, get_address_host(server.address), local]

    async def main():
        print(json.dumps([await serve(address) for address in ADDRESSES]))
"""


def serve_on(host, *addresses):
    code = f"ADDRESSES = {addresses}\n{textwrap.dedent(SERVE)}\nasyncio.run(main())"
    return run_on(host, code)


def test_inproc_and_unix_servers_need_no_network():
    for host in (WITHOUT_NETWORK, LOOPBACK):
        inproc, unix, named = serve_on(host, "inproc://", "unix://", "unix://@name")
        assert inproc[0].startswith("inproc://127.0.0.1/")
        assert inproc[4] == unix[4] == named[4] == "127.0.0.1"


def test_a_server_on_all_interfaces_of_a_host_without_a_network_has_a_loopback_address():
    (tcp,) = serve_on(LOOPBACK, "tcp://:0")
    assert tcp[0].startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize("route", ["", "; ip -6 route add default dev net0"])
def test_a_server_on_all_interfaces_of_a_host_with_ipv6_only_has_its_address(route):
    schemes = ("tcp", "tls", "ws")
    results = serve_on(ONLY_IPV6 + route, *(f"{scheme}://:0" for scheme in schemes))
    for scheme, found in zip(schemes, results, strict=True):
        assert found[0].startswith(f"{scheme}://[fd01::5]:")
    (link_local,) = serve_on(LINK_LOCAL, "tcp://:0")
    assert link_local[0].startswith("tcp://[fe80::5%net0]:")


def test_inproc_and_unix_servers_do_not_warn_on_a_host_with_ipv6_only():
    inproc, unix = serve_on(ONLY_IPV6, "inproc://", "unix://:0")
    # What the name of this host resolves to depends on the machine.
    assert inproc[4] == unix[4]


def test_a_server_at_a_link_local_address_keeps_the_scope_and_can_be_called():
    schemes = ("tcp", "tls", "ws", "wss")
    results = serve_on(LINK_LOCAL, *(f"{scheme}://[fe80::5%net0]:0" for scheme in schemes))
    for scheme, (contact, listen, local, peer, host, local_for) in zip(
        schemes, results, strict=True
    ):
        assert contact == listen == peer
        for address in (contact, local):
            assert address.startswith(f"{scheme}://[fe80::5%net0]:")
        assert host == "fe80::5%net0"
        assert local_for == f"{scheme}://[fe80::5%net0]"


def test_an_interface_with_ipv6_only_has_an_address_to_listen_at():
    code = textwrap.dedent("""
        import json
        from distributed.base.host_addresses import get_ip_interface
        from distributed.comm.addressing import address_from_user_args
        address = address_from_user_args(interface="net0", port=8786, protocol="tcp")
        print(json.dumps([get_ip_interface("net0"), address]))
    """)
    assert run_on(ONLY_IPV6, code) == ["fd01::5", "tcp://[fd01::5]:8786"]
    assert run_on(LINK_LOCAL, code) == ["fe80::5%net0", "tcp://[fe80::5%net0]:8786"]

"""``examples/nginx/nginx.conf`` works with nginx, over websockets and as a TCP proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from distributed.core import CommClosedError, Server, connect, rpc
from distributed.utils_test import gen_test, poll_for, popen, tls_security

ROOT = Path(__file__).parents[2]
CONF = ROOT / "examples" / "nginx" / "nginx.conf"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(
    NGINX is None or os.geteuid() != 0 or not STREAM_MODULE.exists(),
    reason="needs root, and nginx as Debian packages it (nginx-light, libnginx-mod-stream)",
)


def free_ports(number):
    with contextlib.ExitStack() as stack:
        return [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(number)
        ]


def accepts(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def with_certificates(text):
    for name in ("proxy.pem", "proxy-key.pem", "ca.pem"):
        assert text.count(f"/etc/nginx/tls/{name}") == 1
        text = text.replace(f"/etc/nginx/tls/{name}", tls_security().tls_ca_file)
    return text


@contextlib.contextmanager
def nginx(directory, http, tcp):
    """Run nginx before the ports *http* and *tcp* of a server, and yield its own two ports."""
    behind_http, behind_tcp = http, tcp
    https, tcp = free_ports(2)
    text = with_certificates(CONF.read_text())
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{https} ssl",
        "listen 8786": f"listen 127.0.0.1:{tcp}",
        "http://10.0.0.5:8787": f"http://127.0.0.1:{behind_http}",
        "proxy_pass 10.0.0.5:8786": f"proxy_pass 127.0.0.1:{behind_tcp}",
        "worker_processes auto": "worker_processes 1",
        "http {": "http { access_log off;",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    conf = directory / "nginx.conf"
    conf.write_text(text)
    options = f"daemon off; pid {directory}/pid; error_log stderr;"
    with popen([NGINX, "-c", str(conf), "-g", options]):
        poll_for(lambda: accepts(https) and accepts(tcp), timeout=20)
        yield https, tcp


def port_of(listener):
    return int(listener.contact_address.rpartition(":")[2].partition("/")[0])


@contextlib.asynccontextmanager
async def server_behind_nginx(directory, **arguments):
    """Run a server behind nginx, and yield its addresses for websockets and for TLS."""

    async def count(n):
        for i in range(n):
            yield i

    async with Server({"count": count}) as server:
        await server.listen("ws://127.0.0.1:0/cluster", **arguments)
        await server.listen("tls://127.0.0.1:0", security=tls_security())
        http, tcp = map(port_of, server.listeners)
        with nginx(directory, http=http, tcp=tcp) as (https, tcp):
            yield f"wss://127.0.0.1:{https}/cluster", f"tls://127.0.0.1:{tcp}"


@gen_test()
async def test_calls_and_streams_pass_through_nginx(tmp_path):
    async with server_behind_nginx(tmp_path) as addresses:
        for address in addresses:
            async with rpc(address, security=tls_security()) as remote:
                data = bytes(3_000_000)
                assert await remote.echo(data=data) == data
                assert [i async for i in remote.count.stream(n=1000)] == list(range(1000))


@gen_test()
async def test_nginx_refuses_a_client_without_a_certificate(tmp_path):
    trusting = ssl.create_default_context(cafile=tls_security().tls_ca_file)
    trusting.check_hostname = False
    async with server_behind_nginx(tmp_path) as (address, _):
        with pytest.raises(CommClosedError, match="400"):
            await connect(address, ssl_context=trusting)


@gen_test()
async def test_a_token_does_not_pass_a_proxy_that_ends_tls(tmp_path):
    token = "Zr3mJ0hXl9cN4u2pVw7k"
    arguments = tls_security().get_connection_args("client") | {"token": token}
    async with server_behind_nginx(tmp_path, token=token) as (address, _):
        with pytest.raises(CommClosedError, match=r"the token is wrong.* a proxy ends TLS"):
            await connect(address, **arguments)


def test_nginx_accepts_the_file_as_it_is_apart_from_its_certificates(tmp_path):
    conf = tmp_path / "nginx.conf"
    conf.write_text(with_certificates(CONF.read_text()))
    done = subprocess.run(
        [NGINX, "-t", "-c", conf, "-g", f"pid {tmp_path}/pid;"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

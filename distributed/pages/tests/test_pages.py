from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

import distributed
from distributed.core import Server, Status, rpc
from distributed.pages import Pages
from distributed.security import Security
from distributed.telemetry.loop_delay import delay_of
from distributed.tests.environments import run_here, run_in
from distributed.utils_test import async_poll_for, captured_logger, gen_test, tls_security

TOKEN = "correct-horse-battery-staple"


async def get(url, **kwargs):
    client = AsyncHTTPClient(force_instance=True)
    kwargs = {"raise_error": False, "follow_redirects": False, **kwargs}
    try:
        return await client.fetch(url, **kwargs)
    finally:
        client.close()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def events(url, number, headers=None):
    """Return the first events of the live page, or all until it closes: pairs of name and value."""
    host, port = url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found = []
    try:
        lines = [f"{name}: {value}" for name, value in {"Host": host, **(headers or {})}.items()]
        request = "\r\n".join(["GET /events HTTP/1.0", *lines, "", ""])
        writer.write(request.encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        while len(found) < number:
            event = await reader.readuntil(b"\n\n")
            parts = dict(line.split(": ", 1) for line in event.decode().strip().split("\n"))
            found.append((parts["event"], json.loads(parts["data"])))
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()
        await writer.wait_closed()
    return found


# Addresses


@pytest.mark.parametrize(
    "address", [0, "0", ":0", "127.0.0.1:0", "http://127.0.0.1:0/", ("127.0.0.1", 0), ("", 0)]
)
@gen_test()
async def test_only_this_host_reaches_the_port_by_default(address):
    async with Server({}) as server, Pages(address)(server) as pages:
        assert pages.url == f"http://127.0.0.1:{pages.port}/"
        assert (await get(pages.url + "health")).code == 200


@gen_test()
async def test_pages_are_served_by_ipv6():
    async with Server({}) as server, Pages("[::1]:0")(server) as pages:
        assert pages.url == f"http://[::1]:{pages.port}/"
        assert (await get(pages.url + "health")).code == 200


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"address": "tcp://127.0.0.1:1"}, ValueError, "not by tcp://"),
        ({"address": 70000}, ValueError, "70000"),
        ({"address": True}, TypeError, "at True"),
        ({"address": 1.5}, TypeError, "1.5"),
        ({"token": ""}, ValueError, "empty"),
        ({"token": 1}, TypeError, "int"),
        ({"path": "status"}, ValueError, "slash"),
        ({"allowed_hosts": "box"}, TypeError, "allowed_hosts"),
        ({"ssl_context": "cert.pem"}, TypeError, "ssl_context"),
        ({"public": "no"}, TypeError, "public"),
        ({"security": "x"}, TypeError, "Security"),
    ],
)
def test_an_argument_that_makes_no_sense_is_an_error(arguments, error, text):
    with pytest.raises(error, match=text):
        Pages(**arguments)


@gen_test()
async def test_a_port_that_is_in_use_is_an_error_that_names_it():
    async with Server({}) as server, Pages(0)(server) as pages:
        with pytest.raises(OSError, match=rf"cannot serve pages at http://127.0.0.1:{pages.port}"):
            await Pages(pages.port)(server).__aenter__()


@gen_test()
async def test_closed_pages_refuse_connections_and_end_their_watchers():
    async with Server({}) as server:
        async with Pages(0)(server) as pages:
            watching = asyncio.create_task(events(pages.url, 10**6))
            while not pages.updates.watchers:
                await asyncio.sleep(0.01)
        await watching
        with pytest.raises(ConnectionRefusedError):
            await get(pages.url + "health")


def test_pages_are_not_imported_with_the_core():
    code = "import sys, distributed.core; print([m for m in sys.modules if 'pages' in m])"
    assert run_here(code).stdout == "[]\n"


# Pages


@gen_test()
async def test_the_live_page_is_one_file_with_a_strict_policy():
    async with Server({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url)
        text = answer.body.decode()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "script-src 'sha256-" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Server" not in answer.headers
        # Nothing is loaded from elsewhere, and no text becomes HTML.
        assert not re.findall(r"(?:src|href)=.?(?:https?:)?//|@import|url\(", text)
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_an_installed_package_has_the_pages(bare_python):
    code = """
        from distributed.pages.handlers import _sign_in_page, live_page
        print(len(live_page().content) > 20_000, b"<form" in _sign_in_page().content)
    """
    assert run_in(bare_python, code).stdout == "True True\n"


@gen_test()
async def test_the_figures_are_json():
    async with Server({"add": lambda x, y: x + y}) as server, Pages(0)(server) as pages:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            assert await remote.add(x=1, y=2) == 3
            answer = await get(pages.url + "json")
        assert answer.headers["Content-Type"] == "application/json"
        figures = json.loads(answer.body)
        assert figures["server"]["address"] == server.address
        assert figures["operations"]["add"]["count"] == 1


@pytest.mark.parametrize("name", ["json", "metrics"])
@gen_test()
async def test_the_delay_of_the_event_loop_is_measured_from_the_first_request_for_it(name):
    delay = delay_of(asyncio.get_running_loop())
    async with Server({}) as server, Pages(0)(server) as pages:
        await get(pages.url + "health")
        assert not delay._users
        for _ in range(2):
            await get(pages.url + name)
        assert delay._users == 1
    assert not delay._users


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text", "application/openmetrics-text; version="),
        ("*/*", "text/plain; version="),
        ("application/json", "application/json"),
    ],
)
@gen_test()
async def test_the_figures_are_metrics(accept, kind):
    if accept != "application/json":
        pytest.importorskip("prometheus_client")
    async with Server({}) as server, Pages(0, token=TOKEN)(server) as pages:
        answer = await get(pages.url + "metrics", headers={"Accept": accept, **bearer(TOKEN)})
        assert answer.code == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert b"Server" in answer.body
        assert (await get(pages.url + "metrics")).code == 401


@gen_test()
async def test_health_tells_that_the_server_lives():
    async with Server({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url + "health")
        assert (answer.code, json.loads(answer.body)) == (200, {"status": "alive"})
        await server.close()
        assert (await get(pages.url + "health")).code == 200


@gen_test()
async def test_ready_tells_whether_requests_are_accepted():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow():
        begun.set()
        await go_on.wait()

    server = Server({"slow": slow})
    async with Pages(0)(server) as pages:
        assert (await get(pages.url + "ready")).code == 503
        async with server:
            await server.listen("tcp://127.0.0.1:0")
            answer = await get(pages.url + "ready")
            assert (answer.code, json.loads(answer.body)) == (200, {"status": "serving"})
            async with rpc(server.address) as remote:
                calling = asyncio.create_task(remote.slow())
                await begun.wait()
                closing = asyncio.create_task(server.close(timeout=20))
                await asyncio.sleep(0)
                answer = await get(pages.url + "ready")
                assert (answer.code, json.loads(answer.body)) == (503, {"status": "closing"})
                go_on.set()
                await asyncio.wait([calling, closing])


@gen_test()
async def test_ready_shows_the_health_of_a_server_that_closes_gracefully():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow():
        begun.set()
        await go_on.wait()

    async with Server({"slow": slow}) as server, Pages(0)(server) as pages:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            calling = asyncio.create_task(remote.slow())
            await begun.wait()
            draining = asyncio.create_task(server.drain())
            await async_poll_for(lambda: server.status is Status.closing_gracefully)
            answer = await get(pages.url + "ready")
            assert (answer.code, json.loads(answer.body)) == (503, server.health())
            go_on.set()
            await asyncio.wait([calling, draining])


@gen_test()
async def test_ready_shows_the_health_that_a_subclass_defines():
    class Busy(Server):
        async def health(self):
            return {"status": "overloaded", "queue": {1}}

    async with Busy({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url + "ready")
        assert (answer.code, json.loads(answer.body)) == (
            503,
            {"status": "overloaded", "queue": "{1}"},
        )


@gen_test()
async def test_a_health_handler_that_fails_is_not_ready():
    def health():
        raise ZeroDivisionError

    async with Server({}) as server, Pages(0)(server) as pages:
        server.handlers["health"] = health
        with captured_logger("distributed.pages", logging.ERROR) as log:
            assert (await get(pages.url + "ready")).code == 503
        assert "ZeroDivisionError" in log.getvalue() or "Exception while handling" in log.getvalue()


@gen_test()
async def test_other_paths_and_methods_are_refused_without_html():
    async with Server({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url + "<script>")
        assert (answer.code, answer.body) == (404, b"404: Not Found\n")
        answer = await get(pages.url + "json", method="DELETE")
        assert (answer.code, answer.body) == (405, b"405: Method Not Allowed\n")
        assert answer.headers["Content-Type"].startswith("text/plain")


@gen_test()
async def test_a_shared_port_closes_the_connection_of_a_request_by_a_wrong_method():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0")
        async with Pages()(server) as pages:
            reader, writer = await asyncio.open_connection("127.0.0.1", pages.port)
            writer.write(b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"405: Method Not Allowed\n")


@pytest.mark.parametrize("name", ["", "json", "health", "metrics", "ready"])
@gen_test()
async def test_head_is_the_answer_without_its_body(name):
    async with Server({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url + name, method="HEAD")
        assert answer.code == 200
        assert answer.body == b""
        assert int(answer.headers["Content-Length"]) > 10


@gen_test(config={"distributed.pages.interval": "50ms"})
async def test_a_browser_is_sent_the_description_and_the_figures():
    async with Server({"add": lambda x, y: x + y}) as server, Pages(0)(server) as pages:
        found = await events(pages.url, 4)
        assert [name for name, _ in found[:4]] == ["hello", "describe", "figures", "figures"]
        assert found[1][1]["operations"]["add"]["signature"] == "(x, y)"
        assert found[2][1]["server"]["id"] == server.id


@gen_test()
async def test_pages_may_be_at_another_path():
    async with Server({}) as server, Pages(0, path="/a.b/")(server) as pages:
        assert pages.url.endswith("/a.b/")
        assert (await get(pages.url + "health")).code == 200
        assert (await get(pages.url.replace("a.b", "aXb") + "health")).code == 404
        assert (await get(f"http://127.0.0.1:{pages.port}/")).code == 404


# Sharing the port of a websocket listener


@pytest.mark.parametrize("path", ["", "/", "/comm"])
@gen_test(config={"distributed.comm.timeouts.handshake": "300ms"})
async def test_pages_share_the_port_of_a_websocket_listener(path):
    async with Server({}) as server:
        await server.listen(f"ws://127.0.0.1:0{path}")
        async with Pages()(server) as pages:
            assert pages.port == server.port
            assert (await get(pages.url + "health")).code == 200
            assert b"<title>" in (await get(pages.url)).body
            async with rpc(server.address) as remote:
                assert await remote.echo(data=1) == 1
        assert (await get(pages.url + "health")).code in (400, 404)
        async with rpc(server.address) as remote:
            assert await remote.echo(data=2) == 2


@gen_test(
    config={
        "distributed.comm.timeouts.handshake": "100ms",
        "distributed.pages.interval": "50ms",
    }
)
async def test_the_deadline_for_opening_a_websocket_does_not_end_a_watcher():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0")
        async with Pages(server.port)(server) as pages:
            assert len(await events(pages.url, 12)) >= 12


@gen_test()
async def test_pages_have_a_port_of_their_own_if_another_one_is_given():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0")
        async with Pages(0)(server) as pages:
            assert pages.port != server.port
            assert (await get(pages.url + "health")).code == 200


class Mine(RequestHandler):
    def get(self):
        self.write("mine")


@gen_test()
async def test_pages_share_the_port_of_an_application():
    http_server = HTTPServer(Application([("/", Mine), ("/mine", Mine)]))
    http_server.add_sockets(bind_sockets(0, "127.0.0.1"))
    try:
        async with Server({}) as server:
            await server.listen("ws:///comm", http_server=http_server)
            root = f"http://127.0.0.1:{server.port}/"
            async with Pages(path="/status/")(server) as pages:
                assert pages.url == root + "status/"
                assert (await get(pages.url + "health")).code == 200
                assert (await get(root)).body == b"mine"
                assert (await get(root + "mine")).body == b"mine"
            assert (await get(pages.url + "health")).code == 404
    finally:
        http_server.stop()
        await http_server.close_all_connections()


@gen_test()
async def test_the_token_of_a_websocket_listener_protects_the_pages_at_its_port():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0", token=TOKEN)
        async with Pages()(server) as pages:
            assert (await get(pages.url + "json")).code == 401
            assert (await get(pages.url + "json", headers=bearer(TOKEN))).code == 200


@gen_test()
async def test_a_scheme_that_the_shared_port_does_not_have_is_an_error():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0")
        with pytest.raises(ValueError, match="https://"):
            await Pages(f"https://127.0.0.1:{server.port}")(server).__aenter__()


# Protection


@gen_test()
async def test_the_token_of_the_server_protects_its_pages():
    async with Server({}, security=Security(token=TOKEN)) as server, Pages(0)(server) as pages:
        for name in ("", "json", "metrics", "health", "ready", "events"):
            answer = await get(pages.url + name)
            assert answer.code == 401, name
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await get(pages.url + "json", headers=bearer("wrong"))).code == 401
        for name in ("", "json", "health", "ready"):
            assert (await get(pages.url + name, headers=bearer(TOKEN))).code == 200
        assert len(await events(pages.url, 1, headers=bearer(TOKEN))) >= 1


@pytest.mark.parametrize("where", ["argument", "security", "configuration"])
@gen_test()
async def test_the_token_may_come_from_elsewhere(where):
    arguments = {
        "argument": {"token": TOKEN},
        "security": {"security": Security(token=TOKEN)},
        "configuration": {},
    }[where]
    key = {"distributed.comm.auth.token": TOKEN if where == "configuration" else None}
    with distributed.config.set(key):
        async with Server({}) as server, Pages(0, **arguments)(server) as pages:
            assert (await get(pages.url + "json")).code == 401
            assert (await get(pages.url + "json", headers=bearer(TOKEN))).code == 200


@gen_test(config={"distributed.comm.auth.allow-health": True})
async def test_probes_need_no_token_where_the_operation_health_needs_none():
    async with Server({}) as server, Pages(0, token=TOKEN)(server) as pages:
        assert (await get(pages.url + "health")).code == 200
        assert (await get(pages.url + "ready")).code == 200
        assert (await get(pages.url + "json")).code == 401


def cookie_of(answer):
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert part.lower() in cookie.lower()
    assert TOKEN not in cookie
    return {"Cookie": cookie.partition(";")[0]}


@pytest.mark.parametrize("how", ["query", "form"])
@gen_test()
async def test_a_browser_that_sends_the_token_once_gets_a_cookie(how):
    async with Server({}) as server, Pages(0, token=TOKEN)(server) as pages:
        if how == "query":
            answer = await get(f"{pages.url}?token={TOKEN}")
        else:
            answer = await get(pages.url + "sign-in", method="POST", body=f"token={TOKEN}")
        assert answer.code == 303
        assert answer.headers["Location"] == "./"
        cookie = cookie_of(answer)
        assert (await get(pages.url + "json", headers=cookie)).code == 200
        port = pages.port
    # Another server with the token, as after a restart.
    async with Server({}) as server, Pages(port, token=TOKEN)(server) as pages:
        assert (await get(pages.url + "json", headers=cookie)).code == 200
    async with Server({}) as server, Pages(port, token=TOKEN[::-1])(server) as pages:
        assert (await get(pages.url + "json", headers=cookie)).code == 401


@gen_test()
async def test_a_browser_without_the_token_gets_a_form():
    async with Server({}) as server, Pages(0, token=TOKEN)(server) as pages:
        answer = await get(pages.url, headers={"Accept": "text/html,*/*"})
        assert answer.code == 401
        assert b'<form method="post" action="sign-in"' in answer.body
        assert b'role="alert" hidden' in answer.body
        assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
        answer = await get(pages.url + "sign-in", method="POST", body="token=wrong")
        assert answer.code == 401
        assert b'role="alert" hidden' not in answer.body
        assert "Set-Cookie" not in answer.headers


@gen_test()
async def test_the_token_is_not_logged():
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    async with Server({}) as server:
        with contextlib.ExitStack() as stack:
            logs = [stack.enter_context(captured_logger(each, logging.DEBUG)) for each in loggers]
            async with Pages(0, token=TOKEN)(server) as pages:
                server.handlers["health"] = lambda: 1 / 0
                await get(f"{pages.url}?token={TOKEN}")
                await get(f"{pages.url}?token={TOKEN[:-1]}")
                await get(f"{pages.url}ready?token={TOKEN}", headers=bearer(TOKEN))
                await get(f"{pages.url}none?token={TOKEN}", headers=bearer(TOKEN))
        text = "".join(log.getvalue() for log in logs)
        assert "wrong token" in text
        assert "GET /none" in text
        assert TOKEN[:-1] not in text


@gen_test()
async def test_a_client_that_guesses_tokens_waits_and_others_do_not():
    async with Server({}) as server, Pages(0, token=TOKEN)(server) as pages:
        guessing = asyncio.create_task(get(pages.url + "json", headers=bearer("guess")))
        while not pages.connections:
            await asyncio.sleep(0)
        assert (await get(pages.url + "json", headers=bearer(TOKEN))).code == 200
        assert not guessing.done()
        assert (await guessing).code == 401


@gen_test()
async def test_a_name_that_is_not_that_of_this_host_is_refused():
    async with Server({}) as server, Pages(0)(server) as pages:
        for name in ("", "json", "events", "health"):
            assert (await get(pages.url + name, headers={"Host": "evil.example"})).code == 421
    good = {"Host": "good.example"}
    async with Server({}) as server, Pages(0, allowed_hosts=["good.example"])(server) as pages:
        assert (await get(pages.url + "json", headers=good)).code == 200
    with distributed.config.set({"distributed.pages.allowed-hosts": ["good.example"]}):
        async with Server({}) as server, Pages(0)(server) as pages:
            assert (await get(pages.url + "json", headers=good)).code == 200


@gen_test()
async def test_pages_of_other_sites_cannot_make_requests():
    async with Server({}) as server, Pages(0)(server) as pages:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        assert (await get(pages.url + "events", headers=headers)).code == 403
        assert (await get(pages.url, headers={"Origin": "http://evil.example"})).code == 403
        assert pages.updates.watchers == 0


@gen_test()
async def test_a_port_that_is_open_to_other_hosts_is_refused():
    async with Server({}) as server:
        with pytest.raises(ValueError, match=r"every host that reaches 0\.0\.0\.0"):
            await Pages("0.0.0.0:0")(server).__aenter__()
        await server.listen("ws://0.0.0.0:0")
        with pytest.raises(ValueError, match=r"public=True"):
            await Pages()(server).__aenter__()


@pytest.mark.parametrize("how", ["argument", "configuration"])
@gen_test()
async def test_a_port_can_be_opened_to_other_hosts(how):
    with distributed.config.set({"distributed.pages.public": how == "configuration"}):
        async with Server({}) as server:
            with captured_logger("distributed.pages", logging.WARNING) as log:
                public = True if how == "argument" else None
                async with Pages("0.0.0.0:0", public=public)(server) as pages:
                    assert (await get(pages.url + "json")).code == 200
            assert "open to every host" in log.getvalue()


@gen_test()
async def test_a_token_that_crosses_a_network_without_encryption_is_a_warning():
    async with Server({}) as server:
        with captured_logger("distributed.pages", logging.WARNING) as log:
            async with Pages("0.0.0.0:0", token=TOKEN)(server):
                pass
        assert "not encrypted" in log.getvalue()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "https://127.0.0.1:0", "0.0.0.0:0"])
@gen_test()
async def test_pages_use_the_certificates_of_the_server(address):
    security = tls_security()
    context = security.get_connection_args("client")["ssl_context"]
    async with Server({}, security=security) as server, Pages(address)(server) as pages:
        assert pages.url.startswith("https://127.0.0.1:")
        assert (await get(pages.url + "json", ssl_options=context)).code == 200
        # No certificate of a client.
        stranger = ssl.create_default_context(cafile=security.tls_ca_file)
        stranger.check_hostname = False
        with pytest.raises((ssl.SSLError, ConnectionError, StreamClosedError)):
            await get(pages.url + "json", ssl_options=stranger, raise_error=True)


@gen_test()
async def test_http_on_this_host_may_stand_beside_a_server_with_tls():
    async with (
        Server({}, security=tls_security()) as server,
        Pages("http://127.0.0.1:0")(server) as pages,
    ):
        assert (await get(pages.url + "json")).code == 200
    async with Server({}) as server:
        with pytest.raises(ValueError, match="certificates"):
            await Pages("https://127.0.0.1:0")(server).__aenter__()


@gen_test()
async def test_pages_share_an_encrypted_port():
    security = tls_security()
    context = security.get_connection_args("client")["ssl_context"]
    async with Server({}, security=security) as server:
        await server.listen("wss://127.0.0.1:0")
        async with Pages()(server) as pages:
            assert pages.url.startswith("https://")
            assert (await get(pages.url + "json", ssl_options=context)).code == 200

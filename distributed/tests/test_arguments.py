"""An argument that cannot be used is an error where it is given, and names what would be right.

Most of all those for security: an argument that is ignored leaves a server open that its author
believes protected.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
import warnings
from typing import Any

import pytest

from distributed.base import config
from distributed.batched import BatchedSend
from distributed.comm.core import connect, listen
from distributed.comm.registry import backends, get_backend
from distributed.comm.tests.transports import TRANSPORTS, echo
from distributed.core import ConnectionPool, PooledRPCCall, Server, rpc, send_recv
from distributed.core.tasks import AsyncTaskGroup
from distributed.security import Security
from distributed.utils_test import captured_logger, gen_test, tls_security

TOKEN = "a token that is long enough"
ADDRESS = "tcp://127.0.0.1:1"


async def add(x, y):
    return x + y


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return TRANSPORTS[request.param]


# Unknown keywords

#: An argument that looks protective, and the name that its author most likely means.
MISSPELT = {
    "Token": "token",
    "tokn": "token",
    "sslContext": "ssl_context",
    "ssl_contxt": "ssl_context",
    "require_encrypt": "require_encryption",
    "requireEncryption": "require_encryption",
    "allow_pickles": "allow_pickle",
    "Security": "security",
}


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
@gen_test()
async def test_a_misspelt_argument_of_listen_and_connect_is_an_error_on_every_transport(
    name, meant
):
    for transport in TRANSPORTS.values():
        expected = rf"unexpected keyword argument {name!r}; did you mean {meant!r}.*security="
        with pytest.raises(TypeError, match=expected):
            await transport.listen(echo, **{name: TOKEN})
        address = transport.unused_address()
        with pytest.raises(TypeError, match=expected):
            await transport.connect(address, timeout=5, **{name: TOKEN})
    async with Server({}) as server:
        with pytest.raises(TypeError, match=expected):
            server.listen("tcp://127.0.0.1:0", **{name: TOKEN})
        assert not server.listeners
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises(TypeError, match=expected):
            make(connection_args={name: TOKEN})


@gen_test()
async def test_an_argument_that_is_like_no_other_is_an_error_that_lists_all(transport):
    with pytest.raises(TypeError, match=r"argument 'certfile'.*'ssl_context'.*security="):
        await transport.listen(echo, certfile="cert.pem")
    async with transport.listening(echo) as listener:
        with pytest.raises(TypeError, match=r"argument 'certfile'.*'ssl_context'.*security="):
            await transport.connect(listener.contact_address, certfile="cert.pem")
        pool = await ConnectionPool(connection_args={"certfile": "cert.pem"})
        async with pool:
            with pytest.raises(TypeError, match="'certfile'"):
                await pool.connect(listener.contact_address)


@pytest.mark.parametrize("scheme", sorted(backends))
@gen_test()
async def test_a_transport_does_not_ignore_arguments_of_connect_and_listen(scheme):
    """A transport that is called directly refuses what only connect() and listen() use."""
    backend = get_backend(scheme)
    with socket.create_server(("127.0.0.1", 0)) as passed:
        locs = {"inproc": "", "unix": "", "fd": str(passed.fileno())}
        loc = locs.get(scheme, "127.0.0.1:0")
        for name in ("token", "allow_pickle", "security"):
            expected = rf"{name}=.*distributed\.comm\.connect\(\) and listen"
            with pytest.raises(TypeError, match=expected):
                backend.get_listener(loc, echo, True, **{name: TOKEN})
            if scheme == "fd":
                # Nothing connects to such an address.
                continue
            address = TRANSPORTS[scheme].unused_address().partition("://")[2]
            with pytest.raises(TypeError, match=expected):
                await backend.get_connector().connect(address, **{name: TOKEN})


def unknown_keyword(make: Any, *args: Any) -> str:
    with pytest.raises(TypeError) as caught:
        make(*args, conection_args={"token": TOKEN})
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "args"), [(Server, ({},)), (rpc, (ADDRESS,)), (ConnectionPool, ())], ids=str
)
@gen_test()
async def test_an_unknown_keyword_of_a_class_is_an_error_that_names_the_nearest_one(make, args):
    text = unknown_keyword(make, *args)
    assert "unexpected keyword argument 'conection_args'; did you mean 'connection_args'?" in text
    assert "security=Security(" in text


@gen_test()
async def test_a_subclass_that_passes_an_unknown_keyword_on_gets_the_same_error():
    class Hub(Server):
        def __init__(self, **kwargs):
            super().__init__({}, **kwargs)

    assert "Server.__init__() got an unexpected" in unknown_keyword(Hub)


def test_an_unknown_field_of_security_is_an_error_that_names_the_nearest_one():
    with pytest.raises(TypeError, match=r"'tls_ca'.*did you mean 'tls_ca_file'"):
        Security(tls_ca="ca.pem")


@gen_test()
async def test_another_package_s_transport_gets_its_own_arguments(monkeypatch):
    got = []

    class Foreign:
        def get_listener(self, loc, handle_comm, deserialize, **connection_args):
            got.append(connection_args)

    monkeypatch.setitem(backends, "foreign", Foreign())
    listen("foreign://x", echo, gateway="a", ssl_context=None)
    assert got == [{"gateway": "a", "ssl_context": None}]


# security=

SECURITY = {
    "tls": lambda: tls_security(),
    "wss": lambda: tls_security(),
    **dict.fromkeys(("tcp", "ws", "unix", "inproc"), lambda: Security(token=TOKEN)),
}


@pytest.mark.parametrize("scheme", SECURITY)
@gen_test()
async def test_security_protects_a_server_and_its_clients(scheme):
    security = SECURITY[scheme]()
    async with Server({"add": add}) as server:
        await server.listen(TRANSPORTS[scheme].listen_at, security=security)
        async with (
            rpc(server.address, security=security) as remote,
            ConnectionPool(security=security) as pool,
            Server({}, security=security) as other,
        ):
            assert await remote.add(x=1, y=2) == 3
            assert await pool(server.address).add(x=1, y=2) == 3
            assert await other.rpc(server.address).add(x=1, y=2) == 3
        comm = await connect(server.address, security=security)
        comm.abort()
        if not security.require_encryption:
            with pytest.raises(OSError, match="token"):
                await connect(server.address)


@gen_test()
async def test_the_security_of_a_server_is_the_default_of_listen():
    async with Server({"add": add}, security=Security(token=TOKEN)) as server:
        await server.listen("tcp://127.0.0.1:0")
        with pytest.raises(OSError, match="token"):
            await connect(server.address)
        async with rpc(server.address, security=Security(token=TOKEN)) as remote:
            assert await remote.add(x=1, y=2) == 3
    async with Server({}, security=tls_security()) as server:
        with pytest.raises(RuntimeError, match="encryption required"):
            await server.listen("tcp://127.0.0.1:0")


@pytest.mark.parametrize(
    ("cls", "files", "role"),
    [
        ("Scheduler", ["worker", "scheduler"], "scheduler"),
        ("Worker", ["worker", "scheduler"], "worker"),
        ("Nanny", ["worker", "scheduler"], "worker"),
        ("Other", ["worker", "scheduler"], "scheduler"),
        ("Other", ["worker"], "worker"),
        ("Other", ["client"], "client"),
    ],
)
@gen_test()
async def test_a_server_listens_with_the_certificate_of_its_role(cls, files, role):
    roles = []

    class Recording(Security):
        def get_listen_args(self, role):
            roles.append(role)
            return super().get_listen_args(role)

    security = Recording(**{f"tls_{each}_cert": "cert.pem" for each in files})
    server = type(cls, (Server,), {})({})
    server.listen("inproc://", security=security)
    assert roles == [role]
    await server.close()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("token", TOKEN),
        ("ssl_context", tls_security().get_listen_args("scheduler")["ssl_context"]),
        ("require_encryption", False),
    ],
)
@gen_test()
async def test_security_cannot_be_combined_with_its_parts(argument, value):
    expected = f"security= and {argument}= cannot be combined"
    args: dict[str, Any] = {argument: value}
    security = tls_security()
    with pytest.raises(TypeError, match=expected):
        listen("tls://127.0.0.1:0", echo, security=security, **args)
    with pytest.raises(TypeError, match=expected):
        await connect("tls://127.0.0.1:1", security=security, **args)
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises(TypeError, match=expected):
            make(security=security, connection_args=args)
    async with Server({}, security=security) as server:
        with pytest.raises(TypeError, match=expected):
            server.listen("tls://127.0.0.1:0", **args)


@pytest.mark.parametrize("wrong", [True, "token", {"token": TOKEN}, Security])
@gen_test()
async def test_security_must_be_a_security_object(wrong):
    with pytest.raises(TypeError, match=r"security= takes a distributed\.Security object"):
        listen("tcp://127.0.0.1:0", echo, security=wrong)
    with pytest.raises(TypeError, match=r"security= takes a distributed\.Security object"):
        await connect(ADDRESS, security=wrong)
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises(TypeError, match=r"security= takes a distributed\.Security object"):
            make(security=wrong)


# Values of security arguments


@pytest.mark.parametrize("wrong", ["no", "false", "", 0, 1, []])
@gen_test()
async def test_flags_for_security_are_true_or_false(wrong):
    with pytest.raises(TypeError, match="require_encryption must be True, False or None"):
        Security(require_encryption=wrong)
    security = Security()
    security.require_encryption = wrong
    with pytest.raises(TypeError, match="require_encryption must be True, False or None"):
        security.get_listen_args("worker")
    for name in ("require_encryption", "allow_pickle"):
        for transport in TRANSPORTS.values():
            args = transport.listen_args() | {name: wrong}
            with pytest.raises(TypeError, match=f"{name} must be True, False or None"):
                listen(transport.listen_at, echo, **args)
            args = transport.connect_args() | {name: wrong}
            with pytest.raises(TypeError, match=f"{name} must be True, False or None"):
                await connect(transport.unused_address(), timeout=5, **args)
    with pytest.raises(TypeError, match="allow_pickle must be True, False or None"):
        type("Careful", (Server,), {"allow_pickle": wrong})({})


@pytest.mark.parametrize("token", ["", b"", "  \n"])
def test_an_empty_token_is_refused_when_security_is_created(token):
    with pytest.raises(ValueError, match="token must not be empty"):
        Security(token=token)


@pytest.mark.parametrize("token", [12345678901234567890, ["a"], True])
def test_a_token_is_text_or_bytes(token):
    with pytest.raises(TypeError, match="token must be text or bytes"):
        Security(token=token)


def short_token():
    """Return a token of 15 characters, of which no test has seen a warning yet."""
    return f"sesame-{secrets.token_hex(4)}"


@contextlib.contextmanager
def one_warning_of_a_token():
    with pytest.warns(UserWarning, match="a token of 15 characters.* can be guessed") as caught:
        yield caught
    assert len(caught) == 1
    assert "sesame" not in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_short_token_causes_a_warning_that_does_not_show_it():
    with one_warning_of_a_token():
        Security(token=short_token())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Security(token=short_token() + "x")


@pytest.mark.parametrize("where", ["argument", "configuration", "file"])
@gen_test()
async def test_a_short_token_causes_one_warning_wherever_it_is_given(where, tmp_path):
    token = short_token()
    arguments, settings, key = {}, {}, "distributed.comm.auth.token"
    if where == "argument":
        arguments["token"] = token
    elif where == "configuration":
        settings[key] = token
    else:
        (tmp_path / "token").write_text(token)
        settings[f"{key}-file"] = str(tmp_path / "token")
    with config.set(settings), one_warning_of_a_token() as caught:
        async with listen("tcp://127.0.0.1:0", echo, **arguments) as listener:
            for _ in range(2):
                comm = await connect(listener.contact_address, **arguments)
                comm.abort()
    assert (key in str(caught[0].message)) == (where != "argument")


@pytest.mark.parametrize("scheme", ["tcp", "ws", "unix"])
@gen_test()
async def test_an_ssl_context_is_not_ignored_by_a_transport_that_does_not_encrypt(scheme):
    transport = TRANSPORTS[scheme]
    context = tls_security().get_listen_args("scheduler")["ssl_context"]
    with pytest.raises(TypeError, match=r"does not encrypt.*tls://"):
        listen(transport.listen_at, echo, ssl_context=context)
    context = tls_security().get_connection_args("client")["ssl_context"]
    with pytest.raises(TypeError, match=r"does not encrypt.*tls://"):
        await connect(transport.unused_address(), timeout=5, ssl_context=context)
    listener = listen(transport.listen_at, echo, ssl_context=context, require_encryption=False)
    async with listener:
        comm = await connect(
            listener.contact_address, ssl_context=context, require_encryption=False
        )
        comm.abort()


def test_an_http_server_that_is_none_is_an_error():
    with pytest.raises(TypeError, match="http_server must be a tornado"):
        listen("ws://127.0.0.1:0", echo, http_server=object())
    with pytest.raises(TypeError, match="'http_server'"):
        listen("tcp://127.0.0.1:0", echo, http_server=object())


# Other arguments of servers and clients


@pytest.mark.parametrize("argument", ["handlers", "stream_handlers"])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([add], "must be a mapping of names to functions"),
        ("add", "must be a mapping of names to functions"),
        (add, "must be a mapping of names to functions"),
        ({1: add}, "must be text, not 1"),
        ({b"add": add}, "must be text, not b'add'"),
        ({"add": "add"}, "'add' is not callable"),
    ],
)
def test_handlers_are_a_mapping_of_names_to_functions(argument, wrong, expected):
    with pytest.raises(TypeError, match=expected):
        Server(**{"handlers": {}, argument: wrong})


def test_none_is_not_a_mapping_of_handlers():
    with pytest.raises(TypeError, match="handlers must be a mapping"):
        Server(None)


@pytest.mark.parametrize(
    ("blocked", "error", "expected"),
    [
        (["ecko"], ValueError, r"'ecko'.*did you mean 'echo'"),
        (["task_done"], ValueError, "is a stream handler"),
        ("echo", TypeError, "list of names"),
        (b"echo", TypeError, "list of names"),
        ({"echo": True}, TypeError, "list of names"),
        ([None], TypeError, "list of names"),
        (7, TypeError, "list of names"),
    ],
)
def test_blocked_handlers_are_names_of_handlers(blocked, error, expected):
    with pytest.raises(error, match=rf"blocked_handlers .*{expected}"):
        Server({}, blocked_handlers=blocked, stream_handlers={"task_done": print})


class LateHandlers(Server):
    """A server whose handlers are added after the constructor of its base class."""

    def __init__(self, **kwargs):
        super().__init__({}, **kwargs)
        self.handlers["add"] = add


@gen_test()
async def test_a_subclass_may_block_handlers_that_it_adds_later():
    async with LateHandlers(blocked_handlers=["add"]) as server:
        await server.listen("inproc://")
        async with rpc(server.address) as remote:
            with pytest.raises(ValueError, match="explicitly disallowed"):
                await remote.add(x=1, y=2)


@gen_test()
async def test_a_subclass_that_blocks_an_unknown_handler_neither_listens_nor_starts():
    server = LateHandlers(blocked_handlers=["ad"])
    with pytest.raises(ValueError, match=r"blocked_handlers contains 'ad'.*did you mean 'add'"):
        server.listen("inproc://")
    with pytest.raises(RuntimeError, match="failed to start") as caught:
        await server
    assert "did you mean 'add'" in str(caught.value.__cause__)


@gen_test()
async def test_the_configuration_cannot_block_an_unknown_handler():
    key = "distributed.server.blocked-handlers"
    expected = rf"{key} \(from .*\) contains 'ecko'.*did you mean 'echo'"
    with config.set({key: ["ecko"]}):
        server = Server({})
        with pytest.raises(ValueError, match=expected):
            server.listen("inproc://")
    await server.close()


#: Functions that take a duration, by the name of the argument.
DURATIONS = {
    "connect": ("timeout", lambda wrong: connect(ADDRESS, timeout=wrong)),
    "rpc": ("timeout", lambda wrong: rpc(ADDRESS, timeout=wrong)),
    "pool": ("timeout", lambda wrong: ConnectionPool(timeout=wrong)),
    "server": ("timeout", lambda wrong: Server({}, timeout=wrong)),
    "close": ("timeout", lambda wrong: Server({}).close(timeout=wrong)),
    "stream": ("interval", lambda wrong: BatchedSend(interval=wrong)),
    "flush": ("timeout", lambda wrong: BatchedSend(interval=1).close(timeout=wrong)),
    "later": ("delay", lambda wrong: AsyncTaskGroup().call_later(wrong, asyncio.sleep, 0)),
    "death": (
        "death_timeout",
        lambda wrong: type("Hub", (Server,), {"death_timeout": wrong})({}),
    ),
}


@pytest.mark.parametrize(("name", "call"), DURATIONS.values(), ids=DURATIONS)
@pytest.mark.parametrize("wrong", ["abc", [1], True, float("nan")], ids=str)
@gen_test()
async def test_a_wrong_duration_is_an_error_that_names_the_argument(name, call, wrong):
    async def use() -> None:
        result = call(wrong)
        if hasattr(result, "__await__"):
            await result

    with pytest.raises((ValueError, TypeError), match=name):
        await use()


@gen_test()
async def test_a_wrong_timeout_of_a_pool_s_connect_is_an_error_even_if_a_connection_is_idle():
    async with Server({"add": add}) as server, ConnectionPool() as pool:
        await server.listen("inproc://")
        await pool(server.address).add(x=1, y=2)
        with pytest.raises(ValueError, match="timeout='abc'"):
            await pool.connect(server.address, timeout="abc")


@pytest.mark.parametrize("wrong", ["abc", 0, -1, None, True, float("nan"), [1]], ids=str)
def test_a_wrong_limit_of_connections_is_an_error(wrong):
    with pytest.raises((ValueError, TypeError), match="limit"):
        ConnectionPool(limit=wrong)
    with pytest.raises((ValueError, TypeError), match="connection_limit"):
        Server({}, connection_limit=wrong)


@pytest.mark.parametrize("limit", [10000.0, 1, float("inf")])
def test_a_limit_of_connections_is_any_number_from_1(limit):
    assert ConnectionPool(limit=limit).limit == limit


@pytest.mark.parametrize("wrong", ["abc", -1, True, [1]], ids=str)
def test_a_wrong_size_is_an_error_that_names_the_argument(wrong):
    with pytest.raises((ValueError, TypeError), match="max_buffer_size"):
        BatchedSend(interval=1, max_buffer_size=wrong)


FAMILIES = {
    "rpc": functools.partial(rpc, ADDRESS),
    "pool": ConnectionPool,
    "server": functools.partial(Server, {}),
    "pooled": functools.partial(PooledRPCCall, ADDRESS, ConnectionPool()),
}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("argument", ["serializers", "deserializers"])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("pickle", r"a list of names.*not 'pickle'"),
        (b"pickle", r"a list of names"),
        (7, r"a list of names"),
        (["pikle"], r"'pikle'.*did you mean 'pickle'"),
        (["dask", None], "unknown serializer family None"),
    ],
)
@gen_test()
async def test_serializers_are_a_list_of_names_of_families(make, argument, wrong, expected):
    with pytest.raises((ValueError, TypeError), match=expected) as caught:
        make(**{argument: wrong})
    assert argument in str(caught.value)


def test_the_serializers_of_a_stream_are_a_list_of_names_of_families():
    with pytest.raises(TypeError, match="serializers must be a list"):
        BatchedSend(interval=1, serializers="pickle")
    with pytest.raises(ValueError, match="did you mean 'pickle'"):
        BatchedSend(interval=1, serializers=["pikle"])


@gen_test()
async def test_the_serializers_of_one_call_are_a_list_of_names_of_families():
    async with Server({"add": add}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            for argument in ("serializers", "deserializers"):
                with pytest.raises(TypeError, match="must be a list of names"):
                    await remote.add(x=1, y=2, **{argument: "pickle"})
            assert await remote.add(x=1, y=2) == 3


@pytest.mark.parametrize("wrong", [[("token", TOKEN)], "token", 7])
@gen_test()
async def test_connection_args_are_a_mapping(wrong):
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises(TypeError, match="connection_args must be a mapping"):
            make(connection_args=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"require_encryption": "no"},
        {"allow_pickle": "no"},
        {"deserialize": "no"},
        {"token": ""},
        {"token": 7},
        {"ssl_context": "cert.pem"},
        {"extra_conn_args": ["header"]},
    ],
    ids=str,
)
@gen_test()
async def test_values_in_connection_args_are_checked_where_they_are_given(wrong):
    (name,) = wrong
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises((TypeError, ValueError), match=name):
            make(connection_args=wrong)


@gen_test()
async def test_deserialize_is_not_text():
    for make in (ConnectionPool, functools.partial(rpc, ADDRESS), functools.partial(Server, {})):
        with pytest.raises(TypeError, match="deserialize must be True, False or None, not 'no'"):
            make(deserialize="no")


@gen_test()
async def test_an_error_names_the_argument_that_is_not_a_list_of_families():
    async with Server({}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address)
        for name in ("serializers", "deserializers"):
            with pytest.raises(TypeError, match=f"^{name} must be a list"):
                await send_recv(comm, op="echo", data=1, **{name: "pickle"})
        await comm.close()


@pytest.mark.parametrize("wrong", [None, "add", [add]])
def test_a_listener_needs_a_function(wrong):
    with pytest.raises(TypeError, match="handle_comm must be a function"):
        listen("tcp://127.0.0.1:0", wrong)


@pytest.mark.parametrize("wrong", [True, -1, 65536, 1.5, b"tcp://", ["127.0.0.1", 0]], ids=str)
@gen_test()
async def test_a_server_listens_at_a_port_or_an_address(wrong):
    server = Server({})
    with captured_logger("distributed.core") as log, pytest.raises((TypeError, ValueError)):
        await server.listen(wrong)
    assert not log.getvalue()
    assert not server.listeners
    await asyncio.wait_for(server.close(), 10)

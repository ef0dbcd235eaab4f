"""The names that other code imports from the core and the comms, and how they are called."""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import MutableMapping
from typing import Any

import pytest

import distributed.comm.core
import distributed.core
from distributed import core
from distributed.utils_test import gen_test

SERVER = (
    "(handlers, blocked_handlers=None, stream_handlers=None, connection_limit=512, "
    "deserialize=True, serializers=None, deserializers=None, connection_args=None, timeout=None, "
    "local_directory=None, needs_workdir=True)"
)
RPC = (
    "(arg, comm=None, deserialize=True, timeout=None, connection_args=None, serializers=None, "
    "deserializers=None)"
)
POOL = (
    "(limit=512, deserialize=True, serializers=None, allow_offload=True, deserializers=None, "
    "connection_args=None, timeout=None, server=None)"
)
CONNECT = "(addr, timeout=None, deserialize=True, handshake_overrides=None, **connection_args)"
LISTEN = "(addr, handle_comm, deserialize=True, **kwargs)"

#: module → name → how it is called
SIGNATURES = {
    "distributed.core": {
        "Server": SERVER,
        "rpc": RPC,
        "ConnectionPool": POOL,
        "PooledRPCCall": "(addr, pool, serializers=None, deserializers=None)",
        "connect": CONNECT,
        "listen": LISTEN,
        "send_recv": "(comm, *, reply=True, serializers=None, deserializers=None, **kwargs)",
        "error_message": "(e, status='error')",
        "clean_exception": "(exception, traceback=None, **kwargs)",
        "pingpong": "(comm)",
        "coerce_to_address": "(o)",
        "addr_from_args": "(addr=None, ip=None, port=None)",
        "raise_later": "(exc)",
        "context_meter_to_server_digest": "(digest_tag)",
        "_expects_comm": "(func)",
        "rpc.live_comm": "(self)",
        "rpc.close_comms": "(self)",
        "rpc.close_rpc": "(self)",
        "ConnectionPool.__call__": "(self, addr=None, ip=None, port=None)",
        "ConnectionPool.connect": "(self, addr, timeout=None)",
        "ConnectionPool.reuse": "(self, addr, comm)",
        "ConnectionPool.remove": "(self, addr, *, reason='Address removed.')",
        "ConnectionPool.collect": "(self)",
        "ConnectionPool.close": "(self)",
        "ConnectionPool._validate": "(self)",
        "PooledRPCCall.close_rpc": "(self)",
        "Server.start": "(self)",
        "Server.start_unsafe": "(self)",
        "Server.close": "(self, timeout=None, reason='')",
        "Server.finished": "(self)",
        "Server.stop": "(self)",
        "Server.start_periodic_callbacks": "(self)",
        "Server.listen": "(self, port_or_addr=None, allow_offload=True, **kwargs)",
        "Server.handle_comm": "(self, comm)",
        "Server.handle_stream": "(self, comm, extra=None)",
        "Server.identity": "(self)",
        "Server.echo": "(self, data=None)",
        "Server._to_dict": "(self, *, exclude=())",
        "Server.get_connection_counters": "(self)",
        "Server._stop_listeners": "(self)",
        "Server.digest_metric": "(self, name, value)",
        "Server.upload_file": "(self, filename, data, load=True)",
    },
    "distributed.comm": {
        "connect": CONNECT,
        "listen": LISTEN,
        "parse_address": "(addr, strict=False)",
        "unparse_address": "(scheme, loc)",
        "normalize_address": "(addr)",
        "parse_host_port": "(address, default_port=None)",
        "unparse_host_port": "(host, port=None)",
        "get_address_host": "(addr)",
        "get_address_host_port": "(addr, strict=False)",
        "get_local_address_for": "(addr)",
        "resolve_address": "(addr)",
        "get_tcp_server_address": "(server)",
        "get_tcp_server_addresses": "(server)",
    },
    "distributed.comm.core": {
        "connect": CONNECT,
        "listen": LISTEN,
        "Comm": "(deserialize=True)",
        "Comm.read": "(self, deserializers=None)",
        "Comm.write": "(self, msg, serializers=None, on_error=None)",
        "Comm.close": "(self)",
        "Comm.abort": "(self)",
        "Comm.closed": "(self)",
        "Comm.handshake_info": "(self)",
        "Comm.handshake_configuration": "(local, remote)",
        "Connector.connect": "(self, address, deserialize=True, **connection_args)",
        "Listener.start": "(self)",
        "Listener.stop": "(self)",
        "Listener.on_connection": "(self, comm, handshake_overrides=None)",
        "BaseListener": "()",
        "BaseListener.abort_handshaking_comms": "(self)",
        "BaseListener.on_connection": "(self, comm, handshake_overrides=None)",
    },
    "distributed.comm.registry": {
        "Backend.get_connector": "(self)",
        "Backend.get_listener": "(self, loc, handle_comm, deserialize, **connection_args)",
        "Backend.get_address_host": "(self, loc)",
        "Backend.get_address_host_port": "(self, loc)",
        "Backend.resolve_address": "(self, loc)",
        "Backend.get_local_address_for": "(self, loc)",
        "get_backend": "(scheme)",
    },
    "distributed.comm.addressing": {
        "uri_from_host_port": "(host_arg, port_arg, default_port)",
        "address_from_user_args": (
            "(host=None, port=None, interface=None, protocol=None, peer=None, security=None, "
            "default_port=0)"
        ),
        "addresses_from_user_args": (
            "(host=None, port=None, interface=None, protocol=None, peer=None, security=None, "
            "default_port=0)"
        ),
    },
    "distributed.comm.tcp": {
        "TCP": "(stream, local_addr, peer_addr, deserialize=True)",
        "TCPConnector.connect": "(self, address, deserialize=True, **connection_args)",
        "TCPListener": (
            "(address, comm_handler, deserialize=True, allow_offload=True, default_host=None, "
            "default_port=0, **connection_args)"
        ),
        "get_stream_address": "(stream)",
        "set_tcp_timeout": "(stream)",
        "_getaddrinfo": "(host, port, *, family=0, type=<SocketKind.SOCK_STREAM: 1>)",
    },
    "distributed.comm.inproc": {
        "InProc": "(local_addr, peer_addr, read_q, write_q, write_loop, deserialize=True)",
        "InProcConnector": "(manager)",
        "InProcListener": "(address, comm_handler, deserialize=True)",
        "Manager": "()",
        "new_address": "()",
        "Queue": "()",
        "Queue.get_nowait": "(self)",
        "Queue.put_nowait": "(self, value)",
        "Queue.peek": "(self, default=<no default>)",
    },
    "distributed.comm.utils": {
        "to_frames": "(msg, allow_offload=True, **kwargs)",
        "from_frames": ("(frames, deserialize=True, deserializers=None, allow_offload=True)"),
        "ensure_concrete_host": "(host, default_host=None)",
    },
    "distributed.batched": {
        "BatchedSend": "(interval, loop=None, serializers=None, *, max_buffer_size=None)",
        "BatchedSend.start": "(self, comm)",
        "BatchedSend.send": "(self, *msgs)",
        "BatchedSend.close": "(self, timeout=None)",
        "BatchedSend.abort": "(self)",
        "BatchedSend.closed": "(self)",
    },
}

#: module → names of what is no function, or is called by nobody but this package
NAMES = {
    "distributed": ["CommClosedError", "Server", "Status", "__version__", "connect", "rpc"],
    "distributed.core": [
        "Comm",
        "CommClosedError",
        "ErrorMessage",
        "OKMessage",
        "RPCClosed",
        "Status",
        "tick_maximum_delay",
    ],
    "distributed.comm": ["Comm", "CommClosedError", "backends"],
    "distributed.comm.core": [
        "BaseListener",
        "CommClosedError",
        "Connector",
        "FatalCommClosedError",
        "Listener",
    ],
    "distributed.comm.registry": ["Backend", "backends"],
    "distributed.comm.tcp": [
        "BaseTCPBackend",
        "MAX_BUFFER_SIZE",
        "TCP",
        "TCPBackend",
        "TCPConnector",
        "TCPListener",
    ],
    "distributed.comm.inproc": [
        "InProc",
        "InProcBackend",
        "InProcConnector",
        "InProcListener",
        "Manager",
        "Queue",
        "QueueEmpty",
        "global_manager",
    ],
    "distributed.comm.utils": ["OFFLOAD_THRESHOLD"],
}


def look_up(module: str, path: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def called_as(func: Any, expected: str) -> str:
    """The signature without annotations; a default that is a private mark shows as such.

    Options of this package's own are not shown where no other code can stumble over them: they can
    be left out, and come after what is expected or are given by name only.
    """
    signature = inspect.signature(func)
    parameters = list(signature.parameters.values())
    positions = [i for i, parameter in enumerate(parameters) if f"{parameter.name}=" in expected]
    last_expected = max(positions, default=-1)
    shown = [
        parameter.replace(
            annotation=parameter.empty,
            default=(
                _Shown("<no default>") if type(parameter.default) is object else parameter.default
            ),
        )
        for i, parameter in enumerate(parameters)
        if i in positions
        or parameter.default is parameter.empty
        or (parameter.kind is not parameter.KEYWORD_ONLY and i < last_expected)
    ]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


class _Shown(str):
    def __repr__(self) -> str:
        return str(self)


@pytest.mark.parametrize(
    ("module", "path", "expected"),
    [(module, path, how) for module, table in SIGNATURES.items() for path, how in table.items()],
)
def test_is_called_as_other_code_calls_it(module, path, expected):
    assert called_as(look_up(module, path), expected) == expected


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names]
)
def test_exists(module, name):
    assert look_up(module, name) is not None


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (core.rpc("tcp://127.0.0.1:1"), ["address", "status", "comms"]),
        (
            core.ConnectionPool(),
            [
                "active",
                "available",
                "limit",
                "occupied",
                "open",
                "semaphore",
                "status",
                "_connecting",
                "_connecting_close_timeout",
                "_connecting_count",
                "_instances",
                "_n_connecting",
                "_pending_count",
            ],
        ),
        (core.PooledRPCCall("tcp://127.0.0.1:1", core.ConnectionPool()), ["address", "addr"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_has_its_attributes(cls, names):
    assert [name for name in names if name in {*vars(cls), *dir(type(cls))}] == names


@gen_test()
async def test_a_server_has_its_attributes():
    async with core.Server({}) as server:
        await server.listen("inproc://")
        for name in (
            "_address",
            "_comms",
            "_event_finished",
            "_is_finalizing",
            "_last_tick",
            "_listen_address",
            "_ongoing_background_tasks",
            "_original_local_dir",
            "_tick_counter",
            "_tick_interval_observed",
            "address",
            "address_safe",
            "blocked_handlers",
            "counters",
            "default_ip",
            "default_port",
            "digests",
            "digests_max",
            "digests_total",
            "digests_total_since_heartbeat",
            "handlers",
            "id",
            "incoming_comms_active",
            "incoming_comms_open",
            "io_loop",
            "listen_address",
            "listener",
            "listeners",
            "local_directory",
            "loop",
            "monitor",
            "outgoing_comms_active",
            "outgoing_comms_open",
            "periodic_callbacks",
            "rpc",
            "status",
            "stream_handlers",
            "thread_id",
        ):
            assert hasattr(server, name), name


@gen_test()
async def test_a_comm_has_its_attributes():
    async with core.Server({}) as server:
        await server.listen("inproc://")
        comm = await core.connect(server.address)
        for name in (
            "_instances",
            "allow_offload",
            "deserialize",
            "extra_info",
            "handshake_options",
            "local_address",
            "local_info",
            "name",
            "peer_address",
            "remote_info",
            "same_host",
        ):
            assert hasattr(comm, name), name
        await comm.close()


def test_comms_are_the_same_wherever_they_are_imported_from():
    assert core.Comm is distributed.comm.Comm is distributed.comm.core.Comm
    assert core.CommClosedError is distributed.comm.core.CommClosedError
    assert core.connect is distributed.comm.connect is distributed.comm.core.connect
    assert core.listen is distributed.comm.listen is distributed.comm.core.listen


def test_connection_errors_are_operating_system_errors():
    assert issubclass(core.RPCClosed, IOError)
    assert issubclass(core.CommClosedError, IOError)
    assert issubclass(distributed.comm.core.FatalCommClosedError, core.CommClosedError)


def test_an_rpc_that_is_closed_is_no_comm_that_is_closed():
    assert not issubclass(core.RPCClosed, core.CommClosedError)


def test_backends_are_a_mapping_with_the_transports():
    assert isinstance(distributed.comm.backends, MutableMapping)
    assert {"tcp", "inproc"} <= set(distributed.comm.backends)


def test_tcp_backends_name_their_classes():
    from distributed.comm import tcp

    assert tcp.TCPBackend._connector_class is tcp.TCPConnector
    assert tcp.TCPBackend._listener_class is tcp.TCPListener
    assert issubclass(tcp.TCPBackend, tcp.BaseTCPBackend)


def test_the_states_and_their_names():
    assert issubclass(core.Status, enum.Enum)
    assert [status.name for status in core.Status] == [
        "undefined",
        "created",
        "init",
        "starting",
        "running",
        "paused",
        "stopping",
        "stopped",
        "closing",
        "closing_gracefully",
        "closed",
        "failed",
        "dont_reply",
    ]
    assert core.Status.lookup == {status.name: status for status in core.Status}


def test_an_unknown_keyword_of_a_server_is_a_type_error():
    with pytest.raises(TypeError, match="no_such_option"):
        core.Server({}, no_such_option=1)


def test_everything_that_the_core_offers_exists():
    for name in core.__all__:
        assert getattr(core, name) is not None


def test_a_name_that_the_core_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        core.no_such_name  # noqa: B018

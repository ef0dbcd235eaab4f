"""The names that other code imports, as ``data/api.md`` lists them, and how they are called."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import distributed.comm.core
from distributed import core
from distributed.batched import BatchedSend
from distributed.security import Security
from distributed.tests.servers import connected, serving
from distributed.utils_test import gen_test

PAGE = (Path(__file__).parent / "data" / "api.md").read_text(encoding="utf-8")

#: Words in code font that look like names of this package and are not.
OTHER_WORDS = {
    *(name for name in dir(builtins) if name[0].isupper()),
    *("PeriodicCallback", "SystemMonitor", "len", "pool", "reply", "repr", "serializers", "with"),
}

#: ``name``, ``.name``, ``Owner.name`` or ``name_*``, with or without parameters or a value.
NAME = re.compile(r"(?:(?P<owner>\w+)?\.)?(?P<name>[A-Za-z_]\w*\*?)(?P<how>\(.*\))?(?: = .*)?")


def lists_of(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield each list of names in the page, with its module and, if any, the owner of the names."""
    module = owner = ""
    for line in page.splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("## "):
            module, owner = line.strip("#` "), ""
            module = "" if module == "Others" else module
        elif line.startswith("### `"):
            owner = line.split("`")[1]
        elif owner or line.startswith("Package: "):
            yield module, owner, line
        elif line.startswith("| `") and module == "distributed.core":
            yield module, "", cells[0]
            yield module, cells[0].split("`")[1].partition("(")[0], "".join(cells[1:])
        elif line.startswith("| `"):
            for path in cells[0].split("`")[1::2]:
                yield module + path, "", cells[1]


class Names:
    """The names in a page, each looked up in its module or object.

    A name in parentheses may be an attribute of the name before them: ``Comm`` (``read()``, …).

    Attributes
    ----------
    found : set of str
        The paths of the names, such as ``distributed.core:rpc.comms``.
    signatures : dict
        Path → parameters, where the page shows all of them.
    missing : list of str
        The modules and names that do not exist.
    modules : set of str
        The modules, some of which have no names: they need libraries that may not be installed.
    """

    def __init__(self, page: str, instances: Mapping[str, Any]) -> None:
        # Objects to use in place of their classes, since some attributes exist only there.
        self.instances = instances
        self.found: set[str] = set()
        self.signatures: dict[str, str] = {}
        self.missing: list[str] = []
        self.modules: set[str] = set()
        for module, owner, text in lists_of(page):
            self.modules.add(module)
            if importlib.util.find_spec(module) is None:
                self.missing.append(module)
            else:
                self.read(module, owner, text)

    def read(self, module: str, owner: str, text: str) -> None:
        home = latest = f"{module}:{owner}"
        depth = 0
        for i, part in enumerate(text.split("`")):
            if i % 2 == 0:
                depth += part.count("(") - part.count(")")
                continue
            match = NAME.fullmatch(part)
            if match is None or not OTHER_WORDS.isdisjoint(match.groups()):
                continue
            if match["owner"]:
                if not self.has(f"{module}:", match["owner"]):
                    continue  # a name of another package, such as asyncio.TimeoutError
                places = [f"{module}:{match['owner']}"]
            elif depth:
                places = [latest, home, f"{module}:"]
            else:
                places = [home, f"{module}:", latest]
            place = next((place for place in places if self.has(place, match["name"])), None)
            if place is None:
                self.missing.append(f"{places[0]}.{match['name']}")
                continue
            path = f"{place}.{match['name']}".replace(":.", ":")
            self.found.add(path)
            if match["how"] and "…" not in match["how"]:
                self.signatures.setdefault(path, match["how"].replace('"', "'"))
            if place == home and not depth:
                latest = path

    def has(self, place: str, name: str) -> bool:
        try:
            owner = self.object_at(place)
        except AttributeError:
            return False
        if name.endswith("*"):
            return any(existing.startswith(name[:-1]) for existing in dir(owner))
        if isinstance(owner, ModuleType | type):
            return hasattr(owner, name)
        # Not hasattr(), because an rpc object has any attribute.
        return name in dir(owner) or (isinstance(owner, dict) and name in owner)

    def object_at(self, path: str) -> Any:
        """Return the object at ``module:attribute.attribute``."""
        module, _, attributes = path.partition(":")
        if path in self.instances or not attributes:
            return self.instances.get(path) or importlib.import_module(module)
        owner, _, name = attributes.rpartition(".")
        found = self.object_at(f"{module}:{owner}")
        return found[name] if isinstance(found, dict) and name in found else getattr(found, name)


@asynccontextmanager
async def names_of(page: str) -> AsyncIterator[Names]:
    async with (
        serving() as server,
        connected(server) as comm,
        core.rpc(server.address) as remote,
        core.ConnectionPool() as pool,
    ):
        instances = {
            "distributed.core:Server": server,
            "distributed.core:rpc": remote,
            "distributed.core:ConnectionPool": pool,
            "distributed.core:PooledRPCCall": pool(server.address),
            "distributed.comm.core:Comm": comm,
            "distributed.batched:BatchedSend": BatchedSend(interval=1),
            "distributed.security:Security": Security(),
        }
        yield Names(page, instances)


@gen_test()
async def test_each_name_of_the_page_exists():
    async with names_of(PAGE) as names:
        assert names.missing == []
        # A parser that skips names would find less.
        of_modules = [path for path in names.found if "." not in path.partition(":")[2]]
        assert len(of_modules) >= 165
        assert len(names.found) - len(of_modules) >= 150
        assert len(names.signatures) >= 109
        assert len(names.modules) >= 30


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("| `no_such_name(x)` | |", "distributed.core:.no_such_name"),
        ("| `rpc(arg)` | `.address`, `.no_such_name` |", "distributed.core:rpc.no_such_name"),
        ("Package: `Comm`, `no_such_name`.", "distributed.core:.no_such_name"),
        ("### `Server`\n* **Life** `no_such_name()`", "distributed.core:Server.no_such_name"),
        ("## `distributed`\n| `.core` | `no_such_name` |", "distributed.core:.no_such_name"),
        ("## `distributed`\n| `.core` | `rpc` (`no_such`) |", "distributed.core:rpc.no_such"),
        ("## Others\n| `distributed.core` | `no_such` |", "distributed.core:.no_such"),
    ],
)
@gen_test()
async def test_a_name_that_does_not_exist_is_found_missing(line, missing):
    async with names_of(f"## `distributed.core`\n\n{line}") as names:
        assert names.missing == [missing]


#: Path → its signature, where the page does not show it or shows it in another way.
SIGNATURES = {
    "distributed.core:ConnectionPool.__call__": "(addr=None, ip=None, port=None)",
    "distributed.core:Server._ongoing_background_tasks.call_later": (
        "(delay, afunc, /, *args, **kwargs)"
    ),
    "distributed.core:Server._ongoing_background_tasks.call_soon": "(afunc, /, *args, **kwargs)",
    "distributed.core:context_meter_to_server_digest": "(digest_tag)",
    "distributed.comm.addressing:address_from_user_args": (
        "(host=None, port=None, interface=None, protocol=None, peer=None, security=None, "
        "default_port=0)"
    ),
    "distributed.comm.addressing:addresses_from_user_args": (
        "(host=None, port=None, interface=None, protocol=None, peer=None, security=None, "
        "default_port=0)"
    ),
    "distributed.comm.addressing:uri_from_host_port": "(host_arg, port_arg, default_port)",
    "distributed.comm.core:BaseListener": "()",
    "distributed.comm.core:BaseListener.on_connection": "(comm, handshake_overrides=None)",
    "distributed.comm.core:Comm": "(deserialize=True)",
    "distributed.comm.core:Connector.connect": "(address, deserialize=True, **connection_args)",
    "distributed.comm.inproc:InProc": (
        "(local_addr, peer_addr, read_q, write_q, write_loop, deserialize=True)"
    ),
    "distributed.comm.inproc:InProcConnector": "(manager)",
    "distributed.comm.inproc:InProcListener": "(address, comm_handler, deserialize=True)",
    "distributed.comm.inproc:Manager": "()",
    "distributed.comm.inproc:Queue": "()",
    "distributed.comm.inproc:Queue.get_nowait": "()",
    "distributed.comm.inproc:Queue.peek": "(default=<no default>)",
    "distributed.comm.inproc:Queue.put_nowait": "(value)",
    "distributed.comm.registry:Backend.get_address_host": "(loc)",
    "distributed.comm.registry:Backend.get_address_host_port": "(loc)",
    "distributed.comm.registry:Backend.get_connector": "()",
    "distributed.comm.registry:Backend.get_listener": (
        "(loc, handle_comm, deserialize, **connection_args)"
    ),
    "distributed.comm.registry:Backend.get_local_address_for": "(loc)",
    "distributed.comm.registry:Backend.resolve_address": "(loc)",
    "distributed.comm.tcp:TCP": "(stream, local_addr, peer_addr, deserialize=True)",
    "distributed.comm.tcp:TCPConnector.connect": "(address, deserialize=True, **connection_args)",
    "distributed.comm.tcp:TCPListener": (
        "(address, comm_handler, deserialize=True, allow_offload=True, default_host=None, "
        "default_port=0, **connection_args)"
    ),
    "distributed.comm.tcp:_getaddrinfo": (
        "(host, port, *, family=0, type=<SocketKind.SOCK_STREAM: 1>)"
    ),
    "distributed.comm.utils:to_frames": "(msg, allow_offload=True, **kwargs)",
    "distributed.batched:BatchedSend": (
        "(interval, loop=None, serializers=None, *, max_buffer_size=None)"
    ),
    "distributed.protocol:dask_deserialize.register_lazy": "(toplevel)",
    "distributed.protocol.compression:maybe_compress": (
        "(payload, *, min_size=10000, sample_size=10000, nsamples=5, min_ratio=0.7, "
        "compression='auto')"
    ),
    "distributed.protocol.pickle:dumps": "(x, *, buffer_callback=None, protocol=5)",
    "distributed.protocol.utils:frame_split_size": "(frame, n=None)",
    "distributed.security:Security.temporary": "(**kwargs)",
}


def signature_of(func: Any, expected: str) -> str:
    """Return the signature without annotations and without ``self``.

    Options that only this package has are omitted if other code cannot use them by accident:
    they are optional, and come after the expected parameters or are keyword-only.  A parameter for
    unknown keywords, whose type is ``Never``, only improves the error for them.
    """
    signature = inspect.signature(func)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    positions = [i for i, parameter in enumerate(parameters) if f"{parameter.name}=" in expected]
    last_expected = max(positions, default=-1)
    shown = [
        parameter.replace(
            annotation=parameter.empty,
            default=_NO_DEFAULT if type(parameter.default) is object else parameter.default,
        )
        for i, parameter in enumerate(parameters)
        # It receives unknown arguments, and raises an error that names them.
        if parameter.annotation != "Never"
        if i in positions
        or (parameter.default is parameter.empty and parameter.annotation != "Never")
        or (parameter.kind is not parameter.KEYWORD_ONLY and i < last_expected)
    ]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


class _NoDefault:
    def __repr__(self) -> str:
        return "<no default>"


_NO_DEFAULT = _NoDefault()


@gen_test()
async def test_functions_are_called_as_the_page_shows():
    async with names_of(PAGE) as names:
        expected = names.signatures | SIGNATURES
        actual = {}
        for path, how in expected.items():
            is_class = path in names.instances
            func = pkgutil.resolve_name(path) if is_class else names.object_at(path)
            actual[path] = signature_of(func, how)
        assert actual == expected


def test_comms_are_the_same_objects_in_each_module():
    assert core.Comm is distributed.comm.Comm is distributed.comm.core.Comm
    assert core.CommClosedError is distributed.comm.core.CommClosedError
    assert core.connect is distributed.comm.connect is distributed.comm.core.connect
    assert core.listen is distributed.comm.listen is distributed.comm.core.listen


def test_connection_errors_are_operating_system_errors():
    assert issubclass(core.RPCClosed, IOError)
    assert issubclass(core.CommClosedError, IOError)
    assert issubclass(distributed.comm.core.FatalCommClosedError, core.CommClosedError)


def test_a_closed_rpc_is_not_reported_as_a_closed_comm():
    assert not issubclass(core.RPCClosed, core.CommClosedError)


def test_backends_are_a_mapping_with_the_transports():
    assert isinstance(distributed.comm.backends, MutableMapping)
    assert {"tcp", "inproc"} <= set(distributed.comm.backends)


def test_tcp_backends_name_their_classes():
    from distributed.comm import tcp

    assert tcp.TCPBackend._connector_class is tcp.TCPConnector
    assert tcp.TCPBackend._listener_class is tcp.TCPListener
    assert issubclass(tcp.TCPBackend, tcp.BaseTCPBackend)


def test_an_unknown_keyword_of_a_server_is_a_type_error():
    with pytest.raises(TypeError, match="no_such_option"):
        core.Server({}, no_such_option=1)


def test_each_name_in_all_exists():
    for name in core.__all__:
        assert getattr(core, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        core.no_such_name  # noqa: B018

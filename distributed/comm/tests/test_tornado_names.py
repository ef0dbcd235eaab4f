"""The private names of Tornado that the comms use.

`PRIVATE_NAMES` is the one list of them.  If a test here fails after an upgrade of Tornado, look at
the reason in the list and at the code that uses the name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from functools import cache

import pytest
import tornado
from tornado import (
    http1connection,
    httpserver,
    httputil,
    iostream,
    netutil,
    tcpclient,
    tcpserver,
    web,
    websocket,
)

from distributed import comm

TORNADO_MODULES = (
    http1connection,
    httpserver,
    httputil,
    iostream,
    netutil,
    tcpclient,
    tcpserver,
    web,
    websocket,
)

#: "Class.name" of an attribute, or "Class.name(parameters)" of a method, and why it is used.
PRIVATE_NAMES = {
    "BaseIOStream._add_io_state(state)": "notices the end of a stream that no task reads from",
    "BaseIOStream._closed": "closed() without the call, several times for each message",
    "BaseIOStream._handle_events(fd, events)": "skips updates of state that a read does not need",
    "BaseIOStream._handle_read()": "receives into the memory of the decoder",
    "BaseIOStream._is_connreset(exc)": "keeps TLS errors out of the log; the comm reports them",
    "BaseIOStream._read_buffer_size": "whether data came while no task was reading",
    "BaseIOStream._signal_closed()": "wakes the reader, which waits for no future of Tornado",
    "BaseIOStream._state": "saves a call of _add_io_state for each message",
    "BaseIOStream._total_write_done_index": "writing() without the calls, for each message",
    "BaseIOStream._total_write_index": "writing() without the calls, for each message",
    "BaseIOStream._write_buffer": "has a queue that takes less memory while it is empty",
    "BaseIOStream._write_futures": "takes less memory while it is empty",
    "SSLIOStream._do_ssl_handshake()": "closes the stream with the error, instead of logging it",
    "SSLIOStream._handshake_reading": "set by _do_ssl_handshake",
    "SSLIOStream._handshake_writing": "set by _do_ssl_handshake",
    "TCPServer._handlers": "lets stop() remove the handlers that add_sockets() has added",
    "TCPServer._sockets": "lets stop() close the sockets; tells the addresses of a server",
    "_StreamBuffer._buffers": "takes less memory while it is empty",
    "WebSocketProtocol13._handle_message(opcode, data)": "answers control frames",
    "WebSocketProtocol13._read_bytes(n)": "counts the bytes, so that Tornado's loop yields",
    "WebSocketProtocol13._receive_frame()": "checks frames, and closes with a code",
    "WebSocketProtocol13._wire_bytes_out": "tells whether a websocket was used since its last ping",
    "WebSocketProtocol._abort()": "disconnects a peer that does not answer a close frame",
}


def split(entry):
    """Return the class, the name and the parameters (None for an attribute) of an entry."""
    class_name, _, rest = entry.partition(".")
    name, parenthesis, parameters = rest.rstrip(")").partition("(")
    (cls,) = {vars(m)[class_name] for m in TORNADO_MODULES if class_name in vars(m)}
    return cls, name, [p for p in parameters.split(", ") if p] if parenthesis else None


@cache
def own_names(cls):
    """Return the private methods of a class, and the private attributes that these assign."""
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node):
            names.add(node.attr)
    return set(filter(is_private, names))


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_self(node):
    value = node.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def names_of_tornado(cls):
    """Return the private names that a class has from its base classes in Tornado."""
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "tornado"]
    return set().union(*map(own_names, bases))


def used_names():
    """Return the private names of Tornado that modules of `distributed.comm` use, with places."""
    classes = {cls for m in TORNADO_MODULES for cls in vars(m).values() if inspect.isclass(cls)}
    anywhere = set().union(*map(names_of_tornado, classes))
    used = {}
    for info in pkgutil.iter_modules(comm.__path__, comm.__name__ + "."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        tree = ast.parse(inspect.getsource(module))
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and not is_self(node) and node.attr in anywhere
        ]
        for body in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            inherited = names_of_tornado(getattr(module, body.name))
            for node in ast.walk(body):
                name = getattr(node, "attr", getattr(node, "name", None))
                if name in inherited and not (
                    isinstance(node, ast.Attribute) and not is_self(node)
                ):
                    found.append(node)
        for node in found:
            name = getattr(node, "attr", getattr(node, "name", None))
            used.setdefault(name, []).append(f"{info.name}, line {node.lineno}")
    return used


@pytest.mark.parametrize("entry", PRIVATE_NAMES)
def test_tornado_has_the_private_names_that_the_comms_use(entry):
    cls, name, parameters = split(entry)
    text = (
        f"Tornado {tornado.version} has changed {cls.__module__}.{entry}, which the comms use: "
        f"{PRIVATE_NAMES[entry]}"
    )
    assert name in own_names(cls), f"{text}. It is missing now."
    if parameters is not None:
        now = list(inspect.signature(getattr(cls, name)).parameters)
        assert now == ["self", *parameters], f"{text}. Its parameters are {now} now."


def test_all_private_names_of_tornado_are_listed():
    used = used_names()
    listed = {split(entry)[1] for entry in PRIVATE_NAMES}
    unlisted = {name: places for name, places in used.items() if name not in listed}
    assert not unlisted, f"list these names in PRIVATE_NAMES, or use public ones: {unlisted}"
    assert not listed - set(used), f"no comm uses these names: {listed - set(used)}"

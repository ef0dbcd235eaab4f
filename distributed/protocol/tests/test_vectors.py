"""Bytes recorded from the original are read as the stated values, and written again."""

from __future__ import annotations

import base64
import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from distributed.core import Status
from distributed.protocol import Serialize, ToPickle, dumps, loads, pickle
from distributed.protocol.utils import Buffer

VECTORS = json.loads((Path(__file__).parent / "data" / "vectors.json").read_text())["vectors"]

# The messages whose bytes were recorded.
WRITTEN: dict[str, Any] = {
    "handshake": {"compression": None, "python": (3, 11, 7), "pickle-protocol": 5},
    "call-add": {"op": "add", "x": 1, "y": 2, "reply": True},
    "reply-int": 3,
    "reply-none": None,
    "close": {"op": "close", "reply": False},
    "bytes": {"op": "echo", "data": b"\x00\xff" * 10},
    "list-becomes-tuple": [{"op": "a"}, {"op": "b", "k": [1, 2.5, "three", None, True]}],
    "set": {"op": "s", "keys": {"a"}},
    "enum": {"op": "s", "status": Status.running},
    "int-keys": {"op": "m", "d": {1: "a", 2: "b"}},
    "serialize-int": {"op": "x", "data": Serialize(123)},
    "serialize-bytes": {"op": "x", "data": Serialize(b"abc" * 20)},
    "serialize-str-list": {"op": "x", "data": Serialize(["a", "b"])},
    "to-pickle": {"op": "x", "data": ToPickle({"k": (1, 2)})},
    "implicit-pickle": {"op": "x", "data": 1 + 2j},
    "nested-serialize": {
        "op": "x",
        "a": Serialize(b"A" * 10),
        "b": {"c": Serialize(b"B" * 10)},
    },
}


def message_bytes(vector: dict[str, Any]) -> bytes:
    if "bytes" in vector:
        return base64.b64decode(vector["bytes"])
    return zlib.decompress(base64.b64decode(vector["zlib-bytes"]))


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    """Return the frames in the recorded bytes, read as the wire format prescribes."""
    packed = message_bytes(vector)
    _, count = struct.unpack_from("<QQ", packed)
    lengths = struct.unpack_from(f"<{count}Q", packed, 16)
    frames = []
    start = 16 + 8 * count
    for length in lengths:
        frames.append(packed[start : start + length])
        start += length
    assert start == len(packed)
    return frames


def joined(frames: list[Buffer]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def named(name: str) -> dict[str, Any]:
    return next(vector for vector in VECTORS if vector["name"] == name)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_value_is_written_as_the_recorded_bytes(name):
    assert joined(dumps(WRITTEN[name])) == frames_of(named(name))


@pytest.mark.parametrize("name", WRITTEN)
def test_recorded_bytes_are_read_as_the_stated_value(name):
    vector = named(name)
    stated = vector["value"].replace("distributed.core.Status", "Status")
    value = loads(frames_of(vector))
    assert value == eval(stated, {"Status": Status})


# A forwarder unpickles a pickled value, so the bytes that it sends differ.
@pytest.mark.parametrize("name", sorted(WRITTEN.keys() - {"to-pickle", "implicit-pickle"}))
def test_recorded_messages_are_passed_on_byte_for_byte(name):
    frames = frames_of(named(name))
    assert joined(dumps(loads(frames, deserialize=False))) == frames


def test_a_recorded_error_reply_arrives_with_its_exception():
    reply = loads(frames_of(named("error-reply")))
    exception = pickle.loads(reply["exception"])
    assert (type(exception), exception.args) == (ValueError, ("boom",))
    assert reply["status"] == "uncaught-error"
    assert reply["exception_text"] == "ValueError('boom')"


def test_a_recorded_traceback_is_none_without_tblib():
    if importlib.util.find_spec("tblib"):
        pytest.skip("tblib is installed")
    reply = loads(frames_of(named("error-reply")))
    assert pickle.loads(reply["traceback"]) is None


@pytest.mark.parametrize(
    "name", sorted({vector["name"] for vector in VECTORS} - {*WRITTEN, "error-reply"})
)
def test_recorded_messages_of_data_libraries_are_passed_on_byte_for_byte(name):
    frames = frames_of(named(name))
    assert joined(dumps(loads(frames, deserialize=False))) == frames

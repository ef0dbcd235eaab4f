"""Cached headers change nothing about the arrays that are sent and received."""

from __future__ import annotations

import sys
import threading

import pytest

from distributed.protocol import (
    dask_deserialize,
    dask_serialize,
    dumps,
    header_cache,
    loads,
    to_serialize,
)
from distributed.protocol.exceptions import FamilyNotAllowedError, HeaderError
from distributed.protocol.families import families
from distributed.protocol.pieces import pack_header, read_header, serialize_and_split
from distributed.protocol.serialize import Serialized

np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def empty_cache():
    # The first array that is seen registers the serializers of numpy.
    dumps(to_serialize(np.ones(1)))
    header_cache._headers.clear()
    header_cache._readers.clear()


def read_only(x):
    x.flags.writeable = False
    return x


ARRAYS = [
    np.arange(5),
    np.arange(6.0).reshape(2, 3),
    np.arange(24, dtype="i2").reshape(2, 3, 4),
    np.array(1.5),
    np.ones((1, 1), dtype="c16"),
    np.ones(3, dtype="?"),
    np.ones(3, dtype=">f8"),
    np.ones(3, dtype="f2"),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
    np.array(["2026-01-01", "NaT"], dtype="M8[D]"),
    np.ones(2, dtype=[("a", "i4"), ("b", "f8")]),
    np.array([1, "a", None], dtype=object),
    np.arange(6).reshape(2, 3).T,
    np.arange(10)[::2],
    np.arange(10)[::-1],
    np.broadcast_to(np.arange(3), (4, 3)),
    np.empty(0),
    np.empty((3, 0, 2), dtype="f4"),
    read_only(np.arange(5)),
]


@pytest.mark.parametrize("x", ARRAYS, ids=lambda x: f"{x.dtype}{x.shape}{x.strides}")
def test_arrays_with_a_cached_header_are_sent_and_read_like_the_first(x):
    header, frames = serialize_and_split(x)
    packed = pack_header({**header, "num-sub-frames": len(frames)})
    for _ in range(3):
        sent = dumps({"x": to_serialize(x)})
        assert [bytes(frame) for frame in sent[1:]] == [packed, *map(bytes, frames)]
        received = loads([memoryview(bytearray(frame)) for frame in sent])["x"]
        np.testing.assert_array_equal(received, x)
        assert (received.dtype, received.shape) == (x.dtype, x.shape)
        assert received.flags.writeable == x.flags.writeable
        if x.flags.c_contiguous:
            assert received.strides == x.strides


def test_arrays_of_one_kind_share_a_cached_header():
    x = np.arange(5)
    received = [loads(dumps(to_serialize(x))) for _ in range(2)]
    assert len(header_cache._headers) == len(header_cache._readers) == 1
    assert [list(array) for array in received] == [[0, 1, 2, 3, 4]] * 2
    # The values are not cached.
    np.testing.assert_array_equal(loads(dumps(to_serialize(x + 1))), x + 1)
    assert len(header_cache._headers) == len(header_cache._readers) == 1


def test_arrays_with_a_cached_header_do_not_share_memory():
    sent = [bytes(frame) for frame in dumps([to_serialize(np.arange(5))] * 2)]
    for _ in range(2):
        first, second = loads([memoryview(bytearray(frame)) for frame in sent])
        first[:] = 0
        assert list(second) == [0, 1, 2, 3, 4]


def test_the_cache_is_bounded():
    for length in range(1, header_cache._CAPACITY + 100):
        loads(dumps(to_serialize(np.ones(length, dtype="u1"))))
    assert len(header_cache._headers) == len(header_cache._readers) == header_cache._CAPACITY


def test_threads_can_add_to_the_cache_at_the_same_time():
    cache = header_cache._Cache()
    errors = []

    def add(first):
        try:
            for i in range(20_000):
                cache.add((first, i), i)
        except RuntimeError as exc:
            errors.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert len(cache) == header_cache._CAPACITY


def test_a_header_that_cannot_be_cached_is_read():
    sent = dumps(to_serialize(np.arange(5)))
    header = read_header(sent[1])
    header["sub-header"]["writeable"] = None
    for _ in range(2):
        received = loads([sent[0], pack_header(header), sent[2]])
        np.testing.assert_array_equal(received, np.arange(5))
    assert len(header_cache._readers) == 0


def test_a_frame_that_does_not_fit_a_cached_header_is_an_error():
    sent = dumps({"x": to_serialize(np.arange(5))})
    loads(sent)
    for wrong in (b"", bytes(39), bytes(41)):
        with pytest.raises(HeaderError):
            loads([*sent[:-1], wrong])
    with pytest.raises(HeaderError):
        loads(sent[:-1])
    np.testing.assert_array_equal(loads(sent)["x"], np.arange(5))


def test_two_values_with_a_cached_header_cannot_share_a_frame():
    sent = dumps([to_serialize(np.arange(5))] * 2)
    loads(sent)
    # Both values refer to the first frames.
    head = sent[0].replace(b"__Serialized__\x03", b"__Serialized__\x01")
    assert head != sent[0]
    with pytest.raises(HeaderError, match="are taken"):
        loads([head, *sent[1:]])


def test_deserializers_are_checked_for_a_cached_header():
    sent = dumps(to_serialize(np.arange(5)))
    loads(sent)
    with pytest.raises(FamilyNotAllowedError):
        loads(sent, deserializers=["pickle"])
    np.testing.assert_array_equal(loads(sent, deserializers=["dask"]), np.arange(5))


def test_a_value_with_a_cached_header_can_stay_serialized():
    sent = dumps(to_serialize(np.arange(5)))
    loads(sent)
    assert type(loads(sent, deserialize=False)) is Serialized


def test_a_cached_header_is_not_used_for_split_or_compressed_frames():
    x = np.zeros(1000)
    assert len(dumps(to_serialize(x))) == 3
    assert len(dumps(to_serialize(x), frame_split_size=4000)) == 4
    compressed = dumps(to_serialize(np.zeros(100_000)), context={"compression": "zlib"})
    assert len(compressed[2]) < 10_000
    np.testing.assert_array_equal(loads(compressed), np.zeros(100_000))


def test_a_cached_header_is_not_used_for_other_serializers():
    loads(dumps(to_serialize(np.arange(5))))
    sent = dumps(to_serialize(np.arange(5)), serializers=["pickle"])
    assert b"pickle" in bytes(sent[1])
    np.testing.assert_array_equal(loads(sent), np.arange(5))


def test_serializers_that_are_registered_later_replace_the_cache(monkeypatch):
    for table in (dask_serialize, dask_deserialize):
        monkeypatch.setattr(table, "_lookup", dict(table._lookup))
        monkeypatch.setattr(table, "resolved", dict(table.resolved))
    x = np.arange(5)
    loads(dumps(to_serialize(x)))
    dask_deserialize.register(np.ndarray, lambda header, frames: "mine")
    assert loads(dumps(to_serialize(x))) == "mine"
    dask_serialize.register(np.ndarray, lambda x: ({"mine": True}, [b"mine"]))
    assert bytes(dumps(to_serialize(x))[2]) == b"mine"


def test_a_dask_family_that_is_registered_later_replaces_the_cache(monkeypatch):
    x = np.arange(5)
    sent = dumps(to_serialize(x))
    loads(sent)
    other = families["dask"]._replace(
        dumps=lambda x: ({}, [b"other"]), loads=lambda header, frames: "other", wants_context=False
    )
    monkeypatch.setitem(families, "dask", other)
    assert loads(sent) == "other"
    assert bytes(dumps(to_serialize(x))[2]) == b"other"

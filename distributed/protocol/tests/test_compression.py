"""Compression of frames."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest

from distributed.base import config
from distributed.protocol import (
    Serialize,
    ToPickle,
    decompress,
    deserialize_bytes,
    dumps,
    loads,
    maybe_compress,
    serialize_bytes,
)
from distributed.protocol.compression import (
    Compression,
    byte_sample,
    compressions,
    get_compression_settings,
)
from distributed.protocol.exceptions import CompressionError, SerializationError
from distributed.protocol.families import Family, families
from distributed.protocol.limits import LoadPolicy, reading
from distributed.protocol.tests.test_vectors import frames_of, named

ZEROS = bytes(100_000)

CODECS = [name for name in compressions if name not in (None, False, "auto")]


def test_zlib_is_always_available():
    assert {None, False, "auto", "zlib"} <= compressions.keys()
    assert compressions[None].name is compressions[False].name is None


@pytest.mark.parametrize("name", ["zlib", "lz4", "zstd"])
def test_recorded_frames_inflate(name):
    if name not in CODECS:
        pytest.skip(f"{name} is not installed")
    value = loads(frames_of(named(f"compressed-{name}")), deserialize=False)["data"]
    assert value.header["compression"] == (name,)
    assert bytes(*decompress(value.header, value.frames)) == bytes(50_000)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_frames_inflate_to_the_original_bytes(name, make):
    codec, frame = maybe_compress(make(ZEROS), compression=name)
    assert codec == name
    assert len(frame) < 10_000
    assert bytes(decompress({"compression": (codec,)}, [frame])[0]) == ZEROS


@pytest.mark.parametrize(
    ("frame", "kwargs"),
    [
        (ZEROS, {"compression": None}),
        (ZEROS, {"compression": False}),
        (bytes(9_999), {}),
        (bytes(50), {"min_size": 51}),
        (os.urandom(100_000), {}),
        (b"", {"min_size": 0}),
        (ZEROS, {"min_ratio": 0.0001}),
        (ZEROS[:20_000] + os.urandom(80_000), {}),
    ],
    ids=lambda x: str(x)[:30] if isinstance(x, dict) else len(x),
)
def test_frames_that_hardly_shrink_are_not_compressed(frame, kwargs):
    codec, same = maybe_compress(frame, **{"compression": "zlib", **kwargs})
    assert codec is None
    assert same is frame


def test_only_a_sample_of_incompressible_data_is_compressed(monkeypatch):
    tried = []

    def compress(frame):
        tried.append(len(frame))
        return bytes(frame)

    monkeypatch.setitem(compressions, "counting", Compression("counting", compress, bytes))
    assert maybe_compress(ZEROS, compression="counting") == (None, ZEROS)
    assert tried == [50_000]


def test_a_frame_that_is_its_own_sample_is_compressed_once(monkeypatch):
    tried = []

    def compress(frame):
        tried.append(len(frame))
        return bytes(1)

    monkeypatch.setitem(compressions, "counting", Compression("counting", compress, bytes))
    assert maybe_compress(ZEROS[:20_000], compression="counting") == ("counting", bytes(1))
    assert tried == [20_000]


def test_a_registered_codec_is_used_for_messages(monkeypatch):
    def halve(frame):
        assert not any(frame)
        return bytes(len(frame) // 2)

    codec = Compression("halving", halve, lambda frame: bytes(2 * len(frame)))
    monkeypatch.setitem(compressions, "halving", codec)
    frames = dumps(Serialize(ZEROS), context={"compression": "halving"})
    assert len(frames[2]) == 50_000
    assert loads(frames) == ZEROS


@pytest.mark.parametrize("name", ["nope", "lz5"])
def test_an_unknown_codec_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=name):
        maybe_compress(ZEROS, compression=name)


class TestOwnCompression:
    """A family that has compressed its frames, and states the codecs in its header."""

    def dumps(self, x):
        return {"compression": ("zlib", None)}, [zlib.compress(x), x]

    @pytest.fixture(autouse=True)
    def family(self, monkeypatch):
        self.seen = []

        def read(header, frames):
            self.seen.append(header)
            return [bytes(frame) for frame in frames]

        monkeypatch.setitem(families, "own", Family(self.dumps, read, False))

    @pytest.mark.parametrize("codec", [None, *CODECS])
    @pytest.mark.parametrize("split_size", [None, 30_000])
    def test_is_kept_in_messages(self, codec, split_size):
        frames = dumps(
            Serialize(ZEROS),
            serializers=["own"],
            context={"compression": codec},
            frame_split_size=split_size,
        )
        assert frames[2] == zlib.compress(ZEROS)
        assert loads([bytes(frame) for frame in frames]) == [ZEROS, ZEROS]
        assert self.seen[0]["compression"][0] == "zlib"

    @pytest.mark.parametrize("codec", [None, *CODECS])
    def test_is_kept_in_stored_values(self, codec):
        stored = serialize_bytes(ZEROS, serializers=["own"], compression=codec)
        assert deserialize_bytes(stored) == [ZEROS, ZEROS]

    @pytest.mark.parametrize("names", [(), ("zlib",), "zlib", 5])
    def test_that_does_not_state_a_codec_for_each_frame_is_refused(self, names, monkeypatch):
        monkeypatch.setitem(
            families, "own", Family(lambda x: ({"compression": names}, [x, x]), None, False)
        )
        with pytest.raises(SerializationError, match="compression of 2 frames"):
            dumps(Serialize(ZEROS), serializers=["own"])


def test_arrays_that_were_compressed_with_lz4_are_writable_without_a_copy():
    if "lz4" not in CODECS:
        pytest.skip("lz4 is not installed")
    np = pytest.importorskip("numpy")
    (frame,) = decompress({"compression": ("lz4",)}, [compressions["lz4"].compress(ZEROS)])
    assert not memoryview(frame).readonly
    x = np.zeros(100_000)
    for wrap in (Serialize, ToPickle, lambda x: x):
        arrived = loads([bytes(f) for f in dumps({"x": wrap(x)}, context={"compression": "lz4"})])
        assert arrived["x"].flags.writeable


class TestDecompress:
    def test_returns_frames_that_are_not_compressed(self):
        frames = [b"a", zlib.compress(b"b")]
        assert decompress({"compression": (None, "zlib")}, frames) == [b"a", b"b"]
        assert decompress({}, frames) == frames
        assert decompress({"compression": ()}, []) == []

    @pytest.mark.parametrize("name", ["nope", 5, ["zlib"], b"zlib", True])
    def test_refuses_a_codec_that_is_not_installed(self, name):
        with pytest.raises(CompressionError, match="frame 0 is compressed with"):
            decompress({"compression": (name,)}, [b"x"])

    @pytest.mark.parametrize("names", [("zlib",), ("zlib",) * 3, "zlib", 5, {"a": 1}])
    def test_refuses_a_header_without_a_codec_for_each_frame(self, names):
        with pytest.raises(CompressionError, match="2 frames"):
            decompress({"compression": names}, [b"x", b"y"])

    @pytest.mark.parametrize("frame", [b"", b"x", zlib.compress(ZEROS)[:-5]])
    def test_refuses_a_frame_that_does_not_inflate(self, frame):
        with pytest.raises(CompressionError, match=r"frame 0 .* does not inflate with zlib"):
            decompress({"compression": ("zlib",)}, [frame])


class TestSettings:
    @pytest.mark.parametrize(("value", "name"), [(False, None), (None, None), ("zlib", "zlib")])
    def test_give_the_name_of_a_codec_or_none(self, value, name):
        with config.set({"distributed.comm.compression": value}):
            assert get_compression_settings("distributed.comm.compression") == name

    def test_auto_is_the_best_installed_codec(self):
        with config.set({"distributed.comm.compression": "auto"}):
            expected = compressions["auto"].name
            assert get_compression_settings("distributed.comm.compression") == expected

    @pytest.mark.parametrize("value", [True, "foo", "", ["zlib"]])
    def test_refuse_an_invalid_value(self, value):
        with (
            config.set({"distributed.comm.compression": value}),
            # The text of the original, which users and its tests match.
            pytest.raises(
                ValueError,
                match=r"Invalid compression setting distributed.comm.compression=.*\. "
                r"Valid options are None,False,'auto','zlib'",
            ),
        ):
            get_compression_settings("distributed.comm.compression")


class TestSample:
    def test_is_spread_over_all_bytes(self):
        data = bytes(i // 1000 for i in range(100_000))
        sample = byte_sample(memoryview(data), 100, 5)
        assert len(sample) == 500
        assert [min(sample[i : i + 100]) // 20 for i in range(0, 500, 100)] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("length", [0, 1, 49, 50])
    def test_of_few_bytes_is_all_of_them(self, length):
        data = os.urandom(length)
        assert byte_sample(memoryview(data), 10, 5) == data

    def test_of_nothing_is_empty(self):
        assert len(byte_sample(memoryview(b"abc"), 10, 0)) == 0


def compressed(name, data):
    return bytes(compressions[name].compress(data))


class TestLimit:
    """The limit on the size of inflated frames."""

    @pytest.mark.parametrize("name", CODECS)
    @pytest.mark.parametrize("data", [b"", b"a", ZEROS, os.urandom(1000)], ids=len)
    def test_allows_frames_of_exactly_that_size(self, name, data):
        with reading(LoadPolicy(max_inflated_size=len(data))):
            assert decompress({"compression": (name,)}, [compressed(name, data)]) == [data]

    @pytest.mark.parametrize("name", CODECS)
    def test_refuses_one_byte_more(self, name):
        frame = compressed(name, ZEROS)
        with (
            reading(LoadPolicy(max_inflated_size=len(ZEROS) - 1)),
            pytest.raises(CompressionError, match=r"max-inflated-size' allows 99,999 bytes"),
        ):
            decompress({"compression": (name,)}, [frame])

    @pytest.mark.parametrize("name", CODECS)
    def test_holds_for_all_frames_of_a_message(self, name):
        msg = {"x": Serialize(ZEROS), "y": [Serialize(ZEROS), Serialize(ZEROS)]}
        frames = dumps(msg, context={"compression": name})
        assert loads(frames, policy=LoadPolicy(max_inflated_size=300_000))["x"] == ZEROS
        with pytest.raises(CompressionError, match="200,000 are already used"):
            loads(frames, policy=LoadPolicy(max_inflated_size=299_999))

    def test_holds_for_each_message_separately(self):
        frames = dumps(Serialize(ZEROS), context={"compression": "zlib"})
        for _ in range(3):
            assert loads(frames, policy=LoadPolicy(max_inflated_size=100_000)) == ZEROS

    @pytest.mark.parametrize("name", CODECS)
    def test_is_checked_before_a_frame_is_inflated(self, name, memory_below):
        frame = compressed(name, bytes(200_000_000))
        with (
            memory_below(5_000_000),
            reading(LoadPolicy(max_inflated_size=1_000_000)),
            pytest.raises(CompressionError),
        ):
            decompress({"compression": (name,)}, [frame])

    def test_can_be_switched_off(self):
        with reading(LoadPolicy(max_inflated_size=None)):
            assert decompress({"compression": ("zlib",)}, [zlib.compress(ZEROS)]) == [ZEROS]

    def test_is_passed_to_codecs_that_take_it(self, monkeypatch):
        asked = []

        def inflate(frame, max_size=None):
            asked.append(max_size)
            return bytes(frame)

        monkeypatch.setitem(compressions, "asking", Compression("asking", bytes, inflate))
        with reading(LoadPolicy(max_inflated_size=10)):
            decompress({"compression": ("asking", "asking")}, [b"abc", b"d"])
        assert asked == [10, 7]

    def test_is_checked_after_codecs_that_do_not_take_it(self, monkeypatch):
        monkeypatch.setitem(compressions, "plain", Compression("plain", bytes, lambda frame: ZEROS))
        with (
            reading(LoadPolicy(max_inflated_size=10)),
            pytest.raises(CompressionError, match="inflates to 100,000 bytes"),
        ):
            decompress({"compression": ("plain",)}, [b"abc"])

    @pytest.mark.parametrize(
        ("name", "frame"),
        [
            ("lz4", b"\xff\xff\xff\x7f" + bytes(8)),
            ("snappy", b"\xff\xff\xff\xff\x0f" + bytes(8)),
            ("snappy", b"\xff" * 9),
        ],
    )
    def test_impossible_sizes_are_refused_without_a_limit(self, name, frame):
        if name not in CODECS:
            pytest.skip(f"{name} is not installed")
        with (
            reading(LoadPolicy(max_inflated_size=None)),
            pytest.raises(CompressionError, match=r"cannot inflate to|start with its size"),
        ):
            decompress({"compression": (name,)}, [frame])


class TestZstd:
    def setup_method(self):
        self.zstandard = pytest.importorskip("zstandard")

    def unsized(self, data):
        return self.zstandard.ZstdCompressor(write_content_size=False).compress(data)

    @pytest.mark.parametrize("data", [b"", ZEROS, os.urandom(3_000_000)], ids=len)
    def test_frames_without_their_size_inflate(self, data):
        with reading(LoadPolicy(max_inflated_size=len(data))):
            assert decompress({"compression": ("zstd",)}, [self.unsized(data)]) == [data]

    def test_frames_without_their_size_are_bounded(self, memory_below):
        frame = self.unsized(bytes(100_000_000))
        with (
            memory_below(55_000_000),
            reading(LoadPolicy(max_inflated_size=20_000_000)),
            pytest.raises(CompressionError, match="max-inflated-size"),
        ):
            decompress({"compression": ("zstd",)}, [frame])

    def test_incomplete_frames_are_refused(self):
        for frame in (self.unsized(os.urandom(1000)), compressed("zstd", os.urandom(1000))):
            with pytest.raises(CompressionError, match="does not inflate with zstd"):
                decompress({"compression": ("zstd",)}, [frame[:-5]])

    def test_the_level_is_configured(self):
        code = (
            "from distributed.protocol import maybe_compress\n"
            "text = b''.join(b'%d ' % (i * i) for i in range(50_000))\n"
            "print(len(maybe_compress(text, compression='zstd')[1]))"
        )
        sizes = [
            int(
                subprocess.run(
                    [sys.executable, "-c", code],
                    env={**os.environ, "DASK_DISTRIBUTED__COMM__ZSTD__LEVEL": level},
                    capture_output=True,
                    check=True,
                ).stdout
            )
            for level in ("1", "19")
        ]
        assert sizes[0] > sizes[1]

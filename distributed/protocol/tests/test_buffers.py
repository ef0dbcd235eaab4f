"""Splitting, merging and packing buffers."""

from __future__ import annotations

import struct
from array import array

import pytest

from distributed.base import config
from distributed.protocol import utils
from distributed.protocol.exceptions import FramingError
from distributed.protocol.utils import (
    frame_split_size,
    host_array,
    host_array_from_buffers,
    join_frames,
    merge_memoryviews,
    pack_frames,
    pack_frames_prelude,
    unpack_frames,
)


@pytest.fixture
def forget_size():
    """Read the configured size at its next use, and again after the test."""
    utils.default_shard_size.cache_clear()
    yield
    utils.default_shard_size.cache_clear()


class TestSplit:
    @pytest.mark.parametrize(
        ("frame", "n", "sizes"),
        [
            (b"12345", 2, [2, 2, 1]),
            (b"1234", 2, [2, 2]),
            (b"12", 2, [2]),
            (b"", 2, [0]),
            (array("d", range(5)), 20, [16, 16, 8]),
            (array("d", range(3)), 7, [8, 8, 8]),
            (memoryview(bytes(24)).cast("B", (4, 6)), 10, [10, 10, 4]),
        ],
    )
    def test_pieces_hold_whole_elements_and_are_not_too_large(self, frame, n, sizes):
        pieces = frame_split_size(frame, n)
        assert [piece.nbytes for piece in pieces] == sizes
        assert b"".join(pieces) == memoryview(frame).tobytes()

    def test_pieces_are_views(self):
        memory = bytearray(100)
        assert all(piece.obj is memory for piece in frame_split_size(memory, 30))

    @pytest.mark.parametrize("n", [0, -1])
    def test_a_size_that_is_not_positive_is_an_error(self, n):
        with pytest.raises(ValueError, match=f"{n} bytes"):
            frame_split_size(b"abc", n)

    def test_the_default_size_is_configured(self, forget_size):
        with config.set({"distributed.comm.shard": "10 B"}):
            assert [len(piece) for piece in frame_split_size(bytes(25))] == [10, 10, 5]
            assert utils.BIG_BYTES_SHARD_SIZE == 10

    @pytest.mark.parametrize("size", [0, None])
    def test_an_invalid_configured_size_is_an_error_that_names_the_key(self, forget_size, size):
        with (
            config.set({"distributed.comm.shard": size}),
            pytest.raises(ValueError, match=r"distributed\.comm\.shard"),
        ):
            frame_split_size(b"abc")


class TestMerge:
    memory = bytearray(b"0123456789")
    view = memoryview(memory)

    @pytest.mark.parametrize(
        ("views", "merged"),
        [
            ([view[:3], view[3:6]], b"012345"),
            ([view[4:6], view[6:7], view[7:]], b"456789"),
            ([view], b"0123456789"),
            ([view[:0], view[2:5], view[5:5], view[5:6]], b"2345"),
            ([view[:2].cast("H"), view[2:4].cast("H")], b"0123"),
        ],
    )
    def test_adjacent_views_become_one_view(self, views, merged):
        joined = merge_memoryviews(views)
        assert joined.obj is self.memory
        assert joined.tobytes() == merged
        assert not joined.readonly

    @pytest.mark.parametrize("views", [[], [view[2:2]], [view[5:5], view[:0]]])
    def test_empty_views_become_an_empty_view(self, views):
        assert merge_memoryviews(views).nbytes == 0

    @pytest.mark.parametrize(
        "views",
        [
            [view[:3], view[4:6]],
            [view[3:6], view[:3]],
            [view[:3], view[:3]],
            [view[:3], memoryview(bytearray(b"abc"))],
            [view[:2], view[2:4].cast("H")],
            [view[:4:2], view[4:]],
            [view[:4].cast("B", (2, 2)), view[4:]],
        ],
    )
    def test_views_that_are_not_adjacent_are_refused(self, views):
        with pytest.raises(ValueError, match=r"memoryview|format"):
            merge_memoryviews(views)

    @pytest.mark.parametrize(
        ("views", "text"),
        [
            (
                [view[:3], view[4:]],
                r"memoryview 1 does not start where the previous ends. Expected",
            ),
            ([view[:3], view[2:]], r"starts -1 byte\(s\) away"),
            ([view[:3], memoryview(bytearray(b"abc"))], "1: memoryview has different buffer"),
            ([view[:2].cast("H"), view[2:]], "1: inconsistent format: B vs H"),
            ([view[:4:2], view[4:]], "0: memoryview non-contiguous"),
            ([view[:4].cast("B", (2, 2)), view[4:]], "0: memoryview has 2 dimensions, not 1"),
        ],
    )
    def test_the_texts_of_errors_are_those_of_the_original(self, views, text):
        with pytest.raises(ValueError, match=text):
            merge_memoryviews(views)

    def test_the_format_of_the_views_is_kept(self):
        whole = memoryview(array("H", range(5)))
        assert merge_memoryviews([whole[:2], whole[2:4]]).tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("frames", [[b"a", b"b"], [view[:1], bytearray(b"1")]])
    def test_other_buffers_are_refused(self, frames):
        with pytest.raises(TypeError, match="expected memoryview; got <class 'byte"):
            merge_memoryviews(frames)

    @pytest.mark.parametrize("owner", [b"0123456789", bytearray(b"0123456789")])
    def test_merged_views_stay_read_only(self, owner):
        view = memoryview(owner)
        joined = merge_memoryviews([view[:2].toreadonly(), view[2:4]])
        assert joined.readonly
        assert joined.obj is owner

    def test_views_of_an_array_are_merged(self):
        owner = array("d", range(4))
        view = memoryview(owner).cast("B")
        joined = merge_memoryviews([view[8:16], view[16:]])
        owner[3] = 5.0
        assert joined.cast("d").tolist() == [1.0, 2.0, 5.0]

    def test_frames_that_are_not_adjacent_are_joined_by_copying(self):
        joined = join_frames([b"ab", self.view[:2], b""])
        assert bytes(joined) == b"ab01"
        assert not joined.readonly


def test_host_arrays_are_writable_memory():
    memory = host_array(5)
    memory[:] = b"abcde"
    assert (memory.tobytes(), memory.format) == (b"abcde", "B")
    assert host_array(0).nbytes == 0
    assert host_array_from_buffers([b"a", bytearray(b"bc"), memoryview(b"")]) == b"abc"
    assert host_array_from_buffers([]).nbytes == 0
    # Large frames are copied in several steps.
    large = bytes(range(256)) * 10_000
    assert (
        host_array_from_buffers([b"a", large, large[:1_500_000]])
        == b"a" + large + large[:1_500_000]
    )


class TestPack:
    frames = (b"ab", b"", memoryview(array("H", [1])), bytearray(b"c"))

    def test_the_prelude_states_the_number_and_the_lengths_of_frames(self):
        assert pack_frames_prelude(self.frames) == struct.pack("<5Q", 4, 2, 0, 2, 1)

    def test_packed_frames_are_unpacked_without_a_copy(self):
        packed = pack_frames(self.frames)
        unpacked = unpack_frames(packed)
        assert [bytes(f) for f in unpacked] == [b"ab", b"", b"\x01\x00", b"c"]
        assert all(f.obj is packed for f in unpacked)

    def test_bytes_after_the_last_frame_are_dropped_or_appended(self):
        packed = pack_frames([b"ab"]) + b"zz"
        assert unpack_frames(packed) == [b"ab"]
        assert unpack_frames(packed, remainder=True) == [b"ab", b"zz"]

    @pytest.mark.parametrize("frames", [[], [b"ab"]])
    def test_the_remainder_is_appended_even_if_it_is_empty(self, frames):
        # The original's p2p shuffle reads one value after the other until nothing remains.
        packed = pack_frames(frames)
        assert unpack_frames(packed, remainder=True) == [*frames, b""]
        assert unpack_frames(packed, remainder=True, partial=True) == ([*frames, b""], [])

    def test_with_partial_the_last_frames_may_be_missing(self):
        packed = pack_frames([b"ab", b"c", b"def"])
        assert unpack_frames(packed[:-3], partial=True) == ([b"ab", b"c"], [3])
        assert unpack_frames(packed, partial=True) == ([b"ab", b"c", b"def"], [])

    @pytest.mark.parametrize("cut", [1, 3, 6, 15, 29, 30, 36])
    def test_incomplete_bytes_are_refused(self, cut):
        packed = pack_frames([b"ab", b"c"])
        with pytest.raises(FramingError):
            unpack_frames(packed[: len(packed) - min(cut, len(packed))])

    @pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**32])
    def test_a_number_of_frames_that_does_not_fit_is_refused(self, count):
        with pytest.raises(FramingError, match="too few"):
            unpack_frames(struct.pack("<Q", count))

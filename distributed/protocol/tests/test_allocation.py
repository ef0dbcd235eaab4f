"""Memory for received data: how it is allocated, released and used again."""

from __future__ import annotations

import gc
import mmap
import threading

import pytest

from distributed.protocol import allocation
from distributed.protocol.allocation import KEPT_SIZE, MAPPED_SIZE, allocate
from distributed.protocol.exceptions import FramingError
from distributed.protocol.utils import merge_memoryviews

keeps = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="needs MADV_FREE")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(allocation, "_kept", [])


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("size", [0, 1, 100, MAPPED_SIZE - 1, MAPPED_SIZE, KEPT_SIZE + 1])
def test_memory_can_be_written_split_and_merged(size):
    view = allocate(size)
    assert (view.nbytes, view.ndim, view.format, view.readonly) == (size, 1, "B", False)
    view[:] = b"x" * size
    assert view == b"x" * size
    if size:
        merged = merge_memoryviews([view[: size // 2], view[size // 2 :]])
        assert (merged.nbytes, merged.format) == (size, "B")
        merged[:1] = b"y"
        assert view[:2] == b"yx"[:size]


def test_a_failed_allocation_is_one_error(capfd):
    for size in (2**60, 2**70):
        with pytest.raises(FramingError, match="cannot allocate"):
            allocate(size)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [MAPPED_SIZE - 1, MAPPED_SIZE])
def test_unwritten_memory_is_not_resident(size):
    before = resident()
    views = [allocate(size) for _ in range(20)]
    for view in views:
        view[0] = 1
    assert resident() - before < 20 * 100_000


@keeps
def test_released_memory_is_reused():
    view = allocate(MAPPED_SIZE + 5)
    view[:] = b"x" * view.nbytes
    part = view[10:20]
    del view
    assert allocation._kept == []
    del part
    (kept,) = allocation._kept
    before = resident()
    again = allocate(MAPPED_SIZE)
    assert again.nbytes == MAPPED_SIZE
    assert allocation._kept == []
    again[:] = b"y" * again.nbytes
    assert kept[:3] == b"yyy"
    assert resident() - before < MAPPED_SIZE // 4


@keeps
def test_memory_in_use_is_not_reused():
    views = [allocate(MAPPED_SIZE) for _ in range(3)]
    for i, view in enumerate(views):
        view[:1] = bytes([i])
    assert [view[0] for view in views] == [0, 1, 2]


@keeps
def test_a_cached_block_serves_requests_of_about_its_size():
    allocate(3 * MAPPED_SIZE)
    (kept,) = allocation._kept
    small, large = allocate(MAPPED_SIZE), allocate(3 * MAPPED_SIZE + 1)
    assert allocation._kept == [kept]
    del small, large
    view = allocate(3 * MAPPED_SIZE - 1)
    assert kept not in allocation._kept
    del view


@keeps
def test_the_size_of_cached_blocks_is_limited():
    allocate(KEPT_SIZE + 1)
    assert allocation._kept == []
    views = [allocate(MAPPED_SIZE) for _ in range(KEPT_SIZE // MAPPED_SIZE + 3)]
    del views
    assert sum(map(len, allocation._kept)) == KEPT_SIZE


@keeps
def test_threads_and_the_garbage_collector_may_release_memory_at_any_time():
    def use():
        for i in range(50):
            view = allocate(MAPPED_SIZE)
            view[0] = i
            cycle = [view]
            cycle.append(cycle)
            assert view[0] == i

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert sum(map(len, allocation._kept)) <= KEPT_SIZE

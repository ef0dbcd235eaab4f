"""Regions of shared memory: how they are found, sealed, mapped and freed."""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
import threading

import pytest

from distributed.base import shared_memory
from distributed.base.shared_memory import adopt, create, create_copy, create_frozen, find

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
    pytest.mark.skipif(not shared_memory.is_supported(), reason="the system forbids it"),
]

LARGE = 2**40


def maps() -> int:
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum("/memfd:distributed" in line for line in file)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def received(view: memoryview, **kwargs) -> memoryview:
    """Return the memory of a region as if another process had sent it."""
    found = find(view)
    assert found is not None
    memory = found.memory
    memory.seal_for_sending()
    return adopt(os.dup(memory.descriptor), max_bytes=LARGE, **kwargs)


def as_stranger(view: memoryview, **kwargs) -> memoryview:
    """As `received`, but without the knowledge that this process has mapped the region."""
    known = dict(shared_memory._by_file)
    shared_memory._by_file.clear()
    try:
        return received(view, **kwargs)
    finally:
        shared_memory._by_file.update(known)


def test_a_view_of_a_region_is_found_by_its_address():
    memory, other = create(10_000), create(5000)
    assert find(memory).offset == 0
    assert find(memory[100:200]).offset == 100
    assert find(memory[100:200].cast("I")[1:3]).offset == 104
    assert find(memory[9999:]).memory is find(memory).memory is not find(other).memory
    assert find(memory[5:5]) is None
    assert find(memoryview(bytearray(10_000))) is None


def test_many_regions_come_and_go():
    regions = {i: create(4096 * (1 + i % 3)) for i in range(300)}
    for i in range(0, 300, 2):
        del regions[i]
    regions.update({i: create(4096) for i in range(300, 500)})
    for memory in regions.values():
        assert find(memory[10:]).memory is find(memory).memory
        assert find(memory).memory.nbytes == len(memory)
    assert len({find(memory).memory.address for memory in regions.values()}) == len(regions)
    before = maps()
    assert before >= len(regions)
    regions.clear()
    del memory
    assert maps() <= before - 350


def test_regions_are_created_and_found_in_several_threads():
    errors = []

    def work():
        for i in range(200):
            memory = create(4096)
            memory[0] = i % 256
            if find(memory[1:]) is None:
                errors.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_region_is_freed_with_its_last_view():
    before = maps(), open_descriptors()
    memory = create(1_000_000)
    part = memory[5:10]
    del memory
    assert (maps(), open_descriptors()) == (before[0] + 1, before[1] + 1)
    part[:] = b"hello"
    del part
    assert (maps(), open_descriptors()) == before


def test_the_size_of_a_region_cannot_change():
    memory = create(10_000)
    descriptor = find(memory).memory.descriptor
    for size in (0, 20_000):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)


def test_a_received_region_is_read_only_unless_the_sender_asks_for_more():
    memory = create(10_000)
    memory[:5] = b"hello"
    view = as_stranger(memory)
    assert view.readonly
    assert bytes(view[:5]) == b"hello"
    writable = as_stranger(memory, peers_may_write=True)
    writable[:5] = b"HELLO"
    assert bytes(memory[:5]) == bytes(view[:5]) == b"HELLO"
    assert find(writable).memory.peers_may_write
    assert not find(view).memory.peers_may_write


def test_a_region_that_this_process_has_is_not_mapped_again():
    before = maps()
    memory = create(10_000)
    views = [received(memory) for _ in range(5)]
    assert maps() == before + 1
    assert all(view.readonly and find(view).memory is find(memory).memory for view in views)


def test_frozen_memory_cannot_be_mapped_for_writing():
    memory = create(10_000)
    assert find(memory).memory.try_to_freeze()
    assert find(memory).memory.try_to_freeze()
    assert as_stranger(memory, peers_may_write=True).readonly
    copy = create_frozen(memoryview(b"hello"))
    assert copy.readonly
    assert bytes(copy) == b"hello"
    with pytest.raises(PermissionError):
        os.pwrite(find(copy).memory.descriptor, b"x", 0)
    assert bytes(as_stranger(copy, peers_may_write=True)) == b"hello"


def test_memory_that_was_sent_cannot_be_frozen():
    memory = create(10_000)
    find(memory).memory.seal_for_sending()
    assert not find(memory).memory.try_to_freeze()


def test_received_regions_keep_no_descriptor_if_there_are_too_many():
    memory = create(10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    # Regions may take half of the descriptors: all that are open now may be those of regions.
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * before + 20, hard))
    try:
        views = [as_stranger(memory) for _ in range(before + 60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert find(views[0]).memory.descriptor >= 0
    assert find(views[-1]).memory.descriptor == -1
    assert not find(views[-1]).memory.try_to_freeze()


def test_there_is_no_shared_memory_if_no_file_can_be_opened():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert create(10_000) is None
        assert create_frozen(memoryview(b"hello")) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_own_regions_leave_descriptors_for_other_purposes():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * before + 40, hard))
    try:
        views = [create(4096) for _ in range(2 * before + 40)]
        copy = create_copy(memoryview(b"hello"))
        frozen = create_frozen(memoryview(b"hello"))
        left = os.dup(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close(left)
    assert views[0] is not None
    assert views[-1] is copy is frozen is None


@pytest.mark.parametrize("nbytes", [2**50, 2**62, 2**63, 2**70])
def test_impossible_sizes_are_a_memory_error_and_leave_no_descriptor(nbytes):
    before = open_descriptors()
    with pytest.raises(MemoryError):
        create(nbytes)
    assert open_descriptors() == before


def test_two_threads_may_make_the_seals_final_at_the_same_time(monkeypatch):
    view = create(4096)
    memory = find(view).memory
    seals = memory._seals()
    memory.seal_for_sending()
    answers = iter([seals])
    real = memory._seals
    monkeypatch.setattr(shared_memory.Memory, "_seals", lambda self: next(answers, None) or real())
    memory.seal_for_sending()
    assert next(answers, None) is None


def test_memory_that_cannot_be_mapped_leaves_other_mappings_as_they_are():
    view = create_frozen(memoryview(b"hello"))
    memory = find(view).memory
    before = maps()
    with pytest.raises(PermissionError):
        shared_memory._map(memory.descriptor, memory.nbytes, True, shared_memory.mmap.mmap)
    assert maps() == before
    assert not shared_memory._unusable


@pytest.mark.parametrize("make", [create_copy, create_frozen])
def test_a_copy_that_finds_no_memory_is_a_memory_error_and_leaves_no_descriptor(make, monkeypatch):
    def refuse(descriptor, content, offset):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", refuse)
    before = open_descriptors()
    with pytest.raises(MemoryError):
        make(memoryview(b"hello"))
    assert open_descriptors() == before


def test_a_copy_does_not_touch_its_mapping():
    content = bytes(range(256)) * 4096
    view = create_copy(memoryview(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    copies = [create_copy(memoryview(content)) for _ in range(10)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # It has 2560 pages.
    assert faults < 500
    assert all(copy == content for copy in (view, *copies))
    view[:5] = b"hello"
    assert received(view)[:5] == b"hello"

"""Regions that are lent to another process come back when it has dropped their memory."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from distributed.base import memory_pool, shared_memory
from distributed.base.memory_pool import HEADER_SIZE, Borrower, lend

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
    pytest.mark.skipif(not shared_memory.is_supported(), reason="the system forbids it"),
]

MB = 2**20
LARGE = 2**40


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """An empty pool of at most 10 MB, whose regions receivers keep mapped up to 5 MB."""
    pool = []
    monkeypatch.setattr(memory_pool, "_pool", pool)
    monkeypatch.setattr(memory_pool, "MAX_POOL_SIZE", 10 * MB)
    monkeypatch.setattr(memory_pool, "MAX_KEPT_SIZE", 5 * MB)
    return pool


def is_open():
    return True


def borrowed(borrower, loan):
    """Return the data of a loan, as the process gets it that it is lent to."""
    loan.found.memory.seal_for_sending()
    return borrower.borrow(os.dup(loan.found.memory.descriptor), LARGE)[HEADER_SIZE:]


def maps():
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum("/memfd:distributed" in line for line in file)


def test_a_region_comes_back_with_its_last_view():
    loan = lend(MB, is_open)
    loan.data[:5] = b"hello"
    borrower = Borrower()
    view = borrowed(borrower, loan)
    assert bytes(view[:5]) == b"hello"
    assert not view.readonly
    part = view[3:10]
    del view
    assert lend(MB, is_open) is not loan
    del part
    assert lend(MB, is_open) is loan


def test_a_region_of_about_the_size_is_used_again():
    loan = lend(MB, is_open)
    loan.give_back()
    assert lend(MB // 3, is_open) is not loan
    assert lend(MB // 2, is_open) is loan


def test_regions_that_are_lent_limit_the_pool(pool):
    loans = [lend(3 * MB, is_open) for _ in range(3)]
    assert None not in loans
    assert lend(3 * MB, is_open) is None
    loans[1].give_back()
    # Another size takes the place of a free region.
    assert lend(MB, is_open) is not None
    assert loans[1] not in pool
    assert lend(20 * MB, is_open) is None


def test_regions_lent_over_a_connection_that_has_ended_are_given_up(pool):
    state = [True]
    loan = lend(MB, lambda: state[0])
    free = lend(MB, lambda: state[0])
    free.give_back()
    state[0] = False
    assert lend(MB, is_open) is free
    assert loan not in pool


def test_a_receiver_keeps_mappings_until_the_connection_ends():
    before = maps()
    borrower = Borrower()
    loan = lend(MB, is_open)
    for _ in range(3):
        borrowed(borrower, loan)
        assert maps() == before + 2
    other = lend(3 * MB, is_open)
    borrowed(borrower, other)
    assert maps() == before + 4
    # More than the receiver keeps: it forgets the older ones.
    other.take(is_open)
    borrowed(borrower, lend(3 * MB, is_open))
    assert maps() == before + 4
    del borrower
    assert maps() == before + 3


def test_a_receiver_forgets_regions_that_the_sender_has_dropped():
    borrower = Borrower()
    loan = lend(MB, is_open)
    view = borrowed(borrower, loan)
    loan.drop()
    before = maps()
    borrowed(borrower, lend(MB, is_open))
    del view
    # The mapping of the dropped region has ended, and there are two of the new one.
    assert maps() == before + 1


def test_memory_that_was_borrowed_is_not_passed_on_as_shared():
    view = borrowed(Borrower(), lend(MB, is_open))
    assert not shared_memory.is_shared(view)


def in_fork(function):
    """Call *function* in a process that is forked here; return whether it was true."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if function() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_give_back_what_its_parent_uses(pool):
    loan = lend(MB, is_open)
    loan.data[:5] = b"hello"
    views = [borrowed(Borrower(), loan)]
    assert in_fork(lambda: views.pop() is not None and not gc.collect() < 0)
    assert lend(MB, is_open) is not loan
    assert bytes(views[0][:5]) == b"hello"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_keeps_memory_that_its_parent_has_dropped(pool):
    loan = lend(MB, is_open)
    loan.data[:5] = b"hello"
    views = [borrowed(Borrower(), loan)]
    parent, child = os.pipe()

    def read_later():
        os.close(child)
        return os.read(parent, 1) == b"" and bytes(views[0][:5]) == b"hello"

    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if read_later() else 1
        finally:
            os._exit(status)
    views.clear()
    other = lend(MB, is_open)
    other.data[:5] = b"other"
    os.close(child)
    os.close(parent)
    assert os.waitpid(pid, 0)[1] == 0
    assert other is not loan
    assert loan not in pool


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_lends_other_regions_than_its_parent(pool):
    loan = lend(MB, is_open)
    loan.give_back()
    assert in_fork(lambda: lend(MB, is_open).found.memory is not loan.found.memory)
    assert lend(MB, is_open) is loan


def test_memory_without_room_for_data_is_refused():
    memory = shared_memory.create(HEADER_SIZE)
    found = shared_memory.find(memory)
    found.memory.seal_for_sending()
    with pytest.raises(ValueError, match="no room"):
        Borrower().borrow(os.dup(found.memory.descriptor), LARGE)
    frozen = shared_memory.create_frozen(memoryview(bytes(2 * HEADER_SIZE)))
    with pytest.raises(ValueError, match="for writing"):
        Borrower().borrow(os.dup(shared_memory.find(frozen).memory.descriptor), LARGE)
    with pytest.raises(ValueError, match="not memory"):
        Borrower().borrow(os.open("/dev/zero", os.O_RDWR), LARGE)

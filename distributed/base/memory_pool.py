"""Regions of shared memory that are lent to other processes, and used again when they come back.

Copying into memory that a process has written to before is several times as fast as copying into
new memory, whose pages the kernel has to find and clear.  So a process that sends large arrays
keeps the regions that it has copied them into.

The first byte of a region says whether it is lent.  The sender sets it; the receiver
(:class:`Borrower`) resets it when its last view is gone.  This takes no message.  A region that is
lent over a connection that has ended is given up, since the receiver may still have it.

After a fork, two processes have the pool, and two have what was borrowed.  So the child begins with
an empty pool, and regions that are borrowed at that time are never given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Final

from distributed.base.shared_memory import Found, create, find, map_received

__all__ = ["HEADER_SIZE", "MAX_KEPT_SIZE", "MAX_POOL_SIZE", "Borrower", "Loan", "lend"]

#: Size in bytes of the beginning of a region, which has the state; the data follows.
HEADER_SIZE: Final = mmap.PAGESIZE

#: Maximum size of all regions of this process in bytes, whether they are lent or not.
MAX_POOL_SIZE: Final = 512 * 2**20

#: Maximum size in bytes of the mappings that a receiver keeps for one connection.
MAX_KEPT_SIZE: Final = 256 * 2**20

# The states of a region: not used, used by a receiver, and never used again by the pool.
_FREE, _LENT, _DROPPED = 0, 1, 2


class Loan:
    """A region of the pool.

    Attributes
    ----------
    found
        The region.
    data
        The memory for data.
    """

    __slots__ = ("_is_open", "_view", "data", "found")

    def __init__(self, view: memoryview, found: Found):
        self._view = view
        self.found = found
        self.data = view[HEADER_SIZE:]
        # Whether the connection over which the region is lent is open.
        self._is_open: Callable[[], bool] = _closed

    @property
    def is_free(self) -> bool:
        """Whether no process uses the region."""
        return self._view[0] == _FREE

    @property
    def is_lost(self) -> bool:
        """Whether the region may never come back."""
        return self._view[0] == _DROPPED or (not self.is_free and not self._is_open())

    def take(self, is_open: Callable[[], bool]) -> None:
        """Mark the region as lent over a connection; *is_open* tells whether that is open."""
        self._view[0] = _LENT
        self._is_open = is_open

    def give_back(self) -> None:
        """Mark the region as free, because it was not sent."""
        self._view[0] = _FREE

    def drop(self) -> None:
        """Tell receivers that the region will not be lent again."""
        self._view[0] = _DROPPED


def _closed() -> bool:
    return False


# The regions, most recently used last.
_pool: list[Loan] = []
_lock = threading.Lock()


def lend(nbytes: int, is_open: Callable[[], bool]) -> Loan | None:
    """Return a region for *nbytes*, marked as lent; None if too many are lent already.

    Parameters
    ----------
    nbytes
        Number of bytes that are to be sent.
    is_open
        Tells whether the connection over which they are sent is still open.
    """
    with _lock:
        _pool[:] = [loan for loan in _pool if not loan.is_lost]
        loan = _suitable(nbytes) or _new(nbytes)
        if loan is not None:
            loan.take(is_open)
            if loan in _pool:
                _pool.remove(loan)
            _pool.append(loan)
        return loan


def _suitable(nbytes: int) -> Loan | None:
    for loan in reversed(_pool):
        # A much larger region would waste memory.
        if nbytes <= len(loan.data) <= 2 * nbytes and loan.is_free:
            return loan
    return None


def _new(nbytes: int) -> Loan | None:
    size = HEADER_SIZE + -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    left = MAX_POOL_SIZE - size - sum(loan.found.memory.nbytes for loan in _pool)
    for loan in list(_pool):
        if left < 0 and loan.is_free:
            loan.drop()
            _pool.remove(loan)
            left += loan.found.memory.nbytes
    if left < 0:
        return None
    view = create(size)
    found = None if view is None else find(view)
    return None if view is None or found is None else Loan(view, found)


class Borrower:
    """The regions that a peer has lent to this process over one connection.

    Mapping a region for the first time costs as much as copying it: the kernel enters each page
    into a table.  So mappings are kept for the next time, until the connection ends.
    """

    def __init__(self) -> None:
        # (device, inode) → mapping, most recently used last.
        self._mappings: dict[tuple[int, int], mmap.mmap] = {}

    def borrow(self, descriptor: int, max_bytes: int) -> memoryview:
        """Return all of the memory of a region that the peer has lent.

        The region is given back when the last view of the memory is gone.  It is not registered, so
        its memory is never passed on as shared.

        Parameters
        ----------
        descriptor
            Any file descriptor; this function closes it.
        max_bytes
            Maximum size of the region in bytes.

        Raises
        ------
        ValueError
            As `adopt` does; or if the seals do not allow writing.
        """
        key, mapping = map_received(descriptor, max_bytes, self._mappings)
        if len(mapping) <= HEADER_SIZE:
            raise ValueError("it has no room for data")
        self._mappings.pop(key, None)
        self._forget_unused(MAX_KEPT_SIZE - len(mapping))
        self._mappings[key] = mapping
        # Views keep this object alive, which keeps the mapping; it is deleted with the last one.
        lease = (ctypes.c_ubyte * len(mapping)).from_buffer(mapping)
        _borrowed[id(lease)] = mapping
        weakref.finalize(lease, _give_back, id(lease), mapping).atexit = False
        return PickleBuffer(lease).raw()

    def _forget_unused(self, left: int) -> None:
        """Forget mappings of regions that were dropped, and the oldest ones beyond *left* bytes."""
        for key, mapping in reversed(list(self._mappings.items())):
            left -= len(mapping)
            if left < 0 or mapping[0] == _DROPPED:
                del self._mappings[key]


# The regions that this process has borrowed, by the id of the object that their views keep alive.
_borrowed: dict[int, mmap.mmap] = {}


def _give_back(key: int, mapping: mmap.mmap) -> None:
    _borrowed.pop(key, None)
    if mapping[0] == _LENT:
        mapping[0] = _FREE


def _before_fork() -> None:
    for mapping in list(_borrowed.values()):
        if mapping[0] == _LENT:
            mapping[0] = _DROPPED


def _after_fork() -> None:
    global _lock
    # Another thread may have held it.
    _lock = threading.Lock()
    _pool.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)

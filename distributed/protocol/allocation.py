"""Memory for what arrives: taken without touching it, in pages that suit its size, and used again.

A receiver knows from the length prelude how much memory a frame will take, long before the bytes
are there, if they ever come.  Memory from here becomes resident only as it is filled, so a length
that lies costs address space alone.  :mod:`distributed.protocol.framing` reads into it.

Large blocks are mapped one by one.  Where the system can take memory back from a process that does
not need it at the moment (``MADV_FREE``), some of what nobody uses any more is kept for the next
block: a page that is there already is filled several times as fast as one that the system has to
find, and to clear, first.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from pickle import PickleBuffer

from distributed.protocol.exceptions import FramingError

#: Bytes from which on a block is mapped by itself. The allocator of the C library does that too
#: from this size on (glibc's ``DEFAULT_MMAP_THRESHOLD_MAX``), but never in huge pages, and so takes
#: a page fault for every 4 KiB that arrive; below it mostly hands out what has been touched before.
MAPPED_SIZE = 32 * 2**20

#: Bytes that are kept for blocks to come.
KEPT_SIZE = 128 * 2**20

#: Bytes at the beginning of a mapping that stay in small pages: a length that lies must not make a
#: huge page resident with the first byte.
_HUGE_PAGE = 2 * 2**20

#: Mappings that nobody uses, the last one that was used last. Changed by single operations that
#: other threads, and the garbage collector amid any of them, cannot see half done.
_kept: list[mmap.mmap] = []

_resize = ctypes.pythonapi.PyByteArray_Resize
_resize.restype = ctypes.c_int
_resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]


def allocate(nbytes: int) -> memoryview:
    """Return *nbytes* of writable memory, of which none was touched, or all that ever was is kept.

    Raises
    ------
    FramingError
        If so much memory cannot be had.

    Examples
    --------
    >>> memory = allocate(3)
    >>> memory[:] = b"abc"
    >>> bytes(memory)
    b'abc'
    """
    if nbytes <= sys.maxsize:
        try:
            return memoryview(_heap(nbytes)) if nbytes < MAPPED_SIZE else _lend(nbytes)
        except (MemoryError, OSError):
            pass
    raise FramingError(f"cannot allocate {nbytes:,} bytes for an incoming message")


def _heap(nbytes: int) -> bytearray:
    # ``bytearray(n)`` would write zeros to every page.
    memory = bytearray()
    _resize(memory, nbytes)
    return memory


def _lend(nbytes: int) -> memoryview:
    mapping = _take_kept(nbytes) or _map(nbytes)
    # Views keep this object alive, and when the last of them is gone so is it.
    lease = (ctypes.c_ubyte * nbytes).from_buffer(mapping)
    if len(mapping) <= KEPT_SIZE and hasattr(mmap, "MADV_FREE"):
        weakref.finalize(lease, _keep, mapping).atexit = False
    return PickleBuffer(lease).raw()


def _map(nbytes: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGE)
        except OSError:
            # A kernel without huge pages; the memory is as good.
            pass
    return mapping


def _take_kept(nbytes: int) -> mmap.mmap | None:
    for mapping in reversed(_kept):
        # Not one that would keep much more than is asked for.
        if nbytes <= len(mapping) <= 2 * nbytes:
            try:
                _kept.remove(mapping)
            except ValueError:
                # Another thread took it.
                continue
            return mapping
    return None


def _keep(mapping: mmap.mmap) -> None:
    """Keep what nobody uses any more, but let the system take it back."""
    mapping.madvise(mmap.MADV_FREE)
    _kept.append(mapping)
    while sum(map(len, _kept)) > KEPT_SIZE:
        del _kept[:1]

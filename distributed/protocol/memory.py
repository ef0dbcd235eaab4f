"""Memory for what arrives: taken without touching it, in pages that suit its size.

A receiver knows from the length prelude how much memory a frame will take, long before the bytes
are there, if they ever come.  Memory from here becomes resident only as it is filled, so a length
that lies costs address space alone.  :mod:`distributed.protocol.framing` reads into it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from distributed.protocol.exceptions import FramingError

#: Bytes from which on a block is mapped by itself. The allocator of the C library does that too
#: from this size on (glibc's ``DEFAULT_MMAP_THRESHOLD_MAX``), but never in huge pages, and so takes
#: a page fault for every 4 KiB that arrive; below it mostly hands out what has been touched before.
MAPPED_SIZE = 32 * 2**20

#: Bytes at the beginning of a mapping that stay in small pages: a length that lies must not make a
#: huge page resident with the first byte.
_HUGE_PAGE = 2 * 2**20

_resize = ctypes.pythonapi.PyByteArray_Resize
_resize.restype = ctypes.c_int
_resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]


def allocate(nbytes: int) -> memoryview:
    """Return *nbytes* of writable memory that was not touched yet.

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
            return memoryview(_heap(nbytes) if nbytes < MAPPED_SIZE else _mapping(nbytes))
        except (MemoryError, OSError):
            pass
    raise FramingError(f"cannot allocate {nbytes:,} bytes for an incoming message")


def _heap(nbytes: int) -> bytearray:
    # ``bytearray(n)`` would write zeros to every page.
    memory = bytearray()
    _resize(memory, nbytes)
    return memory


def _mapping(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGE)
        except OSError:
            # A kernel without huge pages; the memory is as good.
            pass
    return memory

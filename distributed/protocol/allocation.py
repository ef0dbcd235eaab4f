"""Memory for received frames: allocated without touching it, and reused.

The length prelude tells the size of a frame before its bytes come, if they ever do.  Memory from
here becomes resident only as it is filled, so a false length costs only address space.
:mod:`distributed.protocol.framing` uses it.

Large blocks are mapped one by one.  If the system can reclaim unused pages of a process
(``MADV_FREE``), some unused blocks are cached for reuse: filling a resident page is several times
as fast as filling one that the system has to find and clear first.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from pickle import PickleBuffer

from distributed.protocol.exceptions import FramingError

#: Minimum size in bytes of a block that is mapped by itself.  The allocator of the C library also
#: maps blocks from this size on (glibc's ``DEFAULT_MMAP_THRESHOLD_MAX``), but without huge pages,
#: and so takes a page fault for every 4 KiB.  Smaller blocks it mostly takes from resident memory.
MAPPED_SIZE = 32 * 2**20

#: Maximum number of bytes in cached blocks.
KEPT_SIZE = 128 * 2**20

#: Number of bytes at the beginning of a mapping that stay in small pages, so that the first byte
#: after a false length does not make a huge page resident.
_HUGE_PAGE = 2 * 2**20

#: Cached mappings, most recently used last.  All changes are atomic, since other threads, and the
#: garbage collector at any time, change the list too.
_kept: list[mmap.mmap] = []

_resize = ctypes.pythonapi.PyByteArray_Resize
_resize.restype = ctypes.c_int
_resize.argtypes = [ctypes.py_object, ctypes.c_ssize_t]


def allocate(nbytes: int) -> memoryview:
    """Return *nbytes* of writable memory, either untouched or from a cached block.

    Raises
    ------
    FramingError
        If the memory cannot be allocated.

    Examples
    --------
    >>> memory = allocate(3)
    >>> memory[:] = b"abc"
    >>> bytes(memory)
    b'abc'
    """
    if nbytes <= sys.maxsize:
        try:
            if nbytes >= MAPPED_SIZE:
                return _lend(nbytes)
            # ``bytearray(nbytes)`` would write zeros to every page.
            memory = bytearray()
            _resize(memory, nbytes)
            return memoryview(memory)
        except (MemoryError, OSError):
            pass
    raise FramingError(f"cannot allocate {nbytes:,} bytes for an incoming message")


def _lend(nbytes: int) -> memoryview:
    mapping = _take_kept(nbytes) or _map(nbytes)
    # Views keep this object alive; it is deleted with the last of them.
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
            # The kernel has no huge pages; the memory can still be used.
            pass
    return mapping


def _take_kept(nbytes: int) -> mmap.mmap | None:
    for mapping in reversed(_kept):
        # A much larger mapping would waste memory.
        if nbytes <= len(mapping) <= 2 * nbytes:
            try:
                _kept.remove(mapping)
            except ValueError:
                # Another thread took it.
                continue
            return mapping
    return None


def _keep(mapping: mmap.mmap) -> None:
    """Cache an unused mapping whose pages the system may reclaim."""
    mapping.madvise(mmap.MADV_FREE)
    _kept.append(mapping)
    while sum(map(len, _kept)) > KEPT_SIZE:
        del _kept[:1]

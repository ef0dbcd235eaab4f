"""Regions of memory that processes of one host share, and which region a buffer lies in.

A region is anonymous memory of the Linux kernel (memfd_create(2)) that this process has mapped.  It
has a file descriptor, but neither a name nor a file: the kernel frees the memory once no process
maps it or has a descriptor of it, also after a crash.  Seals of the kernel keep the size constant,
so no process can make another one crash by truncating the memory.

:class:`Memory` describes a region.  :func:`create` makes one, :func:`adopt` maps one that came from
another process, and :func:`find` returns the region that contains a given buffer.  This module does
not know how descriptors travel; that is the business of :mod:`distributed.comm.sharing`.

Ownership
---------
All views of a region keep its *lease* alive, an `mmap.mmap` object.  The region is unmapped, and
its descriptor closed, when the lease is deleted with the last view.  The registry of regions holds
weak references to leases only.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import mmap
import os
import stat
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from distributed.base.buffers import address_of, ensure_memoryview

if sys.platform != "win32":
    import fcntl
    import resource

__all__ = [
    "Found",
    "Memory",
    "adopt",
    "create",
    "create_frozen",
    "find",
    "has_regions",
    "is_shared",
    "is_supported",
    "map_received",
    "memory_of_host",
]

# Constants of linux/memfd.h, linux/fcntl.h and linux/magic.h; other systems do not have them.
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 0x1, 0x2, 0x8
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW, _WRITE, _FUTURE_WRITE = 0x1, 0x2, 0x4, 0x8, 0x10
_TMPFS_MAGIC: Final = 0x01021994
_MAP_FIXED: Final = 0x10
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_Mapping = TypeVar("_Mapping", bound=mmap.mmap)

#: The seals of a region that is sent: its size, and the seals themselves, are final.
_REQUIRED: Final = _SEAL | _SHRINK | _GROW

#: The share of this process's file descriptors that regions may take.  A received region beyond it
#: keeps no descriptor, and its arrays are passed on as bytes.
_MAX_SHARE: Final = 0.5


class Memory:
    """A region that this process has mapped.

    Attributes
    ----------
    descriptor
        The file descriptor; -1 if it was closed because this process has too many.
    address, nbytes
        The place of the mapping in the memory of this process, and its size in bytes.
    peers_may_write
        Whether other processes are asked to map the region for writing, too.
    """

    __slots__ = ("address", "descriptor", "nbytes", "peers_may_write")

    def __init__(self, descriptor: int, address: int, nbytes: int, peers_may_write: bool):
        self.descriptor = descriptor
        self.address = address
        self.nbytes = nbytes
        self.peers_may_write = peers_may_write

    def seal_for_sending(self) -> None:
        """Make the seals final, so that no receiver can add one."""
        if self._seals() & _SEAL:
            return
        try:
            fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEAL)
        except OSError:
            # Another thread, or a process that was forked, may have done so meanwhile.
            if not self._seals() & _SEAL:
                raise

    def try_to_freeze(self) -> bool:
        """Forbid all processes to map the memory for writing; return whether that succeeded.

        It fails if the region was sent, because its seals are final then.
        """
        if self.descriptor < 0:
            return False
        seals = self._seals()
        if seals & (_WRITE | _FUTURE_WRITE):
            return True
        if seals & _SEAL:
            return False
        try:
            # Not F_SEAL_WRITE, which fails while any process has mapped the memory for writing.
            fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _FUTURE_WRITE | _SEAL)
        except OSError:
            # Linux before 5.1 does not have this seal.
            return False
        self.peers_may_write = False
        return True

    def _seals(self) -> int:
        return fcntl.fcntl(self.descriptor, _F_GET_SEALS)


class Found(NamedTuple):
    """The place of a buffer in a region; the lease keeps the region mapped."""

    memory: Memory
    offset: int
    lease: Any


class _Regions(NamedTuple):
    """The regions of this process, in the order of their addresses."""

    starts: list[int]
    leases: list[weakref.ref[_Lease]]


# The registry.  `_regions` has at most one element, which is replaced as a whole, so that `find`
# needs no lock.  `_by_file` contains the same leases by (device, inode, whether this process may
# write).  When a region is added and there are `_purge_at` entries, those of deleted leases are
# removed.
_regions: list[_Regions] = []
_by_file: dict[tuple[int, int, bool], weakref.ref[_Lease]] = {}
_MIN_PURGED: Final = 64
_purge_at = _MIN_PURGED
_adding = threading.RLock()

# Reserved addresses where mapping has failed.  They are never freed, since they may belong to
# another thread.
_unusable: list[mmap.mmap] = []


def has_regions() -> bool:
    """Return whether this process has ever had a region; if not, no buffer needs a look-up."""
    return bool(_regions)


def find(buffer: memoryview) -> Found | None:
    """Return the region that contains *buffer*, a contiguous view of bytes; None if there is none.

    The address decides, so this works for the memory of any object that views a region.
    """
    if not _regions or not len(buffer):
        return None
    starts, leases = _regions[0]
    address = address_of(buffer)
    index = bisect.bisect_right(starts, address) - 1
    lease = leases[index]() if index >= 0 else None
    if lease is None:
        return None
    memory: Memory = lease.memory
    offset = address - memory.address
    return Found(memory, offset, lease) if offset + len(buffer) <= memory.nbytes else None


def is_shared(buffer: Any) -> bool:
    """Return whether a contiguous bytes-like object lies in a region."""
    return bool(_regions) and find(ensure_memoryview(buffer)) is not None


def create(nbytes: int, *, peers_may_write: bool = False) -> memoryview | None:
    """Return *nbytes* of new shared memory, zeros; None if the system does not give it.

    It is also None if regions take too many descriptors of this process.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    """
    descriptor = _new_descriptor(nbytes) if _may_have_descriptor() else None
    if descriptor is None:
        return None
    return _mapped_here(descriptor, nbytes, writable=True, peers_may_write=peers_may_write)


def create_frozen(content: memoryview) -> memoryview | None:
    """Return a copy of bytes in shared memory that no process can change, not even this one.

    It is None if the system does not give shared memory, or if regions take too many descriptors of
    this process.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    """
    descriptor = _new_descriptor(len(content)) if _may_have_descriptor() else None
    if descriptor is None:
        return None
    try:
        # Written without a mapping: F_SEAL_WRITE fails if there is one for writing.
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], written)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _WRITE | _SEAL)
    except OSError as exc:
        os.close(descriptor)
        raise _no_memory(len(content)) from exc
    except BaseException:
        os.close(descriptor)
        raise
    return _mapped_here(descriptor, len(content), writable=False, peers_may_write=False)


def adopt(descriptor: int, *, peers_may_write: bool = False, max_bytes: int) -> memoryview:
    """Map a region that another process has sent, and return all of its memory.

    The memory is read-only, unless *peers_may_write* is true and the seals allow writing.  If this
    process has mapped the region already, that mapping is used.  Whatever the descriptor refers to,
    this function does not wait for another process.

    Parameters
    ----------
    descriptor
        Any file descriptor, which this function closes or keeps.
    peers_may_write
        Whether the sender asks for a mapping that this process can write to.
    max_bytes
        Maximum size of the region in bytes.

    Raises
    ------
    ValueError
        If the descriptor is not that of sealed memory, or the memory is too large.  Nothing was
        mapped.
    """
    try:
        seals, status = _check(descriptor, max_bytes)
        writable = peers_may_write and not seals & (_WRITE | _FUTURE_WRITE)
        known = _find_mapped(status, writable)
        if known is not None:
            os.close(descriptor)
            return known
    except BaseException:
        os.close(descriptor)
        raise
    try:
        return _mapped(descriptor, status.st_size, writable=writable, peers_may_write=writable)
    except (OSError, OverflowError, MemoryError) as exc:
        raise ValueError(f"its {status.st_size:,} bytes cannot be mapped: {exc}") from exc


def map_received(
    descriptor: int, max_bytes: int, known: Mapping[tuple[int, int], mmap.mmap]
) -> tuple[tuple[int, int], mmap.mmap]:
    """Map a region that another process has sent for writing, and do not register it.

    Parameters
    ----------
    descriptor
        Any file descriptor; this function closes it.
    max_bytes
        Maximum size of the region in bytes.
    known
        Mappings of such regions by device and inode; that of the same region is returned.

    Returns
    -------
    (key, mapping)
        Device and inode, and the mapping.

    Raises
    ------
    ValueError
        As `adopt` does; or if the seals do not allow writing.
    """
    try:
        _, status = _check(descriptor, max_bytes)
        key = status.st_dev, status.st_ino
        mapping = known.get(key)
        if mapping is None:
            mapping = _map(descriptor, status.st_size, True, mmap.mmap)
    except (OSError, OverflowError, MemoryError) as exc:
        raise ValueError(f"it cannot be mapped for writing: {exc}") from exc
    finally:
        os.close(descriptor)
    return key, mapping


@functools.cache
def is_supported() -> bool:
    """Return whether this system has shared memory that can be sealed."""
    if not hasattr(os, "memfd_create"):
        return False
    descriptor = _new_descriptor(1)
    if descriptor is None:
        return False
    try:
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL)
        _check(descriptor, 1)
    except (OSError, ValueError):
        return False
    finally:
        os.close(descriptor)
    return True


@functools.cache
def memory_of_host() -> int:
    """Return the size of this host's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


def _new_descriptor(nbytes: int) -> int | None:
    """Return the descriptor of new memory whose size is sealed; None if there is none."""
    if not nbytes or sys.platform != "linux":
        return None
    try:
        try:
            flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
            # Some systems require that the memory cannot contain programs (vm.memfd_noexec).
            descriptor = os.memfd_create("distributed", flags | _MFD_NOEXEC_SEAL)
        except OSError:
            # Linux before 6.3 does not have that flag.
            descriptor = os.memfd_create("distributed", flags)
    except OSError:
        # A sandbox forbids it, or there are too many open files.
        return None
    try:
        os.ftruncate(descriptor, nbytes)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SHRINK | _GROW)
    except OSError:
        os.close(descriptor)
        return None
    except OverflowError as exc:
        os.close(descriptor)
        raise _no_memory(nbytes) from exc
    return descriptor


def _no_memory(nbytes: int) -> MemoryError:
    return MemoryError(f"there is not enough memory for {nbytes:,} bytes")


def _check(descriptor: int, max_bytes: int) -> tuple[int, os.stat_result]:
    """Return seals and status of a descriptor that another process has sent.

    Raises
    ------
    ValueError
        If it is not that of memory whose size is sealed, or the memory is too large.
    """
    try:
        # The first question, since the kernel answers it without the file system.  To others, a
        # file system in user space would answer when it likes to.
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError:
        raise ValueError("it is not memory that can be sealed") from None
    if seals & _REQUIRED != _REQUIRED:
        raise ValueError(f"its size or its seals can change (seals {seals:#x})")
    # Huge pages from a pool can be missing at the first access, which would end this process.
    if _file_system(descriptor) != _TMPFS_MAGIC:
        raise ValueError("it is not ordinary memory")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise ValueError("it is empty")
    if status.st_size > max_bytes:
        raise ValueError(
            f"it has {status.st_size:,} bytes, where {max_bytes:,} are allowed "
            "('distributed.comm.shared.max-bytes')"
        )
    return seals, status


def _find_mapped(status: os.stat_result, writable: bool) -> memoryview | None:
    """Return the memory of a region that this process has mapped already, or None."""
    for mapped_writable in (writable, True):
        known = _by_file.get((status.st_dev, status.st_ino, mapped_writable))
        lease = None if known is None else known()
        if lease is not None:
            view = memoryview(lease)
            return view if writable else view.toreadonly()
    return None


class _Lease(mmap.mmap):
    """The mapping of a region, which is unmapped when this object is deleted."""

    memory: Memory


def _mapped_here(
    descriptor: int, nbytes: int, *, writable: bool, peers_may_write: bool
) -> memoryview:
    """As `_mapped`, for memory of this process."""
    try:
        return _mapped(descriptor, nbytes, writable=writable, peers_may_write=peers_may_write)
    except (OSError, OverflowError) as exc:
        raise _no_memory(nbytes) from exc


def _mapped(descriptor: int, nbytes: int, *, writable: bool, peers_may_write: bool) -> memoryview:
    """Map a region, register it, and return its memory; close the descriptor if that fails.

    Raises
    ------
    OSError, OverflowError
        If it cannot be mapped.
    """
    try:
        lease = _map(descriptor, nbytes, writable, _Lease)
        view = memoryview(lease)
        status = os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if not _may_have_descriptor():
        os.close(descriptor)
        descriptor = -1
    lease.memory = Memory(descriptor, address_of(view), nbytes, peers_may_write and writable)
    if descriptor >= 0:
        weakref.finalize(lease, os.close, descriptor).atexit = False
    _register(lease, (status.st_dev, status.st_ino, not view.readonly))
    return view


def _may_have_descriptor() -> bool:
    """Return whether one more region may take a descriptor of this process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not _regions or limit == resource.RLIM_INFINITY:
        return True
    leases = _regions[0].leases
    allowed = limit * _MAX_SHARE
    return len(leases) < allowed or sum(_has_descriptor(lease()) for lease in leases) < allowed


def _has_descriptor(lease: _Lease | None) -> bool:
    return lease is not None and lease.memory.descriptor >= 0


def _register(lease: Any, file: tuple[int, int, bool]) -> None:
    """Add a region to the registry."""
    global _purge_at
    address, nbytes = lease.memory.address, lease.memory.nbytes
    added = weakref.ref(lease)
    with _adding:
        starts: list[int] = []
        leases: list[weakref.ref[_Lease]] = []
        if _regions:
            starts, leases = list(_regions[0].starts), list(_regions[0].leases)
        if len(starts) >= _purge_at:
            alive = [pair for pair in zip(starts, leases, strict=True) if pair[1]() is not None]
            starts, leases = [start for start, _ in alive], [lease for _, lease in alive]
            for key in [key for key, reference in _by_file.items() if reference() is None]:
                del _by_file[key]
            _purge_at = max(_MIN_PURGED, 2 * len(starts))
        # Regions at these addresses are not mapped any more.
        first, last = (
            bisect.bisect_left(starts, address),
            bisect.bisect_left(starts, address + nbytes),
        )
        starts[first:last] = [address]
        leases[first:last] = [added]
        _regions[:] = [_Regions(starts, leases)]
        _by_file[file] = added


def _map(descriptor: int, nbytes: int, writable: bool, cls: type[_Mapping]) -> _Mapping:
    """Map a region, read-only unless *writable*."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # Tried at a free address first: if it fails at a given one, that may be free afterwards, and
    # another thread may map something there.
    for kind in (mmap.MAP_SHARED,) if writable else (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        # Before Linux 6.7, memory with F_SEAL_WRITE can only be mapped privately.  Its pages are
        # the same, since nothing writes to them.
        found = _libc().mmap(None, nbytes, protection, kind, descriptor, 0)
        if found != _MAP_FAILED:
            _libc().munmap(found, nbytes)
            break
    else:
        raise _system_error()
    # The object reserves the addresses, and unmaps them later.  If it were given the descriptor, it
    # would keep a duplicate.
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    lease = cls(-1, nbytes, flags=anonymous, prot=protection)
    address = address_of(memoryview(lease))
    if _libc().mmap(address, nbytes, protection, kind | _MAP_FIXED, descriptor, 0) != address:
        _unusable.append(lease)
        raise _system_error()
    return lease


def _system_error() -> OSError:
    """Return the error of the last function of the C library that was called."""
    error = ctypes.get_errno()
    return OSError(error, os.strerror(error))


@functools.cache
def _libc() -> Any:
    """Return the functions of the C library that Python lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_long]
    libc.munmap.argtypes = [pointer, size]
    libc.fstatfs.argtypes = [integer, pointer]
    return libc


def _file_system(descriptor: int) -> int:
    """Return the number of the file system that a descriptor belongs to."""
    # struct statfs begins with it, and takes at most 128 bytes.
    status = (ctypes.c_long * 64)()
    if _libc().fstatfs(descriptor, ctypes.byref(status)):
        error = ctypes.get_errno()
        raise ValueError(f"its file system is unknown: {os.strerror(error)}")
    return int(status[0])


def _after_fork() -> None:
    global _adding
    # Another thread may have held it.
    _adding = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

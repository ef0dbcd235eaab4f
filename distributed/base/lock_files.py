"""Lock files, which tell whether the process that made a directory is alive; removal by directory.

All names here are relative to an open directory (``dir_fd``), and no symbolic link is followed.
What is removed is therefore inside that directory, even if its path, or a name in it, is replaced
by another process in between.

A lock file is locked by ``flock(2)`` while its owner lives; the kernel releases the lock when the
owner ends, even by ``kill -9``. Only lock files of the current user are ever taken.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "create_lock",
    "is_private",
    "lock_file",
    "names_in",
    "opened_directory",
    "remove_tree",
    "require_posix",
    "take_lock",
    "unlock",
]

if fcntl is not None:
    # With O_PATH, a directory can be opened without permission to list it.
    _DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


def require_posix(path: str) -> None:
    """Raise `NotImplementedError` on Windows, which cannot open directories."""
    if fcntl is None:
        raise NotImplementedError(
            f"cannot use the directory {path!r}: a scratch directory needs POSIX (open directories "
            "and flock), which this platform does not have"
        )


@contextmanager
def opened_directory(path: str, dir_fd: int | None = None) -> Iterator[int]:
    """Open the directory *path*; with *dir_fd*, a name in that directory that is not a link.

    Raises
    ------
    OSError
        If it does not exist, is not a directory, or is a link in *dir_fd*.
    NotImplementedError
        On Windows, which cannot open directories.
    """
    require_posix(path)
    flags = _DIRECTORY if dir_fd is None else _DIRECTORY | os.O_NOFOLLOW
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def names_in(dir_fd: int) -> list[str]:
    """Return the sorted names of the entries of an open directory."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def is_private(status: os.stat_result) -> bool:
    """Return whether a file or directory is this user's, and no other user can write to it."""
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not shared


def create_lock(name: str, dir_fd: int) -> int:
    """Create and lock a new lock file, and return its descriptor.

    Raises
    ------
    FileExistsError
        If it exists, or another process was faster to lock it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(name, flags, 0o644, dir_fd=dir_fd)
    if not _lock_if_still_there(fd, name, dir_fd):
        raise FileExistsError(name)
    return fd


def take_lock(name: str, dir_fd: int) -> int | None:
    """Lock an existing lock file of this user and return its descriptor; None if that fails.

    None also means that the file is not a regular file with this one name.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=dir_fd)
    except OSError:
        # Removed by its owner, not ours, not a file, or a symbolic link (ELOOP).
        return None
    status = os.fstat(fd)
    # A second name (hard link) means that the file was not made here.
    ours = status.st_uid == os.geteuid() and status.st_nlink == 1
    if not (ours and stat.S_ISREG(status.st_mode)):
        os.close(fd)
        return None
    return fd if _lock_if_still_there(fd, name, dir_fd) else None


def _lock_if_still_there(fd: int, name: str, dir_fd: int) -> bool:
    """Lock an open file; if it is locked or no longer at *name*, close it and return False."""
    try:
        lock_file(fd, blocking=False)
        if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False)):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return False


def lock_file(fd: int, blocking: bool) -> None:
    """Lock an open file; raise `BlockingIOError` if another process has locked it.

    With *blocking*, wait for the other process instead.
    """
    fcntl.flock(fd, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(fd: int) -> None:
    """Release the lock of a lock file and close it."""
    # Closing is not enough if a forked child has inherited the descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def remove_tree(name: str, dir_fd: int, on_error: Callable[[str, BaseException], None]) -> bool:
    """Remove a directory of this user with its contents; return whether it is gone.

    Parameters
    ----------
    name
        Its name in *dir_fd*. A link, a file, the directory of another user, or a mount point is
        left as it is.
    on_error
        Called with the path, relative to *dir_fd*, and the error of each failure.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    mounted = status.st_dev != os.fstat(dir_fd).st_dev
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mounted:
        on_error(name, PermissionError("not a directory that this user created here"))
        return False

    def report(_: object, path: str, exc: BaseException) -> None:
        if not isinstance(exc, FileNotFoundError):
            on_error(path, exc)

    if sys.version_info >= (3, 12):
        shutil.rmtree(name, dir_fd=dir_fd, onexc=report)
    else:
        shutil.rmtree(
            name, dir_fd=dir_fd, onerror=lambda func, path, info: report(func, path, info[1])
        )
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False

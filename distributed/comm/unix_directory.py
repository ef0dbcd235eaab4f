"""The directory in which a process makes its sockets, and the removal of those of dead processes.

A `PrivateDirectory` is removed when its process ends. A process that is killed leaves its directory
behind, and the next process of the same user that makes one there removes it. The owner holds a
lock on the file ``<its path>.dirlock``, which the kernel releases when the process ends.

The parent directory is usually ``/tmp``, in which other users can make names as well. So a
directory is removed only if it and its lock file belong to this user, and this user alone can enter
it. What is removed from it is sockets, never another file or a directory.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import weakref
from typing import Final

from distributed.base.lock_files import (
    create_lock,
    names_in,
    opened_directory,
    take_lock,
    unlock,
)
from distributed.base.logs import get_logger

logger = get_logger(__name__)

__all__ = ["PrivateDirectory", "remove_stale_directories"]

_PREFIX: Final = "dask-unix-"

_LOCK_EXT: Final = ".dirlock"

_LOCK_NAME: Final = re.compile(re.escape(_PREFIX) + "[0-9a-f]{8}" + re.escape(_LOCK_EXT))


class PrivateDirectory:
    """A directory that only this user can enter; removed when this process ends.

    A child process that was forked does not remove it, and must make its own.

    Parameters
    ----------
    parent
        The directory in which it is made, after those of dead processes were removed from it.

    Attributes
    ----------
    path
        Its absolute path.
    """

    def __init__(self, parent: str) -> None:
        remove_stale_directories(parent)
        self._made_by = os.getpid()
        with opened_directory(parent) as outer:
            while True:
                name = _PREFIX + secrets.token_hex(4)
                try:
                    # First, so that a process that dies in between leaves only this file.
                    lock = create_lock(name + _LOCK_EXT, outer)
                except FileExistsError:
                    # The name is taken, or another process took the file for stale.
                    continue
                try:
                    os.mkdir(name, 0o700, dir_fd=outer)
                except BaseException as exc:
                    os.unlink(name + _LOCK_EXT, dir_fd=outer)
                    unlock(lock)
                    if isinstance(exc, FileExistsError):
                        continue
                    raise
                break
        self.path = os.path.join(parent, name)
        self._finalizer = weakref.finalize(self, _remove, self._made_by, self.path, lock)

    def is_usable(self) -> bool:
        """Return whether the directory exists and belongs to this process."""
        return self._made_by == os.getpid() and os.path.isdir(self.path)


def _remove(made_by: int, path: str, lock: int) -> None:
    if os.getpid() != made_by:
        os.close(lock)
        return
    parent, name = os.path.split(path)
    with opened_directory(parent) as outer:
        _remove_locked(name, outer, lock)


def remove_stale_directories(parent: str) -> None:
    """Remove the directories of dead processes of this user from *parent*."""
    with opened_directory(parent) as outer:
        for entry in names_in(outer):
            if _LOCK_NAME.fullmatch(entry):
                lock = take_lock(entry, outer)
                if lock is not None:
                    _remove_locked(entry.removesuffix(_LOCK_EXT), outer, lock)


def _remove_locked(name: str, outer: int, lock: int) -> None:
    """Remove a directory of sockets and its lock file, which is locked, and unlock it."""
    try:
        try:
            with opened_directory(name, outer) as directory:
                status = os.fstat(directory)
                if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
                    return
                for entry in names_in(directory):
                    found = os.stat(entry, dir_fd=directory, follow_symlinks=False)
                    if stat.S_ISSOCK(found.st_mode):
                        os.unlink(entry, dir_fd=directory)
            os.rmdir(name, dir_fd=outer)
        except FileNotFoundError:
            pass  # removed by a cleaner of /tmp
        os.unlink(name + _LOCK_EXT, dir_fd=outer)
    except OSError as exc:
        # It contains another file, or is a link or a file, or the lock file is gone.
        logger.debug("Not removing the directory of sockets %r: %s", name, exc)
    finally:
        unlock(lock)

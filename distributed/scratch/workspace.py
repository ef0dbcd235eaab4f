"""Scratch directories that are gone when their process is, however it went.

A `WorkSpace` is a directory in which processes make a `WorkDir` each. A `WorkDir` is held by an
exclusive ``flock(2)`` on the file ``<its path>.dirlock``, which the kernel drops when the process
ends, even by ``kill -9``. Whoever makes the next `WorkDir` in the same place removes the
directories whose lock it can get. Those that are in use, and those that have no lock file, are
never touched.

::

    dask-scratch-space/
        global.lock             held while a lock file is made, or looked at to see if it is stale
        purge.lock              held by the one process that is removing stale directories
        worker-3f1c09a2/        a WorkDir
        worker-3f1c09a2.dirlock held by its owner; without an owner, both are stale

The layout and the kind of lock are those of dask.distributed, so that both can share a place. This
module knows nothing of servers; `distributed.scratch.directory` gives one a directory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed.base import config

__all__ = ["DIR_LOCK_EXT", "WorkDir", "WorkSpace", "is_locking_enabled", "safe_unlink"]

# The original's logger, by which users filter.
logger = logging.getLogger("distributed.diskutils")

DIR_LOCK_EXT = ".dirlock"


def is_locking_enabled() -> bool:
    """What ``distributed.worker.use-file-locking`` says now."""
    return bool(config.get("distributed.worker.use-file-locking", default=True))


def safe_unlink(path: str) -> None:
    """Remove a file. It may be gone already; any other failure is logged as an error."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.error("Failed to remove %r: %s", path, exc)


class WorkSpace:
    """A directory that any number of processes share to make scratch directories in.

    Parameters
    ----------
    base_dir
        Its path. It is made if it is not there. Where somebody else has it (it is not writable,
        or its owner is neither this user nor root, who could put code into what lies in it), the
        workspace is ``<base_dir>-<user id>`` instead.

    Attributes
    ----------
    base_dir
        The absolute path of the directory that is used.

    Raises
    ------
    PermissionError
        Neither of the two can be used.

    Examples
    --------
    >>> import os, tempfile
    >>> workspace = WorkSpace(os.path.join(tempfile.mkdtemp(), "scratch"))
    >>> workdir = workspace.new_work_dir(prefix="worker-")
    >>> os.path.isdir(workdir.dir_path)
    True
    >>> workdir.release()
    >>> os.path.isdir(workdir.dir_path)
    False
    """

    # The only mutable state is `_locking`, which goes from True to False when the file system
    # turns out not to support locks, never back. All else is on the disk, see above.

    def __init__(self, base_dir: str) -> None:
        self.base_dir = _claim_base_dir(os.path.abspath(base_dir))
        self._global_lock_path = os.path.join(self.base_dir, "global.lock")
        self._purge_lock_path = os.path.join(self.base_dir, "purge.lock")
        self._locking = is_locking_enabled()

    def __repr__(self) -> str:
        return f"<WorkSpace {self.base_dir!r}>"

    def new_work_dir(self, *, name: str | None = None, prefix: str | None = None) -> WorkDir:
        """Make a directory, after removing those that dead processes have left.

        Parameters
        ----------
        name
            Its exact name; there must not be one yet.
        prefix
            What its name begins with; the rest is chosen at random.

        Raises
        ------
        FileExistsError
            There is something of that name, or another process is just removing it.
        ValueError
            Both were given, or one that does not name a directory right inside the workspace.
        """
        os.makedirs(self.base_dir, exist_ok=True)  # cleaners of /tmp may have taken it
        self._purge_leftovers()
        return WorkDir(self, name=name, prefix=prefix)

    def _purge_leftovers(self) -> list[str]:
        """Remove what has a lock file that nobody holds; return the paths that are gone.

        If another process is at it already, this is left to it.
        """
        purged = []
        with self._hold(self._purge_lock_path, blocking=False) as held:
            if not held:
                return []
            for entry in sorted(os.listdir(self.base_dir)):
                if not entry.endswith(DIR_LOCK_EXT):
                    continue
                name = entry.removesuffix(DIR_LOCK_EXT)
                # A lock file of another name, such as "...dirlock", was not created here. The
                # path built from it could be the workspace itself or its parent directory.
                if _is_valid_name(name) and self._purge_if_stale(name):
                    purged.append(os.path.join(self.base_dir, name))
        return purged

    def _purge_if_stale(self, name: str) -> bool:
        dir_path = os.path.join(self.base_dir, name)
        lock_path = dir_path + DIR_LOCK_EXT
        with self._hold(self._global_lock_path):
            # Under the global lock no lock file is about to be locked by the one who made it.
            fd = _take_existing_lock(lock_path)
        if fd is None:
            return False
        logger.info("Found stale lock file and directory %r, purging", dir_path)
        return _remove_locked(dir_path, lock_path, fd)

    @contextmanager
    def _hold(self, path: str, blocking: bool = True) -> Iterator[bool]:
        """Hold one of the workspace's own locks; yield whether it is held."""
        fd = self._take_own_lock(path, blocking) if self._locking else None
        try:
            yield fd is not None
        finally:
            if fd is not None:
                _unlock(fd)

    def _take_own_lock(self, path: str, blocking: bool) -> int | None:
        fd = None
        try:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except PermissionError:
                # It is another user's file, in a place that several users share.
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if fd is not None:
                os.close(fd)
            if not isinstance(exc, BlockingIOError):
                self._locking = False
                logger.warning(
                    "Could not lock %r: %s. Going on without locks: scratch directories in %r "
                    "that are left by a crash will not be removed. Use a local file system "
                    "(temporary-directory), or set distributed.worker.use-file-locking to false.",
                    path,
                    exc,
                    self.base_dir,
                )
            return None
        return fd


class WorkDir:
    """A directory that belongs to this process; made by `WorkSpace.new_work_dir`.

    It is removed with all that is in it by `release`, when this object is garbage collected, or
    when the interpreter exits; after a crash, by the next one who makes a directory in the same
    workspace. A process that was forked from the owner never removes it.

    Attributes
    ----------
    dir_path
        Its absolute path. Only this user can look into it.
    """

    # `_finalizer` holds the open lock file and is alive until the directory is given up.

    def __init__(
        self, workspace: WorkSpace, name: str | None = None, prefix: str | None = None
    ) -> None:
        if name is not None and prefix is not None:
            raise ValueError(
                f"A scratch directory has a name ({name!r}) or a prefix ({prefix!r}), not both"
            )
        for part in (name, prefix):
            if part is not None:
                _check_name(part, may_be_empty=part is prefix)
        with workspace._hold(workspace._global_lock_path) as locking:
            self.dir_path, lock_path, fd = _make(workspace.base_dir, name, prefix, locking)
        self._finalizer = weakref.finalize(
            self, _give_up, os.getpid(), self.dir_path, lock_path, fd
        )

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else " (released)"
        return f"<WorkDir {self.dir_path!r}{state}>"

    def release(self) -> None:
        """Remove the directory and its lock. Once is enough; more is harmless.

        What cannot be removed is logged as an error, and tried again by the next one who makes
        a directory in the workspace.
        """
        self._finalizer()


def _claim_base_dir(base_dir: str) -> str:
    """Make the base directory, or the user's own one if somebody else has it; return its path."""
    try:
        if _make_or_trust(base_dir):
            return base_dir
    except PermissionError:
        pass
    own = f"{base_dir}-{os.geteuid()}"
    try:
        if _make_or_trust(own):
            return own
    except PermissionError:
        # Nobody like us can plant anything beside it either: it was given to us on purpose.
        if os.access(base_dir, os.W_OK | os.X_OK):
            return base_dir
    raise PermissionError(
        f"Cannot make scratch directories in {base_dir!r} or in {own!r}: they are not writable, or "
        "belong to another user. Give another directory (local_directory, or temporary-directory "
        "in the configuration)."
    )


def _make_or_trust(path: str) -> bool:
    """Whether ``path`` is now a directory into which only this user or root can put things."""
    os.makedirs(path, exist_ok=True)
    status = os.stat(path)
    if {status.st_uid, os.lstat(path).st_uid} - {os.geteuid(), 0}:
        return False
    # Where root lets everybody write, only the sticky bit keeps others from replacing our things.
    free_for_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if free_for_all and status.st_uid != os.geteuid():
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _check_name(name: str, may_be_empty: bool) -> None:
    if not (_is_valid_name(name) or (may_be_empty and not name)):
        raise ValueError(
            f"{name!r} is not a valid name for a directory in a workspace: it must not be empty, "
            f"contain a directory, begin with a dot, or end with {DIR_LOCK_EXT!r}"
        )


def _is_valid_name(name: str) -> bool:
    """Whether a `WorkDir` may have this name. Only directories of such names are ever removed."""
    return (
        bool(name)
        and os.path.basename(name) == name
        and "\0" not in name
        and not name.startswith(".")
        and not name.endswith(DIR_LOCK_EXT)
    )


def _make(
    base_dir: str, name: str | None, prefix: str | None, locking: bool
) -> tuple[str, str, int | None]:
    """Make a directory and hold its lock: its path, the lock's path, the lock's descriptor."""
    while True:
        chosen = name if name is not None else (prefix or "tmp") + secrets.token_hex(4)
        dir_path = os.path.join(base_dir, chosen)
        lock_path = dir_path + DIR_LOCK_EXT
        try:
            # The lock comes first: if the process dies between the two, there is a lock without
            # a directory, which is stale, and not a directory that nobody would ever remove.
            fd = _make_lock(lock_path) if locking else None
            try:
                os.mkdir(dir_path, 0o700)
            except BaseException:
                if fd is not None:
                    safe_unlink(lock_path)
                    _unlock(fd)
                raise
        except FileExistsError:
            if name is None:
                continue
            raise FileExistsError(
                f"Cannot make the scratch directory {dir_path!r}: it is there already, in use by "
                "another process or made by hand"
            ) from None
        return dir_path, lock_path, fd


def _make_lock(path: str) -> int:
    """A new lock file, locked.

    Raises
    ------
    FileExistsError
        There is one, or somebody was faster to lock it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    if not _lock_if_still_there(fd, path):
        raise FileExistsError(path)
    return fd


def _take_existing_lock(path: str) -> int | None:
    """Lock a stale lock file of this user and return its descriptor, or None."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        # Removed by its owner; another user's; not a file; or a link (ELOOP).
        logger.debug("Leaving %r alone: %s", path, exc)
        return None
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd if _lock_if_still_there(fd, path) else None


def _lock_if_still_there(fd: int, path: str) -> bool:
    """Lock an open file. False, and closed, if it is held or is no longer the one at ``path``."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return False


def _unlock(fd: int) -> None:
    # Closing is not enough where a forked child has inherited the descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _give_up(owner_pid: int, dir_path: str, lock_path: str, fd: int | None) -> None:
    if os.getpid() == owner_pid:
        _remove_locked(dir_path, lock_path, fd)
    elif fd is not None:
        os.close(fd)


def _remove_locked(dir_path: str, lock_path: str, fd: int | None) -> bool:
    """Remove a directory, then its lock, which we hold; tell whether all of it is gone.

    The lock file stays if the directory does, so that it is found and tried again.
    """
    _remove_tree(dir_path)
    gone = not os.path.lexists(dir_path)
    if fd is not None:
        if gone:
            safe_unlink(lock_path)
        _unlock(fd)
    return gone


def _remove_tree(path: str) -> None:
    """Remove as much of a tree as can be removed, and log the rest."""

    def log(func: Callable[..., Any], failed_path: str, exc: BaseException) -> None:
        if not isinstance(exc, FileNotFoundError):
            logger.error("Failed to remove %r (failed in %r): %s", failed_path, func, exc)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=log)
    else:
        shutil.rmtree(path, onerror=lambda func, failed, info: log(func, failed, info[1]))

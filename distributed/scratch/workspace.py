"""Scratch directories that are removed when their process ends, or by a later process.

A `WorkSpace` is a directory in which each process creates a `WorkDir`. The owner of a `WorkDir`
holds an exclusive ``flock(2)`` on the file ``<its path>.dirlock``, which the kernel releases when
the process ends, even by ``kill -9``. Creating a `WorkDir` first removes the directories in the
workspace whose lock file can be locked. Directories that are in use, and those without a lock
file, are never removed.

::

    dask-scratch-space/
        global.lock             held while a lock file is created or checked for an owner
        purge.lock              held by the process that is removing stale directories
        worker-3f1c09a2/        a WorkDir
        worker-3f1c09a2.dirlock locked by its owner; if not locked, both are stale

The layout and the locks are those of dask.distributed, so that both can share a workspace. This
module does not depend on servers; `distributed.scratch.directory` creates a server's directory.
"""

from __future__ import annotations

import fcntl
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
from distributed.base.logs import get_logger

__all__ = ["DIR_LOCK_EXT", "WorkDir", "WorkSpace", "is_locking_enabled", "safe_unlink"]

# The original's logger, by which users filter.
logger = get_logger("distributed.diskutils")

DIR_LOCK_EXT = ".dirlock"


def is_locking_enabled() -> bool:
    """Return the current value of ``distributed.worker.use-file-locking`` (default: true)."""
    return bool(config.get("distributed.worker.use-file-locking", default=True))


def safe_unlink(path: str) -> None:
    """Remove a file if it exists; log an error if that fails."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.error("Failed to remove %r: %s", path, exc)


class WorkSpace:
    """A directory in which any number of processes create scratch directories.

    Parameters
    ----------
    base_dir
        Its path; it is created if missing. If it is not writable, or belongs to a user other than
        this one and root (that user could replace code in it), ``<base_dir>-<user id>`` is used
        instead.

    Attributes
    ----------
    base_dir
        The absolute path of the directory in use.

    Raises
    ------
    PermissionError
        If neither of the two can be used.

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

    def __init__(self, base_dir: str) -> None:
        self.base_dir = _claim_base_dir(os.path.abspath(base_dir))
        self._global_lock_path = os.path.join(self.base_dir, "global.lock")
        self._purge_lock_path = os.path.join(self.base_dir, "purge.lock")
        # Set to False, permanently, when a lock fails, as on file systems without locks.
        self._locking = is_locking_enabled()

    def __repr__(self) -> str:
        return f"<WorkSpace {self.base_dir!r}>"

    def new_work_dir(self, *, name: str | None = None, prefix: str | None = None) -> WorkDir:
        """Create a directory, after removing those of dead processes.

        Parameters
        ----------
        name
            Its name, which must not exist yet.
        prefix
            The start of its name; the rest is random.

        Raises
        ------
        FileExistsError
            If the name exists, or another process is removing it.
        ValueError
            If both are given, or one is not a valid name inside the workspace.
        """
        os.makedirs(self.base_dir, exist_ok=True)  # a cleaner of /tmp may have removed it
        self._purge_leftovers()
        return WorkDir(self, name=name, prefix=prefix)

    def _purge_leftovers(self) -> list[str]:
        """Remove stale directories and return their paths; do nothing if another process does."""
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
            # The creator of a lock file holds the global lock until it has locked the file.
            fd = _take_existing_lock(lock_path)
        if fd is None:
            return False
        logger.info("Found stale lock file and directory %r, purging", dir_path)
        return _remove_locked(dir_path, lock_path, fd)

    @contextmanager
    def _hold(self, path: str, blocking: bool = True) -> Iterator[bool]:
        """Hold one of the workspace's own locks during the block; yield whether it is held."""
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
                # Another user's file, in a workspace that several users share.
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if fd is not None:
                os.close(fd)
            if not isinstance(exc, BlockingIOError):
                self._locking = False
                logger.warning(
                    "Could not lock %r: %s. Continuing without locks: scratch directories in %r "
                    "will not be removed after a crash. Use a local file system "
                    "(temporary-directory), or set distributed.worker.use-file-locking to false.",
                    path,
                    exc,
                    self.base_dir,
                )
            return None
        return fd


class WorkDir:
    """A directory that belongs to this process; created by `WorkSpace.new_work_dir`.

    It is removed with its contents by `release`, when this object is garbage collected, or when
    the interpreter exits; after a crash, when the next `WorkDir` in the workspace is created. A
    child forked from the owner never removes it.

    Attributes
    ----------
    dir_path
        Its absolute path. Only this user can access it.
    """

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
        # Owns the locked file; alive until the directory is removed.
        self._finalizer = weakref.finalize(
            self, _release, os.getpid(), self.dir_path, lock_path, fd
        )

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else " (released)"
        return f"<WorkDir {self.dir_path!r}{state}>"

    def release(self) -> None:
        """Remove the directory and its lock file. Idempotent.

        Files that cannot be removed are logged as errors, and removed when the next `WorkDir` in
        the workspace is created.
        """
        self._finalizer()


def _claim_base_dir(base_dir: str) -> str:
    """Create ``base_dir``, or one for this user if another user controls it; return its path."""
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
        # Its parent is not writable for this user, so an administrator made it writable on purpose.
        if os.access(base_dir, os.W_OK | os.X_OK):
            return base_dir
    raise PermissionError(
        f"Cannot create scratch directories in {base_dir!r} or in {own!r}: they are not writable, "
        "or belong to another user. Set another directory (local_directory, or temporary-directory "
        "in the configuration)."
    )


def _make_or_trust(path: str) -> bool:
    """Create ``path`` and return whether only this user and root control its contents."""
    os.makedirs(path, exist_ok=True)
    status = os.stat(path)
    if {status.st_uid, os.lstat(path).st_uid} - {os.geteuid(), 0}:
        return False
    # In a directory of root that all users can write, only the sticky bit protects our files.
    unprotected = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if unprotected and status.st_uid != os.geteuid():
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _check_name(name: str, may_be_empty: bool) -> None:
    if not (_is_valid_name(name) or (may_be_empty and not name)):
        raise ValueError(
            f"{name!r} is not a valid name for a directory in a workspace: it must not be empty, "
            f"contain a directory, begin with a dot, or end with {DIR_LOCK_EXT!r}"
        )


def _is_valid_name(name: str) -> bool:
    """Return whether a `WorkDir` may have this name. Directories of other names are not removed."""
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
    """Create and lock a directory; return its path, its lock file, and the file's descriptor."""
    while True:
        chosen = name if name is not None else (prefix or "tmp") + secrets.token_hex(4)
        dir_path = os.path.join(base_dir, chosen)
        lock_path = dir_path + DIR_LOCK_EXT
        try:
            # The lock is created first: if the process dies in between, it leaves a stale lock
            # file, and not a directory without a lock file, which would never be removed.
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
                f"Cannot create the scratch directory {dir_path!r}: it already exists, in use by "
                "another process or made by hand"
            ) from None
        return dir_path, lock_path, fd


def _make_lock(path: str) -> int:
    """Create and lock a new lock file, and return its descriptor.

    Raises
    ------
    FileExistsError
        If it exists, or another process was faster to lock it.
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
        # Removed by its owner, not ours, not a file, or a symbolic link (ELOOP).
        logger.debug("Not purging the directory of %r: %s", path, exc)
        return None
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd if _lock_if_still_there(fd, path) else None


def _lock_if_still_there(fd: int, path: str) -> bool:
    """Lock an open file; if it is locked or no longer at ``path``, close it and return False."""
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
    # Closing is not enough if a forked child has inherited the descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _release(owner_pid: int, dir_path: str, lock_path: str, fd: int | None) -> None:
    if os.getpid() == owner_pid:
        _remove_locked(dir_path, lock_path, fd)
    elif fd is not None:
        os.close(fd)


def _remove_locked(dir_path: str, lock_path: str, fd: int | None) -> bool:
    """Remove a directory, then its lock file, which is locked; return whether both are gone.

    If the directory cannot be removed, its lock file stays, so that the next purge tries again.
    """
    _remove_tree(dir_path)
    gone = not os.path.lexists(dir_path)
    if fd is not None:
        if gone:
            safe_unlink(lock_path)
        _unlock(fd)
    return gone


def _remove_tree(path: str) -> None:
    """Remove a directory tree, and log the files that cannot be removed."""

    def log(func: Callable[..., Any], failed_path: str, exc: BaseException) -> None:
        if not isinstance(exc, FileNotFoundError):
            logger.error("Failed to remove %r (failed in %r): %s", failed_path, func, exc)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=log)
    else:
        shutil.rmtree(path, onerror=lambda func, failed, info: log(func, failed, info[1]))

"""Scratch directories that are removed when their process ends, or by a later process.

A `WorkSpace` is a directory in which each process creates a `WorkDir`. The owner of a `WorkDir`
holds an exclusive ``flock(2)`` on the file ``<its path>.dirlock``, which the kernel releases when
the process ends, even by ``kill -9``. Creating a `WorkDir` first removes the directories in the
workspace whose lock file can be locked. Directories that are in use, those without a lock file, and
those of other users are never removed.

If other users can write to the workspace, nothing is locked or removed except by its owner: another
user could put a name there that leads elsewhere, or hold a lock for ever.

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

import os
import secrets
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from distributed.base import config
from distributed.base.lock_files import (
    create_lock,
    is_private,
    lock_file,
    names_in,
    opened_directory,
    remove_tree,
    require_posix,
    take_lock,
    unlock,
)
from distributed.base.logs import get_logger

__all__ = [
    "DIR_LOCK_EXT",
    "WORKSPACE_LOCKS",
    "WorkDir",
    "WorkSpace",
    "is_locking_enabled",
    "safe_unlink",
]

# The original's logger, by which users filter.
logger = get_logger("distributed.diskutils")

DIR_LOCK_EXT = ".dirlock"

_GLOBAL_LOCK, _PURGE_LOCK = "global.lock", "purge.lock"

#: The names of the workspace's own locks.
WORKSPACE_LOCKS = frozenset({_GLOBAL_LOCK, _PURGE_LOCK})


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
        self.base_dir, self._trusted = _claim_base_dir(os.path.abspath(base_dir))
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
        self._purge_leftovers()
        return WorkDir(self, name=name, prefix=prefix)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory, which is created again if a cleaner of /tmp has removed it."""
        _make(self.base_dir)
        with opened_directory(self.base_dir) as space:
            status = os.fstat(space)
            if self._trusted and not _is_trusted(status):
                raise PermissionError(
                    f"Cannot create scratch directories in {self.base_dir!r}: it was replaced by a "
                    f"directory of user {status.st_uid}"
                )
            if self._locking and not is_private(status):
                self._locking = False
                logger.info(
                    "Other users can write to %r, so scratch directories in it will not be removed "
                    "after a crash. Remove that permission (chmod go-w), or set another directory "
                    "(temporary-directory).",
                    self.base_dir,
                )
            yield space

    def _purge_leftovers(self) -> list[str]:
        """Remove stale directories and return their paths; do nothing if another process does."""
        purged = []
        with self._opened() as space, self._hold(_PURGE_LOCK, space, blocking=False) as held:
            if not held:
                return []
            for entry in names_in(space):
                if not entry.endswith(DIR_LOCK_EXT):
                    continue
                name = entry.removesuffix(DIR_LOCK_EXT)
                # A lock file of another name, such as "...dirlock", was not created here. The
                # path built from it could be the workspace itself or its parent directory.
                if _is_valid_name(name) and self._purge_if_stale(name, space):
                    purged.append(os.path.join(self.base_dir, name))
        return purged

    def _purge_if_stale(self, name: str, space: int) -> bool:
        with self._hold(_GLOBAL_LOCK, space):
            # The creator of a lock file holds the global lock until it has locked the file.
            fd = take_lock(name + DIR_LOCK_EXT, space)
        dir_path = os.path.join(self.base_dir, name)
        if fd is None:
            logger.debug("Not purging %r: its lock file is locked, or not ours", dir_path)
            return False
        logger.info("Found stale lock file and directory %r, purging", dir_path)
        return _remove_locked(self.base_dir, name, space, fd)

    @contextmanager
    def _hold(self, name: str, space: int, blocking: bool = True) -> Iterator[bool]:
        """Hold one of the workspace's own locks during the block; yield whether it is held."""
        fd = self._take_own_lock(name, space, blocking) if self._locking else None
        try:
            yield fd is not None
        finally:
            if fd is not None:
                unlock(fd)

    def _take_own_lock(self, name: str, space: int, blocking: bool) -> int | None:
        fd = None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, 0o644, dir_fd=space)
            lock_file(fd, blocking)
        except OSError as exc:
            if fd is not None:
                os.close(fd)
            if not isinstance(exc, BlockingIOError):
                self._locking = False
                logger.warning(
                    "Could not lock %r: %s. Continuing without locks: scratch directories in %r "
                    "will not be removed after a crash. Use a local file system "
                    "(temporary-directory), or set distributed.worker.use-file-locking to false.",
                    os.path.join(self.base_dir, name),
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
        with workspace._opened() as space, workspace._hold(_GLOBAL_LOCK, space) as locking:
            made, fd = _make_work_dir(workspace.base_dir, space, name, prefix, locking)
            status = os.stat(made, dir_fd=space, follow_symlinks=False)
        self.dir_path = os.path.join(workspace.base_dir, made)
        # Owns the locked file; alive until the directory is removed.
        self._finalizer = weakref.finalize(
            self, _release, os.getpid(), workspace.base_dir, made, fd, status
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


def _claim_base_dir(base_dir: str) -> tuple[str, bool]:
    """Create ``base_dir``, or one for this user if another user controls it.

    Returns
    -------
    tuple
        Its path, and whether only this user and root control its contents.
    """
    require_posix(base_dir)
    try:
        if _make_or_trust(base_dir):
            return base_dir, True
    except PermissionError:
        pass
    own = f"{base_dir}-{os.geteuid()}"
    try:
        if _make_or_trust(own):
            return own, True
    except PermissionError:
        # Its parent is not writable for this user, so an administrator made it writable on purpose.
        if os.access(base_dir, os.W_OK | os.X_OK):
            return base_dir, False
    raise PermissionError(
        f"Cannot create scratch directories in {base_dir!r} or in {own!r}: they are not writable, "
        "or belong to another user. Set another directory (local_directory, or temporary-directory "
        "in the configuration)."
    )


def _make(path: str) -> None:
    """Create the directory ``path`` if it is missing, so that only this user can write to it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _make_or_trust(path: str) -> bool:
    """Create ``path`` and return whether only this user and root control its contents."""
    _make(path)
    if os.lstat(path).st_uid not in (os.geteuid(), 0):
        return False
    with opened_directory(path) as space:
        return _is_trusted(os.fstat(space)) and os.access(path, os.W_OK | os.X_OK)


def _is_trusted(status: os.stat_result) -> bool:
    if status.st_uid == os.geteuid():
        return True
    # In a directory of root that all users can write, only the sticky bit protects our files.
    unprotected = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    return status.st_uid == 0 and not unprotected


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


def _make_work_dir(
    base_dir: str, space: int, name: str | None, prefix: str | None, locking: bool
) -> tuple[str, int | None]:
    """Create and lock a directory; return its name and the descriptor of its lock file."""
    while True:
        chosen = name if name is not None else (prefix or "tmp") + secrets.token_hex(4)
        lock = chosen + DIR_LOCK_EXT
        try:
            # The lock is created first: if the process dies in between, it leaves a stale lock
            # file, and not a directory without a lock file, which would never be removed.
            fd = create_lock(lock, space) if locking else None
            try:
                os.mkdir(chosen, 0o700, dir_fd=space)
            except BaseException:
                if fd is not None:
                    _unlink_lock(base_dir, lock, space)
                    unlock(fd)
                raise
        except FileExistsError:
            if name is None:
                continue
            dir_path = os.path.join(base_dir, chosen)
            raise FileExistsError(
                f"Cannot create the scratch directory {dir_path!r}: it already exists, in use by "
                "another process or made by hand"
            ) from None
        return chosen, fd


def _release(
    owner_pid: int, base_dir: str, name: str, fd: int | None, made: os.stat_result
) -> None:
    if os.getpid() != owner_pid:
        if fd is not None:
            os.close(fd)
        return
    try:
        with opened_directory(base_dir) as space:
            if _is_at(name + DIR_LOCK_EXT, space, None if fd is None else os.fstat(fd)) or _is_at(
                name, space, made
            ):
                _remove_locked(base_dir, name, space, fd)
                return
    except FileNotFoundError:
        pass
    # Neither is here, so this is not the workspace in which they were made.
    logger.debug("The scratch directory %r is gone already", os.path.join(base_dir, name))
    if fd is not None:
        unlock(fd)


def _is_at(name: str, space: int, made: os.stat_result | None) -> bool:
    """Return whether *name* is the file or directory that was *made*."""
    if made is None:
        return False
    try:
        return os.path.samestat(os.stat(name, dir_fd=space, follow_symlinks=False), made)
    except FileNotFoundError:
        return False


def _remove_locked(base_dir: str, name: str, space: int, fd: int | None) -> bool:
    """Remove a directory, then its lock file, which is locked; return whether both are gone.

    If the directory cannot be removed, its lock file stays, so that the next purge tries again.
    """

    def log(path: str, exc: BaseException) -> None:
        logger.error("Failed to remove %r: %s", os.path.join(base_dir, path), exc)

    gone = remove_tree(name, space, log)
    if fd is not None:
        if gone:
            _unlink_lock(base_dir, name + DIR_LOCK_EXT, space)
        unlock(fd)
    return gone


def _unlink_lock(base_dir: str, lock: str, space: int) -> None:
    try:
        os.unlink(lock, dir_fd=space)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.error("Failed to remove %r: %s", os.path.join(base_dir, lock), exc)

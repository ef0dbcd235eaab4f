"""A server's scratch directory: created at first use, on ``sys.path``, removed at close.

A `ScratchDirectory` is a `WorkDir` for the files of one server and for code
uploaded to it. It does not depend on servers or messages; a ``Server`` has one and passes its
``upload_file`` operation to it.

Uploads can run in the offload thread, because they execute the uploaded code. The other operations
run in the caller's thread: creating a directory takes a few system calls, and a directory must be
gone when its server is closed, without a thread that the process would have to keep.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import sys
import tempfile
import threading
import weakref
import zipfile
from types import ModuleType
from typing import Any

from distributed.base import config
from distributed.base.event_loop import offload
from distributed.base.lock_files import opened_directory
from distributed.base.logs import get_logger
from distributed.scratch.workspace import DIR_LOCK_EXT, WORKSPACE_LOCKS, WorkDir, WorkSpace

__all__ = ["SCRATCH_SPACE", "ScratchDirectory", "import_file"]

logger = get_logger(__name__)

#: The name of the directory that contains the scratch directories of all servers.
SCRATCH_SPACE = "dask-scratch-space"

_ZIP_EXTENSIONS = (".zip", ".egg", ".pyz")


class ScratchDirectory:
    """A directory for the files of one server.

    Creating this object does not access the disk. The first use of `path` removes directories of
    dead processes, creates and locks ``<local_directory>/dask-scratch-space/<owner>-<random>``, and
    inserts it at the start of ``sys.path``.

    Parameters
    ----------
    owner_name
        The name of the server's class; in lower case, the start of the directory's name.
    local_directory
        The parent of the scratch space. Default: ``temporary-directory`` in the configuration, or
        else the system's temporary directory.
    needs_workdir
        False: use ``<local_directory>/dask-scratch-space`` itself, without locking or removing it,
        for a server that shares the directory of another one.

    Examples
    --------
    >>> import os, tempfile
    >>> with ScratchDirectory("Worker", tempfile.mkdtemp()) as scratch:
    ...     scratch.opened
    ...     scratch.upload_file("answers.py", "answer = 42")
    ...     from answers import answer
    ...     answer
    False
    {'status': 'OK', 'nbytes': 11}
    42
    >>> os.path.exists(scratch.path)
    False
    """

    # Invariant: the states are new → open → closed, or new → closed, and change under `_lock`.
    __slots__ = (
        "__weakref__",
        "_closed",
        "_finalizer",
        "_lock",
        "_path",
        "_sys_path_entries",
        "needs_workdir",
        "original",
        "owner_name",
    )

    def __init__(
        self, owner_name: str, local_directory: str | None = None, needs_workdir: bool = True
    ) -> None:
        if not local_directory:
            local_directory = config.read("temporary-directory") or tempfile.gettempdir()
        base = os.path.abspath(local_directory)
        if os.path.basename(base) != SCRATCH_SPACE:
            base = os.path.join(base, SCRATCH_SPACE)
        self.owner_name = owner_name
        self.needs_workdir = needs_workdir
        self.original = base
        self._lock = threading.Lock()
        # None before the directory is created; kept after `close`.
        self._path: str | None = None
        self._closed = False
        # Removes the directory once: in `close`, on garbage collection, or at exit.
        self._finalizer: weakref.finalize[Any, Any] | None = None
        # The entries of `sys.path` that `_finalizer` removes.
        self._sys_path_entries: list[str] = []

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self.opened else "not made yet"
        return f"<ScratchDirectory of {self.owner_name}: {self._path or self.original!r}, {state}>"

    def __enter__(self) -> ScratchDirectory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def opened(self) -> bool:
        """Whether the directory exists: created and not closed."""
        return self._path is not None and not self._closed

    @property
    def path(self) -> str:
        """The absolute path of the directory, which is created at first use.

        It stays available after `close`.

        Raises
        ------
        OSError
            If the directory cannot be created.
        RuntimeError
            If this was closed before first use.
        """
        with self._lock:
            if self._path is None:
                if self._closed:
                    raise RuntimeError(
                        f"The scratch directory of {self.owner_name} was never created, and cannot "
                        "be created now, because it was closed"
                    )
                self._path = self._open()
            return self._path

    def _open(self) -> str:
        workspace = WorkSpace(self.original)
        workdir: WorkDir | None = None
        path = workspace.base_dir
        if self.needs_workdir:
            workdir = workspace.new_work_dir(prefix=f"{self.owner_name.lower()}-")
            path = workdir.dir_path
        _add_to_sys_path(path, self._sys_path_entries)
        self._finalizer = weakref.finalize(self, _remove, self._sys_path_entries, workdir)
        return path

    def upload_file(self, filename: str, data: str | bytes, load: bool = True) -> dict[str, Any]:
        """Write a file into the directory and import its modules.

        An existing file of that name is replaced atomically.

        Parameters
        ----------
        filename
            Its name, without a directory.
        data
            Its content; a string is written as UTF-8.
        load
            Whether to import or reload a ``.py`` file, or the top-level modules and packages of a
            ``.zip``, ``.egg`` or ``.pyz`` archive. Other files are only written.

        Returns
        -------
        dict
            ``{"status": "OK", "nbytes": <bytes written>}``

        Raises
        ------
        ValueError
            If ``filename`` contains a directory, or is the name of a lock file.
        OSError
            If the file cannot be written.
        Exception
            Any error of the import. The file is kept.
        """
        _check_filename(filename)
        content = data.encode() if isinstance(data, str) else data
        directory = self.path
        path = os.path.join(directory, filename)
        unfinished = f".{secrets.token_hex(8)}.upload"
        with opened_directory(directory) as dir_fd:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(unfinished, flags, 0o666, dir_fd=dir_fd), "wb") as file:
                try:
                    file.write(content)
                    file.flush()
                    os.replace(unfinished, filename, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                except BaseException:
                    os.unlink(unfinished, dir_fd=dir_fd)
                    raise
        if load:
            with self._lock:
                if self._closed:
                    raise RuntimeError(f"{self!r} was closed while {filename!r} was uploaded")
                if path.endswith(_ZIP_EXTENSIONS):
                    _add_to_sys_path(path, self._sys_path_entries)
            import_file(path)
        return {"status": "OK", "nbytes": len(content)}

    async def upload_file_async(
        self, filename: str, data: str | bytes, load: bool = True
    ) -> dict[str, Any]:
        """Call `upload_file` in the offload thread."""
        return await offload(self.upload_file, filename, data, load)

    def close(self) -> None:
        """Remove the directory from ``sys.path`` and from the disk, and unlock it. Idempotent.

        It starts no thread, and blocks while the files are deleted.
        """
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()


def import_file(path: str) -> list[ModuleType]:
    """Import or reload a Python file, or the top-level modules and packages of an archive.

    The directory of the file, or the archive itself, must be on ``sys.path``. Submodules of the
    packages in an archive are not reloaded.

    Parameters
    ----------
    path
        A ``.py`` file, or a zip archive named ``.zip``, ``.egg`` or ``.pyz``.

    Returns
    -------
    list of modules
        Empty for any other kind of file.
    """
    stem, extension = os.path.splitext(os.path.basename(path))
    if extension == ".py":
        names = [stem]
        # Cached bytecode is considered valid if the source has the same size and the same
        # modification time in whole seconds.
        _remove_bytecode(importlib.util.cache_from_source(path))
    elif extension in _ZIP_EXTENSIONS:
        names = _top_level_names(path)
    else:
        names = []
    if not names:
        logger.info("Found nothing to import from %s", os.path.basename(path))
        return []
    importlib.invalidate_caches()
    return [_import_or_reload(name, extension) for name in names]


def _remove_bytecode(path: str) -> None:
    """Remove a file of cached bytecode, unless its directory is a symbolic link."""
    parent, cache = os.path.split(os.path.dirname(path))
    try:
        with opened_directory(parent) as outer, opened_directory(cache, outer) as dir_fd:
            os.unlink(os.path.basename(path), dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.warning(
            "Cannot remove %r, so an older version of the module may be imported: %s", path, exc
        )


def _import_or_reload(name: str, extension: str) -> ModuleType:
    known = sys.modules.get(name)
    if known is None:
        logger.info("Import module %s from %s file", name, extension)
        return importlib.import_module(name)
    logger.info("Reload module %s from %s file", name, extension)
    return importlib.reload(known)


def _top_level_names(archive: str) -> list[str]:
    names = set()
    with zipfile.ZipFile(archive) as file:
        for entry in file.namelist():
            first, _, rest = entry.partition("/")
            if not rest and first.endswith(".py"):
                names.add(first.removesuffix(".py"))
            elif rest == "__init__.py":
                names.add(first)
    # `__main__` is meant to be run; a module of this name exists in every process already.
    return sorted(names - {"__main__"})


def _check_filename(filename: str) -> None:
    if filename in {"", ".", ".."} or any(char in filename for char in "/\\\0"):
        raise ValueError(
            f"Refused to upload {filename!r}: files are only written into the scratch directory; "
            "use a name without a directory"
        )
    if filename in WORKSPACE_LOCKS or filename.endswith(DIR_LOCK_EXT):
        # A server without a directory of its own writes into the workspace itself, where a new lock
        # file makes the directory of another server look stale.
        raise ValueError(
            f"Refused to upload {filename!r}: that is the name of a lock file of the scratch "
            "directories; use another name"
        )


def _add_to_sys_path(entry: str, entries: list[str]) -> None:
    if entry not in entries:
        entries.append(entry)
        sys.path.insert(0, entry)


def _remove(sys_path_entries: list[str], workdir: WorkDir | None) -> None:
    while sys_path_entries:
        entry = sys_path_entries.pop()
        # Another server that shares the directory has its own, equal entry.
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path_importer_cache.pop(entry, None)
    if workdir is not None:
        workdir.release()

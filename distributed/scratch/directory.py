"""A server's scratch directory: made when first asked for, importable, removed at close.

A `ScratchDirectory` is a place for files of one server, and for the code that is uploaded to it.
It is a `distributed.diskutils.WorkDir` with a place of its own in ``sys.path``. It knows nothing of
servers or messages; a ``Server`` holds one and hands its ``upload_file`` operation on to it.

What touches the disk exists twice: as a plain method, and with ``_async`` at the end of its name as
a coroutine, which does the same in the offload thread so that an event loop does not wait for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
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
from distributed.scratch.workspace import WorkDir, WorkSpace, safe_unlink

__all__ = ["SCRATCH_SPACE", "ScratchDirectory", "import_file"]

logger = logging.getLogger(__name__)

SCRATCH_SPACE = "dask-scratch-space"
"""The name of the directory in which all servers make theirs."""

_ZIP_EXTENSIONS = (".zip", ".egg", ".pyz")


class ScratchDirectory:
    """A directory for one server's files.

    To make this object touches nothing. The first use of `path` makes
    ``<local_directory>/dask-scratch-space/<owner>-<random>``, holds its lock, removes directories
    that dead processes have left beside it, and puts it in front of ``sys.path``.

    Parameters
    ----------
    owner_name
        What the directory's name begins with (in lower case): the name of the server's class.
    local_directory
        Where to make it. Default: ``temporary-directory`` in the configuration, or else the
        system's directory for temporary files.
    needs_workdir
        False: use ``<local_directory>/dask-scratch-space`` itself, which is neither locked nor
        removed, for a server that shares the directory of another one.

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

    # State, changed under `_lock` and in one direction only: nothing → opened → closed, or
    # nothing → closed. `_path` is set on opening and stays; `_finalizer` is made on opening and
    # undoes it once, in `close`, on garbage collection or at exit; `_sys_path_entries` are those
    # that it will take off `sys.path`.
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
            local_directory = config.get("temporary-directory") or tempfile.gettempdir()
        base = os.path.abspath(local_directory)
        if os.path.basename(base) != SCRATCH_SPACE:
            base = os.path.join(base, SCRATCH_SPACE)
        self.owner_name = owner_name
        self.needs_workdir = needs_workdir
        self.original = base
        self._lock = threading.Lock()
        self._path: str | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Any] | None = None
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
        """Whether the directory was made and is still there."""
        return self._path is not None and not self._closed

    @property
    def path(self) -> str:
        """The absolute path of the directory, which is made if this is the first use.

        After `close` it still tells where the directory was.

        Raises
        ------
        OSError
            The directory can't be made.
        RuntimeError
            This was closed before it was used.
        """
        with self._lock:
            if self._path is None:
                if self._closed:
                    raise RuntimeError(
                        f"The scratch directory of {self.owner_name} was never made, and can't be "
                        "made any more: it is closed"
                    )
                self._path = self._open()
            return self._path

    async def path_async(self) -> str:
        """`path`, made in the offload thread if it is not there yet."""
        return self._path if self._path is not None else await offload(lambda: self.path)

    def _open(self) -> str:
        workspace = WorkSpace(self.original)
        workdir: WorkDir | None = None
        path = workspace.base_dir
        if self.needs_workdir:
            workdir = workspace.new_work_dir(prefix=f"{self.owner_name.lower()}-")
            path = workdir.dir_path
        _add_to_sys_path(path, self._sys_path_entries)
        self._finalizer = weakref.finalize(self, _withdraw, self._sys_path_entries, workdir)
        return path

    def upload_file(self, filename: str, data: str | bytes, load: bool = True) -> dict[str, Any]:
        """Write a file into the directory and import what it holds.

        A file of that name is replaced at once; nobody sees a part of it.

        Parameters
        ----------
        filename
            Its name, without any directory.
        data
            Its content; a string is written as UTF-8.
        load
            Whether to import, or to import anew, a ``.py`` file or the modules and packages at
            the top of a ``.zip``, ``.egg`` or ``.pyz`` archive. Other files are only written.

        Returns
        -------
        dict
            ``{"status": "OK", "nbytes": <bytes written>}``

        Raises
        ------
        ValueError
            ``filename`` is not a plain name.
        OSError
            It can't be written.
        Exception
            Whatever the import of the file raises; the file stays.
        """
        _check_filename(filename)
        content = data.encode() if isinstance(data, str) else data
        path = os.path.join(self.path, filename)
        unfinished = os.path.join(self.path, f".{secrets.token_hex(8)}.upload")
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
            os.replace(unfinished, path)
        except BaseException:
            safe_unlink(unfinished)
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
        """`upload_file` in the offload thread."""
        return await offload(self.upload_file, filename, data, load)

    def close(self) -> None:
        """Take the directory off ``sys.path``, remove it, and release its lock. Idempotent."""
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    async def close_async(self) -> None:
        """`close` in the offload thread, if there is anything to remove."""
        if self.opened:
            await offload(self.close)
        else:
            self.close()


def import_file(path: str) -> list[ModuleType]:
    """Import a Python file or archive, or import it anew.

    Its directory (the archive itself, respectively) has to be on ``sys.path``. Only the modules
    and packages at the top of an archive are imported anew, not what they import in turn.

    Parameters
    ----------
    path
        A ``.py`` file, or a zip archive named ``.zip``, ``.egg`` or ``.pyz``.

    Returns
    -------
    list of modules
        empty for any other kind of file.
    """
    stem, extension = os.path.splitext(os.path.basename(path))
    if extension == ".py":
        names = [stem]
        # Cached bytecode is told from a changed source by its size and its time in whole seconds.
        safe_unlink(importlib.util.cache_from_source(path))
    elif extension in _ZIP_EXTENSIONS:
        names = _top_level_names(path)
    else:
        names = []
    if not names:
        logger.info("Found nothing to import from %s", os.path.basename(path))
        return []
    importlib.invalidate_caches()
    return [_import_anew(name, extension) for name in names]


def _import_anew(name: str, extension: str) -> ModuleType:
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
    # An application's entry point is there to be run, and the name is taken in every process.
    return sorted(names - {"__main__"})


def _check_filename(filename: str) -> None:
    if filename in {"", ".", ".."} or any(char in filename for char in "/\\\0"):
        raise ValueError(
            f"Refused to upload {filename!r}: files are written into the scratch directory alone; "
            "give a name without a directory"
        )


def _add_to_sys_path(entry: str, entries: list[str]) -> None:
    if entry not in entries:
        entries.append(entry)
        sys.path.insert(0, entry)


def _withdraw(sys_path_entries: list[str], workdir: WorkDir | None) -> None:
    while sys_path_entries:
        entry = sys_path_entries.pop()
        # A server that shares the directory has put the same entry there for itself.
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path_importer_cache.pop(entry, None)
    if workdir is not None:
        workdir.release()

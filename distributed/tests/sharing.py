"""One copy on disk of each library file that several virtual environments have in common.

Files of installed packages are hard links to files in a directory, the store, whose names are the
hashes in the packages' ``RECORD``.  pip and Python replace files and never write into them, so an
environment can change without an effect on the others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from pathlib import Path

#: Smaller files stay copies: a link saves no more than one block of the disk.
MINIMUM_SIZE = 8192


def share_files(site_packages: Path, store: Path) -> int:
    """Replace the files of packages by links to equal files in a store, and add those it lacks.

    Parameters
    ----------
    site_packages
        The directory of the packages.
    store
        A directory on the same file system; created if needed.

    Returns
    -------
    int
        The bytes that were freed.
    """
    freed = 0
    store.mkdir(parents=True, exist_ok=True)
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        for file in distribution.files or ():
            size = file.size or 0
            if file.hash is not None and size >= MINIMUM_SIZE:
                kept = store / f"{file.hash.mode}-{file.hash.value}"
                freed += _share(Path(os.fspath(file.locate())), kept, size)
    return freed


def _share(path: Path, kept: Path, size: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or path.stat().st_size != size:
            return 0
        try:
            os.link(path, kept)
            return 0
        except FileExistsError:
            if path.samefile(kept) or kept.stat().st_size != size:
                return 0
        link = path.with_name(f"{path.name}.{os.getpid()}.link")
        os.link(kept, link)
        os.replace(link, path)
        return size
    return 0


def remove_unused(store: Path) -> None:
    """Remove the files of a store that no environment links to any more."""
    for path in store.iterdir():
        if path.stat().st_nlink == 1:
            path.unlink()

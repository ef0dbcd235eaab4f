"""Put this core into a wheel of dask.distributed, so that dask's roles run on it.

``python -m distributed.graft WHEEL_OR_VERSION --output DIRECTORY`` takes a wheel of
dask.distributed and writes one of the same name, in which the networking core is this project's and
every other file is the original's.  Scheduler, Worker, Nanny and Client are not changed.  The
version gets a local part (``2026.8.0+core.0.2.0``, PEP 440), so the wheel satisfies whatever
requires ``distributed==2026.8.0``.

This module needs the standard library, and pip if a version is named instead of a file.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import io
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

from distributed.base.version import __version__

__all__ = ["TESTED_VERSIONS", "GraftError", "graft", "main"]

#: Releases of dask.distributed whose roles were tested on this core.
TESTED_VERSIONS = ("2026.8.0",)

#: Folders and modules of this project that replace those of the original.
OURS = (
    *("base", "batched.py", "comm", "core", "protocol", "scratch", "security", "shared.py"),
    "telemetry",
)

#: Modules of the original that a folder of this project replaces.
REPLACED_MODULES = frozenset({"distributed/core.py", "distributed/security.py"})

#: Files that every wheel of dask.distributed has.
_EXPECTED = ("distributed/scheduler.py", "distributed/worker.py", "distributed/core.py")

_PACKAGE = Path(__file__).parent

#: Time stamp of all files that are written, so that equal inputs give equal wheels.
_DATE = (1980, 1, 1, 0, 0, 0)


class GraftError(Exception):
    """A wheel cannot be made; the message says why and what can be done."""


def graft(source: str, output: Path, *, force: bool = False) -> Path:
    """Write the grafted wheel and return its path.

    Parameters
    ----------
    source
        Path of a wheel of dask.distributed, or a version that pip is to download.
    output
        Directory to write to; it is created if necessary.
    force
        Whether a version that was not tested is accepted.

    Raises
    ------
    GraftError
        If *source* is not a wheel of dask.distributed, its version was not tested, pip cannot
        download it, or *output* cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        original = Path(source)
        if not original.is_file():
            original = _download(source, Path(scratch), force)
        try:
            with zipfile.ZipFile(original) as wheel:
                return _write(wheel, original.name, output, force)
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as exc:
            raise GraftError(f"{original} is not a wheel: {exc}") from exc
        except OSError as exc:
            raise GraftError(f"cannot read {original} or write to {output}: {exc}") from exc


def _refuse_untested(version: str, force: bool) -> None:
    if version not in TESTED_VERSIONS and not force:
        raise GraftError(
            f"dask.distributed {version} was not tested with this core; the tested versions are "
            f"{', '.join(TESTED_VERSIONS)}. Use --force to graft it nevertheless."
        )


def _download(version: str, directory: Path, force: bool) -> Path:
    if not re.fullmatch(r"\d+(\.\w+)+", version):
        raise GraftError(f"{version!r} is neither a file nor a version such as 2026.8.0")
    _refuse_untested(version, force)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(directory)]
    done = subprocess.run(
        [*command, f"distributed=={version}"], capture_output=True, text=True, check=False
    )
    found = list(directory.glob("distributed-*.whl"))
    if done.returncode or not found:
        raise GraftError(f"pip could not download distributed=={version}:\n{done.stderr.strip()}")
    return found[0]


def _write(wheel: zipfile.ZipFile, name: str, output: Path, force: bool) -> Path:
    version, info, metadata = _identify(wheel, name)
    _refuse_untested(version, force)
    grafted = f"{version}+core.{__version__}"
    new_info = f"distributed-{grafted}.dist-info"
    files = {
        entry.replace(info, new_info, 1): wheel.read(entry)
        for entry in wheel.namelist()
        if not entry.endswith("/") and not _is_replaced(entry) and entry != f"{info}/RECORD"
    }
    files.update(_our_files())
    licence = "licenses/LICENSE.distributed-core.txt"
    files[f"{new_info}/{licence}"] = _our_licence()
    files[f"{new_info}/METADATA"] = _new_metadata(metadata, version, grafted)

    output.mkdir(parents=True, exist_ok=True)
    path = output / f"distributed-{grafted}-py3-none-any.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry, data in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            rows.writerow([entry, f"sha256={digest.decode()}", len(data)])
            target.writestr(_entry(entry), data)
        rows.writerow([f"{new_info}/RECORD", "", ""])
        target.writestr(_entry(f"{new_info}/RECORD"), record.getvalue())
    return path


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    return entry


def _identify(wheel: zipfile.ZipFile, name: str) -> tuple[str, str, str]:
    """Return version, name of the ``dist-info`` folder, and metadata of the original's wheel."""
    names = set(wheel.namelist())
    found = [entry for entry in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)]
    if len(found) != 1:
        raise GraftError(f"{name} is not a wheel: it has {len(found)} METADATA files, expected 1")
    metadata = wheel.read(found[0]).decode()
    headers = HeaderParser().parsestr(metadata)
    version = str(headers["Version"])
    missing = [entry for entry in _EXPECTED if entry not in names]
    if "+core." in version:
        raise GraftError(f"{name} was grafted already; use the original's wheel of that version")
    if headers["Name"] != "distributed" or missing:
        lacks = f" and it lacks {', '.join(missing)}" if missing else ""
        raise GraftError(
            f"{name} is not a wheel of dask.distributed: its name is {headers['Name']!r}{lacks}"
        )
    return version, found[0].partition("/")[0], metadata


def _is_replaced(entry: str) -> bool:
    top, _, rest = entry.partition("/")
    return top == "distributed" and (rest.split("/")[0] in OURS or entry in REPLACED_MODULES)


def _our_files() -> Iterator[tuple[str, bytes]]:
    for name in OURS:
        path = _PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            relative = file.relative_to(_PACKAGE)
            if "tests" not in relative.parts:
                yield f"distributed/{relative.as_posix()}", file.read_bytes()


def _our_licence() -> bytes:
    in_checkout = _PACKAGE.parent / "LICENSE"
    if in_checkout.is_file():
        return in_checkout.read_bytes()
    for file in importlib.metadata.files("distributed-core") or ():
        if file.name == "LICENSE":
            return file.read_binary()
    raise GraftError("the licence of distributed-core is missing; reinstall the package")


def _new_metadata(metadata: str, version: str, grafted: str) -> bytes:
    head, blank, body = metadata.partition("\n\n")
    head = head.replace(f"\nVersion: {version}", f"\nVersion: {grafted}", 1)
    author = "Author: the authors of dask.distributed (roles) and of distributed-core (networking)"
    head += f"\n{author}\nLicense-File: LICENSE.distributed-core.txt"
    note = (
        f"This is dask.distributed {version} on the networking core of distributed-core "
        f"{__version__}.\n\n"
    )
    return (head + (blank or "\n\n") + note + body).encode()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m distributed.graft",
        description="Put this networking core into a wheel of dask.distributed.",
    )
    parser.add_argument("source", help="a wheel of dask.distributed, or a version to download")
    parser.add_argument("--output", type=Path, required=True, help="directory for the new wheel")
    parser.add_argument("--force", action="store_true", help="accept a version that was not tested")
    options = parser.parse_args(arguments)
    try:
        path = graft(options.source, options.output, force=options.force)
    except GraftError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

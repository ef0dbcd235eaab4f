"""The scratch directory of a server, and files uploaded to it."""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import os
import sys
import tempfile
import threading
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distributed.base import config
from distributed.scratch.directory import ScratchDirectory, import_file
from distributed.tests.environments import run_here


@pytest.fixture
def scratch(tmp_path):
    with ScratchDirectory("MyServer", str(tmp_path)) as scratch:
        yield scratch


@pytest.fixture
def module():
    """An unused module name; modules with this prefix are removed after the test."""
    name = f"uploaded_{uuid.uuid4().hex}"
    yield name
    for loaded in [known for known in sys.modules if known.startswith(name)]:
        del sys.modules[loaded]


def zipped(files: dict[str, str]) -> bytes:
    """Return a zip archive of these files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, content in files.items():
            writer.writestr(name, content)
    return archive.getvalue()


def test_creating_one_does_not_access_the_disk(tmp_path):
    before = list(sys.path)
    scratch = ScratchDirectory("MyServer", str(tmp_path))
    assert not scratch.opened
    assert os.listdir(tmp_path) == []
    assert sys.path == before


def test_the_directory_is_created_at_first_use(scratch, tmp_path):
    assert os.path.isdir(scratch.path)
    assert os.path.dirname(scratch.path) == str(tmp_path / "dask-scratch-space")
    assert os.path.basename(scratch.path).startswith("myserver-")
    assert scratch.opened


def test_the_directory_stays_the_same(scratch):
    assert scratch.path == scratch.path


def test_threads_that_first_use_it_concurrently_get_the_same_directory(scratch):
    barrier = threading.Barrier(8)

    def first_use(_):
        barrier.wait(30)
        return scratch.path

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first_use, range(8)))) == 1


def test_the_directory_is_importable_while_it_is_open(scratch):
    path = scratch.path
    assert sys.path[0] == path
    scratch.close()
    assert path not in sys.path


def test_close_removes_the_directory_and_its_lock(scratch, tmp_path):
    Path(scratch.path, "file").write_text("x")
    scratch.close()
    assert not scratch.opened
    assert set(os.listdir(tmp_path / "dask-scratch-space")) == {"global.lock", "purge.lock"}


def test_the_path_stays_available_after_close(scratch):
    path = scratch.path
    scratch.close()
    assert scratch.path == path


def test_close_twice_is_harmless(scratch):
    assert scratch.path
    scratch.close()
    scratch.close()
    assert not os.path.exists(scratch.path)


def test_close_before_use_creates_nothing(scratch, tmp_path):
    scratch.close()
    with pytest.raises(RuntimeError, match=r"MyServer was never created.*closed"):
        scratch.path  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_the_directory_is_removed_on_garbage_collection(tmp_path):
    scratch = ScratchDirectory("MyServer", str(tmp_path))
    path = scratch.path
    del scratch
    gc.collect()
    assert not os.path.exists(path)
    assert path not in sys.path


def test_the_directory_is_removed_when_its_process_ends(tmp_path):
    code = """
        import sys
        from distributed.scratch.directory import ScratchDirectory
        scratch = ScratchDirectory("MyServer", sys.argv[1])
        print(scratch.path, end="")
    """
    path = run_here(code, tmp_path).stdout
    assert path.startswith(str(tmp_path))
    assert not os.path.exists(path)


def test_the_directory_of_a_killed_server_is_removed_by_the_next_one(scratch, tmp_path):
    code = """
        import os, sys
        from distributed.scratch.directory import ScratchDirectory
        scratch = ScratchDirectory("MyServer", sys.argv[1])
        print(scratch.path, end="", flush=True)
        os._exit(0)
    """
    stale = run_here(code, tmp_path).stdout
    assert os.path.isdir(stale)
    assert os.path.isdir(scratch.path)
    assert not os.path.exists(stale)


def test_the_default_location_is_read_from_the_configuration(tmp_path):
    with config.set({"temporary-directory": str(tmp_path)}):
        scratch = ScratchDirectory("MyServer")
    assert scratch.original == str(tmp_path / "dask-scratch-space")


def test_the_location_without_configuration_is_the_temporary_directory():
    with config.set({"temporary-directory": None}):
        scratch = ScratchDirectory("MyServer")
    assert scratch.original == os.path.join(tempfile.gettempdir(), "dask-scratch-space")


def test_original_is_the_space_for_directories_of_other_servers(scratch):
    other = ScratchDirectory("Worker", scratch.original)
    with other:
        assert os.path.dirname(other.path) == os.path.dirname(scratch.path)


def test_a_relative_location_is_resolved_at_creation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ScratchDirectory("MyServer", "x").original == str(tmp_path / "x/dask-scratch-space")


def test_a_shared_directory_is_neither_locked_nor_removed(tmp_path):
    scratch = ScratchDirectory("MyServer", str(tmp_path), needs_workdir=False)
    assert scratch.path == str(tmp_path / "dask-scratch-space")
    assert os.listdir(scratch.path) == []
    assert scratch.path in sys.path
    scratch.close()
    assert os.path.isdir(scratch.path)
    assert scratch.path not in sys.path


def test_a_server_does_not_remove_the_sys_path_entry_of_another_server(tmp_path):
    first = ScratchDirectory("First", str(tmp_path), needs_workdir=False)
    second = ScratchDirectory("Second", str(tmp_path), needs_workdir=False)
    assert first.path == second.path
    first.close()
    assert second.path in sys.path
    second.close()
    assert second.path not in sys.path


@pytest.mark.parametrize(("data", "nbytes"), [("abc", 3), ("é", 2), (b"\xff\x00", 2), ("", 0)])
def test_upload_file_writes_text_and_bytes(scratch, data, nbytes):
    assert scratch.upload_file("data.txt", data) == {"status": "OK", "nbytes": nbytes}
    content = Path(scratch.path, "data.txt").read_bytes()
    assert content == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(scratch.path) == ["data.txt"]


def test_upload_file_replaces_a_file(scratch):
    scratch.upload_file("data.txt", "a much longer text")
    scratch.upload_file("data.txt", "short")
    assert Path(scratch.path, "data.txt").read_text() == "short"


@pytest.mark.parametrize(
    "filename", ["", ".", "..", "../evil.py", "a/b.py", "/etc/passwd", "a\\b.py", "a\0b"]
)
def test_a_name_with_a_directory_is_refused(scratch, tmp_path, filename):
    with pytest.raises(ValueError, match="Refused to upload"):
        scratch.upload_file(filename, "x = 1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("filename", ["global.lock", "purge.lock", "worker-1.dirlock"])
def test_the_name_of_a_lock_file_is_refused(tmp_path, filename):
    # Otherwise a peer could make the directory of a living server look stale.
    with ScratchDirectory("Worker", str(tmp_path), needs_workdir=False) as scratch:
        with pytest.raises(ValueError, match="lock file"):
            scratch.upload_file(filename, b"", load=False)
        assert os.listdir(scratch.path) == []


def test_cached_bytecode_behind_a_link_is_not_removed(scratch, tmp_path, module, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    scratch.upload_file(f"{module}.py", "x = 1", load=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = importlib.util.cache_from_source(os.path.join(scratch.path, f"{module}.py"))
    os.symlink(elsewhere, os.path.dirname(cache))
    kept = elsewhere / os.path.basename(cache)
    kept.write_bytes(b"not bytecode")
    import_file(os.path.join(scratch.path, f"{module}.py"))
    assert kept.read_bytes() == b"not bytecode"


def test_a_symbolic_link_is_replaced_and_not_followed(scratch, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    Path(scratch.path, "data.txt").symlink_to(outside)
    scratch.upload_file("data.txt", "x")
    assert outside.read_text() == "precious"


def test_a_python_file_is_imported(scratch, module):
    scratch.upload_file(f"{module}.py", "x = 1")
    assert sys.modules[module].x == 1
    assert sys.modules[module].__file__ == os.path.join(scratch.path, f"{module}.py")


def test_a_python_file_is_run_once(scratch, module):
    scratch.upload_file(f"{module}.py", "n = globals().get('n', 0) + 1")
    assert sys.modules[module].n == 1


def test_a_python_file_that_is_uploaded_again_is_reloaded(scratch, module):
    # Same size and, most likely, same second: cached bytecode would be considered valid.
    for x in range(5):
        scratch.upload_file(f"{module}.py", f"x = {x}")
        assert sys.modules[module].x == x


def test_without_load_nothing_is_imported(scratch, module):
    scratch.upload_file(f"{module}.py", "x = 1", load=False)
    assert module not in sys.modules
    assert importlib.import_module(module).x == 1


@pytest.mark.parametrize("extension", [".zip", ".egg", ".pyz"])
def test_the_modules_of_an_archive_are_imported(scratch, module, extension):
    files = {
        f"{module}_a.py": "x = 1",
        f"{module}_b/__init__.py": f"from {module}_b.sub import y",
        f"{module}_b/sub.py": "y = 2",
        "__main__.py": "raise SystemExit('the main module was run')",
        "data.txt": "",
    }
    scratch.upload_file(f"archive{extension}", zipped(files))
    assert sys.modules[f"{module}_a"].x == 1
    assert sys.modules[f"{module}_b"].y == 2


def test_an_archive_that_is_uploaded_again_is_reloaded(scratch, module):
    for x in (1, 22):
        scratch.upload_file("archive.zip", zipped({f"{module}.py": f"x = {x}"}))
        assert sys.modules[module].x == x


def test_archives_are_removed_from_sys_path_at_close(scratch, module):
    before = list(sys.path)
    scratch.upload_file("archive.zip", zipped({f"{module}.py": ""}))
    scratch.upload_file("archive.zip", zipped({f"{module}.py": ""}))
    assert len(sys.path) == len(before) + 2
    scratch.close()
    assert sys.path == before


def test_an_error_of_the_import_is_raised_and_the_file_is_kept(scratch, module):
    with pytest.raises(ZeroDivisionError):
        scratch.upload_file(f"{module}.py", "1 / 0")
    assert os.path.exists(os.path.join(scratch.path, f"{module}.py"))


def test_a_file_that_cannot_be_written_leaves_nothing_behind(scratch):
    os.mkdir(os.path.join(scratch.path, "taken"))
    with pytest.raises(OSError, match="taken"):
        scratch.upload_file("taken", "x")
    assert os.listdir(scratch.path) == ["taken"]


def test_import_file_returns_the_modules(tmp_path, monkeypatch, module):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / f"{module}.py"
    path.write_text("x = 1")
    assert [loaded.x for loaded in import_file(str(path))] == [1]


def test_import_file_finds_nothing_in_other_files(tmp_path):
    assert import_file(str(tmp_path / "data.txt")) == []


def test_an_upload_by_a_coroutine_runs_in_another_thread(scratch, module):
    code = "import threading; thread = threading.current_thread()"
    answer = asyncio.run(scratch.upload_file_async(f"{module}.py", code))
    assert answer == {"status": "OK", "nbytes": len(code)}
    assert sys.modules[module].thread is not threading.current_thread()


def test_creating_and_removing_a_directory_starts_no_thread(scratch):
    before = threading.enumerate()
    assert os.path.isdir(scratch.path)
    scratch.close()
    assert threading.enumerate() == before


def test_the_repr_shows_the_state(scratch):
    assert "not made yet" in repr(scratch)
    path = scratch.path
    assert path in repr(scratch)
    assert "open" in repr(scratch)
    scratch.close()
    assert "closed" in repr(scratch)

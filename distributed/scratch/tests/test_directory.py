"""What `distributed.scratch.directory` promises."""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import timeit
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import distributed
from distributed.base import config
from distributed.scratch.directory import ScratchDirectory, import_file

ROOT = str(Path(distributed.__file__).parent.parent)


@pytest.fixture
def scratch(tmp_path):
    with ScratchDirectory("MyServer", str(tmp_path)) as scratch:
        yield scratch


@pytest.fixture
def module():
    """A name that no module has; what is imported under it is forgotten after the test."""
    name = f"uploaded_{uuid.uuid4().hex}"
    yield name
    for loaded in [known for known in sys.modules if known.startswith(name)]:
        del sys.modules[loaded]


def zipped(files: dict[str, str]) -> bytes:
    """A zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, content in files.items():
            writer.writestr(name, content)
    return archive.getvalue()


def test_to_make_one_touches_nothing(tmp_path):
    before = list(sys.path)
    scratch = ScratchDirectory("MyServer", str(tmp_path))
    assert not scratch.opened
    assert os.listdir(tmp_path) == []
    assert sys.path == before


def test_it_costs_microseconds_to_make():
    ScratchDirectory("MyServer")
    seconds = min(timeit.repeat(lambda: ScratchDirectory("MyServer"), number=100, repeat=5)) / 100
    assert seconds < 200e-6


def test_the_directory_is_made_on_first_use(scratch, tmp_path):
    assert os.path.isdir(scratch.path)
    assert os.path.dirname(scratch.path) == str(tmp_path / "dask-scratch-space")
    assert os.path.basename(scratch.path).startswith("myserver-")
    assert scratch.opened


def test_the_directory_stays_the_same(scratch):
    assert scratch.path == scratch.path


def test_threads_that_use_it_first_at_the_same_time_get_the_same_directory(scratch):
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


def test_the_path_is_still_known_after_close(scratch):
    path = scratch.path
    scratch.close()
    assert scratch.path == path


def test_close_twice_is_harmless(scratch):
    assert scratch.path
    scratch.close()
    scratch.close()
    assert not os.path.exists(scratch.path)


def test_close_before_use_makes_nothing(scratch, tmp_path):
    scratch.close()
    with pytest.raises(RuntimeError, match=r"MyServer was never made.*closed"):
        scratch.path  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_one_that_is_forgotten_cleans_up(tmp_path):
    scratch = ScratchDirectory("MyServer", str(tmp_path))
    path = scratch.path
    del scratch
    gc.collect()
    assert not os.path.exists(path)
    assert path not in sys.path


def test_one_that_is_never_closed_is_removed_when_the_process_ends(tmp_path):
    script = (
        "import sys; from distributed.scratch.directory import ScratchDirectory\n"
        "scratch = ScratchDirectory('MyServer', sys.argv[1]); print(scratch.path, end='')"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    output = subprocess.check_output(command, cwd=ROOT, text=True, timeout=60)
    assert output.startswith(str(tmp_path))
    assert not os.path.exists(output)


def test_what_a_dead_server_left_is_removed(scratch, tmp_path):
    script = (
        "import os, sys; from distributed.scratch.directory import ScratchDirectory\n"
        "scratch = ScratchDirectory('MyServer', sys.argv[1]); print(scratch.path, flush=True)\n"
        "os._exit(0)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    left = subprocess.check_output(command, cwd=ROOT, text=True, timeout=60).strip()
    assert os.path.isdir(left)
    assert os.path.isdir(scratch.path)
    assert not os.path.exists(left)


def test_the_default_place_is_configured(tmp_path):
    with config.set({"temporary-directory": str(tmp_path)}):
        scratch = ScratchDirectory("MyServer")
    assert scratch.original == str(tmp_path / "dask-scratch-space")


def test_without_configuration_it_is_the_place_for_temporary_files():
    with config.set({"temporary-directory": None}):
        scratch = ScratchDirectory("MyServer")
    assert scratch.original == os.path.join(tempfile.gettempdir(), "dask-scratch-space")


def test_original_is_where_others_can_make_theirs_beside_it(scratch):
    other = ScratchDirectory("Worker", scratch.original)
    with other:
        assert os.path.dirname(other.path) == os.path.dirname(scratch.path)


def test_a_relative_place_is_meant_as_of_now(tmp_path, monkeypatch):
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


def test_servers_that_share_a_directory_do_not_take_it_off_each_others_path(tmp_path):
    first = ScratchDirectory("First", str(tmp_path), needs_workdir=False)
    second = ScratchDirectory("Second", str(tmp_path), needs_workdir=False)
    assert first.path == second.path
    first.close()
    assert second.path in sys.path
    second.close()
    assert second.path not in sys.path


@pytest.mark.parametrize(("data", "nbytes"), [("abc", 3), ("é", 2), (b"\xff\x00", 2), ("", 0)])
def test_upload_file_writes_what_it_gets(scratch, data, nbytes):
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
def test_a_name_that_leaves_the_directory_is_refused(scratch, tmp_path, filename):
    with pytest.raises(ValueError, match="Refused to upload"):
        scratch.upload_file(filename, "x = 1")
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_directory_is_replaced_not_followed(scratch, tmp_path):
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


def test_a_python_file_that_is_uploaded_again_is_imported_anew(scratch, module):
    # Same size and, most likely, same second: cached bytecode would look as good as new.
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


def test_an_archive_that_is_uploaded_again_is_imported_anew(scratch, module):
    for x in (1, 22):
        scratch.upload_file("archive.zip", zipped({f"{module}.py": f"x = {x}"}))
        assert sys.modules[module].x == x


def test_archives_are_taken_off_the_path_at_close(scratch, module):
    before = list(sys.path)
    scratch.upload_file("archive.zip", zipped({f"{module}.py": ""}))
    scratch.upload_file("archive.zip", zipped({f"{module}.py": ""}))
    assert len(sys.path) == len(before) + 2
    scratch.close()
    assert sys.path == before


def test_what_the_import_raises_is_raised_and_the_file_stays(scratch, module):
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


def test_the_coroutines_work_in_another_thread(scratch, module):
    code = "import threading; thread = threading.current_thread()"

    async def main():
        path = await scratch.path_async()
        assert scratch.opened
        assert await scratch.path_async() == path
        answer = await scratch.upload_file_async(f"{module}.py", code)
        await scratch.close_async()
        return answer

    assert asyncio.run(main()) == {"status": "OK", "nbytes": len(code)}
    assert sys.modules[module].thread is not threading.current_thread()
    assert not os.path.exists(scratch.path)


def test_closing_what_was_never_used_needs_no_thread(scratch):
    before = threading.active_count()
    asyncio.run(scratch.close_async())
    assert threading.active_count() == before


def test_the_repr_tells_the_state(scratch):
    assert "not made yet" in repr(scratch)
    path = scratch.path
    assert path in repr(scratch)
    assert "open" in repr(scratch)
    scratch.close()
    assert "closed" in repr(scratch)

"""The files of a server: its local directory and uploaded files."""

from __future__ import annotations

import os
import sys
import threading
import types

import pytest

from distributed.base.event_loop import shutdown_offload
from distributed.core import Server, rpc
from distributed.tests.servers import TCP, TRANSPORTS, assert_usable, connected, serving
from distributed.utils_test import captured_logger, gen_test


def is_directory(path):
    return os.path.isdir(path)


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def write(text, *path):
    with open(os.path.join(*path), "w") as file:
        file.write(text)


@gen_test()
async def test_a_server_makes_no_directory_before_it_is_used(tmp_path):
    async with serving(TCP, local_directory=str(tmp_path)) as server, connected(server) as comm:
        await assert_usable(comm)
        assert not list(tmp_path.iterdir())


@gen_test()
async def test_the_local_directory_is_made_on_first_use(tmp_path):
    async with Server({}, local_directory=tmp_path) as server:
        path = server.local_directory
        assert is_directory(path)
        assert path in sys.path
        assert server._original_local_dir == str(tmp_path / "dask-scratch-space")
        assert os.path.dirname(path) == server._original_local_dir
        assert os.path.basename(path).startswith("server-")
        assert server.local_directory == path


@gen_test()
async def test_the_local_directory_can_be_set(tmp_path):
    async with Server({}) as server:
        server.local_directory = str(tmp_path)
        assert server.local_directory == str(tmp_path)


@gen_test()
async def test_the_local_directory_is_removed_at_close(tmp_path):
    async with Server({}, local_directory=str(tmp_path)) as server:
        path = server.local_directory
        write("x", path, "spilled")
    assert not is_directory(path)
    assert path not in sys.path


@gen_test()
async def test_removing_the_local_directory_starts_no_thread(tmp_path):
    shutdown_offload()
    before = threading.enumerate()
    async with Server({}, local_directory=str(tmp_path)) as server:
        write("x", server.local_directory, "spilled")
    assert threading.enumerate() == before


@gen_test()
async def test_a_role_of_the_original_has_its_directory_when_it_has_started(tmp_path, monkeypatch):
    class ServerNode(Server):
        pass

    module = types.ModuleType("distributed.node")
    module.ServerNode = ServerNode
    monkeypatch.setitem(sys.modules, "distributed.node", module)
    async with ServerNode({}, local_directory=str(tmp_path)):
        [directory] = [entry for entry in sys.path if entry.startswith(str(tmp_path))]
        assert is_directory(directory)
    assert directory not in sys.path


@gen_test()
async def test_each_server_has_its_own_directory(tmp_path):
    async with (
        Server({}, local_directory=str(tmp_path)) as one,
        Server({}, local_directory=str(tmp_path)) as other,
    ):
        assert one.local_directory != other.local_directory
        await one.close()
        assert is_directory(other.local_directory)


@gen_test()
async def test_a_server_without_its_own_directory_uses_the_common_one(tmp_path):
    async with Server({}, local_directory=str(tmp_path), needs_workdir=False) as server:
        path = server.local_directory
        assert path == str(tmp_path / "dask-scratch-space")
    assert is_directory(path)


@TRANSPORTS
@gen_test()
async def test_upload_file_writes_and_imports(transport, tmp_path):
    async with serving(transport, local_directory=str(tmp_path)) as server:
        server.handlers["upload_file"] = server.upload_file
        source = b"answer = 6 * 7\n"
        async with rpc(server.address) as remote:
            answer = await remote.upload_file(filename="uploaded_to_server.py", data=source)
        assert answer == {"status": "OK", "nbytes": len(source)}
        assert sys.modules.pop("uploaded_to_server").answer == 42
        assert read(server.local_directory, "uploaded_to_server.py") == source


@gen_test()
async def test_upload_file_without_load_imports_nothing(tmp_path):
    async with Server({}, local_directory=str(tmp_path)) as server:
        await server.upload_file("not_imported.py", "1 / 0", load=False)
        assert os.listdir(server.local_directory) == ["not_imported.py"]


@gen_test()
async def test_upload_file_of_code_that_fails_raises_also_at_the_caller(tmp_path):
    async with Server({}, local_directory=str(tmp_path)) as server:
        await server.listen("tcp://127.0.0.1:0")
        with pytest.raises(ZeroDivisionError):
            await server.upload_file("does_not_import.py", "1 / 0")
        server.handlers["upload_file"] = server.upload_file
        async with rpc(server.address) as remote:
            with captured_logger("distributed.core") as log, pytest.raises(ZeroDivisionError):
                await remote.upload_file(filename="does_not_import_either.py", data=b"1 / 0")
        assert "does_not_import_either.py" in log.getvalue()


@gen_test()
async def test_upload_file_refuses_a_path_outside_the_directory(tmp_path):
    async with Server({}, local_directory=str(tmp_path)) as server:
        with pytest.raises(ValueError, match=r"escaped\.txt"):
            await server.upload_file("../escaped.txt", "x")
        assert not list(tmp_path.rglob("escaped.txt"))

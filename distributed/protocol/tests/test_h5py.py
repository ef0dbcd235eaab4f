"""HDF5 files that are open for reading arrive as references to the same file."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.exceptions import ProtocolError, SerializationError
from distributed.protocol.tests.round_trips import in_each_way

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["/group/x"] = range(5)
    return tmp_path / "x.h5"


@pytest.fixture
def file(path):
    with h5py.File(path, "r") as file:
        yield file


@in_each_way
def test_a_file_arrives_open_for_reading(file, way):
    with way(file) as arrived:
        assert type(arrived) is h5py.File
        assert (arrived.filename, arrived.mode) == (file.filename, "r")
        assert arrived["/group/x"][:].tolist() == [0, 1, 2, 3, 4]


@in_each_way
def test_a_group_arrives_as_the_same_group(file, way):
    arrived = way(file["group"])
    with arrived.file:
        assert type(arrived) is h5py.Group
        assert arrived.name == "/group"
        assert list(arrived) == ["x"]


@in_each_way
def test_a_dataset_arrives_as_the_same_dataset(file, way):
    arrived = way(file["group/x"])
    with arrived.file:
        assert type(arrived) is h5py.Dataset
        assert arrived[1:3].tolist() == [1, 2]


def test_no_content_is_sent(file):
    assert serialize(file["group/x"])[1] == []


@pytest.mark.parametrize("mode", ["r+", "a", "w"])
def test_a_file_that_is_open_for_writing_is_refused(path, mode):
    with h5py.File(path, mode) as file:
        for x in (file, file.require_group("group")):
            with pytest.raises(SerializationError, match="open it with mode 'r'"):
                dumps(Serialize(x), on_error="raise")


def test_the_receiver_gets_the_error_of_the_sender(path):
    with h5py.File(path, "r+") as file:
        frames = dumps(Serialize(file))
    with pytest.raises(SerializationError, match="open it with mode 'r'"):
        loads(frames)


def test_a_closed_file_is_refused(path):
    with h5py.File(path, "r") as file:
        dataset = file["group/x"]
    for x in (file, dataset):
        with pytest.raises(SerializationError, match="closed"):
            dumps(Serialize(x), on_error="raise")


@pytest.mark.parametrize("filename", ["/does/not/exist.h5", 5, None, b"x"])
def test_a_file_that_cannot_be_opened_is_an_error(file, filename):
    header, frames = serialize(file)
    header["sub-header"]["filename"] = filename
    with pytest.raises(ProtocolError):
        deserialize(header, frames)


def test_a_dataset_that_is_not_in_the_file_is_an_error(file):
    header, frames = serialize(file["group/x"])
    header["sub-header"]["name"] = "/nothing"
    with pytest.raises(ProtocolError):
        deserialize(header, frames)

"""netCDF files arrive as references to the same file."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, serialize
from distributed.protocol.exceptions import ProtocolError, SerializationError
from distributed.protocol.tests.round_trips import in_each_way

# The warning is about a release of NumPy that its compiled part was not built for; harmless.
pytestmark = pytest.mark.filterwarnings("ignore:numpy.ndarray size changed:RuntimeWarning")
netCDF4: Any = pytest.importorskip("netCDF4", reason="netCDF4 is not installed")


@pytest.fixture
def ds(tmp_path):
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as ds:
        for group in (ds, ds.createGroup("one").createGroup("two")):
            group.createDimension("x", 5)
            group.createVariable("x", "i4", ("x",))[:] = range(5)
    ds = netCDF4.Dataset(tmp_path / "x.nc", "r")
    yield ds
    if ds.isopen():
        ds.close()


def root(x):
    while x.parent is not None:
        x = x.parent
    return x


@in_each_way
def test_a_file_arrives_open_for_reading(ds, way):
    with way(ds) as arrived:
        assert type(arrived) is netCDF4.Dataset
        assert arrived.filepath() == ds.filepath()
        assert arrived["x"][:].tolist() == [0, 1, 2, 3, 4]
        with pytest.raises((PermissionError, RuntimeError)):
            arrived["x"][:] = 1


@in_each_way
def test_a_group_arrives_as_the_same_group(ds, way):
    arrived = way(ds["one/two"])
    with root(arrived):
        assert type(arrived) is netCDF4.Group
        assert arrived.path == "/one/two"
        assert arrived["x"][1:3].tolist() == [1, 2]


@pytest.mark.parametrize("path", ["x", "one/two/x"])
@in_each_way
def test_a_variable_arrives_as_the_same_variable(ds, way, path):
    arrived = way(ds[path])
    with root(arrived.group()):
        assert type(arrived) is netCDF4.Variable
        assert arrived.group().path == ds[path].group().path
        assert arrived[1:3].tolist() == [1, 2]


def test_no_content_is_sent(ds):
    for x in (ds, ds["one/two"], ds["x"]):
        assert serialize(x)[1] == []


def test_a_closed_file_is_refused(ds):
    ds.close()
    with pytest.raises(SerializationError, match="closed"):
        dumps(Serialize(ds), on_error="raise")


@pytest.mark.parametrize("filename", ["/does/not/exist.nc", 5, None, b"x"])
def test_a_file_that_cannot_be_opened_is_an_error(ds, filename):
    for x in (ds, ds["one"]):
        header, frames = serialize(x)
        header["sub-header"]["filename"] = filename
        with pytest.raises(ProtocolError):
            deserialize(header, frames)


def test_a_variable_or_group_that_is_not_in_the_file_is_an_error(ds):
    for x, key in ((ds["x"], "name"), (ds["one"], "path")):
        header, frames = serialize(x)
        header["sub-header"][key] = "nothing"
        with pytest.raises(ProtocolError):
            deserialize(header, frames)

"""Device objects are sent through the host's memory, or unchanged if the transport can carry them.

No device is needed: CuPy and RMM are replaced by small modules whose "device memory" is NumPy's.
This tests headers, layouts and frames, but not that the real libraries accept them.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="NumPy is not installed")

ROOT = Path(__file__).parents[3]

STAND_INS = '''
import sys, types
import numpy as np

def module(name, **names):
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(names)
    return made

class ndarray:
    """An array that NumPy cannot convert, as those of CuPy."""
    __module__ = "cupy"
    __array__ = None
    def __init__(self, shape, dtype=float, memptr=None, strides=None):
        if memptr is None:
            self.host = np.zeros(shape, dtype)
        else:
            self.host = np.ndarray(shape, dtype, memptr, 0, strides)
    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    nbytes = property(lambda self: self.host.nbytes)
    flags = property(lambda self: types.SimpleNamespace(
        c_contiguous=self.host.flags.c_contiguous, f_contiguous=self.host.flags.f_contiguous))
    data = property(lambda self: memoryview(self.host.ravel(order="K").view("u1")))
    __cuda_array_interface__ = property(lambda self: {
        "shape": self.shape, "typestr": self.dtype.str, "descr": [("", self.dtype.str)],
        "stream": 1, "version": 3, "strides": None, "data": (self.host.ctypes.data, False)})

def on_device(host):
    made = ndarray(())
    made.host = host
    return made

cupy = module(
    "cupy", ndarray=ndarray,
    array=lambda x, order="K": on_device(np.array(x, order=order)),
    asarray=lambda x: x if isinstance(x, ndarray) else on_device(np.frombuffer(x, "u1")),
    ascontiguousarray=lambda x: on_device(np.ascontiguousarray(x.host)),
    asnumpy=lambda x: x.host.copy(order="K"),
)

class MatDescriptor:
    __module__ = "cupy.cusparse"
    create = classmethod(lambda cls: cls())
    def __reduce__(self):
        return MatDescriptor.create, ()

class spmatrix:
    __module__ = "cupyx.scipy.sparse"
class csr_matrix(spmatrix):
    __module__ = "cupyx.scipy.sparse"
    def __init__(self, data, indices, indptr, shape):
        self.data, self.indices, self.indptr, self._shape = data, indices, indptr, shape
        self._descr = MatDescriptor()

module("cupy.cusparse", MatDescriptor=MatDescriptor)
module("cupyx"), module("cupyx.cusparse", MatDescriptor=MatDescriptor), module("cupyx.scipy")
module("cupyx.scipy.sparse", spmatrix=spmatrix, csr_matrix=csr_matrix)

class DeviceBuffer:
    __module__ = "rmm"
    def __init__(self, size=0):
        self.host = bytearray(size)
    size = nbytes = property(lambda self: len(self.host))
    __cuda_array_interface__ = property(lambda self: {
        "data": (1, False), "shape": (self.size,), "strides": None, "typestr": "|u1", "version": 0})
    def tobytes(self):
        return bytes(self.host)
    @classmethod
    def to_device(cls, memory):
        made = cls()
        made.host = bytearray(memory)
        return made

rmm = module("rmm", DeviceBuffer=DeviceBuffer)

from distributed.protocol import *
from distributed.protocol.families import families
from distributed.protocol.objects import deserialize, serialize
from distributed.protocol.tests.round_trips import WAYS
'''


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", STAND_INS + textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


LAYOUTS = """
x = np.arange(24.0).reshape(2, 3, 4)
hosts = [x, x.T, x[:, ::2], x[::-1], x[:0], np.array(5), np.asfortranarray(x), x[:1]]
"""


def test_an_array_is_sent_through_the_host():
    run(
        LAYOUTS
        + """
for host in hosts:
    for way in WAYS.values():
        arrived = way(on_device(host))
        assert type(arrived) is ndarray
        assert arrived.dtype == host.dtype
        np.testing.assert_array_equal(arrived.host, host)
        assert arrived.host.flags.f_contiguous or not host.flags.f_contiguous
    header, frames = serialize(on_device(host), on_error="raise")
    assert header["serializer"] == "dask"
    assert header["sub-header"]["typestr"] == "<f8" or host.dtype != float
"""
    )


def test_an_array_stays_on_the_device_with_the_family_cuda():
    run(
        LAYOUTS
        + """
for host in hosts:
    header, frames = serialize(on_device(host), serializers=["cuda"], on_error="raise")
    assert header["serializer"] == "cuda"
    assert [type(frame) for frame in frames] == [ndarray]
    assert frames[0].shape == (host.nbytes,)
    arrived = deserialize(header, frames)
    assert type(arrived) is ndarray
    np.testing.assert_array_equal(arrived.host, host)
x = on_device(np.arange(6.0))
header, frames = serialize(x, serializers=["cuda"])
assert np.shares_memory(deserialize(header, frames).host, x.host)
"""
    )


@pytest.mark.parametrize("serializer", ["cuda", "dask"])
def test_a_false_header_is_refused(serializer):
    run(
        f"""
from distributed.protocol.exceptions import ProtocolError
header, frames = serialize(on_device(np.arange(6.0)), serializers=[{serializer!r}])
for changes in ({{"shape": (7,)}}, {{"strides": (16,)}}, {{"strides": None}}, {{"typestr": "O"}},
                {{"typestr": "<f4"}}, {{"shape": (2**60,)}}, {{"strides": (-8,)}}):
    false = {{**header, "sub-header": {{**header["sub-header"], **changes}}}}
    try:
        deserialize(false, frames)
    except ProtocolError:
        continue
    raise AssertionError(changes)
"""
    )


def test_a_sparse_matrix_is_sent_as_its_arrays():
    run(
        """
import cupyx.scipy.sparse
x = csr_matrix(on_device(np.arange(3.0)), on_device(np.arange(3)), on_device(np.arange(4)), (3, 3))
arrivals = [way(x) for way in WAYS.values()]
arrivals.append(deserialize(*serialize(x, serializers=["cuda"], on_error="raise")))
for arrived in arrivals:
    assert type(arrived) is csr_matrix
    assert type(arrived._descr) is MatDescriptor
    assert arrived._shape == (3, 3)
    assert arrived.data.host.tolist() == [0, 1, 2]
"""
    )


def test_a_device_buffer_is_sent_through_the_host_or_stays_on_the_device():
    run(
        """
x = DeviceBuffer.to_device(b"0123456789" * 10)
for way in WAYS.values():
    arrived = way(x)
    assert type(arrived) is DeviceBuffer
    assert arrived.tobytes() == x.tobytes()
header, frames = serialize(x, serializers=["cuda"], on_error="raise")
assert frames == [x]
assert header["sub-header"]["strides"] == (1,)
assert deserialize(header, frames) is x
assert deserialize(header, [x.tobytes()]).tobytes() == x.tobytes()
assert WAYS["sent"](DeviceBuffer()).nbytes == 0
"""
    )


@pytest.mark.parametrize("library", ["cudf", "cuml"])
def test_rapids_libraries_register_their_own_types(library):
    run(
        f"""
class Frame:
    __module__ = "{library}.core"
import importlib.abc, importlib.machinery
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.startswith("{library}"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return None
    def exec_module(self, made):
        if made.__name__ == "{library}.comm.serialize":
            for table in (cuda_serialize, dask_serialize):
                table.register(Frame, lambda x: ({{}}, []))
            for table in (cuda_deserialize, dask_deserialize):
                table.register(Frame, lambda header, frames: Frame())
sys.meta_path.insert(0, Finder())
assert serialize(Frame(), serializers=["cuda"])[0]["serializer"] == "cuda"
header, frames = serialize(Frame())
assert header["serializer"] == "dask"
"""
    )


def test_serializers_of_numba_are_registered_for_its_first_device_array():
    pytest.importorskip("numba", reason="Numba is not installed")
    run(
        """
import numba.cuda
from numba.cuda.cudadrv.devicearray import DeviceNDArray
for table in (dask_serialize, dask_deserialize, cuda_serialize, cuda_deserialize):
    assert "numba" in table.dispatch(DeviceNDArray).__name__
"""
    )


def test_a_function_compiled_by_numba_is_pickled():
    pytest.importorskip("numba", reason="Numba is not installed")
    run(
        """
import numba
@numba.njit
def add(x, y):
    return x + y
assert WAYS["sent"](add)(1, 2) == 3
"""
    )

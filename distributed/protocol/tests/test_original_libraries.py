"""Objects of data libraries arrive unchanged at the original, and from it."""

from __future__ import annotations

import base64
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from distributed.protocol import Serialize, dumps, loads, register_generic
from distributed.tests.environments import ORIGINAL, _or_skip, run_in

LIBRARIES = ["h5py", "netCDF4", "numpy", "pandas", "polars", "pyarrow", "scipy", "sparse"]
for library in LIBRARIES:
    pytest.importorskip(library, reason=f"{library} is not installed")

# The same on both sides.  OBJECTS are expressions, without those that the original does not
# support: subclasses, hard masks, fill values of sparse arrays, numpy.bytes_.
DEFINITIONS = """
import numpy as np, pandas as pd, polars as pl, pyarrow as pa, scipy.sparse as sp, sparse
import h5py, netCDF4
from distributed.protocol import Serialize, dumps, loads, register_generic

class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)

A = np.arange(24, dtype="<i8").reshape(2, 3, 4)
FIELDS = [("a", "i4"), ("b", "f8", (2,)), ("c", "U2")]
TIMES = pd.date_range("2020", periods=9)
FRAME = pd.DataFrame({"i": np.arange(9), "t": TIMES, "s": list("abcabcabc")})
SPARSE = sp.coo_matrix(([1.5, 2, 3], ([0, 1, 3], [2, 0, 1])), shape=(4, 3))

OBJECTS = [
    "A", "A.T", "A[:, ::2]", "A[::-1]", "A.transpose(1, 0, 2)", "np.asfortranarray(A)[::2]",
    "np.array(5)", "np.ones((1, 1))", "np.empty((3, 0, 2))", "np.empty(0)",
    "np.broadcast_to(np.arange(3), (1000, 3))", "np.broadcast_to(2.5, (5, 6))",
    "np.broadcast_to(np.arange(9)[::3], (5, 3))",
    "np.zeros(3, FIELDS)", "np.zeros(2, np.dtype('i1,f8', align=True))", "np.zeros(3, 'V5')",
    "np.array(['2020-01-01', '2021-01-01'], 'M8[ns]')", "np.array([1, 2], '>m8[h]')",
    "np.array(['ab', 'cde'])", "np.array([b'ab', b'c'])", "np.arange(3, dtype='>i4')",
    "np.ones(3, 'f2')", "np.zeros(3, 'g')", "np.array([1 + 2j])", "np.array([True])",
    "np.array([1, 'a', None], object)", "np.array([[1, 2], [3, 4]], object).T",
    "np.array(['ab', 'c' * 50], np.dtypes.StringDType())",
    "np.float32(2.5)", "np.datetime64('2020-01-01')",
    "np.ma.masked_array([1, 2, 3], [0, 1, 0])", "np.ma.masked_array(['abc', 'b'], [0, 1])",
    "np.ma.masked_array([1.5, 2])", "np.ma.masked_array(A, A > 5, fill_value=7)", "np.ma.masked",
    "FRAME", "FRAME.t", "FRAME.i[::2]", "FRAME.index",
    "pl.from_pandas(FRAME[['i']])",
    "pa.table({'a': [1, 2], 'b': ['x', None]})", "pa.record_batch({'a': [1, 2]})",
    "pa.array([1, None])", "pa.schema([('a', 'i4')])", "pa.chunked_array([[1], [2]])",
    "SPARSE", "SPARSE.tocsr()", "SPARSE.tocsc()", "SPARSE.tobsr()", "SPARSE.todia()",
    "SPARSE.todok()", "SPARSE.tolil()", "sp.csr_array(SPARSE)", "sp.coo_array(SPARSE)",
    "sparse.COO(SPARSE)", "sparse.GCXS(SPARSE)",
    "h5py.File(DIRECTORY + '/x.h5', 'r')['/group/x']",
    "netCDF4.Dataset(DIRECTORY + '/x.nc')['group/x']",
    "Holder(a=A, b={'x': A, 'y': {'z': [A.T, 1]}}, c=5, d={}, e=(1, 2), f='x')",
    "[A, {'a': A.T, 'b': (FRAME, 1)}]",
]

def told(x):
    '''Describe an object by a text that differs if the object does.'''
    if isinstance(x, (list, tuple)):
        return f"{type(x).__name__}({', '.join(map(told, x))})"
    if isinstance(x, dict):
        return f"dict({sorted((key, told(value)) for key, value in x.items())})"
    if type(x).__name__ == "Holder":
        return f"Holder({told(vars(x))})"
    what = f"{type(x).__module__}.{type(x).__name__} "
    if x is np.ma.masked:
        return what
    if isinstance(x, np.ma.MaskedArray):
        return what + f"{x.dtype} {x.filled().tolist()} {x.mask!r} {x.fill_value!r}"
    if isinstance(x, np.ndarray):
        return what + f"{x.dtype} {x.shape} {x.tolist()} {x.flags.writeable}"
    if hasattr(x, "toarray") or hasattr(x, "todense"):
        dense = x.toarray() if hasattr(x, "toarray") else x.todense()
        return what + f"{x.dtype} {x.nnz} {dense.tolist()}"
    if isinstance(x, (h5py.Dataset, netCDF4.Variable)):
        return what + f"{x[:].tolist()}"
    if isinstance(x, (pa.Table, pa.RecordBatch)):
        return what + f"{x.schema} {x.to_pydict()}"
    if isinstance(x, (pa.Array, pa.ChunkedArray)):
        return what + f"{x.type} {x.to_pylist()}"
    return what + repr(x)
"""

WRITE = """
import base64, json
register_generic(Holder)
for expression in OBJECTS:
    for size in (None, 16):
        frames = dumps(Serialize(eval(expression)), on_error="raise", frame_split_size=size)
        print(json.dumps([base64.b64encode(frame).decode() for frame in frames]))
"""

READ = """
import base64, json
register_generic(Holder)
for line in open(WRITTEN):
    frames = [bytearray(base64.b64decode(frame)) for frame in json.loads(line)]
    try:
        print(json.dumps(told(loads(frames))))
    except Exception as e:
        print(json.dumps(f"{type(e).__name__}: {e}"))
"""

# Both sides import the definitions as this module, so that the pickle of `Holder` finds its class.
MODULE = "data_for_both_sides"


@pytest.fixture(scope="module")
def libraries_python():
    """A Python with the original and the data libraries, in the versions installed here."""
    pinned = [f"{name}=={version(name)}" for name in LIBRARIES]
    return _or_skip("original-libraries", [ORIGINAL, *pinned], project=False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    import h5py
    import netCDF4

    path = tmp_path_factory.mktemp("files")
    with h5py.File(path / "x.h5", "w") as file:
        file["/group/x"] = range(5)
    with netCDF4.Dataset(path / "x.nc", "w") as ds:
        group = ds.createGroup("group")
        group.createDimension("x", 5)
        group.createVariable("x", "i4", ("x",))[:] = range(5)
    (path / f"{MODULE}.py").write_text(DEFINITIONS)
    return path


@pytest.fixture(scope="module")
def data(directory):
    """The imported definitions."""
    import importlib
    import sys

    sys.path.insert(0, str(directory))
    try:
        data = importlib.import_module(MODULE)
    finally:
        sys.path.remove(str(directory))
    register_generic(data.Holder)
    data.DIRECTORY = str(directory)
    yield data
    del sys.modules[MODULE]


def converse(python: Path, directory: Path, code: str, **names: str) -> list[object]:
    """Run *code* with the original, and return the JSON lines that it prints."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    path = f"import sys; sys.path.insert(0, {str(directory)!r})\n"
    done = run_in(python, f"{path}from {MODULE} import *\n{given}{code}", timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def written_here(data):
    return [
        dumps(Serialize(eval(expression, vars(data))), on_error="raise", frame_split_size=size)
        for expression in data.OBJECTS
        for size in (None, 16)
    ]


@pytest.fixture(scope="module")
def written_there(libraries_python, directory):
    lines = converse(libraries_python, directory, WRITE, DIRECTORY=str(directory))
    return [[bytearray(base64.b64decode(frame)) for frame in frames] for frames in lines]


def expected(data):
    return [
        data.told(eval(expression, vars(data))) for expression in data.OBJECTS for _ in range(2)
    ]


def test_the_original_reads_objects_written_here(libraries_python, directory, data, written_here):
    lines = [json.dumps([base64.b64encode(f).decode() for f in frames]) for frames in written_here]
    (directory / "written").write_text("\n".join(lines))
    written = str(directory / "written")
    answers = converse(libraries_python, directory, READ, DIRECTORY=str(directory), WRITTEN=written)
    assert answers == expected(data)


def test_objects_written_by_the_original_are_read_here(data, written_there):
    assert [data.told(loads(frames)) for frames in written_there] == expected(data)


def test_objects_written_by_the_original_are_passed_on_unchanged(written_there):
    for frames in written_there:
        passed_on = dumps(loads(frames, deserialize=False))
        assert [bytes(frame) for frame in passed_on] == [bytes(frame) for frame in frames]


def test_the_same_bytes_are_written(data, written_here, written_there):
    # Without frame_split_size: the original splits some memory into larger frames than asked for.
    differ = [
        expression
        for expression, here, there in zip(
            data.OBJECTS, written_here[::2], written_there[::2], strict=True
        )
        if [bytes(frame) for frame in here] != [bytes(frame) for frame in there]
    ]
    # The original copies an array with exchanged axes into C order, and pickles dates and polars
    # frames in band.  It reads both forms.
    assert differ == [
        "A.transpose(1, 0, 2)",
        "FRAME",
        "FRAME.t",
        "pl.from_pandas(FRAME[['i']])",
        "[A, {'a': A.T, 'b': (FRAME, 1)}]",
    ]

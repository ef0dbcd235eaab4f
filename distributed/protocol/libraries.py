"""Which module of this package knows the types of which foreign library.

Nothing of a library is imported before one of its objects is to be sent, or its type is named by a
message that arrives: only then is the module imported that registers the library's types.  What is
not listed here (pandas, polars and everything else) is pickled; libraries whose pickles keep large
buffers apart lose nothing by that.
"""

from __future__ import annotations

import importlib
from functools import partial

from distributed.protocol.dispatch import (
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
)

__all__ = ["MODULES"]

MODULES = {
    "numpy": "distributed.protocol.numpy",
    "scipy": "distributed.protocol.scipy",
    "sparse": "distributed.protocol.sparse",
    "pyarrow": "distributed.protocol.arrow",
    "h5py": "distributed.protocol.h5py",
    "netCDF4": "distributed.protocol.netcdf4",
    "torch": "distributed.protocol.torch",
    "torchvision": "distributed.protocol.torch",
    "keras": "distributed.protocol.keras",
    "cupy": "distributed.protocol.cupy",
    "cupyx": "distributed.protocol.cupy",
    "numba": "distributed.protocol.numba",
    "rmm": "distributed.protocol.rmm",
    # These bring the functions for their types themselves.
    "cudf": "cudf.comm.serialize",
    "dask_cudf": "cudf.comm.serialize",
    "cuml": "cuml.comm.serialize",
}
"""By the name of a top-level module, the module that registers its types when it is imported."""

_ON_DEVICES = ("cupy", "cupyx", "numba", "rmm", "cudf", "dask_cudf", "cuml")

for _library, _module in MODULES.items():
    for _table in (dask_serialize, dask_deserialize):
        _table.register_lazy(_library, partial(importlib.import_module, _module))
for _library in _ON_DEVICES:
    for _table in (cuda_serialize, cuda_deserialize):
        _table.register_lazy(_library, partial(importlib.import_module, MODULES[_library]))

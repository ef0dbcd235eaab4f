"""Messages for property tests."""

from __future__ import annotations

import importlib.util
from array import array
from typing import Any

from hypothesis import strategies as st

from distributed.core import Status
from distributed.protocol import (
    Serialize,
    ToPickle,
    register_generic,
    register_serialization,
)


class Pair:
    """A class with serializers of its own."""

    def __init__(self, left, right):
        self.left, self.right = left, right

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Record:
    """A class whose instances are serialized by their attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


register_serialization(
    Pair, lambda x: ({}, [x.left, x.right]), lambda header, frames: Pair(*map(bytes, frames))
)
register_generic(Record)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=100)
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from(Status)
    | st.frozensets(st.integers(), max_size=3)
)
keys = st.text(max_size=8) | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=8) | st.none()
hashables = st.recursive(scalars, lambda inner: st.tuples(inner, inner), max_leaves=4)
buffers = (
    st.binary(max_size=100)
    | st.binary(max_size=100).map(bytearray)
    | st.lists(st.integers(0, 255), max_size=20).map(lambda x: array("H", x))
    | st.integers(10_000, 20_000).map(bytes)
)


def collections(inner):
    return (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
    )


def arrays():
    if importlib.util.find_spec("numpy") is None:
        return st.nothing()
    # This imports numpy.
    from hypothesis.extra import numpy as hnp

    # NumPy's pickles do not preserve every type of foreign byte order.
    dtypes = (hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3)).filter(lambda dt: dt.isnative)
    whole = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0))
    return whole | whole.map(lambda x: x.T) | whole.map(lambda x: x[..., ::-1] if x.ndim else x)


def view(memory: bytes, format: str = "B") -> Any:
    return memoryview(memory).cast(format)  # type: ignore[call-overload]


typed_views = st.builds(
    view, st.integers(1, 5).map(lambda n: bytes(8 * n)), st.sampled_from("bhIqd?")
)
#: Values of registered types, except those that a pickle preserves.
registered = (
    typed_views
    | st.binary(max_size=50).map(view)
    | st.builds(Pair, st.binary(max_size=20), st.binary(max_size=20))
    | arrays()
)

#: Values for `Serialize`: they arrive unchanged, lists as lists.
picklable_values = st.recursive(scalars | buffers, collections, max_leaves=8)
values = st.recursive(
    scalars | buffers | registered,
    lambda inner: collections(inner) | st.builds(Record, a=buffers | registered | st.integers()),
    max_leaves=8,
)


def messages_with(pickled):
    wrapped = values.map(Serialize) | values.map(Serialize).map(Serialize) | pickled.map(ToPickle)
    return st.recursive(scalars | wrapped, collections, max_leaves=12)


#: Messages: lists in them arrive as tuples.
messages = messages_with(picklable_values)

#: Messages that arrive unchanged after they were passed on.  The forwarder unpickles a value to
#: pickle, and sends it on as a plain value.
forwardable_messages = messages_with(scalars)


def arrives(x):
    """Return the message that the receiver of *x* gets."""
    if isinstance(x, (Serialize, ToPickle)):
        return arrives(x.data) if isinstance(x.data, Serialize) else x.data
    if isinstance(x, (list, tuple)):
        return tuple(map(arrives, x))
    if isinstance(x, dict):
        return {key: arrives(value) for key, value in x.items()}
    return x


def same(x, y):
    """Return whether the received *x* equals *y* with the same types (1, 1.0 and True differ)."""
    if type(x) is bytes and isinstance(y, memoryview):
        # Within a pickle, a memoryview becomes bytes, as with the original.
        return x == y.tobytes()
    if type(x) is not type(y):
        return False
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    if isinstance(x, Record):
        return same(vars(x), vars(y))
    if isinstance(x, memoryview):
        return (x.format, x.shape, x.tobytes()) == (y.format, y.shape, y.tobytes())
    if type(x).__name__ == "ndarray":
        return (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    return bool(x == y)

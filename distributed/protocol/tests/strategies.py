"""Messages for property tests."""

from __future__ import annotations

from array import array

from hypothesis import strategies as st

from distributed.core import Status
from distributed.protocol import Serialize, ToPickle

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


#: What `Serialize` may hold: arrives as it was, lists as lists.
values = st.recursive(scalars | buffers, collections, max_leaves=8)


def messages_with(pickled):
    wrapped = values.map(Serialize) | values.map(Serialize).map(Serialize) | pickled.map(ToPickle)
    return st.recursive(scalars | wrapped, collections, max_leaves=12)


#: Messages: lists in them arrive as tuples.
messages = messages_with(values)

#: Messages that arrive the same when they were passed on: what is to be pickled is a plain value
#: to those who do so.
forwardable_messages = messages_with(scalars)


def arrives(x):
    """What a message arrives as."""
    if isinstance(x, (Serialize, ToPickle)):
        return arrives(x.data) if isinstance(x.data, Serialize) else x.data
    if isinstance(x, (list, tuple)):
        return tuple(map(arrives, x))
    if isinstance(x, dict):
        return {key: arrives(value) for key, value in x.items()}
    return x


def same(x, y):
    """Equality that tells types apart, as 1, 1.0 and True are."""
    if type(x) is not type(y):
        return False
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    return bool(x == y)

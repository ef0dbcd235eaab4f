"""pandas has no serializers here: it is pickled, with large memory out of band."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, dumps, loads, pickle, serialize
from distributed.protocol.tests.round_trips import any_shares_memory, family, in_each_way, received

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
pd: Any = pytest.importorskip("pandas", reason="pandas is not installed")

N = 1000
FRAME = pd.DataFrame(
    {
        "i": np.arange(N),
        "f": np.linspace(0, 1, N),
        "t": pd.date_range("2020", periods=N, freq="s", tz="UTC"),
        "c": pd.Categorical(["a", "b"] * (N // 2)),
        "n": pd.array([1, None] * (N // 2), dtype="Int64"),
        "s": ["x", None] * (N // 2),
    }
)
OBJECTS = {
    "frame": FRAME,
    "empty frame": FRAME[:0],
    "steps of a frame": FRAME[::2],
    "frame with levels": FRAME.set_index(["i", "c"]),
    "frame of objects": pd.DataFrame({"o": [1, "a", (2,)]}),
    "series": FRAME.f,
    "range": pd.RangeIndex(4),
    "index": pd.Index(["a", "b"]),
    "timestamps": pd.DatetimeIndex(FRAME.t),
    "intervals": pd.interval_range(0, 5),
    "timestamp": pd.Timestamp("2020-01-01", tz="UTC"),
    "missing": pd.NA,
}


def assert_same(x, expected):
    assert type(x) is type(expected)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(x, expected)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(x, expected)
    elif isinstance(expected, pd.Index):
        pd.testing.assert_index_equal(x, expected)
    else:
        assert x is expected or x == expected


@pytest.mark.parametrize("x", OBJECTS.values(), ids=OBJECTS)
@in_each_way
def test_an_object_arrives_unchanged(x, way):
    assert_same(way(x), x)


def test_memory_is_copied_by_neither_sender_nor_receiver():
    frame = pd.DataFrame({"i": np.arange(N), "f": np.linspace(0, 1, N)})
    assert family(frame) == "pickle"
    sent, frames = serialize(frame)[1], received(dumps(Serialize(frame)))
    arrived = loads(frames)
    for name in frame:
        assert any_shares_memory(sent, frame[name].to_numpy())
        assert any_shares_memory(frames, arrived[name].to_numpy())


@pytest.mark.parametrize("name", ["i", "f", "c", "n"])
def test_the_pickle_itself_stays_small(name):
    _, frames = serialize(pd.concat([FRAME[name]] * 100))
    assert len(frames[0]) < 3000


def test_a_received_frame_is_writeable():
    arrived = loads(received(dumps(Serialize(FRAME))))
    arrived.loc[0, "f"] = 5
    assert arrived.f[0] == 5


def test_dates_are_pickled_out_of_band():
    frame = pd.DataFrame(
        {
            "d": pd.date_range("2026", periods=10**5, freq="s"),
            "tz": pd.date_range("2026", periods=10**5, freq="s", tz="UTC"),
            "td": pd.to_timedelta(range(10**5), unit="s"),
        }
    )
    buffers = []
    pickled = pickle.dumps(frame, buffer_callback=buffers.append)
    assert len(pickled) < 3000
    assert pickle.loads(pickled, buffers=buffers).equals(frame)

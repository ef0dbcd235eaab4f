"""Keras models arrive with their weights and their optimizer's state."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from distributed.protocol import serialize
from distributed.protocol.tests.round_trips import family, in_each_way

pytest.importorskip("torch", reason="Keras has no backend: PyTorch is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras", reason="Keras is not installed")
np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")

# The warning comes from Keras' own conversion from PyTorch to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def sequential():
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, activation="relu")])


def functional():
    x = keras.layers.Input((3,))
    return keras.Model(x, keras.layers.Dropout(0.5)(keras.layers.Dense(2)(x)))


def trained():
    model = sequential()
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    return model


MODELS = {"sequential": sequential, "functional": functional, "trained": trained}


def assert_same(model, expected):
    assert type(model) is type(expected)
    # Keras itself turns some tuples into lists.
    assert json.dumps(model.get_config()) == json.dumps(expected.get_config())
    x = np.random.default_rng(0).random((5, 3))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model(x)), keras.ops.convert_to_numpy(expected(x))
    )
    if getattr(expected, "optimizer", None) is not None:
        assert model.compiled
        for one, other in zip(model.optimizer.variables, expected.optimizer.variables, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
            )


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@in_each_way
def test_a_model_arrives_unchanged(make, way):
    model = make()
    assert_same(way(model), model)


def test_each_array_of_weights_is_a_frame():
    model = sequential()
    _, frames = serialize(model)
    assert [memoryview(frame).nbytes for frame in frames] == [24, 8]
    assert family(model) == "dask"


def test_a_model_that_is_not_built_is_pickled():
    assert family(keras.Sequential([keras.layers.Dense(2)])) == "pickle"

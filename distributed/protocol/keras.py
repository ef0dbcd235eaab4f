"""Keras models as their configuration and the arrays of their weights.

The configuration travels as JSON in the header, each array of weights as its own memory.  A model
whose configuration cannot be told goes to the next family, which is pickle.  Layers that are not
Keras' own must be known to the receiver (``keras.saving.register_keras_serializable``); code inside
of the configuration (``Lambda`` layers) is not run, as Keras' safe mode has it.  This module is
imported when the first object of Keras is seen (see :mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import keras

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_keras_model", "serialize_keras_model"]

Header = dict[str, Any]


def serialize_keras_model(model: keras.Model, context: Any = None) -> tuple[Header, list[Any]]:
    """Describe a model and give its weights, and its optimizer's state if it has any.

    Raises
    ------
    NotImplementedError
        For models that are not built yet, or do not tell their configuration.
    """
    if not model.built:
        raise NotImplementedError("a model that is not built has no weights yet")
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as e:
        raise NotImplementedError(f"the model's configuration cannot be told: {e}") from e
    optimizer = getattr(model, "optimizer", None)
    state = [] if optimizer is None or not optimizer.built else optimizer.variables
    weights = model.get_weights()
    headers, counts, frames = [], [], []
    for array in (*weights, *(keras.ops.convert_to_numpy(v) for v in state)):
        sub_header, sub_frames = serialize(array, on_error="raise", context=context)
        headers.append(sub_header)
        counts.append(len(sub_frames))
        frames += sub_frames
    header = {
        "keras_version": keras.__version__,
        "config": config,
        "headers": headers,
        "nframes": counts,
        "nweights": len(weights),
    }
    return header, frames


def deserialize_keras_model(header: Header, frames: Sequence[Buffer]) -> keras.Model:
    """Make a model and set its weights.

    Raises
    ------
    HeaderError
        If the weights are not those of the model.
    """
    model = keras.saving.deserialize_keras_object(json.loads(header["config"]))
    if not isinstance(model, keras.Model):
        raise HeaderError(f"a Keras model turned out to be {type(model).__name__}")
    arrays = []
    start = 0
    for sub_header, count in zip(header["headers"], header["nframes"], strict=True):
        arrays.append(deserialize(sub_header, frames[start : start + count]))
        start += count
    count = header["nweights"]
    model.set_weights(arrays[:count])
    if arrays[count:]:
        model.optimizer.build(model.trainable_variables)
        if len(model.optimizer.variables) != len(arrays) - count:
            raise HeaderError("the optimizer's state is not that of the model's optimizer")
        for variable, array in zip(model.optimizer.variables, arrays[count:], strict=True):
            variable.assign(array)
    return model


dask_serialize.register(keras.Model, serialize_keras_model)
dask_deserialize.register(keras.Model, deserialize_keras_model)

"""Keras models: the configuration as JSON in the header, and the weights as arrays.

A model that has no serializable configuration is left to the next family, which is pickle.  The
receiver must know custom layers (``keras.saving.register_keras_serializable``).  Code in the
configuration (``Lambda`` layers) is refused by Keras' safe mode.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import keras

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import Header, deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_keras_model", "serialize_keras_model"]


def serialize_keras_model(model: keras.Model, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frames of a model: its weights, and the optimizer's state if there is any.

    Raises
    ------
    NotImplementedError
        For a model that is not built yet, or whose configuration cannot be serialized.
    """
    if not model.built:
        raise NotImplementedError("the model is not built, so it has no weights yet")
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as e:
        raise NotImplementedError(f"the model's configuration cannot be serialized: {e}") from e
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
    """Return a model with the weights, and the optimizer's state, from *frames*.

    Raises
    ------
    HeaderError
        If the configuration is not that of a model, or the optimizer has other variables.
    """
    model = keras.saving.deserialize_keras_object(json.loads(header["config"]))
    if not isinstance(model, keras.Model):
        raise HeaderError(f"the configuration is that of a {type(model).__name__}, not a model")
    arrays = []
    start = 0
    for sub_header, count in zip(header["headers"], header["nframes"], strict=True):
        if type(count) is not int or not 0 <= count <= len(frames) - start:
            raise HeaderError(f"an array of a model cannot have {count!r:.100} frames")
        arrays.append(deserialize(sub_header, frames[start : start + count]))
        start += count
    count = header["nweights"]
    model.set_weights(arrays[:count])
    if arrays[count:]:
        model.optimizer.build(model.trainable_variables)
        if len(model.optimizer.variables) != len(arrays) - count:
            raise HeaderError("the optimizer's state does not fit the model's optimizer")
        for variable, array in zip(model.optimizer.variables, arrays[count:], strict=True):
            variable.assign(array)
    return model


dask_serialize.register(keras.Model, serialize_keras_model)
dask_deserialize.register(keras.Model, deserialize_keras_model)

"""PyTorch's tensors as NumPy arrays, and its modules attribute by attribute.

A dense tensor in the host's memory is sent without a copy, and arrives as a view of the memory that
its frame was received into.  A tensor on a device is sent through the host, and moved back to a
device of the same kind.  Tensors that NumPy cannot represent (sparse, quantized, bfloat16),
subclasses, and tensors with extra attributes are left to the next family, which is pickle.

The attributes of a module are pickled with the memory of its tensors out of band: nothing large is
copied, and tensors that are shared within an attribute (tied weights) stay shared.
"""

from __future__ import annotations

import io
import pickle as stdlib_pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import cloudpickle
import torch

from distributed.base.buffers import ensure_memoryview
from distributed.protocol import pickle
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.generic import ObjectDictSerializer
from distributed.protocol.objects import Header, accepts_pickles, deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = [
    "deserialize_torch_Parameters",
    "deserialize_torch_Tensor",
    "serialize_torch_Parameters",
    "serialize_torch_Tensor",
]

# Tensors


def _is_array(t: torch.Tensor) -> bool:
    """Return whether NumPy can represent this tensor."""
    return (
        t.layout is torch.strided
        and t.device.type != "meta"
        and not t.is_quantized
        and not t.is_conj()
        and not t.is_neg()
        and t.dtype in _ARRAY_DTYPES
    )


_ARRAY_DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
    if hasattr(torch, name)
)


def _check_is_array(t: torch.Tensor, cls: type) -> None:
    if type(t) is not cls or t.__dict__ or not _is_array(t):
        raise NotImplementedError(f"this {type(t).__name__} cannot be sent as an array")


def _gradient(t: torch.Tensor) -> torch.Tensor | None:
    # PyTorch warns when the gradient of a tensor that is not a leaf is read.
    gradient = t.grad if t.is_leaf else None
    if gradient is not None and not _is_array(gradient):
        raise NotImplementedError("the tensor's gradient cannot be sent as an array")
    return gradient


def _to_host(t: torch.Tensor) -> Any:
    return t.detach().cpu().numpy()


def _from_host(x: Any, device: Any = "cpu") -> torch.Tensor:
    shape = x.shape
    # The elements of an expanded tensor are copied once, here and to a device.
    once = x[(*(slice(None) if stride else slice(1) for stride in x.strides), ...)]
    # Tensors must be writeable, even if the received memory is not.
    t = torch.from_numpy(once if once.flags.writeable else once.copy())
    return (t if device == "cpu" else t.to(device)).expand(shape)


def serialize_torch_Tensor(t: torch.Tensor, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frames of a tensor, and of its gradient if it has one.

    Raises
    ------
    NotImplementedError
        For a tensor that cannot be sent as an array.
    """
    _check_is_array(t, torch.Tensor)
    gradient = _gradient(t)
    sub_header, frames = serialize(_to_host(t), on_error="raise", context=context)
    header: Header = {"sub-header": sub_header}
    if gradient is not None:
        grad_header, grad_frames = serialize(_to_host(gradient), on_error="raise", context=context)
        header["grad"] = {"header": grad_header, "start": len(frames)}
        frames += grad_frames
    header["requires_grad"] = t.requires_grad
    header["device"] = t.device.type
    return header, frames


def deserialize_torch_Tensor(header: Header, frames: Sequence[Buffer]) -> torch.Tensor:
    """Return a tensor that views the memory of *frames*, or a copy of it on a device."""
    gradient = header.get("grad")
    end = len(frames) if gradient is None else gradient["start"]
    t = _from_host(deserialize(header["sub-header"], frames[:end]), header["device"])
    if header["requires_grad"]:
        t.requires_grad_()
    if gradient is not None:
        t.grad = _from_host(deserialize(gradient["header"], frames[end:]), t.device)
    return t


def serialize_torch_Parameters(
    p: torch.nn.Parameter, context: Any = None
) -> tuple[Header, list[Any]]:
    """Return header and frames of the parameter's tensor.

    Raises
    ------
    NotImplementedError
        For a parameter that cannot be sent as an array.
    """
    _check_is_array(p, torch.nn.Parameter)
    t = p.detach()
    t.grad = _gradient(p)
    sub_header, frames = serialize(t, on_error="raise", context=context)
    return {"sub-header": sub_header, "requires_grad": p.requires_grad}, frames


def deserialize_torch_Parameters(header: Header, frames: Sequence[Buffer]) -> torch.nn.Parameter:
    """Return a parameter whose tensor views the memory of *frames*."""
    t = deserialize(header["sub-header"], frames)
    p = torch.nn.Parameter(t, requires_grad=header["requires_grad"])
    p.grad = t.grad
    return p


# Modules


# A class that defines one of these is not pickled by its attributes alone.
_CUSTOM_PICKLING = frozenset(("__reduce__", "__reduce_ex__", "__getstate__"))


class _ModulePickler(cloudpickle.Pickler):
    """A pickler that keeps the memory of tensors out of band, by pickling them as arrays."""

    def __init__(self, file: Any, buffer_callback: Any):
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        # The id() of each tensor and module that was pickled.
        self.parts: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (torch.Tensor, torch.nn.Module)):
            self.parts.add(id(obj))
        if type(obj) is torch.Tensor and not obj.requires_grad and not obj.__dict__:
            if obj.device.type == "cpu" and _is_array(obj):
                return torch.from_numpy, (_to_host(obj),)
            if obj.device.type == "cpu" and obj.dtype is torch.bfloat16 and obj.is_contiguous():
                return torch.Tensor.view, (obj.view(torch.int16), obj.dtype)
        return super().reducer_override(obj)


def _pickle(x: Any) -> tuple[Header, list[Any], set[int]]:
    """Return header and frames as the family "pickle", with tensors out of band, and their ids."""
    buffers: list[memoryview] = []

    def keep(buffer: stdlib_pickle.PickleBuffer) -> None:
        buffers.append(ensure_memoryview(buffer))

    with io.BytesIO() as file:
        pickler = _ModulePickler(file, buffer_callback=keep)
        pickler.dump(x)
        pickled = file.getvalue()
    writeable = tuple(not buffer.readonly for buffer in buffers)
    return {"serializer": "pickle", "writeable": writeable}, [pickled, *buffers], pickler.parts


def serialize_torch_module(m: torch.nn.Module, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frames of a module, with one pickle for each attribute.

    Raises
    ------
    NotImplementedError
        For a module with attributes that share tensors or modules with one another, or whose class
        defines how it is pickled.
    """
    cls = type(m)
    if not accepts_pickles(context):
        raise TypeError(f"the attributes of a {cls.__name__} have to be pickled")
    if _CUSTOM_PICKLING & _defined_below_module(cls):
        raise NotImplementedError(f"{cls.__name__} defines how it is pickled")
    header: Header = {
        "serializer": "dask",
        "type-serialized": pickle.dumps(cls),
        "simple": {},
        "complex": {},
    }
    frames: list[Any] = []
    parts = {id(m)}
    for name, value in m.__dict__.items():
        if type(value) in (bool, int, float, str, type(None)):
            header["simple"][name] = value
            continue
        sub_header, sub_frames, sub_parts = _pickle(value)
        if not parts.isdisjoint(sub_parts):
            raise NotImplementedError(f"attributes of this {cls.__name__} share tensors or modules")
        parts |= sub_parts
        end = len(frames) + len(sub_frames)
        header["complex"][name] = {"header": sub_header, "start": len(frames), "stop": end}
        frames += sub_frames
    return header, frames


def _defined_below_module(cls: type) -> set[str]:
    return {
        name for base in cls.__mro__ if base not in (object, torch.nn.Module) for name in vars(base)
    }


_by_attribute = ObjectDictSerializer("dask")


def deserialize_torch_module(header: Header, frames: Sequence[Buffer]) -> torch.nn.Module:
    """Return a module whose tensors view the memory of *frames*."""
    m = _by_attribute.deserialize(header, frames)
    for name, value in vars(m).items():
        # The original sends ordered dictionaries by msgpack, which reads them as dict.
        if "_hooks" in name and type(value) is dict:
            vars(m)[name] = OrderedDict(value)
    m.__setstate__(dict(vars(m)))
    return m


dask_serialize.register(torch.Tensor, serialize_torch_Tensor)
dask_deserialize.register(torch.Tensor, deserialize_torch_Tensor)
dask_serialize.register(torch.nn.Parameter, serialize_torch_Parameters)
dask_deserialize.register(torch.nn.Parameter, deserialize_torch_Parameters)
dask_serialize.register(torch.nn.Module, serialize_torch_module)
dask_deserialize.register(torch.nn.Module, deserialize_torch_module)

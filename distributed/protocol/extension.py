"""Sets and Enum members, which msgpack cannot encode, as maps.

::

    {"__Set__": true, "as-list": [...]}
    {"__Enum__": true, "name": "running", "__module__": "distributed.core", "__name__": "Status"}

Only a map with exactly these keys is decoded.  A message may name any module for an Enum, so only
the packages in ``distributed.scheduler.allowed-imports`` are imported.  The other special maps of
a message are decoded by :mod:`distributed.protocol.core`.
"""

from __future__ import annotations

import importlib
import re
from enum import Enum
from types import ModuleType
from typing import Any

from distributed.base import config
from distributed.base.text import shown, shown_repr
from distributed.protocol.collisions import make_set
from distributed.protocol.exceptions import ImportNotAllowedError, MessageError

__all__ = [
    "EXTENSIONS",
    "EXTENSION_SIZES",
    "import_allowed_module",
    "msgpack_decode_default",
    "msgpack_encode_default",
]

EXTENSION_SIZES = (2, 4)
"""The numbers of keys that these maps have."""

EXTENSIONS = re.compile(rb"__(?:Set|Enum)__")
"""Matches in every msgpack that contains such a map, and rarely in any other."""

_ALLOWED_IMPORTS = "distributed.scheduler.allowed-imports"

# Types of earlier messages, by (module, name), so that the configuration is read once per type.
# Refused modules are not cached: they may be allowed later.
_enum_types: dict[tuple[str, str], type[Enum]] = {}


def import_allowed_module(name: str) -> ModuleType:
    """Import a module that a message names.

    Raises
    ------
    ImportNotAllowedError
        If its top-level package is not in ``distributed.scheduler.allowed-imports``.
    ImportError
        If the module does not exist.
    """
    allowed = config.read(_ALLOWED_IMPORTS)
    if name.partition(".")[0] not in allowed:
        raise ImportNotAllowedError(
            f"Importing {shown_repr(name)} is not allowed, please add it to the list of allowed "
            f"modules the scheduler can import via the {_ALLOWED_IMPORTS} configuration setting "
            f"(now {list(allowed)})."
        )
    return importlib.import_module(name)


def msgpack_encode_default(obj: Any) -> Any:
    """Return the map for a set or an Enum member, or *obj* itself if it is neither.

    Examples
    --------
    >>> msgpack_encode_default({"a"})
    {'__Set__': True, 'as-list': ['a']}
    """
    if isinstance(obj, set):
        return {"__Set__": True, "as-list": list(obj)}
    if isinstance(obj, Enum):
        cls = type(obj)
        return {
            "__Enum__": True,
            "name": obj.name,
            "__module__": cls.__module__,
            "__name__": cls.__name__,
        }
    return obj


def msgpack_decode_default(obj: dict[Any, Any]) -> Any:
    """Return the set or Enum member that a map stands for, or the map itself if it is neither.

    Raises
    ------
    MessageError
        If an element of the set is not hashable, if too many have the same hash, or if the Enum
        member does not exist.
    ImportNotAllowedError
        If the module of the Enum may not be imported.

    Examples
    --------
    >>> msgpack_decode_default({"__Set__": True, "as-list": ("a",)})
    {'a'}
    """
    if "__Set__" in obj:
        if len(obj) == 2 and "as-list" in obj:
            return _decode_set(obj["as-list"])
    elif "__Enum__" in obj and len(obj) == 4:
        try:
            member, module, name = obj["name"], obj["__module__"], obj["__name__"]
        except KeyError:
            return obj
        return _decode_enum(module, name, member)
    return obj


def _decode_set(elements: Any) -> set[Any]:
    if not isinstance(elements, (list, tuple)):
        raise MessageError(f"a set is given as {type(elements).__name__}, not as a list")
    try:
        return make_set(elements)
    except TypeError as e:
        raise MessageError(f"the elements of a set are invalid: {e}") from e


def _decode_enum(module: Any, name: Any, member: Any) -> Enum:
    if not (isinstance(member, str) and isinstance(module, str) and isinstance(name, str)):
        raise MessageError(
            f"module, name and member of an Enum must be text, not "
            f"{shown_repr((module, name, member), 200)}"
        )
    cls = _enum_types.get((module, name)) or _find_enum_type(module, name)
    try:
        return cls[member]
    except KeyError:
        raise MessageError(
            f"{shown(module)}.{shown(name)} has no member {shown_repr(member, 100)}"
        ) from None


def _find_enum_type(module: str, name: str) -> type[Enum]:
    try:
        cls = getattr(import_allowed_module(module), name)
    except (ImportError, AttributeError) as e:
        raise MessageError(f"could not import the Enum {shown(module)}.{shown(name)}: {e}") from e
    if not (isinstance(cls, type) and issubclass(cls, Enum)):
        raise MessageError(f"{shown(module)}.{shown(name)} is not an Enum")
    _enum_types[module, name] = cls
    return cls

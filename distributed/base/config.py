"""The configuration of this package: its keys, their defaults, and functions that read them.

If dask is installed, ``dask.config`` stores the configuration, so that ``dask.config.set``, dask's
files and its environment variables apply to this package.  Otherwise
:mod:`distributed.base.config_store` does.  The choice is made at first use, because importing dask
is slow.

Objects read their keys when they are created and keep the values; no key is read per message.

Examples
--------
>>> import distributed.config
>>> with distributed.config.set({"distributed.comm.timeouts.connect": "500ms"}):
...     distributed.config.get_timedelta("distributed.comm.timeouts.connect")
0.5
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from distributed.base import config_store
from distributed.base.config_keys import DEFAULTS, KEYS
from distributed.base.config_kinds import Duration, Flag, Kind, Size, Whole
from distributed.base.config_names import is_known, leaves, nearest_key, plain
from distributed.base.config_sources import lookup, source_of
from distributed.base.config_store import canonical_name, merge, no_default, update

__all__ = [
    "DEFAULTS",
    "KEYS",
    "Section",
    "check",
    "collect",
    "get",
    "get_bool",
    "get_bytes",
    "get_int",
    "get_timedelta",
    "invalid",
    "known_keys",
    "merge",
    "no_default",
    "pop",
    "read",
    "refresh",
    "serialize",
    "set",
    "source",
    "update",
    "update_defaults",
]

_T = TypeVar("_T")

#: Maximum number of characters of a value in an error.
_SHOWN = 200


# The module that stores the configuration: ``dask.config`` or ``distributed.base.config_store``.
# None until first use; set once, with the lock held, after our defaults were added to it.
_bound_store: Any = None
_bind_lock = threading.RLock()


def _store() -> Any:
    """Return the module that stores the configuration."""
    if _bound_store is None:
        _bind()
    return _bound_store


def _bind() -> None:
    global _bound_store
    with _bind_lock:
        if _bound_store is None:
            store = _dask_config()
            if store is None:
                config_store.refresh()
                store = config_store
            store.update_defaults(copy.deepcopy(DEFAULTS))
            _bound_store = store


def _dask_config() -> Any:
    """Return ``dask.config``, or None if dask is not installed."""
    if "dask.config" not in sys.modules:
        spec = importlib.util.find_spec("dask")
        # An empty directory named "dask" is also found, but as a namespace, without an origin.
        if spec is None or spec.origin is None:
            return None
    try:
        return importlib.import_module("dask.config")
    except ImportError as exc:
        warnings.warn(
            f"dask is installed but cannot be imported ({exc}): "
            "distributed reads its configuration without it",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def __getattr__(name: str) -> Any:
    # ``config`` and ``paths`` are attributes of the module that stores the configuration.
    if name in ("config", "paths"):
        return getattr(_store(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Reading


def _default(key: str) -> Any:
    """Return the default of *key* in `DEFAULTS`, or `no_default`."""
    value: Any = DEFAULTS
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return no_default
        value = value.get(canonical_name(part, value), no_default)
    return value


def _check_sections(store: Any, key: str) -> None:
    """Raise if a section above *key* is a value; null counts as an empty section."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        section = ".".join(parts[:end])
        value = store.get(section, None)
        if value is not None and not isinstance(value, Mapping):
            shown = "a value" if section.startswith("distributed.comm.auth") else repr(value)
            raise ValueError(
                f"Configuration key {section!r} is {shown} "
                f"(from {source(section, value)}), but must be a section that "
                f"contains {key!r}: set that key instead, e.g. by {_variable(key)}"
            )


def _variable(key: str) -> str:
    """Return the name of the environment variable that sets *key*."""
    return "DASK_" + key.upper().replace("-", "_").replace(".", "__")


def get(key: str, default: Any = no_default) -> Any:
    """Return the value of a configuration key.

    Parameters
    ----------
    key : str
        Such as ``"distributed.comm.timeouts.connect"``; ``-`` and ``_`` are equivalent.
    default : optional
        The result if *key* is neither configured nor in `DEFAULTS`.

    Returns
    -------
    object
        The value as configured, for instance "30s".  A section is a dict that includes its
        defaults; treat it as read-only.

    Raises
    ------
    KeyError
        If the key does not exist and *default* is not given.
    ValueError
        If a section above *key* is configured as a value.
    """
    store = _store()
    # The store can lose our defaults: a ``dask.config.set(...)`` block that was entered before
    # they were added removes, on exit, the section that it created.
    ours = _default(key)
    try:
        value = store.get(key)
    except (KeyError, TypeError, IndexError):
        _check_sections(store, key)
        if ours is not no_default:
            return copy.deepcopy(ours)
        if default is not no_default:
            return default
        raise KeyError(
            f"Configuration key {key!r} is not set; set it e.g. by {_variable(key)}"
        ) from None
    if isinstance(ours, Mapping):
        if value is None:
            return copy.deepcopy(ours)
        if isinstance(value, Mapping):
            return update(merge(value), copy.deepcopy(ours), priority="old")
    return value


def source(key: str, value: object) -> str:
    """Return where *key* was set to *value*: a variable, a file, or ``set``."""
    return source_of(key, value, _store().paths)


def invalid(key: str, value: object, expected: str, example: str, why: str = "") -> ValueError:
    """Return the error for a value that *key* must not have.

    Parameters
    ----------
    key, value
        The key and its value.
    expected
        What is allowed.
    example
        A valid value.
    why
        The reason why the value is not allowed.
    """
    entry = KEYS.get(plain(key))
    shown = repr(value)
    if entry is not None and entry.kind.secret:
        shown = f"a secret of type {type(value).__name__}"
    elif len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}…"
    return ValueError(
        f"Configuration key {key!r} is {shown} (from {source(key, value)}), which is not {expected}"
        + (f": {why}" if why else "")
        + f". Use e.g. {example}: in a configuration file, by distributed.config.set, "
        f"or {_variable(key)}={example}"
    )


def _read(key: str, kind: Kind) -> Any:
    value = get(key)
    try:
        return kind.read(value)
    except (ValueError, TypeError) as exc:
        raise invalid(key, value, kind.allowed, kind.example, str(exc)) from None


def read(key: str) -> Any:
    """Return the value of a key of `KEYS`, checked and converted as its kind says.

    Raises
    ------
    ValueError
        If the value is not allowed.  The error gives the key, the value, its source, what is
        allowed, and a valid example.
    """
    return _read(key, KEYS[plain(key)].kind)


def _kind_of(key: str, default: Kind) -> Kind:
    entry = KEYS.get(plain(key))
    return entry.kind if entry is not None and isinstance(entry.kind, type(default)) else default


def get_timedelta(key: str) -> float | None:
    """Return the value of *key*, a duration such as "30s", in seconds; None if it is null.

    Raises
    ------
    ValueError
        If the value is not a duration, as in `read`.
    """
    seconds: float | None = _read(key, _kind_of(key, Duration(null=True)))
    return seconds


def get_bytes(key: str) -> int | None:
    """Return the value of *key*, a size such as "64MiB", in bytes; None if it is null.

    Raises
    ------
    ValueError
        If the value is not a size, or is negative, as in `read`.
    """
    size: int | None = _read(key, _kind_of(key, Size(null=True)))
    return size


def get_int(key: str) -> int | None:
    """Return the value of *key*, a whole number that is not negative; None if it is null.

    Raises
    ------
    ValueError
        If the value is anything else, as in `read`.
    """
    number: int | None = _read(key, _kind_of(key, Whole(null=True)))
    return number


def get_bool(key: str) -> bool | None:
    """Return the value of *key*, true or false; None if it is null.

    Raises
    ------
    ValueError
        If the value is anything else, as in `read`.
    """
    flag: bool | None = _read(key, _kind_of(key, Flag(null=True)))
    return flag


# Checking

#: The section in which unknown keys are reported.
_COMM = "distributed.comm"
# The unknown keys that were reported already.
_reported: dict[str, None] = {}


def check() -> None:
    """Check all values, and warn of misspelt keys of ``distributed.comm``, once of each.

    Raises
    ------
    ValueError
        If a value is not allowed, as in `read`.
    """
    for key in KEYS:
        read(key)
    known = [key for key in known_keys() if key.startswith(_COMM)]
    for key in leaves(_store().config.get("distributed", {}).get("comm"), f"{_COMM}."):
        _check_name(plain(key), known)


def known_keys() -> list[str]:
    """Return all keys that have a default: those of `KEYS`, and those of other packages."""
    known = list(KEYS)
    for defaults in _store().defaults:
        # Also those of dask's roles.
        known += leaves(defaults)
    return list(dict.fromkeys(map(plain, known)))


def _check_name(key: str, known: list[str]) -> None:
    """Warn if *key* is not *known*, but is like a known key; once."""
    if key in _reported or is_known(key, known):
        return
    _reported[key] = None
    near = nearest_key(key, known)
    if near is not None:
        value = lookup(key, _store().config)
        warnings.warn(
            f"Configuration key {key!r} (from {source(key, value)}) does not "
            f"exist and has no effect; did you mean {near!r}?",
            stacklevel=2,
        )


class Section(Generic[_T]):
    """An object built from a section of the configuration, and rebuilt when the section changes.

    Use it for values that are read too often to look up each key.

    Parameters
    ----------
    key : str
        The section, such as ``"distributed.comm"``.
    make : callable
        Builds the object.  It may read the configuration at once, or when the object is first
        used.

    Examples
    --------
    >>> scheme = Section("distributed.comm", lambda: get("distributed.comm.default-scheme"))
    >>> with set({"distributed.comm.default-scheme": "tls"}):
    ...     scheme()
    'tls'
    >>> scheme()
    'tcp'
    """

    def __init__(self, key: str, make: Callable[[], _T]) -> None:
        self._parts = key.split(".")
        self._make = make
        # A copy of the section and the object built from it; None before the first call.  One
        # tuple, so that threads that replace it concurrently cannot pair a copy with another
        # thread's object.
        self._made: tuple[Any, _T] | None = None

    def __call__(self) -> _T:
        """Return the object for the section's current value."""
        section: Any = _store().config
        try:
            for part in self._parts:
                section = section[part]
        except (KeyError, TypeError):
            section = None
        made = self._made
        if made is None or section is None or section != made[0]:
            made = self._made = copy.deepcopy(section), self._make()
        return made[1]


# Changing


def set(
    arg: Mapping[str, Any] | None = None, **kwargs: Any
) -> AbstractContextManager[dict[str, Any]]:
    """Set values, permanently or, as a context manager, for the block.

    Parameters
    ----------
    arg : Mapping, optional
        Dotted keys and their values.
    **kwargs
        More keys, with ``__`` in place of the dot.

    Examples
    --------
    >>> with set({"distributed.comm.shard": "1MiB"}, distributed__comm__socket_backlog=5):
    ...     get_bytes("distributed.comm.shard"), get_int("distributed.comm.socket-backlog")
    (1048576, 5)
    """
    manager: AbstractContextManager[dict[str, Any]] = _store().set(arg, **kwargs)
    return manager


def pop(key: str, default: Any = no_default) -> Any:
    """Remove *key* from the configuration and return its value.

    A key of `DEFAULTS` returns to its default.

    Raises
    ------
    KeyError
        If the key is not set and *default* is not given.
    """
    store = _store()
    if default is no_default:
        return store.pop(key)
    return store.pop(key, default)


def update_defaults(new: Mapping[str, Any]) -> None:
    """Add defaults, for instance those of a role that is built on this package.

    They replace earlier defaults but not configured values.
    """
    _store().update_defaults(new)


def collect(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the values in files and environment variables, without defaults (`paths=`, `env=`)."""
    found: dict[str, Any] = _store().collect(*args, **kwargs)
    return found


def refresh(**kwargs: Any) -> None:
    """Discard values from `set` and reread files and environment variables (`paths=`, `env=`)."""
    _store().refresh(**kwargs)


def serialize(data: Any) -> str:
    """Return *data* as text for ``$DASK_INTERNAL_INHERIT_CONFIG`` of a child process."""
    text: str = _store().serialize(data)
    return text


if "dask.config" in sys.modules:
    # dask is already imported, so waiting saves no time, and readers of dask.config find our keys.
    _bind()

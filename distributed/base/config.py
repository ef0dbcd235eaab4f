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
from distributed.base.config_store import canonical_name, merge, no_default, update
from distributed.base.quantities import parse_bytes, parse_timedelta

__all__ = [
    "DEFAULTS",
    "Section",
    "collect",
    "get",
    "get_bool",
    "get_bytes",
    "get_int",
    "get_timedelta",
    "merge",
    "no_default",
    "pop",
    "refresh",
    "serialize",
    "set",
    "update",
    "update_defaults",
]

_T = TypeVar("_T")

#: Every key that this package reads, with its default.
DEFAULTS: Mapping[str, Any] = {
    # Parent directory of scratch directories; null: the system's temporary directory.
    "temporary-directory": None,
    "distributed": {
        "scheduler": {
            # Top-level packages whose modules are imported at a peer's request.
            "allowed-imports": ["dask", "distributed"],
            # Operations that a Server with this class name (in lower case) refuses.
            "blocked-handlers": [],
        },
        "worker": {"blocked-handlers": []},
        "nanny": {"blocked-handlers": []},
        "comm": {
            "retry": {"count": 0, "delay": {"min": "1s", "max": "20s"}},
            # false, "auto", or the name of a compression.
            "compression": False,
            # Maximum size of a frame; a larger one is split.
            "shard": "64MiB",
            # Larger messages are (de)serialized in the offload thread.
            "offload": "10MiB",
            "default-scheme": "tcp",
            "socket-backlog": 2048,
            # Whether to unpickle data from peers, which can run any code.
            "allow-pickle": True,
            # Maximum size and number of frames of a received message; null: unlimited.
            "max-message-size": None,
            "max-frames": 10_000_000,
            # Maximum nesting of collections whose elements are serialized one by one.
            "max-depth": 512,
            # Maximum total size of a message's compressed frames after decompression.
            "max-inflated-size": "16GiB",
            "max-handshake-size": "64kiB",
            # Maximum number of connections to a server, in total and per host; null: unlimited.
            "max-connections": 100_000,
            "max-connections-per-host": 50_000,
            # Maximum number of running coroutine handlers of one stream; null: unlimited.
            "max-stream-handlers": 1000,
            # The secret that both sides of a connection share, as text or in a file; null: none.
            # allow-health: whether a server that requires it answers "health" to peers without it.
            "auth": {"token": None, "token-file": None, "allow-health": False},
            "zstd": {"level": 3, "threads": 0},
            "timeouts": {
                "connect": "30s",
                # Time to receive the peer's handshake; null: the value of connect.
                "handshake": None,
                # Time without a request before a server closes a connection; null: unlimited.
                "idle": None,
                # Time that sent data may stay unacknowledged before the connection is closed.
                "tcp": "30s",
            },
            # true or false; null: true if TLS is configured.
            "require-encryption": None,
            "tls": {
                "ciphers": None,
                "min-version": 1.2,
                "max-version": None,
                "ca-file": None,
                "scheduler": {"cert": None, "key": None},
                "worker": {"cert": None, "key": None},
                "client": {"cert": None, "key": None},
            },
            "websockets": {"shard": "8MiB"},
            # Maximum size of the messages that wait in a BatchedSend; null: unlimited.
            "batched": {"max-buffer-size": "1GiB"},
        },
        "admin": {
            # Time between ticks of the event loop, time without a tick that is logged as
            # unresponsive, and time between averages.
            "tick": {"interval": "20ms", "limit": "3s", "cycle": "1s"},
            # Maximum number of characters of a remote error's text, and of its traceback.
            "max-error-length": 10_000,
            # Maximum number of entries in logs of recent messages.
            "low-level-log-length": 1000,
            # Time after which a server logs a request as slow; null: never.
            "slow-call": None,
            "system-monitor": {
                "interval": "500ms",
                "log-length": 7200,
                "disk": True,
                "host-cpu": False,
                "gil": {"enabled": True, "interval": "1ms"},
            },
        },
    },
}


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
            raise ValueError(
                f"Configuration key {section!r} is {value!r}, but must be a section that contains "
                f"{key!r}: set that key instead, e.g. by {_variable(key)}"
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


def _bad_value(key: str, value: object, expected: str, example: str, why: str = "") -> ValueError:
    return ValueError(
        f"Configuration key {key!r} is {value!r}, which is not {expected}"
        + (f" ({why})" if why else "")
        + f". Use e.g. {example}: in a configuration file, by distributed.config.set, "
        f"or {_variable(key)}={example}"
    )


def get_timedelta(key: str) -> float | None:
    """Return the value of *key*, a duration such as "30s", in seconds; None if it is null.

    Raises
    ------
    ValueError
        If the value is not a duration.  The error gives the key, the value and a valid example.
    """
    value = get(key)
    try:
        seconds: float | None = parse_timedelta(value)
    except (ValueError, TypeError) as exc:
        raise _bad_value(key, value, "a duration", "30s", str(exc)) from None
    return seconds


def get_bytes(key: str) -> int | None:
    """Return the value of *key*, a size such as "64MiB", in bytes; None if it is null.

    Raises
    ------
    ValueError
        If the value is not a size, or is negative, as in `get_timedelta`.
    """
    value = get(key)
    if value is None:
        return None
    try:
        size = parse_bytes(value)
    except (ValueError, TypeError) as exc:
        raise _bad_value(key, value, "a number of bytes", "64MiB", str(exc)) from None
    if size < 0:
        raise _bad_value(key, value, "a number of bytes", "64MiB", "it is negative")
    return size


def get_int(key: str) -> int | None:
    """Return the value of *key*, a whole number that is not negative; None if it is null.

    Raises
    ------
    ValueError
        If the value is anything else, as in `get_timedelta`.
    """
    value = get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _bad_value(key, value, "a whole number that is not negative", "1000")
    return value


def get_bool(key: str) -> bool | None:
    """Return the value of *key*, true or false; None if it is null.

    Raises
    ------
    ValueError
        If the value is anything else, as in `get_timedelta`.
    """
    value = get(key)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise _bad_value(key, value, "true or false", "true")


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

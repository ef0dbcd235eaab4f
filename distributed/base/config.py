"""The configuration of this package: its keys, their defaults, and how they are read.

Where dask is installed, ``dask.config`` *is* the configuration, so that ``dask.config.set`` and its
files and variables work on this package; otherwise
:mod:`distributed.base.config_store` does the same.
Which of the two it is, is found out at the first use, as importing dask takes long.

Objects read their keys when they are made and keep the values; nothing is read for each message.

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

#: Every key that this package reads, with its value where nothing else is configured.
DEFAULTS: Mapping[str, Any] = {
    # Parent of scratch directories; null: the system's directory for temporary files.
    "temporary-directory": None,
    "distributed": {
        "scheduler": {
            # Top-level packages from which a peer may have modules imported.
            "allowed-imports": ["dask", "distributed"],
            # Operations that a Server of that class name refuses.
            "blocked-handlers": [],
        },
        "worker": {"blocked-handlers": []},
        "nanny": {"blocked-handlers": []},
        "comm": {
            "retry": {"count": 0, "delay": {"min": "1s", "max": "20s"}},
            # false, "auto", or the name of a compression.
            "compression": False,
            # Larger frames are split into pieces of this size.
            "shard": "64MiB",
            # Larger messages are (de)serialized outside of the event loop.
            "offload": "10MiB",
            "default-scheme": "tcp",
            "socket-backlog": 2048,
            # Whether what a peer has pickled is unpickled, which may run any code.
            "allow-pickle": True,
            # Limits on what a peer may send; null: none.
            "max-message-size": None,
            "max-frames": 10_000_000,
            # How deep collections may be nested whose elements are serialized one by one.
            "max-depth": 512,
            # What the compressed frames of a message may inflate to, together.
            "max-inflated-size": "16GiB",
            "max-handshake-size": "64kiB",
            # Connections that a server keeps, in all and from one host; null: any number.
            "max-connections": 100_000,
            "max-connections-per-host": 50_000,
            # What both sides of a connection have to know, as text or in a file; null: nothing.
            "auth": {"token": None, "token-file": None},
            "zstd": {"level": 3, "threads": 0},
            "timeouts": {
                "connect": "30s",
                # Time for a peer to say its part of the handshake; null: as connect.
                "handshake": None,
                # A server closes a connection without a request for this long; null: never.
                "idle": None,
                # Unacknowledged data for this long means that the peer is gone.
                "tcp": "30s",
            },
            # true or false; null: where TLS is configured.
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
            # What may wait in a BatchedSend; null: any number of bytes.
            "batched": {"max-buffer-size": "1GiB"},
        },
        "admin": {
            # The event loop is measured each interval and said to be unresponsive above limit.
            "tick": {"interval": "20ms", "limit": "3s", "cycle": "1s"},
            # Characters of a remote error's text and traceback.
            "max-error-length": 10_000,
            # Entries of logs of recent messages and the like.
            "low-level-log-length": 1000,
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


# The state of this module: the module that holds the configuration, ``dask.config`` or
# ``distributed.base.config_store``.  None until the first use; from then on it has our defaults and
# never changes.  Set only while the lock is held.
_bound_store: Any = None
_bind_lock = threading.RLock()


def _store() -> Any:
    """The module that holds the configuration."""
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
    """``dask.config``, or None where dask is not installed."""
    if "dask.config" not in sys.modules:
        spec = importlib.util.find_spec("dask")
        # A mere directory of the name "dask" is found too, but has no code and so no origin.
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
    # ``config`` and ``paths`` belong to whichever module holds the configuration.
    if name in ("config", "paths"):
        return getattr(_store(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Reading


def _default(key: str) -> Any:
    """Our own default of *key*, or `no_default`."""
    value: Any = DEFAULTS
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return no_default
        value = value.get(canonical_name(part, value), no_default)
    return value


def _check_sections(store: Any, key: str) -> None:
    """Raise where a value stands in the way to *key*; null is an empty section."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        section = ".".join(parts[:end])
        value = store.get(section, None)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(
                f"Configuration key {section!r} is {value!r}, but must be a section that holds "
                f"{key!r}: set the latter instead, e.g. by {_variable(key)}"
            )


def _variable(key: str) -> str:
    """Environment variable that sets *key*."""
    return "DASK_" + key.upper().replace("-", "_").replace(".", "__")


def get(key: str, default: Any = no_default) -> Any:
    """Value of a configuration key.

    Parameters
    ----------
    key : str
        Such as ``"distributed.comm.timeouts.connect"``; ``-`` and ``_`` are the same in it.
    default : optional
        Returned where *key* is neither configured nor one of `DEFAULTS`.

    Returns
    -------
    object
        As configured, not interpreted.  A section (dict) has all its defaults filled in; treat
        it as read-only.

    Raises
    ------
    KeyError
        If there is no such key and no *default*.
    ValueError
        If a value is configured where *key* needs a section.
    """
    store = _store()
    # Our defaults were registered with the store; it may have lost them all the same: leaving a
    # ``dask.config.set(...)`` that began before removes the section that it had begun.
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
            f"There is no configuration key {key!r}; set it e.g. by {_variable(key)}"
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
    """Value of *key*, a duration such as "30s", in seconds; None if it is null.

    Raises
    ------
    ValueError
        If it is no duration, naming the key, the value and a good one.
    """
    value = get(key)
    try:
        seconds: float | None = parse_timedelta(value)
    except (ValueError, TypeError) as exc:
        raise _bad_value(key, value, "a duration", "30s", str(exc)) from None
    return seconds


def get_bytes(key: str) -> int | None:
    """Value of *key*, a size such as "64MiB", in bytes; None if it is null.

    Raises
    ------
    ValueError
        If it is no size or negative, naming the key, the value and a good one.
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
    """Value of *key*, a whole number that is not negative; None if it is null.

    Raises
    ------
    ValueError
        If it is anything else, naming the key, the value and a good one.
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
    """Value of *key*, true or false; None if it is null.

    Raises
    ------
    ValueError
        If it is anything else, naming the key, the value and a good one.
    """
    value = get(key)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise _bad_value(key, value, "true or false", "true")


class Section(Generic[_T]):
    """What is made of a section of the configuration, made anew only when that has changed.

    For what is read so often that looking up each key would take too long.

    Parameters
    ----------
    key : str
        The section, such as ``"distributed.comm"``.
    make : callable
        Makes an object of what the configuration says when it is called, or whenever the object
        is first asked for a value.

    Examples
    --------
    >>> scheme = Section("distributed.comm", lambda: get("distributed.comm.default-scheme"))
    >>> with set({"distributed.comm.default-scheme": "tls"}):
    ...     scheme()
    'tls'
    >>> scheme()
    'tcp'
    """

    # State.  `_made` is a copy of the section and what was made of it.  One object, so that
    # threads which change it at the same time cannot mix two up.
    def __init__(self, key: str, make: Callable[[], _T]) -> None:
        self._parts = key.split(".")
        self._make = make
        self._made: tuple[Any, _T] | None = None

    def __call__(self) -> _T:
        """Return what belongs to the section as it is now."""
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
    """Set values, from now on; as a context manager, until its end.

    Parameters
    ----------
    arg : Mapping, optional
        Dotted keys and their values.
    **kwargs
        More keys, in which ``__`` stands for the dot.

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

    A key of `DEFAULTS` has its default again.

    Raises
    ------
    KeyError
        If it is not set and there is no *default*.
    """
    store = _store()
    if default is no_default:
        return store.pop(key)
    return store.pop(key, default)


def update_defaults(new: Mapping[str, Any]) -> None:
    """Add defaults of your own, say of a role that is built on this package.

    They replace earlier defaults but nothing that was configured.
    """
    _store().update_defaults(new)


def collect(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """What files and environment variables say, without defaults (`paths=`, `env=`)."""
    found: dict[str, Any] = _store().collect(*args, **kwargs)
    return found


def refresh(**kwargs: Any) -> None:
    """Forget what was `set` and read files and environment variables again (`paths=`, `env=`)."""
    _store().refresh(**kwargs)


def serialize(data: Any) -> str:
    """Text of *data* that a child process takes from ``$DASK_INTERNAL_INHERIT_CONFIG``."""
    text: str = _store().serialize(data)
    return text


if "dask.config" in sys.modules:
    # Nothing is left to be saved by waiting, and those who read dask.config find our keys there.
    _bind()

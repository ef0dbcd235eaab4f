"""Nested configuration from files, environment variables and code, as ``dask.config`` offers it.

:mod:`distributed.config` uses ``dask.config`` where dask is installed and this module, of the same
shape, where it is not.  It knows no key by name: defaults come from those who use it.  Importing it
reads nothing: the first `refresh` does.

Later sources win over earlier ones, key by key:

1. defaults (`update_defaults`),
2. files (``*.yaml``, ``*.yml``, ``*.json``) in the directories of `paths`, in the order of `paths`
   and then of their names: ``/etc/dask`` (or ``$DASK_ROOT_CONFIG``), ``<sys.prefix>/etc/dask``,
   ``~/.config/dask``, and the file or directory ``$DASK_CONFIG``,
3. what a parent process hands down in ``$DASK_INTERNAL_INHERIT_CONFIG``,
4. environment variables: ``DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME=tls`` is the key
   ``distributed.comm.default-scheme``,
5. `set`.

In keys, ``-`` and ``_`` are the same.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import site
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

__all__ = [
    "canonical_name",
    "collect",
    "collect_env",
    "collect_files",
    "config",
    "config_lock",
    "defaults",
    "deserialize",
    "get",
    "interpret_value",
    "merge",
    "no_default",
    "paths",
    "pop",
    "refresh",
    "serialize",
    "set",
    "update",
    "update_defaults",
]

no_default: Any = type("NoDefault", (), {"__repr__": lambda self: "<no default>"})()


def _search_paths() -> list[str]:
    prefixes = [sys.prefix, *site.PREFIXES]
    found = [
        os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"),
        *(os.path.join(prefix, "etc", "dask") for prefix in prefixes),
        os.path.join(os.path.expanduser("~"), ".config", "dask"),
    ]
    if "DASK_CONFIG" in os.environ:
        found.append(os.environ["DASK_CONFIG"])
    # The same place may be named twice; the last, strongest mention counts.
    return list(dict.fromkeys(reversed(found)))[::-1]


# The state of this module:
#
# config    What `get` reads: everything merged.  Always the same object.
# defaults  What `update_defaults` was given, in that order; `refresh` starts from it.
# paths     Where files are looked for, weakest first.
#
# `config` and `defaults` change only while `config_lock` is held; reading needs no lock.
config: dict[str, Any] = {}
defaults: list[Mapping[str, Any]] = []
paths: list[str] = _search_paths()
config_lock = threading.RLock()


# Dictionaries of dictionaries


def canonical_name(key: str, section: Mapping[str, Any]) -> str:
    """How *section* spells *key*, which may stand in it with ``-`` for ``_`` or the reverse."""
    if key in section:
        return key
    plain = key.replace("_", "-")
    return next(
        (known for known in section if str(known).replace("_", "-") == plain),
        key,
    )


def update(
    old: dict[str, Any],
    new: Mapping[str, Any],
    priority: Literal["old", "new", "new-defaults"] = "new",
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge *new* into *old*, in place, section by section.

    Parameters
    ----------
    old, new : dict
        What is changed, and what is added to it.  Values of *new* are shared, its sections copied.
    priority : {"new", "old", "new-defaults"}
        Which value stays where both have one.  "new-defaults": the new one, but only where the old
        value is still that of *defaults*.
    defaults : Mapping, optional
        Defaults so far, for "new-defaults".

    Returns
    -------
    dict
        *old*.

    Examples
    --------
    >>> update({"a": {"x": 1}}, {"a": {"x": 2, "y": 3}}, priority="old")
    {'a': {'x': 1, 'y': 3}}
    """
    for key, value in new.items():
        key = canonical_name(key, old)
        default = None
        if defaults:
            default = defaults.get(canonical_name(key, defaults), no_default)
        if isinstance(value, Mapping):
            if not isinstance(old.get(key), dict):
                if priority != "new" and old.get(key) is not None:
                    continue
                old[key] = {}
            update(old[key], value, priority, default if isinstance(default, Mapping) else None)
        elif (
            key not in old
            or priority == "new"
            or (priority == "new-defaults" and defaults and old[key] == default)
        ):
            old[key] = value
    return old


def merge(*dicts: Mapping[str, Any]) -> dict[str, Any]:
    """A new dictionary of all *dicts*, of which later ones win.

    Examples
    --------
    >>> merge({"a": {"x": 1}}, {"a": {"y": 2}})
    {'a': {'x': 1, 'y': 2}}
    """
    result: dict[str, Any] = {}
    for each in dicts:
        update(result, each)
    return result


# Sources


def interpret_value(text: str) -> Any:
    """The Python literal that *text* is, else *text*; true, false, none and null in any case.

    Examples
    --------
    >>> interpret_value("[1, 2]"), interpret_value("true"), interpret_value("10s")
    ([1, 2], True, '10s')
    """
    words: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text


def serialize(data: Any) -> str:
    """Text of *data* for ``$DASK_INTERNAL_INHERIT_CONFIG``: base64 of JSON."""
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode()


def deserialize(text: str) -> Any:
    """What `serialize` made into *text*."""
    return json.loads(base64.urlsafe_b64decode(text.encode()).decode())


# Variables that say where configuration is, and are none themselves.
_LOCATORS = {"DASK_CONFIG", "DASK_ROOT_CONFIG", "DASK_INTERNAL_INHERIT_CONFIG"}


def collect_env(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Configuration of the environment variables ``DASK_…`` (2. and 3. of the sources).

    Raises
    ------
    ValueError
        If one variable gives a value where another one needs a section.
    """
    env = os.environ if env is None else env
    result: dict[str, Any] = {}
    if "DASK_INTERNAL_INHERIT_CONFIG" in env:
        try:
            result = dict(deserialize(env["DASK_INTERNAL_INHERIT_CONFIG"]))
        except (ValueError, TypeError) as exc:
            raise ValueError(
                "Environment variable DASK_INTERNAL_INHERIT_CONFIG must be base64 of a JSON "
                f"object, as distributed.config.serialize makes it: {exc}"
            ) from None
    for name, text in sorted(env.items()):
        if name.startswith("DASK_") and name not in _LOCATORS:
            key = name.removeprefix("DASK_").lower().replace("__", ".")
            try:
                set({key: interpret_value(text)}, config=result)
            except ValueError as exc:
                raise ValueError(f"Environment variable {name}={text!r}: {exc}") from None
    return result


def _config_files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        try:
            if path.is_dir():
                yield from sorted(
                    each for each in path.iterdir() if each.suffix in (".yaml", ".yml", ".json")
                )
            elif path.exists():
                yield path
        except OSError as exc:
            _warn(f"Ignoring configuration in {str(path)!r}, which cannot be read: {exc}")


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def collect_files(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Configuration of each file in *paths* (directories or files), weakest first.

    A file that cannot be opened is left out with a warning, as are all YAML files where PyYAML is
    not installed.

    Raises
    ------
    ValueError
        If a file is malformed, naming it.
    """
    result = []
    unreadable = []
    for path in _config_files(paths):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            _warn(f"Ignoring configuration file {str(path)!r}, which cannot be read: {exc}")
            continue
        if path.suffix == ".json":
            content = _parse(path, text, json.loads, (ValueError,))
        else:
            try:
                import yaml
            except ImportError:
                unreadable.append(str(path))
                continue
            content = _parse(path, text, yaml.safe_load, (yaml.YAMLError,))
        result.append(content)
    if unreadable:
        _warn(
            f"Ignoring configuration files, for PyYAML is not installed: {', '.join(unreadable)}. "
            "Install distributed-core[config] to use them, or set their values by environment "
            "variables such as DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT=30s"
        )
    return result


def _parse(
    path: Path, text: str, parser: Any, errors: tuple[type[Exception], ...]
) -> dict[str, Any]:
    try:
        content = parser(text)
    except errors as exc:
        raise ValueError(f"Configuration file {str(path)!r} is malformed: {exc}") from exc
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"Configuration file {str(path)!r} is malformed: it must hold a mapping of keys, "
            f"not a {type(content).__name__}"
        )
    return content


def collect(paths: Sequence[str] = paths, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Configuration of all files in *paths* and of the environment variables in *env*."""
    return merge(*collect_files(paths), collect_env(env))


# The configuration of this process


def get(key: str, default: Any = no_default) -> Any:
    """Value of the dotted *key*.

    Raises
    ------
    KeyError
        If it is not set and there is no *default*.
    TypeError
        If a part of *key* leads to a value that is no section and there is no *default*.

    Examples
    --------
    >>> with set({"fruit.apple": 3}):
    ...     get("fruit.apple"), get("fruit.pear", 0)
    (3, 0)
    """
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            if default is no_default:
                raise TypeError(f"{key!r} is not set: {value!r} stands where {part!r} is looked up")
            return default
        name = canonical_name(part, value)
        if name not in value:
            if default is no_default:
                raise KeyError(key)
            return default
        value = value[name]
    return value


class set:
    """Set values, from now on; as a context manager, until its end.

    Parameters
    ----------
    arg : Mapping, optional
        Dotted keys and their values.  A value that is a mapping replaces the whole section.
    config : dict, optional
        What to change, by default the configuration of this process.
    **kwargs
        More keys, in which ``__`` stands for the dot.

    Raises
    ------
    ValueError
        If a key leads into a value that is no section.

    Examples
    --------
    >>> with set({"colour.sky": "blue"}, colour__sea="green"):
    ...     get("colour")
    {'sky': 'blue', 'sea': 'green'}
    >>> get("colour", "none")
    'none'
    """

    def __init__(
        self,
        arg: Mapping[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.config = globals()["config"] if config is None else config
        # How to undo each assignment: the path to it and the value before (no_default: none).
        self._undo: list[tuple[list[str], Any]] = []
        values = dict(arg or {})
        values.update({key.replace("__", "."): value for key, value in kwargs.items()})
        with config_lock:
            try:
                for key, value in values.items():
                    self._assign(key, value)
            except ValueError:
                self._restore()
                raise

    def __enter__(self) -> dict[str, Any]:
        return self.config

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with config_lock:
            self._restore()

    def _assign(self, key: str, value: Any) -> None:
        section = self.config
        path: list[str] = []
        *parents, last = key.split(".")
        # Only the first dictionary that is new on the way down has to be undone.
        is_new = False
        for part in parents:
            name = canonical_name(part, section)
            path.append(name)
            below = section.get(name)
            if not isinstance(below, dict):
                if below is not None:
                    raise ValueError(
                        f"cannot set {key!r}: {'.'.join(path)!r} is {below!r}, not a section"
                    )
                if not is_new:
                    self._undo.append((list(path), section.get(name, no_default)))
                    is_new = True
                below = section[name] = {}
            section = below
        name = canonical_name(last, section)
        if not is_new:
            self._undo.append(([*path, name], section.get(name, no_default)))
        section[name] = value

    def _restore(self) -> None:
        while self._undo:
            path, before = self._undo.pop()
            section = self.config
            for name in path[:-1]:
                # Made anew where someone else removed it in the meantime.
                section = section.setdefault(name, {})
            if before is no_default:
                section.pop(path[-1], None)
            else:
                section[path[-1]] = before


def pop(key: str, default: Any = no_default) -> Any:
    """Remove the dotted *key* and return its value; errors as of `get`."""
    parent, _, last = key.rpartition(".")
    with config_lock:
        value = get(key, default)
        section = get(parent, {}) if parent else config
        if isinstance(section, dict):
            section.pop(canonical_name(last, section), None)
    return value


def update_defaults(new: Mapping[str, Any]) -> None:
    """Add defaults, for this process and each later `refresh`.

    They replace earlier defaults but nothing that was configured.
    """
    with config_lock:
        so_far = merge(*defaults)
        defaults.append(new)
        update(config, new, priority="new-defaults", defaults=so_far)


def refresh(paths: Sequence[str] = paths, env: Mapping[str, str] | None = None) -> None:
    """Forget what was `set` and read all sources (again).

    Raises
    ------
    ValueError
        If a source is malformed; the configuration stays as it was.
    """
    fresh = merge(*defaults, collect(paths, env))
    with config_lock:
        config.clear()
        config.update(fresh)

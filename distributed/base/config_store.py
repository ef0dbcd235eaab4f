"""Nested configuration from files, environment variables and code; the API is ``dask.config``'s.

:mod:`distributed.base.config` uses this module if dask is not installed.  It does not know any
key: defaults come from its users.  Importing it reads no files; `refresh` does.

Later sources override earlier ones, key by key:

1. defaults (`update_defaults`),
2. files (``*.yaml``, ``*.yml``, ``*.json``) in the directories of `paths`, in the order of `paths`
   and then of their names: ``/etc/dask`` (or ``$DASK_ROOT_CONFIG``), ``<sys.prefix>/etc/dask``,
   ``~/.config/dask``, and the file or directory ``$DASK_CONFIG``,
3. values from the parent process in ``$DASK_INTERNAL_INHERIT_CONFIG``,
4. environment variables: ``DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME=tls`` is the key
   ``distributed.comm.default-scheme``,
5. `set`.

In keys, ``-`` and ``_`` are equivalent.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "canonical_name",
    "collect",
    "collect_env",
    "collect_files",
    "config",
    "config_files",
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
    # If a path is listed twice, keep its last position, which has the higher priority.
    return list(dict.fromkeys(reversed(found)))[::-1]


# All sources merged; always the same object.
config: dict[str, Any] = {}
# The arguments of `update_defaults`, in order; `refresh` starts from them.
defaults: list[Mapping[str, Any]] = []
# The paths to search for files, lowest priority first.
paths: list[str] = _search_paths()
# Held while `config` or `defaults` changes; reading does not need it.
config_lock = threading.RLock()


# Dictionaries of dictionaries


def canonical_name(key: str, section: Mapping[str, Any]) -> str:
    """Return *key* as *section* spells it (``-`` and ``_`` are equivalent), else *key* itself."""
    if key in section:
        return key
    plain = key.replace("_", "-")
    return next((known for known in section if str(known).replace("_", "-") == plain), key)


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
        The dictionary to change, and the values to add.  Sections of *new* are copied, values are
        not.
    priority : {"new", "old", "new-defaults"}
        The value to keep if both have one.  "new-defaults": the old value, unless it is the one in
        *defaults*.
    defaults : Mapping, optional
        The previous defaults, for "new-defaults".

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
    """Return a new dictionary with the values of all *dicts*; later ones override earlier ones.

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
    """Parse *text* as a Python literal (or true, false, none, null in any case), else return it.

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
    """Return *data* as text for ``$DASK_INTERNAL_INHERIT_CONFIG``: base64 of JSON."""
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode()


def deserialize(text: str) -> Any:
    """Return the data that `serialize` encoded as *text*."""
    return json.loads(base64.urlsafe_b64decode(text.encode()).decode())


# Variables with the location of configuration, which are not keys.
_LOCATORS = {"DASK_CONFIG", "DASK_ROOT_CONFIG", "DASK_INTERNAL_INHERIT_CONFIG"}


def collect_env(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the configuration in the environment variables ``DASK_…`` (sources 3 and 4).

    Raises
    ------
    ValueError
        If one variable sets a value that another one uses as a section.
    """
    env = os.environ if env is None else env
    result: dict[str, Any] = {}
    if "DASK_INTERNAL_INHERIT_CONFIG" in env:
        try:
            result = dict(deserialize(env["DASK_INTERNAL_INHERIT_CONFIG"]))
        except (ValueError, TypeError) as exc:
            raise ValueError(
                "Environment variable DASK_INTERNAL_INHERIT_CONFIG must be base64 of a JSON "
                f"object, made by distributed.config.serialize: {exc}"
            ) from None
    for name, text in sorted(env.items()):
        if name.startswith("DASK_") and name not in _LOCATORS:
            key = name.removeprefix("DASK_").lower().replace("__", ".")
            try:
                set({key: interpret_value(text)}, config=result)
            except ValueError as exc:
                raise ValueError(f"Environment variable {name}={text!r}: {exc}") from None
    return result


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def config_files(paths: Sequence[str], warn: Callable[[str], None] = _warn) -> Iterator[Path]:
    """Yield the files in *paths*, lowest priority first."""
    for path in map(Path, paths):
        try:
            if path.is_dir():
                yield from sorted(
                    each for each in path.iterdir() if each.suffix in (".yaml", ".yml", ".json")
                )
            elif path.exists():
                yield path
        except OSError as exc:
            warn(f"Ignoring configuration in {str(path)!r}, which cannot be read: {exc}")


def collect_files(
    paths: Sequence[str], warn: Callable[[str], None] = _warn
) -> list[dict[str, Any]]:
    """Return the configuration of each file in *paths* (directories or files), in that order.

    Files that cannot be opened are skipped with a warning, as are YAML files if PyYAML is not
    installed.

    Raises
    ------
    ValueError
        If a file is malformed.
    """
    result = []
    unreadable = []
    for path in config_files(paths, warn):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            warn(f"Ignoring configuration file {str(path)!r}, which cannot be read: {exc}")
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
        warn(
            f"Ignoring {', '.join(unreadable)}, because PyYAML is not installed. "
            "Install distributed-core[config] to use them, or set their values with environment "
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
            f"Configuration file {str(path)!r} is malformed: it must contain a mapping of keys, "
            f"not a {type(content).__name__}"
        )
    return content


def collect(paths: Sequence[str] = paths, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the configuration of the files in *paths* and the environment variables in *env*."""
    return merge(*collect_files(paths), collect_env(env))


# The configuration of this process


def get(key: str, default: Any = no_default) -> Any:
    """Return the value of the dotted *key*.

    Raises
    ------
    KeyError
        If the key is not set and *default* is not given.
    TypeError
        If a section above *key* is a value and *default* is not given.

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
                raise TypeError(
                    f"{key!r} is not set: the section of {part!r} is the value {value!r}"
                )
            return default
        name = canonical_name(part, value)
        if name not in value:
            if default is no_default:
                raise KeyError(key)
            return default
        value = value[name]
    return value


class set:
    """Set values, permanently or, as a context manager, for the block.

    Parameters
    ----------
    arg : Mapping, optional
        Dotted keys and their values.  A value that is a mapping replaces the whole section.
    config : dict, optional
        The dictionary to change; default: the configuration of this process.
    **kwargs
        More keys, with ``__`` in place of the dot.

    Raises
    ------
    ValueError
        If a section above a key is a value.  The configuration is then unchanged.

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
        # For each assignment, its path and the previous value (no_default: the key was not set).
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

    def __exit__(self, *exc_info: object) -> None:
        with config_lock:
            self._restore()

    def _assign(self, key: str, value: Any) -> None:
        section = self.config
        path: list[str] = []
        *parents, last = key.split(".")
        # Removing the outermost new section also removes what is inside it.
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
                # Other code may have removed the section during the block.
                section = section.setdefault(name, {})
            if before is no_default:
                section.pop(path[-1], None)
            else:
                section[path[-1]] = before


def pop(key: str, default: Any = no_default) -> Any:
    """Remove the dotted *key* and return its value; raise the same errors as `get`."""
    parent, _, last = key.rpartition(".")
    with config_lock:
        value = get(key, default)
        section = get(parent, {}) if parent else config
        if isinstance(section, dict):
            section.pop(canonical_name(last, section), None)
    return value


def update_defaults(new: Mapping[str, Any]) -> None:
    """Add defaults, also for each later `refresh`.

    They replace earlier defaults but not configured values.
    """
    with config_lock:
        so_far = merge(*defaults)
        defaults.append(new)
        update(config, new, priority="new-defaults", defaults=so_far)


def refresh(paths: Sequence[str] = paths, env: Mapping[str, str] | None = None) -> None:
    """Discard values from `set` and read all sources.

    Raises
    ------
    ValueError
        If a source is malformed.  The configuration is then unchanged.
    """
    fresh = merge(*defaults, collect(paths, env))
    with config_lock:
        config.clear()
        config.update(fresh)

"""Levels and handlers of loggers, from the section ``logging`` of the configuration.

`initialize_logging` applies the section, which has one of three styles:

* levels: ``{"distributed": "debug", "tornado": "error"}``, added to `DEFAULT_LEVELS`;
* the schema of `logging.config.dictConfig`, recognized by its key ``version``;
* a file for `logging.config.fileConfig`, named by the key ``logging-file-config``.

``import distributed`` applies it, as with the original, and so do programs that run a server.

Levels come with a handler that writes to the standard error.  It gives way to the application: it
does not write a line that a handler of the application gets.  The default levels give way to
handlers of the root logger.  Both are checked for each line, because an
application may configure logging before the import or after it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from distributed.base import config_store
from distributed.base.config_sources import MISSING, lookup, source_of

__all__ = [
    "DEFAULT_FORMAT",
    "DEFAULT_LEVELS",
    "apply_at_import",
    "give_way",
    "initialize_logging",
]

#: The levels of loggers that the section does not name.
DEFAULT_LEVELS: Mapping[str, str] = {
    "distributed": "info",
    "distributed.client": "warning",
    "distributed.gc": "warning",
    "bokeh": "error",
    "tornado": "critical",
    "tornado.application": "error",
}

#: Configuration key of the format of a line; the value ``json`` stands for JSON lines.
FORMAT_KEY = "distributed.admin.log-format"
DEFAULT_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

#: The keys of `logging.config.dictConfig`.
_SCHEMA = frozenset(
    {
        "disable_existing_loggers",
        "filters",
        "formatters",
        "handlers",
        "incremental",
        "loggers",
        "root",
        "version",
    }
)

_LEVELS = "a level: debug, info, warning, error, critical, notset, or a number"


class _Level(int):
    """A level that this module has set: `setLevel` of an application stores another object."""

    is_default = False


class _DefaultLevel(_Level):
    """A level that gives way to handlers of the root logger."""

    is_default = True


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines to the standard error, unless the application handles the same lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        # Not that of StreamHandler, which keeps the stream of this moment.
        logging.Handler.__init__(self)
        self.setFormatter(formatter)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The standard error as it is now; programs and tests replace it."""
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> Any:
        if _is_configured(logging.getLogger(record.name)):
            return False
        return super().filter(record)


# The loggers that `initialize_logging` gave a level or a handler, by name; changed by it only.
_loggers: dict[str, logging.Logger] = {}


def _is_configured(logger: logging.Logger | None) -> bool:
    """Return whether a handler of the application gets the lines of a logger."""
    while logger is not None:
        # A NullHandler counts: the application wants no lines.
        if any(not isinstance(handler, _Handler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def give_way(record: logging.LogRecord) -> bool:
    """Return whether *record* is still to be logged, after the default levels have given way."""
    if not _loggers or not _is_configured(logging.root):
        return True
    for logger in _loggers.values():
        if isinstance(logger.level, _DefaultLevel):
            logger.setLevel(logging.NOTSET)
    return logging.getLogger(record.name).isEnabledFor(record.levelno)


def initialize_logging(
    config: Mapping[str, Any], *, level: str | int | None = None, json_lines: bool = False
) -> None:
    """Set the levels and handlers of loggers as a configuration says.

    Calling it again replaces what it has set before.

    Parameters
    ----------
    config : Mapping
        A whole configuration, such as ``distributed.config.config``.  Its section ``logging`` or
        its key ``logging-file-config`` is used; if ``distributed`` has one of them, that one.
    level : str or int, optional
        The level of the logger "distributed", instead of the configured one.
    json_lines : bool
        Whether to write one JSON object per line, also for the lines of other loggers; see
        :class:`distributed.base.json_lines.JsonFormatter`.  Default: if
        ``distributed.admin.log-format`` is ``json``.

    Raises
    ------
    ValueError
        If a value is not allowed.  The error gives the key, the value and its source.
    RuntimeError
        If both ``logging`` and ``logging-file-config`` are set.
    FileNotFoundError
        If the file of ``logging-file-config`` does not exist.

    Examples
    --------
    >>> initialize_logging({"logging": {"distributed": "debug"}})
    """
    own_level = None if level is None else _level(level)
    if own_level is None and level is not None:
        raise ValueError(f"the level of the logs is {level!r}, which is not {_LEVELS}")
    prefix, section, path = _find(config)
    is_complete = path is not None or "version" in section
    if is_complete and json_lines:
        raise ValueError(
            f"JSON lines were requested, but {_described(config, prefix, section, path)} defines "
            "formatters of its own. Give a formatter there the class "
            "distributed.base.json_lines.JsonFormatter, or do not request JSON lines"
        )
    if path is not None:
        _apply_file(f"{prefix}logging-file-config", path)
    elif is_complete:
        _check_schema(f"{prefix}logging", section)
        _apply_schema(f"{prefix}logging", section)
    else:
        levels = dict(_levels(f"{prefix}logging", section))
        formatter = _formatter(config, json_lines)
        _reset()
        _apply_levels(levels, formatter, own_level)
    if is_complete and own_level is not None:
        _set_level("distributed", _Level(own_level))


def apply_at_import() -> None:
    """Apply the configuration as far as it can be read without importing dask.

    If no source of the configuration mentions logging, no file is parsed.
    """
    # An application may have changed the configuration with `dask.config.set`.
    config: Any = getattr(sys.modules.get("dask.config"), "config", None)
    if config is None:
        config = config_store.collect() if _is_mentioned() else {}
    initialize_logging(config)


def _is_mentioned() -> bool:
    """Return whether a source of the configuration may say something about logging."""
    for name, text in os.environ.items():
        if name == "DASK_INTERNAL_INHERIT_CONFIG":
            return True
        if name.startswith("DASK_") and _mentions(f"{name}={text}"):
            return True
    for path in config_store.config_files(config_store.paths, warn=lambda message: None):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            # Reading the configuration, later, warns of it.
            continue
        if _mentions(text):
            return True
    return False


def _mentions(text: str) -> bool:
    text = text.lower().replace("_", "-")
    return "logging" in text or "log-format" in text


# The configuration


def _find(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Any]:
    """Return the prefix of the keys, the section, and the path of the file or None."""
    for prefix in ("distributed.", ""):
        section = lookup(f"{prefix}logging", config)
        path = lookup(f"{prefix}logging-file-config", config)
        if section is MISSING and path is MISSING:
            continue
        if section is not MISSING and path is not MISSING:
            raise RuntimeError(
                f"Configuration keys '{prefix}logging' (from "
                f"{_source(f'{prefix}logging', section)}) and '{prefix}logging-file-config' (from "
                f"{_source(f'{prefix}logging-file-config', path)}) are mutually exclusive: "
                "remove one of them"
            )
        if path is not MISSING:
            return prefix, {}, path
        if section is not None and not isinstance(section, Mapping):
            raise _invalid(
                f"{prefix}logging",
                section,
                "a section: levels by the names of loggers, or the schema of logging.config with "
                "the key 'version'",
            )
        return prefix, section or {}, None
    return "", {}, None


def _described(config: Any, prefix: str, section: Mapping[str, Any], path: Any) -> str:
    key = f"{prefix}logging" if path is None else f"{prefix}logging-file-config"
    value = section if path is None else path
    return f"configuration key {key!r} (from {_source(key, value)})"


def _source(key: str, value: object) -> str:
    paths = getattr(sys.modules.get("dask.config"), "paths", config_store.paths)
    return source_of(key, value, paths)


def _invalid(key: str, value: object, expected: str, why: str = "") -> ValueError:
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]}…"
    because = f": {why}" if why else ""
    return ValueError(
        f"Configuration key {key!r} is {shown} (from {_source(key, value)}), "
        f"which is not {expected}{because}"
    )


def _level(value: object) -> int | None:
    """Return a level as a number, or None if *value* is not a level."""
    if isinstance(value, str):
        return logging.getLevelNamesMapping().get(value.strip().upper())
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _levels(key: str, section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the names of loggers and their levels; sections inside are parts of names."""
    for part, value in section.items():
        name = f"{prefix}{part}"
        if isinstance(value, Mapping):
            yield from _levels(key, value, f"{name}.")
            continue
        level = _level(value)
        if level is None:
            raise _invalid(f"{key}.{name}", value, _LEVELS)
        yield name, level


def _formatter(config: Mapping[str, Any], json_lines: bool) -> logging.Formatter:
    value = lookup(FORMAT_KEY, config)
    if json_lines or value == "json":
        from distributed.base.json_lines import JsonFormatter

        return JsonFormatter()
    if value is MISSING:
        value = DEFAULT_FORMAT
    try:
        if not isinstance(value, str):
            raise TypeError("it is not text")
        return logging.Formatter(value)
    except (TypeError, ValueError) as exc:
        raise _invalid(
            FORMAT_KEY,
            value,
            "'json', or a format of logging.Formatter such as '%(asctime)s %(name)s: %(message)s'",
            str(exc),
        ) from None


# Its application


def _reset() -> None:
    """Remove the handlers and levels that this module has set."""
    for logger in _loggers.values():
        for handler in [each for each in logger.handlers if isinstance(each, _Handler)]:
            logger.removeHandler(handler)
        if isinstance(logger.level, _Level):
            logger.setLevel(logging.WARNING if logger is logging.root else logging.NOTSET)
    _loggers.clear()


def _set_level(name: str, level: _Level) -> None:
    logger = _loggers[name] = logging.getLogger(name)
    if not level.is_default or logger.level == logging.NOTSET:
        logger.setLevel(level)


def _apply_levels(
    levels: Mapping[str, int], formatter: logging.Formatter, own_level: int | None
) -> None:
    wanted: dict[str, _Level] = {}
    is_configured = _is_configured(logging.root)
    for name, text in DEFAULT_LEVELS.items():
        # The level that the caller requests is for all loggers below, too.
        is_below = own_level is not None and name.startswith("distributed.")
        if not is_configured and not is_below:
            wanted[name] = _DefaultLevel(logging.getLevelNamesMapping()[text.upper()])
    wanted.update((name, _Level(level)) for name, level in levels.items())
    if own_level is not None:
        wanted["distributed"] = _Level(own_level)
    for name, level in wanted.items():
        _set_level(name, level)
    if is_configured:
        return
    # The lines of all loggers are wanted as JSON: one that is not would break its reader.
    is_text = type(formatter) is logging.Formatter
    for logger in list(_loggers.values()) if is_text else [logging.root]:
        if not any(_has_parent(logger, other) for other in _loggers.values()):
            # Lines of loggers below are written by this handler, once.
            logger.addHandler(_Handler(formatter))
            _loggers[logger.name] = logger


def _has_parent(logger: logging.Logger, other: logging.Logger) -> bool:
    parent = logger.parent
    while parent is not None and parent is not other:
        parent = parent.parent
    return parent is not None


def _check_schema(key: str, section: Mapping[str, Any]) -> None:
    for name, value in section.items():
        if name not in _SCHEMA and not isinstance(value, Mapping) and _level(value) is not None:
            raise ValueError(
                f"Configuration key '{key}.{name}' (from {_source(f'{key}.{name}', value)}) is a "
                f"level, which has no effect because {key!r} has the key 'version': set the level "
                f"in '{key}.loggers' instead"
            )


def _apply_schema(key: str, section: Mapping[str, Any]) -> None:
    # Imported late, because it imports much that nothing else here needs.
    from logging.config import dictConfig

    _reset()
    try:
        dictConfig(dict(section))
    except (ValueError, TypeError, AttributeError, KeyError) as exc:
        raise _invalid(
            key, section, "a valid configuration for logging.config.dictConfig", _chain(exc)
        ) from exc
    _enable()


def _apply_file(key: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise _invalid(key, path, "the path of a file for logging.config.fileConfig")
    name = os.path.expanduser(os.fspath(path))
    if not os.path.exists(name):
        raise FileNotFoundError(
            f"Configuration key {key!r} is {path!r} (from {_source(key, path)}), but the file "
            f"{os.path.abspath(name)!r} does not exist"
        )
    from logging.config import fileConfig

    _reset()
    try:
        fileConfig(name, disable_existing_loggers=False)
    except Exception as exc:
        # The file names classes and functions, whose errors have any type.
        raise _invalid(
            key, path, "a valid file for logging.config.fileConfig", _chain(exc)
        ) from exc


def _enable() -> None:
    """Enable the loggers of this package that dictConfig has disabled because they existed.

    With the original, the configuration is applied before they exist.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and f"{name}.".startswith("distributed."):
            logger.disabled = False


def _chain(exc: BaseException | None) -> str:
    """Return the texts of an exception and of its causes."""
    texts = []
    while exc is not None:
        texts.append(f"{type(exc).__name__}: {exc}")
        exc = exc.__cause__ or exc.__context__
    return ", because of ".join(texts)

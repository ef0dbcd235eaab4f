"""A review of the configuration: every key with its value, source and meaning, and what is wrong.

The command line shows it.  Errors of single values come from :mod:`distributed.base.config`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from distributed.base import config
from distributed.base.config_keys import KEYS
from distributed.base.config_names import is_known, leaves, nearest_key, plain
from distributed.base.config_sources import CODE, find_source, lookup, sources

__all__ = ["Setting", "UnknownKey", "settings", "unknown_keys"]

#: The description of the source of a value that no other source gives.
DEFAULT = "default"
#: What is shown in place of a secret.
HIDDEN = "(not shown)"


class Setting(NamedTuple):
    """A configuration key, and its value in this process."""

    key: str
    #: The value as configured, such as "30s"; `HIDDEN` if it is a secret.
    value: Any
    default: Any
    #: A variable, a file, ``set``, or `DEFAULT`.
    source: str
    #: What values are allowed.
    allowed: str
    meaning: str
    #: The error that reading the value raises, or None.
    error: str | None


class UnknownKey(NamedTuple):
    """A configured key that does not exist."""

    key: str
    source: str
    #: The key that was probably meant; None if no key is like it.
    nearest: str | None


def settings() -> list[Setting]:
    """Return all keys that this package reads, in the order of the table."""
    found = list(sources(config.paths))
    result = []
    for key, (default, kind, meaning) in KEYS.items():
        error = None
        try:
            value = config.get(key)
        except ValueError as exc:
            # A section above it is a value.
            value, error = None, str(exc)
        else:
            try:
                config.read(key)
            except ValueError as exc:
                error = str(exc)
        source = find_source(key, value, found)
        if source is None:
            source = DEFAULT if repr(value) == repr(default) else CODE
        shown = HIDDEN if kind.secret and value is not None else value
        result.append(Setting(key, shown, default, source, kind.allowed, meaning, error))
    return result


def unknown_keys() -> list[UnknownKey]:
    """Return the configured keys that neither this package nor another one has.

    Only those that are like a known key, or are below ``distributed``, are in the result: others
    may belong to packages that are not imported.
    """
    known = config.known_keys()
    found = list(sources(config.paths))
    result = []
    for key in dict.fromkeys(map(plain, leaves(config.config))):
        if is_known(key, known) or any(key.startswith(f"{each}.") for each in known):
            continue
        near = nearest_key(key, known)
        if near is None and not key.startswith("distributed."):
            continue
        value = lookup(key, config.config)
        result.append(UnknownKey(key, find_source(key, value, found) or CODE, near))
    return result

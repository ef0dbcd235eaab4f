"""Checks of arguments; their errors name the argument and the nearest value that exists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

from distributed.base.quantities import parse_timedelta

__all__ = [
    "check_duration",
    "check_flag",
    "check_limit",
    "did_you_mean",
    "nearest",
    "unexpected_keyword",
    "unexpected_keyword_of",
    "warn_of_guessable",
]

#: Minimum number of characters of a token that is used without a warning.  A random token then has
#: at least 60 bits, and cannot be guessed.
MIN_TOKEN_LENGTH: Final = 16

#: The tokens of which this process has warned.
_warned_of: set[str | bytes] = set()


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "").replace("_", "")


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name in *known* that is most like *name*, or None if none is like it.

    Examples
    --------
    >>> nearest("sslContext", ["token", "ssl_context"])
    'ssl_context'
    >>> nearest("tokne", ["token", "ssl_context"])
    'token'
    """
    import difflib  # only errors need it

    by_plain = {_plain(each): each for each in known}
    found = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=cutoff)
    return by_plain[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the part of an error that names the nearest name, or lists the *known* ones."""
    known = sorted(known)
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near is not None else f"expected one of {known}."


def unexpected_keyword(
    where: str, names: Iterable[str], known: Iterable[str], hint: str = ""
) -> TypeError:
    """Return the error for unknown keyword arguments.

    Parameters
    ----------
    where
        The function that got them.
    names
        Their names, at least one.
    known
        The names that the function knows.
    hint
        Another sentence for the end of the error.
    """
    name = min(names)
    text = f"{where} got an unexpected keyword argument {name!r}; {did_you_mean(name, known)}"
    return TypeError(f"{text} {hint}".rstrip())


def unexpected_keyword_of(
    function: Callable[..., Any], names: Iterable[str], hint: str = ""
) -> TypeError:
    """Return the error for keyword arguments that *function* took as ``**unknown``."""
    import inspect  # only errors need it

    parameters = inspect.signature(function).parameters.values()
    known = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    known = [name for name in known if name != "self"]
    return unexpected_keyword(f"{function.__qualname__}()", names, known, hint)


def check_duration(
    name: str, value: float | str | timedelta | None, default: str = "seconds"
) -> float | None:
    """Return the duration that an argument gives, in seconds; None if it is None.

    Parameters
    ----------
    name
        The name of the argument, for errors.
    value
        A number or text such as ``"500ms"``.
    default
        The unit of a number without one.

    Raises
    ------
    ValueError, TypeError
        If *value* is not a duration.

    Examples
    --------
    >>> check_duration("timeout", "500ms")
    0.5
    """
    try:
        return parse_timedelta(value, default=default)
    except (ValueError, TypeError) as exc:
        raise type(exc)(f"{name}={value!r} is not a duration: {exc}") from None


def check_flag(name: str, value: Any) -> bool | None:
    """Return *value*, which must be True, False or None.

    Text such as ``"no"`` is refused, because it would count as true.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"{name} must be True, False or None, not {value!r}")


def check_limit(name: str, value: Any) -> None:
    """Check an argument that is a maximum number of connections.

    Raises
    ------
    ValueError
        If it is not a number from 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ValueError(
            f"{name} must be a number from 1, as a maximum of connections, not {value!r}"
        )


def warn_of_guessable(token: str | bytes, origin: str = "", *, stacklevel: int) -> None:
    """Warn of a token that can be guessed, once for each token.

    Parameters
    ----------
    token
        The token.  The warning does not show it.
    origin
        Where it comes from, for the warning.
    stacklevel
        As for :func:`warnings.warn`, if that was called in the place of this function.
    """
    if len(token) >= MIN_TOKEN_LENGTH or token in _warned_of:
        return
    _warned_of.add(token)
    warnings.warn(
        f"a token of {len(token)} characters{origin} can be guessed; use at least "
        f"{MIN_TOKEN_LENGTH} at random, such as secrets.token_urlsafe(32)",
        stacklevel=stacklevel + 1,
    )

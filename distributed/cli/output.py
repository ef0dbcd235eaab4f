"""Values of a server as JSON, or as text for a person.

Any value can be printed.  JSON that a program reads says the type of a value that JSON lacks; a
person sees its text.  No value can control the terminal.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from distributed.base.text import shown, shown_lines

__all__ = ["as_json", "as_text", "echo_json"]

#: Maximum nesting of a value, below which only its text is shown.
_MAX_DEPTH = 50
#: Maximum number of elements of an array of which all are shown.
_MAX_ELEMENTS = 1000
#: Maximum number of characters of the text of a value that JSON lacks.
_MAX_TEXT = 10_000

#: How to represent a value that JSON lacks.
Other = Callable[[Any], Any]


def as_json(value: Any) -> str:
    """Return a value as one line of JSON.

    Values that JSON lacks become maps with their ``type``, and ``base64``, ``values`` or ``text``;
    numbers that are not finite become text.

    Examples
    --------
    >>> as_json({"x": (1, 2.5), "data": b"abc", "limit": float("inf")})
    '{"x": [1, 2.5], "data": {"type": "bytes", "base64": "YWJj"}, "limit": "Infinity"}'
    """
    return _dump(_plain(value, _tagged, 0), None)


def as_text(value: Any) -> str:
    """Return a value as text for a person: indented JSON, as far as it is JSON.

    Examples
    --------
    >>> print(as_text({"x": [1, 2], "data": b"abc"}))
    {
      "x": [1, 2],
      "data": "<bytes: b'abc'>"
    }
    """
    plain = _plain(value, _described, 0)
    if isinstance(plain, str) and not isinstance(value, str):
        # A value that is not JSON at all; its text may have several lines.
        return shown_lines(_text_of(value), _MAX_TEXT)
    return _indented(plain, "")


def echo_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(as_json(value))


def _dump(plain: Any, indent: int | None) -> str:
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    text = json.dumps(plain, ensure_ascii=not encoding.startswith("utf"), indent=indent)
    if text.isprintable():
        return text
    # JSON escapes some control characters; terminals obey more, such as U+009B.
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    return json.dumps(c)[1:-1] if ord(c) > 0x7F else f"\\u{ord(c):04x}"


def _indented(plain: Any, margin: str) -> str:
    """Return indented JSON in which a container that fits into a line has one."""
    line = _dump(plain, None)
    fits = len(margin) + len(line) <= 80
    if not plain or not isinstance(plain, dict | list) or (fits and (margin or len(plain) < 2)):
        return line
    inner = margin + "  "
    if isinstance(plain, dict):
        parts = [f"{_dump(key, None)}: {_indented(it, inner)}" for key, it in plain.items()]
        opening, closing = "{", "}"
    else:
        parts = [_indented(it, inner) for it in plain]
        opening, closing = "[", "]"
    body = f",\n{inner}".join(parts)
    return f"{opening}\n{inner}{body}\n{margin}{closing}"


def _plain(value: Any, other: Other, depth: int) -> Any:
    """Return *value* as JSON can express it."""
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if kind in (str, int):
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value).replace("inf", "Infinity")
    if depth >= _MAX_DEPTH:
        return other(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(it, other, depth + 1) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(it, other, depth + 1) for it in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(it, other, depth + 1) for it in value), key=repr)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if _is_scalar(value):
        return _plain(value.item(), other, depth + 1)
    return other(value)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    return shown(key)


def _is_scalar(value: Any) -> bool:
    """Return whether *value* is a number of an array library."""
    return getattr(value, "shape", None) == () and callable(getattr(value, "item", None))


def _is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "tolist"))


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )


def _tagged(value: Any) -> dict[str, Any]:
    """Return the map that stands for a value that JSON lacks."""
    result: dict[str, Any] = {"type": _type_name(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        result["base64"] = base64.b64encode(bytes(value)).decode()
    elif _is_array(value):
        result |= {"dtype": str(value.dtype), "shape": list(value.shape)}
        if math.prod(value.shape) <= _MAX_ELEMENTS:
            result["values"] = _plain(value.tolist(), _tagged, 0)
        else:
            result["text"] = shown_lines(_text_of(value), _MAX_TEXT)
    else:
        result["text"] = shown_lines(_text_of(value), _MAX_TEXT)
    return result


def _described(value: Any) -> str:
    """Return the text that stands for a value that JSON lacks."""
    about = _type_name(value)
    if _is_array(value):
        about += f" of shape {tuple(value.shape)}, {value.dtype}"
    return f"<{about}: {shown(' '.join(_text_of(value).split()), 200)}>"


def _text_of(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        head = bytes(value[:_MAX_TEXT])
        return repr(head) + (f"... ({len(value):,} bytes)" if len(value) > len(head) else "")
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001  (the class is the server's choice)
        return f"{_type_name(value)} that cannot be shown: {type(exc).__name__}"

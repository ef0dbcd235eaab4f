"""Text from peers, made safe to show: escaped, and shortened.

A peer chooses the names of operations and arguments, the texts of errors, its socket's name, and
much else that appears in log lines and errors.  Line breaks in it would forge log lines, escape
sequences would control a terminal, and megabytes would fill a disk.  `shown` and `shown_repr`
render such a value; no other function of this package does.  `shown_exception` renders an exception
with its traceback by them.

The loggers of this package (:mod:`distributed.base.logs`) use them for all arguments of log lines.
An error whose text is made from a value of a peer uses them where it is raised.
"""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import Any

from distributed.base import config

__all__ = [
    "max_shown_length",
    "safely",
    "shown",
    "shown_exception",
    "shown_lines",
    "shown_repr",
    "type_name",
]

#: Configuration key of the maximum number of characters that are shown of a peer's value.
MAX_SHOWN_LENGTH_KEY = "distributed.admin.max-shown-length"
DEFAULT_MAX_SHOWN_LENGTH = 1000

#: Maximum numbers of exceptions in a chain, of members of a group, of levels of groups, of frames
#: of a traceback, and of lines of notes, that `shown_exception` renders.
_MAX_CHAIN, _MAX_MEMBERS, _MAX_LEVELS, _MAX_FRAMES, _MAX_NOTE_LINES = 8, 5, 3, 50, 100

#: The packages whose objects are shown by their own ``repr``, which is short and quick.
_SHOWN_PACKAGES = frozenset({"asyncio", "_asyncio", "distributed", "pathlib", "socket", "ssl"})

_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"


def _read_limit() -> int:
    try:
        value = config.get_bytes(MAX_SHOWN_LENGTH_KEY)
    except (LookupError, TypeError, ValueError):
        # Showing the text matters more than this setting.
        value = None
    return DEFAULT_MAX_SHOWN_LENGTH if value is None else value


#: Return the maximum number of characters that are shown of a peer's value.
max_shown_length = config.Section("distributed.admin", _read_limit)


def shown(value: object, limit: int | None = None) -> str:
    """Return the text of a value, as one printable line of limited length.

    Characters that are not printable are shown as escape sequences of Python, and the middle of a
    long text is left out.  This never raises an error.

    Parameters
    ----------
    value
        Text, an exception, or any other object, which is shown as by `shown_repr`.
    limit
        Maximum number of characters before escaping; by default
        ``distributed.admin.max-shown-length``.

    Examples
    --------
    >>> print(shown("get\\x1b[2J\\nERROR forged"))
    get\\x1b[2J\\nERROR forged
    """
    if type(value) is str:
        text: str = value
    elif (
        isinstance(value, BaseException)
        or type(value).__module__.partition(".")[0] in _SHOWN_PACKAGES
    ):
        text = safely(str, value)
    else:
        return shown_repr(value, limit)
    return _escaped(_shortened(text, limit))


def shown_repr(value: object, limit: int | None = None) -> str:
    """Return the ``repr`` of a value, as one printable line of limited length.

    Of a large value, only the part that is shown is rendered.  This never raises an error.

    Parameters
    ----------
    value, limit
        As for `shown`.

    Examples
    --------
    >>> shown_repr("add"), shown_repr(list(range(1_000_000)))
    ("'add'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    return _escaped(_shortened(safely(_Repr(limit).repr, value), limit))


class _Repr(reprlib.Repr):
    """Representations of plain values; objects of libraries are shown by their type alone.

    A peer chooses the values.  The parts of a large value that are left out are not rendered, and
    no code of a library runs: the ``repr`` of an array with many axes may take minutes.
    """

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        size = max_shown_length() if limit is None else limit
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = max(size, 10)
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 6

    def repr1(self, x: Any, level: int) -> str:
        kind = type(x)
        if kind is str or kind is bytes:
            return self._text(x)
        if kind is bytearray:
            return self._text(bytes(x[: self.maxstring + 1]), len(x))
        if kind is memoryview:
            return f"<memoryview of {x.nbytes} bytes>"
        if kind is dict:
            if level <= 0:
                return "{...}"
            items = [
                f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
                for key, value in islice(x.items(), self.maxdict)
            ]
            return "{" + ", ".join(items + ["..."] * (len(x) > len(items))) + "}"
        if kind in (list, tuple, set, frozenset, int):
            return str(super().repr1(x, level))
        if kind in (float, bool, complex, type(None), type) or isinstance(x, BaseException):
            return repr(x)
        if _is_of_shown_package(x):
            return repr(x)
        return f"<{kind.__module__}.{kind.__qualname__}>"

    def _text(self, value: str | bytes, length: int | None = None) -> str:
        length = len(value) if length is None else length
        if length <= self.maxstring:
            return repr(value)
        return f"{value[: self.maxstring]!r}… ({length:,} in all)"


def shown_lines(text: str, limit: int) -> str:
    """Return a text of several lines with other control characters escaped, and shortened.

    For texts that are shown as they are, such as the traceback of a remote error.  Log lines do not
    contain such a text; see `shown_exception`.

    Parameters
    ----------
    limit
        Maximum number of characters before escaping.
    """
    lines = _shortened(text, limit, gap="\n… {:,} characters left out …\n").split("\n")
    return "\n".join(_escaped(line.expandtabs()) for line in lines)


def shown_exception(exc: BaseException, limit: int) -> str:
    """Return an exception with its traceback, notes and causes, about as Python prints them.

    Only lines that Python's own format begins at the margin begin there, so no text in the
    exception can look like a line of its own.  This never raises an error.

    Parameters
    ----------
    limit
        Maximum number of characters; those in the middle are left out.
    """
    try:
        return _shortened(_exception(exc, 0), limit, gap="\n  … {:,} characters left out …\n")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # noqa: BLE001  (attributes of an exception may raise any error)
        return f"{type(exc).__name__} (which cannot be shown: {type(e).__name__})"


def _exception(exc: BaseException, level: int) -> str:
    parts: list[str] = []
    node: BaseException | None = exc
    seen: set[int] = set()
    while node is not None and id(node) not in seen and len(seen) < _MAX_CHAIN:
        seen.add(id(node))
        parts.append(_one_exception(node, level))
        after = node.__cause__
        if after is not None:
            parts.append(_CAUSE)
        elif not node.__suppress_context__:
            after = node.__context__
            parts.append(_CONTEXT)
        node = after
    if len(parts) % 2 == 0:
        # The sentence about an exception that is not shown.
        parts.pop()
    return "\n\n".join(reversed(parts))


def _one_exception(exc: BaseException, level: int) -> str:
    kind = type(exc)
    name = shown(kind.__qualname__)
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{shown(kind.__module__)}.{name}"
    text = shown(exc, 4 * max_shown_length())
    lines = [*_frames(exc.__traceback__), f"{name}: {text}" if text else name]
    notes = getattr(exc, "__notes__", None)
    left = _MAX_NOTE_LINES
    for note in notes[:left] if isinstance(notes, list) else ():
        if left and isinstance(note, str):
            note_lines = note[: 8 * max_shown_length()].splitlines()[:left]
            left -= len(note_lines)
            lines += [f"  {shown(line)}" for line in note_lines]
    if isinstance(exc, BaseExceptionGroup) and level < _MAX_LEVELS:
        for i, member in enumerate(exc.exceptions[:_MAX_MEMBERS], 1):
            lines.append(f"  +---------------- {i} of {len(exc.exceptions)} ----------------")
            lines += [f"  | {line}" for line in _exception(member, level + 1).splitlines()]
    return "\n".join(lines)


def _frames(tb: TracebackType | None) -> list[str]:
    if tb is None:
        return []
    lines = ["Traceback (most recent call last):"]
    frames = traceback.extract_tb(tb)
    gap = len(frames) - _MAX_FRAMES
    for i, frame in enumerate(frames):
        if gap > 0 and _MAX_FRAMES // 3 <= i < _MAX_FRAMES // 3 + gap:
            if i == _MAX_FRAMES // 3:
                lines.append(f"  … {gap:,} frames left out …")
            continue
        where = f'"{shown(frame.filename)}", line {frame.lineno}, in {shown(frame.name)}'
        lines.append(f"  File {where}")
        if frame.line:
            lines.append(f"    {shown(frame.line)}")
    return lines


def _is_of_shown_package(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in _SHOWN_PACKAGES


def type_name(obj: object) -> str:
    """Return the name of an object's type, with its module."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def safely(render: Callable[[Any], str], value: object) -> str:
    """Return ``render(value)``, or a text that names the error if that raises."""
    try:
        return render(value)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:  # noqa: BLE001  (any class may override these methods)
        return f"<{type_name(value)} whose {render.__name__}() raises {type_name(exc)}>"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _shortened(text: str, limit: int | None, gap: str = "… {:,} characters left out …") -> str:
    if limit is None:
        limit = max_shown_length()
    if len(text) <= limit:
        return text
    gap = gap.format(len(text) - limit)
    room = max(limit - len(gap), 0)
    # The end of a text tends to give the reason.
    head = room // 2
    return text[:head] + gap + text[len(text) - (room - head) :]

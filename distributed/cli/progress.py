"""A progress bar on standard error, for the items of a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Self, TextIO

__all__ = ["Progress"]

#: Seconds between two updates of the bar.
_INTERVAL = 0.1
_WIDTH = 30
#: Move to the beginning of the line and clear it.
_CLEAR = "\r\x1b[K"


class Progress:
    """The progress of a stream.

    In a terminal it is a bar that is drawn again as items arrive.  In a file it is one line at the
    end.

    Parameters
    ----------
    total
        The amount of work; None if it is unknown.
    key
        The key of an item that says how much is done; None to count the items.
    stream
        Where to draw it.
    clock
        Returns seconds.
    """

    def __init__(
        self,
        total: float | None,
        key: str | None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._total = total
        self._key = key
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        self._drawn = float("-inf")
        self._done: float = 0
        # Whether the bar is on the line of the cursor.
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.clear()
        self._stream.write(f"{self._line()}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Remove the bar, before an item is printed."""
        if self._is_shown:
            self._stream.write(_CLEAR)
            self._is_shown = False

    def update(self, item: Any) -> None:
        """Count an item, and draw the bar if it is time to."""
        if self._key is None:
            self._done += 1
        elif isinstance(item, Mapping) and isinstance(item.get(self._key), int | float):
            self._done = item[self._key]
        if self._stream.isatty() and self._clock() - self._drawn >= _INTERVAL:
            self._drawn = self._clock()
            self._stream.write(_CLEAR + self._line())
            self._stream.flush()
            self._is_shown = True

    def _line(self) -> str:
        elapsed = max(self._clock() - self._start, 1e-9)
        rate = f"{self._done / elapsed:.3g}/s, {elapsed:.1f} s"
        if not self._total:
            return f"{self._done:g} done, {rate}"
        share = min(max(self._done / self._total, 0.0), 1.0)
        bar = "#" * int(share * _WIDTH)
        return f"[{bar:<{_WIDTH}}] {share:4.0%}  {self._done:g} of {self._total:g}, {rate}"

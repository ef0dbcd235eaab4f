"""A queue that takes little memory while it is short."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

__all__ = ["AnyQueue", "ShortQueue", "grown"]

T = TypeVar("T")

#: Length from which a queue is a deque.
_LONG = 64


class ShortQueue(list[T]):
    """A list with the method of a deque that takes the first item.

    An empty one takes 70 bytes, and a deque 760.  Taking the first item takes time in proportion to
    the length, so the owner of a queue passes it through `grown` after adding items.
    """

    __slots__ = ()

    def popleft(self) -> T:
        """Remove and return the first item; raise `IndexError` if there is none."""
        return self.pop(0)


AnyQueue = ShortQueue[T] | deque[T]


def grown(queue: AnyQueue[T]) -> AnyQueue[T]:
    """Return *queue*, or a deque of its items if it has become long.

    Examples
    --------
    >>> grown(ShortQueue([1])), type(grown(ShortQueue(range(1000))))
    ([1], <class 'collections.deque'>)
    """
    return deque(queue) if len(queue) >= _LONG and isinstance(queue, ShortQueue) else queue

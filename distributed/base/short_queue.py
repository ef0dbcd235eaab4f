"""Queues of which there are many, and which are mostly empty."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

__all__ = ["LONG", "AnyQueue", "ShortQueue"]

T = TypeVar("T")

#: Length from which a queue should be a deque.
LONG = 64


class ShortQueue(list[T]):
    """A list with the method of a deque that takes the first item.

    While it is empty it takes 70 bytes, and a deque 760.  Taking the first item takes time in
    proportion to the length, so the owner
    of a queue replaces it by a deque when it reaches the length `LONG`.
    """

    __slots__ = ()

    def popleft(self) -> T:
        return self.pop(0)


AnyQueue = ShortQueue[T] | deque[T]

from __future__ import annotations

import sys
from collections import deque

from distributed.base.short_queue import LONG, ShortQueue


def test_it_takes_less_memory_than_a_deque_while_it_is_short():
    assert sys.getsizeof(ShortQueue()) < sys.getsizeof(deque()) / 5
    assert sys.getsizeof(ShortQueue(range(LONG - 1))) <= sys.getsizeof(deque(range(LONG - 1)))


def test_it_is_a_queue():
    queue = ShortQueue()
    queue.append(1)
    queue.append(2)
    assert (queue[0], queue[-1], len(queue)) == (1, 2, 2)
    assert [queue.popleft(), queue.popleft()] == [1, 2]
    assert not queue

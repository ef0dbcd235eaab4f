from __future__ import annotations

import sys
from collections import deque

from distributed.base.short_queue import ShortQueue, grown


def test_it_takes_less_memory_than_a_deque_while_it_is_short():
    assert sys.getsizeof(ShortQueue()) < sys.getsizeof(deque()) / 5
    assert sys.getsizeof(ShortQueue(range(60))) <= sys.getsizeof(deque(range(60)))


def test_it_is_a_queue():
    queue = ShortQueue()
    queue.append(1)
    queue.append(2)
    assert (queue[0], queue[-1], len(queue)) == (1, 2, 2)
    assert [queue.popleft(), queue.popleft()] == [1, 2]
    assert not queue


def test_a_queue_that_grows_becomes_a_deque_once_and_keeps_its_items():
    queue = ShortQueue()
    kinds = []
    for i in range(1000):
        queue.append(i)
        queue = grown(queue)
        kinds.append(type(queue))
    assert kinds == sorted(kinds, key=[ShortQueue, deque].index)
    assert set(kinds) == {ShortQueue, deque}
    assert grown(queue) is queue
    assert list(queue) == list(range(1000))

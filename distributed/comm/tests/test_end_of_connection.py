"""A comm tells of the end of its connection, and of unread data, although no task reads from it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from distributed.comm.tests.transports import TRANSPORTS
from distributed.utils_test import async_poll_for, gen_test


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return TRANSPORTS[request.param]


@pytest.mark.parametrize("leave", ["close", "abort"])
@gen_test()
async def test_the_callback_is_called_once_when_the_peer_leaves(transport, leave):
    async with transport.pair() as (one, two):
        calls: list[int] = []
        ended = asyncio.Event()
        one.notify_end(lambda: (calls.append(threading.get_ident()), ended.set()))
        if leave == "close":
            await two.close()
        else:
            two.abort()
        await ended.wait()
        one.abort()
        await asyncio.sleep(0)
        assert calls == [threading.get_ident()]


@gen_test()
async def test_the_callback_is_not_called_when_this_side_closes(transport):
    async with transport.pair() as (one, two):
        ends: list[str] = []
        one.notify_end(lambda: ends.append("one"))
        two.notify_end(lambda: ends.append("two"))
        one.abort()
        await async_poll_for(lambda: ends, timeout=10)
        assert ends == ["two"]


@gen_test()
async def test_a_callback_can_be_taken_back(transport):
    async with transport.pair() as (one, two):
        ended = asyncio.Event()
        one.notify_end(pytest.fail)
        one.notify_end(None)
        one.notify_end(ended.set)
        two.abort()
        await ended.wait()


@gen_test()
async def test_a_comm_has_unread_data_from_its_arrival_until_it_is_read(transport):
    async with transport.pair() as (one, two):
        assert not one.has_unread
        await two.write("a")
        await async_poll_for(lambda: one.has_unread, timeout=10)
        await two.write("b")
        assert await one.read() == "a"
        await async_poll_for(lambda: one.has_unread, timeout=10)
        assert await one.read() == "b"
        assert not one.has_unread

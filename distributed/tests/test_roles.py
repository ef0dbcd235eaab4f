"""Two roles use what the core offers to roles; a server that uses none of it is cheap."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tornado.ioloop import PeriodicCallback

from distributed import Server
from distributed.core import context_meter_to_server_digest
from distributed.telemetry.meter import context_meter
from distributed.utils_test import gen_test

ROOT = Path(__file__).parents[2]


class Hub(Server):
    """A server that members register with and send their digests to, by heartbeats."""

    def __init__(self) -> None:
        self.members: dict[str, dict] = {}
        self.changed = asyncio.Condition()
        super().__init__({"register": self.register, "heartbeat": self.heartbeat})

    def register(self, address):
        self.members[address] = {}

    async def heartbeat(self, address, digests):
        async with self.changed:
            for name, value in digests.items():
                self.members[address][name] = self.members[address].get(name, 0) + value
            self.changed.notify_all()


class Member(Server):
    death_timeout = 20

    def __init__(self, hub: str, **kwargs):
        self.hub = hub
        super().__init__({"work": self.work, "upload_file": self.upload_file}, **kwargs)

    async def start_unsafe(self):
        await super().start_unsafe()
        await self.listen("tcp://127.0.0.1:0")
        await self.rpc(self.hub).register(address=self.address)
        self.periodic_callbacks["heartbeat"] = PeriodicCallback(self.heartbeat, 5)
        self.start_periodic_callbacks()
        return self

    @context_meter_to_server_digest("work")
    async def work(self, n):
        context_meter.digest_metric("items", n, "count")
        await asyncio.to_thread(context_meter.digest_metric, "read", 2 * n, "bytes")

    async def heartbeat(self):
        digests = dict(self.digests_total_since_heartbeat)
        self.digests_total_since_heartbeat.clear()
        await self.rpc(self.hub).heartbeat(address=self.address, digests=digests)


@gen_test()
async def test_digests_of_handlers_are_sent_to_another_role_once(tmp_path):
    async with Hub() as hub:
        await hub.listen("tcp://127.0.0.1:0")
        async with Member(hub.address, local_directory=str(tmp_path)) as member:
            for n in (1, 2, 3):
                await hub.rpc(member.address).work(n=n)
            digests = hub.members[member.address]
            names = [("work", "items", "count"), ("work", "read", "bytes")]
            async with hub.changed:
                await hub.changed.wait_for(lambda: digests.get(names[1]) == 12)
            assert [digests[name] for name in names] == [6, 12]
            assert [member.digests_total[name] for name in names] == [6, 12]
            assert member.digests_max[names[0]] == 3


@gen_test()
async def test_a_module_uploaded_by_a_call_can_be_imported_until_the_role_closes(tmp_path):
    async with Hub() as hub:
        await hub.listen("tcp://127.0.0.1:0")
        async with Member(hub.address, local_directory=str(tmp_path)) as member:
            answer = await hub.rpc(member.address).upload_file(
                filename="uploaded_by_a_call.py", data=b"x = 5"
            )
            assert answer["status"] == "OK"
            assert sys.modules.pop("uploaded_by_a_call").x == 5
            directory = member.local_directory
            assert "uploaded_by_a_call.py" in os.listdir(directory)
            assert directory in sys.path
        assert os.path.basename(directory) not in os.listdir(os.path.dirname(directory))
        assert directory not in sys.path


@gen_test()
async def test_a_role_whose_hub_does_not_answer_fails_after_its_death_timeout():
    class Silent(Server):
        def __init__(self):
            super().__init__({"register": self.register})

        async def register(self, address):
            await asyncio.Event().wait()

    class Impatient(Member):
        death_timeout = 0.1

    async with Silent() as hub:
        await hub.listen("tcp://127.0.0.1:0")
        member = Impatient(hub.address)
        with pytest.raises(asyncio.TimeoutError):
            await member
        assert member.status.name == "failed"


BARE = """
import asyncio, json, os, sys, tempfile, threading
from distributed.core import Server, rpc

def calls_to_make_one():
    calls = 0
    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")
    sys.setprofile(count)
    Server({})
    sys.setprofile(None)
    return calls

async def main():
    Server({})  # reads the configuration
    calls = calls_to_make_one()
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            assert await remote.add(x=1, y=2) == 3
        found = {"threads": threading.active_count(), "files": os.listdir(tempfile.gettempdir())}
    print(json.dumps(found | {"calls": calls}))

asyncio.run(main())
"""


def test_a_bare_server_uses_no_directory_no_thread_and_few_calls(tmp_path):
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", BARE],
        env={"PATH": "", "TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["threads"], found["files"]) == (1, [])
    # Function calls are counted instead of time, which varies with the load: 600 take 0.07 ms.
    assert found["calls"] < 1100

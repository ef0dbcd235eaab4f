"""The programs, unit files and Dockerfile in ``examples/service``."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed.base import config
from distributed.base.quantities import parse_timedelta
from distributed.core import CommClosedError, RequestRefused, rpc, running
from distributed.utils_test import gen_test

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "examples" / "service"
APP, HEALTH = str(SERVICE / "app.py"), str(SERVICE / "health.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@contextmanager
def app(*command):
    """Run the server, and yield the process and its address."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            line = process.stderr.readline()
            yield process, line.split()[-1]
        finally:
            process.kill()


def health(*command):
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


async def add_until_refused(remote):
    # Until the signal has arrived, requests are answered.
    while True:
        assert await remote.add(x=1, y=2) == 3


@gen_test(timeout=60)
async def test_a_stream_in_progress_goes_to_its_end_after_sigterm():
    with app(sys.executable, APP, "tcp://127.0.0.1:0") as (process, address):
        numbers = []
        async with rpc(address) as remote, rpc(address) as other:
            async for number in remote.count.stream(to=3, pause=0.1):
                if not numbers:
                    process.send_signal(signal.SIGTERM)
                    with pytest.raises((RequestRefused, CommClosedError)):
                        await add_until_refused(other)
                numbers.append(number)
        assert numbers == [0, 1, 2]
        assert await asyncio.to_thread(process.wait, 20) == 0
        log = process.stderr.read()
        assert "Received SIGTERM" in log
        assert "Traceback" not in log


def test_the_probe_tells_whether_the_server_is_serving():
    with app(sys.executable, APP, "tcp://127.0.0.1:0") as (process, address):
        assert health(sys.executable, HEALTH, address).returncode == 0
        process.terminate()
        assert process.wait(20) == 0
    probe = health(sys.executable, HEALTH, address.replace("tcp://", "unix:///no/such/"))
    assert probe.returncode == 1
    assert "does not answer" in probe.stderr


def unit(name):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(SERVICE / name)
    return parser


def test_the_service_unit_agrees_with_the_server():
    service = unit("app.service")["Service"]
    assert service["Type"] == "notify"
    assert int(service["SuccessExitStatus"]) == running.UNFINISHED
    assert int(service["RestartPreventExitStatus"]) == running.INVALID
    variable, _, value = service["Environment"].partition("=")
    assert variable == "DASK_DISTRIBUTED__SERVER__SHUTDOWN_TIMEOUT"
    assert value == config.get("distributed.server.shutdown-timeout")
    # The server ends by itself before systemd kills it.
    assert int(service["TimeoutStopSec"]) > parse_timedelta(value) + running.EXIT_LIMIT
    command = service["ExecStart"].split()
    assert Path(command[1]).name == Path(APP).name
    assert command[2] == "fd://"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_accepts_the_units(tmp_path):
    for name in ("app.service", "app.socket"):
        text = (SERVICE / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/app/.venv/bin/python", sys.executable))
    checked = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            tmp_path / "app.service",
            tmp_path / "app.socket",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.stderr == ""
    assert checked.returncode == 0


def instructions():
    """Return the instructions of the Dockerfile: a list of names and arguments."""
    text = re.sub(r"^#.*\n", "", (SERVICE / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line.split(maxsplit=1) for line in text.splitlines() if line]


def test_the_files_that_the_dockerfile_copies_exist():
    copied = [what.split()[:-1] for name, what in instructions() if name == "COPY"]
    sources = [ROOT / source for group in copied for source in group]
    assert all(source.exists() for source in sources)
    # The project itself, which pip installs.
    assert ROOT in sources


def test_the_commands_of_the_dockerfile_run():
    found = dict(instructions())
    entry, default = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    probe = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])

    def here(command):
        # The image has the programs in /app; the port may be taken on this host.
        replaced = [part.replace("/app/", f"{SERVICE}/") for part in command]
        assert replaced[0] == "python"
        return [sys.executable, *replaced[1:]]

    assert default[-1].endswith(found["EXPOSE"])
    assert probe[-1].endswith(found["EXPOSE"])
    with app(*here(entry), default[-1].replace("8786", "0")) as (process, address):
        port = address.rpartition(":")[2]
        checked = health(*here(probe)[:-1], probe[-1].replace("8786", port))
        assert checked.returncode == 0, checked.stderr
        process.send_signal(getattr(signal, found["STOPSIGNAL"]))
        assert process.wait(20) == 0

"""The tutorial works when it is typed, on two hosts with a network between them."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from distributed.tests import terminals
from distributed.tests.networks import two_hosts

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
#: The pages that are typed, in this order, in the same directories.
PLAYED = ["task-queue.rst", "two-machines.rst"]


def free_ports(*names):
    """Return a free port for each port of the page."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {
            name: str(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)
        }


@contextlib.contextmanager
def two_machines():
    """Yield a function that runs a command on a machine, and texts to replace on the page.

    If this machine does not permit network namespaces, both machines are this one.
    """
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(two_hosts())
        except pytest.skip.Exception:
            yield (
                lambda number, command: command,
                {"192.168.1.10": "127.0.0.1", "0.0.0.0": "127.0.0.1"} | free_ports("8786", "8787"),
            )
        else:
            yield (
                lambda number, command: hosts[number - 1].on(*command),
                {"192.168.1.10": hosts[0].address},
            )


def test_the_tutorial_works_when_it_is_typed(tmp_path):
    pytest.importorskip("click", reason="the tutorial uses the command line")
    with two_machines() as (on, addresses):
        for name in PLAYED:
            terminals.play(TUTORIAL / name, tmp_path, on, addresses)


def test_each_page_that_is_typed_is_played():
    pages = [page for page in (ROOT / "docs").rglob("*.rst") if terminals.is_typed(page)]
    assert sorted(pages) == sorted(TUTORIAL / name for name in PLAYED)

"""The tutorial works when it is typed, on two hosts with a network between them."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from distributed.tests import pages, terminals
from distributed.tests.networks import two_hosts

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"


@contextlib.contextmanager
def two_machines():
    """Yield a function that runs a command on a machine, and texts to replace on the page.

    If this machine does not permit network namespaces, both machines are this one.
    """
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(two_hosts())
        except pytest.skip.Exception:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            yield (
                lambda number, command: command,
                {"192.168.1.10": "127.0.0.1", "0.0.0.0": "127.0.0.1", "8786": str(port)},
            )
        else:
            yield (
                lambda number, command: hosts[number - 1].on(*command),
                {"192.168.1.10": hosts[0].address},
            )


def test_the_tutorial_works_when_it_is_typed(tmp_path):
    with two_machines() as (on, addresses):
        for page in ("task-queue.rst", "two-machines.rst"):
            terminals.play(TUTORIAL / page, tmp_path, on, addresses)


def test_each_file_of_the_documentation_is_in_a_page_that_is_played():
    for page in (ROOT / "docs").rglob("*.rst"):
        if page.parent != TUTORIAL and "_build" not in page.parts:
            assert not any(block.caption.endswith(".py") for block in pages.blocks(page)), page

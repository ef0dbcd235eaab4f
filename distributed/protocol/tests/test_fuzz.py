"""Mutated messages give a message or an error of the protocol, soon and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distributed.protocol.tests import fuzzing

INPUTS = 70_000

RUN = """
import json, sys
from distributed.protocol.tests import fuzzing
print(json.dumps(fuzzing.run(int(sys.argv[1]), int(sys.argv[2]))))
"""


@pytest.mark.parametrize("seed", range(3))
def test_mutated_messages_give_a_message_or_a_protocol_error_soon(seed):
    # In a separate process, so that nothing else affects its peak memory.
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(seed), str(INPUTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = fuzzing.Report(*json.loads(done.stdout))
    assert INPUTS / 10 < report.valid < INPUTS * 9 / 10
    assert report.slowest < 1
    assert report.grown < 32 * 2**20


def test_the_messages_before_mutation_are_valid():
    readable = [frames for frames in fuzzing.seeds() if fuzzing.take(frames)]
    assert len(readable) > 20


def test_a_seed_determines_the_mutated_messages():
    one, other = fuzzing.Mutator(5), fuzzing.Mutator(5)
    assert [one.frames() for _ in range(50)] == [other.frames() for _ in range(50)]
    assert [one.stream() for _ in range(50)] == [other.stream() for _ in range(50)]

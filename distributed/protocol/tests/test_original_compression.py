"""Frames that the original has compressed inflate here, and the other way round."""

from __future__ import annotations

import json

import pytest

from distributed.protocol import Serialize, dumps, loads
from distributed.protocol.compression import compressions
from distributed.tests.environments import run_in

CODECS = ["zlib", "lz4", "snappy", "zstd"]

# Means the same on both sides.
EXPRESSION = "{'op': 'x', 'a': b'abc' * 20_000, 'b': bytearray(50_000), 'c': ['d' * 30_000]}"
SENT = eval(EXPRESSION)

WRITE = f"""
import json
from distributed.protocol import Serialize, dumps
sent = {{key: Serialize(value) for key, value in {EXPRESSION}.items()}}
for name in {CODECS}:
    print(json.dumps([bytes(f).hex() for f in dumps(sent, context={{"compression": name}})]))
"""

READ = f"""
import json, sys
from distributed.protocol import loads
for line in open(ASKED):
    assert loads([bytes.fromhex(frame) for frame in json.loads(line)]) == {EXPRESSION}
print("read")
"""


def installed(name):
    if name not in compressions:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(scope="module")
def written_by_the_original(original_python_with_codecs):
    done = run_in(original_python_with_codecs, WRITE)
    return dict(zip(CODECS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CODECS)
def test_what_the_original_compresses_is_read_here(written_by_the_original, name):
    frames = [bytes.fromhex(frame) for frame in written_by_the_original[installed(name)]]
    assert max(map(len, frames)) < 10_000
    assert loads(frames) == SENT


@pytest.mark.parametrize("name", CODECS)
def test_the_original_reads_what_is_compressed_here(original_python_with_codecs, tmp_path, name):
    msg = {key: Serialize(value) for key, value in SENT.items()}
    frames = dumps(msg, context={"compression": installed(name)})
    assert max(map(len, frames)) < 10_000
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps([bytes(frame).hex() for frame in frames]))
    done = run_in(original_python_with_codecs, f"ASKED = {str(asked)!r}\n{READ}")
    assert done.stdout == "read\n"

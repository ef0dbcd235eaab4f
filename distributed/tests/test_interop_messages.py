"""Every kind of message goes from this package to the original and back, over every transport.

The conversation is `distributed.tests.interop`; both sides have numpy, pandas and lz4.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from distributed.tests import interop
from distributed.tests.environments import ORIGINAL, _or_skip, clean_environ, read_address, run_in
from distributed.utils_test import popen

PROGRAM = str(Path(interop.__file__).resolve())
LIBRARIES = ["lz4", "numpy", "pandas"]

#: name → (where to listen, the compression that both are configured with, MB of a large message).
#: Peers on one host do not compress, so that the callers come from another address of it.
TRANSPORTS = {
    "tcp": ("tcp://127.0.0.1:0", None, 300),
    "tls": ("tls://127.0.0.1:0", None, 50),
    "ws": ("ws://127.0.0.1:0", None, 50),
    "wss": ("wss://127.0.0.1:0", None, 50),
    "tcp-lz4": ("tcp://127.0.0.2:0", "lz4", 50),
    "tcp-zlib": ("tcp://127.0.0.2:0", "zlib", 5),
}

#: Each a direction; the cases know which one it is where the two differ.
DIRECTIONS = ["the_original_calls_this_server", "this_package_calls_the_original"]


@pytest.fixture(scope="module")
def pythons():
    """A Python with the original and one with this package, each with the same libraries."""
    return (
        _or_skip("original-interop", [ORIGINAL, *LIBRARIES], project=False),
        _or_skip("interop", LIBRARIES, project=True),
    )


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture(scope="module", params=DIRECTIONS)
def became(request, pythons, transport):
    """What became of each case."""
    original, ours = pythons
    is_original = request.param == "this_package_calls_the_original"
    strictly = [str(ours), "-Werror", "-P", PROGRAM]
    server, client = [str(original), "-P", PROGRAM], strictly
    if not is_original:
        server, client = client, server
    address, compression, large = TRANSPORTS[transport]
    env = {"DASK_DISTRIBUTED__COMM__COMPRESSION": compression} if compression else {}
    with popen(
        server + ["server", address],
        capture_output=True,
        stdin=subprocess.PIPE,
        env=clean_environ(env),
        cwd="/",
    ) as process:
        said = read_address(process.stdout)
        options = {
            "server_is_the_original": is_original,
            "compression": compression,
            "large": large,
        }
        python, *argv = client + ["client", said, json.dumps(options)]
        done = run_in(Path(python), argv, env=env, timeout=100)
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", interop.CASES)
def test_a_message_means_the_same_on_both_sides(became, case):
    assert not became[case], became[case]

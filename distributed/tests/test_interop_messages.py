"""Each kind of message is exchanged with the original, in both directions, over every transport.

The program is `distributed.tests.interop`; both sides have numpy, pandas and lz4.
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

#: name → (address to listen on, compression in both configurations, MB of a large message).
#: Peers on one host do not compress, so the clients connect from another address of it.
TRANSPORTS = {
    "tcp": ("tcp://127.0.0.1:0", None, 300),
    "tls": ("tls://127.0.0.1:0", None, 50),
    "ws": ("ws://127.0.0.1:0", None, 50),
    "wss": ("wss://127.0.0.1:0", None, 50),
    "tcp-lz4": ("tcp://127.0.0.2:0", "lz4", 50),
    "tcp-zlib": ("tcp://127.0.0.2:0", "zlib", 5),
    # Here this package, too, has tblib: remote tracebacks are sent as frames.
    "tcp-tblib": ("tcp://127.0.0.1:0", None, 50),
}

#: name → whether the server and the client are the original
DIRECTIONS = {
    "the_original_calls_this_server": (False, True),
    "this_package_calls_the_original": (True, False),
    "this_package_calls_itself": (False, False),
}
RUNS = [
    (direction, transport)
    for transport in TRANSPORTS
    for direction in DIRECTIONS
    if direction != "this_package_calls_itself" or transport == "tcp-tblib"
]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def outcomes(request):
    """The outcome of each case: "" or a traceback."""
    direction, transport = request.param
    address, compression, large = TRANSPORTS[transport]
    more = ["tblib"] if transport == "tcp-tblib" else []
    original = _or_skip("original-interop", [ORIGINAL, *LIBRARIES], project=False)
    ours = _or_skip("-".join(["interop", *more]), [*LIBRARIES, *more], project=True)
    server, client = (
        [str(original)] if is_original else [str(ours), "-Werror"]
        for is_original in DIRECTIONS[direction]
    )
    env = {"DASK_DISTRIBUTED__COMM__COMPRESSION": compression} if compression else {}
    with popen(
        [*server, "-P", PROGRAM, "server", address],
        capture_output=True,
        stdin=subprocess.PIPE,
        env=clean_environ(env),
        cwd="/",
    ) as process:
        options = {
            "server_is_the_original": DIRECTIONS[direction][0],
            "compression": compression,
            "large": large,
        }
        arguments = ["client", read_address(process.stdout), json.dumps(options)]
        done = run_in(
            Path(client[0]), [*client[1:], "-P", PROGRAM, *arguments], env=env, timeout=100
        )
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    if not DIRECTIONS[direction][1]:
        assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", interop.CASES)
def test_a_message_means_the_same_on_both_sides(outcomes, case):
    assert not outcomes[case], outcomes[case]

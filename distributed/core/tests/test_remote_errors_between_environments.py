"""Errors sent between processes with tblib, without tblib, and with the original."""

from __future__ import annotations

import itertools
import json

import pytest

from distributed.tests.environments import ROOT, _or_skip, run_in

# Each process reads the frames of an error message from its arguments, and prints those of its own
# message or a description of the error.
FRAMES = """
import json, sys
from {protocol} import dumps, loads
from {errors} import clean_exception, error_message

def take():
    return loads([bytes.fromhex(frame) for frame in json.loads(sys.argv[1])])

def give(exc):
    print(json.dumps([bytes(frame).hex() for frame in dumps(error_message(exc))]))
"""
OURS = FRAMES.format(protocol="distributed.protocol", errors="distributed.core.errors.messages") + (
    "from distributed.core.errors.messages import exception_from\n"
)
ORIGINAL = FRAMES.format(protocol="distributed.protocol", errors="distributed.core")

RAISE = """
def root():
    {}["root"]

def raised_root():
    try:
        root()
    except KeyError as e:
        return e

def first_hop(exc, cause):
    exc.answer = 42
    raise exc from cause

try:
    first_hop(ValueError("boom"), raised_root())
except ValueError as e:
    give(e)
"""

PASS_ON = """
def second_hop():
    raise exception_from(take(), peer="tcp://the-first-hop:1")

try:
    second_hop()
except ValueError as e:
    give(e)
"""

SHOW = """
import traceback
exc = exception_from(take(), peer="tcp://the-last-hop:1")
print(json.dumps({
    "type": type(exc).__name__,
    "text": str(exc),
    "answer": exc.answer,
    "cause": repr(exc.__cause__),
    "printed": "".join(traceback.format_exception(exc)),
}))
"""

SHOW_ORIGINAL = SHOW.replace(
    'exc = exception_from(take(), peer="tcp://the-last-hop:1")',
    "_, exc, tb = clean_exception(**take()); exc = exc.with_traceback(tb)",
)


def run(python, code, message=None):
    """Return the output of a process that runs *code* on a message."""
    arguments = [] if message is None else [json.dumps(message)]
    return json.loads(run_in(python, ["-c", code, *arguments]).stdout)


def assert_shown(shown):
    assert (shown["type"], shown["text"], shown["answer"]) == ("ValueError", "boom", 42)
    assert shown["cause"] == "KeyError('root')"
    assert shown["printed"].count("in first_hop") == 1


@pytest.fixture(scope="module")
def tblib_python():
    return _or_skip("tblib", ["tblib"], project=True)


@pytest.fixture(params=["without tblib", "with tblib"])
def python(request, bare_python, tblib_python):
    return bare_python if request.param == "without tblib" else tblib_python


@pytest.mark.parametrize(
    "hops", list(itertools.product(["bare", "tblib"], repeat=3)), ids=lambda hops: "-".join(hops)
)
def test_an_error_shows_the_frames_of_each_hop_once(hops, bare_python, tblib_python):
    pythons = {"bare": bare_python, "tblib": tblib_python}
    first, second, last = (pythons[hop] for hop in hops)
    shown = run(last, OURS + SHOW, run(second, OURS + PASS_ON, run(first, OURS + RAISE)))
    assert_shown(shown)
    assert shown["printed"].count("in second_hop") == 1


def test_an_error_from_the_original_arrives(python, original_python):
    assert_shown(run(python, OURS + SHOW, run(original_python, ORIGINAL + RAISE)))


def test_an_error_arrives_at_the_original(python, original_python):
    shown = run(original_python, ORIGINAL + SHOW_ORIGINAL, run(python, OURS + RAISE))
    assert_shown(shown)
    assert shown["printed"].count("in root") == 1


def test_an_error_that_cannot_be_pickled_arrives_at_the_original(python, original_python):
    code = OURS + (
        "import threading\n"
        "try:\n"
        "    raise ValueError(threading.Lock())\n"
        "except ValueError as e:\n"
        "    e.answer = 42\n"
        "    give(e)\n"
    )
    code_at_the_original = SHOW_ORIGINAL.replace("exc.answer", "None")
    shown = run(original_python, ORIGINAL + code_at_the_original, run(python, code))
    assert shown["type"] == "Exception"
    assert "ValueError(<unlocked _thread.lock" in shown["text"]


@pytest.mark.parametrize("requirements", [[], ["tblib"]], ids=["without tblib", "with tblib"])
def test_all_tests_of_remote_errors_pass(requirements):
    name = "-".join(["pytest", *requirements])
    python = _or_skip(name, ["pytest", "pytest-timeout", *requirements], project=True)
    tests = str(ROOT / "distributed" / "core" / "tests" / "test_remote_errors.py")
    run_in(python, ["-m", "pytest", "-q", "-p", "no:cacheprovider", tests], cwd=ROOT, timeout=110)

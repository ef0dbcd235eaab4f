"""Exceptions that refer to themselves arrive with all their attributes, with and without tblib."""

from __future__ import annotations

import sys

import pytest

from distributed.core import rpc
from distributed.tests.servers import TCP, quiet, serving
from distributed.utils_test import gen_test


class Response:
    def __init__(self, status):
        self.status = status
        self.error = None


class HTTPError(Exception):
    def __init__(self, message, response):
        super().__init__(message)
        self.response = response
        response.error = self


class Slotted(Exception):
    __slots__ = ("code", "response")

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class SlottedResponse:
    __slots__ = ("error",)


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code
        self.history = [self]


class OwnState(Exception):
    def __setstate__(self, state):
        self.restored = state

    def __reduce__(self):
        return OwnState, self.args, {"me": self}


def http_error():
    return HTTPError("not found", Response(404))


def check_http_error(e):
    assert type(e) is HTTPError
    assert str(e) == "not found"
    assert e.response.status == 404
    assert e.response.error is e


def with_notes():
    e = http_error()
    e.add_note("first note")
    return e


def check_with_notes(e):
    check_http_error(e)
    assert e.__notes__[0] == "first note"


def slotted():
    e = Slotted("slots", 7)
    e.response = SlottedResponse()
    e.response.error = e
    return e


def check_slotted(e):
    assert e.code == 7
    assert e.response.error is e


def slotted_without_a_cycle():
    return Slotted("slots", 7)


def check_slotted_without_a_cycle(e):
    assert e.code == 7
    assert not hasattr(e, "response")


def keyword_only():
    return KeywordOnly(code=3)


def check_keyword_only(e):
    assert str(e) == "code 3"
    assert e.history[0] is e


def of_the_system():
    e = FileNotFoundError(2, "no such file", "name")
    e.me = e
    return e


def check_of_the_system(e):
    assert (e.errno, e.filename, e.me) == (2, "name", e)


def of_unicode():
    e = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    e.me = e
    return e


def check_of_unicode(e):
    assert (e.object, e.end, e.me) == (b"\xff", 1, e)


def in_its_arguments():
    e = ValueError("a")
    e.args = ("a", [e])
    return e


def check_in_its_arguments(e):
    assert e.args[0] == "a"
    assert e.args[1][0] is e


def with_a_state_of_its_own():
    return OwnState("x")


def check_with_a_state_of_its_own(e):
    assert e.restored["me"] is e


def with_a_cause():
    e = http_error()
    e.__cause__ = KeyError("cause")
    e.__cause__.parent = e
    return e


def check_with_a_cause(e):
    check_http_error(e)
    assert type(e.__cause__) is KeyError
    assert e.__cause__.parent is e
    assert e.__suppress_context__


def with_a_context():
    e = RuntimeError("outer")
    e.__context__ = http_error()
    return e


def check_with_a_context(e):
    check_http_error(e.__context__)
    assert not e.__suppress_context__


def as_a_cause_of_each_other():
    e, other = ValueError("a"), KeyError("b")
    e.__cause__, other.__context__ = other, e
    return e


def check_as_a_cause_of_each_other(e):
    assert type(e.__cause__) is KeyError
    assert e.__cause__.__context__ is e


def in_a_group():
    member = http_error()
    group = ExceptionGroup("group", [member, slotted()])
    member.group = group
    group.me = group
    return group


def check_in_a_group(e):
    assert e.me is e
    member, other = e.exceptions
    check_http_error(member)
    assert member.group is e
    check_slotted(other)


def in_a_list_of_an_attribute():
    e = RuntimeError("several")
    e.errors = [http_error() for _ in range(200)]
    return e


def check_in_a_list_of_an_attribute(e):
    assert len(e.errors) == 200
    check_http_error(e.errors[0])
    check_http_error(e.errors[-1])


KINDS = [
    http_error,
    with_notes,
    slotted,
    slotted_without_a_cycle,
    keyword_only,
    of_the_system,
    of_unicode,
    in_its_arguments,
    with_a_state_of_its_own,
    with_a_cause,
    with_a_context,
    as_a_cause_of_each_other,
    in_a_group,
    in_a_list_of_an_attribute,
]


@pytest.fixture(params=["tblib", "no tblib"])
def tblib(request, monkeypatch):
    if request.param == "tblib":
        pytest.importorskip("tblib")
    else:
        monkeypatch.setitem(sys.modules, "tblib", None)
    return request.param == "tblib"


@pytest.mark.parametrize("make", KINDS)
@gen_test()
async def test_an_exception_in_a_cycle_keeps_its_attributes(tblib, make):
    def fail():
        raise make()

    async with serving(TCP, {"f": fail}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(Exception) as info:  # noqa: PT011
            await remote.f()
    e = info.value
    globals()[f"check_{make.__name__}"](e)
    if tblib:
        assert info.traceback[-1].name == "fail"
    else:
        assert "in fail" in e.__notes__[-1]

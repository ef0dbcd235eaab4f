"""Exceptions made into messages and back, with and without tblib."""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import sys
import threading
import traceback
import types
from typing import Any

import pytest

from distributed.base import config
from distributed.core.errors.messages import (
    ErrorMessage,
    OKMessage,
    clean_exception,
    error_message,
    exception_from,
    truncate_exception,
)
from distributed.protocol import Serialize, dumps, loads

HAS_TBLIB = importlib.util.find_spec("tblib") is not None
LIMIT = "distributed.admin.max-error-length"


class Plain(Exception):
    pass


class NeedsArguments(Exception):
    def __init__(self, what, *, where):
        super().__init__(f"{what} at {where}")
        self.what = what
        self.where = where


class Prefixes(Exception):
    """An exception whose constructor changes the message."""

    def __init__(self, what):
        super().__init__(f"failed: {what}")


class KeepsErrno(OSError):
    def __init__(self, path):
        super().__init__(2, "not there", path)


class CannotBePickled(Exception):
    def __reduce__(self):
        raise TypeError("pickling refused")


class CannotBeUnpickled(Exception):
    def __reduce__(self):
        return _fail_to_load, ()


class UnpicklesAsText(Exception):
    def __reduce__(self):
        return str, ("surprise",)


class OverridesSetstate(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = None

    def __reduce__(self):
        return OverridesSetstate, self.args, {"kept": self.extra}

    def __setstate__(self, state):
        self.extra = state["kept"]


class CannotBePrinted(Exception):
    def __str__(self):
        raise ZeroDivisionError("no text")

    __repr__ = __str__


class RunsOutOfMemory(Exception):
    def __reduce__(self):
        raise MemoryError


class IsEndless(Exception):
    def __reduce__(self):
        return IsEndless, (IsEndless(),)


class IsEndlessInItsAttributes(Exception):
    def __reduce__(self):
        return type(self), self.args, {"next": type(self)()}


class RefusesNotes(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


def _fail_to_load():
    raise RuntimeError("unpickling refused")


def raised(exc: BaseException, cause: BaseException | None = None) -> Any:
    """Return an exception that has been raised, with its traceback."""
    try:
        if cause is not None:
            raise exc from cause
        raise exc
    except BaseException as e:  # noqa: BLE001  (SystemExit too)
        return e


def over_the_wire(msg):
    return loads([bytes(frame) for frame in dumps(msg)])


def travelled(exc: BaseException) -> Any:
    """Return the exception at the caller of a handler that raises *exc*."""
    return exception_from(over_the_wire(error_message(exc)))


def cleaned(*args: Any, **kwargs: Any) -> Any:
    return clean_exception(*args, **kwargs)


def printed(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


# The message


def test_a_message_has_the_originals_keys():
    msg = error_message(raised(ValueError("boom")))
    assert list(msg) == list(ErrorMessage.__annotations__)
    assert list(msg) == ["status", "exception", "traceback", "exception_text", "traceback_text"]


def test_an_ok_message_is_a_dict_with_a_status():
    assert OKMessage(status="OK") == {"status": "OK"}


def test_status_is_error_unless_another_is_given():
    assert error_message(ValueError())["status"] == "error"
    assert error_message(ValueError(), status="uncaught-error")["status"] == "uncaught-error"


def test_the_texts_are_the_repr_and_the_frames():
    msg = error_message(raised(ValueError("boom")))
    assert msg["exception_text"] == "ValueError('boom')"
    assert msg["traceback_text"].startswith('  File "')
    assert ", in raised\n    raise exc\n" in msg["traceback_text"]


def test_an_exception_that_was_never_raised_has_no_traceback_text():
    assert error_message(ValueError("boom"))["traceback_text"] == ""


def test_the_exception_is_a_pickle_in_a_serialize_value():
    msg = error_message(raised(ValueError("boom")))
    assert isinstance(msg["exception"], Serialize)
    revived = pickle.loads(msg["exception"].data)
    assert type(revived) is ValueError
    assert revived.args == ("boom",)


@pytest.mark.skipif(HAS_TBLIB, reason="with tblib there is a traceback")
def test_without_tblib_there_is_no_traceback_in_the_message():
    assert error_message(raised(ValueError("boom")))["traceback"] is None


@pytest.mark.skipif(not HAS_TBLIB, reason="needs tblib")
def test_with_tblib_there_is_a_traceback_in_the_message():
    msg: Any = error_message(raised(ValueError("boom")))
    tb = pickle.loads(msg["traceback"].data)
    assert isinstance(tb, types.TracebackType)


def test_making_a_message_leaves_the_exception_as_it_was():
    exc = raised(ValueError("boom"))
    before = dict(exc.__dict__)
    error_message(exc)
    assert exc.__dict__ == before


# Over the wire


def test_type_and_message_arrive():
    exc = travelled(raised(Plain("boom", 1)))
    assert type(exc) is Plain
    assert exc.args == ("boom", 1)


def test_the_remote_frames_are_printed_at_the_caller():
    def explode():
        raise ValueError("boom")

    try:
        explode()
    except ValueError as e:
        exc = travelled(e)
    assert printed(exc).count("in explode") == 1
    assert "test_remote_errors.py" in printed(exc)


@pytest.mark.skipif(not HAS_TBLIB, reason="needs tblib")
def test_with_tblib_the_frames_are_a_traceback_without_a_note():
    exc = travelled(raised(ValueError("boom")))
    assert [frame.name for frame in traceback.extract_tb(exc.__traceback__)] == ["raised"]
    assert not hasattr(exc, "__notes__")


@pytest.mark.skipif(HAS_TBLIB, reason="with tblib there is no note")
def test_without_tblib_the_frames_are_a_note_that_names_the_process():
    (note,) = travelled(raised(ValueError("boom"))).__notes__
    assert note.startswith("Remote traceback (most recent call last), from process ")
    assert "in raised" in note


def test_a_note_made_by_the_receiver_names_the_peer():
    msg = {"exception": pickle.dumps(ValueError("boom")), "traceback_text": "  File x, line 1\n"}
    (note,) = exception_from(msg, peer="tcp://10.0.0.1:8786").__notes__
    assert note == (
        "Remote traceback (most recent call last), from tcp://10.0.0.1:8786:\n  File x, line 1"
    )


def test_each_of_several_hops_is_printed_once():
    def first_hop():
        raise ValueError("boom")

    def second_hop(exc):
        raise exc

    try:
        first_hop()
    except ValueError as e:
        exc = travelled(e)
    try:
        second_hop(exc)
    except ValueError as e:
        exc = travelled(e)
    assert type(exc) is ValueError
    text = printed(exc)
    assert text.count("in first_hop") == 1
    assert text.count("in second_hop") == 1


def test_attributes_arrive():
    exc: Any = Plain("boom")
    exc.answer = 42
    assert travelled(raised(exc)).answer == 42


def test_notes_arrive():
    exc = Plain("boom")
    exc.add_note("remember the milk")
    assert travelled(raised(exc)).__notes__[0] == "remember the milk"


def test_an_exception_with_a_different_constructor_arrives():
    exc = travelled(raised(NeedsArguments("fire", where="roof")))
    assert type(exc) is NeedsArguments
    assert (str(exc), exc.what, exc.where) == ("fire at roof", "fire", "roof")
    # Calling its constructor again would add the prefix again.
    assert str(travelled(raised(Prefixes("fire")))) == "failed: fire"


def test_attributes_outside_the_dict_arrive():
    exc = travelled(raised(KeepsErrno("/nowhere")))
    assert type(exc) is KeepsErrno
    assert (exc.errno, exc.strerror, exc.filename) == (2, "not there", "/nowhere")


def test_overridden_reduce_and_setstate_methods_are_used():
    exc: Any = OverridesSetstate("boom")
    exc.extra = 42
    exc = travelled(raised(exc))
    assert (exc.args, exc.extra) == (("boom",), 42)
    assert "in raised" in printed(exc)


def test_a_class_made_in_a_function_arrives():
    class Local(Exception):
        pass

    exc = travelled(raised(Local("boom")))
    assert type(exc).__name__ == "Local"
    assert str(exc) == "boom"


def test_cause_arrives_with_its_frames():
    def root():
        raise KeyError("root")

    try:
        root()
    except KeyError as e:
        cause = e
    exc = travelled(raised(ValueError("boom"), cause))
    assert repr(exc.__cause__) == "KeyError('root')"
    assert exc.__suppress_context__
    assert "in root" in printed(exc)
    assert "direct cause" in printed(exc)


def test_context_arrives():
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904  (the context is what is tested)
    except ValueError as e:
        exc = travelled(e)
    assert repr(exc.__context__) == "KeyError('first')"
    assert exc.__cause__ is None
    assert not exc.__suppress_context__


def test_a_context_that_was_suppressed_stays_so():
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None
    except ValueError as e:
        exc = travelled(e)
    assert "first" not in printed(exc)


def test_a_cause_that_cannot_be_pickled_arrives_as_its_repr():
    exc = travelled(raised(Plain("boom"), CannotBePickled("root")))
    assert type(exc) is Plain
    assert "CannotBePickled('root')" in str(exc.__cause__)


def test_an_exception_that_is_its_own_cause_arrives():
    exc: Any = Plain("boom")
    exc.__cause__ = exc
    exc = travelled(exc)
    assert type(exc) is Plain


def test_a_very_long_chain_is_cut():
    exc: BaseException = Plain(0)
    for i in range(1, 5000):
        cause, exc = exc, Plain(i)
        exc.__cause__ = cause
    exc = travelled(exc)
    assert exc.args == (4999,)


def test_a_group_arrives_with_its_members_and_their_frames():
    exc = travelled(
        raised(
            ExceptionGroup("both", [raised(ValueError("a")), raised(NeedsArguments("b", where=1))])
        )
    )
    assert type(exc) is ExceptionGroup
    assert [type(e) for e in exc.exceptions] == [ValueError, NeedsArguments]
    assert printed(exc).count("in raised") == 3


def test_a_member_of_a_group_that_cannot_be_pickled_becomes_its_repr():
    exc = travelled(raised(ExceptionGroup("both", [ValueError("a"), CannotBePickled("b")])))
    assert type(exc) is ExceptionGroup
    assert repr(exc.exceptions[0]) == "ValueError('a')"
    assert "CannotBePickled('b')" in str(exc.exceptions[1])


# Exceptions that cannot be pickled


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (CannotBePickled, "pickling refused"),
        (CannotBeUnpickled, "unpickling refused"),
        (UnpicklesAsText, "unpickles as <class 'str'>"),
        (RunsOutOfMemory, "MemoryError"),
        (IsEndless, "recursion"),
        (IsEndlessInItsAttributes, ""),
    ],
)
def test_an_exception_that_cannot_be_pickled_and_unpickled_arrives_as_its_repr(cls, reason):
    exc = travelled(raised(cls("boom")))
    assert type(exc) is Exception
    assert str(exc) == f"{cls.__name__}('boom')"
    assert printed(exc).count("in raised") == 1
    assert reason in printed(exc)


def test_an_unpicklable_argument_arrives_as_text():
    exc = travelled(raised(ValueError(threading.Lock())))
    assert type(exc) is Exception
    assert "_thread.lock" in str(exc)


def test_an_exception_whose_str_raises_arrives():
    exc = travelled(raised(CannotBePrinted("boom")))
    assert type(exc) is CannotBePrinted
    assert exc.args == ("boom",)


def test_the_text_names_the_error_of_a_repr_that_raises():
    text = error_message(raised(CannotBePrinted("boom")))["exception_text"]
    assert "CannotBePrinted" in text
    assert "ZeroDivisionError" in text


def test_an_exception_that_refuses_notes_arrives():
    exc = travelled(raised(RefusesNotes("boom")))
    assert "boom" in str(exc)


def test_a_recursion_error_arrives_with_its_frames():
    def forever():
        forever()

    try:
        forever()
    except RecursionError as e:
        exc = travelled(e)
    assert type(exc) is RecursionError
    assert "in forever" in printed(exc)


def test_an_argument_too_deep_for_pickle_arrives_as_text():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    exc = travelled(raised(ValueError(deep)))
    assert type(exc) is Exception
    assert "ValueError" in str(exc)
    while deep:  # or the interpreter's own deallocation would recurse
        deep = deep.pop()


# Limits


def test_a_long_message_is_cut_at_the_configured_length():
    with config.set({LIMIT: 50}):
        msg = error_message(raised(ValueError("x" * 1000)))
    exc = exception_from(over_the_wire(msg))
    assert type(exc) is ValueError
    assert "x" * 50 in str(exc)
    assert len(str(exc)) < 100
    assert len(msg["exception_text"]) <= 50


def test_a_long_traceback_is_cut_in_the_middle():
    def one(n):
        other(n)

    def other(n):
        if n == 0:
            raise ValueError("deep")
        one(n - 1)

    with config.set({LIMIT: 3000}):
        try:
            one(200)
        except ValueError as e:
            text = error_message(e)["traceback_text"]
    assert len(text) <= 3000
    assert LIMIT in text
    assert text.endswith('raise ValueError("deep")\n')
    assert "test_a_long_traceback_is_cut_in_the_middle" in text


def test_an_invalid_limit_does_not_hide_the_error():
    with config.set({LIMIT: "plenty"}):
        assert error_message(ValueError("boom"))["exception_text"] == "ValueError('boom')"


def test_a_limit_of_none_keeps_the_whole_message():
    with config.set({LIMIT: None}):
        exc = travelled(raised(ValueError("x" * 100_000)))
    assert str(exc) == "x" * 100_000


def test_truncate_keeps_a_short_message():
    exc = ValueError("boom")
    assert truncate_exception(exc, 10) is exc


def test_truncate_keeps_the_type_and_the_beginning_of_the_message():
    exc = truncate_exception(ValueError("x" * 100), 50)
    assert type(exc) is ValueError
    assert exc.args == ("Long error message", "x" * 50)


def test_truncate_names_a_type_that_it_cannot_construct():
    exc = truncate_exception(NeedsArguments("x" * 100, where=1), 20)
    assert exc.args == ("Long error message", NeedsArguments, "x" * 20)


def test_truncate_replaces_a_type_whose_messages_are_always_long():
    class Talkative(Exception):
        def __str__(self):
            return "x" * 1000

    assert type(truncate_exception(Talkative(), 20)) is Exception


def test_truncate_keeps_the_members_of_a_group():
    members = [ValueError(1), KeyError(2)]
    exc = truncate_exception(ExceptionGroup("x" * 100, members), 20)
    assert isinstance(exc, ExceptionGroup)
    assert list(exc.exceptions) == members


def test_truncate_keeps_traceback_cause_and_notes():
    exc = raised(ValueError("x" * 100), KeyError("root"))
    exc.add_note("remember")
    short = truncate_exception(exc, 20)
    assert short.__traceback__ is exc.__traceback__
    assert short.__cause__ is exc.__cause__
    assert short.__notes__ == ["remember"]


# clean_exception


def test_clean_exception_accepts_the_objects():
    exc = raised(ValueError("boom"))
    assert cleaned(exc, exc.__traceback__) == (ValueError, exc, exc.__traceback__)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_clean_exception_accepts_a_pickle(kind):
    typ, exc, tb = cleaned(kind(pickle.dumps(KeyError(1))))
    assert (typ, exc.args, tb) == (KeyError, (1,), None)


def test_clean_exception_accepts_texts():
    typ, exc, tb = cleaned("boom", "  File x, line 1")
    assert (typ, exc.args, tb) == (Exception, ("boom",), None)
    assert "  File x, line 1" in exc.__notes__[0]


def test_clean_exception_accepts_none():
    assert cleaned(None) == (type(None), None, None)


def test_clean_exception_accepts_a_message_before_serialization():
    typ, exc, _ = cleaned(**error_message(raised(ValueError("boom"))))
    assert (typ, exc.args) == (ValueError, ("boom",))


def test_clean_exception_accepts_a_message_that_was_not_deserialized():
    msg = loads(
        [bytes(f) for f in dumps(error_message(raised(ValueError("boom"))))], deserialize=False
    )
    typ, exc, _ = cleaned(**msg)
    assert (typ, exc.args) == (ValueError, ("boom",))


def test_clean_exception_uses_the_text_for_a_broken_pickle():
    typ, exc, _ = cleaned(b"junk", exception_text="ValueError('boom')")
    assert (typ, exc.args) == (Exception, ("ValueError('boom')",))
    assert "could not unpickle" in exc.__notes__[0]


def test_clean_exception_without_a_text_shows_the_broken_pickle():
    assert cleaned(b"junk")[1].args == (b"junk",)


def test_clean_exception_uses_the_text_for_a_broken_traceback():
    typ, exc, tb = cleaned(pickle.dumps(KeyError(1)), b"junk", traceback_text="  File x")
    assert (typ, tb) == (KeyError, None)
    assert "File x" in exc.__notes__[0]


def test_clean_exception_uses_the_text_for_a_pickle_of_another_type():
    typ, exc, _ = cleaned(pickle.dumps("surprise"), exception_text="ValueError('boom')")
    assert (typ, exc.args) == (Exception, ("ValueError('boom')",))


def test_a_class_that_the_caller_cannot_import_arrives_as_its_text(monkeypatch):
    module = types.ModuleType("only_at_the_server")
    exec("class Strange(Exception): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_at_the_server", module)
    msg = over_the_wire(error_message(raised(module.Strange("boom"))))
    monkeypatch.delitem(sys.modules, "only_at_the_server")
    exc = exception_from(msg)
    assert type(exc) is Exception
    assert str(exc) == "Strange('boom')"
    text = printed(exc)
    assert "only_at_the_server" in text
    assert "in raised" in text


# exception_from


@pytest.mark.parametrize(
    "exc",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError("gone"),
        BaseExceptionGroup("mixed", [SystemExit(1)]),
        StopIteration(1),
        StopAsyncIteration(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_error_that_would_end_the_callers_task_is_the_cause_of_a_runtime_error(exc):
    error = travelled(raised(exc))
    assert type(error) is RuntimeError
    assert repr(exc) in str(error)
    assert type(error.__cause__) is type(exc)


def test_clean_exception_returns_system_exit_itself():
    assert cleaned(**over_the_wire(error_message(SystemExit(3))))[0] is SystemExit


def test_nothing_is_unpickled_if_the_caller_forbids_it():
    msg = {
        "exception": pickle.dumps(CannotBeUnpickled()),
        "exception_text": "ValueError('boom')",
        "traceback_text": "  File x, line 1",
    }
    exc = exception_from(msg, unpickle=False)
    assert exc.args == ("ValueError('boom')",)
    assert "unpickling refused" not in printed(exc)
    assert "File x, line 1" in printed(exc)


def test_a_message_without_an_exception_names_the_peer():
    exc = exception_from({"status": "uncaught-error"}, peer="tcp://10.0.0.1:8786")
    assert str(exc) == "tcp://10.0.0.1:8786 reported an error without details"

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
    """One as most are."""


class NeedsArguments(Exception):
    def __init__(self, what, *, where):
        super().__init__(f"{what} at {where}")
        self.what = what
        self.where = where


class Prefixes(Exception):
    """Its constructor takes something else than what it passes on."""

    def __init__(self, what):
        super().__init__(f"failed: {what}")


class KeepsErrno(OSError):
    def __init__(self, path):
        super().__init__(2, "not there", path)


class CannotBePickled(Exception):
    def __reduce__(self):
        raise TypeError("no pickles, please")


class CannotBeUnpickled(Exception):
    def __reduce__(self):
        return _fail_to_load, ()


class IsUnpickledAsSomethingElse(Exception):
    def __reduce__(self):
        return str, ("surprise",)


class HasStateOfItsOwn(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = None

    def __reduce__(self):
        return HasStateOfItsOwn, self.args, {"kept": self.extra}

    def __setstate__(self, state):
        self.extra = state["kept"]


class CannotBePrinted(Exception):
    def __str__(self):
        raise ZeroDivisionError("no text")

    __repr__ = __str__


class FillsTheMemory(Exception):
    def __reduce__(self):
        raise MemoryError


class HasNoEnd(Exception):
    def __reduce__(self):
        return HasNoEnd, (HasNoEnd(),)


class RefusesNotes(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


def _fail_to_load():
    raise RuntimeError("no unpickling, please")


def raised(exc: BaseException, cause: BaseException | None = None) -> Any:
    """Return an exception after it was raised."""
    try:
        if cause is not None:
            raise exc from cause
        raise exc
    except BaseException as e:  # noqa: BLE001  (SystemExit and its like, too)
        return e


def over_the_wire(msg):
    return loads([bytes(frame) for frame in dumps(msg)])


def travelled(exc: BaseException) -> Any:
    """Return what the caller gets when a handler raises this."""
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


def test_an_ok_message_is_a_map_with_a_status():
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


def test_exception_is_a_pickle_to_be_serialized():
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


# There and back


def test_type_and_message_arrive():
    exc = travelled(raised(Plain("boom", 1)))
    assert type(exc) is Plain
    assert exc.args == ("boom", 1)


def test_the_remote_frames_are_printed_where_it_is_raised_again():
    def explode():
        raise ValueError("boom")

    try:
        explode()
    except ValueError as e:
        exc = travelled(e)
    assert "in explode" in printed(exc)
    assert "test_remote_errors.py" in printed(exc)


def test_the_remote_frames_are_printed_once():
    assert printed(travelled(raised(ValueError("boom")))).count("in raised") == 1


@pytest.mark.skipif(not HAS_TBLIB, reason="needs tblib")
def test_with_tblib_the_frames_are_a_traceback_and_no_note():
    exc = travelled(raised(ValueError("boom")))
    assert [frame.name for frame in traceback.extract_tb(exc.__traceback__)] == ["raised"]
    assert not hasattr(exc, "__notes__")


@pytest.mark.skipif(HAS_TBLIB, reason="with tblib there is no note")
def test_without_tblib_the_frames_are_a_note_that_names_the_process():
    (note,) = travelled(raised(ValueError("boom"))).__notes__
    assert note.startswith("Remote traceback (most recent call last), from process ")
    assert "in raised" in note


def test_the_note_names_the_peer_where_the_receiver_makes_it():
    msg = {"exception": pickle.dumps(ValueError("boom")), "traceback_text": "  File x, line 1\n"}
    (note,) = exception_from(msg, peer="tcp://10.0.0.1:8786").__notes__
    assert note == (
        "Remote traceback (most recent call last), from tcp://10.0.0.1:8786:\n  File x, line 1"
    )


def test_each_hop_of_several_is_to_be_seen():
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


def test_a_constructor_with_arguments_of_its_own_is_no_obstacle():
    exc = travelled(raised(NeedsArguments("fire", where="roof")))
    assert type(exc) is NeedsArguments
    assert (str(exc), exc.what, exc.where) == ("fire at roof", "fire", "roof")


def test_a_constructor_that_changes_the_message_is_not_called_twice():
    assert str(travelled(raised(Prefixes("fire")))) == "failed: fire"


def test_what_c_exceptions_keep_outside_their_dict_arrives():
    exc = travelled(raised(KeepsErrno("/nowhere")))
    assert type(exc) is KeepsErrno
    assert (exc.errno, exc.strerror, exc.filename) == (2, "not there", "/nowhere")


def test_a_reduce_and_a_setstate_of_its_own_are_respected():
    exc: Any = HasStateOfItsOwn("boom")
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


def test_a_cause_that_cannot_be_pickled_does_not_take_the_exception_with_it():
    exc = travelled(raised(Plain("boom"), CannotBePickled("root")))
    assert type(exc) is Plain
    assert "CannotBePickled('root')" in str(exc.__cause__)


def test_an_exception_that_is_its_own_cause_arrives():
    exc: Any = Plain("boom")
    exc.__cause__ = exc
    exc = travelled(exc)
    assert type(exc) is Plain


def test_a_chain_without_end_is_cut():
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


# What cannot be pickled


@pytest.mark.parametrize(
    "cls",
    [CannotBePickled, CannotBeUnpickled, IsUnpickledAsSomethingElse, FillsTheMemory, HasNoEnd],
)
def test_what_cannot_be_pickled_and_unpickled_arrives_as_an_exception_with_its_repr(cls):
    exc = travelled(raised(cls("boom")))
    assert type(exc) is Exception
    assert str(exc) == f"{cls.__name__}('boom')"
    assert printed(exc).count("in raised") == 1


def test_the_caller_is_told_why_it_gets_a_mere_repr():
    exc = travelled(raised(CannotBePickled("boom")))
    assert "no pickles, please" in printed(exc)


def test_an_unpicklable_argument_arrives_as_text():
    exc = travelled(raised(ValueError(threading.Lock())))
    assert type(exc) is Exception
    assert "_thread.lock" in str(exc)


def test_a_str_that_raises_is_no_obstacle():
    exc = travelled(raised(CannotBePrinted("boom")))
    assert type(exc) is CannotBePrinted
    assert exc.args == ("boom",)


def test_a_repr_that_raises_is_told_of_in_the_text():
    text = error_message(raised(CannotBePrinted("boom")))["exception_text"]
    assert "CannotBePrinted" in text
    assert "ZeroDivisionError" in text


def test_notes_that_cannot_be_added_are_no_obstacle():
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


# Bounds


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


def test_a_limit_that_is_no_size_does_not_hide_the_error():
    with config.set({LIMIT: "plenty"}):
        assert error_message(ValueError("boom"))["exception_text"] == "ValueError('boom')"


def test_no_limit_keeps_all():
    with config.set({LIMIT: None}):
        exc = travelled(raised(ValueError("x" * 100_000)))
    assert str(exc) == "x" * 100_000


def test_truncate_keeps_a_short_message():
    exc = ValueError("boom")
    assert truncate_exception(exc, 10) is exc


def test_truncate_keeps_the_type_and_the_beginning():
    exc = truncate_exception(ValueError("x" * 100), 50)
    assert type(exc) is ValueError
    assert exc.args == ("Long error message", "x" * 50)


def test_truncate_names_a_type_that_it_cannot_make():
    exc = truncate_exception(NeedsArguments("x" * 100, where=1), 20)
    assert exc.args == ("Long error message", NeedsArguments, "x" * 20)


def test_truncate_gives_up_on_a_type_whose_messages_are_always_long():
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


def test_clean_exception_takes_the_objects():
    exc = raised(ValueError("boom"))
    assert cleaned(exc, exc.__traceback__) == (ValueError, exc, exc.__traceback__)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_clean_exception_takes_a_pickle(kind):
    typ, exc, tb = cleaned(kind(pickle.dumps(KeyError(1))))
    assert (typ, exc.args, tb) == (KeyError, (1,), None)


def test_clean_exception_takes_texts():
    typ, exc, tb = cleaned("boom", "  File x, line 1")
    assert (typ, exc.args, tb) == (Exception, ("boom",), None)
    assert "  File x, line 1" in exc.__notes__[0]


def test_clean_exception_takes_nothing():
    assert cleaned(None) == (type(None), None, None)


def test_clean_exception_takes_a_message_that_has_not_been_over_a_wire():
    typ, exc, _ = cleaned(**error_message(raised(ValueError("boom"))))
    assert (typ, exc.args) == (ValueError, ("boom",))


def test_clean_exception_takes_a_message_that_was_not_deserialized():
    msg = loads(
        [bytes(f) for f in dumps(error_message(raised(ValueError("boom"))))], deserialize=False
    )
    typ, exc, _ = cleaned(**msg)
    assert (typ, exc.args) == (ValueError, ("boom",))


def test_clean_exception_makes_an_exception_of_the_text_where_the_pickle_is_broken():
    typ, exc, _ = cleaned(b"junk", exception_text="ValueError('boom')")
    assert (typ, exc.args) == (Exception, ("ValueError('boom')",))
    assert "could not unpickle" in exc.__notes__[0]


def test_clean_exception_without_a_text_shows_the_broken_pickle():
    assert cleaned(b"junk")[1].args == (b"junk",)


def test_clean_exception_lets_a_broken_traceback_go():
    typ, exc, tb = cleaned(pickle.dumps(KeyError(1)), b"junk", traceback_text="  File x")
    assert (typ, tb) == (KeyError, None)
    assert "File x" in exc.__notes__[0]


def test_clean_exception_takes_no_other_object_for_an_exception():
    typ, exc, _ = cleaned(pickle.dumps("surprise"), exception_text="ValueError('boom')")
    assert (typ, exc.args) == (Exception, ("ValueError('boom')",))


def test_a_class_that_the_caller_lacks_arrives_as_an_exception_with_its_text(monkeypatch):
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
def test_what_would_end_the_callers_task_comes_as_the_cause_of_a_runtime_error(exc):
    error = travelled(raised(exc))
    assert type(error) is RuntimeError
    assert repr(exc) in str(error)
    assert type(error.__cause__) is type(exc)


def test_clean_exception_returns_what_was_raised():
    assert cleaned(**over_the_wire(error_message(SystemExit(3))))[0] is SystemExit


def test_nothing_is_unpickled_where_that_is_not_allowed():
    msg = {
        "exception": pickle.dumps(CannotBeUnpickled()),
        "exception_text": "ValueError('boom')",
        "traceback_text": "  File x, line 1",
    }
    exc = exception_from(msg, unpickle=False)
    assert exc.args == ("ValueError('boom')",)
    assert "no unpickling" not in printed(exc)
    assert "File x, line 1" in printed(exc)


def test_a_message_without_an_exception_is_told_as_that():
    exc = exception_from({"status": "uncaught-error"}, peer="tcp://10.0.0.1:8786")
    assert str(exc) == "tcp://10.0.0.1:8786 reported an error without details"

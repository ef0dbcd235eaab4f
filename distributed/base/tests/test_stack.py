from __future__ import annotations

import gc
import sys
import weakref

import pytest

from distributed.base.stack import call_detached


def this_frame():
    return sys._getframe()


def test_it_passes_arguments_and_returns_the_result():
    assert call_detached(int, "ff", base=16) == 255


def test_it_raises_the_error_of_the_function():
    with pytest.raises(ZeroDivisionError):
        call_detached(lambda: 1 / 0)
    # An error that a generator may not raise.
    with pytest.raises(RuntimeError, match="StopIteration"):
        call_detached(next, iter(()))


def test_a_frame_that_is_kept_does_not_lead_to_the_caller():
    frame = call_detached(this_frame)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    assert frames[0].f_code is this_frame.__code__
    assert sys._getframe() not in frames


@pytest.mark.parametrize(("call", "is_kept"), [(call_detached, False), (lambda f: f(), True)])
def test_a_frame_that_is_kept_does_not_keep_the_variables_of_the_caller(call, is_kept):
    class Variable:
        pass

    def caller():
        variable = Variable()
        return weakref.ref(variable), call(this_frame)

    gc.disable()
    try:
        ref, frame = caller()
        assert (ref() is not None) is is_kept
        del frame
    finally:
        gc.enable()

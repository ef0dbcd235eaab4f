"""Pickle exceptions and tracebacks so that the receiver can unpickle them.

Plain pickle calls the exception's constructor again with ``args``, which many constructors do not
accept, and loses the traceback, the cause and the context.  With tblib, tblib's form is used, which
keeps all of them.  Without it, the lost attributes are added to the exception's state:
`BaseException.__setstate__` restores them, so the receiver needs nothing installed.  Tracebacks
become notes.

Each pickle is unpickled here, at the sender; if that fails, another way of pickling is tried.  The
ways are, in order: as pickle does it; without calling the constructor; without the chain of causes;
and an `Exception` with the ``repr``.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import deque
from collections.abc import Mapping, Set
from types import GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, TracebackType
from typing import Any

import cloudpickle

from distributed.base.logs import get_logger
from distributed.core.errors.frames import frames_of, shorten, traceback_of, without_middle
from distributed.core.errors.text import (
    bounded,
    format_traceback,
    notes_of,
    safe_repr,
    safe_str,
    this_process,
    traceback_note,
    type_name,
)
from distributed.protocol.pickle import HIGHEST_PROTOCOL

logger = get_logger("distributed.core")

#: Maximum number of exceptions of a chain or group in one pickle.  Each adds to the pickle's depth.
MAX_CHAIN = 50

#: Minimum number of bytes of a frame in a pickle of a traceback.
_MIN_FRAME_SIZE = 60


# A "reduction" is the value that `object.__reduce__` returns: how to rebuild an object.


class _ExceptionPickler(cloudpickle.Pickler):
    """A pickler with given reductions for certain objects, by their `id`.

    With *limit*, each traceback is pickled without the frames of this core, and without frames in
    its middle if its pickle would be longer than *limit* bytes.
    """

    def __init__(
        self, file: io.BytesIO, reductions: Mapping[int, Any], limit: int | None = None
    ) -> None:
        super().__init__(file, protocol=HIGHEST_PROTOCOL)
        self._reductions = reductions
        self._limit = limit

    def reducer_override(self, obj: Any) -> Any:
        reduction = self._reductions.get(id(obj))
        if reduction is not None:
            return reduction
        if self._limit is not None and isinstance(obj, TracebackType):
            return _traceback_reduction(obj, self._limit)
        return super().reducer_override(obj)


def _traceback_reduction(tb: TracebackType, limit: int) -> Any:
    """Return tblib's reduction of a traceback, shortened; its pickle has at most *limit* bytes."""
    reduce = copyreg.dispatch_table[TracebackType]
    entries = frames_of(shorten(tb))
    # No pickle of a frame is shorter; a traceback of many more frames is too deep for pickle.
    entries = without_middle(entries, limit // _MIN_FRAME_SIZE)
    while True:
        short = traceback_of(entries)
        size = len(_round_trip(short, {})[0])
        if size <= limit:
            return reduce(short)
        if len(entries) == 1:
            # Even the name of the file is too long.  The pickle of None:
            return type(None), ()
        entries = without_middle(entries, len(entries) * limit // size)


def pickle_traceback(e: BaseException, limit: int) -> bytes | None:
    """Return a pickle of an exception's traceback, as tblib makes it, of about *limit* bytes.

    None without tblib, without a traceback, or if the limit is too low for one frame.
    """
    try:
        from tblib import pickling_support
    except ImportError:
        return None
    try:
        pickling_support.install(e)
        data, tb = _round_trip(e.__traceback__, {}, limit)
    except Exception:
        logger.debug("The traceback of %s is sent as text only", type(e), exc_info=True)
        return None
    return None if tb is None else data


def pickle_exception(e: BaseException, text: str | None, limit: int) -> bytes:
    """Return a pickle of an exception with its chain of causes, as far as these can be pickled.

    Parameters
    ----------
    e : BaseException
    text : str or None
        The traceback of ``e``, for a note.  None if `pickle_traceback` has pickled it; the
        tracebacks of the causes are then pickled too.
    limit : int
        Maximum number of characters of each text that is added.
    """
    if text is None:
        try:
            if len(_chain(e)) < MAX_CHAIN:
                return _round_trip(e, {}, limit)[0]
        except Exception:
            logger.debug("%s is sent without the frames of its causes", type(e), exc_info=True)
    problem = ""
    for nodes in (_chain(e), [e]):
        try:
            return _round_trip(e, _reductions(nodes, text or "", limit))[0]
        except Exception as exc:  # noqa: BLE001  (the caller is shown it)
            problem = safe_repr(exc)
    return _round_trip(e, {id(e): _stand_in(e, problem, limit)})[0]


def _round_trip(
    obj: Any, reductions: Mapping[int, Any], limit: int | None = None
) -> tuple[bytes, Any]:
    """Return a pickle of an object, and the object that it unpickles to."""
    file = io.BytesIO()
    _ExceptionPickler(file, reductions, limit).dump(obj)
    data = file.getvalue()
    copy = pickle.loads(data)
    if isinstance(obj, BaseException) and not isinstance(copy, BaseException):
        raise pickle.PicklingError(f"{type(obj)} unpickles as {type(copy)}")
    return data, copy


def _chain(e: BaseException) -> list[BaseException]:
    """Return an exception and its causes, contexts and members, nearest first."""
    nodes: dict[int, BaseException] = {id(e): e}
    queue = deque([e])
    while queue and len(nodes) < MAX_CHAIN:
        node = queue.popleft()
        members = node.exceptions if isinstance(node, BaseExceptionGroup) else ()
        for other in (node.__cause__, node.__context__, *members):
            if other is not None and id(other) not in nodes:
                nodes[id(other)] = other
                queue.append(other)
    return list(nodes.values())


def _reductions(nodes: list[BaseException], text: str, limit: int) -> dict[int, Any]:
    """Return a reduction for each exception; ``text`` is the traceback of the first."""
    present = {id(node) for node in nodes}
    reductions: dict[int, Any] = {}
    for node in reversed(nodes):
        if node is not nodes[0]:
            extra = _extra_state(node, format_traceback(node.__traceback__, limit), present)
        else:
            extra = _extra_state(node, text, present)
        reduction = _working_reduction(node, reductions, limit)
        reductions[id(node)] = _with_state(node, reduction, extra)
    return reductions


def _working_reduction(exc: BaseException, others: Mapping[int, Any], limit: int) -> Any:
    """Return the first reduction of one exception, without its chain, that can be unpickled."""
    message = safe_str(exc)
    problem = ""
    second_best = None
    for reduce in (_reduction, _reduction_without_init):
        try:
            reduction = reduce(exc)
            _, copy = _round_trip(exc, {**others, id(exc): reduction})
        except Exception as e:  # noqa: BLE001  (the caller is shown it)
            problem = problem or safe_repr(e)
            continue
        if safe_str(copy) == message:
            return reduction
        # Its constructor changes the arguments before it passes them to Exception.__init__.
        second_best = second_best or reduction
    return second_best or _stand_in(exc, problem, limit)


def _reduction(exc: BaseException) -> Any:
    """Return the reduction that pickle uses, ignoring tblib's."""
    registered = copyreg.dispatch_table.get(type(exc))
    if registered is not None and not registered.__module__.startswith("tblib"):
        return registered(exc)
    return exc.__reduce_ex__(HIGHEST_PROTOCOL)


def _reduction_without_init(exc: BaseException) -> Any:
    """Return a reduction that does not call the constructor again."""
    cls = type(exc)
    if not isinstance(cls.__reduce__, MethodDescriptorType):
        raise pickle.PicklingError(f"{cls} overrides __reduce__")
    state = dict(exc.__dict__)
    if not isinstance(exc, BaseExceptionGroup):
        state.update(_c_attributes(exc))
    return copyreg.__newobj__, (cls, *exc.args), state  # type: ignore[attr-defined]


def _c_attributes(exc: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception outside its ``__dict__``, such as ``errno``."""
    found = {}
    for cls in type(exc).__mro__:
        for name, descriptor in vars(cls).items():
            # AttributeError.__reduce__ omits `obj` too.
            if (
                isinstance(descriptor, MemberDescriptorType | GetSetDescriptorType)
                and not name.startswith("__")
                and name != "obj"
                and (value := getattr(exc, name, None)) is not None
            ):
                found[name] = value
    return found


def _stand_in(exc: BaseException, problem: str, limit: int) -> Any:
    """Return the reduction of an `Exception` that replaces one that cannot be pickled."""
    notes = [bounded(note, limit) for note in notes_of(exc)]
    notes.append(f"(A {type_name(exc)} that could not be pickled: {bounded(problem, limit)})")
    return Exception, (bounded(safe_repr(exc), limit),), {"__notes__": notes}


def _extra_state(exc: BaseException, text: str, present: Set[int]) -> dict[str, Any]:
    """Return the attributes that pickle loses, in the order in which they must be set."""
    extra: dict[str, Any] = {}
    for name in ("__cause__", "__context__"):
        other = getattr(exc, name)
        if other is not None and id(other) in present:
            extra[name] = other
    if exc.__suppress_context__ or "__cause__" in extra:
        # Setting __cause__ sets this attribute too, so it comes last.
        extra["__suppress_context__"] = exc.__suppress_context__
    if text:
        extra["__notes__"] = [traceback_note(text, this_process())]
    return extra


def _with_state(exc: BaseException, reduction: Any, extra: dict[str, Any]) -> Any:
    """Return a reduction with more attributes, which `BaseException.__setstate__` sets in order."""
    if not extra or not isinstance(reduction, tuple) or len(reduction) not in (2, 3):
        return reduction
    function, args, state = reduction if len(reduction) == 3 else (*reduction, None)
    keeps_default = type(exc).__setstate__ is BaseException.__setstate__ or function is Exception
    if not keeps_default or not isinstance(state, dict | None):
        return reduction
    merged = dict(state or {})
    if "__notes__" in extra:
        notes = merged.get("__notes__")
        extra = {**extra, "__notes__": [*(notes if notes else ()), *extra["__notes__"]]}
    merged.update(extra)
    return function, args, merged

"""Pickle exceptions and tracebacks so that the receiver can unpickle them.

Plain pickle calls the exception's constructor again with ``args``, which many constructors do not
accept, and loses the traceback, the cause and the context.  With tblib, tblib's form is used, which
keeps all of them.  It loses attributes if an exception refers to itself, as those of HTTP libraries
do (``error.response.error is error``): then, and without tblib, the form of `_Graph` is used.  It
names only functions of Python, so the receiver needs nothing installed.  Without tblib, tracebacks
become notes.

Each pickle is unpickled here, at the sender; if that fails, another way of pickling is tried.  The
ways are, in order: as pickle does it; without calling the constructor; without the chain of causes;
and an `Exception` with the ``repr``.
"""

from __future__ import annotations

import copyreg
import io
import operator
import pickle
from collections import ChainMap, deque
from types import GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, TracebackType
from typing import Any

import cloudpickle

from distributed.base.logs import get_logger
from distributed.base.stack import call_detached
from distributed.base.text import type_name
from distributed.core.errors.frames import frames_of, shorten, traceback_of, without_middle
from distributed.core.errors.text import (
    bounded,
    format_traceback,
    notes_of,
    safe_repr,
    safe_str,
    this_process,
    traceback_note,
)
from distributed.protocol.pickle import HIGHEST_PROTOCOL
from distributed.protocol.reductions import dispatch_table

logger = get_logger("distributed.core")

#: Maximum number of exceptions of a chain or group in one pickle.  Each adds to the pickle's depth.
MAX_CHAIN = 50

#: Maximum number of exceptions in one pickle in the form of `_Graph`, with those in attributes.
MAX_EXCEPTIONS = 10_000

#: What a signal may raise while a method of an exception runs; all else is an error of that method.
_SIGNALS = (KeyboardInterrupt, SystemExit)

#: Minimum number of bytes of a frame in a pickle of a traceback.
_MIN_FRAME_SIZE = 60


# A "reduction" is the value that `object.__reduce__` returns: how to rebuild an object.


class _ExceptionPickler(cloudpickle.Pickler):
    """A pickler of exceptions.

    With *limit*, each traceback is pickled without the frames of this core, and without frames in
    its middle if its pickle would be longer than *limit* bytes.  With *graph*, exceptions are
    reduced by it; else an exception that refers to itself is an error.
    """

    def __init__(
        self, file: io.BytesIO, limit: int | None = None, graph: _Graph | None = None
    ) -> None:
        table = dispatch_table(out_of_band=False)
        if table is not None:
            # pickle.Pickler looks at this once, when it is made.
            self.dispatch_table = ChainMap(table, cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=HIGHEST_PROTOCOL)
        self._limit = limit
        self._graph = graph
        # The id() of each exception that was reduced.
        self._reduced: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            if self._graph is not None:
                return self._graph.shell(obj)
            # Pickle asks for a reduction twice if the object is found again in the arguments of
            # its first one.  tblib's form has the attributes there, and they would be lost.  It
            # never has those in __slots__.
            if id(obj) in self._reduced or _slots(obj):
                raise pickle.PicklingError(f"tblib would lose attributes of this {type(obj)}")
            self._reduced.add(id(obj))
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
        size = len(_round_trip(short)[0])
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
        data, tb = _round_trip(e.__traceback__, limit)
    except _SIGNALS:
        raise
    except BaseException:
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
                return _round_trip(e, limit)[0]
        except _SIGNALS:
            raise
        except BaseException:
            logger.debug("%s is sent in the form of a graph", type(e), exc_info=True)
    problem = ""
    for nodes in (_chain(e), [e]):
        for with_init in (True, False):
            try:
                return _Graph(nodes, text, limit, with_init, problem).pickled()
            except _SIGNALS:
                raise
            except BaseException as exc:  # noqa: BLE001  (the caller is shown it)
                problem = problem or safe_repr(exc)
    function, args, state = _stand_in(e, problem, limit)
    stand_in: BaseException = function(*args)
    stand_in.__dict__.update(state)
    return _round_trip(stand_in)[0]


def _round_trip(
    obj: Any, limit: int | None = None, graph: _Graph | None = None
) -> tuple[bytes, Any]:
    """Return a pickle of an object, and the object that it unpickles to."""
    file = io.BytesIO()
    _ExceptionPickler(file, limit, graph).dump(obj)
    data = file.getvalue()
    copy = call_detached(pickle.loads, data)
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


class _Call:
    """An object whose pickle calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._reduction = function, args

    def __reduce__(self) -> Any:
        return self._reduction


class _Growing:
    """An object whose pickle is that of a list to which items may be added while it is written.

    Since Python 3.14, pickle refuses that for a list itself: it raises RuntimeError.
    """

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __reduce__(self) -> Any:
        # An iterator over a list also returns the items that are added before its end.
        return list, (), None, iter(self._items)


class _Graph:
    """The pickle of exceptions that may refer to each other in any way.

    First come the exceptions without their attributes ("shells"), then calls of ``__setstate__``
    that add the attributes.  So an attribute can refer to any exception.

    Parameters
    ----------
    nodes
        The exception to pickle, and the other ones of its chain.
    text, limit
        See `pickle_exception`.
    with_init
        Whether constructors may be called.
    problem
        The error of an earlier attempt, to show if an exception cannot be pickled.
    """

    def __init__(
        self,
        nodes: list[BaseException],
        text: str | None,
        limit: int,
        with_init: bool,
        problem: str,
    ) -> None:
        self._root = nodes[0]
        self._text = text
        self._limit = limit
        self._with_init = with_init
        self._problem = problem
        # The id() of each exception that may be a cause or context in the pickle.
        self._present = {id(node) for node in nodes}
        # The id() of each exception that was found so far -> the exception, so that the id() stays
        # its own, and its reduction to a shell.
        self._shells: dict[int, tuple[BaseException, Any]] = {}
        # The id() of each exception in the arguments of others -> how deep.
        self._depths: dict[int, int] = {}
        # The calls that add attributes to the shells.
        self._calls: list[_Call | None] = [None, None]

    def pickled(self) -> bytes:
        """Return the pickle.

        Raises
        ------
        Exception
            If it cannot be unpickled.
        """
        while True:
            count = len(self._calls)
            # Its result is the first of the two, when all calls were made.
            whole = _Call(operator.getitem, (self._root, _Growing(self._calls)), 0)
            data, copy = _round_trip(whole, self._limit, self)
            # Pickle mostly finds the calls that are added while it writes them.
            if len(self._calls) == count:
                break
        if not isinstance(copy, BaseException):
            raise pickle.PicklingError(f"{type(self._root)} unpickles as {type(copy)}")
        return data

    def shell(self, exc: BaseException) -> Any:
        """Return the reduction of an exception without its attributes."""
        found = self._shells.get(id(exc))
        if found is not None:
            return found[1]
        if len(self._shells) >= MAX_EXCEPTIONS:
            raise pickle.PicklingError(f"more than {MAX_EXCEPTIONS} exceptions in one")
        depth = self._depths.get(id(exc), 0)
        if depth > MAX_CHAIN:
            raise pickle.PicklingError("endless recursion of exceptions in arguments of exceptions")
        reduction, inner = _working_reduction(exc, self._limit, self._with_init, self._problem)
        shell, state = reduction, None
        if isinstance(reduction, tuple) and len(reduction) in (2, 3):
            shell, state = reduction[:2], (*reduction, None)[2]
        self._shells[id(exc)] = exc, shell
        for other in inner:
            self._depths.setdefault(id(other), depth + 1)
        extra = self._extra(exc)
        if self._text is not None:
            extra.update(self._notes(exc, state))
        if state is not None:
            self._calls.append(_Call(operator.methodcaller("__setstate__", state), exc))
        if extra:
            self._calls.append(_Call(BaseException.__setstate__, exc, extra))
        return shell

    def _extra(self, exc: BaseException) -> dict[str, Any]:
        """Return the attributes that pickle loses, in the order in which they must be set."""
        extra: dict[str, Any] = {}
        for name in ("__cause__", "__context__"):
            other = getattr(exc, name)
            if other is not None and (id(other) in self._present or len(self._present) < MAX_CHAIN):
                self._present.add(id(other))
                extra[name] = other
        if exc.__suppress_context__ or "__cause__" in extra:
            # Setting __cause__ sets this attribute too, so it comes last.
            extra["__suppress_context__"] = exc.__suppress_context__
        if self._text is None and exc.__traceback__ is not None:
            extra["__traceback__"] = exc.__traceback__
        return extra

    def _notes(self, exc: BaseException, state: Any) -> dict[str, Any]:
        """Return the notes of an exception and its traceback, if there is one."""
        text = self._text
        if exc is not self._root:
            text = format_traceback(exc.__traceback__, self._limit)
        if not text:
            return {}
        notes = state.get("__notes__") if isinstance(state, dict) else None
        return {"__notes__": [*(notes or ()), traceback_note(text, this_process())]}


def _working_reduction(
    exc: BaseException, limit: int, with_init: bool, problem: str
) -> tuple[Any, list[Any]]:
    """Return the first reduction of an exception that works, and exceptions in its arguments."""
    message = safe_str(exc)
    second_best = None
    candidates = [_reduction_without_init, _reduction_without_arguments]
    for reduce in [_reduction, *candidates] if with_init else candidates[::-1]:
        try:
            reduction = reduce(exc)
            copy, inner = _tested(reduction)
        except _SIGNALS:
            raise
        except BaseException as e:  # noqa: BLE001  (the caller is shown it)
            problem = problem or safe_repr(e)
            continue
        if safe_str(copy) == message:
            return reduction, inner
        # Its constructor changes the arguments before it passes them to Exception.__init__.
        second_best = second_best or (reduction, inner)
    return second_best or (_stand_in(exc, problem, limit), [])


class _PartPickler(_ExceptionPickler):
    """A pickler that leaves out exceptions and tracebacks."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.left_out: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, BaseException | TracebackType):
            return None
        self.left_out.append(obj)
        return len(self.left_out) - 1


class _PartUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, left_out: list[Any]) -> None:
        super().__init__(file)
        self._left_out = left_out

    def persistent_load(self, pid: int) -> Any:
        return self._left_out[pid]


def _tested(reduction: Any) -> tuple[BaseException, list[Any]]:
    """Return the exception that a reduction makes of copies of its parts.

    Exceptions in its parts are not copied.  Those in the arguments are returned, too.
    """
    function, args, *rest = reduction
    file = io.BytesIO()
    pickler = _PartPickler(file)
    pickler.dump((function, args))
    inner = list(pickler.left_out)
    pickler.dump(rest)
    file.seek(0)
    unpickler = _PartUnpickler(file, pickler.left_out)
    function, args = unpickler.load()
    copy: Any = function(*args)
    if not isinstance(copy, BaseException):
        raise pickle.PicklingError(f"the exception unpickles as {type(copy)}")
    rest = unpickler.load()
    if rest and rest[0] is not None:
        copy.__setstate__(rest[0])
    return copy, inner


def _reduction(exc: BaseException) -> Any:
    """Return the reduction that pickle uses, ignoring tblib's."""
    registered = copyreg.dispatch_table.get(type(exc))
    if registered is not None and not registered.__module__.startswith("tblib"):
        return registered(exc)
    reduction: Any = exc.__reduce_ex__(HIGHEST_PROTOCOL)
    if isinstance(type(exc).__reduce__, MethodDescriptorType) and (slots := _slots(exc)):
        function, args, *state = reduction
        return function, args, {**(state[0] if state else {}), **slots}
    return reduction


def _slots(exc: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception in ``__slots__`` of its classes."""
    return {
        name: getattr(exc, name)
        for cls in type(exc).__mro__
        if "__slots__" in vars(cls)
        for name, descriptor in vars(cls).items()
        if isinstance(descriptor, MemberDescriptorType) and hasattr(exc, name)
    }


def _reduction_without_init(exc: BaseException) -> Any:
    """Return a reduction that does not call the constructor again."""
    cls = type(exc)
    if not isinstance(cls.__reduce__, MethodDescriptorType):
        raise pickle.PicklingError(f"{cls} overrides __reduce__")
    state = dict(exc.__dict__)
    if not isinstance(exc, BaseExceptionGroup):
        state.update(_c_attributes(exc))
    return copyreg.__newobj__, (cls, *exc.args), state  # type: ignore[attr-defined]


def _reduction_without_arguments(exc: BaseException) -> Any:
    """Return a reduction in which the arguments are attributes, too, except for a group."""
    function, (cls, *args), state = _reduction_without_init(exc)
    if isinstance(exc, BaseExceptionGroup):
        return function, (cls, *args), state
    return function, (cls,), {**state, "args": exc.args}


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

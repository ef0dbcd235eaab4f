"""The description that a server gives of its operations.

:func:`describe` makes it at the server.  :func:`typed` checks it at the caller against a
`typing.Protocol` class, whose signatures editors and type checkers then use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

__all__ = ["describe", "mismatches", "typed"]

T = TypeVar("T")


def describe(
    handlers: Mapping[str, Callable[..., Any]],
    stream_handlers: Mapping[str, Callable[..., Any]],
    blocked: Iterable[str],
) -> dict[str, Any]:
    """Return the description of operations, in plain values.

    Returns
    -------
    dict
        ``"operations"`` and ``"stream_operations"``: the name of each operation and its
        description; and ``"blocked"``: the names of operations that are refused, sorted.
        A description is a dict with these keys:

        * ``signature``: the parameters and the result as text, without ``comm``; None if unknown;
        * ``parameters``: for each parameter a dict with ``name``, ``kind``, ``required`` and
          ``annotation``; None if unknown;
        * ``doc``: the first line of the docstring, or None;
        * ``streams``: whether callers get a stream of items;
        * ``comm``: whether the handler takes the comm, so it may also stream or converse.

    Examples
    --------
    >>> def add(x: int, y: int = 1) -> int:
    ...     "Return the sum."
    >>> describe({"add": add}, {}, [])["operations"]["add"]["signature"]
    '(x: int, y: int = 1) -> int'
    """
    blocked = sorted(blocked)
    return {
        "operations": {op: _describe(handler) for op, handler in sorted(handlers.items())},
        "stream_operations": {
            op: _describe(handler) for op, handler in sorted(stream_handlers.items())
        },
        "blocked": blocked,
    }


def _describe(handler: Callable[..., Any]) -> dict[str, Any]:
    doc = inspect.getdoc(handler)
    function = inspect.unwrap(handler)
    description: dict[str, Any] = {
        "signature": None,
        "parameters": None,
        "doc": doc.strip().splitlines()[0] if doc and doc.strip() else None,
        "streams": inspect.isasyncgenfunction(function) or _is_plain_generator(function),
        "comm": False,
    }
    try:
        signature = inspect.signature(handler)
    except (ValueError, TypeError):
        # Some functions written in C have no signature.
        return description
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name == "comm":
        description["comm"] = True
        del parameters[0]
    description["signature"] = str(
        signature.replace(
            parameters=[it.replace(annotation=_verbatim(it.annotation)) for it in parameters],
            return_annotation=_verbatim(signature.return_annotation),
        )
    )
    description["parameters"] = [
        {
            "name": parameter.name,
            "kind": parameter.kind.description,
            "required": parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL),
            "annotation": _text(parameter.annotation),
        }
        for parameter in parameters
    ]
    return description


def _is_plain_generator(function: Any) -> bool:
    # `types.coroutine` makes a coroutine function of a generator function.
    return inspect.isgeneratorfunction(function) and not (
        function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE
    )


class _Verbatim(str):
    """An annotation that stands in a signature without quotes."""

    __repr__ = str.__str__


def _verbatim(annotation: Any) -> Any:
    return _Verbatim(annotation) if isinstance(annotation, str) else annotation


def _text(annotation: Any) -> str | None:
    """Return an annotation as text, or None if there is none."""
    if annotation is inspect.Parameter.empty:
        return None
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# Not type[T], for which mypy does not accept a Protocol class.
def typed(remote: object, protocol: Callable[..., T]) -> T:
    """Return *remote* unchanged, but with the type *protocol* for editors and type checkers.

    Parameters
    ----------
    remote
        An ``rpc`` object, or calls through a pool.
    protocol
        A `typing.Protocol` class whose methods are the operations: coroutine functions whose
        parameters are keyword-only.  Nothing is checked here; see :func:`mismatches`.

    Examples
    --------
    >>> from typing import Protocol
    >>> class Calculator(Protocol):
    ...     async def add(self, *, x: int, y: int) -> int: ...
    >>> async def use(remote):
    ...     calculator = typed(remote, Calculator)
    ...     return await calculator.add(x=1, y=2)
    """
    return cast(T, remote)


def mismatches(description: Mapping[str, Any], protocol: type) -> list[str]:
    """Compare what a server describes with what a caller expects.

    Parameters
    ----------
    description
        The answer to ``await remote.describe()``.
    protocol
        A `typing.Protocol` class; see :func:`typed`.

    Returns
    -------
    list of str
        One line for each method without an operation, for each parameter that the operation lacks
        or requires in addition, and for each annotation that differs.

    Examples
    --------
    >>> class Calculator:
    ...     async def add(self, *, x: int, z: int) -> int: ...
    ...     async def sub(self, *, x: int) -> int: ...
    >>> def add(x: float, y): ...
    >>> for line in mismatches(describe({"add": add}, {}, []), Calculator):
    ...     print(line)
    add: the parameter 'x' is annotated as int here, and as float at the server
    add: the server has no parameter 'z'
    add: the server requires a parameter 'y'
    sub: the server has no such operation
    """
    found = []
    for op, method in vars(protocol).items():
        if op.startswith("_") or not callable(method):
            continue
        operation = description["operations"].get(op)
        if operation is None or op in description["blocked"]:
            found.append(f"{op}: the server has no such operation")
            continue
        if operation["parameters"] is None:
            continue
        theirs = {parameter["name"]: parameter for parameter in operation["parameters"]}
        any_keyword = any(p["kind"] == "variadic keyword" for p in theirs.values())
        ours = list(inspect.signature(method).parameters.values())[1:]
        for parameter in ours:
            counterpart = theirs.get(parameter.name)
            if counterpart is None:
                if not any_keyword:
                    found.append(f"{op}: the server has no parameter {parameter.name!r}")
                continue
            here, there = _text(parameter.annotation), counterpart["annotation"]
            if here and there and here != there:
                found.append(
                    f"{op}: the parameter {parameter.name!r} is annotated as {here} here, and as "
                    f"{there} at the server"
                )
        names = {parameter.name for parameter in ours}
        found += [
            f"{op}: the server requires a parameter {name!r}"
            for name, parameter in theirs.items()
            if parameter["required"] and name not in names
        ]
    return found

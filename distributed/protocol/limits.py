"""What a receiver does with a message, at most: how deep, how large, and whether it unpickles.

A `LoadPolicy` is made of the configuration when a connection is opened, and says what messages on
it may ask for.  While one of them is read (`reading`), everything that takes part in it (the
decoder of frames, the serializer families, the serializers of a library) asks here: for room that
inflated frames take, and whether anything may be unpickled.  What the length prelude may ask for
is bounded before that, in :mod:`distributed.protocol.framing`.
"""

from __future__ import annotations

import functools
import threading
from types import TracebackType
from typing import NamedTuple

from distributed.base import config
from distributed.protocol.exceptions import (
    CompressionError,
    HeaderError,
    PickleNotAllowedError,
)

__all__ = ["LoadPolicy", "Reading", "check_unpickling", "default_policy", "may_unpickle", "reading"]

ALLOW_PICKLE = "distributed.comm.allow-pickle"
MAX_DEPTH = "distributed.comm.max-depth"
MAX_INFLATED_SIZE = "distributed.comm.max-inflated-size"


class LoadPolicy(NamedTuple):
    """What may be done for a message that is read; None stands for no limit.

    Attributes
    ----------
    allow_pickle
        Whether anything is unpickled (``distributed.comm.allow-pickle``).
    max_depth
        How deep collections may be nested that are serialized by their elements
        (``distributed.comm.max-depth``).
    max_inflated_size
        Bytes that all compressed frames of a message together may inflate to
        (``distributed.comm.max-inflated-size``).
    """

    allow_pickle: bool = True
    max_depth: int | None = 512
    max_inflated_size: int | None = 16 * 2**30

    @classmethod
    def from_config(cls, allow_pickle: bool | None = None) -> LoadPolicy:
        """What the configuration says now.

        Parameters
        ----------
        allow_pickle
            Replaces what it says of that, if given.

        Raises
        ------
        ValueError
            If a value cannot be understood; it names the key.
        """
        if allow_pickle is None:
            allow_pickle = config.get_bool(ALLOW_PICKLE)
            if allow_pickle is None:
                raise ValueError(f"{ALLOW_PICKLE} must be true or false, not null")
        return cls(allow_pickle, config.get_int(MAX_DEPTH), config.get_bytes(MAX_INFLATED_SIZE))


@functools.cache
def default_policy() -> LoadPolicy:
    """The policy for what no connection brought, as configured when it was first needed."""
    return LoadPolicy.from_config()


class Reading:
    """One message, or one value, that is being read; a context, in which it is the current one.

    Parameters
    ----------
    policy
        What may be done for it.
    """

    # State.  `depth` collections are open, of which the value at hand is in the innermost;
    # `inflated` bytes were inflated so far.  `_outer` is what was being read around this.
    __slots__ = ("_outer", "depth", "inflated", "policy")

    def __init__(self, policy: LoadPolicy):
        self.policy = policy
        self.depth = 0
        self.inflated = 0
        self._outer: Reading | None = None

    def __enter__(self) -> Reading:
        self._outer, _current.reading = _current.reading, self
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.reading = self._outer

    def open_collection(self) -> None:
        """Take note that a collection begins.

        Raises
        ------
        HeaderError
            If it is nested too deeply.
        """
        limit = self.policy.max_depth
        if limit is not None and self.depth >= limit:
            raise HeaderError(
                f"collections are nested more than {limit} deep, which is what {MAX_DEPTH!r} allows"
            )
        self.depth += 1

    @property
    def room(self) -> int | None:
        """Bytes that may still be inflated; None for any number."""
        limit = self.policy.max_inflated_size
        return None if limit is None else limit - self.inflated

    def no_room(self, what: str) -> CompressionError:
        """The error for frames that inflate to more than there is room for."""
        return CompressionError(
            f"{what}, where {MAX_INFLATED_SIZE!r} allows {self.policy.max_inflated_size:,} bytes "
            f"for all frames of a message, of which {self.inflated:,} are taken"
        )


class _Current(threading.local):
    # A message is read from beginning to end in one thread, without an await in between.
    reading: Reading | None = None


_current = _Current()


class _Joined:
    """A context for what is read as a part of the current reading."""

    __slots__ = ("_reading",)

    def __init__(self, reading: Reading):
        self._reading = reading

    def __enter__(self) -> Reading:
        return self._reading

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


def reading(policy: LoadPolicy | None = None) -> Reading | _Joined:
    """A context in which a message or a value is read.

    Parameters
    ----------
    policy
        What may be done for it.  If not given, what is read belongs to what is being read around
        it, if anything is, and is otherwise under the `default_policy`.

    Examples
    --------
    >>> with reading(LoadPolicy(allow_pickle=False)):
    ...     check_unpickling()
    Traceback (most recent call last):
        ...
    distributed.protocol.exceptions.PickleNotAllowedError: ...
    """
    if policy is not None:
        return Reading(policy)
    outer = _current.reading
    return Reading(default_policy()) if outer is None else _Joined(outer)


def may_unpickle() -> bool:
    """Whether what is being read may be unpickled; always true where nothing is."""
    current = _current.reading
    return current is None or current.policy.allow_pickle


def check_unpickling(what: str = "an object") -> None:
    """Raise unless what is being read may be unpickled.

    Parameters
    ----------
    what
        Names it in the message.

    Raises
    ------
    PickleNotAllowedError
        If pickles are refused.
    """
    if not may_unpickle():
        raise PickleNotAllowedError(
            f"{what} came pickled, and nothing is unpickled on this connection "
            f"({ALLOW_PICKLE!r} is false, or allow_pickle=False was given).  Send what msgpack can "
            "encode, or objects of types that are registered by dask_serialize on both sides."
        )

"""Limits on reading a message: how deep, how large, which files, and whether it unpickles.

A `LoadPolicy` is made from the configuration when a connection is opened.  While a message is read
(`reading`), the decompressor, the serializer families and the serializers of libraries ask this
module whether frames may be inflated and whether anything may be unpickled.  The sizes in the
length prelude are checked earlier, in :mod:`distributed.protocol.framing`.
"""

from __future__ import annotations

import functools
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from distributed.base import config
from distributed.base.text import shown_repr
from distributed.protocol.exceptions import (
    CompressionError,
    HeaderError,
    PickleNotAllowedError,
)

__all__ = [
    "LoadPolicy",
    "Reading",
    "check_unpickling",
    "checked_filename",
    "count_memory",
    "default_policy",
    "may_unpickle",
    "reading",
    "reading_stored",
]

ALLOW_PICKLE = "distributed.comm.allow-pickle"
MAX_DEPTH = "distributed.comm.max-depth"
MAX_INFLATED_SIZE = "distributed.comm.max-inflated-size"

#: Maximum number of bytes to inflate by default, and the multiple of the bytes received that is
#: allowed if it is more.  Data that honest peers compress rarely shrinks to less than a tenth.
AUTO_SIZE = 2**30
AUTO_RATIO = 32


class LoadPolicy(NamedTuple):
    """The limits for reading a message; None means no limit.

    Attributes
    ----------
    allow_pickle
        Whether anything is unpickled (``distributed.comm.allow-pickle``).
    max_depth
        Maximum nesting of collections that are serialized element by element
        (``distributed.comm.max-depth``).
    max_inflated_size
        Maximum size (bytes) of all compressed frames of a message together, once inflated, and of
        its maps and arrays in memory (``distributed.comm.max-inflated-size``).  "auto" stands for
        `AUTO_SIZE`, or `AUTO_RATIO` times the bytes received if that is more.
    """

    allow_pickle: bool = True
    max_depth: int | None = 512
    max_inflated_size: int | Literal["auto"] | None = "auto"

    @classmethod
    def from_config(cls, allow_pickle: bool | None = None) -> LoadPolicy:
        """Return the policy of the current configuration.

        Parameters
        ----------
        allow_pickle
            Replaces the configured value, if given.

        Raises
        ------
        ValueError
            If a configured value is invalid; the error names its key.
        """
        if allow_pickle is None:
            allow_pickle = config.read(ALLOW_PICKLE)
        return cls(bool(allow_pickle), config.get_int(MAX_DEPTH), config.read(MAX_INFLATED_SIZE))


@functools.cache
def default_policy() -> LoadPolicy:
    """Return the policy for messages without a connection, as configured at the first call."""
    return LoadPolicy.from_config()


class Reading:
    """The reading of one message or value; a context manager that makes it the current one.

    Parameters
    ----------
    policy
        The limits.
    received
        Size of the message in bytes, as received.
    """

    __slots__ = ("_outer", "depth", "inflated", "max_inflated", "policy")

    def __init__(self, policy: LoadPolicy, received: int = 0):
        self.policy = policy
        # Maximum number of bytes to inflate; None for no limit.
        limit = policy.max_inflated_size
        self.max_inflated = max(AUTO_SIZE, received * AUTO_RATIO) if limit == "auto" else limit
        # Number of collections around the current value.
        self.depth = 0
        # Number of bytes inflated so far.
        self.inflated = 0
        # The reading that was current before this one.
        self._outer: Reading | None = None

    def __enter__(self) -> Reading:
        self._outer, _current.reading = _current.reading, self
        return self

    def __exit__(self, *exc_info: object) -> None:
        _current.reading = self._outer

    def open_collection(self) -> None:
        """Count a collection that begins.

        Raises
        ------
        HeaderError
            If collections are nested too deeply.
        """
        limit = self.policy.max_depth
        if limit is not None and self.depth >= limit:
            raise HeaderError(
                f"collections are nested more than {limit} deep, the maximum of {MAX_DEPTH!r}"
            )
        self.depth += 1

    @property
    def room(self) -> int | None:
        """Number of bytes that may still be inflated; None for no limit."""
        return None if self.max_inflated is None else self.max_inflated - self.inflated

    def no_room(self, what: str) -> CompressionError:
        """Return the error for frames that inflate to more bytes than `room`."""
        return CompressionError(
            f"{what}; {MAX_INFLATED_SIZE!r} allows {self.max_inflated:,} bytes for all "
            f"frames of a message, and {self.inflated:,} are already used"
        )


def count_memory(nbytes: int, what: str) -> None:
    """Count memory that a value needs beyond its frames as inflated bytes of the current message.

    Parameters
    ----------
    nbytes
        Number of bytes.
    what
        The value, for the error message.

    Raises
    ------
    CompressionError
        If all values of the message together would need more than `LoadPolicy.max_inflated_size`.
    """
    with reading() as message:
        room = message.room
        if room is not None and nbytes > room:
            raise message.no_room(f"{what} takes {nbytes:,} bytes")
        message.inflated += nbytes


def checked_filename(name: Any, what: str) -> str:
    """Return the name of a file that a peer wants to be opened.

    Parameters
    ----------
    name
        The name in a header.
    what
        The kind of file, for the error message.

    Raises
    ------
    HeaderError
        If it is not a name, or that of a named pipe, a device or a directory.
    """
    if not isinstance(name, str):
        raise HeaderError(f"the name of {what} is given as {shown_repr(name, 100)}")
    # Opening a named pipe or a device may take forever.
    if os.path.exists(name) and not os.path.isfile(name):
        raise HeaderError(f"{name!r:.200} is not a regular file, so it is not opened as {what}")
    return name


class _Current(threading.local):
    # A message is read in one thread, without an await.
    reading: Reading | None = None


_current = _Current()


def reading(policy: LoadPolicy | None = None, received: int = 0) -> AbstractContextManager[Reading]:
    """Return a context manager in which a message or a value is read.

    Parameters
    ----------
    policy
        The limits.  By default, a value is read under the limits of the message around it, and
        counts towards them; without such a message, the `default_policy` holds.
    received
        Size of the message or value in bytes, as received.

    Examples
    --------
    >>> with reading(LoadPolicy(allow_pickle=False)):
    ...     check_unpickling()
    Traceback (most recent call last):
        ...
    distributed.protocol.exceptions.PickleNotAllowedError: ...
    """
    if policy is not None:
        return Reading(policy, received)
    outer = _current.reading
    return Reading(default_policy(), received) if outer is None else nullcontext(outer)


def reading_stored() -> AbstractContextManager[Reading]:
    """Return a context manager in which a value is read that this process may have stored.

    Outside of a message, "auto" means no maximum inflated size: the sizes of stored values were
    those of objects in memory.
    """
    if _current.reading is not None:
        return nullcontext(_current.reading)
    policy = default_policy()
    if policy.max_inflated_size == "auto":
        policy = policy._replace(max_inflated_size=None)
    return Reading(policy)


def may_unpickle() -> bool:
    """Return whether the current message may be unpickled; True if no message is being read."""
    current = _current.reading
    return current is None or current.policy.allow_pickle


def check_unpickling(what: str = "an object") -> None:
    """Raise an error if the current message may not be unpickled.

    Parameters
    ----------
    what
        The pickled value, for the error message.

    Raises
    ------
    PickleNotAllowedError
        If nothing is unpickled on this connection.
    """
    if not may_unpickle():
        raise PickleNotAllowedError(
            f"{what} is pickled, and nothing is unpickled on this connection ({ALLOW_PICKLE!r} is "
            "false, or allow_pickle=False was given).  Send values that msgpack can encode, or "
            "objects of types that are registered with dask_serialize on both sides."
        )

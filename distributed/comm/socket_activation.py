"""The listening sockets that a service manager passes to this process (sd_listen_fds(3)).

systemd opens the sockets of a socket unit itself, starts the service at the first connection, and
passes the sockets as file descriptors from 3 on.  The environment variables ``LISTEN_PID``,
``LISTEN_FDS`` and ``LISTEN_FDNAMES`` give the process they are meant for, their number, and their
names.  The addresses are

* ``fd://3``, the descriptor 3; this also works with other programs that pass sockets;
* ``fd://NAME``, the socket whose unit has ``FileDescriptorName=NAME``;
* ``fd://``, all of them.

:mod:`distributed.comm.inherited` listens at them.
"""

from __future__ import annotations

import os

from distributed.base.text import shown_repr

__all__ = ["PREFIX", "descriptors", "has_inherited", "inherited_addresses"]

PREFIX = "fd://"

#: The number of the first descriptor that is passed (SD_LISTEN_FDS_START).
_FIRST = 3


def _problem() -> str | None:
    """Return the reason why no sockets are meant for this process, or None if some are."""
    count, pid = os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID")
    if count is None or pid is None:
        return "LISTEN_FDS is not set: is the process started by a socket unit of systemd?"
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        return f"LISTEN_FDS={count!r} is not a number of sockets"
    if pid != str(os.getpid()):
        return f"LISTEN_PID={pid} is another process: this one is {os.getpid()}"
    return None


def has_inherited() -> bool:
    """Return whether a service manager has passed sockets to this process."""
    return _problem() is None


def descriptors(loc: str) -> list[int]:
    """Return the numbers of the file descriptors at ``fd://loc``.

    Raises
    ------
    ValueError
        If there are none, or *loc* is not the name of one.

    Examples
    --------
    >>> descriptors("3")
    [3]
    """
    if loc.isascii() and loc.isdigit():
        return [int(loc)]
    if (problem := _problem()) is not None:
        raise ValueError(f"no socket for {PREFIX}{loc} was passed to this process: {problem}")
    numbers = range(_FIRST, _FIRST + int(os.environ["LISTEN_FDS"]))
    if not loc:
        return list(numbers)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = [number for number, name in zip(numbers, names, strict=False) if name == loc]
    if not found:
        known = ", ".join(names) if any(names) else "none has a name"
        raise ValueError(
            f"{PREFIX}{loc}: no socket that was passed to this process has the name "
            f"{shown_repr(loc)} (names: {known}); FileDescriptorName= of the socket unit sets it"
        )
    return found


def inherited_addresses(address: str) -> list[str]:
    """Return an ``fd://`` address with a number for each socket at an ``fd://`` address.

    Raises
    ------
    ValueError
        As for :func:`descriptors`.
    """
    return [f"{PREFIX}{number}" for number in descriptors(address.removeprefix(PREFIX))]

"""The states of a server, a pool or an rpc."""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Status(Enum):
    """The state of an object; ``Status.lookup`` maps names to members.

    ``dont_reply`` is not a state: a handler returns it if it has already written its answer.

    Examples
    --------
    >>> Status.running
    <Status.running: 'running'>
    >>> Status.lookup["closed"] is Status.closed
    True
    """

    # The wire form of a member and its pickle contain the module of the class.  Both must name
    # the module where the original defines it.
    __module__ = "distributed.core"

    lookup: ClassVar[dict[str, Status]]

    undefined = "undefined"
    created = "created"
    init = "init"
    starting = "starting"
    running = "running"
    paused = "paused"
    stopping = "stopping"
    stopped = "stopped"
    closing = "closing"
    closing_gracefully = "closing_gracefully"
    closed = "closed"
    failed = "failed"
    dont_reply = "dont_reply"


Status.lookup = dict(Status.__members__)

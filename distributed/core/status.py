"""The states of a server, a pool or an rpc, and the one answer that is no answer.

Leaf vocabulary of floor 4: it knows nothing of what the states do.  A member crosses the wire in
the map form of enum members, which spells out the module of its class; both that form and its
pickle must name ``distributed.core``, where the original defines the class and where it is
re-exported from here.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Status(Enum):
    """Where an object stands in its life.

    ``Status.lookup`` maps each name to its member.

    ``dont_reply`` is no state: a handler returns it to say that it has answered by itself.

    Examples
    --------
    >>> Status.running
    <Status.running: 'running'>
    >>> Status.lookup["closed"] is Status.closed
    True
    """

    # The wire form and the pickle name the class by this; see the module's docstring.
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
